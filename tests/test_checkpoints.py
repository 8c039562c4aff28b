"""Runs that survive: checkpoints, being resumed, being ended, and being told of."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import xnet
from xnet import checkpoints
from xnet.errors import CheckpointError, CheckpointWarning
from xnet.layers import Affine, BatchNorm, Dropout, ReLU
from xnet.optimizers import SGD, Adam, Momentum
from xnet.schedules import Cosine, Plateau, Warmup
from xnet.training import Callback, Training, train

(X, T), (X_TEST, T_TEST) = xnet.datasets.load_digits()
X, T = X[:300], T[:300]


class StopAt(Callback):
    def __init__(self, iterations):
        self.iterations = iterations

    def on_step(self, training):
        return training.history.iterations == self.iterations


def network(dtype="float64", backend=None, seed=1):
    """Layers that draw, that keep running means, and that do neither."""
    layers = [Affine(64, 12), BatchNorm(12), ReLU(), Dropout(0.2), Affine(12, 10)]
    return xnet.Network(layers, seed=seed, dtype=dtype, backend=backend)


RUNS = {
    "plain": {},
    "sgd, replacement": {"optimizer": lambda: SGD(0.2), "replacement": True},
    "validation": {"validation": 0.2, "patience": 2, "optimizer": lambda: Adam(0.02)},
    "validation data": {"validation": (X_TEST[:100], T_TEST[:100])},
    "schedule, clip": {"schedule": Warmup(10, Cosine()), "clip": 0.5},
    "plateau": {"schedule": Plateau(1, 0.5), "optimizer": lambda: Momentum(0.1)},
    "fresh seed": {"seed": None, "validation": 0.2},
    "weights": {"sample_weight": np.arange(300) % 3},
}


def run(options, folder, **more):
    options = {"iterations": 40} | options | more
    optimizer = options.pop("optimizer", lambda: Adam(0.01))()
    net = options.pop("network", network)()
    history = train(
        net,
        X,
        T,
        X_TEST[:50],
        T_TEST[:50],
        batch_size=32,
        optimizer=optimizer,
        checkpoint=folder,
        **options,
    )
    return net, history


def same_history(a, b):
    return vars(a) | {"seconds": 0} == vars(b) | {"seconds": 0}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("stop", [[7], [10, 30], [1, 2, 39]], ids=str)
def test_a_run_in_parts_is_one_run(options, stop, tmp_path, monkeypatch):
    """Bit for bit, whichever step it stopped at: within an epoch, at its end, before the last."""
    monkeypatch.setattr(os, "urandom", lambda n: b"\x07" * n)  # a fresh seed twice the same
    whole, history = run(options, tmp_path / "whole")
    monkeypatch.undo()
    monkeypatch.setattr(os, "urandom", lambda n: b"\x07" * n)
    for at in stop:
        run(options, tmp_path / "parts", callbacks=[StopAt(at)], resume=True)
        monkeypatch.undo()  # what is resumed takes the first seed from the checkpoint
    parts, resumed = run(options, tmp_path / "parts", resume=True)
    assert xnet.weights.sha256(parts) == xnet.weights.sha256(whole)
    assert same_history(resumed, history)
    again, over = run(options, tmp_path / "parts", resume=True)  # it has ended, and stays so
    assert xnet.weights.sha256(again) == xnet.weights.sha256(whole)
    assert same_history(over, history)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reproducible", [False, True])
def test_on_every_backend(backend, dtype, reproducible, tmp_path):
    def make():
        with xnet.use_backend(backend.name, reproducible=reproducible):
            return network(dtype)

    options = {"network": make, "iterations": 6, "schedule": Warmup(3, Cosine()), "clip": 0.5}
    whole, _ = run(options, tmp_path / "whole")
    run(options, tmp_path / "parts", callbacks=[StopAt(4)])
    parts, _ = run(options, tmp_path / "parts", resume=True)
    assert xnet.weights.sha256(parts) == xnet.weights.sha256(whole)
    assert {W.dtype for W in parts.params.values()} == {W.dtype for W in whole.params.values()}
    if reproducible:  # begun here, ended on the reference
        run(options, tmp_path / "moved", callbacks=[StopAt(4)])
        with xnet.use_backend("numpy", reproducible=True):
            here = options | {"network": lambda: network(dtype)}
            moved, _ = run(here, tmp_path / "moved", resume=True)
        assert xnet.weights.sha256(moved) == xnet.weights.sha256(whole)


def test_calls_of_one_training_are_one_run(tmp_path):
    whole, _ = run({}, None, iterations=20)
    net = network()
    training = Training(
        net,
        X,
        T,
        X_TEST[:50],
        T_TEST[:50],
        batch_size=32,
        optimizer=Adam(0.01),
        checkpoint=tmp_path,
    )
    training.run(iterations=5)
    training.run(iterations=5)
    resumed = network()
    Training(
        resumed,
        X,
        T,
        X_TEST[:50],
        T_TEST[:50],
        batch_size=32,
        optimizer=Adam(0.01),
        checkpoint=tmp_path,
        resume=True,
    ).run(iterations=10)
    assert xnet.weights.sha256(resumed) == xnet.weights.sha256(whole)


# -- what there is in the folder


def test_the_last_two_are_kept(tmp_path):
    run({}, tmp_path, checkpoint_every=0, iterations=12)
    assert [int(path.name[5:15]) for path in checkpoints.Folder(tmp_path).files()] == [12, 11]
    assert len(list(tmp_path.iterdir())) == 2  # and nothing half-written


def test_as_often_as_is_said(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    real = checkpoints.Folder.write
    monkeypatch.setattr(
        checkpoints.Folder, "write", lambda self, n, *a: (written.append(n), real(self, n, *a))[1]
    )

    class Slow(Callback):
        def on_step(self, training):
            now[0] += 10.0

    run({}, tmp_path, iterations=10, callbacks=[Slow()], checkpoint_every=35)
    assert written == [4, 8, 10]


def test_another_runs_checkpoints_are_not_overwritten(tmp_path):
    run({}, tmp_path, iterations=3)
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    with pytest.raises(
        CheckpointError, match="holds 1 of a run that got to step 3: resume goes on"
    ):
        run({}, tmp_path)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


def other_layers():
    return xnet.Network([Affine(64, 13), ReLU(), Affine(13, 10)])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"batch_size": 33}, "batch_size was 32"),
        ({"replacement": True}, "replacement was False"),
        ({"seed": 5}, "seed was 0 in the run that is to go on, now it is 5"),
        ({"optimizer": lambda: SGD(0.01)}, "optimizer was 'Adam'"),
        (
            {"optimizer": lambda: Adam(0.02)},
            "optimizer's settings: lr was 0.01 in .* now it is 0.02",
        ),
        ({"schedule": Cosine()}, "schedule was 'None'"),
        ({"clip": 1.0}, "clip was None"),
        ({"validation": 0.3}, "validation was None"),
        ({"gradient": "numerical"}, "gradient was 'backprop'"),
        ({"network": other_layers}, r"network: layers was \[.* now it is \["),
        ({"network": lambda: network("float32")}, "dtype was 'float64'"),
        ({"network": lambda: network(backend="strict")}, "backend was 'numpy'.*'strict'"),
        (
            {"network": lambda: network(backend=xnet.resolve("numpy", True))},
            "reproducible was False",
        ),
        ({"sample_weight": np.arange(300)}, "data: train was"),
    ],
)
def test_other_settings_are_refused_by_name(other, message, tmp_path):
    run({}, tmp_path, iterations=3)
    options = {"batch_size": 32} | other
    optimizer, net = (
        options.pop("optimizer", lambda: Adam(0.01))(),
        options.pop("network", network)(),
    )
    with pytest.raises(CheckpointError, match=message):
        train(
            net,
            X,
            T,
            X_TEST[:50],
            T_TEST[:50],
            optimizer=optimizer,
            iterations=5,
            checkpoint=tmp_path,
            resume=True,
            **options,
        )


@pytest.mark.parametrize(
    ("x", "t"),
    [(X + 1e-12, T), (X, np.roll(T, 1)), (X[:-1], T[:-1])],
    ids=["features", "labels", "fewer"],
)
def test_other_data_are_refused(x, t, tmp_path):
    run({}, tmp_path, iterations=3)
    with pytest.raises(CheckpointError, match="data: train was"):
        train(
            network(),
            x,
            t,
            X_TEST[:50],
            T_TEST[:50],
            batch_size=32,
            optimizer=Adam(0.01),
            iterations=5,
            checkpoint=tmp_path,
            resume=True,
        )


def test_another_length_is_refused_where_a_schedule_counts_on_it(tmp_path):
    run({"schedule": Cosine()}, tmp_path, iterations=5)
    with pytest.raises(CheckpointError, match=r"iterations was 5 in the run .* now it is 6"):
        run({"schedule": Cosine()}, tmp_path, iterations=6, resume=True)


def test_a_longer_run_goes_on(tmp_path):
    whole, _ = run({}, None, iterations=20)
    run({}, tmp_path, iterations=10)
    longer, history = run({}, tmp_path, iterations=20, resume=True)
    assert history.iterations == 20
    assert xnet.weights.sha256(longer) == xnet.weights.sha256(whole)


class OwnUpdate(SGD):
    def update(self, params, grads):
        super().update(params, grads)


class OwnLayer(ReLU):
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resume": True, "checkpoint": None}, ValueError, "resume needs checkpoint"),
        ({"checkpoint_every": -1}, ValueError, "checkpoint_every is -1, expected seconds"),
        ({"optimizer": OwnUpdate(0.1)}, CheckpointError, "OwnUpdate says itself how it steps"),
        (
            {"callbacks": [print]},
            TypeError,
            "callbacks holds <built-in function print>, expected a",
        ),
    ],
)
def test_what_is_refused_before_training(options, error, message, tmp_path):
    net = network()
    before = xnet.weights.sha256(net)
    with pytest.raises(error, match=message):
        train(net, X, T, **{"checkpoint": tmp_path / "new"} | options)
    assert xnet.weights.sha256(net) == before


def test_layers_that_no_file_can_hold_are_refused(tmp_path):
    net = xnet.Network([Affine(64, 10), OwnLayer()])
    with pytest.raises(xnet.WeightsError, match="OwnLayer"):
        train(net, X, T, checkpoint=tmp_path)


def test_an_optimizer_that_has_taken_steps_is_refused(tmp_path):
    run({}, tmp_path, iterations=3)
    used = Adam(0.01)
    train(network(), X, T, iterations=1, optimizer=used)
    with pytest.raises(CheckpointError, match="the optimizer has taken steps"):
        run({"optimizer": lambda: used}, tmp_path, resume=True)


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is no folder that can be written to"):
        run({}, tmp_path / "file")


# -- damage


DAMAGES = {
    "empty": lambda content, rng: b"",
    "cut": lambda content, rng: content[: rng.randrange(len(content))],
    "a bit": lambda content, rng: flipped(content, rng.randrange(8 * len(content))),
    "a bit of its length": lambda content, rng: flipped(content, rng.randrange(64)),
    "more": lambda content, rng: content + b"\0" * rng.randrange(1, 100),
    "zeros": lambda content, rng: content[: rng.randrange(len(content) - 99)].ljust(
        len(content), b"\0"
    ),
}


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_damaged_one_is_told_of_and_the_one_before_it_taken(tmp_path):
    whole, _ = run({}, None, iterations=12)
    run({}, tmp_path / "made", iterations=8, checkpoint_every=0)
    rng = random.Random(0)
    for turn in range(max(20, int(os.environ.get("XNET_EXAMPLES", "20")))):
        damage = DAMAGES[list(DAMAGES)[turn % len(DAMAGES)]]
        folder = shutil.copytree(tmp_path / "made", tmp_path / str(turn))
        last, before = checkpoints.Folder(folder).files()
        last.write_bytes(damage(last.read_bytes(), rng))
        with pytest.warns(CheckpointWarning, match=re.escape(f"checkpoint {last} is damaged")):
            net, _ = run({}, folder, iterations=12, resume=True)
        assert xnet.weights.sha256(net) == xnet.weights.sha256(whole)
        assert before.exists() or len(checkpoints.Folder(folder).files()) == 2


def test_two_that_were_swapped(tmp_path):
    run({}, tmp_path, iterations=8, checkpoint_every=0)
    one, other = checkpoints.Folder(tmp_path).files()
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    with (
        pytest.warns(CheckpointWarning, match="its bytes are not those that its name says"),
        pytest.raises(CheckpointError, match="no file in it is whole"),
    ):
        run({}, tmp_path, resume=True)


def test_what_else_lies_there_is_left(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-1.safetensors").write_text("mine, too")
    run({}, tmp_path, iterations=3, resume=True)
    assert {path.name[:6] for path in tmp_path.iterdir()} == {"notes.", "step-1", "step-0"}


def test_a_disk_that_is_full_ends_the_run_and_spares_what_there_is(tmp_path, monkeypatch):
    run({}, tmp_path, iterations=3)
    before = [path.read_bytes() for path in tmp_path.iterdir()]

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        run({}, tmp_path, iterations=6, resume=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == before


# -- signals and callbacks


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_it_after_a_whole_step(name, tmp_path):
    number = getattr(signal, name)
    before = signal.getsignal(number)

    class Sends(Callback):
        def on_step(self, training):
            if training.history.iterations == 5:
                os.kill(os.getpid(), number)

    whole, _ = run({}, None, iterations=10)
    _, history = run({}, tmp_path, iterations=10, callbacks=[Sends()])
    assert (history.stopped, history.iterations) == ("interrupted", 5)
    assert signal.getsignal(number) is before
    resumed, _ = run({}, tmp_path, iterations=10, resume=True)
    assert xnet.weights.sha256(resumed) == xnet.weights.sha256(whole)


@pytest.mark.parametrize("kind", [network, lambda: xnet.TwoLayerNet(64, 200, 10, backend="numba")])
def test_signals_at_any_moment_cost_no_bit(kind, tmp_path):
    """They come while a step is under way, and are heard when it is done."""
    if kind is not network:
        pytest.importorskip("numba")
    options = {"network": kind, "iterations": 300}
    whole, _ = run(options, None)
    rng, ends, running = random.Random(0), set(), []

    def interrupt(number, frame):
        if running:  # it may come when the run is over
            raise KeyboardInterrupt

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        while "finished" not in ends:

            class Sends(Callback):
                timer = None

                def on_step(self, training):
                    if not self.timer:
                        number = rng.choice(list(before))
                        self.timer = threading.Timer(
                            rng.uniform(0, 0.03), os.kill, (os.getpid(), number)
                        )
                        self.timer.start()

            callback = Sends()
            running.append(1)
            with contextlib.suppress(KeyboardInterrupt):  # it came when the last step was done
                _, history = run(options, tmp_path, callbacks=[callback], resume=True)
                ends.add(history.stopped)
            running.clear()
            if callback.timer:
                callback.timer.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "interrupted" in ends
    net, history = run(options, tmp_path, resume=True)
    assert xnet.weights.sha256(net) == xnet.weights.sha256(whole)
    assert history.iterations == 300


def test_a_step_that_takes_long_is_interrupted(monkeypatch):
    monkeypatch.setattr(xnet.training, "GRACE", 0.1)

    class Sleeps(Callback):
        def on_step(self, training):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    began = time.monotonic()
    _, history = run({}, None, callbacks=[Sleeps()])
    assert history.stopped == "interrupted"
    assert time.monotonic() - began < 30


def test_the_second_signal_interrupts_at_once():
    class Sleeps(Callback):
        def on_step(self, training):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it went on")

    _, history = run({}, None, callbacks=[Sleeps()])
    assert history.stopped == "interrupted"


def test_a_step_whose_loss_is_unknown_is_not_in_the_checkpoint(tmp_path):
    """Else it would be taken twice."""

    class Interrupted(Adam):
        def step(self, *arguments, **named):
            return super().step(*arguments, **named)

    class Cuts(xnet.Network):
        def train_step(self, *arguments):
            loss = super().train_step(*arguments)
            if optimizer.taken["W1"] == 5:
                raise KeyboardInterrupt
            return loss

    optimizer = Interrupted(0.01)
    net = Cuts([Affine(64, 10)], seed=1)
    history = train(net, X, T, iterations=9, optimizer=optimizer, checkpoint=tmp_path)
    assert (history.stopped, history.iterations) == ("interrupted", 4)
    assert not checkpoints.Folder(tmp_path).files()


def test_a_signal_that_the_program_handles_is_its_own():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:

        class Sends(Callback):
            def on_step(self, training):
                os.kill(os.getpid(), signal.SIGTERM)

        _, history = run({}, None, iterations=3, callbacks=[Sends()])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert history.stopped == "finished"
    assert heard == [1, 1, 1]


def test_in_another_thread_signals_are_let_be():
    found = []
    thread = threading.Thread(target=lambda: found.append(run({}, None, iterations=3)[1].stopped))
    thread.start()
    thread.join()
    assert found == ["finished"]


def test_callbacks_are_told_in_order():
    told = []

    class Tells(Callback):
        def __init__(self, name):
            self.name = name

        def on_step(self, training):
            told.append((self.name, training.history.iterations))

        def on_epoch(self, training):
            told.append((self.name, "epoch", len(training.history.train_accuracy)))

    train(network(), X[:64], T[:64], batch_size=32, epochs=2, callbacks=[Tells("a"), Tells("b")])
    of_a = [event[1:] for event in told if event[0] == "a"]
    assert of_a == [(1,), (2,), ("epoch", 1), (3,), (4,), ("epoch", 2)]
    assert told[::2] == [("a", *event) for event in of_a]
    assert told[1::2] == [("b", *event) for event in of_a]


def test_a_callback_stops_the_run_at_an_epochs_end():
    class Enough(Callback):
        def on_epoch(self, training):
            return training.history.train_accuracy[-1] >= 0

    history = train(network(), X, T, epochs=5, batch_size=100, callbacks=[Enough()])
    assert (history.stopped, history.iterations) == ("stopped", 3)


def test_what_a_callback_raises_ends_the_run_after_a_whole_step():
    class Fails(Callback):
        def on_step(self, training):
            if training.history.iterations == 4:
                raise LookupError("mine")

    net, optimizer = network(), SGD(0.1)
    training = Training(net, X, T, optimizer=optimizer, callbacks=[Fails()], schedule=Cosine())
    with pytest.raises(LookupError, match="mine"):
        training.run(iterations=10)
    assert training.history.iterations == 4
    assert optimizer.lr == 0.1


def test_the_pages_tensorboard(tmp_path):
    """The block of docs/training.md that needs a library more."""
    board = pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    page = Path(__file__).parents[1] / "docs" / "training.md"
    (block,) = re.findall(r"```py\n(.*?)```", page.read_text(), re.DOTALL)
    scope = {"Callback": Callback}
    exec(block, scope)
    callback = scope["ToTensorBoard"](str(tmp_path))
    history = train(network(), X, T, epochs=2, callbacks=[callback])
    callback.writer.close()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    assert board.SummaryWriter is scope["SummaryWriter"]
    assert content.count(b"loss") == history.iterations
    assert content.count(b"accuracy") == 2


# -- SIGKILL

SCRIPT = """
import sys, time
import xnet
from xnet.layers import Affine, BatchNorm, Dropout, ReLU

folder, backend, optimizer, whole, seconds = sys.argv[1:]
(x, t), _ = xnet.datasets.load_digits()
x, t = x[:300], t[:300]
net = xnet.Network(
    [Affine(64, 12), BatchNorm(12), ReLU(), Dropout(0.2), Affine(12, 10)], seed=1, backend=backend
) if whole != "fused" else xnet.TwoLayerNet(64, 12, 10, backend=backend)
net.predict(x[:1])

class Slow(xnet.training.Callback):
    def on_step(self, training):
        time.sleep(float(seconds))

print("begins", flush=True)
history = xnet.train(
    net, x, t, iterations=300, batch_size=32, validation=0.2, callbacks=[Slow()],
    optimizer=xnet.optimizers.OPTIMIZERS[optimizer](0.01), progress=False,
    checkpoint=folder, checkpoint_every=0.01, resume=True,
)
print(xnet.weights.sha256(net), history.iterations, flush=True)
"""


def child(*arguments):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fused", "mixed"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_killed_at_any_moment_it_ends_with_the_same_bits(name, optimizer, kind, tmp_path):
    """XNET_EXAMPLES=50 for 50 kills in all of each."""
    if name == "numba":
        pytest.importorskip("numba")
    kills = int(os.environ.get("XNET_EXAMPLES", "2"))
    arguments = name, optimizer, kind
    expected, errors = child(tmp_path / "whole", *arguments, 0).communicate()
    assert not errors
    rng, folder, killed, turn = random.Random(0), tmp_path / "0", 0, 0
    while killed < kills:
        process = child(folder, *arguments, 0.002)
        assert process.stdout.readline() == "begins\n", process.stderr.read()
        try:
            process.wait(rng.uniform(0, 0.5))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        found, errors = process.communicate()
        if found:  # it came to its end before: another run
            assert found == expected.removeprefix("begins\n")
            turn += 1
            folder = tmp_path / str(turn)
    last, errors = child(folder, *arguments, 0).communicate()
    assert last == expected, errors
    assert not errors


def test_a_file_says_what_it_holds(tmp_path):
    """It is safetensors, which other programs read."""
    from safetensors.numpy import load_file

    run({}, tmp_path, iterations=3)
    (path,) = tmp_path.iterdir()
    arrays = load_file(path)
    assert arrays["params.W1"].shape == (64, 12)
    assert len(arrays["loss"]) == 3
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts = json.loads(header["__metadata__"]["xnet checkpoint"])
    assert facts["settings"]["optimizer"] == "Adam"
