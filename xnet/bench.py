"""How fast is it here? Contenders on the same network and data, in turns, as ratios.

Each contender's answer is compared with the first's before anything is timed. Then they take turns
within one run, several calls a turn, so that what else the machine does meets them all; absolute
times of two runs are not to be compared. The network is the notes' 784-50-100-10 for inference, and
784-50-10 with ReLU in batches of 100 for a training step, float32. The data are random with four
fifths zeros, as MNIST's images have, unless images are given.
"""

import datetime
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from xnet.backend import Backend, backends, resolve
from xnet.layers import Affine, ReLU, Sigmoid
from xnet.network import Network
from xnet.optimizers import SGD
from xnet.threads import num_threads

Host: TypeAlias = np.ndarray[Any, Any]
Contender: TypeAlias = Callable[[], Any]

BATCHES = (1, 10, 100, 2_000, 10_000)
INFERENCE = (784, 50, 100, 10)
TURNS, TURN_SECONDS, PAUSE_SECONDS = 9, 0.02, 0.15
"""Turns of each contender, how long one lasts at least, and the pause before it: OpenBLAS's threads
spin for a tenth of a second after their last call, on a processor that the next contender needs."""


def images(count: int, seed: int = 0) -> Host:
    """So many random images (count, 784), float32, four fifths of the pixels 0."""
    rng = np.random.default_rng(seed)
    x = rng.random((count, INFERENCE[0]), dtype=np.float32)
    return np.where(rng.random(x.shape, dtype=np.float32) < 0.8, np.float32(0), x)


def inference_network(backend: str | Backend) -> Network:
    """The notes' network (§3.6.2), the same on every backend."""
    a, b, c, d = INFERENCE
    layers = [Affine(a, b, "xavier"), Sigmoid(), Affine(b, c, "xavier"), Sigmoid()]
    return Network([*layers, Affine(c, d, "xavier")], dtype="float32", backend=backend)


def training_network(backend: str | Backend, dtype: str = "float32") -> Network:
    """784-50-10 with ReLU, the same on every backend."""
    layers = [Affine(784, 50, "he"), ReLU(), Affine(50, 10, "he")]
    return Network(layers, dtype=dtype, backend=backend)


def usable() -> list[str]:
    """The backends that run here, the reference first."""
    return [info.name for info in backends() if info.usable]


def host_params(network: Network) -> dict[str, Host]:
    """Copies of a network's parameters, on the host."""
    return {k: np.array(network.backend.to_numpy(v)) for k, v in network.params.items()}


def handwritten_inference(params: Mapping[str, Host]) -> Callable[[Host], Host]:
    """What one writes in NumPy (§3.6.2), from a network's parameters."""
    W1, b1, W2, b2, W3, b3 = params.values()

    def predict(x: Host) -> Host:
        z = 1 / (1 + np.exp(-(x @ W1 + b1)))
        z = 1 / (1 + np.exp(-(z @ W2 + b2)))
        scores = z @ W3 + b3
        e = np.exp(scores - scores.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    return predict


def handwritten_step(params: dict[str, Host], x: Host, t: Host, lr: float) -> Contender:
    """A training step as one writes it in NumPy; `params` are changed in place."""
    targets = np.eye(10, dtype=x.dtype)[t]

    def step() -> float:
        W1, b1, W2, b2 = params.values()
        a = x @ W1 + b1
        z = np.maximum(a, 0)
        scores = z @ W2 + b2
        e = np.exp(scores - scores.max(axis=1, keepdims=True))
        y = e / e.sum(axis=1, keepdims=True)
        loss = -np.sum(targets * np.log(y + 1e-7)) / len(x)
        dout = (y - targets) / len(x)
        dz = dout @ W2.T
        dz[a <= 0] = 0
        W2 -= lr * (z.T @ dout)
        b2 -= lr * dout.sum(axis=0)
        W1 -= lr * (x.T @ dz)
        b1 -= lr * dz.sum(axis=0)
        return float(loss)

    return step


def network_step(network: Network, x: Any, t: Any, lr: float) -> Contender:
    """A training step of a network."""
    optimizer = SGD(lr)

    def step() -> float:
        loss = network.train_step(x, t, optimizer)
        network.backend.synchronize()
        return loss

    return step


def in_turns(contenders: Mapping[str, Contender], turns: int = TURNS) -> dict[str, list[float]]:
    """Seconds of each call of each contender: in turns, after calls that are not timed."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, run in contenders.items():
            time.sleep(PAUSE_SECONDS)
            run()
            began = time.perf_counter()
            while (started := time.perf_counter()) - began < TURN_SECONDS:
                run()
                taken[name].append(time.perf_counter() - started)
    return taken


def summary(taken: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and minimum of times, in seconds."""
    low, middle, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else [taken[0]] * 3
    return {"median": middle, "low": low, "high": high, "min": min(taken), "calls": len(taken)}


def inference(
    peers: Mapping[str, Callable[[Network], Callable[[Host], Host]]] | None = None,
    batches: Sequence[int] = BATCHES,
    x: Host | None = None,
) -> dict[str, Any]:
    """Seconds of one prediction by batch size and contender.

    Parameters
    ----------
    peers
        By name, what makes a prediction function of a network on numpy.
    batches
        Batch sizes.
    x
        Images (N, 784), float32, at least as many as the largest batch.

    Raises
    ------
    AssertionError
        A contender's answer is not the first's; nothing is timed then.
    """
    x = images(max(batches)) if x is None else x
    reference = inference_network("numpy")
    predictors: dict[str, Callable[[Any], Any]] = {
        "NumPy by hand": handwritten_inference(host_params(reference))
    }
    predictors |= {name: inference_network(name).predict for name in usable()}
    predictors |= {name: make(reference) for name, make in (peers or {}).items()}
    found: dict[str, Any] = {}
    for n in batches:
        expected = np.asarray(predictors["NumPy by hand"](x[:n]))
        contenders: dict[str, Contender] = {}
        for name, predict in predictors.items():
            batch = resolve(name).asarray(x[:n]) if name in usable() else x[:n]

            def run(predict: Callable[[Any], Any] = predict, batch: Any = batch) -> Any:
                return predict(batch)

            answer = run()
            if name in usable():
                answer = resolve(name).to_numpy(answer)
            np.testing.assert_allclose(np.asarray(answer), expected, rtol=0, atol=1e-5)
            contenders[name] = run
        found[str(n)] = {name: summary(t) for name, t in in_turns(contenders).items()}
    return found


def training(
    peers: Mapping[str, Callable[[Network, Host, Host, float], Contender]] | None = None,
    x: Host | None = None,
    t: Host | None = None,
    lr: float = 0.01,
) -> dict[str, Any]:
    """Seconds of one training step by contender; parameters and errors as in `inference`."""
    x = images(100) if x is None else x
    t = np.random.default_rng(0).integers(0, 10, len(x)) if t is None else t
    reference = training_network("numpy")
    contenders: dict[str, Contender] = {
        "NumPy by hand": handwritten_step(host_params(reference), x, t, lr)
    }
    for name in usable():
        network = training_network(name)
        here = network.backend.asarray(x), network.backend.asarray(t)
        contenders[name] = network_step(network, *here, lr)
    for name, make in (peers or {}).items():
        contenders[name] = make(reference, x, t, lr)
    losses = {name: [float(run()) for _ in range(5)] for name, run in contenders.items()}
    for name, values in losses.items():
        np.testing.assert_allclose(values, losses["NumPy by hand"], rtol=1e-4, err_msg=name)
    return {"100": {name: summary(taken) for name, taken in in_turns(contenders).items()}}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"inference": inference, "training": training}


def machine(*packages: str) -> dict[str, Any]:
    """The processor and the versions that a timing depends on; nothing that names the machine."""
    try:
        match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    cpu = match[1] if match else platform.processor() or platform.machine()
    versions = {"python": platform.python_version()}
    for name in ("numpy", "numba", "scipy", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    facts = {"cpu": cpu, "cpus": os.cpu_count(), "threads": num_threads(), "date": date}
    return facts | {"versions": versions}


def write(path: Path, facts: Mapping[str, Any]) -> None:
    """`facts` as JSON."""
    path.write_text(json.dumps(facts, indent=1) + "\n")


def floor(flops_per_second: float | None = None) -> float:
    """Seconds that one image's multiplications take at the speed of a large product, measured."""
    work = 2 * sum(a * b for a, b in pairwise(INFERENCE))
    if flops_per_second is None:
        a = np.ones((1536, 1536), np.float32)
        taken = [0.0] * 7
        for k in range(7):
            started = time.perf_counter()
            np.matmul(a, a)
            taken[k] = time.perf_counter() - started
        flops_per_second = 2 * 1536**3 / min(taken)
    return work / flops_per_second


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Median microseconds, and how many times the first contender's speed, quartiles included.

    Lines of Markdown, one for each batch size and contender.
    """
    lines = [
        "| batch | contender | median µs | times NumPy by hand (quartiles) |",
        "|---|---|---|---|",
    ]
    for n, contenders in found.items():
        first = next(iter(contenders.values()))["median"]
        for name, s in contenders.items():
            ratios = f"{first / s['median']:.2f} ({first / s['high']:.2f}–{first / s['low']:.2f})"
            lines.append(f"| {n} | {name} | {s['median'] * 1e6:,.1f} | {ratios} |")
    return "\n".join(lines)
