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
apple, apples = graph.leaf("apple price", 100.0), graph.leaf("apple count", 2.0)
oranges, orange = graph.leaf("orange count", 3.0), graph.leaf("orange price", 150.0)
tax = graph.leaf("tax", 1.1)
fruit = graph.apply("×", Mul(), apple, apples), graph.apply("×", Mul(), oranges, orange)
total = graph.apply("×", Mul(), graph.apply("+", Add(), *fruit), tax)
graph.backward(total)

print("total", round(total.value, 2))
for leaf in (apple, apples, oranges, orange, tax):
    print(f"d total / d {leaf.label}: {leaf.gradient:.1f}")

# %%
# ``fruit_shop`` draws this very graph, values above its edges and gradients below them;
# ``graph.draw()`` draws any.
figure = xnet.plotting.fruit_shop()
figure
