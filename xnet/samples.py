"""Samples and their labels as a network takes them, and mini-batches of them (§4.2.3)."""

import copy
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnet import partials
from xnet.arrays import labels, weights_of
from xnet.backend import Array, Backend, use_backend
from xnet.dtypes import name_of
from xnet.losses import batch_and_targets
from xnet.measures import are_classes, hits, squares
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

    Where the network's batches are spread over ranks, each rank has a shard of the samples, and all
    are numbered in the order of the ranks.

    Attributes
    ----------
    samples
        How many there are, of all ranks.
    here
        The numbers of those that are here.
    classes
        Whether labels are classes.
    weight
        How often each sample of all ranks counts, 1 on average; None for once.
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
        self.ranks = self.backend.ranks
        with self.ranks.together():
            self.x = self._checked(network, x, x_name, network.dtype)
            self.t = self._checked(network, labels(t, t_name), t_name)
            n: int = self.x.shape[0]
            if n != self.t.shape[0]:
                raise ValueError(f"{x_name} has {n} samples, {t_name} has {self.t.shape[0]}")
            self.classes = self._checked_labels(network, x_name, t_name)
            weight = None if sample_weight is None else weights_of(sample_weight, n)
        self.here = self._placed(n)
        if not self.samples:
            raise ValueError(f"{x_name} has shape {tuple(self.x.shape)}: there are no samples")
        self.classes = not self.ranks.any(not self.classes)
        self.weight = None if weight is None else _relative(self.ranks.joined(weight))

    def _placed(self, n: int) -> range:
        """The numbers of n samples that are here, among those of all ranks."""
        counts: list[int] = self.ranks.gathered(n)
        self.samples = sum(counts)
        start = sum(counts[: self.ranks.rank])
        return range(start, start + n)

    def _checked_labels(self, network: Network, x_name: str, t_name: str) -> bool:
        """Whether all labels that are here, which are checked, are of classes."""
        with use_backend(network.backend), network.backend.running():
            first = self._part(self.x, 0, min(1, self.x.shape[0]))
            try:
                # One sample tells the number of outputs; then all labels are checked against it.
                scores = network.scores(first)
                self.outputs, self.dtype = scores.shape[-1], scores.dtype
                return self._are_classes(network.loss_layer.classes)
            except ValueError as error:
                where = "" if x_name == "x" else f"{x_name}, {t_name}: "
                raise ValueError(f"{where}{error}") from error

    def _checked(
        self, network: Network, values: Any, name: str, dtype: str | None = None
    ) -> Array | Rows:
        """The rows that stay where they are, or an array on the backend, finite."""
        rows = staying(values, name, self.backend, dtype)
        found = rows or network.host_to_backend(values, name, dtype)
        if found.ndim == 0 or (found.shape[0] == 0 and self.ranks.size == 1):
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

    def places(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of these samples are here."""
        if len(self.here) == self.samples:
            return np.arange(len(indices))
        return np.nonzero((indices >= self.here.start) & (indices < self.here.stop))[0]

    def take(self, indices: NDArray[np.int64]) -> tuple[Array, Array]:
        """Those of some samples that are here, and their labels."""
        if len(self.here) < self.samples:
            indices = indices[self.places(indices)] - self.here.start
        here = self.backend.asarray(indices)
        return self._take(self.x, indices, here), self._take(self.t, indices, here)

    def _take(self, values: Array | Rows, indices: NDArray[np.int64], here: Array) -> Array:
        if isinstance(values, Rows):
            return self._finite(values.take(indices), values.name, values.numbers(indices))
        return self.backend.xp.take(values, here, axis=0)

    def parts(self) -> Iterator[tuple[Array, Array]]:
        """All samples that are here and their labels, in parts, one at least."""
        for start, stop in self._spans():
            yield self._part(self.x, start, stop), self._part(self.t, start, stop)

    def accuracy(self, network: Network) -> float:
        """`Network.accuracy` on those of all ranks."""
        classes = network.loss_layer.classes
        with use_backend(self.backend), self.backend.running():
            right = (hits(network.predict(x), t, classes) for x, t in self.parts())
            return self.ranks.total(sum(right)) / self.samples

    def loss(self, network: Network) -> float:
        """`Network.loss` on those of all ranks."""
        with use_backend(self.backend), self.backend.running():
            return self._mean_loss(network)

    def _mean_loss(self, network: Network) -> float:
        end, backend = network.loss_layer, self.backend
        if end.opaque:  # it says no more than the mean of what it is handed
            shares = (network.loss(x, t) * (x.shape[0] / self.samples) for x, t in self.parts())
            return sum(shares)
        losses: list[Array] = []
        for (x, _), targets in zip(self.parts(), self._targets(), strict=True):
            taken = end.loss.targets(backend.maths, targets)
            losses.append(backend.row_losses(end.loss, network.scores(x), taken))
        with self._all():
            return float(backend.mean(backend.xp.concat(losses)))

    def r_squared(self, network: Network) -> float:
        """`xnet.measures.r_squared` of predictions for those of all ranks."""
        with use_backend(self.backend), self.backend.running(), self._all():
            return self._explained(network)

    def _explained(self, network: Network) -> float:
        """By what is left of each row, (N,) numbers: neither predictions nor targets are kept."""
        backend = self.backend
        xp, first, same = backend.xp, None, True
        for t in self._targets():
            first = self.ranks.whole(backend, t[:1, ...])[:1, ...] if first is None else first
            same = same and bool(xp.all(t == first))
        if not self.ranks.any(not same):
            return math.nan
        mean = total(backend, self._targets, self.samples) / self.samples
        off, spread = list[Array](), list[Array]()
        for (x, _), t in zip(self.parts(), self._targets(), strict=True):
            for found, rows in zip(
                (off, spread), squares(backend, network.predict(x), t, mean), strict=True
            ):
                found.append(rows)
        unexplained, variation = (float(backend.mean(xp.concat(rows))) for rows in (off, spread))
        return 1 - unexplained / variation

    def _all(self) -> AbstractContextManager[None]:
        """Block in which all samples are one batch."""
        return self.ranks.placed(self.samples, np.arange(self.here.start, self.here.stop))

    def split(self, share: float, rng: Generator) -> "tuple[Samples, Samples]":
        """What is left, and a share that is drawn of each class alike."""
        found = self._labels() if self.classes else None
        rest, held = held_out(self.samples, found, share, rng, "validation")
        return self._chosen(rest), self._chosen(held)

    def _labels(self) -> NDArray[Any]:
        """The class of each sample, on the host."""
        found = (self.backend.to_numpy(self._part(self.t, *span)) for span in self._spans())
        here = [t if t.ndim == 1 else t.argmax(axis=1) for t in found]
        return self.ranks.joined(np.concatenate(here).astype(np.int64))

    def _chosen(self, indices: NDArray[np.int64]) -> "Samples":
        part = copy.copy(self)
        own = indices[self.places(indices)] - self.here.start
        with self.backend.running():
            here = self.backend.asarray(own)
            part.x, part.t = (
                rows.choose(own) if isinstance(rows, Rows) else self._take(rows, own, here)
                for rows in (self.x, self.t)
            )
        part.here = part._placed(len(own))
        if self.weight is not None:
            part.weight = _relative(self.weight[indices])
        return part


def total(backend: Backend, parts: Callable[[], Iterable[Array]], rows: int) -> Array:
    """The sum (C,) of so many rows of all ranks, which come in parts (n, C), more than once.

    In reproducible mode it does not depend on where the parts begin and end.
    """
    ranks, xp = backend.ranks, backend.xp
    if not backend.reproducible:
        (found,) = ranks.reduced(backend, [sum(backend.sum(part, axis=0) for part in parts())])
        return found
    scale = partials.merged(partials.sum_scale(part, axis=0) for part in parts())
    (maxima,) = ranks.reduced(backend, [scale.maxima], largest=True)
    scale = scale.agreed(maxima, rows)
    whole = partials.added(scale.partial(part) for part in parts())
    (numbers,) = ranks.reduced(backend, [xp.reshape(whole.numbers, (-1,))])
    return scale.received(xp.reshape(numbers, whole.numbers.shape)).rounded()


def _relative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """How often each sample counts, 1 on average."""
    if not weights.any():
        raise ValueError("sample_weight holds nothing but zeros: no sample counts")
    return weights / weights.mean()


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
