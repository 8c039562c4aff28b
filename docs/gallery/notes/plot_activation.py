"""
Activation functions
====================

Between its products a network bends: an activation function is applied to each number. Without one,
layers upon layers would be one linear function, however many there were (非线性函数). All that
xnet has are drawn by their names, on the current backend.

The notes, §3.2, 激活函数.
"""

import numpy as np

import xnet
from xnet import activations

x = np.array([-1.0, 0.0, 1.0, 2.0])
for name in ("relu", "gelu", "silu", "tanh"):
    print(f"{name:5}", getattr(activations, name)(x).round(4))

figure = xnet.plotting.activation("relu", "gelu", "silu", "tanh")
figure
