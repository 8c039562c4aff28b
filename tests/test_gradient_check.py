"""`gradient_check`: no right gradient is called wrong, and no wrong one right."""

import dataclasses
import math
import os
import re
import sys
import warnings
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import pytest
from conftest import property_settings, variants
from hypothesis import given, settings
from hypothesis import strategies as st

import xnet
from xnet.gradient import unlike
from xnet.gradient_check import (
    BENDS,
    FINEST,
    NO_GRADIENT,
    GradientCheck,
    ParameterCheck,
    Verdict,
    _in_float64,
    gradient_check,
)
from xnet.layers import (
    AbsoluteError,
    Affine,
    BatchNorm,
    BinaryCrossEntropy,
    Dropout,
    Hinge,
    IdentityWithLoss,
    Layer,
    LayerNorm,
    ReLU,
    Sigmoid,
    Softmax,
    SoftmaxWithLoss,
    layer_class,
)

ACTIVATIONS, LOSSES = variants("pointwise", "rows"), variants("loss")
AGREES, WRONG, INCONCLUSIVE = Verdict.AGREES, Verdict.WRONG, Verdict.INCONCLUSIVE

STACKS = {
    1: [(5, 3)],
    2: [(5, 6), (6, 3)],
    3: [(5, 4), (4, 6), (6, 3)],
    4: [(5, 4), (4, 6), (6, 4), (4, 3)],
}


class Altered(xnet.Network):
    """A network whose gradients are made wrong: what of each parameter, by its name."""

    altered = MappingProxyType({})

    def gradient(self, x, t):
        found = super().gradient(x, t)
        return found | {name: change(name, found[name]) for name, change in self.altered.items()}


def stack(depth, activation=Sigmoid, loss=SoftmaxWithLoss, **options):
    """Affine layers with activations between: a class, or an operation; so the loss."""
    layers = []
    for sizes in STACKS[depth]:
        layers.append(Affine(*sizes, weight_init_std=0.7))
        layers.append(activation() if isinstance(activation, type) else activation)
    return xnet.Network(layers[:-1], loss() if isinstance(loss, type) else loss, **options)


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
    net = stack(2, ReLU, SoftmaxWithLoss, seed=2)
    x = 100 * rng.normal(size=(8, 5))
    t = (backend.to_numpy(net.predict(x)).argmax(axis=1) + 1) % 3
    assert net.loss(x, t) > 10
    assert max(gradient_check(net, x, t).values()) < 1e-6


def test_float32_is_checked_in_float64(backend, rng):
    net = stack(2, Sigmoid, SoftmaxWithLoss, dtype="float32")
    x, t = rng.normal(size=(4, 5)), rng.integers(0, 3, 4)
    before = net.params["W1"]
    check = gradient_check(net, x, t)
    assert check.passed
    assert check.steps == (1e-4,)
    assert max(check.values()) < 1e-8
    assert max(found.tolerance for found in check.parameters.values()) < 1e-8
    assert net.dtype == "float32"
    assert net.params["W1"] is before


@pytest.mark.parametrize("init", ["he", 0.01])
@pytest.mark.parametrize(
    "wrong", [lambda name, g: 0.9 * g, lambda name, g: 0 * g if name == "W1" else g]
)
def test_wrong_in_float32_is_caught(rng, init, wrong):
    """Small gradients, as of MNIST with the weights that a network begins with."""
    layers = [Affine(300, 8, init), Sigmoid(), Affine(8, 10, init)]
    net = Altered(layers, dtype="float32")
    net.altered = dict.fromkeys(net.params, wrong)
    assert gradient_check(net, rng.random((10, 300)), rng.integers(0, 10, 10)).verdict == WRONG


def test_a_step_that_blinds_gives_no_verdict(rng):
    x, t = rng.normal(size=(4, 5)), rng.integers(0, 3, 4)
    layers = [Affine(5, 6, 0.7), ReLU(), Affine(6, 3, 0.7)]
    for h, factor in ((1e-20, 1), (1e-20, 0), (1e-14, 0), (1e-14, 1)):
        net = Altered([layer.copy() for layer in layers])
        net.altered = {name: lambda name, g, factor=factor: factor * g for name in net.params}
        check = gradient_check(net, x, t, h)
        assert check.verdict == INCONCLUSIVE
        assert not check.passed
        assert str(check).splitlines()[-1].startswith("inconclusive: ")
        assert gradient_check(net, x, t).verdict == (AGREES if factor else WRONG)


@pytest.mark.parametrize("h", [0, -1e-4, math.nan, math.inf])
def test_check_refuses_a_step(h):
    with pytest.raises(ValueError, match=r"h is .*, expected a positive number"):
        gradient_check(stack(1), np.ones((2, 5)), [0, 1], h)


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


def test_check_describes_each_parameter(backend, rng, monkeypatch):
    net = stack(2, Sigmoid, SoftmaxWithLoss)
    x, t = rng.normal(size=(4, 5)), rng.integers(0, 3, 4)
    right = net.gradient(x, t)
    wrong = backend.to_numpy(right["W1"]).copy()
    wrong[3, 2] += 0.5
    monkeypatch.setattr(net, "gradient", lambda x, t: right | {"W1": backend.asarray(wrong)})
    check = gradient_check(net, x, t)
    found = check.parameters["W1"]
    assert (found.name, found.shape, found.worst) == ("W1", (5, 6), (3, 2))
    assert found.backprop == wrong[3, 2]
    assert found.numerical == pytest.approx(wrong[3, 2] - 0.5, abs=1e-8)
    assert found.absolute_error == pytest.approx(0.5, abs=1e-8)
    assert found.relative_error == pytest.approx(0.5 / np.abs(wrong).max(), rel=1e-6)
    assert found.mean_difference == check["W1"] == pytest.approx(0.5 / 30, abs=1e-8)
    assert 0 < found.tolerance < 1e-8
    assert not found.passed
    text = str(check)
    assert re.search(r"^parameter .* verdict\n", text)
    assert re.search(r"W1 5x6 .* W1\[3, 2\] .* 5\.0e-01 .* WRONG\n", text)
    assert re.search(r"W2 6x3 .* ok\n", text)
    assert text.endswith(
        "backpropagation DOES NOT AGREE with the numerical gradient (h=0.0001, 1e-06)"
    )


class NoFactor(Sigmoid):
    """A backward that forgets (1 - y)."""

    def forward(self, x):
        self.y = super().forward(x)
        return self.y

    def backward(self, dout):
        return dout * self.y


class Negligent(ReLU):
    """A backward that lets a thousandth through where nothing should be."""

    def backward(self, dout):
        return super().backward(dout) + 1e-3 * dout


a_layer_of_ones_own = pytest.mark.filterwarnings("ignore::xnet.NaiveGradientWarning")


@a_layer_of_ones_own
@pytest.mark.parametrize("wrong", [NoFactor, Negligent])
def test_check_catches_a_wrong_backward(backend, rng, wrong):
    net = stack(2, wrong, SoftmaxWithLoss)
    check = gradient_check(net, rng.normal(size=(4, 5)), rng.integers(0, 3, 4))
    verdicts = {name: found.passed for name, found in check.parameters.items()}
    assert verdicts == {"W1": False, "b1": False, "W2": True, "b2": True}


class Cube(Layer):
    """A layer that nothing is known of."""

    slope = 3

    def __call__(self, x):
        return x**3

    def forward(self, x):
        self.x = x
        return self(x)

    def backward(self, dout):
        return self.slope * self.x**2 * dout


class Distance(IdentityWithLoss):
    """A loss of one's own with a kink, where it says that its slope is 1."""

    def forward(self, x, t):
        self.y, self.t = x, t
        return float(np.abs(x - t).sum()) / x.shape[0]

    def backward(self, dout=1.0):
        return np.where(self.y >= self.t, dout, -dout) / self.y.shape[0]


@a_layer_of_ones_own
def test_a_layer_of_ones_own_is_checked(rng):
    layer = Cube()
    net = xnet.Network([Affine(5, 6, 0.7), layer, Affine(6, 3, 0.7)], backend="numpy")
    x, t = rng.normal(size=(4, 5)), rng.integers(0, 3, 4)
    assert gradient_check(net, x, t).passed
    layer.slope = 3.03
    assert gradient_check(net, x, t).parameters["W1"].verdict == WRONG


@a_layer_of_ones_own
def test_at_a_kink_of_a_loss_of_ones_own_there_is_no_verdict(rng):
    net = xnet.Network([Affine(5, 3, 0.7)], Distance(), backend="numpy")
    x, t = rng.normal(size=(4, 5)), rng.normal(size=(4, 3))
    assert gradient_check(net, x, t).passed
    t[2] = net.scores(x)[2]
    assert gradient_check(net, x, t).verdict == INCONCLUSIVE


def off_by_one_percent(cls):
    """A layer or loss like this one, but for its backward."""

    class Wrong(cls):
        def backward(self, *dout):
            return 1.01 * super().backward(*dout)

    return Wrong


@pytest.mark.parametrize("operation", ACTIVATIONS, ids=repr)
def test_every_activation_passes_the_check(operation):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        net = stack(2, operation, seed=seed)
        check = gradient_check(net, rng.normal(size=(4, 5)), rng.integers(0, 3, 4))
        assert check.passed, str(check)
        assert max(check.values()) < 1e-8


@a_layer_of_ones_own
@pytest.mark.parametrize("operation", ACTIVATIONS, ids=repr)
def test_one_percent_off_in_any_activation_is_caught(rng, operation):
    wrong = off_by_one_percent(layer_class(type(operation)))
    layers = [Affine(5, 6, 0.7), wrong(**operation.settings()), Affine(6, 3, 0.7)]
    check = gradient_check(xnet.Network(layers), rng.normal(size=(4, 5)), rng.integers(0, 3, 4))
    verdicts = {name: found.passed for name, found in check.parameters.items()}
    assert verdicts == {"W1": False, "b1": False, "W2": True, "b2": True}


@pytest.mark.parametrize("operation", LOSSES, ids=repr)
def test_every_loss_passes_the_check(operation):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        net = stack(2, Sigmoid, operation, seed=seed)
        for t in (rng.integers(0, 3, 4), rng.dirichlet(np.ones(3), 4)):
            check = gradient_check(net, rng.normal(size=(4, 5)), t)
            assert check.passed, str(check)
            assert max(check.values()) < 1e-8


@a_layer_of_ones_own
@pytest.mark.parametrize("operation", LOSSES, ids=repr)
def test_one_percent_off_in_any_loss_is_caught(rng, operation):
    net = stack(
        2, Sigmoid, off_by_one_percent(layer_class(type(operation)))(**operation.settings())
    )
    check = gradient_check(net, rng.normal(size=(4, 5)), rng.integers(0, 3, 4))
    assert not check.passed
    for found in check.parameters.values():  # a hinge that no score reaches has no slope at all
        assert found.passed == (found.backprop == found.numerical == 0), str(check)


@a_layer_of_ones_own
@pytest.mark.parametrize("between", [BatchNorm(6), Dropout(0.4), LayerNorm(6)], ids=repr)
def test_both_gradients_are_of_the_loss_in_training(backend, rng, between):
    """What is dropped is the same on both sides, and no running mean moves."""
    net = xnet.Network([Affine(5, 6, 0.7), between.copy(), Sigmoid(), Affine(6, 3, 0.7)], seed=4)
    x, t = rng.normal(size=(8, 5)), rng.integers(0, 3, 8)
    state = {name: backend.to_numpy(array).copy() for name, array in net.state.items()}
    check = gradient_check(net, x, t)
    assert check.passed, str(check)
    for name, array in net.state.items():
        np.testing.assert_array_equal(backend.to_numpy(array), state[name])


@pytest.mark.parametrize("between", [BatchNorm(6), Dropout(0.4)], ids=repr)
def test_a_wrong_gradient_of_the_loss_in_training_is_caught(rng, between):
    layers = [Affine(5, 6, 0.7), between.copy(), Sigmoid(), Affine(6, 3, 0.7)]
    net = Altered(layers, seed=4, backend="numpy")
    net.altered = {"W2": lambda name, g: 1.01 * g}
    with pytest.warns(xnet.NaiveGradientWarning):
        check = gradient_check(net, rng.normal(size=(8, 5)), rng.integers(0, 3, 8))
    assert {name for name, c in check.parameters.items() if c.verdict == WRONG} == {"W2"}


def test_a_kink_of_the_loss_in_training_gives_no_verdict(rng):
    """One of eight samples lies there; which, the loss of a batch does not say."""
    layers = [Affine(5, 6, 0.7), ReLU(), Affine(6, 3, 0.7), Dropout(0.4)]
    net, x = xnet.Network(layers, seed=5, backend="numpy"), rng.normal(size=(8, 5))
    x[3] = 0
    with pytest.warns(xnet.NaiveGradientWarning):
        check = gradient_check(net, x, rng.integers(0, 3, 8))
    assert check.left_out == ()
    assert check.verdict == INCONCLUSIVE


def test_a_wrong_gradient_where_loss_and_scores_are_0_is_caught():
    net, x, t = exact_network([1, 2], 0.0, [0, 0])
    right = gradient_check(net, x, t)
    assert right.passed
    assert right.steps == (1e-4,)
    net.gradient = lambda x, t: {"W1": np.zeros((1, 1)), "b1": np.ones(1)}
    assert gradient_check(net, x, t).parameters["b1"].verdict == WRONG


def test_check_catches_nan(backend, rng, monkeypatch):
    net = stack(1, Sigmoid, SoftmaxWithLoss)
    x, t = rng.normal(size=(4, 5)), rng.integers(0, 3, 4)
    right = net.gradient(x, t)
    lost = backend.to_numpy(right["b1"]).copy()
    lost[1] = math.nan
    monkeypatch.setattr(net, "gradient", lambda x, t: right | {"b1": backend.asarray(lost)})
    check = gradient_check(net, x, t)
    assert not check.passed
    assert check.parameters["b1"].worst == (1,)


@pytest.mark.parametrize(("factor", "verdict"), [(1 + 5e-6, AGREES), (1 + 2e-5, WRONG)])
def test_what_of_an_element_may_always_be_off(backend, rng, factor, verdict):
    """So much is left where the curvatures of several samples jump, and cancel in Richardson's."""
    net = stack(2, Sigmoid, SoftmaxWithLoss)
    net.__class__ = Altered
    net.altered = {"W1": lambda name, g: g * factor}
    check = gradient_check(net, rng.normal(size=(4, 5)), rng.integers(0, 3, 4))
    assert check.parameters["W1"].verdict == verdict
    assert check.parameters["W2"].verdict == AGREES


EXAMPLES = int(os.environ.get("XNET_EXAMPLES", "40"))
"""XNET_EXAMPLES=1000 tries as many networks, in minutes."""


@st.composite
def networks(draw):
    """A network, whose gradient can be altered, and a batch; and whether it is an ordinary one.

    Others are badly scaled, dead, at kinks of several layers at once, or have no slope at all.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    widths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    std = draw(st.sampled_from(["he", 0.7, 0.01, 5.0, 0.0]))
    scale = draw(st.sampled_from([1.0, 1e-2, 1e2]))
    samples, zeros = draw(st.sampled_from([5, 1, 40])), draw(st.booleans())
    between = draw(st.sampled_from([None, None, LayerNorm, BatchNorm, Dropout]))
    activation, loss = draw(st.sampled_from(ACTIVATIONS)), draw(st.sampled_from(LOSSES))
    layers = []
    for inputs, outputs in zip(widths, [*widths[1:], 3], strict=True):
        layers.append(Affine(inputs, outputs, std))
        if between is not None:
            layers.append(Dropout(0.4) if between is Dropout else between(outputs))
        layers.append(activation)
    if draw(st.booleans()):
        del layers[-1]
    net = Altered(layers, loss, seed=rng, dtype=draw(st.sampled_from(["float64", "float32"])))
    if biased := draw(st.booleans()):
        for name, b in net.params.items():
            if name.startswith("b"):
                net.params[name] = (0.3 * rng.normal(size=b.shape)).astype(net.dtype)
    x = scale * rng.normal(size=(samples, widths[0]))
    if zeros:
        x[::3] = 0
    kind = draw(st.sampled_from(["classes", "shares", "predicted"]))
    if kind == "classes":
        t = rng.integers(0, 3, samples)
    elif kind == "shares":
        t = rng.dirichlet(np.ones(3), samples)
    else:  # where the absolute error has its kink
        t = np.where(rng.random((samples, 3)) < 0.3, net.predict(x), rng.random((samples, 3)))
    ordinary = std in ("he", 0.7) and scale == 1.0 and samples > 1 and len(widths) < 3
    return net, x, t, ordinary and between is None and biased and kind != "predicted"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::xnet.KinkWarning", "ignore::xnet.NaiveGradientWarning")
@settings(property_settings, max_examples=EXAMPLES)
@given(case=networks(), data=st.data())
def test_any_network_right_and_one_percent_off(case, data):
    """No right gradient is called wrong, and none that is wrong by one percent in one parameter."""
    net, x, t, ordinary = case
    check = gradient_check(net, x, t)
    assert check.verdict != WRONG, str(check)
    if ordinary:
        assert check.passed, str(check)
    name = data.draw(st.sampled_from(sorted(net.params)))
    kept = np.setdiff1d(np.arange(len(x)), check.left_out)
    x, t = x[kept], t[kept]
    net.altered = {name: lambda name, g: 1.01 * g}
    check = gradient_check(net, x, t)
    found = check.parameters[name]
    kept = np.setdiff1d(np.arange(len(x)), check.left_out)
    twin = _in_float64(net)  # in float32 it may be nothing but rounding
    twin.altered = {}
    with twin.held():  # what layers draw, too, is what it was in the check
        right = twin.gradient(x[kept], t[kept])
    largest = max(abs(g).max() for g in right.values())
    if abs(right[name]).max() > 2 * NO_GRADIENT * largest:  # less is none
        assert found.verdict != AGREES, str(check)
        assert found.verdict == WRONG or not ordinary, str(check)


def test_a_sample_at_a_kink_is_found_though_its_bends_cancel_in_one_direction():
    """Slopes of softmax add up to 0; these do so, too, by the factors that move the biases."""
    factors = unlike(np, np.zeros(3), range(3))
    slopes = 1e-3 * np.cross(factors, np.ones(3))
    assert abs(slopes.sum()) < 1e-15
    assert abs(slopes @ factors) < 1e-15
    layers = [Affine.from_params(-np.ones((1, 3)), np.zeros(3)), ReLU()]  # of x = 0 all are 0
    net, t = xnet.Network(layers), np.ones((3, 3)) / 3 + slopes
    with pytest.warns(xnet.KinkWarning, match="leaves out 1 of 3"):
        check = gradient_check(net, [[0.0], [1.0], [2.0]], t)
    assert check.left_out == (0,)
    assert check.verdict == AGREES


def test_a_kink_behind_a_normalization_that_hardly_sees_biases_move_together():
    """The third sample crosses it within the shortest step of one bias alone."""
    layers = [Affine(1, 3, 0.01), LayerNorm(3), ReLU()]
    net = xnet.Network(layers, seed=2, backend="numpy")
    x = np.array([[6.6e-3], [-1.64e-2], [-5.2e-5], [-6.2e-3], [1.5e-3]])
    with pytest.warns(xnet.KinkWarning, match="leaves out 1 of 5"):
        check = gradient_check(net, x, np.array([2, 2, 0, 1, 1]))
    assert check.left_out == (2,)
    assert check.verdict == AGREES


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.5 * FINEST, 2.0])
def test_one_element_off_is_caught(rng, share):
    net = Altered([Affine(5, 6, 0.7), ReLU(), Affine(6, 3, 0.7)], seed=2)
    x, t = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    for name, g in net.gradient(x, t).items():
        for element in range(g.size):
            net.altered = {name: lambda _, g, k=element: alter(g, k, share)}
            found = gradient_check(net, x, t).parameters[name]
            assert found.verdict == WRONG, found
            assert found.worst == np.unravel_index(element, g.shape)


def alter(g, element, share):
    g = g.copy()
    g.flat[element] *= 1 + share
    return g


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_rounding_that_normalizations_multiply_is_no_alarm(seed):
    """Of one class the softmax is 1, and what follows is the same for every sample."""
    rng, layers = np.random.default_rng(seed), []
    for widths in pairwise((3, 1, 4, 3, 3)):
        layers += [Affine(*widths, "he"), BatchNorm(widths[1]), Softmax()]
    net = Altered(layers[:-1], seed=rng, backend="numpy")
    x, t = rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
    with pytest.warns(xnet.NaiveGradientWarning):
        check = gradient_check(net, x, t)
    assert check.verdict != WRONG, str(check)
    net.altered = {"W2": lambda name, g: g + 1e-7}
    with pytest.warns(xnet.NaiveGradientWarning):
        check = gradient_check(net, x, t)
    assert check.parameters["W2"].verdict == WRONG, str(check)


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_a_gradient_that_is_drawn_is_wrong_for_all_that_it_moves(rng, size):
    net, x, t = exact_network([1, 2, 1, 4], 0.0, size * np.array([2, 2, 4, 4]))
    net.__class__ = Altered
    net.altered = {"W1": lambda name, g: g * rng.uniform(0.9, 1.1, g.shape)}
    assert gradient_check(net, x, t).verdict == WRONG


@pytest.mark.slow
@pytest.mark.parametrize("samples", [100, 200])
def test_kinks_that_a_step_crosses_are_no_alarm(backend, samples):
    """Of the digits, ReLU: most seeds have samples within 1e-4 of a kink."""
    (x, t), _ = xnet.datasets.load_digits()
    for seed in range(3):
        net = xnet.Network([Affine(64, 8, "he"), ReLU(), Affine(8, 10, "he")], seed=seed)
        batch = np.random.default_rng(seed).permutation(len(x))[:samples]
        check = gradient_check(net, x[batch], t[batch])
        assert check.passed, str(check)
        assert check.left_out == ()


def test_an_element_that_crosses_a_kink_is_looked_at_by_a_shorter_step():
    """Else as much as the kink is worth would be allowed of it, and an error hidden."""
    (x, t), _ = xnet.datasets.load_digits()
    net = xnet.Network([Affine(64, 50, "he"), ReLU(), Affine(50, 10, "he")], seed=5)
    batch = np.random.default_rng(5).permutation(len(x))[:20]
    with xnet.use_backend("numpy"):
        check = gradient_check(net, x[batch], t[batch])
    assert check.passed, str(check)
    assert check.steps == (1e-4, 1e-6)
    assert max(c.relative_error for c in check.parameters.values()) < 1e-6, str(check)


@pytest.mark.parametrize("operation", ACTIVATIONS, ids=repr)
def test_samples_at_a_kink_are_left_out(operation):
    """Blank samples, where the biases are what they begin as: at the kinks of several layers."""
    rng = np.random.default_rng(4)
    layers = [Affine(5, 6, 0.7), operation, Affine(6, 6, 0.7), operation, Affine(6, 3, 0.7)]
    net, x, t = Altered(layers, seed=3), rng.normal(size=(8, 5)), rng.integers(0, 3, 8)
    x[[2, 5]] = 0
    if 0.0 in operation.kinks:
        names = type(operation).__name__
        with pytest.warns(xnet.KinkWarning, match=rf"leaves out 2 of 8 samples: .* of {names},"):
            check = gradient_check(net, x, t)
        assert check.left_out == (2, 5)
        assert "2 sample(s) left out, which lie at a kink" in str(check)
    else:
        check = gradient_check(net, x, t)  # warnings are errors here
        assert check.left_out == ()
    assert check.passed, str(check)


@pytest.mark.parametrize("loss", [AbsoluteError(), Hinge()], ids=repr)
def test_samples_at_a_kink_of_the_loss_are_left_out(backend, rng, loss):
    net = xnet.Network([Affine(5, 3, 0.7)], loss, seed=1)
    x = rng.normal(size=(4, 5))
    t = np.eye(3)[[0, 1, 2, 0]] if loss.classes else rng.normal(size=(4, 3))
    if loss.classes:  # a score that is less than the right one by the margin
        x[3] = 0
        net.params["b1"] = backend.asarray([1.0, 0.0, -2.0])
    else:
        t[3] = backend.to_numpy(net.scores(x))[3]
    with pytest.warns(xnet.KinkWarning, match="1 of 4 samples: they lie at a kink, of the loss"):
        check = gradient_check(net, x, t)
    assert check.left_out == (3,)
    assert check.passed, str(check)


def test_where_all_lie_at_a_kink_there_is_no_verdict(rng):
    net = xnet.Network([Affine(5, 6, 0.0), ReLU(), Affine(6, 3, 0.7)])
    check = gradient_check(net, rng.normal(size=(4, 5)), [0, 1, 2, 0])
    assert check.verdict == INCONCLUSIVE
    assert check.steps == (1e-4, 1e-6, 1e-2, 1e-5, 1e-3)  # each was tried


def test_what_is_not_finite_gives_no_verdict(backend, rng):
    net = stack(2)
    net.params["b2"] = backend.asarray([math.inf, 0.0, 0.0])
    check = gradient_check(net, rng.normal(size=(4, 5)), [0, 1, 2, 0])
    assert check.verdict == INCONCLUSIVE


def test_the_networks_parameters_are_left_as_they_were(backend, rng):
    net = stack(2, ReLU)
    before = {name: backend.to_numpy(W).copy() for name, W in net.params.items()}
    gradient_check(net, rng.normal(size=(4, 5)), [0, 1, 2, 0])
    for name, W in net.params.items():
        np.testing.assert_array_equal(backend.to_numpy(W), before[name])


def test_check_of_one_sample_and_of_tensors(backend, rng):
    net = stack(2, ReLU, SoftmaxWithLoss)
    assert gradient_check(net, rng.normal(size=5), 1).passed
    net = xnet.Network([Affine(6, 3, 0.7), ReLU()])
    assert gradient_check(net, rng.normal(size=(4, 2, 3)), [0, 1, 2, 0]).passed


# -- what is allowed, where all numbers are exact: parabolas, and steps that are powers of two

H = 2.0**-10


def exact_network(x, b, r, loss=IdentityWithLoss):
    """A weight of 0 and a bias of b, and samples x whose residuals are r."""
    net = xnet.Network([Affine(1, 1, 0.0)], loss(), backend="numpy")
    net.params["b1"] = np.array([b])
    x, r = np.array(x, float)[:, None], np.array(r, float)[:, None]
    return net, x, b - r


@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_what_rounding_may_explain(kind):
    """As the module says: 8 sqrt(K) u (|L| + c max|s|) / h, u max|w| / h and 8 sqrt(K) u of g."""
    net, x, t = exact_network([1, 2, 1, 4], 0.0, [2, 2, 4, 4])
    net.params["W1"] = np.array([[-0.5]])
    t = t - 0.5 * x  # the same residuals
    right = {name: g.astype(kind) for name, g in net.gradient(x, t).items()}
    net.gradient = lambda x, t: right
    check = gradient_check(net, x, t, H)
    assert check.steps == (H,)
    g = {"W1": (1 * 2 + 2 * 2 + 1 * 4 + 4 * 4) / 4, "b1": 3.0}
    u, chain = 2.0**-53, 1 + 1  # inputs and outputs
    c = (1 + 1 + 2 + 2) / 4  # half of each residual
    size = (2 + 2 + 8 + 8) / 4 + c * 2.0  # the score is -2 for an x of 4
    for name, w in (("W1", 0.5), ("b1", 0.0)):
        of_loss = 8 * math.sqrt(chain) * u * size / H
        of_gradient = 8 * math.sqrt(chain) * float(np.finfo(kind).eps) / 2 + u * w / H
        found = check.parameters[name]
        assert found.backprop == found.numerical == g[name]
        assert found.tolerance == pytest.approx(of_loss + of_gradient * g[name], rel=1e-9, abs=0)


def test_what_rounding_the_weights_does_to_backpropagation_is_allowed_four_times():
    net, x, t = exact_network([1, 2, 1, 4], 0.0, [2, 2, 4, 4])
    net.params["W1"] = np.array([[-0.5]])
    t, weights, moves = t - 0.5 * x, [], iter([0.0, 1e-9, -3e-9, 2e-9])
    right = net.gradient(x, t)

    class Trembling(xnet.Network):
        def gradient(self, x, t):
            weights.append(float(self.params["W1"][0, 0]))
            move = next(moves)
            return {name: g + move for name, g in right.items()}

    net.__class__ = Trembling
    found = gradient_check(net, x, t, H).parameters["W1"]
    of_loss = (8 * math.sqrt(2) * 2.0**-53 * (5 + 1.5 * 2) + 2.0**-53 * 0.5 * 6.5) / H
    assert found.tolerance == pytest.approx(4 * 3e-9 + of_loss, rel=1e-7, abs=0)
    assert weights[0] == -0.5
    assert all(0 < abs(w / -0.5 - 1) <= 2.0**-51 for w in weights[1:])
    assert len(set(weights)) == 4


def test_truncation_allows_twice_the_difference_of_two_steps():
    """Of a loss whose third derivative is known: g(h) is off by h^2 f''' / 6."""
    net, x, _ = exact_network([1], 1.0, [0], BinaryCrossEntropy)
    found = gradient_check(net, x, np.zeros((1, 1)), H).parameters["b1"]
    y = 1 / (1 + math.exp(-1))
    off = H * H * y * (1 - y) * (1 - 2 * y) / 6
    assert found.numerical - y == pytest.approx(off, rel=1e-3)
    assert found.tolerance == pytest.approx(2 * 3 * abs(off), rel=1e-3)


@pytest.mark.parametrize(
    ("h", "share", "verdict"), [(0.2016, 4.986, AGREES), (0.2021, 5.011, INCONCLUSIVE)]
)
def test_half_a_percent_of_the_gradient_may_be_allowed(h, share, verdict):
    """More, and one percent off might pass."""
    net, x, _ = exact_network([1], 1.0, [0], BinaryCrossEntropy)
    found = gradient_check(net, x, np.zeros((1, 1)), h).parameters["b1"]
    assert found.tolerance / found.numerical == pytest.approx(share / 1000, rel=1e-4)
    assert found.verdict == verdict


def test_one_step_does_where_it_is_off_by_little_of_the_largest_element():
    """By a good deal more of the loss, or of the element that is 0."""
    net = xnet.Network([Affine(2, 1, 0.0)], BinaryCrossEntropy(), backend="numpy")
    net.params["b1"] = np.array([1.0])
    check = gradient_check(net, np.array([[40.0, 0.0]]), np.zeros((1, 1)))
    assert check.passed
    assert check.steps == (1e-4,)


@pytest.mark.parametrize(("share", "verdict"), [(0.5, AGREES), (1.5, WRONG)])
def test_what_of_the_largest_slope_counts_as_none(share, verdict):
    """A bias whose gradient is 0, as before a normalization, and that of the weight is 1024."""
    net, x, t = exact_network([1024, -1024], 0.0, [1, -1])
    right = net.gradient(x, t)
    assert (right["W1"], right["b1"]) == (1024, 0)
    net.gradient = lambda x, t: right | {"b1": np.array([share * 1e-10 * 1024])}
    assert gradient_check(net, x, t, H).parameters["b1"].verdict == verdict


def relu_between(x, **parameters):
    """One unit between one input and one score, for samples x; weights are 1 and biases 0."""
    net = xnet.Network([Affine(1, 1), ReLU(), Affine(1, 1)], IdentityWithLoss(), backend="numpy")
    parameters = {"W1": 1.0, "b1": 0.0, "W2": 1.0, "b2": 0.0} | parameters
    for name, value in parameters.items():
        net.params[name] = np.full(net.params[name].shape, value)
    return net, np.array(x, float)[:, None]


def left_out_of(net, x, t, h=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xnet.KinkWarning)
        return gradient_check(net, x, t, h).left_out


@pytest.mark.parametrize(("distance", "left_out"), [(1.5, (1,)), (1.75, ())])
def test_how_near_a_kink_a_sample_lies(distance, left_out):
    """Within half of four steps, of which the bias is moved by its own share, 0.8."""
    net, x = relu_between([2, 0, 3], b1=distance * H)
    assert left_out_of(net, x, 1 + x, H) == left_out


@pytest.mark.parametrize("let_through", [1e-9, 3e-9])
def test_no_step_that_crosses_a_kink_calls_a_right_gradient_wrong(let_through):
    """By 1e-4 the bias crosses one, a tenth of that away; by 1e-6 rounding shows as much."""
    net, x = relu_between([0, 2], b1=1e-5, W2=let_through)
    check = gradient_check(net, x, np.ones((2, 1)))
    assert check.left_out == ()
    assert check.verdict == INCONCLUSIVE, str(check)


@pytest.mark.parametrize(("share", "left_out"), [(0.9, ()), (1.1, (2,))])
def test_a_bend_that_rounding_explains_is_no_kink(share, left_out):
    """The third sample lies at a kink, of which the last weight lets so much through to the loss.

    Rounded are four losses, of 1/2 and of a score of 2, in chains of three numbers.
    """
    samples, moved = 4, (1 + (math.sqrt(5) - 1) / 2) / 2 * BENDS * H
    rounding = 4 * 8 * math.sqrt(1 + 1 + 1) * 2.0**-53 * (0.5 + 2.0) / samples
    net, x = relu_between([2, 3, 0, 4], W2=share * rounding / (moved * 1.0 / samples), b2=2.0)
    assert left_out_of(net, x, np.ones((samples, 1)), H) == left_out


def test_a_kink_is_found_though_more_are_crossed_further_on():
    """By steps twice as long, what the loss bends by is more than twice as much, as on a curve."""
    layers = [Affine(1, 5, 5.0), ReLU(), Affine(5, 5, 5.0), ReLU(), Affine(5, 3, 5.0)]
    net = xnet.Network(layers, Hinge(), seed=11)
    x, t = np.array([[3.4e-5], [1.36], [1.22], [-0.51], [-0.3]]), np.full((5, 3), 0.5)
    t[0, 2] = 100.0
    with pytest.warns(xnet.KinkWarning, match="leaves out 1 of 5"):
        check = gradient_check(net, x, t)
    assert check.left_out == (0,)
    assert check.verdict == AGREES


def test_how_much_of_a_loss_rounding_explains_follows_from_its_slope():
    """Of the second sample it is 10^4 for each score, of the others 2 at most."""
    net = xnet.Network([Affine(1, 3, 1.0)], Hinge(), seed=1)
    x, t = np.array([[1.0], [2.0], [3.0]]), np.eye(3)
    plain = gradient_check(net, x, t).parameters["b1"].tolerance
    t[1] = [1.0, 0.0, 100.0]
    steep = gradient_check(net, x, t).parameters["b1"].tolerance
    assert steep > 1000 * plain


@pytest.mark.filterwarnings("ignore::xnet.NaiveGradientWarning")
def test_no_sample_is_told_apart_where_only_the_loss_of_all_is_known(monkeypatch):
    """As with Dropout. What is steep is so of all samples together, and none is left out."""
    steep = np.array([1.0, 1.0, 1e30, 1e30, 1e30, 1e30])
    module = sys.modules["xnet.gradient_check"]  # the package's attribute is the function
    monkeypatch.setattr(module, "_steepness", lambda network, x, t: steep)
    net = xnet.Network([Affine(2, 3, 0.7), Dropout(0.4), ReLU()], seed=1, backend="numpy")
    net.params["b1"] = np.array([0.0, 1.0, 1.0])
    x, t = np.zeros((6, 2)), np.zeros(6, np.int64)  # the first unit is at its kink in all of them
    assert gradient_check(net, x, t).left_out == ()  # warnings are errors here


@pytest.mark.parametrize("blank", [4, 5])
def test_up_to_half_of_the_samples_may_lie_at_a_kink(rng, blank):
    net = stack(2, ReLU, seed=1)
    x, t = rng.normal(size=(8, 5)), rng.integers(0, 3, 8)
    x[:blank] = 0
    if blank > 4:
        assert gradient_check(net, x, t).left_out == ()  # warnings are errors here
    else:
        with pytest.warns(xnet.KinkWarning, match="leaves out 4 of 8 samples") as warned:
            assert gradient_check(net, x, t).left_out == (0, 1, 2, 3)
        assert warned[0].filename == __file__


# -- what is said


def test_the_table_of_a_check():
    shown = ParameterCheck("W1", (2, 3), AGREES, 1e-10, 2e-9, 3e-8, (1, 2), 0.5, 0.25, 1e-7)
    other = ParameterCheck("b1", (3,), INCONCLUSIVE, 0.0, 0.0, 0.0, (0,), -1.0, -1.0, math.inf)
    text = str(GradientCheck({"W1": shown, "b1": other}, (3, 5), (1e-4, 1e-6)))
    assert text == "\n".join(
        [
            "parameter  mean diff  max diff  relative  worst element  backprop          "
            "numerical         apart    allowed  verdict",
            "W1 2x3     1.0e-10    2.0e-09   3.0e-08   W1[1, 2]        5.000000000e-01   "
            "2.500000000e-01  2.5e-01  1.0e-07  ok",
            "b1 3       0.0e+00    0.0e+00   0.0e+00   b1[0]          -1.000000000e+00  "
            "-1.000000000e+00  0.0e+00  inf      inconclusive",
            "2 sample(s) left out, which lie at a kink",
            "inconclusive: rounding or kinks leave too little of the numerical gradient "
            "(h=0.0001, 1e-06)",
        ]
    )
    assert str(GradientCheck({"W1": shown}, (), (1e-4,))).splitlines()[2:] == [
        "backpropagation agrees with the numerical gradient (h=0.0001)"
    ]


def test_what_a_check_found_stays_as_it_is():
    found = ParameterCheck("b1", (1,), AGREES, 1e-10, 2e-9, 3e-8, (0,), 0.5, 0.25, 1e-7)
    check = GradientCheck({"b1": found}, (), (1e-4, 1e-6))
    assert (check.h, len(check), list(check), check["b1"]) == (1e-4, 1, ["b1"], 1e-10)
    for record in (found, check):
        assert record.passed
        for name in dataclasses.asdict(record):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(record, name, None)


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_errors_are_relative_to_the_larger_gradient(share):
    net, x, t = exact_network([1, 3], 0.0, [1, 1])
    right = net.gradient(x, t)
    net.gradient = lambda x, t: {name: share * g for name, g in right.items()}
    for name, g in {"W1": 2.0, "b1": 1.0}.items():
        found, apart = gradient_check(net, x, t, H).parameters[name], abs(1 - share)
        assert found.absolute_error == apart * g
        assert found.relative_error == apart / max(1.0, share)


def test_where_nothing_has_a_slope_the_gradients_agree():
    """The right score leads by more than the margin."""
    net = xnet.Network([Affine(1, 2, 0.0)], Hinge(), backend="numpy")
    net.params["b1"] = np.array([3.0, 0.0])
    check = gradient_check(net, np.ones((2, 1)), [0, 0])
    assert check.passed
    assert [found.relative_error for found in check.parameters.values()] == [0, 0]


@pytest.mark.parametrize("x", [1e200, 1.2e154 / H])
def test_the_worst_element_may_be_one_of_which_nothing_is_known(x):
    """Its loss overflows; of the second by the doubled step only."""
    net = xnet.Network([Affine(2, 1, 0.0)], IdentityWithLoss(), backend="numpy")
    check = gradient_check(net, np.array([[1.0, x]]), np.array([[1.0]]), H)
    assert check.verdict == INCONCLUSIVE
    found = check.parameters["W1"]
    assert found.worst == (1, 0)
    assert found.tolerance == math.inf


def test_no_slope_is_not_said_where_nothing_is_known_of_an_element():
    """By either weight there is none; by the second, the doubled step overflows."""
    net = xnet.Network([Affine(2, 1, 0.0)], IdentityWithLoss(), backend="numpy")
    x, t = np.array([[0.0, 1.2e154 / H], [0.0, 0.0]]), np.array([[0.0], [1.0]])
    check = gradient_check(net, x, t, H)
    assert check.parameters["b1"].passed
    assert check.parameters["W1"].verdict == INCONCLUSIVE


def test_the_worst_element_is_the_one_that_most_exceeds_its_tolerance():
    """Not the one that is most off, where as much is allowed."""
    net = xnet.Network([Affine(2, 1, 0.0)], BinaryCrossEntropy(), backend="numpy")
    net.params["b1"] = np.array([1.0])
    x, t = np.array([[0.5, 8.0]]), np.zeros((1, 1))
    right, steep = net.gradient(x, t), np.array([[0.0], [1e-4]])
    net.gradient = lambda x, t: right | {"W1": right["W1"] + steep}
    found = gradient_check(net, x, t, 1e-2).parameters["W1"]
    assert found.verdict == AGREES
    assert found.worst == (0, 0)
    assert found.absolute_error > 5e-5
