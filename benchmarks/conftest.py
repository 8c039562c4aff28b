"""The backends that the benchmarks compare, and the network they all run."""

import numpy as np
import pytest
from bench import handicaps

import xnet
from xnet.layers import Affine, Sigmoid


def pytest_configure(config):
    """Refuse to time what runs on another processor's kernels."""
    if (found := handicaps()) and not config.getoption("--benchmark-disable"):
        pytest.exit(f"unset {' and '.join(found)} first: contenders are slowed down", returncode=2)


BACKENDS = [info.name for info in xnet.backends() if info.usable]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Each usable backend in turn, as the current one."""
    with xnet.use_backend(request.param) as current:
        yield current


@pytest.fixture
def network(backend):
    """The notes' inference network (§3.6.2), 784-50-100-10, float32."""
    layers = [Affine(784, 50), Sigmoid(), Affine(50, 100), Sigmoid(), Affine(100, 10)]
    return xnet.Network(layers, dtype="float32", backend=backend)


@pytest.fixture
def rng():
    """Data are random: no benchmark here depends on their values."""
    return np.random.default_rng(0)
