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

from xnet_numba.kernels import (
    _parallel,
    _serial,
    _sigmoid_element,
    _softmax_loss_row,
    _softmax_loss_row_backward,
    _softmax_row,
    launching,
    thread_count,
)
from xnet_numba.tiles import (
    ROWS,
    nonzero_lanes,
    pointer_to,
    size_of,
    take_next,
    tile,
    trailing_zeros,
)

BLOCK_ROWS = 8 * ROWS
"""Rows that a thread takes through all layers at a time."""

PARALLEL_FROM = 1 << 23
"""Multiplications from which a call is worth waking the threads."""

SPARSE_BELOW = 1 / 3
"""Share of numbers that are not 0 below which a row's zeros are skipped: finding them costs a
sixth of a dense row, and a number that is met costs 2.5 times what it does in a tile."""

SPARSE_ROWS = 8
"""Rows from which it pays to see first that W is finite, so that 0 times W is 0."""

GRADIENT_ROWS, GRADIENT_COLUMNS = 128, 64
"""Samples and inputs that the product x' delta takes at a time: both stay in cache."""

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
        self.table = np.array(
            [
                [_address(W), _address(b), *W.shape, ACTIVATIONS[activation]]
                for W, b, activation in self.layers
            ],
            np.int64,
        )
        self.widest = max(W.shape[1] for W, _, _ in self.layers)
        self.between = sum(W.shape[1] for W, _, _ in self.layers)
        self.work = sum(W.size for W, _, _ in self.layers)

    def forward(self, x, softmax):
        """The scores of x (N, D), or their softmax."""
        out = np.empty((x.shape[0], self.outputs), x.dtype)
        if x.shape[0] * self.work < PARALLEL_FROM:
            _forward(self.table, x, out, softmax, self.widest)
        else:
            with launching:
                threads = thread_count()
                _forward_parallel(self.table, x, out, softmax, self.widest, threads)
        return out

    def loss_and_gradients(self, x, t, loss):
        """The mean loss, and its gradients by W and b of each layer; see `Backend`."""
        n = x.shape[0]
        # All that is needed between two layers, and all that comes out, in one piece each.
        outputs, deltas = (np.empty(n * self.between, x.dtype) for _ in "ab")
        found = [(np.empty_like(W), np.empty_like(b)) for W, b, _ in self.layers]
        places = np.array([[_address(W), _address(b)] for W, b in found], np.int64)
        losses = np.empty(n, x.dtype)
        arguments = self.table, places, x, t, loss == "cross_entropy", outputs, deltas, losses
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


# -- products


@_serial
def _dense(kind, a, row, step, n, k, b, bias, c, m):
    """C (n, m) = A (n, k) B (k, m) + bias; see `tile`. B and C are in C order."""
    line = m * size_of(kind)
    j = 0
    while j < m:
        i, columns = 0, m
        while i < n:
            # A tile that would end beyond the last row starts earlier, if there are so many.
            rows = ROWS if n >= ROWS else min(n, 2)
            at = min(i, n - rows)
            i = at + rows
            x, to = a + at * row, c + at * line
            if rows == ROWS:
                columns = tile(kind, ROWS, 0, 0, x, row, step, k, b, m, bias, to, m, j, m)
            elif rows == 2:
                columns = tile(kind, 2, 0, 0, x, row, step, k, b, m, bias, to, m, j, m)
            else:
                columns = tile(kind, 1, 0, 0, x, row, step, k, b, m, bias, to, m, j, m)
        j += columns


@_serial
def _nonzeros(kind, x, size, found):
    """Indices of the numbers at x that are not 0, into `found`; returns how many."""
    count = 0
    whole = size // 64
    for w in range(whole):
        word = np.int64(0)
        at = x + w * 64 * size_of(kind)
        for part in range(4):
            lanes = nonzero_lanes(kind, 16, at + part * 16 * size_of(kind))
            word |= lanes << np.int64(16 * part)
        while word != 0:
            found[count] = w * 64 + trailing_zeros(word)
            count += 1
            word &= word - np.int64(1)
    rest = carray(pointer_to(kind, x), size)
    for k in range(whole * 64, size):
        if rest[k] != 0:
            found[count] = k
            count += 1
    return count


@_serial
def _is_sparse(kind, x, n, k, found):
    """Whether so few of the numbers of a block of rows differ from 0 that it pays to skip the rest.

    A few of its rows speak for all.
    """
    looked_at = min(n, 4)
    count = 0
    for i in range(looked_at):
        at = i * n // looked_at
        count += _nonzeros(kind, x + at * k * size_of(kind), k, found)
    return count < SPARSE_BELOW * looked_at * k


@_serial
def _sparse(kind, x, n, k, b, bias, c, m, found):
    """As `_dense` for x (n, k) in C order and a bias, without the products of 0."""
    size = size_of(kind)
    for i in range(n):
        at = x + i * k * size
        count = _nonzeros(kind, at, k, found)
        j = 0
        while j < m:
            to = c + i * m * size
            j += tile(kind, 1, 1, found.ctypes.data, at, 0, size, count, b, m, bias, to, m, j, m)


@_serial
def _finite(kind, address, size):
    """Whether all the numbers are finite: 0 times any other is NaN."""
    values = carray(pointer_to(kind, address), size)
    total = type(kind)(0)
    for i in range(size):
        total += values[i] * type(kind)(0)
    return total == 0


@_serial
def _skippable(kind, layer):
    """Whether 0 times any number of W is 0."""
    return _finite(kind, layer[_WEIGHTS], layer[_INPUTS] * layer[_OUTPUTS])


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
def _layer(kind, layer, x, n, out, sparse, found):
    """One layer for n rows, from x to `out`; `sparse` says that 0 times W is known to be 0."""
    k, m = layer[_INPUTS], layer[_OUTPUTS]
    W, b, size = layer[_WEIGHTS], layer[_BIAS], size_of(kind)
    if sparse and _is_sparse(kind, x, n, k, found):
        _sparse(kind, x, n, k, W, b, out, m, found)
    else:
        _dense(kind, x, k * size, size, n, k, W, b, out, m)
    _activate(kind, out, n * m, layer[_ACTIVATION])


@_serial
def _forward_blocks(kind, table, x, out, softmax, widest, sparse, counter):
    """Take blocks of rows, as long as there are any, through all layers."""
    n, size, layers = x.shape[0], size_of(kind), table.shape[0]
    found = np.empty(x.shape[1] if sparse else 0, np.int32)
    rows = min(n, BLOCK_ROWS)
    between = np.empty((2, rows * widest), x.dtype)
    while True:
        start = take_next(counter.ctypes.data) * BLOCK_ROWS
        if start >= n:
            return
        count = min(BLOCK_ROWS, n - start)
        at = x.ctypes.data + start * x.shape[1] * size
        result = out.ctypes.data + start * out.shape[1] * size
        for depth in range(layers):
            to = result if depth == layers - 1 else between[depth % 2].ctypes.data
            _layer(kind, table[depth], at, count, to, sparse and depth == 0, found)
            at = to
        if softmax:
            for i in range(start, start + count):
                _softmax_row(out[i], out[i])


@_serial
def _forward(table, x, out, softmax, widest):
    kind = x.dtype.type(0)
    sparse = x.shape[0] >= SPARSE_ROWS and _skippable(kind, table[0])
    counter = np.zeros(1, np.int64)
    _forward_blocks(kind, table, x, out, softmax, widest, sparse, counter)


@_parallel
def _forward_parallel(table, x, out, softmax, widest, threads):
    kind = x.dtype.type(0)
    sparse = x.shape[0] >= SPARSE_ROWS and _skippable(kind, table[0])
    counter = np.zeros(1, np.int64)
    for _ in numba.prange(threads):
        _forward_blocks(kind, table, x, out, softmax, widest, sparse, counter)


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
        W = carray(pointer_to(like.dtype.type(0), table[depth, _WEIGHTS]), (k, m))
        for i in range(k):
            for j in range(m):
                out[at + j * k + i] = W[i, j]
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
    kind, table, back, x, t, cross_entropy, outputs, deltas, losses, sparse, block, counter
):
    """Take blocks of rows forward to their loss, and its gradient back to the first layer."""
    n, size, layers = x.shape[0], size_of(kind), table.shape[0]
    found = np.empty(x.shape[1] if sparse else 0, np.int32)
    zeros = np.zeros(np.max(table[:, _INPUTS]), x.dtype)
    scale = x.dtype.type(1 / n)
    while True:
        start = take_next(counter.ctypes.data) * block
        if start >= n:
            return
        count = min(block, n - start)
        at = x.ctypes.data + start * x.shape[1] * size
        place = 0  # where a layer's outputs and deltas begin
        for depth in range(layers):
            m = table[depth, _OUTPUTS]
            to = outputs.ctypes.data + (place + start * m) * size
            _layer(kind, table[depth], at, count, to, sparse and depth == 0, found)
            at = to
            place += n * m
        place -= n * m
        scores = outputs[place : place + n * m].reshape((n, m))[start : start + count]
        delta = deltas[place : place + n * m].reshape((n, m))[start : start + count]
        rows = slice(start, start + count)
        last = table[layers - 1, _ACTIVATION]
        if last != 0 and cross_entropy:  # the softmax would overwrite what the activation gave
            kept = scores.copy()
            _loss_rows(scores, t[rows], cross_entropy, scale, losses[rows], delta)
            _through_activation(kind, delta.ctypes.data, kept.ctypes.data, count * m, last)
        else:
            _loss_rows(scores, t[rows], cross_entropy, scale, losses[rows], delta)
            _through_activation(kind, delta.ctypes.data, scores.ctypes.data, count * m, last)
        W = back.size
        for depth in range(layers - 1, 0, -1):
            k, m = table[depth, _INPUTS], table[depth, _OUTPUTS]
            W -= k * m
            source = deltas.ctypes.data + (place + start * m) * size
            place -= n * k
            to = deltas.ctypes.data + (place + start * k) * size
            transposed = back.ctypes.data + W * size
            _dense(
                kind, source, m * size, size, count, m, transposed, zeros.ctypes.data, to, k
            )  # fmt: skip
            y = outputs.ctypes.data + (place + start * k) * size
            _through_activation(kind, to, y, count * k, table[depth - 1, _ACTIVATION])


@_serial
def _weights_sparse(kind, x, row, n, k, delta, m, zeros, to, found, rows, counts):
    """As `_dense` for C (k, m) = x' delta, for each input the samples alone where it is not 0."""
    size = size_of(kind)
    counts[:] = 0
    for i in range(n):
        for q in range(_nonzeros(kind, x + i * row * size, k, found)):
            column = found[q]
            rows[column, counts[column]] = i
            counts[column] += 1
    for column in range(k):
        j = 0
        while j < m:
            j += tile(
                kind, 1, 1, rows[column].ctypes.data, x + column * size, 0, row * size,
                counts[column], delta, m, zeros, to + column * m * size, m, j, m,
            )  # fmt: skip


@_serial
def _add(kind, total, part, size):
    total, part = carray(pointer_to(kind, total), size), carray(pointer_to(kind, part), size)
    for i in range(size):
        total[i] += part[i]


@_serial
def _weight_gradients(kind, table, places, x, outputs, deltas, sparse, counter):
    """Take GRADIENT_COLUMNS inputs of a layer at a time, as long as there are any."""
    n, size = x.shape[0], size_of(kind)
    found = np.empty(GRADIENT_COLUMNS, np.int32)
    rows = np.empty((GRADIENT_COLUMNS, GRADIENT_ROWS), np.int32)
    counts = np.empty(GRADIENT_COLUMNS, np.int64)
    no_sum = np.zeros(np.max(table[:, _OUTPUTS]), x.dtype)
    zeros = no_sum.ctypes.data
    part = np.empty(GRADIENT_COLUMNS * no_sum.size if n > GRADIENT_ROWS else 0, x.dtype)
    while True:
        task = take_next(counter.ctypes.data)
        depth, source, place = 0, x.ctypes.data, 0
        while depth < table.shape[0]:
            k, m = table[depth, _INPUTS], table[depth, _OUTPUTS]
            tasks = (k + GRADIENT_COLUMNS - 1) // GRADIENT_COLUMNS
            if task < tasks:
                break
            task -= tasks
            source = outputs.ctypes.data + place * size
            place += n * m
            depth += 1
        if depth == table.shape[0]:
            return
        first = task * GRADIENT_COLUMNS
        count = min(GRADIENT_COLUMNS, k - first)
        delta, dW = deltas.ctypes.data + place * size, places[depth, 0] + first * m * size
        # GRADIENT_ROWS samples at a time: the first lot's product is dW, the next are added.
        for start in range(0, n, GRADIENT_ROWS):
            some = min(GRADIENT_ROWS, n - start)
            at, d = source + (start * k + first) * size, delta + start * m * size
            to = dW if start == 0 else part.ctypes.data
            if depth == 0 and sparse:
                _weights_sparse(kind, at, k, some, count, d, m, zeros, to, found, rows, counts)
            else:
                _dense(kind, at, size, k * size, count, some, d, zeros, to, m)
            if start > 0:
                _add(kind, dW, to, count * m)
        if first == 0:
            db = carray(pointer_to(kind, places[depth, 1]), m)
            d = carray(pointer_to(kind, delta), (n, m))
            db[:] = 0
            for i in range(n):
                for j in range(m):
                    db[j] += d[i, j]


@_serial
def _gradients(table, places, x, t, cross_entropy, outputs, deltas, losses):
    kind = x.dtype.type(0)
    n = x.shape[0]
    found = np.empty(x.shape[1], np.int32)
    sparse = n >= SPARSE_ROWS and _is_sparse(kind, x.ctypes.data, n, x.shape[1], found)
    skip = sparse and _skippable(kind, table[0])
    back = _transposed(table, x)
    counters = np.zeros(2, np.int64)
    _there_and_back(
        kind, table, back, x, t, cross_entropy, outputs, deltas, losses, skip, BLOCK_ROWS,
        counters[:1],
    )  # fmt: skip
    sparse = sparse and _finite(kind, deltas.ctypes.data, n * table[0, _OUTPUTS])
    _weight_gradients(kind, table, places, x, outputs, deltas, sparse, counters[1:])


@_parallel
def _gradients_parallel(
    table, places, x, t, cross_entropy, outputs, deltas, losses, threads
):  # fmt: skip
    kind = x.dtype.type(0)
    n = x.shape[0]
    found = np.empty(x.shape[1], np.int32)
    sparse = _is_sparse(kind, x.ctypes.data, n, x.shape[1], found)
    skip = sparse and _skippable(kind, table[0])
    back = _transposed(table, x)
    counters = np.zeros(2, np.int64)
    block = min(BLOCK_ROWS, (n + threads - 1) // threads)
    for _ in numba.prange(threads):
        _there_and_back(
            kind, table, back, x, t, cross_entropy, outputs, deltas, losses, skip, block,
            counters[:1],
        )  # fmt: skip
    sparse = sparse and _finite(kind, deltas.ctypes.data, n * table[0, _OUTPUTS])
    for _ in numba.prange(threads):
        _weight_gradients(kind, table, places, x, outputs, deltas, sparse, counters[1:])
