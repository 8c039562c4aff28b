"""Processes that compute together: what they agree on, and where the rows of a batch are.

A *rank* is one of `size` processes that run the same program. Each has a *shard* of the data, and
of every batch the rows that are in its shard; what is computed from all rows, as a mean or a
gradient, is reduced over the ranks. Here is what that takes, and the rank that is alone, of which
all of it is trivial; `xnet.distributed` has the ranks of MPI.

Every method but `count` is *collective*: all ranks call it, in the same order.
"""

import contextlib
import json
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

from xnet.errors import RankError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers: TypeAlias = NDArray[np.int64]

__all__ = ["ALONE", "Batch", "Ranks", "Traffic"]

Array: TypeAlias = Any


@dataclass(frozen=True)
class Batch:
    """A batch whose rows are on several ranks.

    Parameters
    ----------
    count
        Rows that all ranks have together.
    places
        Which of them are here: int64, ascending.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet.ranks import Batch
    >>> Batch(5, np.array([1, 4])).places.tolist()
    [1, 4]
    """

    count: int
    places: "Numbers"


@dataclass
class Traffic:
    """What one rank has handed over to be reduced or gathered.

    Attributes
    ----------
    messages
        How many times.
    bytes
        Of numbers, in all. What the network moves for each depends on the library's algorithm: a
        ring sends and receives 2 (P - 1) / P times as many on each of P ranks.
    seconds
        Spent in handing over and waiting.

    Examples
    --------
    >>> from xnet.ranks import Traffic
    >>> Traffic()
    Traffic(messages=0, bytes=0, seconds=0.0)
    """

    messages: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Ranks:
    """One rank alone; the base of those that are several.

    Attributes
    ----------
    rank, size
        This one's number, from 0, and how many there are.
    traffic
        What was handed over so far.
    device_aware
        Whether `reduce` takes arrays of a backend's device; else they go by way of the host.

    Examples
    --------
    >>> from xnet.ranks import ALONE
    >>> ALONE.size, ALONE.gathered("here"), ALONE.total(3)
    (1, ['here'], 3)
    """

    rank: int = 0
    size: int = 1
    device_aware: bool = False
    batch: Batch | None = None
    _placed: bool = False
    _asked: bool = False
    _asking: bool = False

    def __init__(self) -> None:
        self.traffic = Traffic()

    # -- what the ranks of a library do otherwise

    def gather(self, content: bytes) -> list[bytes]:
        """What each rank has to say, by rank."""
        return [content]

    def reduce(self, array: Any, largest: bool) -> Any:
        """The sums over the ranks, element by element, or the largest; 1-d, of floats, its own."""
        return array

    # -- what follows from these

    def gathered(self, value: Any) -> list[Any]:
        """Each rank's value, as JSON has it."""
        if self.size == 1:
            return [value]
        said = json.dumps(value, default=_plain).encode()
        return [json.loads(content) for content in self.gather(said)]

    def first(self, make: Callable[[], bytes | None]) -> bytes | None:
        """What rank 0 makes; None where that does."""
        made = make() if self.rank == 0 else None
        if self.size == 1:
            return made
        found = self.gather(b"" if made is None else b"+" + made)[0]
        return found[1:] if found else None

    def joined(self, array: "NDArray[Any]") -> "NDArray[Any]":
        """The rows of all ranks, those of rank 0 first: arrays (n, ...) of the host."""
        if self.size == 1:
            return array
        import numpy as np

        kinds = self.gathered([array.dtype.str, array.shape])
        shapes = {str(shape[1:]) for _, shape in kinds if shape[0]}
        if len(shapes) > 1:
            raise agreed_error(
                RankError(f"rows are of shapes {', '.join(sorted(shapes))} on ranks")
            )
        parts = self.gather(np.ascontiguousarray(array).tobytes())
        found = [
            np.frombuffer(part, dtype).reshape(shape)
            for part, (dtype, shape) in zip(parts, kinds, strict=True)
            if shape[0]
        ]
        return np.concatenate(found) if found else array

    def whole(self, backend: Any, rows: Array) -> Array:
        """`joined` for arrays of a backend."""
        return rows if self.size == 1 else backend.asarray(self.joined(backend.to_numpy(rows)))

    def total(self, n: int) -> int:
        """The sum of whole numbers."""
        return n if self.size == 1 else sum(self.gathered(n))

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return bool(self.total(int(flag)))

    def forget(self) -> None:
        """Begin anew with what `agreed` is asked; no message."""
        self._asked = self._asking = False

    def agreed(self, flag: bool) -> bool:
        """Whether it was so on any rank by the last reduction: no message of its own.

        So all ranks hear of it at the same step, the one after it was first so.
        """
        if self.size == 1:
            return flag
        self._asking = self._asking or flag
        return self._asked

    def reduced(self, backend: Any, parts: list[Array], largest: bool = False) -> list[Array]:
        """The sums, or the largest, of 1-d arrays of one dtype, all in one message.

        Parameters
        ----------
        backend
            Whose arrays they are.
        parts
            As long on each rank.
        largest
            The largest instead of the sums.
        """
        import numpy as np

        if self.size == 1:
            return parts
        xp = backend.xp
        like = {"dtype": parts[0].dtype, "device": parts[0].device}
        flag = xp.full((1,), float(self._asking), **like)
        array = xp.concat([*parts, flag])
        if not self.device_aware:
            array = np.require(backend.to_numpy(array), requirements="W")
        backend.synchronize()
        found = backend.asarray(self.reduce(array, largest))
        self._asked = bool(found[-1] > 0)
        ends = [*accumulate(part.shape[0] for part in parts)]
        return [found[i:j] for i, j in zip([0, *ends[:-1]], ends, strict=True)]

    # -- batches

    def begin(self, rows: int) -> int:
        """Begin a batch of which so many rows are here: how many there are on all ranks.

        Their places are those that `placed` said; else a rank's follow those of the one before.
        """
        if self.size == 1:
            return rows
        if not self._placed:
            import numpy as np

            counts: list[int] = self.gathered(rows)
            start = sum(counts[: self.rank])
            self.batch = Batch(sum(counts), np.arange(start, start + rows))
        return self.count(rows)

    def count(self, rows: int) -> int:
        """How many rows the batch has of which so many are here; no message.

        Raises
        ------
        RankError
            It is not the batch that was begun.
        """
        if self.size == 1:
            return rows
        if self.batch is None or len(self.batch.places) != rows:
            raise RankError(
                f"{rows} rows are of no batch that these ranks have begun: what is reduced over "
                "ranks is asked of a network, not of its layers alone"
            )
        return self.batch.count

    def placed(self, count: int, places: "Numbers") -> AbstractContextManager[None]:
        """Block in which batches have `count` rows, of which these are here."""
        return contextlib.nullcontext() if self.size == 1 else self._placing(count, places)

    @contextlib.contextmanager
    def _placing(self, count: int, places: "Numbers") -> Generator[None]:
        self.batch, self._placed = Batch(count, places), True
        try:
            yield
        finally:
            self._placed = False

    # -- agreement

    @contextlib.contextmanager
    def together(self) -> Generator[None]:
        """Block that each rank runs by itself: if it fails on one, it raises on every one.

        Raises
        ------
        RankError
            On the ranks where it did not fail: what was raised on the first of the others.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            if self.size == 1:
                raise
            error = raised
        if self.size > 1:
            said = None if error is None else f"{type(error).__name__}: {error}"
            failed = [(rank, text) for rank, text in enumerate(self.gathered(said)) if text]
            if error is not None:
                raise agreed_error(error, failed[0][0])
            if failed:
                raise agreed_error(RankError(f"rank {failed[0][0]}: {failed[0][1]}"), failed[0][0])

    def check_same(self, **facts: Any) -> None:
        """Refuse facts, by their names, that are not the same on every rank.

        Raises
        ------
        RankError
            On every rank: which fact differs, and what it is on which ranks.
        """
        if self.size == 1:
            return
        mine = {name: json.dumps(fact, default=_plain) for name, fact in facts.items()}
        said = self.gathered(mine)
        for name in facts:
            ranks: dict[str, list[int]] = {}
            for rank, of in enumerate(said):
                ranks.setdefault(of.get(name, "unknown"), []).append(rank)
            if len(ranks) > 1:
                where = ", ".join(f"{v} on {_named(k)}" for v, k in ranks.items())
                raise agreed_error(RankError(f"{name} is not the same on all ranks: {where}"))

    def span(self, n: int) -> range:
        """Of n things the share of this rank: as many as the others', or one more."""
        quotient, left = divmod(n, self.size)
        start = self.rank * quotient + min(self.rank, left)
        return range(start, start + quotient + (self.rank < left))


def _plain(value: Any) -> Any:
    """Of NumPy's numbers Python's own."""
    return value.item()


def _named(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:4])) + (", ..." if len(ranks) > 4 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"


def agreed_error(error: Exception, rank: int = 0) -> Exception:
    """The error, known to be raised on every rank: a program may handle it and go on.

    `rank` is the one that is to say it, if it is said once.
    """
    error.__dict__["speaker"] = rank
    return error


def is_agreed(error: BaseException) -> bool:
    """Whether an error is raised on every rank."""
    return "speaker" in error.__dict__


def speaker(error: BaseException) -> int:
    """The rank that is to say an error which every rank raises."""
    return error.__dict__.get("speaker", 0)


ALONE = Ranks()
"""The rank of a program that is one process."""
