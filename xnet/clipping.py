"""Gradients cut to a length (Pascanu, Mikolov & Bengio 2013, algorithm 1)."""

import math

from xnet.backend import Array, Backend

__all__ = ["clipped", "global_norm"]


def global_norm(backend: Backend, gradients: dict[str, Array]) -> float:
    """Length of all gradients as one vector: sqrt(sum of their squares).

    They are scaled by the largest before they are squared, so that no square is infinite or lost
    where the length is neither. In reproducible mode the sums are the exact ones, and added in the
    order of the names: the same bits on every backend.

    Parameters
    ----------
    backend
        Whose arrays they are.
    gradients
        float32 or float64, any shapes, by name.

    Returns
    -------
    float
        0 for no gradients; infinite or NaN where one of them is.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> gradients = {"W1": np.array([[3.0, 0.0]]), "b1": np.array([4.0])}
    >>> xnet.clipping.global_norm(xnet.resolve("numpy"), gradients)
    5.0
    """
    xp = backend.xp
    with backend.running():
        largest = max((float(xp.max(xp.abs(g))) for g in gradients.values()), default=0.0)
        if largest == 0 or not math.isfinite(largest):
            return largest
        total = 0.0
        for g in gradients.values():
            scaled = g / largest
            total += float(backend.sum(scaled * scaled))
    return largest * math.sqrt(total)


def clipped(backend: Backend, gradients: dict[str, Array], limit: float) -> dict[str, Array]:
    """The gradients, times limit / norm where their `global_norm` is above the limit.

    Gradients of which one is infinite or NaN are left as they are: the run then says that it has
    diverged.

    Parameters
    ----------
    backend
        Whose arrays they are.
    gradients
        float32 or float64, any shapes, by name.
    limit
        The length, above 0, that is not exceeded.

    Returns
    -------
    dict
        The very gradients, or scaled ones of their names, shapes and dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> gradients = {"W1": np.array([[3.0, 0.0]]), "b1": np.array([4.0])}
    >>> cut = xnet.clipping.clipped(xnet.resolve("numpy"), gradients, limit=1.0)
    >>> {name: g.round(8).tolist() for name, g in cut.items()}
    {'W1': [[0.6, 0.0]], 'b1': [0.8]}
    """
    norm = global_norm(backend, gradients)
    if not limit < norm < math.inf:
        return gradients
    with backend.running():
        return {name: g * (limit / norm) for name, g in gradients.items()}
