# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""Reproducible mode: products, sums and elementary functions of `xnet.exact`, bit for bit.

Nothing here lets the compiler reorder or contract an operation but the products of exact slices:
these are integers, which fused multiply-adds may add up in any order, and so they are the tiles of
fast mode. Pieces of the work go to whoever of the pool is free.
"""

import weakref
from functools import cache

import numpy as np
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage]

from xnet import exact
from xnet_numba import products
from xnet_numba.compiling import _alone, _strict, routine
from xnet_numba.exactly import first_shift, half_scale, magnitude, number, sum_row
from xnet_numba.generated import EXACT, OPTIONS, Elementary
from xnet_numba.intrinsics import (
    address_of,
    call,
    lives_until_here,
    pointer_to,
    record_pointer,
    room_on_stack,
)
from xnet_numba.kernels import Loops
from xnet_numba.pool import claim, pool, run

__all__ = [
    "affine",
    "affine_backward",
    "affine_gradients",
    "elementary",
    "matmul",
    "sum",
]

# -- slices


@_strict
def _cut_rows(a, width, parts, half):
    """Slices of `width` bits of each row of a (n, k): parts (n, S, k), and `half_scale` (n,).

    Returns whether all of `a` is finite; if not, nothing is of use.
    """
    unit, rest = 2.0**-width, np.empty(a.shape[1])
    for i in range(a.shape[0]):
        top = magnitude(a[i, 0])  # the largest of integers: that vectorises
        for j in range(a.shape[1]):
            top = max(top, magnitude(a[i, j]))
        largest = number(top, a.itemsize == 8)
        if not largest < np.inf:
            return False
        half[i] = half_scale(largest, a.itemsize == 8)
        back = 1.0 / half[i]
        for j in range(a.shape[1]):
            rest[j] = np.float64(a[i, j]) * back * back
        shift = first_shift(largest, half[i], unit)
        for s in range(parts.shape[1]):
            _cut_off(rest, shift, parts[i, s])
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
    """As `_cut_rows` for m columns of a (k, ...) from `start`: parts (k, S, m), `half` (m,)."""
    k, m, unit = a.shape[0], half.size, 2.0**-width
    first = np.uint64(start)  # an index that cannot be negative keeps the loops vectorised
    top = np.zeros(m, a.dtype)
    for i in range(k):
        for j in range(m):
            v = abs(a[i, first + np.uint64(j)])
            top[j] = top[j] if v <= top[j] or top[j] != top[j] else v  # NaN stays
    back, rest = np.empty(m), np.empty(m)
    shifts = np.empty((parts.shape[1], m))
    scaled = False
    for j in range(m):
        largest = np.float64(top[j])
        if not largest < np.inf:
            return False
        half[j] = half_scale(largest, a.itemsize == 8)
        back[j] = 1.0 / half[j]
        scaled |= half[j] != 1.0
        shifts[0, j] = first_shift(largest, half[j], unit)
        for s in range(1, parts.shape[1]):
            shifts[s, j] = shifts[s - 1, j] * unit
    for i in range(k):
        for j in range(m):
            rest[j] = np.float64(a[i, first + np.uint64(j)])
        if scaled:
            for j in range(m):
                rest[j] = rest[j] * back[j] * back[j]
        for s in range(parts.shape[1]):
            _cut_off_each(rest, shifts[s], parts[i, s])
    return True


@_strict
def _cut_off_each(rest, shifts, part):
    for j in range(rest.size):
        value, shift = rest[j], shifts[j]
        cut = (value + shift) - shift
        part[j] = cut
        rest[j] = value - cut


COLUMNS = 64
"""Of b, at most, whose slices are side by side: with more, its rows would each lie in other pages
of memory than the next."""

ROWS = 192
"""Of a, at most, that a thread takes at a time: their products stay in the second-level cache."""

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
        """Slices of b (K, M), or of b' if `transposed`, as `_cut_blocks`, and their width.

        None if there is an infinity or NaN in it.
        """
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
        b = np.ascontiguousarray(b.T) if transposed else b
        (k, m), (count, width) = b.shape, exact.product_slices(b.shape[0], exact.precision(b))
        parts, half = np.empty((k * m, count)), np.empty(m)
        return (parts, width, half) if _cut_blocks(b, width, parts, half) else None


@_strict
def _cut_blocks(b, width, parts, half):
    """As `_cut_columns` for blocks of b's columns, one after the other: parts (k m, S)."""
    (k, m), count, flat = b.shape, parts.shape[1], parts.reshape(-1)
    block = _block(m)
    for first in range(0, m, block):
        columns = min(block, m - first)
        of_block = flat[first * k * count : (first + columns) * k * count]
        at = of_block.reshape(k, count, columns)
        if not _cut_columns(b, first, width, at, half[first : first + columns]):
            return False
    return True


@_strict
def _block(m):
    """How many of m columns are a block: all but the last are as wide, and at most COLUMNS."""
    blocks = (m + COLUMNS - 1) // COLUMNS
    return (m + blocks - 1) // blocks


_kept = _Kept()


# -- products


PRODUCT = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("taken", "front", "back", "dense", "a", "across", "b", "b_half", "bias", "biases"),
            *("out", "n", "k", "m", "slices", "width", "rows", "finite"),
        )
    ]
)
"""Out (n, m) = a (n, k) b (k, m) + bias (m,), in pieces of so many rows.

`taken`, `front` and `back` are the counts of `claim`, `dense` is the routine of `products` for
float64. `across` says whether a is stored as (k, n). Of b there is what `_cut_blocks` makes, in so
many slices of so many bits. There are m biases or none. `finite` becomes 0 if an infinity or NaN is
found in a; `out` is of no use then.
"""

_product_pointer = record_pointer(PRODUCT)
_PRODUCT_WORDS = PRODUCT.itemsize // 8


@_alone
def _multiply(mail, work, dense, a, across, b, width, b_half, bias, out, helpers):
    """Fill `out`; whether a is finite, else it is of no use."""
    at_job, (n, m) = room_on_stack(_PRODUCT_WORDS), out.shape
    job = carray(_product_pointer(at_job), 1)[0]
    job.taken, job.front, job.back = 0, 0, 0
    job.dense = dense
    job.a, job.across = address_of(a), across
    job.b, job.b_half = address_of(b), address_of(b_half)
    job.bias, job.biases = address_of(bias), bias.size
    job.out = address_of(out)
    job.n, job.k, job.m = n, b.shape[0] // m, m
    job.slices, job.width = b.shape[1], width
    threads = helpers + 1
    turns = (n + threads * ROWS - 1) // (threads * ROWS) * threads
    job.rows = (n + turns - 1) // turns
    job.finite = 1
    run(mail, work, at_job, helpers)
    return job.finite != 0


def _product_work(kind):
    def work(at_job, helping):
        """Take some rows of a at a time, as long as there are any."""
        job = carray(_product_pointer(at_job), 1)[0]
        n, k, m, count, rows = job.n, job.k, job.m, job.slices, job.rows
        shape = (k, n) if job.across else (n, k)
        a, out = carray(pointer_to(kind, job.a), shape), carray(pointer_to(kind, job.out), (n, m))
        b_half = carray(pointer_to(0.0, job.b_half), m)
        bias = carray(pointer_to(kind, job.bias), job.biases)
        parts, half = np.empty(rows * count * k), np.empty(rows)
        block = _block(m)
        orders, total = np.empty(rows * count * block), np.empty(block)
        zeros = np.zeros(count * block)
        pieces = (n + rows - 1) // rows
        piece = claim(at_job, helping, pieces)
        while piece >= 0 and job.finite:
            first = piece * rows
            size = min(rows, n - first)
            if job.across:
                of_a = parts[: k * count * size].reshape(k, count, size)
                finite = _cut_columns(a, first, job.width, of_a, half[:size])
                row, step, of_slice = 8, 8 * count * size, 8 * size
            else:
                of_a = parts[: size * count * k].reshape(size, count, k)
                finite = _cut_rows(a[first : first + size], job.width, of_a, half)
                row, step, of_slice = 8 * count * k, 8, 8 * k
            if not finite:
                job.finite = 0
                break
            for column in range(0, m, block):
                columns = min(block, m - column)
                b, line = job.b + 8 * k * count * column, 8 * count * columns
                found = orders[: size * count * columns].reshape(size, count, columns)
                for s in range(count):
                    # Of slice s of a with the slices of b side by side, each is of one order more
                    # than the one before. All of one order is a sum of integers, which is exact.
                    to = address_of(orders) + 8 * columns * s
                    start, start_line = (address_of(zeros), 0) if s == 0 else (to, line)
                    data = b, line, start, start_line, to, line, (count - s) * columns
                    at = address_of(parts) + s * of_slice
                    call(job.dense, (0.0, at, row, step, size, k, *data))
                here = slice(column, column + columns)
                for i in range(size):
                    _add_orders(
                        *(found[i], half[i], b_half[here], bias[here]),
                        *(total[:columns], out[first + i, here]),
                    )
            piece = claim(at_job, helping, pieces)
        lives_until_here((parts, zeros))

    return work


@_strict
def _add_orders(orders, a_half, b_half, bias, total, out):
    """Out (m,): a row's products of each order (S, m), the smallest first, and the bias if any."""
    total[:] = 0.0
    for order in range(orders.shape[0] - 1, -1, -1):
        for j in range(out.size):
            total[j] = orders[order, j] + total[j]
    for j in range(out.size):
        half = a_half * b_half[j]
        out[j] = out.dtype.type(total[j] * half * half)
    for j in range(bias.size):
        out[j] += bias[j]


@cache
def _work(make, dtype):
    """The address of a routine that takes pieces of a job, for a dtype."""
    return routine(make(dtype.type(0)), types.int64, types.int64, options=OPTIONS[EXACT])


@cache
def _dense():
    return int(products.routines(np.dtype(np.float64))[products._DENSE])


def _product(a, across, b, b_across, bias=None):
    """`exact.matmul` of a (or a' if `across`) by b (or b'), plus a bias."""
    n, m = a.shape[1 if across else 0], b.shape[0 if b_across else 1]
    right = _kept.slices(b, b_across) if a.size and b.size else None
    if right is not None:
        out, (parts, width, half) = np.empty((n, m), a.dtype), right
        work = n * parts.nbytes * (parts.shape[1] + 1) // 2
        fixed = _work(_product_work, a.dtype), _dense(), a, across
        more = np.empty(0, a.dtype) if bias is None else bias
        if pool.share(work, _multiply, *fixed, parts, width, half, more, out):
            return out
    out = exact.matmul(np, a.T if across else a, b.T if b_across else b)
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
        out[i] = sum_row(a[i], unit, rest, slices)


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


# -- elementary functions


_loops = Loops(EXACT)


def elementary(name, a):
    """`exact.elementary`."""
    return _loops.forward(Elementary(name), a)
