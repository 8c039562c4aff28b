"""
A boundary while it is learnt, as an animation
==============================================

The same, a picture every 60 steps. ``xnet.plotting.save`` writes it as a GIF, and in a notebook
``animation.to_jshtml()`` gives a player.
"""

import tempfile
from pathlib import Path

import xnet
from xnet.layers import Affine, Tanh
from xnet.optimizers import Adam

x, t = xnet.plotting.spirals()
layers = [Affine(2, 16, "xavier"), Tanh(), Affine(16, 16, "xavier"), Tanh()]
net = xnet.Network([*layers, Affine(16, 2, "xavier")], seed=0)
run = xnet.Training(net, x, t, optimizer=Adam(0.01), batch_size=50)

with xnet.plotting.look(width=400):
    animation = xnet.plotting.learning_boundary_animation(run, x, t, steps=range(0, 601, 60))
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "learning.gif")
    xnet.plotting.save(animation, path)
    print("written:", path.name)
animation
