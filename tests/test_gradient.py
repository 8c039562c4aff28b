import math

import numpy as np
import pytest
from conftest import property_settings
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet.backend import dtype_name
from xnet.gradient import gradient_check, gradient_descent, numerical_diff, numerical_gradient
from xnet.layers import Affine, IdentityWithLoss, ReLU, Sigmoid, SoftmaxWithLoss

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
    assert len(path) == 1


def test_descent_refuses(backend):
    with pytest.raises(ValueError, match="step_num is -1, expected 0 or more"):
        gradient_descent(parabola, backend.asarray([1.0, 1.0]), step_num=-1)
    with pytest.raises(ValueError, match="x is int64"):
        gradient_descent(parabola, backend.asarray([1, 1]))
    with pytest.raises(TypeError, match="f returned an array"):
        gradient_descent(lambda x: x, backend.asarray([1.0, 1.0]))
    with pytest.raises(TypeError, match="init_x is a list, expected an array"):
        gradient_descent(parabola, [1.0, 1.0])


# -- gradient_check

STACKS = {
    1: [(5, 3)],
    2: [(5, 6), (6, 3)],
    3: [(5, 4), (4, 6), (6, 3)],
    4: [(5, 4), (4, 6), (6, 4), (4, 3)],
}


def stack(depth, activation, loss, **options):
    layers = []
    for sizes in STACKS[depth]:
        layers += [Affine(*sizes, weight_init_std=0.7), activation()]
    return xnet.Network(layers[:-1], loss(), **options)


@pytest.mark.parametrize("depth", STACKS)
@pytest.mark.parametrize("activation", [Sigmoid, ReLU])
@pytest.mark.parametrize("loss", [SoftmaxWithLoss, IdentityWithLoss])
@pytest.mark.parametrize("labels", ["indices", "one-hot"])
def test_networks_pass_the_check(backend, rng, depth, activation, loss, labels):
    net = stack(depth, activation, loss, seed=2)
    x, t = rng.normal(size=(4, 5)), rng.integers(0, 3, 4)
    differences = gradient_check(net, x, t if labels == "indices" else np.eye(3)[t])
    assert list(differences) == list(net.params)
    assert max(differences.values()) < 1e-8  # 1e-6 is what is asked for


def test_badly_misclassified_samples_pass_the_check(backend, rng):
    net = stack(2, ReLU, SoftmaxWithLoss)
    x = 100 * rng.normal(size=(8, 5))
    t = (backend.to_numpy(net.predict(x)).argmax(axis=1) + 1) % 3
    assert net.loss(x, t) > 10
    assert max(gradient_check(net, x, t).values()) < 1e-6


def test_check_of_float32(backend, rng):
    net = stack(2, Sigmoid, SoftmaxWithLoss, dtype="float32")
    x, t = rng.normal(size=(4, 5)), rng.integers(0, 3, 4)
    assert max(gradient_check(net, x, t, h=1e-2).values()) < 1e-4
    assert gradient_check(net, x, t).passed
    with pytest.raises(ValueError, match=r"float32, where h=0\.0001 gives noise"):
        gradient_check(net, x, t, h=1e-4)


def test_check_tells_a_wrong_gradient(backend, rng, monkeypatch):
    net = stack(2, Sigmoid, SoftmaxWithLoss)
    x, t = rng.normal(size=(4, 5)), rng.integers(0, 3, 4)
    right = net.gradient(x, t)
    monkeypatch.setattr(net, "gradient", lambda x, t: right | {"W2": right["W2"] + 0.25})
    check = gradient_check(net, x, t)
    assert not check.passed
    assert check["W2"] == pytest.approx(0.25, abs=1e-8)
    assert {name for name, found in check.parameters.items() if not found.passed} == {"W2"}
    assert max(check[name] for name in check if name != "W2") < 1e-8
