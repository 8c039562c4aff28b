"""A small classifier of points in the plane, trained a little at a time."""

import math
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xnet
from xnet.backend import use_backend
from xnet.operations import Affine, registered
from xnet.optimizers import OPTIMIZERS
from xnet.tools.play.points import PROBLEMS
from xnet.training import Callback, Training

REACH = 1.5
"""How far the plane that is shown goes from the middle in each direction."""

GRID = 60
"""Pixels of its sides, each one prediction."""


@dataclass(frozen=True)
class Settings:
    """What a learner chooses.

    Raises
    ------
    ValueError
        A learning rate that is no number above 0, or a width outside 1 to 64.
    """

    problem: str = "moons"
    activation: str = "Tanh"
    width: int = 8
    hidden_layers: int = 2
    optimizer: str = "adam"
    learning_rate: float = 0.03
    gradient: str = "backprop"
    backend: str = "numpy"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(
                f"the learning rate is {self.learning_rate}, expected a number above 0"
            )
        if not (1 <= self.width <= 64 and 1 <= self.hidden_layers <= 3):
            raise ValueError(
                f"the width is {self.width} and there are {self.hidden_layers} hidden layers, "
                "expected 1 to 64 and 1 to 3"
            )


class _Until(Callback):
    """Ends a call of the run when it has taken so long, or so many steps."""

    def __init__(self) -> None:
        self.end, self.steps = 0.0, 0

    def on_step(self, training: Training) -> bool:
        self.steps -= 1
        return self.steps == 0 or time.monotonic() >= self.end


class Classifier:
    """A network for two classes of points, and the run that trains it."""

    def __init__(self, settings: Settings, seed: int = 0) -> None:
        self.settings = settings
        self.x, self.t = PROBLEMS[settings.problem](seed=seed)
        layers: list[Any] = []
        sizes = [2, *[settings.width] * settings.hidden_layers]
        for inputs, outputs in pairwise(sizes):
            layers += [Affine(inputs, outputs, "xavier"), registered()[settings.activation]()]
        layers.append(Affine(settings.width, 2, "xavier"))
        self.network = xnet.Network(layers, seed=seed, backend=settings.backend)
        self._until, self._turn = _Until(), threading.Lock()
        optimizer = OPTIMIZERS[settings.optimizer](settings.learning_rate)
        self.run = Training(
            self.network,
            self.x,
            self.t,
            optimizer=optimizer,
            batch_size=40,
            gradient=settings.gradient,
            callbacks=[self._until],
        )
        rows, columns = np.indices((GRID, GRID))
        step = 2 * REACH / GRID
        places = columns * step - REACH + step / 2, REACH - rows * step - step / 2
        self._plane = np.stack([np.ravel(place) for place in places], axis=1)

    @property
    def steps(self) -> int:
        """How many have been taken."""
        return self.run.history.iterations

    @property
    def diverged(self) -> bool:
        """Whether the loss, or a weight, is no longer a number."""
        return self.run.history.stopped == "diverged"

    def advance(self, seconds: float = 0.1, steps: int | None = None) -> None:
        """Train for so long, or for so many steps if these are fewer; one at least."""
        with self._turn:
            self._until.end, self._until.steps = time.monotonic() + seconds, steps or -1
            self.run.run(epochs=1_000_000, progress=False)

    @property
    def loss(self) -> float:
        """On all points."""
        with use_backend(self.network.backend):
            return self.network.loss(self.x, self.t)

    @property
    def accuracy(self) -> float:
        """On all points."""
        with use_backend(self.network.backend):
            return self.network.accuracy(self.x, self.t)

    def plane(self) -> NDArray[Any]:
        """The probability of class 1 over the plane that is shown, (GRID, GRID)."""
        with use_backend(self.network.backend):
            found = self.network.predict(self._plane)
        return self.network.backend.to_numpy(found)[:, 1].reshape(GRID, GRID)
