"""
A handwritten digit
===================

What a network sees of a picture is a row of numbers, one for each pixel, and what it is to say is
the label. These digits of 8×8 pixels are part of xnet; MNIST's have 28×28, 784 numbers each, and
``xnet.datasets.load_mnist`` gives them in the same form.

The notes, §3.6.1, MNIST数据集.
"""

import xnet

(x, t), (x_test, t_test) = xnet.datasets.load_digits()
print("training data", x.shape, t.shape)
print("test data", x_test.shape, t_test.shape)
print("one picture as the network sees it:", x[2, 8:24])

figure = xnet.plotting.digit(x[2], t[2])
figure
