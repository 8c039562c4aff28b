"""The checks of a backend: what is promised, what broke it, and what mends it."""

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from xnet.arithmetic import unchecked
from xnet.backend import Array, Backend, backends, resolve
from xnet.testing import parity
from xnet.testing.contracts import CONTRACTS

if TYPE_CHECKING:
    import pytest

AnyBackend: TypeAlias = str | type[Backend] | Backend
"""A registered name, a class that need not be registered, or an instance."""

DTYPES = ("float32", "float64")

PROMISES = {
    True: "in reproducible mode the same program gives the same bits on every backend",
    False: "in fast mode results differ by what rounding explains, and by no more",
}
"""By whether it is reproducible mode."""

MENDING = {
    True: "give the generic form's very bits: every product and sum rounded by itself (no fused "
    "multiply-add, no fast-math), products and sums over an axis by xnet.exact, exp and log too; "
    "hand on what it cannot do so: `if self.reproducible: return super().{}(...)`",
    False: "compare its formula, signs, axes and what it remembers with the generic form, "
    "`super().{}(...)`, which also takes whatever your kernel does not know",
}

OF_ITS_LIBRARY = (
    "no override of Backend's has a part in it: it is the library's own, reached by `xp`, the "
    "arrays' operators, `asarray` or `to_numpy`"
)
MEND_THE_LIBRARY = (
    "give `xp` a function of that name which does it as the standard and IEEE 754 say, or have "
    "the library do so (docs/backends.md, What its library has to give)"
)


class BrokenPromiseError(AssertionError):
    """A backend breaks a promise: which, what broke it, and how to mend it.

    Examples
    --------
    >>> import xnet
    >>> class Wrong(type(xnet.resolve("numpy"))):
    ...     name = "wrong"
    ...     def exp(self, a):
    ...         return 1.001 * super().exp(a)
    >>> for check in xnet.testing.checks(dtypes=["float64"], modes=[False], numbers=["normal"]):
    ...     if check.trial.name == "exp":
    ...         check(Wrong)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    BrokenPromiseError: exp, fast, float64: wrong breaks a promise ...
    """


class Generic(Backend):
    """The generic forms and nothing else, on NumPy's arrays: what NumPy's backend is held to."""

    name = "generic"
    xp: Any = np

    def owns(self, array: object) -> bool:
        return type(array) is np.ndarray or isinstance(array, np.generic)

    def writable(self, array: Array) -> bool:
        return bool(array.flags.writeable)

    def running(self) -> Any:
        return np.errstate(all="ignore")


@cache
def _instance(backend: type[Backend], reproducible: bool) -> Backend:
    """That of a class; kept, for what it has compiled."""
    device = 0 if backend.device_count() else None
    return backend(device, reproducible=reproducible)


def _made(backend: AnyBackend, reproducible: bool) -> Backend:
    if not isinstance(backend, type):
        return resolve(backend, reproducible)
    if backend.name in (info.name for info in backends()):
        registered = resolve(backend.name, reproducible)
        if type(registered) is backend:  # that one is what its label and its pickle come to
            return registered
    return _instance(backend, reproducible)


@dataclass(frozen=True, repr=False)
class Check:
    """One promise, of one thing that is computed, in one mode and dtype.

    Call it with a backend: it raises `BrokenPromiseError` if the promise is broken.

    Attributes
    ----------
    trial
        What is computed.
    reproducible
        The mode.
    dtype
        ``"float32"`` or ``"float64"``.
    kinds
        The kinds of numbers that it is tried on.
    seed
        Of these numbers.

    Examples
    --------
    >>> import xnet
    >>> check = next(c for c in xnet.testing.checks() if c.trial.name == "matmul")
    >>> check
    <check matmul, reproducible, float32>
    >>> check.promise
    'in reproducible mode the same program gives the same bits on every backend'
    >>> check.run("numpy").kept
    True
    """

    trial: parity.Trial
    reproducible: bool
    dtype: str
    kinds: tuple[str, ...]
    seed: int = 0

    @property
    def name(self) -> str:
        """Its name, as in ``"matmul, reproducible, float32"``: pytest's id of it."""
        mode = "reproducible" if self.reproducible else "fast"
        return f"{self.trial.name}, {mode}, {self.dtype}"

    @property
    def promise(self) -> str:
        """What is promised."""
        contract = CONTRACTS.get(self.trial.name)
        return contract.promise if contract else PROMISES[self.reproducible]

    def __repr__(self) -> str:
        return f"<check {self.name}>"

    def verdicts(self, backend: AnyBackend) -> Iterator[parity.Verdict]:
        """How its results compare with the reference's, for each kind of numbers.

        A backend whose arithmetic is refused in reproducible mode is tried all the same: the check
        "arithmetic" says so, others what comes of it.
        """
        with unchecked():
            here = _made(backend, self.reproducible)
            reference = self._reference(here)
            for kind in self.kinds:
                draw = parity.numbers(kind, self.dtype, self.seed)
                yield parity.verdict(self.trial, here, reference, self.dtype, draw, kind)

    def _reference(self, backend: Backend) -> Backend:
        """NumPy's backend; for what that one computes itself, the generic forms."""
        numpy = resolve("numpy", backend.reproducible)
        if not isinstance(backend, type(numpy)) or self.trial.name in CONTRACTS:
            return numpy
        return _instance(Generic, backend.reproducible)

    def run(self, backend: AnyBackend) -> "Outcome":
        """Try it; whatever the backend raises, its making included, is in the outcome."""
        try:
            return Outcome(self, backend, tuple(self.verdicts(backend)))
        except Exception as error:  # a plug-in that cannot be made here, or in this mode
            label = backend.name if isinstance(backend, type) else str(backend)
            facts = "made at all", self.dtype, label, self.reproducible
            fault = parity.Verdict(*facts, error=parity.described(error))
            return Outcome(self, backend, (fault,))

    def __call__(self, backend: AnyBackend) -> None:
        """Try it, and raise `BrokenPromiseError` with all that `Outcome.message` says."""
        __tracebackhide__ = True  # of pytest: the message says it all
        outcome = self.run(backend)
        if not outcome.kept:
            raise BrokenPromiseError(outcome.message)


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes
    ----------
    check
        The check.
    backend
        What was tried, as it was named.
    verdicts
        One for each kind of numbers.

    Examples
    --------
    >>> import xnet
    >>> class Wrong(type(xnet.resolve("numpy"))):
    ...     name = "wrong"
    ...     def exp(self, a):
    ...         return 1.001 * super().exp(a)
    >>> found = xnet.testing.checks(dtypes=["float64"], modes=[False], numbers=["normal"])
    >>> outcome = next(check for check in found if check.trial.name == "exp").run(Wrong)
    >>> outcome.kept
    False
    >>> outcome.message.splitlines()[0]
    'exp, fast, float64: wrong breaks a promise'
    """

    check: Check
    backend: AnyBackend = field(repr=False)
    verdicts: tuple[parity.Verdict, ...]

    @property
    def kept(self) -> bool:
        """Whether the promise is kept on all of them."""
        return all(verdict.kept for verdict in self.verdicts)

    @property
    def broken(self) -> list[parity.Verdict]:
        """The verdicts that say it is not."""
        return [verdict for verdict in self.verdicts if not verdict.kept]

    @property
    def message(self) -> str:
        """Which promise is broken, on what, by which kernel, and how to mend it; "" if kept.

        The kernel is found by putting the generic form in the place of the overrides that are
        called: those without which the promise is broken still, or again, are to blame.
        """
        if not self.broken:
            return ""
        first, contract = self.broken[0], CONTRACTS.get(self.check.trial.name)
        if first.operation == "made at all":
            by, mend = (
                "__init__",
                "let the class be made as Backend's is: (device, *, reproducible)",
            )
        elif contract:
            by, mend = contract.members, contract.mend
        else:
            by, mend = self._blamed(first)
        kinds: dict[str, list[str]] = {}
        for verdict in self.broken:
            kinds.setdefault(_described(verdict), []).append(verdict.numbers)
        found = "; ".join(f"{how}, on numbers {', '.join(on)}" for how, on in kinds.items())
        return (
            f"{self.check.name}: {first.backend} breaks a promise\n"
            f"  promise: {self.check.promise}\n"
            f"  broken:  {found}\n"
            f"  by:      {by}\n"
            f"  mend:    {mend}"
        )

    def _blamed(self, first: parity.Verdict) -> tuple[str, str]:
        """By what the first of the broken was broken, and what mends it."""
        one = replace(self.check, kinds=(first.numbers,))
        with unchecked():
            here = _made(self.backend, first.reproducible)
        guilty = _called(one, here)
        if not guilty or not one.run(_without(here, guilty)).kept:
            return OF_ITS_LIBRARY, MEND_THE_LIBRARY
        for name in list(guilty):  # each that may stay is none of them
            others = [other for other in guilty if other != name]
            if one.run(_without(here, others)).kept:
                guilty = others
        places = " and ".join(_place(here, name) for name in guilty)
        why = "with Backend's generic form in its place the promise is kept"
        return f"{places}: {why}", MENDING[first.reproducible].format(guilty[0])


def _described(verdict: parity.Verdict) -> str:
    """What is wrong, in words."""
    if verdict.error is not None:
        return verdict.error
    if not math.isfinite(verdict.ulps):
        return "one of the results is not finite, or of another shape or dtype"
    if verdict.reproducible and not verdict.ulps:
        return "a sign of 0, a shape or a dtype is another"
    apart = f"off by {verdict.ulps:,.3g} ulp"
    if verdict.reproducible:
        return apart
    if math.isinf(verdict.share):
        return f"{apart}, where nothing is rounded"
    return f"{apart}, {verdict.share:,.3g} times the bound"


# -- which override it is


def _overrides(cls: type[Backend]) -> list[str]:
    """What of `Backend` a class has its own of, and could do without."""
    return [
        name
        for name, member in vars(Backend).items()
        if inspect.isfunction(member) and not name.startswith("__") and name != "owns"
        if getattr(cls, name) is not member
    ]


def _with(backend: Backend, members: Mapping[str, Any]) -> Backend:
    """One more of its class, with these members instead of its own."""
    cls = type(backend)
    changed = cast("type[Backend]", type(cls.__name__, (cls,), dict(members)))
    return changed(backend.device, reproducible=backend.reproducible)


def _without(backend: Backend, names: Collection[str]) -> Backend:
    return _with(backend, {name: vars(Backend)[name] for name in names})


def _called(check: Check, backend: Backend) -> list[str]:
    """The overrides that are called when it is tried."""
    called: dict[str, None] = {}

    def noted(name: str) -> Callable[..., Any]:
        own = getattr(type(backend), name)

        @wraps(own)
        def call(*arguments: Any, **options: Any) -> Any:
            called[name] = None
            return own(*arguments, **options)

        return call

    check.run(_with(backend, {name: noted(name) for name in _overrides(type(backend))}))
    return list(called)


def _place(backend: Backend, name: str) -> str:
    """An override, and where it stands."""
    member = inspect.unwrap(getattr(type(backend), name))
    owner = next(cls for cls in type(backend).__mro__ if name in vars(cls))
    code = getattr(member, "__code__", None)
    where = f" ({Path(code.co_filename).name}, line {code.co_firstlineno})" if code else ""
    return f"{owner.__name__}.{name}{where}"


# -- all of them


def checks(
    *,
    dtypes: Collection[str] = DTYPES,
    modes: Collection[bool] = (True, False),
    numbers: Collection[str] | None = None,
    seed: int = 0,
) -> list[Check]:
    """Every check there is, of the operations and optimizers that are registered now.

    Parameters
    ----------
    dtypes
        What they are tried in.
    modes
        Whether reproducible: both, or one of them.
    numbers
        The kinds of numbers (`parity.NUMBERS`, `parity.HURTFUL`); None for all.
    seed
        Of the numbers.

    Returns
    -------
    list of Check
        A thing that is computed, a mode and a dtype each.

    Raises
    ------
    ValueError
        A kind of numbers that is unknown.

    Examples
    --------
    >>> import xnet
    >>> found = xnet.testing.checks(dtypes=["float32"], modes=[True])
    >>> [check.name for check in found if check.trial.name in ("matmul", "exp")]
    ['matmul, reproducible, float32', 'exp, reproducible, float32']
    """
    known = {**parity.NUMBERS, **parity.HURTFUL}
    for kind in numbers or ():
        if kind not in known:
            raise ValueError(f"numbers: {kind!r} is no kind, expected some of {list(known)}")
    trials = [*parity.trials(), *parity.longer()]
    found = (
        Check(trial, mode, dtype, kinds, seed)
        for mode in modes
        for trial in trials
        if mode or not trial.exact
        for dtype in dtypes
        if dtype in trial.dtypes
        if (kinds := _kinds(trial, mode, numbers))
    )
    return list(found)


def _kinds(
    trial: parity.Trial, reproducible: bool, numbers: Collection[str] | None
) -> tuple[str, ...]:
    kinds = trial.kinds(reproducible)
    return kinds if numbers is None else tuple(kind for kind in kinds if kind in numbers)


def check_backend(backend: AnyBackend, **which: Any) -> Iterator[Outcome]:
    """Try a backend without pytest: the outcome of each check, one after the other.

    Parameters
    ----------
    backend
        Its name, as ``"numba"`` or ``"cupy:1"``, or its class.
    which
        Keywords of `checks`.

    Returns
    -------
    iterator of Outcome
        In the order of `checks`.

    Examples
    --------
    A loop goes through all outcomes, of which each is computed when it is asked for:

    >>> import xnet
    >>> outcomes = xnet.testing.check_backend("numpy", dtypes=["float32"], modes=[True])
    >>> first = next(outcomes)
    >>> first.check, first.kept
    (<check label, device, mode, reproducible, float32>, True)
    """
    return (check.run(backend) for check in checks(**which))


def parametrize_with_checks(
    backend: str | type[Backend],
    *,
    expected_failed_checks: Mapping[str, str] | None = None,
    only: Callable[[Check], bool] | None = None,
    **which: Any,
) -> "pytest.MarkDecorator":
    """Make pytest's decorator: a test of `backend` and `check`, for every check.

    A backend that cannot run here is one skipped test that says why.

    Parameters
    ----------
    backend
        Its name, or its class.
    expected_failed_checks
        Reasons by checks that are known to fail, shown as xfail: a check's name, that of what is
        computed in whatever mode and dtype, or a pattern of `fnmatch`.
    only
        Says of a check whether it is wanted; None for all.
    which
        Keywords of `checks`.

    Returns
    -------
    pytest.MarkDecorator
        Of a test with the arguments `backend` and `check`.

    Raises
    ------
    ValueError
        An expected failure that is no check's.
    BackendError
        No such backend is registered.

    Examples
    --------
    In the tests of whoever writes a backend:

    >>> from xnet.testing import parametrize_with_checks
    >>> @parametrize_with_checks("numpy", only=lambda check: check.trial.name == "matmul")
    ... def test_my_backend(backend, check):
    ...     check(backend)
    >>> [one.id for one in test_my_backend.pytestmark[0].args[1]][:2]
    ['numpy-matmul, reproducible, float32', 'numpy-matmul, reproducible, float64']
    """
    import pytest

    if reason := _why_unusable(backend):
        skip = pytest.mark.skip(reason=f"{_label(backend)}: {reason}")
        unusable = pytest.param(backend, None, id=f"{_label(backend)}-unusable", marks=skip)
        return pytest.mark.parametrize(("backend", "check"), [unusable])
    found = [check for check in checks(**which) if only is None or only(check)]
    expected = dict(expected_failed_checks or {})
    for pattern in expected:
        if not any(_meant(pattern, check) for check in found):
            raise ValueError(f"expected_failed_checks: no check is named {pattern!r}")
    return pytest.mark.parametrize(
        ("backend", "check"),
        [
            pytest.param(
                backend,
                check,
                id=f"{_label(backend)}-{check.name}",
                marks=[
                    pytest.mark.xfail(reason=reason)
                    for pattern, reason in expected.items()
                    if _meant(pattern, check)
                ],
            )
            for check in found
        ],
    )


def _meant(pattern: str, check: Check) -> bool:
    names = check.name, check.trial.name
    return pattern in names or fnmatchcase(check.name, pattern)


def _label(backend: str | type[Backend]) -> str:
    return backend if isinstance(backend, str) else backend.name


def _why_unusable(backend: str | type[Backend]) -> str | None:
    if isinstance(backend, type):
        return backend.why_unusable()
    reasons = {info.name: info.reason for info in backends()}
    name = backend.partition(":")[0]
    if name not in reasons:
        resolve(backend)  # says what there is
    return reasons.get(name)
