"""xnet.measures: accuracy where there are classes, R² where there are none."""

import math

import numpy as np
import pytest

import xnet
from xnet.measures import accuracy, r_squared
from xnet.network import Network
from xnet.operations import BinaryCrossEntropy, IdentityWithLoss


def fixed(outputs: int, loss=None) -> Network:
    """Its scores are its input."""
    eye = xnet.layers.Affine.from_params(np.eye(outputs), np.zeros(outputs))
    return Network([eye], loss)


def test_accuracy_of_classes(backend):
    y = backend.asarray(np.array([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]))
    t = np.array([1, 0, 1, 1])
    for labels in (t, np.eye(2)[t]):
        assert accuracy(y, backend.asarray(labels)) == 0.75
    softened = backend.asarray(np.eye(2)[t] * 0.8 + 0.1)
    assert accuracy(y, softened, classes=True) == 0.75
    with pytest.raises(ValueError, match="targets that are not one-hot, so there are no classes"):
        accuracy(y, softened)
    with pytest.raises(ValueError, match="targets that are not one-hot, so there are no classes"):
        accuracy(y[:1, ...], softened[:1, ...])


def test_a_sample_with_nan_is_not_right(backend):
    """And says nothing of the others."""
    y = backend.asarray(np.array([[math.nan, 0.9], [0.2, 0.8], [0.6, math.nan], [0.7, 0.3]]))
    assert accuracy(y, backend.asarray(np.array([0, 1, 0, 0]))) == 0.5
    assert accuracy(y, backend.asarray(np.array([1, 1, 1, 0]))) == 0.5


@pytest.mark.parametrize("loss", [IdentityWithLoss(), BinaryCrossEntropy()], ids=repr)
def test_a_network_without_classes_has_no_accuracy(backend, loss):
    """Of one output the largest is always the labelled one: 1.0, whatever it says."""
    net = fixed(1, loss)
    for t in ([5.0, 7.0], [5, 7], [[0.0], [1.0]], [[1.0], [1.0]]):
        with pytest.raises(ValueError, match=r"^accuracy: one output, .*r_squared") as refused:
            net.accuracy([[764.0], [3.0]], t)
        assert len(str(refused.value)) < 400
    with pytest.raises(ValueError, match=r"^accuracy: targets that are not one-hot"):
        fixed(2, loss).accuracy([[1.0, 2.0], [3.0, 0.0]], [[1.0, 0.0], [0.0, 0.5]])


def test_a_network_of_classes_has_one_whatever_its_loss(backend):
    x, t = [[1.0, 2.0], [3.0, 0.0], [3.0, 4.0]], [1, 1, 1]
    for loss in (None, IdentityWithLoss()):
        assert fixed(2, loss).accuracy(x, t) == fixed(2, loss).accuracy(x, np.eye(2)[t]) == 2 / 3
    assert fixed(2).accuracy(x, np.full((3, 2), [0.2, 0.8])) == 2 / 3


def test_r_squared(backend, dtype, rng):
    t = rng.standard_normal((50, 2)).astype(dtype)
    y = t + 0.1 * rng.standard_normal((50, 2)).astype(dtype)
    expected = 1 - ((t - y) ** 2).sum() / ((t - t.mean(axis=0)) ** 2).sum()
    there, predicted = backend.asarray(t), backend.asarray(y)
    found = r_squared(predicted, there)
    assert type(found) is float
    assert found == pytest.approx(expected, rel=1e-5 if dtype == "float32" else 1e-13)
    assert r_squared(there, there) == 1
    mean = backend.asarray(np.broadcast_to(t.mean(axis=0), t.shape).copy())
    assert r_squared(mean, there) == pytest.approx(0, abs=1e-6)
    one = backend.asarray(y[:, :1].copy()), backend.asarray(t[:, 0].copy())
    assert r_squared(*one) == r_squared(one[0], backend.asarray(t[:, :1].copy()))


def test_r_squared_is_that_of_scikit_learn(rng):
    metrics = pytest.importorskip("sklearn.metrics")
    t = rng.standard_normal((50, 3)) * [1, 10, 100]
    y = t + rng.standard_normal((50, 3))
    expected = metrics.r2_score(t, y, multioutput="variance_weighted")
    assert r_squared(y, t) == pytest.approx(expected, rel=1e-13)


def test_targets_that_do_not_vary_have_none(backend):
    """0.1 in the mean of three is not 0.1 to the bit: a spread of 0 is not to be trusted."""
    y, t = backend.asarray(np.array([[0.1], [0.2], [0.3]])), backend.asarray(np.full((3, 1), 0.1))
    assert math.isnan(r_squared(y, t))
    assert math.isnan(r_squared(y[:1, ...], t[:1, ...]))
