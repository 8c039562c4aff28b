import copy
import gc
import itertools
import math
import pickle
import sys
import threading

import numpy as np
import pytest
import xnet_numpy
from conftest import (
    OPTIMIZERS,
    assert_close,
    make_loss,
    property_settings,
    require_host_cuda,
    variants,
)
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet import operations
from xnet.dtypes import dtype_name
from xnet.errors import BackendError
from xnet.layers import (
    Affine,
    BatchNorm,
    Dropout,
    IdentityWithLoss,
    Layer,
    LayerNorm,
    ReLU,
    Sigmoid,
    SoftmaxWithLoss,
)
from xnet.network import Network, TwoLayerNet
from xnet.optimizers import SGD

POINTWISE = variants("pointwise", altered=False)


@pytest.fixture
def data(rng):
    return rng.normal(size=(6, 4)), np.array([0, 2, 1, 1, 0, 2])


def make(**options):
    return TwoLayerNet(4, 5, 3, **({"weight_init_std": 0.5} | options))


def host(net, arrays=None):
    """Parameters, or other arrays by name, as NumPy arrays of their own."""
    arrays = net.params if arrays is None else arrays
    return {name: net.backend.to_numpy(array).copy() for name, array in arrays.items()}


def assert_same(some, others):
    assert list(some) == list(others)
    for name, array in some.items():
        assert array.dtype == others[name].dtype
        np.testing.assert_array_equal(array, others[name])


def strict_array(values):
    return xnet.resolve("strict").asarray(np.asarray(values))


# -- what a network computes


def test_predict_scores_and_loss(backend, data):
    x, t = data
    net = make(activation="relu", seed=3)
    p = host(net)
    hidden = np.maximum(x @ p["W1"] + p["b1"], 0)
    scores = hidden @ p["W2"] + p["b2"]
    y = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(backend.to_numpy(net.scores(x)), scores, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(backend.to_numpy(net.predict(x)), y, rtol=1e-13)
    assert net.loss(x, t) == pytest.approx(-np.log(y[np.arange(6), t]).mean(), rel=1e-13)
    assert net.accuracy(x, t) == (y.argmax(axis=1) == t).mean()
    assert type(net.loss(x, t)) is float
    assert type(net.accuracy(x, t)) is float


def test_accuracy(backend):
    eye = Affine.from_params(backend.asarray(np.eye(3)), backend.asarray(np.zeros(3)))
    x, t = np.eye(3)[[0, 1, 2, 2]], np.array([0, 1, 1, 2])
    for loss in (SoftmaxWithLoss(), IdentityWithLoss()):
        net = Network([eye.copy()], loss)
        assert net.accuracy(x, t) == 0.75
        assert net.accuracy(x, np.eye(3)[t]) == 0.75
        assert [net.accuracy(x[2], 1), net.accuracy(x[2], 2)] == [0.0, 1.0]


def test_accuracy_is_of_what_is_predicted(backend, data):
    class Reversed(SoftmaxWithLoss):
        def __call__(self, x):
            return 1 - super().__call__(x)

    net = Network([Affine(4, 3, 0.5)], Reversed())
    predicted = backend.to_numpy(net.predict(data[0])).argmax(axis=1)
    assert net.accuracy(data[0], predicted) == 1.0
    assert net.accuracy(data[0], backend.to_numpy(net.scores(data[0])).argmax(axis=1)) == 0.0


def test_one_sample_is_a_batch_of_one(backend, dtype, data):
    x, t = data
    net = make(dtype=dtype)
    for method in (net.scores, net.predict):
        one = method(x[0])
        assert one.shape == (3,)
        np.testing.assert_array_equal(backend.to_numpy(one), backend.to_numpy(method(x[:1]))[0])
    for label in (int(t[1]), t[1], [0, 0, 1], np.eye(3)[t[1]]):
        assert net.loss(x[1], label) == net.loss(x[1:2], t[1:2])
        one, batch = net.gradient(x[1], label), net.gradient(x[1:2], t[1:2])
        assert_same(host(net, one), host(net, batch))


def test_tensors_are_flattened(backend, dtype, data):
    x, t = data
    net, tensor = make(dtype=dtype), x.reshape(6, 2, 1, 2)
    for method in (net.scores, net.predict):
        np.testing.assert_array_equal(backend.to_numpy(method(tensor)), backend.to_numpy(method(x)))
    assert net.loss(tensor, t) == net.loss(x, t)
    assert net.accuracy(tensor, t) == net.accuracy(x, t)
    assert_same(host(net, net.gradient(tensor, t)), host(net, net.gradient(x, t)))


@pytest.mark.parametrize("kind", ["int64", "uint8", "float32", "bool"])
def test_one_hot_equals_class_indices(backend, dtype, data, kind):
    x, t = data
    net, one_hot = make(dtype=dtype), np.eye(3)[t].astype(kind)
    assert net.loss(x, one_hot) == net.loss(x, t)
    assert net.accuracy(x, one_hot) == net.accuracy(x, t)
    assert_same(host(net, net.gradient(x, one_hot)), host(net, net.gradient(x, t)))


def test_lists_and_arrays_of_the_backend_are_accepted(backend, data):
    x, t = data
    net = make()
    expected = net.loss(x, t)
    assert net.loss(x.tolist(), t.tolist()) == expected
    assert net.loss(x.tolist(), np.eye(3)[t].tolist()) == expected
    assert net.loss(tuple(map(tuple, x.tolist())), tuple(t.tolist())) == expected
    assert net.loss(backend.asarray(x), backend.asarray(t)) == expected
    assert net.accuracy(x.tolist(), t.tolist()) == net.accuracy(x, t)


@pytest.mark.parametrize("kind", ["uint8", "int64", "float32", "float64", "bool"])
def test_data_of_any_dtype_is_cast_to_the_networks(backend, dtype, rng, kind):
    x = rng.integers(0, 2, (5, 4)).astype(kind)
    net = make(dtype=dtype)
    y = net.predict(x)
    assert dtype_name(y.dtype) == dtype
    np.testing.assert_array_equal(
        backend.to_numpy(y), backend.to_numpy(net.predict(x.astype(dtype)))
    )


def test_every_result_has_the_networks_dtype_and_backend(backend, dtype, data):
    x, t = data
    net = make(dtype=dtype)
    gradients = [net.gradient(x, t), net.numerical_gradient(x, t, h=5e-3)]
    arrays = [net.scores(x), net.predict(x), *net.params.values()]
    for array in arrays + [array for gradient in gradients for array in gradient.values()]:
        assert backend.owns(array)
        assert dtype_name(array.dtype) == dtype


def test_gradients_have_the_parameters_keys_and_shapes(backend, data):
    net = make()
    shapes = {name: array.shape for name, array in net.params.items()}
    assert list(shapes) == ["W1", "b1", "W2", "b2"]
    for gradients in (net.gradient(*data), net.numerical_gradient(*data)):
        assert {name: array.shape for name, array in gradients.items()} == shapes


def test_loss_and_gradient(backend, data):
    net = make()
    loss, gradients = net.loss_and_gradient(*data)
    assert loss == pytest.approx(net.loss(*data), rel=1e-15)
    assert_same(host(net, gradients), host(net, net.gradient(*data)))


def test_a_gradient_that_is_kept_does_not_change(backend, data):
    x, t = data
    net = make()
    kept = net.gradient(x, t)
    before = host(net, kept)
    net.gradient(2 * x, t)
    net.numerical_gradient(x, t)
    assert_same(host(net, kept), before)


def test_nothing_handed_in_is_changed(backend, dtype, data):
    x, t = data[0].astype(dtype), np.eye(3, dtype=dtype)[data[1]]
    here_x, here_t = backend.asarray(x.copy()), backend.asarray(t.copy())
    net = make(dtype=dtype)
    before = host(net)
    for method in (net.scores, net.predict):
        method(here_x)
    for method in (net.loss, net.accuracy, net.gradient):
        method(here_x, here_t)
    net.numerical_gradient(here_x, here_t, h=5e-3)
    np.testing.assert_array_equal(backend.to_numpy(here_x), x)
    np.testing.assert_array_equal(backend.to_numpy(here_t), t)
    assert_same(host(net), before)


def test_raw_pixels_and_larger_do_not_overflow(backend, dtype, rng):
    net = TwoLayerNet(784, 50, 10, weight_init_std="he", activation="relu", dtype=dtype)
    for x in (rng.integers(0, 256, (3, 784)), np.full((3, 784), 1e20)):
        y = backend.to_numpy(net.predict(x))
        np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-5)
        assert math.isfinite(net.loss(x, [0, 1, 2]))
        for gradient in net.gradient(x, [0, 1, 2]).values():
            assert np.isfinite(backend.to_numpy(gradient)).all()


@property_settings
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    n=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_stack(backend, dtype, sizes, n, seed):
    rng = np.random.default_rng(seed)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [Affine(inputs, outputs, "xavier"), POINTWISE[rng.integers(len(POINTWISE))]]
    loss = SoftmaxWithLoss() if sizes[-1] > 1 else IdentityWithLoss()
    net = Network(layers, loss, seed=seed, dtype=dtype)
    assert len(net.params) == 2 * (len(sizes) - 1)
    assert net.inputs == sizes[0]
    x, t = rng.normal(size=(n, sizes[0])), rng.integers(0, sizes[-1], n)
    assert net.predict(x).shape == (n, sizes[-1])
    assert sizes[-1] == 1 or 0 <= net.accuracy(x, t) <= 1
    gradients = net.gradient(x, t)
    for name, array in net.params.items():
        assert gradients[name].shape == array.shape


def test_a_stack_without_parameters(backend):
    net = Network([ReLU(), Sigmoid()])
    assert net.inputs is None
    assert dict(net.params) == {}
    assert net.gradient([[1.0, 2.0]], [0]) == {}
    assert net.numerical_gradient([[1.0, 2.0]], [0]) == {}
    assert net.train_step([[1.0, 2.0]], [0], SGD()) == net.loss([[1.0, 2.0]], [0])
    np.testing.assert_allclose(backend.to_numpy(net.scores([[0.0, -1.0]])), [[0.5, 0.5]])


# -- the batch


def test_empty_batch(backend):
    net, x = make(), np.zeros((0, 4))
    assert net.predict(x).shape == net.scores(x).shape == (0, 3)
    for method in (net.loss, net.accuracy, net.gradient, net.numerical_gradient):
        with pytest.raises(ValueError, match=r"x has shape \(0, 4\): the batch is empty"):
            method(x, np.zeros(0, int))


@pytest.mark.parametrize(
    ("x", "features"),
    [
        (np.ones((2, 3)), 3),
        (np.ones((4, 3)), 3),
        (np.ones(5), 5),
        (np.ones((2, 3, 4)), 12),
        ([1.0, 2.0], 2),
    ],
)
def test_wrong_feature_count(backend, x, features):
    net, message = make(), f"Affine: x has {features} features, W expects 4"
    for method in (net.scores, net.predict):
        with pytest.raises(ValueError, match=message):
            method(x)
    for method in (net.loss, net.accuracy, net.gradient, net.numerical_gradient):
        with pytest.raises(ValueError, match=message):
            method(x, [0, 1])


def test_one_number_is_no_sample(backend):
    net = make()
    for call in (net.predict, net.scores, lambda x: net.loss(x, 0), lambda x: net.gradient(x, 0)):
        for number in (1.0, np.float64(1.0), np.array(1.0)):
            with pytest.raises(ValueError, match=r"x has shape \(\), expected \(4,\) or \(N, "):
                call(number)


@pytest.mark.parametrize(
    ("t", "message"),
    [
        ([0, 1], "t has 2 labels, y has 6 samples"),
        (np.eye(4)[:3].repeat(2, axis=0), r"t has shape \(6, 4\), expected \(6, 3\)"),
        (np.zeros((6, 1)), r"t has shape \(6, 1\), expected \(6, 3\)"),
        ([0, 1, 2, 3, 0, 0], r"t has label 3, expected 0\.\.2"),
        ([0, 1, -1, 2, 0, 0], r"t has label -1, expected 0\.\.2"),
        ([0.0] * 6, "t has dtype float64, expected integer class indices"),
        (1, r"t has shape \(\)"),
    ],
)
def test_wrong_labels(backend, data, t, message):
    net = make()
    for method in (net.loss, net.accuracy, net.gradient, net.numerical_gradient):
        with pytest.raises(ValueError, match=message):
            method(data[0], t)


def test_a_wrong_batch_leaves_the_network_as_it_was(backend, data):
    net = make()
    before, expected = host(net), net.loss(*data)
    for bad in ([0, 1, 2, 3, 0, 0], [0]):
        with pytest.raises(ValueError, match="t has"):
            net.numerical_gradient(data[0], bad)
    assert_same(host(net), before)
    assert net.loss(*data) == expected


@pytest.mark.parametrize("bad", [None, "abc", {1.0}, object()])
def test_what_is_no_data_is_named(data, bad):
    net, kind = make(backend="numpy"), type(bad).__name__
    for call in (lambda: net.predict(bad), lambda: net.loss(bad, data[1])):
        with pytest.raises(TypeError, match=f"x is a {kind}"):
            call()
    with pytest.raises(TypeError, match=f"t is a {kind}"):
        net.loss(data[0], bad)


def test_arrays_of_another_device_are_refused(data, monkeypatch):
    require_host_cuda(monkeypatch)
    x, t = data
    net, there = make(backend="numpy"), xnet.resolve("cupy").asarray
    message = r'the network is on numpy, {} is on cupy:0: .*net\.to\("cupy:0"\).*asarray'
    for method in (net.scores, net.predict):
        with pytest.raises(BackendError, match=message.format("x")):
            method(there(x))
    for method in (net.loss, net.accuracy, net.gradient, net.numerical_gradient):
        with pytest.raises(BackendError, match=message.format("x")):
            method(there(x), t)
        with pytest.raises(BackendError, match=message.format("t")):
            method(x, there(t))


def test_numpy_arrays_are_moved_through_the_one_door(data):
    x, t = data
    net = make(backend="strict")
    assert net.backend.owns(net.predict(x))
    assert net.loss(x, t) == pytest.approx(make(backend="numpy").loss(x, t), rel=1e-14)


# -- parameters


def test_parameters_are_live(backend, data):
    net = make()
    before = host(net)["W1"]
    net.params["W1"] -= 0.5 * net.params["W1"]
    np.testing.assert_array_equal(backend.to_numpy(net.params["W1"]), 0.5 * before)
    assert net.layers[0].W is net.params["W1"]
    W1 = net.params["W1"]
    W1[...] = 0.0
    assert not backend.to_numpy(net.layers[0].W).any()
    # Hidden units that all see 0 give all samples the same answer.
    y = backend.to_numpy(net.predict(data[0]))
    assert (y == y[0]).all()


def test_setting_a_parameter_sets_the_layers_numbers(backend, data):
    net, other = make(), make(seed=1)
    before = net.loss(*data)
    for name, array in other.params.items():
        old = net.params[name]
        net.params[name] = array
        assert net.params[name] is (old if backend.writable(old) else array)
    assert net.loss(*data) == other.loss(*data) != before
    net.params.update({"b2": net.params["b2"] + 1.0})
    np.testing.assert_array_equal(backend.to_numpy(net.layers[2].b), [1, 1, 1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((5, 4)), r"params\['W1'\] is float64 \(5, 4\), expected float64 \(4, 5\)"),
        (np.ones(5), r"params\['W1'\] is float64 \(5,\), expected float64 \(4, 5\)"),
        (np.ones((4, 5), "float32"), r"params\['W1'\] is float32 \(4, 5\), expected float64"),
        (np.ones((4, 5), int), r"params\['W1'\] is int64 \(4, 5\), expected float64"),
    ],
)
def test_parameter_that_does_not_fit(backend, value, message):
    net = make()
    before = host(net)
    with pytest.raises(ValueError, match=message):
        net.params["W1"] = backend.asarray(value)
    assert_same(host(net), before)


def test_parameter_of_another_backend():
    net = make(backend="numpy")
    with pytest.raises(BackendError, match=r"params\['W1'\] is a Array, expected .* numpy"):
        net.params["W1"] = strict_array(np.ones((4, 5)))
    with pytest.raises(BackendError, match=r"params\['b1'\] is a list, expected .* numpy"):
        net.params["b1"] = [0.0] * 5
    with pytest.raises(BackendError, match=r"params\['W1'\] is a ndarray, expected .* strict"):
        make(backend="strict").params["W1"] = np.ones((4, 5))


def test_parameters_that_cannot_be_written_are_replaced(data):
    """As validation goes back to an epoch's."""
    net, kept = make(backend="numpy"), {}
    net.params.keep(kept)
    before = host(net)
    for layer in (net.layers[0], net.layers[2]):
        for name, array in layer.params.items():
            layer.params[name] = array + 1.0
            layer.params[name].flags.writeable = False
    xnet.backend.assign(net.params.writing(kept))
    assert_same(host(net), before)


def test_parameters_cannot_be_deleted_or_added(backend):
    net = make()
    with pytest.raises(TypeError, match="can be replaced, not deleted"):
        del net.params["W1"]
    with pytest.raises(TypeError, match="can be replaced, not deleted"):
        net.params.clear()
    with pytest.raises(KeyError, match="W3"):
        net.params["W3"] = net.params["W1"]
    with pytest.raises(KeyError, match="W3"):
        net.params["W3"]
    assert list(net.params) == ["W1", "b1", "W2", "b2"]
    assert len(net.params) == 4


def test_params_itself_cannot_be_replaced(data):
    """A dict put in its place would be ignored by predict: the layers hold the arrays."""
    net = make(backend="numpy")
    with pytest.raises(AttributeError):
        net.params = {name: 0 * array for name, array in net.params.items()}
    assert list(net.params) == ["W1", "b1", "W2", "b2"]


def test_parameters_are_numbered_by_affine(backend):
    net = Network([ReLU(), Affine(2, 3), Sigmoid(), ReLU(), Affine(3, 4), Affine(4, 2)])
    assert list(net.params) == ["W1", "b1", "W2", "b2", "W3", "b3"]
    assert net.params["W2"] is net.layers[4].W
    shown = "Parameters({'W1': (2, 3), 'b1': (3,), 'W2': (3, 4), 'b2': (4,), "
    assert repr(net.params) == shown + "'W3': (4, 2), 'b3': (2,)})"


def test_each_name_is_numbered_on_its_own(backend):
    """W2 is the second W, whatever parameters stand between."""
    layers = [Affine(2, 3), BatchNorm(3), ReLU(), LayerNorm(3), Affine(3, 4), BatchNorm(4)]
    net = Network(layers, IdentityWithLoss())
    names = ["W1", "b1", "gamma1", "beta1", "gamma2", "beta2", "W2", "b2", "gamma3", "beta3"]
    assert list(net.params) == names
    assert net.params["gamma2"] is net.layers[3].gamma
    assert net.params["W2"] is net.layers[4].W
    assert list(net.state) == ["mean1", "variance1", "mean2", "variance2"]
    assert net.state["variance2"] is net.layers[5].variance


def test_given_parameters_are_used(backend, dtype):
    W, b = backend.asarray([[1.0, 2.0]], dtype), backend.asarray([3.0, 4.0], dtype)
    net = Network([Affine.from_params(W, b)], IdentityWithLoss())
    assert net.dtype == dtype
    assert backend.to_numpy(net.predict([[10.0]])).tolist() == [[13, 24]]


def test_given_parameters_of_numpy_are_moved(backend):
    layer = Affine.from_params(np.array([[1.0, 2.0]]), np.array([3.0, 4.0]))
    net = Network([layer], IdentityWithLoss())
    assert all(backend.owns(array) for array in net.params.values())


def test_given_parameters_of_another_device_are_refused(monkeypatch):
    require_host_cuda(monkeypatch)
    there = xnet.resolve("cupy").asarray
    layer = Affine.from_params(there([[1.0, 3.0]]), there([2.0, 4.0]))
    with pytest.raises(BackendError, match="the network is on numpy, W is on cupy:0"):
        Network([layer], backend="numpy")


# -- initial parameters


def test_same_seed_same_parameters_on_every_backend(backend, dtype):
    here = make(seed=7, dtype=dtype)
    reference = make(seed=7, dtype=dtype, backend="numpy")
    assert_same(host(here), host(reference))
    assert_same(host(here), host(make(seed=7, dtype=dtype)))
    assert not np.array_equal(host(here)["W1"], host(make(seed=8, dtype=dtype))["W1"])
    assert not np.array_equal(host(here)["W1"][0, :3], host(here)["W2"][0])


def test_float32_parameters_are_the_float64_ones_rounded(backend):
    narrow, wide = host(make(dtype="float32")), host(make(dtype="float64"))
    assert_same(narrow, {name: array.astype("float32") for name, array in wide.items()})


def test_the_default_seed_is_repeatable_and_none_is_not(backend):
    assert_same(host(make()), host(make(seed=0)))
    assert not np.array_equal(host(make(seed=None))["W1"], host(make(seed=None))["W1"])


def test_seed_may_be_a_generator(backend):
    rng = np.random.default_rng(5)
    first, second = host(make(seed=rng)), host(make(seed=rng))
    assert_same(first, host(make(seed=5)))
    assert not np.array_equal(first["W1"], second["W1"])


@pytest.mark.parametrize(
    ("std", "deviations"),
    [
        (0.01, (0.01, 0.01)),
        (1, (1.0, 1.0)),
        ("he", (math.sqrt(2 / 400), math.sqrt(2 / 300))),
        ("xavier", (math.sqrt(2 / 700), math.sqrt(2 / 500))),
    ],
)
def test_initial_deviation(backend, dtype, std, deviations):
    params = host(TwoLayerNet(400, 300, 200, std, dtype=dtype))
    for name, expected in zip(("W1", "W2"), deviations, strict=True):
        assert params[name].std() == pytest.approx(expected, rel=0.015)
        assert abs(params[name].mean()) < 0.015 * expected
    assert not params["b1"].any()
    assert not params["b2"].any()


def test_layers_keep_what_they_were_given(backend):
    """A second network of trained layers must not draw their parameters again."""
    net = make(seed=3)
    before = host(net)
    second = Network([layer.copy() for layer in net.layers[:1]], seed=9)
    assert_same(host(second), {k: before[k] for k in ("W1", "b1")})


def test_copies_of_the_layers_train_apart(backend, data):
    net = make(activation="relu")
    before = host(net)
    second = Network([layer.copy() for layer in net.layers], seed=9)
    second.train_step(*data, xnet.optimizers.SGD(0.1))
    assert_same(host(net), before)
    assert not np.array_equal(host(second)["W1"], before["W1"])


def test_what_draws_nothing_takes_no_random_numbers():
    """A generator that is shared gives the next network what it would have given without this."""
    rng = np.random.default_rng(5)
    before = rng.bit_generator.state
    Network([ReLU(), LayerNorm(3)], seed=rng)
    assert rng.bit_generator.state == before


def test_a_change_of_layers_is_no_change_of_what_is_drawn(data):
    first, other = (Network([Dropout(0.5), Affine(4, 3, 0.5)], seed=3) for _ in range(2))
    first.training_loss(*data), other.training_loss(*data)
    other.layers.insert(1, operations.LeakyReLU(1.0))
    assert first.training_loss(*data) == other.training_loss(*data)


# -- in one call of the backend


def test_a_plain_network_goes_to_the_backend_whole(monkeypatch, data):
    """One call for a prediction, and one for a training step: that is what is fast."""
    asked, numpy = [], xnet.resolve("numpy")

    def recorded(name, real):
        def call(run, *arguments):
            asked.append((name, len(run.operations)))
            return real(run, *arguments)

        monkeypatch.setattr(numpy, name, call)

    for name in ("forward", "train_step", "loss_and_gradients"):
        recorded(name, getattr(numpy, name))
    net, x = make(backend="numpy"), data[0]
    net.predict(x), net.scores(x), net.predict(x.astype("float32")), net.predict(x[0])
    assert asked == [("forward", 3)] * 4
    for loss in (None, IdentityWithLoss()):
        asked.clear()
        net = Network([Affine(4, 5), ReLU(), Affine(5, 3)], loss, backend="numpy")
        net.train_step(*data, SGD())
        assert asked == [("train_step", 3)]

    class Own(SGD):
        def update(self, params, grads):
            super().update(params, grads)

    asked.clear()
    net.train_step(*data, Own())
    net.layers[0].trainable = False
    net.train_step(*data, SGD())
    # An optimizer that may do anything, and a step that is not of all parameters.
    assert asked == [("loss_and_gradients", 3)] * 2


# -- dtypes


def test_dtype_rules(backend):
    def affine(dtype):
        return Affine.from_params(
            backend.asarray(np.eye(2), dtype), backend.asarray(np.zeros(2), dtype)
        )

    assert Network([Affine(2, 2)]).dtype == "float64"
    assert Network([affine("float32"), Affine(2, 2)]).dtype == "float32"
    assert Network([affine("float64"), Affine(2, 2)]).dtype == "float64"
    net = Network([affine("float32")], dtype="float64")
    assert {dtype_name(array.dtype) for array in net.params.values()} == {"float64"}
    with pytest.raises(ValueError, match="parameters of float32 and float64: name a dtype"):
        Network([affine("float32"), affine("float64")])
    net = Network([affine("float32"), affine("float64")], dtype="float32")
    assert {dtype_name(array.dtype) for array in net.params.values()} == {"float32"}


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32")])
def test_dtype_by_name_or_object(backend, dtype):
    assert make(dtype=dtype).dtype == "float32"
    assert make(dtype=backend.xp.float32).dtype == "float32"


@pytest.mark.parametrize("dtype", ["float16", "int64", np.complex128, "double", "my.float32"])
def test_other_dtypes_are_refused(backend, dtype):
    with pytest.raises(ValueError, match=r"dtype is .*, expected float32 or float64"):
        make(dtype=dtype)


def test_numerical_gradient_of_float32_takes_a_step_that_suits_it(backend, data):
    net = make(dtype="float32")
    with pytest.raises(ValueError, match=r"float32, where h=0\.0001 gives noise"):
        net.numerical_gradient(*data, h=1e-4)
    exact, numerical = net.gradient(*data), net.numerical_gradient(*data)
    for name, same in net.numerical_gradient(*data, h=5e-3).items():
        found = backend.to_numpy(numerical[name])
        np.testing.assert_allclose(found, backend.to_numpy(exact[name]), atol=1e-4)
        np.testing.assert_array_equal(found, backend.to_numpy(same))


def test_naive_begins_every_loss_anew_and_incremental_none(monkeypatch, data):
    net, asked = make(backend="numpy"), []
    real = net.loss
    monkeypatch.setattr(net, "loss", lambda *batch: asked.append(1) or real(*batch))
    for method in (None, "incremental", "naive"):
        asked.clear()
        net.numerical_gradient(*data, method=method)
        count = sum(W.size for W in net.params.values())
        assert len(asked) >= 2 * count if method == "naive" else not asked


# -- making one


def test_layers_that_do_not_fit():
    message = r"layers\[2\]: Affine\(6, 3\) takes 6 features, those before it give 5"
    with pytest.raises(ValueError, match=message):
        Network([Affine(4, 5), ReLU(), Affine(6, 3)])


def test_no_layers():
    with pytest.raises(ValueError, match="layers is empty, expected at least one"):
        Network([])


@pytest.mark.parametrize("kind", [ReLU, Sigmoid, lambda: Affine(4, 4, 0.5)])
def test_one_layer_in_two_places(kind):
    """A layer remembers one input: in two places its first backward would use the second's."""
    layer = kind()
    with pytest.raises(ValueError, match=r"layers\[3\]"):
        Network([Affine(4, 4, 0.5), layer, Affine(4, 4, 0.5), layer])


@pytest.mark.parametrize("sizes", [(0, 5, 3), (4, 0, 3), (4, 5, -1)])
def test_sizes_below_one(sizes):
    with pytest.raises(ValueError, match=r"is (0|-1), expected at least 1"):
        TwoLayerNet(*sizes)


def test_unknown_names():
    for name in ("tanhh", "affine", "softmax"):
        with pytest.raises(ValueError, match=f"'{name}' is no pointwise, expected one of Sigmoid"):
            make(activation=name)
    with pytest.raises(ValueError, match="weight_init_std is 'hee', expected a number"):
        make(weight_init_std="hee")
    with pytest.raises(BackendError, match=r"unknown backend 'nunpy'.*did you mean 'numpy'"):
        make(backend="nunpy")


def test_two_layer_net_is_the_stack_it_says(backend, data):
    for operation in POINTWISE:
        net = TwoLayerNet(4, 5, 3, 0.5, type(operation).__name__.lower(), 1)
        same = Network([Affine(4, 5, 0.5), operation, Affine(5, 3, 0.5)], seed=1)
        assert_same(host(net), host(same))
        assert net.loss(*data) == same.loss(*data)
        assert net.inputs == 4


def test_repr(backend):
    net = Network([Affine(4, 5), ReLU(), Affine(5, 3)], IdentityWithLoss(), dtype="float32")
    expected = "Network([Affine(4, 5), ReLU(), Affine(5, 3)], IdentityWithLoss(), dtype=float32, "
    assert repr(net) == f"{expected}backend={backend.label})"
    assert repr(make()).startswith("TwoLayerNet([Affine(4, 5), Sigmoid(), Affine(5, 3)], Softmax")


# -- learning


@pytest.mark.slow
@pytest.mark.parametrize("reproducible", [False, True])
def test_a_confidently_wrong_network_learns(backend, reproducible):
    """Every sample is surely taken for a 0: where log(y + 1e-7) has no slope, log softmax has."""
    (x, t), _ = xnet.datasets.load_digits()
    x, t = x[t != 0], t[t != 0]
    net = Network([Affine(64, 10)], backend=xnet.resolve(backend, reproducible))
    net.params["b1"] = backend.asarray([60.0] + [0.0] * 9)
    assert net.accuracy(x, t) == 0.0
    assert net.loss(x, t) == pytest.approx(60, abs=0.1)
    optimizer, rng = xnet.optimizers.SGD(1.0), np.random.default_rng(0)
    for _ in range(50):
        for batch in np.array_split(rng.permutation(len(x)), 2):
            net.train_step(x[batch], t[batch], optimizer)
    assert net.loss(x, t) < 0.36
    assert net.accuracy(x, t) > 0.93


# -- where it lives


def test_a_network_stays_on_the_backend_it_was_made_on(backend, data):
    net = make()
    expected = net.loss(*data)
    with xnet.use_backend("numpy" if backend.name == "strict" else "strict"):
        assert net.backend is backend
        assert net.loss(*data) == expected
        assert backend.owns(net.predict(data[0]))
        assert backend.owns(net.gradient(*data)["W1"])


def test_backend_by_name(data):
    with xnet.use_backend("numpy"):
        net = make(backend="strict")
        assert net.backend.name == "strict"
        assert net.backend.owns(net.params["W1"])
        net.predict(data[0])
        assert xnet.get_backend().name == "numpy"


@pytest.mark.parametrize("target", ["numpy", "numba", "strict"])
def test_to(backend, dtype, data, target):
    net = make(dtype=dtype)
    before, expected = host(net), net.loss(*data)
    layers = list(net.layers)
    assert net.to(target) is net
    assert net.backend is xnet.resolve(target)
    assert net.layers == layers
    assert all(net.backend.owns(array) for array in net.params.values())
    assert_same(host(net), before)
    assert net.loss(*data) == pytest.approx(expected, rel=64 * float(np.finfo(dtype).eps))
    assert net.backend.owns(net.gradient(*data)["W1"])
    net.to(backend)
    assert_same(host(net), before)
    assert net.loss(*data) == expected


def test_to_an_unusable_backend_leaves_it_where_it_was(data):
    net = make(backend="numpy")
    expected = net.loss(*data)
    with pytest.raises(BackendError, match="unknown backend 'nowhere'"):
        net.to("nowhere")
    assert net.backend.name == "numpy"
    assert net.loss(*data) == expected


@pytest.mark.parametrize("cls", [cls for cls in OPTIMIZERS if cls.slots])
def test_an_optimizer_does_not_follow_a_network_that_moves(data, cls):
    """What it remembers is on the old device: arrays of two devices in one call."""
    net, optimizer = make(backend="numpy"), cls()
    optimizer.update(net.params, net.gradient(*data))
    net.to("strict")
    with pytest.raises(BackendError, match=r"numpy(.|\n)*strict|strict(.|\n)*numpy"):
        optimizer.update(net.params, net.gradient(*data))


# -- copies


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_the_same_and_apart(backend, dtype, data, duplicate):
    net = make(dtype=dtype)
    net.gradient(*data)
    before, expected = host(net), net.loss(*data)
    other = duplicate(net)
    assert type(other) is TwoLayerNet
    assert other.backend is backend
    assert_same(host(other), before)
    assert other.loss(*data) == expected
    assert_same(host(other, other.gradient(*data)), host(net, net.gradient(*data)))
    for name in other.params:
        other.params[name] -= 1.0
    assert other.layers[0].W is other.params["W1"]
    assert_same(host(net), before)
    assert net.loss(*data) == expected != other.loss(*data)


@pytest.mark.parametrize("loss", [SoftmaxWithLoss, IdentityWithLoss])
def test_a_pickle_is_of_the_network_alone(backend, data, loss):
    """Not of what it has predicted, nor the scores and gradients that `backward` was left."""
    x, t = data[0], np.eye(3)[data[1]]
    net = Network([Affine(4, 5), ReLU(), Affine(5, 3)], loss())
    before = pickle.dumps(net)
    for use in (net.predict, net.scores):
        use(x)
    for use in (net.accuracy, net.loss, net.gradient):
        use(x, t)
    assert pickle.dumps(net) == before


def test_a_pickle_goes_back_to_its_device(monkeypatch, data):
    """CuPy itself takes an array to the device that is current."""
    require_host_cuda(monkeypatch)
    net = make(backend="cupy:1")
    other = pickle.loads(pickle.dumps(net))
    assert other.backend.label == "cupy:1"
    assert all(map(other.backend.owns, other.params.values()))
    assert_same(host(other), host(net))
    assert other.loss(*data) == net.loss(*data)


# -- agreement


@pytest.mark.parametrize("operation", POINTWISE, ids=repr)
def test_backends_agree(backend, dtype, data, operation):
    activation = type(operation).__name__.lower()
    here = make(activation=activation, dtype=dtype, seed=4)
    reference = make(activation=activation, dtype=dtype, seed=4, backend="numpy")
    x, t = data
    assert_close(backend, here.predict(x), reference.predict(x), ulps=32)
    close = 32 * np.finfo(dtype).eps
    gradients = host(here, here.gradient(x, t))
    for name, expected in reference.gradient(x, t).items():
        np.testing.assert_allclose(gradients[name], expected, rtol=close, atol=close)


@pytest.mark.parametrize("layers", [[ReLU], [Affine(2, 2), "relu"]])
def test_layers_are_objects(layers):
    with pytest.raises(TypeError, match=r"layers\[\d\] is .*, expected a Layer object"):
        Network(layers)
    with pytest.raises(TypeError, match="loss is the class SoftmaxWithLoss, expected a LossLayer"):
        Network([Affine(2, 2)], SoftmaxWithLoss)
    with pytest.raises(TypeError, match=r"layers\[1\] is SoftmaxWithLoss\(\), expected a Layer"):
        Network([Affine(2, 2), SoftmaxWithLoss()])
    with pytest.raises(TypeError, match=r"layers\[1\] is SoftmaxWithLoss\(\), expected a Layer"):
        Network([Affine(2, 2), operations.SoftmaxWithLoss()])
    with pytest.raises(TypeError, match=r"loss is ReLU\(\), expected a LossLayer object"):
        Network([Affine(2, 2)], operations.ReLU())


def test_operations_stand_for_their_layers(backend, data):
    net = Network(
        [operations.Affine(4, 5, 0.5), operations.Tanh(), operations.Affine(5, 3, 0.5)],
        operations.SoftmaxWithLoss(label_smoothing=0.1),
    )
    same = Network([Affine(4, 5, 0.5), xnet.layers.Tanh(), Affine(5, 3, 0.5)], SoftmaxWithLoss(0.1))
    assert repr(net) == repr(same)
    assert net.loss(*data) == same.loss(*data) != make(activation="tanh").loss(*data)
    assert [type(layer) for layer in net.layers] == [type(layer) for layer in same.layers]


def test_network_that_cannot_move_stays_whole(monkeypatch):
    """The second layer does not fit on the other device: the first stays too."""
    net = make(backend="numpy")
    strict, moved = xnet.resolve("strict"), []

    def asarray(values, dtype=None):
        moved.append(values)
        if len(moved) == 3:
            raise MemoryError
        return type(strict).asarray(strict, values, dtype)

    monkeypatch.setattr(strict, "asarray", asarray)
    with pytest.raises(MemoryError):
        net.to("strict")
    assert all(net.backend.owns(array) for array in net.params.values())


# -- one score is no choice between classes

OF_CLASSES = [loss for loss in variants("loss", altered=False) if loss.classes]
OF_NUMBERS = [loss for loss in variants("loss", altered=False) if not loss.classes]


@pytest.mark.parametrize("loss", OF_CLASSES, ids=str)
def test_one_score_is_refused_by_losses_of_classes(backend, loss):
    """Its softmax is 1 whatever is learnt: the loss was 0 and the accuracy 1 on random labels."""
    message = rf"{type(loss).__name__}: one score is no choice between classes: .*BinaryCross"
    with pytest.raises(ValueError, match=message):
        Network([Affine(4, 1)], loss)
    net = Network([Affine(4, 3)], loss)
    before = xnet.weights.sha256(net)
    with pytest.raises(ValueError, match=message):
        net.layers = [Affine(4, 1)]
    with pytest.raises(ValueError, match=message):
        net.layers.append(Affine(3, 1))
    assert xnet.weights.sha256(net) == before
    layer, x = make_loss(loss), backend.asarray(np.ones((2, 1)))
    for call in (lambda: layer(x), lambda: layer.forward(x, x)):
        with pytest.raises(ValueError, match=message):
            call()
    of_numbers = Network([Affine(4, 1)], OF_NUMBERS[0])
    with pytest.raises(ValueError, match=message):
        of_numbers.loss_layer = loss
    assert of_numbers.loss_layer.operation is OF_NUMBERS[0]


@pytest.mark.parametrize("loss", OF_NUMBERS, ids=str)
def test_one_score_is_taken_by_the_others(backend, loss, rng):
    net = Network([Affine(4, 1)], loss, backend=backend)
    x = rng.normal(size=(5, 4))
    t = (x[:, :1] > 0).astype(float)
    assert net.predict(x).shape == (5, 1)
    before = net.loss(x, t)
    for _ in range(20):
        net.train_step(x, t, xnet.optimizers.SGD(0.05))
    assert net.loss(x, t) < before


class Narrowing(Layer):
    """A layer that says not how wide it is: what it gives is met as it comes."""

    def __call__(self, x):
        return x[:, :1]

    forward = __call__


def test_one_score_of_a_layer_that_says_nothing_is_met_as_it_comes():
    net = Network([Narrowing()], dtype="float64")
    for call in (net.predict, lambda x: net.loss(x, np.zeros((3, 1)))):
        with pytest.raises(ValueError, match="one score is no choice between classes"):
            call(np.ones((3, 4)))


# -- what is not a number


def test_nan_stays_nan_and_is_never_right(backend):
    """Predictions say what they know, in every backend alike; training refuses NaN."""
    net = xnet.TwoLayerNet(4, 5, 3, activation="relu", backend=backend)
    x = np.linspace(-1, 1, 24).reshape(6, 4)
    x[1, 2], x[4, 0] = np.nan, np.inf
    y = backend.to_numpy(net.predict(x))
    assert np.isnan(y[[1, 4]]).all()
    assert np.isfinite(y[[0, 2, 3, 5]]).all()
    sure = y.argmax(axis=1)
    assert sure[1] == 0  # what argmax makes of NaN
    assert net.accuracy(x, sure) == 4 / 6
    assert np.isnan(net.loss(x, sure))


# -- a newcomer's first steps


def test_tab_finds_what_there_is():
    assert set(xnet.__all__) <= set(dir(xnet))
    for name in xnet.__all__:
        assert getattr(xnet, name) is not None
    assert {"Affine", "ReLU", "Layer"} <= set(dir(xnet.layers))
    assert {"sigmoid", "relu", "softmax", "step"} <= set(dir(xnet.activations))


# -- a process that has NumPy raise


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_block_cut_off_at_its_end_is_not_taken_for_silent(reproducible, ctrl_c):
    """A Ctrl-C before the first line of `__exit__` leaves NumPy silent, until told to raise."""

    tracing = sys.gettrace()

    def at_the_end(frame, event, argument):
        if event == "call" and frame.f_code is xnet_numpy.Silence.__exit__.__code__:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), xnet_numpy.Silence():
        sys.settrace(at_the_end)
    sys.settrace(tracing)
    assert np.geterr()["over"] == "ignore"
    gc.collect()
    with xnet.use_backend("numpy", reproducible), np.errstate(all="raise"):
        Sigmoid().forward(EXTREMES)


EXTREMES = np.array([[1e300, -1e300, 1e-310, -800.0], [800.0, 1e-200, 0.0, -1.0]])

TINY = np.array([[1e-155, 1e-310, 0.0, -1e-155]])


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_numpys_errors_are_no_errors_here(name, reproducible):
    """Underflow in a softmax is harmless, and overflow gives infinity, whatever NumPy is told."""
    with xnet.use_backend(name, reproducible), np.errstate(all="raise"):
        for operation in variants("pointwise", "rows", altered=False):
            layer = Layer.of(operation)
            layer.forward(EXTREMES)
            layer.backward(EXTREMES[::-1].copy())
        for loss in variants("loss", altered=False):
            net = Network([Affine.from_params(np.eye(4), np.zeros(4))], loss)
            t = np.eye(4)[[0, 2]]
            net.loss(EXTREMES, t)
            net.gradient(EXTREMES, t)
            net.numerical_gradient(EXTREMES, t, method="naive")
            net.accuracy(EXTREMES, t)
        for f in (xnet.activations.softmax, xnet.activations.sigmoid, xnet.activations.step):
            f(EXTREMES)
        y, t = np.abs(EXTREMES), np.array([0, 2])
        xnet.losses.cross_entropy_error(y, t)
        xnet.losses.mean_squared_error(y, t)
        xnet.measures.r_squared(y, EXTREMES)
        net = TwoLayerNet(4, 5, 3, weight_init_std=1e-160)
        for make in OPTIMIZERS:
            net.train_step(TINY, np.array([1]), make())
        xnet.train(net, EXTREMES[1:], np.array([2]), iterations=2)
        xnet.gradient_check(net, EXTREMES[1:], np.array([2]))


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("within", [ReLU(), Dropout(0.0)])
def test_one_network_in_many_threads(within, reproducible, backend, rng):
    """Losses and gradients take turns: layers, and what runs them whole, remember one pass."""
    with xnet.use_backend(backend.name, reproducible=reproducible):
        net = Network([Affine(20, 20), within.copy(), Affine(20, 5)], seed=0)
    batches = [(rng.normal(size=(n, 20)), rng.integers(5, size=n)) for n in (3, 40, 3)]
    asked = [
        lambda x, t: {"loss": net.loss(x, t)},
        lambda x, t: host(net, net.gradient(x, t)),
    ]
    right = [(ask, batch, ask(*batch)) for ask in asked for batch in batches]
    wrong = []

    def go_on():
        for _ in range(10):
            for ask, batch, expected in right:
                found = ask(*batch)
                wrong.extend(k for k, v in expected.items() if not np.array_equal(found[k], v))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=go_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("loss", variants("loss", altered=False), ids=repr)
def test_a_sample_that_counts_so_often(loss, reproducible, backend, rng):
    """As if it stood there so often, where the mean is over as many; once is as without weights."""
    columns, counts = 1 + loss.classes, np.array([2, 0, 1, 5])
    with xnet.use_backend(backend.name, reproducible=reproducible):
        net = Network([Affine(3, 4), Sigmoid(), Affine(4, columns)], make_loss(loss), seed=0)
    x = rng.normal(size=(4, 3))
    t = np.array([0, 1, 1, 0]) if loss.classes else np.sign(rng.normal(size=(4, columns)))
    found, gradients = net.loss_and_gradient(x, t, counts)
    again = np.repeat(x, counts, axis=0), np.repeat(t, counts, axis=0)
    expected, repeated = net.loss_and_gradient(*again)
    np.testing.assert_allclose(found, 2 * expected, rtol=1e-12)  # 8 samples of a mean over 4
    for name, array in host(net, gradients).items():
        np.testing.assert_allclose(array, 2 * host(net, repeated)[name], rtol=1e-9, atol=1e-13)
    once, plain = net.loss_and_gradient(x, t, np.ones(4)), net.loss_and_gradient(x, t)
    np.testing.assert_allclose(once[0], plain[0], rtol=1e-14)
    if reproducible:
        assert_same(host(net, once[1]), host(net, plain[1]))


def test_a_step_of_weighted_samples(backend, data):
    net, same = make(), make()
    counts = np.array([1, 2, 0, 1, 1, 3])
    loss = net.train_step(*data, SGD(0.5), counts)
    expected, gradients = same.loss_and_gradient(*data, counts)
    same.update(SGD(0.5), gradients)
    assert loss == expected != net.loss(*data)
    assert_same(host(net), host(same))


class OwnLoss(SoftmaxWithLoss):
    def forward(self, x, t):
        return super().forward(x, t)


def test_weights_that_do_not_fit(data):
    for weight, message in (
        (np.ones(5), r"has shape \(5,\), expected \(6,\)"),
        ([1, 1, 1, 1, 1, -1], r"holds -1.0, expected numbers of at least 0"),
        ([1, np.nan, 1, 1, 1, 1], r"holds nan"),
    ):
        with pytest.raises(ValueError, match=f"sample_weight {message}"):
            make().loss_and_gradient(*data, weight)
    net = Network([Affine(4, 3)], OwnLoss())
    with pytest.raises(ValueError, match=r"sample_weight: .*OwnLoss.* says itself"):
        net.loss_and_gradient(*data, np.ones(6))
