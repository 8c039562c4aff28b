"""
The step function
=================

A perceptron's activation: 1 where x is above 0, else 0. Its slope is 0 wherever it has one, so
nothing can be learnt by following slopes, and networks take a smooth function in its place.

The notes, §3.2.2, 阶跃函数的实现, and §3.2.3, 阶跃函数的图形.
"""

import numpy as np

import xnet
from xnet import activations

print(activations.step(np.array([-1.0, 1.0, 2.0])))  # whole numbers
print("slope at 1:", xnet.numerical_diff(activations.step, 1.0))

figure = xnet.plotting.step()
figure
