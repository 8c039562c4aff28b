# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""How kernels are compiled, and how many threads run them when."""

import contextlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import import_module

import numba
from numba import njit, types
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.core.event import Listener, install_listener

from xnet import threads
from xnet_numba import kept
from xnet_numba.kept import Kept

with contextlib.suppress(ImportError):  # no kernel of ours needs it
    import_module("scipy.linalg")  # Numba loads its BLAS, sooner or later: now it can be limited
threads.apply_to_blas()


class _Announcement(Listener):
    """Says on stderr, once a process, that kernels are being compiled, and shows how many.

    It listens only while something of ours is compiled; another thread may compile its own then.
    """

    def __init__(self):
        self.count = 0

    def on_start(self, event):
        function = getattr(event.data.get("dispatcher"), "py_func", None)
        if not str(getattr(function, "__module__", "")).startswith("xnet_"):
            return
        self.count += 1
        if self.count == 1:
            print(f"xnet: compiling Numba kernels; {_kept()}", file=sys.stderr)
        elif sys.stderr.isatty():
            print(f"\rxnet: {self.count} kernels", end="", file=sys.stderr, flush=True)

    def on_end(self, event):
        pass


def _kept():
    if kept.writable():
        return "they are kept for the next time"
    return "no folder to keep them in can be written: NUMBA_CACHE_DIR may name one"


_announcement = _Announcement()


def _undisturbed(compile_it, *arguments):
    """Compile, and say so, where no Ctrl-C comes.

    Numba that is interrupted while it sets itself up compiles nothing more in this process. Python
    raises a Ctrl-C in the main thread, which here waits for another: it comes when that is done.
    """
    # What this thread is compiling, a user's function too, calls ours: no other thread may compile.
    if global_compiler_lock.is_locked():
        return compile_it(*arguments)

    def compile_and_say():
        with install_listener("numba:compile", _announcement):
            return compile_it(*arguments)

    if threading.current_thread() is not threading.main_thread():
        return compile_and_say()
    with ThreadPoolExecutor(1, "xnet-compiling") as executor:
        return executor.submit(compile_and_say).result()


OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "reassoc"}}
"""Of fast mode. "numpy": a division by 0 gives inf or NaN; the branch that would raise keeps loops
scalar. "contract" allows fused multiply-adds, "reassoc" lets a sum be kept in several lanes."""


def compiled(**options):
    """A decorator, `numba.njit` with these options."""

    def decorate(function):
        dispatcher = njit(**options)(function)
        dispatcher._cache = Kept(function, options)
        dispatcher.compile = partial(_undisturbed, dispatcher.compile)
        return dispatcher

    return decorate


# What compiled code calls; what Python calls, while its other threads go on; and as written, for
# what reproducible mode takes too.
_serial = compiled(**OPTIONS)
_alone = compiled(nogil=True, **OPTIONS)
_strict = compiled(error_model="numpy")


@cache
def routine(function, *arguments, options=None):
    """Where a function without result is, compiled for these types; its callers need not know it.

    Fast mode's options, or others, hold for it alone: called by its address, it is never part of
    what calls it. The address is this process's: it is handed to compiled code and not kept in it.
    """
    options = OPTIONS if options is None else dict(options)
    if "fastmath" in options:
        options["fastmath"] = set(options["fastmath"])
    kernel = CFunc(function, (arguments, types.void), {}, options)
    kernel._cache = Kept(function, options)
    _undisturbed(kernel.compile)
    _routines.append(kernel)
    return kernel.address


def address(array):
    """Where an array's numbers are."""
    # Not by __array_interface__: describing a record, NumPy swallows what is raised, Ctrl-C too.
    return array.ctypes.data


_routines = []  # what is compiled lives as long as these do


def thread_count():
    """How many threads a kernel may use: so many as Numba may, if fewer were not asked for."""
    most = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportPrivateImportUsage]
    return min(most, threads.num_threads())
