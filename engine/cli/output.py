"""What a command prints: results on stdout, everything else on stderr.

Invariant: with `--json`, stdout gets exactly one JSON object and a line end. An error says what
happened, then what to do; tracebacks are for the debug level. Nothing that a name could hold acts
on the terminal or begins a line. In a terminal, lines are broken at words (`engine.cli.terminal`).
"""

import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from engine import __version__
from engine.cli.table import Alignment, table_lines
from engine.cli.terminal import cells, columns_of, wrapped
from engine.model.errors import ConfigurationError, TailraceError
from engine.model.printable import printable, printable_json
from engine.operate.log_writer import write_whole

COMPLAIN_SECONDS: Final = 2.0
"""A pipe may be full, and its reader asleep: the process ends all the same."""


class ResultUnwritten(TailraceError):
    """Stdout takes no more: a full disk, most of the time."""


def say(text: str = "", *, hang: int | None = None) -> None:
    """One line, or several, of a result for a human. Names in it are `printable` already.

    Where a line has to be broken, it goes on `hang` columns from the left, by default as far as it
    is indented itself.
    """
    columns = columns_of(sys.stdout)
    lines = (_broken(line, columns, hang) for line in printable(text, keep="\n").split("\n"))
    _write("\n".join(lines) + "\n")


def _broken(line: str, columns: int | None, hang: int | None) -> str:
    text = line.lstrip(" ")
    indent = " " * (len(line) - len(text))
    if hang is None:
        return wrapped(text, columns, first=indent)
    # The label and the blanks behind it stay as they are.
    return wrapped(line[hang:], columns, first=line[:hang], rest=" " * hang)


def say_as_is(text: str) -> None:
    """Text of another language, such as SQL or JSON, that no line may be broken in."""
    _write(printable(text, keep="\n") + "\n")


def say_table(
    rows: Sequence[Sequence[str]], alignments: Sequence[Alignment], *, indent: str = ""
) -> None:
    """A table, as `table_lines` makes it."""
    shown = [[printable(cell) for cell in row] for row in rows]
    for line in table_lines(shown, alignments, columns_of(sys.stdout), indent=indent):
        _write(line + "\n")


def say_json(result: object) -> None:
    """The one JSON object of a command that was asked for it."""
    _write(printable_json(msgspec.json.encode(result).decode()) + "\n")


def say_next(step: str, why: str = "") -> None:
    """The last line of a command for a human: what one would do now, and in a few words why."""
    _write("\n" + _next_text(step, why, columns_of(sys.stdout)) + "\n")


def tell_next(step: str, why: str = "") -> None:
    """As `say_next`, on stderr: for a command whose stdout is read by a program."""
    tell_as_is(_next_text(step, why, columns_of(sys.stderr)))


def _next_text(step: str, why: str, columns: int | None) -> str:
    first, step = "next: ", printable(step)
    reason = f"({printable(why)})" if why else ""
    # A command is copied as a whole.
    is_command = step.startswith("tailrace ")
    text = first + step if is_command else wrapped(step, columns, first=first)
    last = text.rpartition("\n")[2]
    if columns is None or cells(last) + 2 + cells(reason) <= columns:
        return f"{text}  {reason}".rstrip()
    return text + "\n" + wrapped(reason, columns, first=" " * len(first))


def tell(text: str) -> None:
    """Something beside the result, on stderr. If nobody listens, nothing is lost."""
    columns = columns_of(sys.stderr)
    lines = (_broken(line, columns, None) for line in printable(text, keep="\n").split("\n"))
    tell_as_is("\n".join(lines))


def tell_as_is(text: str) -> None:
    """As `tell`, with its lines as they are. Its names are `printable` already."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


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
        raise unwritten(error) from error


def unwritten(error: OSError) -> ResultUnwritten:
    """The error to tell where `error` came of writing to stdout."""
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return ResultUnwritten(
        f"the result could not be written to stdout: {reason}",
        hint="Make room, or send it elsewhere, and run the same command again.",
    )


def say_last(step: str) -> None:
    """As `say_next`, at the end of work that is done. If nobody listens, the work is still done."""
    with contextlib.suppress(OSError, ValueError, ResultUnwritten):
        say_next(step)
        sys.stdout.flush()


class _Complaints:
    """How an error is written: for people, or as a line of a log that is JSON."""

    is_json = False


def complain_in_json(is_json: bool) -> None:  # noqa: FBT001 - one bit
    """From now on an error is written as the log's lines are."""
    _Complaints.is_json = is_json


def complain(text: str, hint: str = "", *, keep: str = "", trace: str = "") -> None:
    """What went wrong, and what to do about it. If nobody listens, the exit code still says it.

    `trace` is where it came from, empty where nobody wants to know.
    """
    lines = (
        _json_line(text, hint, trace) if _Complaints.is_json else _shown(text, hint, keep, trace)
    )
    writing = threading.Thread(target=_write_error, args=(lines,), daemon=True)
    writing.start()
    writing.join(COMPLAIN_SECONDS)


def _shown(text: str, hint: str, keep: str, trace: str) -> str:
    columns = columns_of(sys.stderr)
    lines = f"{trace}\n" if trace else ""
    lines += _labelled("error: ", printable(text, keep=keep), columns)
    return lines + (_labelled("hint: ", printable(hint, keep=keep), columns) if hint else "")


def _json_line(text: str, hint: str, trace: str) -> str:
    line = {
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "level": "error",
        "event": "engine ended",
        "error": text,
        "hint": hint,
        **({"traceback": trace} if trace else {}),
    }
    return printable_json(msgspec.json.encode(line).decode()) + "\n"


def _labelled(label: str, text: str, columns: int | None) -> str:
    """`text` under its label: its first line behind it, the others as they are indented."""
    head, *others = text.split("\n")
    lines = [wrapped(head, columns, first=label)]
    for other in others:
        indent = " " * (len(other) - len(other.lstrip(" ")))
        lines.append(wrapped(other.lstrip(" "), columns, first=indent, rest=indent + "    "))
    return "\n".join(lines) + "\n"


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


def complain_about(error: TailraceError, *, trace: str = "") -> None:
    """An error of our own. A configuration's may be several lines, whose parts are JSON texts."""
    keep = "\n" if isinstance(error, ConfigurationError) else ""
    complain(str(error), error.hint, keep=keep, trace=trace)


def complain_internal(error: BaseException, *, trace: str = "") -> None:
    """An error that nobody foresaw. Its text is left out: a library's may carry row values."""
    frames = []
    raised = error.__traceback__
    while raised is not None:
        frames.append(
            (raised.tb_frame.f_globals.get("__name__", ""), raised.tb_frame.f_code.co_name)
        )
        raised = raised.tb_next
    ours = [f"{module}.{name}" for module, name in frames if module.startswith("engine.")]
    where = f" in {ours[-1]}" if ours else ""
    complain(
        f"internal error: {type(error).__name__}{where} (tailrace {__version__})",
        "this is a bug: report it as CONTRIBUTING.md says, with what the same command prints under "
        "TAILRACE_LOG__LEVEL=debug. What is durable stays so, and a new start carries on.",
        trace=trace,
    )
