"""Training on many ranks: one hash from all, what a step costs, what it sends, and what to expect.

    python benchmarks/ranks.py hashes   300 steps of MNIST: 1, 2, 3, 4 and 7 ranks, every case
    python benchmarks/ranks.py steps    time of a step on 1 to 4 ranks, its messages and bytes
    python benchmarks/ranks.py overlap  whether a message that is on its way leaves time to compute
    python benchmarks/ranks.py model    what that says of 8, 64 and 1,024 ranks

`steps` takes its turns within one run: the numbers of ranks and the modes alternate, and the ranks
that have nothing to do sleep. Each rank has one thread. Where there are fewer cores than ranks, as
the table says, more ranks can only be slower. `model` measures this machine's messages first; it is
a model, and says how far from the times of `steps` it is.
"""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from shutil import which
from statistics import median

import numpy as np
from report import load, machine, save, without_handicaps

import xnet
from xnet import distributed

HERE = Path(__file__).resolve()
PROGRAM = HERE.parent.parent / "tests" / "mpi_program.py"
RANKS = (1, 2, 3, 4)
NETWORKS = {"784-50-10": ([784, 50, 10], 100), "784-1000-1000-10": ([784, 1000, 1000, 10], 1000)}
"""Layers, and samples in a batch."""

SAMPLES, TURNS, MANY = 1500, 7, (8, 64, 1024)

LINKS = {
    "10 Gb/s Ethernet, TCP": (30e-6, 1.25e9),
    "40 Gb/s Ethernet, usNIC": (1.93e-6, 4.65e9),
    "200 Gb/s InfiniBand": (1e-6, 25e9),
}
"""Seconds for the first byte, and bytes a second. The second is what Squyres measured with Open MPI
("MPI over 40Gb Ethernet", 2014); the others are the links' rates, with the latencies that are usual
for TCP through the kernel, 20 to 50 us, and for RDMA."""


def started(n, *arguments, program=HERE):
    """What rank 0 of n prints, which is JSON."""
    beside = Path(sys.executable).with_name("mpiexec")
    launcher = str(beside) if beside.exists() else which("mpiexec")
    one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "XNET_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    done = subprocess.run(
        [launcher, "-n", str(n), sys.executable, str(program), *arguments],
        env=os.environ | one,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


# -- hashes


def hashes():
    """One SHA-256 for each dtype and optimizer, whatever the ranks, backends and shards."""
    options = product(("numpy", "numba", "mixed"), ("float32", "float64"), ("sgd", "adam"))
    cases = [(*case, spread) for case in options for spread in ("even", "uneven")]
    runs = [(*case, True) for case in cases] + [("numpy", "float32", "sgd", "even", False)]
    rows = []
    for n in (1, 2, 3, 4, 7):
        arguments = json.dumps({"runs": runs, "samples": SAMPLES, "steps": 300})
        for run, (digest, *_) in zip(
            runs, started(n, "hashes", arguments, program=PROGRAM), strict=True
        ):
            rows.append([n, *run, digest])
        print(f"{n} rank(s): {len(runs)} runs", flush=True)
    plain = {
        (dtype, optimizer): single(dtype, optimizer)
        for dtype, optimizer in product(("float32", "float64"), ("sgd", "adam"))
    }
    for (dtype, optimizer), expected in plain.items():
        found = {r[-1] for r in rows if r[2:4] == [dtype, optimizer] and r[5]}
        count = sum(r[2:4] == [dtype, optimizer] and r[5] for r in rows)
        same = found == {expected}
        print(f"{dtype} {optimizer}: {len(found)} hash(es) of {count} runs", expected[:16], same)
        if not same:
            sys.exit(1)
    fast = {r[-1] for r in rows if not r[5]}
    print(f"fast mode, float32 sgd: {len(fast)} hashes of {sum(not r[5] for r in rows)} runs")
    save("ranks_hashes", {"machine": machine(), "runs": rows})


def single(dtype, optimizer):
    """The hash of one process without MPI."""
    (x, t), _ = xnet.datasets.load_mnist()
    net = xnet.TwoLayerNet(784, 50, 10, dtype=dtype, backend=xnet.resolve("numba", True))
    own = {"sgd": xnet.optimizers.SGD(0.1), "adam": xnet.optimizers.Adam()}[optimizer]
    xnet.train(net, x[:SAMPLES], t[:SAMPLES], optimizer=own, iterations=300, progress=False)
    return xnet.weights.sha256(net)


# -- steps


def steps():
    """Print and keep what a step costs."""
    rows = started(max(RANKS), "--measure")
    for row in rows:
        sizes, _ = NETWORKS[row["network"]]
        row["floor"] = 4 * sum((a + 1) * b for a, b in pairwise(sizes))
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores; numba, float32, SGD, one thread a rank; us, medians of {TURNS} turns")
    print(
        f"{'network':18}{'mode':14}{'ranks':5}{'step':>9}{'waiting':>9}{'share':>7}"
        f"{'messages':>9}{'bytes':>12}{'of floor':>9}"
    )
    for row in rows:
        if row["share"] == 1:
            print(
                f"{row['network']:18}{row['mode']:14}{row['ranks']:5}{row['step'] * 1e6:9.0f}"
                f"{row['waiting'] * 1e6:9.0f}{row['waiting'] / row['step']:7.0%}"
                f"{row['messages']:9.0f}{row['bytes']:12,.0f}{row['bytes'] / row['floor']:9.2f}"
            )
    save("ranks_steps", {"machine": machine(), "cores": cores, "rows": rows})


def measure():
    """On each rank: time steps on the first n of them, by turns."""
    from mpi4py import MPI

    world, taken = MPI.COMM_WORLD, {}
    cases = [
        (network, mode, n, share)
        for network, mode in product(NETWORKS, ("fast", "reproducible"))
        for n, share in (*((n, 1.0) for n in RANKS), (2, 0.5))
    ]
    for _ in range(TURNS):
        for network, mode, n, share in cases:
            own = world.Split(int(world.rank < n), world.rank)
            if world.rank < n:
                found = timed(own, network, mode, share)
                taken.setdefault((network, mode, n, share), []).append(found)
            own.Free()
            rest(world)
    if world.rank == 0:
        keys = "network", "mode", "ranks", "share"
        rows = [
            dict(zip(keys, case, strict=True))
            | {name: median(of[name] for of in found) for name in found[0]}
            for case, found in taken.items()
        ]
        print(json.dumps(rows))


def rest(world):
    """Wait for the others without taking a core from them."""
    request = world.Ibarrier()
    while not request.Test():
        time.sleep(0.001)


def timed(comm, network, mode, share, count=20):
    """Seconds of a step, of which waiting, and what it sends; of a share of the batch."""
    sizes, batch = NETWORKS[network]
    batch = round(batch * share)
    count = count if len(sizes) == 3 else 4
    rng = np.random.default_rng(0)
    x = rng.random((4 * batch, sizes[0]), np.float32)
    t = rng.integers(0, sizes[-1], len(x))
    with distributed.communicator(comm, "numba", mode == "reproducible") as current:
        mine = distributed.shard(len(x))
        layers = [xnet.layers.Affine(sizes[0], sizes[1], "he")]
        for a, b in pairwise(sizes[1:]):
            layers += [xnet.layers.ReLU(), xnet.layers.Affine(a, b, "he")]
        net = xnet.Network(layers, dtype="float32")
        sgd = xnet.optimizers.SGD(0.01)
        run = xnet.Training(net, x[mine], t[mine], optimizer=sgd, batch_size=batch)
        # The steps alone: what is recorded at the end of a run is no part of one.
        take = run._step
        indices = [rng.integers(0, len(x), batch) for _ in range(count + 3)]
        for chosen in indices[:3]:
            take(chosen)
        traffic = current.ranks.traffic
        before = traffic.seconds, traffic.messages, traffic.bytes
        began = time.perf_counter()
        for chosen in indices[3:]:
            take(chosen)
        seconds = (time.perf_counter() - began) / count
        after = traffic.seconds, traffic.messages, traffic.bytes
    waiting, messages, sent = ((b - a) / count for a, b in zip(before, after, strict=True))
    return {"step": seconds, "waiting": waiting, "messages": messages, "bytes": sent}


# -- overlap


def overlap():
    """Print how long work and a message take one after the other, and begun together."""
    print("2 ranks: a product of matrices and an all-reduce that takes about as long, ms")
    for size, apart, together, asked in started(2, "--overlap"):
        print(
            f"{size:>12,} bytes: one after the other {apart * 1e3:7.2f}, begun together "
            f"{together / apart:.2f} of that, with MPI asked between pieces {asked / apart:.2f}"
        )


def overlapping():
    """On each of two ranks: medians of the three ways, by the message's bytes."""
    from mpi4py import MPI

    world, rows = MPI.COMM_WORLD, []
    W = np.ones((256, 256), np.float32)
    for size in (1 << 16, 1 << 20, 1 << 24):
        a = np.ones(size // 8)
        b = np.empty_like(a)
        message = min(elapsed(lambda a=a, b=b: world.Allreduce(a, b)) for _ in range(20))
        product = min(elapsed(lambda: W @ W) for _ in range(50))
        pieces = world.bcast(max(1, round(message / product)))

        def apart(a=a, b=b, pieces=pieces):
            for _ in range(pieces):
                W @ W
            world.Iallreduce(a, b).Wait()

        def together(a=a, b=b, pieces=pieces):
            request = world.Iallreduce(a, b)
            for _ in range(pieces):
                W @ W
            request.Wait()

        def asked(a=a, b=b, pieces=pieces):
            request = world.Iallreduce(a, b)
            for _ in range(pieces):
                W @ W
                request.Test()
            request.Wait()

        taken = {way: [] for way in (apart, together, asked)}
        for _ in range(41):
            for way, found in taken.items():
                world.Barrier()
                found.append(elapsed(way))
        rows.append([size, *map(median, taken.values())])
    if world.rank == 0:
        print(json.dumps(rows))


# -- model


def all_reduce(n, size, latency, rate, adding):
    """Seconds in which n ranks reduce so many bytes.

    The better of recursive doubling and Rabenseifner's algorithm, by Thakur, Rabenseifner & Gropp
    2005 ("Optimization of Collective Communication Operations in MPICH", §4.5): log2 n messages of
    all bytes, or 2 log2 n messages of 2 (n - 1) / n of them in all. `adding` is the time that a
    byte takes to be added.
    """
    if n == 1:
        return 0.0
    rounds, share = math.ceil(math.log2(n)), (n - 1) / n
    doubling = rounds * (latency + size / rate + size * adding)
    halving = 2 * rounds * latency + 2 * share * size / rate + share * size * adding
    return min(doubling, halving)


def messages():
    """On two ranks: seconds of an all-reduce by its bytes, the least of many."""
    from mpi4py import MPI

    world, found = MPI.COMM_WORLD, {}
    for size in (8, 1 << 12, 1 << 17, 1 << 20, 1 << 23):
        a = np.ones(size // 8)
        b = np.empty_like(a)
        times = []
        for _ in range(200 if size < 1 << 20 else 40):
            world.Barrier()
            began = time.perf_counter()
            world.Allreduce(a, b)
            times.append(time.perf_counter() - began)
        found[size] = min(times)
    if world.rank == 0:
        print(json.dumps(found))


def model():
    """Print what the model says of the measured ranks, and of many."""
    kept = load("ranks_steps")
    seconds = {int(size): taken for size, taken in started(2, "--messages").items()}
    a = np.ones(1 << 20)
    adding = min(elapsed(lambda: np.add(a, a, out=a)) for _ in range(20)) / a.nbytes
    largest = max(seconds)
    rate = largest / max(seconds[largest] - 2 * seconds[8] - largest * adding / 2, 1e-9)
    here = seconds[8], rate, adding
    print(f"here: {here[0] * 1e6:.1f} us, {rate / 1e9:.1f} GB/s, adding {adding * 1e9:.3f} ns/B")
    laws = {}
    for key in product(NETWORKS, ("fast", "reproducible")):
        rows = [row for row in kept["rows"] if (row["network"], row["mode"]) == key]
        laws[key] = Law.of(rows)
        for row in rows:
            if row["share"] == 1 and row["ranks"] > 1:
                turns = math.ceil(row["ranks"] / kept["cores"])
                said = laws[key].step(row["ranks"], here, turns=turns)
                print(
                    f"{key[0]:18}{key[1]:14}{row['ranks']:2} ranks: {row['step'] * 1e6:9.0f} us, "
                    f"model {said * 1e6:9.0f}, ratio {row['step'] / said:.2f}"
                )
    for link, (latency, bandwidth) in LINKS.items():
        print(f"\n{link}, one core a rank: speed-up of strong scaling, efficiency of weak")
        print(
            f"{'':32}" + "".join(f"{f'{n} ranks':>16}" for n in MANY) + "  communication wins from"
        )
        for key, law in laws.items():
            costs = latency, bandwidth, adding
            cells = [
                f"{law.alone / law.step(n, costs):8.1f} {law.weak(n, costs):7.0%}" for n in MANY
            ]
            wins, half = law.wins(costs), law.wins(costs, sent=0.5)
            said = f"  {wins}; with half the bytes: {half}"
            print(f"{key[0]:18}{key[1]:14}" + "".join(f"{cell:>16}" for cell in cells) + said)


@dataclass
class Law:
    """What a step of one network takes in one mode, in seconds.

    `alone` on one rank. On several, each has `fixed` to do whatever its share, for it cuts, rounds
    and updates every parameter, and `whole` divided by their number; it sends `sent` bytes.
    """

    alone: float
    fixed: float
    whole: float
    sent: float

    @classmethod
    def of(cls, rows):
        """By the steps of two ranks on a whole batch and on half of one."""
        taken = {(row["ranks"], row["share"]): row for row in rows}
        full, half = (taken[2, s]["step"] - taken[2, s]["waiting"] for s in (1.0, 0.5))
        whole = max(4 * (full - half), 0.0)
        return cls(taken[1, 1.0]["step"], full - whole / 2, whole, taken[2, 1.0]["bytes"])

    def work(self, n, turns=1):
        """A rank's own work, of a batch on n ranks."""
        return turns * (self.fixed + self.whole / n)

    def step(self, n, costs, turns=1):
        """Strong scaling: the same batch on n ranks."""
        return self.work(n, turns) + all_reduce(n, self.sent, *costs)

    def weak(self, n, costs):
        """Weak scaling: how much of a rank's speed is left where each has a whole batch."""
        return self.alone / (self.work(1) + all_reduce(n, self.sent, *costs))

    def wins(self, costs, sent=1.0):
        """The number of ranks, a power of two, from which communication is most of a step.

        Or that it never is: what each rank has to do for every parameter is more.
        """
        n = 2
        while n < 1 << 20 and self.work(n) > all_reduce(n, sent * self.sent, *costs):
            n *= 2
        return f"{n:,}" if n < 1 << 20 else "never"


def elapsed(function):
    """Seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    without_handicaps()
    ways = {"hashes": hashes, "steps": steps, "overlap": overlap, "model": model}
    ways |= {"--measure": measure, "--overlap": overlapping, "--messages": messages}
    if len(sys.argv) != 2 or sys.argv[1] not in ways:
        sys.exit(__doc__)
    ways[sys.argv[1]]()
