"""Batches whose rows are spread over ranks: one more interpreter of the formulas.

A formula says itself what it takes of a batch: `m.total(a)` is a sum over the batch, `m.count(a)`
its rows, and `m.matmul(m.T(x), dout)` a product over it. `Sharded` interprets it with values that
know which of their axes is the batch, a part of which is here (`Value`). What is done row by row,
each rank does by itself; a sum or a product over the batch is reduced over the ranks, and is the
same on all. So no operation says anything of ranks, and a user's is as good as xnet's.

In reproducible mode what is reduced are partials (`xnet.partials`), which have the bits of the
whole, however it is spread. In fast mode it is each rank's own sum.

Results are awaited together: the gradients of all parameters and the loss go in one message, in
reproducible mode after one that agrees on scales. Only what a formula computes on with, as
`BatchNorm` with its means, is reduced at once.
"""

import contextlib
import operator
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from typing import Any

from xnet.backend import Array, Backend, Gradients, Run
from xnet.formulas import NUMBERS, Arrays, FormulaError, as_tuple
from xnet.operations import Loss, Operation
from xnet.partials import product_scale, sum_scale
from xnet.ranks import Ranks

__all__ = ["Sharded", "ShardedBackend"]


class Value:
    """An array that knows which of its axes is the batch.

    Attributes
    ----------
    axis
        0 for rows of the batch, 1 for their transpose; None for what is the same on every rank.
    """

    __array_ufunc__ = None  # NumPy leaves the operators to this class
    __slots__ = ("_array", "axis")

    def __init__(self, array: Array, axis: int | None) -> None:
        self._array, self.axis = array, axis

    @property
    def array(self) -> Array:
        """What of it is here."""
        if isinstance(self._array, Reduction):
            self._array = self._array.result
        return self._array

    @property
    def awaited(self) -> "Array | Reduction":
        """The array, or what it will be of once it is reduced."""
        return self._array

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise FormulaError("makes an array of a value whose rows are on several ranks: use m")

    __hash__ = object.__hash__


def _operator(function: Callable[..., Any], swapped: bool = False) -> Any:
    def method(self: Value, *others: Any) -> Any:
        values = (*others, self) if swapped else (self, *others)
        axis = _axis_of(values)
        return Value(function(*map(_array, values)), axis)

    return method


for _name in ("add", "sub", "mul", "truediv", "and_", "or_"):
    _plain = _name.rstrip("_")
    setattr(Value, f"__{_plain}__", _operator(getattr(operator, _name)))
    setattr(Value, f"__r{_plain}__", _operator(getattr(operator, _name), swapped=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "invert", "abs"):
    setattr(Value, f"__{_name}__", _operator(getattr(operator, _name)))


def _array(value: Any) -> Any:
    return value.array if isinstance(value, Value) else value


def _axis_of(values: Sequence[Any]) -> int | None:
    """The axis that is the batch in what is computed of these, element by element."""
    known = [value for value in values if isinstance(value, Value)]
    axes = {value.axis for value in known} - {None}
    if len(axes) > 1:
        raise FormulaError("a formula computes with rows of the batch and with their transpose")
    axis = axes.pop() if axes else None
    for value in known if axis is not None else ():
        shape = tuple(value.array.shape)
        if value.axis is None and len(shape) == 2 and shape[axis or 0] != 1:
            raise FormulaError(
                f"a formula computes with rows of the batch and with a matrix {shape} that is the "
                "same for all batches"
            )
    return axis


class Reduction:
    """A sum or product over the batch, of which the ranks' parts are not yet added."""

    def __init__(self, owner: "ShardedBackend", *operands: Array) -> None:
        self.owner, self.operands = owner, operands
        self.found: Array = None

    @property
    def result(self) -> Array:
        """The whole: here all that is awaited is reduced."""
        if self.found is None:
            self.owner.settle()
        return self.found


class Sharded(Arrays):
    """Interprets formulas with values whose batch is spread over ranks: `formulas.Arrays` of these.

    Parameters
    ----------
    backend
        A `ShardedBackend`.
    state, draw
        As in `formulas.Arrays`; the numbers drawn are those of the whole batch, of which each rank
        takes its rows'.

    Raises
    ------
    FormulaError
        By its methods: a formula takes what no rank has, as a product of each row with each other.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> from xnet.operations import Operation
    >>> class Centred(Operation, abstract=True):
    ...     mixes = True
    ...     def forward(self, m, x):
    ...         return x - m.total(x) / m.count(x)
    >>> one = xnet.sharded.ShardedBackend(xnet.resolve("numpy"), xnet.ranks.ALONE)
    >>> one.run(Centred(), np.array([[1.0], [3.0]]), m=xnet.sharded.Sharded(one)).tolist()
    [[-1.0], [1.0]]
    """

    def __init__(
        self,
        backend: "ShardedBackend",
        state: Mapping[str, Array] | None = None,
        draw: Callable[[tuple[int, ...], Any], Any] | None = None,
    ) -> None:
        super().__init__(backend, True, state, draw)
        self.plain = Arrays(backend, True, state, draw)
        self.state = {name: Value(array, None) for name, array in (state or {}).items()}
        for name in ("exp", "log", "expm1", "log1p", "abs"):
            setattr(self, name, _operator(getattr(self.plain, name)))
        self.matmul = self._matmul

    def sqrt(self, a: Any) -> Any:
        return super().sqrt(a) if type(a) in NUMBERS else _operator(self.xp.sqrt)(a)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        axis = _axis_of((condition, a, b))
        return Value(super().where(*map(_array, (condition, a, b))), axis)

    def sum(self, a: Value) -> Value:
        return Value(super().sum(self._row(a).array), a.axis)

    def max(self, a: Value) -> Value:
        return Value(super().max(self._row(a).array), a.axis)

    def width(self, a: Value) -> int:
        return super().width(self._row(a).array)

    def _row(self, a: Value) -> Value:
        if a.axis == 1:
            raise FormulaError("a formula asks for rows of a transpose, which are on several ranks")
        return a

    def total(self, a: Value) -> Value:
        if a.axis is None:
            return Value(super().total(a.array), None)
        return Value(self.backend.awaited(self._row(a).array), None)

    def count(self, a: Value) -> int:
        rows = a.array.shape[0]
        return rows if a.axis is None else self.backend.ranks.count(rows)

    def T(self, a: Value) -> Value:  # noqa: N802
        return Value(super().T(a.array), None if a.axis is None else 1 - a.axis)

    def _matmul(self, a: Value, b: Value) -> Value:
        if (a.axis, b.axis) == (1, 0):
            return Value(self.backend.awaited(a.array, b.array), None)
        if a.axis == 1 or b.axis == 0:
            raise FormulaError("a formula multiplies over the batch with what is no row of it")
        if (a.axis, b.axis) == (0, 1):
            raise FormulaError("a formula multiplies each row of the batch with every other")
        axis = a.axis if b.axis is None else b.axis
        return Value(self.backend.matmul(a.array, b.array), axis)

    def row(self, values: Sequence[float], like: Value) -> Value:
        return Value(super().row(values, like.array), None)

    def uniform(self, like: Value) -> Value:
        if like.axis is None:
            return Value(super().uniform(like.array), None)
        rows = self._row(like).array
        if self.draw is None:
            raise RuntimeError("random numbers are drawn in training, by a network")
        batch = self.backend.ranks.batch
        drawn = self.draw((self.count(like), *rows.shape[1:]), rows.dtype)
        mine = drawn if batch is None else drawn[batch.places]
        return Value(self.backend.asarray(mine), 0)

    def move(self, state: Mapping[str, Value], share: float) -> None:
        super().move(state, share)
        self.moved.update({name: _array(self.moved[name]) for name in state})


class ShardedBackend(Backend):
    """A backend whose batches are spread over ranks: what it does for one row, another does.

    Parameters
    ----------
    local
        The backend that computes here.
    ranks
        Over which batches are spread.

    Notes
    -----
    A network on it takes of each batch the rows that are here, and gives the loss, the gradients
    and the accuracy of all rows; what it predicts is of the rows that it is given. Every method of
    a network but `predict` and `scores` is collective.

    Examples
    --------
    >>> import xnet
    >>> local = xnet.resolve("numpy", reproducible=True)
    >>> one = xnet.sharded.ShardedBackend(local, xnet.ranks.ALONE)
    >>> x, t = [[0.0, 1.0], [1.0, 0.0]], [0, 1]
    >>> here, there = (xnet.TwoLayerNet(2, 3, 2, backend=b) for b in (local, one))
    >>> here.loss(x, t) == there.loss(x, t)
    True
    """

    def __init__(self, local: Backend, ranks: Ranks) -> None:
        super().__init__(local.device, reproducible=local.reproducible)
        self.local, self.ranks, self.xp = local, ranks, local.xp
        self._queue: list[Reduction] = []
        self._together = 0

    name = "sharded"

    @property
    def label(self) -> str:
        return self.local.label

    def __repr__(self) -> str:
        return f"{self.local!r:.{len(repr(self.local)) - 1}} on {self.ranks.size} ranks>"

    def __deepcopy__(self, memo: dict[int, Any]) -> "ShardedBackend":
        return self  # a copy of a network is on the same ranks; a pickled one is on none

    # -- what is here

    def owns(self, array: object) -> bool:
        return self.local.owns(array)

    def asarray(self, values: Any, dtype: Any = None, name: str = "values") -> Array:
        return self.local.asarray(values, dtype, name)

    def to_numpy(self, array: Array) -> Any:
        return self.local.to_numpy(array)

    def threads(self) -> int | None:
        return self.local.threads()

    def synchronize(self) -> None:
        self.local.synchronize()

    def running(self) -> contextlib.AbstractContextManager[object]:
        return self.local.running()

    def writable(self, array: Array) -> bool:
        return self.local.writable(array)

    def matmul(self, a: Array, b: Array) -> Array:
        return self.local.matmul(a, b)

    def sum(self, a: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        return self.local.sum(a, axis, keepdims)

    def exp(self, a: Array) -> Array:
        return self.local.exp(a)

    def log(self, a: Array) -> Array:
        return self.local.log(a)

    def expm1(self, a: Array) -> Array:
        return self.local.expm1(a)

    def log1p(self, a: Array) -> Array:
        return self.local.log1p(a)

    def one_hot(self, t: Array, classes: int, dtype: Any) -> Array:
        if 0 in t.shape:  # of a rank that has no row of the batch
            return self.xp.zeros((*t.shape, classes), dtype=dtype, device=t.device)
        return self.local.one_hot(t, classes, dtype)

    def predicted(self, loss: Loss, x: Array) -> Array:
        return self._computing(x).predicted(loss, x)

    def row_losses(self, loss: Loss, x: Array, t: Array) -> Array:
        return self._computing(x).row_losses(loss, x, t)

    def step(
        self, update: Any, n: int, W: Array, g: Array, memory: Sequence[Array]
    ) -> tuple[Array, ...]:
        return self.local.step(update, n, W, g, memory)

    def takes(self, run: Run) -> int:
        return self.local.takes(run)

    def forward(self, run: Run, x: Array, loss: Loss | None = None) -> Array:
        return self.local.forward(run, x, loss) if x.shape[0] else self.through(run, x, loss)

    def loss_differences(
        self, x: Array, a: Array, rest: Run, loss: Loss, t: Array, h: float
    ) -> Array:
        mine = self.ranks.span(x.shape[1])
        local = self.local if len(mine) else self._generic
        some = x[:, mine.start : mine.stop]
        found = local.loss_differences(some, a, rest, loss, t, h)
        last = self.ranks.rank == self.ranks.size - 1
        return self.ranks.whole(self, found if last else found[:-1, ...])  # the biases are its own

    # -- formulas

    @cached_property
    def sharded(self) -> Sharded:
        """What interprets a formula that leaves nothing for `backward`."""
        return Sharded(self)

    def trainer(self, state: Any = None, draw: Any = None) -> Arrays:
        return Sharded(self, state, draw)

    def run(
        self, operation: Operation, x: Array, *parameters: Array, m: Arrays | None = None
    ) -> Array:
        if not isinstance(m, Sharded) or operation.fuses is not None or _is_local(operation):
            m = m.plain if isinstance(m, Sharded) else m
            return self._computing(x).run(operation, x, *parameters, m=m)
        with self.running():
            return self._row(operation, "forward", m, (x,), parameters)[0]

    def run_backward(
        self,
        operation: Operation,
        dout: Array,
        x: Array,
        y: Array,
        *parameters: Array,
        m: Arrays | None = None,
    ) -> tuple[Array, ...]:
        sharded = m if isinstance(m, Sharded) else self.sharded
        if _is_local(operation):
            here = None if m is None or operation.fuses is not None else sharded.plain
            return self._computing(x).run_backward(operation, dout, x, y, m=here)
        with self.running():
            dx, *found = self._row(operation, "backward", sharded, (dout, x, y), parameters)
            return dx, *self._found(operation, found)

    def parameter_gradients(
        self,
        operation: Operation,
        dout: Array,
        x: Array,
        y: Array,
        *parameters: Array,
        m: Arrays | None = None,
    ) -> tuple[Array, ...]:
        if not (parameters and operation.parts_backward):
            return super().parameter_gradients(operation, dout, x, y, *parameters, m=m)
        sharded = m if isinstance(m, Sharded) else self.sharded
        with self.running():
            rows = Value(dout, 0), Value(x, 0)
            return self._found(operation, operation.backward_parameters(sharded, *rows))

    def _computing(self, x: Array) -> Backend:
        """The backend here; for no rows at all generic code: kernels need not know of that."""
        return self.local if x.shape[0] else self._generic

    @cached_property
    def _generic(self) -> Backend:
        return _Generic(self.local)

    def _row(
        self,
        operation: Operation,
        formula: str,
        m: Sharded,
        rows: Sequence[Array],
        parameters: Sequence[Array],
    ) -> list[Any]:
        """What a formula makes of rows of the batch, the first of it as an array of rows."""
        values = [Value(array, 0) for array in rows] + [Value(W, None) for W in parameters]
        first, *others = as_tuple(getattr(operation, formula)(m, *values))
        if not isinstance(first, Value) or first.axis != 0:
            raise FormulaError(f"{type(operation).__name__}.{formula} gives no rows of the batch")
        return [first.array, *others]

    def _found(self, operation: Operation, values: Sequence[Value]) -> tuple[Any, ...]:
        """Gradients by parameters, or, where others are awaited with them, what they will be of."""
        names = list(operation.parameters)
        for name, value in zip(names, values, strict=True):
            if value.axis is not None:
                raise FormulaError(
                    f"{type(operation).__name__}: the gradient by {name} is one of each row: it is "
                    "the sum over the batch, by m.total or m.matmul(m.T(x), dout)"
                )
        return tuple(value.awaited if self._together else value.array for value in values)

    # -- over the batch

    def mean(self, a: Array) -> Array:
        return self._mean(self.awaited(a), a)

    def _mean(self, total: Reduction, a: Array) -> Array:
        with self.running():
            return total.result / self.ranks.count(a.shape[0])

    def backward(
        self, run: Run, kept: Any, dout: Array, first: bool
    ) -> tuple[Array | None, Gradients]:
        with self._awaiting():
            dx, found = super().backward(run, kept, dout, first)
        return dx, [tuple(map(_reduced, of)) for of in found]

    def loss_and_gradients(
        self, run: Run, x: Array, t: Array, loss: Loss, first: bool
    ) -> tuple[Array, Array | None, Gradients]:
        with self.running(), self._awaiting():
            scores, kept = self.forward_keeping(run, x)
            losses = self.row_losses(loss, scores, t)
            total = self.awaited(losses)
            dout = loss.backward(self.maths, scores, t) * (1 / self.ranks.count(x.shape[0]))
            dx, found = super().backward(run, kept, dout, first)
        return self._mean(total, losses), dx, [tuple(map(_reduced, of)) for of in found]

    @contextlib.contextmanager
    def _awaiting(self) -> Generator[None]:
        """Block in which gradients are not asked for: they are reduced together after it."""
        self._together += 1
        try:
            yield
        except BaseException:  # nobody will ask for what was begun
            self._queue.clear()
            raise
        finally:
            self._together -= 1

    def awaited(self, *operands: Array) -> Reduction:
        """The sum over the batch of (N, ...), or the product (D, N) by (N, M), to be reduced."""
        found = Reduction(self, *operands)
        self._queue.append(found)
        return found

    def settle(self) -> None:
        """Reduce all that is awaited, over the ranks."""
        queue, self._queue = self._queue, []
        with self.running():
            (self._exactly if self.reproducible else self._plainly)(queue)

    def _plainly(self, queue: Sequence[Reduction]) -> None:
        xp = self.xp
        parts = [self._own(*of.operands) for of in queue]
        flat = [xp.reshape(part, (-1,)) for part in parts]
        for of, part, total in zip(queue, parts, self.ranks.reduced(self, flat), strict=True):
            of.found = xp.reshape(total, part.shape)

    def _own(self, a: Array, b: Array | None = None) -> Array:
        return self.local.sum(a, 0) if b is None else self.local.matmul(a, b)

    def _exactly(self, queue: Sequence[Reduction]) -> None:
        xp = self.xp
        operands = [of.operands for of in queue]
        scales = [sum_scale(o[0], 0) if len(o) == 1 else product_scale(*o) for o in operands]
        largest = self.ranks.reduced(self, [scale.maxima for scale in scales], largest=True)
        counts = [self.ranks.count(o[-1].shape[0]) for o in operands]
        parts = zip(scales, largest, counts, strict=True)
        scales = [scale.agreed(maxima, n) for scale, maxima, n in parts]
        partials = [scale.partial(*o) for scale, o in zip(scales, operands, strict=True)]
        flat = [xp.reshape(partial.numbers, (-1,)) for partial in partials]
        totals = self.ranks.reduced(self, flat)
        for of, partial, total in zip(queue, partials, totals, strict=True):
            numbers = xp.reshape(total, partial.numbers.shape)
            of.found = partial.scale.received(numbers).rounded()


def _reduced(gradient: Any) -> Array:
    return gradient.result if isinstance(gradient, Reduction) else gradient


def _is_local(operation: Operation) -> bool:
    """Whether each rank runs it both ways by itself: on rows alone, and without parameters."""
    return operation.is_plain() and not operation.parameters


class _Generic(Backend):
    """A backend's arrays, and generic code for all that is done with them."""

    name = "generic"

    def __init__(self, local: Backend) -> None:
        super().__init__(local.device, reproducible=local.reproducible)
        self.xp, self.owns, self.running = local.xp, local.owns, local.running
        self.asarray, self.to_numpy = local.asarray, local.to_numpy
