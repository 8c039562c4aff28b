"""Samples that stay where they are: rows of them are fetched, and converted, when they are needed.

A memory map stays on its disk, and so does whatever else can be sliced by rows and by arrays of row
numbers but is no array in memory: datasets of h5py and zarr, `xnet.parquet.Parquet`, and arrays of
Dask that are yet to be computed. An array in memory stays as it is if what a network makes of it
would take more than `LARGE` bytes beside it.
"""

import math
import mmap
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnet.arrays import device_of, on_host
from xnet.backend import Array, Backend
from xnet.dtypes import name_of

LARGE = 1 << 30
"""Bytes up to which an array in memory is converted as a whole: fetching takes longer."""

PART = 1 << 22
"""Numbers of a part in which all rows are gone through: 32 MiB in float64."""


ARRAY: Any = np.ndarray
TUPLE: Any = tuple
"""Untyped, for what is of one of them is so of no known kind."""


class Rows:
    """Rows of an array, or of what is like one, that stay where they are until they are fetched.

    Parameters
    ----------
    values
        What can be sliced by rows, and by sorted arrays of row numbers.
    name
        What errors call it.
    backend, dtype
        What the rows that are fetched become arrays of; dtype None keeps their own.
    chosen
        The numbers of those that are meant, in their order; None for all.
    """

    def __init__(
        self,
        values: Any,
        name: str,
        backend: Backend,
        dtype: str | None,
        chosen: NDArray[np.int64] | None = None,
    ) -> None:
        self.values, self.name, self.backend, self.dtype = values, name, backend, dtype
        self.chosen = chosen
        count = values.shape[0] if chosen is None else len(chosen)
        self.shape: tuple[int, ...] = (count, *values.shape[1:])

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    def numbers(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of `values` that these of the rows meant are."""
        return indices if self.chosen is None else self.chosen[indices]

    def take(self, indices: NDArray[np.int64]) -> Array:
        """Some of the rows, fetched."""
        # Some stores take row numbers only if they rise, and all are the faster for it.
        rows, back = np.unique(self.numbers(indices), return_inverse=True)
        return self._fetched(on_host(self.values[rows], self.name)[back])

    def part(self, start: int, stop: int) -> Array:
        """The rows from `start` to before `stop`, fetched."""
        if self.chosen is not None:
            return self.take(np.arange(start, stop))
        return self._fetched(self.values[start:stop])

    def _fetched(self, values: Any) -> Array:
        with self.backend.running():
            return self.backend.asarray(values, self.dtype, self.name)

    def through(self, function: Callable[[Array], Array]) -> Array:
        """What a function makes of all rows, part by part, as one array of the backend."""
        with self.backend.running():
            parts = [
                function(rows.part(*span))
                for rows in self._computed()
                for span in spans(rows.shape)
            ]
            return self.backend.xp.concat(parts)

    def _computed(self) -> Iterator["Rows"]:
        """All rows; of Dask's whole chunks at a time, for each slice of one computes it again."""
        chunks: Any = getattr(self.values, "chunks", None) if self.chosen is None else None
        if not (isinstance(chunks, TUPLE) and chunks and isinstance(chunks[0], TUPLE)):
            yield self  # a store's, if it has chunks, are of one size
            return
        for start, stop in _whole(chunks[0], _rows_of_part(self.shape)):
            values = on_host(self.values[start:stop], self.name)
            yield Rows(values, self.name, self.backend, self.dtype)

    def choose(self, indices: NDArray[np.int64]) -> "Rows":
        """These of the rows alone."""
        return Rows(self.values, self.name, self.backend, self.dtype, self.numbers(indices))


def staying(values: Any, name: str, backend: Backend, dtype: str | None = None) -> Rows | None:
    """`values` as rows to be fetched, if they should stay where they are; else None.

    Parameters
    ----------
    values
        Whatever a network is handed.
    name
        What errors call it.
    backend, dtype
        What the network would make of them; dtype None for their own.
    """
    if isinstance(values, Rows):
        return values
    if not isinstance(values, ARRAY):
        stays = _is_sliceable(values)
    elif values.ndim < 2:
        return None
    else:
        free = backend.owns(values) and dtype in (None, name_of(values))
        made = values.size * np.dtype(dtype or values.dtype).itemsize
        stays = not free and (made > LARGE or is_mapped(values))
    return Rows(values, name, backend, dtype) if stays else None


def is_mapped(array: NDArray[Any]) -> bool:
    """Whether a NumPy array's memory is a file's."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


def spans(shape: tuple[int, ...], width: int = 1) -> Iterator[tuple[int, int]]:
    """Where parts of so many rows begin and end, each of about `PART` numbers.

    One at least, which is empty where there are no rows.

    Parameters
    ----------
    shape
        Of all the rows.
    width
        Numbers that are made of each row, where these are more.
    """
    step = _rows_of_part(shape, width)
    for start in range(0, max(1, shape[0]), step):
        yield start, min(start + step, shape[0])


def _rows_of_part(shape: tuple[int, ...], width: int = 1) -> int:
    return max(1, PART // max(1, width, math.prod(shape[1:])))


def _whole(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Where groups of chunks of these sizes begin and end: of `most` rows, or of one chunk."""
    start = stop = 0
    for size in sizes:
        if start < stop and stop + size - start > most:
            yield start, stop
            start = stop
        stop += size
    if start < stop:
        yield start, stop


def _is_sliceable(values: Any) -> bool:
    """Whether it is like an array, of at least two axes and one row, whose rows can be fetched."""
    shape: Any = getattr(values, "shape", None)
    axes = len(shape) if isinstance(shape, TUPLE) else 0
    if axes < 2 or not hasattr(values, "dtype") or device_of(values) is not None:
        return False
    try:
        known = tuple(map(operator.index, shape))
        return bool(known[0]) and values[np.zeros(1, np.int64)].shape[1:] == known[1:]
    except (TypeError, ValueError, LookupError, NotImplementedError):
        return False
