# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""The compiled kernels: loops over rows or elements, one pass over memory each.

Each kernel has a loop over a range and a parallel loop that gives each thread pieces of that
range. Products use BLAS from inside the compiled code (SciPy's, which is what Numba calls), on one
thread: the threads are Numba's alone, for two pools that spin against each other cost more than
either gains.
"""

import math
import os
import sys
import threading

# Before OpenMP, which Numba's threads may come from, is loaded: let waiting threads sleep. Those
# that spin win a few microseconds on an idle machine and lose milliseconds on a busy one (here, a
# training step took 12 ms instead of 0.2 while other processes used the cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numba
import numpy as np
import scipy.linalg  # noqa: F401  # loads the BLAS that np.dot calls, for threadpoolctl to find
from llvmlite import ir
from numba import njit, prange, types
from numba.core.event import Listener, register
from numba.extending import intrinsic, overload
from threadpoolctl import ThreadpoolController

from xnet import threads
from xnet.backend import LOG_OFFSET

threads.apply_to_blas()  # SciPy's has been loaded just now

PARALLEL_ELEMENTS = 1 << 17
"""Elements from which an elementwise kernel is worth waking the threads (about 0.1 ms of work)."""

PARALLEL_PRODUCT = 1 << 21
"""Multiplications from which a product is worth waking the threads (also about 0.1 ms)."""

BLAS_THREADS_FROM = 1 << 18
"""Multiplications below which OpenBLAS keeps to one thread of its own accord."""

ROWS_PER_PIECE = 256
"""Rows, at most, of a thread's piece: its output stays in cache until the bias is added."""


class _Announcement(Listener):
    """Says on stderr, once a process, that kernels are being compiled, and shows how many."""

    def __init__(self):
        self.count = 0

    def on_start(self, event):
        if not event.data["dispatcher"].py_func.__module__.startswith("xnet_numba."):
            return
        self.count += 1
        if self.count == 1:
            print("xnet: compiling Numba kernels; they are kept for the next time", file=sys.stderr)
        elif sys.stderr.isatty():
            print(f"\rxnet: {self.count} kernels", end="", file=sys.stderr, flush=True)

    def on_end(self, event):
        pass


register("numba:compile", _Announcement())

# "numpy": a division by 0 gives inf or NaN; the branch that would raise keeps loops scalar.
# "contract" allows fused multiply-adds, "reassoc" lets a sum be kept in several lanes.
_serial = njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
_parallel = njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"}, parallel=True)

# As written, for what reproducible mode takes too.
_strict = njit(cache=True, error_model="numpy")
_strict_parallel = njit(cache=True, error_model="numpy", parallel=True)


def thread_count():
    """How many threads a kernel may use, called from this one."""
    count = numba.get_num_threads()
    return min(count, threads.num_threads()) if threads.chosen() else count


class _Launching:
    """Block, one at a time, in which Numba's threads run, so many as have been asked for.

    Not all of the pools that Numba can have take two callers; and Numba's own setting holds for
    the calling thread alone.
    """

    def __init__(self):
        self.lock = threading.Lock()

    def __enter__(self):
        self.lock.acquire()
        if threads.chosen():
            started = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportPrivateImportUsage]
            numba.set_num_threads(min(threads.num_threads(), started))

    def __exit__(self, *_):
        self.lock.release()


launching = _Launching()


class _OneBlasThread:
    """Block, one at a time, in which every BLAS loaded by now runs on one thread."""

    def __init__(self):
        self.libraries = ThreadpoolController().select(user_api="blas").lib_controllers

    def __enter__(self):
        launching.__enter__()
        self.counts = []
        try:
            self.counts = [library.get_num_threads() for library in self.libraries]
            for library in self.libraries:
                library.set_num_threads(1)
        except BaseException:  # Ctrl-C: __exit__ will not be called
            self.__exit__()
            raise

    def __exit__(self, *_):
        try:
            for library, count in zip(self.libraries, self.counts, strict=False):
                library.set_num_threads(count)
        finally:
            launching.__exit__()


_one_blas_thread = _OneBlasThread()


# -- exp, written so that LLVM vectorises it: no branch, no call, no conversion to integers


@intrinsic
def _bits_to_float(typingctx, bits):
    """The float whose bits are those of the integer."""
    result = types.float32 if bits.bitwidth == 32 else types.float64

    def codegen(context, builder, signature, args):
        kind = ir.FloatType() if bits.bitwidth == 32 else ir.DoubleType()
        return builder.bitcast(args[0], kind)

    return result(bits), codegen


@intrinsic
def _float_to_bits(typingctx, value):
    """The integer whose bits are those of the float."""
    result = types.int32 if value == types.float32 else types.int64

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(result.bitwidth))

    return result(value), codegen


def _exp_implementation(float_type, int_type, mantissa_bits, bias, low, high, degree):
    """exp in one precision: x = n ln 2 + r with |r| <= ln(2) / 2, exp(x) = 2^n exp(r).

    n is read off the bits of x log2(e) + 1.5 2^mantissa_bits, whose spacing is 1; exp(r) is
    Taylor's polynomial, whose remainder at this `degree` is below half a unit in the last place;
    2^n is multiplied in as two factors, so that results below the normal range round once.
    """
    log2e = float_type(1 / math.log(2))
    shifter = float_type(1.5 * 2.0**mantissa_bits)
    # n ln2_high is exact: ln2_high has at least 11 trailing zero bits, n at most 11 bits.
    kept = 2.0 ** (mantissa_bits - 11)
    ln2_high = float_type(math.floor(math.log(2) * kept) / kept)
    # ln 2 to 40 digits, less ln2_high, in two steps that are each exact in float64.
    ln2_low = float_type((math.log(2) - float(ln2_high)) + 2.3190468138462996e-17)
    low, high = float_type(low), float_type(high)
    bias, shift = int_type(bias), int_type(mantissa_bits)
    one = int_type(1)
    c = tuple(float_type(1 / math.factorial(k)) for k in range(degree + 1))
    first = c[degree]
    rest = c[degree - 1 :: -1]

    def exp(x):
        x = min(max(x, low), high) if x == x else x
        shifted = x * log2e + shifter
        n = shifted - shifter
        r = (x - n * ln2_high) - n * ln2_low
        p = first
        for k in numba.literal_unroll(rest):
            p = p * r + k
        power = int_type(_float_to_bits(shifted) - _float_to_bits(shifter))
        half = int_type(power >> one)
        scale = _bits_to_float(int_type((half + bias) << shift))
        rescale = _bits_to_float(int_type((power - half + bias) << shift))
        return p * scale * rescale

    return exp


def _exp(x):
    raise NotImplementedError  # compiled code only: see the overload


@overload(_exp, fastmath={"contract"})
def _exp_overload(x):
    if x == types.float32:
        return _exp_implementation(np.float32, np.int32, 23, 127, -104.0, 89.0, 7)
    return _exp_implementation(np.float64, np.int64, 52, 1023, -746.0, 710.0, 13)


# -- products


def _pieces(x, W):
    """Into how many pieces to cut the rows of x: one for each thread that has enough to do."""
    return min(thread_count(), max(1, x.shape[0] * W.size // (PARALLEL_PRODUCT // 2)))


@_serial
def _affine(x, W, b, out):
    np.dot(x, W, out)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] += b[j]


@_parallel
def _affine_pieces(x, W, b, out, pieces):
    n = x.shape[0]
    for piece in prange(pieces):
        start, stop = piece * n // pieces, (piece + 1) * n // pieces
        _affine(x[start:stop], W, b, out[start:stop])


def affine(x, W, b):
    """x W + b, (N, D) by (D, M): the bias goes in while a piece of the product is in cache."""
    out = np.empty((x.shape[0], W.shape[1]), x.dtype)
    if x.shape[0] * W.size < BLAS_THREADS_FROM:
        _affine(x, W, b, out)
        return out
    pieces = _pieces(x, W)
    with _one_blas_thread:
        if pieces == 1:
            _affine(x, W, b, out)
        else:
            _affine_pieces(x, W, b, out, max(pieces, x.shape[0] // ROWS_PER_PIECE))
    return out


@_serial
def _affine_backward(dout, x, W, dx, dW, db):
    np.dot(dout, W.T, dx)
    np.dot(x.T, dout, dW)
    db[:] = 0
    for i in range(dout.shape[0]):
        for j in range(dout.shape[1]):
            db[j] += dout[i, j]


@_parallel
def _affine_backward_pieces(dout, x, W, dx, dW, db):
    n, pieces = x.shape[0], dW.shape[0]
    for piece in prange(pieces):
        start, stop = piece * n // pieces, (piece + 1) * n // pieces
        _affine_backward(dout[start:stop], x[start:stop], W, dx[start:stop], dW[piece], db[piece])


def affine_backward(dout, x, W):
    """Gradients by x, W and b; each thread sums those of its own rows, then the sums are added."""
    dx = np.empty_like(x)
    pieces = _pieces(x, W)
    dW = np.empty((pieces, *W.shape), x.dtype)
    db = np.empty((pieces, W.shape[1]), x.dtype)
    with _one_blas_thread:
        if pieces == 1:
            _affine_backward(dout, x, W, dx, dW[0], db[0])
            return dx, dW[0], db[0]
        _affine_backward_pieces(dout, x, W, dx, dW, db)
    return dx, dW.sum(axis=0), db.sum(axis=0)


# -- elementwise


@_serial
def _sigmoid_element(x):
    one = type(x)(1)
    z = _exp(-abs(x))
    y = one / (one + z)
    return y if x >= 0 else z * y


@_serial
def _sigmoid(x, y):
    for i in range(x.size):
        y[i] = _sigmoid_element(x[i])


@_parallel
def _sigmoid_parallel(x, y):
    for i in prange(x.size):
        y[i] = _sigmoid_element(x[i])


def sigmoid(x):
    """1 / (1 + exp(-x)) elementwise."""
    return _elementwise(_sigmoid, _sigmoid_parallel, x)


@_strict
def _sigmoid_backward(dout, y, dx):
    for i in range(y.size):
        dx[i] = dout[i] * (y.dtype.type(1) - y[i]) * y[i]


@_strict_parallel
def _sigmoid_backward_parallel(dout, y, dx):
    for i in prange(y.size):
        dx[i] = dout[i] * (y.dtype.type(1) - y[i]) * y[i]


def sigmoid_backward(dout, y):
    """dout (1 - y) y elementwise."""
    return _elementwise(_sigmoid_backward, _sigmoid_backward_parallel, dout, y)


@_strict
def _relu(x, y):
    for i in range(x.size):
        y[i] = x.dtype.type(0) if x[i] <= 0 else x[i]


@_strict_parallel
def _relu_parallel(x, y):
    for i in prange(x.size):
        y[i] = x.dtype.type(0) if x[i] <= 0 else x[i]


def relu(x):
    """0 where x <= 0, x elsewhere."""
    return _elementwise(_relu, _relu_parallel, x)


@_strict
def _relu_backward(dout, mask, dx):
    for i in range(dout.size):
        dx[i] = dout.dtype.type(0) if mask[i] else dout[i]


@_strict_parallel
def _relu_backward_parallel(dout, mask, dx):
    for i in prange(dout.size):
        dx[i] = dout.dtype.type(0) if mask[i] else dout[i]


def relu_backward(dout, mask):
    """`dout` with zeros where `mask`."""
    return _elementwise(_relu_backward, _relu_backward_parallel, dout, mask)


def _elementwise(serial, parallel, *arrays):
    """Run the loop that suits the size over the flattened `arrays`; the result has their shape."""
    out = np.empty_like(arrays[0])
    flat = [array.reshape(-1) for array in (*arrays, out)]
    _run(serial, parallel, out.size, *flat)
    return out


def _run(serial, parallel, size, *arguments):
    """Run the loop that suits the size."""
    if size < PARALLEL_ELEMENTS:
        serial(*arguments)
    else:
        with launching:
            parallel(*arguments)


# -- rows


@_serial
def _softmax_row(x, y):
    """Softmax of one row; the maximum is NaN where the row holds a NaN, as NumPy's is."""
    top = x[0]
    for j in range(1, x.size):
        if not x[j] <= top:
            top = x[j]
    total = x.dtype.type(0)
    for j in range(x.size):
        y[j] = _exp(x[j] - top)
    for j in range(x.size):
        total += y[j]
    for j in range(x.size):
        y[j] /= total


@_serial
def _softmax(x, y):
    for i in range(x.shape[0]):
        _softmax_row(x[i], y[i])


@_parallel
def _softmax_parallel(x, y):
    for i in prange(x.shape[0]):
        _softmax_row(x[i], y[i])


def softmax(x):
    """exp(x) / sum of exp(x) over the last axis."""
    y = np.empty_like(x)
    rows = (-1, x.shape[-1]) if x.size else (0, 1)
    _run(_softmax, _softmax_parallel, x.size, x.reshape(rows), y.reshape(rows))
    return y


@_serial
def _softmax_loss_row(x, t, y):
    """Softmax of one row into y; returns the row's cross-entropy error."""
    _softmax_row(x, y)
    loss = x.dtype.type(0)
    for j in range(x.size):
        # Most targets are zeros, and a logarithm costs as much as the rest of the row.
        if t[j] != 0:
            loss -= t[j] * math.log(y[j] + x.dtype.type(LOG_OFFSET))
    return loss


@_serial
def _softmax_with_loss(x, t, y, losses):
    for i in range(x.shape[0]):
        losses[i] = _softmax_loss_row(x[i], t[i], y[i])


@_parallel
def _softmax_with_loss_parallel(x, t, y, losses):
    for i in prange(x.shape[0]):
        losses[i] = _softmax_loss_row(x[i], t[i], y[i])


def softmax_with_loss(x, t):
    """Mean cross-entropy error of softmax(x) against t (N, C), and softmax(x)."""
    y = np.empty_like(x)
    losses = np.empty(x.shape[0], x.dtype)
    _run(_softmax_with_loss, _softmax_with_loss_parallel, x.size, x, t, y, losses)
    return losses.sum() / x.shape[0], y


@_serial
def _softmax_loss_row_backward(y, t, scale, dx):
    offset = y.dtype.type(LOG_OFFSET)
    total = y.dtype.type(0)
    for j in range(y.size):
        dx[j] = t[j] * y[j] / (y[j] + offset)
        total += dx[j]
    for j in range(y.size):
        dx[j] = (y[j] * total - dx[j]) * scale


@_serial
def _softmax_with_loss_backward(y, t, scale, dx):
    for i in range(y.shape[0]):
        _softmax_loss_row_backward(y[i], t[i], scale, dx[i])


@_parallel
def _softmax_with_loss_backward_parallel(y, t, scale, dx):
    for i in prange(y.shape[0]):
        _softmax_loss_row_backward(y[i], t[i], scale, dx[i])


def softmax_with_loss_backward(y, t, dout):
    """(y sum(r) - r) dout / N with r = t y / (y + 1e-7), row by row."""
    dx = np.empty_like(y)
    loops = _softmax_with_loss_backward, _softmax_with_loss_backward_parallel
    _run(*loops, y.size, y, t, y.dtype.type(dout / y.shape[0]), dx)
    return dx


@_serial
def one_hot(t, out):
    """Class indices t (N,) as rows of out (N, C); whether all of them are 0..C-1."""
    for i in range(t.size):
        if not 0 <= t[i] < out.shape[1]:
            return False
        out[i] = 0
        out[i, t[i]] = 1
    return True
