"""scikit-learn's own checks of its estimators, and what users do with them."""

import io
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

import xnet

pytest.importorskip("sklearn", "1.6", reason="scikit-learn 1.6 is not installed")

from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_diabetes, load_iris
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from xnet.sklearn import XNetClassifier, XNetRegressor

ESTIMATORS = XNetClassifier, XNetRegressor
QUICK = {
    **{"hidden_layer_sizes": (8,), "epochs": 30, "batch_size": 20},
    **{"learning_rate": 0.01, "random_state": 0},
}
IRIS = load_iris(return_X_y=True)


@parametrize_with_checks([cls() for cls in ESTIMATORS])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.fixture
def iris():
    X, y = IRIS
    return (X - X.mean(axis=0)) / X.std(axis=0), y


@pytest.fixture(scope="module")
def tables():
    return pytest.importorskip("pandas")


def test_a_pipeline_of_tables_and_texts(tables):
    data = load_iris(as_frame=True)
    labels = data.target.map(dict(enumerate(data.target_names)))
    model = make_pipeline(StandardScaler(), XNetClassifier(**QUICK)).set_output(transform="pandas")
    model.fit(data.data, labels)
    assert model.score(data.data, labels) > 0.9
    assert list(model.classes_) == ["setosa", "versicolor", "virginica"]
    assert list(model[-1].feature_names_in_) == data.feature_names
    assert set(model.predict(data.data[:3])) <= set(model.classes_)
    with pytest.raises(ValueError, match="feature names should match"):
        model[-1].predict(data.data.rename(columns=str.upper))


@pytest.mark.slow
def test_a_search_by_two_processes(iris):
    grid = {"hidden_layer_sizes": [(), (8,)], "activation": ["relu", "tanh"]}
    search = GridSearchCV(XNetClassifier(**QUICK), grid, n_jobs=2, cv=3).fit(*iris)
    assert search.best_score_ > 0.9
    again = GridSearchCV(XNetClassifier(**QUICK), grid, cv=3).fit(*iris)
    assert list(search.cv_results_["mean_test_score"]) == list(again.cv_results_["mean_test_score"])


def test_cross_validation_and_calibration(iris):
    assert cross_val_score(XNetClassifier(**QUICK), *iris, cv=3).mean() > 0.9
    model = CalibratedClassifierCV(XNetClassifier(**QUICK), cv=3).fit(*iris)
    assert model.score(*iris) > 0.9


def test_what_is_pickled_predicts_the_same(iris):
    joblib = pytest.importorskip("joblib")
    X, y = iris
    for cls in ESTIMATORS:
        model = cls(**QUICK).fit(X, y)
        file = io.BytesIO()
        joblib.dump(model, file)
        file.seek(0)
        for copy in (pickle.loads(pickle.dumps(model)), joblib.load(file)):
            np.testing.assert_array_equal(copy.predict(X), model.predict(X))
            copy.partial_fit(X, y)  # it goes on
            model_on = pickle.loads(pickle.dumps(model)).partial_fit(X, y)
            np.testing.assert_array_equal(copy.predict(X), model_on.predict(X))
        assert clone(model).get_params() == model.get_params()
        assert not hasattr(clone(model), "network_")


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_what_lies_in_a_file_predicts_and_goes_on(iris, cls, tmp_path):
    joblib = pytest.importorskip("joblib")
    X, y = iris
    model = cls(**QUICK).fit(X, y)
    joblib.dump(model, tmp_path / "model")
    mapped = joblib.load(tmp_path / "model", mmap_mode="r")
    np.testing.assert_array_equal(mapped.predict(X), model.predict(X))
    before = (tmp_path / "model").read_bytes()
    again = joblib.load(tmp_path / "model")
    for one in (mapped, again):
        one.partial_fit(X, y)
    np.testing.assert_array_equal(mapped.predict(X), again.predict(X))
    assert (tmp_path / "model").read_bytes() == before


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_what_is_refused_changes_nothing(iris, cls):
    X, y = iris
    new = cls(**QUICK)
    labels, classes = (np.full(len(X), 9), [[0, 1, 2]]) if cls is XNetClassifier else (y[:-1], [])
    with pytest.raises(ValueError, match=r"y holds 9|inconsistent numbers of samples"):
        new.partial_fit(X, labels, *classes)
    assert not hasattr(new, "network_")
    model = cls(**QUICK).fit(X, y)
    before, curve = model.predict(X), list(model.loss_curve_)
    with pytest.raises(ValueError, match="epochs is 0"):
        model.set_params(epochs=0).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), before)
    assert (model.loss_curve_, model.n_iter_) == (curve, 30)


def test_what_is_certain_has_a_logarithm(iris):
    X, y = iris
    model = XNetClassifier(**QUICK | {"epochs": 3}).fit(X, y)
    assert np.isneginf(model.predict_log_proba(1e6 * X)).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backends_and_modes(iris, backend, dtype):
    X, y = iris
    settings = QUICK | {"epochs": 3, "backend": backend.name, "dtype": dtype, "reproducible": True}
    model = XNetClassifier(**settings).fit(X, y)
    assert model.network_.backend.name == backend.name
    assert model.predict_proba(X).dtype == dtype
    on_numpy = XNetClassifier(**settings | {"backend": "numpy"}).fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), on_numpy.predict_proba(X))


def test_what_it_says_of_the_training(iris):
    model = XNetClassifier(**QUICK).fit(*iris)
    assert model.n_iter_ == len(model.loss_curve_) == 30
    assert model.loss_ == model.loss_curve_[-1] < model.loss_curve_[0] / 2
    np.testing.assert_allclose(model.loss_curve_[0], np.mean(model.history_.loss[:8]))
    stopped = XNetClassifier(**QUICK | {"epochs": 500, "validation": 0.2, "patience": 3}).fit(*iris)
    assert stopped.n_iter_ < 500
    assert stopped.history_.stopped == "early stop"


def test_the_same_seed_the_same_network(iris):
    X, y = iris
    made = [XNetClassifier(**QUICK | {"random_state": s}).fit(X, y) for s in (3, 3, 4)]
    first, same, other = (xnet.weights.sha256(model.network_) for model in made)
    assert first == same != other


def test_parts_one_after_the_other(iris):
    X, y = iris
    model = XNetClassifier(**QUICK)
    for _ in range(40):
        for part in (slice(0, None, 2), slice(1, None, 2)):
            model.partial_fit(X[part], y[part], classes=[0, 1, 2])
    assert model.score(X, y) > 0.9
    assert model.n_iter_ == len(model.loss_curve_) == 80
    with pytest.raises(ValueError, match="y holds 7, which is none of classes"):
        model.partial_fit(X, np.full(len(X), 7))
    with pytest.raises(ValueError, match=r"classes is \[0, 1\], it was"):
        model.partial_fit(X, y, classes=[0, 1])


def test_several_targets_in_their_own_units():
    X, y = load_diabetes(return_X_y=True)
    targets = np.column_stack([y, 1000 - 3 * y, np.full(len(y), 5.0)])
    model = XNetRegressor(**QUICK).fit(20 * X, targets)
    found = model.predict(20 * X)
    assert found.shape == targets.shape
    np.testing.assert_allclose(found[:, 2], 5.0, atol=0.5)
    assert r2_score(targets[:, :2], found[:, :2]) > 0.5
    one = XNetRegressor(**QUICK).fit(20 * X, y)
    assert one.predict(20 * X).shape == y.shape
    with pytest.raises(ValueError, match=r"y has shape \(442, 3\), expected \(N, \*\(\)\)"):
        one.partial_fit(X, targets)


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_weights_are_counts(iris, cls, rng):
    """In one batch: a weight of 3 as three samples, 0 as none, and all of them times 7 the same."""
    X, y = iris
    counts = rng.integers(0, 4, len(y))
    settings = QUICK | {"batch_size": 10**6, "optimizer": "sgd"}
    weighted = cls(**settings).fit(X, y, sample_weight=counts)
    repeated = cls(**settings).fit(np.repeat(X, counts, axis=0), np.repeat(y, counts))
    scaled = cls(**settings).fit(X, y, sample_weight=7.0 * counts)
    plain = cls(**settings).fit(X, y)
    ask = "predict_proba" if cls is XNetClassifier else "predict"
    found = [getattr(model, ask)(X) for model in (weighted, repeated, scaled, plain)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-9)
    assert abs(found[0] - found[3]).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamant"}, "optimizer is 'adamant', expected an Optimizer or sgd, "),
        ({"optimizer": xnet.optimizers.SGD(0.1)}, "are for an optimizer given"),
        ({"activation": "relux"}, "relux"),
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"patience": 3}, "patience is 3 without validation"),
        ({"validation": 1.5}, "validation is 1.5, expected a share"),
        ({"hidden_layer_sizes": (0,)}, "0"),
        ({"backend": "nunba"}, "did you mean 'numba'"),
        ({"optimizer": "sgd", "learning_rate": 1e9}, "the loss became .*StandardScaler"),
    ],
)
def test_parameters_out_of_range(iris, settings, message):
    with pytest.raises((ValueError, xnet.BackendError), match=message):
        XNetClassifier(**QUICK | settings).fit(*iris)


def test_labels_that_are_none(iris):
    X, y = iris
    with pytest.raises(ValueError, match="one class alone, 0"):
        XNetClassifier(**QUICK).fit(X[:50], y[:50])
    with pytest.raises(ValueError, match=r"y has shape \(150, 2\): one label for each sample"):
        XNetClassifier(**QUICK).fit(X, np.column_stack([y > 0, y > 1]))
    with pytest.raises(ValueError, match="classes is None, expected all labels"):
        XNetClassifier(**QUICK).partial_fit(X, y)


def test_ctrl_c_is_heard(iris, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(xnet.Network, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        XNetClassifier(**QUICK).fit(*iris)


def test_importing_xnet_imports_none_of_it():
    code = "import sys, xnet, xnet.training; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_scikit_learn_the_way_is_said(monkeypatch):
    monkeypatch.delitem(sys.modules, "xnet.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=re.escape('pip install "xnet-nn[sklearn]"')):
        import xnet.sklearn  # noqa: F401
