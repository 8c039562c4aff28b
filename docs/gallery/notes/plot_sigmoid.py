"""
The sigmoid function
====================

1 / (1 + exp(−x)) takes any number to one between 0 and 1, and does so smoothly: a small change of x
changes y a little, and that much is its slope, y (1 − y). The numerical derivative finds the same.

The notes, §3.2.1, sigmoid函数, and §3.2.4, sigmoid函数的实现.
"""

import numpy as np

import xnet
from xnet.activations import sigmoid

x = np.array([-1.0, 1.0, 2.0])
y = sigmoid(x)
print("sigmoid  ", y)
print("y (1 - y)", y * (1 - y))
print("numerical", np.array([xnet.numerical_diff(sigmoid, value) for value in x]))

figure = xnet.plotting.sigmoid()
figure
