"""Partial sums and products: in however many parts, the very bits of the whole."""

import math
import pickle

import numpy as np
import pytest
from conftest import BACKENDS, property_settings
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet import exact, partials

KINDS = ("normal", "of all sizes", "one huge", "cancelling", "zeros", "not finite", "subnormal")


def numbers(rng, kind, shape, dtype):
    """Numbers that hurt."""
    x = rng.standard_normal(shape)
    top = np.finfo(dtype).max
    if kind == "of all sizes":
        x *= 2.0 ** rng.integers(-100, 100, shape)
    elif kind == "one huge" and x.size:
        x.flat[rng.integers(x.size)] = top * 0.9
    elif kind == "cancelling":
        x = np.where(rng.random(shape) < 0.5, 1.0, -1.0) * 2.0 ** rng.integers(-20, 20, shape)
    elif kind == "zeros":
        x = np.where(rng.random(shape) < 0.7, np.copysign(0.0, x), x)
    elif kind == "not finite":
        odd = rng.choice([math.inf, -math.inf, math.nan, 0.0], shape)
        x = np.where(rng.random(shape) < 0.1, odd, x)
    elif kind == "subnormal":
        x *= np.finfo(dtype).smallest_normal
    return x.astype(dtype)


def bits(array):
    array = np.asarray(array)
    return np.where(np.isnan(array), 0, array.view(f"i{array.itemsize}")), np.isnan(array)


def same_bits(one, other):
    return all((a == b).all() for a, b in zip(bits(one), bits(other), strict=True))


def cuts(rng, n, count):
    """So many parts of n rows, in any order; some may be empty."""
    rows, ends = rng.permutation(n), np.sort(rng.integers(0, n + 1, count - 1))
    return np.split(rows, ends)


def shared(rng, backend, parts, scale_of):
    """The whole, by scales and partials that are merged in any order and grouping."""
    parts = [tuple(backend.asarray(array) for array in part) for part in parts]
    scale = partials.merged([scale_of(*parts[k]) for k in rng.permutation(len(parts))])
    found = [scale.partial(*part) for part in parts]
    while len(found) > 1:
        one, other = (found.pop(rng.integers(len(found))) for _ in range(2))
        found.append(one + other)
    return found[0]


@pytest.fixture(params=BACKENDS)
def reproducible(request):
    try:
        backend = xnet.resolve(request.param, reproducible=True)
    except xnet.BackendError as error:
        pytest.skip(str(error))
    with xnet.use_backend(backend), backend.running():
        yield backend


SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(1, 40), st.sampled_from([1, 2, 3, 7, 16]), st.sampled_from(KINDS))
@property_settings
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_product_over_shards_is_the_whole(reproducible, dtype, seed, length, count, kind):
    rng, backend = np.random.default_rng(seed), reproducible
    a = numbers(rng, kind, (3, length), dtype)
    b = numbers(rng, rng.choice(KINDS), (length, 2), dtype)
    parts = [(a[:, rows], b[rows]) for rows in cuts(rng, length, count)]
    whole = backend.matmul(backend.asarray(a), backend.asarray(b))
    found = shared(rng, backend, parts, partials.product_scale).rounded()
    assert same_bits(backend.to_numpy(found), backend.to_numpy(whole))


@given(SEEDS, st.integers(1, 60), st.sampled_from([1, 2, 3, 7, 16]), st.sampled_from(KINDS))
@property_settings
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [0, None])
def test_a_sum_over_shards_is_the_whole(reproducible, dtype, axis, seed, length, count, kind):
    rng, backend = np.random.default_rng(seed), reproducible
    a = numbers(rng, kind, (length, 3), dtype)
    parts = [(a[rows],) for rows in cuts(rng, length, count)]
    whole = backend.sum(backend.asarray(a), axis)
    found = shared(rng, backend, parts, lambda part: partials.sum_scale(part, axis)).rounded()
    assert same_bits(backend.to_numpy(found), backend.to_numpy(whole))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [784, 10_000, 300_000])
def test_long_wholes_take_more_slices_and_stay_exact(dtype, length, rng):
    a = rng.standard_normal((2, length)).astype(dtype)
    b = rng.standard_normal((length, 2)).astype(dtype)
    parts = [(a[:, rows], b[rows]) for rows in cuts(rng, length, 7)]
    with xnet.use_backend("numpy", reproducible=True) as backend:
        product = shared(rng, backend, parts, partials.product_scale)
        assert same_bits(product.rounded(), backend.matmul(a, b))
        assert product.scale.slices == exact.product_slices(length, dtype)[0]
        total = shared(rng, backend, [(part,) for _, part in parts], partials.sum_scale)
        assert same_bits(total.rounded(), backend.sum(b))
    slices, width = exact.product_slices(length, dtype)
    rows, columns = (
        exact.power_of_two(np, np.abs(v).max(axis, keepdims=True).astype(float))
        for v, axis in ((a, 1), (b, 0))
    )
    for order in range(slices):
        units = product.numbers[slices - 1 - order] / (
            rows * columns * 2.0 ** (-width * (order + 2))
        )
        assert (units == np.round(units)).all()
        assert np.abs(units).max() <= 2**53


def test_the_order_of_additions_does_not_matter_to_the_last_bit(rng):
    """Of the numbers that are sent, not of the rounded result alone."""
    a = numbers(rng, "of all sizes", (64, 5), "float64")
    parts = [(a[rows],) for rows in cuts(rng, 64, 6)]
    found = [
        shared(np.random.default_rng(k), xnet.resolve("numpy"), parts, one_axis) for k in range(8)
    ]
    assert {partial.numbers.tobytes() for partial in found} == {found[0].numbers.tobytes()}


def one_axis(part):
    return partials.sum_scale(part, 0)


def test_scales_and_partials_are_sent_as_plain_arrays(rng):
    """What a reduction by maxima and one by sums does, and pickles."""
    a, b = (
        numbers(rng, "not finite", (20, 4), "float32"),
        numbers(rng, "normal", (20, 3), "float32"),
    )
    shards = [(a[rows].T, b[rows]) for rows in cuts(rng, 20, 3)]
    scales = [partials.product_scale(*shard) for shard in shards]
    maxima = np.maximum.reduce([scale.maxima for scale in scales])
    terms = sum(scale.terms for scale in scales)
    agreed = [scale.agreed(maxima, terms) for scale in scales]
    found = [scale.partial(*shard) for scale, shard in zip(agreed, shards, strict=True)]
    numbers_sent = np.sum([partial.numbers for partial in found], axis=0)
    whole = agreed[1].received(numbers_sent).rounded()
    assert same_bits(whole, exact.matmul(np, np.ascontiguousarray(a.T), b))
    again = pickle.loads(pickle.dumps(found[0]))
    assert same_bits((again + found[1] + found[2]).rounded(), whole)


def test_bytes_are_those_that_the_text_says(rng):
    for dtype, product, total in (("float32", 4, 2), ("float64", 3, 2)):
        x = rng.standard_normal((100, 6)).astype(dtype)
        found = partials.product_scale(x.T, x).partial(x.T, x)
        assert found.numbers.nbytes == product * 36 * np.dtype(dtype).itemsize
        found = partials.sum_scale(x, 0).partial(x)
        assert found.numbers.nbytes == total * 6 * np.dtype(dtype).itemsize
    for dtype, terms, more in (("float32", 2**14, 4), ("float64", 2**17, 3)):
        for count, times in ((terms, 2), (terms + 1, more)):
            size = np.dtype(dtype).itemsize
            assert exact.sum_slices(count, dtype)[0] * 8 == times * size


def test_a_product_may_be_only_so_long():
    for dtype in ("float32", "float64"):
        assert exact.product_slices(2**47, dtype)[1] == 1
        with pytest.raises(ValueError, match="at most 2\\^47"):
            exact.product_slices(2**48, dtype)


def test_a_divisor_divides_before_rounding(rng):
    x = rng.standard_normal(1000).astype("float32")
    parts = [(part,) for part in np.split(x, [10, 700])]
    found = shared(rng, xnet.resolve("numpy"), parts, partials.sum_scale).rounded(divisor=7)
    assert same_bits(found, exact.sum(np, x, divisor=7))


def test_nothing_at_all():
    empty = np.zeros((0, 3))
    scale = partials.merged([partials.sum_scale(empty, 0)] * 3)
    assert partials.added([scale.partial(empty)] * 3).rounded().tolist() == [0, 0, 0]
    scale = partials.product_scale(np.zeros((2, 0)), empty)
    assert scale.partial(np.zeros((2, 0)), empty).rounded().tolist() == [[0, 0, 0]] * 2


def test_what_does_not_fit_is_refused_by_name():
    x, y = np.ones((4, 3)), np.ones((4, 3), "float32")
    scale = partials.sum_scale(x, 0)
    with pytest.raises(ValueError, match="merged: the scales differ in dtype: float64 and float32"):
        scale.merged(partials.sum_scale(y, 0))
    with pytest.raises(ValueError, match="the part differ in shapes"):
        scale.partial(np.ones((4, 2)))
    with pytest.raises(ValueError, match="larger numbers, or more of them"):
        scale.partial(2 * x)
    with pytest.raises(ValueError, match="larger numbers, or more of them"):
        scale.partial(np.ones((5, 3)))
    with pytest.raises(ValueError, match="2 arrays were given, a sum's part is one array"):
        scale.partial(x, x)
    with pytest.raises(ValueError, match="cut by scales that differ"):
        scale.partial(x) + scale.merged(scale).partial(x)
    with pytest.raises(ValueError, match=r"received: numbers have shape \(3,\)"):
        scale.received(np.ones(3))
    with pytest.raises(ValueError, match=r"agreed: maxima have shape \(3,\), expected \(4,\)"):
        scale.agreed(np.ones(3), 4)
    with pytest.raises(ValueError, match="maxima hold NaN"):
        scale.agreed(np.full(4, np.nan), 4)
    with pytest.raises(ValueError, match="terms are -1"):
        scale.agreed(np.ones(4), -1)
    with pytest.raises(ValueError, match="merged: scales is empty"):
        partials.merged([])
    with pytest.raises(ValueError, match="added: partials is empty"):
        partials.added([])
    with pytest.raises(ValueError, match="axis is"):
        partials.sum_scale(np.float64(1.0))
    with pytest.raises(TypeError, match="float32 and float64, not int64"):
        partials.sum_scale(np.arange(3))
    with pytest.raises(ValueError, match="matmul: a has shape"):
        partials.product_scale(x, x)
