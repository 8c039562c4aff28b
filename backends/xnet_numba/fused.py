# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""A whole stack of layers in one compiled call: predictions, or the loss and its gradients.

A thread takes a block of rows through all layers before it takes the next, so that what lies
between two layers stays in the first-level cache; bias and activation go in while a tile is there.
The products are those of `tiles`, so BLAS and its threads have no part in it.

Which way is taken, and the measurements that say so, are in docs/speed.md.
"""

import numba
import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from xnet_numba import products
from xnet_numba.compiling import _parallel, _serial, launching, thread_count
from xnet_numba.kernels import (
    _sigmoid_element,
    _softmax_loss_row,
    _softmax_loss_row_backward,
    _softmax_row,
)
from xnet_numba.tiles import BITS, address_of, pointer_to, size_of, take_next

PARALLEL_FROM = 1 << 22
"""Multiplications from which a call is worth waking the threads."""

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
        self.dtype = self.layers[0][0].dtype
        self.inputs, self.outputs = self.layers[0][0].shape[0], self.layers[-1][0].shape[1]
        self.routines = products.routines(self.dtype)
        self.table = np.array(
            [
                [_address(W), _address(b), *W.shape, ACTIVATIONS[activation]]
                for W, b, activation in self.layers
            ],
            np.int64,
        )
        self.widest = max(W.shape[1] for W, _, _ in self.layers)
        self.zeros = np.zeros(max(self.widest, self.inputs), self.dtype)
        self.between = sum(W.shape[1] for W, _, _ in self.layers)
        self.work = sum(W.size for W, _, _ in self.layers)

    def forward(self, x, softmax):
        """The scores of x (N, D), or their softmax."""
        out = np.empty((x.shape[0], self.outputs), x.dtype)
        if x.shape[0] * self.work < PARALLEL_FROM:
            _forward(self.routines, self.table, x, out, softmax, self.widest)
        else:
            with launching:
                threads = thread_count()
                _forward_parallel(self.routines, self.table, x, out, softmax, self.widest, threads)
        return out

    def loss_and_gradients(self, x, t, loss):
        """The mean loss, and its gradients by W and b of each layer; see `Backend`."""
        n = x.shape[0]
        # All that is needed between two layers, and all that comes out, in one piece each.
        outputs, deltas = (np.empty(n * self.between, x.dtype) for _ in "ab")
        found = [(np.empty_like(W), np.empty_like(b)) for W, b, _ in self.layers]
        places = np.array([[_address(W), _address(b)] for W, b in found], np.int64)
        losses = np.empty(n, x.dtype)
        routines = products.routines(self.dtype, gradient=True)
        arguments = (
            *(routines, self.table, places, x, t, loss == "cross_entropy"),
            *(outputs, deltas, losses, self.zeros),
        )
        if n * self.work < PARALLEL_FROM:
            _gradients(*arguments)
        else:
            with launching:
                _gradients_parallel(*arguments, thread_count())
        return losses.sum() / n, found


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
def _skippable(table, x):
    """Whether to leave out the products of 0 in the first layer."""
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
def _forward_blocks(routines, table, x, out, softmax, widest, skip, rows, counter):
    """Take blocks of so many rows, as long as there are any, through all layers."""
    kind, (n, k), layers = x.dtype.type(0), x.shape, table.shape[0]
    words = products.room(rows, k, skip)
    between = np.empty((2, rows * widest), x.dtype)
    while True:
        start = take_next(address_of(counter)) * rows
        if start >= n:
            return
        count = min(rows, n - start)
        at, result = address_of(x[start:]), address_of(out[start:])
        for depth in range(layers):
            to = result if depth == layers - 1 else address_of(between[depth % 2])
            sparse = skip and depth == 0
            _layer(routines, kind, table[depth], at, count, to, sparse, address_of(words))
            at = to
        if softmax:
            for i in range(start, start + count):
                _softmax_row(out[i], out[i])


@_serial
def _forward(routines, table, x, out, softmax, widest):
    skip, rows = _skippable(table, x), products.share(x.shape[0], 1)
    counter = np.zeros(1, np.int64)
    _forward_blocks(routines, table, x, out, softmax, widest, skip, rows, counter)


@_parallel
def _forward_parallel(routines, table, x, out, softmax, widest, threads):
    skip, rows = _skippable(table, x), products.share(x.shape[0], threads)
    counter = np.zeros(1, np.int64)
    for _ in numba.prange(threads):
        _forward_blocks(routines, table, x, out, softmax, widest, skip, rows, counter)


# -- gradients


@_serial
def _transposed(table, like):
    """W' of each layer but the first, one after the other: what carries a gradient back."""
    size = 0
    for depth in range(1, table.shape[0]):
        size += table[depth, _INPUTS] * table[depth, _OUTPUTS]
    out = np.empty(size, like.dtype)
    at = 0
    for depth in range(1, table.shape[0]):
        k, m = table[depth, _INPUTS], table[depth, _OUTPUTS]
        products.transpose(like.dtype.type(0), table[depth, _WEIGHTS], k, m, address_of(out[at:]))
        at += k * m
    return out


@_serial
def _loss_rows(scores, t, cross_entropy, scale, losses, delta):
    """The loss of each row, and its gradient by the scores times `scale`; the scores are spent."""
    for i in range(scores.shape[0]):
        if cross_entropy:
            losses[i] = _softmax_loss_row(scores[i], t[i], scores[i])
            _softmax_loss_row_backward(scores[i], t[i], scale, delta[i])
        else:
            total = scores.dtype.type(0)
            for j in range(scores.shape[1]):
                difference = scores[i, j] - t[i, j]
                total += difference * difference
                delta[i, j] = difference * scale
            losses[i] = total * scores.dtype.type(0.5)


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


@_serial
def _there_and_back(
    routines, kind, table, back, x, t, cross_entropy, outputs, deltas, losses, zeros, skip, words,
    rows, counter,
):  # fmt: skip
    """Take blocks of rows forward to their loss, and its gradient back to the first layer."""
    n, size, layers = x.shape[0], size_of(kind), table.shape[0]
    scale = x.dtype.type(1 / n)
    while True:
        start = take_next(address_of(counter)) * rows
        if start >= n:
            return
        count = min(rows, n - start)
        at = address_of(x) + start * x.shape[1] * size
        place = 0  # where a layer's outputs and deltas begin
        for depth in range(layers):
            m = table[depth, _OUTPUTS]
            to = address_of(outputs) + (place + start * m) * size
            sparse, known = skip and depth == 0, address_of(words[start:])
            _layer(routines, kind, table[depth], at, count, to, sparse, known)
            at = to
            place += n * m
        place -= n * m
        scores = outputs[place : place + n * m].reshape((n, m))[start : start + count]
        delta = deltas[place : place + n * m].reshape((n, m))[start : start + count]
        block = slice(start, start + count)
        last = table[layers - 1, _ACTIVATION]
        if last != 0 and cross_entropy:  # the softmax would overwrite what the activation gave
            kept = scores.copy()
            _loss_rows(scores, t[block], cross_entropy, scale, losses[block], delta)
            _through_activation(kind, address_of(delta), address_of(kept), count * m, last)
        else:
            _loss_rows(scores, t[block], cross_entropy, scale, losses[block], delta)
            _through_activation(kind, address_of(delta), address_of(scores), count * m, last)
        W = back.size
        for depth in range(layers - 1, 0, -1):
            k, m = table[depth, _INPUTS], table[depth, _OUTPUTS]
            W -= k * m
            source = address_of(deltas) + (place + start * m) * size
            place -= n * k
            to = address_of(deltas) + (place + start * k) * size
            transposed = address_of(back) + W * size
            products.dense(
                routines, kind, source, count, m, transposed, address_of(zeros), to, k
            )  # fmt: skip
            y = address_of(outputs) + (place + start * k) * size
            _through_activation(kind, to, y, count * k, table[depth - 1, _ACTIVATION])


@_serial
def _weight_gradients(
    routines, kind, table, places, x, outputs, deltas, zeros, skip, words, counter
):
    """Take some inputs of a layer at a time, as long as there are any."""
    n, size = x.shape[0], size_of(kind)
    while True:
        task = take_next(address_of(counter))
        depth, source, place = 0, address_of(x), 0
        while depth < table.shape[0]:
            k, m = table[depth, _INPUTS], table[depth, _OUTPUTS]
            tasks = (k + BITS - 1) // BITS
            if task < tasks:
                break
            task -= tasks
            source = address_of(outputs) + place * size
            place += n * m
            depth += 1
        if depth == table.shape[0]:
            return
        products.gradient(
            routines, kind, task, source, n, k, address_of(deltas) + place * size, m,
            skip and depth == 0, address_of(words), address_of(zeros), places[depth, 0], places[depth, 1],
        )  # fmt: skip


@_serial
def _gradients(routines, table, places, x, t, cross_entropy, outputs, deltas, losses, zeros):
    kind, n = x.dtype.type(0), x.shape[0]
    skip, rows = _skippable(table, x), products.share(n, 1)
    words = products.room(n, x.shape[1], skip)
    back, counters = _transposed(table, x), np.zeros(2, np.int64)
    _there_and_back(
        routines, kind, table, back, x, t, cross_entropy, outputs, deltas, losses, zeros, skip,
        words, rows, counters[:1],
    )  # fmt: skip
    skip = skip and products.finite(kind, address_of(deltas), n * table[0, _OUTPUTS])
    _weight_gradients(
        routines, kind, table, places, x, outputs, deltas, zeros, skip, words, counters[1:]
    )


@_parallel
def _gradients_parallel(
    routines, table, places, x, t, cross_entropy, outputs, deltas, losses, zeros, threads
):  # fmt: skip
    kind, n = x.dtype.type(0), x.shape[0]
    skip, rows = _skippable(table, x), products.share(n, threads)
    words = products.room(n, x.shape[1], skip)
    back, counters = _transposed(table, x), np.zeros(2, np.int64)
    for _ in numba.prange(threads):
        _there_and_back(
            routines, kind, table, back, x, t, cross_entropy, outputs, deltas, losses, zeros,
            skip, words, rows, counters[:1],
        )  # fmt: skip
    skip = skip and products.finite(kind, address_of(deltas), n * table[0, _OUTPUTS])
    for _ in numba.prange(threads):
        _weight_gradients(
            routines, kind, table, places, x, outputs, deltas, zeros, skip, words, counters[1:]
        )
