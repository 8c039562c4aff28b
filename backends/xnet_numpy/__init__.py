"""The reference backend: NumPy, by the generic kernels alone."""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from xnet.backend import Array, Backend


class NumpyBackend(Backend):
    """NumPy on the host. Since 2.1 NumPy's own namespace is an array-API one."""

    name = "numpy"
    xp: Any = np

    def owns(self, array: object) -> bool:
        """Whether `array` is a NumPy array or scalar."""
        return isinstance(array, np.ndarray | np.generic)

    def running(self) -> AbstractContextManager[object]:
        """Block without NumPy's warnings of overflow, of division by 0 and of NaN."""
        return np.errstate(over="ignore", divide="ignore", invalid="ignore")

    def softmax(self, x: Array) -> Array:
        """As the generic form, in silence where x - max(x) overflows to -inf: its exp is 0."""
        with self.running():
            return super().softmax(x)
