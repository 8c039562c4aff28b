"""The order-free product and sum, and exp and log from exact steps: reproducible mode.

Rounding makes a sum depend on its order, and BLAS libraries, thread counts and GPUs all choose
different orders. So the order is not fixed here: every partial sum is made exact, and then its
order does not matter. What is left to round is added in one written order.

**Slices** (Rump, Ogita & Oishi 2008, "Accurate floating-point summation", section 3). Let L be a
power of two with |a| <= L, and s = 1.5 2^52 w L for a width w = 2^-beta, beta <= 51. Every number
near s is a multiple of w L, so q = (a + s) - s is `a` rounded to a multiple of w L, and a - q is
exact and at most w L / 2. Doing the same to a - q with w^2, and so on, cuts `a` into slices: the
first is an integer of at most 2^beta in units of w L, the t-th one of at most 2^(beta - 1) in
units of w^t L.

**Product** (Ozaki, Ogita, Oishi & Rump 2012, "Error-free transformations of matrix
multiplication by using fast routines of matrix multiplication"). With one L for each row of A and
for each column of B, an element of A_s B_t is a sum of K integers in one unit, w^(s + t) L L'. So
are all the A_s B_t of one order s + t; together they are sums of at most K (1 + (S - 2) / 4)
2^(2 beta), where S is the number of slices. `product_slices` chooses beta to keep that within 2^53:
then float64 holds every partial sum exactly, in any order, any blocking, with or without fused
multiply-adds, and any BLAS gives the same bits at its full speed. Orders beyond S + 1 are dropped;
the others are rounded once each and added, the smallest first.

**Rounding.** With u = 2^-24 or 2^-53 for float32 and float64, an element of the product differs
from the exact one by at most

    u |c| + 8 K 2^(-S beta) max|row of A| max|column of B|

and by the rounding of a subnormal result (what is cut off and dropped is at most 2 K 2^(-S beta)
L L', and L is below twice the maximum). Plain BLAS has K u sum |a| |b| in place of the second term.
S beta is at least 42 and 63 for K up to 1,638, where the second term is at most 2^-15 K u max max
in float32 and 2^-7 K u max max in float64; for longer products it is at least 32 and 60. So plain
BLAS can be the better one only where the numbers of a row and of a column that do meet are, in
their products, that much smaller than max max.

**Range.** float32 is cut in float64, whose exponents hold all products of slices. In float64, rows
and columns whose largest element is beyond 2^400 or below 2^-400 are first scaled by 2^-600 or
2^600, and the result is scaled back.

**Zeros, infinities, NaN.** A sum that is 0 is +0. Subnormals are numbers as any other. What is not
finite takes part as in IEEE 754: a result is NaN if one of its terms is, or if it has terms of
both inf and -inf; else it is the infinity among its terms.
"""

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, TypeAlias

from xnet.dtypes import name_of
from xnet.formulas import Mathematics

Array: TypeAlias = Any
Namespace: TypeAlias = Any
Maths: TypeAlias = Any

ACCURATE_BITS = {"float32": 32, "float64": 60}
"""Bits, at least, that the slices of a product keep below the largest element of a row."""

LARGEST_PIECE = 1 << 17
"""Numbers, at most, in the rows of a product that are cut at a time: 1 MiB a slice."""

WORTH_LOOKING, LEFT_OUT_BELOW = 1 << 14, 0.9
"""Numbers of a left factor from which it is looked through for rows and columns of zeros, and the
share of others below which these are left out."""

DIGITS = {"float32": 24, "float64": 53}
"""Bits of a significand."""

NARROW = {"float16": (11, -14), "bfloat16": (8, -126)}
"""Those of precisions too narrow to compute in, and the exponents of their least normal numbers."""


# -- what is taken


def precision(a: Array) -> str:
    """``"float32"`` or ``"float64"``: that of `a`, in whichever byte order.

    Raises
    ------
    TypeError
        `a` is of another dtype.
    """
    name = name_of(a)
    if name not in DIGITS:
        raise TypeError(f"reproducible mode takes float32 and float64, not {name}")
    return name


def check_product(a: Array, b: Array) -> str:
    """The `precision` of a and b, which must be (N, K) and (K, M) and of one dtype."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(
            f"matmul: a has shape {tuple(a.shape)}, b has {tuple(b.shape)}, "
            "expected (N, K) and (K, M)"
        )
    dtype, other = precision(a), precision(b)
    if dtype != other:
        raise TypeError(f"matmul: a is {dtype}, b is {other}, expected one dtype")
    return dtype


def checked_axes(
    a: Array, axis: int | tuple[int, ...] | None, function: str = "sum", name: str = "a"
) -> tuple[int, ...]:
    """The axes of `a` that `axis` means, from 0: all of them for None.

    Raises
    ------
    ValueError
        `a` has no such axis, or one is named twice.
    TypeError
        `axis` is no whole number.
    """
    if axis is None:
        return tuple(range(a.ndim))
    try:
        given = tuple(map(operator.index, axis if isinstance(axis, tuple) else (axis,)))
    except TypeError as error:
        expected = "expected an int, a tuple of them, or None"
        raise TypeError(f"{function}: axis is {axis!r}, {expected}") from error
    if not all(-a.ndim <= k < a.ndim for k in given):
        raise ValueError(f"{function}: axis is {axis}, {name} has {a.ndim} axes")
    found = tuple(k % a.ndim for k in given)
    if len(set(found)) < len(found):
        raise ValueError(f"{function}: axis is {axis}, one of them twice")
    return found


# -- slices


def product_slices(contracted: int, dtype: str) -> tuple[int, int]:
    """How many slices a product over `contracted` terms takes, and of how many bits each.

    The fewest that keep `ACCURATE_BITS`: two for float32 up to a length of 2^21, three for
    float64 up to 6,553. A length above 2^47 is a ValueError.
    """
    slices = 2
    while True:
        most = math.ceil(contracted * (slices + 2) / 4)
        bits = (53 - (most - 1).bit_length()) // 2
        if bits < 1:
            raise ValueError(f"a product over {contracted:,} terms is too long, at most 2^47 are")
        if slices * bits >= ACCURATE_BITS[dtype]:
            return slices, bits
        slices += 1


def sum_slices(terms: int, dtype: str) -> tuple[int, int]:
    """How many slices a sum of `terms` takes, and of how many bits each.

    Sums of slices of 53 - ceil(log2(terms)) bits are exact. There are enough of them for what is
    cut off, at most terms 2^(-slices bits) max|a|, to be below u max|a|.
    """
    bits = min(51, 53 - (terms - 1).bit_length())
    return math.ceil((DIGITS[dtype] + (terms - 1).bit_length()) / bits), bits


def power_of_two(xp: Namespace, p: Array) -> Array:
    """The smallest power of two that is at least p, for p in [0, 2^970); 0 for 0.

    NextPowerTwo of Rump, Ogita & Oishi 2008, algorithm 3.5: two roundings do it.
    """
    q = p * 2.0**53
    power = xp.abs((q + p) - q)
    return xp.where(power == 0, p, power)


def cut(xp: Namespace, a: Array, largest: Array, slices: int, bits: int) -> list[Array]:
    """`a`, float64, in slices of `bits` bits below the power of two `largest`."""
    parts: list[Array] = []
    for s in range(1, slices + 1):
        shift = largest * (1.5 * 2.0 ** (52 - bits * s))
        part = a + shift
        part -= shift
        parts.append(part)
        if s < slices:
            a = a - part
    return parts


def largest_along(xp: Namespace, a: Array, axis: int | tuple[int, ...] | None) -> Array:
    """max|a| along `axis`, kept as an axis of length 1, without a copy of `a`."""
    return xp.maximum(xp.max(a, axis=axis, keepdims=True), -xp.min(a, axis=axis, keepdims=True))


def in_range(
    xp: Namespace, a: Array, largest: Array, dtype: str
) -> tuple[Array, Array, Array | None]:
    """`a` and its `largest` as float64, and twice by what results are to be multiplied.

    Where numbers of float64 are out of range both are divided by a power of two first, whose root
    that is; else it is None.
    """
    half = None
    if dtype == "float64" and _beyond(xp, largest):
        half = _half_scale(xp, largest)
        a, largest = a / half / half, largest / half / half
    a = xp.astype(a, xp.float64, copy=False)
    return a, xp.astype(largest, xp.float64, copy=False), half


def _half_scale(xp: Namespace, largest: Array) -> Array:
    """2^300, 1 or 2^-300: the root of the factor by which the range of float64 was left."""
    one = xp.ones_like(largest)
    low = xp.where(largest < 2.0**-400, one * 2.0**-300, one)
    return xp.where(largest > 2.0**400, one * 2.0**300, low)


def _beyond(xp: Namespace, largest: Array) -> bool:
    """Whether there is a number that leaves the range in which no slice is lost."""
    return bool(xp.any((largest > 2.0**400) | ((largest < 2.0**-400) & (largest > 0))))


def _every_finite(xp: Namespace, *arrays: Array) -> bool:
    return all(bool(xp.all(xp.isfinite(array))) for array in arrays)


# -- product


def matmul(xp: Namespace, a: Array, b: Array) -> Array:
    """Matrix product (N, K) by (K, M), the same bits whatever `xp.matmul` does.

    Parameters
    ----------
    xp
        The array namespace.
    a, b
        Both float32 or both float64.

    Returns
    -------
    Array
        (N, M), the dtype of a. See the module's text for how it is rounded.

    Raises
    ------
    ValueError
        Shapes that do not fit.
    TypeError
        Dtypes that differ, or are neither float32 nor float64.
    """
    return _product(xp, a, b, check_product(a, b))


def stacked_matmul(xp: Namespace, a: Array, b: Array) -> Array:
    """Matrix products (..., N, K) by (..., K, M), each with the very bits of `matmul`.

    Parameters
    ----------
    xp
        The array namespace.
    a, b
        Both float32 or both float64, at least 2-d. The axes before the last two broadcast.

    Returns
    -------
    Array
        (..., N, M), the dtype of a.
    """
    (*stack_a, n, k), (*stack_b, _, m), dtype = a.shape, b.shape, precision(a)
    if not stack_b:  # one product with all the rows: BLAS likes few and large ones
        rows = _product(xp, xp.reshape(a, (math.prod(stack_a) * n, k)), b, dtype)
        return xp.reshape(rows, (*stack_a, n, m))
    stack = broadcast(stack_a, stack_b)
    count = math.prod(stack)
    a = xp.reshape(xp.broadcast_to(a, (*stack, n, k)), (count, n, k))
    b = xp.reshape(xp.broadcast_to(b, (*stack, k, m)), (count, k, m))
    some = max(1, LARGEST_PIECE // max(n * k, k * m, 1))
    pieces: list[Array] = []
    for start in range(0, max(count, 1), some):
        stop = min(start + some, count)
        pieces.append(_product(xp, a[start:stop, ...], b[start:stop, ...], dtype))
    return xp.reshape(xp.concat(pieces, axis=0), (*stack, n, m))


def dot(xp: Namespace, a: Array, b: Array) -> Array:
    """Sums of products along the last axis, (..., 1): the very bits of `matmul`, row by column.

    Parameters
    ----------
    xp
        The array namespace.
    a, b
        (..., K), of one shape, both float32 or both float64.
    """
    dtype = precision(a)
    if 0 in a.shape:
        return xp.sum(a, axis=-1, keepdims=True)
    largest_a, largest_b = largest_along(xp, a, -1), largest_along(xp, b, -1)
    if not _every_finite(xp, largest_a, largest_b):
        rows, columns = xp.expand_dims(a, axis=-2), xp.expand_dims(b, axis=-1)
        return xp.squeeze(stacked_matmul(xp, rows, columns), axis=-1)
    slices, bits = product_slices(a.shape[-1], dtype)
    parts_a, half_a = _sliced(xp, a, largest_a, dtype, slices, bits)
    parts_b, half_b = _sliced(xp, b, largest_b, dtype, slices, bits)
    products = [
        xp.concat([xp.sum(p * q, axis=-1, keepdims=True) for q in parts_b[: slices - s]], axis=-1)
        for s, p in enumerate(parts_a)
    ]
    return rounded(xp, _orders(products, slices, 1), _scaled_back(half_a, half_b), dtype)


def broadcast(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """The shape to which two shapes broadcast; ValueError if they do not."""
    length = max(len(one), len(other))
    pairs = list(zip(*((*[1] * (length - len(v)), *v) for v in (one, other)), strict=True))
    if any(v != w and 1 not in (v, w) for v, w in pairs):
        raise ValueError(f"{tuple(one)} and {tuple(other)} do not broadcast")
    return tuple(w if v == 1 else v for v, w in pairs)


def _product(xp: Namespace, a: Array, b: Array, dtype: str) -> Array:
    """`matmul` of matrices, or of as many in one stack as in the other."""
    if 0 in (*a.shape, *b.shape):
        shape = (*a.shape[:-1], b.shape[-1])
        return xp.zeros(shape, dtype=getattr(xp, dtype), device=a.device)
    largest_a, largest_b = largest_along(xp, a, -1), largest_along(xp, b, -2)
    if _every_finite(xp, largest_a, largest_b):
        return _without_zeros(xp, a, b, largest_a, largest_b, dtype)
    found = _product(xp, finite_part(xp, a), finite_part(xp, b), dtype)
    return with_specials(xp, found, product_specials(xp, a, b))


def finite_part(xp: Namespace, a: Array) -> Array:
    """`a`, with 0 for what is not finite."""
    return xp.where(xp.isfinite(a), a, xp.zeros_like(a))


def _without_zeros(
    xp: Namespace, a: Array, b: Array, largest_a: Array, largest_b: Array, dtype: str
) -> Array:
    """The product of finite matrices, whose rows and columns of zeros in a (N, K) are left out.

    They change no exact sum. How a and b are cut is what it is for all of them.
    """
    slices = product_slices(a.shape[-1], dtype)
    if a.ndim > 2 or math.prod(a.shape) < WORTH_LOOKING:
        return _finite_matmul(xp, a, b, largest_a, largest_b, dtype, *slices)
    rows, terms = largest_a[:, 0] > 0, largest_along(xp, a, 0)[0, :] > 0
    few_rows, few_terms = (
        int(xp.count_nonzero(v)) < LEFT_OUT_BELOW * v.shape[0] for v in (rows, terms)
    )
    if few_terms:
        kept = xp.nonzero(terms)[0]
        a, b = xp.take(a, kept, axis=1), xp.take(b, kept, axis=0)
    if few_rows:
        kept = xp.nonzero(rows)[0]
        a, largest_a = xp.take(a, kept, axis=0), xp.take(largest_a, kept, axis=0)
    if 0 in a.shape:
        return xp.zeros((*rows.shape, b.shape[1]), dtype=getattr(xp, dtype), device=a.device)
    found = _finite_matmul(xp, a, b, largest_a, largest_b, dtype, *slices)
    if not few_rows:
        return found
    places = xp.cumulative_sum(xp.astype(rows, xp.int64)) - 1
    places = xp.where(rows, places, xp.full_like(places, found.shape[0]))  # the zeros at the end
    return xp.take(xp.concat([found, xp.zeros_like(found[:1, :])]), places, axis=0)


def _finite_matmul(
    xp: Namespace,
    a: Array,
    b: Array,
    largest_a: Array,
    largest_b: Array,
    dtype: str,
    slices: int,
    bits: int,
) -> Array:
    """The product of finite matrices, so many rows at a time that their slices stay in cache."""
    found = [
        rounded(xp, orders, halves, dtype)
        for orders, halves in product_orders(xp, a, b, largest_a, largest_b, dtype, slices, bits)
    ]
    return found[0] if len(found) == 1 else xp.concat(found, axis=-2)


def product_orders(
    xp: Namespace,
    a: Array,
    b: Array,
    largest_a: Array,
    largest_b: Array,
    dtype: str,
    slices: int,
    bits: int,
) -> Iterator[tuple[Iterator[Array], list[Array]]]:
    """Of some rows of the product at a time, what `rounded` takes: the exact sums of each order.

    `largest_a` (..., N, 1) and `largest_b` (..., 1, M) are max|row of a| and max|column of b|, or
    more, as where a and b are parts of longer matrices; slices and bits are for the whole length.
    """
    parts_b, half_b = _sliced(xp, b, largest_b, dtype, slices, bits)
    # One product with all the slices of b that meet a slice of a: BLAS likes few and wide ones.
    wide = [xp.concat(parts_b[: slices - s], axis=-1) for s in range(slices - 1)] + parts_b[:1]
    rows = max(1, LARGEST_PIECE // (math.prod(a.shape) // a.shape[-2]))
    for start in range(0, a.shape[-2], rows):
        piece = slice(start, min(start + rows, a.shape[-2]))
        parts_a, half_a = _sliced(
            xp, a[..., piece, :], largest_a[..., piece, :], dtype, slices, bits
        )
        products = [xp.matmul(*pair) for pair in zip(parts_a, wide, strict=True)]
        yield _orders(products, slices, b.shape[-1]), _scaled_back(half_a, half_b)


def _scaled_back(half_a: Array | None, half_b: Array | None) -> list[Array]:
    """The roots of what a product is to be multiplied by."""
    if half_a is None or half_b is None:
        return [half for half in (half_a, half_b) if half is not None]
    return [half_a * half_b]


def _sliced(
    xp: Namespace, a: Array, largest: Array, dtype: str, slices: int, bits: int
) -> tuple[list[Array], Array | None]:
    """Slices of `a` as `in_range` has it, and twice by what results are to be multiplied."""
    a, largest, half = in_range(xp, a, largest, dtype)
    return cut(xp, a, power_of_two(xp, largest), slices, bits), half


def _orders(products: list[Array], slices: int, columns: int) -> Iterator[Array]:
    """The exact sum of the products of each order, the smallest first.

    Of slice s of a, `products` holds those with the slices of b from the first to the last that it
    meets, side by side, `columns` each.
    """
    for order in range(slices - 1, -1, -1):
        exact = products[0][..., order * columns : (order + 1) * columns]
        for s in range(1, order + 1):
            exact = exact + products[s][..., (order - s) * columns : (order - s + 1) * columns]
        yield exact


def rounded(
    xp: Namespace,
    orders: Iterable[Array],
    halves: Iterable[Array],
    dtype: str,
    divisor: float | None = None,
) -> Array:
    """Exact sums of slices, the smallest first, added up: here, and nowhere before, is rounding.

    The total is divided by `divisor`, multiplied by the square of each of `halves`, and rounded to
    the dtype.
    """
    total = 0.0
    for exact in orders:
        total = exact + total
    if divisor is not None:
        total = total / divisor
    for half in halves:
        total = total * half * half
    return xp.astype(total, getattr(xp, dtype), copy=False)


def product_specials(xp: Namespace, a: Array, b: Array) -> tuple[Array, Array, Array]:
    """How many terms of the product of a (..., N, K) and b (..., K, M) are inf, -inf, NaN.

    They are products of zeros and ones, which are exact.
    """

    def kinds(*masks: Array, axis: int) -> Array:
        return xp.astype(xp.concat(masks, axis=axis), xp.float64)

    def count(left: list[Array], right: list[Array]) -> Array:
        return xp.matmul(kinds(*left, axis=-1), kinds(*right, axis=-2))

    def signs(array: Array) -> list[Array]:
        up, down = array == math.inf, array == -math.inf
        return [up, down, (array > 0) & ~up, (array < 0) & ~down]

    (up_a, down_a, plus_a, minus_a), (up_b, down_b, plus_b, minus_b) = signs(a), signs(b)
    every_a, every_b = xp.ones_like(up_a), xp.ones_like(up_b)
    # Which terms are inf: inf by what is above 0, -inf by what is below, and the other way round.
    left = [up_a, down_a, up_a | plus_a, down_a | minus_a]
    up = count(left, [up_b | plus_b, down_b | minus_b, up_b, down_b])
    down = count(left, [down_b | minus_b, up_b | plus_b, down_b, up_b])
    nan = count(
        [xp.isnan(a), every_a, up_a | down_a, a == 0], [every_b, xp.isnan(b), b == 0, up_b | down_b]
    )
    return up, down, nan


def sum_specials(
    xp: Namespace, a: Array, axes: tuple[int, ...], keepdims: bool = False
) -> tuple[Array, Array, Array]:
    """How many terms of the sums of `a` are inf, -inf, NaN."""
    kinds = (a == math.inf, a == -math.inf, xp.isnan(a))
    counts = (xp.astype(kind, xp.float64) for kind in kinds)
    up, down, nan = (xp.sum(count, axis=axes, keepdims=keepdims) for count in counts)
    return up, down, nan


def with_specials(xp: Namespace, finite: Array, counts: Sequence[Array]) -> Array:
    """`finite`, or inf, -inf or NaN where terms are so, by the counts of each."""
    up, down, nan = (count > 0 for count in counts)

    def constant(value: float) -> Array:
        return xp.asarray(value, dtype=finite.dtype, device=finite.device)

    infinite = xp.where(up, constant(math.inf), xp.where(down, constant(-math.inf), finite))
    return xp.where(nan | (up & down), constant(math.nan), infinite)


# -- sum


def sum(
    xp: Namespace,
    a: Array,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    divisor: float | None = None,
) -> Array:
    """Sum along `axis` or of all, the same bits whatever `xp.sum` does.

    Parameters
    ----------
    xp
        The array namespace.
    a
        float32 or float64.
    axis, keepdims
        As those of the array API.
    divisor
        What the sum is divided by, in float64 and before it is rounded to the dtype of a.

    Returns
    -------
    Array
        The dtype of a; within u |sum| + u max|a| of the exact sum (u = 2^-24 or 2^-53).

    Raises
    ------
    ValueError
        `a` has no such axis.
    TypeError
        `a` is neither float32 nor float64.
    """
    axes, dtype = checked_axes(a, axis), precision(a)
    if not axes:  # sums of one number each, along an axis for that: libraries take no axes for all
        return sum(xp, xp.expand_dims(a, axis=-1), -1, False, divisor)
    if 0 in a.shape:
        total = xp.sum(a, axis=axes, keepdims=keepdims)
        return total if divisor is None else total / divisor
    largest = largest_along(xp, a, axes)
    if not _every_finite(xp, largest):
        found = sum(xp, finite_part(xp, a), axes, keepdims, divisor)
        return with_specials(xp, found, sum_specials(xp, a, axes, keepdims))
    terms = math.prod(a.shape[k] for k in axes)
    total = rounded(xp, *sum_orders(xp, a, axes, largest, terms, dtype), dtype, divisor)
    return total if keepdims else xp.squeeze(total, axis=axes)


def sum_orders(
    xp: Namespace, a: Array, axes: tuple[int, ...], largest: Array, terms: int, dtype: str
) -> tuple[Iterator[Array], list[Array]]:
    """What `rounded` takes of a sum along axes, which are kept: the exact sums of its slices.

    `largest` is max|a| along the axes, kept too, or more, as where `a` is part of something longer;
    `terms` are those of the whole.
    """
    parts, half = _sliced(xp, a, largest, dtype, *sum_slices(terms, dtype))
    orders = (xp.sum(part, axis=axes, keepdims=True) for part in reversed(parts))
    return orders, [] if half is None else [half]


# -- exp and log

LN2_HIGH = float.fromhex("0x1.62e42fefa3p-1")
"""ln 2 to 41 bits: its product with an integer of up to 11 bits is exact."""

LN2_LOW = float.fromhex("0x1.3de6af278ece6p-42")
"""ln 2 - LN2_HIGH, rounded."""

LOG2_E = float.fromhex("0x1.71547652b82fep+0")
SHIFTER = 1.5 * 2.0**52
"""Adding it rounds to an integer."""

SQRT_HALF = 0.7071067811865476

EXP_LOWEST, EXP_HIGHEST = -746.0, 710.0
"""Where exp has become 0 and inf."""

EXP_COEFFICIENTS = tuple(1 / math.factorial(k) for k in range(13, 1, -1))
"""Taylor's, from r^13 to r^2: for |r| <= ln(2) / 2 the next term is below 2^-57."""

LOG_COEFFICIENTS = tuple(2 / (2 * k + 1) for k in range(11, 0, -1))
"""Of 2 atanh(s) / s - 2 in s^2, from s^22: for |s| <= 0.1716 the next term is below 2^-62."""

LOWEST_POWER = -1022


def exp_formula(m: Maths, x: Array) -> Array:
    """e^x: x = n ln 2 + r with an integer n and |r| <= ln(2) / 2, and e^x = 2^n e^r.

    e^r = 1 + (r + r^2 (1/2! + r/3! + ...)) (Cody & Waite 1980, chapter 6).
    """
    x = m.where(x < EXP_LOWEST, EXP_LOWEST, x)
    n, r, p = _reduced(x := m.where(x > EXP_HIGHEST, EXP_HIGHEST, x))
    return m.scale((r * r * p + r) + 1.0, n)


def _reduced(x: Array) -> tuple[Array, Array, Array]:
    """n and r of `exp_formula`, and the polynomial in its parentheses."""
    n = (x * LOG2_E + SHIFTER) - SHIFTER
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = EXP_COEFFICIENTS[0] * r + EXP_COEFFICIENTS[1]
    for coefficient in EXP_COEFFICIENTS[2:]:
        p = p * r + coefficient
    return n, r, p


def expm1_formula(m: Maths, x: Array) -> Array:
    """e^x - 1 as 2^n (e^r - 1) + (2^n - 1), with n and r as in `exp_formula`.

    Beyond 40 the 1 is lost anyway.
    """
    within = m.where(x < -40.0, -40.0, x)
    n, r, p = _reduced(within := m.where(within > 40.0, 40.0, within))
    y = m.scale(r * r * p + r, n) + (m.scale(1.0, n) - 1.0)
    return m.where(x == 0, x, m.where(x > 40.0, exp_formula(m, x), y))


def log_formula(m: Maths, x: Array) -> Array:
    """log x: x = 2^n (1 + f) with an integer n and 1 + f in [sqrt(1/2), sqrt(2)].

    With s = f / (2 + f), log(1 + f) = 2 atanh(s) = f - (f^2 / 2 - s (f^2 / 2 + R)), R =
    2 s^2 / 3 + 2 s^4 / 5 + ...: the form of FreeBSD's e_log.c, with the series' own coefficients.
    """
    part, n = m.split(x)
    low = part < SQRT_HALF
    f = m.where(low, part + part, part) - 1.0
    n = m.where(low, n - 1.0, n)
    s = f / (f + 2.0)
    z = s * s
    R = LOG_COEFFICIENTS[0] * z + LOG_COEFFICIENTS[1]
    for coefficient in LOG_COEFFICIENTS[2:]:
        R = R * z + coefficient
    half_square = f * f * 0.5
    y = n * LN2_HIGH - ((half_square - (s * (half_square + R * z) + n * LN2_LOW)) - f)
    special = m.where(x == 0, -math.inf, m.where(x == math.inf, x, x * math.nan))
    return m.where((x > 0) & (x < math.inf), y, special)


def log1p_formula(m: Maths, x: Array) -> Array:
    """log(1 + x) as log(u) + c / u, where u is 1 + x as rounded, and c what that lost.

    The first term of the series of log(u + c) (Higham 2002, §1.14.1 has another such).
    """
    u = 1.0 + x
    whole = log_formula(m, u)
    return m.where((u > 0) & (u < math.inf), whole + (x - (u - 1.0)) / u, whole)


ELEMENTARY = {
    "exp": exp_formula,
    "expm1": expm1_formula,
    "log": log_formula,
    "log1p": log1p_formula,
}
"""The elementary functions as formulas of float64 numbers. Beside `where` they take of `m`
``scale(a, n)``, a 2^n rounded once for an integer n in [-1080, 1030], and ``split(x)``, of which
x = a 2^n with a in [1/2, 1] and an integer n, both floating point, for a finite x above 0."""


@cache
def _powers_of_two(xp: Namespace, device: Any) -> Array:
    """2^k for k from `LOWEST_POWER` to 1023."""
    powers = [math.ldexp(1.0, k) for k in range(LOWEST_POWER, 1024)]
    return xp.asarray(powers, dtype=xp.float64, device=device)


class _Float64(Mathematics):
    """What `ELEMENTARY` takes, on arrays of float64."""

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp

    def where(self, condition: Array, a: Any, b: Any) -> Array:
        a, b = (
            self.xp.asarray(v, dtype=self.xp.float64, device=condition.device)
            if isinstance(v, float)
            else v
            for v in (a, b)
        )
        return self.xp.where(condition, a, b)

    def scale(self, a: Any, n: Array) -> Array:
        xp, powers = self.xp, _powers_of_two(self.xp, n.device)
        k = xp.astype(self.where(n == n, n, 0.0), xp.int64)  # NaN could not become an integer

        def power(k: Array) -> Array:
            places = xp.reshape(k - LOWEST_POWER, (-1,))
            return xp.reshape(xp.take(powers, places, axis=0), k.shape)

        half = k // 2
        return a * power(half) * power(k - half)

    def split(self, x: Array) -> tuple[Array, Array]:
        xp = self.xp
        x = self.where((x > 0) & (x < math.inf), x, 1.0)
        huge = x > 2.0**900
        x = xp.where(huge, x * 2.0**-200, x)
        largest = power_of_two(xp, x)
        # The logarithm of a power of two is an integer, whatever the library rounds it to.
        n = xp.round(xp.log2(largest))
        return x / largest, xp.where(huge, n + 200.0, n)


def elementary(xp: Namespace, name: str, a: Array) -> Array:
    """One of `ELEMENTARY` of each element, by separate multiplications and additions.

    It is done in float64 for both dtypes: within 1 unit in the last place there (expm1 and log1p
    within 2), and for float32 correctly rounded but for about one argument in 10^8.

    Parameters
    ----------
    xp
        The array namespace.
    name
        ``"exp"``, ``"expm1"``, ``"log"`` or ``"log1p"``.
    a
        float32 or float64, any shape.

    Raises
    ------
    TypeError
        `a` is of another dtype.
    """
    x = xp.astype(a, xp.float64)
    return xp.astype(ELEMENTARY[name](_Float64(xp), x), getattr(xp, precision(a)))


# -- square root, and narrow precisions


def sqrt(xp: Namespace, a: Array) -> Array:
    """Square root of each element, rounded correctly wherever `xp.sqrt` is off by at most a unit.

    Of v in (1, 4], which is `a` but for a power of four, let s be the library's root, in [1, 2],
    and h = 2^-53, half the distance of its neighbours. The root lies above s + h if v - s^2 > 2 h s
    and below s - h if v - s^2 <= -2 h s: all are whole numbers in units of h^2. v - s^2 is found by
    Dekker's product (Dekker 1971), and rounded to no other side of 2 h s.

    Parameters
    ----------
    xp
        The array namespace.
    a
        float32 or float64, any shape. float32 is done in float64, which rounds as if at once.

    Raises
    ------
    TypeError
        `a` is of another dtype.
    """
    m, x = _Float64(xp), xp.astype(a, xp.float64)
    part, n = m.split(x)
    half = xp.floor(n * 0.5)
    v = m.where(n == half + half, part * 4.0, part * 2.0)
    s = xp.sqrt(v)
    s = m.where(s < 1.0, 1.0, s)
    s = m.where(s > 2.0, 2.0, s)
    c = s * 134217729.0
    high = c - (c - s)
    low, square = s - high, s * s
    rest = (v - square) - (((high * high - square) + high * low * 2.0) + low * low)
    unit = 2.0**-52
    s = xp.where(rest > s * unit, s + unit, xp.where(rest <= -(s * unit), s - unit, s))
    root = m.scale(s, m.where(n == half + half, half - 1.0, half))
    special = xp.where((x == 0) | (x == math.inf), x, x * math.nan)
    root = xp.where((x > 0) & (x < math.inf), root, special)
    return xp.astype(root, getattr(xp, precision(a)))


def narrowed(xp: Namespace, a: Array, dtype: str) -> Array:
    """float64 `a` rounded to the nearest numbers of a `NARROW` precision, ties to even.

    What a library then converts is converted exactly, whether or not it goes by float32. What is
    too large to be one becomes a number above all of them.
    """
    digits, lowest = NARROW[dtype]
    size = xp.abs(a)
    within = size < 2.0**200
    power = power_of_two(xp, xp.where(within, size, xp.zeros_like(size)))
    spacing = power * 2.0**-digits
    least = 2.0 ** (lowest + 1 - digits)
    spacing = xp.where(spacing > least, spacing, xp.ones_like(spacing) * least)
    shift = spacing * (1.5 * 2.0**52)
    rounded = (a + shift) - shift
    rounded = xp.where(rounded == 0, a * 0.0, rounded)  # -0 stays -0
    return xp.where(within, rounded, a)
