"""What does a numerical gradient cost, the notes' way and re-evaluating only what changes?

The notes' loop over 784-50-10 takes 79,520 losses: compare that many times "one loss" with the
whole incremental gradient beside it (`speedup.py` runs the loop in full). A smaller network can be
timed every way: by a network's two methods, by the notes' own code, and as any other f of a vector
of parameters, in a loop, by stacks, or compiled.
"""

import notes
import numpy as np
import pytest

import xnet
from xnet.gradient import numerical_gradient


@pytest.fixture
def digits_like(rng):
    """100 images of 784 pixels, four fifths of them 0 as in MNIST, and their labels."""
    x = rng.random((100, 784))
    x[rng.random(x.shape) < 0.81] = 0
    return x, rng.integers(0, 10, 100)


def _agree(network, gradients, x, t):
    """Check a fast answer before it is timed."""
    exact = network.gradient(x, t)
    xp = network.backend.xp
    return all(float(xp.max(xp.abs(gradients[name] - exact[name]))) < 1e-6 for name in exact)


@pytest.mark.benchmark(group="numerical gradient of 784-50-10, batch 100")
@pytest.mark.parametrize("what", ["incremental", "one loss"])
def test_of_784_50_10(benchmark, backend, digits_like, what):
    network = xnet.TwoLayerNet(784, 50, 10, backend=backend)
    if what == "one loss":
        assert benchmark(network.loss, *digits_like) > 0
        return
    assert _agree(network, network.numerical_gradient(*digits_like), *digits_like)
    benchmark(network.numerical_gradient, *digits_like)


SIZES = ((64, 10), (10,), (10, 10), (10,))
SMALL = "numerical gradient of 64-10-10, batch 20"


@pytest.fixture
def small(digits_like):
    return digits_like[0][:20, :64].copy(), digits_like[1][:20]


@pytest.mark.benchmark(group=SMALL)
@pytest.mark.parametrize("method", ["incremental", "naive"])
def test_methods(benchmark, backend, small, method):
    network = xnet.TwoLayerNet(64, 10, 10, backend=backend)
    assert _agree(network, network.numerical_gradient(*small, method=method), *small)
    benchmark(network.numerical_gradient, *small, method=method)


@pytest.mark.benchmark(group=SMALL)
def test_notes(benchmark, small):
    network = xnet.TwoLayerNet(64, 10, 10, backend="numpy")
    loop = notes.TwoLayerNet({name: array.copy() for name, array in network.params.items()})
    data = small[0], np.eye(10)[small[1]]
    assert _agree(network, loop.numerical_gradient(*data), *small)
    benchmark(loop.numerical_gradient, *data)


def _loss_of_vector(x, t):
    """The network's loss as a function of all its parameters in one vector, for stacks as well."""
    ends = np.cumsum([np.prod(shape) for shape in SIZES])[:-1]

    def loss(vector):
        parts = np.split(vector, ends, axis=-1)
        W1, b1, W2, b2 = (
            part.reshape(*part.shape[:-1], *((1,) * (2 - len(shape))), *shape)
            for part, shape in zip(parts, SIZES, strict=True)
        )
        s = (1 / (1 + np.exp(-(x @ W1 + b1)))) @ W2 + b2
        e = np.exp(s - s.max(axis=-1, keepdims=True))
        y = e / e.sum(axis=-1, keepdims=True)
        return -np.sum(t * np.log(y), axis=(-2, -1)) / len(x)

    return loss


def _compiled_loss_of_vector(x, t):
    numba = pytest.importorskip("numba")

    @numba.njit
    def loss(vector):
        W1, b1 = vector[:640].reshape(64, 10), vector[640:650]
        W2, b2 = vector[650:750].reshape(10, 10), vector[750:]
        s = np.dot(1 / (1 + np.exp(-(np.dot(x, W1) + b1))), W2) + b2
        total = 0.0
        for n in range(s.shape[0]):
            e = np.exp(s[n] - s[n].max())
            total -= np.sum(t[n] * np.log(e / e.sum()))
        return total / x.shape[0]

    return loss


@pytest.mark.benchmark(group=SMALL)
@pytest.mark.parametrize("method", ["loop", "stacked", "compiled"])
def test_any_f(benchmark, small, method):
    network = xnet.TwoLayerNet(64, 10, 10, backend="numpy")
    vector = np.concatenate([array.ravel() for array in network.params.values()])
    make = _compiled_loss_of_vector if method == "compiled" else _loss_of_vector
    f = make(small[0], np.eye(10)[small[1]])
    exact = np.concatenate([array.ravel() for array in network.gradient(*small).values()])
    assert np.abs(numerical_gradient(f, vector, method=method) - exact).max() < 1e-6
    benchmark(numerical_gradient, f, vector, method=method)


@pytest.mark.benchmark(group="one evaluation: 10,000 of an f that does nothing")
@pytest.mark.parametrize("result", [float, np.float64, np.array])
def test_overhead(benchmark, result):
    x, value = np.zeros(5000), result(1.0)
    assert not numerical_gradient(lambda v: value, x).any()
    benchmark(numerical_gradient, lambda v: value, x)
