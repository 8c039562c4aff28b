"""What a network consists of: the plan, layers of one's own in it, and changes of its layers."""

import copy
import gc
from typing import ClassVar

import numpy as np
import pytest
from conftest import LAYER_KINDS, OPTIMIZERS, require_host_cuda, variants

import xnet
from xnet import operations, weights
from xnet.errors import BackendError
from xnet.gradient_check import gradient_check
from xnet.layers import (
    Affine,
    BatchNorm,
    Dropout,
    Layer,
    LayerNorm,
    ReLU,
    Sigmoid,
    SoftmaxWithLoss,
    Tanh,
)
from xnet.network import Network
from xnet.optimizers import SGD, Adam, Momentum
from xnet.plan import Part, Plan, is_plain

naive = pytest.mark.filterwarnings("ignore::xnet.NaiveGradientWarning")
both_modes = pytest.mark.parametrize("reproducible", [False, True], ids=["fast", "reproducible"])


@pytest.fixture
def data(rng):
    return rng.normal(size=(6, 4)), np.array([0, 2, 1, 1, 0, 2])


# -- layers of one's own


class Scaled(Layer):
    """x s for a parameter s of its own; it knows no operation."""

    def __init__(self, width):
        self.params["s"] = np.linspace(0.5, 1.5, width)

    def __call__(self, x):
        return x * self.params["s"]

    def forward(self, x):
        self.x = x
        return self(x)

    def backward(self, dout):
        self.grads = {"s": xnet.get_backend().sum(dout * self.x, axis=0)}
        return dout * self.params["s"]


class Half(Layer):
    """The first half of the columns: what comes out has another width than what went in."""

    def __call__(self, x):
        return x[:, : x.shape[1] // 2]

    forward = __call__

    def backward(self, dout):
        return xnet.get_backend().xp.concat([dout, 0 * dout], axis=1)


class Own(Tanh):
    """What Tanh computes, by a class that may compute anything; it counts what it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __call__(self, x):
        self.asked.append("call")
        return super().__call__(x)

    def forward(self, x):
        self.asked.append("forward")
        return super().forward(x)

    def backward(self, dout):
        self.asked.append("backward")
        return super().backward(dout)


class OwnForward(Tanh):
    def forward(self, x):
        return super().forward(x)


class OwnBackward(Tanh):
    def backward(self, dout):
        return super().backward(dout)


class OwnCall(Tanh):
    def __call__(self, x):
        return super().__call__(x)


class Renamed(Tanh):
    """A subclass that computes as its base does."""

    def __repr__(self):
        return "Renamed()"


class Below(OwnBackward):
    """What inherits from a layer of one's own is one."""


def segments(net):
    """How many layers each part takes, 0 for a layer that is asked by itself."""
    plan = Plan(net.backend, list(net.layers), net.loss_layer)
    return [len(s.layers) if isinstance(s, Part) else 0 for s in plan.segments]


def host(net, arrays=None):
    arrays = net.params if arrays is None else arrays
    return {name: net.backend.to_numpy(array).copy() for name, array in arrays.items()}


def assert_same(some, others):
    assert list(some) == list(others)
    for name, array in some.items():
        np.testing.assert_array_equal(array, others[name])


# -- runs, and the layers between


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (lambda: [Affine(4, 5), ReLU(), Affine(5, 3)], [3]),
        (lambda: [Affine(4, 5), LayerNorm(5), Sigmoid(), Affine(5, 3)], [4]),
        (lambda: [Affine(4, 5), BatchNorm(5), Sigmoid(), Affine(5, 3)], [1, 0, 2]),
        (lambda: [Dropout(), Affine(4, 3)], [0, 1]),
        (lambda: [Affine(4, 3), Dropout()], [1, 0]),
        (lambda: [BatchNorm(4), Dropout(), Own(), Affine(4, 3)], [0, 0, 0, 1]),
        (lambda: [Own(), Affine(4, 5), Sigmoid(), Own(), Affine(5, 3), Own()], [0, 2, 0, 1, 0]),
        (lambda: [Affine(4, 5), Scaled(5), Affine(5, 3)], [1, 0, 1]),
        (lambda: [Affine(4, 3), Renamed()], [2]),
        (lambda: [Affine(4, 3), OwnForward(), ReLU()], [1, 0, 1]),
        (lambda: [Affine(4, 3), OwnBackward(), ReLU()], [1, 0, 1]),
        (lambda: [Affine(4, 3), OwnCall(), ReLU()], [1, 0, 1]),
        (lambda: [Affine(4, 3), Below(), ReLU()], [1, 0, 1]),
    ],
)
def test_the_longest_runs_and_what_stands_between(layers, expected):
    """As a backend sees it that takes whatever it is offered: the generic one."""
    assert segments(Network(layers(), backend="strict")) == expected


@pytest.mark.parametrize("operation", variants(*LAYER_KINDS, altered=False), ids=repr)
def test_what_may_stand_in_a_run(operation):
    net = Network([operation], backend="numpy")
    plain = not (operation.mixes or operation.random or operation.state)
    assert is_plain(net.layers[0]) == plain
    assert not is_plain(Layer.of(operations.Affine(2, 3)))  # which has no parameters yet


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_backend_takes_as_much_as_it_can(backend, monkeypatch, data, count):
    """The rest is offered to it again, and what it never takes is asked layer by layer."""
    layers = [Affine(4, 5, 0.5), Tanh(), Affine(5, 5, 0.5), Sigmoid(), Affine(5, 3, 0.5)]
    net = Network([layer.copy() for layer in layers], seed=2)
    expected = backend.to_numpy(net.predict(data[0])), *net.loss_and_gradient(*data)
    monkeypatch.setattr(backend, "takes", lambda run: min(count, len(run.operations)))
    net = Network([layer.copy() for layer in layers], seed=2)
    assert segments(net) == {0: [0] * 5, 1: [1] * 5, 2: [2, 2, 1]}[count]
    close = {"rtol": 1e-13, "atol": 1e-15}
    np.testing.assert_allclose(backend.to_numpy(net.predict(data[0])), expected[0], **close)
    loss, gradients = net.loss_and_gradient(*data)
    assert loss == pytest.approx(expected[1], rel=1e-14)
    for name, found in host(net, gradients).items():
        np.testing.assert_allclose(found, backend.to_numpy(expected[2][name]), **close)


def test_a_backend_is_offered_plain_runs_alone(backend, monkeypatch, data):
    """Only what treats each row on its own, keeps nothing and draws nothing."""
    offered, takes = [], backend.takes
    monkeypatch.setattr(backend, "takes", lambda run: offered.append(run) or takes(run))
    net = Network([Affine(4, 5), BatchNorm(5), ReLU(), Dropout(), Own(), Affine(5, 3)])
    net.predict(data[0])
    assert [type(o).__name__ for run in offered for o in run.operations] == [
        "Affine",
        "ReLU",
        "Affine",
    ]
    for run in offered:
        for operation, arrays in run:
            assert len(arrays) == len(operation.parameters)


@pytest.mark.parametrize(
    ("layers", "inputs", "outputs", "end", "whole"),
    [
        (lambda: [Affine(4, 5), ReLU(), Affine(5, 3)], 4, 3, True, True),
        (lambda: [Affine(4, 3), ReLU()], 4, 3, True, True),
        (lambda: [ReLU(), Affine(4, 3), LayerNorm(3), Tanh()], 4, 3, True, True),
        (lambda: [Affine(4, 5), BatchNorm(5), Affine(5, 3)], 4, 3, True, False),
        (lambda: [Affine(4, 3), BatchNorm(3)], 4, 3, False, False),
        (lambda: [Affine(4, 3), Dropout(), ReLU()], 4, 3, True, False),
        (lambda: [Affine(4, 6), Half()], 4, None, False, False),
        (lambda: [Affine(4, 6), Half(), ReLU()], 4, None, False, False),
        (lambda: [Half(), Affine(4, 3)], None, 3, True, False),
        (lambda: [Own(), Affine(4, 3)], None, 3, True, False),
        (lambda: [ReLU(), Dropout(), Affine(4, 3)], 4, 3, True, False),
        (lambda: [ReLU(), Tanh()], None, None, False, True),
    ],
)
def test_what_a_plan_knows(layers, inputs, outputs, end, whole):
    """How many scores there will be, and whether the loss goes with the last run."""
    net = Network(layers(), backend="strict")
    plan = Plan(net.backend, list(net.layers), net.loss_layer)
    assert (plan.inputs, plan.outputs) == (inputs, outputs)
    assert (plan.end is not None, plan.whole is not None) == (end, whole)
    assert plan.loss is net.loss_layer.operation
    assert plan.names == list(net.params)


def test_a_plan_is_made_once(backend, monkeypatch, data):
    made, init = [], Plan.__init__
    monkeypatch.setattr(Plan, "__init__", lambda self, *a: made.append(1) or init(self, *a))
    net, optimizer = Network([Affine(4, 5), ReLU(), Affine(5, 3)]), SGD()
    for _ in range(3):
        net.predict(data[0]), net.predict(data[0][0]), net.scores(data[0]), net.loss(*data)
        net.accuracy(*data), net.gradient(*data), net.numerical_gradient(*data)
    if backend.writable(net.params["W1"]):
        for _ in range(3):
            net.train_step(*data, optimizer)
            net.update(optimizer, net.gradient(*data))
    assert len(made) == 1


# -- planned and layer by layer


def by_layers(net, x, t):
    """Prediction, loss and gradients, asked one layer after the other."""
    with xnet.use_backend(net.backend) as backend, backend.running():
        here = backend.asarray(x, net.dtype)
        out = here
        for layer in net.layers:
            out = layer(out)
        predicted = backend.to_numpy(net.loss_layer(out))
        out = here
        for layer in net.layers:
            out = layer.forward(out)
        loss = float(net.loss_layer.forward(out, backend.asarray(t)))
        dout = net.loss_layer.backward()
        for layer in reversed(net.layers):
            dout = layer.backward(dout)
        gradients = {
            name: backend.to_numpy(next(v for v in net.layers if v.params is arrays).grads[key])
            for name, (arrays, key) in net.params.places().items()
        }
        return predicted, loss, gradients


STACKS = {
    "own first": lambda: [Own(), Affine(4, 5, 0.5), Sigmoid(), Affine(5, 3, 0.5)],
    "own between": lambda: [
        Affine(4, 5, 0.5),
        Own(),
        Affine(5, 6, 0.5),
        ReLU(),
        Affine(6, 3),
    ],
    "own last": lambda: [Affine(4, 5, 0.5), Sigmoid(), Affine(5, 3, 0.5), Own()],
    "own everywhere": lambda: [Own(), Affine(4, 5, 0.5), Own(), Own(), Affine(5, 3, 0.5), Own()],
    "own alone": lambda: [Own()],
    "another width": lambda: [Affine(4, 6, 0.5), Half(), Tanh()],
    "another width first": lambda: [Half(), Affine(2, 3, 0.5)],
    "with parameters": lambda: [Scaled(4), Affine(4, 5, 0.5), Scaled(5), Affine(5, 3), Scaled(3)],
    "batch norm": lambda: [Affine(4, 5, 0.5), BatchNorm(5), ReLU(), Affine(5, 3, 0.5)],
    "batch norm first": lambda: [BatchNorm(4), Affine(4, 3, 0.5)],
    "batch norm last": lambda: [Affine(4, 3, 0.5), BatchNorm(3)],
    "layer norm": lambda: [LayerNorm(4), Affine(4, 5, 0.5), LayerNorm(5), Affine(5, 3, 0.5)],
    "rows": lambda: [Affine(4, 5, 0.5), operations.Softmax(), Affine(5, 3, 0.5)],
    "plain": lambda: [Affine(4, 5, 0.5), Tanh(), Affine(5, 3, 0.5)],
}


@both_modes
@pytest.mark.parametrize("stack", STACKS)
def test_the_plan_computes_what_the_layers_do(backend, dtype, data, stack, reproducible):
    backend = xnet.resolve(backend, reproducible)
    x, t = data[0][:, :4], data[1]
    net = Network(STACKS[stack](), seed=3, dtype=dtype, backend=backend)
    for name, array in net.params.items():
        noise = np.random.default_rng(len(name)).normal(size=array.shape) / 8
        net.params[name] = array + backend.asarray(noise, dtype)
    predicted, loss, gradients = by_layers(net, x, t)
    state = {name: array.copy() for name, array in host(net, net.state).items()}
    found = backend.to_numpy(net.predict(x))
    found_loss, found_gradients = net.loss_and_gradient(x, t)
    close = 0.0 if reproducible else 64 * float(np.finfo(dtype).eps)
    if state:  # which the layers, asked before, have moved
        net = Network(STACKS[stack](), seed=3, dtype=dtype, backend=backend)
        assert list(state) == list(net.state)
    else:
        np.testing.assert_allclose(found, predicted, rtol=close, atol=close)
    assert found_loss == pytest.approx(loss, rel=close, abs=close)
    assert list(found_gradients) == list(gradients)
    for name, array in found_gradients.items():
        array = backend.to_numpy(array)
        assert array.dtype == dtype
        np.testing.assert_allclose(array, gradients[name], rtol=close, atol=close)


@naive
@pytest.mark.parametrize("stack", STACKS)
def test_gradients_of_mixed_stacks_pass_the_check(backend, data, stack):
    net = Network(STACKS[stack](), seed=3)
    check = gradient_check(net, data[0] + 0.05, data[1])
    assert check.passed, str(check)
    assert list(check) == list(net.params)


def test_a_tensor_before_a_layer_of_ones_own(backend, data):
    """What comes in as (N, d1, d2) goes to the first layer so, and is flattened by an Affine."""
    x, t = data[0].reshape(6, 2, 2), data[1]
    net = Network([Own(), Affine(4, 3, 0.5)], seed=1)
    flat = Network([Own(), Affine(4, 3, 0.5)], seed=1)
    np.testing.assert_array_equal(
        backend.to_numpy(net.predict(x)), backend.to_numpy(flat.predict(data[0]))
    )
    assert_same(host(net, net.gradient(x, t)), host(flat, flat.gradient(*data)))


def test_a_layer_of_ones_own_is_asked_and_nothing_else(backend, data):
    own = Own()
    net = Network([Affine(4, 5), own, Affine(5, 3)])
    net.predict(data[0])
    assert own.asked == ["call"]
    net.gradient(*data)
    assert own.asked == ["call", "forward", "backward"]
    net.train_step(*data, SGD())
    assert own.asked[3:] == ["forward", "backward"]


@pytest.mark.parametrize("method", ["__call__", "forward", "backward"])
def test_a_subclass_that_overrides_is_not_taken_for_its_base(backend, data, method):
    """Each method alone: what is asked of it is not what Tanh computes."""
    wrong = type("Wrong", (Tanh,), {method: lambda self, x: x * 3.0})
    assert wrong.opaque
    assert not Tanh.opaque
    net, loss = Network([Affine(4, 3, 0.5), wrong()]), SoftmaxWithLoss()
    net.layers[1].forward(net.layers[0](backend.asarray(data[0])))  # what Tanh's backward needs
    z = backend.asarray(data[0] @ backend.to_numpy(net.params["W1"]))
    scores = {"__call__": 3.0 * z, "forward": 3.0 * z, "backward": Tanh()(z)}[method]
    expected = float(loss.forward(scores, backend.asarray(data[1])))
    if method == "__call__":
        assert net.loss(*data) == pytest.approx(expected, rel=1e-13)
    if method == "forward":
        net.layers[1].backward = lambda dout: dout
        assert net.loss_and_gradient(*data)[0] == pytest.approx(expected, rel=1e-13)
    if method == "backward":
        right = data[0].T @ (3.0 * backend.to_numpy(loss.backward()))
        found = backend.to_numpy(net.gradient(*data)["W1"])
        np.testing.assert_allclose(found, right, rtol=1e-12)


def test_a_subclass_may_give_another_width_than_its_base(backend, data):
    class HalfTanh(Tanh):
        __call__, forward, backward = Half.__call__, Half.forward, Half.backward

    layers = [Affine(4, 6, 0.5), HalfTanh(), Affine(3, 3, 0.5)]
    net, same = Network(layers), Network([Affine(4, 6, 0.5), Half(), Affine(3, 3, 0.5)])
    assert net.loss(*data) == same.loss(*data)
    assert_same(host(net, net.gradient(*data)), host(same, same.gradient(*data)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda xp, dout: dout[:, :2], r"dout has shape \(6, 2\), expected \(6, 5\)"),
        (lambda xp, dout: xp.astype(dout, xp.float32), "dout is float32, expected float64"),
    ],
)
def test_a_gradient_that_does_not_fit_a_run_is_refused(backend, data, wrong, message):
    """A layer of one's own that gives a wrong one is told of the layer before it."""

    class Wrong(Own):
        def backward(self, dout):
            return wrong(backend.xp, super().backward(dout))

    net = Network([Affine(4, 5), Sigmoid(), Wrong(), Affine(5, 3)])
    with pytest.raises(ValueError, match=rf"Sigmoid\(\): {message}"):
        net.gradient(*data)


def test_a_loss_of_ones_own_is_asked(backend, data):
    class Doubled(SoftmaxWithLoss):
        def forward(self, x, t):
            return 2 * super().forward(x, t)

        def backward(self, dout=1.0):
            return super().backward(2 * dout)

    for method in ("__call__", "forward", "backward"):  # each alone is enough
        own = type("Own", (SoftmaxWithLoss,), {method: getattr(SoftmaxWithLoss, method)})
        assert own.opaque
    assert not SoftmaxWithLoss.opaque
    plain = Network([Affine(4, 3, 0.5)], seed=1)
    net = Network([Affine(4, 3, 0.5)], Doubled(), seed=1)
    assert net.loss(*data) == pytest.approx(2 * plain.loss(*data), rel=1e-15)
    np.testing.assert_array_equal(
        backend.to_numpy(net.predict(data[0])), backend.to_numpy(plain.predict(data[0]))
    )
    expected = host(plain, plain.gradient(*data))
    loss = net.train_step(*data, SGD(0.25))
    assert loss == pytest.approx(2 * plain.loss(*data), rel=1e-15)
    for name, W in host(plain).items():
        moved = backend.to_numpy(net.params[name])
        np.testing.assert_allclose(moved, W - 0.5 * expected[name], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_parameters_of_ones_own_are_trained(backend, data, cls):
    """Named, moved to the backend, given a dtype and stepped as any other's."""
    net = Network([Scaled(4), Affine(4, 5, 0.5), Scaled(5), Affine(5, 3, 0.5)], dtype="float32")
    assert list(net.params) == ["s1", "W1", "b1", "s2", "W2", "b2"]
    before, optimizer = host(net), cls()
    assert {array.dtype for array in before.values()} == {np.dtype("float32")}
    for _ in range(3):
        net.train_step(*data, optimizer)
    for name, array in host(net).items():
        assert not np.array_equal(array, before[name])
    assert list(optimizer.taken) == list(net.params)
    assert net.layers[0].params["s"] is net.params["s1"]


# -- changes that the plan notices


def trained(**options):
    """A network that has a plan, and an optimizer with a memory."""
    net = Network([Affine(4, 5, 0.5), Tanh(), Affine(5, 3, 0.5)], **({"seed": 5} | options))
    return net, Adam(0.01)


def agrees(net, x, t):
    """Whether everything that is computed of a network is of the layers that it has now."""
    fresh = Network([layer.copy() for layer in net.layers], net.loss_layer, backend=net.backend)
    to_numpy = net.backend.to_numpy
    for method in (net.predict, net.scores):
        expected = to_numpy(getattr(fresh, method.__name__)(x))
        np.testing.assert_allclose(to_numpy(method(x)), expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(to_numpy(net.predict(x[0])), to_numpy(fresh.predict(x[0])))
    assert net.loss(x, t) == pytest.approx(fresh.loss(x, t), rel=1e-13)
    assert net.accuracy(x, t) == fresh.accuracy(x, t)
    assert_same(host(net), host(fresh))
    assert weights.sha256(net) == weights.sha256(fresh)
    for layer, copied in zip(net.layers, fresh.layers, strict=True):
        copied.trainable = layer.trainable
    gradients, expected = host(net, net.gradient(x, t)), host(fresh, fresh.gradient(x, t))
    assert list(gradients) == list(expected)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-12, atol=1e-15)
    numerical = host(net, net.numerical_gradient(x, t, method="naive"))
    assert list(numerical) == list(gradients)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(numerical[name], gradient, rtol=0, atol=1e-7)
    one, other = SGD(0.125), SGD(0.125)
    before = host(net)
    assert net.train_step(x, t, one) == pytest.approx(fresh.train_step(x, t, other), rel=1e-13)
    after = host(net)
    for name, W in host(fresh).items():
        np.testing.assert_allclose(after[name], W, rtol=1e-12, atol=1e-15)
        assert np.array_equal(after[name], before[name]) == (name not in gradients)
    return True


def use(net, data, optimizer):
    net.predict(data[0])
    net.train_step(*data, optimizer)


def set_by_name(net, backend):
    net.params["W1"] = net.params["W1"] * 2.0


def replace_in_layer(net, backend):
    net.layers[0].W = net.layers[0].W * 2.0


def replace_in_dict(net, backend):
    net.layers[0].params["W"] = net.layers[0].W * 2.0


def replace_all(net, backend):
    layer = net.layers[0]
    layer.params = {"W": layer.W * 2.0, "b": layer.b + 1.0}


def write(net, backend):
    net.params["W1"][...] = net.params["W1"] * 2.0


def replace_layer(net, backend):
    W, b = np.linspace(-1, 1, 15).reshape(5, 3), np.array([0.5, 0.0, -0.5])
    net.layers[2] = Affine.from_params(backend.asarray(W), backend.asarray(b))


def replace_from_the_end(net, backend):
    net.layers[-1] = operations.Affine(5, 3, 0.25)


def replace_activation(net, backend):
    net.layers[1] = operations.ReLU()


class Tripled(Layer):
    def __call__(self, x):
        return 3.0 * x

    forward = backward = __call__


def by_ones_own(net, backend):
    net.layers[1] = Tripled()


def append(net, backend):
    net.layers.append(Affine(3, 3, 0.5))


def extend(net, backend):
    net.layers += [operations.Sigmoid(), operations.Affine(3, 3, 0.5)]


def insert(net, backend):
    net.layers.insert(1, LayerNorm(5))


def remove(net, backend):
    del net.layers[1]


def pop(net, backend):
    net.layers.pop()


def move(net, backend):
    first, activation, last = net.layers
    net.layers = [activation, first, last]


def cut(net, backend):
    net.layers[1:] = [operations.Softmax(), operations.Affine(5, 2, 0.5), operations.Affine(2, 3)]


def another_width(net, backend):
    net.layers[0:3] = [Affine(4, 7, 0.5), net.layers[1], Affine(7, 3, 0.5)]


def freeze(net, backend):
    net.layers[0].trainable = False


def freeze_all(net, backend):
    for layer in net.layers:
        layer.trainable = False


def another_loss(net, backend):
    net.loss_layer = operations.SoftmaxWithLoss(0.25)


CHANGES = [
    set_by_name,
    replace_in_layer,
    replace_in_dict,
    replace_all,
    write,
    replace_layer,
    replace_from_the_end,
    replace_activation,
    by_ones_own,
    append,
    extend,
    insert,
    remove,
    pop,
    move,
    cut,
    another_width,
    freeze,
    freeze_all,
    another_loss,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_whole_everywhere(backend, data, change):
    net, optimizer = trained()
    use(net, data, optimizer)
    t = data[1]
    before = backend.to_numpy(net.predict(data[0]))
    change(net, backend)
    if change is pop:
        t = t + 1  # five classes now
    after = backend.to_numpy(net.predict(data[0]))
    says_the_same = change in (freeze, freeze_all, another_loss)
    assert (before.shape == after.shape and np.array_equal(before, after)) == says_the_same
    assert agrees(net, data[0], t)


def test_a_replaced_layer_keeps_nothing_of_the_one_before(backend, data, tmp_path):
    """What is saved, hashed and trained is what predicts."""
    net, optimizer = trained()
    use(net, data, optimizer)
    old = net.layers[2]
    W, b = np.linspace(-1, 1, 15).reshape(5, 3), np.array([0.5, 0.0, -0.5])
    given = backend.asarray(W.copy()), backend.asarray(b.copy())
    new = net.layers[2] = Affine.from_params(*given)
    assert net.layers[2] is new
    assert new.W is net.params["W2"]
    assert new.W is not given[0]  # training writes to a copy of what was given
    np.testing.assert_array_equal(backend.to_numpy(net.params["W2"]), W)
    hidden = np.tanh(data[0] @ host(net)["W1"] + host(net)["b1"])
    scores = backend.to_numpy(net.scores(data[0]))
    np.testing.assert_allclose(scores, hidden @ W + b, rtol=1e-13, atol=1e-15)
    before = {"old": backend.to_numpy(old.W).copy(), "hash": weights.sha256(net)}
    for _ in range(2):
        net.train_step(*data, optimizer)
    assert weights.sha256(net) != before["hash"]
    np.testing.assert_array_equal(backend.to_numpy(old.W), before["old"])
    np.testing.assert_array_equal(backend.to_numpy(given[0]), W)
    weights.save(net, tmp_path / "net.safetensors")
    loaded = weights.load_network(tmp_path / "net.safetensors", backend=backend)
    assert weights.sha256(loaded) == weights.sha256(net)
    np.testing.assert_array_equal(
        backend.to_numpy(loaded.predict(data[0])), backend.to_numpy(net.predict(data[0]))
    )


def test_what_is_put_in_gets_parameters_dtype_and_backend(backend, data):
    net, _ = trained(dtype="float32")
    net.layers[2] = operations.Affine(5, 3, 0.5)
    net.layers.append(Affine.from_params(np.eye(3), np.zeros(3)))
    assert {array.dtype for array in host(net).values()} == {np.dtype("float32")}
    assert all(backend.owns(array) for array in net.params.values())
    assert backend.to_numpy(net.params["W3"]).tolist() == np.eye(3).tolist()
    drawn = host(net)["W2"]
    assert 0.2 < drawn.std() < 1
    again, _ = trained(dtype="float32")
    again.layers[2] = operations.Affine(5, 3, 0.5)
    np.testing.assert_array_equal(host(again)["W2"], drawn)  # of the network's seed


def test_a_random_layer_that_comes_later_draws_from_the_seed(backend, data):
    losses = []
    for _ in range(2):
        net, _ = trained()
        net.layers.insert(2, Dropout(0.5))
        losses.append([net.train_step(*data, SGD(0.0)) for _ in range(3)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3


# -- frozen layers


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_frozen_layers_keep_their_parameters(backend, data, cls):
    """Through `train_step` and `update`; their names leave `gradient`, and they come back."""
    net, optimizer = trained()[0], cls(lr=0.1)
    use(net, data, optimizer)
    net.layers[0].trainable = False
    before, taken = host(net), dict(optimizer.taken)
    assert list(net.gradient(*data)) == ["W2", "b2"]
    net.train_step(*data, optimizer)
    net.update(optimizer, net.gradient(*data))
    optimizer.update(net.params, net.gradient(*data))
    after = host(net)
    for name in ("W1", "b1"):
        np.testing.assert_array_equal(after[name], before[name])
        assert optimizer.taken[name] == taken[name]
    for name in ("W2", "b2"):
        assert not np.array_equal(after[name], before[name])
        assert optimizer.taken[name] == taken[name] + 3
    net.layers[0].trainable = True
    assert list(net.gradient(*data)) == ["W1", "b1", "W2", "b2"]
    net.train_step(*data, optimizer)
    assert not np.array_equal(host(net)["W1"], before["W1"])


def test_frozen_layers_pass_the_gradient_on(backend, data):
    """What lies before a frozen layer is trained as if it were not."""
    net, other = trained()[0], trained()[0]
    net.layers[2].trainable = False
    gradients, expected = host(net, net.gradient(*data)), host(other, other.gradient(*data))
    assert list(gradients) == ["W1", "b1"]
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, expected[name])
    check = gradient_check(net, *data)
    assert list(check) == ["W1", "b1"]
    assert check.passed


def test_everything_frozen(backend, data):
    net, optimizer = trained()
    freeze_all(net, backend)
    before = host(net)
    assert net.gradient(*data) == {}
    assert net.train_step(*data, optimizer) == pytest.approx(net.loss(*data), rel=1e-14)
    assert_same(host(net), before)


def test_transfer_learning(backend, data):
    """A new last layer on frozen first ones: three classes become two."""
    net, optimizer = trained()
    use(net, data, optimizer)
    for layer in net.layers[:2]:
        layer.trainable = False
    net.layers[2] = Affine(5, 2, 0.5)
    first, t, optimizer = host(net)["W1"], data[1] % 2, Momentum(0.5)
    losses = [net.train_step(data[0], t, optimizer) for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    np.testing.assert_array_equal(host(net)["W1"], first)
    copied = copy.deepcopy(net)
    assert [layer.trainable for layer in copied.layers] == [False, False, True]
    assert list(copied.gradient(data[0], t)) == ["W2", "b2"]


# -- one layer, one network


def test_a_layer_of_another_network_is_refused(backend, data):
    net, other = trained()[0], trained()[0]
    message = r"layers\[0\]: Affine\(4, 5\) belongs to another network.*take layer\.copy\(\)"
    with pytest.raises(ValueError, match=message):
        Network(net.layers)
    with pytest.raises(ValueError, match=message):
        other.layers[0] = net.layers[0]
    with pytest.raises(ValueError, match=message):
        other.layers = list(net.layers)
    before = host(net)
    second = Network([layer.copy() for layer in net.layers])
    assert_same(host(second), before)
    second.train_step(*data, SGD(0.5))
    assert_same(host(net), before)


def test_a_layer_that_was_given_up_can_be_taken(backend, data):
    net = trained()[0]
    last = net.layers[2]
    net.layers[2] = Affine(5, 3)
    second = Network([last])
    np.testing.assert_array_equal(backend.to_numpy(second.params["W1"]), backend.to_numpy(last.W))
    layers = list(net.layers)
    del net
    gc.collect()
    Network(layers).predict(data[0])


def test_a_copy_of_a_network_owns_its_layers(backend, data):
    net = trained()[0]
    other = copy.deepcopy(net)
    with pytest.raises(ValueError, match="belongs to another network"):
        Network(other.layers)
    other.layers[0].trainable = False
    assert list(net.gradient(*data)) == ["W1", "b1", "W2", "b2"]
    other.layers[2] = Affine(5, 3, 0.5)
    assert net.layers[2] is not other.layers[2]


# -- what is refused changes nothing


def snapshot(net, data):
    return (
        list(net.layers),
        [dict(layer.params) for layer in net.layers],
        [layer.owner for layer in net.layers],
        net.backend.to_numpy(net.predict(data[0])).tolist(),
        weights.sha256(net),
    )


def wrong_size(net):
    net.layers[2] = Affine(6, 3)


def wrong_kind(net):
    net.layers[1] = "relu"


def a_class(net):
    net.layers[1] = ReLU


def a_loss(net):
    net.layers.append(SoftmaxWithLoss())


def twice(net):
    net.layers.append(net.layers[1])


def of_another(net):
    net.layers[1] = OTHER.layers[1]


def nothing(net):
    net.layers = []


def no_layer_left(net):
    net.layers[:] = []


def reversed_layers(net):
    net.layers = list(net.layers)[::-1]


def half_good(net):
    net.layers = [Affine(4, 5, 0.5), Affine.from_params(*elsewhere((5, 3)))]


def elsewhere(shape):
    other = xnet.resolve("cupy")  # its stand-in, which says that it is another device
    return other.asarray(np.ones(shape)), other.asarray(np.ones(shape[-1:]))


def of_another_device(net):
    net.layers[2] = Affine.from_params(*elsewhere((5, 3)))


def no_such_place(net):
    net.layers[7] = ReLU()


OTHER = Network([Affine(4, 5), Tanh(), Affine(5, 3)], backend="numpy")

REFUSED = {
    wrong_size: (ValueError, r"layers\[2\]: Affine\(6, 3\) takes 6 features"),
    wrong_kind: (TypeError, r"layers\[1\] is 'relu', expected a Layer object"),
    a_class: (TypeError, r"layers\[1\] is the class ReLU, expected a Layer object"),
    a_loss: (TypeError, r"layers\[3\] is SoftmaxWithLoss\(\), expected a Layer object"),
    twice: (ValueError, r"layers\[3\]: Tanh\(\) stands at two places"),
    of_another: (ValueError, r"layers\[1\]: Tanh\(\) belongs to another network"),
    nothing: (ValueError, "layers is empty"),
    no_layer_left: (ValueError, "layers is empty"),
    reversed_layers: (ValueError, r"takes 4 features, those before it give 3"),
    half_good: (BackendError, "the network is on numpy, W is on cupy:0"),
    of_another_device: (BackendError, "the network is on numpy, W is on cupy:0"),
    no_such_place: (IndexError, "out of range"),
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_refused_change_leaves_the_network_as_it_was(data, change, monkeypatch):
    require_host_cuda(monkeypatch)
    net = trained(backend="numpy")[0]
    before = snapshot(net, data)
    error, message = REFUSED[change]
    with pytest.raises(error, match=message):
        change(net)
    assert snapshot(net, data) == before
    use(net, data, Adam())
    assert agrees(net, *data)


def test_a_refused_layer_stays_as_it_was(monkeypatch):
    """It is adopted when all that came with it fits, and not before."""
    require_host_cuda(monkeypatch)
    net = trained(backend="numpy")[0]
    fits, strange = Affine(4, 5), Affine.from_params(*elsewhere((5, 3)))
    with pytest.raises(BackendError, match="W is on cupy:0"):
        net.layers = [fits, strange]
    assert fits.params == {"W": None, "b": None}
    assert fits.owner is None
    assert strange.owner is None
    assert xnet.resolve("cupy").owns(strange.W)
    Network([strange], backend="cupy")


def test_layers_are_a_sequence(data):
    net = trained(backend="numpy")[0]
    layers = list(net.layers)
    assert len(net.layers) == 3
    assert net.layers == layers
    assert net.layers != layers[:2]
    assert net.layers[-1] is layers[2]
    assert net.layers[:2] == layers[:2]
    assert layers[1] in net.layers
    assert net.layers.index(layers[1]) == 1
    assert repr(net.layers) == "[Affine(4, 5), Tanh(), Affine(5, 3)]"
    assert list(reversed(net.layers)) == layers[::-1]
    with pytest.raises(TypeError, match="unhashable"):
        hash(net.layers)


# -- what a run must not confuse


class Keeps(operations.Operation, abstract=True):
    """2 x + x^2 / 2 of each number, whose slope `backward` takes from what `forward` kept."""

    def forward(self, m, x):
        if m.training:
            m.kept.slope = 2.0 + x
        return 2.0 * x + 0.5 * x * x

    def backward(self, m, dout, x, y):
        return dout * m.kept.slope


def test_two_that_keep_something_keep_it_apart(backend):
    """What a `forward` leaves is found by the `backward` of the same operation, not another's."""
    parts = [Affine(3, 4), Keeps(), Affine(4, 4), Keeps(), Affine(4, 2)]
    net = xnet.Network(parts)
    x, t = np.random.default_rng(0).standard_normal((6, 3)), np.arange(6) % 2
    expected = net.numerical_gradient(x, t, method="naive")
    for name, found in net.gradient(x, t).items():
        found, right = (net.backend.to_numpy(a) for a in (found, expected[name]))
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-7)


class Doubled(operations.Affine, abstract=True):
    """Twice the product: nobody tells its `backward_parameters`."""

    def forward(self, m, x, W, b):
        return 2.0 * (m.matmul(x, W) + b)

    def backward(self, m, dout, x, y, W, b):
        return super().backward(m, 2.0 * dout, x, y, W, b)


def test_an_inherited_part_of_backward_does_not_beat_a_new_backward(backend):
    assert operations.Affine.parts_backward
    assert not Doubled.parts_backward
    net = xnet.Network([Doubled(3, 4), Affine(4, 2)])
    x, t = np.random.default_rng(0).standard_normal((6, 3)), np.arange(6) % 2
    expected = net.numerical_gradient(x, t, method="naive")
    for name, found in net.gradient(x, t).items():
        found, right = (net.backend.to_numpy(a) for a in (found, expected[name]))
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-7)


def test_images_behind_a_layer_of_any_shape(backend):
    """What takes rows flattens them, or refuses, wherever it stands."""
    x, t = np.random.default_rng(0).standard_normal((5, 3, 4)), np.arange(5) % 3
    net = xnet.Network([operations.ReLU(), Affine(12, 3)])
    flat = x.reshape(5, 12)
    for call in ("predict", "scores"):
        one, other = (net.backend.to_numpy(getattr(net, call)(a)) for a in (x, flat))
        np.testing.assert_array_equal(one, other)
    assert net.loss(x, t) == net.loss(flat, t)
    for name, found in net.gradient(x, t).items():
        right = net.gradient(flat, t)[name]
        np.testing.assert_array_equal(*(net.backend.to_numpy(a) for a in (found, right)))
    for name, found in net.numerical_gradient(x, t).items():
        right = net.numerical_gradient(flat, t)[name]
        np.testing.assert_array_equal(*(net.backend.to_numpy(a) for a in (found, right)))
    assert net.train_step(x, t, xnet.optimizers.SGD()) == pytest.approx(net.loss(x, t), rel=0.2)
    for calls in (net.predict, lambda a: net.gradient(a, t)):
        with pytest.raises(ValueError, match="x has 15 features, W expects 12"):
            calls(np.ones((5, 3, 5)))
    wrong = xnet.Network([operations.ReLU(), Affine(4, 3)])
    with pytest.raises(ValueError, match="x has 12 features, W expects 4"):
        wrong.predict(x)


class Gain(operations.Pointwise, abstract=True):
    """g x, of which each column has its own g: pointwise, but not of any shape."""

    units: int

    parameters: ClassVar = {"g": ("units",)}

    def forward(self, m, x, g):
        return g * x

    def backward(self, m, dout, x, y, g):
        return g * dout, m.total(dout * x)

    def initial(self, name):
        return 2.0, 0.0


def test_images_before_a_pointwise_layer_with_parameters(backend):
    """It takes rows, as a product does."""
    x, t = np.random.default_rng(0).standard_normal((5, 2, 2)), np.arange(5) % 4
    net = xnet.Network([operations.ReLU(), Gain(4)])
    scores = net.backend.to_numpy(net.scores(x))
    np.testing.assert_array_equal(scores, 2 * np.maximum(x, 0).reshape(5, 4))
    expected = net.numerical_gradient(x, t, method="naive")["g1"]
    found, expected = map(net.backend.to_numpy, (net.gradient(x, t)["g1"], expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_a_frozen_layer_has_no_numerical_gradient_and_is_not_trained_by_one(backend):
    net = xnet.Network([Affine(4, 5), Tanh(), Affine(5, 3)])
    net.layers[0].trainable = False
    x, t = np.random.default_rng(0).standard_normal((6, 4)), np.arange(6) % 3
    for method in ("naive", "incremental"):
        assert list(net.numerical_gradient(x, t, method=method)) == ["W2", "b2"]
    before = {name: net.backend.to_numpy(W).copy() for name, W in net.params.items()}
    xnet.train(net, x, t, gradient="numerical", batch_size=3, iterations=2, progress=False)
    after = {name: net.backend.to_numpy(W) for name, W in net.params.items()}
    assert {name for name in before if (before[name] != after[name]).any()} == {"W2", "b2"}


def test_a_loss_is_not_mixed_with_one_that_is_asked_for_meanwhile(monkeypatch):
    """As another thread may ask: here the loss itself does, before it has its targets."""
    net = xnet.Network([Affine(4, 3)], backend="numpy")
    rng = np.random.default_rng(0)
    (x, t), other = ((rng.standard_normal((5, 4)), np.full(5, label)) for label in (0, 2))
    expected, targets = net.loss(x, t), operations.SoftmaxWithLoss.targets
    asked = []

    def asks_too(self, m, t):
        if not asked:
            asked.append(True)
            asked.append(net.loss(*other))
        return targets(self, m, t)

    monkeypatch.setattr(operations.SoftmaxWithLoss, "targets", asks_too)
    assert net.loss(x, t) == expected
    assert asked[1] == net.loss(*other) != expected
