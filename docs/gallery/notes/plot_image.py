"""
An image is an array
====================

To a program a picture is a table of numbers, one for each pixel: here 0 is paper and 1 the
strongest ink. What can be done to arrays can be done to pictures: one turned upside down has the
same rows from the last to the first, and two beside each other are one array of twice the columns.

The notes, §1.6.3, 显示图像.
"""

import numpy as np

import xnet

(x, t), _ = xnet.datasets.load_digits(flatten=False)
picture = x[0, 0]
print("shape", picture.shape, "label", t[0])
print(np.round(16 * picture).astype(int))

figure = xnet.plotting.image(np.hstack([picture, np.flipud(picture), 1 - picture]))
figure
