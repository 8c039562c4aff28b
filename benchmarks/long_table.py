"""How much memory does a prediction of a table take that is longer than that?

python benchmarks/long_table.py [GIGABYTES]

Makes a CSV of so many GB (2), 20 columns of random numbers, and a network for it, in a temporary
folder; has `xnet predict` write what it says of each row; prints the peak of that process's memory
and the time. It fails above 500 MB. And with the first tenth of the file, for comparison.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench import without_handicaps

import xnet
from xnet import scaling
from xnet.operations import Affine, ReLU
from xnet.schema import Schema

COLUMNS, LIMIT = 20, 500_000_000


def make_table(path: Path, size: int) -> int:
    """Write so many bytes of CSV, about; returns how many rows."""
    names = [f"c{k}" for k in range(COLUMNS)]
    x = np.random.default_rng(0).normal(size=(20_000, COLUMNS))
    block = "".join(",".join(map(repr, row)) + "\n" for row in x.tolist())
    times = max(1, size // len(block))
    with path.open("w") as file:
        file.write(",".join(names) + "\n")
        for _ in range(times):
            file.write(block)
    return times * len(x)


def make_network(path: Path) -> None:
    """Write a network for such a table, its weights random."""
    x = np.random.default_rng(1).normal(size=(1000, COLUMNS))
    layers = [scaling.normalization(x), Affine(COLUMNS, 50, "he"), ReLU(), Affine(50, 3, "he")]
    net = xnet.Network(layers)
    net.schema = Schema(tuple(f"c{k}" for k in range(COLUMNS)), ("kind",), ("a", "b", "c"))
    xnet.weights.save(net, path)


def predicted(folder: Path, rows: int) -> tuple[int, float]:
    """Peak memory in bytes and seconds of the command, whose output is checked for its rows."""
    words = ["predict", "net", "long.csv", "-o", "out.csv", "--json"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "xnet_command", *words], cwd=folder, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert json.loads(said)["rows"] == rows
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), seconds


def main() -> None:
    """Make the files, predict, say what it took."""
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else "2") * 1e9)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_network(folder / "net")
        for part in (size // 10, size):
            rows = make_table(folder / "long.csv", part)
            bytes_ = (folder / "long.csv").stat().st_size
            peak, seconds = predicted(folder, rows)
            print(
                f"{bytes_ / 1e9:.2f} GB, {rows:,} rows: {peak / 1e6:.0f} MB at the peak, "
                f"{seconds:.0f} s, {bytes_ / 1e6 / seconds:.0f} MB/s"
            )
    if peak > LIMIT:
        sys.exit(f"more than {LIMIT / 1e6:.0f} MB")


if __name__ == "__main__":
    without_handicaps()
    main()
