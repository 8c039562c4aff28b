"""Ranks that are threads of one process: what `xnet.distributed` has of MPI, without it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

import xnet
from xnet.ranks import Ranks
from xnet.sharded import ShardedBackend


class Board:
    """Where threads leave what they tell each other."""

    def __init__(self, size):
        self.barrier = threading.Barrier(size, timeout=60)
        self.said = [None] * size


class ThreadRanks(Ranks):
    """One of as many ranks as the board has places."""

    def __init__(self, rank, board):
        super().__init__()
        self.rank, self.size, self.board = rank, len(board.said), board

    def gather(self, content):
        self.board.said[self.rank] = content
        self.board.barrier.wait()
        found = list(self.board.said)
        self.board.barrier.wait()
        self.traffic.messages += 1
        return found

    def reduce(self, array, largest):
        parts = self.gather(np.array(array))
        if len({part.shape for part in parts}) > 1:
            raise AssertionError(f"ranks reduce arrays of shapes {[p.shape for p in parts]}")
        # In another order on each rank, as no library promises one.
        turned = parts[self.rank :] + parts[: self.rank]
        found = turned[0]
        for part in turned[1:]:
            found = np.maximum(found, part) if largest else found + part
        return found if largest or found.dtype.kind != "f" else self._one(found)

    def _one(self, found):
        """Rank 0's, for what is rounded must be the same everywhere."""
        return self.gather(found)[0]


def on_ranks(size, function, *, backend="numpy", reproducible=True):
    """What `function(ranks)` returns on each of so many ranks; `backend` a name, or one for each.

    An error on one rank ends the others, and is raised.
    """
    board = Board(size)
    names = [backend] * size if isinstance(backend, str) else backend

    def go(rank):
        ranks = ThreadRanks(rank, board)
        try:
            with xnet.use_backend(names[rank], reproducible) as local:
                spread = ShardedBackend(local, ranks)
            with xnet.use_backend(spread):
                return function(ranks)
        except BaseException:
            board.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(go, rank) for rank in range(size)]
    errors = [future.exception() for future in futures]
    raised = [error for error in errors if error is not None]
    raised.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if raised:
        raise raised[0]
    return [future.result() for future in futures]


def shards(n, *sizes):
    """Slices of n rows of these relative sizes, for so many ranks."""
    ends = np.round(np.cumsum([0, *sizes]) / sum(sizes) * n).astype(int)
    return [slice(i, j) for i, j in pairwise(ends)]
