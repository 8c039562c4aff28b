# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""The loss differences of a whole layer in one compiled, parallel, vectorised loop.

The innermost loops run over the perturbed columns: all the weights from one input of one sample
at a time, a vector of LLVM's for each unit of the layers behind. Buffers are padded to whole
vectors, and a piece of the inputs goes to each thread.
"""

import math

import numba
import numpy as np
from numba import prange
from numba.extending import overload

from xnet.backend import LOG_OFFSET
from xnet_numba.kernels import _bits_to_float, _float_to_bits, _parallel, _serial, launching

LANES = 8
"""The columns are padded to a multiple of this, a vector of float64 at its widest."""

PIECES_PER_THREAD = 16
"""Inputs differ in how many samples have them; small pieces keep the threads equally busy."""

SIGMOID, RELU, AFFINE = 0, 1, 2
OPERATIONS = {"sigmoid": SIGMOID, "relu": RELU, "affine": AFFINE}

SQRT_HALF_BITS = np.int64(np.array(math.sqrt(0.5)).view(np.int64))
SHIFTER = 1.5 * 2.0**52
SHIFTER_BITS = np.int64(np.array(SHIFTER).view(np.int64))
LN2_HIGH = math.floor(math.log(2) * 2.0**32) / 2.0**32
LN2_LOW = (math.log(2) - LN2_HIGH) + 2.3190468138462996e-17
ATANH = tuple(2.0 / (2 * k + 1) for k in range(12, 0, -1))


def _exp_to_500(x):
    raise NotImplementedError  # compiled code only: see the overload


@overload(_exp_to_500, fastmath={"contract"})
def _exp_to_500_overload(x):
    """exp of a float64 of at most 500, as `_exp` but for results below 1e-307, which stay there.

    Each is added to a sum of at least 1 or to 1e-7, where no such number leaves a trace; and one
    power of two is enough.
    """
    log2e, coefficients = 1 / math.log(2), tuple(1 / math.factorial(k) for k in range(12, -1, -1))
    first = 1 / math.factorial(13)
    exponent = np.int64(1023) - SHIFTER_BITS

    def exp(x):
        x = -707.0 if x < -707.0 else x
        shifted = x * log2e + SHIFTER
        n = shifted - SHIFTER
        r = (x - n * LN2_HIGH) - n * LN2_LOW
        p = first
        for c in numba.literal_unroll(coefficients):
            p = p * r + c
        return p * _bits_to_float((_float_to_bits(shifted) + exponent) << np.int64(52))

    return exp


def _log(x):
    raise NotImplementedError  # compiled code only: see the overload


@overload(_log, fastmath={"contract"})
def _log_overload(x):
    """log of a positive, normal float64: x = 2^n m, 1/sqrt(2) <= m < sqrt(2).

    log m is 2 atanh((m - 1) / (m + 1)) by its Taylor series, whose remainder after the 12th term
    is below 2^-60; n is made a float by its bits, for vectors convert no integers on most CPUs.
    """

    def log(x):
        bits = _float_to_bits(x)
        n = (bits - SQRT_HALF_BITS) >> np.int64(52)
        m = _bits_to_float(bits - (n << np.int64(52)))
        power = _bits_to_float(SHIFTER_BITS + n) - SHIFTER
        s = (m - 1.0) / (m + 1.0)
        z = s * s
        p = 0.0
        for c in numba.literal_unroll(ATANH):
            p = (p + c) * z
        return power * LN2_HIGH + (2.0 * s + (s * p + power * LN2_LOW))

    return log


@_serial
def _activate(operation, v):
    if operation == SIGMOID:
        for k in range(v.size):
            z = _exp_to_500(-abs(v[k]))
            y = 1.0 / (1.0 + z)
            v[k] = y if v[k] >= 0 else z * y
    else:
        for k in range(v.size):
            v[k] = 0.0 if v[k] <= 0 else v[k]


@_serial
def _rest_of_network(units, width, spare, operations, flat):
    """The first `width` rows of `units` through what lies behind; returns the rows of scores.

    Both buffers have rows for the widest layer.
    """
    columns = units.shape[1]
    for k in range(operations.shape[0]):
        operation, at, width_in, width_out = operations[k]
        if operation != AFFINE:
            _activate(operation, units[:width].reshape(-1))
            continue
        bias = at + width_in * width_out
        for q in range(width_out):
            out = spare[q]
            for j in range(columns):
                out[j] = flat[bias + q]
            for p in range(width_in):
                weight, values = flat[at + p * width_out + q], units[p]
                for j in range(columns):
                    out[j] += weight * values[j]
        units, spare, width = spare, units, width_out
    return units[:width]


@_serial
def _add_losses(scores, cross_entropy, t, sign, total, top, norm):
    """Add `sign` times the loss of each column of `scores` (C, columns) to `total`."""
    classes, columns = scores.shape
    if not cross_entropy:
        for c in range(classes):
            for j in range(columns):
                difference = scores[c, j] - t[c]
                total[j] += sign * 0.5 * difference * difference
        return
    for j in range(columns):
        top[j] = scores[0, j]
    for c in range(1, classes):
        for j in range(columns):
            top[j] = max(top[j], scores[c, j])
    for j in range(columns):
        norm[j] = 0.0
    for c in range(classes):
        for j in range(columns):
            e = _exp_to_500(scores[c, j] - top[j])
            scores[c, j] = e
            norm[j] += e
    _add_cross_entropies(scores, norm, t, sign, total)


@_serial
def _add_losses_of_products(base, change, W_columns, t, sign, total, exps, norm):
    """As `_add_losses` of the cross-entropy of the scores base + change W, in one pass.

    The softmax is taken relative to the largest of `base`: no score exceeds that by over 500.
    """
    classes, columns = W_columns.shape
    top = base.max()
    for j in range(columns):
        norm[j] = 0.0
    for c in range(classes):
        offset = base[c] - top
        for j in range(columns):
            e = _exp_to_500(offset + change[j] * W_columns[c, j])
            exps[c, j] = e
            norm[j] += e
    _add_cross_entropies(exps[:classes], norm, t, sign, total)


@_serial
def _add_cross_entropies(exps, norm, t, sign, total):
    for c in range(exps.shape[0]):
        if t[c] != 0:
            weight = sign * t[c]
            for j in range(norm.size):
                total[j] -= weight * _log(exps[c, j] / norm[j] + LOG_OFFSET)


@_serial
def _input_differences(
    column, step, a, z, before, after, W_columns, largest_weight, operations, flat,
    cross_entropy, t, total, change, units, spare, top, norm,
):  # fmt: skip
    """The differences for all weights from one input, into `total`; `column` (N,) holds it."""
    columns = total.size
    total[:] = 0
    ends_here = cross_entropy and operations.shape[0] == 0 and W_columns.shape[0] > 0
    for n in range(column.size):
        if column[n] == 0:
            continue
        for sign in (1.0, -1.0):
            for j in range(columns):
                change[j] = a[n, j] + sign * step * column[n]
            for k in range(before.size):
                _activate(before[k], change)
            if W_columns.shape[0]:
                reach = 0.0
                for j in range(columns):
                    change[j] -= z[n, j]
                    reach = max(reach, abs(change[j]))
                if ends_here and reach * largest_weight <= 500.0:
                    _add_losses_of_products(
                        after[n], change, W_columns, t[n], sign, total, units, norm
                    )
                    continue
                for q in range(after.shape[1]):
                    for j in range(columns):
                        units[q, j] = after[n, q] + change[j] * W_columns[q, j]
            else:  # the last affine layer: of the scores, only the perturbed column's own changes
                for q in range(after.shape[1]):
                    for j in range(columns):
                        units[q, j] = after[n, q]
                    units[q, q] = change[q]
            scores = _rest_of_network(units, after.shape[1], spare, operations, flat)
            _add_losses(scores, cross_entropy, t[n], sign, total, top, norm)


@_parallel
def _loss_differences(
    x, step, a, z, before, after, W_columns, operations, flat, cross_entropy, t, widest, pieces, out
):
    inputs = x.shape[1] + 1
    ones = np.ones(x.shape[0])
    largest_weight = np.abs(W_columns).max() if W_columns.size else 0.0
    for piece in prange(pieces):
        columns = a.shape[1]
        total, change = np.empty(columns), np.empty(columns)
        top, norm = np.empty(columns), np.empty(columns)
        units, spare = np.empty((widest, columns)), np.empty((widest, columns))
        for i in range(piece * inputs // pieces, (piece + 1) * inputs // pieces):
            column = ones if i == x.shape[1] else x[:, i].copy()
            _input_differences(
                column, step, a, z, before, after, W_columns, largest_weight, operations, flat,
                cross_entropy, t, total, change, units, spare, top, norm,
            )  # fmt: skip
            for j in range(out.shape[1]):
                out[i, j] = total[j] / x.shape[0]


def loss_differences(backend, x, a, steps, loss, t, h):
    """L(w + h) - L(w - h) for every weight and bias of one layer, (D + 1, M), in float64."""
    first = next((k for k, step in enumerate(steps) if step[0] == "affine"), len(steps))
    before = np.array([OPERATIONS[step[0]] for step in steps[:first]], np.int64)
    z = a
    for name, *_ in steps[:first]:
        z = getattr(backend, name)(z)
    if first < len(steps):
        _, W, b = steps[first]
        after, W_columns = backend.affine(z, W, b), _padded(W.T)
    else:
        after, W_columns = z, np.empty((0, 0))
    operations, arrays, at, width = [], [np.empty(0)], 0, after.shape[1]
    widest = width
    for name, *parameters in steps[first + 1 :]:
        width_out = parameters[0].shape[1] if parameters else width
        operations.append((OPERATIONS[name], at, width, width_out))
        arrays += [np.ascontiguousarray(array).reshape(-1) for array in parameters]
        at += sum(array.size for array in parameters)
        width, widest = width_out, max(widest, width_out)
    out = np.empty((x.shape[1] + 1, a.shape[1]))
    with launching:
        _loss_differences(
            np.ascontiguousarray(x),
            float(h),
            _padded(a),
            _padded(z),
            before,
            np.ascontiguousarray(after),
            W_columns,
            np.array(operations, np.int64).reshape(-1, 4),
            np.concatenate(arrays),
            loss == "cross_entropy",
            np.ascontiguousarray(t),
            widest,
            min(x.shape[1] + 1, PIECES_PER_THREAD * numba.get_num_threads()),
            out,
        )
    return out


def _padded(array):
    """`array` with columns of zeros up to a multiple of LANES."""
    extra = -array.shape[1] % LANES
    return np.ascontiguousarray(np.pad(array, ((0, 0), (0, extra))))
