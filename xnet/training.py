"""Training: mini-batches, the loop, its history (§4.2.3, §4.5)."""

import math
import operator
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xnet import weights
from xnet.backend import Array, assign, use_backend
from xnet.losses import batch_and_targets
from xnet.network import Network
from xnet.optimizers import SGD, Optimizer


@dataclass
class History:
    """What a training run recorded, as plain lists of numbers."""

    loss: list[float] = field(default_factory=list[float])
    """Loss of each mini-batch, before the step that it led to."""
    train_accuracy: list[float] = field(default_factory=list[float])
    """Accuracy on the training data after each epoch; of use where classes are learnt."""
    test_accuracy: list[float] = field(default_factory=list[float])
    """Accuracy on the test data after each epoch; empty without test data."""
    epoch_ends: list[int] = field(default_factory=list[int])
    """How many iterations had been done when each accuracy was taken."""
    kept_epoch: int | None = None
    """Index of the epoch whose network early stopping went back to; None: the last step's."""
    stopped: str = "finished"
    """Why the run ended: "finished", "early stop", "interrupted" or "diverged"."""
    seconds: float = 0.0
    """Wall-clock time of the run, in seconds."""

    @property
    def iterations(self) -> int:
        """How many mini-batches were trained on."""
        return len(self.loss)


def minibatches(
    n: int, batch_size: int, rng: np.random.Generator, replacement: bool = False
) -> Iterator[NDArray[np.int64]]:
    """Indices of mini-batches of n samples, without end.

    Parameters
    ----------
    n
        How many samples there are.
    batch_size
        How many to draw at a time.
    rng
        Source of the draws.
    replacement
        False shuffles all samples and takes each once an epoch; an epoch's last batch holds what
        is left. True draws every batch from all samples alike, as the notes do (§4.2.3).

    Yields
    ------
    ndarray
        int64, (batch_size,) or what is left of the epoch.

    Raises
    ------
    ValueError
        n or batch_size below 1.
    """
    _check_length("n", n)
    _check_length("batch_size", batch_size)
    while True:
        if replacement:
            yield rng.integers(0, n, min(batch_size, n))
        else:
            order = rng.permutation(n)
            for start in range(0, n, batch_size):
                yield order[start : start + batch_size]


class Progress(Protocol):
    """What `train` tells of its progress; see `ProgressBar`."""

    def start(self, total: int) -> None:
        """The run will take `total` iterations."""
        ...

    def advance(self, history: History) -> None:
        """One more iteration is done."""
        ...

    def stop(self) -> None:
        """The run has ended."""
        ...


def train(
    network: Network,
    x: Any,
    t: Any,
    x_test: Any = None,
    t_test: Any = None,
    *,
    optimizer: Optimizer | None = None,
    epochs: int | None = None,
    iterations: int | None = None,
    batch_size: int = 100,
    replacement: bool = False,
    gradient: str = "backprop",
    patience: int | None = None,
    seed: int | None = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
) -> History:
    """Train `network` by mini-batches, in place.

    Parameters
    ----------
    network
        What to train.
    x, t
        Training data (N, D) and labels: class indices (N,), or one-hot or targets (N, C).
    x_test, t_test
        Data to take the test accuracy on, once an epoch.
    optimizer
        How to step; SGD with a learning rate of 0.1 by default.
    epochs, iterations
        How long: passes over the data, or mini-batches. Give one; without either, 1 epoch.
    batch_size
        Samples in a mini-batch.
    replacement
        How mini-batches are drawn; see `minibatches`.
    gradient
        ``"backprop"``, or ``"numerical"`` for central differences.
    patience
        Stop when the accuracy on the test data (without test data, on the training data) has not
        risen for so many epochs, and go back to the parameters and state that had the best. With a
        loss that knows no classes it is the loss that has not fallen.
    seed
        For the draws; None for fresh ones every time.
    checkpoint
        File to save the network to after every epoch and at the end, unless the run diverged.
    progress
        Whether to show a bar; none is shown unless stderr is a terminal. Or your own `Progress`.

    Returns
    -------
    History
        Losses and accuracies. Ctrl-C ends the run early and does not raise: the history says
        "interrupted", and the network is as the last whole step left it. SIGTERM does so too after
        ``signal.signal(signal.SIGTERM, signal.default_int_handler)``, as in the command.

    Raises
    ------
    ValueError
        Data that do not fit each other or the network, NaN or infinity in them, no samples, a
        label out of range, or an argument out of its range.
    BackendError
        Data on another device.
    WeightsError
        The checkpoint cannot be written; known before training starts.
    """
    if gradient not in ("backprop", "numerical"):
        raise ValueError(f"gradient is {gradient!r}, expected 'backprop' or 'numerical'")
    for name, value in {"patience": patience, "batch_size": batch_size}.items():
        _check_length(name, value)
    if seed is not None and seed < 0:
        raise ValueError(f"seed is {seed}, expected at least 0, or None")
    if gradient == "numerical" and network.dtype != "float64":
        raise ValueError(
            f"gradient='numerical' needs float64, this network is {network.dtype}: the difference "
            "of two losses would be rounding noise"
        )
    if optimizer is not None and not isinstance(optimizer, Optimizer):  # pyright: ignore
        raise TypeError(f"optimizer is {optimizer!r}, expected an Optimizer such as SGD(0.1)")
    if (x_test is None) != (t_test is None):
        raise ValueError("x_test and t_test go together: one is missing")
    if checkpoint is not None:
        weights.check_savable(network)
        weights.check_writable(checkpoint)
    data = _checked(network, x, t)
    samples = data[0].shape[0]
    total = _total_iterations(epochs, iterations, samples, batch_size)
    test = None if x_test is None else _checked(network, x_test, t_test, "_test")
    run = _Run(network, data, test, optimizer or SGD(0.1), gradient)
    shown = _progress(progress)
    shown.start(total)
    started = time.perf_counter()
    try:
        batches = minibatches(samples, batch_size, np.random.default_rng(seed), replacement)
        run.loop(batches, total, math.ceil(samples / batch_size), patience, checkpoint, shown)
    except KeyboardInterrupt:
        run.history.stopped = "interrupted"
    finally:
        shown.stop()
        run.history.seconds = time.perf_counter() - started
    if checkpoint is not None and run.history.stopped != "diverged":
        weights.save(network, checkpoint)
    return run.history


class _Run:
    """One training run: what stays the same from step to step."""

    def __init__(
        self,
        network: Network,
        data: tuple[Array, Array],
        test: tuple[Array, Array] | None,
        optimizer: Optimizer,
        gradient: str,
    ) -> None:
        self.network = network
        self.data = data
        self.test = test
        self.optimizer = optimizer
        self.numerical = gradient == "numerical"
        self.history = History()
        self.best: tuple[float, int, list[dict[str, Array]]] = (-math.inf, 0, [])
        self.epochs_since_best = 0

    def loop(
        self,
        batches: Iterator[NDArray[np.int64]],
        total: int,
        iterations_per_epoch: int,
        patience: int | None,
        checkpoint: str | os.PathLike[str] | None,
        progress: Progress,
    ) -> None:
        history = self.history
        for iteration in range(1, total + 1):
            loss = self.step(next(batches))
            history.loss.append(loss)
            progress.advance(history)
            ends_epoch = iteration % iterations_per_epoch == 0 or iteration == total
            if not math.isfinite(loss) or (ends_epoch and not self.is_finite()):
                history.stopped = "diverged"
                return
            if ends_epoch:
                self.end_epoch()
                if checkpoint is not None and iteration < total:
                    weights.save(self.network, checkpoint)
                if patience is not None:
                    self.remember_best()
                    if self.epochs_since_best >= patience:
                        history.stopped = "early stop"
                        self.restore_best()
                        return

    def step(self, indices: NDArray[np.int64]) -> float:
        """One mini-batch: its loss, its gradient, one update."""
        network, (x, t) = self.network, self.data
        xp = network.backend.xp
        before = [(v.state, name, array) for v in network.layers for name, array in v.state.items()]
        try:
            with use_backend(network.backend), network.backend.running():
                rows = network.backend.asarray(indices)
                x, t = xp.take(x, rows, axis=0), xp.take(t, rows, axis=0)
                if not self.numerical:
                    return network.train_step(x, t, self.optimizer)
                gradients, loss = network.numerical_gradient(x, t), network.training_loss(x, t)
                network.update(self.optimizer, gradients)
                return loss
        except BaseException:
            assign(before)  # the forward pass may have moved it, and the step is not whole
            raise

    def is_finite(self) -> bool:
        """Whether neither parameters nor state hold NaN or infinity."""
        network = self.network
        xp = network.backend.xp
        with network.backend.running():
            arrays = (*network.params.values(), *network.state.values())
            return all(bool(xp.all(xp.isfinite(array))) for array in arrays)

    def end_epoch(self) -> None:
        """Take the accuracies."""
        history, network = self.history, self.network
        train_accuracy = network.accuracy(*self.data)
        test_accuracy = None if self.test is None else network.accuracy(*self.test)
        # All are known: Ctrl-C finds the lists equally long.
        history.epoch_ends.append(history.iterations)
        history.train_accuracy.append(train_accuracy)
        if test_accuracy is not None:
            history.test_accuracy.append(test_accuracy)

    def remember_best(self) -> None:
        """Remember the network if it is the best so far."""
        history, network = self.history, self.network
        if network.loss_layer.classes:
            score = (history.test_accuracy or history.train_accuracy)[-1]
        else:
            score = -network.loss(*(self.test or self.data))
        self.epochs_since_best += 1
        if score > self.best[0]:
            kept: list[dict[str, Array]] = [{}, {}]
            for arrays, values in zip((network.params, network.state), kept, strict=True):
                arrays.keep(values)
            self.best = score, len(history.epoch_ends) - 1, kept
            self.epochs_since_best = 0

    def restore_best(self) -> None:
        _, epoch, kept = self.best
        if kept:  # no epoch is the best where no loss is a number
            params, state = kept
            assign(self.network.params.writing(params) + self.network.state.writing(state))
            self.history.kept_epoch = epoch


def _check_length(name: str, value: int | None) -> None:
    """Refuse what is neither None nor a whole number of at least 1."""
    if value is None:
        return
    try:
        operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected a whole number") from None
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")


def _total_iterations(
    epochs: int | None, iterations: int | None, samples: int, batch_size: int
) -> int:
    if epochs is not None and iterations is not None:
        raise ValueError("epochs and iterations were both given, expected one")
    _check_length("epochs", epochs)
    _check_length("iterations", iterations)
    if iterations is not None:
        return iterations
    return (epochs or 1) * math.ceil(samples / batch_size)


def _checked(network: Network, x: Any, t: Any, suffix: str = "") -> tuple[Array, Array]:
    """Data and labels on the network's backend, checked once for the whole run."""
    x_name, t_name = f"x{suffix}", f"t{suffix}"
    x, t = network.host_to_backend(x, x_name, network.dtype), network.host_to_backend(t, t_name)
    for name, array in {x_name: x, t_name: t}.items():
        if array.ndim == 0 or array.shape[0] == 0:
            raise ValueError(f"{name} has shape {tuple(array.shape)}: there are no samples")
    if x.shape[0] != t.shape[0]:
        raise ValueError(f"{x_name} has {x.shape[0]} samples, {t_name} has {t.shape[0]}")
    xp = network.backend.xp
    with use_backend(network.backend), network.backend.running():
        if not bool(xp.all(xp.isfinite(x))):
            raise ValueError(f"{x_name} holds NaN or infinity as {network.dtype}")
        if xp.isdtype(t.dtype, "real floating") and not bool(xp.all(xp.isfinite(t))):
            raise ValueError(f"{t_name} holds NaN or infinity")
        try:
            # One sample tells the number of classes; then all labels are checked against it.
            classes = network.scores(x[:1, ...]).shape[-1]
            batch_and_targets(xp.zeros((x.shape[0], classes), dtype=x.dtype), t)
        except ValueError as error:
            where = f"{x_name}, {t_name}: " if suffix else ""
            raise ValueError(f"{where}{error}") from error
    return x, t


class ProgressBar:
    """A line on stderr with loss, accuracy, speed and time left; nothing if it is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        self._last = 0.0
        self._began = 0.0
        self._bar = Rich(
            BarColumn(bar_width=8),  # all of it fits into 80 columns
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[accuracy]}"),
            TextColumn("{task.fields[speed]:,.0f}/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def start(self, total: int) -> None:
        """Show the bar."""
        self._began = time.perf_counter()
        self._task = self._bar.add_task("", total=total, loss="", accuracy="", speed=0.0)
        self._bar.start()

    def advance(self, history: History) -> None:
        """Redraw, at most ten times a second: drawing must not slow the training."""
        now = time.perf_counter()
        if now - self._last < 0.1:
            return
        self._last = now
        self._update(history)

    def _update(self, history: History) -> None:
        accuracy = ""
        if history.train_accuracy:
            accuracy = f"train {history.train_accuracy[-1]:.4f}"
        if history.test_accuracy:
            accuracy += f" test {history.test_accuracy[-1]:.4f}"
        self._bar.update(
            self._task,
            completed=history.iterations,
            loss=f"loss {history.loss[-1]:.4f}",
            accuracy=accuracy,
            speed=history.iterations / (time.perf_counter() - self._began),
        )
        self._history = history

    def stop(self) -> None:
        """Draw the last state and leave it on the screen."""
        if hasattr(self, "_history"):
            self._update(self._history)
        self._bar.stop()


class _Silent:
    def start(self, total: int) -> None: ...
    def advance(self, history: History) -> None: ...
    def stop(self) -> None: ...


def _progress(progress: bool | Progress) -> Progress:
    if not isinstance(progress, bool):
        return progress
    return ProgressBar() if progress and sys.stderr.isatty() else _Silent()
