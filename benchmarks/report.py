"""What the scripts here have in common: where results go, and what they say of the machine."""

import datetime
import json
import os
import platform
import re
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parent.parent / "docs"


def machine(*packages):
    """The processor and the versions that a timing depends on; nothing that names the machine."""
    try:
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        cpu = platform.processor() or platform.machine()
    versions = {"python": platform.python_version()}
    for name in ("numpy", "numba", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"cpu": cpu, "cpus": os.cpu_count(), "versions": versions, "date": date}


def save(name, facts):
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
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


def summary(taken):
    return {"median": statistics.median(taken), "min": min(taken), "turns": len(taken)}
