"""How good predictions are: accuracy of classes, and R² where there are none."""

import math

from xnet.backend import Array, Backend
from xnet.losses import batch_and_targets, taken_batch

__all__ = ["accuracy", "r_squared"]


def accuracy(y: Array, t: Array, classes: bool = False) -> float:
    """Share of the samples whose most probable class is the labelled one.

    Parameters
    ----------
    y
        Probabilities or scores, (C,) or (N, C), of at least two classes.
    t
        Class indices () or (N,), or one-hot, the shape of y.
    classes
        Whether rows of `t` that are not one-hot stand for the class of their largest number.

    Returns
    -------
    float
        From 0 to 1. A sample whose probabilities hold NaN counts as wrong.

    Raises
    ------
    ValueError
        There are no classes: one output, or targets that are not one-hot. Shapes that do not fit,
        a label out of range, an empty batch.

    Examples
    --------
    >>> import xnet
    >>> y = [[0.1, 0.9], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]
    >>> xnet.measures.accuracy(y, [1, 0, 1, 1])
    0.75
    """
    _, y, targets = taken_batch(y, t)
    return hits(y, targets, classes) / y.shape[0]


def hits(y: Array, t: Array, classes: bool = False) -> int:
    """Of how many rows of y (N, C), of which there may be none, the class is the labelled one."""
    backend, y, targets = batch_and_targets(y, t)
    xp = backend.xp
    with backend.running():
        if not are_classes(backend, targets, classes):
            what = "one output" if y.shape[1] == 1 else "targets that are not one-hot"
            raise ValueError(
                f"accuracy: {what}, so there are no classes; "
                "R² is xnet.measures.r_squared(net.predict(x), t)"
            )
        right = xp.argmax(y, axis=1) == xp.argmax(targets, axis=1)
        right = right & ~xp.any(xp.isnan(y), axis=1)  # no class is the most probable
        return int(xp.sum(xp.astype(right, xp.int64)))


def r_squared(y: Array, t: Array) -> float:
    """Share of the targets' variance that predictions explain, the coefficient of determination.

    1 - sum((t - y)²) / sum((t - mean t)²), the mean of each output its own and both sums over all
    outputs: 1 is perfect, 0 no better than the mean, and worse is below 0.

    Parameters
    ----------
    y
        Predictions, (C,) or (N, C).
    t
        Targets of that shape; of one output, (N,) will do.

    Returns
    -------
    float
        NaN where the targets do not vary: there is nothing to explain.

    Raises
    ------
    ValueError
        Shapes that do not fit, an empty batch.

    Examples
    --------
    >>> import xnet
    >>> xnet.measures.r_squared([[1.0], [2.0], [3.0], [5.0]], [1.0, 2.0, 3.0, 4.0])
    0.8
    >>> xnet.measures.r_squared([[2.5], [2.5], [2.5], [2.5]], [1.0, 2.0, 3.0, 4.0])
    0.0
    """
    backend, y, t = taken_batch(y, t)
    with backend.running():
        if bool(backend.xp.all(t == t[:1, ...])):
            return math.nan
        mean = backend.sum(t, axis=0) / t.shape[0]
        off, spread = (float(backend.sum(rows)) for rows in squares(backend, y, t, mean))
        return 1 - off / spread


def squares(backend: Backend, y: Array, t: Array, mean: Array) -> tuple[Array, Array]:
    """Of each row (N,), how far targets (N, C) are from predictions, and from the mean, squared."""
    off, spread = t - y, t - mean
    return backend.sum(off * off, axis=1), backend.sum(spread * spread, axis=1)


def are_classes(backend: Backend, targets: Array, classes: bool) -> bool:
    """Whether targets (N, C) are labels of classes: one-hot, unless `classes` says so already."""
    xp = backend.xp
    if classes or targets.shape[1] == 1:
        return targets.shape[1] > 1
    either = (targets == 0) | (targets == 1)
    return bool(xp.all(either) & xp.all(xp.sum(targets, axis=1) == 1))
