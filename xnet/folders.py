"""Pictures in folders, one folder a class, all of one size.

Pillow is imported when it is needed.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnet.errors import DatasetError, optional
from xnet.labels import classes_of, encoded
from xnet.schema import Schema

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""What is opened, whatever a file's name says: of Pillow's other formats some start a program."""

PIXELS = 25_000_000
"""As many are read, the usual picture of a phone; a file of some kilobytes may hold far more."""

NAMES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""How the names of pictures end."""

PARTS = {"train", "test"}
"""Folders that stand for parts of the data and for no class, where there are no others."""

SAMPLES = 256
"""Pictures that are read at a time for predictions."""


def load_picture(path: Path) -> NDArray[np.uint8]:
    """A picture's pixels as they are: (H, W) of grey ones, (H, W, 3) of colour ones.

    Raises
    ------
    DatasetError
        The file cannot be read as a picture, has more than `PIXELS`, more than 8 bits to a value,
        or is transparent somewhere.
    """
    with optional(f"reading {path.name}", "Pillow"):
        from PIL import Image, UnidentifiedImageError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what is refused here
            with closing(Image.open(path, formats=FORMATS)) as file:
                width, height = file.size
                if width * height > PIXELS:
                    raise ValueError(f"{width}×{height} pixels, at most {PIXELS:,} are read")
                if file.mode[:1] in "IF":
                    raise ValueError(f"its values have mode {file.mode}, expected 8 bits each")
                grey = file.mode in ("1", "L", "LA")
                image = file.convert("LA" if grey else "RGBA")
    except UnidentifiedImageError as error:
        raise DatasetError(f"{path} is no picture of {', '.join(FORMATS)}") from error
    # On a damaged file Pillow's decoders raise nearly anything, not only OSError.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DatasetError(f"{path} cannot be read as a picture: {reason!s:.200}") from error
    values = np.asarray(image)
    if values[..., -1].min() < 255:
        raise DatasetError(f"{path} is transparent somewhere: lay it on a background first")
    return np.ascontiguousarray(values[..., 0] if grey else values[..., :-1])


def is_picture(path: Path) -> bool:
    """Whether a file's name says that it is a picture."""
    return path.suffix.lower() in NAMES


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, in the order of their names."""
    return sorted(path for path in folder.iterdir() if is_picture(path) and path.is_file())


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of their names, hidden ones left out."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def load_pictures(paths: Sequence[Path], shape: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """Pictures as one array (N, H, W) or (N, H, W, 3), all of this shape, or of the first's.

    Raises
    ------
    DatasetError
        One of another size, or in colour where others are grey.
    """
    first = load_picture(paths[0])
    expected = first.shape if shape is None else shape
    found = np.empty((len(paths), *expected), np.uint8)
    for k, path in enumerate(paths):
        picture = load_picture(path) if k else first
        if picture.shape != expected:
            whose = f"{paths[0].name} is" if shape is None else "those in training were"
            raise DatasetError(f"{path} is {_kind(picture.shape)}, {whose} {_kind(expected)}")
        found[k] = picture
    return found


def _kind(shape: Sequence[int]) -> str:
    return f"{shape[1]}×{shape[0]} and {'grey' if len(shape) == 2 else 'in colour'}"


def labelled_paths(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures of a folder with one folder a class, and the name of each one's class."""
    paths, names = list[Path](), list[str]()
    for inner in subfolders(folder):
        found = pictures_in(inner)
        if not found:
            raise DatasetError(f"{inner} holds no picture, expected {', '.join(NAMES)}")
        paths += found
        names += [inner.name] * len(found)
    if not paths:
        raise DatasetError(f"{folder} holds no folders of pictures, expected one for each class")
    return paths, names


def read(
    folder: Path,
) -> tuple[NDArray[Any], NDArray[Any], Schema, tuple[NDArray[Any], NDArray[Any]] | None]:
    """All of a folder's pictures: x, t, what they are called, and test data if there are any.

    A folder that holds ``train`` and ``test`` and no other has them in these two.
    """
    parts = {inner.name for inner in subfolders(folder)} == PARTS
    paths, names = labelled_paths(folder / "train" if parts else folder)
    classes = classes_of(names, str(folder))
    x = load_pictures(paths, None)
    schema = Schema(classes=classes, shape=x.shape[1:])
    test = _labelled(folder / "test", schema) if parts else None
    return x, _classes(paths, names, schema), schema, test


def _labelled(folder: Path, schema: Schema) -> tuple[NDArray[Any], NDArray[Any]]:
    paths, names = labelled_paths(folder)
    t = _classes(paths, names, schema)
    return load_pictures(paths, schema.shape), t


def _classes(paths: Sequence[Path], names: Sequence[str], schema: Schema) -> NDArray[np.int64]:
    different = list(dict.fromkeys(names))

    def refuse(k: int, what: str) -> Any:
        raise DatasetError(f"{paths[names.index(different[k])].parent}: {what}")

    places = np.asarray([different.index(name) for name in names])
    return encoded(different, places, schema.classes or (), refuse)


def chunks(
    folder: Path, schema: Schema | None, labelled: bool
) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None, list[str]]]:
    """Pictures some at a time: x, t if asked for, and the names of the files.

    Where no classes are asked for, the pictures may lie in the folder itself.
    """
    schema = schema or Schema()
    if {inner.name for inner in subfolders(folder)} == PARTS:
        folder = folder / "test"
    flat = [] if labelled else pictures_in(folder)
    paths, names = (flat, []) if flat else labelled_paths(folder)
    t = _classes(paths, names, schema) if labelled else None
    for start in range(0, len(paths), SAMPLES):
        part = slice(start, start + SAMPLES)
        files = [str(path.relative_to(folder)) for path in paths[part]]
        x = load_pictures(paths[part], schema.shape)
        yield x, None if t is None else t[part], files
