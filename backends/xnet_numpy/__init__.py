"""The reference backend: NumPy."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar, copy_context
from functools import lru_cache
from typing import Any
from weakref import ref

import numpy as np

from xnet.backend import Array, Backend, Gradients, Run, assign
from xnet.formulas import Arrays, as_tuple
from xnet.operations import Loss, Operation
from xnet_numpy import generated
from xnet_numpy.runs import Prepared, product

_silence: ContextVar[Callable[[], object]] = ContextVar("silence", default=lambda: None)
"""Where to find the block that made NumPy silent here, if it has not ended."""


class Silence:
    """Block without NumPy's warnings of overflow, of division by 0 and of NaN.

    Within another it does nothing: `np.errstate` takes three microseconds. Where Ctrl-C comes
    between two lines, as before the first of `__exit__`, NumPy may stay silent. Nobody takes it for
    silent after that, for what is known of a block is a weak reference, which ends with it.
    """

    __slots__ = ("__weakref__", "outermost", "token")

    def __enter__(self) -> None:
        self.outermost = None
        if not _silent():
            self.outermost = np.errstate(all="ignore")
            self.outermost.__enter__()
            self.token = _silence.set(ref(self))

    def __exit__(self, *_: object) -> None:
        if self.outermost is not None:
            _silence.reset(self.token)
            self.outermost.__exit__(None, None, None)


def _silent() -> bool:
    return _silence.get()() is not None


def _silent_context() -> Context:
    context = copy_context()
    context.run(np.seterr, all="ignore")
    context.run(_silence.set, lambda: context)
    return context


_SILENT = _silent_context()


def _quietly(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call what knows of no context but NumPy's, without its warnings.

    NumPy keeps how it treats errors in a context variable. To run a function in a copy of a context
    takes a tenth of the three microseconds of `np.errstate`, much beside a small call's twenty.
    """
    return call(*arguments) if _silent() else _SILENT.copy().run(call, *arguments)


class OnHost(Backend):
    """NumPy arrays. Since 2.1 NumPy's own namespace is an array-API one."""

    xp: Any = np

    def owns(self, array: object) -> bool:
        """Whether `array` is NumPy's, and no kind that means something else by an operator.

        Nor one of another byte order: compiled code knows none.
        """
        if type(array) is np.ndarray:
            return array.dtype.isnative
        return isinstance(array, np.generic)

    def writable(self, array: Array) -> bool:
        return array.flags.writeable

    def running(self) -> AbstractContextManager[object]:
        """Block without NumPy's warnings of overflow, of division by 0 and of NaN."""
        return Silence()


class NumpyBackend(OnHost):
    """NumPy on the host."""

    name = "numpy"

    def matmul(self, a: Array, b: Array) -> Array:
        return super().matmul(a, b) if self.reproducible else product(a, b)

    def sum(self, a: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        if self.reproducible:
            return super().sum(a, axis, keepdims)
        return np.add.reduce(a, axis=axis, keepdims=keepdims)

    # In reproducible mode formulas are interpreted as they stand; in fast mode they are written as
    # functions of NumPy calls.

    def _is_written(self, operation: Operation, x: Array, parameters: tuple[Array, ...]) -> bool:
        kind = operation.fuses in ("pointwise", "rows") and not parameters
        return kind and not self.reproducible and bool(x.ndim)

    def run(
        self, operation: Operation, x: Array, *parameters: Array, m: Arrays | None = None
    ) -> Array:
        if not self._is_written(operation, x, parameters):
            return super().run(operation, x, *parameters, m=m)
        call, values = generated.forward(operation)
        return _quietly(call, x, *values(operation, 0))

    def run_backward(
        self,
        operation: Operation,
        dout: Array,
        x: Array,
        y: Array,
        *parameters: Array,
        m: Arrays | None = None,
    ) -> tuple[Array, ...]:
        if not self._is_written(operation, x, parameters):
            return super().run_backward(operation, dout, x, y, *parameters, m=m)
        call, values = generated.backward(operation)
        return (_quietly(call, dout, x, y, *values(operation, 0)),)

    def predicted(self, loss: Loss, x: Array) -> Array:
        if self.reproducible:
            return super().predicted(loss, x)
        call, values = generated.predicted(loss)
        return _quietly(call, x, *values(loss, 0))

    def row_losses(self, loss: Loss, x: Array, t: Array) -> Array:
        if self.reproducible:
            return super().row_losses(loss, x, t)
        call, values = generated.row_losses(loss)
        return _quietly(call, x, np.broadcast_to(t, x.shape), *values(loss, 0))[..., 0]

    def loss_and_delta(self, loss: Loss, x: Array, t: Array) -> tuple[Array, Array]:
        if self.reproducible:
            return super().loss_and_delta(loss, x, t)
        call, values = generated.loss_and_delta(loss)
        losses, delta = _quietly(call, x, t, *values(loss, 1 / len(x)))
        return np.add.reduce(losses, axis=None) / len(x), delta

    def step(
        self, update: Any, n: int, W: Array, g: Array, memory: Sequence[Array]
    ) -> tuple[Array, ...]:
        # Of what has no axes NumPy makes numbers, which nothing can be put into.
        if self.reproducible or not W.ndim:
            return super().step(update, n, W, g, memory)
        call, values = generated.step(update)
        found = as_tuple(_quietly(call, W, g, *memory, *values(update, n)))
        return self.apart(found, (W, g, *memory))

    # -- runs

    def _prepared(self, run: Run) -> Any:
        """The run as `runs` takes it; False if that does not."""
        if run.prepared is None:
            fits = not self.reproducible and all(
                operation.fuses == "product" or self._is_written(operation, ANY, parameters)
                for operation, parameters in run
            )
            run.prepared = fits and Prepared(run)
        return run.prepared

    def through(self, run: Run, x: Array, loss: Loss | None) -> Array:
        prepared = run.prepared or self._prepared(run)
        if not prepared:
            return super().through(run, x, loss)
        return _SILENT.copy().run(prepared.through, x, loss)  # without a call more

    def forward_keeping(self, run: Run, x: Array) -> tuple[Array, Any]:
        prepared = self._prepared(run)
        if not prepared:
            return super().forward_keeping(run, x)
        outputs = _quietly(prepared.keeping, x)
        return outputs[-1], outputs

    def backward(
        self, run: Run, kept: Any, dout: Array, first: bool
    ) -> tuple[Array | None, Gradients]:
        prepared = self._prepared(run)
        if not prepared:
            return super().backward(run, kept, dout, first)
        return _quietly(prepared.backward, kept, dout, first)

    def train_step(
        self, run: Run, x: Array, t: Array, loss: Loss, update: Any, names: Sequence[str]
    ) -> Array | None:
        if self.reproducible:
            return None
        parameters = [W for arrays in run.parameters for W in arrays]
        taken = {update.taken.get(name, 0) for name in names}
        if len(taken) > 1 or False in [W.ndim > 0 and W.flags.writeable for W in parameters]:
            return None
        prepared = self._prepared(run)
        if prepared:
            outputs = _quietly(prepared.keeping, x)
            mean, dout = self.loss_and_delta(loss, outputs[-1], t)
            gradients = _quietly(prepared.backward_in_room, outputs, dout)
        else:
            mean, _, gradients = self.loss_and_gradients(run, x, t, loss, True)
        n = taken.pop() + 1
        call, values = generated.step_in_place(update)
        numbers = values(update, n)
        places: list[tuple[Any, Any, Any]] = [(update.taken, name, n) for name in names]
        last: list[tuple[Any, ...]] = []
        found = [g for arrays in gradients for g in arrays]
        for name, W, g in zip(names, parameters, found, strict=True):
            memory: list[Array] = update.memory_of(name, W, self) if update.slots else []
            new = _quietly(call, W, g, *memory, *numbers)
            if memory:
                new, *remembered = new
                for k, (old, v) in enumerate(zip(memory, remembered, strict=True)):
                    writable = old.flags.writeable
                    places.append((old, ..., v) if writable else (memory, k, v.copy()))
            last.append(new)
        assign(places, *last)
        return mean

    def one_hot(self, t: Array, classes: int, dtype: Any) -> Array:
        labels = t.astype(np.int64, copy=False)
        # As unsigned numbers, negative ones are large.
        if labels.size and np.maximum.reduce(labels.view(np.uint64), axis=None) >= classes:
            return super().one_hot(t, classes, dtype)  # says which label is wrong
        if classes <= FEW_CLASSES:
            return _unit_rows(classes, dtype).take(labels, axis=0)
        out = np.zeros((labels.size, classes), dtype)
        out[np.arange(labels.size), labels.reshape(-1)] = 1
        return out.reshape(*t.shape, classes)


FEW_CLASSES = 100
"""As many rows, each with a 1 at its index, may be kept to take from."""


@lru_cache(maxsize=16)
def _unit_rows(classes: int, dtype: Any) -> Array:
    return np.eye(classes, dtype=dtype)


ANY = np.empty(1)
"""An array of which only that it has dimensions is asked."""
