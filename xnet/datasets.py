"""Handwritten digits as NumPy arrays: MNIST, and the small digits that are part of xnet.

Ink is the high value and paper is 0. pooch (with tqdm) is imported when it is needed, never at
import.
"""

import gzip
import hashlib
import io
import math
import os
import sys
import textwrap
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xnet.errors import DatasetError
from xnet.files import replaced

__all__ = ["DATASETS", "load_digits", "load_mnist", "optional"]

Split: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
"""The examples x and their labels t."""

_MIRRORS: tuple[str, ...] = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


class _Content(NamedTuple):
    """What one of MNIST's files holds; the compressed bytes differ from mirror to mirror."""

    size: int
    sha256: str


_MNIST: dict[str, _Content] = {
    "train-images-idx3-ubyte": _Content(
        47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte": _Content(
        60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "t10k-images-idx3-ubyte": _Content(
        7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "t10k-labels-idx1-ubyte": _Content(
        10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}

_GZIP_MAGIC = b"\x1f\x8b"
_DIGITS_TRAIN = 1437  # four fifths of the 1,797


def load_mnist(
    normalize: bool = True, flatten: bool = True, one_hot: bool = False
) -> tuple[Split, Split]:
    """Load MNIST, 70,000 handwritten digits of 28×28 pixels (LeCun et al., 1998).

    The four files are read from the folder ``XNET_DATA_DIR`` or its ``mnist`` subfolder if that
    variable is set, each gzipped (``.gz``) or not; otherwise from the user's cache, downloaded on
    first use. They are verified by SHA-256 wherever they came from.

    Parameters
    ----------
    normalize
        Scale the pixels from 0..255 (uint8) to 0..1 (float32).
    flatten
        Give each picture as a row of 784 pixels rather than as ``(1, 28, 28)``.
    one_hot
        Give each label as a row of ten, 1 at its class and 0 elsewhere.

    Returns
    -------
    ((x_train, t_train), (x_test, t_test))
        x: ``(60000, 784)`` and ``(10000, 784)``, or ``(N, 1, 28, 28)``; float32 or uint8.
        t: ``(N,)`` int64, or ``(N, 10)`` float32.

    Raises
    ------
    DatasetError
        If a file is missing from ``XNET_DATA_DIR``, is damaged, or cannot be downloaded.
    """
    images, labels, test_images, test_labels = (
        _parse_idx(_read_mnist_file(name), name) for name in _MNIST
    )
    return (
        _as_examples(images, labels, 255, normalize, flatten, one_hot),
        _as_examples(test_images, test_labels, 255, normalize, flatten, one_hot),
    )


def load_digits(
    normalize: bool = True, flatten: bool = True, one_hot: bool = False
) -> tuple[Split, Split]:
    """Load 1,797 handwritten digits of 8×8 pixels, which are part of xnet.

    They are the test set of *Optical Recognition of Handwritten Digits* (E. Alpaydin & C. Kaynak
    1998, UCI Machine Learning Repository, doi:10.24432/C50P49, CC BY 4.0), as scikit-learn has
    them. The split is always the same one: in the order of
    ``numpy.random.default_rng(0).permutation(1797)`` the first 1,437 are for training.

    Parameters
    ----------
    normalize
        Scale the pixels from 0..16 (uint8) to 0..1 (float32).
    flatten
        Give each picture as a row of 64 pixels rather than as ``(1, 8, 8)``.
    one_hot
        Give each label as a row of ten, 1 at its class and 0 elsewhere.

    Returns
    -------
    ((x_train, t_train), (x_test, t_test))
        x: ``(1437, 64)`` and ``(360, 64)``, or ``(N, 1, 8, 8)``; float32 or uint8.
        t: ``(N,)`` int64, or ``(N, 10)`` float32.
    """
    with (files("xnet") / "digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    train, test = (
        _as_examples(images[part], labels[part], 16, normalize, flatten, one_hot)
        for part in (slice(_DIGITS_TRAIN), slice(_DIGITS_TRAIN, None))
    )
    return train, test


DATASETS: Final[Mapping[str, Callable[..., tuple[Split, Split]]]] = {
    "digits": load_digits,
    "mnist": load_mnist,
}
"""The data sets by name; all take the same arguments and return the same form."""


# The data sets.


def _as_examples(
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    white: int,
    normalize: bool,
    flatten: bool,
    one_hot: bool,
) -> Split:
    """Turn ``(N, H, W)`` pixels 0..white and ``(N,)`` labels into the form that was asked for."""
    x = images.reshape(len(images), -1) if flatten else images[:, np.newaxis]
    return (
        x / np.float32(white) if normalize else x,
        np.eye(10, dtype=np.float32)[labels] if one_hot else labels.astype(np.int64),
    )


def _read_mnist_file(name: str) -> bytes:
    """Return the decompressed, verified bytes of one of MNIST's files."""
    given = os.environ.get("XNET_DATA_DIR")
    if given:
        folder = Path(given).expanduser()
        path = _find(name, folder, folder / "mnist")
        remedy = "put a good copy in its place"
        if path is None:
            raise DatasetError(
                f"XNET_DATA_DIR={given} holds no {name} or {name}.gz, neither there nor in its "
                "mnist subfolder: put MNIST's four files there, or unset XNET_DATA_DIR to have "
                "them downloaded"
            )
    else:
        folder = _cache_folder()
        path = _find(name, folder) or _download(name, folder)
        remedy = "delete it, and it will be downloaded again"
    try:
        with path.open("rb") as file:
            return _verified(file, name, f"{path}", f": {remedy}")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


def _find(name: str, *folders: Path) -> Path | None:
    candidates = (folder / f"{name}{end}" for folder in folders for end in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _verified(file: BinaryIO, name: str, source: str, remedy: str = "") -> bytes:
    """Return what a file holds, decompressed if it is gzipped, if it is what ``name`` should hold.

    No more than a byte too many is read or decompressed, whatever the file's size.
    """
    size, expected = _MNIST[name]
    # The name does not tell: a server may have decompressed a .gz on the way.
    gzipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    file.seek(0)
    try:
        data = (gzip.GzipFile(fileobj=file) if gzipped else file).read(size + 1)
        got = hashlib.sha256(data).hexdigest() if len(data) <= size else f"more than {size} bytes"
        if got == expected:
            return data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        got = f"a broken gzip stream ({error})"
    raise DatasetError(
        f"{source} is damaged, or not MNIST's {name}: SHA-256 of the decompressed bytes: "
        f"got {got}, expected {expected}{remedy}"
    )


def _parse_idx(data: bytes, name: str) -> NDArray[np.uint8]:
    """Parse an IDX file of bytes: two zeros, type 8, the number of axes, their lengths, values."""
    axes = 3 if "idx3" in name else 1
    start = 4 + 4 * axes
    if data[:4] != bytes([0, 0, 8, axes]) or len(data) < start:
        raise DatasetError(
            f"{name}: the IDX header is {data[:start].hex(' ')}, "
            f"expected 00 00 08 {axes:02x} and {axes} lengths of 4 bytes"
        )
    shape: list[int] = np.frombuffer(data, ">u4", count=axes, offset=4).tolist()
    if len(data) - start != math.prod(shape):
        raise DatasetError(
            f"{name}: {len(data) - start} values, but the IDX header announces {shape}"
        )
    # A copy, as an array over immutable bytes would be read-only.
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def _cache_folder() -> Path:
    with optional("load_mnist without XNET_DATA_DIR", "pooch"):
        import pooch  # pyright: ignore[reportMissingTypeStubs]
    return Path(pooch.os_cache("xnet")) / "mnist"


def _download(name: str, folder: Path) -> Path:
    """Fetch one of MNIST's files into ``folder`` from the first mirror that has it whole."""
    reasons: list[str] = []
    for mirror in _MIRRORS:
        url = f"{mirror}{name}.gz"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _fetch(url, name, folder)
        except DatasetError as error:
            reasons.append(f"{url}: {error}")
        except OSError as error:  # what requests raises is one, some of it long
            reasons.append(f"{url}: {textwrap.shorten(str(error), 100)}")
    files = ", ".join(f"{each}.gz" for each in _MNIST)
    raise DatasetError(
        f"MNIST's {name} could not be downloaded to {folder} ({'; '.join(reasons)}). Put the four "
        f"files in a folder yourself, and set XNET_DATA_DIR to that folder: {files}"
    )


def _fetch(url: str, name: str, folder: Path) -> Path:
    """Download ``url``, verify it, and only then write it."""
    import pooch  # pyright: ignore[reportMissingTypeStubs]  # _cache_folder found it

    size = _MNIST[name].size
    raw = _Download(size + size // 1000 + 1000)  # gzip adds less to what it cannot compress
    pooch.HTTPDownloader(progressbar=_shows_progress())(url, raw, None)
    raw.seek(0)
    _verified(raw, name, "what was downloaded")
    path = folder / (f"{name}.gz" if raw.getvalue().startswith(_GZIP_MAGIC) else name)
    with replaced(path) as file:
        file.write(raw.getbuffer())
    return path


class _Download(io.BytesIO):
    """What a server sends, refused when it is more than that can be."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def write(self, chunk: Any) -> int:
        if self.tell() + len(chunk) > self.size:
            raise DatasetError(f"the server sends more than {self.size} bytes")
        return super().write(chunk)


def _shows_progress() -> bool:
    terminal = bool(sys.stderr) and sys.stderr.isatty()  # it is None under pythonw
    return terminal and find_spec("tqdm") is not None


@contextmanager
def optional(what: str, package: str) -> Generator[None, None, None]:
    """Say how to install the package whose import fails inside."""
    try:
        yield
    except ImportError as error:
        raise DatasetError(
            f'{what} needs {package}: pip install "xnet-nn[datasets]" ({error})'
        ) from error
