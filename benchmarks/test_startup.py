"""What does `import xnet` cost, beside `import numpy`? Each in a process of its own."""

import subprocess
import sys

import pytest

FIRST = "import xnet; xnet.TwoLayerNet(784, 50, 10).predict([[0.0] * 784])"


@pytest.mark.benchmark(group="import in a new process")
@pytest.mark.parametrize("what", ["pass", "import numpy", "import xnet", FIRST])
def test_import(benchmark, what):
    ran = benchmark(subprocess.run, [sys.executable, "-c", what], check=True)
    assert ran.returncode == 0
