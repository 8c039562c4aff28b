"""How many times faster than the notes' loop is the numerical gradient of 784-50-10?

100 images of MNIST, sigmoid, float64; the loop run in full, 79,520 losses, in turn with the
backends, whose answers are checked first. Also: how far Numba's kernel is from the arithmetic
floor, its exponentials times the cost of a vectorised one here.

    python benchmarks/speedup.py [--loops 3]
"""

import argparse
import time

import numba
import numpy as np
from notes import TwoLayerNet
from report import machine, save, seconds, summary
from xnet_numba.elementary import _exp2

import xnet


@numba.njit(error_model="numpy", fastmath={"contract"})
def exponentials(x, out, turns):
    for _ in range(turns):
        for k in range(x.size):
            out[k] += _exp2(x[k] * out[k])


@numba.njit
def chain(n):
    """6 n operations of one cycle each, every one waiting for the one before."""
    x = np.uint64(1)
    for _ in range(n):
        x ^= x << np.uint64(13)
        x ^= x >> np.uint64(7)
        x ^= x << np.uint64(17)
    return x


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loops", type=int, default=3, help="how often the loop is run in full")
    loops = parser.parse_args().loops
    (x, t), _ = xnet.datasets.load_mnist()
    x, t = np.asarray(x[:100], np.float64), np.eye(10)[t[:100]]
    nets = {name: xnet.TwoLayerNet(784, 50, 10, backend=name) for name in ("numpy", "numba")}
    notes = TwoLayerNet({name: array.copy() for name, array in nets["numpy"].params.items()})
    losses = 2 * sum(array.size for array in notes.params.values())
    bound = 200 * 2.0**-53 * notes.loss(x, t) / 1e-4
    times = {"loop": [], "numpy": [], "numba": []}
    for _ in range(loops):
        started = time.perf_counter()
        expected = notes.numerical_gradient(x, t)
        times["loop"].append(time.perf_counter() - started)
        for name, net in nets.items():
            found = net.numerical_gradient(x, t)
            worst = max(np.abs(found[k] - expected[k]).max() for k in expected)
            assert worst <= bound, (name, worst, bound)
            turns = 50 if name == "numba" else 5
            times[name] += seconds(lambda net=net: net.numerical_gradient(x, t), turns)
    facts = {"what": __doc__.splitlines()[0], "machine": machine(), "losses": losses}
    facts["threads"] = numba.get_num_threads()
    facts["seconds"] = {name: summary(taken) for name, taken in times.items()}
    loop = facts["seconds"]["loop"]["median"]
    for name in nets:
        facts[f"{name}_times_faster"] = round(loop / facts["seconds"][name]["median"], 1)
    facts["floor"] = floor(x, facts)
    save("speedup", facts)
    for name in ("loop", *nets):
        s = facts["seconds"][name]
        ratio = f"{loop / s['median']:8,.0f} times faster" if name != "loop" else ""
        print(f"{name:6} median {s['median'] * 1e3:10.2f} ms, min {s['min'] * 1e3:10.2f} {ratio}")
    print(*(f"{name}: {value:,}" for name, value in facts["floor"].items()), sep="\n")


def floor(x, facts):
    """The exponentials of the hidden weights, nearly all there are, against the time taken."""
    vector, out = np.full(512, 1e-5), np.ones(512)  # both stay in the first-level cache
    per_exp = min(seconds(lambda: exponentials(vector, out, 1000), 9)) / (512 * 1000)
    clock = 6 * 10**7 / min(seconds(lambda: chain(10**7), 5))
    samples = 2 * 50 * (int(np.count_nonzero(x)) + len(x))  # a perturbed weight meets a sample
    exps = samples * 9
    taken = facts["seconds"]["numba"]["min"] * facts["threads"]
    return {
        "clock_GHz": round(clock / 1e9, 2),
        "cycles_per_loss": round(taken * clock / facts["losses"]),
        "cycles_per_loss_and_sample": round(taken * clock / samples, 1),
        "exponentials_per_loss_and_sample": 9,
        "cycles_per_vectorised_exponential": round(per_exp * clock, 2),
        "times_the_floor": round(taken / (exps * per_exp), 2),
    }


if __name__ == "__main__":
    main()
