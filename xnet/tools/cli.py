"""The `xnet` command."""

import difflib
import json
import math
import os
import platform
import signal
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

import xnet
from xnet import datasets, distributed, plan, plotting, random, testing, weights
from xnet.arithmetic import unchecked
from xnet.backend import Backend, backends, get_backend, resolve, use_backend
from xnet.errors import (
    BackendError,
    DatasetError,
    KinkWarning,
    NonFiniteWarning,
    WeightsError,
    XnetError,
)
from xnet.gradient_check import Verdict, gradient_check
from xnet.layers import Layer
from xnet.network import Network
from xnet.operations import (
    Affine,
    IdentityWithLoss,
    Loss,
    Operation,
    SoftmaxWithLoss,
    registered,
)
from xnet.optimizers import OPTIMIZERS, SGD
from xnet.schedules import SCHEDULES, Schedule, Warmup
from xnet.schema import Task
from xnet.spellings import required
from xnet.testing import parity
from xnet.tools import fingerprints, own_data, pictures
from xnet.training import History, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
out = Console(highlight=False)
out.width = max(out.width, 60)  # the tables need so much


def _choices(wanted: Callable[[type[Operation]], bool]) -> dict[str, type[Any]]:
    """Operations, those of installed packages included, that can be had by their name alone."""
    return {
        name.lower(): operation
        for name, operation in registered().items()
        if wanted(operation) and not required(operation)
    }


ACTIVATIONS = _choices(lambda operation: operation.fuses == "pointwise")
LOSSES = _choices(
    # Of numbers, those of which the scores are what is predicted: they have the targets' units.
    lambda operation: (
        issubclass(operation, Loss) and (operation.classes or operation.predict is Loss.predict)
    )
)

Dataset = StrEnum("Dataset", list(datasets.DATASETS))
Activation = StrEnum("Activation", list(ACTIVATIONS))
LossName = StrEnum("LossName", list(LOSSES))
OptimizerName = StrEnum("OptimizerName", list(OPTIMIZERS))
Dtype = StrEnum("Dtype", ["float32", "float64"])
Gradient = StrEnum("Gradient", ["backprop", "numerical"])

DATASET_OF_INPUTS = {64: "digits", 784: "mnist"}
SURE = 0.9
"""The probability from which `predict` does not call a digit unsure."""
NOTES_ITERATIONS = 10_000
"""How long the notes' experiment runs (§4.5.2)."""
NOTES_OPTIMIZER, NOTES_LEARNING_RATE = SGD.__name__.lower(), 0.1
"""How it steps."""
DEFAULT_LOSS = {
    Task.classification: SoftmaxWithLoss.__name__.lower(),
    Task.regression: IdentityWithLoss.__name__.lower(),
}
INTERRUPTED = 128 + signal.SIGINT
"""Exit status by which a shell reports a command that Ctrl-C ended."""
INCONCLUSIVE = 3
"""Exit status of a check that could not tell right from wrong; 1 is wrong, 2 a wrong option."""
LONGEST_LINE = 400
"""Characters of a line that says what is wrong."""

BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help="numpy, numba, cupy, cupy:1, auto or any registered one. "
        "Default: XNET_BACKEND, else numpy.",
    ),
]
ReproducibleOption = Annotated[
    bool | None,
    typer.Option(
        "--reproducible/--fast",
        help="The same bits on every backend, or full speed. "
        "Default: as XNET_REPRODUCIBLE says, else fast.",
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, help="For the initial weights and the mini-batches.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
DatasetOption = Annotated[
    Dataset | None,
    typer.Option("--dataset", help="Default: the one whose images have the network's size."),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Samples at a time.")]


def main() -> None:
    """Run the command as `run` does."""
    run(app, "xnet")


def run(command: typer.Typer, name: str) -> NoReturn:
    """Run a command and end the process.

    What is wrong with files, data, output or what is installed is one line on stderr and exit
    status 1. Ctrl-C and SIGTERM raise KeyboardInterrupt while it runs, and the exit status is the
    one by which a shell reports a process that such a signal ended.
    """
    received: list[int] = []
    status: Any = INTERRUPTED
    try:
        with _interruptible(received):
            try:
                command(prog_name=name)
            except SystemExit as ended:
                status = ended.code
            if sys.stdout is not None:  # it is None where it was closed
                sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    except (XnetError, ValueError, MemoryError, OSError, ImportError) as error:
        status = 1
        if not isinstance(error, BrokenPipeError):  # whoever read the output has what it wanted
            print(f"{name}:", _line(error), file=sys.stderr)
        if isinstance(error, OSError):
            _give_up_output()
    sys.exit(128 + received[-1] if received else status)


@contextmanager
def _interruptible(received: list[int]) -> Generator[None]:
    """In the block Ctrl-C and SIGTERM raise KeyboardInterrupt, and `received` says which came."""

    def interrupt(number: int, frame: object) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    ends = (signal.SIGINT, signal.SIGTERM)
    heeded = [s for s in ends if signal.getsignal(s) not in (signal.SIG_IGN, None)]
    before = {s: signal.signal(s, interrupt) for s in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _line(error: Exception) -> str:
    """What an error says, as one line that can be printed."""
    said = "".join(c if c.isprintable() else " " for c in str(error))
    line = " ".join(said.split())
    if not line:
        line = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    if len(line) > LONGEST_LINE:  # its end tends to say what to do
        half = LONGEST_LINE // 2 - 3
        line = f"{line[:half]} ... {line[-half:]}"
    return line


def _give_up_output() -> None:
    """Let nobody try again to write what is left: Python would, at its end, and complain."""
    if sys.stdout is not None:
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _show_version(asked: bool) -> None:
    if asked:
        print(f"xnet {xnet.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """A neural network you can read in one sitting, on NumPy, Numba or CuPy."""


def _table(*headers: str, title: str | None = None) -> Table:
    """A table in which what is too long for its column is wrapped, never cut."""
    return Table(*(Column(header, overflow="fold") for header in headers), title=title)


# -- info


@app.command(epilog="Example: [bold]xnet info --json[/bold]")
def info(as_json: JsonOption = False) -> None:
    """Show backends, versions, threads and devices."""
    current = get_backend()  # a wrong environment variable is said here
    facts = {
        "current": current.label,
        "reproducible": current.reproducible,
        "xnet": xnet.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": _versions(),
        "cpus": os.cpu_count(),
        "threads": _threads(),
        "backends": [
            {"name": b.name, "usable": b.usable, "reason": b.reason, "devices": _devices(b.name)}
            for b in backends()
        ],
    }
    if as_json:
        print(json.dumps(facts))
        return
    out.print(f"xnet {xnet.__version__} on Python {facts['python']}, {facts['platform']}")
    out.print(_backend_table())
    out.print(f"current   {current.label}, {'reproducible' if current.reproducible else 'fast'}")
    out.print("versions  " + ", ".join(f"{k} {v}" for k, v in _versions().items()))
    threads = ", ".join(f"{k} {v}" for k, v in _threads().items())
    out.print(f"threads   {threads} ({os.cpu_count()} CPUs)")


def _versions() -> dict[str, str]:
    """Versions of the array libraries that are installed, by distribution."""
    found: dict[str, str] = {}
    for name in ("numpy", "numba", "scipy", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _threads() -> dict[str, int]:
    """How many threads each backend, and BLAS, would use, as far as one can ask."""
    usable = [resolve(b.name) for b in backends() if b.usable]
    found = {b.name: count for b in usable if (count := b.threads()) is not None}
    if find_spec("threadpoolctl") is not None:
        libraries: Any = cast(Any, import_module("threadpoolctl")).threadpool_info()
        found |= {b["internal_api"]: b["num_threads"] for b in libraries if b["user_api"] == "blas"}
    return found


def _devices(name: str) -> list[str]:
    """The names that select the devices of a usable backend."""
    if not any(b.name == name and b.usable for b in backends()):
        return []
    count = type(resolve(name)).device_count()
    return [f"{name}:{index}" for index in range(count)] or [name]


def _backend_table() -> Table:
    table = _table("backend", "usable", "why not / devices")
    for b in backends():
        note = b.reason or ", ".join(_devices(b.name))
        table.add_row(b.name, "yes" if b.usable else "no", escape(note))
    return table


# -- train


@app.command(
    "train",
    epilog="Examples: [bold]xnet train --save digits.safetensors[/bold]; "
    "[bold]xnet train --dataset mnist --epochs 17 --backend numba[/bold]; "
    "[bold]xnet train --hidden 50 --hidden 100 --optimizer adam[/bold]; "
    "[bold]xnet train --validation 0.1 --patience 10[/bold]; "
    "[bold]xnet train --epochs 100 --checkpoint run --resume[/bold]; "
    "[bold]xnet train --data wine.csv --label cultivar --test 0.2 --save wine.safetensors[/bold]",
)
def train_command(
    dataset: Annotated[Dataset | None, typer.Option(help="What to learn. Default: digits.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Learn from data of your own instead: a CSV, TSV, Parquet or NPZ file, a folder "
            "of IDX files, or of pictures with one folder a class."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Of a table, the column to be learnt; repeat it for several numbers."),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(help="Default: classification of texts and of few whole numbers."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A column that is not learnt from; repeat it for more.")
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(help="Data that judge: a share of --data, such as 0.2, or a file or folder."),
    ] = None,
    scale: Annotated[
        own_data.Scale | None,
        typer.Option(
            help="Of --data: standard (each column to mean 0 and deviation 1, as the training part "
            "has it), pixels (0..255 to 0..1) or none. Default: pixels for pictures, else standard."
        ),
    ] = None,
    hidden: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Units of a hidden layer; repeat it for more layers. Default: 50."
        ),
    ] = None,
    activation: Annotated[Activation, typer.Option(help="After each hidden layer.")] = Activation(
        "relu"
    ),
    loss: Annotated[
        LossName | None,
        typer.Option(
            help=f"What to make small. Default: {DEFAULT_LOSS[Task.classification]} for classes, "
            f"{DEFAULT_LOSS[Task.regression]} for numbers."
        ),
    ] = None,
    init: Annotated[
        str, typer.Option(help="Initial weights: he, xavier or a standard deviation.")
    ] = "he",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.")] = None,
    iterations: Annotated[
        int | None,
        typer.Option(min=1, help=f"Mini-batches, instead of epochs. Default: {NOTES_ITERATIONS}."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in a mini-batch.")] = 100,
    optimizer: Annotated[OptimizerName, typer.Option(help="How to step.")] = OptimizerName(
        NOTES_OPTIMIZER
    ),
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help=f"Default: {NOTES_LEARNING_RATE} for {NOTES_OPTIMIZER}, else the optimizer's own."
        ),
    ] = None,
    gradient: Annotated[
        Gradient, typer.Option(help="numerical takes two losses for each parameter.")
    ] = Gradient("backprop"),
    validation: Annotated[
        float | None,
        typer.Option(
            help="Share of the training data that is held back to choose the epoch that is kept; "
            "the test data then only judge it."
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many epochs no better in validation."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of parameters and data.")] = Dtype("float64"),
    seed: SeedOption = 0,
    backend: BackendOption = None,
    reproducible: ReproducibleOption = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help=f"What becomes of the learning rate: {', '.join(SCHEDULES)}, with settings as in "
            "step,every=1000,drop=0.5."
        ),
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(min=1, help="Steps in which the learning rate rises at first.")
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Length that gradients, as one vector, are cut to.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="File for the network.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints, which --resume goes on from.")
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(min=0, help="Seconds between two checkpoints.")
    ] = 30.0,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the last checkpoint; begin if there is none."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a network from scratch: on digits, MNIST, or data of your own.

    Started by MPI, as by [bold]mpiexec -n 4 xnet train[/bold], each process trains on its share.
    """
    if epochs is None and iterations is None:
        iterations = NOTES_ITERATIONS
    if learning_rate is None and optimizer == NOTES_OPTIMIZER:
        learning_rate = NOTES_LEARNING_RATE
    settings = {} if learning_rate is None else {"lr": learning_rate}
    stepper = OPTIMIZERS[optimizer](**settings)
    if save is not None and save.suffix not in ("", ".safetensors"):
        raise ValueError(
            f"--save {save}: networks are saved as safetensors, which that name would hide; "
            f"expected a name such as {save.stem}.safetensors"
        )
    if data is None:
        own: dict[str, Any] = {
            "label": label,
            "task": task,
            "ignore": ignore,
            "test": test,
            "scale": scale,
        }
        if given := [name for name, value in own.items() if value is not None]:
            raise typer.BadParameter(f"--{given[0]} is of data of your own: name them by --data")
        dataset = dataset or Dataset("digits")
    elif dataset is not None:
        raise typer.BadParameter(f"--data {data} and --dataset {dataset}: give one of them")
    with distributed.launched(backend, reproducible) as chosen:
        speaks = chosen.ranks.rank == 0
        with chosen.ranks.together():
            if save is not None and speaks:
                weights.check_writable(save)
            if data is None:
                lesson = own_data.built_in(dataset or Dataset("digits"), validation)
            else:
                lesson = own_data.lesson(
                    data, label or (), task, ignore or (), test, validation, scale, seed
                )
            sizes = [lesson.inputs, *(hidden or [50]), lesson.outputs]
            where = {"seed": seed, "dtype": dtype, "backend": chosen}
            end = _loss(loss, Task.classification if lesson.units is None else Task.regression)
            network = _dense(sizes, activation, init, before=lesson.before, loss=end, **where)
            rates = _schedule(schedule, warmup)
        if data is not None and speaks and not as_json:
            print(f"{data}: {lesson}")
        network.schema = lesson.schema
        mine = lesson.part(distributed.shard)
        _warm_up(network, mine.x[:batch_size], mine.t[:batch_size])
        history = train(
            network,
            mine.x,
            mine.t,
            *(mine.test or ()),
            optimizer=stepper,
            epochs=epochs,
            iterations=iterations,
            batch_size=batch_size,
            gradient=gradient,
            validation=mine.validation,
            patience=patience,
            seed=seed,
            schedule=rates,
            clip=clip,
            # In other units than the data's it would be no file to predict by.
            save=save if lesson.units is None else None,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            progress=not as_json,
        )
        if lesson.units is not None and history.stopped != "diverged":
            lesson.finish(network)
            if save is not None and speaks:
                weights.save(network, save)
    if speaks and as_json:
        facts: dict[str, Any] = {
            "dataset": str(dataset or data),
            "sizes": sizes,
            "backend": chosen.label,
            "reproducible": chosen.reproducible,
            "ranks": chosen.ranks.size,
        }
        # JSON knows no NaN: the loss that ended a diverged run is null.
        losses = [loss if math.isfinite(loss) else None for loss in history.loss]
        facts |= {"dtype": str(dtype), "seed": seed, **vars(history), "loss": losses}
        facts |= {"sha256": weights.sha256(network)}
        if lesson.schema is not None:
            facts |= {"task": lesson.schema.task, **lesson.schema.facts()}
        print(json.dumps(facts))
    elif speaks:
        _report(network, history, save)
    if history.stopped == "diverged" and not speaks:
        sys.exit(1)
    if history.stopped == "diverged":
        rate = f"the learning rate ({stepper.lr}) may be too high"
        raise ValueError(
            f"the loss became {history.loss[-1]} at iteration {history.iterations}: {rate}"
        )
    if history.stopped == "interrupted":
        sys.exit(INTERRUPTED)


def _schedule(text: str | None, warmup: int | None) -> Schedule | None:
    """The schedule that a text names, with its settings, after so many steps of warming up."""
    chosen = None
    if text is not None:
        name, *given = text.split(",")
        try:
            pairs = [setting.partition("=")[::2] for setting in given]
            settings = {k.strip(): int(v) if v.isdigit() else float(v) for k, v in pairs}
            chosen = SCHEDULES[name.strip().lower()](**settings)
        except KeyError:
            known = ", ".join(SCHEDULES)
            raise typer.BadParameter(f"--schedule {text}: expected one of {known}") from None
        except (ValueError, TypeError) as error:
            raise typer.BadParameter(f"--schedule {text}: {error}") from None
    return chosen if warmup is None else Warmup(warmup, chosen)


def _loss(name: str | None, task: Task) -> Loss:
    """The loss of this name, or the usual one for the task; it must be one for that."""
    loss = LOSSES[name or DEFAULT_LOSS[task]]
    if loss.classes != (task == Task.classification):
        fitting = ", ".join(
            k for k, v in LOSSES.items() if v.classes == (task == Task.classification)
        )
        raise typer.BadParameter(f"--loss {name} is not for {task}: expected one of {fitting}")
    return loss()


def _dense(
    sizes: list[int], activation: str, init: str, before: Sequence[Layer] = (), **options: Any
) -> Network:
    """A network of affine layers of these sizes with the activation between, after some others."""
    try:
        std: float | str = float(init)
    except ValueError:
        std = init
    layers: list[Operation] = [Affine(sizes[0], sizes[1], std)]
    for inputs, outputs in pairwise(sizes[1:]):
        layers += [ACTIVATIONS[activation](), Affine(inputs, outputs, std)]
    return Network([*before, *layers], **options)


def _warm_up(network: Network, x: Any, t: Any) -> None:
    """Run every kernel of a training step once, so that compiling is announced and not timed."""
    quiet = network.backend.ranks.rank > 0
    console = Console(stderr=True, quiet=quiet)
    with console.status(f"preparing {network.backend.label} (compiles on first use)"):
        network.loss_and_gradient(x, t)
        network.predict(x[:1])


def _report(network: Network, history: History, save: Path | None) -> None:
    speed = history.iterations / history.seconds
    out.print(network)
    out.print(
        f"{history.stopped}: {history.iterations} iterations in {history.seconds:.1f} s "
        f"({speed:,.0f} a second), loss {history.loss[0]:.4f} -> {history.loss[-1]:.4f}"
        if history.loss
        else f"{history.stopped} before the first iteration"
    )
    print(f"weights SHA-256 {weights.sha256(network)}")
    if save is not None:
        print(f"saved to {save}")
    if history.kept_epoch is not None:
        print(f"epoch {history.kept_epoch + 1} did best in validation and was kept")
    epoch = -1 if history.kept_epoch is None else history.kept_epoch
    for part, index in {"train": epoch, "validation": epoch, "test": -1}.items():
        if values := history.taken(part):
            print(f"{part} {history.metric} {values[index]:.4f}")


# -- evaluate


@app.command(
    epilog="Examples: [bold]xnet evaluate digits.safetensors[/bold]; "
    "[bold]xnet evaluate sample_weight.pkl --raw --per-sample[/bold]"
)
def evaluate(
    file: Annotated[Path, typer.Argument(help="A saved network, or the notes' pickled weights.")],
    dataset: DatasetOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Data of your own with their labels, as train takes them.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Feed the pixels unscaled.")] = False,
    batch_size: BatchOption = 2000,
    per_sample: Annotated[
        bool, typer.Option("--per-sample", help="One sample at a time instead.")
    ] = False,
    backend: BackendOption = None,
    reproducible: ReproducibleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a network's accuracy on a test set; where it has learnt numbers, R²."""
    network = _load(file, resolve(backend, reproducible))
    if data is not None:
        if dataset is not None or raw:
            raise typer.BadParameter("--dataset and --raw are of the data sets that xnet knows")
        _evaluate_own(network, data, 1 if per_sample else batch_size, as_json)
        return
    name = str(dataset or _dataset_for(network))
    _, (x, t) = datasets.DATASETS[name](normalize=not raw)
    started = time.perf_counter()
    if per_sample:
        right = sum(network.accuracy(*sample) for sample in zip(x, t, strict=True))
    else:
        batches = (
            (x[i : i + batch_size], t[i : i + batch_size]) for i in range(0, len(x), batch_size)
        )
        right = sum(round(network.accuracy(*batch) * len(batch[0])) for batch in batches)
    seconds = time.perf_counter() - started
    accuracy = right / len(x)
    if as_json:
        facts: dict[str, Any] = {"dataset": name, "images": len(x)}
        facts |= {"backend": network.backend.label, "reproducible": network.backend.reproducible}
        print(json.dumps({**facts, "raw": raw, "accuracy": accuracy, "seconds": seconds}))
        return
    how = "one at a time" if per_sample else f"in batches of {batch_size}"
    out.print(f"{network}")
    out.print(f"{len(x)} {name} images {how} in {seconds:.2f} s on {network.backend.label}")
    print(f"accuracy {accuracy:.4f}")


def _evaluate_own(network: Network, data: Path, batch_size: int, as_json: bool) -> None:
    started = time.perf_counter()
    metric, value, samples = own_data.judged(network, data, batch_size)
    seconds = time.perf_counter() - started
    if as_json:
        facts = {"data": str(data), "samples": samples, "backend": network.backend.label}
        facts |= {"reproducible": network.backend.reproducible}
        print(json.dumps({**facts, metric: _finite(value), "seconds": seconds}))
        return
    out.print(f"{network}")
    out.print(f"{samples} samples of {data} in {seconds:.2f} s on {network.backend.label}")
    print(f"{metric} {value:.4f}")


def _load(file: Path, backend: Backend, dtype: str | None = None) -> Network:
    """The network in a file, of numbers alone: there is nothing to be told of NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NonFiniteWarning)
        try:
            return weights.load_network(file, backend, dtype)
        except NonFiniteWarning as warning:
            raise WeightsError(str(warning)) from warning


def _dataset_for(network: Network) -> str:
    if network.schema is not None:
        raise ValueError("the network was trained on data of one's own: name some by --data")
    if network.inputs not in DATASET_OF_INPUTS:
        known = ", ".join(f"{size} ({name})" for size, name in DATASET_OF_INPUTS.items())
        raise ValueError(f"the network takes {network.inputs} features, a dataset gives {known}")
    return DATASET_OF_INPUTS[network.inputs]


# -- predict


@app.command(
    epilog="Examples: [bold]xnet predict digits.safetensors seven.png[/bold]; "
    "[bold]xnet predict wine.safetensors new.csv -o predicted.csv[/bold]"
)
def predict(
    file: Annotated[Path, typer.Argument(help="A saved network, or the notes' pickled weights.")],
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Pictures of one digit each; or data of your own, as train takes them."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="CSV to write for data of your own. Default: stdout."),
    ] = None,
    batch_size: BatchOption = 2000,
    backend: BackendOption = None,
    reproducible: ReproducibleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a network makes of data, with the probabilities.

    Of data of your own, as it was trained on, it writes a CSV: what is predicted, and a number for
    each class, row by row, however long a table is. Labels are not needed, and left alone. A file
    that is wrong somewhere writes nothing.

    Of pictures of a digit, where it was trained on digits or MNIST, it says which:
    PNG, JPEG, GIF, WebP, BMP, TIFF or PPM, dark on light or light on dark; a picture is scaled and
    centred as the training images were. "unsure" marks a digit whose probability is below 0.9, as
    where a picture shows two digits; the exit status is 1 if a picture cannot be read, which keeps
    none of the others back.
    """
    network = _load(file, resolve(backend, reproducible))
    if network.schema is not None or any(datasets.is_data(path) for path in data):
        if as_json and output is None:
            raise typer.BadParameter("--json says what was written: name a file by --output")
        rows, columns = own_data.write(network, data, output, batch_size)
        if as_json:
            print(json.dumps({"output": str(output), "rows": rows, "columns": columns}))
        elif output is not None:
            print(f"{rows} predictions written to {output}")
        return
    if output is not None:
        raise typer.BadParameter("--output is for data of your own")
    _dataset_for(network)  # says it well if the network is not one for images
    answers = [_answer(network, image) for image in data]
    if as_json:
        print(json.dumps(answers))
    else:
        _show_answers(answers)
    refused = [answer["error"] for answer in answers if "error" in answer]
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise XnetError(f"{refused[0]}{more}")


def _answer(network: Network, image: Path) -> dict[str, Any]:
    """What the network says of one picture, or why it says nothing."""
    try:
        pixels = pictures.load_image(image, network.inputs or 0)
    except DatasetError as error:
        return {"image": str(image), "error": str(error)}
    p = network.backend.to_numpy(network.predict(pixels))
    sure = {"sure": bool(p.max() >= SURE), "sure_from": SURE}
    return {"image": str(image), "digit": int(p.argmax()), **sure, "probabilities": p.tolist()}


def _show_answers(answers: list[dict[str, Any]]) -> None:
    read = [answer for answer in answers if "error" not in answer]
    if not read:
        return
    names = [Path(answer["image"]).name for answer in read]
    width, digits = max(map(len, names)), range(len(read[0]["probabilities"]))
    print("image".ljust(width), "digit", *(f"{digit:>4}" for digit in digits))
    for name, answer in zip(names, read, strict=True):
        row = [f"{answer['digit']:>5}", *(f"{value:.2f}" for value in answer["probabilities"])]
        print(name.ljust(width), *row, *([] if answer["sure"] else ["unsure"]))


# -- parity


@app.command(
    "parity",
    epilog="Examples: [bold]xnet parity[/bold]; "
    "[bold]xnet parity --backend numba --dtype float32 --json[/bold]",
)
def parity_command(
    backend: Annotated[
        list[str] | None,
        typer.Option(help="A backend to compare with NumPy; repeat it for more. Default: all."),
    ] = None,
    dtype: Annotated[
        list[Dtype] | None, typer.Option(help="float32 or float64. Default: both.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the training run.")] = 200,
    seed: SeedOption = 0,
    save: Annotated[
        Path | None,
        typer.Option(help="File for the hashes of what NumPy computes here in reproducible mode."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Such a file from another machine: compare with it, too, bit for bit. Default: "
            "the one that comes with xnet, for its steps and seed."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the backends with NumPy, operation by operation, in both modes.

    In reproducible mode every bit must be equal; in fast mode a difference must be within the
    bound that rounding-error analysis gives. Exit status 1 if a promise is broken.
    """
    names = backend or [b.name for b in backends() if b.usable]
    others = [name for name in names if not _is_reference(name)]
    saved = fingerprints.load(against or fingerprints.PUBLISHED)
    if (saved.steps, saved.seed) != (steps, seed):
        if against is not None:
            raise ValueError(
                f"{against} is of --steps {saved.steps} --seed {saved.seed}, got {steps} and {seed}"
            )
        if save is None and not others:
            raise ValueError(
                "parity: nothing to compare: numpy is the reference, name another backend, or "
                f"leave --steps {saved.steps} --seed {saved.seed}, of which hashes are published"
            )
        saved = None
    if save is not None:
        weights.check_writable(save)
    dtypes = [str(d) for d in dtype or list(Dtype)]
    taken = fingerprints.Fingerprints()
    if save is not None or saved is not None:
        with Console(stderr=True).status("") as status:
            taken = fingerprints.taken(
                dtypes, steps, seed, show=lambda name: status.update(f"numpy, reproducible: {name}")
            )
    if save is not None:
        fingerprints.save(save, taken, steps, seed)
    common = [name for name in taken if saved is not None and name in saved.found]
    apart = [] if saved is None else fingerprints.differences(taken, saved.found)
    verdicts, hashes = _parity(names, dtypes, steps, seed)
    kept = all(v.kept for v in verdicts) and not any(
        _is_broken(digest, mode, found)
        for mode, by_dtype in hashes.items()
        for found in by_dtype.values()
        for digest in found.values()
    )
    kept = kept and not apart and (saved is None or bool(common))
    if as_json:
        rows = [
            {**vars(v), "ulps": _finite(v.ulps), "share": _finite(v.share), "kept": v.kept}
            for v in verdicts
        ]
        facts: dict[str, Any] = {"versions": _versions(), "steps": steps, "seed": seed}
        facts |= {"kept": kept}
        if saved is not None:
            facts["against"] = {
                "file": str(against or fingerprints.PUBLISHED),
                "where": saved.where,
                "compared": len(common),
                "differences": [vars(difference) for difference in apart],
            }
        print(json.dumps({**facts, "operations": rows, "training_sha256": hashes}))
    else:
        for label in dict.fromkeys(v.backend for v in verdicts):
            out.print(_parity_table([v for v in verdicts if v.backend == label]))
        out.print(_hash_table(hashes, steps))
        if saved is not None:
            file = against or "published hashes"
            print(f"{file} ({saved.where}): {_against(len(common), apart)}")
        print("every promise kept" if kept else "a promise is broken: see what is marked with !")
    if not kept:
        sys.exit(1)


def _against(compared: int, apart: list[fingerprints.Difference]) -> str:
    """What came of comparing with a file."""
    if not compared:
        return "! nothing in it is tried here"
    if not apart:
        return f"all of {compared:,} results are equal, bit for bit"
    return f"! {len(apart):,} of {compared:,} results differ; the first is {apart[0]}"


def _is_reference(name: str) -> bool:
    try:
        return resolve(name).name == "numpy"
    except BackendError:
        raise  # no such backend, or not here: the user's to mend
    except Exception:  # whatever a plug-in raises: the report says it
        return False


def _parity(
    names: list[str], dtypes: list[str], steps: int, seed: int
) -> tuple[list[parity.Verdict], dict[str, dict[str, dict[str, str]]]]:
    """Verdicts, and training hashes by mode, dtype and backend; the reference's own first."""
    verdicts: list[parity.Verdict] = []
    hashes: dict[str, dict[str, dict[str, str]]] = {}
    references = {"reproducible": resolve("numpy", True), "fast": resolve("numpy", False)}
    # Whose arithmetic is refused is tried all the same: a row says that, others what comes of it.
    with Console(stderr=True).status("") as status, unchecked():
        for mode, reference in references.items():
            reproducible, chosen = reference.reproducible, list[Backend]()
            for name in names:
                try:
                    chosen += [b for b in [resolve(name, reproducible)] if b is not reference]
                except Exception as error:  # a plug-in that cannot be made, or not in this mode
                    fault = parity.described(error)
                    verdicts += [
                        parity.Verdict("made at all", d, name, reproducible, error=fault)
                        for d in dtypes
                    ]
            for d in dtypes:
                found = hashes.setdefault(mode, {}).setdefault(d, {})
                for b in (reference, *chosen):
                    status.update(f"{b.label}, {mode}, {d}: training (compiles on first use)")
                    found[b.label] = _training_hash(b, d, steps)
                tried = testing.checks(dtypes=[d], modes=[reproducible], seed=seed)
                for check, b in product(tried, chosen):
                    status.update(f"{b.label}, {check.name}")
                    verdicts += check.verdicts(b)
    return verdicts, hashes


def _training_hash(backend: Backend, dtype: str, steps: int) -> str:
    try:
        return parity.training_hash(backend, dtype, steps)
    except Exception as error:  # whatever a plug-in raises: the rest is still compared
        return f"error: {parity.described(error)}"


def _is_broken(digest: str, mode: str, found: dict[str, str]) -> bool:
    """Whether a training run failed, or in reproducible mode gave other bits than the reference."""
    return digest.startswith("error:") or (mode == "reproducible" and digest != found["numpy"])


def _parity_table(verdicts: list[parity.Verdict]) -> Table:
    """Of one backend: a row for each trial, its bits in every dtype, and fast mode by dtype."""
    dtypes = list(dict.fromkeys(v.dtype for v in verdicts))
    title = f"{verdicts[0].backend} against numpy: bits in reproducible mode; in fast mode the "
    title += "largest difference, in units in the last place, and its share of what is allowed, on "
    title += f"{next(iter(parity.NUMBERS))} numbers; where they are right, what others break: "
    title += ", ".join([*parity.NUMBERS, *parity.HURTFUL][1:])
    table = _table("tried", "bits", *(f"{d}, fast" for d in dtypes), title=title)
    for name in dict.fromkeys(v.operation for v in verdicts):
        lines = {
            (mode, d): _parity_lines(
                [v for v in verdicts if (v.operation, v.reproducible, v.dtype) == (name, mode, d)]
            )
            for mode, d in product((True, False), dtypes)
        }
        bits = [f"{d}: {line}" for d in dtypes for line in lines[True, d] if line != "equal"]
        fast = ["\n".join(lines[False, d]) for d in dtypes]
        table.add_row(name, "\n".join(bits) or "equal", *fast)
    return table


def _finite(value: float) -> float | None:
    """`value` for JSON, which has no infinity."""
    return value if math.isfinite(value) else None


def _parity_lines(verdicts: list[parity.Verdict]) -> list[str]:
    """On the first kind of numbers; if the promise is kept there, on all that break it."""
    broken = [f"{v.numbers}: {_parity_cell(v)}" for v in verdicts if not v.kept]
    first = [_parity_cell(v) for v in verdicts[:1]]
    return first + broken if verdicts and verdicts[0].kept else first


def _parity_cell(v: parity.Verdict) -> str:
    if v.error is not None:
        return escape(f"! error: {textwrap.shorten(v.error, 80)}")
    if v.equal:
        return "equal"
    if not math.isfinite(v.ulps):
        return "! not finite"
    ulps = f"{v.ulps:,.0f} ulp" if v.ulps < 1e6 else f"{v.ulps:.0e} ulp"
    if v.reproducible or not math.isfinite(v.share):
        return f"! {ulps}"
    share = f"{v.share:.0%}" if v.share >= 0.01 else "<1%"
    return f"{ulps}, {share}" if v.kept else f"! {ulps}, {share}"


def _hash_table(hashes: dict[str, dict[str, dict[str, str]]], steps: int) -> Table:
    table = _table("mode", "dtype", "backend", "SHA-256", title=f"weights after {steps} steps")
    for mode, by_dtype in hashes.items():
        for d, found in by_dtype.items():
            for label, digest in found.items():
                shown = f"{digest[:16]}…" if digest.isalnum() else textwrap.shorten(digest, 80)
                broken = "! " if _is_broken(digest, mode, found) else ""
                table.add_row(mode, d, label, broken + escape(shown))
    return table


# -- export


@app.command(epilog="Example: [bold]xnet export digits.safetensors digits.onnx[/bold]")
def export(
    file: Annotated[Path, typer.Argument(help="A saved network, or the notes' pickled weights.")],
    to: Annotated[Path, typer.Argument(help="The ONNX file to write.", metavar="FILE.onnx")],
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of its numbers. Default: as in the saved network.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a saved network as an ONNX file, which other programs can run."""
    from xnet import onnx

    network = _load(file, resolve("numpy"), dtype)
    onnx.export(network, to)
    facts = {"file": str(to), "opset": onnx.OPSET, "bytes": to.stat().st_size}
    print(
        json.dumps(facts)
        if as_json
        else f"{to}: ONNX, opset {onnx.OPSET}, {facts['bytes']:,} bytes"
    )


# -- gradcheck


@app.command(
    epilog="Examples: [bold]xnet gradcheck[/bold]; "
    "[bold]xnet gradcheck digits.safetensors --batch-size 100 --backend numba[/bold]"
)
def gradcheck(
    file: Annotated[
        Path | None,
        typer.Argument(help="A saved network, or the notes' pickled weights. Default: a new one."),
    ] = None,
    dataset: DatasetOption = None,
    hidden: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Units of a hidden layer of a new network. Default: 50."),
    ] = None,
    activation: Annotated[
        Activation, typer.Option(help="After each hidden layer of a new network.")
    ] = Activation("relu"),
    init: Annotated[
        str, typer.Option(help="Weights of a new network: he, xavier or a standard deviation.")
    ] = "he",
    batch_size: Annotated[int, typer.Option(min=1, help="Training samples to check on.")] = 20,
    step: Annotated[
        float | None, typer.Option(help="h of the central differences. Default: 1e-4 and others.")
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Of parameters and data. Default: the file's own, or float64."),
    ] = None,
    seed: SeedOption = 0,
    backend: BackendOption = None,
    reproducible: ReproducibleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare backpropagation with the numerical gradient.

    Exit status 1 if they disagree, 3 if rounding or kinks leave too little to tell.
    """
    chosen = resolve(backend, reproducible)
    network = None if file is None else _load(file, chosen, dtype)
    name = str(dataset or ("digits" if network is None else _dataset_for(network)))
    (x, t), _ = datasets.DATASETS[name]()
    if network is None:
        sizes = [x.shape[1], *(hidden or [50]), int(t.max()) + 1]
        where: dict[str, Any] = {"seed": seed, "dtype": dtype or "float64", "backend": chosen}
        network = _dense(sizes, activation, init, **where)
    batch = random.Generator(seed).permutation(len(x))[:batch_size]
    with Console(stderr=True).status("evaluating the losses"), warnings.catch_warnings():
        warnings.simplefilter("ignore", KinkWarning)  # the table says it
        check = gradient_check(network, x[batch], t[batch], step)
    if as_json:
        facts = {
            "dataset": name,
            "backend": chosen.label,
            "dtype": network.dtype,
            "steps": check.steps,
        }
        found = [vars(p) | {"passed": p.passed} for p in check.parameters.values()]
        samples = {"samples": len(batch), "left_out": len(check.left_out)}
        verdict = {"verdict": check.verdict, "passed": check.passed}
        print(json.dumps(facts | samples | verdict | {"parameters": found}))
    else:
        out.print(network)
        print(f"{len(batch)} {name} images on {chosen.label}")
        print(check)
    if not check.passed:
        sys.exit(1 if check.verdict == Verdict.WRONG else INCONCLUSIVE)


# -- plot


@app.command(
    epilog="Examples: [bold]xnet plot --list[/bold]; "
    "[bold]xnet plot sigmoid -o sigmoid.svg[/bold]; "
    "[bold]xnet plot mistakes --network digits.safetensors --dark -o mistakes.png[/bold]"
)
def plot(
    name: Annotated[str | None, typer.Argument(help="Which figure; --list names all.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File; its suffix says the format: .png, .svg, .pdf."),
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Name every figure.")] = False,
    dark: Annotated[bool, typer.Option("--dark", help="Light on dark.")] = False,
    width: Annotated[
        int, typer.Option(min=plotting.NARROWEST, max=plotting.WIDEST, help="Pixels.")
    ] = 800,
    network: Annotated[
        Path | None,
        typer.Option(help="A saved network, or the notes' pickled weights. Default: trains one."),
    ] = None,
    dataset: DatasetOption = None,
    picture: Annotated[Path | None, typer.Option(help="A file for the figure `image`.")] = None,
    backend: BackendOption = None,
    reproducible: ReproducibleOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Draw a figure of the notes, or of a network at work.

    What it needs, data and a network, is computed on the spot from the digits, in seconds.
    """
    known = plotting.plots()
    if list_all:
        _list_plots(known, as_json)
        return
    if name is None or name not in known:
        near = difflib.get_close_matches(name or "", known)
        meant = f"did you mean {' or '.join(near)}?" if near else "--list names all"
        what = f"{name!r} is no figure" if name else "no figure is named"
        raise typer.BadParameter(f"{what}; {meant}")
    if output is None:
        suffix = "gif" if known[name].animated else "png"
        raise typer.BadParameter(f"--output is missing, as in -o {name}.{suffix}")
    plotting.check_format(output, known[name].animated)
    weights.check_writable(output)
    chosen = resolve(backend, reproducible)
    given = None if network is None else _load(network, chosen)
    fitting = None if given is None else DATASET_OF_INPUTS.get(given.inputs or 0)
    material = plotting.Material(
        dataset=fitting if dataset is None else str(dataset),
        given=given,
        backend=None if backend is None and reproducible is None else chosen,
        picture=None if picture is None else pictures.load_pixels(picture),
        seed=seed,
    )
    status = Console(stderr=True).status(f"drawing {name}")
    with status, use_backend(chosen), plotting.look(dark=dark, width=width):
        plotting.save(known[name].draw(material), output)
    if as_json:
        print(json.dumps({"figure": name, "file": str(output)}))
    else:
        print(f"saved to {output}")


def _list_plots(known: dict[str, plotting.Plot], as_json: bool) -> None:
    if as_json:
        facts = [{"name": p.name, "section": p.section, "shows": p.about} for p in known.values()]
        print(json.dumps(facts))
        return
    table = _table("figure", "section", "shows")
    for one in known.values():
        table.add_row(one.name, one.section, escape(one.about))
    out.print(table)


# -- play


@app.command(epilog="Example: [bold]xnet play mnist.safetensors[/bold]")
def play(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Saved networks that read digits, to choose from."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of this machine; 0 takes a free one.")
    ] = 0,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    backend: BackendOption = None,
) -> None:
    """Draw a digit and watch what a network makes of it; train a small classifier and watch.

    A web page that only this machine can see. A network of the digits is trained at the start.
    """
    for package in ("nicegui", "PIL"):
        if find_spec(package) is None:
            raise ImportError('xnet play needs NiceGUI: pip install "xnet-nn[play]"')
    named = Counter(file.name for file in files or ())
    networks: dict[str, Callable[[str], Network]] = {"digits": _digits_network}
    for file in files or ():
        networks[file.name if named[file.name] == 1 else str(file)] = _digit_reader(file)
    from xnet.tools.play import pages

    chosen = resolve(backend)
    port = pages.free_port(port)
    print(f"http://{pages.HOST}:{port} until Ctrl-C", flush=True)
    pages.serve(networks, backend or chosen.name, port, browser)


def _digits_network(backend: str) -> Network:
    """A network that was trained on the digits, in a moment."""
    material = plotting.Material(dataset="digits", backend=backend)
    return material.network


def _digit_reader(file: Path) -> Callable[[str], Network]:
    """What loads a saved network on a backend; it is tried at once."""

    def load(backend: str) -> Network:
        network = _load(file, resolve(backend))
        _dataset_for(network)
        if (found := plan.outputs(network.layers)) != 10:
            raise ValueError(f"{file}: the network gives {found} numbers, expected one a digit")
        said = network.backend.to_numpy(network.predict(np.zeros(network.inputs or 0)))
        if not abs(said.sum() - 1) < 1e-3:
            raise ValueError(f"{file}: what the network predicts are no probabilities")
        return network

    load("numpy")
    return load


# -- demo


@app.command(epilog="Example: [bold]xnet demo --backend numpy[/bold]")
def demo(
    backend: BackendOption = "auto",
    reproducible: ReproducibleOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train on real digits on the best backend, then compare all of them."""
    chosen, sizes = resolve(backend, reproducible), [64, 50, 10]
    (x, t), (x_test, t_test) = datasets.load_digits()
    if not as_json:
        shape = "-".join(map(str, sizes))
        out.print(_backend_table())
        out.print(f"training {shape} on {len(x)} handwritten digits on {chosen.label}")
    network = _dense(sizes, "relu", "he", seed=seed, backend=chosen)
    _warm_up(network, x[:100], t[:100])
    history = train(network, x, t, x_test, t_test, epochs=100, seed=seed, progress=not as_json)
    if history.stopped == "interrupted":
        sys.exit(INTERRUPTED)
    usable = [resolve(b.name, chosen.reproducible) for b in backends() if b.usable]
    rows = _comparison(network, usable, x_test)
    if as_json:
        print(
            json.dumps(
                {
                    "backend": chosen.label,
                    "reproducible": chosen.reproducible,
                    "test_accuracy": history.test_accuracy[-1],
                    "seconds": history.seconds,
                    "comparison": rows,
                }
            )
        )
    else:
        speed = history.iterations / history.seconds
        out.print(f"{history.iterations} iterations in {history.seconds:.1f} s ({speed:,.0f}/s)")
        print(f"test accuracy {history.test_accuracy[-1]:.4f}")
        out.print(_comparison_table(rows, len(x_test)))
    if not all(row["agrees"] for row in rows):
        raise XnetError("a backend's predictions differ from NumPy's by more than its mode allows")


def _comparison(network: Network, usable: list[Backend], x: Any) -> list[dict[str, Any]]:
    """Each backend on the same network: its predictions against NumPy's, and two speeds."""
    home = network.backend
    reference = _predictions(network.to("numpy"), x)
    bound = 0.0 if home.reproducible else parity.prediction_bound(network, x)
    rows: list[dict[str, Any]] = []
    for backend in usable:
        network.to(backend)
        with Console(stderr=True).status(f"timing {backend.label} (compiles on first use)"):
            difference = np.abs(_predictions(network, x) - reference)
            one, batch = _rates(network, x)
        rows.append(
            {
                "backend": backend.label,
                "largest_difference": float(difference.max()),
                "agrees": bool((difference <= bound).all()),
                "images_per_second_one_at_a_time": one,
                "images_per_second_in_a_batch": batch,
            }
        )
    network.to(home)
    return rows


def _predictions(network: Network, x: Any) -> Any:
    return network.backend.to_numpy(network.predict(x))


def _rates(network: Network, x: Any) -> tuple[float, float]:
    """Images a second, one at a time and as one batch: the best of five turns each."""
    images, x = len(x), network.backend.asarray(x, network.dtype)

    def one_at_a_time() -> None:
        for index in range(images):
            network.predict(x[index, ...])

    def in_a_batch() -> None:
        network.predict(x)

    rates: list[float] = []
    for turn in (one_at_a_time, in_a_batch):
        turn()
        seconds: list[float] = []
        for _ in range(5):
            network.backend.synchronize()
            started = time.perf_counter()
            turn()
            network.backend.synchronize()
            seconds.append(time.perf_counter() - started)
        rates.append(images / min(seconds))
    return rates[0], rates[1]


def _comparison_table(rows: list[dict[str, Any]], images: int) -> Table:
    one, batch = "images/s,\none at\na time", f"images/s,\nbatch\nof {images}"
    table = _table("backend", "as\nNumPy", "largest\nerror", one, batch, "gain")
    for row in rows:
        one, batch = row["images_per_second_one_at_a_time"], row["images_per_second_in_a_batch"]
        table.add_row(
            row["backend"],
            "yes" if row["agrees"] else "NO",
            f"{row['largest_difference']:.1e}",
            f"{one:,.0f}",
            f"{batch:,.0f}",
            f"{batch / one:.0f}x",
        )
    return table
