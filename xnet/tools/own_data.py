"""Data of one's own in the command: what train learns from, evaluate judges, predict writes."""

import csv
import dataclasses
import io
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from xnet import datasets, scaling
from xnet.errors import DatasetError
from xnet.files import replaced
from xnet.layers import Layer
from xnet.measures import r_squared
from xnet.network import Network
from xnet.schema import Schema

Split = tuple[Any, Any]


class Scale(StrEnum):
    """How the input is scaled: each column by itself, bytes to between 0 and 1, or not at all."""

    standard = "standard"
    pixels = "pixels"
    none = "none"


@dataclasses.dataclass
class Lesson:
    """What a network is to learn, and from what.

    Attributes
    ----------
    x, t
        The training part.
    test, validation
        Data (x, t) that judge, and that choose: of the latter, the share of the training part too.
    outputs
        How many numbers the network gives.
    before
        Layers before its first, which scale the input.
    units
        Mean and standard deviation of targets that are numbers; t is less the one, over the other.
    schema
        The names of columns and classes.
    """

    x: NDArray[Any]
    t: NDArray[Any]
    test: Split | None
    validation: float | Split | None
    outputs: int
    before: list[Layer] = dataclasses.field(default_factory=list[Layer])
    units: tuple[NDArray[Any], NDArray[Any]] | None = None
    schema: Schema | None = None

    @property
    def inputs(self) -> int:
        """Features of a sample."""
        return self.x.shape[1]

    def part(self, span: Callable[[int], slice]) -> "Lesson":
        """Of each of its data the rows that `span` says, of so many."""

        def of(x: NDArray[Any], t: NDArray[Any]) -> Split:
            return x[span(len(x))], t[span(len(t))]

        x, t = of(self.x, self.t)
        test, validation = (
            of(*data) if isinstance(data, tuple) else data for data in (self.test, self.validation)
        )
        return dataclasses.replace(self, x=x, t=t, test=test, validation=validation)

    def finish(self, network: Network) -> None:
        """Have what was trained on this give its answers in the units of the data."""
        if self.units is not None:
            scaling.unscale(network, *self.units)
            self.units = None

    def __str__(self) -> str:
        if self.schema is None:
            return f"{len(self.x)} samples to train on"
        named = ", ".join(map(repr, self.schema.labels))
        what = f"{len(self.schema.classes)} classes" if self.schema.classes else "numbers"
        parts = {"train on": (self.x, self.t), "choose by": self.validation, "judge by": self.test}
        shown = ", ".join(
            f"{len(part[0])} to {use}" for use, part in parts.items() if isinstance(part, tuple)
        )
        return f"{self.schema.task}{f' of {named}' if named else ''}: {what}, {shown}"


def built_in(dataset: str, validation: float | None) -> Lesson:
    """What a data set that xnet knows has to teach."""
    (x, t), test = datasets.DATASETS[dataset]()
    return Lesson(x, t, test, validation, int(t.max()) + 1)


def lesson(
    path: Path,
    label: Sequence[str],
    task: str | None,
    ignore: Sequence[str],
    test: str | None,
    validation: float | None,
    scale: str | None,
    seed: int,
) -> Lesson:
    """What data of one's own have to teach; options as in ``xnet train``."""
    data = datasets.read(path, label, task=task, ignore=ignore)
    judged = data.test
    if test is not None and (share := _share(test)) is not None:
        data, held = data.split(share, seed)
        judged = held.x, held.t
    elif test is not None:
        judged = labelled(Path(test), data.schema)
    chosen = None
    if validation is not None:
        data, held = data.split(validation, seed)
        chosen = held.x, held.t
    before = _scaling(data, scale)
    outputs = len(data.schema.classes) if data.schema.classes else data.t.shape[1]
    found = Lesson(data.x, data.t, judged, chosen, outputs, before, None, data.schema)
    if data.schema.classes is None:
        found.units = mean, std = scaling.moments(data.t)
        found.t = (data.t - mean) / std
        found.test, found.validation = (
            part and (part[0], (part[1] - mean) / std) for part in (judged, chosen)
        )
    return found


def _share(text: str) -> float | None:
    """A share of the data, if the text is one; else it is a path."""
    try:
        return float(text)
    except ValueError:
        return None


def _scaling(data: datasets.Data, scale: str | None) -> list[Layer]:
    """The layer that scales the input, found on the training part alone."""
    scale = scale or (Scale.pixels if data.schema.pixels else Scale.standard)
    if scale == Scale.none:
        return []
    return [
        scaling.pixels(data.x.shape[1]) if scale == Scale.pixels else scaling.normalization(data.x)
    ]


def labelled(path: Path, schema: Schema | None) -> Split:
    """All samples of a file, and their labels."""
    x, t = list[Any](), list[Any]()
    for part, labels, _ in datasets.chunks(path, schema, labelled=True):
        x.append(part)
        t.append(labels)
    return np.concatenate(x), np.concatenate(t)


# -- evaluate


def judged(network: Network, path: Path, batch_size: int) -> tuple[str, float, int]:
    """How good a network is on a file, and by what measure: "accuracy" or "R²"; on how many."""
    outputs, targets = list[Any](), list[Any]()
    for x, t, _ in datasets.chunks(path, network.schema, labelled=True):
        for start in range(0, len(x), batch_size):
            outputs.append(predicted(network, x[start : start + batch_size], path))
        targets.append(t)
    y, t = np.concatenate(outputs), np.concatenate(targets)
    if network.schema is not None and network.schema.classes:
        right = (y.argmax(axis=1) == t) & ~np.isnan(y).any(axis=1)
        return "accuracy", int(right.sum()) / len(t), len(t)
    return "R²", r_squared(y.astype(np.float64), t), len(t)


def predicted(network: Network, x: NDArray[Any], path: Path) -> NDArray[Any]:
    """What the network says of x, which is of that file, on the host."""
    if network.inputs not in (None, x.shape[1]):
        raise DatasetError(
            f"{path} has {x.shape[1]} numbers for a sample, the network takes {network.inputs}"
        )
    return network.backend.to_numpy(network.predict(x))


# -- predict


def write(
    network: Network, paths: Sequence[Path], output: Path | None, batch_size: int
) -> tuple[int, list[str]]:
    """Write what a network says of data, row by row; returns how many rows, and their columns.

    A row has the name of a picture's file, where it is one; what is predicted, of classes the name;
    and the number of each class. A file is there whole or not at all.
    """
    rows, header = 0, list[str]()
    with _opened(output) as file:
        writer = csv.writer(file, lineterminator="\n")
        for y, names in _predictions(network, paths, batch_size):
            if rows == 0:
                header = _header(network, y.shape[1], names is not None)
                writer.writerow(header)
            writer.writerows(_rows(network, y, names))
            rows += len(y)
    return rows, header


@contextmanager
def _opened(output: Path | None) -> Generator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    try:
        with replaced(output) as file:
            text = io.TextIOWrapper(file, "utf-8", newline="")
            yield text
            text.detach()  # which flushes, and leaves the file open
    except OSError as error:
        raise DatasetError(f"{output} cannot be written: {error.strerror}") from error


def _predictions(
    network: Network, paths: Sequence[Path], batch_size: int
) -> Iterator[tuple[NDArray[Any], list[str] | None]]:
    for path in paths:
        for x, _, names in datasets.chunks(path, network.schema):
            for start in range(0, len(x), batch_size):
                part = slice(start, start + batch_size)
                yield predicted(network, x[part], path), names and names[part]


def _header(network: Network, outputs: int, pictures: bool) -> list[str]:
    answer = ["prediction"] * network.loss_layer.classes
    return ["picture"] * pictures + answer + _names(network, outputs)


def _names(network: Network, outputs: int) -> list[str]:
    """What the outputs are called: numbers, where nobody said so."""
    schema = network.schema or Schema()
    return list(schema.outputs or map(str, range(outputs)))


def _rows(
    network: Network, y: NDArray[Any], pictures: list[str] | None
) -> Iterator[tuple[str, ...]]:
    columns: list[list[str]] = [] if pictures is None else [pictures]
    if network.loss_layer.classes:
        names = _names(network, y.shape[1])
        columns.append([names[k] for k in y.argmax(axis=1).tolist()])
    # As few digits as tell each number from its neighbours of the same dtype.
    return zip(*columns, *y.T.astype(str).tolist(), strict=True)
