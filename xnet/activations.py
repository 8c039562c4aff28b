"""Activation functions (§3.2, §3.5), each on the backend that owns its argument."""

from xnet.backend import Array, backend_of, float_dtype


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


def sigmoid(x: Array) -> Array:
    """Sigmoid 1 / (1 + exp(-x)) (§3.2.4), written so that exp never overflows.

    Parameters
    ----------
    x
        float32 or float64, any shape.

    Returns
    -------
    Array
        Values in [0, 1], the shape and dtype of x.

    Raises
    ------
    ValueError
        x is neither float32 nor float64.
    """
    backend = backend_of(x=x)
    float_dtype(x.dtype, "dtype of x")
    return backend.sigmoid(x)


def relu(x: Array) -> Array:
    """Rectified linear unit (§3.2.7): x where x > 0, else 0; NaN stays NaN.

    Parameters
    ----------
    x
        float32 or float64, any shape.

    Returns
    -------
    Array
        The shape and dtype of x.

    Raises
    ------
    ValueError
        x is neither float32 nor float64.
    """
    backend = backend_of(x=x)
    float_dtype(x.dtype, "dtype of x")
    return backend.relu(x)


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
    return backend.softmax(x)
