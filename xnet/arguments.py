"""What functions of arrays take: arrays of any backend, and what lies on the host."""

from typing import Any

from xnet.arrays import LISTED, arrived, check_real, on_host
from xnet.backend import Array, Backend, backend_of, owner_of, resolve
from xnet.dtypes import FLOATS, name_of
from xnet.errors import BackendError


def taken(**values: Any) -> tuple[Any, ...]:
    """The backend that owns a function's arguments, and they as its arrays, by their names.

    Lists and numbers go to where the arrays among them are, else to the current backend. What no
    backend owns and lies on the host, as a table does, is NumPy's.

    Raises
    ------
    BackendError, TypeError, ValueError
        As in `backend_of` and `Backend.asarray`.
    """
    given = {k: _arrived(v, k) for k, v in values.items() if not isinstance(v, LISTED)}
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


def _arrived(values: Any, name: str) -> Any:
    """An array of a backend as it is, and else what NumPy makes of it."""
    try:
        owner_of(values, name)
    except (TypeError, BackendError):
        return on_host(values, name)
    return values


def moved(backend: Backend, values: Any, name: str, dtype: Any = None) -> Array:
    """What a network on this backend makes of `values`: the one door; see `Network`.

    Raises
    ------
    BackendError
        They are an array of another device.
    TypeError, ValueError
        As in `Backend.asarray`.
    """
    with backend.running():
        values = arrived(backend, values, name)
        if not (backend.owns(values) or resolve("numpy").owns(values)):
            owner = owner_of(values, name)
            raise BackendError(
                f"the network is on {backend.label}, {name} is on {owner.label}: move the network "
                f'with net.to("{owner.label}"), or the array with net.backend.asarray(...)'
            )
        return backend.asarray(values, dtype, name)


def as_floats(backend: Backend, array: Array) -> Array:
    """float32 as it is, other real numbers as float64."""
    if name_of(array) in FLOATS:
        return array
    with backend.running():
        return backend.asarray(array, "float64")
