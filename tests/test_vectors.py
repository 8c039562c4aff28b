"""The test vectors: every backend computes them, and they tell mistakes."""

import json

import make_vectors
import pytest
from conftest import BACKENDS, ON_HOST, require_host_cuda
from test_parity import PEERS, make

import xnet
from xnet.errors import BackendError

FILE = json.loads(make_vectors.PATH.read_text())
OPERATIONS = list(dict.fromkeys(v["operation"] for v in FILE["vectors"]))


def vectors_of(*names):
    """The vectors of these operations."""
    return [v for v in FILE["vectors"] if v["operation"] in names]


@pytest.fixture(params=[*BACKENDS, ON_HOST, "torch"])
def reproducible(request, monkeypatch):
    """Each usable backend in reproducible mode."""
    if request.param == ON_HOST:
        require_host_cuda(monkeypatch)
    return make(request.param.partition(",")[0], True)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_backend_gives_the_bits(reproducible, operation):
    found = vectors_of(operation)
    assert found
    assert list(make_vectors.differences(reproducible, found)) == []


def test_jax_is_refused_by_name():
    """XLA takes subnormals for zeros."""
    jax = make("jax", True)
    assert "jax" in PEERS
    with pytest.raises(BackendError, match="jax"):
        list(make_vectors.differences(jax, vectors_of("matmul")))


def test_the_file_is_what_the_script_makes():
    made = make_vectors.content(xnet.resolve("numpy", reproducible=True))
    assert make_vectors.dumped(made) == make_vectors.PATH.read_text()
    assert make_vectors.PATH.stat().st_size < 400_000
