"""Networks: a stack of layers that ends in a loss (§3.4, §4.5, §5.7)."""

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterator, MutableMapping, Sequence
from functools import cache
from typing import Any

from xnet.backend import (
    Array,
    Backend,
    Stack,
    dtype_name,
    float_dtype,
    owner_of,
    resolve,
    use_backend,
)
from xnet.errors import BackendError, NaiveGradientWarning
from xnet.gradient import checked_step, numerical_gradient
from xnet.layers import ACTIVATIONS, Affine, Layer, LossLayer, ReLU, Sigmoid, SoftmaxWithLoss
from xnet.losses import batch_and_targets, targets_for
from xnet.optimizers import SGD, Optimizer


class Parameters(MutableMapping[str, Array]):
    """A network's live parameters by name: W1, b1, W2, ...

    Setting one gives it those numbers: they are written to the layer's own array or, where a
    backend's arrays cannot be written, replace it. Shape, dtype and device stay what they were.
    """

    def __init__(self, network: "Network") -> None:
        self._network = network
        parametrised = [layer for layer in network.layers if layer.params]
        self._places = {
            f"{name}{number}": (layer, name)
            for number, layer in enumerate(parametrised, start=1)
            for name in layer.params
        }

    def __getitem__(self, key: str) -> Array:
        layer, name = self._places[key]
        return getattr(layer, name)

    def __setitem__(self, key: str, value: Array) -> None:
        layer, name = self._places[key]
        old = getattr(layer, name)
        if not self._network.backend.owns(value):
            raise BackendError(
                f"params[{key!r}] is a {type(value).__name__}, expected an array of backend "
                f"{self._network.backend.label}"
            )
        if value.shape != old.shape or value.dtype != old.dtype:
            raise ValueError(
                f"params[{key!r}] is {dtype_name(value.dtype)} {tuple(value.shape)}, "
                f"expected {dtype_name(old.dtype)} {tuple(old.shape)}"
            )
        setattr(layer, name, self._network.backend.overwrite(old, value))

    def __delitem__(self, key: str) -> None:
        raise TypeError("a network's parameters can be replaced, not deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"Parameters({ {name: tuple(array.shape) for name, array in self.items()} })"

    def keep(self, kept: dict[str, Array]) -> None:
        """Have `kept` hold these numbers, whatever is written to the parameters then."""
        backend = self._network.backend
        for name, W in self.items():
            old = kept.get(name)
            new = backend.xp.asarray(W, copy=True) if old is None else backend.overwrite(old, W)
            kept[name] = new

    def restore(self, kept: dict[str, Array]) -> None:
        """Put back what `keep` kept, in full even if Ctrl-C comes meanwhile."""
        try:
            self.update(kept)
        except KeyboardInterrupt:
            self.update(kept)
            raise

    def gradients(self) -> dict[str, Array]:
        """What the layers' last `backward` found, by the same names."""
        return {key: layer.grads[name] for key, (layer, name) in self._places.items()}


class Network:
    """A stack of layers on one backend.

    Parameters
    ----------
    layers
        From input to scores. Those that have no parameters yet get them here.
    loss
        What turns scores into predictions and a loss; softmax with cross-entropy by default.
    seed
        For the initial parameters: an int, a `numpy.random.Generator`, or None for fresh ones
        every time.
    dtype
        ``"float32"`` or ``"float64"``; None takes that of the parameters given with
        `Affine.from_params`, else float64.
    backend
        Name or `Backend`; None for the current one. The network stays there until `to`.

    Notes
    -----
    The layers become the network's own; it trains copies of the arrays they came with. Predictions
    can be asked for by many threads at once; training, and `gradient`, take one thread, for the
    layers remember.

    NumPy arrays and nested lists handed to the methods below are moved to the network's backend
    and dtype: that is the one door. Arrays of another device are an error.

    Raises
    ------
    BackendError
        The backend is unknown or unusable.
    ValueError
        No layers, sizes of neighbouring layers that do not fit, or an unusable dtype.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        loss: LossLayer | None = None,
        *,
        seed: Any = 0,
        dtype: Any = None,
        backend: str | Backend | None = None,
    ) -> None:
        # Random numbers come from the host on every backend: here NumPy itself is the point.
        import numpy as np

        if not layers:
            raise ValueError("Network: layers is empty, expected at least one")
        for index, layer in enumerate(layers):
            _check_instance(f"layers[{index}]", layer, Layer)
        if loss is not None:
            _check_instance("loss", loss, LossLayer)
        self.layers = list(layers)
        self.loss_layer = SoftmaxWithLoss() if loss is None else loss
        self._kept_plan: _Plan | None = None
        self._before_step: dict[str, Array] = {}
        self.backend = resolve(backend)
        given = [array for layer in layers for array in layer.params.values() if array is not None]
        self.dtype = float_dtype(dtype or _common_dtype(given))
        self._check_sizes()
        rng = np.random.default_rng(seed)
        with self._running():
            for layer in self.layers:
                if isinstance(layer, Affine) and layer.W is None:
                    layer.initialize(rng, self.dtype, self.backend)
            self._params = Parameters(self)
            self._move_parameters(self._own_copy)

    def _check_sizes(self) -> None:
        features = None
        for index, layer in enumerate(self.layers):
            # A layer remembers one input: its first backward would use the second place's.
            if any(layer is earlier for earlier in self.layers[:index]):
                raise ValueError(f"layers[{index}]: {layer} stands at two places of the network")
            if isinstance(layer, Affine):
                if features is not None and features != layer.inputs:
                    raise ValueError(
                        f"layers[{index}]: {layer} takes {layer.inputs} features, "
                        f"the layers before it give {features}"
                    )
                features = layer.outputs

    @contextlib.contextmanager
    def _running(self) -> Generator[None]:
        """Block in which this network's backend is current, on its device."""
        with use_backend(self.backend), self.backend.running():
            yield

    def host_to_backend(self, values: Any, name: str, dtype: Any = None) -> Array:
        """`values` on this network's backend: the one door, for NumPy arrays and lists alone.

        Raises
        ------
        BackendError
            `values` is an array of another device.
        """
        if not isinstance(values, list | tuple | int | float) and not self.backend.owns(values):
            owner = owner_of(values, name)
            if not resolve("numpy").owns(values):
                raise BackendError(
                    f"the network is on {self.backend.label}, {name} is on {owner.label}: move "
                    f'the network with net.to("{owner.label}"), or the array with '
                    "net.backend.asarray(...)"
                )
        with self.backend.running():
            return self.backend.asarray(values, dtype)

    def _batch(self, x: Any, t: Any) -> tuple[Array, Array]:
        """A batch and its labels on this network's backend."""
        plan, owns = self._kept_plan, self.backend.owns
        if not (plan and owns(x) and x.ndim and x.dtype == plan.dtype):
            x = self.host_to_backend(x, "x", self.dtype)
        if not (owns(t) and t.ndim):
            t = self.host_to_backend(t, "t")
        if x.ndim and x.shape[0] == 0:
            raise ValueError(f"x has shape {tuple(x.shape)}: the batch is empty")
        return x, t

    def _move_parameters(self, move: Callable[[Array], Array]) -> None:
        moved = [
            (layer, name, move(array))
            for layer in self.layers
            for name, array in layer.params.items()
        ]
        for layer, name, array in moved:  # all of them or, if one cannot be moved, none
            setattr(layer, name, array)

    def _own_copy(self, array: Array) -> Array:
        """A parameter as this network's own: training writes to it, and not to what was given."""
        here = self.host_to_backend(array, "W", self.dtype)
        return self.backend.xp.asarray(here, copy=True)

    @property
    def params(self) -> Parameters:
        """The live parameters: W1, b1, W2, ... Set one by its name."""
        return self._params

    def to(self, backend: str | Backend) -> "Network":
        """Move this network to another backend; returns the network itself.

        A name keeps the network's mode, reproducible or fast; a `Backend` brings its own.

        Raises
        ------
        BackendError
            The backend is unknown or unusable; the network stays where it was.
        """
        mode = None if isinstance(backend, Backend) else self.backend.reproducible
        target = resolve(backend, mode)
        self._move_parameters(target.asarray)
        self._kept_plan, self._before_step = None, {}
        self.backend = target
        return self

    @property
    def inputs(self) -> int | None:
        """Features per sample that the first `Affine` expects; None if there is none."""
        return next((layer.inputs for layer in self.layers if isinstance(layer, Affine)), None)

    def scores(self, x: Any) -> Array:
        """What enters the loss layer: (N, C) from x (N, D), or (C,) from one sample (D,).

        Raises
        ------
        ValueError
            x does not have the features that the first layer expects.
        BackendError
            x is on another device.
        """
        return self._evaluate(x, probabilities=False)

    def _evaluate(self, x: Any, probabilities: bool) -> Array:
        """`scores` or, with `probabilities`, `predict`: in one call of the backend if it can be."""
        plan = self._kept_plan  # as `_plan_kept`, without a call: this is all of a small prediction
        if plan is None or not plan.describes(self):
            plan = self._plan()
        if plan is None:
            with self._running():
                x = self._scores(self.host_to_backend(x, "x", self.dtype))
                return self.loss_layer(x) if probabilities else x
        backend = self.backend
        here = backend.owns(x) and x.dtype == plan.dtype
        if here and x.ndim == 2 and x.shape[1] == plan.inputs:
            out = backend.forward(x, plan.stack, probabilities and plan.softmax)
        else:
            if not here:
                x = self.host_to_backend(x, "x", self.dtype)
            rows = plan.first.flattened(x)
            out = backend.forward(rows, plan.stack, probabilities and plan.softmax)
            if x.ndim == 1:
                out = out[0, ...]
        if probabilities and not plan.softmax:
            with self._running():
                return self.loss_layer(out)
        return out

    def __getstate__(self) -> dict[str, Any]:
        # A plan may hold addresses of this network's arrays: a copy must make its own.
        return vars(self) | {"_kept_plan": None, "_before_step": {}}

    def _plan_kept(self) -> "_Plan | None":
        plan = self._kept_plan
        return plan if plan is not None and plan.describes(self) else self._plan()

    def _plan(self) -> "_Plan | None":
        """The layers as one stack of kernels, None if one of them may be anything else.

        One that lasts is kept until a layer or a parameter is replaced.
        """
        plan = _Plan(self) if _Plan.possible(self) else None
        self._kept_plan = plan if plan is not None and plan.lasts else None
        return plan

    def _scores(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x

    def predict(self, x: Any) -> Array:
        """What the network says of x: probabilities after softmax, outputs after identity.

        Parameters
        ----------
        x
            (N, D) or one sample (D,); cast to the network's dtype.

        Returns
        -------
        Array
            (N, C) or (C,), on the network's backend, of its dtype.

        Raises
        ------
        ValueError
            x does not have the features that the first layer expects.
        BackendError
            x is on another device.
        """
        return self._evaluate(x, probabilities=True)

    def loss(self, x: Any, t: Any) -> float:
        """Loss of the network on x (N, D) with labels t, averaged over the batch.

        Parameters
        ----------
        x
            (N, D), N at least 1, or one sample (D,).
        t
            Class indices (N,), or one-hot or targets (N, C); for one sample () or (C,).

        Raises
        ------
        ValueError
            Shapes that do not fit, a label out of range, an empty batch.
        BackendError
            An array on another device.
        """
        with self._running():
            x, t = self._batch(x, t)
            return float(self.loss_layer.forward(self._evaluate(x, probabilities=False), t))

    def accuracy(self, x: Any, t: Any) -> float:
        """Share of the samples whose most probable class is the labelled one.

        Parameters and errors as in `loss`.
        """
        with self._running():
            x, t = self._batch(x, t)
            backend, y, targets = batch_and_targets(self._evaluate(x, probabilities=True), t)
            xp = backend.xp
            right = xp.argmax(y, axis=1) == xp.argmax(targets, axis=1)
            return int(xp.sum(xp.astype(right, xp.int64))) / y.shape[0]

    def gradient(self, x: Any, t: Any) -> dict[str, Array]:
        """Gradients of the loss by every parameter, by backpropagation (§5.7).

        Parameters and errors as in `loss`.

        Returns
        -------
        dict
            The keys and shapes of `params`.
        """
        return self.loss_and_gradient(x, t)[1]

    def loss_and_gradient(self, x: Any, t: Any) -> tuple[float, dict[str, Array]]:
        """`loss` and `gradient` from the same forward pass."""
        with self._running():
            x, t = self._batch(x, t)
            plan = self._plan_kept()
            if plan is not None and plan.loss:
                return self._planned_gradient(plan, x, t)
            for layer in self.layers:
                x = layer.forward(x)
            loss = float(self.loss_layer.forward(x, t))
            dout = self.loss_layer.backward()
            first, *others = self.layers
            for layer in reversed(others):
                dout = layer.backward(dout)
            if isinstance(first, Affine) and _speaks_for(first, "backward_of_first", "backward"):
                first.backward_of_first(dout)
            else:
                first.backward(dout)
            return loss, self.params.gradients()

    def _planned_gradient(
        self, plan: "_Plan", x: Array, t: Array
    ) -> tuple[float, dict[str, Array]]:
        """`loss_and_gradient` in one call of the backend."""
        loss, found = self.backend.loss_and_gradients(*plan.batch(x, t), plan.stack, plan.loss)
        for (layer, _, _), (dW, db) in zip(plan.affine, found, strict=True):
            layer.dW, layer.db = dW, db
        return float(loss), self.params.gradients()

    def train_step(self, x: Any, t: Any, optimizer: Optimizer) -> float:
        """One training step: the loss, its gradient by backpropagation, and the optimizer's update.

        Ctrl-C, or an error in the optimizer, leaves the parameters as they were before it.

        Parameters
        ----------
        x, t
            As in `loss`.
        optimizer
            Plain `SGD` is part of the backend's call where its arrays can be written.

        Returns
        -------
        float
            The loss before the update.

        Raises
        ------
        ValueError, BackendError
            As in `loss`.
        """
        with self._running():
            x, t = self._batch(x, t)
            plan = self._plan_kept() if type(optimizer) is SGD else None
            if plan is not None and plan.loss:
                batch = plan.batch(x, t)
                loss = self.backend.train_step(*batch, plan.stack, plan.loss, optimizer.lr)
                if loss is not None:
                    return float(loss)
            loss, gradients = self.loss_and_gradient(x, t)
            self.update(optimizer, gradients)
            return loss

    def update(self, optimizer: Optimizer, gradients: dict[str, Array]) -> None:
        """Have the optimizer take a step, in full or, if Ctrl-C or an error comes, not at all."""
        with self._running():
            self.params.keep(self._before_step)
            try:
                optimizer.update(self.params, gradients)
            except BaseException:
                self.params.restore(self._before_step)
                raise

    def numerical_gradient(
        self, x: Any, t: Any, h: float | None = None, *, method: str | None = None
    ) -> dict[str, Array]:
        """Gradients of the loss by every parameter, by central differences (§4.5.1).

        Two losses are evaluated for every parameter, each at the perturbed parameter itself.

        Parameters
        ----------
        x, t
            As in `loss`.
        h
            Step; None for the one that suits the network's dtype, 1e-4 for float64; see
            `xnet.gradient.numerical_gradient`.
        method
            ``"naive"`` evaluates every loss from the beginning, as the notes do.
            ``"incremental"`` re-evaluates only what a perturbation changes. None takes
            incremental where the layers allow it, which xnet's own all do, and warns where not.

        Returns
        -------
        dict
            The keys and shapes of `params`.

        Raises
        ------
        ValueError
            As in `loss`; float32 with an h below 1e-3; an unknown method; or incremental for a
            layer or loss that does not allow it.

        Warns
        -----
        NaiveGradientWarning
            No method was named, and a layer or loss does not allow incremental.
        """
        if method not in (None, "naive", "incremental"):
            raise ValueError(f"method is {method!r}, expected 'naive', 'incremental' or None")
        h = checked_step(h, self.dtype)
        obstacle = self._obstacle()
        if method == "incremental" and obstacle is not None:
            raise ValueError(
                f"method='incremental': {obstacle} may mix rows or is none of xnet's own; "
                "use method='naive'"
            )
        if method is None and obstacle is not None:
            warnings.warn(
                f"{obstacle} may mix rows or is none of xnet's own: every loss is evaluated from "
                "the beginning, hundreds of times slower; method='naive' accepts that",
                NaiveGradientWarning,
                stacklevel=2,
            )
        with self._running():
            x, t = self._batch(x, t)
            if method == "naive" or obstacle is not None:
                return {
                    name: numerical_gradient(lambda _: self.loss(x, t), array, h)
                    for name, array in self.params.items()
                }
            return self._incremental_gradient(x, t, h)

    def _obstacle(self) -> Layer | LossLayer | None:
        """The first layer, or the loss, of which it is not known what a perturbed row changes."""
        if self.loss_layer.row_loss is None or not _speaks_for(self.loss_layer, "row_loss"):
            return self.loss_layer
        layers = (v for v in self.layers if v.step() is None or not _speaks_for(v, "step"))
        return next(layers, None)

    def _incremental_gradient(self, x: Array, t: Array, h: float) -> dict[str, Array]:
        xp = self.backend.xp
        if x.ndim == 1:
            x, t = xp.expand_dims(x, axis=0), xp.expand_dims(t, axis=0)
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        _, _, targets = batch_and_targets(outputs[-1], t)
        loss = self.loss_layer.row_loss or ""
        gradients: list[Array] = []
        for k, layer in enumerate(self.layers):
            if isinstance(layer, Affine):
                inputs = xp.reshape(outputs[k], (x.shape[0], -1))
                steps = [later.step() or () for later in self.layers[k + 1 :]]
                differences = self.backend.loss_differences(
                    inputs, outputs[k + 1], steps, loss, targets, h
                ) / (2 * h)
                gradients += [differences[:-1, :], differences[-1, :]]
        return dict(zip(self.params, gradients, strict=True))

    def __repr__(self) -> str:
        layers = ", ".join(map(repr, self.layers))
        return (
            f"{type(self).__name__}([{layers}], {self.loss_layer}, "
            f"dtype={self.dtype}, backend={self.backend.label})"
        )


class _Plan:
    """A network's layers and parameters at one time, as the backend's fused kernels take them."""

    def __init__(self, network: Network) -> None:
        self.layers = list(network.layers)
        self.backend, self.loss_layer = network.backend, network.loss_layer
        self.affine = [(v, v.W, v.b) for v in self.layers if isinstance(v, Affine)]
        self.first = self.affine[0][0]
        self.dtype, self.inputs = self.first.W.dtype, self.first.inputs
        self.softmax = type(self.loss_layer).__call__ is SoftmaxWithLoss.__call__
        self.stack = Stack([layer.step() or () for layer in self.layers])
        self.classes = self.affine[-1][0].outputs
        fusible = all(_speaks_for(v, "step", "backward", "grads") for v in self.layers)
        fusible = fusible and _speaks_for(self.loss_layer, "row_loss", "backward")
        known = all(type(v).step in _OWN_STEPS for v in self.layers)
        self.loss = (self.loss_layer.row_loss if fusible and known else None) or ""
        """As `Backend.loss_and_gradients` calls it; empty if the layers may compute another."""
        # What a layer of a user's own makes of its parameters may change with every call.
        self.lasts = known

    def batch(self, x: Array, t: Array) -> tuple[Array, Array]:
        """A batch (N, D) and its targets (N, C), checked."""
        if x.ndim == 1:
            x, t = x[None, ...], t[None, ...]
        x = self.first.flattened(x)
        return x, targets_for(self.backend, t, (x.shape[0], self.classes), x.dtype)

    @staticmethod
    def possible(network: Network) -> bool:
        """Whether the layers are kernels of the backend, with arrays that fit each other."""
        features, dtype = None, None
        for layer in network.layers:
            step = layer.step() if _speaks_for(layer, "step") else None
            if step is None:
                return False
            if isinstance(layer, Affine):
                _, W, b = step
                if W.ndim != 2 or features not in (None, W.shape[0]) or b.shape != W.shape[1:]:
                    return False
                if W is not layer.W or not W.dtype == b.dtype == (
                    W.dtype if features is None else dtype
                ):
                    return False
                features, dtype = W.shape[1], W.dtype
        return isinstance(network.layers[0], Affine)

    def describes(self, network: Network) -> bool:
        """Whether the network is still made of the same layers and arrays."""
        for layer, W, b in self.affine:
            if layer.W is not W or layer.b is not b:
                return False
        if network.layers != self.layers or network.backend is not self.backend:
            return False
        return network.loss_layer is self.loss_layer


_OWN_STEPS = (Affine.step, ReLU.step, Sigmoid.step)


def _speaks_for(layer: Layer | LossLayer, name: str, *others: str) -> bool:
    """Whether the layer's `name` describes what it computes, which a subclass may have changed.

    That is, whether no subclass has a `__call__`, a `forward` or one of the `others` of its own.
    """
    return _class_speaks_for(type(layer), name, others)


@cache
def _class_speaks_for(layer: type[Any], name: str, others: tuple[str, ...]) -> bool:
    computing = {"__call__", "forward", *others}
    cls = next(c for c in layer.__mro__ if vars(c).keys() & {name, *computing})
    return name in vars(cls)


def _check_instance(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        what = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise TypeError(f"{name} is {what}, expected a {kind.__name__} object")


def _common_dtype(arrays: list[Array]) -> str:
    """The one dtype of `arrays`, float64 if there are none."""
    found = {dtype_name(array.dtype) for array in arrays} or {"float64"}
    if len(found) > 1:
        raise ValueError(f"layers have parameters of {' and '.join(sorted(found))}: name a dtype")
    return found.pop()


class TwoLayerNet(Network):
    """Affine, activation, Affine, softmax with loss: the network of §4.5 and §5.7.

    Parameters
    ----------
    input_size, hidden_size, output_size
        Features in, hidden units, classes.
    weight_init_std
        Standard deviation of the initial weights: a number, ``"he"`` or ``"xavier"``.
    activation
        ``"sigmoid"`` or ``"relu"``.
    seed, dtype, backend
        As in `Network`.

    Raises
    ------
    ValueError
        A size below 1, or an unknown name.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        weight_init_std: float | str = 0.01,
        activation: str = "sigmoid",
        seed: Any = 0,
        dtype: Any = "float64",
        backend: str | Backend | None = None,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}"
            )
        layers = [
            Affine(input_size, hidden_size, weight_init_std),
            ACTIVATIONS[activation](),
            Affine(hidden_size, output_size, weight_init_std),
        ]
        super().__init__(layers, SoftmaxWithLoss(), seed=seed, dtype=dtype, backend=backend)
