"""What does it cost to have the same bits everywhere?

The reproducible product against NumPy's plain one, 10000x784 by 784x50, and reproducible training
steps and predictions against the fast ones, 784-50-10 with ReLU: steps in batches of 100 images,
MNIST's where XNET_DATA_DIR is set, else random ones with as many zeros, and of numbers none of
which is 0; predictions of 1, 100 and 10,000 images. Contenders take turns, a fiftieth of a second
each; what is told is the median, and the quartiles, of the ratios within a round. On one thread it
is processor time, so that what other programs take does not count; on more, the clock's.
The floor of a product is that of the float64 products it takes: three for float32, six for float64.

    python benchmarks/reproducible_cost.py [--threads 2] [--rounds 100]
"""

import argparse
import os
import statistics
import time

import numpy as np
from bench import images, network_step, training_network, without_handicaps
from report import machine, save, summary

import xnet
from xnet import exact
from xnet.testing.parity import same_bits

BURST = 0.02
BACKENDS = [info.name for info in xnet.backends() if info.usable]


def alternating(contenders, rounds):
    """Seconds of a call, in every round of each contender: the mean of a burst, after one call."""
    clock = time.process_time if xnet.num_threads() == 1 else time.perf_counter
    taken = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            run()
            calls, began = 0, clock()
            while (now := clock()) - began < BURST:
                run()
                calls += 1
            taken[name].append((now - began) / calls)
    return taken


def ratio(taken, name, unit, times=1.0):
    """Median and quartiles of how many times as long as the unit a contender takes."""
    found = [times * a / b for a, b in zip(taken[name], taken[unit], strict=True)]
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:5.1f} ({low:.1f}-{high:.1f})"


def products(dtype):
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
    return contenders


def in_both_modes(name, dtype, make):
    """What `make` calls on a backend, fast and reproducible, with a network 784-50-10."""

    def contender(reproducible):
        backend = xnet.resolve(name, reproducible=reproducible)
        return make(backend, training_network(backend, dtype))

    return {"fast": contender(False), "reproducible": contender(True)}


def step(x):
    """A training step of these samples."""
    t = np.random.default_rng(0).integers(0, 10, len(x))

    def make(backend, network):
        here = backend.asarray(x, network.dtype), backend.asarray(t)
        return network_step(network, *here, lr=0.1)

    return make


def prediction(x):
    """Their predictions."""

    def make(backend, network):
        here = backend.asarray(x, network.dtype)
        return lambda: (network.predict(here), backend.synchronize())

    return make


def samples(count):
    """So many images (count, 784), float32."""
    if "XNET_DATA_DIR" not in os.environ:
        return images(count)
    (x, _), _ = xnet.datasets.load_mnist()
    return x[:count]


DENSE = np.random.default_rng(0).random((100, 784), dtype=np.float32)
CALLS = {
    "step, 100 images": step(samples(100)),
    "step, no number 0": step(DENSE),
    "predict 1 image": prediction(samples(1)),
    "predict 100 images": prediction(samples(100)),
    "predict 10,000 images": prediction(samples(10_000)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100)
    chosen = parser.parse_args()
    xnet.set_num_threads(chosen.threads)
    found = {}
    for dtype in ("float32", "float64"):
        taken = alternating(products(dtype), chosen.rounds)
        slices = exact.product_slices(784, dtype)[0]
        print(f"\nproduct, {dtype}: times NumPy's plain @")
        floor = ratio(taken, "float64 product", "plain", slices * (slices + 1) / 2)
        print(f"  {'the floor':12} {floor}")
        for name in BACKENDS:
            print(f"  {name:12} {ratio(taken, name, 'plain')}")
        found[f"product, {dtype}"] = {name: summary(t) for name, t in taken.items()}
        for call, make in CALLS.items():
            print(f"{call}, {dtype}: times the fast one")
            for name in BACKENDS:
                taken = alternating(in_both_modes(name, dtype, make), chosen.rounds)
                fast = statistics.median(taken["fast"]) * 1e6
                told = ratio(taken, "reproducible", "fast")
                print(f"  {name:12} {told}   (fast: {fast:.0f} us)", flush=True)
                kept = {mode: summary(t) for mode, t in taken.items()}
                found[f"{call}, {dtype}, {name}"] = kept
    suffix = "" if chosen.threads == 1 else f"_{chosen.threads}_threads"
    save(f"reproducible_cost{suffix}", {"machine": machine("scipy"), "seconds": found})


if __name__ == "__main__":
    without_handicaps()
    main()
