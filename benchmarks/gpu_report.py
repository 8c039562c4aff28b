"""Run everything that was written for a GPU on one, and write down what came of it.

    python benchmarks/gpu_report.py

runs the tests that launch CUDA kernels (with no flag: on a machine with a GPU they use it), then
`xnet parity --backend cupy`, and writes two files under benchmarks/results/: a page to read
and the same as JSON. They name the device, the driver and the versions, the tests that failed or
were skipped, the verdict on each operation in both modes, and the hashes of the training runs.
Exit status 1 if a test failed or a promise of parity is broken, 2 if there is no GPU.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from xml.etree import ElementTree

import xnet

ROOT = Path(__file__).parents[1]
TESTS = ("test_cuda", "test_kernels", "test_parity", "test_backend", "test_perturbation")
VERSIONS = ("xnet-nn", "numpy", "numba", "array-api-compat")


def device():
    """The first CUDA device and what drives it."""
    import cupy

    runtime, found = cupy.cuda.runtime, cupy.cuda.runtime.getDeviceProperties(0)
    facts = {
        "device": found["name"].decode(),
        "compute capability": f"{found['major']}.{found['minor']}",
        "memory, GiB": round(found["totalGlobalMem"] / 2**30, 1),
        "CUDA of the driver": runtime.driverGetVersion(),
        "CUDA of CuPy": runtime.runtimeGetVersion(),
        "NVRTC": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "cuBLAS": cupy.cuda.cublas.getVersion(cupy.cuda.Device(0).cublas_handle),
    }
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        printed = subprocess.run(query, capture_output=True, text=True, check=False).stdout
        facts["driver"] = printed.splitlines()[0] if printed else "nvidia-smi does not say"
    return facts


def versions():
    """Of Python and of the packages that take part, CuPy's and NVIDIA's by whatever name."""
    found = {d.metadata["Name"]: d.version for d in distributions()}
    names = [n for n in found if n in VERSIONS or n.startswith(("cupy", "nvidia"))]
    return {"Python": platform.python_version()} | {name: found[name] for name in sorted(names)}


def run_tests(arguments):
    """How many of the tests passed, and which did not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--every-case", *arguments]
        command += [f"--junitxml={path}"]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if not path.exists():
            sys.exit(f"pytest ended with status {status} before it ran a test")
        cases = ElementTree.parse(path).iter("testcase")
        outcomes = [(f"{c.get('classname')}::{c.get('name')}", next(iter(c), None)) for c in cases]
    bad = [name for name, what in outcomes if what is not None and what.tag in ("failure", "error")]
    skipped = [w.get("message", "") for _, w in outcomes if w is not None and w.tag == "skipped"]
    return {
        "status": status,
        "passed": len(outcomes) - len(bad) - len(skipped),
        "failed": bad,
        "skipped": {reason: skipped.count(reason) for reason in sorted(set(skipped))},
    }


def run_parity(backend, steps):
    """What `xnet parity --json` says of the backend."""
    command = [sys.executable, "-m", "xnet_command", "parity", "--json", "--backend", backend]
    done = subprocess.run(
        [*command, "--steps", str(steps)], capture_output=True, text=True, check=False
    )
    return json.loads(done.stdout) if done.stdout else {"kept": False, "error": done.stderr}


def page(report):
    """The report as Markdown."""
    tests, parity = report["tests"], report["parity"]
    lines = [f"# xnet on {report['machine'].get('device', report['backend'])}", ""]
    lines += [
        f"{report['date']}: {'everything held' if report['kept'] else 'NOT everything held'}."
    ]
    lines += ["", *(f"- {name}: {value}" for name, value in report["machine"].items())]
    lines += [f"- {name} {version}" for name, version in report["versions"].items()]
    lines += ["", "## Tests", "", f"{tests['passed']} passed, {len(tests['failed'])} failed."]
    lines += ["", *(f"- failed: {name}" for name in tests["failed"])]
    lines += [f"- {count} skipped: {reason}" for reason, count in tests["skipped"].items()]
    lines += ["", "## Parity with NumPy", ""]
    if "error" in parity:
        return "\n".join([*lines, f"`xnet parity` failed: {parity['error']}", ""])
    lines += ["| operation | dtype | mode | equal | units in the last place | share of the bound |"]
    lines += ["|---|---|---|---|---|---|"]
    for v in parity["operations"]:
        mode, kept = "reproducible" if v["reproducible"] else "fast", "" if v["kept"] else " BROKEN"
        known = (f"{v[k]:.3g}" if v[k] is not None else "no number" for k in ("ulps", "share"))
        numbers = f"{v['error']} |" if v["error"] else " | ".join(known)
        tried = v["operation"] if v["numbers"] == "normal" else f"{v['operation']}, {v['numbers']}"
        lines.append(f"| {tried} | {v['dtype']} | {mode}{kept} | {v['equal']} | {numbers} |")
    lines += ["", "## SHA-256 of the weights after a training run", ""]
    for mode, by_dtype in parity["training_sha256"].items():
        for dtype, hashes in by_dtype.items():
            lines += [f"- {mode}, {dtype}, {name}: `{sha}`" for name, sha in hashes.items()]
    return "\n".join([*lines, ""])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="cupy", help="try the report on another one")
    parser.add_argument("--steps", type=int, default=200, help="of the training runs")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("tests", nargs="*", default=[f"tests/{name}.py" for name in TESTS])
    options = parser.parse_args(arguments)
    reasons = {info.name: info.reason for info in xnet.backends()}
    if options.backend not in reasons or reasons[options.backend]:
        print(f"{options.backend}: {reasons.get(options.backend, 'unknown')}", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)  # before the hour that it takes
    on_gpu = options.backend == "cupy"
    now = datetime.now(UTC)
    report = {
        "date": now.isoformat(timespec="seconds"),
        "backend": options.backend,
        "machine": device() if on_gpu else {"processor": platform.processor()},
        "versions": versions(),
        "tests": run_tests(options.tests),
        "parity": run_parity(options.backend, options.steps),
    }
    report["kept"] = report["tests"]["status"] == 0 and report["parity"]["kept"]
    name = report["machine"].get("device", options.backend).replace(" ", "-")
    path = options.output / f"{name}-{now:%Y-%m-%d-%H%M%S}.md"
    path.write_text(page(report))
    path.with_suffix(".json").write_text(json.dumps(report, indent=1))
    print(path)
    return 0 if report["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
