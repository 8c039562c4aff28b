"""What figures are drawn of where nobody says otherwise: computed on the spot, in a second."""

import contextlib
import math
import os
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnet import datasets
from xnet.backend import Backend, backends, resolve
from xnet.errors import DatasetError
from xnet.network import Network, TwoLayerNet
from xnet.operations import Affine, Tanh, registered
from xnet.optimizers import Adam
from xnet.random import Generator
from xnet.testing import parity
from xnet.training import History, Training, train

Split = tuple[NDArray[Any], NDArray[Any]]

STEPS = 450
"""Of a network that is trained on the spot: 30 epochs of the digits, less than one of MNIST."""

SAMPLES = 300
"""Points of the spirals."""


def spirals(n: int = SAMPLES, seed: int = 0) -> Split:
    """Two spirals that wind around each other: points (n, 2) and labels (n,), 0 or 1.

    No straight line parts them, and they are told apart by a small network. After Lang & Witbrock
    1988, Learning to tell two spirals apart.

    Parameters
    ----------
    n
        How many points, of each class alike.
    seed
        Of what is drawn at random.

    Returns
    -------
    x, t
        float64 (n, 2), and int64 (n,).

    Raises
    ------
    ValueError
        n is below 2.

    Examples
    --------
    >>> import xnet
    >>> x, t = xnet.plotting.spirals(6)
    >>> x.shape, t.tolist()
    ((6, 2), [0, 1, 0, 1, 0, 1])
    >>> x[0].round(2).tolist()
    [0.3, -0.87]
    """
    if n < 2:
        raise ValueError(f"n is {n}, expected at least 2")
    rng = Generator(seed)
    labels = np.arange(n) % 2
    turns = np.sqrt(rng.uniform((n,)))  # as many in each part of the area
    angles = 2 * math.pi * turns + math.pi * labels
    radii = 0.15 + turns
    x = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    return x + 0.06 * rng.normal((n, 2)), labels


@dataclass
class Material:
    """The data and the network that figures are drawn of; each is made when it is asked for.

    Parameters
    ----------
    dataset
        Name of a data set; None for digits, and for pictures of them MNIST where
        ``XNET_DATA_DIR`` has it.
    given
        A network for the data set; None trains one.
    backend
        Name or `Backend` that computes; None for the current one.
    picture
        Pixels that `image` shows; None for a photograph that comes with matplotlib.
    seed
        For the network, and for what is drawn at random.

    Examples
    --------
    >>> import xnet
    >>> material = xnet.plotting.Material(given=xnet.TwoLayerNet(64, 5, 10, seed=0))
    >>> figure = xnet.plotting.plots()["first-layer-weights"].draw(material)
    >>> len(figure.axes)  # a unit each, and the bar of colours
    6
    """

    dataset: str | None = None
    given: Network | None = None
    backend: str | Backend | None = None
    picture: Any = None
    seed: int = 0

    @cached_property
    def split(self) -> tuple[Split, Split]:
        """Training and test data."""
        return datasets.DATASETS[self.dataset or "digits"]()

    @cached_property
    def pictures(self) -> Split:
        """Pictures of digits, (N, D), with their labels."""
        if self.dataset is None and os.environ.get("XNET_DATA_DIR"):
            with contextlib.suppress(DatasetError):
                return datasets.load_mnist()[0]
        return self.split[0]

    @property
    def batch(self) -> Split:
        """A few training samples."""
        x, t = self.split[0]
        return x[:100], t[:100]

    @property
    def test(self) -> Split:
        """The test data."""
        return self.split[1]

    @cached_property
    def trained(self) -> tuple[Network, History | None]:
        """The network, and how its training went."""
        if self.given is not None:
            return self.given, None
        return self._train()

    def _train(self) -> tuple[Network, History]:
        (x, t), test = self.split
        sizes = x.shape[1], 50, int(t.max()) + 1
        network = TwoLayerNet(*sizes, "he", "relu", seed=self.seed, backend=self.backend)
        return network, train(
            network, x, t, *test, iterations=STEPS, seed=self.seed, progress=False
        )

    @property
    def network(self) -> Network:
        """The network."""
        return self.trained[0]

    @cached_property
    def history(self) -> History:
        """How training went; of a network that was given, of one like xnet's own."""
        return self.trained[1] or self._train()[1]

    @property
    def small(self) -> Network:
        """The network, if one was given; else one that its numerical gradient is quick for."""
        if self.given is not None:
            return self.given
        x, t = self.batch
        return TwoLayerNet(x.shape[1], 8, int(t.max()) + 1, "he", backend=self.backend)

    @cached_property
    def spirals(self) -> Split:
        """Points of two classes in the plane."""
        return spirals(seed=self.seed)

    def run_on_spirals(self) -> Training:
        """A training run that has not begun, of a network of two inputs."""
        layers = [Affine(2, 16, "xavier"), Tanh(), Affine(16, 16, "xavier"), Tanh()]
        network = Network([*layers, Affine(16, 2, "xavier")], seed=self.seed, backend=self.backend)
        return Training(network, *self.spirals, optimizer=Adam(0.01), batch_size=50)

    @cached_property
    def verdicts(self) -> parity.Verdicts:
        """What is computed alike on all backends here, or on the one that is named."""
        reference = resolve("numpy", False)
        names = [b.name for b in backends() if b.usable]
        chosen = [resolve(b, False) for b in (names if self.backend is None else [self.backend])]
        found = parity.Verdicts()
        kinds = registered()
        trials = [v for v in parity.trials() if v in parity.BASICS or v.name in kinds]
        for trial, backend in product(trials, chosen):
            if backend is not reference:
                draw = parity.numbers("normal", "float64", self.seed)
                found.append(parity.verdict(trial, backend, reference, "float64", draw))
        return found
