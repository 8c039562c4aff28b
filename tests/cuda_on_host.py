"""A stand-in for CuPy that runs its kernels on the host: NumPy arrays that claim a device.

`cuda_on_host.cpp` runs the threads. The stand-in also checks what CUDA would not: that each
argument has the type of its parameter, and that nothing is written outside the arrays that `empty`
gave.
"""

import atexit
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache, wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np

HEADER, RUNTIME = (Path(__file__).with_suffix(suffix) for suffix in (".h", ".cpp"))
COMPILER = shutil.which("g++") or shutil.which("clang++")
NO_COMPILER = "neither g++ nor clang++ is here to compile CUDA kernels for the host"
OPTIONS = ("-std=c++17", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-fPIC", "-shared")

KEPT = Path(__file__).parents[1] / ".pytest_cache" / "cuda_on_host"
"""Where what was compiled is kept, by its content, for the other workers and the next run."""

KEPT_DAYS = 7
"""What was not asked for as long is removed."""

GUARD = 64
"""Elements on either side of an array from `empty` that no kernel may write to."""

GARBAGE = 0xA5
"""What `empty` fills its arrays with, byte by byte: what is left of it was not written."""

CACHE = tempfile.TemporaryDirectory(prefix="xnet-cupy-")
atexit.register(CACHE.cleanup)

descending = False
"""Whether threads and blocks take turns from the last to the first."""


# -- arrays and devices


class Device:
    current = 0
    compute_capability = "90"

    def __init__(self, index=None):
        self.id = Device.current if index is None else index

    def __enter__(self):
        self.before, Device.current = Device.current, self.id
        self.silence = np.errstate(all="ignore")  # a device never warns
        self.silence.__enter__()

    def __exit__(self, *exception):
        self.silence.__exit__(*exception)
        Device.current = self.before

    def synchronize(self):
        Device.synchronized = self.id


class Array(np.ndarray):
    """A NumPy array that claims to live on the device that was current when it was made.

    As of CuPy's, what has no axes is still an array.
    """

    def __array_finalize__(self, source):
        self._index = Device.current

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return array.view(Array)

    def __getitem__(self, key):
        return on_device(super().__getitem__(key))

    @property
    def device(self):
        return SimpleNamespace(id=self._index)

    def __dlpack_device__(self):
        return 2, self._index

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


def on_device(result):
    """What NumPy returned, as CuPy would have."""
    if isinstance(result, tuple | list):
        return type(result)(map(on_device, result))
    if isinstance(result, np.ndarray | np.generic) and not isinstance(result, Array):
        return np.asarray(result).view(Array)
    return result


def asarray(values, dtype=None, **kwargs):
    kwargs.pop("device", None)
    if isinstance(values, Array):
        return np.asanyarray(values, dtype=dtype, **kwargs)
    return np.array(values, dtype=dtype, **kwargs).view(Array)


def empty(shape, dtype=float):
    count = int(np.prod(shape, dtype=int))
    guarded = np.full((count + 2 * GUARD) * np.dtype(dtype).itemsize, GARBAGE, np.uint8)
    return guarded.view(dtype)[GUARD : GUARD + count].reshape(shape).view(Array)


def assert_guards_stand(array):
    while isinstance(array.base, np.ndarray):
        array, inner = array.base, array
    if array.dtype == np.uint8 and inner.dtype != np.uint8:
        guard = GUARD * inner.itemsize
        outside = np.concatenate([array[:guard], array[-guard:]])
        assert (outside == GARBAGE).all(), "written outside the array"


class Namespace(ModuleType):
    """NumPy's functions, giving arrays of the stand-in."""

    def __getattr__(self, name):
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found

        @wraps(found, updated=())
        def function(*args, **kwargs):
            kwargs.pop("device", None)
            return on_device(found(*args, **kwargs))

        return function


# -- kernels


@cache
def folder():
    """A folder for what is compiled; one of this process alone where `KEPT` cannot be written."""
    try:
        KEPT.mkdir(parents=True, exist_ok=True)
        for file in KEPT.iterdir():
            if time.time() - file.stat().st_mtime > 86400 * KEPT_DAYS:
                file.unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=KEPT):
            return KEPT
    except OSError:
        return Path(CACHE.name)


def built(source):
    """The library that the host's compiler makes of C++, loaded for all that are loaded later."""
    described = repr((source, HEADER.read_text(), compiler_version(), OPTIONS))
    path = folder() / f"{hashlib.sha256(described.encode()).hexdigest()}.so"
    if path.exists():
        os.utime(path)
    else:
        with tempfile.TemporaryDirectory(prefix="xnet-cuda-") as scratch:
            unit = Path(scratch) / "unit.cpp"
            unit.write_text(source)
            made = path.with_suffix(f".{os.getpid()}")
            command = [COMPILER, *OPTIONS, f"-I{HEADER.parent}", "-o", made, unit]
            subprocess.run(command, check=True)
        os.replace(made, path)  # whole or not at all
    return path


@cache
def compiler_version():
    return subprocess.run([COMPILER, "--version"], capture_output=True, check=True).stdout


@cache
def runtime():
    """What runs the threads, where the kernels find it."""
    loaded = ctypes.CDLL(built(RUNTIME.read_text()), mode=ctypes.RTLD_GLOBAL)
    loaded.launch.restype = ctypes.c_char_p
    return loaded


def variants(name):
    """The instances of a kernel for each type of number and each mode.

    They are compiled together: the compiler takes as long to begin as for three of them.
    """
    found = [name]
    for one, other in (("float", "double"), ("Fast", "Exact")):
        pattern = re.compile(rf"\b(?:{one}|{other})\b")
        found = [pattern.sub(word, text) for text in found for word in (one, other)]
    return tuple(sorted(set(found)))


def compiled(names, source):
    """The kernels `names` of `source`, compiled for the host without contraction."""
    return _compiled(tuple(sorted({v for name in names for v in variants(name)})), source)


@cache
def _compiled(names, source):
    entries = "".join(
        f'extern "C" const char* signature_{k}() {{ return host::signature(&{name}); }}\n'
        f'extern "C" void call_{k}(void** arguments) {{ host::call(&{name}, arguments); }}\n'
        for k, name in enumerate(names)
    )
    runtime()
    loaded = ctypes.CDLL(built(f'#include "{HEADER.name}"\n{source}\n{entries}'))
    found = {}
    for k, name in enumerate(names):
        signature, call = getattr(loaded, f"signature_{k}"), getattr(loaded, f"call_{k}")
        signature.restype = ctypes.c_char_p
        found[name] = signature().decode().split(), ctypes.cast(call, ctypes.c_void_p)
    return found


class Function:
    def __init__(self, loaded, name):
        self.name = name
        self.parameters, self.address = loaded[name]

    def kind(self, argument):
        """As `signature` calls the type of a parameter, if the argument can be passed at all."""
        if isinstance(argument, Array):
            usable = argument.flags.c_contiguous and argument.device.id == Device.current
            if not usable:
                return "an array that is not packed, or elsewhere"
            return f"{argument.dtype.str[1:]}*"
        if isinstance(argument, np.generic):
            return argument.dtype.str[1:]
        return type(argument).__name__

    def __call__(self, grid, block, arguments):
        found = [self.kind(argument) for argument in arguments]
        assert found == self.parameters, f"{self.name} is given {found}, takes {self.parameters}"
        values = [
            ctypes.c_void_p(argument.ctypes.data)
            if isinstance(argument, Array)
            else ctypes.create_string_buffer(argument.tobytes())
            for argument in arguments
        ]
        addresses = [ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values]
        error = runtime().launch(
            self.address,
            (ctypes.c_uint * 3)(*grid, *[1] * (3 - len(grid))),
            (ctypes.c_uint * 3)(*block, *[1] * (3 - len(block))),
            (ctypes.c_void_p * len(addresses))(*addresses),
            ctypes.c_bool(descending),
        )
        assert not error, error.decode()
        for argument in arguments:
            if isinstance(argument, Array):
                assert_guards_stand(argument)


class Program:
    """What NVRTC has of a compilation; here the compiler is the host's."""

    def __init__(self, source):
        self.source, self.names, self.options = source, [], None


PROGRAMS = {}
"""What was compiled, by the code that stands for it."""


def compile_program(program, options):
    program.options = options
    compiled(tuple(program.names), program.source)


def binary(program):
    code = hashlib.sha256(repr((program.names, program.source)).encode()).digest()
    PROGRAMS[code] = program
    return code


class Module:
    def load(self, code):
        program = PROGRAMS[code]
        self.loaded = compiled(tuple(program.names), program.source)

    def get_function(self, name):
        return Function(self.loaded, name.removeprefix("lowered "))


def modules():
    """The stand-in's modules, by the names they are imported by."""
    runtime = SimpleNamespace(getDeviceCount=lambda: 2, CUDARuntimeError=RuntimeError)
    nvrtc = SimpleNamespace(
        NVRTCError=subprocess.CalledProcessError,
        getVersion=lambda: (12, 9),
        getSupportedArchs=lambda: (70, 80, 90),
        createProgram=lambda source, name, headers, includes: Program(source),
        addNameExpression=lambda program, name: program.names.append(name),
        compileProgram=compile_program,
        getProgramLog=lambda program: "",
        getCUBIN=binary,
        getPTX=binary,
        getLoweredName=lambda program, name: f"lowered {name}",
        destroyProgram=lambda program: None,
    )
    cupy, xp = Namespace("cupy"), Namespace("array_api_compat.cupy")
    cupy.ndarray, cupy.asnumpy = Array, np.asarray
    cupy.cuda = ModuleType("cupy.cuda")
    cupy.cuda.runtime, cupy.cuda.nvrtc = runtime, nvrtc
    cupy.cuda.Device, cupy.cuda.Module = Device, Module
    for namespace in (cupy, xp):
        namespace.asarray, namespace.empty = asarray, empty
        namespace.empty_like = lambda a: empty(a.shape, a.dtype)
        namespace.__spec__ = ModuleSpec(namespace.__name__, None)
    return {"cupy": cupy, "cupy.cuda": cupy.cuda, "array_api_compat.cupy": xp}


@cache
def stand_in():
    """The stand-in's modules, and the module that launches kernels, imported over them."""
    import xnet_cupy

    found, name, package = modules(), "xnet_cupy.kernels", vars(xnet_cupy)
    before = sys.modules.pop(name, None), package.pop("kernels", None)
    with mock.patch.dict(sys.modules, found):
        kernels = import_module(name)
    del package["kernels"]
    sys.modules.pop(name, None)
    if before[0] is not None:
        sys.modules[name], package["kernels"] = before
    return found, kernels


def install(monkeypatch):
    """Make `import cupy` find the stand-in, with two devices, and return it."""
    import xnet_cupy
    from xnet_numpy import NumpyBackend

    from xnet import backend as registry

    found, kernels = stand_in()
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    # Both places that know the module that imports CuPy.
    monkeypatch.setitem(sys.modules, "xnet_cupy.kernels", kernels)
    monkeypatch.setattr(xnet_cupy, "kernels", kernels, raising=False)
    monkeypatch.setenv("CUPY_CACHE_DIR", CACHE.name)
    monkeypatch.setattr(registry, "_instances", {})
    # The stand-in's array is a NumPy array underneath, which a CuPy array is not.
    owns = NumpyBackend.owns
    monkeypatch.setattr(
        NumpyBackend, "owns", lambda self, a: owns(self, a) and not isinstance(a, Array)
    )
    return found["cupy"]


def is_stand_in(backend):
    """Whether `backend` runs CUDA kernels on the host."""
    return backend.name == "cupy" and isinstance(backend.xp, Namespace)
