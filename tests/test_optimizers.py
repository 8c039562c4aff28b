import contextlib
import copy
import dataclasses
import gc
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import OPTIMIZERS

import xnet
from xnet import optimizers
from xnet.dtypes import dtype_name
from xnet.errors import BackendError
from xnet.optimizers import (
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    Lion,
    Momentum,
    Nadam,
    Nesterov,
    Optimizer,
    RMSProp,
)

GRADIENTS = [0.5, -1.25, 2.0, 0.0, -0.75, 3.5, -0.001, 1.0, -0.5]
START = 0.8

every_optimizer = pytest.mark.parametrize("cls", OPTIMIZERS)
remembering = pytest.mark.parametrize("cls", [cls for cls in OPTIMIZERS if cls.slots])


# -- what each paper says, on one number, as sums over all gradients so far


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


def mean(values, decay):
    """Of the values, the last counting most: the weights are those of an exponential decay."""
    return sum((1 - decay) * decay**age * value for age, value in enumerate(reversed(values)))


def rmsprop(w, gradients, lr, decay, eps):
    for n, g in enumerate(gradients, start=1):
        w = w - lr * g / (math.sqrt(mean([past**2 for past in gradients[:n]], decay)) + eps)
        yield w


def adam(w, gradients, lr, beta1, beta2, eps):
    for n in range(1, len(gradients) + 1):
        m = mean(gradients[:n], beta1) / (1 - beta1**n)
        v = mean([g**2 for g in gradients[:n]], beta2) / (1 - beta2**n)
        w = w - lr * m / (math.sqrt(v) + eps)
        yield w


def nadam(w, gradients, lr, beta1, beta2, eps):
    """Dozat 2016, algorithm 2, with mu_t = beta1: the moment counts as at the step after."""
    for n, g in enumerate(gradients, start=1):
        ahead = beta1 * mean(gradients[:n], beta1) / (1 - beta1 ** (n + 1))
        m = ahead + (1 - beta1) * g / (1 - beta1**n)
        v = mean([g**2 for g in gradients[:n]], beta2) / (1 - beta2**n)
        w = w - lr * m / (math.sqrt(v) + eps)
        yield w


def lion(w, gradients, lr, beta1, beta2):
    for n, g in enumerate(gradients):
        c = beta1 * mean(gradients[:n], beta2) + (1 - beta1) * g
        w = w - lr * math.copysign(1, c)
        yield w


PAPERS = {
    SGD: (sgd, {"lr": 0.01}),
    Momentum: (momentum, {"lr": 0.01, "momentum": 0.9}),
    Nesterov: (nesterov, {"lr": 0.01, "momentum": 0.9}),
    AdaGrad: (adagrad, {"lr": 0.01, "eps": 1e-7}),
    RMSProp: (rmsprop, {"lr": 0.01, "decay": 0.99, "eps": 1e-7}),
    Adam: (adam, {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}),
    AdamW: (adam, {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}),
    Nadam: (nadam, {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}),
    Lion: (lion, {"lr": 1e-4, "beta1": 0.9, "beta2": 0.99}),
}
"""What each is said to be, with the defaults it is said to have."""


def path(backend, optimizer, gradients=GRADIENTS):
    params, found = {"W": backend.asarray([START])}, []
    for g in gradients:
        optimizer.update(params, {"W": backend.asarray([g])})
        found.append(float(params["W"][0]))
    return found


@pytest.mark.parametrize("scale", [1.0, 0.5])
@every_optimizer
def test_steps_are_the_papers(backend, cls, scale):
    paper, defaults = PAPERS[cls]
    settings = {name: scale * value for name, value in defaults.items()}
    optimizer = cls(**settings) if scale != 1.0 else cls()
    optimizer.weight_decay = None
    expected = list(paper(START, GRADIENTS, *settings.values()))
    np.testing.assert_allclose(path(backend, optimizer), expected, rtol=1e-13)


def test_the_books_adam(backend):
    """Its code for Adam (§6.1.6) puts eps beside the root before the correction."""
    lr, beta1, beta2, eps = 0.05, 0.8, 0.9, 1e-2
    w, m, v, expected = START, 0.0, 0.0, []
    for n, g in enumerate(GRADIENTS, start=1):
        lr_t = lr * math.sqrt(1.0 - beta2**n) / (1.0 - beta1**n)
        m += (1 - beta1) * (g - m)
        v += (1 - beta2) * (g**2 - v)
        w -= lr_t * m / (math.sqrt(v) + eps)
        expected.append(w)
    found = path(backend, Adam(lr, beta1, beta2, eps, epsilon_hat=True))
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    other = path(backend, Adam(lr, beta1, beta2, eps))
    assert not np.allclose(other, expected, rtol=1e-3)


@every_optimizer
def test_weight_decay_as_the_class_means_it(backend, cls):
    """Decoupled, W shrinks before the step; else the gradient is that of a penalty in the loss."""
    decay, settings = 0.3, {"lr": 0.125}
    optimizer = cls(**settings, weight_decay=decay)
    plain = cls(**settings)
    plain.weight_decay = None
    params, expected = ({"W": backend.asarray([START, -2.0])} for _ in range(2))
    for g in GRADIENTS[:5]:
        gradient = backend.asarray([g, 2 * g])
        optimizer.update(params, {"W": gradient})
        if cls.decoupled:
            expected["W"] = expected["W"] * (1 - 0.125 * decay)
            plain.update(expected, {"W": gradient})
        else:
            plain.update(expected, {"W": gradient + decay * expected["W"]})
        found, right = (backend.to_numpy(p["W"]) for p in (params, expected))
        np.testing.assert_allclose(found, right, rtol=1e-13)


def test_which_decay_weights_on_their_own():
    """Loshchilov & Hutter's AdamW and Chen et al.'s Lion; only AdamW does if nothing is said."""
    assert {cls for cls in OPTIMIZERS if cls.decoupled} == {AdamW, Lion}
    assert {cls: cls().weight_decay for cls in OPTIMIZERS if cls().weight_decay is not None} == {
        AdamW: 0.01
    }


# -- against PyTorch's


def torchs(torch, cls, parameters, decay):
    """PyTorch's optimizer of the same meaning, for settings that are no default of either.

    Its Nesterov is the same (Bengio et al. 2013, eq. 7) while lr does not change, its v being
    -1 / lr of ours; so is its SGD with momentum. Its NAdam lets the momentum grow from beta1 / 2;
    a momentum_decay of 1e9 has it arrive at once.
    """
    make = {
        SGD: lambda: torch.optim.SGD(parameters, 0.1, weight_decay=decay),
        Momentum: lambda: torch.optim.SGD(parameters, 0.1, 0.8, weight_decay=decay),
        Nesterov: lambda: torch.optim.SGD(parameters, 0.1, 0.8, 0, decay, nesterov=True),
        AdaGrad: lambda: torch.optim.Adagrad(parameters, 0.1, 0, decay, eps=1e-3),
        RMSProp: lambda: torch.optim.RMSprop(parameters, 0.1, 0.8, 1e-3, decay),
        Adam: lambda: torch.optim.Adam(parameters, 0.1, (0.8, 0.95), 1e-3, decay),
        AdamW: lambda: torch.optim.AdamW(parameters, 0.1, (0.8, 0.95), 1e-3, decay),
        Nadam: lambda: torch.optim.NAdam(parameters, 0.1, (0.8, 0.95), 1e-3, decay, 1e9),
    }
    return make[cls]()


OURS = {"lr": 0.1, "momentum": 0.8, "decay": 0.8, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3}


@pytest.fixture
def torch_in_float64():
    """Its NAdam keeps a product in the default dtype."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("decay", [0.0, 0.25])
@pytest.mark.parametrize("cls", [cls for cls in OPTIMIZERS if cls is not Lion])  # it has no Lion
def test_steps_are_pytorchs(torch_in_float64, backend, rng, cls, decay):
    torch = torch_in_float64
    names = {field.name for field in dataclasses.fields(cls)}
    optimizer = cls(**{k: v for k, v in OURS.items() if k in names}, weight_decay=decay or None)
    start = {"W": rng.normal(size=(3, 4)), "b": rng.normal(size=4)}
    params = {name: backend.asarray(W.copy()) for name, W in start.items()}
    theirs = {name: torch.tensor(W, requires_grad=True) for name, W in start.items()}
    other = torchs(torch, cls, list(theirs.values()), decay)
    for _ in range(5):
        gradients = {name: rng.normal(size=W.shape) for name, W in start.items()}
        optimizer.update(params, {name: backend.asarray(g) for name, g in gradients.items()})
        for name, tensor in theirs.items():
            tensor.grad = torch.tensor(gradients[name])
        other.step()
        for name, tensor in theirs.items():
            found = backend.to_numpy(params[name])
            np.testing.assert_allclose(found, tensor.detach().numpy(), rtol=1e-12, atol=1e-14)


# -- names and settings


@every_optimizer
def test_defaults_and_repr(cls):
    defaults = PAPERS[cls][1] | ({"epsilon_hat": False} if issubclass(cls, Adam) else {})
    found = cls().settings()
    assert {name: found[name] for name in defaults} == defaults
    assert set(found) == {*defaults, "weight_decay"}
    shown = {name: value for name, value in found.items() if value is not None}
    text = ", ".join(f"{name}={value}" for name, value in shown.items())
    assert repr(cls()) == f"{cls.__name__}({text})"
    assert eval(repr(cls(0.5)), vars(optimizers)).settings() == cls(0.5).settings()


def test_by_name():
    assert set(OPTIMIZERS) == set(PAPERS)
    for cls in OPTIMIZERS:
        assert optimizers.OPTIMIZERS[cls.__name__.lower()] is cls


def test_a_class_of_ones_own_is_registered_by_being_defined(backend):
    class SignSGD(Optimizer):
        """W - lr sign(g)."""

        lr: float = 0.25

        def step(self, m, n, W, g, *memory):
            return W - self.lr * m.where(g > 0, 1, m.where(g < 0, -1, g))

    assert optimizers.OPTIMIZERS["signsgd"] is SignSGD
    assert repr(SignSGD()) == "SignSGD(lr=0.25)"
    signs = np.sign(GRADIENTS)
    np.testing.assert_allclose(path(backend, SignSGD()), START - 0.25 * np.cumsum(signs))


@every_optimizer
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, np.float64(-0.1), np.float32(-1)])
def test_settings_are_checked_whenever_they_are_set(cls, value):
    """In the making and afterwards, a Python or a NumPy number."""
    for name in cls().settings():
        if name == "epsilon_hat":
            continue
        with pytest.raises(ValueError, match=rf"{name} is .*, expected at least 0 and"):
            cls(**{name: value})
        optimizer = cls()
        before = optimizer.settings()
        with pytest.raises(ValueError, match=rf"{name} is .*, expected at least 0 and"):
            setattr(optimizer, name, value)
        assert optimizer.settings() == before


@every_optimizer
@pytest.mark.parametrize("value", ["0.1", None, True, 1j, [0.1]])
def test_settings_are_of_their_kind(cls, value):
    for name, setting in cls().settings().items():
        if value is setting or (name == "weight_decay" and value is None) or setting is False:
            continue
        with pytest.raises(TypeError, match=rf"^{name} is .*, expected a number"):
            setattr(cls(), name, value)


def test_settings_of_other_kinds_are_the_classes_own():
    """What is annotated otherwise is not asked about: it need not be a class at all."""

    class Layered(Optimizer):
        lr: float = 0.1
        every: int = 2
        rates: tuple[float, ...] = (0.1, 0.2)
        note: Any = None

        def step(self, m, n, W, g):
            return W - self.lr * g

    optimizer = Layered(every=3, rates=(0.5,), note="slow")
    assert (optimizer.every, optimizer.rates, optimizer.note) == (3, (0.5,), "slow")
    with pytest.raises(TypeError, match="lr is 'fast', expected a number"):
        Layered(lr="fast")


@every_optimizer
def test_fractions_are_below_one(cls):
    assert set(cls.fractions) == {
        name for name in cls().settings() if name in ("momentum", "decay", "beta1", "beta2")
    }
    for name in cls.fractions:
        for value in (1, 1.5, np.float32(1)):
            with pytest.raises(ValueError, match=rf"{name} is .*, expected at least 0 and below 1"):
                cls(**{name: value})
            with pytest.raises(ValueError, match=rf"{name} is .*, expected at least 0 and below 1"):
                setattr(cls(), name, value)


@every_optimizer
def test_a_setting_can_be_changed_between_steps(backend, cls):
    optimizer, params = cls(lr=0.0), {"W": backend.asarray([START])}
    optimizer.update(params, {"W": backend.asarray([1.0])})
    assert float(params["W"][0]) == START
    optimizer.lr = 0.5
    optimizer.update(params, {"W": backend.asarray([1.0])})
    assert float(params["W"][0]) < START - 0.1


@every_optimizer
@pytest.mark.parametrize("number", [np.float64, np.float32])
def test_settings_may_be_numpys_own_numbers(backend, rng, cls, number):
    """As in a search over numpy.logspace(...): a float64 learning rate must not widen float32."""
    net = xnet.TwoLayerNet(4, 5, 3, dtype="float32")
    x, t = rng.normal(size=(6, 4)), rng.integers(0, 3, 6)
    optimizer = cls(**{name: number(value) for name, value in PAPERS[cls][1].items()})
    assert {type(value) for value in optimizer.settings().values()} <= {float, bool, type(None)}
    before = net.loss(x, t)
    for _ in range(3):
        optimizer.update(net.params, net.gradient(x, t))
        optimizer.lr = number(optimizer.lr)
    arrays = [*net.params.values(), *(a for kept in optimizer.memory.values() for a in kept)]
    assert {dtype_name(array.dtype) for array in arrays} == {"float32"}
    assert net.loss(x, t) < before


# -- every one of them

RATES = {AdaGrad: 0.8, Adam: 0.1, AdamW: 0.1, Nadam: 0.1, RMSProp: 0.02, Lion: 0.05}
"""At which a parabola's minimum is found in 400 steps; 0.05 where none is given."""

CIRCLING = {RMSProp: 1.5, Lion: 2.5}
"""Steps that do not shrink with the gradient circle the minimum, within so many times lr."""


@every_optimizer
def test_converges_on_a_parabola(backend, dtype, cls):
    optimizer = cls(lr=RATES.get(cls, 0.05), weight_decay=None)
    minimum = backend.asarray([[1.0, -2.0, 0.5]], dtype)
    params = {"W": backend.asarray([[-1.0, 3.0, 0.0]], dtype)}
    for _ in range(400):
        optimizer.update(params, {"W": 2 * (params["W"] - minimum)})
    error = np.abs(backend.to_numpy(params["W"]) - backend.to_numpy(minimum))
    assert error.max() < (CIRCLING[cls] * optimizer.lr if cls in CIRCLING else 1e-3)
    assert dtype_name(params["W"].dtype) == dtype


@every_optimizer
def test_parameters_are_written_in_place_and_gradients_are_not(backend, dtype, rng, cls):
    optimizer = cls()
    host_W, host_g = (rng.normal(size=(2, 3)).astype(dtype) for _ in range(2))
    W, g = backend.asarray(host_W.copy()), backend.asarray(host_g.copy())
    params = {"W": W}
    for _ in range(3):
        optimizer.update(params, {"W": g})
    assert (params["W"] is W) == backend.writable(W)
    assert not np.isclose(backend.to_numpy(params["W"]), host_W).any()
    np.testing.assert_array_equal(backend.to_numpy(g), host_g)
    assert optimizer.taken == {"W": 3}
    assert [array.shape for array in optimizer.memory["W"]] == [(2, 3)] * cls.slots


@every_optimizer
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


@every_optimizer
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


@every_optimizer
def test_parameters_are_kept_apart(backend, cls):
    both, alone = cls(), cls()
    params = {"W": backend.asarray([1.0]), "b": backend.asarray([5.0])}
    only = {"W": backend.asarray([1.0])}
    for g in GRADIENTS:
        both.update(params, {"W": backend.asarray([g]), "b": backend.asarray([-3 * g])})
        alone.update(only, {"W": backend.asarray([g])})
    assert float(params["W"][0]) == float(only["W"][0])
    assert float(params["b"][0]) != 5.0


@every_optimizer
def test_zero_gradient_is_no_step(backend, dtype, cls):
    params = {"W": backend.asarray([1.0, -2.0], dtype)}
    cls(weight_decay=None).update(params, {"W": backend.asarray([0.0, 0.0], dtype)})
    assert backend.to_numpy(params["W"]).tolist() == [1, -2]


@every_optimizer
def test_network_learns(backend, dtype, rng, cls):
    net = xnet.TwoLayerNet(4, 8, 3, "xavier", dtype=dtype)
    x, t = rng.normal(size=(12, 4)), rng.integers(0, 3, 12)
    optimizer, before = cls(lr={SGD: 0.5, Lion: 0.01}.get(cls, 0.05)), net.loss(x, t)
    for _ in range(30):
        optimizer.update(net.params, net.gradient(x, t))
    assert net.loss(x, t) < 0.95 * before


# -- what is refused


def test_gradient_of_another_shape_is_refused(backend):
    """It would be broadcast, and the step be wrong."""
    for shape in ((3,), (1, 2, 3), (1, 1)):
        with pytest.raises(ValueError, match=r"W is float64 \(.*, expected float64 \(2, 3\)"):
            Adam().update(
                {"W": backend.asarray(np.ones((2, 3)))}, {"W": backend.asarray(np.ones(shape))}
            )


@pytest.mark.parametrize(("kept", "given"), [("float32", "float64"), ("float64", "float32")])
def test_gradient_of_another_dtype_is_refused(backend, kept, given):
    """It would widen a parameter that has to be replaced."""
    params = {"W": backend.asarray([1.0], kept)}
    with pytest.raises(ValueError, match=rf"of W is {given} \(1,\), expected {kept} \("):
        Adam().update(params, {"W": backend.asarray([1.0], given)})


@pytest.mark.parametrize("kind", ["int64", "int8", "bool", "complex128"])
def test_parameters_that_hold_no_floating_point_numbers(backend, kind):
    """A step that is truncated is none."""
    params = {"W": backend.asarray(np.array([1, 0]), kind)}
    with pytest.raises(TypeError, match=f"W is {kind}, expected float32 or float64"):
        Adam().update(params, {"W": backend.asarray([0.5, -0.5])})
    assert backend.to_numpy(params["W"]).tolist() == [1, 0]


@every_optimizer
def test_gradient_without_its_parameter(cls):
    with pytest.raises(KeyError, match="b"):
        cls().update({"W": np.ones(2)}, {"b": np.ones(2)})


@remembering
def test_memory_of_another_network_is_refused(cls):
    optimizer = cls()
    optimizer.update({"b1": np.zeros(1)}, {"b1": np.ones(1)})
    with pytest.raises(ValueError, match=r"b1 is float64 \(4,\), the optimizer remembers"):
        optimizer.update({"b1": np.zeros(4)}, {"b1": np.ones(4)})
    narrow = np.zeros(1, "float32")
    with pytest.raises(ValueError, match=r"b1 is float32 \(1,\), .* remembers float64 \(1,\)"):
        optimizer.update({"b1": narrow}, {"b1": narrow})
    elsewhere = xnet.resolve("strict").asarray([0.0])
    with pytest.raises(BackendError, match="b1 is on strict, the optimizer's memory of b1 is on n"):
        optimizer.update({"b1": elsewhere}, {"b1": elsewhere})
    optimizer.memory["b1"].append(np.zeros(1))
    with pytest.raises(ValueError, match=rf"remembers {cls.slots + 1} arrays of b1, expected"):
        optimizer.update({"b1": np.zeros(1)}, {"b1": np.ones(1)})


def test_gradient_of_another_device_is_refused():
    elsewhere = xnet.resolve("strict").asarray([1.0])
    with pytest.raises(BackendError, match="W is on numpy, gradient of W is on strict"):
        SGD().update({"W": np.ones(1)}, {"W": elsewhere})


def test_an_optimizer_without_a_step_says_so():
    with pytest.raises(NotImplementedError, match="Optimizer has no step"):
        Optimizer().update({"W": np.ones(1)}, {"W": np.ones(1)})


def test_an_optimizer_is_itself_alone():
    """Two with the same settings remember each its own: they are not equal."""
    first, second = SGD(), SGD()
    assert first != second
    assert {first, second, first} == {second, first}


STEPS = {
    "train_step": lambda optimizer, net: net.train_step(*LEARNT, optimizer),
    "the network's update": lambda optimizer, net: net.update(optimizer, net.gradient(*LEARNT)),
    "the book's update": lambda optimizer, net: optimizer.update(net.params, net.gradient(*LEARNT)),
}
LEARNT = np.linspace(-1, 1, 12).reshape(4, 3), np.array([0, 1, 1, 0])


@every_optimizer
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_an_optimizer_that_remembers_is_one_networks(backend, cls, step):
    """Its moments are of the first network's gradients; that of equal shapes would follow them."""
    first, second = (xnet.Network([xnet.layers.Affine(3, 2)], backend=backend) for _ in range(2))
    optimizer = cls()
    step(optimizer, first)
    step(optimizer, first)
    before = xnet.weights.sha256(second), everything(backend, first, optimizer)
    if cls.slots:
        for other in STEPS.values():
            with pytest.raises(ValueError, match=f"{cls.__name__} remembers the steps of another"):
                other(optimizer, second)
        assert (xnet.weights.sha256(second), everything(backend, first, optimizer)) == before
    else:
        step(optimizer, second)
    step(copy.deepcopy(optimizer), second)  # a copy goes on with whoever takes it
    step(pickle.loads(pickle.dumps(optimizer)), second)
    del first
    gc.collect()
    if cls.slots:
        with pytest.raises(ValueError, match=f"{cls.__name__} remembers the steps of another"):
            step(optimizer, second)


@remembering
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_that_failed_is_remembered_by_nobody(backend, cls, step):
    """The optimizer is free for another network: the first has taught it nothing."""
    first, second = (xnet.Network([xnet.layers.Affine(d, 2)], backend=backend) for d in (4, 3))
    optimizer = cls()
    with pytest.raises(ValueError, match="x has 3 features, W expects 4"):
        step(optimizer, first)  # whose samples have 3
    step(optimizer, second)


def test_an_optimizers_network_compiles_nothing_anew():
    """What it remembers is no part of its formula."""
    from xnet.formulas import structure

    optimizer, fresh = Adam(), Adam()
    STEPS["train_step"](optimizer, xnet.Network([xnet.layers.Affine(3, 2)], backend="numpy"))
    assert structure(optimizer) == structure(fresh)


# -- a step is taken in full or not at all


def everything(backend, net, optimizer):
    """All that a step changes, on the host."""
    kept = {name: list(map(backend.to_numpy, arrays)) for name, arrays in optimizer.memory.items()}
    memory = {name: [array.tolist() for array in arrays] for name, arrays in kept.items()}
    params = {name: backend.to_numpy(W).tolist() for name, W in net.params.items()}
    return params, memory, dict(optimizer.taken)


@pytest.fixture(params=["numpy", "numba", "strict"])
def half_way(request, rng):
    """A backend, a network on it, and gradients for it."""
    with xnet.use_backend(request.param) as backend:
        net = xnet.Network([xnet.layers.Affine(3, 2, 0.5)])
        x, t = rng.normal(size=(5, 3)), rng.integers(0, 2, 5)
        yield backend, net, net.gradient(x, t)


@every_optimizer
def test_an_error_in_the_middle_changes_nothing(half_way, cls):
    backend, net, gradients = half_way
    optimizer = cls()
    optimizer.update(net.params, gradients)
    before, arrays = everything(backend, net, optimizer), dict(net.params.items())
    for name in list(gradients)[1:]:
        bad = gradients | {name: backend.asarray(np.ones(7))}
        with pytest.raises(ValueError, match=f"gradient of {name} is "):
            optimizer.update(net.params, bad)
        assert everything(backend, net, optimizer) == before
        assert all(net.params[key] is array for key, array in arrays.items())
    optimizer.update(net.params, gradients)
    assert everything(backend, net, optimizer) != before


@every_optimizer
def test_ctrl_c_between_any_two_lines(half_way, cls):
    """Before the one call that writes nothing has changed, after it everything has."""
    backend, net, gradients = half_way
    optimizer = cls()
    optimizer.update(net.params, gradients)
    start = {name: backend.to_numpy(W).copy() for name, W in net.params.items()}
    memory = {k: [backend.to_numpy(a).copy() for a in kept] for k, kept in optimizer.memory.items()}
    taken = dict(optimizer.taken)

    def begin_again():
        for name, W in start.items():
            net.params[name] = backend.asarray(W.copy())
        optimizer.memory.update(
            {k: [backend.asarray(a.copy()) for a in kept] for k, kept in memory.items()}
        )
        optimizer.taken.update(taken)

    def interrupted_at(number):
        """Take a step that is interrupted at a line of xnet's; how many there are."""
        count = 0

        def trace(frame, event, arg):
            nonlocal count
            if not Path(frame.f_code.co_filename).parent.name.startswith("xnet"):
                return None
            if event == "line":
                count += 1
                if count == number:
                    raise KeyboardInterrupt
            return trace

        begin_again()
        sys.settrace(trace)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                optimizer.update(net.params, gradients)
        finally:
            sys.settrace(tracing)
        return count

    tracing = sys.gettrace()
    begin_again()
    before = everything(backend, net, optimizer)
    lines = interrupted_at(-1)
    after = everything(backend, net, optimizer)
    assert lines > 20
    assert before != after
    seen = []
    for number in range(1, lines + 1):
        interrupted_at(number)
        found = everything(backend, net, optimizer)
        assert found in (before, after), number
        seen.append(found == after)
    assert seen == sorted(seen)
    assert not seen[0]


def test_a_step_is_exact_in_reproducible_mode(backend, dtype, rng):
    """Whatever it asks for, and in the dtype of W though the step's number is an int."""

    class Tamed(Optimizer):
        """W - lr g exp(-|g|) / sqrt(n): each library rounds exp in its own way."""

        lr: float = 0.1

        def step(self, m, n, W, g, *memory):
            return W - self.lr * g * m.exp(-m.abs(g)) / m.sqrt(n)

    W, g = (rng.standard_normal(10_000).astype(dtype) for _ in range(2))
    reference = xnet.resolve("strict", reproducible=True)
    with xnet.use_backend(reference):
        (right,) = reference.step(Tamed(), 3, reference.asarray(W), reference.asarray(g), [])
    right, exact = reference.to_numpy(right), xnet.resolve(backend.name, reproducible=True)
    with xnet.use_backend(exact):
        (found,) = exact.step(Tamed(), 3, exact.asarray(W), exact.asarray(g), [])
    assert right.dtype == dtype
    np.testing.assert_array_equal(exact.to_numpy(found), right)
    rate = np.dtype(dtype).type(0.1)
    assert (right != W - rate * g * np.exp(-abs(g)) / np.dtype(dtype).type(math.sqrt(3))).any()
