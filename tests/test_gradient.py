import _thread
import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from conftest import property_settings
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet import gradient as gradient_module
from xnet import perturbation
from xnet.dtypes import dtype_name
from xnet.gradient import (
    gradient_descent,
    numerical_diff,
    numerical_gradient,
    partial_derivative,
)
from xnet.layers import (
    AbsoluteError,
    Affine,
    ReLU,
)

BAD_STEPS = [0, -1e-4, math.nan, math.inf]


# -- numerical_diff


@pytest.mark.parametrize(
    ("f", "x", "slope"),
    [
        (lambda x: 3 * x - 1, 2.0, 3.0),
        (lambda x: x * x, -1.5, -3.0),
        (lambda x: x**3, 2, 12.0),
        (math.sin, 0.5, math.cos(0.5)),
        (math.exp, 1.0, math.e),
        (lambda x: 7.0, 4.0, 0.0),
    ],
)
def test_diff_of_a_number(f, x, slope):
    assert numerical_diff(f, x) == pytest.approx(slope, abs=1e-7)


def test_diff_of_an_array(backend, rng):
    x = rng.normal(size=(2, 3))
    slopes = numerical_diff(lambda v: backend.exp(v) * v, backend.asarray(x))
    assert backend.owns(slopes)
    expected = np.exp(x) * (1 + x)
    np.testing.assert_allclose(backend.to_numpy(slopes), expected, rtol=0, atol=1e-6)


def test_diff_is_central(backend):
    """A forward difference is off by h f'' / 2; the central one is exact for a parabola."""
    slope = numerical_diff(lambda v: v * v, backend.asarray(3.0), h=0.5)
    assert float(slope) == 6.0


@pytest.mark.parametrize("h", BAD_STEPS)
def test_diff_refuses_a_step(h):
    with pytest.raises(ValueError, match=r"h is .*, expected a positive number"):
        numerical_diff(lambda x: x, 1.0, h)


# -- numerical_gradient


@property_settings
@given(shape=st.lists(st.integers(0, 3), max_size=3), seed=st.integers(0, 2**32 - 1))
def test_gradient_of_any_shape(backend, shape, seed):
    rng = np.random.default_rng(seed)
    a, x = rng.normal(size=shape), rng.normal(size=shape)
    weights = backend.asarray(a)
    # A parabola in each element, for which the central difference has no truncation error.
    gradient = numerical_gradient(lambda v: backend.sum(weights * v * v), backend.asarray(x))
    assert backend.owns(gradient)
    assert gradient.shape == tuple(shape)
    np.testing.assert_allclose(backend.to_numpy(gradient), 2 * a * x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("result", [float, lambda value: value])
def test_gradient_of_f_that_returns_a_number_or_an_array(backend, result):
    x = backend.asarray([1.0, 2.0])
    gradient = numerical_gradient(lambda v: result(v[0] * v[1]), x)
    np.testing.assert_allclose(backend.to_numpy(gradient), [2, 1], rtol=0, atol=1e-10)


def test_gradient_of_f_that_reads_x_by_closure(backend):
    x = backend.asarray([[1.0, -2.0]])
    gradient = numerical_gradient(lambda _: backend.sum(x * x), x)
    np.testing.assert_allclose(backend.to_numpy(gradient), [[2, -4]], rtol=0, atol=1e-10)


def test_gradient_sees_one_element_moved_at_a_time(backend):
    x, seen = backend.asarray([1.0, 2.0]), []

    def f(v):
        seen.append(backend.to_numpy(v).tolist())
        return 0.0

    numerical_gradient(f, x, h=0.25)
    assert seen == [[1.25, 2], [0.75, 2], [1, 2.25], [1, 1.75]]


def test_gradient_of_a_strided_array(backend, rng):
    whole = rng.normal(size=(4, 6))
    for view in (lambda a: a.T, lambda a: a[::2, 1::2]):
        x = view(backend.asarray(whole.copy()))
        gradient = numerical_gradient(lambda v: backend.sum(v * v), x)
        expected = 2 * view(whole)
        np.testing.assert_allclose(backend.to_numpy(gradient), expected, rtol=0, atol=1e-9)


def test_x_is_restored_to_the_bit(backend, rng):
    before = rng.normal(size=(3, 4)) * 10.0 ** rng.integers(-20, 20, size=(3, 4))
    x = backend.asarray(before.copy())
    with pytest.warns(xnet.RoundingWarning, match="is lost in x"):  # in the large ones
        numerical_gradient(lambda v: float(v[0, 0]), x)
    np.testing.assert_array_equal(backend.to_numpy(x), before)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2, 5, 6])
def test_x_is_restored_when_f_fails(backend, error, call):
    x, calls = backend.asarray([1.0, 2.0, 3.0]), []

    def f(_):
        calls.append(None)
        if len(calls) == call:
            raise error
        return 0.0

    with pytest.raises(error):
        numerical_gradient(f, x)
    assert backend.to_numpy(x).tolist() == [1, 2, 3]


@pytest.mark.parametrize("result", ["array", None, "text", 1j])
def test_f_must_return_one_number(backend, result):
    x = backend.asarray([1.0, 2.0])
    value = x[:1] if result == "array" else result
    message = r"f returned an array of shape \(1,\)" if result == "array" else "f returned "
    with pytest.raises(TypeError, match=message):
        numerical_gradient(lambda _: value, x)
    assert backend.to_numpy(x).tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["int64", "int8", "bool", "complex128"])
def test_dtypes_that_cannot_hold_a_step(backend, kind):
    x = backend.asarray(np.array([1, 0]), kind)
    with pytest.raises(ValueError, match=f"x is {kind}, .*expected float64"):
        numerical_gradient(lambda v: 0.0, x)


def test_float16_cannot_hold_a_step():
    with pytest.raises(ValueError, match=r"x is float16, too coarse to hold x \+ h"):
        numerical_gradient(lambda v: 0.0, np.ones(2, np.float16))


def test_float32_needs_a_step_that_suits_it(backend):
    x = backend.asarray([1.0, 2.0], "float32")
    for h in (1e-4, 9e-4):
        with pytest.raises(ValueError, match=f"x is float32, where h={h} gives noise"):
            numerical_gradient(lambda v: backend.sum(v * v), x, h)
    numerical_gradient(lambda v: backend.sum(v * v), x, h=1e-3)
    gradient = numerical_gradient(lambda v: backend.sum(v * v), x, h=5e-3)
    assert dtype_name(gradient.dtype) == "float32"
    np.testing.assert_allclose(backend.to_numpy(gradient), [2, 4], rtol=2e-4)


@pytest.mark.parametrize("h", BAD_STEPS)
def test_gradient_refuses_a_step(backend, h):
    with pytest.raises(ValueError, match=r"h is .*, expected a positive number"):
        numerical_gradient(lambda v: 0.0, backend.asarray([1.0]), h)


def test_x_must_be_writable():
    x = np.ones(2)
    x.flags.writeable = False
    for unwritable in (x, np.float64(1.0)):
        with pytest.raises(ValueError, match="x cannot be written in place"):
            numerical_gradient(lambda v: 0.0, unwritable)


@pytest.mark.parametrize("x", [[1.0], 1.0])
def test_x_must_be_an_array(x):
    with pytest.raises(TypeError, match=f"x is a {type(x).__name__}, expected an array"):
        numerical_gradient(lambda v: 0.0, x)


# -- gradient_descent


def parabola(x):
    return x[0] ** 2 + x[1] ** 2


def test_descent_finds_the_minimum(backend):
    start = backend.asarray([3.0, -2.0])
    end = gradient_descent(lambda x: (x[0] - 1) ** 2 + (x[1] - 5) ** 2, start, lr=0.1)
    assert backend.owns(end)
    np.testing.assert_allclose(backend.to_numpy(end), [1, 5], atol=1e-7)


def test_descent_steps_by_the_gradient(backend):
    end = gradient_descent(parabola, backend.asarray([3.0, -2.0]), lr=0.25, step_num=1)
    np.testing.assert_allclose(backend.to_numpy(end), [1.5, -1], rtol=1e-9)
    default = gradient_descent(parabola, backend.asarray([3.0, -2.0]))
    np.testing.assert_allclose(backend.to_numpy(default), [3 * 0.98**100, -2 * 0.98**100])


def test_descent_changes_nothing_it_is_handed(backend):
    start = backend.asarray([3.0, -2.0])
    for steps in (0, 1, 3):
        end = gradient_descent(parabola, start, step_num=steps)
        assert backend.to_numpy(start).tolist() == [3, -2]
        end[0] = 7.0
        assert backend.to_numpy(start).tolist() == [3, -2]


def test_descent_path(backend):
    path = []
    end = gradient_descent(parabola, backend.asarray([2.0, 0.0]), 0.25, 3, path=path)
    points = [backend.to_numpy(point).tolist() for point in path]
    np.testing.assert_allclose(points, [[2, 0], [1, 0], [0.5, 0], [0.25, 0]], atol=1e-9)
    assert points[0] == [2, 0]
    end[0] = 7.0
    assert backend.to_numpy(path[-1])[0] == pytest.approx(0.25)


def test_descent_of_no_steps(backend):
    path = []
    end = gradient_descent(parabola, backend.asarray([2.0, 0.0]), step_num=0, path=path)
    assert backend.to_numpy(end).tolist() == [2, 0]
    end[0] = 7.0
    assert [backend.to_numpy(point).tolist() for point in path] == [[2, 0]]


def test_descent_refuses(backend):
    with pytest.raises(ValueError, match="step_num is -1, expected 0 or more"):
        gradient_descent(parabola, backend.asarray([1.0, 1.0]), step_num=-1)
    with pytest.raises(ValueError, match="x is int64"):
        gradient_descent(parabola, backend.asarray([1, 1]))
    with pytest.raises(TypeError, match="f returned an array"):
        gradient_descent(lambda x: x, backend.asarray([1.0, 1.0]))
    with pytest.raises(TypeError, match="init_x is a list, expected an array"):
        gradient_descent(parabola, [1.0, 1.0])


# -- what f may be, and x


@pytest.mark.parametrize("number", [float, int, Fraction, np.float32, np.float64, lambda v: v])
def test_f_may_return_any_real_number(number):
    x = np.array([1.0, 2.0])
    gradient = numerical_gradient(lambda v: number(1000 * round(float(v[0] * 1024))), x, h=0.5)
    np.testing.assert_allclose(gradient, [1_024_000, 0])


def test_f_that_returns_a_view_of_x(backend):
    """What f returns is read before x changes again, though it stays on the device."""
    x = backend.asarray([1.0, 2.0])
    gradient = numerical_gradient(lambda v: v[1], x, h=0.25)
    assert backend.to_numpy(gradient).tolist() == [0, 1]


@pytest.mark.parametrize("method", ["loop", "stacked"])
def test_nan_of_f_shows_where_it_is(backend, method):
    def f(v):
        first = v[..., 0]
        return backend.xp.where(first > 1.0, math.nan * first, first)

    with backend.running():
        gradient = numerical_gradient(f, backend.asarray([1.0, 2.0]), method=method)
    found = backend.to_numpy(gradient)
    assert math.isnan(found[0])
    assert found[1] == 0


def test_arrays_of_another_backend_are_refused():
    strict = xnet.resolve("strict").asarray(1.0)
    with pytest.raises(TypeError, match=r"f returned .*, expected one real number, or a 0-d array"):
        numerical_gradient(lambda v: strict, np.ones(2))


SHAPES = [(), (0,), (3, 0, 2), (1,), (2, 3), (2, 1, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["loop", "stacked"])
def test_any_shape_by_any_method(backend, rng, shape, method):
    xp = backend.xp
    x = backend.asarray(rng.normal(size=shape))
    before = backend.to_numpy(x).copy()

    def f(v):  # of one array, or of a stack
        axes = tuple(range(v.ndim - len(shape), v.ndim))
        return xp.sum(v * v, axis=axes) if axes else v * v

    gradient = numerical_gradient(f, x, method=method)
    assert gradient.shape == shape
    np.testing.assert_allclose(backend.to_numpy(gradient), 2 * before, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(backend.to_numpy(x), before)


def bits(array):
    return np.asarray(array).view(np.uint64).tolist()


@pytest.mark.parametrize("fails_at", [None, 0, 3, 7])
def test_x_is_restored_bit_by_bit(fails_at):
    """Negative zero and a NaN with a payload included."""
    x = np.array([-0.0, 0.0, np.nan, np.inf, 5e-324])
    x.view(np.uint64)[2] |= 0x1234
    before, calls = bits(x), []

    def f(v):
        calls.append(None)
        if len(calls) - 1 == fails_at:
            raise ZeroDivisionError
        return 0.0

    with contextlib.suppress(ZeroDivisionError):
        numerical_gradient(f, x)
    assert len(calls) == (10 if fails_at is None else fails_at + 1)
    assert bits(x) == before


def test_ctrl_c_between_any_two_steps_restores_x():
    """At every line that runs in the loop, not only in f."""
    x = np.array([1.0, 2.0])
    code = gradient_module._looped.__code__
    lines_run, interrupted = 0, 0

    def interrupt_at(number):
        count = 0

        def trace(frame, event, arg):
            nonlocal count
            if frame.f_code is not code:
                return None
            if event == "line":
                count += 1
                if count == number:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            numerical_gradient(lambda v: 0.0, x, method="loop")
        finally:
            sys.settrace(None)
        return count

    before = sys.gettrace()
    try:
        lines_run = interrupt_at(-1)
        assert lines_run > 15
        for number in range(1, lines_run + 1):
            with contextlib.suppress(KeyboardInterrupt):
                interrupt_at(number)
                continue
            interrupted += 1
            assert x.tolist() == [1, 2], number
    finally:
        sys.settrace(before)
    assert interrupted == lines_run


def test_partial_derivative(backend):
    x = backend.asarray([[3.0, 4.0], [5.0, -6.0]])

    def f(v):
        return backend.sum(v * v * v)

    for index, expected in {(0, 0): 27, (1, 1): 108, (-1, 0): 75, (0, -1): 48}.items():
        found = partial_derivative(f, x, index)
        assert found.shape == ()
        assert float(found) == pytest.approx(expected, abs=1e-7)
        whole = numerical_gradient(f, x)
        assert float(found) == float(whole[index])
    assert float(partial_derivative(lambda v: v[1], backend.asarray([1.0, 2.0]), 1, h=0.5)) == 1.0
    assert backend.to_numpy(x).tolist() == [[3, 4], [5, -6]]


@pytest.mark.parametrize("index", [2, (0, 2), (-3, 0), (0,), (0, 0, 0)])
def test_partial_derivative_by_no_element(index):
    with pytest.raises(IndexError, match=r"index is .*, x has shape \(2, 2\)"):
        partial_derivative(lambda v: 0.0, np.ones((2, 2)), index)


# -- on a device


class Counted:
    """The strict namespace's arrays, with the reads that a GPU would wait for counted."""

    def __init__(self, monkeypatch):
        import array_api_strict

        self.reads = 0
        array = type(array_api_strict.ones(1))
        for name in ("__float__", "__bool__", "__int__", "__index__", "__array__"):
            if (real := getattr(array, name, None)) is not None:
                monkeypatch.setattr(array, name, self.counting(real))
        backend = type(xnet.resolve("strict"))
        monkeypatch.setattr(backend, "to_numpy", self.counting(backend.to_numpy))
        monkeypatch.setattr(backend, "asarray", self.counting(backend.asarray))

    def counting(self, real):
        def wrapped(*args, **kwargs):
            self.reads += 1
            return real(*args, **kwargs)

        return wrapped


@pytest.mark.parametrize("method", ["loop", "stacked"])
def test_nothing_crosses_element_by_element(monkeypatch, method):
    """As many reads from the device for 12 elements as for 60: those of the checks."""
    backend, reads = xnet.resolve("strict"), []
    arrays = [backend.asarray(np.linspace(0.5, 2, n)) for n in (12, 60)]
    counted = Counted(monkeypatch)
    for x in arrays:
        counted.reads = 0
        numerical_gradient(lambda v: backend.xp.sum(v * v, axis=-1), x, method=method)
        reads.append(counted.reads)
    assert reads[0] == reads[1] <= 10


# -- an f that is not to be trusted


def gradient_by(method, f, x):
    """The numerical gradient of f by a loop, stacks of one, or Numba; or the first partial one."""
    if method == "partial":
        return partial_derivative(f, x, 0)
    if method == "descent":
        return gradient_descent(f, x, 0.1, 2)
    if method == "compiled":
        f = pytest.importorskip("numba").njit(f)
    elif method == "stacked":
        whole = f

        def f(stack):
            return np.array([whole(v) for v in stack])

    return numerical_gradient(f, x, method=method)


WAYS = ["loop", "stacked", "compiled", "partial", "descent"]


@pytest.mark.parametrize("method", WAYS)
def test_float32_numbers_of_f_are_said(method):
    """The dtype of what f returns is lost on the way, through `float` or Numba; its digits not."""
    x = np.array([2.0, 4.0, 6.0])
    with pytest.warns(xnet.RoundingWarning, match=r"f returns float32 numbers.* h=0\.0001: comp"):
        gradient_by(method, lambda v: np.float32((v * v).sum() + 3), x)


@pytest.mark.parametrize("x", [3.0, np.array([2.0, 3.0])])
def test_float32_numbers_are_said_of_a_difference(x):
    def f(v):
        return (v * v).astype(np.float32) if np.ndim(v) else np.float32(v * v)

    with pytest.warns(xnet.RoundingWarning, match="f returns float32 numbers"):
        numerical_diff(f, x)
    np.testing.assert_allclose(numerical_diff(f, x, 5e-3), 2 * x, rtol=1e-3)  # a step that suits


def test_float32_numbers_at_a_step_that_suits_them(backend):
    x = backend.asarray([2.0, 4.0])
    single = backend.xp.float32
    for h in (1e-3, 5e-3):
        gradient = numerical_gradient(
            lambda v: backend.xp.astype(backend.sum(v * v), single), x, h=h
        )
        np.testing.assert_allclose(backend.to_numpy(gradient), [4, 8], rtol=1e-3)


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("constant", [1e12, 1e13, 1e14])
@pytest.mark.parametrize("x", [[2.0, 0.0, -3.0], [0.0, 0.0], [3e4, -0.2]])
def test_drowned_differences_are_said_even_if_all_are_zero(method, constant, x):
    x = np.array(x)
    with pytest.warns(xnet.RoundingWarning, match="drowns the differences"):
        gradient_by(method, lambda v: (v * np.array([1.0, 1.5, 2.0])[: v.size]).sum() + constant, x)


@pytest.mark.parametrize("x", [2.0, 0.0, np.array([2.0, -3.0])])
def test_a_drowned_difference_is_said(x):
    for constant in (1e12, 1e13, 1e14):
        with pytest.warns(xnet.RoundingWarning, match="drowns the differences"):
            numerical_diff(lambda v, c=constant: v + c, x)
    numerical_diff(lambda v: 0 * v + 1e13, x)  # warnings are errors here


def test_one_drowned_among_many_of_an_elementwise_f_is_said():
    """Each is a function of its own; in a gradient such a one is small beside the others."""
    with pytest.warns(xnet.RoundingWarning, match="drowns the differences"):
        numerical_diff(lambda v: v + np.array([0.0, 1e13]), np.array([2.0, 2.0]))
    numerical_gradient(lambda v: v[0] + 1e-9 * v[1] + 1e6, np.array([2.0, 2.0]))


@pytest.mark.parametrize(("x", "edge"), [(20.0, 19.9), (-20.0, -19.9)])
def test_a_drowned_slope_is_looked_for_where_x_is(x, edge):
    """Beyond the edge f is constant: a step from elsewhere would see nothing, or too much."""

    def f(v):
        return np.maximum(np.sign(x) * (v - edge), 0) + 1e12

    for at in (x, np.array([x])):
        with pytest.warns(xnet.RoundingWarning, match="drowns the differences"):
            numerical_diff(f, at)
        numerical_diff(f, 0.9 * at)  # warnings are errors here: it is constant there


@pytest.mark.parametrize("kind", ["float64", "float32"])
@pytest.mark.parametrize("evaluate", [numerical_diff, numerical_gradient])
def test_how_many_roundings_drown_a_difference(evaluate, kind):
    """Eight units of u |f|; f's own numbers are exact."""
    u, h = np.finfo(kind).eps / 2, 2.0**-8

    def f(units):  # 1 at h, and so many less at -h
        return lambda v: np.sum(
            1 + (np.round(v / h) - 1) * 4 * u + (v < 0) * (8 - units) * u
        ).astype(kind)

    x = 0.0 if evaluate is numerical_diff else np.zeros(1)
    with pytest.warns(xnet.RoundingWarning, match="drowns the differences"):
        evaluate(f(8), x, h)
    evaluate(f(9), x, h)  # warnings are errors here


@pytest.mark.parametrize("method", ["naive", "incremental"])
def test_how_many_roundings_drown_a_networks_difference(backend, method):
    """Losses of 2^40, whose u |L| is 2^-13, and slopes of 1."""
    net = xnet.Network([Affine(1, 1, 0.0)], AbsoluteError())
    x, t = np.ones((4, 1)), np.full((4, 1), -(2.0**40))
    with pytest.warns(xnet.RoundingWarning, match="drowns the differences"):
        net.numerical_gradient(x, t, 2.0**-11, method=method)  # by 8 units
    for g in net.numerical_gradient(x, t, 2.0**-10, method=method).values():  # by 16: no warning
        assert backend.to_numpy(g).ravel().tolist() == [1]


@pytest.mark.parametrize("x", [0.0, 256.0])
def test_how_far_a_slope_is_looked_for(x):
    """By 32 steps and twice as many each time; to half of x, or 2048 steps if that is more."""
    seen = []
    numerical_diff(lambda v: seen.append(v) or 2.0**43, x, 2.0**-10)
    up = sorted({v - x for v in seen if v > x})
    assert sorted({x - v for v in seen if v < x}) == up
    farthest = max(2048 * 2.0**-10, x / 2)
    steps = [farthest / 2**k for k in range(20) if farthest / 2**k > 16 * 2.0**-10]
    assert up == sorted([2.0**-10, *steps])


def test_an_f_that_overflows_is_asked_no_farther():
    seen = []
    slope = numerical_diff(lambda v: seen.append(v) or (math.inf if v > 0 else 0.1), 0.0)
    assert slope == math.inf
    assert seen == [1e-4, -1e-4]


def test_how_far_one_element_is_moved_among_others():
    """By 32 steps at first, or less."""
    x, h, seen = np.array([0.0, 300.0]), 2.0**-10, []
    partial_derivative(lambda v: seen.append(v.tolist()) or 2.0**43, x, 0, h)
    assert {v[1] for v in seen} == {300.0}
    assert 16 * h <= min(v[0] for v in seen if v[0] > h) <= 32 * h
    assert 1024 * h <= max(v[0] for v in seen) <= 2048 * h


def test_a_slope_that_shows_at_the_farthest_only_is_said():
    """By 2.5 times what may be rounding, 2^-7."""
    with pytest.warns(xnet.RoundingWarning, match="drowns the differences"):
        numerical_diff(lambda v: 2.0**43 + 1.25 * 2.0**-14 * v, 256.0, 2.0**-10)


@pytest.mark.parametrize(
    ("slope", "gap", "drowned"),
    [
        (0.5, 0.28 * 64, True),  # f rises by 46 between 64 steps, by 14 between 32
        (0.5, 0.40 * 64, False),  # by 38, and by 6: that is a bend
        (0.9, 2, True),
        (1.2, 2, False),  # so steep a slope would show between one step
    ],
)
def test_which_slopes_are_hidden(slope, gap, drowned):
    """Of an f that is flat for some steps. What may be rounding is 2^-10, as is the step."""
    h = 2.0**-10

    def f(v):
        return 2.0**40 + 2.0**-10 + slope * math.copysign(max(abs(v) - gap * h, 0.0), v)

    if drowned:
        with pytest.warns(xnet.RoundingWarning, match="drowns the differences"):
            numerical_diff(f, 0.0, h)
    else:
        numerical_diff(f, 0.0, h)  # warnings are errors here


@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_elements_that_are_moved_together_are_moved_unalike(backend, kind):
    """Within 1/2 and 1, and in order of size no gap is over 2.62 times another: golden ratio."""
    x = backend.asarray(np.zeros((3, 70)), kind)
    with backend.running():
        factors = backend.to_numpy(gradient_module.unlike(backend.xp, x, range(20, 200)))
    assert factors.shape == (3, 70)
    assert factors.dtype == kind
    factors = factors.ravel()
    assert not factors[:20].any()
    assert not factors[200:].any()
    ordered = np.sort(factors[20:200])
    assert 0.5 <= ordered[0] < 0.51
    assert 0.99 < ordered[-1] <= 1
    gaps = np.diff(ordered)
    assert gaps.max() <= 2.62 * gaps.min()


def test_drowned_differences_of_float32_numbers_are_said():
    with pytest.warns(xnet.RoundingWarning, match="drowns the differences"):
        numerical_gradient(lambda v: np.float32(v.sum() + 1e5), np.array([2.0, 3.0]))


@pytest.mark.parametrize("method", ["naive", "incremental"])
def test_a_networks_drowned_differences_are_said(backend, method):
    """Targets far away: the loss is so large that a step does not change it."""
    net = xnet.Network([Affine(3, 2, 0.7)], AbsoluteError(), seed=1)
    x, t = [[1.0, 2.0, -0.5], [0.3, -1.0, 2.0]], np.array([[1e13, -1e13], [2e13, 1e13]])
    with pytest.warns(xnet.RoundingWarning, match="drowns the differences"):
        net.numerical_gradient(x, t, method=method)
    net.numerical_gradient(x, t * 1e-13, method=method)  # warnings are errors here


def test_a_dead_network_raises_no_alarm(backend, rng):
    net = xnet.Network([Affine(3, 4, 0.7), ReLU(), Affine(4, 2, 0.7)], seed=1)
    net.params["b1"] = backend.asarray(np.full(4, -0.05))
    x, t = np.zeros((3, 3)), [0, 1, 1]  # some steps away, units wake up
    gradients = net.numerical_gradient(x, t)
    assert not backend.to_numpy(gradients["W1"]).any()


@pytest.mark.parametrize("method", ["loop", "compiled", "partial", "descent"])
@pytest.mark.parametrize(
    "change",
    [
        lambda v: np.negative(v, v),  # and back again by the next call
        lambda v: np.exp(v, v),
        lambda v: np.multiply(v, np.array([1.0, 1.0, 3.0]), v),
    ],
)
def test_f_that_changes_its_argument_is_refused(method, change):
    def f(v):
        change(v)
        return (v * v * v).sum()

    if method == "compiled":
        change = pytest.importorskip("numba").njit(change)
    x = np.array([-0.9, 0.2, 0.7])
    with pytest.raises(ValueError, match=r"f changes its argument in place.*work on a copy"):
        gradient_by(method, f, x)
    assert x.tolist() == [-0.9, 0.2, 0.7]


@pytest.mark.parametrize("method", ["loop", "compiled"])
def test_f_that_changes_its_argument_later_is_refused(method):
    """Sorted at first, a step exchanges two elements."""

    def f(v):
        v.sort()
        return v[0] + 2 * v[1] + 4 * v[2]

    with pytest.raises(ValueError, match="f changes its argument in place"):
        gradient_by(method, f, np.array([1.0, 2.0, 2.00005]))


def test_f_that_changes_a_copy_of_its_own_is_not(rng):
    """A stack is f's own, and so is what `numerical_diff` hands it."""

    def f(v):
        v *= v
        return v

    x = rng.normal(size=4)
    np.testing.assert_allclose(numerical_diff(f, x), 2 * x, atol=1e-9)
    stacked = numerical_gradient(lambda v: f(v).sum(axis=1), x, method="stacked")
    np.testing.assert_allclose(stacked, 2 * x, atol=1e-9)


def test_f_may_change_its_argument_and_restore_it(rng):
    x = rng.normal(size=3)

    def slope(v):  # perturbs v in place itself
        return float(numerical_gradient(lambda w: float((w**3).sum()), v).sum())

    np.testing.assert_allclose(numerical_gradient(slope, x), 6 * x, atol=1e-3)


def test_f_that_writes_its_values_to_one_array(rng):
    x, out = rng.normal(size=4), np.empty(4)
    slopes = numerical_diff(lambda v: np.multiply(v, v, out), x)
    np.testing.assert_allclose(slopes, 2 * x, atol=1e-9)


def test_what_f_refuses_farther_off_proves_nothing():
    """Where all differences are zero, f is asked at points that nobody asked for."""

    def f(v):
        if not (0 <= v[0] <= 0.01):
            raise ValueError("no probability")
        return 5.0

    assert numerical_gradient(f, np.array([0.005])).tolist() == [0]


# -- an f that takes stacks


def test_stacks_are_bounded_and_cover_every_element(backend, rng, monkeypatch):
    monkeypatch.setattr(perturbation, "LARGEST_STACK", 50)
    x, shapes = backend.asarray(rng.normal(size=(3, 7))), []

    def f(stack):
        shapes.append(stack.shape)
        return backend.xp.sum(backend.xp.exp(stack), axis=(1, 2))

    gradient = numerical_gradient(f, x, method="stacked")
    assert shapes == [*[(2, 3, 7)] * 10, (1, 3, 7)] * 2
    expected = numerical_gradient(lambda v: backend.xp.sum(backend.xp.exp(v)), x)
    np.testing.assert_allclose(
        backend.to_numpy(gradient), backend.to_numpy(expected), rtol=0, atol=1e-9
    )
    monkeypatch.setattr(perturbation, "LARGEST_STACK", 5)  # smaller than x: one copy at a time
    shapes.clear()
    numerical_gradient(f, x, method="stacked")
    assert shapes == [(1, 3, 7)] * 42


def test_a_stack_takes_16_mib_at_most(rng):
    x, sizes = rng.normal(size=2048), []

    def f(stack):
        sizes.append(stack.nbytes)
        return stack[:, 0]

    numerical_gradient(f, x, method="stacked")
    assert sizes == [16 << 20] * 4  # twice half of x, for each sign


def test_stacked_takes_x_that_cannot_be_written(rng):
    x = np.broadcast_to(rng.normal(size=3), (2, 3))
    assert not x.flags.writeable
    gradient = numerical_gradient(lambda v: (v * v).sum(axis=(1, 2)), x, method="stacked")
    np.testing.assert_allclose(gradient, 2 * x, atol=1e-9)
    with pytest.raises(ValueError, match=r"x cannot be written in place.*method='stacked'"):
        numerical_gradient(lambda v: (v * v).sum(), x)


@pytest.mark.parametrize("result", [lambda v: 1.0, lambda v: v, lambda v: v.sum(), lambda v: None])
def test_stacked_f_must_return_a_number_for_each(result):
    with pytest.raises(TypeError, match=r"f of a stack \(2, 2\) returned .* of shape \(2,\)"):
        numerical_gradient(result, np.ones(2), method="stacked")


# -- an f that Numba compiled


@pytest.fixture(scope="module")
def njit():
    return pytest.importorskip("numba").njit


@pytest.fixture(scope="module")
def cubes(njit):
    @njit
    def cubes(x):
        total = 0.0
        for value in x.flat:
            total += value**3
        return total

    return cubes


@pytest.mark.parametrize("shape", [*SHAPES, (40, 50)])
@pytest.mark.parametrize("current", ["numpy", "numba"])
def test_compiled_f_of_any_shape(cubes, rng, shape, current):
    x = rng.normal(size=shape)
    x.flags.writeable = False
    with xnet.use_backend(current):
        gradient = numerical_gradient(cubes, x)
    assert gradient.shape == shape
    # h^2 |f'''| / 6 = h^2 of truncation, and some units of rounding of the sum.
    bound = 1e-8 + 100 * 2.0**-53 * (1 + abs(float((x**3).sum()))) / 1e-4
    np.testing.assert_allclose(gradient, 3 * x**2, rtol=0, atol=bound)


def test_compiled_gives_the_values_of_the_loop(cubes, rng):
    for x in (rng.normal(size=(6, 5)).T, rng.normal(size=(8, 9))[::2, ::3]):
        compiled = numerical_gradient(cubes, x, method="compiled")
        np.testing.assert_array_equal(compiled, numerical_gradient(cubes, x, method="loop"))


def test_compiled_runs_the_loop_compiled(cubes, monkeypatch, rng):
    """F is called from Python a few times at most, not twice for each element."""
    calls, called = [], type(cubes).__call__
    monkeypatch.setattr(
        type(cubes), "__call__", lambda self, *args: calls.append(self) or called(self, *args)
    )
    numerical_gradient(cubes, rng.normal(size=5000))
    assert calls.count(cubes) <= 2


def test_compiled_f_with_a_signature_and_threads_of_its_own(rng):
    numba = pytest.importorskip("numba")

    @numba.njit("float64(float64[:])", parallel=True)
    def f(x):
        total = 0.0
        for k in numba.prange(x.size):
            total += x[k] * x[k]
        return total

    x = rng.normal(size=3000)
    np.testing.assert_allclose(numerical_gradient(f, x), 2 * x, rtol=0, atol=1e-7)


def test_compiled_f_of_float32(cubes, rng):
    x = rng.normal(size=20).astype(np.float32)
    gradient = numerical_gradient(cubes, x)
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient, 3 * x**2, rtol=0, atol=1e-3)


def test_compiled_f_that_raises(njit):
    @njit
    def f(x):
        if x[700] > 1.0:
            raise ZeroDivisionError("at 700")
        return x[0]

    x = np.ones(2000)
    with pytest.raises(ZeroDivisionError, match="at 700"):
        numerical_gradient(f, x)
    assert (x == 1).all()


def test_compiled_f_that_returns_no_number(njit):
    for f in (njit(lambda x: x), njit(lambda x: None), njit(lambda x: x[0] * 1j)):
        with pytest.raises(TypeError, match=r"f returned .*, expected one"):
            numerical_gradient(f, np.ones(3))


def test_compiled_f_that_does_not_compile(njit):
    f = njit(lambda x: x.no_such_thing)
    with pytest.raises(TypeError, match="f was compiled by Numba, but not for float64 arrays of 1"):
        numerical_gradient(f, np.ones(3))


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    "interrupt",
    [
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGINT), id="while it waits"),
        pytest.param(_thread.interrupt_main, id="just before, which wakes nobody"),
    ],
)
def test_ctrl_c_in_a_compiled_loop(njit, interrupt):
    """The main thread is waiting, so it hears; the others stop soon after."""

    @njit
    def slow(x):
        total = 0.0
        for k in range(20_000):
            total += math.sin(x[0] + k)
        return total

    slow(np.ones(1))
    x = np.ones(5_000_000)  # an hour of work for one core
    numerical_gradient(slow, np.ones(20))  # compiles
    timer = threading.Timer(0.3, interrupt)
    timer.start()
    started = time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            numerical_gradient(slow, x)
    finally:
        timer.cancel()
        timer.join()
    assert time.perf_counter() - started < 120  # not the whole hour
    assert (x == 1).all()


def test_what_is_not_compiled():
    with pytest.raises(ValueError, match="method='compiled': no backend has compiled f for x"):
        numerical_gradient(lambda v: 0.0, np.ones(2), method="compiled")
    with pytest.raises(ValueError, match="method is 'fast', expected 'loop', 'stacked'"):
        numerical_gradient(lambda v: 0.0, np.ones(2), method="fast")


def test_a_plain_f_imports_no_numba():
    code = (
        "import sys, numpy, xnet; xnet.numerical_gradient(lambda v: 0.0, numpy.ones(2)); "
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- rounding


def test_default_steps(backend):
    seen = []

    def f(v):
        seen.append(float(v[0]))
        return 0.0

    numerical_gradient(f, backend.asarray([0.0], "float64"))
    numerical_gradient(f, backend.asarray([0.0], "float32"))
    np.testing.assert_allclose(seen, [1e-4, -1e-4, 5e-3, -5e-3], rtol=1e-7)


def test_the_default_of_float32_is_near_the_best(rng):
    """For functions of the size of their derivatives: within three of the best of many steps."""
    x = rng.normal(size=400).astype(np.float32)
    steps = np.geomspace(1e-3, 1e-1, 15)

    def error(h):
        return np.abs(numerical_diff(np.sin, x, h) - np.cos(x.astype(np.float64))).max()

    assert error(None) <= 3 * min(error(float(h)) for h in steps)


@pytest.mark.parametrize("x", [1e13, -1e16])
def test_a_step_lost_in_x_is_said(backend, x):
    with pytest.warns(xnet.RoundingWarning, match=r"lost in x \+ h.* in 1 of 2"):
        numerical_gradient(lambda v: backend.sum(v), backend.asarray([1.0, x]))
    with pytest.warns(xnet.RoundingWarning, match="in 1 of 1"):
        numerical_diff(lambda v: v, x)
    with pytest.warns(xnet.RoundingWarning, match="in 1 of 1"):
        numerical_diff(lambda v: v, backend.asarray([x]))


def test_a_step_that_is_wrong_by_a_tenth_is_not_lost():
    """2^53 - 2 and 5 are 2^53 + 4, rounded; x - h is exact, so 2h is 11."""
    numerical_diff(lambda v: v, 2.0**53 - 2, 5.0)  # warnings are errors here
    with pytest.warns(xnet.RoundingWarning, match="in 1 of 1"):
        numerical_diff(lambda v: v, 2.0**53 - 2, 3.0)


@pytest.mark.parametrize(
    ("f", "x", "h"),
    [
        (lambda v: float((v * v).sum()) + 100, [1.0, 2.0], 1e-14),
        (lambda v: float(v[0]) + 1e12, [1.0], 1e-4),
        (lambda v: float(np.exp(v[0])) + 1e12, [2.0, 3.0], 1e-5),
    ],
)
def test_drowned_differences_are_said(f, x, h):
    with pytest.warns(xnet.RoundingWarning, match=r"drowns the differences|is lost"):
        numerical_gradient(f, np.array(x), h)


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda v: 3.0, [1.0, 2.0]),  # constant
        (lambda v: float(((v - 1) ** 2).sum()) + 1e3, [1.0, 1.0]),  # at a minimum
        (lambda v: float(np.sum(np.cos(v) + v**3)) + 7.1, [0.0]),  # and a third derivative there
        (lambda v: float(np.sum(np.cosh(v - 0.3))), [0.3, 0.3]),  # rounding around the minimum
        (lambda v: float(np.maximum(v, 0).sum()), [-1.0, -2.0]),  # dead
        (lambda v: float(np.log(np.exp(v).sum())) + 5, [0.0, -60.0]),  # one of two, beside a slope
    ],
)
def test_gradients_that_are_zero_raise_no_alarm(f, x):
    numerical_gradient(f, np.array(x))  # warnings are errors here


def test_descent_into_a_minimum_raises_no_alarm():
    end = gradient_descent(lambda v: float(((v - 1) ** 2).sum()) + 3.0, np.zeros(2), 0.3, 100)
    np.testing.assert_allclose(end, 1, atol=1e-9)


def test_descent_by_stacks():
    """What is handed on: f of a stack has one number for each of its points."""
    path = []
    end = gradient_descent(
        lambda v: (v * v).sum(axis=-1), np.array([1.0, 2.0]), 0.25, 2, path, method="stacked"
    )
    np.testing.assert_allclose(path, [[1, 2], [0.5, 1], [0.25, 0.5]], rtol=1e-10)
    assert path[-1] is not end
    np.testing.assert_array_equal(path[-1], end)


def test_descent_from_what_cannot_be_written():
    start = np.array([1.0, 2.0])
    start.flags.writeable = False
    end = gradient_descent(lambda v: (v * v).sum(), start, 0.25, 1)
    np.testing.assert_allclose(end, [0.5, 1.0], rtol=1e-10)


def test_what_is_not_finite_of_a_network_with_a_frozen_layer(backend):
    net = xnet.Network([Affine(2, 3), ReLU(), Affine(3, 2)])
    net.layers[0].trainable = False
    found = net.numerical_gradient([[math.nan, 1.0]], [0])
    assert {name: g.shape for name, g in found.items()} == {"W2": (3, 2), "b2": (2,)}
    assert all(np.isnan(backend.to_numpy(g)).all() for g in found.values())


@pytest.mark.parametrize("frozen", [0, 2])
def test_a_frozen_layer_is_not_asked(backend, rng, frozen):
    net = xnet.Network([Affine(2, 3, 0.7), ReLU(), Affine(3, 2, 0.7)])
    x, t = rng.normal(size=(5, 2)), [0, 1, 1, 0, 1]
    all_trained = net.numerical_gradient(x, t)
    net.layers[frozen].trainable = False
    found = net.numerical_gradient(x, t)
    assert list(found) == (["W2", "b2"] if frozen == 0 else ["W1", "b1"])
    for name, g in found.items():
        np.testing.assert_array_equal(backend.to_numpy(g), backend.to_numpy(all_trained[name]))


def test_a_number_gives_a_number():
    assert type(numerical_diff(lambda v: v * v, 3.0)) is float
    assert type(numerical_diff(lambda v: v * v, 3)) is float


@pytest.mark.parametrize(
    "call",
    [
        lambda x: numerical_diff(lambda v: v + 1e13, x),
        lambda x: numerical_diff(lambda v: v * v, 1e14 * x),
        lambda x: numerical_gradient(lambda v: v.sum() + 1e13, x),
        lambda x: numerical_gradient(lambda v: v.sum(), 1e14 * x),
        lambda x: partial_derivative(lambda v: v.sum() + 1e13, x, 0),
        lambda x: xnet.Network([Affine(2, 1)], AbsoluteError()).numerical_gradient(x, 1e13 * x[:1]),
    ],
)
def test_a_warning_points_at_the_call(call):
    with pytest.warns(xnet.RoundingWarning) as warned:
        call(np.array([2.0, 3.0]))
    assert {(w.filename, w.lineno) for w in warned} == {(__file__, call.__code__.co_firstlineno)}


def test_descent_with_a_step_and_a_method(cubes):
    start = np.array([1.0, 2.0])
    by_loop = gradient_descent(cubes, start, 0.01, 20, h=1e-3, method="loop")
    np.testing.assert_array_equal(gradient_descent(cubes, start, 0.01, 20, h=1e-3), by_loop)
