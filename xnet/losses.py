"""Loss functions (§4.2). Labels are class indices or one-hot, for one sample or a batch."""

from typing import Any

from xnet.backend import LOG_OFFSET, Array, Backend, backend_of, dtype_name, float_dtype


def mean_squared_error(y: Array, t: Array) -> Array:
    """Half the sum of squared differences, 1/2 sum((y - t)^2), averaged over the batch (§4.2.1).

    Parameters
    ----------
    y
        Outputs: float32 or float64, (C,) for one sample or (N, C).
    t
        Targets: the shape of y; or class indices, an integer array of shape () or (N,).

    Returns
    -------
    Array
        0-d, the dtype of y.

    Raises
    ------
    ValueError
        Shapes that do not fit, a label outside 0..C-1, an empty batch, y not floating point.
    """
    backend, y, t = batch_and_targets(y, t)
    with backend.running():
        difference = y - t
        return backend.sum(difference * difference) * (0.5 / y.shape[0])


def cross_entropy_error(y: Array, t: Array) -> Array:
    """Cross-entropy error -sum(t log(y + 1e-7)), averaged over the batch (§4.2.2, §4.2.4).

    Parameters
    ----------
    y
        Probabilities: float32 or float64, (C,) for one sample or (N, C).
    t
        Targets: the shape of y, one-hot or probabilities; or class indices, an integer array of
        shape () or (N,).

    Returns
    -------
    Array
        0-d, the dtype of y.

    Raises
    ------
    ValueError
        Shapes that do not fit, a label outside 0..C-1, an empty batch, y not floating point.
    """
    backend, y, t = batch_and_targets(y, t)
    with backend.running():
        return -backend.sum(t * backend.log(y + LOG_OFFSET)) / y.shape[0]


def batch_and_targets(y: Array, t: Array) -> tuple[Backend, Array, Array]:
    """`y` as (N, C) and `t` as (N, C) of its dtype, checked, with the backend that owns them."""
    backend = backend_of(y=y, t=t)
    with backend.running():
        return backend, *_batch_and_targets(backend, y, t)


def _batch_and_targets(backend: Backend, y: Array, t: Array) -> tuple[Array, Array]:
    xp = backend.xp
    float_dtype(y.dtype, "dtype of y")
    if y.ndim not in (1, 2):
        raise ValueError(f"y has shape {tuple(y.shape)}, expected (C,) or (N, C)")
    if y.shape[0] == 0 or y.shape[-1] == 0:
        raise ValueError(f"y has shape {tuple(y.shape)}: the batch is empty")
    if t.ndim == y.ndim - 1:
        targets = _one_hot(backend, y, t)
    elif tuple(t.shape) == tuple(y.shape):
        targets = t if t.dtype == y.dtype else xp.astype(t, y.dtype)
    else:
        raise ValueError(
            f"t has shape {tuple(t.shape)}, expected {tuple(y.shape)} (one-hot) "
            f"or {tuple(y.shape[:-1])} (class indices)"
        )
    shape = (-1, y.shape[-1])
    return xp.reshape(y, shape), xp.reshape(targets, shape)


def targets_for(backend: Backend, t: Array, rows: int, classes: int, dtype: Any) -> Array:
    """Labels `t` for so many rows of so many classes as (N, C) of `dtype`, checked."""
    y = backend.xp.broadcast_to(backend.xp.zeros((), dtype=dtype), (rows, classes))
    return _batch_and_targets(backend, y, t)[1]


def _one_hot(backend: Backend, y: Array, t: Array) -> Array:
    """Class indices `t`, y's shape less its last axis, as one-hot rows of y's dtype."""
    xp = backend.xp
    if not xp.isdtype(t.dtype, "integral"):
        raise ValueError(f"t has dtype {dtype_name(t.dtype)}, expected integer class indices")
    if tuple(t.shape) != tuple(y.shape[:-1]):
        raise ValueError(f"t has {t.shape[0]} labels, y has {y.shape[0]} samples")
    return backend.one_hot(t, y.shape[-1], y.dtype)
