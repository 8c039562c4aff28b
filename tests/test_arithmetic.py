"""The trial of a backend's arithmetic: whose is refused, by which name, and when it is tried."""

import ctypes
import math
import os
import platform
import re
import subprocess
import sys
import threading
from fractions import Fraction
from types import SimpleNamespace

import make_arithmetic
import numpy as np
import pytest
from conftest import DTYPES
from make_arithmetic import FORMATS, rounded
from test_parity import make

import xnet
from xnet import activations, arithmetic
from xnet.arithmetic import HARD, LONG, SHORT, failures, sound, unchecked, whole_numbers
from xnet.backend import Backend
from xnet.errors import BackendError

SIZES = (LONG, *SHORT)

# -- backends, each broken in one place


class Namespace:
    """NumPy's, with functions of one's own."""

    def __init__(self, **own):
        vars(self).update(own)

    def __getattr__(self, name):
        return getattr(np, name)


def plug_in(members=(), **ufuncs):
    """A backend class on NumPy whose arrays compute some of NumPy's operations in another way.

    Of each, a function of plain arrays, and of what made the first of them.
    """

    class Numbers(np.ndarray):
        def __array_finalize__(self, source):
            self.made = None

        def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
            plain = [np.asarray(v) if isinstance(v, np.ndarray) else v for v in inputs]
            own = ufuncs.get(ufunc.__name__) if method == "__call__" else None
            if own:
                made = [getattr(v, "made", None) for v in inputs]
                found = np.asarray(own(*plain, *made[: own.__code__.co_argcount - len(plain)]))
            else:
                found = np.asarray(getattr(ufunc, method)(*plain, **options))
            found = found.view(Numbers)
            found.made = ufunc.__name__, plain
            if not out:
                return found
            np.asarray(out[0])[...] = found
            out[0].made = found.made
            return out[0]

    class PlugIn(Backend):
        name = "plug-in"
        xp = Namespace()

        def owns(self, array):
            return isinstance(array, np.ndarray | np.generic)

        def asarray(self, values, dtype=None, name="values"):
            return np.asarray(Backend.asarray(self, values, dtype, name)).view(Numbers)

        def running(self):
            return np.errstate(all="ignore")

    for name, member in dict(members).items():
        setattr(PlugIn, name, member)
    return PlugIn


def refusal(kind, **where):
    """What is said where a backend of this class is asked for in reproducible mode."""
    with xnet.use_backend(kind(**where)):
        pass  # fast mode asks for nothing
    with pytest.raises(BackendError) as caught, xnet.use_backend(kind(**where, reproducible=True)):
        pass
    return str(caught.value)


def named(said):
    """The operation and dtype that it names."""
    return re.search(r"mode here: (.*?) of (\w+) numbers, ", said).groups()


@pytest.mark.parametrize("name", ["numpy", "numba", "strict", "torch"])
def test_honest_arithmetic_passes(name):
    assert list(failures(make(name, True))) == []


def test_honest_arithmetic_passes_by_the_frame_of_the_broken():
    with xnet.use_backend(plug_in()(reproducible=True)) as backend:
        assert list(failures(backend)) == []


def test_honest_arithmetic_passes_on_the_stand_in_for_cupy(monkeypatch):
    from conftest import require_host_cuda

    require_host_cuda(monkeypatch)
    assert list(failures(xnet.resolve("cupy", reproducible=True))) == []


def of(dtype, sizes, wrong, right):
    """An operation that goes wrong in arrays of one dtype and these sizes."""
    number = np.dtype(dtype)

    def one(a):
        return (wrong if a.dtype == number and a.size in sizes else right)(a)

    def two(a, b):
        return (wrong if a.dtype == number and a.size in sizes else right)(a, b)

    return one if right.nin == 1 else two


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_root_that_is_off_for_one_length_is_refused(dtype, size):
    def wrong(a):
        return np.nextafter(np.sqrt(a), np.array(np.inf, a.dtype))

    said = refusal(plug_in(sqrt=of(dtype, [size], wrong, np.sqrt)))
    assert named(said) == ("square root", dtype)
    assert f"numbers, {size} at a time: " in said


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_division_by_an_inverse_is_refused(dtype, size):
    said = refusal(plug_in(divide=of(dtype, [size], lambda a, b: a * (1 / b), np.divide)))
    assert named(said) in [("division", dtype), ("division by 3", dtype)]
    assert "multiply by no inverse" in said


@pytest.mark.parametrize("dtype", DTYPES)
def test_division_by_the_inverse_of_a_number_alone_is_refused(dtype):
    def wrong(a, b):
        return a * (1 / np.asarray(b, a.dtype)) if np.ndim(b) == 0 else a / b

    said = refusal(plug_in(divide=of(dtype, SIZES, wrong, np.divide)))
    assert named(said) == ("division by 3", dtype)


ARITHMETIC = {
    "add": "addition",
    "subtract": "subtraction",
    "multiply": "multiplication",
    "divide": "division",
}


def flushed(a):
    """Subnormal numbers as zeros."""
    if np.asarray(a).dtype.kind != "f":
        return a
    a = np.asarray(a)
    return np.where(abs(a) < np.finfo(a.dtype).smallest_normal, np.copysign(a.dtype.type(0), a), a)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ufunc", "operation", "side"),
    [
        *((*names, side) for names in ARITHMETIC.items() for side in ("arguments", "results")),
        ("less", "a < b", "arguments"),
    ],
)
def test_subnormals_lost_in_one_operation_alone_are_refused(ufunc, operation, side, dtype):
    honest = getattr(np, ufunc)

    def wrong(a, b):
        return flushed(honest(a, b)) if side == "results" else honest(flushed(a), flushed(b))

    said = refusal(plug_in(**{ufunc: of(dtype, SIZES, wrong, honest)}))
    assert named(said) == (operation, dtype)
    assert "taken for zeros" in said


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["matmul", "sum"])
def test_subnormals_lost_in_products_or_sums_alone_are_refused(method, dtype):
    def wrong(self, *arrays, **options):
        found = getattr(Backend, method)(self, *arrays, **options)
        return flushed(found) if found.dtype == dtype else found

    said = refusal(plug_in({method: wrong}))
    assert named(said) == (method, dtype)
    assert "taken for zeros" in said


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_backend_may_state_that_its_array_code_flushes_a_precision(dtype):
    """As CuPy's does; what else is wrong with that precision is seen all the same."""
    stated = {"flushes": (dtype,), "compiled": True}

    def flushing(ufunc):
        honest = getattr(np, ufunc)

        def wrong(*given):
            return flushed(honest(*[flushed(v) if np.ndim(v) else v for v in given]))

        return of(dtype, SIZES, wrong, honest)

    lost = {ufunc: flushing(ufunc) for ufunc in (*ARITHMETIC, "less")}
    kind = plug_in(stated, **lost)
    with xnet.use_backend(kind(reproducible=True)) as backend:
        assert list(failures(backend)) == []
    other = {"flushes": tuple({*DTYPES} - {dtype})}
    assert "taken for zeros" in refusal(plug_in(other, **lost))
    inverse = {"divide": of(dtype, SIZES, lambda a, b: a * (1 / b), np.divide)}
    assert named(refusal(plug_in(stated, **inverse)))[0].startswith("division")


def exactly(function, *arrays):
    """A function of Python's numbers on arrays of one dtype that broadcast."""
    dtype = arrays[0].dtype
    rows = np.broadcast_arrays(*arrays)
    numbers = zip(*[map(float, row.flat) for row in rows], strict=True)
    flat = [function(dtype.name, *each) for each in numbers]
    return np.array(flat, dtype).reshape(rows[0].shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ufunc", "operation", "sign"), [("add", "a * b + c", 1), ("subtract", "c - a * b", -1)]
)
def test_contraction_is_refused(ufunc, operation, sign, dtype):
    def contracted(a, b, made_a, made_b):
        made, other = (made_a, b) if ufunc == "add" else (made_b, a)
        if made and made[0] == "multiply" and other.dtype == dtype and other.ndim:
            x, y = made[1]
            return exactly(make_arithmetic.fused, sign * x, y, other)
        return getattr(np, ufunc)(a, b)

    assert named(refusal(plug_in(**{ufunc: contracted}))) == (operation, dtype)


def test_a_shift_that_is_simplified_away_is_refused():
    def simplified(a, b, made):
        if made and made[0] == "add" and np.shares_memory(made[1][1], b):
            return made[1][0]
        return a - b

    shifted = plug_in(subtract=simplified)
    with unchecked(), xnet.use_backend(shifted(reproducible=True)) as backend:
        a, s = backend.asarray([1 / 3]), backend.asarray([1.5 * 2.0**31])
        assert (a + s) - s == 1 / 3
    assert named(refusal(shifted)) == ("(a + s) - s", "float64")


def half_away(a, b):
    """The sum, of the ties the one that is further from 0."""
    s = a + b
    if s.dtype.kind != "f":
        return s
    back = s - a
    rest = (a - (s - back)) + (b - back)
    beyond = np.nextafter(s, np.copysign(s.dtype.type(np.inf), s))
    tie = np.isfinite(beyond) & (rest == (beyond - s) / 2) & (rest != 0)
    return np.where(tie, beyond, s)


def test_halves_away_from_zero_are_refused():
    assert half_away(np.array([1.0]), np.array([2.0**-53])) == 1 + 2.0**-52
    assert named(refusal(plug_in(add=half_away))) == ("addition", "float32")

    def round_away(a):
        return np.copysign(np.floor(abs(a) + 0.5), a)

    assert named(refusal(plug_in({"xp": Namespace(round=round_away)}))) == ("round", "float64")


EXTENDED = np.finfo(np.longdouble).nmant == 63


@pytest.mark.skipif(not EXTENDED, reason="no numbers of 64 bits here")
@pytest.mark.parametrize(
    ("ufunc", "operation"),
    [
        ("add", "addition"),
        ("multiply", "multiplication"),
        ("divide", "division"),
        ("sqrt", "square root"),
    ],
)
def test_rounding_to_64_bits_first_is_refused(ufunc, operation):
    """As the processor of an old PC does unless told not to."""
    honest = getattr(np, ufunc)

    def wrong(a, b=None):
        wide = [np.asarray(v, np.longdouble) for v in (a, b) if v is not None]
        return honest(*wide).astype(a.dtype)

    assert named(refusal(plug_in(**{ufunc: of("float64", SIZES, wrong, honest)}))) == (
        operation,
        "float64",
    )


@pytest.mark.skipif(not EXTENDED, reason="no numbers of 64 bits here")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ufunc", ["divide", "sqrt"])
def test_newtons_way_without_a_last_correction_is_refused(ufunc, dtype):
    """Right to ten bits more than a number has, and so nearly always."""
    bits = {"float32": 34, "float64": 63}[dtype]

    def cut(v):
        part, exponent = np.frexp(v)
        return np.ldexp(np.floor(np.ldexp(part, bits)), exponent - bits)

    def inverse(a, b):
        return cut(np.longdouble(a) * cut(1 / np.longdouble(b))).astype(dtype)

    def inverse_root(a):
        found = (a * cut(1 / np.sqrt(np.longdouble(a)))).astype(dtype)
        return np.where(np.isfinite(found), found, np.sqrt(a))

    wrong = {"divide": inverse, "sqrt": inverse_root}[ufunc]
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 1000)).astype(dtype)
    given = (x, y) if ufunc == "divide" else (x,)
    assert np.mean(wrong(*given) != getattr(np, ufunc)(*given)) < 0.01
    name = {"divide": "division", "sqrt": "square root"}[ufunc]
    kind = plug_in(**{ufunc: of(dtype, SIZES, wrong, getattr(np, ufunc))})
    assert named(refusal(kind)) == (name, dtype)


def in_float32(a, b):
    return np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)


def in_tf32(a, b):
    """Factors of 11 bits, summed up in all of them."""

    def rounded_off(v):
        part, exponent = np.frexp(v)
        return np.ldexp(np.round(part * 2**11), exponent - 11)

    return np.matmul(rounded_off(a), rounded_off(b))


@pytest.mark.parametrize("product", [in_float32, in_tf32])
def test_products_of_fewer_bits_are_refused(product):
    assert named(refusal(plug_in(matmul=product))) == ("matmul", "float32")

    def of_float64(self, a, b):
        found = Backend.matmul(self, a, b)
        return product(np.asarray(a), np.asarray(b)) if a.dtype == "float64" else found

    said = refusal(plug_in({"matmul": of_float64}))
    assert named(said) == ("matmul", "float64")
    assert "no TF32" in said


def test_sums_of_fewer_bits_are_refused():
    def of_float32(a, **options):
        return np.sum(a.astype(np.float32), **options).astype(a.dtype)

    assert named(refusal(plug_in({"xp": Namespace(sum=of_float32)}))) == ("sum", "float32")


@pytest.mark.parametrize(
    ("members", "operation"),
    [
        ({"where": lambda c, a, b: np.where(c, a, b) + 0.0}, "where"),
        ({"max": lambda a, axis: np.nanmax(a, axis=axis)}, "max"),
        ({"min": lambda a, axis: np.fmin.reduce(a, axis=axis)}, "min"),
        ({"maximum": np.fmax}, "maximum"),
        ({"abs": lambda a: np.where(a < 0, -a, a)}, "abs"),
        ({"isfinite": lambda a: a == a}, "isfinite"),
        ({"astype": lambda a, kind, **_: flushed(a.astype(kind))}, "conversion to float32"),
        ({"astype": lambda a, kind, **_: flushed(a).astype(kind)}, "conversion to float64"),
        ({"log2": lambda a: np.log2(a) - 0.75}, "round(log2(a))"),
    ],
)
def test_what_the_exact_forms_need_besides_is_tried(members, operation):
    assert named(refusal(plug_in({"xp": Namespace(**members)})))[0] == operation


def test_float64_that_becomes_float32_is_refused():
    """As JAX does unless told otherwise."""

    def asarray(self, values, dtype=None, name="values"):
        found = Backend.asarray(self, values, dtype, name)
        return found.astype("float32") if found.dtype == "float64" else found

    said = refusal(plug_in({"asarray": asarray}))
    assert named(said) == ("addition", "float64")
    assert "67 at a time gave float32 numbers, expected float64 numbers" in said


def test_whatever_a_library_raises_is_said_by_name():
    def unavailable(a):
        raise OSError("the device is gone")

    said = refusal(plug_in({"xp": Namespace(sqrt=unavailable)}))
    assert "square root of float32 numbers, it gave OSError: the device is gone" in said
    assert "docs/backends.md" in said


def test_what_is_said():
    """Who, the operation, what it got, gave and should have, and what to do."""
    wrong = of("float32", [7], lambda a, b: a * (1 / b), np.divide)
    said = refusal(plug_in(divide=wrong))
    pattern = (
        r"backend 'plug-in' cannot be used in reproducible mode here: division of float32 numbers, "
        r"7 at a time: (\S+), (\S+) gave (\S+), expected (\S+); have its library divide, and "
        r"multiply by no inverse \(no fast-math\)\. Or use another backend; fast mode does not ask "
        r"for it"
    )
    a, b, found, expected = map(float.fromhex, re.fullmatch(pattern, said).groups())
    assert expected == rounded(Fraction(a) / Fraction(b), "float32")
    assert found == make_arithmetic.reciprocal("float32", a, b) != expected


# -- the numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", HARD)
def test_the_hard_cases_are_those_that_were_found_by_exact_integers(name, dtype):
    assert HARD[name][dtype].split("\n")[1:-1] == make_arithmetic.table(name, dtype)
    assert set(HARD) == set(make_arithmetic.EXACT)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["division", "square root", "multiplication"])
def test_hard_cases_lie_next_to_the_middle_between_two_numbers(name, dtype):
    """On both sides, nearer than any way can tell that has not the exact result."""
    bits, smallest, _ = FORMATS[dtype]
    sides = []
    for row in make_arithmetic.arguments(dtype)[name]:
        a, b = (Fraction(v) for v in (*row, 1)[:2])
        if not all(map(math.isfinite, row)) or 0 in row:
            continue
        exact = {"division": a / b, "multiplication": a * b}.get(name, a)
        near = rounded(exact, dtype) if name != "square root" else make_arithmetic.root(dtype, *row)
        if abs(near) < 2.0 ** (smallest + bits) or not math.isfinite(near):
            continue
        unit = Fraction(2) ** (math.frexp(near)[1] - bits)
        for side in (-1, 1):
            middle = Fraction(near) + side * unit / 2
            off = (exact - middle**2) / (2 * middle) if name == "square root" else exact - middle
            if abs(off) < unit * Fraction(2) ** (2 - bits):
                sides.append(off > 0)
    assert sides.count(True) >= 3
    assert sides.count(False) >= 3


@pytest.mark.parametrize("trial", arithmetic.trials(), ids=lambda t: f"{t.name}-{t.takes}")
def test_rows_are_numbers_of_their_dtypes(trial):
    *given, gives = np.array(arithmetic._columns(trial.rows))
    for column in given:
        assert np.array_equal(column.astype(trial.takes), column, equal_nan=True)
    assert np.array_equal(gives.astype(trial.gives), gives, equal_nan=True)
    assert len(gives) <= LONG


EXACT_FORMS = {
    "conversion to float32": lambda v: rounded(v, "float32"),
    "conversion to float64": lambda v: rounded(v, "float64"),
    "(a + s) - s": lambda v: rounded(round(v * 2**21) / Fraction(2**21), "float64"),
    "next power of two": lambda v: next(
        2.0**k for k in range(-1074, 1024) if Fraction(2) ** k >= v
    ),
    "round(log2(a))": lambda v: next(k for k in range(-1074, 1024) if Fraction(2) ** k == v),
    "round": lambda v: float(round(v)),
}


@pytest.mark.parametrize("name", arithmetic.EXACT)
def test_rows_written_by_hand_are_right(name):
    *_, rows = arithmetic.EXACT[name]
    for a, found in zip(*arithmetic._columns(rows), strict=True):
        if a and math.isfinite(a):
            assert (a, EXACT_FORMS[name](Fraction(a))) == (a, found)
        else:
            assert a.hex() == found.hex()


@pytest.mark.parametrize("whole", whole_numbers(), ids=lambda w: f"{w.name}-{w.dtype}")
def test_products_and_sums_of_whole_numbers_are_right(whole):
    unit = Fraction(2) ** whole.exponent
    columns = list(zip(*whole.b, strict=True)) if whole.b else [[1] * len(whole.a[0])]
    for row, found in zip(whole.a, whole.expected(), strict=True):
        assert [float(v) for v in np.array(row, whole.dtype)] == row
        for column, number in zip(columns, found, strict=True):
            terms = [Fraction(a) * b for a, b in zip(row, column, strict=True)]
            assert number == rounded(sum(terms) * unit, whole.dtype)
            assert sum(map(abs, terms)) < 2**53 or len(terms) == LONG


# -- when it is tried


@pytest.fixture
def counted(monkeypatch):
    """A class of sound arithmetic that counts how often that is tried, and none was before."""
    tried = []

    def failures(backend):
        tried.append(backend.device)
        return iter(())

    monkeypatch.setattr(arithmetic, "_passed", set())
    monkeypatch.setattr(arithmetic, "failures", failures)
    return SimpleNamespace(kind=plug_in(), tried=tried)


def test_it_is_tried_once_a_backend_and_device(counted):
    for _ in range(3):
        for device in (None, 0, 1):
            for mode in (False, True):
                assert sound(counted.kind(device, reproducible=mode)).reproducible is mode
    assert counted.tried == [None, 0, 1]
    sound(plug_in()(reproducible=True))
    assert counted.tried == [None, 0, 1, None]


def test_it_is_not_tried_in_fast_mode(counted):
    with xnet.use_backend(counted.kind()):
        activations.relu(np.ones(3))
    assert counted.tried == []


def test_many_threads_try_it_once_and_wait_for_that(counted, monkeypatch):
    done = []

    def slowly(backend):
        counted.tried.append(backend.device)
        threading.Event().wait(0.2)
        done.append(backend)
        return iter(())

    monkeypatch.setattr(arithmetic, "failures", slowly)
    seen = []

    def enter():
        with xnet.use_backend(counted.kind(reproducible=True)):
            seen.append(len(done))

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8
    assert counted.tried == [None]


def test_what_failed_is_tried_again(monkeypatch):
    broken = plug_in(add=half_away)
    for _ in range(2):
        refusal(broken)
    monkeypatch.setattr(broken, "asarray", lambda self, *a, **k: Backend.asarray(self, *a, **k))
    with xnet.use_backend(broken(reproducible=True)):
        pass


def test_a_trial_may_ask_for_the_backend_itself(counted, monkeypatch):
    """As `asarray` does, which looks for who owns what it is given."""

    def asking(backend):
        counted.tried.append(backend.device)
        with xnet.use_backend(backend):
            xnet.get_backend()
        return iter(())

    monkeypatch.setattr(arithmetic, "failures", asking)
    sound(counted.kind(reproducible=True))
    assert counted.tried == [None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_tries_what_was_not_and_waits_for_nobody(counted):
    """Not what its parent tried, nor for a thread that the parent alone has."""
    other, begun, end = plug_in(), threading.Event(), threading.Event()
    sound(counted.kind(reproducible=True))

    def hold():
        with arithmetic._locks[os.getpid()]:
            begun.set()
            end.wait()

    holding = threading.Thread(target=hold)
    holding.start()
    begun.wait()
    child = os.fork()
    if not child:
        sound(counted.kind(reproducible=True))
        sound(other(reproducible=True))
        os._exit(len(counted.tried))
    waited = threading.Timer(20, lambda: os.kill(child, 9))
    waited.start()
    _, status = os.waitpid(child, 0)
    waited.cancel()
    end.set()
    holding.join()
    assert os.waitstatus_to_exitcode(status) == 2
    assert counted.tried == [None]


def test_a_block_of_unchecked_backends_is_for_one_thread_and_ends(counted):
    with unchecked():
        sound(counted.kind(reproducible=True))
        assert counted.tried == []
        other = threading.Thread(target=sound, args=(counted.kind(reproducible=True),))
        other.start()
        other.join()
    assert counted.tried == [None]


def test_a_stranger_that_is_refused_stands_in_no_ones_way():
    """Nor is it tried, where somebody looks for who owns an array."""
    import array_api_strict

    assert any(info.name == "strict" for info in xnet.backends())
    with xnet.use_backend("numpy", reproducible=True):
        array = array_api_strict.asarray([1.0, -1.0])
        assert np.asarray(activations.relu(array)).tolist() == [1, 0]


# -- other vendors


def test_pytorchs_own_root_is_refused_by_name():
    torch = make("torch", True)
    x = torch.asarray(np.random.default_rng(0).random(100_000), "float32")
    if np.array_equal(torch.xp._torch.sqrt(x).numpy(), np.sqrt(x.numpy())):
        pytest.skip("PyTorch's root is rounded correctly here")
    own = type("Own", (type(torch),), {})
    said = refusal(lambda **mode: as_it_comes(own(**mode)))
    assert named(said) == ("square root", "float32")


def as_it_comes(torch):
    torch.xp = torch.xp._torch
    return torch


def test_jax_is_refused_for_its_subnormals():
    jax = type(make("jax", True))
    said = refusal(jax)
    assert named(said) == ("addition", "float32")
    assert "taken for zeros" in said


# -- the processor's mode

FLUSH = """
import numpy as np, torch, xnet
from xnet import activations, layers, optimizers

def network(mode):
    backend = xnet.resolve(NAME, mode)
    return xnet.TwoLayerNet(2, 3, 2, weight_init_std=1.0, dtype="float32", backend=backend)

x, t = np.float32([[6e-42, 1e-42]]), np.array([0])
exact, fast = network(True), network(False)
layer = layers.Affine.from_params(np.ones((2, 2), "float32"), np.zeros(2, "float32"))

def calls(net):
    yield lambda: net.gradient(x, t)["W1"].tobytes()
    yield lambda: net.predict(x).tobytes()
    yield lambda: net.predict(x[0]).tobytes()
    yield lambda: net.loss(x, t)
    yield lambda: net.scores(x).tobytes()
    yield lambda: net.accuracy(x, t)
    yield lambda: net.train_step(x, t, optimizers.SGD(lr=1e-9))

def reproducible():
    yield from calls(exact)
    yield lambda: xnet.resolve(NAME, True)
    yield lambda: xnet.use_backend(NAME, True).__enter__()
    yield lambda: xnet.TwoLayerNet(2, 3, 2, backend=xnet.resolve("numpy", True))

def functions():
    yield lambda: activations.relu(x).tobytes()
    yield lambda: layer.forward(x).tobytes()
    yield lambda: optimizers.SGD().update({"W": x.copy()}, {"W": x})
    yield lambda: xnet.numerical_diff(lambda v: v * v, 1.0)

def outcome(call):
    try:
        return call()
    except xnet.BackendError as error:
        assert "FTZ or DAZ" in str(error) and "set_flush_denormal(False)" in str(error), error
        return "refused"

before = [outcome(call) for call in list(calls(exact))[:6]]
assert "refused" not in before and np.frombuffer(before[0], "float32").any(), before
with xnet.use_backend(NAME, True):
    assert "refused" not in [outcome(call) for call in functions()]
    assert torch.set_flush_denormal(True)
    assert [outcome(call) for call in functions()] == ["refused"] * 4
for call in reproducible():
    assert outcome(call) == "refused"
for call in [*calls(fast), *functions()]:
    assert outcome(call) != "refused"
assert not fast.gradient(x, t)["W1"].any()  # that is what it would have been
torch.set_flush_denormal(False)
assert [outcome(call) for call in list(calls(exact))[:6]] == before
print("well")
"""


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_pytorch_can_switch_subnormals_off_and_is_told_of(name):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    program = f"NAME = {name!r}\n{FLUSH}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "well\n", done.stderr


def test_xnet_may_be_imported_while_they_are_off():
    """The numbers that are tried are not made by what is tried."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    program = (
        "import torch; torch.set_flush_denormal(True); import xnet\n"
        "try: xnet.resolve('numpy', True)\n"
        "except xnet.BackendError: torch.set_flush_denormal(False)\n"
        "print(xnet.resolve('numpy', True))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "<backend numpy reproducible>\n", done.stderr


@pytest.fixture
def control():
    """Sets bits of the register that says how this thread's processor computes, and resets them."""
    if platform.machine() not in ("x86_64", "AMD64") or platform.libc_ver()[0] != "glibc":
        pytest.skip("no MXCSR by way of glibc here")
    library = ctypes.CDLL("libm.so.6")
    before, own = (ctypes.create_string_buffer(32) for _ in range(2))
    library.fegetenv(before)

    def set_bits(bits):
        own[:] = before[:]
        register = int.from_bytes(before[28:32], "little") | bits
        own[28:32] = register.to_bytes(4, "little")
        library.fesetenv(own)

    yield set_bits
    library.fesetenv(before)


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (0x8000, "FTZ or DAZ"),
        (0x0040, "FTZ or DAZ"),
        (0x8040, "FTZ or DAZ"),
        (0x2000, "does not round to nearest"),
        (0x4000, "does not round to nearest"),
        (0x6000, "does not round to nearest"),
    ],
)
def test_each_mode_of_the_processor_is_noticed(control, bits, said):
    network = xnet.TwoLayerNet(2, 3, 2, backend=xnet.resolve("numpy", reproducible=True))
    fast = xnet.TwoLayerNet(2, 3, 2, backend="numpy")
    x = np.ones((1, 2))
    expected = network.predict(x)
    control(bits)
    error = None
    try:
        fast.predict(x)
        network.predict(x)
    except BackendError as caught:
        error = str(caught)
    control(0)
    assert said in (error or "")
    assert np.array_equal(network.predict(x), expected)


@pytest.mark.skipif(not EXTENDED, reason="no numbers of 64 bits here")
def test_python_on_x87_is_noticed(monkeypatch):
    class Twice(float):
        def __add__(self, other):
            return Twice(np.longdouble(float(self)) + np.longdouble(float(other)))

    monkeypatch.setattr(arithmetic, "_ONE", Twice(1))
    with pytest.raises(BackendError, match=r"rounds sums twice here.* gave 0x1\.0{13}p\+0, .*sse"):
        xnet.resolve("numpy", reproducible=True)
    assert not xnet.resolve("numpy").reproducible
    with unchecked():
        assert xnet.resolve("numpy", reproducible=True).reproducible
