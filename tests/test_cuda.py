"""kernels.cu without a GPU: compiled for three generations, searched, and run on the host.

Where there is a GPU, the tests that run kernels run them there too. The kernels' values in fast
mode are tested with every backend's, in test_kernels.py.
"""

import ast
import importlib.util
import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cuda_on_host
import numpy as np
import nvrtc as wheels
import pytest
import xnet_cupy
from conftest import DTYPES, property_settings, require_host_cuda, require_tool
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from xnet import parity, perturbation
from xnet.backend import resolve
from xnet.layers import Affine, ReLU, Sigmoid
from xnet.network import Network

SOURCE = Path(xnet_cupy.__file__).with_name("kernels.cu").read_text()
MODES = ("Fast", "Exact")
GENERATIONS = ("70", "80", "90")


@pytest.fixture
def kernels(monkeypatch):
    """The module that launches the kernels, over the stand-in for CuPy."""
    require_host_cuda(monkeypatch)
    from xnet_cupy import kernels

    return kernels


# -- the compiler


@pytest.fixture
def compiler(kernels, monkeypatch):
    """NVRTC from its wheel in the place of CuPy's."""
    require_tool(wheels.LIBRARY, wheels.NO_NVRTC)
    monkeypatch.setattr(kernels, "nvrtc", wheels.Recorder())
    return kernels


@dataclass
class Compiled:
    """The binary, what the compiler said, the PTX, and that of each kernel by its C++ name."""

    binary: bytes
    log: str
    ptx: str
    kernels: dict[str, str]
    lowered: dict[str, str]


_compiled = {}


def compiled(compiler, mode, capability, contraction=None):
    options = (*compiler.OPTIONS, contraction or compiler.CONTRACTION[mode])
    names = compiler.instances(mode)
    key = names, options, capability
    if key not in _compiled:
        binary, lowered = compiler.compiled(*key)
        log, ptx = compiler.nvrtc.log, compiler.nvrtc.ptx
        found = re.findall(r"^(?:\.\w+ )?\.entry (\w+)\((.*?)^}", ptx, re.DOTALL | re.MULTILINE)
        assert sorted(name for name, _ in found) == sorted(lowered.values())
        bodies = {name: dict(found)[lowered[name]] for name in names}
        _compiled[key] = Compiled(binary, log, ptx, bodies, lowered)
    return _compiled[key]


def test_every_kernel_is_compiled(kernels):
    """What is in kernels.cu is among the instances, so that the other tests see it."""
    in_source = re.findall(r"^__global__ void (\w+)\(", SOURCE, re.MULTILINE)
    compiled = {re.match(r"\w+", name)[0] for mode in MODES for name in kernels.instances(mode)}
    assert set(in_source) == compiled
    assert len(in_source) == SOURCE.count("__global__")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("capability", GENERATIONS)
def test_compiles_without_a_warning(compiler, mode, capability):
    found = compiled(compiler, mode, capability)
    # NVRTC 12.9 says of sm_70 itself that a later version will not know it.
    said = [line for line in found.log.splitlines() if "Architectures prior to" not in line]
    assert said == []
    assert found.binary.startswith(b"\x7fELF")
    assert f".target sm_{capability}" in found.ptx
    # Subnormals are numbers. CUDA's own exp and log see to them before they approximate.
    flushing = set(re.findall(r"\w[\w.]*\.ftz[\w.]*", found.ptx))
    assert flushing <= {"ex2.approx.ftz.f32", "rcp.approx.ftz.f64"}


def test_a_device_newer_than_the_compiler_gets_ptx(compiler):
    code, _ = compiler.compiled(("relu_backward<float>",), compiler.OPTIONS, "999")
    newest = max(compiler.nvrtc.getSupportedArchs())
    assert f".target sm_{newest}".encode() in code


def test_a_source_that_does_not_compile_says_where(compiler, monkeypatch, tmp_path):
    broken = tmp_path / "kernels.cu"
    broken.write_text("__global__ void f() { nonsense; }")
    monkeypatch.setattr(compiler, "SOURCE", broken)
    with pytest.raises(RuntimeError, match=r'kernels\.cu.*identifier "nonsense" is undefined'):
        compiler.compiled(("f",), compiler.OPTIONS, "80")


# -- the generated code of reproducible mode

FUSED = re.compile(r"\b(?:fma|mad)(?:\.\w+)*\.f(?:32|64)\b")
CONTRACTIBLE = re.compile(r"\b(?:add|sub|mul)(?:\.sat)?\.f(?:32|64)\b")
"""Without ``.rn``, which PTX's manual says is never fused with another operation."""
APPROXIMATE = re.compile(r"\b(?:\w+\.approx|div\.full)\b")

POLYNOMIAL = re.compile("Exp<|Log<|Sigmoid<|softmax<|softmax_with_terms|cross_entropies")
"""Kernels that evaluate one, of multiplications and additions in turn."""


@pytest.mark.parametrize("capability", GENERATIONS)
def test_reproducible_kernels_fuse_nothing(compiler, capability):
    """No fused multiply-add, and nothing that ptxas may fuse, or that is not correctly rounded.

    This is decided in PTX: below it, division is a sequence of fused multiply-adds which gives the
    correctly rounded quotient, whatever the steps.
    """
    ptx = compiled(compiler, "Exact", capability).kernels
    for name, body in ptx.items():
        for pattern in (FUSED, CONTRACTIBLE, APPROXIMATE):
            assert not pattern.findall(body), name
    assert any("add.rn.f64" in body for body in ptx.values())


@pytest.mark.parametrize("capability", GENERATIONS)
def test_the_search_finds_fused_operations_where_they_are(compiler, capability):
    """The same kernels, but compiled with contraction on."""
    ptx = compiled(compiler, "Exact", capability, "--fmad=true").kernels
    fused = {name for name, body in ptx.items() if FUSED.search(body)}
    assert fused >= set(filter(POLYNOMIAL.search, ptx)) != set()
    assert all(CONTRACTIBLE.search(ptx[name]) for name in fused)
    assert APPROXIMATE.search(compiled(compiler, "Fast", capability).ptx)


MACHINE_FUSED = re.compile(r"\b(?:FFMA|DFMA)\b")


def machine_code(compiler, capability, contraction):
    """The instructions of each kernel of reproducible mode that does not divide."""
    found = compiled(compiler, "Exact", capability, contraction)
    sections = wheels.disassembled(found.binary).split("\t.section\t.text.")[1:]
    bodies = {re.match(r"\w+", section)[0]: section for section in sections}
    divides = re.compile(r"\b(?:div|rcp)\.rn\b")
    return {
        name: bodies[found.lowered[name]]
        for name, ptx in found.kernels.items()
        if not divides.search(ptx)
    }


@pytest.mark.parametrize("capability", ["80", "90"])  # nvdisasm 13 does not know sm_70
def test_machine_code_fuses_nothing_either(compiler, capability):
    """But within divisions: see test_reproducible_kernels_fuse_nothing."""
    require_tool(wheels.DISASSEMBLER, wheels.NO_DISASSEMBLER)
    code = machine_code(compiler, capability, "--fmad=false")
    assert len(code) >= 16
    assert not [name for name, body in code.items() if MACHINE_FUSED.search(body)]
    assert any("DMUL" in body and "DADD" in body for body in code.values())
    contracted = machine_code(compiler, capability, "--fmad=true")
    fused = {name for name, body in contracted.items() if MACHINE_FUSED.search(body)}
    assert fused >= {"apply<float, Exp<Exact>>", "apply<double, Exp<Exact>>"}


# -- the kernels run: on the host, in two orders, and on a device where there is one

ORDERS = {"on the host": False, "on the host, the last thread first": True}


@pytest.fixture(params=[*ORDERS, "on a device"])
def cuda(request, monkeypatch):
    """Gives CUDA's backend for a mode: `cuda(reproducible)`."""
    if request.param in ORDERS:
        require_host_cuda(monkeypatch)
        monkeypatch.setattr(cuda_on_host, "descending", ORDERS[request.param])
    elif (why_not := xnet_cupy.CupyBackend.why_unusable()) is not None:
        pytest.skip(f"cupy: {why_not}")
    return lambda reproducible=False: resolve("cupy", reproducible)


def run(backend, kernel, *arguments, **options):
    """What the kernel makes of NumPy arrays and other arguments, as NumPy arrays."""
    with backend.running():
        placed = [backend.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
        results = getattr(backend, kernel)(*placed, **options)
    results = results if isinstance(results, tuple) else (results,)
    return [np.asarray(backend.to_numpy(result)) for result in results]


def assert_same_bits(actual, expected):
    """Equal as integers; but a NaN is a NaN, whose bits no arithmetic promises."""
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        as_integers = f"i{one.itemsize}"
        equal = (one.view(as_integers) == other.view(as_integers)) | (
            np.isnan(one) & np.isnan(other)
        )
        assert equal.all(), (one[~equal][:3], other[~equal][:3])


def plain(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def wild(rng, shape, dtype):
    """Sixty orders of magnitude in one row, some zeros of either sign."""
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-30, 31, shape)
    return np.where(rng.random(shape) < 0.1, 0.0 * values, values).astype(dtype)


def huge_and_tiny(rng, shape, dtype):
    """Rows from the smallest subnormals to the largest numbers."""
    top = np.finfo(dtype).maxexp - 12
    low = np.finfo(dtype).minexp - np.finfo(dtype).nmant
    exponents = np.linspace(low, top, shape[0]).astype(int)[:, None] if shape[0] else 0
    return np.ldexp(rng.uniform(-1, 1, shape), exponents).astype(dtype)


def cancelling(rng, shape, dtype):
    """Each row ends with the negative of its beginning, and one number far below it."""
    x = wild(rng, shape, dtype)
    half = shape[1] // 2
    x[:, shape[1] - half :] = -x[:, :half]
    return x


def not_finite(rng, shape, dtype):
    values = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, np.finfo(dtype).smallest_subnormal]
    x = rng.choice(np.array(values), shape, p=[0.02, 0.05, 0.05, 0.2, 0.2, 0.38, 0.1])
    return x.astype(dtype)


KINDS = [plain, wild, huge_and_tiny, cancelling, not_finite]
SIZES = [(0, 3), (1, 1), (1, 13), (13, 1), (8, 32), (9, 33), (33, 257), (3, 1025), (2, 3000)]
"""Nothing, one row, one column, whole blocks, one more, more classes than a block has threads."""


def calls(rng, kind, shape, dtype):
    """Every operation that decides bits, with arguments that fit x (N, D)."""
    x, t = kind(rng, shape, dtype), rng.random(shape).astype(dtype)
    W, b = kind(rng, (shape[1], 5), dtype), kind(rng, (5, 1), dtype)[:, 0]
    dout, mask = kind(rng, (shape[0], 5), dtype), rng.random(shape) < 0.5
    yield from [("matmul", x, W), ("exp", x), ("log", x), ("log", np.abs(x))]
    yield from [("affine", x, W, b), ("affine_backward", dout, x, W)]
    yield from [("sigmoid", x), ("sigmoid_backward", x, t), ("relu", x), ("softmax", x)]
    yield from [("relu_backward", x, mask), ("row_losses", x, "squared_error", t)]
    yield from [
        ("row_losses", x, "cross_entropy", t),
        ("row_losses", np.stack([x, -x]), "squared_error", t),
    ]
    for axis, keepdims in [(None, False), (None, True), (0, True), (1, False), (-1, True)]:
        yield "sum", x, axis, keepdims
    yield from [("sum", x.reshape(1, *shape, 1), 1), ("sum", np.stack([x, x]), 1)]
    if shape[0]:
        yield ("softmax_with_loss", x, t)
        yield ("softmax_with_loss_backward", np.abs(x), t, -0.3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SIZES)
def test_reproducible_kernels_have_the_bits_of_exact(cuda, rng, kind, shape, dtype):
    reference = resolve("numpy", True)
    for name, *arguments in calls(rng, kind, shape, dtype):
        expected = run(reference, name, *arguments)
        assert_same_bits(run(cuda(True), name, *arguments), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_and_log_over_their_whole_range(cuda, rng, dtype):
    info = np.finfo(dtype)
    ends = np.array([0, 1, info.max, info.tiny, info.smallest_subnormal, np.inf, np.nan], dtype)
    x = np.linspace(-800, 800, 20_001).astype(dtype)
    halfway = (np.log(2) * (np.arange(-1080, 1030) + 0.5)).astype(dtype)
    every_exponent = np.ldexp(
        rng.uniform(0.5, 1, 4000),
        np.linspace(info.minexp - info.nmant, info.maxexp, 4000).astype(int),
    ).astype(dtype)
    for name, values in {
        "exp": [x, halfway, ends, -ends],
        "log": [every_exponent, ends, -ends],
    }.items():
        for value in values:
            assert_same_bits(run(cuda(True), name, value), run(resolve("numpy", True), name, value))


@given(
    x=st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(dtype, st.tuples(st.integers(1, 40), st.integers(1, 40)))
    )
)
@property_settings
def test_any_matrix_gives_the_bits_of_exact(cuda, x):
    reference = resolve("numpy", True)
    for name, *arguments in [("matmul", x, x.T.copy()), ("sum", x), ("sum", x, 0), ("sum", x, 1)]:
        assert_same_bits(run(cuda(True), name, *arguments), run(reference, name, *arguments))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("contracted", [1, 2, 1000, 100_000])
def test_contracted_lengths(cuda, rng, dtype, contracted):
    a, b = wild(rng, (2, contracted), dtype), wild(rng, (contracted, 3), dtype)
    reference = resolve("numpy", True)
    for name, *arguments in [("matmul", a, b), ("sum", a, 1), ("sum", b, 0), ("sum", a)]:
        assert_same_bits(run(cuda(True), name, *arguments), run(reference, name, *arguments))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [plain, not_finite])
@pytest.mark.parametrize("shape", SIZES)
def test_fast_kernels_agree_with_the_generic_forms(cuda, rng, kind, shape, dtype):
    """NaN where they have it, infinities and zeros of the same sign, other numbers close."""
    reference = resolve("numpy", False)
    close = 64 * np.finfo(dtype).eps * max(shape)
    for name, *arguments in calls(rng, kind, shape, dtype):
        if kind is not_finite and name in ("matmul", "affine", "affine_backward"):
            continue  # BLAS libraries differ in what they skip
        expected = run(reference, name, *arguments)
        for one, other in zip(run(cuda(), name, *arguments), expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=close, atol=close)
            if name in ("relu", "relu_backward", "sigmoid"):
                zeros = other == 0
                np.testing.assert_array_equal(np.signbit(one)[zeros], np.signbit(other)[zeros])


@pytest.mark.parametrize("widths", [(3, 65, 2, 17, 4), (30, 200, 10), (7, 1, 40, 3), (4, 1)])
@pytest.mark.parametrize("activation", ["sigmoid", "relu", None])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("memory", ["plenty", "little"])
def test_loss_differences(cuda, monkeypatch, rng, widths, activation, loss, memory):
    """The fused kernel against the generic form, with little and with plenty of scratch."""
    backend, reference = cuda(), resolve("numpy", False)
    if memory == "little":
        monkeypatch.setattr(backend.kernels, "LARGEST_SCRATCH", 1000)
        monkeypatch.setattr(backend.kernels, "ENOUGH_THREADS", 1)
    x = np.where(rng.random((5, 6)) < 0.3, 0, rng.standard_normal((5, 6)))
    steps = []
    for sizes in pairwise(widths):
        steps += [] if activation is None else [(activation,)]
        steps.append(("affine", rng.standard_normal(sizes), rng.standard_normal(sizes[1])))
    a, t = rng.standard_normal((5, widths[0])), rng.random((5, widths[-1]))
    placed = [(name, *map(backend.asarray, arrays)) for name, *arrays in steps]
    arguments = [backend.asarray(array) for array in (x, a)]
    found = backend.loss_differences(*arguments, placed, loss, backend.asarray(t), 0.01)
    expected = perturbation.loss_differences(reference, x, a, steps, loss, t, 0.01)
    scores = perturbation.run(reference, steps, a)
    rounding = 1e-13 * max(1, reference.row_losses(scores, loss, t).max())
    np.testing.assert_allclose(backend.to_numpy(found), expected, rtol=1e-9, atol=rounding)
    nothing = (x == 0).all(axis=0)
    assert (backend.to_numpy(found)[:-1][nothing] == 0).all()


def test_loss_differences_beyond_one_pass_of_the_grid(cuda, monkeypatch, rng):
    """More weights than threads, and a NaN that must not be lost where its target is 0."""
    backend = cuda()
    monkeypatch.setattr(backend.kernels, "LARGEST_GRID", 1)
    x, a = rng.standard_normal((3, 40)), rng.standard_normal((3, 20))
    a[1, 2] = np.nan
    t = np.zeros((3, 20))
    arrays = [backend.asarray(array) for array in (x, a, t)]
    found = backend.loss_differences(arrays[0], arrays[1], [], "cross_entropy", arrays[2], 0.01)
    assert np.isnan(backend.to_numpy(found)).all()


def test_rows_and_elements_beyond_one_pass_of_the_grid(cuda, monkeypatch, rng):
    backend, reference = cuda(True), resolve("numpy", True)
    monkeypatch.setattr(backend.kernels, "LARGEST_GRID", 2)
    x, W = plain(rng, (70, 33), "float64"), plain(rng, (33, 19), "float64")
    for name, *arguments in [("softmax", x), ("sum", x, 1), ("relu", x), ("matmul", x, W)]:
        assert_same_bits(run(backend, name, *arguments), run(reference, name, *arguments))


def launches(monkeypatch, backend):
    """Names of the kernels that are launched from now on."""
    names, launch = [], backend.kernels._launch

    def record(mode, kernel, *rest):
        names.append(kernel.partition("<")[0])
        return launch(mode, kernel, *rest)

    monkeypatch.setattr(backend.kernels, "_launch", record)
    return names


def stack_of(backend, activations, widths, dtype="float64"):
    """A network with such activations after its affine layers, None for no one."""
    layers = []
    for (inputs, outputs), activation in zip(pairwise(widths), activations, strict=True):
        layers += [Affine(inputs, outputs, 1.0), *([activation()] if activation else [])]
    return Network(layers, dtype=dtype, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(5, 3), (40, 70, 33), (7, 100, 1, 9)])
@pytest.mark.parametrize("rows", [1, 3, 64, 65])
def test_a_few_rows_go_through_a_stack_in_one_launch(cuda, monkeypatch, rows, widths, dtype):
    activations = [Sigmoid, ReLU, None][-(len(widths) - 1) :]
    network = stack_of(cuda(), activations, widths, dtype)
    reference = stack_of("numpy", activations, widths, dtype)
    for W, b in zip(network.params.values(), reference.params.values(), strict=True):
        W[...] = network.backend.asarray(b)
    x = np.random.default_rng(0).standard_normal((rows, widths[0])).astype(dtype)
    names = launches(monkeypatch, network.backend)
    y = network.backend.to_numpy(network.predict(x))
    close = 200 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, reference.predict(x), rtol=0, atol=close)
    if rows <= 64:
        assert names == ["forward_rows"]
    else:  # the products are cuBLAS's
        assert names == ["add_bias"] * (len(widths) - 1) + ["softmax"]


def test_what_goes_through_a_stack_in_one_launch_may_be_nan(cuda):
    network = stack_of(cuda(), [ReLU, None], (4, 3, 2))
    x = np.ones((3, 4))
    x[1, 2] = np.nan
    found = np.isnan(network.backend.to_numpy(network.predict(x)))
    assert found.tolist() == [[False] * 2, [True] * 2, [False] * 2]


def test_parameters_written_in_place_count_in_the_next_launch(cuda):
    network = stack_of(cuda(), [Sigmoid, None], (4, 3, 2))
    network.predict(np.ones((2, 4)))
    network.params["b2"][...] = network.backend.asarray([50.0, 0.0])
    y = network.backend.to_numpy(network.predict(np.ones((2, 4))))
    np.testing.assert_allclose(y[:, 0], 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2, 70])
def test_a_stack_in_reproducible_mode_has_numpys_bits(cuda, rows, dtype):
    x = np.random.default_rng(0).standard_normal((rows, 9)).astype(dtype)
    scores = []
    for backend in (cuda(reproducible=True), resolve("numpy", reproducible=True)):
        network = stack_of(backend, [Sigmoid, ReLU, None], (9, 33, 5, 4), dtype)
        scores.append(backend.to_numpy(network.predict(x)))
    assert parity.same_bits(*scores)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reproducible", [False, True])
def test_descending_is_one_launch_in_place(cuda, monkeypatch, reproducible, dtype):
    backend, rng = cuda(reproducible), np.random.default_rng(0)
    host = [rng.standard_normal((37, 13)).astype(dtype) for _ in range(2)]
    W, g = map(backend.asarray, host)
    names = launches(monkeypatch, backend)
    assert backend.descend(W, g, 0.1) is W
    assert names == ["descend"]
    expected = host[0] - 0.1 * host[1]
    if reproducible:
        assert parity.same_bits(backend.to_numpy(W), expected)
    np.testing.assert_allclose(backend.to_numpy(W), expected, rtol=0, atol=4 * np.finfo(dtype).eps)
    turned = backend.asarray(host[0]).T
    np.testing.assert_allclose(
        backend.to_numpy(backend.descend(turned, g.T, 0.1)), expected.T, atol=1e-6
    )


def test_long_columns_are_summed_in_pieces(cuda, monkeypatch, rng):
    backend = cuda()
    monkeypatch.setattr(backend.kernels, "PIECE", 5)
    x = plain(rng, (4001, 3), "float64")
    _, _, found = run(backend, "affine_backward", x, np.ones((4001, 2)), np.ones((2, 3)))
    np.testing.assert_allclose(found, x.sum(axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [operation.name for operation in parity.OPERATIONS])
def test_parity_of_every_operation(cuda, name, dtype):
    """What `xnet parity` compares: equal bits, and within the bound in fast mode."""
    (operation,) = [o for o in parity.OPERATIONS if o.name == name]
    if dtype not in operation.dtypes:
        return
    for reproducible in (True, False):
        pair = cuda(reproducible), resolve("numpy", reproducible)
        verdict = parity.verdict(operation, *pair, dtype, parity.standard_normal())
        assert verdict.kept, verdict
        assert verdict.equal or not reproducible


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_training_run_has_the_hash_of_the_reference(cuda, dtype):
    hashes = {parity.training_hash(b, dtype, 20) for b in (cuda(True), resolve("numpy", True))}
    assert len(hashes) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [plain, not_finite])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_bias_and_activation_in_one_pass(cuda, rng, activation, kind, dtype):
    backend, reference = cuda(True), resolve("numpy", True)
    x, b = kind(rng, (13, 33), dtype), kind(rng, (1, 33), dtype)[0]
    with np.errstate(all="ignore"):
        (expected,) = run(reference, activation, x + b)
    function = {"sigmoid": "Sigmoid<{math}>", "relu": "Relu"}[activation]
    y = backend.asarray(x.copy())
    with backend.running():
        backend.kernels.add_bias("Exact", y, backend.asarray(b), function)
    assert_same_bits([backend.to_numpy(y)], [expected])


# -- how they are launched


@pytest.mark.parametrize("mode", [False, True])
def test_empty_arrays_launch_nothing(kernels, monkeypatch, rng, mode):
    monkeypatch.setattr(kernels, "_launch", None)
    for shape in [(0, 3), (3, 0)]:
        empty = np.empty(shape)
        for name, *arguments in [("relu", empty), ("sum", empty), ("exp", empty)]:
            run(resolve("cupy", mode), name, *arguments)
        (product,) = run(resolve("cupy", mode), "matmul", empty, np.empty((shape[1], 2)))
        np.testing.assert_array_equal(product, np.zeros((shape[0], 2)))
    run(resolve("cupy", mode), "softmax", np.empty((0, 3)))


def test_arrays_need_not_be_contiguous(cuda, rng):
    backend, x = cuda(True), plain(rng, (7, 9), "float64")
    for placed, values in [
        (backend.asarray(x).T, x.T),
        (backend.asarray(x)[::2, 1::3], x[::2, 1::3]),
        (backend.xp.broadcast_to(backend.asarray(x[:1]), (4, 9)), np.broadcast_to(x[:1], (4, 9))),
    ]:
        expected = run(resolve("numpy", True), "softmax", np.ascontiguousarray(values))
        assert_same_bits([backend.to_numpy(backend.softmax(placed))], expected)


def test_kernels_are_compiled_once_and_kept(kernels, monkeypatch, tmp_path):
    """In a folder of CuPy's: the next process compiles nothing, whatever it finds there."""
    ran, compile_all = [], kernels.compiled
    monkeypatch.setattr(kernels, "compiled", lambda *a: ran.append(a) or compile_all(*a))
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    arguments = ("relu_backward<float>",), kernels.OPTIONS, "90"
    first = kernels._cached(*arguments)
    assert kernels._cached(*arguments) == first
    assert len(ran) == 1
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text("{broken")
    assert kernels._cached(*arguments) == first
    assert kernels._cached(*arguments) == first
    assert len(ran) == 2
    kernels._cached(("relu_backward<double>",), *arguments[1:])
    kernels._cached(arguments[0], (*kernels.OPTIONS, "--fmad=false"), "90")
    kernels._cached(*arguments[:2], "80")
    assert len(ran) == 5
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "a file"))  # nowhere to keep it
    assert kernels._cached(*arguments)[1] == first[1]


def test_each_mode_is_compiled_with_its_own_options(kernels, rng):
    for reproducible, contraction in [(False, "--fmad=true"), (True, "--fmad=false")]:
        cuda_on_host.PROGRAMS.clear()
        kernels._module.cache_clear()
        kernels._function.cache_clear()
        cuda_on_host.CACHE.cleanup()
        run(resolve("cupy:1", reproducible), "relu", rng.standard_normal(3))
        (program,) = cuda_on_host.PROGRAMS.values()
        assert contraction in program.options
        assert {"--ftz=false", "--prec-div=true", "--gpu-architecture=sm_90"} <= set(
            program.options
        )


# -- what these tests can see


def with_source(monkeypatch, kernels, source, tmp_path):
    """Let the kernels, of float64 alone, be those of `source`."""
    changed = tmp_path / "kernels.cu"
    changed.write_text(source)
    monkeypatch.setattr(kernels, "SOURCE", changed)
    monkeypatch.setattr(kernels, "C_TYPES", {"float64": "double"})


def without_barrier(number):
    """The source without its `number`-th __syncthreads."""
    at = list(re.finditer(r"__syncthreads\(\);", SOURCE))[number]
    return SOURCE[: at.start()] + SOURCE[at.end() :]


@pytest.mark.parametrize("barrier", range(SOURCE.count("__syncthreads();")))
def test_a_missing_barrier_shows(monkeypatch, kernels, tmp_path, rng, barrier):
    with_source(monkeypatch, kernels, without_barrier(barrier), tmp_path)
    x = wild(rng, (30, 1100), "float64")
    seen = []
    for descending in (False, True):
        monkeypatch.setattr(cuda_on_host, "descending", descending)
        for name, *arguments in [("softmax", x), ("sum", x, 0)]:
            expected = run(resolve("numpy", True), name, *arguments)
            try:
                assert_same_bits(run(resolve("cupy", True), name, *arguments), expected)
            except AssertionError:
                seen.append((descending, name))
        widths, few = (40, 70, 33), rng.standard_normal((3, 40))
        scores = [
            backend.to_numpy(stack_of(backend, [Sigmoid, None], widths).predict(few))
            for backend in (resolve("cupy", False), resolve("numpy", False))
        ]
        if not np.allclose(*scores, rtol=0, atol=1e-12):
            seen.append((descending, "a stack in one launch"))
    assert seen


MUTATIONS = {
    "a coefficient of exp": ("1 / 6., 1 / 2.", "1 / 6.000000000001, 1 / 2."),
    "exp's rounding": ("- n * LN2_LOW;\n    double p", "+ n * LN2_LOW;\n    double p"),
    "a coefficient of log": ("2 / 3.\n", "2 / 3.0000001\n"),
    "log below sqrt(1/2)": ("if (m < 0x1.6a09e667f3bcdp-1)", "if (m < 0.5)"),
    "subnormals in log": ("(subnormal ? 60 : 0)", "0"),
    "a slice too few in sums": ("digits + length + bits - 1) / bits", "digits + length) / bits"),
    "no scaling of large numbers": ("largest > 0x1p400", "largest > 0x1p2000"),
    "no scaling of small numbers": ("largest < 0x1p-400", "largest < -1"),
    "orders of the product": ("exact = exact + product(s, order - s);", "exact = exact + 0;"),
    "infinities of one sign": ("kinds == DOWN ? -infinity()", "kinds == DOWN ? infinity()"),
    "terms of two infinities": ("if (kinds == UP) return", "if (kinds & UP) return"),
    "sigmoid below 0": ("return x >= 0 ? y : z * y;", "return x >= 0 ? y : 1 - y;"),
    "relu of NaN": ("x <= 0 ? T(0) : x", "x > 0 ? x : T(0)"),
    "rows of the bias": ("b[i % columns]", "b[0]"),
    "rounding of the backward pass": ("* total - r[j]) * scale", "* total) * scale - r[j] * scale"),
    "the last columns": ("j < columns ? j : columns - 1;", "j < columns - 1 ? j : columns - 2;"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_small_mistake_in_a_kernel_shows(monkeypatch, kernels, tmp_path, rng, mutation):
    """Each changes one operation of kernels.cu; the comparisons of bits must find it."""
    old, new = MUTATIONS[mutation]
    assert old in SOURCE
    with_source(monkeypatch, kernels, SOURCE.replace(old, new), tmp_path)
    with pytest.raises(AssertionError):
        compare_every_kind(lambda mode: resolve("cupy", mode), rng)


def compare_every_kind(cuda, rng):
    for kind in KINDS:
        for shape in [(9, 33), (2, 1025)]:
            test_reproducible_kernels_have_the_bits_of_exact(cuda, rng, kind, shape, "float64")


WRONG = """
template <class T> __global__ void outside(T* x, Index size) { x[size] = 0; }
template <class T> __global__ void divergent(T* x, Index size) {
    if (threadIdx.x == 0) __syncthreads();
}
"""


@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        ("outside", lambda x: (x, np.int64(3)), "outside the array"),
        ("divergent", lambda x: (x, np.int64(3)), "others do not come to"),
        ("divergent", lambda x: (x, np.int32(3)), "int32"),
        ("divergent", lambda x: (x.astype(np.float32), np.int64(3)), "float32"),
        ("divergent", lambda x: (x[::2], np.int64(3)), "not packed"),
        ("divergent", lambda x: (np.asarray(x), np.int64(3)), "ndarray"),
        ("divergent", lambda x: (x,), "takes"),
    ],
)
def test_the_stand_in_catches_wrong_launches(kernels, kernel, arguments, message):
    names = "outside<double>", "divergent<double>"
    loaded = cuda_on_host.compiled(names, "typedef long long Index;" + WRONG)
    launch = cuda_on_host.Function(loaded, f"{kernel}<double>")
    with pytest.raises(AssertionError, match=message):
        launch((1,), (32,), arguments(cuda_on_host.empty((3,))))


# -- CuPy itself, where it is installed: it imports and compiles without a GPU


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy", reason="CuPy is not installed")


def test_cupy_has_what_the_backend_uses(cupy):
    """Every attribute of the module that the code names, such as cupy.cuda.nvrtc.getCUBIN."""
    used = set()
    for source in Path(xnet_cupy.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            text = ast.unparse(node).replace("_cupy()", "cupy")
            if isinstance(node, ast.Attribute) and re.fullmatch(r"(cupy|nvrtc)(\.\w+)+", text):
                used.add(
                    text.replace("nvrtc.", "cupy.cuda.nvrtc.", 1).replace(
                        "cupy.cuda.cupy.cuda", "cupy.cuda"
                    )
                )
    assert {"cupy.empty", "cupy.cuda.Module", "cupy.cuda.nvrtc.getCUBIN"} <= used
    for name in used:
        found = cupy
        for part in name.split(".")[1:]:
            found = getattr(found, part)
    for method in ("load", "get_function"):
        assert hasattr(cupy.cuda.Module, method)
    assert hasattr(cupy.cuda.Device, "compute_capability")


@pytest.mark.parametrize("mode", MODES)
def test_cupy_compiles_the_kernels(cupy, mode):
    """By the code that does it on a machine with a GPU."""
    from xnet_cupy import kernels

    options = (*kernels.OPTIONS, kernels.CONTRACTION[mode])
    code, names = kernels.compiled(kernels.instances(mode), options, "80")
    assert code.startswith(b"\x7fELF")
    assert all(name.encode() in code for name in names.values())


# -- the report


@pytest.fixture
def gpu_report():
    path = Path(__file__).parents[1] / "benchmarks" / "gpu_report.py"
    spec = importlib.util.spec_from_file_location("gpu_report", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_report_without_a_gpu_says_so(gpu_report, capsys):
    if (why_not := xnet_cupy.CupyBackend.why_unusable()) is None:
        pytest.skip("there is a GPU here: nothing is missing")
    assert gpu_report.main([]) == 2
    assert why_not in capsys.readouterr().err


def test_report(gpu_report, tmp_path, monkeypatch):
    """The whole of it, but on a backend that is here."""
    monkeypatch.delenv(
        "PYTEST_ADDOPTS", raising=False
    )  # what this run is asked is not for that one
    test = "tests/test_cuda.py::test_every_kernel_is_compiled"
    options = ["--backend", "numba", "--steps", "2", "--output", str(tmp_path), test]
    assert gpu_report.main(options) == 0
    (page,), (data,) = tmp_path.glob("*.md"), tmp_path.glob("*.json")
    report = json.loads(data.read_text())
    assert report["tests"] == {"status": 0, "passed": 1, "failed": [], "skipped": {}}
    assert report["parity"]["kept"]
    assert "| matmul | float32 | reproducible | True | 0 | 0 |" in page.read_text()
    broken = {"status": 1, "passed": 0, "failed": ["a::b"], "skipped": {"no such thing": 2}}
    text = gpu_report.page(report | {"tests": broken, "kept": False})
    for line in ("NOT everything held.", "- failed: a::b", "- 2 skipped: no such thing"):
        assert line in text
