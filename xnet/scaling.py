"""How the input and the targets are scaled: found on training data, kept in the network itself.

For the input that is a `Normalization` layer before the first. Of targets that are numbers the
network learns such of mean 0 and standard deviation 1, and its last layer then gives them in their
own units.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnet.backend import resolve
from xnet.layers import Layer
from xnet.network import Network
from xnet.operations import Normalization

__all__ = ["moments", "normalization", "pixels", "unscale"]

Floats = NDArray[np.float64]

BLOCK = 1 << 20
"""Numbers that are looked at a time."""


def normalization(x: Any) -> Layer:
    """A layer that scales each column to mean 0 and standard deviation 1, as x has them.

    Parameters
    ----------
    x
        Training data (N, D), and nothing of validation or test data: an array of NumPy, or what
        gives one by ``x[start:stop]``.

    Returns
    -------
    Layer
        Of `Normalization`; it goes before a network's first layer. A column that is constant
        becomes 0.

    Raises
    ------
    ValueError
        No samples, or numbers that are not finite or too large for their squares.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([[1.0, 5.0], [3.0, 5.0]])
    >>> layer = xnet.scaling.normalization(x)
    >>> layer.mean.tolist(), layer.std.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    >>> layer(x).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    return _layer(*moments(x))


def pixels(features: int) -> Layer:
    """A layer that scales bytes, 0 to 255, to between 0 and 1: pixels are of one scale.

    Parameters
    ----------
    features
        How many bytes a sample has.

    Returns
    -------
    Layer
        Of `Normalization`; it goes before a network's first layer.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> xnet.scaling.pixels(3)(np.array([[0.0, 51.0, 255.0]])).tolist()
    [[0.0, 0.2, 1.0]]
    """
    return _layer(np.zeros(features), np.full(features, 255.0))


def _layer(mean: Floats, std: Floats) -> Layer:
    layer = Layer.of(Normalization(len(mean)))
    layer.state.update(mean=mean, std=std)
    return layer


def moments(x: Any) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each column of x (N, D), (D,) both.

    The standard deviation of the samples, sqrt(sum((x - mean)^2) / N), but 1 where a column is
    constant. The same bits on every processor: sums are those of reproducible mode.

    Parameters
    ----------
    x
        As in `normalization`.

    Returns
    -------
    mean, std
        float64, (D,) both.

    Raises
    ------
    ValueError
        As in `normalization`.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> mean, std = xnet.scaling.moments(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> mean.tolist(), std.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """
    if not len(x):
        raise ValueError("x has no samples")
    first, backend = np.asarray(x[:1], np.float64), resolve("numpy", reproducible=True)
    rows = max(1, BLOCK // max(1, first.shape[1]))

    def mean_of(f: Callable[[Floats], Floats]) -> Floats:
        found: Any = np.zeros(first.shape[1])
        for start in range(0, len(x), rows):
            found = found + backend.sum(f(np.asarray(x[start : start + rows], np.float64)), axis=0)
        return found / len(x)

    with backend.running():
        mean = mean_of(lambda part: part)
        varies = mean_of(lambda part: (part != first).astype(np.float64)) > 0
        std = np.sqrt(mean_of(lambda part: (part - mean) * (part - mean)))
    if not np.isfinite(std).all():
        column = int(np.flatnonzero(~np.isfinite(std))[0])
        raise ValueError(f"x: column {column} holds NaN, infinity or too large a number to scale")
    # What float32 takes for zero counts as constant, too.
    return mean, np.where(varies & (std > np.finfo(np.float32).tiny), std, 1.0)


def unscale(network: Network, mean: Floats, std: Floats) -> None:
    """Have a network that has learnt (t - mean) / std give t: its last layer does it.

    Parameters
    ----------
    network
        It ends in an `Affine` layer, of which W becomes W std, and b b std + mean.
    mean, std
        (C,), as `moments` gives them.

    Raises
    ------
    ValueError
        Its last layer is none.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> from xnet.layers import Affine, IdentityWithLoss
    >>> net = xnet.Network([Affine(2, 1)], IdentityWithLoss(), seed=0)
    >>> x, mean, std = np.ones((1, 2)), np.array([100.0]), np.array([10.0])
    >>> expected = net.predict(x) * std + mean
    >>> xnet.scaling.unscale(net, mean, std)
    >>> bool(np.allclose(net.predict(x), expected))
    True
    """
    layer, backend = network.layers[-1], network.backend
    if layer.opaque or layer.operation is None or layer.operation.fuses != "product":
        raise ValueError(f"{layer} is the last layer, expected one of products, as Affine")
    *_, W, b = network.params
    by, to = (backend.asarray(a, network.dtype) for a in (std, mean))
    with backend.running():
        network.params[W] = network.params[W] * by
        network.params[b] = network.params[b] * by + to
