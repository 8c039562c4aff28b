"""Data that stay where they are: fetched, converted and checked as they are needed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import dask.array
import numpy as np
import pyarrow
import pytest
import zarr
from conftest import require_host_cuda
from pyarrow import parquet

import xnet
from xnet import rows, samples
from xnet.layers import Affine, Dropout, IdentityWithLoss, ReLU
from xnet.parquet import unpacked
from xnet.rows import Rows, spans, staying

N, WIDTH, CLASSES = 90, 5, 3
BYTES = np.random.default_rng(0).integers(0, 9, (N, WIDTH), np.uint8)
LABELS = BYTES.sum(axis=1) % CLASSES


class Own:
    """The least that stays where it is; like h5py it takes row numbers only if they rise."""

    def __init__(self, values):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.fetched = []

    def __getitem__(self, key):
        if not isinstance(key, slice):
            assert (np.diff(key) > 0).all()
        found = self.values[key]
        self.fetched.append(len(found))
        return found


def mapped(values, folder):
    np.save(folder / "x.npy", values)
    return np.load(folder / "x.npy", mmap_mode="r")


def in_h5py(values, folder):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    file = h5py.File(folder / "x.h5", "w")
    file["x"] = values
    return file["x"]


def in_parquet(values, folder):
    table = pyarrow.table({str(k): column for k, column in enumerate(values.T)})
    parquet.write_table(table, folder / "x.parquet", row_group_size=7)
    return unpacked(folder / "x.parquet")


STORES = {
    "memory map": mapped,
    "its view": lambda values, folder: np.asarray(mapped(values, folder))[:, :],
    "h5py": in_h5py,
    "zarr": lambda values, folder: zarr.create_array(folder / "x", data=values, chunks=(8, WIDTH)),
    "Parquet": in_parquet,
    "Dask": lambda values, folder: dask.array.from_array(values, chunks=(40, 3)),
    "one's own": lambda values, folder: Own(values),
}


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 16 rows: no multiple of which all rows are."""
    monkeypatch.setattr(rows, "PART", 16 * WIDTH)


def network(backend=None, dtype="float32", classes=True):
    layers = [Affine(WIDTH, 8, 0.1), ReLU(), Dropout(0.2), Affine(8, CLASSES, 0.1)]
    loss = None if classes else IdentityWithLoss()
    return xnet.Network(layers, loss, dtype=dtype, backend=backend)


def trained(x, t, backend=None, **settings):
    net = network(backend, classes=settings.pop("classes", True))
    x_test, t_test = settings.pop("test", (x, t))
    history = xnet.train(net, x, t, x_test, t_test, epochs=2, batch_size=20, **settings)
    history.seconds = 0.0
    return xnet.weights.sha256(net), history


@pytest.mark.parametrize("store", STORES)
def test_the_same_bits_wherever_the_data_are(store, tmp_path, small_parts):
    x = STORES[store](BYTES, tmp_path)
    assert isinstance(staying(x, "x", xnet.resolve("numpy"), "float32"), Rows)
    for t in (LABELS, np.eye(CLASSES)[LABELS]):
        for settings in ({}, {"validation": 0.2}, {"replacement": True}):
            assert trained(x, t, **settings) == trained(BYTES, t, **settings)


@pytest.mark.parametrize("reproducible", [False, True])
def test_the_same_bits_on_every_backend(backend, reproducible, tmp_path, small_parts):
    """Classes and numbers, labels that stay as well, and a share of them all held back."""
    here = xnet.resolve(backend, reproducible)
    x, targets = mapped(BYTES, tmp_path), BYTES[:, :CLASSES] / 9
    (tmp_path / "t").mkdir()
    for t, classes in ((np.eye(CLASSES)[LABELS], True), (targets, False)):
        settings = {"backend": here, "validation": 0.2, "classes": classes}
        held = trained(BYTES, t, **settings)
        assert trained(x, mapped(t, tmp_path / "t"), **settings) == held
        assert held[1].metric == ("accuracy" if classes else "R²")
        assert len(held[1].taken("validation")) == 2


def test_parts_add_up_to_the_whole(backend, tmp_path, small_parts, monkeypatch):
    x, targets = mapped(BYTES, tmp_path), BYTES[:, :CLASSES] / 9
    for net, t in ((network(backend), LABELS), (network(backend, classes=False), targets)):
        whole = net.predict(BYTES)
        assert backend.owns(net.predict(x))
        assert net.predict(x).shape == (N, CLASSES)
        for method in (net.predict, net.scores):
            np.testing.assert_allclose(
                *(backend.to_numpy(method(v)) for v in (x, BYTES)), rtol=1e-5, atol=1e-6
            )
        assert net.loss(x, t) == pytest.approx(net.loss(BYTES, t), rel=1e-5)
        data = samples.Samples(net, x, t, "x", "t")
        assert data.loss(net) == pytest.approx(net.loss(BYTES, t), rel=1e-5)
        if data.classes:
            assert net.accuracy(x, t) == data.accuracy(net) == net.accuracy(BYTES, t)
        else:
            found = xnet.measures.r_squared(whole, backend.asarray(t, "float32"))
            assert data.r_squared(net) == pytest.approx(found, rel=1e-5)


def test_only_what_is_drawn_is_fetched(monkeypatch):
    """Without an epoch's end: its first row, the steps', and those of the accuracy at the end."""
    x = Own(BYTES)
    training = xnet.Training(network(), x, LABELS, batch_size=20)
    assert sum(x.fetched) <= 2
    x.fetched.clear()
    monkeypatch.setattr(xnet.Training, "_record", lambda *_: False)
    training.run(iterations=3)
    assert x.fetched == [20, 20, 20]


def test_what_stays(tmp_path, monkeypatch):
    numpy = xnet.resolve("numpy")

    def stays(values, dtype="float32", backend=numpy):
        return staying(values, "x", backend, dtype) is not None

    X = BYTES.astype("float32")
    assert stays(mapped(BYTES, tmp_path))
    assert not stays(mapped(LABELS, tmp_path))  # labels are read as a whole
    assert not any(map(stays, (X, BYTES, BYTES.tolist(), LABELS, Own(LABELS), Own(BYTES[:0]))))
    with pytest.raises(xnet.BackendError, match="x is a Far"):
        network().predict(Far(BYTES))
    monkeypatch.setattr(rows, "LARGE", X.nbytes - 1)
    assert stays(BYTES)
    assert not stays(X)  # nothing is made of it
    assert stays(X, "float64")
    assert stays(X, "float32", xnet.resolve("strict"))
    monkeypatch.setattr(rows, "LARGE", X.nbytes)
    assert not stays(BYTES)


class Far:
    """An array on another device, that could be sliced."""

    def __init__(self, values):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, key):
        return self.values[key]

    def __dlpack__(self, **options):
        return self.values.__dlpack__()

    def __dlpack_device__(self):
        return 2, 0


def test_an_array_of_another_library_on_the_networks_device(monkeypatch):
    """As PyTorch's on the GPU of a network on cupy: by DLPack, there; else refused."""
    require_host_cuda(monkeypatch)
    X, first, second = BYTES.astype("float32"), xnet.resolve("cupy:0"), xnet.resolve("cupy:1")
    net = network(first)
    assert np.array_equal(net.predict(Far(X)), net.predict(X))
    assert np.array_equal(first.asarray(Far(X)), X)
    for backend in (second, xnet.resolve("numpy")):
        with pytest.raises(xnet.BackendError, match=r"move it to the host, as x.cpu\(\)"):
            network(backend).predict(Far(X))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("validation", [None, 0.2])
def test_what_is_not_finite_is_found_when_it_is_drawn(backend, tmp_path, bad, validation):
    values = BYTES.astype("float64")
    values[70, 2] = bad
    x, net, last = mapped(values, tmp_path), network(backend), []
    training = xnet.Training(net, x, LABELS, batch_size=20, validation=validation)
    step = net.train_step

    def noted(*arguments):
        loss = step(*arguments)
        last[:] = [loss, xnet.weights.sha256(net)]
        return loss

    net.train_step = noted
    for _ in range(2):  # who goes on meets it again
        with pytest.raises(ValueError, match=r"^x holds NaN or infinity as float32 in row 70$"):
            training.run(epochs=2)
        before = xnet.weights.sha256(network(backend))
        assert xnet.weights.sha256(net) == (last[1] if last else before)
        assert training.history.loss[-1:] == last[:1]


def test_targets_that_are_not_finite_are_found_too(tmp_path, small_parts):
    targets = BYTES[:, :CLASSES] / 9
    targets[33, 1] = np.nan
    training = xnet.Training(network(classes=False), BYTES, mapped(targets, tmp_path))
    with pytest.raises(ValueError, match=r"^t holds NaN or infinity as float64 in row 33$"):
        training.run()


def test_labels_are_checked_before_the_first_step(tmp_path, small_parts):
    x, labels = mapped(BYTES, tmp_path), LABELS.copy()
    labels[77] = CLASSES
    with pytest.raises(ValueError, match=r"t has label 3, expected 0\.\.2"):
        xnet.Training(network(), x, labels)
    with pytest.raises(ValueError, match="x has 90 samples, t has 89"):
        xnet.Training(network(), x, LABELS[1:])
    with pytest.raises(ValueError, match="x has 4 features, W expects 5"):
        xnet.Training(network(), Own(BYTES[:, 1:]), LABELS)


def computed(values, chunks, seen):
    """As a Dask array, which notes the rows of each chunk that is computed."""

    def note(chunk):
        seen.append(len(chunk))
        return chunk

    x = dask.array.from_array(values, chunks=(chunks, WIDTH))
    return x.map_blocks(note, meta=np.empty((0, 0), values.dtype))


@pytest.mark.parametrize(
    ("chunks", "groups"),
    [
        (30, [30] * 3),  # larger than parts
        (4, [16] * 5 + [10]),
        (7, [14] * 6 + [6]),
        ((0, 2, 50, 0, 3, 30, 5), [2, 50, 3, 30, 5]),
    ],
)
def test_chunks_of_dask_are_computed_once(chunks, groups, small_parts, monkeypatch):
    """Not once for each part that has rows of them."""
    net, seen, fetched = network(), [], []
    x = computed(BYTES, chunks, seen)
    on_host = rows.on_host
    monkeypatch.setattr(
        rows, "on_host", lambda values, name: fetched.append(len(values)) or on_host(values, name)
    )
    np.testing.assert_allclose(net.predict(x), net.predict(BYTES), rtol=1e-6)
    assert fetched == groups
    assert sorted(seen) == sorted(filter(None, x.chunks[0]))
    assert net.accuracy(x, dask.array.from_array(LABELS, 40)) == net.accuracy(BYTES, LABELS)


def of_a_table(x):
    frames = pytest.importorskip("dask.dataframe", reason="Dask's tables take more than its arrays")
    return frames.from_dask_array(x)


@pytest.mark.parametrize(
    "of",
    [
        lambda x: x[x[:, 0] > 0],
        lambda x: x[:, dask.array.from_array([True] * WIDTH)],
        of_a_table,
    ],
    ids=["rows", "features", "table"],
)
def test_rows_that_nobody_has_counted_are_not_computed(of):
    seen = []
    x, net, t = of(computed(BYTES, 30, seen)), network(classes=False), BYTES[:, :CLASSES] / 9
    for use in (net.predict, lambda x: xnet.train(net, x, t), lambda t: net.loss(BYTES, t)):
        with pytest.raises(ValueError, match=r"unknown number of rows: (x|t)\.compute_chunk_sizes"):
            use(x)
    assert not seen
    if hasattr(x, "to_dask_array"):
        x = x.to_dask_array(lengths=True)
    x.compute_chunk_sizes()
    assert net.predict(x).shape == (x.shape[0], CLASSES)


def test_spans():
    assert list(spans((0, 3))) == [(0, 0)]
    assert list(spans((5, rows.PART))) == [(k, k + 1) for k in range(5)]
    assert list(spans((5, 1), width=rows.PART // 2)) == [(0, 2), (2, 4), (4, 5)]


# -- Parquet


def write(path, **columns):
    parquet.write_table(pyarrow.table(columns), path, row_group_size=4)
    return path


def test_columns_of_parquet_are_unpacked_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr("xnet.parquet.PART", 6)  # three rows at a time
    a, b, c = np.arange(10), np.arange(10) / 4, np.arange(10, dtype=np.uint8)
    path = write(tmp_path / "x", a=a, b=b, c=c, name=list("abcdefghij"))
    found = unpacked(path, ["c", "a"], folder=tmp_path)
    assert np.array_equal(found, np.stack([c, a], axis=1))
    assert found.dtype == np.int64
    assert not found.flags.writeable
    assert unpacked(path, ["c"]).dtype == np.uint8
    assert np.array_equal(unpacked(path, "b"), b)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_is_wrong_with_a_parquet_file_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("xnet.parquet.PART", 4)  # two rows at a time
    path = write(tmp_path / "x", a=[1.0, 2, 3, 4, 5, None], b=list("abcdef"))
    where = re.escape(str(path))
    for columns, error, message in (
        (["a"], ValueError, f"^{where}, column 'a', has no value in row 5: fill it in"),
        (None, TypeError, f"^{where}, column 'b', is object, expected real numbers"),
        ("c", xnet.DatasetError, rf"^{where}: no column is named 'c': there are \['a', 'b'\]"),
    ):
        with pytest.raises(error, match=message):
            unpacked(path, columns)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(path.read_bytes()[:-9])
    empty = write(tmp_path / "empty", a=pyarrow.array([], "float64"))
    for path, message in ((damaged, "cannot be unpacked: "), (empty, "has no rows")):
        with pytest.raises(xnet.DatasetError, match=message):
            unpacked(path)
    with pytest.raises(xnet.DatasetError, match=r"cannot be unpacked: .*nowhere"):
        unpacked(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(xnet.DatasetError, match="needs pyarrow: pip install"):
        unpacked(path)


# -- memory


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says RssAnon")
def test_memory_does_not_grow_with_the_data(tmp_path):
    """78 MB of bytes are 314 MB in float32; see benchmarks/larger_than_memory.py for ten times."""
    script = Path(__file__).parents[1] / "benchmarks" / "larger_than_memory.py"
    command = [sys.executable, script, "--rows", "100000", "--folder", tmp_path, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    assert facts["mapped"]["sha256"] == facts["held"]["sha256"]
    assert facts["mapped"]["own_memory_at_peak"] < 150e6 < facts["held"]["own_memory_at_peak"]
