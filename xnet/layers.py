"""Layers with forward and backward: the nodes of a computational graph (§5.4-§5.6).

A layer is called for its output alone, ``layer(x)``. `forward` gives the same and remembers what
`backward` will need; `backward` takes the gradient of the loss by the layer's output and returns
the gradient by its input. No layer changes an array it is handed.
"""

import math
from typing import Any, ClassVar

from xnet.activations import relu, sigmoid, softmax
from xnet.backend import Array, Backend, backend_of, dtype_name, float_dtype
from xnet.losses import batch_and_targets, mean_squared_error
from xnet.perturbation import Step


class Mul:
    """Product of two numbers or arrays of one shape (§5.4.1)."""

    x: Any = None
    y: Any = None

    def forward(self, x: Any, y: Any) -> Any:
        """X times y."""
        _check_one_shape(self, x, y)
        self.x, self.y = x, y
        return x * y

    def backward(self, dout: Any) -> tuple[Any, Any]:
        """Gradients by x and y: `dout` times the other one."""
        return dout * _remembered(self, self.y), dout * self.x


class Add:
    """Sum of two numbers or arrays of one shape (§5.4.2)."""

    def forward(self, x: Any, y: Any) -> Any:
        """X plus y."""
        _check_one_shape(self, x, y)
        return x + y

    def backward(self, dout: Any) -> tuple[Any, Any]:
        """Gradients by x and y: `dout` for both."""
        return dout * 1, dout * 1


class Layer:
    """One step of a network: from (N, D) to (N, M), or for one sample from (D,) to (M,)."""

    def __call__(self, x: Array) -> Array:
        """The layer's output; nothing is remembered, so any number of threads may call."""
        raise NotImplementedError

    def forward(self, x: Array) -> Array:
        """The layer's output, remembering what `backward` needs."""
        raise NotImplementedError

    def backward(self, dout: Array) -> Array:
        """Gradient by the input of the last `forward`; `dout` has the shape of its output."""
        raise NotImplementedError

    def step(self) -> Step | None:
        """The backend's kernel that this layer is, if it treats every row on its own.

        ``("affine", W, b)``, or the name of an elementwise kernel alone. None keeps a network
        from re-evaluating only what a perturbed weight changes.
        """
        return None

    @property
    def params(self) -> dict[str, Array]:
        """The arrays that training changes, by name."""
        return {}

    @property
    def grads(self) -> dict[str, Array]:
        """The gradients by `params` that the last `backward` found."""
        return {}

    def config(self) -> dict[str, Any]:
        """Arguments that make a layer like this one, its parameters aside."""
        return {}

    def __repr__(self) -> str:
        arguments = ", ".join(str(value) for value in self.config().values())
        return f"{type(self).__name__}({arguments})"


def _check_one_shape(layer: object, x: Any, y: Any) -> None:
    """Refuse arrays of two shapes: broadcast, their gradients would not have those shapes."""
    shapes = [tuple(getattr(value, "shape", ())) for value in (x, y)]
    if shapes[0] != shapes[1]:
        name = type(layer).__name__
        raise ValueError(f"{name}: x has shape {shapes[0]}, y has {shapes[1]}, expected one shape")


def _remembered(layer: object, value: Array) -> Array:
    """`value`, which the layer's `forward` leaves for `backward`."""
    if value is None:
        raise RuntimeError(f"{type(layer).__name__}: backward was called before forward")
    return value


def _check_gradient(layer: Layer, dout: Array, shape: tuple[int, ...], dtype: Any = None) -> None:
    """Refuse a `dout` that has not the `shape` and `dtype` of the layer's output."""
    if tuple(dout.shape) != tuple(shape):
        raise ValueError(
            f"{type(layer).__name__}: dout has shape {tuple(dout.shape)}, expected {tuple(shape)}"
        )
    if dtype is not None and dout.dtype != dtype:
        raise ValueError(
            f"{type(layer).__name__}: dout is {dtype_name(dout.dtype)}, "
            f"expected {dtype_name(dtype)}"
        )


class Affine(Layer):
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

    Notes
    -----
    The parameters come into being when a `Network` takes the layer, or `initialize` is called.

    Raises
    ------
    ValueError
        A size below 1, or an unknown `weight_init_std`.
    """

    def __init__(self, inputs: int, outputs: int, weight_init_std: float | str = 0.01) -> None:
        for name, size in {"inputs": inputs, "outputs": outputs}.items():
            if size < 1:
                raise ValueError(f"Affine: {name} is {size}, expected at least 1")
        self.inputs, self.outputs = inputs, outputs
        self.weight_init_std = weight_init_std
        self._initial_std()  # an unknown name fails here, not when the network is built
        self.W: Array = None
        self.b: Array = None
        self.dW: Array = None
        self.db: Array = None
        self.x: Array = None

    @classmethod
    def from_params(cls, W: Array, b: Array) -> "Affine":
        """A layer with these parameters, W (D, M) and b (M,), both float32 or both float64.

        Raises
        ------
        ValueError
            Shapes or dtypes that do not fit each other.
        """
        backend_of(W=W, b=b)
        if W.ndim != 2 or 0 in W.shape:
            raise ValueError(f"Affine: W has shape {tuple(W.shape)}, expected (D, M)")
        if tuple(b.shape) != (W.shape[1],):
            raise ValueError(
                f"Affine: b has shape {tuple(b.shape)}, expected ({W.shape[1]},) for W's columns"
            )
        if float_dtype(W.dtype, "dtype of W") != float_dtype(b.dtype, "dtype of b"):
            raise ValueError(f"Affine: W is {dtype_name(W.dtype)}, b is {dtype_name(b.dtype)}")
        layer = cls(int(W.shape[0]), int(W.shape[1]))
        layer.W, layer.b = W, b
        return layer

    def _initial_std(self) -> float:
        std = self.weight_init_std
        if std == "he":
            return math.sqrt(2 / self.inputs)
        if std == "xavier":
            return math.sqrt(2 / (self.inputs + self.outputs))
        if isinstance(std, str) or not (math.isfinite(std) and std >= 0):
            raise ValueError(
                f"weight_init_std is {std!r}, expected a number of at least 0, 'he' or 'xavier'"
            )
        return float(std)

    def initialize(self, rng: Any, dtype: Any, backend: Backend) -> None:
        """Draw the parameters, on the host by the `numpy.random.Generator` `rng`."""
        values = self._initial_std() * rng.standard_normal((self.inputs, self.outputs))
        self.W = backend.asarray(values, dtype)
        self.b = backend.asarray([0.0] * self.outputs, dtype)

    def __call__(self, x: Array) -> Array:
        if self.W is None:
            raise RuntimeError(
                f"{self} has no parameters yet: put it in a Network, call initialize, "
                "or make it with Affine.from_params"
            )
        backend = backend_of(x=x, W=self.W)
        with backend.running():
            out = backend.affine(self.flattened(x), self.W, self.b)
            return out[0, ...] if x.ndim == 1 else out

    def forward(self, x: Array) -> Array:
        out = self(x)
        self.x = x
        return out

    def backward(self, dout: Array) -> Array:
        backend, rows = self._rows(dout)
        with backend.running():
            dx, self.dW, self.db = backend.affine_backward(rows, self.flattened(self.x), self.W)
            return backend.xp.reshape(dx, self.x.shape)

    def backward_of_first(self, dout: Array) -> None:
        """As `backward`, without the gradient by x, which nobody asks of a first layer."""
        backend, rows = self._rows(dout)
        with backend.running():
            self.dW, self.db = backend.affine_gradients(rows, self.flattened(self.x))

    def _rows(self, dout: Array) -> tuple[Backend, Array]:
        """`dout` as (N, M), checked against the last `forward`, with the backend that owns it."""
        x = _remembered(self, self.x)
        backend = backend_of(dout=dout, W=self.W)
        _check_gradient(self, dout, (*x.shape[: x.ndim > 1], self.outputs), self.W.dtype)
        with backend.running():
            return backend, backend.xp.reshape(dout, (-1, self.outputs))

    def flattened(self, x: Array) -> Array:
        """`x` as (N, D), checked against W."""
        if x.ndim == 0:
            raise ValueError(f"Affine: x has shape (), expected ({self.inputs},) or (N, ...)")
        features = math.prod(x.shape[1:]) if x.ndim > 1 else x.shape[0]
        if features != self.inputs:
            raise ValueError(f"Affine: x has {features} features, W expects {self.inputs}")
        if x.dtype != self.W.dtype:
            raise ValueError(
                f"Affine: x is {dtype_name(x.dtype)}, W is {dtype_name(self.W.dtype)}; "
                "nothing is converted silently"
            )
        if x.ndim == 2:
            return x
        shape = (1 if x.ndim == 1 else x.shape[0], self.inputs)
        return backend_of(x=x).xp.reshape(x, shape)

    def step(self) -> Step:
        return "affine", self.W, self.b

    @property
    def params(self) -> dict[str, Array]:
        """W (D, M) and b (M,)."""
        return {"W": self.W, "b": self.b}

    @property
    def grads(self) -> dict[str, Array]:
        """Gradients by W (D, M) and b (M,)."""
        return {"W": self.dW, "b": self.db}

    def config(self) -> dict[str, Any]:
        """The sizes."""
        return {"inputs": self.inputs, "outputs": self.outputs}


class ReLU(Layer):
    """Rectified linear unit max(0, x) (§5.5.1)."""

    mask: Array = None
    """Where the input of the last `forward` was <= 0: bool."""

    def __call__(self, x: Array) -> Array:
        return relu(x)

    def step(self) -> Step:
        return ("relu",)

    def forward(self, x: Array) -> Array:
        out = self(x)
        with backend_of(x=x).running():
            self.mask = x <= 0
        return out

    def backward(self, dout: Array) -> Array:
        mask = _remembered(self, self.mask)
        backend = backend_of(dout=dout, mask=mask)
        _check_gradient(self, dout, mask.shape)
        return backend.relu_backward(dout, mask)


class Sigmoid(Layer):
    """Sigmoid 1 / (1 + exp(-x)) (§5.5.2)."""

    y: Array = None
    """Output of the last `forward`."""

    def __call__(self, x: Array) -> Array:
        return sigmoid(x)

    def step(self) -> Step:
        return ("sigmoid",)

    def forward(self, x: Array) -> Array:
        self.y = self(x)
        return self.y

    def backward(self, dout: Array) -> Array:
        y = _remembered(self, self.y)
        backend = backend_of(dout=dout, y=y)
        _check_gradient(self, dout, y.shape, y.dtype)
        return backend.sigmoid_backward(dout, y)


class LossLayer:
    """The end of a network: from scores (N, C) and labels to one number, averaged over N.

    Called with the scores alone it gives what the network predicts.
    """

    row_loss: ClassVar[str | None] = None
    """What `Backend.row_losses` calls this loss; None if it is none of those."""

    y: Array = None
    """Predictions of the last `forward`, (N, C)."""
    t: Array = None
    """Targets of the last `forward`, (N, C), of y's dtype."""
    shape: tuple[int, ...] = ()

    def __call__(self, x: Array) -> Array:
        """Predictions from scores (C,) or (N, C)."""
        raise NotImplementedError

    def forward(self, x: Array, t: Array) -> Array:
        """The loss, 0-d, of scores x (C,) or (N, C); labels t as the functions in `losses`."""
        raise NotImplementedError

    def backward(self, dout: float = 1.0) -> Array:
        """Gradient by the scores of the last `forward`, in their shape, times `dout`."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class SoftmaxWithLoss(LossLayer):
    """Softmax followed by the cross-entropy error (§5.6.3), for classification.

    Notes
    -----
    `backward` is the derivative of the loss as it is computed, 1e-7 in the logarithm included;
    the book's (y - t) / N leaves that out. The two differ by a factor y / (y + 1e-7) of the
    right class's probability y, where t is one-hot.
    """

    row_loss = "cross_entropy"

    def __call__(self, x: Array) -> Array:
        return softmax(x)

    def forward(self, x: Array, t: Array) -> Array:
        backend, rows, self.t = batch_and_targets(x, t)
        loss, self.y = backend.softmax_with_loss(rows, self.t)
        self.shape = x.shape
        return loss

    def backward(self, dout: float = 1.0) -> Array:
        y = _remembered(self, self.y)
        backend = backend_of(y=y)
        with backend.running():
            dx = backend.softmax_with_loss_backward(y, self.t, float(dout))
            return backend.xp.reshape(dx, self.shape)


class IdentityWithLoss(LossLayer):
    """Identity followed by the mean squared error (§3.5.2, §4.2.1), for regression."""

    row_loss = "squared_error"

    def __call__(self, x: Array) -> Array:
        return x

    def forward(self, x: Array, t: Array) -> Array:
        _, self.y, self.t = batch_and_targets(x, t)
        self.shape = x.shape
        return mean_squared_error(self.y, self.t)

    def backward(self, dout: float = 1.0) -> Array:
        y = _remembered(self, self.y)
        backend = backend_of(y=y)
        with backend.running():
            dx = (y - self.t) * (float(dout) / y.shape[0])
            return backend.xp.reshape(dx, self.shape)


LAYERS: dict[str, type[Layer]] = {cls.__name__: cls for cls in (Affine, ReLU, Sigmoid)}
LOSSES: dict[str, type[LossLayer]] = {
    cls.__name__: cls for cls in (SoftmaxWithLoss, IdentityWithLoss)
}
ACTIVATIONS: dict[str, type[Layer]] = {"sigmoid": Sigmoid, "relu": ReLU}
