"""array-api-strict as a backend: code that would break on CuPy breaks here first."""

import array_api_strict as xp
import numpy as np

from xnet.backend import Backend

# It looks through this tuple for every array that it makes, a fifth of these tests' time.
if hasattr(xp._array_object, "_all_dtypes"):
    xp._array_object._all_dtypes = frozenset(xp._array_object._all_dtypes)


class StrictBackend(Backend):
    name = "strict"
    xp = xp

    def owns(self, array):
        return isinstance(array, xp.ones(1).__class__)

    def running(self):
        return np.errstate(all="ignore")  # NumPy underneath
