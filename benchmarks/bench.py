"""How fast is it here? Contenders on the same data, in turns, as ratios.

Each contender's answer is compared with the first's before anything is timed. Then they take turns
within one run, several calls a turn, so that what else the machine does meets them all; absolute
times of two runs are not to be compared. The networks are the notes' 784-50-100-10 for inference,
and 784-50-10 in batches of 100 for a training step (ReLU) and a numerical gradient (sigmoid),
float32 but for the last. The data are random with four fifths zeros, as MNIST's images have, unless
images are given.

    python benchmarks/bench.py PART [--json-file FILE] [--figure FILE]

A part gives what it found by case, a batch size say, and by contender, as `summary` of the seconds
of each call; the first contender is the one that ratios are to.
"""

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeAlias, cast

import numpy as np
import threadpoolctl
import typer

import xnet
from xnet import operations, plotting
from xnet.backend import Backend, backends, resolve
from xnet.layers import Affine, Layer, ReLU, Sigmoid, layer_class
from xnet.network import Network
from xnet.optimizers import OPTIMIZERS, SGD, Optimizer
from xnet.threads import num_threads
from xnet.tools import cli

Host: TypeAlias = np.ndarray[Any, Any]
Contender: TypeAlias = Callable[[], Any]
Summary: TypeAlias = dict[str, float]
Found: TypeAlias = dict[str, dict[str, Summary]]
"""By case, by contender, what `summary` says of the seconds."""

BATCHES = (1, 10, 100, 2_000, 10_000)
INFERENCE = (784, 50, 100, 10)
TURNS, TURN_SECONDS, PAUSE_SECONDS = 9, 0.1, 0.15
"""Turns of each contender, how long one lasts at least, and the pause before it: OpenBLAS's threads
spin for a tenth of a second after their last call, on a processor that the next contender needs.
After a pause a processor takes milliseconds to be as fast as before: a small part of a turn."""


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
        loss = -np.sum(targets * np.log(y)) / len(x)
        dout = (y - targets) / len(x)
        dz = dout @ W2.T
        dz[a <= 0] = 0
        W2 -= lr * (z.T @ dout)
        b2 -= lr * dout.sum(axis=0)
        W1 -= lr * (x.T @ dz)
        b1 -= lr * dz.sum(axis=0)
        return float(loss)

    return step


def network_step(
    network: Network, x: Any, t: Any, lr: float, optimizer: Optimizer | None = None
) -> Contender:
    """A training step of a network, by SGD if no optimizer is named."""
    optimizer = optimizer or SGD(lr)

    def step() -> float:
        loss = network.train_step(x, t, optimizer)
        network.backend.synchronize()
        return loss

    return step


clock = time.perf_counter
"""What `in_turns` reads."""


def in_turns(
    contenders: Mapping[str, Contender], turns: int | None = None
) -> dict[str, list[float]]:
    """Seconds of each call of each contender: in turns, after calls that are not timed."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns or TURNS):
        for name, run in contenders.items():
            time.sleep(PAUSE_SECONDS)
            run()
            began = clock()
            while (started := clock()) - began < TURN_SECONDS:
                run()
                taken[name].append(clock() - started)
    return taken


def summary(taken: Sequence[float]) -> Summary:
    """Median, quartiles and minimum of times, in seconds."""
    low, middle, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else [taken[0]] * 3
    return {"median": middle, "low": low, "high": high, "min": min(taken), "calls": len(taken)}


def inference(
    peers: Mapping[str, Callable[[Network], Callable[[Host], Host]]] | None = None,
    batches: Sequence[int] = BATCHES,
    x: Host | None = None,
) -> Found:
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
    found: Found = {}
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
) -> Found:
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
    return {f"{len(x)}": {name: summary(taken) for name, taken in in_turns(contenders).items()}}


def batching(x: Host | None = None) -> Found:
    """Seconds for images one at a time and as one batch (§3.6.3), on each backend.

    As many images as are given, 10,000 without any. Every answer is compared with NumPy's batch.
    """
    x = images(10_000) if x is None else x
    expected = inference_network("numpy").predict(x)
    found: Found = {}
    for name in usable():
        network = inference_network(name)
        here, out = network.backend.asarray(x), network.backend.to_numpy

        def batch(network: Network = network, here: Any = here) -> Any:
            return network.predict(here)

        def one_at_a_time(network: Network = network, here: Any = here) -> Any:
            return [network.predict(here[i, ...]) for i in range(len(x))]

        rows = np.stack([out(row) for row in one_at_a_time()])
        for answer in (rows, out(batch())):
            np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)
            assert (answer.argmax(axis=1) == expected.argmax(axis=1)).all()
        contenders = {"one at a time": one_at_a_time, "batch": batch}
        found[f"{name}, {len(x):,} images"] = _timed(network.backend, contenders)
    return found


AFFINE_BATCHES = (1, 10, 100, 1_000, 10_000)
AFFINE_WIDTHS = (
    *((784, 50), (10, 10), (10, 1_000), (1_000, 10)),
    *((100, 1_000), (1_000, 100), (1_000, 1_000)),
)
AFFINE_TURNS = 5
"""Of each contender: there are so many cases that it takes minutes."""


def affine(
    batches: Sequence[int] = AFFINE_BATCHES, widths: Sequence[tuple[int, int]] = AFFINE_WIDTHS
) -> Found:
    """Seconds of x W + b and of its three gradients, both precisions, no zeros in x.

    Against the expressions that one writes in NumPy, which the numba backend is not to be slower
    than at any size.
    """
    rng = np.random.default_rng(0)
    found: Found = {}
    for dtype in ("float32", "float64"):
        for n in batches:
            for inputs, outputs in widths:
                shapes = (n, inputs), (inputs, outputs), (outputs,), (n, outputs)
                x, W, b, dout = (rng.random(shape).astype(dtype) for shape in shapes)

                def forward(x: Host = x, W: Host = W, b: Host = b) -> Any:
                    return x @ W + b

                def backward(x: Host = x, W: Host = W, dout: Host = dout) -> Any:
                    return dout @ W.T, x.T @ dout, dout.sum(axis=0)

                case = f"{n:,} by {inputs}×{outputs}, {dtype}"
                op = operations.Affine(inputs, outputs)

                def run(backend: Backend, arrays: list[Any], op: Any = op) -> Any:
                    x, W, b, _ = arrays
                    return backend.run(op, x, W, b)

                def back(backend: Backend, arrays: list[Any], op: Any = op) -> Any:
                    x, W, b, dout = arrays
                    return backend.run_backward(op, dout, x, dout, W, b)

                arrays = x, W, b, dout
                found[case] = _kernel(run, arrays, forward, AFFINE_TURNS)
                found[f"gradients of {case}"] = _kernel(back, arrays, backward, AFFINE_TURNS)
    return found


def stack(activation: type[Any]) -> list[Layer]:
    """784-50-10 with an activation."""
    return [Affine(784, 50, "he"), activation(), Affine(50, 10, "he")]


def activations(batches: Sequence[int] = BATCHES, dtype: str = "float32") -> Found:
    """Seconds of predictions and training steps of 784-50-10 with each activation, sigmoid first.

    On numba, where it is installed: there they are one call whatever the activation.
    """
    backend = "numba" if "numba" in usable() else "numpy"
    kinds = {k: v for k, v in operations.registered().items() if v.fuses == "pointwise"}
    kinds = {"Sigmoid": kinds["Sigmoid"], **kinds}
    x, t = images(max(batches)), np.random.default_rng(0).integers(0, 10, max(batches))
    found: Found = {}
    for n in batches:
        predictions: dict[str, Contender] = {}
        steps: dict[str, Contender] = {}
        for name, kind in kinds.items():
            network = Network(stack(layer_class(kind)), dtype=dtype, backend=backend)
            reference = Network(stack(layer_class(kind)), dtype=dtype, backend="numpy")
            np.testing.assert_allclose(
                network.predict(x[:n]), reference.predict(x[:n]), rtol=0, atol=1e-5
            )
            predictions[name] = lambda network=network, n=n: network.predict(x[:n])
            steps[name] = network_step(network, x[:n], t[:n], 1e-6)
        found[f"predict {n:,}"] = {k: summary(v) for k, v in in_turns(predictions).items()}
        found[f"train {n:,}"] = {k: summary(v) for k, v in in_turns(steps).items()}
    return found


def optimizers() -> Found:
    """Seconds of a training step of 784-50-10, ReLU, batch 100, with each optimizer, SGD first."""
    x, t = images(100), np.random.default_rng(0).integers(0, 10, 100)
    found: Found = {}
    for name in usable():
        contenders: dict[str, Contender] = {}
        for key, kind in sorted(OPTIMIZERS.items(), key=lambda item: item[0] != "sgd"):
            network = training_network(name)
            here = network.backend.asarray(x), network.backend.asarray(t)
            contenders[key] = network_step(network, *here, 0.0, kind(lr=1e-6))
        found[name] = {k: summary(v) for k, v in in_turns(contenders).items()}
    return found


def opaque() -> Found:
    """Seconds of a training step with a layer that backends know nothing of, and of that alone."""

    class Through(Layer):
        """Gives what it gets."""

        def __call__(self, x: Any) -> Any:
            return x * 1

        def forward(self, x: Any) -> Any:
            return x * 1

        def backward(self, dout: Any) -> Any:
            return dout * 1

    x, t = images(100), np.random.default_rng(0).integers(0, 10, 100)
    found: Found = {}
    for name in usable():
        contenders: dict[str, Contender] = {}
        for what, between in {"without": [], "with": [Through()]}.items():
            layers = [Affine(784, 50, "he"), ReLU(), *between, Affine(50, 10, "he")]
            network = Network(layers, dtype="float32", backend=name)
            here = network.backend.asarray(x), network.backend.asarray(t)
            contenders[what] = network_step(network, *here, 0.01)
        h, layer = resolve(name).asarray(np.ones((100, 50), np.float32)), Through()
        contenders["the layer alone"] = lambda h=h, layer=layer: layer.backward(layer.forward(h))
        found[name] = {k: summary(v) for k, v in in_turns(contenders).items()}
    return found


def numerical_gradient() -> Found:
    """Seconds of a numerical gradient of 784-50-10, batch 100, float64, by backend.

    Beside it, as "one loss", what the notes' loop spends on each of its 79,520 losses.
    """
    x, t = images(100).astype(np.float64), np.random.default_rng(0).integers(0, 10, 100)
    found: Found = {}
    kinds = {k: v for k, v in operations.registered().items() if v.fuses == "pointwise"}
    for name in usable():
        # Of the others only where it takes milliseconds.
        wanted = kinds if name == "numba" else {"Sigmoid": kinds["Sigmoid"]}
        contenders: dict[str, Contender] = {}
        for kind, operation in wanted.items():
            network = Network(stack(layer_class(operation)), backend=name)
            here = network.backend.asarray(x), network.backend.asarray(t)
            exact, numerical = network.gradient(*here), network.numerical_gradient(*here)
            for key, W in exact.items():
                out = network.backend.to_numpy
                np.testing.assert_allclose(out(numerical[key]), out(W), rtol=0, atol=1e-3)
            if kind == "Sigmoid":
                contenders["one loss"] = lambda network=network, here=here: network.loss(*here)
            contenders[kind] = lambda network=network, here=here: network.numerical_gradient(*here)
        found[name] = _timed(resolve(name), contenders)
    return found


START_UPS = {
    "Python alone": "pass",
    "import numpy": "import numpy",
    "import numba": "import numba",
    "import xnet": "import xnet",
    "predict on numpy": "import xnet; xnet.TwoLayerNet(784, 50, 10).predict([[0.0] * 784])",
    "predict on numba": "import xnet; "
    "xnet.TwoLayerNet(784, 50, 10, backend='numba').predict([[0.0] * 784])",
}


def start_up() -> Found:
    """Seconds of a new process that imports something, or predicts once; kernels are cached."""
    without = [] if "numba" in usable() else ["import numba", "predict on numba"]

    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    contenders: dict[str, Contender] = {
        name: (lambda code=code: run(code))
        for name, code in START_UPS.items()
        if name not in without
    }
    for contender in contenders.values():  # compiles what is not cached
        contender()
    return {"a new process": {n: summary(t) for n, t in in_turns(contenders).items()}}


def reproducible() -> Found:
    """Seconds of a prediction and of a training step, in fast and in reproducible mode."""
    found: Found = {}
    x, t = images(1_000), np.random.default_rng(0).integers(0, 10, 100)
    for name in usable():
        predictions: dict[str, Contender] = {}
        steps: dict[str, Contender] = {}
        for mode in ("fast", "reproducible"):
            backend = resolve(name, reproducible=mode == "reproducible")
            network, here = inference_network(backend), backend.asarray(x)
            predictions[mode] = lambda network=network, here=here: network.predict(here)
            batch = backend.asarray(x[:100]), backend.asarray(t)
            steps[mode] = network_step(training_network(backend), *batch, 0.01)
        backend = resolve(name)
        found[f"{name}, predict 1,000 images"] = _timed(backend, predictions)
        found[f"{name}, training step"] = _timed(backend, steps)
    return found


def _kernel(
    kernel: Callable[[Backend, list[Any]], Any],
    arrays: Sequence[Host],
    by_hand: Contender,
    turns: int | None = None,
) -> dict[str, Summary]:
    """Times of what a backend computes of arrays there, after the hand-written expression."""

    def results(run: Contender) -> list[Any]:
        found = run()
        return [*cast("tuple[Any, ...]", found)] if isinstance(found, tuple) else [found]

    close = 1e-4 if arrays[0].dtype == np.float32 else 1e-10
    contenders: dict[str, Contender] = {"NumPy by hand": by_hand}
    for name in usable():
        backend = resolve(name)
        here = [backend.asarray(array) for array in arrays]

        def run(backend: Backend = backend, here: list[Any] = here) -> Any:
            result = kernel(backend, here)
            backend.synchronize()
            return result

        for one, other in zip(results(run), results(by_hand), strict=True):
            scale = float(np.abs(other).max())
            np.testing.assert_allclose(backend.to_numpy(one), other, rtol=0, atol=close * scale)
        contenders[name] = run
    return {name: summary(taken) for name, taken in in_turns(contenders, turns).items()}


def _timed(backend: Backend, contenders: Mapping[str, Contender]) -> dict[str, Summary]:
    """Times of contenders on one backend, each until its device has finished."""

    def until_done(run: Contender) -> Contender:
        def done() -> Any:
            result = run()
            backend.synchronize()
            return result

        return done

    waiting = {name: until_done(run) for name, run in contenders.items()}
    return {name: summary(taken) for name, taken in in_turns(waiting).items()}


PARTS: dict[str, Callable[[], Found]] = {
    "inference": inference,
    "batching": batching,
    "affine": affine,
    "activations": activations,
    "training": training,
    "optimizers": optimizers,
    "opaque": opaque,
    "numerical-gradient": numerical_gradient,
    "start-up": start_up,
    "reproducible": reproducible,
}


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
    return facts | {"versions": versions, "blas": blas()}


def blas() -> list[str]:
    """Which BLAS each library has loaded: its kernel for this processor, and its threads."""
    for name in usable():  # a backend loads its own when it first computes
        inference_network(name).predict(images(1))
    return [
        f"{Path(found['filepath']).name}: {found.get('architecture', '?')}, "
        f"{found['num_threads']} thread(s)"
        for found in threadpoolctl.threadpool_info()
        if found["user_api"] == "blas"
    ]


HANDICAPS = re.compile(
    "OPENBLAS_(CORETYPE|L2_SIZE)|NPY_(DIS|EN)ABLE_CPU_FEATURES|BLIS_ARCH_TYPE"
    "|MKL_(ENABLE_INSTRUCTIONS|CBWR|DEBUG_CPU_TYPE)|(DNNL|ONEDNN)_MAX_CPU_ISA|ATEN_CPU_CAPABILITY"
    "|NUMBA_(CPU_NAME|CPU_FEATURES|OPT|DISABLE_JIT|ENABLE_AVX|BOUNDSCHECK|DEBUG.*)|XLA_FLAGS"
)
"""Variables that choose another processor's kernels for a contender, or none at all."""


def handicaps() -> list[str]:
    """Those that are set: with OPENBLAS_CORETYPE alone, NumPy can run at half its speed."""
    return sorted(name for name in os.environ if HANDICAPS.fullmatch(name))


def without_handicaps() -> None:
    """Start this program anew without what would slow a contender down, if that is set."""
    if found := handicaps():
        kept = {k: v for k, v in os.environ.items() if k not in found}
        os.execve(sys.executable, [sys.executable, *sys.argv], kept)


def write(path: Path, facts: Mapping[str, Any]) -> None:
    """`facts` as JSON."""
    path.write_text(json.dumps(facts, indent=1) + "\n")


def floor(flops_per_second: float | None = None) -> float:
    """Seconds that one image's multiplications take at the speed of the fastest large product.

    That is measured: of float32, by NumPy's BLAS or by another backend's product.
    """
    work = 2 * sum(a * b for a, b in pairwise(INFERENCE))
    if flops_per_second is None:
        size = 1536
        a, b = np.ones((size, size), np.float32), np.zeros(size, np.float32)
        taken: list[float] = []
        for backend in map(resolve, usable()):
            x, W, bias = (backend.asarray(array) for array in (a, a, b))
            for _ in range(7):
                started = clock()
                backend.run(operations.Affine(size, size), x, W, bias)
                backend.synchronize()
                taken.append(clock() - started)
        flops_per_second = 2 * size**3 / min(taken)
    return work / flops_per_second


def table(found: Found) -> str:
    """Median microseconds, and how many times the first contender's speed, quartiles included.

    Lines of Markdown, one for each case and contender.
    """
    first = next(iter(next(iter(found.values()))))
    lines = [f"| case | contender | median µs | times {first} (quartiles) |", "|---|---|---|---|"]
    for case, contenders in found.items():
        unit = contenders[first]["median"]
        for name, s in contenders.items():
            ratios = f"{unit / s['median']:.2f} ({unit / s['high']:.2f}–{unit / s['low']:.2f})"
            lines.append(f"| {case} | {name} | {s['median'] * 1e6:,.1f} | {ratios} |")
    return "\n".join(lines)


command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Part = StrEnum("Part", list(PARTS))


@command.command()
def main(
    part: Annotated[Part, typer.Argument(help="What to time.")],
    json_file: Annotated[Path | None, typer.Option(help="File for the seconds.")] = None,
    figure: Annotated[Path | None, typer.Option(help="File for a figure, of inference.")] = None,
    processor_time: Annotated[
        bool,
        typer.Option(
            "--processor-time",
            help="Count what the threads of this process take, not what other programs do. For "
            "one thread (XNET_NUM_THREADS=1) on a busy machine; waiting does not count.",
        ),
    ] = False,
) -> None:
    """Time contenders in turns, after comparing their answers."""
    global clock
    kernels = blas()  # and now it is known how many threads compute
    if processor_time:
        if num_threads() > 1 or part == "start-up":
            raise typer.BadParameter("processor time is for one thread of this process")
        clock = time.process_time
    if figure is not None:
        if part != "inference":
            raise typer.BadParameter("only inference has a figure")
        plotting.check_format(figure)
    for path in (json_file, figure):
        if path is not None:
            xnet.weights.check_writable(path)
    print("\n".join([*kernels, f"xnet: {num_threads()} thread(s)"]))
    found = PARTS[part]()
    print(table(found))
    if part == "inference":
        print(f"floor: {floor() * 1e6:.2f} µs an image, at the speed of the fastest product")
    if json_file is not None:
        facts = {"machine": machine(), "seconds": found}
        write(json_file, facts | {"floor_seconds_per_image": floor()})
    if figure is not None:
        plotting.save(plotting.throughput(found, floor()), figure)


if __name__ == "__main__":
    without_handicaps()
    cli.run(command, "bench.py")
