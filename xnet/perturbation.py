"""The loss at perturbed weights, re-evaluating only what a perturbation changes.

A network's numerical gradient asks for two losses for every weight. Perturbing W[i, j] of one
product changes column j of its output, by h times column i of its input, and nothing before
it: so the forward pass need not begin again. The samples whose input i is 0 do not change at all.
The next product changes by one column times one row. From there on every loss is evaluated in full.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["LARGEST_STACK", "memory"]

LARGEST_STACK = 1 << 21
"""Numbers, at most, in a stack of perturbed arrays: 16 MiB in float64."""

SPARE = 1 << 20
"""Bytes, at most, for Python's own objects meanwhile."""


def split(operations: Sequence[Any]) -> int:
    """How many pointwise operations there are before the first of another kind."""
    kinds = (k for k, operation in enumerate(operations) if operation.fuses != "pointwise")
    return next(kinds, len(operations))


def loss_differences(backend: Any, x: Any, a: Any, rest: Any, loss: Any, t: Any, h: float) -> Any:
    """Generic form of `Backend.loss_differences`: stacks of perturbed arrays."""
    xp = backend.xp
    first = split(rest.operations)
    before, behind = list(rest)[:first], list(rest)[first:]
    W = None
    z = through(backend, before, a)
    after = z
    if behind and behind[0][0].fuses == "product":
        W, after = behind[0][1][0], through(backend, behind[:1], z)
        behind = behind[1:]
    widths = [after.shape[1], *(operation.widths[1] or 1 for operation, _ in behind)]
    unit = xp.eye(a.shape[1], dtype=xp.bool)

    def of_input(column: Any) -> Any:
        """The differences, (M,), for the weights from the input `column` (N,)."""
        rows = xp.nonzero(column)[0]
        some = [column, a, z, after, t]
        if rows.shape[0] < column.shape[0]:
            some = [xp.take(array, rows, axis=0) for array in some]
        of_rows, a_rows, z_rows, after_rows, t_rows = some
        step = h * of_rows[:, None]
        size = max(1, LARGEST_STACK // max(1, 2 * rows.shape[0] * max(widths)))
        parts: list[Any] = []
        for start in range(0, a.shape[1], size):
            j = slice(start, min(start + size, a.shape[1]))
            # Axes: the sign of h, the sample, the perturbed column, then a layer's units.
            moved = xp.stack([a_rows[:, j] + step, a_rows[:, j] - step])
            column_z = through(backend, before, moved)
            if W is None:
                perturbed = xp.where(unit[j, :], column_z[..., None], z_rows[:, None, :])
            else:
                change = column_z - z_rows[:, j]
                perturbed = after_rows[:, None, :] + change[..., None] * W[j, :]
            scores = through(backend, behind, perturbed)
            losses = backend.row_losses(loss, scores, t_rows[:, None, :])
            parts.append(backend.sum(losses[0, ...] - losses[1, ...], axis=0))
        return xp.concat(parts) / a.shape[0]

    inputs = [x[:, i] for i in range(x.shape[1])]
    return xp.stack([*map(of_input, inputs), of_input(xp.ones_like(a[:, 0]))])


def parameter_differences(
    backend: Any, x: Any, steps: list[Any], loss: Any, t: Any, h: float
) -> list[Any]:
    """L(w + h) - L(w - h) for every parameter w of the first of `steps`, whatever it is.

    `steps` are operations with their parameters, from the perturbed one, whose input is x (N, D),
    to the scores. Each loss is evaluated from that layer on; where there are several ranks, each
    evaluates a share of them.
    """
    xp = backend.xp
    (operation, parameters), *rest = steps
    found: list[Any] = []
    for k, W in enumerate(parameters):
        size = math.prod(W.shape)
        flat = xp.reshape(W, (-1,))
        differences: list[Any] = []
        for i in backend.ranks.span(size):
            here = xp.arange(size, device=W.device) == i
            losses: list[Any] = []
            for sign in (h, -h):
                moved = xp.reshape(xp.where(here, flat + sign, flat), W.shape)
                changed = (*parameters[:k], moved, *parameters[k + 1 :])
                scores = through(backend, [(operation, changed), *rest], x)
                losses.append(backend.sum(backend.row_losses(loss, scores, t)))
            differences.append((losses[0] - losses[1]) / x.shape[0])
        mine = xp.stack(differences) if differences else flat[:0]
        found.append(xp.reshape(backend.ranks.whole(backend, mine), W.shape))
    return found


def memory(samples: int, widths: Sequence[int], itemsize: int = 8) -> int:
    """How many bytes a numerical gradient takes at most, generic form, beside what was there.

    For products from `widths[0]` inputs to `widths[-1]` scores. A stack holds all perturbed
    columns of a layer for one of its inputs, with the widest of what lies behind for each; or
    LARGEST_STACK numbers if that is less; or one column if that is more. At most eight are alive at
    a time: a layer's input and output and what an activation, or the softmax, makes on the way.
    Beside them: eight copies of each layer's output and four of its gradient, a byte for each pair
    of units of the widest layer, and Python's objects.

    Parameters
    ----------
    samples
        In the batch.
    widths
        Features of the input, units of each layer, and scores.
    itemsize
        Bytes of a number: 8 for float64, 4 for float32.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> import xnet
    >>> xnet.perturbation.memory(100, [784, 50, 10])
    14737152
    """
    columns = [
        (width, 2 * samples * max(widths[k + 1 :], default=width))
        for k, width in enumerate(widths[1:], start=1)
    ]
    stack = max(min(width * column, max(LARGEST_STACK, column)) for width, column in columns)
    outputs = samples * sum(widths)
    gradients = sum((inputs + 1) * width for inputs, width in pairwise(widths))
    return itemsize * (8 * stack + 8 * outputs + 4 * gradients) + max(widths) ** 2 + SPARE


def through(backend: Any, steps: Iterable[Any], x: Any) -> Any:
    """`x` (..., D) through operations with their parameters."""
    for operation, parameters in steps:
        rows = backend.run(operation, backend.xp.reshape(x, (-1, x.shape[-1])), *parameters)
        x = backend.xp.reshape(rows, (*x.shape[:-1], rows.shape[1]))
    return x
