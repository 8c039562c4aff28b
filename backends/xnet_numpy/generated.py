"""Formulas as straight lines of NumPy calls, which need fewer arrays than the formula as it stands.

A formula is traced to an expression (`xnet.formulas`), and that is written as a function which
computes each number once and puts it where one that is no longer needed was. Fast mode only: in
reproducible mode the formula is interpreted as it stands.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xnet import formulas
from xnet.formulas import TRUTHS, Formula, Node, Number, nodes, structure

CALLS = {
    **{"+": "add", "-": "subtract", "*": "multiply", "/": "divide", "neg": "negative"},
    **{"<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal"},
    **{"==": "equal", "!=": "not_equal", "&": "logical_and", "|": "logical_or"},
    **{"~": "logical_not", "abs": "absolute"},
}
"""NumPy's names where they differ."""

REDUCED = {"sum": "np.add.reduce", "max": "np.maximum.reduce"}


class Function(NamedTuple):
    """A function of arrays and then of the host's numbers, and those of an owner and a step."""

    call: Callable[..., Any]
    values: Callable[[Any, float], tuple[float, ...]]


def _is_maximum(node: Node) -> bool:
    """Whether it is ``where(a <= b, b, a)``."""
    condition, one, other = node.arguments
    if not isinstance(condition, Node) or condition.operator != "<=":
        return False
    a, b = condition.arguments
    same = one is b or (not isinstance(b, Node | Number) and one == b)
    return other is a and same


def _source(formula: Formula, spare: tuple[str, ...] = ()) -> str:
    """The function, as Python; it may write to the inputs that are `spare`."""
    order = nodes(formula.results)
    results = {id(value) for value in formula.results}
    last: dict[int, int] = {}
    for place, node in enumerate(order):
        if node.operator != "input":
            last |= {id(a): place for a in node.arguments if isinstance(a, Node)}
    names: dict[int, str] = {}
    written: list[str] = []

    def name(value: Any) -> str:
        if isinstance(value, Node):
            return names[id(value)]
        if isinstance(value, Number):
            return f"c{formula.numbers.index(value.source)}"
        return repr(float(value))

    def free(place: int, node: Node) -> str | None:
        """An array that this node may be put into: of its shape and type, and not needed again."""
        for a in node.arguments:
            if (
                isinstance(a, Node)
                and a.operator not in ("width", *TRUTHS)
                and (a.operator != "input" or a.arguments[0] in spare)
                and last[id(a)] == place
                and id(a) not in results
                and a.varies == node.varies
            ):
                return names[id(a)]
        return None

    for place, node in enumerate(order):
        if node.operator == "input":
            names[id(node)] = node.arguments[0]
            continue
        names[id(node)] = f"v{place}"
        arguments = [name(a) for a in node.arguments]
        out = None if node.operator in TRUTHS else free(place, node)
        suffix = f", {out}" if out else ""
        if node.operator == "width":
            text = f"{formula.inputs[0]}.shape[-1]"
        elif node.operator in REDUCED:
            text = f"{REDUCED[node.operator]}({arguments[0]}, -1, None, None, True)"
        elif node.operator != "where":
            call = CALLS.get(node.operator, node.operator)
            text = f"np.{call}({', '.join(arguments)}{suffix})"
        elif _is_maximum(node):
            text = f"np.maximum({arguments[2]}, {arguments[1]}{suffix})"
        else:
            text = f"np.where({', '.join(arguments)})"
        written.append(f"    v{place} = {text}")
    inputs = [*formula.inputs, *(f"c{k}" for k in range(len(formula.numbers)))]
    found = ", ".join(map(name, formula.results))
    return "\n".join([f"def f({', '.join(inputs)}):", *written, f"    return {found}"])


def _compiled(formula: Formula, spare: tuple[str, ...]) -> Function:
    names: dict[str, Any] = {"np": np}
    exec(_source(formula, spare), names)
    return Function(names["f"], formula.values())


_functions: dict[Any, Function] = {}


def _kept(make: Callable[[Any], Formula], *spare: str) -> Callable[[Any], Function]:
    """Keep what is written for each class, and whatever of an owner is no number."""

    def found(owner: Any) -> Function:
        key = make, spare, structure(owner)
        function = _functions.get(key)
        if function is None:
            function = _functions[key] = _compiled(make(owner), spare)
        return function

    return found


forward = _kept(formulas.forward)
backward = _kept(formulas.backward)
predicted = _kept(formulas.predicted)
row_losses = _kept(formulas.row_losses)
loss_and_delta = _kept(formulas.loss_and_delta)
step = _kept(formulas.step)
last_step = _kept(formulas.step, "g")
"""The same, for a gradient that nobody needs after it."""
