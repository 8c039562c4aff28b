"""The report on other processors: what it calls equal, and what not. Running it takes an hour."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "other_processors.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("other_processors", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(**other):
    same = {"results": 2, "vectors": 3, "results apart": [], "vectors apart": []}
    return same | {"sha256": {"SGD": "1", "Adam": "2"}} | other


def test_what_is_equal_is_counted(script):
    assert script.apart(row(), row()) == []
    assert script.verdict(row(), row()) == "7 equal"


@pytest.mark.parametrize(
    "other",
    [
        {"results apart": ["Adam"]},
        {"vectors apart": ["Adam"]},
        {"sha256": {"SGD": "1", "Adam": "3"}},
    ],
)
def test_what_is_otherwise_is_named(script, other):
    assert script.apart(row(**other), row()) == ["Adam"]
    assert script.verdict(row(**other), row()) == "1 of 7 apart, first Adam"


def test_what_is_refused_says_why(script):
    assert script.verdict(row(refused="no"), row()) == "refused (no); all the same, 7 equal"


def test_an_unknown_processor_is_refused_by_name(script, monkeypatch):
    monkeypatch.syspath_prepend(str(PATH.parent))
    with pytest.raises(SystemExit, match="unknown processors: vax; there are aarch64, "):
        script.main(["vax"])


def test_every_processor_is_run_one_way(script):
    ways = [(p.loader is None) + (p.emulator is None) for p in script.PROCESSORS.values()]
    assert set(ways) == {1}
