"""The pages of docs/reproducible/ against xnet: their code and formulas give xnet's bits."""

import dataclasses
import json
import re

import make_vectors
import pytest
import specified
from conftest import OPTIMIZERS, REGISTERED

from xnet import exact, operations, optimizers

FILE = json.loads(make_vectors.PATH.read_text())
VECTORS = FILE["vectors"]
OWN = [cls for cls in REGISTERED if cls.__module__ == operations.__name__]
STEPS = [cls for cls in OPTIMIZERS if cls.__module__ == optimizers.__name__]


@pytest.mark.parametrize("vector", VECTORS, ids=[v["name"] for v in VECTORS])
def test_the_pages_give_the_bits(vector):
    assert from_the_pages(vector) == vector["outputs"]


def from_the_pages(vector):
    """A vector's outputs, as the file has them."""
    given = {k: make_vectors.read(a, vector["dtype"]) for k, a in vector["inputs"].items()}
    settings = make_vectors.unset(vector["settings"])
    found = specified.computed(vector["operation"], vector["dtype"], settings, given)
    return {k: make_vectors.written(a) for k, a in found.items()}


def test_every_operation_and_optimizer_is_specified():
    assert list(specified.OPERATIONS) == [cls.__name__ for cls in OWN]
    assert list(specified.OPTIMIZERS) == [cls.__name__ for cls in STEPS]
    for name, formula in (specified.OPERATIONS | specified.OPTIMIZERS).items():
        assert formula.blocks, name


@pytest.mark.parametrize("cls", OWN + STEPS, ids=lambda cls: cls.__name__)
def test_settings_are_those_of_the_code(cls):
    """Their names and numbers; None, for a weight decay that is not, stands for itself."""
    page = (specified.OPERATIONS | specified.OPTIMIZERS)[cls.__name__]
    given = {
        f.name: f.default
        for f in dataclasses.fields(cls)
        if f.default not in (None, dataclasses.MISSING)
    }
    assert page.settings == given | {k: 1.0 for k in page.settings if k == "class_weights"}
    if cls in STEPS:
        assert len(page.kept) == cls.slots
        assert (cls.__name__ in specified.SHRINK) == cls.decoupled


def test_every_formula_has_its_vectors():
    """Forward and backward of every operation in both dtypes, and every optimizer's step."""
    found = {(v["operation"], v["dtype"]) for v in VECTORS}
    names = [f"{cls.__name__}.{way}" for cls in OWN for way in ("forward", "backward")]
    names += [cls.__name__ for cls in STEPS]
    names += ["matmul", "sum", *exact.ELEMENTARY, "uniform", "train"]
    assert {(name, dtype) for name in names for dtype in make_vectors.DTYPES} <= found


def test_constants_are_those_of_the_code():
    page = specified.ARITHMETIC
    assert tuple(page["INVERSE_FACTORIALS"]) == exact.EXP_COEFFICIENTS
    assert tuple(page["ODD"]) == exact.LOG_COEFFICIENTS
    for name in ("LOG2_E", "LN2_HIGH", "LN2_LOW", "SHIFTER", "SQRT_HALF"):
        assert page[name] == getattr(exact, name)
    assert FILE["constants"] == make_vectors.constants()


def test_decimal_numbers_are_those_of_the_page():
    text = (specified.FOLDER / "operations.md").read_text()
    found = re.findall(r"(\d\.\d+) is `(0x[\w.+-]+)`", text)
    assert len(found) == 5
    for decimal, bits in found:
        assert float(decimal) == float.fromhex(bits)
        assert text.count(decimal) > 1


@pytest.mark.parametrize("name", ["product_slices", "sum_slices"])
def test_slices_of_many_lengths(name, dtype):
    page, ours = specified.ARITHMETIC[name], getattr(exact, name)
    for terms in [*range(1, 300), *(2**k + d for k in range(8, 30) for d in (-1, 0, 1))]:
        assert page(terms, dtype) == ours(terms, dtype)


@pytest.mark.parametrize(
    ("name", "line", "instead"),
    [
        ("GELU", "(x * x * x)", "(x * x)"),
        ("Sigmoid", "dout * (1 - y) * y", "dout * ((1 - y) * y)"),
        ("LayerNorm", "total(dout)", "total(x)"),
        ("BatchNorm", "share = 1 - decay", "share = decay"),
        ("Huber", "0.5 * (d * d)", "0.5 * d"),
    ],
)
def test_another_formula_on_the_page_is_found(monkeypatch, name, line, instead):
    """What the tests above rest on."""
    page = specified.OPERATIONS[name]
    blocks = [block.replace(line, instead) for block in page.blocks]
    assert blocks != page.blocks
    monkeypatch.setattr(page, "blocks", blocks)
    mine = [v for v in VECTORS if v["operation"].startswith(f"{name}.")]
    assert any(from_the_pages(v) != v["outputs"] for v in mine)
