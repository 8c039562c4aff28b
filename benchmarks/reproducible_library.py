"""How near the truth are the functions of `xnet.reproducible`, and what do they cost?

Accuracy: the largest error of some hundred or thousand results, in units in the last place of the
true one, beside NumPy's own functions (softmax and logsumexp, which it has not, as one writes them
in NumPy). The truth is computed by fractions and by mpmath. Inputs are ordinary, or awkward.
Cost: processor time on one thread, beside NumPy's own in turns; medians.

    python benchmarks/reproducible_library.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import mpmath
import numpy as np
from report import machine, save, summary, without_handicaps
from reproducible_cost import alternating

import xnet
from xnet import reproducible

ROWS, COUNT = 40, 1000
"""Vectors, and numbers in each."""

EVERY = 10
"""Of so many results of single numbers one is looked at."""

ROUNDS = 15
"""Turns of each contender."""

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Case:
    """A function of rows, and NumPy's; the truth of a row, and inputs by what they are called."""

    ours: Callable
    numpy: Callable
    truth: Callable
    inputs: dict[str, Callable]
    single: bool = False
    """Whether it gives a number for each of a row."""


# -- as one writes them in NumPy


def plain_softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def plain_logsumexp(x, axis):
    top = x.max(axis=axis, keepdims=True)
    return (top + np.log(np.exp(x - top).sum(axis=axis, keepdims=True)))[..., 0]


# -- inputs: tuples of arrays (ROWS, COUNT)


def signs(rng):
    return rng.choice([-1.0, 1.0], (ROWS, COUNT))


def normal(rng, dtype):
    return (rng.standard_normal((ROWS, COUNT)).astype(dtype),)


def positive(rng, dtype):
    return (rng.random((ROWS, COUNT)).astype(dtype),)


def uniform(low, high, narrow=1.0):
    """Between these numbers, in float32 as much narrower as its range is."""

    def drawn(rng, dtype):
        factor = narrow if dtype == "float32" else 1.0
        return (rng.uniform(low * factor, high * factor, (ROWS, COUNT)).astype(dtype),)

    return drawn


def sizes(low, high, shift=0.0, narrow=1 / 8):
    """Numbers of every size from 2^low to 2^high, and a number added."""

    def drawn(rng, dtype):
        factor = narrow if dtype == "float32" else 1.0
        size = 2.0 ** rng.uniform(low * factor, high * factor, (ROWS, COUNT))
        return ((shift + (size if low > -high * 2 else size * signs(rng))).astype(dtype),)

    return drawn


def cancelling(rng, dtype):
    """Numbers and, but for a millionth part, their opposites, shuffled."""
    half = rng.standard_normal((ROWS, COUNT // 2))
    rest = -half * (1 + 1e-6 * rng.random(half.shape))
    return (rng.permuted(np.concatenate([half, rest], axis=1), axis=1).astype(dtype),)


def far(rng, dtype):
    """Around a number that is 10^3 or 10^7 times as large as they vary."""
    return (
        (rng.standard_normal((ROWS, COUNT)) + (1e3 if dtype == "float32" else 1e7)).astype(dtype),
    )


def extreme(rng, dtype):
    """Rows whose squares overflow, and rows whose squares are lost."""
    exponent = 99.0 if dtype == "float32" else 900.0
    factors = 2.0 ** np.where(np.arange(ROWS) % 2, exponent, -exponent)
    return ((rng.standard_normal((ROWS, COUNT)) * factors[:, None]).astype(dtype),)


def two(draw):
    """Rows of this kind, and others."""
    return lambda rng, dtype: draw(rng, dtype) + draw(rng, dtype)


def cancelling_products(rng, dtype):
    """Products and, but for a millionth part, their opposites, shuffled."""
    (x,) = normal(rng, dtype)
    half = np.arange(COUNT // 2)
    x[:, COUNT // 2 :] = x[:, : COUNT // 2]
    y = rng.standard_normal((ROWS, COUNT))
    y[:, COUNT // 2 :] = -y[:, half] * (1 + 1e-6 * rng.random((ROWS, COUNT // 2)))
    order = rng.permutation(COUNT)
    return x[:, order], y.astype(dtype)[:, order]


def apart(rng, dtype):
    """Large numbers that meet zeros: what slices of a row are worst at."""
    x, y = two(normal)(rng, dtype)
    x[:, :2], y[:, :2] = 2.0**40, 0
    return x, y


def near_zero(rng, dtype):
    """Rows whose logsumexp is about 0.001."""
    x = rng.standard_normal((ROWS, COUNT))
    return ((x - plain_logsumexp(x, -1)[:, None] + 1e-3).astype(dtype),)


# -- the truth of a row


def fractions(row):
    return [Fraction(float(v)) for v in row]


def mean(row):
    return sum(fractions(row)) / len(row)


def variance(row):
    center = mean(row)
    return sum((v - center) ** 2 for v in fractions(row)) / len(row)


def product(row, other):
    return sum(map(Fraction.__mul__, fractions(row), fractions(other)))


def root_of_squares(row):
    return mpmath.sqrt(multiple(product(row, row)))


def multiple(value):
    """A fraction, or a number of mpmath's, as the latter."""
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def exponentials(row):
    return [mpmath.exp(mpmath.mpf(float(v))) for v in row]


def single(function):
    return lambda row: [function(mpmath.mpf(float(v))) for v in row[::EVERY]]


def softmax(row):
    values = exponentials(row)
    total = mpmath.fsum(values)
    return [v / total for v in values[::EVERY]]


def one(name, truth, inputs, numpy=None):
    """A function of each number."""
    ours, plain = getattr(reproducible, name), numpy or getattr(np, name)
    return Case(lambda x: ours(x), lambda x: plain(x), single(truth), inputs, True)


def rows(name, truth, inputs, numpy, single=False):
    """A function along rows."""
    ours = getattr(reproducible, name)
    return Case(lambda *x: ours(*x, axis=-1), lambda *x: numpy(*x, axis=-1), truth, inputs, single)


CASES = {
    "sum": rows(
        "sum",
        lambda row: sum(fractions(row)),
        {"positive": positive, "cancelling": cancelling},
        np.sum,
    ),
    "mean": rows("mean", mean, {"positive": positive, "cancelling": cancelling}, np.mean),
    "var": rows("var", variance, {"normal": normal, "far from 0": far}, np.var),
    "norm": rows(
        "norm", root_of_squares, {"normal": normal, "huge and tiny": extreme}, np.linalg.norm
    ),
    "dot, matmul": rows(
        "dot",
        product,
        {"positive": two(positive), "cancelling": cancelling_products, "large ones apart": apart},
        np.vecdot,
    ),
    "exp": one("exp", mpmath.exp, {"-1 to 1": uniform(-1, 1), "all": uniform(-708, 709, 1 / 8)}),
    "expm1": one("expm1", mpmath.expm1, {"-40 to 40": uniform(-40, 40), "near 0": sizes(-900, -1)}),
    "log": one(
        "log", mpmath.log, {"all": sizes(-1000, 1000), "near 1": sizes(-50, -3, 1.0, 1 / 3)}
    ),
    "log1p": one("log1p", mpmath.log1p, {"0 to 1": positive, "near 0": sizes(-900, -1)}),
    "tanh": one("tanh", mpmath.tanh, {"-3 to 3": uniform(-3, 3), "near 0": sizes(-900, 0)}),
    "softmax": rows(
        "softmax",
        softmax,
        {"normal": normal, "wide": uniform(-350, 350, 1 / 9)},
        plain_softmax,
        True,
    ),
    "logsumexp": rows(
        "logsumexp",
        lambda row: mpmath.log(mpmath.fsum(exponentials(row))),
        {"normal": normal, "about 0.001": near_zero},
        plain_logsumexp,
    ),
}


def error(found, truth):
    """In units in the last place of the truth."""
    nearest = found.dtype.type(float(truth))
    off = abs(mpmath.mpf(float(found)) - truth)
    return float(off / mpmath.mpf(float(np.spacing(abs(nearest)))))


def accuracy(case, draw, dtype):
    """The largest error, of ours and of NumPy's."""
    arrays = draw(np.random.default_rng(0), dtype)
    worst = {}
    truths = [case.truth(*row) for row in zip(*arrays, strict=True)]
    for who in ("ours", "numpy"):
        found = getattr(case, who)(*arrays)
        assert found.dtype == dtype
        pairs = [
            pair
            for values, truth in zip(found, truths, strict=True)
            for pair in (
                zip(values[::EVERY], truth, strict=True) if case.single else [(values, truth)]
            )
        ]
        worst[who] = max(error(v, multiple(t)) for v, t in pairs)
    return worst


# -- cost


def contenders(name, case, dtype, shape):
    """Calls on arrays of a shape, of positive numbers, which every function takes."""
    rng = np.random.default_rng(0)
    arrays = [rng.random(shape).astype(dtype) for _ in range(1 + name.startswith("dot"))]
    return {"numpy": lambda: case.numpy(*arrays), "ours": lambda: case.ours(*arrays)}


def products(dtype, stack, n):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((*stack, n, n)).astype(dtype) for _ in range(2))
    return {"numpy": lambda: a @ b, "ours": lambda: reproducible.matmul(a, b)}


def cost(calls):
    return {name: summary(taken) for name, taken in alternating(calls, ROUNDS).items()}


def ratio(found):
    return found["ours"]["median"] / found["numpy"]["median"]


def text(value):
    """A few digits of it."""
    return "∞" if value == float("inf") else f"{value:.2f}" if value < 9.995 else f"{value:,.0f}"


def duration(seconds):
    return f"{1e6 * seconds:.0f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.1f} ms"


def main():
    figures, costs = [], []
    print("| | numbers | float32 | NumPy's | float64 | NumPy's |\n|---|---|---|---|---|---|")
    with mpmath.workprec(200), np.errstate(all="ignore"):
        for name, case in CASES.items():
            for label, draw in case.inputs.items():
                worst = {dtype: accuracy(case, draw, dtype) for dtype in DTYPES}
                figures.append({"function": name, "numbers": label, "ulp": worst})
                cells = (text(worst[d][who]) for d in DTYPES for who in ("ours", "numpy"))
                print(f"| {name} | {label} | {' | '.join(cells)} |", flush=True)
    xnet.set_num_threads(1)
    print("\n| | shape | float32 | float64 |\n|---|---|---|---|")
    calls = {
        (name, "×".join(map(str, shape))): [contenders(name, case, d, shape) for d in DTYPES]
        for name, case in CASES.items()
        for shape in ((1, 1000), (1000, 1000))
    }
    for stack, n in (((), 300), ((100,), 30)):
        shape = "×".join(map(str, (*stack, n, n)))
        calls["matmul", shape] = [products(d, stack, n) for d in DTYPES]
    for (name, shape), pair in calls.items():
        found = dict(zip(DTYPES, map(cost, pair), strict=True))
        costs.append({"function": name, "shape": shape, "seconds": found})
        cells = (f"{duration(v['ours']['median'])}, {ratio(v):.0f}×" for v in found.values())
        print(f"| {name} | {shape} | {' | '.join(cells)} |", flush=True)
    save(
        "reproducible_library",
        {"machine": machine("mpmath"), "accuracy": figures, "cost": costs},
    )


if __name__ == "__main__":
    without_handicaps()
    main()
