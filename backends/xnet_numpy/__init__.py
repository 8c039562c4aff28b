"""The reference backend: NumPy, by the generic kernels alone."""

from contextlib import AbstractContextManager, suppress
from contextvars import Context, ContextVar, copy_context
from typing import Any

import numpy as np

from xnet.backend import Array, Backend, Stack

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

    # In reproducible mode the generic forms decide the bits.

    def affine(self, x: Array, W: Array, b: Array) -> Array:
        return super().affine(x, W, b) if self.reproducible else affine(x, W, b)

    def affine_backward(self, dout: Array, x: Array, W: Array) -> tuple[Array, Array, Array]:
        if self.reproducible:
            return super().affine_backward(dout, x, W)
        return product(dout, W.T), *self.affine_gradients(dout, x)

    def affine_gradients(self, dout: Array, x: Array) -> tuple[Array, Array]:
        if self.reproducible:
            return super().affine_gradients(dout, x)
        return affine_gradients(dout, x)

    def sigmoid(self, x: Array) -> Array:
        if not self.reproducible and x.ndim:
            with _overflow_raises(), suppress(FloatingPointError):
                return _sigmoid(x)
        with self.running():
            return super().sigmoid(x)

    def relu(self, x: Array) -> Array:
        return super().relu(x) if self.reproducible else np.maximum(x, 0)

    def relu_backward(self, dout: Array, mask: Array) -> Array:
        return np.where(mask, 0, dout)

    def one_hot(self, t: Array, classes: int, dtype: Any) -> Array:
        labels = t.reshape(-1)
        # As unsigned numbers, negative ones are large.
        if labels.size and labels.astype(np.int64).view(np.uint64).max() >= classes:
            return super().one_hot(t, classes, dtype)  # says which label is wrong
        out = np.zeros((labels.size, classes), dtype)
        out[np.arange(labels.size), labels] = 1
        return out.reshape(*t.shape, classes)

    def overwrite(self, old: Array, new: Array) -> Array:
        return overwrite(old, new)

    def descend(self, W: Array, g: Array, lr: float) -> Array:
        if not W.flags.writeable:
            return W - lr * g
        W -= lr * g
        return W

    def train_step(self, x: Array, t: Array, stack: Stack, loss: str, lr: float) -> Array | None:
        return train_step(self, x, t, stack, loss, lr)

    def softmax(self, x: Array) -> Array:
        """As the generic form, in silence where x - max(x) overflows to -inf: its exp is 0."""
        with self.running():
            return super().softmax(x) if self.reproducible else _softmax(x)

    def through(self, x: Array, stack: Stack, probabilities: bool) -> Array:
        if self.reproducible:
            return super().through(x, stack, probabilities)
        if stack.prepared is None:
            own = {"affine": affine, "sigmoid": _sigmoid}
            stack.prepared = [
                (own.get(k) or getattr(self, k), arrays) for k, *arrays in stack.steps
            ]
        try:
            return _WHERE_OVERFLOW_RAISES.copy().run(_through, x, stack.prepared, probabilities)
        except FloatingPointError:
            return super().through(x, stack, probabilities)


def overwrite(old: Array, new: Array) -> Array:
    """`new`, written into `old` unless that is read-only; the array that holds it."""
    if not old.flags.writeable:
        return new
    old[...] = new
    return old


def train_step(
    backend: Backend, x: Array, t: Array, stack: Stack, loss: str, lr: float
) -> Array | None:
    """`Backend.train_step` for NumPy arrays."""
    arrays = [array for kernel, *pair in stack.steps if kernel == "affine" for array in pair]
    if not all(array.flags.writeable for array in arrays):
        return None
    value, gradients = backend.loss_and_gradients(x, t, stack, loss)
    moved = [array for pair in gradients for array in pair]
    with backend.running():
        for W, g in zip(arrays, moved, strict=True):
            np.multiply(g, lr, out=g)
            np.subtract(W, g, out=g)
    try:
        _write(arrays, moved)
    except KeyboardInterrupt:
        _write(arrays, moved)  # a whole step; to write some of it twice does no harm
        raise
    return value


def _write(arrays: list[Array], values: list[Array]) -> None:
    for array, value in zip(arrays, values, strict=True):
        overwrite(array, value)


SMALL = 1 << 14
"""Numbers of a product below which `dot` is the faster: it is called in a third of the time of `@`,
but clears what it will write."""


def product(a: Array, b: Array) -> Array:
    """A b, both of two dimensions."""
    # `@` does not take an outer product to BLAS.
    return a.dot(b) if len(a) * b.shape[1] < SMALL or len(b) == 1 else a @ b


def affine(x: Array, W: Array, b: Array) -> Array:
    """x W + b, without a temporary."""
    out = product(x, W)
    out += b
    return out


def affine_gradients(dout: Array, x: Array) -> tuple[Array, Array]:
    """Gradients of x W + b by W and b."""
    return product(x.T, dout), np.add.reduce(dout, axis=0)


def _overflow_raises() -> AbstractContextManager[object]:
    return np.errstate(over="raise", divide="ignore", invalid="ignore")


def _context_where_overflow_raises() -> Context:
    context = copy_context()
    context.run(np.seterr, over="raise", divide="ignore", invalid="ignore")
    return context


_WHERE_OVERFLOW_RAISES = _context_where_overflow_raises()
"""NumPy keeps how it treats errors in a context variable. To run a function in a copy of a context
takes a tenth of the three microseconds of `np.errstate`, much beside the twenty of a small call."""


# As the generic forms, without their temporaries; to be called in silence.


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), as good as the generic form where exp(-x) does not overflow."""
    y = -x
    np.exp(y, y)
    y += 1
    return np.reciprocal(y, y)


def _softmax(x: Array) -> Array:
    y = x - np.maximum.reduce(x, axis=-1, keepdims=True)
    np.exp(y, y)
    y /= np.add.reduce(y, axis=-1, keepdims=True)
    return y


def _through(x: Array, kernels: list[tuple[Any, list[Array]]], probabilities: bool) -> Array:
    for kernel, arrays in kernels:
        x = kernel(x, *arrays)
    return _softmax(x) if probabilities else x
