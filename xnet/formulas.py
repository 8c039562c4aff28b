"""Who interprets a formula: arrays, and the trace.

A formula of `operations` or `optimizers` is a method that takes `m`, the mathematics, and computes
with what it is given. `Arrays` lets it compute, on any backend, in either mode. `trace` has it
write itself down as an expression, of which `Python` makes source for Numba and `Cuda` source for
CUDA. A third, in `bounds`, computes how far rounding may lead from it. Nothing here knows any one
operation.
"""

import dataclasses
import linecache
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias, cast

__all__ = ["FormulaError", "check"]

Array: TypeAlias = Any


class FormulaError(TypeError):
    """A formula does what only a computation on arrays could: it cannot be compiled.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet.formulas import check
    >>> from xnet.operations import Pointwise
    >>> class Squashed(Pointwise, abstract=True):
    ...     def forward(self, m, x):
    ...         return np.tanh(x)
    >>> check(Squashed())
    Traceback (most recent call last):
        ...
    xnet.formulas.FormulaError: ... calls NumPy's tanh; use m's own functions
    """


NUMBERS = (int, float)
"""Python's own: NumPy's are arrays without axes."""

TWO_NUMBERS = (
    "chooses between two numbers, which are of no array's type",
    "put the array that the choice is for in it, as in m.where(condition, dout, 0)",
)
"""What is wrong, and what to do instead."""


class Mathematics:
    """What every interpreter derives from its own `where`, once for all."""

    training = False

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """Element by element, a where the condition holds and b elsewhere."""
        raise NotImplementedError

    def maximum(self, a: Any, b: Any) -> Any:
        """The larger of a and b; NaN if a is, or if b is."""
        if type(a) in NUMBERS:  # whether it is NaN, no array library can be asked
            a, b = b, a
        return self.where(a >= b, a, self.where(a != a, a, b))

    def minimum(self, a: Any, b: Any) -> Any:
        """The smaller of a and b; NaN if a is, or if b is."""
        if type(a) in NUMBERS:
            a, b = b, a
        return self.where(a <= b, a, self.where(a != a, a, b))

    def power(self, base: float, n: int) -> Any:
        """`base` to the n-th, both numbers that no array has to do with."""
        return power(base, n)


def power(base: float, n: int) -> float:
    """Base to the n-th by multiplications alone: a library's pow depends on the processor."""
    result = 1.0
    while n:
        if n & 1:
            result *= base
        base *= base
        n >>= 1
    return result


# -- arrays


class Arrays(Mathematics):
    """The arrays of a backend; in reproducible mode its exp, log, sums and products are exact.

    Parameters
    ----------
    backend
        Whose arrays they are: a `Backend`.
    training
        Whether a formula is to train: it may draw numbers, and move its state.
    state
        What the operation keeps between calls, by name.
    draw
        Makes random numbers in [0, 1) of a shape and dtype, on the host.
    """

    def __init__(
        self,
        backend: Any,
        training: bool = False,
        state: Mapping[str, Array] | None = None,
        draw: Callable[[tuple[int, ...], Any], Any] | None = None,
    ) -> None:
        self.backend, self.xp = backend, backend.xp
        self.training, self.state, self.draw = training, state or {}, draw
        self.kept = SimpleNamespace()
        self.moved: dict[str, Array] = {}
        self.exp, self.log, self.matmul = backend.exp, backend.log, backend.matmul
        self.expm1, self.log1p = backend.expm1, backend.log1p
        self.abs = self.xp.abs

    def sqrt(self, a: Any) -> Any:
        """Of arrays, and of numbers that no array has to do with."""
        return math.sqrt(a) if type(a) in NUMBERS else self.xp.sqrt(a)

    def where(self, condition: Array, a: Any, b: Any) -> Array:
        if type(a) in NUMBERS and type(b) in NUMBERS:
            raise FormulaError(f"m.where(condition, {a}, {b}) {TWO_NUMBERS[0]}; {TWO_NUMBERS[1]}")
        if type(a) in NUMBERS:  # NumPy's float64, which is what it makes of no axes, is a float too
            a = self.xp.asarray(a, dtype=b.dtype, device=b.device)
        elif type(b) in NUMBERS:
            b = self.xp.asarray(b, dtype=a.dtype, device=a.device)
        return self.xp.where(condition, a, b)

    def sum(self, a: Array) -> Array:
        """Along each row: (N, 1)."""
        return self.backend.sum(a, axis=-1, keepdims=True)

    def max(self, a: Array) -> Array:
        """Of each row: (N, 1); NaN if the row holds one."""
        return self.xp.max(a, axis=-1, keepdims=True)

    def width(self, a: Array) -> int:
        """Numbers in a row."""
        return a.shape[-1]

    def total(self, a: Array) -> Array:
        """The sum over the batch: (M,)."""
        return self.backend.sum(a, axis=0)

    def count(self, a: Array) -> int:
        """Rows in the batch."""
        return a.shape[0]

    def T(self, a: Array) -> Array:  # noqa: N802  # the field's own name
        """The transpose of a matrix."""
        return a.T

    def row(self, values: Sequence[float], like: Array) -> Array:
        """Numbers as a row, of the dtype of `like` and where that is."""
        return self.backend.asarray(list(values), like.dtype)

    def uniform(self, like: Array) -> Array:
        """Random numbers in [0, 1) of the shape and dtype of `like`, drawn on the host."""
        if self.draw is None:
            raise RuntimeError("random numbers are drawn in training, by a network")
        return self.backend.asarray(self.draw(tuple(like.shape), like.dtype))

    def move(self, state: Mapping[str, Array], share: float) -> None:
        """Move the state by a share of the way to these numbers, once the step is done."""
        for name, new in state.items():
            self.moved[name] = (1 - share) * self.state[name] + share * new


# -- the trace


CALLS = ("exp", "log", "expm1", "log1p")
"""What a compiled formula calls that is no single instruction."""


class _Symbol:
    """What stands for a number in a formula that is being traced; it has no value to look at."""

    def _refuse(self, what: str, cure: str) -> Any:
        frame: Any = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
        while frame.f_globals.get("__name__") == __name__ and frame.f_back is not None:
            frame = frame.f_back
        file, line = frame.f_code.co_filename, frame.f_lineno
        text = linecache.getline(file, line).strip()
        shown = f"`{text}`" if text else "the formula"
        raise FormulaError(f"{file}, line {line}: {shown} {what}; {cure}")

    def __bool__(self) -> bool:
        return self._refuse(
            "branches on a number that is not known when the formula is compiled",
            "use m.where(condition, a, b), with & | ~ for and, or, not",
        )

    def __iter__(self) -> Iterator[Any]:
        return self._refuse(
            "loops over an array", "a formula is of single numbers: use m.sum or m.max along a row"
        )

    def __getitem__(self, key: Any) -> Any:
        return self._refuse(
            "takes elements of an array",
            "a formula is of single numbers: use m.where, or m.sum or m.max along a row",
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        self._refuse("writes to an array", "make a new one: m.where(condition, a, b)")

    def __len__(self) -> int:
        return self._refuse("asks for a length", "use m.width(a), how many numbers a row has")

    def __float__(self) -> float:
        return self._refuse(
            "makes a number of a symbol",
            "use m.exp, m.log, ... for math's, or of settings alone math's in __post_init__",
        )

    __int__ = __index__ = __complex__ = __float__  # pyright: ignore[reportAssignmentType]

    def __array_ufunc__(self, function: Any, *_: Any, **__: Any) -> Any:
        return self._refuse(f"calls NumPy's {function.__name__}", "use m's own functions")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self._refuse("makes an array of a symbol", "use m's own functions")

    def __pow__(self, other: Any) -> Any:
        return self._refuse("takes a power", "multiply, or use m.exp(p * m.log(x))")

    def __mod__(self, other: Any) -> Any:
        return self._refuse("computes with % // or @", "use + - * / and m's own functions")

    __rpow__ = __pow__
    __rmod__ = __floordiv__ = __rfloordiv__ = __matmul__ = __rmatmul__ = __mod__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse(f"asks a number for `{name}`", "use m's own functions")


def _binary(sign: str, swapped: bool = False) -> Any:
    def method(self: _Symbol, other: Any) -> _Symbol:
        if not isinstance(other, int | float | _Symbol):
            return NotImplemented
        return _combined(sign, other, self) if swapped else _combined(sign, self, other)

    return method


def _unary(sign: str) -> Any:
    def method(self: _Symbol) -> _Symbol:
        return _combined(sign, self)

    return method


for _name, _sign in {"add": "+", "sub": "-", "mul": "*", "truediv": "/"}.items():
    setattr(_Symbol, f"__{_name}__", _binary(_sign))
    setattr(_Symbol, f"__r{_name}__", _binary(_sign, swapped=True))
_comparisons = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
for _name, _sign in {**_comparisons, "and": "&", "or": "|"}.items():
    setattr(_Symbol, f"__{_name}__", _binary(_sign))
for _name, _sign in {"neg": "neg", "invert": "~", "abs": "abs"}.items():
    setattr(_Symbol, f"__{_name}__", _unary(_sign))
_Symbol.__hash__ = object.__hash__


class Number(_Symbol):
    """A number of the host: of settings, literals and how many steps have been taken.

    Compiled code gets it as an argument. It is kept as Python source, of `s` for the settings'
    owner, `n` for the step, and `power`.
    """

    def __init__(self, source: str) -> None:
        self.source = source


class Node(_Symbol):
    """A number of the arrays' own type, or a truth: what is done to which others.

    Attributes
    ----------
    operator
        ``"input"``, ``"+"``, ``"<="``, ``"where"``, ``"exp"``, ``"sum"``, ...
    arguments
        Nodes, `Number`s and literals; of an input, its name.
    varies
        Whether it is another number at each place of a row; sums and maxima of a row are not.
    """

    def __init__(self, operator: str, arguments: tuple[Any, ...], varies: bool) -> None:
        self.operator, self.arguments, self.varies = operator, arguments, varies


def _combined(operator: str, *arguments: Any) -> _Symbol:
    if not any(isinstance(a, _Symbol) for a in arguments):
        raise FormulaError(f"m.{operator} is of numbers alone: take math's, in __post_init__")
    if operator not in ("where", "&", "|", "~"):
        for a in arguments:
            if isinstance(a, Node) and a.operator in TRUTHS:
                a._refuse(  # pyright: ignore[reportPrivateUsage]
                    "computes with a truth", "use m.where(condition, a, b)"
                )
    if any(isinstance(a, Node) for a in arguments):
        return Node(operator, arguments, any(isinstance(a, Node) and a.varies for a in arguments))
    texts = [a.source if isinstance(a, Number) else repr(float(a)) for a in arguments]
    if operator == "neg":
        return Number(f"(-{texts[0]})")
    if operator == "sqrt":
        return Number(f"sqrt({texts[0]})")
    if operator not in ("+", "-", "*", "/"):
        what = "compares settings" if operator in TRUTHS else f"takes {operator} of a setting"
        arguments[0]._refuse(what, "do so where the operation is made, in __post_init__")
    return Number(f"({texts[0]} {operator} {texts[1]})")


class Trace(Mathematics):
    """Writes a formula down instead of computing it.

    Parameters
    ----------
    functions
        What the compiled code can call.
    """

    def __init__(self, functions: Sequence[str] = (*CALLS, "abs", "sqrt")) -> None:
        self.functions = functions

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(condition, Node) and not (isinstance(a, Node) or isinstance(b, Node)):
            return condition._refuse(*TWO_NUMBERS)  # pyright: ignore[reportPrivateUsage]
        return _combined("where", condition, a, b)

    def power(self, base: Any, n: Any) -> Any:
        texts = (v.source if isinstance(v, Number) else repr(v) for v in (base, n))
        return Number(f"power({', '.join(texts)})")

    def sum(self, a: Any) -> Any:
        """Along a row; one number a row is its own sum, as for arrays of one column."""
        return a if isinstance(a, Node) and not a.varies else Node("sum", (a,), False)

    def max(self, a: Any) -> Any:
        """Along a row, likewise."""
        return a if isinstance(a, Node) and not a.varies else Node("max", (a,), False)

    def width(self, a: Any) -> Any:
        """Numbers in a row: known when the compiled code is called."""
        return Node("width", (), False)

    def split(self, a: Any) -> Any:
        """What `exact.ELEMENTARY` needs."""
        return _combined("fraction", a), _combined("exponent", a)

    def __getattr__(self, name: str) -> Any:
        if name in self.functions:
            return partial(_combined, name)
        _Symbol()._refuse(  # pyright: ignore[reportPrivateUsage]
            f"asks for m.{name}",
            f"a formula that is to be compiled may use {', '.join(self.functions)}, where, "
            "maximum, minimum, sum, max and width",
        )


@dataclasses.dataclass(frozen=True)
class Formula:
    """A formula as an expression.

    Attributes
    ----------
    inputs
        The names of its inputs, in order.
    results
        What it gives.
    numbers
        Python source of the numbers that it takes from the host, in the order of their use.
    """

    inputs: tuple[str, ...]
    results: tuple[Any, ...]
    numbers: tuple[str, ...]

    def uses(self, name: str) -> bool:
        """Whether it depends on an input."""
        return any(n.operator == "input" and n.arguments[0] == name for n in nodes(self.results))

    @property
    def by_rows(self) -> bool:
        """Whether a number depends on others of its row."""
        return any(n.operator in ("sum", "max", "width") for n in nodes(self.results))

    @property
    def calls(self) -> bool:
        """Whether it takes exp or another function that backends round each in its way."""
        return any(n.operator in CALLS for n in nodes(self.results))

    def values(self) -> Callable[[Any, float], tuple[float, ...]]:
        """A function of the settings' owner and the step: the numbers to be handed over."""
        sources = "".join(f"{source}, " for source in self.numbers)
        return eval(f"lambda s, n=0: ({sources})", {"power": power, "sqrt": math.sqrt})


def symbolic(owner: Any) -> Any:
    """An operation like this one, whose numbers are `Number`s; what is no number stays."""
    shadow: Any = object.__new__(owner.__class__)
    floats = {field.name for field in dataclasses.fields(owner) if field.type in (float, "float")}
    for name, value in cast("dict[str, Any]", vars(owner)).items():
        number = isinstance(value, float) or (name in floats and isinstance(value, int))
        object.__setattr__(shadow, name, Number(f"s.{name}") if number else value)
    return shadow


REMEMBERED = frozenset(("taken", "memory", "owner"))
"""What an optimizer has beside settings."""


def structure(owner: Any) -> tuple[Any, ...]:
    """What of an operation or optimizer its expressions depend on: all but its numbers."""
    values = cast("dict[str, Any]", vars(owner))
    return owner.__class__, *[
        float if type(v) is float else repr(v) if type(v) in (list, dict, set) else v
        for name, v in values.items()
        if name not in REMEMBERED
    ]


_kept: dict[Any, Any] = {}


def by_structure(make: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what `make` gives for each `structure` of an owner, and whatever more it is given."""

    def found(owner: Any, *more: Any) -> Any:
        key = make, structure(owner), *more
        if key not in _kept:
            _kept[key] = make(owner, *more)
        return _kept[key]

    return found


def as_tuple(found: Any) -> tuple[Any, ...]:
    """What a formula gave, one result or several, as a tuple."""
    return cast("tuple[Any, ...]", found) if isinstance(found, tuple) else (found,)


def trace(formula: Callable[..., Any], *inputs: str, m: Any = None) -> Formula:
    """A bound method, or a function of `m` and numbers, as an expression of the named inputs.

    Settings of the method's owner become arguments of what is compiled. An input named ``"n"``
    stands for the step, a whole number of the host.

    Raises
    ------
    FormulaError
        It branches on a number, loops over an array, or uses what cannot be compiled: with the
        line, and what to write instead.
    """
    owner = getattr(formula, "__self__", None)
    if owner is not None:
        formula = getattr(symbolic(owner), formula.__name__)
    given = [Number("n") if name == "n" else Node("input", (name,), True) for name in inputs]
    results = _shared(as_tuple(formula(m or Trace(), *given)))
    numbers = dict.fromkeys(
        a.source
        for node in nodes(results)
        for a in (node.arguments if node.operator != "input" else ())
        if isinstance(a, Number)
    )
    numbers |= dict.fromkeys(r.source for r in results if isinstance(r, Number))
    names = tuple(name for name in inputs if name != "n")
    return Formula(names, results, tuple(numbers))


def forward(operation: Any) -> Formula:
    """What an operation makes of x."""
    return trace(operation.forward, "x")


def backward(operation: Any) -> Formula:
    """Its gradient by x, of dout, x and its result y."""
    return trace(operation.backward, "dout", "x", "y")


def predicted(loss: Any) -> Formula:
    """What a loss predicts from scores x."""
    return trace(loss.predict, "x")


def row_losses(loss: Any) -> Formula:
    """The loss of a row of scores x and targets t."""
    return trace(loss.forward, "x", "t")


def loss_and_delta(loss: Any) -> Formula:
    """The loss of a row of scores x and targets t, and its gradient by x times the number n."""
    shadow = symbolic(loss)

    def both(m: Any, x: Any, t: Any) -> Any:
        return shadow.forward(m, x, t), shadow.backward(m, x, t) * Number("n")

    return trace(both, "x", "t")


def step(optimizer: Any) -> Formula:
    """An optimizer's step of W, its gradient g, and memory0, memory1, ...; n is the step's."""
    memory = [f"memory{k}" for k in range(optimizer.slots)]
    found = trace(optimizer.formula, "n", "W", "g", *memory)
    check_step(optimizer, len(found.results))
    return found


def check_step(optimizer: Any, results: int) -> None:
    """Raise FormulaError if a step has not given the new W and what is remembered of it."""
    if results != 1 + optimizer.slots:
        raise FormulaError(
            f"{optimizer.__class__.__name__}.step gives {results} result(s), expected "
            f"{1 + optimizer.slots}: the new W, then as many arrays as `slots` says"
        )


def check(operation: Any) -> None:
    """Raise FormulaError if an operation that backends compile cannot be compiled.

    Parameters
    ----------
    operation
        Of any kind: one that no backend compiles is not looked at.

    Raises
    ------
    FormulaError
        Its formula does what cannot be compiled, or gives a result of another shape than it should.

    Examples
    --------
    >>> from xnet.formulas import check
    >>> from xnet.operations import Pointwise, ReLU
    >>> class Half(Pointwise, abstract=True):
    ...     def forward(self, m, x):
    ...         return m.sum(x) / 2
    ...     def backward(self, m, dout, x, y):
    ...         return dout / 2
    >>> check(ReLU())
    >>> check(Half())
    Traceback (most recent call last):
        ...
    xnet.formulas.FormulaError: Half: a formula of single numbers asks for m.sum, ...
    """
    if operation.fuses not in (None, "product") and not operation.parameters:
        _check(operation)


@by_structure
def _check(operation: Any) -> None:
    if operation.fuses == "loss":
        expect(operation, predicted(operation), True)
        expect(operation, loss_and_delta(operation), False, True)
    else:
        single = operation.fuses == "pointwise"
        expect(operation, forward(operation), True, single=single)
        expect(operation, backward(operation), True, single=single)


def expect(owner: Any, formula: Formula, *varies: bool, single: bool = False) -> None:
    """Raise FormulaError if a formula's results have another shape than they should.

    Parameters
    ----------
    owner
        Whose formula it is.
    varies
        Of each result, whether it is one number for each element, or for each row.
    single
        Whether the formula is of single numbers.
    """
    name = owner.__class__.__name__
    if single and formula.by_rows:
        raise FormulaError(
            f"{name}: a formula of single numbers asks for m.sum, m.max or m.width of a row; "
            "derive from Rows"
        )
    for result, expected in zip(formula.results, varies, strict=True):
        if (isinstance(result, Node) and result.varies) == expected:
            continue
        if expected:
            raise FormulaError(
                f"{name}: a formula gives one number for each row, or one alone, expected one for "
                "each element of x; add it to 0 * x if that is meant"
            )
        raise FormulaError(
            f"{name}: a loss gives one number for each element, expected one for each row; "
            "use m.sum"
        )


def _shared(results: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same expressions, each that occurs twice computed once."""
    known: dict[Any, Node] = {}
    same: dict[int, Node] = {}

    def of(value: Any) -> Any:
        return same[id(value)] if isinstance(value, Node) else value

    for node in nodes(results):
        arguments = node.arguments if node.operator == "input" else tuple(map(of, node.arguments))
        key: Any = (
            node.operator,
            *(
                (type(a), getattr(a, "source", repr(a))) if not isinstance(a, Node) else id(a)
                for a in arguments
            ),
        )
        same[id(node)] = known.setdefault(key, Node(node.operator, arguments, node.varies))
    return tuple(map(of, results))


def nodes(results: Iterable[Any]) -> list[Node]:
    """Every node that these are made of, each after its arguments."""
    found: dict[int, Node] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Node) and id(value) not in found:
            if value.operator != "input":
                for argument in value.arguments:
                    visit(argument)
            found[id(value)] = value

    for result in results:
        visit(result)
    return list(found.values())


class Python:
    """Source for Numba. `kind` is the type of the numbers, c0, c1, ... the host's numbers."""

    assign = truth = "{name} = {text}"
    words: Mapping[str, str] = {"abs": "abs", "sqrt": "math.sqrt", "&": "&", "|": "|"}
    choice = "{1} if {0} else {2}"
    negation = "not {0}"

    @classmethod
    def literal(cls, value: float) -> str:
        """A number that stands in the formula."""
        text = repr(float(value))
        return f"kind({text.replace('inf', 'math.inf').replace('nan', 'math.nan')})"


class Cuda(Python):
    """Source for CUDA C++. `T` is the type of the numbers, `Math` has exp, log and sums."""

    assign, truth = "T {name} = {text};", "bool {name} = {text};"
    words: Mapping[str, str] = {
        **{"abs": "fabs", "sqrt": "sqrt", "&": "&&", "|": "||"},
        **{name: f"Math::{name}" for name in CALLS},
    }
    choice = "{0} ? {1} : {2}"
    negation = "!{0}"

    @classmethod
    def literal(cls, value: float) -> str:
        text = float(value).hex()
        return f"T({text.replace('inf', 'infinity()').replace('nan', 'not_a_number()')})"


def _named(language: type[Python], formula: Formula, value: Any, names: Mapping[int, str]) -> str:
    """By what a line knows a node, a number of the host's, or a literal."""
    if isinstance(value, Number):
        return f"c{formula.numbers.index(value.source)}"
    return names[id(value)] if isinstance(value, Node) else language.literal(value)


def spelled(language: type[Python], formula: Formula, node: Node, names: Mapping[int, str]) -> str:
    """A node's expression, its arguments by their `names`, of each node's id."""
    arguments = [_named(language, formula, argument, names) for argument in node.arguments]
    operator = language.words.get(node.operator, node.operator)
    if node.operator == "where":
        return language.choice.format(*arguments)
    if node.operator == "~":
        return language.negation.format(*arguments)
    if node.operator == "neg":
        return f"-{arguments[0]}"
    if operator in INFIX:
        return f"{arguments[0]} {operator} {arguments[1]}"
    return f"{operator}({', '.join(arguments)})"


INFIX = ("+", "-", "*", "/", "<", "<=", ">", ">=", "==", "!=", "&", "|", "&&", "||")
TRUTHS = ("<", "<=", ">", ">=", "==", "!=", "&", "|", "~")


def lines(language: type[Python], formula: Formula) -> tuple[list[str], list[str]]:
    """The lines of a formula of single numbers, and the names of its results."""
    names: dict[int, str] = {}
    written: list[str] = []
    for node in nodes(formula.results):
        if node.operator == "input":
            names[id(node)] = node.arguments[0]
            continue
        text = spelled(language, formula, node, names)
        name = names[id(node)] = f"v{len(written)}"
        form = language.truth if node.operator in TRUTHS else language.assign
        written.append(form.format(name=name, text=text))
    return written, [_named(language, formula, result, names) for result in formula.results]
