"""
A network's layers
==================

A network is a graph, too, of layers: an Affine layer multiplies by its weights W and adds its
biases b, an activation bends, and the last computes softmax and loss at once. On the edges stands
how many features go from one layer to the next, N rows at a time.

The notes, §5.6, Affine/Softmax层的实现; in the book §5.7 puts these layers together.
"""

import xnet

net = xnet.TwoLayerNet(784, 50, 10, seed=0)
for name, array in net.params.items():
    print(name, array.shape)
print(sum(array.size for array in net.params.values()), "parameters")

figure = xnet.plotting.network_graph(net)
figure
