"""How does a prediction grow with the batch and with the width, and is there a cliff on the way?

784-H-10, sigmoid, float32, no zeros in the images, on numpy and numba: the batch from 1 to 8,192
with H = 50, and H from 10 to 1,000 with a batch of 100. Sizes take turns, each keeps its fastest
call. The lines are fitted power laws of the larger half of the sizes; their exponents are printed,
with every step that takes over 1.3 times as much longer as its multiplications are more.

    python benchmarks/inference_growth.py
"""

import math
from itertools import pairwise

import bench
import numpy as np
from report import FIGURES, machine, save, without_handicaps

import xnet
from xnet import plotting

VARIED = {
    "samples in the batch": [(n, n, 50) for n in (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 8192)],
    "hidden units": [(h, 100, h) for h in (10, 20, 50, 100, 200, 500, 1000)],
}
BACKENDS = ("numpy", "numba")
TURNS, TURN_SECONDS = 7, 0.03
SPARE = 1.3


def measure(name, points):
    """The fastest call at each size, in seconds."""
    rng, contenders = np.random.default_rng(0), {}
    for value, n, hidden in points:
        net = xnet.TwoLayerNet(784, hidden, 10, "xavier", dtype="float32", backend=name)
        x = rng.random((n, 784), dtype=np.float32)
        expected = xnet.TwoLayerNet(784, hidden, 10, "xavier", dtype="float32").predict(x)
        np.testing.assert_allclose(net.predict(x), expected, rtol=0, atol=1e-5)
        contenders[value] = lambda net=net, x=x: net.predict(x)
    return [bench.summary(taken)["min"] for taken in bench.in_turns(contenders, TURNS).values()]


def main():
    bench.TURN_SECONDS = TURN_SECONDS
    panels, facts = {}, {"what": __doc__.splitlines()[0], "machine": machine(), "points": []}
    for varied, points in VARIED.items():
        panels[varied] = {}
        for name in BACKENDS:
            taken = measure(name, points)
            values, work = [p[0] for p in points], [n * h for _, n, h in points]
            half = len(points) // 2
            slope, start = np.polyfit(np.log(values[half:]), np.log(taken[half:]), 1)
            print(f"{varied}, {name}: exponent {slope:.2f}")
            for (a, b), (w, v), (size, larger) in zip(
                pairwise(taken), pairwise(work), pairwise(values), strict=True
            ):
                if b / a > SPARE * v / w:
                    print(f"  a cliff from {size} to {larger}: {b / a:.2f} for {v / w:.2f}")
            fitted = [math.exp(start + slope * math.log(v)) for v in values]
            panels[varied][name] = list(zip(values, taken, fitted, strict=True))
            point = {"varied": varied, "backend": name, "exponent": slope, "values": values}
            facts["points"].append(point | {"seconds": taken})
    save("inference_growth", facts)
    plotting.save(plotting.growth(panels, "one prediction"), FIGURES / "inference_growth.png")


if __name__ == "__main__":
    without_handicaps()
    main()
