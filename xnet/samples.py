"""Samples and their labels as a network takes them, and mini-batches of them (§4.2.3)."""

import copy
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnet.arrays import labels, weights_of
from xnet.backend import Array, use_backend
from xnet.dtypes import name_of
from xnet.losses import batch_and_targets
from xnet.measures import are_classes, explained
from xnet.network import Network
from xnet.random import Generator
from xnet.rows import Rows, spans, staying

__all__ = ["minibatches"]


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

    Examples
    --------
    >>> import xnet
    >>> batches = xnet.samples.minibatches(5, 2, rng=0)
    >>> [next(batches).tolist() for _ in range(3)]
    [[3, 2], [1, 0], [4]]
    >>> drawn = xnet.samples.minibatches(5, 2, rng=0, replacement=True)
    >>> [next(drawn).tolist() for _ in range(3)]
    [[2, 0], [0, 4], [4, 0]]
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
    """Data and labels for a network, checked.

    What is moved to the network's backend as a whole is checked once for the whole run. What stays
    where it is, see `xnet.rows`, is checked as it is fetched.

    Attributes
    ----------
    samples
        How many there are.
    classes
        Whether labels are classes.
    """

    def __init__(
        self,
        network: Network,
        x: Any,
        t: Any,
        x_name: str,
        t_name: str,
        sample_weight: Any = None,
    ) -> None:
        self.backend = network.backend
        self.x = self._checked(network, x, x_name, network.dtype)
        self.t = self._checked(network, labels(t, t_name), t_name)
        self.samples: int = self.x.shape[0]
        if self.samples != self.t.shape[0]:
            raise ValueError(f"{x_name} has {self.samples} samples, {t_name} has {self.t.shape[0]}")
        with use_backend(network.backend), network.backend.running():
            first = self._part(self.x, 0, 1)
            try:
                # One sample tells the number of outputs; then all labels are checked against it.
                scores = network.scores(first)
                self.outputs, self.dtype = scores.shape[-1], scores.dtype
                self.classes = self._are_classes(network.loss_layer.classes)
            except ValueError as error:
                where = "" if x_name == "x" else f"{x_name}, {t_name}: "
                raise ValueError(f"{where}{error}") from error
        self.weight = None if sample_weight is None else _weights(sample_weight, self.samples)

    def _checked(
        self, network: Network, values: Any, name: str, dtype: str | None = None
    ) -> Array | Rows:
        """The rows that stay where they are, or an array on the backend, finite."""
        rows = staying(values, name, self.backend, dtype)
        found = rows or network.host_to_backend(values, name, dtype)
        if found.ndim == 0 or found.shape[0] == 0:
            raise ValueError(f"{name} has shape {tuple(found.shape)}: there are no samples")
        return found if rows else self._finite(found, name, range(found.shape[0]))

    def _finite(self, array: Array, name: str, numbers: Any) -> Array:
        """The array, unless one of its rows, which have these numbers, holds NaN or infinity."""
        xp = self.backend.xp
        with self.backend.running():
            if xp.isdtype(array.dtype, "real floating"):
                finite = xp.isfinite(array)
                if not bool(xp.all(finite)):
                    wrong = ~xp.all(xp.reshape(finite, (array.shape[0], -1)), axis=1)
                    row = numbers[int(xp.argmax(xp.astype(wrong, xp.int64)))]
                    kind = name_of(array)
                    raise ValueError(f"{name} holds NaN or infinity as {kind} in row {row}")
        return array

    def _are_classes(self, classes: bool) -> bool:
        """Whether all labels are of classes; all that are here are checked."""
        found = True
        for targets in self._targets():
            found = found and are_classes(self.backend, targets, classes)
            if isinstance(self.t, Rows) and (classes or not found):
                break  # the others are checked as they are fetched
        return found

    def _targets(self) -> Iterator[Array]:
        """Labels as targets (N, C), in parts."""
        for start, stop in self._spans():
            zeros = self.backend.xp.zeros((stop - start, self.outputs), dtype=self.dtype)
            yield batch_and_targets(zeros, self._part(self.t, start, stop))[2]

    def _spans(self) -> Iterator[tuple[int, int]]:
        return spans(self.x.shape, self.outputs)

    def _part(self, values: Array | Rows, start: int, stop: int) -> Array:
        if isinstance(values, Rows):
            numbers = values.numbers(np.arange(start, stop))
            return self._finite(values.part(start, stop), values.name, numbers)
        with self.backend.running():
            return values[start:stop, ...]

    def take(self, indices: NDArray[np.int64]) -> tuple[Array, Array]:
        """Some of the samples, and their labels."""
        here = self.backend.asarray(indices)
        return self._take(self.x, indices, here), self._take(self.t, indices, here)

    def _take(self, values: Array | Rows, indices: NDArray[np.int64], here: Array) -> Array:
        if isinstance(values, Rows):
            return self._finite(values.take(indices), values.name, values.numbers(indices))
        return self.backend.xp.take(values, here, axis=0)

    def parts(self) -> Iterator[tuple[Array, Array]]:
        """All samples and their labels, in parts."""
        for start, stop in self._spans():
            yield self._part(self.x, start, stop), self._part(self.t, start, stop)

    def accuracy(self, network: Network) -> float:
        """`Network.accuracy` on all of them."""
        right = (round(network.accuracy(x, t) * x.shape[0]) for x, t in self.parts())
        return sum(right) / self.samples

    def loss(self, network: Network) -> float:
        """`Network.loss` on all of them."""
        shares = (network.loss(x, t) * (x.shape[0] / self.samples) for x, t in self.parts())
        return sum(shares)

    def r_squared(self, network: Network) -> float:
        """`xnet.measures.r_squared` of predictions for all of them."""
        with use_backend(self.backend), self.backend.running():
            predicted = (network.predict(x) for x, _ in self.parts())
            return explained(
                self.backend, self._targets(), zip(predicted, self._targets(), strict=True)
            )

    def split(self, share: float, rng: Generator) -> "tuple[Samples, Samples]":
        """What is left, and a share that is drawn of each class alike."""
        found = self._labels() if self.classes else None
        rest, held = held_out(self.samples, found, share, rng, "validation")
        return self._chosen(rest), self._chosen(held)

    def _labels(self) -> NDArray[Any]:
        """The class of each sample, on the host."""
        found = (self.backend.to_numpy(self._part(self.t, *span)) for span in self._spans())
        return np.concatenate([t if t.ndim == 1 else t.argmax(axis=1) for t in found])

    def _chosen(self, indices: NDArray[np.int64]) -> "Samples":
        part = copy.copy(self)
        with self.backend.running():
            here = self.backend.asarray(indices)
            part.x, part.t = (
                rows.choose(indices) if isinstance(rows, Rows) else self._take(rows, indices, here)
                for rows in (self.x, self.t)
            )
        part.samples = len(indices)
        if self.weight is not None:
            part.weight = _weights(self.weight[indices], part.samples)
        return part


def _weights(values: Any, samples: int) -> NDArray[np.float64]:
    """How often each sample counts, on the host, 1 on average."""
    found = weights_of(values, samples)
    if not found.any():
        raise ValueError("sample_weight holds nothing but zeros: no sample counts")
    return found / found.mean()


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
