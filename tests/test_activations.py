import numpy as np
import pytest
from conftest import assert_close, property_settings, variants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xnet
from xnet import activations, operations
from xnet.activations import identity, relu, sigmoid, softmax, step
from xnet.dtypes import dtype_name

NAMES = [type(operation).__name__ for operation in variants("pointwise", altered=False)]
FLOATING = [*(getattr(activations, name.lower()) for name in NAMES), softmax]
# Finite float32 values are finite float64 ones too, so one strategy serves both dtypes.
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
rows = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=finite)


def values(backend, array):
    return backend.to_numpy(array).tolist()


# -- all of them


@pytest.mark.parametrize("f", [*FLOATING, identity])
def test_shape_dtype_and_owner_are_kept(backend, dtype, rng, f):
    for shape in [(3,), (1,), (2, 3), (2, 3, 4), (0, 3), (2, 0, 3)]:
        y = f(backend.asarray(rng.normal(size=shape), dtype))
        assert backend.owns(y)
        assert y.shape == shape
        assert dtype_name(y.dtype) == dtype


@pytest.mark.parametrize(("f", "expected"), [(sigmoid, 0.5), (relu, 0.0), (step, 0)])
def test_no_axes_at_all(backend, f, expected):
    y = f(backend.asarray(0.0, "float64"))
    assert y.shape == ()
    assert float(y) == expected


@pytest.mark.parametrize("f", [*FLOATING, step])
def test_input_is_not_changed(backend, dtype, rng, f):
    before = rng.normal(size=(3, 4)).astype(dtype)
    x = backend.asarray(before.copy())
    f(x)
    np.testing.assert_array_equal(backend.to_numpy(x), before)


@pytest.mark.parametrize("f", FLOATING)
def test_strided_input(backend, dtype, rng, f):
    whole = rng.normal(size=(6, 8)).astype(dtype)
    x = backend.asarray(whole)
    for view, packed in [(x.T, whole.T), (x[::2, 1::3], whole[::2, 1::3])]:
        expected = backend.to_numpy(f(backend.asarray(packed.copy())))
        assert_close(backend, f(view), expected)


@pytest.mark.parametrize("f", [*FLOATING, step, identity])
@pytest.mark.parametrize("x", ["x", None, {1.0}])
def test_what_is_no_array_is_refused(f, x):
    with pytest.raises(TypeError, match=f"x is a {type(x).__name__}, expected an array"):
        f(x)


@pytest.mark.parametrize("f", FLOATING)
def test_lists_and_other_numbers_are_taken_as_float64(backend, f):
    """As a student writes them: softmax([1010, 1000, 990])."""
    expected = values(backend, f(backend.asarray(np.array([1010.0, 1000.0, 990.0]))))
    for x in ([1010, 1000, 990], (1010.0, 1000, 990), backend.asarray([1010, 1000, 990])):
        y = f(x)
        assert backend.owns(y)
        assert dtype_name(y.dtype) == "float64"
        assert values(backend, y) == expected
    for x in ([True, False], np.array([1, 0], "float16"), np.array([1, 0], "uint8")):
        with xnet.use_backend("numpy"):
            np.testing.assert_array_equal(f(x), f(np.array([1.0, 0.0])))


@pytest.mark.parametrize("f", [f for f in FLOATING if f is not softmax])
def test_a_number_is_taken(backend, f):
    expected = values(backend, f(backend.asarray([0.5, 2.0])))
    assert [float(f(0.5)), float(f(2))] == expected


@pytest.mark.parametrize("f", FLOATING)
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_bytes_in_the_other_order(name, f):
    """NumPy computes with arrays of the other byte order as with any other."""
    x = np.array([-1.0, 0.5, 2.0])
    with xnet.use_backend(name) as backend:
        assert_close(backend, f(x.astype(x.dtype.newbyteorder())), f(x))


@pytest.mark.parametrize("name", NAMES)
def test_every_pointwise_operation_is_a_function_of_its_name(backend, dtype, rng, name):
    cls, x = getattr(operations, name), backend.asarray(rng.normal(size=(3, 4)), dtype)
    f = getattr(activations, name.lower())
    assert f.__name__ == name.lower()
    assert f.__doc__ == cls.__doc__
    for settings in ({}, {k: 0.5 for k, v in cls().settings().items() if type(v) is float}):
        expected = backend.run(cls(**settings), x)
        np.testing.assert_array_equal(
            backend.to_numpy(f(x, **settings)), backend.to_numpy(expected)
        )


@pytest.mark.parametrize("name", ["affine", "dropout", "softmaxwithloss", "Tanh", "nothing"])
def test_what_is_no_activation_is_no_function(name):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(activations, name)


# -- each in turn


@pytest.mark.parametrize("kind", ["float32", "float64", "int64", "int32"])
def test_step(backend, kind):
    y = step(backend.asarray(np.array([-2, 0, 1, 3]), kind))
    assert dtype_name(y.dtype) == "int64"
    assert values(backend, y) == [0, 0, 1, 1]


def test_step_of_extremes(backend):
    x = backend.asarray([-np.inf, -5e-324, -0.0, 5e-324, np.inf, np.nan])
    assert values(backend, step(x)) == [0, 0, 0, 1, 1, 0]


def test_identity_is_the_very_array(backend):
    x = backend.asarray([1.0, 2.0])
    assert identity(x) is x


def test_relu(backend, dtype):
    tiny = float(np.finfo(dtype).smallest_subnormal)
    x = backend.asarray([-np.inf, -1.0, -tiny, -0.0, 0.0, tiny, 2.5, np.inf], dtype)
    y = backend.to_numpy(relu(x))
    assert y.tolist() == [0, 0, 0, 0, 0, tiny, 2.5, np.inf]
    assert not np.signbit(y).any()


def test_relu_keeps_nan(backend, dtype):
    y = backend.to_numpy(relu(backend.asarray([np.nan, 1.0], dtype)))
    np.testing.assert_array_equal(y, [np.nan, 1])


def test_sigmoid_values(backend, dtype):
    x = np.linspace(-80, 80, 321).astype(dtype)
    expected = 1 / (1 + np.exp(-x.astype(np.longdouble)))
    assert_close(backend, sigmoid(backend.asarray(x)), expected.astype(np.float64), ulps=6)


def test_sigmoid_of_extremes(backend, dtype):
    largest = float(np.finfo(dtype).max)
    x = [-np.inf, -largest, -1e4, 0.0, 1e4, largest, np.inf, np.nan]
    y = backend.to_numpy(sigmoid(backend.asarray(x, dtype)))
    np.testing.assert_array_equal(y, [0, 0, 0, 0.5, 1, 1, 1, np.nan])


def test_sigmoid_keeps_digits_where_it_is_tiny(backend):
    y = sigmoid(backend.asarray([-745.0, -740.0, -709.0, -40.0]))
    expected = np.exp(np.array([-745.0, -740.0, -709.0, -40.0], np.longdouble))
    error = np.abs(backend.to_numpy(y) - expected)
    assert (error <= 4 * np.spacing(expected.astype(np.float64))).all()


@property_settings
@given(x=rows)
def test_sigmoid_of_minus_x(backend, dtype, x):
    x = backend.asarray(x, dtype)
    y, mirrored = backend.to_numpy(sigmoid(x)), backend.to_numpy(sigmoid(-x))
    np.testing.assert_allclose(mirrored, 1 - y, rtol=0, atol=4 * np.finfo(dtype).eps)
    assert ((y >= 0) & (y <= 1)).all()


@property_settings
@given(x=rows)
def test_softmax_is_a_probability(backend, dtype, x):
    y = backend.to_numpy(softmax(backend.asarray(x, dtype)))
    assert ((y >= 0) & (y <= 1)).all()
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=8 * np.finfo(dtype).eps)
    # The largest score has the largest probability.
    top = np.take_along_axis(y, x.argmax(axis=-1)[..., None], axis=-1)
    assert (top == y.max(axis=-1, keepdims=True)).all()


@property_settings
@given(x=hnp.arrays(np.int16, (2, 5)), shift=st.integers(-1000, 1000))
def test_softmax_does_not_change_with_a_shift(backend, dtype, x, shift):
    # Small integers: neither x + shift nor its distance from the maximum is rounded.
    x = backend.asarray(x, dtype)
    y, shifted = softmax(x), softmax(x + float(shift))
    np.testing.assert_array_equal(backend.to_numpy(y), backend.to_numpy(shifted))


def test_softmax_of_a_batch_is_that_of_its_rows(backend, dtype, rng):
    x = rng.normal(size=(2, 3, 5)).astype(dtype)
    y = softmax(backend.asarray(x))
    for index in np.ndindex(2, 3):
        row = backend.to_numpy(softmax(backend.asarray(x[index])))
        assert_close(backend, y[(*index, ...)], row)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([1e4, 0.0, -1e4], [1, 0, 0]),
        ([255.0] * 4, [0.25] * 4),
        ([-np.inf, 0.0, 0.0], [0, 0.5, 0.5]),
        ([7.0], [1]),
        ([-np.inf, -np.inf], [np.nan, np.nan]),
        ([np.inf, 0.0], [np.nan, np.nan]),
        ([np.inf, np.inf], [np.nan, np.nan]),
        ([0.0, np.nan, 1.0], [np.nan] * 3),
        ([np.nan, 0.0, 1.0], [np.nan] * 3),
        ([1.0, 0.0, np.nan], [np.nan] * 3),
    ],
)
def test_softmax_of_extremes(backend, dtype, x, expected):
    y = backend.to_numpy(softmax(backend.asarray([x, [0.0] * len(x)], dtype)))
    np.testing.assert_array_equal(y[0], np.asarray(expected, dtype))
    np.testing.assert_array_equal(y[1], np.full(len(x), 1 / np.asarray(len(x), dtype)))


def test_softmax_of_the_largest_numbers(backend, dtype):
    largest = float(np.finfo(dtype).max)
    x = backend.asarray([[largest, -largest], [-largest, -largest], [largest, largest]], dtype)
    assert values(backend, softmax(x)) == [[1, 0], [0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_softmax_needs_classes(backend, shape):
    x = backend.xp.ones(shape, dtype=backend.xp.float64)
    with pytest.raises(ValueError, match=r"softmax: x has shape \(.*\), expected \(C,\) or"):
        softmax(x)
