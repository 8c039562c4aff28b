"""What a network and functions of arrays make of what they are handed: the one door."""

import warnings

import numpy as np
import pytest

import xnet
from xnet import arrays, losses
from xnet.activations import sigmoid
from xnet.datasets import load_digits
from xnet.layers import Affine, ReLU

X = np.arange(24.0).reshape(6, 4) / 8
T = np.array([0, 1, 2, 0, 1, 2])


def masked(values, first):
    """A masked array of values, its first element masked or not."""
    hidden = np.zeros(np.shape(values), bool)
    hidden.flat[0] = first
    return np.ma.masked_array(values, hidden)


def matrix(values):
    """A matrix, which NumPy itself advises against."""
    with warnings.catch_warnings(action="ignore"):
        return np.asmatrix(values)


TAKEN = {
    "list": X.tolist(),
    "tuple of tuples": tuple(map(tuple, X.tolist())),
    "list of rows": list(X),
    "by columns": np.asfortranarray(X),
    "strided": np.repeat(X, 2, axis=0)[::2],
    "backwards": X[::-1].copy()[::-1],
    "read-only": np.broadcast_to(X, X.shape),
    "other byte order": X.astype(X.dtype.newbyteorder()),
    "not aligned": np.frombuffer(b"0" + X.tobytes(), "u1")[1:].view("f8").reshape(X.shape),
    "float16": X.astype("float16"),
    "float32": X.astype("float32"),
    "long double": X.astype(np.longdouble),
    "matrix": matrix(X),
    "masked, nothing hidden": masked(X, False),
    "records' view": X.view(np.recarray),
}
"""The numbers of X, which every one of these dtypes holds."""

REFUSED = {
    "complex": (X + 0j, TypeError, "is complex128, expected real numbers"),
    "complex numbers": ([[1j, 2, 3, 4]], TypeError, "is complex128, expected real numbers"),
    "objects": (X.astype(object), TypeError, "is object, expected real numbers"),
    "None within": ([[None, 1, 2, 3]], TypeError, "is object, expected real numbers"),
    "strings": (X.astype(str), TypeError, "is str[0-9]*, expected real numbers"),
    "dates": (X.astype("M8[D]"), TypeError, "is datetime64.*, expected real numbers"),
    "durations": (X.astype("m8[D]"), TypeError, "is timedelta64.*, expected real numbers"),
    "masked": (masked(X, True), ValueError, "has masked elements"),
    "masked row": ([masked(row, i == 1) for i, row in enumerate(X)], ValueError, "has masked"),
    "ragged": ([[1, 2, 3, 4], [1, 2]], ValueError, "makes no array: .*inhomogeneous"),
    "nothing": (None, TypeError, "is a NoneType, expected an array of a usable backend"),
    "dictionary": ({}, TypeError, "is a dict, expected an array of a usable backend"),
}


def network(backend, planned=True):
    net = xnet.Network([Affine(4, 5), ReLU(), Affine(5, 3)], backend=backend)
    if planned:
        net.predict(X)
    return net


USES = {
    "predict": lambda net, x, t: net.predict(x),
    "scores": lambda net, x, t: net.scores(x),
    "loss": lambda net, x, t: net.loss(x, t),
    "accuracy": lambda net, x, t: net.accuracy(x, t),
    "gradient": lambda net, x, t: list(net.gradient(x, t).values()),
    "train_step": lambda net, x, t: (
        net.train_step(x, t, xnet.optimizers.SGD(0.1)),
        list(net.params.values()),
    ),
    "numerical_gradient": lambda net, x, t: list(net.numerical_gradient(x, t).values()),
    "train": lambda net, x, t: xnet.train(net, x, t, iterations=3, batch_size=4).loss,
}


def flat(backend, found):
    """Every number that a use gives, as one list."""
    if isinstance(found, list | tuple):
        return [number for part in found for number in flat(backend, part)]
    if isinstance(found, float):
        return [found]
    assert backend.owns(found)
    return backend.to_numpy(found).ravel().tolist()


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("use", USES)
def test_kinds_of_arrays_make_no_difference(backend, use, planned, tmp_path):
    mapped = np.memmap(tmp_path / "x.bin", "float64", "w+", shape=X.shape)
    mapped[...] = X
    expected = flat(backend, USES[use](network(backend, planned), X, T))
    for kind, x in {**TAKEN, "memory map": mapped}.items():
        found = flat(backend, USES[use](network(backend, planned), x, T))
        np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=kind)


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_lose_something_is_refused(backend, kind, planned):
    x, error, message = REFUSED[kind]
    for name, use in USES.items():
        net = network(backend, planned)
        before = xnet.weights.sha256(net)
        with pytest.raises(error, match=f"^x {message}"):
            use(net, x, T)
        assert xnet.weights.sha256(net) == before, name
    with pytest.raises(error, match=f"^x {message}"), xnet.use_backend(backend):
        sigmoid(x)
    with pytest.raises(error, match=f"^W {message}"), xnet.use_backend(backend):
        Affine.from_params(x, np.zeros(4))


LABELS = np.eye(3)[T]


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("use", ["loss", "accuracy", "gradient", "train_step", "train"])
def test_kinds_of_labels_make_no_difference(backend, use, planned):
    """One-hot labels as an encoder's matrix gave an accuracy of 36.9."""
    expected = flat(backend, USES[use](network(backend, planned), X, T))
    for kind, t in {
        "list": T.tolist(),
        "bytes": T.astype("uint8"),
        "other byte order": T.astype(T.dtype.newbyteorder()),
        "one-hot": LABELS,
        "one-hot whole numbers": LABELS.astype(int),
        "one-hot truths": LABELS.astype(bool),
        "matrix": matrix(LABELS),
        "matrix of whole numbers": matrix(LABELS.astype(int)),
        "masked, nothing hidden": masked(T, False),
    }.items():
        found = flat(backend, USES[use](network(backend, planned), X, t))
        np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=kind)


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("use", ["loss", "accuracy", "gradient", "train_step", "train"])
def test_labels_that_would_lose_something_are_refused(backend, use, planned):
    for t, error in {
        "complex": (LABELS + 0j, TypeError),
        "objects": (LABELS.astype(object), TypeError),
        "strings": (LABELS.astype(str), TypeError),
        "masked": (masked(T, True), ValueError),
        "masked one-hot": (masked(LABELS, True), ValueError),
    }.values():
        with pytest.raises(error, match=r"^t (is|has)"):
            USES[use](network(backend, planned), X, t)


def test_accuracy_of_an_encoders_matrix_on_digits():
    (x, t), (x_test, t_test) = load_digits()
    net = xnet.Network([Affine(64, 10)], backend="numpy")
    xnet.train(net, x, t, iterations=300)
    expected = net.accuracy(x_test, t_test)
    assert 0.8 < expected <= 1
    assert net.accuracy(x_test, matrix(np.eye(10)[t_test])) == expected


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_layers_take_ordinary_arrays_alone(name):
    """A layer converts nothing: it says what it got, and what makes an array of that."""
    with xnet.use_backend(name):
        layer = Affine.from_params(np.ones((4, 2)), np.zeros(2))
        for x, kind in [
            (X.astype(X.dtype.newbyteorder()), "ndarray of [<>]f8"),
            (matrix(X), "matrix of float64"),
            (masked(X, False), "MaskedArray of float64"),
        ]:
            for call in (layer, layer.forward, ReLU()):
                with pytest.raises(TypeError, match=f"x is a {kind}, expected an array of"):
                    call(x)


def test_layers_parameters_are_ordinary_arrays():
    W, b = np.arange(8.0).reshape(4, 2), np.array([1.0, -1.0])
    expected = Affine.from_params(W, b)(X)
    for kind in (
        (W.tolist(), b.tolist()),
        (W.astype(int), [1, -1]),
        (matrix(W), b),
        (W.astype(W.dtype.newbyteorder()), masked(b, False)),
    ):
        layer = Affine.from_params(*kind)
        assert all(type(array) is np.ndarray for array in layer.params.values())
        np.testing.assert_array_equal(layer(X), expected)


def test_a_backends_own_way_in(backend):
    """`asarray` loses nothing, either, and names what it got."""
    with backend.running():
        np.testing.assert_array_equal(backend.to_numpy(backend.asarray(matrix(X))), X)
        for values, error, message in REFUSED.values():
            with pytest.raises(error, match=f"^values {message}"):
                backend.asarray(values, "float64")
            with pytest.raises(error, match=f"^bias {message}"):
                backend.asarray(values, "float64", "bias")


def test_a_list_goes_where_the_arrays_are():
    with xnet.use_backend("numba"):
        y = xnet.resolve("strict").asarray([0.1, 0.2, 0.7])
        assert xnet.resolve("strict").owns(losses.mean_squared_error(y, [0, 0, 1]))
        assert xnet.resolve("strict").owns(losses.cross_entropy_error(y, 2))


def test_an_ordinary_array_is_not_copied():
    assert arrays.plain(X, "x") is X
    assert np.shares_memory(arrays.plain(matrix(X), "x"), X)
