"""What a caller may hand over as numbers, made plain.

Kinds of NumPy array that mean something else by ``*``, ``argmax`` or an index (``np.matrix``,
``np.ma``), or have another byte order, become ordinary ones here, and so do tables and arrays of
other libraries that lie on the host: as they say themselves (``__array__``, ``__dlpack__``), and
without a copy if they can. What would lose something on the way is refused.
"""

import numbers
from functools import cache
from typing import Any

from xnet.dtypes import dtype_name
from xnet.errors import BackendError
from xnet.frames import Column, Table, table_of

LISTED = (list, tuple, numbers.Number)
"""What belongs to no device yet."""

REAL = ("bool", "integral", "real floating")

HOST = (1, 3, 11)
"""DLPack's types of device whose memory NumPy reads: the host's, and what CUDA and ROCm pin."""

HINTS = {
    "c": "take .real, or abs of it",
    **dict.fromkeys(
        "OSUT",
        "astype(float) makes them of strings and objects that are numbers; names of classes are "
        "numbered by numpy.unique(..., return_inverse=True), and by pandas' categories",
    ),
    **dict.fromkeys("Mm", "subtract a date, and divide by a duration such as one day"),
    "V": "astype('float32') makes them of what NumPy itself has no dtype for, and of records "
    "numpy.lib.recfunctions.structured_to_unstructured",
}
"""By the kind of a NumPy dtype, what makes real numbers of it."""


def plain(values: Any, name: str) -> Any:
    """Of a list, a number or any kind of NumPy array an ordinary one; anything else as it is.

    Raises
    ------
    ValueError
        Elements are masked, or the rows of a list have different lengths.
    TypeError
        A list holds what makes no array.
    """
    import numpy as np

    kinds: Any = (*LISTED, np.ndarray)
    # What says that it is on another device is no host array, whatever class it derives from.
    if not isinstance(values, kinds) or getattr(values, "device", "cpu") != "cpu":
        return values
    rows: Any = values if type(values) in (list, tuple) else [values]
    types: set[type] = set(map(type, rows))  # few, of however many rows
    may_be = any(issubclass(kind, np.ma.MaskedArray) for kind in types)
    if may_be and any(map(np.ma.is_masked, rows)):
        raise ValueError(
            f"{name} has masked elements, which no network knows: fill them with "
            "numbers, as filled(0) does, or leave those samples out"
        )
    try:
        array = np.asarray(values)
    except ValueError as error:  # the rows of a list have different lengths
        raise ValueError(f"{name} makes no array: {error}") from error
    except (TypeError, RuntimeError) as error:  # as tensors of another device do, in a list
        raise TypeError(f"{name} makes no array: {error}") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def on_host(values: Any, name: str) -> Any:
    """Of whatever lies on the host an ordinary NumPy array; anything else as it is.

    Parameters
    ----------
    values
        Lists and numbers; arrays of NumPy and of any library whose arrays have ``__array__`` or
        ``__dlpack__``; tables and series. No copy is made if the library can do without.
    name
        What errors call it.

    Raises
    ------
    ValueError
        Elements are masked or missing, the rows of a list have different lengths, or how many rows
        there are is not known.
    TypeError
        It is sparse, watched for its gradient, or of a dtype that NumPy has not.
    """
    import numpy as np

    kinds: Any = (*LISTED, np.ndarray)
    if isinstance(values, kinds):
        return plain(values, name)
    _check_counted(values, name)
    table = _table(values, name)
    if table is not None:
        return stacked(table, name)
    _check_dense(values, name)
    if getattr(values, "requires_grad", False):
        raise TypeError(f"{name} is watched for its gradient: hand over {name}.detach()")
    device = device_of(values)
    if device is not None and device[0] not in HOST:
        return values
    try:
        if hasattr(values, "__array__") or _is_buffer(values):
            return plain(np.asarray(values), name)
        return values if device is None else plain(np.from_dlpack(values), name)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        kind = f"{type(values).__name__} of {getattr(values, 'dtype', 'unknown dtype')}"
        raise TypeError(f"{name} is a {kind}, of which NumPy makes no array: {error}") from error


def arrived(backend: Any, values: Any, name: str) -> Any:
    """`values` as an array of the backend, or of NumPy, if that crosses no devices; else as it is.

    Raises
    ------
    TypeError, ValueError
        As in `on_host`.
    """
    if backend.owns(values):
        return plain(values, name)  # it may own what derives from an array, too
    values = on_host(values, name)
    device = device_of(values)
    if device is None or device[0] in HOST or device != device_of(backend.xp.zeros(1)):
        return values
    return backend.xp.from_dlpack(values)


def narrowed(array: Any, dtype: Any) -> Any:
    """A NumPy array for another library: long doubles, of which only NumPy has any, as `dtype`.

    As float64 where that is None.
    """
    return array.astype(dtype_name(dtype or "float64")) if array.dtype.itemsize > 8 else array


def labels(values: Any, name: str) -> Any:
    """What a table says of labels: one of one column is that, categories are their numbers.

    Anything else is given back as it is.

    Raises
    ------
    ValueError
        A label is missing.
    TypeError
        The only column holds neither numbers nor categories.
    """
    import numpy as np

    kinds: Any = np.ndarray
    table = None if isinstance(values, kinds) else _table(values, name)
    if table is None or len(table.columns) != 1:
        return values
    return _numbers(table.columns[0], name, categories=True)


def stacked(table: Table, name: str, start: int = 0) -> Any:
    """A table as an array (N, D), its columns in their order, or a series as one (N,).

    Parameters
    ----------
    table
        With what NumPy makes of its columns.
    name
        What errors call it.
    start
        The number of its first row, if that is part of more.

    Raises
    ------
    TypeError, ValueError
        As in `on_host`, by the name of the column.
    """
    import numpy as np

    if table.uniform and _is_real(np, (whole := np.asarray(table.values)).dtype):
        return whole
    columns = [_numbers(column, name, start) for column in table.columns]
    if table.is_series:
        return columns[0]
    if not columns:
        raise ValueError(f"{name} is a table without columns")
    dtype = np.result_type(*columns)
    if len({column.dtype for column in columns}) == 1:
        whole = np.asarray(table.values)  # which the library may have as it is
        if whole.dtype == dtype:
            return whole
    return np.stack(columns, axis=1, dtype=dtype)


def device_of(array: Any) -> tuple[int, int] | None:
    """DLPack's type and number of the device that an array is on; None of what says none.

    (0, 0), which is none of DLPack's, where it lies on several, or on what DLPack knows not.
    """
    ask: Any = getattr(array, "__dlpack_device__", None)
    if ask is None or isinstance(array, type):
        return None
    try:
        kind, index = ask()
    except (BufferError, ValueError, RuntimeError):
        return 0, 0
    return int(kind), int(index)


def refusal(array: Any, name: str, here: str) -> Exception:
    """The error that says why something is no array of `here`, a backend or several."""
    kind = f"{type(array).__name__}{' of ' + str(array.dtype) if hasattr(array, 'dtype') else ''}"
    device = device_of(array)
    if device is None or device[0] in HOST:
        way = "(xnet.get_backend().asarray(...) makes one)"
        return TypeError(f"{name} is a {kind}, expected an array of {here} {way}")
    where = getattr(array, "device", f"DLPack's device {device}")
    return BackendError(
        f"{name} is a {kind} on {where}, expected one of {here}: move it to the host, as "
        f"{name}.cpu() or {name}.get() does, or the network to where it is"
    )


def check_real(xp: Any, array: Any, name: str) -> None:
    """Refuse what holds no real numbers: complex ones would lose their imaginary part.

    Raises
    ------
    TypeError
        The array holds complex numbers, strings, dates or Python objects.
    """
    if not _is_real(xp, array.dtype):
        hint = HINTS.get(getattr(array.dtype, "kind", "c"), "astype(float) may make them")
        raise TypeError(f"{name} is {dtype_name(array.dtype)}, expected real numbers: {hint}")


def weights_of(values: Any, samples: int) -> Any:
    """How often each of so many samples counts: float64, (N,), on the host.

    Raises
    ------
    TypeError, ValueError
        Another number of them, or negative ones, NaN or infinity.
    """
    import numpy as np

    given = on_host(values, "sample_weight")
    check_real(np, given, "sample_weight")
    found = given.astype(np.float64)
    if found.shape != (samples,):
        raise ValueError(f"sample_weight has shape {found.shape}, expected ({samples},)")
    if not (np.isfinite(found) & (found >= 0)).all():
        wrong = float(found[~(np.isfinite(found) & (found >= 0))][0])
        raise ValueError(f"sample_weight holds {wrong}, expected numbers of at least 0")
    return found


def _is_real(xp: Any, dtype: Any) -> bool:
    return _kept_real(xp, dtype.__class__, dtype)


@cache
def _kept_real(xp: Any, _: type, dtype: Any) -> bool:
    try:
        return xp.isdtype(dtype, REAL)
    except TypeError:  # NumPy's, of its own dtype of strings
        return False


def _table(values: Any, name: str) -> Table | None:
    try:
        return table_of(values)
    except ImportError as error:
        what = f"{name} is a {type(values).__name__}"
        raise TypeError(f"{what}, which takes PyArrow: pip install pyarrow") from error


def _is_buffer(values: Any) -> bool:
    """Whether it gives its memory as Python's own `array.array` does."""
    try:
        memoryview(values)
    except TypeError:
        return hasattr(values, "__array_interface__")
    return True


def _check_dense(values: Any, name: str) -> None:
    """Refuse what stores its zeros by leaving them out: no network does, and they may be many."""
    layout = str(getattr(values, "layout", "torch.strided"))
    ways = [way for way in ("toarray", "todense") if callable(getattr(values, way, None))]
    ways += [] if layout.endswith("strided") else ["to_dense"]
    if ways:
        kind = type(values).__name__
        raise TypeError(f"{name} is sparse, a {kind}: hand over {name}.{ways[0]}()")


def _check_counted(values: Any, name: str) -> None:
    """Refuse rows that nobody has counted yet: all would be computed, and held, at once."""
    kinds: Any = tuple
    shape: Any = getattr(values, "shape", None)
    lengths: Any = shape if isinstance(shape, kinds) else ()
    if len(lengths) > 1 and not all(hasattr(length, "__index__") for length in lengths):
        raise ValueError(
            f"{name} is a {type(values).__name__} of an unknown number of rows: "
            f"{name}.compute_chunk_sizes() counts those of a Dask array, and "
            f"{name}.to_dask_array(lengths=True) makes one of a Dask table"
        )


def _numbers(column: Column, name: str, start: int = 0, categories: bool = False) -> Any:
    """A column as an array (N,); with `categories`, those of it as their numbers."""
    import numpy as np

    where = name if column.name is None else f"{name}, column {column.name!r},"
    if column.dense is not None:
        raise TypeError(f"{where} is sparse: hand over {column.dense} of it")
    if column.missing is not None:
        row = start + column.missing
        raise ValueError(
            f"{where} has no value in row {row}: fill it in, as {column.fill} does, or leave such "
            "rows out"
        )
    values, codes = column.values, column.codes
    if codes is not None and not categories:
        raise TypeError(
            f"{where} is of categories, whose numbers are no quantities: make a column of each, as "
            f"{column.one_hot} does"
        )
    try:
        array: Any = np.asarray(values if codes is None else codes)
    except Exception as error:  # each library has its own
        kind = getattr(values, "dtype", getattr(values, "type", "column"))
        raise TypeError(f"{where} is {kind}, of which NumPy makes no array: {error}") from error
    check_real(np, array, where)
    if array.ndim != 1:
        raise TypeError(f"{where} is of rows of numbers: hand over what to_numpy() makes of it")
    return array
