"""
The most confident mistakes
===========================

The mistakes that a network was surest of say most about it, and about the data: some are digits
that anybody would misread, some have a wrong label, and some show what it has not understood.
"""

import xnet

(x, t), (x_test, t_test) = xnet.datasets.load_digits()
net = xnet.TwoLayerNet(64, 50, 10, "he", "relu", seed=0)
xnet.train(net, x, t, epochs=10, progress=False)

said = net.predict(x_test).argmax(axis=1)
print((said != t_test).sum(), "of", len(t_test), "are wrong")

figure = xnet.plotting.mistakes(net, x_test, t_test)
figure
