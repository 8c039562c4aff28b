"""The helpers of compiled jobs: each piece once, whoever comes late or not at all."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("numba")

import xnet_numba.pool
from numba import types
from xnet_numba import fused, passes
from xnet_numba.compiling import routine
from xnet_numba.intrinsics import atomic_add, atomic_load, int64s_at, pause
from xnet_numba.pool import ALONE, CALL, CLOCK, PLACES, Pool, _now, _serve, claim, run

import xnet
from xnet.optimizers import SGD
from xnet.testing.parity import same_bits


@pytest.fixture
def allow(monkeypatch):
    """Calling it says how many helpers there may be from then on."""
    return lambda helpers: monkeypatch.setattr(xnet_numba.pool, "thread_count", lambda: helpers + 1)


def forward(pool, work=Pool.WAKE_FROM, n=500):
    rng = np.random.default_rng(0)
    W, b, x = rng.random((30, 20)), rng.random(20), rng.random((n, 30))
    out = np.full((n, 20), np.nan)
    pool.share(work, passes._affine, fused._head_of(x.dtype), x, W, b, out)
    np.testing.assert_allclose(out, x @ W + b, rtol=1e-12)


@pytest.mark.parametrize("helpers", [0, 1, 3])
def test_every_row_is_computed_whoever_helps(allow, helpers):
    pool = Pool()
    allow(helpers)
    for _ in range(200):
        forward(pool)
    assert len(pool.helpers) == helpers


def test_a_helper_that_never_wakes_is_not_waited_for(monkeypatch, allow):
    pool = Pool()
    allow(1)
    forward(pool)
    monkeypatch.setattr(pool.helpers[0].alarm, "set", lambda: None)
    until_asleep(pool)
    forward(pool)


def until_asleep(pool):
    deadline = time.monotonic() + 10
    while not all(helper.asleep for helper in pool.helpers):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_helpers_sleep_when_nothing_comes_and_wake_again(allow):
    pool = Pool()
    allow(2)
    for _ in range(3):
        forward(pool)
        assert len(pool.helpers) == 2
        until_asleep(pool)


def test_helpers_are_woken_for_much_work_or_for_a_loop(monkeypatch):
    """To wake one takes longer than a small job."""
    pool, now = Pool(), 1000.0
    monkeypatch.setattr(xnet_numba.pool.time, "monotonic", lambda: now)
    assert pool._awake(1, Pool.HELP_FROM) == 0
    assert pool.helpers == []
    now += 1
    assert pool._awake(1, Pool.WAKE_FROM - 1) == 0
    now += Pool.LOOP_SECONDS / 2
    assert pool._awake(1, Pool.WAKE_FROM - 1) == 1
    until_asleep(pool)
    now += 1
    assert pool._awake(1, Pool.WAKE_FROM - 1) == 0
    assert pool._awake(1, Pool.WAKE_FROM) == 1


def test_a_helper_does_not_sleep_while_a_call_is_under_way(monkeypatch):
    """Its caller may have seen it awake still, and there may be a job at the end of the call."""
    pool, served = Pool(), []

    def serve(mail, index, seen, looks):
        served.append(index)
        pool.places[CALL] = len(served) < 3
        return seen

    monkeypatch.setattr(xnet_numba.pool, "_serve", serve)
    helper = xnet_numba.pool._Helper(pool, 0)
    helper.alarm.set()
    deadline = time.monotonic() + 10
    while len(served) < 3 or not helper.asleep:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert len(served) == 3


def test_a_helper_waits_for_the_job_of_a_long_call():
    pool = Pool()
    pool.places[CALL] = 1
    returned = []
    waiting = threading.Thread(target=lambda: returned.append(_serve(pool.mail, 0, 0, 1)))
    waiting.start()
    time.sleep(0.05)
    assert not returned
    pool.places[CALL] = 0
    waiting.join(10)
    assert returned == [0]


def test_a_job_has_no_more_helpers_than_it_may(allow):
    """A helper of a higher number sees the job, and leaves it."""
    pool = Pool()
    seen = _serve(pool.mail, 1, 0, 1)
    assert seen == 0
    allow(2)
    forward(pool)
    allow(1)
    forward(pool)
    assert len(pool.helpers) == 2


def late(at_job, helping):
    """Work of which a helper's part takes twice as long as all of the caller's, and more."""
    job = int64s_at(at_job, 5)
    places = int64s_at(job[0], PLACES)
    if helping:
        atomic_add(at_job + 8, 1)
        while atomic_load(at_job + 24) == 0:
            pause()
        while _now(places) < job[3] + 2 * (job[3] - job[2]) + 1_000_000:
            pause()
    else:
        job[2] = _now(places)
        while job[4] != 0 and atomic_load(at_job + 8) == 0:
            pause()
        atomic_add(at_job + 24, _now(places))


def joined(pool, wait_for_it):
    """How many helpers took part in `late`, and when the caller's own part was done."""
    job = np.array([pool.mail, 0, 0, 0, wait_for_it])
    run(pool.mail, routine(late, types.int64, types.int64), job.ctypes.data, 1)
    return job[1], job[3]


def test_who_lost_much_by_waiting_for_a_helper_works_alone_for_a_while(allow):
    """As while another program has its processor."""
    pool = Pool()
    if not pool.places[CLOCK]:
        pytest.skip("this system has no such clock")
    pool.places[CALL] = 1  # keeps the helper awake
    helper = xnet_numba.pool._Helper(pool, 0)
    helper.alarm.set()
    count, done = joined(pool, True)
    assert count == 1
    assert pool.places[ALONE] - done > 20_000_000  # for it waited a millisecond at least
    pool.places[ALONE] += 3600 * 10**9  # however slow this machine is
    assert joined(pool, False)[0] == 0
    pool.places[ALONE] = 1  # it is over
    assert joined(pool, True)[0] == 1
    pool.places[CALL] = 0


def test_a_sleeping_helper_is_not_woken_in_that_while(monkeypatch):
    pool = Pool()
    now = 5 * 10**9
    monkeypatch.setattr(xnet_numba.pool.time, "clock_gettime_ns", lambda clock: now, raising=False)
    pool.places[ALONE] = now + 1
    assert pool._awake(1, Pool.WAKE_FROM) == 0
    assert pool.helpers == []
    now += 1
    assert pool._awake(1, Pool.WAKE_FROM) == 1


def test_without_a_clock_helpers_help(allow):
    """As on Windows."""
    pool = Pool()
    pool.places[CLOCK] = 0
    allow(1)
    for _ in range(50):
        forward(pool)
    assert pool.places[ALONE] == 0
    assert len(pool.helpers) == 1


def test_callers_in_many_threads_do_not_wait_for_each_other(allow):
    pool, failed = Pool(), []
    allow(1)

    def call():
        try:
            for _ in range(50):
                forward(pool)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(pool.helpers) == 1


def test_training_goes_on_while_many_threads_predict():
    """In reproducible mode; each as far as it comes, and to the same bits as alone."""
    backend = xnet.resolve("numba", reproducible=True)
    rng = np.random.default_rng(0)
    x, t = rng.random((300, 100)), rng.integers(0, 10, 300)
    fixed = xnet.TwoLayerNet(100, 50, 10, backend=backend, seed=1)
    expected, wrong, over = fixed.predict(x), [], threading.Event()

    def trained():
        net, optimizer = xnet.TwoLayerNet(100, 50, 10, backend=backend, seed=2), SGD(0.1)
        for _ in range(20):
            net.train_step(x, t, optimizer)
        return net.params["W1"]

    def predict():
        while True:
            if not same_bits(fixed.predict(x), expected):
                wrong.append(threading.get_ident())
            if over.is_set():
                return

    alone = trained()
    predicting = [threading.Thread(target=predict) for _ in range(8)]
    for thread in predicting:
        thread.start()
    try:
        assert same_bits(trained(), alone)
    finally:
        over.set()
        for thread in predicting:
            thread.join(60)
    assert not any(thread.is_alive() for thread in predicting)
    assert wrong == []


def test_who_holds_the_helpers_leaves_others_to_work_alone(allow):
    pool, asked = Pool(), []
    allow(2)
    with pool.lock:
        pool.share(Pool.WAKE_FROM, lambda mail, helpers: asked.append(helpers))
    pool.share(Pool.WAKE_FROM, lambda mail, helpers: asked.append(helpers))
    assert asked == [0, 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_who_is_interrupted_gives_the_helpers_back(allow, error):
    pool = Pool()
    allow(1)

    def fail(mail, helpers):
        raise error

    for _ in range(2):
        with pytest.raises(error):
            pool.share(Pool.WAKE_FROM, fail)
        assert not pool.lock.locked()
        assert pool.places[CALL] == 0
        forward(pool)
    assert len(pool.helpers) == 1


PROCESSES = """
import sys, threading
import numpy as np, xnet

x = np.random.default_rng(0).random((400, 300))

def work(nets):
    return [net.predict(x).tobytes() for net in nets]

if __name__ == "__main__":
    modes = [xnet.resolve("numba", reproducible) for reproducible in (False, True)]
    nets = [xnet.TwoLayerNet(300, 200, 10, backend=mode) for mode in modes]
    expected, stop = work(nets), threading.Event()

    def go_on():
        while not stop.is_set():
            work(nets)

    computing = threading.Thread(target=go_on)
    computing.start()
    try:
        if sys.argv[1] == "loky":
            import joblib
            found = joblib.Parallel(n_jobs=2)(joblib.delayed(work)(nets) for _ in range(4))
        else:
            import concurrent.futures, multiprocessing
            context = multiprocessing.get_context(sys.argv[1])
            with concurrent.futures.ProcessPoolExecutor(2, context) as executor:
                found = list(executor.map(work, [nets] * 4))
    finally:
        stop.set()
        computing.join()
    assert found == [expected] * 4
"""


FORK = """
import os, numpy as np, xnet
from xnet_numba.pool import ACTIVE, pool

net = xnet.TwoLayerNet(300, 200, 10, backend="numba")
x = np.random.default_rng(0).random((400, 300))
y = net.predict(x)
pool.lock.acquire()
pool.places[ACTIVE] = 1
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(net.predict(x), y) and pool.places[ACTIVE] == 0 else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_that_is_forked_within_a_job_has_helpers_of_its_own():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [*multiprocessing.get_all_start_methods(), "loky"])
def test_other_processes_compute_however_they_start(tmp_path, how):
    """While kernels run here: a forked child inherits neither helpers nor a lock that is held."""
    if how == "loky":
        pytest.importorskip("joblib")
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, how], timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_one_thread_means_no_helper(monkeypatch):
    asked, awake = [], fused.pool._awake
    monkeypatch.setattr(fused.pool, "_awake", lambda n, work: asked.append(n) or awake(n, work))
    monkeypatch.setattr(xnet.threads, "_chosen", 1)
    net = xnet.TwoLayerNet(300, 200, 10, backend="numba")
    net.predict(np.ones((400, 300)))
    assert asked == [0]


def test_each_piece_is_claimed_once_from_the_front_or_from_the_back():
    counts = np.zeros(3, np.int64)
    whose = [0, 1, 1, 0, 1, 0, 0, 1, 1]
    claimed = [claim(counts.ctypes.data, helping, 7) for helping in whose]
    assert claimed == [0, 6, 5, 1, 4, 2, 3, -1, -1]
