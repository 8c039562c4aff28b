"""
The same bits everywhere: cutting numbers into slices
=====================================================

Rounding makes a sum depend on its order, and every library, processor and number of threads has its
own. In reproducible mode each row is cut into slices of so few bits that the products of slices add
up exactly, in whatever order; those sums are then added in one fixed order (Ozaki, Ogita, Oishi &
Rump 2012).
"""

import numpy as np

import xnet
from xnet import reproducible

x = np.array([1e16, 1.0, -1e16, 1.0])
print("from the left:", float(((x[0] + x[1]) + x[2]) + x[3]))
print("in other order:", float((x[0] + x[2]) + (x[1] + x[3])))
print("reproducible:", reproducible.sum(x), "and", reproducible.sum(x[[0, 2, 1, 3]]))

row = [0.91, -0.4, 0.063, -2.1e-3, 1.7e-5, -3e-7, 8e-10]
figure = xnet.plotting.slices(row, contracted=784)
figure
