# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""A whole stack of layers in one compiled call: predictions, or the loss and its gradients.

A thread takes a block of rows through all layers before it takes the next, so that what lies
between two layers stays in the first-level cache; bias and activation go in while a tile is there.
The products are those of `tiles`, so BLAS and its threads have no part in it.

Which way is taken, and the measurements that say so, are in docs/speed.md.
"""

from functools import cache

import numpy as np
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage]

from xnet_numba import products
from xnet_numba.compiling import _alone, _serial, routine, thread_count
from xnet_numba.intrinsics import address_of, atomic_add, int64s, int64s_at, pointer_to, size_of
from xnet_numba.pool import pool, run
from xnet_numba.rows import (
    _sigmoid_element,
    _softmax_loss_row,
    _softmax_loss_row_backward,
    _softmax_row,
)
from xnet_numba.tiles import BITS

PARALLEL_FROM = 1 << 21
"""Multiplications from which a call is worth a helper's while."""

TRANSPOSED_ROWS = 8
"""Rows of a gradient from which it pays to write out W' first."""

KEPT = 1 << 20
"""Numbers, at most, that are kept from one call for the gradients to the next."""

ACTIVATIONS = {None: 0, "sigmoid": 1, "relu": 2}
_SIGMOID, _RELU = 1, 2
_WEIGHTS, _BIAS, _INPUTS, _OUTPUTS, _ACTIVATION = range(5)


def prepared(steps):
    """`Prepared` of the steps, False if they are not what it takes."""
    layers = _layers(steps)
    return Prepared(layers) if layers and _plain(layers) else False


class Prepared:
    """Layers x W + b, each with at most one activation, as a table that compiled code reads.

    It holds the arrays' addresses, and the arrays, so that those stay valid.
    """

    def __init__(self, layers):
        self.layers = layers
        self.dtype = layers[0][0].dtype
        self.inputs, self.outputs = layers[0][0].shape[0], layers[-1][0].shape[1]
        self.table = np.array(
            [
                [_address(W), _address(b), *W.shape, ACTIVATIONS[activation]]
                for W, b, activation in layers
            ],
            np.int64,
        )
        self.widest = max(W.shape[1] for W, _, _ in layers)
        self.between = sum(W.shape[1] for W, _, _ in layers)
        self.work = sum(W.size for W, _, _ in layers)
        self.stack = _address(self.table), len(layers)
        self.forward_arguments = *_forward_works(self.dtype), *self.stack, self.widest
        self.room = self.found = None

    def forward(self, x, softmax):
        """The scores of x (N, D), or their softmax."""
        n = x.shape[0]
        out = np.empty((n, self.outputs), self.dtype)
        pool.share(_helpers(n * self.work), _forward, *self.forward_arguments, x, out, softmax)
        return out

    def loss_and_gradients(self, x, t, loss):
        """The mean loss, and its gradients by W and b of each layer; see `Backend`."""
        found = np.empty(self.work + self.between, self.dtype)  # all W and b, one after the other
        value = self._descend(x, t, loss, 0.0, found)
        gradients, at = [], 0
        for W, b, _ in self.layers:
            middle, end = at + W.size, at + W.size + b.size
            gradients.append((found[at:middle].reshape(W.shape), found[middle:end]))
            at = end
        return value, gradients

    def train_step(self, x, t, loss, lr):
        """The mean loss, after which every W and b has moved; see `Backend`."""
        if not all(W.flags.writeable and b.flags.writeable for W, b, _ in self.layers):
            return None
        if self.found is None:
            self.found = np.empty(self.work + self.between, self.dtype)
        return self._descend(x, t, loss, lr, self.found)

    def _descend(self, x, t, loss, lr, found):
        n = x.shape[0]
        losses, *room = self._room_for(n)
        pool.share(
            *(_helpers(n * self.work), _gradients, *_gradient_works(self.dtype), *self.stack),
            *(self.dtype.type(lr), found, x, t, loss == "cross_entropy", losses, *room),
        )
        return losses.sum() / n

    def _room_for(self, n):
        """What lies between two layers, forward and backward, each in one piece, and the rest."""
        if self.room is not None and len(self.room[0]) == n:
            return self.room
        outputs, deltas = (np.empty(n * self.between, self.dtype) for _ in "ab")
        losses, back = np.empty(n, self.dtype), np.empty(self.work, self.dtype)
        words = np.empty((n, -(-self.inputs // BITS)), np.int64)
        zeros = np.zeros(max(self.widest, self.inputs), self.dtype)
        room = losses, outputs, deltas, back, words, zeros
        self.room = room if outputs.size <= KEPT else None
        return room


def affine(x, W, b):
    """x W + b, (N, D) by (D, M)."""
    if not x.size or not W.size:
        return x @ W + b
    out = np.empty((x.shape[0], W.shape[1]), x.dtype)
    helpers = _helpers(x.shape[0] * W.size)
    pool.share(helpers, _affine, *_forward_works(x.dtype), x, W, b, out)
    return out


def affine_gradients(dout, x):
    """Gradients of x W + b by W and b."""
    if not x.size or not dout.size:
        return x.T @ dout, dout.sum(axis=0)
    dW, db = np.empty((x.shape[1], dout.shape[1]), x.dtype), np.empty(dout.shape[1], x.dtype)
    words = np.empty((x.shape[0], -(-x.shape[1] // BITS)), np.int64)
    zeros = np.zeros_like(db)
    helpers = _helpers(x.shape[0] * dW.size)
    work = _gradient_works(x.dtype)[1:]
    pool.share(helpers, _affine_gradients, *work, dout, x, words, zeros, dW, db)
    return dW, db


def affine_backward(dout, x, W):
    """Gradients by x, W and b."""
    if x.shape[0] < TRANSPOSED_ROWS:
        dx = dout @ W.T
    else:
        transposed = np.empty((W.shape[1], W.shape[0]), W.dtype)
        _transpose(W, transposed)
        dx = affine(dout, transposed, np.zeros(W.shape[0], W.dtype))
    return dx, *affine_gradients(dout, x)


def _helpers(work):
    """How many helpers so many multiplications are worth."""
    return 0 if work < PARALLEL_FROM else thread_count() - 1


@cache
def _forward_works(dtype):
    """Where what `_forward` needs for a dtype is: the work, and the routines' addresses."""
    return routine(_forward_work(dtype.type(0)), types.int64), _address(products.routines(dtype))


@cache
def _gradient_works(dtype):
    """Where what `_gradients` needs for a dtype is: its two works, and the routines' addresses."""
    works = _there_and_back_work(dtype.type(0)), _weights_work(dtype.type(0))
    routines = products.routines(dtype, gradient=True)
    return *(routine(work, types.int64) for work in works), _address(routines)


def _address(array):
    return array.__array_interface__["data"][0]


def _layers(steps):
    """(W, b, activation) of each layer of `steps`; None if that is not what they are."""
    layers = []
    for kernel, *arrays in steps:
        if kernel == "affine":
            layers.append((*arrays, None))
        elif kernel in ACTIVATIONS and layers and layers[-1][2] is None:
            layers[-1] = (*layers[-1][:2], kernel)
        else:
            return None
    return layers


def _plain(layers):
    """Whether the layers' arrays fit each other and are stored as compiled code expects them."""
    dtype, features = layers[0][0].dtype, layers[0][0].shape[0]
    for W, b, _ in layers:
        for array in W, b:
            if array.dtype != dtype or not (array.flags.c_contiguous and array.flags.aligned):
                return False
        if W.shape != (features, b.size):
            return False
        features = b.size
    return dtype.isnative and dtype in (np.float32, np.float64)


# -- layers


@_serial
def _activate(kind, address, size, activation):
    values = carray(pointer_to(kind, address), size)
    if activation == _SIGMOID:
        for i in range(size):
            values[i] = _sigmoid_element(values[i])
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
    def work(job):
        """Take blocks of rows, as long as there are any, through all layers."""
        fields = int64s(job + 8, 12)
        at_routines, at_table, layers, x, n, k, out, m, softmax, widest, skip, rows = fields
        routines, table = int64s_at(at_routines, 2), _table_at(at_table, layers)
        size = size_of(kind)
        words = np.empty((rows if skip else 0, (k + BITS - 1) // BITS), np.int64)
        between = np.empty((2, rows * widest), type(kind))
        while True:
            start = atomic_add(job, 1) * rows
            if start >= n:
                return
            count = min(rows, n - start)
            at, result = x + start * k * size, out + start * m * size
            for depth in range(layers):
                to = result if depth == layers - 1 else address_of(between[depth % 2])
                sparse = skip != 0 and depth == 0
                _layer(routines, kind, table[depth], at, count, to, sparse, address_of(words))
                at = to
            if softmax:
                scores = carray(pointer_to(kind, result), (count, m))
                for i in range(count):
                    _softmax_row(scores[i], scores[i])

    return work


@_alone
def _forward(mail, work, routines, table, layers, widest, x, out, softmax, helpers):
    (n, k), m = x.shape, out.shape[1]
    skip, rows = _skippable(table, x), products.share(n, helpers + 1)
    data = address_of(x), n, k, address_of(out), m
    rest = np.int64(softmax), widest, np.int64(skip), rows
    run(mail, work, np.array((0, routines, table, layers, *data, *rest)), helpers)


@_alone
def _affine(mail, work, routines, x, W, b, out, helpers):
    m = W.shape[1]
    table = np.array((address_of(W), address_of(b), W.shape[0], m, 0))
    _forward(mail, work, routines, address_of(table), 1, m, x, out, False, helpers)
    return table.size  # it lives until here


# -- gradients


@_serial
def _transposed(kind, table, back):
    """W' of each layer but the first, one after the other: what carries a gradient back."""
    for depth in range(1, table.shape[0]):
        k, m = table[depth, _INPUTS], table[depth, _OUTPUTS]
        products.transpose(kind, table[depth, _WEIGHTS], k, m, back)
        back += k * m * size_of(kind)


@_alone
def _transpose(W, out):
    products.transpose(W.dtype.type(0), address_of(W), W.shape[0], W.shape[1], address_of(out))


@_serial
def _loss_rows(kind, at, t, n, m, cross_entropy, activation, scale, losses, delta):
    """The loss of each of n rows, and its gradient by what enters the last activation.

    `at` are the scores (n, m), t the targets; the gradient is multiplied by `scale`.
    """
    scores, delta_rows = _rows(kind, at, n, m), _rows(kind, delta, n, m)
    targets, found = _rows(kind, t, n, m), carray(pointer_to(kind, losses), n)
    y = np.empty(m, type(kind))
    for i in range(n):
        if cross_entropy:
            for j in range(m):
                y[j] = scores[i, j]
            found[i] = _softmax_loss_row(y, targets[i], y)
            _softmax_loss_row_backward(y, targets[i], scale, delta_rows[i])
        else:
            total = type(kind)(0)
            for j in range(m):
                difference = scores[i, j] - targets[i, j]
                total += difference * difference
                delta_rows[i, j] = difference * scale
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
    def work(job):
        """Take blocks of rows forward to their loss, and its gradient back to the first layer."""
        at_routines, at_table, layers, _, back, x, n, k, t = int64s(job + 16, 9)
        cross_entropy, outputs, deltas, losses, zeros, skip, words, rows, _ = int64s(job + 88, 9)
        routines, table = int64s_at(at_routines, 4), _table_at(at_table, layers)
        size, line = size_of(kind), (k + BITS - 1) // BITS * 8
        scale = type(kind)(1 / n)
        while True:
            start = atomic_add(job, 1) * rows
            if start >= n:
                return
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


SKIP = 16
"""Where in a job of the gradients it says whether products of 0 are left out."""


def _weights_work(kind):
    def work(job):
        """Take some inputs of a layer at a time, as long as there are any; with a rate, descend."""
        at_routines, at_table, layers, at_places, _, x, n, _, _ = int64s(job + 16, 9)
        _, outputs, deltas, _, zeros, skip, words, _, at_rate = int64s(job + 88, 9)
        routines, table = int64s_at(at_routines, 4), _table_at(at_table, layers)
        places, size = int64s_at(at_places, 2 * layers), size_of(kind)
        rate = carray(pointer_to(kind, at_rate), 1)[0]
        while True:
            task = atomic_add(job + 8, 1)
            depth, source, place = 0, x, 0
            while depth < layers:
                inputs, m = table[depth, _INPUTS], table[depth, _OUTPUTS]
                tasks = (inputs + BITS - 1) // BITS
                if task < tasks:
                    break
                task -= tasks
                source = outputs + place * size
                place += n * m
                depth += 1
            if depth == layers:
                return
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
    _transposed(kind, _table_at(table, layers), address_of(back))
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
    job = np.array((0, 0, *stack, *data, *between, *rest))
    run(mail, there_and_back, job, helpers)
    first = _table_at(table, 1)[0]
    if skip and not products.finite(kind, address_of(deltas), n * first[_OUTPUTS]):
        job[SKIP] = 0
    run(mail, weights, job, helpers)
    return places.size + rate.size  # they live until here


@_alone
def _affine_gradients(mail, work, routines, dout, x, words, zeros, dW, db, helpers):
    kind, (n, k) = x.dtype.type(0), x.shape
    skip = products.skippable(kind, address_of(x), n, k, address_of(dout), dout.size)
    if skip:
        products.find_nonzeros(kind, address_of(x), n, k, address_of(words))
    table = np.array(((0, 0, k, dout.shape[1], 0),))
    places = np.array((address_of(dW), address_of(db)))
    stack = routines, address_of(table), 1, address_of(places), 0
    between = 0, address_of(dout), 0, address_of(zeros)
    rate = np.zeros(1, x.dtype)
    rest = np.int64(skip), address_of(words), 0, address_of(rate)
    job = np.array((0, 0, *stack, address_of(x), n, k, 0, 0, *between, *rest))
    run(mail, work, job, helpers)
    return table.size + places.size + rate.size  # they live until here
