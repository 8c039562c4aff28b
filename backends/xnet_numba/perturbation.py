# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""The loss differences of a whole layer in one compiled, parallel, vectorised loop.

The innermost loops run over the perturbed columns: all the weights from one input of one sample
at a time, padded to whole vectors. A piece of the inputs goes to each thread.

`Quick` is for the layers next to the scores of a classifier with one label a sample, where nearly
all weights are; `General` for any other, and for samples with numbers out of `Quick`'s range.
Both evaluate every loss at the perturbed weight. `Quick` needs fewer exponentials and logarithms
for it, by identities that hold for a perturbation of any size:

    exp(a + d) = exp(a) exp(d)          of the sigmoid and of the scores, each factor once
    1 / p_t = sum_c exp(s_c - s_t)      the label's own term is 1
    sum_n log p_n = log prod_n p_n      one logarithm for as many samples as cannot overflow
"""

import math
from typing import NamedTuple

import numba
import numpy as np
from numba import prange

from xnet.backend import LOG_OFFSET
from xnet_numba.compiling import _parallel, _serial, launching
from xnet_numba.elementary import _exp2, _exp_to_500, _log

LANES = 8
"""The columns are padded to a multiple of this, a vector of float64 at its widest."""

PIECES_PER_THREAD = 16
"""Inputs differ in how many samples have them; small pieces keep the threads equally busy."""

SIGMOID, RELU, AFFINE = 0, 1, 2
OPERATIONS = {"sigmoid": SIGMOID, "relu": RELU, "affine": AFFINE}

FARTHEST = 300.0
"""An exponent, at most, in `Quick`: the product of two such exponentials is in range."""

ROOM = 700.0
"""The sum of the exponents, at most, of the factors of a product."""


# -- any layer


class General(NamedTuple):
    """One perturbed layer of a network, and all that lies behind it."""

    a: np.ndarray  # its output (N, columns)
    z: np.ndarray  # that through the operations before the next affine layer
    before: np.ndarray  # those operations
    after: np.ndarray  # z through the next affine layer, or z if there is none
    W_columns: np.ndarray  # that layer's weights (width, columns), or (0, 0)
    operations: np.ndarray  # what follows: operation, place of W in flat, width in, width out
    flat: np.ndarray  # the weights and biases of all that follows
    widest: int
    cross_entropy: bool
    t: np.ndarray  # targets (N, C)


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
def _add_losses(scores, cross_entropy, t, sign, total):
    """Add `sign` times the loss of each column of `scores` (C, columns) to `total`."""
    classes, columns = scores.shape
    if not cross_entropy:
        for c in range(classes):
            for j in range(columns):
                difference = scores[c, j] - t[c]
                total[j] += sign * 0.5 * difference * difference
        return
    top = scores[0].copy()
    norm = np.zeros(columns)
    for c in range(1, classes):
        for j in range(columns):
            top[j] = max(top[j], scores[c, j])
    for c in range(classes):
        for j in range(columns):
            scores[c, j] = _exp_to_500(scores[c, j] - top[j])
            norm[j] += scores[c, j]
    for c in range(classes):
        if t[c] != 0:
            weight = sign * t[c]
            for j in range(columns):
                total[j] -= weight * _log(scores[c, j] / norm[j] + LOG_OFFSET)


@_serial
def _add_differences(general, n, shift, total, change, units, spare):
    """Add what the weights from an input of sample n make to `total`, if it moves by `shift`."""
    columns, width = total.size, general.after.shape[1]
    for sign in (1.0, -1.0):
        for j in range(columns):
            change[j] = general.a[n, j] + sign * shift
        for k in range(general.before.size):
            _activate(general.before[k], change)
        for q in range(width):
            for j in range(columns):
                units[q, j] = general.after[n, q]
        if general.W_columns.shape[0]:
            for q in range(width):
                for j in range(columns):
                    units[q, j] += (change[j] - general.z[n, j]) * general.W_columns[q, j]
        else:  # the last affine layer: of the scores, only the perturbed column's own changes
            for q in range(width):
                units[q, q] = change[q]
        scores = _rest_of_network(units, width, spare, general.operations, general.flat)
        _add_losses(scores, general.cross_entropy, general.t[n], sign, total)


# -- the layers next to a classifier's scores


class Quick(NamedTuple):
    """One perturbed layer, the last affine layer or the one before it.

    The columns are those of the layer for +h, then again for -h.
    """

    reach: np.ndarray  # (N,): how far, at most, a shift may move a score or a sigmoid's input
    per_shift: float  # how far a shift of 1 moves a score or a sigmoid's input, at most
    spread: np.ndarray  # (N,): log sum_c exp(s_c - s_label)
    labels: np.ndarray  # (N,)
    exps: np.ndarray  # exp(s_c - s_label) (N, C)
    # The layer before the last:
    operation: int  # its activation, or AFFINE if none
    a: np.ndarray  # its output (N, columns), or exp(-output) if a sigmoid follows
    z: np.ndarray  # that after the activation
    W_columns: np.ndarray  # the last layer's weights (C, columns) in units of ln 2, or (0, 0)
    # The last layer, when a score moves: 1 / p_label = still + moving exp(+-shift)
    still: np.ndarray  # (N, columns)
    moving: np.ndarray


_NONE = np.empty((0, 0))
NOT_QUICK = Quick(
    reach=np.empty(0),
    per_shift=1.0,
    spread=np.empty(0),
    labels=np.empty(0, np.int64),
    exps=_NONE,
    operation=AFFINE,
    a=_NONE,
    z=_NONE,
    W_columns=_NONE,
    still=_NONE,
    moving=_NONE,
)
"""No columns: every sample goes through `General`."""


@_serial
def _norms_behind_activation(quick, n, shift, change, norm):
    """1 / p_label of sample n in `norm`, if the layer before the last moves by +-shift."""
    half = change.size // 2
    a, z, label = quick.a[n], quick.z[n], quick.labels[n]
    if quick.operation == SIGMOID:
        up, down = math.exp(-shift), math.exp(shift)
        for j in range(change.size):
            change[j] = 1.0 / (1.0 + a[j] * (up if j < half else down)) - z[j]
    else:
        for j in range(change.size):
            change[j] = a[j] + (shift if j < half else -shift)
        if quick.operation == RELU:
            for j in range(change.size):
                change[j] = 0.0 if change[j] <= 0 else change[j]
        for j in range(change.size):
            change[j] -= z[j]
    own = quick.W_columns[label]
    for j in range(norm.size):
        norm[j] = 1.0
    for c in range(quick.W_columns.shape[0]):
        if c != label:
            e, W = quick.exps[n, c], quick.W_columns[c]
            for j in range(norm.size):
                norm[j] += e * _exp2(change[j] * (W[j] - own[j]))


@_serial
def _norms_of_scores(quick, n, shift, factor, norm):
    """1 / p_label of sample n in `norm`, if one score moves by +-shift."""
    half, label = factor.size // 2, quick.labels[n]
    up, down = math.exp(shift), math.exp(-shift)
    for j in range(factor.size):
        factor[j] = up if j < half else down
    # The other scores move the other way, seen from the label's own.
    factor[label], factor[half + label] = down, up
    for j in range(norm.size):
        norm[j] = quick.still[n, j] + quick.moving[n, j] * factor[j]


@_serial
def _take_logarithms(numerator, denominator, total):
    for j in range(total.size):
        total[j] += _log(numerator[j] / denominator[j])
        numerator[j] = denominator[j] = 1.0


@_serial
def _losses(quick, column, step, losses, change, norm, numerator, denominator, slow):
    """The sum over the samples of the losses at each perturbed weight from one input.

    `column` (N,) holds that input. Samples out of range are flagged in `slow`.
    """
    losses[:] = 0.0
    numerator[:] = 1.0
    denominator[:] = 1.0
    room = ROOM
    for n in range(column.size):
        shift = step * column[n]
        reach = abs(shift) * quick.per_shift
        slow[n] = not reach <= quick.reach[n]  # NaN is out of range
        if shift == 0 or slow[n]:
            continue
        room -= quick.spread[n] + reach
        if room < 0:
            _take_logarithms(numerator, denominator, losses)
            room = ROOM - quick.spread[n] - reach
        if quick.W_columns.shape[0]:
            _norms_behind_activation(quick, n, shift, change, norm)
        else:
            _norms_of_scores(quick, n, shift, change, norm)
        # The loss is -log(p + 1e-7) = log(norm / (1 + 1e-7 norm)), norm = 1 / p.
        for j in range(norm.size):
            numerator[j] *= norm[j]
            denominator[j] *= 1.0 + LOG_OFFSET * norm[j]
    _take_logarithms(numerator, denominator, losses)


# -- the loop over the inputs


@_parallel
def _loss_differences(x, step, general, quick, pieces, out):
    inputs = x.shape[1] + 1
    columns = general.a.shape[1]
    doubled = max(quick.W_columns.shape[1], quick.still.shape[1])
    for piece in prange(pieces):
        total, shifted = np.empty(columns), np.empty(columns)
        units = np.empty((general.widest, columns))
        spare = np.empty((general.widest, columns))
        losses, change, norm = np.empty(doubled), np.empty(doubled), np.empty(doubled)
        numerator, denominator = np.empty(doubled), np.empty(doubled)
        slow = np.ones(x.shape[0], np.bool_)
        for i in range(piece * inputs // pieces, (piece + 1) * inputs // pieces):
            column = np.ones(x.shape[0]) if i == x.shape[1] else x[:, i].copy()
            total[:] = 0.0
            if doubled:
                _losses(quick, column, step, losses, change, norm, numerator, denominator, slow)
                half = doubled // 2
                for j in range(columns):
                    total[j] = losses[j] - losses[half + j]
            for n in range(column.size):
                if slow[n] and column[n] != 0:
                    _add_differences(general, n, step * column[n], total, shifted, units, spare)
            for j in range(out.shape[1]):
                out[i, j] = total[j] / x.shape[0]


def loss_differences(backend, x, a, steps, loss, t, h):
    """L(w + h) - L(w - h) for every weight and bias of one layer, (D + 1, M), in float64."""
    general = _general(backend, a, steps, loss, t)
    out = np.empty((x.shape[1] + 1, a.shape[1]))
    pieces = min(x.shape[1] + 1, PIECES_PER_THREAD * numba.get_num_threads())
    quick = _quick(backend, a, steps, loss, t)
    with launching:
        _loss_differences(np.ascontiguousarray(x), float(h), general, quick, pieces, out)
    return out


def _general(backend, a, steps, loss, t):
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
    return General(
        a=_padded(a),
        z=_padded(z),
        before=before,
        after=np.ascontiguousarray(after),
        W_columns=W_columns,
        operations=np.array(operations, np.int64).reshape(-1, 4),
        flat=np.concatenate(arrays),
        widest=widest,
        cross_entropy=loss == "cross_entropy",
        t=np.ascontiguousarray(t),
    )


def _quick(backend, a, steps, loss, t):
    """What `Quick` holds, or NOT_QUICK."""
    one_label = ((t == 0) | (t == 1)).all() and (t.sum(axis=1) == 1).all()
    *activation, last = [step[0] for step in steps] or ["affine"]
    if loss != "cross_entropy" or not one_label or last != "affine" or len(activation) > 1:
        return NOT_QUICK
    if activation == ["affine"]:
        return NOT_QUICK
    z = getattr(backend, activation[0])(a) if activation else a
    scores = backend.affine(z, *steps[-1][1:]) if steps else a
    labels = t.argmax(axis=1)
    exps = np.exp(scores - np.take_along_axis(scores, labels[:, None], axis=1))
    spread = np.log(exps.sum(axis=1))
    reach = np.where(spread <= FARTHEST, FARTHEST, -1.0)  # NaN is out of range
    quick = NOT_QUICK._replace(reach=reach, spread=spread, labels=labels, exps=exps)
    if not steps:
        # The sum of the others' exponentials: of those before each and of those after it.
        before = np.cumsum(np.pad(exps[:, :-1], ((0, 0), (1, 0))), axis=1)
        after = np.cumsum(np.pad(exps[:, :0:-1], ((0, 0), (1, 0))), axis=1)[:, ::-1]
        others = before + after
        still, moving = np.where(t == 1, 1.0, others), np.where(t == 1, others, exps)
        return quick._replace(still=_doubled(still), moving=_doubled(moving))
    if activation == ["sigmoid"]:
        reach[~(np.abs(a) <= FARTHEST).all(axis=1)] = -1.0
        a = np.exp(-a)
    W = steps[-1][1]
    return quick._replace(
        per_shift=max(1.0, 2 * float(np.abs(W).max())),
        operation=OPERATIONS[activation[0]] if activation else AFFINE,
        a=_doubled(a),
        z=_doubled(z),
        W_columns=_doubled(W.T / math.log(2)),
    )


def _padded(array, multiple=LANES):
    """`array` with columns of zeros up to a multiple."""
    extra = -array.shape[1] % multiple
    return np.ascontiguousarray(np.pad(array, ((0, 0), (0, extra))))


def _doubled(array):
    """`array` twice, side by side, padded to whole vectors."""
    half = _padded(array, LANES // 2)
    return np.concatenate([half, half], axis=1)
