"""The names of dtypes, which every array library has objects of its own for."""

from functools import cache
from typing import Any


def dtype_name(dtype: Any) -> str:
    """``"float32"`` from that string or from any library's dtype object."""
    if isinstance(dtype, str):
        return dtype
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rsplit(".", 1)[-1]


FLOATS = ("float32", "float64")
"""What networks compute in."""


def float_dtype(dtype: Any, name: str = "dtype") -> str:
    """`dtype` as ``"float32"`` or ``"float64"``; anything else is refused."""
    found = dtype_name(dtype)
    if found not in FLOATS:
        raise ValueError(f"{name} is {found}, expected float32 or float64")
    return found


def name_of(array: Any) -> str:
    """`dtype_name` of an array's, kept for each dtype: NumPy puts its names together anew."""
    return _kept_name(array.dtype.__class__, array.dtype)


def described(array: Any) -> str:
    """An array's dtype and shape, for an error: ``"float32 (2, 3)"``."""
    return f"{name_of(array)} {tuple(array.shape)}"


def is_whole(xp: Any, array: Any) -> bool:
    """Whether an array of a namespace's holds whole numbers, or truths, 0 and 1; kept likewise."""
    return _kept_whole(xp, array.dtype.__class__, array.dtype)


# By the class, too: dtypes of two libraries may not be compared.


@cache
def _kept_name(_: type, dtype: Any) -> str:
    return dtype_name(dtype)


@cache
def _kept_whole(xp: Any, _: type, dtype: Any) -> bool:
    return xp.isdtype(dtype, ("bool", "integral"))
