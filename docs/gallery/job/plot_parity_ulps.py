"""
How far backends are apart
==========================

In fast mode each backend adds in its own order, so that results differ in their last bits: by how
many units in the last place, of which operation, and is that within the bound of its formula? Here
a backend of one's own, which multiplies in float32 although it is asked for float64, is held
against NumPy, and breaks its promise: crosses. ``xnet parity`` does the same of every backend here.
"""

import numpy as np

import xnet
from xnet.testing import parity


class Careless(type(xnet.resolve("numpy"))):
    """NumPy's, but for products that are rounded to 24 bits."""

    name = "careless"

    def matmul(self, a, b):
        return np.matmul(a.astype("float32"), b.astype("float32")).astype(a.dtype)


numpy, draw = xnet.resolve("numpy"), parity.standard_normal()
wanted = {"matmul", "sum", "exp", "log", "Affine", "Sigmoid", "Tanh"}
verdicts = parity.Verdicts(
    parity.verdict(trial, Careless(), numpy, "float64", draw)
    for trial in parity.trials()
    if trial.name in wanted
)
for verdict in verdicts:
    print(f"{verdict.operation}: {'kept' if verdict.kept else 'BROKEN'}")

figure = xnet.plotting.parity_ulps(verdicts)
figure
