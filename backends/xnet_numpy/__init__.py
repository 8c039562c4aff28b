"""The reference backend: NumPy, by the generic forms alone."""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import numpy as np

from xnet.backend import Array, Backend

ARRAYS = (np.ndarray, np.generic)


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
            self.outermost = np.errstate(over="ignore", divide="ignore", invalid="ignore")
            self.token = _silent.set(True)
            self.outermost.__enter__()

    def __exit__(self, *_: object) -> None:
        if self.outermost is not None:
            self.outermost.__exit__(None, None, None)
            _silent.reset(self.token)


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
