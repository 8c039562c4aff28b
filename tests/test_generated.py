"""What Numba compiles of a formula: its source, what is compiled anew, and what is not."""

import ctypes
import dataclasses
import inspect
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import OPTIMIZERS, variants

pytest.importorskip("numba")

from numba.core import event
from xnet_numba import generated
from xnet_numba.generated import EXACT, FAST

import xnet
from xnet import operations
from xnet.backend import Backend
from xnet.formulas import FormulaError
from xnet.operations import Affine, LeakyReLU, Loss, Pointwise, Rows
from xnet.optimizers import Adam, Optimizer
from xnet.testing.parity import same_bits

MODES = (FAST, EXACT)
FLOAT64 = np.dtype("float64")


def call(loop, owner, *arguments, n=0):
    """Call a loop with arrays and sizes; an array's place may be given as an address."""
    dtype = next(a.dtype for a in arguments if isinstance(a, np.ndarray))
    kind = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    numbers = loop.numbers(owner, dtype, n)
    places = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in (*arguments, numbers)]
    ctypes.CFUNCTYPE(None, kind, *[ctypes.c_int64] * len(places))(loop.address)(0.0, *places)


# -- source


def test_a_source_is_a_module_named_for_its_content():
    one, other = generated.load("answer = 42\n"), generated.load("answer = 43\n")
    assert (one.answer, other.answer) == (42, 43)
    assert generated.load("answer = 42\n") is one
    assert one.__name__ != other.__name__


def test_what_is_written_can_be_read():
    """By Numba's messages and by debuggers, though it is in no file."""
    written = generated.load("def answer():\n    return 42\n").answer
    assert inspect.getsource(written) == "def answer():\n    return 42\n"


RACE = """
import ctypes, sys, time
from pathlib import Path
import numpy as np
from xnet.operations import HardSigmoid
from xnet_numba import generated

place, name = Path(sys.argv[1]), sys.argv[2]
(place / f"ready {name}").touch()
while not (place / "go").exists():
    time.sleep(0.001)
loop = generated.forward(HardSigmoid(), np.dtype("float64"), "fast")
x = np.array([-4.0, 0.0, 1.5, 4.0])
kinds = [ctypes.c_double] + [ctypes.c_int64] * 3
ctypes.CFUNCTYPE(None, *kinds)(loop.address)(0.0, x.ctypes.data, 4, 0)
assert x.tolist() == [0, 0.5, 0.75, 1], x
"""


@pytest.mark.slow
def test_eight_processes_compile_the_same_first_loop_at_once(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path), str(k)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(8)
    ]
    try:
        deadline = time.monotonic() + 300
        while len(list(tmp_path.glob("ready *"))) < 8:
            assert all(process.poll() is None for process in processes)
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (tmp_path / "go").touch()
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * 8, errors
    found = [path.name for path in (tmp_path / "cache" / "xnet" / "numba").glob("*/*")]
    assert found
    assert not any(name.endswith(".tmp") for name in found)


# -- what is compiled anew


@pytest.fixture
def compiled():
    """The passes that Numba's compiler has made since, in a list."""
    listener = event.RecordingListener()
    event.register("numba:run_pass", listener)
    yield listener.buffer
    event.unregister("numba:run_pass", listener)


def loops_of(owner):
    """Every loop of an operation, a loss or an optimizer."""
    of_kind = {
        "pointwise": (generated.forward, generated.backward),
        "rows": (generated.rows_forward, generated.rows_backward),
        "loss": (generated.predicted, generated.loss_rows, generated.loss_and_delta),
    }
    makers = of_kind[owner.fuses] if hasattr(owner, "fuses") else (generated.step,)
    return [make(owner, FLOAT64, mode) for make in makers for mode in MODES]


def with_other_numbers(owner):
    """One like it; None if it has no numbers."""
    numbers = {k: v for k, v in owner.settings().items() if type(v) is float}
    if not numbers:
        return None
    return type(owner)(**owner.settings() | {k: 0.5 * v for k, v in numbers.items()})


OWNERS = [
    *variants("pointwise", "rows", "loss", altered=False),
    *(cls() for cls in OPTIMIZERS),
    *(cls(weight_decay=0.1) for cls in OPTIMIZERS),
]


@pytest.mark.parametrize("owner", [o for o in OWNERS if with_other_numbers(o)], ids=repr)
def test_other_numbers_compile_nothing(compiled, owner):
    loops = loops_of(owner)
    del compiled[:]
    for one, other in zip(loops, loops_of(with_other_numbers(owner)), strict=True):
        assert one is other
    assert compiled == []


def test_a_whole_number_where_any_is_meant_compiles_nothing(compiled):
    addresses = [loop.address for loop in loops_of(LeakyReLU(0.5))]
    del compiled[:]
    assert [loop.address for loop in loops_of(LeakyReLU(1))] == addresses
    assert compiled == []


def test_another_batch_compiles_nothing(compiled, rng):
    net = xnet.Network([Affine(5, 3), LeakyReLU(), Affine(3, 2)], backend="numba")
    optimizer = Adam()
    net.train_step(rng.normal(size=(4, 5)), [0, 1, 0, 1], optimizer)
    net.predict(rng.normal(size=(4, 5)))
    del compiled[:]
    net.train_step(rng.normal(size=(7, 5)), [0, 1, 0, 1, 1, 1, 0], optimizer)
    optimizer.lr, optimizer.beta1 = 0.5, 0.25
    net.train_step(rng.normal(size=(7, 5)), [0, 1, 0, 1, 1, 1, 0], optimizer)
    net.predict(rng.normal(size=(9, 5)))
    net.layers = [Affine(5, 8), LeakyReLU(0.3), Affine(8, 2)]
    net.train_step(rng.normal(size=(7, 5)), [0, 1, 0, 1, 1, 1, 0], optimizer := Adam(0.1))
    assert compiled == []


STRUCTURAL = [
    *((cls(weight_decay=None), cls(weight_decay=0.5)) for cls in OPTIMIZERS),
    *(
        (cls(), cls(**{field.name: not field.default}))
        for cls in OPTIMIZERS
        for field in dataclasses.fields(cls)
        if type(field.default) is bool
    ),
]


@pytest.mark.parametrize(("one", "other"), STRUCTURAL, ids=repr)
def test_what_is_no_number_makes_another_loop(one, other, rng):
    """But where the formula does not ask for it."""
    arrays, numpy = [*rng.random((2, 5)), rng.random((one.slots, 5))], xnet.resolve("numpy")
    differs = not np.array_equal(
        *(Backend.step(numpy, update, 3, *arrays)[0] for update in (one, other))
    )
    for a, b in zip(loops_of(one), loops_of(other), strict=True):
        assert (a.address != b.address) == differs


def test_every_operation_has_loops_of_its_own():
    seen = {}
    for owner in variants("pointwise", "rows", altered=False):
        for loop in loops_of(owner):
            assert seen.setdefault(loop.address, (owner, loop)) == (owner, loop)


class Power(Pointwise, abstract=True):
    """A factor by how often it is multiplied: what a formula does with it no trace can tell."""

    exponent: int

    def forward(self, m, x):
        y = x
        for _ in range(self.exponent - 1):
            y = y * x
        return y

    def backward(self, m, dout, x, y):
        return dout


class Table(Pointwise, abstract=True):
    """A setting that cannot be hashed."""

    numbers: list | dict

    def forward(self, m, x):
        return self.numbers[0] * x


def forward_of(operation, x, mode=FAST):
    y = x.copy()
    call(generated.forward(operation, x.dtype, mode), operation, y, y.size)
    return y


def test_whole_numbers_are_part_of_the_loop():
    x = np.array([1.0, 2.0, 3.0])
    for exponent in (1, 2, 3):
        assert forward_of(Power(exponent), x).tolist() == (x**exponent).tolist()


@pytest.mark.parametrize("kind", [list, dict])
def test_settings_that_cannot_be_hashed(kind):
    x = np.array([1.0, 2.0])
    for factor in (2.0, 3.0):
        numbers = [factor] if kind is list else {0: factor}
        assert forward_of(Table(numbers), x).tolist() == (factor * x).tolist()


def test_a_class_defined_again_has_its_own_formula():
    """As when the cell of a notebook is run again."""

    def define(factor):
        class Scaled(Pointwise, abstract=True):
            def forward(self, m, x):
                return x * factor

        return Scaled()

    x = np.array([1.0, 2.0])
    assert forward_of(define(2), x).tolist() == [2, 4]
    assert forward_of(define(3), x).tolist() == [3, 6]


def test_many_threads_ask_for_the_same_first_loop():
    class First(Pointwise, abstract=True):
        def forward(self, m, x):
            return 17 * x + 4

    found, barrier = [], threading.Barrier(4)

    def ask():
        barrier.wait()
        found.append(forward_of(First(), np.array([1.0, 2.0])).tolist())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[21, 38]] * 4


# -- what a loop reads


@pytest.mark.parametrize("mode", MODES)
def test_an_input_that_a_formula_does_not_use_is_not_read(mode):
    """Where nothing is readable, as the arrays of a pass are that keeps what is needed alone."""
    unused = 0
    for operation in variants("pointwise", "rows", altered=False):
        pointwise = operation.fuses == "pointwise"
        make = generated.backward if pointwise else generated.rows_backward
        loop = make(operation, FLOAT64, mode)
        x = np.random.default_rng(0).normal(size=(3, 5))
        dout, y = np.ones_like(x), xnet.resolve("numpy", False).run(operation, x)
        nowhere = {name: 8 for name in ("x", "y") if not loop.formula.uses(name)}
        unused += len(nowhere)
        dx = np.empty_like(x)
        rest = (x.size,) if pointwise else (dx, *x.shape)
        call(loop, operation, dout, nowhere.get("x", x), nowhere.get("y", y), *rest)
        found = dout if pointwise else dx
        expected = xnet.resolve("numba", mode == EXACT).run_backward(
            operation, np.ones_like(x), x, y
        )
        np.testing.assert_array_equal(found, expected[0])
    assert unused >= 10


# -- sums and maxima of rows


class LessTheLargest(Rows, abstract=True):
    def forward(self, m, x):
        return x - m.max(x)

    def backward(self, m, dout, x, y):
        return dout + m.max(dout) * m.sum(y) / m.width(x)


@pytest.mark.parametrize("reproducible", [False, True])
def test_the_largest_of_a_row(dtype, reproducible):
    """NaN if the row holds one, wherever it stands; and of a row below 0."""
    inf, nan = np.inf, np.nan
    x = np.array(
        [[1, nan, 2], [nan, 1, 2], [1, 2, nan], [-3, -5, -4], [-inf, -inf, -inf], [-inf, inf, 0]],
        dtype,
    )
    with np.errstate(invalid="ignore"):
        expected = x - x.max(axis=1, keepdims=True)
    found = xnet.resolve("numba", reproducible).run(LessTheLargest(), x)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("shape", [(1,), (3, 1), (5, 7), (2, 3, 4), (400, 3), (3, 400), (0, 3)])
def test_what_a_row_adds_up_to(dtype, rng, reproducible, shape):
    """Whole numbers, of which no sum here is rounded: in any order it is the same."""
    dout, x, y = rng.integers(-9, 9, (3, *shape)).astype(dtype)
    largest, total = dout.max(axis=-1, keepdims=True), y.sum(axis=-1, keepdims=True)
    expected = dout + largest * total / shape[-1]
    (found,) = xnet.resolve("numba", reproducible).run_backward(LessTheLargest(), dout, x, y)
    np.testing.assert_allclose(found, expected, rtol=2 * np.finfo(dtype).eps)


# -- rows and columns


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", variants("loss"), ids=repr)
def test_by_rows_and_by_columns_is_the_same(dtype, loss, mode, rng):
    """The numerical gradient has the losses of many columns for one row's targets."""
    for n, m in ((1, 1), (1, 6), (7, 6), (40, 3)):
        x = rng.normal(size=(n, m)).astype(dtype)
        for t in (np.eye(m, dtype=dtype)[-1], rng.random(m).astype(dtype)):
            by_rows, by_columns = np.empty(n, dtype), np.empty(n, dtype)
            targets, across = np.tile(t, (n, 1)), np.ascontiguousarray(x.T)
            rows, columns = (
                make(loss, np.dtype(dtype), mode)
                for make in (generated.loss_rows, generated.loss_columns)
            )
            call(rows, loss, x, targets, by_rows, n, m)
            call(columns, loss, across, t, by_columns, n, m)
            close = 0 if mode == EXACT else 8 * np.finfo(dtype).eps
            np.testing.assert_allclose(by_columns, by_rows, rtol=close, atol=close)


# -- what cannot be compiled


class Branches(Pointwise, abstract=True):
    def forward(self, m, x):
        return x if x > 0 else 0 * x


class Loops(Pointwise, abstract=True):
    def forward(self, m, x):
        return sum(v for v in x)


class CallsNumPy(Pointwise, abstract=True):
    def forward(self, m, x):
        return np.tanh(x)


class TakesAPower(Pointwise, abstract=True):
    def forward(self, m, x):
        return x**3


class TakesElements(Rows, abstract=True):
    def forward(self, m, x):
        return x - x[0]


class AsksForALength(Rows, abstract=True):
    def forward(self, m, x):
        return m.sum(x) / len(x) + x


class Multiplies(Rows, abstract=True):
    def forward(self, m, x):
        return m.matmul(x, x)


UNCOMPILABLE = {
    Branches: (r"`return x if x > 0 else 0 \* x` branches on a number", r"use m\.where\("),
    Loops: (r"`return sum\(v for v in x\)` loops over an array", r"use m\.sum or m\.max"),
    CallsNumPy: (r"`return np\.tanh\(x\)` calls NumPy's tanh", "use m's own functions"),
    TakesAPower: (r"`return x\*\*3` takes a power", "multiply, or use"),
    TakesElements: (r"`return x - x\[0\]` takes elements of an array", r"use m\.where"),
    AsksForALength: (r"`return m\.sum\(x\) / len\(x\) \+ x` asks for a length", r"m\.width\(a\)"),
    Multiplies: (r"`return m\.matmul\(x, x\)` asks for m\.matmul", "may use exp, log"),
}


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("cls", UNCOMPILABLE)
def test_a_formula_that_cannot_be_compiled_is_refused_with_line_and_cure(cls, reproducible, rng):
    what, cure = UNCOMPILABLE[cls]
    backend = xnet.resolve("numba", reproducible)
    net = xnet.Network([Affine(4, 3), operations.ReLU(), Affine(3, 2)], backend=backend)
    x, t = rng.normal(size=(5, 4)), [0, 1, 0, 1, 1]
    asks = (
        lambda: xnet.Network([Affine(4, 3), cls()], backend=backend),
        lambda: net.layers.insert(1, cls()),
        lambda: backend.run(cls(), x),
    )
    for ask in asks:
        with pytest.raises(FormulaError, match=f"(?s){what}.*{cure}") as error:
            ask()
        lines = Path(__file__).read_text().split("\n")
        number = int(str(error.value).partition("line ")[2].partition(":")[0])
        assert __file__ in str(error.value)
        assert lines[number - 1].strip() in str(error.value)
    assert len(net.layers) == 3
    assert np.isfinite(net.train_step(x, t, Adam()))


class SumsARow(Pointwise, abstract=True):
    def forward(self, m, x):
        return x - m.max(x)


class GivesAColumn(Rows, abstract=True):
    def forward(self, m, x):
        return m.sum(x)


class GivesOne(Pointwise, abstract=True):
    def forward(self, m, x):
        return 1.0


class NoSum(Loss, abstract=True):
    """Its numbers would be written where there is room for one of each row."""

    def forward(self, m, x, t):
        return (x - t) * (x - t)

    def backward(self, m, x, t):
        return 2 * (x - t)


class GradientOfARow(Loss, abstract=True):
    def forward(self, m, x, t):
        return m.sum(x)

    def backward(self, m, x, t):
        return m.sum(x)


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        (SumsARow(), r"SumsARow.*derive from Rows"),
        (GivesAColumn(), r"GivesAColumn.* one number for each row.*expected one for each element"),
        (GivesOne(), r"GivesOne.* or one alone, expected one for each element of x"),
        (NoSum(), r"NoSum.* one number for each element, expected one for each row; use m\.sum"),
        (GradientOfARow(), r"GradientOfARow.* one number for each row.* for each element"),
    ],
    ids=repr,
)
def test_a_formula_of_another_shape_than_it_should_have_is_refused(owner, message, rng):
    """Compiled it would read or write beyond its arrays."""
    is_loss, backend = isinstance(owner, Loss), xnet.resolve("numba")
    layers = [Affine(4, 3), *([] if is_loss else [owner])]
    with pytest.raises(FormulaError, match=message):
        xnet.Network(layers, owner if is_loss else None, backend=backend)
    x, t = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    with pytest.raises(FormulaError, match=message):
        backend.loss_and_delta(owner, x, t) if is_loss else backend.run(owner, x)


def test_an_optimizer_that_cannot_be_compiled_changes_nothing(rng, monkeypatch):
    monkeypatch.setattr(xnet.optimizers, "OPTIMIZERS", dict(xnet.optimizers.OPTIMIZERS))

    class Clipped(Optimizer):
        def step(self, m, n, W, g):
            return W - self.lr * (g if g < 1 else 1)

    net = xnet.Network([Affine(4, 3)], backend="numba")
    before, optimizer = net.params["W1"].copy(), Clipped()
    for _ in range(2):
        with pytest.raises(FormulaError, match="branches on a number"):
            net.train_step(rng.normal(size=(5, 4)), [0, 1, 2, 1, 1], optimizer)
    np.testing.assert_array_equal(net.params["W1"], before)
    assert optimizer.taken == {}
    net.train_step(rng.normal(size=(5, 4)), [0, 1, 2, 1, 1], Adam())
    assert not np.array_equal(net.params["W1"], before)


# -- fast and exact


MIXED = """
import sys
import time
import numpy as np
from xnet.operations import GELU
from xnet_numba.kernels import Loops

x = np.random.default_rng(0).normal(size=20_000)
for mode in sys.argv[1:]:
    print(mode, Loops(mode).forward(GELU(), x).tobytes().hex())
"""


@pytest.mark.slow
def test_fast_and_exact_loops_never_share_compiled_code(tmp_path):
    """Nor do the functions that they call, of which the source is the same."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    found = []
    for order in (MODES, MODES[::-1]):
        ran = subprocess.run(
            [sys.executable, "-c", MIXED, *order], env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        found.append(dict(line.split() for line in ran.stdout.splitlines()))
    assert found[0] == found[1]
    assert found[0][FAST] != found[0][EXACT]
    x = np.random.default_rng(0).normal(size=20_000)
    right = xnet.resolve("numpy", True).run(operations.GELU(), x)
    assert same_bits(np.frombuffer(bytes.fromhex(found[0][EXACT])), right)


def test_functions_of_one_source_and_other_options_are_two():
    source = "def multiplied(a, b, c):\n    return a * b + c\n"
    one, other = (
        generated.function(source, "multiplied", **options)
        for options in ({"fastmath": {"contract"}}, {})
    )
    assert one.py_func.__code__.co_filename != other.py_func.__code__.co_filename
    a = np.random.default_rng(0).normal(size=(1000, 3))
    exact = [other(*row) for row in a.tolist()]
    assert exact == [x * y + z for x, y, z in a.tolist()]
