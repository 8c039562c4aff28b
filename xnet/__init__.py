"""xnet: a neural network you can read in one sitting, on NumPy, Numba or CuPy.

Importing it imports neither an array library nor most of xnet: each part is imported by the first
thing that needs it.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xnet import (
        activations,
        backend,
        clipping,
        datasets,
        distributed,
        formulas,
        gradient,
        layers,
        losses,
        measures,
        onnx,
        operations,
        optimizers,
        parquet,
        partials,
        perceptron,
        perturbation,
        plan,
        plotting,
        progress,
        random,
        ranks,
        reproducible,
        samples,
        scaling,
        schedules,
        schema,
        testing,
        training,
        weights,
    )
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
        CheckpointError,
        CheckpointWarning,
        DatasetError,
        KinkWarning,
        NaiveGradientWarning,
        NonFiniteWarning,
        RankError,
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
    from xnet.gradient_check import GradientCheck, ParameterCheck, Verdict, gradient_check
    from xnet.network import Network, TwoLayerNet
    from xnet.threads import num_threads, set_num_threads
    from xnet.training import History, Training, train

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendError",
    "BackendInfo",
    "CheckpointError",
    "CheckpointWarning",
    "DatasetError",
    "GradientCheck",
    "History",
    "KinkWarning",
    "NaiveGradientWarning",
    "Network",
    "NonFiniteWarning",
    "ParameterCheck",
    "RankError",
    "RoundingWarning",
    "Training",
    "TwoLayerNet",
    "Verdict",
    "WeightsError",
    "XnetError",
    "activations",
    "backend",
    "backends",
    "clipping",
    "datasets",
    "distributed",
    "formulas",
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
    "onnx",
    "operations",
    "optimizers",
    "parquet",
    "partial_derivative",
    "partials",
    "perceptron",
    "perturbation",
    "plan",
    "plotting",
    "progress",
    "random",
    "ranks",
    "reproducible",
    "resolve",
    "samples",
    "scaling",
    "schedules",
    "schema",
    "set_backend",
    "set_num_threads",
    "testing",
    "train",
    "training",
    "use_backend",
    "weights",
]

_HOMES = {
    "backend": (
        "Backend",
        "BackendInfo",
        "backends",
        "get_backend",
        "resolve",
        "set_backend",
        "use_backend",
    ),
    "errors": (
        "BackendError",
        "CheckpointError",
        "CheckpointWarning",
        "DatasetError",
        "KinkWarning",
        "NaiveGradientWarning",
        "NonFiniteWarning",
        "RankError",
        "RoundingWarning",
        "WeightsError",
        "XnetError",
    ),
    "gradient": (
        "gradient_descent",
        "numerical_diff",
        "numerical_gradient",
        "partial_derivative",
    ),
    "gradient_check": ("GradientCheck", "ParameterCheck", "Verdict", "gradient_check"),
    "network": ("Network", "TwoLayerNet"),
    "threads": ("num_threads", "set_num_threads"),
    "training": ("History", "Training", "train"),
}
"""What of a module is a name of the package's; modules are names by themselves."""

_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    module = f"xnet.{_HOME.get(name, name)}"
    if name.startswith("_"):
        raise AttributeError(f"module 'xnet' has no attribute {name!r}")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise AttributeError(f"module 'xnet' has no attribute {name!r}") from None
    if name in _HOME:
        found = globals()[name] = getattr(found, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The package, in which a function named as its module stays one when that is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        # What sends functions to other processes knows how to send modules, but not this kind.
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
