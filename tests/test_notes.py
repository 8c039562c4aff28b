"""The values that the notes print (notes/values.md), on every backend."""

import contextlib
import math
from decimal import Decimal

import numpy as np
import pytest

import xnet
from xnet import samples
from xnet.activations import identity, relu, sigmoid, softmax, step
from xnet.gradient import gradient_descent, numerical_diff, numerical_gradient
from xnet.gradient_check import gradient_check
from xnet.layers import Add, Affine, IdentityWithLoss, Mul, ReLU, Sigmoid, SoftmaxWithLoss
from xnet.losses import LOG_OFFSET, cross_entropy_error, mean_squared_error
from xnet.perceptron import AND, NAND, OR, XOR, AND_with_threshold, weighted_sum


def assert_number(backend, actual, expected):
    """`actual` is the double that the notes print in full.

    NumPy printed it, so NumPy must give it; another library's exp, log and order of summation
    may each differ in the last place.
    """
    ulps = 0 if backend.name == "numpy" else 4
    assert abs(float(actual) - expected) <= ulps * math.ulp(expected)


def assert_digits(backend, actual, shown):
    """`actual`, rounded to as many digits as the notes show, is the numbers in `shown`."""
    values = backend.to_numpy(actual).ravel().tolist()
    for value, text in zip(values, shown.split(), strict=True):
        assert Decimal(value).quantize(Decimal(text)) == Decimal(text)


def assert_array(backend, actual, expected):
    actual = backend.to_numpy(actual)
    np.testing.assert_array_equal(actual, expected)
    assert actual.shape == np.shape(expected)


# -- 1.5 arrays


def test_array_arithmetic(backend):
    x, y = backend.asarray([1, 2, 3]), backend.asarray([4, 5, 6])
    assert_array(backend, x + y, [5, 7, 9])
    assert_array(backend, x - y, [-3, -3, -3])
    assert_array(backend, x * y, [4, 10, 18])
    floats = [backend.asarray(v, "float64") for v in (x, y)]  # the standard divides no integers
    assert_array(backend, floats[0] / floats[1], [0.25, 0.4, 0.5])


def test_matrices(backend):
    A, B = backend.asarray([[1, 2], [3, 4]]), backend.asarray([[3, 0], [0, 6]])
    assert A.shape == (2, 2)
    assert A.dtype == backend.xp.int64
    assert_array(backend, A + B, [[4, 2], [3, 10]])
    assert_array(backend, A * B, [[3, 0], [0, 24]])


def test_broadcasting(backend):
    A = backend.asarray([[1, 2], [3, 4]])
    assert_array(backend, A * 10, [[10, 20], [30, 40]])
    assert_array(backend, A * backend.asarray([10, 20]), [[10, 40], [30, 80]])


def test_indexing(backend):
    xp = backend.xp
    x = backend.asarray([[51, 55], [14, 19], [0, 4]])
    assert_array(backend, x[0, ...], [51, 55])
    assert int(x[0, 1]) == 55
    flat = xp.reshape(x, (-1,))
    assert_array(backend, flat, [51, 55, 14, 19, 0, 4])
    assert_array(backend, xp.take(flat, backend.asarray([0, 2, 4])), [51, 14, 0])
    assert_array(backend, flat > 15, [True, True, False, True, False, False])
    assert_array(backend, flat[flat > 15], [51, 55, 19])


# -- 2 perceptrons

CORNERS = [(0, 0), (1, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize(
    ("gate", "outputs"),
    [
        (AND_with_threshold, [0, 0, 0, 1]),
        (AND, [0, 0, 0, 1]),
        (NAND, [1, 1, 1, 0]),
        (OR, [0, 1, 1, 1]),
        (XOR, [0, 1, 1, 0]),
    ],
)
def test_gates(backend, gate, outputs):
    assert [gate(*corner) for corner in CORNERS] == outputs


def test_weighted_sum(backend):
    x, w = backend.asarray([0.0, 1.0]), backend.asarray([0.5, 0.5])
    assert_array(backend, w * x, [0, 0.5])
    assert float(backend.sum(w * x)) == 0.5
    assert float(weighted_sum(x, w, -0.7)) == -0.19999999999999996


# -- 3 networks


def test_activations(backend):
    x = backend.asarray([-1.0, 1.0, 2.0])
    assert_array(backend, x > 0, [False, True, True])
    assert_array(backend, step(x), [0, 1, 1])
    assert backend.to_numpy(step(x)).dtype == np.int64
    assert_digits(backend, sigmoid(x), "0.26894142 0.73105858 0.88079708")
    assert_array(backend, relu(x), [0, 1, 2])
    assert_array(backend, identity(x), [-1, 1, 2])


def test_three_layer_network(backend):
    W1, b1 = [[0.1, 0.3, 0.5], [0.2, 0.4, 0.6]], [0.1, 0.2, 0.3]
    W2, b2 = [[0.1, 0.4], [0.2, 0.5], [0.3, 0.6]], [0.1, 0.2]
    W3, b3 = [[0.1, 0.3], [0.2, 0.4]], [0.1, 0.2]
    first, second, third = (
        Affine.from_params(backend.asarray(W), backend.asarray(b))
        for W, b in [(W1, b1), (W2, b2), (W3, b3)]
    )
    net = xnet.Network([first, Sigmoid(), second, Sigmoid(), third], IdentityWithLoss())
    assert_digits(backend, net.predict([1.0, 0.5]), "0.31682708 0.69627909")


def test_softmax_step_by_step(backend):
    a = backend.asarray([0.3, 2.9, 4.0, 0.0])
    exp_a = backend.exp(a)
    assert_digits(backend, exp_a, "1.34985881 18.17414537 54.59815003 1.0")
    assert_number(backend, backend.sum(exp_a), 75.1221542101633)
    assert_digits(backend, exp_a / backend.sum(exp_a), "0.01796885 0.2419279 0.72679159 0.01331165")
    assert_digits(backend, softmax(a), "0.01796885 0.2419279 0.72679159 0.01331165")


def test_softmax_that_cannot_overflow(backend):
    y = softmax(backend.asarray([0.3, 2.9, 4.0]))
    assert_digits(backend, y, "0.01821127 0.24519181 0.73659691")
    assert_number(backend, backend.sum(y), 1.0)
    large = softmax(backend.asarray([1010.0, 1000.0, 990.0]))
    assert_digits(backend, large, "0.99995460 0.00004540 0.00000000")


# -- 4.2 losses

T = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
Y1 = [0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0]
Y2 = [0.1, 0.05, 0.1, 0.0, 0.05, 0.1, 0.0, 0.6, 0.0, 0.0]


@pytest.mark.parametrize(
    ("loss", "y", "expected"),
    [
        (mean_squared_error, Y1, 0.09750000000000003),
        (mean_squared_error, Y2, 0.5975),
        (cross_entropy_error, Y1, 0.510825457099338),
        (cross_entropy_error, Y2, 2.302584092994546),
    ],
)
def test_losses(backend, loss, y, expected):
    assert_number(backend, loss(backend.asarray(y), backend.asarray(T)), expected)


def test_mini_batch(backend):
    x = backend.xp.zeros((60000, 784), dtype=backend.xp.uint8)
    t = backend.xp.zeros((60000, 10), dtype=backend.xp.uint8)
    rng = np.random.default_rng(0)
    mask = next(samples.minibatches(60000, 10, rng, replacement=True))
    assert mask.shape == (10,)
    assert 0 <= mask.min() < mask.max() < 60000
    mask = backend.asarray(mask)
    assert backend.xp.take(x, mask, axis=0).shape == (10, 784)
    assert backend.xp.take(t, mask, axis=0).shape == (10, 10)


def test_cross_entropy_of_a_batch_and_of_class_indices(backend):
    batch, classes = backend.asarray([Y1, Y2]), backend.asarray([2, 2])
    by_index = cross_entropy_error(batch, classes)
    assert float(by_index) == float(cross_entropy_error(batch, backend.asarray([T, T])))
    assert_number(backend, by_index, (0.510825457099338 + 2.302584092994546) / 2)
    one = cross_entropy_error(backend.asarray(Y1), backend.asarray(2))
    assert_number(backend, one, 0.510825457099338)


# -- 4.3 numerical differentiation


def test_why_a_tiny_step_fails(backend):
    assert float(backend.asarray(1e-50, "float32")) == 0.0
    assert float(backend.asarray(1e-50, "float64")) == 1e-50
    x, h = backend.asarray(2.0), 10e-50
    assert float((x + h) ** 2) == float(x**2) == 4.0
    assert float(((x + h) ** 2 - x**2) / h) == 0.0
    with pytest.warns(xnet.RoundingWarning, match="h=1e-49 is lost in x \\+ h"):
        assert float(numerical_diff(lambda v: v**2, x, h)) == 0.0
    assert float(numerical_diff(lambda v: v**2, x)) == pytest.approx(4.0, abs=1e-10)


@pytest.mark.parametrize(("x", "expected"), [(5, 0.1999999999990898), (10, 0.2999999999986347)])
def test_central_difference(backend, x, expected):
    def f(x):
        return 0.01 * x**2 + 0.1 * x

    assert numerical_diff(f, x) == expected  # of a number: no array library takes part
    # An error of one unit in the last place of f comes out divided by 2h.
    tolerance = 0 if backend.name == "numpy" else 2 * math.ulp(f(x)) / 2e-4
    assert abs(float(numerical_diff(f, backend.asarray(float(x)))) - expected) <= tolerance


def test_partial_derivatives(backend):
    by_x0 = numerical_diff(lambda x0: x0**2 + 4**2, 3.0)
    by_x1 = numerical_diff(lambda x1: 3.0**2 + x1**2, 4.0)
    assert (by_x0, by_x1) == (6.00000000000378, 7.999999999999119)
    gradient = numerical_gradient(sum_of_squares, backend.asarray([3.0, 4.0]))
    assert_digits(backend, gradient, "6.00000000000 8.00000000000")


# -- 4.4 gradients


def sum_of_squares(x):
    return x[0] ** 2 + x[1] ** 2


@pytest.mark.parametrize(
    ("point", "shown"),
    [
        ([3.0, 4.0], "6.00000000 8.00000000"),
        ([0.0, 2.0], "0.00000000 4.00000000"),
        ([3.0, 0.0], "6.00000000 0.00000000"),
    ],
)
def test_numerical_gradient(backend, point, shown):
    assert_digits(backend, numerical_gradient(sum_of_squares, backend.asarray(point)), shown)


@pytest.mark.parametrize(
    ("lr", "shown"),
    [
        (0.1, "-6.11110793e-10 8.14814391e-10"),
        (10.0, "-2.58983747e+13 -1.29524862e+12"),
        (1e-10, "-2.99999994 3.99999992"),
    ],
)
def test_gradient_descent(backend, lr, shown):
    start = backend.asarray([-3.0, 4.0])
    # With the largest rate x runs away to 1e13, where x + 1e-4 is x, and xnet says so.
    lost = pytest.warns(xnet.RoundingWarning) if lr == 10.0 else contextlib.nullcontext()
    with lost:
        assert_digits(backend, gradient_descent(sum_of_squares, start, lr=lr, step_num=100), shown)


X, LABEL = [0.6, 0.9], [0, 0, 1]
FIRST_W = [[-1.01151507, 0.29654086, 0.54875784], [-0.65483815, 1.71663151, 0.79564619]]
SECOND_W = [[-0.78391423, -0.0493546, 1.01982955], [-0.1693144, -0.82591994, -0.70009164]]
GRADIENT = "0.16255973 0.13988719 -0.30244691 0.24383959 0.20983078 -0.45367037"


def single_layer_net(backend, W):
    b = backend.asarray([0.0, 0.0, 0.0])
    return xnet.Network([Affine.from_params(backend.asarray(W), b)], SoftmaxWithLoss())


def test_single_layer_loss(backend):
    net = single_layer_net(backend, FIRST_W)
    scores = net.scores(X)
    # W is printed to 5e-9; x adds 0.6 + 0.9 such errors up, and the scores are printed to 5e-9.
    printed = [-1.19626337, 1.72289288, 1.04533627]
    np.testing.assert_allclose(backend.to_numpy(scores), printed, rtol=0, atol=1.25e-8)
    assert int(backend.xp.argmax(scores)) == 1
    # The loss changes by at most twice what its scores do. A network's has no 1e-7 in it.
    y = float(net.predict(X)[2])
    printed = 1.1234180817699424 + math.log(1 + LOG_OFFSET / y)
    assert net.loss(X, LABEL) == pytest.approx(printed, rel=0, abs=1.5e-8)
    x, W, t = (backend.asarray(value) for value in (X, FIRST_W, LABEL))
    loss = cross_entropy_error(softmax(backend.xp.matmul(x, W)), t)
    assert float(loss) == pytest.approx(1.1234180817699424, rel=0, abs=1.5e-8)


def test_single_layer_gradient_through_a_network(backend):
    """The notes differentiate -log(y + 1e-7): y / (y + 1e-7) of what a network does."""
    net = single_layer_net(backend, SECOND_W)
    y = float(net.predict(X)[2])
    for gradient in (net.numerical_gradient(X, LABEL), net.gradient(X, LABEL)):
        assert_digits(backend, gradient["W1"] * (y / (y + LOG_OFFSET)), GRADIENT)


def test_single_layer_gradient_through_the_functions(backend):
    x, W, t = (backend.asarray(value) for value in (X, SECOND_W, LABEL))

    def loss(_):  # as in the notes, f ignores its argument
        return cross_entropy_error(softmax(backend.xp.matmul(x, W)), t)

    assert_digits(backend, numerical_gradient(loss, W), GRADIENT)
    assert_array(backend, W, SECOND_W)


# -- 4.5 the two-layer network


def test_two_layer_net_has_the_notes_parts(backend, rng):
    net = xnet.TwoLayerNet(784, 50, 10)
    shapes = {name: tuple(array.shape) for name, array in net.params.items()}
    assert shapes == {"W1": (784, 50), "b1": (50,), "W2": (50, 10), "b2": (10,)}
    x, t = rng.random((5, 784)), np.eye(10)[rng.integers(0, 10, 5)]
    y = backend.to_numpy(net.predict(x))
    assert y.shape == (5, 10)
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=4e-15)
    assert net.accuracy(x, t) == np.mean(y.argmax(axis=1) == t.argmax(axis=1))
    assert net.loss(x, t) == pytest.approx(-np.mean(np.log(y[t == 1])), rel=1e-14)
    gradients = net.gradient(x, t)
    assert {name: tuple(array.shape) for name, array in gradients.items()} == shapes


def test_both_gradients_of_784_50_10_agree(backend, rng):
    net = xnet.TwoLayerNet(784, 50, 10, seed=1)
    x, t = rng.random((3, 784)), np.array([7, 0, 2])
    exact = net.gradient(x, t)
    for name, part in [("W1", slice(400, 402)), ("b1", slice(0, 50)), ("W2", slice(10, 20))]:
        some = net.params[name][part, ...]  # a view: to perturb it is to perturb the network
        numerical = numerical_gradient(lambda _: net.loss(x, t), some)
        np.testing.assert_allclose(
            backend.to_numpy(numerical), backend.to_numpy(exact[name][part, ...]), atol=1e-9
        )


def test_both_gradients_agree_throughout(backend, rng):
    net = xnet.TwoLayerNet(12, 7, 4, weight_init_std=0.5)
    x, t = rng.normal(size=(6, 12)), rng.integers(0, 4, 6)
    differences = gradient_check(net, x, t)
    assert set(differences) == {"W1", "b1", "W2", "b2"}
    assert max(differences.values()) < 1e-9


# -- 5 layers


@pytest.mark.parametrize("kind", ["numbers", "arrays"])
def test_apples(backend, kind):
    apple, count, tax = (
        value if kind == "numbers" else backend.asarray(value) for value in (100.0, 2.0, 1.1)
    )
    buy, add_tax = Mul(), Mul()
    assert float(add_tax.forward(buy.forward(apple, count), tax)) == 220.00000000000003
    d_sum, d_tax = add_tax.backward(1)
    d_apple, d_count = buy.backward(d_sum)
    assert [float(d) for d in (d_apple, d_count, d_tax)] == [2.2, 110.00000000000001, 200]


@pytest.mark.parametrize("kind", ["numbers", "arrays"])
def test_apples_and_oranges(backend, kind):
    apple, apples, orange, oranges, tax = (
        value if kind == "numbers" else backend.asarray(value)
        for value in (100.0, 2.0, 150.0, 3.0, 1.1)
    )
    buy_apples, buy_oranges, add, add_tax = Mul(), Mul(), Add(), Mul()
    total = add.forward(buy_apples.forward(apple, apples), buy_oranges.forward(orange, oranges))
    assert float(add_tax.forward(total, tax)) == 715.0000000000001
    d_total, d_tax = add_tax.backward(1)
    d_apple_sum, d_orange_sum = add.backward(d_total)
    d_apple, d_apples = buy_apples.backward(d_apple_sum)
    d_orange, d_oranges = buy_oranges.backward(d_orange_sum)
    assert [float(d) for d in (d_total, d_tax)] == [1.1, 650]
    assert [float(d) for d in (d_apple_sum, d_orange_sum)] == [1.1, 1.1]
    assert [float(d) for d in (d_apple, d_apples)] == [2.2, 110.00000000000001]
    assert [float(d) for d in (d_orange, d_oranges)] == [3.3000000000000003, 165.0]


def test_relu_layer(backend):
    layer = ReLU()
    out = layer.forward(backend.asarray([[1.0, -0.5], [-2.0, 3.0]]))
    assert_array(backend, out, [[1, 0], [0, 3]])
    assert_array(backend, out <= 0, [[False, True], [True, False]])  # the notes' mask
    upstream = backend.asarray([[1.0, 2.0], [3.0, 4.0]])
    assert_array(backend, layer.backward(upstream), [[1, 0], [0, 4]])
    assert_array(backend, upstream, [[1, 2], [3, 4]])  # the notes' own code zeroes it


def test_sigmoid_layer(backend):
    layer = Sigmoid()
    y = backend.to_numpy(layer.forward(backend.asarray([[1.0, -0.5], [-2.0, 3.0]])))
    np.testing.assert_allclose(y, 1 / (1 + np.exp([[-1.0, 0.5], [2.0, -3.0]])), rtol=1e-15)
    dx = backend.to_numpy(layer.backward(backend.asarray([[1.0, 2.0], [3.0, 4.0]])))
    np.testing.assert_allclose(dx, [[1, 2], [3, 4]] * y * (1 - y), rtol=1e-15)


@pytest.mark.parametrize("shape", [(6,), (4, 6), (4, 2, 3)])
def test_affine_layer(backend, rng, shape):
    W, b = rng.normal(size=(6, 3)), rng.normal(size=3)
    layer = Affine.from_params(backend.asarray(W), backend.asarray(b))
    x = backend.asarray(rng.normal(size=shape))
    dout = backend.asarray(rng.normal(size=(*shape[: len(shape) > 1], 3)))
    assert layer.forward(x).shape == dout.shape
    dx = layer.backward(dout)
    assert dx.shape == x.shape

    def f(_):
        return backend.sum(layer(x) * dout)

    for exact, array in [(dx, x), (layer.dW, layer.W), (layer.db, layer.b)]:
        numerical = backend.to_numpy(numerical_gradient(f, array))
        np.testing.assert_allclose(backend.to_numpy(exact), numerical, atol=1e-9)


@pytest.mark.parametrize("labels", [[2, 0], [[0, 0, 1], [1, 0, 0]]])
def test_softmax_with_loss_layer(backend, rng, labels):
    layer = SoftmaxWithLoss()
    x, t = backend.asarray(rng.normal(size=(2, 3))), backend.asarray(labels)
    y = backend.to_numpy(softmax(x))
    expected = -np.log(y[[0, 1], [2, 0]]).mean()
    assert float(layer.forward(x, t)) == pytest.approx(expected, rel=1e-15)
    by_the_notes = cross_entropy_error(softmax(x), t)  # log(y + 1e-7), whose slope is 1 / y
    assert float(by_the_notes) == pytest.approx(expected - 1e-7 * (1 / y[[0, 1], [2, 0]]).mean())
    dx = backend.to_numpy(layer.backward())
    numerical = backend.to_numpy(numerical_gradient(lambda x: layer.forward(x, t), x))
    np.testing.assert_allclose(dx, numerical, atol=1e-9)


# -- 5.7 training


def batches(mnist):
    """600 of 100 pictures with labels, one-hot, as the chapters draw them."""
    (x_train, t_train), _ = mnist
    rng = np.random.default_rng(0)
    for _ in range(600):
        mask = rng.choice(len(x_train), 100)
        yield x_train[mask].reshape(100, 784) / 255.0, np.eye(10)[t_train[mask]]


@pytest.fixture(scope="module")
def script(mnist):
    """What a script of the chapters does in NumPy: losses, and the parameters at the end."""
    net = xnet.TwoLayerNet(784, 50, 10, backend="numpy")
    W1, b1, W2, b2 = (array.copy() for array in net.params.values())
    lr, losses = 0.1, []
    for x, t in batches(mnist):
        a1 = np.dot(x, W1) + b1
        z1 = np.maximum(0, a1)
        a2 = np.dot(z1, W2) + b2
        y = np.exp(a2 - a2.max(axis=1, keepdims=True))
        y /= y.sum(axis=1, keepdims=True)
        losses.append(-np.sum(t * np.log(y)) / len(x))

        dy = (y - t) / len(x)
        da1 = (a1 > 0) * np.dot(dy, W2.T)
        W2 -= lr * np.dot(z1.T, dy)
        b2 -= lr * np.sum(dy, axis=0)
        W1 -= lr * np.dot(x.T, da1)
        b1 -= lr * np.sum(da1, axis=0)
    return losses, (W1, b1, W2, b2)


def test_the_books_training_run(backend, mnist, script):
    """600 steps of 784-50-10 from the same weights and batches: the same to 1e-12."""
    expected, parameters = script
    net = xnet.TwoLayerNet(784, 50, 10, activation="relu")
    optimizer = xnet.optimizers.SGD(0.1)
    losses = [net.train_step(x, t, optimizer) for x, t in batches(mnist)]
    assert np.mean(expected[:10]) > 2.2 > 0.4 > np.mean(expected[-10:])
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    for found, right in zip(net.params.values(), parameters, strict=True):
        close = 1e-12 * np.abs(right).max()
        np.testing.assert_allclose(backend.to_numpy(found), right, rtol=0, atol=close)
