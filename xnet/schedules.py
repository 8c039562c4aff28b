"""Schedules of the learning rate: what it is multiplied by at each step, each one equation.

A schedule is a function of how many steps were taken and of the history alone: it remembers
nothing, so a run that goes on, or is resumed, is the same run. Python's own arithmetic gives the
same rates on every processor. A class registers by being defined.
"""

import dataclasses
import math
import operator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

if TYPE_CHECKING:
    from xnet.training import History

__all__ = ["SCHEDULES", "Cosine", "Plateau", "Schedule", "Step", "Warmup"]

SCHEDULES: dict[str, type["Schedule"]] = {}
"""Every schedule by its name in lower case."""


@dataclass_transform(frozen_default=True)
class Schedule:
    """Base: a class's annotated attributes are its settings.

    Examples
    --------
    >>> import xnet
    >>> class Halving(xnet.schedules.Schedule):
    ...     def factor(self, n, total, history):
    ...         return 0.5 ** n
    >>> [Halving().factor(n, 10, xnet.History()) for n in range(4)]
    [1.0, 0.5, 0.25, 0.125]
    """

    each_step: ClassVar[bool] = True
    """Whether the factor changes within an epoch."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True)(cls)
        SCHEDULES[cls.__name__.lower()] = cls

    def factor(self, n: int, total: int, history: "History") -> float:
        """What the optimizer's own learning rate is multiplied by.

        Parameters
        ----------
        n
            Steps that were taken; 0 before the first.
        total
            Steps of the whole run.
        history
            What was recorded by then.
        """
        raise NotImplementedError(f"{type(self).__name__} has no factor")


def _check(schedule: Schedule, least: int = 1, **counts: Any) -> None:
    """Refuse settings that are no whole numbers of at least so much."""
    for name, count in counts.items():
        try:
            count = operator.index(count)
        except TypeError:
            raise TypeError(
                f"{type(schedule).__name__}: {name} is {count!r}, expected a whole number"
            ) from None
        if count < least:
            raise ValueError(
                f"{type(schedule).__name__}: {name} is {count}, expected at least {least}"
            )


def _check_share(schedule: Schedule, **shares: float) -> None:
    """Refuse settings outside [0, 1]."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(
                f"{type(schedule).__name__}: {name} is {share}, expected a number from 0 to 1"
            )


class Step(Schedule):
    """Times `drop` after every so many steps: drop^floor(n / every).

    Parameters
    ----------
    every
        Steps between two drops.
    drop
        From 0 to 1.

    Examples
    --------
    >>> import xnet
    >>> schedule = xnet.schedules.Step(every=2, drop=0.5)
    >>> [schedule.factor(n, 6, xnet.History()) for n in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """

    every: int
    drop: float = 0.1

    def __post_init__(self) -> None:
        _check(self, every=self.every)
        _check_share(self, drop=self.drop)

    def factor(self, n: int, total: int, history: "History") -> float:
        """drop^floor(n / every)."""
        return _power(self.drop, n // self.every)


class Cosine(Schedule):
    """Down along half a cosine: end + (1 - end) (1 + cos(pi n / steps)) / 2.

    Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5,
    without restarts.

    Parameters
    ----------
    steps
        When `end` is reached, which stays; None for the whole run's.
    end
        The last factor, from 0 to 1.

    Examples
    --------
    >>> import xnet
    >>> schedule = xnet.schedules.Cosine()
    >>> [round(schedule.factor(n, 4, xnet.History()), 8) for n in range(5)]
    [1.0, 0.85355339, 0.5, 0.14644661, 0.0]
    """

    steps: int | None = None
    end: float = 0.0

    def __post_init__(self) -> None:
        if self.steps is not None:
            _check(self, steps=self.steps)
        _check_share(self, end=self.end)

    def factor(self, n: int, total: int, history: "History") -> float:
        """end + (1 - end) (1 + cos(pi n / steps)) / 2."""
        done = min(1.0, n / (self.steps or total))
        return self.end + (1.0 - self.end) * (0.5 * (1.0 + _cos_of_pi_times(done)))


class Warmup(Schedule):
    """Up in a line from 1 / steps, (n + 1) / steps, times what another schedule says.

    Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2.

    Parameters
    ----------
    steps
        When the whole rate is reached.
    then
        Another schedule, whose factor counts from the first step on; None for 1.

    Examples
    --------
    >>> import xnet
    >>> schedule = xnet.schedules.Warmup(4, then=xnet.schedules.Step(every=5, drop=0.5))
    >>> [schedule.factor(n, 8, xnet.History()) for n in range(7)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.5]
    """

    steps: int
    then: Schedule | None = None

    def __post_init__(self) -> None:
        _check(self, steps=self.steps)
        if self.then is not None and not isinstance(self.then, Schedule):  # pyright: ignore
            raise TypeError(f"Warmup: then is {self.then!r}, expected a Schedule or None")

    def factor(self, n: int, total: int, history: "History") -> float:
        """min(1, (n + 1) / steps) times the other's factor."""
        then = 1.0 if self.then is None else self.then.factor(n, total, history)
        return min(1.0, (n + 1) / self.steps) * then


class Plateau(Schedule):
    """Times `drop` when so many epochs in a row were no better than the best before them.

    Epochs are judged by accuracy or R² on the validation data, where there are such, else by the
    mean loss of their mini-batches. After a drop the count begins anew.

    Parameters
    ----------
    patience
        Epochs.
    drop
        From 0 to 1.
    least
        Below this factor it does not go.

    Examples
    --------
    >>> import xnet
    >>> schedule = xnet.schedules.Plateau(patience=2, drop=0.5)
    >>> accuracies = [0.7, 0.8, 0.8, 0.75, 0.9]
    >>> histories = [xnet.History(validation_accuracy=accuracies[:n]) for n in range(1, 6)]
    >>> [schedule.factor(n, 5, history) for n, history in enumerate(histories)]
    [1.0, 1.0, 1.0, 0.5, 0.5]
    """

    patience: int = 10
    drop: float = 0.1
    least: float = 0.0
    each_step = False

    def __post_init__(self) -> None:
        _check(self, patience=self.patience)
        _check_share(self, drop=self.drop, least=self.least)

    def factor(self, n: int, total: int, history: "History") -> float:
        """drop^k after k such times, at least `least`."""
        best, since, times = -math.inf, 0, 0
        for score in _scores(history):
            best, since = (score, 0) if score > best else (best, since + 1)
            if since == self.patience:
                since, times = 0, times + 1
        return max(self.least, _power(self.drop, times))


def _scores(history: "History") -> list[float]:
    """Of each epoch, the more the better."""
    if validated := history.taken("validation"):
        return validated
    ends = [0, *history.epoch_ends]
    return [-math.fsum(history.loss[start:end]) / (end - start) for start, end in pairwise(ends)]


def _power(base: float, exponent: int) -> float:
    """By squaring: every processor multiplies alike, the C library's pow is its own."""
    power = 1.0
    while exponent:
        if exponent % 2:
            power *= base
        base, exponent = base * base, exponent // 2
    return power


def _cos_of_pi_times(u: float) -> float:
    """cos(pi u) for u in [0, 1], within 2 units in the last place of 1: Taylor's, about 1/4's."""
    if u > 0.5:
        return -_cos_of_pi_times(1.0 - u)
    if u > 0.25:  # cos(pi u) = sin(pi (1/2 - u))
        x = math.pi * (0.5 - u)
        first, terms = x, range(3, 21, 2)
    else:
        x = math.pi * u
        first, terms = 1.0, range(2, 20, 2)
    total = term = first
    for k in terms:
        term *= -x * x / (k * (k - 1))
        total += term
    return total
