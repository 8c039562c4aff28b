# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""exp, expm1, log and log1p for compiled loops: no branch, no call, so that LLVM vectorises them.

`exp`, `expm1`, `log` and `log1p` serve every number of both precisions, in fast mode. `exp` has a
polynomial for each precision; the others are the formulas of `xnet.exact`, in float64. `_exp2`
serves, in float64, the range that the numerical gradient's loss has. `exactly` has those of
reproducible mode.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numba
import numpy as np
from numba import types
from numba.extending import overload

from xnet import exact
from xnet.formulas import Python, Trace, lines, trace
from xnet_numba.intrinsics import bits_to_float, float_to_bits

SHIFTER = 1.5 * 2.0**52
"""A float64 of that size has the spacing 1: adding it rounds to an integer, in the last bits."""
SHIFTER_BITS = np.int64(np.array(SHIFTER).view(np.int64))


def economised(degree):
    """Coefficients, the highest first, of a polynomial in r for 2^r, |r| <= 1/2.

    Taylor's polynomial with 12 terms more, in exact fractions; each term too many is then taken
    off as a multiple of its Chebyshev polynomial, which spreads the error evenly over the range
    (economisation: Lanczos 1938; Numerical Recipes §5.11). What remains is about
    (ln 2 / 2)^(n + 1) / (2^n (n + 1)!): 3e-18 at degree n = 11, a fortieth of the last place.
    """
    with localcontext() as context:
        context.prec = 60
        half = Fraction(Decimal(2).ln()) / 2
    chebyshev = [[Fraction(1)], [Fraction(0), Fraction(1)]]
    p = [Fraction(1)]  # in s = 2 r, which goes from -1 to 1
    for k in range(1, degree + 13):
        p.append(p[-1] * half / k)
        twice = [Fraction(0), *(2 * c for c in chebyshev[k])]
        chebyshev.append([a - b for a, b in zip(twice, [*chebyshev[k - 1], 0, 0], strict=True)])
    while len(p) > degree + 1:
        term = chebyshev[len(p) - 1]
        p = [a - p[-1] / term[-1] * b for a, b in zip(p[:-1], term[:-1], strict=True)]
    return tuple(float(c * 2**k) for k, c in enumerate(p))[::-1]


def _exp2(y):
    raise NotImplementedError  # compiled code only: see the overload


@overload(_exp2, fastmath={"contract"})
def _exp2_overload(y):
    """2^y for |y| <= 1000: y = n + r, |r| <= 1/2, and n is added to the exponent of 2^r."""
    first, *rest = economised(11)
    coefficients = tuple(rest)

    def exp2(y):
        shifted = y + SHIFTER
        r = y - (shifted - SHIFTER)
        p = first
        for c in numba.literal_unroll(coefficients):
            p = p * r + c
        return bits_to_float(float_to_bits(p) + (float_to_bits(shifted) << np.int64(52)))

    return exp2


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
        power = int_type(float_to_bits(shifted) - float_to_bits(shifter))
        half = int_type(power >> one)
        scale = bits_to_float(int_type((half + bias) << shift))
        rescale = bits_to_float(int_type((power - half + bias) << shift))
        return p * scale * rescale

    return exp


def _exp(x):
    raise NotImplementedError  # compiled code only: see the overload


@overload(_exp, fastmath={"contract"})
def _exp_overload(x):
    if x == types.float32:
        return _exp_implementation(np.float32, np.int32, 23, 127, -104.0, 89.0, 7)
    return _exp_implementation(np.float64, np.int64, 52, 1023, -746.0, 710.0, 13)


# -- the formulas of xnet.exact


@numba.njit(forceinline=True)
def scale(a, n):
    """A 2^n, rounded once, for an integer n in [-1080, 1030]."""
    power = float_to_bits(n + SHIFTER) - SHIFTER_BITS
    half = power >> np.int64(1)
    first = bits_to_float((half + np.int64(1023)) << np.int64(52))
    return a * first * bits_to_float((power - half + np.int64(1023)) << np.int64(52))


@numba.njit(forceinline=True)
def fraction(x):
    """Of a positive, finite x = a 2^n, a in [1/2, 1)."""
    bits = float_to_bits(x * 2.0**200 if x < 2.0**-900 else x)
    mantissa = bits & np.int64(0xFFFFFFFFFFFFF)
    return bits_to_float(mantissa | (np.int64(1022) << np.int64(52)))


@numba.njit(forceinline=True)
def exponent(x):
    """And n, made a float by its bits: vectors convert no integers on most processors."""
    small = x < 2.0**-900
    bits = float_to_bits(x * 2.0**200 if small else x)
    n = bits_to_float(SHIFTER_BITS + ((bits >> np.int64(52)) - np.int64(1022))) - SHIFTER
    return n - 200.0 if small else n


def written(name):
    """Source of one of `exact.ELEMENTARY`, as a function of that name of a float64."""
    formula = trace(exact.ELEMENTARY[name], "x", m=Trace(("scale",)))
    body, (result,) = lines(Python, formula)
    text = [f"def {name}(x):", "    kind = np.float64", *(f"    {line}" for line in body)]
    return "\n".join([*text, f"    return {result}", ""])


PRIMITIVES = "from xnet_numba.elementary import exponent, fraction, scale\n\n\n"


def _wide(name):
    """The formula for numbers of either precision, computed in float64; fused where that pays."""
    from xnet_numba.generated import function

    source, options = PRIMITIVES + written(name), {"fastmath": {"contract"}, "error_model": "numpy"}
    wide = function(source, name, forceinline=True, **options)

    @numba.njit(forceinline=True)
    def narrowed(x):
        return type(x)(wide(np.float64(x)))

    return narrowed


@numba.njit(forceinline=True)
def exp(x):
    """e^x."""
    return _exp(x)


expm1, log, log1p = map(_wide, ("expm1", "log", "log1p"))
