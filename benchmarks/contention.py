"""What does a second thread give, or cost, while another program has one of two cores?

`predict` of 784-50-100-10 in float32, in bursts of a tenth of a second on one thread and on two, in
turns; the mean of each burst, and of those the median. On an idle machine; while a busy loop has
the core that the helper runs on; and while it has either. Linux, two cores or more.

    python benchmarks/contention.py [rows ...]
"""

import os
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
from bench import without_handicaps

import xnet
from xnet.layers import Affine, Sigmoid

BURST = 0.1
BUSY = [sys.executable, "-c", "while True: pass"]


def network():
    layers = [Affine(784, 50), Sigmoid(), Affine(50, 100), Sigmoid(), Affine(100, 10)]
    return xnet.Network(layers, seed=0, dtype="float32", backend="numba")


def burst(net, x, count):
    """Seconds a call."""
    xnet.set_num_threads(count)
    net.predict(x)
    calls, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < BURST:
        net.predict(x)
        calls += 1
    return (now - began) / calls


def measured(net, x, turns=15):
    taken = {1: [], 2: []}
    for _ in range(turns):
        for count, seconds in taken.items():
            seconds.append(burst(net, x, count))
    return {count: statistics.median(seconds) for count, seconds in taken.items()}


def pin(caller, helper):
    """Keep this thread and the helper to cores."""
    os.sched_setaffinity(0, caller)
    for thread in threading.enumerate():
        if thread.name.startswith("xnet-helper"):
            os.sched_setaffinity(thread.native_id, helper)


def main():
    first, second = sorted(os.sched_getaffinity(0))[:2]
    both, net = {first, second}, network()
    on_second = ["taskset", "-c", str(second), *BUSY]
    situations = {
        "idle": (both, both, None),
        "busy loop on the helper's core": ({first}, {second}, on_second),
        "busy loop on one core, helper on either": ({first}, both, on_second),
        "busy loop anywhere": (both, both, BUSY),
    }
    for rows in map(int, sys.argv[1:] or ["100"]):
        x = np.random.default_rng(0).random((rows, 784), dtype=np.float32)
        measured(net, x)  # compiles, and starts the helper
        for situation, (caller, helper, busy) in situations.items():
            pin(caller, helper)
            other = busy and subprocess.Popen(busy)
            try:
                one, two = measured(net, x).values()
            finally:
                if other:
                    other.kill()
                    other.wait()
            print(
                f"{rows:5} rows, {situation:40} one thread {one * 1e6:6.1f} us, "
                f"two {two * 1e6:6.1f}, ratio {two / one:.2f}"
            )


if __name__ == "__main__":
    without_handicaps()
    main()
