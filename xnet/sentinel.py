"""A process beside the ranks of a machine, that says which of them has ended before the others.

A rank that is killed says nothing, and `mpiexec` kills the others before they can. This process is
none of its own. It is started as ``python -I -S sentinel.py RANK:PROCESS ...`` and lasts until its
standard input is written to, which means that all is well, or until one of the processes ends.
"""

import os
import select
import socket
import sys


def main() -> None:
    """Wait for the first to end."""
    ranks: dict[int, str] = {}
    poll = select.poll()
    poll.register(sys.stdin.fileno(), select.POLLIN)
    for argument in sys.argv[1:]:
        descriptor = os.pidfd_open(int(argument.partition(":")[2]))
        ranks[descriptor] = argument.replace(":", ", process ")
        poll.register(descriptor, select.POLLIN)
    gone: list[str] = []
    while not gone:
        ready = [descriptor for descriptor, event in poll.poll() if event & select.POLLIN]
        if sys.stdin.fileno() in ready:
            return
        if not ready:  # whoever began this has closed its end, and is about to be gone
            poll.unregister(sys.stdin.fileno())
        gone = [ranks[descriptor] for descriptor in ready]
    # Where the system was busy, those that were killed for the first one's sake are among them.
    which = " or ".join(f"rank {rank}" for rank in gone)
    print(
        f"xnet: {which}, on {socket.gethostname()}, has ended before the others",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()
