"""
A function of two numbers
=========================

f(x₀, x₁) = x₀² + x₁² is a bowl. A partial derivative is the slope along one axis while the other
number stays as it is: of a bowl 2 x₀ and 2 x₁.

The notes, §4.3.3, 偏导数.
"""

import numpy as np

import xnet


def bowl(x):
    return x[0] ** 2 + x[1] ** 2


x = np.array([3.0, 4.0])
print("by x0 at (3, 4):", xnet.partial_derivative(bowl, x, 0))
print("by x1 at (3, 4):", xnet.partial_derivative(bowl, x, 1))

figure = xnet.plotting.surface(bowl)
figure
