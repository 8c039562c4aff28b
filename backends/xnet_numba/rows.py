# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""What is done to a number or to a row of scores, for the loops of `kernels` and of `fused`."""

import math

from xnet.backend import LOG_OFFSET
from xnet_numba.compiling import _serial
from xnet_numba.elementary import _exp


@_serial
def _sigmoid_element(x):
    one = type(x)(1)
    z = _exp(-abs(x))
    y = one / (one + z)
    return y if x >= 0 else z * y


@_serial
def _softmax_row(x, y):
    """Softmax of one row; the maximum is NaN where the row holds a NaN, as NumPy's is."""
    top = x[0]
    for j in range(1, x.size):
        if not x[j] <= top:
            top = x[j]
    total = x.dtype.type(0)
    for j in range(x.size):
        y[j] = _exp(x[j] - top)
    for j in range(x.size):
        total += y[j]
    for j in range(x.size):
        y[j] /= total


@_serial
def _softmax_loss_row(x, t, y):
    """Softmax of one row into y; returns the row's cross-entropy error."""
    _softmax_row(x, y)
    loss = x.dtype.type(0)
    for j in range(x.size):
        # Most targets are zeros, and a logarithm costs as much as the rest of the row.
        if t[j] != 0:
            loss -= t[j] * math.log(y[j] + x.dtype.type(LOG_OFFSET))
    return loss


@_serial
def _softmax_loss_row_backward(y, t, scale, dx):
    offset = y.dtype.type(LOG_OFFSET)
    total = y.dtype.type(0)
    for j in range(y.size):
        dx[j] = t[j] * y[j] / (y[j] + offset)
        total += dx[j]
    for j in range(y.size):
        dx[j] = (y[j] * total - dx[j]) * scale
