"""Every backend against NumPy: equal bits in reproducible mode, within bounds in fast mode.

PyTorch and JAX take part where they are installed, as test-only backends.
"""

import importlib.util
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from inspect import isfunction
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKENDS, property_settings
from hypothesis import given
from hypothesis import strategies as st

import xnet
from xnet import layers, losses, parity
from xnet.backend import Backend

PEERS = {"torch": "TorchBackend", "jax": "JaxBackend"}
TRIED = [name for name in BACKENDS if name != "numpy"] + list(PEERS)
PERTURBED = [o.name for o in parity.OPERATIONS if o.name.startswith("numerical gradient")]
"""They take as many rows as an input has numbers other than 0: for JAX, each a shape to compile."""
OPERATIONS = {operation.name: operation for operation in parity.OPERATIONS}


def make(name, reproducible):
    """The backend `name`, or a skip that says why not."""
    if name in PEERS:
        folder = Path(__file__).parent / "packages" / "peers"
        spec = importlib.util.spec_from_file_location(f"xnet_{name}", folder / f"xnet_{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        backend_class = getattr(module, PEERS[name])
        if backend_class.why_unusable():
            pytest.skip(f"{name}: {backend_class.why_unusable()}")
        return backend_class(reproducible=reproducible)
    reason = {info.name: info.reason for info in xnet.backends()}[name]
    if reason:
        pytest.skip(f"{name}: {reason}")
    return xnet.resolve(name, reproducible=reproducible)


@pytest.fixture(params=TRIED)
def pair(request):
    """A backend and NumPy, in reproducible mode."""
    return make(request.param, True), xnet.resolve("numpy", reproducible=True)


@pytest.fixture(params=TRIED)
def fast_pair(request):
    return make(request.param, False), xnet.resolve("numpy", reproducible=False)


equal = parity.Operation("", list, list).bound
"""The bound of operations that are equal in fast mode too."""


def unequal(pair, dtype, draw, operations=parity.OPERATIONS):
    """The operations whose bits differ."""
    verdicts = (parity.verdict(o, *pair, dtype, draw) for o in operations if dtype in o.dtypes)
    return [v.operation for v in verdicts if not v.equal]


# -- ordinary numbers


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_reproducible_mode_gives_the_same_bits(pair, dtype, operation):
    assert unequal(pair, dtype, parity.standard_normal(), [operation]) == []


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_fast_mode_stays_within_its_bound(fast_pair, dtype, operation):
    if dtype not in operation.dtypes:
        return
    for seed in range(3):
        v = parity.verdict(operation, *fast_pair, dtype, parity.standard_normal(seed))
        assert v.kept, f"{v.share:.3g} of the bound"
        assert not v.reproducible


def test_a_training_run_has_one_hash(pair, dtype):
    steps = 20 if pair[0].name in ("jax", "strict") else 200  # those are slow
    assert parity.training_hash(pair[0], dtype, steps) == parity.training_hash(
        pair[1], dtype, steps
    )


@pytest.mark.parametrize("name", [name for name in TRIED if name != "jax"])  # not in place
def test_the_naive_numerical_gradient_gives_the_same_bits(name):
    def run(_, inputs):
        x, t, *params = inputs
        network = parity._network(params, "sigmoid")
        gradients = network.numerical_gradient(x, t, method="naive")
        v = x[:2, :]  # and of a function that is not a network's
        square = xnet.numerical_gradient(lambda v: losses.mean_squared_error(v, t[:2, :]), v)
        return [*gradients.values(), square]

    def arrays(draw):
        return [draw(5, 4), np.eye(4)[[0, 1, 2, 3, 0]], *(draw(4, 4), draw(1, 4)[0]) * 2]

    operation = parity.Operation("naive", arrays, run)
    pair = make(name, True), xnet.resolve("numpy", reproducible=True)
    assert unequal(pair, "float64", parity.standard_normal(), [operation]) == []


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_a_row_does_not_depend_on_its_batch(backend, dtype, rng, batch):
    backend = xnet.resolve(backend, reproducible=True)
    network = xnet.TwoLayerNet(
        30, 12, 10, weight_init_std=0.5, dtype=dtype, backend=backend, activation="sigmoid"
    )
    x = rng.standard_normal((40, 30))
    every, some = (backend.to_numpy(network.predict(rows)) for rows in (x, x[:batch]))
    assert parity.same_bits(every[:batch], some)
    assert parity.same_bits(every[0], backend.to_numpy(network.predict(x[0])))


# -- numbers chosen to hurt


def hurtful(kind, dtype, seed=0):
    """A `Draw` of matrices of one `kind`."""
    rng = np.random.default_rng(seed)
    smallest = float(np.finfo(dtype).smallest_subnormal)

    def draw(rows, columns):
        a = rng.standard_normal((rows, columns))
        if kind == "1e-30 to 1e30":
            return a * 10.0 ** rng.uniform(-30, 30, a.shape)
        if kind == "cancelling":
            half = columns // 2
            a[:, half : 2 * half] = -a[:, :half]
            a[rows // 2 : 2 * (rows // 2)] = a[: rows // 2]
        if kind == "zeros":
            a = np.copysign(0.0, a)
        if kind == "mostly zeros":
            a = np.where(rng.random(a.shape) < 0.9, np.copysign(0.0, a), a)
        if kind == "one huge":
            a[rows // 2, columns // 2] = 1e30
        if kind == "subnormal":
            a = np.rint(a * 1000) * smallest
        if kind == "powers of two":
            a = np.copysign(2.0 ** rng.integers(-30, 30, a.shape), a)
        if kind == "not finite":
            special = rng.choice([np.inf, -np.inf, np.nan, 0.0], a.shape)
            a = np.where(rng.random(a.shape) < 0.05, special, a)
        return a

    return draw


KINDS = (
    "1e-30 to 1e30",
    "cancelling",
    "zeros",
    "mostly zeros",
    "one huge",
    "subnormal",
    "powers of two",
    "not finite",
)


def skip_for_jax(pair, kind):
    """JAX compiles each operation for each shape anew: it tries some of the kinds only."""
    if pair[0].name != "jax":
        return
    if kind in ("subnormal", "1e-30 to 1e30"):
        pytest.skip("jax: XLA's CPU code takes subnormals for zeros")
    if kind in ("zeros", "mostly zeros", "powers of two"):
        pytest.skip("jax: left out, for it compiles each operation for each shape anew")


@pytest.mark.parametrize("kind", KINDS)
def test_hurtful_numbers_give_the_same_bits(pair, dtype, kind):
    skip_for_jax(pair, kind)
    operations = [o for o in parity.OPERATIONS if pair[0].name != "jax" or o.name not in PERTURBED]
    assert unequal(pair, dtype, hurtful(kind, dtype), operations) == []


@pytest.mark.parametrize("contracted", [1, 2, 1000, 100_000])
@pytest.mark.parametrize("kind", ["normal", *KINDS])
def test_any_contracted_length_gives_the_same_bits(pair, dtype, kind, contracted):
    skip_for_jax(pair, kind)

    def run(backend, inputs):
        x, W, b, dout = inputs
        layer = layers.Affine.from_params(W, b)
        out, dx = layer.forward(x), layer.backward(dout)
        return [out, dx, layer.dW, layer.db, *layer_of_columns(x, W, dout)]

    def layer_of_columns(x, W, dout):
        """The same with the long axis as that of the samples: gradients contract it."""
        wide = layers.Affine.from_params(dout.T, dout[:, 0])
        wide.forward(W)
        return wide.backward(x.T), wide.dW, wide.db

    operation = parity.Operation(
        "Affine",
        lambda draw: [draw(3, contracted), draw(contracted, 3), draw(1, 3)[0], draw(3, 3)],
        run,
    )
    assert unequal(pair, dtype, hurtful(kind, dtype), [operation]) == []


@given(data=st.data())
@property_settings
@pytest.mark.parametrize("name", [name for name in TRIED if name != "jax"])
def test_any_shape_and_range_gives_the_same_bits(name, data):
    """JAX compiles for each shape anew, which takes a second or more: it is left out here."""
    pair = make(name, True), xnet.resolve("numpy", reproducible=True)
    n, k, m = (data.draw(st.integers(1, 40), label=label) for label in ("N", "K", "M"))
    dtype = data.draw(st.sampled_from(["float32", "float64"]), label="dtype")
    kind = data.draw(st.sampled_from(KINDS), label="kind")
    names = ["matmul", "sum", "affine", "affine_backward", "softmax", "softmax_with_loss"]
    shapes = {
        "matmul": [(n, k), (k, m)],
        "sum": [(n, k)],
        "affine": [(n, k), (k, m), (m,)],
        "affine_backward": [(n, m), (n, k), (k, m)],
        "softmax": [(n, m)],
        "softmax_with_loss": [(n, m), (n, m), (n, m)],
    }
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    for name in names:

        def arrays(draw, shapes=shapes[name]):
            return [draw(*s) if len(s) == 2 else draw(1, *s)[0] for s in shapes]

        operation = replace(OPERATIONS[name], arrays=arrays, bound=equal)
        assert unequal(pair, dtype, hurtful(kind, dtype, seed), [operation]) == []


def test_numba_cuts_large_products_over_its_threads(dtype, rng):
    """Sizes at which the rows are shared out, in both directions, against the generic form."""
    numba = xnet.resolve("numba", reproducible=True)
    x, W = rng.standard_normal((700, 300)).astype(dtype), rng.standard_normal((300, 40))
    W, dout = W.astype(dtype), rng.standard_normal((700, 40)).astype(dtype)
    for _ in range(3):  # from the second time on, the slices of W are kept
        for actual, expected in zip(
            [numba.matmul(x, W), *numba.affine_backward(dout, x, W)],
            [Backend.matmul(numba, x, W), *generic_affine_backward(dout, x, W)],
            strict=True,
        ):
            assert parity.same_bits(actual, expected)
    W[0, 0] += 1  # written in place: the kept slices are old
    assert parity.same_bits(numba.matmul(x, W), Backend.matmul(numba, x, W))
    x[650, 3] = np.inf
    assert parity.same_bits(numba.matmul(x, W), Backend.matmul(numba, x, W))


def generic_affine_backward(dout, x, W):
    return Backend.affine_backward(xnet.resolve("numpy", reproducible=True), dout, x, W)


# -- threads, processors, processes


HASHES = """
import numpy as np, xnet
from xnet import optimizers, parity
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


@pytest.mark.parametrize("what", ["float32", "float64", "product", "adam"])
def test_threads_and_processors_do_not_matter(runs, what):
    values = {value for lines in runs.values() for name, value in lines if name == what}
    assert len(values) == 1


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
from xnet import parity
for reproducible, module in ((True, "exact"), (False, "kernels")):
    backend = xnet.resolve("numba", reproducible=reproducible)
    for operation in parity.OPERATIONS:
        inputs = operation.arrays(parity.standard_normal())
        for dtype in operation.dtypes:
            parity.results(operation, backend, [array.astype(dtype) for array in inputs])
    kernels = vars(__import__(f"xnet_numba.{module}", fromlist=["_"])).items()
    for name, kernel in kernels:
        for signature in kernel.signatures if isinstance(kernel, Dispatcher) else []:
            found = re.findall(r"\\bvfn?m(?:add|sub)", kernel.inspect_asm(signature))
            print(module, name, len(found))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="knows x86-64's instructions only")
def test_numbas_reproducible_kernels_fuse_nothing(tmp_path):
    """Compiled anew, for what comes from Numba's cache cannot be read."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FUSED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    exact = {name: int(fused) for module, name, fused in lines if module == "exact"}
    assert {"_piece", "_sum_rows", "_exp_each", "_softmax"} <= set(exact)
    assert set(exact.values()) == {0}
    # The search finds them where they may be, so it would find them above.
    assert any(int(fused) for module, _, fused in lines if module == "kernels")


# -- the suite can fail


def kernels_of(name):
    """The kernels and operations that the backend `name` overrides."""
    overridden = vars(type(xnet.resolve(name)))
    infrastructure = {"owns", "asarray", "to_numpy", "threads", "synchronize", "running"}
    infrastructure |= {"overwrite"}
    # Of the user's own function; and what is held against loss_and_gradients, in test_fused.
    infrastructure |= {"compiled_values", "train_step"}
    return [
        kernel
        for kernel, member in vars(Backend).items()
        if isfunction(member) and not kernel.startswith("_")
        if kernel in overridden and kernel not in infrastructure
    ]


def parts_of(kernel):
    """How many results the kernel gives."""
    pairs = dict.fromkeys(["affine_gradients", "loss_and_gradients", "softmax_with_loss"], 2)
    return (pairs | {"affine_backward": 3}).get(kernel, 1)


KERNELS = [(n, k, p) for n in ("numpy", "numba") for k in kernels_of(n) for p in range(parts_of(k))]


def changed(monkeypatch, name, kernel, part, change):
    """Let `change` have the array that is the `part` of what the backend's kernel gives."""
    backend_class = type(xnet.resolve(name))
    right = getattr(backend_class, kernel)

    def wrong(self, *arguments, **options):
        result = right(self, *arguments, **options)
        if not isinstance(result, tuple):
            return change(result)
        return tuple(of_first(v) if index == part else v for index, v in enumerate(result))

    def of_first(value):
        if isinstance(value, list):  # of gradients (dW, db), one for each layer
            (dW, db), *others = value
            return [(change(dW), db), *others]
        return change(value)

    monkeypatch.setattr(backend_class, kernel, wrong)


@pytest.mark.parametrize(("name", "kernel", "part"), KERNELS)
def test_one_wrong_bit_is_caught(name, kernel, part, dtype, monkeypatch):
    def last_bit_flipped(array):
        flipped = np.array(array)
        integers = flipped.reshape(-1).view(f"i{flipped.dtype.itemsize}")
        # A difference of losses is divided by 2h, and two neighbours can have one quotient.
        integers[slice(None) if kernel == "loss_differences" else slice(1)] ^= 1
        return flipped

    if kernel == "loss_differences":
        dtype = "float64"
    pair = [xnet.resolve(n, reproducible=True) for n in ("numba", "numpy")]
    assert unequal(pair, dtype, parity.standard_normal()) == []
    changed(monkeypatch, name, kernel, part, last_bit_flipped)
    assert unequal(pair, dtype, parity.standard_normal()) != []


@pytest.mark.parametrize(("name", "kernel", "part"), [k for k in KERNELS if k[0] == "numba"])
def test_an_error_beyond_rounding_is_caught_in_fast_mode(name, kernel, part, monkeypatch):
    """One of 10,000 u: the bounds are some 100 u of what is summed."""
    changed(monkeypatch, name, kernel, part, lambda array: array * (1 + 1e-12))
    if kernel == "loss_differences":  # of two losses: what their rounding is, is much of it
        monkeypatch.undo()
        changed(monkeypatch, name, kernel, part, lambda array: array * (1 + 1e-6))
    pair = [xnet.resolve(n, reproducible=False) for n in ("numba", "numpy")]
    draw = parity.standard_normal()
    assert not all(parity.verdict(o, *pair, "float64", draw).kept for o in parity.OPERATIONS)


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
        [sys.executable, "-m", "xnet.cli", "parity", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "120"},
    )


def test_the_command_tells_a_machine():
    done = run_parity("--backend", "numba", "--dtype", "float64", "--steps", "20", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["kept"]
    assert len(facts["operations"]) == 2 * len(parity.OPERATIONS)
    hashes = facts["training_sha256"]["reproducible"]["float64"]
    assert set(hashes) == {"numpy", "numba"}
    assert len(set(hashes.values())) == 1
