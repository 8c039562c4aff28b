"""The `xnet` command from its first moment.

It stands beside the library: what is imported from `xnet` imports half a second's worth of it
first, and Ctrl-C in that time must not end in a traceback.
"""

import io
import sys

try:
    import signal
except KeyboardInterrupt:
    sys.exit(130)  # as a shell reports a command that Ctrl-C ended

__all__ = ["main"]


def main() -> None:
    """Run the command in this process, which is its own."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Where nothing has begun, nothing has to be put in order: Ctrl-C ends the process at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    output: object = sys.stdout
    if isinstance(output, io.TextIOWrapper):
        output.reconfigure(errors="replace")  # what its encoding lacks is no reason to fail
    from xnet.tools import cli

    cli.main()
