import copy
import math
import os
import pickle
import re
import subprocess
import sys
from fractions import Fraction
from itertools import permutations

import mpmath
import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatched
from specified import (
    COEFFICIENTS,
    CONSTANTS,
    LONG,
    RANDOM,
    A,
    B,
    C,
    D,
    E,
    F,
    Specified,
    quantile,
    rows,
)

import xnet
from xnet import exact, random
from xnet.operations import Affine, Dropout
from xnet.random import Generator

# -- the specification, docs/reproducible/random.md, of which `specified` makes one number at a time

SEEDS = [0, 1, 2**32 - 1, 2**32, 2**200 + 12345]


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_what_the_page_says(seed):
    ours, page = Generator(seed), Specified(seed)
    assert ours.raw(5).tolist() == [page.raw() for _ in range(5)]
    assert ours.uniform(50).tolist() == [page.uniform() for _ in range(50)]
    assert ours.normal(3000).tolist() == [page.normal() for _ in range(3000)]
    for bound in (1, 2, 3, 10, 60_000, 2**40, 3 * 2**61, 2**63):
        assert ours.integers(bound, 20).tolist() == [page.integer(bound) for _ in range(20)]
    for n in (0, 1, 2, 5, 100):
        assert ours.permutation(n).tolist() == page.permutation(n)
    assert ours.state == {"state": page.state, "inc": page.inc}


def test_the_coefficients_are_those_of_the_code():
    assert len(COEFFICIENTS) == 8 * 6 - 3
    for name, written, bits in rows("coefficient"):
        assert float(written) == float.fromhex(bits), name
    for pair, letters in ((random.CENTRE, (A, B)), (random.MIDDLE, (C, D)), (random.FAR, (E, F))):
        assert pair == tuple(tuple(letter[::-1]) for letter in letters)
    page = {"H": exact.LN2_HIGH, "T": exact.LN2_LOW, "Q": exact.SQRT_HALF}
    page |= {f"L{k + 1}": c for k, c in enumerate(exact.LOG_COEFFICIENTS[::-1])}
    assert page == CONSTANTS
    text = RANDOM.read_text()
    for decimal, bits in re.findall(r"(\d\.\d+) (?:is|and|,) `(0x[\w.+-]+)`", text):
        assert float(decimal) == float.fromhex(bits)


EDGES = [2.0**-54, -(2.0**-54), 0.425, -0.425, math.nextafter(0.425, 1), 0.5 - 2.0**-54]
EDGES += [0.5 - math.exp(-25) + k * 2.0**-54 for k in range(-3, 4)]
EDGES += [0.5 - 2.0**-k for k in range(4, 55)] + [2.0**-k - 0.5 for k in range(4, 55)]


def test_normal_numbers_at_the_edges():
    """Where one approximation ends and the next begins, at powers of two, and at the far ends."""
    found = random._quantile(np.asarray(EDGES))
    assert found.tolist() == [quantile(q) for q in EDGES]
    assert (np.sign(found) == np.sign(EDGES)).all()
    assert 8.2 < found.max() < 8.3


def test_normal_numbers_are_the_quantiles():
    """Against the distribution itself: measured 3.6 units in the last place."""
    q = np.concatenate([Generator(1).uniform(300) - 0.5 + 2.0**-54, EDGES])
    mpmath.mp.dps = 40
    for where, z in zip(q, random._quantile(q), strict=True):
        p, x = mpmath.mpf(0.5) - abs(mpmath.mpf(float(where))), -abs(mpmath.mpf(float(z)))
        off = (mpmath.ncdf(x) - p) / mpmath.npdf(x)  # one step of Newton's: the rest is off^2
        assert abs(off) <= 5 * math.ulp(z)


# -- the page's values


def read(cell):
    """A cell of numbers: hexadecimal ones with a point or an exponent are float64."""
    words = cell.replace("`", "").split()
    return [float.fromhex(w) if "p" in w else int(w, 0) for w in words]


@pytest.mark.parametrize(("seed", "what", "values"), rows("seed"))
def test_values_of_a_seed(seed, what, values):
    g = Generator(eval(seed.replace("^", "**")))
    found = list(g.state.values()) if what == "state" else eval(f"g.{what}").tolist()
    assert found == read(values)
    assert values.count("`") == 2 * len(found) - 2


def test_values_of_quantiles():
    table = [(float.fromhex(q), float.fromhex(z)) for q, z in rows("q")]
    assert len(table) == 8
    for q, z in table:
        assert random._quantile(np.asarray([q])).tolist() == [quantile(q)] == [z]


@pytest.mark.parametrize(("what", "values"), rows("what"))
def test_values_of_a_network(what, values):
    name, dtype = what.split(", ")
    net = xnet.Network([Affine(3, 2, "he"), Dropout(0.5), Affine(2, 2)], seed=0, dtype=dtype)
    found = net.params[name] if name in net.params else net.draw((2, 2), dtype)
    assert found.dtype == dtype
    assert found.ravel().tolist() == read(values)


SAME_BITS = """
import hashlib, numpy as np, xnet
from xnet.random import Generator
g, found = Generator(7), hashlib.sha256()
for drawn in (g.normal(200_001), g.uniform(1001), g.uniform(1001, "float32"),
              g.integers(3 << 61, 1001), g.permutation(5003)):
    found.update(drawn.astype(drawn.dtype.newbyteorder("<")).tobytes())
print(found.hexdigest())
"""


def printed(settings):
    done = subprocess.run(
        [sys.executable, "-c", SAME_BITS],
        env=os.environ | settings,
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    "settings",
    [{}, {"NPY_DISABLE_CPU_FEATURES": " ".join(dispatched)}],
    ids=["as it is", "NumPy's plainest loops"],
)
def test_the_same_bits_whatever_numpy_runs(settings):
    assert printed(settings) == "7842da3d02f80882a02520c012a9f52ccd3e8578cee735e6e07109d29b7c4202\n"


def test_the_backend_has_no_say(backend, dtype):
    net = xnet.Network([Affine(7, 5, "he"), Dropout(0.5), Affine(5, 3)], seed=3, dtype=dtype)
    page = Specified(3)
    for name, std, shape in (("W1", math.sqrt(2 / 7), (7, 5)), ("W2", 0.01, (5, 3))):
        drawn = [std * page.normal() for _ in range(math.prod(shape))]
        expected = np.asarray(drawn).astype(dtype).reshape(shape)
        np.testing.assert_array_equal(backend.to_numpy(net.params[name]), expected)
    masks = Specified(page.integer(2**63))
    bits = {"float64": 53, "float32": 24}[dtype]
    drawn = net.draw((4, 5), dtype)
    assert drawn.dtype == dtype
    assert drawn.ravel().tolist() == [(masks.raw() >> 64 - bits) / 2**bits for _ in range(20)]


# -- however they are asked for


@pytest.mark.parametrize("n", [1, 7, 40_000])
@pytest.mark.parametrize(
    "draw",
    [
        lambda g, n: g.raw(n),
        lambda g, n: g.uniform(n),
        lambda g, n: g.uniform(n, "float32"),
        lambda g, n: g.normal(n),
        lambda g, n: g.integers(1000, n),
        lambda g, n: g.integers(2**62 + 1, n),
    ],
    ids=["raw", "uniform", "uniform float32", "normal", "integers", "integers, half refused"],
)
def test_at_once_or_in_parts(draw, n):
    whole, parts = Generator(2), Generator(2)
    expected = draw(whole, n + 3)
    found = np.concatenate([draw(parts, 1), draw(parts, n), draw(parts, 0), draw(parts, 2)])
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
    assert parts.state == whole.state


def test_shapes_and_dtypes():
    g = Generator(0)
    for draw in (g.uniform, g.normal, lambda shape: g.integers(5, shape)):
        for shape, expected in (((), ()), (4, (4,)), ((2, 0), (2, 0)), ((2, 3, 4), (2, 3, 4))):
            assert draw(shape).shape == expected
    assert g.raw(2).dtype == np.uint64
    assert g.uniform(2).dtype == g.normal(2).dtype == np.float64
    assert g.uniform(2, np.float32).dtype == np.float32
    assert g.integers(5, 2).dtype == g.permutation(3).dtype == np.int64
    np.testing.assert_array_equal(Generator(4).normal((3, 5)).ravel(), Generator(4).normal(15))


# -- the ends of the ranges, and numbers that are refused


class Raw:
    """In place of PCG64: these integers, one after the other."""

    def __init__(self, *integers):
        self.left = list(integers)

    def random_raw(self, n):
        taken, self.left = self.left[:n], self.left[n:]
        assert len(taken) == n, "more were asked for than are needed"
        return np.asarray(taken, np.uint64)


def drawing(*integers):
    g = Generator(0)
    g._bits = Raw(*integers)
    return g


@pytest.mark.parametrize(("dtype", "bits"), [("float64", 53), ("float32", 24)])
def test_uniform_numbers_reach_0_and_never_1(dtype, bits):
    lowest, highest = drawing(0, LONG).uniform(2, dtype).tolist()
    assert (lowest, highest) == (0.0, 1 - 2.0**-bits)
    assert drawing(2**63).uniform((), dtype) == 0.5


def test_normal_numbers_are_symmetric_and_never_infinite():
    k = [0, 1, 2**52 - 1, *(int(v) for v in Generator(0).raw(500) >> np.uint64(11))]
    below, above = (drawing(*(v << 11 for v in part)).normal(len(k)) for part in (k, mirror(k)))
    np.testing.assert_array_equal(below, -above)
    assert np.isfinite(below).all()
    assert below[0] == -np.abs(below).max()
    assert -1e-15 < below[2] < 0  # the middles of parts: none is 0


def mirror(k):
    return [2**53 - 1 - v for v in k]


@pytest.mark.parametrize("bound", [3 * 2**61, 2**62 + 1, 2**63 - 1])
def test_awkward_bounds(bound):
    """Upper bits that are not below the bound are passed over, and nothing is folded back."""
    bits = (bound - 1).bit_length()
    integers = [v << 64 - bits for v in (0, bound, bound - 1, 2**bits - 1, 1, bound - 2)]
    g = drawing(*integers)
    assert g.integers(bound, 4).tolist() == [0, bound - 1, 1, bound - 2]
    assert g._bits.left == []


@pytest.mark.parametrize("bound", [1, 2, 3, 5, 6, 7, 8])
def test_every_integer_has_as_many_upper_bits(bound):
    """All values of the upper 4 bits: each number comes from as many of them."""
    found = drawing(*(v << 60 for v in range(16))).integers
    share = 16 // 2 ** max(1, (bound - 1).bit_length())
    values, counts = np.unique(found(bound, share * bound), return_counts=True)
    assert values.tolist() == list(range(bound))
    assert set(counts.tolist()) == {share}


def test_equal_keys_are_drawn_anew():
    g = drawing(5, 9, 5, 3, 3, 3, 8, 2, 2**64 - 1)
    assert g.permutation(3).tolist() == [1, 0, 2]
    assert g._bits.left == []


@pytest.mark.parametrize("bound", [0, -1, 2**63 + 1])
def test_bounds_out_of_range(bound):
    with pytest.raises(ValueError, match=f"bound is {bound}, expected at least 1 and at most 2"):
        Generator(0).integers(bound)


def test_a_dtype_that_is_none_of_ours():
    with pytest.raises(ValueError, match="dtype is float16, expected float32 or float64"):
        Generator(0).uniform(3, "float16")


# -- seeds


def test_what_is_taken_for_a_seed():
    first = Generator(5).raw(4).tolist()
    for seed in (np.int64(5), [5], np.random.SeedSequence(5), np.random.PCG64(5)):
        assert Generator(seed).raw(4).tolist() == first
    assert Generator(np.random.default_rng(5)).raw(4).tolist() == first
    assert Generator([5, 6]).raw(4).tolist() != first
    assert Generator().raw(4).tolist() != Generator(None).raw(4).tolist()


@pytest.mark.parametrize("kind", [Generator, np.random.default_rng, np.random.PCG64])
def test_one_stream_may_be_drawn_from_by_many(kind):
    shared, expected = kind(5), Generator(5).raw(6).tolist()
    found = [Generator(shared).raw(2).tolist() for _ in range(3)]
    assert [v for part in found for v in part] == expected


@pytest.mark.parametrize(
    ("seed", "error", "says"),
    [
        (-1, ValueError, "seed is -1"),
        ([1, -2], ValueError, r"seed is \[1, -2\]"),
        (1.5, TypeError, "seed is 1.5"),
        ("7 apples", TypeError, "seed is '7 apples'"),
        (np.random.MT19937(0), TypeError, "seed draws from MT19937"),
        (np.random.PCG64DXSM(0), TypeError, "seed draws from PCG64DXSM"),
        (np.random.Generator(np.random.SFC64(0)), TypeError, "seed draws from SFC64"),
    ],
)
def test_what_is_not(seed, error, says):
    for taking in (Generator, lambda seed: xnet.TwoLayerNet(3, 2, 2, seed=seed)):
        with pytest.raises(error, match=f"^{says}, expected an int of at least 0, a sequence"):
            taking(seed)


# -- copies and states


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_goes_on_by_itself(copied):
    g = Generator(3)
    g.normal(5)
    other = copied(g)
    assert other.state == g.state
    first = other.normal(5).tolist()
    assert g.normal(5).tolist() == first
    g.raw(1)
    assert other.state != g.state


def test_a_state_goes_on_where_it_was_taken():
    g = Generator(3)
    g.integers(10, 7)
    kept = g.state
    assert [type(v) for v in kept.values()] == [int, int]
    expected = g.normal(4).tolist()
    other = Generator(99)
    other.state = kept
    assert other.normal(4).tolist() == expected
    g.state = kept
    assert g.normal(4).tolist() == expected
    assert repr(Generator(0)) == f"Generator({Generator(0).state})"


@pytest.mark.parametrize("state", [0, 1, 2**128 - 1])
def test_every_state_is_one(state):
    g = Generator(0)
    g.state = {"state": state, "inc": 1}
    assert g.state == {"state": state, "inc": 1}


def test_a_state_set_leaves_numpys_own_half_alone():
    """Half of an integer that a NumPy generator keeps for its next draw of 32 bits."""
    shared = np.random.default_rng(3)
    shared.integers(0, 10, dtype=np.uint32)
    before = shared.bit_generator.state
    g = Generator(shared)
    g.state = g.state
    assert shared.bit_generator.state == before
    assert before["has_uint32"] == 1


@pytest.mark.parametrize(
    "state",
    [
        {"state": 1},
        {"state": 1, "inc": 2},
        {"state": 2**128, "inc": 1},
        {"state": -1, "inc": 1},
        {"state": 1.0, "inc": 1},
        {"state": 1, "inc": 1, "more": 1},
        (1, 1),
    ],
)
def test_what_is_no_state(state):
    g = Generator(0)
    before = g.state
    with pytest.raises(ValueError, match=r"state is .*, expected 'state' and an odd 'inc'"):
        g.state = state
    assert g.state == before


# -- that they are random: what benchmarks/random_quality.py does with a hundred times as many

MANY = 100_000


def test_moments_and_tails_of_normal_numbers():
    z = Generator(11).normal(MANY)
    root = math.sqrt(MANY)
    for power, expected, deviation in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        off = float((z**power).mean()) - expected
        assert abs(off) < 4 * math.sqrt(deviation) / root
    for sigma in (1, 2, 3, 4):
        p = math.erfc(sigma / math.sqrt(2))
        count = int((np.abs(z) > sigma).sum())
        assert abs(count - MANY * p) < 4 * math.sqrt(MANY * p * (1 - p))
    assert abs(float((z[1:] * z[:-1]).mean())) < 4 / root


@pytest.mark.parametrize("kind", ["normal", "uniform", "uniform float32"])
def test_distributions(kind):
    """Kolmogorov and Smirnov's largest distance: above 1.95 / sqrt(n) once in a thousand seeds."""
    g = Generator(12)
    if kind == "normal":
        p = np.asarray([0.5 * math.erfc(-v / math.sqrt(2)) for v in np.sort(g.normal(MANY))])
    else:
        p = np.sort(g.uniform(MANY, kind.split()[-1].replace("uniform", "float64")))
    steps = np.arange(MANY + 1) / MANY
    distance = max((steps[1:] - p).max(), (p - steps[:-1]).max())
    assert 0.2 < distance * math.sqrt(MANY) < 1.95


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("bound", [2, 3, 10, 100])
def test_integers_are_alike(bound):
    counts = np.bincount(Generator(13).integers(bound, MANY), minlength=bound)
    off = chi_square(counts, MANY / bound) - (bound - 1)
    assert abs(off) < 4 * math.sqrt(2 * (bound - 1))


def test_all_120_orders_of_5_are_alike():
    g, orders = Generator(14), {order: k for k, order in enumerate(permutations(range(5)))}
    counts = np.bincount([orders[tuple(g.permutation(5).tolist())] for _ in range(12_000)])
    assert len(counts) == 120
    assert abs(chi_square(counts, 100) - 119) < 4 * math.sqrt(2 * 119)


def test_a_mask_keeps_its_share():
    for ratio in (0.1, 0.5, Fraction(2, 3)):
        share = float((Generator(15).uniform(MANY) < float(ratio)).mean())
        assert abs(share - ratio) < 4 * math.sqrt(ratio * (1 - ratio) / MANY)
