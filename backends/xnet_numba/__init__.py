"""Numba: NumPy arrays, compiled kernels.

The kernels are in `kernels.py`, imported on first use. Each runs on one thread where the work is
small and on all of Numba's where it pays; compiled code is cached on disk.
"""

from contextlib import AbstractContextManager
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
from xnet_numpy import Silence, affine, affine_gradients, overwrite, product, train_step

from xnet import threads
from xnet.backend import Array, Backend, Stack
from xnet.perturbation import Step

ARRAYS = (np.ndarray, np.generic)
LITTLE = 12_000
"""Multiplications below which NumPy's own product is there before a compiled one is called. Its
product with one row is as fast as ours, too."""

FEW_ROWS = 4
"""Rows of a gradient below which NumPy's own product with W' is the faster one."""

REQUIRED = ("numba", "scipy", "threadpoolctl")


class NumbaBackend(Backend):
    """NumPy arrays on the host, kernels compiled by Numba."""

    name = "numba"
    xp: Any = np

    @classmethod
    def why_unusable(cls) -> str | None:
        """Numba, or one of the two packages its kernels need, is missing or does not import."""
        missing = [name for name in REQUIRED if find_spec(name) is None]
        if missing:
            return f'{", ".join(missing)} not installed: pip install "xnet-nn[numba]"'
        try:
            import_module("numba")
        except ImportError as error:  # often a NumPy newer than Numba knows
            return f"Numba does not import ({error})"
        return None

    @cached_property
    def kernels(self) -> ModuleType:
        """The compiled functions, of one name and meaning in both modes."""
        return import_module("xnet_numba.exact" if self.reproducible else "xnet_numba.kernels")

    def owns(self, array: object) -> bool:
        """Whether `array` is a NumPy array or scalar."""
        return isinstance(array, ARRAYS)

    def threads(self) -> int:
        """How many threads Numba's parallel kernels use."""
        count = int(import_module("numba").get_num_threads())
        return min(count, threads.num_threads()) if threads.chosen() else count

    def running(self) -> AbstractContextManager[object]:
        """Block without NumPy's warnings of overflow, of division by 0 and of NaN."""
        return Silence()

    # NumPy's own are the fast ones.

    def matmul(self, a: Array, b: Array) -> Array:
        if self.reproducible:
            return self.kernels.matmul(_packed(a), _packed(b))
        return super().matmul(a, b)

    def sum(self, a: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        if self.reproducible:
            return self.kernels.sum(_packed(a), axis, keepdims)
        return super().sum(a, axis, keepdims)

    def exp(self, a: Array) -> Array:
        return self.kernels.exp(_packed(a)) if self.reproducible else super().exp(a)

    def log(self, a: Array) -> Array:
        return self.kernels.log(_packed(a)) if self.reproducible else super().log(a)

    def affine(self, x: Array, W: Array, b: Array) -> Array:
        if not self.reproducible and (len(x) == 1 or x.size * b.size < LITTLE):
            return affine(x, W, b)
        return self.kernels.affine(_packed(x), _packed(W), _packed(b))

    def affine_backward(self, dout: Array, x: Array, W: Array) -> tuple[Array, Array, Array]:
        few = len(x) < FEW_ROWS or x.size * W.shape[1] < LITTLE
        if few and not self.reproducible:
            return product(dout, W.T), *self.affine_gradients(dout, x)
        return self.kernels.affine_backward(_packed(dout), _packed(x), _packed(W))

    def affine_gradients(self, dout: Array, x: Array) -> tuple[Array, Array]:
        if not self.reproducible and x.size * dout.shape[1] < LITTLE:
            return affine_gradients(dout, x)
        return self.kernels.affine_gradients(_packed(dout), _packed(x))

    def sigmoid(self, x: Array) -> Array:
        return self.kernels.sigmoid(_packed(x))

    def sigmoid_backward(self, dout: Array, y: Array) -> Array:
        return self.kernels.sigmoid_backward(_packed(dout), _packed(y))

    def relu(self, x: Array) -> Array:
        return self.kernels.relu(_packed(x))

    def relu_backward(self, dout: Array, mask: Array) -> Array:
        return self.kernels.relu_backward(_packed(dout), _packed(mask))

    def softmax(self, x: Array) -> Array:
        return self.kernels.softmax(_packed(x))

    def softmax_with_loss(self, x: Array, t: Array) -> tuple[Array, Array]:
        return self.kernels.softmax_with_loss(_packed(x), _packed(t))

    def softmax_with_loss_backward(self, y: Array, t: Array, dout: float = 1.0) -> Array:
        return self.kernels.softmax_with_loss_backward(_packed(y), _packed(t), dout)

    def one_hot(self, t: Array, classes: int, dtype: Any) -> Array:
        labels = np.asarray(t, np.int64, order="C")
        out = np.empty((*t.shape, classes), dtype)
        kernels: Any = import_module("xnet_numba.kernels")
        if kernels.one_hot(labels.reshape(-1), out.reshape(-1, classes)):
            return out
        return super().one_hot(t, classes, dtype)

    def overwrite(self, old: Array, new: Array) -> Array:
        return overwrite(old, new)

    def descend(self, W: Array, g: Array, lr: float) -> Array:
        if not (W.flags.c_contiguous and W.flags.writeable and W.dtype.isnative):
            return super().descend(W, g, lr)
        self.kernels.descend(W, _packed(g), lr)
        return W

    def forward(self, x: Array, stack: Stack, probabilities: bool) -> Array:
        prepared = self._prepared(stack) if stack.prepared is None else stack.prepared
        if prepared:
            return prepared.forward(x if x.flags.c_contiguous else _packed(x), probabilities)
        return super().forward(x, stack, probabilities)

    def loss_and_gradients(
        self, x: Array, t: Array, stack: Stack, loss: str
    ) -> tuple[Array, list[tuple[Array, Array]]]:
        prepared = self._prepared(stack)
        if prepared:
            return prepared.loss_and_gradients(_packed(x), _packed(t), loss)
        return super().loss_and_gradients(x, t, stack, loss)

    def train_step(self, x: Array, t: Array, stack: Stack, loss: str, lr: float) -> Array | None:
        prepared = self._prepared(stack)
        if prepared:
            return prepared.train_step(_packed(x), _packed(t), loss, lr)
        return train_step(self, x, t, stack, loss, lr)

    def _prepared(self, stack: Stack) -> Any:
        """The stack for `fused`; False if that takes no such one, or not in this mode."""
        if self.reproducible:
            return False
        if stack.prepared is None:
            stack.prepared = import_module("xnet_numba.fused").prepared(stack.steps)
        return stack.prepared

    def loss_differences(
        self, x: Array, a: Array, steps: list[Step], loss: str, t: Array, h: float
    ) -> Array:
        # In float32 a difference of two losses is rounding noise however fast it comes.
        if self.reproducible or x.dtype != np.float64:
            return super().loss_differences(x, a, steps, loss, t, h)
        compiled: Any = import_module("xnet_numba.perturbation")
        return compiled.loss_differences(self, x, a, steps, loss, t, h)

    @classmethod
    def compiles(cls, f: object) -> bool:
        """Whether f was made by `numba.njit`."""
        return type(f).__module__.startswith("numba.core.") and hasattr(f, "py_func")

    def compiled_values(
        self, f: Any, x: Array, up: Array, down: Array, span: range
    ) -> tuple[Array, Array]:
        compiled: Any = import_module("xnet_numba.differences")
        return compiled.compiled_values(f, x, up, down, span)


def _packed(array: Array) -> Array:
    """`array` in C order and the machine's byte order, which the kernels are compiled for.

    No copy is made where it is so already.
    """
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.asarray(array, order="C")
