"""A test-only backend: PyTorch's arithmetic, on the CPU."""

from importlib import import_module
from importlib.util import find_spec

import numpy as np

from xnet.backend import Backend


class _Namespace:
    """array-api-compat's namespace for PyTorch, but for what is not IEEE 754's."""

    def __init__(self):
        self._torch = import_module("array_api_compat.torch")

    def __getattr__(self, name):
        return getattr(self._torch, name)

    def asarray(self, values, **options):
        """Of NumPy's arrays a copy in C order: PyTorch takes no negative strides."""
        if isinstance(values, np.ndarray):
            values = np.array(values)
        return self._torch.asarray(values, **options)

    def sqrt(self, x):
        """NumPy's: PyTorch's vectorised one (2.13, x86-64) is 1 unit off for 1 in 100 numbers."""
        return self._torch.from_numpy(np.sqrt(x.numpy()))


class TorchBackend(Backend):
    name = "torch"

    @classmethod
    def why_unusable(cls):
        return None if find_spec("torch") else "PyTorch is not installed: pip install torch"

    def __init__(self, device=None, *, reproducible=False):
        super().__init__(device, reproducible=reproducible)
        self.xp = _Namespace()

    def owns(self, array):
        return isinstance(array, self.xp.Tensor)
