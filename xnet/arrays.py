"""What a caller may hand over as numbers, made plain.

Kinds of NumPy array that mean something else by ``*``, ``argmax`` or an index (``np.matrix``,
``np.ma``), or have another byte order, become ordinary ones here; what would lose something on the
way is refused.
"""

import numbers
from functools import cache
from typing import Any

from xnet.dtypes import dtype_name

LISTED = (list, tuple, numbers.Number)
"""What belongs to no device yet."""

REAL = ("bool", "integral", "real floating")


def plain(values: Any, name: str) -> Any:
    """Of a list, a number or any kind of NumPy array an ordinary one; anything else as it is.

    Raises
    ------
    ValueError
        Elements are masked, or the rows of a list have different lengths.
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
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def check_real(xp: Any, array: Any, name: str) -> None:
    """Refuse what holds no real numbers: complex ones would lose their imaginary part.

    Raises
    ------
    TypeError
        The array holds complex numbers, strings, dates or Python objects.
    """
    if not _is_real(xp, array.dtype.__class__, array.dtype):
        raise TypeError(
            f"{name} is {dtype_name(array.dtype)}, expected real numbers: astype(float) makes them "
            "of objects or strings that are numbers, .real or abs of complex ones"
        )


@cache
def _is_real(xp: Any, _: type, dtype: Any) -> bool:
    return xp.isdtype(dtype, REAL)
