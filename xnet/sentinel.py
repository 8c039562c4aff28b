"""A process beside the ranks of a machine, that says which of them has ended before the others.

A rank that is killed says nothing, and `mpiexec` kills the others before they can. This process is
none of its own: ``python -I -S sentinel.py FOLDER RANK ...``. For each rank there is a named pipe
in the folder, whose other end that rank holds, and writes to when it ends as it means to. Where one
closes before, its rank was killed. The standard input is held by the first of them, and closed when
all is over.
"""

import contextlib
import os
import select
import socket
import sys

DONE, SAID, READY = b".", b"!", b"ready\n"
"""What a rank writes when it is done, and when it ends with an error that it says itself; and what
this process writes when ranks may open their ends."""


def gone(folder: str, ranks: list[str]) -> list[str]:
    """The first rank to end without a word; several if it cannot be told which, none if none."""
    poll, lines = select.poll(), dict[int, str]()
    for rank in ranks:
        line = os.open(os.path.join(folder, rank), os.O_RDONLY | os.O_NONBLOCK)
        lines[line] = rank
        poll.register(line, select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN)
    os.write(sys.stdout.fileno(), READY)
    while lines:
        ready = [line for line, _ in poll.poll()]
        over = sys.stdin.fileno() in ready
        if over:  # or the rank that holds it was killed, whose line may be about to close
            poll.unregister(sys.stdin.fileno())
            ready = [line for line, _ in poll.poll(50)]
        said = {line: os.read(line, 1) for line in ready}
        if SAID in said.values():
            break
        closed = [lines[line] for line, text in said.items() if text != DONE]
        if closed or over:
            return closed
        for line in said:
            poll.unregister(line)
            del lines[line]
    return []


def main() -> None:
    """Wait, and say it."""
    folder, *ranks = sys.argv[1:]
    closed = gone(folder, ranks)
    with contextlib.suppress(OSError):  # whoever made it may have been killed
        for rank in ranks:
            os.unlink(os.path.join(folder, rank))
        os.rmdir(folder)
    if closed:
        # Where the system was busy, such as were killed for the first one's sake are among them.
        text = " or ".join(f"rank {rank}" for rank in closed)
        where = f"xnet: {text}, on {socket.gethostname()}, has ended before the others: killed?"
        print(where, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
