"""Layers with forward and backward: the nodes of a computational graph (§5.4-§5.6).

What a layer computes is its operation; here is what every layer does around it: it holds the
parameters, checks what it is given, and remembers from `forward` what `backward` will need. For
every operation there is a layer of its name, ``layers.Tanh`` for ``operations.Tanh``. No layer
changes an array it is handed.
"""

import copy
import math
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar, Self, TypeAlias

from xnet.arguments import as_floats, taken
from xnet.backend import Array, Backend, backend_of
from xnet.dtypes import dtype_name, float_dtype, name_of
from xnet.formulas import Arrays, check
from xnet.losses import batch_and_targets
from xnet.operations import OPERATIONS, Loss, Operation, registered

__all__ = ["Add", "Layer", "LossLayer", "Mul", *OPERATIONS]  # pyright: ignore


class Mul:
    """Product of two numbers or arrays of one shape (§5.4.1).

    Examples
    --------
    >>> import xnet
    >>> apples = xnet.layers.Mul()
    >>> apples.forward(100, 2)
    200
    >>> apples.backward(1.1)
    (2.2, 110.00000000000001)
    """

    x: Any = None
    y: Any = None

    def forward(self, x: Any, y: Any) -> Any:
        """X times y.

        Parameters
        ----------
        x, y
            Numbers, or arrays of one shape.

        Returns
        -------
        number or Array
            The product.

        Raises
        ------
        ValueError
            The shapes differ.
        """
        _check_one_shape(self, x, y)
        self.x, self.y = x, y
        return x * y

    def backward(self, dout: Any) -> tuple[Any, Any]:
        """Gradients by x and y: `dout` times the other one."""
        if self.y is None:
            raise RuntimeError("Mul: backward was called before forward")
        return dout * self.y, dout * self.x


class Add:
    """Sum of two numbers or arrays of one shape (§5.4.2).

    Examples
    --------
    >>> import xnet
    >>> both = xnet.layers.Add()
    >>> both.forward(200.0, 450.0)
    650.0
    >>> both.backward(1.1)
    (1.1, 1.1)
    """

    def forward(self, x: Any, y: Any) -> Any:
        """X plus y.

        Parameters
        ----------
        x, y
            Numbers, or arrays of one shape.

        Returns
        -------
        number or Array
            The sum.

        Raises
        ------
        ValueError
            The shapes differ.
        """
        _check_one_shape(self, x, y)
        return x + y

    def backward(self, dout: Any) -> tuple[Any, Any]:
        """Gradients by x and y: `dout` for both."""
        return dout * 1, dout * 1


def _check_one_shape(layer: object, x: Any, y: Any) -> None:
    """Refuse arrays of two shapes: broadcast, their gradients would not have those shapes."""
    shapes = [tuple(getattr(value, "shape", ())) for value in (x, y)]
    if shapes[0] != shapes[1]:
        name = type(layer).__name__
        raise ValueError(f"{name}: x has shape {shapes[0]}, y has {shapes[1]}, expected one shape")


def check_gradient(name: str, dout: Array, shape: tuple[int, ...], dtype: Any) -> None:
    """Refuse a `dout` that has not the shape and dtype of a layer's output."""
    if tuple(dout.shape) != tuple(shape):
        raise ValueError(f"{name}: dout has shape {tuple(dout.shape)}, expected {tuple(shape)}")
    if dout.dtype != dtype:
        raise ValueError(f"{name}: dout is {dtype_name(dout.dtype)}, expected {dtype_name(dtype)}")


class Computed:
    """What a layer and the end of a network have in common: an operation says what they compute."""

    operation_class: ClassVar[type[Any] | None] = None
    opaque: ClassVar[bool] = False
    """Whether a subclass computes otherwise than its operation says."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        computes = {"__call__", "forward", "backward"} & vars(cls).keys()
        cls.opaque = cls.opaque or bool(computes and Computed not in cls.__bases__)


class Layer(Computed):
    """One step of a network: from (N, D) to (N, M), or for one sample from (D,) to (M,).

    `forward` trains: it remembers what `backward` will need, draws what is random and moves what
    is kept between steps. A call, ``layer(x)``, predicts: nothing is remembered, so any number of
    threads may call. What is computed is the layer's operation, with what `operations` says of it.

    A class of one's own that computes something else overrides `__call__`, `forward` and
    `backward`, and leaves in `grads` the gradients by what it has in `params`: a network then asks
    it layer by layer, and knows nothing of it but that.

    Attributes
    ----------
    operation
        What it computes; None for a class that says so itself.
    params, grads, state
        By name: what training changes, the gradients by them that the last `backward` found, and
        what training leaves for predictions. ``layer.W`` and ``layer.dW`` read and write them.
    trainable
        Whether training changes the parameters; a frozen layer's stay as they are.

    Examples
    --------
    >>> import xnet
    >>> class Doubled(xnet.layers.Layer):
    ...     def __call__(self, x):
    ...         return 2 * x
    ...     def forward(self, x):
    ...         return 2 * x
    ...     def backward(self, dout):
    ...         return 2 * dout
    >>> affine = xnet.layers.Affine.from_params([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.5])
    >>> xnet.Network([affine, Doubled()]).scores([1.0, 3.0]).tolist()
    [2.0, 7.0]
    """

    params: dict[str, Array]
    grads: dict[str, Array]
    state: dict[str, Array]
    trainable: bool = True
    owner: Any = None
    _memory: Any

    def __new__(cls, *_: Any, **__: Any) -> Self:
        layer = super().__new__(cls)
        empty: dict[str, Any] = {"operation": None, "_memory": None}
        vars(layer).update(params={}, grads={}, state={}, **empty)
        return layer

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        made = type(self).operation_class
        if made is None:
            if arguments or settings:
                raise TypeError(f"{type(self).__name__} takes no arguments")
            return
        for argument in arguments:
            if hasattr(argument, "dtype"):
                raise TypeError(
                    f"{type(self).__name__}: an array was given where a setting is expected; "
                    f"{type(self).__name__}.from_params makes a layer of its parameters"
                )
        self._set(made(*arguments, **settings))

    @property
    def operation(self) -> Operation | None:
        """What the layer computes."""
        return vars(self)["operation"]

    def _set(self, operation: Operation) -> None:
        check(operation)
        vars(self)["operation"] = operation
        self.params.update(dict.fromkeys(operation.parameters))

    @classmethod
    def of(cls, operation: Operation) -> "Layer":
        """The layer that computes an operation.

        Raises
        ------
        TypeError
            It is no operation, or a loss, of which `LossLayer.of` makes a layer.
        """
        if not isinstance(operation, Operation) or isinstance(operation, Loss):  # pyright: ignore
            expected = "an operation that is no loss (LossLayer.of is for those)"
            raise TypeError(f"operation is {operation!r}, expected {expected}")
        layer: Layer = Layer.__new__(layer_class(type(operation)))
        layer._set(operation)
        return layer

    @classmethod
    def from_params(cls, *arrays: Array, **settings: Any) -> Self:
        """A layer with these parameters, in the operation's order; sizes are read off them.

        Parameters
        ----------
        *arrays
            For `Affine` W (D, M) and b (M,): arrays or lists, all float32 or none.
        **settings
            What else the operation takes.

        Raises
        ------
        TypeError
            Another number of arrays than the operation has parameters, or no real numbers.
        ValueError
            Shapes or dtypes that do not fit each other.

        Examples
        --------
        >>> import numpy as np
        >>> import xnet
        >>> layer = xnet.layers.Affine.from_params([[1.0, 3.0], [2.0, 4.0]], [0.1, 0.2])
        >>> layer, layer(np.array([1.0, 0.5])).round(8).tolist()
        (Affine(2, 2), [2.1, 5.2])
        """
        name, made = cls.__name__, cls.operation_class
        if made is None or len(arrays) != len(made.parameters):
            takes = ", ".join(made.parameters if made else ()) or "none"
            raise TypeError(f"{name}: {len(arrays)} arrays were given, expected {takes}")
        if not arrays:
            return cls(**settings)
        backend, *owned = taken(**dict(zip(made.parameters, arrays, strict=True)))
        given = dict(zip(made.parameters, (as_floats(backend, W) for W in owned), strict=True))
        sizes: dict[str, int] = {}
        for key, array in given.items():
            shape, expected = tuple(array.shape), made.parameters[key]
            wanted = [str(sizes.get(size, size)) for size in expected]
            fits = len(shape) == len(expected) and 0 not in shape
            for size, n in zip(expected, shape, strict=False):
                fits = fits and sizes.setdefault(size, n) == n
            if not fits:
                text = ", ".join(wanted) + "," * (len(wanted) == 1)
                raise ValueError(f"{name}: {key} has shape {shape}, expected ({text})")
        dtypes = {key: name_of(array) for key, array in given.items()}
        if len(set(dtypes.values())) > 1:
            raise ValueError(f"{name}: " + ", ".join(f"{k} is {v}" for k, v in dtypes.items()))
        layer = cls(**sizes, **settings)
        layer.params.update(given)
        return layer

    def initialize(self, rng: Any, dtype: Any, backend: Backend) -> None:
        """Draw the parameters that are missing, on the host by `rng`, a `xnet.random.Generator`.

        What that takes for a seed is taken here. State begins as the operation says.
        """
        from xnet.random import Generator  # on the host: NumPy itself is the point

        operation, rng = self.operation, Generator(rng)
        if operation is None:
            return
        for name, sizes in operation.parameters.items():
            if self.params[name] is None:
                mean, std = operation.initial(name)
                shape = operation.shape(sizes)
                values: Any = backend.xp.full(shape, mean, dtype=backend.xp.float64)
                if std:
                    values = mean + std * rng.normal(shape)
                self.params[name] = backend.asarray(values, dtype)
        for name, (sizes, value) in operation.state.items():
            if name not in self.state:
                full = backend.xp.full(operation.shape(sizes), value, dtype=backend.xp.float64)
                self.state[name] = backend.asarray(full, dtype)

    def hold(self, params: dict[str, Array], state: dict[str, Array]) -> None:
        """Have these arrays, all of them, for parameters and state."""
        self.__dict__.update(params=params, state=state)

    def copy(self) -> Self:
        """A layer like this one, with copies of its parameters, that belongs to no network."""
        return copy.deepcopy(self)

    # -- computing

    def __call__(self, x: Array) -> Array:
        """The layer's output."""
        operation, backend, rows = self._prepared(x)
        m = Arrays(backend, state=self.state) if operation.state else None
        with backend.running():
            out = backend.run(operation, rows, *self.params.values(), m=m)
            return out[0, ...] if x.ndim == 1 and rows is not x else out

    def forward(self, x: Array) -> Array:
        """The layer's output, remembering what `backward` needs.

        Parameters
        ----------
        x
            float32 or float64, (N, D) or one sample (D,); tensors (N, ...) are flattened where the
            operation has a width.

        Returns
        -------
        Array
            (N, M) or (M,), of x's dtype.

        Raises
        ------
        ValueError
            x has other features, or another dtype, than the layer's parameters.
        RuntimeError
            The layer has no parameters yet.
        """
        operation, backend, rows = self._prepared(x)
        draw = self.owner().draw if self.owner is not None and self.owner() else _draw
        m = backend.trainer(self.state, draw)
        with backend.running():
            out = backend.run(operation, rows, *self.params.values(), m=m)
            self._memory = m, x, rows, out
            if m.moved and (self.owner is None or not self.owner() or self.owner().moves):
                self.state.update(m.moved)
            return out[0, ...] if x.ndim == 1 and rows is not x else out

    def backward(self, dout: Array) -> Array:
        """Gradient by the input of the last `forward`; `dout` has the shape of its output.

        Parameters
        ----------
        dout
            The gradient by the output.

        Returns
        -------
        Array
            The shape and dtype of that input. `grads` has the gradients by the parameters.

        Raises
        ------
        RuntimeError
            There was no `forward` before.
        ValueError
            `dout` has another shape or dtype than the output.
        """
        if self._memory is None:
            raise RuntimeError(f"{type(self).__name__}: backward was called before forward")
        m, x, rows, out = self._memory
        operation: Any = self.operation
        backend = backend_of(dout=dout, x=x)
        shape = tuple(out.shape) if rows.ndim == x.ndim or x.ndim > 2 else tuple(out.shape)[1:]
        check_gradient(type(self).__name__, dout, shape, out.dtype)
        with backend.running():
            dout = backend.xp.reshape(dout, out.shape)
            dx, *found = backend.run_backward(
                operation, dout, rows, out, *self.params.values(), m=m
            )
            self.grads = dict(zip(self.params, found, strict=True))
            return dx if rows is x else backend.xp.reshape(dx, x.shape)

    def _prepared(self, x: Array) -> tuple[Operation, Backend, Array]:
        """The operation, the backend that owns the arrays, and x as it takes it, checked."""
        operation = self.operation
        if operation is None:
            raise NotImplementedError(f"{type(self).__name__} says not what it computes")
        if any(W is None for W in self.params.values()):
            way = f"put it in a Network, call initialize, or use {type(self).__name__}.from_params"
            raise RuntimeError(f"{self} has no parameters yet: {way}")
        backend = backend_of(x=x, **self.params)
        float_dtype(x.dtype, "dtype of x")
        return operation, backend, self.rows(x)

    def rows(self, x: Array) -> Array:
        """`x` as the operation takes it, checked: as (N, D), but where it takes any shape."""
        operation: Any = self.operation
        if operation.fuses == "pointwise" and not self.params:
            return x
        name, width = type(self).__name__, operation.widths[0]
        if x.ndim == 0:
            raise ValueError(f"{name}: x has shape (), expected ({width or 'D'},) or (N, ...)")
        features = math.prod(x.shape[1:]) if x.ndim > 1 else x.shape[0]
        first = next(iter(self.params), "it")
        if width is not None and features != width:
            raise ValueError(f"{name}: x has {features} features, {first} expects {width}")
        if self.params and x.dtype != self.params[first].dtype:
            kinds = f"x is {name_of(x)}, {first} is {name_of(self.params[first])}"
            raise ValueError(f"{name}: {kinds}; nothing is converted silently")
        if x.ndim == 2:
            return x
        return backend_of(x=x).xp.reshape(x, (1 if x.ndim == 1 else x.shape[0], features))

    def gives(self, features: int | None) -> int | None:
        """Features of its output for so many of its input, if they are known."""
        if self.opaque or self.operation is None:
            return None
        return self.operation.widths[1] or features

    # -- names

    def __getattr__(self, name: str) -> Any:
        values = vars(self)
        for found in (values.get("params", {}), values.get("state", {})):
            if name in found:
                return found[name]
        if name[:1] == "d" and name[1:] in values.get("params", {}):
            return self.grads.get(name[1:])
        settings = values.get("operation")
        if settings is not None and name in settings.settings():
            return getattr(settings, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("params", "state"):  # the very dictionary that a network knows
            held = vars(self)[name]
            held.update(value)
            for gone in held.keys() - value.keys():
                del held[gone]
        elif name in self.params:
            self.params[name] = value
        elif name[:1] == "d" and name[1:] in self.params:
            self.grads[name[1:]] = value
        else:
            object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        # A copy belongs to no network, and has seen nothing.
        return vars(self) | {"owner": None, "_memory": None, "grads": {}}

    def settings(self) -> dict[str, Any]:
        """Arguments that make a layer like this one, its parameters aside."""
        return {} if self.operation is None else self.operation.settings()

    def __repr__(self) -> str:
        if self.operation is None:
            return f"{type(self).__name__}()"
        arguments = repr(self.operation)
        return type(self).__name__ + arguments[arguments.index("(") :]


Places: TypeAlias = dict[str, tuple[dict[str, Array], str]]
"""Of arrays by their names, the layer's own dictionary that holds each, and its name there."""


def numbered(layers: Iterable[Layer], kind: str = "params") -> Places:
    """Where the arrays of layers are, by the names that a network gives them: W1, b1, W2, ...

    A name's number counts the layers that have an array of that name.
    """
    counts: dict[str, int] = {}
    found: Places = {}
    for layer in layers:
        arrays = getattr(layer, kind)
        for name in arrays:
            counts[name] = counts.get(name, 0) + 1
            found[f"{name}{counts[name]}"] = arrays, name
    return found


def _draw(shape: tuple[int, ...], dtype: Any) -> Any:
    """Random numbers for a layer that stands in no network: fresh ones every time."""
    from xnet.random import Generator

    return Generator().uniform(shape, dtype)


class LossLayer(Computed):
    """The end of a network: from scores (N, C) and labels to one number, averaged over N.

    Called with the scores alone it gives what the network predicts. A class of one's own that
    computes something else overrides `__call__`, `forward` and `backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> end = xnet.layers.SoftmaxWithLoss()
    >>> x, t = np.array([[0.3, 2.9, 4.0]]), np.array([2])
    >>> end(x).round(8).tolist()
    [[0.01821127, 0.24519181, 0.73659691]]
    >>> round(end.forward(x, t).item(), 8), end.backward().round(8).tolist()
    (0.30571446, [[0.01821127, 0.24519181, -0.26340309]])
    """

    y: Array = None
    """Scores of the last `forward`, (N, C)."""
    t: Array = None
    """Targets of the last `forward`, (N, C), of the scores' dtype."""
    weight: Array = None
    """How often each sample of the last `forward` counts, (N,); None for once."""
    shape: tuple[int, ...] = ()

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        made = type(self).operation_class
        self.operation = None if made is None else made(*arguments, **settings)
        if self.operation is not None:
            check(self.operation)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has seen nothing: a network's would carry the last data set's scores.
        return vars(self) | {"y": None, "t": None, "weight": None, "shape": ()}

    @classmethod
    def of(cls, operation: Loss) -> Self:
        """The loss layer that computes an operation."""
        check(operation)
        layer = cls.__new__(cls)
        layer.operation = operation
        return layer

    @property
    def loss(self) -> Loss:
        """The operation."""
        if self.operation is None:
            raise NotImplementedError(f"{type(self).__name__} says not what it computes")
        return self.operation

    @property
    def classes(self) -> bool:
        """Whether the scores are those of classes."""
        return self.operation is not None and self.operation.classes

    def __call__(self, x: Array) -> Array:
        """Predictions from scores (C,) or (N, C)."""
        self.check_columns(x.shape[-1] if x.ndim else None)
        return backend_of(x=x).predicted(self.loss, x)

    def check_columns(self, columns: int | None) -> None:
        """Refuse one score where classes are meant: its class is certain, whatever is learnt.

        Raises
        ------
        ValueError
            The loss is one of classes, and there is one column of scores.
        """
        if columns == 1 and self.classes:
            raise ValueError(
                f"{type(self).__name__}: one score is no choice between classes: take two, or "
                "BinaryCrossEntropy; a loss of numbers says classes = False"
            )

    def forward(self, x: Array, t: Array, weight: Array = None) -> Array:
        """The loss, 0-d, of scores x (C,) or (N, C); labels t as the functions in `losses`.

        With `weight` (N,) it is sum(weight * losses) / N.

        Parameters
        ----------
        x
            Scores, (C,) or (N, C).
        t
            Labels: class indices () or (N,), or one-hot or targets, the shape of x.
        weight
            How often each sample counts, (N,); None for once.

        Returns
        -------
        Array
            0-d, of x's dtype.

        Raises
        ------
        ValueError
            Shapes that do not fit, a label out of range, an empty batch.
        """
        backend, y, t = batch_and_targets(x, t)
        self.check_columns(y.shape[1])
        with backend.running():
            t = self.loss.targets(backend.maths, t)
            losses = backend.row_losses(self.loss, y, t)
            mean = backend.mean(losses if weight is None else losses * weight)
        self.y, self.t, self.weight, self.shape = y, t, weight, x.shape
        return mean

    def backward(self, dout: float = 1.0) -> Array:
        """Gradient by the scores of the last `forward`, in their shape, times `dout`.

        Parameters
        ----------
        dout
            The gradient by the loss.

        Returns
        -------
        Array
            The shape and dtype of the scores.

        Raises
        ------
        RuntimeError
            There was no `forward` before.
        """
        if self.y is None:
            raise RuntimeError(f"{type(self).__name__}: backward was called before forward")
        backend = backend_of(y=self.y)
        with backend.running():
            dx = backend.loss_and_delta(self.loss, self.y, self.t)[1]
            dx = dx if self.weight is None else dx * self.weight[:, None]
            dx = dx if dout == 1 else dx * float(dout)
            return backend.xp.reshape(dx, self.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()" if self.operation is None else repr(self.operation)


@cache
def layer_class(operation: type[Operation]) -> type[Any]:
    """The layer, or the loss layer, that computes an operation, under its name."""
    base: type[Any] = LossLayer if issubclass(operation, Loss) else Layer
    members = {"operation_class": operation, "__doc__": operation.__doc__, "__module__": __name__}
    return type(operation.__name__, (base,), members)


def named(name: str, *kinds: str | None) -> type[Any]:
    """The layer of the operation of this name, in whichever case; of these kinds, if any are named.

    Raises
    ------
    ValueError
        There is none: what there is is listed.
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name!r} is no name, expected one such as 'relu'")
    known = {key: cls for key, cls in registered().items() if not kinds or cls.fuses in kinds}
    found = known.get(name) or {k.lower(): v for k, v in known.items()}.get(name.lower())
    if found is None:
        what = "/".join(str(kind) for kind in kinds) or "operation"
        raise ValueError(f"{name!r} is no {what}, expected one of {', '.join(known)}")
    return layer_class(found)


def __getattr__(name: str) -> type[Any]:
    # Every operation is a layer by being defined: xnet.layers.Tanh, or a user's own.
    if name in OPERATIONS:
        return layer_class(OPERATIONS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *OPERATIONS]
