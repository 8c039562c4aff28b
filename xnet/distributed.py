"""Training on many processes, over MPI: in reproducible mode the same bits on one rank or many.

Each process, a *rank*, has a shard of the data. In a block of `communicator` what a network
computes of a batch, its loss, gradients and accuracy, is of the rows of all ranks. Start it with
``mpiexec -n 4 python program.py``; ``mpiexec -n 4 xnet train`` finds out by itself.

What moves data is MPI (Message Passing Interface Forum 2021, "MPI: A Message-Passing Interface
Standard", version 4.0, chapter 6), through mpi4py: ``pip install "xnet-nn[mpi]"``.
"""

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

import xnet
from xnet import sentinel, threads
from xnet.backend import Backend, get_backend, resolve, use_backend
from xnet.errors import RankError, XnetError, optional
from xnet.ranks import Ranks, agreed_error, is_agreed, speaker
from xnet.sharded import ShardedBackend

__all__ = ["communicator", "launched", "shard", "started_by_mpi"]

ENVIRONMENT = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK")
"""What `mpiexec` says to the processes that it starts: of MPICH and its kin, and of Open MPI."""


EXPECTED = (XnetError, ValueError, OSError, ImportError, MemoryError)
"""Errors of which a command says no more than the message."""

SPINNING, CROWDED, NAP = 2e-3, 2e-5, 5e-5
"""Seconds for which a rank asks again and again whether a message is there; where there are more
ranks than cores, and the one that is waited for needs this one's; and then between two times."""


class MPIRanks(Ranks):
    """The ranks of an MPI communicator.

    Parameters
    ----------
    comm
        A communicator of mpi4py, for these ranks' own use.
    timeout
        Seconds that a message waits for the other ranks; None for ever.
    device_aware
        Whether this MPI takes arrays of a device.

    Attributes
    ----------
    brief
        Whether an error that ends all is said in a line, without where it was raised.
    """

    brief: bool = False

    def __init__(self, comm: Any, timeout: float | None, device_aware: bool = False) -> None:
        super().__init__()
        self.comm, self.timeout, self.device_aware = comm, timeout, device_aware
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.beside = _of_this_machine(comm)
        self.spinning = CROWDED if self.beside > threads.processors() else SPINNING

    def gather(self, content: bytes) -> list[bytes]:
        said = np.array([self.traffic.messages, len(content)], np.int64)
        every = np.empty((self.size, 2), np.int64)
        self._wait(self.comm.Iallgather(said, every))
        if np.any(every[:, 0] != said[0]):
            raise RankError(
                f"rank {self.rank} is at its message {said[0]}, and others are at theirs "
                f"{sorted(set(every[:, 0].tolist()) - {int(said[0])})}: each has asked its network "
                "other things"
            )
        lengths = every[:, 1]
        found = bytearray(int(lengths.sum()))
        self._wait(self.comm.Iallgatherv(content, [found, lengths.tolist()]))
        self._count(len(content))
        ends = np.cumsum(lengths).tolist()
        return [bytes(found[i:j]) for i, j in zip([0, *ends[:-1]], ends, strict=True)]

    def reduce(self, array: Any, largest: bool) -> Any:
        from mpi4py import MPI

        self._wait(self.comm.Iallreduce(MPI.IN_PLACE, array, MPI.MAX if largest else MPI.SUM))
        self._count(array.nbytes)
        return array

    def _count(self, sent: int) -> None:
        self.traffic.messages += 1
        self.traffic.bytes += sent

    def _wait(self, request: Any) -> None:
        """Until it is done; unlike a call that blocks, it hears Ctrl-C and lets others run."""
        began = time.perf_counter()
        while not request.Test():
            waited = time.perf_counter() - began
            if self.timeout is not None and waited > self.timeout:
                raise RankError(
                    f"rank {self.rank} has waited {self.timeout:g} s for the others: one of them "
                    "has failed, or asks its network other things than this one"
                )
            if waited > self.spinning:
                time.sleep(NAP)
        self.traffic.seconds += time.perf_counter() - began


def _of_this_machine(comm: Any) -> int:
    """How many of the ranks share this one's machine."""
    from mpi4py import MPI

    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        return here.Get_size()
    finally:
        here.Free()


def started_by_mpi() -> bool:
    """Whether this process was started by MPI's `mpiexec`, or a scheduler's like.

    Returns
    -------
    bool
        By what these leave in the environment; mpi4py need not be installed.

    Examples
    --------
    >>> import xnet
    >>> xnet.distributed.started_by_mpi()
    False
    """
    return any(name in os.environ for name in ENVIRONMENT)


def _mpi(what: str) -> Any:
    """mpi4py's module; or the error that says what to install."""
    with optional(what, "mpi4py", "mpi"):
        try:
            from mpi4py import MPI
        except RuntimeError as error:  # its own library is there, and no MPI
            message = f"and an MPI, the cluster's or pip install mpich: {error}"
            raise ImportError(message) from error
    return MPI


@contextlib.contextmanager
def communicator(
    comm: Any,
    backend: str | Backend | None = None,
    reproducible: bool | None = None,
    *,
    timeout: float | None = None,
    cuda_aware: bool = False,
) -> Generator[Backend]:
    """Make a backend current whose batches are spread over the ranks of an MPI communicator.

    Every rank enters the block, makes the same network in it, and hands it its own shard of the
    data. An error that one rank alone raises ends all of them: it is written to stderr with the
    rank's number, and the exit status is not 0; so does `sys.exit` in the block. The number of a
    rank that was killed is written, too.

    Parameters
    ----------
    comm
        A communicator of mpi4py, such as ``MPI.COMM_WORLD``.
    backend, reproducible
        What computes on this rank, as in `xnet.use_backend`. In reproducible mode ranks may differ
        in the backend.
    timeout
        Seconds that a rank waits for the others before it takes them for lost; None for ever.
    cuda_aware
        Whether this MPI was built to take CuPy's arrays where they are; else what is sent goes by
        way of the host.

    Yields
    ------
    Backend
        The one whose batches are spread; its `ranks` say which rank this is, and what was sent.
        Where there is one rank, that which `backend` names.

    Raises
    ------
    RankError
        On every rank: versions, modes or, in fast mode, backends that are not the same on all.
    BackendError
        As in `xnet.resolve`; on the other ranks a RankError that says so.
    TypeError
        `comm` is no communicator.
    DatasetError
        mpi4py is not installed.

    Examples
    --------
    On one rank, as ``mpiexec`` starts many:

    >>> import xnet
    >>> from mpi4py import MPI
    >>> (x, t), _ = xnet.datasets.load_digits()
    >>> with xnet.distributed.communicator(MPI.COMM_WORLD, "numpy", reproducible=True):
    ...     mine = xnet.distributed.shard(len(x))
    ...     net = xnet.TwoLayerNet(64, 10, 10, seed=0)
    ...     history = xnet.train(net, x[mine], t[mine], iterations=10, progress=False)
    >>> history.iterations
    10
    """
    MPI = _mpi("distributed.communicator")
    if not isinstance(comm, MPI.Comm):
        raise TypeError(
            f"comm is {comm!r}, expected a communicator of mpi4py such as MPI.COMM_WORLD"
        )
    ranks = MPIRanks(comm.Dup(), timeout, cuda_aware)
    try:
        with ranks.together():
            local = resolve(backend, reproducible)
        if isinstance(local, ShardedBackend):
            raise agreed_error(RankError(f"communicator: {local} is spread over ranks already"))
        ranks.check_same(**{"xnet's version": xnet.__version__}, reproducible=local.reproducible)
        if not local.reproducible:
            ranks.check_same(**{"backend in fast mode": local.name})
        spread = local if ranks.size == 1 else ShardedBackend(local, ranks)
        with _watched(ranks), threads.shared(ranks.beside), use_backend(spread) as current:
            yield current
    except BaseException as error:
        _end(ranks, error)
        raise
    ranks.comm.Free()


@contextlib.contextmanager
def _watched(ranks: MPIRanks) -> Generator[None]:
    """Block in which, of each machine's ranks, the first that is killed is named on stderr."""
    host = platform.node()
    here = [rank for rank, node in enumerate(ranks.gathered(host)) if node == host]
    with contextlib.ExitStack() as watching:
        folder = None
        if ranks.rank == here[0] and ranks.size > 1 and hasattr(os, "mkfifo"):
            with contextlib.suppress(OSError):  # without a sentinel all else works
                folder = watching.enter_context(_sentinel(here))
        folder = ranks.gathered(folder)[here[0]]
        line = None
        if folder is not None:
            with contextlib.suppress(OSError):
                line = os.open(Path(folder) / str(ranks.rank), os.O_WRONLY | os.O_NONBLOCK)
        said = sentinel.SAID
        try:
            yield
            said = sentinel.DONE
        finally:  # of an error this rank says itself
            if line is not None:
                with contextlib.suppress(OSError):
                    os.write(line, said)
                os.close(line)


@contextlib.contextmanager
def _sentinel(ranks: list[int]) -> Generator[str]:
    """One for these ranks of this machine: the folder where their lines to it are."""
    with tempfile.TemporaryDirectory(prefix="xnet-", ignore_cleanup_errors=True) as folder:
        names = list(map(str, ranks))
        for name in names:
            os.mkfifo(Path(folder) / name, 0o600)
        command = [sys.executable, "-I", "-S", sentinel.__file__, folder, *names]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as watcher:
            if watcher.stdout is not None:
                watcher.stdout.readline()
            yield folder  # and then its standard input is closed, at which it ends


def _end(ranks: MPIRanks, error: BaseException) -> None:
    """End all ranks for an error of this one's, that the others know nothing of."""
    if ranks.size == 1 or is_agreed(error):
        ranks.comm.Free()
        return
    said = traceback.format_exception(error)
    if ranks.brief and isinstance(error, EXPECTED):
        said = traceback.format_exception_only(error)
    text = "".join(said)
    print(f"rank {ranks.rank} of {ranks.size} ends all:\n{text}", file=sys.stderr, flush=True)
    interrupted = isinstance(error, KeyboardInterrupt)
    ranks.comm.Abort(130 if interrupted else 1)


@contextlib.contextmanager
def launched(
    backend: str | Backend | None = None, reproducible: bool | None = None
) -> Generator[Backend]:
    """`communicator` of all processes, where MPI has started this one; else `xnet.use_backend`.

    Parameters
    ----------
    backend, reproducible
        As in `xnet.use_backend`.

    Yields
    ------
    Backend
        The one that is current within the block.

    Raises
    ------
    RankError, BackendError, DatasetError
        As in `communicator`. What all ranks raise alike ends those but the first with a
        SystemExit: it is said once.

    Examples
    --------
    >>> import xnet
    >>> with xnet.distributed.launched("numpy") as backend:
    ...     print(backend, backend.ranks.size)
    <backend numpy> 1
    """
    if not started_by_mpi():
        with use_backend(backend, reproducible) as chosen:
            yield chosen
        return
    MPI = _mpi("what mpiexec has started")
    try:
        with communicator(MPI.COMM_WORLD, backend, reproducible) as chosen:
            if isinstance(chosen.ranks, MPIRanks):
                chosen.ranks.brief = True
            yield chosen
    except Exception as error:
        if MPI.COMM_WORLD.Get_rank() != speaker(error):
            sys.exit(1)
        raise


def shard(n: int) -> slice:
    """Which of n rows are this rank's, where each rank has a share of what all can read.

    Parameters
    ----------
    n
        How many rows there are.

    Returns
    -------
    slice
        As many rows as the other ranks', or one more; all of them outside of `communicator`.

    Examples
    --------
    >>> import xnet
    >>> xnet.distributed.shard(10)
    slice(0, 10, None)
    """
    mine = get_backend().ranks.span(n)
    return slice(mine.start, mine.stop)
