"""What tests start with ``mpiexec``: ``python mpi_program.py NAME ARGUMENTS-AS-JSON``.

Rank 0 prints one line of JSON.
"""

import json
import os
import signal
import sys
import time

import numpy as np
from mpi4py import MPI

import xnet
from xnet import distributed
from xnet.training import Callback

WORLD = MPI.COMM_WORLD
PATIENCE = 60.0  # seconds: the watchdog of every message


def mnist(n):
    (x, t), _ = xnet.datasets.load_mnist()
    return x[:n], t[:n]


def uneven(n):
    """Rows k^2 apart: each rank has more than the one before."""
    ends = [n * k**2 // WORLD.size**2 for k in range(WORLD.size + 1)]
    return slice(ends[WORLD.rank], ends[WORLD.rank + 1])


def local(backend):
    return ("numpy", "numba")[WORLD.rank % 2] if backend == "mixed" else backend


def hashes(runs, samples, steps):
    """SHA-256 after so many steps for each of the runs."""
    x, t = mnist(samples)
    found = []
    for backend, dtype, optimizer, spread, reproducible in runs:
        block = distributed.communicator(WORLD, local(backend), reproducible, timeout=PATIENCE)
        with block:
            net = xnet.TwoLayerNet(784, 50, 10, seed=0, dtype=dtype)
            mine = distributed.shard(samples) if spread == "even" else uneven(samples)
            stepper = {"sgd": xnet.optimizers.SGD(0.1), "adam": xnet.optimizers.Adam()}[optimizer]
            history = xnet.train(
                net, x[mine], t[mine], optimizer=stepper, iterations=steps, progress=False
            )
            found.append([xnet.weights.sha256(net), history.loss[-1], history.train_accuracy[-1]])
    return found


class Slow(Callback):
    """Makes a run last, so that it can be killed in its midst."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_step(self, training):
        time.sleep(self.seconds)


def job(folder, steps, resume=False, pause=0.0, backend="numpy"):
    """A run with checkpoints that may be killed, or go on."""
    (x, t), _ = xnet.datasets.load_digits()
    with distributed.communicator(WORLD, local(backend), True, timeout=PATIENCE) as current:
        processes = current.ranks.gathered(os.getpid())
        if pause and WORLD.rank == 0:
            print(json.dumps(processes), flush=True)
        mine = uneven(len(x))
        layers = [
            xnet.layers.Affine(64, 20, "he"),
            xnet.layers.BatchNorm(20),
            xnet.layers.ReLU(),
            xnet.layers.Dropout(0.2),
            xnet.layers.Affine(20, 10, "he"),
        ]
        net = xnet.Network(layers, seed=0, dtype="float32")
        history = xnet.train(
            net,
            x[mine],
            t[mine],
            optimizer=xnet.optimizers.Adam(),
            iterations=steps,
            validation=0.1,
            callbacks=[Slow(pause)] if pause else [],
            checkpoint=folder,
            checkpoint_every=0.05,
            resume=resume,
            progress=False,
        )
        scores = history.loss, history.validation_accuracy
        return [xnet.weights.sha256(net), *scores, history.stopped]


def fault(kind):
    """What goes wrong on one rank alone, or is not the same on all."""
    last = WORLD.rank == WORLD.size - 1
    (x, t), _ = xnet.datasets.load_digits()
    mode = not (kind == "mode" and last)
    timeout = 2.0 if kind in ("silent", "leaves") else PATIENCE
    with distributed.communicator(WORLD, "numpy", mode, timeout=timeout) as backend:
        mine = distributed.shard(len(x))
        x, t = x[mine].copy(), t[mine].copy()
        settings = {"batch_size": 50 + (kind == "batch size" and last)}
        if kind == "not finite" and last:
            x[3, 5] = np.nan
        if kind == "labels" and last:
            t[3] = 11
        if kind == "no rows":
            x, t = (x[:0], t[:0]) if last else (x, t)
        if kind == "nobody has rows":
            x, t = x[:0], t[:0]
        net = xnet.TwoLayerNet(64 - (kind == "network" and last), 10, 10)
        if kind == "parameters" and last:
            net.params["b1"][0] = 1.0
        if kind == "raises" and last:
            raise KeyError("a fault of the program's own")
        if kind == "exits" and last:
            sys.exit(3)
        if kind == "leaves by exit" and last:
            sys.exit(0)
        if kind == "patience":
            settings["patience"] = 3
        if kind == "nested":
            distributed.communicator(WORLD).__enter__()
        if kind == "dies" and last:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "silent" and last:
            time.sleep(30)
        if kind == "leaves" and last:
            return None
        if kind == "elsewhere":
            net = xnet.TwoLayerNet(64, 10, 10, backend="numpy")
        if kind == "diverges":
            settings["optimizer"] = xnet.optimizers.SGD(1e308)
        history = xnet.train(net, x, t, iterations=20, progress=False, **settings)
        same = backend.ranks.gathered(xnet.weights.sha256(net))
        return [history.stopped, len(set(same))]


def signalled(folder):
    """A run that one rank is asked to end."""
    (x, t), _ = xnet.datasets.load_digits()
    with distributed.communicator(WORLD, "numpy", True, timeout=PATIENCE) as backend:

        class Asked(Callback):
            def on_step(self, training):
                if WORLD.rank == 1 and training.history.iterations == 7:
                    os.kill(os.getpid(), signal.SIGTERM)

        mine = distributed.shard(len(x))
        net = xnet.TwoLayerNet(64, 10, 10)
        history = xnet.train(
            net, x[mine], t[mine], iterations=1000, callbacks=[Asked()], progress=False,
            checkpoint=folder,
        )  # fmt: skip
        steps = backend.ranks.gathered([history.iterations, history.stopped])
        return steps


def aware():
    """The hash of a run whose arrays MPI takes as they are."""
    (x, t), _ = xnet.datasets.load_digits()
    found = []
    for cuda_aware in (False, True):
        block = distributed.communicator(
            WORLD, "numpy", True, timeout=PATIENCE, cuda_aware=cuda_aware
        )
        with block:
            net = xnet.TwoLayerNet(64, 10, 10, seed=0)
            mine = distributed.shard(len(x))
            xnet.train(net, x[mine], t[mine], iterations=5, progress=False)
            found.append(xnet.weights.sha256(net))
    return found


def again():
    """A run that a signal to one rank ends, and goes on after."""
    (x, t), _ = xnet.datasets.load_digits()
    with distributed.communicator(WORLD, "numpy", True, timeout=PATIENCE):

        class Asked(Callback):
            def on_step(self, training):
                if WORLD.rank == 1 and training.history.iterations == 6:
                    os.kill(os.getpid(), signal.SIGINT)

        mine = distributed.shard(len(x))
        run = xnet.Training(xnet.TwoLayerNet(64, 10, 10), x[mine], t[mine], callbacks=[Asked()])
        first = run.run(iterations=20, progress=False)
        found = [[first.stopped, first.iterations]]
        second = run.run(iterations=5, progress=False)
        return [*found, [second.stopped, second.iterations]]


def moves(sizes):
    """Bytes of a step in each mode, and those of the parameters."""
    found = []
    for reproducible in (True, False):
        with distributed.communicator(WORLD, "numpy", reproducible, timeout=PATIENCE) as backend:
            net = xnet.TwoLayerNet(*sizes, dtype="float32")
            x, t = np.ones((8, sizes[0]), np.float32), np.zeros(8, int)
            run = xnet.Training(net, x, t, batch_size=8)
            run.run(iterations=1, progress=False)
            traffic = backend.ranks.traffic
            with backend.ranks.placed(8 * WORLD.size, np.arange(8) + 8 * WORLD.rank):
                before = traffic.messages, traffic.bytes
                net.gradient(x, t)
            messages, sent = traffic.messages - before[0], traffic.bytes - before[1]
            found.append([messages, sent, sum(W.nbytes for _, W in net.params.items())])
    return found


if __name__ == "__main__":
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    result = globals()[name](**arguments)
    if WORLD.rank == 0:
        print(json.dumps(result), flush=True)
