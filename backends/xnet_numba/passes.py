# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""The compiled passes through a stack of layers: forward, back to the losses' gradients, and down.

A thread takes a block of rows through all layers before it takes the next, so that what lies
between two layers stays in the first-level cache; bias and activation go in while a tile is there.
A *work* is a routine that takes pieces of a job as long as there are any, whoever else does. A job
is a list of int64 on its caller's stack, which begins with the counts of `pool.claim`.
"""

import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from xnet_numba import products
from xnet_numba.compiling import _alone, _serial
from xnet_numba.elementary import _exp
from xnet_numba.intrinsics import (
    address_of,
    int64s,
    int64s_at,
    lives_until_here,
    on_stack,
    pointer_to,
    size_of,
)
from xnet_numba.pool import claim, run
from xnet_numba.rows import (
    cross_entropy_row,
    divide_by_sum,
    sigmoid_element,
    softmax_loss_row_backward,
    subtract_top,
)
from xnet_numba.tiles import BITS

ACTIVATIONS = {None: 0, "sigmoid": 1, "relu": 2}
_SIGMOID, _RELU = 1, 2
_WEIGHTS, _BIAS, _INPUTS, _OUTPUTS, _ACTIVATION = range(5)
TABLE_BYTES = 5 * 8
"""Of a layer in the table, which tells what its name says in that order."""


# -- forward


@_serial
def _activate(kind, address, size, activation):
    values = carray(pointer_to(kind, address), size)
    if activation == _SIGMOID:
        for i in range(size):
            values[i] = sigmoid_element(values[i])
    elif activation == _RELU:
        for i in range(size):
            values[i] = type(kind)(0) if values[i] <= 0 else values[i]


@_serial
def _skippable(at_table, x):
    """Whether to leave out the products of 0 in the first layer."""
    table = _table_at(at_table, 1)
    kind, (n, k), size = x.dtype.type(0), x.shape, table[0, _INPUTS] * table[0, _OUTPUTS]
    return products.skippable(kind, address_of(x), n, k, table[0, _WEIGHTS], size)


@_serial
def _layer(routines, kind, layer, x, n, out, skip, words):
    """One layer for n rows, from x to `out`; `skip` and `words` as in `products.affine`."""
    k, m = layer[_INPUTS], layer[_OUTPUTS]
    W, b = layer[_WEIGHTS], layer[_BIAS]
    products.affine(routines, kind, x, n, k, W, b, out, m, skip, words)
    _activate(kind, out, n * m, layer[_ACTIVATION])


@_serial
def _table_at(address, layers):
    return carray(pointer_to(np.int64(0), address), (layers, 5))


def _forward_work(kind):
    def work(job, helping):
        """Take what is left, as long as there is any: blocks of rows through all layers.

        Or, of one layer for few rows, blocks of columns.
        """
        fields = int64s(job + 24, 13)
        at_routines, at_table, layers, x, n, k, out, m, softmax, widest, skip, rows, columns = (
            fields
        )
        routines, table = int64s_at(at_routines, 2), _table_at(at_table, layers)
        if columns != 0:
            _columns(routines, kind, table[0], job, helping, x, n, out, columns)
            return
        size, per_row = size_of(kind), (k + BITS - 1) // BITS if skip else 0
        room = np.empty(rows * (per_row + (2 * widest * size + 7) // 8), np.int64)
        words = address_of(room)
        between = words + rows * per_row * 8
        pieces = (n + rows - 1) // rows
        piece = claim(job, helping, pieces)
        while piece >= 0:
            start = piece * rows
            count = min(rows, n - start)
            at, result = x + start * k * size, out + start * m * size
            for depth in range(layers):
                to = result if depth == layers - 1 else between + depth % 2 * rows * widest * size
                _layer(routines, kind, table[depth], at, count, to, skip != 0 and depth == 0, words)
                at = to
            if softmax:
                _softmax_rows(kind, result, count, m)
            piece = claim(job, helping, pieces)
        lives_until_here(room)

    return work


@_serial
def _columns(routines, kind, layer, job, helping, x, n, out, columns):
    """Blocks of columns of one layer for n rows, as long as there are any."""
    k, m, W, b = layer[_INPUTS], layer[_OUTPUTS], layer[_WEIGHTS], layer[_BIAS]
    pieces = (m + columns - 1) // columns
    piece = claim(job, helping, pieces)
    while piece >= 0:
        first = piece * columns
        count = min(columns, m - first)
        products.columns(routines, kind, x, n, k, W, b, out, m, first, count)
        for i in range(n):
            at = out + (i * m + first) * size_of(kind)
            _activate(kind, at, count, layer[_ACTIVATION])
        piece = claim(job, helping, pieces)


@_serial
def _softmax_rows(kind, at, n, m):
    """Softmax of each of n rows in its place; the exponentials of all of them in one loop."""
    rows, numbers = _rows(kind, at, n, m), carray(pointer_to(kind, at), n * m)
    for i in range(n):
        subtract_top(rows[i])
    for i in range(n * m):
        numbers[i] = _exp(numbers[i])
    for i in range(n):
        divide_by_sum(rows[i])


@_alone
def _forward(mail, head, x, out, helpers):
    data = address_of(x), x.shape[0], x.shape[1], address_of(out), out.shape[1]
    _through(mail, x.dtype.type(0), int64s(head, 6), data, helpers)


@_serial
def _through(mail, kind, head, data, helpers):
    """Have n rows of x go through all layers, by rows or, where they are few, by columns.

    `head` is `Prepared`'s: the work, the routines, the stack, its width and whether the softmax
    comes after it.
    """
    work, routines, table, layers, widest, softmax = head
    x, n, k, out, m = data
    first = _table_at(table, 1)[0]
    skip = products.skippable(kind, x, n, k, first[_WEIGHTS], k * first[_OUTPUTS])
    if skip or products.column_share(kind, n, widest, helpers + 1) == 0:
        rows = products.share(n, helpers + 1)
        rest = softmax, widest, np.int64(skip), rows, 0
        run(mail, work, on_stack((0, 0, 0, routines, table, layers, *data, *rest)), helpers)
        return
    between = np.empty((2, n * widest), type(kind))
    at = x
    for depth in range(layers):
        layer = _table_at(table, layers)[depth]
        k, m = layer[_INPUTS], layer[_OUTPUTS]
        to = out if depth == layers - 1 else address_of(between[depth % 2])
        columns = products.column_share(kind, n, m, helpers + 1)
        rest = 0, m, 0, n, columns  # a narrow layer is one block of rows
        job = on_stack((0, 0, 0, routines, table + depth * TABLE_BYTES, 1, at, n, k, to, m, *rest))
        run(mail, work, job, helpers if columns else 0)
        at = to
    if softmax:
        _softmax_rows(kind, out, n, m)
    lives_until_here(between)


@_alone
def _affine(mail, head, x, W, b, out, helpers):
    _product(mail, head, x, W, b, out, helpers)


@_serial
def _product(mail, head, x, W, b, out, helpers):
    """One layer without activation."""
    work, routines = int64s(head, 2)
    k, m = W.shape
    table = on_stack((address_of(W), address_of(b), k, m, 0))
    data = address_of(x), x.shape[0], k, address_of(out), m
    _through(mail, x.dtype.type(0), (work, routines, table, 1, m, 0), data, helpers)


# -- gradients


@_serial
def _weights_transposed(kind, table, back):
    """W' of each layer but the first, one after the other: what carries a gradient back."""
    for depth in range(1, table.shape[0]):
        k, m = table[depth, _INPUTS], table[depth, _OUTPUTS]
        products.transpose(kind, table[depth, _WEIGHTS], k, m, back)
        back += k * m * size_of(kind)


@_serial
def _transpose(array, out):
    n, m = array.shape
    products.transpose(array.dtype.type(0), address_of(array), n, m, address_of(out))


@_serial
def _transposed(array):
    out = np.empty((array.shape[1], array.shape[0]), array.dtype)
    _transpose(array, out)
    return out


@_serial
def _loss_rows(kind, at, t, n, m, cross_entropy, activation, scale, losses, delta):
    """The loss of each of n rows, and its gradient by what enters the last activation.

    `at` are the scores (n, m), t the targets; the gradient is multiplied by `scale`.
    """
    scores, deltas = _rows(kind, at, n, m), _rows(kind, delta, n, m)
    targets, found = _rows(kind, t, n, m), carray(pointer_to(kind, losses), n)
    if cross_entropy:
        for i in range(n):
            for j in range(m):
                deltas[i, j] = scores[i, j]
        _softmax_rows(kind, delta, n, m)
        for i in range(n):
            found[i] = cross_entropy_row(deltas[i], targets[i])
            softmax_loss_row_backward(deltas[i], targets[i], scale, deltas[i])
    else:
        for i in range(n):
            total = type(kind)(0)
            for j in range(m):
                difference = scores[i, j] - targets[i, j]
                total += difference * difference
                deltas[i, j] = difference * scale
            found[i] = total * type(kind)(0.5)
    _through_activation(kind, delta, at, n * m, activation)


@_serial
def _rows(kind, address, n, m):
    return carray(pointer_to(kind, address), (n, m))


@_serial
def _through_activation(kind, delta, y, size, activation):
    """Delta times the derivative of the activation, from its output y."""
    d, y = carray(pointer_to(kind, delta), size), carray(pointer_to(kind, y), size)
    if activation == _SIGMOID:
        for i in range(size):
            d[i] = d[i] * (type(kind)(1) - y[i]) * y[i]
    elif activation == _RELU:
        for i in range(size):
            d[i] = type(kind)(0) if y[i] <= 0 else d[i]


def _there_and_back_work(kind):
    def work(job, helping):
        """Take blocks of rows forward to their loss, and its gradient back to the first layer."""
        at_routines, at_table, layers, _, back, x, n, k, t = int64s(job + 48, 9)
        cross_entropy, outputs, deltas, losses, zeros, skip, words, rows, _ = int64s(job + 120, 9)
        routines, table = int64s_at(at_routines, 4), _table_at(at_table, layers)
        size, line = size_of(kind), (k + BITS - 1) // BITS * 8
        scale = type(kind)(1 / n)
        pieces = (n + rows - 1) // rows
        while True:
            piece = claim(job, helping, pieces)
            if piece < 0:
                return
            start = piece * rows
            count = min(rows, n - start)
            at, place = x + start * k * size, 0  # where a layer's outputs and deltas begin
            for depth in range(layers):
                m = table[depth, _OUTPUTS]
                to = outputs + (place + start * m) * size
                sparse = skip != 0 and depth == 0
                _layer(routines, kind, table[depth], at, count, to, sparse, words + start * line)
                at = to
                place += n * m
            m = table[layers - 1, _OUTPUTS]
            place -= n * m
            after = deltas + (place + start * m) * size
            last = table[layers - 1, _ACTIVATION]
            _loss_rows(
                kind, at, t + start * m * size, count, m, cross_entropy, last, scale,
                losses + start * size, after,
            )  # fmt: skip
            transposed = back
            for depth in range(1, layers):
                transposed += table[depth, _INPUTS] * table[depth, _OUTPUTS] * size
            for depth in range(layers - 1, 0, -1):
                inputs, m = table[depth, _INPUTS], table[depth, _OUTPUTS]
                transposed -= inputs * m * size
                place -= n * inputs
                to = deltas + (place + start * inputs) * size
                products.dense(routines, kind, after, count, m, transposed, zeros, to, inputs)
                y = outputs + (place + start * inputs) * size
                _through_activation(kind, to, y, count * inputs, table[depth - 1, _ACTIVATION])
                after = to

    return work


SKIP = 20
"""Where in a job of the gradients it says whether products of 0 are left out."""


def _weights_work(kind):
    def work(job, helping):
        """Take some inputs of a layer at a time, as long as there are any; with a rate, descend."""
        at_routines, at_table, layers, at_places, _, x, n, _, _ = int64s(job + 48, 9)
        _, outputs, deltas, _, zeros, skip, words, _, at_rate = int64s(job + 120, 9)
        routines, table = int64s_at(at_routines, 4), _table_at(at_table, layers)
        places, size = int64s_at(at_places, 2 * layers), size_of(kind)
        rate = carray(pointer_to(kind, at_rate), 1)[0]
        pieces = 0
        for depth in range(layers):
            pieces += (table[depth, _INPUTS] + BITS - 1) // BITS
        while True:
            task = claim(job + 24, helping, pieces)
            if task < 0:
                return
            depth, source, place = 0, x, 0
            inputs, m = table[0, _INPUTS], table[0, _OUTPUTS]
            while task >= (inputs + BITS - 1) // BITS:
                task -= (inputs + BITS - 1) // BITS
                source = outputs + place * size
                place += n * m
                depth += 1
                inputs, m = table[depth, _INPUTS], table[depth, _OUTPUTS]
            products.gradient(
                routines, kind, task, source, n, inputs, deltas + place * size, m,
                skip != 0 and depth == 0, words, zeros, places[2 * depth], places[2 * depth + 1],
            )  # fmt: skip
            if rate != 0:
                first = task * BITS * m * size
                step = min(BITS, inputs - task * BITS) * m
                W, dW = table[depth, _WEIGHTS] + first, places[2 * depth] + first
                products.descend(routines, kind, W, dW, step, at_rate)
                if task == 0:
                    b, db = table[depth, _BIAS], places[2 * depth + 1]
                    products.descend(routines, kind, b, db, m, at_rate)

    return work


@_alone
def _gradients(
    mail, there_and_back, weights, routines, table, layers, lr, found, x, t, cross_entropy,
    losses, outputs, deltas, back, words, zeros, helpers,
):  # fmt: skip
    kind, (n, k) = x.dtype.type(0), x.shape
    _weights_transposed(kind, _table_at(table, layers), address_of(back))
    skip, rows = _skippable(table, x), products.share(n, helpers + 1)
    places = np.empty((layers, 2), np.int64)
    place = address_of(found)
    for depth in range(layers):
        layer = _table_at(table, layers)[depth]
        places[depth, 0] = place
        places[depth, 1] = place + layer[_INPUTS] * layer[_OUTPUTS] * x.itemsize
        place = places[depth, 1] + layer[_OUTPUTS] * x.itemsize
    stack = routines, table, layers, address_of(places), address_of(back)
    data = address_of(x), n, k, address_of(t), np.int64(cross_entropy)
    between = address_of(outputs), address_of(deltas), address_of(losses), address_of(zeros)
    rate = np.array((lr,))
    rest = np.int64(skip), address_of(words), rows, address_of(rate)
    job = on_stack((0, 0, 0, 0, 0, 0, *stack, *data, *between, *rest))
    run(mail, there_and_back, job, helpers)
    first = _table_at(table, 1)[0]
    if skip and not products.finite(kind, address_of(deltas), n * first[_OUTPUTS]):
        int64s_at(job, SKIP + 1)[SKIP] = 0
    run(mail, weights, job, helpers)
    lives_until_here((places, rate))


@_alone
def _affine_gradients(mail, head, dout, x, dW, db, helpers):
    _weight_gradients(mail, head, dout, x, dW, db, helpers)


@_serial
def _weight_gradients(mail, head, dout, x, dW, db, helpers):
    _, routines, work = int64s(head, 3)
    kind, (n, k), m = x.dtype.type(0), x.shape, dout.shape[1]
    skip = products.skippable(kind, address_of(x), n, k, address_of(dout), dout.size)
    words, zeros, rate = (
        products.room(n, k, skip),
        np.zeros(max(m, BITS), x.dtype),
        np.zeros(1, x.dtype),
    )
    if skip:
        products.find_nonzeros(kind, address_of(x), n, k, address_of(words))
    table = on_stack((0, 0, k, m, 0))
    places = on_stack((address_of(dW), address_of(db)))
    stack = routines, table, 1, places, 0
    data = address_of(x), n, k, 0, 0
    between = 0, address_of(dout), 0, address_of(zeros)
    rest = np.int64(skip), address_of(words), 0, address_of(rate)
    run(mail, work, on_stack((0, 0, 0, 0, 0, 0, *stack, *data, *between, *rest)), helpers)
    lives_until_here((words, zeros, rate))


@_alone
def _affine_backward(mail, head, dout, x, W, dx, dW, db, helpers):
    """Of the three gradients, the one by x is dout W' or, where dout is far smaller, (W dout')'."""
    n, (k, m) = x.shape[0], W.shape
    if 4 * n * (k + m) < k * m:
        across, found = _transposed(dout), np.empty((k, n), x.dtype)
        _product(mail, head, W, across, np.zeros(n, x.dtype), found, helpers)
        _transpose(found, dx)
    else:
        _product(mail, head, dout, _transposed(W), np.zeros(k, x.dtype), dx, helpers)
    _weight_gradients(mail, head, dout, x, dW, db, helpers)
