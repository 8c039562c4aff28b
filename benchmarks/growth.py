"""How does one numerical gradient grow with the batch, the hidden width and the depth?

MNIST, sigmoid, 784-50-10 and a batch of 100 but for what varies. The formula: a weight of layer l
is perturbed twice, and each time what lies behind is evaluated anew, for the Z_l samples of all its
inputs together that are not 0, and for the N of the biases,

    seconds = c sum over l of (D_l + 1)
              + sum over l of 2 (Z_l + N) M_l (a units_l + b products_l)

with the layer's inputs D_l and width M_l, units_l = M_(l+1) + M_(l+2) + ..., one exponential or so
each (behind the last layer there is the softmax alone: M_l), and products_l = M_(l+1) M_(l+2) +
..., for the next layer changes by one column and one row. c is what an input costs however little
there is to do. a, b and c are fitted to all the points of a backend.

Peak memory on numpy, by tracemalloc, against its bound (see `xnet.perturbation`).

    python benchmarks/growth.py
    python benchmarks/growth.py --draw           # the figure again, from the saved results
"""

import argparse
import time
import tracemalloc
from itertools import pairwise

import numpy as np
from report import FIGURES, load, machine, save, without_handicaps

import xnet
from xnet import perturbation, plotting
from xnet.layers import Affine, Sigmoid

VARIED = {
    "samples in the batch": [(n, n, [50]) for n in (10, 25, 50, 100, 200, 400)],
    "hidden units": [(m, 100, [m]) for m in (10, 25, 50, 100, 200, 400)],
    "hidden layers of 50": [(d, 100, [50] * d) for d in (1, 2, 3, 4)],
}
BACKENDS = ("numpy", "numba")
ENOUGH = 2.0
"""Seconds to go on timing one point for."""


def network(hidden, backend):
    layers = []
    for inputs, outputs in pairwise([784, *hidden, 10]):
        layers += [Affine(inputs, outputs, "xavier"), Sigmoid()]
    return xnet.Network(layers[:-1], backend=backend)


def work(x, hidden):
    """Inputs to go over, and units and products to evaluate, over all weights and samples."""
    widths, units, products = [*hidden, 10], 0, 0
    for k, width in enumerate(widths):
        met = np.count_nonzero(x) if k == 0 else len(x) * widths[k - 1]
        evaluated = 2 * (int(met) + len(x)) * width
        units += evaluated * (sum(widths[k + 1 :]) or width)
        products += evaluated * sum(a * b for a, b in pairwise(widths[k + 1 :]))
    return sum([785, *(width + 1 for width in hidden)]), units, products


def fit(points, backend):
    """The formula's constants, by least squares of the relative errors."""
    rows = np.array([p["work"] for p in points])
    taken = np.array([p[backend] for p in points])
    return np.linalg.lstsq(rows / taken[:, None], np.ones(len(points)))[0].tolist()


def by_formula(facts, point, backend):
    return float(np.dot(facts["constants"][backend], point["work"]))


def best(net, x, t):
    """The fastest of as many turns as take ENOUGH seconds."""
    taken = []
    while sum(taken) < ENOUGH:
        started = time.perf_counter()
        net.numerical_gradient(x, t)
        taken.append(time.perf_counter() - started)
    return min(taken)


def peak(net, x, t):
    tracemalloc.start()
    net.numerical_gradient(x, t)
    reached = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return reached


def measure():
    (images, labels), _ = xnet.datasets.load_mnist()
    facts = {"what": __doc__.splitlines()[0], "machine": machine(), "points": []}
    for varied, points in VARIED.items():
        for value, n, hidden in points:
            x, t = np.asarray(images[:n], np.float64), labels[:n]
            point = {"varied": varied, "value": value, "work": work(x, hidden)}
            for name in BACKENDS:
                net = network(hidden, name)
                exact, found = net.gradient(x, t), net.numerical_gradient(x, t)
                assert max(np.abs(exact[k] - found[k]).max() for k in exact) < 1e-6
                point[name] = best(net, x, t)
            net = network(hidden, "numpy")
            point["peak_bytes"] = peak(net, x, t)
            point["peak_bound"] = perturbation.memory(n, [784, *hidden, 10])
            facts["points"].append(point)
            print(point)
    facts["constants"] = {name: fit(facts["points"], name) for name in BACKENDS}
    save("growth", facts)


def table(facts):
    print(
        "| varied | value | work | numpy | by formula | numba | by formula | peak memory | bound |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for p in facts["points"]:
        cells = [p["varied"], p["value"]]
        for name in BACKENDS:
            expected = by_formula(facts, p, name)
            cells += [f"{p[name] * 1e3:,.1f} ms", f"{expected * 1e3:,.1f} ms"]
        cells += [f"{p[k] / 2**20:,.1f} MiB" for k in ("peak_bytes", "peak_bound")]
        print("|", " | ".join(map(str, cells)), "|")


def draw(facts):
    panels = {
        varied: {
            name: [
                (p["value"], p[name], by_formula(facts, p, name))
                for p in facts["points"]
                if p["varied"] == varied
            ]
            for name in BACKENDS
        }
        for varied in VARIED
    }
    FIGURES.mkdir(exist_ok=True)
    plotting.save(plotting.growth(panels), FIGURES / "growth.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="only draw what was saved")
    if not parser.parse_args().draw:
        measure()
    facts = load("growth")
    table(facts)
    draw(facts)


if __name__ == "__main__":
    without_handicaps()
    main()
