"""
What a network says of a picture
================================

A classifier gives a probability for each class. Its answer is the most probable one, and how sure
it is of that is worth seeing, too: bars in the colour of what is right, or of what is wrong.
"""

import xnet

(x, t), (x_test, t_test) = xnet.datasets.load_digits()
net = xnet.TwoLayerNet(64, 50, 10, "he", "relu", seed=0)
xnet.train(net, x, t, epochs=20, progress=False)

print(net.predict(x_test[0]).round(2))
print("accuracy", round(net.accuracy(x_test, t_test), 3))

figure = xnet.plotting.predictions(net, x_test[:6], t_test[:6])
figure
