# pyright: basic, reportMissingImports=false
"""What `kernels.cu` holds, as functions of CuPy arrays: compiled, cached and launched.

Arrays are packed and of one device, which is current. A launch goes to the current stream.
"""

import base64
import contextlib
import hashlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path

import cupy
import numpy as np
from cupy.cuda import nvrtc

SOURCE = Path(__file__).with_name("kernels.cu")

OPTIONS = ("--std=c++17", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "--fmad=true")
"""Subnormals are kept and division is correctly rounded; fused multiply-adds are welcome."""

C_TYPES = {"float32": "float", "float64": "double"}

PER_TYPE = (
    *(f"{kernel}<{{}}, {f}>" for kernel in ("activate", "add_bias") for f in ("Sigmoid", "Relu")),
    "add_bias<{}, Identity>",
    "sigmoid_backward<{}>",
    "relu_backward<{}>",
    "softmax<{}>",
    "softmax_with_loss<{}>",
    "softmax_with_loss_backward<{}>",
    "cross_entropies<{}>",
    "squared_errors<{}>",
    "column_sums<{}>",
)
KERNELS = (*(name.format(t) for t in C_TYPES.values() for name in PER_TYPE), "loss_differences")
"""Every instance that is compiled, as C++ names it."""

THREADS = 256
"""Of a block, but where a row has few columns: then a warp."""

LARGEST_GRID = 1 << 16
"""Blocks, at most, of one launch. It fills any device; the kernels stride over the rest."""

WARP_COLUMNS = 1024
"""Columns up to which one warp is enough for a row."""

PIECE = 512
"""Rows, at least, that one block of `column_sums` adds."""

LARGEST_PIECES = 1024
"""Pieces, at most, into which `column_sums` cuts the rows."""

ENOUGH_THREADS = 1 << 17
"""Threads beyond which `loss_differences` does not share out the samples too."""

LARGEST_SCRATCH = 1 << 23
"""Numbers, at most, that the threads of `loss_differences` keep: 64 MiB."""

OPERATIONS = {"sigmoid": 0, "relu": 1, "affine": 2}


# -- compiling


def compiled(names, options, capability):
    """`names` of kernels.cu for a device of this compute capability, as ``"90"``.

    Returns the binary, and the name of each kernel in it. CuPy's RawModule, which does the like,
    adds ``-ftz=true`` to every compilation: float32 numbers below the normal range would be 0.
    """
    known = [arch for arch in nvrtc.getSupportedArchs() if arch <= int(capability)]
    # A device newer than this NVRTC gets PTX, which its driver compiles.
    binary = int(capability) in known
    target = f"--gpu-architecture={'sm' if binary else 'compute'}_{max(known)}"
    program = nvrtc.createProgram(SOURCE.read_text(), SOURCE.name, (), ())
    try:
        for name in names:
            nvrtc.addNameExpression(program, name)
        try:
            nvrtc.compileProgram(program, (*options, target))
        except nvrtc.NVRTCError as error:
            raise RuntimeError(f"kernels.cu: {nvrtc.getProgramLog(program)}") from error
        code = nvrtc.getCUBIN(program) if binary else nvrtc.getPTX(program)
        return code, {name: nvrtc.getLoweredName(program, name) for name in names}
    finally:
        nvrtc.destroyProgram(program)


def _cached(names, options, capability):
    """What `compiled` gives, kept beside CuPy's own compiled kernels."""
    home = os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache"
    key = repr((SOURCE.read_text(), names, options, capability, nvrtc.getVersion()))
    path = Path(home) / f"xnet_{hashlib.sha256(key.encode()).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads(path.read_text())
        return base64.b64decode(found["code"]), found["names"]
    code, lowered = compiled(names, options, capability)
    with contextlib.suppress(OSError):  # not writable: compiled anew in each process
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({"code": base64.b64encode(code).decode(), "names": lowered}, file)
        os.replace(file.name, path)  # whole or not at all
    return code, lowered


@cache
def _module(device, names, options):
    code, lowered = _cached(names, options, cupy.cuda.Device(device).compute_capability)
    module = cupy.cuda.Module()
    module.load(code)
    return module, lowered


@cache
def _function(device, name):
    module, lowered = _module(device, KERNELS, OPTIONS)
    return module.get_function(lowered[name])


# -- launching


def _launch(name, grid, block, *arguments):
    """Launch the kernel; of the arguments, ints are `Index`, floats are double."""
    numbers = {bool: np.bool_, int: np.int64, float: np.float64}
    arguments = tuple(numbers.get(type(value), lambda v: v)(value) for value in arguments)
    _function(cupy.cuda.Device().id, name)(grid, block, arguments)


def _instance(kernel, array, *parameters):
    return f"{kernel}<{', '.join([C_TYPES[array.dtype.name], *parameters])}>"


def _over_elements(name, size, *arguments):
    """Launch a kernel of which each thread takes an element at a time."""
    if size:
        _launch(name, (min(-(-size // THREADS), LARGEST_GRID),), (THREADS,), *arguments)


def _over_rows(name, shape, *arguments):
    """Launch a kernel of which each block takes a row at a time, of an array of this shape."""
    rows, columns = shape
    if rows and columns:
        threads = 32 if columns <= WARP_COLUMNS else THREADS
        _launch(name, (min(rows, LARGEST_GRID),), (threads,), *arguments, rows, columns)


# -- kernels: see xnet/backend.py


def add_bias(y, b, activation="Identity"):
    """The activation of y + b, in place of y (N, M)."""
    name = _instance("add_bias", y, activation)
    _over_elements(name, y.size, y, b, y.size, b.size)


def _activate(x, activation):
    y = cupy.empty_like(x)
    _over_elements(_instance("activate", x, activation), x.size, x, y, x.size)
    return y


def sigmoid(x):
    """1 / (1 + exp(-x)) elementwise."""
    return _activate(x, "Sigmoid")


def relu(x):
    """0 where x <= 0, x elsewhere."""
    return _activate(x, "Relu")


def sigmoid_backward(dout, y):
    """dout (1 - y) y elementwise."""
    dx = cupy.empty_like(y)
    _over_elements(_instance("sigmoid_backward", y), y.size, dout, y, dx, y.size)
    return dx


def relu_backward(dout, mask):
    """`dout` with zeros where `mask`."""
    dx = cupy.empty_like(dout)
    _over_elements(_instance("relu_backward", dout), dx.size, dout, mask, dx, dx.size)
    return dx


def column_sums(x):
    """Sums of the columns of x (N, M): (M,)."""
    rows, columns = x.shape
    if not x.size:
        return cupy.zeros(columns, x.dtype)
    piece = max(PIECE, -(-rows // LARGEST_PIECES))
    pieces = -(-rows // piece)
    out = cupy.empty((pieces, columns), x.dtype)
    grid = -(-columns // 32), pieces
    _launch(_instance("column_sums", x), grid, (32, 8), x, out, rows, columns, piece)
    return out[0] if pieces == 1 else column_sums(out)


def _rows(x):
    """The shape of x (..., C) as that of a matrix."""
    return (x.size // x.shape[-1] if x.size else 0), x.shape[-1]


def softmax(x):
    """exp(x) / sum of exp(x) over the last axis."""
    y = cupy.empty_like(x)
    _over_rows(_instance("softmax", x), _rows(x), x, y)
    return y


def softmax_with_loss(x, t):
    """The cross-entropy error of each row of softmax(x) against t (N, C), and softmax(x)."""
    y, losses = cupy.empty_like(x), cupy.empty(x.shape[0], x.dtype)
    _over_rows(_instance("softmax_with_loss", x), x.shape, x, t, y, losses)
    return losses, y


def softmax_with_loss_backward(y, t, scale):
    """(y sum(r) - r) scale with r = t y / (y + 1e-7), row by row."""
    dx = cupy.empty_like(y)
    name = _instance("softmax_with_loss_backward", y)
    _over_rows(name, y.shape, y, t, dx, y.dtype.type(scale))
    return dx


def row_losses(scores, loss, t):
    """The loss of each row, (...), of `scores` (..., C) against t of the same shape."""
    kernel = "cross_entropies" if loss == "cross_entropy" else "squared_errors"
    losses = cupy.empty(scores.shape[:-1], scores.dtype)
    _over_rows(_instance(kernel, scores), _rows(scores), scores, t, losses)
    return losses


def loss_differences(x, a, z, after, steps, loss, t, h):
    """L(w + h) - L(w - h) for every weight and bias of one layer, (D + 1, M), in float64.

    `steps` begin with the activations that make z (N, M) of a, then the affine layer, if there
    is one, that makes `after` of z.
    """
    samples, columns = a.shape
    inputs = x.shape[1]
    weights = (inputs + 1) * columns
    first = next((k for k, step in enumerate(steps) if step[0] == "affine"), len(steps))
    W_columns = cupy.ascontiguousarray(steps[first][1].T) if first < len(steps) else a
    operations, parameters, at, width, widest = [], [], 0, after.shape[1], after.shape[1]
    for name, *arrays in (*steps[:first], *steps[first + 1 :]):
        width_in = width
        if arrays:
            width = arrays[0].shape[1]
            parameters += [array.ravel() for array in arrays]
        operations.append((OPERATIONS[name], at, width_in, width))
        at, widest = at + sum(array.size for array in arrays), max(widest, width)
    behind = len(operations) - first
    pieces = min(samples, -(-ENOUGH_THREADS // weights))
    threads = min(pieces * weights, LARGEST_GRID * THREADS)
    if behind:
        threads = min(threads, LARGEST_SCRATCH // (2 * widest))
    blocks = -(-threads // THREADS)
    out = cupy.empty((pieces, weights), x.dtype)
    _launch(
        "loss_differences",
        (blocks,),
        (THREADS,),
        *(x, a, z, after, W_columns, t),
        cupy.asarray(np.array(operations or [(0, 0, 0, 0)], np.int64)),
        cupy.concatenate(parameters) if parameters else a,
        cupy.empty(2 * widest * THREADS * blocks if behind else 1, x.dtype),
        out,
        *(float(h), loss == "cross_entropy", first == len(steps)),
        *(samples, inputs, columns, after.shape[1], t.shape[1]),
        *(first, behind, widest, pieces),
    )
    return column_sums(out).reshape(inputs + 1, columns) / samples
