import math

import numpy as np
import pytest

import xnet
from xnet.backend import dtype_name
from xnet.optimizers import OPTIMIZERS, SGD, AdaGrad, Adam, Momentum, Nesterov, RMSProp

GRADIENTS = [0.5, -1.25, 2.0, 0.0, -0.75, 3.5, -0.001, 1.0]
START = 0.8


# -- what each paper says, on one number


def sgd(w, gradients, lr):
    for g in gradients:
        w = w - lr * g
        yield w


def momentum(w, gradients, lr, mu):
    """Polyak's heavy ball: w' = w - lr g + mu (w - the w before)."""
    before = w
    for g in gradients:
        w, before = w - lr * g + mu * (w - before), w
        yield w


def nesterov(w, gradients, lr, mu):
    """Nesterov 1983: theta' = y - lr g(y); y' = theta' + mu (theta' - theta). We see y."""
    theta = w
    for g in gradients:
        stepped = w - lr * g
        w, theta = stepped + mu * (stepped - theta), stepped
        yield w


def adagrad(w, gradients, lr, eps):
    for n, g in enumerate(gradients, start=1):
        w = w - lr * g / (math.sqrt(sum(past**2 for past in gradients[:n])) + eps)
        yield w


def rmsprop(w, gradients, lr, decay, eps):
    for n, g in enumerate(gradients, start=1):
        past = enumerate(reversed(gradients[:n]))
        mean_square = sum((1 - decay) * decay**age * old**2 for age, old in past)
        w = w - lr * g / (math.sqrt(mean_square) + eps)
        yield w


def adam(w, gradients, lr, beta1, beta2, eps):
    for n in range(1, len(gradients) + 1):
        ages = list(enumerate(reversed(gradients[:n])))
        m = sum((1 - beta1) * beta1**age * g for age, g in ages) / (1 - beta1**n)
        v = sum((1 - beta2) * beta2**age * g**2 for age, g in ages) / (1 - beta2**n)
        w = w - lr * m / (math.sqrt(v) + eps)
        yield w


CASES = [
    (SGD, sgd, {"lr": 0.1}),
    (Momentum, momentum, {"lr": 0.1, "momentum": 0.9}),
    (Momentum, momentum, {"lr": 0.05, "momentum": 0.0}),
    (Nesterov, nesterov, {"lr": 0.1, "momentum": 0.9}),
    (AdaGrad, adagrad, {"lr": 0.1, "eps": 1e-7}),
    (RMSProp, rmsprop, {"lr": 0.01, "decay": 0.9, "eps": 1e-7}),
    (Adam, adam, {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}),
    (Adam, adam, {"lr": 0.1, "beta1": 0.5, "beta2": 0.8, "eps": 1e-3}),
]


@pytest.mark.parametrize(("cls", "paper", "settings"), CASES)
def test_steps_are_the_papers(backend, cls, paper, settings):
    optimizer, params, path = cls(**settings), {"W": backend.asarray([START])}, []
    for g in GRADIENTS:
        optimizer.update(params, {"W": backend.asarray([g])})
        path.append(float(params["W"][0]))
    expected = list(paper(START, GRADIENTS, *settings.values()))
    np.testing.assert_allclose(path, expected, rtol=1e-13)


DEFAULTS = {
    SGD: {"lr": 0.01},
    Momentum: {"lr": 0.01, "momentum": 0.9},
    Nesterov: {"lr": 0.01, "momentum": 0.9},
    AdaGrad: {"lr": 0.01, "eps": 1e-7},
    RMSProp: {"lr": 0.01, "decay": 0.99, "eps": 1e-7},
    Adam: {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
}


@pytest.mark.parametrize("cls", DEFAULTS)
def test_defaults_and_repr(cls):
    settings = ", ".join(f"{name}={value}" for name, value in DEFAULTS[cls].items())
    assert repr(cls()) == f"{cls.__name__}({settings})"


def test_repr_of_whole_numbers():
    assert repr(SGD(1)) in ("SGD(lr=1)", "SGD(lr=1.0)")


def test_by_name():
    assert set(OPTIMIZERS.values()) == set(DEFAULTS)
    assert all(cls.__name__.lower() == name for name, cls in OPTIMIZERS.items())


# -- every one of them

FAST = [
    SGD(0.1),
    Momentum(0.05, 0.8),
    Nesterov(0.05, 0.8),
    AdaGrad(0.8),
    RMSProp(0.02, 0.9),
    Adam(0.1),
]


@pytest.mark.parametrize("settings", FAST, ids=lambda optimizer: type(optimizer).__name__)
def test_converges_on_a_parabola(backend, dtype, settings):
    optimizer = type(settings)(**{k: v for k, v in vars(settings).items() if type(v) is float})
    minimum = backend.asarray([[1.0, -2.0, 0.5]], dtype)
    params = {"W": backend.asarray([[-1.0, 3.0, 0.0]], dtype)}
    for _ in range(400):
        optimizer.update(params, {"W": 2 * (params["W"] - minimum)})
    # RMSProp's step does not shrink with the gradient: it circles within about lr.
    reach = optimizer.lr if type(optimizer) is RMSProp else 1e-3
    error = np.abs(backend.to_numpy(params["W"]) - backend.to_numpy(minimum))
    assert error.max() < reach
    assert dtype_name(params["W"].dtype) == dtype


@pytest.mark.parametrize("cls", DEFAULTS)
def test_parameters_are_written_in_place_and_gradients_are_not(backend, dtype, rng, cls):
    optimizer = cls()
    host_W, host_g = (rng.normal(size=(2, 3)).astype(dtype) for _ in range(2))
    W, g = backend.asarray(host_W.copy()), backend.asarray(host_g.copy())
    params = {"W": W}
    for _ in range(3):
        optimizer.update(params, {"W": g})
    assert (params["W"] is W) == (backend.name != "strict")  # which does not say how to write
    assert not np.isclose(backend.to_numpy(params["W"]), host_W).any()
    np.testing.assert_array_equal(backend.to_numpy(g), host_g)


@pytest.mark.parametrize("cls", DEFAULTS)
@pytest.mark.parametrize("name", ["numpy", "numba", "strict"])
def test_what_cannot_be_written_is_replaced(rng, cls, name):
    """A read-only array; and a backend that says nothing of writing, as of immutable arrays."""
    with xnet.use_backend(name) as backend:
        host_W, host_g = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
        W, g, free = backend.asarray(host_W.copy()), backend.asarray(host_g), host_W.copy()
        if name != "strict":
            W.flags.writeable = False
        params, writable = {"W": W}, {"W": free}
        one, other = cls(), cls()
        for _ in range(3):
            one.update(params, {"W": g})
            with xnet.use_backend("numpy"):
                other.update(writable, {"W": host_g})
        assert params["W"] is not W
        assert backend.owns(params["W"])
        np.testing.assert_array_equal(backend.to_numpy(W), host_W)
        np.testing.assert_array_equal(backend.to_numpy(params["W"]), free)


@pytest.mark.parametrize("cls", DEFAULTS)
def test_what_it_remembers_is_its_own(backend, cls):
    """A gradient array that its owner writes to afterwards must not change the next step."""
    kept, spoilt = ({"W": backend.asarray([1.0, 2.0])} for _ in range(2))
    first, second = cls(), cls()
    for _ in range(3):
        g = backend.asarray([0.5, -1.0])
        second.update(spoilt, {"W": g})
        g[...] = 1e6
        first.update(kept, {"W": backend.asarray([0.5, -1.0])})
    np.testing.assert_array_equal(backend.to_numpy(kept["W"]), backend.to_numpy(spoilt["W"]))


@pytest.mark.parametrize("cls", DEFAULTS)
def test_parameters_are_kept_apart(backend, cls):
    both, alone = cls(), cls()
    params = {"W": backend.asarray([1.0]), "b": backend.asarray([5.0])}
    only = {"W": backend.asarray([1.0])}
    for g in GRADIENTS:
        both.update(params, {"W": backend.asarray([g]), "b": backend.asarray([-3 * g])})
        alone.update(only, {"W": backend.asarray([g])})
    assert float(params["W"][0]) == float(only["W"][0])
    assert float(params["b"][0]) != 5.0


@pytest.mark.parametrize("cls", DEFAULTS)
def test_zero_gradient_is_no_step(backend, dtype, cls):
    params = {"W": backend.asarray([1.0, -2.0], dtype)}
    cls().update(params, {"W": backend.asarray([0.0, 0.0], dtype)})
    assert backend.to_numpy(params["W"]).tolist() == [1, -2]


@pytest.mark.parametrize("cls", DEFAULTS)
def test_settings_may_be_numpys_own_numbers(backend, rng, cls):
    """As in a search over numpy.logspace(...): a float64 learning rate must not widen float32."""
    net = xnet.TwoLayerNet(4, 5, 3, dtype="float32")
    x, t = rng.normal(size=(6, 4)), rng.integers(0, 3, 6)
    optimizer = cls(**{name: np.float64(value) for name, value in DEFAULTS[cls].items()})
    before = net.loss(x, t)
    for _ in range(3):
        optimizer.update(net.params, net.gradient(x, t))
    assert {dtype_name(array.dtype) for array in net.params.values()} == {"float32"}
    assert net.loss(x, t) < before


@pytest.mark.parametrize("cls", DEFAULTS)
def test_network_learns(backend, dtype, rng, cls):
    net = xnet.TwoLayerNet(4, 8, 3, "xavier", dtype=dtype)
    x, t = rng.normal(size=(12, 4)), rng.integers(0, 3, 12)
    optimizer, before = cls(lr=0.5 if cls is SGD else 0.05), net.loss(x, t)
    for _ in range(30):
        optimizer.update(net.params, net.gradient(x, t))
    assert net.loss(x, t) < 0.95 * before


@pytest.mark.parametrize("cls", DEFAULTS)
@pytest.mark.parametrize("shape", [(3,), (1, 2, 3), (1, 1)])
def test_gradient_of_another_shape_is_refused(cls, shape):
    """It would be broadcast, and the step be wrong."""
    with pytest.raises(ValueError, match=r"W.*\(2, 3\)"):
        cls().update({"W": np.ones((2, 3))}, {"W": np.ones(shape)})


@pytest.mark.parametrize("cls", DEFAULTS)
def test_gradient_without_its_parameter(cls):
    with pytest.raises(KeyError, match="b"):
        cls().update({"W": np.ones(2)}, {"b": np.ones(2)})


# -- settings


@pytest.mark.parametrize("cls", DEFAULTS)
@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf])
def test_learning_rate(cls, lr):
    with pytest.raises(ValueError, match=r"lr is .*, expected .*at least 0"):
        cls(lr=lr)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (Momentum, "momentum"),
        (Nesterov, "momentum"),
        (RMSProp, "decay"),
        (Adam, "beta1"),
        (Adam, "beta2"),
    ],
)
@pytest.mark.parametrize("value", [-0.1, 1, 1.5, math.nan])
def test_decays(cls, name, value):
    with pytest.raises(ValueError, match=f"{name} is .*, expected .*at least 0 and .*below 1"):
        cls(**{name: value})


@pytest.mark.parametrize("cls", [AdaGrad, RMSProp, Adam])
@pytest.mark.parametrize("eps", [-1e-8, math.nan, math.inf])
def test_eps(cls, eps):
    with pytest.raises(ValueError, match=r"eps is .*, expected .*at least 0"):
        cls(eps=eps)


def test_memory_of_another_network_is_refused():
    optimizer = xnet.optimizers.Adam()
    optimizer.update({"b1": np.zeros(1)}, {"b1": np.ones(1)})
    with pytest.raises(ValueError, match=r"b1 has shape \(4,\), the optimizer remembers"):
        optimizer.update({"b1": np.zeros(4)}, {"b1": np.ones(4)})
