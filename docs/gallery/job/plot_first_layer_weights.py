"""
What the first layer looks for
==============================

Each unit of the first layer multiplies every pixel by a weight: laid out as a picture, the weights
show where it wants ink, in one colour, and where none, in the other. Before training that is noise;
afterwards they are strokes and edges.
"""

import xnet

(x, t), _ = xnet.datasets.load_digits()
net = xnet.TwoLayerNet(64, 24, 10, "he", "relu", seed=0)
print("largest weight before", abs(net.params["W1"]).max().round(2))
xnet.train(net, x, t, epochs=30, progress=False)
print("largest weight after", abs(net.params["W1"]).max().round(2))

figure = xnet.plotting.first_layer_weights(net)
figure
