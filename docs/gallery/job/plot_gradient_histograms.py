"""
How large the gradients are
===========================

Gradients of about one size in all layers are what a single learning rate can serve. Where those of
the first layers are far smaller than those of the last, they vanish on the way; where they are
huge, ``clip`` in ``xnet.train`` keeps a step from leaping.
"""

import xnet

(x, t), _ = xnet.datasets.load_digits()
net = xnet.TwoLayerNet(64, 50, 10, "he", "relu", seed=0)
for name, gradient in net.gradient(x[:100], t[:100]).items():
    print(f"{name}: largest {abs(gradient).max():.4f}, mean {abs(gradient).mean():.4f}")

figure = xnet.plotting.gradient_histograms(net, x[:100], t[:100])
figure
