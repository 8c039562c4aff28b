"""A sheet to draw a digit on, and what a network sees of it and makes of it."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnet.backend import use_backend
from xnet.network import Network
from xnet.tools.pictures import centred, cropped

SIDE = 280
"""Pixels of the sheet's sides."""

PEN = 16.0
"""Half the width of a stroke, in pixels: about the data sets' own."""

NEAR = 2.0
"""Pixels that the pen moves at least before it draws."""

MOST = 2_000
"""Points of a sheet: beyond, the pen draws no more."""

Floats = NDArray[np.float32]
Point = tuple[float, float]


@dataclass
class Sheet:
    """Strokes of a pen, each a list of points (x, y) in pixels from the upper left."""

    strokes: list[list[Point]] = field(default_factory=list[list[Point]])

    def begin(self, x: float, y: float) -> None:
        """Put the pen down."""
        if self._has_room():
            self.strokes.append([within(x, y)])

    def draw(self, x: float, y: float) -> None:
        """Move the pen that is down."""
        if self.strokes and self._has_room() and math.dist((x, y), self.strokes[-1][-1]) >= NEAR:
            self.strokes[-1].append(within(x, y))

    def _has_room(self) -> bool:
        return sum(map(len, self.strokes)) < MOST

    def copy(self) -> "Sheet":
        """A sheet that looks like this one, and stays so."""
        return Sheet([[*stroke] for stroke in self.strokes])

    def undo(self) -> None:
        """Take the last stroke away."""
        del self.strokes[-1:]

    def clear(self) -> None:
        """Take all strokes away."""
        self.strokes.clear()

    @property
    def path(self) -> str:
        """The strokes as SVG has them."""
        return " ".join(
            "M"
            + " L".join(f"{x:.0f} {y:.0f}" for x, y in (stroke * 2 if len(stroke) == 1 else stroke))
            for stroke in self.strokes
        )

    @property
    def ink(self) -> Floats:
        """(SIDE, SIDE), from 0, paper, to 1: how near the pen came to each pixel."""
        rows, columns = np.indices((SIDE, SIDE), np.float32)
        found = np.zeros((SIDE, SIDE), np.float32)
        for stroke in self.strokes:
            for (x0, y0), (x1, y1) in zip(stroke, [*stroke[1:], stroke[-1]], strict=True):
                left, right = int(max(min(x0, x1) - PEN - 2, 0)), int(max(x0, x1) + PEN + 3)
                top, bottom = int(max(min(y0, y1) - PEN - 2, 0)), int(max(y0, y1) + PEN + 3)
                part = slice(top, bottom), slice(left, right)
                dx, dy = x1 - x0, y1 - y0
                across, down = columns[part] - x0, rows[part] - y0
                length = dx * dx + dy * dy
                along = np.clip((across * dx + down * dy) / length, 0, 1) if length else 0.0
                distance = np.hypot(across - along * dx, down - along * dy)
                found[part] = np.maximum(found[part], np.clip(PEN + 0.5 - distance, 0, 1))
        return found


def within(x: float, y: float) -> Point:
    """The nearest point of the sheet."""
    return min(max(x, 0.0), SIDE - 1.0), min(max(y, 0.0), SIDE - 1.0)


@dataclass
class Answer:
    """What a network makes of a digit."""

    steps: list[tuple[str, Floats]]
    """What is done to the picture before the network sees it, by what is done."""
    hidden: list[tuple[str, NDArray[Any]]]
    """What comes out of the layers before the last, by the layer."""
    probabilities: NDArray[Any]
    """(10,)"""

    @property
    def digit(self) -> int:
        """The most probable one."""
        return int(self.probabilities.argmax())


def answer(network: Network, sheet: Sheet) -> Answer | None:
    """What a network of 784 or 64 features makes of a sheet; None of an empty one."""
    ink = sheet.ink
    if not (ink > 0.5).any():
        return None
    features = network.inputs or 0
    cut = cropped(ink)
    square = centred(cut, features)
    side = square.shape[0]
    steps = [
        ("drawn", ink),
        ("cut to the ink", cut),
        (f"scaled to {side}×{side}, centred", square),
    ]
    hidden: list[tuple[str, NDArray[Any]]] = []
    backend = network.backend
    with use_backend(backend), backend.running():
        flowing = network.host_to_backend(square.reshape(1, features), "x", network.dtype)
        for k, layer in enumerate(network.layers, 1):
            flowing = layer(flowing)
            hidden.append((f"{k}: {layer!r}", backend.to_numpy(flowing)[0]))
        probabilities = backend.to_numpy(network.predict(square.reshape(features)))
    return Answer(steps, hidden[:-1], probabilities)
