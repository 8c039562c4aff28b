# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""What `kernels.cu` holds, as functions of CuPy arrays: compiled, cached and launched.

Arrays are packed and of one device, which is current. A launch goes to the current stream.
"""

import base64
import contextlib
import hashlib
import json
import math
import os
import tempfile
from functools import cache
from pathlib import Path

import cupy
import numpy as np
from cupy.cuda import nvrtc

from xnet import exact

SOURCE = Path(__file__).with_name("kernels.cu")

OPTIONS = ("--std=c++17", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""Subnormals are kept, division is correctly rounded."""

CONTRACTION = {"Fast": "--fmad=true", "Exact": "--fmad=false"}
"""Whether multiplications are fused with additions, by what the kernels are for."""

C_TYPES = {"float32": "float", "float64": "double"}

KERNELS = (
    *("apply<{type}, Sigmoid<{math}>>", "apply<{type}, Relu>"),
    *("add_bias<{type}, Identity>", "add_bias<{type}, Sigmoid<{math}>>", "add_bias<{type}, Relu>"),
    *("sigmoid_backward<{type}>", "relu_backward<{type}>", "descend<{type}>"),
    *("softmax<{type}, {math}>", "softmax_with_terms<{type}, {math}>"),
    "softmax_with_loss_backward<{type}, {math}>",
    *("cross_entropies<{type}, {math}>", "squared_errors<{type}, {math}>"),
    *("row_sums<{type}, {math}>", "column_sums<{type}, {math}>"),
)
"""What both modes compile, for each type of number."""

FAST_KERNELS = ("forward_rows<{type}, {math}>",)
"""What the fast mode compiles besides, but for `loss_differences`."""

EXACT_KERNELS = (
    *("apply<{type}, Exp<Exact>>", "apply<{type}, Log<Exact>>"),
    *("cut_rows<{type}>", "cut_columns<{type}>", "add_products<{type}>"),
)
"""What the reproducible mode compiles besides."""

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


def instances(mode):
    """The kernels of "Fast" or "Exact" mode, as C++ names them."""
    templates = (*KERNELS, *(EXACT_KERNELS if mode == "Exact" else FAST_KERNELS))
    names = [t.format(type=c, math=mode) for c in C_TYPES.values() for t in templates]
    return (*names, "loss_differences<Fast>") if mode == "Fast" else tuple(names)


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
def _module(device, mode):
    capability = cupy.cuda.Device(device).compute_capability
    code, lowered = _cached(instances(mode), (*OPTIONS, CONTRACTION[mode]), capability)
    module = cupy.cuda.Module()
    module.load(code)
    return module, lowered


@cache
def _function(device, mode, name):
    module, lowered = _module(device, mode)
    return module.get_function(lowered[name])


# -- launching


def _launch(mode, kernel, array, grid, block, *arguments):
    """Launch the instance of `kernel` for the dtype of `array`; ints are passed as `Index`."""
    name = kernel.format(type=C_TYPES[array.dtype.name], math=mode)
    numbers = {bool: np.bool_, int: np.int64, float: np.float64}
    arguments = tuple(numbers.get(type(value), lambda v: v)(value) for value in arguments)
    _function(cupy.cuda.Device().id, mode, name)(grid, block, arguments)


def _over_elements(mode, kernel, array, *arguments):
    """Launch a kernel of which each thread takes an element of `array` at a time."""
    if array.size:
        grid = (min(-(-array.size // THREADS), LARGEST_GRID),)
        _launch(mode, kernel, array, grid, (THREADS,), *arguments)


def _over_rows(mode, kernel, array, *arguments):
    """Launch a kernel of which each block takes a row of `array` (..., C) at a time."""
    if array.size:
        columns = array.shape[-1]
        rows = array.size // columns
        threads = 32 if columns <= WARP_COLUMNS else THREADS
        grid = (min(rows, LARGEST_GRID),)
        _launch(mode, kernel, array, grid, (threads,), *arguments, rows, columns)


# -- kernels: see xnet/backend.py. `mode` is "Fast", or "Exact" for reproducible mode


def apply(mode, function, x):
    """The elementwise `function` of kernels.cu of x."""
    y = cupy.empty_like(x)
    _over_elements(mode, f"apply<{{type}}, {function}>", x, x, y, x.size)
    return y


def add_bias(mode, y, b, activation="Identity"):
    """The activation of y + b, in place of y (N, M)."""
    _over_elements(mode, f"add_bias<{{type}}, {activation}>", y, y, b, y.size, b.size)


def sigmoid_backward(mode, dout, y):
    """dout (1 - y) y elementwise."""
    dx = cupy.empty_like(y)
    _over_elements(mode, "sigmoid_backward<{type}>", y, dout, y, dx, y.size)
    return dx


def relu_backward(mode, dout, mask):
    """`dout` with zeros where `mask`."""
    dx = cupy.empty_like(dout)
    _over_elements(mode, "relu_backward<{type}>", dout, dout, mask, dx, dx.size)
    return dx


def softmax(mode, x):
    """exp(x) / sum of exp(x) over the last axis."""
    y = cupy.empty_like(x)
    _over_rows(mode, "softmax<{type}, {math}>", x, x, y)
    return y


def softmax_with_terms(mode, x, t):
    """softmax(x), and the terms t log(y + 1e-7) of its cross-entropy error against t."""
    y, terms = cupy.empty_like(x), cupy.empty_like(x)
    _over_rows(mode, "softmax_with_terms<{type}, {math}>", x, x, t, y, terms)
    return y, terms


def softmax_with_loss_backward(mode, y, t, scale):
    """(y sum(r) - r) scale with r = t y / (y + 1e-7), row by row."""
    dx, scale = cupy.empty_like(y), y.dtype.type(scale)
    _over_rows(mode, "softmax_with_loss_backward<{type}, {math}>", y, y, t, dx, scale)
    return dx


def row_losses(mode, scores, loss, t):
    """The loss of each row, (...), of `scores` (..., C) against t of the same shape."""
    kernel = "cross_entropies" if loss == "cross_entropy" else "squared_errors"
    losses = cupy.empty(scores.shape[:-1], scores.dtype)
    _over_rows(mode, f"{kernel}<{{type}}, {{math}}>", scores, scores, t, losses)
    return losses


def descend(mode, W, g, lr):
    """W -= lr g."""
    _over_elements(mode, "descend<{type}>", W, W, g, W.dtype.type(lr), W.size)


class SmallStack:
    """Layers x W + b, each with at most one activation, as the table that `forward_rows` reads.

    It holds the arrays, so that their addresses stay valid.
    """

    def __init__(self, layers):
        self.layers = layers
        rows = [
            (W.data.ptr, b.data.ptr, *W.shape, OPERATIONS.get(activation, -1))
            for W, b, activation in layers
        ]
        self.table = cupy.asarray(np.array(rows, np.int64))
        self.widest = max(W.shape[1] for W, _, _ in layers)

    def forward(self, x, probabilities):
        """The scores of x (N, D), or their softmax, in one launch."""
        rows = x.shape[0]
        out = cupy.empty((rows, self.layers[-1][0].shape[1]), x.dtype)
        between = cupy.empty((rows, 2, self.widest), x.dtype)
        _launch(
            *("Fast", "forward_rows<{type}, {math}>", x, (rows,), (THREADS,)),
            *(x, self.table, between, out, rows, len(self.layers), self.widest, probabilities),
        )
        return out


def row_sums(mode, x):
    """Sums over the last axis of x (..., C)."""
    out = cupy.empty(x.shape[:-1], x.dtype)
    _over_rows(mode, "row_sums<{type}, {math}>", x, x, out)
    return out


def column_sums(mode, x):
    """Sums over the rows of x (N, M): (M,)."""
    rows, columns = x.shape
    if not x.size:
        return cupy.zeros(columns, x.dtype)
    # Adding pieces rounds: what must be exact is one piece.
    piece = max(PIECE, -(-rows // LARGEST_PIECES)) if mode == "Fast" else rows
    pieces = -(-rows // piece)
    out = cupy.empty((pieces, columns), x.dtype)
    grid = -(-columns // 32), pieces
    kernel = "column_sums<{type}, {math}>"
    _launch(mode, kernel, x, grid, (32, 8), x, out, rows, columns, piece)
    return out[0] if pieces == 1 else column_sums(mode, out)


def exact_sum(a, axis, keepdims):
    """`xnet.exact.sum` of an array that is not empty."""
    axis = exact.checked_axis(a, axis)
    if axis is None:
        return row_sums("Exact", a.reshape(1, -1)).reshape((1,) * a.ndim if keepdims else ())
    if axis == a.ndim - 1:
        sums = row_sums("Exact", a)
    else:
        matrices = a.reshape(-1, a.shape[axis], math.prod(a.shape[axis + 1 :]))
        sums = cupy.stack([column_sums("Exact", matrix) for matrix in matrices])
    shape = (*a.shape[:axis], *([1] if keepdims else []), *a.shape[axis + 1 :])
    return sums.reshape(shape)


def exact_matmul(a, b):
    """`xnet.exact.matmul` of matrices (N, K) and (K, M) that are not empty."""
    exact.check_product(a, b)
    (rows, contracted), columns = a.shape, b.shape[1]
    slices, bits = exact.product_slices(contracted, a.dtype.name)
    parts_a = cupy.empty((slices * rows, contracted), np.float64)
    parts_b = cupy.empty((slices, contracted, columns), np.float64)
    half_a, half_b = cupy.empty(rows, np.float64), cupy.empty(columns, np.float64)
    finite_a, finite_b = cupy.empty(rows, np.bool_), cupy.empty(columns, np.bool_)
    _over_rows("Exact", "cut_rows<{type}>", a, a, parts_a, half_a, finite_a, slices, bits)
    _launch(
        *("Exact", "cut_columns<{type}>", b, (-(-columns // 32),), (32, 8)),
        *(b, parts_b, half_b, finite_b, slices, bits, contracted, columns),
    )
    products = cupy.empty((slices * (slices + 1) // 2 * rows, columns), np.float64)
    start = 0
    for t in range(slices):
        # The slices of a lie below each other, so that one product takes all that meet slice t.
        stop = start + (slices - t) * rows
        cupy.matmul(parts_a[: stop - start], parts_b[t], out=products[start:stop])
        start = stop
    out = cupy.empty((rows, columns), a.dtype)
    _over_elements(
        *("Exact", "add_products<{type}>", out, products, a, b, half_a, half_b),
        *(finite_a, finite_b, out, slices, rows, contracted, columns),
    )
    return out


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
        *("Fast", "loss_differences<{math}>", x, (blocks,), (THREADS,)),
        *(x, a, z, after, W_columns, t),
        cupy.asarray(np.array(operations or [(0, 0, 0, 0)], np.int64)),
        cupy.concatenate(parameters) if parameters else a,
        cupy.empty(2 * widest * THREADS * blocks if behind else 1, x.dtype),
        out,
        *(float(h), loss == "cross_entropy", first == len(steps)),
        *(samples, inputs, columns, after.shape[1], t.shape[1]),
        *(first, behind, widest, pieces),
    )
    return column_sums("Fast", out).reshape(inputs + 1, columns) / samples
