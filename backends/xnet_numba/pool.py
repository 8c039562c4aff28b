# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""Threads that help with a compiled job if they are awake, and are not waited for if they are not.

A job is a routine that takes pieces of the work until none is left. Who asks for it works on it at
once; helpers that see it in time join in, and each piece goes to whoever is free. A thread that
wakes late, as on a busy machine, holds nobody up: OpenMP's threads, which Numba's own parallel
loops use, are all waited for, and took 60 to 300 microseconds to wake where these were measured.
A helper that finds nothing to do looks on for a moment, so that the next job of a loop meets it
awake, and then sleeps.

One that has lost its processor to another program within a piece is waited for. When that took
longer than to do the work without it, jobs do without for a while.
"""

import contextlib
import ctypes
import os
import threading
import time

import numpy as np

from xnet_numba.compiling import _alone, _serial, thread_count
from xnet_numba.intrinsics import (
    atomic_add,
    atomic_load,
    call,
    int64s_at,
    pause,
    room_on_stack,
)

LOOKS = 20_000
"""How often a helper looks for the next job before it sleeps: for about half a millisecond."""

AGAIN_AFTER = 20
"""How many times as long as was lost by waiting for helpers jobs do without: that they cost at most
a twentieth."""

# Places in the mail, each in a cache line of its own: how many times a job was opened or closed (it
# is open while that is odd), the routine, what it is called with, how many helpers it may have, how
# many are at it, the addresses of the system's routines that let another thread run and that tell
# the time, whether a call is under way, so that there may be another job, however long it takes to
# come, and until when jobs do without helpers.
SEQUENCE, ROUTINE, JOB, HELPERS, ACTIVE, YIELD, CLOCK, CALL, ALONE = range(0, 72, 8)
PLACES = 72

CLOCK_ID = getattr(time, "CLOCK_MONOTONIC", 0)


@_serial
def _now(places):
    """Nanoseconds by the clock CLOCK_ID; 0 if the system has none."""
    if places[CLOCK] == 0:
        return 0
    at = room_on_stack(2)
    call(places[CLOCK], (CLOCK_ID, at))
    seconds_and_rest = int64s_at(at, 2)
    return seconds_and_rest[0] * 1_000_000_000 + seconds_and_rest[1]


@_serial
def _look_on(places, looks):
    """Pass the time of one look; now and then let a thread run that waits for this processor."""
    if looks % 1000 == 999 and places[YIELD] != 0:
        call(places[YIELD], ())
    pause()


@_alone
def run(mail, routine, job, helpers):
    """Have a routine called with `job`, an address, by this thread and up to so many helpers.

    It is told 0, or 1 if it is a helper that calls it, too. `mail` is the address of the pool's.
    """
    if helpers == 0:
        call(routine, (job, 0))
        return
    places = int64s_at(mail, PLACES)
    began = _now(places)
    if began < places[ALONE]:
        call(routine, (job, 0))
        return
    places[ROUTINE], places[JOB], places[HELPERS] = routine, job, helpers
    atomic_add(mail + 8 * SEQUENCE, 1)
    call(routine, (job, 0))
    atomic_add(mail + 8 * SEQUENCE, 1)
    # Who has joined is within the last piece; who comes now sees that it is too late.
    done, looks = _now(places), 0
    while atomic_load(mail + 8 * ACTIVE) != 0:
        _look_on(places, looks)
        looks += 1
    lost = _now(places) - done
    if lost > helpers * (done - began):
        places[ALONE] = done + AGAIN_AFTER * lost


@_serial
def claim(counts, helping, pieces):
    """The number of a piece that nobody has taken yet, of so many; -1 if there is none.

    `counts` is the address of three int64, 0 at first: pieces taken, and from the front and the
    back of them. Who asked for the job takes them from the front, helpers from the back: when it
    comes again, each finds in its own cache much of what it wrote.
    """
    if atomic_add(counts, 1) >= pieces:
        return -1
    return pieces - 1 - atomic_add(counts + 16, 1) if helping else atomic_add(counts + 8, 1)


@_alone
def _serve(mail, index, seen, looks):
    """Help with what comes until nothing has for so many looks; returns what was last seen."""
    places = int64s_at(mail, PLACES)
    left, idle = looks, 0
    while left > 0:
        now = atomic_load(mail + 8 * SEQUENCE)
        if now == seen or now % 2 == 0:
            if atomic_load(mail + 8 * CALL) == 0:
                left -= 1
            _look_on(places, idle)
            idle += 1
            continue
        # First join, then see that it is still open: either this or who closes sees the other.
        atomic_add(mail + 8 * ACTIVE, 1)
        if atomic_load(mail + 8 * SEQUENCE) == now and index < places[HELPERS]:
            call(places[ROUTINE], (places[JOB], 1))
        atomic_add(mail + 8 * ACTIVE, -1)
        seen, left = now, looks
    return seen


class _Helper:
    """One thread; it ends with the process."""

    def __init__(self, pool, index):
        self.asleep, self.alarm = True, threading.Event()
        self.pool, self.index = pool, index
        threading.Thread(target=self._work, name=f"xnet-helper-{index}", daemon=True).start()

    def _work(self):
        seen = 0
        while True:
            self.asleep = True
            # A call that is under way may have come too early to see that, and set no alarm.
            if not self.pool.places[CALL]:
                self.alarm.wait()
                self.alarm.clear()
            self.asleep = False
            seen = _serve(self.pool.mail, self.index, seen, LOOKS)


class Pool:
    """The helpers of this process, started when they are first asked for.

    Attributes
    ----------
    mail
        The address of what `run` and the helpers tell each other.
    """

    HELP_FROM = 1 << 21
    """Rows times bytes of the weights from which helpers that are awake are a gain."""

    WAKE_FROM = 1 << 26
    """The same for those that sleep, if this is no loop: to wake one takes ten microseconds."""

    LOOP_SECONDS = 1e-3
    """What is asked for again within this time may be a loop."""

    def __init__(self):
        self.lock = threading.Lock()
        self.helpers = []
        self.asked = -1.0  # when helpers were last asked for and asleep
        space = np.zeros(PLACES + 7, np.int64)
        self.places = space[-space.ctypes.data % 64 // 8 :][
            :PLACES
        ]  # from where a cache line begins
        self.mail = self.places.ctypes.data
        with contextlib.suppress(AttributeError, OSError, TypeError):  # not on every system
            system = ctypes.CDLL(None)
            for place, name in (YIELD, "sched_yield"), (CLOCK, "clock_gettime"):
                self.places[place] = ctypes.cast(getattr(system, name), ctypes.c_void_p).value or 0

    def share(self, work, compiled, *arguments):
        """Call a compiled function with the mail, the arguments, and how many helpers it may have.

        That is 0 if the work, rows times bytes of weights, is little; if it is not much and they
        are asleep; or if another thread's job has them.
        """
        if work < self.HELP_FROM or not self.lock.acquire(blocking=False):
            return compiled(0, *arguments, 0)
        try:
            self.places[CALL] = 1
            return compiled(self.mail, *arguments, self._awake(thread_count() - 1, work))
        finally:
            self.places[CALL] = 0
            self.lock.release()

    def _awake(self, count, work):
        """So many helpers; 0 if some of them sleep and this is not worth waking them."""
        asleep = [helper for helper in self.helpers[:count] if helper.asleep]
        if asleep or len(self.helpers) < count:
            if self.places[ALONE] and time.clock_gettime_ns(CLOCK_ID) < self.places[ALONE]:
                return 0
            before, self.asked = self.asked, time.monotonic()
            if work < self.WAKE_FROM and self.asked - before > self.LOOP_SECONDS:
                return 0
        while len(self.helpers) < count:
            self.helpers.append(_Helper(self, len(self.helpers)))
            asleep.append(self.helpers[-1])
        for helper in asleep:
            helper.alarm.set()
        return count


pool = Pool()


def _after_fork():
    """A child has none of its parent's threads."""
    pool.__init__()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
