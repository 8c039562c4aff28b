"""Random numbers of our own making: the same bits on every processor, and in any language.

NumPy promises the integers that PCG64 gives for a seed, and nothing of what its `Generator` makes
of them: its normal numbers differ between processors. So initial weights, shuffles and masks are
made here of those integers alone, by steps with one right result each: integer arithmetic,
comparisons, + - * / and the square root as IEEE 754 rounds them, and the logarithm of `exact`.
``docs/reproducible/random.md`` specifies them for whoever programs them elsewhere.

One number takes one integer (one of `integers` may take more), so numbers are the same whether
they are asked for at once or in parts.
"""

import math
import operator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xnet import exact
from xnet.dtypes import float_dtype

__all__ = ["Generator"]

Floats: TypeAlias = NDArray[np.float64]
Shape: TypeAlias = int | tuple[int, ...]

BITS = {"float64": 53, "float32": 24}
"""Of a uniform number: as many as the dtype holds of every number below 1."""

MIDDLE_OF_PART = math.ldexp(1.0, -54)

PIECE = 1 << 15
"""Numbers that are made at a time: what is computed on the way stays in cache."""


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float.fromhex(word) for word in text.split())


# The numerators and denominators of PPND16 (Wichura 1988), from the highest power down.
CENTRE = (
    _floats("""
        0x1.39a296f7d925ep+11 0x1.052d26b2e45e4p+15 0x1.06c1c55b78f20p+16
        0x1.66c3e869b752ap+15 0x1.ad1d8cd4ee71dp+13 0x1.ece5d2213c0ccp+10
        0x1.0a4888b1a436ep+7 0x1.b18d91e9eef75p+1
    """),
    _floats("""
        0x1.46a7eca984b69p+12 0x1.c0e457cb1ae76p+14 0x1.3317caa64f4bep+15
        0x1.4b772d5d65266p+14 0x1.512322e75c89fp+12 0x1.5797efdc8b3f7p+9
        0x1.5281b386e1ab5p+5 0x1.0000000000000p+0
    """),
)
"""a7 to a0, and b7 to b1 and 1: in 0.425^2 - q^2, where q is up to 0.425 from the middle."""
MIDDLE = (
    _floats("""
        0x1.9615ac0b7ace9p-11 0x1.744eb6c45ec67p-6 0x1.ef2abb9b85c37p-3
        0x1.453cc085375b2p+0 0x1.d2ecb1a3d02c4p+1 0x1.713f71462256ap+2
        0x1.2857748cab19bp+2 0x1.6c665fde9526ap+0
    """),
    _floats("""
        0x1.20d3f686439e4p-30 0x1.1f18cbfdf2728p-11 0x1.f207a7eab17bfp-7
        0x1.2f5123394f040p-3 0x1.61292f23385c9p-1 0x1.ad278e6526633p+0
        0x1.06cefbb46a449p+1 0x1.0000000000000p+0
    """),
)
"""c7 to c0, and d7 to d1 and 1: in r - 1.6, where r = sqrt(-log p) is up to 5."""
FAR = (
    _floats("""
        0x1.afb74d693bf93p-23 0x1.c6ec6cc59e02ap-16 0x1.45c1908425345p-10
        0x1.b2b41193b4ee7p-6 0x1.2fad9315255cfp-2 0x1.c8ea6461fa445p+0
        0x1.5daea6e875003p+2 0x1.aa1b1c13ee526p+2
    """),
    _floats("""
        0x1.269bff1f8c190p-49 0x1.31446f740b9e0p-23 0x1.35c2c496374bfp-16
        0x1.9c8bc979dc5d7p-11 0x1.e76f93215462ap-7 0x1.186eb183443fbp-3
        0x1.331d34fc7d77fp-1 0x1.0000000000000p+0
    """),
)
"""e7 to e0, and f7 to f1 and 1: in r - 5, beyond that."""


class Generator:
    """Random numbers from PCG64 (O'Neill 2014), each the same on every processor.

    Parameters
    ----------
    seed
        An int of at least 0, a sequence of such, a `numpy.random.SeedSequence`, or None for fresh
        numbers every time. Of a `Generator`, a `numpy.random.Generator` or a
        `numpy.random.PCG64` the very stream is drawn from.

    Raises
    ------
    TypeError, ValueError
        Anything else: another bit generator, too, for the stream would be another.

    Notes
    -----
    A copy, and what comes back from a pickle, goes on by itself where the original stood.

    Examples
    --------
    >>> import xnet
    >>> rng = xnet.random.Generator(0)
    >>> rng.uniform((3,)).tolist()
    [0.6369616873214543, 0.2697867137638703, 0.04097352393619469]
    >>> rng.permutation(5).tolist()
    [0, 3, 4, 1, 2]
    >>> before = rng.state
    >>> first = rng.normal((2,)).tolist()
    >>> rng.state = before
    >>> rng.normal((2,)).tolist() == first
    True
    """

    def __init__(self, seed: Any = None) -> None:
        bits: Any = seed
        if isinstance(seed, Generator):
            bits = seed._bits
        elif isinstance(seed, np.random.Generator):
            bits = seed.bit_generator
        expected = (
            "expected an int of at least 0, a sequence of these, a SeedSequence, a generator "
            "on PCG64, or None"
        )
        if isinstance(bits, np.random.BitGenerator) and not isinstance(bits, np.random.PCG64):
            raise TypeError(f"seed draws from {type(bits).__name__}, {expected}")
        try:
            self._bits = bits if isinstance(bits, np.random.PCG64) else np.random.PCG64(bits)
        except (TypeError, ValueError) as error:
            raise type(error)(f"seed is {seed!r}, {expected}") from None

    def raw(self, n: int) -> NDArray[np.uint64]:
        """The next n integers of PCG64: uint64, (n,).

        Parameters
        ----------
        n
            How many.

        Examples
        --------
        >>> import xnet
        >>> xnet.random.Generator(0).raw(2).tolist()
        [11749869230777074271, 4976686463289251617]
        """
        return self._bits.random_raw(n)

    def uniform(self, shape: Shape = (), dtype: Any = "float64") -> NDArray[Any]:
        """Numbers in [0, 1), each of the 2^53 multiples of 2^-53 alike; for float32 24 for 53.

        Parameters
        ----------
        shape
            Of the array; () for one number.
        dtype
            ``"float64"`` or ``"float32"``.

        Returns
        -------
        ndarray
            Of that shape and dtype.

        Raises
        ------
        ValueError
            A dtype other than float32 and float64.

        Examples
        --------
        >>> import xnet
        >>> xnet.random.Generator(0).uniform((2, 2), "float32").tolist()
        [[0.6369616389274597, 0.26978665590286255], [0.0409734845161438, 0.01652759313583374]]
        """
        bits = BITS[name := float_dtype(dtype)]
        unused, step = np.uint64(64 - bits), math.ldexp(1.0, -bits)
        u = np.empty(_count(shape), name)
        for start in range(0, len(u), PIECE):
            piece = u[start : start + PIECE]
            upper = self.raw(len(piece)) >> unused
            np.multiply(upper, step, out=piece, casting="same_kind")
        return u.reshape(shape)

    def normal(self, shape: Shape = ()) -> Floats:
        """Numbers of the standard normal distribution, float64, at most 8.3 from 0.

        The inverse of the distribution at the middles of 2^53 equal parts of (0, 1), by PPND16 of
        algorithm AS 241 (Wichura 1988), which is within a few units of the 16th digit.

        Parameters
        ----------
        shape
            Of the array; () for one number.

        Returns
        -------
        ndarray
            Of that shape, float64.

        Examples
        --------
        >>> import xnet
        >>> xnet.random.Generator(0).normal((3,)).tolist()
        [0.35034922725656387, -0.6134581787035278, -1.7394988867659331]
        """
        z = np.empty(_count(shape))
        for start in range(0, len(z), PIECE):
            piece = z[start : start + PIECE]
            middles = self.uniform(len(piece)) - 0.5 + MIDDLE_OF_PART  # neither is rounded
            piece[:] = _quantile(middles)
        return z.reshape(shape)

    def integers(self, bound: int, shape: Shape = ()) -> NDArray[np.int64]:
        """Integers from 0 to below `bound`, each alike: int64.

        Each is the upper bits of an integer, as many as bound - 1 has and at least one; those that
        are not below the bound are passed over.

        Parameters
        ----------
        bound
            From 1 to 2^63.
        shape
            Of the array; () for one number.

        Returns
        -------
        ndarray
            Of that shape, int64.

        Raises
        ------
        ValueError
            A bound below 1 or above 2^63.

        Examples
        --------
        >>> import xnet
        >>> xnet.random.Generator(0).integers(6, (10,)).tolist()
        [5, 2, 0, 0, 4, 5, 4, 0, 0, 5]
        """
        bound = operator.index(bound)
        if not 1 <= bound <= 2**63:
            raise ValueError(f"bound is {bound}, expected at least 1 and at most 2^63")
        unused = np.uint64(64 - max(1, (bound - 1).bit_length()))
        found = np.empty(_count(shape), np.int64)
        done = 0
        while done < len(found):
            drawn = self.raw(len(found) - done) >> unused
            drawn = drawn[drawn < np.uint64(bound)]
            found[done : done + len(drawn)] = drawn
            done += len(drawn)
        return found.reshape(shape)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """The numbers from 0 to n - 1 in random order, each order alike: int64, (n,).

        The order that sorts n integers. Should two of these be equal, which happens once in
        2^65 / n^2 times, n others are drawn; then every order is as likely as any other.

        Parameters
        ----------
        n
            How many numbers.

        Examples
        --------
        >>> import xnet
        >>> xnet.random.Generator(0).permutation(6).tolist()
        [3, 2, 1, 0, 4, 5]
        """
        while True:
            keys = self.raw(n)
            order = np.argsort(keys)
            if (np.diff(keys[order]) != 0).all():
                return order.astype(np.int64, copy=False)

    @property
    def state(self) -> dict[str, int]:
        """Where in its stream it stands: PCG64's ``state`` and ``inc``, of 128 bits each.

        Set to what it was once, it goes on from there.

        Raises
        ------
        ValueError
            On setting: no such numbers.
        """
        inner: Any = self._bits.state["state"]
        return {name: int(inner[name]) for name in ("state", "inc")}

    @state.setter
    def state(self, state: dict[str, int]) -> None:
        given: Any = state
        if (
            not isinstance(given, dict)
            or given.keys() != {"state", "inc"}
            or not all(type(v) is int and 0 <= v < 2**128 for v in state.values())
            or state["inc"] % 2 == 0
        ):
            expected = "'state' and an odd 'inc', ints from 0 to below 2^128"
            raise ValueError(f"state is {given!r}, expected {expected}")
        whole: Any = {**self._bits.state, "state": dict(state)}
        self._bits.state = whole

    def __getstate__(self) -> dict[str, int]:
        return self.state

    def __setstate__(self, state: dict[str, int]) -> None:
        self._bits = np.random.PCG64(0)
        self.state = state

    def __repr__(self) -> str:
        return f"Generator({self.state})"


def _count(shape: Shape) -> int:
    return math.prod(shape) if isinstance(shape, tuple) else operator.index(shape)


def _quantile(q: Floats) -> Floats:
    """The normal number that 1/2 + q of all lie below, for q in (-1/2, 1/2), but 0."""
    z = q * _ratio(0.180625 - q * q, *CENTRE)
    outer = np.flatnonzero(np.abs(q) > 0.425)
    p = 0.5 - np.abs(q[outer])
    r = np.sqrt(-exact.elementary(np, "log", p))
    tail = _ratio(r - 1.6, *MIDDLE)
    far = np.flatnonzero(r > 5.0)
    tail[far] = _ratio(r[far] - 5.0, *FAR)
    z[outer] = np.copysign(tail, q[outer])
    return z


def _ratio(x: Floats, above: tuple[float, ...], below: tuple[float, ...]) -> Floats:
    """Quotient of two polynomials by Horner's rule, each product and each sum rounded."""
    top, bottom = np.full_like(x, above[0]), np.full_like(x, below[0])
    for a, b in zip(above[1:], below[1:], strict=True):
        top *= x
        top += a
        bottom *= x
        bottom += b
    top /= bottom
    return top
