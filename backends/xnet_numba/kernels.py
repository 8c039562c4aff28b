# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""The compiled kernels of fast mode: loops over elements or rows, one pass over memory each.

Each kernel has a loop over a range and a parallel loop that shares out that range. An affine
layer is a stack of one, for `fused`.
"""

import numpy as np
from numba import prange

from xnet_numba.compiling import _parallel, _serial, _strict, _strict_parallel, launching
from xnet_numba.fused import affine, affine_backward, affine_gradients
from xnet_numba.rows import (
    cross_entropy_row,
    sigmoid_element,
    softmax_loss_row_backward,
    softmax_row,
)

__all__ = [
    "affine",
    "affine_backward",
    "affine_gradients",
    "descend",
    "one_hot",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "softmax",
    "softmax_with_loss",
    "softmax_with_loss_backward",
]

PARALLEL_ELEMENTS = 1 << 17
"""Elements from which an elementwise kernel is worth waking the threads (about 0.1 ms of work)."""


# -- elementwise


@_serial
def _sigmoid(x, y):
    for i in range(x.size):
        y[i] = sigmoid_element(x[i])


@_parallel
def _sigmoid_parallel(x, y):
    for i in prange(x.size):
        y[i] = sigmoid_element(x[i])


def sigmoid(x):
    """1 / (1 + exp(-x)) elementwise."""
    return _elementwise(_sigmoid, _sigmoid_parallel, x)


@_strict
def _sigmoid_backward(dout, y, dx):
    for i in range(y.size):
        dx[i] = dout[i] * (y.dtype.type(1) - y[i]) * y[i]


@_strict_parallel
def _sigmoid_backward_parallel(dout, y, dx):
    for i in prange(y.size):
        dx[i] = dout[i] * (y.dtype.type(1) - y[i]) * y[i]


def sigmoid_backward(dout, y):
    """dout (1 - y) y elementwise."""
    return _elementwise(_sigmoid_backward, _sigmoid_backward_parallel, dout, y)


@_strict
def _relu(x, y):
    for i in range(x.size):
        y[i] = x.dtype.type(0) if x[i] <= 0 else x[i]


@_strict_parallel
def _relu_parallel(x, y):
    for i in prange(x.size):
        y[i] = x.dtype.type(0) if x[i] <= 0 else x[i]


def relu(x):
    """0 where x <= 0, x elsewhere."""
    return _elementwise(_relu, _relu_parallel, x)


@_strict
def _relu_backward(dout, mask, dx):
    for i in range(dout.size):
        dx[i] = dout.dtype.type(0) if mask[i] else dout[i]


@_strict_parallel
def _relu_backward_parallel(dout, mask, dx):
    for i in prange(dout.size):
        dx[i] = dout.dtype.type(0) if mask[i] else dout[i]


def relu_backward(dout, mask):
    """`dout` with zeros where `mask`."""
    return _elementwise(_relu_backward, _relu_backward_parallel, dout, mask)


@_strict
def _descend(W, g, lr):
    for i in range(W.size):
        W[i] -= lr * g[i]


@_strict_parallel
def _descend_parallel(W, g, lr):
    for i in prange(W.size):
        W[i] -= lr * g[i]


def descend(W, g, lr):
    """W -= lr g."""
    _run(_descend, _descend_parallel, W.size, W.reshape(-1), g.reshape(-1), W.dtype.type(lr))


def _elementwise(serial, parallel, *arrays):
    """Run the loop that suits the size over the flattened `arrays`; the result has their shape."""
    out = np.empty_like(arrays[0])
    flat = [array.reshape(-1) for array in (*arrays, out)]
    _run(serial, parallel, out.size, *flat)
    return out


def _run(serial, parallel, size, *arguments):
    """Run the loop that suits the size."""
    if size < PARALLEL_ELEMENTS:
        serial(*arguments)
    else:
        with launching:
            parallel(*arguments)


# -- rows


@_serial
def _softmax(x, y):
    for i in range(x.shape[0]):
        softmax_row(x[i], y[i])


@_parallel
def _softmax_parallel(x, y):
    for i in prange(x.shape[0]):
        softmax_row(x[i], y[i])


def softmax(x):
    """exp(x) / sum of exp(x) over the last axis."""
    y = np.empty_like(x)
    rows = (-1, x.shape[-1]) if x.size else (0, 1)
    _run(_softmax, _softmax_parallel, x.size, x.reshape(rows), y.reshape(rows))
    return y


@_serial
def _softmax_with_loss(x, t, y, losses):
    for i in range(x.shape[0]):
        softmax_row(x[i], y[i])
        losses[i] = cross_entropy_row(y[i], t[i])


@_parallel
def _softmax_with_loss_parallel(x, t, y, losses):
    for i in prange(x.shape[0]):
        softmax_row(x[i], y[i])
        losses[i] = cross_entropy_row(y[i], t[i])


def softmax_with_loss(x, t):
    """Mean cross-entropy error of softmax(x) against t (N, C), and softmax(x)."""
    y = np.empty_like(x)
    losses = np.empty(x.shape[0], x.dtype)
    _run(_softmax_with_loss, _softmax_with_loss_parallel, x.size, x, t, y, losses)
    return losses.sum() / x.shape[0], y


@_serial
def _softmax_with_loss_backward(y, t, scale, dx):
    for i in range(y.shape[0]):
        softmax_loss_row_backward(y[i], t[i], scale, dx[i])


@_parallel
def _softmax_with_loss_backward_parallel(y, t, scale, dx):
    for i in prange(y.shape[0]):
        softmax_loss_row_backward(y[i], t[i], scale, dx[i])


def softmax_with_loss_backward(y, t, dout):
    """(y sum(r) - r) dout / N with r = t y / (y + 1e-7), row by row."""
    dx = np.empty_like(y)
    loops = _softmax_with_loss_backward, _softmax_with_loss_backward_parallel
    _run(*loops, y.size, y, t, y.dtype.type(dout / y.shape[0]), dx)
    return dx


@_serial
def one_hot(t, out):
    """Class indices t (N,) as rows of out (N, C); whether all of them are 0..C-1."""
    for i in range(t.size):
        if not 0 <= t[i] < out.shape[1]:
            return False
        out[i] = 0
        out[i, t[i]] = 1
    return True
