"""How long is the walk of one call: Python functions entered, and moves between files.

A prediction, a training step and a numerical gradient of small networks, on each backend, after
calls that warm up. Functions of every library count, compiled ones as one.

    python benchmarks/walk.py
"""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np

import xnet
from xnet import layers, optimizers


def walked(run: Callable[[], Any]) -> tuple[int, int]:
    """Python functions that a call enters, and how often the file changes."""
    for _ in range(5):
        run()
    calls, moves, here = 0, 0, ""

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls, moves, here
        if event not in ("call", "return"):
            return
        calls += event == "call"
        now = frame if event == "call" else frame.f_back
        file = now.f_code.co_filename if now else ""
        moves += file != here
        here = file

    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls, moves


def main() -> None:
    """Print a line for each call."""
    rng = np.random.default_rng(0)
    x, t = rng.random((100, 784), dtype=np.float32), rng.integers(0, 10, 100)
    few, labels = rng.random((10, 20)), rng.integers(0, 5, 10)
    for name in [info.name for info in xnet.backends() if info.usable]:
        for reproducible in (False, True):
            backend = xnet.resolve(name, reproducible)
            stack = [layers.Affine(784, 50, "he"), layers.ReLU(), layers.Affine(50, 10, "he")]
            net = xnet.Network(stack, dtype="float32", backend=backend)
            small = xnet.TwoLayerNet(20, 8, 5, backend=backend)
            runs: dict[str, Callable[[], Any]] = {"predict": lambda net=net: net.predict(x)}
            for optimizer in (optimizers.SGD(), optimizers.Adam()):
                runs[f"train_step, {type(optimizer).__name__}"] = (
                    lambda net=net, optimizer=optimizer: net.train_step(x, t, optimizer)
                )
            runs["numerical_gradient, 20-8-5"] = lambda net=small: net.numerical_gradient(
                few, labels
            )
            for what, run in runs.items():
                mode = "reproducible" if reproducible else "fast"
                print(f"{name}, {mode}, {what}: {'{} calls, {} moves'.format(*walked(run))}")


if __name__ == "__main__":
    main()
