"""Every operation of a network, once: forward, backward, and the facts about it.

An operation is a class whose fields are its settings and whose `forward` and `backward` are the
equations. They are written with `m`, the mathematics to be used, which is whoever interprets them:
a backend's arrays, numbers that carry their rounding errors, or the trace from which compiled loops
and CUDA are written (`formulas`). A formula uses

- ``+ - * /``, comparisons, ``& | ~`` of these, and numbers;
- ``m.exp``, ``m.log``, ``m.expm1``, ``m.log1p``, ``m.sqrt``, ``m.abs``, ``m.where(c, a, b)``,
  ``m.maximum``, ``m.minimum``;
- along a row, kept as a column (N, 1): ``m.sum(a)``, ``m.max(a)``; and ``m.width(a)``, how many
  numbers a row has.

That is all that a formula may use which is to be compiled: pointwise ones, rows, losses and the
steps of `optimizers`. One that is not has besides ``m.matmul``, ``m.T``, ``m.total(a)``, the sum
over the batch (M,), ``m.count(a)``, the samples in it, ``m.training``, ``m.uniform(a)``, random
numbers of a's shape, ``m.state`` and, for its own `backward`, ``m.kept``.

Every class registers by being defined: a user's is a layer, a loss, and saved, as xnet's are.
"""

import dataclasses
import math
import numbers
import warnings
from functools import cache
from typing import Any, ClassVar, TypeAlias, dataclass_transform

Value: TypeAlias = Any
"""What an interpreter computes with: an array, a bounded array, a node of a trace."""
Maths: TypeAlias = Any
"""Who interprets a formula; see `formulas`."""

ENTRY_POINT_GROUP = "xnet.operations"
"""A package names here the modules that define its operations."""

OPERATIONS: dict[str, type["Operation"]] = {}
"""Every operation there is, by the name of its class."""


@dataclass_transform(frozen_default=True, eq_default=False)
class Operation:
    """``y = forward(m, x, *parameters)``, and the gradients by x and by each parameter.

    A class's annotated attributes are its settings, as a frozen dataclass's are; what is a
    `ClassVar` is a fact about it. A class is registered under its name.

    Attributes
    ----------
    fuses
        What a backend may take it as: ``"product"`` for x W + b, ``"pointwise"`` for a formula of
        single numbers, ``"rows"`` for one along rows, ``"loss"``; None for none of these.
    parameters
        What training changes: by name, the shape, each size named by the setting that holds it.
    state
        What training leaves for predictions: by name, the shape and the initial number.
    mixes
        Whether a row of the output depends on other rows of the input, in training.
    random
        Whether training draws random numbers.
    kinks
        The inputs at which the slope jumps.
    parts_backward
        Whether `backward_parameters` gives what `backward` gives by the parameters: it stands in
        the same class as that, or in one derived from it.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> from xnet.operations import Operation
    >>> class Roll(Operation, abstract=True):
    ...     shift: int = 1
    ...     def forward(self, m, x):
    ...         return np.roll(x, self.shift, axis=1)
    ...     def backward(self, m, dout, x, y):
    ...         return np.roll(dout, -self.shift, axis=1)
    >>> layer = xnet.layers.Layer.of(Roll(2))
    >>> layer.forward(np.array([[1.0, 2.0, 3.0]])).tolist()
    [[2.0, 3.0, 1.0]]
    >>> layer.backward(np.array([[1.0, 0.0, 0.0]])).tolist()
    [[0.0, 1.0, 0.0]]
    """

    fuses: ClassVar[str | None] = None
    parameters: ClassVar[dict[str, tuple[str, ...]]] = {}
    state: ClassVar[dict[str, tuple[tuple[str, ...], float]]] = {}
    mixes: ClassVar[bool] = False
    random: ClassVar[bool] = False
    kinks: ClassVar[tuple[float, ...]] = ()
    parts_backward: ClassVar[bool] = False

    def __init_subclass__(cls, abstract: bool = False) -> None:
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        formulas = {"forward", "backward", "backward_parameters"} & vars(cls).keys()
        if cls.fuses == "product" and formulas and "fuses" not in vars(cls):
            cls.fuses = None  # what is computed otherwise is no product that backends know
        if {"backward", "backward_parameters"} & formulas:
            cls.parts_backward = "backward_parameters" in formulas
        if abstract:
            return
        known = OPERATIONS.get(cls.__name__)
        if known is not None and known.__module__ != cls.__module__:
            raise TypeError(
                f"an operation named {cls.__name__} is defined in {known.__module__} already: "
                "a saved network could not tell the two apart; take another name"
            )
        OPERATIONS[cls.__name__] = cls

    def __post_init__(self) -> None:
        """Sizes are checked; NumPy's numbers become Python's: they would widen float32."""
        for name, value in list(vars(self).items()):
            number: Any = value
            if isinstance(value, numbers.Real) and type(number) not in (bool, int, float):
                kind = int if isinstance(value, numbers.Integral) else float
                object.__setattr__(self, name, kind(number))
        shapes = (*self.parameters.values(), *(shape for shape, _ in self.state.values()))
        for name in dict.fromkeys(name for shape in shapes for name in shape):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                expected = "at least 1, a whole number; from_params takes arrays"
                raise ValueError(f"{type(self).__name__}: {name} is {size}, expected {expected}")

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """``forward(m, x, *parameters)``: the output; of a loss ``forward(m, x, t)``."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, *arguments: Any, **named: Any) -> Any:
        """``backward(m, dout, x, y, *parameters)``: the gradient by x and by each parameter.

        y is forward's output; where there are parameters the gradients are a tuple. Of a loss
        ``backward(m, x, t)``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def backward_parameters(self, *arguments: Any, **named: Any) -> Any:
        """``backward_parameters(m, dout, x)``: optional, the gradients by the parameters alone.

        It spares a first layer the gradient by x, which nobody asks for.
        """
        raise NotImplementedError(f"{type(self).__name__} has no backward_parameters")

    def initial(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of the normal numbers that a parameter begins as.

        Parameters
        ----------
        name
            The parameter's.

        Returns
        -------
        tuple of float
            Mean and standard deviation.
        """
        return 0.0, 0.0

    @property
    def widths(self) -> tuple[int | None, int | None]:
        """How many numbers of a sample it takes and gives; None for any, and for as many.

        Both are `units`, where there is such a setting.
        """
        units: int | None = getattr(self, "units", None)
        return units, units

    def shape(self, sizes: tuple[str, ...]) -> tuple[int, ...]:
        """What a shape of `parameters` or `state` is, of which settings hold the sizes."""
        return tuple(getattr(self, size) for size in sizes)

    @classmethod
    def is_plain(cls) -> bool:
        """Whether it treats each row on its own, keeps nothing and draws nothing."""
        return not (cls.mixes or cls.random or cls.state)

    def settings(self) -> dict[str, Any]:
        """Arguments that make an operation like this one."""
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        return {field.name: getattr(self, field.name) for field in fields}

    def __repr__(self) -> str:
        values = ", ".join(str(value) for value in self.settings().values())
        return f"{type(self).__name__}({values})"


@cache
def _load_packages() -> None:
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except Exception as error:  # a broken package must not take the others' with it
            warnings.warn(f"operations of {entry.value} are left out: {error!r}", stacklevel=3)


def registered() -> dict[str, type[Operation]]:
    """Every operation by name, those of installed packages loaded.

    Returns
    -------
    dict
        `OPERATIONS` itself: what is defined later is in it, too.

    Warns
    -----
    UserWarning
        A package's operations cannot be loaded, and are left out.

    Examples
    --------
    >>> import xnet
    >>> xnet.operations.registered()["ReLU"]
    <class 'xnet.operations.ReLU'>
    """
    _load_packages()
    return OPERATIONS


# -- products


class Affine(Operation):
    """Affine transformation x W + b (§5.6).

    A tensor (N, d1, d2, ...) is flattened to (N, D) on the way in, and its gradient takes the
    tensor's shape on the way back.

    Parameters
    ----------
    inputs, outputs
        Features per sample before and after, D and M.
    weight_init_std
        Standard deviation of the normal distribution that W is drawn from: a number (the notes'
        0.01), ``"he"`` for sqrt(2 / D) (He et al. 2015, for ReLU) or ``"xavier"`` for
        sqrt(2 / (D + M)) (Glorot & Bengio 2010, for sigmoid). b starts at 0.

    Raises
    ------
    ValueError
        A size below 1, or an unknown `weight_init_std`.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> W, b = [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]], [0.1, 0.2, 0.3]
    >>> layer = xnet.layers.Affine.from_params(W, b)
    >>> layer.forward(np.array([[1.0, 0.5]])).round(8).tolist()
    [[2.1, 5.2, 8.3]]
    >>> layer.backward(np.array([[1.0, 1.0, 1.0]])).tolist()
    [[9.0, 12.0]]
    >>> layer.dW.tolist(), layer.db.tolist()
    ([[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]], [1.0, 1.0, 1.0])
    >>> [xnet.operations.Affine(50, 10, std).initial("W") for std in (0.01, "he")]
    [(0.0, 0.01), (0.0, 0.2)]
    """

    inputs: int
    outputs: int
    weight_init_std: float | str = 0.01

    fuses = "product"
    parameters: ClassVar = {"W": ("inputs", "outputs"), "b": ("outputs",)}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.initial("W")  # an unknown name fails here, not when the network is built

    def forward(self, m: Maths, x: Value, W: Value, b: Value) -> Value:
        return m.matmul(x, W) + b

    def backward(self, m: Maths, dout: Value, x: Value, y: Value, W: Value, b: Value) -> Any:
        return m.matmul(dout, m.T(W)), *self.backward_parameters(m, dout, x)

    def backward_parameters(self, m: Maths, dout: Value, x: Value) -> tuple[Value, Value]:
        """The gradients by W and b alone, for a first layer: nobody asks for the one by x."""
        return m.matmul(m.T(x), dout), m.total(dout)

    def initial(self, name: str) -> tuple[float, float]:
        std = self.weight_init_std
        if name == "b":
            return 0.0, 0.0
        if std == "he":
            return 0.0, math.sqrt(2 / self.inputs)
        if std == "xavier":
            return 0.0, math.sqrt(2 / (self.inputs + self.outputs))
        if isinstance(std, str) or not (math.isfinite(std) and std >= 0):
            raise ValueError(
                f"weight_init_std is {std!r}, expected a number of at least 0, 'he' or 'xavier'"
            )
        return 0.0, float(std)

    @property
    def widths(self) -> tuple[int | None, int | None]:
        return self.inputs, self.outputs

    def __repr__(self) -> str:
        return f"Affine({self.inputs}, {self.outputs})"


# -- pointwise: activations


class Pointwise(Operation, abstract=True):
    """A formula of single numbers: y = forward(m, x), dx = backward(m, dout, x, y).

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> from xnet.operations import Pointwise
    >>> class Square(Pointwise, abstract=True):
    ...     def forward(self, m, x):
    ...         return x * x
    ...     def backward(self, m, dout, x, y):
    ...         return dout * 2 * x
    >>> layer = xnet.layers.Layer.of(Square())
    >>> layer.forward(np.array([1.0, -3.0])).tolist()
    [1.0, 9.0]
    >>> layer.backward(np.array([1.0, 1.0])).tolist()
    [2.0, -6.0]
    """

    fuses = "pointwise"


def sigmoid(m: Maths, x: Value) -> Value:
    """1 / (1 + exp(-x)); exp only ever sees -|x|: it cannot overflow."""
    z = m.exp(-m.abs(x))
    y = 1 / (1 + z)
    return m.where(x >= 0, y, z * y)


def tanh(m: Maths, x: Value) -> Value:
    """-z / (2 + z) with z = exp(-2|x|) - 1, and the sign of x: exact near 0, no overflow."""
    z = m.expm1(-2 * m.abs(x))
    y = -z / (2 + z)
    return m.where(x < 0, -y, y)


class Sigmoid(Pointwise):
    """Sigmoid 1 / (1 + exp(-x)) (§3.2.4, §5.5.2).

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([-1.0, 0.0, 2.0])
    >>> xnet.activations.sigmoid(x).round(8).tolist()
    [0.26894142, 0.5, 0.88079708]
    >>> layer = xnet.layers.Sigmoid()
    >>> y = layer.forward(x)
    >>> layer.backward(np.ones_like(x)).round(8).tolist()
    [0.19661193, 0.25, 0.10499359]
    """

    def forward(self, m: Maths, x: Value) -> Value:
        return sigmoid(m, x)

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        return dout * (1 - y) * y


class ReLU(Pointwise):
    """Rectified linear unit max(0, x) (§3.2.7, §5.5.1); NaN stays NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([-2.0, 0.0, 3.0])
    >>> xnet.activations.relu(x).round(8).tolist()
    [0.0, 0.0, 3.0]
    >>> layer = xnet.layers.ReLU()
    >>> y = layer.forward(x)
    >>> layer.backward(np.ones_like(x)).round(8).tolist()
    [0.0, 0.0, 1.0]
    """

    kinks = (0.0,)

    def forward(self, m: Maths, x: Value) -> Value:
        return m.where(x <= 0, 0, x)

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        return m.where(y <= 0, 0, dout)


class Tanh(Pointwise):
    """Hyperbolic tangent.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([-1.0, 0.0, 2.0])
    >>> xnet.activations.tanh(x).round(8).tolist()
    [-0.76159416, 0.0, 0.96402758]
    >>> layer = xnet.layers.Tanh()
    >>> y = layer.forward(x)
    >>> layer.backward(np.ones_like(x)).round(8).tolist()
    [0.41997434, 1.0, 0.07065082]
    """

    def forward(self, m: Maths, x: Value) -> Value:
        return tanh(m, x)

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        return dout * ((1 - y) * (1 + y))


class LeakyReLU(Pointwise):
    """x where x > 0, slope x elsewhere (Maas, Hannun & Ng 2013).

    Parameters
    ----------
    slope
        The slope below 0.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([-2.0, 0.5])
    >>> xnet.activations.leakyrelu(x, slope=0.1).round(8).tolist()
    [-0.2, 0.5]
    >>> layer = xnet.layers.LeakyReLU(slope=0.1)
    >>> y = layer.forward(x)
    >>> layer.backward(np.ones_like(x)).round(8).tolist()
    [0.1, 1.0]
    """

    slope: float = 0.01
    kinks = (0.0,)

    def forward(self, m: Maths, x: Value) -> Value:
        return m.where(x > 0, x, self.slope * x)

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        return m.where(x > 0, dout, self.slope * dout)


class ELU(Pointwise):
    """x where x > 0, alpha (exp(x) - 1) elsewhere (Clevert, Unterthiner & Hochreiter 2016).

    Parameters
    ----------
    alpha
        What it falls to, -alpha, far below 0. The slope jumps at 0 unless this is 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([-1.0, 0.5])
    >>> xnet.activations.elu(x).round(8).tolist()
    [-0.63212056, 0.5]
    >>> layer = xnet.layers.ELU()
    >>> y = layer.forward(x)
    >>> layer.backward(np.ones_like(x)).round(8).tolist()
    [0.36787944, 1.0]
    """

    alpha: float = 1.0

    def forward(self, m: Maths, x: Value) -> Value:
        return m.where(x > 0, x, self.alpha * m.expm1(m.minimum(x, 0)))

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        return m.where(x > 0, dout, dout * (y + self.alpha))

    @property
    def kinks(self) -> tuple[float, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return () if self.alpha == 1 else (0.0,)


class SELU(Pointwise):
    """scale times ELU, which keeps mean 0 and variance 1 (Klambauer et al. 2017).

    Parameters
    ----------
    alpha, scale
        The paper's numbers, for which mean 0 and variance 1 is a fixed point.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([-1.0, 0.5])
    >>> xnet.activations.selu(x).round(8).tolist()
    [-1.11133074, 0.52535049]
    >>> layer = xnet.layers.SELU()
    >>> y = layer.forward(x)
    >>> layer.backward(np.ones_like(x)).round(8).tolist()
    [0.6467686, 1.05070099]
    """

    alpha: float = 1.6732632423543772
    scale: float = 1.0507009873554805
    kinks = (0.0,)

    def forward(self, m: Maths, x: Value) -> Value:
        return self.scale * m.where(x > 0, x, self.alpha * m.expm1(m.minimum(x, 0)))

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        return dout * m.where(x > 0, self.scale, y + self.scale * self.alpha)


class Softplus(Pointwise):
    """log(1 + exp(x)), a smooth ReLU (Dugas et al. 2001).

    It is computed as ``max(x, 0) + log(1 + exp(-|x|))``, which cannot overflow.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([-1.0, 0.0, 2.0])
    >>> xnet.activations.softplus(x).round(8).tolist()
    [0.31326169, 0.69314718, 2.12692801]
    >>> layer = xnet.layers.Softplus()
    >>> y = layer.forward(x)
    >>> layer.backward(np.ones_like(x)).round(8).tolist()
    [0.26894142, 0.5, 0.88079708]
    """

    def forward(self, m: Maths, x: Value) -> Value:
        return m.maximum(x, 0) + m.log1p(m.exp(-m.abs(x)))

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        return dout * -m.expm1(-y)


class SiLU(Pointwise):
    """x sigmoid(x), also called swish (Elfwing, Uchibe & Doya 2018).

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([-1.0, 0.0, 2.0])
    >>> xnet.activations.silu(x).round(8).tolist()
    [-0.26894142, 0.0, 1.76159416]
    >>> layer = xnet.layers.SiLU()
    >>> y = layer.forward(x)
    >>> layer.backward(np.ones_like(x)).round(8).tolist()
    [0.07232949, 0.5, 1.09078425]
    """

    def forward(self, m: Maths, x: Value) -> Value:
        return x * sigmoid(m, x)

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        s = sigmoid(m, x)
        return dout * (s + y * (1 - s))


class GELU(Pointwise):
    """x Phi(x) in the form with tanh (Hendrycks & Gimpel 2016).

    Their x (1 + tanh(v)) / 2 with v = sqrt(2 / pi) (x + 0.044715 x^3) is x sigmoid(2 v).

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([-1.0, 0.0, 2.0])
    >>> xnet.activations.gelu(x).round(8).tolist()
    [-0.15880801, 0.0, 1.95459769]
    >>> layer = xnet.layers.GELU()
    >>> y = layer.forward(x)
    >>> layer.backward(np.ones_like(x)).round(8).tolist()
    [-0.08296408, 0.5, 1.08609926]
    """

    def forward(self, m: Maths, x: Value) -> Value:
        return x * sigmoid(m, 1.5957691216057308 * (x + 0.044715 * (x * x * x)))

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        square = m.minimum(x * x, 10000)  # far beyond where the slope is 0 or 1, and no infinity
        s = sigmoid(m, 1.5957691216057308 * (x + 0.044715 * (x * square)))
        slope = 1.5957691216057308 * (1 + 0.134145 * square)
        return dout * (s + x * (s * (1 - s) * slope))


class HardSigmoid(Pointwise):
    """The line x / 6 + 1/2, kept within 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([-4.0, 0.0, 1.5])
    >>> xnet.activations.hardsigmoid(x).round(8).tolist()
    [0.0, 0.5, 0.75]
    >>> layer = xnet.layers.HardSigmoid()
    >>> y = layer.forward(x)
    >>> layer.backward(np.ones_like(x)).round(8).tolist()
    [0.0, 0.16666667, 0.16666667]
    """

    kinks = (-3.0, 3.0)

    def forward(self, m: Maths, x: Value) -> Value:
        return m.where(x <= -3, 0, m.where(x >= 3, 1, x / 6 + 0.5))

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        return m.where((x <= -3) | (x >= 3), 0, dout / 6)


class HardTanh(Pointwise):
    """x, kept within -1 and 1 (Collobert 2004).

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([-1.5, 0.25, 2.0])
    >>> xnet.activations.hardtanh(x).round(8).tolist()
    [-1.0, 0.25, 1.0]
    >>> layer = xnet.layers.HardTanh()
    >>> y = layer.forward(x)
    >>> layer.backward(np.ones_like(x)).round(8).tolist()
    [0.0, 1.0, 0.0]
    """

    kinks = (-1.0, 1.0)

    def forward(self, m: Maths, x: Value) -> Value:
        return m.where(x <= -1, -1, m.where(x >= 1, 1, x))

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        return m.where((x <= -1) | (x >= 1), 0, dout)


class Mish(Pointwise):
    """x tanh(softplus(x)) (Misra 2019).

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([-1.0, 0.0, 2.0])
    >>> xnet.activations.mish(x).round(8).tolist()
    [-0.30340146, 0.0, 1.94395896]
    >>> layer = xnet.layers.Mish()
    >>> y = layer.forward(x)
    >>> layer.backward(np.ones_like(x)).round(8).tolist()
    [0.05921676, 0.6, 1.06931793]
    """

    def forward(self, m: Maths, x: Value) -> Value:
        return x * self.gate(m, x)

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        t = self.gate(m, x)
        return dout * (t + x * ((1 - t) * (1 + t) * sigmoid(m, x)))

    def gate(self, m: Maths, x: Value) -> Value:
        """tanh(log(1 + e^x)): with ``z = e^-|x|`` (1 + 2 z) / (1 + 2 z + 2 z^2), and its mirror."""
        z = m.exp(-m.abs(x))
        up, down = 1 + 2 * z, z * (z + 2)
        return m.where(x >= 0, up / (up + 2 * (z * z)), down / (down + 2))


# -- rows: a formula along each row


class Rows(Operation, abstract=True):
    """A formula along each row: y = forward(m, x), dx = backward(m, dout, x, y).

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> from xnet.operations import Rows
    >>> class Centred(Rows, abstract=True):
    ...     def forward(self, m, x):
    ...         return x - m.sum(x) / m.width(x)
    ...     def backward(self, m, dout, x, y):
    ...         return dout - m.sum(dout) / m.width(dout)
    >>> layer = xnet.layers.Layer.of(Centred())
    >>> layer.forward(np.array([[1.0, 2.0, 6.0]])).tolist()
    [[-2.0, -1.0, 3.0]]
    >>> layer.backward(np.array([[3.0, 0.0, 0.0]])).tolist()
    [[2.0, -1.0, -1.0]]
    """

    fuses = "rows"


def softmax(m: Maths, x: Value) -> Value:
    """exp(x) / sum of exp(x) along a row (§3.5.3); the maximum goes first."""
    e = m.exp(x - m.max(x))
    return e / m.sum(e)


def log_softmax(m: Maths, x: Value) -> Value:
    """The logarithm of the softmax, as x - max - log sum exp(x - max): it never vanishes."""
    s = x - m.max(x)
    return s - m.log(m.sum(m.exp(s)))


def log_softmax_slope(m: Maths, x: Value, t: Value) -> Value:
    """The gradient of -sum(t log_softmax(x)) by the scores x of a row."""
    return softmax(m, x) * m.sum(t) - t


class Softmax(Rows):
    """Softmax of each row (§3.5.3).

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.Softmax()
    >>> layer.forward(np.array([[0.3, 2.9, 4.0]])).round(8).tolist()
    [[0.01821127, 0.24519181, 0.73659691]]
    >>> layer.backward(np.array([[1.0, 0.0, 0.0]])).round(8).tolist()
    [[0.01787962, -0.00446526, -0.01341437]]
    """

    def forward(self, m: Maths, x: Value) -> Value:
        return softmax(m, x)

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        return y * (dout - m.sum(dout * y))


# -- losses


class Loss(Operation, abstract=True):
    """The loss of each row of scores x against targets t of x's shape, and its gradient by x.

    ``forward(m, x, t)`` is a column of numbers, ``backward(m, x, t)`` has the shape of x. The mean
    over the batch is not the operation's. Both take what `targets` makes of the labels.

    Attributes
    ----------
    classes
        Whether the columns are the scores of classes, of which the largest is meant.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> from xnet.operations import Loss
    >>> class Quartic(Loss, abstract=True):
    ...     classes = False
    ...     def forward(self, m, x, t):
    ...         return m.sum((x - t) * (x - t) * (x - t) * (x - t)) / 4
    ...     def backward(self, m, x, t):
    ...         return (x - t) * (x - t) * (x - t)
    >>> layer = xnet.layers.LossLayer.of(Quartic())
    >>> layer.forward(np.array([[2.0], [5.0]]), np.array([[0.0], [4.0]])).item()
    2.125
    >>> layer.backward().tolist()
    [[4.0], [0.5]]
    """

    fuses = "loss"
    classes: ClassVar[bool] = True

    def predict(self, m: Maths, x: Value) -> Value:
        """What the network says where the scores are x."""
        return x

    def targets(self, m: Maths, t: Value) -> Value:
        """What `forward` and `backward` take for targets t (N, C)."""
        return t


class SoftmaxWithLoss(Loss):
    """Cross-entropy of the softmax, for classification: -sum(t log softmax(x)) (§5.6.3).

    The logarithm of the softmax is computed as such, and the gradient is the book's y - t: it does
    not vanish where the network is confidently wrong, as that of the notes' -log(y + 1e-7) does.

    Parameters
    ----------
    label_smoothing
        Share of each label that is given to all classes alike (Szegedy et al. 2016), in [0, 1).
    class_weights
        A factor for the loss of each class; None for 1. The mean is over the samples, weighted or
        not.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.SoftmaxWithLoss()
    >>> round(layer.forward(np.array([[0.3, 2.9, 4.0]]), np.array([2])).item(), 8)
    0.30571446
    >>> layer.backward().round(8).tolist()
    [[0.01821127, 0.24519181, -0.26340309]]
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected within [0, 1)")
        if self.class_weights is not None:
            values = tuple(float(v) for v in self.class_weights)
            if not all(math.isfinite(v) and v >= 0 for v in values):
                raise ValueError(f"class_weights is {values}, expected numbers of at least 0")
            object.__setattr__(self, "class_weights", values)

    def predict(self, m: Maths, x: Value) -> Value:
        return softmax(m, x)

    def targets(self, m: Maths, t: Value) -> Value:
        if self.label_smoothing:
            t = (1 - self.label_smoothing) * t + self.label_smoothing * m.sum(t) / m.width(t)
        if self.class_weights is None:
            return t
        if len(self.class_weights) != m.width(t):
            raise ValueError(
                f"class_weights has {len(self.class_weights)} numbers for {m.width(t)} classes"
            )
        return t * m.row(self.class_weights, t)

    def forward(self, m: Maths, x: Value, t: Value) -> Value:
        return -m.sum(m.where(t == 0, 0, t * log_softmax(m, x)))

    def backward(self, m: Maths, x: Value, t: Value) -> Value:
        return log_softmax_slope(m, x, t)

    def __repr__(self) -> str:
        changed = {k: v for k, v in self.settings().items() if v}
        return f"SoftmaxWithLoss({', '.join(f'{k}={v}' for k, v in changed.items())})"


class IdentityWithLoss(Loss):
    """Half the squared error of each row, for regression: sum((x - t)^2) / 2 (§3.5.2, §4.2.1).

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.IdentityWithLoss()
    >>> layer.forward(np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]])).item()
    2.5
    >>> layer.backward().tolist()
    [[1.0, -2.0]]
    """

    classes = False

    def forward(self, m: Maths, x: Value, t: Value) -> Value:
        difference = x - t
        return 0.5 * m.sum(difference * difference)

    def backward(self, m: Maths, x: Value, t: Value) -> Value:
        return x - t


class AbsoluteError(Loss):
    """The sum of ``|x - t|`` of each row; its slope jumps where they are equal.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.AbsoluteError()
    >>> layer.forward(np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]])).item()
    3.0
    >>> layer.backward().tolist()
    [[1.0, -1.0]]
    """

    classes = False

    def forward(self, m: Maths, x: Value, t: Value) -> Value:
        return m.sum(m.abs(x - t))

    def backward(self, m: Maths, x: Value, t: Value) -> Value:
        return m.where(x > t, 1, m.where(x < t, -1, x - t))


class Huber(Loss):
    """Squared near the target, absolute beyond `delta` (Huber 1964).

    Parameters
    ----------
    delta
        How far from the target it is squared.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.Huber(delta=1.0)
    >>> layer.forward(np.array([[0.5, 0.0]]), np.array([[0.0, 3.0]])).item()
    2.625
    >>> layer.backward().tolist()
    [[0.5, -1.0]]
    """

    delta: float = 1.0
    classes = False

    def forward(self, m: Maths, x: Value, t: Value) -> Value:
        d = m.abs(x - t)
        return m.sum(m.where(d <= self.delta, 0.5 * (d * d), self.delta * (d - 0.5 * self.delta)))

    def backward(self, m: Maths, x: Value, t: Value) -> Value:
        return m.maximum(m.minimum(x - t, self.delta), -self.delta)


class Hinge(Loss):
    """sum of max(0, margin + x_j - x_t) over the other classes j (Weston & Watkins 1999).

    Parameters
    ----------
    margin
        How far the score of the right class is to be above the others.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.Hinge()
    >>> layer.forward(np.array([[2.0, 1.5, -1.0]]), np.array([0])).item()
    0.5
    >>> layer.backward().tolist()
    [[-1.0, 1.0, 0.0]]
    """

    margin: float = 1.0

    def forward(self, m: Maths, x: Value, t: Value) -> Value:
        excess = x - m.sum(t * x) + self.margin
        return m.sum((1 - t) * m.maximum(excess, 0))

    def backward(self, m: Maths, x: Value, t: Value) -> Value:
        excess = x - m.sum(t * x) + self.margin
        active = m.where(excess > 0, 1 - t, 0)
        return active - t * m.sum(active)


class BinaryCrossEntropy(Loss):
    """Of each score x with sigmoid(x) and a target t of 0 to 1, summed along the row.

    -t log y - (1 - t) log(1 - y) for y = sigmoid(x), as softplus(x) - t x: it never vanishes.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.BinaryCrossEntropy()
    >>> round(layer.forward(np.array([[0.0], [2.0]]), np.array([0.0, 1.0])).item(), 8)
    0.4100376
    >>> layer.backward().round(8).tolist()
    [[0.25], [-0.05960146]]
    """

    classes = False

    def predict(self, m: Maths, x: Value) -> Value:
        return sigmoid(m, x)

    def forward(self, m: Maths, x: Value, t: Value) -> Value:
        return m.sum(m.maximum(x, 0) - t * x + m.log1p(m.exp(-m.abs(x))))

    def backward(self, m: Maths, x: Value, t: Value) -> Value:
        return sigmoid(m, x) - t


class KullbackLeibler(Loss):
    """sum(t log(t / softmax(x))) of each row, for targets that are probabilities.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.KullbackLeibler()
    >>> round(layer.forward(np.array([[0.0, 0.0]]), np.array([[0.25, 0.75]])).item(), 8)
    0.13081204
    >>> layer.backward().round(8).tolist()
    [[0.25, -0.25]]
    """

    def predict(self, m: Maths, x: Value) -> Value:
        return softmax(m, x)

    def forward(self, m: Maths, x: Value, t: Value) -> Value:
        log_t = m.log(m.where(t > 0, t, 1))
        return m.sum(m.where(t == 0, 0, t * (log_t - log_softmax(m, x))))

    def backward(self, m: Maths, x: Value, t: Value) -> Value:
        return log_softmax_slope(m, x, t)


class Focal(Loss):
    """Cross-entropy of the softmax with (1 - y)^gamma for a weight (Lin et al. 2017).

    What is learnt already counts for less. 1 - y is held above 1e-30.

    Parameters
    ----------
    gamma
        How much less counts what is learnt; 0 for the cross-entropy itself.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.Focal(gamma=2.0)
    >>> x, t = np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([0, 0])
    >>> [round(layer.forward(row, label).item(), 8) for row, label in zip(x, t)]
    [0.1732868, 0.00010928]
    """

    gamma: float = 2.0

    def predict(self, m: Maths, x: Value) -> Value:
        return softmax(m, x)

    def forward(self, m: Maths, x: Value, t: Value) -> Value:
        log_y = log_softmax(m, x)
        weight = m.exp(self.gamma * self.log_rest(m, log_y))
        return -m.sum(m.where(t == 0, 0, t * (weight * log_y)))

    def backward(self, m: Maths, x: Value, t: Value) -> Value:
        log_y = log_softmax(m, x)
        y, log_rest = m.exp(log_y), self.log_rest(m, log_y)
        weight = m.exp(self.gamma * log_rest)
        steeper = m.exp(self.gamma * log_rest - log_rest)
        slope = t * (self.gamma * (y * steeper * m.where(t == 0, 0, log_y)) - weight)
        return slope - y * m.sum(slope)

    def log_rest(self, m: Maths, log_y: Value) -> Value:
        """log(1 - y), as log(-(exp(log y) - 1))."""
        return m.log(m.maximum(-m.expm1(log_y), 1e-30))


# -- layers that keep something, draw something, or mix the rows of a batch


class Dropout(Operation):
    """x kept with probability 1 - ratio and scaled by 1 / (1 - ratio), in training alone (§6.4.3).

    Scaled in training, as is usual, so that predictions need nothing; the book scales those.

    Parameters
    ----------
    ratio
        Share of the numbers that is dropped, in [0, 1).

    Raises
    ------
    ValueError
        A ratio outside [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.Dropout(ratio=0.5)
    >>> x = np.ones((1, 1000))
    >>> layer(x).tolist() == x.tolist()
    True
    >>> set(layer.forward(x).ravel().tolist()) == {0.0, 2.0}
    True
    """

    ratio: float = 0.5
    random = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio < 1:
            raise ValueError(f"Dropout: ratio is {self.ratio}, expected within [0, 1)")

    def forward(self, m: Maths, x: Value) -> Value:
        if not m.training:
            return x
        m.kept.dropped = m.uniform(x) < self.ratio
        return m.where(m.kept.dropped, 0, x / (1 - self.ratio))

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        return m.where(m.kept.dropped, 0, dout / (1 - self.ratio)) if m.training else dout


class Normalization(Operation):
    """(x - mean) / std of each column, both as training data had them: `xnet.scaling` finds them.

    No training moves them, so that nothing of validation or test data gets in. Its place is before
    the first layer; the network then takes what the data hold, and its file says how to scale them.

    Parameters
    ----------
    units
        Columns.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.Normalization(2)
    >>> layer.state.update(mean=np.array([1.0, 10.0]), std=np.array([2.0, 5.0]))
    >>> layer(np.array([[3.0, 0.0]])).tolist()
    [[1.0, -2.0]]
    """

    units: int

    state: ClassVar = {"mean": (("units",), 0.0), "std": (("units",), 1.0)}

    def forward(self, m: Maths, x: Value) -> Value:
        return (x - m.state["mean"]) / m.state["std"]

    def backward(self, m: Maths, dout: Value, x: Value, y: Value) -> Value:
        return dout / m.state["std"]


class Normalized(Operation, abstract=True):
    """Numbers of mean 0 and variance 1, times gamma, plus beta."""

    units: int

    parameters: ClassVar = {"gamma": ("units",), "beta": ("units",)}

    def initial(self, name: str) -> tuple[float, float]:
        return float(name == "gamma"), 0.0


class BatchNorm(Normalized):
    """gamma (x - mean) / sqrt(variance + eps) + beta over the batch (§6.3; Ioffe & Szegedy 2015).

    Predictions take running means of both, which move by `1 - decay` a training step.

    Parameters
    ----------
    units
        Columns.
    decay
        Share of the running means that a training step leaves.
    eps
        Added to the variance.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.BatchNorm.from_params([1.0, 2.0], [0.0, 3.0])
    >>> layer.initialize(0, "float64", xnet.resolve("numpy"))
    >>> layer.forward(np.array([[1.0, -1.0], [3.0, 1.0]])).round(3).tolist()
    [[-1.0, 1.0], [1.0, 5.0]]
    >>> {name: array.round(3).tolist() for name, array in layer.state.items()}
    {'mean': [0.2, 0.0], 'variance': [1.0, 1.0]}
    """

    decay: float = 0.9
    eps: float = 1e-5

    state: ClassVar = {"mean": (("units",), 0.0), "variance": (("units",), 1.0)}
    mixes = True

    def forward(self, m: Maths, x: Value, gamma: Value, beta: Value) -> Value:
        mean, variance = m.state["mean"], m.state["variance"]
        if m.training:
            mean = m.total(x) / m.count(x)
            variance = m.total((x - mean) * (x - mean)) / m.count(x)
            m.move({"mean": mean, "variance": variance}, 1 - self.decay)
        m.kept.std = m.sqrt(variance + self.eps)
        m.kept.normal = (x - mean) / m.kept.std
        return gamma * m.kept.normal + beta

    def backward(self, m: Maths, dout: Value, x: Value, y: Value, gamma: Value, beta: Value) -> Any:
        normal, std = m.kept.normal, m.kept.std
        by_gamma, by_beta = m.total(dout * normal), m.total(dout)
        d = dout
        if m.training:
            d = dout - by_beta / m.count(x) - normal * (by_gamma / m.count(x))
        return d * (gamma / std), by_gamma, by_beta


class LayerNorm(Normalized):
    """gamma (x - mean) / sqrt(variance + eps) + beta along each row (Ba, Kiros & Hinton 2016).

    Parameters
    ----------
    units
        Numbers in a row.
    eps
        Added to the variance.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> layer = xnet.layers.LayerNorm.from_params([1.0, 1.0, 1.0], [0.0, 0.0, 0.5])
    >>> layer.forward(np.array([[1.0, 2.0, 3.0]])).round(3).tolist()
    [[-1.225, 0.0, 1.725]]
    """

    eps: float = 1e-5

    def forward(self, m: Maths, x: Value, gamma: Value, beta: Value) -> Value:
        return gamma * self.normal(m, x)[0] + beta

    def backward(self, m: Maths, dout: Value, x: Value, y: Value, gamma: Value, beta: Value) -> Any:
        normal, std = self.normal(m, x)
        d = dout * gamma
        inner = d - m.sum(d) / m.width(x) - normal * (m.sum(d * normal) / m.width(x))
        return inner / std, m.total(dout * normal), m.total(dout)

    def normal(self, m: Maths, x: Value) -> tuple[Value, Value]:
        """x less its mean, over its standard deviation; and the latter."""
        d = x - m.sum(x) / m.width(x)
        std = m.sqrt(m.sum(d * d) / m.width(x) + self.eps)
        return d / std, std


__all__ = ["Loss", "Operation", "Pointwise", "Rows", "registered", *OPERATIONS]  # pyright: ignore
