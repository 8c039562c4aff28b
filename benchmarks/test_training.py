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
