"""The helpers of compiled jobs: each piece once, whoever comes late or not at all."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("numba")

from xnet_numba import fused
from xnet_numba.pool import Pool, _serve

import xnet


def forward(pool, helpers, n=500):
    rng = np.random.default_rng(0)
    W, b, x = rng.random((30, 20)), rng.random(20), rng.random((n, 30))
    out = np.full((n, 20), np.nan)
    works = fused._forward_works(x.dtype)
    pool.share(helpers, fused._affine, *works, x, W, b, out)
    np.testing.assert_allclose(out, x @ W + b, rtol=1e-12)


@pytest.mark.parametrize("helpers", [0, 1, 3])
def test_every_row_is_computed_whoever_helps(helpers):
    pool = Pool()
    for _ in range(200):
        forward(pool, helpers)
    assert len(pool.helpers) == helpers


def test_a_helper_that_never_wakes_is_not_waited_for(monkeypatch):
    pool = Pool()
    forward(pool, 1)
    monkeypatch.setattr(pool.helpers[0].alarm, "set", lambda: None)
    while not pool.helpers[0].asleep:
        time.sleep(0.001)
    forward(pool, 1)


def test_helpers_sleep_when_nothing_comes_and_wake_again():
    pool = Pool()
    for _ in range(3):
        forward(pool, 2)
        deadline = time.monotonic() + 10
        while not all(helper.asleep for helper in pool.helpers):
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_a_job_has_no_more_helpers_than_it_may(monkeypatch):
    """A helper of a higher number sees the job, and leaves it."""
    pool = Pool()
    seen = _serve(pool.mail, 1, 0, 1)
    assert seen == 0
    forward(pool, 2)
    forward(pool, 1)
    assert len(pool.helpers) == 2


def test_callers_in_many_threads_do_not_wait_for_each_other():
    pool, failed = Pool(), []

    def call():
        try:
            for _ in range(50):
                forward(pool, 1)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(pool.helpers) == 1


def test_who_holds_the_helpers_leaves_others_to_work_alone():
    pool, asked = Pool(), []
    with pool.lock:
        pool.share(2, lambda mail, helpers: asked.append(helpers))
    pool.share(2, lambda mail, helpers: asked.append(helpers))
    assert asked == [0, 2]


FORK = """
import os, numpy as np, xnet
net = xnet.TwoLayerNet(300, 200, 10, backend="numba")
x = np.random.default_rng(0).random((400, 300))
y = net.predict(x)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(net.predict(x), y) else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_helpers_of_its_own():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_one_thread_means_no_helper(monkeypatch):
    asked, share = [], fused.pool.share
    monkeypatch.setattr(fused.pool, "share", lambda n, *rest: asked.append(n) or share(n, *rest))
    monkeypatch.setattr(xnet.threads, "_chosen", 1)
    net = xnet.TwoLayerNet(300, 200, 10, backend="numba")
    net.predict(np.ones((400, 300)))
    assert asked == [0]
