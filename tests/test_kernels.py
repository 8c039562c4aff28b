"""Every kernel of every backend against NumPy in extended precision.

The bounds are those of rounding-error analysis (Higham, Accuracy and Stability of Numerical
Algorithms, chapter 3): n operations in a row, in any order, lose at most the relative
gamma(n) = n u / (1 - n u), u half the distance from 1 to the next number; for a sum this is
relative to the sum of absolute values. exp and log of any library are taken to be within 4 units
in the last place. First-order bounds are widened by 1 % for the products of their small terms.
"""

import inspect
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import xnet_cupy
import xnet_numba
import xnet_numpy
import xnet_strict
from conftest import BACKENDS, ON_HOST, require_host_cuda

import xnet
from xnet.backend import LOG_OFFSET, Backend, dtype_name

LAYOUTS = ["contiguous", "transposed", "strided"]


def in_memory(*shapes):
    """Each shape laid out plainly, and one that is no multiple of anything in the other ways."""
    odd = next(shape for shape in shapes if 13 in shape and len(shape) > 1)
    return [(shape, "contiguous") for shape in shapes] + [(odd, how) for how in LAYOUTS[1:]]


FORCED = "numba, forced parallel"


def force_parallel(monkeypatch):
    """Make Numba's kernels take their parallel path whatever the size."""
    import xnet_numba
    from xnet_numba import exact, kernels, pool

    monkeypatch.setattr(xnet_numba, "LITTLE", 0)
    monkeypatch.setattr(xnet_numba, "FEW_ROWS", 0)
    monkeypatch.setattr(kernels, "PARALLEL_ELEMENTS", 0)
    monkeypatch.setattr(pool.Pool, "HELP_FROM", 0)
    monkeypatch.setattr(pool.Pool, "WAKE_FROM", 0)
    monkeypatch.setattr(pool, "thread_count", lambda: 3)  # on one core too
    monkeypatch.setattr(exact, "PARALLEL_PRODUCT", 1)
    monkeypatch.setattr(exact, "BLAS_THREADS_FROM", 0)
    monkeypatch.setattr(exact, "ROWS_PER_PIECE", 2)


@pytest.fixture(params=[*BACKENDS, FORCED, ON_HOST])
def backend(request, monkeypatch):
    """Each usable backend, Numba once more with its parallel path forced, CUDA without a GPU."""
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
    """What the kernel makes of the NumPy `arrays`, which it must leave alone."""
    placed = [place(backend, array, layout) for array in arrays]
    results = getattr(backend, kernel)(*placed)
    for before, after in zip(arrays, placed, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(after), before)
    return results


def check(backend, actual, expected, bound, dtype):
    """`actual` has the dtype and shape it should, and lies within `bound` of `expected`."""
    assert backend.owns(actual)
    assert dtype_name(actual.dtype) == dtype
    actual = backend.to_numpy(actual)
    assert actual.shape == expected.shape
    assert (np.abs(actual - expected) <= bound).all()


def extended(*arrays):
    return [array.astype(np.longdouble) for array in arrays]


def unit(dtype):
    """Rounding error of one operation in `dtype`, and of the same one in the reference."""
    return (np.finfo(dtype).eps + np.finfo(np.longdouble).eps) / np.longdouble(2)


def gamma(n, u):
    return n * u / (1 - n * u)


def smallest(dtype):
    return np.finfo(dtype).smallest_subnormal.astype(np.longdouble)


# -- the four operations that decide the bits


@pytest.mark.parametrize(
    ("shape", "layout"), in_memory((0, 3, 2), (1, 1, 1), (1, 9, 4), (5, 1, 3), (13, 17, 11))
)
def test_matmul(backend, dtype, rng, shape, layout):
    n, k, m = shape
    a, b = rng.normal(size=(n, k)).astype(dtype), rng.normal(size=(k, m)).astype(dtype)
    actual = run(backend, "matmul", a, b, layout=layout)
    a, b = extended(a, b)
    bound = gamma(k, unit(dtype)) * (np.abs(a) @ np.abs(b))
    check(backend, actual, a @ b, bound, dtype)


@pytest.mark.parametrize(("shape", "layout"), in_memory((0, 3), (1, 1), (7, 13), (300, 257)))
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_sum(backend, dtype, rng, shape, axis, keepdims, layout):
    a = rng.normal(size=shape).astype(dtype)
    actual = backend.sum(place(backend, a, layout), axis=axis, keepdims=keepdims)
    (a,) = extended(a)
    terms = a.size if axis is None else a.shape[axis]
    magnitude = np.abs(a).sum(axis=axis, keepdims=keepdims)
    bound = gamma(max(terms - 1, 0), unit(dtype)) * magnitude
    check(backend, actual, a.sum(axis=axis, keepdims=keepdims), bound, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exp(backend, dtype, layout):
    reach = math.log(float(np.finfo(dtype).max)) - 1
    x = np.linspace(-reach, reach, 3000).reshape(60, 50).astype(dtype)
    expected = np.exp(*extended(x))
    actual = run(backend, "exp", x, layout=layout)
    check(backend, actual, expected, 8 * unit(dtype) * expected, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log(backend, dtype, rng, layout):
    info = np.finfo(dtype)
    everywhere = np.geomspace(float(info.tiny), float(info.max) / 2, 2000)
    near_one = 1 + 0.1 * rng.normal(size=1000)
    x = np.concatenate([everywhere, near_one]).reshape(60, 50).astype(dtype)
    expected = np.log(*extended(x))
    actual = run(backend, "log", x, layout=layout)
    check(backend, actual, expected, 8 * unit(dtype) * np.abs(expected), dtype)


# -- affine

# N, D, M. The last is large enough for Numba to share out of its own accord.
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
    actual = run(backend, "affine", x, W, b, layout=layout)
    x, W, b = extended(x, W, b)
    bound = gamma(shape[1] + 1, unit(dtype)) * (np.abs(x) @ np.abs(W) + np.abs(b))
    check(backend, actual, x @ W + b, bound, dtype)


@pytest.mark.parametrize(("shape", "layout"), PRODUCTS)
def test_affine_backward(backend, dtype, rng, shape, layout):
    x, W, _, dout = affine_case(rng, dtype, shape)
    dx, dW, db = run(backend, "affine_backward", dout, x, W, layout=layout)
    x, W, dout = extended(x, W, dout)
    u, (n, _, m) = unit(dtype), shape
    check(backend, dx, dout @ W.T, gamma(m, u) * (np.abs(dout) @ np.abs(W).T), dtype)
    check(backend, dW, x.T @ dout, gamma(n, u) * (np.abs(x).T @ np.abs(dout)), dtype)
    check(backend, db, dout.sum(axis=0), gamma(n, u) * np.abs(dout).sum(axis=0), dtype)


# -- elementwise

SHAPES = in_memory((), (0, 3), (1,), (13,), (7, 13), (3, 4, 5), (400, 401))


@pytest.mark.parametrize(("shape", "layout"), SHAPES)
@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_sigmoid(backend, dtype, rng, shape, scale, layout):
    x = np.asarray(scale * rng.normal(size=shape)).astype(dtype)
    actual = run(backend, "sigmoid", x, layout=layout)
    (x,) = extended(x)
    z, u = np.exp(-np.abs(x)), unit(dtype)
    expected = np.where(x >= 0, 1, z) / (1 + z)
    # z is off by 8 u, which 1 + z halves at least; an addition and a division; below 0, times z.
    relative = 8 * u * z / (1 + z) + 2 * u + np.where(x >= 0, 0, 9 * u)
    bound = 1.01 * relative * expected + 4 * smallest(dtype)
    check(backend, actual, expected, bound, dtype)


@pytest.mark.parametrize(("shape", "layout"), SHAPES)
def test_sigmoid_backward(backend, dtype, rng, shape, layout):
    dout, y = np.asarray(rng.normal(size=shape)), np.asarray(rng.random(shape))
    dout, y = dout.astype(dtype), y.astype(dtype)
    actual = run(backend, "sigmoid_backward", dout, y, layout=layout)
    dout, y = extended(dout, y)
    expected = dout * (1 - y) * y
    check(backend, actual, expected, gamma(3, unit(dtype)) * np.abs(expected), dtype)


@pytest.mark.parametrize(("shape", "layout"), SHAPES)
def test_relu_and_its_backward(backend, dtype, rng, shape, layout):
    x, dout = (np.asarray(rng.normal(size=shape)).astype(dtype) for _ in range(2))
    actual = run(backend, "relu", x, layout=layout)
    check(backend, actual, np.where(x > 0, x, 0), 0, dtype)
    actual = run(backend, "relu_backward", dout, np.asarray(x <= 0), layout=layout)
    check(backend, actual, np.where(x > 0, dout, 0), 0, dtype)


# -- softmax


def softmax_reference(x, u):
    """Softmax of the extended x, and the relative error that rounding to u can make in it."""
    d = x - x.max(axis=-1, keepdims=True, initial=-np.inf)
    e = np.exp(d)
    y = e / e.sum(axis=-1, keepdims=True)
    # exp turns the absolute error of its argument into a relative one.
    each = np.abs(d) * u + 8 * u
    total = (y * each).sum(axis=-1, keepdims=True) + gamma(x.shape[-1] - 1, u)
    return y, 1.01 * (each + total + u)


ROWS = in_memory((0, 3), (1, 1), (1, 10), (13,), (7, 13), (3, 4, 5), (400, 401))


@pytest.mark.parametrize(("shape", "layout"), ROWS)
@pytest.mark.parametrize("scale", [1, 100])
def test_softmax(backend, dtype, rng, shape, scale, layout):
    x = (scale * rng.normal(size=shape)).astype(dtype)
    actual = run(backend, "softmax", x, layout=layout)
    expected, relative = softmax_reference(*extended(x), unit(dtype))
    check(backend, actual, expected, relative * expected + 4 * smallest(dtype), dtype)


def targets(rng, kind, shape, dtype):
    if kind == "soft":
        return rng.random(shape).astype(dtype)
    return np.eye(shape[1], dtype=dtype)[rng.integers(0, shape[1], shape[0])]


BATCHES = in_memory((1, 1), (1, 10), (7, 13), (400, 401))


@pytest.mark.parametrize(("shape", "layout"), BATCHES)
@pytest.mark.parametrize("kind", ["one-hot", "soft"])
@pytest.mark.parametrize("scale", [1, 30])
def test_softmax_with_loss(backend, dtype, rng, shape, kind, scale, layout):
    x, t = (scale * rng.normal(size=shape)).astype(dtype), targets(rng, kind, shape, dtype)
    loss, y = run(backend, "softmax_with_loss", x, t, layout=layout)
    x, t = extended(x, t)
    u, n = unit(dtype), shape[0]
    expected_y, relative = softmax_reference(x, u)
    check(backend, y, expected_y, relative * expected_y + 4 * smallest(dtype), dtype)
    offset = np.longdouble(LOG_OFFSET)
    logs = np.log(expected_y + offset)
    # The argument of the logarithm: y, the rounded 1e-7 and their sum; then the logarithm.
    error = 1.01 * (relative * expected_y / (expected_y + offset) + 2 * u + 8 * u * np.abs(logs))
    bound = ((t * error).sum() + gamma(t.size + 1, u) * (t * np.abs(logs)).sum()) / n
    check(backend, loss, -(t * logs).sum() / n, 1.01 * bound, dtype)


@pytest.mark.parametrize(("shape", "layout"), BATCHES)
@pytest.mark.parametrize("kind", ["one-hot", "soft"])
@pytest.mark.parametrize("dout", [1.0, -0.3])
def test_softmax_with_loss_backward(backend, dtype, rng, shape, kind, dout, layout):
    y = np.exp(12 * rng.normal(size=shape))  # many below 1e-7, where the 1e-7 decides
    y = (y / y.sum(axis=1, keepdims=True)).astype(dtype)
    t = targets(rng, kind, shape, dtype)
    placed = [place(backend, array, layout) for array in (y, t)]
    actual = backend.softmax_with_loss_backward(*placed, dout)
    y, t = extended(y, t)
    r = t * y / (y + np.longdouble(LOG_OFFSET))
    expected = (y * r.sum(axis=1, keepdims=True) - r) * dout / shape[0]
    # r takes 4 roundings (the 1e-7 is one), its sum C - 1, and 5 are left: y *, - r, the scale
    # in two and its product.
    magnitude = (y * r.sum(axis=1, keepdims=True) + r) * abs(dout) / shape[0]
    # Where t y falls below the normal range, dividing by y + 1e-7 makes its error the larger.
    underflow = 4 * smallest(dtype) / (y + np.longdouble(LOG_OFFSET))
    bound = gamma(shape[1] + 8, unit(dtype)) * magnitude + underflow
    check(backend, actual, expected, bound, dtype)


def test_softmax_with_loss_backward_by_default_takes_dout_as_one(backend, rng):
    y, t = rng.random((3, 4)), targets(rng, "one-hot", (3, 4), "float64")
    default = run(backend, "softmax_with_loss_backward", y, t)
    given = backend.softmax_with_loss_backward(backend.asarray(y), backend.asarray(t), 1.0)
    np.testing.assert_array_equal(backend.to_numpy(default), backend.to_numpy(given))


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

    overridden = [name for name in vars(cls) if callable(getattr(Backend, name, None))]
    overridden = [name for name in overridden if not name.startswith("__")]
    assert "owns" in overridden
    for name in overridden:
        assert shape_of(getattr(cls, name)) == shape_of(getattr(Backend, name)), name


# -- Numba's two paths


@pytest.fixture
def kernels():
    pytest.importorskip("numba")
    from xnet_numba import kernels

    return kernels


def kernel_cases(rng, dtype, n=24, d=13, m=7):
    x, W, b, dout = affine_case(rng, dtype, (n, d, m))
    y, t = rng.random((n, m)).astype(dtype), targets(rng, "one-hot", (n, m), dtype)
    return {
        "affine": (x, W, b),
        "affine_backward": (dout, x, W),
        "sigmoid": (x,),
        "sigmoid_backward": (dout, y),
        "relu": (x,),
        "relu_backward": (dout, dout < y),
        "softmax": (x,),
        "softmax_with_loss": (dout, t),
        "softmax_with_loss_backward": (y, t, 1.0),
    }


KERNELS = list(kernel_cases(np.random.default_rng(0), "float64"))


def spy(monkeypatch, kernels, name):
    """Record in the list returned that the compiled function `name` ran."""
    ran, compiled = [], getattr(kernels, name)

    def record(*args):
        ran.append(name)
        return compiled(*args)

    monkeypatch.setattr(kernels, name, record)
    return ran


PRODUCTS = ("affine", "affine_backward")


@pytest.mark.parametrize("name", KERNELS)
def test_parallel_gives_what_serial_gives(monkeypatch, kernels, dtype, rng, name):
    arguments = kernel_cases(rng, dtype)[name]
    serial = getattr(kernels, name)(*arguments)
    force_parallel(monkeypatch)
    ran = [None] if name in PRODUCTS else spy(monkeypatch, kernels, f"_{name}_parallel")
    parallel = getattr(kernels, name)(*arguments)
    assert len(ran) == 1
    exact = name in ("relu", "relu_backward", *PRODUCTS)
    close = 0 if exact else 32 * np.finfo(dtype).eps
    if isinstance(serial, np.ndarray):
        serial, parallel = [serial], [parallel]
    for one, other in zip(serial, parallel, strict=True):
        assert one.dtype == other.dtype == dtype
        np.testing.assert_allclose(other, one, rtol=close, atol=close)


@pytest.mark.parametrize("name", [name for name in KERNELS if name not in PRODUCTS])
def test_parallel_from_the_stated_size(monkeypatch, kernels, rng, name):
    arguments = kernel_cases(rng, "float64")[name]
    ran = spy(monkeypatch, kernels, f"_{name}_parallel")
    monkeypatch.setattr(kernels, "PARALLEL_ELEMENTS", arguments[0].size + 1)
    getattr(kernels, name)(*arguments)
    assert ran == []
    monkeypatch.setattr(kernels, "PARALLEL_ELEMENTS", arguments[0].size)
    getattr(kernels, name)(*arguments)
    assert len(ran) == 1


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 23, 63, 64, 65, 130])
@pytest.mark.parametrize("m", [1, 7, 8, 9, 16, 23, 63, 64, 65, 130])
def test_transposition(dtype, rng, n, m):
    from xnet_numba.passes import _transposed

    array = rng.random((n, m)).astype(dtype)
    assert np.array_equal(_transposed(array), array.T)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_shared_out_from_the_stated_size(monkeypatch, kernels, rng, name):
    from xnet_numba import fused, pool
    from xnet_numba.tiles import VECTOR_BYTES

    arguments, asked = kernel_cases(rng, "float64")[name], []
    size = 24 * 13 * -(-7 * 8 // VECTOR_BYTES) * VECTOR_BYTES
    monkeypatch.setattr(pool, "thread_count", lambda: 3)
    monkeypatch.setattr(pool.Pool, "WAKE_FROM", 0)
    monkeypatch.setattr(fused.pool, "_awake", lambda count, work: asked.append(count) or 0)
    monkeypatch.setattr(pool.Pool, "HELP_FROM", size)
    getattr(kernels, name)(*arguments)
    assert asked == [2]
    monkeypatch.setattr(pool.Pool, "HELP_FROM", size + 1)
    getattr(kernels, name)(*arguments)
    assert asked == [2]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_fewer_rows_than_helpers(monkeypatch, kernels, dtype, rng, n):
    """One row of a very wide product is shared out too: then some find nothing to do."""
    x, W, b, dout = affine_case(rng, dtype, (n, 6, 5))
    force_parallel(monkeypatch)
    close = 32 * np.finfo(dtype).eps
    np.testing.assert_allclose(kernels.affine(x, W, b), x @ W + b, rtol=close, atol=close)
    actual = kernels.affine_backward(dout, x, W)
    expected = dout @ W.T, x.T @ dout, dout.sum(axis=0)
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


OVERLAP = """
import contextlib, threading
import numpy as np, threadpoolctl
from xnet_numba import exact

def blas_threads():
    found = threadpoolctl.threadpool_info()
    return [library["num_threads"] for library in found if library["user_api"] == "blas"]

compiled, barrier = exact._pieces, threading.Barrier(2)

def meet(*args):
    with contextlib.suppress(threading.BrokenBarrierError):
        barrier.wait(timeout=2)  # in vain where one product waits for the other to end
    compiled(*args)

exact._pieces = meet
arguments = np.ones((600, 100)), np.ones((100, 50)), np.ones(50)
threads = [threading.Thread(target=exact.affine, args=arguments) for _ in range(2)]
before = blas_threads()
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(before, blas_threads())
assert before == blas_threads()
"""


@pytest.mark.usefixtures("kernels")
def test_blas_has_its_threads_back_when_products_overlap():
    """Two threads that are both within a product must not leave BLAS on one thread for good.

    In a process of its own: threadpoolctl lets only the first thread that asks set the number.
    """
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", OVERLAP],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


INTERRUPTED = """
import numpy as np
from xnet_numba import exact

class Interrupted:
    def __init__(self, calls):
        self.calls = calls
    def get_num_threads(self):
        return 2
    def set_num_threads(self, count):
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt

x, W, b = np.ones((600, 100)), np.ones((100, 50)), np.ones(50)
for call in (1, 2):  # on the way in, on the way out
    exact._one_blas_thread.libraries = [Interrupted(call)]
    try:
        exact.affine(x, W, b)
        raise SystemExit("not interrupted")
    except KeyboardInterrupt:
        exact.affine(x, W, b)
"""


@pytest.mark.usefixtures("kernels")
def test_interrupted_product_leaves_the_next_one_working():
    """Ctrl-C while BLAS is being set must not leave every later product waiting for ever."""
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], timeout=20, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_kernels_run_in_many_threads_at_once(monkeypatch, kernels, rng):
    cases = kernel_cases(rng, "float64")
    expected = {name: getattr(kernels, name)(*arguments) for name, arguments in cases.items()}
    force_parallel(monkeypatch)

    def work():
        for _ in range(20):
            for name, arguments in cases.items():
                results = getattr(kernels, name)(*arguments)
                for one, other in zip(results, expected[name], strict=True):
                    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)

    in_threads(4, work)


def test_read_only_arrays(kernels, dtype, rng):
    for name, arguments in kernel_cases(rng, dtype).items():
        if name in ("softmax", "affine"):
            frozen = [array.copy() for array in arguments]
            for array in frozen:
                array.flags.writeable = False
            np.testing.assert_array_equal(
                getattr(kernels, name)(*frozen), getattr(kernels, name)(*arguments)
            )


# -- Numba's own exp


@pytest.fixture(scope="module")
def numba_exp():
    numba = pytest.importorskip("numba")
    from xnet_numba.elementary import _exp

    @numba.njit
    def fill(x, out):
        for i in range(x.size):
            out[i] = _exp(x[i])

    def exp(values, dtype):
        x = np.asarray(values, dtype)
        out = np.empty_like(x)
        fill(x, out)
        return out

    return exp


# ln of the largest number, of the smallest normal one, and of half the smallest of all, below
# which exp rounds to 0.
LIMITS = {
    "float32": (88.722839, -87.336545, -103.972076),
    "float64": (709.782712, -708.396, -745.133),
}


def test_numba_exp_is_within_two_units_in_the_last_place(numba_exp, dtype):
    """Measured: 1.21 in float32 and 1.17 in float64, with fused multiply-adds."""
    highest, lowest, _ = LIMITS[dtype]
    small = np.concatenate([np.geomspace(1e-30, 1, 2000), -np.geomspace(1e-30, 1, 2000)])
    halfway = np.log(2) * (np.arange(-120, 120) + 0.5)  # where the reduced argument is largest
    x = np.concatenate([np.linspace(lowest, highest, 200_001), small, halfway])
    x = x[(x > lowest) & (x < highest)].astype(dtype)
    expected = np.exp(*extended(x))
    ulp = np.spacing(expected.astype(dtype)).astype(np.longdouble)
    assert (np.abs(numba_exp(x, dtype) - expected) <= 2 * ulp).all()


def test_numba_exp_below_the_normal_range(numba_exp, dtype):
    """A result there has fewer digits; it must be rounded once, and not be flushed to 0."""
    _, lowest, zero = LIMITS[dtype]
    x = np.linspace(zero - 2, lowest, 20_001).astype(dtype)
    y = numba_exp(x, dtype)
    assert (np.abs(y - np.exp(*extended(x))) <= smallest(dtype)).all()
    assert 0 < y[y > 0].min() < np.finfo(dtype).tiny
    assert (np.diff(y) >= 0).all()


def test_numba_exp_at_the_ends(numba_exp, dtype):
    highest, _, zero = LIMITS[dtype]
    largest = float(np.finfo(dtype).max)
    up, down = highest * (1 + 1e-5), zero * (1 + 1e-5)
    x = [0.0, -0.0, np.inf, largest, up, -np.inf, -largest, down, np.nan]
    expected = [1, 1, np.inf, np.inf, np.inf, 0, 0, 0, np.nan]
    np.testing.assert_array_equal(numba_exp(x, dtype), expected)
    assert np.isfinite(numba_exp([highest * (1 - 1e-5)], dtype)).all()
    assert (numba_exp([zero * (1 - 1e-3)], dtype) > 0).all()


def test_a_second_process_compiles_nothing(tmp_path):
    """Compiled code is cached on disk."""
    code = (
        "import numpy as np; from xnet_numba import kernels;"
        "kernels.sigmoid(np.ones(3)); kernels.sigmoid(np.ones(1 << 18));"
        "loops = [kernels._sigmoid.stats, kernels._sigmoid_parallel.stats];"
        "print([(sum(s.cache_hits.values()), sum(s.cache_misses.values())) for s in loops])"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert printed == ["[(0, 1), (0, 1)]", "[(1, 0), (1, 0)]"]
