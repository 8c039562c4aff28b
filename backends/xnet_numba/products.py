# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""Matrix products for compiled code, in the tiles of `tiles`; those of 0 can be left out.

Every number is summed in one order whichever way it is computed, so the ways agree to the bit. A
product of 0 that is left out changes nothing unless it is by infinity or NaN: `skippable` sees to
that. Which numbers of x (n, k) are not 0 is said by `words`: int64 (n, ceil(k / 64)), the lowest
bit of a row's first word for its first number.

Arrays are given by their first element's address, in C order. What is worth its time is in three
routines. They are compiled once for each dtype, and compiled
code calls them by their addresses: otherwise LLVM would work through them again in every function
that they end up in.
"""

from functools import cache

import numba
import numpy as np
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage]

from xnet_numba.compiling import _serial, routine
from xnet_numba.intrinsics import address_of, call, lives_until_here, pointer_to, size_of
from xnet_numba.slices import slices_tile
from xnet_numba.tiles import (
    BITS,
    PANEL,
    ROWS,
    VECTOR_BYTES,
    bits_not_zero,
    ones,
    tile,
    transpose_square,
)

BLOCK_ROWS = 8 * ROWS
"""Rows, at most, that a thread takes at a time."""

FEW_ROWS = 2 * ROWS
"""Rows for each thread, at most, for which it pays to share out columns: the threads do not all
have to read W then, and none has less than a tile."""

PANEL_BYTES = PANEL[ROWS] * VECTOR_BYTES
"""Of a row of a tile of ROWS rows."""

CHUNK = 96
"""Rows of B that a tile takes at a time: what they hold of its columns stays in the first-level
cache, and the processor keeps the addresses of so many pages."""

SQUARE = 8
"""Rows and columns that are transposed at a time, in registers."""

BAND = 64
"""Rows that are transposed before any further to their right: what they become is whole lines of
the cache, also where rows are a power of two apart and drive each other out of it."""

SPARSE_BELOW = 1 / 3
"""Share of numbers that are not 0 below which the products of 0 are left out."""

SPARSE_ROWS = 8
"""Rows from which it pays to see first that W is finite, so that 0 times W is 0."""

LANES = 16
"""Numbers that are compared with 0 at a time."""


# -- the routines: dense, sparse, and for the gradient by W


def dense_tiles(kind, a, row, step, n, k, b, b_row, start, start_row, c, c_row, m):
    """C (n, m) = A (n, k) B (k, m) + start; A's rows and columns are `row` and `step` bytes apart.

    The other arrays' rows lie so many bytes apart, those of start 0 if it is a bias.
    """
    whole = n - n % ROWS
    chunk = CHUNK if n > ROWS else k
    for first in range(0, k, chunk):
        at, rows, terms = a + first * step, b + first * b_row, min(chunk, k - first)
        j = 0
        while j < m and whole > 0:
            columns = m
            for i in range(0, whole, ROWS):
                columns = tile(
                    kind, ROWS, 0, at + i * row, row, step, terms, rows, b_row,
                    start + i * start_row, start_row, c + i * c_row, c_row, j, m,
                )  # fmt: skip
            j += columns
        i = whole
        while i < n:
            x, s, to = at + i * row, start + i * start_row, c + i * c_row
            j = 0
            if i + 1 < n:
                while j < m:
                    j += tile(
                        kind, 2, 0, x, row, step, terms, rows, b_row, s, start_row, to, c_row, j, m
                    )  # fmt: skip
            else:
                while j < m:
                    j += tile(
                        kind, 1, 0, x, row, step, terms, rows, b_row, s, start_row, to, c_row, j, m
                    )  # fmt: skip
            i += 2
        start, start_row = c, c_row


def _sparse(kind, words, x, n, k, b, bias, c, m):
    """C (n, m) = x (n, k) B (k, m) + bias, without the products of 0; `words` is told which.

    64 rows of B at a time, which stay in the first-level cache for all rows of x.
    """
    size = size_of(kind)
    line, per_row = m * size, (k + BITS - 1) // BITS
    find_nonzeros(kind, x, n, k, words)
    known = carray(pointer_to(np.int64(0), words), (n, per_row))
    source = carray(pointer_to(kind, bias), m)
    for i in range(n):
        to = carray(pointer_to(kind, c + i * line), m)
        for j in range(m):
            to[j] = source[j]
    for w in range(per_row):
        rows, at = b + w * BITS * line, x + w * BITS * size
        j = 0
        while j < m:
            columns = m
            for i in range(n):
                if known[i, w] != 0:
                    to = c + i * line
                    columns = tile(
                        kind, 1, 1, at + i * k * size, 0, size, known[i, w],
                        rows, line, to, 0, to, 0, j, m,
                    )  # fmt: skip
            j += columns


@_serial
def find_nonzeros(kind, x, n, k, words):
    """Tell `words` which of the numbers of x (n, k) are not 0."""
    size, per_row = size_of(kind), (k + BITS - 1) // BITS
    found = carray(pointer_to(np.int64(0), words), (n, per_row))
    for i in range(n):
        at = x + i * k * size
        for w in range(per_row):
            count = min(BITS, k - w * BITS)
            word, lane = np.int64(0), 0
            while lane + LANES <= count:
                word |= bits_not_zero(kind, LANES, at + lane * size) << np.int64(lane)
                lane += LANES
            while lane < count:
                word |= bits_not_zero(kind, 1, at + lane * size) << np.int64(lane)
                lane += 1
            found[i, w] = word
            at += BITS * size


def _sparse_gradient(kind, words, task, x, n, k, delta, m, zeros, dW):
    """The rows of dW (k, m) = x' delta for the 64 inputs from 64 `task` on, by what `words` says.

    64 samples at a time, whose deltas stay in the first-level cache for all the inputs. `zeros`
    are m.
    """
    size = size_of(kind)
    line, per_row, first = m * size, (k + BITS - 1) // BITS, task * BITS
    known = carray(pointer_to(np.int64(0), words), (n, per_row))
    block = np.empty(BITS, np.uint64)
    for sample in range(0, n, BITS):
        samples = min(BITS, n - sample)
        for i in range(samples):
            block[i] = np.uint64(known[sample + i, task])
        block[samples:] = np.uint64(0)
        transpose_bits(block)
        at, d = x + (sample * k + first) * size, delta + sample * line
        for column in range(min(BITS, k - first)):
            to = dW + (first + column) * line
            word, j = np.int64(block[column]), 0
            start = zeros if sample == 0 else to
            while j < m:
                j += tile(
                    kind, 1, 1, at + column * size, 0, k * size, word,
                    d, line, start, 0, to, 0, j, m,
                )  # fmt: skip


@_serial
def transpose_bits(block):
    """Bit i of block[j] and bit j of block[i] change places, (64,) uint64 (Warren, §7-3)."""
    width, mask = np.uint64(32), np.uint64(0x00000000FFFFFFFF)
    while width != 0:
        i = np.uint64(0)
        while i < np.uint64(BITS):
            other = i | width
            change = ((block[i] >> width) ^ block[other]) & mask
            block[i] ^= change << width
            block[other] ^= change
            i = (other + np.uint64(1)) & ~width
        width >>= np.uint64(1)
        mask ^= mask << width


_ROUTINES = {_sparse: 8, dense_tiles: 12, _sparse_gradient: 9}
"""How many int64 each takes after `kind`."""
_SPARSE, _DENSE, _SPARSE_GRADIENT = range(3)


@cache
def routines(dtype, gradient=False):
    """Where the routines for a dtype are, int64: the first two for `affine`, all for `gradient`."""
    return np.array(
        [
            routine(function, numba.from_dtype(dtype), *[types.int64] * numbers)
            for function, numbers in list(_ROUTINES.items())[: 3 if gradient else 2]
        ],
        np.int64,
    )


@cache
def dense_of_slices():
    """Where `dense_tiles` is for slices, which are float64."""
    return routine(dense_tiles, types.float64, *[types.int64] * _ROUTINES[dense_tiles])


@cache
def chosen(count):
    """Where `slices_tile` is for so many slices: up to 64 numbers, which a word says."""

    def chosen_of_slices(a, of_slice, step, word, b, row, c, apart, m):
        slices_tile(count, a, of_slice, step, word, b, row, c, apart, m)

    return routine(chosen_of_slices, *[types.int64] * 9)


# -- for compiled code


@_serial
def skippable(kind, x, n, k, factor, size):
    """Whether to leave out the products of 0: few of x (n, k) differ from it, which some rows tell.

    And all of the other factor's `size` numbers are finite: 0 times any other is NaN.
    """
    return n >= SPARSE_ROWS and sparse(kind, x, n, k) and finite(kind, factor, size)


@_serial
def sparse(kind, x, n, k):
    """Whether few of x (n, k) differ from 0, which up to 16 rows tell."""
    words = np.empty((k + BITS - 1) // BITS, np.int64)
    looked_at, count = min(n, 16), 0
    for i in range(looked_at):
        row = x + i * n // looked_at * k * size_of(kind)
        find_nonzeros(kind, row, 1, k, address_of(words))
        for word in words:
            count += ones(word)
    return count < SPARSE_BELOW * looked_at * k


@_serial
def finite(kind, address, size):
    """Whether all of so many numbers are finite."""
    values = carray(pointer_to(kind, address), size)
    total = type(kind)(0)
    for i in range(size):
        total += values[i] * type(kind)(0)
    return total == 0


@_serial
def share(n, threads):
    """How many of n rows a thread takes at a time: all take as many, and at most BLOCK_ROWS."""
    turns = max(1, (n + threads * BLOCK_ROWS - 1) // (threads * BLOCK_ROWS)) * threads
    return max(1, (n + turns - 1) // turns)


@_serial
def room(n, k, skip):
    """What `affine` needs to tell which numbers of x (n, k) are not 0."""
    return np.empty((n if skip else 0, (k + BITS - 1) // BITS), np.int64)


@_serial
def column_share(kind, n, m, threads):
    """How many of m columns a thread takes at a time; 0 where threads are to take rows instead."""
    if threads == 1 or n > FEW_ROWS * threads:
        return 0
    whole = PANEL_BYTES // size_of(kind)
    columns = (m + 2 * threads * whole - 1) // (2 * threads * whole) * whole
    return columns if columns * threads <= m else 0


@_serial
def dense(routines, kind, a, n, k, b, bias, c, m):
    """C (n, m) = A (n, k) B (k, m) + bias (m,)."""
    columns(routines, kind, a, n, k, b, bias, c, m, 0, m)


@_serial
def columns(routines, kind, a, n, k, b, bias, c, m, first, count):
    """So many columns of `dense`, from the `first` one on."""
    size, at = size_of(kind), first * size_of(kind)
    call(
        routines[_DENSE],
        (kind, a, k * size, size, n, k, b + at, m * size, bias + at, 0, c + at, m * size, count),
    )


@_serial
def affine(routines, kind, x, n, k, W, b, out, m, skip, words):
    """out (n, m) = x (n, k) W (k, m) + b (m,); if `skip`, `words` is told what is not 0."""
    if skip:
        call(routines[_SPARSE], (kind, words, x, n, k, W, b, out, m))
    else:
        dense(routines, kind, x, n, k, W, b, out, m)


@_serial
def gradient(routines, kind, task, x, n, k, delta, m, skip, words, zeros, dW, db):
    """One of the ceil(k / 64) tasks of dW (k, m) = x' delta, x (n, k) and delta (n, m).

    The first one adds up delta's rows in db (m,) too. `zeros` are m, and at least 64; `skip` and
    `words` as in `affine`.
    """
    if skip:
        call(routines[_SPARSE_GRADIENT], (kind, words, task, x, n, k, delta, m, zeros, dW))
    else:
        size, first = size_of(kind), task * BITS
        line, inputs = m * size, min(BITS, k - first)
        at, to = x + first * size, dW + first * line
        if line >= VECTOR_BYTES:
            call(
                routines[_DENSE],
                (kind, at, size, k * size, inputs, n, delta, line, zeros, 0, to, line, m),
            )
        else:  # rows of x fill vectors, those of delta do not: dW' = delta' x
            across = np.empty(m * inputs, type(kind))
            found, row = address_of(across), inputs * size
            call(
                routines[_DENSE],
                (kind, delta, size, line, m, n, at, k * size, zeros, 0, found, row, inputs),
            )
            transpose(kind, found, m, inputs, to)
            lives_until_here(across)
    if task == 0:
        total, rows = carray(pointer_to(kind, db), m), carray(pointer_to(kind, delta), (n, m))
        total[:] = 0
        for i in range(n):
            for j in range(m):
                total[j] += rows[i, j]


@_serial
def transpose(kind, a, n, m, out):
    """A (n, m) as out (m, n)."""
    size = size_of(kind)
    if n < SQUARE or m < SQUARE:
        source, target = carray(pointer_to(kind, a), (n, m)), carray(pointer_to(kind, out), (m, n))
        for i in range(n):
            for j in range(m):
                target[j, i] = source[i, j]
        return
    row, out_row = m * size, n * size
    for rows in range(0, n, BAND):
        for columns in range(0, m, SQUARE):
            j = min(columns, m - SQUARE)  # the last square begins earlier to end in time
            for top in range(rows, min(n, rows + BAND), SQUARE):
                i = min(top, n - SQUARE)
                at, to = a + i * row + j * size, out + j * out_row + i * size
                transpose_square(kind, SQUARE, at, row, to, out_row)
