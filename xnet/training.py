"""Training: mini-batches, the loop, its history (§4.2.3, §4.5)."""

import contextlib
import json
import math
import operator
import os
import signal
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnet import checkpoints, notebook, weights
from xnet.backend import Array, assign, get_backend, use_backend
from xnet.clipping import clipped
from xnet.errors import CheckpointError
from xnet.network import Network
from xnet.optimizers import SGD, Optimizer
from xnet.progress import Progress, Silent, suitable
from xnet.random import Generator as Draws
from xnet.samples import Samples, check_length, minibatches
from xnet.schedules import Schedule

__all__ = ["Callback", "History", "Training", "train"]


@dataclass(repr=False)
class History:
    """What a training run recorded, as plain lists of numbers.

    After each epoch, and when a call ends within one: accuracies where classes are learnt, R² where
    not (`r_squared`), on what there is. With validation data the test data are looked at once, when
    the call ends: one number, of the network that it ends with.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x, t = np.array([[0.0], [1.0]] * 50), np.array([0, 1] * 50)
    >>> net = xnet.TwoLayerNet(1, 4, 2, weight_init_std=1.0)
    >>> history = xnet.train(net, x, t, x, t, epochs=3, batch_size=10, progress=False)
    >>> history.iterations, history.epoch_ends, history.stopped
    (30, [10, 20, 30], 'finished')
    >>> len(history.loss), len(history.train_accuracy), history.metric
    (30, 3, 'accuracy')
    """

    loss: list[float] = field(default_factory=list[float])
    """Loss of each mini-batch, before the step that it led to."""
    train_accuracy: list[float] = field(default_factory=list[float])
    """Accuracy on the training data."""
    validation_accuracy: list[float] = field(default_factory=list[float])
    """Accuracy on the validation data."""
    test_accuracy: list[float] = field(default_factory=list[float])
    """Accuracy on the test data."""
    train_r2: list[float] = field(default_factory=list[float])
    """R² on the training data."""
    validation_r2: list[float] = field(default_factory=list[float])
    """R² on the validation data."""
    test_r2: list[float] = field(default_factory=list[float])
    """R² on the test data."""
    epoch_ends: list[int] = field(default_factory=list[int])
    """How many iterations had been done when each of them was taken."""
    kept_epoch: int | None = None
    """Index of the epoch whose network validation went back to; None: the last step's."""
    stopped: str = "finished"
    """Why the run ended: "finished", "early stop", "stopped" (by a callback), "interrupted" or
    "diverged"."""
    seconds: float = 0.0
    """Wall-clock time of the run, in seconds."""

    @property
    def iterations(self) -> int:
        """How many mini-batches were trained on."""
        return len(self.loss)

    @property
    def metric(self) -> str:
        """What was taken: "R²", or "accuracy"."""
        return "R²" if self.train_r2 else "accuracy"

    def taken(self, part: str) -> list[float]:
        """What was taken on a part of the data: "train", "validation" or "test".

        Parameters
        ----------
        part
            The name of that part.

        Returns
        -------
        list of float
            Accuracies or R², at `epoch_ends`; of the test data one where validation data chose.
        """
        return getattr(self, f"{part}_{'r2' if self.train_r2 else 'accuracy'}")

    def __repr__(self) -> str:
        return f"History({notebook.summary(self)})"

    _repr_html_ = notebook.history


class Callback:
    """What `train` tells of a run as it goes on; a class of your own overrides what it wants.

    The methods are given the `Training`: its `history` says what there is by now, `network` and
    `optimizer` are the live ones. What they return says whether the run is to stop, as "stopped";
    what they raise ends it with that error, after a whole step. A run that is resumed tells of the
    steps from the checkpoint on.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> from xnet.training import Callback
    >>> class UntilGood(Callback):
    ...     def on_step(self, training):
    ...         return training.history.loss[-1] < 0.1
    >>> x, t = np.array([[0.0], [1.0]] * 50), np.array([0, 1] * 50)
    >>> net, told = xnet.TwoLayerNet(1, 4, 2, weight_init_std=1.0), [UntilGood()]
    >>> sgd = xnet.optimizers.SGD(lr=1.0)
    >>> history = xnet.train(net, x, t, optimizer=sgd, epochs=99, callbacks=told, progress=False)
    >>> history.stopped, history.loss[-2] >= 0.1 > history.loss[-1]
    ('stopped', True)
    """

    def on_step(self, training: "Training") -> bool | None:
        """A step is done: ``training.history.loss[-1]`` is the loss before it.

        Parameters
        ----------
        training
            The run.

        Returns
        -------
        bool or None
            Whether the run is to stop.
        """

    def on_epoch(self, training: "Training") -> bool | None:
        """An epoch is over, and its accuracies or R² are in the history.

        Parameters
        ----------
        training
            The run.

        Returns
        -------
        bool or None
            Whether the run is to stop.
        """


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
    validation: float | tuple[Any, Any] | None = None,
    patience: int | None = None,
    sample_weight: Any = None,
    schedule: Schedule | None = None,
    clip: float | None = None,
    callbacks: Sequence["Callback"] = (),
    seed: int | None = 0,
    save: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 30.0,
    resume: bool = False,
    progress: bool | Progress = True,
) -> History:
    """Train `network` by mini-batches, in place.

    A second call is a second run, whose draws are the same if its seed is; `Training` is a run that
    can be gone on with.

    Parameters
    ----------
    network
        What to train.
    x, t
        Training data (N, D) and labels: class indices (N,), or one-hot or targets (N, C). Rows of
        what is not in memory, as of a memory map, are fetched as they are drawn: see `xnet.rows`.
    x_test, t_test
        Data that the trained network is judged by: after each epoch, as the notes do (§4.5.3), or,
        where validation data choose, once at the end.
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
    validation
        Data that choose: the run ends with the parameters and state of the epoch that did best on
        them, by accuracy or, where no classes are learnt, by the loss. Data (x, t), or the share of
        the training data, between 0 and 1, that is held back for it: drawn by `seed`, of each class
        alike.
    patience
        Stop when there was no better epoch for so many; needs `validation`.
    sample_weight
        How often each sample of x counts in the loss, (N,): real numbers of at least 0, relative
        to their mean. Accuracies, and what validation chooses by, count every sample once; one of
        weight 0 still takes its place in a mini-batch.
    seed
        For the draws; None for fresh ones every time.
    schedule
        What multiplies the optimizer's learning rate at each step: see `xnet.schedules`. When a
        call ends, the optimizer has its own rate again.
    clip
        Length that the gradients, taken as one vector, are cut to: see `xnet.clipping`.
    callbacks
        `Callback` objects, which are told of every step and epoch and may stop the run.
    save
        File to save the network to after every epoch, with validation every best one so far, and
        at the end, unless the run diverged.
    checkpoint
        Folder for checkpoints: files with all that the next step depends on, of which the last two
        are kept. One is written every `checkpoint_every` seconds, and when the run ends, however
        it ends but by SIGKILL and the like.
    checkpoint_every
        Seconds between two checkpoints; 0 for one after every step.
    resume
        Go on from the last checkpoint in that folder that is whole, for as long as is left of
        `epochs` or `iterations`; where there is none yet, begin. Data, network, optimizer and
        settings must be those of the run that wrote it, and in fast mode the backend. A run that
        was killed and resumed ends with the bits of one that was not.
    progress
        Whether to show a bar, on a terminal or in a notebook; where stderr is neither, as in a log
        file, a long run writes a line now and then. Or your own `Progress`.

    Returns
    -------
    History
        Losses and accuracies. Ctrl-C ends the run early and does not raise: the history says
        "interrupted", and the network is as the last whole step left it, or as validation chose.
        So do SIGTERM and SIGHUP in the main thread, unless the program handles or ignores them.

    Raises
    ------
    ValueError
        Data that do not fit each other or the network, NaN or infinity in them, no samples, a
        label out of range, or an argument out of its range. All of it is known before the first
        step; but NaN or infinity in data that stay where they are is found as they are drawn, and
        then the network is as the last whole step left it.
    TypeError
        An argument of another type.
    BackendError
        Data on another device.
    WeightsError
        The network cannot be saved there; known before training starts.
    CheckpointError
        The folder cannot be written to or holds checkpoints while `resume` is False; or what it
        holds is of another run, or not whole.

    Warns
    -----
    CheckpointWarning
        The last checkpoint is damaged; the run goes on from the one before it.

    Examples
    --------
    >>> import xnet
    >>> (x, t), (x_test, t_test) = xnet.datasets.load_digits()
    >>> net = xnet.TwoLayerNet(64, 10, 10, weight_init_std="xavier")
    >>> adam = xnet.optimizers.Adam(lr=0.02)
    >>> history = xnet.train(net, x, t, x_test, t_test, optimizer=adam, epochs=5, progress=False)
    >>> history.iterations, len(history.test_accuracy), history.test_accuracy[-1] > 0.85
    (75, 5, True)
    """
    training = Training(
        network,
        x,
        t,
        x_test,
        t_test,
        optimizer=optimizer,
        batch_size=batch_size,
        replacement=replacement,
        gradient=gradient,
        validation=validation,
        patience=patience,
        sample_weight=sample_weight,
        schedule=schedule,
        clip=clip,
        callbacks=callbacks,
        seed=seed,
        save=save,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
    )
    return training.run(epochs=epochs, iterations=iterations, progress=progress, whole=True)


class Training:
    """A training run that can be gone on with: calls of `run` are one long run, bit for bit.

    Parameters and errors as in `train`. Between two calls the network may be used and, unless
    validation data choose, changed. The data are checked and moved to its backend once, or stay
    where they are: see `xnet.rows`.

    Attributes
    ----------
    history
        What all calls recorded.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x, t = np.array([[0.0], [1.0]] * 50), np.array([0, 1] * 50)
    >>> run = xnet.Training(xnet.TwoLayerNet(1, 4, 2), x, t, batch_size=10)
    >>> run.run(iterations=4, progress=False).iterations, run.run(progress=False).iterations
    (4, 14)
    """

    def __init__(
        self,
        network: Network,
        x: Any,
        t: Any,
        x_test: Any = None,
        t_test: Any = None,
        *,
        optimizer: Optimizer | None = None,
        batch_size: int = 100,
        replacement: bool = False,
        gradient: str = "backprop",
        validation: float | tuple[Any, Any] | None = None,
        patience: int | None = None,
        sample_weight: Any = None,
        schedule: Schedule | None = None,
        clip: float | None = None,
        callbacks: Sequence["Callback"] = (),
        seed: int | None = 0,
        save: str | os.PathLike[str] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: float = 30.0,
        resume: bool = False,
    ) -> None:
        with network.backend.ranks.together():
            if gradient not in ("backprop", "numerical"):
                raise ValueError(f"gradient is {gradient!r}, expected 'backprop' or 'numerical'")
            for name, value in {"patience": patience, "batch_size": batch_size}.items():
                check_length(name, value)
            if seed is not None and seed < 0:
                raise ValueError(f"seed is {seed}, expected at least 0, or None")
            if gradient == "numerical" and network.dtype != "float64":
                raise ValueError(
                    f"gradient='numerical' needs float64, this network is {network.dtype}: the "
                    "difference of two losses would be rounding noise"
                )
            if gradient == "numerical" and sample_weight is not None:
                raise ValueError("sample_weight is for gradient='backprop'")
            if optimizer is not None and not isinstance(optimizer, Optimizer):  # pyright: ignore
                raise TypeError(
                    f"optimizer is {optimizer!r}, expected an Optimizer such as SGD(0.1)"
                )
            if (x_test is None) != (t_test is None):
                raise ValueError("x_test and t_test go together: one is missing")
            if patience is not None and validation is None:
                raise ValueError(
                    f"patience is {patience} without validation: give a share of the training data "
                    "for that, such as 0.1, or data (x, t) other than the test data"
                )
            if clip is not None and not 0 < clip < math.inf:
                raise ValueError(f"clip is {clip}, expected a length above 0, or None")
            if schedule is not None and not isinstance(schedule, Schedule):  # pyright: ignore
                raise TypeError(f"schedule is {schedule!r}, expected a Schedule such as Cosine()")
            for callback in callbacks:
                if not isinstance(callback, Callback):  # pyright: ignore
                    raise TypeError(f"callbacks holds {callback!r}, expected a Callback")
            if not checkpoint_every >= 0:
                raise ValueError(
                    f"checkpoint_every is {checkpoint_every}, expected seconds from 0 on"
                )
            if resume and checkpoint is None:
                raise ValueError("resume needs checkpoint: the folder to go on from")
        self.network = network
        self.optimizer = optimizer or SGD(0.1)
        self.patience, self.clip = patience, clip
        self.schedule, self.callbacks = schedule, tuple(callbacks)
        self._numerical = gradient == "numerical"
        self._settings: dict[str, Any] = {
            "batch_size": operator.index(batch_size),
            "replacement": bool(replacement),
            "gradient": gradient,
            "validation": validation if isinstance(validation, Real | None) else "data",
            "patience": patience,
            "schedule": repr(schedule),
            "clip": clip,
        }
        ranks = self._ranks = network.backend.ranks
        self._check_ranks(seed, save, checkpoint, resume, x_test, sample_weight)
        # Files are rank 0's alone.
        self.save = save if ranks.rank == 0 else None
        with ranks.together():
            if self.save is not None:
                weights.check_savable(network)
                weights.check_writable(self.save)
            self._folder: checkpoints.Folder | None = None
            last: checkpoints.Checkpoint | None = None
            if checkpoint is not None and ranks.rank == 0:
                self._folder = checkpoints.Folder(checkpoint)
                last = self._folder.last(resume)
        content = ranks.first(lambda: last and last.content)
        found = None if content is None else checkpoints.parsed(content)
        if seed is None:  # a fresh one, which a checkpoint can name
            seed = found.seed if found else int.from_bytes(os.urandom(8), "little")
            seed = int(ranks.gathered(seed)[0])
        rng = Draws(seed)
        data = {"train": Samples(network, x, t, "x", "t", sample_weight)}
        if isinstance(validation, Real):
            data["train"], data["validation"] = data["train"].split(float(validation), rng)
        elif validation is not None:
            given: Any = validation
            try:
                x_chosen, t_chosen = given
            except (TypeError, ValueError):
                raise TypeError(
                    f"validation is a {type(validation).__name__}, expected a share of the "
                    "training data, such as 0.1, or data (x, t)"
                ) from None
            names = "validation[0]", "validation[1]"
            data["validation"] = Samples(network, x_chosen, t_chosen, *names)
        if x_test is not None:
            data["test"] = Samples(network, x_test, t_test, "x_test", "t_test")
        self._data = data
        self._classes = all(part.classes for part in data.values())
        samples = data["train"].samples
        self._iterations_per_epoch = math.ceil(samples / batch_size)
        self._batches: Any = minibatches(samples, batch_size, rng, replacement)
        self._batch: NDArray[np.int64] | None = None
        self._best: tuple[float, int, list[dict[str, Array]]] = (-math.inf, 0, [])
        self._epochs_since_best = 0
        self._left: list[dict[str, Array]] = []
        self._scheduled: tuple[int, float] | None = None
        self.history = History()
        self._settings["seed"] = seed
        self._checkpointed = checkpoint is not None
        if self._checkpointed:
            self._begin(found)
        self._every = checkpoint_every

    def _check_ranks(
        self,
        seed: int | None,
        save: Any,
        checkpoint: Any,
        resume: bool,
        x_test: Any,
        sample_weight: Any,
    ) -> None:
        """Refuse a run that is not the same on every rank, or for which there are others."""
        network, ranks, current = self.network, self._ranks, get_backend()
        if ranks.size == 1 and current.ranks.size > 1:
            raise ValueError(
                f"the network is on {network.backend}, and the current backend is {current}: make "
                "it in the block of communicator, or move it with net.to(xnet.get_backend())"
            )
        if ranks.size == 1:
            return
        given = {"save": save, "checkpoint": checkpoint, "x_test": x_test}
        given |= {"sample_weight": sample_weight}
        ranks.check_same(
            **self._settings,
            **{f"whether there is {k}": v is not None for k, v in given.items()},
            seed=seed,
            resume=resume,
            dtype=network.dtype,
            network=repr([*network.layers, network.loss_layer]),
            optimizer=f"{self.optimizer!r} that took {sum(self.optimizer.taken.values())} steps",
            callbacks=len(self.callbacks),
            parameters=weights.sha256(network),
        )
        opaque = [v for v in (*network.layers, network.loss_layer) if v.opaque]
        if opaque:
            raise ValueError(
                f"{opaque[0]} says itself what it computes, so it is not known what it makes of "
                "rows that are on several ranks: write it as an operation"
            )

    def _check_parameters(self) -> None:
        """Refuse to go on with parameters that are not the same on every rank."""
        if self._ranks.size > 1:
            self._ranks.check_same(parameters=weights.sha256(self.network))

    def run(
        self,
        *,
        epochs: int | None = None,
        iterations: int | None = None,
        progress: bool | Progress = True,
        whole: bool = False,
    ) -> History:
        """Go on for so many epochs' mini-batches, or mini-batches; without either, 1 epoch.

        What ends within an epoch is recorded there, and that record is dropped when the run goes
        on. One that stopped early or diverged is over, and stays as it is.

        Parameters
        ----------
        epochs, iterations, progress
            As in `train`.
        whole
            Whether they are the whole run's, of which some may be done already.

        Returns
        -------
        History
            The run's, of all calls.

        Raises
        ------
        ValueError
            `epochs` and `iterations` were both given, or one is no count.
        CheckpointError
            The run that is resumed was to have another length, which its schedule counts on; or
            the folder cannot be written to.
        WeightsError
            The network cannot be saved.

        Examples
        --------
        >>> import numpy as np
        >>> import xnet
        >>> x, t = np.array([[0.0], [1.0]] * 50), np.array([0, 1] * 50)
        >>> nets = [xnet.TwoLayerNet(1, 4, 2, backend="numpy") for _ in range(2)]
        >>> parts, whole = (xnet.Training(net, x, t, batch_size=10) for net in nets)
        >>> for n in (3, 4):
        ...     history = parts.run(iterations=n, progress=False)
        >>> history.loss == whole.run(iterations=7, progress=False).loss
        True
        """
        history = self.history
        with self._ranks.together():
            more = _total_iterations(epochs, iterations, self._iterations_per_epoch)
        total = max(more, history.iterations) if whole else history.iterations + more
        if history.stopped in ("early stop", "diverged"):
            return history
        if self._checkpointed and self.schedule is not None:  # which may count on it
            self._settings.setdefault("iterations", total)
            checkpoints.check_same(self._settings, {"iterations": total})
        self._ranks.check_same(iterations=total)
        self._ranks.forget()
        shown = _progress(progress) if self._ranks.rank == 0 else Silent()
        self._total, self._rate = total, self.optimizer.lr
        self._written, self._steps = time.monotonic(), self._steps_taken()
        shown.start(total)
        started = time.perf_counter()
        # What one of several ranks raises ends them all: they have longer to come to a step's end.
        with _asked(GRACE if self._ranks.size == 1 else 10 * GRACE) as asked:
            try:
                self._go_on()
                history.stopped = self._loop(total, shown, asked)
            except KeyboardInterrupt:
                if self._ranks.size > 1:  # the others know nothing of it: they end with this one
                    raise
                history.stopped = "interrupted"
            finally:
                self.optimizer.lr = self._rate
                shown.stop()
                history.seconds += time.perf_counter() - started
            if history.stopped != "diverged":
                # A step that was taken while its loss is unknown would be taken again.
                if self._folder is not None and self._steps == self._steps_taken():
                    self._write(self._folder)
                self._end()
            # While it was being ended:
            if self._ranks.any(bool(asked)) and history.stopped == "finished":
                history.stopped = "interrupted"
        return history

    def _steps_taken(self) -> int:
        """How many steps the optimizer has taken, of all parameters together."""
        return sum(self.optimizer.taken.values())

    def _loop(self, total: int, progress: Progress, asked: list[int]) -> str:
        """Train until so many iterations are done, or a signal asks; returns why that ended."""
        history = self.history
        while True:
            done = history.iterations
            ends_epoch = done > 0 and done % self._iterations_per_epoch == 0
            if (ends_epoch or done == total) and history.epoch_ends[-1:] != [done]:
                if weights.not_finite(self.network):
                    return "diverged"
                better = self._record(ends_epoch)
                if self.save is not None and better and done < total:
                    weights.save(self.network, self.save)
                if ends_epoch and self._told("on_epoch"):
                    return "stopped"
            if self._epochs_since_best == self.patience:
                return "early stop"
            if done == total:
                return "finished"
            if self._ranks.agreed(bool(asked)):
                return "interrupted"
            batch = self._batch
            if batch is None:
                self._batch = batch = next(self._batches)
            loss = self._step(batch)
            # Until both are known, who goes on after Ctrl-C takes the same batch again.
            known = [(vars(self), "_batch", None), (vars(self), "_steps", self._steps_taken())]
            assign(known, (history.loss.append, loss))
            progress.advance(history)
            if not math.isfinite(loss):
                return "diverged"
            if self._told("on_step"):
                return "stopped"
            if self._folder is not None and time.monotonic() - self._written >= self._every:
                self._write(self._folder)

    def _told(self, event: str) -> bool:
        """Whether a callback, all of which are told, wants the run to stop."""
        said = [bool(getattr(callback, event)(self)) for callback in self.callbacks]
        return bool(said) and self._ranks.any(True in said)

    def _set_rate(self, schedule: Schedule) -> None:
        """Give the optimizer the learning rate of the step to come."""
        history = self.history
        epochs = len(history.epoch_ends)
        if schedule.each_step or self._scheduled is None or self._scheduled[0] != epochs:
            factor = schedule.factor(history.iterations, self._total, history)
            self._scheduled = epochs, factor
        self.optimizer.lr = self._rate * self._scheduled[1]

    def _step(self, indices: NDArray[np.int64]) -> float:
        """One mini-batch: its loss, its gradient, one update."""
        network = self.network
        before = [(v.state, name, array) for v in network.layers for name, array in v.state.items()]
        try:
            train = self._data["train"]
            places = train.places(indices)
            placed = self._ranks.placed(len(indices), places)
            with use_backend(network.backend), network.backend.running(), placed:
                x, t = train.take(indices)
                counts = () if train.weight is None else (train.weight[indices[places]],)
                if self.schedule is not None:
                    self._set_rate(self.schedule)
                if not self._numerical and self.clip is None:
                    return network.train_step(x, t, self.optimizer, *counts)
                if self._numerical:
                    gradients, loss = network.numerical_gradient(x, t), network.training_loss(x, t)
                else:
                    loss, gradients = network.loss_and_gradient(x, t, *counts)
                if self.clip is not None:
                    gradients = clipped(network.backend, gradients, self.clip)
                network.update(self.optimizer, gradients)
                return loss
        except BaseException:
            assign(before)  # the forward pass may have moved it, and the step is not whole
            raise

    def _take(self, part: str) -> tuple[list[float], float]:
        """The list for accuracies or R² on a part of the data, and what it is now."""
        network, data = self.network, self._data[part]
        if self._classes:
            return getattr(self.history, f"{part}_accuracy"), data.accuracy(network)
        return getattr(self.history, f"{part}_r2"), data.r_squared(network)

    def _record(self, ends_epoch: bool) -> bool:
        """Record how good the network is by now; whether an epoch ended that no other was above."""
        self._check_parameters()
        history, chosen = self.history, "validation" in self._data
        taken = [self._take(part) for part in self._data if part != "test" or not chosen]
        found: list[tuple[Any, Any, Any]] = []
        better = ends_epoch
        if ends_epoch and chosen:
            score = self._score()
            better = score > self._best[0]
            since = 0 if better else self._epochs_since_best + 1
            found.append((vars(self), "_epochs_since_best", since))
            if better:
                best = score, len(history.epoch_ends), self._kept()
                found.append((vars(self), "_best", best))
        appended = [(values.append, now) for values, now in taken]
        assign(found, (history.epoch_ends.append, history.iterations), *appended)
        return better

    def _score(self) -> float:
        """What validation data say of the network: the more the better."""
        data = self._data["validation"]
        if self._classes:
            return data.accuracy(self.network)
        return -data.loss(self.network)

    def _kept(self) -> list[dict[str, Array]]:
        """Copies of parameters and state."""
        kept: list[dict[str, Array]] = [{}, {}]
        for arrays, values in zip((self.network.params, self.network.state), kept, strict=True):
            arrays.keep(values)
        return kept

    def _assign(self, kept: list[dict[str, Array]]) -> None:
        params, state = kept
        assign(self.network.params.writing(params) + self.network.state.writing(state))

    def _end(self) -> None:
        """End a call: with the network that validation chose, and the file that holds it."""
        history = self.history
        _, epoch, kept = self._best
        if kept:  # no epoch is the best before one has ended, or where no loss is a number
            self._left = self._left or self._kept()
            self._assign(kept)
            history.kept_epoch = epoch
        if "validation" in self._data and "test" in self._data:
            values, now = self._take("test")
            values[:] = [now]
        self._check_parameters()
        if self.save is not None:
            weights.save(self.network, self.save)

    # -- checkpoints

    def _begin(self, found: checkpoints.Checkpoint | None) -> None:
        """Begin, or stand where a checkpoint was written if it is of this very run."""
        with self._ranks.together():
            weights.check_savable(self.network)
            if self.optimizer.opaque:
                raise CheckpointError(
                    f"{type(self.optimizer).__name__} says itself how it steps: what it remembers "
                    "is not known, and cannot be kept"
                )
        backend = self.network.backend
        self._settings |= {
            "network": json.loads(weights.architecture(self.network)),
            "dtype": self.network.dtype,
            "reproducible": backend.reproducible,
            "backend": None if backend.reproducible else backend.name,
            "optimizer": type(self.optimizer).__name__,
            "optimizer's settings": self.optimizer.settings(),
            "data": {name: checkpoints.fingerprint(part) for name, part in self._data.items()},
        }
        if found is None:
            return
        with self._ranks.together():
            if self.optimizer.taken:
                raise CheckpointError("the optimizer has taken steps: resume takes a new one")
            found.check_settings(self._settings)
        self._settings = found.facts["settings"]
        self._restore(found)

    def _write(self, folder: checkpoints.Folder) -> None:
        """Write all that the next step depends on."""
        network, optimizer = self.network, self.optimizer
        found = {"params": dict(network.params.items()), "state": dict(network.state.items())}
        score, epoch, kept = self._best
        found |= dict(zip(("best params", "best state"), kept, strict=False))
        for k in range(optimizer.slots):
            remembered = {name: arrays[k] for name, arrays in optimizer.memory.items()}
            found[f"memory {k}"] = remembered
        to_numpy = network.backend.to_numpy
        arrays = {f"{kind}.{k}": to_numpy(a) for kind, of in found.items() for k, a in of.items()}
        arrays["order"] = self._batches.order
        arrays["loss"] = np.asarray(self.history.loss, np.float64)
        if self._batch is not None:
            arrays["batch"] = self._batch
        history: dict[str, Any] = vars(self.history) | {"loss": []}
        facts: dict[str, Any] = {
            "settings": self._settings,
            "taken": optimizer.taken,
            "generator": self._batches.rng.state,
            "draws": network.draws and network.draws.state,
            "best": [score, epoch, bool(kept)],
            "epochs since best": self._epochs_since_best,
            "history": history,
        }
        folder.write(self.history.iterations, arrays, facts)
        self._written = time.monotonic()

    def _restore(self, found: checkpoints.Checkpoint) -> None:
        """Stand where a checkpoint was written."""
        network, optimizer, facts = self.network, self.optimizer, found.facts
        backend = network.backend

        def arrays(kind: str) -> dict[str, Array]:
            """Of one kind, by their names, copies of their own."""
            named = (name.partition(".") for name in found.arrays)
            keys = [key for before, _, key in named if before == kind]
            return {key: backend.asarray(found.arrays[f"{kind}.{key}"].copy()) for key in keys}

        self._assign([arrays("params"), arrays("state")])
        optimizer.trains(network)
        memory = [arrays(f"memory {k}") for k in range(optimizer.slots)]
        for name in facts["taken"]:
            optimizer.memory[name] = [of[name] for of in memory]
        optimizer.taken.update(facts["taken"])
        self._batches.order, self._batches.rng.state = found.arrays["order"], facts["generator"]
        self._batch = found.arrays.get("batch")
        if network.draws is not None:
            network.draws.state = facts["draws"]
        score, epoch, chosen = facts["best"]
        self._best = score, epoch, [arrays("best params"), arrays("best state")] * chosen
        self._epochs_since_best = facts["epochs since best"]
        vars(self.history).update(facts["history"], loss=found.arrays["loss"].tolist())
        if self.history.stopped == "early stop":  # there is nothing to go on with
            self._end()

    def _go_on(self) -> None:
        """Begin a call where the last one stopped."""
        history = self.history
        if self._left:
            self._assign(self._left)
            self._left, history.kept_epoch = [], None
        whole = [n for n in history.epoch_ends if n % self._iterations_per_epoch == 0]
        for part in ("train", "validation", "test"):
            del history.taken(part)[len(whole) :]
        history.epoch_ends[:] = whole


def _total_iterations(epochs: int | None, iterations: int | None, per_epoch: int) -> int:
    if epochs is not None and iterations is not None:
        raise ValueError("epochs and iterations were both given, expected one")
    check_length("epochs", epochs)
    check_length("iterations", iterations)
    return (epochs or 1) * per_epoch if iterations is None else iterations


@contextlib.contextmanager
def _asked(grace: float) -> Generator[list[int]]:
    """Block in which signals that would interrupt it are noted, for it to end between two steps.

    SIGTERM and SIGHUP count as Ctrl-C where they would end the program. The block is interrupted
    all the same if it goes on for longer than `grace` seconds, or at the second signal.
    """
    asked: list[int] = []
    lock, over, main = threading.Lock(), threading.Event(), threading.main_thread()

    def insist(number: int) -> None:
        if not over.wait(grace):
            with lock:
                if not over.is_set():  # by a real one, which ends a wait
                    signal.pthread_kill(main.ident or 0, number)

    def noting(handler: Any) -> Any:
        def note(number: int, frame: Any) -> None:
            try:
                handler(number, frame)
            except KeyboardInterrupt:
                if asked and not over.is_set():
                    raise
                asked.append(number)
                threading.Thread(target=insist, args=(number,), daemon=True).start()

        return note

    before: dict[int, Any] = {}
    if threading.current_thread() is main:
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, *_ENDS)}
    try:
        for number, handler in before.items():
            if number in _ENDS and handler is signal.SIG_DFL:
                signal.signal(number, noting(signal.default_int_handler))
            elif callable(handler):
                signal.signal(number, noting(handler))
        yield asked
    finally:
        with lock:
            over.set()
        for number, handler in before.items():
            if handler is not None:  # one that was not set from Python stays
                signal.signal(number, handler)


GRACE = 1.0
"""Seconds that a step has to come to its end when it is interrupted."""

_ENDS = (signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)]))


def _progress(progress: bool | Progress) -> Progress:
    if not isinstance(progress, bool):
        return progress
    return suitable() if progress else Silent()
