"""CuPy: arrays on a CUDA device, products by cuBLAS, the other kernels in CUDA.

No operation, loss or optimizer is named here: kernels are written from their formulas by
`generated` and stand in the frames of `kernels.cu`. They are compiled when first needed, by what
comes with CuPy, and cached. Work goes to CuPy's current stream of the device, as in any CuPy
program, so kernels and copies are ordered with the caller's own. Nothing here waits for the device
except `to_numpy`, which returns finished values, and `synchronize`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from inspect import isfunction
from types import ModuleType
from typing import Any, cast

from xnet import exact, perturbation
from xnet.backend import Array, Backend, Run
from xnet.formulas import Arrays
from xnet.operations import Loss, Operation
from xnet_cupy import generated
from xnet_cupy.generated import Traced


def _cupy() -> Any:
    """CuPy, imported when first needed; untyped, for it carries no stubs."""
    return import_module("cupy")


def _on_device(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run `method` with its backend's device current, for CuPy launches on the current one."""

    @wraps(method)
    def run(self: "CupyBackend", *args: Any, **kwargs: Any) -> Any:
        with self.running():
            return method(self, *args, **kwargs)

    return run


@dataclass(eq=False)
class _Layer:
    """A product and the activations that follow it, or an operation of another kind."""

    operation: Operation
    parameters: tuple[Array, ...]
    activations: list[Operation] = field(default_factory=list[Operation])


@dataclass(eq=False)
class _Prepared:
    """A run as it is computed, and what takes a few rows through it in one launch, if that can."""

    layers: list[_Layer]
    small: Any


class CupyBackend(Backend):
    """CuPy on one CUDA device."""

    name = "cupy"
    compiled = True
    flushes = ("float32",)  # CuPy compiles all its own kernels with -ftz=true

    @classmethod
    def why_unusable(cls) -> str | None:
        """CuPy is missing, or it finds no CUDA driver or device."""
        for module, name in {"cupy": "CuPy", "array_api_compat": "array-api-compat"}.items():
            if find_spec(module) is None:
                return f'{name} is not installed: pip install "xnet-nn[cuda12]" (or cuda13)'
        try:
            cupy = _cupy()
        except ImportError as error:
            return f"CuPy does not import ({error}): reinstall it for your CUDA version"
        try:
            if cupy.cuda.runtime.getDeviceCount() > 0:
                return None
            return "no CUDA device found"
        except cupy.cuda.runtime.CUDARuntimeError as error:
            return f"no working CUDA driver found ({error}): install NVIDIA's driver"

    @classmethod
    def device_count(cls) -> int:
        """How many CUDA devices there are."""
        return int(_cupy().cuda.runtime.getDeviceCount())

    def __init__(self, device: int | None = None, *, reproducible: bool = False) -> None:
        super().__init__(device or 0, reproducible=reproducible)
        self.xp = import_module("array_api_compat.cupy")

    def owns(self, array: object) -> bool:
        """Whether `array` is a CuPy array on this device."""
        return isinstance(array, _cupy().ndarray) and cast(Any, array).device.id == self.device

    def to_numpy(self, array: Array) -> Any:
        """`array` on the host, once the current stream has computed it."""
        with self.running():
            return _cupy().asnumpy(array)

    def synchronize(self) -> None:
        """Wait for every stream of the device."""
        _cupy().cuda.Device(self.device).synchronize()

    def running(self) -> AbstractContextManager[object]:
        """Block within which CuPy's current device is this one."""
        return _cupy().cuda.Device(self.device)

    @property
    def kernels(self) -> ModuleType:
        """The CUDA kernels, as functions of arrays."""
        return import_module("xnet_cupy.kernels")

    @property
    def _mode(self) -> str:
        return "Exact" if self.reproducible else "Fast"

    def writable(self, array: Array) -> bool:
        return True

    # -- what decides the bits

    def matmul(self, a: Array, b: Array) -> Array:
        if not self.reproducible or not (a.size and b.size):
            return super().matmul(a, b)
        return self.kernels.exact_matmul(a, b)

    def sum(self, a: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        if not self.reproducible or not a.size:
            return super().sum(a, axis, keepdims)
        return self.kernels.exact_sum(a, axis, keepdims)

    def _elementary(self, name: str, a: Array) -> Array:
        if not self.reproducible:
            return super()._elementary(name, a)
        exact.precision(a)  # a dtype that reproducible mode does not take
        return self.kernels.evaluate("Exact", generated.elementary(name), None, a)[0]

    # -- operations

    def run(
        self, operation: Operation, x: Array, *parameters: Array, m: Arrays | None = None
    ) -> Array:
        if operation.fuses == "product":
            W, b = parameters
            out = self.matmul(x, W)
            self.kernels.add_bias(self._mode, out, b)
            return out
        if _is_formula(operation, parameters):
            found = self._evaluated(generated.forward(operation), operation, x)
            if found is not None:
                return found[0]
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
        if operation.fuses == "product":
            W, _ = parameters
            found = self.parameter_gradients(operation, dout, x, y, *parameters)
            return self.matmul(dout, W.T), *found
        if _is_formula(operation, parameters):
            found = self._evaluated(generated.backward(operation), operation, dout, x, y)
            if found is not None:
                return found
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
        if operation.fuses != "product":
            return super().parameter_gradients(operation, dout, x, y, *parameters, m=m)
        return self.matmul(x.T, dout), self.kernels.column_sums(self._mode, dout)

    def predicted(self, loss: Loss, x: Array) -> Array:
        found = self._evaluated(generated.predicted(loss), loss, x)
        return super().predicted(loss, x) if found is None else found[0]

    def row_losses(self, loss: Loss, x: Array, t: Array) -> Array:
        t = self.xp.broadcast_to(t, x.shape)
        found = self._evaluated(generated.row_losses(loss), loss, x, t, of_row=1)
        return super().row_losses(loss, x, t) if found is None else found[0]

    def loss_and_delta(self, loss: Loss, x: Array, t: Array) -> tuple[Array, Array]:
        both = generated.loss_and_delta(loss)
        found = self._evaluated(both, loss, x, t, n=1 / x.shape[0], of_row=1)
        if found is None:
            return super().loss_and_delta(loss, x, t)
        return self.sum(found[0]) / x.shape[0], found[1]

    def step(
        self, update: Any, n: int, W: Array, g: Array, memory: Sequence[Array]
    ) -> tuple[Array, ...]:
        found = self._evaluated(generated.step(update), update, W, g, *memory, n=n)
        return super().step(update, n, W, g, memory) if found is None else found

    def _evaluated(
        self, formula: Traced, owner: Any, *arrays: Array, n: float = 0, of_row: int = 0
    ) -> tuple[Array, ...] | None:
        """What a formula of `owner` gives, by one kernel; None if no kernel gives that.

        The first `of_row` results are expected to be one number for each row, the others to have
        the arrays' shape.
        """
        if not (formula.gives(of_row) and self.kernels.alike(*arrays)):
            return None
        return self.kernels.evaluate(self._mode, formula, owner, *arrays, n=n)

    # -- runs

    def through(self, run: Run, x: Array, loss: Loss | None) -> Array:
        """One launch for a few rows, else a product and a launch for each layer."""
        if run.prepared is None:
            run.prepared = self._prepare(run)
        prepared: _Prepared = run.prepared
        if prepared.small is not None and prepared.small.takes(x, loss):
            return prepared.small.forward(x, loss)
        for layer in prepared.layers:
            if layer.operation.fuses == "product":
                W, b = layer.parameters
                x = self.matmul(x, W)
                self.kernels.add_bias(self._mode, x, b, layer.activations)
            else:
                x = self.run(layer.operation, x, *layer.parameters)
        return x if loss is None else self.predicted(loss, x)

    def _prepare(self, run: Run) -> _Prepared:
        layers: list[_Layer] = []
        for operation, parameters in run:
            if (
                layers
                and layers[-1].operation.fuses == "product"
                and _is_activation(operation, parameters)
            ):
                layers[-1].activations.append(operation)
            else:
                layers.append(_Layer(operation, parameters))
        small = None
        if not self.reproducible and all(v.operation.fuses == "product" for v in layers):
            small = self.kernels.SmallRun.of([(v.parameters, v.activations) for v in layers])
        return _Prepared(layers, small)

    def loss_differences(
        self, x: Array, a: Array, rest: Run, loss: Loss, t: Array, h: float
    ) -> Array:
        # In float32 a difference of two losses is rounding noise however fast it comes.
        if (
            self.reproducible
            or any(array.dtype != self.xp.float64 for array in (x, a, t))
            or not all(o.fuses == "product" or _is_activation(o, p) for o, p in rest)
            or not generated.row_losses(loss).gives(1)
        ):
            return super().loss_differences(x, a, rest, loss, t, h)
        steps = list(rest)
        first = perturbation.split(rest.operations)
        z = perturbation.through(self, steps[:first], a)
        after = perturbation.through(self, steps[first : first + 1], z)
        return self.kernels.loss_differences(x, a, z, after, steps, loss, t, h)


def _is_formula(operation: Operation, parameters: Sequence[Array]) -> bool:
    """Whether an operation is a formula of numbers or rows, and of nothing else."""
    return operation.fuses in ("pointwise", "rows") and not parameters


def _is_activation(operation: Operation, parameters: Sequence[Array]) -> bool:
    """Whether it is a formula of single numbers."""
    return (
        operation.fuses == "pointwise"
        and not parameters
        and not generated.forward(operation).by_rows
    )


# Whatever computes, this release's kernels and the next one's, computes on the backend's device.
_ELSEWHERE = ("owns", "to_numpy", "synchronize", "running")
for _name, _member in vars(Backend).items():
    if isfunction(_member) and not _name.startswith("_") and _name not in _ELSEWHERE:
        setattr(CupyBackend, _name, _on_device(getattr(CupyBackend, _name)))
