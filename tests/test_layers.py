import copy
import math
import pickle

import numpy as np
import pytest
from conftest import LAYER_KINDS, make_layer, make_loss, property_settings, smooth, variants
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet import layers, operations
from xnet.activations import softmax
from xnet.dtypes import dtype_name
from xnet.errors import BackendError
from xnet.gradient import numerical_gradient
from xnet.layers import (
    Add,
    Affine,
    IdentityWithLoss,
    Layer,
    LossLayer,
    Mul,
    ReLU,
    Sigmoid,
    SoftmaxWithLoss,
)
from xnet.losses import mean_squared_error
from xnet.random import Generator

LAYERS = variants(*LAYER_KINDS, altered=False)
LOSSES = variants("loss", altered=False)

every_layer = pytest.mark.parametrize("operation", LAYERS, ids=repr)
one_of_each_kind = pytest.mark.parametrize(
    "operation", list({operation.fuses: operation for operation in LAYERS}.values()), ids=repr
)
"""For what `Layer` itself sees to, whatever the operation."""
every_loss = pytest.mark.parametrize("operation", LOSSES, ids=repr)
with_parameters = pytest.mark.parametrize(
    "operation", [operation for operation in LAYERS if operation.parameters], ids=repr
)


def make_affine(backend, rng, inputs=6, outputs=4, dtype="float64"):
    return make_layer(operations.Affine(inputs, outputs), backend, rng, dtype)


def output_shape(operation, shape):
    """Of an input's shape: what takes rows gives rows."""
    if operation.fuses == "pointwise":
        return shape
    width = operation.widths[1] or math.prod(shape[len(shape) > 1 :])
    return (*shape[: len(shape) > 1], width)


@pytest.fixture
def same_draws(monkeypatch):
    """Random numbers that are the same at every call."""
    monkeypatch.setattr(layers, "_draw", lambda *asked: Generator(5).uniform(*asked))


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


@pytest.mark.parametrize("kind", [Mul, Add])
def test_two_shapes_are_refused(kind):
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\), y has \(3,\), expected one shape"):
        kind().forward(np.ones((2, 3)), np.ones(3))


def test_mul_backward_before_forward():
    with pytest.raises(RuntimeError, match="Mul: backward was called before forward"):
        Mul().backward(1.0)


# -- every layer: forward, backward, and what both leave alone


@pytest.mark.parametrize("shape", [(6,), (1, 6), (5, 6), (5, 2, 3), (5, 1, 3, 2)])
@pytest.mark.parametrize("operation", variants(*LAYER_KINDS), ids=repr)
@pytest.mark.usefixtures("same_draws")
def test_backward_is_the_numerical_gradient(backend, rng, operation, shape):
    """In training: by the batch's own statistics, and with the same numbers dropped."""
    layer = make_layer(operation, backend, rng)
    x = backend.asarray(smooth(rng.normal(size=shape), operation))
    y = layer.forward(x)
    dout = backend.asarray(rng.normal(size=y.shape))
    dx = layer.backward(dout)
    assert dx.shape == shape
    gradients = {"x": (x, dx)} | {k: (p, layer.grads[k]) for k, p in layer.params.items()}

    def f(_):
        return backend.sum(layer.forward(x) * dout)

    for array, exact in gradients.values():
        once, twice = (backend.to_numpy(numerical_gradient(f, array, h)) for h in (5e-4, 1e-3))
        # Without its h^2 term (Richardson) a difference is off by h^4 |f'''''| / 7.5 = 1e-14
        # and by the rounding of f, u |f| / h = 1e-12.
        expected = (4 * once - twice) / 3
        np.testing.assert_allclose(backend.to_numpy(exact), expected, rtol=0, atol=1e-10)


@every_layer
def test_dtype_shape_and_owner(backend, dtype, rng, operation):
    layer = make_layer(operation, backend, rng, dtype)
    for shape in [(6,), (5, 6), (5, 2, 3), (0, 6)]:
        x = backend.asarray(rng.normal(size=shape), dtype)
        called, y = layer(x), layer.forward(x)
        assert y.shape == called.shape == output_shape(operation, shape)
        dx = layer.backward(y)
        assert dx.shape == shape
        for name, gradient in layer.grads.items():
            assert gradient.shape == layer.params[name].shape
        for array in (called, y, dx, *layer.grads.values(), *layer.state.values()):
            assert backend.owns(array)
            assert dtype_name(array.dtype) == dtype


@every_layer
@pytest.mark.usefixtures("same_draws")
def test_one_sample_is_a_batch_of_one(backend, dtype, rng, operation):
    layer = make_layer(operation, backend, rng, dtype)
    x = rng.normal(size=6).astype(dtype)
    one, batch = layer(backend.asarray(x)), layer(backend.asarray(x[None]))
    np.testing.assert_array_equal(backend.to_numpy(one), backend.to_numpy(batch)[0])
    one = layer.forward(backend.asarray(x))
    dout = rng.normal(size=one.shape).astype(dtype)
    dx, grads = layer.backward(backend.asarray(dout)), layer.grads
    batch = layer.forward(backend.asarray(x[None]))
    dx_batch = layer.backward(backend.asarray(dout[None]))
    np.testing.assert_array_equal(backend.to_numpy(one), backend.to_numpy(batch)[0])
    np.testing.assert_array_equal(backend.to_numpy(dx), backend.to_numpy(dx_batch)[0])
    for name, gradient in layer.grads.items():
        np.testing.assert_array_equal(backend.to_numpy(grads[name]), backend.to_numpy(gradient))


@every_layer
def test_nothing_handed_in_is_changed(backend, dtype, rng, operation):
    layer = make_layer(operation, backend, rng, dtype)
    kept = {**layer.params, **layer.state}  # state moves by being replaced
    before = {name: backend.to_numpy(array).copy() for name, array in kept.items()}
    host_x = rng.normal(size=(5, 6)).astype(dtype)
    x = backend.asarray(host_x.copy())
    layer(x)
    y = layer.forward(x)
    host_dout = rng.normal(size=y.shape).astype(dtype)
    dout = backend.asarray(host_dout.copy())
    layer.backward(dout)
    np.testing.assert_array_equal(backend.to_numpy(x), host_x)
    np.testing.assert_array_equal(backend.to_numpy(dout), host_dout)
    for name, values in before.items():
        np.testing.assert_array_equal(backend.to_numpy(kept[name]), values)
    for name, array in layer.params.items():
        assert array is kept[name]


@every_layer
@pytest.mark.usefixtures("same_draws")
def test_a_call_remembers_nothing(backend, rng, operation):
    layer, other = (make_layer(operation, backend, np.random.default_rng(1)) for _ in range(2))
    x, later = (backend.asarray(rng.normal(size=(5, 6))) for _ in range(2))
    dout = backend.asarray(rng.normal(size=layer.forward(x).shape))
    other.forward(x)
    state = dict(layer.state)
    layer(later)
    assert all(layer.state[name] is array for name, array in state.items())
    dx, expected = layer.backward(dout), other.backward(dout)
    np.testing.assert_array_equal(backend.to_numpy(dx), backend.to_numpy(expected))


@every_layer
def test_backward_again_gives_new_arrays(backend, rng, operation):
    """A gradient that a caller keeps must not change under it."""
    layer = make_layer(operation, backend, rng)
    dout = backend.asarray(np.ones(layer.forward(backend.asarray(rng.normal(size=(5, 6)))).shape))
    kept = [layer.backward(dout), *layer.grads.values()]
    before = [backend.to_numpy(array).copy() for array in kept]
    layer.forward(backend.asarray(rng.normal(size=(5, 6))))
    layer.backward(2 * dout)
    for array, values in zip(kept, before, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(array), values)


@every_layer
@pytest.mark.usefixtures("same_draws")
def test_strided_input(backend, dtype, rng, operation):
    layer = make_layer(operation, backend, rng, dtype)
    wide = backend.asarray(rng.normal(size=(12, 10)), dtype)
    wide_dout = backend.asarray(rng.normal(size=(12, 10)), dtype)
    outputs = operation.widths[1] or 6
    for cut in (lambda a, m: a.T[::2, :m], lambda a, m: a[::2, :m]):
        x, dout = cut(wide, 6), cut(wide_dout, outputs)
        y, dx = layer.forward(x), layer.backward(dout)
        packed = [backend.asarray(backend.to_numpy(array).copy()) for array in (x, dout)]
        # Elementwise it is the very same, but for NumPy's exp and log, which in whole vectors
        # are a unit in the last place off; a product or a sum may be added up in another order.
        close = 32 * np.finfo(dtype).eps
        for again, array in [(layer.forward(packed[0]), y), (layer.backward(packed[1]), dx)]:
            again, array = backend.to_numpy(again), backend.to_numpy(array)
            np.testing.assert_allclose(again, array, rtol=close, atol=close)


@one_of_each_kind
def test_backward_before_forward(backend, rng, operation):
    layer = make_layer(operation, backend, rng)
    message = f"{type(operation).__name__}: backward was called before forward"
    with pytest.raises(RuntimeError, match=message):
        layer.backward(backend.asarray([[1.0]]))


@one_of_each_kind
def test_gradient_of_a_wrong_shape(backend, rng, operation):
    layer = make_layer(operation, backend, rng)
    y = layer.forward(backend.asarray(rng.normal(size=(5, 6))))
    message = rf"{type(operation).__name__}: dout has shape .*, expected \(5, {y.shape[1]}\)"
    for shape in ((5,), (1, y.shape[1]), (5, 3), (5, y.shape[1], 1), ()):
        with pytest.raises(ValueError, match=message):
            layer.backward(backend.asarray(np.ones(shape)))


@one_of_each_kind
@pytest.mark.parametrize(("kept", "given"), [("float32", "float64"), ("float64", "float32")])
def test_gradient_of_another_dtype(backend, rng, operation, kept, given):
    """Float32 stays float32: a float64 gradient must not widen a layer's own without a word."""
    layer = make_layer(operation, backend, rng, kept)
    y = layer.forward(backend.asarray(rng.normal(size=(5, 6)), kept))
    with pytest.raises(ValueError, match=f"dout is {given}"):
        layer.backward(backend.asarray(np.ones(y.shape), given))


@one_of_each_kind
def test_lists_are_refused(rng, operation):
    with xnet.use_backend("numpy") as backend:
        layer = make_layer(operation, backend, rng)
        with pytest.raises(TypeError, match="x is a list, expected an array"):
            layer([[1.0] * 6])
        layer.forward(np.ones((1, 6)))
        with pytest.raises(TypeError, match="dout is a list, expected an array"):
            layer.backward([[1.0] * 4])


@every_layer
def test_arrays_of_two_devices_are_refused(rng, operation):
    numpy, strict = xnet.resolve("numpy"), xnet.resolve("strict")
    layer = make_layer(operation, strict, rng)
    y = layer.forward(strict.asarray(rng.normal(size=(5, 6))))
    with pytest.raises(BackendError, match=r"dout is on numpy, .* is on strict"):
        layer.backward(np.ones(y.shape))
    for name in operation.parameters:
        with pytest.raises(BackendError, match=f"x is on numpy, .*{name} is on strict"):
            layer(numpy.asarray(np.ones((5, 6))))


@one_of_each_kind
def test_integers_are_refused(backend, rng, operation):
    layer, x = make_layer(operation, backend, rng), backend.asarray([[1, 2, 3, 4, 5, 6]])
    for call in (layer, layer.forward):
        with pytest.raises(ValueError, match="is int64, expected float32 or float64"):
            call(x)


@with_parameters
def test_another_dtype_is_refused(backend, rng, operation):
    layer, name = make_layer(operation, backend, rng), next(iter(operation.parameters))
    for call in (layer, layer.forward):
        with pytest.raises(ValueError, match=f"x is float32, {name} is float64; nothing is conv"):
            call(backend.asarray(np.ones((5, 6)), "float32"))


@every_layer
def test_feature_count(backend, rng, operation):
    """What takes a number of features says so; the others take any."""
    layer = make_layer(operation, backend, rng)
    for shape in ((5,), (4, 5), (4, 2, 2)):
        x, features = backend.asarray(np.ones(shape)), math.prod(shape[len(shape) > 1 :])
        message = rf"{type(operation).__name__}: x has {features} features, \w+ expects 6"
        for call in (layer, layer.forward):
            if operation.widths[0] is None:
                assert call(x).shape == output_shape(operation, shape)
                continue
            with pytest.raises(ValueError, match=message):
                call(x)


@pytest.mark.parametrize(
    "operation", [operation for operation in LAYERS if operation.widths[0]], ids=repr
)
def test_no_features_at_all(backend, rng, operation):
    with pytest.raises(ValueError, match=r"x has 0 features, \w+ expects 6"):
        make_layer(operation, backend, rng)(backend.asarray(np.ones((4, 0))))


@every_layer
def test_one_number_is_no_sample(backend, rng, operation):
    layer, x = make_layer(operation, backend, rng), backend.asarray(1.0)
    if operation.fuses == "pointwise":
        assert layer(x).shape == ()
        return
    with pytest.raises(ValueError, match=rf"{type(operation).__name__}: x has shape \(\)"):
        layer(x)


# -- parameters, of whatever layer


@with_parameters
def test_from_params_reads_the_sizes(backend, rng, operation):
    made = make_layer(operation, backend, rng)
    layer = type(made).from_params(*made.params.values())
    for name, array in made.params.items():
        assert getattr(layer, name) is array
    assert layer.operation.widths == operation.widths
    layer.initialize(rng, "float64", backend)
    y = layer.forward(backend.asarray(rng.normal(size=(5, 6))))
    layer.backward(y)
    for name in operation.parameters:
        assert getattr(layer, f"d{name}") is layer.grads[name]


@with_parameters
def test_from_params_that_do_not_fit(backend, rng, operation):
    made = make_layer(operation, backend, rng)
    cls, (*first, last) = type(made), made.params.values()
    for arrays in ([*first], [*first, last, last]):
        with pytest.raises(TypeError, match=f"{len(arrays)} arrays were given, expected"):
            cls.from_params(*arrays)
    *_, name = operation.parameters
    (size,) = last.shape
    for bad, message in {
        (size + 1,): rf"{name} has shape \({size + 1},\), expected \({size},\)",
        (1, size): rf"{name} has shape \(1, {size}\), expected \({size},\)",
        (0,): rf"{name} has shape \(0,\), expected \({size},\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            cls.from_params(*first, backend.asarray(np.ones(bad)))
    with pytest.raises(ValueError, match=f"is float64, {name} is float32"):
        cls.from_params(*first, backend.asarray(np.ones(size), "float32"))


def test_from_params_of_a_size_that_stands_twice(backend):
    class Mixing(operations.Operation):
        wide: int
        parameters = {"A": ("wide", "wide"), "a": ("wide",)}  # noqa: RUF012

    kind, a = layers.layer_class(Mixing), backend.asarray(np.ones(3))
    assert kind.from_params(backend.asarray(np.eye(3)), a).operation.wide == 3
    with pytest.raises(ValueError, match=r"Mixing: A has shape \(3, 2\), expected \(wide, wide\)"):
        kind.from_params(backend.asarray(np.ones((3, 2))), a)


def test_from_params_of_what_has_none():
    assert not ReLU.from_params().params
    with pytest.raises(TypeError, match="ReLU: 1 arrays were given, expected none"):
        ReLU.from_params(np.ones(2))
    with pytest.raises(TypeError, match="Layer: 1 arrays were given, expected none"):
        Layer.from_params(np.ones(2))


@with_parameters
def test_without_parameters(backend, operation):
    layer = Layer.of(operation)
    for call in (layer, layer.forward):
        with pytest.raises(RuntimeError, match=r"has no parameters yet.*initialize.*from_params"):
            call(backend.asarray(np.ones((2, 6))))


@every_layer
def test_initialize_follows_the_operation(backend, dtype, operation):
    layer = Layer.of(operation)
    layer.initialize(np.random.default_rng(0), dtype, backend)
    for name, sizes in operation.parameters.items():
        assert layer.params[name].shape == tuple(getattr(operation, size) for size in sizes)
        mean, std = operation.initial(name)
        assert (backend.to_numpy(layer.params[name]) == mean).all() == (std == 0)
    for name, (sizes, value) in operation.state.items():
        assert layer.state[name].shape == tuple(getattr(operation, size) for size in sizes)
        assert (backend.to_numpy(layer.state[name]) == value).all()
    arrays = [*layer.params.values(), *layer.state.values()]
    assert {dtype_name(array.dtype) for array in arrays} <= {dtype}
    before = {**layer.params, **layer.state}
    layer.initialize(np.random.default_rng(1), dtype, backend)  # what is there stays
    assert all(array is before[name] for name, array in {**layer.params, **layer.state}.items())


@every_layer
def test_copies_and_pickles(rng, operation):
    with xnet.use_backend("numpy") as backend:
        layer = make_layer(operation, backend, rng)
        layer.forward(rng.normal(size=(5, 6)))  # moves its state, if it has any
        layer.trainable = False
        x = rng.normal(size=(3, 6))
        for other in (layer.copy(), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert type(other) is type(layer)
            assert repr(other) == repr(layer)
            assert other.operation.settings() == operation.settings()
            assert not other.trainable
            np.testing.assert_array_equal(other(x), layer(x))
            for kind in ("params", "state"):
                for name, array in getattr(layer, kind).items():
                    assert getattr(other, kind)[name] is not array
            with pytest.raises(RuntimeError, match="backward was called before forward"):
                other.backward(np.ones(output_shape(operation, (5, 6))))


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


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(0, 3), (3, 0), (-1, 3), (3, -2), (3.5, 2), ([1, 2], [3])]
)
def test_affine_sizes(inputs, outputs):
    with pytest.raises(ValueError, match=r"Affine: (inputs|outputs) is .*, expected at least 1"):
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


def test_arrays_where_settings_are_expected():
    """The book's own call, Affine(W, b)."""
    with pytest.raises(TypeError, match=r"Affine: an array was given.*Affine\.from_params"):
        Affine(np.ones((2, 3)), np.ones(3))


@pytest.mark.parametrize(
    ("W", "b", "message"),
    [
        (np.ones(3), np.ones(3), r"W has shape \(3,\), expected \(inputs, outputs\)"),
        (np.ones((2, 3, 1)), np.ones(3), r"W has shape \(2, 3, 1\), expected \(inputs, outputs\)"),
        (np.ones((0, 3)), np.ones(3), r"W has shape \(0, 3\), expected \(inputs, outputs\)"),
        (np.ones((2, 3)), np.ones(2), r"b has shape \(2,\), expected \(3,\)"),
    ],
)
def test_affine_from_params_that_do_not_fit(backend, W, b, message):
    with pytest.raises(ValueError, match=message):
        Affine.from_params(backend.asarray(W), backend.asarray(b))


def test_affine_from_params_of_two_devices():
    strict = xnet.resolve("strict")
    with pytest.raises(BackendError, match="W is on numpy, b is on strict"):
        Affine.from_params(np.ones((2, 1)), strict.asarray([1.0]))


# -- ReLU and Sigmoid


def test_relu_has_no_gradient_at_zero(backend, dtype):
    layer = ReLU()
    layer.forward(backend.asarray([-1.0, -0.0, 0.0, 1.0], dtype))
    dx = layer.backward(backend.asarray([1.0, 2.0, 3.0, 4.0], dtype))
    assert backend.to_numpy(dx).tolist() == [0, 0, 0, 4]


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

HARD = [[20.0, -20.0, 0.3], [-30.0, 30.0, 30.5], [0.1, 0.2, 0.3], [16.2, 0.1, -1.4]]
"""Scores, none of them where a loss has a kink for labels 0 and 1."""


@pytest.mark.parametrize("operation", variants("loss"), ids=repr)
@pytest.mark.parametrize("labels", ["indices", "one-hot", "soft"])
def test_loss_backward_is_the_numerical_gradient(backend, rng, operation, labels):
    """Badly misclassified samples included."""
    dout = -2.5
    layer = make_loss(operation)
    x = backend.asarray(HARD)
    wrong = np.array([1, 0, 2, 1])
    t = {"indices": wrong, "one-hot": np.eye(3)[wrong], "soft": rng.random((4, 3))}[labels]
    t = backend.asarray(t)
    layer.forward(x, t)
    exact = backend.to_numpy(layer.backward(dout))
    numerical = backend.to_numpy(numerical_gradient(lambda x: dout * layer.forward(x, t), x))
    np.testing.assert_allclose(exact, numerical, rtol=0, atol=2e-8)


@every_loss
def test_loss_of_one_sample(backend, operation):
    layer = make_loss(operation)
    x = backend.asarray(HARD[3])
    for t in (backend.asarray(2), backend.asarray([0, 0, 1])):
        loss = layer.forward(x, t)
        assert loss.shape == ()
        exact = layer.backward()
        assert exact.shape == x.shape
        numerical = numerical_gradient(lambda x, t=t: layer.forward(x, t), x)
        np.testing.assert_allclose(
            backend.to_numpy(exact), backend.to_numpy(numerical), rtol=0, atol=2e-8
        )


@every_loss
def test_loss_is_the_mean_over_the_batch(backend, dtype, rng, operation):
    layer, x = make_loss(operation), rng.normal(size=(7, 3)).astype(dtype)
    t = rng.random((7, 3)).astype(dtype)
    loss = float(layer.forward(backend.asarray(x), backend.asarray(t)))
    dx = backend.to_numpy(layer.backward())
    each, slopes = [], []
    for row, target in zip(x, t, strict=True):
        each.append(float(layer.forward(backend.asarray(row), backend.asarray(target))))
        slopes.append(backend.to_numpy(layer.backward()) / 7)
    eps = float(np.finfo(dtype).eps)
    assert loss == pytest.approx(sum(each) / 7, rel=8 * eps)
    np.testing.assert_allclose(dx, slopes, rtol=8 * eps, atol=eps)


def test_identity_with_loss_is_the_mean_squared_error(backend, dtype, rng):
    x, t = backend.asarray(rng.normal(size=(4, 3)), dtype), backend.asarray([0, 2, 1, 1])
    loss, expected = IdentityWithLoss().forward(x, t), mean_squared_error(x, t)
    assert float(loss) == pytest.approx(float(expected), rel=8 * float(np.finfo(dtype).eps))


def test_what_loss_layers_predict(backend, dtype, rng):
    x = backend.asarray(rng.normal(size=(4, 3)), dtype)
    np.testing.assert_array_equal(
        backend.to_numpy(SoftmaxWithLoss()(x)), backend.to_numpy(softmax(x))
    )
    np.testing.assert_array_equal(backend.to_numpy(IdentityWithLoss()(x)), backend.to_numpy(x))


@every_loss
def test_loss_keeps_dtype_and_inputs(backend, dtype, rng, operation):
    """NumPy's own float64 is a Python float too, and must not widen float32."""
    layer = make_loss(operation)
    host_x, host_t = rng.normal(size=(4, 3)).astype(dtype), np.eye(3, dtype=dtype)[[0, 2, 1, 1]]
    x, t = backend.asarray(host_x.copy()), backend.asarray(host_t.copy())
    predicted, loss = layer(x), layer.forward(x, t)
    gradients = [layer.backward(dout) for dout in (1, 0.5, np.float64(0.5))]
    for array in (predicted, loss, *gradients):
        assert dtype_name(array.dtype) == dtype
        assert backend.owns(array)
    np.testing.assert_array_equal(backend.to_numpy(x), host_x)
    np.testing.assert_array_equal(backend.to_numpy(t), host_t)


def test_loss_of_extreme_scores(backend, dtype):
    """As far from the largest score as that is: finite, but where an infinite score is meant."""
    largest = float(np.finfo(dtype).max)
    layer, x = SoftmaxWithLoss(), backend.asarray([[1e4, -1e4, -np.inf]], dtype)
    for label, expected in ((0, 0.0), (1, 2e4), (2, math.inf)):
        assert float(layer.forward(x, backend.asarray([label]))) == expected
        dx = backend.to_numpy(layer.backward())
        np.testing.assert_array_equal(dx, np.eye(3)[[0]] - np.eye(3)[[label]])
    x = backend.asarray([[largest, -largest, 0.0]], dtype)
    assert float(layer.forward(x, backend.asarray([2]))) == largest
    assert float(layer.forward(x, backend.asarray([1]))) == math.inf  # 2 largest
    assert backend.to_numpy(layer.backward()).tolist() == [[1, -1, 0]]


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
def test_loss_refuses_misfits(backend, x, t, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxWithLoss().forward(backend.asarray(x), backend.asarray(t))


@every_loss
def test_loss_refuses_arrays_of_two_devices(operation):
    with pytest.raises(BackendError, match="is on numpy, t is on strict"):
        make_loss(operation).forward(np.ones((1, 2)), xnet.resolve("strict").asarray([1]))


@every_loss
def test_loss_backward_before_forward(operation):
    message = f"{type(operation).__name__}: backward was called before forward"
    with pytest.raises(RuntimeError, match=message):
        make_loss(operation).backward()


# -- names


def test_repr():
    assert repr(Affine(2, 3)) == "Affine(2, 3)"
    assert [repr(kind()) for kind in (ReLU, Sigmoid)] == ["ReLU()", "Sigmoid()"]
    assert repr(SoftmaxWithLoss()) == "SoftmaxWithLoss()"
    assert repr(SoftmaxWithLoss(0.1)) == "SoftmaxWithLoss(label_smoothing=0.1)"
    assert repr(layers.LeakyReLU(0.2)) == "LeakyReLU(0.2)"
    assert [repr(kind()) for kind in (Layer, LossLayer)] == ["Layer()", "LossLayer()"]


def test_arrays_by_their_names(rng):
    """Parameters, gradients and state; and the very dictionaries stay, which a network knows."""
    layer = make_layer(operations.BatchNorm(4), xnet.resolve("numpy"), rng)
    held = layer.params, layer.state
    layer.gamma, layer.dbeta = np.full(4, 2.0), np.full(4, 3.0)
    assert layer.params["gamma"] is layer.gamma
    assert layer.grads["beta"] is layer.dbeta
    assert layer.dgamma is None
    assert layer.variance is layer.state["variance"]
    layer.params, layer.state = {"W": np.ones(2)}, {"mean": np.zeros(4)}
    assert (layer.params, layer.state) == held == ({"W": layer.W}, {"mean": layer.mean})
    assert layer.params is held[0]
    assert layer.state is held[1]
    layer.note = "mine"
    assert vars(layer)["note"] == layer.note == "mine"


@pytest.mark.parametrize("operation", [*LAYERS, *LOSSES], ids=repr)
def test_arrays_decide_on_which_backend_it_computes(rng, operation):
    """Whatever backend is current meanwhile."""
    strict = xnet.resolve("strict")
    x, t = strict.asarray(rng.normal(size=(5, 6))), strict.asarray(np.arange(5))
    if operation.fuses == "loss":
        layer = make_loss(operation)
        found = [layer(x), layer.forward(x, t), layer.backward()]
    else:
        layer = make_layer(operation, strict, rng)
        found = [layer(x), y := layer.forward(x), layer.backward(y), *layer.grads.values()]
    assert xnet.get_backend().name == "numpy"
    assert all(strict.owns(array) for array in found)


@pytest.mark.parametrize("operation", [*LAYERS, *LOSSES], ids=repr)
def test_every_operation_is_a_layer_of_its_name(operation):
    name = type(operation).__name__
    cls = getattr(layers, name)
    assert cls is layers.layer_class(type(operation)) is layers.named(name)
    assert cls.__name__ == name in dir(layers)
    assert issubclass(cls, LossLayer if operation.fuses == "loss" else Layer)
    assert not cls.opaque
    layer = cls(**operation.settings())
    assert layer.operation.settings() == operation.settings()
    assert repr(layer) == repr(operation)


@pytest.mark.parametrize("operation", LAYERS, ids=repr)
def test_settings_make_the_layer_again(operation):
    layer = Layer.of(operation)
    assert layer.settings() == operation.settings()
    assert type(layer)(**layer.settings()).settings() == operation.settings()
    for name, value in operation.settings().items():
        assert getattr(layer, name) == value


def test_names_in_whichever_case():
    assert layers.named("relu") is layers.named("ReLU") is ReLU
    lower = type("relu", (operations.Pointwise,), {})  # from here on each name means its own
    assert layers.named("relu").operation_class is lower
    assert layers.named("ReLU") is ReLU
    with pytest.raises(ValueError, match=r"'tanhh' is no pointwise, expected one of .*Tanh"):
        layers.named("tanhh", "pointwise")
    with pytest.raises(ValueError, match="'affine' is no pointwise/rows, expected one of"):
        layers.named("affine", "pointwise", "rows")
    with pytest.raises(AttributeError, match=r"'xnet\.layers' has no attribute 'Tanhh'"):
        layers.Tanhh  # noqa: B018
    with pytest.raises(AttributeError, match="'ReLU' object has no attribute 'W'"):
        ReLU().W  # noqa: B018


def test_what_says_not_what_it_computes(backend):
    x = backend.asarray(np.ones((2, 3)))
    with pytest.raises(NotImplementedError, match="Layer says not what it computes"):
        Layer()(x)
    with pytest.raises(NotImplementedError, match="LossLayer says not what it computes"):
        LossLayer()(x)
    assert not LossLayer().classes
    for arguments, settings in (((3,), {}), ((), {"units": 3})):
        with pytest.raises(TypeError, match="Layer takes no arguments"):
            Layer(*arguments, **settings)
