"""One place: equations written outside xnet do whatever xnet's own do.

`packages/extension` is a package of somebody's: an activation with a constant, a loss along rows
and an optimizer, in 40 lines. What is tried here follows from those lines alone.
"""

import importlib.util
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKENDS, ON_HOST, require_host_cuda
from test_parity import PEERS, as_they_are, make

import xnet
from xnet import layers, operations, optimizers, weights
from xnet.gradient_check import gradient_check
from xnet.network import Network
from xnet.operations import Affine
from xnet.testing import parity

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).parent / "packages" / "extension" / "xnet_extension.py"
EVERYWHERE = [*BACKENDS, ON_HOST, *PEERS]

__all__ = ["as_they_are"]  # a fixture of every test here, too


@pytest.fixture(scope="module")
def extension():
    """The module, its classes registered as long as these tests run."""
    spec = importlib.util.spec_from_file_location("xnet_extension", SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["xnet_extension"] = module
    registries = operations.OPERATIONS, optimizers.OPTIMIZERS
    before = [set(registry) for registry in registries]
    spec.loader.exec_module(module)
    yield module
    for registry, names in zip(registries, before, strict=True):
        for name in registry.keys() - names:
            del registry[name]
    del sys.modules["xnet_extension"]


@pytest.fixture
def anywhere(request, monkeypatch):
    """A function of the mode: the backend named by the parameter, or a skip that says why not."""
    if request.param == ON_HOST:
        require_host_cuda(monkeypatch)
    name = request.param.partition(",")[0]
    return lambda reproducible: make(name, reproducible)


everywhere = pytest.mark.parametrize("anywhere", EVERYWHERE, indirect=True)


def make_data(n=200):
    x = np.random.default_rng(0).standard_normal((n, 2))
    return x, (x[:, 0] > x[:, 1]).astype(np.int64)


def make_network(extension, **where):
    parts = [Affine(2, 8, "he"), extension.Softsign(0.5), Affine(8, 2, "he")]
    return Network(parts, extension.SquaredEntropy(), **where)


def train(network, extension, **settings):
    optimizer = extension.Signum(0.02, eps=0.01)
    settings = {"optimizer": optimizer, "batch_size": 20, "progress": False, **settings}
    return xnet.train(network, *make_data(), **settings)


def test_the_file_is_short_and_nothing_of_xnet_names_what_is_in_it(extension):
    source = SOURCE.read_text()
    assert len(source.splitlines()) <= 40
    names = re.findall(r"^class (\w+)", source, re.MULTILINE)
    assert len(names) == 3
    for path in [*(ROOT / "xnet").rglob("*"), *(ROOT / "backends").rglob("*")]:
        if path.suffix in (".py", ".cu"):
            assert not re.search("|".join(names), path.read_text(), re.IGNORECASE), path


def test_they_are_listed_and_layers(extension):
    known = operations.registered()
    assert {"Softsign", "SquaredEntropy"} <= set(known)
    assert optimizers.OPTIMIZERS["signum"] is extension.Signum
    assert layers.named("softsign", "pointwise") is layers.Softsign
    assert repr(layers.Softsign(c=2.0)) == "Softsign(2.0)"
    assert xnet.activations.softsign(np.array([1.0, -3.0]), c=1.0).tolist() == [0.5, -0.75]
    with pytest.raises(AttributeError):
        layers.Softsine  # noqa: B018


@everywhere
def test_they_train(anywhere, dtype, extension):
    network = make_network(extension, dtype=dtype, backend=anywhere(False))
    history = train(network, extension, epochs=10)
    assert history.train_accuracy[-1] >= 0.95
    assert np.mean(history.loss[-10:]) < np.mean(history.loss[:10]) / 4


@everywhere
def test_a_backend_takes_a_network_of_them_whole(anywhere, extension):
    for reproducible in (False, True):
        network = make_network(extension, backend=anywhere(reproducible))
        assert network._planned().whole is not None


@everywhere
def test_reproducible_weights_are_one(anywhere, dtype, extension):
    digests = set()
    for backend in (anywhere(True), xnet.resolve("numpy", reproducible=True)):
        network = make_network(extension, dtype=dtype, backend=backend)
        train(network, extension, iterations=8)
        digests.add(weights.sha256(network))
    assert len(digests) == 1


@everywhere
@pytest.mark.parametrize("reproducible", [True, False])
def test_parity_tries_them_with_a_bound_that_nobody_wrote(anywhere, dtype, reproducible, extension):
    kinds = {kind.__name__: kind for kind in (extension.Softsign, extension.SquaredEntropy)}
    known = [trial.name for trial in parity.trials({}, {})]
    trials = parity.trials(kinds, {"signum": extension.Signum})[len(known) :]
    assert [trial.name for trial in trials] == [
        "Softsign",
        "SquaredEntropy",
        "network, Softsign, SquaredEntropy",
        "numerical gradient, Softsign, SquaredEntropy",
        "optimizer Signum, 3 steps",
        "training by Signum, Softsign, SquaredEntropy",
    ]
    pair = anywhere(reproducible), xnet.resolve("numpy", reproducible=reproducible)
    for trial in trials:
        if dtype in trial.dtypes:
            v = parity.verdict(trial, *pair, dtype, parity.standard_normal())
            assert v.kept, (v.operation, v.share, v.error)


@everywhere
def test_the_numerical_gradient_is_incremental(anywhere, extension):
    network = make_network(extension, backend=anywhere(False))
    x, t = make_data(12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the naive one would be announced
        numerical, exact = network.numerical_gradient(x, t), network.gradient(x, t)
    to_numpy = network.backend.to_numpy
    for name, gradient in exact.items():
        assert np.abs(to_numpy(numerical[name]) - to_numpy(gradient)).max() < 1e-7


@pytest.mark.parametrize("backend", ["numpy", "numba"], indirect=True)
def test_gradient_check_passes(backend, extension):
    assert gradient_check(make_network(extension), *make_data(20)).passed


def test_they_are_saved_and_loaded(backend, dtype, extension, tmp_path):
    network = make_network(extension, dtype=dtype)
    train(network, extension, iterations=5, save=tmp_path / "net")
    loaded = weights.load_network(tmp_path / "net")
    assert repr(loaded.layers) == "[Affine(2, 8), Softsign(0.5), Affine(8, 2)]"
    assert isinstance(loaded.loss_layer.operation, extension.SquaredEntropy)
    assert weights.sha256(loaded) == weights.sha256(network)
    x, _ = make_data(7)
    before, after = (backend.to_numpy(net.predict(x)) for net in (network, loaded))
    assert before.tobytes() == after.tobytes()
