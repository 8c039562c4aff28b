"""What does each kernel of the numba backend cost, and how far is it from this machine's floor?

First the fused kernels as they run in a network: one thread, 48 rows (or one), all in the cache,
against the fastest product of one thread. Then kernels of large arrays, on all threads, against
the speed at which memory is copied. Operations count a multiplication and an addition as two;
those that are skipped, since x is 0, do not count. Each the fastest of many turns.

    python benchmarks/kernel_cost.py
"""

import time

import numpy as np
from numba import njit, prange
from report import machine, save, without_handicaps
from xnet_numba import generated, passes, products
from xnet_numba.compiling import OPTIONS
from xnet_numba.intrinsics import address_of, call

import xnet
from xnet import operations
from xnet.optimizers import SGD, Adam

POINTWISE = {k: v for k, v in operations.registered().items() if v.fuses == "pointwise"}

ROWS, TURNS, TURN_SECONDS = 48, 15, 0.02
ZEROS = 0.81
"""Share of zeros in MNIST's images."""


@njit(**OPTIONS)
def affine(times, routines, x, W, b, out, skip, words):
    kind, (k, m) = x.dtype.type(0), W.shape
    for _ in range(times):
        products.affine(
            *(routines, kind, address_of(x), x.shape[0], k, address_of(W), address_of(b)),
            *(address_of(out), m, skip, address_of(words)),
        )


@njit(**OPTIONS)
def gradient(times, routines, x, delta, skip, words, zeros, dW, db):
    kind, (n, k), m = x.dtype.type(0), x.shape, delta.shape[1]
    for _ in range(times):
        for task in range((k + 63) // 64):
            products.gradient(
                *(routines, kind, task, address_of(x), n, k, address_of(delta), m, skip),
                *(address_of(words), address_of(zeros), address_of(dW), address_of(db)),
            )


@njit(**OPTIONS)
def over_numbers(times, loop, x, numbers):
    for _ in range(times):
        call(loop, (x.dtype.type(0), address_of(x), x.size, address_of(numbers)))


@njit(**OPTIONS)
def over_rows(times, loop, x, numbers):
    for _ in range(times):
        n, m = x.shape
        call(loop, (x.dtype.type(0), address_of(x), n, m, address_of(numbers)))


@njit(**OPTIONS)
def transposition(times, a, out):
    for _ in range(times):
        passes._transpose(a, out)


@njit(parallel=True)
def copy(x, out):
    for i in prange(x.size):
        out[i] = x[i]


def fastest(call):
    """Seconds of a call, which is asked for so many repetitions."""
    call(1)
    started = time.perf_counter()
    call(1)
    times = max(1, int(TURN_SECONDS / (time.perf_counter() - started)))
    taken = []
    for _ in range(TURNS):
        started = time.perf_counter()
        call(times)
        taken.append((time.perf_counter() - started) / times)
    return min(taken)


def in_cache(dtype):
    """By kernel: operations and bytes read and written for a row, seconds for it."""
    rng = np.random.default_rng(0)
    routines = products.routines(dtype, gradient=True)
    size = dtype.itemsize

    def numbers(*shape):
        return rng.standard_normal(shape).astype(dtype)

    def mnist_like(n):
        return np.where(rng.random((n, 784)) < ZEROS, 0, numbers(n, 784)).astype(dtype)

    found = {}
    for n, k, m in ((ROWS, 784, 50), (ROWS, 50, 100), (ROWS, 100, 10), (1, 784, 50)):
        x, W, b, out, words = (
            *(numbers(n, k), numbers(k, m), numbers(m), numbers(n, m)),
            np.empty((0, 0), np.int64),
        )
        seconds = fastest(lambda times, a=(x, W, b, out, False, words): affine(times, routines, *a))
        name = f"affine {k}×{m}" + ("" if n > 1 else ", a batch of one")
        read = k * m * size if n == 1 else k * size
        found[name] = 2 * k * m, read + m * size, seconds / n
    x, W, b, out = mnist_like(ROWS), numbers(784, 50), numbers(50), numbers(ROWS, 50)
    words, used = np.empty((ROWS, 13), np.int64), 2 * 50 * np.count_nonzero(x) / ROWS
    taken = fastest(lambda times: affine(times, routines, x, W, b, out, True, words))
    found["affine 784×50, MNIST's zeros skipped"] = used, (784 + 50) * size, taken / ROWS
    zeros, dW, db = np.zeros(50, dtype), np.empty_like(W), np.empty_like(b)
    for name, given, skip in (
        ("gradient by W, 784×50", numbers(ROWS, 784), False),
        ("gradient by W, 784×50, MNIST's zeros skipped", x, True),
    ):
        taken = fastest(
            lambda times, given=given, skip=skip: gradient(
                times, routines, given, out, skip, words, zeros, dW, db
            )
        )
        work = used if skip else 2 * 784 * 50
        found[name] = work, (784 + 50) * size, taken / ROWS
    hidden, scores = numbers(ROWS, 100), numbers(ROWS, 10)
    for name, kind in POINTWISE.items():
        loop, values = generated.forward(kind(), dtype, "fast"), hidden.copy()
        numbers_of = loop.numbers(kind(), dtype)
        taken = fastest(
            lambda times, at=loop.address, x=values, c=numbers_of: over_numbers(times, at, x, c)
        )
        found[f"{name}, 100 units"] = None, 200 * size, taken / ROWS
    loss = operations.SoftmaxWithLoss()
    loop = generated.predicted(loss, dtype, "fast")
    taken = fastest(lambda n: over_rows(n, loop.address, scores, loop.numbers(loss, dtype)))
    found["softmax, 10 classes"] = None, 20 * size, taken / ROWS
    turned = np.empty((50, 784), dtype)
    taken = fastest(lambda times: transposition(times, W, turned))
    found["transposition, 784 rows of 50"] = None, 100 * size, taken / 784
    return found


def large(dtype):
    """By kernel of a million numbers: arrays read and written, seconds."""
    backend, rng = xnet.resolve("numba"), np.random.default_rng(0)
    x, y = (rng.random((100_000, 10)).astype(dtype) for _ in "xy")
    t = np.eye(10, dtype=dtype)[rng.integers(0, 10, len(x))]
    sgd, adam, loss = SGD(1e-6), Adam(1e-6), operations.SoftmaxWithLoss()
    calls = {"copy": (2, lambda: copy(x.reshape(-1), y.reshape(-1)))}
    for name, kind in POINTWISE.items():
        made = kind()
        calls[name] = 2, lambda op=made: backend.run(op, x)
        calls[f"{name}, backward"] = 4, lambda op=made: backend.run_backward(op, t, x, y)
    calls |= {
        "softmax": (2, lambda: backend.predicted(loss, x)),
        "loss and its gradient": (3, lambda: backend.loss_and_delta(loss, x, t)),
        "a step of SGD": (3, lambda: backend.step(sgd, 1, y, x, [])),
        "a step of Adam": (7, lambda: backend.step(adam, 1, y, x, [t, t])),
    }

    def repeat(call):
        def repeated(times):
            for _ in range(times):  # no result is kept: the next one takes its place in memory
                call()

        return repeated

    return {name: (arrays, fastest(repeat(call))) for name, (arrays, call) in calls.items()}


def main():
    facts = {"what": __doc__.splitlines()[0], "machine": machine("scipy"), "kernels": []}
    for dtype in map(np.dtype, ("float32", "float64")):
        a, b = np.ones((960, 960), dtype), np.zeros(960, dtype)
        out, words, routines = (
            np.empty_like(a),
            np.empty((0, 0), np.int64),
            products.routines(dtype),
        )
        taken = fastest(lambda n, r=routines, c=(a, a, b, out, False, words): affine(n, r, *c))
        peak = 2 * 960**3 / taken
        print(f"\n{dtype}: the floor of one thread is {peak / 1e9:.0f} GFLOP/s")
        print("| kernel | operations a row | bytes a row | µs a row | of the floor |")
        print("|---|---|---|---|---|")
        for name, (work, nbytes, seconds) in in_cache(dtype).items():
            share = "" if work is None else f"{work / seconds / peak:.0%}"
            operations = "" if work is None else f"{work:,.0f}"
            print(f"| {name} | {operations} | {nbytes:,} | {seconds * 1e6:.3f} | {share} |")
            facts["kernels"].append(
                {"kernel": name, "dtype": str(dtype), "operations": work, "bytes": nbytes,
                 "seconds": seconds, "floor_flops": peak}
            )  # fmt: skip
        taken = large(dtype)
        speed = 2e6 * dtype.itemsize / taken["copy"][1]
        print(f"\nA million numbers; memory is copied at {speed / 1e9:.0f} GB/s")
        print("| kernel | bytes a number | ns a number | of the floor |\n|---|---|---|---|")
        for name, (arrays, seconds) in taken.items():
            nbytes = arrays * dtype.itemsize
            share = nbytes * 1e6 / seconds / speed
            print(f"| {name} | {nbytes:g} | {seconds * 1e3:.3f} | {share:.0%} |")
            facts["kernels"].append(
                {"kernel": name, "dtype": str(dtype), "bytes_a_number": nbytes,
                 "seconds_a_number": seconds / 1e6, "floor_bytes_per_second": speed}
            )  # fmt: skip
    save("kernel_cost", facts)


if __name__ == "__main__":
    without_handicaps()
    main()
