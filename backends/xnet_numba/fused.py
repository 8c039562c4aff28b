# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""A whole stack of layers in one compiled call: predictions, or the loss and its gradients.

A thread takes a block of rows through all layers before it takes the next, so that what lies
between two layers stays in the first-level cache; bias and activation go in while a tile is there.
The products are those of `tiles`, so BLAS and its threads have no part in it.

Which way is taken, and the measurements that say so, are in docs/speed.md.
"""

import numba
import numpy as np
from numba import carray

from xnet_numba.kernels import (
    _parallel,
    _serial,
    _sigmoid_element,
    _softmax_row,
    launching,
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

PARALLEL_FROM = 1 << 22
"""Multiplications from which a call is worth waking the threads."""

SPARSE_BELOW = 1 / 3
"""Share of numbers that are not 0 below which a row's zeros are skipped: finding them costs a
sixth of a dense row, and a number that is met costs 2.5 times what it does in a tile."""

SPARSE_ROWS = 8
"""Rows from which it pays to see first that W is finite, so that 0 times W is 0."""

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
                [W.ctypes.data, b.ctypes.data, *W.shape, ACTIVATIONS[activation]]
                for W, b, activation in self.layers
            ],
            np.int64,
        )
        self.widest = max(W.shape[1] for W, _, _ in self.layers)
        self.work = sum(W.size for W, _, _ in self.layers)

    def forward(self, x, softmax):
        """The scores of x (N, D), or their softmax."""
        out = np.empty((x.shape[0], self.outputs), x.dtype)
        if x.shape[0] * self.work < PARALLEL_FROM:
            _forward(self.table, x, out, softmax, self.widest)
        else:
            with launching:
                threads = numba.get_num_threads()
                _forward_parallel(self.table, x, out, softmax, self.widest, threads)
        return out


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
    size = size_of(kind)
    j = 0
    while j < m:
        i, columns = 0, m
        while i < n:
            # A tile that would end beyond the last row starts earlier, if there are so many.
            if n >= ROWS:
                at = min(i, n - ROWS)
                columns = tile(
                    kind, ROWS, 0, 0, a + at * row, row, step, k, b, m, bias, c + at * m * size,
                    m, j, m,
                )  # fmt: skip
                i += ROWS
            elif n >= 2:
                at = min(i, n - 2)
                columns = tile(
                    kind, 2, 0, 0, a + at * row, row, step, k, b, m, bias, c + at * m * size,
                    m, j, m,
                )  # fmt: skip
                i += 2
            else:
                columns = tile(kind, 1, 0, 0, a, row, step, k, b, m, bias, c, m, j, m)
                i += 1
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
    """As `_dense` for x (n, k) in C order, without the products of 0."""
    size = size_of(kind)
    for i in range(n):
        at = x + i * k * size
        count = _nonzeros(kind, at, k, found)
        j = 0
        while j < m:
            j += tile(
                kind, 1, 1, found.ctypes.data, at, 0, size, count, b, m, bias,
                c + i * m * size, m, j, m,
            )  # fmt: skip


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
        for l in range(layers):
            to = result if l == layers - 1 else between[l % 2].ctypes.data
            _layer(kind, table[l], at, count, to, sparse and l == 0, found)
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
