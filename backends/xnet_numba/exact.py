# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""Reproducible mode: the kernels of `kernels.py` by the definitions of `xnet.exact`, bit for bit.

Nothing here lets the compiler reorder or contract an operation. Products are those of exact
slices, so BLAS may do them in any order, and is called on one thread inside Numba's own.
"""

import math
import weakref

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core.cgutils import alloca_once_value
from numba.extending import get_cython_function_address, intrinsic
from threadpoolctl import ThreadpoolController

from xnet import exact
from xnet.backend import LOG_OFFSET
from xnet.exact import (
    EXP_COEFFICIENTS,
    EXP_HIGHEST,
    EXP_LOWEST,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    LOG_COEFFICIENTS,
    SHIFTER,
)
from xnet_numba.compiling import _strict, _strict_parallel, launching, thread_count
from xnet_numba.intrinsics import bits_to_float, float_to_bits
from xnet_numba.kernels import (
    _elementwise,
    descend,
    relu,
    relu_backward,
    sigmoid_backward,
)

__all__ = [
    "affine",
    "affine_backward",
    "affine_gradients",
    "descend",
    "exp",
    "log",
    "matmul",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "softmax",
    "softmax_with_loss",
    "softmax_with_loss_backward",
    "sum",
]

PARALLEL_PRODUCT = 1 << 19
"""Multiplications of a product for which one more thread is woken (also about 0.1 ms)."""

BLAS_THREADS_FROM = 1 << 18
"""Multiplications below which OpenBLAS keeps to one thread of its own accord."""

ROWS_PER_PIECE = 256
"""Rows, at most, of a thread's piece: its output stays in cache until the bias is added."""

_DGEMM = get_cython_function_address("scipy.linalg.cython_blas", "dgemm")
"""Address of SciPy's dgemm. An argument of the kernels: what is cached must not hold it."""


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


@intrinsic
def _dgemm(typingctx, address, transpose_b, transpose_a, m, n, k, b, ldb, a, lda, beta, c, ldc):
    """C (n, m) = A (n, k) B (k, m) + beta C, all in C order, by the Fortran routine at `address`.

    To Fortran, C-ordered arrays are their transposes, so it is asked for C' = B' A'. The arrays
    are given by their first element's address; either can be stored the other way round.
    """
    signature = types.void(
        types.int64, types.int64, types.int64, *([types.int64] * 3), *([types.int64] * 4),
        types.float64, types.int64, types.int64,
    )  # fmt: skip

    def codegen(context, builder, signature, args):
        char, integer, double = ir.IntType(8), ir.IntType(32), ir.DoubleType()

        def by_reference(value):
            return alloca_once_value(builder, value)

        def pointer(value, kind):
            return builder.inttoptr(value, kind.as_pointer())

        def flag(value):
            yes = builder.icmp_signed("!=", value, value.type(0))
            return by_reference(builder.select(yes, char(ord("T")), char(ord("N"))))

        def size(value):
            return by_reference(builder.trunc(value, integer))

        address, transpose_b, transpose_a, m, n, k, b, ldb, a, lda, beta, c, ldc = args
        operands = [
            flag(transpose_b), flag(transpose_a), size(m), size(n), size(k),
            by_reference(double(1.0)), pointer(b, double), size(ldb), pointer(a, double), size(lda),
            by_reference(beta), pointer(c, double), size(ldc),
        ]  # fmt: skip
        routine = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
        builder.call(builder.inttoptr(address, routine.as_pointer()), operands)
        return context.get_dummy_value()

    return signature, codegen


# -- slices


@_strict
def _magnitude(x):
    """The bits of |x|: as integers in the order of the numbers, then infinity, then NaN."""
    return float_to_bits(abs(x))


@_strict
def _number(magnitude, wide):
    if wide:
        return bits_to_float(np.int64(magnitude))
    return np.float64(bits_to_float(np.int32(magnitude)))


@_strict
def _half_scale(largest, wide):
    """2^300 or 2^-300 beyond the range in which float64 has all products of slices, else 1."""
    if wide and largest > 2.0**400:
        return 2.0**300
    if wide and largest < 2.0**-400:
        return 2.0**-300
    return 1.0


@_strict
def _first_shift(largest, half, unit):
    """What cuts the first slice off, as in `xnet.exact.cut`; the next one's is `unit` of it."""
    p = largest / half / half
    q = p * 2.0**53
    power = abs((q + p) - q)
    return (p if power == 0 else power) * (1.5 * 2.0**52 * unit)


@_strict
def _cut_rows(a, width, parts, half):
    """Slices of `width` bits of each row of a (n, k): parts (S, n, k), and `_half_scale` (n,).

    Returns whether all of `a` is finite; if not, nothing is of use.
    """
    unit, rest = 2.0**-width, np.empty(a.shape[1])
    for i in range(a.shape[0]):
        top = _magnitude(a[i, 0])  # the largest of integers: that vectorises
        for j in range(a.shape[1]):
            top = max(top, _magnitude(a[i, j]))
        largest = _number(top, a.itemsize == 8)
        if not largest < np.inf:
            return False
        half[i] = _half_scale(largest, a.itemsize == 8)
        back = 1.0 / half[i]
        for j in range(a.shape[1]):
            rest[j] = np.float64(a[i, j]) * back * back
        shift = _first_shift(largest, half[i], unit)
        for s in range(parts.shape[0]):
            _cut_off(rest, shift, parts[s, i])
            shift *= unit
    return True


@_strict
def _cut_off(rest, shift, part):
    for j in range(rest.size):
        value = rest[j]
        cut = (value + shift) - shift
        part[j] = cut
        rest[j] = value - cut


@_strict
def _cut_columns(a, start, width, parts, half):
    """As `_cut_rows` for m columns of a (k, ...) from `start`: parts (S, k, m), `half` (m,)."""
    k, m, unit = a.shape[0], half.size, 2.0**-width
    first = np.uint64(start)  # an index that cannot be negative keeps the loops vectorised
    top = np.zeros(m, a.dtype)
    for i in range(k):
        for j in range(m):
            v = abs(a[i, first + np.uint64(j)])
            top[j] = top[j] if v <= top[j] or top[j] != top[j] else v  # NaN stays
    back, rest = np.empty(m), np.empty(m)
    shifts = np.empty((parts.shape[0], m))
    scaled = False
    for j in range(m):
        largest = np.float64(top[j])
        if not largest < np.inf:
            return False
        half[j] = _half_scale(largest, a.itemsize == 8)
        back[j] = 1.0 / half[j]
        scaled |= half[j] != 1.0
        shifts[0, j] = _first_shift(largest, half[j], unit)
        for s in range(1, parts.shape[0]):
            shifts[s, j] = shifts[s - 1, j] * unit
    for i in range(k):
        for j in range(m):
            rest[j] = np.float64(a[i, first + np.uint64(j)])
        if scaled:
            for j in range(m):
                rest[j] = rest[j] * back[j] * back[j]
        for s in range(parts.shape[0]):
            _cut_off_each(rest, shifts[s], parts[s, i])
    return True


@_strict
def _cut_off_each(rest, shifts, part):
    for j in range(rest.size):
        value, shift = rest[j], shifts[j]
        cut = (value + shift) - shift
        part[j] = cut
        rest[j] = value - cut


LARGEST_KEPT = 1 << 21
"""Numbers, at most, in an array whose slices are kept: cutting more takes no share of a product."""


class _Kept:
    """Slices of arrays that are used again, such as a network's weights, until those are gone.

    An array may have been written to since: a copy is kept too, and compared. Both take three to
    five times the array's own memory in float64, six in float32, so large arrays are not kept.
    """

    def __init__(self):
        self._kept = {}

    def slices(self, b, transposed):
        """Slices and `_half_scale` of the columns of b (K, M), or of b' if `transposed`."""
        key = id(b), transposed
        weak, copy, found = self._kept.get(key, (None, None, None))
        seen = weak is not None and weak() is b
        if seen and copy is not None and np.array_equal(copy, b):
            return found
        keep = seen and b.size <= LARGEST_KEPT  # the second time it is worth a copy
        if keep:
            copy = b.copy()  # and what is cut is the copy: another thread may be writing
        found = self._cut(copy if keep else b, transposed)
        if keep and found is not None:
            self._kept[key] = weak, copy, found
        elif not seen:
            forget = weakref.ref(b, lambda _: self._kept.pop(key, None))
            self._kept[key] = forget, None, None
        return found

    def _cut(self, b, transposed):
        count, width = exact.product_slices(b.shape[1 if transposed else 0], exact.precision(b))
        parts, half = np.empty((count, *b.shape)), np.empty(b.shape[0 if transposed else 1])
        if transposed:
            finite = _cut_rows(b, width, parts, half)
        else:
            finite = _cut_columns(b, 0, width, parts, half)
        return (parts, half) if finite else None


_kept = _Kept()


# -- products


@_strict
def _piece(dgemm, a, a_transposed, start, width, b_parts, b_transposed, b_half, bias, out):
    """Out (n, M): the rows of `a` (or a') from `start`, times the sliced b (or b'), plus the bias.

    Returns whether those rows are finite; if not, `out` is of no use.
    """
    n, m = out.shape
    k = a.shape[0] if a_transposed else a.shape[1]
    count = b_parts.shape[0]
    a_half = np.empty(n)
    if a_transposed:
        a_parts = np.empty((count, k, n))
        finite = _cut_columns(a, start, width, a_parts, a_half)
    else:
        a_parts = np.empty((count, n, k))
        finite = _cut_rows(a[start : start + n], width, a_parts, a_half)
    if not finite:
        return False
    orders = np.empty((count, n, m))
    for s in range(count):
        for t in range(count - s):
            # The sum of all products of one order is exact too, so BLAS may add them.
            _dgemm(
                dgemm, b_transposed, a_transposed, m, n, k,
                b_parts[t].ctypes.data, b_parts.shape[2], a_parts[s].ctypes.data, a_parts.shape[2],
                0.0 if s == 0 else 1.0, orders[s + t].ctypes.data, m,
            )  # fmt: skip
    for i in range(n):
        _add_orders(orders, i, a_half[i], b_half, bias, out[i])
    return True


@_strict
def _add_orders(orders, i, a_half, b_half, bias, out):
    """Out (m,): row i of the products of each order (S, n, m), the smallest first, and the bias."""
    for j in range(out.size):
        total = 0.0
        for order in range(orders.shape[0] - 1, -1, -1):
            total = orders[order, i, j] + total
        half = a_half * b_half[j]
        out[j] = out.dtype.type(total * half * half)
    for j in range(bias.size):
        out[j] += bias[j]


@_strict_parallel
def _pieces(dgemm, a, a_transposed, width, b_parts, b_transposed, b_half, bias, out, finite):
    n, pieces = out.shape[0], finite.size
    for piece in prange(pieces):
        start, stop = piece * n // pieces, (piece + 1) * n // pieces
        finite[piece] = _piece(
            dgemm, a, a_transposed, start, width, b_parts, b_transposed, b_half, bias,
            out[start:stop],
        )  # fmt: skip


def _product(a, a_transposed, b, b_transposed, bias=None):
    """`exact.matmul` of a (or a') by b (or b'), plus a bias."""
    (n, k), m = a.T.shape if a_transposed else a.shape, b.shape[0 if b_transposed else 1]
    right = _kept.slices(b, b_transposed) if n * k * m else None
    finite = np.zeros(1, np.bool_)
    out = np.empty((n, m), a.dtype)
    if right is not None:
        width = exact.product_slices(k, exact.precision(a))[1]
        no_bias = np.empty(0, a.dtype)
        first = _DGEMM, a, a_transposed
        rest = width, right[0], b_transposed, right[1], no_bias if bias is None else bias, out
        if n * k * m < BLAS_THREADS_FROM:
            finite[0] = _piece(*first, 0, *rest)
        else:
            threads = max(1, min(thread_count(), n * k * m // PARALLEL_PRODUCT))
            finite = np.zeros(threads * -(-n // (threads * ROWS_PER_PIECE)), np.bool_)
            with _one_blas_thread:
                _pieces(*first, *rest, finite)
    if finite.all():
        return out
    out = exact.matmul(np, a.T if a_transposed else a, b.T if b_transposed else b)
    return out if bias is None else out + bias


def matmul(a, b):
    """`exact.matmul`."""
    exact.check_product(a, b)
    return _product(a, False, b, False)


def affine(x, W, b):
    """x W + b."""
    return _product(x, False, W, False, b)


def affine_backward(dout, x, W):
    """Gradients by x, W and b."""
    return _product(dout, False, W, True), *affine_gradients(dout, x)


def affine_gradients(dout, x):
    """Gradients by W and b."""
    return _product(x, True, dout, False), sum(dout, axis=0)


# -- sums


@_strict
def _sum_of_infinities(a):
    """What the infinities and NaN among a (n,) make of its sum, in any order."""
    total = a.dtype.type(0)
    for j in range(a.size):
        if not abs(a[j]) < np.inf:
            total += a[j]
    return total


@_strict
def _sum_row(a, unit, rest, slices):
    """`exact.sum` of a (n,) in `slices` whose widths are `unit`, a power of two, of each other."""
    top = _magnitude(a[0])
    for j in range(a.size):
        top = max(top, _magnitude(a[j]))
    largest = _number(top, a.itemsize == 8)
    if not largest < np.inf:
        return _sum_of_infinities(a)
    half = _half_scale(largest, a.itemsize == 8)
    back = 1.0 / half
    shift = _first_shift(largest, half, unit)
    for j in range(a.size):
        rest[j] = np.float64(a[j]) * back * back
    for s in range(slices.size):
        slices[s] = 0.0
        for j in range(a.size):
            part = (rest[j] + shift) - shift
            rest[j] -= part
            slices[s] += part
        shift *= unit
    total = 0.0
    for s in range(slices.size - 1, -1, -1):
        total = slices[s] + total
    return a.dtype.type(total * half * half)


@_strict
def _sum_rows(a, count, width, out):
    """The sum of each row of a (n, k)."""
    unit, rest, slices = 2.0**-width, np.empty(a.shape[1]), np.empty(count)
    for i in range(a.shape[0]):
        out[i] = _sum_row(a[i], unit, rest, slices)


def sum(a, axis=None, keepdims=False):
    """`exact.sum`."""
    axis = exact.checked_axis(a, axis)
    if a.size == 0:
        return exact.sum(np, a, axis, keepdims)
    rows = a.reshape(1, -1) if axis is None else np.ascontiguousarray(np.moveaxis(a, axis, -1))
    shape = () if axis is None else rows.shape[:-1]
    out = np.empty(shape, a.dtype)
    rows = rows.reshape(-1, rows.shape[-1])
    _sum_rows(rows, *exact.sum_slices(rows.shape[1], exact.precision(a)), out.reshape(-1))
    if keepdims:
        return out.reshape([1] * a.ndim) if axis is None else np.expand_dims(out, axis)
    return out


# -- exp and log


_EXP_FIRST, _EXP_REST = EXP_COEFFICIENTS[0], EXP_COEFFICIENTS[1:]
_LOG_FIRST, _LOG_REST = LOG_COEFFICIENTS[0], LOG_COEFFICIENTS[1:]
_SQRT_HALF = math.sqrt(0.5)


@_strict
def _exp(x):
    """`exact.exp` of a float64."""
    clipped = EXP_LOWEST if x < EXP_LOWEST else x
    clipped = EXP_HIGHEST if clipped > EXP_HIGHEST else clipped
    shifted = clipped * LOG2_E + SHIFTER
    n = shifted - SHIFTER
    r = (clipped - n * LN2_HIGH) - n * LN2_LOW
    p = _EXP_FIRST
    for k in numba.literal_unroll(_EXP_REST):
        p = p * r + k
    power = float_to_bits(shifted) - float_to_bits(SHIFTER)
    half = power >> np.int64(1)
    y = (r * r * p + r) + 1.0
    y *= bits_to_float((half + np.int64(1023)) << np.int64(52))
    y *= bits_to_float((power - half + np.int64(1023)) << np.int64(52))
    return y if x == x else np.nan


@_strict
def _log(x):
    """`exact.log` of a float64. The exponent is read off the bits, which gives the same integer."""
    scaled = x * 2.0**200 if x < 2.0**-900 else x
    offset = 200.0 if x < 2.0**-900 else 0.0
    bits = float_to_bits(scaled)
    n = np.float64((bits >> np.int64(52)) - np.int64(1023)) - offset
    mantissa = (bits & np.int64(0xFFFFFFFFFFFFF)) | (np.int64(1023) << np.int64(52))
    m = bits_to_float(mantissa)  # in [1, 2)
    half = m * 0.5
    low = half < _SQRT_HALF
    m = m if low else half
    n = n if low else n + 1.0
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    R = _LOG_FIRST
    for k in numba.literal_unroll(_LOG_REST):
        R = R * z + k
    half_square = f * f * 0.5
    y = n * LN2_HIGH - ((half_square - (s * (half_square + R * z) + n * LN2_LOW)) - f)
    if x > 0.0 and x < np.inf:
        return y
    if x == 0.0:
        return -np.inf
    return x if x == np.inf else np.nan


@_strict
def _exp_each(x, y):
    for i in range(x.size):
        y[i] = _exp(np.float64(x[i]))


@_strict_parallel
def _exp_each_parallel(x, y):
    for i in prange(x.size):
        y[i] = _exp(np.float64(x[i]))


def exp(a):
    """`exact.exp`."""
    return _elementwise(_exp_each, _exp_each_parallel, a)


@_strict
def _log_each(x, y):
    for i in range(x.size):
        y[i] = _log(np.float64(x[i]))


@_strict_parallel
def _log_each_parallel(x, y):
    for i in prange(x.size):
        y[i] = _log(np.float64(x[i]))


def log(a):
    """`exact.log`."""
    return _elementwise(_log_each, _log_each_parallel, a)


# -- elementwise, as the generic forms of `Backend` compose them


@_strict
def _sigmoid_element(x):
    one = type(x)(1)
    z = type(x)(_exp(np.float64(-abs(x))))
    y = one / (one + z)
    return y if x >= 0 else z * y


@_strict
def _sigmoid(x, y):
    for i in range(x.size):
        y[i] = _sigmoid_element(x[i])


@_strict_parallel
def _sigmoid_parallel(x, y):
    for i in prange(x.size):
        y[i] = _sigmoid_element(x[i])


def sigmoid(x):
    """1 / (1 + exp(-x)) elementwise."""
    return _elementwise(_sigmoid, _sigmoid_parallel, x)


# -- rows


@_strict
def _softmax(x, count, width, y):
    """Softmax of each row of x (n, k), the sums as `_sum_row` has them."""
    unit, rest, slices = 2.0**-width, np.empty(x.shape[1]), np.empty(count)
    for i in range(x.shape[0]):
        top = x[i, 0]
        for j in range(x.shape[1]):
            if not x[i, j] <= top:
                top = x[i, j]
        for j in range(x.shape[1]):
            y[i, j] = _exp(np.float64(x[i, j] - top))
        total = _sum_row(y[i], unit, rest, slices)
        for j in range(x.shape[1]):
            y[i, j] /= total


def softmax(x):
    """exp(x) / sum of exp(x) over the last axis."""
    y = np.empty_like(x)
    if x.size:
        rows = -1, x.shape[-1]
        _softmax(x.reshape(rows), *_summing(x), y.reshape(rows))
    return y


def _summing(x):
    """How many slices, and of how many bits, the sum of a row of x takes."""
    return exact.sum_slices(x.shape[-1], exact.precision(x))


@_strict
def _cross_entropies(y, t, terms):
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            # Most targets are zeros, and 0 times a logarithm is 0 unless that is NaN.
            terms[i, j] = t[i, j] * y[i, j]
            if t[i, j] != 0:
                offset = y[i, j] + y.dtype.type(LOG_OFFSET)
                terms[i, j] = t[i, j] * y.dtype.type(_log(np.float64(offset)))


def softmax_with_loss(x, t):
    """Mean cross-entropy error of softmax(x) against t (N, C), and softmax(x)."""
    y, terms = softmax(x), np.empty_like(x)
    _cross_entropies(y, t, terms)
    return -sum(terms) / x.shape[0], y


@_strict
def _softmax_with_loss_backward(y, t, scale, count, width, dx):
    offset = y.dtype.type(LOG_OFFSET)
    unit, rest, slices = 2.0**-width, np.empty(y.shape[1]), np.empty(count)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            dx[i, j] = t[i, j] * y[i, j] / (y[i, j] + offset)
        total = _sum_row(dx[i], unit, rest, slices)
        for j in range(y.shape[1]):
            dx[i, j] = (y[i, j] * total - dx[i, j]) * scale


def softmax_with_loss_backward(y, t, dout):
    """(y sum(r) - r) dout / N with r = t y / (y + 1e-7), row by row."""
    dx = np.empty_like(y)
    _softmax_with_loss_backward(y, t, y.dtype.type(dout / y.shape[0]), *_summing(y), dx)
    return dx
