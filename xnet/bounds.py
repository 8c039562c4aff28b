"""Numbers with their rounding errors: how far a computation may be from the formula it is of.

`Bounds` interprets a formula of `operations` as `formulas.Arrays` does, with numbers that carry
what rounding may have done to them, so that fast mode's bounds come from the very formulas.
"""

import dataclasses
import math
import operator
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

from xnet.formulas import Mathematics

Array: TypeAlias = Any

RANGES = {
    2.0**-24: (2.0**-126, (2 - 2.0**-23) * 2.0**127),
    2.0**-53: (sys.float_info.min, sys.float_info.max),
}
"""The smallest and the largest normal number of a precision, by its unit u."""


def _out_of_range(size: Any, u: float, roundings: int = 1) -> Any:
    """What `roundings` of numbers of at most `size` may be off by besides, out of range.

    A number below the smallest normal one may be taken for 0, as fast arithmetic does: that is
    the eta of Higham 2002, §2.2, for abrupt underflow. One above the largest may be infinite in one
    order of computation and not in another: that has no bound. Zeros are zeros.
    """
    if u not in RANGES:
        return 0.0
    smallest, largest = RANGES[u]
    infinite = _above_zero(size - largest) * 2.0**1000  # 0, or too much for float64
    return roundings * smallest * (size > 0) + infinite


class Bounded:
    """Numbers `v`, and how far `e` a computation in a precision of unit u may be from them.

    The model is (a o b)(1 + d), |d| <= u, for + - * / and sqrt (Higham 2002, "Accuracy and
    Stability of Numerical Algorithms", §2.2); errors are carried along as in his running analysis
    (§3.3). `_out_of_range` has what the model leaves out.
    """

    __array_ufunc__ = None  # NumPy leaves the operators to this class

    def __init__(self, v: Any, e: Any, u: float) -> None:
        self.v, self.e, self.u = v, e, u

    @property
    def shape(self) -> Any:
        """Of the numbers: a backend's generic forms ask for it (`testing.parity`)."""
        return self.v.shape

    def _rounded(self, v: Any, e: Any) -> "Bounded":
        size = abs(v) + e
        return Bounded(v, e + self.u * size + _out_of_range(size, self.u), self.u)

    def _of(self, other: Any) -> "Bounded":
        if isinstance(other, Bounded):
            return other
        # A Python number is rounded to the precision, unless it is a small whole one.
        exact = isinstance(other, int) or float(other).is_integer()
        return Bounded(other, 0.0 if exact else self.u * abs(other), self.u)

    def __add__(self, other: Any) -> "Bounded":
        o = self._of(other)
        return self._rounded(self.v + o.v, self.e + o.e)

    def __sub__(self, other: Any) -> "Bounded":
        o = self._of(other)
        return self._rounded(self.v - o.v, self.e + o.e)

    def __mul__(self, other: Any) -> "Bounded":
        o = self._of(other)
        error = self.e * abs(o.v) + abs(self.v) * o.e + self.e * o.e
        return self._rounded(self.v * o.v, error)

    def __truediv__(self, other: Any) -> "Bounded":
        o = self._of(other)
        quotient, least = self.v / o.v, _above_zero(abs(o.v) - o.e)
        return self._rounded(quotient, (self.e + abs(quotient) * o.e) / least)

    def __neg__(self) -> "Bounded":
        return Bounded(-self.v, self.e, self.u)

    def _compared(self, other: Any, holds: Callable[[Any, Any], Any]) -> "Truth":
        o = self._of(other)
        e = self.e + o.e
        # An error that is no number, as of inf times 0, is no less than one without bound.
        return Truth(holds(self.v, o.v), ~((abs(self.v - o.v) > e) | (e <= 0)))

    def __eq__(self, other: Any) -> Any:
        return self._compared(other, operator.eq)

    def __ne__(self, other: Any) -> Any:
        if other is self:  # whether it is NaN
            return Truth(self.v != self.v, self.v != self.v)
        return self._compared(other, operator.ne)

    __hash__ = object.__hash__


def _reflected(name: str) -> Any:
    return lambda self, other: getattr(operator, name)(self._of(other), self)  # pyright: ignore


def _comparison(holds: Callable[[Any, Any], Any]) -> Any:
    return lambda self, other: self._compared(other, holds)  # pyright: ignore


for _name in ("add", "sub", "mul", "truediv"):
    setattr(Bounded, f"__r{_name}__", _reflected(_name))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Bounded, f"__{_name}__", _comparison(getattr(operator, _name)))


def _above_zero(a: Any) -> Any:
    """a, or 0 where it is less: an error divided by that has no bound."""
    return (a + abs(a)) / 2


@dataclasses.dataclass(frozen=True)
class Truth:
    """What comparisons of bounded numbers say, and where rounding may have them say otherwise."""

    holds: Any
    unsure: Any

    def __and__(self, other: "Truth") -> "Truth":
        return Truth(self.holds & other.holds, self.unsure | other.unsure)

    def __or__(self, other: "Truth") -> "Truth":
        return Truth(self.holds | other.holds, self.unsure | other.unsure)

    def __invert__(self) -> "Truth":
        return Truth(~self.holds, self.unsure)


class Bounds(Mathematics):
    """How far a computation in fast mode may be from the exact one, by the very formula.

    Parameters
    ----------
    xp
        The namespace of the arrays, float64, that stand for the exact numbers.
    u
        Half the distance from 1 to the next number: 2^-24 for float32, 2^-53 for float64. 0 leaves
        the errors that the numbers came with.
    ulps
        How far, in units in the last place, a library's exp and log may be off.
    """

    def __init__(self, xp: Any, u: float, ulps: float = 4.0, training: bool = False) -> None:
        self.xp, self.u, self.training = xp, u, training
        self.off = 2 * ulps * u
        self.kept = SimpleNamespace()

    def take(self, v: Array, e: Any = 0.0) -> Bounded:
        """Numbers that are off by e; those below the normal ones may be taken for 0."""
        smallest, _ = RANGES.get(self.u, (0.0, 0.0))
        lost = self.xp.where(abs(v) < smallest, abs(v), self.xp.zeros_like(v))
        return Bounded(v, lost + e, self.u)

    def gamma(self, n: int) -> float:
        """n u / (1 - n u), the relative error of n roundings in a row (Higham 2002, §3.1)."""
        return n * self.u / (1 - n * self.u)

    def _function(self, v: Array, e: Any) -> Bounded:
        size = abs(v) + e
        return Bounded(v, e + self.off * size + _out_of_range(size, self.u), self.u)

    def exp(self, a: Bounded) -> Bounded:
        """Whose slope is itself."""
        return self._function(self.xp.exp(a.v), self._growth(a))

    def expm1(self, a: Bounded) -> Bounded:
        """As `exp`, with a smaller rounding near 0."""
        return self._function(self.xp.expm1(a.v), self._growth(a))

    def _growth(self, a: Bounded) -> Array:
        """exp(v + e) - exp(v), also where exp(e) is infinite but v far below 0."""
        far = self.xp.exp(a.v + a.e)
        return self.xp.where(a.e > 1, far, self.xp.exp(a.v) * self.xp.expm1(a.e))

    def log(self, a: Bounded) -> Bounded:
        """Whose slope is the inverse."""
        return self._function(self.xp.log(a.v), a.e / _above_zero(a.v - a.e))

    def log1p(self, a: Bounded) -> Bounded:
        """As `log` of one more, with a smaller rounding near 0."""
        return self._function(self.xp.log1p(a.v), a.e / _above_zero(1 + a.v - a.e))

    def sqrt(self, a: Any) -> Any:
        """Whose difference is that of the numbers over the sum of the roots, at most its root."""
        if isinstance(a, int | float):  # no array has to do with it
            return math.sqrt(a)
        root = self.xp.sqrt(a.v)
        e = self.xp.where(a.e > 0, a.e / self.xp.maximum(root, self.xp.sqrt(a.e)), 0 * a.e)
        return a._rounded(root, e)  # pyright: ignore[reportPrivateUsage]

    def abs(self, a: Bounded) -> Bounded:
        """Exact."""
        return Bounded(abs(a.v), a.e, self.u)

    def where(self, condition: Truth, a: Any, b: Any) -> Bounded:
        """Either, where rounding may decide the condition otherwise."""
        some = a if isinstance(a, Bounded) else b
        a, b = some._of(a), some._of(b)  # pyright: ignore[reportPrivateUsage]
        v = self.xp.where(condition.holds, a.v, b.v)
        e = self.xp.where(condition.holds, a.e, b.e)
        either = abs(a.v - b.v) + self.xp.maximum(a.e + 0 * v, b.e + 0 * v)
        return Bounded(v, self.xp.where(condition.unsure, either, e), self.u)

    def max(self, a: Bounded) -> Bounded:
        """Of each row."""
        v, e = (self.xp.max(x, axis=-1, keepdims=True) for x in (a.v, a.e))
        return Bounded(v, e, self.u)

    def sum(self, a: Bounded) -> Bounded:
        """Along each row."""
        return self._sum(a, -1, True)

    def total(self, a: Bounded) -> Bounded:
        """Over the batch."""
        return self._sum(a, 0, False)

    def _sum(self, a: Bounded, axis: int, keep: bool) -> Bounded:
        parts = a.v, a.e, abs(a.v) + a.e
        v, e, size = (self.xp.sum(x, axis=axis, keepdims=keep) for x in parts)
        n = a.v.shape[axis]
        return Bounded(v, e + self.gamma(n) * size + _out_of_range(size, self.u, n), self.u)

    def matmul(self, a: Bounded, b: Bounded) -> Bounded:
        """Each number a sum of products, in any order."""
        A, B = abs(a.v) + a.e, abs(b.v) + b.e
        n, size = a.v.shape[1] + 1, A @ B
        error = A @ b.e + a.e @ abs(b.v) + self.gamma(n) * size
        return Bounded(a.v @ b.v, error + _out_of_range(size, self.u, 2 * n), self.u)

    def T(self, a: Bounded) -> Bounded:  # noqa: N802
        """The transpose of a matrix."""
        return Bounded(a.v.T, a.e.T, self.u)

    def width(self, a: Bounded) -> int:
        """Numbers in a row."""
        return a.v.shape[-1]

    def count(self, a: Bounded) -> int:
        """Rows in the batch."""
        return a.v.shape[0]

    def row(self, values: Sequence[float], like: Bounded) -> Bounded:
        """Numbers as a row, rounded."""
        v = self.xp.asarray(list(values))
        return Bounded(v, self.u * abs(v), self.u)
