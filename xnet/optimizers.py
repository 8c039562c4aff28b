"""Optimizers: how gradients change parameters.

Each is one equation, `step`, in the mathematics of `operations`: backends compile it into one pass
over memory. `update` writes to the arrays of `params`, as the book's do (§6.1); where a backend's
arrays cannot be written, it replaces them. What an optimizer remembers between steps it keeps by
the parameter's name.
"""

import dataclasses
import math
import numbers
import weakref
from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar, Self, dataclass_transform

from xnet.backend import Array, Backend, assign, backend_of, get_backend
from xnet.dtypes import described, name_of
from xnet.operations import Maths, Value

Params = MutableMapping[str, Array]
Grads = Mapping[str, Array]

OPTIMIZERS: dict[str, type["Optimizer"]] = {}
"""Every optimizer there is, by the name of its class in small letters."""


@dataclass_transform(eq_default=False, field_specifiers=(dataclasses.field,))
@dataclasses.dataclass(eq=False, repr=False)
class Optimizer:
    """Base: what every optimizer does around its own formula.

    A class's annotated attributes are its settings; each can be set at any time. A class registers
    by being defined.

    Parameters
    ----------
    lr
        Learning rate, the factor of the step.
    weight_decay
        Adds this times W to the gradient, as half the squared weights in the loss would; or, where
        the class is `decoupled`, shrinks W by lr times it before the step (Loshchilov & Hutter
        2019). None for none.

    Attributes
    ----------
    slots
        How many arrays are remembered for each parameter; they start at 0.
    fractions
        The settings that lie within [0, 1).
    decoupled
        How `weight_decay` is meant.

    Raises
    ------
    ValueError
        A negative or infinite setting, or a fraction outside [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> from xnet.optimizers import Optimizer
    >>> class SignDescent(Optimizer):
    ...     lr: float = 0.1
    ...     def step(self, m, n, W, g):
    ...         return W - self.lr * m.where(g > 0, 1, m.where(g < 0, -1, g))
    >>> params = {"W": np.array([1.0, -2.0])}
    >>> SignDescent().update(params, {"W": np.array([0.5, -8.0])})
    >>> params["W"].round(8).tolist()
    [0.9, -1.9]
    """

    lr: float = 0.01
    weight_decay: float | None = dataclasses.field(default=None, kw_only=True)

    slots: ClassVar[int] = 0
    fractions: ClassVar[tuple[str, ...]] = ()
    decoupled: ClassVar[bool] = False
    opaque: ClassVar[bool] = False
    """Whether a subclass steps otherwise than its formula says."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclasses.dataclass(eq=False, repr=False)(cls)
        OPTIMIZERS[cls.__name__.lower()] = cls
        if "update" in vars(cls):
            cls.opaque = True

    def __new__(cls, *_: Any, **__: Any) -> Self:
        optimizer = super().__new__(cls)
        vars(optimizer).update(taken={}, memory={}, owner=None)
        return optimizer

    owner: ClassVar[Any]
    """A weak reference to the network whose parameters it remembers; None for none yet."""

    taken: ClassVar[dict[str, int]]
    """How many steps each parameter has taken."""
    memory: ClassVar[dict[str, list[Array]]]
    """What is remembered of each parameter."""

    def __setattr__(self, name: str, value: Any) -> None:
        number: Any = value
        if isinstance(number, numbers.Real) and number is not True and number is not False:
            below = 1.0 if name in self.fractions else math.inf
            value = float(number)  # a NumPy number could widen a float32 parameter
            if not 0 <= value < below:
                limit = "finite" if below == math.inf else f"below {below}"
                raise ValueError(f"{name} is {number}, expected at least 0 and {limit}")
        kind: Any = {f.name: f.type for f in dataclasses.fields(self)}.get(name)  # pyright: ignore
        if kind in (float, float | None) and not isinstance(value, kind):
            raise TypeError(f"{name} is {number!r}, expected a number")
        object.__setattr__(self, name, value)

    def step(self, *arguments: Any, **named: Any) -> Any:
        """``step(m, n, W, g, *memory)``: a parameter's new value and, in a tuple, the new memory.

        It is the parameter's n-th step, n from 1, and g its gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def formula(self, m: Maths, n: Any, W: Value, g: Value, *memory: Value) -> Any:
        """`step` with the weight decay."""
        if self.weight_decay is not None and self.decoupled:
            W = W - (self.lr * self.weight_decay) * W
        elif self.weight_decay is not None:
            g = g + self.weight_decay * W
        return self.step(m, n, W, g, *memory)

    def update(self, params: Params, grads: Grads) -> None:
        """Take one step, all of it or, if Ctrl-C or an error comes, nothing.

        `grads` has the keys and shapes of `params`, or of some of them.

        Parameters
        ----------
        params
            float32 or float64 arrays by name: a network's `params`, or a dictionary.
        grads
            Gradients by the names of parameters, of their shapes and dtypes.

        Raises
        ------
        TypeError
            A parameter that holds no floating-point numbers.
        ValueError
            A gradient that has not its parameter's shape and dtype.
        BackendError
            Parameter, gradient and what is remembered of it live on different devices.

        Examples
        --------
        >>> import numpy as np
        >>> from xnet.optimizers import SGD
        >>> params = {"W": np.array([1.0, -2.0]), "b": np.array([0.5])}
        >>> SGD(lr=0.1, weight_decay=0.5).update(params, {"W": np.array([1.0, 1.0])})
        >>> {name: W.round(8).tolist() for name, W in params.items()}
        {'W': [0.85, -2.0], 'b': [0.5]}
        """
        current = get_backend()
        of: Any = params
        if network := getattr(of, "network", None):
            self.trains(network)
        held = of.places() if network else {name: (params, name) for name in grads}
        assignments: list[tuple[Any, Any, Any]] = []
        with current.running():
            for name, gradient in grads.items():
                (container, key), backend = held[name], current
                W = container[key]
                if not (backend.owns(W) and backend.owns(gradient)):
                    backend = backend_of(**{name: W, f"gradient of {name}": gradient})
                if not backend.xp.isdtype(W.dtype, "real floating"):
                    raise TypeError(f"{name} is {name_of(W)}, expected float32 or float64")
                if gradient.shape != W.shape or gradient.dtype != W.dtype:
                    found = f"gradient of {name} is {described(gradient)}"
                    raise ValueError(f"{found}, expected {described(W)}")
                memory, n = self.memory_of(name, W, backend), self.taken.get(name, 0) + 1
                new, *remembered = backend.step(self, n, W, gradient, memory)
                new_W = (W, ..., new) if backend.writable(W) else (container, key, new)
                assignments += [new_W, (self.taken, name, n)]
                for k, (old, value) in enumerate(zip(memory, remembered, strict=True)):
                    written = backend.writable(old)
                    assignments.append((old, ..., value) if written else (memory, k, value))
            assign(assignments)

    def trains(self, network: object) -> None:
        """Remember this network's parameters, and no other's of the same shapes.

        Raises
        ------
        ValueError
            It remembers another network's.
        """
        if self.owner is None or not self.taken:  # no step was taken with the one before
            vars(self)["owner"] = weakref.ref(network)
        elif self.slots and self.owner() is not network:
            raise ValueError(
                f"{type(self).__name__} remembers the steps of another network: "
                "use a new optimizer for each"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A copy remembers the steps, for the network that it will train.
        return vars(self) | {"owner": None}

    def memory_of(self, name: str, W: Array, backend: Backend) -> list[Array]:
        """What is remembered of a parameter, zeros at first."""
        memory = self.memory.get(name)
        if memory is None:
            with backend.running():
                zeros = [backend.xp.zeros_like(W) for _ in range(self.slots)]
            memory = self.memory.setdefault(name, zeros)
        if len(memory) != self.slots:
            raise ValueError(
                f"the optimizer remembers {len(memory)} arrays of {name}, expected {self.slots}"
            )
        for array in memory:
            if not backend.owns(array):
                backend_of(**{name: W, f"the optimizer's memory of {name}": array})
            if array.shape != W.shape or array.dtype != W.dtype:
                raise ValueError(
                    f"{name} is {described(W)}, the optimizer remembers {described(array)}: "
                    "use a new optimizer for each network"
                )
        return memory

    def settings(self) -> dict[str, Any]:
        """Arguments that make an optimizer like this one, its memory aside."""
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        return {field.name: getattr(self, field.name) for field in fields}

    def __repr__(self) -> str:
        given = {k: v for k, v in self.settings().items() if v is not None}
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in given.items())})"


class SGD(Optimizer):
    """Stochastic gradient descent, W - lr g (Robbins & Monro 1951).

    Parameters
    ----------
    lr, weight_decay
        As in `Optimizer`; 0.01 and none by default.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> optimizer, params = xnet.optimizers.SGD(lr=0.1), {"W": np.array([1.0, -2.0])}
    >>> for g in ([0.5, -1.0], [-0.25, -1.0]):
    ...     optimizer.update(params, {"W": np.array(g)})
    ...     print(params["W"].round(6).tolist())
    [0.95, -1.9]
    [0.975, -1.8]
    """

    lr: float = 0.01

    def step(self, m: Maths, n: Any, W: Value, g: Value) -> Any:
        return W - self.lr * g


class Momentum(Optimizer):
    """Classical momentum, v = momentum v - lr g, W + v (Polyak 1964).

    Parameters
    ----------
    lr, weight_decay
        As in `Optimizer`; 0.01 and none by default.
    momentum
        Share of the last step that is taken again, in [0, 1); 0.9 by default.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> optimizer, params = xnet.optimizers.Momentum(lr=0.1), {"W": np.array([1.0, -2.0])}
    >>> for g in ([0.5, -1.0], [-0.25, -1.0]):
    ...     optimizer.update(params, {"W": np.array(g)})
    ...     print(params["W"].round(6).tolist())
    [0.95, -1.9]
    [0.93, -1.71]
    """

    lr: float = 0.01
    momentum: float = 0.9

    slots = 1
    fractions = ("momentum",)

    def step(self, m: Maths, n: Any, W: Value, g: Value, v: Value) -> Any:
        v = self.momentum * v - self.lr * g
        return W + v, v


class Nesterov(Momentum):
    """Nesterov's accelerated gradient (1983), v = momentum v - lr g, W + momentum v - lr g.

    The form of Bengio et al. 2013 ("Advances in optimizing recurrent networks", eq. 7), where W
    stands for the point already moved ahead, so that the gradient is needed at W alone.

    Parameters
    ----------
    lr, weight_decay, momentum
        As in `Momentum`, and by default what they are there.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> optimizer, params = xnet.optimizers.Nesterov(lr=0.1), {"W": np.array([1.0, -2.0])}
    >>> for g in ([0.5, -1.0], [-0.25, -1.0]):
    ...     optimizer.update(params, {"W": np.array(g)})
    ...     print(params["W"].round(6).tolist())
    [0.905, -1.81]
    [0.912, -1.539]
    """

    def step(self, m: Maths, n: Any, W: Value, g: Value, v: Value) -> Any:
        v = self.momentum * v - self.lr * g
        return W + (self.momentum * v - self.lr * g), v


class AdaGrad(Optimizer):
    """h = h + g^2, W - lr g / (sqrt(h) + eps) (Duchi, Hazan & Singer 2011).

    Parameters
    ----------
    lr, weight_decay
        As in `Optimizer`; 0.01 and none by default.
    eps
        Added to the root, so that it does not divide by 0; 1e-7 by default.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> optimizer, params = xnet.optimizers.AdaGrad(lr=0.1), {"W": np.array([1.0, -2.0])}
    >>> for g in ([0.5, -1.0], [-0.25, -1.0]):
    ...     optimizer.update(params, {"W": np.array(g)})
    ...     print(params["W"].round(6).tolist())
    [0.9, -1.9]
    [0.944721, -1.829289]
    """

    lr: float = 0.01
    eps: float = 1e-7

    slots = 1

    def step(self, m: Maths, n: Any, W: Value, g: Value, h: Value) -> Any:
        h = h + g * g
        return W - self.lr * g / (m.sqrt(h) + self.eps), h


class RMSProp(Optimizer):
    """h = decay h + (1 - decay) g^2, W - lr g / (sqrt(h) + eps) (Tieleman & Hinton 2012).

    The lecture takes a decay of 0.9; 0.99 is the book's default (§6.1).

    Parameters
    ----------
    lr, weight_decay
        As in `Optimizer`; 0.01 and none by default.
    decay
        Share of the mean square that a step leaves, in [0, 1); 0.99 by default.
    eps
        Added to the root, so that it does not divide by 0; 1e-7 by default.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> optimizer, params = xnet.optimizers.RMSProp(lr=0.1), {"W": np.array([1.0, -2.0])}
    >>> for g in ([0.5, -1.0], [-0.25, -1.0]):
    ...     optimizer.update(params, {"W": np.array(g)})
    ...     print(params["W"].round(6).tolist())
    [2e-06, -1.000001]
    [0.449014, -0.29112]
    """

    lr: float = 0.01
    decay: float = 0.99
    eps: float = 1e-7

    slots = 1
    fractions = ("decay",)

    def step(self, m: Maths, n: Any, W: Value, g: Value, h: Value) -> Any:
        h = self.decay * h + (1 - self.decay) * (g * g)
        return W - self.lr * g / (m.sqrt(h) + self.eps), h


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1): bias-corrected moments p of g and q of g^2.

    Parameters
    ----------
    lr, weight_decay
        As in `Optimizer`; 0.001 and none by default.
    beta1, beta2
        Share of the moment of g, and of that of g^2, that a step leaves, in [0, 1); 0.9 and 0.999
        by default.
    eps
        Added to the root, so that it does not divide by 0; 1e-8 by default.
    epsilon_hat
        Whether eps is added before the correction, as at the end of their section 2 and in the
        book's code (§6.1.6, with an eps of 1e-7): W - lr sqrt(1 - beta2^n) / (1 - beta1^n)
        p / (sqrt(q) + eps). It is not by default.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> optimizer, params = xnet.optimizers.Adam(lr=0.1), {"W": np.array([1.0, -2.0])}
    >>> for g in ([0.5, -1.0], [-0.25, -1.0]):
    ...     optimizer.update(params, {"W": np.array(g)})
    ...     print(params["W"].round(6).tolist())
    [0.9, -1.9]
    [0.873366, -1.8]
    """

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    epsilon_hat: bool = False

    slots = 2
    fractions = ("beta1", "beta2")

    def moments(self, m: Maths, n: Any, g: Value, p: Value, q: Value) -> Any:
        """The new p and q, and what corrects each of their bias."""
        p = self.beta1 * p + (1 - self.beta1) * g
        q = self.beta2 * q + (1 - self.beta2) * (g * g)
        return p, q, 1 - m.power(self.beta1, n), 1 - m.power(self.beta2, n)

    def step(self, m: Maths, n: Any, W: Value, g: Value, p: Value, q: Value) -> Any:
        p, q, c1, c2 = self.moments(m, n, g, p, q)
        if self.epsilon_hat:
            return W - (self.lr * m.sqrt(c2) / c1) * p / (m.sqrt(q) + self.eps), p, q
        return W - (self.lr / c1) * p / (m.sqrt((1 / c2) * q) + self.eps), p, q


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    Parameters
    ----------
    lr, beta1, beta2, eps, epsilon_hat
        As in `Adam`, and by default what they are there.
    weight_decay
        As in `Optimizer`, decoupled; 0.01 by default.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> optimizer, params = xnet.optimizers.AdamW(lr=0.1), {"W": np.array([1.0, -2.0])}
    >>> for g in ([0.5, -1.0], [-0.25, -1.0]):
    ...     optimizer.update(params, {"W": np.array(g)})
    ...     print(params["W"].round(6).tolist())
    [0.899, -1.898]
    [0.871467, -1.796102]
    """

    weight_decay: float | None = dataclasses.field(default=0.01, kw_only=True)

    decoupled = True


class Nadam(Adam):
    """Adam with Nesterov's momentum (Dozat 2016, algorithm 2), beta1 the same at every step.

    Parameters
    ----------
    lr, weight_decay, beta1, beta2, eps
        As in `Adam`, and by default what they are there.
    epsilon_hat
        Of no effect here.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> optimizer, params = xnet.optimizers.Nadam(lr=0.1), {"W": np.array([1.0, -2.0])}
    >>> for g in ([0.5, -1.0], [-0.25, -1.0]):
    ...     optimizer.update(params, {"W": np.array(g)})
    ...     print(params["W"].round(6).tolist())
    [0.852632, -1.852632]
    [0.869118, -1.7369]
    """

    def step(self, m: Maths, n: Any, W: Value, g: Value, p: Value, q: Value) -> Any:
        p, q, c1, c2 = self.moments(m, n, g, p, q)
        next_c1 = 1 - self.beta1 * m.power(self.beta1, n)
        ahead = (self.beta1 / next_c1) * p + ((1 - self.beta1) / c1) * g
        return W - self.lr * ahead / (m.sqrt(q / c2) + self.eps), p, q


class Lion(Optimizer):
    """W - lr sign(beta1 p + (1 - beta1) g), p = beta2 p + (1 - beta2) g (Chen et al. 2023).

    Parameters
    ----------
    lr
        As in `Optimizer`: the size of every step; 1e-4 by default.
    beta1
        Share of the remembered gradient in the direction of the step, in [0, 1); 0.9 by default.
    beta2
        Share of it that a step leaves, in [0, 1); 0.99 by default.
    weight_decay
        As in `Optimizer`, decoupled; none by default.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> optimizer, params = xnet.optimizers.Lion(lr=0.1), {"W": np.array([1.0, -2.0])}
    >>> for g in ([0.5, -1.0], [-0.25, -1.0]):
    ...     optimizer.update(params, {"W": np.array(g)})
    ...     print(params["W"].round(6).tolist())
    [0.9, -1.9]
    [1.0, -1.8]
    """

    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99

    slots = 1
    fractions = ("beta1", "beta2")
    decoupled = True

    def step(self, m: Maths, n: Any, W: Value, g: Value, p: Value) -> Any:
        c = self.beta1 * p + (1 - self.beta1) * g
        sign = m.where(c > 0, 1, m.where(c < 0, -1, c))
        return W - self.lr * sign, self.beta2 * p + (1 - self.beta2) * g


__all__ = ["OPTIMIZERS", "Optimizer", *(cls.__name__ for cls in OPTIMIZERS.values())]  # pyright: ignore
