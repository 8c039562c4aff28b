"""Which backend runs an operation fastest? The sizes are those of a training step on MNIST."""

import numpy as np
import pytest

from xnet.operations import Affine, registered
from xnet.optimizers import OPTIMIZERS

N, D, M, C = 100, 784, 50, 10
KINDS = {k: v for k, v in registered().items() if v.fuses in ("pointwise", "rows", "loss")}


def arrays(backend, rng, dtype, *shapes):
    """Random arrays on a backend."""
    return [backend.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def timed(benchmark, backend, run):
    """Time a call that gives arrays, until the device has finished."""

    def until_done():
        result = run()
        backend.synchronize()
        return result

    result = benchmark(until_done)
    outputs = result if isinstance(result, tuple) else (result,)
    assert all(bool(backend.xp.all(backend.xp.isfinite(output))) for output in outputs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_product(benchmark, backend, rng, way, dtype):
    benchmark.group = f"x W + b, {way}, {dtype}"
    x, W, b, dout = arrays(backend, rng, dtype, (N, D), (D, M), (M,), (N, M))
    affine = Affine(D, M)
    if way == "forward":
        timed(benchmark, backend, lambda: backend.run(affine, x, W, b))
    else:
        timed(benchmark, backend, lambda: backend.run_backward(affine, dout, x, dout, W, b))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("name", KINDS)
def test_operation(benchmark, backend, rng, name, way, dtype):
    benchmark.group = f"{name}, {way}, {dtype}"
    operation = KINDS[name]()
    if operation.fuses == "loss":
        (x,) = arrays(backend, rng, dtype, (N, C))
        t = backend.asarray(np.eye(C)[rng.integers(0, C, N)], dtype)
        if way == "forward":
            timed(benchmark, backend, lambda: backend.predicted(operation, x))
        else:
            timed(benchmark, backend, lambda: backend.loss_and_delta(operation, x, t))
        return
    x, dout = arrays(backend, rng, dtype, (N, M), (N, M))
    y = backend.run(operation, x)
    if way == "forward":
        timed(benchmark, backend, lambda: backend.run(operation, x))
    else:
        timed(benchmark, backend, lambda: backend.run_backward(operation, dout, x, y))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step(benchmark, backend, rng, name, dtype):
    benchmark.group = f"a step of {name}, {dtype}"
    optimizer = OPTIMIZERS[name]()
    W, g = arrays(backend, rng, dtype, (D, M), (D, M))
    memory = [backend.xp.zeros_like(W) for _ in range(optimizer.slots)]
    timed(benchmark, backend, lambda: backend.step(optimizer, 1, W, g, memory))
