"""Every operation against independent definitions, and what the registry promises of each."""

import copy
import dataclasses
import functools
import math
import pickle
import re

import mpmath
import numpy as np
import pytest
from conftest import LAYER_KINDS, make_layer, property_settings, smooth, variants
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf

import xnet
from xnet import operations
from xnet.bounds import Bounds
from xnet.dtypes import dtype_name
from xnet.formulas import Arrays
from xnet.gradient_check import gradient_check
from xnet.layers import Affine, BatchNorm, Dropout, IdentityWithLoss, LayerNorm, Sigmoid
from xnet.network import Network
from xnet.operations import OPERATIONS, Operation, Pointwise
from xnet.testing.parity import same_bits

POINTWISE, LOSSES = variants("pointwise"), variants("loss")
LOSSES += [operations.SoftmaxWithLoss(class_weights=(0.5, 2.0, 1.0, 0.25))]
LOSSES += [operations.SoftmaxWithLoss(0.2, class_weights=(0.5, 2.0, 1.0, 0.25))]
PLAIN = variants("pointwise", altered=False)

every_pointwise = pytest.mark.parametrize("operation", POINTWISE, ids=repr)
every_loss = pytest.mark.parametrize("operation", LOSSES, ids=repr)
both_modes = pytest.mark.parametrize("reproducible", [False, True], ids=["fast", "reproducible"])


# -- what each is said to be, written here without regard to rounding

DIGITS = 420
"""With which these are computed: 60 at least remain where 1 + tanh is 1e-300."""


def softmax(x):
    e = [mpmath.exp(v) for v in x]
    return [v / sum(e) for v in e]


def logistic(x):
    return 1 / (1 + mpmath.exp(-x))


def elu(x, alpha):
    return x if x > 0 else alpha * mpmath.expm1(x)


def clipped(x, low, high):
    return min(max(x, mpf(low)), mpf(high))


def softplus(x):
    return mpmath.log1p(mpmath.exp(x))


FUNCTIONS = {
    "Sigmoid": lambda o, x: logistic(x),
    "ReLU": lambda o, x: max(x, mpf(0)),
    "Tanh": lambda o, x: mpmath.tanh(x),
    "LeakyReLU": lambda o, x: x if x > 0 else mpf(o.slope) * x,
    "ELU": lambda o, x: elu(x, mpf(o.alpha)),
    "SELU": lambda o, x: mpf(o.scale) * elu(x, mpf(o.alpha)),
    "Softplus": lambda o, x: softplus(x),
    "SiLU": lambda o, x: x * logistic(x),
    "GELU": lambda o, x: (
        x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpf("0.044715") * x**3)))
    ),
    "HardSigmoid": lambda o, x: clipped(x / 6 + mpf(1) / 2, 0, 1),
    "HardTanh": lambda o, x: clipped(x, -1, 1),
    "Mish": lambda o, x: x * mpmath.tanh(softplus(x)),
}


def cross_entropy(o, x, t):
    share, classes = mpf(o.label_smoothing), len(x)
    smoothed = [(1 - share) * v + share * sum(t) / classes for v in t]
    weights = [mpf(1)] * classes if o.class_weights is None else map(mpf, o.class_weights)
    losses = zip(weights, smoothed, softmax(x), strict=True)
    return -sum(w * v * mpmath.log(y) for w, v, y in losses if v)


def huber(d, delta):
    return d**2 / 2 if abs(d) <= delta else delta * (abs(d) - delta / 2)


def hinge(o, x, t):
    right = sum(a * b for a, b in zip(x, t, strict=True))
    pairs = zip(x, t, strict=True)
    return sum((1 - b) * max(mpf(0), mpf(o.margin) + a - right) for a, b in pairs)


def binary(x, t):
    return -t * mpmath.log(logistic(x)) - (1 - t) * mpmath.log(logistic(-x))


ROW_LOSSES = {
    "SoftmaxWithLoss": cross_entropy,
    "IdentityWithLoss": lambda o, x, t: sum((a - b) ** 2 for a, b in zip(x, t, strict=True)) / 2,
    "AbsoluteError": lambda o, x, t: sum(abs(a - b) for a, b in zip(x, t, strict=True)),
    "Huber": lambda o, x, t: sum(huber(a - b, mpf(o.delta)) for a, b in zip(x, t, strict=True)),
    "Hinge": hinge,
    "BinaryCrossEntropy": lambda o, x, t: sum(map(binary, x, t)),
    "KullbackLeibler": lambda o, x, t: sum(
        b * mpmath.log(b / y) for b, y in zip(t, softmax(x), strict=True) if b
    ),
    "Focal": lambda o, x, t: (
        -sum(
            b * (1 - y) ** mpf(o.gamma) * mpmath.log(y)
            for b, y in zip(t, softmax(x), strict=True)
            if b
        )
    ),
}


def test_every_activation_and_loss_has_a_definition_here():
    assert set(FUNCTIONS) == {type(operation).__name__ for operation in POINTWISE}
    assert set(ROW_LOSSES) == {type(operation).__name__ for operation in LOSSES}


def numbers(dtype, *operations, largest=30.0):
    """Numbers of this dtype, of every size up to one, on both sides of kinks and at none."""
    sizes = np.concatenate([np.geomspace(1e-25, 1e-3, 12), np.linspace(0.01, largest, 25)])
    near = [kink + side for o in operations for kink in o.kinks for side in (-1e-3, 1e-3)]
    x = np.concatenate([sizes, -sizes, near]).astype(dtype)
    kinks = {kink for o in operations for kink in o.kinks}
    return x[[v not in kinks for v in x.tolist()]]


def slope(f, x):
    """The derivative by a step of 1e-40, which leaves 40 digits right and crosses no kink."""
    h = mpf("1e-40")
    return (f(x + h) - f(x - h)) / (2 * h)


def bounds(dtype, ulps=4.0):
    return Bounds(np, float(np.finfo(dtype).eps) / 2, ulps)


UNDERFLOWS = 1000
"""Smallest numbers, at most, that underflow adds to an error: what it is multiplied with later."""


def assert_within(found, exact, bound, dtype):
    """Within the derived bound, which knows nothing of underflow; NaN is no bound, as infinity."""
    error = np.abs(np.asarray(found, np.float64) - exact)
    bound = np.where(np.isnan(bound), np.inf, bound)
    allowed = bound + UNDERFLOWS * float(np.finfo(dtype).smallest_subnormal)
    assert (error <= allowed).all(), (error / allowed).max()
    assert np.isfinite(bound).mean() >= 0.75


@functools.cache  # for every backend and mode the same
def exact_activation(operation, x, dout):
    """The values at these numbers, and the slopes times `dout`."""
    define = functools.partial(FUNCTIONS[type(operation).__name__], operation)
    with mpmath.workdps(DIGITS):
        slopes = [float(d * slope(define, mpf(v))) for v, d in zip(x, dout, strict=True)]
        return [float(define(mpf(v))) for v in x], slopes


@both_modes
@every_pointwise
def test_activations_at_60_digits(backend, dtype, operation, reproducible):
    backend = xnet.resolve(backend, reproducible)
    x = numbers(dtype, operation)
    y = backend.run(operation, backend.asarray(x))
    dout = np.where(np.arange(len(x)) % 2, 1.0, -0.75).astype(dtype)
    dx = backend.run_backward(operation, backend.asarray(dout), backend.asarray(x), y)[0]
    m = bounds(dtype)
    wide, factor = m.take(x.astype(np.float64)), m.take(dout.astype(np.float64))
    with np.errstate(all="ignore"):
        derived = operation.forward(m, wide)
        slopes = operation.backward(m, factor, wide, derived)
    exact, exact_slopes = exact_activation(operation, tuple(x.tolist()), tuple(dout.tolist()))
    # `derived` was itself computed in float64, with an error within its bound.
    assert_within(backend.to_numpy(y), exact, 2 * derived.e, dtype)
    assert_within(backend.to_numpy(dx), exact_slopes, 2 * slopes.e, dtype)


TARGETS = np.array(
    [
        *([0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]),
        *([0.25, 0.5, 0.125, 0.125], [0, 0.75, 0.25, 0]),
        [0.5, 1, 0, 0.5],  # weights, which add up to 2
    ]
)


def scores(dtype):
    """Rows of four scores: small, large, far apart, nearly equal."""
    rows = [[0.3, -1.2, 2.1, 0.7], [30, -20, 3.1, 0.1], [1e-20, 2e-5, -1e-9, 3e-3]]
    rows += [[-40.3, 55.2, 54.9, 0.2], [5.03, 5.02, 5.01, 5.04], [0.7, -0.4, 1.3, 0.1]]
    return np.array(rows, dtype)


@functools.cache  # for every backend and mode the same
def exact_losses(operation, dtype):
    """Those of `scores` and TARGETS, and the slopes of their mean."""
    define, losses, slopes = ROW_LOSSES[type(operation).__name__], [], []
    with mpmath.workdps(DIGITS):
        for row, target in zip(scores(dtype).tolist(), TARGETS.tolist(), strict=True):
            row, target = list(map(mpf, row)), list(map(mpf, target))
            losses.append(float(define(operation, row, target)))
            for k in range(4):

                def by_one(z, k=k, row=row, target=target):
                    return define(operation, [*row[:k], z, *row[k + 1 :]], target)

                slopes.append(float(slope(by_one, row[k]) / 6))
    return losses, np.reshape(slopes, (6, 4))


@both_modes
@every_loss
def test_losses_at_60_digits(backend, dtype, operation, reproducible):
    backend = xnet.resolve(backend, reproducible)
    x, t = scores(dtype), TARGETS.astype(dtype)
    targets = operation.targets(backend.maths, backend.asarray(t))
    losses = backend.row_losses(operation, backend.asarray(x), targets)
    _, delta = backend.loss_and_delta(operation, backend.asarray(x), targets)
    m = bounds(dtype)
    with np.errstate(all="ignore"):
        wide, t = m.take(x.astype(np.float64)), operation.targets(m, m.take(TARGETS))
        derived, slopes = operation.forward(m, wide, t), operation.backward(m, wide, t) * (1 / 6)
    exact, exact_slopes = exact_losses(operation, dtype)
    assert_within(backend.to_numpy(losses), exact, 2 * derived.e[:, 0], dtype)
    assert_within(backend.to_numpy(delta), exact_slopes, 2 * slopes.e, dtype)


@both_modes
def test_softmax_at_60_digits(backend, dtype, reproducible):
    backend = xnet.resolve(backend, reproducible)
    operation, x = operations.Softmax(), scores(dtype)
    m = bounds(dtype)
    with mpmath.workdps(60):
        exact = np.array([list(map(float, softmax(map(mpf, row)))) for row in x.tolist()])
    derived = operation.forward(m, m.take(x.astype(np.float64)))
    found = backend.to_numpy(backend.run(operation, backend.asarray(x)))
    assert_within(found, exact, 2 * derived.e, dtype)


@both_modes
def test_tanh_near_0(backend, dtype, reproducible):
    """Where 1 - exp(-2x) would have lost its digits, within 4 units in the last place."""
    backend = xnet.resolve(backend, reproducible)
    x = np.concatenate([np.geomspace(1e-20, 1e-3, 400), -np.geomspace(1e-20, 1e-3, 400)])
    x = x.astype(dtype)
    y = backend.to_numpy(backend.run(operations.Tanh(), backend.asarray(x)))
    exact = np.tanh(x.astype(np.longdouble))
    units = np.spacing(np.abs(exact).astype(dtype)).astype(np.float64)
    assert (np.abs(y - exact) <= 4 * units).all()


@every_pointwise
def test_backward_is_the_difference_of_forward(operation, rng):
    """By the formulas alone, without a layer or a backend between; with the y that forward gave."""
    m = Arrays(xnet.resolve("numpy"))
    x, dout = smooth(3 * rng.normal(size=500), operation), rng.normal(size=500)
    h = 1e-4
    steps = [operation.forward(m, x + k * h) for k in (-2, -1, 1, 2)]
    difference = (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)
    found = operation.backward(m, dout, x, operation.forward(m, x))
    # h^4 |f'''''| / 30 of truncation, 1.5 u |f| / h of rounding.
    np.testing.assert_allclose(found, dout * difference, rtol=0, atol=1e-10)


@every_pointwise
def test_the_slope_at_a_kink(operation):
    """It is that of the outer side, and at 0 of the left: as PyTorch's."""
    m = Arrays(xnet.resolve("numpy"))
    for kink in operation.kinks:
        x = np.array([kink, np.nextafter(kink, math.inf if kink > 0 else -math.inf)])
        at, beside = operation.backward(m, np.ones(2), x, operation.forward(m, x))
        assert at == pytest.approx(beside, rel=1e-15)


# -- against PyTorch's functions


@pytest.fixture
def functional():
    return pytest.importorskip("torch", reason="PyTorch is not installed").nn.functional


TORCHS = {
    "Sigmoid": lambda f, o, x: x.sigmoid(),
    "ReLU": lambda f, o, x: f.relu(x),
    "Tanh": lambda f, o, x: x.tanh(),
    "LeakyReLU": lambda f, o, x: f.leaky_relu(x, o.slope),
    "ELU": lambda f, o, x: f.elu(x, o.alpha),
    "SELU": lambda f, o, x: (
        f.selu(x) if o.alpha > 1.5 else o.scale * f.elu(x, o.alpha)  # its own takes no settings
    ),
    "Softplus": lambda f, o, x: f.softplus(x, threshold=50),
    "SiLU": lambda f, o, x: f.silu(x),
    "GELU": lambda f, o, x: f.gelu(x, approximate="tanh"),
    "HardSigmoid": lambda f, o, x: f.hardsigmoid(x),
    "HardTanh": lambda f, o, x: f.hardtanh(x),
    "Mish": lambda f, o, x: f.mish(x),
}


@every_pointwise
def test_activations_are_pytorchs(functional, operation, rng):
    import torch

    backend = xnet.resolve("numpy")
    x = np.concatenate([numbers("float64", operation), smooth(rng.normal(size=200), operation)])
    dout = rng.normal(size=x.shape)
    theirs = torch.tensor(x, requires_grad=True)
    expected = TORCHS[type(operation).__name__](functional, operation, theirs)
    expected.backward(torch.tensor(dout))
    y = backend.run(operation, x)
    # Its Softplus, ELU and Mish are less accurate than ours: absolutely, not in the last digits.
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=4e-14, atol=4e-15)
    dx = backend.run_backward(operation, dout, x, y)[0]
    # And the slope of its HardSigmoid is float32's 1/6, whatever the dtype.
    rtol = 2.0**-24 if type(operation) is operations.HardSigmoid else 4e-14
    np.testing.assert_allclose(dx, theirs.grad.numpy(), rtol=rtol, atol=4e-15)


def torch_loss(f, o, x, t):
    """The mean over the samples, as ours is, whatever PyTorch would divide by."""
    import torch

    name = type(o).__name__
    if name == "SoftmaxWithLoss":
        weights = None if o.class_weights is None else torch.tensor(o.class_weights).double()
        # Its class weights count in the smoothed loss as ours do; it divides by N for such targets.
        return f.cross_entropy(x, t, weights, label_smoothing=o.label_smoothing)
    if name == "Huber":
        return f.huber_loss(x, t, reduction="sum", delta=o.delta) / len(x)
    if name == "KullbackLeibler":
        return f.kl_div(f.log_softmax(x, dim=1), t, reduction="batchmean")
    if name == "BinaryCrossEntropy":
        return f.binary_cross_entropy_with_logits(x, t, reduction="sum") / len(x)
    if name == "IdentityWithLoss":
        return f.mse_loss(x, t, reduction="sum") / 2 / len(x)
    return f.l1_loss(x, t, reduction="sum") / len(x)


NOT_PYTORCHS = ("Hinge", "Focal")
"""It has another multi-class hinge (Crammer & Singer's, over C), and no focal loss."""


@pytest.mark.parametrize(
    "operation", [o for o in LOSSES if type(o).__name__ not in NOT_PYTORCHS], ids=repr
)
def test_losses_are_pytorchs(functional, operation, rng):
    import torch

    x, t = 3 * rng.normal(size=(40, 4)), np.concatenate([rng.dirichlet(np.ones(4), 20)] * 2)
    t[20:] = np.eye(4)[rng.integers(0, 4, 20)]
    theirs = torch.tensor(x, requires_grad=True)
    expected = torch_loss(functional, operation, theirs, torch.tensor(t))
    expected.backward()
    backend = xnet.resolve("numpy")
    loss, delta = backend.loss_and_delta(operation, x, operation.targets(backend.maths, t))
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-14)
    np.testing.assert_allclose(delta, theirs.grad.numpy(), rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_of_class_indices_is_pytorchs(functional, rng, smoothing):
    """With class indices it divides by the sum of the weights of the labels; ours by N."""
    import torch

    x, labels, weights = rng.normal(size=(9, 4)), rng.integers(0, 4, 9), (0.5, 2.0, 1.0, 0.25)
    loss = xnet.layers.SoftmaxWithLoss(smoothing, class_weights=weights)
    expected = functional.cross_entropy(
        torch.tensor(x),
        torch.tensor(labels),
        torch.tensor(weights).double(),
        label_smoothing=smoothing,
        reduction="sum",
    )
    assert float(loss.forward(x, labels)) == pytest.approx(float(expected) / 9, rel=1e-14)


@pytest.mark.parametrize("training", [True, False])
def test_normalizations_are_pytorchs(functional, rng, training):
    import torch

    x, dout = 2 + 3 * rng.normal(size=(8, 6)), rng.normal(size=(8, 6))
    for operation in variants(None):
        if not operation.parameters:
            continue
        layer = make_layer(operation, xnet.resolve("numpy"), rng)
        gamma, beta = (torch.tensor(W, requires_grad=True) for W in layer.params.values())
        theirs = torch.tensor(x, requires_grad=True)
        if operation.state:
            mean, variance = rng.normal(size=6), rng.random(6) + 0.5
            layer.state.update(mean=mean.copy(), variance=variance.copy())
            running = torch.tensor(mean), torch.tensor(variance)
            momentum = 1 - operation.decay
            expected = functional.batch_norm(
                theirs, *running, gamma, beta, training, momentum, operation.eps
            )
        else:
            expected = functional.layer_norm(theirs, (6,), gamma, beta, operation.eps)
        expected.backward(torch.tensor(dout))
        y = layer.forward(x) if training else layer(x)
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12, atol=1e-13)
        if training:
            found = [layer.backward(dout), layer.grads["gamma"], layer.grads["beta"]]
            for array, tensor in zip(found, (theirs, gamma, beta), strict=True):
                np.testing.assert_allclose(array, tensor.grad.numpy(), rtol=1e-11, atol=1e-12)
        if operation.state:
            np.testing.assert_allclose(layer.state["mean"], running[0].numpy(), rtol=1e-14)
            # Its running variance is that of a sample, over N - 1; ours is the batch's own, over N.
            moved = variance if not training else (1 - momentum) * variance
            ours = layer.state["variance"] - moved
            theirs_moved = (running[1].numpy() - moved) * (7 / 8)
            np.testing.assert_allclose(ours, theirs_moved, rtol=1e-12, atol=1e-15)


# -- at the ends of the number line


@both_modes
@every_pointwise
def test_what_is_not_finite(backend, dtype, operation, reproducible):
    """NaN comes out as NaN; infinity as the limit, but NaN where a factor of it is 0."""
    backend = xnet.resolve(backend, reproducible)
    x = backend.asarray(np.array([np.nan, np.inf, -np.inf], dtype))
    nan, up, down = backend.to_numpy(backend.run(operation, x)).tolist()
    assert math.isnan(nan)
    far = np.array([1e4, -1e4], dtype)
    high, low = backend.to_numpy(backend.run(operation, backend.asarray(far))).tolist()
    assert up == (math.inf if high >= 1e3 else high)
    if low == 0 and FUNCTIONS[type(operation).__name__](operation, mpf(-1)) < 0:
        assert down == 0 or math.isnan(down)  # x times something that vanishes
    else:
        assert down == (-math.inf if low <= -10 else low)


@both_modes
@every_pointwise
def test_huge_numbers_have_finite_slopes(backend, dtype, operation, reproducible):
    """As has every number between: no infinity on the way times a 0."""
    backend = xnet.resolve(backend, reproducible)
    largest = float(np.finfo(dtype).max)
    sizes = [*np.geomspace(1.0, 2.0**-10 * largest, 60), largest]
    x = np.array([*sizes, *(-v for v in sizes)], dtype)
    y = backend.run(operation, backend.asarray(x))
    dx = backend.run_backward(operation, backend.asarray(np.ones_like(x)), backend.asarray(x), y)[0]
    assert not np.isnan(backend.to_numpy(y)).any()
    assert np.isfinite(backend.to_numpy(dx)).all()
    assert np.abs(backend.to_numpy(dx)).max() <= 2


@both_modes
@every_pointwise
def test_zeros_and_the_smallest_numbers(backend, dtype, operation, reproducible):
    """Both zeros give one value; subnormals are numbers like others."""
    backend = xnet.resolve(backend, reproducible)
    tiny = float(np.finfo(dtype).smallest_subnormal)
    x = np.array([0.0, -0.0, tiny, -tiny, 1e-30, -1e-30], dtype)
    y = backend.to_numpy(backend.run(operation, backend.asarray(x)))
    assert y[0] == y[1]
    define = FUNCTIONS[type(operation).__name__]
    with mpmath.workdps(60):
        exact = np.array([float(define(operation, mpf(v))) for v in x.tolist()])
    eps = float(np.finfo(dtype).eps)
    assert (np.abs(y - exact) <= 4 * eps * np.abs(exact) + tiny).all()
    assert same_bits(backend.to_numpy(backend.run(operation, backend.asarray(x))), y)


@every_loss
def test_losses_of_scores_far_apart(backend, dtype, operation):
    """Finite, with finite gradients, where exp has long become 0."""
    x = np.array([[1e4, -1e4, 0, 0], [-1e4, 1e4, 1e4, 0], [3e4, 3e4, -3e4, 3e4]], dtype)
    for t in (np.eye(4)[[1, 0, 2]], np.eye(4)[[0, 1, 3]], np.full((3, 4), 0.25)):
        targets = operation.targets(backend.maths, backend.asarray(t.astype(dtype)))
        loss, delta = backend.loss_and_delta(operation, backend.asarray(x), targets)
        losses = backend.row_losses(operation, backend.asarray(x), targets)
        for array in (loss, delta, losses):
            assert np.isfinite(backend.to_numpy(array)).all()
        assert (backend.to_numpy(losses) >= 0).all()


@every_loss
def test_losses_of_nan(backend, dtype, operation):
    x = np.zeros((2, 4), dtype)
    x[1, 2] = np.nan
    t = operation.targets(backend.maths, backend.asarray(np.eye(4, dtype=dtype)[[0, 2]]))
    losses = backend.to_numpy(backend.row_losses(operation, backend.asarray(x), t))
    assert np.isnan(losses).tolist() == [False, True]
    loss, delta = backend.loss_and_delta(operation, backend.asarray(x), t)
    assert math.isnan(float(loss))
    assert np.isfinite(backend.to_numpy(delta)[0]).all()


@pytest.mark.parametrize("operation", variants(), ids=repr)
def test_float32_stays_float32(backend, rng, operation):
    """Python's and NumPy's numbers among the settings widen nothing."""
    settings = {
        name: np.float64(value) if type(value) is float else value
        for name, value in operation.settings().items()
    }
    operation = type(operation)(**settings)
    x = backend.asarray(rng.normal(size=(5, 6)), "float32")
    if operation.fuses == "loss":
        t = operation.targets(backend.maths, backend.asarray(np.eye(6)[[0, 1, 2, 3, 4]], "float32"))
        found = [t, *backend.loss_and_delta(operation, x, t), backend.predicted(operation, x)]
        found.append(backend.row_losses(operation, x, t))
    else:
        layer = make_layer(operation, backend, rng, "float32")
        y = layer.forward(x)
        found = [y, layer(x), layer.backward(y), *layer.grads.values(), *layer.state.values()]
    assert {dtype_name(array.dtype) for array in found} == {"float32"}


# -- what an operation is


@pytest.mark.parametrize("operation", variants(), ids=repr)
def test_settings_make_the_operation_again(operation):
    again = type(operation)(**operation.settings())
    assert again.settings() == operation.settings()
    assert again.widths == operation.widths
    assert again.kinks == operation.kinks
    for duplicate in (copy.deepcopy(operation), pickle.loads(pickle.dumps(operation))):
        assert type(duplicate) is type(operation)
        assert duplicate.settings() == operation.settings()
    for name in operation.settings():
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(operation, name, 0.5)
    assert operation != again  # it is itself alone, and can be a key
    assert len({operation, again}) == 2


@pytest.mark.parametrize("operation", variants(altered=False), ids=repr)
def test_facts(operation):
    cls = type(operation)
    assert OPERATIONS[cls.__name__] is operations.registered()[cls.__name__] is cls
    assert cls.__doc__
    assert cls.fuses in ("product", "pointwise", "rows", "loss", None)
    for shape in [*cls.parameters.values(), *(shape for shape, _ in cls.state.values())]:
        assert all(getattr(operation, size) >= 1 for size in shape)
    if cls.fuses in ("pointwise", "rows"):
        assert not any((cls.mixes, cls.random, cls.state, cls.parameters))
    if cls.fuses == "pointwise":
        assert operation.widths == (None, None)


def test_a_class_is_an_operation_by_being_defined(backend, rng):
    class Softsign(Pointwise):
        """x / (1 + |x|)."""

        scale: float = 1.0

        def forward(self, m, x):
            return self.scale * x / (1 + m.abs(x))

        def backward(self, m, dout, x, y):
            s = 1 + m.abs(x)
            return self.scale * dout / (s * s)

    assert OPERATIONS["Softsign"] is Softsign
    assert repr(xnet.layers.Softsign(2.0)) == "Softsign(2.0)"
    x = rng.normal(size=(4, 5))
    y = xnet.activations.softsign(backend.asarray(x), scale=2.0)
    np.testing.assert_allclose(backend.to_numpy(y), 2 * x / (1 + abs(x)), rtol=1e-15)
    net = Network([Affine(5, 6, 0.5), Softsign(3.0), Affine(6, 3, 0.5)])
    assert gradient_check(net, x, [0, 1, 2, 0]).passed


def defined_in(module, name, base="Pointwise"):
    """A class of this name, as if its definition stood in another module."""
    scope = {"__name__": module, "base": getattr(operations, base)}
    exec(f"class {name}(base):\n    scale: float = 1.0", scope)
    return scope[name]


def test_a_name_belongs_to_one_module():
    first = defined_in("mine", "Wave")
    again = defined_in("mine", "Wave")  # as when a notebook's cell is run once more
    assert OPERATIONS["Wave"] is again is not first
    with pytest.raises(TypeError, match=r"named Wave is defined in mine already: .*another name"):
        defined_in("yours", "Wave")
    with pytest.raises(TypeError, match=r"named ReLU is defined in xnet\.operations already"):
        defined_in("mine", "ReLU")
    assert OPERATIONS["Wave"] is again
    assert OPERATIONS["ReLU"] is operations.ReLU


def test_what_is_abstract_is_no_operation():
    class Halved(Operation, abstract=True):
        share: float = 0.5

    assert "Halved" not in OPERATIONS
    assert not {"Operation", "Pointwise", "Rows", "Loss"} & set(OPERATIONS)

    class Third(Halved):
        other: float = 3.0

    assert Third().settings() == {"share": 0.5, "other": 3.0}
    m = Arrays(xnet.resolve("numpy"))
    for formula in (Third().forward, Third().backward, Third().backward_parameters):
        with pytest.raises(NotImplementedError):
            formula(m, np.ones(2), np.ones(2), np.ones(2))


def test_packages_name_their_modules(monkeypatch):
    """Entry points are loaded once, when the registry is asked for more than is defined."""
    import importlib.metadata
    from types import SimpleNamespace

    asked = []

    def entry_points(group):
        asked.append(group)
        return [SimpleNamespace(load=lambda: defined_in("elsewhere", "Elsewhere"))]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    operations._load_packages.cache_clear()
    try:
        assert operations.registered()["Elsewhere"].__module__ == "elsewhere"
        operations.registered()
        assert asked == ["xnet.operations"]
        assert xnet.layers.named("elsewhere").operation_class is OPERATIONS["Elsewhere"]
    finally:
        operations._load_packages.cache_clear()
        monkeypatch.undo()
        operations.registered()


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, math.nan])
def test_dropout_ratio(ratio):
    for make in (operations.Dropout, Dropout):
        with pytest.raises(ValueError, match=r"Dropout: ratio is .*, expected within \[0, 1\)"):
            make(ratio)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, math.nan])
def test_label_smoothing(share):
    with pytest.raises(ValueError, match=r"label_smoothing is .*, expected within \[0, 1\)"):
        operations.SoftmaxWithLoss(label_smoothing=share)


@pytest.mark.parametrize("weights", [(1.0, -0.5), (math.nan, 1.0), (math.inf, 1.0)])
def test_class_weights(weights):
    with pytest.raises(ValueError, match=r"class_weights is .*, expected numbers of at least 0"):
        operations.SoftmaxWithLoss(class_weights=weights)


def test_class_weights_of_another_number_of_classes(backend):
    for weights in ((2.0,), (1.0, 2.0), (1.0, 2.0, 3.0, 4.0)):
        net = Network([Affine(4, 3)], operations.SoftmaxWithLoss(class_weights=weights))
        for method in (net.loss, net.gradient, net.numerical_gradient):
            with pytest.raises(
                ValueError, match=rf"class_weights has {len(weights)} numbers for 3"
            ):
                method(np.ones((2, 4)), [0, 1])


@pytest.mark.parametrize("kind", [list, np.array, lambda v: [np.float32(w) for w in v]])
def test_class_weights_of_any_kind(backend, kind):
    loss = operations.SoftmaxWithLoss(class_weights=kind([0.5, 2.0]))
    assert loss.class_weights == (0.5, 2.0)
    assert {type(weight) for weight in loss.class_weights} == {float}


@pytest.mark.parametrize(
    "cls", [type(o) for o in variants(altered=False) if any(o.widths)], ids=lambda cls: cls.__name__
)
@pytest.mark.parametrize("size", [0, -1, 2.5, "3", [1.0, 2.0]])
def test_sizes(cls, size):
    """A list where a size is expected are a student's parameters: they are told what takes them."""
    count = sum(field.default is dataclasses.MISSING for field in dataclasses.fields(cls))
    found = rf"{cls.__name__}: \w+ is {re.escape(str(size))}, expected at least 1, a whole number"
    with pytest.raises(ValueError, match=f"{found}; from_params takes arrays"):
        cls(*[size] * count)
    assert set(cls(*[1] * count).widths) == {1}


def test_sizes_of_an_operation_of_ones_own():
    class Scaling(operations.Operation):
        wide: int
        parameters = {"a": ("wide",)}  # noqa: RUF012

    assert Scaling(np.int64(3)).wide == 3
    with pytest.raises(ValueError, match="Scaling: wide is 0, expected at least 1"):
        Scaling(0)


# -- what draws, what is kept, what mixes rows


def training(net, x, t, steps=1, optimizer=None):
    """Losses of some training steps."""
    optimizer = optimizer or xnet.optimizers.SGD(0.1)
    return [net.train_step(x, t, optimizer) for _ in range(steps)]


def host(net, kind="params"):
    return {k: net.backend.to_numpy(a).copy() for k, a in getattr(net, kind).items()}


def assert_same(some, others):
    assert list(some) == list(others)
    for name, array in some.items():
        np.testing.assert_array_equal(array, others[name])


@pytest.fixture
def data(rng):
    return rng.normal(size=(9, 5)), rng.integers(0, 3, 9)


def mixed(seed=0, **options):
    """A network with all that is awkward."""
    layers = [Affine(5, 6, 0.7), BatchNorm(6), Sigmoid(), Dropout(0.4), LayerNorm(6)]
    return Network([*layers, Dropout(0.2), Affine(6, 3, 0.7)], seed=seed, **options)


def test_dropout_in_training_and_in_prediction(backend, dtype, rng):
    layer = Dropout(0.3)
    x = rng.random((200, 50)).astype(dtype) + 1
    here = backend.asarray(x)
    np.testing.assert_array_equal(backend.to_numpy(layer(here)), x)
    y, dout = backend.to_numpy(layer.forward(here)), rng.random((200, 50)).astype(dtype) + 1
    kept = y != 0
    # Of 10,000 draws the share errs by 0.5 %.
    assert kept.mean() == pytest.approx(0.7, abs=0.02)
    np.testing.assert_allclose(y[kept], x[kept] / 0.7, rtol=2 * np.finfo(dtype).eps)
    dx = backend.to_numpy(layer.backward(backend.asarray(dout)))
    np.testing.assert_array_equal(dx != 0, kept)
    np.testing.assert_allclose(dx[kept], dout[kept] / 0.7, rtol=2 * np.finfo(dtype).eps)
    again = backend.to_numpy(layer.forward(here)) != 0
    assert 0.4 < (again == kept).mean() < 0.76  # drawn anew: 0.58 agree by chance


def test_dropout_of_nothing(backend, rng):
    layer, x = Dropout(0.0), backend.asarray(rng.normal(size=(4, 5)))
    np.testing.assert_array_equal(backend.to_numpy(layer.forward(x)), backend.to_numpy(x))
    np.testing.assert_array_equal(backend.to_numpy(layer.backward(x)), backend.to_numpy(x))


def test_masks_come_from_the_networks_seed(backend, data):
    """The same on every backend, another one at each step, and no matter of what was asked."""

    def losses(net, asks=False):
        found = []
        for _ in range(4):
            found += training(net, *data, optimizer=xnet.optimizers.SGD(0.0))
            if asks:
                net.predict(data[0]), net.loss(*data), net.accuracy(*data)
        return found

    first = losses(mixed())
    assert len(set(first)) == 4
    np.testing.assert_allclose(losses(mixed(backend="numpy")), first, rtol=1e-12)
    assert losses(mixed()) == first == losses(mixed(), asks=True)
    assert not np.allclose(losses(mixed(seed=1)), first)


def test_predictions_draw_nothing_and_move_nothing(backend, data):
    net = mixed()
    training(net, *data, 2)
    before, arrays = host(net, "state"), dict(net.state.items())
    first = backend.to_numpy(net.predict(data[0]))
    assert net.loss(*data) == net.loss(*data)
    np.testing.assert_array_equal(backend.to_numpy(net.predict(data[0])), first)
    one_by_one = [backend.to_numpy(net.predict(row)) for row in data[0]]
    np.testing.assert_allclose(one_by_one, first, rtol=1e-13)  # no row depends on the others
    assert_same(host(net, "state"), before)
    assert all(net.state[name] is array for name, array in arrays.items())


def test_running_means_move_once_a_step(backend, dtype, rng):
    """By 1 - decay of the way to the batch's mean and (biased) variance."""
    net = Network([BatchNorm(5, 0.75)], IdentityWithLoss(), dtype=dtype)
    mean, variance = np.zeros(5), np.ones(5)
    optimizer = xnet.optimizers.Adam()
    for step in range(6):
        x = rng.normal(size=(7, 5)).astype(dtype)
        t = np.zeros((7, 5))
        if step % 2:
            net.train_step(x, t, optimizer)
        else:
            net.gradient(x, t)
        mean = 0.75 * mean + 0.25 * x.mean(axis=0)
        variance = 0.75 * variance + 0.25 * x.var(axis=0)
        close = {"rtol": 16 * np.finfo(dtype).eps, "atol": 4 * np.finfo(dtype).eps}
        np.testing.assert_allclose(backend.to_numpy(net.state["mean1"]), mean, **close)
        np.testing.assert_allclose(backend.to_numpy(net.state["variance1"]), variance, **close)
        gamma, beta = host(net).values()
        expected = gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta
        found = backend.to_numpy(net.predict(x))
        close = 32 * np.finfo(dtype).eps
        np.testing.assert_allclose(found, expected, rtol=close, atol=close)


@pytest.mark.filterwarnings("ignore::xnet.NaiveGradientWarning")
def test_differences_move_no_state_and_use_up_no_draws(backend, data):
    net, other = mixed(), mixed()
    training(net, *data), training(other, *data)
    before = host(net, "state")
    numerical = host_of(net, net.numerical_gradient(*data))
    with net.held():
        held = host_of(net, net.gradient(*data))
        assert_same(host_of(net, net.gradient(*data)), held)
        with net.held():
            assert_same(host_of(net, net.gradient(*data)), held)
        assert_same(host_of(net, net.gradient(*data)), held)
    assert gradient_check(net, *data).passed
    assert_same(host(net, "state"), before)
    for name, found in numerical.items():
        np.testing.assert_allclose(found, held[name], rtol=0, atol=1e-6)
    assert training(net, *data, 3) == training(other, *data, 3)
    assert_same(host(net, "state"), host(other, "state"))


def host_of(net, arrays):
    return {name: net.backend.to_numpy(array).copy() for name, array in arrays.items()}


def test_a_pass_that_fails_leaves_the_network_held_no_longer(backend, data):
    net = mixed()
    with pytest.raises(ValueError, match="t has"), net.held():
        net.gradient(data[0], [0, 1])
    assert net.moves
    before = host(net, "state")
    training(net, *data)
    assert not np.array_equal(host(net, "state")["mean1"], before["mean1"])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_go_on_alike(backend, data, duplicate):
    """They keep the state, and what they will draw."""
    net = mixed()
    training(net, *data, 3)
    other = duplicate(net)
    assert_same(host(other, "state"), host(net, "state"))
    np.testing.assert_array_equal(
        backend.to_numpy(other.predict(data[0])), backend.to_numpy(net.predict(data[0]))
    )
    before = host(net, "state")
    after = training(other, *data, 3)
    assert_same(host(net, "state"), before)  # each has a state of its own
    assert training(net, *data, 3) == after
    assert_same(host(other), host(net))
    assert_same(host(other, "state"), host(net, "state"))


@pytest.mark.parametrize("target", ["numpy", "numba", "strict"])
def test_state_moves_with_the_network(backend, data, target):
    net, other = mixed(), mixed()
    training(net, *data, 2), training(other, *data, 2)
    before = host(net, "state")
    net.to(target)
    assert all(net.backend.owns(array) for array in net.state.values())
    assert_same(host(net, "state"), before)
    np.testing.assert_allclose(training(net, *data, 3), training(other, *data, 3), rtol=1e-12)


def test_state_can_be_set(backend, data):
    net, other = mixed(), mixed()
    training(other, *data, 3)
    for name, array in other.params.items():
        net.params[name] = array
    assert net.loss(*data) != other.loss(*data)
    for name, array in other.state.items():
        net.state[name] = array
    assert net.loss(*data) == other.loss(*data)
    with pytest.raises(ValueError, match=r"params\['mean1'\] is float64 \(3,\), expected .*\(6,\)"):
        net.state["mean1"] = backend.asarray([1.0, 2.0, 3.0])


def test_training_looks_at_the_whole_batch(backend, data):
    """The gradient is that of the loss in training, not of the one that `loss` predicts."""
    net = Network([Affine(5, 6, 0.7), BatchNorm(6), Affine(6, 3, 0.7)])
    in_training, _ = net.loss_and_gradient(*data)
    assert in_training != pytest.approx(net.loss(*data), rel=1e-3)
    again, _ = net.loss_and_gradient(*data)
    assert again == in_training  # the running means do not take part


@property_settings
@given(shift=st.floats(-50, 50), scale=st.floats(0.5, 100), seed=st.integers(0, 1000))
def test_layer_norm_knows_no_shift_and_no_scale(backend, shift, scale, seed):
    x = np.random.default_rng(seed).normal(size=(4, 6)) + np.arange(6)
    layer = make_layer(operations.LayerNorm(6, 0.0), backend, np.random.default_rng(seed))
    y, moved = layer(backend.asarray(x)), layer(backend.asarray(scale * x + shift))
    np.testing.assert_allclose(backend.to_numpy(moved), backend.to_numpy(y), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(
        backend.to_numpy(layer.forward(backend.asarray(x))), backend.to_numpy(y)
    )


@pytest.mark.filterwarnings("ignore::xnet.NaiveGradientWarning")
@pytest.mark.parametrize("operation", variants(*LAYER_KINDS), ids=repr)
def test_every_layer_passes_the_check_in_a_network(backend, rng, operation):
    """First and between, as training takes it."""
    width = operation.widths[1] or 6
    x = smooth(rng.normal(size=(7, 6)), operation)
    net = Network([operation, Affine(width, 4, 0.7), Sigmoid(), Affine(4, 3, 0.7)], seed=3)
    assert gradient_check(net, x, rng.integers(0, 3, 7)).passed
    layers = [Affine(5, 6, 0.7), type(operation)(**operation.settings()), Affine(width, 3, 0.7)]
    check = gradient_check(Network(layers, seed=3), rng.normal(size=(7, 5)), rng.integers(0, 3, 7))
    assert check.passed, str(check)
    assert max(check.values()) < 1e-7


@pytest.mark.parametrize("operation", [o for o in LOSSES if o.classes], ids=repr)
def test_what_is_most_probable_has_the_largest_score(operation):
    x = np.array([[1.0, -2.0, 0.5, 3.0]])
    assert xnet.resolve("numpy").predicted(operation, x).argmax() == x.argmax()
