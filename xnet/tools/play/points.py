"""Points of two classes in the plane, which a small network can learn to tell apart."""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xnet.plotting.material import spirals
from xnet.random import Generator

Points = tuple[NDArray[Any], NDArray[Any]]

COUNT = 240


def circles(n: int = COUNT, seed: int = 0) -> Points:
    """A disc within a ring: points (n, 2) and labels (n,), 0 within and 1 around it."""
    rng, labels = Generator(seed), np.arange(n) % 2
    radii = np.where(labels == 1, 1.0, 0.45) + 0.08 * rng.normal((n,))
    return around(radii, rng), labels


def around(radii: NDArray[Any], rng: Generator) -> NDArray[Any]:
    """A point at each distance from the middle, in any direction."""
    angles = 2 * math.pi * rng.uniform(radii.shape)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def moons(n: int = COUNT, seed: int = 0) -> Points:
    """Two half circles that reach into each other."""
    rng, labels = Generator(seed), np.arange(n) % 2
    angles, side = math.pi * rng.uniform((n,)), 1.0 - 2.0 * labels
    x = side * np.cos(angles) * 0.8 + 0.4 * (labels - 0.5) * 2
    y = side * np.sin(angles) * 0.8 - 0.2 * side
    return np.stack([x, y], axis=1) + 0.08 * rng.normal((n, 2)), labels


def xor(n: int = COUNT, seed: int = 0) -> Points:
    """Four squares, of which those at opposite corners belong together (§2.5)."""
    rng = Generator(seed)
    x = 2.2 * rng.uniform((n, 2)) - 1.1
    x += 0.1 * np.where(x < 0, -1, 1)  # a gap along the axes
    return x, ((x[:, 0] > 0) != (x[:, 1] > 0)).astype(np.int64)


PROBLEMS: Final[dict[str, Callable[..., Points]]] = {
    "circles": circles,
    "moons": moons,
    "spirals": spirals,
    "XOR": xor,
}
"""By the names that a learner chooses by."""
