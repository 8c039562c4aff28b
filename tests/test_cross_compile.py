"""Kernels of reproducible mode on other processors: nothing fused, by what LLVM writes for them."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from cross_compile import TARGETS
from numba import types
from xnet_numba import products, tiles
from xnet_numba.compiling import routine
from xnet_numba.generated import EXACT, OPTIONS
from xnet_numba.kept import Kept

from xnet import exact

FUSED = tuple(f"xnet_numba.products.{f.__name__} (float64, " for f in products._ROUTINES)
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
    for kernel in ("exact._product_work", "exact._sum_rows", "reproducible._train", ".loop"):
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


def unfused(monkeypatch):
    """The routines of products in float64, with nothing fused."""

    def multiply_add(self, a, b, c):
        return self.builder.fadd(self.builder.fmul(a, b), c)

    monkeypatch.setattr(tiles._Vectors, "multiply_add", multiply_add)
    monkeypatch.setattr(Kept, "load_overload", lambda *_: None)
    monkeypatch.setattr(Kept, "save_overload", lambda *_: None)
    return [
        routine.__wrapped__(f, types.float64, *[types.int64] * numbers, options=OPTIONS[EXACT])
        for f, numbers in products._ROUTINES.items()
    ]


def computed(addresses, x, b, delta):
    """What each of the routines makes of x (n, k), b (k, m) and delta (n, m)."""
    (n, k), m = x.shape, b.shape[1]
    sparse, dense, gradient = (
        ctypes.CFUNCTYPE(None, ctypes.c_double, *[ctypes.c_int64] * numbers)(int(address))
        for address, numbers in zip(addresses, products._ROUTINES.values(), strict=True)
    )
    words = np.zeros((n, -(-k // products.BITS)), np.int64)
    zeros, outs = np.zeros((n, m)), [np.empty((n, m)), np.empty((n, m)), np.empty((k, m))]
    at_words, at_x, at_b, at_delta, at_zeros, *at = (
        array.ctypes.data for array in (words, x, b, delta, zeros, *outs)
    )
    row, line = x.strides[0], b.strides[0]
    dense(0, at_x, row, x.itemsize, n, k, at_b, line, at_zeros, line, at[0], line, m)
    sparse(0, at_words, at_x, n, k, at_b, at_zeros, at[1], m)  # fills the words, too
    for task in range(words.shape[1]):
        gradient(0, at_words, task, at_x, n, k, at_delta, m, at_zeros, at[2])
    return outs


def test_products_of_slices_are_the_same_fused_or_not(monkeypatch, rng):
    if not llvm.get_host_cpu_features().get("fma"):
        pytest.skip("this processor has no fused multiply-add")
    n, k, m = 300, 300, 37
    ways = products.routines(np.dtype(np.float64), True), unfused(monkeypatch)
    _, bits = exact.product_slices(k, "float64")
    largest = 2**bits
    x, b, delta = (rng.integers(-largest, largest + 1, shape) for shape in ((n, k), (k, m), (n, m)))
    x[:, ::3] = 0
    x[0], b[:, 0] = largest, largest
    right = x @ b, x @ b, x.T @ delta  # of integers, so exact
    for addresses in ways:
        for result, expected in zip(
            computed(addresses, *map(np.float64, (x, b, delta))), right, strict=True
        ):
            np.testing.assert_array_equal(result, expected)
    ordinary = [rng.standard_normal(array.shape) for array in (x, b, delta)]
    for fused, other in zip(*[computed(addresses, *ordinary) for addresses in ways], strict=True):
        assert not np.array_equal(fused, other)  # so this sees what is fused
