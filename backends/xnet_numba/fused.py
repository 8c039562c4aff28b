# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false
"""A whole run of layers in one compiled call: predictions, the loss and its gradients, a step.

What is compiled is in `passes` and `generated`; here is what it works on, and how many threads it
is worth. Which way is taken, and the measurements that say so, are in docs/speed.md.
"""

from functools import cache, cached_property

import numpy as np
from numba import types  # pyright: ignore[reportPrivateImportUsage]

from xnet_numba import generated, passes, products
from xnet_numba.compiling import address, routine
from xnet_numba.generated import FAST
from xnet_numba.passes import HEAD, LAYER, MOST_SLOTS, TRAINING
from xnet_numba.pool import pool
from xnet_numba.tiles import BITS, VECTOR_BYTES

CACHED, LOADING = 1 << 20, 16
"""Bytes of weights that stay in the second-level cache, and how many rows one that does not has
been multiplied by in the time that it takes to come."""

KEPT = 1 << 20
"""Numbers, at most, that are kept from one call for the gradients to the next."""


# -- what is taken whole


def takes(run):
    """How many operations, from the first on: products, each with a pointwise one or none."""
    count, dtype, features = 0, None, None
    for operation, parameters in run:
        if operation.fuses == "product":
            W, b = parameters
            dtype, features = dtype or W.dtype, features or W.shape[0]
            if not _plain(W, b, dtype, features):
                break
            features = b.size
        else:
            follows = count and run.operations[count - 1].fuses == "product"
            if operation.fuses != "pointwise" or parameters or not follows:
                break
        count += 1
    return count


def _plain(W, b, dtype, features):
    """Whether arrays fit, and are stored as compiled code expects them."""
    for array in W, b:
        if array.dtype != dtype or not (array.flags.c_contiguous and array.flags.aligned):
            return False
    return W.shape == (features, b.size) and dtype in (np.float32, np.float64)


def prepared(run):
    """`Prepared` of a run, False if it is not what that takes."""
    whole = run.operations and takes(run) == len(run.operations)
    return Prepared(run) if whole else False


class Prepared:
    """Layers x W + b, each with at most one activation, as a table that compiled code reads.

    It holds the arrays' addresses, and the arrays, so that those stay valid.
    """

    mode = FAST

    def __init__(self, run):
        self.layers, self.sizes = [], []  # (W, b, activation); what a gradient belongs to
        for operation, parameters in run:
            if operation.fuses == "product":
                self.layers.append((*parameters, None))
            else:
                self.layers[-1] = (*self.layers[-1][:2], operation)
            self.sizes.append(bool(parameters))
        self.dtype = self.layers[0][0].dtype
        self.inputs, self.outputs = self.layers[0][0].shape[0], self.layers[-1][0].shape[1]
        self.held = []  # what the table has addresses of
        self.table = np.zeros(len(self.layers), LAYER)
        self.between = self.kept_before = 0
        for row, (W, b, activation) in zip(self.table, self.layers, strict=True):
            row["weights"], row["bias"] = address(W), address(b)
            row["inputs"], row["outputs"] = W.shape
            row["place"], row["before"] = self.between, -1
            self.between += W.shape[1]
            if activation is not None:
                self._enter(row, activation)
        self.widest = max(W.shape[1] for W, _, _ in self.layers)
        self.weights = sum(W.size for W, _, _ in self.layers)
        self.numbers = self.weights + self.between  # of all W and b
        self.weight_bytes = sum(_vector_bytes(W) for W, _, _ in self.layers)
        self.few = 0 if self._work(0) >= pool.HELP_FROM else pool.HELP_FROM / self.weight_bytes
        self.heads = {}
        self.room = self.found = self.memory = None

    def _enter(self, row, activation):
        """The routines of an activation, and whether its gradient needs what went into it."""
        forth = generated.forward(activation, self.dtype, self.mode)
        back = generated.backward(activation, self.dtype, self.mode)
        row["forth"], row["back"] = forth.address, back.address
        for name, loop in (("forth_numbers", forth), ("back_numbers", back)):
            self.held.append(loop.numbers(activation, self.dtype))
            row[name] = address(self.held[-1])
        if back.formula.uses("x"):
            row["before"] = self.kept_before
            self.kept_before += row["outputs"]

    def _head(self, loss):
        """The address of the head for the scores, or for what a loss predicts of them."""
        head = np.zeros(1, HEAD)
        head["work"] = _pieces(passes._forward_work, self.dtype)
        head["routines"], head["table"] = _routines(self.dtype), address(self.table)
        head["layers"], head["widest"] = len(self.layers), self.widest
        loop = None if loss is None else generated.predicted(loss, self.dtype, self.mode)
        if loop is not None:
            self.held.append(loop.numbers(loss, self.dtype))
            head["predict"], head["predict_numbers"] = loop.address, address(self.held[-1])
        self.held += [head, loss]
        return self.heads.setdefault(loss, address(head))

    def forward(self, x, loss):
        """The scores of x (N, D), or what a loss predicts of them."""
        head = self.heads.get(loss) or self._head(loss)
        n = len(x)
        out = np.empty((n, self.outputs), self.dtype)
        if n < self.few:  # not by way of `share`, which takes a good part of so small a call
            passes._forward(0, head, x, out, 0)
        else:
            pool.share(self._work(n), passes._forward, head, x, out)
        return out

    def _work(self, rows):
        return _work(rows, self.weight_bytes)

    # -- training

    def forward_keeping(self, x):
        """The run's output, and the room in which the pass has left what `backward` needs."""
        room = self._room_for(len(x))
        room.descends = False
        room.tell(forth=1, loss=0, dout=0, dx=0)
        self._run(room, x, x, x[:0])
        m = self.outputs
        return room.outputs[len(x) * (self.between - m) :].reshape(-1, m).copy(), (room, x)

    def backward(self, kept, dout, first):
        """The gradients by the run's input, None if it is the `first`, and by its parameters."""
        room, x = kept
        dx = None if first else np.empty_like(x)
        room.descends = False
        room.tell(forth=0, loss=0, dout=address(dout), dx=0 if first else address(dx))
        found = np.empty(self.numbers, self.dtype)
        self._run(room, x, dout, found)
        return dx, self._parted(found)

    def loss_and_gradients(self, x, t, loss, first):
        """The mean loss, and `backward` from it."""
        room = self._room_for(len(x))
        dx = None if first else np.empty_like(x)
        found = np.empty(self.numbers, self.dtype)
        self._descend(room, x, t, loss, dx, found)
        return self._mean(room), dx, self._parted(found)

    def train_step(self, x, t, loss, update, names, backend):
        """The mean loss, after which every W and b has moved; see `Backend`."""
        if update.slots > MOST_SLOTS:
            return None
        for W, b, _ in self.layers:
            if not (W.flags.writeable and b.flags.writeable):
                return None
        taken = {update.taken.get(name, 0) for name in names}
        if len(taken) > 1:  # each is at a step of its own
            return None
        n = taken.pop() + 1
        room = self._room_for(len(x))
        step = generated.step(update, self.dtype, self.mode)
        if room.step is not step:
            room.step, room.step_numbers = None, step.numbers(update, self.dtype, n)
            room.tell(step_numbers=address(room.step_numbers), slots=update.slots)
            room.step = step  # last: Ctrl-C may come between
        if self.found is None:
            self.found = np.empty(self.numbers, self.dtype)
        fields = room.fields
        room.step_numbers[:] = step.values(update, n)
        if update.slots:
            fields[_MEMORY] = self._memory_of(update, names, backend)
        counted = dict.fromkeys(names, n)
        fields[DONE] = 0
        try:
            fields[_STEP] = step.address
            self._descend(room, x, t, loss, None, self.found)
        finally:  # Ctrl-C comes when the step is done, or before it has begun
            fields[_STEP] = 0
            if fields[DONE]:
                update.taken.update(counted)
        return self._mean(room)

    def _memory_of(self, update, names, backend):
        """The address of those of all that an optimizer remembers, parameter by parameter."""
        now = [array for name in names for array in update.memory.get(name, ())]
        if self.memory is not None and len(now) == len(self.memory[0]):
            for array, seen in zip(now, self.memory[0], strict=True):
                if array is not seen:
                    break
            else:
                return self.memory[2]
        parameters = [array for W, b, _ in self.layers for array in (W, b)]
        arrays = []
        for name, W in zip(names, parameters, strict=True):
            kept = update.memory_of(name, W, backend)
            for k, array in enumerate(kept):
                if not (array.flags.c_contiguous and array.flags.writeable):
                    kept[k] = np.array(array, order="C")
            arrays += kept
        table = np.array([address(array) for array in arrays], np.int64)
        self.memory = arrays, table, address(table)
        return self.memory[2]

    def _descend(self, room, x, t, loss, dx, found):
        if room.loss is not loss:
            loop = generated.loss_and_delta(loss, self.dtype, self.mode)
            room.loss, room.descends = None, False
            room.loss_numbers = loop.numbers(loss, self.dtype, 1 / len(x))
            room.tell(loss_numbers=address(room.loss_numbers))
            room.loss, room.loss_address = loss, loop.address
        if dx is not None or not room.descends:
            room.descends = False
            at_dx = 0 if dx is None else address(dx)
            room.tell(forth=1, loss=room.loss_address, dout=0, dx=at_dx)
            room.descends = dx is None
        self._run(room, x, t, found)

    def _run(self, room, x, t, found):
        pool.share(self._work(len(x)), passes._train, room.at_job, x, t, found)

    def _mean(self, room):
        """Of the losses."""
        return room.losses.sum() / len(room.losses)

    def _parted(self, found):
        """The gradients of each operation, of all of them one after the other."""
        gradients, at = [], 0
        for W, b, _ in self.layers:
            middle, end = at + W.size, at + W.size + b.size
            gradients.append((found[at:middle].reshape(W.shape), found[middle:end]))
            at = end
        parts = iter(gradients)
        return [next(parts) if has else () for has in self.sizes]

    def _room_for(self, n):
        """What lies between two layers, forward and backward, and the rest, for n rows."""
        if self.room is not None and len(self.room.losses) == n:
            return self.room
        room = _Room(self, n)
        self.room = room if room.outputs.size <= KEPT else None
        return room

    @cached_property
    def works(self):
        """Where the works of training are, and the routines of their products."""
        works = passes._there_and_back_work, passes._weights_work
        return *(_pieces(work, self.dtype) for work in works), _routines(self.dtype, True)


class _Room:
    """The arrays of a pass in training, and the job that has their addresses."""

    def __init__(self, run, n):
        self.outputs, self.deltas = (np.empty(n * run.between, run.dtype) for _ in "ab")
        self.before = np.empty(n * run.kept_before, run.dtype)
        self.losses, self.transposed = np.empty(n, run.dtype), np.empty(run.weights, run.dtype)
        self.words = np.empty((n, -(-run.inputs // BITS)), np.int64)
        self.zeros = np.zeros(max(run.widest, run.inputs, BITS), run.dtype)
        self.loss = self.loss_numbers = self.step = self.step_numbers = None
        self.slices = self.routines = None  # of reproducible mode
        self.loss_address = 0
        self.descends = False  # whether the job says so: there, back by the loss, and down
        self.fields = np.zeros(len(TRAINING.names), np.int64)
        self.at_job = address(self.fields)
        there_and_back, weights, routines = run.works
        self.tell(there_and_back=there_and_back, weights=weights, routines=routines)
        self.tell(table=address(run.table))
        self.tell(layers=len(run.layers), n=n, k=run.inputs, m=run.outputs)
        for name in ("outputs", "deltas", "before", "losses", "transposed", "words", "zeros"):
            self.tell(**{name: address(getattr(self, name))})

    def tell(self, **fields):
        """Set fields of the job by their names."""
        for name, value in fields.items():
            self.fields[_AT[name]] = value


_AT = {name: place for place, name in enumerate(TRAINING.names)}
_STEP, _MEMORY, DONE = (_AT[name] for name in ("step", "memory", "done"))


# -- one product alone


def affine(x, W, b):
    """x W + b, (N, D) by (D, M)."""
    if not x.size or not W.size:
        return x @ W + b
    n, m = x.shape[0], W.shape[1]
    out = np.empty((n, m), x.dtype)
    pool.share(_work(n, _vector_bytes(W)), passes._affine, _head_of(x.dtype), x, W, b, out)
    return out


def affine_gradients(dout, x):
    """Gradients of x W + b by W and b."""
    if not x.size or not dout.size:
        return x.T @ dout, dout.sum(axis=0)
    k, m = x.shape[1], dout.shape[1]
    dW, db = np.empty((k, m), x.dtype), np.empty(m, x.dtype)
    heads = _head_of(x.dtype, True), _pieces(passes._weights_work, x.dtype)
    pool.share(_work(len(x), _vector_bytes(dW)), passes._affine_gradients, *heads, dout, x, dW, db)
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
    heads = _head_of(x.dtype, True), _pieces(passes._weights_work, x.dtype)
    pool.share(
        _work(len(x), _vector_bytes(W)), passes._affine_backward, *heads, dout, x, W, dx, dW, db
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
    return address(products.routines(dtype, gradient))


@cache
def _head_of(dtype, gradient=False):
    """The head of a product alone, of which the layer is filled in where it is called."""
    head = np.zeros(1, HEAD)
    head["work"] = _pieces(passes._forward_work, dtype)
    head["routines"] = _routines(dtype, gradient)
    _heads.append(head)
    return address(head)


_heads = []
