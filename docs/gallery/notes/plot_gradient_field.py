"""
The gradient
============

All partial derivatives together are the gradient, a vector in each point. It shows where the
function grows fastest; turned about, as it is drawn here, it shows the way down. In a bowl all
arrows lead to the lowest point, and the further away the longer they are.

The notes, §4.4, 梯度.
"""

import numpy as np

import xnet


def bowl(x):
    return x[0] ** 2 + x[1] ** 2


for point in ([3.0, 4.0], [0.0, 2.0], [3.0, 0.0]):
    print(point, xnet.numerical_gradient(bowl, np.array(point)).round(6))

figure = xnet.plotting.gradient_field(bowl)
figure
