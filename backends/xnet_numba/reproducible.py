# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false
"""A whole run in one compiled call, in reproducible mode: predictions, a training step.

The table, the job and what is called by address are those of `fused` and `passes`; the products
and sums are `exact`'s. A layer is done for all rows before the next, for the slices of a gradient
need the largest number of a column: what is shared among threads is each product.
"""

from functools import cache, cached_property

import numpy as np
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage]

from xnet import exact as definitions
from xnet_numba import exact, generated, products
from xnet_numba.compiling import _alone, _strict, address, routine
from xnet_numba.exact import MOST_ORDERS, PRODUCT_WORDS, ROWS
from xnet_numba.exactly import row_sum
from xnet_numba.fused import DONE, Prepared, takes
from xnet_numba.generated import EXACT, OPTIONS
from xnet_numba.intrinsics import (
    address_of,
    atomic_add,
    call,
    int64s_at,
    lives_until_here,
    pointer_to,
    record_pointer,
    room_on_stack,
    size_of,
)
from xnet_numba.passes import _table_at, _take_step, _training_pointer, record
from xnet_numba.pool import claim, pool, run
from xnet_numba.tiles import BITS


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


# -- predictions


SLICED = record(
    *("weights", "copy", "parts", "half", "slices", "width", "inputs", "outputs", "bias"),
    *("chosen", "forth", "forth_numbers"),
)
"""A layer: its weights, what they were when they were cut, and the slices of that."""

FORWARD = record(
    *("taken", "front", "back"),  # what `pool.claim` counts
    *("piece", "dense", "table", "layers", "x", "words", "n", "k", "out", "m", "rows", "widest"),
    *("predict", "predict_numbers", "finite", "done"),
)
"""A job of `_forward_work`; `words`, `finite` and `done` are as in `exact.PRODUCT`."""

_sliced_pointer = record_pointer(SLICED)
_forward_pointer = record_pointer(FORWARD)
_FORWARD_WORDS = len(FORWARD.names)
_DONE = 8 * FORWARD.names.index("done")

CHANGED, FOUND, INFINITE = range(3)
"""What became of a prediction: weights have changed, all is well, or not all numbers are finite,
or there is no memory for them."""


def _forward_work(kind):
    def work(at_job, helping):
        """Take blocks of rows through all layers, as long as there are any."""
        job = carray(_forward_pointer(at_job), 1)[0]
        table = carray(_sliced_pointer(job.table), job.layers)
        at_product = room_on_stack(PRODUCT_WORDS)
        product = carray(exact.product_pointer(at_product), 1)[0]
        product.piece, product.dense, product.across = job.piece, job.dense, 0
        size, line = size_of(kind), (job.k + BITS - 1) // BITS * 8
        room = np.empty(2 * job.rows * job.widest, type(kind))
        pieces = (job.n + job.rows - 1) // job.rows
        piece = claim(at_job, helping, pieces)
        while piece >= 0 and job.finite:
            start = piece * job.rows
            count = min(job.rows, job.n - start)
            at, result = job.x + start * job.k * size, job.out + start * job.m * size
            for depth in range(job.layers):
                layer = table[depth]
                to = result
                if depth < job.layers - 1:
                    to = address_of(room) + depth % 2 * job.rows * job.widest * size
                product.a, product.out, product.n = at, to, count
                product.words = 0
                few = job.rows * layer.slices * layer.outputs <= MOST_ORDERS
                if depth == 0 and job.words != 0 and few:
                    product.words = job.words + start * line
                product.b, product.b_half, product.bias = layer.parts, layer.half, layer.bias
                product.k, product.m, product.biases = layer.inputs, layer.outputs, layer.outputs
                product.slices, product.width = layer.slices, layer.width
                product.chosen, product.finite, product.done = layer.chosen, 1, 0
                call(job.piece, (at_product, 0, count))
                if product.done != count:
                    job.finite = 0
                    break
                if layer.forth != 0:
                    call(layer.forth, (kind, to, count * layer.outputs, layer.forth_numbers))
                at = to
            if job.finite:
                if job.predict != 0:
                    call(job.predict, (kind, result, count, job.m, job.predict_numbers))
                atomic_add(at_job + _DONE, count)
            piece = claim(at_job, helping, pieces)
        lives_until_here(room)

    return work


@cache
def _work(dtype):
    """The address of `_forward_work` for a dtype."""
    work = _forward_work(dtype.type(0))
    return routine(work, types.int64, types.int64, options=OPTIONS[EXACT])


@_strict
def _same(a, b, words):
    """Whether so many words of eight bytes are the same at two addresses."""
    some, others, different = int64s_at(a, words), int64s_at(b, words), 0
    for i in range(words):
        different |= some[i] ^ others[i]
    return different == 0


@_alone
def _forward(mail, work, routines, table, words, predict, predict_numbers, x, out, helpers):
    """Fill `out`; what became of that: the slices may not be those of the weights any more."""
    (n, k), size = x.shape, x.itemsize
    at_job = room_on_stack(_FORWARD_WORDS)
    job = carray(_forward_pointer(at_job), 1)[0]
    job.taken, job.front, job.back = 0, 0, 0
    job.piece, job.dense, job.table, job.layers = routines[1], routines[2], address_of(table), 0
    layers = carray(_sliced_pointer(job.table), table.size)
    job.widest = 0
    for depth in range(table.size):
        layer = layers[depth]
        numbers = layer.inputs * layer.outputs
        whole, rest = numbers * size // 8, numbers * size % 8 // 4
        if not _same(layer.weights, layer.copy, whole):
            return CHANGED
        if rest != 0:
            at = (numbers - 1) * size
            last = carray(pointer_to(np.int32(0), layer.weights + at), 1)
            if last[0] != carray(pointer_to(np.int32(0), layer.copy + at), 1)[0]:
                return CHANGED
        job.widest = max(job.widest, layer.outputs)
    job.layers = table.size
    job.words = address_of(words) if exact.nonzeros(x, address_of(words)) else 0
    job.x, job.n, job.k, job.out, job.m = address_of(x), n, k, address_of(out), out.shape[1]
    job.predict, job.predict_numbers, job.finite, job.done = predict, predict_numbers, 1, 0
    threads = helpers + 1
    turns = (n + threads * ROWS - 1) // (threads * ROWS) * threads
    job.rows = (n + turns - 1) // turns
    run(mail, work, at_job, helpers)
    lives_until_here((table, words))
    return FOUND if job.done == n else INFINITE


class _Sliced:
    """The slices of a run's weights as they are when this is made.

    Attributes
    ----------
    table
        The layers, for compiled code; None if not all weights are finite.
    """

    def __init__(self, run):
        self.table = np.zeros(len(run.layers), SLICED)
        self.held = []
        for row, layer, (W, _, _) in zip(self.table, run.table, run.layers, strict=True):
            copy = W.copy()  # what is cut: another thread may be writing
            sliced = exact.slices_of(copy)
            if sliced is None:
                self.table = None
                return
            parts, width, half = sliced
            count = parts.shape[1]
            self.held += [copy, parts, half]
            row["copy"], row["parts"], row["half"] = map(address, self.held[-3:])
            row["slices"], row["width"], row["chosen"] = count, width, products.chosen(count)
            for name in ("weights", "bias", "inputs", "outputs", "forth", "forth_numbers"):
                row[name] = layer[name]


def prepared(run):
    """`Reproducible` of a run, False if it is not what that takes."""
    whole = run.operations and takes(run) == len(run.operations)
    return Reproducible(run) if whole else False


class Reproducible(Prepared):
    """A run in reproducible mode."""

    mode = EXACT

    def __init__(self, run):
        super().__init__(run)
        self.sliced, self.predictions = None, {}

    @cached_property
    def works(self):
        """Each product has its own."""
        return 0, 0, 0

    def forward(self, x, loss):
        """As `Prepared.forward`; None if not all numbers are finite, or there are too many."""
        if self.weights > exact.LARGEST_KEPT:
            return None
        n, out = len(x), np.empty((len(x), self.outputs), self.dtype)
        work, routines, *predict = self.predictions.get(loss) or self._prediction(loss)
        words = np.empty((n, -(-self.inputs // BITS)), np.int64)
        for _ in "ab":
            sliced = self.sliced
            if sliced is None:
                sliced = self.sliced = _Sliced(self)
            if sliced.table is None:
                self.sliced = None
                return None
            given = work, routines, sliced.table, words, *predict, x, out
            found = pool.share(3 * self._work(n), _forward, *given)
            if found == FOUND:
                return out
            if found == INFINITE:
                break
            self.sliced = None
        return None

    def _prediction(self, loss):
        """Where the work is, the routines of products, what a loss predicts, and its numbers."""
        work = _work(self.dtype)
        counts = {definitions.product_slices(len(W), W.dtype.name)[0] for W, _, _ in self.layers}
        loop = None if loss is None else generated.predicted(loss, self.dtype, self.mode)
        predict = 0, 0
        if loop is not None:
            self.held += [loss, loop.numbers(loss, self.dtype)]
            predict = loop.address, address(self.held[-1])
        found = work, exact.routines(self.dtype, *sorted(counts)), *predict
        return self.predictions.setdefault(loss, found)

    def _run(self, room, x, t, found):
        if room.slices is None:
            slices = _slices(self, len(x))
            counts = np.unique(slices[:, 0])[1:]  # of no length there are none
            room.routines = exact.routines(self.dtype, *counts.tolist())
            room.slices = slices  # last: Ctrl-C may come between
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
