"""One sample at a time or a batch (§3.6.3)? And on which backend?"""

import pytest
from bench import BATCHES


@pytest.mark.parametrize("way", ["per_sample", "batched"])
@pytest.mark.parametrize("n", BATCHES)
def test_predict(benchmark, network, rng, n, way):
    benchmark.group = f"predict {n:,} images, one at a time or as a batch"
    x = network.backend.asarray(rng.random((n, 784)), "float32")
    samples = [x] if way == "batched" else [x[i, ...] for i in range(n)]

    def predict():
        outputs = [network.predict(sample) for sample in samples]
        network.backend.synchronize()
        return outputs

    outputs = benchmark(predict)
    assert sum(y.shape[0] if y.ndim == 2 else 1 for y in outputs) == n
