"""Every backend through `xnet.testing`, as anybody's; then what that kit rests on.

PyTorch and JAX take part where they are installed, as test-only backends.
"""

import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
from dataclasses import replace
from functools import cache
from inspect import isfunction, signature
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKENDS, OPTIMIZERS, REGISTERED, property_settings
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet import operations
from xnet.arithmetic import unchecked
from xnet.backend import Backend
from xnet.testing import checks, parametrize_with_checks, parity

PEERS = {"torch": "TorchBackend", "jax": "JaxBackend"}
TRIED = [name for name in BACKENDS if name != "numpy"] + list(PEERS)
ALL = parity.trials(
    {kind.__name__: kind for kind in REGISTERED}, {kind.__name__: kind for kind in OPTIMIZERS}
)
TRIALS = {trial.name: trial for trial in ALL}
PERTURBED = [name for name in TRIALS if name.startswith("numerical gradient")]
"""They take as many rows as an input has numbers other than 0: for JAX, each a shape to compile."""


@cache
def peer(name):
    """The class of a test-only backend, which is registered nowhere."""
    folder = Path(__file__).parent / "packages" / "peers"
    spec = importlib.util.spec_from_file_location(f"xnet_{name}", folder / f"xnet_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, PEERS[name])


def make(name, reproducible):
    """The backend `name`, or a skip that says why not."""
    if name in PEERS:
        backend_class = peer(name)
        if backend_class.why_unusable():
            pytest.skip(f"{name}: {backend_class.why_unusable()}")
        return backend_class(reproducible=reproducible)
    reason = {info.name: info.reason for info in xnet.backends()}[name]
    if reason:
        pytest.skip(f"{name}: {reason}")
    return xnet.resolve(name, reproducible=reproducible)


@pytest.fixture(autouse=True)
def as_they_are():
    """JAX is refused in reproducible mode, for XLA takes subnormals for zeros; the rest is right.

    What is refused, and who is not, is for test_arithmetic to say.
    """
    with unchecked():
        yield


def unequal(pair, dtype, draw, trials=ALL):
    """The trials whose bits differ, one after the other, with the error if there was one."""
    verdicts = (parity.verdict(t, *pair, dtype, draw) for t in trials if dtype in t.dtypes)
    return ((v.operation, v.error) for v in verdicts if not v.equal)


# -- every backend


@parametrize_with_checks("numpy")
def test_numpy(backend, check):
    check(backend)


@parametrize_with_checks("numba")
def test_numba(backend, check):
    check(backend)


if "cupy" in BACKENDS:  # of those that cannot run here the report's head says why not

    @parametrize_with_checks("cupy")
    def test_cupy(backend, check):
        check(backend)


@parametrize_with_checks("strict")
def test_strict(backend, check):
    check(backend)


UNREGISTERED = {"label, device, mode": "it is registered nowhere, so no label selects it"}


@parametrize_with_checks(peer("torch"), expected_failed_checks=UNREGISTERED)
def test_torch(backend, check):
    check(backend)


def soon_compiled(check):
    """JAX compiles each operation for each shape anew: it tries some only."""
    return check.trial.name not in PERTURBED[2:]


@parametrize_with_checks(
    peer("jax"),
    numbers=["normal", "not finite", "cancelling", "one huge"],
    only=soon_compiled,
    expected_failed_checks=UNREGISTERED
    | {"arithmetic, reproducible, *": "XLA's CPU code takes subnormals for zeros"},
)
def test_jax(backend, check):
    check(backend)


# -- what they rest on


@pytest.mark.parametrize(
    ("trial", "dtype"),
    [
        pytest.param(t, d, id=f"{t.name}-{d}")
        for t in ALL
        if t.bound and not t.name.startswith("optimizer")
        for d in t.dtypes
        if not (t.name.startswith("training") and d == "float32")
    ],
)
def test_a_bound_says_something(trial, dtype):
    """It is a number, and small beside what is computed: or no backend could break it.

    Where an optimizer divides by a root of squared gradients it has none for a gradient that
    rounding could take to 0, and then for all that follows: steps are held to their very bits alone
    (`_optimizer_trial`), and to these bounds in float64.
    """
    inputs = [array.astype(dtype) for array in trial.arrays(parity.standard_normal())]
    found = parity.results(trial, xnet.resolve("numpy", reproducible=False), inputs)
    u = np.finfo(dtype).eps / 2
    coarse = {"numerical": 1e13, "training": 1e8}.get(trial.name.split()[0], 4e6)
    for bound, result in zip(parity.bounds(trial, inputs, dtype), found, strict=True):
        assert np.shape(bound) == result.shape
        assert (bound >= 0).all()
        # Of the gradient by a bias before a batch norm, which is 0, all is rounding.
        largest = max(np.abs(result).max(), 1e-2)
        assert np.median(bound) <= coarse * u * largest


@pytest.mark.parametrize(
    ("trial", "dtype"),
    [
        pytest.param(t, d, id=f"{t.name}-{d}")
        for t in ALL
        # Of a difference quotient it is what the derivative is.
        if t.bound and t.name not in PERTURBED
        for d in t.dtypes
    ],
)
def test_a_bound_is_of_what_is_computed(trial, dtype):
    """The numbers that carry the errors are those that the backend's are near."""
    inputs = [array.astype(dtype) for array in trial.arrays(parity.standard_normal())]
    found = parity.results(trial, xnet.resolve("numpy", reproducible=False), inputs)
    backend = parity.Bounding(dtype)
    with np.errstate(all="ignore"):
        carried = trial.bound(backend, [backend.asarray(array) for array in inputs])
    # An optimizer's own bound may be 0: equal bits, see `_optimizer_trial`.
    slack = 100 * backend.u if trial.name.startswith("optimizer") else 0
    for result, bounded in zip(found, carried, strict=True):
        error = np.abs(result - bounded.v)
        e = np.where(np.isnan(bounded.e), np.inf, bounded.e)
        assert (error <= e + slack * np.abs(bounded.v).max(initial=1)).all()


def test_two_backends_may_be_twice_the_bound_apart():
    x = np.array([[1.5, -3.0]], "float32")
    trial = parity.Trial(
        "x + 1", lambda draw: [x], lambda b, i: [i[0] + 1], lambda b, i: [i[0] + 1]
    )
    (limit,) = parity.bounds(trial, [x], "float32")
    np.testing.assert_allclose(limit, 2 * 2.0**-24 * np.array([[2.5, 2.0]]), rtol=1e-6)


@pytest.mark.parametrize("kind", parity.NUMBERS)
def test_numbers_are_of_their_kind(kind, dtype):
    draw, limits = parity.numbers(kind, dtype), np.finfo(dtype)
    first, *others = (draw(30, 30) for _ in range(3))
    largest, smallest = np.abs(first).max(), np.abs(first[first != 0]).min()
    if kind == "subnormal":
        assert 0 < smallest < largest < limits.smallest_normal
    if kind == "huge":
        assert limits.max > largest > limits.max / 1e5
    if kind == "of all sizes":
        assert largest > float(limits.max) ** 0.4
        assert smallest < float(limits.smallest_normal) ** 0.4
    if kind == "not finite":
        assert {np.inf, -np.inf, 0.0} <= set(first[~np.isnan(first)].tolist())
        assert np.isnan(first).any()
        assert {True, False} == set(np.signbit(first[first == 0]).tolist())
        assert np.isfinite(first).mean() > 0.9
    if kind in ("normal", "subnormal", "huge"):
        for other in others:
            assert 2 < np.abs(other).max() < 10


# -- numbers chosen to hurt


@pytest.mark.parametrize("trial", ["matmul", "comparisons, where, max", "+ - * / sqrt"])
def test_arithmetic_that_takes_subnormals_for_zeros_is_found(dtype, trial):
    """As XLA's does: the product of a subnormal number and an ordinary one is 0."""
    pair = make("jax", True), xnet.resolve("numpy", reproducible=True)
    for kind, kept in {"normal": True, "subnormal": False}.items():
        v = parity.verdict(TRIALS[trial], *pair, dtype, parity.numbers(kind, dtype), kind)
        assert (v.kept, v.error) == (kept, None)


@given(data=st.data())
@property_settings
@pytest.mark.parametrize("name", [name for name in TRIED if name != "jax"])
def test_any_shape_and_range_gives_the_same_bits(name, data):
    """JAX compiles for each shape anew, which takes a second or more: it is left out here."""
    pair = make(name, True), xnet.resolve("numpy", reproducible=True)
    n, k, m = (data.draw(st.integers(1, 40), label=label) for label in ("N", "K", "M"))
    dtype = data.draw(st.sampled_from(["float32", "float64"]), label="dtype")
    kind = data.draw(st.sampled_from([*parity.NUMBERS, *parity.HURTFUL][1:]), label="kind")
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    operation = data.draw(st.sampled_from(REGISTERED), label="operation")
    made = parity.made(operation, k, m)
    trials = [
        replace(TRIALS["matmul"], arrays=lambda draw: [draw(n, k), draw(k, m)]),
        replace(TRIALS["sum"], arrays=lambda draw: [draw(n, k)]),
        parity.loss_trial(made, n, m)
        if operation.fuses == "loss"
        else parity.operation_trial(made, n),
    ]
    assert list(unequal(pair, dtype, parity.numbers(kind, dtype, seed), trials)) == []


def test_numba_cuts_large_products_over_its_threads(dtype, rng):
    """Sizes at which the rows are shared out, in both directions, against the generic form."""
    numba = make("numba", True)
    generic = xnet.resolve("numpy", reproducible=True)
    affine = operations.Affine(300, 40)
    shapes = (700, 300), (300, 40), (40,), (700, 40)
    x, W, b, dout = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    for _ in range(3):  # from the second time on, the slices of W are kept
        for actual, expected in zip(
            [numba.matmul(x, W), *numba.run_backward(affine, dout, x, dout, W, b)],
            [
                Backend.matmul(numba, x, W),
                *Backend.run_backward(generic, affine, dout, x, dout, W, b),
            ],
            strict=True,
        ):
            assert parity.same_bits(actual, expected)
    W[0, 0] += 1  # written in place: the kept slices are old
    assert parity.same_bits(numba.matmul(x, W), Backend.matmul(numba, x, W))
    x[650, 3] = np.inf
    assert parity.same_bits(numba.matmul(x, W), Backend.matmul(numba, x, W))


# -- threads, processors, processes


HASHES = """
import numpy as np, xnet
from xnet import optimizers
from xnet.testing import parity
for name in ("numpy", "numba"):
    for dtype in ("float32", "float64"):
        print(dtype, parity.training_hash(xnet.resolve(name, reproducible=True), dtype))
x, W = (np.random.default_rng(0).standard_normal(s) for s in ((300, 784), (784, 50)))
for name in ("numpy", "numba"):
    print("product", xnet.resolve(name, reproducible=True).matmul(x, W).tobytes().hex()[:2000])
optimizer, params = optimizers.Adam(beta1=0.997, beta2=0.9), {"W": x}
for _ in range(300):
    optimizer.update(params, {"W": x})
print("adam", params["W"].tobytes().hex()[:2000])
print("plain", (x @ W).tobytes().hex()[:20000])
"""


@pytest.fixture(scope="module")
def runs():
    """What `HASHES` prints with 1 and 2 threads and OpenBLAS's kernels for several processors."""
    found = {}
    for threads, processor in [("1", "Haswell"), ("2", "Zen"), ("2", "Prescott")]:
        settings = dict.fromkeys(["OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"], threads)
        settings |= {"OPENBLAS_CORETYPE": processor}
        if processor == "Prescott":  # the C library's exp and pow for a processor without FMA
            settings |= {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4"}
        environment = os.environ | settings
        done = subprocess.run(
            [sys.executable, "-c", HASHES], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found[threads, processor] = [line.split() for line in done.stdout.splitlines()]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("what", ["float32", "float64", "product", "adam"])
def test_threads_and_processors_do_not_matter(runs, what):
    values = {value for lines in runs.values() for name, value in lines if name == what}
    assert len(values) == 1


@pytest.mark.slow
def test_threads_or_processors_would_matter(runs):
    """In fast mode: or the test above could not fail."""
    libraries = np.__config__.show(mode="dicts")["Build Dependencies"]["blas"]["name"]
    if "openblas" not in libraries:
        pytest.skip(f"NumPy's BLAS is {libraries}, which has no OPENBLAS_CORETYPE")
    assert len({value for lines in runs.values() for name, value in lines if name == "plain"}) > 1


# -- no multiplication fused with an addition

FUSED = """
import re
from numba.core.dispatcher import Dispatcher
import xnet
from xnet.testing import parity
from xnet_numba import compiling, exact, kernels

seen = set()
def fused(mode, trials):
    backend = xnet.resolve("numba", reproducible=mode == "exact")
    for trial in trials:
        inputs = trial.arrays(parity.standard_normal())
        for dtype in trial.dtypes:
            parity.results(trial, backend, [array.astype(dtype) for array in inputs])
    code = {}
    for name, kernel in [*vars(exact).items(), *vars(kernels).items()]:
        for signature in kernel.signatures if isinstance(kernel, Dispatcher) else []:
            code[name, str(signature)] = kernel.inspect_asm(signature)
    for loop in compiling._routines:
        name = f"{loop._pyfunc.__module__}.{loop._pyfunc.__qualname__}"
        code[name, id(loop)] = loop._library.get_asm_str()
    for key in code.keys() - seen:
        seen.add(key)
        print(mode, key[0], len(re.findall(r"\\bvfn?m(?:add|sub)", code[key])))

# Networks are made of these, in reproducible mode.
made_of = ("network", "numerical", "training")
alone = [t for t in parity.trials() if t.name.split()[0] not in made_of]
fused("exact", alone)
fused("fast", alone[: len(parity.CONTRACTS) + len(parity.BASICS) + 4])
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="knows x86-64's instructions only")
def test_numbas_reproducible_kernels_fuse_nothing(tmp_path):
    """Compiled anew, for what comes from Numba's cache cannot be read.

    But the products of slices, which are exact whether they are fused or not.
    """
    make("numba", True)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FUSED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    exact = [(name, int(fused)) for mode, name, fused in lines if mode == "exact"]
    assert sum(name.startswith("xnet_generated") for name, _ in exact) >= len(REGISTERED)
    of_slices = {"dense_tiles", "chosen.<locals>.chosen_of_slices"}
    assert {name for name, fused in exact if fused} <= {
        f"xnet_numba.products.{n}" for n in of_slices
    }
    # The search finds them where they may be, so it would find them above.
    assert any(int(fused) for mode, _, fused in lines if mode == "fast")


# -- the suite can fail

INFRASTRUCTURE = {
    *("owns", "asarray", "to_numpy", "threads", "synchronize", "running", "writable", "takes"),
    "compiled_values",  # of the user's own function
}


def kernels_of(name):
    """The kernels that the backend `name` overrides."""
    overridden = vars(type(xnet.resolve(name))) if USABLE[name] is None else {}
    return [
        kernel
        for kernel, member in vars(Backend).items()
        if isfunction(member) and not kernel.startswith("_")
        if kernel in overridden and kernel not in INFRASTRUCTURE
    ]


USABLE = {info.name: info.reason for info in xnet.backends()}
KERNELS = [
    (name, kernel, which)
    for name in ("numpy", "numba")
    for kernel in kernels_of(name)
    # The last array of a result, too, where there are several.
    for which in (
        (0, -1) if "tuple" in str(signature(getattr(Backend, kernel)).return_annotation) else (0,)
    )
]


def numbers(result):
    """The arrays of a kernel's result, in whichever tuples and lists they are."""
    if isinstance(result, np.ndarray | np.generic):
        return [result]
    inner = result if isinstance(result, tuple | list) else []
    return [array for item in inner for array in numbers(item)]


def with_one_changed(result, old, change):
    """The result with `change` of one of its arrays in that one's place."""
    if result is old:
        return change(result)
    if isinstance(result, tuple | list):
        return type(result)(with_one_changed(item, old, change) for item in result)
    return result


def changed(monkeypatch, name, kernel, which, change):
    """Let `change` have the first or the last array that the backend's kernel gives.

    Returns the calls whose result was changed.
    """
    backend_class, calls = type(xnet.resolve(name)), []
    right = getattr(backend_class, kernel)

    def wrong(self, *arguments, **options):
        result = right(self, *arguments, **options)
        found = [array for array in numbers(result) if array.size]
        if not found:
            return result
        calls.append(kernel)
        return with_one_changed(result, found[which], change)

    monkeypatch.setattr(backend_class, kernel, wrong)
    return calls


def agree(reproducible, dtype):
    """Whether numba's results are NumPy's, as far as the mode promises."""
    pair = [xnet.resolve(name, reproducible=reproducible) for name in ("numba", "numpy")]
    draw = parity.standard_normal
    tried = (t for t in ALL if dtype in t.dtypes)
    return all(parity.verdict(trial, *pair, dtype, draw()).kept for trial in tried)


@pytest.mark.parametrize(
    ("name", "kernel", "which", "dtype"),
    [
        (*one, dtype)
        for one in KERNELS
        for dtype in ("float32", "float64")
        if one[1] != "loss_differences" or dtype == "float64"
    ],
)
def test_one_wrong_bit_is_caught(name, kernel, which, dtype, monkeypatch):
    def last_bit_flipped(array):
        flipped = np.array(array)
        integers = flipped.reshape(-1).view(f"i{flipped.dtype.itemsize}")
        # A difference of losses is divided by 2h, and two neighbours can have one quotient.
        integers[slice(None) if kernel == "loss_differences" else slice(1)] ^= 1
        return flipped

    make("numba", True)
    calls = changed(monkeypatch, name, kernel, which, last_bit_flipped)
    kept = agree(True, dtype)
    if not calls:
        pytest.skip(f"{name}: {kernel} is not part of reproducible mode")
    assert not kept


@pytest.mark.parametrize(("name", "kernel", "which"), [k for k in KERNELS if k[0] == "numba"])
def test_an_error_beyond_rounding_is_caught_in_fast_mode(name, kernel, which, monkeypatch):
    """One of 10,000 u: the bounds are some 100 u of what is summed."""
    make("numba", True)
    # Of a difference of two losses, what their rounding is, is much of it.
    error = 1e-6 if kernel == "loss_differences" else 1e-12
    calls = changed(monkeypatch, name, kernel, which, lambda array: array * (1 + error))
    kept = agree(False, "float64")
    assert calls
    assert not kept


@pytest.mark.parametrize("reproducible", [False, True])
def test_unchanged_backends_agree(reproducible, dtype):
    """Or the two tests above would show nothing."""
    make("numba", True)
    assert agree(reproducible, dtype)


def test_same_bits_means_every_bit():
    zero = np.zeros(1)
    assert parity.same_bits(zero, zero.copy())
    assert not parity.same_bits(zero, -zero)
    assert not parity.same_bits(zero, zero.astype("float32"))
    assert not parity.same_bits(zero, np.zeros((1, 1)))
    assert parity.same_bits(np.array([np.nan]), -np.array([np.nan]))
    assert not parity.same_bits(np.array([1.0]), np.nextafter([1.0], 2))


# -- the command


def run_parity(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "xnet_command", "parity", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "120"},
    )


@pytest.mark.slow
def test_the_command_tells_a_machine():
    done = run_parity("--backend", "numba", "--dtype", "float64", "--steps", "20", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["kept"]
    tried = checks(dtypes=["float64"])
    assert len(facts["operations"]) == sum(len(check.kinds) for check in tried)
    hashes = facts["training_sha256"]["reproducible"]["float64"]
    assert set(hashes) == {"numpy", "numba"}
    assert len(set(hashes.values())) == 1


# -- operations of anybody's


def test_whatever_is_registered_is_tried_and_one_fault_hides_no_other():
    """A class that cannot be made, one that raises, one without a backward: each is one cell."""

    class Unmade(operations.Pointwise):
        curve: str

        def __post_init__(self):
            raise LookupError("no such curve")

    class Raising(operations.Pointwise):
        def forward(self, m, x):
            raise ArithmeticError("not today")

    class Sound(operations.Pointwise):
        slope: float = 3.0

        def forward(self, m, x):
            return m.where(x > 0, x, x / self.slope)

        def backward(self, m, dout, x, y):
            return m.where(x > 0, dout, dout / self.slope)

    loss = operations.IdentityWithLoss
    kinds = {kind.__name__: kind for kind in (Unmade, Raising, Sound, loss)}
    draw, pair = parity.standard_normal, [make(name, True) for name in ("strict", "numpy")]
    found = [
        parity.verdict(trial, *pair, "float64", draw())
        for trial in parity.trials(kinds, {"sgd": xnet.optimizers.SGD})
    ]
    errors = {v.operation: v.error for v in found if v.error}
    assert "no such curve" in errors["Unmade"]
    assert "not today" in errors["Raising"]
    assert all("Unmade" in name or "Raising" in name for name in errors)
    assert [v.operation for v in found if "optimizer" in v.operation] == ["optimizer SGD, 3 steps"]
    kept = {v.operation for v in found if v.kept}
    assert {"matmul", "Sound", "network, Sound, IdentityWithLoss"} <= kept
    assert not kept & errors.keys()


def test_a_backend_that_raises_has_an_error_for_each_trial(monkeypatch):
    strict = xnet.resolve("strict", reproducible=True)

    def broken(self, *_, **__):
        raise OSError("the cable is out")

    monkeypatch.setattr(type(strict), "run", broken)
    draw, numpy = parity.standard_normal, xnet.resolve("numpy", reproducible=True)
    found = {
        name: parity.verdict(TRIALS[name], strict, numpy, "float32", draw())
        for name in ("sum", "Tanh", "matmul", "network, Tanh, Huber")
    }
    assert [v.kept for v in found.values()] == [True, False, True, False]
    assert found["Tanh"].error == "OSError: the cable is out"
    assert math.isinf(found["Tanh"].share)
