"""`python -m engine`, and the `tailrace` command.

Strategy: signals first. Until Python has a handler, the kernel drops SIGTERM for process 1 of a
container, and the orchestrator kills the engine when its patience ends. Who starts us may block
the signals meanwhile (`env --block-signal`, as the image does): then they wait for the handler.
"""

import os
import signal
import sys

_EXIT_STOPPED_EARLY = 75
_EXIT_OF_SIGNAL = 128


def _code_before_start(number: int) -> int:
    """What a signal before anything was started means for the exit code.

    An engine that is told to stop has stopped well. One that was to publish everything has not, and
    of a command that would have answered a question nobody may read "ok".
    """
    words = sys.argv[1:]
    if words[:1] != ["run"]:
        return _EXIT_OF_SIGNAL + number
    return _EXIT_STOPPED_EARLY if "--until-caught-up" in words else 0


def _end(number: int, _: object) -> None:
    # Nothing has to be closed yet, and an import may be at any place.
    os._exit(_code_before_start(number))


def _take_signals() -> None:
    numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    try:
        for number in numbers:
            # `nohup`, and a shell's background jobs, want some ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    except ValueError:
        # Here a thread of another program has imported this module. That program's signals are its
        # own.
        return


_take_signals()

import gc  # noqa: E402
import io  # noqa: E402

# What is imported stays. The collector would look through it 40 times and find no garbage.
gc.disable()

from engine.cli.application import main as run_command_line  # noqa: E402

gc.enable()

_STANDARD_STREAMS = (0, 1, 2)


def main() -> None:
    """Run the command line of this process and end it with the command's exit code."""
    _open_standard_streams()
    _leave_signals()
    code = run_command_line()
    _close_standard_streams()
    sys.exit(code)


def _leave_signals() -> None:
    """Commands other than `run` know Ctrl-C as an exception, and a closed terminal as the end."""
    if sys.argv[1:2] == ["run"]:
        return
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is _end:
            signal.signal(number, usual)


def _open_standard_streams() -> None:
    """Where a caller closed stdin, stdout or stderr, open it to lead nowhere.

    Otherwise the next socket would get its number. uvloop aborts the process when it closes that,
    and what was meant for a log would go to a server.
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A locale without a letter of ours is no error, as it is none on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")


def _close_standard_streams() -> None:
    """Write what is left. Where nobody takes it, the exit code stays the command's.

    The interpreter tries again at its end, and would exit with 120.
    """
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


if __name__ == "__main__":
    main()
