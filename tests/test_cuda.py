"""kernels.cu without a GPU: compiled for three generations, searched, and run on the host.

Where there is a GPU, the tests that run kernels run them there too. The kernels' values in fast
mode are tested with every backend's, in test_kernels.py.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import cuda_on_host
import numpy as np
import nvrtc as wheels
import pytest
import xnet_cupy
from conftest import DTYPES, property_settings, require_host_cuda
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import xnet
from xnet import perturbation
from xnet.backend import Backend, resolve

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
    if wheels.LIBRARY is None:
        pytest.skip(wheels.NO_NVRTC)
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
    if wheels.DISASSEMBLER is None:
        pytest.skip(wheels.NO_DISASSEMBLER)
    code = machine_code(compiler, capability, "--fmad=false")
    assert len(code) >= 16
    assert not [name for name, body in code.items() if MACHINE_FUSED.search(body)]
    assert any("DMUL" in body and "DADD" in body for body in code.values())
    contracted = machine_code(compiler, capability, "--fmad=true")
    fused = {name for name, body in contracted.items() if MACHINE_FUSED.search(body)}
    assert fused >= {"apply<float, Exp<Exact>>", "apply<double, Exp<Exact>>"}
