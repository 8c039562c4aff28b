"""Activation functions (§3.2, §3.5), each on the backend that owns its argument.

Every pointwise operation is a function here by its name in small letters: ``activations.tanh``.
"""

from collections.abc import Callable
from typing import Any

from xnet.backend import Array, backend_of
from xnet.dtypes import float_dtype
from xnet.operations import OPERATIONS, Operation, Softmax


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
    """
    backend = backend_of(x=x)
    with backend.running():
        return backend.xp.astype(x > 0, backend.xp.int64)


def identity(x: Array) -> Array:
    """x itself, the output function of a regression (§3.5.2)."""
    backend_of(x=x)
    return x


def softmax(x: Array) -> Array:
    """Softmax exp(x) / sum(exp(x)) over the last axis (§3.5.3); finite x cannot overflow it.

    Parameters
    ----------
    x
        float32 or float64, (C,) for one sample or (..., C) for many, C at least 1.

    Returns
    -------
    Array
        Probabilities that add up to 1 along the last axis; the shape and dtype of x. A row that
        holds NaN, or inf, or nothing but -inf gives NaN.

    Raises
    ------
    ValueError
        x is 0-d, has no classes, or is neither float32 nor float64.
    """
    backend = backend_of(x=x)
    float_dtype(x.dtype, "dtype of x")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"softmax: x has shape {tuple(x.shape)}, expected (C,) or (..., C)")
    return backend.run(Softmax(), x)


def _function(operation: type[Operation]) -> Callable[..., Array]:
    def function(x: Array, **settings: Any) -> Array:
        backend = backend_of(x=x)
        float_dtype(x.dtype, "dtype of x")
        return backend.run(operation(**settings), x)

    function.__name__ = operation.__name__.lower()
    function.__doc__ = operation.__doc__
    return function


def __getattr__(name: str) -> Callable[..., Array]:
    for key, operation in OPERATIONS.items():
        if key.lower() == name and operation.fuses == "pointwise":
            return _function(operation)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
