"""CuPy: arrays on a CUDA device, products by cuBLAS, the other kernels in CUDA.

The kernels are in `kernels.cu`, compiled when first needed by what comes with CuPy and cached.
Work goes to CuPy's current stream of the device, as in any CuPy program, so kernels and copies
are ordered with the caller's own. Nothing here waits for the device except `to_numpy`, which
returns finished values, and `synchronize`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from inspect import isfunction
from types import ModuleType
from typing import Any, TypeAlias, cast

from xnet import perturbation
from xnet.backend import Array, Backend, Stack
from xnet.perturbation import Step


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


SMALL_BATCH = 64
"""Rows, at most, that go through a stack in one launch, a block of threads for each. A guess from
what a launch costs and how many blocks a device runs at a time, not yet measured on one."""


SMALL_STACK = 1 << 18
"""Weights, at most, of such a stack: each block reads them all, and one multiprocessor reads 64
bytes a cycle at best: 2 MiB take as long as the launches that are saved. Not measured either."""


class CupyBackend(Backend):
    """CuPy on one CUDA device."""

    name = "cupy"

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
        """The CUDA kernels, as functions of packed arrays."""
        return import_module("xnet_cupy.kernels")

    @property
    def _mode(self) -> str:
        return "Exact" if self.reproducible else "Fast"

    def matmul(self, a: Array, b: Array) -> Array:
        if not self.reproducible or not (a.size and b.size):
            return super().matmul(a, b)
        return self.kernels.exact_matmul(_packed(a), _packed(b))

    def sum(self, a: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        if not self.reproducible or not a.size:
            return super().sum(a, axis, keepdims)
        return self.kernels.exact_sum(_packed(a), axis, keepdims)

    def exp(self, a: Array) -> Array:
        if not self.reproducible:
            return super().exp(a)
        return self.kernels.apply("Exact", "Exp<Exact>", _packed(a))

    def log(self, a: Array) -> Array:
        if not self.reproducible:
            return super().log(a)
        return self.kernels.apply("Exact", "Log<Exact>", _packed(a))

    def affine(self, x: Array, W: Array, b: Array) -> Array:
        out = self.matmul(x, W)
        self.kernels.add_bias(self._mode, out, _packed(b))
        return out

    def affine_backward(self, dout: Array, x: Array, W: Array) -> tuple[Array, Array, Array]:
        sums = self.kernels.column_sums(self._mode, _packed(dout))
        return self.matmul(dout, W.T), self.matmul(x.T, dout), sums

    def affine_gradients(self, dout: Array, x: Array) -> tuple[Array, Array]:
        return self.matmul(x.T, dout), self.kernels.column_sums(self._mode, _packed(dout))

    def sigmoid(self, x: Array) -> Array:
        return self.kernels.apply(self._mode, "Sigmoid<{math}>", _packed(x))

    def sigmoid_backward(self, dout: Array, y: Array) -> Array:
        return self.kernels.sigmoid_backward(self._mode, _packed(dout), _packed(y))

    def relu(self, x: Array) -> Array:
        return self.kernels.apply(self._mode, "Relu", _packed(x))

    def relu_backward(self, dout: Array, mask: Array) -> Array:
        return self.kernels.relu_backward(self._mode, _packed(dout), _packed(mask))

    def softmax(self, x: Array) -> Array:
        return self.kernels.softmax(self._mode, _packed(x))

    def softmax_with_loss(self, x: Array, t: Array) -> tuple[Array, Array]:
        y, terms = self.kernels.softmax_with_terms(self._mode, _packed(x), _packed(t))
        return -self.sum(terms) / x.shape[0], y

    def softmax_with_loss_backward(self, y: Array, t: Array, dout: float = 1.0) -> Array:
        arrays, scale = (_packed(y), _packed(t)), dout / y.shape[0]
        return self.kernels.softmax_with_loss_backward(self._mode, *arrays, scale)

    def overwrite(self, old: Array, new: Array) -> Array:
        old[...] = new
        return old

    def descend(self, W: Array, g: Array, lr: float) -> Array:
        if not W.flags.c_contiguous:
            return super().descend(W, g, lr)
        self.kernels.descend(self._mode, W, _packed(g), lr)
        return W

    def through(self, x: Array, stack: Stack, probabilities: bool) -> Array:
        """One launch for a few rows, else a product and a launch for each layer."""
        if stack.prepared is None:
            stack.prepared = _layers(stack.steps)
            if stack.prepared and not self.reproducible and _plain(stack.prepared):
                stack.prepared = self.kernels.SmallStack(stack.prepared)
        prepared = stack.prepared
        if not prepared:
            return super().through(x, stack, probabilities)
        if isinstance(prepared, list):
            layers = cast("list[_Layer]", prepared)
        elif 0 < x.shape[0] <= SMALL_BATCH:
            return prepared.forward(_packed(x), probabilities)
        else:
            layers = prepared.layers
        for W, b, activation in layers:
            x = self.matmul(x, W)
            self.kernels.add_bias(self._mode, x, _packed(b), _ACTIVATIONS[activation])
        return self.softmax(x) if probabilities else x

    def row_losses(self, scores: Array, loss: str, t: Array) -> Array:
        t = self.xp.broadcast_to(t, scores.shape)
        return self.kernels.row_losses(self._mode, _packed(scores), loss, _packed(t))

    def loss_differences(
        self, x: Array, a: Array, steps: list[Step], loss: str, t: Array, h: float
    ) -> Array:
        # In float32 a difference of two losses is rounding noise however fast it comes.
        if self.reproducible or x.dtype != self.xp.float64:
            return super().loss_differences(x, a, steps, loss, t, h)
        first = next((k for k, step in enumerate(steps) if step[0] == "affine"), len(steps))
        z = perturbation.run(self, steps[:first], a)
        after = perturbation.run(self, steps[first : first + 1], z)
        arrays = map(_packed, (x, a, z, after))
        return self.kernels.loss_differences(*arrays, steps, loss, _packed(t), h)


_Layer: TypeAlias = tuple[Array, Array, str | None]
_ACTIVATIONS = {None: "Identity", "sigmoid": "Sigmoid<{math}>", "relu": "Relu"}
"""As add_bias of kernels.cu knows them."""


def _layers(steps: list[Step]) -> list[_Layer]:
    """W, b and the activation of each layer of `steps`; empty if that is not what they are."""
    layers: list[_Layer] = []
    for kernel, *arrays in steps:
        if kernel == "affine":
            layers.append((arrays[0], arrays[1], None))
        elif kernel in _ACTIVATIONS and layers and layers[-1][2] is None:
            layers[-1] = (*layers[-1][:2], kernel)
        else:
            return []
    return layers


def _plain(layers: list[_Layer]) -> bool:
    """Whether the arrays are stored as one kernel reads them, and few enough for it."""
    if sum(W.size for W, _, _ in layers) > SMALL_STACK:
        return False
    return all(W.flags.c_contiguous and b.flags.c_contiguous for W, b, _ in layers)


def _packed(array: Array) -> Array:
    """`array` in C order, which the kernels read; no copy is made where it is so already."""
    return _cupy().asarray(array, order="C")


# Whatever computes, this release's kernels and the next one's, computes on the backend's device.
_ELSEWHERE = ("owns", "to_numpy", "synchronize", "running")
for _name, _member in vars(Backend).items():
    if isfunction(_member) and not _name.startswith("_") and _name not in _ELSEWHERE:
        setattr(CupyBackend, _name, _on_device(getattr(CupyBackend, _name)))
