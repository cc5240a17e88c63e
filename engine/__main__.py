"""`python -m engine`, and the `tailrace` command."""

import gc
import os
import sys

# What is imported stays: 40 looks for garbage among it find none.
gc.disable()

from engine.cli.application import main as run_command_line  # noqa: E402

gc.enable()

_STANDARD_STREAMS = (0, 1, 2)


def main() -> None:
    """Run the command line of this process and end it with the command's exit code."""
    _open_standard_streams()
    sys.exit(run_command_line())


def _open_standard_streams() -> None:
    """Where a caller closed stdin, stdout or stderr, let it lead nowhere.

    Otherwise the next socket gets its number: uvloop aborts the process when it closes that, and
    what was meant for a log would go to a server.
    """
    for number in _STANDARD_STREAMS:
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    # Python makes None of a stream that was closed when it started.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


if __name__ == "__main__":
    main()
