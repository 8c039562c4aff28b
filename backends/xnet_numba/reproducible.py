# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
"""A training step of a whole run in one compiled call, in reproducible mode.

The table, the job and what is called by address are those of `fused` and `passes`; the products
and sums are `exact`'s. A layer is done for all rows before the next, for the slices of a gradient
need the largest number of a column: what is shared among threads is each product.
"""

import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from xnet import exact as definitions
from xnet_numba import exact
from xnet_numba.compiling import _alone, _strict
from xnet_numba.exactly import row_sum
from xnet_numba.fused import DONE, Prepared, takes
from xnet_numba.generated import EXACT
from xnet_numba.intrinsics import address_of, call, lives_until_here, pointer_to, size_of
from xnet_numba.passes import _table_at, _take_step, _training_pointer
from xnet_numba.pool import pool


@_strict
def _matrix(kind, address, n, m):
    return carray(pointer_to(kind, address), (n, m))


@_strict
def _product(mail, routines, a, across, words, b, bias, out, slices, helpers):
    """Out = a b + bias, or a' b if `across`; whether a and b are finite.

    `slices` has how many of them a product takes, and of how many bits, by the length contracted.
    """
    k, m = b.shape
    parts, half = exact.room_for_slices(k, m, slices[k, 0]), np.empty(m)
    if not exact.cut_blocks(b, slices[k, 1], parts, half):
        return False
    return exact.multiply(
        mail, routines, a, across, words, parts, slices[k, 1], half, bias, out, helpers
    )


@_strict
def _transposed(a):
    out = np.empty((a.shape[1], a.shape[0]), a.dtype)
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[j, i] = a[i, j]
    return out


@_strict
def _through_activation(kind, job, layer):
    """The gradient by a layer's output becomes that by what enters its activation."""
    if layer.back != 0:
        size, count = size_of(kind), job.n * layer.outputs
        place = layer.place * job.n * size
        before = job.before + layer.before * job.n * size
        deltas, outputs = job.deltas + place, job.outputs + place
        call(layer.back, (kind, deltas, before, outputs, count, layer.back_numbers))


@_alone
def _train(mail, at_job, routines, x, t, found, slices, helpers):
    """As `passes._train`, there and back by the loss; whether all numbers of products are finite.

    If they are not, no parameter is changed. `routines` and `slices` are as in `_product`.
    """
    kind, n = x.dtype.type(0), x.shape[0]
    job = carray(_training_pointer(at_job), 1)[0]
    table, size = _table_at(job.table, job.layers), size_of(kind)
    nothing = np.empty(0, x.dtype)
    words = job.words if exact.nonzeros(x, job.words) else 0
    job.done = 0
    at = x
    for depth in range(job.layers):
        layer = table[depth]
        k, m = layer.inputs, layer.outputs
        out = _matrix(kind, job.outputs + layer.place * n * size, n, m)
        W, b = _matrix(kind, layer.weights, k, m), carray(pointer_to(kind, layer.bias), m)
        known = words if depth == 0 else 0
        if not _product(mail, routines, at, False, known, W, b, out, slices, helpers):
            return False
        if layer.before >= 0:
            _matrix(kind, job.before + layer.before * n * size, n, m)[:] = out
        if layer.forth != 0:
            place = job.outputs + layer.place * n * size
            call(layer.forth, (kind, place, n * m, layer.forth_numbers))
        at = out
    last = table[job.layers - 1]
    place, m = last.place * n * size, last.outputs
    targets = address_of(t)
    call(
        job.loss,
        (
            kind, job.outputs + place, targets, job.losses, job.deltas + place, n, m,
            job.loss_numbers,
        ),
    )  # fmt: skip
    _through_activation(kind, job, last)
    at_dx = job.dx
    for depth in range(job.layers - 1, -1, -1):
        layer = table[depth]
        k, m = layer.inputs, layer.outputs
        delta = _matrix(kind, job.deltas + layer.place * n * size, n, m)
        if depth > 0 or at_dx != 0:
            to = at_dx
            if depth > 0:
                to = job.deltas + table[depth - 1].place * n * size
            W = _transposed(_matrix(kind, layer.weights, k, m))
            dx = _matrix(kind, to, n, k)
            if not _product(mail, routines, delta, False, 0, W, nothing, dx, slices, helpers):
                return False
            if depth > 0:
                _through_activation(kind, job, table[depth - 1])
    place = 0
    for depth in range(job.layers):
        layer = table[depth]
        k, m = layer.inputs, layer.outputs
        delta = _matrix(kind, job.deltas + layer.place * n * size, n, m)
        inputs = x
        if depth > 0:
            before = table[depth - 1]
            inputs = _matrix(kind, job.outputs + before.place * n * size, n, before.outputs)
        dW, db = found[place : place + k * m].reshape(k, m), found[place + k * m :][:m]
        known = words if depth == 0 else 0
        if not _product(mail, routines, inputs, True, known, delta, nothing, dW, slices, helpers):
            return False
        if not exact.sum_columns(delta, db):
            return False
        place += (k + 1) * m
    if job.step != 0:
        at_found = address_of(found)
        for depth in range(job.layers):
            layer = table[depth]
            count, m = layer.inputs * layer.outputs, layer.outputs
            _take_step(kind, job, layer.weights, at_found, 2 * depth, 0, count)
            at_found += count * size
            _take_step(kind, job, layer.bias, at_found, 2 * depth + 1, 0, m)
            at_found += m * size
    job.done = 1
    lives_until_here((found, slices))
    return True


def prepared(run):
    """`Reproducible` of a run, False if it is not what that takes."""
    whole = run.operations and takes(run) == len(run.operations)
    return Reproducible(run) if whole else False


class Reproducible(Prepared):
    """A run for training in reproducible mode."""

    mode = EXACT

    works = 0, 0  # each product has its own

    def _run(self, room, x, t, found):
        if room.slices is None:
            room.slices = _slices(self, len(x))
            counts = {int(count) for count in room.slices[:, 0] if count}
            room.routines = exact.routines(self.dtype, *sorted(counts))
        work = 3 * self._work(len(x))
        pool.share(work, _train, room.at_job, room.routines, x, t, found, room.slices)

    def _mean(self, room):
        """Of the losses; None if the pass met a number that is not finite."""
        if not room.fields[DONE]:
            return None
        return self.dtype.type(row_sum(room.losses)) / len(room.losses)


def _slices(run, n):
    """How many slices a product takes, and of how many bits, by the length contracted."""
    lengths = {n, *(size for W, _, _ in run.layers for size in W.shape)}
    slices = np.zeros((max(lengths) + 1, 2), np.int64)
    for length in lengths:
        slices[length] = definitions.product_slices(length, run.dtype.name)
    return slices
