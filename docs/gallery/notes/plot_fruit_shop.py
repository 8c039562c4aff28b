"""
A computational graph: the fruit shop
=====================================

Two apples at 100 each and three oranges at 150, with 10 % tax: forward, from left to right, each
node computes from what comes in. Backward each node multiplies what comes from the right by its own
derivative, by the chain rule; a product hands on the other factor, a sum hands on what it is given.
So one pass says how much the total changes with each price, each count, and the tax.

The notes, §5.1, 计算图, to §5.4, 简单层的实现: §5.2 链式法则, §5.3 反向传播.
"""

import xnet
from xnet.layers import Add, Mul

graph = xnet.plotting.Graph()
names = {"apple\nprice": 100.0, "apple\ncount": 2.0, "orange\ncount": 3.0, "orange\nprice": 150.0}
leaves = [graph.leaf(name, value) for name, value in names.items()]
apples = graph.apply("×", Mul(), leaves[0], leaves[1])
oranges = graph.apply("×", Mul(), leaves[2], leaves[3])
tax = graph.leaf("tax", 1.1)
total = graph.apply("×", Mul(), graph.apply("+", Add(), apples, oranges), tax)
graph.backward(total)

print("total", round(total.value, 2))
for leaf in (*leaves, tax):
    print(f"d total / d {' '.join(leaf.label.split())}: {leaf.gradient:.1f}")

# %%
# ``fruit_shop`` draws this very graph, values above its edges and gradients below them;
# ``graph.draw()`` draws any.
figure = xnet.plotting.fruit_shop()
figure
