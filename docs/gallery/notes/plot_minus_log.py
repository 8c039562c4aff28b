"""
−log x, the cost of a probability
=================================

The cross-entropy error takes the probability that a network gives to the right class, and charges
its −log: nothing where it is sure and right, more and more the less it believed in what is so. The
derivative −1/x says the same: the surer it was of something else, the stronger the push.

The notes, §4.2.2, 交叉熵误差.
"""

import numpy as np

import xnet
from xnet.losses import cross_entropy_error, mean_squared_error

t = np.array([0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
right = np.array([0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0])  # surest of class 2
wrong = np.array([0.1, 0.05, 0.1, 0.0, 0.05, 0.1, 0.0, 0.6, 0.0, 0.0])  # surest of class 7
for name, y in {"right": right, "wrong": wrong}.items():
    print(f"{name}: cross-entropy {cross_entropy_error(y, t):.6f}", end=", ")
    print(f"half the squared error {mean_squared_error(y, t):.6f}")

figure = xnet.plotting.minus_log()
figure
