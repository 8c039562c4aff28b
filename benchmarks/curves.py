"""The notes' own experiment (§4.5.2) at its full length, by numerical gradient and by backprop.

784-50-10, sigmoid, initial weights of 0.01, MNIST in batches of 100, learning rate 0.1, 10,000
iterations, both from the same seed and so the same weights and batches.

    python benchmarks/curves.py [--iterations 10000] [--backend numba]
    python benchmarks/curves.py --draw           # the figure again, from the saved results
"""

import argparse

import numpy as np
from report import FIGURES, load, machine, save, without_handicaps

import xnet
from xnet import plotting
from xnet.training import History, train

KINDS = {"numerical": "numerical gradient", "backprop": "backpropagation"}
SMOOTH = 50


def run(iterations, backend):
    (x, t), (x_test, t_test) = xnet.datasets.load_mnist()
    facts = {"what": __doc__.splitlines()[0], "machine": machine(), "backend": backend}
    losses = {}
    for kind in KINDS:
        net = xnet.TwoLayerNet(784, 50, 10, seed=0, backend=backend)
        net.numerical_gradient(x[:1], t[:1])  # compiles
        history = train(net, x, t, x_test, t_test, iterations=iterations, gradient=kind)
        losses[kind] = np.array(history.loss)
        facts[kind] = {
            "seconds": round(history.seconds, 1),
            "loss": [round(float(m), 6) for m in losses[kind].reshape(-1, SMOOTH).mean(axis=1)],
            "test_accuracy": history.test_accuracy,
            "epoch_ends": history.epoch_ends,
        }
        print(f"{kind}: {history.seconds:.1f} s, test accuracy {history.test_accuracy[-1]:.4f}")
    apart = np.abs(losses["numerical"] - losses["backprop"]).max()
    facts["largest_difference_of_a_loss"] = float(apart)
    print(f"no loss differs by more than {apart:.1e}")
    save("curves", facts)


def draw():
    facts = load("curves")
    histories = {}
    for kind, name in KINDS.items():
        saved = facts[kind]
        histories[f"{name}, {saved['seconds']:,.0f} s"] = History(
            loss=[mean for mean in saved["loss"] for _ in range(SMOOTH)],
            test_accuracy=saved["test_accuracy"],
            epoch_ends=saved["epoch_ends"],
        )
    FIGURES.mkdir(exist_ok=True)
    plotting.save(plotting.training_curves(histories, SMOOTH), FIGURES / "curves.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=10_000, help=f"a multiple of {SMOOTH}")
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--draw", action="store_true", help="only draw what was saved")
    chosen = parser.parse_args()
    if not chosen.draw:
        run(chosen.iterations, chosen.backend)
    draw()


if __name__ == "__main__":
    without_handicaps()
    main()
