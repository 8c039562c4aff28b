"""
How large the numbers are in each layer
=======================================

Initial weights decide whether anything can be learnt: where outputs shrink from layer to layer, so
do gradients, and a deep network stands still. With a standard deviation of sqrt(2/D) for D inputs
(He et al. 2015) they keep their size under ReLU; with 0.01 they vanish.
"""

import xnet
from xnet.layers import Affine, ReLU

(x, t), _ = xnet.datasets.load_digits()
nets = {}
for init in (0.01, "he"):
    layers = [Affine(64, 50, init), ReLU(), Affine(50, 50, init), ReLU(), Affine(50, 10, init)]
    nets[init] = xnet.Network(layers, seed=0)
    print(f"{init}: scores of about {nets[init].scores(x).std():.2g}")

figure = xnet.plotting.activation_histograms(nets["he"], x[:200])
figure
