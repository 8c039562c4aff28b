"""Kernels of reproducible mode on other processors: nothing fused, by what LLVM writes for them."""

import ctypes
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from cross_compile import TARGETS
from xnet_numba import products, tiles
from xnet_numba.compiling import routine
from xnet_numba.generated import EXACT, OPTIONS
from xnet_numba.kept import Kept

from xnet import exact

pytestmark = pytest.mark.slow

FUSED = (
    "xnet_numba.products.dense_tiles (float64, ",
    "xnet_numba.products.chosen.<locals>.chosen_of_slices (",
)
"""The kernels that may be: products of slices come out the same, see the last test."""


@pytest.fixture(scope="module")
def found():
    """What the program finds, in a process of its own, as nothing of it may be compiled yet."""
    program = Path(__file__).with_name("cross_compile.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_is_fused_in_reproducible_mode(found):
    kernels = found["reproducible_mode"]
    wrong = [k for k in kernels if any(k["fused"].values()) and not k["name"].startswith(FUSED)]
    assert wrong == []
    names = " ".join(k["name"] for k in kernels)
    parts = "exact._piece.<locals>.piece", "exact._sum_rows", "exact.cut_blocks", ".loop"
    for kernel in (*parts, "reproducible._train", "reproducible._forward"):
        assert kernel in names


@pytest.mark.parametrize("target", TARGETS)
def test_what_may_be_fused_is_found(found, target):
    """By the same search: an operation in fast mode, and the tiles of products."""
    assert len(found["fast_mode"]) == 2
    assert all(kernel["fused"][target] for kernel in found["fast_mode"])
    tiles = [k for k in found["reproducible_mode"] if k["name"].startswith(FUSED)]
    assert all(k["fused"][target] for k in tiles if target in k["fused"])
    assert tiles


def test_numbers_and_vectors_are_both_searched_on_aarch64(found):
    assert all({"fmadd", "fmla"} <= {*k["fused"]["aarch64"]} for k in found["fast_mode"])


# -- the products of slices


COUNT, NUMBERS, COLUMNS = 3, 64, 40
"""Slices, numbers of a row, and columns of the product."""


def routines():
    """Of products of slices: where those of all numbers and of some are."""
    return products.dense_of_slices.__wrapped__(), products.chosen.__wrapped__(COUNT)


def unfused(monkeypatch):
    """The same, with nothing fused."""

    def multiply_add(self, a, b, c):
        return self.builder.fadd(self.builder.fmul(a, b), c)

    with monkeypatch.context() as patch:
        patch.setattr(tiles.Vectors, "multiply_add", multiply_add)
        patch.setattr(Kept, "load_overload", lambda *_: None)
        patch.setattr(Kept, "save_overload", lambda *_: None)
        patch.setattr(products, "routine", partial(routine.__wrapped__, options=OPTIONS[EXACT]))
        return routines()


def computed(addresses, a, b, word):
    """What they make of slices a (S, K) and b (K, S, M), of all and of those that the word says."""
    dense, chosen = (
        ctypes.CFUNCTYPE(None, *kinds)(address)
        for kinds, address in zip(
            ([ctypes.c_double, *[ctypes.c_int64] * 12], [ctypes.c_int64] * 9),
            addresses,
            strict=True,
        )
    )
    (count, k), m = a.shape, b.shape[2]
    found, orders = np.zeros((count, count * m)), np.zeros((count, m))
    at_a, at_b, at_found, at_orders = (array.ctypes.data for array in (a, b, found, orders))
    line = b.strides[0]
    dense(0, at_a, 8 * k, 8, count, k, at_b, line, at_found, line, at_found, line, count * m)
    chosen(at_a, 8 * k, 8, word, at_b, line, at_orders, 8 * m, m)
    return found, orders


def test_products_of_slices_are_the_same_fused_or_not(monkeypatch, rng):
    if not llvm.get_host_cpu_features().get("fma"):
        pytest.skip("this processor has no fused multiply-add")
    ways = routines(), unfused(monkeypatch)
    _, bits = exact.product_slices(NUMBERS, "float64")
    largest = 2**bits
    a = rng.integers(-largest, largest + 1, (COUNT, NUMBERS))
    b = rng.integers(-largest, largest + 1, (NUMBERS, COUNT, COLUMNS))
    a[0], b[:, :, 0] = largest, largest
    some = rng.random(NUMBERS) < 0.7
    some[-1] = True  # the sign of the word
    word = int(np.packbits(some, bitorder="little").view(np.int64)[0])
    every = a @ b.reshape(NUMBERS, -1)  # of integers, so exact
    orders = np.zeros((COUNT, COLUMNS), np.int64)
    for s in range(COUNT):
        for t in range(COUNT - s):
            orders[s + t] += (a[s] * some) @ b[:, t]
    for addresses in ways:
        found = computed(addresses, np.float64(a), np.float64(b), word)
        for result, expected in zip(found, (every, orders), strict=True):
            np.testing.assert_array_equal(result, expected)
    ordinary = rng.standard_normal(a.shape), rng.standard_normal(b.shape)
    for fused, other in zip(*[computed(way, *ordinary, word) for way in ways], strict=True):
        assert not np.array_equal(fused, other)  # so this sees what is fused
