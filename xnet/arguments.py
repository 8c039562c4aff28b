"""What functions of arrays take: arrays of any backend, lists and numbers."""

from typing import Any

from xnet.arrays import LISTED, check_real, plain
from xnet.backend import Array, Backend, backend_of
from xnet.dtypes import FLOATS, name_of


def taken(**values: Any) -> tuple[Any, ...]:
    """The backend that owns a function's arguments, and they as its arrays, by their names.

    Lists and numbers go to where the arrays among them are, else to the current backend.

    Raises
    ------
    BackendError, TypeError, ValueError
        As in `backend_of` and `Backend.asarray`.
    """
    given = {k: plain(v, k) for k, v in values.items() if not isinstance(v, LISTED)}
    backend = backend_of(**given)
    arrays: list[Array] = []
    with backend.running():
        for name, value in values.items():
            if name in given and backend.owns(given[name]):  # the very array
                check_real(backend.xp, given[name], name)
                arrays.append(given[name])
            else:
                arrays.append(backend.asarray(given.get(name, value), None, name))
    return backend, *arrays


def as_floats(backend: Backend, array: Array) -> Array:
    """float32 as it is, other real numbers as float64."""
    if name_of(array) in FLOATS:
        return array
    with backend.running():
        return backend.asarray(array, "float64")
