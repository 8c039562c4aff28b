"""One SHA-256 for the weights after 1,000 steps on MNIST, whatever computes them.

784-50-10, batches of 100, in float32 and in float64: numpy and numba, on one thread and on two,
with OpenBLAS's kernels for three processors; and PyTorch and JAX, where they are installed, as
test-only backends. Then the same in fast mode, which gives several. Takes some minutes.

    python benchmarks/one_hash.py
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from report import machine, save, without_handicaps

STEPS = 1000
PEERS = Path(__file__).parent.parent / "tests" / "packages" / "peers"


def sha256(backend, dtype, mode, settings):
    """That of the weights that `xnet train` ends with, in a process of its own."""
    path = os.pathsep.join([str(PEERS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    command = f"train --dataset mnist --iterations {STEPS} --backend {backend} --dtype {dtype}"
    done = subprocess.run(
        [sys.executable, "-m", "xnet_command", *command.split(), f"--{mode}", "--json"],
        env=os.environ | settings | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)["sha256"]


def main():
    runs = []
    for backend, threads, processor in product(
        ("numpy", "numba"), ("1", "2"), ("Haswell", "Zen", "Prescott")
    ):
        settings = dict.fromkeys(("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), threads)
        runs.append((backend, settings | {"OPENBLAS_CORETYPE": processor}))
    runs += [(peer, {}) for peer in ("torch", "jax") if find_spec(peer)]
    rows = []
    for mode, dtype in product(("reproducible", "fast"), ("float32", "float64")):
        for backend, settings in runs:
            if (backend, mode) == ("jax", "reproducible"):
                continue  # refused: XLA takes subnormals for zeros
            digest = sha256(backend, dtype, mode, settings)
            rows.append({"mode": mode, "dtype": dtype, "backend": backend, **settings})
            rows[-1]["sha256"] = digest
            said = " ".join(settings.values())
            print(f"{mode:12} {dtype} {backend:5} {said:18} {digest}", flush=True)
    save("one_hash", {"machine": machine("torch", "jax"), "steps": STEPS, "runs": rows})
    for mode, dtype in product(("reproducible", "fast"), ("float32", "float64")):
        tried = [r["sha256"] for r in rows if (r["mode"], r["dtype"]) == (mode, dtype)]
        found = set(tried)
        print(f"{mode}, {dtype}: {len(found)} hash(es) from {len(tried)} runs")
        if (len(found) == 1) != (mode == "reproducible"):
            sys.exit("the promise is broken, or the comparison shows nothing")


if __name__ == "__main__":
    without_handicaps()
    main()
