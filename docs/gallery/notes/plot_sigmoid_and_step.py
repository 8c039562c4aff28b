"""
Sigmoid and step function
=========================

Both stay between 0 and 1, near 0 for small x and near 1 for large. One is smooth, the other jumps:
where the step function tells 0 from 1 alone, the sigmoid gives every number between, and that it
changes everywhere is what learning needs.

The notes, §3.2.5, sigmoid函数和阶跃函数的比较.
"""

import numpy as np

import xnet
from xnet.activations import sigmoid, step

for x in (-5.0, -0.1, 0.1, 5.0):
    values = np.array([x])
    print(f"x = {x:4}   sigmoid {sigmoid(values)[0]:.4f}   step {step(values)[0]}")

figure = xnet.plotting.sigmoid_and_step()
figure
