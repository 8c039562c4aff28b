"""Formulas as straight lines of NumPy calls, which need fewer arrays than the formula as it stands.

A formula is traced to an expression (`xnet.formulas`), and that is written as a function which
computes each number once and puts it where one that is no longer needed was. Fast mode only: in
reproducible mode the formula is interpreted as it stands.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xnet import formulas
from xnet.formulas import TRUTHS, Formula, Node, Number, by_structure, nodes

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


def _source(formula: Formula, spare: tuple[str, ...] = (), place: str | None = None) -> str:
    """The function, as Python; it may write to the inputs that are `spare`.

    The first result may have a `place`, an input that it will be written to when all is computed.
    Then the function gives what is to be called for that, a ufunc and its arguments.
    """
    order = nodes(formula.results)
    results = {id(value) for value in formula.results}
    last: dict[int, int] = {}
    for step, node in enumerate(order):
        if node.operator != "input":
            last |= {id(a): step for a in node.arguments if isinstance(a, Node)}
    names: dict[int, str] = {}
    written: list[str] = []

    def name(value: Any) -> str:
        if isinstance(value, Node):
            return names[id(value)]
        if isinstance(value, Number):
            return f"c{formula.numbers.index(value.source)}"
        return "ZERO" if value == 0 and math.copysign(1, value) > 0 else repr(float(value))

    def free(step: int, node: Node) -> str | None:
        """An array that this node may be put into: of its shape and type, and not needed again."""
        for a in node.arguments:
            if (
                isinstance(a, Node)
                and a.operator not in ("width", *TRUTHS)
                and (a.operator != "input" or a.arguments[0] in spare)
                and last[id(a)] == step
                and id(a) not in results
                and a.varies == node.varies
            ):
                return names[id(a)]
        return None

    first, waits = formula.results[0], False
    if place and isinstance(first, Node) and first.varies and id(first) not in last:
        # What it reads must stay as it is until all is computed, and the rest put where it belongs.
        read = {a.arguments[0] for a in first.arguments if isinstance(a, Node) and _is_input(a)}
        plain = first.operator not in ("input", "where", *TRUTHS, *REDUCED)
        once = sum(result is first for result in formula.results) == 1
        waits = plain and read <= {place, *spare} and once
        last |= {id(a): len(order) for a in first.arguments if waits and isinstance(a, Node)}
    for step, node in enumerate(order):
        if _is_input(node):
            names[id(node)] = node.arguments[0]
            continue
        names[id(node)] = f"v{step}"
        arguments = [name(a) for a in node.arguments]
        out = None if node.operator in TRUTHS else free(step, node)
        suffix = f", {out}" if out else ""
        if node.operator == "width":
            text = f"{formula.inputs[0]}.shape[-1]"
        elif node.operator in REDUCED:
            text = f"{REDUCED[node.operator]}({arguments[0]}, -1, None, None, True)"
        elif node.operator != "where":
            call = CALLS.get(node.operator, node.operator)
            if waits and node is first:
                names[id(node)] = f"(np.{call}, {', '.join(arguments)}, {place})"
                continue
            text = f"np.{call}({', '.join(arguments)}{suffix})"
        elif _is_maximum(node):
            text = f"np.maximum({arguments[2]}, {arguments[1]}{suffix})"
        else:
            text = f"_where({', '.join(arguments)})"
        written.append(f"    v{step} = {text}")
    inputs = [*formula.inputs, *(f"c{k}" for k in range(len(formula.numbers)))]
    found = list(map(name, formula.results))
    if place and not waits:
        found[0] = f"(np.positive, {found[0]}, {place})"
    return "\n".join([f"def f({', '.join(inputs)}):", *written, f"    return {', '.join(found)}"])


def _is_input(node: Node) -> bool:
    return node.operator == "input"


WHOLE: dict[int, Any] = {4: np.dtype(np.int32), 8: np.dtype(np.int64)}
"""Whole numbers by their bytes."""

MANY = 2000
"""Numbers from which it pays to choose by arithmetic."""


def _where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, else `b`: arrays of floats, or a number.

    Their bits, as whole numbers, are b ^ (a ^ b) c with a c of 0 or 1. `np.where` goes from number
    to number, and took up to fifteen times as long.
    """
    floats = a if hasattr(a, "itemsize") else b
    if condition.size < MANY or not hasattr(floats, "itemsize"):
        where: Any = np.where
        return where(condition, a, b)
    if a is ZERO:
        condition, a, b = np.logical_not(condition), b, a
    dtype: Any = floats.dtype
    whole = WHOLE[dtype.itemsize]
    found = np.asarray(a, dtype).view(whole)
    if b is ZERO:
        return np.multiply(found, condition).view(dtype)
    other = np.asarray(b, dtype).view(whole)
    found = np.multiply(np.bitwise_xor(found, other), condition)
    return np.bitwise_xor(found, other, found).view(dtype)


ZERO = 0.0
"""What formulas write as such: its bits are 0."""


def _compiled(formula: Formula, spare: tuple[str, ...], place: str | None) -> Function:
    names: dict[str, Any] = {"np": np, "_where": _where, "ZERO": ZERO}
    exec(_source(formula, spare, place), names)
    return Function(names["f"], formula.values())


def _kept(make: Callable[[Any], Formula], *spare: str, place: str | None = None) -> Any:
    def compiled(owner: Any) -> Function:
        return _compiled(make(owner), spare, place)

    return by_structure(compiled)


forward = _kept(formulas.forward)
backward = _kept(formulas.backward)
predicted = _kept(formulas.predicted)
row_losses = _kept(formulas.row_losses)
loss_and_delta = _kept(formulas.loss_and_delta)
step = _kept(formulas.step)
step_in_place = _kept(formulas.step, "g", place="W")
"""The same, for a gradient that nobody needs after it; what is called then writes the new W."""
