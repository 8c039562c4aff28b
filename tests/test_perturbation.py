"""The incremental numerical gradient against the notes' loop, which begins every loss anew."""

import tracemalloc
from itertools import pairwise

import cuda_on_host
import numpy as np
import pytest
from conftest import property_settings, variants
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet import perturbation
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
from xnet.network import Network

U = 2.0**-53
ACTIVATIONS, LOSSES = variants("pointwise", "rows"), variants("loss")


def assert_agree(network, x, t, h=1e-4):
    """Both methods within the rounding noise of a central difference, 200 u |loss| / h.

    A loss of a few hundred additions carries some ten units of rounding; a difference of two,
    over 2h, as many times u |loss| / h. Two methods, and room for the worst of many elements.
    """
    naive = network.numerical_gradient(x, t, h, method="naive")
    fast = network.numerical_gradient(x, t, h, method="incremental")
    bound = 200 * U * max(1.0, abs(network.loss(x, t))) / h
    assert list(fast) == list(naive) == list(network.params)
    for name, expected in naive.items():
        expected = network.backend.to_numpy(expected)
        found = network.backend.to_numpy(fast[name])
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def sparse(rng, shape):
    """Numbers of which a third are exactly zero, as most of MNIST's pixels are."""
    return np.where(rng.random(shape) < 1 / 3, 0.0, rng.standard_normal(shape))


@st.composite
def widths_of_networks(draw):
    """One to four affine layers, one width up to 200: the naive loop has to finish."""
    widths = draw(st.lists(st.integers(1, 7), min_size=2, max_size=5))
    widths[draw(st.integers(0, len(widths) - 1))] = draw(st.integers(1, 200))
    return widths


@pytest.mark.slow
@given(
    widths=widths_of_networks(),
    activations=st.lists(st.sampled_from([None, *ACTIVATIONS]), min_size=5, max_size=5),
    loss=st.sampled_from(LOSSES),
    one_hot=st.booleans(),
    samples=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
@property_settings
def test_random_networks(backend, widths, activations, loss, one_hot, samples, seed):
    """An activation or none after each affine layer, the last one included."""
    if backend.name not in ("numpy", "numba"):  # whose loops take ten times as long
        widths = [min(width, 12) for width in widths]
    widths[-1] = max(widths[-1], 1 + loss.classes)  # one score is no choice between classes
    rng = np.random.default_rng(seed)
    layers = []
    for inputs, outputs, activation in zip(widths, widths[1:], activations, strict=False):
        layers += [Affine(inputs, outputs, "he"), *([] if activation is None else [activation])]
    network = Network(layers, loss, seed=seed)
    t = rng.integers(0, widths[-1], samples)
    assert_agree(
        network, sparse(rng, (samples, widths[0])), np.eye(widths[-1])[t] if one_hot else t
    )


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_every_loss(backend, rng, loss):
    """Scores near and far from the targets, labels and shares of classes."""
    network = Network([Affine(5, 6, 2.0), Sigmoid(), Affine(6, 4, 3.0)], loss)
    x = sparse(rng, (8, 5))
    assert_agree(network, x, rng.integers(0, 4, 8))
    assert_agree(network, x, rng.dirichlet(np.ones(4), 8))
    assert_agree(network, x, rng.integers(0, 4, 8), h=0.5)


@pytest.mark.parametrize("operation", ACTIVATIONS, ids=repr)
def test_every_activation(backend, rng, operation):
    network = Network([Affine(5, 6, 0.7), operation, Affine(6, 5, 0.7), operation, Affine(5, 3)])
    assert_agree(network, sparse(rng, (6, 5)), rng.integers(0, 3, 6))
    assert_agree(network, sparse(rng, (6, 5)), rng.integers(0, 3, 6), h=0.5)


def test_parameters_of_what_is_no_product(backend, rng):
    layers = [Affine(5, 6, 0.7), LayerNorm(6), Sigmoid(), Affine(6, 4, 0.7), LayerNorm(4)]
    network = Network(layers)
    for name in ("gamma1", "beta1", "gamma2"):
        network.params[name] = backend.asarray(rng.normal(size=network.params[name].shape))
    assert_agree(network, rng.normal(size=(6, 5)), rng.integers(0, 4, 6))


@pytest.mark.parametrize("activation", [ReLU, Sigmoid])
@pytest.mark.parametrize("widths", [(30, 200, 10), (7, 1, 200, 3), (3, 65, 2, 17, 4)])
def test_wider_networks(backend, rng, widths, activation):
    if backend.name == "strict" or cuda_on_host.is_stand_in(backend):
        pytest.skip("the naive loop takes minutes: 100,000 small calls that are slow here")
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [Affine(inputs, outputs, "he"), activation()]
    network = Network(layers[:-1])
    assert_agree(network, sparse(rng, (4, widths[0])), rng.integers(0, widths[-1], 4))


@pytest.mark.parametrize("h", [1e-3, 0.5, 30.0])
def test_any_size_of_perturbation(backend, rng, h):
    """Each loss is evaluated, not expanded: it holds where no derivative would."""
    network = Network([Affine(5, 4, "he"), Sigmoid(), Affine(4, 3, "he")])
    assert_agree(network, sparse(rng, (6, 5)), rng.integers(0, 3, 6), h)


def test_extreme_scores(backend, rng):
    """Saturated softmax and sigmoid, one sample right and one wrong by far."""
    network = Network([Affine(5, 4, 50.0), Sigmoid(), Affine(4, 3, 900.0)])
    assert_agree(network, sparse(rng, (6, 5)), rng.integers(0, 3, 6))


@pytest.mark.parametrize("activation", [[], [ReLU()], [Sigmoid()], [Sigmoid(), ReLU()]])
def test_samples_of_every_size_together(backend, rng, activation):
    """Scores from nearly equal to hundreds apart: what is fast for one sample is not for all."""
    network = Network([Affine(5, 6, "he"), *activation, Affine(6, 4, "he")])
    x = sparse(rng, (24, 5)) * np.geomspace(1e-3, 1e3, 24)[:, None]
    t = rng.integers(0, 4, 24)
    assert_agree(network, x, t)
    assert_agree(network, x, t, h=0.5)


def test_many_badly_classified_samples(backend, rng):
    """More than one product of probabilities can hold: 1e-7 to the power of the batch is 0."""
    network = Network([Affine(3, 4, 3.0), ReLU(), Affine(4, 3, 3.0)])
    x = rng.standard_normal((60, 3))
    wrong = backend.to_numpy(network.predict(x)).argmin(axis=1)
    assert network.loss(x, wrong) > 5
    assert_agree(network, x, wrong)


def test_soft_and_scaled_targets(backend, rng):
    """Targets that are no labels: shares of classes, or weights that do not add up to 1."""
    network = Network([Affine(4, 5, "he"), Sigmoid(), Affine(5, 3, "he")])
    x = sparse(rng, (6, 4))
    for t in (rng.dirichlet(np.ones(3), 6), 2.0 * np.eye(3)[[0, 1, 2, 0, 1, 2]], np.zeros((6, 3))):
        assert_agree(network, x, t)


@pytest.mark.parametrize("where", ["x", "W1", "W2"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_infinity_and_nan_show(backend, rng, where, value):
    """A gradient that is not a number is never a number by the fast way."""
    # A sigmoid makes 0 or 1 of infinity, and all that follows is finite.
    activation = ReLU() if where != "W2" and value == np.inf else Sigmoid()
    network = Network([Affine(3, 4, "he"), activation, Affine(4, 2, "he")])
    x = rng.standard_normal((4, 3))
    if where == "x":
        x[1, 2] = value
    else:
        network.params[where][1, 1] = value
    t = rng.integers(0, 2, 4)
    fast = network.numerical_gradient(x, t, method="incremental")
    naive = network.numerical_gradient(x, t, method="naive")
    assert any(np.isnan(backend.to_numpy(gradient)).any() for gradient in naive.values())
    for name in naive:
        found, expected = backend.to_numpy(fast[name]), backend.to_numpy(naive[name])
        lost = np.isnan(expected) & ~np.isnan(found)
        assert not lost.any(), (name, lost)


def test_one_sample_and_tensors(backend, rng):
    network = Network([Affine(6, 4, "he"), ReLU(), Affine(4, 3, "he")])
    assert_agree(network, rng.standard_normal(6), 2)
    assert_agree(network, rng.standard_normal((5, 2, 3)), rng.integers(0, 3, 5))
    one_hot = np.array([0.0, 1.0, 0.0])
    assert_agree(network, rng.standard_normal(6), one_hot)


def test_activation_before_the_first_affine(backend, rng):
    network = Network([Sigmoid(), Affine(4, 3, "he")], IdentityWithLoss())
    assert_agree(network, rng.standard_normal((5, 4)), rng.standard_normal((5, 3)))


def test_zero_inputs_have_derivative_zero(backend, rng):
    network = Network([Affine(4, 3, "he"), Sigmoid(), Affine(3, 2, "he")])
    x = rng.standard_normal((5, 4))
    x[:, 1] = 0
    gradient = network.backend.to_numpy(network.numerical_gradient(x, [0, 1, 0, 1, 1])["W1"])
    assert (gradient[1] == 0).all()
    assert (gradient[[0, 2, 3]] != 0).all()


def test_parameters_are_never_touched(backend, rng):
    network = Network([Affine(4, 3, "he"), ReLU(), Affine(3, 2, "he")])
    before = {
        name: network.backend.to_numpy(array).copy() for name, array in network.params.items()
    }
    arrays = dict(network.params)
    network.numerical_gradient(rng.standard_normal((5, 4)), [0, 1, 0, 1, 1])
    for name, array in network.params.items():
        assert array is arrays[name]
        np.testing.assert_array_equal(network.backend.to_numpy(array), before[name])


def test_small_stacks_give_the_same(monkeypatch, rng):
    network = Network([Affine(5, 9, "he"), ReLU(), Affine(9, 4, "he")], backend="numpy")
    x, t = sparse(rng, (6, 5)), rng.integers(0, 4, 6)
    expected = network.numerical_gradient(x, t)
    monkeypatch.setattr(perturbation, "LARGEST_STACK", 100)
    for name, found in network.numerical_gradient(x, t).items():
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("widths", "largest_stack", "largest"),
    [
        ((5, 90, 40), 2000, 4 * 2 * 6 * 40),  # as many of its units as fit
        ((5, 90, 40, 3), 2000, 4 * 2 * 6 * 40),
        ((5, 9, 7, 200), 5000, 2 * 2 * 6 * 200),
        ((5, 9, 40), 100, 2 * 6 * 40),  # one unit at least
    ],
)
def test_stacks_stay_within_their_bound(monkeypatch, rng, widths, largest_stack, largest):
    """No array that goes through the network holds more than LARGEST_STACK numbers."""
    from xnet_numpy import NumpyBackend

    monkeypatch.setattr(perturbation, "LARGEST_STACK", largest_stack)
    seen, run = [], NumpyBackend.run

    def seeing(self, operation, x, *parameters):
        found = run(self, operation, x, *parameters)
        seen.append(found.size)
        return found

    monkeypatch.setattr(NumpyBackend, "run", seeing)
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [Affine(inputs, outputs, "he"), ReLU()]
    network = Network(layers, IdentityWithLoss(), backend="numpy")
    network.numerical_gradient(rng.standard_normal((6, 5)), rng.standard_normal((6, widths[-1])))
    assert max(seen) == largest


def test_nothing_before_the_next_products_output_is_computed_anew(monkeypatch, rng):
    """Of that, one column changes, by one row of the weights."""
    from xnet_numpy import NumpyBackend

    rows, run = [], NumpyBackend.run

    def seeing(self, operation, x, *parameters):
        rows.extend([x.shape[0]] if operation.fuses == "product" else [])
        return run(self, operation, x, *parameters)

    monkeypatch.setattr(NumpyBackend, "run", seeing)
    layers = [Affine(20, 30, "he"), Sigmoid(), ReLU(), Affine(30, 4, "he"), Sigmoid()]
    network = Network(layers, IdentityWithLoss(), backend="numpy")
    network.numerical_gradient(rng.standard_normal((6, 20)), rng.standard_normal((6, 4)))
    assert set(rows) == {6}


def test_weights_are_perturbed_together(monkeypatch, rng):
    """All that lead from one input at once: losses for 420 parameters are asked in 22 calls."""
    from xnet_numpy import NumpyBackend

    calls, row_losses = [], NumpyBackend.row_losses
    monkeypatch.setattr(
        NumpyBackend, "row_losses", lambda *args: calls.append(None) or row_losses(*args)
    )
    network = Network([Affine(20, 20, "he")], backend="numpy")
    network.numerical_gradient(rng.standard_normal((6, 20)), rng.integers(0, 20, 6))
    assert len(calls) <= 22  # and once where nothing is perturbed


def assert_within_memory(monkeypatch, rng, largest_stack, samples, widths, activation, loss):
    monkeypatch.setattr(perturbation, "LARGEST_STACK", largest_stack)
    monkeypatch.setattr(perturbation, "SPARE", 100_000)
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [Affine(inputs, outputs, "he"), activation]
    network = Network(layers[:-1], loss, backend="numpy")
    x, t = rng.standard_normal((samples, widths[0])), rng.integers(0, widths[-1], samples)
    network.numerical_gradient(x, t)  # what is imported and cached on first use
    tracemalloc.start()
    network.numerical_gradient(x, t)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    bound = perturbation.memory(samples, widths)
    assert bound / 4 < peak <= bound


SHAPES = [(40, (8, 90, 40, 10)), (200, (20, 40, 12))]


@pytest.mark.parametrize("largest_stack", [2_000, 100_000, 10**9])
@pytest.mark.parametrize(("samples", "widths"), SHAPES)
def test_memory_stays_within_its_bound(monkeypatch, rng, largest_stack, samples, widths):
    operations = variants("pointwise", altered=False)[0], variants("loss", altered=False)[0]
    assert_within_memory(monkeypatch, rng, largest_stack, samples, widths, *operations)


@pytest.mark.parametrize("operation", variants("pointwise", "rows", altered=False), ids=repr)
def test_memory_whatever_the_activation(monkeypatch, rng, operation):
    for shape in SHAPES:
        assert_within_memory(monkeypatch, rng, 100_000, *shape, operation, LOSSES[0])


@pytest.mark.parametrize("loss", variants("loss", altered=False), ids=repr)
def test_memory_whatever_the_loss(monkeypatch, rng, loss):
    for shape in SHAPES:
        assert_within_memory(monkeypatch, rng, 100_000, *shape, ACTIVATIONS[0], loss)


@pytest.mark.parametrize(
    ("samples", "widths", "stack"),
    [
        (100, (784, 50, 10), 50 * 2 * 100 * 10),  # each hidden unit perturbed, up and down
        (10, (20, 30, 40, 5), 30 * 2 * 10 * 40),  # before the widest of what lies behind
        (10, (20, 40, 5, 30), 40 * 2 * 10 * 30),
        (10, (3, 4), 4 * 2 * 10 * 4),
        (3000, (20, 4000, 10), perturbation.LARGEST_STACK),
        (3000, (20, 30, 4000), 2 * 3000 * 4000),  # one column: it cannot be less
    ],
)
def test_what_the_bound_of_memory_consists_of(samples, widths, stack):
    """As its docstring says: stacks, outputs, gradients, pairs of units, and objects."""
    outputs = samples * sum(widths)
    gradients = sum(inputs * units + units for inputs, units in pairwise(widths))
    numbers = 8 * stack + 8 * outputs + 4 * gradients
    other = max(widths) ** 2 + 1_048_576
    assert perturbation.memory(samples, widths) == 8 * numbers + other
    assert perturbation.memory(samples, widths, itemsize=4) == 4 * numbers + other


def test_float32_with_an_h_that_suits_it(backend, rng):
    layers = [Affine(4, 5, "he"), Sigmoid(), Affine(5, 3, "he")]
    network = Network(layers, dtype="float32")
    x, t = rng.standard_normal((6, 4)), rng.integers(0, 3, 6)
    gradient, exact = network.numerical_gradient(x, t, 5e-3), network.gradient(x, t)
    for name, found in gradient.items():
        assert found.dtype == exact[name].dtype
        difference = network.backend.to_numpy(found) - network.backend.to_numpy(exact[name])
        # h^2 |f'''| / 6 of truncation and some units of 2^-24 |f| / h of rounding.
        assert np.abs(difference).max() < 5e-3**2 + 20 * 2.0**-24 * network.loss(x, t) / 5e-3
    with pytest.raises(ValueError, match=r"float32, where h=0\.0001 gives noise"):
        network.numerical_gradient(x, t, 1e-4)


class Centred(Layer):
    """A layer from elsewhere that mixes rows."""

    def __call__(self, x):
        return x - x.mean(axis=0)


def test_a_layer_that_mixes_rows_is_evaluated_naively(rng):
    network = Network([Affine(4, 3, "he"), Centred()], backend="numpy")
    x, t = rng.standard_normal((5, 4)), rng.integers(0, 3, 5)
    with pytest.raises(ValueError, match=r"method='incremental': Centred\(\) may mix rows"):
        network.numerical_gradient(x, t, method="incremental")
    naive = network.numerical_gradient(x, t, method="naive")
    with pytest.warns(xnet.NaiveGradientWarning, match=r"Centred\(\) may mix rows"):
        gradient = network.numerical_gradient(x, t)
    for name, found in gradient.items():
        np.testing.assert_array_equal(found, naive[name])
    row_wise = Network([Affine(4, 3, "he")], backend="numpy")
    assert not np.allclose(naive["W1"], row_wise.numerical_gradient(x, t)["W1"])


@pytest.mark.parametrize("layer", [BatchNorm(3), Dropout(0.3)], ids=repr)
def test_what_mixes_rows_or_draws_is_evaluated_naively(rng, layer):
    network = Network([Affine(4, 3, "he"), layer.copy()], backend="numpy")
    x, t = rng.standard_normal((5, 4)), rng.integers(0, 3, 5)
    with pytest.raises(ValueError, match=r"method='incremental': \w+\(.*\) may mix rows or keeps"):
        network.numerical_gradient(x, t, method="incremental")
    with pytest.warns(xnet.NaiveGradientWarning, match="may mix rows or keeps something"):
        gradient = network.numerical_gradient(x, t)
    for name, found in network.numerical_gradient(x, t, method="naive").items():
        np.testing.assert_array_equal(gradient[name], found)


class Leaky(ReLU):
    """A layer from elsewhere that computes something else than the one it is made from."""

    def __call__(self, x):
        return np.where(x > 0, x, 0.1 * x)


class Doubled(SoftmaxWithLoss):
    def forward(self, x, t):
        return 2 * super().forward(x, t)


@pytest.mark.parametrize(("activation", "loss"), [(Leaky, SoftmaxWithLoss), (ReLU, Doubled)])
def test_a_subclass_is_not_taken_for_its_base(rng, activation, loss):
    network = Network([Affine(4, 3, "he"), activation(), Affine(3, 2)], loss(), backend="numpy")
    x, t = rng.standard_normal((5, 4)), rng.integers(0, 2, 5)
    naive = network.numerical_gradient(x, t, method="naive")
    with pytest.warns(xnet.NaiveGradientWarning):
        gradient = network.numerical_gradient(x, t)
    for name, found in gradient.items():
        np.testing.assert_array_equal(found, naive[name])
    with pytest.raises(ValueError, match="use method='naive'"):
        network.numerical_gradient(x, t, method="incremental")


def test_unknown_method(rng):
    network = xnet.TwoLayerNet(2, 2, 2, backend="numpy")
    with pytest.raises(ValueError, match="method is 'magic', expected 'naive', 'incremental'"):
        network.numerical_gradient(np.ones((1, 2)), [0], method="magic")


def test_numbas_power_of_two_over_its_whole_range():
    numba = pytest.importorskip("numba")
    from xnet_numba.elementary import _exp2

    @numba.njit
    def powers(x, out):
        for k in range(x.size):
            out[k] = _exp2(x[k])

    tiny = np.geomspace(1e-300, 1.0, 5000)
    x = np.concatenate([np.linspace(-1000.0, 1000.0, 100_001), tiny, -tiny, [0.0]])
    out = np.empty_like(x)
    powers(x, out)
    expected = np.exp2(x.astype(np.longdouble))
    units = np.abs(out - expected) / np.spacing(expected.astype(np.float64))
    assert units.max() <= 1.25
    assert out[-1] == 1.0


@pytest.mark.parametrize("name", ["log", "log1p", "expm1"])
def test_numbas_elementary_functions_over_their_whole_range(name):
    numba = pytest.importorskip("numba")
    from xnet_numba import elementary

    function = getattr(elementary, name)

    @numba.njit
    def values(x, out):
        for k in range(x.size):
            out[k] = function(x[k])

    near_0 = np.concatenate([-np.geomspace(1e-300, 0.4, 9000), np.geomspace(1e-300, 0.6, 9000)])
    x = {
        "log": [np.geomspace(1e-300, 1e300, 20001), np.geomspace(1e-7, 1, 20001), 1 + near_0],
        "log1p": [np.geomspace(1e-300, 1e300, 20001), near_0, -1 + np.geomspace(1e-15, 1, 5000)],
        "expm1": [np.linspace(-745, 709, 20001), near_0],
    }[name]
    x = np.concatenate(x)
    out = np.empty_like(x)
    values(x, out)
    expected = getattr(np, name)(x.astype(np.longdouble))
    units = np.spacing(np.abs(expected.astype(np.float64)))
    assert (np.abs(out - expected) <= 2 * units).all()
