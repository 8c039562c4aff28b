"""Are `xnet.sklearn`'s estimators as good as scikit-learn's own networks, and at what cost?

Five sets that scikit-learn carries, features standardised, 5 folds times 24 seeds. Both have the
same hidden layer, activation, Adam with the same learning rate, weight decay, mini-batches and
epochs. Told are the mean accuracy (R² for diabetes), how much more ours is and that mean's standard
error, over the pairs, and the seconds of all the fits, in turns.

    python benchmarks/sklearn_mlp.py [--backend numba] [--threads 1]
"""

import argparse
import time
import warnings

import numpy as np
from bench import without_handicaps
from report import machine, save
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import xnet
from xnet.sklearn import XNetClassifier, XNetRegressor

HIDDEN, EPOCHS, BATCH, ALPHA = (50,), 60, 50, 1e-4
RATE = 0.005
SEEDS, FOLDS = 24, 5


def contenders(regression, seed, backend):
    """Both, made anew."""
    ours = XNetRegressor if regression else XNetClassifier
    theirs = MLPRegressor if regression else MLPClassifier
    return {
        "xnet": ours(
            hidden_layer_sizes=HIDDEN,
            learning_rate=RATE,
            weight_init="xavier",  # theirs is Glorot's, of the same size
            weight_decay=ALPHA / BATCH,
            epochs=EPOCHS,
            batch_size=BATCH,
            random_state=seed,
            backend=backend,
        ),
        "scikit-learn": theirs(
            hidden_layer_sizes=HIDDEN,
            learning_rate_init=RATE,
            alpha=ALPHA,
            max_iter=EPOCHS,
            n_iter_no_change=EPOCHS,
            tol=0.0,
            batch_size=BATCH,
            random_state=seed,
        ),
    }


def compare(load, backend):
    """Mean score and seconds of both, and how much more ours is."""
    X, y = load(return_X_y=True)
    regression = load is datasets.load_diabetes
    folds = (KFold if regression else StratifiedKFold)(FOLDS, shuffle=True, random_state=0)
    scores, seconds = {}, {}
    for seed in range(SEEDS):
        for train, test in folds.split(X, y):
            for name, estimator in contenders(regression, seed, backend).items():
                model = make_pipeline(StandardScaler(), estimator)
                began = time.perf_counter()
                model.fit(X[train], y[train])
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
                scores.setdefault(name, []).append(model.score(X[test], y[test]))
    more = np.subtract(scores["xnet"], scores["scikit-learn"])
    found = {
        name: {"score": float(np.mean(scores[name])), "seconds": round(seconds[name], 2)}
        for name in scores
    }
    return found | {"more": [float(more.mean()), float(more.std(ddof=1) / len(more) ** 0.5)]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    xnet.set_num_threads(options.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)  # it is meant to end so
    X, y = datasets.load_iris(return_X_y=True)
    XNetClassifier(epochs=1, backend=options.backend).fit(X, y)  # compiles
    XNetRegressor(epochs=1, backend=options.backend).fit(X, y)
    found = {}
    for name in ("digits", "wine", "breast_cancer", "iris", "diabetes"):
        found[name] = compare(getattr(datasets, f"load_{name}"), options.backend)
        print(
            f"{name:14}",
            *(
                f"{k} {v['score']:.4f} in {v['seconds']:6.2f} s "
                for k, v in found[name].items()
                if k != "more"
            ),
            "more: {:+.4f} ± {:.4f}".format(*found[name]["more"]),
        )
    facts = {"machine": machine(), "backend": options.backend, "results": found}
    save("sklearn_mlp", facts | {"threads": options.threads})


if __name__ == "__main__":
    without_handicaps()
    main()
