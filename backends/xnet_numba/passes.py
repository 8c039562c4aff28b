# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
"""The compiled passes through a run of layers: forward, back to the losses' gradients, and down.

A thread takes a block of rows through all layers before it takes the next, so that what lies
between two layers stays in the first-level cache; bias and activation go in while a tile is there.
What an activation, a loss or an optimizer computes is a routine of `generated`, called by address.
A *work* is a routine that takes pieces of a job as long as there are any, whoever else does.
"""

import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from xnet_numba import products
from xnet_numba.compiling import _alone, _serial
from xnet_numba.intrinsics import (
    address_of,
    call,
    int64s_at,
    lives_until_here,
    on_stack,
    pointer_to,
    record_pointer,
    room_on_stack,
    size_of,
)
from xnet_numba.pool import claim, run
from xnet_numba.tiles import BITS


def record(*names):
    """A dtype of int64 with these names: addresses, sizes, and numbers of this and that."""
    return np.dtype([(name, np.int64) for name in names])


LAYER = record(
    "weights",
    "bias",
    "inputs",
    "outputs",
    "place",  # columns of the layers before it, in an array of all layers' outputs
    "before",  # the same among those whose outputs are kept before the activation; else -1
    "forth",  # the activation, 0 for none, and what it takes from the host
    "forth_numbers",
    "back",  # its gradient
    "back_numbers",
)

HEAD = record("work", "routines", "table", "layers", "widest", "predict", "predict_numbers")
"""A run: where `_forward_work` and the products' routines are, the layers, and what comes last."""

FORWARD = record(
    *("taken", "front", "back"),  # what `pool.claim` counts
    *("routines", "table", "layers", "x", "n", "k", "out", "m", "predict", "predict_numbers"),
    *("widest", "skip", "rows", "columns"),
)
"""A job of `_forward_work`. `columns` is 0, or how many of one layer's are taken at a time."""

TRAINING = record(
    *("taken", "front", "back"),  # of blocks of rows
    *("weights_taken", "weights_front", "weights_back"),  # of blocks of inputs
    *("there_and_back", "weights", "routines", "table", "layers", "k", "m"),
    *("x", "n", "t", "loss", "loss_numbers", "losses"),
    *("outputs", "before", "deltas", "transposed", "words", "zeros"),
    *("forth", "dout", "dx"),  # whether to go forward; then dout, unless there is a loss
    *("places", "step", "step_numbers", "slots", "memory"),
    *("skip", "rows", "done"),
)
"""A job of training. `places` has for each layer where the gradients by W and b go, `memory` for
each W and b where what the optimizer remembers of it is."""
WEIGHTS_OFFSET = 24

_layers_pointer = record_pointer(LAYER)
_head_pointer = record_pointer(HEAD)
_forward_pointer = record_pointer(FORWARD)
_training_pointer = record_pointer(TRAINING)
LAYER_BYTES = LAYER.itemsize
_FORWARD_WORDS = len(FORWARD.names)
_TRAINING_WORDS = len(TRAINING.names)


# -- forward


@_serial
def _table_at(address, layers):
    return carray(_layers_pointer(address), layers)


@_serial
def _activate(kind, address, size, layer):
    if layer.forth != 0:
        call(layer.forth, (kind, address, size, layer.forth_numbers))


@_serial
def _product(routines, kind, layer, x, n, out, skip, words):
    """x W + b for n rows, from x to `out`; `skip` and `words` as in `products.affine`."""
    products.affine(
        routines, kind, x, n, layer.inputs, layer.weights, layer.bias, out, layer.outputs,
        skip, words,
    )  # fmt: skip


def _forward_work(kind):
    def work(at_job, helping):
        """Take what is left, as long as there is any: blocks of rows through all layers.

        Or, of one layer for few rows, blocks of columns.
        """
        job = carray(_forward_pointer(at_job), 1)[0]
        routines, table = int64s_at(job.routines, 2), _table_at(job.table, job.layers)
        layers, n, k, m = job.layers, job.n, job.k, job.m
        if job.columns != 0:
            _columns(routines, kind, table[0], at_job, helping, job.x, n, job.out, job.columns)
            return
        rows, widest, skip = job.rows, job.widest, job.skip != 0
        size, per_row = size_of(kind), (k + BITS - 1) // BITS if skip else 0
        room = np.empty(rows * (per_row + (2 * widest * size + 7) // 8), np.int64)
        words = address_of(room)
        between = words + rows * per_row * 8
        pieces = (n + rows - 1) // rows
        piece = claim(at_job, helping, pieces)
        while piece >= 0:
            start = piece * rows
            count = min(rows, n - start)
            at, result = job.x + start * k * size, job.out + start * m * size
            for depth in range(layers):
                layer = table[depth]
                to = result if depth == layers - 1 else between + depth % 2 * rows * widest * size
                _product(routines, kind, layer, at, count, to, skip and depth == 0, words)
                _activate(kind, to, count * layer.outputs, layer)
                at = to
            if job.predict != 0:
                call(job.predict, (kind, result, count, m, job.predict_numbers))
            piece = claim(at_job, helping, pieces)
        lives_until_here(room)

    return work


@_serial
def _columns(routines, kind, layer, at_job, helping, x, n, out, columns):
    """Blocks of columns of one layer for n rows, as long as there are any."""
    k, m, W, b = layer.inputs, layer.outputs, layer.weights, layer.bias
    pieces = (m + columns - 1) // columns
    piece = claim(at_job, helping, pieces)
    while piece >= 0:
        first = piece * columns
        count = min(columns, m - first)
        products.columns(routines, kind, x, n, k, W, b, out, m, first, count)
        for i in range(n):
            _activate(kind, out + (i * m + first) * size_of(kind), count, layer)
        piece = claim(at_job, helping, pieces)


@_alone
def _forward(mail, head, x, out, helpers):
    _through(
        mail, x.dtype.type(0), head, address_of(x), x.shape[0], x.shape[1], address_of(out),
        out.shape[1], helpers,
    )  # fmt: skip


@_serial
def _through(mail, kind, at_head, x, n, k, out, m, helpers):
    """Have n rows of x go through all layers, by rows or, where they are few, by columns."""
    head = carray(_head_pointer(at_head), 1)[0]
    table = _table_at(head.table, head.layers)
    skip = products.skippable(kind, x, n, k, table[0].weights, k * table[0].outputs)
    at_job = room_on_stack(_FORWARD_WORDS)
    job = carray(_forward_pointer(at_job), 1)[0]
    job.routines, job.n = head.routines, n
    if skip or products.column_share(kind, n, head.widest, helpers + 1) == 0:
        job.taken, job.front, job.back = 0, 0, 0
        job.table, job.layers, job.x, job.k = head.table, head.layers, x, k
        job.out, job.m, job.widest, job.skip = out, m, head.widest, np.int64(skip)
        job.predict, job.predict_numbers = head.predict, head.predict_numbers
        job.rows, job.columns = products.share(n, helpers + 1), 0
        run(mail, head.work, at_job, helpers)
        return
    between = np.empty((2, n * head.widest), type(kind))
    at = x
    job.layers, job.predict, job.predict_numbers, job.skip, job.rows = 1, 0, 0, 0, n
    for depth in range(head.layers):
        k, m = table[depth].inputs, table[depth].outputs
        to = out if depth == head.layers - 1 else address_of(between[depth % 2])
        columns = products.column_share(kind, n, m, helpers + 1)
        job.taken, job.front, job.back = 0, 0, 0
        job.table, job.x, job.k = head.table + depth * LAYER_BYTES, at, k
        job.out, job.m, job.widest, job.columns = to, m, m, columns
        # A narrow layer is one block of rows.
        run(mail, head.work, at_job, helpers if columns else 0)
        at = to
    if head.predict != 0:
        call(head.predict, (kind, out, n, m, head.predict_numbers))
    lives_until_here(between)


# -- training


@_serial
def _weights_transposed(kind, table, first, back):
    """W' of each layer from the `first` on, one after the other: what carries a gradient back."""
    for depth in range(first, table.shape[0]):
        k, m = table[depth].inputs, table[depth].outputs
        products.transpose(kind, table[depth].weights, k, m, back)
        back += k * m * size_of(kind)


@_serial
def _copy(kind, source, target, size):
    a, b = carray(pointer_to(kind, source), size), carray(pointer_to(kind, target), size)
    for i in range(size):
        b[i] = a[i]


@_serial
def _through_activation(kind, job, layer, start, count):
    """A block's gradient by a layer's output becomes that by what enters its activation."""
    size, m = size_of(kind), layer.outputs
    if layer.back != 0:
        place = (layer.place * job.n + start * m) * size
        before = job.before + (layer.before * job.n + start * m) * size
        call(
            layer.back,
            (kind, job.deltas + place, before, job.outputs + place, count * m, layer.back_numbers),
        )


def _there_and_back_work(kind):
    def work(at_job, helping):
        """Take blocks of rows forward to their loss, and its gradient back to the first layer."""
        job = carray(_training_pointer(at_job), 1)[0]
        routines, table = int64s_at(job.routines, 3), _table_at(job.table, job.layers)
        layers, n, k, rows, skip = job.layers, job.n, job.k, job.rows, job.skip != 0
        size, line = size_of(kind), (k + BITS - 1) // BITS * 8
        pieces = (n + rows - 1) // rows
        while True:
            piece = claim(at_job, helping, pieces)
            if piece < 0:
                return
            start = piece * rows
            count = min(rows, n - start)
            if job.forth != 0:
                at = job.x + start * k * size
                for depth in range(layers):
                    layer = table[depth]
                    m = layer.outputs
                    to = job.outputs + (layer.place * n + start * m) * size
                    words = job.words + start * line
                    _product(routines, kind, layer, at, count, to, skip and depth == 0, words)
                    if layer.before >= 0:
                        before = job.before + (layer.before * n + start * m) * size
                        _copy(kind, to, before, count * m)
                    _activate(kind, to, count * m, layer)
                    at = to
            last = table[layers - 1]
            m = last.outputs
            after = job.deltas + (last.place * n + start * m) * size
            if job.loss != 0:
                scores = job.outputs + (last.place * n + start * m) * size
                call(
                    job.loss,
                    (
                        kind, scores, job.t + start * m * size, job.losses + start * size, after,
                        count, m, job.loss_numbers,
                    ),
                )  # fmt: skip
            elif job.dout != 0:
                _copy(kind, job.dout + start * m * size, after, count * m)
            else:
                continue
            _through_activation(kind, job, last, start, count)
            first = 0 if job.dx != 0 else 1
            transposed = job.transposed
            for depth in range(first, layers):
                transposed += table[depth].inputs * table[depth].outputs * size
            for depth in range(layers - 1, first - 1, -1):
                inputs, m = table[depth].inputs, table[depth].outputs
                transposed -= inputs * m * size
                to = job.dx + start * inputs * size
                if depth > 0:
                    to = job.deltas + (table[depth - 1].place * n + start * inputs) * size
                products.dense(routines, kind, after, count, m, transposed, job.zeros, to, inputs)
                if depth > 0:
                    _through_activation(kind, job, table[depth - 1], start, count)
                after = to

    return work


@_serial
def _take_step(kind, job, W, g, which, offset, size):
    """An optimizer's step for some numbers of a W or b, the one at `which` in the memory."""
    memory = int64s_at(job.memory, 2 * job.layers * job.slots)
    at = which * job.slots
    if job.slots == 0:
        call(job.step, (kind, W, g, size, job.step_numbers))
    elif job.slots == 1:
        call(job.step, (kind, W, g, memory[at] + offset, size, job.step_numbers))
    elif job.slots == 2:
        call(
            job.step,
            (kind, W, g, memory[at] + offset, memory[at + 1] + offset, size, job.step_numbers),
        )
    elif job.slots == 3:
        call(
            job.step,
            (
                kind, W, g, memory[at] + offset, memory[at + 1] + offset, memory[at + 2] + offset,
                size, job.step_numbers,
            ),
        )  # fmt: skip


MOST_SLOTS = 3
"""Arrays that an optimizer may remember of a parameter to have its step taken here."""


def _weights_work(kind):
    def work(at_job, helping):
        """Take some inputs of a layer at a time, as long as there are any; step, if that is due."""
        job = carray(_training_pointer(at_job), 1)[0]
        routines, table = int64s_at(job.routines, 3), _table_at(job.table, job.layers)
        layers, n, size = job.layers, job.n, size_of(kind)
        places = int64s_at(job.places, 2 * layers)
        pieces = 0
        for depth in range(layers):
            pieces += (table[depth].inputs + BITS - 1) // BITS
        while True:
            task = claim(at_job + WEIGHTS_OFFSET, helping, pieces)
            if task < 0:
                return
            depth, source = 0, job.x
            inputs = table[0].inputs
            while task >= (inputs + BITS - 1) // BITS:
                task -= (inputs + BITS - 1) // BITS
                source = job.outputs + table[depth].place * n * size
                depth += 1
                inputs = table[depth].inputs
            layer = table[depth]
            m = layer.outputs
            dW, db = places[2 * depth], places[2 * depth + 1]
            products.gradient(
                routines, kind, task, source, n, inputs, job.deltas + layer.place * n * size, m,
                job.skip != 0 and depth == 0, job.words, job.zeros, dW, db,
            )  # fmt: skip
            if job.step != 0:
                first = task * BITS * m * size
                count = min(BITS, inputs - task * BITS) * m
                _take_step(kind, job, layer.weights + first, dW + first, 2 * depth, first, count)
                if task == 0:
                    _take_step(kind, job, layer.bias, db, 2 * depth + 1, 0, m)

    return work


@_alone
def _train(mail, at_job, x, t, found, helpers):
    """A job of training: there, back, and down, as it says.

    `found` gets the gradients by each W and b, one after the other; it may be empty where the job
    does not go back.
    """
    kind, n = x.dtype.type(0), x.shape[0]
    job = carray(_training_pointer(at_job), 1)[0]
    table = _table_at(job.table, job.layers)
    back = job.loss != 0 or job.dout != 0
    job.x, job.t, job.done = address_of(x), address_of(t), 0
    job.taken, job.front, job.back = 0, 0, 0
    job.weights_taken, job.weights_front, job.weights_back = 0, 0, 0
    job.rows = products.share(n, helpers + 1)
    if job.forth != 0:
        size = table[0].inputs * table[0].outputs
        job.skip = np.int64(products.skippable(kind, job.x, n, job.k, table[0].weights, size))
    if back:
        _weights_transposed(kind, table, 0 if job.dx != 0 else 1, job.transposed)
    run(mail, job.there_and_back, at_job, helpers)
    if back:
        places = np.empty((job.layers, 2), np.int64)
        place = address_of(found)
        for depth in range(job.layers):
            layer = table[depth]
            places[depth, 0] = place
            places[depth, 1] = place + layer.inputs * layer.outputs * x.itemsize
            place = places[depth, 1] + layer.outputs * x.itemsize
        job.places = address_of(places)
        first = table[0].outputs
        if job.skip != 0 and not products.finite(kind, job.deltas, n * first):
            job.skip = 0
        run(mail, job.weights, at_job, helpers)
        lives_until_here(places)
    job.done = 1


# -- one product alone


@_serial
def _alone_product(mail, at_head, x, W, b, out, helpers):
    """One layer without activation; `at_head` is that of a product alone."""
    given = carray(_head_pointer(at_head), 1)[0]
    k, m = W.shape
    # As LAYER and HEAD have it.
    table = on_stack((address_of(W), address_of(b), k, m, 0, -1, 0, 0, 0, 0))
    head = on_stack((given.work, given.routines, table, 1, m, 0, 0))
    _through(mail, x.dtype.type(0), head, address_of(x), x.shape[0], k, address_of(out), m, helpers)


@_alone
def _affine(mail, head, x, W, b, out, helpers):
    _alone_product(mail, head, x, W, b, out, helpers)


@_alone
def _affine_gradients(mail, head, weights, dout, x, dW, db, helpers):
    _weight_gradients(mail, head, weights, dout, x, dW, db, helpers)


@_serial
def _weight_gradients(mail, at_head, weights, dout, x, dW, db, helpers):
    kind, (n, k), m = x.dtype.type(0), x.shape, dout.shape[1]
    skip = products.skippable(kind, address_of(x), n, k, address_of(dout), dout.size)
    words, zeros = products.room(n, k, skip), np.zeros(max(m, BITS), x.dtype)
    if skip:
        products.find_nonzeros(kind, address_of(x), n, k, address_of(words))
    at_job = room_on_stack(_TRAINING_WORDS)
    job = carray(_training_pointer(at_job), 1)[0]
    job.weights_taken, job.weights_front, job.weights_back = 0, 0, 0
    head = carray(_head_pointer(at_head), 1)[0]
    job.routines, job.layers = head.routines, 1
    job.table = on_stack((0, 0, k, m, 0, -1, 0, 0, 0, 0))
    job.places = on_stack((address_of(dW), address_of(db)))
    job.x, job.n, job.k, job.m, job.deltas, job.outputs = (
        address_of(x),
        n,
        k,
        m,
        address_of(dout),
        0,
    )
    job.words, job.zeros, job.skip, job.step = (
        address_of(words),
        address_of(zeros),
        np.int64(skip),
        0,
    )
    run(mail, weights, at_job, helpers)
    lives_until_here((words, zeros))


@_serial
def _transpose(array, out):
    n, m = array.shape
    products.transpose(array.dtype.type(0), address_of(array), n, m, address_of(out))


@_serial
def _transposed(array):
    out = np.empty((array.shape[1], array.shape[0]), array.dtype)
    _transpose(array, out)
    return out


@_alone
def _affine_backward(mail, head, weights, dout, x, W, dx, dW, db, helpers):
    """Of the three gradients, the one by x is dout W' or, where dout is far smaller, (W dout')'."""
    n, (k, m) = x.shape[0], W.shape
    if 4 * n * (k + m) < k * m:
        across, found = _transposed(dout), np.empty((k, n), x.dtype)
        _alone_product(mail, head, W, across, np.zeros(n, x.dtype), found, helpers)
        _transpose(found, dx)
    else:
        _alone_product(mail, head, dout, _transposed(W), np.zeros(k, x.dtype), dx, helpers)
    _weight_gradients(mail, head, weights, dout, x, dW, db, helpers)
