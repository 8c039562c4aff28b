"""Compiled products of slices, and predictions by them, against the definitions in `xnet.exact`."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import property_settings
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet import exact
from xnet.layers import Affine, ReLU, Sigmoid
from xnet.network import Network
from xnet.testing.parity import same_bits

pytest.importorskip("numba")

SHAPES = [
    (1, 1, 1),
    (1, 784, 50),
    (3, 64, 8),
    (70, 65, 10),
    (100, 130, 64),
    (200, 129, 65),
    (65, 200, 130),
    (5, 7000, 3),  # four slices in float64
    (70, 9, 20_000),  # more columns than zeros are left out for
]
"""Of a product: rows, terms, columns, on both sides of what words, lines and blocks hold."""

MAGNITUDES = {
    "ordinary": lambda rng, shape: rng.normal(size=shape),
    "all sizes": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.integers(-30, 30, shape),
    "tiny": lambda rng, shape: rng.normal(size=shape) * 1e-39,
    "beyond": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.integers(-300, 200, shape),
}


@pytest.fixture(autouse=True)
def _silent():
    with np.errstate(all="ignore"):
        yield


def numbers(rng, shape, kind, dtype, zeros):
    values = MAGNITUDES[kind](rng, shape)
    values[rng.random(shape) < zeros] = 0
    return np.where(rng.random(shape) < 0.1, -values, values).astype(dtype)


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", MAGNITUDES)
def test_products_are_the_defined_ones_with_and_without_their_zeros(rng, kind, shape, dtype, zeros):
    n, k, m = shape
    a, b = numbers(rng, (n, k), kind, dtype, zeros), numbers(rng, (k, m), kind, dtype, 0.1)
    bias = numbers(rng, (m,), kind, dtype, 0.0)
    defined = exact.matmul(np, a, b)
    kernels = _kernels()
    assert same_bits(kernels.matmul(a, b), defined)
    assert same_bits(kernels.affine(a, b, bias), defined + bias)
    dW, db = kernels.affine_gradients(b, np.ascontiguousarray(a.T))
    assert same_bits(dW, defined)
    assert same_bits(db, exact.sum(np, b, axis=0))


def _kernels():
    with xnet.use_backend("numba", reproducible=True) as backend:
        return backend.kernels


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("across", [False, True])
def test_what_is_not_finite_among_zeros(rng, dtype, which, wrong, across):
    a, b = numbers(rng, (70, 130), "ordinary", dtype, 0.95), rng.normal(size=(130, 9)).astype(dtype)
    {"a": a, "b": b}[which][60, 5] = wrong
    found = _kernels().matmul(a, b)
    if across:
        found, _ = _kernels().affine_gradients(b, np.ascontiguousarray(a.T))
    assert same_bits(found, exact.matmul(np, a, b))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["float32", "float64"]))
@property_settings
def test_rows_and_columns_of_zeros_are_left_out(seed, dtype):
    """By the definition itself: they change how nothing is cut, nor what is added."""
    rng = np.random.default_rng(seed)
    n, k, m = rng.integers(1, 40, 3)
    a = numbers(rng, (n, k), "all sizes", dtype, rng.choice([0.0, 0.5, 0.9]))
    a[rng.random(n) < rng.choice([0.0, 0.3, 1.0])] = 0
    a[:, rng.random(k) < rng.choice([0.0, 0.3, 0.9])] = 0
    b = numbers(rng, (k, m), "all sizes", dtype, 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "WORTH_LOOKING", 1 << 40)
        whole = exact.matmul(np, a, b)
        patch.setattr(exact, "WORTH_LOOKING", 0)
        assert same_bits(exact.matmul(np, a, b), whole)


def test_what_is_left_out_is_not_multiplied(monkeypatch, rng):
    a, b, seen = rng.normal(size=(200, 100)), rng.normal(size=(100, 10)), []
    a[:50], a[:, 80:] = 0, 0

    class Counting:
        def __getattr__(self, name):
            return getattr(np, name)

        def matmul(self, left, right):
            seen.append((left.shape, right.shape))
            return np.matmul(left, right)

    exact.matmul(Counting(), a, b)
    assert {left for left, _ in seen} == {(150, 80)}
    assert {right[0] for _, right in seen} == {80}


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("wrong", [np.arange(4.0), np.ones(1, np.float32)])
def test_a_bias_that_does_not_fit_is_not_read_as_if_it_did(rng, reproducible, wrong):
    """Of another dtype, or of one number: that is left to NumPy, which widens or repeats it."""
    x, found = rng.normal(size=(50, 300)).astype(np.float32), []
    for name in ("numpy", "numba"):
        with xnet.use_backend(name, reproducible):
            layer = Affine.from_params(np.ones((300, 4), np.float32), np.ones(4, np.float32))
            layer.params["b"] = wrong
            found.append(layer.forward(x))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0,), (0, 1), (0, 2), (-1, 0), (0, 1, 2), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_sums_along_several_axes(rng, dtype, axis, keepdims):
    a = numbers(rng, (3, 4, 5), "all sizes", dtype, 0.3)
    defined = exact.sum(np, a, axis, keepdims)
    found = _kernels().sum(a, axis, keepdims)
    assert found.shape == defined.shape
    assert same_bits(found, defined)


OUT_OF_MEMORY = """
import resource
import numpy as np
import xnet
from xnet import exact

rng = np.random.default_rng(0)
with xnet.use_backend("numba", reproducible=True) as backend:
    backend.matmul(np.ones((9, 9)), np.ones((9, 9)))
    a, b = rng.random((192, 100_000)), rng.random((100_000, 2))
    defined = exact.matmul(np, a, b)
    used = 1024 * int(next(x for x in open("/proc/self/status") if "VmSize" in x).split()[1])
    resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))
    assert (backend.matmul(a, b) == defined).all()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="says not what memory it uses")
def test_where_there_is_no_memory_for_the_slices_of_many_rows():
    """192 rows at a time take 614 MB. What compiled code raises there nobody hears."""
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- predictions


def network(sizes, dtype, activation=Sigmoid):
    """One on numba."""
    layers = [Affine(*pair) for pair in itertools.pairwise(sizes)]
    between = [layer for pair in layers for layer in (pair, activation())][:-1]
    with xnet.use_backend("numba", reproducible=True):
        return Network(between, seed=3, dtype=dtype)


def as_numpy_says(net, x):
    return same_bits(net.predict(x), net.to("numpy").predict(x)) and same_bits(
        net.scores(x), net.to("numpy").scores(x)
    )


@pytest.mark.parametrize("rows", [1, 2, 65, 500])
@pytest.mark.parametrize("sizes", [(5, 3), (70, 9, 3), (30, 100, 70, 3)], ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_predictions_in_one_call(rng, dtype, rows, sizes, zeros):
    net = network(sizes, dtype, ReLU)
    x = numbers(rng, (rows, sizes[0]), "ordinary", dtype, zeros)
    assert as_numpy_says(net, x)
    assert as_numpy_says(net, x)  # by the slices that were kept
    assert as_numpy_says(net, x[:1])


@pytest.mark.parametrize("name", ["W1", "W2", "b1", "b2"])
@pytest.mark.parametrize("sizes", [(5, 3, 7), (6, 2, 4)], ids=str)
def test_weights_that_change_where_they_are(rng, dtype, name, sizes):
    """Any number of them, also the last of an odd count."""
    net = network(sizes, dtype)
    x = rng.normal(size=(4, sizes[0])).astype(dtype)
    for place in range(net.params[name].size):
        assert as_numpy_says(net, x)
        before = net.predict(x).copy()
        net.params[name].flat[place] += 0.25
        assert as_numpy_says(net, x)
        assert not same_bits(net.predict(x), before)


def test_weights_that_another_array_replaces(rng, dtype):
    net = network((5, 4, 3), dtype)
    x = rng.normal(size=(4, 5)).astype(dtype)
    assert as_numpy_says(net, x)
    net.params["W1"] = 2 * net.params["W1"]
    assert as_numpy_says(net, x)


@pytest.mark.parametrize("where", ["x", "W1", "W2"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_predictions_of_what_is_not_finite(rng, dtype, where, wrong):
    net = network((70, 4, 3), dtype)
    x = numbers(rng, (100, 70), "ordinary", dtype, 0.9)
    assert as_numpy_says(net, x)
    {"x": x, **net.params}[where][2, 1] = wrong
    assert as_numpy_says(net, x)


def test_slices_of_large_weights_are_not_kept(rng, dtype, monkeypatch):
    from xnet_numba import exact as kernels

    monkeypatch.setattr(kernels, "LARGEST_KEPT", 31)
    net = network((5, 4, 3), dtype)
    x = rng.normal(size=(4, 5)).astype(dtype)
    assert as_numpy_says(net, x)
    monkeypatch.setattr(kernels, "LARGEST_KEPT", 32)
    assert as_numpy_says(net, x)
