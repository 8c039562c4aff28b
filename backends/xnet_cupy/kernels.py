# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""What `kernels.cu` holds and `generated` adds, as functions of CuPy arrays: compiled and launched.

Arrays are of one device, which is current. A launch goes to the current stream.

Each instance of a kernel, for a type of number and a mode, is compiled alone when it is first
launched, which takes a tenth of a second, and kept beside CuPy's own: a program that uses three
operations waits for these.
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

from xnet import exact, perturbation
from xnet_cupy import generated
from xnet_cupy.generated import Kernel

OPTIONS = ("--std=c++17", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""Subnormals are kept, division is correctly rounded."""

CONTRACTION = {"Fast": "--fmad=true", "Exact": "--fmad=false"}
"""Whether multiplications are fused with additions, by what the kernels are for."""

C_TYPES = {"float32": "float", "float64": "double"}

BY_HAND = {
    name: Kernel(f"{name}<{types}>")
    for types, names in {
        "{type}, {math}": ("row_sums", "column_sums"),
        "{type}": ("cut_rows", "cut_columns", "add_products"),
    }.items()
    for name in names
}
"""What kernels.cu holds that needs nothing of a formula; the second line for "Exact" alone."""

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


SMALL_BATCH = 64
"""Rows, at most, that go through a run in one launch, a block of threads for each. A guess from
what a launch costs and how many blocks a device runs at a time, not yet measured on one."""

SMALL_RUN = 1 << 18
"""Weights, at most, of such a run: each block reads them all, and one multiprocessor reads 64
bytes a cycle at best: 2 MiB take as long as the launches that are saved. Not measured either."""


# -- compiling


def compiled(source, names, options, capability):
    """`names` of CUDA source for a device of this compute capability, as ``"90"``.

    Returns the binary, and the name of each kernel in it. CuPy's RawModule, which does the like,
    adds ``-ftz=true`` to every compilation: float32 numbers below the normal range would be 0.
    """
    known = [arch for arch in nvrtc.getSupportedArchs() if arch <= int(capability)]
    # A device newer than this NVRTC gets PTX, which its driver compiles.
    binary = int(capability) in known
    target = f"--gpu-architecture={'sm' if binary else 'compute'}_{max(known)}"
    program = nvrtc.createProgram(source, "kernels.cu", (), ())
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


def _cached(source, names, options, capability):
    """What `compiled` gives, kept beside CuPy's own compiled kernels."""
    home = os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache"
    key = repr((source, names, options, capability, nvrtc.getVersion()))
    path = Path(home) / f"xnet_{hashlib.sha256(key.encode()).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads(path.read_text())
        return base64.b64decode(found["code"]), found["names"]
    code, lowered = compiled(source, names, options, capability)
    with contextlib.suppress(OSError):  # not writable: compiled anew in each process
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({"code": base64.b64encode(code).decode(), "names": lowered}, file)
        os.replace(file.name, path)  # whole or not at all
    return code, lowered


@cache
def _function(device, mode, c_type, kernel):
    """The instance of a kernel, which keeps its module in the device's memory."""
    capability = cupy.cuda.Device(device).compute_capability
    name = kernel.name.format(type=c_type, math=mode)
    source, options = generated.source(kernel.text), (*OPTIONS, CONTRACTION[mode])
    code, lowered = _cached(source, (name,), options, capability)
    module = cupy.cuda.Module()
    module.load(code)
    return module.get_function(lowered[name])


# -- launching


def _launch(mode, kernel, array, grid, block, *arguments):
    """Launch the instance of `kernel` for the dtype of `array`; ints are passed as `Index`."""
    c_type = C_TYPES[array.dtype.name]
    function = _function(cupy.cuda.Device().id, mode, c_type, kernel)
    numbers = {bool: np.bool_, int: np.int64, float: np.float64}
    arguments = tuple(numbers.get(type(value), lambda v: v)(value) for value in arguments)
    function(grid, block, arguments)


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


# -- what formulas compute: see xnet/backend.py. `mode` is "Fast", or "Exact" for reproducible mode


def packed(array):
    """`array` in C order, which the kernels read; no copy is made where it is so already."""
    return cupy.asarray(array, order="C")


def alike(first, *others):
    """Whether arrays are what one kernel takes together: of one shape and type, which it knows."""
    return first.dtype.name in C_TYPES and all(
        a.shape == first.shape and a.dtype == first.dtype for a in others
    )


def _numbers(found, owner, dtype, n=0):
    """The numbers that a formula takes, of the arrays' type."""
    return tuple(map(dtype.type, found.numbers(owner, n)))


def evaluate(mode, found, owner, *arrays, n=0):
    """The results of a formula of `owner` for arrays that are `alike`, each a new array."""
    first = arrays[0]
    used = [packed(array) for array, used in zip(arrays, found.uses, strict=True) if used]
    numbers = _numbers(found, owner, first.dtype, n)
    if not found.by_rows:
        results = [cupy.empty(first.shape, first.dtype) for _ in found.varies]
        kernel = generated.elementwise(found)
        _over_elements(mode, kernel, first, *used, *results, *numbers, first.size)
        return tuple(results)
    shapes = [first.shape if varies else first.shape[:-1] for varies in found.varies]
    results = [cupy.empty(shape, first.dtype) for shape in shapes]
    _over_rows(mode, generated.rowwise(found), first, *used, *results, *numbers)
    return tuple(results)


def add_bias(mode, y, b, operations=()):
    """These activations of y + b, in place of y (N, M)."""
    chain, numbers = _chain(operations)
    numbers = map(y.dtype.type, numbers)
    _over_elements(mode, generated.add_bias(chain), y, y, packed(b), y.size, b.size, *numbers)


def _chain(operations):
    """Formulas of activations that follow each other, and the numbers that they take in turn."""
    chain = tuple(generated.forward(operation) for operation in operations)
    pairs = zip(chain, operations, strict=True)
    return chain, [number for found, owner in pairs for number in found.numbers(owner, 0)]


LAYER = np.dtype(
    [(name, np.int64) for name in ("W", "b", "inputs", "outputs", "function", "numbers")]
)
"""`Layer` of kernels.cu."""

OPERATION = np.dtype([(name, np.int64) for name in ("function", "at", "in", "out")])
"""`Operation` of kernels.cu."""


class SmallRun:
    """Layers x W + b, each with its activations, as the table that `forward_rows` reads.

    It holds the arrays, so that their addresses stay valid.
    """

    @classmethod
    def of(cls, layers):
        """For W and b and the activations of each layer; None where they are not for one kernel."""
        arrays = [array for parameters, _ in layers for array in parameters]
        if sum(array.size for array in arrays) > SMALL_RUN:
            return None
        plain = all(a.flags.c_contiguous and a.dtype.name in C_TYPES for a in arrays)
        return cls(layers) if plain else None

    def __init__(self, layers):
        self.layers = layers
        chains, table, numbers = {}, [], []
        for (W, b), operations in layers:
            chain, of_layer = _chain(operations)
            function = chains.setdefault(chain, len(chains))
            table.append((W.data.ptr, b.data.ptr, *W.shape, function, len(numbers)))
            numbers += of_layer
        self.chains = tuple(chains)
        self.dtype = layers[0][0][0].dtype
        self.table = cupy.asarray(np.array(table, LAYER).view(np.int64))
        self.numbers = cupy.asarray(np.array(numbers or [0.0], self.dtype))
        self.outputs = layers[-1][0][0].shape[1]
        self.widest = max(W.shape[1] for (W, _), _ in layers)

    @staticmethod
    def predicted(loss):
        """What the loss makes of the scores."""
        return generated.identity() if loss is None else generated.predicted(loss)

    def takes(self, x, loss):
        """Whether one launch is the way for x (N, D) and this loss."""
        few = 0 < x.shape[0] <= SMALL_BATCH and x.dtype == self.dtype
        return few and all(self.predicted(loss).varies)

    def forward(self, x, loss):
        """What the loss predicts of the scores of x (N, D), in one launch."""
        rows, x, predicted = x.shape[0], packed(x), self.predicted(loss)
        out = cupy.empty((rows, self.outputs), x.dtype)
        between = cupy.empty((rows, 2, self.widest), x.dtype)
        _launch(
            *("Fast", generated.forward_rows(self.chains, predicted), x, (rows,), (THREADS,)),
            *(x, self.table, self.numbers, between, out, rows, len(self.layers), self.widest),
            *_numbers(predicted, loss, x.dtype),
        )
        return out


# -- sums and products


def row_sums(mode, x):
    """Sums over the last axis of x (..., C)."""
    out = cupy.empty(x.shape[:-1], x.dtype)
    _over_rows(mode, BY_HAND["row_sums"], x, packed(x), out)
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
    arguments = packed(x), out, rows, columns, piece
    _launch(mode, BY_HAND["column_sums"], x, grid, (32, 8), *arguments)
    return out[0] if pieces == 1 else column_sums(mode, out)


def exact_sum(a, axis, keepdims):
    """`xnet.exact.sum` of an array that is not empty."""
    axes = exact.checked_axes(a, axis)
    shape = tuple(1 if k in axes else n for k, n in enumerate(a.shape))
    if len(axes) == 1 and axes[0] < a.ndim - 1:
        matrices = a.reshape(-1, a.shape[axes[0]], math.prod(a.shape[axes[0] + 1 :]))
        sums = cupy.stack([column_sums("Exact", matrix) for matrix in matrices])
    else:
        last = cupy.moveaxis(a, axes, range(a.ndim - len(axes), a.ndim))
        sums = row_sums("Exact", last.reshape(math.prod(shape), -1))
    return sums.reshape(shape if keepdims else [n for k, n in enumerate(a.shape) if k not in axes])


def exact_matmul(a, b):
    """`xnet.exact.matmul` of matrices (N, K) and (K, M) that are not empty."""
    exact.check_product(a, b)
    a, b = packed(a), packed(b)
    (rows, contracted), columns = a.shape, b.shape[1]
    slices, bits = exact.product_slices(contracted, a.dtype.name)
    parts_a = cupy.empty((slices * rows, contracted), np.float64)
    parts_b = cupy.empty((slices, contracted, columns), np.float64)
    half_a, half_b = cupy.empty(rows, np.float64), cupy.empty(columns, np.float64)
    finite_a, finite_b = cupy.empty(rows, np.bool_), cupy.empty(columns, np.bool_)
    _over_rows("Exact", BY_HAND["cut_rows"], a, a, parts_a, half_a, finite_a, slices, bits)
    _launch(
        *("Exact", BY_HAND["cut_columns"], b, (-(-columns // 32),), (32, 8)),
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
        *("Exact", BY_HAND["add_products"], out, products, a, b, half_a, half_b),
        *(finite_a, finite_b, out, slices, rows, contracted, columns),
    )
    return out


def loss_differences(x, a, z, after, rest, loss, t, h):
    """L(w + h) - L(w - h) for every weight and bias of one layer, (D + 1, M), in float64.

    `rest`, operations with their parameters, begins with the activations that make z (N, M) of a,
    then the product, if there is one, that makes `after` of z.
    """
    samples, columns = a.shape
    inputs = x.shape[1]
    weights = (inputs + 1) * columns
    first = perturbation.split([operation for operation, _ in rest])
    W_columns = cupy.ascontiguousarray(rest[first][1][0].T) if first < len(rest) else a
    chains, table, parameters, at = {}, [], [], 0
    width = widest = after.shape[1]
    for operation, arrays in (*rest[:first], *rest[first + 1 :]):
        function, width_in = -1, width
        if arrays:
            width = arrays[0].shape[1]
        else:
            chain, numbers = _chain([operation])
            function = chains.setdefault(chain, len(chains))
            arrays = [cupy.asarray(np.array(numbers, np.float64))]
        table.append((function, at, width_in, width))
        parameters += [array.ravel() for array in arrays]
        at, widest = at + sum(array.size for array in arrays), max(widest, width)
    behind = len(table) - first
    pieces = min(samples, -(-ENOUGH_THREADS // weights))
    threads = min(pieces * weights, LARGEST_GRID * THREADS)
    if behind:
        threads = min(threads, LARGEST_SCRATCH // (2 * widest))
    blocks = -(-threads // THREADS)
    out = cupy.empty((pieces, weights), x.dtype)
    of_row = generated.row_losses(loss)
    _launch(
        *("Fast", generated.loss_differences(tuple(chains), of_row), x, (blocks,), (THREADS,)),
        *map(packed, (x, a, z, after, W_columns, t)),
        cupy.asarray(np.array(table or [(0, 0, 0, 0)], OPERATION).view(np.int64)),
        cupy.concatenate(parameters) if at else a,
        cupy.empty(2 * widest * THREADS * blocks if behind else 1, x.dtype),
        out,
        *(float(h), first == len(rest), samples, inputs, columns, after.shape[1], t.shape[1]),
        *(first, behind, widest, pieces, *_numbers(of_row, loss, x.dtype)),
    )
    return column_sums("Fast", out).reshape(inputs + 1, columns) / samples
