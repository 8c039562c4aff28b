"""Partial sums and products: a whole in parts, rounded once, to the very bits of the whole.

In reproducible mode a sum, or a product of matrices over its contracted axis, is made of slices
whose sums are exact (`xnet.exact`). So it can be taken in parts: by several processes, machines, or
pieces of a file. Each part cuts its numbers in the same places, which takes that all agree on a
`Scale` first, from the largest numbers and the count of terms of all of them. What each then has is
a `Partial`: float64 numbers that are whole in one unit. Partials are added without rounding, so in
any order and grouping; the last one is `rounded`, once, and has the very bits that
`Backend.sum` and `Backend.matmul`, or `xnet.reproducible.sum` and `matmul`, give of the whole.

Both reductions are those that every message-passing library has: a `Scale` is merged by the maximum
of its `maxima` and the sum of its `terms`, a `Partial` by the sum of its `numbers`. The addition of
float64 numbers is exact there, whoever does it in whatever tree.

**How long may a whole be?** A partial of order t of a product is a sum of at most K (S + 2) / 4
products of two slices of beta bits, K the contracted length of the whole and S the number of
slices, which `exact.product_slices` chooses so that this stays within 2^53: S is 2 for float32 up
to K = 2^21, 3 for float64 up to 6,553, and more beyond. A sum of n terms has slices of
53 - ceil(log2 n) bits, and as many as that takes (`exact.sum_slices`). Both depend on the whole's
length alone: not on how many parts there are, nor how long each is; with ever longer wholes there
are more slices, never inexact ones. A product so takes K up to 2^47, where slices have one bit.

**How much is sent?** S float64 numbers for each number of the result. Of a product these are 4
times the bytes of the result for float32 and 3 times for float64; of a sum twice, up to 2^14 terms
in float32 and 2^17 in float64, and for longer ones 4 times and 3 times. Before them go N + M maxima
for a product (N, M), or one for each sum. Where a whole holds infinities or NaN, three counts more
for each number say what they make of it.

Examples
--------
>>> import numpy as np
>>> from xnet import partials
>>> a = np.random.default_rng(0).standard_normal((1000, 3)).astype("float32")
>>> shards = a[:10], a[10:600], a[600:]
>>> scale = partials.merged([partials.sum_scale(shard, axis=0) for shard in shards])
>>> whole = partials.added([scale.partial(shard) for shard in reversed(shards)])
>>> import xnet
>>> with xnet.use_backend("numpy", reproducible=True) as backend:
...     bool((whole.rounded() == backend.sum(a, axis=0)).all())
True
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from xnet import exact
from xnet.arguments import taken
from xnet.backend import Array, Backend

__all__ = ["Partial", "Scale", "added", "merged", "product_scale", "sum_scale"]

NON_FINITE = 3
"""Counts of inf, -inf and NaN, behind the slices' sums of a whole that holds such."""


@dataclass(frozen=True, eq=False)
class Scale:
    """What all parts of a whole have to agree on before they are cut.

    Made by `sum_scale` and `product_scale` of one part, and merged with those of the others.

    Parameters
    ----------
    backend
        Whose arrays the parts here are.
    dtype
        ``"float32"`` or ``"float64"``: the parts' and the result's.
    axes
        Of a sum, those that are summed over; () for a product.
    shapes
        Of the largest magnitudes: one array for a sum, with the summed axes kept as 1; for a
        product (N, 1) and (1, M).
    terms
        How many numbers, or products, each number of the result is the sum of.
    maxima
        float64, 1-d, on the backend: 1 if there is a number that is not finite, else 0, and then
        the largest magnitudes of those that are, in the order of `shapes`.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import partials
    >>> first = partials.sum_scale(np.array([1e16, 1.0]))
    >>> second = partials.sum_scale(np.array([-1e16, 1.0]))
    >>> scale = first.merged(second)
    >>> scale.terms, scale.maxima.tolist(), scale.shape, scale.slices
    (4, [0.0, 1e+16], (), 2)
    """

    backend: Backend
    dtype: str
    axes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    terms: int
    maxima: Array

    @property
    def finite(self) -> bool:
        """Whether all numbers of all parts are finite."""
        return float(self.maxima[0]) == 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        if len(self.shapes) == 2:
            return self.shapes[0][0], self.shapes[1][1]
        kept = enumerate(self.shapes[0])
        return tuple(size for k, size in kept if k not in self.axes)

    @property
    def slices(self) -> int:
        """How many slices the numbers are cut into."""
        choose = exact.sum_slices if self.axes else exact.product_slices
        return choose(max(self.terms, 1), self.dtype)[0]

    def merged(self, other: "Scale") -> "Scale":
        """That of both parts together: associative and commutative.

        Raises
        ------
        ValueError
            They are of wholes of another kind, dtype or shape.
        """
        self._check_like(other, "merged: the scales")
        xp = self.backend.xp
        maxima = xp.maximum(self.maxima, other.maxima)
        return replace(self, maxima=maxima, terms=self.terms + other.terms)

    def agreed(self, maxima: Array, terms: int) -> "Scale":
        """The same, with the `maxima` and `terms` that a reduction over all parts has found."""
        if maxima.shape != self.maxima.shape:
            shapes = f"{tuple(maxima.shape)}, expected {tuple(self.maxima.shape)}"
            raise ValueError(f"agreed: maxima have shape {shapes}")
        if terms < 0 or not bool(self.backend.xp.all(maxima >= 0)):
            raise ValueError(f"agreed: terms are {terms}, or maxima hold NaN or what is below 0")
        return replace(self, maxima=self.backend.asarray(maxima, "float64"), terms=int(terms))

    def partial(self, a: Array, b: Array | None = None) -> "Partial":
        """What a part contributes, unrounded.

        Parameters
        ----------
        a, b
            The part: of a sum `a` alone, of a product (N, K') and (K', M), the K' of all parts
            adding up to the whole's K. K' may be 0.

        Raises
        ------
        ValueError
            A part that is of another shape, or larger than what was agreed on.
        TypeError
            One of another dtype.

        Examples
        --------
        >>> import numpy as np
        >>> from xnet import partials
        >>> a, b = np.array([[0.1, 0.2, 0.3]]), np.array([[1.0], [2.0], [3.0]])
        >>> parts = (a[:, :1], b[:1]), (a[:, 1:], b[1:])
        >>> scale = partials.merged(partials.product_scale(*part) for part in parts)
        >>> whole = scale.partial(*parts[0]) + scale.partial(*parts[1])
        >>> whole.rounded().tolist()
        [[1.4]]
        """
        given = (a,) if b is None else (a, b)
        if len(given) != len(self.shapes):
            kind = "a sum's part is one array" if self.axes else "a product's part is two arrays"
            raise ValueError(f"partial: {len(given)} arrays were given, {kind}")
        own = sum_scale(a, self.axes) if b is None else product_scale(a, b)
        self._check_like(own, "partial: the scale and the part")
        xp = self.backend.xp
        if own.terms > self.terms or bool(xp.any(own.maxima > self.maxima)):
            raise ValueError(
                "partial: the part holds larger numbers, or more of them, than was agreed on: "
                "merge the scales of all parts first"
            )
        with self.backend.running():
            finite = [v if own.finite else exact.finite_part(xp, v) for v in given]
            orders: list[Array] = []
            if own.terms and 0 not in self.shape:
                orders = self._orders(*finite)
            numbers = self._stacked(orders, self.slices)
            if not self.finite:
                counts: Sequence[Array] = []
                if not own.finite:
                    counts = (
                        exact.sum_specials(xp, a, self.axes)
                        if b is None
                        else exact.product_specials(xp, a, b)
                    )
                numbers = xp.concat([numbers, self._stacked(counts, NON_FINITE)], axis=0)
        return Partial(self, numbers)

    def _orders(self, a: Array, b: Array | None = None) -> list[Array]:
        """The exact sums of each order of slices of finite numbers."""
        xp, largest = self.backend.xp, self._largest()
        if b is None:
            found, _ = exact.sum_orders(xp, a, self.axes, largest[0], self.terms, self.dtype)
            return [xp.reshape(order, self.shape) for order in found]
        slices, bits = exact.product_slices(self.terms, self.dtype)
        pieces = exact.product_orders(xp, a, b, largest[0], largest[1], self.dtype, slices, bits)
        rows = [list(orders) for orders, _ in pieces]
        return [xp.concat([orders[k] for orders in rows], axis=0) for k in range(slices)]

    def received(self, numbers: Array) -> "Partial":
        """A partial of this scale, of the `numbers` that another process has sent."""
        expected = (self.slices + NON_FINITE * (not self.finite), *self.shape)
        if tuple(numbers.shape) != expected:
            shapes = f"{tuple(numbers.shape)}, expected {expected}"
            raise ValueError(f"received: numbers have shape {shapes}")
        return Partial(self, self.backend.asarray(numbers, "float64"))

    def _stacked(self, arrays: Sequence[Array], count: int) -> Array:
        """So many arrays of the result's shape in one; zeros where there are none."""
        xp = self.backend.xp
        if arrays:
            return xp.stack(list(arrays), axis=0)
        return xp.zeros((count, *self.shape), dtype=xp.float64, device=self.maxima.device)

    def _largest(self) -> list[Array]:
        """The largest magnitudes in their shapes, as the parts' dtype has them."""
        xp, start, found = self.backend.xp, 1, list[Array]()
        for shape in self.shapes:
            stop = start + math.prod(shape)
            values = xp.astype(self.maxima[start:stop], getattr(xp, self.dtype))
            found.append(xp.reshape(values, shape))
            start = stop
        return found

    def _check_like(self, other: "Scale", what: str) -> None:
        for name in ("dtype", "axes", "shapes"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"{what} differ in {name}: {mine} and {theirs}")


@dataclass(frozen=True, eq=False)
class Partial:
    """Part of a sum or product, exact: numbers that are whole in one unit for each slice.

    Parameters
    ----------
    scale
        What all parts agreed on.
    numbers
        float64, (S, ...) or, where the whole is not finite, (S + 3, ...) with the result's shape
        behind: the sums of each order of slices, the smallest first, and then the counts of inf,
        -inf and NaN among the terms. That is what is sent, and added up.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import partials
    >>> shards = np.array([1e16, 1.0]), np.array([-1e16, 1.0])
    >>> scale = partials.merged(map(partials.sum_scale, shards))
    >>> first, second = map(scale.partial, shards)
    >>> (first + second).rounded().item(), (second + first).rounded(divisor=4).item()
    (2.0, 0.5)
    >>> first.rounded().item() + second.rounded().item()  # rounded too soon
    0.0
    """

    scale: Scale
    numbers: Array

    def __add__(self, other: "Partial") -> "Partial":
        """Both together, without rounding: associative and commutative.

        Raises
        ------
        ValueError
            They were cut by scales that differ.
        """
        mine, theirs = self.scale, other.scale
        mine._check_like(theirs, "the partials' scales")  # pyright: ignore[reportPrivateUsage]
        xp = mine.backend.xp
        same = mine.terms == theirs.terms and bool(xp.all(mine.maxima == theirs.maxima))
        if not same:
            raise ValueError(
                "the partials were cut by scales that differ: merge the scales of all parts first"
            )
        return Partial(mine, self.numbers + other.numbers)

    def rounded(self, divisor: float | None = None) -> Array:
        """The result, of the scale's dtype and shape: here, and nowhere before, is rounding.

        With a `divisor`, the sum over that, divided before it is rounded to the dtype.
        """
        scale, slices = self.scale, self.scale.slices
        backend = scale.backend
        xp = backend.xp
        with backend.running():
            halves: list[Array] = []
            for largest in scale._largest():  # pyright: ignore[reportPrivateUsage]
                half = exact.in_range(xp, largest, largest, scale.dtype)[2]
                if half is not None:
                    halves.append(half)
            if len(halves) == 2:
                halves = [halves[0] * halves[1]]
            if scale.axes:
                halves = [xp.reshape(half, scale.shape) for half in halves]
            orders = [self.numbers[k, ...] for k in range(slices)]
            found = exact.rounded(xp, orders, halves, scale.dtype, divisor)
            if scale.finite:
                return found
            counts = [self.numbers[k, ...] for k in range(slices, slices + NON_FINITE)]
            return exact.with_specials(xp, found, counts)


def sum_scale(a: Array, axis: int | tuple[int, ...] | None = None) -> Scale:
    """The scale of a part of a sum along `axis`, of which it may have any number of terms.

    Parameters
    ----------
    a
        float32 or float64, of any backend.
    axis
        As that of the sum; None for all.

    Returns
    -------
    Scale
        Of that part alone, to be merged with those of the others.

    Raises
    ------
    ValueError
        `a` has no such axis, or none at all.
    TypeError
        `a` is neither float32 nor float64.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import partials
    >>> scale = partials.sum_scale(np.array([[1.0, -2.0, 0.5], [3.0, 0.0, 0.0]]), axis=1)
    >>> scale.terms, scale.maxima.tolist(), scale.shape
    (3, [0.0, 2.0, 3.0], (2,))
    """
    backend, a = taken(a=a)
    axes, dtype = exact.checked_axes(a, axis), exact.precision(a)
    if not axes:
        raise ValueError(f"sum_scale: axis is {axis}, expected an axis to sum over")
    kept = tuple(1 if k in axes else size for k, size in enumerate(a.shape))
    terms = math.prod(a.shape[k] for k in axes)
    return Scale(backend, dtype, axes, (kept,), terms, _maxima(backend, [(a, axes, kept)]))


def product_scale(a: Array, b: Array) -> Scale:
    """The scale of a part of a product of matrices, (N, K') by (K', M).

    Parameters
    ----------
    a, b
        Both float32 or both float64, of one backend.

    Returns
    -------
    Scale
        Of that part alone, to be merged with those of the others.

    Raises
    ------
    ValueError
        Shapes that do not fit.
    TypeError
        Dtypes that differ, or are neither float32 nor float64.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import partials
    >>> scale = partials.product_scale(np.array([[1.0, -2.0]]), np.array([[3.0], [0.5]]))
    >>> scale.terms, scale.maxima.tolist(), scale.shape
    (2, [0.0, 2.0, 3.0], (1, 1))
    """
    backend, a, b = taken(a=a, b=b)
    dtype = exact.check_product(a, b)
    (rows, terms), columns = a.shape, b.shape[1]
    shapes = (rows, 1), (1, columns)
    maxima = _maxima(backend, [(a, (1,), shapes[0]), (b, (0,), shapes[1])])
    return Scale(backend, dtype, (), shapes, terms, maxima)


def _maxima(
    backend: Backend, parts: Iterable[tuple[Array, tuple[int, ...], tuple[int, ...]]]
) -> Array:
    """Whether something is not finite, and the largest magnitudes of what is: see `Scale`."""
    xp = backend.xp
    infinite, found = False, list[Array]()
    with backend.running():
        for a, axes, shape in parts:
            if 0 in a.shape:
                zeros = xp.zeros((math.prod(shape),), dtype=xp.float64, device=a.device)
                found.append(zeros)
                continue
            largest = exact.largest_along(xp, a, axes)
            if not bool(xp.all(xp.isfinite(largest))):
                infinite = True
                largest = exact.largest_along(xp, exact.finite_part(xp, a), axes)
            found.append(xp.reshape(xp.astype(largest, xp.float64), (-1,)))
        flag = xp.full((1,), float(infinite), dtype=xp.float64, device=found[0].device)
        return xp.concat([flag, *found], axis=0)


def merged(scales: Iterable[Scale]) -> Scale:
    """The scale of all parts, of those of each.

    Parameters
    ----------
    scales
        Of each part, in any order.

    Returns
    -------
    Scale
        By which each part is cut.

    Raises
    ------
    ValueError
        There is none, or they differ in kind, dtype or shape.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import partials
    >>> shards = np.array([1.0, -2.0]), np.array([5.0])
    >>> scale = partials.merged(map(partials.sum_scale, shards))
    >>> scale.terms, scale.maxima.tolist()
    (3, [0.0, 5.0])
    """
    found = list(scales)
    if not found:
        raise ValueError("merged: scales is empty, expected at least one")
    return reduce(Scale.merged, found)


def added(partials: Iterable[Partial]) -> Partial:
    """The partial of all parts, of those of each.

    Parameters
    ----------
    partials
        Of each part, in any order.

    Returns
    -------
    Partial
        Of the whole, to be rounded.

    Raises
    ------
    ValueError
        There is none, or they were cut by scales that differ.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import partials
    >>> shards = np.array([0.1, 0.2]), np.array([0.3]), np.array([0.4])
    >>> scale = partials.merged(map(partials.sum_scale, shards))
    >>> partials.added(map(scale.partial, reversed(shards))).rounded().item()
    1.0
    """
    found = list(partials)
    if not found:
        raise ValueError("added: partials is empty, expected at least one")
    return reduce(Partial.__add__, found)
