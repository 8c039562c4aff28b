"""Data as NumPy arrays: one's own in files, MNIST, and the small digits that are part of xnet.

Of the digits ink is the high value and paper is 0. What reads a file is imported when it is needed:
pyarrow for tables, Pillow for pictures, pooch (with tqdm) to download.
"""

import dataclasses
import gzip
import hashlib
import io
import os
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xnet import archives, folders, idx, tables
from xnet.errors import DatasetError, optional
from xnet.files import replaced
from xnet.random import Generator
from xnet.samples import held_out
from xnet.schema import Schema, Task

__all__ = [
    "DATASETS",
    "Data",
    "chunks",
    "is_data",
    "load_digits",
    "load_idx",
    "load_mnist",
    "read",
]

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

    Examples
    --------
    >>> (x, t), (x_test, t_test) = xnet.datasets.load_mnist()  # doctest: +SKIP
    >>> x.shape, t.shape, x_test.shape  # doctest: +SKIP
    ((60000, 784), (60000,), (10000, 784))

    A folder of one's own is the only place that is looked into:

    >>> import os
    >>> import tempfile
    >>> from unittest import mock
    >>> import xnet
    >>> with tempfile.TemporaryDirectory() as empty:
    ...     with mock.patch.dict(os.environ, XNET_DATA_DIR=empty):
    ...         xnet.datasets.load_mnist()  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    DatasetError: XNET_DATA_DIR=... holds no train-images-idx3-ubyte ...
    """
    images, labels, test_images, test_labels = (
        idx.parse(_read_mnist_file(name), name) for name in _MNIST
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

    Examples
    --------
    >>> import xnet
    >>> (x, t), (x_test, t_test) = xnet.datasets.load_digits()
    >>> x.shape, t.shape, x_test.shape
    ((1437, 64), (1437,), (360, 64))
    >>> t[:5].tolist()
    [6, 6, 6, 2, 5]
    >>> x[0].reshape(8, 8)[2].tolist()
    [0.0, 0.0, 0.8125, 0.3125, 0.0, 0.0, 0.0, 0.0]
    """
    with (files("xnet") / "digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    train, test = (
        _as_examples(images[part], labels[part], 16, normalize, flatten, one_hot)
        for part in (slice(_DIGITS_TRAIN), slice(_DIGITS_TRAIN, None))
    )
    return train, test


def load_idx(
    folder: str | os.PathLike[str],
    name: str | None = None,
    *,
    normalize: bool = True,
    flatten: bool = True,
    one_hot: bool = False,
    sha256: Mapping[str, str] | None = None,
) -> tuple[Split, Split]:
    """Load a folder of IDX files in MNIST's layout: Fashion-MNIST, EMNIST, KMNIST, or MNIST.

    The four files are named ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
    ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``; ``test`` may stand for ``t10k``, a
    dot for the last hyphen but one, and ``emnist-letters-``, say, before each. Each may be gzipped.

    Parameters
    ----------
    folder
        Where they are.
    name
        What stands before the names of the files wanted, ``"emnist-letters"``, where there is more
        than one such set.
    normalize, flatten, one_hot
        As in `load_mnist`; rows of `one_hot` have as many numbers as the largest label asks for.
    sha256
        What the decompressed bytes of a file must have, by its name without ``.gz``.

    Returns
    -------
    ((x_train, t_train), (x_test, t_test))
        As `load_mnist`, with pictures of any size.

    Raises
    ------
    DatasetError
        A file is missing, cut short, too long, no IDX file of bytes or not that of its SHA-256, or
        there are not as many labels as pictures.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import xnet
    >>> parts = {"images-idx3": np.full((2, 3, 3), 255, np.uint8), "labels-idx1": np.uint8([1, 0])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("train-{}-ubyte", "t10k-{}-ubyte"):
    ...         for part, values in parts.items():
    ...             head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    ...             _ = Path(folder, name.format(part)).write_bytes(head + values.tobytes())
    ...     (x, t), (x_test, t_test) = xnet.datasets.load_idx(folder)
    >>> x.shape, x.max().item(), t.tolist()
    ((2, 9), 1.0, [1, 0])
    """
    parts = idx.load(Path(folder), name, sha256 or {})
    classes = 1 + max(int(labels.max(initial=0)) for _, labels in parts)
    train, test = (
        _as_examples(images, labels, 255, normalize, flatten, one_hot, classes)
        for images, labels in parts
    )
    return train, test


DATASETS: Final[Mapping[str, Callable[..., tuple[Split, Split]]]] = {
    "digits": load_digits,
    "mnist": load_mnist,
}
"""The data sets by name; all take the same arguments and return the same form."""


# Data of one's own.


@dataclasses.dataclass
class Data:
    """Samples, what is to be learnt of them, and what both are called.

    Attributes
    ----------
    x
        (N, D), float64, or uint8 where all are bytes.
    t
        Classes (N,) int64, or numbers (N, C) float64.
    schema
        The names of columns and classes; put it in ``network.schema``, and its file keeps it.
    test
        Test data ``(x, t)``, where the file has such.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> schema = xnet.schema.Schema(("height", "width"), ("kind",), classes=("cat", "dog"))
    >>> data = xnet.datasets.Data(np.arange(20.0).reshape(10, 2), np.array([0, 1] * 5), schema)
    >>> train, test = data.split(0.4)
    >>> train.x.shape, test.x.shape, test.t.tolist()
    ((6, 2), (4, 2), [0, 0, 1, 1])
    """

    x: NDArray[Any]
    t: NDArray[Any]
    schema: Schema
    test: Split | None = None

    def split(self, share: float, seed: int = 0) -> "tuple[Data, Data]":
        """What is left, and a share that is drawn by `seed`, of each class alike.

        Parameters
        ----------
        share
            Between 0 and 1: how much goes to the second.
        seed
            Of what is drawn.

        Returns
        -------
        Data, Data
            Without test data, their samples in the order that they had.

        Raises
        ------
        ValueError
            The share is not between 0 and 1, or holds no sample, or all.

        Examples
        --------
        >>> import numpy as np
        >>> import xnet
        >>> numbers = np.arange(4.0).reshape(4, 1)
        >>> data = xnet.datasets.Data(numbers, 2 * numbers, xnet.schema.Schema())
        >>> left, share = data.split(0.25, seed=0)
        >>> left.x.ravel().tolist(), share.x.ravel().tolist()
        ([1.0, 2.0, 3.0], [0.0])
        """
        labels = self.t if self.schema.classes else None
        rest, held = held_out(len(self.x), labels, share, Generator(seed), "share")
        first, second = (
            dataclasses.replace(self, x=self.x[at], t=self.t[at], test=None) for at in (rest, held)
        )
        return first, second


def read(
    path: str | os.PathLike[str],
    label: str | Sequence[str] = (),
    *,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> Data:
    r"""Read data of one's own from a file or a folder.

    A table: CSV, TSV (each gzipped or not) or Parquet, with a header; rows are counted from 1, the
    header left out. An NPZ file with x and t, or x_train, y_train, x_test and y_test. A folder of
    IDX files, see `load_idx`. A folder of pictures with one folder a class, all of one size, or of
    ``train`` and ``test`` with such.

    Parameters
    ----------
    path
        The file or folder.
    label
        Of a table, the column that is to be learnt, or several columns of numbers.
    task
        ``"classification"`` or ``"regression"``. None: texts are classes, and so are whole numbers
        of which a table has at most 20 different ones, or which an NPZ file holds as integers.
    ignore
        Columns of a table that are neither learnt nor learnt from.

    Returns
    -------
    Data
        Classes are numbered in the order of their names, `Data.schema` has these.

    Raises
    ------
    DatasetError
        The file cannot be read, is damaged, or a value is missing or no number: it is named by its
        row and column.
    ValueError
        An unknown task; a label or columns to ignore for what has no columns.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import xnet
    >>> table = "weight,price,fruit\n150,100,apple\n200,150,orange\n170,120,apple\n"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "fruit.csv")
    ...     _ = path.write_text(table)
    ...     data = xnet.datasets.read(path, label="fruit")
    >>> data.x.tolist(), data.t.tolist()
    ([[150.0, 100.0], [200.0, 150.0], [170.0, 120.0]], [0, 1, 0])
    >>> data.schema.features, data.schema.classes
    (('weight', 'price'), ('apple', 'orange'))
    """
    path, labels = Path(path), (label,) if isinstance(label, str) else tuple(label)
    if task not in (None, Task.classification, Task.regression):
        raise ValueError(f"task is {task!r}, expected {[*map(str, Task)]} or None")
    if twice := {name for name in labels if [*labels, *ignore].count(name) > 1}:
        raise ValueError(f"label: {', '.join(sorted(twice))} is named twice")
    _check_there(path)
    if tables.is_table(path):
        return Data(*tables.read(path, labels, task, ignore))
    if labels or ignore:
        raise ValueError(f"{path} is no table, and has no column to be named: {labels or ignore}")
    if path.suffix.lower() == ".npz":
        return _flat(*archives.read(path, task))
    if not path.is_dir():
        raise DatasetError(f"{path}: {_expected()}")
    if task == Task.regression:
        raise ValueError(f"task is {task!r}, but {path} is a folder, of classes")
    return _flat(*(idx.read(path) if idx.is_idx(path) else folders.read(path)))


def chunks(
    path: str | os.PathLike[str], schema: Schema | None = None, *, labelled: bool = False
) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None, list[str] | None]]:
    """Data as a network takes them that was trained on such, some samples at a time.

    A table is never in memory as a whole, however long it is; its columns are found by name. Where
    there are test data beside others, it is these.

    Parameters
    ----------
    path
        As in `read`.
    schema
        ``network.schema``; None where the network has none: then a table's columns are taken in
        their order.
    labelled
        Whether the labels are asked for.

    Yields
    ------
    (x, t, names)
        x (N, D); t as in `Data` if asked for, else None; of pictures the names of their files.

    Raises
    ------
    DatasetError
        As in `read`; a column that was not there in training, or is missing now; a class that was
        never seen; pictures of another size.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import xnet
    >>> learnt = xnet.schema.Schema(classes=("cat", "dog"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "samples.npz")
    ...     np.savez(path, x=np.ones((3, 2)), t=np.array(["dog", "cat", "dog"]))
    ...     for x, t, names in xnet.datasets.chunks(path, learnt, labelled=True):
    ...         print(x.shape, t.tolist(), names)
    (3, 2) [1, 0, 1] None
    """
    path = Path(path)
    _check_there(path)
    if labelled and schema is None:
        raise DatasetError(f"{path}: the network does not say which column or class it has learnt")
    if schema is not None and schema.features is not None and not tables.is_table(path):
        raise DatasetError(f"{path} is no table, and the network was trained on one")
    if tables.is_table(path):
        for x, t in tables.chunks(path, schema, labelled):
            yield x, t, None
    elif path.suffix.lower() == ".npz":
        x, t = archives.samples(path, schema, labelled)
        yield x.reshape(len(x), -1), t, None
    elif path.is_dir() and idx.is_idx(path):
        x, t = idx.samples(path, schema or Schema(), labelled)
        yield x.reshape(len(x), -1), t, None
    elif path.is_dir():
        for x, t, names in folders.chunks(path, schema, labelled):
            yield x.reshape(len(x), -1), t, names
    elif folders.is_picture(path) and not labelled:
        x = folders.load_pictures([path], None if schema is None else schema.shape)
        yield x.reshape(1, -1), None, [str(path)]
    else:
        raise DatasetError(f"{path}: {_expected()}")


def is_data(path: str | os.PathLike[str]) -> bool:
    """Whether a path says that it is what `read` takes: a folder, a table or an NPZ file.

    Parameters
    ----------
    path
        Which need not be there.

    Examples
    --------
    >>> import xnet
    >>> [xnet.datasets.is_data(path) for path in ("wine.csv", "fruit.npz", "seven.png")]
    [True, True, False]
    """
    path = Path(path)
    return path.is_dir() or tables.is_table(path) or path.suffix.lower() == ".npz"


def _check_there(path: Path) -> None:
    if not path.exists():
        raise DatasetError(f"{path} cannot be read: no such file or folder")


def _expected() -> str:
    suffixes = ", ".join([*tables.DELIMITERS, *tables.PARQUET, ".npz"])
    return f"expected a file named {suffixes}, or a folder of IDX files or of pictures"


def _flat(x: NDArray[Any], t: NDArray[Any], schema: Schema, test: Split | None) -> Data:
    """Data with a row for each sample."""
    if test is not None:
        test = test[0].reshape(len(test[0]), -1), test[1]
    return Data(x.reshape(len(x), -1), t, schema, test)


# The data sets.


def _as_examples(
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    white: int,
    normalize: bool,
    flatten: bool,
    one_hot: bool,
    classes: int = 10,
) -> Split:
    """Turn ``(N, H, W)`` pixels 0..white and ``(N,)`` labels into the form that was asked for."""
    x = images.reshape(len(images), -1) if flatten else images[:, np.newaxis]
    return (
        x / np.float32(white) if normalize else x,
        np.eye(classes, dtype=np.float32)[labels] if one_hot else labels.astype(np.int64),
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
