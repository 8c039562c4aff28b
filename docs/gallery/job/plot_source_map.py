"""
A map of the source
===================

An operation, a layer's or a loss's, is written once, as its equation. Interpreted in other ways it
is array code, compiled loops, CUDA kernels, error bounds, ONNX: no second place is to be edited.
Here is one that the library lacked a moment ago.
"""

import numpy as np

import xnet
from xnet import activations
from xnet.operations import Pointwise


class Squareplus(Pointwise):
    """(x + sqrt(x² + 4)) / 2, a smooth ReLU."""

    def forward(self, m, x):
        return (x + m.sqrt(x * x + 4)) / 2

    def backward(self, m, dout, x, y):
        return dout * y / m.sqrt(x * x + 4)


print(activations.squareplus(np.array([-2.0, 0.0, 2.0])).round(4))
net = xnet.TwoLayerNet(4, 3, 2, "he", "squareplus", seed=0)
print(xnet.gradient_check(net, np.eye(4), np.array([0, 1, 0, 1])).verdict)

figure = xnet.plotting.source_map()
figure
