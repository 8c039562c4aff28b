"""CUDA without a GPU: compiled for three generations, searched, and run on the host.

What is tested are the kernels written by hand and those that `generated` makes of every formula of
the registries. Where there is a GPU, the tests that run kernels run them there too.
"""

import ast
import dataclasses
import hashlib
import importlib.util
import json
import os
import pickle
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import cuda_on_host
import numpy as np
import nvrtc as wheels
import pytest
import xnet_cupy
from conftest import (
    DTYPES,
    OPTIMIZERS,
    REGISTERED,
    property_settings,
    require_host_cuda,
    require_tool,
    variants,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from xnet_cupy import generated

from xnet import exact, perturbation
from xnet.backend import Run, resolve
from xnet.bounds import Bounds
from xnet.formulas import FormulaError, trace
from xnet.network import Network
from xnet.operations import Affine, Loss, Pointwise, Rows

SOURCE = generated.SOURCE.read_text()
MODES = ("Fast", "Exact")
GENERATIONS = ("70", "80", "90")

ACTIVATIONS, LOSSES = variants("pointwise"), variants("loss")


def forms(cls):
    """Optimizers of a class, what decides their formulas set both ways."""
    yield cls()
    for field in dataclasses.fields(cls):
        if field.default is None or isinstance(field.default, bool):
            yield cls(**{field.name: 0.1 if field.default is None else not field.default})


STEPS = [optimizer for cls in OPTIMIZERS for optimizer in forms(cls)]


@pytest.fixture
def kernels(monkeypatch):
    """The module that launches the kernels, over the stand-in for CuPy."""
    require_host_cuda(monkeypatch)
    from xnet_cupy import kernels

    return kernels


# -- what there is to compile


def formulas():
    """Every formula of the registries, as the backend asks for it."""
    for operation in variants("pointwise", "rows", altered=False):
        yield generated.forward(operation)
        yield generated.backward(operation)
    for loss in variants("loss", altered=False):
        yield generated.row_losses(loss)
        yield generated.loss_and_delta(loss)
        yield generated.predicted(loss)
    yield from map(generated.step, STEPS)
    for name in exact.ELEMENTARY:
        yield generated.elementary(name)


OF_ONE_MODE = {
    "Fast": {"forward_rows", "loss_differences"},
    "Exact": {"cut_rows", "cut_columns", "add_products"},
}
"""Kernels written by hand that one mode alone launches."""


def every_kernel(by_hand):
    """The kernels, each once: by hand, of a formula, and frames with formulas in them."""
    found = list(by_hand)
    found += [(generated.rowwise if f.by_rows else generated.elementwise)(f) for f in formulas()]
    chains = [(), *((generated.forward(a),) for a in variants("pointwise", altered=False))]
    found += map(generated.add_bias, chains)
    found.append(generated.add_bias(tuple(f for chain in chains for f in chain)))
    losses = variants("loss", altered=False)
    for k, loss in enumerate(losses):
        # All activations stand in one, which the other losses need not show again.
        some = tuple(chains) if k == 0 else ()
        found.append(generated.forward_rows(some, generated.predicted(loss)))
        found.append(generated.loss_differences(some, generated.row_losses(loss)))
    return list(dict.fromkeys(found))


def instances(by_hand, mode):
    """Every kernel of a mode, with the types that it is launched for."""
    other = OF_ONE_MODE["Exact" if mode == "Fast" else "Fast"]
    for kernel in every_kernel(by_hand):
        name = kernel.name.partition("<")[0]
        if name not in other:
            types = ["double"] if name == "loss_differences" else ["float", "double"]
            yield kernel, types


def together(kernels_and_types, mode):
    """One source for many kernels, each in a namespace of its own, and the instances' names."""
    texts, names = [], []
    for k, (kernel, types) in enumerate(kernels_and_types):
        own = set(re.findall(r"(?:struct|__global__ void) (\w+)", kernel.text))
        texts.append(f"namespace n{k} {{\n{kernel.text}\n}}\n")
        name = re.sub(r"\w+", lambda w, k=k, own=own: f"n{k}::" * (w[0] in own) + w[0], kernel.name)
        names += [name.format(type=c_type, math=mode) for c_type in types]
    return generated.source("\n".join(texts)), tuple(names)


def test_every_kernel_is_compiled(kernels):
    """What is in kernels.cu is among the instances, so that the other tests see it."""
    in_source = re.findall(r"^__global__ void (\w+)\(", SOURCE, re.MULTILINE)
    found = {
        kernel.name.partition("<")[0]
        for mode in MODES
        for kernel, _ in instances(kernels.BY_HAND.values(), mode)
    }
    assert found == {*in_source, "elementwise", "rowwise"}
    assert len(in_source) == SOURCE.count("__global__")


def test_no_operation_is_named():
    """Whatever the backend runs, it runs by its formula."""
    names = "|".join(cls.__name__ for cls in (*REGISTERED, *OPTIMIZERS))
    for path in Path(xnet_cupy.__file__).parent.glob("*.*"):
        assert not re.findall(rf"\b(?:{names})\b", path.read_text(), re.IGNORECASE), path


# -- the compiler


@pytest.fixture
def compiler(kernels, monkeypatch):
    """NVRTC from its wheel in the place of CuPy's."""
    require_tool(wheels.LIBRARY, wheels.NO_NVRTC)
    monkeypatch.setattr(kernels, "nvrtc", wheels.Recorder())
    return kernels


@dataclasses.dataclass
class Compiled:
    """The binary, what the compiler said, the PTX, and that of each kernel by its C++ name."""

    binary: bytes
    log: str
    ptx: str
    kernels: dict[str, str]
    lowered: dict[str, str]


def compiled(compiler, mode, capability, contraction=None, some=None):
    options = (*compiler.OPTIONS, contraction or compiler.CONTRACTION[mode])
    chosen = some or instances(compiler.BY_HAND.values(), mode)
    source, names = together(chosen, mode)
    binary, lowered, log, ptx = kept(compiler, source, names, options, capability)
    found = re.findall(r"^(?:\.\w+ )?\.entry (\w+)\((.*?)^}", ptx, re.DOTALL | re.MULTILINE)
    assert sorted(name for name, _ in found) == sorted(lowered.values())
    bodies = {name: dict(found)[lowered[name]] for name in names}
    return Compiled(binary, log, ptx, bodies, lowered)


def kept(compiler, *arguments):
    """What the compiler gives and says: kept by content, as it takes a minute for all of them."""
    described = repr((*arguments, compiler.nvrtc.getVersion()))
    path = cuda_on_host.folder() / f"{hashlib.sha256(described.encode()).hexdigest()}.nvrtc"
    if path.exists():
        os.utime(path)
        return pickle.loads(path.read_bytes())
    found = (*compiler.compiled(*arguments), compiler.nvrtc.log, compiler.nvrtc.ptx)
    made = path.with_suffix(f".{os.getpid()}")
    made.write_bytes(pickle.dumps(found))
    os.replace(made, path)  # whole or not at all
    return found


FUSED = re.compile(r"\b(?:fma|mad)(?:\.\w+)*\.f(?:32|64)\b")
CONTRACTIBLE = re.compile(r"\b(?:add|sub|mul)(?:\.sat)?\.f(?:32|64)\b")
"""Without ``.rn``, which PTX's manual says is never fused with another operation."""
APPROXIMATE = re.compile(r"\b(?:\w+\.approx|div\.full)\b")
MACHINE_FUSED = re.compile(r"\b(?:FFMA|DFMA)\b")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("capability", GENERATIONS)
def test_every_formula_compiles(compiler, mode, capability):
    """Without a warning, and in reproducible mode without a fused multiply-add."""
    found = compiled(compiler, mode, capability)
    # NVRTC 12.9 says of sm_70 itself that a later version will not know it.
    said = [line for line in found.log.splitlines() if "Architectures prior to" not in line]
    assert said == []
    assert found.binary.startswith(b"\x7fELF")
    assert f".target sm_{capability}" in found.ptx
    # Subnormals are numbers. CUDA's own exp and log see to them before they approximate.
    flushing = set(re.findall(r"\w[\w.]*\.ftz[\w.]*", found.ptx))
    assert flushing <= {"ex2.approx.ftz.f32", "rcp.approx.ftz.f64"}
    if mode == "Fast":
        assert APPROXIMATE.search(found.ptx)
    else:
        assert_nothing_is_fused(found, capability)


def assert_nothing_is_fused(found, capability):
    """No fused multiply-add, and nothing that ptxas may fuse, or that is not correctly rounded.

    This is decided in PTX: below it, division is a sequence of fused multiply-adds which gives the
    correctly rounded quotient, whatever the steps. So the machine code is searched where nothing is
    divided, and no root taken.
    """
    for name, body in found.kernels.items():
        for pattern in (FUSED, CONTRACTIBLE, APPROXIMATE):
            assert not pattern.findall(body), name
    assert any("add.rn.f64" in body for body in found.kernels.values())
    if capability == "70":  # nvdisasm 13 does not know it
        return
    code = machine_code(found)
    assert len(code) >= 80
    assert not [name for name, body in code.items() if MACHINE_FUSED.search(body)]
    assert any("DMUL" in body and "DADD" in body for body in code.values())


def machine_code(found):
    """The instructions of each kernel that neither divides nor takes a root."""
    require_tool(wheels.DISASSEMBLER, wheels.NO_DISASSEMBLER)
    sections = wheels.disassembled(found.binary).split("\t.section\t.text.")[1:]
    bodies = {re.match(r"\w+", section)[0]: section for section in sections}
    divides = re.compile(r"\b(?:div|rcp|sqrt)\.rn\b")
    return {
        name: bodies[found.lowered[name]]
        for name, ptx in found.kernels.items()
        if not divides.search(ptx)
    }


@pytest.mark.parametrize("capability", GENERATIONS)
def test_the_search_finds_fused_operations_where_they_are(compiler, capability):
    """Polynomials, of multiplications and additions in turn, compiled with contraction on."""
    functions = [generated.elementwise(generated.elementary(name)) for name in exact.ELEMENTARY]
    some = [(kernel, ["float", "double"]) for kernel in functions]
    found = compiled(compiler, "Exact", capability, "--fmad=true", some)
    for name, body in found.kernels.items():
        assert FUSED.search(body), name
        assert CONTRACTIBLE.search(body), name
    if capability != "70":
        code = machine_code(found)
        assert code
        assert all(MACHINE_FUSED.search(body) for body in code.values())


def test_a_device_newer_than_the_compiler_gets_ptx(compiler):
    code, _ = compiler.compiled(generated.source(), ("cut_rows<float>",), compiler.OPTIONS, "999")
    newest = max(compiler.nvrtc.getSupportedArchs())
    assert f".target sm_{newest}".encode() in code


def test_a_source_that_does_not_compile_says_where(compiler):
    with pytest.raises(RuntimeError, match=r'kernels\.cu.*identifier "nonsense" is undefined'):
        compiler.compiled("__global__ void f() { nonsense; }", ("f",), compiler.OPTIONS, "80")


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


def run(backend, method, *arguments, **options):
    """What the method makes of NumPy arrays and other arguments, as NumPy arrays."""

    def place(value):
        if isinstance(value, list):
            return [place(v) for v in value]
        return backend.asarray(value) if isinstance(value, np.ndarray) else value

    with backend.running():
        results = getattr(backend, method)(*map(place, arguments), **options)
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

FEW_SIZES = [(0, 3), (1, 1), (13, 1), (9, 33), (2, 1025)]


def sums_and_products(rng, kind, shape, dtype):
    """What decides bits and is written by hand, with arguments that fit x (N, D)."""
    x, dout = kind(rng, shape, dtype), kind(rng, (shape[0], 5), dtype)
    W, b = kind(rng, (shape[1], 5), dtype), kind(rng, (5, 1), dtype)[:, 0]
    product, y = Affine(*W.shape), np.zeros_like(dout)
    yield from [("matmul", x, W), ("run", product, x, W, b)]
    yield "run_backward", product, dout, x, y, W, b
    yield "parameter_gradients", product, dout, x, y, W, b
    for axis, keepdims in [(None, False), (None, True), (0, True), (1, False), (-1, True)]:
        yield "sum", x, axis, keepdims
    yield from [("sum", x.reshape(1, *shape, 1), 1), ("sum", np.stack([x, x]), 1)]


def of_operation(rng, kind, shape, dtype, operation):
    """What is asked of an operation or a loss, with arguments for rows x (N, D)."""
    x, other = kind(rng, shape, dtype), kind(rng, shape, dtype)
    if isinstance(operation, Loss):
        t = abs(other)
        yield from [("predicted", operation, x), ("row_losses", operation, x, t)]
        yield "row_losses", operation, np.stack([x, -x]), t
        if shape[0]:
            yield "loss_and_delta", operation, x, t
        return
    y = run(resolve("numpy", True), "run", operation, x)[0]
    yield from [("run", operation, x), ("run_backward", operation, other, x, y)]
    yield "run", operation, np.stack([x, -x])


def of_optimizer(rng, kind, shape, dtype, optimizer):
    """A step of the optimizer."""
    W, g = kind(rng, shape, dtype), kind(rng, shape, dtype)
    memory = [abs(kind(rng, shape, dtype)) for _ in range(optimizer.slots)]
    yield from [("step", optimizer, n, W, g, memory) for n in (1, 1000)]
    yield "step", optimizer, 3, W[0], g[0], [m[0] for m in memory]


def compare(cuda, calls):
    reference = resolve("numpy", True)
    for name, *arguments in calls:
        expected = run(reference, name, *arguments)
        assert_same_bits(run(cuda(True), name, *arguments), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SIZES)
def test_sums_and_products_have_the_bits_of_exact(cuda, rng, kind, shape, dtype):
    compare(cuda, sums_and_products(rng, kind, shape, dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", variants("pointwise", "rows", "loss"), ids=repr)
def test_a_formula_has_the_bits_of_its_arrays(cuda, rng, operation, kind):
    """What is generated, in reproducible mode, against the formula interpreted by NumPy."""
    for dtype in DTYPES:
        for shape in FEW_SIZES:
            compare(cuda, of_operation(rng, kind, shape, dtype, operation))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", STEPS, ids=repr)
def test_a_step_has_the_bits_of_its_arrays(cuda, rng, optimizer, kind):
    for dtype in DTYPES:
        compare(cuda, of_optimizer(rng, kind, (9, 33), dtype, optimizer))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", exact.ELEMENTARY)
def test_elementary_functions_over_their_whole_range(cuda, rng, name, dtype):
    info = np.finfo(dtype)
    ends = np.array([0, 1, info.max, info.tiny, info.smallest_subnormal, np.inf, np.nan], dtype)
    linear = np.linspace(-800, 800, 20_001).astype(dtype)
    halfway = (np.log(2) * (np.arange(-1080, 1030) + 0.5)).astype(dtype)
    every_exponent = np.ldexp(
        rng.uniform(0.5, 1, 4000),
        np.linspace(info.minexp - info.nmant, info.maxexp, 4000).astype(int),
    ).astype(dtype)
    for x in [linear, halfway, every_exponent, -every_exponent, ends, -ends]:
        assert_same_bits(run(cuda(True), name, x), run(resolve("numpy", True), name, x))


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
    compare(cuda, [("matmul", a, b), ("sum", a, 1), ("sum", b, 0), ("sum", a)])


# -- fast mode


def assert_within(actual, bounded):
    """`actual` is as far from the exact numbers as rounding can bring it, and no farther."""
    v, e = (np.broadcast_to(a, actual.shape) for a in (bounded.v, bounded.e))
    assert np.isfinite(v).all()
    assert (abs(actual - v) <= e).all(), np.max(abs(actual - v) / e)


def exactly(m, *arrays):
    """Numbers without an error, in a precision that has digits to spare."""
    return [m.take(array.astype(np.longdouble)) for array in arrays]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", variants("pointwise", "rows"), ids=repr)
def test_a_formula_is_within_its_bounds(cuda, rng, operation, dtype):
    m = Bounds(np, float(np.finfo(dtype).eps) / 2)
    for shape in [(9, 33), (2, 1025)]:
        x, dout = plain(rng, shape, dtype), plain(rng, shape, dtype)
        x[0, ::3] = 0
        (y,) = run(cuda(), "run", operation, x)
        assert_within(y, operation.forward(m, *exactly(m, x)))
        (dx,) = run(cuda(), "run_backward", operation, dout, x, y)
        assert_within(dx, operation.backward(m, *exactly(m, dout, x, y)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_loss_is_within_its_bounds(cuda, rng, loss, dtype):
    m = Bounds(np, float(np.finfo(dtype).eps) / 2)
    for rows, columns in [(9, 33), (2, 1025)]:
        x, t = plain(rng, (rows, columns), dtype), rng.random((rows, columns)).astype(dtype)
        t[:, ::3] = 0
        of_rows = loss.forward(m, *exactly(m, x, t))
        (losses,) = run(cuda(), "row_losses", loss, x, t)
        assert_within(losses[:, None], of_rows)
        mean, delta = run(cuda(), "loss_and_delta", loss, x, t)
        assert_within(mean.reshape(1), m.total(of_rows) / rows)
        assert_within(delta, loss.backward(m, *exactly(m, x, t)) * (1 / rows))
        assert_within(run(cuda(), "predicted", loss, x)[0], loss.predict(m, *exactly(m, x)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", STEPS, ids=repr)
def test_a_step_is_within_its_bounds(cuda, rng, optimizer, dtype):
    m = Bounds(np, float(np.finfo(dtype).eps) / 2)
    W, g = plain(rng, (9, 33), dtype), plain(rng, (9, 33), dtype)
    memory = [abs(plain(rng, (9, 33), dtype)) for _ in range(optimizer.slots)]
    found = run(cuda(), "step", optimizer, 7, W, g, memory)
    expected = optimizer.formula(m, 7, *exactly(m, W, g, *memory))
    expected = expected if isinstance(expected, tuple) else (expected,)
    for one, bounded in zip(found, expected, strict=True):
        assert_within(one, bounded)


@pytest.mark.parametrize("operation", variants("pointwise", "rows", "loss"), ids=repr)
def test_a_formula_takes_what_is_not_finite(cuda, rng, operation):
    """NaN and infinities where NumPy has them, zeros of the same sign, other numbers close."""
    reference = resolve("numpy", False)
    for dtype in DTYPES:
        close = 64 * np.finfo(dtype).eps * 33
        for name, *arguments in of_operation(rng, not_finite, (9, 33), dtype, operation):
            expected = run(reference, name, *arguments)
            for one, other in zip(run(cuda(), name, *arguments), expected, strict=True):
                assert one.dtype == other.dtype
                np.testing.assert_allclose(one, other, rtol=close, atol=close)
                zeros = (other == 0) & (one == 0)
                if operation.fuses == "pointwise":
                    np.testing.assert_array_equal(np.signbit(one)[zeros], np.signbit(other)[zeros])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [plain, not_finite])
@pytest.mark.parametrize("shape", SIZES)
def test_fast_sums_and_products_agree_with_the_generic_forms(cuda, rng, kind, shape, dtype):
    reference = resolve("numpy", False)
    close = 64 * np.finfo(dtype).eps * max(shape)
    for name, *arguments in sums_and_products(rng, kind, shape, dtype):
        if kind is not_finite and name != "sum":
            continue  # BLAS libraries differ in what they skip
        expected = run(reference, name, *arguments)
        for one, other in zip(run(cuda(), name, *arguments), expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=close, atol=close)


def test_long_columns_are_summed_in_pieces(cuda, monkeypatch, rng):
    backend = cuda()
    monkeypatch.setattr(backend.kernels, "PIECE", 5)
    dout, x = plain(rng, (4001, 3), "float64"), np.ones((4001, 2))
    _, found = run(backend, "parameter_gradients", Affine(2, 3), dout, x, dout)
    np.testing.assert_allclose(found, dout.sum(axis=0), rtol=1e-12, atol=1e-12)


# -- the numerical gradient


def steps_through(rng, widths, activation=None):
    """Products of these widths, each after the activation, as NumPy's run."""
    operations, parameters = [], []
    for sizes in pairwise(widths):
        if activation is not None:
            operations.append(activation)
            parameters.append(())
        operations.append(Affine(*sizes))
        parameters.append((rng.standard_normal(sizes), rng.standard_normal(sizes[1])))
    return Run(operations, parameters)


def assert_differences(backend, rng, rest, loss, width, classes):
    """The fused kernel against the generic form on NumPy."""
    reference = resolve("numpy", False)
    x = np.where(rng.random((5, 6)) < 0.3, 0, rng.standard_normal((5, 6)))
    a, t = rng.standard_normal((5, width)), rng.random((5, classes))
    placed = Run(rest.operations, [tuple(map(backend.asarray, p)) for p in rest.parameters])
    arrays = [backend.asarray(array) for array in (x, a, t)]
    found = backend.loss_differences(*arrays[:2], placed, loss, arrays[2], 0.01)
    with reference.running():
        expected = perturbation.loss_differences(reference, x, a, rest, loss, t, 0.01)
        scores = perturbation.through(reference, rest, a)
        largest = abs(reference.row_losses(loss, scores, t)).max()
    rounding = 1e-13 * max(1, largest)
    np.testing.assert_allclose(backend.to_numpy(found), expected, rtol=1e-9, atol=rounding)
    nothing = (x == 0).all(axis=0)
    assert (backend.to_numpy(found)[:-1][nothing] == 0).all()


@pytest.mark.parametrize("widths", [(3, 65, 2, 17, 4), (30, 200, 10), (7, 1, 40, 3), (4, 1)])
@pytest.mark.parametrize("memory", ["plenty", "little"])
def test_loss_differences(cuda, monkeypatch, rng, widths, memory):
    """For every loss, with little and with plenty of scratch."""
    backend = cuda()
    if memory == "little":
        monkeypatch.setattr(backend.kernels, "LARGEST_SCRATCH", 1000)
        monkeypatch.setattr(backend.kernels, "ENOUGH_THREADS", 1)
    names = launches(monkeypatch, backend)
    for k, loss in enumerate(LOSSES):
        rest = steps_through(rng, widths, ACTIVATIONS[k % len(ACTIVATIONS)] if k else None)
        assert_differences(backend, rng, rest, loss, widths[0], widths[-1])
    assert names.count("loss_differences") == len(LOSSES)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_loss_differences_through(cuda, rng, activation):
    """Two layers with the activation, whose numbers are not those of another one that follows."""
    rest = steps_through(rng, (7, 5, 4), activation)
    rest = Run([*rest.operations, *ACTIVATIONS[3:5]], [*rest.parameters, (), ()])
    assert_differences(cuda(), rng, rest, LOSSES[0], 7, 4)


def test_loss_differences_beyond_one_pass_of_the_grid(cuda, monkeypatch, rng):
    """More weights than threads, and a NaN, which comes through in every row that has it."""
    backend, loss = cuda(), LOSSES[0]
    monkeypatch.setattr(backend.kernels, "LARGEST_GRID", 1)
    x, a = rng.standard_normal((3, 40)), rng.standard_normal((3, 20))
    a[1, 2] = np.nan
    t = np.eye(20)[:3]
    arrays = [backend.asarray(array) for array in (x, a, t)]
    found = backend.loss_differences(*arrays[:2], Run([], []), loss, arrays[2], 0.01)
    assert np.isnan(backend.to_numpy(found)).all()


def test_loss_differences_that_no_kernel_takes(cuda, monkeypatch, rng):
    """A layer that mixes the numbers of a row lies behind, or numbers are float32: generic."""
    backend = cuda()
    names = launches(monkeypatch, backend)
    for rows in variants("rows"):
        rest = steps_through(rng, (5, 4))
        rest = Run([*rest.operations, rows], [*rest.parameters, ()])
        assert_differences(backend, rng, rest, LOSSES[0], 5, 4)
    assert "loss_differences" not in names


# -- runs


def launches(monkeypatch, backend):
    """Names of the kernels that are launched from now on."""
    names, launch = [], backend.kernels._launch

    def record(mode, kernel, *rest):
        names.append(kernel.name.partition("<")[0])
        return launch(mode, kernel, *rest)

    monkeypatch.setattr(backend.kernels, "_launch", record)
    return names


def stack_of(backend, activations, widths, dtype="float64", loss=None):
    """A network with such activations after its products, None for no one."""
    layers = []
    for (inputs, outputs), activation in zip(pairwise(widths), activations, strict=True):
        layers += [Affine(inputs, outputs, 1.0), *([activation] if activation else [])]
    return Network(layers, loss, dtype=dtype, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(5, 3), (40, 70, 33), (7, 100, 1, 9)])
@pytest.mark.parametrize("rows", [1, 3, 64, 65])
def test_a_few_rows_go_through_a_run_in_one_launch(cuda, monkeypatch, rows, widths, dtype):
    activations = [*ACTIVATIONS[3:5], None][-(len(widths) - 1) :]
    network = stack_of(cuda(), activations, widths, dtype)
    reference = stack_of("numpy", activations, widths, dtype)
    x = np.random.default_rng(0).standard_normal((rows, widths[0])).astype(dtype)
    names = launches(monkeypatch, network.backend)
    close = 200 * np.finfo(dtype).eps
    for method in ("predict", "scores"):
        found = network.backend.to_numpy(getattr(network, method)(x))
        expected = getattr(reference, method)(x)
        np.testing.assert_allclose(found, expected, rtol=0, atol=close * abs(expected).max())
    if rows <= 64:
        assert names == ["forward_rows"] * 2
    else:  # the products are cuBLAS's
        products = ["add_bias"] * (len(widths) - 1)
        assert names == [*products, "rowwise", *products]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("reproducible", [False, True])
def test_a_run_with_every_activation(cuda, loss, reproducible):
    """Several that follow one product, each with its own numbers."""
    activations = [None, *ACTIVATIONS]
    widths = [5] * (len(activations) + 1)
    for dtype in DTYPES:
        networks = [
            stack_of(backend, activations, widths, dtype, loss)
            for backend in (cuda(reproducible), resolve("numpy", reproducible))
        ]
        for network in networks:
            network.layers[4:4] = [ACTIVATIONS[6], ACTIVATIONS[3]]
        x = np.random.default_rng(0).standard_normal((3, 5)).astype(dtype)
        found, expected = (n.backend.to_numpy(n.predict(x)) for n in networks)
        if reproducible:
            assert_same_bits([found], [expected])
        np.testing.assert_allclose(found, expected, rtol=2e4 * np.finfo(dtype).eps)


def test_what_goes_through_a_run_in_one_launch_may_be_nan(cuda):
    network = stack_of(cuda(), [ACTIVATIONS[1], None], (4, 3, 2))
    x = np.ones((3, 4))
    x[1, 2] = np.nan
    found = np.isnan(network.backend.to_numpy(network.predict(x)))
    assert found.tolist() == [[False] * 2, [True] * 2, [False] * 2]


def test_parameters_written_in_place_count_in_the_next_launch(cuda):
    network = stack_of(cuda(), [ACTIVATIONS[0], None], (4, 3, 2))
    network.predict(np.ones((2, 4)))
    network.params["b2"][...] = network.backend.asarray([50.0, 0.0])
    y = network.backend.to_numpy(network.predict(np.ones((2, 4))))
    np.testing.assert_allclose(y[:, 0], 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2, 70])
def test_a_run_in_reproducible_mode_has_numpys_bits(cuda, rows, dtype):
    x = np.random.default_rng(0).standard_normal((rows, 9)).astype(dtype)
    scores = []
    for backend in (cuda(reproducible=True), resolve("numpy", reproducible=True)):
        network = stack_of(backend, [*ACTIVATIONS[:2], None], (9, 33, 5, 4), dtype)
        scores.append(np.asarray(backend.to_numpy(network.predict(x))))
    assert_same_bits(scores[:1], scores[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_has_the_bits_of_the_reference(cuda, optimizer, dtype):
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((20, 9)).astype(dtype), rng.integers(0, 4, 20)
    found = []
    for backend in (cuda(True), resolve("numpy", True)):
        network, update = stack_of(backend, [ACTIVATIONS[0], None], (9, 33, 4), dtype), optimizer()
        losses = [network.train_step(x, t, update) for _ in range(3)]
        arrays = [np.asarray(backend.to_numpy(W)) for W in network.params.values()]
        found.append([np.asarray(losses), *arrays])
    assert_same_bits(*found)


@pytest.mark.parametrize("operation", ACTIVATIONS, ids=repr)
def test_bias_and_activation_in_one_pass(cuda, rng, operation):
    backend, reference = cuda(True), resolve("numpy", True)
    for dtype in DTYPES:
        for kind in (plain, not_finite):
            x, b = kind(rng, (13, 33), dtype), kind(rng, (1, 33), dtype)[0]
            with np.errstate(all="ignore"):
                expected = run(reference, "run", operation, x + b)
            y = backend.asarray(x.copy())
            with backend.running():
                backend.kernels.add_bias("Exact", y, backend.asarray(b), [operation])
            assert_same_bits([backend.to_numpy(y)], expected)


# -- what a formula may be


def test_another_number_compiles_nothing(kernels, monkeypatch, rng):
    """Settings that are numbers are arguments of what is compiled."""
    backend, x = resolve("cupy", True), plain(rng, (3, 5), "float64")
    ran, function = [], kernels._function.__wrapped__
    monkeypatch.setattr(kernels, "_function", cache(lambda *a: ran.append(a) or function(*a)))
    for operation in variants("pointwise", "rows", "loss", altered=False):
        compare(lambda _: backend, of_operation(rng, plain, x.shape, "float64", operation))
    once = len(ran)
    assert once
    others = [o for o in variants("pointwise", "rows", "loss") if o.settings()]
    for operation in others:
        compare(lambda _: backend, of_operation(rng, plain, x.shape, "float64", operation))
    for optimizer in OPTIMIZERS:
        for lr in (0.25, 0.5):
            compare(lambda _: backend, of_optimizer(rng, plain, x.shape, "float64", optimizer(lr)))
    steps = {generated.elementwise(generated.step(optimizer())) for optimizer in OPTIMIZERS}
    assert len(ran) == once + len(steps)


def test_what_a_setting_decides_is_another_formula(cuda):
    class Either(Pointwise):
        slope: float = 2.0

        def __post_init__(self):
            object.__setattr__(self, "steep", self.slope > 1)

        def forward(self, m, x):
            return self.slope * x if self.steep else x + self.slope

    for slope in (3.0, 0.5, 2.0):
        (found,) = run(cuda(), "run", Either(slope), np.array([1.0, 4.0]))
        np.testing.assert_array_equal(
            found, [3, 12] if slope == 3 else [2, 8] if slope == 2 else [1.5, 4.5]
        )


def test_a_setting_without_a_hash_is_taken_too(cuda):
    class Listed(Pointwise):
        slopes: list

        def forward(self, m, x):
            return self.slopes[0] * x + self.slopes[1]

    for slopes in ([2.0, 1.0], [3.0, 0.0]):
        (found,) = run(cuda(), "run", Listed(slopes), np.array([1.0, 4.0]))
        np.testing.assert_array_equal(found, slopes[0] * np.array([1.0, 4.0]) + slopes[1])


def test_a_formula_that_cannot_be_compiled_says_where(cuda):
    class Branching(Pointwise):
        def forward(self, m, x):
            return x if x > 0 else 0 * x

    with pytest.raises(FormulaError, match=r"return x if x > 0 else 0 \* x.*use m\.where"):
        run(cuda(), "run", Branching(), np.ones(3))


def test_what_no_kernel_gives_is_left_to_the_arrays(cuda, monkeypatch, rng):
    class Parametric(Pointwise):
        units: int
        parameters = {"slope": ("units",)}  # noqa: RUF012

        def forward(self, m, x, slope):
            return m.where(x > 0, x, slope * x)

        def backward(self, m, dout, x, y, slope):
            return m.where(x > 0, dout, slope * dout), m.total(m.where(x > 0, 0, x * dout))

    class Total(Rows):
        def forward(self, m, x):
            return m.sum(x)

    class Same(Pointwise):
        def forward(self, m, x):
            return x

    class Undone(Loss):  # not a number of the row: the first counts
        def forward(self, m, x, t):
            return (x - t) * (x - t)

        def backward(self, m, x, t):
            return x - t

    x, slope = plain(rng, (4, 3), "float64"), np.array([0.1, 0.2, 0.3])
    calls = [
        ("run", Parametric(3), x, slope),
        ("run_backward", Parametric(3), x, x, x, slope),
        ("run", Total(), x),
        ("run", Same(), x),
        ("row_losses", Undone(), x, -x),
        ("loss_and_delta", Undone(), x, -x),
    ]
    backend = cuda(True)
    names = launches(monkeypatch, backend)
    compare(lambda _: backend, calls)
    assert set(names) <= {"row_sums", "column_sums"}


def test_numbers_of_a_row_may_be_used_anywhere(cuda, rng):
    """Sums within maxima within sums, of what does not vary too, and the width."""

    class Nested(Rows):
        scale: float = 0.3

        def forward(self, m, x):
            mean = m.sum(x) / m.width(x)
            spread = m.max(m.abs(x - mean)) + self.scale
            top = m.max(m.sum(m.exp((x - mean) / spread)))
            return m.where((x > mean) & ~(x > top), x * top, m.sum(mean) - x) / m.sqrt(spread)

        def backward(self, m, dout, x, y):
            return dout * m.sum(dout * y) + self.scale

    for kind in (plain, not_finite):
        for dtype in DTYPES:
            compare(cuda, of_operation(rng, kind, (5, 40), dtype, Nested()))


def test_a_step_of_numbers_of_another_type_is_generic(cuda, rng):
    W, g = plain(rng, (3, 4), "float32"), plain(rng, (3, 4), "float64")
    optimizer = OPTIMIZERS[0]()
    assert_same_bits(
        *(run(b, "step", optimizer, 1, W, g, []) for b in (cuda(True), resolve("numpy", True)))
    )


# -- how they are launched


def test_rows_and_elements_beyond_one_pass_of_the_grid(cuda, monkeypatch, rng):
    backend = cuda(True)
    monkeypatch.setattr(backend.kernels, "LARGEST_GRID", 2)
    x, W = plain(rng, (70, 33), "float64"), plain(rng, (33, 19), "float64")
    rows, activation = variants("rows")[0], ACTIVATIONS[0]
    calls = [("run", rows, x), ("sum", x, 1), ("run", activation, x), ("matmul", x, W)]
    compare(lambda _: backend, calls)


@pytest.mark.parametrize("mode", [False, True])
def test_empty_arrays_launch_nothing(kernels, monkeypatch, mode):
    monkeypatch.setattr(kernels, "_launch", None)
    for shape in [(0, 3), (3, 0)]:
        empty = np.empty(shape)
        for name, *arguments in [("run", ACTIVATIONS[0], empty), ("sum", empty), ("exp", empty)]:
            run(resolve("cupy", mode), name, *arguments)
        (product,) = run(resolve("cupy", mode), "matmul", empty, np.empty((shape[1], 2)))
        np.testing.assert_array_equal(product, np.zeros((shape[0], 2)))
    for operation in variants("rows"):
        run(resolve("cupy", mode), "run", operation, np.empty((0, 3)))


def test_arrays_need_not_be_contiguous(cuda, rng):
    backend, x = cuda(True), plain(rng, (7, 9), "float64")
    reference = resolve("numpy", True)
    for placed, values in [
        (backend.asarray(x).T, x.T),
        (backend.asarray(x)[::2, 1::3], x[::2, 1::3]),
        (backend.xp.broadcast_to(backend.asarray(x[:1]), (4, 9)), np.broadcast_to(x[:1], (4, 9))),
    ]:
        for operation in (*variants("rows"), ACTIVATIONS[0]):
            expected = run(reference, "run", operation, np.ascontiguousarray(values))
            assert_same_bits([backend.to_numpy(backend.run(operation, placed))], expected)
        for axis in (None, 0, 1):
            expected = run(reference, "sum", values, axis)
            assert_same_bits([np.asarray(backend.to_numpy(backend.sum(placed, axis)))], expected)


@pytest.mark.parametrize("axis", [None, 0, 1, 2, (0,), (0, 1), (0, 2), (-1, 0), (0, 1, 2), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_exact_sums_along_several_axes(cuda, rng, dtype, axis, keepdims):
    a, backend = rng.normal(size=(3, 4, 5)).astype(dtype), cuda(True)
    expected = exact.sum(np, a, axis, keepdims)
    found = np.asarray(backend.to_numpy(backend.sum(backend.asarray(a), axis, keepdims)))
    assert found.shape == expected.shape
    assert_same_bits([found], [expected])


def test_kernels_are_compiled_once_and_kept(kernels, monkeypatch, tmp_path):
    """In a folder of CuPy's: the next process compiles nothing, whatever it finds there."""
    ran, compile_all = [], kernels.compiled
    monkeypatch.setattr(kernels, "compiled", lambda *a: ran.append(a) or compile_all(*a))
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    arguments = generated.source(), ("cut_rows<float>",), kernels.OPTIONS, "90"
    first = kernels._cached(*arguments)
    assert kernels._cached(*arguments) == first
    assert len(ran) == 1
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text("{broken")
    assert kernels._cached(*arguments) == first
    assert kernels._cached(*arguments) == first
    assert len(ran) == 2
    source, names, options, capability = arguments
    kernels._cached(source, ("cut_rows<double>",), options, capability)
    kernels._cached(source, names, (*options, "--fmad=false"), capability)
    kernels._cached(source, names, options, "80")
    kernels._cached(f"{source}// another formula", names, options, capability)
    assert len(ran) == 6
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "a file"))  # nowhere to keep it
    assert kernels._cached(*arguments)[1] == first[1]


def test_each_mode_is_compiled_with_its_own_options(kernels, monkeypatch, tmp_path, rng):
    """And with the kernel that is launched, alone."""
    for reproducible, contraction in [(False, "--fmad=true"), (True, "--fmad=false")]:
        monkeypatch.setattr(cuda_on_host, "PROGRAMS", {})
        monkeypatch.setattr(kernels, "_function", cache(kernels._function.__wrapped__))
        monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / contraction))
        run(resolve("cupy:1", reproducible), "run", ACTIVATIONS[0], rng.standard_normal(3))
        (program,) = cuda_on_host.PROGRAMS.values()
        assert contraction in program.options
        assert {"--ftz=false", "--prec-div=true", "--gpu-architecture=sm_90"} <= set(
            program.options
        )
        assert program.names == [f"elementwise<double, {'Exact' if reproducible else 'Fast'}>"]


# -- what these tests can see


def with_source(monkeypatch, kernels, source, tmp_path):
    """Let the kernels be those of `source`."""
    changed = tmp_path / "kernels.cu"
    changed.write_text(source)
    monkeypatch.setattr(generated, "SOURCE", changed)
    monkeypatch.setattr(kernels, "_function", cache(kernels._function.__wrapped__))


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
        for name, *arguments in [("run", variants("rows")[0], x), ("sum", x, 0)]:
            expected = run(resolve("numpy", True), name, *arguments)
            try:
                assert_same_bits(run(resolve("cupy", True), name, *arguments), expected)
            except AssertionError:
                seen.append((descending, name))
        widths, few = (40, 70, 33), rng.standard_normal((3, 40))
        scores = [
            backend.to_numpy(stack_of(backend, [ACTIVATIONS[0], None], widths).predict(few))
            for backend in (resolve("cupy", False), resolve("numpy", False))
        ]
        if not np.allclose(*scores, rtol=0, atol=1e-12):
            seen.append((descending, "a run in one launch"))
    assert seen


MUTATIONS = {
    "powers below the smallest": ("* power(half) * power(whole - half)", "* power(whole)"),
    "a power that is not whole": ("n == n ? Index(n) : 0", "Index(n + 0.75)"),
    "subnormals in log": ("(subnormal ? 60 : 0)", "0"),
    "huge numbers in log": ("x * 0x1p-200)) + 200", "x * 0x1p-200)) + 201"),
    "the fraction of huge numbers": ("if (x > 0x1p900) x = x", "if (x > 0x1p2000) x = x"),
    "a slice too few in sums": ("digits + length + bits - 1) / bits", "digits + length) / bits"),
    "no scaling of large numbers": ("largest > 0x1p400", "largest > 0x1p2000"),
    "no scaling of small numbers": ("largest < 0x1p-400", "largest < -1"),
    "orders of the product": ("exact = exact + product(s, order - s);", "exact = exact + 0;"),
    "infinities of one sign": ("kinds == DOWN ? -infinity()", "kinds == DOWN ? infinity()"),
    "terms of two infinities": ("if (kinds == UP) return", "if (kinds & UP) return"),
    "the maximum of NaN": ("return a == a && !(b <= a) ? b : a;", "return b > a ? b : a;"),
    "the maximum begins": ("T top = T(-infinity());", "T top = T(0);"),
    "rows of the bias": ("b[i % columns]", "b[0]"),
    "the last columns": ("j < columns ? j : columns - 1;", "j < columns - 1 ? j : columns - 2;"),
}


def test_nothing_shows_without_a_mistake(kernels, rng):
    compare_every_kind(kernels, rng)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_small_mistake_in_a_kernel_shows(monkeypatch, kernels, tmp_path, rng, mutation):
    """Each changes one operation of kernels.cu; the comparisons of bits must find it."""
    old, new = MUTATIONS[mutation]
    assert SOURCE.count(old) == 1
    with_source(monkeypatch, kernels, SOURCE.replace(old, new), tmp_path)
    with pytest.raises(AssertionError):
        compare_every_kind(kernels, rng)


def compare_largest(kernels, x):
    """The maximum of each row, NaN where it holds one."""

    def formula(m, x):
        return m.max(x)

    backend, of_row = resolve("cupy", True), generated.Traced(trace(formula, "x"))
    with backend.running():
        (largest,) = kernels.evaluate("Exact", of_row, None, backend.asarray(x))
    assert_same_bits([backend.to_numpy(largest)], [x.max(axis=-1)])


def compare_every_kind(kernels, rng):
    def cuda(mode):
        return resolve("cupy", mode)

    for kind in KINDS:
        x = abs(kind(rng, (9, 33), "float64"))
        compare(cuda, [(name, sign * x) for name in exact.ELEMENTARY for sign in (1, -1)])
        for shape in [(9, 33), (13, 1)]:
            compare_largest(kernels, kind(rng, shape, "float64"))
    for shape in [(9, 33), (2, 1025)]:
        for kind in KINDS:
            compare(cuda, sums_and_products(rng, kind, shape, "float64"))
            compare(cuda, of_operation(rng, kind, shape, "float64", variants("rows")[0]))


def test_a_mistake_in_what_is_written_shows(monkeypatch, kernels, rng):
    """Every operator and every function, exchanged for another one."""
    changes = {"+": "-", "*": "/", "<=": "<", "where": "{0} ? {2} : {1}", "exp": "log"}
    seen = set()
    for sign, other in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr("xnet.formulas._kept", {})
            if sign == "where":
                patch.setattr(generated.Cuda, "choice", other)
            else:
                words = {**generated.Cuda.words, sign: generated.Cuda.words.get(other, other)}
                patch.setattr(generated.Cuda, "words", words)
            for operation in variants("pointwise", "loss", altered=False):
                try:
                    calls = of_operation(rng, wild, (9, 33), "float64", operation)
                    compare(lambda _: resolve("cupy", True), calls)
                except AssertionError:
                    seen.add(sign)
                    break
    assert seen == set(changes)


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
        ("divergent", lambda x: (x, np.int32(3)), "i4"),
        ("divergent", lambda x: (x.astype(np.float32), np.int64(3)), "f4"),
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
    source, names = together(instances(kernels.BY_HAND.values(), mode), mode)
    code, names = kernels.compiled(source, names, options, "80")
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


@pytest.mark.slow
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
