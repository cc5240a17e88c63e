"""What a command prints: results on stdout, everything else on stderr.

Invariant: with `--json`, stdout gets exactly one JSON object and a line end. An error is told as
what happened, then what to do; tracebacks are for the debug level.
"""

import sys
from typing import TYPE_CHECKING

import msgspec

from engine import __version__

if TYPE_CHECKING:
    from engine.errors import TailraceError


def say(text: str = "") -> None:
    """One line, or several, of a result for a human."""
    sys.stdout.write(text + "\n")


def say_json(result: object) -> None:
    """The one JSON object of a command that was asked for it."""
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")


def say_next(step: str) -> None:
    """The last line of a command for a human: what one would do now."""
    sys.stdout.write(f"\nnext: {step}\n")


def complain(text: str, hint: str = "") -> None:
    """What went wrong, and what to do about it."""
    sys.stderr.write(f"error: {text}\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")


def complain_about(error: "TailraceError") -> None:
    """An error of our own."""
    complain(str(error), error.hint)


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
