"""What every test shares: the backends, the registries' operations, and the data."""

import dataclasses
import gc
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import cuda_on_host
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# A backend registers by its package's metadata; this folder holds a test-only one as installed.
sys.path.insert(0, str(Path(__file__).parent / "packages"))

import xnet
from xnet import datasets, operations, optimizers
from xnet.layers import Layer, layer_class

# Every registered one takes part that can run here; of the others the report's head says why not.
BACKENDS = tuple(info.name for info in xnet.backends() if info.usable)
ON_HOST = "cupy, its kernels on the host"
# A shell starts what runs in the background with Ctrl-C ignored, and tests send themselves one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DTYPES = ("float32", "float64")

REGISTERED = tuple(operations.registered().values())
"""Every operation, before a test defines one of its own."""

OPTIMIZERS = tuple(optimizers.OPTIMIZERS.values())
"""Every optimizer, likewise."""

SIZES = (6, 4)
"""What operations with sizes get for them, in order: inputs, and outputs if there are such."""


def variants(*kinds, altered=True):
    """Operations of these kinds, all if none is named: as they are, and with other numbers."""
    found = []
    for cls in REGISTERED:
        if kinds and cls.fuses not in kinds:
            continue
        fields = dataclasses.fields(cls)
        sizes = [field.name for field in fields if field.default is dataclasses.MISSING]
        required = dict(zip(sizes, SIZES, strict=False))
        found.append(cls(**required))
        numbers = {f.name: 0.7 * f.default + 0.05 for f in fields if type(f.default) is float}
        if altered and numbers:
            found.append(cls(**required, **numbers))
    return found


PEAK_MEMORY = r"""
import re
from pathlib import Path

def peak_memory():
    # Not getrusage, which tells a child of its parent's peak. 0 where the system does not say it.
    status = Path("/proc/self/status")
    return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) << 10 if status.exists() else 0
"""
"""For programs that tests run: the most memory that this one has had, in bytes."""

LAYER_KINDS = ("product", "pointwise", "rows", None)
"""What `fuses` says of operations that are layers."""


def make_layer(operation, backend, rng, dtype="float64"):
    """The layer of an operation, its parameters normal numbers that take part in everything."""
    layer = Layer.of(operation)
    for name, sizes in operation.parameters.items():
        shape = [getattr(operation, size) for size in sizes]
        layer.params[name] = backend.asarray(rng.normal(size=shape), dtype)
    layer.initialize(rng, dtype, backend)
    return layer


def make_loss(operation):
    """The loss layer of a loss."""
    layer = layer_class(type(operation))()
    layer.operation = operation
    return layer


def smooth(x, *operations, margin=0.01):
    """`x` moved away from where these have kinks, and from 0, where slopes' slopes jump."""
    for kink in {0.0, *(kink for operation in operations for kink in operation.kinks)}:
        x = np.where(abs(x - kink) < margin, kink + np.copysign(2 * margin, x - kink), x)
    return x


property_settings = settings(
    max_examples=30,
    deadline=None,  # the first example may compile a kernel
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # `backend` serves all examples
)


@pytest.fixture
def registered_alone(monkeypatch):
    """The registries as in a process of its own, without the classes that tests define."""
    for registry, kinds in (
        (operations.OPERATIONS, REGISTERED),
        (optimizers.OPTIMIZERS, OPTIMIZERS),
    ):
        for name in [name for name, kind in registry.items() if kind not in kinds]:
            monkeypatch.delitem(registry, name)


REGISTRIES = operations.OPERATIONS, optimizers.OPTIMIZERS
OF_MODULES = {}
"""What each test module registers of its own when it is imported, by its path."""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """What a module of tests defines is registered for its own tests, and no others'."""
    before = [dict(registry) for registry in REGISTRIES]
    report = yield
    if isinstance(collector, pytest.Module):
        OF_MODULES[collector.path] = [
            {name: kind for name, kind in registry.items() if name not in kept}
            for registry, kept in zip(REGISTRIES, before, strict=True)
        ]
        restore(before)
    return report


def restore(before):
    for registry, kept in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(kept)


@pytest.fixture(autouse=True)
def _registries(request):
    """What a test defines is forgotten after it."""
    before = [dict(registry) for registry in REGISTRIES]
    for registry, own in zip(REGISTRIES, OF_MODULES.get(request.path, ({}, {})), strict=True):
        registry.update(own)
    yield
    restore(before)


@pytest.fixture
def ctrl_c():
    """For tests in which one comes at any moment.

    No garbage is collected: JAX and Hypothesis watch that, and what is raised there is lost.
    What was current is so again, see `xnet.backend.Current`, and NumPy as silent as it was, see
    `xnet_numpy.Silence`.
    """
    before = xnet.backend._current.get()
    gc.disable()
    with np.errstate():
        yield
    gc.enable()
    xnet.backend._current.set(before)


@pytest.fixture(scope="session", autouse=True)
def _strict_flags():
    """Let the strict namespace copy to NumPy, as every backend can."""
    import array_api_strict

    array_api_strict.set_array_api_strict_flags(api_version="2024.12")


def missing(reason):
    """Skip for want of data; fail where XNET_REQUIRE_MNIST=1 says that they must be there."""
    if os.environ.get("XNET_REQUIRE_MNIST") == "1":
        pytest.fail(f"{reason}, but XNET_REQUIRE_MNIST=1")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def mnist():
    """((x_train, t_train), (x_test, t_test)) of the real MNIST, raw pixels; never downloads it."""
    if not os.environ.get("XNET_DATA_DIR"):
        cache = datasets._cache_folder()
        if not all(datasets._find(name, cache) for name in datasets._MNIST):
            missing(f"MNIST is not here: XNET_DATA_DIR is not set, and {cache} does not hold it")
    return datasets.load_mnist(normalize=False)


@pytest.fixture(scope="session")
def sample_weight():
    """The notes' trained 784-50-100-10 weights, a pickle."""
    path = Path(os.environ.get("XNET_DATA_DIR", "")) / "sample_weight.pkl"
    if not path.is_file():
        missing("the notes' sample_weight.pkl is not in XNET_DATA_DIR")
    return path


@pytest.fixture(params=[*BACKENDS, ON_HOST])
def backend(request, monkeypatch):
    """Each usable backend in turn, as the current one, and CUDA without a GPU."""
    if request.param == ON_HOST:
        require_host_cuda(monkeypatch)
    with xnet.use_backend(request.param.partition(",")[0]) as current:
        yield current


def require_host_cuda(monkeypatch):
    """Make the stand-in for CuPy, which runs CUDA kernels on the host, what cupy is."""
    require_tool(cuda_on_host.COMPILER, cuda_on_host.NO_COMPILER)
    return cuda_on_host.install(monkeypatch)


def require_tool(found, reason, variable="XNET_REQUIRE_CUDA_TOOLS"):
    """Skip where a compiler, or a browser, is missing; fail where the variable says it is there."""
    if found is None:
        if os.environ.get(variable) == "1":
            pytest.fail(f"{reason}, but {variable}=1")
        pytest.skip(reason)


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def assert_close(backend, actual, expected, ulps=4.0):
    """`actual`, an array of `backend`, within `ulps` units in the last place of `expected`."""
    actual = backend.to_numpy(actual)
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    eps = np.finfo(actual.dtype).eps
    error = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    assert (error <= ulps * eps * np.maximum(np.abs(expected), np.finfo(actual.dtype).tiny)).all()


MOST = 100
"""Cases of a test that a sample takes."""


def pytest_addoption(parser):
    parser.addoption(
        "--every-case",
        action="store_true",
        help="run every case of every test, as continuous integration does, and the slow ones; "
        "`pytest` alone takes a sample, tests that are asked for by name run whole",
    )


def pytest_configure(config):
    """Who names tests, or says which, means all of their cases."""
    named = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    told = getattr(config, "workerinput", {}).get("every_case")
    asked = named or bool(config.option.keyword or config.option.markexpr)
    config.option.every_case |= asked if told is None else told


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """A worker is told what the whole run is asked for."""
    node.workerinput["every_case"] = node.config.option.every_case


def sample(items):
    """Of each test so many cases that each value of a parameter is in one, at most `MOST`."""
    kept, seen, counts = set(), set(), Counter()
    for item in random.Random(0).sample(items, len(items)):  # else all are of the first backend
        values = item.callspec.params if hasattr(item, "callspec") else {}
        test = item.nodeid.partition("[")[0]
        new = {(test, None), *((test, name, repr(value)) for name, value in values.items())} - seen
        if new and counts[test] < MOST and not item.get_closest_marker("slow"):
            seen |= new
            counts[test] += 1
            kept.add(item)
    return kept


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Who names no tests gets a sample of their cases."""
    if config.option.every_case:
        return
    kept = sample(items)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_report_header(config):
    """The backends that are left out, once each, and that cases are."""
    said = [f"no tests on {info.name}: {info.reason}" for info in xnet.backends() if info.reason]
    if not config.option.every_case:
        said.append(
            "a sample of the cases, each value of a parameter once if it can be; all: --every-case"
        )
    return said


def pytest_terminal_summary(terminalreporter):
    """Say how much was not tested for want of a GPU."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and "cupy: " in report.longrepr[2]
    ]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests were skipped for want of a GPU: {skipped[0].longrepr[2]}"
        )


def pytest_collection_finish():
    """What is there by now stays: the collector need not look at thousands of tests again."""
    gc.collect()
    gc.freeze()
