"""Tables and series of other libraries: pandas, polars, PyArrow, and what speaks Arrow.

NumPy makes an array of a column as the column's own ``__array__`` says. Here is what that does not
say: a missing value would come as NaN, a category as an object. No library is imported for it: if
an object of one is here, so is the library.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, TypeAlias

Columns: TypeAlias = list[tuple[str | None, Any]]
"""Names and columns; a series has no name, for it stands alone."""


class Pandas:
    """pandas, in which NaN of a NumPy dtype is a number that is none, as in NumPy."""

    fill: ClassVar[str] = "fillna(0)"
    one_hot: ClassVar[str] = "pandas.get_dummies"

    @staticmethod
    def kinds(pandas: Any) -> tuple[type, ...]:
        """The classes of its tables and series."""
        return pandas.DataFrame, pandas.Series, pandas.api.extensions.ExtensionArray

    @staticmethod
    def columns(pandas: Any, values: Any) -> Columns:
        """The columns of one of them."""
        if isinstance(values, pandas.DataFrame):
            return [(str(name), column) for name, column in values.items()]
        return [(None, pandas.Series(values))]

    @staticmethod
    def uniform(pandas: Any, values: Any) -> bool:
        """Whether a table is of one dtype, and NumPy's: there is no need to look at columns."""
        dtypes = set(values.dtypes) if isinstance(values, pandas.DataFrame) else set[Any]()
        extension: type = pandas.api.extensions.ExtensionDtype
        return len(dtypes) == 1 and not isinstance(dtypes.pop(), extension)

    @staticmethod
    def missing(pandas: Any, column: Any) -> Iterable[bool]:
        """Of each row, whether its value is missing; nothing where none is."""
        numpys = not isinstance(column.dtype, pandas.api.extensions.ExtensionDtype)
        return () if numpys or not column.hasnans else column.isna()

    @staticmethod
    def codes(pandas: Any, column: Any) -> Any:
        """Categories as the numbers that their dtype gives them; None of anything else."""
        return column.cat.codes if isinstance(column.dtype, pandas.CategoricalDtype) else None

    @staticmethod
    def dense(pandas: Any, column: Any) -> str | None:
        """How to densify what is sparse; None where it is not."""
        return "sparse.to_dense()" if isinstance(column.dtype, pandas.SparseDtype) else None


class Polars:
    """polars, in which what is missing is null."""

    fill: ClassVar[str] = "fill_null(0)"
    one_hot: ClassVar[str] = "to_dummies()"

    @staticmethod
    def kinds(polars: Any) -> tuple[type, ...]:
        """As in pandas."""
        return polars.DataFrame, polars.Series

    @staticmethod
    def columns(polars: Any, values: Any) -> Columns:
        """As in pandas."""
        if isinstance(values, polars.DataFrame):
            return [(column.name, column) for column in values.iter_columns()]
        return [(None, values)]

    @staticmethod
    def uniform(polars: Any, values: Any) -> bool:
        """Whether a table is of one dtype of numbers, and none is missing."""
        dtypes = set(values.dtypes) if isinstance(values, polars.DataFrame) else set[Any]()
        numbers = len(dtypes) == 1 and dtypes.pop().is_numeric()
        return numbers and not any(values.null_count().row(0))

    @staticmethod
    def missing(polars: Any, column: Any) -> Iterable[bool]:
        """As in pandas."""
        return column.is_null() if column.null_count() else ()

    @staticmethod
    def codes(polars: Any, column: Any) -> Any:
        """Of an Enum; a Categorical numbers what it meets as it comes, so no two alike."""
        return column.to_physical() if column.dtype == polars.Enum else None

    @staticmethod
    def dense(polars: Any, column: Any) -> str | None:
        """There are no sparse ones."""


class PyArrow:
    """PyArrow, whose dictionaries number what they meet as it comes: no categories."""

    fill: ClassVar[str] = "fill_null(0)"
    one_hot: ClassVar[str] = ""

    @staticmethod
    def kinds(pyarrow: Any) -> tuple[type, ...]:
        """As in pandas."""
        return pyarrow.Table, pyarrow.RecordBatch, pyarrow.Array, pyarrow.ChunkedArray

    @staticmethod
    def columns(pyarrow: Any, values: Any) -> Columns:
        """As in pandas."""
        if isinstance(values, pyarrow.Table | pyarrow.RecordBatch):
            return list(zip(values.column_names, values.columns, strict=True))
        return [(None, values)]

    @staticmethod
    def uniform(pyarrow: Any, values: Any) -> bool:
        """Its tables hold their columns apart: looking at each costs little beside."""
        return False

    @staticmethod
    def missing(pyarrow: Any, column: Any) -> Iterable[bool]:
        """As in pandas."""
        return column.is_null().to_pylist() if column.null_count else ()

    @staticmethod
    def codes(pyarrow: Any, column: Any) -> Any:
        """There are no categories."""

    @staticmethod
    def dense(pyarrow: Any, column: Any) -> str | None:
        """There are no sparse ones."""


LIBRARIES: dict[str, Any] = {"pandas": Pandas, "polars": Polars, "pyarrow": PyArrow}
"""By the name of the module."""


@dataclass(frozen=True)
class Column:
    """A column of a table, or a series, which has no name."""

    name: str | None
    values: Any
    library: str

    def _ask(self, question: str) -> Any:
        return getattr(LIBRARIES[self.library], question)(sys.modules[self.library], self.values)

    @property
    def missing(self) -> int | None:
        """The first row, from 0, that has no value; None if all have one."""
        return next((row for row, none in enumerate(self._ask("missing")) if none), None)

    @property
    def codes(self) -> Any:
        """The numbers of its categories, as a column; None where there are no categories."""
        return self._ask("codes")

    @property
    def dense(self) -> str | None:
        """How to densify it; None if it is dense."""
        return self._ask("dense")

    @property
    def fill(self) -> str:
        """What fills in a number for values that are missing."""
        return LIBRARIES[self.library].fill

    @property
    def one_hot(self) -> str:
        """What makes a column of each category."""
        return LIBRARIES[self.library].one_hot


class Table:
    """What has columns: a table, or a series, which is the only column of its own.

    Parameters
    ----------
    values
        What it is in its library.
    library
        The name of that.
    """

    def __init__(self, values: Any, library: str) -> None:
        self.values, self.library = values, library

    def _ask(self, question: str) -> Any:
        return getattr(LIBRARIES[self.library], question)(sys.modules[self.library], self.values)

    @cached_property
    def columns(self) -> list[Column]:
        """In their order."""
        return [Column(name, values, self.library) for name, values in self._ask("columns")]

    @property
    def uniform(self) -> bool:
        """Whether it is known without its columns that NumPy makes an array of all it says."""
        return self._ask("uniform")

    @property
    def is_series(self) -> bool:
        """Whether it is one column that stands alone, of one axis."""
        return [column.name for column in self.columns] == [None]


def table_of(values: Any) -> Table | None:
    """The table or series that `values` are, or say of themselves in Arrow's terms; else None.

    Raises
    ------
    ImportError
        They speak Arrow alone, and PyArrow is not installed.
    """
    for name, library in LIBRARIES.items():
        module = sys.modules.get(name)
        if module and isinstance(values, library.kinds(module)):
            return Table(values, name)
    if not hasattr(values, "__arrow_c_stream__"):
        return None
    pyarrow = import_module("pyarrow")
    try:
        return table_of(pyarrow.table(values))
    except (TypeError, ValueError):  # it is a series
        return table_of(pyarrow.chunked_array(values))
