"""What does a numerical gradient cost, the notes' way and re-evaluating only what changes?

The notes' loop over 784-50-10 takes 79,520 losses: compare that many times "one loss" with the
whole incremental gradient beside it. A smaller network can be timed both ways.
"""

import pytest

import xnet


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


@pytest.mark.benchmark(group="numerical gradient of 64-10-10, batch 20")
@pytest.mark.parametrize("method", ["incremental", "naive"])
def test_methods(benchmark, backend, digits_like, method):
    x, t = digits_like[0][:20, :64], digits_like[1][:20]
    network = xnet.TwoLayerNet(64, 10, 10, backend=backend)
    assert _agree(network, network.numerical_gradient(x, t, method=method), x, t)
    benchmark(network.numerical_gradient, x, t, method=method)
