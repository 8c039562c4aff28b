"""Sums, products and functions of any array library, the same bits on every one: no network needed.

    from xnet import reproducible

    reproducible.matmul(x, y)  # NumPy's arrays, PyTorch's, CuPy's, ...

Each function takes arrays of any library that follows the array API standard, and gives one of the
same library, on the same device, of the same dtype. What comes out depends on the numbers alone:
not on the library, the number of threads, the order in which anything is added, or where an array
is split or how it lies in memory. It is no exact result: each function says how far it may be off.

**dtypes.** float32 and float64, and float16 and bfloat16 where a library has them: these are
converted to float64, which is exact, and the float64 result is rounded once to the dtype. Whatever
else is refused. u is 2^-53 for float64, 2^-24 for float32, 2^-11 for float16 and 2^-8 for bfloat16.
The bounds are for results in the range of normal numbers; below it a result may be off by one
subnormal number more.

**Whatever is not finite** takes part as in IEEE 754, in silence. A sum that is 0 is +0.

**The library** has to keep to IEEE 754, and is tried when it is first met: once a process and
device, some milliseconds (`xnet.arithmetic`). The thread's mode is looked at in every call.

**Errors** that every function raises:

TypeError
    An argument is no array of an array-API library, is of another dtype, or is watched for its
    gradient (PyTorch's ``requires_grad``); two are of two libraries or dtypes; an `axis` is no
    whole number.
ValueError
    Shapes that do not fit; an axis that is not there, or is named twice.
BackendError
    The arithmetic of the library, or of this thread, is not IEEE 754's, or two arrays are on two
    devices. It is a ValueError, too.
"""

import contextlib
import math
import numbers
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any, TypeAlias

from xnet import exact, operations
from xnet.arithmetic import Trial, check_mode, try_once
from xnet.arrays import plain
from xnet.dtypes import dtype_name, name_of
from xnet.errors import BackendError
from xnet.formulas import Arrays

Array: TypeAlias = Any
Namespace: TypeAlias = Any
Axis: TypeAlias = int | tuple[int, ...] | None

__all__ = [
    "dot",
    "exp",
    "expm1",
    "log",
    "log1p",
    "logsumexp",
    "matmul",
    "mean",
    "norm",
    "softmax",
    "sum",
    "tanh",
    "var",
]

DTYPES = (*exact.DIGITS, *exact.NARROW)
"""The dtypes that are taken."""

PIECE = 1 << 15
"""Numbers, at most, that the host computes with at a time: all that a formula makes of them stays
in cache. Other devices are handed the whole array: there a call costs more than memory."""

NEED_FLOAT32 = ("float32", "bfloat16")
"""Dtypes whose subnormal numbers are float32's."""

ON_HOST = 1
"""What DLPack calls the host (``kDLCPU``)."""


# -- array libraries


class Library:
    """An array library on one device: what `xnet.arithmetic` tries and formulas compute with.

    Parameters
    ----------
    xp
        Its array-API namespace.
    device
        As its arrays name it.
    flushes
        Precisions in which it may take subnormal numbers for zeros.
    """

    compiled = False

    def __init__(self, xp: Namespace, device: Any, flushes: tuple[str, ...] = ()) -> None:
        self.xp, self.device, self.flushes = xp, device, flushes
        self.tried: set[Any] = set()
        self.on_host = xp.zeros((), device=device).__dlpack_device__()[0] == ON_HOST
        self.piece = PIECE if self.on_host else math.inf
        self.maths = Along(self, (-1,))

    def __str__(self) -> str:
        name = getattr(self.xp, "__name__", type(self.xp).__name__)
        return f"{name} on {self.device}"

    def running(self) -> contextlib.AbstractContextManager[object]:
        """Block without the warnings of NumPy, which other libraries stand on, too."""
        import numpy as np

        return np.errstate(all="ignore")

    def asarray(self, values: Any, dtype: str) -> Array:
        """Numbers as an array here."""
        return self.xp.asarray(values, dtype=getattr(self.xp, dtype), device=self.device)

    def to_numpy(self, array: Array) -> Any:
        """An array on the host."""
        import numpy as np

        if not self.on_host and (compat := _compat()):
            array = compat.to_device(array, "cpu")
        try:
            return np.asarray(array)
        except (TypeError, RuntimeError):  # what is elsewhere moves only if told to
            return np.from_dlpack(array, device="cpu", copy=True)

    def matmul(self, a: Array, b: Array) -> Array:
        """Matrix product (N, K) by (K, M)."""
        return exact.matmul(self.xp, a, b)

    def sum(self, a: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        """Sum along `axis`, or of all."""
        return exact.sum(self.xp, a, axis, keepdims)

    def exp(self, a: Array) -> Array:
        """e to the power of each element."""
        return exact.elementary(self.xp, "exp", a)

    def log(self, a: Array) -> Array:
        """Natural logarithm of each element."""
        return exact.elementary(self.xp, "log", a)

    def expm1(self, a: Array) -> Array:
        """exp(a) - 1 of each element."""
        return exact.elementary(self.xp, "expm1", a)

    def log1p(self, a: Array) -> Array:
        """log(1 + a) of each element."""
        return exact.elementary(self.xp, "log1p", a)

    def check(self, function: str, dtype: Any) -> None:
        """Try its arithmetic, and its conversions to a dtype that is narrow, once a process.

        Raises
        ------
        BackendError
            They are not IEEE 754's. It names the function, and the operation that is not.
        """
        check_mode()
        if dtype not in self.tried:
            key, who = (self.xp, self.device, self.flushes), f"{function}: {self} cannot be used"
            tried = try_once(self, key, who, "use another library or dtype")
            if tried and dtype_name(dtype) in exact.NARROW:
                with self.running():
                    failure = _narrow_trial(dtype).failure(self)
                if failure is not None:
                    raise BackendError(f"{who}: {failure}. Or use another dtype")
            if tried:
                self.tried.add(dtype)


class Along(Arrays):
    """The mathematics of `operations` on a library's arrays, with rows along any axes of theirs."""

    def __init__(self, library: Library, axes: tuple[int, ...]) -> None:
        super().__init__(library)
        self.axes = axes

    def sqrt(self, a: Array) -> Array:
        """Square root of each element."""
        return exact.sqrt(self.xp, a)

    def sum(self, a: Array) -> Array:
        """Along each row, whose axes are kept."""
        return self.backend.sum(a, self.axes, keepdims=True)

    def width(self, a: Array) -> int:
        """Numbers in a row."""
        return math.prod(a.shape[k] for k in self.axes)

    def max(self, a: Array) -> Array:
        """Of each row, whose axes are kept; NaN if the row holds one."""
        # Along no axes: libraries do not agree on what that is.
        return self.xp.max(a, axis=self.axes, keepdims=True) if self.axes else a


def _narrow_trial(dtype: Any) -> Trial:
    """Of `exact.narrowed` and conversions: ties, numbers that float32 would make ties, the ends."""
    name = dtype_name(dtype)
    digits, lowest = exact.NARROW[name]
    unit, tiny = 2.0 ** (1 - digits), 2.0 ** (lowest + 1 - digits)
    top = 2.0 ** (2 - lowest)
    pairs = [
        (1 + unit / 2, 1.0),
        (1 + unit * (1 / 2 + 2.0**-40), 1 + unit),
        (1 + unit * 1.5, 1 + 2 * unit),
        (-1 - unit, -1 - unit),
        (tiny, tiny),
        (tiny * 1.5, tiny * 2),
        (tiny * (1 / 2 + 2.0**-40), tiny),
        (-tiny / 2, -0.0),
        (-0.0, -0.0),
        (2.0**lowest - tiny, 2.0**lowest - tiny),
        (top * (1 - unit / 4 - 2.0**-50), top * (1 - unit / 2)),
        (top * (1 - unit / 4), math.inf),
        (-1e300, -math.inf),
        (math.nan, math.nan),
    ]

    def run(library: Library, arrays: list[Array]) -> Array:
        xp = library.xp
        narrow = xp.astype(exact.narrowed(xp, arrays[0], name), dtype)
        return xp.astype(narrow, xp.float64)

    rows = "\n".join(f"{v.hex()} {w.hex()}" for v, w in pairs)
    return Trial(f"conversion to {name} and back", "float64", "float64", run, rows)


@cache
def _library(xp: Namespace, device: Any, dtype: str) -> Library:
    """The library for numbers of a dtype: those whose float32 flushes, as CuPy's, have float64."""
    return Library(xp, device, () if dtype in NEED_FLOAT32 else ("float32",))


@cache
def _compat() -> Any:
    """array-api-compat, if it is installed: the standard's names for libraries without them."""
    try:
        return import_module("array_api_compat")
    except ImportError:
        return None


def _library_of(function: str, name: str, array: Array) -> Library:
    """The library of an array that an error calls by its name.

    Raises
    ------
    TypeError
        It is no array, or one whose library needs array-api-compat, which is not installed.
    """
    compat = _compat()
    try:
        xp = compat.array_namespace(array) if compat else array.__array_namespace__()
        return _library(xp, array.device, name_of(array))
    except (AttributeError, TypeError) as error:
        hint = "" if compat else "; PyTorch's and others' take array-api-compat, to be installed"
        raise TypeError(
            f"{function}: {name} is a {type(array).__name__}, "
            f"expected an array of a library that follows the array API{hint}"
        ) from error


# -- what every function does with what it is given


class Computation:
    """Block in which a function computes: with what it was given, checked, in silence.

    What it is entered as is itself, then the arrays, as float32 or float64.

    Parameters
    ----------
    function
        Its name, for errors.
    arrays
        What it was given, by the names of its parameters.

    Attributes
    ----------
    library, xp
        Of all the arrays.
    """

    def __init__(self, function: str, **arrays: Array) -> None:
        libraries = {name: _library_of(function, name, a) for name, a in arrays.items()}
        given = {name: plain(a, f"{function}: {name}") for name, a in arrays.items()}
        for name, array in given.items():
            if name_of(array) not in DTYPES:
                raise TypeError(
                    f"{function}: {name} is {name_of(array)}, expected {' or '.join(DTYPES)}"
                )
            if getattr(array, "requires_grad", False):
                raise TypeError(
                    f"{function}: {name} is watched for its gradient, and what rounds on purpose "
                    f"would have a wrong one: hand over {name}.detach()"
                )
        first, *others = given
        self.library, dtype = libraries[first], name_of(given[first])
        for name in others:
            kinds = f"{first} is {dtype}, {name} is {name_of(given[name])}"
            where = f"{first} is of {self.library}, {name} of {libraries[name]}"
            if libraries[name].xp is not self.library.xp:
                raise TypeError(f"{function}: {where}, expected one library")
            if name_of(given[name]) != dtype:
                raise TypeError(f"{function}: {kinds}, expected one dtype")
            if libraries[name] is not self.library:
                raise BackendError(f"{function}: {where}, expected one device")
        self.function, self.xp, self.dtype = function, self.library.xp, given[first].dtype
        self.library.check(function, self.dtype)
        self.narrow = dtype if dtype in exact.NARROW else None
        self.given = given

    def __enter__(self) -> Any:
        self.running = self.library.running()
        self.running.__enter__()
        arrays = list(self.given.values())
        if self.narrow:
            arrays = [self.xp.astype(array, self.xp.float64) for array in arrays]
        return self, *arrays

    def __exit__(self, *error: Any) -> None:
        self.running.__exit__(*error)

    def along(self, x: Array, axis: Axis) -> Along:
        """The mathematics with rows along these axes of x."""
        return Along(self.library, exact.checked_axes(x, axis, self.function, "x"))

    def each(self, function: Callable[[Array], Array], x: Array) -> Array:
        """A function of each element."""
        if math.prod(x.shape) <= self.library.piece:
            return function(x)
        return self.xp.reshape(self.rows(function, (), self.xp.reshape(x, (-1,))), x.shape)

    def rows(self, function: Callable[..., Array], axes: tuple[int, ...], *arrays: Array) -> Array:
        """A function along axes, which it keeps, of arrays of one shape: some rows at a time."""
        shape = arrays[0].shape
        size, others = math.prod(shape), [k for k in range(len(shape)) if k not in axes]
        if size <= self.library.piece or not others:
            return function(*arrays)
        along = max(others, key=shape.__getitem__)
        length, before = shape[along], (slice(None),) * along
        some, found = max(1, int(self.library.piece * length // size)), list[Array]()
        for start in range(0, length, some):
            piece = *before, slice(start, min(start + some, length)), ...
            found.append(function(*(array[piece] for array in arrays)))
        return self.xp.concat(found, axis=along)

    def result(self, found: Array, without: tuple[int, ...] = ()) -> Array:
        """What was found, in the dtype of what was given, and without some axes of length 1."""
        if self.narrow:
            found = exact.narrowed(self.xp, found, self.narrow)
        if without:
            found = self.xp.squeeze(found, axis=without)
        return self.xp.astype(found, self.dtype, copy=False)


# -- sums and products


def sum(x: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    """Sum along axes, or of all.

    Numbers are cut into slices, whose sums are exact in any order; these are added, the smallest
    first (`xnet.exact`: Rump, Ogita & Oishi 2008).

    Parameters
    ----------
    x
        Any shape.
    axis
        An axis, several, or None for all.
    keepdims
        Whether the axes stay, with length 1.

    Returns
    -------
    Array
        Within ``u |sum| + u max|x|`` of the sum; 0 for no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> x = np.array([1e16, 1.0, -1e16, 1.0])
    >>> reproducible.sum(x).item(), reproducible.sum(x[::-1]).item()
    (2.0, 2.0)
    >>> reproducible.sum(np.full((3, 10), 0.1), axis=1).tolist()
    [1.0, 1.0, 1.0]
    """
    with Computation("sum", x=x) as (c, x):
        m = c.along(x, axis)
        return c.result(c.rows(m.sum, m.axes, x), () if keepdims else m.axes)


def mean(x: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    """Arithmetic mean along axes, or of all: the sum, unrounded, by the number n of its terms.

    The sum is the float64 number that `sum` rounds, and the quotient one of float64; it is rounded
    to the dtype then. It overflows nowhere but where the mean does.

    Parameters
    ----------
    x, axis, keepdims
        As those of `sum`.

    Returns
    -------
    Array
        Within ``2 u |mean| + u max|x| / n`` of the mean; NaN for no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> reproducible.mean(np.array([[1.0, 2.0], [3.0, 6.0]]), axis=0).tolist()
    [2.0, 4.0]
    >>> reproducible.mean(np.full(10, 1e308)).item()
    1e+308
    """
    with Computation("mean", x=x) as (c, x):
        m = c.along(x, axis)
        found = c.rows(partial(_mean, m), m.axes, x)
        return c.result(found, () if keepdims else m.axes)


def var(
    x: Array, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False
) -> Array:
    """Variance along axes, or of all, in two passes: sum((x - mean)^2) / (n - correction).

    All of it in float64: the mean as `mean` has it, but not rounded to the dtype; each difference
    and each square rounded; their sum as `sum` has it; the quotient. What lies beyond 2^400 or
    below 2^-400 is scaled by a power of two first, so that no square overflows or is lost.

    Parameters
    ----------
    x, axis, keepdims
        As those of `sum`.
    correction
        What is subtracted from the number n of terms: 1 for an unbiased estimate.

    Returns
    -------
    Array
        Within ``7 v + 9 (v max|x|)^2 / var``, v = 2^-53, and u of the variance, relative to it; NaN
        where n is not above `correction`, or a number is not finite.

    Raises
    ------
    TypeError
        `correction` is no real number.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> x = np.array([1.0, 2.0, 3.0, 6.0])
    >>> reproducible.var(x).item(), round(reproducible.var(x, correction=1).item(), 4)
    (3.5, 4.6667)
    """
    if not isinstance(correction, numbers.Real):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"var: correction is a {type(correction).__name__}, expected a number")
    with Computation("var", x=x) as (c, x):
        m = c.along(x, axis)
        found = c.rows(partial(_var, m, correction=correction), m.axes, x)
        return c.result(found, () if keepdims else m.axes)


def norm(x: Array, /, *, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Array:
    """Norm of the vectors along axes, or of all numbers as one.

    For ``ord=2`` the root of the sum of squares, in float64: each square rounded, their sum as
    `sum` has it, and its root, rounded correctly whatever the library's own (`exact.sqrt`). What
    lies beyond 2^400 or below 2^-400 is scaled by a power of two first, so that no square overflows
    or is lost. For ``ord=1`` the `sum` of ``|x|``, for ``ord=inf`` the largest.

    Parameters
    ----------
    x, axis, keepdims
        As those of `sum`.
    ord
        1, 2 or infinity.

    Returns
    -------
    Array
        Relative to the norm within 3 v + u (v = 2^-53) of it for 2, within 2 u for 1, the very norm
        for infinity; 0 for no numbers.

    Raises
    ------
    ValueError
        Another `ord`.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> x = np.array([3.0, -4.0])
    >>> [reproducible.norm(x, ord=p).item() for p in (1, 2, float("inf"))]
    [7.0, 5.0, 4.0]
    >>> reproducible.norm(np.array([1e200, 0.0])).item()
    1e+200
    """
    if ord not in (1, 2, math.inf):
        raise ValueError(f"norm: ord is {ord!r}, expected 1, 2 or inf")
    with Computation("norm", x=x) as (c, x):
        m = c.along(x, axis)
        found = c.rows(partial(_norm, m, ord=ord), m.axes, x)
        return c.result(found, () if keepdims else m.axes)


def matmul(x1: Array, x2: Array, /) -> Array:
    """Matrix product (..., N, K) by (..., K, M), whose axes before the last two broadcast.

    Rows and columns are cut into slices, whose products are exact in any order; these are added,
    the smallest first (`xnet.exact`: Ozaki, Ogita, Oishi & Rump 2012).

    Parameters
    ----------
    x1
        (..., N, K); (K,) is one row.
    x2
        (..., K, M); (K,) is one column.

    Returns
    -------
    Array
        (..., N, M), without N or M where an argument was 1-d. An element is within
        ``u |element| + 8 K 2^-s max|row| max|column|`` of the exact one, s = 42 for float32 and 63
        else; for K above 1,638 s is at least 32 and 60 (`exact.product_slices` tells). 0 for K = 0.

    Raises
    ------
    ValueError
        An argument without axes, or shapes that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> a = np.array([[0.1, 0.2], [0.3, 0.4]])
    >>> reproducible.matmul(a, a).tolist()
    [[0.07, 0.1], [0.15, 0.22000000000000003]]
    """
    with Computation("matmul", x1=x1, x2=x2) as (c, a, b):
        xp, shapes = c.xp, f"x1 has shape {tuple(a.shape)}, x2 has {tuple(b.shape)}"
        if not a.ndim or not b.ndim:
            raise ValueError(f"matmul: {shapes}, expected at least one axis")
        without = (-2,) * (a.ndim == 1) + (-1,) * (b.ndim == 1)
        a = xp.expand_dims(a, axis=0) if a.ndim == 1 else a
        b = xp.expand_dims(b, axis=1) if b.ndim == 1 else b
        if a.shape[-1] != b.shape[-2]:
            raise ValueError(f"matmul: {shapes}, expected (..., N, K) and (..., K, M)")
        _broadcast(a.shape[:-2], b.shape[:-2], f"matmul: {shapes}")
        return c.result(exact.stacked_matmul(xp, a, b), without)


def dot(x1: Array, x2: Array, /, *, axis: int = -1) -> Array:
    """Sum of products along an axis of both; the others broadcast. The standard's ``vecdot``.

    The very bits that `matmul` gives for that row and column.

    Parameters
    ----------
    x1, x2
        As many numbers along the axis.
    axis
        Counted from the end, -1 for the last.

    Returns
    -------
    Array
        Of the shape that the other axes broadcast to, with the bound of `matmul`.

    Raises
    ------
    ValueError
        An axis that is not counted from the end, or shapes that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> x1, x2 = np.array([1e16, 1.0, -1e16]), np.array([1.0, 1.0, 1.0])
    >>> reproducible.dot(x1, x2).item(), reproducible.dot(x1[::-1], x2).item()
    (1.0, 1.0)
    """
    with Computation("dot", x1=x1, x2=x2) as (c, a, b):
        xp, shapes = c.xp, f"x1 has shape {tuple(a.shape)}, x2 has {tuple(b.shape)}"
        for name, array in (("x1", a), ("x2", b)):
            if exact.checked_axes(array, (axis,), "dot", name)[0] == axis:
                raise ValueError(f"dot: axis is {axis}, expected one counted from the end, as -1")
        if a.shape[axis] != b.shape[axis]:
            raise ValueError(f"dot: {shapes}, expected as many numbers along axis {axis}")
        shape = _broadcast(a.shape, b.shape, f"dot: {shapes}")
        a, b = (xp.moveaxis(xp.broadcast_to(v, shape), axis, -1) for v in (a, b))
        return c.result(c.rows(partial(exact.dot, xp), (len(shape) - 1,), a, b), (-1,))


def _broadcast(one: tuple[int, ...], other: tuple[int, ...], what: str) -> tuple[int, ...]:
    """The shape to which two broadcast, or an error that says what does not."""
    try:
        return exact.broadcast(one, other)
    except ValueError as error:
        raise ValueError(f"{what}, which do not broadcast") from error


def _mean(m: Along, x: Array) -> Array:
    return exact.sum(m.xp, x, m.axes, True, m.width(x))


def _var(m: Along, x: Array, correction: float) -> Array:
    left = m.width(x) - correction
    if 0 in x.shape or not left > 0:
        return m.sum(x) * math.nan
    x, unit = _in_range(m, x)
    difference = x - _mean(m, x)
    found = exact.sum(m.xp, difference * difference, m.axes, True, left)
    return found if unit is None else found * unit * unit


def _norm(m: Along, x: Array, ord: float) -> Array:
    if ord == 1 or 0 in x.shape:
        return m.sum(m.xp.abs(x))
    if ord == math.inf:
        return m.max(m.xp.abs(x))
    x, unit = _in_range(m, x)
    root = m.sqrt(m.sum(x * x))
    return root if unit is None else root * unit


def _in_range(m: Along, x: Array) -> tuple[Array, Array | None]:
    """x as float64 whose squares are in range, and what it is to be multiplied by again, if so."""
    xp = m.xp
    largest = m.max(xp.abs(x))
    x, _, half = exact.in_range(xp, x, largest, name_of(x))
    return x, None if half is None else half * half


# -- functions of each element


def exp(x: Array, /) -> Array:
    """e^x, by a reduction and a polynomial in float64 (`exact.exp_formula`: Cody & Waite 1980).

    Parameters
    ----------
    x
        Any shape.

    Returns
    -------
    Array
        Within 1 unit in the last place in float64, else correctly rounded but for about one x in
        10^8.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> reproducible.exp(np.array([0.0, 1.0, -1.0])).tolist()
    [1.0, 2.7182818284590455, 0.36787944117144233]
    """
    return _elementary("exp", x)


def log(x: Array, /) -> Array:
    """Natural logarithm, by a series in float64 (`exact.log_formula`, as FreeBSD's e_log.c).

    Parameters
    ----------
    x
        Any shape.

    Returns
    -------
    Array
        Within 1 unit in the last place in float64, else correctly rounded but for about one x in
        10^8; -inf for 0, NaN below.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> reproducible.log(np.array([1.0, 2.0, 0.0, -1.0])).tolist()
    [0.0, 0.6931471805599453, -inf, nan]
    """
    return _elementary("log", x)


def expm1(x: Array, /) -> Array:
    """e^x - 1, accurate near 0 (`exact.expm1_formula`).

    Parameters
    ----------
    x
        Any shape.

    Returns
    -------
    Array
        Within 2 units in the last place in float64, else correctly rounded but for about one x in
        10^8.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> reproducible.expm1(np.array([1e-20, 1.0])).tolist()
    [1e-20, 1.7182818284590453]
    """
    return _elementary("expm1", x)


def log1p(x: Array, /) -> Array:
    """log(1 + x), accurate near 0 (`exact.log1p_formula`).

    Parameters
    ----------
    x
        Any shape.

    Returns
    -------
    Array
        Within 2 units in the last place in float64, else correctly rounded but for about one x in
        10^8; -inf for -1, NaN below.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> reproducible.log1p(np.array([1e-20, 1.0])).tolist()
    [1e-20, 0.6931471805599453]
    """
    return _elementary("log1p", x)


def _elementary(name: str, x: Array) -> Array:
    with Computation(name, x=x) as (c, x):
        return c.result(c.each(partial(exact.elementary, c.xp, name), x))


def tanh(x: Array, /) -> Array:
    """Hyperbolic tangent: ``-z / (2 + z)`` with ``z = expm1(-2|x|)``, and the sign of x.

    The formula of the layer `Tanh` (`operations.tanh`), rounded after each operation to float32 or
    float64.

    Parameters
    ----------
    x
        Any shape.

    Returns
    -------
    Array
        Within ``12 u |tanh x|`` in float64, 6 u in float32, u + 2^-49 else.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> reproducible.tanh(np.array([0.0, 1e-20, 0.5, -1000.0])).tolist()
    [0.0, 1e-20, 0.46211715726000974, -1.0]
    """
    with Computation("tanh", x=x) as (c, x):
        return c.result(c.each(partial(operations.tanh, c.library.maths), x))


# -- functions along axes


def softmax(x: Array, /, *, axis: Axis = -1) -> Array:
    """exp(x - max) / sum(exp(x - max)) along axes.

    The formula of the layer `Softmax` (`operations.softmax`), rounded after each operation to
    float32 or float64.

    Parameters
    ----------
    x
        Any shape.
    axis
        An axis, several, or None for all.

    Returns
    -------
    Array
        The shape of x. An element is within (2 T + 8) v of the softmax, relative to it, T the
        largest max - x along the axes, v = u for float32 and 2^-53 else; for float16 and bfloat16
        within u more. NaN along axes that hold NaN, inf, or nothing but -inf.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> reproducible.softmax(np.array([0.3, 2.9, 4.0])).round(8).tolist()
    [0.01821127, 0.24519181, 0.73659691]
    >>> reproducible.softmax(np.array([1010.0, 1000.0, 990.0])).tolist()
    [0.999954600070331, 4.5397868608866656e-05, 2.061060046209062e-09]
    """
    with Computation("softmax", x=x) as (c, x):
        m = c.along(x, axis)
        if 0 in x.shape:
            return c.xp.zeros_like(x)
        return c.result(c.rows(partial(operations.softmax, m), m.axes, x))


def logsumexp(x: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    """Logarithm of the sum of exp(x) along axes, or of all: max + log(sum(exp(x - max))).

    All of it in float64: exp and log as `exp` and `log` have them, the sum as `sum`. Where the
    largest is not finite 0 stands for it.

    Parameters
    ----------
    x, axis, keepdims
        As those of `sum`.

    Returns
    -------
    Array
        Within ``u |result| + v (|max| + 2 log n + T + 8)`` of it, n the number of terms, T the
        largest max - x, but 746 at most, v = 2^-53; -inf for no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet import reproducible
    >>> reproducible.logsumexp(np.array([0.0, 0.0])).item()
    0.6931471805599453
    >>> reproducible.logsumexp(np.array([1000.0, 1000.0])).item()
    1000.6931471805599
    """
    with Computation("logsumexp", x=x) as (c, x):
        m = c.along(x, axis)
        found = c.rows(partial(_logsumexp, m), m.axes, x)
        return c.result(found, () if keepdims else m.axes)


def _logsumexp(m: Along, x: Array) -> Array:
    xp = m.xp
    x = xp.astype(x, xp.float64, copy=False)
    if 0 in x.shape:
        return m.log(m.sum(x))
    top = m.max(x)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    return top + m.log(m.sum(m.exp(x - top)))
