"""
Loss and accuracy while a network learns
========================================

Draw a few samples, find the gradient of the loss, take a step, and go on with others: mini-batch
learning. The loss of each batch falls, if unevenly. After each epoch, when all samples have been
seen once, the accuracy on the test data says what it has learnt of digits that it has never seen
(过拟合, had it only learnt its own by heart).

The notes, §4.5, 学习算法的实现: §4.5.2 mini-batch的实现, §4.5.3 基于测试数据的评价.
"""

import xnet

(x, t), (x_test, t_test) = xnet.datasets.load_digits()

histories = {}
for activation in ("sigmoid", "relu"):
    net = xnet.TwoLayerNet(64, 50, 10, "he", activation, seed=0)
    histories[activation] = xnet.train(net, x, t, x_test, t_test, epochs=20, progress=False)
    print(f"{activation}: test accuracy {histories[activation].test_accuracy[-1]:.3f}")

figure = xnet.plotting.training_curves(histories, smooth=5)
figure
