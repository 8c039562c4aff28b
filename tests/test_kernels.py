"""Every kernel of every backend against the formulas in extended precision.

The bounds are those of rounding-error analysis (Higham, Accuracy and Stability of Numerical
Algorithms, chapter 3): n operations in a row, in any order, lose at most the relative
gamma(n) = n u / (1 - n u), u half the distance from 1 to the next number; for a sum this is
relative to the sum of absolute values. exp and log of any library are taken to be within 4 units
in the last place. What a formula may lose, the formula itself says (`xnet.bounds.Bounds`).
"""

import dataclasses
import inspect
import math
import os
import subprocess
import sys
import threading
from functools import cache
from itertools import product

import numpy as np
import pytest
import xnet_cupy
import xnet_numba
import xnet_numpy
import xnet_strict
from conftest import BACKENDS, ON_HOST, OPTIMIZERS, require_host_cuda, variants
from xnet_numpy import generated as numpy_generated

import xnet
from xnet import exact
from xnet.backend import Backend
from xnet.bounds import Bounds
from xnet.dtypes import dtype_name
from xnet.operations import Affine, Pointwise
from xnet.testing.parity import same_bits

LAYOUTS = ["contiguous", "transposed", "strided"]


def in_memory(*shapes):
    """Each shape laid out plainly, and one that is no multiple of anything in the other ways."""
    odd = next(shape for shape in shapes if 13 in shape and len(shape) > 1)
    return [(shape, "contiguous") for shape in shapes] + [(odd, how) for how in LAYOUTS[1:]]


FORCED = "numba, forced parallel"


def force_parallel(monkeypatch):
    """Make Numba's kernels share their work out, in small pieces, whatever the size."""
    import xnet_numba
    from xnet_numba import kernels, pool

    monkeypatch.setattr(xnet_numba, "LITTLE", 0)
    monkeypatch.setattr(xnet_numba, "FEW_ROWS", 0)
    monkeypatch.setattr(kernels, "PIECE", 5)
    monkeypatch.setattr(pool.Pool, "HELP_FROM", 0)
    monkeypatch.setattr(pool.Pool, "WAKE_FROM", 0)
    monkeypatch.setattr(pool, "thread_count", lambda: 3)  # on one core too


@pytest.fixture(params=[*BACKENDS, FORCED, ON_HOST])
def backend(request, monkeypatch):
    """Each usable backend, Numba once more with its work shared out, CUDA without a GPU."""
    name = request.param.partition(",")[0]
    if request.param == ON_HOST:
        require_host_cuda(monkeypatch)
    why_not = {info.name: info.reason for info in xnet.backends()}[name]
    if why_not is not None:
        pytest.skip(f"{name}: {why_not}")
    if request.param == FORCED:
        force_parallel(monkeypatch)
    with xnet.use_backend(name) as current:
        yield current


def place(backend, array, layout):
    """`array` on `backend`, laid out so in memory."""
    if layout == "transposed" and array.ndim == 2:
        return backend.asarray(np.ascontiguousarray(array.T)).T
    if layout == "strided":
        every_other = (slice(None, None, 2),) * array.ndim
        wide = np.zeros([2 * size for size in array.shape], array.dtype)
        wide[every_other] = array
        return backend.asarray(wide)[every_other]
    return backend.asarray(array)


def run(backend, kernel, *arrays, layout="contiguous"):
    """What the kernel makes of the NumPy `arrays`, which it must leave alone; a tuple."""
    placed = [place(backend, array, layout) for array in arrays]
    results = kernel(*placed)
    for before, after in zip(arrays, placed, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(after), before)
    return results if isinstance(results, tuple) else (results,)


def check(backend, actual, expected, bound, dtype, what=""):
    """`actual` has the dtype and shape it should, and lies within `bound` of `expected`."""
    assert backend.owns(actual), what
    assert dtype_name(actual.dtype) == dtype, what
    actual = backend.to_numpy(actual)
    assert actual.shape == expected.shape, what
    assert (np.abs(actual - expected) <= bound).all(), what


def extended(*arrays):
    return [array.astype(np.longdouble) for array in arrays]


def unit(dtype):
    """Rounding error of one operation in `dtype`, and of the same one in the reference."""
    return (np.finfo(dtype).eps + np.finfo(np.longdouble).eps) / np.longdouble(2)


def gamma(n, u):
    return n * u / (1 - n * u)


def smallest(dtype):
    return np.finfo(dtype).smallest_subnormal.astype(np.longdouble)


def interpreted(formula, dtype, *arrays):
    """What a formula of `m` and arrays gives exactly, and how far it may be off in `dtype`.

    Of each result (number, error). What falls below the normal range is off by up to the smallest
    number besides, and may be multiplied by the cube of what came in. Where a division may be by
    nothing the error has no bound.
    """
    m = Bounds(np, unit(dtype))
    with np.errstate(all="ignore"):
        found = formula(m, *(m.take(array) for array in extended(*arrays)))
    reach = 1 + max((float(np.abs(a).max(initial=0)) for a in arrays), default=0.0)
    underflow = 4 * smallest(dtype) * np.longdouble(reach) ** 3
    return [
        (one.v, np.where(np.isnan(one.e), np.inf, one.e + underflow))
        for one in (found if isinstance(found, tuple) else (found,))
    ]


def check_each(backend, results, limits, dtype, what=""):
    for actual, (expected, bound) in zip(results, limits, strict=True):
        check(backend, actual, expected, bound, dtype, what)


# -- what decides the bits


@pytest.mark.parametrize(
    ("shape", "layout"), in_memory((0, 3, 2), (1, 1, 1), (1, 9, 4), (5, 1, 3), (13, 17, 11))
)
def test_matmul(backend, dtype, rng, shape, layout):
    n, k, m = shape
    a, b = rng.normal(size=(n, k)).astype(dtype), rng.normal(size=(k, m)).astype(dtype)
    (actual,) = run(backend, backend.matmul, a, b, layout=layout)
    a, b = extended(a, b)
    bound = gamma(k, unit(dtype)) * (np.abs(a) @ np.abs(b))
    check(backend, actual, a @ b, bound, dtype)


@pytest.mark.parametrize(("shape", "layout"), in_memory((0, 3), (1, 1), (7, 13), (300, 257)))
def test_sum(backend, dtype, rng, shape, layout):
    host = rng.normal(size=shape).astype(dtype)
    placed, (a,) = place(backend, host, layout), extended(host)
    for axis, keepdims in product([None, 0, 1, -1], [False, True]):
        actual = backend.sum(placed, axis=axis, keepdims=keepdims)
        terms = a.size if axis is None else a.shape[axis]
        magnitude = np.abs(a).sum(axis=axis, keepdims=keepdims)
        bound = gamma(max(terms - 1, 0), unit(dtype)) * magnitude
        check(backend, actual, a.sum(axis=axis, keepdims=keepdims), bound, dtype)


def everywhere(name, dtype):
    """Numbers from end to end of a function's range, and close to where it is 0; 3000."""
    info = np.finfo(dtype)
    reach = math.log(float(info.max)) - 1
    wide = np.geomspace(float(info.tiny), float(info.max) / 2, 2000)
    small = np.geomspace(1e-30, 0.5, 500)
    around = {
        "exp": np.linspace(-reach, reach, 3000),
        "expm1": np.concatenate([np.linspace(-reach, reach, 2000), small, -small]),
        "log": np.concatenate([wide, 1 + small, 1 - small]),
        "log1p": np.concatenate([wide, small, -small]),
    }
    return around[name].astype(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", exact.ELEMENTARY)
def test_elementary_functions(backend, dtype, name, layout):
    x = everywhere(name, dtype).reshape(60, 50)
    (actual,) = run(backend, getattr(backend, name), x, layout=layout)
    expected = getattr(np, name)(*extended(x))
    check(backend, actual, expected, 8 * unit(dtype) * np.abs(expected), dtype)


# -- products

# N, D, M. The last but one is large enough for Numba to share out of its own accord.
PRODUCTS = in_memory(
    *((0, 4, 3), (1, 1, 1), (1, 7, 5), (2, 8, 16), (13, 17, 11), (300, 100, 80)),
    (5, 200, 600),  # few rows of a wide layer go by columns
)


def affine_case(rng, dtype, shape):
    n, d, m = shape
    shapes = [(n, d), (d, m), (m,), (n, m)]
    return [rng.normal(size=s).astype(dtype) for s in shapes]


@pytest.mark.parametrize(("shape", "layout"), PRODUCTS)
def test_affine(backend, dtype, rng, shape, layout):
    x, W, b, _ = affine_case(rng, dtype, shape)
    (actual,) = run(backend, lambda *a: backend.run(Affine(*shape[1:]), *a), x, W, b, layout=layout)
    x, W, b = extended(x, W, b)
    bound = gamma(shape[1] + 1, unit(dtype)) * (np.abs(x) @ np.abs(W) + np.abs(b))
    check(backend, actual, x @ W + b, bound, dtype)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("shape", "layout"), PRODUCTS)
def test_affine_backward(backend, dtype, rng, shape, layout, first):
    """With the gradient by x, and for a first layer without it."""
    x, W, b, dout = affine_case(rng, dtype, shape)
    y = (x @ W + b).astype(dtype)
    method = backend.parameter_gradients if first else backend.run_backward
    gradients = run(
        backend, lambda *a: method(Affine(*shape[1:]), *a), dout, x, y, W, b, layout=layout
    )
    x, W, dout = extended(x, W, dout)
    u, (n, _, m) = unit(dtype), shape
    limits = [
        (dout @ W.T, gamma(m, u) * (np.abs(dout) @ np.abs(W).T)),
        (x.T @ dout, gamma(n, u) * (np.abs(x).T @ np.abs(dout))),
        (dout.sum(axis=0), gamma(n, u) * np.abs(dout).sum(axis=0)),
    ]
    check_each(backend, gradients, limits[first:], dtype)


# -- operations


def altered(shapes, *scales):
    """(shape, layout, scale): each shape and layout, and each scale for the small shapes."""
    return [
        (shape, layout, scale)
        for scale in (1, *scales)
        for shape, layout in shapes
        if scale == 1 or (layout == "contiguous" and np.prod(shape) < 1000)
    ]


LARGE = (400, 401)
"""Large enough for Numba to share it out of its own accord, and for NumPy to choose by bits."""
TAKES_LARGE = ("numpy", "numba")
SHAPES = altered(in_memory((), (0, 3), (1,), (13,), (7, 13), (3, 4, 5), LARGE), 30, 1000)
ROWS = altered(in_memory((0, 3), (1, 1), (1, 10), (13,), (7, 13), (3, 4, 5), LARGE), 100)


def drawn(dtype, shape, scale, seed=0):
    return np.asarray(scale * np.random.default_rng(seed).normal(size=shape)).astype(dtype)


@cache
def operation_case(operation, dtype, shape, scale):
    """Numbers for x, dout and y, and what forward and backward may make of them."""
    x, dout = drawn(dtype, shape, scale), drawn(dtype, shape, 1, seed=1)
    forward = interpreted(operation.forward, dtype, x)
    y = forward[0][0].astype(dtype)
    return x, dout, y, forward, interpreted(operation.backward, dtype, dout, x, y)


def check_operation(backend, dtype, operation, cases):
    for shape, layout, scale in cases:
        if shape == LARGE and backend.name not in TAKES_LARGE:
            continue
        # What is kept of the large ones would fill the memory.
        case = operation_case.__wrapped__ if shape == LARGE else operation_case
        x, dout, y, forward, backward = case(operation, dtype, shape, scale)
        found = run(backend, lambda x: backend.run(operation, x), x, layout=layout)
        check_each(backend, found, forward, dtype, f"forward, {shape}, {layout}, {scale}")
        found = run(
            backend, lambda *a: backend.run_backward(operation, *a), dout, x, y, layout=layout
        )
        check_each(backend, found, backward, dtype, f"backward, {shape}, {layout}, {scale}")


@pytest.mark.parametrize("operation", variants("pointwise"), ids=repr)
def test_pointwise_operations(backend, dtype, operation):
    check_operation(backend, dtype, operation, SHAPES)


@pytest.mark.parametrize("operation", variants("rows"), ids=repr)
def test_operations_along_rows(backend, dtype, operation):
    check_operation(backend, dtype, operation, ROWS)


@pytest.mark.parametrize("operation", variants("pointwise"), ids=repr)
def test_numpy_chooses_by_bits_what_where_chooses(monkeypatch, dtype, operation):
    x, dout = drawn(dtype, (60, 50), 30), drawn(dtype, (60, 50), 1, seed=1)
    for array in (x, dout):
        array[0, :7] = [np.nan, np.inf, -np.inf, 0.0, -0.0, smallest(dtype), -smallest(dtype)]
    x[1:8, :7] = x[0, :7, None]
    backend, found = xnet.resolve("numpy"), {}
    for many in (0, x.size, x.size + 1):
        monkeypatch.setattr(numpy_generated, "MANY", many)
        y = backend.run(operation, x)
        found[many] = y, *backend.run_backward(operation, dout, x, y)
    for arrays in zip(*found.values(), strict=True):
        by_bits, here_too, by_where = (a.view(f"i{a.itemsize}") for a in arrays)
        np.testing.assert_array_equal(by_bits, by_where)
        np.testing.assert_array_equal(here_too, by_where)


# -- losses

BATCHES = altered(in_memory((1, 1), (1, 10), (7, 13)), 30)


@cache
def loss_case(loss, dtype, shape, scale, kind):
    """Scores and targets, as the loss takes them."""
    rng = np.random.default_rng(2)
    if kind == "soft":
        t = rng.random(shape)
    else:
        t = np.eye(shape[-1])[rng.integers(0, shape[-1], shape[:-1])]
    t = loss.targets(xnet.resolve("numpy", False).maths, t.astype(dtype))
    return drawn(dtype, shape, scale), t


@cache
def loss_limits(loss, dtype, shape, scale, kind):
    """What the loss of each row, their mean and its gradient, and predictions may be."""
    x, t = loss_case(loss, dtype, shape, scale, kind)

    def every(m, x, t):
        losses = loss.forward(m, x, t)
        mean = m.total(losses) / shape[0] if len(shape) == 2 else losses
        delta = loss.backward(m, x, t) * (1 / shape[0])
        return losses, mean, delta, loss.predict(m, x)

    (losses, error), (mean, off), *others = interpreted(every, dtype, x, t)
    return (losses[..., 0], error[..., 0]), (mean[0], off[0]), *others


@pytest.mark.parametrize("kind", ["one-hot", "soft"])
@pytest.mark.parametrize("loss", variants("loss"), ids=repr)
def test_losses(backend, dtype, loss, kind):
    cases = [*BATCHES, (LARGE, "contiguous", 1)] if kind == "one-hot" else BATCHES
    for shape, layout, scale in cases:
        what = f"{shape}, {layout}, {scale}"
        x, t = loss_case(loss, dtype, shape, scale, kind)
        losses, mean, delta, predicted = loss_limits(loss, dtype, shape, scale, kind)
        found = run(backend, lambda *a: backend.row_losses(loss, *a), x, t, layout=layout)
        check_each(backend, found, [losses], dtype, what)
        found = run(backend, lambda *a: backend.loss_and_delta(loss, *a), x, t, layout=layout)
        check_each(backend, found, [mean, delta], dtype, what)
        found = run(backend, lambda x: backend.predicted(loss, x), x, layout=layout)
        check_each(backend, found, [predicted], dtype, what)


@pytest.mark.parametrize("shape", [(13,), (3, 4, 5)])
@pytest.mark.parametrize("loss", variants("loss"), ids=repr)
def test_losses_of_one_row_and_of_stacked_batches(backend, dtype, loss, shape):
    x, t = loss_case(loss, dtype, shape, 1, "one-hot")
    losses, _, _, predicted = loss_limits(loss, dtype, shape, 1, "one-hot")
    check_each(
        backend, run(backend, lambda *a: backend.row_losses(loss, *a), x, t), [losses], dtype
    )
    check_each(backend, run(backend, lambda x: backend.predicted(loss, x), x), [predicted], dtype)


@pytest.mark.parametrize("loss", variants("loss", altered=False), ids=repr)
def test_targets_that_broadcast(backend, dtype, loss):
    """The numerical gradient has one batch's targets for many batches of scores."""
    x, t = drawn(dtype, (3, 4, 5), 1), loss_case(loss, dtype, (4, 5), 1, "one-hot")[1]
    (found,) = run(backend, lambda *a: backend.row_losses(loss, *a), x, t)
    whole = np.ascontiguousarray(np.broadcast_to(t, x.shape))
    (expected,) = run(backend, lambda *a: backend.row_losses(loss, *a), x, whole)
    np.testing.assert_array_equal(backend.to_numpy(found), backend.to_numpy(expected))


# -- steps


def settings_of(cls):
    """Optimizers of a class: as it is, with other numbers, and with each switch turned."""
    given = {field.name: field.default for field in dataclasses.fields(cls)}
    numbers = {k: 0.7 * v + 0.05 for k, v in given.items() if type(v) is float}
    switches = [{k: not v} for k, v in given.items() if type(v) is bool]
    decays = {"weight_decay": None if given["weight_decay"] else 0.125}
    return [cls(**one) for one in ({}, numbers, decays, *switches)]


UPDATES = [update for cls in OPTIMIZERS for update in settings_of(cls)]
every_update = pytest.mark.parametrize("update", UPDATES, ids=repr)


@cache
def step_case(update, dtype, shape, n):
    """Numbers for W, g and what is remembered at the n-th step."""
    W, g, *earlier = (drawn(dtype, shape, 1, seed) for seed in range(n + 1))
    memory = [np.zeros_like(W) for _ in range(update.slots)]
    for k, gradient in enumerate(earlier, start=1):
        _, *memory = Backend.step(xnet.resolve("numpy", False), update, k, W, gradient, memory)
    return W, g, *map(np.asarray, memory)


STEPS = [
    (n, shape, layout)
    for n in (1, 3)
    for shape, layout in in_memory((), (0, 3), (1,), (13,), (7, 13), LARGE)
    if n == 3 or shape != LARGE  # which is for threads
]


@every_update
def test_steps(backend, dtype, update):
    for n, shape, layout in STEPS:
        if shape == LARGE and backend.name not in TAKES_LARGE:
            continue
        arrays = step_case(update, dtype, shape, n)
        limits = interpreted(lambda m, *a, n=n: update.formula(m, n, *a), dtype, *arrays)
        placed = [place(backend, array, layout) for array in arrays]
        W, g, *memory = placed
        found = backend.step(update, n, W, g, memory)
        check_each(backend, found, limits, dtype, f"{n}, {shape}, {layout}")
        for before, after in zip(arrays, placed, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(after), before)
            if backend.name in ("numpy", "numba"):
                assert not any(np.shares_memory(new, after) for new in found)


# -- the bounds are worth something


def tightness(limits):
    """The median of how much of its size each number may be off, in units of rounding."""
    return [np.median(error / np.maximum(np.abs(v), 1e-3)) for v, error in limits]


@pytest.mark.parametrize("operation", variants("pointwise", "rows"), ids=repr)
def test_bounds_of_operations_are_tight(dtype, operation):
    *_, forward, backward = operation_case(operation, dtype, (7, 13), 1)
    assert max(tightness([*forward, *backward])) < 300 * unit(dtype)


@pytest.mark.parametrize("loss", variants("loss"), ids=repr)
def test_bounds_of_losses_are_tight(dtype, loss):
    limits = loss_limits(loss, dtype, (7, 13), 1, "one-hot")
    assert all(np.isfinite(error).all() for _, error in limits)
    assert max(tightness(limits)) < 300 * unit(dtype)


@every_update
def test_bounds_of_steps_are_tight(dtype, update):
    arrays = step_case(update, dtype, (7, 13), 3)
    limits = interpreted(lambda m, *a: update.formula(m, 3, *a), dtype, *arrays)
    assert max(tightness(limits)) < 300 * unit(dtype)


# -- numbers at the ends


def ends(dtype):
    info = np.finfo(dtype)
    sizes = [0.0, info.smallest_subnormal, info.tiny, info.eps, 1.0, 3.0, 80.0, info.max, np.inf]
    return np.array([*sizes, *(-v for v in sizes), np.nan], dtype)


def alike(backend, actual, expected, dtype, what=""):
    """Equal where not finite or 0, the sign of 0 included; else within some units."""
    actual = backend.to_numpy(actual)
    close = 64 * np.finfo(dtype).eps
    np.testing.assert_allclose(
        actual, expected, rtol=close, atol=64 * float(smallest(dtype)), err_msg=what
    )
    zero = (actual == 0) & (expected == 0)
    assert (np.signbit(actual) == np.signbit(expected))[zero].all(), what


@pytest.fixture
def plain():
    """NumPy's arrays, by the generic forms alone."""

    class Plain(xnet_numpy.NumpyBackend):
        run, run_backward, predicted = Backend.run, Backend.run_backward, Backend.predicted
        row_losses, loss_and_delta = Backend.row_losses, Backend.loss_and_delta
        step = Backend.step

    return Plain()


@pytest.mark.parametrize("operation", variants("pointwise"), ids=repr)
def test_pointwise_operations_at_the_ends(backend, dtype, plain, operation):
    x, dout = ends(dtype), np.ones_like(ends(dtype))
    y = plain.run(operation, x)
    (found,) = run(backend, lambda x: backend.run(operation, x), x)
    alike(backend, found, y, dtype)
    (found,) = run(backend, lambda *a: backend.run_backward(operation, *a), dout, x, y)
    alike(backend, found, plain.run_backward(operation, dout, x, y)[0], dtype)


def rows_at_the_ends(dtype):
    largest = np.finfo(dtype).max
    return np.array(
        [
            *([1e4, 0, -1e4], [-np.inf, 0, 0], [-np.inf] * 3, [np.inf, 0, 1], [np.inf, np.inf, 0]),
            *([0, np.nan, 1], [np.nan, 0, 1], [1, 0, np.nan], [0, 0, 0], [-0.0, 0, -0.0]),
            *([largest, -largest, 0], [largest] * 3, [-largest] * 3),
        ],
        dtype,
    )


@pytest.mark.parametrize("operation", variants("rows"), ids=repr)
def test_operations_along_rows_at_the_ends(backend, dtype, plain, operation):
    x = rows_at_the_ends(dtype)
    dout, y = np.ones_like(x), plain.run(operation, x)
    (found,) = run(backend, lambda x: backend.run(operation, x), x)
    alike(backend, found, y, dtype)
    (found,) = run(backend, lambda *a: backend.run_backward(operation, *a), dout, x, y)
    alike(backend, found, plain.run_backward(operation, dout, x, y)[0], dtype)


@pytest.mark.parametrize("loss", variants("loss"), ids=repr)
def test_losses_at_the_ends(backend, dtype, plain, loss):
    x = rows_at_the_ends(dtype)
    for column in range(3):
        t = loss.targets(plain.maths, np.eye(3, dtype=dtype)[[column] * len(x)])
        (found,) = run(backend, lambda *a: backend.row_losses(loss, *a), x, t)
        alike(backend, found, plain.row_losses(loss, x, t), dtype)
        _, found = run(backend, lambda *a: backend.loss_and_delta(loss, *a), x, t)
        alike(backend, found, plain.loss_and_delta(loss, x, t)[1], dtype)
    (found,) = run(backend, lambda x: backend.predicted(loss, x), x)
    alike(backend, found, plain.predicted(loss, x), dtype)


# -- one interface


@pytest.mark.parametrize(
    "cls",
    [
        xnet_numpy.NumpyBackend,
        xnet_numba.NumbaBackend,
        xnet_cupy.CupyBackend,
        xnet_strict.StrictBackend,
    ],
)
def test_overrides_keep_the_signature(cls):
    def shape_of(function):
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    bases = cls.__mro__[: cls.__mro__.index(Backend)]
    names = {name for base in bases for name in vars(base) if not name.startswith("__")}
    overridden = [name for name in names if callable(getattr(Backend, name, None))]
    assert "owns" in overridden
    for name in overridden:
        assert shape_of(getattr(cls, name)) == shape_of(getattr(Backend, name)), name


# -- arrays of any kind


def every_call(backend, dtype, rng, n=24, d=13, m=7):
    """Calls of all that a backend has of its own, each a function of NumPy arrays, and those."""
    x, W, b, dout = affine_case(rng, dtype, (n, d, m))
    affine = Affine(d, m)
    yield "affine", lambda *a: backend.run(affine, *a), (x, W, b)
    arrays = (dout, x, dout, W, b)
    yield "affine backward", lambda *a: backend.run_backward(affine, *a), arrays
    yield "affine gradients", lambda *a: backend.parameter_gradients(affine, *a), arrays
    scores, other = drawn(dtype, (n, m), 1), drawn(dtype, (n, m), 1, seed=1)
    for operation in variants("pointwise", "rows", altered=False):
        y = np.asarray(backend.run(operation, scores))
        yield f"{operation}", lambda x, o=operation: backend.run(o, x), (scores,)
        yield (
            f"{operation} backward",
            lambda *a, o=operation: backend.run_backward(o, *a),
            (other, scores, y),
        )
    for loss in variants("loss", altered=False):
        case = loss_case(loss, dtype, (n, m), 1, "one-hot")
        yield f"rows of {loss}", lambda *a, o=loss: backend.row_losses(o, *a), case
        yield f"{loss}", lambda *a, o=loss: backend.loss_and_delta(o, *a), case
        yield f"{loss} predicts", lambda x, o=loss: backend.predicted(o, x), (scores,)
    for cls in OPTIMIZERS:
        update = cls()
        arrays = step_case(update, dtype, (n, m), 1)
        yield (
            f"{update}",
            lambda W, g, *memory, o=update: backend.step(o, 1, W, g, memory),
            arrays,
        )


def results_of(call, arrays):
    found = call(*arrays)
    return [np.asarray(a) for a in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize("kind", ["read-only", "not aligned"])
@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_arrays_of_other_kinds(dtype, rng, name, kind, reproducible):
    """NumPy computes with such arrays as with any other."""

    def of_that_kind(array):
        if kind == "not aligned":
            space = np.zeros(array.nbytes + 1, np.uint8)[1:]
            array, values = space.view(array.dtype).reshape(array.shape), array
            array[...] = values
            return array
        array = array.copy()
        array.flags.writeable = False
        return array

    backend = xnet.resolve(name, reproducible)
    for what, call, arrays in every_call(backend, dtype, rng):
        expected = results_of(call, arrays)
        placed = [of_that_kind(array) for array in arrays]
        found = results_of(call, placed)
        for before, after in zip(arrays, placed, strict=True):
            np.testing.assert_array_equal(before, after, err_msg=what)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype.name == dtype, what
            close = 0 if name == "numba" else 32 * np.finfo(dtype).eps
            np.testing.assert_allclose(one, other, rtol=close, atol=close, err_msg=what)


# -- Numba's work shared out


@pytest.fixture
def numba():
    pytest.importorskip("numba")
    return xnet.resolve("numba", False)


@pytest.mark.parametrize("reproducible", [False, True])
def test_shared_out_it_is_the_same_bits(monkeypatch, dtype, rng, reproducible):
    pytest.importorskip("numba")
    backend = xnet.resolve("numba", reproducible)
    calls = list(every_call(backend, dtype, rng))
    alone = [results_of(call, arrays) for _, call, arrays in calls]
    force_parallel(monkeypatch)
    for (what, call, arrays), expected in zip(calls, alone, strict=True):
        found = results_of(call, arrays)
        if reproducible or "affine" not in what:  # little products are NumPy's
            assert all(map(same_bits, found, expected)), what
        for one, other in zip(found, expected, strict=True):
            close = 32 * np.finfo(dtype).eps
            np.testing.assert_allclose(one, other, rtol=close, atol=close, err_msg=what)


def asked_for(monkeypatch):
    """How many helpers are asked for from now on, in the list returned."""
    from xnet_numba import pool

    asked = []
    monkeypatch.setattr(pool, "thread_count", lambda: 3)
    monkeypatch.setattr(pool.pool, "_awake", lambda count, work: asked.append(count) or 0)
    return asked


def test_loops_are_shared_out_from_the_stated_size(monkeypatch, numba, rng):
    from xnet_numba import kernels, pool

    calls, asked = list(every_call(numba, "float64", rng)), asked_for(monkeypatch)
    size = kernels.ELEMENT_BYTES * 24 * 7
    for what, call, arrays in calls:
        if "affine" in what:
            continue
        monkeypatch.setattr(pool.Pool, "HELP_FROM", size + 1)
        call(*arrays)
        assert asked == [], what
        monkeypatch.setattr(pool.Pool, "HELP_FROM", size)
        found = results_of(call, arrays)
        unchanged = "predicts" in what and np.array_equal(found[0], arrays[0])
        assert asked == ([] if unchanged else [2]), what
        asked.clear()


@pytest.mark.parametrize("what", ["affine", "affine backward", "affine gradients"])
def test_products_are_shared_out_from_the_stated_size(monkeypatch, numba, rng, what):
    from xnet_numba import pool
    from xnet_numba.tiles import VECTOR_BYTES

    monkeypatch.setattr(xnet_numba, "LITTLE", 0)
    asked = asked_for(monkeypatch)
    call, arrays = {w: (c, a) for w, c, a in every_call(numba, "float64", rng)}[what]
    size = 24 * 13 * -(-7 * 8 // VECTOR_BYTES) * VECTOR_BYTES
    monkeypatch.setattr(pool.Pool, "HELP_FROM", size)
    call(*arrays)
    assert asked == [2]
    monkeypatch.setattr(pool.Pool, "HELP_FROM", size + 1)
    call(*arrays)
    assert asked == [2]


def test_transposition(dtype, rng):
    passes = pytest.importorskip("xnet_numba.passes")
    for shape in product([1, 7, 8, 9, 16, 23, 63, 64, 65, 130], repeat=2):
        array = rng.random(shape).astype(dtype)
        assert np.array_equal(passes._transposed(array), array.T), shape


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_fewer_rows_than_helpers(monkeypatch, numba, dtype, rng, n):
    """One row of a very wide product is shared out too: then some find nothing to do."""
    x, W, b, dout = affine_case(rng, dtype, (n, 6, 5))
    force_parallel(monkeypatch)
    close = 32 * np.finfo(dtype).eps
    found = numba.run(Affine(6, 5), x, W, b)
    actual = found, *numba.run_backward(Affine(6, 5), dout, x, found, W, b)
    x, W, b, dout = extended(x, W, b, dout)
    expected = x @ W + b, dout @ W.T, x.T @ dout, dout.sum(axis=0)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=close, atol=close)


def in_threads(count, target):
    failed = []

    def run():
        try:
            target()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize("reproducible", [False, True])
def test_kernels_run_in_many_threads_at_once(monkeypatch, rng, reproducible):
    pytest.importorskip("numba")
    force_parallel(monkeypatch)
    calls = list(every_call(xnet.resolve("numba", reproducible), "float64", rng))
    expected = [results_of(call, arrays) for _, call, arrays in calls]

    def work():
        for _ in range(5):
            for (what, call, arrays), right in zip(calls, expected, strict=True):
                assert all(map(same_bits, results_of(call, arrays), right)), what

    in_threads(4, work)


# -- reproducible loops are the formulas, bit for bit


@pytest.fixture
def reproducible_pair():
    """Numba, and what interprets formulas on NumPy's arrays."""
    pytest.importorskip("numba")
    return xnet.resolve("numba", True), xnet.resolve("numpy", True)


HURTFUL = ("normal", "wide", "ends")


def hurtful(kind, dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=shape)
    if kind == "wide":
        a = a * 10.0 ** rng.uniform(-20, 20, shape)
    if kind == "ends":
        a = np.where(rng.random(shape) < 0.2, rng.choice(ends(dtype), shape), a)
    return a.astype(dtype)


@pytest.mark.parametrize("kind", HURTFUL)
@pytest.mark.parametrize("operation", variants("pointwise", "rows"), ids=repr)
def test_reproducible_operations_are_the_formulas_own_bits(
    reproducible_pair, dtype, operation, kind
):
    numba, numpy = reproducible_pair
    for shape in ((1, 1), (13, 7), (3, 4, 5)):
        x, dout = hurtful(kind, dtype, shape), hurtful(kind, dtype, shape, seed=1)
        y = Backend.run(numpy, operation, x)
        assert same_bits(numba.run(operation, x), y)
        (expected,) = Backend.run_backward(numpy, operation, dout, x, y)
        assert same_bits(numba.run_backward(operation, dout, x, y)[0], expected)


@pytest.mark.parametrize("kind", HURTFUL)
@pytest.mark.parametrize("loss", variants("loss"), ids=repr)
def test_reproducible_losses_are_the_formulas_own_bits(reproducible_pair, dtype, loss, kind):
    numba, numpy = reproducible_pair
    for shape in ((1, 1), (13, 7)):
        x, (_, t) = hurtful(kind, dtype, shape), loss_case(loss, dtype, shape, 1, "soft")
        assert same_bits(numba.row_losses(loss, x, t), Backend.row_losses(numpy, loss, x, t))
        expected = Backend.loss_and_delta(numpy, loss, x, t)
        assert all(map(same_bits, numba.loss_and_delta(loss, x, t), expected))
        assert same_bits(numba.predicted(loss, x), Backend.predicted(numpy, loss, x))


@pytest.mark.parametrize("reproducible", [False, True])
@every_update
def test_a_step_has_one_result_in_both_modes(reproducible_pair, dtype, update, reproducible):
    """As written: no multiplication is fused with an addition, however the step is taken."""
    numba, numpy = xnet.resolve("numba", reproducible), reproducible_pair[1]
    for n in (1, 3):
        W, g, *memory = step_case(update, dtype, (13, 7), n)
        expected = Backend.step(numpy, update, n, W, g, memory)
        assert all(map(same_bits, numba.step(update, n, W, g, memory), expected))


# -- Numba's own exp, expm1, log and log1p


class Function(Pointwise, abstract=True):
    """One of `m`'s elementary functions, as an operation: compiled as they all are."""

    name: str

    def forward(self, m, x):
        return getattr(m, self.name)(x)


@pytest.fixture(params=exact.ELEMENTARY)
def function(request):
    """One of them: compiled, and in extended precision."""
    kernels = pytest.importorskip("xnet_numba.kernels")
    operation = Function(request.param)

    def compiled(values, dtype, mode="fast"):
        return kernels.Loops(mode).forward(operation, np.asarray(values, dtype))

    compiled.name = request.param
    compiled.exact = getattr(np, request.param)
    return compiled


# ln of the largest number, of the smallest normal one, and of half the smallest of all, below
# which exp rounds to 0.
LIMITS = {
    "float32": (88.722839, -87.336545, -103.972076),
    "float64": (709.782712, -708.396, -745.133),
}


def dense(name, dtype):
    """Very many numbers of a function's whole range, where its result is a normal number."""
    highest, lowest, _ = LIMITS[dtype]
    info = np.finfo(dtype)
    small = np.geomspace(1e-30, 1, 2000)
    wide = np.geomspace(float(info.tiny), float(info.max) / 2, 200_001)
    halfway = np.log(2) * (np.arange(-120, 120) + 0.5)  # where the reduced argument is largest
    line = np.linspace(lowest, highest, 200_001)
    if name.startswith("exp"):
        x = np.concatenate([line, small, -small, halfway])
        return x[(x > lowest) & (x < highest)].astype(dtype)
    near_one = np.concatenate([1 + 0.5 * small, 1 - 0.5 * small, np.linspace(0.5, 2, 50_001)])
    return np.concatenate([wide, near_one - 1 if name == "log1p" else near_one]).astype(dtype)


def test_compiled_functions_are_within_two_units_in_the_last_place(function, dtype):
    """Measured: exp 1.21 in float32 and 1.17 in float64, with fused multiply-adds."""
    x = dense(function.name, dtype)
    x = x[np.isfinite(x)]
    expected = function.exact(*extended(x))
    ulp = np.spacing(np.abs(expected).astype(dtype)).astype(np.longdouble)
    assert (np.abs(function(x, dtype) - expected) <= 2 * ulp).all()


def test_compiled_functions_below_the_normal_range(function, dtype):
    """A result there has fewer digits; it must be rounded once, and not be flushed to 0."""
    _, lowest, zero = LIMITS[dtype]
    tiny, least = np.finfo(dtype).tiny, smallest(dtype)
    if function.name == "exp":
        x = np.linspace(zero - 2, lowest, 20_001).astype(dtype)
        y = function(x, dtype)
        assert 0 < y[y > 0].min() < tiny
        assert (np.diff(y) >= 0).all()
    else:  # of expm1 and log1p what goes in has few digits, of log alone that
        x = np.concatenate([[s * k * float(least) for k in range(1, 1000)] for s in (1, -1)])
        x = x[x > 0].astype(dtype) if function.name == "log" else x.astype(dtype)
        y = function(x, dtype)
    expected = function.exact(*extended(x))
    assert (np.abs(y - expected) <= np.maximum(least, 2 * np.spacing(np.abs(y)))).all()


def test_compiled_functions_at_the_ends(function, dtype):
    highest, _, zero = LIMITS[dtype]
    largest = float(np.finfo(dtype).max)
    up, down = highest * (1 + 1e-5), zero * (1 + 1e-5)
    nan, inf = np.nan, np.inf
    of_each = {
        "exp": (
            [0.0, -0.0, inf, largest, up, -inf, -largest, down, nan],
            [1, 1, inf, inf, inf, 0, 0, 0, nan],
        ),
        "expm1": (
            [0.0, -0.0, inf, largest, up, -inf, -largest, down, nan],
            [0.0, -0.0, inf, inf, inf, -1, -1, -1, nan],
        ),
        "log": ([1.0, 0.0, -0.0, inf, -inf, -1.0, nan], [0, -inf, -inf, inf, nan, nan, nan]),
        # The formula adds what 1 + x lost to log 1, which is 0: the sign of -0 is gone.
        "log1p": ([0.0, -0.0, -1.0, inf, -inf, -2.0, nan], [0.0, 0.0, -inf, inf, nan, nan, nan]),
    }
    x, expected = of_each[function.name]
    for mode in ("fast", "exact"):
        y = function(x, dtype, mode)
        np.testing.assert_array_equal(y, np.array(expected, dtype), err_msg=mode)
        zeros = y == 0
        assert (np.signbit(y) == np.signbit(np.array(expected, dtype)))[zeros].all(), mode
    if function.name == "exp":
        assert np.isfinite(function([highest * (1 - 1e-5)], dtype)).all()
        assert (function([zero * (1 - 1e-3)], dtype) > 0).all()


def test_reproducible_functions_are_the_formulas_own_bits(function, dtype):
    x = np.concatenate([dense(function.name, dtype)[::7], everywhere(function.name, dtype)])
    x = np.concatenate([x, -x, ends(dtype)])
    with np.errstate(all="ignore"):
        expected = exact.elementary(np, function.name, x)
    assert same_bits(function(x, dtype, "exact"), expected)


# -- what is compiled is kept


KEPT = """
import sys
from numba.core import event
passes = event.RecordingListener()
event.register("numba:run_pass", passes)
import numpy as np, xnet
from xnet import operations, optimizers
net = xnet.Network([operations.Affine(4, 3), operations.Tanh()], backend="numba")
x = np.ones((6, 4))
net.predict(x)
net.backend.step(optimizers.Momentum(), 1, x, x, [x])
xnet.resolve("numba", True).run(operations.Softmax(), x)
print(len(passes.buffer))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    """Compiled code is kept on disk: with a folder that is empty, and again with what is there."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    passes = [
        int(
            subprocess.run(
                [sys.executable, "-c", KEPT],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for _ in range(2)
    ]
    assert passes[0] > 100
    assert passes[1] == 0
