# pyright: basic
"""Networks as scikit-learn's estimators: `XNetClassifier` and `XNetRegressor`.

They go where its estimators go: pipelines, searches, cross-validation, calibration, pickles.
"""

import contextlib
import copy
from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np

from xnet.backend import resolve
from xnet.layers import Affine, IdentityWithLoss, Layer, LossLayer, SoftmaxWithLoss, named
from xnet.network import Network
from xnet.optimizers import OPTIMIZERS, Optimizer
from xnet.training import Training

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state, column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f'xnet.sklearn needs scikit-learn 1.6 or newer: pip install "xnet-nn[sklearn]" ({error})'
    ) from error

__all__ = ["XNetClassifier", "XNetRegressor"]


class _Estimator(BaseEstimator):
    """What both have in common: Affine layers with activations between, trained by `Training`."""

    n_features_in_: int

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (100,),
        activation: str = "relu",
        *,
        optimizer: str | Optimizer = "adam",
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        weight_init: str | float = "he",
        epochs: int = 200,
        batch_size: int = 200,
        validation: float | None = None,
        patience: int | None = None,
        random_state: Any = None,
        dtype: str = "float64",
        backend: str | None = None,
        reproducible: bool | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.weight_init = weight_init
        self.epochs = epochs
        self.batch_size = batch_size
        self.validation = validation
        self.patience = patience
        self.random_state = random_state
        self.dtype = dtype
        self.backend = backend
        self.reproducible = reproducible

    # -- what both do around their targets

    def _begin(self, outputs: int, loss: LossLayer) -> None:
        """A new network and a new optimizer, of these parameters."""
        sizes = self.hidden_layer_sizes
        sizes = [sizes] if isinstance(sizes, int | np.integer) else list(sizes)
        activation, widths = named(self.activation, "pointwise"), [self.n_features_in_, *sizes]
        layers: list[Layer] = []
        for inputs, units in pairwise(widths):
            layers += [Affine(inputs, units, self.weight_init), activation()]
        layers.append(Affine(widths[-1], outputs, self.weight_init))
        backend = resolve(self.backend, self.reproducible)
        if backend.ranks.size > 1:
            raise ValueError(
                f"backend is {backend}: an estimator knows the data of one rank alone, classes and "
                "all; xnet.train is for those of many"
            )
        self._random = check_random_state(self.random_state)
        self.network_ = Network(
            layers,
            loss,
            seed=self._seed(),
            dtype=self.dtype,
            backend=backend,
        )
        self.optimizer_ = self._optimizer()
        self.loss_curve_: list[float] = []
        self.n_iter_ = 0

    @contextlib.contextmanager
    def _whole(self) -> Generator[None]:
        """Block that leaves the estimator as it was if it raises: fitted as before, or not."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def _take_over(self) -> None:
        """Have arrays of its own to go on with: joblib's may be those of a file."""
        for layer in self.network_.layers:
            for of in (layer.params, layer.state):
                of.update({name: _owned(array) for name, array in of.items()})
        for arrays in self.optimizer_.memory.values():
            arrays[:] = map(_owned, arrays)

    def _seed(self) -> int:
        return int(self._random.randint(2**31 - 1))

    def _optimizer(self) -> Optimizer:
        if isinstance(self.optimizer, Optimizer):
            if (self.learning_rate, self.weight_decay) != (None, None):
                raise ValueError(
                    "learning_rate and weight_decay are for an optimizer given by name"
                )
            return copy.deepcopy(self.optimizer)
        if self.optimizer not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            raise ValueError(f"optimizer is {self.optimizer!r}, expected an Optimizer or {known}")
        given = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        return OPTIMIZERS[self.optimizer](**{k: v for k, v in given.items() if v is not None})

    def _train(self, X: Any, t: Any, sample_weight: Any, epochs: int, **chosen: Any) -> Self:
        """Go on for so many epochs with what `_begin` made."""
        self._take_over()
        if sample_weight is not None:
            counts = sample_weight > 0  # a sample that does not count is not there
            X, t, sample_weight = X[counts], t[counts], sample_weight[counts]
        training = Training(
            self.network_,
            X,
            t,
            optimizer=self.optimizer_,
            batch_size=min(self.batch_size, len(X)),
            sample_weight=sample_weight,
            seed=self._seed(),
            **chosen,
        )
        self.history_ = history = training.run(epochs=epochs, progress=False)
        if history.stopped == "diverged":
            raise ValueError(
                f"the loss became {history.loss[-1]}: features of about 1 (StandardScaler) or a "
                "smaller learning_rate may help"
            )
        if history.stopped == "interrupted":
            raise KeyboardInterrupt
        ends = [0, *history.epoch_ends]
        self.loss_curve_ += [float(np.mean(history.loss[a:b])) for a, b in pairwise(ends)]
        self.loss_ = self.loss_curve_[-1]
        self.n_iter_ += len(history.epoch_ends)
        return self

    def _fit(self, X: Any, t: Any, sample_weight: Any) -> Self:
        return self._train(
            X, t, sample_weight, self.epochs, validation=self.validation, patience=self.patience
        )

    def _checked(self, X: Any) -> Any:
        """The features of samples to be predicted."""
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=self.dtype)

    def _weights(self, sample_weight: Any, X: Any) -> Any:
        if sample_weight is None:
            return None
        found = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not found.any():
            raise ValueError("sample_weight holds nothing but zeros: no class, no number counts")
        return found

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")


def _owned(array: Any) -> Any:
    return np.array(array) if isinstance(array, np.memmap) else array


class XNetClassifier(ClassifierMixin, _Estimator):
    """A classifier: a stack of Affine layers with activations, softmax and cross-entropy.

    Parameters
    ----------
    hidden_layer_sizes
        Units of each hidden layer; () for none.
    activation
        After each hidden layer: the name of a pointwise operation, ``"relu"``, ``"tanh"``, ...
    optimizer
        The name of an optimizer, ``"adam"``, ``"sgd"``, ..., or an `Optimizer`, of which a copy
        steps.
    learning_rate, weight_decay
        Of an optimizer given by name; None for its own, and for none. A decay of a / `batch_size`
        is what scikit-learn's networks do with alpha = a.
    weight_init
        Initial weights: ``"he"``, ``"xavier"`` or a standard deviation.
    epochs
        Passes over the training data, at most.
    batch_size
        Samples in a mini-batch, at most.
    validation
        Share of the training data, between 0 and 1, that is held back to choose the epoch that is
        kept; None to train on all.
    patience
        Stop after so many epochs no better in validation; needs `validation`.
    random_state
        For initial weights and mini-batches, as everywhere in scikit-learn: an int, a
        ``RandomState``, or None for fresh ones every time.
    dtype
        ``"float64"`` or ``"float32"``, of parameters and data.
    backend
        Name of the backend, as ``"numba"``; None for the current one.
    reproducible
        Whether the same bits come from every backend; None for the current mode.

    Attributes
    ----------
    network_
        The trained `Network`.
    n_features_in_, feature_names_in_
        Number of features, and their names where X was a table with names.
    loss_curve_
        The loss of each epoch: the mean over its mini-batches.
    loss_
        The last of them.
    n_iter_
        Epochs that were trained.
    history_
        `History` of the last call of `fit` or `partial_fit`.
    classes_
        The labels, sorted: which column of `predict_proba` is whose.

    Notes
    -----
    Features should be of about 1: put a ``StandardScaler`` before it. A `sample_weight` of 2 counts
    as the sample twice, one of 0 as none.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from xnet.sklearn import XNetClassifier
    >>> X, y = load_wine(return_X_y=True)
    >>> network = XNetClassifier((20,), learning_rate=0.01, epochs=50, random_state=0)
    >>> model = make_pipeline(StandardScaler(), network)
    >>> bool(model.fit(X, y).score(X, y) > 0.95)
    True
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new network.

        Parameters
        ----------
        X
            Samples (N, D): an array, or a table, whose column names are kept.
        y
            Labels (N,), numbers or strings.
        sample_weight
            How often each sample counts, (N,); None for once each.

        Returns
        -------
        self
            Fitted.

        Raises
        ------
        ValueError
            Data that scikit-learn refuses (NaN, infinity, sparse matrices, ...), one class alone,
            or a parameter out of its range; also where the loss became infinite.
        """
        with self._whole():
            X, y = validate_data(self, X, y, dtype=self.dtype, multi_output=True)
            labels, sample_weight = self._labels(y), self._weights(sample_weight, X)
            self._choose(np.unique(labels if sample_weight is None else labels[sample_weight > 0]))
            self._begin(len(self.classes_), SoftmaxWithLoss())
            return self._fit(X, np.searchsorted(self.classes_, labels), sample_weight)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """One more epoch, on these samples.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes
            All labels that there will be; needed in the first call alone.

        Returns
        -------
        self
            Fitted further.

        Raises
        ------
        ValueError
            As in `fit`; also a label that is none of `classes`, or no `classes` at first.

        Examples
        --------
        >>> import numpy as np
        >>> from xnet.sklearn import XNetClassifier
        >>> X, y = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array(["left", "right"])
        >>> model = XNetClassifier((4,), learning_rate=0.1, random_state=0)
        >>> for _ in range(20):
        ...     model = model.partial_fit(X, y, classes=["left", "right"])
        >>> model.predict(X).tolist(), model.n_iter_
        (['left', 'right'], 20)
        """
        with self._whole():
            first = not hasattr(self, "network_")
            X, y = validate_data(self, X, y, reset=first, dtype=self.dtype, multi_output=True)
            labels, sample_weight = self._labels(y), self._weights(sample_weight, X)
            if first:
                if classes is None:
                    raise ValueError(
                        "classes is None, expected all labels in the first partial_fit"
                    )
                self._choose(np.unique(classes))
                self._begin(len(self.classes_), SoftmaxWithLoss())
            elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
                raise ValueError(
                    f"classes is {classes!r}, it was {self.classes_!r} in the first call"
                )
            unknown = np.setdiff1d(labels, self.classes_)
            if len(unknown):
                raise ValueError(f"y holds {unknown[0]}, which is none of classes")
            return self._train(X, np.searchsorted(self.classes_, labels), sample_weight, 1)

    def _labels(self, y: Any) -> Any:
        check_classification_targets(y)
        if y.ndim > 1:
            if y.shape[1] > 1:
                raise ValueError(f"y has shape {y.shape}: one label for each sample is expected")
            y = column_or_1d(y, warn=True)
        return y

    def _choose(self, classes: Any) -> None:
        if len(classes) < 2:
            raise ValueError(
                f"y holds one class alone, {classes[0]}: a classifier needs two or more"
            )
        self.classes_ = classes

    def predict_proba(self, X: Any) -> Any:
        """Probabilities of the classes (N, C) for samples (N, D).

        Parameters
        ----------
        X
            Samples (N, D).

        Returns
        -------
        ndarray
            (N, C), of the dtype of the network; columns as in ``classes_``.

        Examples
        --------
        >>> import numpy as np
        >>> from xnet.sklearn import XNetClassifier
        >>> X, y = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array(["left", "right"])
        >>> model = XNetClassifier((4,), epochs=100, random_state=0).fit(X, y)
        >>> p = model.predict_proba(X)
        >>> p.shape, p.sum(axis=1).round(6).tolist()
        ((2, 2), [1.0, 1.0])
        """
        X = self._checked(X)
        return self.network_.backend.to_numpy(self.network_.predict(X))

    def predict_log_proba(self, X: Any) -> Any:
        """Their logarithms, (N, C)."""
        with np.errstate(divide="ignore"):  # of what is certain it is -inf
            return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> Any:
        """The most probable label of each sample, (N,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]


class XNetRegressor(RegressorMixin, _Estimator):
    """A regression: a stack of Affine layers with activations, and the squared error.

    Parameters and attributes are those of `XNetClassifier`, but for `classes_`. Targets are
    standardised for the training (mean 0 and standard deviation 1 for each, weighted as the samples
    are), and predictions are in the targets' own units.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from xnet.sklearn import XNetRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = XNetRegressor((20,), epochs=100, batch_size=50, random_state=0).fit(10 * X, y)
    >>> bool(model.score(10 * X, y) > 0.5)
    True
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new network.

        Parameters
        ----------
        X
            Samples (N, D): an array, or a table, whose column names are kept.
        y
            Numbers (N,), or several for each sample (N, K).
        sample_weight
            How often each sample counts, (N,); None for once each.

        Returns
        -------
        self
            Fitted.

        Raises
        ------
        ValueError
            As in `XNetClassifier.fit`.
        """
        with self._whole():
            X, y = self._taken(X, y, True)
            sample_weight = self._weights(sample_weight, X)
            self._scale(y, sample_weight)
            self._begin(self._mean.size, IdentityWithLoss())
            return self._fit(X, self._scaled(y), sample_weight)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """One more epoch, on these samples; how targets are scaled is as the first call found it.

        Parameters and errors as in `fit`.
        """
        with self._whole():
            first = not hasattr(self, "network_")
            X, y = self._taken(X, y, first)
            sample_weight = self._weights(sample_weight, X)
            if first:
                self._scale(y, sample_weight)
                self._begin(self._mean.size, IdentityWithLoss())
            elif y.shape[1:] != self._shape:
                raise ValueError(f"y has shape {y.shape}, expected (N, *{self._shape})")
            return self._train(X, self._scaled(y), sample_weight, 1)

    def _taken(self, X: Any, y: Any, first: bool) -> tuple[Any, Any]:
        X, y = validate_data(
            self, X, y, reset=first, dtype=self.dtype, multi_output=True, y_numeric=True
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y.astype(self.dtype)

    def _scale(self, y: Any, sample_weight: Any) -> None:
        self._shape = y.shape[1:]
        columns = y.reshape(len(y), -1)
        self._mean = np.average(columns, axis=0, weights=sample_weight)
        squares = np.average((columns - self._mean) ** 2, axis=0, weights=sample_weight)
        self._std = np.where(squares > 0, np.sqrt(squares), 1.0)

    def _scaled(self, y: Any) -> Any:
        return (y.reshape(len(y), -1) - self._mean) / self._std

    def predict(self, X: Any) -> Any:
        """Numbers (N,) for samples (N, D), or (N, K) where there were several targets."""
        X = self._checked(X)
        found = self.network_.backend.to_numpy(self.network_.predict(X))
        return (found * self._std + self._mean).reshape(len(X), *self._shape)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
