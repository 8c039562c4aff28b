"""The `xnet` command: what it prints, what it writes, and how it refuses."""

import dataclasses
import itertools
import json
import os
import pickle
import platform
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from conftest import OPTIMIZERS, REGISTERED, variants
from PIL import Image

import xnet
from xnet import backend as registry
from xnet import datasets, operations, plotting, weights
from xnet.network import Network
from xnet.operations import Affine, ReLU
from xnet.optimizers import SGD
from xnet.testing import parity
from xnet.tools import cli

pytestmark = pytest.mark.usefixtures("registered_alone")
Done = namedtuple("Done", ["status", "out", "err"])
USABLE = {info.name for info in xnet.backends() if info.usable}
COMPILING = "xnet: compiling Numba kernels;.*\n"
"""What a first run, whose cache is cold, says besides."""
COMMANDS = ["info", "train", "evaluate", "predict", "gradcheck", "parity", "plot", "demo"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command with these arguments, as the installed script does."""

    def run(*arguments) -> Done:
        monkeypatch.setattr(sys, "argv", ["xnet", *map(str, arguments)])
        monkeypatch.setattr(cli.out, "width", 80)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return Done(stopped.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def good(run):
    """As `run`, for what must succeed in silence; returns what it printed."""

    def good(*arguments) -> str:
        done = run(*arguments)
        assert (done.status, re.sub(COMPILING, "", done.err)) == (0, "")
        return done.out

    return good


@pytest.fixture
def bad(run):
    """As `run`, for what must fail with a line that says why; returns the line."""

    def bad(*arguments, printed="") -> str:
        done = run(*arguments)
        assert done.status == 1
        assert re.fullmatch(r"xnet: [^\n]+\n", done.err)
        assert done.out == printed or printed is None
        return done.err.removeprefix("xnet: ").rstrip()

    return bad


def parsed(text: str):
    """One JSON object, and nothing that only Python takes for JSON."""
    assert text.count("\n") == 1
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


COMMAND = [sys.executable, "-m", "xnet_command"]


def subprocess_run(*arguments, command=COMMAND, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A network trained on the digits."""
    (x, t), _ = datasets.load_digits()
    network = cli._dense([64, 50, 10], "relu", "he", backend="numpy")
    xnet.train(network, x, t, epochs=40, progress=False)
    path = tmp_path_factory.mktemp("trained") / "digits.safetensors"
    weights.save(network, path)
    return path


@pytest.fixture
def untrained(tmp_path):
    """To be called with sizes: a file with a network of these."""

    def untrained(*sizes) -> Path:
        path = tmp_path / "untrained.safetensors"
        weights.save(Network([Affine(a, b) for a, b in itertools.pairwise(sizes)]), path)
        return path

    return untrained


def draw_digit(path: Path, index=0) -> int:
    """Write a picture of a digit of the test set, enlarged, black on white; returns its label."""
    _, (x, t) = datasets.load_digits()
    pixels = np.kron(1 - x[index].reshape(8, 8), np.ones((20, 20)))
    Image.fromarray((255 * pixels).astype(np.uint8)).save(path)
    return int(t[index])


# info


def test_installed_script_is_the_command():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"xnet": "xnet_command:main"}


def test_info(good):
    shown = good("info")
    assert f"xnet {xnet.__version__}" in shown
    assert f"numpy {np.__version__}" in shown
    for info in xnet.backends():
        assert re.search(rf"{info.name}\W+{'yes' if info.usable else 'no'}\W", shown)
    if "cupy" not in USABLE:
        assert re.search(r"CuPy|CUDA|GPU", shown)


def test_info_as_json(good):
    facts = parsed(good("info", "--json"))
    assert facts["xnet"] == xnet.__version__
    assert facts["python"] == platform.python_version()
    assert facts["platform"] == platform.platform()
    assert (facts["current"], facts["reproducible"]) == ("numpy", False)
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["cpus"] == os.cpu_count()
    assert [{k: b[k] for k in ("name", "usable", "reason")} for b in facts["backends"]] == [
        vars(info) for info in xnet.backends()
    ]
    assert all(bool(b["devices"]) == b["usable"] for b in facts["backends"])
    assert all(count >= 1 for count in facts["threads"].values())


def test_version(good, run):
    assert good("--version") == f"xnet {xnet.__version__}\n"
    assert good("--version", "train") == f"xnet {xnet.__version__}\n"


# train


def test_train_saves_and_reports(good, tmp_path):
    path = tmp_path / "net.safetensors"
    shown = good("train", "--epochs", 40, "--save", path)
    assert f"saved to {path}" in re.sub(r"\s+", " ", shown)
    assert "600 iterations" in shown
    *_, train_line, test_line = shown.splitlines()
    assert re.fullmatch(r"train accuracy 0\.\d{4}", train_line)
    assert re.fullmatch(r"test accuracy 0\.\d{4}", test_line)
    assert float(test_line.split()[-1]) >= 0.95
    assert good("evaluate", path).splitlines()[-1] == test_line.removeprefix("test ")


def test_train_as_json(good):
    facts = parsed(good("train", "--iterations", 20, "--json", "--seed", 5))
    assert (facts["dataset"], facts["sizes"]) == ("digits", [64, 50, 10])
    assert (facts["backend"], facts["dtype"], facts["seed"]) == ("numpy", "float64", 5)
    assert (facts["stopped"], facts["epoch_ends"]) == ("finished", [15, 20])
    assert len(facts["loss"]) == 20
    assert len(facts["train_accuracy"]) == len(facts["test_accuracy"]) == 2
    assert facts["seconds"] > 0
    again = parsed(good("train", "--iterations", 20, "--json", "--seed", 5))
    other = parsed(good("train", "--iterations", 20, "--json", "--seed", 6))
    assert facts["loss"] == again["loss"] != other["loss"]


@pytest.mark.parametrize(
    ("arguments", "layers"),
    [
        ([], "[Affine(64, 50), ReLU(), Affine(50, 10)]"),
        (
            ["--hidden", 7, "--hidden", 5, "--activation", "sigmoid"],
            "[Affine(64, 7), Sigmoid(), Affine(7, 5), Sigmoid(), Affine(5, 10)]",
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_train_builds_what_was_asked_for(good, tmp_path, arguments, layers, dtype):
    path = tmp_path / "net"
    shown = good("train", *arguments, "--iterations", 2, "--dtype", dtype, "--save", path)
    assert layers.replace(" ", "") in re.sub(r"\s", "", shown)  # it may be wrapped
    network = weights.load_network(path)
    assert (repr(network.layers), network.dtype) == (layers, dtype)


@pytest.mark.parametrize("init", ["he", "xavier", "0.01", "0"])
def test_train_initial_weights(good, init):
    loss = parsed(good("train", "--iterations", 1, "--init", init, "--json"))["loss"][0]
    even = np.log(10)  # what equal probabilities cost
    assert abs(loss - even) < (1e-3 if init in ("0.01", "0") else 1)
    assert (abs(loss - even) < 1e-5) == (init == "0")


def lower(kinds) -> list[str]:
    return [kind.__name__.lower() for kind in kinds]


@pytest.mark.parametrize("optimizer", lower(OPTIMIZERS))
def test_train_by_each_optimizer(good, optimizer):
    facts = parsed(good("train", "--epochs", 3, "--optimizer", optimizer, "--json"))
    assert np.mean(facts["loss"][-10:]) < np.mean(facts["loss"][:5])


@pytest.mark.parametrize(
    "activation", lower(kind for kind in REGISTERED if kind.fuses == "pointwise")
)
def test_train_with_each_activation(good, tmp_path, activation):
    path = tmp_path / "net"
    good("train", "--iterations", 2, "--activation", activation, "--save", path)
    assert type(weights.load_network(path).layers[1]).__name__.lower() == activation


@pytest.mark.parametrize(
    "loss", [loss for loss in variants("loss", altered=False) if loss.classes], ids=repr
)
def test_train_with_each_loss_of_classes(good, tmp_path, loss):
    name, path = type(loss).__name__, tmp_path / "net"
    shown = good("train", "--epochs", 3, "--loss", name.lower(), "--save", path)
    assert type(weights.load_network(path).loss_layer.operation) is type(loss)
    assert float(shown.split()[-1]) > 0.5


def test_a_loss_that_knows_no_classes_is_no_choice(run):
    done = run("train", "--loss", "huber")
    assert done.status == 2
    assert "--loss" in done.err


EXTENSION = Path(__file__).parent / "packages" / "extension"


def test_what_an_installed_package_registers_is_a_choice(tmp_path):
    """Its activation, its loss and its optimizer, by its entry point alone."""
    path = str(tmp_path / "net")
    choices = ["--activation", "softsign", "--loss", "squaredentropy", "--optimizer", "signum"]
    environment = {"PYTHONPATH": str(EXTENSION)}
    done = subprocess_run("train", *choices, "--epochs", 5, "--json", "--save", path, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    facts = parsed(done.stdout)
    assert np.mean(facts["loss"][-10:]) < np.mean(facts["loss"][:10])
    assert re.fullmatch(
        r"accuracy 0\.\d+", subprocess_run("evaluate", path, **environment).stdout.splitlines()[-1]
    )
    assert "unknown operation 'Softsign'" in subprocess_run("evaluate", path).stderr
    shown = subprocess_run("train", "--help", **environment, COLUMNS="400").stdout
    assert all(name in re.sub(r"[\s│]", "", shown) for name in choices[1::2])


def test_train_learning_rate(good):
    default, given, other = (
        parsed(good("train", "--iterations", 3, "--json", *rate))["loss"]
        for rate in ([], ["--learning-rate", 0.1], ["--learning-rate", 0.2])
    )
    assert default == given != other


def test_train_by_the_numerical_gradient(good):
    arguments = ["train", "--iterations", 2, "--hidden", 2, "--batch-size", 5, "--json"]
    exact = parsed(good(*arguments))["loss"]
    numerical = parsed(good(*arguments, "--gradient", "numerical"))["loss"]
    assert exact != numerical
    np.testing.assert_allclose(exact, numerical, rtol=1e-6)


def test_train_stops_early(good):
    arguments = ["--learning-rate", 0, "--validation", 0.1, "--patience", 2, "--epochs", 9]
    facts = parsed(good("train", *arguments, "--json"))
    assert (facts["stopped"], facts["epoch_ends"]) == ("early stop", [13, 26, 39])
    assert facts["kept_epoch"] == 0


def test_train_reports_what_validation_chose(good, tmp_path):
    """The test accuracy is that of the network in the file, and of no other."""
    path = tmp_path / "net.safetensors"
    arguments = ["train", "--epochs", 8, "--learning-rate", 3, "--validation", 0.2, "--save", path]
    shown = good(*arguments).splitlines()
    network, ((x, t), test) = weights.load_network(path), datasets.load_digits()
    held = xnet.Training(network, x, t, validation=0.2)._data
    for part, data in {"train": None, "validation": None, "test": test}.items():
        x, t = (held[part].x, held[part].t) if data is None else data
        assert f"{part} accuracy {network.accuracy(x, t):.4f}" in shown
    facts = parsed(good(*arguments, "--json"))
    assert facts["kept_epoch"] == np.argmax(facts["validation_accuracy"]) < 7
    assert f"epoch {facts['kept_epoch'] + 1} did best in validation and was kept" in shown
    assert len(facts["test_accuracy"]) == 1


def test_patience_alone_says_what_it_needs(run):
    status, _, error = run("train", "--patience", 3)
    assert status == 1
    assert "patience is 3 without validation" in error


def test_train_runs_as_long_as_the_notes_by_default(monkeypatch, run):
    asked = {}
    monkeypatch.setattr(cli, "train", lambda *_, **settings: asked.update(settings) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("train")
    assert (asked["iterations"], asked["epochs"], asked["batch_size"]) == (10_000, None, 100)


@pytest.mark.skipif("numba" not in USABLE, reason="numba cannot be used here")
def test_train_on_numba(good, monkeypatch):
    arguments = ["train", "--iterations", 3, "--json"]
    on_numpy = parsed(good(*arguments))
    on_numba = parsed(good(*arguments, "--backend", "numba"))
    assert (on_numpy["backend"], on_numba["backend"]) == ("numpy", "numba")
    np.testing.assert_allclose(on_numpy["loss"], on_numba["loss"], rtol=1e-12)
    monkeypatch.setenv("XNET_BACKEND", "numba")
    monkeypatch.setattr("xnet.backend._default", None)  # as a new process would find it
    assert parsed(good(*arguments))["backend"] == "numba"


# evaluate


@pytest.mark.parametrize("how", [[], ["--per-sample"]], ids=["batches", "one at a time"])
@pytest.mark.parametrize(
    ("pixels", "accuracy"), [([], "0.9352"), (["--raw"], "0.9207")], ids=["scaled", "raw"]
)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_evaluate_notes_weights(good, mnist, sample_weight, backend, pixels, accuracy, how):
    if backend not in USABLE:
        pytest.skip(f"{backend} cannot be used here")
    shown = good("evaluate", sample_weight, "--backend", backend, *pixels, *how)
    assert shown.splitlines()[-1] == f"accuracy {accuracy}"
    assert "10000 mnist images" in shown


@pytest.mark.parametrize("arguments", [[], ["--batch-size", 7], ["--per-sample"]])
def test_evaluate_as_json(good, trained, arguments):
    facts = parsed(good("evaluate", trained, "--json", *arguments))
    _, (x, t) = datasets.load_digits()
    expected = {
        "dataset": "digits",
        "images": 360,
        "backend": "numpy",
        "raw": False,
        "accuracy": weights.load_network(trained).accuracy(x, t),
    }
    assert {key: facts[key] for key in expected} == expected
    assert facts["seconds"] > 0


# predict


def test_predict(good, trained, tmp_path):
    labels = [draw_digit(tmp_path / f"{index}.png", index) for index in range(3)]
    shown = good("predict", trained, *(tmp_path / f"{index}.png" for index in range(3)))
    rows = [re.findall(r"[\w.]+", line) for line in shown.splitlines() if ".png" in line]
    assert [(row[0], int(row[1])) for row in rows] == [
        (f"{index}.png", label) for index, label in enumerate(labels)
    ]
    for row, label in zip(rows, labels, strict=True):
        probabilities = [float(text) for text in row[2:12]]
        assert len(probabilities) == 10
        assert np.argmax(probabilities) == label
        assert sum(probabilities) == pytest.approx(1, abs=0.05)


def test_predict_as_json(good, trained, tmp_path):
    label = draw_digit(tmp_path / "digit.png")
    (first, second) = parsed(
        good("predict", trained, tmp_path / "digit.png", tmp_path / "digit.png", "--json")
    )
    assert first == second
    assert (first["image"], first["digit"]) == (str(tmp_path / "digit.png"), label)
    assert np.argmax(first["probabilities"]) == label
    assert sum(first["probabilities"]) == pytest.approx(1)


def test_a_digit_of_low_probability_is_called_unsure(good, tmp_path):
    """The bias alone speaks, so that the probabilities are known."""
    draw_digit(tmp_path / "digit.png")
    for probability in (0.89, 0.91):
        network = Network([Affine(64, 10, 0.0)])
        network.params["b1"][3] = np.log(probability / (1 - probability) * 9)
        weights.save(network, tmp_path / "net")
        shown = good("predict", tmp_path / "net", tmp_path / "digit.png")
        assert shown.rstrip().endswith("unsure") == (probability < 0.9)
        (found,) = parsed(good("predict", tmp_path / "net", tmp_path / "digit.png", "--json"))
        assert (found["digit"], found["sure"], found["sure_from"]) == (3, probability > 0.9, 0.9)
        assert found["probabilities"][3] == pytest.approx(probability)


@pytest.mark.parametrize("name", ["net.npz", "net.pkl", "net.pt"])
def test_a_name_that_hides_the_format_is_refused(bad, tmp_path, name):
    line = bad("train", "--save", tmp_path / name)
    assert "networks are saved as safetensors" in line
    assert "net.safetensors" in line
    assert list(tmp_path.iterdir()) == []


def test_predict_by_the_notes_weights(good, mnist, sample_weight, tmp_path):
    _, (x, t) = mnist
    for index in range(5):
        Image.fromarray(255 - x[index].reshape(28, 28)).save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    found = parsed(good("predict", sample_weight, *paths, "--json"))
    assert [each["digit"] for each in found][:4] == t[:4].tolist() == [7, 2, 1, 0]


@pytest.mark.parametrize("name", ["[red]seven.png", "[bold]seven.png", "seven[0].png"])
def test_predict_shows_the_file_by_its_name(good, trained, tmp_path, name):
    draw_digit(tmp_path / name)
    assert name in good("predict", trained, tmp_path / name)


# gradcheck


def test_gradcheck_of_a_new_network(good):
    shown = good("gradcheck", "--hidden", "6", "--hidden", "5", "--batch-size", "7")
    assert "7 digits images on numpy" in shown
    assert re.findall(r"^([Wb]\d) ", shown, re.M) == ["W1", "b1", "W2", "b2", "W3", "b3"]
    assert shown.endswith("agrees with the numerical gradient (h=0.0001)\n")


@pytest.mark.parametrize("backend", sorted(USABLE & {"numpy", "numba"}))
def test_gradcheck_of_a_saved_network_as_json(good, trained, backend):
    facts = parsed(good("gradcheck", trained, "--backend", backend, "--step", "1e-5", "--json"))
    assert (facts["passed"], facts["steps"], facts["backend"]) == (True, [1e-5], backend)
    assert (facts["dataset"], facts["samples"], facts["dtype"]) == ("digits", 20, "float64")
    for found in facts["parameters"]:
        assert found["passed"]
        assert abs(found["backprop"] - found["numerical"]) <= found["tolerance"] < 1e-4


def test_gradcheck_in_float32(good):
    facts = parsed(good("gradcheck", "--dtype", "float32", "--activation", "sigmoid", "--json"))
    assert (facts["dtype"], facts["steps"], facts["verdict"]) == ("float32", [1e-4], "agrees")


def test_gradcheck_of_a_wrong_backward(monkeypatch, run):
    right = Network.gradient

    def wrong(self, x, t):
        return {k: g * (1 + (k[0] == "b")) for k, g in right(self, x, t).items()}

    monkeypatch.setattr(Network, "gradient", wrong)
    command = ("gradcheck", "--hidden", "4", "--seed", "1")  # of 0 a sample is too near to a kink
    done = run(*command)
    assert done.status == 1
    assert "DOES NOT AGREE" in done.out
    assert re.findall(r"^(\w+) .*WRONG$", done.out, re.M) == ["b1", "b2"]
    done = run(*command, "--json")
    assert done.status == 1
    assert parsed(done.out)["passed"] is False


def test_gradcheck_that_can_tell_nothing(run):
    """A status of its own: neither right nor wrong."""
    done = run("gradcheck", "--hidden", "4", "--step", "1e-20")
    assert done.status == 3
    assert len(re.findall(r"inconclusive$", done.out, re.M)) == 4
    assert done.out.splitlines()[-1].startswith("inconclusive: ")
    done = run("gradcheck", "--hidden", "4", "--step", "1e-20", "--json")
    assert done.status == 3
    facts = parsed(done.out)
    assert (facts["verdict"], facts["passed"]) == ("inconclusive", False)
    assert facts["left_out"] == 0


def test_gradcheck_of_many_samples_raises_no_false_alarm(good):
    for seed in range(3):
        good("gradcheck", "--hidden", "20", "--batch-size", "200", "--seed", seed)


# demo


@pytest.mark.parametrize("as_json", [False, True])
def test_demo(good, as_json):
    """The main job: some four seconds, most of them timing the backends."""
    if as_json:
        facts = parsed(good("demo", "--json"))
        assert facts["test_accuracy"] >= 0.95
        assert {row["backend"].partition(":")[0] for row in facts["comparison"]} == USABLE
        for row in facts["comparison"]:
            assert row["agrees"]
            assert row["largest_difference"] < 1e-12
            assert row["images_per_second_one_at_a_time"] > 0
            assert row["images_per_second_in_a_batch"] > 0
        assert facts["backend"] in (row["backend"] for row in facts["comparison"])
        return
    shown = good("demo", "--backend", "numpy")
    assert float(re.search(r"^test accuracy (0\.\d{4})$", shown, re.MULTILINE)[1]) >= 0.95
    assert "training 64-50-10 on 1437 handwritten digits on numpy" in shown
    assert re.search(r"backend\W+usable\W+why not / devices", shown)
    comparison = shown[shown.index("test accuracy") :]
    for name in USABLE:
        assert re.search(rf"^\W*{name}\S*\W+yes\W", comparison, re.MULTILINE)
    assert re.search(r"\d+x", comparison)


def test_speeds_are_of_one_image_at_a_time_and_of_all_at_once(monkeypatch):
    """By a clock that each prediction takes a second of."""
    network, seen = Network([Affine(3, 2)]), []
    predict = network.predict

    def watched(x):
        seen.append(x.shape)
        return predict(x)

    monkeypatch.setattr(network, "predict", watched)
    clock = SimpleNamespace(perf_counter=lambda: float(len(seen)))
    monkeypatch.setattr(cli, "time", clock)
    assert cli._rates(network, np.ones((5, 3))) == (1.0, 5.0)
    assert set(seen) == {(3,), (5, 3)}


def test_demo_finds_a_backend_that_is_wrong(monkeypatch, bad):
    run = type(xnet.resolve("strict")).run
    monkeypatch.setattr(
        type(xnet.resolve("strict")), "run", lambda *given, **m: run(*given, **m) * 1.0001
    )
    monkeypatch.setattr(cli, "_rates", lambda *_: (1.0, 1.0))
    assert "differ from NumPy's" in bad("demo", "--backend", "numpy", printed=None)


# help, and wrong usage


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(good, command):
    shown = good(command, "--help")
    assert re.search(rf"Usage: .*xnet.* {command} ", shown)
    assert re.search(rf"Examples?: xnet {command}\b", shown)


def test_help_lists_the_commands(run, good):
    assert all(f" {command} " in good("--help") for command in COMMANDS)
    assert re.search("Usage: .*xnet", run().out)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fly"], "fly"),
        (["info", "--bogus"], "--bogus"),
        (["evaluate"], "(?i)file"),
        (["predict", "net"], "(?i)data"),
        (["train", "--optimizer", "magic"], "(?s)--optimizer.*adagrad"),
        (["train", "--dataset", "cats"], "(?s)--dataset.*digits.*mnist"),
        (["train", "--activation", "tanhh"], "(?s)--activation.*tanh"),
        (["train", "--loss", "magic"], "(?s)--loss.*hinge"),
        (["train", "--dtype", "float16"], "(?s)--dtype.*float32"),
        (["train", "--gradient", "magic"], "--gradient"),
        (["train", "--epochs", "0"], "--epochs"),
        (["train", "--iterations", "many"], "--iterations"),
        (["train", "--batch-size", "0"], "--batch-size"),
        (["train", "--hidden", "0"], "--hidden"),
        (["train", "--patience", "0"], "--patience"),
        (["train", "--seed", "-1"], "--seed"),
        (["demo", "--seed", "-1"], "--seed"),
        (["evaluate", "net", "--batch-size", "0"], "--batch-size"),
        (["plot"], "(?s)no figure is named.*--list"),
        (["plot", "sigmoidd", "-o", "a.png"], "(?s)'sigmoidd' is no figure.*sigmoid"),
        (["plot", "sigmoid"], "--output.*sigmoid.png"),
        (["plot", "learning-boundary-animation"], "(?s)--output.*animation.gif"),
        (["plot", "sigmoid", "-o", "a.png", "--width", "199"], "--width"),
    ],
)
def test_wrong_usage_exits_with_2(run, arguments, named):
    done = run(*arguments)
    assert (done.status, done.out) == (2, "")
    assert re.search(named, done.err)
    assert "Traceback" not in done.err


ODD = [
    *(
        "",
        "-1",
        "0",
        "nan",
        "1e400",
        "9" * 30,
        "1.5",
        "x" * 3000,
        "a\nb\x1b[31m",
        "[red]ü",
        "\udcff",
    ),
    *("/", "nowhere/net", "--", "--help", "numba:9", ":", "cupy:", "auto", "１"),
]
SMALL = {
    "train": ["--iterations", 2, "--hidden", 3],
    "gradcheck": ["--hidden", 2, "--batch-size", 2],
    "parity": ["--steps", 1, "--backend", "numpy"],
    "plot": ["sigmoid", "--width", 200, "--output", "odd.png"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_odd_values_of_every_option_end_in_no_traceback(monkeypatch, run, trained, command):
    """Whatever is given, a result, a line or a box; a row of them, drawn anew for each option."""
    if command == "demo":
        monkeypatch.setattr(cli, "_rates", lambda *_: (1.0, 1.0))
        monkeypatch.setattr(cli, "train", lambda *a, **s: xnet.train(*a, **s | {"epochs": 1}))
    monkeypatch.chdir(trained.parent)
    draw_digit(Path("digit.png"))
    good = {"file": [trained.name], "data": ["digit.png"]}
    rng = np.random.default_rng(0)
    parameters = typer.main.get_command(cli.app).commands[command].params
    needed = [p.name for p in parameters if p.required]
    for parameter in parameters:
        for odd in rng.choice(ODD, 3, replace=False):
            name, *_ = parameter.opts
            value = [odd] if getattr(parameter, "is_flag", False) is False else []
            given = {p: good[p] for p in needed} | {parameter.name: value}
            files = [v for p in needed for v in given.pop(p)]
            option = [name, *value] if name.startswith("--") else []
            done = run(command, *SMALL.get(command, []), *option, *files)
            assert done.status in (0, 1, 2)
            if done.status == 1 and not done.out:
                assert re.fullmatch(r"xnet: [^\n]{1,400}\n", re.sub(COMPILING, "", done.err))


# plot


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plot_writes_the_file(good, tmp_path, suffix):
    path = tmp_path / f"sigmoid.{suffix}"
    assert good("plot", "sigmoid", "-o", path, "--dark", "--width", 400) == f"saved to {path}\n"
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert path.read_bytes().startswith(starts[suffix])
    if suffix == "png":
        with Image.open(path) as picture:
            assert picture.width == 400
            assert picture.getpixel((0, 0))[:3] == (0x16, 0x18, 0x1D)


def test_plot_lists_the_figures(good):
    found = parsed(good("plot", "--list", "--json"))
    assert [one["name"] for one in found] == list(plotting.plots())
    assert {"name", "section", "shows"} == set(found[0])
    shown = good("plot", "--list")
    assert all(name in shown for name in plotting.plots())


def test_plot_shows_the_network_that_it_is_given(monkeypatch, good, bad, trained, tmp_path):
    given = []
    one = dataclasses.replace(
        plotting.plots()["mistakes"],
        draw=lambda material: given.append(material) or plotting.sigmoid(),
    )
    monkeypatch.setattr(plotting, "plots", lambda: {"mistakes": one})
    path = tmp_path / "mistakes.png"
    done = parsed(good("plot", "mistakes", "--network", trained, "-o", path, "--json"))
    assert done == {"figure": "mistakes", "file": str(path)}
    assert weights.sha256(given[0].network) == weights.sha256(weights.load_network(trained))
    assert given[0].dataset == "digits"
    assert "nowhere" in bad("plot", "mistakes", "--network", "nowhere", "-o", path)


def test_plot_of_a_network_that_no_data_set_fits(good, bad, untrained, tmp_path):
    network = untrained(7, 3)
    path = tmp_path / "a.svg"
    assert good("plot", "network-graph", "--network", network, "-o", path)
    assert path.is_file()
    assert "x has 64 features, W expects 7" in bad(
        *("plot", "mistakes", "--network", network, "-o", tmp_path / "b.svg")
    )


def test_plot_refuses_before_it_computes(monkeypatch, bad, tmp_path):
    never = dataclasses.replace(plotting.plots()["mistakes"], draw=lambda _: pytest.fail("drawn"))
    monkeypatch.setattr(plotting, "plots", lambda: {"mistakes": never})
    assert "ends in '.doc', expected one of" in bad("plot", "mistakes", "-o", "a.doc")
    assert "a.gif ends in '.gif'" in bad("plot", "mistakes", "-o", "a.gif")
    assert "cannot be written" in bad("plot", "mistakes", "-o", tmp_path / "no" / "a.png")


# A user's mistakes: one line, and no training before it.


MISTAKES = {
    "unknown backend": (["--backend", "nunpy"], r"unknown backend 'nunpy'; did you mean 'numpy'"),
    "no near miss": (["--backend", "torch"], r"unknown backend 'torch'.*numba"),
    "device of numpy": (["--backend", "numpy:1"], "numpy takes no device index"),
    "device that is none": (["--backend", "cupy:x"], "'x' is not a device index"),
    "init": (["--init", "huge"], "'huge', expected a number of at least 0, 'he' or 'xavier'"),
    "negative init": (["--init", "-1"], "-1.0, expected a number of at least 0"),
    "NaN for init": (["--init", "nan"], "nan, expected a number of at least 0"),
    "learning rate": (["--learning-rate", "-0.1"], "lr is -0.1, expected at least 0"),
    "NaN for a learning rate": (["--learning-rate", "nan"], "lr is nan, expected"),
    "infinite learning rate": (["--learning-rate", "inf"], r"lr is inf, expected .*(finite|below)"),
    "two lengths": (["--epochs", "2", "--iterations", "9"], "epochs and iterations were both"),
    "no folder": (["--save", "nowhere/net"], "nowhere/net cannot be written: "),
    "a folder": (["--save", "."], r"\. cannot be written: "),
    "float32": (["--gradient", "numerical", "--dtype", "float32"], "float32"),
    "more than fits": (["--hidden", str(10**15)], "(?i)memory|allocate"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_train_mistakes(monkeypatch, tmp_path, bad, kind):
    monkeypatch.chdir(tmp_path)
    arguments, reason = MISTAKES[kind]
    assert re.search(reason, bad("train", *arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["nowhere/net", "."])
def test_unwritable_save_is_found_before_training(monkeypatch, tmp_path, bad, where):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "train", lambda *_, **__: pytest.fail("training started"))
    assert f"{where} cannot be written" in bad("train", "--save", where)


@pytest.mark.skipif("cupy" in USABLE, reason="cupy can be used here")
@pytest.mark.parametrize("name", ["cupy", "cupy:1"])
def test_cupy_without_cuda(bad, trained, name):
    for arguments in (["train"], ["evaluate", trained], ["demo"]):
        reason = bad(*arguments, "--backend", name)
        assert re.search(r"backend 'cupy' cannot be used here: .*(CUDA|GPU|pip install)", reason)
        assert "Usable: numpy" in reason


@pytest.mark.parametrize("variable", ["XNET_BACKEND", "XNET_REPRODUCIBLE"])
def test_wrong_environment(monkeypatch, bad, variable):
    monkeypatch.setenv(variable, "nunpy")
    monkeypatch.setattr("xnet.backend._default", None)  # as a new process would find it
    assert re.search(f"{variable}.*nunpy", bad("train"))


def test_mnist_that_is_not_there(monkeypatch, tmp_path, bad):
    monkeypatch.setenv("XNET_DATA_DIR", str(tmp_path))
    assert f"XNET_DATA_DIR={tmp_path} holds no " in bad("train", "--dataset", "mnist")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        (ValueError(), "ValueError"),
        (ImportError("no such thing"), "no such thing"),
        (OSError(5, "Input/output error", "/dev/x"), "[Errno 5] Input/output error: '/dev/x'"),
        (ValueError("two\nlines, and \x1b[31mred"), "two lines, and [31mred"),
    ],
)
def test_what_is_wrong_is_one_line(monkeypatch, bad, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setitem(datasets.DATASETS, "digits", fail)
    monkeypatch.setattr(cli, "_give_up_output", lambda: None)  # it is pytest's
    assert bad("train") == said


def test_a_long_reason_is_shortened_in_its_middle(bad):
    reason = bad("train", "--backend", "long" * 1000)
    assert len(reason) <= 400
    assert reason.startswith("unknown backend 'longlong")
    assert "numpy" in reason[-200:]


def test_a_reason_of_400_characters_is_said_whole():
    whole = "ab" * 200
    assert cli._line(ValueError(whole)) == whole
    shortened = cli._line(ValueError(whole + "c"))
    assert 390 <= len(shortened) <= 400
    assert (shortened[:100], shortened[-100:]) == (whole[:100], whole[-99:] + "c")


def test_diverging_run(bad):
    arguments = ["train", "--learning-rate", "1e200", "--iterations", 50]
    reason = bad(*arguments, printed=None)
    assert re.search(r"the loss became (nan|inf) at iteration 2: the learning rate", reason)


def test_diverging_run_as_json(run):
    done = run("train", "--learning-rate", "1e200", "--iterations", 50, "--json")
    assert done.status == 1
    assert parsed(done.out)["stopped"] == "diverged"
    assert done.err.count("\n") == 1


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_bad_files_of_weights(monkeypatch, tmp_path, bad, trained, command):
    monkeypatch.chdir(tmp_path)
    draw_digit(tmp_path / "digit.png")
    more = ["digit.png"] * (command == "predict")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Runs(), 4))
    (tmp_path / "short").write_bytes(trained.read_bytes()[:-1])
    (tmp_path / "empty").write_bytes(b"")
    for name, reason in {
        "none": "none cannot be read: No such file",
        ".": r"\. cannot be read: ",
        "evil.pkl": rf"evil\.pkl: a pickle that names {os.mkdir.__module__}\.mkdir, .* refused",
        "short": "short: not a safetensors file, or a damaged one",
        "empty": "empty: neither a safetensors file",
        "digit.png": r"digit\.png: neither a safetensors file",
    }.items():
        assert re.match(reason, bad(command, name, *more))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict", "gradcheck"])
def test_weights_that_are_not_numbers(tmp_path, bad, untrained, command):
    path = untrained(64, 10)
    network = weights.load_network(path)
    network.params["W1"][0, 0] = np.nan
    weights.save(network, path)
    draw_digit(tmp_path / "digit.png")
    line = bad(command, path, *[tmp_path / "digit.png"] * (command == "predict"))
    assert line.startswith(f"{path}: NaN or infinity in ['W1']")


def test_unreadable_images(tmp_path, run, good, bad, trained):
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("L", (40, 40), 255).save(tmp_path / "blank.png")
    draw_digit(tmp_path / "good.png")
    for name, reason in {
        "none.png": "cannot be read as a picture",
        "text.png": "cannot be read as a picture",
        "blank.png": "looks blank",
    }.items():
        paths = tmp_path / name, tmp_path / "good.png"
        alone = good("predict", trained, paths[1])
        line = bad("predict", trained, *paths, printed=alone)
        assert line.startswith(f"{tmp_path / name} {reason}")
        done = run("predict", trained, *paths, paths[0], "--json")
        refused, read, again = parsed(done.out)
        assert done.status == 1
        assert done.err == f"xnet: {refused['error']} (and 1 more)\n"
        assert refused == again == {"image": str(paths[0]), "error": line}
        assert read == parsed(good("predict", trained, paths[1], "--json"))[0]
        bad("predict", trained, paths[0])


def test_network_for_other_data(bad, untrained, tmp_path):
    draw_digit(tmp_path / "digit.png")
    path = untrained(5, 3)
    for arguments in (["evaluate", path], ["predict", path, tmp_path / "digit.png"]):
        assert "takes 5 features, a dataset gives 64 (digits), 784 (mnist)" in bad(*arguments)
    large = untrained(784, 10)
    for arguments in ([], ["--per-sample"]):
        line = bad("evaluate", large, "--dataset", "digits", *arguments)
        assert "x has 64 features, W expects 784" in line


@pytest.mark.parametrize("arguments", [[], ["--per-sample"]])
def test_network_with_other_classes(bad, untrained, arguments):
    line = bad("evaluate", untrained(64, 5), *arguments)
    assert re.search(r"label [5-9], expected 0\.\.4", line)


# Ctrl-C, and other processes.


def test_ctrl_c_ends_training_and_keeps_what_it_learnt(monkeypatch, run, tmp_path):
    steps = []

    class Interrupting(SGD):
        def update(self, params, grads):
            steps.append(1)
            if len(steps) % 20 == 0:
                raise KeyboardInterrupt
            super().update(params, grads)

    monkeypatch.setitem(cli.OPTIMIZERS, "sgd", Interrupting)
    path = tmp_path / "net"
    done = run("train", "--save", path)
    assert (done.status, done.err) == (130, "")
    assert "interrupted: 19 iterations" in done.out
    assert repr(weights.load_network(path).layers) == "[Affine(64, 50), ReLU(), Affine(50, 10)]"
    assert run("train", "--optimizer", "sgd", "--json").status == 130


def test_ctrl_c_before_the_first_step(monkeypatch, run):
    class Interrupting(SGD):
        def update(self, params, grads):
            raise KeyboardInterrupt

    monkeypatch.setitem(cli.OPTIMIZERS, "sgd", Interrupting)
    done = run("train")
    assert (done.status, done.err) == (130, "")
    assert "interrupted before the first iteration" in done.out


@pytest.mark.parametrize("command", ["train", "evaluate", "demo"])
def test_ctrl_c_elsewhere_leaves_no_traceback(monkeypatch, run, trained, command):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setitem(datasets.DATASETS, "digits", interrupt)
    monkeypatch.setattr(datasets, "load_digits", interrupt)
    done = run(command, *[trained] * (command == "evaluate"))
    assert done.status == 130
    assert "Traceback" not in done.err


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signal to one process")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_and_keeps_what_it_learnt(tmp_path, sent):
    path = tmp_path / "net"
    child = subprocess.Popen(
        [*COMMAND, "train", "--save", str(path), "--iterations", "100000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not path.exists():  # it is saved after each epoch
            assert child.poll() is None, "the command ended by itself"
            assert time.monotonic() < deadline, "no epoch was done"
            time.sleep(0.01)
        child.send_signal(sent)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, err) == (128 + sent, "")
    assert "interrupted: " in out
    assert weights.load_network(path).inputs == 64
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signal to one process")
@pytest.mark.parametrize("module", ["signal", "xnet", "numpy", "typer", "xnet.testing.parity"])
def test_ctrl_c_during_the_imports_leaves_no_traceback(module):
    """The process ends by the signal, as a shell expects, or as a shell reports it."""
    code = f"""
import os, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {int(signal.SIGINT)})
sys.meta_path.insert(0, Interrupting())
sys.modules.pop("signal", None)
from xnet_command import main
main()
"""
    done = subprocess_run("info", command=[sys.executable, "-c", code])
    ended = 128 + signal.SIGINT if module == "signal" else -signal.SIGINT
    assert (done.returncode, done.stderr) == (ended, "")


def test_signals_do_after_a_command_what_they_did_before(good, run):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    good("--version")
    run("train", "--backend", "nunpy")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signal to one process")
def test_a_signal_that_is_ignored_stays_so(run, monkeypatch):
    """As `nohup` and a shell's background jobs have it."""

    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        raise MemoryError

    monkeypatch.setitem(datasets.DATASETS, "digits", interrupt)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run("train").status == 1
    finally:
        signal.signal(signal.SIGINT, before)


# Output that cannot be written.


def written_to(output, *arguments) -> subprocess.CompletedProcess:
    """Run the command with Python's usual buffer, which it empties once more at its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        stdout=output,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"], ["--help"]], ids=" ".join)
def test_a_full_disk_is_said_in_a_line(arguments):
    with open("/dev/full", "wb") as full:
        done = written_to(full, *arguments)
    assert done.returncode == 1
    assert re.fullmatch(r"xnet: [^\n]*No space left[^\n]*\n", done.stderr.decode())


@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"], ["--help"]], ids=" ".join)
def test_a_reader_that_left_is_no_error_to_speak_of(arguments):
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "wb") as closed:
        done = written_to(closed, *arguments)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell's way to close it")
def test_output_that_is_closed():
    done = subprocess_run(*COMMAND, "info", command=["sh", "-c", '"$0" "$@" >&-'])
    assert (done.returncode, done.stderr) == (0, "")


FAILING = """
from xnet import datasets
from xnet.tools import cli

def fail():
    raise OSError("the disk is gone")

datasets.DATASETS["digits"] = fail
cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell's way to close it")
@pytest.mark.parametrize("redirected", ["", ">&-"])
def test_what_is_wrong_is_said_where_the_output_is_closed_too(redirected):
    shell = ["sh", "-c", f'"$0" "$@" {redirected}', sys.executable, "-c", FAILING]
    done = subprocess_run("train", command=shell)
    assert (done.returncode, done.stderr) == (1, "xnet: the disk is gone\n")


def test_mistake_in_a_process_of_its_own():
    done = subprocess_run("train", "--learning-rate", "1e200", "--iterations", 50)
    assert done.returncode == 1
    assert re.fullmatch(r"xnet: the loss became .*\n", done.stderr)


def test_output_that_takes_only_ascii():
    done = subprocess_run("train", "--iterations", 2, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^test accuracy ", done.stdout, re.MULTILINE)
    done = subprocess_run("train", "--help", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--reproducible" in done.stdout


def test_a_name_that_the_outputs_encoding_lacks(trained, tmp_path):
    draw_digit(tmp_path / "ü.png")
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess_run("predict", trained, tmp_path / "ü.png", **ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert "?.png" in done.stdout


WIDE = [
    {
        "backend": "cupy:0",
        "agrees": True,
        "largest_difference": 6.66e-16,
        "images_per_second_one_at_a_time": 124_321,
        "images_per_second_in_a_batch": 4_962_113,
    }
]


def test_no_number_is_cut_at_60_columns(monkeypatch, capsys):
    monkeypatch.setattr(cli.out, "width", 60)
    cli.out.print(cli._comparison_table(WIDE, 360))
    shown = capsys.readouterr().out
    assert re.findall(r"[^│\s]+", shown.splitlines()[-2]) == [
        *("cupy:0", "yes", "6.7e-16", "124,321", "4,962,113", "40x")
    ]
    facts = {"operation": "a network's numerical gradient by stacks", "backend": "numba"}
    cli.out.print(
        cli._parity_table(
            [
                parity.Verdict(**facts, dtype=dtype, reproducible=exact, ulps=987_654, share=0.87)
                for dtype in ("float32", "float64")
                for exact in (False, True)
            ]
        )
    )
    shown = capsys.readouterr().out
    assert shown.count("987,654") == 4
    assert shown.count("87%") == 2
    assert "…" not in shown


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminal")
def test_bar_in_a_terminal():
    """80 columns must do for the bar, in a real terminal; the report goes to stdout alone."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    child = subprocess.Popen(
        [*COMMAND, "train", "--iterations", "30"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    except OSError:  # what Linux says when the other end closes
        pass
    finally:
        os.close(ours)
        out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    last = plain[plain.rindex("━") :].splitlines()[0]
    assert re.search(
        r"30/30 loss \d\.\d{4} train 0\.\d{4} test 0\.\d{4} [\d,]+/s \d:\d\d:\d\d", last
    )
    assert len(last) <= 80
    assert re.search(r"^test accuracy 0\.\d{4}$", out, re.MULTILINE)
    assert "━" not in out


# -- reproducible mode and parity


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_reproducible_training_run_has_one_hash(good, dtype):
    options = ("--iterations", 30, "--dtype", dtype, "--json")
    facts = [
        parsed(good("train", "--backend", name, "--reproducible", *options))
        for name in ("numpy", "numba")
    ]
    assert facts[0]["sha256"] == facts[1]["sha256"]
    assert all(f["reproducible"] for f in facts)
    fast = parsed(good("train", "--backend", "numba", "--fast", *options))
    assert fast["sha256"] != facts[0]["sha256"]
    assert not fast["reproducible"]


def test_reproducible_from_outside(good, monkeypatch, trained):
    monkeypatch.setenv("XNET_REPRODUCIBLE", "1")
    monkeypatch.setattr("xnet.backend._default", None)  # a test before this may have read it
    assert "numpy, reproducible" in good("info")
    assert parsed(good("info", "--json"))["reproducible"]
    assert parsed(good("evaluate", trained, "--json"))["reproducible"]
    assert not parsed(good("evaluate", trained, "--fast", "--json"))["reproducible"]


@pytest.mark.slow
def test_the_reproducible_demo_compares_bits(good):
    facts = parsed(good("demo", "--backend", "numba", "--reproducible", "--json"))
    assert facts["reproducible"]
    assert {row["largest_difference"] for row in facts["comparison"]} == {0}


PARITY = ("parity", "--backend", "strict", "--dtype", "float32", "--steps", 5)


@pytest.mark.slow
def test_parity(good, monkeypatch):
    monkeypatch.setattr(parity, "longer", list)
    printed = good(*PARITY)
    assert "every promise kept" in printed
    assert "!" not in printed
    rows = [re.findall(r"[^│]+", line) for line in printed.splitlines() if line.startswith("│")]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert cells["matmul"][0] == "equal"
    for kind in REGISTERED:
        bits, fast = cells[kind.__name__]
        assert bits == "equal"
        assert re.fullmatch(r"equal|\d+ ulp, (<1|\d+)%", fast)
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.slow
def test_parity_of_numpy_alone(good, run, bad, tmp_path, few_trials, monkeypatch):
    """With the hashes that come with xnet, where they are of the same steps and seed."""
    alone = "parity", "--backend", "numpy", "--dtype", "float64"
    printed = good(*alone)
    assert re.search(r"published hashes \(xnet .*\): all of \d+ results are equal", printed)
    assert "nothing to compare" in bad(*alone, "--steps", 5)
    assert "nothing to compare" in bad(*alone, "--seed", 5)
    good(*alone, "--steps", 5, "--save", tmp_path / "a.json")
    monkeypatch.setattr(parity, "training_hash", lambda *_: 64 * "0")
    done = run(*alone)
    assert done.status == 1
    assert "differ; the first is training, 200 steps, float64" in done.out


ALONE = ("parity", "--backend", "numpy", "--dtype", "float64", "--steps", 5)


def test_parity_by_a_file_from_another_machine(good, run, bad, tmp_path, few_trials):
    path = tmp_path / "there.json"
    good(*ALONE, "--save", path)
    printed = good(*ALONE, "--against", path)
    assert re.search(rf"{path} \(xnet \S+, NumPy .*\): all of \d+ results are equal", printed)
    facts = parsed(good(*ALONE, "--against", path, "--json"))
    assert facts["kept"]
    assert facts["against"]["differences"] == []
    saved = json.loads(path.read_text())
    assert facts["against"]["compared"] == len(saved["sha256"]) > 10

    name = "sum, huge numbers, float64"
    saved["sha256"][name][1] = 64 * "0"
    path.write_text(json.dumps(saved))
    done = run(*ALONE, "--against", path)
    assert done.status == 1
    assert f"! 1 of {len(saved['sha256'])} results differ; the first is {name}: " in done.out
    assert "marked with !" in done.out
    facts = parsed(run(*ALONE, "--against", path, "--json").out)
    assert not facts["kept"]
    assert [row["name"] for row in facts["against"]["differences"]] == [name]
    other = run(
        "parity", "--backend", "numpy", "--dtype", "float32", "--steps", 5, "--against", path
    )
    assert other.status == 1
    assert "! nothing in it is tried here" in other.out

    assert "is of --steps 5 --seed 0, got 5 and 1" in bad(*ALONE, "--against", path, "--seed", 1)
    assert "cannot be read" in bad(*ALONE, "--against", tmp_path / "none")


def test_a_file_of_parity_that_cannot_be_written_is_said_before_the_work(bad, monkeypatch):
    monkeypatch.setattr(parity, "trials", None)
    assert "cannot be written" in bad(*ALONE, "--save", "/nonexistent/a.json")


def relus_altered(monkeypatch, change):
    """Let `change` have what strict gives for ReLU."""
    backend_class = type(xnet.resolve("strict"))
    right = backend_class.run

    def run(self, operation, *arrays, **m):
        found = right(self, operation, *arrays, **m)
        return change(found) if isinstance(operation, ReLU) else found

    monkeypatch.setattr(backend_class, "run", run)


@pytest.fixture
def few_trials(monkeypatch):
    """Those of two operations, a network and a contract: all take a while on strict."""
    kinds = {kind.__name__: kind for kind in (ReLU, operations.Sigmoid, operations.Hinge)}
    wanted = ("ReLU", "Sigmoid", "network, ReLU", "owns", "sum")
    few = [t for t in parity.trials(kinds, {}) if t.name.startswith(wanted)]
    monkeypatch.setattr(parity, "trials", lambda: few)
    monkeypatch.setattr(parity, "longer", list)


def cell_of(printed: str, name: str) -> list[str]:
    (line,) = [line for line in printed.splitlines() if re.match(rf"│ {name} +│", line)]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_a_training_run_of_other_bits_breaks_the_reproducible_modes_promise(
    run, monkeypatch, few_trials
):
    def digest(backend, dtype, steps):
        return ("a" if backend.name == "numpy" else "b") * 64

    monkeypatch.setattr(parity, "training_hash", digest)
    done = run(*PARITY)
    assert done.status == 1
    assert "a promise is broken" in done.out
    broken = [line for line in done.out.splitlines() if "!" in line and "│" in line]
    assert len(broken) == 1
    assert re.search(r"reproducible\W+float32\W+strict\W+! b{16}…", broken[0])
    assert len(re.findall(r"│ (?:a{16}|b{16})…", done.out)) == 3
    facts = parsed(run(*PARITY, "--seed", 3, "--json").out)
    assert (facts["kept"], facts["steps"], facts["seed"]) == (False, 5, 3)
    assert facts["training_sha256"]["fast"]["float32"] == {"numpy": "a" * 64, "strict": "b" * 64}


def test_a_training_run_that_fails_breaks_the_fast_modes_promise(run, monkeypatch, few_trials):
    right = parity.training_hash

    def failing(backend, dtype, steps):
        if backend.name == "strict" and not backend.reproducible:
            raise OSError("no such device")
        return right(backend, dtype, steps)

    monkeypatch.setattr(parity, "training_hash", failing)
    done = run(*PARITY)
    assert done.status == 1
    assert "! error: OSError: no such device" in re.sub(r"[\s│]+", " ", done.out)


@pytest.mark.slow
def test_parity_of_what_is_tried_in_one_dtype_alone(good, monkeypatch):
    (both,) = [t for t in parity.trials({}, {}) if t.name == "sum"]
    one = dataclasses.replace(both, name="sum of doubles", dtypes=("float64",))
    monkeypatch.setattr(parity, "trials", lambda: [both, one])
    monkeypatch.setattr(parity, "longer", list)
    shown = good("parity", "--backend", "strict", "--dtype", "float32", "--dtype", "float64")
    assert "every promise kept" in shown
    bits, *fast = cell_of(shown, "sum of doubles")
    assert (bits, fast[0]) == ("equal", "")
    assert fast[1]


def test_parity_where_nothing_is_finite(run, monkeypatch, few_trials):
    relus_altered(monkeypatch, lambda y: y * float("nan"))
    bits, fast = cell_of(run(*PARITY).out, "ReLU")
    assert (bits, fast) == ("float32: ! not finite", "! not finite")
    facts = parsed(run(*PARITY, "--json").out)
    assert [row["ulps"] for row in facts["operations"] if row["operation"] == "ReLU"] == (
        [None] * (2 * len(parity.NUMBERS) + len(parity.HURTFUL))
    )


def test_a_broken_promise(run, monkeypatch, few_trials):
    relus_altered(monkeypatch, lambda y: y * (1 + 1e-6))
    done = run(*PARITY)
    assert done.status == 1
    assert "a promise is broken" in done.out
    bits, fast = cell_of(done.out, "ReLU")
    assert re.fullmatch(r"float32: ! \d+ ulp", bits)
    assert re.fullmatch(r"! \d+ ulp", fast)  # of a bound of 0: it has no share
    facts = parsed(run(*PARITY, "--json").out)
    assert not facts["kept"]
    broken = {row["operation"] for row in facts["operations"] if not row["kept"]}
    assert "ReLU" in broken
    assert any(name.startswith("network, ReLU") for name in broken)
    assert "Sigmoid" not in broken


def test_other_numbers_are_named_where_they_alone_break_a_promise(run, monkeypatch, few_trials):
    """As a formula does that overflows, and arithmetic that takes subnormals for zeros."""
    smallest = float(np.finfo("float32").smallest_normal)

    def change(y):
        return strict.where((strict.abs(y) < smallest) | (y > 1e30), 0 * y, y)

    strict = xnet.resolve("strict").xp
    relus_altered(monkeypatch, change)
    printed = run(*PARITY).out
    first, *after = printed[printed.index("│ ReLU ") :].splitlines()
    lines = [first, *itertools.takewhile(lambda line: line.startswith("│  "), after)]
    bits, fast = (" ".join(line.split("│")[k].strip() for line in lines) for k in (2, 3))
    assert re.search(r"float32: subnormal: ! .* ulp.*float32: huge: ! .* ulp", bits)
    assert fast.startswith("equal huge: ! ")  # in fast mode subnormals may be taken for zeros
    facts = parsed(run(*PARITY, "--json").out)
    broken = {(row["operation"], row["numbers"]) for row in facts["operations"] if not row["kept"]}
    assert {("ReLU", "subnormal"), ("ReLU", "huge")} <= broken
    assert ("ReLU", "normal") not in broken


def test_parity_names_the_contract_that_is_broken(run, monkeypatch, few_trials):
    monkeypatch.setattr(type(xnet.resolve("strict")), "owns", lambda self, array: False)
    done = run(*PARITY, "--json")
    assert done.status == 1
    errors = {row["operation"]: row["error"] for row in parsed(done.out)["operations"]}
    assert errors["owns: its own, no others"] == "owns denies what asarray gave"


@pytest.mark.parametrize("arguments", [("parity", "--steps", 5), PARITY])
def test_a_plug_in_that_cannot_be_made_is_a_row(run, monkeypatch, few_trials, arguments):
    """Named or not: the report is of all there are."""

    class Unmade(type(xnet.resolve("strict"))):
        def __init__(self, device=None, *, reproducible=False):
            raise OSError("no such device")

    entries = dict(registry._registry())
    only = {name: entry for name, entry in entries.items() if name in ("numpy", "strict")}
    monkeypatch.setattr(registry, "_registry", lambda: only)
    load = registry._load.__wrapped__
    monkeypatch.setattr(registry, "_load", lambda n: Unmade if n == "strict" else load(n))
    monkeypatch.setattr(registry, "_instances", {})
    done = run(*arguments, "--json")
    assert (done.status, done.err) == (1, "")
    facts = parsed(done.out)
    assert {row["operation"] for row in facts["operations"]} == {"made at all"}
    assert {row["error"] for row in facts["operations"]} == {"OSError: no such device"}


def test_ctrl_c_ends_parity(run, monkeypatch, few_trials):
    def interrupted(y):
        raise KeyboardInterrupt

    relus_altered(monkeypatch, interrupted)
    assert run(*PARITY).status == 130


def test_a_backend_that_raises_is_an_error_in_its_cells_alone(run, monkeypatch, few_trials):
    def fail(y):
        raise OSError("[the cable] is out")

    relus_altered(monkeypatch, fail)
    done = run(*PARITY)
    assert (done.status, "Traceback" in done.out) == (1, False)
    bits, fast = cell_of(done.out, "ReLU")
    assert bits.startswith("float32: ! error:")
    assert fast.startswith("! error:")
    assert cell_of(done.out, "Sigmoid") == ["equal", "equal"]
    facts = parsed(run(*PARITY, "--json").out)
    errors = {row["operation"]: row["error"] for row in facts["operations"] if row["error"]}
    assert errors["ReLU"] == "OSError: [the cable] is out"
    assert facts["training_sha256"]["fast"]["float32"]["strict"].startswith("error: OSError")


def test_parity_mistakes(bad):
    assert "unknown backend 'nunba'" in bad("parity", "--backend", "nunba")


def test_a_run_that_is_resumed(run, tmp_path):
    """By the same command again; SIGKILL and the rest are in test_checkpoints."""
    words = ["train", "--iterations", "60", "--hidden", "5", "--json"]
    more = ["--schedule", "cosine,end=0.1", "--warmup", "5", "--clip", "2"]
    whole = json.loads(run(*words, *more).out)
    folder = ["--checkpoint", str(tmp_path / "run"), "--checkpoint-every", "0"]
    first = json.loads(run(*words, *more, *folder, "--resume").out)
    again = json.loads(run(*words, *more, *folder, "--resume").out)
    assert whole["sha256"] == first["sha256"] == again["sha256"]
    assert again["stopped"] == "finished"
    refused = run(*words, *more, *folder)
    assert "resume goes on with it" in refused.err
    other = run(*words, "--clip", "3", *folder, "--resume")
    assert "was" in other.err


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("cosin", "expected one of"),
        ("step", "every"),
        ("step,every=0", "every is 0"),
        ("step,every", "could not convert"),
        ("step,every=x", "x"),
        ("cosine,stops=3", "stops"),
    ],
)
def test_schedules_that_are_none(run, schedule, message):
    assert message in run("train", "--schedule", schedule).err
