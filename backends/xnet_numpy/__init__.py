"""The reference backend: NumPy, by the generic kernels alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import numpy as np

from xnet.backend import Array, Backend, Stack

ARRAYS = (np.ndarray, np.generic)


class NumpyBackend(Backend):
    """NumPy on the host. Since 2.1 NumPy's own namespace is an array-API one."""

    name = "numpy"
    xp: Any = np

    def owns(self, array: object) -> bool:
        """Whether `array` is a NumPy array or scalar."""
        return isinstance(array, ARRAYS)

    def running(self) -> AbstractContextManager[object]:
        """Block without NumPy's warnings of overflow, of division by 0 and of NaN."""
        return np.errstate(over="ignore", divide="ignore", invalid="ignore")

    # In reproducible mode the generic forms decide the bits.

    def affine(self, x: Array, W: Array, b: Array) -> Array:
        return super().affine(x, W, b) if self.reproducible else _affine(x, W, b)

    def sigmoid(self, x: Array) -> Array:
        if not self.reproducible and x.ndim:
            with _overflow_raises(), suppress(FloatingPointError):
                return _sigmoid(x)
        with self.running():
            return super().sigmoid(x)

    def softmax(self, x: Array) -> Array:
        """As the generic form, in silence where x - max(x) overflows to -inf: its exp is 0."""
        with self.running():
            return super().softmax(x) if self.reproducible else _softmax(x)

    def through(self, x: Array, stack: Stack, probabilities: bool) -> Array:
        if not self.reproducible:
            with _overflow_raises(), suppress(FloatingPointError):
                out = x
                for kernel, *arrays in stack.steps:
                    own = _OWN.get(kernel)
                    out = own(out, *arrays) if own else getattr(self, kernel)(out, *arrays)
                return _softmax(out) if probabilities else out
        return super().through(x, stack, probabilities)


def _overflow_raises() -> AbstractContextManager[object]:
    return np.errstate(over="raise", divide="ignore", invalid="ignore")


# As the generic forms, without their temporaries; to be called in silence.


def _affine(x: Array, W: Array, b: Array) -> Array:
    out = x @ W
    out += b
    return out


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), as good as the generic form where exp(-x) does not overflow."""
    y = np.negative(x)
    np.exp(y, out=y)
    y += 1
    return np.reciprocal(y, out=y)


def _softmax(x: Array) -> Array:
    y = x - np.maximum.reduce(x, axis=-1, keepdims=True)
    np.exp(y, out=y)
    y /= np.add.reduce(y, axis=-1, keepdims=True)
    return y


_OWN: dict[str, Callable[..., Array]] = {"affine": _affine, "sigmoid": _sigmoid}
