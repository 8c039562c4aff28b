# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""What compiled loops of reproducible mode take: `xnet.exact` in compiled form, bit for bit.

Nothing here lets the compiler reorder or contract an operation.
"""

import numba
import numpy as np

from xnet_numba.compiling import _strict
from xnet_numba.elementary import PRIMITIVES, written
from xnet_numba.generated import function
from xnet_numba.intrinsics import bits_to_float, float_to_bits


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
def sum_row(a, unit, rest, slices):
    """`exact.sum` of a (n,) in `slices` whose widths are `unit`, a power of two, of each other."""
    top = magnitude(a[0])
    for j in range(a.size):
        top = max(top, magnitude(a[j]))
    largest = number(top, a.itemsize == 8)
    if not largest < np.inf:
        return _sum_of_infinities(a)
    half = half_scale(largest, a.itemsize == 8)
    back = 1.0 / half
    shift = first_shift(largest, half, unit)
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
def sum_slices(terms, wide):
    """`exact.sum_slices`: how many slices a sum takes, and of how many bits each."""
    length = 0
    while (terms - 1) >> length > 0:
        length += 1
    bits = min(51, 53 - length)
    digits = 53 if wide else 24
    return (digits + length + bits - 1) // bits, bits


@_strict
def row_sum(a):
    """`exact.sum` of a (n,)."""
    count, bits = sum_slices(a.size, a.itemsize == 8)
    return sum_row(a, 2.0**-bits, np.empty(a.size), np.empty(count))
