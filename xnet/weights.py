"""Saving and loading networks: safetensors, and the notes' pickled weights, safely."""

import contextlib
import io
import json
import os
import pickle
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from xnet.backend import Backend, float_dtype
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

    for part, known in [
        *((layer, LAYERS) for layer in network.layers),
        (network.loss_layer, LOSSES),
    ]:
        if known.get(type(part).__name__) is not type(part):
            raise WeightsError(f"{part!r} is not one of {', '.join(known)}: only those are saved")
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


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends without an error.

    Raises
    ------
    WeightsError
        The file cannot be written.
    """
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise WeightsError(f"{target} cannot be written: {error.strerror}") from error
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; a saved network is an ordinary file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise WeightsError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `WeightsError` if `path` could not be saved to, before hours go into what to save."""
    target = Path(path)
    if target.is_dir():
        raise WeightsError(f"{target} cannot be written: it is a directory")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
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
    if dtype is not None:
        float_dtype(dtype)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    read = _from_pickle if content[:1] == b"\x80" else _from_safetensors
    try:
        layers, loss = read(content)
        return Network(layers, loss, dtype=dtype, backend=backend)
    except (WeightsError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ValueError) and type(error).__module__.startswith("xnet."):
            raise  # an unusable backend is no fault of the file
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
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header.get("__metadata__", {}).get(METADATA_KEY)
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
        arrays = _ArraysOnly(io.BytesIO(content)).load()
    except WeightsError:
        raise
    except Exception as error:
        # What a damaged pickle raises depends on where it breaks: EOFError, IndexError, ...
        raise WeightsError(f"a damaged pickle: {error}") from error
    if not isinstance(arrays, dict):
        raise WeightsError(f"a pickled {type(arrays).__name__}, expected a dict of arrays")
    found = cast("dict[Any, NDArray[Any]]", arrays)
    depth = len(found) // 2
    names = [f"{kind}{number}" for number in range(1, depth + 1) for kind in "Wb"]
    if depth == 0 or set(found) != set(names):
        raise WeightsError(f"arrays {list(found)}, expected W1, b1, W2, b2, ...")
    layers: list[Layer] = []
    for number in range(1, depth + 1):
        if layers:
            layers.append(Sigmoid())
        layers.append(Affine.from_params(found[f"W{number}"], found[f"b{number}"]))
    return layers, SoftmaxWithLoss()


def _empty_array(kind: type, shape: tuple[int, ...], typecode: bytes) -> NDArray[Any]:
    """The empty array that NumPy's own pickles begin with and then fill."""
    if kind is not np.ndarray or shape != (0,):
        raise WeightsError("a pickle that does not hold plain NumPy arrays")
    return np.ndarray((0,), dtype="b")


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that admits NumPy arrays and nothing else."""

    ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What a pickle may name; anything else is refused before it is imported."""
        try:
            return self.ADMITTED[module_name, global_name]
        except KeyError:
            raise WeightsError(
                f"a pickle that names {module_name}.{global_name}, which is no NumPy array: "
                "refused, nothing of it was run"
            ) from None
