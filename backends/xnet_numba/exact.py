# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""Reproducible mode: products, sums and elementary functions of `xnet.exact`, bit for bit.

Nothing here lets the compiler reorder or contract an operation but the products of exact slices:
these are integers, which fused multiply-adds may add up in any order, and so they are the tiles of
fast mode. Pieces of the work go to whoever of the pool is free.
"""

import weakref
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage]

from xnet import exact
from xnet.formulas import trace
from xnet_numba import generated, products
from xnet_numba.compiling import _strict, routine, thread_count
from xnet_numba.exactly import first_shift, half_scale, magnitude, number, sum_row
from xnet_numba.intrinsics import (
    address_of,
    call,
    int64s_at,
    lives_until_here,
    pointer_to,
    size_of,
)
from xnet_numba.pool import claim, pool, run
from xnet_numba.records import address, layout, record_at

__all__ = [
    "affine",
    "affine_backward",
    "affine_gradients",
    "exp",
    "expm1",
    "log",
    "log1p",
    "matmul",
    "sum",
]

FLOAT64 = np.dtype(np.float64)


# -- slices


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


