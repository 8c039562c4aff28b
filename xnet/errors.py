"""The exceptions and warnings a caller may want to catch.

A wrong argument is a plain ValueError or TypeError.
"""

from collections.abc import Generator
from contextlib import contextmanager

__all__ = [
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
]


class XnetError(Exception):
    """Base of the errors below.

    Examples
    --------
    >>> import xnet
    >>> try:
    ...     xnet.resolve("abacus")
    ... except xnet.XnetError as error:
    ...     print(type(error).__name__)
    BackendError
    """


class BackendError(XnetError, ValueError):
    """No such backend, a backend that cannot be used here, or arrays that are not its own.

    Examples
    --------
    >>> import xnet
    >>> xnet.resolve("nunpy")
    Traceback (most recent call last):
        ...
    xnet.errors.BackendError: unknown backend 'nunpy'; did you mean 'numpy'? ...
    """


class DatasetError(XnetError):
    """A dataset that cannot be found, read, downloaded or verified.

    Examples
    --------
    >>> import xnet
    >>> xnet.datasets.read("no-such-table.csv", label="kind")
    Traceback (most recent call last):
        ...
    xnet.errors.DatasetError: no-such-table.csv cannot be read: no such file or folder
    """


class WeightsError(XnetError):
    """A file of weights that cannot be read safely, or cannot be written.

    Examples
    --------
    >>> import xnet
    >>> xnet.weights.load_network("no-such-network.safetensors")
    Traceback (most recent call last):
        ...
    xnet.errors.WeightsError: no-such-network.safetensors cannot be read: ...
    """


class CheckpointError(XnetError):
    """A run that cannot be gone on with: other data or settings, or no checkpoint that is whole.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import xnet
    >>> x, t, net = np.array([[0.0], [1.0]]), np.array([0, 1]), xnet.TwoLayerNet(1, 2, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for _ in range(2):
    ...         history = xnet.train(net, x, t, checkpoint=folder, progress=False)
    Traceback (most recent call last):
        ...
    xnet.errors.CheckpointError: ... holds 1 of a run that got to step 1: resume goes on ...
    """


class CheckpointWarning(UserWarning):
    """A checkpoint that is damaged, in whose place the one before it is taken.

    Examples
    --------
    >>> import tempfile
    >>> import warnings
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import xnet
    >>> x, t = np.array([[0.0], [1.0]]), np.array([0, 1])
    >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    ...     warnings.simplefilter("error")
    ...     run = xnet.Training(xnet.TwoLayerNet(1, 2, 2), x, t, checkpoint=folder)
    ...     history = run.run(progress=False)
    ...     for file in Path(folder).iterdir():
    ...         _ = file.write_bytes(b"cut short")
    ...     xnet.Training(xnet.TwoLayerNet(1, 2, 2), x, t, checkpoint=folder, resume=True)
    Traceback (most recent call last):
        ...
    xnet.errors.CheckpointWarning: checkpoint ... is damaged, and left out: its bytes are not ...
    """


class RankError(XnetError):
    """Processes that compute together and do not agree, or of which one has failed.

    Examples
    --------
    >>> import xnet
    >>> xnet.distributed.communicator("everyone").__enter__()
    Traceback (most recent call last):
        ...
    TypeError: comm is 'everyone', expected a communicator of mpi4py such as MPI.COMM_WORLD
    """


class NonFiniteWarning(UserWarning):
    """A file of weights in which some are NaN or infinite.

    Examples
    --------
    >>> import tempfile
    >>> import warnings
    >>> import numpy as np
    >>> import xnet
    >>> net = xnet.TwoLayerNet(1, 2, 2, backend="numpy")
    >>> net.params["b1"][0] = np.nan
    >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    ...     warnings.simplefilter("error")
    ...     xnet.weights.save(net, f"{folder}/net.safetensors")
    ...     xnet.weights.load_network(f"{folder}/net.safetensors")
    Traceback (most recent call last):
        ...
    xnet.errors.NonFiniteWarning: ...: NaN or infinity in ['b1']: ...
    """


class RoundingWarning(UserWarning):
    """A numerical derivative in which rounding leaves little of the slope.

    Examples
    --------
    >>> import warnings
    >>> import xnet
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error")
    ...     xnet.numerical_diff(lambda x: x * x, 2.0, h=1e-50)
    Traceback (most recent call last):
        ...
    xnet.errors.RoundingWarning: h=1e-50 is lost in x + h: rounded, the step is wrong by ...
    """


class KinkWarning(UserWarning):
    """A numerical gradient across a kink, where it and the derivative need not agree.

    Examples
    --------
    >>> import warnings
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, weight_init_std=1.0, activation="relu")
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error")
    ...     xnet.gradient_check(net, [[0.0, 0.0], [1.0, -1.0], [2.0, 1.0]], [0, 1, 1])
    Traceback (most recent call last):
        ...
    xnet.errors.KinkWarning: gradient_check leaves out 1 of 3 samples: they lie at a kink, ...
    """


class NaiveGradientWarning(UserWarning):
    """A network's numerical gradient that has to evaluate every loss from the beginning.

    Examples
    --------
    >>> import warnings
    >>> import xnet
    >>> net = xnet.Network([xnet.layers.BatchNorm(2), xnet.layers.Affine(2, 2)])
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error")
    ...     net.numerical_gradient([[0.0, 1.0], [1.0, 0.0]], [0, 1])
    Traceback (most recent call last):
        ...
    xnet.errors.NaiveGradientWarning: BatchNorm(2, 0.9, 1e-05) may mix rows or keeps something: ...
    """


@contextmanager
def optional(what: str, package: str, extra: str = "datasets") -> Generator[None, None, None]:
    """Say how to install the package whose import fails inside."""
    try:
        yield
    except ImportError as error:
        raise DatasetError(
            f'{what} needs {package}: pip install "xnet-nn[{extra}]" ({error})'
        ) from error
