"""
A boundary while it is learnt
=============================

At first a network can do little better than a straight line; step by step the boundary bends until
it winds between the spirals. A ``Training`` is a run that can be gone on with, so that it can be
looked at on the way.
"""

import xnet
from xnet.layers import Affine, Tanh
from xnet.optimizers import Adam

x, t = xnet.plotting.spirals()
layers = [Affine(2, 16, "xavier"), Tanh(), Affine(16, 16, "xavier"), Tanh()]
net = xnet.Network([*layers, Affine(16, 2, "xavier")], seed=0)
run = xnet.Training(net, x, t, optimizer=Adam(0.01), batch_size=50)

figure = xnet.plotting.learning_boundary(run, x, t, steps=(0, 20, 60, 150, 300, 600))
print(f"after {run.history.iterations} steps the accuracy is {net.accuracy(x, t):.3f}")
figure
