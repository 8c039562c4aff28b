"""
Where a network tells classes apart
===================================

Of a network with two inputs everything can be seen: each point of the plane in the colour of what
it says there, and the line where its answers meet. No straight line parts two spirals; a network
with two hidden layers bends one around them (after Lang & Witbrock 1988).
"""

import xnet
from xnet.layers import Affine, Tanh
from xnet.optimizers import Adam

x, t = xnet.plotting.spirals()
layers = [Affine(2, 16, "xavier"), Tanh(), Affine(16, 16, "xavier"), Tanh()]
net = xnet.Network([*layers, Affine(16, 2, "xavier")], seed=0)
xnet.train(net, x, t, optimizer=Adam(0.01), iterations=600, batch_size=50, progress=False)
print("accuracy", round(net.accuracy(x, t), 3))

figure = xnet.plotting.decision_boundary(net, x, t)
figure
