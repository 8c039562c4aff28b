"""Numerical differentiation (§4.3), gradients and gradient descent by it (§4.4)."""

import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol

from xnet.backend import Array, backend_of, dtype_name

SMALLEST_FLOAT32_STEP = 1e-3
"""With a smaller h, the rounding of f in float32 (6e-8 f / h) leaves fewer than four digits."""


def numerical_diff(f: Callable[[Any], Any], x: Any, h: float = 1e-4) -> Any:
    """Central difference (f(x + h) - f(x - h)) / 2h, an estimate of df/dx (§4.3.2).

    Parameters
    ----------
    f
        A function of one number, or elementwise on an array.
    x
        Where: a number, or an array of float64.
    h
        Step. The error is about h^2 |f'''| / 6 by truncation and 1e-16 |f| / h by rounding.

    Raises
    ------
    ValueError
        h is not a positive number.
    """
    check_step(h)
    return (f(x + h) - f(x - h)) / (2 * h)


def numerical_gradient(f: Callable[[Array], Any], x: Array, h: float = 1e-4) -> Array:
    """Gradient of f at x by central differences, one element at a time (§4.4).

    Parameters
    ----------
    f
        Function of x that returns one number. It may ignore its argument and read x by closure,
        for x itself is perturbed.
    x
        float64, or float32 with an h that suits it; any shape. Perturbed in place, and restored
        whatever f raises.
    h
        Step.

    Returns
    -------
    Array
        The shape and dtype of x.

    Raises
    ------
    ValueError
        x is neither float32 nor float64; x is float32 and h below 1e-3, for then the answer is
        noise; x cannot be written; h is not a positive number.
    TypeError
        f returns something other than one number.
    """
    backend = backend_of(x=x)
    check_step(h, dtype_name(x.dtype))
    with backend.running():
        gradient = backend.xp.zeros_like(x)
        for index in itertools.product(*map(range, x.shape)):
            value = float(x[index])
            try:
                above = _evaluate(f, x, index, value + h)
                below = _evaluate(f, x, index, value - h)
            finally:
                _write(x, index, value)
            gradient[index] = (above - below) / (2 * h)
        return gradient


def check_step(h: float, dtype: str = "float64") -> None:
    """Raise ValueError if h is no step, or none for numbers of this dtype."""
    if not (math.isfinite(h) and h > 0):
        raise ValueError(f"h is {h}, expected a positive number")
    if dtype not in ("float32", "float64"):
        raise ValueError(
            f"numerical_gradient: x is {dtype}, too coarse to hold x + h; expected float64"
        )
    if dtype == "float32" and h < SMALLEST_FLOAT32_STEP:
        raise ValueError(
            f"numerical_gradient: x is float32, where h={h} gives noise; use float64, "
            f"or h of {SMALLEST_FLOAT32_STEP} or more (5e-3 is about best)"
        )


def _evaluate(f: Callable[[Array], Any], x: Array, index: tuple[int, ...], value: float) -> float:
    """F with `value` at `index` of x."""
    _write(x, index, value)
    result = f(x)
    if getattr(result, "ndim", 0) != 0:
        raise TypeError(f"f returned an array of shape {tuple(result.shape)}, expected one number")
    return float(result)


def _write(x: Array, index: tuple[int, ...], value: float) -> None:
    try:
        x[index] = value
    except (TypeError, ValueError) as error:
        raise ValueError(f"numerical_gradient: x cannot be written in place: {error}") from error


def gradient_descent(
    f: Callable[[Array], Any],
    init_x: Array,
    lr: float = 0.01,
    step_num: int = 100,
    path: list[Array] | None = None,
) -> Array:
    """Walk down the numerical gradient of f: x - lr grad f(x), `step_num` times (§4.4.1).

    Parameters
    ----------
    f
        Function of an array that returns one number.
    init_x
        Where to start: float64, any shape. It is not changed.
    lr
        Learning rate.
    step_num
        How many steps.
    path
        A list to which every point is appended, the start included.

    Returns
    -------
    Array
        The last point.

    Raises
    ------
    ValueError, TypeError
        As `numerical_gradient`; or `step_num` is negative.
    """
    if step_num < 0:
        raise ValueError(f"step_num is {step_num}, expected 0 or more")
    backend = backend_of(init_x=init_x)
    xp = backend.xp
    with backend.running():
        x = xp.asarray(init_x, copy=True)
        if path is not None:
            path.append(xp.asarray(x, copy=True))
        for _ in range(step_num):
            x = x - lr * numerical_gradient(f, x)
            if path is not None:
                path.append(xp.asarray(x, copy=True))
        return x


class Differentiable(Protocol):
    """What `gradient_check` needs of a network."""

    def gradient(self, x: Array, t: Array) -> dict[str, Array]:
        """Gradients by backpropagation."""
        ...

    def numerical_gradient(self, x: Array, t: Array, h: float = 1e-4) -> dict[str, Array]:
        """Gradients by central differences."""
        ...


def gradient_check(
    network: Differentiable, x: Array, t: Array, h: float = 1e-4
) -> dict[str, float]:
    """Mean absolute difference of `gradient` and `numerical_gradient`, by parameter (§5.7.3).

    Parameters
    ----------
    network
        A `Network`, in float64 unless h suits float32.
    x, t
        A batch and its labels.
    h
        Step of the numerical gradient.
    """
    exact, numerical = network.gradient(x, t), network.numerical_gradient(x, t, h)
    differences: dict[str, float] = {}
    for name in exact:
        backend = backend_of(gradient=exact[name])
        with backend.running():
            difference = backend.xp.abs(exact[name] - numerical[name])
            differences[name] = float(backend.xp.mean(difference))
    return differences
