import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from xnet_numpy import NumpyBackend

from xnet.network import Network

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(FOLDER))

import bench  # noqa: E402  # a script beside the library, no part of it

pytestmark = pytest.mark.usefixtures("registered_alone")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("xnet.backend._default", None)  # what is chosen here ends here
    monkeypatch.setattr(bench, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(bench, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(bench, "usable", lambda: ["numpy"])


def test_contenders_take_turns():
    calls = []
    taken = bench.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    order = [name for k, name in enumerate(calls) if k == 0 or calls[k - 1] != name]
    assert order == ["a", "b"] * 3
    assert len(taken["a"]) + len(taken["b"]) == len(calls) - 6  # one of each turn is not timed


def test_inference_compares_before_it_times():
    found = bench.inference(batches=(1, 3))
    assert list(found) == ["1", "3"]
    assert list(found["1"]) == ["NumPy by hand", "numpy"]
    assert all(s["min"] > 0 for contenders in found.values() for s in contenders.values())
    with pytest.raises(AssertionError):
        bench.inference({"wrong": lambda network: lambda x: network.predict(x) + 0.1}, (2,))


def test_training_compares_before_it_times():
    assert list(bench.training()["100"]) == ["NumPy by hand", "numpy"]
    with pytest.raises(AssertionError, match="wrong"):
        bench.training({"wrong": lambda network, x, t, lr: lambda: 1.0})


PARTS = {
    "batching": lambda: bench.batching(bench.images(3)),
    "affine": lambda: bench.affine((1, 9), ((5, 3),)),
    "activations": lambda: bench.activations((2, 3)),
    "optimizers": bench.optimizers,
    "opaque": bench.opaque,
    "numerical-gradient": bench.numerical_gradient,
    "start-up": bench.start_up,
    "reproducible": bench.reproducible,
}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_compares_contenders_case_by_case(monkeypatch, part):
    monkeypatch.setattr(bench, "TURNS", 1)
    monkeypatch.setattr(bench, "START_UPS", {"Python alone": "pass", "nothing": "0"})
    found = PARTS[part]()
    assert part in bench.PARTS
    names = [list(contenders) for contenders in found.values()]
    assert all(len(n) > 1 and n == names[0] for n in names)
    assert all(s["min"] > 0 for contenders in found.values() for s in contenders.values())
    assert len(bench.table(found).splitlines()) == 2 + len(names) * len(names[0])


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    right = NumpyBackend.run
    monkeypatch.setattr(NumpyBackend, "run", lambda self, *arrays: 1.01 * right(self, *arrays))
    with pytest.raises(AssertionError):
        bench.affine((2,), ((5, 3),))


def test_batching_wants_the_same_answers_one_at_a_time(monkeypatch):
    right = Network.predict

    def wrong(self, x):
        return right(self, x) + 0.1 * (x.ndim == 1)

    monkeypatch.setattr(Network, "predict", wrong)
    with pytest.raises(AssertionError):
        bench.batching(bench.images(2))


def test_images_are_mostly_zeros():
    x = bench.images(200)
    assert x.dtype == np.float32
    assert (x == 0).mean() == pytest.approx(0.8, abs=0.01)


def test_the_command_prints_writes_and_draws(monkeypatch, tmp_path):
    monkeypatch.setitem(bench.PARTS, "inference", lambda: bench.inference(batches=(1, 2)))
    times, figure = tmp_path / "times.json", tmp_path / "figure.png"
    command = ["inference", "--json-file", str(times), "--figure", str(figure)]
    done = CliRunner().invoke(bench.command, command)
    assert done.exit_code == 0, done.output
    assert "| 1 | numpy |" in done.output
    facts = json.loads(times.read_text())
    assert set(facts) == {"machine", "seconds", "floor_seconds_per_image"}
    assert facts["machine"]["versions"]["numpy"] == np.__version__
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_done_is_said_before_anything_is_timed(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def never():
        raise AssertionError

    monkeypatch.setitem(bench.PARTS, "training", never)
    assert CliRunner().invoke(bench.command, ["everything"]).exit_code == 2
    assert CliRunner().invoke(bench.command, ["training", "--figure", "x.png"]).exit_code == 2
    monkeypatch.setitem(bench.PARTS, "inference", never)
    for arguments, said in {
        ("training", "--json-file", "no/a.json"): "no/a.json cannot be written: ",
        ("inference", "--figure", "no/a.png"): "no/a.png cannot be written: ",
        ("inference", "--figure", "a.txt"): "a.txt ends in '.txt', expected one of",
        ("inference", "--figure", "a"): "a ends in '', expected one of",
    }.items():
        monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
        with pytest.raises(SystemExit, match=r"^1$"):
            bench.cli.run(bench.command, "bench.py")
        assert re.fullmatch(rf"bench\.py: {said}[^\n]*\n", capsys.readouterr().err)


def test_processor_time_is_for_one_thread_of_this_process(monkeypatch):
    """It does not pass while the process waits."""
    monkeypatch.setattr(bench, "clock", bench.time.perf_counter)
    monkeypatch.setattr(bench, "PARTS", dict.fromkeys(bench.PARTS, dict))
    monkeypatch.setattr(bench, "table", lambda found: "")
    monkeypatch.setattr(bench, "num_threads", lambda: 2)
    assert CliRunner().invoke(bench.command, ["opaque", "--processor-time"]).exit_code == 2
    monkeypatch.setattr(bench, "num_threads", lambda: 1)
    assert CliRunner().invoke(bench.command, ["start-up", "--processor-time"]).exit_code == 2
    done = CliRunner().invoke(bench.command, ["opaque", "--processor-time"])
    assert (done.exit_code, bench.clock) == (0, bench.time.process_time)
    monkeypatch.setattr(bench, "TURN_SECONDS", 0)
    (taken,) = bench.in_turns({"waits": lambda: bench.time.sleep(0.05)}, 1).values()
    assert sum(taken) < 0.05


TIMES = re.compile(r"perf_counter|in_turns|seconds\(|machine\(")
SCRIPTS = [path for path in FOLDER.rglob("*.py") if "__main__" in path.read_text()]


@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if TIMES.search(path.read_text())], ids=lambda p: p.stem
)
def test_what_times_does_so_without_handicaps(script):
    assert 'if __name__ == "__main__":\n    without_handicaps()\n' in script.read_text()


def test_nothing_is_timed_on_a_handicapped_numpy(tmp_path):
    """A script starts anew without the variables; the suite refuses."""
    code = "import bench, os; bench.without_handicaps(); print(sorted(os.environ))"
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.append({str(FOLDER)!r}); {code}")
    handicaps = ["OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES", "NUMBA_OPT", "XLA_FLAGS"]
    environment = dict(bench.os.environ) | dict.fromkeys(handicaps, "")
    environment.pop("PYTEST_ADDOPTS", None)  # options of these tests, which the suite has not
    run = {"env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, script], **run)
    assert done.returncode == 0
    assert not [name for name in handicaps if name in done.stdout]
    suite = [sys.executable, "-m", "pytest", FOLDER, "--collect-only"]
    refused = subprocess.run(suite, **run)
    assert refused.returncode == 2
    assert f"unset {' and '.join(sorted(handicaps))}" in refused.stderr + refused.stdout


def test_every_blas_is_named_with_its_kernel_and_threads():
    """NumPy's is there before anything has computed."""
    lines = bench.blas()
    assert lines
    assert all(re.fullmatch(r"\S+: \S+, \d+ thread\(s\)", line) for line in lines)
    assert bench.machine()["blas"] == lines
