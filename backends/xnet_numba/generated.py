# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOptionalOperand=false
"""Compiled loops of every operation, loss and optimizer, written from their formulas.

A formula is traced to an expression (`xnet.formulas`), and its source is put into a loop here:
over numbers, over the rows of a block, or over the columns of one. A loop is a routine that its
callers know by its address alone (`compiling.routine`), with arrays given by theirs; what a formula
takes from the host, such as an operation's settings, is an argument of it.

In fast mode a multiplication may be fused with an addition; in reproducible mode every operation
is as written, and sums and elementary functions are those of `xnet.exact`.
"""

import hashlib
import linecache
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numba
import numpy as np
from numba import types

from xnet import formulas
from xnet.formulas import (
    CALLS,
    Formula,
    Node,
    Number,
    Python,
    by_structure,
    expect,
    lines,
    nodes,
    spelled,
)
from xnet_numba.compiling import compiled, routine

FAST, EXACT = "fast", "exact"
OPTIONS = {
    FAST: (("error_model", "numpy"), ("fastmath", frozenset({"contract"}))),
    EXACT: (("error_model", "numpy"),),
}

HEAD = """# Written by xnet; see xnet_numba/generated.py.
import math

import numpy as np
from numba import carray, njit

from xnet_numba.intrinsics import pointer_to
"""

FUNCTIONS = {
    FAST: "from xnet_numba.elementary import exp, expm1, log, log1p\n",
    EXACT: "from xnet_numba.exactly import exp, expm1, log, log1p, row_sum\n",
}


# -- source


def load(source):
    """The module of this source, which `Kept` knows by a name that follows from it."""
    text = HEAD + source
    name = f"xnet_generated_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    if name not in sys.modules:
        module, path = ModuleType(name), f"<{name}>"
        linecache.cache[path] = len(text), None, text.splitlines(keepends=True), path
        exec(compile(text, path, "exec"), module.__dict__)
        sys.modules[name] = module
    return sys.modules[name]


def function(source, name, **options):
    """A compiled function of this source, for other compiled code to call."""
    # Its name has the options in it, for LLVM, which tells functions apart by their names.
    module = load(f"# {sorted(options.items(), key=str)}\n{source}")
    return compiled(**options)(getattr(module, name))


# -- over numbers


def _constants(formula):
    """Lines that name the host's numbers."""
    count = len(formula.numbers)
    if not count:
        return []
    return [
        f"host = carray(pointer_to(zero, numbers), {count})",
        *(f"c{k} = host[{k}]" for k in range(count)),
    ]


def _indented(depth, text):
    return [" " * 4 * depth + line for line in text]


def _loop(formula, into):
    """Source of a loop over numbers, each result in the place of the input that `into` names.

    In place, for LLVM tells such arrays apart without looking at their addresses.
    """
    written, values = lines(Python, formula)
    read = [name for name in formula.inputs if formula.uses(name)]
    arrays = [f"{v}_ = carray(pointer_to(zero, {v}), size)" for v in dict.fromkeys((*read, *into))]
    body = [f"{name} = {name}_[i]" for name in read]
    # An input's own name is free again once it has been read.
    body += written
    body += [f"{name}_[i] = {value}" for name, value in zip(into, values, strict=True)]
    return "\n".join(
        [
            f"def loop(zero, {', '.join(f'{name}' for name in formula.inputs)}, size, numbers):",
            "    kind = type(zero)",
            *_indented(1, _constants(formula)),
            *_indented(1, arrays),
            "    for i in range(size):",
            *_indented(2, body),
            "",
        ]
    )


class Loop(NamedTuple):
    """A routine, and what it takes from the host."""

    address: int
    formula: Formula
    values: object

    def numbers(self, owner, dtype, n=0):
        """The host's numbers, as the routine reads them."""
        return np.array(self.values(owner, n), dtype)


def _compiled(formula, source, mode, dtype, arguments):
    module = load(f"{FUNCTIONS[mode]}\n\n# {mode}\n{source}")
    kinds = numba.from_dtype(np.dtype(dtype)), *[types.int64] * arguments
    return routine(module.loop, *kinds, options=OPTIONS[mode])


def _over_numbers(owner, formula, into, mode, dtype):
    expect(owner, formula, *[True] * len(into), single=True)
    arguments = len(formula.inputs) + 2
    address = _compiled(formula, _loop(formula, into), mode, dtype, arguments)
    return Loop(address, formula, formula.values())


@by_structure
def forward(operation, dtype, mode):
    """A pointwise operation in the place of its input: (zero, x, size, numbers)."""
    return _over_numbers(operation, formulas.forward(operation), ("x",), mode, dtype)


@by_structure
def backward(operation, dtype, mode):
    """Its gradient in the place of dout: (zero, dout, x, y, size, numbers)."""
    return _over_numbers(operation, formulas.backward(operation), ("dout",), mode, dtype)


@by_structure
def step(optimizer, dtype, mode):
    """An optimizer's step in the place of W and its memory: (zero, W, g, *memory, size, numbers).

    As written in both modes, so that a step has one result however it is taken.
    """
    memory = [f"memory{k}" for k in range(optimizer.slots)]
    return _over_numbers(optimizer, formulas.step(optimizer), ("W", *memory), EXACT, dtype)


@dataclass(frozen=True)
class Elementary:
    """An elementary function as an operation.

    What Numba keeps of a function of ours must not call one that is generated: it would ask for
    the latter's module by a name that may be another by then. It calls this loop by its address.
    """

    name: str

    def forward(self, m, x):
        """The function, by the name that `xnet.exact.ELEMENTARY` has for it."""
        return getattr(m, self.name)(x)


# -- over rows


class _Rows:
    """Source of a formula along rows, for n rows of m numbers: some loops one after the other.

    A sum or maximum is a loop of its own. The argument of an elementary function is stored, and the
    function taken of all rows' numbers in one loop, which LLVM vectorises however short a row is;
    in reproducible mode the terms of a sum are stored too. All else is computed where it is needed.

    `columns` is for arrays (m, n) of which each column is such a row, all with one target.
    """

    def __init__(self, formula, mode, columns):
        self.formula, self.mode, self.columns = formula, mode, columns
        self.written, self.stored, self.of_row, self.slots = [], {}, {}, 0
        for node in nodes(formula.results):
            if node.operator in CALLS:
                self._call(node)
            elif node.operator in ("sum", "max"):
                self._reduce(node)

    # names of what is known: in `stored` arrays of all numbers, in `of_row` one for each row

    def _new(self, kind):
        self.slots += 1
        return f"{kind}{self.slots}"

    def _expression(self, value, inner, names):
        """The name of a value within a loop; `inner` gets the lines that compute it."""
        if not isinstance(value, Node):
            return (
                f"c{self.formula.numbers.index(value.source)}"
                if isinstance(value, Number)
                else Python.literal(value)
            )
        if id(value) in names:
            return names[id(value)]
        if id(value) in self.stored:
            text = f"{self.stored[id(value)]}[at]"
        elif id(value) in self.of_row:
            text = f"{self.of_row[id(value)]}[i]"
        elif value.operator == "input":
            place = "j" if self.columns and value.arguments[0] == "t" else "at"
            text = f"{value.arguments[0]}_[{place}]"
        elif value.operator == "width":
            text = "kind(m)"
        else:
            for argument in value.arguments:
                if isinstance(argument, Node):
                    self._expression(argument, inner, names)
            text = spelled(Python, self.formula, value, names)
        names[id(value)] = name = f"v{len(names)}"
        inner.append(f"{name} = {text}")
        return name

    def _nest(self, inner, before=(), after=()):
        """Lines of a loop over all numbers; `before` and `after` are done for each row.

        Over columns the rows are the inner loop, and what is done for each a loop of its own.
        """
        at = ["at = j * n + i" if self.columns else "at = i * m + j"]
        if not self.columns:
            return [
                "for i in range(n):",
                *_indented(1, before),
                "    for j in range(m):",
                *_indented(2, at + inner),
                *_indented(1, after),
            ]
        outer = [["for i in range(n):", *_indented(1, t)] if t else [] for t in (before, after)]
        loops = ["for j in range(m):", "    for i in range(n):", *_indented(2, at + inner)]
        return [*outer[0], *loops, *outer[1]]

    def _store(self, node, name):
        """Put all numbers of a node into the array of this name."""
        inner = []
        value = self._expression(node, inner, {})
        self.written += self._nest([*inner, f"{name}[at] = {value}"])

    def _array(self, varies):
        name = self._new("s" if varies else "r")
        self.written.append(f"{name} = np.empty({'n * m' if varies else 'n'}, zero_type)")
        return name

    def _call(self, node):
        (argument,) = node.arguments
        name = self._array(node.varies)
        if node.varies:
            self._store(argument, name)
            loop = "for at in range(n * m):"
            self.written += [loop, f"    {name}[at] = {node.operator}({name}[at])"]
            self.stored[id(node)] = name
            return
        inner = []
        value = self._expression(argument, inner, {})
        loop = ["for i in range(n):", *_indented(1, inner)]
        self.written += [*loop, f"    {name}[i] = {node.operator}({value})"]
        self.of_row[id(node)] = name

    def _reduce(self, node):
        (term,) = node.arguments
        name = self._array(False)
        if node.operator == "sum" and self.mode == EXACT:
            if id(term) in self.stored:
                terms = self.stored[id(term)]
            else:
                terms = self._array(True)
                self._store(term, terms)
            place = "i : n * m : n" if self.columns else "i * m : i * m + m"
            self.written += [
                "for i in range(n):",
                f"    {name}[i] = row_sum({terms}[{place}])",
            ]
            self.of_row[id(node)] = name
            return
        inner = []
        value = self._expression(term, inner, {})
        start = "kind(0)" if node.operator == "sum" else "kind(-math.inf)"
        if self.columns:
            total = f"{name}[i]"
            begin, end = [f"{name}[i] = {start}"], []
        else:
            total = "total"
            begin, end = [f"total = {start}"], [f"{name}[i] = total"]
        if node.operator == "sum":
            inner.append(f"{total} += {value}")
        else:  # NaN where the row holds one, as NumPy's
            kept = f"({value} <= {total}) | ({total} != {total})"
            inner.append(f"{total} = {total} if {kept} else {value}")
        self.written += self._nest(inner, begin, end)
        self.of_row[id(node)] = name

    def source(self, into):
        """The whole function; `into` names the arrays that get the results."""
        per_row, inner = [], []
        names = {}
        for value, name in zip(self.formula.results, into, strict=True):
            if isinstance(value, Node) and value.varies:
                inner.append(f"{name}_[at] = {self._expression(value, inner, names)}")
            else:
                found = []
                text = self._expression(value, found, {})
                per_row += [*found, f"{name}_[i] = {text}"]
        if per_row:
            self.written += ["for i in range(n):", *_indented(1, per_row)]
        if inner:
            self.written += self._nest(inner)
        arrays = dict.fromkeys(self.formula.inputs, "n * m")
        if self.columns and "t" in arrays:
            arrays["t"] = "m"
        for value, name in zip(self.formula.results, into, strict=True):
            varies = isinstance(value, Node) and value.varies
            arrays.setdefault(name, "n * m" if varies else "n")
        head = [
            f"{name}_ = carray(pointer_to(zero, {name}), {size})" for name, size in arrays.items()
        ]
        return "\n".join(
            [
                f"def loop(zero, {', '.join(arrays)}, n, m, numbers):",
                "    kind = type(zero)",
                "    zero_type = kind",
                *_indented(1, _constants(self.formula)),
                *_indented(1, head),
                *_indented(1, self.written),
                "",
            ]
        ), len(arrays)


def _along_rows(owner, formula, into, mode, dtype, columns=False):
    # The array of the other kind has not its size.
    expect(owner, formula, *(name != "losses" for name in into))
    source, arrays = _Rows(formula, mode, columns).source(into)
    address = _compiled(formula, source, mode, dtype, arrays + 3)
    return Loop(address, formula, formula.values())


@by_structure
def rows_forward(operation, dtype, mode):
    """An operation along rows, in the place of its input: (zero, x, n, m, numbers)."""
    return _along_rows(operation, formulas.forward(operation), ("x",), mode, dtype)


@by_structure
def rows_backward(operation, dtype, mode):
    """Its gradient: (zero, dout, x, y, dx, n, m, numbers)."""
    return _along_rows(operation, formulas.backward(operation), ("dx",), mode, dtype)


@by_structure
def predicted(loss, dtype, mode):
    """What a loss predicts, in the place of the scores: (zero, x, n, m, numbers); None if those."""
    formula = formulas.predicted(loss)
    (result,) = formula.results
    if getattr(result, "operator", None) == "input":
        return None
    return _along_rows(loss, formula, ("x",), mode, dtype)


@by_structure
def loss_rows(loss, dtype, mode):
    """The loss of each row: (zero, x, t, losses, n, m, numbers)."""
    return _along_rows(loss, formulas.row_losses(loss), ("losses",), mode, dtype)


@by_structure
def loss_columns(loss, dtype, mode):
    """The loss of each column of x (m, n), for the targets t (m,): arguments as `loss_rows`."""
    return _along_rows(loss, formulas.row_losses(loss), ("losses",), mode, dtype, columns=True)


@by_structure
def loss_and_delta(loss, dtype, mode):
    """The loss of each row and its gradient times the number n.

    (zero, x, t, losses, delta, n, m, numbers), and n is 1 / N where N is the batch.
    """
    return _along_rows(loss, formulas.loss_and_delta(loss), ("losses", "delta"), mode, dtype)
