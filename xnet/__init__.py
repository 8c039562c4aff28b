"""xnet: a neural network you can read in one sitting, on NumPy, Numba or CuPy.

Importing it imports no array library: each is imported by the first thing that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xnet import activations, gradient, layers, losses, measures, operations, optimizers, perceptron
from xnet.backend import (
    Backend,
    BackendInfo,
    backends,
    get_backend,
    resolve,
    set_backend,
    use_backend,
)
from xnet.errors import (
    BackendError,
    DatasetError,
    KinkWarning,
    NaiveGradientWarning,
    NonFiniteWarning,
    RoundingWarning,
    WeightsError,
    XnetError,
)
from xnet.gradient import (
    gradient_descent,
    numerical_diff,
    numerical_gradient,
    partial_derivative,
)
from xnet.gradient_check import gradient_check
from xnet.network import Network, TwoLayerNet
from xnet.threads import num_threads, set_num_threads

if TYPE_CHECKING:
    from xnet import datasets, random, training, weights
    from xnet.training import History, Training, train

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendError",
    "BackendInfo",
    "DatasetError",
    "History",
    "KinkWarning",
    "NaiveGradientWarning",
    "Network",
    "NonFiniteWarning",
    "RoundingWarning",
    "Training",
    "TwoLayerNet",
    "WeightsError",
    "XnetError",
    "activations",
    "backends",
    "datasets",
    "get_backend",
    "gradient",
    "gradient_check",
    "gradient_descent",
    "layers",
    "losses",
    "measures",
    "num_threads",
    "numerical_diff",
    "numerical_gradient",
    "operations",
    "optimizers",
    "partial_derivative",
    "perceptron",
    "random",
    "resolve",
    "set_backend",
    "set_num_threads",
    "train",
    "training",
    "use_backend",
    "weights",
]


def __getattr__(name: str) -> Any:
    # These are imported when asked for: they import NumPy, for work on the host.
    if name in ("datasets", "random", "training", "weights"):
        return import_module(f"xnet.{name}")
    if name in ("train", "Training", "History"):
        return getattr(import_module("xnet.training"), name)
    raise AttributeError(f"module 'xnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
