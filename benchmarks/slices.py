"""Draws docs/slices.png: seven numbers of a row, as reproducible mode cuts them.

python benchmarks/slices.py
"""

from report import FIGURES

from xnet import plotting

if __name__ == "__main__":
    plotting.save(plotting.slices(), FIGURES / "slices.png")
