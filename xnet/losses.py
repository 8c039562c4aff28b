"""Loss functions (§4.2). Labels are class indices or one-hot, for one sample or a batch."""

from typing import Any

from xnet.arguments import as_floats, taken
from xnet.arrays import check_real, labels
from xnet.backend import Array, Backend, backend_of
from xnet.dtypes import dtype_name, float_dtype, is_whole
from xnet.operations import IdentityWithLoss

__all__ = ["LOG_OFFSET", "cross_entropy_error", "mean_squared_error"]

LOG_OFFSET = 1e-7
"""The delta inside the logarithm of the notes' cross-entropy error, for log of 0 (§4.2.2)."""


def mean_squared_error(y: Array, t: Array) -> Array:
    """Half the sum of squared differences, 1/2 sum((y - t)^2), averaged over the batch (§4.2.1).

    Parameters
    ----------
    y
        Outputs: real numbers, (C,) for one sample or (N, C).
    t
        Targets: the shape of y; or class indices, an integer array of shape () or (N,), which for
        one output are targets.

    Returns
    -------
    Array
        0-d, the dtype of y where that is floating point, else float64.

    Raises
    ------
    ValueError
        Shapes that do not fit, a label outside 0..C-1, an empty batch.

    Examples
    --------
    >>> import xnet
    >>> y = [0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0]
    >>> t = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    >>> round(xnet.losses.mean_squared_error(y, t).item(), 8)
    0.0975
    """
    backend, y, t = taken_batch(y, t)
    with backend.running():
        return backend.sum(backend.row_losses(IdentityWithLoss(), y, t)) / y.shape[0]


def cross_entropy_error(y: Array, t: Array) -> Array:
    """Cross-entropy error -sum(t log(y + 1e-7)), averaged over the batch (§4.2.2, §4.2.4).

    Parameters
    ----------
    y
        Probabilities: real numbers, (C,) for one sample or (N, C).
    t
        Targets: the shape of y, one-hot or probabilities; or class indices, an integer array of
        shape () or (N,).

    Returns
    -------
    Array
        0-d, the dtype of y where that is floating point, else float64.

    Raises
    ------
    ValueError
        Shapes that do not fit, a label outside 0..C-1, an empty batch.

    Examples
    --------
    >>> import xnet
    >>> y = [0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0]
    >>> t = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    >>> round(xnet.losses.cross_entropy_error(y, t).item(), 8)
    0.51082546
    >>> round(xnet.losses.cross_entropy_error(y, 2).item(), 8)
    0.51082546
    """
    backend, y, t = taken_batch(y, t)
    with backend.running():
        return -backend.sum(t * backend.log(y + LOG_OFFSET)) / y.shape[0]


def taken_batch(y: Any, t: Any) -> tuple[Backend, Array, Array]:
    """`batch_and_targets` of what a function takes: lists and whole numbers, too, and some rows."""
    backend, y, t = taken(y=y, t=labels(t, "t"))
    if y.ndim and y.shape[0] == 0:
        raise ValueError(f"y has shape {tuple(y.shape)}: the batch is empty")
    return batch_and_targets(as_floats(backend, y), t)


def batch_and_targets(y: Array, t: Array) -> tuple[Backend, Array, Array]:
    """`y` as (N, C) and `t` as (N, C) of its dtype, checked, with the backend that owns them."""
    backend = backend_of(y=y, t=t)
    with backend.running():
        return backend, *_batch_and_targets(backend, y, t)


def _batch_and_targets(backend: Backend, y: Array, t: Array) -> tuple[Array, Array]:
    float_dtype(y.dtype, "dtype of y")
    if y.ndim not in (1, 2):
        raise ValueError(f"y has shape {tuple(y.shape)}, expected (C,) or (N, C)")
    if y.shape[-1] == 0 or (y.shape[0] == 0 and backend.ranks.size == 1):
        raise ValueError(f"y has shape {tuple(y.shape)}: the batch is empty")
    targets = targets_for(backend, t, tuple(y.shape), y.dtype)
    shape = (-1, y.shape[-1])
    return backend.xp.reshape(y, shape), backend.xp.reshape(targets, shape)


def targets_for(backend: Backend, t: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Labels `t` of outputs of this shape, (C,) or (N, C), as targets of it and the dtype.

    One output has no classes: what has its shape less the last axis is targets, not class indices.
    """
    if shape[-1] == 1:
        t = backend.xp.reshape(t, shape) if tuple(t.shape) == shape[:-1] else t
    elif t.ndim == len(shape) - 1:
        return _one_hot(backend, shape, t, dtype)
    if tuple(t.shape) == shape:
        if t.dtype == dtype:
            return t
        check_real(backend.xp, t, "t")
        return backend.xp.astype(t, dtype)
    rows, indices = ("", "") if shape[-1] == 1 else (" (one-hot)", " (class indices)")
    raise ValueError(
        f"t has shape {tuple(t.shape)}, expected {shape}{rows} or {shape[:-1]}{indices}"
    )


def _one_hot(backend: Backend, shape: tuple[int, ...], t: Array, dtype: Any) -> Array:
    """Class indices `t`, of the shape less its last axis, as one-hot rows."""
    if not is_whole(backend.xp, t):
        kind = dtype_name(t.dtype)
        raise ValueError(f"t has dtype {kind}, expected integer class indices: t.astype(int)")
    if tuple(t.shape) != shape[:-1]:
        raise ValueError(f"t has {t.shape[0]} labels, y has {shape[0]} samples")
    return backend.one_hot(t, shape[-1], dtype)
