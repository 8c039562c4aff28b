"""Handwritten digits as NumPy arrays: MNIST, scikit-learn's digits, and a picture of your own.

Ink is the high value and paper is 0, in the data sets and in a picture alike. scikit-learn,
pooch (with tqdm) and Pillow are imported when a function needs them, never at import.
"""

import gzip
import hashlib
import math
import os
import sys
import tempfile
import textwrap
import warnings
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from xnet.errors import DatasetError

__all__ = ["DATASETS", "load_digits", "load_image", "load_mnist"]

Split: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
"""The examples x and their labels t."""
Floats: TypeAlias = NDArray[np.float32]

_MIRRORS: tuple[str, ...] = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

# Of the decompressed bytes: the compressed ones differ from mirror to mirror.
_MNIST_SHA256: dict[str, str] = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
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
        _parse_idx(_read_mnist_file(name), name) for name in _MNIST_SHA256
    )
    return (
        _as_examples(images, labels, 255, normalize, flatten, one_hot),
        _as_examples(test_images, test_labels, 255, normalize, flatten, one_hot),
    )


def load_digits(
    normalize: bool = True, flatten: bool = True, one_hot: bool = False
) -> tuple[Split, Split]:
    """Load the 1,797 handwritten digits of 8×8 pixels that scikit-learn ships; works offline.

    scikit-learn gives them unsplit. The split here is always the same one: the order is
    ``numpy.random.default_rng(0).permutation(1797)``, its first 1,437 are for training.

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

    Raises
    ------
    DatasetError
        If scikit-learn is not installed.
    """
    with _optional("load_digits", "scikit-learn"):
        import sklearn.datasets as sklearn  # pyright: ignore[reportMissingTypeStubs]
    bunch = cast(Any, sklearn.load_digits())
    images, labels = bunch.images.astype(np.uint8), bunch.target
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:_DIGITS_TRAIN], order[_DIGITS_TRAIN:]
    return (
        _as_examples(images[train], labels[train], 16, normalize, flatten, one_hot),
        _as_examples(images[test], labels[test], 16, normalize, flatten, one_hot),
    )


DATASETS: Final[Mapping[str, Callable[..., tuple[Split, Split]]]] = {
    "digits": load_digits,
    "mnist": load_mnist,
}
"""The data sets by name; all take the same arguments and return the same form."""


def load_image(path: str | os.PathLike[str], features: int = 784) -> Floats:
    """Load a picture of one digit in the form a network trained on a data set expects.

    Any file that Pillow reads: a photo, a scan, a drawing; dark on light or light on dark; with
    transparency. There should be one digit in it, with some paper around, and nothing else.

    784 features follow MNIST (LeCun et al., 1998, section III.A): the digit's bounding box is
    scaled to fit 20×20, keeping its proportions, and placed in 28×28 with its centre of mass in
    the middle. 64 follow scikit-learn's digits (Garris et al., NISTIR 5469): scaled to the full
    height of a 32×32 bitmap, keeping its proportions up to a width of 24 (most of theirs are no
    wider), and averaged over blocks of 4×4.

    Parameters
    ----------
    path
        The file.
    features
        784 for a network trained on MNIST, 64 for one trained on the digits.

    Returns
    -------
    NDArray[float32]
        ``(features,)``, paper 0, the strongest ink 1.

    Raises
    ------
    DatasetError
        If the file cannot be read as a picture, is absurdly large, or shows no ink.
    ValueError
        If ``features`` is neither 784 nor 64.
    """
    if features not in (784, 64):
        raise ValueError(
            f"load_image: features is {features!r}, expected 784 (MNIST, 28×28) or 64 (digits, 8×8)"
        )
    path = Path(path)
    ink = _crop(_find_ink(*_read_grey(path), path))
    height, width = ink.shape
    if features == 784:
        scale = 20 / max(height, width)
        square = _place(ink, round(height * scale), round(width * scale), side=28)
    else:
        square = _place(ink, 32, min(round(width * 32 / height), 24), side=32)
        square = square.reshape(8, 4, 8, 4).mean(axis=(1, 3))
    # Shrinking pales a thin stroke; the data sets' own strokes reach full strength.
    return (square / square.max()).reshape(features)


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
        raw = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    return _verified(raw, name, f"{path}", f": {remedy}")


def _find(name: str, *folders: Path) -> Path | None:
    candidates = (folder / f"{name}{end}" for folder in folders for end in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _verified(raw: bytes, name: str, source: str, remedy: str = "") -> bytes:
    """Decompress ``raw`` if it is gzipped, and return it if it is what ``name`` should hold."""
    data = raw
    try:
        # The name does not tell: a server may have decompressed a .gz on the way.
        if raw.startswith(_GZIP_MAGIC):
            data = gzip.decompress(raw)
        got = hashlib.sha256(data).hexdigest()
    except (EOFError, OSError, zlib.error) as error:
        got = f"a broken gzip stream ({error})"
    if got != _MNIST_SHA256[name]:
        raise DatasetError(
            f"{source} is damaged, or not MNIST's {name}: SHA-256 of the decompressed bytes: "
            f"got {got}, expected {_MNIST_SHA256[name]}{remedy}"
        )
    return data


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
    with _optional("load_mnist without XNET_DATA_DIR", "pooch"):
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
    files = ", ".join(f"{each}.gz" for each in _MNIST_SHA256)
    raise DatasetError(
        f"MNIST's {name} could not be downloaded to {folder} ({'; '.join(reasons)}). Put the four "
        f"files in a folder yourself, and set XNET_DATA_DIR to that folder: {files}"
    )


def _fetch(url: str, name: str, folder: Path) -> Path:
    """Download ``url`` beside its final place, verify it, and only then move it there."""
    import pooch  # pyright: ignore[reportMissingTypeStubs]  # _cache_folder found it

    descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    os.close(descriptor)
    try:
        pooch.HTTPDownloader(progressbar=_shows_progress())(url, temporary, None)
        raw = Path(temporary).read_bytes()
        _verified(raw, name, "what was downloaded")
        path = folder / (f"{name}.gz" if raw.startswith(_GZIP_MAGIC) else name)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _shows_progress() -> bool:
    terminal = bool(sys.stderr) and sys.stderr.isatty()  # it is None under pythonw
    return terminal and find_spec("tqdm") is not None


@contextmanager
def _optional(what: str, package: str) -> Generator[None, None, None]:
    """Say how to install the package whose import fails inside."""
    try:
        yield
    except ImportError as error:
        raise DatasetError(
            f'{what} needs {package}: pip install "xnet-nn[datasets]" ({error})'
        ) from error


# A picture of one's own.


def _read_grey(path: Path) -> tuple[Floats, Floats]:
    """Return a picture's grey levels, 0..255, and its opacity, 0..1, both ``(H, W)``."""
    with _optional("load_image", "Pillow"):
        from PIL import Image, ImageOps
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits, which Pillow would clip, not scale
            image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
        image = image.convert("RGBA").convert("LA")
        image.thumbnail((1024, 1024))  # plenty for 28×28, and a photo's noise averages out
    # On a damaged file Pillow's decoders raise nearly anything, not only OSError.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DatasetError(f"{path} cannot be read as a picture: {reason}") from error
    grey, opacity = np.moveaxis(np.asarray(image, dtype=np.float32), -1, 0)
    return grey, opacity / np.float32(255)


def _find_ink(grey: Floats, opacity: Floats, path: Path) -> Floats:
    """Return how much ink each pixel holds, from 0, paper, to 1, the strongest; ``(H, W)``."""
    grey = _on_paper(grey, opacity)
    ink = grey - _paper_level(grey)
    # Ink is darker or lighter than paper, whichever differs more in all; squared, so that the
    # few pixels of a stroke outweigh a faint shade over half the sheet.
    if np.sum(np.minimum(ink, 0) ** 2) > np.sum(np.maximum(ink, 0) ** 2):
        ink = -ink
    grain = 3 * np.median(np.abs(_border(ink)))  # the paper's own; 0 in a clean drawing
    contrast, needed = ink.max(), max(8, 3 * grain)
    if contrast < needed:
        raise DatasetError(
            f"{path} looks blank: its strongest mark differs from the paper by {contrast:.0f} of "
            f"255 grey levels, where {needed:.0f} are needed to tell ink from paper"
        )
    return ((ink - grain) / (contrast - grain)).clip(0, 1)


def _on_paper(grey: Floats, opacity: Floats) -> Floats:
    """Lay a picture on the paper that its transparent parts stand for."""
    opaque = _border(opacity) > 0.5
    if opaque.mean() > 0.5:  # only its corners, say, are cut out
        paper = float(np.median(_border(grey)[opaque]))
    else:
        # White, unless that hides the drawing: chalk strokes on nothing.
        dark, light = (opacity * (255 - grey)).max(), (opacity * grey).max()
        paper = 0 if 4 * dark < light else 255
    return (paper + opacity * (grey - paper)).astype(np.float32)


def _paper_level(grey: Floats) -> Floats:
    """Estimate the grey of bare paper at each pixel, ``(H, W)``: a plane through the border.

    A plane, as a photo's light falls off to one side. It is fitted to the half of the border
    nearest to its median, so that ink that touches the border does not tilt it.
    """
    height, width = grey.shape
    plane = np.ones((3, height, width), np.float32)
    plane[1] = np.linspace(-1, 1, height)[:, np.newaxis]
    plane[2] = np.linspace(-1, 1, width)
    border = _border(grey)
    distance = np.abs(border - np.median(border))
    paper = distance <= np.median(distance)
    level, *_ = np.linalg.lstsq(_border(plane)[:, paper].T, border[paper])
    return np.tensordot(level, plane, 1).astype(np.float32)


def _border(picture: Floats) -> Floats:
    """Return the outermost pixels of ``(..., H, W)`` as ``(..., M)``."""
    sides = picture[..., 0, :], picture[..., -1, :], picture[..., 1:-1, 0], picture[..., 1:-1, -1]
    return np.concatenate(sides, axis=-1)


def _crop(ink: Floats) -> Floats:
    """Cut out the bounding box of the ink."""
    marked = ink > 0.1  # above the ripples that JPEG leaves around a stroke
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(ink: Floats, height: int, width: int, side: int) -> Floats:
    """Scale to ``(height, width)`` and place in ``(side, side)``, the centre of mass central."""
    from PIL import Image  # _read_grey found it

    height, width = max(height, 1), max(width, 1)
    # The area average gives back the very pixels of an enlarged original; enlarging with it
    # would give blocks.
    grows = height * width > ink.size
    resample = Image.Resampling.BICUBIC if grows else Image.Resampling.BOX
    scaled: Floats = np.asarray(Image.fromarray(ink).resize((width, height), resample)).clip(0, 1)
    top, left = _offset(scaled.sum(axis=1), side), _offset(scaled.sum(axis=0), side)
    square = np.zeros((side, side), np.float32)
    square[top : top + height, left : left + width] = scaled
    return square


def _offset(mass: Floats, side: int) -> int:
    """Bring the centre of mass to pixel side/2, MNIST's, unless that would cut ink off."""
    centre = np.average(np.arange(mass.size), weights=mass)
    # Whole pixels; of two equally good places, which an even bar has, the truly central one.
    offset = math.ceil(round(float((side - 1) / 2 - centre), 3))
    return min(max(offset, 0), side - mass.size)
