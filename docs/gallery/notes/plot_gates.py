"""
Logic gates as perceptrons
==========================

A perceptron weighs its inputs, adds a bias, and says 1 where the sum is above 0: a straight line
divides the plane into what it says 0 and 1 to. AND, NAND and OR are one perceptron each, with other
weights. XOR is none, for no straight line parts its points; but two layers do, as the region
between the lines of NAND and OR.

The notes, §2, 感知机: §2.3 感知机的实现, §2.4 感知机的局限性, §2.5 多层感知机.
"""

import xnet
from xnet.perceptron import AND, GATES, NAND, OR, XOR

print("x1 x2  AND NAND OR XOR")
for x1 in (0, 1):
    for x2 in (0, 1):
        said = [gate(x1, x2) for gate in (AND, NAND, OR, XOR)]
        print(f" {x1}  {x2}   {said[0]}   {said[1]}    {said[2]}   {said[3]}")
for name, (weights, bias) in GATES.items():
    print(f"{name}: weights {weights}, bias {bias}")

figure = xnet.plotting.gates()
figure
