import json
import os
import subprocess
import sys

import pytest
import threadpoolctl

import xnet
from xnet import threads

processors, limit_blas = threads.processors, threads._limit_blas


class Libraries:
    """Stands for threadpoolctl's controller: what it selects, and how many threads it is told."""

    def __init__(self):
        self.told = []

    def __call__(self):
        return self

    def select(self, **kinds):
        assert kinds == {"user_api": "blas"}
        self.lib_controllers = [self]
        return self

    def set_num_threads(self, count):
        self.told.append(count)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(threads, "_chosen", None)
    monkeypatch.setattr(threads, "processors", lambda: 4)
    monkeypatch.setattr(threads, "_limit_blas", lambda count: None)


def test_without_a_setting_every_processor():
    assert xnet.num_threads() == 4


def test_processors_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0: {3, 5, 6}}[pid], raising=False)
    assert processors() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, expected in ((7, 7), (None, 1)):  # None: it is not known
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert processors() == expected


def test_blas_is_told(monkeypatch):
    """What is loaded when the number is set, and what is loaded later."""
    told = Libraries()
    monkeypatch.setattr(threadpoolctl, "ThreadpoolController", told)
    monkeypatch.setattr(threads, "_limit_blas", limit_blas)
    threads.apply_to_blas()
    assert told.told == []  # each decides for itself
    xnet.set_num_threads(3)
    threads.apply_to_blas()
    assert told.told == [3, 3]


@pytest.mark.parametrize(("processes", "share"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_processes_share_the_processors(monkeypatch, processes, share):
    class Library:
        def __init__(self, count):
            self.num_threads = count

        def set_num_threads(self, count):
            self.num_threads = count

    many, one = Library(4), Library(1)
    monkeypatch.setattr(threads, "_blas", lambda: [many, one])
    with threads.shared(processes):
        assert xnet.num_threads() == share
        assert (many.num_threads, one.num_threads) == (share, 1)
    assert (xnet.num_threads(), many.num_threads, one.num_threads) == (4, 4, 1)
    xnet.set_num_threads(3)
    with threads.shared(processes):
        assert xnet.num_threads() == 3


def test_no_more_than_there_are_processors():
    assert xnet.set_num_threads(1) == xnet.num_threads() == 1
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


@pytest.mark.parametrize(("value", "count"), [("1", 1), (" 3 ", 3), ("", 4)])
def test_environment(monkeypatch, value, count):
    monkeypatch.setenv("XNET_NUM_THREADS", value)
    threads.set_from_environment()
    assert xnet.num_threads() == count
    xnet.set_num_threads(2)
    threads.set_from_environment()
    assert xnet.num_threads() == 2  # what is set from inside stays


@pytest.mark.parametrize("value", ["x", "0", "-1", "1.5", "²", "٣"])
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


def test_blas_that_nobody_has_loaded_yet_is_limited():
    code = (
        "import xnet; xnet.set_num_threads(1); import threadpoolctl;"
        "pools = threadpoolctl.threadpool_info();"
        "print({pool['num_threads'] for pool in pools if pool['user_api'] == 'blas'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{1}"


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
