"""The hard cases of `xnet.arithmetic`, found by exact integers, with what they have to give.

python tests/make_arithmetic.py

A way to divide or to take a root that does not round correctly is nearly right: most numbers do not
tell it from a right one. So the cases are searched for among those whose exact result is as close
to the middle between two neighbours as it can be, on either side. Nothing here divides, multiplies
or takes roots of floating-point numbers.
"""

import math
import random
from fractions import Fraction

FORMATS = {"float32": (24, -149, 128), "float64": (53, -1074, 1024)}
"""Bits of a significand, the exponent of the smallest number, and that beyond the largest."""


def rounded(value, dtype, zero=0.0):
    """A fraction rounded to nearest, ties to even; `zero` with its sign if that is 0."""
    bits, lowest, highest = FORMATS[dtype]
    if value == 0:
        return zero
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    unit = max(exponent - bits + 1, lowest)
    whole = round(size / Fraction(2) ** unit)  # of fractions Python rounds halves to even
    number = math.inf if whole >= 2 ** (highest - unit) else float.fromhex(f"{whole:#x}p{unit}")
    return -number if value < 0 else number


def _root(x, dtype):
    """The square root of a fraction, rounded: from the whole root of a shifted whole number."""
    shift = 2 * (2 * FORMATS[dtype][0] + 600)
    scaled = x * Fraction(2) ** shift
    assert scaled.denominator == 1
    root = math.isqrt(scaled.numerator)
    sticky = root * root != scaled.numerator  # a little more than that, and less than 1 more
    return rounded(Fraction(2 * root + sticky, 2) / Fraction(2) ** (shift // 2), dtype)


def _sign_of_zero(*factors):
    return -0.0 if sum(math.copysign(1, v) < 0 for v in factors) % 2 else 0.0


def sum_of(dtype, a, b):
    """The sum a + b."""
    zero = -0.0 if (math.copysign(1, a), math.copysign(1, b)) == (-1, -1) else 0.0
    return rounded(Fraction(a) + Fraction(b), dtype, zero)


def product(dtype, a, b):
    """The product a b."""
    return _signed(rounded(Fraction(a) * Fraction(b), dtype), a, b)


def quotient(dtype, a, b):
    """The quotient a / b."""
    return _signed(rounded(Fraction(a) / Fraction(b), dtype), a, b)


def _signed(number, a, b):
    """A product or quotient with its sign, which 0 has as well."""
    return math.copysign(number, _sign_of_zero(a, b)) if number == 0 else number


def root(dtype, a):
    """The square root of a."""
    return _root(Fraction(a), dtype) if a else a


def product_and_sum(dtype, a, b, c):
    """The sum a b + c, the product rounded first."""
    return sum_of(dtype, product(dtype, a, b), c)


def fused(dtype, a, b, c):
    """The sum a b + c, rounded once."""
    return rounded(Fraction(a) * Fraction(b) + Fraction(c), dtype)


EXACT = {
    "addition": sum_of,
    "multiplication": product,
    "division": quotient,
    "division by 3": lambda dtype, a: quotient(dtype, a, 3.0),
    "square root": root,
    "a * b + c": product_and_sum,
}
"""By name, with the dtype and the numbers as arguments."""


# -- the search


def _scaled(whole, exponent):
    return float.fromhex(f"{whole:#x}p{exponent}")


def quotients(dtype, bits, rng, side=1):
    """Whole a, b and s, without end: a / b is as near to q 2^-s as can be, q odd, of so many bits.

    By turns above and below: a 2^s = q b + 1 or q b - 1, so q = -1 / b or 1 / b modulo 2^s.
    """
    digits = FORMATS[dtype][0]
    while True:
        b = rng.randrange(1 << (digits - 1), 1 << digits) | 1
        for s in (bits - 1, bits):
            q = -side * pow(b, -1, 1 << s) % (1 << s)
            a = q * b + side >> s
            if q.bit_length() == bits and a.bit_length() == digits:
                yield a, b, s
                side = -side
                break


def roots(dtype):
    """Whole x, k: the root of x 2^k is as near to an odd y of a bit too many as can be.

    x 2^k = y^2 - r with a small r, which has a root modulo 2^k if it is 1 modulo 8.
    """
    digits = FORMATS[dtype][0]
    for r in (-7, 9, 17, -15, 25, -23, 33, -31):
        for k in (digits + 1, digits + 2):
            y = 1
            for j in range(3, k):  # from a root modulo 2^j to one modulo 2^(j + 1)
                y += ((y * y - r >> j) & 1) << (j - 1)
            half = 1 << (k - 1)
            for candidate in sorted({y, -y % (2 * half), (y + half) % (2 * half), half - y % half}):
                x = candidate * candidate - r >> k
                if candidate.bit_length() == digits + 1 and x.bit_length() in (digits, digits - 1):
                    yield x, k


def products(dtype, rng):
    """Whole a and b of all bits, without end: a b is as near to the middle as can be.

    a b = 2^(d - 1) + 1 or - 1 modulo 2^d, where d bits are dropped.
    """
    digits, side = FORMATS[dtype][0], 1
    while True:
        a = rng.randrange(1 << (digits - 1), 1 << digits) | 1
        for dropped in (digits, digits - 1):
            b = ((1 << (dropped - 1)) + side) * pow(a, -1, 1 << dropped) % (1 << dropped)
            b += 1 << (digits - 1) if dropped < digits else 0
            if b.bit_length() == digits and (a * b).bit_length() == digits + dropped:
                yield a, b
                side = -side
                break


def products_rounded_twice(dtype, bits, rng):
    """Whole a and b of all bits, and n, without end: rounded to all bits, a b is an odd number of
    so many bits times 2^n, and it is a little more or less than that.
    """
    digits, side = FORMATS[dtype][0], 1
    while True:
        a = rng.randrange(1 << (digits - 1), 1 << digits) | 1
        middle, n = rng.randrange(1 << (bits - 1), 1 << bits) | 1, 2 * digits - bits
        b = round(Fraction(middle << n, a))
        rest = a * b - (middle << n)
        if b.bit_length() == digits and 0 < side * rest < 1 << (digits - 3):
            yield a, b, n
            side = -side


def take(count, cases):
    """The first of them."""
    return [case for _, case in zip(range(count), cases, strict=False)]


def reciprocal(dtype, a, b):
    """The wrong way to divide: by the rounded inverse."""
    inverse = rounded(1 / Fraction(b), dtype)
    return rounded(Fraction(a) * Fraction(inverse), dtype)


def arguments(dtype):
    """The numbers that each operation is tried on, so that neighbours are of different kinds."""
    digits, lowest, highest = FORMATS[dtype]
    tiny, normal = 2.0**lowest, 2.0 ** (lowest + digits - 1)
    ulp, largest = 2.0 ** (1 - digits), (2 - 2.0 ** (1 - digits)) * 2.0 ** (highest - 1)
    rng = random.Random(dtype)

    divided = []
    while len(divided) < 8:
        a, b, _ = next(quotients(dtype, digits + 1, rng, (-1) ** len(divided)))
        a, b = float(a), float(b)
        if reciprocal(dtype, a, b) != quotient(dtype, a, b):
            divided.append((a, b) if len(divided) % 3 else (-a, b * 2.0 ** (8 - digits)))
    for bits in (digits // 2, digits - 3):  # wrong if rounded to all bits and then once more
        for a, b, s in take(2, quotients(dtype, bits, rng)):
            down = lowest - 1 + s
            divided.insert(2, (_scaled(a, down // 2), _scaled(b, down // 2 - down)))
    divided += [(3 * tiny, 2.0), (5 * tiny, 3 * tiny), (1.0, largest), (-normal, 3.0), (1.0, 3.0)]
    divided += [(tiny, -largest), (0.0, -3.0), (largest, 0.5)]

    thirds = [(3 * tiny,), (-4 * tiny,), (-normal,)]
    while len(thirds) < 11:
        a = float(rng.randrange(1 << (digits - 1), 1 << digits))
        if reciprocal(dtype, a, 3.0) != quotient(dtype, a, 3.0):
            thirds.insert(0, (a,))

    rooted = []
    for x, k in roots(dtype):
        shift = (k % 2) + 2 * rng.randrange(-40, 40)
        rooted.append((_scaled(x, shift),))
    rooted = rooted[:12]
    rooted[2:2] = [(3 * tiny,), (2.0,)]
    rooted[6:6] = [(7 * tiny,), (largest,), (-0.0,), (0.0,)]

    multiplied = []
    for a, b in take(6, products(dtype, rng)):
        multiplied.append((_scaled(a, 3 - digits), _scaled(b, -9 - digits)))
    for bits in (digits // 2, digits - 3):  # rounded twice if at first to all bits
        for a, b, n in take(2, products_rounded_twice(dtype, bits, rng)):
            down = lowest - 1 - n
            multiplied.insert(2, (-_scaled(a, down // 2), _scaled(b, down - down // 2)))
    odd = (1 << digits // 2) + 1, (1 << (digits - digits // 2)) - 1
    multiplied += [(float(odd[0]), float(odd[1] | 1)), (3 * tiny, 0.5), (tiny, 0.5), (-tiny, 0.75)]
    multiplied += [(3 * tiny, 3.0), (normal, 1 - ulp / 2), (largest, 1 + ulp), (-tiny, tiny)]

    added = [(1.0, ulp / 2), (3 * tiny, -tiny), (1 + ulp, ulp / 2), (normal, -tiny)]
    added += [(1.0, ulp / 2 * (1 + 2.0**-12)), (-tiny, -tiny), (1.0, ulp / 4 + tiny), (tiny, 1.0)]
    added += [(1 + ulp, -ulp * (0.5 - 2.0**-12)), (normal, tiny), (-1.0, ulp / 4), (-1.0, ulp / 8)]
    added += [(1.5, -1.5), (-0.0, -0.0), (-0.0, 0.0), (largest, 2.0 ** (highest - digits - 1))]
    added += [(largest, -largest * ulp / 8), (1.5 * normal, -normal), (-normal, 1.25 * normal)]

    contracted = []
    while len(contracted) < 8:
        a, b = (_scaled(rng.randrange(1 << (digits - 1), 1 << digits), 1 - digits) for _ in "ab")
        c = -product(dtype, a, b) if len(contracted) % 2 else -rounded(Fraction(a * 3), dtype)
        if fused(dtype, a, b, c) != product_and_sum(dtype, a, b, c):
            contracted.append((a, b, c))
    found = added, multiplied, divided, thirds, rooted, contracted
    return dict(zip(EXACT, found, strict=True))


def written(number):
    """A number as `float.hex` has it, without the zeros at its end."""
    sign, _, rest = float(number).hex().partition("0x")
    digits, _, exponent = rest.partition("p")
    return f"{sign}0x{digits.rstrip('0').rstrip('.')}p{exponent}" if rest else sign


def table(name, dtype):
    """The rows of an operation: its arguments, and what they have to give."""
    rows = [(*row, EXACT[name](dtype, *row)) for row in arguments(dtype)[name]]
    return [" ".join(map(written, row)) for row in rows]


if __name__ == "__main__":
    for name in EXACT:
        print(f'    "{name}": {{')
        for dtype in FORMATS:
            print(f'        "{dtype}": """')
            print("".join(f"            {row}\n" for row in table(name, dtype)), end="")
            print('        """,')
        print("    },")
