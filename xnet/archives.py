"""Arrays in NPZ files: x and t, or x_train, y_train, x_test and y_test as Keras has them.

Pickled objects are never loaded.
"""

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from xnet.errors import DatasetError
from xnet.labels import classes_of, encoded, task_of
from xnet.schema import Schema, Task

TRAIN = (("x", "t"), ("x", "y"), ("x_train", "t_train"), ("x_train", "y_train"))
"""Names of the training data and their labels; the first pair that is there."""
TEST = (("x_test", "t_test"), ("x_test", "y_test"))


def load(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an NPZ file by their names.

    Raises
    ------
    DatasetError
        It cannot be read, is damaged, or holds what is no array of numbers or texts.
    """
    found: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                name = member.filename.removesuffix(".npy")
                with file.open(member) as stream:
                    _check_size(f"{path}: {name}", stream, member.file_size)
                with file.open(member) as stream:
                    found[name] = npy.read_array(stream, allow_pickle=False)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise DatasetError(f"{path} is damaged, or no NPZ file: {error!s:.200}") from error
    return found


def _check_size(what: str, stream: Any, size: int) -> None:
    """Refuse, before memory is taken, an array that its file is too short for, and objects."""
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject or dtype.kind not in "biufUS":
        raise DatasetError(
            f"{what} holds {'pickled objects' if dtype.hasobject else dtype}, which are never "
            "loaded, expected numbers or texts"
        )
    if math.prod(shape) * dtype.itemsize > size:
        raise DatasetError(f"{what} announces {shape} of {dtype}, more than the {size} bytes of it")


def _pair(
    path: Path, arrays: Mapping[str, NDArray[Any]], names: tuple[tuple[str, str], ...]
) -> tuple[str, str] | None:
    """The names of x and its labels, checked."""
    pair = next((pair for pair in names if {*pair} <= arrays.keys()), None)
    if pair is None:
        return None
    x, t = arrays[pair[0]], arrays[pair[1]]
    check_inputs(f"{path}: {pair[0]}", x)
    if t.shape[:1] != x.shape[:1] or t.ndim > 2:
        raise DatasetError(
            f"{path}: {pair[1]} has shape {t.shape}, expected ({len(x)},) or ({len(x)}, C), for "
            f"{pair[0]} has {len(x)} samples"
        )
    return pair


def check_inputs(what: str, x: NDArray[Any]) -> None:
    """Refuse what is no array (N, ...) of finite numbers."""
    if x.ndim < 2 or not x.size:
        raise DatasetError(f"{what} has shape {x.shape}, expected (N, D) or (N, H, W)")
    if x.dtype.kind not in "biuf":
        raise DatasetError(f"{what} is {x.dtype}, expected numbers")
    check_finite(what, x)


def check_finite(what: str, x: NDArray[Any]) -> None:
    """Refuse NaN and infinity, by the place of the first."""
    for start in range(0, len(x) if x.dtype.kind == "f" else 0, 4096):
        bad = np.argwhere(~np.isfinite(x[start : start + 4096]))
        if len(bad):
            row, *place = bad[0].tolist()
            at = ", ".join(map(str, [start + row, *place]))
            raise DatasetError(f"{what}[{at}] is {x[start + row][(*place,)]}: expected a number")


def read(
    path: Path, task: str | None
) -> tuple[NDArray[Any], NDArray[Any], Schema, tuple[NDArray[Any], NDArray[Any]] | None]:
    """All of an NPZ file: x, t, what they are called, and test data if there are any."""
    arrays = load(path)
    pair, test = _pair(path, arrays, TRAIN), _pair(path, arrays, TEST)
    if pair is None:
        names = ", ".join(arrays) or "nothing"
        raise DatasetError(f"{path} holds {names}, expected x and t, or x_train and y_train")
    x, labels = arrays[pair[0]], arrays[pair[1]]
    schema = Schema(shape=x.shape[1:] if x.ndim > 2 and x.dtype == np.uint8 else None)
    schema, t = learnt(f"{path}: {pair[1]}", labels, task, schema)
    if test is None:
        return x, t, schema, None
    x_test, t_test = (arrays[name] for name in test)
    return x, t, schema, (x_test, targets(f"{path}: {test[1]}", t_test, schema))


def samples(
    path: Path, schema: Schema | None, labelled: bool
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """What is to be predicted, or judged: the test data if there are any; t if asked for."""
    arrays = load(path)
    if labelled:
        pair = _pair(path, arrays, TEST) or _pair(path, arrays, TRAIN)
    else:
        pair = next(((x, "") for x, _ in (*TEST, *TRAIN) if x in arrays), None)
    if pair is None:
        names, wanted = ", ".join(arrays) or "nothing", "x and t" if labelled else "x"
        raise DatasetError(f"{path} holds {names}, expected {wanted}")
    x = arrays[pair[0]]
    check_inputs(f"{path}: {pair[0]}", x)
    if not labelled:
        return x, None
    return x, targets(f"{path}: {pair[1]}", arrays[pair[1]], schema or Schema())


def learnt(
    what: str, labels: NDArray[Any], task: str | None, schema: Schema
) -> tuple[Schema, NDArray[Any]]:
    """Labels as a network learns them, and the schema with the names of the classes."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        hot = task != Task.regression and _is_one_hot(labels)
        if not hot and task == Task.classification:
            raise DatasetError(f"{what} has shape {labels.shape}, expected labels (N,) or one-hot")
        labels = labels.argmax(axis=1) if hot else labels
    if labels.ndim == 2:
        return schema, targets(what, labels, schema)
    different: list[Any] = np.unique(labels).tolist()
    if task is None:
        whole = labels.dtype.kind != "f"
        task = Task.classification if whole else task_of(different, len(labels), what)
    if task == Task.classification:
        named = classes_of(different, what)
        schema = Schema(schema.features, schema.labels, named, schema.ignored, schema.shape)
    return schema, targets(what, labels, schema)


def targets(what: str, labels: NDArray[Any], schema: Schema) -> NDArray[Any]:
    """Labels by a schema: (N,) classes, or (N, C) numbers."""
    if schema.classes is None:
        if labels.dtype.kind not in "biuf":
            raise DatasetError(f"{what} is {labels.dtype}, expected numbers")
        check_finite(what, labels)
        return labels.reshape(len(labels), -1).astype(np.float64)
    if labels.ndim == 2:
        labels = labels[:, 0] if labels.shape[1] == 1 else labels.argmax(axis=1)
    different, places = np.unique(labels, return_inverse=True)

    def refuse(k: int, said: str) -> NoReturn:
        raise DatasetError(f"{what}[{int(np.flatnonzero(places == k)[0])}]: {said}")

    return encoded(different.tolist(), places.reshape(-1), schema.classes, refuse)


def _is_one_hot(labels: NDArray[Any]) -> bool:
    either = (labels == 0) | (labels == 1)
    return bool(either.all() and (labels.sum(axis=1) == 1).all())
