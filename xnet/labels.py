"""Labels as they come, names or numbers, and what a network learns of them.

Classes are numbered in the order of their names, which of numbers is that of the numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from xnet.errors import DatasetError
from xnet.schema import Task

FEW = 20
"""Whole numbers of which there are no more different ones are taken for classes."""

Refuse = Callable[[int, str], NoReturn]
"""Raises what is wrong with the value of that number among those that differ."""


def number(value: Any) -> float | None:
    """A label as a number, if it is one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def name(value: Any) -> str:
    """What a class is called: 1, 1.0 and "1" are one class, "1"."""
    if isinstance(value, bool):
        return str(value).lower()
    as_number = number(value)
    if as_number is not None and as_number.is_integer() and abs(as_number) < 2**53:
        return str(int(as_number))
    return str(value)


def task_of(values: Sequence[Any], samples: int, where: str) -> str:
    """Whether labels, of which these are the different ones, are classes or numbers.

    Texts are classes; so are whole numbers, where at most `FEW` of them differ. Other numbers are
    to be learnt as such.

    Raises
    ------
    DatasetError
        There are texts, but hardly two samples have the same.
    """
    numbers = [number(v) for v in values]
    if all(n is not None for n in numbers):
        whole = all(n is not None and n.is_integer() for n in numbers)
        return Task.classification if whole and len(values) <= FEW else Task.regression
    if len(values) > max(FEW, samples // 2):
        text = next(v for v, n in zip(values, numbers, strict=True) if n is None)
        raise DatasetError(
            f"{where}: {len(values)} different labels, one of them {str(text)!r:.40}: that is no "
            "number, and too many for classes; name the task if they are"
        )
    return Task.classification


def classes_of(values: Sequence[Any], where: str) -> tuple[str, ...]:
    """The names of the classes, in order, of which these are the labels.

    Raises
    ------
    DatasetError
        There are not two.
    """
    by_name = {name(v): number(v) for v in values}
    numbered = all(n is not None for n in by_name.values())
    order = sorted(by_name, key=lambda k: (by_name[k] or 0.0, k) if numbered else k)
    if len(order) < 2:
        only = f"all labels are {order[0]!r}" if order else "there are no labels"
        raise DatasetError(f"{where}: {only}, expected at least two classes")
    return tuple(order)


def encoded(
    values: Sequence[Any], places: NDArray[Any], classes: tuple[str, ...], refuse: Refuse
) -> NDArray[np.int64]:
    """The class of each sample, (N,): of `values` at its place.

    Raises
    ------
    DatasetError
        A class that is none of these, by `refuse`.
    """
    index = {k: c for c, k in enumerate(classes)}
    found = [index.get(str(v), index.get(name(v), -1)) for v in values]
    if -1 in found:
        wrong = found.index(-1)
        known = ", ".join(map(repr, classes[:5])) + (", ..." if len(classes) > 5 else "")
        refuse(wrong, f"{str(values[wrong])!r:.60} is no class that was seen in training: {known}")
    return np.asarray(found, np.int64)[places]
