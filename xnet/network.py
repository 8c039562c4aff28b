"""Networks: a stack of layers that ends in a loss (§3.4, §4.5, §5.7)."""

import contextlib
import warnings
import weakref
from collections.abc import (
    Callable,
    Generator,
    ItemsView,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
)
from functools import partial
from threading import RLock
from typing import Any, cast

from xnet import notebook
from xnet.arguments import moved
from xnet.arithmetic import sound
from xnet.arrays import labels, weights_of
from xnet.backend import Array, Backend, Current, resolve
from xnet.dtypes import described, float_dtype, name_of
from xnet.errors import BackendError, NaiveGradientWarning
from xnet.gradient import checked_step, incremental_gradient, numerical_gradient
from xnet.layers import Layer, LossLayer, Places, layer_class, named, numbered
from xnet.losses import targets_for
from xnet.measures import hits
from xnet.operations import Affine, Loss, Operation, SoftmaxWithLoss
from xnet.optimizers import Optimizer
from xnet.plan import Part, Plan, door, is_plain, outputs
from xnet.rows import staying

__all__ = ["Layers", "Network", "Parameters", "TwoLayerNet"]


class Parameters(MutableMapping[str, Array]):
    """A network's live parameters by name: W1, b1, W2, ..., whatever its layers are by now.

    A name's number counts the layers that have a parameter of that name. Setting one gives it those
    numbers: they are written to the layer's own array or, where a backend's arrays cannot be
    written, replace it. Shape, dtype and device stay what they were.

    Examples
    --------
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2)
    >>> net.params
    Parameters({'W1': (2, 3), 'b1': (3,), 'W2': (3, 2), 'b2': (2,)})
    >>> net.params["b1"] = net.backend.xp.ones(3)
    >>> net.layers[0].b.tolist()
    [1.0, 1.0, 1.0]
    """

    def __init__(self, network: "Network", kind: str = "params") -> None:
        self.network, self._kind = network, kind

    def places(self) -> Places:
        """Of each, the layer's own dictionary that holds it, and its name there."""
        return numbered(self.network.layers, self._kind)

    def __getitem__(self, key: str) -> Array:
        arrays, name = self.places()[key]
        return arrays[name]

    def __setitem__(self, key: str, value: Array) -> None:
        arrays, name = self.places()[key]
        old, backend = arrays[name], self.network.backend
        if not backend.owns(value):
            raise BackendError(
                f"params[{key!r}] is a {type(value).__name__}, expected an array of backend "
                f"{backend.label}"
            )
        if value.shape != old.shape or value.dtype != old.dtype:
            raise ValueError(f"params[{key!r}] is {described(value)}, expected {described(old)}")
        if backend.writable(old):
            old[...] = value
        else:
            arrays[name] = value

    def __delitem__(self, key: str) -> None:
        raise TypeError("a network's parameters can be replaced, not deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self.places())

    def __len__(self) -> int:
        return len(self.places())

    def items(self) -> ItemsView[str, Array]:
        """Names and arrays."""
        return {key: arrays[name] for key, (arrays, name) in self.places().items()}.items()

    def __repr__(self) -> str:
        return f"Parameters({ {name: tuple(array.shape) for name, array in self.items()} })"

    def keep(self, kept: dict[str, Array]) -> None:
        """Have `kept` hold copies of these numbers, whatever is written to the parameters then."""
        xp = self.network.backend.xp
        kept.update({name: xp.asarray(W, copy=True) for name, W in self.items()})

    def writing(self, values: Mapping[str, Array]) -> list[tuple[Any, Any, Array]]:
        """What `assign` takes to give them these numbers, such as `keep` kept, all at once."""
        writable = self.network.backend.writable
        found: list[tuple[Any, Any, Array]] = []
        for name, (arrays, key) in self.places().items():
            W, value = arrays[key], values[name]
            found.append((W, ..., value) if writable(W) else (arrays, key, value))
        return found


class Layers(MutableSequence[Layer]):
    """A network's layers. Whatever is put here becomes the network's, or the attempt is refused.

    An operation stands for its layer. What is put in place of another keeps the sizes around it.

    Examples
    --------
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2)
    >>> net.layers[1] = xnet.layers.ReLU()
    >>> net.layers.insert(2, xnet.layers.Dropout(0.2))
    >>> net.layers
    [Affine(2, 3), ReLU(), Dropout(0.2), Affine(3, 2)]
    """

    def __init__(self, network: "Network") -> None:
        self._network = network

    def __getitem__(self, index: Any) -> Any:
        return cast("Any", self._network)._layers[index]

    def __len__(self) -> int:
        return len(self._network._layers)  # pyright: ignore[reportPrivateUsage]

    def _changed(self, change: Callable[[list[Any]], None]) -> None:
        new: list[Any] = list(self)
        change(new)
        self._network._take(new)  # pyright: ignore[reportPrivateUsage]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._changed(lambda layers: layers.__setitem__(index, value))

    def __delitem__(self, index: Any) -> None:
        self._changed(lambda layers: layers.__delitem__(index))

    def insert(self, index: int, value: Any) -> None:
        """Put a layer before the one at an index."""
        self._changed(lambda layers: layers.insert(index, value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(cast("Sequence[Any]", other))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return repr(list(self))


class Network:
    """A stack of layers on one backend.

    Parameters
    ----------
    layers
        From input to scores: layers, or operations, which stand for theirs. Those that have no
        parameters yet get them here.
    loss
        What turns scores into predictions and a loss; softmax with cross-entropy by default.
    seed
        For the initial parameters, and for what layers draw in training: an int, None for fresh
        ones every time, or what else `xnet.random.Generator` takes.
    dtype
        ``"float32"`` or ``"float64"``; None takes that of the parameters given with
        `Affine.from_params`, else float64.
    backend
        Name or `Backend`; None for the current one. The network stays there until `to`.

    Attributes
    ----------
    schema
        What the data are called that it was trained on, a `xnet.schema.Schema`: its file keeps it.
        None where nobody said so.

    Raises
    ------
    BackendError
        The backend is unknown or unusable.
    ValueError
        No layers, sizes of neighbouring layers that do not fit, a layer that belongs to another
        network, or an unusable dtype.

    Notes
    -----
    The layers become the network's own, and no other's; it trains copies of the arrays they came
    with. `layers` can be changed like a list: what a network consists of is said by its layers
    alone, and `params`, saving, hashes and optimizers follow. Many threads may use it: predictions
    run at once, losses, gradients and steps one after another, for the layers remember.

    What is handed to the methods below and lies on the host is moved to the network's backend and
    dtype: arrays and tables of any library, and lists; that is the one door. Arrays of another
    device are an error. What is not in memory is predicted from part by part: see `xnet.rows`.

    `predict`, `scores`, `loss` and `accuracy` predict; `gradient` and `train_step` train. They
    differ for layers that draw, as `Dropout`, or that look at the whole batch, as `BatchNorm`.

    Examples
    --------
    >>> import xnet
    >>> from xnet.layers import Affine, IdentityWithLoss, Sigmoid
    >>> first = Affine.from_params([[0.1, 0.3, 0.5], [0.2, 0.4, 0.6]], [0.1, 0.2, 0.3])
    >>> second = Affine.from_params([[0.1, 0.4], [0.2, 0.5], [0.3, 0.6]], [0.1, 0.2])
    >>> third = Affine.from_params([[0.1, 0.3], [0.2, 0.4]], [0.1, 0.2])
    >>> net = xnet.Network([first, Sigmoid(), second, Sigmoid(), third], IdentityWithLoss())
    >>> net.predict([1.0, 0.5]).round(8).tolist()
    [0.31682708, 0.69627909]
    >>> list(net.params)
    ['W1', 'b1', 'W2', 'b2', 'W3', 'b3']
    """

    schema: Any = None

    def __init__(
        self,
        layers: Sequence[Layer | Operation],
        loss: LossLayer | Loss | None = None,
        *,
        seed: Any = 0,
        dtype: Any = None,
        backend: str | Backend | None = None,
    ) -> None:
        # Random numbers come from the host on every backend: that module imports NumPy.
        from xnet import random

        self.turn = RLock()  # whose holder alone trains, or takes a loss
        self._layers: list[Layer] = []
        self._plan: Plan | None = None
        self._held: Any = None
        self._rng = random.Generator(seed)
        self.draws: Any = None
        self.backend = resolve(backend)
        self.loss_layer = SoftmaxWithLoss() if loss is None else loss
        held = [layer.params for layer in layers if isinstance(layer, Layer)]
        given = [W for params in held for W in params.values() if W is not None]
        self.dtype = float_dtype(dtype or _common_dtype(given))
        self._take(list(layers))

    # -- what it consists of

    @property
    def layers(self) -> Layers:
        """The layers, from input to scores."""
        return Layers(self)

    @layers.setter
    def layers(self, layers: Sequence[Layer | Operation]) -> None:
        self._take(list(layers))

    @property
    def loss_layer(self) -> LossLayer:
        """What turns scores into predictions and a loss."""
        return self._loss_layer

    @loss_layer.setter
    def loss_layer(self, loss: LossLayer | Loss) -> None:
        made: Any = layer_class(type(loss)).of(loss) if isinstance(loss, Loss) else loss
        _check_instance("loss", made, LossLayer)
        made.check_columns(outputs(self._layers))
        self._loss_layer: LossLayer = made
        self._plan = None

    def _take(self, layers: list[Any]) -> None:
        """Consist of these layers from now on, or raise and stay as before."""
        if not layers:
            raise ValueError("Network: layers is empty, expected at least one")
        for index, layer in enumerate(layers):
            if isinstance(layer, Operation) and not isinstance(layer, Loss):
                layers[index] = Layer.of(layer)
            _check_instance(f"layers[{index}]", layers[index], Layer)
        self._check_sizes(layers)
        new = [layer for layer in layers if not any(layer is old for old in self._layers)]
        prepared: list[tuple[Layer, dict[str, Array], dict[str, Array]]] = []
        with self._running():
            for layer in new:
                before = dict(layer.params), dict(layer.state)
                try:
                    layer.initialize(self._rng, self.dtype, self.backend)
                    params = {k: self._own_copy(W, k) for k, W in layer.params.items()}
                    state = {k: self._own_copy(W, k) for k, W in layer.state.items()}
                finally:  # until all of them are known to fit, none is changed
                    layer.hold(*before)
                prepared.append((layer, params, state))
        for layer, params, state in prepared:
            layer.hold(params, state)
            layer.owner = weakref.ref(self)
        for layer in self._layers:
            if not any(layer is kept for kept in layers):
                layer.owner = None
        self._layers, self._plan = layers, None
        if self.draws is None and any(v.operation and v.operation.random for v in layers):
            from xnet import random

            self.draws = random.Generator(int(self._rng.integers(2**63)))

    def _check_sizes(self, layers: Sequence[Layer]) -> None:
        features, first = None, {id(v): k for k, v in reversed([*enumerate(layers)])}
        for index, layer in enumerate(layers):
            # A layer remembers one input: its first backward would use the second place's.
            at = f"layers[{index}]: {layer}"
            if first[id(layer)] != index:
                raise ValueError(f"{at} stands at two places of the network")
            owner = layer.owner and layer.owner()
            if owner is not None and owner is not self:
                raise ValueError(f"{at} belongs to another network; take layer.copy()")
            takes = None if layer.operation is None else layer.operation.widths[0]
            if None not in (features, takes) and features != takes:
                raise ValueError(f"{at} takes {takes} features, those before it give {features}")
            features = layer.gives(features)
        self._loss_layer.check_columns(features)

    def _own_copy(self, array: Array, name: str) -> Array:
        """A parameter as this network's own: training writes to it, and not to what was given."""
        return self.backend.xp.asarray(self.host_to_backend(array, name, self.dtype), copy=True)

    @property
    def params(self) -> Parameters:
        """The live parameters: W1, b1, W2, ... Set one by its name."""
        return Parameters(self)

    @property
    def state(self) -> Parameters:
        """What training left for predictions, such as running means, by name."""
        return Parameters(self, "state")

    def to(self, backend: str | Backend) -> "Network":
        """Move this network to another backend; returns the network itself.

        A name keeps the network's mode, reproducible or fast; a `Backend` brings its own.

        Parameters
        ----------
        backend
            A name, or a `Backend`.

        Returns
        -------
        Network
            Itself.

        Raises
        ------
        BackendError
            The backend is unknown or unusable; the network stays where it was.

        Examples
        --------
        >>> import xnet
        >>> net = xnet.TwoLayerNet(2, 3, 2)
        >>> net.to(xnet.resolve("numpy", reproducible=True)).backend
        <backend numpy reproducible>
        """
        mode = None if isinstance(backend, Backend) else self.backend.reproducible
        target = resolve(backend, mode)
        moved = [
            [{k: target.asarray(W) for k, W in arrays.items()} for arrays in (v.params, v.state)]
            for v in self._layers
        ]
        for layer, (params, state) in zip(self._layers, moved, strict=True):
            layer.hold(params, state)
        self._plan = None
        self.backend = target
        return self

    @property
    def inputs(self) -> int | None:
        """Features per sample that the network expects; None if it takes any number."""
        return self._planned().inputs

    def __getstate__(self) -> dict[str, Any]:
        # A plan may hold addresses of this network's arrays: a copy must make its own.
        return vars(self) | {"_plan": None, "turn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, turn=RLock())
        # A pickle's arrays come back as memory maps if joblib sent it, CuPy's on another device.
        for layer in self.to(self.backend).layers:
            layer.owner = weakref.ref(self)

    # -- the one door

    def _running(self) -> Current:
        """Block in which this network's backend is current, on its device."""
        return Current(self.backend)

    def host_to_backend(self, values: Any, name: str, dtype: Any = None) -> Array:
        """`values` on this network's backend: the one door, for what lies on the host or there.

        Raises
        ------
        BackendError
            `values` is an array of another device.
        TypeError, ValueError
            What `Backend.asarray` refuses: complex numbers, masked ones, ...
        """
        return moved(self.backend, values, name, dtype)

    def _batch(self, x: Any, t: Any, whole: bool = True) -> tuple[Array, Array]:
        """A batch (N, ...) and its labels here, of one sample too; x may be `Rows` if not whole."""
        plan, owns = self._plan, self.backend.owns
        if not (plan and owns(x) and x.dtype == plan.dtype):
            rows = None if whole else staying(x, "x", self.backend, self.dtype)
            x = rows or self.host_to_backend(x, "x", self.dtype)
        if not owns(t):
            t = self.host_to_backend(labels(t, "t"), "t")
        x, t = (x[None, ...], t[None, ...]) if x.ndim == 1 else (x, t)
        if x.ndim and self.backend.ranks.begin(x.shape[0]) == 0:
            raise ValueError(f"x has shape {tuple(x.shape)}: the batch is empty")
        return x, t

    def _planned(self) -> Plan:
        """The layers as the backend takes them; made anew when a layer or parameter is replaced."""
        plan = self._plan
        if plan is None or plan.is_stale():
            plan = self._plan = Plan(self.backend, self._layers, self._loss_layer)
        return plan

    # -- predicting

    def predict(self, x: Any) -> Array:
        """What the network says of x: probabilities after softmax, outputs after identity.

        Parameters
        ----------
        x
            (N, D) or one sample (D,); cast to the network's dtype.

        Returns
        -------
        Array
            (N, C) or (C,), on the network's backend, of its dtype. NaN where nothing is known:
            NaN and infinity go through the layers as IEEE 754 has them.

        Raises
        ------
        ValueError
            x does not have the features that the first layer expects, or has masked elements.
        TypeError
            x holds no real numbers.
        BackendError
            x is on another device.

        Examples
        --------
        >>> import xnet
        >>> affine = xnet.layers.Affine.from_params([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.5])
        >>> net = xnet.Network([affine])
        >>> net.predict([0.3, 2.4]).round(8).tolist()
        [0.06913842, 0.93086158]
        >>> net.predict([[0.3, 2.4], [4.0, 0.0]]).argmax(axis=1).tolist()
        [1, 0]
        """
        return self._evaluate(x, predicts=True)

    def scores(self, x: Any) -> Array:
        """What enters the loss layer: (N, C) from x (N, D), or (C,) from one sample (D,).

        Parameters
        ----------
        x
            (N, D) or one sample (D,); cast to the network's dtype.

        Returns
        -------
        Array
            On the network's backend, of its dtype.

        Raises
        ------
        ValueError
            x does not have the features that the first layer expects.
        BackendError
            x is on another device.

        Examples
        --------
        >>> import xnet
        >>> affine = xnet.layers.Affine.from_params([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.5])
        >>> xnet.Network([affine]).scores([[0.3, 2.4], [4.0, 0.0]]).round(8).tolist()
        [[0.3, 2.9], [4.0, 0.5]]
        """
        return self._evaluate(x, predicts=False)

    def _evaluate(self, x: Any, predicts: bool) -> Array:
        """`scores`, or what the loss predicts of them: in one call of the backend if it can be."""
        plan = self._plan  # as `_planned`, without a call: this is all of a small prediction
        if plan is None or plan.is_stale():
            plan = self._planned()
        backend, loss = self.backend, plan.loss if predicts else None
        here = backend.owns(x)
        if here and x.ndim == 2 and x.dtype == plan.dtype and x.shape[1] == plan.inputs:
            if plan.whole is not None and (loss is not None or not predicts):
                return sound(backend).forward(plan.whole, x, loss)
        elif rows := staying(x, "x", self.backend, self.dtype):
            return rows.through(lambda part: self._evaluate(part, predicts))
        else:
            x = self.host_to_backend(x, "x", self.dtype)
        one = x.ndim == 1
        with self._running():
            out = self._through(plan, x[None, ...] if one else x, loss)
            if predicts and loss is None:
                out = self._loss_layer(out)
        return out[0, ...] if one else out

    def _through(self, plan: Plan, x: Array, loss: Loss | None) -> Array:
        *others, last = plan.segments
        for segment in others:
            x = segment(x)
        if isinstance(last, Part):
            return last(x, loss)
        return last(x) if loss is None else self._loss_layer(last(x))

    def loss(self, x: Any, t: Any) -> float:
        """Loss of the network on x (N, D) with labels t, averaged over the batch.

        Parameters
        ----------
        x
            (N, D), N at least 1, or one sample (D,).
        t
            Class indices (N,), or one-hot or targets (N, C); for one sample () or (C,). Of one
            output, (N,) are targets.

        Returns
        -------
        float
            Of the samples' losses the mean.

        Raises
        ------
        ValueError
            Shapes that do not fit, a label out of range, an empty batch.
        BackendError
            An array on another device.

        Examples
        --------
        >>> import xnet
        >>> affine = xnet.layers.Affine.from_params([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.5])
        >>> net = xnet.Network([affine])
        >>> round(net.loss([[0.3, 2.4], [4.0, 0.0]], [1, 0]), 8)
        0.05069756
        >>> round(net.loss([[0.3, 2.4], [4.0, 0.0]], [[0, 1], [1, 0]]), 8)
        0.05069756
        """
        with self.turn, self._running():
            x, t = self._batch(x, t, whole=False)
            return float(self._loss_layer.forward(self._evaluate(x, predicts=False), t))

    def accuracy(self, x: Any, t: Any) -> float:
        """Share of the samples whose most probable class is the labelled one.

        Parameters and errors as in `loss`; a ValueError too where there are no classes: with one
        output, or with a loss for regression and targets that are not one-hot.

        Returns
        -------
        float
            From 0 to 1.

        Examples
        --------
        >>> import xnet
        >>> affine = xnet.layers.Affine.from_params([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.5])
        >>> net = xnet.Network([affine])
        >>> net.accuracy([[0.3, 2.4], [4.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [1, 0, 1, 1])
        0.75
        """
        with self._running():
            x, t = self._batch(x, t, whole=False)
            right = hits(self._evaluate(x, predicts=True), t, self.loss_layer.classes)
            return self.backend.ranks.total(right) / self.backend.ranks.count(x.shape[0])

    # -- training

    def gradient(self, x: Any, t: Any) -> dict[str, Array]:
        """Gradients of the loss by every parameter, by backpropagation (§5.7).

        Parameters and errors as in `loss`.

        Returns
        -------
        dict
            The keys and shapes of `params`, less those of frozen layers.

        Examples
        --------
        >>> import xnet
        >>> W = [[-0.78391423, -0.0493546, 1.01982955], [-0.1693144, -0.82591994, -0.70009164]]
        >>> net = xnet.Network([xnet.layers.Affine.from_params(W, [0.0, 0.0, 0.0])])
        >>> net.gradient([0.6, 0.9], [0, 0, 1])["W1"].round(8).tolist()
        [[0.16255976, 0.13988721, -0.30244697], [0.24383964, 0.20983082, -0.45367046]]
        """
        return self.loss_and_gradient(x, t)[1]

    def loss_and_gradient(
        self, x: Any, t: Any, sample_weight: Any = None
    ) -> tuple[float, dict[str, Array]]:
        """The loss in training, and its `gradient`, from the same forward pass.

        With `sample_weight` (N,), real numbers of at least 0, each sample's loss counts so often:
        the loss is sum(sample_weight * losses) / N.

        Parameters
        ----------
        x, t
            As in `loss`.
        sample_weight
            How often each sample counts, (N,); None for once.

        Returns
        -------
        float, dict
            The loss, and what `gradient` returns.

        Examples
        --------
        >>> import xnet
        >>> net = xnet.TwoLayerNet(2, 3, 2)
        >>> loss, gradients = net.loss_and_gradient([[0.0, 1.0], [1.0, 0.0]], [0, 1])
        >>> round(loss, 4), {name: g.shape for name, g in gradients.items()}
        (0.6931, {'W1': (2, 3), 'b1': (3,), 'W2': (3, 2), 'b2': (2,)})
        """
        with self.turn, self._running():
            x, t = self._batch(x, t)
            self._begin()
            plan = self._planned()
            end, segments = plan.end if sample_weight is None else None, plan.segments
            if end is not None:
                segments = segments[:-1]
            for segment in segments:
                x = segment.forward(x)
            if end is not None and plan.loss is not None:
                end.rows(x)  # what is wrong with x is said before what is with t
                targets = self._targets(plan, x, t)
                loss, dout = end.end(x, targets, plan.loss)
            else:
                weigh = () if sample_weight is None else (self._weights(sample_weight, x),)
                loss = float(self._loss_layer.forward(x, t, *weigh))
                dout = self._loss_layer.backward()
            for segment in reversed(segments):
                dout = segment.backward(dout)
            return loss, self._gradients()

    def _weights(self, weight: Any, x: Array) -> Array:
        """Of N samples as the loss takes them, (N,)."""
        if self._loss_layer.opaque:
            name = type(self._loss_layer).__name__
            raise ValueError(f"sample_weight: {name} says itself what it computes")
        return self.host_to_backend(weights_of(weight, x.shape[0]), "sample_weight", self.dtype)

    def _targets(self, plan: Plan, x: Array, t: Array) -> Array:
        """The targets (N, C) as the loss takes them."""
        targets = targets_for(self.backend, t, (x.shape[0], plan.outputs or 0), x.dtype)
        return targets if plan.loss is None else plan.loss.targets(self.backend.maths, targets)

    def _gradients(self) -> dict[str, Array]:
        """What the layers' last `backward` found, by the parameters' names; of frozen ones none."""
        places = self._planned().places
        return {key: layer.grads[places[key][1]] for key, layer in self._trained().items()}

    def _trained(self) -> dict[str, Layer]:
        """The layers by the names of their parameters, frozen ones left out."""
        owners = {id(layer.params): layer for layer in self._layers if layer.trainable}
        places = self._planned().places.items()
        return {key: owners[id(held)] for key, (held, _) in places if id(held) in owners}

    def train_step(self, x: Any, t: Any, optimizer: Optimizer, sample_weight: Any = None) -> float:
        """One training step: the loss, its gradient by backpropagation, and the optimizer's update.

        Ctrl-C, or an error in the optimizer, leaves parameters and optimizer as they were before.

        Parameters
        ----------
        x, t
            As in `loss`.
        optimizer
            How to step; part of the backend's call where that takes the network whole.
        sample_weight
            As in `loss_and_gradient`.

        Returns
        -------
        float
            The loss before the update.

        Raises
        ------
        ValueError, BackendError
            As in `loss`.

        Examples
        --------
        >>> import xnet
        >>> net, optimizer = xnet.TwoLayerNet(2, 3, 2, seed=0), xnet.optimizers.SGD(lr=1.0)
        >>> x, t = [[0.0, 1.0], [1.0, 0.0]], [0, 1]
        >>> losses = [net.train_step(x, t, optimizer) for _ in range(200)]
        >>> round(losses[0], 3), losses[-1] < 0.1
        (0.693, True)
        """
        with self.turn:  # the whole step
            plan = self._planned()
            plain = sample_weight is None and not optimizer.opaque
            run = plan.whole if plain and False not in [v.trainable for v in self._layers] else None
            if run is not None and plan.loss is not None and plan.end is not None:
                optimizer.trains(self)
                with self._running():
                    rows, labels = self._batch(x, t)
                    if rows.ndim != 2 or rows.shape[1] != plan.inputs or rows.dtype != plan.dtype:
                        rows = plan.end.rows(rows)
                    targets = self._targets(plan, rows, labels)
                    loss = self.backend.train_step(
                        run, rows, targets, plan.loss, optimizer, plan.names
                    )
                    if loss is not None:
                        return float(loss)
            loss, gradients = self.loss_and_gradient(x, t, sample_weight)
            self.update(optimizer, gradients)
            return loss

    def update(self, optimizer: Optimizer, gradients: dict[str, Array]) -> None:
        """Have the optimizer take a step, in full or, if Ctrl-C or an error comes, not at all."""
        with self.turn, self._running():
            optimizer.update(self.params, gradients)

    # -- what is random

    def draw(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Random numbers in [0, 1) for a layer that trains, on the host."""
        return self.draws.uniform(shape, dtype)

    @property
    def moves(self) -> bool:
        """Whether training moves the layers' state: not where the network is held."""
        return self._held is None

    def _begin(self) -> None:
        """Begin a pass in training: where the network is held, with the same draws as the last."""
        if self._held is not None and self.draws is not None:
            self.draws.state = self._held

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Block in which training always computes one function: the same draws, and no state moves.

        So `gradient` and differences of losses are of the same thing, whatever its layers draw.

        Examples
        --------
        >>> import xnet
        >>> from xnet.layers import Affine, Dropout
        >>> net = xnet.Network([Affine(2, 50, "he"), Dropout(0.5), Affine(50, 2, "he")])
        >>> x, t = [[0.0, 1.0], [1.0, 0.0]], [0, 1]
        >>> with net.held():
        ...     net.training_loss(x, t) == net.training_loss(x, t)
        True
        >>> net.training_loss(x, t) == net.training_loss(x, t)
        False
        """
        before, state = self._held, self.draws and self.draws.state
        self._held = before or state or {}
        try:
            yield
        finally:
            self._held = before
            if before is None and state is not None:
                self.draws.state = state

    def training_loss(self, x: Any, t: Any) -> float:
        """The loss as `gradient` takes it: layers draw, and move their state, as in a step.

        Parameters and errors as in `loss`.

        Returns
        -------
        float
            Of the network as it trains.
        """
        with self.turn, self._running():
            x, t = self._batch(x, t)
            return self._training_loss(x, t) if self._trains() else self.loss(x, t)

    def _trains(self) -> bool:
        """Whether a layer computes otherwise in training than in predicting."""
        return any(layer.operation and not is_plain(layer) for layer in self._layers)

    def _training_loss(self, x: Array, t: Array) -> float:
        self._begin()
        for layer in self._layers:
            x = layer.forward(x)
        return float(self._loss_layer.forward(x, t))

    # -- by differences

    def numerical_gradient(
        self, x: Any, t: Any, h: float | None = None, *, method: str | None = None
    ) -> dict[str, Array]:
        """Gradients of the loss by every parameter, by central differences (§4.5.1).

        Two losses are evaluated for every parameter, each at the perturbed parameter itself. Where
        layers draw or move state in training, it is the loss in training, of one draw.

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
            incremental where the layers allow it, and warns where not.

        Returns
        -------
        dict
            The keys and shapes of `params`, less those of frozen layers.

        Raises
        ------
        ValueError
            As in `loss`; float32 with an h below 1e-3; an unknown method; or incremental for a
            layer or loss that does not allow it.

        Warns
        -----
        NaiveGradientWarning
            No method was named, and a layer or loss does not allow incremental.

        Examples
        --------
        >>> import xnet
        >>> W = [[-0.78391423, -0.0493546, 1.01982955], [-0.1693144, -0.82591994, -0.70009164]]
        >>> net = xnet.Network([xnet.layers.Affine.from_params(W, [0.0, 0.0, 0.0])])
        >>> net.numerical_gradient([0.6, 0.9], [0, 0, 1])["W1"].round(6).tolist()
        [[0.16256, 0.139887, -0.302447], [0.24384, 0.209831, -0.45367]]
        """
        if method not in (None, "naive", "incremental"):
            raise ValueError(f"method is {method!r}, expected 'naive', 'incremental' or None")
        h = checked_step(h, self.dtype)
        obstacle = self._obstacle()
        if method == "incremental" and obstacle is not None:
            raise ValueError(
                f"method='incremental': {obstacle} may mix rows or keeps something; "
                "use method='naive'"
            )
        if method is None and obstacle is not None:
            warnings.warn(
                f"{obstacle} may mix rows or keeps something: every loss is evaluated from "
                "the beginning, hundreds of times slower; method='naive' accepts that",
                NaiveGradientWarning,
                stacklevel=2,
            )
        with self.turn, self._running():
            x, t = self._batch(x, t)
            if method == "naive" or obstacle is not None:
                loss, params = self._training_loss if self._trains() else self.loss, self.params
                with self.held():
                    by_one = partial(numerical_gradient, lambda _: loss(x, t), h=h)
                    return {name: by_one(params[name]) for name in self._trained()}
            loss: Any = self._loss_layer.operation
            steps = [(v.operation, tuple(v.params.values())) for v in self._layers]
            wanted = [v.trainable for v in self._layers]
            rows = door(self._layers).rows(x)
            found = incremental_gradient(self.backend, steps, wanted, loss, rows, t, h)
            return dict(zip(self._trained(), found, strict=True))

    def _obstacle(self) -> Layer | LossLayer | None:
        """The first layer, or the loss, of which it is not known what a perturbed row changes."""
        if self._loss_layer.opaque or self._loss_layer.operation is None:
            return self._loss_layer
        return next((layer for layer in self._layers if not is_plain(layer)), None)

    def __repr__(self) -> str:
        layers = ", ".join(map(repr, self._layers))
        return (
            f"{type(self).__name__}([{layers}], {self._loss_layer}, "
            f"dtype={self.dtype}, backend={self.backend.label})"
        )

    _repr_html_ = notebook.network


def _check_instance(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        what = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise TypeError(f"{name} is {what}, expected a {kind.__name__} object")


def _common_dtype(arrays: list[Array]) -> str:
    """The one dtype of `arrays`, float64 if there are none."""
    found = {name_of(array) for array in arrays} or {"float64"}
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
        The name of a pointwise operation: ``"sigmoid"``, ``"relu"``, ``"tanh"``, ...
    seed, dtype, backend
        As in `Network`.

    Raises
    ------
    ValueError
        A size below 1, or an unknown name.

    Examples
    --------
    >>> import xnet
    >>> net = xnet.TwoLayerNet(784, 50, 10, seed=0)
    >>> net.params
    Parameters({'W1': (784, 50), 'b1': (50,), 'W2': (50, 10), 'b2': (10,)})
    >>> net.predict([0.0] * 784).round(2).tolist()
    [0.09, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.11, 0.1]
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
        layers = [
            Affine(input_size, hidden_size, weight_init_std),
            named(activation, "pointwise")(),
            Affine(hidden_size, output_size, weight_init_std),
        ]
        super().__init__(layers, seed=seed, dtype=dtype, backend=backend)
