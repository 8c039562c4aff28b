"""Runs of layers on NumPy, in fast mode: what each layer calls, looked up once."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from xnet.backend import Array, Gradients, Run
from xnet.operations import Loss
from xnet_numpy import generated

SMALL = 1 << 14
"""Numbers of a product below which `dot` is the faster: it is called in a third of the time of `@`,
but clears what it will write."""


def product(a: Array, b: Array, out: Array | None = None) -> Array:
    """A b, both of two dimensions."""
    # `@` does not take an outer product to BLAS.
    dot = len(a) * b.shape[1] < SMALL or len(b) == 1
    return a.dot(b, out) if dot else np.matmul(a, b, out)


def affine(x: Array, W: Array, b: Array) -> Array:
    """x W + b, without a temporary."""
    out = product(x, W)
    out += b
    return out


def affine_gradients(dout: Array, x: Array, dW: Array | None = None) -> tuple[Array, Array]:
    """Gradients of x W + b by W, in `dW` if there is such an array, and by b."""
    return product(x.T, dout, dW), np.add.reduce(dout, axis=0)


Call: TypeAlias = tuple[Callable[..., Array], tuple[Any, ...]]
"""A function, and its arguments after the arrays."""


class Prepared:
    """What each operation of a run calls, and with what beside its input.

    Attributes
    ----------
    forth, back
        By operation; `back` is None for a product, whose gradients are `affine_gradients` and more.
    last
        What is called for a loss's predictions.
    room
        Where training steps put the gradients by the weights: a new array of that size each time
        is memory that the system takes back and must clear again.
    """

    def __init__(self, run: Run) -> None:
        self.forth: list[Call] = []
        self.back: list[Call | None] = []
        self.last: dict[Loss, Call] = {}
        self.weights: list[Array] = [arrays[0] if arrays else None for arrays in run.parameters]
        self.room: list[Array | None] = []
        for operation, parameters in run:
            if operation.fuses == "product":
                self.forth.append((affine, parameters))
                self.back.append(None)
            else:
                call, values = generated.forward(operation)
                self.forth.append((call, values(operation, 0)))
                call, values = generated.backward(operation)
                self.back.append((call, values(operation, 0)))

    def through(self, x: Array, loss: Loss | None) -> Array:
        """The run's output, or what a loss predicts of it."""
        for call, more in self.forth:
            x = call(x, *more)
        if loss is None:
            return x
        last = self.last.get(loss)
        if last is None:
            call, values = generated.predicted(loss)
            last = self.last[loss] = call, values(loss, 0)
        return last[0](x, *last[1])

    def keeping(self, x: Array) -> list[Array]:
        """The run's input and every operation's output."""
        outputs = [x]
        for call, more in self.forth:
            x = call(x, *more)
            outputs.append(x)
        return outputs

    def backward_in_room(self, outputs: list[Array], dout: Array) -> Gradients:
        """The gradients of a whole network, until the next ones are asked for."""
        if not self.room:
            self.room = [None if W is None else np.empty_like(W, order="C") for W in self.weights]
        return self.backward(outputs, dout, True, self.room)[1]

    def backward(
        self,
        outputs: list[Array],
        dout: Array,
        first: bool,
        room: Sequence[Array | None] | None = None,
    ) -> tuple[Array | None, Gradients]:
        """As `Backend.backward`, with arrays for the gradients by the weights if there are such."""
        gradients: Gradients = []
        for k in range(len(self.back) - 1, -1, -1):
            back, x = self.back[k], outputs[k]
            if back is not None:
                dout = back[0](dout, x, outputs[k + 1], *back[1])
                gradients.append(())
                continue
            gradients.append(affine_gradients(dout, x, room and room[k]))
            if first and k == 0:
                return None, gradients[::-1]
            dout = product(dout, self.weights[k].T)
        return dout, gradients[::-1]
