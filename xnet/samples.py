"""Samples and their labels on a network's backend, and mini-batches of them (§4.2.3)."""

import copy
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnet.backend import Array, use_backend
from xnet.losses import batch_and_targets
from xnet.measures import are_classes
from xnet.network import Network
from xnet.random import Generator


def minibatches(
    n: int, batch_size: int, rng: Any, replacement: bool = False
) -> Iterator[NDArray[np.int64]]:
    """Indices of mini-batches of n samples, without end.

    Parameters
    ----------
    n
        How many samples there are.
    batch_size
        How many to draw at a time.
    rng
        Source of the draws, or what `xnet.random.Generator` takes for a seed.
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
    check_length("n", n)
    check_length("batch_size", batch_size)
    return _Minibatches(n, batch_size, Generator(rng), replacement)


class _Minibatches:
    """No generator: one that Ctrl-C meets at work has ended for ever."""

    def __init__(self, n: int, batch_size: int, rng: Generator, replacement: bool) -> None:
        self.n, self.batch_size, self.rng, self.replacement = n, batch_size, rng, replacement
        self.order: NDArray[np.int64] = np.empty(0, np.int64)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return self

    def __next__(self) -> NDArray[np.int64]:
        if not self.order.size:
            before = self.rng.state
            try:
                if self.replacement:
                    return self.rng.integers(self.n, min(self.batch_size, self.n))
                self.order = self.rng.permutation(self.n)
            except BaseException:  # after Ctrl-C the next call draws the same numbers
                self.order, self.rng.state = self.order[:0], before
                raise
        order = self.order
        self.order = order[self.batch_size :]
        return order[: self.batch_size]


class Samples:
    """Data and labels on the network's backend, checked once for the whole run."""

    def __init__(self, network: Network, x: Any, t: Any, x_name: str, t_name: str) -> None:
        self.backend = network.backend
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
                # One sample tells the number of outputs; then all labels are checked against it.
                outputs = network.scores(x[:1, ...]).shape[-1]
                zeros = xp.zeros((x.shape[0], outputs), dtype=x.dtype)
                _, _, targets = batch_and_targets(zeros, t)
            except ValueError as error:
                where = "" if x_name == "x" else f"{x_name}, {t_name}: "
                raise ValueError(f"{where}{error}") from error
            self.classes = are_classes(network.backend, targets, network.loss_layer.classes)
        self.x, self.t, self.samples = x, t, x.shape[0]

    def take(self, indices: NDArray[np.int64]) -> tuple[Array, Array]:
        """Some of the samples, and their labels."""
        xp, rows = self.backend.xp, self.backend.asarray(indices)
        return xp.take(self.x, rows, axis=0), xp.take(self.t, rows, axis=0)

    def split(self, share: float, rng: Generator) -> "tuple[Samples, Samples]":
        """What is left, and a share that is drawn of each class alike."""
        labels = None
        if self.classes:
            t = self.backend.to_numpy(self.t)
            labels = t if t.ndim == 1 else t.argmax(axis=1)
        rest, held = held_out(self.samples, labels, share, rng, "validation")
        return self._part(rest), self._part(held)

    def _part(self, indices: NDArray[np.int64]) -> "Samples":
        part = copy.copy(self)
        with self.backend.running():
            part.x, part.t = self.take(indices)
        part.samples = len(indices)
        return part


def held_out(
    n: int, labels: NDArray[Any] | None, share: float, rng: Generator, name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the samples that are left, and of a share drawn of each class alike.

    `labels` (n,) are the classes, None for none; both results are in ascending order.

    Raises
    ------
    ValueError
        The share, by its `name`, is not between 0 and 1, or holds no sample, or all.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"{name} is {share}, expected a share of the training data, above 0 and below 1, or "
            "data (x, t)"
        )
    count = round(share * n)
    if not 0 < count < n:
        raise ValueError(f"{name} is {share}: of {n} samples that is {count}")
    order = rng.permutation(n)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    # Of samples in random order, or so within each class, `count` at equal distances.
    places = np.arange(n + 1, dtype=np.int64) * count // n
    held = places[1:] > places[:-1]
    return np.sort(order[~held]), np.sort(order[held])


def check_length(name: str, value: int | None) -> None:
    """Refuse what is neither None nor a whole number of at least 1."""
    if value is None:
        return
    try:
        operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected a whole number") from None
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")
