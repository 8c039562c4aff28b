"""
ReLU
====

max(0, x).
"""

import xnet

figure = xnet.plotting.relu()
