"""Who interprets a formula: arrays, and the trace from which loops are written."""

import math
import re
from typing import Any

import numpy as np
import pytest
from conftest import OPTIMIZERS, property_settings, variants
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet import exact, formulas, operations
from xnet.dtypes import dtype_name
from xnet.formulas import (
    Arrays,
    Cuda,
    FormulaError,
    Node,
    Number,
    Python,
    Trace,
    lines,
    nodes,
    power,
    trace,
)
from xnet.operations import Pointwise, Rows
from xnet.testing.parity import same_bits

POINTWISE, ROWS, LOSSES = variants("pointwise"), variants("rows"), variants("loss")
every_pointwise = pytest.mark.parametrize("operation", POINTWISE, ids=repr)
every_optimizer = pytest.mark.parametrize("cls", OPTIMIZERS)


@pytest.fixture(autouse=True)
def _silent():
    with np.errstate(all="ignore"):
        yield


def traced(operation):
    """Each formula of an operation that may be compiled, by name."""
    if operation.fuses == "loss":
        found = {
            "forward": trace(operation.forward, "x", "t"),
            "backward": trace(operation.backward, "x", "t"),
            "predict": trace(operation.predict, "x"),
        }
        return found
    return {
        "forward": trace(operation.forward, "x"),
        "backward": trace(operation.backward, "dout", "x", "y"),
    }


def stepping(optimizer):
    """An optimizer's step, traced."""
    memory = [f"m{k}" for k in range(optimizer.slots)]
    return trace(optimizer.formula, "n", "W", "g", *memory)


def optimizers_of(cls):
    """As it is, with other numbers, with weight decay, and with its truths the other way round."""
    plain = cls(weight_decay=None)
    settings = plain.settings()
    numbers = {k: 0.5 * v for k, v in settings.items() if type(v) is float}
    truths = {k: not v for k, v in settings.items() if type(v) is bool}
    return plain, cls(**{**settings, **numbers}), cls(weight_decay=0.5), cls(**settings | truths)


# -- arrays


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_extremes_pass_nan_on(backend, dtype, name):
    a = np.array([1.0, 2.0, -0.0, np.nan, 1.0, np.inf, -np.inf], dtype)
    b = np.array([2.0, 1.0, 0.0, 1.0, np.nan, 1.0, np.nan], dtype)
    m, here = Arrays(backend), backend.asarray
    with backend.running():
        found = backend.to_numpy(getattr(m, name)(here(a), here(b)))
        np.testing.assert_array_equal(found, getattr(np, name)(a, b))
        for pair in ((here(a), 1.5), (1.5, here(a)), (here(a), 1), (1, here(a))):
            found = backend.to_numpy(getattr(m, name)(*pair))
            numbers = [v if isinstance(v, int | float) else a for v in pair]
            np.testing.assert_array_equal(found, getattr(np, name)(*numbers))
            assert found.dtype == dtype


def test_where_takes_arrays_and_numbers(backend, dtype):
    m, a = Arrays(backend), backend.asarray(np.array([-1.0, 2.0, np.nan], dtype))
    for yes, no, expected in [
        (a, 0, [0, 2, 0]),
        (0, a, [-1, 0, np.nan]),
        (a, 0.5, [0.5, 2, 0.5]),
        (a, -a, [1, 2, np.nan]),
    ]:
        found = backend.to_numpy(m.where(a > 0, yes, no))
        np.testing.assert_array_equal(found, np.array(expected, dtype))
        assert found.dtype == dtype
    with pytest.raises(FormulaError, match=r"chooses between two numbers.*put the array"):
        m.where(a > 0, 1, 0.0)


def test_a_number_goes_where_the_array_is():
    strict = xnet.resolve("strict")
    elsewhere = strict.xp.Device("device1")
    a = strict.xp.asarray([-1.0, 2.0], dtype=strict.xp.float32, device=elsewhere)
    m = Arrays(strict)
    for found in (m.where(a > 0, a, 0), m.where(a < 0, 0, a), m.maximum(a, 0)):
        assert found.device == elsewhere
        assert [float(v) for v in found] == [0, 2]


def test_rows_and_batches(backend, dtype, rng):
    m, host = Arrays(backend), rng.normal(size=(4, 5)).astype(dtype)
    a = backend.asarray(host)
    eps = 8 * np.finfo(dtype).eps
    for found, expected in [
        (m.sum(a), host.sum(axis=1, keepdims=True)),
        (m.total(a), host.sum(axis=0)),
        (m.max(a), host.max(axis=1, keepdims=True)),
        (m.T(a), host.T),
        (m.matmul(a, m.T(a)), host @ host.T),
        (m.sqrt(m.abs(a)), np.sqrt(abs(host))),
        (m.row([0.5, 2], a), np.array([0.5, 2])),
    ]:
        assert backend.owns(found)
        found = backend.to_numpy(found)
        assert (found.shape, found.dtype) == (expected.shape, dtype)
        np.testing.assert_allclose(found, expected, rtol=eps, atol=eps)
    assert (m.width(a), m.count(a)) == (5, 4)
    # Of numbers that no array has to do with.
    assert m.sqrt(0.25) == 0.5
    assert type(m.sqrt(4)) is float
    host[1, 2] = np.nan
    assert np.isnan(backend.to_numpy(m.max(backend.asarray(host)))).ravel().tolist() == [
        False,
        True,
        False,
        False,
    ]


def test_random_numbers_and_state(backend, dtype):
    like = backend.asarray(np.zeros((2, 3), dtype))
    with pytest.raises(RuntimeError, match="drawn in training, by a network"):
        Arrays(backend).uniform(like)
    state = {"mean": backend.asarray(np.array([1.0, 2.0, 3.0], dtype))}
    m = Arrays(backend, True, state, lambda shape, kind: np.full(shape, 0.25, dtype_name(kind)))
    drawn = backend.to_numpy(m.uniform(like))
    assert (drawn == 0.25).all()
    assert (drawn.shape, drawn.dtype) == ((2, 3), dtype)
    m.move({"mean": backend.asarray(np.array([5.0, 2.0, 3.0], dtype))}, 0.25)
    assert backend.to_numpy(m.moved["mean"]).tolist() == [2, 2, 3]
    assert backend.to_numpy(state["mean"]).tolist() == [1, 2, 3]  # until the step is done


@property_settings
@given(base=st.floats(0.5, 0.9999), n=st.integers(0, 10_000))
def test_power_is_products_alone(base, n):
    exact_power = base**n
    assert power(base, n) == pytest.approx(exact_power, rel=1e-12, abs=1e-300)
    assert power(base, 0) == 1.0
    assert power(base, 3) == base * (base * base)


# -- the trace


def every_formula(by_rows=True):
    """Each that there is; or without those along rows, of which a backend writes the loops."""
    found = [
        pytest.param(formula, id=f"{operation!r}.{name}")
        for operation in [*POINTWISE, *ROWS, *LOSSES]
        for name, formula in traced(operation).items()
        if by_rows or not formula.by_rows
    ]
    for cls in OPTIMIZERS:
        found += [pytest.param(stepping(o), id=repr(o)) for o in optimizers_of(cls)]
    functions = (*formulas.CALLS, "abs", "sqrt", "scale")
    for name, formula in exact.ELEMENTARY.items():
        found.append(pytest.param(trace(formula, "x", m=Trace(functions)), id=name))
    return found


@pytest.mark.parametrize("formula", every_formula())
def test_an_expression_is_computed_once(formula):
    seen = set()
    for node in nodes(formula.results):
        arguments = tuple(
            id(a) if isinstance(a, Node) else getattr(a, "source", a) for a in node.arguments
        )
        assert (node.operator, arguments) not in seen
        seen.add((node.operator, arguments))


@pytest.mark.parametrize("formula", every_formula())
def test_each_node_follows_what_it_is_made_of(formula):
    known = set()
    for node in nodes(formula.results):
        if node.operator == "input":
            assert node.arguments[0] in formula.inputs
        else:
            assert all(id(a) in known for a in node.arguments if isinstance(a, Node))
            varies = any(isinstance(a, Node) and a.varies for a in node.arguments)
            assert node.varies == (varies and node.operator not in ("sum", "max", "width"))
        known.add(id(node))


@pytest.mark.parametrize("formula", every_formula(by_rows=False))
@pytest.mark.parametrize("language", [Python, Cuda])
def test_every_line_names_one_number(formula, language):
    """Each name is given once, before it is used."""
    written, results = lines(language, formula)
    known = {*formula.inputs, *(f"c{k}" for k in range(len(formula.numbers)))}
    for line in written:
        name = re.match(r"(?:T |bool )?(v\d+) = (.*?);?$", line)
        assert name, line
        used = set(re.findall(r"\b(?:v\d+|c\d+)\b", name[2]))
        assert used <= known
        assert name[1] not in known
        known.add(name[1])
    assert {result for result in results if re.fullmatch(r"[vc]\d+", result)} <= known


def test_sigmoid_twice_is_one_exponential():
    """GELU's slope and Mish's take it of the same number again."""
    for operation in POINTWISE:
        formula = trace(operation.backward, "dout", "x", "y")
        calls = [node for node in nodes(formula.results) if node.operator in formulas.CALLS]
        assert len(calls) <= 1, operation


@pytest.mark.parametrize(
    "operation", [o for o in [*POINTWISE, *ROWS, *LOSSES] if o.settings()], ids=repr
)
def test_settings_are_numbers_and_not_literals(operation):
    """Another slope compiles nothing: the source is the same, and its argument another."""
    settings = operation.settings()
    numbers = {name: value for name, value in settings.items() if type(value) is float}
    other = type(operation)(**{**settings, **{k: 0.25 + 0.5 * v for k, v in numbers.items()}})
    for name, formula in traced(operation).items():
        again = traced(other)[name]
        assert formula.numbers == again.numbers
        shape = [(n.operator, n.varies) for n in nodes(formula.results)]
        assert shape == [(n.operator, n.varies) for n in nodes(again.results)]
        if not formula.by_rows:
            assert lines(Python, formula) == lines(Python, again)
            assert lines(Cuda, formula) == lines(Cuda, again)
        for value, another in zip(
            formula.values()(operation, 0), again.values()(other, 0), strict=True
        ):
            assert value != another
    used = {n for formula in traced(operation).values() for n in formula.numbers}
    for name in numbers:
        if name != "label_smoothing":  # which is in the targets
            assert any(re.search(rf"\bs\.{name}\b", source) for source in used)


def test_a_whole_number_is_a_setting_too():
    slope = operations.LeakyReLU(1)
    formula = trace(slope.forward, "x")
    assert formula.numbers == ("s.slope",)
    assert formula.values()(slope, 0) == (1,)
    assert lines(Python, formula) == lines(Python, trace(operations.LeakyReLU(0.5).forward, "x"))


@every_optimizer
def test_a_steps_settings_are_numbers(cls):
    plain, other, *_ = optimizers_of(cls)
    formula, again = stepping(plain), stepping(other)
    assert formula.numbers == again.numbers
    assert lines(Python, formula) == lines(Python, again)
    assert formula.inputs == ("W", "g", *(f"m{k}" for k in range(cls.slots)))
    assert len(formula.results) == 1 + cls.slots
    values = formula.values()
    assert values(plain, 1) != values(other, 1)
    by_step = any(re.search(r"\bn\b", source) for source in formula.numbers)
    assert (values(plain, 1) != values(plain, 2)) == by_step


def test_what_settings_alone_make_is_one_number():
    """Adam's corrections are computed on the host, once a step."""

    def formula(m, n, x):
        return x * (1 - m.power(0.9, n)) + m.sqrt(Number("s.lr") * 4)

    found = trace(formula, "n", "x")
    assert found.numbers == ("(1.0 - power(0.9, n))", "sqrt((s.lr * 4.0))")
    assert [node.operator for node in nodes(found.results)] == ["input", "*", "+"]
    assert found.values()(xnet.optimizers.SGD(0.25), 3) == (1 - 0.9 * (0.9 * 0.9), 1.0)
    adam = stepping(xnet.optimizers.Adam())
    assert {node.operator for node in nodes(adam.results)} <= {*"*+-/", "sqrt", "input"}


def test_facts_about_a_formula():
    relu = trace(operations.ReLU().backward, "dout", "x", "y")
    assert [relu.uses(name) for name in ("dout", "x", "y")] == [True, False, True]
    assert not relu.by_rows
    softmax = trace(operations.Softmax().forward, "x")
    assert softmax.by_rows
    sums = [node for node in nodes(softmax.results) if node.operator in ("sum", "max")]
    assert [node.varies for node in sums] == [False, False]
    assert softmax.results[0].varies
    share = trace(lambda m, x: x / m.width(x), "x")  # of as many numbers as the row has
    assert share.by_rows
    assert [node.varies for node in nodes(share.results)] == [True, False, True]


def compiled(formula, owner):
    """The Python source as a function of one number, with the exact exponential and its kin."""
    written, results = lines(Python, formula)
    values = formula.values()(owner, 3)
    names = {"kind": np.float64, "math": math}
    for name in formulas.CALLS:
        names[name] = lambda v, name=name: exact.elementary(np, name, np.asarray(v))[()]
    names |= {f"c{k}": np.float64(value) for k, value in enumerate(values)}
    body = "\n".join(f"    {line}" for line in [*written, f"return {', '.join(results)},"])
    exec(f"def f({', '.join(formula.inputs)}):\n{body}", names)
    return names["f"]


NUMBERS = [0.0, -0.0, 1e-310, -1e-20, 0.3, -0.7, 1.0, -1.0, 3.0, -3.0, 12.5, -40.0, 800.0, -800.0]
NUMBERS += [1e200, -1e200, math.inf, -math.inf, math.nan]


@every_pointwise
def test_the_python_source_is_the_formula(operation):
    """Number by number in plain Python: the bits of the arrays in reproducible mode."""
    backend = xnet.resolve("numpy", reproducible=True)
    x, dout = np.array(NUMBERS), np.linspace(-2, 2, len(NUMBERS))
    y = operation.forward(backend.maths, x)
    dx = operation.backward(backend.maths, dout, x, y)
    forward, backward = (compiled(f, operation) for f in traced(operation).values())
    found = np.array([forward(v)[0] for v in x], np.float64)
    assert same_bits(found, y)
    found = np.array([backward(*v)[0] for v in zip(dout, x, y, strict=True)], np.float64)
    assert same_bits(found, dx)


@every_optimizer
def test_the_python_source_is_the_step(cls):
    m = Arrays(xnet.resolve("numpy", reproducible=True))
    W, g = np.array(NUMBERS), np.array(NUMBERS[::-1])
    for optimizer in optimizers_of(cls):
        memory = [np.abs(np.roll(W, k + 1)) for k in range(cls.slots)]
        expected = formulas.as_tuple(optimizer.formula(m, 3, W, g, *memory))
        step = compiled(stepping(optimizer), optimizer)
        found = [step(*v) for v in zip(W, g, *memory, strict=True)]
        for result, array in zip(zip(*found, strict=True), expected, strict=True):
            assert same_bits(np.array(result, np.float64), array)


@pytest.mark.parametrize(
    ("value", "python", "cuda"),
    [
        (0.1, "kind(0.1)", f"T({(0.1).hex()})"),
        (2, "kind(2.0)", "T(0x1.0000000000000p+1)"),
        (math.inf, "kind(math.inf)", "T(infinity())"),
        (-math.inf, "kind(-math.inf)", "T(-infinity())"),
        (math.nan, "kind(math.nan)", "T(not_a_number())"),
    ],
)
def test_literals(value, python, cuda):
    assert Python.literal(value) == python
    assert Cuda.literal(value) == cuda


def test_results_that_are_no_expressions():
    """An input, a setting and a number of its own may be a result."""

    class Odd(Pointwise):
        share: float = 0.5

        def forward(self, m, x):
            return x, self.share, 2, -(x + 0)

    formula = trace(Odd().forward, "x")
    assert lines(Python, formula)[1] == ["x", "c0", "kind(2.0)", "v1"]
    assert compiled(formula, Odd())(np.float64(3)) == (3, 0.5, 2, -3)


# -- misuse: a formula that does what only arrays could

MISUSES = {
    "if x > 0": ("x = x if x > 0 else 0 * x", r"m\.where\(condition, a, b\)"),
    "while": ("while x > 1: x = x / 2", r"m\.where\(condition, a, b\)"),
    "and": ("x = m.where((x > 0) and (x < 1), x, 0)", r"& \| ~ for and, or, not"),
    "not": ("x = m.where(not x > 0, x, 0)", r"& \| ~ for and, or, not"),
    "if x": ("x = x if x else 1", r"m\.where\(condition, a, b\)"),
    "max of Python": ("x = max(x, 0)", r"m\.where\(condition, a, b\)"),
    "for v in x": ("for v in x: x = x + v", r"m\.sum or m\.max along a row"),
    "sum of Python": ("x = sum(x)", r"m\.sum or m\.max along a row"),
    "x[0]": ("x = x - x[0]", r"m\.where, or m\.sum or m\.max along a row"),
    "x[x > 0]": ("x = x[x > 0]", r"m\.where, or m\.sum or m\.max along a row"),
    "x[...] = 0": ("x[x > 0] = 0", r"m\.where\(condition, a, b\)"),
    "len": ("x = x / len(x)", r"m\.width\(a\)"),
    "np.exp": ("x = np.exp(x)", "use m's own functions"),
    "np.where": ("x = np.where(x > 0, x, 0)", "use m's own functions"),
    "np.maximum": ("x = np.maximum(x, 0)", "use m's own functions"),
    "a NumPy number": ("x = np.float64(2) * x", "use m's own functions"),
    "np.asarray": ("x = np.asarray(x)", "use m's own functions"),
    "math.exp": ("x = math.exp(x)", r"m\.exp, m\.log"),
    "float": ("x = float(x)", r"m\.exp, m\.log"),
    "int": ("x = int(x)", r"m\.exp, m\.log"),
    "x ** 2": ("x = x ** 2", r"multiply, or use m\.exp\(p \* m\.log\(x\)\)"),
    "2 ** x": ("x = 2 ** x", r"multiply, or use m\.exp\(p \* m\.log\(x\)\)"),
    "x % 2": ("x = x - x % 2", r"use \+ - \* / and m's own functions"),
    "2 // x": ("x = 2 // x", r"use \+ - \* / and m's own functions"),
    "x @ x": ("x = x @ x", r"use \+ - \* / and m's own functions"),
    "x.sum()": ("x = x.sum()", "use m's own functions"),
    "x.shape": ("x = x / x.shape[0]", "use m's own functions"),
    "m.matmul": ("x = m.matmul(x, x)", r"may use exp, log, .*where, maximum"),
    "m.total": ("x = x - m.total(x)", r"may use exp, log, .*where, maximum"),
    "m.sin": ("x = m.sin(x)", r"may use exp, log, .*where, maximum"),
    "m.state": ("x = x - m.state['mean']", r"may use exp, log, .*where, maximum"),
    "settings compared": ("x = x if self.share > 1 else -x", "in __post_init__"),
    "settings equal": ("x = x if self.share == 1 else -x", "in __post_init__"),
    "exp of a setting": ("x = m.exp(self.share) * x", "in __post_init__"),
    "two numbers": ("x = m.where(x > 0, 1, self.share)", "put the array that the choice is for"),
    "a truth": ("x = (x > 0) * x", r"m\.where\(condition, a, b\)"),
    "minus a truth": ("x = x * -(x > 0)", r"m\.where\(condition, a, b\)"),
}


@pytest.mark.parametrize("kind", [Pointwise, Rows])
@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_shows_the_line_and_the_cure(tmp_path, kind, misuse):
    line, cure = MISUSES[misuse]
    source = tmp_path / "mine.py"
    source.write_text(f'''import math
import numpy as np
class Misused(kind):
    share: float = 0.5
    def forward(self, m, x):
        """Something that arrays can."""
        {line}
        return x
''')
    scope = {"kind": kind, "__name__": "mine"}
    exec(compile(source.read_text(), str(source), "exec"), scope)
    with pytest.raises(FormulaError) as refused:
        trace(scope["Misused"]().forward, "x")
    message = str(refused.value)
    assert message.startswith(f"{source}, line 7: `{line}` ")
    assert re.search(f"; .*{cure}", message), message
    assert ("compares settings" in message) == misuse.startswith("settings ")


def test_a_misuse_within_a_helper_shows_the_helpers_line():
    def helper(x):
        return x if x > 0 else -x  # this line

    with pytest.raises(FormulaError, match=r"_formulas\.py, line \d+: `return x .*# this line`"):
        trace(lambda m, x: helper(x), "x")


def test_what_is_no_misuse():
    """Python's own numbers, settings that are no numbers, and choices made before."""

    class Chosen(Pointwise):
        kind: str = "up"
        twice: bool = False
        share: float = 0.5

        def forward(self, m, x):
            factor = 2 if self.twice else 1
            if self.kind == "up":
                return factor * self.share * x
            return x / (factor * m.sqrt(self.share + 1))

    for settings in ({}, {"twice": True}, {"kind": "down"}, {"kind": "down", "twice": True}):
        operation = Chosen(**settings)
        x = np.array([1.0, -2.0])
        expected = operation.forward(Arrays(xnet.resolve("numpy")), x)
        found = compiled(trace(operation.forward, "x"), operation)
        assert [found(v)[0] for v in x] == expected.tolist()


def test_every_sign():
    """What a formula may be written with: the source is what the arrays compute."""

    class Signs(Pointwise):
        share: float = 0.5

        def forward(self, m, x):
            inside = ~((x > 2) | (x < -2)) & (x == x)
            odd = (x <= -1) & (x + 2 >= 1) | (self.share >= x) & (x >= 0) | (x != x)
            y = m.where(inside, self.share - x / 3 + 1 / (2 + m.abs(x)), -x * 3)
            return m.where(odd, 2 * y, self.share / (y * y + 1))

    operation, x = Signs(), np.array([*NUMBERS, 0.5, 2.0, -2.0, 2.5])
    formula = trace(operation.forward, "x")
    expected = operation.forward(Arrays(xnet.resolve("numpy")), x)
    found = compiled(formula, operation)
    assert same_bits(np.array([found(v)[0] for v in x]), expected)
    written = "\n".join(lines(Cuda, formula)[0])
    truths = r"bool v\d+ = (!v\d+|v\d+ && v\d+|v\d+ \|\| v\d+|\S+ ([<>=!]=|[<>]) \S+);"
    assert len(re.findall(truths, written)) == written.count("bool ")
    assert re.search(r"T v\d+ = v\d+ \? v\d+ : v\d+;", written)
    assert re.search(r"T v\d+ = fabs\(x\);", written)


def test_a_slope_of_single_numbers_takes_no_sums_either():
    class SlopeOfARow(Pointwise):
        def forward(self, m, x):
            return x + 0

        def backward(self, m, dout, x, y):
            return dout * m.sum(x)

    with pytest.raises(FormulaError, match=r"SlopeOfARow: .* asks for m\.sum, m\.max or m\.width"):
        formulas.check(SlopeOfARow())


def test_a_setting_may_be_a_list():
    """It is no number: what is made of a formula is kept for each list."""

    class Polynomial(Pointwise):
        coefficients: Any

        def forward(self, m, x):
            y = 0 * x
            for coefficient in self.coefficients:
                y = y * x + coefficient
            return y

        def backward(self, m, dout, x, y):
            return dout

    found = [formulas.structure(Polynomial(v)) for v in ([1.0, 2.0], [1.0, 3.0], [1.0, 2.0])]
    assert found[0] == found[2] != found[1]
    for coefficients in ([1.0, 2.0], [1.0, 3.0]):
        layer = xnet.layers.Polynomial(coefficients)
        assert layer(np.array([[2.0]])).tolist() == [[2.0 + coefficients[1]]]


def test_a_symbol_is_no_array():
    x = Node("input", ("x",), True)
    assert not hasattr(x, "__array_interface__")
    assert isinstance(Number("s.a") + 1, Number)
    assert isinstance(Number("s.a") + x, Node)
    with pytest.raises(TypeError, match="unsupported operand"):
        x + "1"
