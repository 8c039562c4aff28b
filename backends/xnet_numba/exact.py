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
        """Slices and `half_scale` of the columns of b (K, M), or of b' if `transposed`."""
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
        parts, half = np.empty((k, count, m)), np.empty(m)
        return (parts, half) if _cut_columns(b, 0, width, parts, half) else None


_kept = _Kept()


# -- products


class _Job(NamedTuple):
    """Out (n, m) = a (n, k) b (k, m) + bias (m,), in pieces of so many rows."""

    taken: int  # and the next two: the counts of `claim`
    front: int
    back: int
    dense: int  # the routine of `products` for float64
    across: int  # whether a is stored as (k, n)
    a: int
    b: int  # its slices (k, S, m)
    b_half: int
    bias: int
    biases: int  # m, or 0 for no bias
    out: int
    n: int
    k: int
    m: int
    slices: int
    width: int
    rows: int
    finite: int  # whether all of a is: set to 0 if not, and then `out` is of no use


_JOB = layout(_Job)


def _product_work(kind):
    def work(at, helping):
        job = record_at(at, _JOB)
        n, k, m, count, rows = job.n, job.k, job.m, job.slices, job.rows
        shape = (k, n) if job.across else (n, k)
        a = carray(pointer_to(kind, job.a), shape)
        bias = carray(pointer_to(kind, job.bias), job.biases)
        out = carray(pointer_to(kind, job.out), (n, m))
        b_half = carray(pointer_to(0.0, job.b_half), m)
        parts, half = np.empty(rows * count * k), np.empty(rows)
        orders, zeros = np.empty((rows, count, m)), np.zeros(count * m)
        pieces = (n + rows - 1) // rows
        piece = claim(at, helping, pieces)
        while piece >= 0 and job.finite:
            first = piece * rows
            size = min(rows, n - first)
            if job.across:
                of_a = parts[: k * count * size].reshape(k, count, size)
                finite = _cut_columns(a, first, job.width, of_a, half[:size])
                row, step, slice_bytes = 8, 8 * count * size, 8 * size
            else:
                of_a = parts[: size * count * k].reshape(size, count, k)
                finite = _cut_rows(a[first : first + size], job.width, of_a, half)
                row, step, slice_bytes = 8 * count * k, 8, 8 * k
            if not finite:
                job.finite = 0
                break
            for s in range(count):
                # Of slice s of a with the slices of b side by side, each is of one order more than
                # the one before. All of one order is a sum of integers, which is exact.
                to, line = address_of(orders) + 8 * s * m, 8 * count * m
                start, start_line = (address_of(zeros), 0) if s == 0 else (to, line)
                call(
                    job.dense,
                    (
                        *(0.0, address_of(parts) + s * slice_bytes, row, step, size, k),
                        *(job.b, line, start, start_line, to, line, (count - s) * m),
                    ),
                )
            for i in range(size):
                _add_orders(orders[i], half[i], b_half, bias, out[first + i])
            piece = claim(at, helping, pieces)
        lives_until_here((parts, zeros))

    return work


@_strict
def _add_orders(orders, a_half, b_half, bias, out):
    """Out (m,): a row's products of each order (S, m), the smallest first, and the bias."""
    total = np.zeros(out.size)
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
    return routine(make(dtype.type(0)), types.int64, types.int64, options=generated.OPTIONS["exact"])


def _product(a, across, b, b_across, bias=None):
    """`exact.matmul` of a (or a' if `across`) by b (or b'), plus a bias."""
    (n, k), m = a.T.shape if across else a.shape, b.shape[0 if b_across else 1]
    right = _kept.slices(b, b_across) if n * k * m else None
    if right is not None:
        out, (parts, half) = np.empty((n, m), a.dtype), right
        slices = parts.shape[1]
        fields = _Job(
            taken=0,
            front=0,
            back=0,
            dense=int(products.routines(FLOAT64)[products._DENSE]),
            across=across,
            a=address(a),
            b=address(parts),
            b_half=address(half),
            bias=0 if bias is None else address(bias),
            biases=0 if bias is None else m,
            out=address(out),
            n=n,
            k=k,
            m=m,
            slices=slices,
            width=exact.product_slices(k, exact.precision(a))[1],
            rows=products.share(n, thread_count()),
            finite=1,
        )
        job = np.array([fields], _JOB)
        work = n * parts.nbytes * (slices + 1) // 2
        pool.share(work, run, _work(_product_work, a.dtype), address(job))
        if job["finite"][0]:
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


class _Each(NamedTuple):
    """A loop over so many numbers, in their place, in pieces of so many."""

    taken: int  # and the next two: the counts of `claim`
    front: int
    back: int
    loop: int
    numbers: int
    size: int
    piece: int


_EACH = layout(_Each)


def _each_work(kind):
    def work(at, helping):
        job = record_at(at, _EACH)
        pieces = (job.size + job.piece - 1) // job.piece
        piece = claim(at, helping, pieces)
        while piece >= 0:
            start = piece * job.piece
            first = job.numbers + start * size_of(kind)
            call(job.loop, (kind, first, min(job.piece, job.size - start), 0))
            piece = claim(at, helping, pieces)

    return work


@cache
def _loop(name, dtype):
    formula = trace(lambda m, x: getattr(m, name)(x), "x")
    return generated._over_numbers(formula, ("x",), generated.EXACT, dtype).address


PIECE = 1 << 12
"""Numbers that a thread takes at a time."""

ELEMENTARY_WORK = 100
"""Of a number, as `Pool.share` counts it."""


def _elementary(name, a):
    out = a.copy()
    fields = _Each(0, 0, 0, _loop(name, a.dtype), address(out), out.size, PIECE)
    job = np.array([fields], _EACH)
    pool.share(out.size * ELEMENTARY_WORK, run, _work(_each_work, a.dtype), address(job))
    return out


def exp(a):
    """`exact.exp`."""
    return _elementary("exp", a)


def expm1(a):
    """`exact.elementary` of that name."""
    return _elementary("expm1", a)


def log(a):
    """`exact.log`."""
    return _elementary("log", a)


def log1p(a):
    """`exact.elementary` of that name."""
    return _elementary("log1p", a)
