"""Training on many processes: real ranks, started by `mpiexec`; and runs on ranks that are threads.

Every start has a limit in seconds, and every message one within it: nothing here can hang.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import DTYPES, require_tool
from thread_ranks import on_ranks, shards

import xnet
from xnet import distributed, layers
from xnet.checkpoints import CheckpointError
from xnet.errors import DatasetError, RankError
from xnet.operations import Affine
from xnet.training import Callback

PROGRAM = Path(__file__).with_name("mpi_program.py")
LIMIT = 120  # seconds, of any start


def environment():
    found = {k: v for k, v in os.environ.items() if k not in ("PYTEST_ADDOPTS", "XNET_BACKEND")}
    data = found.get("XNET_DATA_DIR")
    one = {"OPENBLAS_NUM_THREADS": "1", "XNET_NUM_THREADS": "1"}  # ranks share two cores here
    return found | one | ({"XNET_DATA_DIR": str(Path(data).absolute())} if data else {})


@pytest.fixture(scope="session")
def mpiexec():
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    try:
        import mpi4py  # noqa: F401
    except ImportError:
        found = None
    require_tool(found, 'no MPI: pip install "xnet-nn[mpi]"', "XNET_REQUIRE_MPI")
    return found


def start(mpiexec, n, name, **arguments):
    command = [mpiexec, "-n", str(n), sys.executable, str(PROGRAM), name, json.dumps(arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(), start_new_session=True, **pipes)


def ended(process, limit=LIMIT):
    """Its exit status, what it printed and what it said; it is killed at the limit."""
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"it still ran after {limit} s:\n{out}\n{err}")
    return process.returncode, out, err


def result(mpiexec, n, name, **arguments):
    status, out, err = ended(start(mpiexec, n, name, **arguments))
    assert status == 0, err
    return json.loads(out.splitlines()[-1])


# -- one hash


RUNS = [
    (backend, dtype, optimizer, ("even", "uneven")[(k + turn) % 2], True)
    for turn, (dtype, optimizer) in enumerate(product(DTYPES, ("sgd", "adam")))
    for k, backend in enumerate(("numpy", "numba", "mixed"))
]
"""Each backend with each dtype and optimizer; shards by turns."""


@pytest.fixture(scope="session")
def plain(mnist):
    """What a single process, without MPI, makes of 300 steps."""
    (x, t), _ = xnet.datasets.load_mnist()
    found = {}
    for dtype in ("float32", "float64"):
        for optimizer in ("sgd", "adam"):
            net = xnet.TwoLayerNet(784, 50, 10, dtype=dtype, backend=xnet.resolve("numba", True))
            own = {"sgd": xnet.optimizers.SGD(0.1), "adam": xnet.optimizers.Adam()}[optimizer]
            history = xnet.train(
                net, x[:1500], t[:1500], optimizer=own, iterations=300, progress=False
            )
            found[dtype, optimizer] = [
                xnet.weights.sha256(net), history.loss[-1], history.train_accuracy[-1]
            ]  # fmt: skip
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("turn", "n"), [*enumerate([1, 2, 3, 4, 7])])
def test_one_hash_after_300_steps_of_mnist(mpiexec, mnist, plain, turn, n):
    """Two of the runs on each number of ranks; `benchmarks/ranks.py hashes` has them all."""
    runs = [run for k, run in enumerate(RUNS) if (k + k // 3 + turn) % 3 == 0]
    runs = runs[turn % 2 :: 2]  # of both dtypes
    found = result(mpiexec, n, "hashes", runs=runs, samples=1500, steps=300)
    for run, of in zip(runs, found, strict=True):
        assert of == plain[run[1], run[2]], run


def test_fast_mode_has_several_hashes(mpiexec, mnist):
    """Beside it: what the promise is about."""
    run = ("numpy", "float32", "sgd", "even")
    found = [
        result(mpiexec, n, "hashes", runs=[(*run, False), (*run, True)], samples=1000, steps=30)
        for n in (1, 2, 3)
    ]
    fast, exact = zip(*found, strict=True)
    assert len({of[0] for of in fast}) > 1
    assert len({of[0] for of in exact}) == 1
    assert len({round(of[1], 4) for of in fast}) == 1


# -- faults


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mode", "reproducible is not the same on all ranks: true on ranks 0, 1, false on rank 2"),
        ("batch size", "batch_size is not the same on all ranks: 50 on ranks 0, 1, 51 on rank 2"),
        ("network", "network is not the same on all ranks: "),
        ("parameters", "parameters is not the same on all ranks: "),
        ("not finite", "rank 2: ValueError: x holds NaN or infinity as float64 in row 3"),
        ("labels", "rank 2: ValueError: t has label 11, expected 0..9"),
        ("nobody has rows", "x has shape (0, 64): there are no samples"),
        ("elsewhere", "make it in the block of communicator, or move it with net.to("),
        ("raises", "rank 2 of 3 ends all:"),
        ("exits", "rank 2 of 3 ends all:"),
        ("silent", "has waited 2 s for the others"),
        ("leaves", "has waited 2 s for the others"),
        ("leaves by exit", "rank 2 of 3 ends all:"),
        ("patience", "patience is 3 without validation"),
        ("nested", "is spread over ranks already"),
    ],
)
def test_faults_end_all_ranks_with_their_reason(mpiexec, kind, message):
    began = time.monotonic()
    status, _, err = ended(start(mpiexec, 3, "fault", kind=kind))
    assert status != 0
    assert message in err
    assert "killed?" not in err
    assert time.monotonic() - began < 30
    if "not the same" in message or "rank 2: " in message:  # refused on every rank
        assert len(re.findall(r"^\S*(RankError|ValueError): ", err, re.MULTILINE)) >= 3


@pytest.mark.parametrize(("kind", "stopped"), [("no rows", "finished"), ("diverges", "diverged")])
def test_what_is_no_fault(mpiexec, kind, stopped):
    assert result(mpiexec, 3, "fault", kind=kind) == [stopped, 1]


def test_more_ranks_than_rows_in_a_batch(mpiexec, mnist):
    run = ("numpy", "float32", "sgd", "uneven", True)
    few = [result(mpiexec, n, "hashes", runs=[run], samples=3, steps=4) for n in (1, 5)]
    assert few[0] == few[1]


def test_a_signal_to_one_rank_ends_the_run_on_all_at_one_step(mpiexec, tmp_path):
    found = result(mpiexec, 3, "signalled", folder=str(tmp_path))
    assert len({json.dumps(of) for of in found}) == 1
    assert found[0][1] == "interrupted"
    assert 7 <= found[0][0] <= 9
    assert len(list(tmp_path.glob("step-*"))) >= 1


def test_runs_after_one_that_was_interrupted_go_on(mpiexec):
    assert result(mpiexec, 3, "again") == [["interrupted", 7], ["finished", 12]]


@pytest.fixture(scope="session")
def uninterrupted(mpiexec, tmp_path_factory):
    """The job that the tests kill, never killed: one process, without ranks."""
    return result(mpiexec, 1, "job", folder=str(tmp_path_factory.mktemp("whole")), steps=60)


@pytest.mark.parametrize("case", range(20))
def test_a_killed_rank_ends_the_job_and_three_others_go_on(mpiexec, uninterrupted, tmp_path, case):
    chance = random.Random(case)
    process = start(mpiexec, 4, "job", folder=str(tmp_path), steps=60, pause=0.02)
    processes = json.loads(process.stdout.readline())
    assert len(processes) == 4
    time.sleep(chance.uniform(0, 1.2))
    victim = chance.randrange(4)
    os.kill(processes[victim], signal.SIGKILL)
    killed = time.monotonic()
    status, _, err = ended(process, 10)
    assert time.monotonic() - killed < 10
    assert status != 0
    assert "has ended before the others" in err
    assert re.search(rf"\brank {victim}\b", err)
    mixed = "mixed" if case % 10 == 0 else "numpy"
    went_on = result(mpiexec, 3, "job", folder=str(tmp_path), steps=60, resume=True, backend=mixed)
    assert went_on == uninterrupted


def test_bytes_of_a_step(mpiexec):
    exact, fast = result(mpiexec, 2, "moves", sizes=[784, 50, 10])
    assert exact[0] == 2
    assert fast[0] == 1
    assert fast[1] <= 1.001 * fast[2]  # the parameters once
    assert exact[1] <= 4.1 * exact[2]


def test_arrays_that_mpi_takes_as_they_are(mpiexec):
    one, other = result(mpiexec, 2, "aware")
    assert one == other


# -- the command


def command(mpiexec, n, *arguments):
    starts = [mpiexec, "-n", str(n), sys.executable, "-m", "xnet_command", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return ended(subprocess.Popen(starts, env=environment(), start_new_session=True, **pipes))


def test_the_command_finds_out_that_mpi_has_started_it(mpiexec, tmp_path):
    options = ["train", "--iterations", "40", "--validation", "0.1", "--reproducible", "--json"]
    found = []
    for n in (1, 3):
        path = tmp_path / f"{n}.safetensors"
        status, out, err = command(mpiexec, n, *options, "--save", str(path))
        assert status == 0, err
        (line,) = out.splitlines()  # rank 0's alone
        facts = json.loads(line)
        assert facts["ranks"] == n
        assert xnet.weights.sha256(xnet.weights.load_network(path)) == facts["sha256"]
        found.append({k: v for k, v in facts.items() if k not in ("ranks", "seconds")})
    assert found[0] == found[1]


def test_the_command_says_what_is_wrong_once(mpiexec, tmp_path):
    status, out, err = command(mpiexec, 3, "train", "--save", str(tmp_path / "no" / "where"))
    assert (status, out) == (1, "")
    assert [line for line in err.splitlines() if line.startswith("xnet:")] == [err.strip()]
    status, _, err = command(mpiexec, 2, "train", "--learning-rate", "1e300", "--iterations", "9")
    assert status == 1
    assert err.count("xnet: the loss became") == 1


# -- without MPI


def test_without_mpi_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with (
        pytest.raises(DatasetError, match=r'needs mpi4py: pip install "xnet-nn\[mpi\]"'),
        distributed.communicator(None),
    ):
        pass
    monkeypatch.setenv("PMI_SIZE", "4")
    with (
        pytest.raises(DatasetError, match=r"what mpiexec has started needs mpi4py"),
        distributed.launched(),
    ):
        pass


def test_without_a_library_of_mpi_that_is_said(mpiexec):
    code = """
import importlib.abc, sys

class NoLibrary(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "mpi4py.MPI":
            raise RuntimeError("cannot load MPI library")

sys.meta_path.insert(0, NoLibrary())
import xnet
try:
    xnet.distributed.communicator(None).__enter__()
except xnet.DatasetError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "and an MPI, the cluster's or pip install mpich: cannot load MPI library" in ran.stdout


def test_outside_of_ranks_a_shard_is_everything():
    assert distributed.shard(7) == slice(0, 7)
    with distributed.launched("numpy", True) as backend:
        assert backend is xnet.resolve("numpy", True)


def test_what_is_no_communicator(mpiexec):
    with (
        pytest.raises(TypeError, match="comm is 3, expected a communicator of mpi4py"),
        distributed.communicator(3),
    ):
        pass


# -- runs, on ranks that are threads


def digits(dtype="float32"):
    (x, t), (x_test, t_test) = xnet.datasets.load_digits()
    return x[:230].astype(dtype), t[:230], x_test[:90].astype(dtype), t_test[:90]


SPANS = {1: shards(230, 1), 2: shards(230, 1, 3), 3: shards(230, 2, 0, 5)}


def trained(span, *, x, t, test=None, folder=None, **options):
    """What a run leaves: weights, history."""
    net = xnet.Network(
        [Affine(64, 12, "he"), layers.BatchNorm(12), layers.ReLU(), Affine(12, 10, "he")],
        seed=1,
        dtype="float32",
    )
    options = {"iterations": 23, "batch_size": 30, "progress": False} | options
    if (weight := options.pop("sample_weight", None)) is not None:
        options["sample_weight"] = weight[span]
    if isinstance(options.get("validation"), tuple):
        own = distributed.shard(len(options["validation"][0]))
        options["validation"] = tuple(of[own] for of in options["validation"])
    tests = () if test is None else tuple(of[distributed.shard(len(of))] for of in test)
    options["optimizer"] = options.pop("optimizer", xnet.optimizers.Adam)()
    history = xnet.train(net, x[span], t[span], *tests, checkpoint=folder, **options)
    facts = {k: v for k, v in vars(history).items() if k != "seconds"}
    return xnet.weights.sha256(net), facts


class UntilTen(Callback):
    def on_step(self, training):
        return training.history.iterations == 10 and xnet.get_backend().ranks.rank in (0, 1)


def options_of(name):
    x, t, *test = digits()
    rng = np.random.default_rng(0)
    own = {
        "plain": {},
        "with replacement": {"replacement": True},
        "test data": {"test": test},
        "validation data": {"validation": tuple(test), "test": test, "patience": 2},
        "a share for validation": {"validation": 0.2},
        "weights": {"sample_weight": rng.random(230)},
        "weights, and a share": {"sample_weight": rng.random(230), "validation": 0.2},
        "clipped": {"clip": 0.1},
        "scheduled": {"schedule": xnet.schedules.Cosine()},
        "a callback that stops": {"callbacks": [UntilTen()]},
        "numerical": {"gradient": "numerical"},
    }[name]
    return {"x": x, "t": t} | own


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    "name",
    [
        *("plain", "with replacement", "test data", "validation data", "a share for validation"),
        *("weights", "weights, and a share", "clipped", "scheduled", "a callback that stops"),
    ],
)
def test_runs_have_the_bits_and_the_history_of_one_process(name, ranks):
    options = options_of(name)
    with xnet.use_backend("numpy", reproducible=True):
        alone = trained(slice(None), **options)
    found = on_ranks(ranks, lambda of: trained(SPANS[ranks][of.rank], **options))
    assert found == [alone] * ranks


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_regression_by_r2_and_validation_loss(dtype):
    x, t, *_ = digits(dtype)
    targets = np.stack([t, t * t], axis=1) / 10

    def go(span):
        net = xnet.Network(
            [Affine(64, 5, "he"), layers.Tanh(), Affine(5, 2, "he")],
            layers.IdentityWithLoss(),
            dtype=dtype,
        )
        history = xnet.train(
            net, x[span], targets[span].astype(dtype), epochs=3, validation=0.3, progress=False
        )
        return xnet.weights.sha256(net), history.train_r2, history.validation_r2, history.kept_epoch

    with xnet.use_backend("numpy", reproducible=True):
        alone = go(slice(None))
    assert on_ranks(3, lambda ranks: go(SPANS[3][ranks.rank])) == [alone] * 3


def test_rows_that_stay_on_disk(tmp_path):
    x, t, *_ = digits()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with xnet.use_backend("numpy", reproducible=True):
        alone = trained(slice(None), x=x, t=t, validation=0.2)
    found = on_ranks(2, lambda of: trained(SPANS[2][of.rank], x=mapped, t=t, validation=0.2))
    assert found == [alone] * 2


def test_numerical_gradients_train_too():
    x, t, *_ = digits("float64")

    def go(span):
        net = xnet.TwoLayerNet(64, 3, 10)
        xnet.train(net, x[span], t[span], iterations=2, gradient="numerical", progress=False)
        return xnet.weights.sha256(net)

    with xnet.use_backend("numpy", reproducible=True):
        alone = go(slice(None))
    assert on_ranks(3, lambda ranks: go(SPANS[3][ranks.rank])) == [alone] * 3


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(before, after, tmp_path):
    options = options_of("a share for validation")

    def on(n, **more):
        go = lambda ranks: trained(SPANS[n][ranks.rank], **options, **more)  # noqa: E731
        if n > 1:
            return on_ranks(n, go)[0]
        with xnet.use_backend("numpy", reproducible=True):
            return trained(slice(None), **options, **more)

    whole = on(1)
    on(before, folder=tmp_path, iterations=11)
    assert on(after, folder=tmp_path, resume=True) == whole


def test_a_run_of_other_data_does_not_go_on(tmp_path):
    options = options_of("plain")
    with xnet.use_backend("numpy", reproducible=True):
        trained(slice(None), folder=tmp_path, **options)
    with pytest.raises(CheckpointError, match="data: train was"):
        on_ranks(
            2,
            lambda ranks: trained(SPANS[2][0], folder=tmp_path, resume=True, **options),
        )


def test_files_are_written_by_rank_0_alone(tmp_path):
    written = []

    def go(ranks):
        path = tmp_path / f"of-rank-{ranks.rank}.safetensors"
        written.append(path)
        return trained(SPANS[2][ranks.rank], save=path, **options_of("plain"))

    on_ranks(2, go)
    assert [path.name for path in tmp_path.iterdir()] == ["of-rank-0.safetensors"]
    assert len(written) == 2


def test_a_seed_that_is_drawn_is_that_of_rank_0():
    options = options_of("plain")
    found = on_ranks(3, lambda ranks: trained(SPANS[3][ranks.rank], seed=None, **options))
    assert found == [found[0]] * 3


def test_layers_that_say_themselves_what_they_compute_are_refused():
    class Doubled(layers.Layer):
        def __call__(self, x):
            return 2 * x

        forward = backward = __call__

    x, t, *_ = digits()

    def go(ranks):
        net = xnet.Network([Affine(64, 10), Doubled()], dtype="float32")
        xnet.train(net, x[SPANS[2][ranks.rank]], t[SPANS[2][ranks.rank]], progress=False)

    with pytest.raises(ValueError, match=r"Doubled\(\) says itself what it computes"):
        on_ranks(2, go)


def test_a_network_from_elsewhere_is_refused():
    x, t, *_ = digits()
    net = xnet.TwoLayerNet(64, 3, 10, backend="numpy")
    with pytest.raises(ValueError, match="make it in the block of communicator, or move it"):
        on_ranks(2, lambda _: xnet.train(net, x, t, progress=False))


def test_parameters_that_have_come_apart_are_found():
    x, t, *_ = digits()

    class Disturbs(Callback):
        def on_step(self, training):
            if training.history.iterations == 3 and xnet.get_backend().ranks.rank == 1:
                training.network.params["b1"][0] += 1

    def go(ranks):
        net = xnet.TwoLayerNet(64, 3, 10)
        span = SPANS[2][ranks.rank]
        xnet.train(net, x[span], t[span], batch_size=50, callbacks=[Disturbs()], progress=False)

    with pytest.raises(RankError, match="parameters is not the same on all ranks: "):
        on_ranks(2, go)
