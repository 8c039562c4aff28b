# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""The numerical gradient of a function that Numba has compiled: the loop around it, compiled too.

Threads are Python's, each in a compiled loop that holds no lock: what f raises comes back as any
exception does, and Ctrl-C is heard, which is not so of Numba's own parallel loops.
"""

import numbers
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import lru_cache

import numba
import numpy as np

from xnet import threads
from xnet.gradient import refuse_changed
from xnet_numba.compiling import thread_count

WORTH_THREADS = 1e-3
"""Seconds of work from which starting threads pays."""

HEARS_AFTER = 0.1
"""Seconds after which a Ctrl-C is heard at the latest: Python misses one just before a wait."""

PIECES_PER_THREAD = 4
"""f may take longer for some elements than for others."""


_numbas_threads = threading.Lock()
"""Held for an f that takes Numba's threads itself: not all of the pools that they can come from
take two callers."""


def _after_fork():
    """No thread of the parent's holds a child's lock."""
    global _numbas_threads
    _numbas_threads = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@lru_cache(maxsize=64)  # a user's program has few such functions, and each loop holds its f
def _loop(f):
    @numba.njit(nogil=True)
    def loop(x, flat, up, down, start, above, below, stop):
        """`flat` is x, whose elements from `start` on are perturbed in turn until `stop`."""
        for k in range(above.size):
            if stop[0]:
                return
            i = start + k
            value = flat[i]
            flat[i] = up[i]
            above[k] = f(x)
            flat[i] = down[i]
            below[k] = f(x)
            flat[i] = value

    return loop


def compiled_values(f, x, up, down, span):
    """See `Backend.compiled_values`."""
    above, below = np.empty(len(span)), np.empty(len(span))
    if not span:
        return above, below
    count = thread_count()
    if not f.targetoptions.get("parallel", False):
        _differences(f, x, up, down, span, above, below, count)
        return above, below
    with _numbas_threads:
        _differences(f, x, up, down, span, above, below, 1, count)
    return above, below


def _differences(f, x, up, down, span, above, below, threads, own_threads=0):
    """Fill `above` and `below` by so many threads, in which f takes so many of Numba's own."""
    seconds = 2 * len(span) * _checked(f, x)
    pieces = 1 if seconds < WORTH_THREADS else min(len(span), threads * PIECES_PER_THREAD)
    stop = np.zeros(1, np.bool_)
    up, down = up.reshape(-1), down.reshape(-1)

    def run(piece):
        if own_threads:
            numba.set_num_threads(own_threads)  # it holds for the calling thread alone
        first, last = piece * len(span) // pieces, (piece + 1) * len(span) // pieces
        own = x.copy(order="C")
        arrays = above[first:last], below[first:last]
        _loop(f)(own, own.reshape(-1), up, down, span.start + first, *arrays, stop)
        if not stop[0]:
            refuse_changed(np, own, x)

    if pieces == 1 and not own_threads:
        run(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            left = {pool.submit(run, piece) for piece in range(pieces)}
            while left:
                done, left = wait(left, HEARS_AFTER, FIRST_COMPLETED)
                for piece in done:
                    piece.result()
        finally:
            stop[0] = True  # whatever was raised here, the other threads need not finish


def _checked(f, x):
    """Call f as the loop will, to say what it cannot do before there are threads; its seconds."""
    own = x.copy(order="C")
    try:
        result = f(own)
        refuse_changed(np, own, x)
    except numba.core.errors.NumbaError as error:
        reason = str(error).strip().splitlines()
        raise TypeError(
            f"f was compiled by Numba, but not for {x.dtype} arrays of {x.ndim} axes: "
            f"{' '.join(reason[:3])}"
        ) from error
    if isinstance(result, np.ndarray):
        raise TypeError(f"f returned an array of shape {result.shape}, expected one number")
    if not isinstance(result, numbers.Real):
        raise TypeError(f"f returned {result!r}, expected one real number")
    threads.apply_to_blas()  # Numba may have loaded SciPy's just now
    started = time.perf_counter()  # not the first time, which compiles
    f(own)
    return time.perf_counter() - started
