"""CuPy: arrays on a CUDA device, by the generic kernels.

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
from typing import Any, cast

from xnet.backend import Array, Backend


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


# Whatever computes, this release's kernels and the next one's, computes on the backend's device.
for _name, _member in vars(Backend).items():
    if isfunction(_member) and not _name.startswith("_") and _name not in vars(CupyBackend):
        setattr(CupyBackend, _name, _on_device(_member))
