"""The test vectors: every backend computes them, and they tell mistakes."""

import json
import re

import make_vectors
import mutants
import numpy as np
import pytest
import specified
from conftest import BACKENDS, ON_HOST, require_host_cuda
from test_parity import PEERS, make

import xnet
from xnet import exact, operations, optimizers, random
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


# -- mistakes


def test_what_computes_the_mutants_computes_the_vectors():
    assert list(make_vectors.differences(mutants.Plain(reproducible=True), FILE["vectors"])) == []


@pytest.mark.parametrize("of", list(FILE["constants"]))
def test_the_page_says_which_flipped_bits_are_told(of):
    """Of each constant it names the lowest bit from which on all are told; 0 where it says none."""
    page = (make_vectors.PATH.parent / "vectors.md").read_text()
    line = re.search(rf"^\| {of} \|(.*)$", page, re.MULTILINE)[1]
    said = {name: int(bit) for name, bit in re.findall(r"(\w+) from (\d+)", line)}
    for name in FILE["constants"][of]:
        if name in ("LOWEST", "HIGHEST", "SHIFTER"):  # others would do as well
            continue
        told = [mutants.bit_told(of, name, bit, FILE["vectors"]) for bit in (said.get(name, 0), 51)]
        assert all(told), (name, told)
        if name in said:
            assert mutants.bit_told(of, name, said[name] - 1, FILE["vectors"]) is None, name
    assert said.keys() <= FILE["constants"][of].keys()


def test_nothing_tells_the_last_bit_of_sqrt_half():
    """One number of each power of two is on the other side; the logarithm is the same on both."""
    x = np.ldexp(np.nextafter(exact.SQRT_HALF, 0), np.arange(-1021, 1025))
    expected = exact.elementary(np, "log", x)
    with mutants.altered("log", "SQRT_HALF", 0):
        np.testing.assert_array_equal(exact.elementary(np, "log", x), expected)


def test_nothing_tells_a_lower_bit_of_the_far_ends_coefficients():
    """All numbers that can be drawn there are tried."""
    p = np.arange(1, 2 * 130_000, 2) * 2.0**-54
    q = (0.5 - p)[-exact.elementary(np, "log", p) > 25.0]
    assert len(q) == 125_091
    expected = random._quantile(q)
    for name, bit in {"e4": 0, "e5": 6, "e6": 14, "e7": 20, "f5": 5, "f6": 13, "f7": 40}.items():
        with mutants.altered("quantile", name, bit):
            np.testing.assert_array_equal(random._quantile(q), expected)


BITS = {"MIXING": 32, "FIRST": 32, "SECOND": 32, "MULTIPLIER": 128}


@pytest.mark.parametrize("name", BITS)
def test_every_flipped_bit_of_the_generator_is_told(monkeypatch, name):
    """Of the page's own, for NumPy's are in its C code."""
    kept = getattr(specified, name)
    for k, value in enumerate(kept if isinstance(kept, tuple) else (kept,)):
        for bit in range(BITS[name]):
            new = value ^ 1 << bit
            changed = (*kept[:k], new, *kept[k + 1 :]) if isinstance(kept, tuple) else new
            monkeypatch.setattr(specified, name, changed)
            assert any(
                specified.Specified(*map(int, v["settings"]["seed"])).raw()
                != int(v["outputs"]["out"]["values"][0])
                for v in vectors_of("raw")
            ), (k, bit)


@pytest.mark.parametrize("module", ["operations", "optimizers"])
def test_mutants_are_told(module):
    """Every tenth; `python tests/mutants.py` tries them all."""
    found = list(mutants.mutants(module, every=10))
    assert len(found) > 8
    for where, what, code in found:
        by = mutants.told(module, where, what, code, FILE["vectors"])
        assert by or mutants.same(where, what), (where, what)
        if by and where[0] in (*operations.OPERATIONS, *optimizers.OPTIMIZERS):
            assert by.startswith(where[0]) or "Error" in by or module == "optimizers", (where, by)


@pytest.mark.parametrize(
    ("module", "place", "what"),
    [
        ("exact", "_reduced", "associated: x - n * LN2_HIGH - n * LN2_LOW"),
        ("exact", "_reduced", "fused: p * r + coefficient"),
        ("exact", "exp_formula", "associated: r * r * p + r + 1.0"),
        ("exact", "exp_formula", "fused: r * r * p + r"),
        ("exact", "log_formula", "fused: R * z + coefficient"),
        ("exact", "log_formula", "inverse: f / (f + 2.0)"),
        ("exact", "log1p_formula", "last bit: 1.0"),
        ("exact", "product_slices", "plus 1: 2"),
        ("exact", "sum_slices", "plus 1: 53"),
        ("random", "_quantile", "fused: 0.180625 - q * q"),
        ("random", "_ratio", "plus 1: 0"),
        ("random", "Generator", "last bit: 0.5"),
    ],
)
def test_another_order_is_told(module, place, what):
    """And by the name of an operation that it concerns."""
    found = [m for m in mutants.mutants(module, place) if m[1].startswith(what)]
    assert found
    for where, text, code in found:
        assert mutants.told(module, where, text, code, FILE["vectors"]), text


ONE_ROUNDING = {
    "ReLU.forward", "ReLU.backward", "HardSigmoid.backward", "HardTanh.forward",
    "HardTanh.backward", "AbsoluteError.backward", "Affine.backward", "Normalization.backward",
}  # fmt: skip
"""Operations whose numbers are rounded once, if at all: in float64 and then is the same."""


def test_float32_that_is_kept_in_float64_is_told():
    backend = xnet.resolve("numpy", reproducible=True)
    told = {}
    for v in FILE["vectors"]:
        if "." in v["operation"] and v["dtype"] == "float32":
            found = make_vectors.computed(
                backend, v["operation"], "float64", v["settings"], v["inputs"]
            )
            with np.errstate(over="ignore"):
                late = {k: make_vectors.written(a.astype("float32")) for k, a in found.items()}
            differs = late != v["outputs"]
            told[v["operation"]] = told.get(v["operation"], False) or differs
    assert {name for name, by in told.items() if not by} == ONE_ROUNDING
