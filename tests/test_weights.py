"""xnet.weights: what is written, how, and that nothing but arrays ever comes out of a file."""

import builtins
import errno
import json
import os
import pickle
import pickletools
import re
import signal
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.testing
import pytest
import safetensors
import safetensors.numpy
from conftest import BACKENDS, LAYER_KINDS, PEAK_MEMORY, SIZES, variants
from hypothesis import given, settings
from hypothesis import strategies as st

import xnet
from xnet import WeightsError, files, operations, weights
from xnet.errors import NonFiniteWarning
from xnet.layers import Layer, LossLayer
from xnet.network import Network
from xnet.operations import Affine, BatchNorm, Operation, ReLU, SoftmaxWithLoss
from xnet.optimizers import SGD
from xnet.tools import notes_pickle

USABLE = [info.name for info in xnet.backends() if info.usable and info.name in BACKENDS]


def make_network(loss=None, **where) -> Network:
    """Parameters of two kinds, and state."""
    parts = [Affine(4, 5, "he"), ReLU(), Affine(5, 3, "he"), BatchNorm(3), Affine(3, 2, "he")]
    return Network(parts, loss, **where)


def bits(network: Network) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every parameter, and state, to the last bit."""
    every = dict(network.params) | {f"state {k}": v for k, v in network.state.items()}
    arrays = {name: network.backend.to_numpy(a) for name, a in every.items()}
    return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "net.safetensors"
    weights.save(make_network(), path)
    return path


# There and back.


def trained(network: Network) -> Network:
    """After a step, so that its state is not what every network begins with."""
    rng = np.random.default_rng(5)
    inputs, outputs = network.inputs, network.scores(np.zeros(network.inputs)).shape[0]
    x, t = rng.standard_normal((8, inputs)), rng.integers(0, outputs, 8)
    network.train_step(x, t, SGD(0.1))
    return network


@pytest.mark.parametrize("target", USABLE)
def test_round_trip_bit_for_bit(backend, dtype, target, tmp_path):
    path = tmp_path / "net.safetensors"
    network = trained(make_network(dtype=dtype))
    tiny = np.finfo(dtype).smallest_subnormal
    odd = np.array([-0.0, np.nan, np.inf, -tiny, 0.1], dtype)
    network.params["b1"] = backend.asarray(odd)
    weights.save(network, path)
    with pytest.warns(NonFiniteWarning, match=r"NaN or infinity in \['b1'\]"):
        loaded = weights.load_network(path, backend=target)
    assert loaded.backend.name == target
    assert loaded.dtype == dtype
    assert list(map(repr, loaded.layers)) == list(map(repr, network.layers))
    assert bits(loaded) == bits(network) != bits(make_network(dtype=dtype))
    assert weights.sha256(loaded) == weights.sha256(network)


@pytest.mark.parametrize("operation", variants(*LAYER_KINDS), ids=repr)
def test_every_operation_comes_back_with_its_settings(tmp_path, rng, operation):
    units = operation.widths[1] or SIZES[0]
    network = trained(Network([Affine(3, SIZES[0], 0.5), operation, Affine(units, 2, 0.5)]))
    weights.save(network, tmp_path / "net")
    loaded = weights.load_network(tmp_path / "net")
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in network.layers]
    assert loaded.layers[1].settings() == operation.settings()
    assert bits(loaded) == bits(network)
    x = rng.standard_normal((5, 3))
    assert loaded.predict(x).tobytes() == network.predict(x).tobytes()


@pytest.mark.parametrize(
    "loss", [*variants("loss"), SoftmaxWithLoss(0.1, class_weights=(1, 2.5))], ids=repr
)
def test_every_loss_comes_back_with_its_settings(tmp_path, rng, loss):
    network = make_network(loss)
    weights.save(network, tmp_path / "net")
    loaded = weights.load_network(tmp_path / "net").loss_layer
    assert type(loaded.operation) is type(loss)
    assert loaded.operation.settings() == loss.settings()
    scores, t = rng.standard_normal((3, 2)), np.eye(2)[[0, 1, 1]]
    assert loaded.forward(scores, t).tobytes() == network.loss_layer.forward(scores, t).tobytes()


def test_what_is_frozen_stays_so(tmp_path):
    network = make_network()
    network.layers[0].trainable = False
    weights.save(network, tmp_path / "net")
    loaded = weights.load_network(tmp_path / "net")
    assert [layer.trainable for layer in loaded.layers] == [False, True, True, True, True]


def test_settings_that_are_numpys_numbers(tmp_path):
    """As sizes taken from an array's are."""
    sizes, slope = np.array([2, 4]), np.float32(0.5)
    network = Network([Affine(*sizes), operations.LeakyReLU(slope)])
    weights.save(network, tmp_path / "net")
    loaded = weights.load_network(tmp_path / "net")
    assert repr(loaded.layers) == "[Affine(2, 4), LeakyReLU(0.5)]"


def test_state_and_parameters_of_one_name(tmp_path):
    """A parameter called mean beside a running mean: each keeps its numbers."""

    class Shift(Operation):
        units: int
        parameters = {"mean": ("units",)}  # noqa: RUF012

        def forward(self, m, x, mean):
            return x + mean

        def backward(self, m, dout, x, y, mean):
            return dout, m.total(dout)

    network = Network([Shift(2), BatchNorm(2)])
    network.params["mean1"] = np.array([1.0, 2.0])
    weights.save(network, tmp_path / "net")
    loaded = weights.load_network(tmp_path / "net")
    assert loaded.params["mean1"].tolist() == [1.0, 2.0]
    assert loaded.state["mean1"].tolist() == [0.0, 0.0]


def test_current_backend_is_the_default(backend, saved):
    assert weights.load_network(saved).backend is backend


def test_dtype_argument_casts(backend, dtype, saved):
    loaded = weights.load_network(saved, dtype=dtype)
    assert loaded.dtype == dtype
    for name, array in make_network(backend="numpy").params.items():
        np.testing.assert_array_equal(
            backend.to_numpy(loaded.params[name]), array.astype(dtype), strict=True
        )


def test_predictions_are_equal_after_loading(backend, dtype, tmp_path, rng):
    network = trained(make_network(dtype=dtype))
    weights.save(network, tmp_path / "net")
    x = rng.standard_normal((7, 4))
    loaded = weights.load_network(tmp_path / "net")
    before, after = (backend.to_numpy(net.predict(x)) for net in (network, loaded))
    assert before.tobytes() == after.tobytes()


def test_loaded_network_can_be_trained_both_ways(backend, saved, rng):
    weights.save(Network([Affine(4, 5, "he"), ReLU(), Affine(5, 2, "he")]), saved)
    network = weights.load_network(saved)
    x, t = rng.standard_normal((3, 4)), np.array([0, 1, 1])
    assert max(xnet.gradient_check(network, x, t).values()) < 1e-6
    before = network.loss(x, t)
    xnet.train(network, x, t, iterations=20, progress=False)
    assert network.loss(x, t) < before


def test_architecture_is_in_the_metadata(saved):
    with safetensors.safe_open(saved, framework="numpy") as file:
        assert sorted(file.keys()) == [
            *("W1", "W2", "W3", "b1", "b2", "b3", "beta1", "gamma1"),
            *("state.mean1", "state.variance1"),
        ]
        assert file.get_tensor("W1").shape == (4, 5)
        architecture = json.loads(file.metadata()["xnet"])
    he = {"weight_init_std": "he"}
    assert architecture == {
        "format": 2,
        "layers": [
            ["Affine", {"inputs": 4, "outputs": 5} | he],
            ["ReLU", {}],
            ["Affine", {"inputs": 5, "outputs": 3} | he],
            ["BatchNorm", {"units": 3, "decay": 0.9, "eps": 1e-5}],
            ["Affine", {"inputs": 3, "outputs": 2} | he],
        ],
        "loss": ["SoftmaxWithLoss", {"label_smoothing": 0.0, "class_weights": None}],
        "frozen": [],
    }


def test_any_length_of_header_loads(saved):
    """The file begins with the header's length, whatever bytes that may be."""
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    expected = bits(make_network())
    for padding in range(0, 2048, 8):
        header = content[8 : 8 + length] + b" " * padding
        saved.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
        assert bits(weights.load_network(saved)) == expected


def test_network_without_parameters(tmp_path):
    weights.save(Network([ReLU()]), tmp_path / "relu")
    assert repr(weights.load_network(tmp_path / "relu").layers) == "[ReLU()]"


class Opaque(Layer):
    """Says itself what it computes."""

    def __call__(self, x):
        return x

    forward = backward = __call__


class Otherwise(xnet.layers.ReLU):
    def backward(self, dout):
        return dout


class OpaqueLoss(LossLayer):
    def forward(self, x, t):
        return x[0, 0]


@pytest.mark.parametrize("part", [Opaque(), Otherwise(), OpaqueLoss()], ids=repr)
def test_what_says_itself_what_it_computes_is_not_saved(tmp_path, part):
    is_loss = isinstance(part, LossLayer)
    network = Network([Affine(2, 2), *[part] * (not is_loss)], part if is_loss else None)
    name = type(part).__name__
    with pytest.raises(WeightsError, match=rf"^{name}\(\) cannot be saved: .*as an operation"):
        weights.save(network, tmp_path / "net")
    with pytest.raises(WeightsError, match=name):
        weights.check_savable(network)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_class_that_adds_nothing_is_saved_as_what_it_computes(tmp_path):
    class Named(xnet.layers.ReLU):
        pass

    weights.save(Network([Affine(2, 2), Named()]), tmp_path / "net")
    assert repr(weights.load_network(tmp_path / "net").layers) == "[Affine(2, 2), ReLU()]"


class Clipped(Operation):
    """With a setting of a type that no annotation tells, and one of several numbers."""

    fuses = "pointwise"
    how: object = None
    ends: tuple[float, ...] = (0.0, 1.0)
    sides: tuple[int, str] = (2, "both")
    notes: tuple = ()  # of anything

    def forward(self, m, x):
        return m.maximum(m.minimum(x, self.ends[1]), self.ends[0])

    def backward(self, m, dout, x, y):
        return m.where((x < self.ends[0]) | (x > self.ends[1]), 0, dout)


def test_a_setting_that_no_file_can_hold_is_refused(tmp_path):
    network = Network([Clipped(how=len)])
    with pytest.raises(WeightsError, match=r"Clipped.* has a setting that no file can hold.*len"):
        weights.save(network, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_an_operation_of_ones_own_comes_back(tmp_path):
    settings = {"how": "well", "ends": (-1, 2.5), "sides": (1, "left"), "notes": ("a", 2)}
    numpys = {"ends": (np.int64(-1), np.float32(2.5))}  # which become Python's own in a file
    for made in (settings, settings | numpys):
        weights.save(Network([Clipped(**made)]), tmp_path / "net")
        (layer,) = weights.load_network(tmp_path / "net").layers
        assert type(layer.operation) is Clipped
        assert layer.settings() == settings
        assert [type(end) for end in layer.ends] == [int, float]


def test_a_setting_with_a_hint_that_is_not_here_comes_back(tmp_path):
    class Hinted(Operation):
        fuses = "pointwise"
        how: "Nowhere" = None  # noqa: F821  # it is imported by type checkers alone

        def forward(self, m, x):
            return x + 0

        def backward(self, m, dout, x, y):
            return dout

    weights.save(Network([Hinted("well")]), tmp_path / "net")
    assert weights.load_network(tmp_path / "net").layers[0].how == "well"


@pytest.mark.parametrize("parts", [([xnet.layers.Layer()], None), ([], xnet.layers.LossLayer())])
def test_what_says_not_what_it_computes_is_not_saved(tmp_path, parts):
    layers, loss = parts
    with pytest.raises(WeightsError, match=r"Layer\(\) cannot be saved"):
        weights.save(Network([Affine(2, 2), *layers], loss), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_what_is_not_finite_is_named(backend, tmp_path, value, kind):
    """In silence it would make every prediction NaN."""
    network, path = xnet.TwoLayerNet(4, 3, 2), tmp_path / "net"
    for name in ("W1", "b2"):
        array = network.backend.to_numpy(network.params[name]).copy()
        array[-1] = value
        network.params[name] = network.backend.asarray(array)
    if kind == "pickle":
        arrays = {k: network.backend.to_numpy(v) for k, v in network.params.items()}
        path.write_bytes(pickle.dumps(arrays))
    else:
        weights.save(network, path)
    with pytest.warns(NonFiniteWarning) as caught:
        loaded = weights.load_network(path)
    (warning,) = caught
    assert str(warning.message).startswith(f"{path}: NaN or infinity in ['W1', 'b2']: ")
    assert warning.filename == __file__
    assert bits(loaded) == bits(network)


def test_state_that_is_not_finite_is_named(tmp_path):
    network = trained(make_network())
    next(iter(network.state.values()))[0] = np.nan
    weights.save(network, tmp_path / "net")
    with pytest.warns(NonFiniteWarning, match=rf"in \['state\.{next(iter(network.state))}'\]"):
        weights.load_network(tmp_path / "net")


def test_weights_that_a_dtype_cannot_hold_are_named(tmp_path):
    network = xnet.TwoLayerNet(4, 3, 2)
    network.params["b1"][0] = 1e300
    weights.save(network, tmp_path / "net")
    with np.errstate(over="ignore"), pytest.warns(NonFiniteWarning, match="'b1'"):
        weights.load_network(tmp_path / "net", dtype="float32")
    assert np.isfinite(weights.load_network(tmp_path / "net").params["b1"]).all()


# How files are written.


def fail_to(monkeypatch, what: str, error: BaseException) -> None:
    """Let one step of writing a file raise `error`."""

    def fail(*_):
        raise error

    if what != "write":
        monkeypatch.setattr(os, what, fail)
        return

    def opened(*arguments):
        file = builtins.open(*arguments)  # noqa: SIM115 - the caller closes it
        write = file.write

        class HalfWritten:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, content):
                write(content[: len(content) // 2])
                raise error

        return HalfWritten()

    monkeypatch.setattr(files, "open", opened, raising=False)


@pytest.mark.parametrize("what", ["write", "fsync", "replace"])
@pytest.mark.parametrize("old", [b"what was there", None])
def test_failure_in_mid_writing_leaves_the_old_file(monkeypatch, tmp_path, what, old):
    path = tmp_path / "net"
    if old is not None:
        path.write_bytes(old)
    fail_to(monkeypatch, what, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(WeightsError, match="net cannot be written: No space left on device"):
        weights.save(make_network(), path)
    assert [each.name for each in tmp_path.iterdir()] == ([] if old is None else ["net"])
    assert old is None or path.read_bytes() == old


@pytest.mark.parametrize("what", ["write", "fsync", "replace"])
def test_ctrl_c_in_mid_writing_leaves_the_old_file(monkeypatch, tmp_path, what):
    path = tmp_path / "net"
    path.write_bytes(b"what was there")
    fail_to(monkeypatch, what, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        weights.save(make_network(), path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"what was there"


def test_new_file_is_whole_before_it_takes_the_old_ones_place(monkeypatch, tmp_path):
    """So that a run killed at any moment leaves the one or the other."""
    path = tmp_path / "net"
    path.write_bytes(b"what was there")
    replace, seen = os.replace, []

    def watched(source, target):
        seen.append((path.read_bytes(), bits(weights.load_network(source))))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    weights.save(make_network(), path)
    assert seen == [(b"what was there", bits(make_network()))]
    assert bits(weights.load_network(path)) == bits(make_network())


def test_all_of_a_file_is_on_the_disk_before_it_takes_the_old_ones_place(monkeypatch, tmp_path):
    """So that a power cut leaves the one or the other, too."""
    fsync, replace, seen = os.fsync, os.replace, []

    def synced(file):
        seen.append(os.fstat(file).st_size)
        fsync(file)

    def replaced(source, target):
        seen.append("replaced")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    weights.save(make_network(), tmp_path / "net")
    assert seen == [(tmp_path / "net").stat().st_size, "replaced"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_file_is_an_ordinary_one(tmp_path, umask):
    before = os.umask(umask)
    try:
        weights.save(make_network(), tmp_path / "net")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "net").stat().st_mode) == 0o666 & ~umask


def test_longest_name_a_folder_takes(tmp_path):
    path = tmp_path / ("n" * 255)
    weights.check_writable(path)
    weights.save(make_network(), path)
    assert bits(weights.load_network(path)) == bits(make_network())


needs_links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")


@needs_links
@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to none yet"])
def test_a_symbolic_link_is_written_through(tmp_path, there):
    """As other programs do: the link that a script has set up stays."""
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    real.parent.mkdir()
    if there:
        real.write_bytes(b"what was there")
    link.symlink_to(Path("elsewhere") / "real")
    weights.check_writable(link)
    weights.save(make_network(), link)
    assert link.is_symlink()
    assert not real.is_symlink()
    assert bits(weights.load_network(real)) == bits(make_network())
    assert [path.name for path in real.parent.iterdir()] == ["real"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link"]


KILLED = """
import os, signal, sys
import xnet

os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
xnet.weights.save(xnet.TwoLayerNet(4, 3, 2), sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_what_killed_runs_left_is_removed_by_the_next(tmp_path):
    """But not what a run is writing at this moment, nor what others call by a similar name."""
    path = tmp_path / "net"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
        assert done.returncode == -signal.SIGKILL
    left, writing = tmp_path.iterdir()
    two_hours_ago = time.time() - 7200
    os.utime(left, (two_hours_ago, two_hours_ago))
    theirs = {tmp_path / ".xnet-settings", tmp_path / f"{left.name}.txt", tmp_path / "xnet-0"}
    for other in theirs:
        other.touch()
        os.utime(other, (two_hours_ago, two_hours_ago))
    weights.save(make_network(), path)
    assert set(tmp_path.iterdir()) == {path, writing, *theirs}


def test_leftovers_that_cannot_be_removed_stay(tmp_path):
    folder = tmp_path / f".xnet-{'0' * 16}"
    folder.mkdir()
    os.utime(folder, (0, 0))
    weights.save(make_network(), tmp_path / "net")
    assert sorted(tmp_path.iterdir()) == [folder, tmp_path / "net"]


UNWRITABLE = {
    "no such folder": lambda folder: folder / "nowhere" / "net",
    "below a file": lambda folder: folder / "file" / "net",
    "a folder": lambda folder: folder / "folder",
    "nothing": lambda folder: "",
    "name too long": lambda folder: folder / ("n" * 256),
    "a link to a folder": lambda folder: linked(folder / "link", folder / "folder"),
    "a link to itself": lambda folder: linked(folder / "link", folder / "link"),
    "a link to nowhere": lambda folder: linked(folder / "link", folder / "nowhere" / "net"),
}


def linked(link: Path, target: Path) -> Path:
    if os.name == "nt":
        pytest.skip("links need a privilege on Windows")
    link.symlink_to(target)
    return link


@pytest.mark.parametrize("kind", UNWRITABLE)
@pytest.mark.parametrize("call", [weights.check_writable, lambda path: weights.save(NET, path)])
def test_unwritable_path_is_refused(monkeypatch, tmp_path, kind, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"a file")
    (tmp_path / "folder").mkdir()
    path = Path(UNWRITABLE[kind](tmp_path))
    with pytest.raises(WeightsError) as caught:
        call(path)
    assert str(caught.value).startswith(f"{path} cannot be written: ")
    left = {each.name for each in tmp_path.iterdir() if not each.is_symlink()}
    assert left == {"file", "folder"}


NET = make_network(backend="numpy")


def test_folder_without_permission_is_refused(monkeypatch, tmp_path):
    """As the system says it; a chmod would not stop the superuser, as whom tests may run."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    for call in (weights.check_writable, lambda path: weights.save(NET, path)):
        with pytest.raises(WeightsError, match="net cannot be written: Permission denied"):
            call(tmp_path / "net")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such special files here")
@pytest.mark.parametrize("call", [weights.check_writable, lambda path: weights.save(NET, path)])
def test_special_file_is_not_replaced(tmp_path, call):
    """/dev/null is one: root's `--save /dev/null` must not turn it into a file."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(WeightsError, match="pipe cannot be written"):
        call(path)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_check_writable_leaves_nothing(tmp_path):
    weights.check_writable(tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


# Files that are not what they should be.


def refusal(path: Path, content: bytes) -> str:
    """What load_network says of a file of this content, the file's name taken off."""
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        weights.load_network(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_file_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in {
        tmp_path: "directory",
        tmp_path / "none": "No such file",
        tmp_path / "pipe": "no ordinary file",  # nobody may ever write to it
        Path("/dev/zero"): "no ordinary file",
    }.items():
        with pytest.raises(WeightsError) as caught:
            weights.load_network(path)
        assert str(caught.value).startswith(f"{path} cannot be read: ")
        assert reason in str(caught.value)


def test_every_truncation_is_refused(saved):
    content = saved.read_bytes()
    for length in range(len(content)):
        assert "a safetensors file" in refusal(saved, content[:length])
    assert "not a safetensors file" in refusal(saved, content + b"\0")


def test_every_flipped_bit_of_the_header_is_refused_or_harmless(saved):
    """A flip may give another valid file; it must never give another exception."""
    weights.save(Network([Affine(4, 2), BatchNorm(2)]), saved)
    content = bytearray(saved.read_bytes())
    refused = 0
    for index in range(8 + int.from_bytes(content[:8], "little")):
        for bit in range(8):
            content[index] ^= 1 << bit
            saved.write_bytes(content)
            try:
                assert weights.load_network(saved).inputs == 4
            except WeightsError as error:
                assert str(error).startswith(f"{saved}: ")  # noqa: PT017 - either is right
                refused += 1
            content[index] ^= 1 << bit
    assert refused > 3000


@settings(deadline=None, max_examples=200)
@given(start=st.sampled_from([b"", b"\x80", b"\x10\0\0\0\0\0\0\0{"]), rest=st.binary())
def test_random_bytes_are_refused(tmp_path_factory, start, rest):
    assert refusal(tmp_path_factory.getbasetemp() / "random", start + rest)


OK = {"W1": np.ones((2, 3)), "b1": np.ones(3)}
AFFINE = ["Affine", {"inputs": 2, "outputs": 3}]


def described(layers, loss=("SoftmaxWithLoss", {}), form=2, frozen=()) -> str:
    facts = {"format": form, "layers": layers, "loss": loss, "frozen": frozen}
    return json.dumps(facts)


def with_settings(name, **settings) -> str:
    return described([AFFINE, [name, settings]])


DESCRIPTIONS = {
    "unknown layer": (
        described([AFFINE, ["Tanhh", {}]]),
        "unknown operation 'Tanhh': before loading, import the module that defines it, or install",
    ),
    "unknown loss": (described([AFFINE], loss=["Henge", {}]), "unknown operation 'Henge'"),
    "a loss among the layers": (described([AFFINE, ["Hinge", {}]]), "Hinge(1.0) is a loss"),
    "a layer for a loss": (described([AFFINE], loss=["ReLU", {}]), "ReLU() stands for the loss"),
    "an earlier format": (described([AFFINE], form=1), "format 1, this xnet reads format 2"),
    "a later format": (described([AFFINE], form=3), "format 3, this xnet reads format 2"),
    "missing tensor": (described([AFFINE, AFFINE]), "W2"),
    "missing state": (with_settings("BatchNorm", units=3), "gamma1"),
    "no layers": (described([]), "layers is empty"),
    "not JSON": ("{", ""),
    "nothing": ("null", ""),
    "a number": ("1", ""),
    "a string": ('"Affine"', ""),
    "a list": ("[]", ""),
    "no format": ("{}", "format"),
    "no layers at all": ('{"format": 2}', "layers"),
    "no loss": (f'{{"format": 2, "layers": [{json.dumps(AFFINE)}]}}', "loss"),
    "nothing frozen": (described([AFFINE]).replace("frozen", "cold"), "frozen"),
    "frozen before the first": (described([AFFINE], frozen=[-1]), "frozen is [-1]"),
    "frozen beyond the last": (described([AFFINE], frozen=[1]), "frozen is [1], expected numbers"),
    "frozen by name": (described([AFFINE], frozen=["W1"]), "frozen is ['W1']"),
    "frozen or not": (described([AFFINE], frozen=[True]), "frozen is [True]"),
    "a number frozen": (described([AFFINE], frozen=0), ""),
    "layers that are none": (described(3), ""),
    "a layer that is none": (described([3]), ""),
    "a layer of three": (described([[*AFFINE, {}]]), ""),
    "a layer named by a list": (described([[[], {}]]), "expected a name and a dict"),
    "settings that are none": (described([AFFINE, ["ReLU", 3]]), "expected a name and a dict"),
    "settings too many": (with_settings("ReLU", slope=1), "'ReLU' with settings {'slope': 1}: "),
    "settings too few": (described([["Affine", {"inputs": 2}]]), "outputs"),
    "a text for a number": (with_settings("ELU", alpha="1"), "alpha is '1', expected float"),
    "a truth for a number": (with_settings("ELU", alpha=True), "alpha is True, expected float"),
    "nothing for a number": (with_settings("ELU", alpha=None), "alpha is None, expected float"),
    "a list for a number": (with_settings("ELU", alpha=[1.0]), "alpha is [1.0], expected float"),
    "too large a number": (with_settings("ELU", alpha=10**400), "too large"),
    "half a unit": (with_settings("BatchNorm", units=2.5), "units is 2.5, expected int"),
    "a number out of range": (with_settings("Dropout", ratio=1.5), "ratio is 1.5, expected within"),
    "a size below 1": (described([["Affine", {"inputs": 0, "outputs": 3}]]), "at least 1"),
    "a size beyond memory": (
        described([["Affine", {"inputs": 10**15, "outputs": 10**15}]]),
        "W1 has shape (2, 3), Affine(1000000000000000, 1000000000000000) expects",
    ),
    "another initial weight": (
        described([["Affine", {"inputs": 2, "outputs": 3, "weight_init_std": []}]]),
        "weight_init_std is []",
    ),
    "texts in a tuple": (
        described([AFFINE], loss=["SoftmaxWithLoss", {"class_weights": ["1"]}]),
        "class_weights is '1', expected float",
    ),
    "a tuple too short": (with_settings("Clipped", sides=[1]), "Clipped"),
    "an abstract operation": (described([AFFINE, ["Pointwise", {}]]), "unknown operation"),
    "the base": (described([AFFINE, ["Operation", {}]]), "unknown operation"),
    "a loss that is no name": (described([AFFINE], loss=[]), ""),
    "a loss that is a name alone": (described([AFFINE], loss="Hinge"), ""),
    "deep nesting": ("[" * 100_000, ""),
    "a name as long as a book": (described([["R" * 10**6, {}]]), "unknown operation"),
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_bad_architecture_is_refused(tmp_path, kind):
    text, reason = DESCRIPTIONS[kind]
    content = safetensors.numpy.save(OK, metadata={"xnet": text})
    said = refusal(tmp_path / "net", content)
    assert reason in said
    assert len(said) < 400


def test_an_operation_that_raises_anything_is_the_files_fault(tmp_path):
    class Picky(Operation):
        fuses = "pointwise"

        def __post_init__(self):
            raise ArithmeticError("no such thing")

    content = safetensors.numpy.save(OK, metadata={"xnet": with_settings("Picky")})
    assert "'Picky' with settings {}: no such thing" in refusal(tmp_path / "net", content)


def test_packages_are_asked_for_what_is_not_known_alone(monkeypatch):
    asked = []

    def registered():
        asked.append(1)
        return operations.OPERATIONS | {"Elsewhere": operations.Tanh}

    monkeypatch.setattr(weights, "registered", registered)
    assert type(weights._made("Sigmoid", {})) is operations.Sigmoid
    assert asked == []
    assert type(weights._made("Elsewhere", {})) is operations.Tanh
    assert asked == [1]


LATER = """
import xnet
from xnet import operations

class Later(operations.Operation):
    fuses = "pointwise"
    slope: float = 2.0

    def forward(self, m, x):
        return self.slope * x

    def backward(self, m, dout, x, y):
        return self.slope * dout

if __name__ == "__main__":
    import sys
    xnet.weights.save(xnet.Network([operations.Affine(2, 2), Later(0.5)]), sys.argv[1])
"""
LOADING = """
import sys, xnet
try:
    print(xnet.weights.load_network(sys.argv[1]))
except xnet.WeightsError as error:
    print(error)
"""


def test_an_operation_is_known_where_it_is_imported_or_registered_by_a_package(tmp_path):
    (tmp_path / "later.py").write_text(LATER)
    path = str(tmp_path / "net")

    def run(*command, **environment) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", *command, path],
            capture_output=True,
            text=True,
            env=os.environ | environment,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    run(str(tmp_path / "later.py"))
    here = {"PYTHONPATH": str(tmp_path)}
    assert "unknown operation 'Later'" in run("-c", LOADING, **here)
    expected = "Network([Affine(2, 2), Later(0.5)], SoftmaxWithLoss()"
    assert run("-c", "import later" + LOADING, **here).startswith(expected)
    info = tmp_path / "later-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: later\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[xnet.operations]\nlater = later\n")
    assert run("-c", LOADING, **here).startswith(expected)


def test_a_broken_package_does_not_take_the_others_with_it(tmp_path):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[xnet.operations]\nbroken = no_such_module\n")
    done = subprocess.run(
        [sys.executable, "-c", "from xnet import operations; print(*operations.registered())"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0
    assert {"Affine", "Tanh", "Hinge"} <= set(done.stdout.split())
    assert "operations of no_such_module are left out: ModuleNotFoundError" in done.stderr


TENSORS = {
    "shapes that do not fit": {"W1": np.ones((2, 3)), "b1": np.ones(2)},
    "no matrix": {"W1": np.ones(3), "b1": np.ones(3)},
    "empty": {"W1": np.ones((0, 3)), "b1": np.ones(3)},
    "integers": {"W1": np.ones((2, 3), int), "b1": np.ones(3, int)},
    "float16": {"W1": np.ones((2, 3), "float16"), "b1": np.ones(3, "float16")},
    "two dtypes": {"W1": np.ones((2, 3)), "b1": np.ones(3, "float32")},
}


@pytest.mark.parametrize("kind", TENSORS)
def test_bad_tensors_are_refused(tmp_path, kind):
    arrays, architecture = TENSORS[kind], described([AFFINE])
    reason = refusal(
        tmp_path / "net", safetensors.numpy.save(arrays, metadata={"xnet": architecture})
    )
    assert re.search(r"[Wb]1|parameters", reason)
    assert "expect" in reason or "float32" in reason


def raw_safetensors(header: str, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + data


@pytest.mark.parametrize("metadata", ["", '"__metadata__": null', '"__metadata__": {"x": "y"}'])
def test_safetensors_of_other_programs_are_refused(tmp_path, metadata):
    content = raw_safetensors(f"{{{metadata}}}")
    assert "without an xnet architecture" in refusal(tmp_path / "net", content)


def test_dtype_that_numpy_lacks_is_refused(tmp_path):
    tensors = {
        "W1": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]},
        "b1": {"dtype": "BF16", "shape": [2], "data_offsets": [4, 8]},
    }
    header = json.dumps({"__metadata__": {"xnet": described([AFFINE])}, **tensors})
    assert "BF16" in refusal(tmp_path / "net", raw_safetensors(header, bytes(8)))


def test_bad_arguments_are_no_fault_of_the_file(saved):
    with pytest.raises(ValueError, match="dtype is int8, expected float32 or float64"):
        weights.load_network(saved, dtype="int8")
    with pytest.raises(xnet.BackendError, match="unknown backend 'nunpy'"):
        weights.load_network(saved, backend="nunpy")
    with pytest.raises(TypeError, match="backend is a int"):
        weights.load_network(saved, backend=3)


# Pickles.


def test_notes_weights(backend, sample_weight):
    network = weights.load_network(sample_weight)
    assert repr(network.layers) == (
        "[Affine(784, 50), Sigmoid(), Affine(50, 100), Sigmoid(), Affine(100, 10)]"
    )
    assert (network.dtype, network.backend) == ("float32", backend)
    assert isinstance(network.loss_layer.operation, SoftmaxWithLoss)
    with open(sample_weight, "rb") as file:
        expected = pickle.load(file)
    for name, array in network.params.items():
        np.testing.assert_array_equal(backend.to_numpy(array), expected[name], strict=True)


def scaled(x, raw):
    return x if raw else x / np.float32(255)


@pytest.mark.parametrize(("raw", "right"), [(True, 9207), (False, 9352)])
def test_notes_accuracy_in_batches(backend, sample_weight, mnist, raw, right):
    _, (x, t) = mnist
    network = weights.load_network(sample_weight)
    batches = [
        network.accuracy(scaled(x[i : i + 2000], raw), t[i : i + 2000])
        for i in range(0, 10_000, 2000)
    ]
    assert round(2000 * sum(batches)) == right


@pytest.mark.parametrize(("raw", "right"), [(True, 9207), (False, 9352)])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "strict"], indirect=True)
def test_notes_accuracy_one_at_a_time(backend, sample_weight, mnist, raw, right):
    _, (x, t) = mnist
    network = weights.load_network(sample_weight)
    classes = [backend.to_numpy(network.predict(one)).argmax() for one in scaled(x, raw)]
    assert int((np.array(classes) == t).sum()) == right


def test_notes_weights_survive_saving(tmp_path, sample_weight):
    network = weights.load_network(sample_weight)
    weights.save(network, tmp_path / "net")
    assert bits(weights.load_network(tmp_path / "net")) == bits(network)


ARRAYS = {
    "float64": {"W1": np.arange(6.0).reshape(2, 3), "b1": np.ones(3)},
    "float32": {"W1": np.ones((2, 3), "float32"), "b1": np.ones(3, "float32")},
    "by column": {"W1": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "b1": np.ones(3)},
    "big-endian": {"W1": np.arange(6.0).reshape(2, 3).astype(">f8"), "b1": np.ones(3, ">f8")},
}


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_load_from_every_protocol(tmp_path, kind, protocol):
    """Python 3.14 pickles by protocol 5 unless told otherwise, Python 2 did by 0."""
    arrays = ARRAYS[kind]
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(arrays, protocol))
    network = weights.load_network(tmp_path / "net.pkl", backend="numpy")
    for name, array in arrays.items():
        native = array.astype(array.dtype.newbyteorder("="))
        np.testing.assert_array_equal(network.params[name], native, strict=True)


@pytest.fixture
def sentinel(tmp_path) -> Path:
    return tmp_path / "ran"


def calling(function, *arguments):
    """An object whose pickle asks the reader to call `function`."""

    class Call:
        def __reduce__(self):
            return function, arguments

    return Call()


RUNNING = {  # a function, what it is called with to make a folder, and its name in a pickle
    "system": (os.system, "mkdir '{}'", rf"{os.system.__module__}\.system"),
    "mkdir": (os.mkdir, "{}", rf"{os.mkdir.__module__}\.mkdir"),
    "eval": (eval, "__import__('os').mkdir('{}')", r"(builtins|__builtin__)\.eval"),
    "exec": (exec, "import os; os.mkdir('{}')", r"(builtins|__builtin__)\.exec"),
    "runstring": (
        numpy.testing.runstring,
        "import os; os.mkdir('{}')",
        r"numpy\.testing\..*runstring",
    ),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", RUNNING)
def test_pickle_that_runs_code_is_refused_by_name(tmp_path, sentinel, kind, protocol):
    function, code, name = RUNNING[kind]
    arguments = [code.format(sentinel)] + [{}] * (kind == "runstring")
    content = pickle.dumps(calling(function, *arguments), protocol)
    assert re.match(rf"a pickle that names {name},", refusal(tmp_path / "evil.pkl", content))
    assert not sentinel.exists()
    pickle.loads(content)
    assert sentinel.exists()  # so it would have run


@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil: {"W1": np.ones((2, 3)), "b1": evil},
        lambda evil: {"W1": np.ones((2, 3)), "b1": np.ones(3), "x": [({"y": evil},)]},
        lambda evil: {(evil, 1): np.ones(3)},
        lambda evil: np.array([evil, None], object),
        lambda evil: [evil],
    ],
    ids=["value", "deep", "key", "object array", "list"],
)
def test_nested_code_is_refused(tmp_path, sentinel, wrap):
    evil = calling(os.mkdir, str(sentinel))
    content = pickle.dumps(wrap(evil), 3)
    reason = refusal(tmp_path / "evil.pkl", content)
    first = (f"names {os.mkdir.__module__}.mkdir,", "dtype 'O8'", "opcode EMPTY_LIST")
    assert any(part in reason for part in first)
    assert not sentinel.exists()


def named(module: str, name: str) -> bytes:
    """Pickle code that pushes a global by the opcode of protocol 2."""
    return f"c{module}\n{name}\n".encode()


def named_4(module: str, name: str) -> bytes:
    """Pickle code that pushes a global by the opcode of protocol 4, which takes dotted names."""
    texts = (b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"".join(texts) + b"\x93"


@pytest.mark.parametrize("push", [named, named_4])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy", "matrix"),
        ("numpy", "vectorize"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.multiarray", "fromfile"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.distutils.exec_command", "exec_command"),
        ("xnet.weights", "os.system"),
        ("xnet.tools.notes_pickle", "pickle.loads"),
        ("xnet.weights", "save"),
        ("builtins", "getattr"),
        ("functools", "partial"),
        ("copyreg", "_reconstructor"),
        ("no_such_module", "no_such_name"),
    ],
)
def test_other_names_are_refused_before_they_are_imported(tmp_path, push, module, name):
    content = b"\x80\x04" + push(module, name) + b"."
    before = set(sys.modules)
    reason = refusal(tmp_path / "evil.pkl", content)
    assert f"names {module}.{name}, which is no NumPy array: refused" in reason
    assert set(sys.modules) == before


RECONSTRUCT = named("numpy.core.multiarray", "_reconstruct")
NDARRAY = named("numpy", "ndarray")
EMPTY_SHAPE = b"K\x00\x85"  # (0,)


def reconstructed(kind: bytes, shape: bytes = EMPTY_SHAPE) -> bytes:
    """Pickle code for _reconstruct(kind, shape, b"b")."""
    return RECONSTRUCT + kind + shape + b"C\x01b\x87R"


def test_reconstruct_of_another_class_is_refused(tmp_path, sentinel):
    path = tmp_path / "evil.pkl"
    for module, name in [(os.mkdir.__module__, "mkdir"), ("numpy", "matrix")]:
        content = b"\x80\x03" + reconstructed(named(module, name)) + b"."
        assert f"names {module}.{name}," in refusal(path, content)
    for kind in (named("numpy", "dtype"), RECONSTRUCT, b"K\x01", b"N"):
        assert "plain NumPy arrays" in refusal(path, b"\x80\x03" + reconstructed(kind) + b".")
    large = reconstructed(NDARRAY, shape=b"J\xff\xff\xff\x7f\x85")
    assert "plain NumPy arrays" in refusal(path, b"\x80\x03" + large + b".")


HARD = f"""
import resource, sys
from pathlib import Path
from xnet import WeightsError, weights

{PEAK_MEMORY}
# What a damaged length asks for must fail at once, not fill the machine.
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
path, refused = Path(sys.argv[1]), 0
for line in sys.stdin:
    content = bytes.fromhex(line)
    path.write_bytes(content)
    before = peak_memory()
    try:
        weights.load_network(path)
    except WeightsError as error:
        assert len(str(error)) - len(str(path)) < 300, error
        refused += 1
    assert peak_memory() - before < 20_000_000 + 100 * len(content), content[:100]
print(refused)
"""


def load_in_a_child(tmp_path: Path, contents: list[bytes], refused: int | None = None) -> None:
    """Load files of these contents: each must load or raise WeightsError, and `refused` of them do.

    In another process, for one that does neither may take its process with it.
    """
    pytest.importorskip("resource", reason="no limit on memory can be set here")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HARD, str(tmp_path / "hard.pkl")],
        input="\n".join(content.hex() for content in contents),
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # its threads' stacks count as memory
        timeout=60,  # against what would take for ever
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert refused in (None, int(done.stdout))


def test_array_over_raw_memory_cannot_be_made(tmp_path):
    """np.ndarray(shape, "O", buffer) takes the buffer's bytes for addresses of objects."""
    objects = NDARRAY + b"(K\x01\x85\x8c\x01OC\x08AAAAAAAAtR"
    load_in_a_child(tmp_path, [b"\x80\x04" + NDARRAY + objects + b"\x85R."])


@pytest.mark.slow
def test_pickles_with_flipped_bits(tmp_path):
    content = bytearray(pickle.dumps(ARRAYS["float64"], 3))
    flipped = []
    for index in range(len(content)):
        for bit in range(8):
            content[index] ^= 1 << bit
            flipped.append(bytes(content))
            content[index] ^= 1 << bit
    load_in_a_child(tmp_path, flipped)


@pytest.mark.slow
def test_pickles_with_altered_bytes(tmp_path, rng):
    altered = []
    for _ in range(3000):
        content = bytearray(pickle.dumps(ARRAYS["float64"], 3))
        for _ in range(rng.integers(1, 7)):
            content[rng.integers(len(content))] = rng.integers(256)
        altered.append(bytes(content))
    load_in_a_child(tmp_path, altered)


def test_small_pickle_takes_little_memory(tmp_path):
    """Opcode "r" stores the top of the stack under a number, for which room may be made."""
    tracemalloc.start()
    try:
        refusal(tmp_path / "net.pkl", b"\x80\x02K\x01r\x00\x00\x00\x01.")  # number 2^24
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def text(characters: str) -> bytes:
    """Pickle code that pushes a text."""
    content = characters.encode()
    return b"X" + len(content).to_bytes(4, "little") + content


FLOATS = named("numpy", "dtype") + text("f8") + b"\x89\x88\x87R"  # dtype("f8", False, True)
BUFFER = named("numpy.core.numeric", "_frombuffer")
CODECS = named("_codecs", "encode")
NESTED = b")q\0" + b"h\0h\0\x86q\0" * 60  # a tuple of two, both of them a tuple of two, ...
DOUBLED = b")" + b"2\x86" * 60  # the same by another opcode
MEGABYTE = 1 << 20
HARMFUL = {
    "bytearray of 3 GiB": b"\x96" + (3 << 30).to_bytes(8, "little"),
    "bytes of 3 GiB": b"\x8e" + (3 << 30).to_bytes(8, "little"),
    "frame of 3 GiB": b"\x95" + (3 << 30).to_bytes(8, "little"),
    "text of 3 GiB": b"\x8d" + (3 << 30).to_bytes(8, "little"),
    "number of a thousand million bits": b"\x8b" + (1 << 27).to_bytes(4, "little"),
    **{
        f"{tuples} tuples as {place}": before + nested + after
        for tuples, nested in {"memoized": NESTED, "doubled": DOUBLED}.items()
        for place, (before, after) in {
            "the whole": (b"", b""),
            "a key": (b"}", b"Ns"),
            "one of the keys": (b"}(", b"Nu"),
            "a key of a new dict": (b"(", b"Nd"),
            "a member of a set": (b"\x8f(", b"\x90"),
            "a frozen set": (b"(", b"\x91"),
            "a value": (b"}" + text("W1"), b"s"),
            "a dtype": (named("numpy", "dtype"), b"\x89\x88\x87R"),
            "a state": (FLOATS, b"b"),
            "an encoding": (CODECS + text("a"), b"\x86R"),
            "a text": (CODECS, text("latin1") + b"\x86R"),
            "the class": (RECONSTRUCT, EMPTY_SHAPE + b"C\x01b\x87R"),
            "the shape": (RECONSTRUCT + NDARRAY, b"C\x01b\x87R"),
            "the data": (BUFFER + b"(", FLOATS + EMPTY_SHAPE + text("C") + b"tR"),
            "the data's dtype": (BUFFER + b"(C\0", EMPTY_SHAPE + text("C") + b"tR"),
            "the data's shape": (BUFFER + b"(C\0" + FLOATS, text("C") + b"tR"),
            "the data's order": (BUFFER + b"(C\0" + FLOATS + EMPTY_SHAPE, b"tR"),
            "what is called": (b"", b")R"),
        }.items()
    },
    "one text made bytes a thousand times": (
        text("a" * MEGABYTE) + b"q\0" + (CODECS + b"h\0" + text("latin1") + b"\x86R") * 1000
    ),
    "one text of bytes for a thousand arrays": (
        b"B" + MEGABYTE.to_bytes(4, "little") + bytes(MEGABYTE) + b"q\0" + FLOATS + b"q\1"
        + b"J" + (MEGABYTE // 8).to_bytes(4, "little") + b"\x85q\2}("
        + b"".join(
            text(f"{kind}{number}") + BUFFER + b"(h\0h\1h\2" + text("C") + b"tR"
            for number in range(1, 501)
            for kind in "Wb"
        )
        + b"u"
    ),
    "the same arguments for a million calls": (
        FLOATS + b"q\0" + named("numpy", "dtype") + b"q\1("
        + text("f8") + b"\x89\x88" + b"N" * MEGABYTE + b"tq\2" + b"h\1h\2R" * MEGABYTE
    ),
    "a long name": named("a" * MEGABYTE, "b" * MEGABYTE),
    "a long key": b"}" + text("a" * MEGABYTE) + b"Ns",
    "a long dtype": named("numpy", "dtype") + text("f" * MEGABYTE) + b"\x89\x88\x87R",
    "a long encoding": CODECS + text("a") + text("l" * MEGABYTE) + b"\x86R",
    "what is not latin1": CODECS + text("Ω" * MEGABYTE) + text("latin1") + b"\x86R",
    "a long number": b"I" + b"1" * MEGABYTE + b"\n",
    "a number that is none": b"I" + b"x" * MEGABYTE + b"\n",
    "a long place to get from": b"g" + b"1" * 4000 + b"\n",
}  # fmt: skip


def buffer(data: bytes, dtype: bytes = FLOATS, count: int = 2) -> bytes:
    """Pickle code that pushes an array, from code that pushes its bytes and its dtype."""
    return BUFFER + b"(" + data + dtype + b"K" + bytes([count]) + b"\x85" + text("C") + b"tR"


TWO = b"C\x10" + bytes(16)  # pushes the bytes of two numbers
MATRIX = BUFFER + b"(" + TWO + FLOATS + b"K\x01K\x02\x86" + text("C") + b"tR"
ITEMS = text("W1") + MATRIX + text("b1") + buffer(TWO)


@pytest.mark.parametrize("code", [b"(" + ITEMS + b"d", b"}(" + ITEMS + b"u"], ids=["new", "set"])
def test_a_dict_may_be_made_at_once_or_filled(tmp_path, code):
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04" + code + b".")
    params = weights.load_network(tmp_path / "net.pkl", backend="numpy").params
    assert {name: a.tolist() for name, a in params.items()} == {
        "W1": [[0.0, 0.0]],
        "b1": [0.0, 0.0],
    }


PLAIN, WHOLE = "a pickle that does not hold plain arrays of numbers", "nor a whole pickle"
ONCE = "text that is not the bytes of arrays, each once"
FORGED = {
    "an array without numbers": (
        b"}" + text("W1") + reconstructed(NDARRAY) + b"s",
        "expected the arrays W1, b1, W2, b2, ...",
    ),
    "numbers that are text": (b"}" + text("W1") + buffer(text("a" * 16)) + b"s", PLAIN),
    "a dtype that is text": (b"}" + text("W1") + buffer(TWO, text("f8")) + b"s", PLAIN),
    "too few numbers": (b"}" + text("W1") + buffer(TWO, count=3) + b"s", WHOLE),
    "too many numbers": (b"}" + text("W1") + buffer(TWO, count=1) + b"s", WHOLE),
    "a name without a value": (b"}(" + ITEMS + text("W2") + b"u", WHOLE),
    "a name without a value in a new dict": (b"(" + ITEMS + text("W2") + b"d", WHOLE),
    "an item of an array": (MATRIX + text("W1") + b"Ns", "sets items of what is no dict"),
    "bytes in another encoding": (CODECS + text("a") + text("utf-8") + b"\x86R", ONCE),
    "bytes made twice of one text": (
        text("a" * 500) + b"q\0" + (CODECS + b"h\0" + text("latin1") + b"\x86R") * 2,
        ONCE,
    ),
    "one array's bytes for three": (
        b"}(" + text("W1") + buffer(b"C\xf0" + bytes(240) + b"q\0", count=30)
        + b"".join(text(name) + buffer(b"h\0", count=30) for name in ("b1", "W2")) + b"u",
        "arrays of 720 bytes in a pickle of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
def test_pickles_that_no_pickler_writes_are_refused_with_the_reason(tmp_path, kind):
    code, reason = FORGED[kind]
    assert reason in refusal(tmp_path / "net.pkl", b"\x80\x04" + code + b".")


def test_a_file_of_very_many_layers_loads_in_a_moment(tmp_path):
    """In a time that grows as their square, this file of 320 kB would take more than a minute."""
    text = described([["ReLU", {}]] * 20_000)
    content = raw_safetensors(json.dumps({"__metadata__": {"xnet": text}}))
    load_in_a_child(tmp_path, [content], refused=0)


@pytest.mark.parametrize(
    "metadata",
    [
        described([["ReLU", {"x" * 100_000: 1}]]),
        described([["x" * 100_000, {}]]),
        described([["ReLU", "x" * 100_000]]),
        described([], form="x" * 100_000),
        described([], frozen=["x" * 100_000]),
        described([], loss=["ReLU", {}]),
    ],
)
def test_messages_can_be_read(tmp_path, metadata):
    header = json.dumps({"__metadata__": {"xnet": metadata}})
    assert len(refusal(tmp_path / "net", raw_safetensors(header))) <= 300


def test_small_pickles_cost_little(tmp_path):
    """They are refused at once, in memory for what they hold and messages that can be read."""
    pickles = [b"\x80\x04" + code + b"." for code in HARMFUL.values()]
    load_in_a_child(tmp_path, pickles, refused=len(pickles))


def test_the_same_array_under_two_names(tmp_path):
    """A pickle holds it once, and each name has its own when it is loaded."""
    array = np.ones(2)
    content = {"W1": np.ones((2, 2)), "b1": array, "W2": np.ones((2, 2)), "b2": array}
    for protocol in PROTOCOLS:
        (tmp_path / "net.pkl").write_bytes(pickle.dumps(content, protocol))
        b1, b2 = (weights.load_network(tmp_path / "net.pkl").params[name] for name in ("b1", "b2"))
        np.testing.assert_array_equal(b1, b2, strict=True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_hundreds_of_arrays_load(tmp_path, protocol):
    """A pickler numbers what it has written; above 255, in opcodes of their own."""
    arrays = {}
    for number in range(1, 61):
        arrays |= {f"W{number}": np.full((2, 2), number / 7), f"b{number}": np.full(2, -number / 7)}
    arrays["W60"] = arrays["W59"]
    content = pickle.dumps(arrays, protocol)
    used = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    numbered = {0: {"PUT", "GET"}, 4: {"LONG_BINGET"}, 5: {"LONG_BINGET"}}
    assert used >= numbered.get(protocol, {"LONG_BINPUT", "LONG_BINGET"})
    (tmp_path / "net.pkl").write_bytes(content)
    network = weights.load_network(tmp_path / "net.pkl", backend="numpy")
    for name, array in arrays.items():
        np.testing.assert_array_equal(network.params[name], array, strict=True)


def test_an_array_longer_than_four_gigabytes_would_load(tmp_path):
    """Its bytes have an opcode of their own in protocol 4, put here on fewer."""
    arrays = {"W1": np.arange(10_000.0).reshape(100, 100), "b1": np.arange(100.0)}
    content, length = pickle.dumps(arrays, 4), 80_000
    usual = pickle.BINBYTES + struct.pack("<I", length)
    assert content.count(usual) == 1
    long = content.replace(usual, pickle.BINBYTES8 + struct.pack("<Q", length))
    assert pickle.loads(long).keys() == arrays.keys()
    (tmp_path / "net.pkl").write_bytes(long)
    network = weights.load_network(tmp_path / "net.pkl", backend="numpy")
    np.testing.assert_array_equal(network.params["W1"], arrays["W1"], strict=True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncated_pickle_is_refused(tmp_path, protocol):
    content = pickle.dumps(ARRAYS["float64"], protocol)
    for length in range(len(content)):
        assert refusal(tmp_path / "net.pkl", content[:length])


def test_truncated_notes_weights_are_refused(tmp_path, sample_weight):
    content = sample_weight.read_bytes()
    for length in [*range(1, 400, 13), *range(400, len(content), 4999), len(content) - 1]:
        assert refusal(tmp_path / "net.pkl", content[:length])


W, B = np.ones((2, 3)), np.ones(3)
OTHERS = {
    "a list": ([W, B], "it has the opcode EMPTY_LIST, which no dict of NumPy arrays needs"),
    "a tuple": ((W, B), "a pickled tuple, expected a dict of arrays"),
    "an array": (W, "expected a dict of arrays"),
    "nothing": (None, "a pickled NoneType, expected a dict of arrays"),
    "an empty dict": ({}, "expected W1, b1, W2, b2, ..."),
    "other names": ({"V1": W, "c1": B}, r"['V1', 'c1'], expected W1, b1, W2, b2, ..."),
    "one too few": ({"W1": W, "b1": B, "W2": W}, "expected W1, b1, W2, b2, ..."),
    "an array of no dimension": ({"W1": W[0, 0, ...], "b1": B}, "W1 has shape (), expected (D, M)"),
    "a gap": ({"W1": W, "b1": B, "W3": W, "b3": B}, "expected W1, b1, W2, b2, ..."),
    "names that are numbers": ({1: W, 2: B}, "a key that is a int, expected the names W1, b1,"),
    "numbers": ({"W1": 1.0, "b1": 2.0}, "opcode BINFLOAT"),
    "lists": ({"W1": [[1.0]], "b1": [2.0]}, "opcode EMPTY_LIST"),
    "texts": ({"W1": "1.0", "b1": "2.0"}, "dict with a str, expected the arrays W1, b1,"),
    "integers": ({"W1": W.astype(int), "b1": B.astype(int)}, "dtype 'i8', expected f4 or f8"),
    "objects": ({"W1": W.astype(object), "b1": B}, "dtype 'O8', expected f4 or f8"),
    "complex": ({"W1": W.astype(complex), "b1": B}, "dtype 'c16', expected f4 or f8"),
    "text arrays": ({"W1": W.astype("U3"), "b1": B}, ""),
    "records": ({"W1": np.zeros((2, 3), "f8,O"), "b1": B}, ""),
    "no matrix": ({"W1": B, "b1": B}, "W1 has shape (3,), expected (D, M)"),
    "shapes that do not fit": (
        {"W1": W, "b1": np.ones(2)},
        "b1 has shape (2,), Affine(2, 3) expects (3,)",
    ),
    "layers that do not fit": ({"W1": W, "b1": B, "W2": W, "b2": B}, "takes 2 features"),
    "two dtypes": (
        {"W1": W, "b1": B, "W2": np.ones((3, 2), "f4"), "b2": np.ones(2, "f4")},
        "float32 and float64",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_pickles_are_refused(tmp_path, kind):
    values, reason = OTHERS[kind]
    assert reason in refusal(tmp_path / "net.pkl", pickle.dumps(values, 3))


def test_layers_of_two_dtypes_load_with_a_dtype_named(tmp_path):
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(OTHERS["two dtypes"][0], 3))
    assert weights.load_network(tmp_path / "net.pkl", dtype="float32").dtype == "float32"


def test_pickle_cannot_set_the_state_of_anything_else(tmp_path):
    """BUILD would set attributes and defaults of the very functions that stand in for NumPy's."""
    state = b"}(X\x0c\x00\x00\x00__defaults__X\x06\x00\x00\x00latin1\x85u"
    content = b"\x80\x02" + BUFFER + b"N" + state + b"\x86b."
    assert "sets the state of what is no NumPy array" in refusal(tmp_path / "net.pkl", content)
    assert notes_pickle._from_buffer.__defaults__ is None


def test_sha256_tells_every_bit(backend, dtype):
    network = xnet.TwoLayerNet(4, 3, 2, dtype=dtype, seed=1)
    digest = weights.sha256(network)
    assert digest == weights.sha256(xnet.TwoLayerNet(4, 3, 2, dtype=dtype, seed=1, backend="numpy"))
    b1 = network.backend.to_numpy(network.params["b1"]).copy()
    b1[2] = -b1[2]  # 0 to -0
    network.params["b1"] = network.backend.asarray(b1)
    assert weights.sha256(network) != digest


def test_sha256_tells_state_too(backend):
    digests = set()
    for decay in (0.9, 0.5):
        network = Network([BatchNorm(2, decay)])
        network.layers[0].forward(backend.asarray([[1.0, 2.0], [3.0, 5.0]]))
        digests.add(weights.sha256(network))
    assert len(digests) == 2
