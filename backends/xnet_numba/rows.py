# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""What is done to a number or to a row of scores, for the loops of `kernels` and of `passes`."""

import math

from xnet.backend import LOG_OFFSET
from xnet_numba.compiling import _serial
from xnet_numba.elementary import _exp


@_serial
def sigmoid_element(x):
    """1 / (1 + exp(-x)); exp only ever sees -|x|: it cannot overflow."""
    one = type(x)(1)
    z = _exp(-abs(x))
    y = one / (one + z)
    return y if x >= 0 else z * y


@_serial
def softmax_row(x, y):
    """Softmax of one row, which may be y."""
    for j in range(x.size):
        y[j] = x[j]
    subtract_top(y)
    for j in range(x.size):
        y[j] = _exp(y[j])
    divide_by_sum(y)


@_serial
def subtract_top(x):
    """Take a row's maximum off it; that is NaN where the row holds a NaN, as NumPy's is."""
    top = x[0]
    for j in range(1, x.size):
        if not x[j] <= top:
            top = x[j]
    for j in range(x.size):
        x[j] -= top


@_serial
def divide_by_sum(y):
    """Divide a row by its sum."""
    total = y.dtype.type(0)
    for j in range(y.size):
        total += y[j]
    for j in range(y.size):
        y[j] /= total


@_serial
def cross_entropy_row(y, t):
    """-sum(t log(y + 1e-7)) of one row."""
    loss = y.dtype.type(0)
    for j in range(y.size):
        # Most targets are zeros, and a logarithm costs as much as the rest of the row.
        if t[j] != 0:
            loss -= t[j] * math.log(y[j] + y.dtype.type(LOG_OFFSET))
    return loss


@_serial
def softmax_loss_row_backward(y, t, scale, dx):
    """(y sum(r) - r) times `scale` with r = t y / (y + 1e-7); dx may be y."""
    offset, total = y.dtype.type(LOG_OFFSET), y.dtype.type(0)
    for j in range(y.size):
        total += t[j] * y[j] / (y[j] + offset)
    for j in range(y.size):
        dx[j] = (y[j] * total - t[j] * y[j] / (y[j] + offset)) * scale
