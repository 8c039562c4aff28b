"""
A grid of digits
================

It is worth looking at the data before learning from them: are the pictures what their labels say,
are there as many of each, and would one read them all oneself?

The notes, §3.6, 手写数字识别（推理实践）.
"""

import numpy as np

import xnet

(x, t), _ = xnet.datasets.load_digits()
for label, count in enumerate(np.bincount(t)):
    print(f"{label}: {count} pictures")

figure = xnet.plotting.digits(x[:24], t[:24])
figure
