"""xnet.datasets: what is loaded, how it is verified and downloaded; and pictures from outside."""

import gzip
import hashlib
import io
import os
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PEAK_MEMORY
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xnet import datasets
from xnet.datasets import DATASETS, load_digits, load_mnist
from xnet.errors import DatasetError
from xnet.tools import pictures
from xnet.tools.pictures import FORMATS, load_image
from xnet.weights import load_network

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
TRAIN_IMAGES = FILES[0]


# A stand-in for MNIST: the same four files, five and three digits long.


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


@dataclass
class FakeMnist:
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    data: dict[str, bytes] = field(init=False)

    def __post_init__(self):
        arrays = (self.images, self.labels, self.test_images, self.test_labels)
        self.data = {name: idx(array) for name, array in zip(FILES, arrays, strict=True)}

    @property
    def gzipped(self) -> dict[str, bytes]:
        return {f"{name}.gz": gzip.compress(data) for name, data in self.data.items()}

    def write(self, folder: Path, files: dict[str, bytes]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return folder


def trust(monkeypatch, data: dict[str, bytes]) -> None:
    """Make the module expect these bytes rather than MNIST's."""
    contents = {
        name: datasets._Content(len(each), hashlib.sha256(each).hexdigest())
        for name, each in data.items()
    }
    monkeypatch.setattr(datasets, "_MNIST", contents)


@pytest.fixture
def fake(monkeypatch) -> FakeMnist:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (5, 28, 28), np.uint8)
    images[0, 0, :2] = 0, 255  # the whole range, for certain
    fake = FakeMnist(
        images,
        np.array([5, 0, 4, 1, 9], np.uint8),
        rng.integers(0, 256, (3, 28, 28), np.uint8),
        np.array([7, 2, 1], np.uint8),
    )
    trust(monkeypatch, fake.data)
    return fake


@pytest.fixture
def data_dir(monkeypatch, tmp_path, fake) -> Path:
    """A folder with the fake files, gzipped, that XNET_DATA_DIR points at."""
    folder = fake.write(tmp_path / "data", fake.gzipped)
    monkeypatch.setenv("XNET_DATA_DIR", str(folder))
    return folder


def assert_is(loaded, fake: FakeMnist) -> None:
    """Assert that what load_mnist(normalize=False) gave is the fake's content."""
    (x_train, t_train), (x_test, t_test) = loaded
    np.testing.assert_array_equal(x_train, fake.images.reshape(-1, 784))
    np.testing.assert_array_equal(x_test, fake.test_images.reshape(-1, 784))
    assert t_train.tolist() == fake.labels.tolist()
    assert t_test.tolist() == fake.test_labels.tolist()


# The forms in which data sets come.


def test_mnist_is_the_real_one(mnist):
    (x_train, t_train), (x_test, t_test) = mnist
    assert x_train.shape == (60000, 784)
    assert x_test.shape == (10000, 784)
    assert x_train.dtype == x_test.dtype == np.uint8
    assert t_train.shape == (60000,)
    assert t_test.shape == (10000,)
    assert t_train.dtype == t_test.dtype == np.int64
    assert t_train[0] == 5
    assert t_test[:4].tolist() == [7, 2, 1, 0]
    assert (x_train.min(), x_train.max()) == (0, 255)
    assert np.unique(t_train).tolist() == list(range(10))


def test_mnist_forms(data_dir, fake):
    (x_train, t_train), (x_test, t_test) = load_mnist()
    assert x_train.dtype == x_test.dtype == np.float32
    assert x_train.shape == (5, 784)
    assert x_test.shape == (3, 784)
    assert (x_train.min(), x_train.max()) == (0, 1)
    pixels = fake.images.reshape(5, 784).astype(np.float32)
    np.testing.assert_array_equal(x_train, pixels / np.float32(255))
    assert t_train.dtype == t_test.dtype == np.int64
    assert_is(load_mnist(normalize=False), fake)

    (x_train, t_train), (x_test, t_test) = load_mnist(normalize=False, flatten=False, one_hot=True)
    assert x_train.shape == (5, 1, 28, 28)
    assert x_test.shape == (3, 1, 28, 28)
    assert x_train.dtype == np.uint8
    np.testing.assert_array_equal(x_train[:, 0], fake.images)
    assert t_train.shape == (5, 10)
    assert t_test.shape == (3, 10)
    assert t_train.dtype == t_test.dtype == np.float32
    np.testing.assert_array_equal(t_train.argmax(axis=1), fake.labels)
    np.testing.assert_array_equal(t_train.sum(axis=1), 1)
    assert np.count_nonzero(t_train) == 5


@pytest.mark.parametrize("normalize", [True, False])
def test_loaded_arrays_may_be_changed(data_dir, normalize):
    for x, t in load_mnist(normalize=normalize):
        x[:] = 0
        t[:] = 0


def test_digits_forms():
    (x_train, t_train), (x_test, t_test) = load_digits()
    assert x_train.shape == (1437, 64)
    assert x_test.shape == (360, 64)
    assert x_train.dtype == x_test.dtype == np.float32
    assert (x_train.min(), x_train.max()) == (0, 1)
    assert t_train.shape == (1437,)
    assert t_test.shape == (360,)
    assert t_train.dtype == t_test.dtype == np.int64

    (raw, hot), (raw_test, hot_test) = load_digits(normalize=False, flatten=False, one_hot=True)
    assert raw.shape == (1437, 1, 8, 8)
    assert raw_test.shape == (360, 1, 8, 8)
    assert raw.dtype == np.uint8
    assert (raw.min(), raw.max()) == (0, 16)
    np.testing.assert_array_equal(raw.reshape(1437, 64) / 16, x_train)
    assert hot.shape == (1437, 10)
    assert hot.dtype == np.float32
    np.testing.assert_array_equal(hot.argmax(axis=1), t_train)
    np.testing.assert_array_equal(hot_test.argmax(axis=1), t_test)
    np.testing.assert_array_equal(hot.sum(axis=1), 1)


def test_digits_are_scikit_learns_in_the_documented_split():
    """And the file is what its script makes of them."""
    original = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(1797)
    (x_train, t_train), (x_test, t_test) = load_digits(normalize=False)
    np.testing.assert_array_equal(np.concatenate([x_train, x_test]), original.data[order])
    np.testing.assert_array_equal(np.concatenate([t_train, t_test]), original.target[order])

    import make_digits

    with np.load(make_digits.PATH) as file:
        assert file.files == list(make_digits.content())
        for name, array in make_digits.content().items():
            assert file[name].dtype == array.dtype
            np.testing.assert_array_equal(file[name], array)
        assert "CC BY 4.0" in str(file["licence"])


def test_datasets_by_name():
    assert dict(DATASETS) == {"digits": load_digits, "mnist": load_mnist}


# XNET_DATA_DIR.


@pytest.mark.parametrize("subfolder", ["", "mnist"])
@pytest.mark.parametrize("form", ["gzipped", "data"])
def test_data_dir_or_its_mnist_subfolder_gzipped_or_not(
    monkeypatch, tmp_path, fake, subfolder, form
):
    fake.write(tmp_path / subfolder, getattr(fake, form))
    monkeypatch.setenv("XNET_DATA_DIR", str(tmp_path))
    assert_is(load_mnist(normalize=False), fake)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named_and_nothing_is_downloaded(monkeypatch, data_dir, name):
    (data_dir / f"{name}.gz").unlink()
    monkeypatch.setattr(datasets, "_download", lambda *_: pytest.fail("went to the network"))
    with pytest.raises(DatasetError) as caught:
        load_mnist()
    for part in (str(data_dir), name, "XNET_DATA_DIR", "put MNIST's four files there"):
        assert part in str(caught.value)


def test_altered_file_is_refused(data_dir, fake):
    altered = bytearray(fake.data[TRAIN_IMAGES])
    altered[1000] ^= 1
    path = data_dir / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(gzip.compress(altered))
    with pytest.raises(DatasetError) as caught:
        load_mnist()
    got, expected = (hashlib.sha256(each).hexdigest() for each in (altered, fake.data[FILES[0]]))
    for part in (str(path), f"got {got}", f"expected {expected}"):
        assert part in str(caught.value)


def test_altered_copy_of_the_real_one_is_refused(monkeypatch, tmp_path, mnist):
    # The fake files above come with sums of their own; here the module's are put to the test.
    labels = idx(mnist[0][1].astype(np.uint8))
    expected = datasets._MNIST[FILES[1]]
    assert datasets._verified(io.BytesIO(labels), FILES[1], "unaltered") == labels
    assert hashlib.sha256(labels).hexdigest() == expected.sha256
    altered = labels[:-1] + bytes([labels[-1] ^ 1])
    with pytest.raises(DatasetError, match=expected.sha256):
        datasets._verified(io.BytesIO(altered), FILES[1], "altered")


@pytest.mark.parametrize("damage", ["truncated", "tail", "stream", "empty"])
def test_damaged_gzip_is_refused(data_dir, fake, damage):
    path = data_dir / f"{TRAIN_IMAGES}.gz"
    whole = path.read_bytes()
    half = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:half],
            "tail": whole[:-4] + b"\0\0\0\0",
            "stream": whole[:10] + b"\xff" * 100 + whole[110:],
            "empty": b"",
        }[damage]
    )
    with pytest.raises(DatasetError) as caught:
        load_mnist()
    expected = hashlib.sha256(fake.data[TRAIN_IMAGES]).hexdigest()
    assert str(path) in str(caught.value)
    assert f"expected {expected}" in str(caught.value)
    assert ("broken gzip stream" in str(caught.value)) == (damage != "empty")


def test_unreadable_file_is_an_error_that_names_it(monkeypatch, data_dir):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DatasetError, match=rf"{TRAIN_IMAGES}\.gz cannot be read.*Permission"):
        load_mnist()


LARGE = 1 << 27


@pytest.mark.parametrize("kind", ["gzipped", "plain"])
def test_files_that_hold_too_much_cost_little(monkeypatch, data_dir, fake, kind):
    """Both hold 128 MiB of zeros, the one in 1 MB, the other where no disk holds them."""
    path = data_dir / TRAIN_IMAGES
    if kind == "plain":
        (data_dir / f"{TRAIN_IMAGES}.gz").unlink()
        path.touch()
        os.truncate(path, LARGE)
    else:
        with gzip.open(f"{path}.gz", "wb", compresslevel=1) as file:
            for _ in range(LARGE >> 20):
                file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=r"got more than 3936 bytes, expected [0-9a-f]{64}:"):
            load_mnist()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_mirror_that_sends_without_end_is_left(monkeypatch, cache, fake):
    endless = {f"{name}.gz": bytes(10_000) for name in FILES}
    with serving(endless) as first, serving(fake.gzipped) as second:
        use_mirrors(monkeypatch, first, second)
        assert_is(load_mnist(normalize=False), fake)
        assert len(first.asked) == len(second.asked) == 4
    with serving(endless) as only:
        (cache / f"{TRAIN_IMAGES}.gz").unlink()
        use_mirrors(monkeypatch, only)
        with pytest.raises(DatasetError, match="the server sends more than 4939 bytes"):
            load_mnist()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\x08\x01" + bytes(12), "header is 00 00 08 01"),  # labels where images should be
        (b"\0\0\x0d\x03" + bytes(12), "header is 00 00 0d 03"),  # floats
        (b"\0\0\x08\x03" + bytes(5), "header is"),
        (b"", "header is"),
        (idx(np.zeros((2, 28, 28), np.uint8))[:-1], r"1567 values, .* announces \[2, 28, 28\]"),
    ],
)
def test_malformed_idx_is_refused(monkeypatch, data_dir, fake, data, reason):
    (data_dir / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(data))
    trust(monkeypatch, fake.data | {TRAIN_IMAGES: data})
    with pytest.raises(DatasetError, match=rf"{TRAIN_IMAGES}: .*{reason}"):
        load_mnist()


# The cache and the download, from a server on this machine.


@dataclass
class Server:
    url: str
    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    stall: bool = False


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    state = Server("", files)
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.path.rpartition("/")[2])
            body = state.files.get(state.asked[-1])
            if body is None:
                return self.send_error(404)
            self.send_response(200)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if state.stall:
                return closing.wait(60)
            return self.wfile.write(body[len(body) // 2 :])

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}/mnist/"
        try:
            yield state
        finally:
            closing.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache, no XNET_DATA_DIR, no proxy between this process and its own server."""
    monkeypatch.delenv("XNET_DATA_DIR", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "xnet" / "mnist"


def use_mirrors(monkeypatch, *servers: Server) -> None:
    monkeypatch.setattr(datasets, "_MIRRORS", tuple(server.url for server in servers))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def corrupt(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: gzip.compress(b"not " + gzip.decompress(data)) for name, data in files.items()}


def test_download_fills_the_cache_once(monkeypatch, cache, fake, capsys):
    with serving(fake.gzipped) as mirror:
        use_mirrors(monkeypatch, mirror)
        assert_is(load_mnist(normalize=False), fake)
        assert mirror.asked == [f"{name}.gz" for name in FILES]
        assert files_in(cache) == sorted(f"{name}.gz" for name in FILES)
        assert_is(load_mnist(normalize=False), fake)
        assert len(mirror.asked) == 4
    assert_is(load_mnist(normalize=False), fake)  # and with no server at all
    assert capsys.readouterr().err == ""  # stderr is no terminal, so no progress bar


def test_only_what_is_missing_is_downloaded(monkeypatch, cache, fake):
    fake.write(cache, {name: fake.data[name] for name in FILES[1:]})
    with serving(fake.gzipped) as mirror:
        use_mirrors(monkeypatch, mirror)
        assert_is(load_mnist(normalize=False), fake)
        assert mirror.asked == [f"{TRAIN_IMAGES}.gz"]


@pytest.mark.parametrize("fault", ["corrupt", "missing", "broken off", "unreachable"])
def test_next_mirror_steps_in(monkeypatch, cache, fake, fault):
    first = {
        "corrupt": corrupt(fake.gzipped),
        "missing": {},
        "broken off": {name: data[:-20] for name, data in fake.gzipped.items()},
        "unreachable": {},
    }[fault]
    with serving(fake.gzipped) as second:
        with serving(first) as mirror:
            use_mirrors(monkeypatch, mirror, second)
            if fault != "unreachable":
                assert_is(load_mnist(normalize=False), fake)
                assert len(mirror.asked) == len(second.asked) == 4
        if fault == "unreachable":  # its server has closed by now
            assert_is(load_mnist(normalize=False), fake)
            assert len(second.asked) == 4
    assert files_in(cache) == sorted(f"{name}.gz" for name in FILES)


def test_all_mirrors_failing_leaves_nothing_and_gives_each_reason(monkeypatch, cache, fake):
    with serving(corrupt(fake.gzipped)) as first, serving({}) as second:
        use_mirrors(monkeypatch, first, second)
        with pytest.raises(DatasetError) as caught:
            load_mnist()
        for part in (
            f"{first.url}{TRAIN_IMAGES}.gz: what was downloaded is damaged",
            f"expected {hashlib.sha256(fake.data[TRAIN_IMAGES]).hexdigest()}",
            f"{second.url}{TRAIN_IMAGES}.gz: 404",
            "set XNET_DATA_DIR",
            *FILES,
        ):
            assert part in str(caught.value)
    assert files_in(cache) == []


def test_unwritable_cache_is_an_error_that_says_so(monkeypatch, cache, fake):
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the folder should be")
    monkeypatch.setattr(datasets, "_MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(DatasetError, match=r"could not be downloaded(.|\n)*XNET_DATA_DIR"):
        load_mnist()


def test_killed_download_leaves_no_bad_file(monkeypatch, cache, fake):
    program = (
        "import pathlib, sys, pooch; from xnet import datasets\n"
        "pooch.os_cache = lambda project: pathlib.Path(sys.argv[1]) / project\n"
        "datasets._MIRRORS = (sys.argv[2],); datasets.load_mnist()"
    )
    with serving(fake.gzipped) as mirror:
        use_mirrors(monkeypatch, mirror)
        mirror.stall = True
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(cache.parent.parent), mirror.url]
        )
        try:
            deadline = time.monotonic() + 60
            while not mirror.asked:
                assert child.poll() is None, "the child ended by itself"
                assert time.monotonic() < deadline, "the child downloaded nothing"
                time.sleep(0.02)
            time.sleep(0.2)  # until what there is has come
        finally:
            child.kill()
            child.wait()
        assert files_in(cache) == []
        mirror.stall = False
        assert_is(load_mnist(normalize=False), fake)


def test_mirror_that_decompresses_on_the_way(monkeypatch, cache, fake):
    with serving(fake.gzipped) as mirror:
        mirror.headers = {"Content-Encoding": "gzip"}
        use_mirrors(monkeypatch, mirror)
        assert_is(load_mnist(normalize=False), fake)
    assert files_in(cache) == sorted(FILES)  # named for what they hold
    assert_is(load_mnist(normalize=False), fake)


def test_damaged_file_in_the_cache_is_to_be_deleted(monkeypatch, cache, fake):
    fake.write(cache, fake.gzipped | {f"{TRAIN_IMAGES}.gz": gzip.compress(b"spoilt")})
    with pytest.raises(DatasetError, match=rf"{TRAIN_IMAGES}\.gz is damaged.*delete it"):
        load_mnist()


def test_progress_bar_on_a_terminal(monkeypatch, cache, fake):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with serving(fake.gzipped) as mirror:
        use_mirrors(monkeypatch, mirror)
        monkeypatch.setattr(sys, "stderr", Terminal())
        load_mnist()
        assert sys.stderr.getvalue().count("100%") >= 4


@pytest.mark.parametrize(
    ("module", "package", "call"),
    [
        ("pooch", "pooch", load_mnist),
        ("PIL", "Pillow", lambda: load_image("digit.png")),
    ],
)
def test_missing_library_says_how_to_install_it(monkeypatch, module, package, call):
    monkeypatch.delenv("XNET_DATA_DIR", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DatasetError) as caught:
        call()
    assert f'needs {package}: pip install "xnet-nn[datasets]"' in str(caught.value)


def test_import_is_light():
    program = "import sys, xnet.datasets; print(*{'pooch', 'PIL'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


# Pictures. The model is a 7 as MNIST would hold it, 28x28, white on black: 20 pixels high and its
# centre of mass in the middle, so that loading any picture of it should give it back.


def seven() -> np.ndarray:
    picture = np.zeros((28, 28))
    box = picture[7:27, 7:22]
    box[:2] = 1
    for row in range(2, 20):
        right = 15 - row // 2
        box[row, right - 4 : right] = 0.5, 1, 1, 0.4
    return np.rint(picture * 255).astype(np.uint8)


SEVEN = seven()
BLACK_ON_WHITE = 255 - np.kron(SEVEN, np.ones((10, 10), np.uint8))


def test_the_model_is_centred_as_mnist_is():
    mass = SEVEN.sum()
    assert SEVEN.sum(axis=1) @ np.arange(28) / mass == pytest.approx(14, abs=0.3)
    assert SEVEN.sum(axis=0) @ np.arange(28) / mass == pytest.approx(14, abs=0.3)


def save(path: Path, picture: np.ndarray | Image.Image, **options) -> Path:
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.save(path, **options)
    return path


def rgba(grey: np.ndarray | int, alpha: np.ndarray) -> np.ndarray:
    grey = np.broadcast_to(np.uint8(grey), alpha.shape)
    return np.stack([grey, grey, grey, alpha], axis=-1)


def difference(loaded: np.ndarray, model: np.ndarray = SEVEN) -> float:
    """Mean absolute difference per pixel, on the scale 0..1, after checking the form."""
    assert loaded.shape == (model.size,)
    assert loaded.dtype == np.float32
    assert (loaded.min(), loaded.max()) == (0, 1)
    return float(np.abs(loaded - model.ravel() / model.max()).mean())


def cut_corners(picture: np.ndarray) -> np.ndarray:
    alpha = np.full(picture.shape, 255, np.uint8)
    for corner in (np.s_[:40, :40], np.s_[:40, -40:], np.s_[-40:, :40], np.s_[-40:, -40:]):
        alpha[corner] = 0
    return rgba(picture, alpha)


def off_centre(height: int, width: int, top: int, left: int) -> np.ndarray:
    sheet = np.full((height, width), 255, np.uint8)
    sheet[top : top + 280, left : left + 280] = BLACK_ON_WHITE
    return sheet


WHITE_ON_BLACK = 255 - BLACK_ON_WHITE
EXACT = {
    "itself": SEVEN,
    "black on white": BLACK_ON_WHITE,
    "white on black": WHITE_ON_BLACK,
    "dark on transparent": rgba(0, WHITE_ON_BLACK),
    "nearly black on transparent": rgba(5, WHITE_ON_BLACK),
    "light on transparent": rgba(255, WHITE_ON_BLACK),
    "opaque with alpha": rgba(BLACK_ON_WHITE, np.full((280, 280), 255, np.uint8)),
    "light panel with its corners cut": cut_corners(BLACK_ON_WHITE),
    "dark panel with its corners cut": cut_corners(WHITE_ON_BLACK),
    "wide sheet": off_centre(300, 900, 10, 500),
    "tall sheet": off_centre(1000, 290, 700, 5),
    "cropped to the ink": np.kron(SEVEN[7:27, 7:22], np.ones((9, 9), np.uint8)),
    "RGB": np.stack([BLACK_ON_WHITE] * 3, axis=-1),
    "16 bits": BLACK_ON_WHITE.astype(np.uint16) * 257,
    "palette": Image.fromarray(BLACK_ON_WHITE).convert("P"),
    "grey and alpha": Image.fromarray(rgba(0, WHITE_ON_BLACK)).convert("LA"),
}


@pytest.mark.parametrize("kind", EXACT)
def test_pictures_that_hold_the_very_pixels_give_them_back(tmp_path, kind):
    assert difference(load_image(save(tmp_path / "digit.png", EXACT[kind]))) < 0.003


def test_path_may_be_a_string(tmp_path):
    path = save(tmp_path / "digit.png", BLACK_ON_WHITE)
    np.testing.assert_array_equal(load_image(str(path)), load_image(path))


def shaded(picture: np.ndarray, tilt: float, grain: float) -> np.ndarray:
    """A photo of the picture: dim, light falling off to the left, some grain."""
    ink = 1 - picture / 255
    paper = 170 + tilt * np.linspace(-1, 1, picture.shape[1])
    noise = np.random.default_rng(0).normal(0, grain, picture.shape)
    return (paper * (1 - ink) + 40 * ink + noise).clip(0, 255).astype(np.uint8)


LOSSY = {
    "JPEG": ("jpg", BLACK_ON_WHITE, {}),
    "JPEG CMYK": ("jpg", Image.fromarray(BLACK_ON_WHITE).convert("CMYK"), {}),
    "GIF": ("gif", BLACK_ON_WHITE, {}),
    "WebP": ("webp", Image.fromarray(BLACK_ON_WHITE).convert("RGB"), {}),
    "bilevel": ("png", Image.fromarray(BLACK_ON_WHITE).convert("1"), {}),
    "blue on yellow": (
        "png",
        np.where(WHITE_ON_BLACK[..., None] > 127, [0, 0, 160], [250, 230, 90]).astype(np.uint8),
        {},
    ),
    "pencil on grey": ("png", (150 + BLACK_ON_WHITE // 5).astype(np.uint8), {}),
    "barely there": ("png", (243 + BLACK_ON_WHITE // 21).astype(np.uint8), {}),
    "dim paper": ("png", (20 + BLACK_ON_WHITE // 3).astype(np.uint8), {}),
    "shade": ("png", shaded(BLACK_ON_WHITE, tilt=30, grain=0), {}),
    "shade and grain": ("png", shaded(BLACK_ON_WHITE, tilt=30, grain=5), {}),
    "brighter than 16 bits": (
        "tiff",
        Image.fromarray(np.where(BLACK_ON_WHITE > 127, 10**6, 0).astype(np.int32)),
        {},
    ),
    "a photo's size": ("png", Image.fromarray(BLACK_ON_WHITE).resize((3000, 3000)), {}),
}


@pytest.mark.parametrize("kind", LOSSY)
def test_other_pictures_come_close(tmp_path, kind):
    suffix, picture, options = LOSSY[kind]
    loaded = load_image(save(tmp_path / f"digit.{suffix}", picture, **options))
    assert difference(loaded) < 0.03


def ruled(digit: np.ndarray, rng, line: int, squared: bool, tilt: float) -> np.ndarray:
    """A photo of a digit, its pixels 0..1, drawn in dark ink over lines of this grey."""
    sheet = 480, 520
    y, x = np.mgrid[: sheet[0], : sheet[1]]
    paper = np.full(sheet, 240.0)
    for along in [y - tilt * x, x + tilt * y][: 1 + squared]:
        paper[(along - rng.integers(50)) % rng.integers(50, 90) < 3] = line
    top, left = (n // 2 - 168 + rng.integers(-20, 21) for n in sheet)
    ink = np.zeros(sheet)
    ink[top : top + 336, left : left + 336] = np.kron(digit.reshape(28, 28), np.ones((12, 12)))
    light = np.linspace(0.8, 1, sheet[1])
    drawn = np.minimum(paper, 240 - 210 * ink) * light + rng.normal(0, 2, sheet)
    return drawn.clip(0, 255).astype(np.uint8)


RULED = {
    "pale lines": {"line": 190, "squared": False, "tilt": 0},
    "dark lines": {"line": 60, "squared": False, "tilt": 0},
    "pale squares": {"line": 190, "squared": True, "tilt": 0},
    "dark squares": {"line": 60, "squared": True, "tilt": 0},
    "tilted lines": {"line": 150, "squared": False, "tilt": 0.03},
}


@pytest.mark.parametrize("kind", RULED)
def test_digits_on_ruled_paper_are_read(tmp_path, mnist, sample_weight, kind):
    """Of ten that the notes' network reads surely as they are, it reads nine there, or all."""
    _, (x, t) = mnist
    network, images = load_network(sample_weight), x[:200] / 255
    surely = network.predict(images)[np.arange(200), t[:200]] > 0.99
    rng, right = np.random.default_rng(1), 0
    for index in np.flatnonzero(surely)[:10]:
        picture = ruled(images[index], rng, **RULED[kind])
        loaded = load_image(save(tmp_path / "digit.jpg", picture))
        right += int(network.predict(loaded).argmax() == t[index])
    assert right >= 9


@pytest.mark.parametrize("kind", ["pale lines", "dark squares"])
def test_ruled_paper_without_a_digit_is_blank(tmp_path, kind):
    picture = ruled(np.zeros(784), np.random.default_rng(1), **RULED[kind])
    with pytest.raises(DatasetError, match="looks blank"):
        load_image(save(tmp_path / "blank.png", picture))


# Ink and lines on sheets whose right answer is known: 0 is paper, 1 the darkest ink.


def ink_found(grey: np.ndarray) -> np.ndarray:
    grey = grey.astype(np.float32)
    return pictures._find_ink(grey, np.ones_like(grey), Path("sheet.png"))


def lines_erased(ink: np.ndarray) -> np.ndarray:
    ink = ink.astype(np.float32)
    pictures._erase_rules(ink)
    return ink


def line_on(sheet: np.ndarray, middle: float, drop: int, level: float = 1) -> None:
    """Draw a line one pixel thick from the left border to the right, where it is on the sheet."""
    rows = middle + np.rint(drop * np.linspace(-0.5, 0.5, sheet.shape[1])).astype(int)
    inside = (rows >= 0) & (rows < len(sheet))
    sheet[rows[inside], np.flatnonzero(inside)] = level


def test_ink_counts_from_three_times_the_grain_of_the_paper_to_the_strongest():
    sheet = 200 + 4 * (-1.0) ** np.add(*np.indices((40, 40)))
    marks = [100, 122, 144, 188, 189]
    sheet[20, 10:35:5] = marks
    expected = np.zeros((40, 40))
    expected[20, 10:35:5] = 1, 0.75, 0.5, 0, 0
    np.testing.assert_allclose(ink_found(sheet), expected, atol=1e-5)
    np.testing.assert_allclose(ink_found(255 - sheet), expected, atol=1e-5)
    sheet[20, 10:35:5] = 200 - 36
    assert ink_found(sheet).max() == 1
    sheet[20, 10:35:5] = 200 - 35
    with pytest.raises(DatasetError, match="by 35 of 255 grey levels, where 36 are needed"):
        ink_found(sheet)


def test_ink_is_what_differs_more_in_all():
    sheet = np.full((60, 60), 128)
    sheet[10:50, 10:50] = 130
    sheet[20, 20], sheet[30, 30] = 140, 56  # 1598 * 2**2 + 12**2 in all, above 72**2
    for found in (ink_found(sheet), ink_found(255 - sheet)):
        assert (found[20, 20], found[30, 30]) == (1, 0)


def test_a_large_picture_is_read_at_1024_pixels(tmp_path):
    for size, shape in {(2048, 1536): (768, 1024), (1536, 2048): (1024, 768)}.items():
        grey, opacity = pictures._read_grey(save(tmp_path / "large.png", Image.new("L", size)))
        assert grey.shape == opacity.shape == shape


def test_levels_of_16_bits_are_divided_by_256(tmp_path):
    levels = np.array([[-5, 0, 255, 256], [512, 65279, 65535, 10**6]], np.int32)
    grey, opacity = pictures._read_grey(save(tmp_path / "deep.tiff", levels))
    np.testing.assert_array_equal(grey, [[0, 0, 0, 1], [2, 254, 255, 255]])
    assert (opacity == 1).all()


def test_the_level_of_paper_is_a_plane_whatever_touches_a_part_of_its_border():
    y, x = np.mgrid[:40, :50].astype(np.float32)
    for plane in (120 + y - 0.5 * x, 150 - 0.25 * y + x):
        sheet = plane.copy()
        sheet[5:15, :20] = sheet[30:, 25:30] = 0
        np.testing.assert_allclose(pictures._paper_level(sheet), plane, atol=0.01)


def test_transparent_parts_are_paper():
    """Of the opaque border's grey, if most of it is opaque; else white, or black under chalk."""
    grey, opacity = np.zeros((2, 4, 4), np.float32)
    grey[1, 1:3], opacity[1, 1:3] = (55, 155), (1, 0.5)
    expected = np.full((4, 4), 255.0)
    expected[1, 1:3] = 55, 205
    np.testing.assert_array_equal(pictures._on_paper(grey, opacity), expected)
    for chalk, paper in ((204, 255.0), (205, 0.0)):  # four times as light as dark, or more
        grey[1, 1:3] = chalk
        expected = np.full((4, 4), paper)
        expected[1, 1:3] = chalk, (chalk + paper) / 2
        np.testing.assert_allclose(pictures._on_paper(grey, opacity), expected)
    grey[:], opacity[:] = 40, 0
    opacity[0] = opacity[1:3, 0] = 1
    assert (pictures._on_paper(grey, opacity)[opacity == 0] == 255).all()  # half of the border
    opacity[3, 0] = 1
    assert (pictures._on_paper(grey, opacity) == 40).all()


def test_the_border_is_every_outermost_pixel_once():
    picture = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    for border, sheet in zip(pictures._border(picture), picture, strict=True):
        np.testing.assert_array_equal(np.sort(border), np.delete(sheet, [6, 7, 8, 11, 12, 13]))


@pytest.mark.parametrize("side", [1, 256, 257, 512, 513, 768, 769, 1024])
def test_lines_are_sought_in_at_most_256_pixels_each_way(side):
    sheet = np.zeros((side, 3), np.float32)
    sheet[side // 2] = 1
    for picture in (sheet, sheet.T):
        small, scale = pictures._shrunk(picture)
        assert scale == -(-side // 256)
        assert small.shape == tuple(-(-n // scale) for n in picture.shape)
    assert pictures._shrunk(sheet)[0].max() == 1  # however thin it is


@pytest.mark.parametrize("level", [0.3, 1])
@pytest.mark.parametrize("tilt", [-0.1, 0, 0.05, 0.1])
@pytest.mark.parametrize(
    ("columns", "thick", "away"), [(80, 1, 3), (250, 1, 3), (400, 3, 5), (700, 4, 8), (1000, 5, 10)]
)
def test_a_line_goes_and_what_is_across_and_near_it_stays(columns, thick, away, tilt, level):
    rows, drop = columns * 3 // 4, round(tilt * columns)
    digit = np.zeros((rows, columns))
    digit[rows // 6 : rows * 5 // 6, columns // 3 : columns // 3 + 20] = 0.8
    sheet = digit.copy()
    for row in range(thick):
        line_on(sheet, rows // 2 + row, drop, level)
    for column in range(5, columns, columns // 10):  # dots above and below the line
        (on,) = np.nonzero(sheet[:, column])
        if len(on) == thick:
            for dot in (
                slice(on[0] - away - 3, on[0] - away),
                slice(on[-1] + away + 1, on[-1] + away + 4),
            ):
                digit[dot, column] = 0.9
    np.testing.assert_allclose(lines_erased(np.maximum(sheet, digit)), digit, atol=1e-6)


@pytest.mark.parametrize("between", [0, 0.25, 0.5, 0.75])
def test_a_line_two_pixels_thick_is_erased_wherever_it_falls_between_the_rows(between):
    sheet = np.zeros((50, 50))
    sheet[20:23] = np.array([[1 - between], [1], [between]])
    assert not lines_erased(sheet).any()


def test_a_blurred_line_is_erased_with_its_edges():
    sheet = np.zeros((50, 50))
    sheet[20:25] = np.array([[0.1], [0.4], [1], [0.4], [0.1]])
    assert not lines_erased(sheet).any()


def test_a_line_is_told_from_a_shade_over_the_whole_sheet():
    sheet = np.full((50, 50), 0.3)
    sheet[20] = 0.6
    sheet[40, 40] = 1
    erased = sheet.copy()
    erased[20] = 0.3
    np.testing.assert_allclose(lines_erased(sheet), erased, atol=1e-6)


@pytest.mark.parametrize(("height", "most"), [(49, 2), (75, 3), (100, 4), (200, 8)])
def test_a_line_is_no_thicker_than_two_pixels_or_a_25th_of_the_height(height, most):
    sheet = np.zeros((height, 60))
    sheet[20 : 20 + most] = 1
    assert not lines_erased(sheet).any()
    sheet[20 : 20 + most + 1] = 1
    np.testing.assert_array_equal(lines_erased(sheet), sheet)


@pytest.mark.parametrize(("columns", "steep"), [(19, 2), (59, 9), (100, 15)])
def test_a_line_tilted_by_more_than_a_tenth_is_a_stroke(columns, steep):
    sheet = np.zeros((columns, columns))
    line_on(sheet, columns // 2, columns // 10)
    assert not lines_erased(sheet).any()
    assert not lines_erased(sheet[::-1]).any()
    sheet[:] = 0
    line_on(sheet, columns // 2, steep)
    np.testing.assert_array_equal(lines_erased(sheet), sheet)
    np.testing.assert_array_equal(lines_erased(sheet[::-1]), sheet[::-1])


def test_a_line_paler_than_a_tenth_of_the_darkest_ink_is_left_for_the_crop():
    sheet = np.zeros((60, 80))
    sheet[10:20, 10:20] = 1
    pale = sheet.copy()
    line_on(sheet, 40, 2, level=0.12)
    assert not lines_erased(sheet)[21:].any()
    line_on(pale, 40, 2, level=0.09)
    np.testing.assert_array_equal(lines_erased(pale), pale.astype(np.float32))
    assert pictures.cropped(pale).shape == (10, 10)
    assert pictures.cropped(sheet).shape == (32, 80)
    pale[40] = 0.1
    assert pictures.cropped(pale.astype(np.float32)).shape == (10, 10)


def test_a_line_of_which_a_quarter_is_on_the_sheet_counts_as_none():
    sheet = np.zeros((30, 80), np.float32)
    line_on(sheet, -1, 2)
    assert sheet[0].mean() == 0.25
    assert pictures._least_along(sheet, 2)[3] == 0
    sheet[:] = 0
    line_on(sheet, -1, 3)
    assert sheet[0].mean() == pytest.approx(0.325)
    assert pictures._least_along(sheet, 3)[3] == 1


def test_lines_along_the_border_alone_are_strokes():
    """Of a digit that was cut out closely; a line within the sheet says that it is ruled."""
    for upper in (0, 1):
        for drop, middle in ((0, 0), (10, 4)):  # the tilted one leaves the sheet at one end
            sheet = np.zeros((60, 100))
            line_on(sheet, middle, drop)
            ruled_too = sheet.copy()
            line_on(ruled_too, 30, 0)
            if not upper:
                sheet, ruled_too = sheet[::-1], ruled_too[::-1]
            np.testing.assert_array_equal(lines_erased(sheet), sheet)
            assert not lines_erased(ruled_too).any()
            sheet[:] = 0
            line_on(sheet, 1 + drop * 6 // 10, drop)  # just within
            assert not lines_erased(sheet).any()
            assert not lines_erased(sheet[::-1]).any()


def test_a_dot_on_a_line_stays_where_it_is_a_quarter_darker():
    sheet = np.zeros((60, 80))
    sheet[10, 10] = 1
    digit = sheet.copy()
    sheet[30] = 0.3
    sheet[30, 20] = digit[30, 20] = 0.6
    sheet[30, 40] = 0.5
    np.testing.assert_array_equal(lines_erased(sheet), digit.astype(np.float32))


@pytest.mark.parametrize("eighth", range(8))
def test_a_line_is_as_dark_as_its_palest_eighth(eighth):
    sheet = np.zeros((3, 80), np.float32)
    sheet[1] = 1
    sheet[1, 10 * eighth + 1 : 10 * eighth + 9] = 0
    expected = np.zeros(3 + 2 * 4)  # lines begin up to a twentieth above and below
    expected[5] = 0.2
    np.testing.assert_allclose(pictures._least_along(sheet, 0), expected, atol=1e-6)


def test_a_line_of_which_a_third_is_on_the_sheet_is_erased_and_of_an_eighth_is_not():
    sheet = np.zeros((100, 200))
    line_on(sheet, 50, 20)
    whole = sheet.copy()
    line_on(sheet, -3, 20)
    assert sheet[:20].any(axis=0).mean() == pytest.approx(0.375, abs=0.03)
    assert not lines_erased(sheet).any()
    corner = np.zeros_like(sheet)
    line_on(corner, -7, 20)
    assert corner.any(axis=0).mean() == pytest.approx(0.175, abs=0.06)
    np.testing.assert_array_equal(lines_erased(whole + corner), corner)


@pytest.mark.parametrize("middle", range(7))
def test_what_is_above_and_below_a_line_is_joined_evenly(middle):
    """On the border it is only above, or below; what is darker than the line stays."""
    half, above, below = 2, np.array([10.0, 40, 20, 30]), np.array([40.0, 10, 20, 90])
    darker = 60
    ink = np.full((7, 4), 50.0, np.float32)
    ink[:, 2:] = darker, darker + 1
    first, last = middle - half - 1, middle + half + 1
    if first >= 0:
        ink[first] = above
    if last < 7:
        ink[last] = below
    before, after = above if first >= 0 else below, below if last < 7 else above
    expected = ink.copy()
    for row in range(max(first + 1, 0), min(last, 7)):
        share = (row - first) / (last - first)
        expected[row, :3] = (before * (1 - share) + after * share)[:3]
    pictures._bridge(ink, np.full(4, middle), half, darker)
    np.testing.assert_allclose(ink, expected, rtol=1e-6)


def test_a_bridge_adds_no_ink():
    ink = np.array([[9, 9], [1, 5], [9, 9]], np.float32)
    pictures._bridge(ink, np.array([1, 1]), 0, 60)
    np.testing.assert_array_equal(ink, [[9, 9], [1, 5], [9, 9]])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, kind):
    undo = {  # what the camera did, for the tag to be undone
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(off_centre(300, 400, 5, 100))
    if orientation in undo:
        image = image.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = save(tmp_path / "digit", image.convert("RGB"), format=kind, exif=exif)
    assert difference(load_image(picture)) < (0.003 if kind in ("PNG", "TIFF") else 0.03)


def test_proportions_are_kept_and_the_mass_is_centred(tmp_path):
    sheet = np.full((200, 500), 255, np.uint8)
    sheet[150:190, 20:420] = 0  # a bar, ten times as wide as high
    loaded = load_image(save(tmp_path / "bar.png", sheet)).reshape(28, 28)
    expected = np.zeros((28, 28))
    expected[13:15, 4:24] = 1
    np.testing.assert_array_equal(loaded, expected)


def test_no_ink_is_cut_off_to_centre_the_mass():
    ends = np.zeros((2, 20), np.float32)
    ends[0, 0] = ends[1, -1] = 1
    assert [pictures._offset(mass, 28) for mass in ends] == [8, 0]
    assert [pictures._offset(np.ones(n, np.float32), 28) for n in (1, 2, 19, 20)] == [14, 13, 5, 4]


def test_enlarging_does_not_overshoot():
    ink = np.zeros((8, 8), np.float32)
    ink[:, :4] = 1
    placed = pictures._place(ink, 20, 20, side=28)
    assert (placed.min(), placed.max()) == (0, 1)
    assert (placed[4:24, placed.any(axis=0).argmax()] == 1).all()


def test_tiny_picture_is_enlarged(tmp_path):
    tiny = np.full((7, 5), 255, np.uint8)
    tiny[1:6, 2] = 0
    loaded = load_image(save(tmp_path / "one.png", tiny)).reshape(28, 28)
    rows, columns = np.flatnonzero(loaded.any(axis=1)), np.flatnonzero(loaded.any(axis=0))
    assert (rows[0], rows.size, columns[0], columns.size) == (4, 20, 12, 4)


def test_enlarging_is_smooth(tmp_path):
    sheet = np.full((6, 6), 255, np.uint8)
    sheet[2, 2] = sheet[3, 3] = 0
    loaded = load_image(save(tmp_path / "diagonal.png", sheet)).reshape(28, 28)
    assert np.unique(loaded[4:24, 4:24].round(2)).size > 10


def test_thin_stroke_reaches_full_strength(tmp_path):
    """In one row or column of pixels, which is the thinnest that there is."""
    sheet = np.full((600, 600), 255, np.uint8)
    sheet[50:550, 300] = 0
    for lying, picture in enumerate((sheet, sheet.T)):
        loaded = load_image(save(tmp_path / "hair.png", picture)).reshape(28, 28)
        assert loaded.max() == 1
        assert [loaded.any(axis=k).sum() for k in (lying, 1 - lying)] == [1, 20]


@pytest.mark.parametrize(
    ("suffix", "enlarge", "mean_bound", "usual_bound"),
    # usual_bound holds for nine digits in ten. The rest differ by a pixel's shift: where a digit's
    # faint rim is lost, its bounding box, or the rounding of its centre, moves by one.
    [("png", 1, 0.002, 0.002), ("png", 10, 0.002, 0.002), ("jpg", 10, 0.005, 0.01)],
)
def test_mnist_digits_come_back(tmp_path, mnist, suffix, enlarge, mean_bound, usual_bound):
    _, (x_test, _) = mnist
    differences = []
    for pixels in x_test[:200]:
        enlarged = np.kron(pixels.reshape(28, 28), np.ones((enlarge, enlarge), np.uint8))
        path = save(tmp_path / f"digit.{suffix}", 255 - enlarged if enlarge > 1 else enlarged)
        differences.append(difference(load_image(path), pixels))
    assert np.mean(differences) < mean_bound
    assert np.quantile(differences, 0.9) < usual_bound


def test_digits_come_back(tmp_path):
    """Enlarged digits stay close, and close enough to be told by their nearest neighbour."""
    (x_train, t_train), (x_test, t_test) = load_digits()
    loaded = []
    for pixels in x_test[:100]:
        enlarged = np.kron(255 - 255 * pixels.reshape(8, 8), np.ones((10, 10)))
        loaded.append(load_image(save(tmp_path / "digit.png", enlarged.astype(np.uint8)), 64))
    loaded = np.array(loaded)
    assert loaded.shape == (100, 64)
    assert loaded.dtype == np.float32
    assert np.abs(loaded - x_test[:100]).mean() < 0.08
    distances = ((loaded[:, None] - x_train) ** 2).sum(axis=2)
    assert (t_train[distances.argmin(axis=1)] == t_test[:100]).mean() >= 0.95


def test_64_features_fill_the_height_and_six_columns(tmp_path):
    sheet = np.full((300, 300), 255, np.uint8)
    sheet[100:140, 50:250] = 0  # far wider than high
    loaded = load_image(save(tmp_path / "bar.png", sheet), 64).reshape(8, 8)
    expected = np.zeros((8, 8))
    expected[:, 1:7] = 1
    np.testing.assert_array_equal(loaded, expected)

    sheet = np.full((300, 300), 255, np.uint8)
    sheet[50:250, 30:80] = 0  # a quarter as wide as high
    loaded = load_image(save(tmp_path / "one.png", sheet), 64).reshape(8, 8)
    expected = np.zeros((8, 8))
    expected[:, 3:5] = 1
    np.testing.assert_array_equal(loaded, expected)


def test_64_features_keep_the_proportions_up_to_that(tmp_path):
    sheet = np.full((300, 300), 255, np.uint8)
    sheet[50:250, 30:150] = 0  # three fifths as wide as high: 19 of 32 columns
    loaded = load_image(save(tmp_path / "block.png", sheet), 64)
    assert loaded.sum() == 8 * 19 / 4


@pytest.mark.parametrize("light", [False, True])
def test_a_faint_shade_over_much_of_the_sheet_is_not_the_ink(tmp_path, light):
    sheet = np.full((280, 280), 200, np.uint8)
    sheet[5:-5, 5:-5] = 209
    sheet[BLACK_ON_WHITE < 128] = 20
    sheet = 255 - sheet if light else sheet
    assert difference(load_image(save(tmp_path / "shaded.png", sheet))) < 0.03


def test_ink_of_as_many_grey_levels_as_the_refusal_asks_for_is_read(tmp_path):
    sheet = np.full((60, 60), 128, np.uint8)
    sheet[20:40, 20:40] = 120
    assert load_image(save(tmp_path / "just.png", sheet)).max() == 1
    sheet[20:40, 20:40] = 121
    with pytest.raises(DatasetError, match=r"differs from the paper by 7 of 255 .* where 8 are"):
        load_image(save(tmp_path / "faint.png", sheet))


def test_a_picture_of_too_many_pixels_is_refused(tmp_path):
    path = save(tmp_path / "large.png", Image.new("1", (5001, 5000)))
    with pytest.raises(DatasetError, match="5001×5000 pixels, at most 25,000,000 are read"):
        load_image(path)


@pytest.mark.filterwarnings("error")
def test_pillow_does_not_warn_of_what_is_refused(tmp_path):
    path = save(tmp_path / "larger.png", Image.new("1", (10_000, 10_000)))
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path).close()
    with pytest.raises(DatasetError, match="10000×10000 pixels, at most 25,000,000 are read"):
        load_image(path)


@pytest.mark.parametrize("features", [0, 28, 100, 65])
def test_other_feature_counts_are_refused(tmp_path, features):
    path = save(tmp_path / "digit.png", BLACK_ON_WHITE)
    with pytest.raises(ValueError, match=rf"features is {features}, expected 784 .* or 64"):
        load_image(path, features)


def test_file_that_is_no_picture_is_refused(tmp_path):
    whole = save(tmp_path / "whole.png", BLACK_ON_WHITE).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name, reason in {
        "absent.png": "No such file",
        "half.png": "truncated",
        "text.png": "it is none of PNG, JPEG, GIF, WEBP, BMP, TIFF, PPM",
        "empty.png": "it is none of PNG, JPEG, GIF, WEBP, BMP, TIFF, PPM",
        "folder.png": "Is a directory" if os.name != "nt" else "",
    }.items():
        with pytest.raises(DatasetError) as caught:
            load_image(tmp_path / name)
        assert f"{tmp_path / name} cannot be read as a picture: " in str(caught.value)
        assert reason in str(caught.value)


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 100 100
%%EndComments
newpath 10 10 moveto 90 90 lineto stroke
showpage
%%EOF
"""


@pytest.mark.skipif(os.name == "nt", reason="a program here is a script")
@pytest.mark.parametrize("name", ["e.png", "e.eps"])
def test_no_picture_starts_a_program(monkeypatch, tmp_path, name):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / name).write_bytes(POSTSCRIPT)
    with pytest.raises(DatasetError, match=f"{name} cannot be read as a picture: it is none of"):
        load_image(tmp_path / name)
    assert not (tmp_path / "started").exists()
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_windows_binary", None)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(OSError), Image.open(tmp_path / name) as file:  # noqa: PT011
        file.load()
    assert (tmp_path / "started").exists()  # so it would have been


def test_formats_are_all_read(tmp_path):
    for kind in FORMATS:
        path = tmp_path / "digit.png"
        Image.fromarray(BLACK_ON_WHITE).convert("RGB").save(path, kind)
        assert difference(load_image(path)) < 0.03


MEASURED = f"""
import sys
from xnet.errors import DatasetError
from xnet.tools import pictures
{PEAK_MEMORY}
try:
    pictures.load_image(sys.argv[1])
except DatasetError as error:
    print(error)
print(peak_memory())
"""


def refused_in_a_child(path: Path) -> tuple[str, int]:
    """What a process that loads a picture says of it, and the most memory it has had."""
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", MEASURED, path],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    refused, peak = done.stdout.splitlines()
    return refused, int(peak)


tells_memory = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="no peak of memory is told here"
)


@tells_memory
@pytest.mark.parametrize(
    ("side", "reason", "limit"),
    [
        (9000, "cannot be read as a picture: 9000×9000 pixels, at most 25,000,000", 100 << 20),
        (5000, "looks blank", 400 << 20),
    ],
)
@pytest.mark.parametrize("mode", ["1", "P"])
def test_decompression_bombs_cost_little(tmp_path, mode, side, reason, limit):
    """Of a few kilobytes each, the larger would take nearly a gigabyte."""
    Image.new(mode, (side, side)).save(tmp_path / "bomb.png")
    refused, peak = refused_in_a_child(tmp_path / "bomb.png")
    assert reason in refused
    assert peak < limit


@tells_memory
def test_a_photo_is_decoded_at_the_size_that_is_needed(tmp_path):
    """As JPEG can be: its pixels in full would take 350 MiB with what they are converted to."""
    Image.new("RGB", (5000, 5000)).save(tmp_path / "photo.jpg")
    refused, peak = refused_in_a_child(tmp_path / "photo.jpg")
    assert "looks blank" in refused
    assert peak < 250 << 20


def faint() -> np.ndarray:
    sheet = np.full((100, 100), 255, np.uint8)
    sheet[40:60, 40:60] = 250
    return sheet


BLANK = {
    "white": np.full((50, 40), 255, np.uint8),
    "black": np.zeros((50, 40), np.uint8),
    "one pixel": np.zeros((1, 1), np.uint8),
    "transparent": np.zeros((50, 40, 4), np.uint8),
    "all but invisible": faint(),
    "grainy paper": shaded(np.full((60, 60), 255, np.uint8), tilt=0, grain=3),
    "shade": shaded(np.full((100, 100), 255, np.uint8), tilt=50, grain=0),
}


@pytest.mark.parametrize("kind", BLANK)
@pytest.mark.parametrize("features", [784, 64])
def test_blank_picture_is_refused(tmp_path, kind, features):
    path = save(tmp_path / "blank.png", BLANK[kind])
    with pytest.raises(DatasetError, match="looks blank") as caught:
        load_image(path, features)
    assert str(path) in str(caught.value)


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 40), width=st.integers(1, 40),
       ink=st.floats(0, 1), features=st.sampled_from([784, 64]))  # fmt: skip
def test_any_picture_is_loaded_or_refused(tmp_path_factory, seed, height, width, ink, features):
    rng = np.random.default_rng(seed)
    picture = np.where(rng.random((height, width)) < ink, rng.integers(0, 256, 2)[0], 200)
    path = save(tmp_path_factory.getbasetemp() / "any.png", picture.astype(np.uint8))
    try:
        loaded = load_image(path, features)
    except DatasetError as error:
        assert "looks blank" in str(error)  # noqa: PT017 - either outcome is right
        return
    assert loaded.shape == (features,)
    assert loaded.dtype == np.float32
    assert loaded.min() >= 0
    assert loaded.max() == 1


@pytest.mark.parametrize(
    ("terminal", "tqdm", "shows"),
    [(True, True, True), (True, False, False), (False, True, False), (None, True, False)],
)
def test_progress_is_shown_on_a_terminal_where_tqdm_is_installed(
    monkeypatch, terminal, tqdm, shows
):
    stderr = None if terminal is None else SimpleNamespace(isatty=lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)  # none under pythonw
    monkeypatch.setattr(datasets, "find_spec", lambda name: {"tqdm": tqdm or None}[name])
    assert datasets._shows_progress() == shows


def test_a_download_of_the_very_size_is_taken():
    download = datasets._Download(5)
    assert [download.write(chunk) for chunk in (b"abc", b"de")] == [3, 2]
    assert download.getvalue() == b"abcde"
    with pytest.raises(DatasetError, match="the server sends more than 5 bytes"):
        download.write(b"f")
