"""Numba's kernels of reproducible mode, compiled for other processors, and searched for fusing.

A program, for its kernels have to be compiled anew and are not kept. It lets the library compute
in reproducible mode, takes what Numba hands to LLVM of every kernel, and has LLVM compile that for
`TARGETS`, as it would there; no emulator is needed. See `test_cross_compile.py`.
"""

import json
import os
import re
from dataclasses import dataclass

if __name__ == "__main__":
    os.environ["NUMBA_OPT"] = "0"  # what is taken is optimised for each target, here it need not be

import llvmlite.binding as llvm
import numpy as np
from xnet_numba import generated, products
from xnet_numba.kept import Kept

from xnet import operations
from xnet.backend import resolve
from xnet.testing import parity
from xnet.testing.contracts import CONTRACTS


@dataclass(frozen=True)
class Target:
    """A processor that LLVM compiles for.

    `fused` matches its instructions that multiply and add with one rounding, of numbers and
    vectors, by its architecture's manual.
    """

    triple: str
    fused: str
    cpu: str = ""
    features: str = ""


TARGETS = {
    "aarch64": Target("aarch64-unknown-linux-gnu", r"fn?m(?:add|sub)|f(?:c?mla|mls|ml[as]l2?)"),
    "riscv64": Target(
        "riscv64-unknown-linux-gnu",
        r"v?fw?n?m(?:add|sub|acc|sac)\.(?:s|d|vv|vf)",
        features="+m,+a,+f,+d,+c,+v",
    ),
    "s390x": Target("s390x-unknown-linux-gnu", r"m[as][de]br?|[vw]fn?m[as][ds]b", cpu="z14"),
    "ppc64le": Target(
        "powerpc64le-unknown-linux-gnu", r"fn?m(?:add|sub)s?|x[sv]n?m(?:add|sub)[am][sd]p"
    ),
}
"""All of these fuse where they may, and have vectors; aarch64 always."""


@dataclass(frozen=True)
class Kernel:
    """What Numba makes of a function: its names, and LLVM's intermediate language."""

    name: str
    symbol: str
    text: str
    everywhere: bool
    """Whether it is compiled for every target, or for the first alone."""

    def fused(self, target):
        """The instructions, each once, that multiply and add with one rounding there."""
        machine = llvm.Target.from_triple(target.triple).create_target_machine(
            cpu=target.cpu, features=target.features, opt=3
        )
        text = re.sub(r"^target .*$", "", self.text, flags=re.M)
        # All in it that is of this processor: that a thread looks on (`intrinsics.pause`).
        text = re.sub(r"^.*call void @llvm\.x86\.sse2\.pause.*$", "", text, flags=re.M)
        module = llvm.parse_assembly(text)
        module.triple, module.data_layout = target.triple, str(machine.target_data)
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3))
        passes.getModulePassManager().run(module, passes)
        # Or the C library's function, where the processor has no such instruction.
        searched = rf"^\s+({target.fused})\s|[\s,](fmaf?)(?:@\w+)?$"
        found = re.finditer(searched, machine.emit_assembly(module), flags=re.M)
        return sorted({match[1] or match[2] for match in found})


class Kernels(list):
    """Every kernel of ours that is compiled from now on, or until there is another such list."""

    during, everywhere = "", True

    def __init__(self):
        def take(kept, signature, data):
            (module, name, _), *_ = kept.named
            data.library._ensure_finalized()  # with all that it calls
            named = f"{module}.{name} {signature}, compiled for {self.during}"
            text = data.library.get_llvm_str()
            self.append(Kernel(named, data.fndesc.mangled_name, text, self.everywhere))

        Kept.load_overload = lambda *_: None
        Kept.save_overload = take

    def searched(self):
        """For each that is not part of another: its name, and what is fused on which target."""
        whole = [k for k in self if not any(k.symbol in o.text for o in self if o is not k)]
        return [
            {
                "name": kernel.name,
                "fused": {
                    name: kernel.fused(target)
                    for name, target in TARGETS.items()
                    if kernel.everywhere or name == next(iter(TARGETS))
                },
            }
            for kernel in whole
        ]


def reproducible_mode():
    """Kernels of all that there is, in float32, and of what that is made of, in float64."""
    backend, kernels = resolve("numba", reproducible=True), Kernels()
    trials = [trial for trial in parity.trials() if trial.name not in CONTRACTS]
    for dtype, chosen in (("float32", trials), ("float64", parity.BASICS)):
        kernels.everywhere = dtype == "float64"
        for trial in chosen:
            if dtype in trial.dtypes:
                kernels.during = f"{trial.name} in {dtype}"
                draw = parity.numbers("normal", dtype, 0)
                inputs = [array.astype(dtype) for array in trial.arrays(draw)]
                with np.errstate(all="ignore"):
                    parity.results(trial, backend, inputs)
    return kernels


def fast_mode():
    """Kernels of an operation's loop in fast mode, which may fuse."""
    kernels = Kernels()
    kernels.during = "fast mode"
    for dtype in map(np.dtype, ("float32", "float64")):
        generated.forward(operations.Tanh(), dtype, generated.FAST)
    return kernels


def without_products_of_fast_mode():
    """Leave no product but those of slices: whoever calls one, at address 0, ends this program."""
    products.routines = lambda dtype, gradient=False: np.zeros(len(products._ROUTINES), np.int64)


def main():
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    without_products_of_fast_mode()
    found = {make.__name__: make().searched() for make in (reproducible_mode, fast_mode)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
