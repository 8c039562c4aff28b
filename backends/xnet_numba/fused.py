# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""A whole stack of layers in one compiled call: predictions, or the loss and its gradients.

What is compiled is in `passes`; here is what it works on, and how many threads it is worth. Which
way is taken, and the measurements that say so, are in docs/speed.md.
"""

from functools import cache, cached_property

import numpy as np
from numba import types  # pyright: ignore[reportPrivateImportUsage]

from xnet_numba import passes, products
from xnet_numba.compiling import routine
from xnet_numba.passes import ACTIVATIONS
from xnet_numba.pool import pool
from xnet_numba.tiles import BITS, VECTOR_BYTES

CACHED, LOADING = 1 << 20, 16
"""Bytes of weights that stay in the second-level cache, and how many rows one that does not has
been multiplied by in the time that it takes to come."""

KEPT = 1 << 20
"""Numbers, at most, that are kept from one call for the gradients to the next."""


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
        self.weights = sum(W.size for W, _, _ in layers)
        self.numbers = self.weights + self.between  # of all W and b
        self.weight_bytes = sum(_vector_bytes(W) for W, _, _ in layers)
        self.few = 0 if self._work(0) >= pool.HELP_FROM else pool.HELP_FROM / self.weight_bytes
        self.stack = _address(self.table), len(layers)
        # In one array: a compiled function takes time for each of its arguments.
        works = _pieces(passes._forward_work, self.dtype), _routines(self.dtype)
        self.heads = np.array([[*works, *self.stack, self.widest, p] for p in (0, 1)], np.int64)
        self.at_heads = _address(self.heads[0]), _address(self.heads[1])
        self.room = self.found = None

    def forward(self, x, softmax):
        """The scores of x (N, D), or their softmax."""
        n, head = len(x), self.at_heads[softmax]
        out = np.empty((n, self.outputs), self.dtype)
        if n < self.few:  # not by way of `share`, which takes a good part of so small a call
            passes._forward(0, head, x, out, 0)
        else:
            pool.share(self._work(n), passes._forward, head, x, out)
        return out

    def _work(self, rows):
        return _work(rows, self.weight_bytes)

    def loss_and_gradients(self, x, t, loss):
        """The mean loss, and its gradients by W and b of each layer; see `Backend`."""
        found = np.empty(self.numbers, self.dtype)
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
            self.found = np.empty(self.numbers, self.dtype)
        return self._descend(x, t, loss, lr, self.found)

    def _descend(self, x, t, loss, lr, found):
        n = x.shape[0]
        losses, *room = self._room_for(n)
        pool.share(
            *(
                self._work(n),
                passes._gradients,
                *self._gradient_works,
                self.dtype.type(lr),
                found,
                x,
                t,
            ),
            *(loss == "cross_entropy", losses, *room),
        )
        return losses.sum() / n

    @cached_property
    def _gradient_works(self):
        works = (
            _pieces(make, self.dtype)
            for make in (passes._there_and_back_work, passes._weights_work)
        )
        return *works, _routines(self.dtype, True), *self.stack

    def _room_for(self, n):
        """What lies between two layers, forward and backward, each in one piece, and the rest."""
        if self.room is not None and len(self.room[0]) == n:
            return self.room
        outputs, deltas = (np.empty(n * self.between, self.dtype) for _ in "ab")
        losses, back = np.empty(n, self.dtype), np.empty(self.weights, self.dtype)
        words = np.empty((n, -(-self.inputs // BITS)), np.int64)
        zeros = np.zeros(max(self.widest, self.inputs, BITS), self.dtype)
        room = losses, outputs, deltas, back, words, zeros
        self.room = room if outputs.size <= KEPT else None
        return room


def affine(x, W, b):
    """x W + b, (N, D) by (D, M)."""
    if not x.size or not W.size:
        return x @ W + b
    n, m = x.shape[0], W.shape[1]
    out = np.empty((n, m), x.dtype)
    pool.share(_work(n, _vector_bytes(W)), passes._affine, _head(x.dtype), x, W, b, out)
    return out


def affine_gradients(dout, x):
    """Gradients of x W + b by W and b."""
    if not x.size or not dout.size:
        return x.T @ dout, dout.sum(axis=0)
    k, m = x.shape[1], dout.shape[1]
    dW, db = np.empty((k, m), x.dtype), np.empty(m, x.dtype)
    head = _head(x.dtype, True)
    pool.share(_work(len(x), _vector_bytes(dW)), passes._affine_gradients, head, dout, x, dW, db)
    return dW, db


def affine_backward(dout, x, W):
    """Gradients by x, W and b."""
    if not x.size or not W.size:
        return dout @ W.T, *affine_gradients(dout, x)
    dx, dW, db = (
        np.empty(x.shape, x.dtype),
        np.empty(W.shape, x.dtype),
        np.empty(W.shape[1], x.dtype),
    )
    head = _head(x.dtype, True)
    pool.share(
        _work(len(x), _vector_bytes(W)), passes._affine_backward, head, dout, x, W, dx, dW, db
    )
    return dx, dW, db


def _work(rows, weight_bytes):
    """Of so many rows times so many weights, as `Pool.share` counts it."""
    return (rows if weight_bytes < CACHED else max(rows, LOADING)) * weight_bytes


def _vector_bytes(W):
    """What W would take if its rows were whole vectors, as which they are multiplied."""
    return W.shape[0] * -(-W.shape[1] * W.itemsize // VECTOR_BYTES) * VECTOR_BYTES


@cache
def _pieces(make, dtype):
    """The address of a routine that takes pieces of a job, for a dtype."""
    return routine(make(dtype.type(0)), types.int64, types.int64)


@cache
def _routines(dtype, gradient=False):
    return _address(products.routines(dtype, gradient))


@cache
def _head(dtype, gradient=False):
    """What an affine layer takes: a work, the routines, and for its gradients their work."""
    works = [_pieces(passes._forward_work, dtype), _routines(dtype, gradient)]
    _heads.append(
        np.array(works + ([_pieces(passes._weights_work, dtype)] if gradient else []), np.int64)
    )
    return _address(_heads[-1])


_heads = []


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
