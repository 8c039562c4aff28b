"""One network, many workers: what `docs/clusters.md` says, by its module, in real processes."""

import importlib
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cloudpickle
import dask
import dask.array as da
import joblib
import numpy as np
import pytest
from conftest import PEAK_MEMORY, require_host_cuda
from joblib.externals.loky import get_reusable_executor
from test_docs import blocks

import xnet
from xnet.layers import Affine, BatchNorm, Dropout, ReLU

PAGE = Path(__file__).parents[1] / "docs" / "clusters.md"
N, WIDTH, CLASSES = 230, 20, 3
X = np.random.default_rng(0).normal(size=(N, WIDTH))
X[0, :4] = 1e-300, -1e300, np.nan, np.inf
MODES = ("numpy", True), ("numba", True), ("numpy", False), ("numba", False)


def network(backend, reproducible, hidden=30, width=WIDTH, dtype="float64"):
    """With something of every kind that a network keeps."""
    layers = [Affine(width, hidden, 0.3), BatchNorm(hidden), ReLU(), Dropout(0.2)]
    layers += [Affine(hidden, CLASSES, 0.3)]
    here = xnet.resolve(backend, reproducible)
    net = xnet.Network(layers, dtype=dtype, backend=here)
    rng = np.random.default_rng(1)
    net.train_step(
        rng.normal(size=(50, width)), rng.integers(0, CLASSES, 50), xnet.optimizers.SGD(0.1)
    )
    return net


def predicted(net, x):
    """The page's array of predictions."""
    return x.map_blocks(
        net.predict,
        chunks=(x.chunks[0], (CLASSES,)),
        dtype=net.dtype,
        meta=np.empty((0, 0), net.dtype),
    )


def same(net, found, expected):
    """Whether the bits are, or in fast mode the numbers within rounding."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if net.backend.reproducible:
        return found.tobytes() == expected.tobytes()
    eps = np.finfo(expected.dtype).eps
    return np.allclose(found, expected, rtol=200 * eps, atol=200 * eps, equal_nan=True)


# -- Dask


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("backend", "reproducible"), MODES)
def test_chunks_and_threads_are_not_seen(backend, reproducible, dtype):
    net = network(backend, reproducible, dtype=dtype)
    expected = net.predict(X)
    if reproducible:
        assert same(net, expected, network("numpy", True, dtype=dtype).predict(X))
    for rows in (1, 7, 100, N, (0, 3, 0, 200, 27)):
        x = da.from_array(X, chunks=(rows, WIDTH))
        for settings in ({"scheduler": "synchronous"}, {"scheduler": "threads", "num_workers": 4}):
            found = predicted(net, x).compute(**settings)
            assert same(net, found, expected), (rows, settings)
        assert same(net, net.predict(x), expected), rows


def test_predicting_leaves_nothing_in_the_network():
    """Dask names an array by what it is made of: the same network's is the same, another's not."""
    net, x = network("numpy", False), da.from_array(X, chunks=(50, WIDTH))
    before, name = pickle.dumps(net), predicted(net, x).name
    predicted(net, x).compute(num_workers=4)
    assert pickle.dumps(net) == before
    assert predicted(net, x).name == name
    net.train_step(X[1:], np.zeros(N - 1, int), xnet.optimizers.SGD(0.1))
    assert predicted(net, x).name != name


def test_rows_that_nobody_has_counted_are_predicted_in_their_chunks():
    net, x = network("numpy", True), da.from_array(X, chunks=(5, WIDTH))
    few = X[:, 5] > 1.5  # of some chunks none
    found = predicted(net, x[da.from_array(few, chunks=5)]).compute()
    assert same(net, found, net.predict(X[few]))


WRITE = f"""
import sys
import dask.array as da, numpy as np, zarr
import xnet
{PEAK_MEMORY}
WIDTH, ROWS, OUTPUTS = 8, 500_000, 64
layers = [xnet.layers.Affine(WIDTH, OUTPUTS, 0.1)]
net = xnet.Network(layers, xnet.layers.IdentityWithLoss(), dtype="float32")
x = da.zeros((ROWS, WIDTH), chunks=(20_000, WIDTH), dtype="uint8")

def write(rows):
    p = x[:rows].map_blocks(
        net.predict,
        chunks=(x[:rows].chunks[0], (OUTPUTS,)),
        dtype=net.dtype,
        meta=np.empty((0, 0), net.dtype),
    )
    p.to_zarr(f"{{sys.argv[1]}}/{{rows}}.zarr")
    return peak_memory()

first = write(100_000)
print(write(ROWS) - first)
found = zarr.open_array(f"{{sys.argv[1]}}/{{ROWS}}.zarr")
assert found.shape == (ROWS, OUTPUTS) and found.nbytes == 128_000_000
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says VmHWM")
def test_what_is_written_in_parts_is_held_in_parts(tmp_path):
    """128 MB of predictions, of which a chunk has 5."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WRITE, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40e6


# -- processes


@pytest.fixture
def scoring(tmp_path, monkeypatch):
    """The page's module, beside one that makes every process do its share."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = next(block.text for block in blocks(PAGE) if block.text.startswith("# scoring.py"))
    (tmp_path / "scoring.py").write_text(text)
    (tmp_path / "shares.py").write_text(SHARES)
    yield importlib.import_module("scoring")
    for name in ("scoring", "shares"):
        sys.modules.pop(name, None)


SHARES = """
import numpy, threadpoolctl, xnet
import scoring

def start(backends, reproducible, meeting):
    global together
    together = meeting
    scoring.start(backends, reproducible)

def facts():
    blas = [p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    return xnet.get_backend().label, {xnet.resolve("numba").threads(), *blas}

def share(x, path):
    together.wait(120)  # no process takes the next one before all have one
    return facts(), scoring.score(x, path)

def sent(net, x):
    together.wait(120)
    return net.backend.label, net.predict(x)
"""


def test_processes_of_two_backends_give_the_bits_of_one(scoring):
    """Each reads the network, or is sent it; each computes on one thread."""
    import shares

    net = network("numpy", True)
    xnet.weights.save(net, "net.safetensors")
    spawn, parts = multiprocessing.get_context("spawn"), np.array_split(X, 4)
    backends = spawn.Queue()
    for name in ("numpy", "numba"):
        backends.put(name)
    settings = (backends, True, spawn.Barrier(2))
    with ProcessPoolExecutor(2, spawn, shares.start, settings) as pool:
        found = list(pool.map(shares.share, parts, ["net.safetensors"] * 4))
        there = list(pool.map(shares.sent, [net] * 2 + [network("numba", True)] * 2, parts))
    assert sorted(facts for facts, _ in found) == [("numba", {1})] * 2 + [("numpy", {1})] * 2
    assert [label for label, _ in there] == ["numpy"] * 2 + ["numba"] * 2
    for results in (found, there):
        assert same(net, np.concatenate([y for _, y in results]), net.predict(X))


def test_from_a_gpu_predictions_come_back(scoring, monkeypatch):
    """CuPy's stand-in has one device current for all threads, CuPy itself for each its own."""
    net = network("numpy", True)
    xnet.weights.save(net, "net.safetensors")
    require_host_cuda(monkeypatch)
    chunks = da.from_array(X, chunks=(100, WIDTH))
    with xnet.use_backend("cupy:1", reproducible=True):
        found = chunks.map_blocks(
            scoring.score, path="net.safetensors", dtype=net.dtype, meta=np.empty((0, 0), net.dtype)
        ).compute(scheduler="synchronous")
    assert scoring.network("net.safetensors").backend.label == "cupy:1"
    assert type(found) is np.ndarray
    assert same(net, found, net.predict(X))


def test_joblib_maps_large_weights_and_shares_out_the_processors():
    """It sends weights of more than 1 MB as maps of a file that nobody may write to."""
    nets = [network(backend, True, hidden=400, width=400) for backend in ("numpy", "numba")]
    assert nets[0].params["W1"].nbytes > 1e6
    x = np.random.default_rng(0).normal(size=(400, 400))

    def look(net, part):  # a function of a notebook, say: it is sent, and what it names with it
        writeable = net.params["W1"].flags.writeable
        y = net.predict(part)
        net.train_step(part, np.zeros(len(part), int), xnet.optimizers.SGD(0.1))
        return writeable, xnet.resolve("numba").threads(), y, xnet.weights.sha256(net)

    look.__module__ = "__main__"
    parts = [x[:200], x[200:]]
    jobs = [joblib.delayed(look)(net, part) for net in nets for part in parts]
    try:
        found = joblib.Parallel(n_jobs=2)(jobs)
    finally:
        get_reusable_executor().shutdown(wait=True)  # no other test has its processes
    writeable, threads, y, hashes = zip(*found, strict=True)
    assert not any(writeable)
    assert set(threads) == {max(1, joblib.cpu_count() // 2)}
    for rows in (y[:2], y[2:]):
        assert same(nets[0], np.concatenate(rows), nets[0].predict(x))
    here = [look(pickle.loads(pickle.dumps(nets[0])), part)[-1] for part in parts]
    assert list(hashes) == here * 2


@pytest.mark.slow
def test_dasks_own_processes():
    net, x = network("numba", True), da.from_array(X, chunks=(60, WIDTH))
    with dask.config.set({"multiprocessing.context": "spawn"}):
        found = predicted(net, x).compute(scheduler="processes", num_workers=2)
    assert same(net, found, net.predict(X))


def test_the_package_goes_where_functions_go_that_name_it():
    assert pickle.loads(pickle.dumps(xnet)) is xnet

    def of_here():
        return xnet

    of_here.__module__ = "__main__"  # whose functions cloudpickle sends whole
    assert cloudpickle.loads(cloudpickle.dumps(of_here))() is xnet
