# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
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
from xnet_numba.compiling import _alone, _strict, address, routine
from xnet_numba.exactly import (
    first_shift,
    half_scale,
    magnitude,
    number,
    row_sum,
    sum_slices,
    unit_of,
)
from xnet_numba.generated import EXACT, OPTIONS, Elementary
from xnet_numba.intrinsics import (
    address_of,
    atomic_add,
    call,
    lives_until_here,
    pointer_to,
    record_pointer,
    room_on_stack,
    size_of,
)
from xnet_numba.kernels import Loops
from xnet_numba.pool import claim, pool, run
from xnet_numba.slices import LANES, add_up, cut
from xnet_numba.tiles import BITS

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
def _largest(a):
    """The largest of |a| (n,), which is not finite if one of them is not."""
    top = magnitude(a[0])  # the largest of integers: that vectorises
    for j in range(a.size):
        top = max(top, magnitude(a[j]))
    return number(top, a.itemsize == 8)


@_strict
def _largest_of_columns(a, first, known, top):
    """`_largest` of so many columns of a (k, ...) from the first, of which `known` rows count."""
    bits = np.empty(top.size, type(magnitude(a[0, 0])))
    bits[:] = 0
    at = np.uint64(first)  # an index that cannot be negative keeps the loops vectorised
    for i in range(a.shape[0]):
        if known.size == 0 or known[i] != 0:
            for j in range(top.size):
                bits[j] = max(bits[j], magnitude(a[i, at + np.uint64(j)]))
    for j in range(top.size):
        top[j] = number(bits[j], a.itemsize == 8)


@_strict
def _begin(largest, wide, width, half, back, shift):
    """What numbers (n,) are cut by, of which so many have so large a largest one.

    Their `half_scale` and what that is divided by, and the shift of their first slice. Returns
    whether they are finite; if not, nothing is of use.
    """
    unit = unit_of(width)
    for i in range(half.size):
        if not largest[i] < np.inf:
            return False
        half[i] = half_scale(largest[i], wide)
        back[i] = 1.0 / half[i]
        shift[i] = first_shift(largest[i], half[i], unit)
    return True


@_strict
def _begin_rows(a, width, half, back, shift):
    """`_begin` for the rows of a (n, k)."""
    largest = np.empty(a.shape[0])
    for i in range(a.shape[0]):
        largest[i] = _largest(a[i])
    return _begin(largest, a.itemsize == 8, width, half, back, shift)


@_strict
def _begin_columns(a, first, known, width, half, back, shift):
    """`_begin` for so many columns of a (k, ...) from the first."""
    largest = np.empty(half.size)
    _largest_of_columns(a, first, known, largest)
    return _begin(largest, a.itemsize == 8, width, half, back, shift)


def _cutter(each):
    @_strict
    def cut_numbers(kind, values, size, back, shift, unit, count, parts, of_slice):
        """Cut so many numbers, if `each` by a `back` and shift of its own; see `slices.cut`."""
        j, own = 0, 8 * each
        while j + LANES <= size:
            at, by, to = (
                values + j * size_of(kind),
                (back + own * j, shift + own * j),
                parts + 8 * j,
            )
            cut(kind, LANES, each, at, by[0], by[1], unit, count, to, of_slice)
            j += LANES
        while j < size:
            at, by, to = (
                values + j * size_of(kind),
                (back + own * j, shift + own * j),
                parts + 8 * j,
            )
            cut(kind, 1, each, at, by[0], by[1], unit, count, to, of_slice)
            j += 1

    return cut_numbers


_cut, _cut_each = map(_cutter, (0, 1))


@_strict
def _cut_rows(a, first, width, count, parts, half):
    """Slices of `width` bits of some rows of a (..., k), from the first: parts (n, S, k).

    And `half_scale` of each (n,). Returns whether the rows are finite; if not, nothing is of use.
    """
    n, k, unit, kind = half.size, a.shape[1], unit_of(width), a.dtype.type(0)
    back, shift = np.empty(n), np.empty(n)
    if not _begin_rows(a[first : first + n], width, half, back, shift):
        return False
    for i in range(n):
        at, to = address_of(a) + (first + i) * k * a.itemsize, parts + 8 * i * count * k
        by = address_of(back) + 8 * i, address_of(shift) + 8 * i
        _cut(kind, at, k, by[0], by[1], unit, count, to, 8 * k)
    lives_until_here((back, shift))
    return True


@_strict
def _cut_columns(a, first, width, count, parts, padded, half):
    """As `_cut_rows` for m columns of a (k, ...), from the first: parts (k, S, `padded`).

    The columns beyond m become 0.
    """
    (k, columns), m, unit, kind = a.shape, half.size, unit_of(width), a.dtype.type(0)
    back, shift = np.empty(m), np.empty(m)
    if not _begin_columns(a, first, np.empty(0, np.int64), width, half, back, shift):
        return False
    found, by = carray(pointer_to(0.0, parts), (k, count, padded)), (back, shift)
    for i in range(k):
        at, to = address_of(a) + (i * columns + first) * a.itemsize, parts + 8 * i * count * padded
        _cut_each(kind, at, m, address_of(back), address_of(shift), unit, count, to, 8 * padded)
        for s in range(count):
            for j in range(m, padded):
                found[i, s, j] = 0.0
    lives_until_here(by)
    return True


COLUMNS = 64
"""Of b, at most, whose slices are side by side: with more, its rows would each lie in other pages
of memory than the next."""

LINE = 8
"""Numbers of a line of the cache: so many columns, or a multiple, have each slice of a row of b."""

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
        """`slices_of` b (K, M), or of b' if `transposed`."""
        key = id(b), transposed
        weak, copy, found = self._kept.get(key, (None, None, None))
        seen = weak is not None and weak() is b
        if seen and copy is not None and np.array_equal(copy, b):
            return found
        keep = seen and b.size <= LARGEST_KEPT  # the second time it is worth a copy
        if keep:
            copy = b.copy()  # and what is cut is the copy: another thread may be writing
        of = copy if keep else b
        found = slices_of(np.ascontiguousarray(of.T) if transposed else of)
        if keep and found is not None:
            self._kept[key] = weak, copy, found
        elif not seen:
            forget = weakref.ref(b, lambda _: self._kept.pop(key, None))
            self._kept[key] = forget, None, None
        return found


def slices_of(b):
    """Slices of b (K, M) as `cut_blocks`, their width, and `half_scale` of each column.

    None if there is an infinity or NaN in it.
    """
    (k, m), (count, width) = b.shape, exact.product_slices(b.shape[0], exact.precision(b))
    parts, half = room_for_slices(k, m, count), np.empty(m)
    return (parts, width, half) if cut_blocks(b, width, parts, half) else None


@_strict
def aligned(size):
    """Numbers (size,) that begin where a line of the cache does."""
    room = np.empty(size + LINE)
    first = -(address_of(room) // 8) % LINE
    return room[first : first + size]


@_strict
def room_for_slices(k, m, count):
    """For so many slices of each number of b (k, m): (k M, S), where M is `_padded` m."""
    return aligned(k * _padded(m) * count).reshape(-1, count)


@_strict
def cut_blocks(b, width, parts, half):
    """As `_cut_columns` for blocks of b's columns, one after the other: parts (k M, S)."""
    (k, m), count = b.shape, parts.shape[1]
    block = _block(m)
    for first in range(0, m, block):
        columns = min(block, m - first)
        at, of_block = address_of(parts) + 8 * first * k * count, half[first : first + columns]
        if not _cut_columns(b, first, width, count, at, _padded(columns), of_block):
            return False
    lives_until_here(parts)
    return True


@_strict
def _padded(columns):
    """The smallest multiple of a line."""
    return (columns + LINE - 1) // LINE * LINE


@_strict
def _block(m):
    """How many of m columns are a block: all but the last are as wide, whole lines."""
    blocks = (m + COLUMNS - 1) // COLUMNS
    return _padded((m + blocks - 1) // blocks)


_kept = _Kept()


# -- products


PRODUCT = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("taken", "front", "back", "piece", "dense", "chosen", "a", "across", "words"),
            *("b", "b_half", "bias", "biases", "out", "n", "k", "m"),
            *("slices", "width", "rows", "finite", "done"),
        )
    ]
)
"""Out (n, m) = a (n, k) b (k, m) + bias (m,), in pieces of so many rows.

`taken`, `front` and `back` are the counts of `claim`. `piece` is the routine that does a piece,
`dense` and `chosen` those of `products`. `across` says whether a is stored as
(k, n); `words`, if there are any, which of its numbers are not 0, as it is stored. Of b there is
what `cut_blocks` makes, in so many slices of so many bits. There are m biases or none. `finite`
becomes 0 if an infinity or NaN is found in a; `out` is of no use then, nor where fewer than n rows
are `done`, as where there is no memory for a piece.
"""

product_pointer = record_pointer(PRODUCT)
PRODUCT_WORDS = PRODUCT.itemsize // 8
_DONE = 8 * PRODUCT.names.index("done")

ORDERS, MOST_ORDERS = 1 << 15, 1 << 21
"""Numbers, about, of all orders of a piece whose zeros are left out, which stay in the second-level
cache while all of b goes by; and where there would be more than so many, zeros are multiplied."""


@_strict
def _rows_of_a_piece(job, threads):
    """How many rows a thread takes at a time: all take as many."""
    if job.words != 0 and job.across:
        return BITS
    most = ROWS
    if job.words != 0:
        most = max(1, min(most, ORDERS // (job.slices * _padded(job.m))))
    turns = (job.n + threads * most - 1) // (threads * most) * threads
    return (job.n + turns - 1) // turns


@_alone
def multiply(mail, routines, a, across, words, b, width, b_half, bias, out, helpers):
    """Fill `out`; whether that could be done of a, which else is not finite, or there is no memory.

    The routines are of `routines`.
    """
    at_job, (n, m) = room_on_stack(PRODUCT_WORDS), out.shape
    job = carray(product_pointer(at_job), 1)[0]
    job.taken, job.front, job.back = 0, 0, 0
    job.piece, job.dense, job.chosen = routines[1], routines[2], routines[CHOSEN + b.shape[1]]
    few = BITS * b.shape[1] * _padded(m) <= MOST_ORDERS
    job.a, job.across, job.words = address_of(a), across, words if few else 0
    job.b, job.b_half = address_of(b), address_of(b_half)
    job.bias, job.biases = address_of(bias), bias.size
    job.out = address_of(out)
    job.n, job.k, job.m = n, b.shape[0] // _padded(m), m
    job.slices, job.width = b.shape[1], width
    job.rows = _rows_of_a_piece(job, helpers + 1)
    job.finite, job.done = 1, 0
    run(mail, routines[0], at_job, helpers)
    return job.done == n


def _work(at_job, helping):
    """Take some rows of a at a time, as long as there are any."""
    job = carray(product_pointer(at_job), 1)[0]
    pieces = (job.n + job.rows - 1) // job.rows
    piece = claim(at_job, helping, pieces)
    while piece >= 0 and job.finite:
        first = piece * job.rows
        call(job.piece, (at_job, first, min(job.rows, job.n - first)))
        piece = claim(at_job, helping, pieces)


def _piece(kind):
    def piece(at_job, first, size):
        """So many rows of a product, from the first on."""
        job = carray(product_pointer(at_job), 1)[0]
        n, k, m, count = job.n, job.k, job.m, job.slices
        shape = (k, n) if job.across else (n, k)
        a = carray(pointer_to(kind, job.a), shape)
        half = np.empty(size)
        if job.words == 0:
            finite = _dense(kind, job, a, first, half)
        else:
            orders = aligned(size * count * _padded(m))
            if job.across:
                finite = _sparse_columns(job, a, first, half, orders)
            else:
                finite = _sparse_rows(job, a, first, half, orders)
            for column in range(0, m if finite else 0, _block(m)):
                _finish(
                    kind, job, first, half, column, address_of(orders) + 8 * size * count * column
                )
            lives_until_here(orders)
        if finite:
            atomic_add(at_job + _DONE, size)
        else:
            job.finite = 0

    return piece


@_strict
def _finish(kind, job, first, half, column, orders):
    """The block of columns from this one on of some rows, by the orders of its products."""
    m, count, size = job.m, job.slices, size_of(kind)
    columns = min(_block(m), m - column)
    line = 8 * _padded(columns)
    bias = 0 if job.biases == 0 else job.bias + column * size
    for i in range(half.size):
        at, to = orders + i * count * line, job.out + ((first + i) * m + column) * size
        _add_orders(kind, at, line, count, half[i], job.b_half + 8 * column, bias, to, columns)


@_strict
def _dense(kind, job, a, first, half):
    """Some rows of the product, from the first on, block of columns by block, as b is.

    Returns whether they are finite.
    """
    k, m, count, size = job.k, job.m, job.slices, half.size
    parts = np.empty(size * count * k)
    if job.across:
        finite = _cut_columns(a, first, job.width, count, address_of(parts), size, half)
        row, step, of_slice = 8, 8 * count * size, 8 * size
    else:
        finite = _cut_rows(a, first, job.width, count, address_of(parts), half)
        row, step, of_slice = 8 * count * k, 8, 8 * k
    block, zeros = _block(m), np.zeros(count * COLUMNS)
    orders = aligned(size * count * block)
    for column in range(0, m if finite else 0, block):
        columns = _padded(min(block, m - column))
        b, line = job.b + 8 * k * count * column, 8 * count * columns
        for s in range(count):
            # Of slice s of a with the slices of b side by side, each is of one order more
            # than the one before. All of one order is a sum of integers, which is exact.
            to = address_of(orders) + 8 * columns * s
            start, start_line = (address_of(zeros), 0) if s == 0 else (to, line)
            data = b, line, start, start_line, to, line, (count - s) * columns
            at = address_of(parts) + s * of_slice
            call(job.dense, (0.0, at, row, step, size, k, *data))
        _finish(kind, job, first, half, column, address_of(orders))
    lives_until_here((parts, zeros, orders))
    return finite


@_strict
def _chosen(job, parts, step, of_slice, word, row_of_b, row, rows, orders):
    """Add to one of `rows` of `orders` up to 64 products of each slice with rows of b: `word`."""
    k, m, count = job.k, job.m, job.slices
    block = _block(m)
    for column in range(0, m, block):
        columns = _padded(min(block, m - column))
        line = 8 * count * columns
        b = job.b + 8 * k * count * column + row_of_b * line
        to = orders + 8 * count * column * rows + row * line
        call(job.chosen, (parts, of_slice, step, word, b, line, to, 8 * columns, columns))


@_strict
def _sparse_rows(job, a, first, half, orders):
    """The products of slices of some rows, from the first on, of each order, without those of 0.

    `orders` holds them block by block of columns, (n, S, columns) each; a is stored as (n, k). 64
    rows of b at a time, which stay in the first-level cache for all of these rows of a. Returns
    whether they are finite.
    """
    k, count, size = job.k, job.slices, half.size
    back, shift = np.empty(size), np.empty(size)
    if not _begin_rows(a[first : first + size], job.width, half, back, shift):
        return False
    per_row, unit, kind = (k + BITS - 1) // BITS, unit_of(job.width), a.dtype.type(0)
    known = carray(pointer_to(np.int64(0), job.words), (job.n, per_row))
    room = np.empty(count * BITS)
    parts, to = address_of(room), address_of(orders)
    orders[:] = 0.0
    for w in range(per_row):
        start = w * BITS
        for i in range(size):
            word = known[first + i, w]
            if word != 0:
                at = address_of(a) + ((first + i) * k + start) * a.itemsize
                by = address_of(back) + 8 * i, address_of(shift) + 8 * i
                _cut(kind, at, min(BITS, k - start), by[0], by[1], unit, count, parts, 8 * BITS)
                _chosen(job, parts, 8, 8 * BITS, word, start, i, size, to)
    lives_until_here((room, orders, back, shift))
    return True


@_strict
def _sparse_columns(job, a, first, half, orders):
    """As `_sparse_rows` for up to 64 rows, from a multiple of 64, of an a stored as (k, n).

    64 columns of a at a time, and as many rows of b.
    """
    k, n, count, size, task = job.k, job.n, job.slices, half.size, first // BITS
    known = carray(pointer_to(np.int64(0), job.words), (k, (n + BITS - 1) // BITS))[:, task]
    back, shift, unit, kind = np.empty(size), np.empty(size), unit_of(job.width), a.dtype.type(0)
    if not _begin_columns(a, first, known, job.width, half, back, shift):
        return False
    room, block = np.empty(BITS * count * BITS), np.empty(BITS, np.uint64)
    parts, to, line = address_of(room), address_of(orders), 8 * count * BITS
    orders[:] = 0.0
    for start in range(0, k, BITS):
        for i in range(BITS):
            block[i] = np.uint64(known[start + i]) if start + i < k else np.uint64(0)
            if block[i] != 0:
                at = address_of(a) + ((start + i) * n + first) * a.itemsize
                by = address_of(back), address_of(shift)
                _cut_each(kind, at, size, by[0], by[1], unit, count, parts + i * line, 8 * BITS)
        products.transpose_bits(block)
        for row in range(size):
            if block[row] != 0:
                word = np.int64(block[row])
                _chosen(job, parts + 8 * row, line, 8 * BITS, word, start, row, size, to)
    lives_until_here((room, orders, back, shift))
    return True


@_strict
def _add_orders(kind, orders, of_order, count, half, halves, bias, out, columns):
    """So many columns of a row of the product; addresses as those of `slices.add_up`."""
    j, size = 0, size_of(kind)
    while j + LANES <= columns:
        of_bias = 0 if bias == 0 else bias + j * size
        at = halves + 8 * j, of_bias, out + j * size
        add_up(kind, LANES, orders + 8 * j, of_order, count, half, at[0], at[1], at[2])
        j += LANES
    while j < columns:
        of_bias = 0 if bias == 0 else bias + j * size
        at = halves + 8 * j, of_bias, out + j * size
        add_up(kind, 1, orders + 8 * j, of_order, count, half, at[0], at[1], at[2])
        j += 1


CHOSEN = 3


@cache
def routines(dtype, *counts):
    """Where the routines of a product of numbers of a dtype are: int64, for `multiply`.

    After the first three those for so many slices, 0 for others.
    """
    one, options = types.int64, OPTIONS[EXACT]
    found = np.zeros(CHOSEN + max(counts) + 1, np.int64)
    found[0] = routine(_work, one, one, options=options)
    found[1] = routine(_piece(dtype.type(0)), one, one, one, options=options)
    found[2] = products.dense_of_slices()
    for count in counts:
        found[CHOSEN + count] = products.chosen(count)
    return found


@_alone
def nonzeros(a, words):
    """Have int64 (n, ceil(k / 64)) at an address say which of a (n, k) are not 0, if few are.

    Returns whether they are few.
    """
    kind, (n, k), at = a.dtype.type(0), a.shape, address_of(a)
    few = products.sparse(kind, at, n, k)
    if few:
        products.find_nonzeros(kind, at, n, k, words)
    return few


def _product(a, across, b, b_across, bias=None):
    """`exact.matmul` of a (or a' if `across`) by b (or b'), plus a bias."""
    n, m = a.shape[1 if across else 0], b.shape[0 if b_across else 1]
    right = _kept.slices(b, b_across) if a.size and b.size else None
    if right is not None:
        out, (parts, width, half) = np.empty((n, m), a.dtype), right
        work = n * parts.nbytes * (parts.shape[1] + 1) // 2
        words = np.empty((a.shape[0], -(-a.shape[1] // BITS)), np.int64)
        known = address(words) if nonzeros(a, address(words)) else 0
        fixed = routines(a.dtype, parts.shape[1]), a, across, known
        more = np.empty(0, a.dtype) if bias is None else bias
        if pool.share(work, multiply, *fixed, parts, width, half, more, out):
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
def _sum_rows(a, out):
    """The sum of each row of a (n, k)."""
    for i in range(a.shape[0]):
        out[i] = row_sum(a[i])


@_strict
def sum_columns(a, out):
    """The sum of each column of a (k, m); whether they are finite, else it is of no use."""
    (k, m), wide = a.shape, a.itemsize == 8
    count, bits = sum_slices(k, wide)
    half, back, shift = np.empty(m), np.empty(m), np.empty(m)
    if not _begin_columns(a, 0, np.empty(0, np.int64), bits, half, back, shift):
        return False
    sums, parts, kind = np.zeros((count, m)), np.empty((count, m)), a.dtype.type(0)
    for i in range(k):
        at, to = address_of(a) + i * m * a.itemsize, address_of(parts)
        by = address_of(back), address_of(shift)
        _cut_each(kind, at, m, by[0], by[1], unit_of(bits), count, to, 8 * m)
        for s in range(count):
            for j in range(m):
                sums[s, j] += parts[s, j]
    lives_until_here((parts, back, shift))
    for j in range(m):
        total = 0.0
        for s in range(count - 1, -1, -1):
            total = sums[s, j] + total
        out[j] = a.dtype.type(total * half[j] * half[j])
    return True


def sum(a, axis=None, keepdims=False):
    """`exact.sum`."""
    axes, _ = exact.checked_axes(a, axis), exact.precision(a)
    if a.size == 0:
        return exact.sum(np, a, axis, keepdims)
    out = np.empty([n for k, n in enumerate(a.shape) if k not in axes], a.dtype)
    if axes != (0,) or a.ndim == 1 or not sum_columns(a.reshape(len(a), -1), out.reshape(-1)):
        last = np.moveaxis(a, axes, range(a.ndim - len(axes), a.ndim))
        _sum_rows(np.ascontiguousarray(last).reshape(out.size, -1), out.reshape(-1))
    return np.expand_dims(out, axes) if keepdims else out


# -- elementary functions


_loops = Loops(EXACT)


def elementary(name, a):
    """`exact.elementary`."""
    return _loops.forward(Elementary(name), a)
