"""What a command prints: results on stdout, everything else on stderr.

Invariant: with `--json`, stdout gets exactly one JSON object and a line end. An error says what
happened, then what to do; tracebacks are for the debug level. Nothing that a name could hold acts
on the terminal or begins a line.
"""

import contextlib
import os
import sys
import threading
from typing import Final

import msgspec

from engine import __version__
from engine.model.errors import ConfigurationError, TailraceError
from engine.model.printable import printable, printable_json
from engine.operate.log_writer import write_whole

COMPLAIN_SECONDS: Final = 2.0
"""A pipe may be full, and its reader asleep: the process ends all the same."""


class ResultUnwritten(TailraceError):
    """Stdout takes no more: a full disk, most of the time."""


def say(text: str = "") -> None:
    """One line, or several, of a result for a human. Names in it are `printable` already."""
    _write(printable(text, keep="\n") + "\n")


def say_json(result: object) -> None:
    """The one JSON object of a command that was asked for it."""
    _write(printable_json(msgspec.json.encode(result).decode()) + "\n")


def say_next(step: str) -> None:
    """The last line of a command for a human: what one would do now."""
    _write(f"\nnext: {printable(step)}\n")


def flush() -> None:
    """Hand what was said to the operating system."""
    _write("")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        if not text:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise ResultUnwritten(
            f"the result could not be written to stdout: {reason}",
            hint="Make room, or send it elsewhere, and run the same command again.",
        ) from error


def say_last(step: str) -> None:
    """As `say_next`, at the end of work that is done. If nobody listens, the work is still done."""
    with contextlib.suppress(OSError, ValueError, ResultUnwritten):
        say_next(step)
        sys.stdout.flush()


def complain(text: str, hint: str = "", *, keep: str = "") -> None:
    """What went wrong, and what to do about it. If nobody listens, the exit code still says it."""
    lines = [f"error: {printable(text, keep=keep)}\n"]
    lines += [f"hint: {printable(hint, keep=keep)}\n"] * bool(hint)
    writing = threading.Thread(target=_write_error, args=("".join(lines),), daemon=True)
    writing.start()
    writing.join(COMPLAIN_SECONDS)


def _write_error(text: str) -> None:
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError):
        # A stream in memory, as where another program runs this command.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
        write_whole(descriptor, text)


def complain_about(error: TailraceError) -> None:
    """An error of our own. A configuration's may be several lines, whose parts are JSON texts."""
    complain(str(error), error.hint, keep="\n" if isinstance(error, ConfigurationError) else "")


def complain_internal(error: BaseException) -> None:
    """An error that nobody foresaw. Its text is left out: a library's may carry row values."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_globals.get("__name__", ""), trace.tb_frame.f_code.co_name))
        trace = trace.tb_next
    ours = [f"{module}.{name}" for module, name in frames if module.startswith("engine.")]
    where = f" in {ours[-1]}" if ours else ""
    complain(
        f"internal error: {type(error).__name__}{where} (tailrace {__version__})",
        "this is a bug: report it as CONTRIBUTING.md says, with what the same command prints under "
        "TAILRACE_LOG__LEVEL=debug. What is durable stays so, and a new start carries on.",
    )
