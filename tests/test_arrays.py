"""What a network and functions of arrays make of what they are handed: the one door.

`docs/arrays.md` says it, kind by kind; its tables are what is tried.
"""

import importlib
import importlib.util
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKENDS, ON_HOST, require_host_cuda
from test_docs import blocks, rows
from test_parity import PEERS, make

import xnet
from xnet import arrays, losses
from xnet.activations import sigmoid
from xnet.datasets import load_digits
from xnet.layers import Affine, ReLU

PAGE = Path(__file__).parents[1] / "docs" / "arrays.md"
DATA, LABELS = ([row[1:] for row in rows(PAGE, f"{kind} |")] for kind in ("data", "labels"))
REFUSED = {
    "complex": (np.ones((2, 2)) + 0j, TypeError, "is complex128, expected real numbers"),
    "None within": ([[None, 1.0]], TypeError, "is object, expected real numbers"),
    "masked": (np.ma.masked_array([1, 2], [1, 0]), ValueError, "has masked elements"),
    "masked row": ([np.ma.masked_array([1, 2], [1, 0]), [1, 2]], ValueError, "has masked"),
    "ragged": ([[1, 2, 3, 4], [1, 2]], ValueError, "makes no array: .*inhomogeneous"),
    "nothing": (None, TypeError, "is a NoneType, expected an array of a usable backend"),
}

REFUSALS = (TypeError, ValueError, xnet.BackendError)

X = np.arange(24.0).reshape(6, 4) / 8


def matrix(values):
    """A matrix, which NumPy itself advises against."""
    with warnings.catch_warnings(action="ignore"):
        return np.asmatrix(values)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A function of a cell: what its code gives, or None where its library is not installed."""
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks(PAGE)[0].text, names)

    def value(cell):
        code = cell.strip("`")
        for name in re.findall(r"\b[a-z0-9_]+(?=\.)", code):
            if name not in names and importlib.util.find_spec(name):
                names[name] = importlib.import_module(name)
        with warnings.catch_warnings(action="ignore"):  # of matrices, and of beta states
            try:
                return eval(code, names)
            except NameError as error:
                if error.name not in PEERS:
                    raise
                return None

    value.names = names
    return value


def network(backend):
    return xnet.Network([Affine(4, 5), ReLU(), Affine(5, 3)], backend=backend)


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


@pytest.fixture(params=[*BACKENDS, ON_HOST, *PEERS])
def anywhere(request, monkeypatch):
    """Each usable backend in turn, as the current one, those of other vendors' libraries too."""
    if request.param == ON_HOST:
        require_host_cuda(monkeypatch)
    with xnet.use_backend(make(request.param.partition(",")[0], False)) as current:
        yield current


def outcome(cell):
    """What a cell says: how it is refused, or that it is taken, and as what."""
    said = re.match(r"(taken as it is|copied|refused)(?:[:,] .*?`(.*)`)?", cell)
    assert said, cell
    return said[1], said[2]


def tried(backend, use, x, t, refused=None, planned=False):
    """The numbers that a use gives of x and t; none if it is refused, as it must be."""
    net = network(backend)
    if planned:
        net.predict(np.ones((1, 4)))
    if refused is None:
        return flat(backend, USES[use](net, x, t))
    before = xnet.weights.sha256(net)
    with pytest.raises(REFUSALS) as caught:
        USES[use](net, x, t)
    assert refused in str(caught.value), use
    assert xnet.weights.sha256(net) == before, use
    return []


def found_in(page, table, backend):
    """Of each row whose library is here: its number, code, value, how it is taken, and a text."""
    for k, (code, cell) in enumerate(table):
        (how, text), value = outcome(cell), page(code)
        missing = value is None and code != "`None`"
        # What a backend owns is its own business, but for labels that are none.
        if not missing and (how != "refused" or not backend.owns(value) or "dtype" in text):
            yield k, code, value, how, text


def test_the_table_of_data(anywhere, page):
    X, T = page.names["X"], page.names["T"]
    expected = {use: tried(anywhere, use, X, T) for use in USES}
    activated = flat(anywhere, sigmoid(anywhere.asarray(X)))
    for k, code, x, how, text in found_in(page, DATA, anywhere):
        refused = text if how == "refused" else None
        for use in USES:
            found = tried(anywhere, use, x, T, refused, k % 2)
            np.testing.assert_allclose(found, expected[use][: len(found)], 1e-12, err_msg=code)
        if refused is None:
            y = sigmoid(x)
            assert anywhere.owns(y) or not anywhere.owns(x), code
            np.testing.assert_allclose(np.asarray(y).ravel(), activated, 3e-3, err_msg=code)
            continue
        for name, call in {"x": sigmoid, "W": lambda x: Affine.from_params(x, [0] * 4)}.items():
            with pytest.raises(REFUSALS) as caught:
                call(x)
            assert re.match(rf"{name}\b", str(caught.value)), code
            assert name != "x" or text in str(caught.value), code


def test_the_table_of_labels(anywhere, page):
    X, T = page.names["X"], page.names["T"]
    for k, code, t, how, text in found_in(page, LABELS, anywhere):
        refused = text if how == "refused" else None
        other = T if text is None or refused else page(text)
        for use in ("loss", "accuracy", "gradient", "train_step", "numerical_gradient", "train"):
            found = tried(anywhere, use, X, t, refused, k % 2)
            expected = tried(anywhere, use, X, other)[: len(found)]
            np.testing.assert_allclose(found, expected, 1e-12, err_msg=code)


@pytest.mark.parametrize(("table", "door"), [(DATA, arrays.on_host), (LABELS, arrays.labels)])
def test_what_is_taken_as_it_is_is_not_copied(page, table, door):
    """Twice over the door, it is the same memory; a copy would be two."""
    for code, cell in table:
        how, _ = outcome(cell)
        value = page(code)
        if value is None or how == "refused":
            continue
        once, again = (arrays.on_host(door(value, "x"), "x") for _ in range(2))
        if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
            # A library may keep the copy that it made.
            again = np.from_dlpack(value)
        assert type(once) is np.ndarray, code
        assert np.shares_memory(once, again) == (how == "taken as it is"), code


def test_what_else_takes_tables(page):
    """Columns by themselves, the check of gradients, and the functions of losses and measures."""
    x, t = page("pandas.DataFrame(X)"), page('pandas.Series(NAMES, dtype="category")')
    X, T = page.names["X"], page.names["T"]
    y = network("numpy").predict(X)
    assert xnet.gradient_check(network("numpy"), x, t).passed
    assert losses.cross_entropy_error(y, t) == losses.cross_entropy_error(y, T)
    assert xnet.measures.accuracy(x.iloc[:, :3], t) == xnet.measures.accuracy(X[:, :3], T)
    row = network("numpy").predict(x.iloc[1])  # a series is a sample
    assert np.array_equal(row, network("numpy").predict(X[1]))


def test_what_speaks_arrow_alone_takes_pyarrow(page, monkeypatch):
    table = page("OnlyArrow(polars.DataFrame(X))")
    series = page('OnlyArrow(polars.Series("a", X[:, 0]))')
    assert np.array_equal(arrays.on_host(series, "x"), page.names["X"][:, 0])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TypeError, match="x is a OnlyArrow, which takes PyArrow: pip install"):
        arrays.on_host(table, "x")


def test_no_library_is_imported_to_look(page):
    code = (
        "import sys, numpy as np, xnet; net = xnet.TwoLayerNet(4, 3, 2); x = np.ones((2, 4), 'f4');"
        "net.predict(x); net.predict(memoryview(x)); net.loss(x, [True, False]);"
        "print([m for m in ('pandas', 'polars', 'pyarrow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
            (np.ma.masked_array(X), "MaskedArray of float64"),
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
        (W.astype(W.dtype.newbyteorder()), np.ma.masked_array(b)),
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
