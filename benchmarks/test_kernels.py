"""Which backend runs a kernel fastest? The sizes are those of a training step on MNIST."""

import numpy as np
import pytest

N, D, M, C = 100, 784, 50, 10


def _arguments(rng):
    """Host arrays for each kernel."""
    x, W, b = rng.random((N, D)), rng.standard_normal((D, M)), rng.random(M)
    hidden, scores = rng.standard_normal((N, M)), rng.standard_normal((N, C))
    y = np.full((N, C), 1 / C)
    t = np.eye(C)[rng.integers(0, C, N)]
    return {
        "affine": (x, W, b),
        "affine_backward": (hidden, x, W),
        "sigmoid": (hidden,),
        "sigmoid_backward": (hidden, hidden),
        "relu": (hidden,),
        "relu_backward": (hidden, hidden <= 0),
        "softmax": (scores,),
        "softmax_with_loss": (scores, t),
        "softmax_with_loss_backward": (y, t),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", list(_arguments(np.random.default_rng(0))))
def test_kernel(benchmark, backend, rng, kernel, dtype):
    benchmark.group = f"{kernel} {dtype}"
    arrays = [
        backend.asarray(a, None if a.dtype == bool else dtype) for a in _arguments(rng)[kernel]
    ]

    def run():
        result = getattr(backend, kernel)(*arrays)
        backend.synchronize()
        return result

    result = benchmark(run)
    outputs = result if isinstance(result, tuple) else (result,)
    assert all(bool(backend.xp.all(backend.xp.isfinite(output))) for output in outputs)
