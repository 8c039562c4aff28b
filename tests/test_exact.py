"""The order-free product and sum, exp and log, against exact arithmetic."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from conftest import property_settings
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet import exact
from xnet.testing.parity import same_bits

LENGTHS = (1, 2, 3, 7, 784, 1000, 1638, 1639, 2048, 2049, 100_000, 10**7)


@pytest.fixture(autouse=True)
def _silent():
    with np.errstate(all="ignore"):
        yield


def ulp(dtype):
    return float(np.finfo(dtype).eps) / 2


# -- slices


@pytest.mark.parametrize("contracted", LENGTHS)
def test_every_partial_sum_of_a_product_fits_53_bits(contracted, dtype):
    slices, bits = exact.product_slices(contracted, dtype)
    biggest = [2**bits] + [2 ** (bits - 1)] * (slices - 1)  # of the integers in each slice
    for order in range(slices):
        terms = sum(biggest[s] * biggest[order - s] for s in range(order + 1))
        assert contracted * terms <= 2**53
    assert slices * bits >= {"float32": 32, "float64": 60}[dtype]


@pytest.mark.parametrize(
    ("longest", "slices", "kind"), [(2**21, 2, "float32"), (6553, 3, "float64")]
)
def test_the_longest_products_of_so_few_slices(longest, slices, kind):
    assert exact.product_slices(longest, kind)[0] == slices
    assert exact.product_slices(longest + 1, kind)[0] == slices + 1


def test_the_notes_sizes_take_two_and_three_slices():
    assert exact.product_slices(784, "float32") == (2, 21)
    assert exact.product_slices(784, "float64") == (3, 21)
    assert exact.product_slices(2**23, "float32")[0] == 3
    assert exact.product_slices(2**20, "float64")[0] == 4


@pytest.mark.parametrize("terms", LENGTHS)
def test_every_partial_sum_of_a_sum_fits_53_bits(terms, dtype):
    slices, bits = exact.sum_slices(terms, dtype)
    assert terms * 2**bits <= 2**53
    # What is cut off is below u of the largest: terms 2^-(slices bits + 1) L, L < 2 max.
    assert terms * 2.0 ** -(slices * bits) <= ulp(dtype)


@given(
    st.floats(0, 2.0**900, allow_subnormal=True),
)
@property_settings
def test_power_of_two(p):
    power = float(exact.power_of_two(np, np.array(p)))
    if p == 0:
        assert power == 0
    else:
        assert math.frexp(power)[0] == 0.5
        assert power / 2 < p <= power


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(8, 26))
@property_settings
def test_slices_are_integers_that_add_up(seed, slices, bits):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(20) * 10.0 ** rng.integers(-20, 20)
    largest = exact.power_of_two(np, np.abs(a).max())
    parts = exact.cut(np, a, largest, slices, bits)
    for s, part in enumerate(parts, start=1):
        integers = part / (largest * 2.0 ** (-bits * s))
        assert (integers == np.rint(integers)).all()
        assert (np.abs(integers) <= 2 ** (bits if s == 1 else bits - 1)).all()
    rest = [Fraction(float(v)) - sum(Fraction(float(p[i])) for p in parts) for i, v in enumerate(a)]
    assert max(map(abs, rest)) <= Fraction(float(largest)) / 2 ** (slices * bits + 1)


# -- product and sum


def exact_product(a, b):
    """Of small matrices, as fractions rounded once."""
    rows = [[Fraction(float(v)) for v in row] for row in a]
    columns = [[Fraction(float(v)) for v in column] for column in b.T]
    return [[sum(map(Fraction.__mul__, r, c)) for c in columns] for r in rows]


def errors(product, reference):
    return np.array(
        [
            [abs(float(Fraction(float(v)) - r)) for v, r in zip(row, line, strict=True)]
            for row, line in zip(product, reference, strict=True)
        ]
    )


def a_pair(kind, contracted, dtype, rng):
    """a (3, K) and b (K, 3) of one kind."""
    rows = 3 if contracted < 10_000 else 1
    a, b = rng.standard_normal((rows, contracted)), rng.standard_normal((contracted, rows))
    if kind == "cancelling" and contracted > 1:
        half = contracted // 2
        a[:, half : 2 * half] = a[:, :half]
        b[half : 2 * half] = -b[:half] * (1 + 1e-5)
    if kind == "positive":
        a, b = abs(a), abs(b)
    if kind == "one huge":
        a[:, contracted // 2] *= 2.0**7
    if kind == "large":
        a, b = a * 1e15, b * 1e18
    if kind == "small":
        a, b = a * 1e-15, b * 1e-18
    if kind == "zeros" and contracted > 1:
        a[rng.random(a.shape) < 0.8] = 0
    return a.astype(dtype), b.astype(dtype)


@pytest.mark.parametrize("contracted", [1, 2, 1000, 6553, 100_000])
@pytest.mark.parametrize(
    "kind", ["normal", "cancelling", "positive", "one huge", "large", "small", "zeros"]
)
def test_the_product_is_never_worse_than_plain_blas(kind, contracted, dtype, rng):
    a, b = a_pair(kind, contracted, dtype, rng)
    reference = exact_product(a, b)
    ours, plain = errors(exact.matmul(np, a, b), reference), errors(a @ b, reference)
    # Half a unit of its own is the least that any rounded result can be off by.
    half = 0.5 * np.spacing(np.abs(exact.matmul(np, a, b))).astype(np.float64)
    assert ours.max() <= max(plain.max(), 1.001 * half.max())


class Recording:
    """NumPy, with the shapes of what is multiplied."""

    def __init__(self):
        self.rows = []

    def __getattr__(self, name):
        return getattr(np, name)

    def matmul(self, a, b):
        self.rows.append(a.shape[0])
        return np.matmul(a, b)


@pytest.mark.parametrize("rows", [1, 4, 5, 8, 9, 12])
def test_so_many_rows_at_a_time_that_their_slices_stay_in_cache(monkeypatch, dtype, rng, rows):
    a, b = rng.standard_normal((rows, 6)).astype(dtype), rng.standard_normal((6, 3)).astype(dtype)
    whole, xp = exact.matmul(np, a, b), Recording()
    monkeypatch.setattr(exact, "LARGEST_PIECE", 4 * 6 + 5)
    assert same_bits(exact.matmul(xp, a, b), whole)
    slices = exact.product_slices(6, dtype)[0]
    assert max(xp.rows) <= 4
    assert len(xp.rows) == slices * -(-rows // 4)


def test_it_computes_where_the_arrays_are():
    """On another device than the namespace's own, finite and not."""
    xp = xnet.resolve("strict").xp
    elsewhere = xp.Device("device1")
    a = xp.asarray([[1.0, -math.inf], [0.5, 2.0]], dtype=xp.float64, device=elsewhere)
    finite = a[1:, :]
    found = [exact.matmul(xp, a, a), exact.matmul(xp, finite, a), exact.matmul(xp, a[:0, :], a)]
    found += [exact.sum(xp, a, 0), exact.sum(xp, finite, 1)]
    found += [exact.elementary(xp, name, a) for name in exact.ELEMENTARY]
    assert {array.device for array in found} == {elsewhere}


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from(["float32", "float64"]))
@property_settings
def test_the_product_is_within_its_bound(seed, contracted, dtype):
    rng = np.random.default_rng(seed)
    spread = rng.integers(0, 31)  # up to 1e-30 and 1e30 in one row
    a, b = (
        (rng.standard_normal(shape) * 10.0 ** rng.uniform(-spread, spread, shape)).astype(dtype)
        for shape in ((3, contracted), (contracted, 2))
    )
    product = exact.matmul(np, a, b).astype(np.float64)
    slices, bits = exact.product_slices(contracted, dtype)
    scale = np.abs(a).max(1).astype(float)[:, None] * np.abs(b).max(0).astype(float)
    bound = ulp(dtype) * np.abs(product) + 8 * contracted * 2.0 ** -(slices * bits) * scale
    bound += float(np.finfo(dtype).smallest_subnormal)
    finite = np.isfinite(product)
    assert (errors(np.where(finite, product, 0), exact_product(a, b)) <= bound)[finite].all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from(["float32", "float64"]))
@property_settings
def test_the_sum_is_within_its_bound_in_any_order(seed, terms, dtype):
    rng = np.random.default_rng(seed)
    spread = rng.integers(0, 31)
    a = (rng.standard_normal(terms) * 10.0 ** rng.uniform(-spread, spread, terms)).astype(dtype)
    total = float(exact.sum(np, a))
    u, reference = ulp(dtype), sum(Fraction(float(v)) for v in a)
    bound = u * abs(total) + u * float(np.abs(a).max()) + float(np.finfo(dtype).smallest_subnormal)
    assert abs(float(Fraction(total) - reference)) <= bound
    assert same_bits(exact.sum(np, rng.permutation(a)), exact.sum(np, a))


@given(st.integers(0, 2**32 - 1), st.integers(1, 100), st.sampled_from(["float32", "float64"]))
@property_settings
def test_the_order_of_the_contracted_axis_does_not_matter(seed, contracted, dtype):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((4, contracted)).astype(dtype)
    b = rng.standard_normal((contracted, 3)).astype(dtype)
    order = rng.permutation(contracted)
    assert same_bits(exact.matmul(np, a[:, order], b[order]), exact.matmul(np, a, b))


def test_the_plain_product_depends_on_the_order(rng):
    """What the tests above would show of a product that is not order-free."""
    a, b = rng.standard_normal((1, 1000)), rng.standard_normal((1000, 1))
    plain = {float((a[:, p] @ b[p])[0, 0]) for p in (rng.permutation(1000) for _ in range(20))}
    assert len(plain) > 1


@pytest.mark.parametrize("exponent", [-1074, -1022, -600, 0, 600, 1023])
def test_the_whole_range_of_float64(exponent):
    a = np.array([[2.0**-exponent if exponent > -1023 else 1.0, 0.0]])
    b = np.array([[math.ldexp(1.0, exponent)], [0.0]])
    assert exact.matmul(np, a, b)[0, 0] == a[0, 0] * b[0, 0]
    assert exact.sum(np, b[:1])[()] == b[0, 0]
    large = np.full((1, 4), 1e308)
    assert exact.matmul(np, large, np.array([[1.0], [1], [-1], [-0.5]]))[0, 0] == 5e307
    assert exact.matmul(np, large, np.ones((4, 1)))[0, 0] == math.inf
    assert exact.matmul(np, large, large.T * 1e-300 * 1e-308)[0, 0] == pytest.approx(4e8)


def test_what_is_lost_where_the_largest_elements_do_not_meet(dtype):
    """The one kind of input on which plain BLAS is better, as the module's text says."""
    kept = {"float32": 42, "float64": 63}[dtype]  # bits below the largest of a row
    for exponent, lost in ((kept - 4, False), (kept + 4, True)):
        a = np.array([[1.0, 2.0**-exponent]], dtype)
        b = np.array([[0.0], [1.0]], dtype)
        a = np.repeat(a, 500, axis=1)
        b = np.repeat(b, 500, axis=0)
        assert (float(exact.matmul(np, a, b)[0, 0]) == 0) == lost


def test_a_sum_that_is_zero_is_plus_zero(dtype):
    a = np.array([[-1.0, 1.0, -0.0]], dtype)
    zero = np.zeros((1, 1), dtype)
    assert same_bits(exact.matmul(np, a, np.ones((3, 1), dtype)), zero)
    assert same_bits(exact.matmul(np, a[:, 2:], np.ones((1, 1), dtype)), zero)
    assert same_bits(exact.sum(np, a, axis=1, keepdims=True), zero)
    assert same_bits(exact.sum(np, a[:, 2:], axis=1, keepdims=True), zero)


def test_infinities_and_nan_take_part_as_in_ieee_754(dtype, rng):
    special = np.array([0, -0.0, 1, -2, math.inf, -math.inf, math.nan], dtype)
    for _ in range(50):
        a, b = rng.choice(special, (5, 4)), rng.choice(special, (4, 5))
        plain = np.array([[sum(x * y for x, y in zip(r, c, strict=True)) for c in b.T] for r in a])
        np.testing.assert_array_equal(exact.matmul(np, a, b), plain)
        np.testing.assert_array_equal(exact.sum(np, a, axis=1), [sum(row) for row in a])
        np.testing.assert_array_equal(exact.sum(np, a), sum(a.ravel()))


def test_any_byte_order(dtype, rng):
    a, b = rng.standard_normal((3, 4)) * 1e300, rng.standard_normal((4, 2)) * 1e-300
    if dtype == "float32":
        a, b = a / 1e300, b * 1e300
    a, b = a.astype(dtype), b.astype(dtype)
    swapped = [array.astype(array.dtype.newbyteorder(">")) for array in (a, b)]
    assert same_bits(exact.matmul(np, *swapped), exact.matmul(np, a, b))
    assert same_bits(exact.sum(np, swapped[0]), exact.sum(np, a))
    for name in exact.ELEMENTARY:
        found, expected = (exact.elementary(np, name, v) for v in (swapped[0], a))
        assert same_bits(found, expected)


@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.parametrize(
    ("shapes", "dtypes", "error", "message"),
    [
        (((2, 5), (3, 2)), "dd", ValueError, r"a has shape \(2, 5\), b has \(3, 2\)"),
        (((2, 3), (4, 2)), "dd", ValueError, r"expected \(N, K\) and \(K, M\)"),
        (((3,), (3, 2)), "dd", ValueError, r"a has shape \(3,\)"),
        (((2, 3), (3, 2)), "df", TypeError, "a is float64, b is float32, expected one dtype"),
        (((2, 3), (3, 2)), "ii", TypeError, "takes float32 and float64, not int32"),
    ],
)
def test_operands_that_do_not_fit(name, shapes, dtypes, error, message):
    backend = xnet.resolve(name, reproducible=True)
    operands = [np.ones(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    with pytest.raises(error, match=message):
        backend.matmul(*operands)


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_sums_that_cannot_be(name):
    backend = xnet.resolve(name, reproducible=True)
    with pytest.raises(ValueError, match="sum: axis is 2, a has 2 axes"):
        backend.sum(np.ones((2, 3)), axis=2)
    with pytest.raises(TypeError, match="takes float32 and float64, not int64"):
        backend.sum(np.ones((2, 3), np.int64))


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2), (3, 2, 0)])
def test_empty_matrices(shape, dtype):
    n, k, m = shape
    product = exact.matmul(np, np.ones((n, k), dtype), np.ones((k, m), dtype))
    assert same_bits(product, np.zeros((n, m), dtype))
    assert same_bits(exact.sum(np, np.ones((n, k), dtype), axis=0), np.full(k, n, dtype))


# -- exp and log


def largest_error(values, arguments, function):
    """In units in the last place of the exact value, by mpmath."""
    errors = []
    with mpmath.workprec(200):
        for value, argument in zip(values, arguments, strict=True):
            true = function(mpmath.mpf(float(argument)))
            spacing = float(np.spacing(values.dtype.type(abs(float(true)))))
            errors.append(abs(mpmath.mpf(float(value)) - true) / spacing)
    return float(max(errors))


def test_exp_is_within_a_unit_in_the_last_place(dtype, rng):
    low, high = (-745, 709.7) if dtype == "float64" else (-103, 88.7)
    x = np.concatenate([rng.uniform(low, high, 4000), rng.uniform(-1, 1, 4000)]).astype(dtype)
    assert largest_error(exact.elementary(np, "exp", x), x, mpmath.exp) <= (
        1 if dtype == "float64" else 0.5001
    )


def test_log_is_within_a_unit_in_the_last_place(dtype, rng):
    low, high = (-744, 709.7) if dtype == "float64" else (-103, 88.7)
    x = np.concatenate([np.exp(rng.uniform(low, high, 4000)), rng.uniform(0.5, 2, 4000)])
    x = x.astype(dtype)
    assert largest_error(exact.elementary(np, "log", x), x, mpmath.log) <= (
        1 if dtype == "float64" else 0.5001
    )


def test_expm1_is_within_two_units_in_the_last_place(dtype, rng):
    sizes = np.concatenate([rng.uniform(36, 44, 500), rng.uniform(0, 2, 1500)])
    x = np.concatenate([sizes, -sizes, np.geomspace(1e-30, 1, 500)]).astype(dtype)
    assert largest_error(exact.elementary(np, "expm1", x), x, mpmath.expm1) <= (
        2 if dtype == "float64" else 0.5001
    )


def test_log1p_is_within_two_units_in_the_last_place(dtype, rng):
    small = np.geomspace(1e-30, 0.9, 1000)
    x = np.concatenate([small, -small, np.exp(rng.uniform(-2, 80, 1000))]).astype(dtype)
    assert largest_error(exact.elementary(np, "log1p", x), x, mpmath.log1p) <= (
        2 if dtype == "float64" else 0.5001
    )


def test_exp_and_log_of_special_values(dtype):
    inf, nan = math.inf, math.nan
    x = np.array([0.0, -0.0, inf, -inf, nan, 1e4, -1e4], dtype)
    expected = np.array([1, 1, inf, 0, nan, inf, 0], dtype)
    assert same_bits(exact.elementary(np, "exp", x), expected)
    x = np.array([0.0, -0.0, 1.0, -1.0, inf, -inf, nan], dtype)
    expected = np.array([-inf, -inf, 0, nan, inf, nan, nan], dtype)
    assert same_bits(exact.elementary(np, "log", x), expected)
    np.testing.assert_array_equal(exact.elementary(np, "log1p", x), np.log1p(x))
    x = np.array([0.0, -0.0, inf, -inf, nan, 1e4, -1e4], dtype)
    assert same_bits(exact.elementary(np, "expm1", x), np.expm1(x))
    limits = np.finfo(dtype)
    x = np.array([limits.smallest_subnormal, limits.tiny, limits.max], dtype)
    np.testing.assert_allclose(exact.elementary(np, "log", x), np.log(x), rtol=limits.eps)


@given(st.floats(-740, 700))
@property_settings
def test_exp_of_log_and_log_of_exp(x):
    y = exact.elementary(np, "exp", np.array(x))
    assert float(exact.elementary(np, "log", y)) == pytest.approx(x, rel=1e-15, abs=1e-13)


def test_half_precision_of_numpy_is_rounded_once():
    """By way of float32 this sum would be 1: twice a tie to even."""
    unit = 2.0 ** (1 - exact.NARROW["float16"][0])
    x = np.array([1, unit / 2, 2.0**-24], np.float16)
    assert float(xnet.reproducible.sum(x)) == 1 + unit
