"""IDX files of bytes in MNIST's layout (LeCun et al. 1998): Fashion-MNIST, EMNIST and others."""

import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from xnet.errors import DatasetError
from xnet.labels import classes_of, encoded
from xnet.schema import Schema

Part = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Pictures (N, H, W) and their labels (N,)."""

_IMAGES = re.compile(r"(?:(.+)-)?(train|t10k|test)-images[-.]idx3-ubyte(?:\.gz)?")


def parse(data: bytes, name: str) -> NDArray[np.uint8]:
    """Parse an IDX file of bytes: two zeros, type 8, the number of axes, their lengths, values."""
    axes = _axes(name)
    start = 4 + 4 * axes
    shape = _shape(data[:start], name)
    if len(data) - start != math.prod(shape):
        raise DatasetError(
            f"{name}: {len(data) - start} values, but the IDX header announces {shape}"
        )
    # A copy, as an array over immutable bytes would be read-only.
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def _axes(name: str) -> int:
    return 3 if "idx3" in name else 1


def _shape(header: bytes, name: str) -> list[int]:
    """The lengths that a header announces."""
    axes = _axes(name)
    if header[:4] != bytes([0, 0, 8, axes]) or len(header) < 4 + 4 * axes:
        raise DatasetError(
            f"{name}: the IDX header is {header.hex(' ')}, "
            f"expected 00 00 08 {axes:02x} and {axes} lengths of 4 bytes"
        )
    return np.frombuffer(header, ">u4", count=axes, offset=4).tolist()


def is_idx(folder: Path) -> bool:
    """Whether a folder holds IDX files of pictures."""
    return any(_IMAGES.fullmatch(path.name) for path in folder.iterdir())


def load(folder: Path, name: str | None, sha256: Mapping[str, str]) -> tuple[Part, Part]:
    """Training and test data of a folder; see `xnet.datasets.load_idx`."""
    try:
        files = sorted(path for path in folder.iterdir() if _IMAGES.fullmatch(path.name))
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error.strerror}") from error
    sets: dict[str, dict[str, Path]] = {}
    for path in files:
        before, part = cast("re.Match[str]", _IMAGES.fullmatch(path.name)).groups()
        which = "train" if part == "train" else "test"
        sets.setdefault(before or "", {}).setdefault(which, path)
    listed = ", ".join(map(repr, sets)) or "none"
    if name is None and len(sets) > 1:
        raise DatasetError(f"{folder} holds several data sets, name one of {listed}")
    chosen = sets.get(next(iter(sets), "") if name is None else name, {})
    for part in ("train", "test"):
        if part not in chosen:
            of = f"{name}-" if name else ""
            raise DatasetError(
                f"{folder} holds no {of}{part}-images-idx3-ubyte, gzipped or not; its data sets: "
                f"{listed}"
            )
    train, test = (_part(chosen[part], sha256) for part in ("train", "test"))
    if train[0].shape[1:] != test[0].shape[1:]:
        sizes = f"{train[0].shape[1:]} in training, {test[0].shape[1:]} in the test data"
        raise DatasetError(f"{folder}: the pictures are of two sizes, {sizes}")
    return train, test


def _part(images: Path, sha256: Mapping[str, str]) -> Part:
    plain = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    candidates = (images.with_name(plain + end) for end in ("", ".gz"))
    labels = next((path for path in candidates if path.is_file()), None)
    if labels is None:
        raise DatasetError(f"{images.parent} holds {images.name}, but no {plain} or {plain}.gz")
    x, t = _array(images, sha256), _array(labels, sha256)
    if len(x) != len(t) or not len(x):
        raise DatasetError(f"{images} holds {len(x)} pictures, {labels.name} {len(t)} labels")
    return x, t


def _array(path: Path, sha256: Mapping[str, str]) -> NDArray[np.uint8]:
    """A file's array. No more is decompressed, or kept, than its header announces, and a byte."""
    name = path.name.removesuffix(".gz")
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if gzipped else file
            header = stream.read(4 + 4 * _axes(name))
            shape = _shape(header, str(path))
            # Read in pieces: memory is taken for what is there, not for what is announced.
            content, wanted = bytearray(header), math.prod(shape) + 1
            while wanted and (piece := stream.read(min(wanted, 1 << 24))):
                content += piece
                wanted -= len(piece)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error!s:.200}") from error
    digest = hashlib.sha256(content).hexdigest()
    if name in sha256 and digest != sha256[name].lower():
        raise DatasetError(
            f"{path}: SHA-256 of the decompressed bytes: got {digest}, expected {sha256[name]}"
        )
    return parse(bytes(content), f"{path.parent / name}")


# -- as data of one's own


def read(folder: Path) -> tuple[NDArray[Any], NDArray[Any], Schema, Part]:
    """All of a folder: x, t, what they are called, and the test data."""
    (x, labels), (x_test, labels_test) = load(folder, None, {})
    classes = classes_of(np.unique(labels).tolist(), str(folder))
    schema = Schema(classes=classes, shape=x.shape[1:])
    t, t_test = (_classes(folder, of, schema) for of in (labels, labels_test))
    return x, t, schema, (x_test, cast("NDArray[np.uint8]", t_test))


def samples(
    folder: Path, schema: Schema, labelled: bool
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The test data; t if asked for."""
    _, (x, labels) = load(folder, None, {})
    if schema.shape is not None and x.shape[1:] != schema.shape:
        raise DatasetError(
            f"{folder}: pictures of {x.shape[1:]}, those in training were {schema.shape}"
        )
    return x, _classes(folder, labels, schema) if labelled else None


def _classes(folder: Path, labels: NDArray[Any], schema: Schema) -> NDArray[np.int64]:
    different, places = np.unique(labels, return_inverse=True)

    def refuse(k: int, what: str) -> NoReturn:
        raise DatasetError(f"{folder}: label {int(np.flatnonzero(places == k)[0])}: {what}")

    return encoded(different.tolist(), places, schema.classes or (), refuse)
