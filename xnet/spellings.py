"""Operations in ONNX's operators: how they are written there, and how they are recognised.

An operation that has an operator of its own in ONNX, or one composed of few, stands in one table,
`SPELLINGS`, which is used in both directions. Any other, a user's own included, is spelled by its
formula: the trace from which kernels are compiled, in ONNX's primitives. Nothing here needs onnx.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from xnet.formulas import Formula, FormulaError, Node, Number, Trace, symbolic, trace
from xnet.operations import (
    ELU,
    GELU,
    SELU,
    Affine,
    BatchNorm,
    Dropout,
    HardSigmoid,
    HardTanh,
    LayerNorm,
    LeakyReLU,
    Loss,
    Mish,
    Operation,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)

INPUT = "x"
"""What the input of an operation is called, and that of a file that is written."""

# -- operators applied to each other


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """An operator and what it is applied to.

    Attributes
    ----------
    operator
        Its name; one of another domain than ONNX's own after the domain's.
    inputs
        Terms; names, of the input ``"x"`` and of an operation's parameters and state; numbers,
        lists of whole numbers, arrays; of a spelling that is compared, settings as `Number`.
    attributes
        By name.
    node
        What a graph that is read calls it.
    """

    operator: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any]
    node: str = ""


def parts(term: Any) -> list[Term]:
    """A term and all that it is applied to, each after its inputs."""
    found: dict[int, Term] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Term) and id(value) not in found:
            for one in value.inputs:
                visit(one)
            found[id(value)] = value

    visit(term)
    return list(found.values())


class _Names(dict[str, Any]):
    """What names in a text stand for; those that are not given are ONNX's operators."""

    def __missing__(self, name: str) -> Callable[..., Term]:
        return lambda *inputs, **attributes: Term(name, inputs, attributes)


def parsed(text: str, **names: Any) -> Term:
    """The term that a text of this page's spells, in which these names have these values."""
    return eval(text, {"__builtins__": {}}, _Names(names))


SPELLINGS: dict[type[Operation], tuple[str, ...]] = {
    Affine: ("Gemm(x, W, b)", "MatMul(x, W)"),
    Sigmoid: ("Sigmoid(x)",),
    ReLU: ("Relu(x)", "Max(x, 0)", "Clip(x, 0)"),
    Tanh: ("Tanh(x)",),
    LeakyReLU: ("LeakyRelu(x, alpha=slope)",),
    ELU: ("Elu(x, alpha=alpha)",),
    SELU: ("Selu(x, alpha=alpha, gamma=scale)",),
    Softplus: ("Softplus(x)", "Where(Greater(x, 20), x, Softplus(x))"),
    SiLU: ("Mul(x, Sigmoid(x))", "Swish(x)"),
    GELU: ("Gelu(x, approximate='tanh')",),
    HardSigmoid: ("HardSigmoid(x, alpha=1 / 6, beta=0.5)",),
    HardTanh: ("Clip(x, -1, 1)",),
    Mish: (
        "Mish(x)",
        "Mul(x, Tanh(Softplus(x)))",
        "Mul(x, Tanh(Where(Greater(x, 20), x, Softplus(x))))",
    ),
    Softmax: ("Softmax(x, axis=-1)",),
    Dropout: ("Dropout(x, ratio)", "Dropout(x)", "Dropout(x, ratio, 0)"),
    BatchNorm: ("BatchNormalization(x, gamma, beta, mean, variance, epsilon=eps, momentum=decay)",),
    LayerNorm: (
        "LayerNormalization(x, gamma, beta, axis=-1, epsilon=eps)",
        "LayerNormalization(x, gamma, axis=-1, epsilon=eps)",
    ),
}
"""Operations that are operators of ONNX, or that others compose of those. They are written the
first way, and read in any; a parameter that a spelling leaves out is what it begins as."""


def in_operators(operation: Operation) -> list[Term]:
    """The spellings in the table of an operation, or of one whose settings are `Number`s."""
    names = {name: name for name in names_of(operation)} | vars(operation)
    return [parsed(text, **names) for text in SPELLINGS.get(type(operation), ())]


def names_of(operation: Operation) -> list[str]:
    """What a formula's inputs are called: x, the parameters, and state."""
    return [INPUT, *operation.parameters, *operation.state]


DOUBLE = frozenset(("Clip", "Dropout", "Gemm", "Mul", "Relu", "Sigmoid", "Softmax", "Tanh"))
"""Operators of these that are computed in float64 as such. Attributes are float32 in ONNX, and so
are the numbers in its own definition of Gelu; of others, such as Elu, runtimes have float32 alone.
A network in float64 has those spelled by their formulas, whose numbers are tensors."""


def spelled(operation: Operation, dtype: str) -> Term:
    """An operation in prediction as it is written: by its operator, or by its formula."""
    for found in in_operators(operation)[:1]:
        if dtype == "float32" or DOUBLE.issuperset(part.operator for part in parts(found)):
            return found
    return traced(operation, operation.forward, operation)


# -- formulas in ONNX's primitives


class _Primitives(Trace):
    """Writes down a formula, as it predicts, with functions that ONNX has."""

    def __init__(self, state: Iterable[str]) -> None:
        super().__init__(("exp", "log", "abs", "sqrt"))
        self.state = {name: Node("input", (name,), True) for name in state}
        self.kept = SimpleNamespace()

    def expm1(self, a: Any) -> Any:
        """exp(a) - 1, which near 0 keeps its digits: (u - 1) a / log u with u = exp(a).

        Higham 2002, §1.14.1: the rounding of u is in both u - 1 and log u, and leaves the quotient.
        """
        u = self.exp(a)
        near = self.where(u == 1, a, (u - 1) * a / self.log(u))
        return self.where(self.abs(a) < 1, near, u - 1)

    def log1p(self, a: Any) -> Any:
        """log(1 + a) by the same quotient (Higham 2002, §1.14.1, and his problem 1.5)."""
        u = 1 + a
        near = self.where(u == 1, a, self.log(u) * a / (u - 1))
        return self.where(self.abs(a) < 1, near, self.log(u))

    def maximum(self, a: Any, b: Any) -> Any:
        return self._of_two("Max", a, b)

    def minimum(self, a: Any, b: Any) -> Any:
        return self._of_two("Min", a, b)

    def _of_two(self, operator: str, a: Any, b: Any) -> Node:
        return Node(operator, (a, b), any(isinstance(v, Node) and v.varies for v in (a, b)))

    def matmul(self, a: Any, b: Any) -> Node:
        """The product of x, or of what is made of it, and a matrix."""
        return Node("MatMul", (a, b), True)

    def T(self, a: Any) -> Node:  # noqa: N802  # the field's own name
        """The transpose of a matrix."""
        return Node("Transpose", (a,), True)

    def width(self, a: Any) -> Node:
        return Node("width", (a,), False)


FLOAT = object()
"""Of an attribute that names a type: the network's own."""

PRIMITIVES: dict[str, str] = {
    **{"+": "Add", "-": "Sub", "*": "Mul", "/": "Div", "neg": "Neg", "abs": "Abs"},
    **{"sqrt": "Sqrt", "exp": "Exp", "log": "Log", "where": "Where"},
    **{"<": "Less", "<=": "LessOrEqual", ">": "Greater", ">=": "GreaterOrEqual", "==": "Equal"},
    **{"&": "And", "|": "Or", "~": "Not"},
    **{name: name for name in ("Max", "Min", "MatMul", "Transpose")},
}
"""What ONNX calls what a trace is made of."""

COMPOSED: dict[str, str] = {
    "!=": "Not(Equal(a, b))",
    "sum": "ReduceSum(a, [-1], keepdims=1)",
    "max": "ReduceMax(a, [-1], keepdims=1)",
    "width": "Cast(Shape(a, start=-1), to=FLOAT)",
}
"""What of it takes several operators, or attributes."""


def traced(operation: Operation, method: Callable[..., Any], values: Operation | None) -> Any:
    """A method of an operation's, in ONNX's primitives.

    Parameters
    ----------
    operation
        Whose parameters and state the formula has.
    method
        Its `forward`, or a loss's `predict`.
    values
        Whose settings are the numbers; None leaves them as `Number`.

    Raises
    ------
    FormulaError
        The formula uses what only arrays have.
    """
    formula = trace(method, INPUT, *operation.parameters, m=_Primitives(operation.state))
    numbers: dict[str, Any] = {}
    if values is not None:
        numbers = dict(zip(formula.numbers, formula.values()(values, 0), strict=True))
    made: dict[int, Any] = {}

    def of(value: Any) -> Any:
        if isinstance(value, Number):
            return numbers.get(value.source, value)
        if not isinstance(value, Node):
            return value
        if id(value) not in made:
            if value.operator == "input":
                made[id(value)] = value.arguments[0]
            else:
                made[id(value)] = _term(value.operator, [of(a) for a in value.arguments])
        return made[id(value)]

    return of(formula.results[0])


def _term(operator: str, inputs: list[Any]) -> Term:
    if operator in COMPOSED:
        return parsed(COMPOSED[operator], FLOAT=FLOAT, **dict(zip("ab", inputs, strict=False)))
    if operator not in PRIMITIVES:
        raise FormulaError(f"{operator} is nothing that ONNX has")
    return Term(PRIMITIVES[operator], tuple(inputs), {})


# -- comparing


COMMUTATIVE = frozenset(("Add", "Mul", "And", "Or", "Equal", "Max", "Min"))
"""Operators of which the inputs may come in either order."""

TYPES = (1, 11)
"""What stands for float32 and float64 in a file."""


class Match:
    """Compares a spelling with a graph, and finds out of which arrays and settings it is.

    Parameters
    ----------
    attributes
        All attributes of a term, those with the defaults of ONNX included.
    kind
        The dtype of the graph's numbers.

    Attributes
    ----------
    arrays
        By the spelling's names.
    said
        Settings, as a formula has them, and what the graph says that they are.
    """

    def __init__(self, attributes: Callable[[Term], Mapping[str, Any]], kind: Any) -> None:
        self.attributes, self.kind = attributes, kind
        self.arrays: dict[str, Any] = {}
        self.said: list[tuple[str, float]] = []

    def compare(self, spelling: Any, found: Any) -> bool:
        """Whether a graph is what a spelling says."""
        if isinstance(spelling, Term):
            if isinstance(found, Term):
                return self._compare_terms(spelling, found)
            if spelling.operator != "Transpose" or not isinstance(found, np.ndarray):
                return False
            parameter: Any = np.transpose(cast(Any, found))  # which is read as an array already
            return self.compare(spelling.inputs[0], parameter)
        if isinstance(found, Term) or found is None:
            return False
        if isinstance(spelling, str):
            if spelling == INPUT or isinstance(found, str):
                return isinstance(found, str) and found == spelling
            known = self.arrays.setdefault(spelling, found)
            return known is found or np.array_equal(known, found)
        if isinstance(found, str):
            return False
        if isinstance(spelling, list):
            return found.tolist() == spelling
        return found.size == 1 and found.dtype.kind in "fib" and self._same(spelling, found)

    def _compare_terms(self, spelling: Term, found: Term) -> bool:
        if spelling.operator != found.operator or len(spelling.inputs) != len(found.inputs):
            return False
        expected, given = self.attributes(spelling), self.attributes(found)
        if expected.keys() != given.keys():
            return False
        if not all(self._same_attribute(v, given[k]) for k, v in expected.items()):
            return False
        for inputs in (found.inputs, found.inputs[::-1]):
            before = dict(self.arrays), list(self.said)
            if all(map(self.compare, spelling.inputs, inputs)):
                return True
            self.arrays, self.said = before
            if spelling.operator not in COMMUTATIVE:
                break
        return False

    def _same_attribute(self, expected: Any, given: Any) -> bool:
        if expected is FLOAT:
            return given in TYPES
        if isinstance(given, float):
            return self._same(expected, self.kind.type(given))
        return expected == given

    def _same(self, expected: Any, given: Any) -> bool:
        """Whether a number is the one expected; a setting is then known by it."""
        if not isinstance(expected, Number):
            return bool(self.kind.type(expected) == self.kind.type(np.asarray(given).item()))
        self.said.append((expected.source, float(np.asarray(given).item())))
        return True

    def settled(self, operation: Operation) -> dict[str, Any] | None:
        """The settings that differ from an operation's; None where no settings agree with all.

        What depends on one alone says which that is. Where it is the operation's own number that
        has been rounded to the graph's, it stays as it is.
        """
        known = operation.settings()
        settled: set[str] = set()
        for source, value in sorted(self.said, key=lambda said: len(_settings_in(said[0]))):
            names = _settings_in(source) - settled
            if not self._agrees(_computed(source, known), value):
                solved = self._solved(source, value, known, *names) if len(names) == 1 else None
                if solved is None:
                    return None
                known |= solved
            settled |= names
        if not all(self._agrees(_computed(source, known), value) for source, value in self.said):
            return None
        return {k: v for k, v in known.items() if k in settled and v != operation.settings()[k]}

    def _agrees(self, computed: float | None, value: float) -> bool:
        return computed is not None and bool(self.kind.type(computed) == self.kind.type(value))

    def _solved(
        self, source: str, value: float, known: Mapping[str, Any], name: str
    ) -> dict[str, float] | None:
        """The number with the fewest digits of which a setting is made that value, if one is found.

        By the secant method, which finds it at once where the setting is scaled or shifted.
        """

        def of(v: float) -> float | None:
            return _computed(source, {**known, name: v})

        a, b = float(known[name]), 1.25 * float(known[name]) + 0.125
        for _ in range(SECANTS):
            at_a, at_b = of(a), of(b)
            if self._agrees(at_b, value):
                texts = (f"{b:.{digits}g}" for digits in range(1, 18))
                return next(
                    ({name: v} for v in map(float, texts) if self._agrees(of(v), value)), None
                )
            if at_a is None or at_b is None or at_a == at_b:
                return None
            a, b = b, b - (at_b - value) * (b - a) / (at_b - at_a)
        return None


SECANTS = 50
"""How often the secant method is tried."""


def _settings_in(source: str) -> set[str]:
    """The settings that a number of a formula is made of."""
    return set(re.findall(r"\bs\.(\w+)", source))


def _computed(source: str, settings: Mapping[str, Any]) -> float | None:
    """A number of a formula, of these settings; None if there is none."""
    values = Formula((), (), (source,)).values()
    try:
        return values(SimpleNamespace(**settings), 0)[0]
    except (ArithmeticError, ValueError):
        return None


@cache
def spellings(kind: type[Operation]) -> list[Term]:
    """All of an operation's: those of `SPELLINGS`, and its formula."""
    operation = made_of_size_one(kind)
    if operation is None:
        return []
    found: list[Any] = in_operators(symbolic(operation))
    with suppress(Exception):  # anybody's formula, which may do what only arrays can
        found.append(traced(operation, operation.forward, None))
    return [one for one in found if isinstance(one, Term)]


def required(kind: type[Operation]) -> dict[str, Any]:
    """The settings of an operation that have no default, and their annotations."""
    fields = dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
    return {field.name: field.type for field in fields if field.default is dataclasses.MISSING}


def made_of_size_one(kind: type[Operation]) -> Operation | None:
    """An operation with its defaults, for sizes of 1; None if it has other settings to be made."""
    shapes = [*kind.parameters.values(), *(shape for shape, _ in kind.state.values())]
    sizes = {size for shape in shapes for size in shape}
    if issubclass(kind, Loss) or not required(kind).keys() <= sizes:
        return None
    return kind(**dict.fromkeys(sizes, 1))
