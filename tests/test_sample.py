"""What `pytest` alone runs: a sample of the cases, and all of them where tests are named."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import MOST, sample


class Case:
    """Of a test, as pytest has it."""

    def __init__(self, test, slow=False, **params):
        self.nodeid = f"{test}[{params}]" if params else test
        self.slow = slow
        if params:
            self.callspec = SimpleNamespace(params=params)

    def get_closest_marker(self, name):
        return self.slow if name == "slow" else None


def test_each_value_is_in_a_case_and_few_cases_are_kept():
    cases = [Case("a", x=x, y=y, z=z) for x, y, z in product(range(5), "ab", range(20))]
    kept = [case.callspec.params for case in sample(cases)]
    for name, values in {"x": range(5), "y": "ab", "z": range(20)}.items():
        assert {params[name] for params in kept} == {*values}
    assert len(kept) <= 27  # each with a value that no other has had


def test_tests_without_cases_are_kept_and_slow_ones_are_not():
    plain, slow = Case("a"), Case("b", slow=True)
    cases = [Case("c", slow=x == 0, x=x) for x in range(3)]
    assert sample([plain, slow, *cases]) == {plain, *cases[1:]}


def test_no_test_has_more_than_its_share():
    assert len(sample([Case("a", x=x) for x in range(3 * MOST)])) == MOST


@pytest.mark.parametrize("workers", [0, 2])
def test_tests_that_are_named_run_whole(workers):
    """By workers, too, which are told."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    named = "tests/test_measures.py"
    command = [sys.executable, "-m", "pytest", "-q", named, "-p", "no:cacheprovider"]
    run = {"cwd": Path(__file__).parents[1], "env": environment, "capture_output": True}
    said = [
        subprocess.run([*command, *more], **run, text=True, check=True).stdout.splitlines()[-1]
        for more in (["-n", str(workers)], ["-n", "0", "--every-case"])
    ]
    assert said[0].partition(" in ")[0] == said[1].partition(" in ")[0]
