"""
ReLU
====

The rectified linear unit lets what is above 0 through as it is, and gives 0 for the rest. Its slope
is 1 or 0, so gradients pass many layers without growing small. Backward it lets through the
gradients of what it let through forward.

The notes, §3.2.7, ReLU函数, and §5.5.1, 激活函数ReLU的神经网络层.
"""

import numpy as np

import xnet
from xnet.layers import ReLU

layer = ReLU()
x = np.array([[1.0, -0.5], [-2.0, 3.0]])
print("forward", layer.forward(x).tolist())
print("backward", layer.backward(np.ones_like(x)).tolist())

figure = xnet.plotting.relu()
figure
