# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""The loss differences of a whole layer in compiled, vectorised loops.

The innermost loops run over perturbed columns: all the weights from one input or some, of one
sample at a time. Pieces of the inputs go to whoever of the pool is free.

`general` is for any operations behind the layer: activations and the loss are the loops that
`generated` writes of them, products the tiles of `products`. `quick` is a shorter way, which gives
the same numbers but for rounding, for the layers next to the scores of a classifier with one label
a sample, where nearly all weights are; samples with numbers out of its range go through `general`.
Both evaluate every loss at the perturbed weight. `quick` needs fewer exponentials and logarithms
for it, by identities that hold for a perturbation of any size:

    exp(a + d) = exp(a) exp(d)          of the sigmoid and of the scores, each factor once
    1 / p_t = sum_c exp(s_c - s_t)      the label's own term is 1
    sum_n log p_n = log prod_n p_n      one logarithm for as many samples as cannot overflow
"""

import math

import numpy as np
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage]

from xnet import perturbation
from xnet.formulas import FormulaError
from xnet.operations import ReLU, Sigmoid, SoftmaxWithLoss
from xnet_numba import generated, products
from xnet_numba.compiling import _serial, address, routine, thread_count
from xnet_numba.elementary import _exp2
from xnet_numba.generated import FAST, Elementary
from xnet_numba.intrinsics import address_of, call, lives_until_here, pointer_to, record_pointer
from xnet_numba.pool import claim, pool, run

NOTHING, SIGMOID, RELU = range(3)
QUICK_LOSS = SoftmaxWithLoss
QUICK_ACTIVATIONS = {None: NOTHING, Sigmoid: SIGMOID, ReLU: RELU}
"""What `quick` is for: this loss, behind a last product, with one of these before it, or none.

It has their equations a second time, as the identities above make them; nothing else here knows
any operation.
"""

FLOAT64 = np.dtype(np.float64)

LANES = 8
"""The columns of `quick` are padded to a multiple of this, a vector of float64 at its widest."""

BUFFER = 1 << 13
"""Numbers, about, in the widest array between two operations: 64 KiB, in the second-level cache."""

PIECES_PER_THREAD = 16
"""Inputs differ in how many samples have them; small pieces keep the threads equally busy."""

LOSS_WORK = 200
"""Of each number in the widest array, as `Pool.share` counts it."""

FARTHEST = 300.0
"""An exponent, at most, in `quick`: the product of two such exponentials is in range."""

ROOM = 700.0
"""The sum of the exponents, at most, of the factors of a product."""


# -- what compiled code reads: arrays are given by their addresses


STEP = np.dtype([(name, np.int64) for name in ("loop", "numbers", "W", "b", "inputs", "outputs")])
"""A product, or if it has a loop, an activation by that loop and its numbers."""

GENERAL = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("a", "z", "after", "width", "W", "before", "befores", "steps", "count", "dense"),
            *("loss", "numbers", "t", "classes", "widest", "group", "together", "block"),
        )
    ]
)
"""One perturbed layer of a network, and all that lies behind it.

`a` is its output (N, M), `z` that after the activations `before` the next product, `after` (N,
width) that of the next product or, if there is none, z. `W` are that product's weights, or 0: for
each `block` of columns (width, 2 together block), a row of them again and again. `steps` is what
follows, and `widest` the most rows that there are on the way; t (N, classes) are the targets. A
piece is a `group` of inputs, of which so many at a time go `together` through the network.
"""

QUICK = np.dtype(
    [
        *(
            (name, np.int64)
            for name in (
                *("columns", "activation", "reach", "spread", "labels", "exps", "classes"),
                *("a", "z", "W", "still", "moving", "log"),
            )
        ),
        ("per_shift", np.float64),
    ]
)
"""One perturbed layer, the last product or the one before it.

The `columns` are those of the layer for +h, then again for -h; 0 if no sample goes this way. A
shift may move a score or a sigmoid's input by at most `reach` (N,), negative for none, and one of 1
does by at most `per_shift`. `exps` (N, classes) are exp(s_c - s_label), `spread` (N,) is the
logarithm of their sum.

Of the layer before the last, `a` (N, columns) is its output, or exp(-output) if a sigmoid follows,
`z` that after the activation, and W (classes, columns) the last layer's weights in units of ln 2.
Of the last layer W is 0, and a score moves: 1 / p_label = still + moving exp(+-shift), both (N,
columns). `log` is the loop that takes logarithms.
"""

JOB = np.dtype(
    [
        *((name, np.int64) for name in ("taken", "front", "back")),
        *((name, np.int64) for name in ("x", "samples", "inputs", "columns", "out")),
        ("step", np.float64),
        ("general", GENERAL),
        ("quick", QUICK),
    ]
)
"""The differences `out` (inputs + 1, columns) for a layer of the input x (samples, inputs)."""

_job_pointer, _step_pointer = record_pointer(JOB), record_pointer(STEP)


@_serial
def _matrix(address, rows, columns):
    return carray(pointer_to(0.0, address), (rows, columns))


# -- any layer


@_serial
def _through(step, units, columns, dense, spare):
    """One step for so many columns; returns the addresses of its output and of the other buffer."""
    if step.loop != 0:
        call(step.loop, (0.0, units, step.outputs * columns, step.numbers))
        return units, spare
    rows = _matrix(spare, step.outputs, columns)
    bias = carray(pointer_to(0.0, step.b), step.outputs)
    for q in range(step.outputs):
        for j in range(columns):
            rows[q, j] = bias[q]
    # W' units + b, each of them (features, columns).
    row, line = 8 * step.outputs, 8 * columns
    product = step.outputs, step.inputs, units, line, spare, line, spare, line, columns
    call(dense, (0.0, step.W, 8, row, *product))
    return spare, units


@_serial
def _add_differences(
    general, samples, columns, n, shifts, which, count, change, units, spare, total
):
    """Add to `total` (group, M) what sample n makes of it.

    The first `count` of `shifts` are by how much the outputs move for the weights from the inputs
    `which`. The other arrays are room.
    """
    dense, classes, width = general.dense, general.classes, general.width
    a, z = _matrix(general.a, samples, columns)[n], _matrix(general.z, samples, columns)[n]
    after = _matrix(general.after, samples, width)[n]
    before = carray(_step_pointer(general.before), general.befores)
    steps = carray(_step_pointer(general.steps), general.count)
    for first in range(0, columns, general.block):
        block = min(general.block, columns - first)
        size = 2 * count * block
        # The columns for +h from one input, those for -h from it, those from the next.
        moved = _matrix(change, 2 * count, block)
        for k in range(count):
            for j in range(block):
                moved[2 * k, j] = a[first + j] + shifts[k]
                moved[2 * k + 1, j] = a[first + j] - shifts[k]
        for k in range(before.size):
            call(before[k].loop, (0.0, change, size, before[k].numbers))
        rows = _matrix(units, width, size)
        if general.W != 0:
            for k in range(2 * count):
                for j in range(block):
                    moved[k, j] -= z[first + j]
            stored = 2 * general.together * block
            W = _matrix(general.W + 16 * general.together * width * first, width, stored)
            _outer(change, size, after, W, rows)
        else:  # the last product: of the scores, only the perturbed column's own changes
            for q in range(width):
                for j in range(size):
                    rows[q, j] = after[q]
            for k in range(2 * count):
                for j in range(block):
                    rows[first + j, k * block + j] = moved[k, j]
        at, other = units, spare
        for k in range(steps.size):
            at, other = _through(steps[k], at, size, dense, other)
        target = general.t + 8 * classes * n
        call(general.loss, (0.0, at, target, change, size, classes, general.numbers))
        for k in range(count):
            for j in range(block):
                total[which[k], first + j] += moved[2 * k, j] - moved[2 * k + 1, j]


@_serial
def _outer(change, size, after, W, rows):
    """Each row q: after[q] + change W[q]."""
    d = carray(pointer_to(0.0, change), size)
    for q in range(after.size):
        value, weights, row = after[q], W[q], rows[q]
        for j in range(size):
            row[j] = value + d[j] * weights[j]


# -- the layers next to a classifier's scores


@_serial
def _norms_behind_activation(quick, samples, n, label, shift, change, norm):
    """1 / p_label of sample n in `norm`, if the layer before the last moves by +-shift."""
    columns, half = norm.size, norm.size // 2
    a, z = _matrix(quick.a, samples, columns)[n], _matrix(quick.z, samples, columns)[n]
    if quick.activation == SIGMOID:
        up, down = math.exp(-shift), math.exp(shift)
        for j in range(columns):
            change[j] = 1.0 / (1.0 + a[j] * (up if j < half else down)) - z[j]
    else:
        for j in range(columns):
            change[j] = a[j] + (shift if j < half else -shift)
        if quick.activation == RELU:
            for j in range(columns):
                change[j] = 0.0 if change[j] <= 0 else change[j]
        for j in range(columns):
            change[j] -= z[j]
    exps = _matrix(quick.exps, samples, quick.classes)
    weights = _matrix(quick.W, quick.classes, columns)
    own = weights[label]
    for j in range(columns):
        norm[j] = 1.0
    for c in range(quick.classes):
        if c != label:
            e, W = exps[n, c], weights[c]
            for j in range(columns):
                norm[j] += e * _exp2(change[j] * (W[j] - own[j]))


@_serial
def _norms_of_scores(quick, samples, n, label, shift, factor, norm):
    """1 / p_label of sample n in `norm`, if one score moves by +-shift."""
    columns, half = norm.size, norm.size // 2
    still, moving = _matrix(quick.still, samples, columns), _matrix(quick.moving, samples, columns)
    up, down = math.exp(shift), math.exp(-shift)
    for j in range(columns):
        factor[j] = up if j < half else down
    # The other scores move the other way, seen from the label's own.
    factor[label], factor[half + label] = down, up
    for j in range(columns):
        norm[j] = still[n, j] + moving[n, j] * factor[j]


@_serial
def _take_logarithms(log, product, losses):
    call(log, (0.0, address_of(product), product.size, 0))
    for j in range(losses.size):
        losses[j] += product[j]
        product[j] = 1.0


@_serial
def _add_quick(quick, column, step, todo, change, norm, product, losses):
    """The sum over the samples of the losses at each perturbed weight from one input.

    `column` (N,) holds that input. Of the samples to do, those in range are done.
    """
    samples = column.size
    reaches = carray(pointer_to(0.0, quick.reach), samples)
    spreads = carray(pointer_to(0.0, quick.spread), samples)
    labels = carray(pointer_to(np.int64(0), quick.labels), samples)
    losses[:] = 0.0
    product[:] = 1.0
    room = ROOM
    for n in range(samples):
        shift = step * column[n]
        reach = abs(shift) * quick.per_shift
        if not todo[n] or not reach <= reaches[n]:  # NaN is out of range
            continue
        todo[n] = False
        room -= spreads[n] + reach
        if room < 0:
            _take_logarithms(quick.log, product, losses)
            room = ROOM - spreads[n] - reach
        if quick.W != 0:
            _norms_behind_activation(quick, samples, n, labels[n], shift, change, norm)
        else:
            _norms_of_scores(quick, samples, n, labels[n], shift, change, norm)
        for j in range(norm.size):
            product[j] *= norm[j]
    _take_logarithms(quick.log, product, losses)


# -- the loop over the inputs


def _work(at_job, helping):
    """Take the next inputs, as long as there are any; the last one is that of the biases, 1."""
    job = carray(_job_pointer(at_job), 1)[0]
    general, quick = job.general, job.quick
    samples, inputs, columns, group = job.samples, job.inputs, job.columns, general.group
    x, out = _matrix(job.x, samples, inputs), _matrix(job.out, inputs + 1, columns)
    together = general.together
    most = 2 * together * general.block
    room = np.empty((1 + 2 * general.widest) * most)
    change = address_of(room)
    units = change + 8 * most
    spare = units + 8 * general.widest * most
    values, shifts = np.empty((group, samples)), np.empty(together)
    todo, which = np.empty((group, samples), np.bool_), np.empty(together, np.int64)
    total = np.empty((group, columns))
    half = quick.columns // 2
    quick_change, norm = np.empty(quick.columns), np.empty(quick.columns)
    product, losses = np.empty(quick.columns), np.empty(quick.columns)
    pieces = (inputs + group) // group
    piece = claim(at_job, helping, pieces)
    while piece >= 0:
        first = piece * group
        here = min(group, inputs + 1 - first)
        total[:] = 0.0
        for k in range(here):
            for n in range(samples):
                values[k, n] = x[n, first + k] if first + k < inputs else 1.0
                todo[k, n] = values[k, n] != 0
            if quick.columns:
                _add_quick(quick, values[k], job.step, todo[k], quick_change, norm, product, losses)
                for j in range(columns):
                    total[k, j] = losses[j] - losses[half + j]
        for n in range(samples):
            count = 0
            for k in range(here):
                if todo[k, n]:
                    shifts[count], which[count] = job.step * values[k, n], k
                    count += 1
                if count == together or (count and k == here - 1):
                    _add_differences(
                        *(general, samples, columns, n, shifts, which, count),
                        *(change, units, spare, total),
                    )
                    count = 0
        for k in range(here):
            for j in range(columns):
                out[first + k, j] = total[k, j] / samples
        piece = claim(at_job, helping, pieces)
    lives_until_here(room)


def takes(rest):
    """Whether every operation behind a layer is a product, or an activation that can be traced."""
    try:
        for operation in rest.operations:
            if operation.fuses == "pointwise":
                generated.forward(operation, FLOAT64, FAST)
            elif operation.fuses != "product":
                return False
    except FormulaError:
        return False
    return True


def loss_differences(backend, x, a, rest, loss, t, h):
    """L(w + h) - L(w - h) for every weight and bias of one layer, (D + 1, M), in float64."""
    try:
        loop = generated.loss_columns(loss, FLOAT64, FAST)
    except FormulaError:
        return perturbation.loss_differences(backend, x, a, rest, loss, t, h)
    x, a, t = (np.ascontiguousarray(array, FLOAT64) for array in (x, a, t))
    out = np.empty((x.shape[1] + 1, a.shape[1]))
    held = _Held()
    job = np.zeros((), JOB)
    job["x"], job["samples"], job["inputs"] = held.address(x), *x.shape
    job["columns"], job["out"], job["step"] = a.shape[1], held.address(out), h
    _fill(job["general"], _general(held, backend, a, rest, loss, loop, t, len(out)))
    _fill(job["quick"], _quick(held, backend, a, rest, loss, t))
    work = LOSS_WORK * int(job["general"]["widest"]) * 2 * out.size * len(x)
    pool.share(work, run, routine(_work, types.int64, types.int64), held.address(job))
    return out


class _Held:
    """Arrays whose addresses have been given away."""

    def __init__(self):
        self.arrays = []

    def address(self, array):
        self.arrays.append(np.ascontiguousarray(array))
        return address(self.arrays[-1])


def _fill(record, fields):
    for name, value in fields.items():
        record[name] = value


def _general(held, backend, a, rest, loss, loop, t, inputs):
    """The fields of GENERAL."""
    steps, first = list(rest), perturbation.split(rest.operations)
    z = perturbation.through(backend, steps[:first], a)
    after, W, behind = z, None, steps[first:]
    if behind:
        W, after = behind[0][1][0], perturbation.through(backend, behind[:1], z)
    table = _table(held, behind[1:], after.shape[1])
    columns, widest = a.shape[1], max([after.shape[1], *(int(n) for n in table["outputs"])])
    most = max(LANES, BUFFER // (2 * widest))
    block = min(columns, most)
    group = max(1, inputs // (PIECES_PER_THREAD * thread_count()))
    together = max(1, min(most // block, group))
    stored = W is not None and np.concatenate(
        [
            np.tile(W[start : start + block].T, (1, 2 * together)).reshape(-1)
            for start in range(0, columns, block)
        ]
    )
    return {
        "a": held.address(a),
        "z": held.address(z),
        "after": held.address(after),
        "width": after.shape[1],
        "W": 0 if W is None else held.address(stored),
        "before": held.address(_table(held, steps[:first], 1)),
        "befores": first,
        "steps": held.address(table),
        "count": len(table),
        "dense": int(products.routines(FLOAT64)[products._DENSE]),
        "loss": loop.address,
        "numbers": held.address(loop.numbers(loss, FLOAT64)),
        "t": held.address(t),
        "classes": t.shape[1],
        "widest": widest,
        "group": group,
        "together": together,
        "block": block,
    }


def _table(held, steps, width):
    """Operations as compiled code reads them, for so many features."""
    table = np.zeros(len(steps), STEP)
    for step, (operation, parameters) in zip(table, steps, strict=True):
        if operation.fuses == "product":
            W, b = parameters
            step["W"], step["b"] = held.address(W), held.address(b)
            step["inputs"], step["outputs"] = W.shape
            width = W.shape[1]
        else:
            loop = generated.forward(operation, FLOAT64, FAST)
            step["loop"] = loop.address
            step["numbers"] = held.address(loop.numbers(operation, FLOAT64))
            step["inputs"] = step["outputs"] = width
    return table


def _quick(held, backend, a, rest, loss, t):
    """The fields of QUICK; none if no sample goes that way."""
    *between, last = [*rest] or [None]
    kinds = [type(operation) for operation, _ in between] or [None]
    one_label = ((t == 0) | (t == 1)).all() and (t.sum(axis=1) == 1).all()
    behind = last is not None
    if not one_label or type(loss) is not QUICK_LOSS or len(kinds) > 1:
        return {}
    if kinds[0] not in QUICK_ACTIVATIONS or (behind and last[0].fuses != "product"):
        return {}
    z = perturbation.through(backend, between, a)
    scores = perturbation.through(backend, [last], z) if behind else a
    labels = t.argmax(axis=1)
    exps = np.exp(scores - np.take_along_axis(scores, labels[:, None], axis=1))
    spread = np.log(exps.sum(axis=1))
    reach = np.where(spread <= FARTHEST, FARTHEST, -1.0)  # NaN is out of range
    fields = {
        "activation": QUICK_ACTIVATIONS[kinds[0]],
        "spread": held.address(spread),
        "labels": held.address(labels.astype(np.int64)),
        "exps": held.address(exps),
        "classes": t.shape[1],
        "log": generated.forward(Elementary("log"), FLOAT64, FAST).address,
        "per_shift": 1.0,
    }
    if behind:
        if kinds[0] is Sigmoid:
            reach[~(np.abs(a) <= FARTHEST).all(axis=1)] = -1.0
            a = np.exp(-a)
        W = last[1][0]
        arrays = {"a": a, "z": z, "W": W.T / math.log(2)}
        fields["per_shift"] = max(1.0, 2 * float(np.abs(W).max()))
    else:
        # The sum of the others' exponentials: of those before each and of those after it.
        others = np.zeros_like(exps)
        others[:, 1:] = np.cumsum(exps[:, :-1], axis=1)
        others[:, :-1] += np.cumsum(exps[:, :0:-1], axis=1)[:, ::-1]
        arrays = {"still": np.where(t == 1, 1.0, others), "moving": np.where(t == 1, others, exps)}
    doubled = {name: _doubled(array) for name, array in arrays.items()}
    fields |= {name: held.address(array) for name, array in doubled.items()}
    fields["columns"] = next(iter(doubled.values())).shape[1]
    return fields | {"reach": held.address(reach)}


def _doubled(array):
    """`array` twice, side by side, each padded with zeros to whole vectors."""
    rows, columns = array.shape
    half = columns + -columns % (LANES // 2)
    doubled = np.zeros((rows, 2 * half), array.dtype)
    doubled[:, :columns] = doubled[:, half : half + columns] = array
    return doubled
