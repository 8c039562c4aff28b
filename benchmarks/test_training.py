"""How long does one training step of 784-50-10, ReLU, batch 100, take on each backend?"""

import math

import pytest

import xnet
from xnet.optimizers import SGD


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_step(benchmark, backend, rng, dtype):
    benchmark.group = f"training step {dtype}"
    network = xnet.TwoLayerNet(784, 50, 10, activation="relu", dtype=dtype, backend=backend)
    x = backend.asarray(rng.random((100, 784)), dtype)
    t = backend.asarray(rng.integers(0, 10, 100))
    optimizer = SGD(0.1)

    def step():
        loss, gradients = network.loss_and_gradient(x, t)
        optimizer.update(network.params, gradients)
        backend.synchronize()
        return loss

    assert math.isfinite(benchmark(step))


@pytest.mark.benchmark(group="numerical gradient of 8-5-3, 10 samples")
def test_numerical_gradient(benchmark, backend, rng):
    network = xnet.TwoLayerNet(8, 5, 3, 0.5, backend=backend)
    x, t = backend.asarray(rng.random((10, 8))), backend.asarray(rng.integers(0, 3, 10))
    gradients = benchmark(network.numerical_gradient, x, t)
    exact = network.gradient(x, t)
    for name, gradient in gradients.items():
        assert float(backend.xp.max(backend.xp.abs(gradient - exact[name]))) < 1e-6
