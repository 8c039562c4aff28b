"""Tables in files: CSV, TSV and Parquet, read in batches of rows by pyarrow.

pyarrow and not polars: it hands a CSV out block by block, so that memory does not grow with the
file, says in which row one is broken, and reads Parquet by row groups. It is imported when it is
needed. Rows are counted from 1, the header left out.
"""

import gzip
import os
import re
import zlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from xnet.errors import DatasetError, optional
from xnet.labels import classes_of, encoded, number, task_of
from xnet.schema import Schema, Task

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PARQUET = (".parquet", ".pq")
MISSING = frozenset(["", "na", "n/a", "nan", "null", "none", "?"])
"""What stands, in small letters, where a value is missing."""

BLOCK = 1 << 19
"""Bytes of a CSV that are read at a time, or a few rows of it; pyarrow reads 32 such ahead."""
LONGEST = 1 << 26
"""Bytes, at most, of a row of a CSV."""
ROWS = 1 << 14
"""Rows of a Parquet file that are read at a time."""


def _arrow(module: str = "") -> Any:
    """A module of pyarrow's, whose stubs say little."""
    return import_module(f"pyarrow{module}")


def suffix(path: Path) -> str:
    """What a file's name says that it is; that it is gzipped is left out."""
    return os.path.splitext(path.name.lower().removesuffix(".gz"))[1]


def is_table(path: Path) -> bool:
    """Whether a file's name says that it is a table."""
    return suffix(path) in (*DELIMITERS, *PARQUET)


class Batch:
    """Some rows of a table: columns of pyarrow by their names, and which row is the first."""

    def __init__(self, path: Path, columns: dict[str, Any], start: int) -> None:
        self.path, self.columns, self.start = path, columns, start

    def refuse(self, name: str, at: int, what: str) -> NoReturn:
        """Raise what is wrong with a value."""
        raise DatasetError(f"{self.path}: row {self.start + at}, column {name!r}: {what}")

    def values(self, name: str) -> Any:
        """A column, of which no value is missing: texts without spaces around, or numbers."""
        pa, compute = _arrow(), _arrow(".compute")

        column = self.columns[name]
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = compute.utf8_trim_whitespace(column)
        if column.null_count:
            self.refuse(name, column.is_null().to_pylist().index(True), "the value is missing")
        return column

    def numbers(self, names: Sequence[str]) -> NDArray[Any]:
        """Columns as (N, D): float64, or uint8 where all are bytes.

        Raises
        ------
        DatasetError
            A value is missing, no number, or infinite.
        """
        rows = len(self.columns[names[0]]) if names else 0
        found = np.empty((len(names), rows))
        for row, name in zip(found, names, strict=True):
            row[:] = self._floats(name)
            if not np.isfinite(row).all():
                at = int(np.flatnonzero(~np.isfinite(row))[0])
                self._no_number(name, at, row[at])
        return found.T

    def _floats(self, name: str) -> NDArray[np.float64]:
        pa, compute = _arrow(), _arrow(".compute")

        column = self.values(name)
        try:
            return compute.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        except pa.ArrowException:
            at = next((k for k, v in enumerate(column.to_pylist()) if number(v) is None), 0)
            self._no_number(name, at, column[at].as_py())

    def _no_number(self, name: str, at: int, value: Any) -> NoReturn:
        if str(value).lower() in MISSING:
            self.refuse(name, at, f"the value is missing ({str(value)!r}), expected a number")
        shown = repr(value) if isinstance(value, str) else str(value)
        self.refuse(name, at, f"{shown:.60} is no finite number, which is expected")

    def different(self, name: str) -> tuple[list[Any], NDArray[np.int64]]:
        """The different values of a column, and the place of each row's among them."""
        found = self.values(name).dictionary_encode()
        values: list[Any] = found.dictionary.to_pylist()
        places = found.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        for k, value in enumerate(values):
            if str(value).lower() in MISSING:
                at = int(np.flatnonzero(places == k)[0])
                self.refuse(name, at, f"the label is missing ({str(value)!r})")
        return values, places

    def encoded(self, name: str, classes: tuple[str, ...]) -> NDArray[np.int64]:
        """A column's classes, (N,)."""
        values, places = self.different(name)

        def refuse(k: int, what: str) -> NoReturn:
            self.refuse(name, int(np.flatnonzero(places == k)[0]), what)

        return encoded(values, places, classes, refuse)


class Table:
    """A table in a file, of which batches of rows can be read.

    Parameters
    ----------
    path
        A file of one of `DELIMITERS`, gzipped (``.gz``) or not, or of `PARQUET`.

    Attributes
    ----------
    names
        The names of its columns.

    Raises
    ------
    DatasetError
        The file cannot be read, is empty or damaged, or a column has no name, or another's.
    """

    def __init__(self, path: Path) -> None:
        with optional(f"reading {path.name}", "pyarrow", "data"):
            _arrow()
        self.path = path
        try:
            if not path.stat().st_size:
                raise DatasetError(f"{path} is empty, expected a header and rows")
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
        self._delimiter, self._block = DELIMITERS.get(suffix(path)), BLOCK
        with self._errors():
            if self._delimiter is not None:
                self._look()
            self._columns: list[str] = self._header()
        self.names = [name.strip() for name in self._columns]
        for k, name in enumerate(self.names, start=1):
            if not name:
                raise DatasetError(f"{path}: column {k} has no name in the header")
        for name, count in Counter(self.names).items():
            if count > 1:
                raise DatasetError(f"{path}: {count} columns are named {name!r}")

    def _look(self) -> None:
        """See how long rows are, and whether semicolons stand for commas, as spreadsheets have it.

        Raises
        ------
        DatasetError
            It begins with more than `LONGEST` bytes that end no line.
        """
        opened = gzip.open if self.path.name.lower().endswith(".gz") else open
        with opened(self.path, "rb") as file:
            first, second = (file.readline(LONGEST) for _ in range(2))
        if len(first) == LONGEST:
            raise DatasetError(f"{self.path} is no table: its first line does not end")
        self._block = max(BLOCK, 4 * len(first), 4 * len(second))
        if self._delimiter == "," and b"," not in first and b";" in first:
            self._delimiter = ";"

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """These columns, some rows at a time, none without a row."""
        columns = [self._columns[self.names.index(name)] for name in names]
        start = 1
        with self._errors():
            for batch in self._batches(columns):
                if batch.num_rows:
                    yield Batch(self.path, dict(zip(names, batch.columns, strict=True)), start)
                start += batch.num_rows

    def _header(self) -> list[str]:
        if self._delimiter is None:
            with _arrow(".parquet").ParquetFile(str(self.path)) as file:
                return list(file.schema_arrow.names)
        return list(self._csv().schema.names)

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        if self._delimiter is not None:
            yield from self._csv(columns)
            return
        # Unless it is told not to, it keeps every part of the file that it has read.
        with _arrow(".parquet").ParquetFile(str(self.path), pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=ROWS, columns=columns, use_threads=False):
                yield batch.select(columns)  # in this order

    def _csv(self, columns: Sequence[str] = ()) -> Any:
        """These columns as texts; all, of any type, where none is named."""
        pa, csv = _arrow(), _arrow(".csv")
        return csv.open_csv(
            str(self.path),
            # One thread: what is wrong with a row then names it, and nothing is read ahead.
            read_options=csv.ReadOptions(use_threads=False, block_size=self._block),
            parse_options=csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns)
            ),
        )

    @contextmanager
    def _errors(self) -> Generator[None]:
        """What pyarrow raises of a damaged file, as one line of ours."""
        pa = _arrow()
        try:
            yield
        except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
            said = " ".join(str(error).split())
            if found := re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", said):
                row, expected, got = map(int, found.groups())
                said = f"row {row - 1} has {got} values, expected {expected} as in the header"
            raise DatasetError(f"{self.path} cannot be read as a table: {said:.200}") from error


# -- what a network takes


def read(
    path: Path, labels: Sequence[str], task: str | None, ignored: Sequence[str]
) -> tuple[NDArray[Any], NDArray[Any], Schema]:
    """All of a table: x, t and what they are called; see `xnet.datasets.read`."""
    table = Table(path)
    for name in (*labels, *ignored):
        if name not in table.names:
            raise DatasetError(f"{path}: no column is named {name!r}: {_listed(table.names)}")
    if not labels:
        raise DatasetError(f"{path}: name the column that is to be learnt: {_listed(table.names)}")
    features = tuple(n for n in table.names if n not in (*labels, *ignored))
    if not features:
        raise DatasetError(f"{path}: no column is left to learn {labels[0]!r} from")
    schema = Schema(features, tuple(labels), None, tuple(ignored))
    batches, blocks = list[Batch](), list[NDArray[Any]]()
    for batch in table.batches((*features, *labels)):
        blocks.append(_bytes_if_pixels(schema, batch.numbers(features)))
        kept = {name: batch.columns[name] for name in labels}
        batches.append(Batch(path, kept, batch.start))
    if not batches:
        raise DatasetError(f"{path} has a header and no rows")
    x, where = np.concatenate(blocks), f"{path}, column {labels[0]!r}"
    if task is None and len(labels) == 1:
        task = task_of(_different(batches, labels[0]), len(x), where)
    if task == Task.classification and len(labels) > 1:
        raise DatasetError(f"{path}: classes are of one column, got {_listed(labels)}")
    if task == Task.classification:
        classes = classes_of(_different(batches, labels[0]), where)
        schema = Schema(features, tuple(labels), classes, tuple(ignored))
    return x, np.concatenate([_labels(batch, schema) for batch in batches]), schema


def chunks(
    path: Path, schema: Schema | None, labelled: bool
) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
    """A table as a network of this schema takes it, some rows at a time: x, and t if asked for.

    Columns are found by their names. Where there is no schema, all are features, in their order.
    """
    table = Table(path)
    schema = schema or Schema(tuple(table.names))
    features = schema.features
    if features is None:
        raise DatasetError(f"{path} is a table, and the network was trained on none")
    wanted = (*features, *(schema.labels if labelled else ()))
    for name in wanted:
        if name not in table.names:
            raise DatasetError(
                f"{path}: column {name!r}, which was there in training, is missing: "
                f"{_listed(table.names)}"
            )
    known = {*features, *schema.labels, *schema.ignored}
    for name in table.names:
        if name not in known:
            raise DatasetError(
                f"{path}: column {name!r} was not there in training, expected {_listed(features)}"
            )
    some = False
    for batch in table.batches(wanted):
        some = True
        yield batch.numbers(features), _labels(batch, schema) if labelled else None
    if not some:
        raise DatasetError(f"{path} has a header and no rows")


def _labels(batch: Batch, schema: Schema) -> NDArray[Any]:
    """(N,) classes, or (N, C) numbers."""
    if schema.classes is None:
        return batch.numbers(schema.labels)
    return batch.encoded(schema.labels[0], schema.classes)


def _different(batches: Sequence[Batch], name: str) -> list[Any]:
    return list(dict.fromkeys(v for batch in batches for v in batch.different(name)[0]))


def _bytes_if_pixels(schema: Schema, x: NDArray[Any]) -> NDArray[Any]:
    """An eighth of the memory, where there is nothing else in it."""
    if not schema.pixels or x.min() < 0 or x.max() > 255:
        return x
    narrow = x.astype(np.uint8)
    return narrow if np.array_equal(narrow, x) else x


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:6]))
    return f"{shown}, ... ({len(names)} columns)" if len(names) > 6 else shown
