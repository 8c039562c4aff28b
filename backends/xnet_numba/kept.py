# pyright: basic, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""What Numba compiles of ours, kept on disk: a file for each function and types of arguments.

Numba's own cache knows a function by the file that it stands in: an edit to another one, or other
options, give what was compiled before. What was damaged it runs, and without a folder that can be
written it does not compile at all. Here each state of our sources, with the versions of what
compiles them, has a folder of its own, and each file begins with a hash of what is in it.
"""

import contextlib
import hashlib
import io
import os
import pickle
import shutil
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

import llvmlite
import numba
import numpy as np
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

import xnet
from xnet import exact, formulas, gradient, operations, perturbation, threads

SOURCES = (exact, formulas, gradient, operations, perturbation, threads)
"""Modules of the library that compiled code takes something from, beside this package's own."""

STATES = 16
"""How many folders are kept: of so many states of our sources, those that were last in use."""

SEAL = 32
"""Bytes of the hash at the beginning of a file."""


@cache
def _state():
    """The name of what compiled code depends on beside its own function and its options."""
    versions = (xnet, numba, llvmlite, np)
    python = sys.implementation.cache_tag, sys.flags.optimize
    text = f"{python} {[module.__version__ for module in versions]}"
    digest = hashlib.sha256(text.encode())
    for path in (*sorted(Path(__file__).parent.glob("*.py")), *(str(m.__file__) for m in SOURCES)):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:24]


def _places():
    """Where a folder may be, the first choice first, in which there is one for each state."""
    named = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    if named:
        yield Path(named) / "xnet"
    with contextlib.suppress(RuntimeError):  # nobody's home
        yield Path.home() / ".cache" / "xnet"
    with contextlib.suppress(OSError):  # no temporary folder
        yield Path(tempfile.gettempdir()) / f"xnet-{os.getuid() if hasattr(os, 'getuid') else ''}"


@cache
def folder():
    """Where what is compiled is kept, the user's cache or the temporary folder; None if nowhere.

    It may be one that can only be read, with what was compiled when a container was built.
    """
    for place in _places():
        with contextlib.suppress(OSError):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _trusted(place):
                continue
            states = place / "numba"
            new = states / _state()
            if new.exists():
                with contextlib.suppress(OSError):
                    os.utime(new)
                return new
            new.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # another process may be at the same
                _leave_the_last(states)
            return new
    return None


def _trusted(place):
    """Whether nobody else can put code there that this process would run."""
    return not hasattr(os, "getuid") or place.stat().st_uid in (os.getuid(), 0)


def _leave_the_last(states):
    """Delete the folders of states that are no longer in use."""
    used = sorted(states.iterdir(), key=lambda state: state.stat().st_mtime)
    for state in used[:-STATES]:
        shutil.rmtree(state, ignore_errors=True)


def writable():
    """Whether what is compiled now is there the next time."""
    place = folder()
    return place is not None and os.access(place, os.W_OK | os.X_OK)


class _Unpickler(pickle.Unpickler):
    """Admits machine code and the types that it is for, and nothing else that could be called."""

    TYPES = "numba.core.types."
    ADMITTED = frozenset(
        {
            ("numba.core.environment", "_rebuild_env"),
            ("numba.core.funcdesc", "PythonFunctionDescriptor"),
            ("numba.core.types.abstract", "_type_reconstructor"),
            ("numba.core.typing.templates", "Signature"),
            ("copyreg", "_reconstructor"),
            ("builtins", "object"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module, name):
        if (module, name) in self.ADMITTED:
            return super().find_class(module, name)
        if module.startswith(self.TYPES) and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"it names {module}.{name}, which nothing compiled does")


class Kept(NullCache):
    """Numba's cache of one function, which is compiled with these options."""

    def __init__(self, function, options):
        self.function = function
        options = {k: sorted(v) if isinstance(v, set) else v for k, v in options.items()}
        closure = [cell.cell_contents for cell in function.__closure__ or ()]
        at = function.__module__, function.__qualname__, function.__code__.co_firstlineno
        self.named = at, closure, sorted(options.items())

    def _file(self, signature, codegen):
        """Its path, None if there is no place; and a hash to go on with over its content."""
        key = hashlib.sha256(repr((self.named, signature, codegen.magic_tuple())).encode())
        name, place = f"{self.function.__name__}-{key.hexdigest()[:32]}", folder()
        return None if place is None else place / name, key

    def load_overload(self, sig, target_context):
        """What was compiled for these types; None if it is not there whole."""
        target_context.refresh()
        path, key = self._file(sig, target_context.codegen())
        try:
            content = path.read_bytes() if path else b""
        except OSError:
            return None
        key.update(content[SEAL:])
        if key.digest() != content[:SEAL]:
            return None  # it is compiled anew and written again
        try:
            parts = _Unpickler(io.BytesIO(content[SEAL:])).load()
            return CompileResult._rebuild(target_context, *parts)
        except Exception as error:
            warnings.warn(
                f"what Numba compiled of {self.function.__qualname__} cannot be loaded and is "
                f"compiled anew ({error!r}); if this comes again, delete {path.parent}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None

    def save_overload(self, sig, data):
        """Keep it, if there is a place and room."""
        path, key = self._file(sig, data.codegen)
        if path is None or data.lifted or data.library.has_dynamic_globals:
            return
        content = dumps(data._reduce())
        key.update(content)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)  # another process may have deleted it
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(key.digest() + content)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
