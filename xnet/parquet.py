"""Parquet files larger than memory, as memory maps, whose rows can be drawn in any order.

A row of a Parquet file is found only by decoding all before it in its row group, and mini-batches
are drawn at random. So the file is decoded once, some rows at a time, to a file of plain numbers.
"""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnet.arrays import stacked
from xnet.errors import DatasetError, optional
from xnet.frames import table_of
from xnet.rows import PART

__all__ = ["unpacked"]


def unpacked(
    path: str | os.PathLike[str],
    columns: str | Sequence[str] | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
) -> NDArray[Any]:
    """Columns of a Parquet file, unpacked to a memory map in a temporary file.

    That file takes rows × columns × bytes of a number on the disk, until the array is no longer
    used: it has no name, and goes with the process if not before. In memory there are some MB.

    Parameters
    ----------
    path
        The file.
    columns
        Names of columns, in the order wanted; None for all. Or one name, for labels.
    folder
        Where the temporary file is; None for the system's folder, which may be in memory.

    Returns
    -------
    ndarray
        (N, D), or (N,) of one name, read-only, of the dtype that NumPy finds for all the columns.

    Raises
    ------
    DatasetError
        The file cannot be read or is damaged, has no such column or no rows, the disk is full, or
        PyArrow is not installed.
    ValueError
        A value is missing; the message says in which column and row, from 0.
    TypeError
        A column holds no real numbers.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import pyarrow as pa
    >>> import pyarrow.parquet
    >>> import xnet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "fruit.parquet")
    ...     table = pa.table({"weight": [150.0, 200.0], "price": [1.5, 2.5], "kind": [0, 1]})
    ...     pyarrow.parquet.write_table(table, path)
    ...     x = xnet.parquet.unpacked(path, ["weight", "price"])
    ...     t = xnet.parquet.unpacked(path, "kind")
    >>> type(x).__name__, x.tolist(), t.tolist()
    ('memmap', [[150.0, 1.5], [200.0, 2.5]], [0, 1])
    """
    with optional("reading Parquet", "pyarrow", "data"):
        import pyarrow as pa
        from pyarrow import parquet
    arrow: Any = pa  # which has no types
    try:
        with parquet.ParquetFile(path) as file:
            return _unpacked(file, path, columns, folder)
    except (arrow.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise DatasetError(f"{path} cannot be unpacked: {said:.200}") from error


def _unpacked(
    file: Any, path: Any, columns: str | Sequence[str] | None, folder: Any
) -> NDArray[Any]:
    there: list[str] = file.schema_arrow.names
    names = [columns] if isinstance(columns, str) else list(columns or there)
    for name in names:
        if name not in there:
            raise DatasetError(f"{path}: no column is named {name!r}: there are {there}")
    rows = file.metadata.num_rows
    if not rows:
        raise DatasetError(f"{path} has no rows")

    def numbers(table: Any, start: int = 0) -> NDArray[Any]:
        found: Any = table_of(table.select(names))  # in this order
        return stacked(found, str(path), start)

    dtype, done = numbers(file.schema_arrow.empty_table()).dtype, 0
    with tempfile.TemporaryFile(dir=folder) as unnamed:
        size = max(1, PART // len(names))
        for batch in file.iter_batches(batch_size=size, columns=names, use_threads=False):
            # Written, not assigned to a map: of a full disk that would hear as it crashes.
            unnamed.write(np.ascontiguousarray(numbers(batch, done), dtype).tobytes())
            done += batch.num_rows
        unnamed.flush()
        shape = (rows,) if isinstance(columns, str) else (rows, len(names))
        return np.memmap(unnamed, dtype, "r", shape=shape)
