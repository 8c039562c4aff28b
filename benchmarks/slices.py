"""Draws docs/slices.png: seven numbers of a row, as reproducible mode cuts them.

python benchmarks/slices.py
"""

from report import FIGURES

from xnet.tools import figures

ROW = (0.91, -0.4, 0.063, -2.1e-3, 1.7e-5, -3e-7, 8e-10)

if __name__ == "__main__":
    figures.slices(ROW, contracted=784).savefig(FIGURES / "slices.png", dpi=110)
