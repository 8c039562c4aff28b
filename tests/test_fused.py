"""Runs of layers in one call against the layers one by one: predictions, gradients and steps."""

import ast
import contextlib
import copy
import dataclasses
import pickle
import signal
import sys
import time
import tracemalloc

import numpy as np
import pytest
import xnet_numpy
from conftest import OPTIMIZERS, variants

import xnet
from xnet import optimizers
from xnet.backend import Backend
from xnet.layers import (
    Affine,
    BatchNorm,
    BinaryCrossEntropy,
    Dropout,
    IdentityWithLoss,
    Layer,
    LayerNorm,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    SoftmaxWithLoss,
    Tanh,
    layer_class,
)
from xnet.operations import Affine as Product
from xnet.optimizers import SGD, Adam, Momentum
from xnet.plan import outputs
from xnet.testing.parity import same_bits


class Opaque(layer_class(xnet.operations.Tanh)):
    """A layer of one's own, of which no backend knows what it computes."""

    def __call__(self, x):
        return 2 * super().__call__(x)

    def forward(self, x):
        return 2 * super().forward(x)

    def backward(self, dout):
        return super().backward(2 * dout)


STACKS = {
    "deep": lambda: [Affine(7, 5, 1.0), Sigmoid(), Affine(5, 9, 1.0), ReLU(), Affine(9, 3, 1.0)],
    "one": lambda: [Affine(7, 3, 1.0)],
    "wide": lambda: [Affine(7, 150, 1.0), ReLU(), Affine(150, 1, 1.0), Sigmoid()],
    "affine twice": lambda: [Affine(7, 33, 1.0), Affine(33, 2, 1.0)],
    "two activations": lambda: [Affine(7, 4, 1.0), Sigmoid(), ReLU(), Affine(4, 3, 1.0)],
    "activation first": lambda: [Tanh(), Affine(7, 4, 1.0), ReLU(), Affine(4, 3, 1.0)],
    "opaque first": lambda: [Opaque(), Affine(7, 4, 1.0), SiLU(), Affine(4, 3, 1.0)],
    "opaque in the middle": lambda: [
        *(Affine(7, 4, 1.0), SiLU(), Opaque(), Affine(4, 5, 1.0), LeakyReLU(), Affine(5, 3, 1.0)),
    ],
    "opaque last": lambda: [Affine(7, 4, 1.0), SiLU(), Affine(4, 3, 1.0), Opaque()],
    "normalised": lambda: [
        *(Affine(7, 6, 1.0), BatchNorm(6), ReLU(), Affine(6, 5, 1.0), LayerNorm(5), Tanh()),
        *(Dropout(0.3), Affine(5, 4, 1.0), Softmax(), Affine(4, 3, 1.0)),
    ],
}
BATCHES = (1, 2, 3, 5, 6, 7, 13, 47, 48, 49, 100, 130, 300)


def layer_by_layer(backend):
    """A backend like this one that takes no run."""
    kind = type("LayerByLayer", (type(backend),), {"takes": lambda self, run: 0})
    return kind(backend.device, reproducible=backend.reproducible)


class Formulas(xnet_numpy.NumpyBackend):
    """NumPy's arrays by the formulas as they stand, layer by layer."""

    run, run_backward, predicted = Backend.run, Backend.run_backward, Backend.predicted
    row_losses, loss_and_delta, step = Backend.row_losses, Backend.loss_and_delta, Backend.step

    def takes(self, run):
        return 0


def pair(make, backend, dtype, loss=SoftmaxWithLoss):
    """A network, and one like it on NumPy that never takes several layers in one call."""
    return [stacked(make, where, dtype, loss) for where in (backend, Formulas())]


def stacked(make, backend, dtype, loss=SoftmaxWithLoss):
    """A network of these layers; one score is no choice between classes, but yes or no."""
    layers = [v if isinstance(v, Layer) else Layer.of(v) for v in make()]
    made = loss()
    if made.classes and outputs(layers) == 1:
        made = BinaryCrossEntropy()
    return xnet.Network(layers, made, dtype=dtype, backend=backend)


def sample(n, zeros, dtype):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, 7))
    return np.where(rng.random(x.shape) < zeros, 0, x).astype(dtype)


def labels(net, n, dtype):
    """Class indices or, where there is one score, targets."""
    classes = next(v.outputs for v in reversed(net.layers) if isinstance(v, Affine))
    if classes == 1:
        return np.ones((n, 1), dtype)
    return np.random.default_rng(0).integers(0, classes, n)


def assert_close(backend, actual, expected, units, what=""):
    """Within so many units of rounding of the largest number, or of 1."""
    actual = backend.to_numpy(actual)
    assert actual.dtype == expected.dtype, what
    atol = units * np.finfo(expected.dtype).eps * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=what)


def check_predictions(backend, fused, layers, x):
    assert_close(backend, fused.predict(x), layers.predict(x), 40)
    assert_close(backend, fused.scores(x), layers.scores(x), 40)


def check_gradients(backend, fused, layers, x, t):
    expected, actual = layers.loss_and_gradient(x, t), fused.loss_and_gradient(x, t)
    eps = float(np.finfo(x.dtype).eps)
    # A small loss is the difference of scores of about 1, and they are rounded in units of that.
    assert actual[0] == pytest.approx(expected[0], rel=400 * eps, abs=4 * eps)
    assert list(actual[1]) == list(expected[1])
    for name, gradient in expected[1].items():
        assert_close(backend, actual[1][name], gradient, 400, f"{name}, {len(x)}")


def arrays_of(net, optimizer):
    """Parameters, and what is remembered of them."""
    return [*net.params.values(), *(a for kept in optimizer.memory.values() for a in kept)]


# -- whatever the layers are


@pytest.mark.parametrize("zeros", [0, 0.9])
@pytest.mark.parametrize("stack", STACKS)
def test_predictions_are_the_layers(backend, dtype, stack, zeros):
    fused, layers = pair(STACKS[stack], backend, dtype)
    for n in BATCHES:
        check_predictions(backend, fused, layers, sample(n, zeros, dtype))


@pytest.mark.parametrize("loss", [SoftmaxWithLoss, IdentityWithLoss])
@pytest.mark.parametrize("zeros", [0, 0.9])
@pytest.mark.parametrize("stack", STACKS)
def test_gradients_are_the_layers(backend, dtype, stack, zeros, loss):
    fused, layers = pair(STACKS[stack], backend, dtype, loss)
    # The variance of few rows may be next to nothing, and all that is divided by it beyond bounds.
    batches = BATCHES if stack != "normalised" else (13, 100)
    for n in batches:
        x = sample(n, zeros if stack != "normalised" else 0, dtype)
        check_gradients(backend, fused, layers, x, labels(layers, n, dtype))


@pytest.mark.parametrize("operation", variants("pointwise", "rows"), ids=repr)
def test_every_activation_within_a_run(backend, dtype, operation):
    def make():
        return [Product(7, 6, 1.0), operation, Product(6, 9, 1.0), operation, Product(9, 3, 1.0)]

    fused, layers = pair(make, backend, dtype)
    for n in (1, 13, 100):
        x = sample(n, 0, dtype)
        check_predictions(backend, fused, layers, x)
        check_gradients(backend, fused, layers, x, labels(layers, n, dtype))


@pytest.mark.parametrize("operation", variants("pointwise", "rows"), ids=repr)
def test_every_activation_at_the_end_of_a_run(backend, dtype, operation):
    def make():
        return [Product(7, 6, 1.0), operation, Product(6, 3, 1.0), operation]

    fused, layers = pair(make, backend, dtype, IdentityWithLoss)
    for n in (1, 13, 100):
        x = sample(n, 0.9, dtype)
        check_predictions(backend, fused, layers, x)
        check_gradients(backend, fused, layers, x, labels(layers, n, dtype))


@pytest.mark.parametrize("loss", variants("loss"), ids=repr)
def test_every_loss_behind_a_run(backend, dtype, loss):
    def make():
        return [Product(7, 6, 1.0), xnet.operations.Tanh(), Product(6, 3, 1.0)]

    fused, layers = pair(make, backend, dtype, lambda: loss)
    for n in (1, 13, 100):
        x = sample(n, 0, dtype)
        check_predictions(backend, fused, layers, x)
        check_gradients(backend, fused, layers, x, labels(layers, n, dtype))
        soft = np.random.default_rng(n).random((n, 3)).astype(dtype)
        check_gradients(backend, fused, layers, x, soft)


def test_numba_takes_what_it_says():
    """The longest runs go to it whole, whatever the activation and the loss."""
    pytest.importorskip("numba")
    for operation in variants("pointwise", altered=False):
        stack = [Product(7, 6), operation, Product(6, 3), operation]
        net = xnet.Network(stack, backend="numba")
        assert net._planned().whole is not None, operation
    for loss in variants("loss", altered=False):
        net = xnet.Network([Product(7, 6), Product(6, 3)], loss, backend="numba")
        assert net._planned().whole is not None, loss
        assert net._planned().end is not None, loss
    net = xnet.Network(STACKS["opaque in the middle"](), backend="numba")
    sizes = [len(getattr(segment, "layers", [None])) for segment in net._planned().segments]
    assert sizes == [2, 1, 3]


@pytest.mark.parametrize("n", [1, 2, 7, 36, 37, 100])
@pytest.mark.parametrize("zeros", [0, 0.9])
def test_shared_out_by_rows_or_columns_it_is_the_same_bits(monkeypatch, dtype, n, zeros):
    pool = pytest.importorskip("xnet_numba.pool")
    layers = [Affine(70, 601, 0.1), Sigmoid(), Affine(601, 90), ReLU(), Affine(90, 500), SiLU()]
    net = xnet.Network(layers, dtype=dtype, backend="numba")
    rng = np.random.default_rng(n)
    x = np.where(rng.random((n, 70)) < zeros, 0, rng.standard_normal((n, 70))).astype(dtype)
    t = rng.integers(0, 500, n)
    monkeypatch.setattr(pool, "thread_count", lambda: 1)
    alone, probabilities, (loss, gradients) = net.scores(x), net.predict(x), gradients_of(net, x, t)
    monkeypatch.setattr(pool, "thread_count", lambda: 3)
    monkeypatch.setattr(pool.Pool, "HELP_FROM", 0)
    monkeypatch.setattr(pool.Pool, "WAKE_FROM", 0)
    for _ in range(10):
        twin = copy.deepcopy(net)
        assert np.array_equal(twin.scores(x), alone)
        assert np.array_equal(twin.predict(x), probabilities)
        found = gradients_of(twin, x, t)
        assert found[0] == loss
        for name, gradient in gradients.items():
            assert np.array_equal(found[1][name], gradient), name


def gradients_of(net, x, t):
    loss, gradients = net.loss_and_gradient(x, t)
    return loss, {name: np.array(gradient) for name, gradient in gradients.items()}


@pytest.mark.parametrize("loss", [SoftmaxWithLoss, IdentityWithLoss])
@pytest.mark.parametrize("stack", STACKS)
def test_reproducible_gradients_are_the_layers_own_bits(backend, dtype, stack, loss):
    """Whether a backend's one call goes through the kernels, or the layers do."""
    here = xnet.resolve(backend.name, reproducible=True)
    whole, layers = (
        stacked(STACKS[stack], where, dtype, loss) for where in (here, layer_by_layer(here))
    )
    x, t = sample(13, 0.2, dtype), labels(layers, 13, dtype)
    for one in (whole, layers):  # as what is drawn comes one after the other
        one.y, one.found = here.to_numpy(one.predict(x)), one.loss_and_gradient(x, t)
    assert same_bits(whole.y, layers.y)
    assert whole.found[0] == layers.found[0]
    for name, gradient in layers.found[1].items():
        assert same_bits(here.to_numpy(whole.found[1][name]), here.to_numpy(gradient)), name


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("what", ["x", "W1", "W2", "b1"])
def test_reproducible_gradients_of_what_is_not_finite(dtype, bad, what):
    """A pass in one call leaves these to the layers: there they have the bits of any backend."""
    pytest.importorskip("numba")
    found = []
    for where in (xnet.resolve("numba", True), layer_by_layer(xnet.resolve("numpy", True))):
        net = xnet.Network(STACKS["deep"](), dtype=dtype, backend=where)
        x, optimizer = sample(13, 0, dtype), Momentum()
        (x if what == "x" else net.params[what])[..., 1] = bad
        loss = net.train_step(x, labels(net, 13, dtype), optimizer)
        found.append([np.array(loss), *arrays_of(net, optimizer)])
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


# -- parameters


def test_replaced_and_written_parameters_count(backend):
    net = xnet.TwoLayerNet(4, 3, 2, 1.0, backend=backend)
    x = np.ones((9, 4))
    before = backend.to_numpy(net.predict(x))
    net.params["W1"] = backend.asarray(np.zeros((4, 3)))
    replaced = backend.to_numpy(net.predict(x))
    assert not np.array_equal(before, replaced)
    scores = 0.5 * backend.to_numpy(net.params["W2"]).sum(axis=0)  # sigmoid(0 x + 0) is 0.5
    np.testing.assert_allclose(replaced, np.tile(np.exp(scores) / np.exp(scores).sum(), (9, 1)))
    net.layers[2].b = backend.asarray([50.0, 0.0])
    np.testing.assert_allclose(backend.to_numpy(net.predict(x))[:, 0], 1)


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_parameters_written_in_place_count(name):
    net = xnet.TwoLayerNet(4, 3, 2, 1.0, backend=name)
    x = np.ones((9, 4))
    net.predict(x)
    net.params["b2"][:] = [50, 0]
    np.testing.assert_allclose(net.predict(x)[:, 0], 1)
    net.params["W1"][2, 1] = np.nan
    assert np.isnan(net.predict(x)).all()


def test_another_loss_or_other_settings_count(backend):
    """What a run keeps for its calls, it keeps for an operation, and operations never change."""
    net = xnet.Network([Affine(4, 3, 1.0), LeakyReLU(0.5), Affine(3, 2, 1.0)], backend=backend)
    x = np.random.default_rng(0).normal(size=(9, 4))
    probabilities = backend.to_numpy(net.predict(x))
    scores = backend.to_numpy(net.scores(x))
    net.loss_layer = IdentityWithLoss()
    np.testing.assert_array_equal(backend.to_numpy(net.predict(x)), scores)
    net.loss_layer = SoftmaxWithLoss()
    np.testing.assert_array_equal(backend.to_numpy(net.predict(x)), probabilities)
    for slope in (0.0, 1.0):
        net.layers[1] = LeakyReLU(slope)
        _, layers = pair(
            lambda s=slope: [Affine(4, 3), LeakyReLU(s), Affine(3, 2)], backend, "float64"
        )
        for name in net.params:
            layers.params[name] = backend.to_numpy(net.params[name])
        assert_close(backend, net.scores(x), layers.scores(x), 40)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_zeros_are_not_skipped_where_w_is_not_finite(backend, bad):
    """0 times infinity is NaN, as it is layer by layer."""
    net = xnet.Network([Affine(100, 3)], backend=backend)
    W = np.ones((100, 3))
    W[50] = bad
    net.params["W1"] = backend.asarray(W)
    x = np.zeros((20, 100))
    x[:, 1] = 1
    assert np.isnan(backend.to_numpy(net.scores(x))).all()


def test_zeros_are_not_skipped_where_a_gradient_is_not_finite(backend):
    net = xnet.Network([Affine(100, 3)], IdentityWithLoss(), backend=backend)
    x, t = np.zeros((20, 100)), np.zeros((20, 3))
    x[:, 1], t[:, 2] = 1, np.inf
    gradient = backend.to_numpy(net.gradient(x, t)["W1"])
    assert np.isnan(gradient[0]).tolist() == [False, False, True]
    assert gradient[1, 2] == -np.inf


def test_nan_in_x_is_no_zero(backend):
    net = xnet.Network([Affine(200, 3, 1.0)], backend=backend)
    x = np.zeros((20, 200))
    x[3, 70] = np.nan
    rows = np.isnan(backend.to_numpy(net.scores(x))).all(axis=1)
    assert rows.tolist() == [i == 3 for i in range(20)]


def test_a_subclass_that_computes_otherwise_is_asked(backend):
    class Twice(ReLU):
        def __call__(self, x):
            return 2 * super().__call__(x)

    class NoGradient(Affine):
        def backward(self, dout):
            super().backward(dout)
            self.dW = self.dW * 0
            return dout

    layers = [Affine(4, 3, 1.0), ReLU(), Affine(3, 2, 1.0)]
    x = np.ones((5, 4))
    plain = xnet.Network([layer.copy() for layer in layers], backend=backend)
    scores = backend.to_numpy(plain.scores(x)) - backend.to_numpy(plain.params["b2"])
    doubled = xnet.Network([layers[0], Twice(), layers[2]], backend=backend)
    np.testing.assert_allclose(backend.to_numpy(doubled.scores(x)), 2 * scores)
    silent = xnet.Network([NoGradient(4, 3, 1.0)], backend=backend)
    assert not backend.to_numpy(silent.gradient(x, [0, 1, 2, 0, 1])["W1"]).any()


class Halved(Product, abstract=True):
    """A product by another formula, of which a backend's own product is none."""

    def forward(self, m, x, W, b):
        return 0.5 * super().forward(m, x, W, b)

    def backward(self, m, dout, x, y, W, b):
        return super().backward(m, 0.5 * dout, x, y, W, b)

    def backward_parameters(self, m, dout, x):
        return super().backward_parameters(m, 0.5 * dout, x)


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_product_with_a_formula_of_its_own_is_asked(backend, reproducible):
    backend = xnet.resolve(backend.name, reproducible)
    x, t = sample(5, 0, "float64"), [0, 1, 2, 0, 1]
    halved, plain = (
        xnet.Network([kind(7, 3, 1.0)], IdentityWithLoss(), backend=backend)
        for kind in (Halved, Product)
    )
    found, expected = (backend.to_numpy(net.scores(x)) for net in (halved, plain))
    np.testing.assert_allclose(found, 0.5 * expected, rtol=1e-14)
    t = backend.asarray(2.0 * found)  # so that both have the same difference from their targets
    gradient = backend.to_numpy(halved.gradient(x, t)["W1"])
    np.testing.assert_allclose(gradient, 0.5 * x.T @ (found - 2 * found) / 5, rtol=1e-13)


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_predicting_60000_images_takes_little_memory(name):
    layers = [Affine(784, 50), Sigmoid(), Affine(50, 100), Sigmoid(), Affine(100, 10)]
    net = xnet.Network(layers, dtype="float32", backend=name)
    x = np.zeros((60_000, 784), np.float32)
    net.predict(x[:100])
    tracemalloc.start()
    net.predict(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 64 * 2**20


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_a_copy_has_parameters_of_its_own(name, twin):
    """What the original keeps for its calls holds addresses of the original's arrays."""
    net = xnet.TwoLayerNet(4, 3, 2, 1.0, backend=name)
    x, t, optimizer = np.ones((9, 4)), [0, 1, 0, 1, 0, 1, 0, 1, 0], Adam()
    net.train_step(x, t, optimizer)
    before = net.predict(x)
    other = twin(net)
    net.params["b2"][:] = [50, 0]
    np.testing.assert_array_equal(other.predict(x), before)
    other.train_step(x, t, Adam())
    np.testing.assert_allclose(net.predict(x)[:, 0], 1)
    other.params["b2"][:] = [0, 50]
    np.testing.assert_allclose(net.predict(x)[:, 0], 1)


def test_a_copied_optimizer_has_a_memory_of_its_own():
    net, optimizer = xnet.TwoLayerNet(4, 3, 2, 1.0, backend="numba"), Momentum()
    x, t = np.ones((9, 4)), [0, 1, 0, 1, 0, 1, 0, 1, 0]
    net.train_step(x, t, optimizer)
    other = copy.deepcopy(optimizer)
    kept = {name: v.copy() for name, (v,) in optimizer.memory.items()}
    net.train_step(x, t, other)
    for name, v in kept.items():
        np.testing.assert_array_equal(optimizer.memory[name][0], v)
        assert not np.array_equal(other.memory[name][0], v)
    assert set(optimizer.taken.values()) == {1}
    assert set(other.taken.values()) == {2}


# -- training steps


def settings_of(cls):
    """Optimizers of a class: as it is, with weight decay, and with each switch turned."""
    switches = [f.name for f in dataclasses.fields(cls) if type(f.default) is bool]
    return [cls(), cls(weight_decay=0.125), *(cls(**{name: True}) for name in switches)]


UPDATES = [update for cls in OPTIMIZERS for update in settings_of(cls)]


def by_parts(net, x, t, optimizer):
    """A training step as its gradient and the update."""
    loss, gradients = net.loss_and_gradient(x, t)
    net.update(optimizer, gradients)
    return loss


def assert_same_state(one, its, other, others, what=""):
    """Two networks and optimizers are alike to the bit."""
    here = one.backend.to_numpy
    assert list(one.params) == list(other.params), what
    for name, W in other.params.items():
        assert same_bits(here(one.params[name]), here(W)), f"{what}, {name}"
    assert its.taken == others.taken, what
    for name in others.taken:
        pairs = zip(its.memory.get(name, []), others.memory.get(name, []), strict=True)
        assert all(same_bits(here(a), here(b)) for a, b in pairs), f"{what}, {name}"


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("update", UPDATES, ids=repr)
def test_a_training_step_is_the_gradient_and_the_update(backend, dtype, update, reproducible):
    """Their products round, and must before a difference is taken of them."""
    backend = xnet.resolve(backend.name, reproducible)
    one, other = (xnet.Network(STACKS["deep"](), dtype=dtype, backend=backend) for _ in "ab")
    its, others = copy.deepcopy(update), copy.deepcopy(update)
    for n in (1, 7, 100, 7):
        x, t = sample(n, 0.5, dtype), labels(one, n, dtype)
        before = one.params["W1"]
        assert one.train_step(x, t, its) == by_parts(other, x, t, others)
        assert (one.params["W1"] is before) == backend.writable(before)
        assert_same_state(one, its, other, others, f"{n} rows")


@pytest.mark.parametrize("zeros", [0, 0.9])
@pytest.mark.parametrize("stack", STACKS)
def test_a_training_step_whatever_the_layers(backend, dtype, stack, zeros):
    one, other = (stacked(STACKS[stack], backend, dtype) for _ in "ab")
    its, others = Adam(0.1), Adam(0.1)
    for n in (1, 7, 100):
        x, t = sample(n, zeros, dtype), labels(one, n, dtype)
        assert one.train_step(x, t, its) == by_parts(other, x, t, others)
        assert_same_state(one, its, other, others, f"{n} rows")


@pytest.mark.parametrize("loss", variants("loss"), ids=repr)
@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_a_training_step_whatever_the_loss(name, dtype, loss, reproducible):
    backend = xnet.resolve(name, reproducible)
    one, other = (xnet.Network(STACKS["deep"](), loss, dtype=dtype, backend=backend) for _ in "ab")
    its, others = SGD(0.3), SGD(0.3)
    for n in (1, 7, 7):
        x, t = sample(n, 0, dtype), labels(one, n, dtype)
        assert one.train_step(x, t, its) == by_parts(other, x, t, others)
        assert_same_state(one, its, other, others, f"{n} rows")


class Remembers(optimizers.Optimizer):
    """An optimizer that remembers as much as it is told to."""

    def step(self, m, n, W, g, *memory):
        return W - self.lr * g, *(m + g for m in memory)


def remembering(count):
    return type(f"Remembers{count}", (Remembers,), {"slots": count})


MANY = {count: remembering(count) for count in (1, 2, 3, 4, 5, 9)}
for made in (Remembers, *MANY.values()):
    del optimizers.OPTIMIZERS[made.__name__.lower()]


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("count", MANY)
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_an_optimizer_may_remember_any_number_of_arrays(name, dtype, count, reproducible):
    backend = xnet.resolve(name, reproducible)
    one, other = (xnet.Network(STACKS["deep"](), dtype=dtype, backend=backend) for _ in "ab")
    its, others = MANY[count](0.1), MANY[count](0.1)
    for n in (5, 7, 5):
        x, t = sample(n, 0, dtype), labels(one, n, dtype)
        assert one.train_step(x, t, its) == by_parts(other, x, t, others)
        assert_same_state(one, its, other, others)
    assert {len(kept) for kept in its.memory.values()} == {count}


STEPS = {
    "of the old memory": lambda m, n, W, g, v: (v - 0.1 * g, W),
    "whose parts are remembered": lambda m, n, W, g, v: (W - (s := 0.1 * g), s * 2.0),
    "that is remembered": lambda m, n, W, g, v: (new := W - 0.1 * g, new),
    "that is read again": lambda m, n, W, g, v: (new := W - 0.1 * g, new * g),
    "of the gradient alone": lambda m, n, W, g, v: (g, W + v),
    "that leaves W": lambda m, n, W, g, v: (W, v - g),
    "by cases": lambda m, n, W, g, v: (m.where(g > 0, W - 0.1, W + 0.1), v * W),
}
"""Steps that read what they write, or write what is read later."""


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_all_of_a_step_is_computed_before_any_is_written(backend, dtype, step, reproducible):
    backend = xnet.resolve(backend.name, reproducible)
    methods = {"slots": 1, "step": lambda self, *arguments: STEPS[step](*arguments)}
    cls = type("Peculiar", (optimizers.Optimizer,), methods)
    one, other = (xnet.Network(STACKS["deep"](), dtype=dtype, backend=backend) for _ in "ab")
    its, others = cls(0.1), cls(0.1)
    for n in (5, 7, 5):
        x, t = sample(n, 0, dtype), labels(one, n, dtype)
        assert one.train_step(x, t, its) == by_parts(other, x, t, others)
        assert_same_state(one, its, other, others)


def nothing(net, optimizer):
    """Nothing happens."""


def change_lr(net, optimizer):
    optimizer.lr = 0.25 * optimizer.lr


def begin_weight_decay(net, optimizer):
    optimizer.weight_decay = 0.125


def write_a_parameter(net, optimizer):
    net.params["W2"] = net.params["W2"] * 2


def replace_a_parameter(net, optimizer):
    net.layers[2].W = net.layers[2].W * 2


def make_read_only(net, optimizer):
    net.params["W1"].flags.writeable = False


def freeze_a_layer(net, optimizer):
    net.layers[0].trainable = False


def replace_a_layer(net, optimizer):
    net.layers[1] = Tanh()


def update_one_alone(net, optimizer):
    """Then it is a step ahead of the others."""
    optimizer.update(net.params, {"b1": np.ones_like(net.params["b1"])})


def forget(net, optimizer):
    optimizer.memory.clear()
    optimizer.taken.clear()


def restore_copies(net, optimizer):
    """As from a checkpoint."""
    optimizer.memory.update({k: [a.copy() for a in kept] for k, kept in optimizer.memory.items()})


def restore_others(net, optimizer):
    for kept in optimizer.memory.values():
        kept[:] = [2 * array for array in kept]


def restore_read_only(net, optimizer):
    restore_copies(net, optimizer)
    for kept in optimizer.memory.values():
        for array in kept:
            array.flags.writeable = False


def restore_transposed(net, optimizer):
    for kept in optimizer.memory.values():
        kept[:] = [np.asfortranarray(array) for array in kept]


EVENTS = (
    *(nothing, change_lr, begin_weight_decay, write_a_parameter, replace_a_parameter),
    *(make_read_only, freeze_a_layer, replace_a_layer, update_one_alone, forget),
    *(restore_copies, restore_others, restore_read_only, restore_transposed),
)


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_whatever_happens_between_steps(name, event, reproducible):
    """What is kept from step to step is what would be found anew."""
    backend = xnet.resolve(name, reproducible)
    one, other = (xnet.Network(STACKS["deep"](), backend=backend) for _ in "ab")
    its, others = Adam(0.1), Adam(0.1)
    x, t = sample(7, 0, "float64"), labels(one, 7, "float64")
    for k in range(5):
        if k in (2, 3):
            event(one, its)
            event(other, others)
        assert one.train_step(x, t, its) == by_parts(other, x, t, others)
        assert_same_state(one, its, other, others, f"step {k}")
    assert same_bits(one.predict(x), other.predict(x))
    assert same_bits(one.gradient(x, t)["W2"], other.gradient(x, t)["W2"])


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_optimizers_that_take_turns(name, reproducible):
    backend = xnet.resolve(name, reproducible)
    one, other = (xnet.Network(STACKS["deep"](), backend=backend) for _ in "ab")
    its, others = ([Adam(0.1), Momentum(0.1), SGD(0.1), Adam(0.2)] for _ in "ab")
    for turn in (0, 1, 2, 1, 0, 3, 3, 0, 2):
        n = 5 + turn % 2
        x, t = sample(n, 0, "float64"), labels(one, n, "float64")
        assert one.train_step(x, t, its[turn]) == by_parts(other, x, t, others[turn])
        assert_same_state(one, its[turn], other, others[turn], f"optimizer {turn}")


@pytest.mark.parametrize("way", [("numpy", "numba"), ("numba", "numpy"), ("strict", "strict")])
@pytest.mark.parametrize("reproducible", [False, True])
def test_an_optimizer_that_was_used_elsewhere(way, reproducible):
    """On another backend whose arrays they are too: its memory goes on."""
    one, other = (
        xnet.Network(STACKS["deep"](), backend=xnet.resolve(way[0], reproducible)) for _ in "ab"
    )
    its, others = Adam(0.1), Adam(0.1)
    x, t = sample(7, 0, "float64"), labels(one, 7, "float64")
    for name in (*way, *way):
        for net in (one, other):
            net.to(name)
        assert one.train_step(x, t, its) == by_parts(other, x, t, others)
        assert_same_state(one, its, other, others, name)
    assert set(its.taken.values()) == {4}


@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.parametrize("cls", [cls for cls in OPTIMIZERS if cls.slots])
def test_memory_of_another_precision_is_refused(name, cls):
    """Numbers of 4 bytes read as such of 8 would be read beyond their end."""
    optimizer, t = cls(), [0, 1, 2, 1, 0]
    first, second = (
        xnet.Network(STACKS["deep"](), dtype=dtype, backend=name)
        for dtype in ("float32", "float64")
    )
    first.train_step(sample(5, 0, "float32"), t, optimizer)
    before = second.params["W1"].copy()
    of_nobody = copy.deepcopy(optimizer)
    with pytest.raises(ValueError, match=r"W1 is float64 \(.*, the optimizer remembers float32"):
        second.train_step(sample(5, 0, "float64"), t, of_nobody)
    np.testing.assert_array_equal(second.params["W1"], before)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_another_number_of_arrays_than_is_remembered_is_refused(name, count):
    """Compiled code would look for the others where there are none."""
    net, optimizer = xnet.Network(STACKS["deep"](), backend=name), Adam()
    x, t = sample(5, 0, "float64"), [0, 1, 2, 1, 0]
    net.train_step(x, t, optimizer)
    for kept in optimizer.memory.values():
        kept[:] = [kept[0].copy() for _ in range(count)]
    before = net.params["W1"].copy()
    with pytest.raises(ValueError, match=rf"remembers {count} arrays of W1, expected 2"):
        net.train_step(x, t, optimizer)
    np.testing.assert_array_equal(net.params["W1"], before)


def test_a_training_step_replaces_what_cannot_be_written():
    net, twin = (xnet.TwoLayerNet(4, 3, 2, 1.0, backend="numba") for _ in "ab")
    x, t = np.ones((5, 4)), [0, 1, 0, 1, 1]
    W1 = net.params["W1"]
    W1.flags.writeable = False
    kept, optimizer = W1.copy(), SGD(0.1)
    for _ in range(2):
        assert net.train_step(x, t, optimizer) == twin.train_step(x, t, SGD(0.1))
    np.testing.assert_array_equal(W1, kept)
    np.testing.assert_array_equal(net.params["W1"], twin.params["W1"])


def test_arrays_that_a_network_was_made_of_are_not_trained(backend):
    W, b = np.ones((4, 2)), np.zeros(2)
    given = backend.asarray(W.copy()), backend.asarray(b.copy())
    net = xnet.Network([Affine.from_params(*given)], backend=backend)
    net.train_step(np.ones((3, 4)), [0, 1, 1], SGD(1.0))
    assert not np.array_equal(backend.to_numpy(net.params["W1"]), W)
    for array, before in zip(given, (W, b), strict=True):
        np.testing.assert_array_equal(backend.to_numpy(array), before)


def test_a_row_is_the_same_bits_in_any_batch_on_numba(dtype):
    """Every number is one sum in one order, whichever tile it falls into."""
    net = xnet.TwoLayerNet(200, 37, 10, 1.0, dtype=dtype, backend="numba")
    x = np.random.default_rng(0).standard_normal((101, 200)).astype(dtype)
    whole = net.scores(x)
    for n in (1, 2, 5, 6, 7, 13, 50):
        np.testing.assert_array_equal(net.scores(x[:n]), whole[:n])
    x[np.random.default_rng(1).random(x.shape) < 0.9] = 0  # left out from 8 rows on
    np.testing.assert_array_equal(net.scores(x)[:7], net.scores(x[:7]))


# -- Ctrl-C: a step is taken in full or not at all


class Training:
    """A network, an optimizer and a batch, and what they were before the next step and after."""

    def __init__(self, name, reproducible):
        if name == "numba":
            pytest.importorskip("numba")
            from xnet_numba import fused, passes
            from xnet_numba import reproducible as exact_passes

            self.module = exact_passes if reproducible else passes
            self.files = {fused.__file__, exact_passes.__file__}
        else:
            self.files = {xnet_numpy.__file__}
        self.net = xnet.Network(STACKS["deep"](), backend=xnet.resolve(name, reproducible))
        self.optimizer = Adam(0.1)
        self.x, self.t = sample(7, 0, "float64"), labels(self.net, 7, "float64")
        self.net.train_step(self.x, self.t, self.optimizer)

    def state(self):
        arrays = arrays_of(self.net, self.optimizer)
        return b"".join(array.tobytes() for array in arrays), dict(self.optimizer.taken)

    def step(self):
        return self.net.train_step(self.x, self.t, self.optimizer)

    def next(self):
        """The states before and after a step of a twin."""
        twin = copy.copy(self)
        twin.net, twin.optimizer = copy.deepcopy((self.net, self.optimizer))
        before = twin.state()
        twin.step()
        return before, twin.state()

    def check(self, before, after):
        """Where it stands, whether it goes on from there, and that a gradient is no step."""
        found = self.state()
        assert found in (before, after)
        self.net.gradient(self.x, self.t)
        assert self.state() == found
        _, expected = self.next()
        self.step()
        assert self.state() == expected
        return found == after


@pytest.fixture(params=[("numba", False), ("numba", True), ("numpy", False)], ids=str)
def training(request):
    return Training(*request.param)


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("comes", ["before", "after"])
def test_ctrl_c_around_the_compiled_call(monkeypatch, comes, reproducible):
    training = Training("numba", reproducible)
    compiled = training.module._train

    def interrupted(*arguments):
        if comes == "after":
            compiled(*arguments)
        raise KeyboardInterrupt

    before, after = training.next()
    monkeypatch.setattr(training.module, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.step()
    monkeypatch.setattr(training.module, "_train", compiled)
    assert training.check(before, after) == (comes == "after")


def unheard(files):
    """Lines within a `finally`, which is short enough for Python to hear no signal there."""
    found = set()
    for file in files:
        with open(file) as source:
            tree = ast.parse(source.read())
        for node in ast.walk(tree):
            if isinstance(node, ast.Try):
                for line in node.finalbody:
                    found |= {(file, n) for n in range(line.lineno, line.end_lineno + 1)}
    return found


@pytest.mark.parametrize("begin", ["anew", "again", "with another batch", "with another optimizer"])
def test_ctrl_c_between_any_two_lines(training, begin):
    """Of what stands around the compiled call: nothing that is half set may be taken for set."""
    outside, tracing = unheard(training.files), sys.gettrace()

    def prepare():
        if begin == "anew":
            training.net.layers[2].W = training.net.layers[2].W.copy()
        if begin == "with another batch":
            training.x = np.vstack([training.x, training.x[:1]])
            training.t = np.append(training.t, training.t[0])
        if begin == "with another optimizer":
            training.optimizer = Momentum(0.1)
            for name in training.net.params:
                training.optimizer.taken[name] = 0
                training.optimizer.memory_of(name, training.net.params[name], training.net.backend)

    def interrupted_at(number):
        """Take a step that is interrupted at a line; how many lines there are."""
        count = 0

        def trace(frame, event, arg):
            nonlocal count
            if frame.f_code.co_filename not in training.files:
                return None
            if event == "line" and (frame.f_code.co_filename, frame.f_lineno) not in outside:
                count += 1
                if count == number:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                training.step()
        finally:
            sys.settrace(tracing)
        return count

    prepare()
    lines = interrupted_at(-1)
    assert lines > 15
    seen = []
    for number in range(1, lines + 1):
        prepare()
        before, after = training.next()
        interrupted_at(number)
        seen.append(training.check(before, after))
    assert not seen[0]
    assert seen[-1]
    assert seen == sorted(seen)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_at_any_time(training):
    """Signals as they come: what `finally` holds is done whole."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("this system has no timers that send signals")

    rng, heard, armed = np.random.default_rng(0), 0, False

    def interrupt(*_):
        nonlocal armed
        if armed:  # where there are threads a signal may be late
            armed = False
            raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(150):
            before, after = training.next()
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, float(rng.uniform(2e-6, 2e-4)))
                training.step()
                armed = False
            except KeyboardInterrupt:
                heard += 1
            training.check(before, after)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        time.sleep(0.01)
        signal.signal(signal.SIGALRM, old)
    assert heard > 10
