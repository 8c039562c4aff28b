"""Data of one's own: read, trained on, saved, judged and predicted, and refused where wrong."""

import contextlib
import csv
import doctest
import gzip
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import BACKENDS, PEAK_MEMORY
from PIL import Image
from pyarrow import parquet
from sklearn import datasets as sklearn
from test_docs import ROOT, blocks

import xnet
from xnet import datasets, scaling, tables, weights
from xnet.errors import DatasetError, WeightsError
from xnet.operations import OPERATIONS, Affine, IdentityWithLoss, Normalization, ReLU
from xnet.schema import Schema
from xnet.tools import cli, own_data

TABLES = {"wine": "cultivar", "breast_cancer": "diagnosis", "diabetes": "progression"}
"""scikit-learn's, and what is learnt of each."""


@pytest.fixture
def command(monkeypatch, capsys):
    """Call the command with these arguments: status, stdout, stderr."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["xnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, *capsys.readouterr()

    return command


def frame(name):
    """One of scikit-learn's tables: columns of numbers by their names, its labels last."""
    found = getattr(sklearn, f"load_{name}")()
    label = found.target
    if "target_names" in found:
        label = np.asarray(found.target_names)[found.target]
    return dict(zip(found.feature_names, found.data.T, strict=True)) | {TABLES[name]: label}


def write_csv(path, columns, delimiter=",", rows=None):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(list(zip(*(c.tolist() for c in columns.values()), strict=True))[:rows])
    return path


def digits(n=300):
    """Pictures (N, 8, 8) of bytes, and labels."""
    with np.load(datasets.files("xnet") / "digits.npz") as arrays:
        return arrays["images"][:n] * np.uint8(15), arrays["labels"][:n]


def write_idx(path, array, compress=False):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)
    return content


def idx_folder(folder, prefix="", test="t10k", compress=False):
    """A folder in MNIST's layout; returns the decompressed files by their names."""
    images, labels = digits()
    folder.mkdir(exist_ok=True)
    written = {}
    for part, at in (("train", slice(200)), (test, slice(200, None))):
        for kind, array in (("images-idx3", images[at]), ("labels-idx1", labels[at])):
            name = f"{prefix}{part}-{kind}-ubyte"
            path = folder / (name + ".gz" * compress)
            written[name] = write_idx(path, array, compress)
    return written


def picture_folder(folder, classes=("even", "odd"), n=60):
    images, labels = digits(n)
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        home = folder / classes[label % 2]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(home / f"{k:03}.png")
    return folder


def read_rows(text):
    header, *rows = csv.reader(io.StringIO(text))
    return header, rows


# -- of every kind: trained, saved, judged and predicted by the command, as in Python


def npz_file(path):
    images, labels = digits()
    parts = {"x_train": images[:200], "y_train": labels[:200]}
    np.savez(path, **parts, x_test=images[200:], y_test=labels[200:])
    return path


KINDS = {
    "wine.csv": lambda path: write_csv(path, frame("wine")),
    "breast_cancer.tsv": lambda path: write_csv(path, frame("breast_cancer"), "\t"),
    "diabetes.parquet": lambda path: parquet.write_table(pa.table(frame("diabetes")), path),
    "digits.npz": npz_file,
    "idx": idx_folder,
    "pictures": picture_folder,
}


@pytest.mark.parametrize("name", KINDS)
def test_trained_judged_and_predicted_as_in_python(command, tmp_path, name):
    data, net, out = tmp_path / name, tmp_path / "net.safetensors", tmp_path / "out.csv"
    KINDS[name](data)
    label = TABLES.get(name.partition(".")[0])
    options = [] if label is None else ["--label", label]
    options += [] if name in ("digits.npz", "idx") else ["--test", 0.25]
    trained = command(
        *("train", "--data", data, *options, "--validation", 0.2, "--patience", 10),
        *("--epochs", 60, "--batch-size", 20, "--reproducible", "--save", net, "--json"),
    )
    assert (trained[0], trained[2]) == (0, "")
    facts = json.loads(trained[1])
    metric = "r2" if label == "progression" else "accuracy"
    assert facts[f"test_{metric}"][0] >= {"r2": 0.3, "accuracy": 0.8}[metric]
    assert facts["task"] == {"r2": "regression", "accuracy": "classification"}[metric]

    status, printed, _ = command("evaluate", net, "--data", data, "--reproducible", "--json")
    judged = json.loads(printed)
    assert status == 0
    status, printed, _ = command("predict", net, data, "-o", out, "--reproducible")
    assert (status, printed) == (0, f"{judged['samples']} predictions written to {out}\n")

    with xnet.use_backend("numpy", reproducible=True):
        network = weights.load_network(net)
        assert isinstance(network.layers[0].operation, Normalization)
        parts = list(datasets.chunks(data, network.schema, labelled=True))
        x, t = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
        y = network.predict(x)
    header, rows = read_rows(out.read_text())
    if metric == "r2":
        assert header == [label]
        assert judged["R²"] == pytest.approx(xnet.measures.r_squared(y, t))
    else:
        classes = network.schema.classes
        assert header[-len(classes) :] == list(classes)
        places = y.argmax(axis=1)
        assert judged["accuracy"] == np.mean(places == t)
        at = header.index("prediction")
        assert [row[at] for row in rows] == [classes[k] for k in places]
    numbers = np.asarray([row[-y.shape[1] :] for row in rows], np.float64)
    np.testing.assert_array_equal(numbers, y)
    assert header[0] == "picture" or name != "pictures"


def test_a_saved_network_says_what_its_data_are_called(command, tmp_path):
    data = write_csv(tmp_path / "wine.csv", frame("wine"))
    net = tmp_path / "net"
    command("train", "--data", data, "--label", "cultivar", "--iterations", 3, "--save", net)
    columns = frame("wine")
    schema = weights.load_network(net).schema
    assert schema.features == tuple(columns)[:-1]
    assert (schema.labels, schema.classes) == (("cultivar",), ("class_0", "class_1", "class_2"))
    status, _, said = command("evaluate", net)
    assert status == 1
    assert "--data" in said
    status, _, said = command("predict", net, net)  # neither a table nor anything else
    assert (status, said.count("\n")) == (1, 1)


def test_columns_are_put_right_by_their_names_and_labels_need_not_be_there(command, tmp_path):
    columns = frame("wine")
    data, net = write_csv(tmp_path / "wine.csv", columns), tmp_path / "net"
    command("train", "--data", data, "--label", "cultivar", "--iterations", 9, "--save", net)
    expected = command("predict", net, data)[1]
    turned = {name: columns[name] for name in list(columns)[-2::-1]}
    assert command("predict", net, write_csv(tmp_path / "b.csv", turned))[1] == expected
    lines = (tmp_path / "b.csv").read_text().replace(",", ";")
    (tmp_path / "c.csv").write_text("\ufeff" + lines)  # as a spreadsheet writes it
    assert command("predict", net, tmp_path / "c.csv")[1] == expected
    packed = tmp_path / "d.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "b.csv").read_bytes()))
    assert command("predict", net, packed)[1] == expected


def test_several_numbers_are_learnt_together(command, tmp_path):
    columns = frame("diabetes")
    columns["half"] = columns["progression"] / -1e6 + 7.0
    columns["note"] = np.full(len(columns["half"]), "text")
    data, net = write_csv(tmp_path / "two.csv", columns), tmp_path / "net"
    labels = ["--label", "half", "--label", "progression", "--ignore", "note"]
    options = [*labels, "--test", 0.2, "--epochs", 40, "--save", net, "--json"]
    facts = json.loads(command("train", "--data", data, *options)[1])
    assert facts["test_r2"][-1] > 0.3
    network = weights.load_network(net)
    assert network.schema.ignored == ("note",)
    header, rows = read_rows(command("predict", net, data)[1])
    assert header == ["half", "progression"]
    half, whole = np.asarray(rows, np.float64).T  # each in its own units
    assert abs(half.mean() - 7) < 1e-3
    assert 100 < whole.mean() < 200
    found = xnet.measures.r_squared(half[:, None], columns["half"][:, None])
    assert found > 0.3


def test_kaggles_digits_as_they_come(command, tmp_path):
    """label, pixel0, ...: classes, and pixels that are scaled together."""
    images, labels = digits()
    rows = np.column_stack([labels, images.reshape(len(images), -1)])
    names = ["label", *(f"pixel{k}" for k in range(64))]
    data = write_csv(tmp_path / "train.csv", dict(zip(names, rows.T, strict=True)))
    read = datasets.read(data, "label")
    assert read.x.dtype == np.uint8
    assert read.schema.classes == tuple("0123456789")
    net = tmp_path / "net"
    command("train", "--data", data, "--label", "label", "--epochs", 5, "--save", net)
    layer = weights.load_network(net).layers[0]
    assert (set(layer.mean), set(layer.std)) == ({0.0}, {255.0})


def test_a_network_without_names_takes_columns_in_their_order(command, tmp_path):
    net = xnet.Network([Affine(2, 3, 1.0)], backend="numpy")
    weights.save(net, tmp_path / "net")
    (tmp_path / "a.csv").write_text("a,b\n1,2\n0.5,-1\n")
    header, rows = read_rows(command("predict", tmp_path / "net", tmp_path / "a.csv")[1])
    assert header == ["prediction", "0", "1", "2"]
    expected = net.predict(np.array([[1, 2], [0.5, -1]]))
    np.testing.assert_array_equal(np.asarray([row[1:] for row in rows], float), expected)


# -- what is a class, and what a number


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([10, 9, 10], ("9", "10")),
        (["1.0", "0", "1"], ("0", "1")),
        ([1.5, 2.0, 3.0], None),
        (list(range(21)), None),
        ([True, False, True], ("false", "true")),
        (["2", "x", "10"], ("10", "2", "x")),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_labels_are_classes_or_numbers(tmp_path, values, classes, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        shown = [str(v).lower() if isinstance(v, bool) else v for v in values]
        path.write_text("x,t\n" + "".join(f"{k},{v}\n" for k, v in enumerate(shown)))
    else:
        parquet.write_table(pa.table({"x": range(len(values)), "t": values}), path)
    data = datasets.read(path, "t")
    assert data.schema.classes == classes
    if classes is None:
        np.testing.assert_array_equal(data.t[:, 0], np.asarray(values, float))
    else:
        named = [classes[k] for k in data.t]
        assert named == [str(v).lower().removesuffix(".0") for v in values]


def test_categories_of_a_parquet_file_are_classes(tmp_path):
    column = pa.array(["b", "a", "b"]).dictionary_encode()
    parquet.write_table(pa.table({"x": [1, 2, 3], "t": column}), tmp_path / "a.parquet")
    data = datasets.read(tmp_path / "a.parquet", "t")
    assert (data.schema.classes, data.t.tolist()) == (("a", "b"), [1, 0, 1])


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_share_is_of_each_class_alike(tmp_path, share):
    data = datasets.read(write_csv(tmp_path / "wine.csv", frame("wine")), "cultivar")
    rest, held = data.split(share, seed=3)
    whole = np.bincount(data.t)
    assert (abs(np.bincount(held.t) - share * whole) <= 1).all()
    both = np.concatenate([rest.x, held.x])
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(data.x, axis=0))
    assert not np.array_equal(data.split(share, seed=4)[1].x, held.x)
    with pytest.raises(ValueError, match="share is 0, expected"):
        data.split(0)


# -- scaling


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("name", BACKENDS)
def test_normalization_scales_as_the_training_part_had_it(name, reproducible, dtype, rng):
    """On every backend the very bits of one subtraction and one division; no training moves it."""
    why_not = {info.name: info.reason for info in xnet.backends()}[name]
    if why_not is not None:
        pytest.skip(f"{name}: {why_not}")
    x = (rng.normal(size=(40, 3)) * [1, 100, 1e-3] + [0, 5, 9]).astype(dtype)
    layer = scaling.normalization(x)
    mean, std = (np.asarray(a).astype(dtype) for a in (layer.mean, layer.std))
    with xnet.use_backend(name, reproducible):
        layers = [layer, Affine(3, 4, 1.0), ReLU(), Affine(4, 2, 1.0)]
        net = xnet.Network(layers, dtype=dtype)
        found = net.backend.to_numpy(net.layers[0](net.backend.asarray(x)))
        np.testing.assert_array_equal(found, (x - mean) / std)
        same = xnet.Network([layer.copy() for layer in net.layers[1:]], dtype=dtype)
        t = np.arange(40) % 2
        expected = same.gradient((x - mean) / std, t)
        for key, gradient in net.gradient(x, t).items():
            a, b = (net.backend.to_numpy(g) for g in (gradient, expected[key]))
            if reproducible:
                np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        xnet.train(net, x, t, epochs=2, progress=False)
        for array, before in zip(net.layers[0].state.values(), (mean, std), strict=True):
            np.testing.assert_array_equal(net.backend.to_numpy(array), before)


def test_moments_are_those_of_numpy_and_constant_columns_stay_apart(rng, monkeypatch):
    x = rng.normal(size=(1000, 4)) * [1, 1e6, 0, 1e-50] + [3, -1e6, 0.1, 0]
    mean, std = scaling.moments(x)
    np.testing.assert_allclose(mean[:2], x.mean(axis=0)[:2], rtol=1e-13)
    np.testing.assert_allclose(std[:2], x.std(axis=0)[:2], rtol=1e-13)
    assert std.tolist()[2:] == [1.0, 1.0]
    monkeypatch.setattr(scaling, "BLOCK", 4 * 64)
    for one, other in zip(scaling.moments(x), (mean, std), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)
    np.testing.assert_array_equal(scaling.moments(np.full((3, 1), 255, np.uint8)), [[255], [1]])
    with pytest.raises(ValueError, match="column 1 holds NaN"):
        scaling.moments(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="no samples"):
        scaling.moments(np.zeros((0, 2)))


def test_nothing_leaks_from_what_judges_and_chooses(command, tmp_path):
    columns = frame("wine")
    data = datasets.read(write_csv(tmp_path / "wine.csv", columns), "cultivar")
    net, shares = tmp_path / "net", ["--test", 0.2, "--validation", 0.25]
    options = ["--label", "cultivar", *shares, "--iterations", 2, "--seed", 5, "--save", net]
    command("train", "--data", tmp_path / "wine.csv", *options)
    part = data.split(0.2, 5)[0].split(0.25, 5)[0]
    layer = weights.load_network(net).layers[0]
    mean, std = scaling.moments(part.x)
    np.testing.assert_array_equal(layer.mean, mean)
    np.testing.assert_array_equal(layer.std, std)
    assert not np.array_equal(mean, scaling.moments(data.x)[0])


def test_what_has_learnt_scaled_targets_gives_them_in_their_units(rng):
    x, t = rng.normal(size=(50, 3)), rng.normal(size=(50, 2)) * [1000, 1e-3] + [5, 9]
    mean, std = scaling.moments(t)
    net = xnet.Network([Affine(3, 4, 1.0), ReLU(), Affine(4, 2, 1.0)], IdentityWithLoss())
    before = net.predict(x)
    scaling.unscale(net, mean, std)
    np.testing.assert_allclose(net.predict(x), before * std + mean, rtol=1e-12)
    ends = xnet.Network([Affine(3, 2), ReLU()], IdentityWithLoss())
    with pytest.raises(ValueError, match="last layer"):
        scaling.unscale(ends, mean, std)


# -- files of IDX, NPZ


@pytest.mark.parametrize(("prefix", "test"), [("", "t10k"), ("emnist-letters-", "test")])
@pytest.mark.parametrize("compress", [False, True])
def test_load_idx(tmp_path, prefix, test, compress):
    written = idx_folder(tmp_path, prefix, test, compress)
    images, labels = digits()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    (x, t), (_, t_test) = datasets.load_idx(tmp_path, sha256=digests)
    np.testing.assert_array_equal(x, images[:200].reshape(200, 64) / np.float32(255))
    np.testing.assert_array_equal([*t, *t_test], labels)
    raw = datasets.load_idx(tmp_path, normalize=False, flatten=False, one_hot=True)
    assert (raw[1][0].shape, raw[1][0].dtype) == ((100, 1, 8, 8), np.uint8)
    np.testing.assert_array_equal(raw[1][1].argmax(axis=1), t_test)
    name = next(iter(digests))
    with pytest.raises(DatasetError, match=f"got {digests[name]}, expected 00"):
        datasets.load_idx(tmp_path, sha256={name: "00"})


def test_load_idx_of_several_sets(tmp_path):
    idx_folder(tmp_path, "emnist-letters-", "test")
    idx_folder(tmp_path, "emnist-digits-", "test")
    with pytest.raises(DatasetError, match="name one of 'emnist-digits', 'emnist-letters'"):
        datasets.load_idx(tmp_path)
    assert len(datasets.load_idx(tmp_path, "emnist-letters")[0][0]) == 200
    with pytest.raises(DatasetError, match="holds no emnist-mnist-train-images"):
        datasets.load_idx(tmp_path, "emnist-mnist")


def test_load_idx_reads_mnist(mnist):
    folder = Path(os.environ["XNET_DATA_DIR"]) / "mnist"
    _, (x, t) = datasets.load_idx(folder, normalize=False)
    np.testing.assert_array_equal(x, mnist[1][0])
    np.testing.assert_array_equal(t, mnist[1][1])


def test_one_hot_and_named_labels_of_an_npz_file(tmp_path):
    images, labels = digits(50)
    np.savez(tmp_path / "a.npz", x=images, t=np.eye(10)[labels])
    np.savez(tmp_path / "b.npz", x=images, y=np.asarray(["no", "yes"])[labels % 2])
    np.savez(tmp_path / "c.npz", x=images, t=images[:, 0, :2] / 7)
    first, second, third = (datasets.read(tmp_path / f"{k}.npz") for k in "abc")
    np.testing.assert_array_equal(first.t, labels)
    assert second.schema.classes == ("no", "yes")
    np.testing.assert_array_equal(second.t, labels % 2)
    np.testing.assert_array_equal(third.t, images[:, 0, :2] / 7)
    assert (third.schema.classes, first.x.shape) == (None, (50, 64))


# -- wrong files: one line each that says what is wrong where


IMAGES = "train-images-idx3-ubyte"
GOOD = "a,b,t\n1,2,x\n3,4,y\n5,6,x\n"


def csv_of(text):
    return lambda folder: _write(folder / "data.csv", text)


def _write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def npz_of(**arrays):
    def make(folder):
        np.savez(folder / "data.npz", **arrays)
        return folder / "data.npz"

    return make


def long_npz(folder):
    """A header that announces far more than there is."""
    head = io.BytesIO()
    about = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 4)}
    np.lib.format.write_array_header_1_0(head, about)
    with zipfile.ZipFile(folder / "data.npz", "w") as file:
        for name in ("x.npy", "t.npy"):
            file.writestr(name, head.getvalue())
    return folder / "data.npz"


def cut_parquet(folder):
    parquet.write_table(pa.table({"a": [1.0, 2.0], "t": ["x", "y"]}), folder / "data.parquet")
    content = (folder / "data.parquet").read_bytes()
    return _write(folder / "data.parquet", content[: len(content) // 2])


def idx_with(change):
    def make(folder):
        home = folder / "idx"
        idx_folder(home)
        change(home)
        return home

    return make


def cut(name, by):
    return lambda home: _write(home / name, (home / name).read_bytes()[:-by])


def pictures_with(change):
    def make(folder):
        home = picture_folder(folder / "pictures", n=6)
        change(home)
        return home

    return make


def picture(shape, name="even/zzz.png"):
    return lambda home: Image.fromarray(np.zeros(shape, np.uint8)).save(home / name)


X = np.ones((4, 3))
TRAIN = {
    "missing value": (csv_of(GOOD.replace("4", "")), r"data.csv: row 2, column 'b': .*missing"),
    "NA": (csv_of(GOOD.replace("4", "NA")), r"row 2, column 'b': .*missing .'NA'."),
    "infinity": (csv_of(GOOD.replace("4", "inf")), r"row 2, column 'b': inf is no finite"),
    "text": (csv_of(GOOD.replace("5", "five")), r"row 3, column 'a': 'five' is no finite number"),
    "missing label": (csv_of(GOOD.replace("y", "")), r"row 2, column 't': the label is missing"),
    "no such label": (csv_of(GOOD.replace("t", "u")), r"no column is named 't': 'a', 'b', 'u'"),
    "empty": (csv_of(""), r"data.csv is empty, expected a header"),
    "header alone": (csv_of("a,b,t\n"), r"has a header and no rows"),
    "two of a name": (csv_of(GOOD.replace("b", "a")), r"2 columns are named 'a'"),
    "no name": (csv_of(GOOD.replace("b", "")), r"column 2 has no name"),
    "too few values": (csv_of(GOOD + "7,8\n"), r"row 4 has 2 values, expected 3"),
    "one class": (csv_of(GOOD.replace("y", "x")), r"all labels are 'x', expected at least two"),
    "label alone": (csv_of("t\nx\ny\n"), r"no column is left to learn 't' from"),
    "no table": (csv_of(b"\x00\xff\xfe\x00" * 50), r"data.csv"),
    "not UTF-8": (csv_of(GOOD.encode().replace(b"y", b"\xff")), r"data.csv"),
    "names of everyone": (
        csv_of("a,t\n" + "".join(f"{k},n{k}\n" for k in range(50))),
        r"50 different labels, .*too many for classes; name the task",
    ),
    "cut Parquet": (cut_parquet, r"data.parquet cannot be read as a table"),
    "no x": (npz_of(a=X), r"data.npz holds a, expected x and t"),
    "objects": (npz_of(x=X, t=np.array([{}] * 4)), r"t holds pickled objects, which are never"),
    "complex": (npz_of(x=X * 1j, t=np.arange(4)), r"x holds complex128"),
    "lengths": (npz_of(x=X, t=np.arange(3)), r"t has shape \(3,\), expected \(4,\)"),
    "NaN": (npz_of(x=X * [1, np.nan, 1], t=np.arange(4)), r"x\[0, 1\] is nan"),
    "long NPZ": (long_npz, r"x announces \(1000000000000, 4\) of float64"),
    "no NPZ": (lambda folder: _write(folder / "data.npz", "text"), r"damaged, or no NPZ file"),
    "cut IDX": (
        idx_with(cut(IMAGES, 5)),
        r"train-images-idx3-ubyte: 12795 values, but the IDX header announces \[200, 8, 8\]",
    ),
    "no labels of IDX": (
        idx_with(lambda home: (home / "t10k-labels-idx1-ubyte").unlink()),
        r"but no t10k-labels-idx1-ubyte",
    ),
    "other labels of IDX": (
        idx_with(lambda home: write_idx(home / "train-labels-idx1-ubyte", np.zeros(3))),
        r"holds 200 pictures, train-labels-idx1-ubyte 3 labels",
    ),
    "IDX of floats": (
        idx_with(lambda home: _write(home / IMAGES, b"\0\0\x0d\x03" + b"\0" * 20)),
        r"the IDX header is 00 00 0d 03",
    ),
    "no pictures": (
        pictures_with(lambda home: (home / "neither").mkdir()),
        r"neither holds no picture, expected \.png",
    ),
    "sizes": (pictures_with(picture((9, 8))), r"zzz.png is 8×9 and grey, .* is 8×8 and grey"),
    "colours": (pictures_with(picture((8, 8, 3))), r"zzz.png is 8×8 and in colour"),
    "transparent": (pictures_with(picture((8, 8, 4))), r"zzz.png is transparent somewhere"),
    "no picture in it": (
        pictures_with(lambda home: _write(home / "odd" / "a.png", "text")),
        r"odd/a.png is no picture of PNG",
    ),
    "no folders": (lambda folder: folder, r"holds no folders of pictures"),
    "nothing there": (lambda folder: folder / "none.csv", r"none.csv cannot be read: no such"),
    "another kind": (lambda folder: _write(folder / "a.docx", "text"), r"a.docx: expected a file"),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAIN)
def test_a_wrong_file_is_refused_in_one_line(command, tmp_path, case):
    make, said = TRAIN[case]
    path = make(tmp_path)
    options = ["--label", "t"] if tables.is_table(path) else []
    save = tmp_path / "net.safetensors"
    status, out, err = command("train", "--data", path, *options, "--iterations", 1, "--save", save)
    assert (status, out) == (1, "")
    assert re.fullmatch(r"xnet: [^\n]{1,400}\n", err)
    assert re.search(said, err), err
    assert not save.exists()


PREDICT = {
    "column missing": ("a\n1\n", r"column 'b', which was there in training, is missing: 'a'"),
    "column more": ("a,b,c\n1,2,3\n", r"column 'c' was not there in training, expected 'a', 'b'"),
    "text in a later row": ("a,b\n1,2\n1,two\n", r"row 2, column 'b': 'two' is no finite number"),
    "class never seen": ("a,b,t\n1,2,x\n1,2,z\n", r"row 2, column 't': 'z' is no class that was"),
    "label missing": ("a,b\n1,2\n", r"column 't', which was there in training, is missing"),
}


@pytest.mark.parametrize("case", PREDICT)
def test_what_differs_from_training_is_refused_in_one_line(command, tmp_path, case):
    """And what was predicted before stays as it is."""
    data, net, out = _write(tmp_path / "data.csv", GOOD), tmp_path / "net", tmp_path / "out.csv"
    command("train", "--data", data, "--label", "t", "--iterations", 1, "--save", net)
    assert command("predict", net, data, "-o", out)[0] == 0
    before = out.read_bytes()
    text, said = PREDICT[case]
    wrong = _write(tmp_path / "wrong.csv", text)
    judges = case in ("class never seen", "label missing")
    asked = ["evaluate", net, "--data", wrong] if judges else ["predict", net, wrong, "-o", out]
    status, _, err = command(*asked)
    assert status == 1
    assert re.fullmatch(r"xnet: [^\n]{1,400}\n", err)
    assert re.search(r"wrong\.csv: " + said, err), err
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("data.csv", "net", "out.csv", "wrong.csv")
    ]


def test_pictures_and_arrays_of_another_size_are_refused_by_name(command, tmp_path):
    home, net = picture_folder(tmp_path / "pictures", n=12), tmp_path / "net"
    command("train", "--data", home, "--iterations", 1, "--save", net)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    _, _, err = command("predict", net, tmp_path / "a.png")
    assert re.search(r"a.png is 9×9 and grey, those in training were 8×8 and grey\n", err)
    np.savez(tmp_path / "a.npz", x=np.ones((2, 5)))
    _, _, err = command("predict", net, tmp_path / "a.npz")
    assert re.search(r"a.npz has 5 numbers for a sample, the network takes 64\n", err)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--label", "t"], "--label"),
        (["--data", "a.csv", "--dataset", "digits"], "--dataset"),
        (["--data", "data.csv", "--label", "t", "--task", "numbers"], "--task"),
        (["--data", "data.csv", "--label", "t", "--loss", "huber"], "--loss huber"),
    ],
)
def test_options_that_do_not_go_together(command, tmp_path, monkeypatch, options, said):
    _write(tmp_path / "data.csv", GOOD)
    monkeypatch.chdir(tmp_path)
    status, _, err = command("train", *options)
    assert status == 2
    assert said in err


ALTERED = {
    "another kind": (["a"], "the schema is"),
    "no list": ({"features": "ab"}, "features is 'ab', expected a list of str"),
    "numbers for names": ({"classes": [1, 2, 3]}, "classes is"),
    "unknown": ({"feature": []}, "the schema is"),
    "one twice": ({"classes": ["a", "a", "b"]}, "classes names one twice"),
    "features of another network": ({"features": ["a"]}, "names 1 features, the network has 2"),
    "outputs of another": ({"classes": ["a", "b"]}, "names 2 outputs, the network has 3"),
    "no size": ({"shape": [0, 2]}, "lengths of at least 1"),
}


@pytest.mark.parametrize("case", ALTERED)
def test_an_altered_schema_is_refused(tmp_path, case):
    facts, said = ALTERED[case]
    net = xnet.Network([Affine(2, 3)])
    net.schema = Schema(("a", "b"), ("t",), ("x", "y", "z"))
    weights.save(net, tmp_path / "net")
    assert weights.load_network(tmp_path / "net").schema == net.schema
    content = (tmp_path / "net").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    about = json.loads(header["__metadata__"][weights.METADATA_KEY])
    header["__metadata__"][weights.METADATA_KEY] = json.dumps(about | {"schema": facts})
    altered = json.dumps(header).encode()
    size = len(altered).to_bytes(8, "little")
    (tmp_path / "net").write_bytes(size + altered + content[8 + length :])
    with pytest.raises(WeightsError, match=said):
        weights.load_network(tmp_path / "net")


# -- memory, and what is installed

LONG = """
import sys
from pathlib import Path
from xnet.tools import own_data
from xnet import weights
network = weights.load_network(sys.argv[1], "numpy")
own_data.write(network, [Path(sys.argv[2])], Path(sys.argv[3]), 2000)
print(peak_memory())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_memory_does_not_grow_with_a_table(tmp_path, rng, kind):
    """A file of four times as many rows, and hardly more memory."""
    weights.save(xnet.Network([Affine(20, 3)]), tmp_path / "net")
    x = rng.normal(size=(5_000, 20)).round(6)
    peaks = []
    for times in (20, 80):  # the shorter is 18 MB of text
        path = tmp_path / f"{times}.{kind}"
        names = [f"c{k}" for k in range(20)]
        if kind == "csv":
            rows = "\n".join(",".join(map(str, row)) for row in x.tolist()) + "\n"
            path.write_text(",".join(names) + "\n" + rows * times)
        else:
            table = pa.table(dict(zip(names, x.T, strict=True)))
            with parquet.ParquetWriter(path, table.schema) as writer:
                for _ in range(times):
                    writer.write_table(table)
        command = [sys.executable, "-c", PEAK_MEMORY + LONG]
        paths = [str(tmp_path / "net"), str(path), str(tmp_path / "out")]
        done = subprocess.run([*command, *paths], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
        with open(tmp_path / "out") as file:
            assert sum(1 for _ in file) == 1 + times * len(x)
    if not peaks[0]:
        pytest.skip("the system does not say how much memory a process had")
    assert peaks[1] - peaks[0] < 25e6, peaks


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = _write(tmp_path / "data.csv", GOOD)
    with pytest.raises(
        DatasetError, match=r'data.csv needs pyarrow: pip install "xnet-nn\[data\]"'
    ):
        datasets.read(path, "t")


def test_normalization_is_an_operation_like_the_others():
    assert OPERATIONS["Normalization"] is Normalization
    assert Normalization.state.keys() == {"mean", "std"}


def test_the_commands_of_the_page_do_what_it_says(command, tmp_path, monkeypatch):
    """Its blocks in their order, Python's and the shell's, in one folder."""
    scope, said = {}, ""
    found = blocks(ROOT / "docs" / "data.md")
    monkeypatch.chdir(tmp_path)
    for block, then in zip(found, [*found[1:], None], strict=True):
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(block.text, scope)
        elif block.language == "sh":
            said = ""
            for line in block.text.splitlines():
                status, printed, err = command(*shlex.split(line)[1:])
                assert (status, err) == (0, ""), line
                said += printed
            if then.language == "text":
                says = doctest.OutputChecker().check_output
                assert says(then.text, said, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), said
    with xnet.use_backend("numpy"):
        net = weights.load_network(tmp_path / "diabetes.safetensors")
        data = datasets.read(tmp_path / "diabetes.csv", "progression")
    assert xnet.measures.r_squared(net.predict(data.x), data.t) > 0.4


def test_each_rank_takes_its_part_of_a_lesson(tmp_path):
    """Training, test and validation data alike, and of the last what its own file holds."""
    rng = np.random.default_rng(0)
    for name, rows in (("train.csv", 40), ("test.csv", 11)):
        x = rng.normal(size=(rows, 2)).round(3)
        write_csv(tmp_path / name, {"a": x[:, 0], "b": x[:, 1], "y": x.sum(axis=1).round(3)})
    options = ["y"], None, (), str(tmp_path / "test.csv"), 0.25, None, 0
    lesson = own_data.lesson(tmp_path / "train.csv", *options)
    assert (
        str(lesson) == "regression of 'y': numbers, 30 to train on, 10 to choose by, 11 to judge by"
    )
    parts = [lesson.part(lambda n, k=k: slice(k * n // 3, (k + 1) * n // 3)) for k in range(3)]
    assert [len(part.x) for part in parts] == [10, 10, 10]
    for taken in (lambda v: (v.x, v.t), lambda v: v.test, lambda v: v.validation):
        for k, whole in enumerate(taken(lesson)):
            joined = np.concatenate([taken(part)[k] for part in parts])
            np.testing.assert_array_equal(joined, whole)
    assert parts[0].units is lesson.units
    share = own_data.lesson(tmp_path / "train.csv", ["y"], None, (), "0.5", 0.25, "none", 0)
    assert len(share.test[0]) == 20
    assert share.before == []
