"""Perceptrons (§2.3-§2.5): a weighted sum and a threshold, and the gates made of them."""

from collections.abc import Mapping
from typing import Final

from xnet.arguments import as_floats, taken
from xnet.backend import Array, get_backend

__all__ = [
    "AND",
    "GATES",
    "NAND",
    "OR",
    "XOR",
    "AND_with_threshold",
    "perceptron",
    "weighted_sum",
]


def weighted_sum(x: Array, w: Array, b: float = 0.0) -> Array:
    """sum(w x) + b, 0-d, for arrays or lists x and w of one shape.

    Parameters
    ----------
    x, w
        Inputs and weights: arrays or lists of one shape.
    b
        Bias.

    Returns
    -------
    Array
        0-d, the inputs' dtype where that is floating point, else float64.

    Raises
    ------
    ValueError
        The shapes differ.

    Examples
    --------
    >>> import xnet
    >>> round(xnet.perceptron.weighted_sum([0, 1], [0.5, 0.5], -0.7).item(), 8)
    -0.2
    """
    backend, x, w = taken(x=x, w=w)
    x, w = as_floats(backend, x), as_floats(backend, w)
    if tuple(x.shape) != tuple(w.shape):
        raise ValueError(f"x has shape {tuple(x.shape)}, w has {tuple(w.shape)}: expected one")
    with backend.running():
        return backend.sum(w * x) + float(b)


def perceptron(x: Array, w: Array, b: float) -> int:
    """1 if sum(w x) + b > 0, else 0 (§2.3.2).

    Parameters
    ----------
    x, w
        Inputs and weights: arrays or lists of one shape.
    b
        Bias.

    Returns
    -------
    int
        0 or 1.

    Raises
    ------
    ValueError
        The shapes differ.

    Examples
    --------
    >>> import xnet
    >>> [xnet.perceptron.perceptron(x, [0.5, 0.5], -0.7) for x in ([0, 1], [1, 1])]
    [0, 1]
    """
    return int(weighted_sum(x, w, b) > 0)


GATES: Final[Mapping[str, tuple[tuple[float, float], float]]] = {
    "AND": ((0.5, 0.5), -0.7),
    "NAND": ((-0.5, -0.5), 0.7),
    "OR": ((0.5, 0.5), -0.2),
}
"""Weights and bias of each gate that is one perceptron (§2.3.3)."""


def _gate(name: str, *inputs: float) -> int:
    backend, (weights, bias) = get_backend(), GATES[name]
    x = backend.asarray([float(value) for value in inputs])
    return perceptron(x, backend.asarray(weights), bias)


def AND_with_threshold(x1: float, x2: float) -> int:
    """AND by a threshold: 1 if 0.5 x1 + 0.5 x2 > 0.7, else 0 (§2.3.1).

    Parameters
    ----------
    x1, x2
        Inputs, 0 or 1.

    Returns
    -------
    int
        0 or 1.

    Examples
    --------
    >>> from xnet.perceptron import AND_with_threshold
    >>> [AND_with_threshold(x1, x2) for x1, x2 in ((0, 0), (1, 0), (0, 1), (1, 1))]
    [0, 0, 0, 1]
    """
    backend = get_backend()
    x = backend.asarray([float(x1), float(x2)])
    return int(weighted_sum(x, backend.asarray([0.5, 0.5])) > 0.7)


def AND(x1: float, x2: float) -> int:
    """1 if both inputs are 1: weights (0.5, 0.5), bias -0.7 (§2.3.3).

    Parameters
    ----------
    x1, x2
        Inputs, 0 or 1.

    Returns
    -------
    int
        0 or 1.

    Examples
    --------
    >>> from xnet.perceptron import AND
    >>> [AND(x1, x2) for x1, x2 in ((0, 0), (1, 0), (0, 1), (1, 1))]
    [0, 0, 0, 1]
    """
    return _gate("AND", x1, x2)


def NAND(x1: float, x2: float) -> int:
    """0 if both inputs are 1: weights (-0.5, -0.5), bias 0.7 (§2.3.3).

    Parameters
    ----------
    x1, x2
        Inputs, 0 or 1.

    Returns
    -------
    int
        0 or 1.

    Examples
    --------
    >>> from xnet.perceptron import NAND
    >>> [NAND(x1, x2) for x1, x2 in ((0, 0), (1, 0), (0, 1), (1, 1))]
    [1, 1, 1, 0]
    """
    return _gate("NAND", x1, x2)


def OR(x1: float, x2: float) -> int:
    """1 if an input is 1: weights (0.5, 0.5), bias -0.2 (§2.3.3).

    Parameters
    ----------
    x1, x2
        Inputs, 0 or 1.

    Returns
    -------
    int
        0 or 1.

    Examples
    --------
    >>> from xnet.perceptron import OR
    >>> [OR(x1, x2) for x1, x2 in ((0, 0), (1, 0), (0, 1), (1, 1))]
    [0, 1, 1, 1]
    """
    return _gate("OR", x1, x2)


def XOR(x1: float, x2: float) -> int:
    """1 if just one input is 1: AND(NAND, OR), two layers, for one cannot do it (§2.5.2).

    Parameters
    ----------
    x1, x2
        Inputs, 0 or 1.

    Returns
    -------
    int
        0 or 1.

    Examples
    --------
    >>> from xnet.perceptron import XOR
    >>> [XOR(x1, x2) for x1, x2 in ((0, 0), (1, 0), (0, 1), (1, 1))]
    [0, 1, 1, 0]
    """
    return AND(NAND(x1, x2), OR(x1, x2))
