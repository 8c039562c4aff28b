"""Does the arithmetic under a backend keep to IEEE 754? Reproducible mode rests on nothing else.

A network's bits are the same everywhere because + - * / and the square root are rounded correctly
everywhere, subnormal numbers are numbers, no product is fused with a sum, and sums of whole numbers
are exact in any order (`xnet.exact`). Libraries, compilers and processors are told otherwise often
enough, and say nothing of it. So a backend's arithmetic is tried when it is first asked for in
reproducible mode, once a device and process, and refused by name if it fails.

**What is tried** is small, for it costs milliseconds: numbers chosen to tell a nearly right way
from a right one (`HARD`), in arrays long enough for vector instructions, shorter ones, and single
ones, on both precisions; what `xnet.exact` needs besides; and products and sums of whole numbers
that come out right only if each is exact. What a backend compiles itself is not among it where
`Backend.compiled` says that it does so: kernels take seconds to compile. Those it shares with other
modes and operations are held to the same bits, on many more numbers, by ``xnet parity``. Subnormal
numbers of a precision that `Backend.flushes` names are not tried: what is known is said there.

**The processor's mode** can be changed at any time, by any library in the process, for the thread
that asks: `torch.set_flush_denormal(True)` makes zeros of subnormal numbers from then on. So one
subnormal addition is tried, and two that are rounded down and, by little, up, whenever reproducible
mode is entered: by `use_backend` or `resolve`, or a call of a network, a layer or a function. That
tells, too, where Python's own numbers are rounded twice, as on 32-bit x86.
"""

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from operator import mul
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from xnet import exact
from xnet.dtypes import name_of
from xnet.errors import BackendError

if TYPE_CHECKING:
    from xnet.backend import Backend

Array: TypeAlias = Any
Library: TypeAlias = Any
"""Whose arithmetic is tried: a `Backend`, or what has as much of one as is asked for here."""
AnyBackend = TypeVar("AnyBackend", bound="Backend")

LONG = 67
"""Numbers in the longest array: whole vectors of any processor's, and three more."""

SHORT = (7, 3, 1)
"""Those in others: less than a vector, one and some, and one by itself."""

WINDOWS = 3
"""Arrays of each of these lengths."""

PRECISIONS = {"float32": (24, -149), "float64": (53, -1074)}
"""Bits of a significand, and the exponent of the smallest number."""


# -- entering reproducible mode

# From their bits: to read one from text takes arithmetic, and that is what is tried.
_TINY: float = struct.unpack("<d", struct.pack("<q", 1))[0]
_ONE, _LESS, _MORE, _NEXT = 1.0, 2.0**-54, (1 + 2.0**-12) * 2.0**-53, 1 + 2.0**-52

_passed: set[Hashable] = set()
"""Whose arithmetic was tried in this process, and is sound: backends by class and device."""

_locks: dict[int, Any] = {}
"""One for each process: a fork leaves its child locks that nobody opens."""

_own = threading.local()
_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


def sound(backend: AnyBackend) -> AnyBackend:
    """The backend that is given, if it is in fast mode or its arithmetic is IEEE 754's.

    Raises
    ------
    BackendError
        It is in reproducible mode, and its arithmetic, or this thread's, is another.
    """
    if backend.reproducible:
        check_mode("; fast mode does not ask for it")
        if not backend.tried:
            key = type(backend), backend.device
            who = f"backend {backend.label!r} cannot be used in reproducible mode here"
            if try_once(backend, key, who, "use another backend; fast mode does not ask for it"):
                backend.tried = True
    return backend


def check_mode(instead: str = "") -> None:
    """Raise a BackendError, ending in `instead`, if this thread's processor is set otherwise."""
    # A quarter of a unit in the last place is lost; a little over half of one is a whole one, if
    # it is not rounded to 64 bits first, which makes it a half.
    if (not _TINY + _TINY or _ONE + _LESS + _MORE != _NEXT) and not _unchecked.get():
        raise BackendError(_mode() + instead)


def _mode() -> str:
    """What is wrong with the mode that the processor is in."""
    if _TINY + _TINY:
        gave = f"0x1p+0 + 0x1p-54 + 0x1.001p-53 gave {(_ONE + _LESS + _MORE).hex()}"
        if _ONE + _LESS == _ONE and _ONE + (_LESS + _MORE) == _NEXT:
            return (
                f"Python rounds sums twice here, to 64 bits and then to 53: {gave}, expected "
                f"{_NEXT.hex()}. It is compiled for x87: have it, and NumPy, compiled for SSE2 "
                "(-msse2 -mfpmath=sse), or use a 64-bit Python"
            )
        return (
            f"this thread's processor does not round to nearest: {gave}, expected {_NEXT.hex()}. "
            "Something in the process has set another way to round: set FE_TONEAREST again (C's "
            "fesetround)"
        )
    return (
        "this thread's processor takes subnormal numbers for zeros (FTZ or DAZ is on): "
        "0x1p-1074 + 0x1p-1074 gave 0x0p+0, expected 0x1p-1073. Something in the process has "
        "switched that on, as torch.set_flush_denormal(True) and libraries linked with "
        "-ffast-math do: switch it off, as torch.set_flush_denormal(False) does"
    )


def try_once(library: Library, key: Hashable, who: str, instead: str) -> bool:
    """Try an arithmetic, or wait for the thread that does, and remember by the key if it is sound.

    Parameters
    ----------
    who
        Begins the error: who cannot be used.
    instead
        Ends it: what else to do.

    Returns
    -------
    bool
        Whether it has been tried; not while that is being done, or in a block of `unchecked`.

    Raises
    ------
    BackendError
        It is not IEEE 754's.
    """
    if _unchecked.get() or key in getattr(_own, "trying", ()):
        return False  # what is tried may ask for the very backend
    with _locks.setdefault(os.getpid(), threading.RLock()):
        if key not in _passed:
            _own.trying = (*getattr(_own, "trying", ()), key)
            try:
                for failure in failures(library):
                    raise BackendError(f"{who}: {failure}. Or {instead}")
            finally:
                _own.trying = _own.trying[:-1]
            _passed.add(key)
    return True


@contextlib.contextmanager
def unchecked() -> Generator[None]:
    """Block in which backends are taken as they are, in this thread: for what tries them itself."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


# -- what is tried


@dataclass(frozen=True)
class Failure:
    """An operation that gave what IEEE 754 does not.

    Attributes
    ----------
    operation
        Its name.
    case
        What it was given.
    found, expected
        What it gave, and what it should have.
    cure
        What to do.
    """

    operation: str
    case: str
    found: str
    expected: str
    cure: str

    def __str__(self) -> str:
        found = f"{self.case} gave {self.found}, expected {self.expected}"
        return f"{self.operation}, {found}; {self.cure}"


FLUSHED = (
    "subnormal numbers are taken for zeros: have its library keep them (no -ftz, no fast-math, "
    "FTZ and DAZ off)"
)
MISSING = "what its library has to give says docs/backends.md"
INEXACT = (
    "have its library round every result once, to the nearest number (no fast-math, and no x87: "
    "-mfpmath=sse)"
)
CURES = {
    "division": "have its library divide, and multiply by no inverse (no fast-math)",
    "division by 3": "have its library divide, and multiply by no inverse (no fast-math)",
    "square root": "have its library round the root correctly, or give its xp a sqrt that does",
    "a * b + c": "have its compiler contract nothing (--fmad=false, -ffp-contract=off)",
    "c - a * b": "have its compiler contract nothing (--fmad=false, -ffp-contract=off)",
    "(a + s) - s": "have its compiler simplify no sums (no fast-math, no reassociation)",
    "matmul": "have its products add float64 numbers as such (no TF32, no bfloat16, no Strassen)",
    "sum": "have its sums add float64 numbers as such",
}
"""What to do about an operation that is not `INEXACT` alone."""

Run: TypeAlias = Callable[[Library, list[Array]], Array]


@dataclass(frozen=True)
class Trial:
    """An operation of numbers one by one.

    Attributes
    ----------
    name
        As an error has it.
    takes, gives
        The dtypes; "bool" is read as 0 and 1.
    run
        Computes it from arrays of the backend.
    rows
        A row each case: the arguments, and what they have to give.
    """

    name: str
    takes: str
    gives: str
    run: Run
    rows: str

    def failure(self, b: Library) -> Failure | None:
        """The first case that comes out otherwise; None if none does."""
        rows = list(zip(*_columns(self.rows), strict=True))
        if {self.takes, self.gives} & set(b.flushes):
            rows = [row for row in rows if not self._is_tiny(row)]
        columns, cases = list(zip(*rows, strict=True)), len(rows)
        cycle = [k % cases for k in range(LONG)]
        arrays = [b.asarray([column[k] for k in cycle], self.takes) for column in columns[:-1]]
        expected = [columns[-1][k] for k in cycle]
        for start, stop in _pieces(cases):
            host = b.to_numpy(self.run(b, [array[start:stop] for array in arrays]))
            count = f"{stop - start} at a time"
            if name_of(host) != self.gives:
                kinds = f"{name_of(host)} numbers", f"{self.gives} numbers"
                return _failure(self.name, self.takes, count, *kinds)
            found = host.tolist()
            k = _first_difference(found, expected[start:stop])
            if k is not None:
                *given, right = (column[cycle[start + k]] for column in columns)
                case = f"{count}: {', '.join(v.hex() for v in given)}"
                texts = case, float(found[k]).hex(), right.hex()
                return _failure(self.name, self.takes, *texts, self._is_tiny([*given, right]))
        return None

    def _is_tiny(self, numbers: Iterable[float]) -> bool:
        """Whether one of them is subnormal."""
        bits, lowest = PRECISIONS["float32" if "float32" in (self.takes, self.gives) else "float64"]
        return any(0 < abs(v) < 2.0 ** (lowest + bits - 1) for v in numbers)


def _first_difference(found: list[Any], expected: list[float]) -> int | None:
    """Where two rows are not the same number, the sign of 0 included; None if nowhere."""
    for k, (v, w) in enumerate(zip(found, expected, strict=True)):
        if not (v == w != 0) and float(v).hex() != w.hex():
            return k
    return None


def _failure(
    name: str, dtype: str, case: str, found: str, expected: str, tiny: bool = False
) -> Failure:
    cure = FLUSHED if tiny else CURES.get(name, INEXACT)
    return Failure(f"{name} of {dtype} numbers", case, found, expected, cure)


@cache
def _columns(rows: str) -> list[list[float]]:
    table = [[float.fromhex(v) for v in row.split()] for row in rows.strip().splitlines()]
    return [list(column) for column in zip(*table, strict=True)]


def _pieces(cases: int) -> Iterator[tuple[int, int]]:
    """All cases at once, and the first of them in arrays of each length of `SHORT`."""
    yield 0, LONG
    for length in SHORT:
        for start in range(0, min(cases, WINDOWS * length), length):
            yield start, start + length


def failures(backend: Library) -> Iterator[Failure]:
    """What is wrong with the arithmetic under a backend in reproducible mode, the first case each.

    Whatever its library raises is a failure too.
    """
    with backend.running():
        for name, dtype, attempt in _attempts(backend.flushes):
            try:
                failure = attempt(backend)
            except Exception as error:  # whatever a plug-in raises: the user asked for no trial
                raised = f"{type(error).__name__}: {error}"
                failure = Failure(f"{name} of {dtype} numbers", "it", raised, "numbers", MISSING)
            if failure is not None:
                yield failure


Attempt: TypeAlias = Callable[[Library], Failure | None]


def _attempts(flushes: Iterable[str]) -> Iterator[tuple[str, str, Attempt]]:
    for trial in trials():
        yield trial.name, trial.takes, trial.failure
    for whole in whole_numbers():
        if whole.exponent >= 0 or whole.dtype not in flushes:
            yield whole.name, whole.dtype, whole.failure


# -- operations of numbers one by one


def _cut(b: Library, arrays: list[Array]) -> Array:
    (a,) = arrays
    return exact.cut(b.xp, a, b.xp.ones_like(a), 1, 21)[0]


def _along(reduction: str, negated: bool = False) -> Run:
    """The larger of two numbers by a reduction of the library's."""

    def run(b: Library, arrays: list[Array]) -> Array:
        if negated:
            arrays = [-a for a in arrays]
        found = getattr(b.xp, reduction)(b.xp.stack(arrays, axis=-1), axis=-1)
        return -found if negated else found

    return run


RUNS: dict[str, list[tuple[str, Run]]] = {
    "addition": [
        ("addition", lambda b, a: a[0] + a[1]),
        ("subtraction", lambda b, a: a[0] - (-a[1])),
    ],
    "multiplication": [("multiplication", lambda b, a: a[0] * a[1])],
    "division": [("division", lambda b, a: a[0] / a[1])],
    "division by 3": [("division by 3", lambda b, a: a[0] / 3.0)],
    "square root": [("square root", lambda b, a: b.maths.sqrt(a[0]))],
    "a * b + c": [
        ("a * b + c", lambda b, a: a[0] * a[1] + a[2]),
        ("c - a * b", lambda b, a: a[2] - (-a[0]) * a[1]),
    ],
}
"""By the names of `HARD`, what is computed of its numbers."""

LARGER: list[tuple[str, Run]] = [
    ("maximum", lambda b, a: b.xp.maximum(*a)),
    ("max", _along("max")),
    ("min", _along("min", negated=True)),
]


@cache
def trials() -> list[Trial]:
    """The operations of numbers one by one, the commonest faults first."""
    found = [
        Trial(name, dtype, dtype, run, rows)
        for table, tables in HARD.items()
        for dtype, rows in tables.items()
        for name, run in RUNS[table]
    ]
    for dtype, (bits, lowest) in PRECISIONS.items():
        tiny, normal = f"0x1p{lowest}", f"0x1p{lowest + bits - 1}"
        pairs = f"""
            1 2    1 0 0
            2 1    0 0 1
            3 3    0 1 1
            -0 0   0 1 1
            nan 1  0 0 0
            1 nan  0 0 0
            nan nan 0 0 0
            0 {tiny} 1 0 0
            -{tiny} -0 1 0 0
            {tiny} {tiny} 0 1 1
            {tiny} {normal} 1 0 0
            -inf -1 1 0 0
        """
        for k, (name, run) in enumerate(COMPARISONS.items(), 2):
            rows = [row.split() for row in pairs.strip().splitlines()]
            chosen = "\n".join(f"{row[0]} {row[1]} {row[k]}" for row in rows)
            found.append(Trial(name, dtype, "bool", run, chosen))
        larger = f"1 2 2\n2 1 2\nnan 1 nan\n1 nan nan\n0 {tiny} {tiny}\n-{tiny} -inf -{tiny}\n"
        found += [Trial(name, dtype, dtype, run, larger) for name, run in LARGER]
        chosen = f"-0 1 -0\nnan -0 -0\n{tiny} 1 {tiny}\nnan nan nan\nnan {tiny} {tiny}\ninf 0 inf"
        found.append(
            Trial("where", dtype, dtype, lambda b, a: b.xp.where(a[0] == a[0], *a), chosen)
        )
        sizes = f"-0 0\n-{tiny} {tiny}\n{tiny} {tiny}\nnan nan\n-inf inf\n-1.8 1.8"
        found.append(Trial("abs", dtype, dtype, lambda b, a: b.maths.abs(a[0]), sizes))
        kinds = f"0 1\n{tiny} 1\nnan 0\ninf 0\n-inf 0\n-1 1"
        found.append(Trial("isfinite", dtype, "bool", lambda b, a: b.xp.isfinite(a[0]), kinds))
    return found + [Trial(name, *facts) for name, facts in EXACT.items()]


COMPARISONS: dict[str, Run] = {
    "a < b": lambda b, a: a[0] < a[1],
    "a == b": lambda b, a: a[0] == a[1],
    "a >= b": lambda b, a: a[0] >= a[1],
}

EXACT: dict[str, tuple[str, str, Run, str]] = {
    "conversion to float32": (
        "float64",
        "float32",
        lambda b, a: b.xp.astype(a[0], b.xp.float32),
        """
        0x1.000001p+0 0x1p+0
        0x1p-149 0x1p-149
        0x1.000003p+0 0x1.000004p+0
        0x1.8p-149 0x1p-148
        0x1.0000010000001p+0 0x1.000002p+0
        0x1p-150 0x0p+0
        -0x1.0000000000001p-150 -0x1p-149
        0x1.ffffff0000000p+127 inf
        0x1.fffffefffffffp+127 0x1.fffffep+127
        -0x1.fffffdp-127 -0x1.fffffcp-127
        -0x0p+0 -0x0p+0
        nan nan
        """,
    ),
    "conversion to float64": (
        "float32",
        "float64",
        lambda b, a: b.xp.astype(a[0], b.xp.float64),
        """
        0x1p-149 0x1p-149
        0x1.555556p-2 0x1.555556p-2
        -0x1.fffffcp-127 -0x1.fffffcp-127
        0x1.fffffep+127 0x1.fffffep+127
        -0x0p+0 -0x0p+0
        nan nan
        inf inf
        """,
    ),
    # To multiples of 2^-21, by a shift of 1.5 2^31.
    "(a + s) - s": (
        "float64",
        "float64",
        _cut,
        """
        0x1.5555555555555p-2 0x1.55556p-2
        0x1p-22 0x0p+0
        0x1.8p-21 0x1p-20
        -0x1.4p-20 -0x1p-20
        0x1.0000000000001p-22 0x1p-21
        -0x1.7ffffffffffffp-21 -0x1p-21
        -0x1.fffffffffffffp-1 -0x1p+0
        0x1p-1074 0x0p+0
        """,
    ),
    "next power of two": (
        "float64",
        "float64",
        lambda b, a: exact.power_of_two(b.xp, a[0]),
        """
        0x1p+0 0x1p+0
        0x1.0000000000001p+0 0x1p+1
        0x1.fffffffffffffp+300 0x1p+301
        0x1p-1074 0x1p-1074
        0x3p-1074 0x1p-1072
        0x0p+0 0x0p+0
        0x1.8p-1022 0x1p-1021
        """,
    ),
    "round(log2(a))": (
        "float64",
        "float64",
        lambda b, a: b.xp.round(b.xp.log2(a[0])),
        "\n".join(f"0x1p{k} {k:#x}" for k in (0, 1, -1, 3, 29, -31, 509, -999, -1022, -1074, 1023)),
    ),
    "round": (
        "float64",
        "float64",
        lambda b, a: b.xp.round(a[0]),
        """
        0x1p-1 0x0p+0
        0x1.8p+0 0x1p+1
        0x1.4p+1 0x1p+1
        -0x1.4p+1 -0x1p+1
        0x1.0000000000001p-1 0x1p+0
        0x1.fffffffffffffp-2 0x0p+0
        -0x1.8p+51 -0x1.8p+51
        """,
    ),
}
"""What `xnet.exact` needs besides, with the dtypes that it takes and gives, and rows."""


# -- products and sums of whole numbers


def _whole(count: int, bits: int, seed: int = 0) -> list[int]:
    """So many whole numbers of up to so many bits, of both signs, that look like any others."""
    found: list[int] = []
    for _ in range(count):
        seed = (6364136223846793005 * seed + 1442695040888963407) % 2**64  # Knuth's
        found.append((seed >> (64 - bits)) - (1 << (bits - 1)))
    return found


def _cancelling(bits: int, seed: int) -> tuple[list[int], list[int]]:
    """A row and a column of whole numbers whose products come twice, with either sign, but one."""
    half = LONG // 2
    a, b = _whole(half, bits, seed), _whole(half, bits, seed + 1)
    return [*a, *a, 1], [*b, *[-v for v in b], 1000 + 2 * seed]


def _number(whole: int, exponent: int, digits: int) -> float:
    """A whole number times 2^exponent, rounded to so many bits, ties to even."""
    drop = max(whole.bit_length() - digits, 0)
    kept, rest = divmod(whole, 1 << drop)
    kept += rest > 1 << drop >> 1 or (2 * rest == 1 << drop and kept % 2)
    return float.fromhex(f"{kept:#x}p{exponent + drop}")


@dataclass(frozen=True)
class Whole:
    """A product, or sums along rows, of whole numbers.

    Attributes
    ----------
    dtype
        What they are held in.
    a
        (N, K), each times 2^exponent.
    b
        (K, M); None for the sums of the rows.
    exponent
        Below 0 they are subnormal numbers, and so is what comes out.
    """

    dtype: str
    a: list[list[int]]
    b: list[list[int]] | None
    exponent: int = 0

    @property
    def name(self) -> str:
        """As an error has it."""
        return "sum" if self.b is None else "matmul"

    def expected(self) -> list[list[float]]:
        """What comes out, by Python's whole numbers: each rounded once."""
        digits, _ = PRECISIONS[self.dtype]
        columns = [[1] * len(self.a[0])] if self.b is None else list(zip(*self.b, strict=True))
        return [
            [_number(sum(map(mul, row, column)), self.exponent, digits) for column in columns]
            for row in self.a
        ]

    def _found(self, backend: Library) -> Array:
        def array(rows: list[list[int]], unit: float) -> Array:
            return backend.asarray([[v * unit for v in row] for row in rows], self.dtype)

        x, xp = array(self.a, 2.0**self.exponent), backend.xp
        if self.b is not None:
            y = array(self.b, 1.0)
            return exact.matmul(xp, x, y) if backend.compiled else backend.matmul(x, y)
        if backend.compiled:
            return exact.sum(xp, x, 1, True)
        return backend.sum(x, axis=1, keepdims=True)

    def failure(self, backend: Library) -> Failure | None:
        """The first number that comes out otherwise; None if none does."""
        found = backend.to_numpy(self._found(backend))
        facts, where = (self.name, self.dtype), f"{len(self.a)} rows of {len(self.a[0])}"
        if name_of(found) != self.dtype:
            return _failure(*facts, where, f"{name_of(found)} numbers", f"{self.dtype} numbers")
        for i, (row, right) in enumerate(zip(found.tolist(), self.expected(), strict=True)):
            j = _first_difference(row, right)
            if j is not None:
                texts = f"{where}, [{i}, {j}]", row[j].hex(), right[j].hex()
                return _failure(*facts, *texts, self.exponent < 0)
        return None


@cache
def whole_numbers() -> list[Whole]:
    """Products and sums that come out right only if every product and sum of slices is exact."""
    found: list[Whole] = []
    for dtype, (digits, lowest) in PRECISIONS.items():
        a, b = zip(*[_cancelling(min(digits, 44), seed) for seed in range(3)], strict=True)
        rows, columns = [[_whole(LONG, 22, seed) for seed in range(s, s + 3)] for s in (0, 5)]
        few = [_whole(LONG, 12, seed) for seed in range(3)]
        for left, right, exponent in (
            (a[:1], b[:1], 0),
            (rows, columns, 0),
            (few, [_whole(LONG, 4, 7), _whole(LONG, 4, 8)], lowest),
            ([[1, 3, -2]], [[1, 1, 1]], lowest),
        ):
            wide = [list(row) for row in zip(*right, strict=True)]
            found.append(Whole(dtype, list(left), wide, exponent))
        found.append(Whole(dtype, list(b), None))
        found.append(Whole(dtype, few, None, lowest))
    return found


# -- the hard cases

HARD: dict[str, dict[str, str]] = {
    "addition": {
        "float32": """
0x1p+0 0x1p-24 0x1p+0
0x1.8p-148 -0x1p-149 0x1p-148
0x1.000002p+0 0x1p-24 0x1.000004p+0
0x1p-126 -0x1p-149 0x1.fffffcp-127
0x1p+0 0x1.001p-24 0x1.000002p+0
-0x1p-149 -0x1p-149 -0x1p-148
0x1p+0 0x1p-25 0x1p+0
0x1p-149 0x1p+0 0x1p+0
0x1.000002p+0 -0x1.ffcp-25 0x1.000002p+0
0x1p-126 0x1p-149 0x1.000002p-126
-0x1p+0 0x1p-25 -0x1p+0
-0x1p+0 0x1p-26 -0x1p+0
0x1.8p+0 -0x1.8p+0 0x0p+0
-0x0p+0 -0x0p+0 -0x0p+0
-0x0p+0 0x0p+0 0x0p+0
0x1.fffffep+127 0x1p+103 inf
0x1.fffffep+127 -0x1.fffffep+101 0x1.fffffep+127
0x1.8p-126 -0x1p-126 0x1p-127
-0x1p-126 0x1.4p-126 0x1p-128
""",
        "float64": """
0x1p+0 0x1p-53 0x1p+0
0x0.0000000000003p-1022 -0x0.0000000000001p-1022 0x0.0000000000002p-1022
0x1.0000000000001p+0 0x1p-53 0x1.0000000000002p+0
0x1p-1022 -0x0.0000000000001p-1022 0x0.fffffffffffffp-1022
0x1p+0 0x1.001p-53 0x1.0000000000001p+0
-0x0.0000000000001p-1022 -0x0.0000000000001p-1022 -0x0.0000000000002p-1022
0x1p+0 0x1p-54 0x1p+0
0x0.0000000000001p-1022 0x1p+0 0x1p+0
0x1.0000000000001p+0 -0x1.ffcp-54 0x1.0000000000001p+0
0x1p-1022 0x0.0000000000001p-1022 0x1.0000000000001p-1022
-0x1p+0 0x1p-54 -0x1p+0
-0x1p+0 0x1p-55 -0x1p+0
0x1.8p+0 -0x1.8p+0 0x0p+0
-0x0p+0 -0x0p+0 -0x0p+0
-0x0p+0 0x0p+0 0x0p+0
0x1.fffffffffffffp+1023 0x1p+970 inf
0x1.fffffffffffffp+1023 -0x1.fffffffffffffp+968 0x1.fffffffffffffp+1023
0x1.8p-1022 -0x1p-1022 0x0.8p-1022
-0x1p-1022 0x1.4p-1022 0x0.4p-1022
""",
    },
    "multiplication": {
        "float32": """
0x1.6f5f86p+2 0x1.ca71d6p-10 0x1.48f222p-7
0x1.981826p+2 0x1.84c3cap-10 0x1.35de5ap-7
-0x1.fc63dap-66 0x1.979a06p-65 -0x1.94ba4p-130
-0x1.bb494ap-66 0x1.ef793ap-65 -0x1.acfa6p-130
-0x1.95b546p-70 0x1.fc6cb6p-70 -0x1.92cp-139
-0x1.e56326p-70 0x1.be9674p-70 -0x1.a78p-139
0x1.e8e06ap+2 0x1.9ec43ap-10 0x1.8c08d4p-7
0x1.542ec6p+2 0x1.9fbb6ap-10 0x1.14386ep-7
0x1.49b72ep+2 0x1.e6a84ep-10 0x1.396544p-7
0x1.7f1e16p+2 0x1.8976bap-10 0x1.266b6ep-7
0x1.001p+12 0x1.ffep+11 0x1.fffffep+23
0x1.8p-148 0x1p-1 0x1p-148
0x1p-149 0x1p-1 0x0p+0
-0x1p-149 0x1.8p-1 -0x1p-149
0x1.8p-148 0x1.8p+1 0x1.2p-146
0x1p-126 0x1.fffffep-1 0x1p-126
0x1.fffffep+127 0x1.000002p+0 inf
-0x1p-149 0x1p-149 -0x0p+0
""",
        "float64": """
0x1.419549bd6b011p+2 0x1.9498090e040f1p-10 0x1.fc3e946290303p-8
0x1.ea1517d0c0b87p+2 0x1.c5fde6d9835c9p-10 0x1.b28eb1f6248acp-7
-0x1.fe066bf52cdf9p-514 0x1.5345452443dddp-513 -0x0.151f641385f5bp-1022
-0x1.1690160f3f3d3p-514 0x1.f24fb38ec3abbp-513 -0x0.10f1d826147ffp-1022
-0x1.5f056e27091f7p-526 0x1.d5d976947e608p-525 -0x0.0000001421f9p-1022
-0x1.3008363f4d833p-526 0x1.e9cdf4dc73c3fp-525 -0x0.000000122da25p-1022
0x1.4e12b0e963889p+2 0x1.9c3094b14bdb9p-10 0x1.0cf2bd217a11ep-7
0x1.cd98e76fa515dp+2 0x1.b0a72d05b750bp-10 0x1.860fbb3cc7cf3p-7
0x1.b1670cb992299p+2 0x1.b41b20efc11a9p-10 0x1.7128b7a6961c8p-7
0x1.229932b38d3cdp+2 0x1.79d8d3f9faefbp-10 0x1.ace9bd8d3b23bp-8
0x1.0000004p+26 0x1.ffffffcp+26 0x1.0000002p+53
0x0.0000000000003p-1022 0x1p-1 0x0.0000000000002p-1022
0x0.0000000000001p-1022 0x1p-1 0x0p+0
-0x0.0000000000001p-1022 0x1.8p-1 -0x0.0000000000001p-1022
0x0.0000000000003p-1022 0x1.8p+1 0x0.0000000000009p-1022
0x1p-1022 0x1.fffffffffffffp-1 0x1p-1022
0x1.fffffffffffffp+1023 0x1.0000000000001p+0 inf
-0x0.0000000000001p-1022 0x0.0000000000001p-1022 -0x0p+0
""",
    },
    "division": {
        "float32": """
-0x1.202eaep+23 0x1.5d0962p+7 -0x1.a6bbbp+15
0x1.915accp+23 0x1.b62e7ap+23 0x1.d4f814p-1
0x1.46b634p-42 0x1.dfb3fap+87 0x1.5cb54p-130
0x1.529dd6p-42 0x1.a2c7c2p+87 0x1.9dfep-130
0x1.9a09a4p-46 0x1.d1e27ap+92 0x1.c28p-139
0x1.4b27aep-46 0x1.780cb2p+92 0x1.c3p-139
0x1.70a59ep+23 0x1.b4e14ap+23 0x1.b008d4p-1
-0x1.7cb41ep+23 0x1.912b5ep+7 -0x1.e5e14ep+15
0x1.030b22p+23 0x1.df0742p+23 0x1.14dfap-1
0x1.4a1a48p+23 0x1.60a54ap+23 0x1.df452cp-1
-0x1.513b38p+23 0x1.68a2cep+7 -0x1.dec5aap+15
0x1.e2f76p+23 0x1.e30112p+23 0x1.fff5b8p-1
0x1.8p-148 0x1p+1 0x1p-148
0x1.4p-147 0x1.8p-148 0x1.aaaaaap+0
0x1p+0 0x1.fffffep+127 0x1p-128
-0x1p-126 0x1.8p+1 -0x1.555558p-128
0x1p+0 0x1.8p+1 0x1.555556p-2
0x1p-149 -0x1.fffffep+127 -0x0p+0
0x0p+0 -0x1.8p+1 -0x0p+0
0x1.fffffep+127 0x1p-1 inf
""",
        "float64": """
-0x1.c35693b12b873p+52 0x1.d84c96c592eedp+7 -0x1.e946eda64d08ep+44
0x1.780126a2e9f47p+52 0x1.c10156463f477p+52 0x1.acc1e380f12a3p-1
0x1.823516637f04ap-461 0x1.8f4105b3932d1p+564 0x0.1ef44e5373318p-1022
0x1.33ccd66a2fa44p-461 0x1.a4cdecd159d87p+564 0x0.176817a5533e5p-1022
0x1.518549cdf6914p-473 0x1.a6f7f5152c879p+576 0x0.00000019890e4p-1022
0x1.5a6df5b04695dp-473 0x1.c5baa293818f7p+576 0x0.000000186eb9dp-1022
0x1.242628e43813cp+52 0x1.7886f3be3462bp+52 0x1.8d4355fcd5bbfp-1
-0x1.40312dace419bp+52 0x1.9ff80dd63afc7p+7 -0x1.8a1caba88b0fbp+44
0x1.0743d7f955b08p+52 0x1.ce66f97ebcbd3p+52 0x1.2380cb1a21dd3p-1
0x1.02308a0f22e23p+52 0x1.0b75cf061bdcfp+52 0x1.ee40d786c1497p-1
-0x1.409b1ddb4e5f2p+52 0x1.85ba331a86ea7p+7 -0x1.a531479ead375p+44
0x1.025de4ba3a18bp+52 0x1.0de097e2019bbp+52 0x1.ea29a4d60e1b9p-1
0x0.0000000000003p-1022 0x1p+1 0x0.0000000000002p-1022
0x0.0000000000005p-1022 0x0.0000000000003p-1022 0x1.aaaaaaaaaaaabp+0
0x1p+0 0x1.fffffffffffffp+1023 0x0.4p-1022
-0x1p-1022 0x1.8p+1 -0x0.5555555555555p-1022
0x1p+0 0x1.8p+1 0x1.5555555555555p-2
0x0.0000000000001p-1022 -0x1.fffffffffffffp+1023 -0x0p+0
0x0p+0 -0x1.8p+1 -0x0p+0
0x1.fffffffffffffp+1023 0x1p-1 inf
""",
    },
    "division by 3": {
        "float32": """
0x1.01081p+23 0x1.56b56ap+21
0x1.4debcap+23 0x1.bd3a62p+21
0x1.1e01eap+23 0x1.7d57e2p+21
0x1.9cd5c6p+23 0x1.13392ep+22
0x1.b4e9cap+23 0x1.234686p+22
0x1.840ed6p+23 0x1.02b48ep+22
0x1.b8065cp+23 0x1.255992p+22
0x1.bbc53p+23 0x1.27d8cap+22
0x1.8p-148 0x1p-149
-0x1p-147 -0x1p-149
-0x1p-126 -0x1.555558p-128
""",
        "float64": """
0x1.03454579153b4p+52 0x1.59b1b1f6c6f9bp+50
0x1.145b38698961bp+52 0x1.7079a08cb72cfp+50
0x1.bbbde0220683fp+52 0x1.27d3eac159ad5p+51
0x1.3330ab914320cp+52 0x1.99963a17042bbp+50
0x1.61086efd26ef6p+52 0x1.d6b5e951893f3p+50
0x1.8cd2316cc7896p+52 0x1.088c20f32fb0fp+51
0x1.c49aff5ebe686p+52 0x1.2dbcaa3f299afp+51
0x1.ba89e45f7718p+52 0x1.2706983fa4babp+51
0x0.0000000000003p-1022 0x0.0000000000001p-1022
-0x0.0000000000004p-1022 -0x0.0000000000001p-1022
-0x1p-1022 -0x0.5555555555555p-1022
""",
    },
    "square root": {
        "float32": """
0x1.f82294p+26 0x1.673f4cp+13
0x1.f82294p+40 0x1.673f4cp+20
0x1.8p-148 0x1.3988e2p-74
0x1p+1 0x1.6a09e6p+0
0x1.000006p+28 0x1.000002p+14
0x1.fffffap-5 0x1.fffffcp-3
0x1.cp-147 0x1.deeea2p-74
0x1.fffffep+127 0x1.fffffep+63
-0x0p+0 -0x0p+0
0x0p+0 0x0p+0
0x1.618d86p+34 0x1.2cd916p+17
0x1.aa3b7ep-49 0x1.d326e8p-25
0x1.24b0b2p+92 0x1.11bb28p+46
0x1.dd26e4p-47 0x1.ee44dap-24
0x1.00000ap+60 0x1.000004p+30
0x1.fffff6p+65 0x1.fffffap+32
0x1.52f7dep+10 0x1.2693d4p+5
0x1.b5c076p+7 0x1.d96c2ep+3
""",
        "float64": """
0x1.d407bb3641da5p+58 0x1.5a24e31b39fa6p+29
0x1.5b95344972fe2p+15 0x1.a5db1ce4c605bp+7
0x0.0000000000003p-1022 0x1.bb67ae8584caap-537
0x1p+1 0x1.6a09e667f3bcdp+0
0x1.0000000000003p+124 0x1.0000000000001p+62
0x1.ffffffffffffdp+53 0x1.ffffffffffffep+26
0x0.0000000000007p-1022 0x1.52a7fa9d2f8eap-536
0x1.fffffffffffffp+1023 0x1.fffffffffffffp+511
-0x0p+0 -0x0p+0
0x0p+0 0x0p+0
0x1.256565cadcbf4p+88 0x1.120f999e99374p+44
0x1.256565cadcbf4p-24 0x1.120f999e99374p-12
0x1.2b035c1197f48p+76 0x1.14ac03ef7226dp+38
0x1.2b035c1197f48p+32 0x1.14ac03ef7226dp+16
0x1.0000000000005p+88 0x1.0000000000002p+44
0x1.ffffffffffffbp-1 0x1.ffffffffffffdp-1
0x1.e99893042c2cbp+110 0x1.62077061349eap+55
0x1.4eb5f85e783a9p+17 0x1.9df88f9ecb617p+8
""",
    },
    "a * b + c": {
        "float32": """
0x1.940448p+0 0x1.f4b30ep+0 -0x1.2f0336p+2 -0x1.a5d9e8p+0
0x1.96d776p+0 0x1.fdfe3ap+0 -0x1.953f36p+1 0x0p+0
0x1.47b5c4p+0 0x1.e8cd26p+0 -0x1.eb90a6p+1 -0x1.65683p+0
0x1.bdf96p+0 0x1.42d23cp+0 -0x1.1930f4p+1 0x0p+0
0x1.bf03d2p+0 0x1.23205ap+0 -0x1.4f42dep+2 -0x1.a058dp+1
0x1.cf421p+0 0x1.f1e758p+0 -0x1.c280f2p+1 0x0p+0
0x1.57427cp+0 0x1.e94bbep+0 -0x1.0171dcp+2 -0x1.75b3ep+0
0x1.79323ap+0 0x1.8c1b96p+0 -0x1.23d12cp+1 0x0p+0
""",
        "float64": """
0x1.5743cb26a5a4cp+0 0x1.b3ff06b573775p+0 -0x1.0172d85cfc3b9p+2 -0x1.bd2d39bb05736p+0
0x1.afa41f1530817p+0 0x1.526125cb20a87p+0 -0x1.1d453ef97be2cp+1 0x0p+0
0x1.21dcbb0d65642p+0 0x1.f88aef7742f08p+0 -0x1.b2cb189418163p+1 -0x1.2a4e50c4df4eep+0
0x1.0d456ecae43dcp+0 0x1.45a17babbd15ep+0 -0x1.5683006741dbbp+0 0x0p+0
0x1.9fdbd72c46f05p+0 0x1.e3fed3f3e43bfp+0 -0x1.37e4e16135344p+2 -0x1.cd59ca1e6a434p+0
0x1.f1e018a1385bcp+0 0x1.31a1bfea40bdbp+0 -0x1.29334842ac54cp+1 0x0p+0
0x1.478d6bbf99ffap+0 0x1.4aedd29127792p+0 -0x1.eb54219f66ff7p+1 -0x1.179dd580aa8d8p+1
0x1.b5ee3fe812efep+0 0x1.d9a40084a9469p+0 -0x1.951ee0cbd60aap+1 0x0p+0
""",
    },
}
"""Numbers whose sums, products, quotients and roots tell a nearly right way from a right one, each
row with what it has to give at its end. Most lie as near to the middle between two neighbours as
can be, on either side; others are rounded wrongly by who rounds to more bits first, or are
subnormal. tests/make_arithmetic.py says how they were found, and prints them."""
