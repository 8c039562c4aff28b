import json
import os
import subprocess
import sys

import pytest

import xnet
from xnet import threads


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(threads, "_chosen", None)
    monkeypatch.setattr(threads, "processors", lambda: 4)
    monkeypatch.setattr(threads, "_limit_blas", lambda count: None)


def test_without_a_setting_every_processor():
    assert xnet.num_threads() == 4


def test_no_more_than_there_are_processors():
    assert xnet.set_num_threads(2) == xnet.num_threads() == 2
    assert xnet.set_num_threads(100) == 4


@pytest.mark.parametrize("count", [0, -1])
def test_less_than_one_is_refused(count):
    with pytest.raises(ValueError, match=f"count is {count}, expected at least 1"):
        xnet.set_num_threads(count)


@pytest.mark.parametrize("count", [1.5, "2", None])
def test_what_is_no_number_is_refused(count):
    with pytest.raises(TypeError, match="expected a whole number of threads"):
        xnet.set_num_threads(count)


@pytest.mark.parametrize("value", ["x", "0", "-1", "1.5"])
def test_bad_environment(monkeypatch, value):
    monkeypatch.setenv("XNET_NUM_THREADS", value)
    with pytest.raises(ValueError, match="XNET_NUM_THREADS is"):
        threads.set_from_environment()


SCRIPT = """
import json, xnet
net = xnet.TwoLayerNet(30, 20, 2, backend="numba")
net.predict([[1.0] * 30])
import numpy, threadpoolctl
from xnet_numba.compiling import thread_count
inside = thread_count()
blas = [b["num_threads"] for b in threadpoolctl.threadpool_info() if b["user_api"] == "blas"]
print(json.dumps([xnet.num_threads(), net.backend.threads(), inside, blas]))
"""


def test_the_environment_governs_numba_and_blas():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"XNET_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    ours, backend, inside, blas = json.loads(done.stdout)
    assert ours == backend == inside == 1
    assert blas
    assert set(blas) == {1}


def test_a_bad_environment_is_an_error_of_the_backend():
    done = subprocess.run(
        [sys.executable, "-c", "import xnet; xnet.get_backend()"],
        env=os.environ | {"XNET_NUM_THREADS": "many"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "XNET_NUM_THREADS is 'many', expected a whole number" in done.stderr
