"""What the scripts here have in common: where results go, and what they say of the machine."""

import json
import time
from pathlib import Path

from bench import machine, summary, without_handicaps, write

__all__ = [
    "FIGURES",
    "RESULTS",
    "load",
    "machine",
    "save",
    "seconds",
    "summary",
    "without_handicaps",
]

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parent.parent / "docs"


def save(name, facts):
    print("\n".join(facts["machine"]["blas"]))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    write(path, facts)
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")


def load(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def seconds(function, turns):
    """Wall-clock times of so many calls, after one that is not timed."""
    function()
    taken = []
    for _ in range(turns):
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return taken
