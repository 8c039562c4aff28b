"""
Which class is taken for which
==============================

A row for each right class, a column for each answer: what is right stands on the diagonal, and
beside it which classes are taken for each other, which one accuracy cannot say.
"""

import xnet

(x, t), (x_test, t_test) = xnet.datasets.load_digits()
net = xnet.TwoLayerNet(64, 50, 10, "he", "relu", seed=0)
xnet.train(net, x, t, epochs=5, progress=False)

said = net.predict(x_test).argmax(axis=1)
print("of the eights", (said[t_test == 8] == 8).mean().round(3), "are read as such")

figure = xnet.plotting.confusion_matrix(net, x_test, t_test)
figure
