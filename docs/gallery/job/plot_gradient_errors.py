"""
Is backpropagation right?
=========================

A gradient by backpropagation is checked by the numerical one, weight by weight: where a formula is
wrong, the differences show a pattern in one parameter, and are far above what rounding explains.
``gradient_check`` works out what it does explain, and says whether the two agree.

The notes compare the two by their mean difference, which is printed here, too.
"""

import xnet

(x, t), _ = xnet.datasets.load_digits()
net = xnet.TwoLayerNet(64, 8, 10, "he", seed=0)
check = xnet.gradient_check(net, x[:20], t[:20])
for name in net.params:
    print(f"{name}: mean difference below 1e-9: {check[name] < 1e-9}")
print("verdict:", check.verdict)

figure = xnet.plotting.gradient_errors(net, x[:20], t[:20])
figure
