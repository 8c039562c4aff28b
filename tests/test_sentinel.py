"""Who says which rank was killed; and what a rank does of MPI, with a communicator of its own."""

import io
import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import require_tool
from thread_ranks import Board, ThreadRanks, on_ranks

import xnet
from xnet import distributed, sentinel
from xnet.errors import RankError
from xnet.ranks import agreed_error

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


class Lines:
    """A sentinel in a thread, and the other ends of its pipes."""

    def __init__(self, folder, monkeypatch, ranks=("0", "1", "2")):
        for rank in ranks:
            os.mkfifo(folder / rank)
        stdin, ready = os.pipe(), os.pipe()
        self.streams = streams = SimpleNamespace(
            stdin=os.fdopen(stdin[0]), stdout=os.fdopen(ready[1]), argv=["", str(folder), *ranks],
            stderr=io.StringIO(),
        )  # fmt: skip
        monkeypatch.setattr(sentinel, "sys", streams)
        self.stderr, self.pipes = streams.stderr, [ready[0], stdin[1]]
        self.thread = threading.Thread(target=sentinel.main)
        self.thread.start()
        assert os.read(ready[0], 10) == sentinel.READY
        flags = os.O_WRONLY | os.O_NONBLOCK
        self.lines = {rank: os.open(folder / rank, flags) for rank in ranks}

    def end(self, rank, said=b""):
        if said:
            os.write(self.lines[rank], said)
        os.close(self.lines.pop(rank))

    def said(self):
        self.thread.join(10)
        assert not self.thread.is_alive()
        for line in (*self.lines.values(), *self.pipes):
            os.close(line)
        for stream in (self.streams.stdin, self.streams.stdout):
            stream.close()
        return self.stderr.getvalue()


@pytest.fixture
def lines(tmp_path, monkeypatch):
    (tmp_path / "lines").mkdir()
    return Lines(tmp_path / "lines", monkeypatch)


def test_all_is_well(lines, tmp_path):
    for rank in ("1", "0", "2"):
        lines.end(rank, sentinel.DONE)
    assert lines.said() == ""
    assert not (tmp_path / "lines").exists()


def test_the_rank_that_closes_without_a_word_is_named(lines, tmp_path):
    lines.end("0", sentinel.DONE)
    time.sleep(0.05)
    lines.end("1")
    assert lines.said().startswith("xnet: rank 1, on ")
    assert not (tmp_path / "lines").exists()


def test_an_error_that_a_rank_says_itself_is_not_said_again(lines):
    lines.end("2", sentinel.SAID)
    assert lines.said() == ""


def test_it_ends_with_the_one_that_started_it(lines):
    os.close(lines.pipes.pop())
    assert lines.said() == ""


def test_the_one_that_started_it_may_be_the_one_that_is_killed(lines):
    os.close(lines.pipes.pop())
    lines.end("0")
    assert lines.said().startswith("xnet: rank 0, on ")


# -- with a real sentinel, of ranks that are threads


def watched(ranks, ends=None):
    """What a rank's block of `communicator` does about it."""
    try:
        with distributed._watched(ranks):
            if ranks.rank == ends:
                raise ArithmeticError("a fault")
    except ArithmeticError:
        pass
    return ranks.rank


def test_ranks_hold_their_lines(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed.tempfile, "tempdir", str(tmp_path))
    assert on_ranks(3, watched) == [0, 1, 2]
    assert on_ranks(3, lambda ranks: watched(ranks, ends=1)) == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_without_a_sentinel_all_else_works(monkeypatch):
    def broken(*_, **__):
        raise OSError

    monkeypatch.setattr(distributed.subprocess, "Popen", broken)
    assert on_ranks(2, watched) == [0, 1]


# -- one rank of MPI, in this process


@pytest.fixture
def comm():
    try:
        from mpi4py import MPI
    except ImportError:
        require_tool(None, 'no MPI: pip install "xnet-nn[mpi]"', "XNET_REQUIRE_MPI")
        raise
    return MPI.COMM_SELF


def test_one_rank_of_mpi(comm):
    ranks = distributed.MPIRanks(comm.Dup(), timeout=10.0)
    array = xnet.resolve("numpy").asarray([1.0, 2.0])
    assert (ranks.rank, ranks.size, ranks.beside) == (0, 1, 1)
    assert ranks.gather(b"said") == [b"said"]
    assert ranks.reduce(array, largest=False).tolist() == [1.0, 2.0]
    assert ranks.reduce(array, largest=True).tolist() == [1.0, 2.0]
    assert (ranks.traffic.messages, ranks.traffic.bytes) == (3, 4 + 2 * 16)
    ranks.comm.Free()


def test_who_waits_too_long_says_so(comm):
    ranks = distributed.MPIRanks(comm.Dup(), timeout=0.01)
    with pytest.raises(RankError, match=r"rank 0 has waited 0\.01 s for the others"):
        ranks._wait(SimpleNamespace(Test=lambda: False))
    ranks.comm.Free()


def test_messages_out_of_step_are_refused(comm):
    class Other:
        """Writes another rank's message beside this one's, which is a later one."""

        def __getattr__(self, name):
            return getattr(comm, name)

        def Iallgather(self, said, every):
            every[0], every[1] = said, said + np.array([3, 0])
            return SimpleNamespace(Test=lambda: True)

    ranks = distributed.MPIRanks(comm, timeout=None)
    ranks.comm, ranks.size = Other(), 2
    with pytest.raises(RankError, match=r"rank 0 is at its message 0, and others are at .*3"):
        ranks.gather(b"said")


def test_a_block_of_one_rank_is_its_backend(comm):
    with distributed.communicator(comm, "numpy", reproducible=True) as backend:
        assert backend is xnet.resolve("numpy", True)
    with (
        pytest.raises(xnet.BackendError, match="unknown backend 'nunpy'"),
        distributed.communicator(comm, "nunpy"),
    ):
        pass


def test_what_mpi_started_is_one_communicator(comm, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "1")
    with distributed.launched("numpy", True) as backend:
        assert backend.ranks.size == 1
    with pytest.raises(ZeroDivisionError), distributed.launched("numpy"):
        raise ZeroDivisionError


class Recording:
    """Of a communicator what an end calls."""

    def __init__(self):
        self.calls = []

    def Abort(self, status):
        self.calls.append(status)

    def Free(self):
        self.calls.append("freed")


@pytest.mark.parametrize(
    ("error", "brief", "call", "said"),
    [
        (ValueError("x is wrong"), False, 1, "Traceback"),
        (ValueError("x is wrong"), True, 1, "rank 1 of 2 ends all:\nValueError: x is wrong\n"),
        (ZeroDivisionError("a fault"), True, 1, "Traceback"),
        (KeyboardInterrupt(), False, 130, "KeyboardInterrupt"),
        (SystemExit(0), False, 1, "SystemExit"),
        (agreed_error(RankError("alike")), False, "freed", ""),
    ],
    ids=lambda v: repr(v)[:20],
)
def test_how_a_rank_ends_all(error, brief, call, said, capsys):
    ranks = ThreadRanks(1, Board(2))
    ranks.comm, ranks.brief = Recording(), brief
    try:
        raise error
    except BaseException as raised:
        distributed._end(ranks, raised)
    assert ranks.comm.calls == [call]
    err = capsys.readouterr().err
    assert said in err
    assert bool(said) == bool(err)
