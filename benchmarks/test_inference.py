"""One sample at a time or a batch (§3.6.3)? And on which backend?"""

import pytest


@pytest.mark.benchmark(group="predict 100 samples")
@pytest.mark.parametrize("way", ["per_sample", "batched"])
def test_predict(benchmark, network, rng, way):
    x = network.backend.asarray(rng.random((100, 784)), "float32")
    samples = [x] if way == "batched" else [x[i, ...] for i in range(100)]

    def predict():
        outputs = [network.predict(sample) for sample in samples]
        network.backend.synchronize()
        return outputs

    outputs = benchmark(predict)
    assert sum(y.shape[0] if y.ndim == 2 else 1 for y in outputs) == 100


@pytest.mark.parametrize("n", [1, 10, 100, 1_000, 10_000])
def test_predict_batch(benchmark, network, rng, n):
    benchmark.group = f"predict a batch of {n}"
    x = network.backend.asarray(rng.random((n, 784)), "float32")

    def predict():
        y = network.predict(x)
        network.backend.synchronize()
        return y

    assert benchmark(predict).shape == (n, 10)
