"""The test kit: what a stranger's backend meets, broken ones, and an outside package's."""

import os
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from test_contracts import Namespace, Sound

import xnet
from xnet import operations, testing
from xnet.backend import Backend, assign
from xnet.testing import BrokenPromiseError, check_backend, checks, parametrize_with_checks, parity
from xnet.testing.contracts import CONTRACTS

ROOT = Path(__file__).parents[1]
CHECKS = {check.name: check for check in checks()}


def check_of(pattern):
    """The first check with such a name, whatever loss a network ends in."""
    return next(check for name, check in CHECKS.items() if fnmatchcase(name, pattern))


# -- one broken kernel each


def of(operation, change):
    """A `run` or `run_backward` that changes what the generic one gives for this operation."""

    def members(name):
        def wrong(self, one, *arrays, m=None):
            found = getattr(Backend, name)(self, one, *arrays, m=m)
            return change(self, found, arrays) if isinstance(one, operation) else found

        return {name: wrong}

    return members


def scaled(factor):
    return lambda self, found, arrays: found * factor


def wrong_sign(self, found, arrays):
    return (-found[0], *found[1:])


def swapped(self, found, arrays):
    return (found[0], found[2], found[1])


def contracted(self, found, arrays):
    """As a fused multiply-add: x W + b, rounded once."""
    x, W, b = (np.asarray(a, "float64") for a in arrays)
    return (x @ W + b).astype(found.dtype)


def changed(name, change):
    """The generic form of `name`, its result changed."""

    def wrong(self, *arguments, **options):
        return change(getattr(Backend, name)(self, *arguments, **options))

    return {name: wrong}


def in_order(self, a, b):
    """Products added one after the other, from the first."""
    return np.stack([np.stack([sum(u * v, start=a.dtype.type(0)) for v in b.T]) for u in a])


def big_endian_as_it_lies(self, values, dtype=None, name="values"):
    if isinstance(values, np.ndarray) and not values.dtype.isnative:
        values = values.view(values.dtype.newbyteorder("="))
    return Backend.asarray(self, values, dtype, name)


def forgetful(self, update, n, W, g, memory):
    """The new parameter is right, and what was remembered is forgotten."""
    found = Backend.step(self, update, n, W, g, memory)
    return (found[0], *(0 * one for one in found[1:]))


def without_its_memory(self, run, x, t, loss, update, names):
    """A whole step that leaves the optimizer's memory as it was."""
    mean, _, gradients = self.loss_and_gradients(run, x, t, loss, True)
    places = []
    for name, W, g in zip(
        names,
        (W for arrays in run.parameters for W in arrays),
        (g for arrays in gradients for g in arrays),
        strict=True,
    ):
        memory = update.memory_of(name, W)
        new = Backend.step(self, update, 1, W, g, memory)[0]
        places.append((W, ..., new))
    assign(places)
    return mean


def without_remainder(self, a, axis=None, keepdims=False):
    """Of an odd number of columns the last is left out."""
    even = a[..., : a.shape[-1] // 4 * 4] if a.ndim and axis in (None, -1) else a
    return Backend.sum(self, even, axis, keepdims)


def rows_together(self, run, x, loss):
    """Scaled by the largest number of the whole batch."""
    scale = np.abs(x).max(initial=1) * 3
    return Backend.through(self, run, x / scale * scale, loss)


def unshifted(self, loss, x):
    if not isinstance(loss, operations.SoftmaxWithLoss):
        return Backend.predicted(self, loss, x)
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


MUTANTS = [
    ("exp, fast, float64", {"exp": lambda self, a: np.exp(a) * (1 + 1e-9)}, "exp"),
    ("exp, reproducible, float32", {"exp": lambda self, a: np.exp(a)}, "exp"),
    ("log1p, fast, float32", {"log1p": lambda self, a: np.log(1 + a)}, "log1p"),
    ("sum, fast, float64", {"sum": without_remainder}, "sum"),
    ("matmul, reproducible, float64", {"matmul": in_order}, "matmul"),
    ("Affine, reproducible, float32", of(operations.Affine, contracted)("run"), "run"),
    ("Tanh, fast, float64", of(operations.Tanh, scaled(1 + 1e-9))("run"), "run"),
    ("Tanh, fast, float32", of(operations.Tanh, wrong_sign)("run_backward"), "run_backward"),
    (
        "network, SiLU, *, reproducible, float64",
        of(operations.SiLU, wrong_sign)("run_backward"),
        "run_backward",
    ),
    (
        "Affine, fast, float32",
        changed("parameter_gradients", lambda found: found[::-1]),
        "parameter_gradients",
    ),
    (
        "SoftmaxWithLoss, fast, float64",
        changed("loss_and_delta", lambda found: (found[0] * 20, found[1])),
        "loss_and_delta",
    ),
    ("Huber, fast, float64", changed("row_losses", lambda found: found / 2), "row_losses"),
    ("SoftmaxWithLoss, fast, float64", {"predicted": unshifted}, "predicted"),
    ("optimizer Adam, 3 steps, fast, float64", {"step": forgetful}, "step"),
    (
        "training by Adam, *, fast, float64",
        {"train_step": without_its_memory},
        "train_step",
    ),
    ("rows by themselves, reproducible, float64", {"through": rows_together}, "through"),
    (
        "numerical gradient, ReLU, *, fast, float64",
        changed("loss_differences", lambda found: found * 1.001),
        "loss_differences",
    ),
    # What no kernel has a part in, or a contract says.
    ("+ - * / sqrt, fast, float64", {"xp": Namespace(sqrt=lambda a: np.sqrt(a) * 1.001)}, "`xp`"),
    ("asarray, fast, float32", {"asarray": big_endian_as_it_lies}, "asarray"),
    ("owns: its own, no others, fast, float64", {"owns": lambda self, a: False}, "owns"),
    (
        "asarray, to_numpy: values, fast, float64",
        {"to_numpy": lambda self, a: np.asarray(a, "float32").astype(a.dtype)},
        "to_numpy",
    ),
    ("step: new arrays, fast, float64", {"apart": lambda self, found, given: found}, "step"),
]


def mutant(members):
    return type("Mutant", (Sound,), {"name": "mutant", **members})


@pytest.mark.parametrize(("name", "members", "kernel"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_a_broken_kernel_is_named(name, members, kernel):
    """And by nobody else's fault: the same check passes on the class without it."""
    check = check_of(name)
    check(Sound)
    with pytest.raises(BrokenPromiseError) as broken:
        check(mutant(members))
    said = str(broken.value)
    first, promise, found, by, mend = said.splitlines()
    assert first == f"{check.name}: mutant breaks a promise"
    assert promise.startswith("  promise: ")
    assert found.startswith("  broken:  ")
    assert mend.startswith("  mend:    ")
    if kernel in vars(Backend) and check.trial.name not in CONTRACTS:
        assert f"Mutant.{kernel} (test_testing.py, line " in by
        others = {m for _, _, m in MUTANTS if m in vars(Backend)} - {kernel}
        assert not any(f"Mutant.{other} " in by for other in others)
        assert f"super().{kernel}(" in mend
    else:
        assert kernel in by


def test_two_kernels_wrong_at_once_are_both_named():
    exp = {"exp": lambda self, a: np.exp(a) * (1 + 1e-9)}
    both = exp | {"expm1": lambda self, a: np.expm1(a) * (1 + 1e-9)}
    twice = parity.Trial(
        "both", lambda draw: [draw(3, 4)], lambda b, i: [b.exp(*i), b.expm1(*i)], lambda b, i: i
    )
    trial = parity.Trial(twice.name, twice.arrays, twice.run, twice.run)
    outcome = testing.Check(trial, False, "float64", ("normal",)).run(mutant(both))
    assert re.search(r"by: +Mutant.exp \(.*\) and Mutant.expm1 \(.*\): with", outcome.message)


def test_a_backend_that_cannot_be_made_is_a_broken_promise():
    def broken(self, device=None, *, reproducible=False):
        raise OSError("the device is gone")

    outcome = CHECKS["matmul, fast, float32"].run(mutant({"__init__": broken}))
    assert not outcome.kept
    assert "OSError: the device is gone" in outcome.message
    assert "by:      __init__" in outcome.message


def test_a_promise_that_is_kept_has_no_message():
    outcome = CHECKS["matmul, fast, float32"].run("numpy")
    assert (outcome.kept, outcome.broken, outcome.message) == (True, [], "")
    assert len(outcome.verdicts) == len(parity.NUMBERS)


# -- what is tried


def test_everything_that_there_is_is_tried_in_both_modes():
    tried = {(check.trial.name, check.reproducible) for check in checks()}
    for trial in parity.trials():
        assert {(trial.name, True), (trial.name, False)} <= tried
    assert len(CHECKS) == len(checks())  # each has a name of its own


def test_an_operation_of_ones_own_is_tried():
    class Cubic(operations.Pointwise):
        def forward(self, m, x):
            return x * x * x

        def backward(self, m, dout, x, y):
            return dout * (3 * x * x)

    own = [check for check in checks() if check.trial.name == "Cubic"]
    assert len(own) == 4
    assert all(check.run("numpy").kept for check in own)


def test_without_pytest_it_yields_outcomes():
    found = list(check_backend("numpy", dtypes=["float32"], modes=[False], numbers=["huge"]))
    assert found
    assert all(isinstance(outcome, testing.Outcome) and outcome.kept for outcome in found)
    assert {v.numbers for outcome in found for v in outcome.verdicts} == {"huge"}


def test_less_is_tried_where_less_is_asked_for():
    few = checks(dtypes=["float32"], modes=[False], numbers=["normal"])
    assert few
    assert {(c.dtype, c.reproducible, c.kinds) for c in few} == {("float32", False, ("normal",))}
    with pytest.raises(ValueError, match="numbers: 'small' is no kind, expected some of"):
        checks(numbers=["small"])


def test_numpys_own_kernels_are_held_to_the_generic_forms(monkeypatch):
    backend = type(xnet.resolve("numpy"))
    wrong = changed("exp", lambda found: found * 2)["exp"]
    monkeypatch.setattr(backend, "exp", wrong)
    assert "NumpyBackend.exp" in CHECKS["exp, fast, float64"].run("numpy").message


# -- pytest's side


def marks(decorator):
    return {param.id: [mark.name for mark in param.marks] for param in decorator.args[1]}


def test_known_deviations_are_expected_failures():
    expected = {"owns: its own, no others": "a", "sum, fast, float32": "b", "training*float32": "c"}
    found = marks(parametrize_with_checks("numpy", expected_failed_checks=expected))
    failing = {name.removeprefix("numpy-") for name, given in found.items() if given == ["xfail"]}
    assert "sum, fast, float32" in failing
    assert "sum, fast, float64" not in failing
    assert len([name for name in failing if name.startswith("owns")]) == 4
    assert all("float32" in name for name in failing if name.startswith("training"))
    assert len(found) == len(CHECKS)
    with pytest.raises(ValueError, match="no check is named 'summ'"):
        parametrize_with_checks("numpy", expected_failed_checks={"summ": "a"})


def test_a_backend_that_cannot_run_here_is_one_skip():
    why = {"why_unusable": classmethod(lambda cls: "no such device")}
    assert marks(parametrize_with_checks(mutant(why))) == {"mutant-unusable": ["skip"]}
    with pytest.raises(xnet.BackendError, match="unknown backend 'nunba'; did you mean 'numba'"):
        parametrize_with_checks("nunba")


def test_neither_pytest_nor_hypothesis_is_needed():
    code = (
        "import sys; from xnet.testing import check_backend\n"
        "assert next(iter(check_backend('numpy'))).kept\n"
        "assert not {'pytest', 'hypothesis'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- a package of somebody's, as docs/backends.md writes it


def blocks():
    """The page's section on testing: fenced blocks by language."""
    text = (ROOT / "docs" / "backends.md").read_text().partition("## Is it right?")[2]
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def package(tmp_path):
    """The folder of the package that the page writes, installed as far as Python can tell."""
    (_, module), (_, project), (_, test), *_ = blocks()
    (entry,) = re.findall(r'^torch = "(.*)"$', project, re.MULTILINE)
    info = tmp_path / "xnet_torch-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: xnet-torch\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[xnet.backends]\ntorch = {entry}\n")
    (tmp_path / "xnet_torch.py").write_text(module)
    (tmp_path / "test_torch.py").write_text(f"from xnet_torch import TorchBackend\n{test}")
    return tmp_path


def run_pytest(folder, *arguments):
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import pytest; "
    code += "sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", *arguments]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # arrays so small are no work to share out
    return subprocess.run(
        command, cwd=folder, env=alone, capture_output=True, text=True, check=False
    )


needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")


@pytest.mark.slow
@needs_torch
def test_the_pages_backend_passes(package):
    done = run_pytest(package)
    assert done.returncode == 0, done.stdout[-5000:]
    assert f"{len(CHECKS)} passed" in done.stdout


@needs_torch
def test_the_pages_broken_backend_is_told_what_the_page_says(package):
    path = package / "xnet_torch.py"
    path.write_text(path.read_text() + "\n    def exp(self, a):\n        return self.xp.exp(a)\n")
    done = run_pytest(package, "-k", "exp and reproducible and float32 and not training")
    assert done.returncode == 1
    (_, says) = next(block for block in blocks() if "breaks a promise" in block[1])
    *lines, mend = says.split("\n  ")
    for line in [*lines, mend.partition("\n")[0]]:
        start = " ".join(line.partition("...")[0].split())
        assert start in re.sub(r"\s+", " ", re.sub(r"^E +", "", done.stdout, flags=re.MULTILINE))
