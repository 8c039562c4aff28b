"""
Sine and cosine
===============

A curve is many points joined by lines: 400 numbers from 0 to 2π, the sine of each, and the cosine.
In each point the two satisfy sin²x + cos²x = 1, and where one has its top the other crosses zero:
one is the slope of the other.

The notes, §1.6, Matplotlib: 绘制简单图形, pyplot功能.
"""

import numpy as np

import xnet

x = np.linspace(0, 2 * np.pi, 5)
sine, cosine = np.sin(x), np.cos(x)
print("x    ", x)
print("sin x", sine.round(4) + 0.0)  # + 0.0 takes the sign of what was rounded to 0
print("cos x", cosine.round(4) + 0.0)
print("sin²x + cos²x", sine**2 + cosine**2)

figure = xnet.plotting.sin_cos()
figure
