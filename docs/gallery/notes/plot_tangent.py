"""
The numerical derivative
========================

The slope of a curve at a point is nearly that of a line through two points close by, one on either
side: (f(x + h) − f(x − h)) / 2h with h = 0.0001. The line of that slope through the point is its
tangent.

The notes, §4.3, 数值微分: §4.3.1 导数, §4.3.2 数值微分的例子.
"""

import xnet


def f(x):
    return 0.01 * x**2 + 0.1 * x


print("f'(5) ", xnet.numerical_diff(f, 5.0), "where it is 0.2")
print("f'(10)", xnet.numerical_diff(f, 10.0), "where it is 0.3")

figure = xnet.plotting.tangent(f, at=5.0, low=0.0, high=20.0)
figure
