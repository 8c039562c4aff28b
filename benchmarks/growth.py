"""How does one numerical gradient grow with the batch, the hidden width and the depth?

MNIST, sigmoid, 784-50-10 and a batch of 100 but for what varies. The formula: a weight of layer l
is perturbed twice, for each of the Z_l samples-and-inputs that are not 0 and the N biases, and each
time what lies behind is evaluated anew,

    work = sum over l of 2 (Z_l + N) M_l w_l

where M_l is the layer's width, and w_l counts a loss's multiply-adds for one sample: the M_(l+1)
units of the next layer, one each, and a full product M_k M_(k+1) for each layer behind that. Behind
the last layer there is the softmax alone, M_l. Seconds = work times one constant a backend, fitted
to all the points (their geometric mean).

Peak memory on numpy, by tracemalloc, against its bound (see `xnet.perturbation`).

    python benchmarks/growth.py
    python benchmarks/growth.py --draw           # the figure again, from the saved results
"""

import argparse
import math
import tracemalloc
from itertools import pairwise

import numpy as np
from report import FIGURES, load, machine, save, seconds

import xnet
from xnet import perturbation, plotting
from xnet.layers import Affine, Sigmoid

VARIED = {
    "samples in the batch": [(n, n, [50]) for n in (10, 25, 50, 100, 200, 400)],
    "hidden units": [(m, 100, [m]) for m in (10, 25, 50, 100, 200, 400)],
    "hidden layers of 50": [(d, 100, [50] * d) for d in (1, 2, 3, 4)],
}
TURNS = {"numpy": 1, "numba": 7}


def network(hidden, backend):
    layers = []
    for inputs, outputs in pairwise([784, *hidden, 10]):
        layers += [Affine(inputs, outputs, "xavier"), Sigmoid()]
    return xnet.Network(layers[:-1], backend=backend)


def work(x, hidden):
    widths, total = [*hidden, 10], 0
    for k, width in enumerate(widths):
        met = np.count_nonzero(x) if k == 0 else len(x) * widths[k - 1]
        behind = widths[k + 1] if k + 1 < len(widths) else width
        behind += sum(a * b for a, b in pairwise(widths[k + 1 :]))
        total += 2 * (int(met) + len(x)) * width * behind
    return total


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
            for name, turns in TURNS.items():
                net = network(hidden, name)
                exact, found = net.gradient(x, t), net.numerical_gradient(x, t)
                assert max(np.abs(exact[k] - found[k]).max() for k in exact) < 1e-6
                point[name] = min(
                    seconds(lambda net=net, x=x, t=t: net.numerical_gradient(x, t), turns)
                )
            net = network(hidden, "numpy")
            point["peak_bytes"] = peak(net, x, t)
            point["peak_bound"] = perturbation.memory(n, [784, *hidden, 10])
            facts["points"].append(point)
            print(point)
    for name in TURNS:
        ratios = [math.log(p[name] / p["work"]) for p in facts["points"]]
        facts[f"{name}_seconds_per_work"] = math.exp(sum(ratios) / len(ratios))
    save("growth", facts)


def table(facts):
    print(
        "| varied | value | work | numpy | by formula | numba | by formula | peak memory | bound |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for p in facts["points"]:
        cells = [p["varied"], p["value"], f"{p['work'] / 1e6:,.1f} M"]
        for name in TURNS:
            expected = facts[f"{name}_seconds_per_work"] * p["work"]
            cells += [f"{p[name] * 1e3:,.1f} ms", f"{expected * 1e3:,.1f} ms"]
        cells += [f"{p[k] / 2**20:,.0f} MiB" for k in ("peak_bytes", "peak_bound")]
        print("|", " | ".join(map(str, cells)), "|")


def draw(facts):
    panels = {
        varied: {
            name: [
                (p["value"], p[name], facts[f"{name}_seconds_per_work"] * p["work"])
                for p in facts["points"]
                if p["varied"] == varied
            ]
            for name in TURNS
        }
        for varied in VARIED
    }
    FIGURES.mkdir(exist_ok=True)
    plotting.growth(panels).savefig(FIGURES / "growth.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="only draw what was saved")
    if not parser.parse_args().draw:
        measure()
    facts = load("growth")
    table(facts)
    draw(facts)


if __name__ == "__main__":
    main()
