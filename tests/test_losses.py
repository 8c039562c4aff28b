import numpy as np
import pytest
from conftest import assert_close, property_settings
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet.dtypes import dtype_name
from xnet.errors import BackendError
from xnet.losses import cross_entropy_error, mean_squared_error

LOSSES = [mean_squared_error, cross_entropy_error]


def reference(loss, y, t):
    """The definition, in float64 over the batch's rows."""
    y, t = np.atleast_2d(y).astype(np.float64), np.atleast_2d(t).astype(np.float64)
    if loss is mean_squared_error:
        return 0.5 * ((y - t) ** 2).sum() / len(y)
    return -(t * np.log(y + 1e-7)).sum() / len(y)


@pytest.fixture
def y(rng, dtype):
    y = rng.random((5, 4))
    return (y / y.sum(axis=1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("loss", LOSSES)
def test_of_a_batch(backend, dtype, loss, y):
    labels = np.array([0, 3, 3, 1, 2])
    error = loss(backend.asarray(y), backend.asarray(labels))
    assert backend.owns(error)
    assert dtype_name(error.dtype) == dtype
    assert_close(backend, error, reference(loss, y, np.eye(4)[labels]), ulps=8)


@pytest.mark.parametrize("loss", LOSSES)
def test_of_one_sample(backend, loss, y):
    for label in range(4):
        error = loss(backend.asarray(y[0]), backend.asarray(label))
        assert error.shape == ()
        assert_close(backend, error, reference(loss, y[0], np.eye(4)[label]), ulps=8)
        as_batch = loss(backend.asarray(y[:1]), backend.asarray([label]))
        assert float(error) == float(as_batch)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["bool", "uint8", "int8", "int64", "float32", "float64"])
def test_one_hot_of_any_dtype_equals_class_indices(backend, dtype, loss, y, kind):
    labels = np.array([0, 3, 3, 1, 2])
    by_index = loss(backend.asarray(y), backend.asarray(labels))
    one_hot = loss(backend.asarray(y), backend.asarray(np.eye(4)[labels].astype(kind)))
    assert float(by_index) == float(one_hot)
    assert dtype_name(one_hot.dtype) == dtype


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["uint8", "int8", "int32", "uint64"])
@pytest.mark.parametrize("classes", [4, 128, 300])
def test_class_indices_of_any_integer_dtype(backend, loss, rng, kind, classes):
    """300 classes do not fit in a byte, but these labels do."""
    y, labels = rng.random((3, classes)), np.array([0, 3, 2])
    expected = loss(backend.asarray(y), backend.asarray(labels))
    error = loss(backend.asarray(y), backend.asarray(labels.astype(kind)))
    assert float(error) == float(expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_soft_targets(backend, loss, rng):
    y, t = rng.random((3, 4)), rng.random((3, 4))
    error = loss(backend.asarray(y), backend.asarray(t))
    assert_close(backend, error, reference(loss, y, t), ulps=8)


@property_settings
@given(n=st.integers(1, 6), classes=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_mean_over_the_batch(backend, n, classes, seed):
    rng = np.random.default_rng(seed)
    y, labels = rng.random((n, classes)), rng.integers(0, classes, n)
    for loss in LOSSES:
        error = float(loss(backend.asarray(y), backend.asarray(labels)))
        pairs = zip(y, labels.tolist(), strict=True)
        each = [float(loss(backend.asarray(a), backend.asarray(b))) for a, b in pairs]
        assert error == pytest.approx(sum(each) / n, rel=1e-13)
        assert error >= 0 or loss is cross_entropy_error  # where y is 1, log(1 + 1e-7) > 0


def test_cross_entropy_of_certainty(backend, dtype):
    y, t = backend.asarray([[1.0, 0.0]], dtype), backend.asarray([0])
    assert float(cross_entropy_error(y, t)) == pytest.approx(-1e-7, rel=0.2)
    # Sure and wrong: the 1e-7 keeps log from minus infinity.
    wrong = cross_entropy_error(y, backend.asarray([1]))
    assert float(wrong) == pytest.approx(-np.log(1e-7), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_inputs_are_not_changed(backend, loss, y):
    t = np.eye(4, dtype=y.dtype)[[0, 3, 3, 1, 2]]
    here_y, here_t = backend.asarray(y.copy()), backend.asarray(t.copy())
    loss(here_y, here_t)
    np.testing.assert_array_equal(backend.to_numpy(here_y), y)
    np.testing.assert_array_equal(backend.to_numpy(here_t), t)


@pytest.mark.parametrize("loss", LOSSES)
def test_labels_of_one_output_are_targets(backend, loss):
    """There is no second class that an index could name."""
    y = backend.asarray(np.array([[0.5], [0.25], [2.0]]))
    for t in (np.array([1.5, 0.0, 3.0]), np.array([0, 0, 1])):
        as_rows = [backend.asarray(a) for a in (t, t[:, None])]
        one, other = (float(loss(y, a)) for a in as_rows)
        assert one == other
    assert float(loss(y[0, ...], backend.asarray(np.array(0)))) != float(loss(y[0, ...], y[0, ...]))


# -- what is refused


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("y", "t", "message"),
    [
        (np.ones((3, 4)), np.ones((3, 5)), r"t has shape \(3, 5\), expected \(3, 4\) \(one-hot\)"),
        (np.ones((3, 4)), np.ones((3, 1)), r"t has shape \(3, 1\).* or \(3,\) \(class indices\)"),
        (np.ones((3, 4)), np.array(1), r"t has shape \(\), expected \(3, 4\)"),
        (np.ones(4), np.ones(3), r"expected \(4,\) \(one-hot\) or \(\) \(class indices\)"),
        (np.ones((3, 4)), np.array([0, 1]), "t has 2 labels, y has 3 samples"),
        (np.ones((3, 1)), np.ones(2), r"t has shape \(2,\), expected \(3, 1\) or \(3,\)$"),
        (np.ones((3, 4)), np.ones(3), "t has dtype float64, expected integer class indices"),
        (np.ones((3, 4)), np.array([0, 4, 1]), r"t has label 4, expected 0\.\.3"),
        (np.ones((3, 4)), np.array([0, -1, 1]), r"t has label -1, expected 0\.\.3"),
        (np.ones(4), np.array(4), r"t has label 4, expected 0\.\.3"),
        (np.ones((0, 4)), np.ones(0, int), r"y has shape \(0, 4\): the batch is empty"),
        (np.ones((3, 0)), np.ones((3, 0)), r"y has shape \(3, 0\)"),
        (np.ones(0), np.ones(0), r"y has shape \(0,\)"),
        (np.ones((2, 3, 4)), np.ones((2, 3, 4)), r"y has shape \(2, 3, 4\), expected \(C,\) or"),
        (np.array(1.0), np.array(1.0), r"y has shape \(\), expected \(C,\) or \(N, C\)"),
    ],
)
def test_misfits_are_refused(backend, loss, y, t, message):
    with pytest.raises(ValueError, match=message):
        loss(backend.asarray(y), backend.asarray(t))


@pytest.mark.parametrize("loss", LOSSES)
def test_lists_and_whole_numbers_are_taken(backend, loss):
    """As the notes' readers write them first."""
    y, t = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]]), np.array([2, 0])
    expected = float(loss(backend.asarray(y), backend.asarray(t)))
    assert float(loss(y.tolist(), t.tolist())) == expected
    assert float(loss(backend.asarray(y), np.eye(3, dtype=int)[t].tolist())) == expected
    assert float(loss(y.tolist(), backend.asarray(t))) == expected
    whole = backend.asarray(np.eye(3, dtype=int)[t])
    assert float(loss(whole, t.tolist())) == float(loss(np.eye(3)[t].tolist(), t.tolist()))
    with pytest.raises(TypeError, match="y is a str, expected an array"):
        loss("0.1", [1])


@pytest.mark.parametrize("loss", LOSSES)
def test_arrays_of_two_devices_are_refused(loss):
    with pytest.raises(BackendError, match="y is on numpy, t is on strict"):
        loss(np.ones((1, 2)), xnet.resolve("strict").asarray([1]))
