"""`xnet.reproducible`: the same bits on every library and in every order, within its bounds."""

import importlib
import inspect
import math
import subprocess
import sys
from fractions import Fraction

import array_api_strict as strict
import mpmath
import numpy as np
import pytest
from conftest import property_settings
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet import arithmetic, exact, operations, reproducible
from xnet.errors import BackendError
from xnet.testing.parity import same_bits

INF, NAN = math.inf, math.nan
V = 2.0**-53
U = {"float32": 2.0**-24, "float64": V}

SINGLE = ("exp", "expm1", "log", "log1p", "tanh")
ALONG = ("sum", "mean", "var", "norm", "softmax", "logsumexp")
FUNCTIONS = (*SINGLE, *ALONG, "dot", "matmul")


def calls(a):
    """Every function, in several ways, of an array (3, 4, 5)."""
    for name in SINGLE:
        yield name, (a,), {}
        yield name, (a[1, 2, 3],), {}
    for name in ALONG:
        for axis in (None, 0, -1, (0, 2), (2, 0, 1), ()):
            yield name, (a,), {"axis": axis}
        yield name, (a[1, 2, 3],), {"axis": None}
        if name != "softmax":
            yield name, (a,), {"axis": 1, "keepdims": True}
    yield "var", (a,), {"axis": 1, "correction": 1}
    yield "norm", (a,), {"axis": 0, "ord": 1}
    yield "norm", (a,), {"axis": 0, "ord": INF}
    yield "dot", (a, a), {}
    yield "dot", (a, a[0, :, :]), {"axis": -2}
    yield "matmul", (a, a[0, 1, :]), {}
    yield "matmul", (a[0, :, 0], a), {}
    yield "matmul", (a[0, 0, :], a[1, 1, :]), {}
    yield "matmul", (a[:, :2, :4], a[:1, :, :2]), {}


def found(call):
    name, arrays, options = call
    return getattr(reproducible, name)(*arrays, **options)


def numbers(rng, dtype, shape=(3, 4, 5)):
    """Of many magnitudes."""
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-9, 7, shape)).astype(dtype)


def to_torch(array):
    torch = pytest.importorskip("torch")
    if array.dtype.name == "bfloat16":  # which NumPy's own dtypes do not know
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def from_torch(tensor, dtype):
    wide = tensor.float() if tensor.dtype.itemsize == 2 else tensor
    return wide.numpy().astype(dtype)


def narrow_dtype(name):
    """float16 as NumPy has it, bfloat16 as a package does that comes with JAX."""
    return np.dtype(name if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16)


def same(one, other):
    """Of any dtype: equal bits, but for which NaN it is."""
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    nan = np.isnan(one.astype(np.float64))
    both = nan & np.isnan(other.astype(np.float64))
    return (nan == both).all() and np.where(nan, 0, one).tobytes() == np.where(
        nan, 0, other
    ).tobytes()


# -- the same bits


@pytest.mark.parametrize("special", [False, True])
def test_every_library_gives_the_same_bits(dtype, special, rng):
    a = numbers(rng, dtype)
    if special:
        a[0, 0, :3], a[1, 1, 1], a[2, 3, 4] = (INF, -INF, NAN), -0.0, np.finfo(dtype).tiny / 8
    for on_numpy, on_strict, on_torch in zip(
        calls(a), calls(strict.asarray(a)), calls(to_torch(a)), strict=True
    ):
        expected = found(on_numpy)
        assert expected.dtype == dtype
        assert same(np.asarray(found(on_strict)), np.asarray(expected)), on_numpy[0]
        assert same(from_torch(found(on_torch), dtype), np.asarray(expected)), on_numpy[0]


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_narrow_numbers_are_computed_in_float64_and_rounded_once(name, rng):
    kind = narrow_dtype(name)
    a = numbers(rng, kind)
    a[0, 0, 0] = -0.0
    for narrow, wide, on_torch in zip(
        calls(a), calls(a.astype(np.float64)), calls(to_torch(a)), strict=True
    ):
        result = np.asarray(found(narrow))
        with np.errstate(all="ignore"):  # one conversion of NumPy's is one rounding
            expected = np.asarray(found(wide)).astype(kind)
        assert same(result, expected), narrow[0]
        assert same(from_torch(found(on_torch), kind), expected), narrow[0]


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_results_do_not_go_by_float32(name):
    """Where they would, as PyTorch converts, this sum would be 1: twice a tie to even."""
    kind = narrow_dtype(name)
    unit = 2.0 ** (1 - exact.NARROW[name][0])
    x = np.array([1, unit / 2, 2.0**-24]).astype(kind)
    for array in (x, to_torch(x)):
        assert float(reproducible.sum(array)) == 1 + unit


def test_without_array_api_compat(monkeypatch, rng):
    """NumPy and others say themselves what their namespace is."""
    a = numbers(rng, "float32")
    expected = [found(call) for call in calls(a)]
    monkeypatch.setattr(reproducible, "_compat", lambda: None)
    for array in (a, strict.asarray(a)):
        for call, right in zip(calls(array), expected, strict=True):
            assert same(np.asarray(found(call)), np.asarray(right))
    with pytest.raises(
        TypeError, match=r"x is a Tensor, .* take array-api-compat, to be installed"
    ):
        reproducible.exp(to_torch(a))


def test_order_layout_and_pieces_do_not_matter(dtype, rng, monkeypatch):
    a, order = numbers(rng, dtype, (6, 70, 5)), rng.permutation(70)
    for name in (*ALONG, "dot"):
        function = getattr(reproducible, name)
        arrays, axis = (a, a[::-1]) if name == "dot" else (a,), {"axis": -2}
        whole = function(*arrays, **axis)
        shuffled = function(*(v[:, order] for v in arrays), **axis)
        if name == "softmax":
            shuffled = shuffled[:, np.argsort(order)]
        assert same_bits(shuffled, whole)
        apart = [function(*(v[k : k + 1, :, ::-1] for v in arrays), **axis) for k in range(6)]
        assert same_bits(np.concatenate(apart)[..., ::-1], whole)
        with monkeypatch.context() as patch:
            patch.setattr(reproducible._library_of("", "", a), "piece", 200)
            assert same_bits(function(*arrays, **axis), whole)
            assert same_bits(function(*(np.asfortranarray(v) for v in arrays), **axis), whole)
    product = reproducible.matmul(a[:, :4], a.mT)
    assert same_bits(reproducible.matmul(a[:, :4, ::-1], a[..., ::-1].mT), product)
    for name in SINGLE:
        whole = getattr(reproducible, name)(a)
        with monkeypatch.context() as patch:
            patch.setattr(reproducible._library_of("", "", a), "piece", 200)
            assert same(getattr(reproducible, name)(a), whole)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter(threads, rng):
    torch = pytest.importorskip("torch")
    a, b = numbers(rng, "float64", (40, 300)), numbers(rng, "float64", (300, 20))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        product = reproducible.matmul(to_torch(a), to_torch(b)).numpy()
        total = reproducible.sum(to_torch(a)).numpy()
    finally:
        torch.set_num_threads(before)
    assert same_bits(product, reproducible.matmul(a, b))
    assert same_bits(total, np.asarray(reproducible.sum(a)))


def test_a_networks_operations_give_these_bits(dtype, rng):
    x = (4 * rng.standard_normal((5, 7))).astype(dtype)
    W = rng.standard_normal((7, 3)).astype(dtype)
    backend = xnet.resolve("numpy", reproducible=True)  # to which parity compares the others
    assert same_bits(reproducible.tanh(x), backend.run(operations.Tanh(), x))
    assert same_bits(reproducible.softmax(x), backend.run(operations.Softmax(), x))
    assert same_bits(reproducible.matmul(x, W), backend.matmul(x, W))
    assert same_bits(reproducible.sum(x, axis=0), backend.sum(x, axis=0))
    for name in ("exp", "log", "expm1", "log1p"):
        assert same_bits(getattr(reproducible, name)(abs(x)), getattr(backend, name)(abs(x)))


@pytest.mark.parametrize(
    "shapes", [((2, 1, 3, 4), (5, 4, 2)), ((3, 4), (5, 4, 2)), ((5, 3, 4), (4, 2))]
)
def test_a_stack_of_products_is_each_of_them(shapes, dtype, rng, monkeypatch):
    a, b = (numbers(rng, dtype, shape) for shape in shapes)
    product = reproducible.matmul(a, b)
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    assert product.shape == (*stack, 3, 2)
    whole_a, whole_b = (np.broadcast_to(v, (*stack, *v.shape[-2:])) for v in (a, b))
    for index in np.ndindex(stack):
        expected = exact.matmul(np, whole_a[index], whole_b[index])
        assert same_bits(product[index], expected)
        column = reproducible.dot(whole_a[index][1], whole_b[index][:, 1])
        assert same_bits(np.asarray(column), np.asarray(expected[1, 1]))
    monkeypatch.setattr(exact, "LARGEST_PIECE", 25)
    assert same_bits(reproducible.matmul(a, b), product)
    a[..., 1, 2] = INF
    assert same(reproducible.matmul(a, b)[..., 0, :], product[..., 0, :])
    assert not np.isfinite(reproducible.matmul(a, b)[..., 1, :]).any()


# -- bounds


def spread(seed, shape, dtype, widest=31):
    """Numbers over up to 2 widest powers of ten."""
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(*(rng.integers(0, widest, 2) * [-1, 1]), shape)
    return (rng.standard_normal(shape) * size).astype(dtype)


def fraction(value):
    return Fraction(float(value))


seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(["float32", "float64"])


@given(seeds, st.integers(1, 60), kinds)
@property_settings
def test_sum_and_mean_are_within_their_bounds(seed, count, kind):
    x, u = spread(seed, count, kind), U[kind]
    total, largest = sum(map(fraction, x)), float(abs(x).max())
    tiny = float(np.finfo(kind).smallest_subnormal)
    off = abs(fraction(reproducible.sum(x)) - total)
    assert off <= u * (abs(total) + Fraction(largest)) + Fraction(tiny)
    off = abs(fraction(reproducible.mean(x)) - total / count)
    assert off <= 2 * u * abs(total / count) + Fraction(u * largest / count + tiny)


@given(seeds, st.integers(1, 60), kinds, st.sampled_from([0.0, 1e4, -3e7]))
@property_settings
def test_var_is_within_its_bound(seed, count, kind, offset):
    x = (spread(seed, count, kind, 3) + offset).astype(kind)
    values = list(map(fraction, x))
    center = sum(values) / count
    variance = sum((v - center) ** 2 for v in values) / count
    result = fraction(reproducible.var(x))
    if variance == 0:
        assert result <= Fraction(3 * V * float(abs(x).max())) ** 2
    else:
        v = Fraction(V)
        relative = 7 * v + 9 * (v * fraction(abs(x).max())) ** 2 / variance + Fraction(U[kind])
        assert abs(result - variance) <= relative * variance


@given(seeds, st.integers(1, 60), kinds)
@property_settings
def test_norm_is_within_its_bound(seed, count, kind):
    x, u = spread(seed, count, kind), U[kind]
    with mpmath.workprec(300):
        square = sum(fraction(v) ** 2 for v in x)
        norm = mpmath.sqrt(mpmath.mpf(square.numerator) / square.denominator)
        off = abs(mpmath.mpf(float(reproducible.norm(x))) - norm)
        assert off <= (3 * V + u) * norm + float(np.finfo(kind).smallest_subnormal)
    sizes = sum(abs(fraction(v)) for v in x)
    assert abs(fraction(reproducible.norm(x, ord=1)) - sizes) <= 2 * Fraction(u) * sizes
    assert reproducible.norm(x, ord=INF) == abs(x).max()


@given(seeds, st.integers(1, 60), kinds)
@property_settings
def test_dot_is_within_its_bound(seed, count, kind):
    x, y = spread(seed, (2, count), kind, 9)
    exactly = sum(fraction(v) * fraction(w) for v, w in zip(x, y, strict=True))
    bits = {"float32": 42, "float64": 63}[kind]
    lost = 8 * count * fraction(abs(x).max()) * fraction(abs(y).max()) / 2**bits
    bound = Fraction(U[kind]) * abs(exactly) + lost + fraction(np.finfo(kind).smallest_subnormal)
    assert abs(fraction(reproducible.dot(x, y)) - exactly) <= bound


def within(result, truth, relative, absolute=0.0):
    return abs(mpmath.mpf(float(result)) - truth) <= relative * abs(truth) + absolute


@given(seeds, kinds)
@property_settings
def test_tanh_is_within_its_bound(seed, kind):
    x = spread(seed, 20, kind, 3)
    with mpmath.workprec(200):
        for v, y in zip(x, reproducible.tanh(x), strict=True):
            factor = {"float32": 6, "float64": 12}[kind]
            assert within(y, mpmath.tanh(mpmath.mpf(float(v))), factor * U[kind])


@given(seeds, st.integers(1, 30), kinds, st.sampled_from([1.0, 30.0, 200.0]))
@property_settings
def test_softmax_and_logsumexp_are_within_their_bounds(seed, count, kind, scale):
    x = (np.random.default_rng(seed).standard_normal(count) * scale).astype(kind)
    u, tiny = U[kind], float(np.finfo(kind).smallest_subnormal)
    top, width = float(x.max()), float(x.max()) - float(x.min())
    with mpmath.workprec(300):
        exponentials = [mpmath.exp(mpmath.mpf(float(v))) for v in x]
        total = mpmath.fsum(exponentials)
        for e, y in zip(exponentials, reproducible.softmax(x), strict=True):
            assert within(y, e / total, (2 * width + 8) * u, 2 * tiny)
        absolute = V * (abs(top) + 2 * math.log(count) + min(width, 746) + 8)
        assert within(reproducible.logsumexp(x), mpmath.log(total), u, absolute)


@given(st.floats(0, allow_infinity=False, allow_subnormal=True), st.sampled_from([-1, 0, 1]))
@property_settings
def test_a_root_is_right_whatever_the_librarys(x, off):
    """Of a library whose root is a unit off."""

    class Rough:
        def __getattr__(self, name):
            return getattr(np, name)

        def sqrt(self, a):
            return np.nextafter(np.sqrt(a), off * INF if off else np.sqrt(a))

    with np.errstate(all="ignore"):
        for kind in ("float64", "float32"):
            a = np.asarray([x, 4.0 * (1 - V), 4.0, 1.0, 1 + 2 * V, 2.0], kind)
            assert same_bits(exact.sqrt(Rough(), a), np.sqrt(a))


@given(st.floats(allow_nan=False), st.integers(-200, 140), st.sampled_from(["float16", "bfloat16"]))
@property_settings
def test_numbers_are_narrowed_in_one_rounding(mantissa, exponent, name):
    kind = narrow_dtype(name)
    fine = math.frexp(mantissa)[0] if math.isfinite(mantissa) else mantissa
    for value in (mantissa, math.ldexp(fine, exponent), math.ldexp(1 + 2.0**-30, exponent)):
        with np.errstate(all="ignore"):
            expected = np.asarray([value]).astype(kind)
            rounded = exact.narrowed(np, np.asarray([value]), name)
            assert same(rounded.astype(kind), expected)
            assert same(rounded.astype(np.float32).astype(kind), expected)


# -- what is not finite, and nothing at all


def test_beyond_the_range_of_squares_and_sums():
    for size in (1e308, 1e200, 1e-200, 5e-324):
        x = np.full(4, size)
        assert reproducible.mean(x) == size
        assert reproducible.norm(x) == (INF if size == 1e308 else 2 * size)
    assert reproducible.norm(np.full(4, 1e308) / 4) == 2 * (1e308 / 4)
    assert reproducible.var(np.array([1e-160, -1e-160]) * 1e10) == pytest.approx(1e-300)
    assert reproducible.var(np.array([1e153, -1e153])) == pytest.approx(1e306)
    assert reproducible.logsumexp(np.array([1e308, -1e308])) == 1e308


def test_infinities_and_nan_in_silence(dtype):
    x = np.array([[1, INF], [-INF, INF], [-INF, -INF], [NAN, INF]], dtype)
    expected = {
        "sum": [INF, NAN, -INF, NAN],
        "mean": [INF, NAN, -INF, NAN],
        "var": [NAN] * 4,
        "norm": [INF, INF, INF, NAN],
        "logsumexp": [INF, INF, -INF, NAN],
        "softmax": [[NAN] * 2] * 4,
    }
    for name, values in expected.items():
        result = getattr(reproducible, name)(x, axis=-1)
        np.testing.assert_array_equal(result, np.array(values, dtype))
    masked = reproducible.softmax(np.array([0, -INF, 0], dtype))
    assert same_bits(masked, np.array([0.5, 0, 0.5], dtype))
    np.testing.assert_array_equal(reproducible.log(np.array([0, -1], dtype)), [-INF, NAN])


def test_nothing_at_all(dtype):
    """As the array API has it."""
    for shape, axis in (((0,), None), ((3, 0), -1), ((0, 3), 0)):
        x = np.ones(shape, dtype)
        nothing = {"sum": 0, "mean": NAN, "var": NAN, "norm": 0, "logsumexp": -INF}
        for name, value in nothing.items():
            result = np.asarray(getattr(reproducible, name)(x, axis=axis))
            assert same_bits(result, np.full(np.sum(x, axis=axis).shape, value, dtype))
        for name in SINGLE:
            assert same_bits(getattr(reproducible, name)(x), x)
        assert same_bits(reproducible.softmax(x, axis=axis), x)
    for name in ALONG:
        x = np.ones((0, 3), dtype)
        assert getattr(reproducible, name)(x, axis=1).size == 0
    for a, b in (((2, 0), (0, 3)), ((0, 2), (2, 3)), ((4, 2, 0), (0,)), ((0, 2, 3), (3, 2))):
        a, b = np.ones(a, dtype), np.ones(b, dtype)
        assert same_bits(reproducible.matmul(a, b), np.matmul(a, b))
    assert reproducible.dot(np.ones(0, dtype), np.ones(0, dtype)) == 0
    assert np.isnan(reproducible.var(np.ones(1, dtype), correction=1))
    assert np.isnan(reproducible.var(np.ones(1, dtype), correction=2))


def test_what_large_numbers_hide_is_lost():
    """What the page says that these functions are not."""
    x, y = np.full(1000, 1e-8, np.float32), np.ones(1000, np.float32)
    x[:2], y[:2] = 1e8, 0
    assert reproducible.dot(x, y) == 0
    assert np.vecdot(x, y) == pytest.approx(9.98e-6)


# -- errors


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((2, 2), np.int64), "int64, expected float32 or float64 or float16 or bfloat16"),
        (np.ones((2, 2), bool), "bool, expected float32"),
        (np.ones((2, 2), complex), "complex128, expected float32"),
        ([[1.0, 2.0], [3.0, 4.0]], "list, expected an array of a library that follows the array"),
        (1.0, "float, expected an array"),
        (None, "NoneType, expected an array"),
    ],
)
def test_what_is_not_taken_is_named(name, value, message):
    first = next(iter(inspect.signature(getattr(reproducible, name)).parameters))
    arguments = (value,) * (1 + (first == "x1"))
    with pytest.raises(
        TypeError, match=f"^{name}: {first} is an? {message}|^{name}: {first} is {message}"
    ):
        getattr(reproducible, name)(*arguments)


def test_arguments_that_do_not_fit():
    a, b = np.ones((2, 3)), np.ones((2, 3))
    for wrong, error, message in [
        (lambda: reproducible.matmul(a, b), ValueError, r"matmul: x1 has shape \(2, 3\), x2 has"),
        (lambda: reproducible.matmul(a, np.ones(())), ValueError, "expected at least one axis"),
        (
            lambda: reproducible.matmul(np.ones((2, 1, 1)), np.ones((3, 1, 1))),
            ValueError,
            r"matmul: x1 has shape \(2, 1, 1\), x2 has \(3, 1, 1\), which do not broadcast",
        ),
        (lambda: reproducible.dot(a, b[:1].T), ValueError, "as many numbers along axis -1"),
        (lambda: reproducible.dot(a, np.ones((3, 3))), ValueError, "which do not broadcast"),
        (lambda: reproducible.dot(a, b, axis=0), ValueError, "counted from the end, as -1"),
        (lambda: reproducible.dot(a, b, axis=-3), ValueError, "dot: axis is .*, x1 has 2 axes"),
        (lambda: reproducible.dot(a, b.astype("f")), TypeError, "x1 is float64, x2 is float32"),
        (lambda: reproducible.sum(a, axis=2), ValueError, "sum: axis is 2, x has 2 axes"),
        (
            lambda: reproducible.mean(a, axis=(0, -2)),
            ValueError,
            "mean: axis is .*, one of them tw",
        ),
        (lambda: reproducible.var(a, axis=0.5), TypeError, "var: axis is 0.5, expected an int"),
        (lambda: reproducible.var(a, correction="1"), TypeError, "correction is a str, expected"),
        (lambda: reproducible.norm(a, ord=3), ValueError, "norm: ord is 3, expected 1, 2 or inf"),
        (lambda: reproducible.softmax(a, axis=-3), ValueError, "softmax: axis is -3, x has 2"),
        (
            lambda: reproducible.matmul(a, strict.ones((3, 2))),
            TypeError,
            "x1 is of .*numpy on cpu, x2 of array_api_strict on .*, expected one library",
        ),
        (
            lambda: reproducible.dot(
                strict.ones(3), strict.ones(3, device=strict.Device("device1"))
            ),
            BackendError,
            "expected one device",
        ),
        (
            lambda: reproducible.sum(np.ma.masked_less(a, 2)),
            ValueError,
            "sum: x has masked elements",
        ),
    ]:
        with pytest.raises(error, match=message):
            wrong()


def test_what_is_watched_for_its_gradient_is_refused():
    """A derivative of the steps is none of the function: what rounds to an integer has a slope."""
    torch = pytest.importorskip("torch")
    x = torch.ones(3, requires_grad=True)
    for name in FUNCTIONS:
        arguments = (x,) * (1 + (name in ("dot", "matmul")))
        with pytest.raises(TypeError, match=rf"^{name}: x1? is watched .*: hand over x1?\.detach"):
            getattr(reproducible, name)(*arguments)
    assert reproducible.sum(x.detach()) == 3


def test_kinds_of_numpys_arrays_that_mean_something_else_are_plain_ones(rng):
    a = rng.standard_normal((3, 4))
    assert same_bits(reproducible.matmul(a.view(np.matrix), a.T), reproducible.matmul(a, a.T))
    swapped = a.astype(">f8")
    assert same_bits(reproducible.tanh(swapped), reproducible.tanh(a))
    assert reproducible.exp(np.float32(0)) == 1


def test_it_stays_on_the_arrays_device():
    elsewhere = strict.Device("device1")
    a = strict.asarray(np.ones((3, 4, 5)), device=elsewhere)
    assert {found(call).device for call in calls(a)} == {elsewhere}


# -- the arithmetic


def broken(**own):
    """A library like array-api-strict, but for some functions."""

    class Broken:
        __name__ = "broken"

        def __getattr__(self, name):
            return getattr(strict, name)

    library = Broken()
    vars(library).update(own)
    return library


@pytest.fixture
def handed_out(monkeypatch):
    """Let arrays of array-api-strict belong to another library."""

    class Compat:
        array_namespace = None

    monkeypatch.setattr(reproducible, "_compat", lambda: Compat)
    return lambda library: setattr(Compat, "array_namespace", staticmethod(lambda _: library))


def test_a_library_whose_arithmetic_is_another_is_refused_by_name(handed_out):
    tries = []

    def maximum(a, b):
        tries.append(a)
        return strict.minimum(a, b)

    handed_out(broken(maximum=maximum))
    for _ in range(2):  # what is refused is tried again
        with pytest.raises(
            BackendError, match=r"^var: broken on .* cannot be used: maximum of float32 numbers, "
        ):
            reproducible.var(strict.ones(3))
    assert len(tries) == 2


def test_a_library_that_flushes_float32_has_float64(handed_out):
    """As CuPy's own kernels do."""

    def abs(a):
        found = strict.abs(a)
        if a.dtype != strict.float32:
            return found
        return strict.where(found < 1e-38, strict.zeros_like(found), found)

    handed_out(broken(abs=abs))
    assert reproducible.sum(strict.ones(3, dtype=strict.float64)) == 3
    with pytest.raises(BackendError, match=r"abs of float32 numbers, .*; subnormal numbers are ta"):
        reproducible.sum(strict.ones(3, dtype=strict.float32))


def test_a_library_is_tried_once(handed_out, monkeypatch):
    handed_out(broken())
    tried = []
    real = arithmetic.failures
    monkeypatch.setattr(arithmetic, "failures", lambda b: tried.append(b) or real(b))
    for _ in range(3):
        reproducible.sum(strict.ones(3))
        reproducible.exp(strict.ones(3))
    assert len(tried) == 1


def test_libraries_are_not_asked_what_no_axes_mean(handed_out):
    """PyTorch's own functions take them for all."""

    def asked(name):
        def reduction(a, *, axis=None, keepdims=False):
            assert axis != ()
            return getattr(strict, name)(a, axis=axis, keepdims=keepdims)

        return reduction

    handed_out(broken(**{name: asked(name) for name in ("max", "min", "sum", "any")}))
    x = strict.asarray([[1.0, 2.0], [-INF, 3.0]])
    for name in ALONG:
        assert getattr(reproducible, name)(x, axis=()).shape == (2, 2)


def test_a_square_root_that_is_a_unit_off_will_do(handed_out):
    def sqrt(a):
        return strict.asarray(np.nextafter(np.sqrt(np.asarray(a)), np.inf, dtype=np.float64))

    x = np.random.default_rng(0).random((50, 3))
    handed_out(broken(sqrt=sqrt))
    norms = np.asarray(reproducible.norm(strict.asarray(x), axis=1))
    assert same_bits(norms, np.sqrt(exact.sum(np, x * x, 1)))


def test_conversions_that_round_twice_or_flush_are_refused(monkeypatch):
    """What `narrowed` cannot help: subnormal numbers lost on the way."""
    torch = pytest.importorskip("torch")
    x = torch.ones(3, dtype=torch.bfloat16)
    library = reproducible._library_of("exp", "x", x)
    namespace = library.xp

    class Flushing:
        __name__ = "flushing"

        def __getattr__(self, name):
            return getattr(namespace, name)

        def astype(self, a, dtype, **options):
            found = namespace.astype(a, dtype, **options)
            return torch.where(found.abs() < 1e-38, 0, found) if dtype == torch.bfloat16 else found

    other = reproducible.Library(Flushing(), library.device)
    monkeypatch.setattr(reproducible, "_library_of", lambda *_: other)
    with pytest.raises(BackendError, match=r"^exp: flushing on cpu .*: conversion to bfloat16 and"):
        reproducible.exp(x)


def test_jax_is_refused_for_its_subnormals():
    """In a process of its own: JAX is told once how to compute."""
    pytest.importorskip("jax")
    code = """
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")
from xnet import reproducible
try:
    reproducible.sum(jax.numpy.ones(3))
except ValueError as error:
    print(type(error).__name__, error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("BackendError sum: jax.numpy on ")
    assert "subnormal numbers are taken for zeros" in said.stdout


def test_the_processors_mode_is_looked_at_in_every_call(monkeypatch):
    x = np.ones(3)
    reproducible.sum(x)
    monkeypatch.setattr(arithmetic, "_TINY", 0.0)
    for name in FUNCTIONS:
        with pytest.raises(BackendError, match="takes subnormal numbers for zeros"):
            getattr(reproducible, name)(*(x,) * (1 + (name in ("dot", "matmul"))))


# -- the module


def test_every_function_is_public_and_tried_here():
    assert sorted(FUNCTIONS) == reproducible.__all__
    assert {name for name, _, _ in calls(np.ones((3, 4, 5)))} == set(FUNCTIONS)
    for name in FUNCTIONS:
        assert getattr(xnet.reproducible, name).__doc__


def test_importing_it_imports_no_network_and_no_array_library():
    code = "import sys, xnet.reproducible; print(*sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(shown.stdout.split())
    ours = {name.removeprefix("xnet.") for name in modules if name.startswith("xnet.")}
    ground = {"arithmetic", "arrays", "dtypes", "errors", "exact", "formulas", "operations"}
    assert ours == ground | {"frames", "reproducible"}
    assert not {"numpy", "array_api_compat", "importlib.metadata"} & modules


def test_the_package_gives_what_it_names():
    for name in xnet.__all__:
        assert getattr(xnet, name) is not None
    importlib.import_module("xnet.gradient_check")
    assert inspect.isfunction(xnet.gradient_check)
    with pytest.raises(AttributeError, match="module 'xnet' has no attribute 'nothing'"):
        xnet.nothing  # noqa: B018
