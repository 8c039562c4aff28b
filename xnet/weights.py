"""Saving and loading networks: safetensors, and the notes' pickled weights, safely.

A file holds what the network's operations say of themselves: the name and settings of each, and
the arrays by the names that the network gives them; and what the data are called, where the
network knows. Which operations there are is said by their registry alone.
"""

import contextlib
import hashlib
import json
import os
import reprlib
import stat
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from xnet.backend import Backend, resolve
from xnet.dtypes import dtype_name, float_dtype
from xnet.errors import NonFiniteWarning, WeightsError
from xnet.files import replaced
from xnet.foreign import filled_from_torch, from_keras, from_torch
from xnet.layers import Layer, LossLayer, numbered
from xnet.network import Network
from xnet.operations import ENTRY_POINT_GROUP, OPERATIONS, Loss, Operation, registered
from xnet.plan import outputs
from xnet.schema import Schema

__all__ = [
    "check_savable",
    "check_writable",
    "from_keras",
    "from_torch",
    "load_network",
    "not_finite",
    "save",
    "sha256",
]

METADATA_KEY = "xnet"
"""Under this key a file's metadata holds the architecture, as JSON."""

FORMAT = 2

STATE = "state."
"""Before the name of an array that is state, so that no parameter has its name."""


def save(network: Network, path: str | os.PathLike[str]) -> None:
    """Save a network's parameters, state and architecture as one safetensors file.

    A killed run leaves the old file or the new one, never half of one: see `xnet.files.replaced`.

    Parameters
    ----------
    network
        Any stack of layers that are what their operations say.
    path
        Where; a file that is there is replaced, also one that a symbolic link names.

    Raises
    ------
    WeightsError
        The file cannot be written, or a layer or the loss says itself what it computes: a file
        could not.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "net.safetensors")
    ...     xnet.weights.save(net, path)
    ...     loaded = xnet.weights.load_network(path)
    >>> loaded.layers, loaded.dtype
    ([Affine(2, 3), Sigmoid(), Affine(3, 2)], 'float64')
    >>> xnet.weights.sha256(loaded) == xnet.weights.sha256(net)
    True
    """
    from safetensors.numpy import save as to_bytes

    text = architecture(network)
    arrays = {
        name: np.ascontiguousarray(network.backend.to_numpy(array))
        for name, array in _arrays(network).items()
    }
    content = to_bytes(arrays, metadata={METADATA_KEY: text})
    check_writable(path)
    try:
        with replaced(path) as file:
            file.write(content)
    except OSError as error:
        raise WeightsError(f"{Path(path)} cannot be written: {error.strerror}") from error


def sha256(network: Network) -> str:
    """SHA-256 of a network's parameters and then its state, as they come.

    It is that of their bytes, little-endian in C order. Two networks of one shape have the same if,
    and only if, every bit of them is.

    Parameters
    ----------
    network
        Any, on any backend.

    Returns
    -------
    str
        64 hexadecimal digits.

    Notes
    -----
    Of a network trained in reproducible mode it is the same on every backend and processor.

    Examples
    --------
    >>> import xnet
    >>> xnet.weights.sha256(xnet.TwoLayerNet(2, 3, 2, seed=0))[:16]
    '38faf374d982c6ca'
    >>> xnet.weights.sha256(xnet.TwoLayerNet(2, 3, 2, seed=1))[:16]
    '1e58d84d73cbfee5'
    """
    digest = hashlib.sha256()
    for array in _arrays(network).values():
        host = network.backend.to_numpy(array)
        digest.update(np.ascontiguousarray(host, host.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def not_finite(network: Network) -> list[str]:
    """The names of parameters and state that hold NaN or infinity.

    Parameters
    ----------
    network
        Any.

    Returns
    -------
    list of str
        Of state, after ``state.``; empty where all is well.

    Examples
    --------
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, seed=0)
    >>> xnet.weights.not_finite(net)
    []
    >>> net.params["W1"][0, 0] = float("nan")
    >>> xnet.weights.not_finite(net)
    ['W1']
    """
    xp = network.backend.xp
    with network.backend.running():
        arrays = _arrays(network).items()
        return [name for name, array in arrays if not bool(xp.all(xp.isfinite(array)))]


def check_savable(network: Network) -> None:
    """Raise `WeightsError` if a layer or the loss says itself what it computes.

    Parameters
    ----------
    network
        Any.

    Raises
    ------
    WeightsError
        One does, or has a setting that no file can hold.

    Examples
    --------
    >>> import xnet
    >>> from xnet.layers import Affine, Layer
    >>> class Doubled(Layer):
    ...     def forward(self, x):
    ...         return 2 * x
    ...     def backward(self, dout):
    ...         return 2 * dout
    >>> net = xnet.Network([Affine(2, 2), Doubled()], seed=0)
    >>> xnet.weights.check_savable(net)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    WeightsError: Doubled() cannot be saved: its class says itself what it computes, ...
    """
    architecture(network)


def _arrays(network: Network) -> dict[str, Any]:
    """Parameters and state by their names in a file."""
    state = {f"{STATE}{name}": array for name, array in network.state.items()}
    return dict(network.params.items()) | state


def architecture(network: Network) -> str:
    """The names and settings of a network's operations, as JSON."""
    parts: list[tuple[str, dict[str, Any]]] = []
    for part in (*network.layers, network.loss_layer):
        operation = _operation(part)
        parts.append((type(operation).__name__, operation.settings()))
        try:
            json.dumps(parts[-1], default=_number)
        except (TypeError, ValueError) as error:
            raise WeightsError(
                f"{operation!r} has a setting that no file can hold, only numbers, texts and "
                f"tuples of them: {error}"
            ) from error
    frozen = [k for k, layer in enumerate(network.layers) if not layer.trainable]
    facts = {"format": FORMAT, "layers": parts[:-1], "loss": parts[-1], "frozen": frozen}
    if network.schema is not None:
        facts["schema"] = network.schema.facts()
    return json.dumps(facts, default=_number)


def _operation(part: Layer | LossLayer) -> Operation:
    """What a layer computes, if that is all there is to it."""
    if part.operation is None or part.opaque:
        raise WeightsError(
            f"{part!r} cannot be saved: its class says itself what it computes, which no file can "
            "hold; write it as an operation (xnet.operations.Operation), and it is saved by its "
            "name and settings"
        )
    return part.operation


def _number(value: Any) -> Any:
    """A NumPy number as one of Python's; anything else is refused."""
    if isinstance(value, np.generic):
        return cast(Any, value).item()
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `WeightsError` if `path` could not be saved to, before hours go into what to save.

    Parameters
    ----------
    path
        A file that is there or is to be.

    Raises
    ------
    WeightsError
        The folder is not there or not to be written to, or what is there is no ordinary file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import xnet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     xnet.weights.check_writable(Path(folder, "net.safetensors"))
    ...     xnet.weights.check_writable(folder)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    WeightsError: ... cannot be written: it is there, and no ordinary file
    """
    target = Path(os.path.realpath(path))
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(target.lstat().st_mode):
                raise WeightsError(
                    f"{Path(path)} cannot be written: it is there, and no ordinary file"
                )
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise WeightsError(f"{Path(path)} cannot be written: {error.strerror}") from error


def load_network(
    path: str | os.PathLike[str],
    backend: str | Backend | None = None,
    dtype: Any = None,
    layers: Sequence[Layer | Operation] | None = None,
    loss: Loss | LossLayer | None = None,
) -> Network:
    """The network in a file that `save` wrote, in PyTorch's safetensors, or the notes' pickle.

    Parameters
    ----------
    path
        A safetensors file by `save`; or a pickled dict of W1, b1, W2, b2, ..., as the notes'
        sample_weight.pkl, taken for Affine layers with sigmoids between and softmax at the end.
        Operations of one's own are known where their class has been defined, or where an
        installed package registers it.
    backend
        Where the network goes; None for the current backend.
    dtype
        ``"float32"`` or ``"float64"``; None keeps the file's.
    layers
        For a safetensors file of a PyTorch ``nn.Sequential``, which holds arrays alone (names
        ``0.weight``, ...): the layers that they are of, in the module's order. A ``Linear``'s
        weight is transposed.
    loss
        What turns scores into predictions and a loss; None keeps the file's, or with `layers`
        takes softmax with cross-entropy.

    Returns
    -------
    Network
        With ``schema``, where its file has one.

    Raises
    ------
    WeightsError
        The file cannot be read, is damaged, names an operation that is not known here, or is a
        pickle that names anything but NumPy arrays: such a pickle is refused by name, and nothing
        of it runs.

    Warns
    -----
    NonFiniteWarning
        A parameter or a state holds NaN or infinity, as after a run that diverged; it is named.

    Examples
    --------
    The notes' own weights, a pickled dict of arrays, are read like what `save` wrote:

    >>> import pickle
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import xnet
    >>> arrays = {"W1": np.ones((2, 3)), "b1": np.zeros(3), "W2": np.eye(3, 2), "b2": np.ones(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "sample_weight.pkl")
    ...     _ = path.write_bytes(pickle.dumps(arrays))
    ...     net = xnet.weights.load_network(path, dtype="float32")
    >>> net.layers, net.dtype
    ([Affine(2, 3), Sigmoid(), Affine(3, 2)], 'float32')
    >>> net.predict(np.array([0.5, 0.5])).tolist()
    [0.5, 0.5]
    """
    chosen = resolve(backend)
    if dtype is not None:
        float_dtype(dtype)
    content = content_of(path)
    try:
        # A safetensors file begins with 8 bytes of length and a JSON object.
        held: Loss | None = None
        frozen: list[int] = []
        schema: Schema | None = None
        if layers is not None:
            found = filled_from_torch(layers, _arrays_in(content))
        elif content[8:9] == b"{":
            operations, held, arrays, frozen, schema = _from_safetensors(content)
            found = _layers(operations, arrays)
        else:
            from xnet.tools import notes_pickle

            operations, held, arrays = notes_pickle.read(content)
            found = _layers(operations, arrays)
        network = Network(found, loss or held, dtype=dtype, backend=chosen)
        network.schema = _fitting(schema, network)
    except KeyError as error:
        raise WeightsError(f"{path}: {error} is missing") from error
    # What a file altered by accident or malice leads to is of many kinds.
    except (WeightsError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: {error!s:.300}") from error
    for k in frozen:
        network.layers[k].trainable = False
    warn_of_not_finite(network, path)
    return network


def content_of(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an ordinary file; `WeightsError` if it cannot be read."""
    try:
        kind = os.stat(path).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # it may never end, as /dev/zero
            raise WeightsError(f"{path} cannot be read: it is there, and no ordinary file")
        return Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error


def warn_of_not_finite(network: Network, path: str | os.PathLike[str]) -> None:
    """Warn the caller's caller of parameters and state, read from a file, that are not finite."""
    if names := not_finite(network):
        shown = reprlib.repr(names)
        warnings.warn(
            f"{path}: NaN or infinity in {shown}: the network may answer nothing else",
            NonFiniteWarning,
            stacklevel=3,
        )


def _fitting(schema: Schema | None, network: Network) -> Schema | None:
    """The schema of a file, if it is one of such a network."""
    if schema is None:
        return None
    named = schema.outputs and len(schema.outputs)
    sizes = {
        "features": (schema.inputs, network.inputs),
        "outputs": (named, outputs(network.layers)),
    }
    for what, (expected, found) in sizes.items():
        if None not in (expected, found) and expected != found:
            raise WeightsError(f"the schema names {expected} {what}, the network has {found}")
    return schema


def _from_safetensors(
    content: bytes,
) -> tuple[list[Operation], Loss, dict[str, Any], list[int], Schema | None]:
    """Operations, loss, arrays, which layers are frozen, and the schema, from a file's bytes."""
    arrays = _arrays_in(content)
    # The library that checks the file does not hand out its metadata; its header is plain JSON.
    header: Any = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata: Any = header.get("__metadata__") or {}
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise WeightsError(
            "a safetensors file without an xnet architecture in its metadata; of PyTorch's "
            "nn.Sequential name the layers: load_network(path, layers=[...])"
        )
    architecture = json.loads(text)
    if architecture["format"] != FORMAT:
        raise WeightsError(f"format {architecture['format']}, this xnet reads format {FORMAT}")
    operations = [_made(*part) for part in architecture["layers"]]
    for operation in operations:
        if isinstance(operation, Loss):
            raise WeightsError(f"{operation!r} is a loss, and stands among the layers")
    loss = _made(*architecture["loss"])
    if not isinstance(loss, Loss):
        raise WeightsError(f"{loss!r} stands for the loss, and is none")
    frozen = architecture["frozen"]
    if not all(type(k) is int and 0 <= k < len(operations) for k in frozen):
        raise WeightsError(f"frozen is {reprlib.repr(frozen)}, expected numbers of layers")
    schema = Schema.of(architecture["schema"]) if "schema" in architecture else None
    return operations, loss, arrays, frozen, schema


def _arrays_in(content: bytes) -> dict[str, Any]:
    """The arrays in a safetensors file's bytes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        return from_bytes(content)
    except SafetensorError as error:
        raise WeightsError(f"not a safetensors file, or a damaged one: {error}") from error


def _made(name: Any, settings: Any) -> Operation:
    """The operation of this name with these settings, both from outside."""
    if not (isinstance(name, str) and isinstance(settings, dict)):
        raise WeightsError(f"a layer is {_shown(name, settings)}, expected a name and a dict")
    known = OPERATIONS if name in OPERATIONS else registered()
    if name not in known:
        raise WeightsError(
            f"unknown operation {reprlib.repr(name)}: before loading, import the module that "
            f"defines it, or install the package that registers it as {ENTRY_POINT_GROUP}"
        )
    operation, hints = known[name], _hints(known[name])
    found = cast("dict[str, Any]", settings)
    try:
        return operation(**{k: _setting(k, v, hints.get(k, Any)) for k, v in found.items()})
    except Exception as error:
        # What the checks of anybody's operation raise, whose settings a file has altered.
        raise WeightsError(f"{_shown(name, settings)}: {error}") from error


def _shown(name: Any, settings: Any) -> str:
    return f"{reprlib.repr(name)} with settings {reprlib.repr(settings)}"


@cache
def _hints(operation: type[Operation]) -> dict[str, Any]:
    """The annotations of its settings."""
    try:
        return get_type_hints(operation)
    except NameError:  # one of what is not imported: the operation must check itself
        return {}


def _setting(name: str, value: Any, hint: Any) -> Any:
    """A setting as JSON gives it, as its annotation has it; TypeError if it is of another type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if kind is float and type(value) is int:
            float(value)  # one too large for that is no such setting
            return value
        if kind in (int, float, str, bool, NoneType):
            if type(value) is kind:
                return value
        elif tuple not in (kind, get_origin(kind)):
            return value  # of a kind that JSON does not know: the operation must check itself
        elif isinstance(value, list):  # a tuple, as JSON has it
            items, (*of, last) = cast("list[Any]", value), get_args(kind) or (Any, ...)
            each = of * len(items) if last is ... else [*of, last]
            return tuple(_setting(name, v, h) for v, h in zip(items, each, strict=True))
    expected = getattr(hint, "__name__", str(hint)) if len(kinds) == 1 else str(hint)
    raise TypeError(f"{name} is {reprlib.repr(value)}, expected {expected}")


def _layers(operations: Sequence[Operation], arrays: Mapping[str, Any]) -> list[Layer]:
    """Layers of these operations, with the arrays that a network of them has by these names."""
    layers = [Layer.of(operation) for operation in operations]
    for layer, operation in zip(layers, operations, strict=True):
        layer.state.update(dict.fromkeys(operation.state))
    for kind, prefix in {"params": "", "state": STATE}.items():
        places = ((layer, key) for layer in layers for key in getattr(layer, kind))
        for number, (layer, key) in zip(numbered(layers, kind), places, strict=True):
            name, operation = f"{prefix}{number}", cast(Operation, layer.operation)
            sizes = operation.parameters[key] if kind == "params" else operation.state[key][0]
            shape = operation.shape(sizes)
            array = arrays[name]
            if array.shape != shape:
                raise WeightsError(f"{name} has shape {array.shape}, {layer} expects {shape}")
            if dtype_name(array.dtype) not in ("float32", "float64"):
                raise WeightsError(f"{name} is {array.dtype}, expected float32 or float64")
            getattr(layer, kind)[key] = array
    return layers
