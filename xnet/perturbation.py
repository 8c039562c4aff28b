"""The loss at perturbed weights, re-evaluating only what a perturbation changes.

A network's numerical gradient asks for two losses for every weight. Perturbing W[i, j] of one
affine layer changes column j of its output, by h times column i of its input, and nothing before
it: so the forward pass need not begin again. The samples whose input i is 0 do not change at all.
The next affine layer changes by a product of one column and one row. From there on every loss is
evaluated in full.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

Step: TypeAlias = tuple[Any, ...]
"""A kernel of the backend by name, and the arrays it takes after its input: ("affine", W, b)."""

LARGEST_STACK = 1 << 21
"""Numbers, at most, in a stack of perturbed arrays: 16 MiB in float64."""


SPARE = 1 << 20
"""Bytes, at most, for Python's own objects meanwhile."""


def loss_differences(
    backend: Any, x: Any, a: Any, steps: list[Step], loss: str, t: Any, h: float
) -> Any:
    """Generic form of `Backend.loss_differences`, in terms of the backend's kernels."""
    xp = backend.xp
    first = next((k for k, step in enumerate(steps) if step[0] == "affine"), len(steps))
    before, rest = steps[:first], steps[first + 1 :]
    W = steps[first][1] if first < len(steps) else None
    z = run(backend, before, a)
    after = z if W is None else backend.affine(z, *steps[first][1:])
    widths = [after.shape[1], *(step[1].shape[1] for step in rest if step[0] == "affine")]
    unit = xp.eye(a.shape[1], dtype=xp.bool)

    def of_input(column: Any) -> Any:
        """The differences, (M,), for the weights from the input `column` (N,)."""
        rows = xp.nonzero(column)[0]
        step = h * xp.take(column, rows)[:, None]
        a_rows, z_rows, after_rows, t_rows = (xp.take(v, rows, axis=0) for v in (a, z, after, t))
        size = max(1, LARGEST_STACK // max(1, 2 * rows.shape[0] * max(widths)))
        parts: list[Any] = []
        for start in range(0, a.shape[1], size):
            j = slice(start, min(start + size, a.shape[1]))
            # Axes: the sign of h, the sample, the perturbed column, then a layer's units.
            column_z = run(backend, before, xp.stack([a_rows[:, j] + step, a_rows[:, j] - step]))
            if W is None:
                perturbed = xp.where(unit[j, :], column_z[..., None], z_rows[:, None, :])
            else:
                change = column_z - z_rows[:, j]
                perturbed = after_rows[:, None, :] + change[..., None] * W[j, :]
            losses = backend.row_losses(run(backend, rest, perturbed), loss, t_rows[:, None, :])
            parts.append(backend.sum(losses[0, ...] - losses[1, ...], axis=0))
        return xp.concat(parts) / a.shape[0]

    inputs = [x[:, i] for i in range(x.shape[1])]
    return xp.stack([*map(of_input, inputs), of_input(xp.ones_like(a[:, 0]))])


def memory(samples: int, widths: Sequence[int], itemsize: int = 8) -> int:
    """How many bytes a numerical gradient takes at most, generic form, beside what was there.

    For affine layers from `widths[0]` inputs to `widths[-1]` scores. A stack holds all perturbed
    columns of a layer for one of its inputs, with the widest of what lies behind for each; or
    LARGEST_STACK numbers if that is less; or one column if that is more. At most six are alive at
    a time: a layer's input and output and what an activation, or the softmax, makes on the way.
    Beside them: a few copies of each layer's output and gradient, and Python's objects.
    """
    stack = 0
    for k, width in enumerate(widths[1:], start=1):
        column = 2 * samples * max(widths[k + 1 :], default=width)
        stack = max(stack, min(width * column, max(LARGEST_STACK, column)))
    outputs = samples * sum(widths)
    gradients = sum((inputs + 1) * width for inputs, width in pairwise(widths))
    return itemsize * (6 * stack + 6 * outputs + 4 * gradients) + max(widths) ** 2 + SPARE


def run(backend: Any, steps: list[Step], x: Any) -> Any:
    """`x` (..., D) through the kernels that `steps` name."""
    for name, *arrays in steps:
        if name == "affine":
            rows = backend.affine(backend.xp.reshape(x, (-1, x.shape[-1])), *arrays)
            x = backend.xp.reshape(rows, (*x.shape[:-1], rows.shape[-1]))
        else:
            x = getattr(backend, name)(x)
    return x
