"""What does a first import or prediction cost? Each in a process of its own, kernels cached."""

import subprocess
import sys

import pytest
from bench import START_UPS
from conftest import BACKENDS


@pytest.mark.benchmark(group="start of a new process")
@pytest.mark.parametrize("what", START_UPS)
def test_start_up(benchmark, what):
    if "numba" in what and "numba" not in BACKENDS:
        pytest.skip("Numba is not installed")
    ran = benchmark(subprocess.run, [sys.executable, "-c", START_UPS[what]], check=True)
    assert ran.returncode == 0
