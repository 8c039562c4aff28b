"""Do the backends agree? Everything that the library computes, on each of them, against NumPy.

What is tried follows from the registries: what a backend's own methods have to mean
(`xnet.testing.contracts`), every operation, a user's own included, and every optimizer; then
networks of them. They are tried on numbers as a network meets them, and on such as only NumPy's
care keeps right (`NUMBERS`). In reproducible mode two results are equal or they are not: the bits
are compared. In fast mode they may differ by what rounding can do, no more; how much that is, the
very formulas say, interpreted with numbers that carry their rounding errors (`xnet.bounds.Bounds`).
Each of two backends may be that far off, so they may be twice that apart.
"""

import dataclasses
import math
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import cycle
from typing import Any, TypeAlias, cast

import numpy as np

from xnet import activations, formulas, notebook, weights
from xnet.backend import Array, Backend, use_backend
from xnet.bounds import Bounded, Bounds
from xnet.dtypes import dtype_name
from xnet.errors import RoundingWarning
from xnet.formulas import Arrays
from xnet.gradient import numerical_gradient
from xnet.layers import Add, Layer, Mul
from xnet.losses import mean_squared_error
from xnet.network import Network
from xnet.operations import (
    Affine,
    Loss,
    Operation,
    ReLU,
    Sigmoid,
    Softmax,
    SoftmaxWithLoss,
    registered,
)
from xnet.optimizers import OPTIMIZERS, Adam, Optimizer
from xnet.random import Generator
from xnet.spellings import required
from xnet.testing.contracts import CONTRACTS, Contract, ContractError
from xnet.training import train

__all__ = [
    "Trial",
    "Verdict",
    "Verdicts",
    "numbers",
    "standard_normal",
    "training_hash",
    "trials",
    "verdict",
]

Host: TypeAlias = np.ndarray[Any, Any]
Draw: TypeAlias = Callable[[int, int], Host]
"""Makes a float64 matrix of the shape asked for: the kind of numbers an operation is tried on."""
Run: TypeAlias = Callable[[Any, list[Array]], list[Array]]
"""Computes on a backend, from arrays there, a list of arrays."""

LIBRARY_ULPS = 4
"""How far, in units in the last place, two libraries' exp or log may be apart."""

N, D, M, C = 20, 30, 12, 10
"""Samples, inputs, units and classes of the arrays."""

STEP = 1e-4
"""The h of the numerical gradient."""

TRAINING_STEPS = 3
"""Of the training runs: errors grow from step to step, and so do their bounds."""


# -- the numbers


Change: TypeAlias = Callable[[Any, Any, Any, bool], Any]


def _normal(a: Any, limits: Any, rng: Any, first: bool) -> Any:
    return a


def _subnormal(a: Any, limits: Any, rng: Any, first: bool) -> Any:
    return (a * 1000).round() * float(limits.smallest_subnormal) if first else a


def _huge(a: Any, limits: Any, rng: Any, first: bool) -> Any:
    return a * (float(limits.max) / 1e4) if first else a


def _of_all_sizes(a: Any, limits: Any, rng: Any, first: bool) -> Any:
    exponents = rng.integers(limits.maxexp, a.shape) - limits.maxexp // 2
    return np.ldexp(a, exponents)  # exact, as 2.0 ** of a fraction is not


def _not_finite(a: Any, limits: Any, rng: Any, first: bool) -> Any:
    places = rng.uniform(a.shape) < 0.05
    kinds = np.asarray([np.inf, -np.inf, np.nan, 0.0, -0.0])
    a[places] = kinds[rng.integers(len(kinds), int(places.sum()))]
    return a


NUMBERS: dict[str, Change] = {
    "normal": _normal,
    "subnormal": _subnormal,
    "huge": _huge,
    "of all sizes": _of_all_sizes,
    "not finite": _not_finite,
}
"""What is made of normal random numbers, by what they are then: from `np.finfo` of the dtype tried,
a generator, and whether the array is the first of three. Subnormal numbers would make nothing but
zeros of each other, and huge ones infinity."""


def _cancelling(a: Any, limits: Any, rng: Any, first: bool) -> Any:
    rows, columns = (n // 2 for n in a.shape)
    a[:, columns : 2 * columns] = -a[:, :columns]
    a[rows : 2 * rows] = a[:rows]
    return a


def _zeros(a: Host, limits: Any, rng: Any, first: bool) -> Any:
    return np.copysign(0.0, a)


def _mostly_zeros(a: Host, limits: Any, rng: Any, first: bool) -> Any:
    return np.where(rng.uniform(a.shape) < 0.9, np.copysign(0.0, a), a)


def _one_huge(a: Any, limits: Any, rng: Any, first: bool) -> Any:
    a[a.shape[0] // 2, a.shape[1] // 2] = 1e30
    return a


def _powers_of_two(a: Host, limits: Any, rng: Any, first: bool) -> Any:
    return np.copysign(np.ldexp(1.0, rng.integers(60, a.shape) - 30), a)


HURTFUL: dict[str, Change] = {
    "cancelling": _cancelling,
    "zeros": _zeros,
    "mostly zeros": _mostly_zeros,
    "one huge": _one_huge,
    "powers of two": _powers_of_two,
}
"""As `NUMBERS`: for reproducible mode, which has its bits whatever the numbers. A fast mode's bound
may be nothing, or anything, for these."""


def numbers(kind: str, dtype: str, seed: int = 0) -> Draw:
    """Numbers of one of the kinds of `NUMBERS` or `HURTFUL`, for trials in `dtype`.

    Parameters
    ----------
    kind
        One of `NUMBERS` or `HURTFUL`.
    dtype
        ``"float32"`` or ``"float64"``, whose limits decide what is huge and what subnormal.
    seed
        Of the numbers.

    Returns
    -------
    function
        Of rows and columns; it gives float64, (rows, columns), and others every time.

    Examples
    --------
    >>> from xnet.testing import parity
    >>> draw = parity.numbers("normal", "float64")
    >>> draw(1, 2).round(4).tolist()
    [[0.3503, -0.6135]]
    >>> parity.numbers("powers of two", "float32")(1, 3).tolist()
    [[1.862645149230957e-09, -4194304.0, -268435456.0]]
    """
    change: Change = {**NUMBERS, **HURTFUL}[kind]
    rng, limits, firsts = Generator(seed), np.finfo(dtype), cycle((True, False, False))

    def draw(rows: int, columns: int) -> Host:
        normal = rng.normal((rows, columns))
        return change(normal, limits, rng, next(firsts))

    return draw


@dataclasses.dataclass(frozen=True)
class Trial:
    """Something that the library computes.

    Attributes
    ----------
    name
        As the table has it.
    arrays
        Makes the inputs, float64, from `Draw`.
    run
        Computes on a backend, from those inputs there in the dtype tried, a list of arrays.
    bound
        The same on `Bounding`: numbers with how far they may be off. None where rounding leaves no
        choice: each number is rounded correctly, in one order, and so equal in fast mode too.
    dtypes
        What it is tried in.
    numbers
        What it is tried on: names of `NUMBERS`.
    hurtful
        What it is tried on besides in reproducible mode.
    exact
        Whether it is of reproducible mode alone.

    Examples
    --------
    >>> import xnet
    >>> from xnet.testing import parity
    >>> def twice(backend, inputs):
    ...     return [2 * inputs[0]]
    >>> trial = parity.Trial("twice", lambda draw: [draw(2, 2)], twice)
    >>> here = xnet.resolve("numpy")
    >>> parity.verdict(trial, here, here, "float64", parity.standard_normal()).equal
    True
    """

    name: str
    arrays: Callable[[Draw], list[Host]]
    run: Run
    bound: Run | None = None
    dtypes: tuple[str, ...] = ("float32", "float64")
    numbers: tuple[str, ...] = tuple(NUMBERS)
    hurtful: tuple[str, ...] = tuple(HURTFUL)
    exact: bool = False

    def kinds(self, reproducible: bool) -> tuple[str, ...]:
        """The kinds of numbers that it is tried on in that mode."""
        return (*self.numbers, *self.hurtful) if reproducible else self.numbers


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a backend's result of one trial compares with the reference's.

    `ulps` is the largest difference in units in the last place, `share` the largest share of the
    bound that a difference takes; inf where only one of the two is finite, or the bound is 0.
    `error` is what the backend raised, if it did, or which contract it breaks.

    Examples
    --------
    >>> from xnet.testing import parity
    >>> parity.Verdict("exp", "float64", "numba", reproducible=False, ulps=1.0, share=0.2).kept
    True
    >>> parity.Verdict("exp", "float64", "numba", reproducible=True, ulps=1.0, share=0.2).kept
    False
    """

    operation: str
    dtype: str
    backend: str
    reproducible: bool
    numbers: str = "normal"
    equal: bool = False
    ulps: float = math.inf
    share: float = math.inf
    error: str | None = None

    @property
    def kept(self) -> bool:
        """Whether the mode's promise is kept."""
        return self.equal if self.reproducible else self.share <= 1

    _repr_html_ = notebook.verdict


class Verdicts(list[Verdict]):
    """A list of verdicts that a notebook shows as a table.

    Examples
    --------
    >>> from xnet.testing import parity
    >>> found = parity.Verdicts([parity.Verdict("exp", "float64", "numba", False, share=0.2)])
    >>> found[0].kept, "<table>" in found._repr_html_()
    (True, True)
    """

    _repr_html_ = notebook.verdicts


class NotPromisedError(Exception):
    """What is tried is refused, and may be: nothing is broken."""


def verdict(
    trial: Trial,
    backend: Backend,
    reference: Backend,
    dtype: str,
    draw: Draw,
    numbers: str = "normal",
) -> Verdict:
    """Try it on both backends, on what `draw` gives, and compare.

    Parameters
    ----------
    trial
        What is computed.
    backend, reference
        On which, and what that is compared with; both in one mode.
    dtype
        ``"float32"`` or ``"float64"``.
    draw
        Gives the numbers; see `numbers`.
    numbers
        What they are called.

    Returns
    -------
    Verdict
        Also where a backend raises: what it said is its `error`.

    Examples
    --------
    >>> import xnet
    >>> from xnet.testing import parity
    >>> matmul = next(trial for trial in parity.trials() if trial.name == "matmul")
    >>> here = xnet.resolve("numpy", reproducible=True)
    >>> found = parity.verdict(matmul, here, here, "float32", parity.standard_normal())
    >>> found.operation, found.dtype, found.equal, found.ulps, found.kept
    ('matmul', 'float32', True, 0.0, True)
    """
    facts = trial.name, dtype, backend.label, reference.reproducible, numbers
    where = f"on {reference.label}: "
    try:
        inputs = [array.astype(dtype) for array in trial.arrays(draw)]
        expected = results(trial, reference, inputs)
        limits = bounds(trial, inputs, dtype) if trial.bound else [0.0] * len(expected)
        where = ""
        found = results(trial, backend, inputs)
        with np.errstate(all="ignore"):
            compared = list(zip(expected, found, limits, strict=True))
            return Verdict(
                *facts,
                equal=all(same_bits(a, b) for a, b, _ in compared),
                ulps=max((_ulps(a, b) for a, b, _ in compared), default=0.0),
                share=max((_share(*each) for each in compared), default=0.0),
            )
    except NotPromisedError:
        return Verdict(*facts, equal=True, ulps=0.0, share=0.0)
    except ContractError as broken:
        return Verdict(*facts, error=f"{where}{broken}")
    except Exception as error:  # whatever a plug-in raises: the other trials tell more
        return Verdict(*facts, error=where + described(error))


def described(error: Exception) -> str:
    """An exception's type and text, also where it cannot be written as text."""
    return traceback.format_exception_only(error)[-1].strip()


def results(trial: Trial, backend: Backend, inputs: list[Host]) -> list[Host]:
    """What it gives on `backend`, brought to the host; `ContractError` if it writes to an input."""
    with use_backend(backend), backend.running():
        given = [backend.asarray(np.array(array)) for array in inputs]
        found = [np.asarray(backend.to_numpy(array)) for array in trial.run(backend, given)]
        for array, before in zip(given, inputs, strict=True):
            if not same_bits(np.asarray(backend.to_numpy(array)), before):
                raise ContractError("an input has other numbers than before")
        return found


def bounds(trial: Trial, inputs: list[Host], dtype: str) -> list[Any]:
    """How far two fast backends' results may be apart: arrays that broadcast against them."""
    backend = Bounding(dtype)
    with np.errstate(all="ignore"):
        arrays = [backend.asarray(array) for array in inputs]
        found = (trial.bound or trial.run)(backend, arrays)
        # Where a division may be by nothing, its error has no bound, and inf times 0 is no number.
        return [2 * np.where(np.isnan(bounded.e), math.inf, bounded.e) for bounded in found]


def same_bits(a: Host, b: Host) -> bool:
    """Whether two arrays are the same: dtype, shape and every bit, the sign of 0 included.

    NaN is NaN: which of its many patterns a processor makes is not IEEE 754's to say.
    """
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    integer = f"i{a.dtype.itemsize}"
    same = np.atleast_1d(a).view(integer) == np.atleast_1d(b).view(integer)
    return bool(np.all(same | np.atleast_1d(np.isnan(a) & np.isnan(b))))


def _difference(a: Host, b: Host) -> Host:
    """|a - b| in float64, 0 where both are the same infinity or NaN."""
    if a.shape != b.shape:
        return np.array(np.inf)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    difference = np.where(same, 0.0, np.abs(a.astype(np.float64) - b.astype(np.float64)))
    return np.nan_to_num(difference, nan=np.inf, posinf=np.inf)


def _ulps(a: Host, b: Host) -> float:
    difference = _difference(a, b)
    spacing = np.spacing(np.maximum(np.abs(a), np.abs(b))).astype(np.float64)
    ulps = np.where(difference == 0, 0.0, difference / spacing)
    return float(np.nan_to_num(ulps, nan=np.inf, posinf=np.inf).max(initial=0))


def _share(a: Host, b: Host, bound: Any) -> float:
    difference = _difference(a, b)
    within = (difference == 0) | (bound == np.inf)
    share = np.where(within, 0.0, difference / np.maximum(bound, 0))
    return float(np.nan_to_num(share, nan=np.inf, posinf=np.inf).max(initial=0))


# -- what interprets a trial for its bound


class _Training(Bounds):
    """`Bounds` with what `Arrays` has for training besides."""

    def __init__(self, backend: "Bounding", training: bool, state: Any, draw: Any) -> None:
        super().__init__(backend.xp, backend.u, LIBRARY_ULPS / 2, training)
        self.state, self.draw = state, draw
        self.moved: dict[str, Bounded] = {}

    def uniform(self, like: Bounded) -> Bounded:
        """Random numbers, which the dtype holds."""
        v = self.draw(tuple(like.shape), "float32" if self.u == 2.0**-24 else "float64")
        return self.take(v.astype(np.float64))

    move: Any = Arrays.move


class Bounding(Backend):
    """A backend whose arrays are numbers with how far a fast backend may be from them.

    Whatever is written in terms of a backend's operations says on this one how far it may be off.

    Parameters
    ----------
    dtype
        The precision that the backends compute in.
    """

    name = "bounds"
    xp: Any = np

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.u = float(np.finfo(dtype).eps) / 2

    @cached_property
    def maths(self) -> Any:
        return _Training(self, False, {}, None)

    def asarray(self, values: Any, dtype: Any = None, name: str = "values") -> Bounded:
        return self.maths.take(np.asarray(values, np.float64))

    def matmul(self, a: Array, b: Array) -> Array:
        return self.maths.matmul(a, b)

    def sum(self, a: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        if axis == -1 and keepdims:
            return self.maths.sum(a)
        v, e = (np.ravel(x) if axis is None else np.moveaxis(x, axis, 0) for x in (a.v, a.e))
        return self.maths.total(Bounded(v, e, a.u))

    def _elementary(self, name: str, a: Array) -> Array:
        return getattr(self.maths, name)(a)

    def row_losses(self, loss: Loss, x: Array, t: Array) -> Array:
        rows = loss.forward(self.maths, x, t)
        return Bounded(rows.v[..., 0], rows.e[..., 0], rows.u)


def _maths(backend: Any, training: bool, state: Any, draw: Any) -> Any:
    """What interprets an operation that trains, or has state, on a backend's arrays."""
    return (_Training if isinstance(backend, Bounding) else Arrays)(backend, training, state, draw)


# -- a backend's contracts


def _contract_trial(name: str, contract: Contract) -> Trial:
    """On normal numbers; where they are but to be kept, on all."""
    kept = name.endswith("values")
    return Trial(
        name,
        lambda draw: [draw(N, D)],
        lambda b, i: contract.run(b, *i),
        numbers=tuple(NUMBERS) if kept else ("normal",),
        hurtful=tuple(HURTFUL) if kept else (),
    )


# -- operations


def _one_hot(rows: int, classes: int = C) -> Host:
    return np.eye(classes)[np.arange(rows) * 7 % classes]


def _drawn(seed: int = 0) -> Callable[[tuple[int, ...], str], Host]:
    """The same random numbers in [0, 1) on every backend."""
    return Generator(seed).uniform


def made(operation: type[Operation], *sizes: int) -> Any:
    """An operation with its defaults; a setting without one is a size, from `sizes`, or 1/2."""
    given = iter(sizes)
    settings: dict[str, Any] = {
        name: 0.5 if kind in (float, "float") else next(given, sizes[-1])
        for name, kind in required(operation).items()
    }
    return operation(**settings)


def _shapes(operation: Operation) -> list[tuple[int, ...]]:
    """Those of its parameters."""
    return [operation.shape(sizes) for sizes in operation.parameters.values()]


def _parameters(draw: Draw, operation: Operation) -> list[Host]:
    """Numbers for its parameters; matrices scaled so that what they are met with keeps its size."""
    found: list[Host] = []
    for shape in _shapes(operation):
        numbers = draw(math.prod(shape[:-1]), shape[-1]).reshape(shape)
        found.append(numbers / math.sqrt(shape[0]) if len(shape) > 1 else numbers)
    return found


def _state(operation: Operation, backend: Backend, like: Array) -> dict[str, Array]:
    """What it has for state before it was trained."""
    dtype = getattr(like, "dtype", None)
    return {
        name: backend.asarray(np.full(operation.shape(sizes), value), dtype)
        for name, (sizes, value) in operation.state.items()
    }


def operation_trial(operation: Operation, samples: int = N) -> Trial:
    """Forward and backward, in training and not where that differs."""
    plain = operation.is_plain()
    inputs, outputs = operation.widths[0] or D, operation.widths[1] or operation.widths[0] or D

    def run(backend: Backend, arrays: list[Array]) -> list[Array]:
        x, dout, *parameters = arrays
        found: list[Array] = []
        for training in (False,) if plain else (False, True):
            m = _maths(backend, training, _state(operation, backend, x), _drawn())
            given = {} if plain else {"m": m}
            y = backend.run(operation, x, *parameters, **given)
            gradients = backend.run_backward(operation, dout, x, y, *parameters, **given)
            found += [y, *gradients, *m.moved.values()]
        if plain:
            found += backend.parameter_gradients(operation, dout, x, found[0], *parameters)
        return found

    def arrays(draw: Draw) -> list[Host]:
        return [draw(samples, inputs), draw(samples, outputs), *_parameters(draw, operation)]

    return Trial(type(operation).__name__, arrays, run, run)


def loss_trial(loss: Loss, samples: int = N, classes: int = C) -> Trial:
    """The loss of each row, their mean, its gradient, and predictions."""

    def run(backend: Backend, arrays: list[Array]) -> list[Array]:
        x, *labels = arrays
        found = [backend.predicted(loss, x)]
        for t in labels:
            t = loss.targets(backend.maths, t)
            found += [backend.row_losses(loss, x, t), *backend.loss_and_delta(loss, x, t)]
        return found

    def arrays(draw: Draw) -> list[Host]:
        return [draw(samples, classes), _one_hot(samples, classes), draw(samples, classes)]

    return Trial(type(loss).__name__, arrays, run, run)


def _one_trial(operation: type[Operation]) -> Trial:
    """With its defaults."""
    one = made(operation, D, M)
    return loss_trial(one) if isinstance(one, Loss) else operation_trial(one)


def _forward_and_backward(layer: Mul, x: Array, y: Array) -> list[Array]:
    return [layer.forward(x, y), *layer.backward(x)]


def _basic(name: str, arrays: Callable[[Draw], list[Host]], run: Run) -> Trial:
    return Trial(name, arrays, run, run)


def _strided(b: Backend, arrays: list[Array]) -> list[Array]:
    """Operations of each kind on arrays in another order than C's."""
    x, W = (b.maths.T(array) for array in arrays[:2])
    found = [b.sum(x), b.sum(x, axis=0), b.exp(x), b.matmul(x, W)]
    for operation, parameters in ((Sigmoid(), ()), (Softmax(), ()), (Affine(D, M), (W, arrays[2]))):
        y = b.run(operation, x, *parameters)
        dout = b.maths.T(b.maths.T(x)) if y.shape == x.shape else b.matmul(x, W)
        found += [y, *b.run_backward(operation, dout, x, y, *parameters)]
    return found


BASICS = (
    Trial(
        "step, Add, Mul",
        lambda draw: [draw(N, D), draw(N, D)],
        lambda _, i: [
            activations.step(i[0]),
            Add().forward(*i),
            *_forward_and_backward(Mul(), *i),
        ],
    ),
    _basic(
        "+ - * / sqrt",
        lambda draw: [draw(N, D) for _ in range(3)],
        lambda b, i: [
            *(i[0] + i[1], i[0] - i[1], i[0] * i[1], i[0] / i[1], i[1] / i[0], i[0] / 3.0),
            *(b.maths.sqrt(b.maths.abs(i[0])), b.maths.sqrt(b.maths.abs(i[1]))),
            i[0] * i[1] + i[2],
        ],
    ),
    Trial(
        "comparisons, where, max",
        lambda draw: [draw(N, D), draw(N, D)],
        lambda b, i: [
            *(i[0] < i[1], i[0] == i[1], i[0] >= 0, i[0] != i[0], -i[0], b.maths.abs(i[0])),
            *(b.maths.where(i[0] > 0, *i), b.maths.maximum(*i), b.maths.minimum(*i)),
            b.maths.max(i[0]) + 0.0,  # of 0 and -0 a library may take either
        ],
    ),
    _basic(
        "matmul",
        lambda draw: [draw(N, D), draw(D, M)],
        lambda b, i: [b.matmul(*i), b.matmul(*(b.maths.T(a) for a in i[::-1]))],
    ),
    _basic(
        "sum",
        lambda draw: [draw(N, D)],
        lambda b, i: [b.sum(*i), b.sum(*i, axis=0), b.sum(*i, axis=-1, keepdims=True)],
    ),
    _basic("exp", lambda draw: [draw(N, D)], lambda b, i: [b.exp(*i)]),
    _basic("expm1", lambda draw: [draw(N, D)], lambda b, i: [b.expm1(*i)]),
    _basic("log", lambda draw: [np.abs(draw(N, D))], lambda b, i: [b.log(*i)]),
    _basic("log1p", lambda draw: [np.abs(draw(N, D))], lambda b, i: [b.log1p(*i)]),
    _basic("arrays of any strides", lambda draw: [draw(D, N), draw(M, D), draw(1, M)[0]], _strided),
)
"""What operations are made of."""


def _optimizer_trial(optimizer: type[Optimizer]) -> Trial:
    """Three steps of one parameter: its numbers, and what is remembered of them."""

    def run(backend: Backend, arrays: list[Array]) -> list[Array]:
        W, *gradients = arrays
        params = {"W": backend.xp.asarray(W, copy=True)}  # an update writes to it
        one = optimizer(weight_decay=0.01)
        for gradient in gradients:
            one.update(params, {"W": gradient})
        return [params["W"], *one.memory["W"]]

    def bound(backend: Bounding, inputs: list[Bounded]) -> list[Bounded]:
        W, *gradients = inputs
        one = optimizer(weight_decay=0.01)
        found: Sequence[Any] = [W, *[backend.asarray(0 * W.v)] * one.slots]
        for n, gradient in enumerate(gradients, 1):
            found = backend.step(one, n, found[0], gradient, found[1:])
        if formulas.step(one).calls:
            return list(found)
        # Each number is rounded correctly, in one order: equal in fast mode too.
        return [backend.asarray(bounded.v) for bounded in found]

    return Trial(
        f"optimizer {optimizer.__name__}, 3 steps",
        lambda draw: [draw(D, M) for _ in range(4)],
        run,
        bound,
    )


# -- networks


Parts: TypeAlias = Sequence[tuple[Operation, tuple[Any, ...], dict[str, Any]]]
"""Operations with their parameters and state."""


@dataclasses.dataclass(frozen=True)
class Stack:
    """What a network consists of: a product, an operation, a product, and a loss."""

    operations: tuple[Operation, ...]
    loss: Loss

    @classmethod
    def around(cls, hidden: type[Operation], loss: type[Loss]) -> "Stack":
        """One of these, with their defaults."""
        one = made(hidden, M)
        return cls((Affine(D, M), one, Affine(one.widths[1] or M, C)), made(loss, C))

    def arrays(self, draw: Draw, samples: int = N) -> list[Host]:
        """Samples, labels, and the parameters."""
        parameters = [numbers for one in self.operations for numbers in _parameters(draw, one)]
        return [draw(samples, D), _one_hot(samples), *parameters]

    def parts(self, parameters: Sequence[Any]) -> list[tuple[Operation, tuple[Any, ...]]]:
        """Each operation with its own of the parameters."""
        given = iter(parameters)
        return [(one, tuple(next(given) for _ in one.parameters)) for one in self.operations]

    def network(self, parameters: Sequence[Array], backend: str | None = None) -> Network:
        """With these parameters, on the backend named or the current one."""
        layers = [Layer.of(operation) for operation in self.operations]
        for layer, (_, arrays) in zip(layers, self.parts(parameters), strict=True):
            layer.params.update(zip(layer.params, arrays, strict=True))
        return Network(layers, self.loss, backend=backend)

    def bounded(
        self, backend: Bounding, parameters: Sequence[Bounded], states: Sequence[dict[str, Any]]
    ) -> Parts:
        """For `gradients`."""
        pairs = zip(self.parts(parameters), states, strict=True)
        return [(one, arrays, state) for (one, arrays), state in pairs]


def _forward(backend: Bounding, parts: Parts, x: Bounded, draw: Any) -> tuple[list[Any], list[Any]]:
    """What interprets each operation, and x with their outputs; they train if they may draw."""
    maths = [_Training(backend, draw is not None, state, draw) for _, _, state in parts]
    outputs = [x]
    for m, (operation, arrays, _) in zip(maths, parts, strict=True):
        outputs.append(backend.run(operation, outputs[-1], *arrays, m=cast(Any, m)))
    return maths, outputs


def _gradients(
    backend: Bounding, parts: Parts, loss: Loss, x: Bounded, t: Bounded, draw: Any
) -> tuple[Bounded, list[Bounded]]:
    """The mean loss in training, and its gradients by the parameters; the states move."""
    maths, outputs = _forward(backend, parts, x, draw)
    targets = loss.targets(backend.maths, t)
    mean, dout = backend.loss_and_delta(loss, outputs[-1], targets)
    found: list[Bounded] = []
    for k in reversed(range(len(parts))):
        operation, arrays, state = parts[k]
        given = dout, outputs[k], outputs[k + 1], *arrays
        dout, *by = backend.run_backward(operation, *given, m=maths[k])
        found = [*by, *found]
        state.update(maths[k].moved)
    return mean, found


def prediction_bound(network: Network, x: Host) -> Host:
    """How far the predictions of two fast backends may be apart for samples x: as they are."""
    backend = Bounding(network.dtype)

    def bounded(arrays: Mapping[str, Array]) -> dict[str, Bounded]:
        return {k: backend.asarray(network.backend.to_numpy(W)) for k, W in arrays.items()}

    parts = [
        (cast(Operation, v.operation), tuple(bounded(v.params).values()), bounded(v.state))
        for v in network.layers
    ]
    with np.errstate(all="ignore"):
        rows = backend.asarray(np.asarray(x, network.dtype))
        _, outputs = _forward(backend, parts, rows, None)
        return 2 * backend.predicted(network.loss_layer.loss, outputs[-1]).e


def _network_trial(hidden: type[Operation], loss: type[Loss]) -> Trial:
    """Predictions, loss, gradients, and what state has become."""
    stack = Stack.around(hidden, loss)

    def run(backend: Backend, inputs: list[Array]) -> list[Array]:
        x, t, *parameters = inputs
        network = stack.network(parameters)
        predicted = network.predict(x)
        few = network.predict(x[:3, ...])  # a row does not depend on its neighbours
        value, gradients = network.loss_and_gradient(x, t)
        mean = backend.asarray(value, network.dtype)
        return [predicted, few, mean, *gradients.values(), *network.state.values()]

    def bound(backend: Bounding, inputs: list[Bounded]) -> list[Bounded]:
        x, t, *parameters = inputs
        states = [_state(operation, backend, x) for operation in stack.operations]
        parts = stack.bounded(backend, parameters, states)
        predicted = backend.predicted(stack.loss, _forward(backend, parts, x, None)[1][-1])
        draw = _draw_of(stack, parameters)
        mean, found = _gradients(backend, parts, stack.loss, x, t, draw)
        few = Bounded(predicted.v[:3], predicted.e[:3], predicted.u)
        return [predicted, few, mean, *found, *(v for state in states for v in state.values())]

    return Trial(f"network, {hidden.__name__}, {loss.__name__}", stack.arrays, run, bound)


def _draw_of(stack: Stack, parameters: list[Bounded]) -> Any:
    """What its network draws with."""
    return stack.network([array.v for array in parameters], "numpy").draw


def _numerical_trial(hidden: type[Operation], loss: type[Loss]) -> Trial:
    stack = Stack.around(hidden, loss)

    def run(_: Backend, inputs: list[Array]) -> list[Array]:
        x, t, *parameters = inputs
        network = stack.network(parameters)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RoundingWarning)  # noise has its bits, too
            found = network.numerical_gradient(x, t, STEP, method="incremental")
        return list(found.values())

    def bound(backend: Bounding, inputs: list[Bounded]) -> list[Bounded]:
        """Of (L(w + h) - L(w - h)) / 2h, where each L is off by e: that makes e / h.

        Evaluating only what a perturbation changes rounds the scores once more on the way, which
        at most doubles e.
        """
        x, t, *parameters = inputs
        parts = stack.bounded(backend, parameters, [{} for _ in stack.operations])
        mean, found = _gradients(backend, parts, stack.loss, x, t, None)
        return [Bounded(g.v, 2 * mean.e / STEP + backend.u * abs(g.v), g.u) for g in found]

    return Trial(
        f"numerical gradient, {hidden.__name__}, {loss.__name__}",
        lambda draw: stack.arrays(draw, 6),
        run,
        bound,
        dtypes=("float64",),
        numbers=("normal",),  # it takes the longest, and differences of huge losses are noise
        hurtful=(),
    )


def _training_trial(optimizer: type[Optimizer], hidden: type[Operation], loss: type[Loss]) -> Trial:
    """The last loss, parameters and state, of some steps that a backend may take whole."""
    stack = Stack.around(hidden, loss)

    def run(backend: Backend, inputs: list[Array]) -> list[Array]:
        x, t, *parameters = inputs
        parameters = [backend.xp.asarray(W, copy=True) for W in parameters]  # they are written to
        network, one = stack.network(parameters), optimizer()
        values = [network.train_step(x, t, one) for _ in range(TRAINING_STEPS)]
        loss = backend.asarray(values[-1], network.dtype)
        return [loss, *network.params.values(), *network.state.values()]

    def bound(backend: Bounding, inputs: list[Bounded]) -> list[Bounded]:
        """Each step's errors, and what later ones make of them: the formulas carry them along."""
        x, t, *parameters = inputs
        states = [_state(operation, backend, x) for operation in stack.operations]
        one, draw = optimizer(), _draw_of(stack, parameters)
        memory = [[backend.asarray(0 * W.v)] * one.slots for W in parameters]
        mean: Any = None
        for n in range(1, TRAINING_STEPS + 1):
            parts = stack.bounded(backend, parameters, states)
            mean, found = _gradients(backend, parts, stack.loss, x, t, draw)
            for k, (W, g) in enumerate(zip(parameters, found, strict=True)):
                parameters[k], *memory[k] = backend.step(one, n, W, g, memory[k])
        return [mean, *parameters, *(v for state in states for v in state.values())]

    name = f"training by {optimizer.__name__}, {hidden.__name__}, {loss.__name__}"
    return Trial(name, stack.arrays, run, bound)


# -- all of them


def trials(
    operations: Mapping[str, type[Operation]] | None = None,
    optimizers: Mapping[str, type[Optimizer]] | None = None,
) -> list[Trial]:
    """Everything there is to try.

    Networks take one operation each, with the losses in turn, until each operation and each loss
    has had one; training runs take an optimizer each, with those networks in turn.

    Parameters
    ----------
    operations, optimizers
        By name; None for all there are.

    Returns
    -------
    list of Trial
        Contracts, the array operations, then operations, networks, optimizers and training.

    Examples
    --------
    >>> from xnet.operations import ReLU
    >>> from xnet.optimizers import SGD
    >>> from xnet.testing import parity
    >>> names = [trial.name for trial in parity.trials({"ReLU": ReLU}, {"sgd": SGD})]
    >>> [name for name in names if "ReLU" in name or "SGD" in name]
    ['ReLU', 'optimizer SGD, 3 steps']
    """
    kinds = list((registered() if operations is None else operations).values())
    steps = list((OPTIMIZERS if optimizers is None else optimizers).values())
    losses = [kind for kind in kinds if issubclass(kind, Loss)]
    others = [kind for kind in kinds if not issubclass(kind, Loss)]
    longest = range(max(len(others), len(losses)))
    stacks = [(a, b) for _, a, b in zip(longest, cycle(others), cycle(losses), strict=False)]
    plain = [(hidden, loss) for hidden, loss in stacks if hidden.is_plain()]
    trained = [(kind, *stack) for kind, stack in zip(steps, cycle(stacks), strict=False)]
    return [
        *(_contract_trial(*item) for item in CONTRACTS.items()),
        *BASICS,
        *(_attempted(_one_trial, kind) for kind in (*others, *losses)),
        *(_attempted(_network_trial, *stack) for stack in stacks),
        *(_attempted(_numerical_trial, *stack) for stack in plain),
        *(_attempted(_optimizer_trial, kind) for kind in steps),
        *(_attempted(_training_trial, *kinds) for kinds in trained),
    ]


def longer() -> list[Trial]:
    """More to try, of which no hashes are published: it says nothing new of a machine."""
    lengths = 1, 2, 1000, 100_000
    return [
        *(_of_length("inputs", n, operation_trial(Affine(n, 3), 3)) for n in lengths),
        *(_of_length("samples", n, operation_trial(Affine(3, 3), n)) for n in lengths),
        _small_numerical_trial(),
        _rows_trial(),
        _long_training_trial(),
    ]


def _of_length(axis: str, length: int, trial: Trial) -> Trial:
    """A product, or its gradients, over an axis so long: on all numbers where it is short."""
    kinds = {} if length <= 1000 else {"numbers": ("normal",), "hurtful": ()}
    return dataclasses.replace(trial, name=f"Affine, {length:,} {axis}", **kinds)


def _small_numerical_trial() -> Trial:
    """Of a few weights: incremental, by the notes' loop, and of a function."""
    stack = Stack((Affine(4, 4), Sigmoid(), Affine(4, 4)), SoftmaxWithLoss())

    def run(backend: Backend, inputs: list[Array]) -> list[Array]:
        x, t, *parameters = inputs
        v, *parameters = (backend.xp.asarray(a, copy=True) for a in (x[:2, :], *parameters))
        network = stack.network(parameters)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RoundingWarning)  # noise has its bits, too
            found = [network.numerical_gradient(x, t, method=m) for m in ("incremental", "naive")]
            square = numerical_gradient(lambda v: mean_squared_error(v, t[:2, :]), v)
        return [*(g for gradients in found for g in gradients.values()), square]

    def attempted(backend: Backend, inputs: list[Array]) -> list[Array]:
        try:
            return run(backend, inputs)
        except ValueError as error:
            if "cannot be written in place" in str(error) and not backend.writable(inputs[0]):
                raise NotPromisedError(str(error)) from error
            raise

    return Trial(
        "numerical gradient in place",
        lambda draw: [
            draw(5, 4),
            _one_hot(5, 4),
            *(number for _ in range(2) for number in (draw(4, 4), draw(1, 4)[0])),
        ],
        attempted,
        dtypes=("float64",),
        numbers=("normal", "not finite"),  # it takes long, on huge numbers the longest
        hurtful=("cancelling", "mostly zeros"),
        exact=True,
    )


def _rows_trial() -> Trial:
    """A prediction does not depend on the samples beside it."""
    stack = Stack((Affine(D, M), Sigmoid(), Affine(M, C)), SoftmaxWithLoss())

    def run(backend: Backend, inputs: list[Array]) -> list[Array]:
        x, _, *parameters = inputs
        network = stack.network(parameters)
        every = backend.to_numpy(network.predict(x))
        for rows in (1, 3, N - 1):
            few = backend.to_numpy(network.predict(x[:rows, ...]))
            if not same_bits(every[:rows], few):
                raise ContractError(f"the first {rows} rows alone have other bits than among {N}")
        return []

    return Trial("rows by themselves", stack.arrays, run, exact=True)


def _long_training_trial() -> Trial:
    """Twenty steps of Adam by `train`, on mini-batches."""

    def run(backend: Backend, inputs: list[Array]) -> list[Array]:
        dtype = dtype_name(inputs[0].dtype)
        return list(_trained(backend, dtype, 20).params.values())

    return Trial(
        "training of 20 steps",
        lambda draw: [draw(1, 1)],
        run,
        numbers=("normal",),
        hurtful=(),
        exact=True,
    )


def _attempted(make: Callable[..., Trial], *kinds: type[Any]) -> Trial:
    """The trial of these classes; where it cannot be made, one that says so."""
    try:
        return make(*kinds)
    except Exception as error:  # a class of anybody's: the others are still tried
        reason = error

        def fail(*_: Any) -> list[Any]:
            raise reason

        return Trial(", ".join(kind.__name__ for kind in kinds), fail, fail)


def standard_normal(seed: int = 0) -> Draw:
    """Numbers as a network meets them.

    Parameters
    ----------
    seed
        Of the numbers.

    Returns
    -------
    function
        As that of `numbers`.

    Examples
    --------
    >>> from xnet.testing import parity
    >>> parity.standard_normal()(2, 2).round(4).tolist()
    [[0.3503, -0.6135], [-1.7395, -2.1314]]
    """
    return numbers("normal", "float64", seed)


def training_hash(backend: Backend, dtype: str, steps: int = 200) -> str:
    """SHA-256 of the weights after `steps` steps of Adam on made-up data: see `weights.sha256`.

    Parameters
    ----------
    backend
        Where the network trains; in reproducible mode the hash is that of every backend.
    dtype
        ``"float32"`` or ``"float64"``.
    steps
        How many.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> import xnet
    >>> from xnet.testing import parity
    >>> numpy = xnet.resolve("numpy", reproducible=True)
    >>> parity.training_hash(numpy, "float32", steps=2)[:16]
    'd472fef2992da9e3'
    """
    return weights.sha256(_trained(backend, dtype, steps))


def _trained(backend: Backend, dtype: str, steps: int) -> Network:
    rng = Generator(0)
    x, t = rng.normal((500, 64)), rng.integers(10, 500)
    layers = [Affine(64, 50, "he"), ReLU(), Affine(50, 10, "he")]
    network = Network(layers, dtype=dtype, backend=backend)
    optimizer = Adam(lr=0.01)
    train(network, x, t, optimizer=optimizer, iterations=steps, batch_size=50, progress=False)
    return network
