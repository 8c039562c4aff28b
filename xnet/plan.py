"""A network's layers as runs that a backend takes in one call, and the layers between them."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, TypeAlias

from xnet.backend import Array, Backend, Gradients, Run
from xnet.layers import Layer, LossLayer, check_gradient, numbered
from xnet.operations import Loss

__all__ = ["Part", "Plan"]


class Part:
    """A run, with the layers that it is made of; it is asked as a layer is.

    Parameters
    ----------
    backend
        What takes the run.
    layers
        What it is made of.
    first
        Whether it begins the network, so that nobody asks for the gradient by its input.

    Examples
    --------
    >>> import xnet
    >>> from xnet.plan import Part, Plan
    >>> net = xnet.TwoLayerNet(2, 3, 2, backend="numpy")
    >>> plan = Plan(net.backend, list(net.layers), net.loss_layer)
    >>> [segment.layers for segment in plan.segments if isinstance(segment, Part)]
    [[Affine(2, 3), Sigmoid(), Affine(3, 2)]]
    """

    def __init__(self, backend: Backend, layers: Sequence[Layer], first: bool) -> None:
        self.backend, self.layers, self.first = backend, layers, first
        operations = [layer.operation for layer in layers if layer.operation is not None]
        parameters: list[tuple[Array, ...]] = [tuple(layer.params.values()) for layer in layers]
        self.run = Run(operations, parameters)
        self.memory: Any = None
        self._door = door(layers)

    def rows(self, x: Array) -> Array:
        """`x` as the first of the layers takes it that takes not just any shape, checked."""
        return self._door.rows(x)

    def __call__(self, x: Array, loss: Loss | None = None) -> Array:
        """The output or, with a loss, what that predicts."""
        return self.backend.forward(self.run, self.rows(x), loss)

    def forward(self, x: Array) -> Array:
        """The output in training."""
        out, kept = self.backend.forward_keeping(self.run, self.rows(x))
        self.memory = kept, x.shape, out
        return out

    def backward(self, dout: Array) -> Array:
        """The gradient by the input of the last `forward`; those by parameters go to the layers."""
        kept, shape, out = self.memory
        check_gradient(repr(self.layers[-1]), dout, out.shape, out.dtype)
        return self._found(shape, *self.backend.backward(self.run, kept, dout, self.first))

    def end(self, x: Array, t: Array, loss: Loss) -> tuple[float, Array]:
        """The loss of a network that ends here, for targets t, and the gradient by x."""
        rows = self.rows(x)
        found = self.backend.loss_and_gradients(self.run, rows, t, loss, self.first)
        return float(found[0]), self._found(x.shape, *found[1:])

    def _found(self, shape: Any, dx: Array | None, gradients: Gradients) -> Array:
        for layer, found in zip(self.layers, gradients, strict=True):
            layer.grads = dict(zip(layer.params, found, strict=True))
        return dx if dx is None else self.backend.xp.reshape(dx, shape)


Segment: TypeAlias = Part | Layer


def door(layers: Sequence[Layer]) -> Layer:
    """The first of these layers that takes not just any shape, so that it says what x must be."""
    for layer in layers:
        operation = layer.operation
        if operation is None or operation.fuses != "pointwise" or layer.params:
            return layer
    return layers[0]


def is_plain(layer: Layer) -> bool:
    """Whether a layer is its operation and that treats each row on its own, keeping nothing."""
    operation = layer.operation
    if layer.opaque or operation is None or any(W is None for W in layer.params.values()):
        return False
    return operation.is_plain()


class Plan:
    """The segments of a network, valid as long as its layers have the same arrays.

    Parameters
    ----------
    backend
        What takes the runs.
    layers, loss
        The network's.

    Attributes
    ----------
    segments
        In order: what goes to the backend whole, and layers that are asked one by one.
    whole
        The run, where one run is all of the network.
    end
        The last segment, where it takes the loss with it.
    places, names
        Where the parameters are, and their names, as the network numbers them.
    loss
        The loss as the backend takes it; None if the loss layer computes otherwise.

    Examples
    --------
    >>> import xnet
    >>> from xnet.layers import Affine, Dropout, ReLU
    >>> from xnet.plan import Plan
    >>> net = xnet.Network([Affine(4, 3), ReLU(), Dropout(0.2), Affine(3, 2)], backend="numpy")
    >>> for segment in Plan(net.backend, list(net.layers), net.loss_layer).segments:
    ...     print(getattr(segment, "layers", segment))
    [Affine(4, 3), ReLU()]
    Dropout(0.2)
    [Affine(3, 2)]
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
            count = 0
            if stop > start:
                part = Part(backend, layers[start:stop], not start)
                count = backend.takes(part.run)
                if 0 < count < stop - start:
                    part = Part(backend, layers[start : start + count], not start)
                self.segments.append(part if count else layers[start])
            else:
                self.segments.append(layers[start])
            start += max(1, count)
        self.loss: Loss | None = None if loss.opaque else loss.operation
        last = self.segments[-1] if isinstance(self.segments[-1], Part) else None
        self.outputs = outputs(layers)
        self.end: Part | None = last if self.loss and self.outputs else None
        self.whole: Run | None = last.run if last and len(self.segments) == 1 else None
        self.inputs = _inputs(layers)
        # Without parameters no dtype's equal: to NumPy None is float64.
        self.dtype: Any = next((W.dtype for _, _, W in self.arrays), object())

    def is_stale(self) -> bool:  # a loop, for `any` takes three times as long
        """Whether a parameter has been replaced."""
        for params, key, W in self.arrays:  # noqa: SIM110
            if params[key] is not W:
                return True
        return False


def outputs(layers: Sequence[Layer]) -> int | None:
    """Columns that the network gives, if its layers say so."""
    return reduce(lambda known, layer: layer.gives(known), layers, None)


def _inputs(layers: Sequence[Layer]) -> int | None:
    """Columns that the network expects, if its layers say so before one that may change them."""
    for layer in layers:
        width = layer.operation and layer.operation.widths[0]
        if width is not None or layer.opaque:
            return width
    return None
