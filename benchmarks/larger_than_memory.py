"""What does it take to train on a memory map that is larger, as floats, than memory should be?

A file of so many rows of 784 bytes, random pixels and labels, is trained on for 200 steps of 100,
by 784-50-10, in a process of its own: the time to the first step, from the call of `train` on, and
the most memory of the process's own (RssAnon: without the pages of files, which the system takes
back as it likes), sampled every 2 ms, at the end too, when the accuracy on all rows is taken. Then
another process trains on the same data as an array of floats in memory: the parameters must have
the same bits.

    python benchmarks/larger_than_memory.py --folder /tmp
    python benchmarks/larger_than_memory.py --rows 100000 --backend numba
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from bench import without_handicaps

import xnet

STEPS, BATCH, PIXELS = 200, 100, 784
MEMORY, FIRST_STEP = 300e6, 1.0
"""Bytes of the process's own, and seconds, that must not be reached."""


def make(path, rows):
    """A file of random bytes: a block of them, shifted and flipped, for that is quick."""
    block = np.random.default_rng(0).integers(0, 256, (1000, PIXELS), np.uint8)
    with path.open("wb") as file:
        for k in range(0, rows, 1000):
            file.write(
                (np.roll(block, k // 1000, axis=1) ^ (k // 1000 % 256))[: rows - k].tobytes()
            )


def own_memory():
    """Memory of this process's own, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s*(\d+)", status)[1]) << 10


class Watch:
    """Progress that notes the first step, and the most memory until the run ends."""

    def start(self, total):
        """The run's first step is yet to come."""
        self.first = None

    def advance(self, history):
        """A step is done."""
        if self.first is None:
            self.first = time.perf_counter()

    def stop(self):
        """The steps are done."""


def train(path, rows, backend, reproducible, in_memory):
    """One run: what it took, and the hash of its parameters."""
    peak, over = own_memory(), threading.Event()
    before = peak

    def sample():
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, own_memory())

    sampler = threading.Thread(target=sample)
    sampler.start()
    x = np.memmap(path, np.uint8, "r", shape=(rows, PIXELS))
    t = np.random.default_rng(1).integers(0, 10, rows)
    if in_memory:
        x = np.asarray(x, np.float32)
    watch = Watch()
    with xnet.use_backend(backend, reproducible=reproducible):
        net = xnet.TwoLayerNet(PIXELS, 50, 10, dtype="float32")
        twin = xnet.TwoLayerNet(PIXELS, 50, 10, dtype="float32")
        xnet.train(twin, x[:BATCH], t[:BATCH], iterations=1)  # kernels are loaded
        started = time.perf_counter()
        optimizer = xnet.optimizers.SGD(1e-4)
        xnet.train(
            net, x, t, iterations=STEPS, batch_size=BATCH, optimizer=optimizer, progress=watch
        )
        seconds = time.perf_counter() - started
    over.set()
    sampler.join()
    return {
        "first_step_seconds": watch.first - started,
        "seconds": seconds,
        "own_memory_before": before,
        "own_memory_at_peak": peak,
        "sha256": xnet.weights.sha256(net),
    }


def run(*arguments):
    """`train` in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--reproducible", action="store_true")
    parser.add_argument("--folder", help="where the file is made and removed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--in-memory", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.path:
        facts = train(given.path, given.rows, given.backend, given.reproducible, given.in_memory)
        return print(json.dumps(facts))
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "pixels.bin"
        make(path, given.rows)
        arguments = ["--path", path, "--rows", given.rows, "--backend", given.backend]
        arguments += ["--reproducible"] * given.reproducible
        if given.backend == "numba":  # compile what is not in its cache
            run(*arguments)
        mapped, held = run(*arguments), run(*arguments, "--in-memory")
    same = mapped["sha256"] == held["sha256"]
    kept = mapped["own_memory_at_peak"] < MEMORY and mapped["first_step_seconds"] < FIRST_STEP
    if given.json:
        print(json.dumps({"mapped": mapped, "held": held}))
        return sys.exit(not (same and kept))
    print(f"{given.rows:,} rows of {PIXELS} bytes, {STEPS} steps of {BATCH}, {given.backend}")
    for name, facts in {"memory map": mapped, "in memory": held}.items():
        print(
            f"{name}: first step after {facts['first_step_seconds']:.2f} s, all "
            f"{facts['seconds']:.1f} s, own memory {facts['own_memory_at_peak'] / 1e6:,.0f} MB at "
            f"the peak, {facts['own_memory_before'] / 1e6:,.0f} MB before"
        )
    print(f"bits of the parameters: {'the same' if same else 'NOT the same'}")
    return sys.exit(not (same and kept))


if __name__ == "__main__":
    without_handicaps()
    main()
