"""The reference backend: NumPy, by the generic forms alone."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import numpy as np

from xnet.backend import Array, Backend, Run, assign
from xnet.formulas import Arrays, as_tuple
from xnet.operations import Loss, Operation
from xnet_numpy import generated

ARRAYS = (np.ndarray, np.generic)

WRITTEN = ("pointwise", "rows")
"""What is written as a function of NumPy calls."""


_silent: ContextVar[bool] = ContextVar("silent", default=False)


class Silence:
    """Block without NumPy's warnings of overflow, of division by 0 and of NaN.

    Within another it does nothing: `np.errstate` takes three microseconds, and a training step
    enters a dozen of these.
    """

    __slots__ = ("outermost", "token")

    def __enter__(self) -> None:
        self.outermost = None
        if not _silent.get():
            self.outermost = np.errstate(all="ignore")
            self.token = _silent.set(True)
            self.outermost.__enter__()

    def __exit__(self, *_: object) -> None:
        if self.outermost is not None:
            self.outermost.__exit__(None, None, None)
            _silent.reset(self.token)


def _silently(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a method in such a block."""

    @wraps(method)
    def run(*arguments: Any, **named: Any) -> Any:
        if _silent.get():
            return method(*arguments, **named)
        with Silence():
            return method(*arguments, **named)

    return run


class NumpyBackend(Backend):
    """NumPy on the host. Since 2.1 NumPy's own namespace is an array-API one."""

    name = "numpy"
    xp: Any = np

    def owns(self, array: object) -> bool:
        """Whether `array` is a NumPy array or scalar."""
        return isinstance(array, ARRAYS)

    def running(self) -> AbstractContextManager[object]:
        """Block without NumPy's warnings of overflow, of division by 0 and of NaN."""
        return Silence()

    def matmul(self, a: Array, b: Array) -> Array:
        return super().matmul(a, b) if self.reproducible else product(a, b)

    def sum(self, a: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        if self.reproducible:
            return super().sum(a, axis, keepdims)
        return np.add.reduce(a, axis=axis, keepdims=keepdims)

    # In reproducible mode formulas are interpreted as they stand.

    @_silently
    def run(
        self, operation: Operation, x: Array, *parameters: Array, m: Arrays | None = None
    ) -> Array:
        if self.reproducible or operation.fuses not in WRITTEN or parameters or not x.ndim:
            if operation.fuses == "product" and not self.reproducible:
                out = product(x, parameters[0])
                out += parameters[1]
                return out
            return super().run(operation, x, *parameters, m=m)
        call, values = generated.forward(operation)
        return call(x, *values(operation, 0))

    @_silently
    def run_backward(
        self,
        operation: Operation,
        dout: Array,
        x: Array,
        y: Array,
        *parameters: Array,
        m: Arrays | None = None,
    ) -> tuple[Array, ...]:
        if self.reproducible or operation.fuses not in WRITTEN or parameters or not x.ndim:
            return super().run_backward(operation, dout, x, y, *parameters, m=m)
        call, values = generated.backward(operation)
        return (call(dout, x, y, *values(operation, 0)),)

    @_silently
    def predicted(self, loss: Loss, x: Array) -> Array:
        if self.reproducible:
            return super().predicted(loss, x)
        call, values = generated.predicted(loss)
        return call(x, *values(loss, 0))

    @_silently
    def row_losses(self, loss: Loss, x: Array, t: Array) -> Array:
        if self.reproducible:
            return super().row_losses(loss, x, t)
        call, values = generated.row_losses(loss)
        return call(x, np.broadcast_to(t, x.shape), *values(loss, 0))[..., 0]

    @_silently
    def loss_and_delta(self, loss: Loss, x: Array, t: Array) -> tuple[Array, Array]:
        if self.reproducible:
            return super().loss_and_delta(loss, x, t)
        call, values = generated.loss_and_delta(loss)
        losses, delta = call(x, t, *values(loss, 1 / len(x)))
        return np.add.reduce(losses, axis=None) / len(x), delta

    @_silently
    def step(
        self, update: Any, n: int, W: Array, g: Array, memory: Sequence[Array]
    ) -> tuple[Array, ...]:
        call, values = generated.step(update)
        found = call(W, g, *memory, *values(update, n))
        return as_tuple(found)

    @_silently
    def train_step(
        self, run: Run, x: Array, t: Array, loss: Loss, update: Any, names: Sequence[str]
    ) -> Array | None:
        """Gradients and the optimizer's step without going by the names of the parameters."""
        if self.reproducible:
            return None
        parameters = [W for arrays in run.parameters for W in arrays]
        taken = {update.taken.get(name, 0) for name in names}
        if len(taken) > 1 or not all(W.flags.writeable for W in parameters):
            return None
        mean, _, gradients = self.loss_and_gradients(run, x, t, loss, True)
        n = taken.pop() + 1
        call, values = generated.last_step(update)
        numbers = values(update, n)
        places: list[tuple[Any, Any, Any]] = [(update.taken, name, n) for name in names]
        found = (g for arrays in gradients for g in arrays)
        for name, W, g in zip(names, parameters, found, strict=True):
            memory = update.memory_of(name, W, self)
            moved = call(W, g, *memory, *numbers)
            new = moved if memory else (moved,)
            places += [(old, ..., v) for old, v in zip((W, *memory), new, strict=True)]
        assign(places)
        return mean

    def one_hot(self, t: Array, classes: int, dtype: Any) -> Array:
        labels = t.reshape(-1)
        # As unsigned numbers, negative ones are large.
        if labels.size and labels.astype(np.int64).view(np.uint64).max() >= classes:
            return super().one_hot(t, classes, dtype)  # says which label is wrong
        out = np.zeros((labels.size, classes), dtype)
        out[np.arange(labels.size), labels] = 1
        return out.reshape(*t.shape, classes)

    def writable(self, array: Array) -> bool:
        return array.flags.writeable


SMALL = 1 << 14
"""Numbers of a product below which `dot` is the faster: it is called in a third of the time of `@`,
but clears what it will write."""


def product(a: Array, b: Array) -> Array:
    """A b, both of two dimensions."""
    # `@` does not take an outer product to BLAS.
    return a.dot(b) if len(a) * b.shape[1] < SMALL or len(b) == 1 else a @ b
