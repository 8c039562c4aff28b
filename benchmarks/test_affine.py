"""Is x W + b, forward or backward, ever slower than the expression that one writes in NumPy?"""

import numpy as np
import pytest
from bench import AFFINE_BATCHES, AFFINE_WIDTHS
from conftest import BACKENDS

import xnet
from xnet import operations

BY_HAND = {
    "forward": lambda x, W, b, dout: x @ W + b,
    "backward": lambda x, W, b, dout: (dout @ W.T, x.T @ dout, dout.sum(axis=0)),
}


def on(backend, inputs, outputs):
    """The same two on a backend, each until its device has finished."""
    affine = operations.Affine(inputs, outputs)

    def forward(x, W, b, dout):
        out = backend.run(affine, x, W, b)
        backend.synchronize()
        return out

    def backward(x, W, b, dout):
        gradients = backend.run_backward(affine, dout, x, dout, W, b)
        backend.synchronize()
        return gradients

    return {"forward": forward, "backward": backward}


@pytest.mark.parametrize("contender", ["NumPy by hand", *BACKENDS])
@pytest.mark.parametrize("way", BY_HAND)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", AFFINE_BATCHES)
@pytest.mark.parametrize(("inputs", "outputs"), AFFINE_WIDTHS)
def test_affine(benchmark, rng, inputs, outputs, n, dtype, way, contender):
    benchmark.group = f"affine {way}, {n:,} by {inputs}×{outputs}, {dtype}"
    shapes = (n, inputs), (inputs, outputs), (outputs,), (n, outputs)
    arrays = [rng.random(shape).astype(dtype) for shape in shapes]
    run = BY_HAND[way]
    if contender in BACKENDS:
        backend = xnet.resolve(contender)
        arrays, run = (
            [backend.asarray(array) for array in arrays],
            on(backend, inputs, outputs)[way],
        )
    found = benchmark(run, *arrays)
    first = found if way == "forward" else found[0]
    assert first.shape == (n, outputs if way == "forward" else inputs)
    assert np.isfinite(float(first[0, 0]))
