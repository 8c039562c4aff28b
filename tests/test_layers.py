import math

import numpy as np
import pytest
from conftest import assert_close, property_settings
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet.activations import softmax
from xnet.backend import dtype_name
from xnet.errors import BackendError
from xnet.gradient import numerical_gradient
from xnet.layers import (
    ACTIVATIONS,
    LAYERS,
    LOSSES,
    Add,
    Affine,
    IdentityWithLoss,
    Mul,
    ReLU,
    Sigmoid,
    SoftmaxWithLoss,
)
from xnet.losses import cross_entropy_error, mean_squared_error


def make_affine(backend, rng, inputs=6, outputs=4, dtype="float64"):
    W, b = rng.normal(size=(inputs, outputs)), rng.normal(size=outputs)
    return Affine.from_params(backend.asarray(W, dtype), backend.asarray(b, dtype))


def make(kind, backend, rng, dtype="float64"):
    return make_affine(backend, rng, dtype=dtype) if kind is Affine else kind()


def away_from_zero(x):
    """`x` with no element so near to 0 that ReLU's kink is within a step of it."""
    return x + np.copysign(0.01, x)


# -- Mul and Add


def test_mul_and_add_of_arrays(backend, rng, dtype):
    x, y, dout = (backend.asarray(rng.normal(size=(2, 3)), dtype) for _ in range(3))
    mul, add = Mul(), Add()
    host_x, host_y, host_dout = map(backend.to_numpy, (x, y, dout))
    np.testing.assert_array_equal(backend.to_numpy(mul.forward(x, y)), host_x * host_y)
    np.testing.assert_array_equal(backend.to_numpy(add.forward(x, y)), host_x + host_y)
    dx, dy = mul.backward(dout)
    np.testing.assert_array_equal(backend.to_numpy(dx), host_dout * host_y)
    np.testing.assert_array_equal(backend.to_numpy(dy), host_dout * host_x)
    for gradient in add.backward(dout):
        np.testing.assert_array_equal(backend.to_numpy(gradient), host_dout)
        assert dtype_name(gradient.dtype) == dtype
        assert gradient is not dout  # to change one branch's gradient must not change the other's


# -- every layer: forward, backward, and what both leave alone


@pytest.mark.parametrize("shape", [(6,), (1, 6), (5, 6), (5, 2, 3), (5, 1, 3, 2)])
@pytest.mark.parametrize("kind", [Affine, ReLU, Sigmoid])
def test_backward_is_the_numerical_gradient(backend, rng, kind, shape):
    layer = make(kind, backend, rng)
    x = backend.asarray(away_from_zero(rng.normal(size=shape)))
    y = layer.forward(x)
    dout = backend.asarray(rng.normal(size=y.shape))
    dx = layer.backward(dout)
    assert dx.shape == shape

    def f(_):
        return backend.sum(layer(x) * dout)

    gradients = {"x": (x, dx)} | {k: (p, layer.grads[k]) for k, p in layer.params.items()}
    for array, exact in gradients.values():
        numerical = backend.to_numpy(numerical_gradient(f, array))
        np.testing.assert_allclose(backend.to_numpy(exact), numerical, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (5, 2, 3), (0, 6)])
@pytest.mark.parametrize("kind", [Affine, ReLU, Sigmoid])
def test_dtype_shape_and_owner(backend, dtype, rng, kind, shape):
    layer = make(kind, backend, rng, dtype)
    x = backend.asarray(rng.normal(size=shape), dtype)
    called, y = layer(x), layer.forward(x)
    expected = shape if kind is not Affine else (*shape[: len(shape) > 1], 4)
    assert y.shape == called.shape == expected
    dx = layer.backward(y)
    assert dx.shape == shape
    for name, gradient in layer.grads.items():
        assert gradient.shape == layer.params[name].shape
    for array in (called, y, dx, *layer.grads.values()):
        assert backend.owns(array)
        assert dtype_name(array.dtype) == dtype


@pytest.mark.parametrize("kind", [Affine, ReLU, Sigmoid])
def test_one_sample_is_a_batch_of_one(backend, dtype, rng, kind):
    layer = make(kind, backend, rng, dtype)
    x = rng.normal(size=6).astype(dtype)
    one, batch = layer.forward(backend.asarray(x)), layer(backend.asarray(x[None]))
    np.testing.assert_array_equal(backend.to_numpy(one), backend.to_numpy(batch)[0])
    dout = rng.normal(size=one.shape).astype(dtype)
    dx, grads = layer.backward(backend.asarray(dout)), layer.grads
    layer.forward(backend.asarray(x[None]))
    dx_batch = layer.backward(backend.asarray(dout[None]))
    np.testing.assert_array_equal(backend.to_numpy(dx), backend.to_numpy(dx_batch)[0])
    for name, gradient in layer.grads.items():
        np.testing.assert_array_equal(backend.to_numpy(grads[name]), backend.to_numpy(gradient))


@pytest.mark.parametrize("kind", [Affine, ReLU, Sigmoid])
def test_nothing_handed_in_is_changed(backend, dtype, rng, kind):
    layer = make(kind, backend, rng, dtype)
    params = {name: backend.to_numpy(array).copy() for name, array in layer.params.items()}
    host_x = rng.normal(size=(5, 6)).astype(dtype)
    x = backend.asarray(host_x.copy())
    layer(x)
    y = layer.forward(x)
    host_dout = rng.normal(size=y.shape).astype(dtype)
    dout = backend.asarray(host_dout.copy())
    layer.backward(dout)
    np.testing.assert_array_equal(backend.to_numpy(x), host_x)
    np.testing.assert_array_equal(backend.to_numpy(dout), host_dout)
    for name, before in params.items():
        np.testing.assert_array_equal(backend.to_numpy(layer.params[name]), before)


@pytest.mark.parametrize("kind", [Affine, ReLU, Sigmoid])
def test_a_call_remembers_nothing(backend, rng, kind):
    layer, other = (make(kind, backend, np.random.default_rng(1)) for _ in range(2))
    x, later = (backend.asarray(rng.normal(size=(5, 6))) for _ in range(2))
    dout = backend.asarray(rng.normal(size=layer.forward(x).shape))
    other.forward(x)
    layer(later)
    dx, expected = layer.backward(dout), other.backward(dout)
    np.testing.assert_array_equal(backend.to_numpy(dx), backend.to_numpy(expected))


@pytest.mark.parametrize("kind", [Affine, ReLU, Sigmoid])
def test_backward_again_gives_new_arrays(backend, rng, kind):
    """A gradient that a caller keeps must not change under it."""
    layer = make(kind, backend, rng)
    dout = backend.asarray(np.ones(layer.forward(backend.asarray(rng.normal(size=(5, 6)))).shape))
    kept = [layer.backward(dout), *layer.grads.values()]
    before = [backend.to_numpy(array).copy() for array in kept]
    layer.forward(backend.asarray(rng.normal(size=(5, 6))))
    layer.backward(2 * dout)
    for array, values in zip(kept, before, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(array), values)


@pytest.mark.parametrize("kind", [Affine, ReLU, Sigmoid])
def test_strided_input(backend, dtype, rng, kind):
    layer = make(kind, backend, rng, dtype)
    wide = backend.asarray(rng.normal(size=(12, 10)), dtype)
    wide_dout = backend.asarray(rng.normal(size=(12, 10)), dtype)
    outputs = 4 if kind is Affine else 6
    for cut in (lambda a, m: a.T[::2, :m], lambda a, m: a[::2, :m]):
        x, dout = cut(wide, 6), cut(wide_dout, outputs)
        y, dx = layer.forward(x), layer.backward(dout)
        packed = [backend.asarray(backend.to_numpy(array).copy()) for array in (x, dout)]
        # Elementwise the very same; a product may be added up in another order.
        close = 32 * np.finfo(dtype).eps if kind is Affine else 0
        for again, array in [(layer.forward(packed[0]), y), (layer.backward(packed[1]), dx)]:
            again, array = backend.to_numpy(again), backend.to_numpy(array)
            np.testing.assert_allclose(again, array, rtol=close, atol=close)


@pytest.mark.parametrize("kind", [Affine, ReLU, Sigmoid, SoftmaxWithLoss, IdentityWithLoss])
def test_backward_before_forward(backend, rng, kind):
    layer = make(kind, backend, rng)
    with pytest.raises(RuntimeError, match=f"{kind.__name__}: backward was called before forward"):
        layer.backward(backend.asarray([[1.0]]) if kind in (Affine, ReLU, Sigmoid) else 1.0)


@pytest.mark.parametrize("kind", [Affine, ReLU, Sigmoid])
@pytest.mark.parametrize("shape", [(5,), (1, 4), (5, 3), (5, 4, 1), ()])
def test_gradient_of_a_wrong_shape(backend, rng, kind, shape):
    layer = make(kind, backend, rng)
    y = layer.forward(backend.asarray(rng.normal(size=(5, 6))))
    message = rf"{kind.__name__}: dout has shape .*, expected \(5, {y.shape[1]}\)"
    with pytest.raises(ValueError, match=message):
        layer.backward(backend.asarray(np.ones(shape)))


@pytest.mark.parametrize("kind", [Affine, Sigmoid])
@pytest.mark.parametrize(("kept", "given"), [("float32", "float64"), ("float64", "float32")])
def test_gradient_of_another_dtype(backend, rng, kind, kept, given):
    """Float32 stays float32: a float64 gradient must not widen a layer's own without a word."""
    layer = make(kind, backend, rng, kept)
    y = layer.forward(backend.asarray(rng.normal(size=(5, 6)), kept))
    with pytest.raises(ValueError, match=f"dout is {given}"):
        layer.backward(backend.asarray(np.ones(y.shape), given))


@pytest.mark.parametrize("kind", [Affine, ReLU, Sigmoid])
def test_lists_are_refused(rng, kind):
    with xnet.use_backend("numpy") as backend:
        layer = make(kind, backend, rng)
        with pytest.raises(TypeError, match="x is a list, expected an array"):
            layer([[1.0] * 6])
        layer.forward(np.ones((1, 6)))
        with pytest.raises(TypeError, match="dout is a list, expected an array"):
            layer.backward([[1.0] * 4])


@pytest.mark.parametrize("kind", [Affine, ReLU, Sigmoid])
def test_arrays_of_two_devices_are_refused(rng, kind):
    numpy, strict = xnet.resolve("numpy"), xnet.resolve("strict")
    layer = make(kind, strict, rng)
    y = layer.forward(strict.asarray(rng.normal(size=(5, 6))))
    with pytest.raises(BackendError, match=r"dout is on numpy, .* is on strict"):
        layer.backward(np.ones(y.shape))
    if kind is Affine:
        with pytest.raises(BackendError, match="x is on numpy, W is on strict"):
            layer(numpy.asarray(np.ones((5, 6))))


@pytest.mark.parametrize("kind", [ReLU, Sigmoid])
def test_integers_are_refused(backend, kind):
    with pytest.raises(ValueError, match="dtype of x is int64, expected float32 or float64"):
        kind().forward(backend.asarray([1, 2]))


# -- Affine


@property_settings
@given(
    n=st.integers(0, 5),
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    outputs=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_affine_of_any_shape(backend, dtype, n, shape, outputs, seed):
    rng = np.random.default_rng(seed)
    inputs = math.prod(shape)
    layer = make_affine(backend, rng, inputs, outputs, dtype)
    x = rng.normal(size=(n, *shape)).astype(dtype)
    dout = rng.normal(size=(n, outputs)).astype(dtype)
    W, b = (backend.to_numpy(a).astype(np.float64) for a in (layer.W, layer.b))
    flat = x.reshape(n, inputs).astype(np.float64)
    eps = np.finfo(dtype).eps

    def check(actual, expected, terms, magnitude):
        actual = backend.to_numpy(actual)
        assert actual.shape == expected.shape
        assert (np.abs(actual - expected) <= terms * eps * magnitude).all()

    y = layer.forward(backend.asarray(x))
    check(y, flat @ W + b, inputs + 2, np.abs(flat) @ np.abs(W) + np.abs(b))
    dx = layer.backward(backend.asarray(dout))
    magnitude = (np.abs(dout) @ np.abs(W).T).reshape(x.shape)
    check(dx, (dout @ W.T).reshape(x.shape), outputs + 1, magnitude)
    check(layer.dW, flat.T @ dout, n + 1, np.abs(flat).T @ np.abs(dout))
    check(layer.db, dout.sum(axis=0), n + 1, np.abs(dout).sum(axis=0))


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 3), (3, 0), (-1, 3), (3, -2)])
def test_affine_sizes(inputs, outputs):
    with pytest.raises(ValueError, match=r"Affine: (inputs|outputs) is -?\d, expected at least 1"):
        Affine(inputs, outputs)


@pytest.mark.parametrize("std", ["hee", "", -0.1, math.nan, math.inf])
def test_affine_initial_std(std):
    with pytest.raises(ValueError, match=r"weight_init_std is .*, expected a number .* 'he' or"):
        Affine(2, 3, std)


@pytest.mark.parametrize(
    ("std", "expected"),
    [("he", math.sqrt(2 / 300)), ("xavier", math.sqrt(2 / 500)), (0.01, 0.01), (0, 0.0)],
)
def test_affine_initial_parameters(backend, dtype, std, expected):
    layer = Affine(300, 200, std)
    layer.initialize(np.random.default_rng(0), dtype, backend)
    assert {name: dtype_name(array.dtype) for name, array in layer.params.items()} == {
        "W": dtype,
        "b": dtype,
    }
    W = backend.to_numpy(layer.W)
    # Of 60,000 draws the mean errs by 0.4 % of the deviation, the deviation by 0.3 %.
    assert W.std() == pytest.approx(expected, rel=0.015)
    assert abs(W.mean()) <= 0.02 * expected
    assert not backend.to_numpy(layer.b).any()


def test_affine_without_parameters(backend):
    with pytest.raises(RuntimeError, match=r"Affine\(2, 3\) has no parameters yet.*initialize"):
        Affine(2, 3)(backend.asarray([[1.0, 2.0]]))


@pytest.mark.parametrize(
    ("W", "b", "message"),
    [
        (np.ones(3), np.ones(3), r"W has shape \(3,\), expected \(D, M\)"),
        (np.ones((2, 3, 1)), np.ones(3), r"W has shape \(2, 3, 1\), expected \(D, M\)"),
        (np.ones((0, 3)), np.ones(3), r"W has shape \(0, 3\), expected \(D, M\)"),
        (np.ones((2, 3)), np.ones(2), r"b has shape \(2,\), expected \(3,\) for W's columns"),
        (np.ones((2, 3)), np.ones((1, 3)), r"b has shape \(1, 3\), expected \(3,\)"),
        (np.ones((2, 3)), np.ones(3, "float32"), "W is float64, b is float32"),
        (np.ones((2, 3), int), np.ones(3), "dtype of W is int64, expected float32 or float64"),
        (np.ones((2, 3)), np.ones(3, int), "dtype of b is int64, expected float32 or float64"),
    ],
)
def test_affine_from_params_that_do_not_fit(backend, W, b, message):
    with pytest.raises(ValueError, match=message):
        Affine.from_params(backend.asarray(W), backend.asarray(b))


def test_affine_from_params_of_two_devices():
    strict = xnet.resolve("strict")
    with pytest.raises(BackendError, match="W is on numpy, b is on strict"):
        Affine.from_params(np.ones((2, 1)), strict.asarray([1.0]))


def test_affine_from_params_keeps_the_arrays(backend):
    W, b = backend.asarray([[1.0, 2.0]]), backend.asarray([3.0, 4.0])
    layer = Affine.from_params(W, b)
    assert layer.W is W
    assert layer.b is b
    assert (layer.inputs, layer.outputs) == (1, 2)


@pytest.mark.parametrize(
    ("shape", "features"), [((5,), 5), ((4, 5), 5), ((4, 2, 2), 4), ((4, 0), 0)]
)
def test_affine_feature_count(backend, rng, shape, features):
    message = f"Affine: x has {features} features, W expects 6"
    for call in (make_affine(backend, rng), make_affine(backend, rng).forward):
        with pytest.raises(ValueError, match=message):
            call(backend.asarray(np.ones(shape)))


def test_affine_of_a_number(backend, rng):
    """One number is no sample, even where samples have one feature."""
    with pytest.raises(ValueError, match=r"Affine: x has shape \(\)"):
        make_affine(backend, rng, inputs=1)(backend.asarray(1.0))


@pytest.mark.parametrize("kind", ["float32", "int64"])
def test_affine_of_another_dtype(backend, rng, kind):
    with pytest.raises(ValueError, match=f"Affine: x is {kind}, W is float64; nothing is conv"):
        make_affine(backend, rng)(backend.asarray(np.ones((5, 6)), kind))


# -- ReLU and Sigmoid


def test_relu_has_no_gradient_at_zero(backend, dtype):
    layer = ReLU()
    layer.forward(backend.asarray([-1.0, -0.0, 0.0, 1.0], dtype))
    dx = layer.backward(backend.asarray([1.0, 2.0, 3.0, 4.0], dtype))
    assert backend.to_numpy(dx).tolist() == [0, 0, 0, 4]
    assert backend.to_numpy(layer.mask).tolist() == [True, True, True, False]


def test_relu_passes_nan_and_infinity_on(backend, dtype):
    layer = ReLU()
    y = layer.forward(backend.asarray([np.nan, np.inf, -np.inf], dtype))
    np.testing.assert_array_equal(backend.to_numpy(y), [np.nan, np.inf, 0])
    dx = layer.backward(backend.asarray([1.0, np.inf, np.inf], dtype))
    np.testing.assert_array_equal(backend.to_numpy(dx), [1, np.inf, 0])


def test_sigmoid_saturates_in_silence(backend, dtype):
    layer = Sigmoid()
    largest = float(np.finfo(dtype).max)
    y = layer.forward(backend.asarray([-largest, largest, 0.0], dtype))
    assert backend.to_numpy(y).tolist() == [0, 1, 0.5]
    dx = layer.backward(backend.asarray([1.0, 1.0, 1.0], dtype))
    assert backend.to_numpy(dx).tolist() == [0, 0, 0.25]


# -- losses

HARD = [[20.0, -20.0, 0.0], [-30.0, 30.0, 30.0], [0.1, 0.2, 0.3], [16.0, 0.0, -1.0]]


@pytest.mark.parametrize("kind", [SoftmaxWithLoss, IdentityWithLoss])
@pytest.mark.parametrize("labels", ["indices", "one-hot", "soft"])
@pytest.mark.parametrize("dout", [1.0, -2.5])
def test_loss_backward_is_the_numerical_gradient(backend, rng, kind, labels, dout):
    """Badly misclassified samples included: there (y - t) / N is wrong by far more than 1e-8."""
    layer = kind()
    x = backend.asarray(HARD)
    wrong = np.array([1, 0, 2, 1])
    t = {"indices": wrong, "one-hot": np.eye(3)[wrong], "soft": rng.random((4, 3))}[labels]
    t = backend.asarray(t)
    layer.forward(x, t)
    exact = backend.to_numpy(layer.backward(dout))
    numerical = backend.to_numpy(numerical_gradient(lambda x: dout * layer.forward(x, t), x))
    np.testing.assert_allclose(exact, numerical, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", [SoftmaxWithLoss, IdentityWithLoss])
def test_loss_of_one_sample(backend, kind):
    layer = kind()
    x = backend.asarray(HARD[3])
    for t in (backend.asarray(1), backend.asarray([0, 1, 0])):
        loss = layer.forward(x, t)
        assert loss.shape == ()
        exact = layer.backward()
        assert exact.shape == x.shape
        numerical = numerical_gradient(lambda x, t=t: layer.forward(x, t), x)
        np.testing.assert_allclose(
            backend.to_numpy(exact), backend.to_numpy(numerical), rtol=0, atol=1e-8
        )


def test_losses_are_the_functions(backend, dtype, rng):
    x, t = backend.asarray(rng.normal(size=(4, 3)), dtype), backend.asarray([0, 2, 1, 1])
    loss = SoftmaxWithLoss().forward(x, t)
    expected = backend.to_numpy(cross_entropy_error(softmax(x), t))
    assert_close(backend, loss, expected, ulps=8)
    loss = IdentityWithLoss().forward(x, t)
    assert_close(backend, loss, backend.to_numpy(mean_squared_error(x, t)), ulps=0)


def test_what_loss_layers_predict(backend, dtype, rng):
    x = backend.asarray(rng.normal(size=(4, 3)), dtype)
    np.testing.assert_array_equal(
        backend.to_numpy(SoftmaxWithLoss()(x)), backend.to_numpy(softmax(x))
    )
    np.testing.assert_array_equal(backend.to_numpy(IdentityWithLoss()(x)), backend.to_numpy(x))


@pytest.mark.parametrize("kind", [SoftmaxWithLoss, IdentityWithLoss])
@pytest.mark.parametrize("dout", [1, 0.5, np.float64(0.5)])
def test_loss_keeps_dtype_and_inputs(backend, dtype, rng, kind, dout):
    """NumPy's own float64 is a Python float too, and must not widen float32."""
    layer = kind()
    host_x, host_t = rng.normal(size=(4, 3)).astype(dtype), np.eye(3, dtype=dtype)[[0, 2, 1, 1]]
    x, t = backend.asarray(host_x.copy()), backend.asarray(host_t.copy())
    loss = layer.forward(x, t)
    predicted = backend.to_numpy(layer.y).copy()
    dx = layer.backward(dout)
    assert dtype_name(loss.dtype) == dtype_name(dx.dtype) == dtype
    assert backend.owns(dx)
    np.testing.assert_array_equal(backend.to_numpy(x), host_x)
    np.testing.assert_array_equal(backend.to_numpy(t), host_t)
    np.testing.assert_array_equal(backend.to_numpy(layer.y), predicted)


def test_loss_of_extreme_scores_is_finite_and_silent(backend, dtype):
    largest = float(np.finfo(dtype).max)
    layer = SoftmaxWithLoss()
    x = backend.asarray([[largest, -largest, 0.0], [1e4, -1e4, -np.inf]], dtype)
    loss = layer.forward(x, backend.asarray([1, 2]))
    assert float(loss) == pytest.approx(-math.log(1e-7), rel=1e-6)
    assert np.isfinite(backend.to_numpy(layer.backward())).all()


@pytest.mark.parametrize("kind", [SoftmaxWithLoss, IdentityWithLoss])
@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (np.ones((2, 3)), np.array([0, 3]), r"t has label 3, expected 0\.\.2"),
        (np.ones((2, 3)), np.array([0]), "t has 1 labels, y has 2 samples"),
        (np.ones((2, 3)), np.ones((2, 2)), r"t has shape \(2, 2\)"),
        (np.ones((0, 3)), np.ones((0, 3)), "the batch is empty"),
        (np.ones((2, 3), int), np.array([0, 1]), "is int64, expected float32 or float64"),
    ],
)
def test_loss_refuses_misfits(backend, kind, x, t, message):
    with pytest.raises(ValueError, match=message):
        kind().forward(backend.asarray(x), backend.asarray(t))


def test_probabilities_of_integers_are_refused(backend):
    with pytest.raises(ValueError, match="x is int64, expected float32 or float64"):
        SoftmaxWithLoss()(backend.asarray([[1, 2, 3]]))


@pytest.mark.parametrize("kind", [SoftmaxWithLoss, IdentityWithLoss])
def test_loss_refuses_arrays_of_two_devices(kind):
    with pytest.raises(BackendError, match="is on numpy, t is on strict"):
        kind().forward(np.ones((1, 2)), xnet.resolve("strict").asarray([1]))


# -- names


def test_repr():
    assert repr(Affine(2, 3)) == "Affine(2, 3)"
    assert [repr(kind()) for kind in (ReLU, Sigmoid)] == ["ReLU()", "Sigmoid()"]
    assert repr(SoftmaxWithLoss()) == "SoftmaxWithLoss()"


def test_layers_by_name():
    for registry in (LAYERS, LOSSES):
        assert all(cls.__name__ == name for name, cls in registry.items())
    assert set(LAYERS) == {"Affine", "ReLU", "Sigmoid"}
    assert set(LOSSES) == {"SoftmaxWithLoss", "IdentityWithLoss"}
    assert (ACTIVATIONS["sigmoid"], ACTIVATIONS["relu"]) == (Sigmoid, ReLU)


@pytest.mark.parametrize("cls", LAYERS.values())
def test_config_makes_the_layer_again(cls):
    config = {"inputs": 2, "outputs": 3} if cls is Affine else {}
    assert cls(**config).config() == config


@pytest.mark.parametrize("kind", [Mul, Add])
def test_two_shapes_are_refused(kind):
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\), y has \(3,\), expected one shape"):
        kind().forward(np.ones((2, 3)), np.ones(3))


def test_mul_backward_before_forward():
    with pytest.raises(RuntimeError, match="Mul: backward was called before forward"):
        Mul().backward(1.0)
