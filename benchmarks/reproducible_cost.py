"""What does it cost to have the same bits everywhere?

The reproducible product against NumPy's plain one, 10000x784 by 784x50, and the reproducible
training step against the fast one, 784-50-10 with ReLU in batches of 100. Contenders take turns
within one run; medians. The floor of a product is that of the float64 products it takes: three for
float32, six for float64.

    python benchmarks/reproducible_cost.py
"""

import statistics

import numpy as np
from bench import in_turns, network_step, training_network, without_handicaps
from report import machine, save, summary

import xnet
from xnet import exact
from xnet.tools.parity import same_bits

BACKENDS = [info.name for info in xnet.backends() if info.usable]


def products(dtype, turns=25):
    rng = np.random.default_rng(0)
    x, W = (rng.standard_normal(s).astype(dtype) for s in ((10_000, 784), (784, 50)))
    wide_x, wide_W = x.astype("float64"), W.astype("float64")
    contenders = {"plain": lambda: x @ W, "float64 product": lambda: wide_x @ wide_W}
    expected = exact.matmul(np, x, W)
    for name in BACKENDS:
        backend = xnet.resolve(name, reproducible=True)
        here = backend.asarray(x), backend.asarray(W)
        assert same_bits(backend.to_numpy(backend.matmul(*here)), expected)

        def run(backend=backend, here=here):
            backend.matmul(*here)
            backend.synchronize()

        contenders[name] = run
    return in_turns(contenders, turns)


def steps(name, dtype, turns=60):
    rng = np.random.default_rng(0)
    x, t = rng.random((100, 784)), rng.integers(0, 10, 100)

    def step(reproducible):
        backend = xnet.resolve(name, reproducible=reproducible)
        here = backend.asarray(x, dtype), backend.asarray(t)
        return network_step(training_network(backend, dtype), *here, lr=0.1)

    return in_turns({"fast": step(False), "reproducible": step(True)}, turns)


def main():
    found = {}
    for dtype in ("float32", "float64"):
        taken = products(dtype)
        plain = statistics.median(taken["plain"])
        slices = exact.product_slices(784, dtype)[0]
        floor = slices * (slices + 1) / 2 * statistics.median(taken["float64 product"])
        print(f"\nproduct, {dtype}: times NumPy's plain @ ({plain * 1e3:.1f} ms)")
        print(f"  {'the floor':12} {floor / plain:5.1f}")
        for name in BACKENDS:
            seconds = statistics.median(taken[name])
            print(
                f"  {name:12} {seconds / plain:5.1f}   {floor / seconds:4.0%} of the floor's speed"
            )
        found[f"product, {dtype}"] = {name: summary(t) for name, t in taken.items()}
        print(f"training step, {dtype}: times the fast one")
        for name in BACKENDS:
            taken = steps(name, dtype)
            fast, slow = (statistics.median(taken[mode]) for mode in ("fast", "reproducible"))
            print(f"  {name:12} {slow / fast:5.1f}   (fast: {fast * 1e6:.0f} us)")
            found[f"step, {dtype}, {name}"] = {mode: summary(t) for mode, t in taken.items()}
    save("reproducible_cost", {"machine": machine("scipy"), "seconds": found})


if __name__ == "__main__":
    without_handicaps()
    main()
