"""CUDA C++ for what operations, losses and optimizers compute, written from their formulas.

What is written stands behind `kernels.cu`: structures that its kernels take for template
parameters, and whole kernels where the arrays are as many as a formula has inputs and results.
Numbers of a formula that are settings are arguments, so another slope is the same text. Nothing
here needs CuPy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from xnet import exact, formulas
from xnet.formulas import (
    TRUTHS,
    Cuda,
    Formula,
    Node,
    Number,
    Trace,
    by_structure,
    lines,
    nodes,
    spelled,
    trace,
)

SOURCE = Path(__file__).with_name("kernels.cu")

Texts: TypeAlias = list[str]


# -- formulas


class Traced:
    """A formula, with what is asked of it at every call.

    Attributes
    ----------
    formula
        The expression.
    numbers
        A function of the formula's owner and the step: the numbers that it takes.
    uses
        Of each input, whether the formula depends on it.
    varies
        Of each result, whether there is one at each place of a row, or one for the row.
    by_rows
        Whether a number depends on others of its row.
    """

    def __init__(self, formula: Formula) -> None:
        self.formula, self.numbers = formula, formula.values()
        self.uses = tuple(map(formula.uses, formula.inputs))
        self.varies = tuple(isinstance(r, Node) and r.varies for r in formula.results)
        self.by_rows = formula.by_rows
        self._inputs = [isinstance(r, Node) and r.operator == "input" for r in formula.results]

    def gives(self, of_row: int) -> bool:
        """Whether the first `of_row` results alone are of the row, and something is computed."""
        places = range(len(self.varies))
        return not any(self._inputs) and self.varies == tuple(k >= of_row for k in places)

    @property
    def inputs(self) -> list[str]:
        """The names of those that it depends on."""
        pairs = zip(self.formula.inputs, self.uses, strict=True)
        return [name for name, used in pairs if used]


def _kept(make: Callable[[Any], Formula]) -> Callable[[Any], Traced]:
    def traced(owner: Any) -> Traced:
        return Traced(make(owner))

    return by_structure(traced)


forward = _kept(formulas.forward)
backward = _kept(formulas.backward)
predicted = _kept(formulas.predicted)
row_losses = _kept(formulas.row_losses)
loss_and_delta = _kept(formulas.loss_and_delta)
step = _kept(formulas.step)


@cache
def elementary(name: str) -> Traced:
    """One of the functions of `exact.ELEMENTARY`."""

    def formula(m: Any, x: Any) -> Any:
        return getattr(m, name)(x)

    return Traced(trace(formula, "x"))


@cache
def identity() -> Traced:
    """What a run gives that ends in no loss: its scores."""

    def formula(m: Any, x: Any) -> Any:
        return x

    return Traced(trace(formula, "x"))


# -- what is compiled


@dataclass(frozen=True)
class Kernel:
    """An instance of a kernel, but for the type of its numbers and the mode.

    Attributes
    ----------
    name
        As C++ has it, with ``{type}`` and ``{math}``.
    text
        What must stand behind `kernels.cu`.
    """

    name: str
    text: str = ""


def source(text: str = "") -> str:
    """What is compiled: the kernels written by hand, and what was written from formulas."""
    return f"{SOURCE.read_text()}\n{_elementary()}\n{text}"


@cache
def _elementary() -> str:
    """`Fast` and `Exact`: the device's own elementary functions, and those of `xnet.exact`."""
    exacts: Texts = []
    members: dict[str, Texts] = {"Fast": [], "Exact": []}
    for name, formula in exact.ELEMENTARY.items():
        found = trace(formula, "x", m=Trace(("scale",)))
        body, (result,) = lines(Cuda, found)
        exacts += [f"__device__ inline double exact_{name}(double x) {{", "    typedef double T;"]
        exacts += [*_indented(body), f"    return {result};", "}", ""]
        for mode, text in {"Fast": f"::{name}(x)", "Exact": f"T(exact_{name}(double(x)))"}.items():
            members[mode].append(
                f"    template <class T> static __device__ T {name}(T x) {{ return {text}; }}"
            )
    for mode, base in {"Fast": "Plain", "Exact": "Sliced"}.items():
        exacts += [f"struct {mode} : {base} {{", *members[mode], "};", ""]
    return "\n".join(exacts)


@cache
def elementwise(found: Traced) -> Kernel:
    """A kernel that computes a formula of single numbers: its inputs, results and numbers."""
    formula = found.formula
    body, results = lines(Cuda, formula)
    inputs = found.inputs
    parameters = [*(f"const T* all_{name}" for name in inputs)]
    parameters += [f"T* result{k}" for k in range(len(results))]
    parameters += [f"T c{k}" for k in range(len(formula.numbers))]
    text = [
        "template <class T, class Math>",
        f"__global__ void elementwise({', '.join([*parameters, 'Index size'])}) {{",
        "    for (Index i = thread(); i < size; i += threads()) {",
        *_indented([f"T {name} = all_{name}[i];" for name in inputs], 2),
        *_indented(body, 2),
        *_indented([f"result{k}[i] = {text};" for k, text in enumerate(results)], 2),
        "    }",
        "}",
    ]
    return Kernel("elementwise<{type}, {math}>", "\n".join(text))


@cache
def rowwise(found: Traced) -> Kernel:
    """A kernel that computes a formula along rows: its inputs, results and numbers."""
    formula = found.formula
    inputs = found.inputs
    numbers = [f"c{k}" for k in range(len(formula.numbers))]
    parameters = [*(f"const T* all_{name}" for name in inputs)]
    parameters += [f"T* result{k}" for k in range(len(formula.results))]
    parameters += [f"T {number}" for number in numbers]
    arguments = [f"[=](Index j) {{ return all_{name}[i * columns + j]; }}" for name in inputs]
    for k, varies in enumerate(found.varies):
        place = "i * columns + j" if varies else "i"
        given = "Index j" if varies else "Index"
        arguments.append(f"[=]({given}, T value) {{ result{k}[{place}] = value; }}")
    text = [
        _along("Function", found),
        "",
        "template <class T, class Math>",
        f"__global__ void rowwise({', '.join([*parameters, 'Index rows', 'Index columns'])}) {{",
        f"    const T numbers[] = {{{', '.join([*numbers, 'T(0)'])}}};",
        "    for (Index i = blockIdx.x; i < rows; i += gridDim.x) {",
        "        Function::template along<Math, Block>(",
        "            " + ",\n            ".join(["numbers, columns", *arguments]),
        "        );",
        "    }",
        "}",
    ]
    return Kernel("rowwise<{type}, {math}>", "\n".join(text))


Chain: TypeAlias = tuple[Traced, ...]
"""Formulas of single numbers, one after the other."""


@cache
def add_bias(chain: Chain) -> Kernel:
    """`add_bias` of kernels.cu followed by these; their numbers in turn."""
    numbers = sum(len(found.formula.numbers) for found in chain)
    name = f"add_bias<{', '.join(['{type}', '{math}', 'Function', *['{type}'] * numbers])}>"
    return Kernel(name, _function("Function", chain))


@cache
def forward_rows(chains: tuple[Chain, ...], predicted: Traced) -> Kernel:
    """`forward_rows` of kernels.cu with these `Functions`, and what the loss predicts."""
    types = ["{type}"] * len(predicted.formula.numbers)
    name = ", ".join(["{type}", "{math}", "Functions", "Predicted", *types])
    return Kernel(f"forward_rows<{name}>", _functions(chains) + _along("Predicted", predicted))


@cache
def loss_differences(chains: tuple[Chain, ...], loss: Traced) -> Kernel:
    """`loss_differences` of kernels.cu with these `Functions` and this loss of a row."""
    types = ["{type}"] * len(loss.formula.numbers)
    name = ", ".join(["{math}", "Functions", "Loss", *types])
    return Kernel(
        f"loss_differences<{name}>", _functions(chains) + _along("Loss", loss, every=True)
    )


# -- structures


def _indented(texts: Sequence[str], levels: int = 1) -> Texts:
    return [f"{'    ' * levels}{text}" for text in texts]


def _function(name: str, chain: Chain) -> str:
    """A structure whose `of` takes a number x through the formulas."""
    text = [
        f"struct {name} {{",
        "    template <class Math, class T> static __device__ T of(const T* c, T x) {",
    ]
    for found in chain:
        body, (result,) = lines(Cuda, found.formula)
        numbers = [f"T c{k} = c[{k}];" for k in range(len(found.formula.numbers))]
        text += ["        {", *_indented([*numbers, *body, f"x = {result};"], 3), "        }"]
        text += [f"        c += {len(numbers)};"] if numbers else []
    return "\n".join([*text, "        return x;", "    }", "};", ""])


def _functions(chains: tuple[Chain, ...]) -> str:
    """`Functions`, of which `of` is told which one."""
    text = [_function(f"Function{k}", chain) for k, chain in enumerate(chains)]
    text += [
        "struct Functions {",
        "    template <class Math, class T>",
        "    static __device__ T of(Index which, const T* c, T x) {",
        *(
            f"        if (which == {k}) return Function{k}::template of<Math>(c, x);"
            for k in range(len(chains))
        ),
        *("        return x;", "    }", "};", ""),
    ]
    return "\n".join(text)


def _along(name: str, found: Traced, every: bool = False) -> str:
    """A structure whose `along` computes a formula along a row, by a `Group` of threads.

    It takes the numbers, the columns, a function of the place for each input that the formula
    uses, or for `every` one, and for each result one that takes the place and what belongs there.
    """
    formula = found.formula
    inputs = formula.inputs if every else found.inputs
    kinds = [f"class In{k}" for k in range(len(inputs))]
    kinds += [f"class Put{k}" for k in range(len(formula.results))]
    takes = [f"In{k} {input}" for k, input in enumerate(inputs)]
    takes += [f"Put{k} put{k}" for k in range(len(formula.results))]
    names: dict[int, str] = {}
    body = [f"T c{k} = c[{k}];" for k in range(len(formula.numbers))]
    for node in nodes(formula.results):
        if not node.varies:
            body += _of_row(formula, node, names)
    whole = [k for k, varies in enumerate(found.varies) if not varies]
    placed = [k for k, varies in enumerate(found.varies) if varies]
    if whole:
        puts = [f"put{k}(0, {_name(formula, formula.results[k], names)});" for k in whole]
        body += ["if (Group::first() == 0) {", *_indented(puts), "}"]
    if placed:
        at_place, results = _at_place(formula, [formula.results[k] for k in placed], names)
        puts = [f"put{k}(j, {text});" for k, text in zip(placed, results, strict=True)]
        body += ["for (Index j = Group::first(); j < columns; j += Group::step()) {"]
        body += [*_indented([*at_place, *puts]), "}"]
    text = [
        f"struct {name} {{",
        f"    template <class Math, class Group, class T, {', '.join(kinds)}>",
        "    static __device__ void along(",
        f"        {', '.join(['const T* c', 'Index columns', *takes])}",
        "    ) {",
        *_indented(body, 2),
        *("    }", "};", ""),
    ]
    return "\n".join(text)


def _of_row(formula: Formula, node: Node, names: dict[int, str]) -> Texts:
    """The lines that compute a number of the row, and its name among `names`."""
    name = names[id(node)] = f"row{len(names)}"
    if node.operator == "width":
        return [f"T {name} = T(columns);"]
    if node.operator not in ("sum", "max"):
        return [_line(formula, node, name, names)]
    body, (result,) = _at_place(formula, node.arguments, names)
    call = "Math::template sum<T, Group>" if node.operator == "sum" else "largest<T, Group>"
    return [
        f"T {name} = {call}([=](Index j) {{",
        *_indented([*body, f"return {result};"]),
        "}, columns);",
    ]


def _at_place(
    formula: Formula, values: Sequence[Any], known: dict[int, str]
) -> tuple[Texts, Texts]:
    """The lines that compute values at place j of a row, and the names of these."""
    names, body = dict(known), list[str]()

    def visit(value: Any) -> None:
        if not isinstance(value, Node) or id(value) in names:
            return
        if value.operator == "input":
            names[id(value)] = f"{value.arguments[0]}(j)"
            return
        for argument in value.arguments:
            visit(argument)
        name = names[id(value)] = f"v{len(body)}"
        body.append(_line(formula, value, name, names))

    for value in values:
        visit(value)
    return body, [_name(formula, value, names) for value in values]


def _line(formula: Formula, node: Node, name: str, names: dict[int, str]) -> str:
    text = spelled(Cuda, formula, node, names)
    if node.operator in TRUTHS:
        return Cuda.truth.format(name=name, text=text)
    return Cuda.assign.format(name=name, text=text)


def _name(formula: Formula, value: Any, names: dict[int, str]) -> str:
    if isinstance(value, Node):
        return names[id(value)]
    if isinstance(value, Number):
        return f"c{formula.numbers.index(value.source)}"
    return Cuda.literal(value)
