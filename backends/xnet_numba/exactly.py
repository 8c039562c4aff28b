# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""What compiled loops of reproducible mode take: `xnet.exact` in compiled form, bit for bit.

Nothing here lets the compiler reorder or contract an operation.
"""

import numba
import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from xnet_numba.compiling import _serial, _strict
from xnet_numba.elementary import PRIMITIVES, written
from xnet_numba.generated import function
from xnet_numba.intrinsics import bits_to_float, float_to_bits, pointer_to, room_on_stack


def _rounded(name):
    """One of `exact.ELEMENTARY` for numbers of either precision, computed in float64."""
    wide = function(PRIMITIVES + written(name), name, error_model="numpy", forceinline=True)

    @numba.njit(forceinline=True, error_model="numpy")
    def rounded(x):
        return type(x)(wide(np.float64(x)))

    return rounded


exp, expm1, log, log1p = map(_rounded, ("exp", "expm1", "log", "log1p"))


# -- sums


@_strict
def magnitude(x):
    """The bits of |x|: as integers in the order of the numbers, then infinity, then NaN."""
    return float_to_bits(abs(x))


@_strict
def number(magnitude, wide):
    """The number of a `magnitude`, as float64."""
    if wide:
        return bits_to_float(np.int64(magnitude))
    return np.float64(bits_to_float(np.int32(magnitude)))


@_strict
def half_scale(largest, wide):
    """2^300 or 2^-300 beyond the range in which float64 has all products of slices, else 1."""
    if wide and largest > 2.0**400:
        return 2.0**300
    if wide and largest < 2.0**-400:
        return 2.0**-300
    return 1.0


@_strict
def unit_of(width):
    """2^-width, of which slices of so many bits have each to the one before."""
    return bits_to_float(np.int64(1023 - width) << np.int64(52))


@_strict
def first_shift(largest, half, unit):
    """What cuts the first slice off, as in `xnet.exact.cut`; the next one's is `unit` of it."""
    p = largest / half / half
    q = p * 2.0**53
    power = abs((q + p) - q)
    return (p if power == 0 else power) * (1.5 * 2.0**52 * unit)


@_strict
def _sum_of_infinities(a):
    """What the infinities and NaN among a (n,) make of its sum, in any order."""
    total = a.dtype.type(0)
    for j in range(a.size):
        if not abs(a[j]) < np.inf:
            total += a[j]
    return total


@_strict
def sum_slices(terms, wide):
    """`exact.sum_slices`: how many slices a sum takes, and of how many bits each."""
    length = 0
    while (terms - 1) >> length > 0:
        length += 1
    bits = min(51, 53 - length)
    digits = 53 if wide else 24
    return (digits + length + bits - 1) // bits, bits


CHUNK, MOST_SLICES = 64, 16
"""Numbers of a sum that are cut at a time, and slices that no sum has: 2^45 terms have 13."""
ROOM = 2 * CHUNK + MOST_SLICES


@_serial
def _total(a):
    """Of numbers whose sum is exact, in whatever order."""
    total = 0.0
    for j in range(a.size):
        total += a[j]
    return total


@_strict
def row_sum(a):
    """`exact.sum` of a (n,)."""
    wide = a.itemsize == 8
    top = magnitude(a[0])
    for j in range(a.size):
        top = max(top, magnitude(a[j]))
    largest = number(top, wide)
    if not largest < np.inf:
        return _sum_of_infinities(a)
    count, bits = sum_slices(a.size, wide)
    unit, half = unit_of(bits), half_scale(largest, wide)
    back, first = 1.0 / half, first_shift(largest, half, unit)
    room = carray(pointer_to(0.0, room_on_stack(ROOM)), ROOM)
    rest, part, sums = room[:CHUNK], room[CHUNK : 2 * CHUNK], room[2 * CHUNK :]
    sums[:count] = 0.0
    for start in range(0, a.size, CHUNK):
        size, shift = min(CHUNK, a.size - start), first
        for j in range(size):
            rest[j] = np.float64(a[start + j]) * back * back
        for s in range(count):
            for j in range(size):
                cut = (rest[j] + shift) - shift
                part[j] = cut
                rest[j] -= cut
            sums[s] += _total(part[:size])
            shift *= unit
    total = 0.0
    for s in range(count - 1, -1, -1):
        total = sums[s] + total
    return a.dtype.type(total * half * half)
