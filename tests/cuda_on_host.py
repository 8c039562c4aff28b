"""A stand-in for CuPy that runs kernels.cu on the host: NumPy arrays that claim a device.

`cuda_on_host.h` runs the threads. The stand-in also checks what CUDA would not: that each argument
has the type of its parameter, and that nothing is written outside the arrays that `empty` gave.
"""

import ctypes
import hashlib
import shutil
import subprocess
import sys
import tempfile
from functools import cache, wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

HEADER = Path(__file__).with_suffix(".h")
COMPILER = shutil.which("g++") or shutil.which("clang++")
NO_COMPILER = "neither g++ nor clang++ is here to compile CUDA kernels for the host"
OPTIONS = ("-std=c++17", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-fPIC", "-shared")

GUARD = 64
"""Elements on either side of an array from `empty` that no kernel may write to."""

GARBAGE = 0xA5
"""What `empty` fills its arrays with, byte by byte: what is left of it was not written."""

CACHE = tempfile.TemporaryDirectory(prefix="xnet-cupy-")

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
def compiled(names, source):
    """The kernels `names` of `source`, compiled for the host without contraction."""
    folder = Path(tempfile.mkdtemp(prefix="xnet-cuda-"))
    entries = "".join(f'host::entries["{name}"] = host::entry(&{name});\n' for name in names)
    (folder / "host.cpp").write_text(
        f'#include "{HEADER}"\n{source}\n'
        f"static const bool ready = [] {{\n{entries}return true;\n}}();\n"
    )
    subprocess.run([COMPILER, *OPTIONS, "-o", folder / "host.so", folder / "host.cpp"], check=True)
    loaded = ctypes.CDLL(folder / "host.so")
    shutil.rmtree(folder)
    loaded.signature.restype = loaded.launch.restype = ctypes.c_char_p
    return loaded


class Function:
    def __init__(self, loaded, name):
        self.loaded, self.name = loaded, name.encode()
        self.parameters = loaded.signature(self.name).decode().split()

    def kind(self, argument):
        """As `signature` calls the type of a parameter, if the argument can be passed at all."""
        if isinstance(argument, Array):
            usable = argument.flags.c_contiguous and argument.device.id == Device.current
            return f"{argument.dtype}*" if usable else "an array that is not packed, or elsewhere"
        return argument.dtype.name if isinstance(argument, np.generic) else type(argument).__name__

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
        error = self.loaded.launch(
            self.name,
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


def install(monkeypatch):
    """Make `import cupy` find the stand-in, with two devices, and return it."""
    import xnet_cupy
    from xnet_numpy import NumpyBackend

    from xnet import backend as registry

    found = modules()
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    # The module that imports CuPy is imported anew, and both places that know it are patched.
    name, package = "xnet_cupy.kernels", vars(xnet_cupy)
    before = sys.modules.pop(name, None), package.pop("kernels", None)
    over_stand_in = import_module(name)
    del sys.modules[name], package["kernels"]
    if before[0] is not None:
        sys.modules[name], package["kernels"] = before
    monkeypatch.setitem(sys.modules, name, over_stand_in)
    monkeypatch.setattr(xnet_cupy, "kernels", over_stand_in, raising=False)
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
