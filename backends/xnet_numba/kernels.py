# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""The compiled kernels of fast mode: loops over elements or rows, one pass over memory each.

Each kernel has a loop over a range and a parallel loop that shares out that range. Products are
those of `products`.
"""

import math

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic, overload

from xnet.backend import LOG_OFFSET
from xnet_numba import products
from xnet_numba.compiling import (
    _parallel,
    _serial,
    _strict,
    _strict_parallel,
    launching,
    thread_count,
)
from xnet_numba.tiles import address_of, take_next

PARALLEL_ELEMENTS = 1 << 17
"""Elements from which an elementwise kernel is worth waking the threads (about 0.1 ms of work)."""

PARALLEL_PRODUCT = 1 << 22
"""Multiplications from which a product is worth waking the threads (also about 0.1 ms)."""

TRANSPOSED_ROWS = 8
"""Rows of a gradient from which it pays to write out W' first."""


# -- exp, written so that LLVM vectorises it: no branch, no call, no conversion to integers


@intrinsic
def _bits_to_float(typingctx, bits):
    """The float whose bits are those of the integer."""
    result = types.float32 if bits.bitwidth == 32 else types.float64

    def codegen(context, builder, signature, args):
        kind = ir.FloatType() if bits.bitwidth == 32 else ir.DoubleType()
        return builder.bitcast(args[0], kind)

    return result(bits), codegen


@intrinsic
def _float_to_bits(typingctx, value):
    """The integer whose bits are those of the float."""
    result = types.int32 if value == types.float32 else types.int64

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(result.bitwidth))

    return result(value), codegen


def _exp_implementation(float_type, int_type, mantissa_bits, bias, low, high, degree):
    """exp in one precision: x = n ln 2 + r with |r| <= ln(2) / 2, exp(x) = 2^n exp(r).

    n is read off the bits of x log2(e) + 1.5 2^mantissa_bits, whose spacing is 1; exp(r) is
    Taylor's polynomial, whose remainder at this `degree` is below half a unit in the last place;
    2^n is multiplied in as two factors, so that results below the normal range round once.
    """
    log2e = float_type(1 / math.log(2))
    shifter = float_type(1.5 * 2.0**mantissa_bits)
    # n ln2_high is exact: ln2_high has at least 11 trailing zero bits, n at most 11 bits.
    kept = 2.0 ** (mantissa_bits - 11)
    ln2_high = float_type(math.floor(math.log(2) * kept) / kept)
    # ln 2 to 40 digits, less ln2_high, in two steps that are each exact in float64.
    ln2_low = float_type((math.log(2) - float(ln2_high)) + 2.3190468138462996e-17)
    low, high = float_type(low), float_type(high)
    bias, shift = int_type(bias), int_type(mantissa_bits)
    one = int_type(1)
    c = tuple(float_type(1 / math.factorial(k)) for k in range(degree + 1))
    first = c[degree]
    rest = c[degree - 1 :: -1]

    def exp(x):
        x = min(max(x, low), high) if x == x else x
        shifted = x * log2e + shifter
        n = shifted - shifter
        r = (x - n * ln2_high) - n * ln2_low
        p = first
        for k in numba.literal_unroll(rest):
            p = p * r + k
        power = int_type(_float_to_bits(shifted) - _float_to_bits(shifter))
        half = int_type(power >> one)
        scale = _bits_to_float(int_type((half + bias) << shift))
        rescale = _bits_to_float(int_type((power - half + bias) << shift))
        return p * scale * rescale

    return exp


def _exp(x):
    raise NotImplementedError  # compiled code only: see the overload


@overload(_exp, fastmath={"contract"})
def _exp_overload(x):
    if x == types.float32:
        return _exp_implementation(np.float32, np.int32, 23, 127, -104.0, 89.0, 7)
    return _exp_implementation(np.float64, np.int64, 52, 1023, -746.0, 710.0, 13)


# -- an affine layer


@_serial
def _affine_blocks(routines, x, W, b, out, skip, rows, counter):
    """Take blocks of so many rows as long as there are any."""
    kind, (n, k), m = x.dtype.type(0), x.shape, W.shape[1]
    words = products.room(rows, k, skip)
    while True:
        start = take_next(address_of(counter)) * rows
        if start >= n:
            return
        products.affine(
            routines, kind, address_of(x[start:]), min(rows, n - start), k, address_of(W),
            address_of(b), address_of(out[start:]), m, skip, address_of(words),
        )  # fmt: skip


@_serial
def _skippable(x, factor):
    kind, (n, k) = x.dtype.type(0), x.shape
    return products.skippable(kind, address_of(x), n, k, address_of(factor), factor.size)


@_serial
def _affine(routines, x, W, b, out):
    rows = products.share(x.shape[0], 1)
    _affine_blocks(routines, x, W, b, out, _skippable(x, W), rows, np.zeros(1, np.int64))


@_parallel
def _affine_parallel(routines, x, W, b, out, threads):
    skip, rows = _skippable(x, W), products.share(x.shape[0], threads)
    counter = np.zeros(1, np.int64)
    for _ in prange(threads):
        _affine_blocks(routines, x, W, b, out, skip, rows, counter)


def affine(x, W, b):
    """x W + b, (N, D) by (D, M)."""
    if not x.size or not W.size:
        return x @ W + b
    out = np.empty((x.shape[0], W.shape[1]), x.dtype)
    loops = _affine, _affine_parallel
    _multiply(*loops, x.shape[0] * W.size, products.routines(x.dtype), x, W, b, out)
    return out


@_serial
def _gradient_tasks(routines, dout, x, skip, words, dW, db, counter):
    """Take some inputs at a time as long as there are any."""
    kind, (n, k), m = x.dtype.type(0), x.shape, dout.shape[1]
    zeros = np.zeros(m, x.dtype)
    while True:
        task = take_next(address_of(counter))
        if task >= words.shape[1]:
            return
        products.gradient(
            routines, kind, task, address_of(x), n, k, address_of(dout), m, skip,
            address_of(words), address_of(zeros), address_of(dW), address_of(db),
        )  # fmt: skip


@_serial
def _affine_gradients(routines, dout, x, dW, db):
    kind, (n, k), skip = x.dtype.type(0), x.shape, _skippable(x, dout)
    words = products.room(n, k, skip)
    if skip:
        products.find_nonzeros(kind, address_of(x), n, k, address_of(words))
    _gradient_tasks(routines, dout, x, skip, words, dW, db, np.zeros(1, np.int64))


@_parallel
def _affine_gradients_parallel(routines, dout, x, dW, db, threads):
    kind, (n, k), skip = x.dtype.type(0), x.shape, _skippable(x, dout)
    words = products.room(n, k, skip)
    if skip:
        products.find_nonzeros(kind, address_of(x), n, k, address_of(words))
    counter = np.zeros(1, np.int64)
    for _ in prange(threads):
        _gradient_tasks(routines, dout, x, skip, words, dW, db, counter)


def affine_gradients(dout, x):
    """Gradients of x W + b by W and b."""
    if not x.size or not dout.size:
        return x.T @ dout, dout.sum(axis=0)
    dW, db = np.empty((x.shape[1], dout.shape[1]), x.dtype), np.empty(dout.shape[1], x.dtype)
    loops = _affine_gradients, _affine_gradients_parallel
    _multiply(*loops, x.shape[0] * dW.size, products.routines(x.dtype, True), dout, x, dW, db)
    return dW, db


@_serial
def _transpose(W, out):
    products.transpose(W.dtype.type(0), address_of(W), W.shape[0], W.shape[1], address_of(out))


def affine_backward(dout, x, W):
    """Gradients by x, W and b."""
    if x.shape[0] < TRANSPOSED_ROWS:
        dx = dout @ W.T
    else:
        transposed = np.empty((W.shape[1], W.shape[0]), W.dtype)
        _transpose(W, transposed)
        dx = affine(dout, transposed, np.zeros(W.shape[0], W.dtype))
    return dx, *affine_gradients(dout, x)


def _multiply(serial, parallel, work, *arguments):
    """Run the loop that suits so many multiplications."""
    if work < PARALLEL_PRODUCT:
        serial(*arguments)
    else:
        with launching:
            parallel(*arguments, thread_count())


# -- elementwise


@_serial
def _sigmoid_element(x):
    one = type(x)(1)
    z = _exp(-abs(x))
    y = one / (one + z)
    return y if x >= 0 else z * y


@_serial
def _sigmoid(x, y):
    for i in range(x.size):
        y[i] = _sigmoid_element(x[i])


@_parallel
def _sigmoid_parallel(x, y):
    for i in prange(x.size):
        y[i] = _sigmoid_element(x[i])


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
def _softmax(x, y):
    for i in range(x.shape[0]):
        _softmax_row(x[i], y[i])


@_parallel
def _softmax_parallel(x, y):
    for i in prange(x.shape[0]):
        _softmax_row(x[i], y[i])


def softmax(x):
    """exp(x) / sum of exp(x) over the last axis."""
    y = np.empty_like(x)
    rows = (-1, x.shape[-1]) if x.size else (0, 1)
    _run(_softmax, _softmax_parallel, x.size, x.reshape(rows), y.reshape(rows))
    return y


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
def _softmax_with_loss(x, t, y, losses):
    for i in range(x.shape[0]):
        losses[i] = _softmax_loss_row(x[i], t[i], y[i])


@_parallel
def _softmax_with_loss_parallel(x, t, y, losses):
    for i in prange(x.shape[0]):
        losses[i] = _softmax_loss_row(x[i], t[i], y[i])


def softmax_with_loss(x, t):
    """Mean cross-entropy error of softmax(x) against t (N, C), and softmax(x)."""
    y = np.empty_like(x)
    losses = np.empty(x.shape[0], x.dtype)
    _run(_softmax_with_loss, _softmax_with_loss_parallel, x.size, x, t, y, losses)
    return losses.sum() / x.shape[0], y


@_serial
def _softmax_loss_row_backward(y, t, scale, dx):
    offset = y.dtype.type(LOG_OFFSET)
    total = y.dtype.type(0)
    for j in range(y.size):
        dx[j] = t[j] * y[j] / (y[j] + offset)
        total += dx[j]
    for j in range(y.size):
        dx[j] = (y[j] * total - dx[j]) * scale


@_serial
def _softmax_with_loss_backward(y, t, scale, dx):
    for i in range(y.shape[0]):
        _softmax_loss_row_backward(y[i], t[i], scale, dx[i])


@_parallel
def _softmax_with_loss_backward_parallel(y, t, scale, dx):
    for i in prange(y.shape[0]):
        _softmax_loss_row_backward(y[i], t[i], scale, dx[i])


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
