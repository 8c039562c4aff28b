"""Optimizers: how gradients change parameters.

`update` writes to the arrays of `params`, as the book's do (§6.1); where a backend's arrays cannot
be written, it replaces them. What an optimizer remembers between steps it keeps by the parameter's
name.
"""

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

from xnet.backend import Array, Backend, backend_of, get_backend

Params = MutableMapping[str, Array]
Grads = Mapping[str, Array]


def _check(name: str, value: float, below: float = math.inf) -> float:
    """`value` as Python's own float if it lies in [0, below), for the argument `name`.

    NumPy's float64 would widen a float32 parameter.
    """
    if not 0 <= value < below:
        limit = "finite" if below == math.inf else f"below {below}"
        raise ValueError(f"{name} is {value}, expected at least 0 and {limit}")
    return float(value)


def _power(base: float, n: int) -> float:
    """Base to the n-th by multiplications alone: a library's pow depends on the processor."""
    result = 1.0
    while n:
        if n & 1:
            result *= base
        base *= base
        n >>= 1
    return result


class Optimizer:
    """Base: what every optimizer does around its own formula.

    Parameters
    ----------
    lr
        Learning rate, the factor of the step.

    Raises
    ------
    ValueError
        A negative or infinite learning rate, or a decay outside [0, 1).
    """

    slots = 0
    """How many arrays are remembered for each parameter; they start at 0."""

    def __init__(self, lr: float) -> None:
        self.lr = _check("lr", lr)
        self.memory: dict[str, tuple[int, list[Array]]] = {}

    def update(self, params: Params, grads: Grads) -> None:
        """Take one step: `grads` has the keys and shapes of `params`.

        Raises
        ------
        ValueError
            A gradient that has not its parameter's shape.
        BackendError
            Parameter, gradient and what is remembered of it live on different devices.
        """
        current = get_backend()
        with current.running():
            for name, gradient in grads.items():
                W, backend = params[name], current
                if not (backend.owns(W) and backend.owns(gradient)):
                    backend = backend_of(**{name: W, f"gradient of {name}": gradient})
                if gradient.shape != W.shape:
                    raise ValueError(
                        f"gradient of {name} has shape {tuple(gradient.shape)}, "
                        f"expected {tuple(W.shape)}"
                    )
                steps, memory = self.memory.get(name, (0, []))
                for array in memory:
                    backend_of(**{name: W, f"the optimizer's memory of {name}": array})
                    if array.shape != W.shape:
                        raise ValueError(
                            f"{name} has shape {tuple(W.shape)}, the optimizer remembers one of "
                            f"{tuple(array.shape)}: use a new optimizer for each network"
                        )
                with backend.running():
                    memory = memory or [backend.xp.zeros_like(W) for _ in range(self.slots)]
                    new, *memory = self.step(backend, steps + 1, W, gradient, *memory)
                    if new is not W and (new := backend.overwrite(W, new)) is not W:
                        params[name] = new
                self.memory[name] = steps + 1, memory

    def step(
        self, backend: Backend, n: int, W: Array, g: Array, *memory: Array
    ) -> tuple[Array, ...]:
        """The n-th step of a parameter, n from 1: its new value, then the new memory.

        W may have been overwritten by the new value, and is returned then; g and memory may not.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in vars(self).items() if isinstance(v, float))
        return f"{type(self).__name__}({settings})"


class SGD(Optimizer):
    """Stochastic gradient descent, W - lr g (Robbins & Monro 1951)."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)

    def step(
        self, backend: Backend, n: int, W: Array, g: Array, *memory: Array
    ) -> tuple[Array, ...]:
        return (backend.descend(W, g, self.lr),)


class Momentum(Optimizer):
    """Classical momentum, v = momentum v - lr g, W + v (Polyak 1964)."""

    slots = 1

    def __init__(self, lr: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(lr)
        self.momentum = _check("momentum", momentum, 1)

    def step(
        self, backend: Backend, n: int, W: Array, g: Array, *memory: Array
    ) -> tuple[Array, ...]:
        (v,) = memory
        v = self.momentum * v - self.lr * g
        return W + v, v


class Nesterov(Momentum):
    """Nesterov's accelerated gradient (1983), v = momentum v - lr g, W + momentum v - lr g.

    The form of Bengio et al. 2013 ("Advances in optimizing recurrent networks", eq. 7), where W
    stands for the point already moved ahead, so that the gradient is needed at W alone.
    """

    def step(
        self, backend: Backend, n: int, W: Array, g: Array, *memory: Array
    ) -> tuple[Array, ...]:
        (v,) = memory
        v = self.momentum * v - self.lr * g
        return W + (self.momentum * v - self.lr * g), v


class AdaGrad(Optimizer):
    """h = h + g^2, W - lr g / (sqrt(h) + eps) (Duchi, Hazan & Singer 2011)."""

    slots = 1

    def __init__(self, lr: float = 0.01, eps: float = 1e-7) -> None:
        super().__init__(lr)
        self.eps = _check("eps", eps)

    def step(
        self, backend: Backend, n: int, W: Array, g: Array, *memory: Array
    ) -> tuple[Array, ...]:
        (h,) = memory
        h = h + g * g
        return W - self.lr * g / (backend.xp.sqrt(h) + self.eps), h


class RMSProp(Optimizer):
    """h = decay h + (1 - decay) g^2, W - lr g / (sqrt(h) + eps) (Tieleman & Hinton 2012).

    The lecture takes a decay of 0.9; 0.99 is the book's default (§6.1).
    """

    slots = 1

    def __init__(self, lr: float = 0.01, decay: float = 0.99, eps: float = 1e-7) -> None:
        super().__init__(lr)
        self.decay = _check("decay", decay, 1)
        self.eps = _check("eps", eps)

    def step(
        self, backend: Backend, n: int, W: Array, g: Array, *memory: Array
    ) -> tuple[Array, ...]:
        (h,) = memory
        h = self.decay * h + (1 - self.decay) * (g * g)
        return W - self.lr * g / (backend.xp.sqrt(h) + self.eps), h


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1): bias-corrected moments m of g and v of g^2."""

    slots = 2

    def __init__(
        self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(lr)
        self.beta1 = _check("beta1", beta1, 1)
        self.beta2 = _check("beta2", beta2, 1)
        self.eps = _check("eps", eps)

    def step(
        self, backend: Backend, n: int, W: Array, g: Array, *memory: Array
    ) -> tuple[Array, ...]:
        m, v = memory
        m = self.beta1 * m + (1 - self.beta1) * g
        v = self.beta2 * v + (1 - self.beta2) * (g * g)
        m_hat = m / (1 - _power(self.beta1, n))
        v_hat = v / (1 - _power(self.beta2, n))
        return W - self.lr * m_hat / (backend.xp.sqrt(v_hat) + self.eps), m, v


OPTIMIZERS: dict[str, Any] = {
    cls.__name__.lower(): cls for cls in (SGD, Momentum, Nesterov, AdaGrad, RMSProp, Adam)
}
