# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
"""Operations, losses and steps of NumPy arrays by the loops of `generated`, shared by threads.

Each loop works in the place of its first array, so that is a copy here.
"""

import numpy as np
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage]

from xnet_numba import generated, packed
from xnet_numba.compiling import _alone, _serial, _strict, address, routine
from xnet_numba.intrinsics import address_of, call, int64s_at, record_pointer, room_on_stack
from xnet_numba.pool import claim, pool, run

ELEMENT_BYTES = 16
"""What a number counts for in `Pool.share`: 2^17 of them are worth a helper."""

PIECE = 1 << 14
"""Numbers, about, that a thread takes at a time."""

MOST_ARRAYS = 6
NUMBERS, ROWS = range(1, MOST_ARRAYS + 1), (1, 3, 4)
"""How many arrays a loop over numbers has, or one over rows."""

JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("taken", "front", "back"),
            *("loop", "arrays", "strides", "count", "units", "piece", "width", "numbers"),
        )
    ]
)
"""A loop over so many units, numbers or rows of `width` numbers (-1 for numbers): the addresses of
its `count` arrays, and how many bytes of each a unit takes."""

_job_pointer = record_pointer(JOB)
_WORDS = len(JOB.names)


@_serial
def _call(kind, loop, count, a, units, numbers):
    if count == 1:
        call(loop, (kind, a[0], units, numbers))
    elif count == 2:
        call(loop, (kind, a[0], a[1], units, numbers))
    elif count == 3:
        call(loop, (kind, a[0], a[1], a[2], units, numbers))
    elif count == 4:
        call(loop, (kind, a[0], a[1], a[2], a[3], units, numbers))
    elif count == 5:
        call(loop, (kind, a[0], a[1], a[2], a[3], a[4], units, numbers))
    elif count == 6:
        call(loop, (kind, a[0], a[1], a[2], a[3], a[4], a[5], units, numbers))


@_serial
def _call_rows(kind, loop, count, a, units, width, numbers):
    if count == 1:
        call(loop, (kind, a[0], units, width, numbers))
    elif count == 3:
        call(loop, (kind, a[0], a[1], a[2], units, width, numbers))
    elif count == 4:
        call(loop, (kind, a[0], a[1], a[2], a[3], units, width, numbers))


def _work(kind):
    def work(at_job, helping):
        """Take pieces of a loop, as long as there are any."""
        job = carray(_job_pointer(at_job), 1)[0]
        arrays, strides = int64s_at(job.arrays, job.count), int64s_at(job.strides, job.count)
        at = np.empty(MOST_ARRAYS, np.int64)
        pieces = (job.units + job.piece - 1) // job.piece
        piece = claim(at_job, helping, pieces)
        while piece >= 0:
            start = piece * job.piece
            units = min(job.piece, job.units - start)
            for k in range(job.count):
                at[k] = arrays[k] + start * strides[k]
            if job.width < 0:
                _call(kind, job.loop, job.count, at, units, job.numbers)
            else:
                _call_rows(kind, job.loop, job.count, at, units, job.width, job.numbers)
            piece = claim(at_job, helping, pieces)

    return work


@_alone
def _shared(mail, work, loop, arrays, strides, units, piece, width, numbers, helpers):
    at_job = room_on_stack(_WORDS)
    job = carray(_job_pointer(at_job), 1)[0]
    job.taken, job.front, job.back = 0, 0, 0
    job.loop, job.count, job.units, job.piece = loop, arrays.size, units, piece
    job.arrays, job.strides = address_of(arrays), address_of(strides)
    job.width, job.numbers = width, address_of(numbers)
    run(mail, work, at_job, helpers)


_works = {}


def _run(loop, numbers, arrays, units, width=-1):
    """Run a loop over units of packed arrays of one dtype; of some a unit is one number."""
    if len(arrays) not in (NUMBERS if width < 0 else ROWS):
        raise ValueError(f"a loop over {len(arrays)} arrays, which none is")
    if not units:
        return
    dtype = arrays[0].dtype
    work = _works.get(dtype)
    if work is None:
        work = _works[dtype] = routine(_work(dtype.type(0)), types.int64, types.int64)
    addresses = np.array([address(a) for a in arrays], np.int64)
    strides = np.array([a.size // units * a.itemsize for a in arrays], np.int64)
    piece = max(1, PIECE // max(1, width))
    work_size = ELEMENT_BYTES * units * max(1, width)
    pool.share(
        work_size, _shared, work, loop.address, addresses, strides, units, piece, width, numbers
    )


def _copy(array):
    return np.array(array, order="C")


@_strict
def _one_hot(t, out):
    """Class indices t (N,) as rows of out (N, C); whether all of them are 0..C-1."""
    for i in range(t.size):
        if not 0 <= t[i] < out.shape[1]:
            return False
        out[i] = 0
        out[i, t[i]] = 1
    return True


class Loops:
    """What `Backend` asks of operations, in a mode, "fast" or "exact"."""

    one_hot = staticmethod(_one_hot)
    MOST_SLOTS = MOST_ARRAYS - 2
    """Arrays that an optimizer may remember to have its step taken here."""

    def __init__(self, mode):
        self.mode = mode

    def forward(self, operation, x):
        """A pointwise operation."""
        y = _copy(x)
        loop = generated.forward(operation, y.dtype, self.mode)
        _run(loop, loop.numbers(operation, y.dtype), [y], y.size)
        return y

    def backward(self, operation, dout, x, y):
        """Its gradient."""
        dx = _copy(dout)
        loop = generated.backward(operation, dx.dtype, self.mode)
        _run(loop, loop.numbers(operation, dx.dtype), [dx, packed(x), packed(y)], dx.size)
        return dx

    def rows_forward(self, operation, x):
        """An operation along rows."""
        y = _copy(x)
        loop = generated.rows_forward(operation, y.dtype, self.mode)
        self._rows(loop, operation, [y], y)
        return y

    def rows_backward(self, operation, dout, x, y):
        """Its gradient."""
        arrays = [packed(a) for a in (dout, x, y)]
        dx = np.empty_like(arrays[0])
        loop = generated.rows_backward(operation, dx.dtype, self.mode)
        self._rows(loop, operation, [*arrays, dx], dx)
        return dx

    def predicted(self, loss, x):
        """What a loss predicts."""
        loop = generated.predicted(loss, x.dtype, self.mode)
        if loop is None:
            return x
        y = _copy(x)
        self._rows(loop, loss, [y], y)
        return y

    def row_losses(self, loss, x, t):
        """The loss of each row."""
        x, t = packed(x), packed(t)
        losses = np.empty(x.shape[:-1], x.dtype)
        loop = generated.loss_rows(loss, x.dtype, self.mode)
        self._rows(loop, loss, [x, t, losses], x)
        return losses

    def loss_and_delta(self, loss, x, t):
        """The loss of each row, and the gradient of their mean."""
        x, t = packed(x), packed(t)
        losses, delta = np.empty(x.shape[:-1], x.dtype), np.empty_like(x)
        loop = generated.loss_and_delta(loss, x.dtype, self.mode)
        self._rows(loop, loss, [x, t, losses, delta], x, 1 / len(x))
        return losses, delta

    def _rows(self, loop, operation, arrays, like, n=0):
        width = like.shape[-1]
        if width:
            numbers = loop.numbers(operation, like.dtype, n)
            _run(loop, numbers, arrays, like.size // width, width)

    def step(self, update, n, W, g, memory):
        """An optimizer's step: the new W and memory."""
        arrays = [_copy(W), packed(g), *map(_copy, memory)]
        loop = generated.step(update, arrays[0].dtype, self.mode)
        numbers = loop.numbers(update, arrays[0].dtype, n)
        _run(loop, numbers, arrays, arrays[0].size)
        return arrays[0], *arrays[2:]
