"""
Gradient descent, and its learning rate
=======================================

Go a little way down the gradient, look again, and go on: x ← x − η ∂f/∂x. How far each step goes is
the learning rate η. With a good one the path ends in the lowest point; one too large jumps further
away every time; one too small does not move.

The notes, §4.4.1, 梯度法.
"""

import warnings

import numpy as np

import xnet


def bowl(x):
    return x[0] ** 2 + x[1] ** 2


start = np.array([-3.0, 4.0])
with warnings.catch_warnings():
    # Far away a step of h = 0.0001 is lost in rounding, of which xnet warns.
    warnings.simplefilter("ignore", xnet.RoundingWarning)
    for rate in (0.1, 10.0, 1e-10):
        end = xnet.gradient_descent(bowl, start.copy(), lr=rate, step_num=100)
        print(f"learning rate {rate:g}: ends at {end}")

figure = xnet.plotting.descent(bowl, start, rates=(0.1, 10.0, 1e-10))
figure
