"""Saving and loading networks: safetensors, and the notes' pickled weights, safely."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import secrets
import tempfile
import textwrap
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from xnet.backend import Backend, float_dtype, resolve
from xnet.errors import WeightsError
from xnet.layers import LAYERS, LOSSES, Affine, Layer, Sigmoid, SoftmaxWithLoss
from xnet.network import Network

METADATA_KEY = "xnet"
"""Under this key a file's metadata holds the architecture, as JSON."""

FORMAT = 1


def save(network: Network, path: str | os.PathLike[str]) -> None:
    """Save a network's parameters and architecture as one safetensors file.

    The file is written under a temporary name beside `path` and renamed, so that a killed run
    leaves the old file or the new one, never half of one.

    Parameters
    ----------
    network
        Any stack of xnet's own layers.
    path
        Where; a file that is there is replaced.

    Raises
    ------
    WeightsError
        The file cannot be written, or a layer or loss is none of xnet's own.
    """
    from safetensors.numpy import save as to_bytes

    check_savable(network)
    architecture = {
        "format": FORMAT,
        "layers": [[type(layer).__name__, layer.config()] for layer in network.layers],
        "loss": type(network.loss_layer).__name__,
    }
    arrays = {
        name: np.ascontiguousarray(network.backend.to_numpy(array))
        for name, array in network.params.items()
    }
    content = to_bytes(arrays, metadata={METADATA_KEY: json.dumps(architecture)})
    with replaced(path) as file:
        file.write(content)


def sha256(network: Network) -> str:
    """SHA-256 of a network's parameters: their bytes, little-endian in C order, as they come.

    Two networks of one shape have the same if, and only if, every bit of their parameters is.
    """
    digest = hashlib.sha256()
    for array in network.params.values():
        host = network.backend.to_numpy(array)
        digest.update(np.ascontiguousarray(host, host.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def check_savable(network: Network) -> None:
    """Raise `WeightsError` if a layer or the loss is none of xnet's own."""
    for part in [*network.layers, network.loss_layer]:
        if type(part) not in (*LAYERS.values(), *LOSSES.values()):
            known = ", ".join([*LAYERS, *LOSSES])
            raise WeightsError(f"{part!r} is not one of {known}: only those are saved")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `WeightsError` if `path` could not be saved to, before hours go into what to save."""
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            raise WeightsError(f"{target} cannot be written: it is there, and no ordinary file")
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise WeightsError(f"{target} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends without an error.

    Raises
    ------
    WeightsError
        The file cannot be written.
    """
    check_writable(path)
    target = Path(path)
    try:
        temporary = target.parent / f".xnet-{secrets.token_hex(8)}"
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(f"{target} cannot be written: {error.strerror}") from error


def load_network(
    path: str | os.PathLike[str], backend: str | Backend | None = None, dtype: Any = None
) -> Network:
    """The network in a file that `save` wrote, or in the notes' pickled weights.

    Parameters
    ----------
    path
        A safetensors file by `save`; or a pickled dict of W1, b1, W2, b2, ..., as the notes'
        sample_weight.pkl, taken for Affine layers with sigmoids between and softmax at the end.
    backend
        Where the network goes; None for the current backend.
    dtype
        ``"float32"`` or ``"float64"``; None keeps the file's.

    Raises
    ------
    WeightsError
        The file cannot be read, is damaged, or is a pickle that names anything but NumPy arrays:
        such a pickle is refused by name, and nothing of it runs.
    """
    chosen = resolve(backend)
    if dtype is not None:
        float_dtype(dtype)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    # A safetensors file begins with 8 bytes of length and a JSON object.
    read = _from_safetensors if content[8:9] == b"{" else _from_pickle
    try:
        layers, loss = read(content)
        return Network(layers, loss, dtype=dtype, backend=chosen)
    except KeyError as error:
        raise WeightsError(f"{path}: {error} is missing") from error
    # What a file altered by accident or malice leads to is of many kinds.
    except (WeightsError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: {error}") from error


def _from_safetensors(content: bytes) -> tuple[list[Layer], Any]:
    """Layers and loss from the bytes of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        arrays = from_bytes(content)
    except SafetensorError as error:
        raise WeightsError(f"not a safetensors file, or a damaged one: {error}") from error
    # The library that checks the file does not hand out its metadata; its header is plain JSON.
    header: Any = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata: Any = header.get("__metadata__") or {}
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise WeightsError("a safetensors file without an xnet architecture in its metadata")
    architecture = json.loads(text)
    if architecture["format"] != FORMAT:
        raise WeightsError(f"format {architecture['format']}, this xnet reads format {FORMAT}")
    layers: list[Layer] = []
    number = 0
    for name, config in architecture["layers"]:
        if name == Affine.__name__:
            number += 1
            layers.append(Affine.from_params(arrays[f"W{number}"], arrays[f"b{number}"]))
        elif name in LAYERS:
            layers.append(LAYERS[name](**config))
        else:
            raise WeightsError(f"unknown layer {name!r}, expected one of {', '.join(LAYERS)}")
    if architecture["loss"] not in LOSSES:
        raise WeightsError(f"unknown loss {architecture['loss']!r}")
    return layers, LOSSES[architecture["loss"]]()


def _from_pickle(content: bytes) -> tuple[list[Layer], Any]:
    """Layers and loss from the bytes of a pickled dict of parameters."""
    try:
        found: Any = _ArraysOnly(io.BytesIO(content)).load()
    except WeightsError:
        raise
    except Exception as error:
        # What a damaged pickle raises depends on where it breaks: EOFError, IndexError, ...
        raise WeightsError(
            f"neither a safetensors file nor a whole pickle of arrays: {error!r}"
        ) from error
    if not isinstance(found, dict):
        raise WeightsError(f"a pickled {type(found).__name__}, expected a dict of arrays")
    arrays: dict[str, Any] = {}
    for name, value in cast("dict[Any, Any]", found).items():
        if not (isinstance(name, str) and isinstance(value, _Array)):
            raise WeightsError(
                f"a pickled dict of {type(name).__name__} to {type(value).__name__}, "
                "expected the arrays W1, b1, W2, b2, ..."
            )
        arrays[name] = value.array
    depth = len(arrays) // 2
    names = [f"{kind}{number}" for number in range(1, depth + 1) for kind in "Wb"]
    if depth == 0 or set(arrays) != set(names):
        raise WeightsError(
            f"a pickle of {textwrap.shorten(str(list(arrays)), 80)}, expected W1, b1, W2, b2, ..."
        )
    layers: list[Layer] = []
    for number in range(1, depth + 1):
        if layers:
            layers.append(Sigmoid())
        layers.append(Affine.from_params(arrays[f"W{number}"], arrays[f"b{number}"]))
    return layers, SoftmaxWithLoss()


class _Dtype:
    """Stands for numpy.dtype in a pickle: NumPy's own takes any state and believes it."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in ("f4", "f8"):
            raise WeightsError(f"a pickled array of dtype {code!r}, expected f4 or f8")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


class _Array:
    """Stands for numpy.ndarray in a pickle, and makes the array only of what it has checked."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_column, data = state
        self.fill(data, dtype, shape, "F" if by_column else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> "_Array":
        """Take the array from its bytes; they must be as many as the shape needs."""
        if not (isinstance(dtype, _Dtype) and isinstance(data, bytes | bytearray | memoryview)):
            raise WeightsError("a pickle that does not hold plain arrays of numbers")
        values = np.frombuffer(cast(bytes, data), dtype.dtype).reshape(shape, order=order)
        self.array = values.astype(dtype.dtype.newbyteorder("="), order="C")
        return self


_NDARRAY = object()
"""Stands for the class numpy.ndarray, which is passed along and never called."""


def _reconstruct(kind: object, shape: Any, *_: Any) -> _Array:
    """Stands for NumPy's function of that name: the empty array that a state then fills."""
    if kind is not _NDARRAY or shape != (0,):
        raise WeightsError("a pickle that does not hold plain NumPy arrays")
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _Array:
    """Stands for NumPy's function of that name, which protocol 5 uses."""
    return _Array().fill(data, dtype, shape, order)


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, which protocols 0 to 2 use to write bytes."""
    if encoding != "latin1":
        raise WeightsError(f"a pickle that encodes text as {encoding}, expected latin1")
    return text.encode("latin1")


# The pure-Python unpickler: the compiled one lets ten bytes of a pickle allocate gigabytes.
class _ArraysOnly(pickle._Unpickler):  # pyright: ignore
    """An unpickler that admits NumPy arrays and nothing else, none of it NumPy's own code."""

    stack: list[Any]

    ADMITTED: ClassVar[dict[str, Any]] = {
        "numpy.ndarray": _NDARRAY,
        "numpy.dtype": _Dtype,
        "numpy.core.multiarray._reconstruct": _reconstruct,
        "numpy._core.multiarray._reconstruct": _reconstruct,
        "numpy.core.numeric._frombuffer": _from_buffer,
        "numpy._core.numeric._frombuffer": _from_buffer,
        "_codecs.encode": _latin1,
    }

    def load_build(self) -> None:
        """Set the state of an array or a dtype; of anything else a pickle could alter it."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _Dtype):
            raise WeightsError("a pickle that sets the state of what is no NumPy array: refused")
        self.stack[-1].__setstate__(state)

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,  # pyright: ignore
        pickle.BUILD[0]: load_build,
    }

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name; anything else is refused before it is imported."""
        try:
            return self.ADMITTED[f"{module}.{name}"]
        except KeyError:
            raise WeightsError(
                f"a pickle that names {module}.{name}, which is no NumPy array: "
                "refused, nothing of it was run"
            ) from None
