"""What a machine computes in reproducible mode, saved and compared with what another does."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from xnet import exact, files, operations, optimizers
from xnet.errors import XnetError
from xnet.testing import parity
from xnet.testing.contracts import CONTRACTS
from xnet.tools import fingerprints

FEW = ("sum", "exp", "matmul", "+ - * / sqrt")


@pytest.fixture
def few(monkeypatch):
    """The trials of what operations are made of, and one contract."""
    trials = [t for t in parity.trials({}, {}) if t.name in FEW or t.name in [*CONTRACTS][:1]]
    monkeypatch.setattr(parity, "trials", lambda: trials)
    return trials


def test_a_hash_is_of_dtype_shape_and_every_bit():
    x = np.array([[1.0, -0.0, np.nan], [np.inf, 2.0, 3.0]])
    found = {
        fingerprints.of_arrays(arrays)
        for arrays in (
            [x],
            [x.astype(np.float32)],
            [x.reshape(3, 2)],
            [x, x],
            [abs(x)],  # 0 for -0
            [np.nextafter(x, 9)],
            [x > 0],
            [],
        )
    }
    assert len(found) == 8


def test_a_hash_knows_neither_strides_nor_byte_order_nor_which_nan():
    x = np.array([[1.0, -0.0, np.nan], [np.inf, 2.0, 3.0]])
    expected = fingerprints.of_arrays([x])
    other_nan = np.where(np.isnan(x), np.array(0xFFF8000000000001).view(float), x)
    assert np.isnan(other_nan).any()
    assert other_nan.tobytes() != x.tobytes()
    for same in (np.asfortranarray(x), x.astype(">f8"), other_nan, x[::-1][::-1]):
        assert fingerprints.of_arrays([same]) == expected
    assert np.signbit(x[0, 1])  # what was handed in is as it was


def test_hashes_are_those_of_every_backend(few):
    expected = fingerprints.taken(["float32", "float64"], 3, 1)
    assert fingerprints.taken(["float32", "float64"], 3, 1, backend="strict") == expected
    names = [f"{t.name}, {kind} numbers, float32" for t in few[1:] for kind in parity.NUMBERS]
    assert [*expected][: len(expected) // 2] == [*names, "training, 3 steps, float32"]
    assert len({results for _, results in expected.values()}) == len(expected)
    assert fingerprints.taken(["float64"], 3, 2) != fingerprints.taken(["float64"], 3, 1)


def test_other_arithmetic_is_found_by_the_name_of_the_operation(few, monkeypatch):
    before = fingerprints.taken(["float64"], 3, 0)
    assert fingerprints.differences(before, before) == []
    *higher, half = exact.EXP_COEFFICIENTS
    monkeypatch.setattr(exact, "EXP_COEFFICIENTS", (*higher, half + 2.0**-49))
    found = fingerprints.differences(fingerprints.taken(["float64"], 3, 0), before)
    assert found[0].name == "exp, normal numbers, float64"
    assert {d.name.split(",")[0] for d in found} <= {"exp", "training"}
    assert not found[0].inputs


def test_what_fails_is_kept_as_such(few, monkeypatch):
    def fail(*_):
        raise RuntimeError("no sums today")

    monkeypatch.setattr(exact, "sum", fail)
    found = fingerprints.taken(["float64"], 3, 0, trials=[t for t in few if t.name == "sum"])
    assert found["sum, normal numbers, float64"][1] == "error: RuntimeError: no sums today"


def test_differences_are_of_what_both_have_in_the_order_of_the_first():
    here = {"c": ["1", "2"], "b": ["1", "2"], "a": ["1", "2"], "only here": ["1", "2"]}
    there = {"only there": ["3", "4"], "a": ["3", "4"], "b": ["1", "2"], "c": ["1", "3"]}
    one, other = fingerprints.differences(here, there)
    assert (one.name, one.inputs, one.here, one.there) == ("c", False, "2", "3")
    assert (other.name, other.inputs, other.here, other.there) == ("a", True, "1", "3")
    assert "the numbers that go in" in str(other)


def test_a_file_gives_back_what_was_saved(tmp_path):
    found = {"sum": ["1", "2"], "exp": ["3", "4"]}
    fingerprints.save(tmp_path / "a.json", found, 7, 3)
    saved = fingerprints.load(tmp_path / "a.json")
    assert (saved.found, saved.steps, saved.seed) == (found, 7, 3)
    assert np.__version__ in saved.where


def test_a_file_is_there_whole_or_not(tmp_path, monkeypatch):
    fingerprints.save(tmp_path / "a.json", {}, 7, 3)
    before = (tmp_path / "a.json").read_bytes()

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        fingerprints.save(tmp_path / "a.json", {"sum": ["1", "2"]}, 7, 3)
    assert (tmp_path / "a.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.json"]


GOOD = {"xnet parity": fingerprints.FORMAT, "steps": 1, "seed": 0, "sha256": {"a": ["1", "2"]}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no file of"),
        (b"\xff\xfe", "no file of"),
        (b"[" * 100_000, "no file of"),
        (b"[]", "of format 1"),
        (b"{}", "of format 1"),
        ({**GOOD, "xnet parity": 2}, "of format 1"),
        ({**GOOD, "steps": "1"}, "damaged"),
        ({**GOOD, "seed": None}, "damaged"),
        ({**GOOD, "sha256": ["a"]}, "damaged"),
        ({**GOOD, "sha256": {"a": "12"}}, "damaged"),
        ({**GOOD, "sha256": {"a": ["1"]}}, "damaged"),
        ({**GOOD, "sha256": {"a": ["1", 2]}}, "damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(XnetError, match=said) as refused:
        fingerprints.load(path)
    assert str(refused.value).startswith(str(path))
    assert len(str(refused.value)) < 400
    path.write_text(json.dumps(GOOD))
    assert fingerprints.load(path).found == GOOD["sha256"]


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(XnetError, match="cannot be read: No such file"):
        fingerprints.load(tmp_path / "a.json")


def test_the_published_hashes_are_those_of_this_version():
    """If this fails because bits were changed on purpose, save them anew: see PUBLISHED."""
    saved = fingerprints.load(fingerprints.PUBLISHED)
    own = [  # tests define others
        {name: kind for name, kind in known.items() if kind.__module__ == module.__name__}
        for module, known in (
            (operations, operations.OPERATIONS),
            (optimizers, optimizers.OPTIMIZERS),
        )
    ]
    trials = [trial for trial in parity.trials(*own) if trial.name not in CONTRACTS]
    found = fingerprints.taken(["float32", "float64"], saved.steps, saved.seed, trials=trials)
    assert [str(difference) for difference in fingerprints.differences(found, saved.found)] == []
    assert found.keys() == saved.found.keys()


@pytest.mark.slow
def test_the_inputs_come_from_no_functions_of_the_platform(few, tmp_path):
    """Another BLAS kernel, one thread, and NumPy's plainest loops: the same of everything."""
    code = (
        "import sys; from xnet.tools import fingerprints as f; "
        "f.save(sys.argv[1], f.taken(['float32', 'float64'], 3, 0), 3, 0)"
    )
    plain = {
        "OPENBLAS_CORETYPE": "Prescott",
        "OPENBLAS_NUM_THREADS": "1",
        "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_ICL",
    }
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "a.json")]
    subprocess.run(command, env=os.environ | plain, check=True, timeout=300)
    there = fingerprints.load(tmp_path / "a.json").found
    everything = fingerprints.taken(["float32", "float64"], 3, 0)
    assert fingerprints.differences(everything, there) == []
    assert everything.keys() <= there.keys()
    assert len(there) > 100
