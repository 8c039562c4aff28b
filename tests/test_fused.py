"""The fused kernels against the layers one by one: predictions, loss and gradients."""

import copy
import pickle
import tracemalloc

import numpy as np
import pytest

import xnet
from xnet.layers import Affine, IdentityWithLoss, ReLU, Sigmoid, SoftmaxWithLoss

STACKS = {
    "deep": lambda: [Affine(7, 5, 1.0), Sigmoid(), Affine(5, 9, 1.0), ReLU(), Affine(9, 3, 1.0)],
    "one": lambda: [Affine(7, 3, 1.0)],
    "wide": lambda: [Affine(7, 150, 1.0), ReLU(), Affine(150, 1, 1.0), Sigmoid()],
    "affine twice": lambda: [Affine(7, 33, 1.0), Affine(33, 2, 1.0)],
    "two activations": lambda: [Affine(7, 4, 1.0), Sigmoid(), ReLU(), Affine(4, 3, 1.0)],
}
BATCHES = (1, 2, 3, 5, 6, 7, 13, 47, 48, 49, 100, 130, 300)


class ByLayers(xnet.Network):
    """A network that never takes the fused way."""

    def _plan(self):
        return None


def pair(stack, backend, dtype, loss=SoftmaxWithLoss):
    fused = xnet.Network(STACKS[stack](), loss(), dtype=dtype, backend=backend)
    layers = ByLayers(STACKS[stack](), loss(), dtype=dtype, backend="numpy")
    return fused, layers


def sample(n, zeros, dtype):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, 7))
    return np.where(rng.random(x.shape) < zeros, 0, x).astype(dtype)


@pytest.mark.parametrize("zeros", [0, 0.9])
@pytest.mark.parametrize("stack", STACKS)
def test_predictions_are_the_layers(backend, dtype, stack, zeros):
    fused, layers = pair(stack, backend, dtype)
    for n in BATCHES:
        x = sample(n, zeros, dtype)
        y = backend.to_numpy(fused.predict(x))
        assert y.dtype == dtype
        np.testing.assert_allclose(y, layers.predict(x), rtol=0, atol=40 * np.finfo(dtype).eps)


@pytest.mark.parametrize("n", [1, 2, 7, 36, 37, 100])
@pytest.mark.parametrize("zeros", [0, 0.9])
def test_shared_out_by_rows_or_columns_it_is_the_same_bits(monkeypatch, dtype, n, zeros):
    pool = pytest.importorskip("xnet_numba.pool")
    layers = [Affine(70, 601, 0.1), Sigmoid(), Affine(601, 90), ReLU(), Affine(90, 500), Sigmoid()]
    net = xnet.Network(layers, dtype=dtype, backend="numba")
    rng = np.random.default_rng(n)
    x = np.where(rng.random((n, 70)) < zeros, 0, rng.standard_normal((n, 70))).astype(dtype)
    monkeypatch.setattr(pool, "thread_count", lambda: 1)
    alone, probabilities = net.scores(x), net.predict(x)
    monkeypatch.setattr(pool, "thread_count", lambda: 3)
    monkeypatch.setattr(pool.Pool, "HELP_FROM", 0)
    monkeypatch.setattr(pool.Pool, "WAKE_FROM", 0)
    for _ in range(20):
        assert np.array_equal(copy.deepcopy(net).scores(x), alone)
        assert np.array_equal(copy.deepcopy(net).predict(x), probabilities)


@pytest.mark.parametrize("loss", [SoftmaxWithLoss, IdentityWithLoss])
@pytest.mark.parametrize("zeros", [0, 0.9])
@pytest.mark.parametrize("stack", STACKS)
def test_gradients_are_the_layers(backend, dtype, stack, zeros, loss):
    fused, layers = pair(stack, backend, dtype, loss)
    for n in BATCHES:
        x = sample(n, zeros, dtype)
        t = (
            np.random.default_rng(0).integers(0, layers.layers[-1].outputs, n)
            if stack != "wide"
            else np.ones((n, 1), dtype)
        )
        expected, actual = layers.loss_and_gradient(x, t), fused.loss_and_gradient(x, t)
        assert actual[0] == pytest.approx(expected[0], rel=400 * float(np.finfo(dtype).eps))
        for name, gradient in expected[1].items():
            scale = max(1.0, float(np.abs(gradient).max()))
            np.testing.assert_allclose(
                backend.to_numpy(actual[1][name]), gradient, rtol=0,
                atol=400 * np.finfo(dtype).eps * scale, err_msg=f"{name}, {n}",
            )  # fmt: skip


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
    plain = xnet.Network(layers, backend=backend)
    scores = backend.to_numpy(plain.scores(x)) - backend.to_numpy(plain.params["b2"])
    doubled = xnet.Network([layers[0], Twice(), layers[2]], backend=backend)
    np.testing.assert_allclose(backend.to_numpy(doubled.scores(x)), 2 * scores)
    silent = xnet.Network([NoGradient(4, 3, 1.0)], backend=backend)
    assert not backend.to_numpy(silent.gradient(x, [0, 1, 2, 0, 1])["W1"]).any()


@pytest.mark.parametrize("loss", [SoftmaxWithLoss, IdentityWithLoss])
@pytest.mark.parametrize("stack", STACKS)
def test_reproducible_gradients_are_the_layers_own_bits(backend, dtype, stack, loss):
    """Whether a backend's one call goes through the kernels, or the layers do."""
    here = xnet.resolve(backend.name, reproducible=True)
    whole, layers = (
        kind(STACKS[stack](), loss(), dtype=dtype, backend=here)
        for kind in (xnet.Network, ByLayers)
    )
    classes = layers.layers[-1].outputs if stack != "wide" else 1
    x, t = sample(13, 0.2, dtype), np.random.default_rng(0).integers(0, classes, 13)
    value, gradients = whole.loss_and_gradient(x, t)
    expected, by_layers = layers.loss_and_gradient(x, t)
    assert value == expected
    for name, gradient in by_layers.items():
        np.testing.assert_array_equal(here.to_numpy(gradients[name]), here.to_numpy(gradient))


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
    x = np.ones((9, 4))
    before = net.predict(x)
    other = twin(net)
    net.params["b2"][:] = [50, 0]
    np.testing.assert_array_equal(other.predict(x), before)
    other.params["b2"][:] = [0, 50]
    np.testing.assert_allclose(net.predict(x)[:, 0], 1)


@pytest.mark.parametrize("zeros", [0, 0.9])
@pytest.mark.parametrize("stack", STACKS)
def test_a_training_step_is_the_gradient_and_the_update(backend, dtype, stack, zeros):
    one, other = (pair(stack, backend, dtype)[0] for _ in "ab")
    optimizer = xnet.optimizers.SGD(0.3)  # its products round, and must before the difference
    classes = one.layers[-1].outputs if stack != "wide" else 1
    for n in (1, 7, 100):
        x, t = sample(n, zeros, dtype), np.random.default_rng(0).integers(0, classes, n)
        loss, gradients = other.loss_and_gradient(x, t)
        with xnet.use_backend(backend):
            optimizer.update(other.params, gradients)
        before = one.params["W1"]
        assert one.train_step(x, t, optimizer) == loss
        assert (one.params["W1"] is before) == (backend.name != "strict")
        for name, W in other.params.items():
            np.testing.assert_array_equal(
                backend.to_numpy(one.params[name]), backend.to_numpy(W), err_msg=name
            )


def test_a_training_step_replaces_what_cannot_be_written():
    net, twin = (xnet.TwoLayerNet(4, 3, 2, 1.0, backend="numba") for _ in "ab")
    x, t = np.ones((5, 4)), [0, 1, 0, 1, 1]
    W1 = net.params["W1"]
    W1.flags.writeable = False
    kept, optimizer = W1.copy(), xnet.optimizers.SGD(0.1)
    for _ in range(2):
        assert net.train_step(x, t, optimizer) == twin.train_step(x, t, optimizer)
    np.testing.assert_array_equal(W1, kept)
    np.testing.assert_array_equal(net.params["W1"], twin.params["W1"])


def test_arrays_that_a_network_was_made_of_are_not_trained(backend):
    W, b = np.ones((4, 2)), np.zeros(2)
    given = backend.asarray(W.copy()), backend.asarray(b.copy())
    net = xnet.Network([Affine.from_params(*given)], backend=backend)
    net.train_step(np.ones((3, 4)), [0, 1, 1], xnet.optimizers.SGD(1.0))
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
