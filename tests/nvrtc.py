"""NVIDIA's compiler and disassembler from their wheels: neither needs a GPU or a driver.

`Nvrtc` has the functions that CuPy's `cupy.cuda.nvrtc` has of the same names.
"""

import ctypes
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def _in_wheels(pattern):
    """The file that matches `pattern` under the folders of NVIDIA's wheels, or None."""
    spec = find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((found for folder in folders for found in sorted(Path(folder).glob(pattern))), None)


NO_NVRTC = "NVRTC 12, which knows sm_70, is not here: pip install nvidia-cuda-nvrtc-cu12"
NO_DISASSEMBLER = "nvdisasm is not here: pip install nvidia-cuda-nvdisasm"
LIBRARY = _in_wheels("cuda_nvrtc/lib/libnvrtc.so.12")
DISASSEMBLER = _in_wheels("*/bin/nvdisasm")


class NVRTCError(RuntimeError):
    pass


class Nvrtc:
    NVRTCError = NVRTCError

    def __init__(self):
        self.functions = ctypes.CDLL(str(LIBRARY))
        self.functions.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(self, function, *arguments):
        status = getattr(self.functions, function)(*arguments)
        if status:
            raise NVRTCError(self.functions.nvrtcGetErrorString(status).decode())

    def text(self, function, program):
        size = ctypes.c_size_t()
        self.call(f"{function}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(function, program, buffer)
        return buffer.raw

    def getVersion(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def getSupportedArchs(self):
        count = ctypes.c_int()
        self.call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self.call("nvrtcGetSupportedArchs", found)
        return tuple(found)

    def createProgram(self, source, name, headers, includes):
        program = ctypes.c_void_p()
        self.call(
            *("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode()),
            *(0, None, None),
        )
        return program

    def addNameExpression(self, program, name):
        self.call("nvrtcAddNameExpression", program, name.encode())

    def compileProgram(self, program, options):
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        self.call("nvrtcCompileProgram", program, len(options), array)

    def getProgramLog(self, program):
        return self.text("nvrtcGetProgramLog", program).rstrip(b"\0").decode()

    def getCUBIN(self, program):
        return self.text("nvrtcGetCUBIN", program)

    def getPTX(self, program):
        return self.text("nvrtcGetPTX", program)

    def getLoweredName(self, program, name):
        lowered = ctypes.c_char_p()
        self.call("nvrtcGetLoweredName", program, name.encode(), ctypes.byref(lowered))
        return lowered.value.decode()

    def destroyProgram(self, program):
        self.call("nvrtcDestroyProgram", ctypes.byref(program))


class Recorder(Nvrtc):
    """Also keeps what the compiler said, and the assembly of each compilation."""

    def compileProgram(self, program, options):
        super().compileProgram(program, options)
        self.log, self.ptx = self.getProgramLog(program), self.getPTX(program).decode()


@cache
def disassembled(binary):
    """The machine instructions of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        ran = subprocess.run(
            [DISASSEMBLER, "-c", file.name], capture_output=True, text=True, check=True
        )
    return ran.stdout
