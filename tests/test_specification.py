"""The pages of docs/reproducible/ against xnet: their code and formulas give xnet's bits."""

import json

import make_vectors
import pytest
import specified

VECTORS = json.loads(make_vectors.PATH.read_text())["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=[v["name"] for v in VECTORS])
def test_the_pages_give_the_bits(vector):
    given = {k: make_vectors.read(a, vector["dtype"]) for k, a in vector["inputs"].items()}
    settings = make_vectors.unset(vector["settings"])
    found = specified.computed(vector["operation"], vector["dtype"], settings, given)
    assert {k: make_vectors.written(a) for k, a in found.items()} == vector["outputs"]
