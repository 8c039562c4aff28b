"""A network's layers as runs that a backend takes in one call, and the layers between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from xnet.backend import Array, Backend, Run
from xnet.layers import Layer, LossLayer, numbered
from xnet.operations import Loss


@dataclass(eq=False)
class Part:
    """A run, with the layers that it is made of."""

    layers: list[Layer]
    run: Run


Segment: TypeAlias = Part | Layer


def is_plain(layer: Layer) -> bool:
    """Whether a layer is its operation and that treats each row on its own, keeping nothing."""
    operation = layer.operation
    if layer.opaque or operation is None or any(W is None for W in layer.params.values()):
        return False
    return not (operation.mixes or operation.random or operation.state)


class Plan:
    """The segments of a network, valid as long as its layers have the same arrays.

    Attributes
    ----------
    segments
        In order: what goes to the backend whole, and layers that are asked one by one.
    whole
        The run, where one run is all of the network.
    places, names
        Where the parameters are, and their names, as the network numbers them.
    loss
        The loss as the backend takes it; None if the loss layer computes otherwise.
    """

    def __init__(self, backend: Backend, layers: Sequence[Layer], loss: LossLayer) -> None:
        self.places = numbered(layers)
        self.names = list(self.places)
        self.arrays = [(arrays, k, arrays[k]) for arrays, k in self.places.values()]
        self.segments: list[Segment] = []
        start = 0
        while start < len(layers):
            stop = start
            while stop < len(layers) and is_plain(layers[stop]):
                stop += 1
            run = _run(layers[start:stop])
            count = backend.takes(run) if stop > start else 0
            if 0 < count < stop - start:
                run = _run(layers[start : start + count])
            self.segments.append(
                Part(list(layers[start : start + count]), run) if count else layers[start]
            )
            start += max(1, count)
        first = self.segments[0]
        alone = len(self.segments) == 1 and isinstance(first, Part)
        self.whole: Run | None = first.run if alone else None
        self.loss: Loss | None = None if loss.opaque else loss.operation
        widths = (v.operation.widths[0] for v in layers if v.operation is not None)
        self.inputs: int | None = next((w for w in widths if w is not None), None)
        self.outputs = _outputs(layers)
        dtypes = (W.dtype for _, _, W in self.arrays)
        self.dtype: Any = next(dtypes, None)

    def is_stale(self) -> bool:  # a loop, for `any` takes three times as long
        """Whether a parameter has been replaced."""
        for params, key, W in self.arrays:  # noqa: SIM110
            if params[key] is not W:
                return True
        return False


def _run(layers: Sequence[Layer]) -> Run:
    operations = [layer.operation for layer in layers if layer.operation is not None]
    parameters: list[tuple[Array, ...]] = [tuple(layer.params.values()) for layer in layers]
    return Run(operations, parameters)


def _outputs(layers: Sequence[Layer]) -> int | None:
    """Columns of the scores, if they are known without computing them."""
    for layer in reversed(layers):
        if layer.opaque or layer.operation is None:
            return None
        if layer.operation.widths[1] is not None:
            return layer.operation.widths[1]
    return None
