"""Optimizers: how gradients change parameters.

`update` replaces each array of `params` by a new one, for the arrays of some backends cannot be
written in place. What an optimizer remembers between steps it keeps by the parameter's name.
"""

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

from xnet.backend import Array, backend_of

Params = MutableMapping[str, Array]
Grads = Mapping[str, Array]


def _check(name: str, value: float, below: float = math.inf) -> float:
    """`value` if it lies in [0, below), for the argument `name`."""
    if not 0 <= value < below:
        limit = "" if below == math.inf else f" and below {below}"
        raise ValueError(f"{name} is {value}, expected at least 0{limit}")
    return value


class Optimizer:
    """Base: `lr` is the learning rate, the factor of the step.

    Raises
    ------
    ValueError
        A negative or infinite learning rate, or a decay outside [0, 1).
    """

    def __init__(self, lr: float) -> None:
        self.lr = _check("lr", lr)

    def update(self, params: Params, grads: Grads) -> None:
        """Take one step: `grads` has the keys and shapes of `params`."""
        for name, gradient in grads.items():
            params[name] = self.step(name, params[name], gradient)

    def step(self, name: str, W: Array, gradient: Array) -> Array:
        """The new value of the parameter `name`, now W."""
        raise NotImplementedError

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in vars(self).items() if isinstance(v, float))
        return f"{type(self).__name__}({settings})"


def _sqrt(a: Array) -> Array:
    return backend_of(a=a).xp.sqrt(a)


class SGD(Optimizer):
    """Stochastic gradient descent, W - lr g (Robbins & Monro 1951)."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)

    def step(self, name: str, W: Array, gradient: Array) -> Array:
        return W - self.lr * gradient


class Momentum(Optimizer):
    """Classical momentum, v = momentum v - lr g, W + v (Polyak 1964)."""

    def __init__(self, lr: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(lr)
        self.momentum = _check("momentum", momentum, 1)
        self.v: dict[str, Array] = {}

    def _velocity(self, name: str, gradient: Array) -> Array:
        v = self.v.get(name)
        step = -self.lr * gradient
        self.v[name] = step if v is None else self.momentum * v + step
        return self.v[name]

    def step(self, name: str, W: Array, gradient: Array) -> Array:
        return W + self._velocity(name, gradient)


class Nesterov(Momentum):
    """Nesterov's accelerated gradient (1983), v = momentum v - lr g, W + momentum v - lr g.

    The form of Bengio et al. 2013 ("Advances in optimizing recurrent networks", eq. 7), where W
    stands for the point already moved ahead, so that the gradient is needed at W alone.
    """

    def step(self, name: str, W: Array, gradient: Array) -> Array:
        return W + (self.momentum * self._velocity(name, gradient) - self.lr * gradient)


class AdaGrad(Optimizer):
    """h = h + g^2, W - lr g / (sqrt(h) + eps) (Duchi, Hazan & Singer 2011)."""

    def __init__(self, lr: float = 0.01, eps: float = 1e-7) -> None:
        super().__init__(lr)
        self.eps = _check("eps", eps)
        self.h: dict[str, Array] = {}

    def step(self, name: str, W: Array, gradient: Array) -> Array:
        squared = gradient * gradient
        self.h[name] = self.h[name] + squared if name in self.h else squared
        return W - self.lr * gradient / (_sqrt(self.h[name]) + self.eps)


class RMSProp(Optimizer):
    """h = decay h + (1 - decay) g^2, W - lr g / (sqrt(h) + eps) (Tieleman & Hinton 2012)."""

    def __init__(self, lr: float = 0.01, decay: float = 0.99, eps: float = 1e-7) -> None:
        super().__init__(lr)
        self.decay = _check("decay", decay, 1)
        self.eps = _check("eps", eps)
        self.h: dict[str, Array] = {}

    def step(self, name: str, W: Array, gradient: Array) -> Array:
        squared = (1 - self.decay) * (gradient * gradient)
        self.h[name] = self.decay * self.h[name] + squared if name in self.h else squared
        return W - self.lr * gradient / (_sqrt(self.h[name]) + self.eps)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1): bias-corrected moments m of g and v of g^2."""

    def __init__(
        self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(lr)
        self.beta1 = _check("beta1", beta1, 1)
        self.beta2 = _check("beta2", beta2, 1)
        self.eps = _check("eps", eps)
        self.moments: dict[str, tuple[int, Array, Array]] = {}

    def step(self, name: str, W: Array, gradient: Array) -> Array:
        steps, m, v = self.moments.get(name, (0, 0 * W, 0 * W))
        steps += 1
        m = self.beta1 * m + (1 - self.beta1) * gradient
        v = self.beta2 * v + (1 - self.beta2) * (gradient * gradient)
        self.moments[name] = steps, m, v
        m_hat, v_hat = m / (1 - self.beta1**steps), v / (1 - self.beta2**steps)
        return W - self.lr * m_hat / (_sqrt(v_hat) + self.eps)


OPTIMIZERS: dict[str, Any] = {
    cls.__name__.lower(): cls for cls in (SGD, Momentum, Nesterov, AdaGrad, RMSProp, Adam)
}
