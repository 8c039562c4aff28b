"""Numba: NumPy arrays, compiled loops.

Compiled code is imported on first use and cached on disk. What a loop computes is written from the
operations' formulas (`generated`); products and passes through whole runs of layers are written by
hand (`products`, `passes`).
"""

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
from xnet_numpy import OnHost
from xnet_numpy.runs import affine, affine_gradients, product

from xnet.backend import Array, Gradients, Run
from xnet.formulas import Arrays
from xnet.operations import Loss, Operation

LITTLE = 12_000
"""Multiplications below which NumPy's own product is there before a compiled one is called. Its
product with one row is as fast as ours, too."""

FEW_ROWS = 4
"""Rows of a gradient below which NumPy's own product with W' is the faster one."""

REQUIRED = ("numba", "threadpoolctl")


class NumbaBackend(OnHost):
    """NumPy arrays on the host, loops compiled by Numba."""

    name = "numba"
    compiled = True

    @classmethod
    def why_unusable(cls) -> str | None:
        """A package that it needs is missing or does not import, or Numba is to compile nothing."""
        missing = [name for name in REQUIRED if find_spec(name) is None]
        if missing:
            return f'{", ".join(missing)} not installed: pip install "xnet-nn[numba]"'
        try:
            numba: Any = import_module("numba")
        except ImportError as error:  # often a NumPy newer than Numba knows
            return f"Numba does not import ({error})"
        if numba.config.DISABLE_JIT:
            return "Numba is told to compile nothing: unset NUMBA_DISABLE_JIT"
        return None

    @cached_property
    def kernels(self) -> ModuleType:
        """The compiled products, of one name and meaning in both modes."""
        return import_module("xnet_numba.exact" if self.reproducible else "xnet_numba.fused")

    @cached_property
    def loops(self) -> Any:
        """The loops of operations."""
        return import_module("xnet_numba.kernels").Loops("exact" if self.reproducible else "fast")

    def threads(self) -> int:
        """How many threads its kernels use."""
        return int(import_module("xnet_numba.compiling").thread_count())

    # In fast mode NumPy's own are the fast ones.

    def matmul(self, a: Array, b: Array) -> Array:
        return self.kernels.matmul(packed(a), packed(b)) if self.reproducible else product(a, b)

    def sum(self, a: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        if self.reproducible:
            return self.kernels.sum(packed(a), axis, keepdims)
        return np.add.reduce(a, axis=axis, keepdims=keepdims)

    def _elementary(self, name: str, a: Array) -> Array:
        return self.kernels.elementary(name, a) if self.reproducible else getattr(np, name)(a)

    def run(
        self, operation: Operation, x: Array, *parameters: Array, m: Arrays | None = None
    ) -> Array:
        if operation.fuses == "product" and _fit(x, *parameters):
            W, b = parameters
            if not self.reproducible and (len(x) == 1 or x.size * b.size < LITTLE):
                return affine(x, W, b)
            return self.kernels.affine(packed(x), packed(W), packed(b))
        if operation.fuses == "pointwise" and not parameters:
            return self.loops.forward(operation, x)
        if operation.fuses == "rows" and not parameters:
            return self.loops.rows_forward(operation, x)
        return super().run(operation, x, *parameters, m=m)

    def run_backward(
        self,
        operation: Operation,
        dout: Array,
        x: Array,
        y: Array,
        *parameters: Array,
        m: Arrays | None = None,
    ) -> tuple[Array, ...]:
        if operation.fuses == "product" and _fit(x, *parameters) and _alike(dout, y):
            W, _ = parameters
            few = len(x) < FEW_ROWS or x.size * W.shape[1] < LITTLE
            if few and not self.reproducible:
                return product(dout, W.T), *affine_gradients(dout, x)
            return self.kernels.affine_backward(packed(dout), packed(x), packed(W))
        if operation.fuses == "pointwise" and not parameters:
            return (self.loops.backward(operation, dout, x, y),)
        if operation.fuses == "rows" and not parameters:
            return (self.loops.rows_backward(operation, dout, x, y),)
        return super().run_backward(operation, dout, x, y, *parameters, m=m)

    def parameter_gradients(
        self,
        operation: Operation,
        dout: Array,
        x: Array,
        y: Array,
        *parameters: Array,
        m: Arrays | None = None,
    ) -> tuple[Array, ...]:
        if operation.fuses != "product" or not (_fit(x, *parameters) and _alike(dout, y)):
            return super().parameter_gradients(operation, dout, x, y, *parameters, m=m)
        if not self.reproducible and x.size * dout.shape[1] < LITTLE:
            return affine_gradients(dout, x)
        return self.kernels.affine_gradients(packed(dout), packed(x))

    def predicted(self, loss: Loss, x: Array) -> Array:
        return self.loops.predicted(loss, x)

    def row_losses(self, loss: Loss, x: Array, t: Array) -> Array:
        return self.loops.row_losses(loss, x, np.broadcast_to(t, x.shape))

    def loss_and_delta(self, loss: Loss, x: Array, t: Array) -> tuple[Array, Array]:
        losses, delta = self.loops.loss_and_delta(loss, x, t)
        return self.sum(losses) / len(x), delta

    def step(
        self, update: Any, n: int, W: Array, g: Array, memory: Sequence[Array]
    ) -> tuple[Array, ...]:
        if len(memory) > self.loops.MOST_SLOTS:
            return super().step(update, n, W, g, memory)
        return self.loops.step(update, n, W, g, memory)

    def one_hot(self, t: Array, classes: int, dtype: Any) -> Array:
        labels = np.asarray(t, np.int64, order="C")
        out = np.empty((*t.shape, classes), dtype)
        if self.loops.one_hot(labels.reshape(-1), out.reshape(-1, classes)):
            return out
        return super().one_hot(t, classes, dtype)

    # -- runs

    def takes(self, run: Run) -> int:
        if self.reproducible:
            return super().takes(run)
        count = import_module("xnet_numba.fused").takes(run)
        return count if count else int(run.operations[0].fuses is None)

    def forward(self, run: Run, x: Array, loss: Loss | None = None) -> Array:
        prepared = run.prepared
        if prepared is None:
            prepared = self._prepared(run)
        if prepared:
            found = prepared.forward(x if x.flags.c_contiguous else packed(x), loss)
            if found is not None:
                return found
        return super().forward(run, x, loss)

    def forward_keeping(self, run: Run, x: Array) -> tuple[Array, Any]:
        prepared = self._prepared(run)
        if prepared and not self.reproducible:
            return prepared.forward_keeping(packed(x))
        return super().forward_keeping(run, x)

    def backward(
        self, run: Run, kept: Any, dout: Array, first: bool
    ) -> tuple[Array | None, Gradients]:
        prepared = self._prepared(run)
        if prepared and not self.reproducible:
            return prepared.backward(kept, packed(dout), first)
        return super().backward(run, kept, dout, first)

    def loss_and_gradients(
        self, run: Run, x: Array, t: Array, loss: Loss, first: bool
    ) -> tuple[Array, Array | None, Gradients]:
        prepared = self._prepared(run)
        if prepared:
            found = prepared.loss_and_gradients(packed(x), packed(t), loss, first)
            if found[0] is not None:
                return found
        return super().loss_and_gradients(run, x, t, loss, first)

    def train_step(
        self, run: Run, x: Array, t: Array, loss: Loss, update: Any, names: Sequence[str]
    ) -> Array | None:
        prepared = self._prepared(run)
        if prepared:
            return prepared.train_step(packed(x), packed(t), loss, update, names, self)
        return super().train_step(run, x, t, loss, update, names)

    def _prepared(self, run: Run) -> Any:
        """The run as `fused` takes it, or `reproducible`; False if that does not."""
        if run.prepared is None:
            module = "xnet_numba.reproducible" if self.reproducible else "xnet_numba.fused"
            run.prepared = import_module(module).prepared(run)
        return run.prepared

    def loss_differences(
        self, x: Array, a: Array, rest: Run, loss: Loss, t: Array, h: float
    ) -> Array:
        # In float32 a difference of two losses is rounding noise however fast it comes.
        if self.reproducible or x.dtype != np.float64:
            return super().loss_differences(x, a, rest, loss, t, h)
        compiled: Any = import_module("xnet_numba.perturbation")
        if not compiled.takes(rest):
            return super().loss_differences(x, a, rest, loss, t, h)
        return compiled.loss_differences(self, x, a, rest, loss, t, h)

    @classmethod
    def compiles(cls, f: object) -> bool:
        """Whether f was made by `numba.njit`."""
        return type(f).__module__.startswith("numba.core.") and hasattr(f, "py_func")

    def compiled_values(
        self, f: Any, x: Array, up: Array, down: Array, span: range
    ) -> tuple[Array, Array]:
        return import_module("xnet_numba.differences").compiled_values(f, x, up, down, span)


def _fit(x: Array, W: Array, b: Array) -> bool:
    """Whether x W + b is of one dtype and of shapes that fit: compiled code looks at neither."""
    one = x.dtype == W.dtype == b.dtype
    return one and x.shape[1:] == W.shape[:1] and b.shape == W.shape[1:]


def _alike(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape


def packed(array: Array) -> Array:
    """`array` in C order: no copy where it is so already."""
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
