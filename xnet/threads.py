"""How many threads compute: one number for Numba, BLAS and whatever else a backend runs.

`XNET_NUM_THREADS` sets it from outside, before the first backend is used; `set_num_threads` from
inside. Without either, each library decides for itself, which is one thread for each processor.
"""

import contextlib
import operator
import os
from collections.abc import Generator
from importlib import import_module
from typing import Any

__all__ = ["num_threads", "set_num_threads"]

_chosen: int | None = None


def processors() -> int:
    """How many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def num_threads() -> int:
    """How many threads compute at most: what was set, else one for each processor.

    Returns
    -------
    int
        At least 1.

    Examples
    --------
    >>> import xnet
    >>> before = xnet.num_threads()
    >>> _ = xnet.set_num_threads(1)
    >>> xnet.num_threads()
    1
    >>> _ = xnet.set_num_threads(before)
    """
    return processors() if _chosen is None else _chosen


def set_num_threads(count: int) -> int:
    """Let `count` threads compute, in Numba's kernels and in BLAS alike.

    The products inside Numba's kernels run on the thread that asks for them, and BLAS called from
    one is held to one thread, so there are never more than `count`.

    Parameters
    ----------
    count
        At least 1. More than there are processors are not used.

    Returns
    -------
    int
        How many there are now.

    Raises
    ------
    TypeError
        `count` is not a whole number.
    ValueError
        `count` is below 1.

    Examples
    --------
    >>> import xnet
    >>> before = xnet.num_threads()
    >>> xnet.set_num_threads(1), xnet.num_threads()
    (1, 1)
    >>> xnet.set_num_threads(before) == before
    True
    """
    global _chosen
    try:
        count = operator.index(count)
    except TypeError:
        raise TypeError(f"count is {count!r}, expected a whole number of threads") from None
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1 thread")
    _chosen = min(count, processors())
    _limit_blas(_chosen)
    return _chosen


def set_from_environment() -> None:
    """Do as XNET_NUM_THREADS says, if nothing has been set yet.

    Raises
    ------
    ValueError
        It is not a whole number of at least 1.
    """
    value = os.environ.get("XNET_NUM_THREADS", "").strip()
    if _chosen is None and value:
        if not (value.isascii() and value.isdigit() and int(value) > 0):
            raise ValueError(f"XNET_NUM_THREADS is {value!r}, expected a whole number, 1 or more")
        set_num_threads(int(value))


@contextlib.contextmanager
def shared(processes: int) -> Generator[None]:
    """Block in which so many processes share this machine's processors, if no number was set.

    Each has an equal part of them, one at least; a BLAS that was held to fewer stays so.
    """
    global _chosen
    if _chosen is not None or processes == 1:
        yield
        return
    _chosen = max(1, processors() // processes)
    lowered = [(library, library.num_threads) for library in _blas()]
    lowered = [(library, before) for library, before in lowered if before > _chosen]
    try:
        for library, _ in lowered:
            library.set_num_threads(_chosen)
        yield
    finally:
        _chosen = None
        for library, before in lowered:
            library.set_num_threads(before)


def apply_to_blas() -> None:
    """Hold BLAS libraries that have been loaded since to the number that was set."""
    if _chosen is not None:
        _limit_blas(_chosen)


def _limit_blas(count: int) -> None:
    for library in _blas():
        library.set_num_threads(count)


def _blas() -> list[Any]:
    """The BLAS libraries that are loaded, NumPy's among them."""
    import_module("numpy")
    controller: Any = import_module("threadpoolctl").ThreadpoolController()
    return controller.select(user_api="blas").lib_controllers
