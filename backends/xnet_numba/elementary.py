# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""exp, 2^y and log in float64 for compiled loops: no branch, no call, so that LLVM vectorises them.

Each serves the ranges that the loss has, and says which; `kernels._exp` serves every number.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numba
import numpy as np
from numba.extending import overload

from xnet_numba.kernels import _bits_to_float, _float_to_bits

SHIFTER = 1.5 * 2.0**52
"""A float64 of that size has the spacing 1: adding it rounds to an integer, in the last bits."""
SHIFTER_BITS = np.int64(np.array(SHIFTER).view(np.int64))
SQRT_HALF_BITS = np.int64(np.array(math.sqrt(0.5)).view(np.int64))
LN2_HIGH = math.floor(math.log(2) * 2.0**32) / 2.0**32
LN2_LOW = (math.log(2) - LN2_HIGH) + 2.3190468138462996e-17
ATANH = tuple(2.0 / (2 * k + 1) for k in range(12, 0, -1))


def economised(degree, unit):
    """Coefficients, the highest first, of a polynomial in r for 2^(r / unit), |r| <= unit / 2.

    Taylor's polynomial with 12 terms more, in exact fractions; each term too many is then taken
    off as a multiple of its Chebyshev polynomial, which spreads the error evenly over the range
    (economisation: Lanczos 1938; Numerical Recipes §5.11). What remains is about
    (ln 2 / 2)^(n + 1) / (2^n (n + 1)!): 3e-18 at degree n = 11, a fortieth of the last place.
    """
    with localcontext() as context:
        context.prec = 60
        half = Fraction(Decimal(2).ln()) / 2
    chebyshev = [[Fraction(1)], [Fraction(0), Fraction(1)]]
    p = [Fraction(1)]  # in s = 2 r / unit, which goes from -1 to 1
    for k in range(1, degree + 13):
        p.append(p[-1] * half / k)
        twice = [Fraction(0), *(2 * c for c in chebyshev[k])]
        chebyshev.append([a - b for a, b in zip(twice, [*chebyshev[k - 1], 0, 0], strict=True)])
    while len(p) > degree + 1:
        term = chebyshev[len(p) - 1]
        p = [a - p[-1] / term[-1] * b for a, b in zip(p[:-1], term[:-1], strict=True)]
    return tuple(float(c * (2 / Fraction(unit)) ** k) for k, c in enumerate(p))[::-1]


def _exp2(y):
    raise NotImplementedError  # compiled code only: see the overload


@overload(_exp2, fastmath={"contract"})
def _exp2_overload(y):
    """2^y for |y| <= 1000: y = n + r, |r| <= 1/2, and n is added to the exponent of 2^r."""
    first, *rest = economised(11, 1)
    coefficients = tuple(rest)

    def exp2(y):
        shifted = y + SHIFTER
        r = y - (shifted - SHIFTER)
        p = first
        for c in numba.literal_unroll(coefficients):
            p = p * r + c
        return _bits_to_float(_float_to_bits(p) + (_float_to_bits(shifted) << np.int64(52)))

    return exp2


def _exp_to_500(x):
    raise NotImplementedError  # compiled code only: see the overload


@overload(_exp_to_500, fastmath={"contract"})
def _exp_to_500_overload(x):
    """exp of a float64 of at most 500; below -707 it stays at exp(-707), below 1e-307.

    Such a number is added to a sum of at least 1 or to 1e-7, where it leaves no trace.
    """
    log2e = 1 / math.log(2)
    first, *rest = economised(11, math.log(2))
    coefficients = tuple(rest)

    def exp(x):
        x = -707.0 if x < -707.0 else x
        shifted = x * log2e + SHIFTER
        n = shifted - SHIFTER
        r = (x - n * LN2_HIGH) - n * LN2_LOW
        p = first
        for c in numba.literal_unroll(coefficients):
            p = p * r + c
        return _bits_to_float(_float_to_bits(p) + (_float_to_bits(shifted) << np.int64(52)))

    return exp


def _log(x):
    raise NotImplementedError  # compiled code only: see the overload


@overload(_log, fastmath={"contract"})
def _log_overload(x):
    """log of a positive, normal float64, or NaN: x = 2^n m, 1/sqrt(2) <= m < sqrt(2).

    log m is 2 atanh((m - 1) / (m + 1)) by its Taylor series, whose remainder after the 12th term
    is below 2^-60; n is made a float by its bits, for vectors convert no integers on most CPUs.
    """

    def log(x):
        bits = _float_to_bits(x)
        n = (bits - SQRT_HALF_BITS) >> np.int64(52)
        m = _bits_to_float(bits - (n << np.int64(52)))
        power = _bits_to_float(SHIFTER_BITS + n) - SHIFTER
        s = (m - 1.0) / (m + 1.0)
        z = s * s
        p = 0.0
        for c in numba.literal_unroll(ATANH):
            p = (p + c) * z
        nothing = x - x  # 0, or NaN where x is: by its bits it would pass for a number
        return power * LN2_HIGH + (2.0 * s + (s * p + power * LN2_LOW)) + nothing

    return log
