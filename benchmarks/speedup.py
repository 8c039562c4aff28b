"""How many times faster than the notes' loop is the numerical gradient of 784-50-10?

100 images of MNIST, sigmoid, float64. The loop is run in full, 79,520 losses, piece by piece, and
the backends in turn with its pieces, so that what else the machine does meets them all; medians.
Answers are checked. Also: how far Numba's kernel is from the arithmetic floor, its exponentials
times the cost of a vectorised one here.

The loop's BLAS has one thread, and then as many as xnet: more are faster on idle cores, and many
times slower as soon as anything else runs, for they wait for each other at every product. What is
quoted is the faster of both.

    python benchmarks/speedup.py
"""

import statistics
import time

import numba
import numpy as np
from bench import PAUSE_SECONDS, without_handicaps
from notes import TwoLayerNet, numerical_gradient
from report import machine, save, seconds, summary
from threadpoolctl import threadpool_limits
from xnet_numba.elementary import _exp2

import xnet

PIECE = 28
"""Rows of W1, or numbers of b1, in a piece of the loop."""


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
    (x, t), _ = xnet.datasets.load_mnist()
    x, t = np.asarray(x[:100], np.float64), np.eye(10)[t[:100]]
    nets = {name: xnet.TwoLayerNet(784, 50, 10, backend=name) for name in ("numpy", "numba")}
    found = {name: net.numerical_gradient(x, t) for name, net in nets.items()}
    notes = TwoLayerNet({name: array.copy() for name, array in nets["numpy"].params.items()})
    bound = 200 * 2.0**-53 * notes.loss(x, t) / 1e-4
    per_loss = {threads: [] for threads in sorted({1, xnet.num_threads()})}
    taken = {"numpy": [], "numba": []}
    for name, array in notes.params.items():
        for start in range(0, len(array), PIECE):
            piece = array[start : start + PIECE]  # a view: to perturb it is to perturb the network
            for threads, times in per_loss.items():
                with threadpool_limits(threads, "blas"):
                    time.sleep(PAUSE_SECONDS)
                    started = time.perf_counter()
                    expected = numerical_gradient(lambda _: notes.loss(x, t), piece)
                    times.append((time.perf_counter() - started) / (2 * piece.size))
            for backend, net in nets.items():
                worst = np.abs(found[backend][name][start : start + PIECE] - expected).max()
                assert worst <= bound, (backend, name, worst, bound)
                time.sleep(PAUSE_SECONDS)
                taken[backend] += seconds(lambda net=net: net.numerical_gradient(x, t), 3)
    losses = 2 * sum(array.size for array in notes.params.values())
    loops = {
        threads: {"median": statistics.median(times) * losses, "min": min(times) * losses}
        for threads, times in per_loss.items()
    }
    facts = {"what": __doc__.splitlines()[0], "machine": machine(), "losses": losses}
    facts["threads"] = numba.get_num_threads()
    facts["seconds"] = {f"loop, {threads} BLAS thread(s)": loop for threads, loop in loops.items()}
    facts["seconds"] |= {backend: summary(times) for backend, times in taken.items()}
    for kind in ("median", "min"):
        threads, loop = min(loops.items(), key=lambda item: item[1][kind])
        facts[f"threads_of_the_faster_loop_by_{kind}"] = threads
        for backend in nets:
            ratio = loop[kind] / facts["seconds"][backend][kind]
            facts[f"{backend}_times_faster_by_{kind}"] = round(ratio, 1)
    facts["floor"] = floor(x, facts)
    save("speedup", facts)
    for name, s in facts["seconds"].items():
        print(f"{name:22} median {s['median'] * 1e3:10.2f} ms, min {s['min'] * 1e3:10.2f} ms")
    print(*(f"{k}: {v:,}" for k, v in facts.items() if "faster" in k), sep="\n")
    print(*(f"{k}: {v:,}" for k, v in facts["floor"].items()), sep="\n")


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
    without_handicaps()
    main()
