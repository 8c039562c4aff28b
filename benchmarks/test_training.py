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
        loss = network.train_step(x, t, optimizer)
        backend.synchronize()
        return loss

    assert math.isfinite(benchmark(step))


@pytest.mark.benchmark(group="training step, reproducible against fast")
@pytest.mark.parametrize("mode", ["fast", "reproducible"])
def test_reproducible_step(benchmark, backend, rng, mode):
    here = xnet.resolve(backend.name, reproducible=mode == "reproducible")
    network = xnet.TwoLayerNet(784, 50, 10, activation="relu", dtype="float32", backend=here)
    x, t = here.asarray(rng.random((100, 784)), "float32"), here.asarray(rng.integers(0, 10, 100))
    loss, _ = benchmark(network.loss_and_gradient, x, t)
    assert math.isfinite(loss)
