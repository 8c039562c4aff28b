"""
From scores to probabilities
============================

The last layer of a classifier gives a score for each class, any numbers. Softmax makes
probabilities of them: exp of each, divided by the sum of all, so that they add up to 1 and the
largest stays the largest. Subtracting the largest score first changes nothing but that exp cannot
overflow (解决溢出问题).

The notes, §3.5, 输出层的设计: §3.5.3 softmax函数.
"""

import numpy as np

import xnet
from xnet.activations import softmax

scores = np.array([0.3, 2.9, 4.0, 0.0])
print("exp", np.exp(scores), "sum", np.exp(scores).sum())
print("softmax", softmax(scores), "sum", softmax(scores).sum())
print("of large scores", softmax(np.array([1010.0, 1000.0, 990.0])))

figure = xnet.plotting.softmax(scores)
figure
