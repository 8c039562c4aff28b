"""Activation functions (§3.2, §3.5), each on the backend that owns its argument.

Numbers and lists are taken, by the current backend; what is neither float32 nor float64, as whole
numbers are, is computed in float64.
Every pointwise operation is a function here by its name in small letters: ``activations.tanh``.
"""

from collections.abc import Callable
from typing import Any

from xnet.arguments import as_floats, taken
from xnet.backend import Array
from xnet.operations import OPERATIONS, Operation, Softmax

__all__ = ["identity", "softmax", "step"]
_OWN = [cls for cls in OPERATIONS.values() if cls.__module__ == Operation.__module__]
__all__ += [cls.__name__.lower() for cls in _OWN if cls.fuses == "pointwise"]


def step(x: Array) -> Array:
    """Step function (§3.2.2): 1 where x > 0, else 0.

    Parameters
    ----------
    x
        Real numbers, any shape, any dtype.

    Returns
    -------
    Array
        int64, the shape of x.

    Examples
    --------
    >>> import xnet
    >>> xnet.activations.step([-1.0, 1.0, 2.0]).tolist()
    [0, 1, 1]
    """
    backend, x = taken(x=x)
    with backend.running():
        return backend.xp.astype(x > 0, backend.xp.int64)


def identity(x: Array) -> Array:
    """x itself, the output function of a regression (§3.5.2).

    Parameters
    ----------
    x
        Real numbers, any shape, any dtype.

    Returns
    -------
    Array
        x as the backend's array.

    Examples
    --------
    >>> import xnet
    >>> xnet.activations.identity([0.3, -2.0]).tolist()
    [0.3, -2.0]
    """
    return taken(x=x)[1]


def softmax(x: Array) -> Array:
    """Softmax exp(x) / sum(exp(x)) over the last axis (§3.5.3); finite x cannot overflow it.

    Parameters
    ----------
    x
        Real numbers, (C,) for one sample or (..., C) for many, C at least 1.

    Returns
    -------
    Array
        Probabilities that add up to 1 along the last axis; the shape of x. A row that
        holds NaN, or inf, or nothing but -inf gives NaN.

    Raises
    ------
    ValueError
        x is 0-d, or has no classes.

    Examples
    --------
    >>> import xnet
    >>> y = xnet.activations.softmax([0.3, 2.9, 4.0])
    >>> y.round(8).tolist(), round(y.sum().item(), 8)
    ([0.01821127, 0.24519181, 0.73659691], 1.0)
    >>> xnet.activations.softmax([1010.0, 1000.0, 990.0]).round(8).tolist()
    [0.9999546, 4.54e-05, 0.0]
    """
    backend, x = taken(x=x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"softmax: x has shape {tuple(x.shape)}, expected (C,) or (..., C)")
    return backend.run(Softmax(), as_floats(backend, x))


def _function(operation: type[Operation]) -> Callable[..., Array]:
    def function(x: Array, **settings: Any) -> Array:
        backend, x = taken(x=x)
        return backend.run(operation(**settings), as_floats(backend, x))

    function.__name__ = operation.__name__.lower()
    function.__doc__ = operation.__doc__
    return function


def __getattr__(name: str) -> Callable[..., Array]:
    for key, operation in OPERATIONS.items():
        if key.lower() == name and operation.fuses == "pointwise":
            return _function(operation)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    names = (key.lower() for key, cls in OPERATIONS.items() if cls.fuses == "pointwise")
    return [*globals(), *names]
