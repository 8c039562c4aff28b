"""Others' finite differences on the same network and data: JAX vectorised, PyTorch in a loop.

784-50-10, sigmoid, 100 images of MNIST, float64; every answer is checked against backpropagation.
The vectorised differences perturb a stack of copies of the parameters (`jax.vmap` of the loss,
compiled); the loop is the notes' with PyTorch's kernels. JAX and PyTorch are no dependency of
xnet's: what is not installed is said and left out (`pip install jax torch`).

    python benchmarks/peers/finite_differences.py
"""

import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from report import machine, save, without_handicaps

import xnet

H = 1e-4
ENOUGH = 5.0
"""Seconds to go on timing one contender for."""

STACK = 256
"""Perturbed copies of the parameters at a time in JAX: 80 MiB."""


def with_jax(params, x, t):
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    shapes = {name: array.shape for name, array in params.items()}
    flat = jnp.concatenate([jnp.ravel(jnp.asarray(array)) for array in params.values()])
    x, t = jnp.asarray(x), jnp.asarray(t)

    def loss(vector):
        parts, at = {}, 0
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            parts[name] = vector[at : at + size].reshape(shape)
            at += size
        z = jax.nn.sigmoid(x @ parts["W1"] + parts["b1"])
        y = jax.nn.log_softmax(z @ parts["W2"] + parts["b2"])
        return -jnp.sum(t * y) / x.shape[0]

    @jax.jit
    def differences(vector, indices):
        def one(k):
            return (loss(vector.at[k].add(H)) - loss(vector.at[k].add(-H))) / (2 * H)

        return jax.vmap(one)(indices)

    def gradient():
        size = flat.shape[0]
        parts = [
            differences(flat, jnp.minimum(jnp.arange(k, k + STACK), size - 1))
            for k in range(0, size, STACK)
        ]
        return np.asarray(jnp.concatenate(parts)[:size])

    differences(flat, jnp.arange(STACK)).block_until_ready()  # compiles
    return gradient


def with_torch(params, x, t):
    import torch

    torch.set_num_threads(1)  # more wait for each other as soon as anything else runs
    tensors = {name: torch.tensor(array) for name, array in params.items()}
    x, t = torch.tensor(x), torch.tensor(t)

    def loss():
        z = torch.sigmoid(torch.addmm(tensors["b1"], x, tensors["W1"]))
        y = torch.log_softmax(torch.addmm(tensors["b2"], z, tensors["W2"]), dim=1)
        return -(t * y).sum().item() / x.shape[0]

    def gradient():
        found = []
        with torch.no_grad():
            for tensor in tensors.values():
                flat = tensor.view(-1)
                for k in range(flat.numel()):
                    value = flat[k].item()
                    flat[k] = value + H
                    above = loss()
                    flat[k] = value - H
                    found.append((above - loss()) / (2 * H))
                    flat[k] = value
        return np.array(found)

    return gradient


def main():
    (x, t), _ = xnet.datasets.load_mnist()
    x, t = np.asarray(x[:100], np.float64), np.eye(10)[t[:100]]
    nets = {name: xnet.TwoLayerNet(784, 50, 10, backend=name) for name in ("numpy", "numba")}
    params = {name: array.copy() for name, array in nets["numpy"].params.items()}
    contenders = {
        f"xnet, {name}": lambda net=net: np.concatenate(
            [array.ravel() for array in net.numerical_gradient(x, t).values()]
        )
        for name, net in nets.items()
    }
    for module, make in {"jax": with_jax, "torch": with_torch}.items():
        if find_spec(module) is None:
            print(f"{module} is not installed, and left out: pip install {module}")
        else:
            contenders[module] = make(params, x, t)
    backprop = np.concatenate([array.ravel() for array in nets["numpy"].gradient(x, t).values()])
    facts = {"what": __doc__.splitlines()[0], "machine": machine("jax", "torch"), "seconds": {}}
    for name, gradient in contenders.items():
        taken = []
        while not taken or (sum(taken) < ENOUGH and len(taken) < 9):
            started = time.perf_counter()
            found = gradient()
            taken.append(time.perf_counter() - started)
            worst = np.abs(found - backprop).max()
            assert worst < 1e-8, f"{name} is {worst} from backpropagation"
        facts["seconds"][name] = min(taken)
        print(f"{name:12} {min(taken) * 1e3:10.1f} ms, best of {len(taken)}", flush=True)
    best = facts["seconds"]["xnet, numba"]
    for name, s in facts["seconds"].items():
        print(f"{name:12} takes {s / best:8,.1f} times as long as xnet on numba")
    save("peers", facts)


if __name__ == "__main__":
    without_handicaps()
    main()
