"""Networks that other frameworks made: PyTorch's and Keras's sequences of layers.

What each of their layers is here is said once, in `TORCH` and `KERAS`; a layer of another class is
refused by its name. The frameworks themselves are imported by whoever hands over their models.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeAlias, cast

import numpy as np

from xnet.backend import Backend
from xnet.dtypes import float_dtype
from xnet.errors import WeightsError
from xnet.formulas import Formula, Python, forward, lines, predicted
from xnet.layers import Layer, LossLayer
from xnet.network import Network
from xnet.operations import (
    ELU,
    GELU,
    SELU,
    Affine,
    BatchNorm,
    Dropout,
    HardSigmoid,
    HardTanh,
    LayerNorm,
    LeakyReLU,
    Loss,
    Mish,
    Operation,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
    registered,
)
from xnet.plan import outputs
from xnet.spellings import required

Arrays: TypeAlias = Mapping[str, Any]
"""NumPy arrays by name."""

# -- networks of layers that others have trained


def with_arrays(kind: type[Operation], arrays: Arrays, **settings: Any) -> Layer:
    """A layer of an operation with these parameters and this state, by name.

    Sizes that no setting says are read off the arrays. What is left out is what a layer begins
    with: biases of 0, a gamma of 1.

    Raises
    ------
    ValueError
        Shapes that do not fit each other, or a dtype that is neither float32 nor float64.
    """
    shapes = {**kind.parameters, **{name: sizes for name, (sizes, _) in kind.state.items()}}
    for name, array in arrays.items():
        float_dtype(array.dtype, f"dtype of {name}")
        settings = {**dict(zip(shapes[name], array.shape, strict=False)), **settings}
    operation = kind(**settings)
    layer = Layer.of(operation)
    if not arrays:  # a network draws what is missing, in its own dtype
        return layer
    dtype = next(array.dtype for array in arrays.values())

    def held(name: str, sizes: tuple[str, ...], value: float) -> Any:
        shape = operation.shape(sizes)
        array = arrays[name] if name in arrays else np.full(shape, value, dtype)
        if array.shape != shape:
            raise ValueError(f"{operation}: {name} has shape {array.shape}, expected {shape}")
        return np.ascontiguousarray(array)

    params = {k: held(k, v, operation.initial(k)[0]) for k, v in operation.parameters.items()}
    layer.hold(params, {k: held(k, *v) for k, v in operation.state.items()})
    return layer


def network_of(
    layers: Sequence[Layer],
    loss: Loss | LossLayer | None = None,
    backend: str | Backend | None = None,
    dtype: Any = None,
) -> Network:
    """A network that predicts what these layers give one after another.

    Parameters
    ----------
    layers
        Of no network.
    loss
        What it is to be trained with. None takes the loss that predicts what the last layer
        computes: softmax with cross-entropy after a softmax, binary cross-entropy after a sigmoid,
        else half the squared error. Where the last layer computes what the loss predicts, it
        becomes part of the loss; otherwise the network predicts what the loss makes of the layers'
        numbers.
    backend, dtype
        As in `Network`.
    """
    kept = list(layers)
    columns = outputs(kept)
    last = kept[-1].operation if len(kept) > 1 else None
    taken = loss or _loss_of(last, columns) or _loss_of(None, columns)
    operation = taken.operation if isinstance(taken, LossLayer) else taken
    if last is not None and isinstance(operation, Loss) and predicts(operation, last):
        kept.pop()
    return Network(kept, taken, dtype=dtype, backend=backend)


def _loss_of(operation: Operation | None, columns: int | None) -> Loss | None:
    """The first loss that predicts what an operation computes, and can do so of the columns."""
    for loss in made_plainly():
        if not isinstance(loss, Loss) or (loss.classes and (columns == 1 or operation is None)):
            continue
        if predicts(loss, operation):
            return loss
    return None


def made_plainly() -> Iterator[Operation]:
    """Every operation that can be had without settings, with its defaults."""
    for kind in registered().values():
        if not required(kind):
            yield kind()


def predicts(loss: Loss, operation: Operation | None) -> bool:
    """Whether a loss predicts what an operation computes; None is for the scores themselves."""
    says = _written(predicted(loss))
    if operation is None:
        return says == _written(predicted(Loss()))
    if operation.parameters or operation.fuses not in ("pointwise", "rows"):
        return False
    return says == _written(forward(operation))


def _written(formula: Formula) -> Any:
    """A formula in a form in which two can be compared."""
    return lines(Python, formula), formula.numbers


# -- modules of frameworks


Module: TypeAlias = Any
"""A layer or a model of another framework."""
Maker: TypeAlias = Callable[[Module], list[Layer]]
"""What makes of one the layers here that compute the same."""


def _expect(module: Module, **expected: Sequence[Any]) -> None:
    """Refuse a module with other settings: it computes what no operation here does."""
    for name, values in expected.items():
        if (value := getattr(module, name)) not in values:
            shown = " or ".join(repr(v) for v in values)
            raise ValueError(f"{name} is {value!r}, xnet has it with {shown} alone")


def _as(
    operation: type[Operation], settings: Mapping[str, str] | None = None, **expected: Sequence[Any]
) -> Maker:
    """What is this operation, its settings by their names there, others as expected."""

    def make(module: Module) -> list[Layer]:
        _expect(module, **expected)
        taken = {ours: float(getattr(module, theirs)) for ours, theirs in (settings or {}).items()}
        return [Layer.of(operation(**taken))]

    return make


def _nothing(**expected: Sequence[Any]) -> Maker:
    """What changes no number: a product makes rows of tensors by itself."""

    def make(module: Module) -> list[Layer]:
        _expect(module, **expected)
        return []

    return make


def _leaves(module: Module, name: str, package: str, makers: Mapping[str, Maker]) -> list[Layer]:
    """The layers of a module, or of those that a sequence consists of, in their order."""
    kind = cast("type[Any]", type(module))
    if kind.__module__.partition(".")[0] == package:
        if kind.__name__ == "Sequential":
            parts = enumerate(module.children() if package == "torch" else module.layers)
            return [v for k, part in parts for v in _leaves(part, f"{name}[{k}]", package, makers)]
        if kind.__name__ in makers:
            try:
                return makers[kind.__name__](module)
            except ValueError as error:
                raise WeightsError(f"{name}, a {kind.__name__}: {error}") from error
    known = ", ".join(("Sequential", *makers))
    raise WeightsError(f"{name} is a {kind.__name__}, which xnet has not: it knows {known}")


def _check_framework(name: str, module: Module, package: str) -> None:
    """Refuse what is no module of a framework's, nor of a class derived from one."""
    if package not in {kind.__module__.partition(".")[0] for kind in type(module).__mro__}:
        raise TypeError(f"{name} is a {type(module).__name__}, expected a Sequential of {package}")


def _network(layers: list[Layer], loss: Any, backend: Any, dtype: Any) -> Network:
    if not layers:
        raise WeightsError("no layer of the model computes anything")
    try:
        return network_of(layers, loss, backend, dtype)
    except ValueError as error:  # sizes that do not fit each other, or two dtypes
        raise WeightsError(str(error)) from error


# -- PyTorch


def from_torch(
    module: Any,
    loss: Loss | LossLayer | None = None,
    backend: str | Backend | None = None,
    dtype: Any = None,
) -> Network:
    """The network that a PyTorch ``nn.Sequential`` is.

    It predicts what the module gives for rows (N, D) in evaluation, after ``module.eval()``, within
    the bound of fast mode, and can be trained further. A ``Flatten`` is what a network does with
    tensors by itself.

    Parameters
    ----------
    module
        An ``nn.Sequential``, nested ones included, of ``Linear``, activations, ``BatchNorm1d``,
        ``LayerNorm``, ``Dropout``, ``Softmax``, ``Flatten`` and ``Identity``. Its parameters are
        copied, from whichever device.
    loss
        What to train with, such as ``SoftmaxWithLoss()`` for a module that gives scores: the
        network then predicts probabilities. None takes softmax with cross-entropy after a
        ``Softmax``, binary cross-entropy after a ``Sigmoid``, else half the squared error; the
        predictions are the module's numbers.
    backend
        Where the network goes; None for the current backend.
    dtype
        ``"float32"`` or ``"float64"``; None keeps the module's.

    Returns
    -------
    Network
        With copies of the module's parameters.

    Raises
    ------
    WeightsError
        A module of another class, which is named; or one whose settings xnet has no operation for,
        such as a ``GELU`` that is not of the form with tanh.
    TypeError
        It is no module of PyTorch.

    Examples
    --------
    >>> import torch
    >>> import xnet
    >>> from torch import nn
    >>> module = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    >>> net = xnet.weights.from_torch(module, loss=xnet.layers.SoftmaxWithLoss())
    >>> net.layers, net.dtype
    ([Affine(64, 50), ReLU(), Affine(50, 10)], 'float32')
    >>> x = torch.ones(1, 64)
    >>> bool((abs(module(x).softmax(1).detach().numpy() - net.predict(x.numpy())) < 1e-6).all())
    True
    """
    _check_framework("module", module, "torch")
    return _network(_leaves(module, "module", "torch", TORCH), loss, backend, dtype)


TORCH_NAMES: dict[type[Operation], dict[str, str]] = {
    Affine: {"weight": "W", "bias": "b"},
    BatchNorm: {
        **{"weight": "gamma", "bias": "beta"},
        **{"running_mean": "mean", "running_var": "variance"},
    },
    LayerNorm: {"weight": "gamma", "bias": "beta"},
}
"""What PyTorch calls an operation's parameters and state."""

COUNTED = "num_batches_tracked"
"""What batch normalization has there besides: on it no prediction depends."""


def _of_torch(kind: type[Operation], arrays: Arrays, **settings: Any) -> Layer:
    """A layer with the arrays of a module, by PyTorch's names."""
    names = TORCH_NAMES[kind]
    taken = {names[theirs]: array for theirs, array in arrays.items() if theirs != COUNTED}
    if "W" in taken:
        taken["W"] = taken["W"].T  # PyTorch's Linear is x W^T + b
    return with_arrays(kind, taken, **settings)


def _trained(module: Module) -> dict[str, Any]:
    """Copies of a module's arrays on the host, by PyTorch's names."""
    found: dict[str, Any] = {}
    for name, tensor in module.state_dict().items():
        if name != COUNTED:
            float_dtype(tensor.dtype, f"dtype of {name}")
            found[name] = np.array(tensor.detach().cpu().numpy())
    return found


def _batch_norm(module: Module) -> list[Layer]:
    _expect(module, track_running_stats=(True,))
    # A momentum of None is for the mean of all steps so far, of which predictions know nothing.
    decay = {} if module.momentum is None else {"decay": 1 - float(module.momentum)}
    return [_of_torch(BatchNorm, _trained(module), eps=float(module.eps), **decay)]


def _layer_norm(module: Module) -> list[Layer]:
    if len(module.normalized_shape) != 1:
        raise ValueError(f"normalized_shape is {module.normalized_shape}, expected one number")
    (units,) = module.normalized_shape
    return [_of_torch(LayerNorm, _trained(module), eps=float(module.eps), units=units)]


TORCH: dict[str, Maker] = {
    "Linear": lambda module: [_of_torch(Affine, _trained(module))],
    "ReLU": _as(ReLU),
    "Sigmoid": _as(Sigmoid),
    "Tanh": _as(Tanh),
    "LeakyReLU": _as(LeakyReLU, {"slope": "negative_slope"}),
    "ELU": _as(ELU, {"alpha": "alpha"}),
    "SELU": _as(SELU),
    "Softplus": _as(Softplus, beta=(1,), threshold=(20,)),
    "SiLU": _as(SiLU),
    "GELU": _as(GELU, approximate=("tanh",)),
    "Hardsigmoid": _as(HardSigmoid),
    "Hardtanh": _as(HardTanh, min_val=(-1,), max_val=(1,)),
    "Mish": _as(Mish),
    "Softmax": _as(Softmax, dim=(1, -1)),
    "BatchNorm1d": _batch_norm,
    "LayerNorm": _layer_norm,
    "Dropout": _as(Dropout, {"ratio": "p"}),
    "Flatten": _nothing(start_dim=(1,), end_dim=(-1,)),
    "Identity": _nothing(),
}
"""What a module of PyTorch is here, by its class."""


def filled_from_torch(layers: Sequence[Layer | Operation], arrays: Arrays) -> list[Layer]:
    """Layers like these, with the arrays that PyTorch saved of an ``nn.Sequential`` of them.

    Parameters
    ----------
    layers
        In the module's order. Those without parameters are taken as they are.
    arrays
        By PyTorch's names: ``0.weight`` (M, D) and ``0.bias`` (M,), of batch normalization
        ``running_mean`` and ``running_var`` too; of nested ones ``0.2.weight``.

    Raises
    ------
    WeightsError
        Names that are no such module's, or arrays that do not fit the layers.
    """
    modules: dict[tuple[int, ...], dict[str, Any]] = {}
    for name, array in arrays.items():
        *path, kind = name.split(".")
        if not path or not all(part.isascii() and part.isdecimal() for part in path):
            raise WeightsError(
                f"{reprlib.repr(name)} is not named as by an nn.Sequential, such as '0.weight': "
                "names alone do not say in which order modules follow each other; "
                "xnet.weights.from_torch takes the module itself"
            )
        modules.setdefault(tuple(map(int, path)), {})[kind] = array
    given = [layer.copy() if isinstance(layer, Layer) else Layer.of(layer) for layer in layers]
    holding = [k for k, layer in enumerate(given) if layer.params]
    if len(holding) != len(modules):
        named = ", ".join(repr(given[k]) for k in holding) or "none"
        raise WeightsError(
            f"the file has arrays of {len(modules)} modules, layers has {len(holding)} with "
            f"parameters: {named}"
        )
    for k, (path, held) in zip(holding, sorted(modules.items()), strict=True):
        given[k] = _filled(given[k], ".".join(map(str, path)), held)
    return given


def _filled(layer: Layer, path: str, arrays: dict[str, Any]) -> Layer:
    """A layer like this one, with the arrays of the module of this name."""
    operation = layer.operation
    names = TORCH_NAMES.get(type(operation)) if operation else None
    if operation is None or names is None:
        raise WeightsError(f"{layer}: PyTorch has no module that holds its parameters")
    for kind in arrays:
        if kind not in names and kind != COUNTED:
            raise WeightsError(f"{path}.{kind} is none of {layer}, which has {', '.join(names)}")
    for kind in names:
        if kind not in arrays and kind != "bias":
            raise WeightsError(f"{path}.{kind} is missing, for {layer}")
    try:
        return _of_torch(type(operation), arrays, **operation.settings())
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


# -- Keras


def from_keras(
    model: Any,
    loss: Loss | LossLayer | None = None,
    backend: str | Backend | None = None,
    dtype: Any = None,
) -> Network:
    """The network that a Keras ``Sequential`` is, whichever backend Keras runs on.

    It predicts what ``model.predict`` gives for rows (N, D), within the bound of fast mode, and can
    be trained further. A ``Flatten`` is what a network does with tensors by itself.

    Parameters
    ----------
    model
        A ``Sequential``, built, nested ones included, of ``Dense``, activations,
        ``BatchNormalization``, ``LayerNormalization``, ``Dropout`` and ``Flatten``. Its weights are
        copied.
    loss, backend, dtype
        As in `from_torch`.

    Returns
    -------
    Network
        With copies of the model's weights.

    Raises
    ------
    WeightsError
        A layer or an activation that xnet has not, which is named, such as Keras's ``gelu``, which
        is not the form with tanh; or a model that has no weights yet.
    TypeError
        It is no model of Keras.

    Examples
    --------
    With Keras on a backend of its own (``KERAS_BACKEND=torch``):

    >>> import keras  # doctest: +SKIP
    >>> import xnet
    >>> dense = keras.layers.Dense  # doctest: +SKIP
    >>> model = keras.Sequential([keras.Input((4,)), dense(3, "relu")])  # doctest: +SKIP
    >>> xnet.weights.from_keras(model).layers  # doctest: +SKIP
    [Affine(4, 3), ReLU()]

    What is no model of Keras's is refused, without importing it:

    >>> xnet.weights.from_keras([4, 3])
    Traceback (most recent call last):
        ...
    TypeError: model is a list, expected a Sequential of keras
    """
    _check_framework("model", model, "keras")
    return _network(_leaves(model, "model", "keras", KERAS), loss, backend, dtype)


ACTIVATIONS: dict[str, tuple[type[Operation], dict[str, float]] | None] = {
    "linear": None,
    "relu": (ReLU, {}),
    "sigmoid": (Sigmoid, {}),
    "tanh": (Tanh, {}),
    "leaky_relu": (LeakyReLU, {"slope": 0.2}),
    "elu": (ELU, {}),
    "selu": (SELU, {}),
    "softplus": (Softplus, {}),
    "silu": (SiLU, {}),
    "hard_sigmoid": (HardSigmoid, {}),
    "hard_tanh": (HardTanh, {}),
    "mish": (Mish, {}),
    "softmax": (Softmax, {}),
}
"""What Keras's activations are here, by their function's name."""


def _activation(layer: Module) -> list[Layer]:
    """The one that a layer of Keras ends in."""
    function = layer.activation
    name, package = getattr(function, "__name__", repr(function)), function.__module__
    if name not in ACTIVATIONS or not package.startswith("keras."):
        raise ValueError(
            f"activation {name}, which xnet has not: it knows {', '.join(ACTIVATIONS)}"
        )
    found = ACTIVATIONS[name]
    return [] if found is None else [Layer.of(found[0](**found[1]))]


def _weights(layer: Module, **names: str) -> dict[str, Any]:
    """Copies of a layer's weights, by our names for them; those that it has not are left out."""
    if not layer.built:
        raise ValueError("it has no weights yet: build the model, or call it once")
    keras: Any = import_module("keras")
    held = {ours: getattr(layer, theirs) for ours, theirs in names.items()}
    return {k: np.array(keras.ops.convert_to_numpy(v)) for k, v in held.items() if v is not None}


def _dense(layer: Module) -> list[Layer]:
    _expect(layer, quantization_mode=(None,), lora_enabled=(False,))
    return [with_arrays(Affine, _weights(layer, W="kernel", b="bias")), *_activation(layer)]


def _keras_norm(kind: type[Operation], **names: str) -> Maker:
    def make(layer: Module) -> list[Layer]:
        arrays = _weights(layer, gamma="gamma", beta="beta", **names)
        _expect(layer, axis=(-1, 1, [-1], [1]))
        settings = {"decay": float(layer.momentum)} if kind is BatchNorm else {}
        return [with_arrays(kind, arrays, eps=float(layer.epsilon), **settings)]

    return make


KERAS: dict[str, Maker] = {
    "Dense": _dense,
    "Activation": _activation,
    "ReLU": _as(ReLU, max_value=(None,), negative_slope=(0,), threshold=(0,)),
    "LeakyReLU": _as(LeakyReLU, {"slope": "negative_slope"}),
    "ELU": _as(ELU, {"alpha": "alpha"}),
    "Softmax": _as(Softmax, axis=(-1, 1)),
    "BatchNormalization": _keras_norm(BatchNorm, mean="moving_mean", variance="moving_variance"),
    "LayerNormalization": _keras_norm(LayerNorm),
    "Dropout": _as(Dropout, {"ratio": "rate"}),
    "Flatten": _nothing(),
    "InputLayer": _nothing(),
}
"""What a layer of Keras is here, by its class."""
