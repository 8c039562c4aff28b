"""How random the numbers of `xnet.random` are, and what they cost.

Ten million of each kind against what they should be: moments, Kolmogorov and Smirnov's distance,
tails, chi-squares, correlations. A z is a deviation in units of its own standard deviation: beyond
4 once in 16,000 times. Then the time beside NumPy's own generator's. Takes half a minute.

    python benchmarks/random_quality.py
"""

import math
import sys
from functools import partial
from itertools import permutations

import numpy as np
from bench import in_turns
from report import machine, save, without_handicaps
from scipy.special import chdtrc, kolmogorov, ndtr, ndtri

from xnet.random import Generator

N = 10_000_000
ORDERS = 600_000
MOST = 4.5
"""A z that is beyond it, or a p as rare, is taken for a fault."""

NORMAL_MOMENTS = {
    "mean": (0, 1),
    "variance": (1, 2),
    "third moment": (0, 15),
    "fourth moment": (3, 96),
}
UNIFORM_MOMENTS = {
    "mean": (0, 1 / 12),
    "variance": (1 / 12, 1 / 180),
    "third moment": (0, 1 / 448),
    "fourth moment": (1 / 80, 1 / 2304 - 1 / 6400),
}
"""Means of the powers of what is drawn, less 1/2 for uniform numbers, and their variances."""


def moments(v, expected):
    """Means of the first four powers, with their z."""
    power = np.ones_like(v)
    for name, (mean, variance) in expected.items():
        power *= v
        found = float(power.mean())
        yield name, found, mean, (found - mean) / math.sqrt(variance / len(v))


def correlations(v, mean, variance):
    """Products of numbers that follow each other, and their squares, at some distances."""
    v = (v - mean) / math.sqrt(variance)
    for what, w in (("numbers", v), ("squares", (v * v - 1) / math.sqrt(float((v**4).mean()) - 1))):
        for lag in (1, 2, 3, 784, 2**16):
            found = float((w[lag:] * w[:-lag]).mean())
            yield f"correlation of {what}, {lag} apart", found, 0, found * math.sqrt(len(w) - lag)


def distance(p):
    """Kolmogorov and Smirnov's, times the root of n, of what should be uniform; and its p."""
    p = np.sort(p)
    n = len(p)
    steps = np.arange(n + 1) / n
    found = max(float((steps[1:] - p).max()), float((p - steps[:-1]).max())) * math.sqrt(n)
    return found, float(kolmogorov(found))


def rarity(p):
    """The z, of either sign, that is as rare as a p so near to 0 or 1."""
    return -float(ndtri(min(p, 1 - p)))


def tails(z):
    """Counts beyond so many standard deviations, on either side."""
    for sigma in (1, 2, 3, 4, 5):
        p = float(ndtr(-sigma))
        for side, count in (("above", (z > sigma).sum()), ("below", (z < -sigma).sum())):
            off = (int(count) - len(z) * p) / math.sqrt(len(z) * p * (1 - p))
            yield f"{side} {sigma} sigma", int(count), len(z) * p, off


def chi_square(counts):
    """Of counts that should be alike: it, how many are free, and its p."""
    expected = counts.sum() / len(counts)
    found = float(((counts - expected) ** 2).sum() / expected)
    return found, len(counts) - 1, float(chdtrc(len(counts) - 1, found))


def orders(g):
    """How often each order of five came."""
    known = {order: k for k, order in enumerate(permutations(range(5)))}
    counts = np.zeros(len(known), np.int64)
    for _ in range(ORDERS):
        counts[known[tuple(g.permutation(5).tolist())]] += 1
    return counts


def places(g):
    """How often each element of 60 came to each place of 60."""
    counts = np.zeros((60, 60), np.int64)
    for _ in range(ORDERS // 10):
        counts[g.permutation(60), np.arange(60)] += 1
    return counts


def report():
    """Every figure: (of what, name, found, expected, z or None, p or None)."""
    g = Generator(2026)
    z = g.normal(N)
    for row in (*moments(z, NORMAL_MOMENTS), *tails(z), *correlations(z, 0, 1)):
        yield "normal", *row, None
    found, p = distance(ndtr(z))
    yield "normal", "Kolmogorov-Smirnov", found, None, None, p
    for dtype in ("float64", "float32"):
        u = g.uniform(N, dtype).astype(np.float64)
        for row in (*moments(u - 0.5, UNIFORM_MOMENTS), *correlations(u, 0.5, 1 / 12)):
            yield f"uniform {dtype}", *row, None
        found, p = distance(u)
        yield f"uniform {dtype}", "Kolmogorov-Smirnov", found, None, None, p
    for bound in (2, 3, 10, 1000, 60_000):
        found, free, p = chi_square(np.bincount(g.integers(bound, N), minlength=bound))
        yield f"integers below {bound}", "chi-square", found, free, None, p
    upper = g.integers(3 << 61, N) >> 59  # the 12 twelfths of an awkward range
    found, free, p = chi_square(np.bincount(upper, minlength=12))
    yield "integers below 3 2^61", "chi-square of twelfths", found, free, None, p
    found, free, p = chi_square(orders(g))
    yield "permutations of 5", "chi-square of all 120", found, free, None, p
    found, free, p = chi_square(places(g).ravel())
    # Rows and columns have fixed sums: 59^2 are free, and the 60^2 terms vary 60/59 as much.
    found, free = found * 59 / 60, 59 * 59
    p = float(chdtrc(free, found))
    yield "permutations of 60", "chi-square of places", found, free, None, p


def times():
    """The shortest call in ms, of xnet and of NumPy, of rounds in which they take turns."""
    ours, numpy, shape = Generator(0), np.random.default_rng(0), (784, 1000)
    pairs = {
        "normal, 784 x 1000": (ours.normal, numpy.standard_normal, (shape,)),
        "uniform, 784 x 1000": (ours.uniform, numpy.random, (shape,)),
        "uniform, 100 x 50": (ours.uniform, numpy.random, ((100, 50),)),
        "permutation of 1,797": (ours.permutation, numpy.permutation, (1797,)),
        "permutation of 60,000": (ours.permutation, numpy.permutation, (60_000,)),
        "100 integers below 60,000": (ours.integers, numpy.integers, (60_000, 100)),
    }
    for name, (one, other, arguments) in pairs.items():
        if one == ours.integers:
            other = partial(numpy.integers, 0)
        calls = {"xnet": partial(one, *arguments), "numpy": partial(other, *arguments)}
        taken = in_turns(calls)
        yield name, {who: 1000 * min(v) for who, v in taken.items()}


def main():
    figures, worst = [], 0.0
    print(f"{'':24} {'':36} {'found':>14} {'expected':>14} {'z or p':>9}")
    for of, name, found, expected, z, p in report():
        row = {"of": of, "figure": name, "found": found, "expected": expected, "z": z, "p": p}
        figures.append(row)
        beyond = "" if expected is None else f"{expected:14.8g}"
        print(f"{of:24} {name:36} {found:14.8g} {beyond:>14} {z if p is None else p:9.2g}")
        worst = max(worst, abs(z) if p is None else rarity(p))
    costs = dict(times())
    for name, taken in costs.items():
        print(f"{name:30} {taken['xnet']:8.3f} ms, NumPy {taken['numpy']:8.3f} ms")
    save("random_quality", {"machine": machine(), "figures": figures, "milliseconds": costs})
    print(f"{len(figures)} figures; the largest deviation is worth a z of {worst:.2f}")
    if worst > MOST:
        sys.exit("that is too rare for chance")


if __name__ == "__main__":
    without_handicaps()
    main()
