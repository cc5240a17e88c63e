"""`tailrace tail`: a table's newest changes, and then each one as it becomes durable."""

import asyncio
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from engine.cli.options import ConfigFile, Table, same_file
from engine.cli.output import tell, tell_next
from engine.cli.read_target import Target
from engine.cli.startup import lean_imports
from engine.cli.terminal import columns_of, cut
from engine.config import DestinationConfiguration, default_log, load_destination
from engine.model.errors import DestinationUnavailable
from engine.model.printable import printable

if TYPE_CHECKING:
    from engine.reader.formats.records import Taken
    from engine.reader.formats.taking import Taking
    from engine.reader.table.newest import Change, Tail

FOLLOW_SECONDS = 1.0
"""How often the journal is looked at: a request each."""

CHANGES_MAX: Final = 100_000

_OPERATIONS: Final[Mapping[str, str]] = {
    "c": "insert",
    "u": "update",
    "d": "delete",
    "r": "read",
    "t": "truncate",
}

Count = Annotated[
    int,
    Parameter(
        name=["--lines", "-n"],
        metavar="COUNT",
        validator=Number(gte=0, lte=CHANGES_MAX),
        help="How many of the newest changes to begin with.",
    ),
]
Follow = Annotated[
    bool,
    Parameter(
        name=["--follow", "-f"],
        negative="",
        show_default=False,
        help="Go on with each change that becomes durable, until Ctrl-C.",
    ),
]
FormatOption = Annotated[
    Literal["auto", "ndjson", "text"],
    Parameter(
        name="--format",
        help="ndjson: the records as they are. text: a line each, cut to the terminal. auto: text "
        "in a terminal, else ndjson.",
    ),
]


def tail(
    table: Table,
    /,
    *,
    config: ConfigFile = None,
    lines: Count = 10,
    follow: Follow = False,
    format: FormatOption = "auto",  # noqa: A002 - the option's name
) -> int:
    """Show a table's newest changes, and with -f each one as it becomes durable.

    Needs only [destination] of the configuration, and the right to list and read. What is shown is
    in the bucket for good, so a change is seen when its object is published: after chunk.max_age at
    the latest. Rows of a snapshot that was complete before are no changes, and are left out. For a
    program that has to miss nothing, `tailrace read --since` is the command.
    """
    destination = load_destination(config, os.environ)
    is_text = format == "text" or (format == "auto" and sys.stdout.isatty())
    cursor = asyncio.run(_tailed(destination, table, lines, is_text=is_text, is_followed=follow))
    option = same_file(config)
    tell_next(f"tailrace read {quote(table)} --since {cursor}{option}", "what comes after these")
    return 0


async def _tailed(
    destination: DestinationConfiguration,
    table: str,
    count: int,
    *,
    is_text: bool,
    is_followed: bool,
) -> str:
    """The cursor behind what was shown. With `is_followed` it does not end by itself."""
    with lean_imports():
        from engine import app  # noqa: PLC0415 - a wrong configuration is told before
        from engine.operate import logs  # noqa: PLC0415 - likewise
    from engine.reader.journal import JournalView  # noqa: PLC0415 - likewise
    from engine.reader.table.newest import Tail  # noqa: PLC0415 - likewise

    # Without this, whatever is logged would go to stdout.
    logs.configure(default_log())
    async with app.open_bucket(destination) as store:
        view = JournalView(store, destination.prefix)
        await view.load()
        tail = Tail(store, view, table)
        shown = _Shown(tail, is_text=is_text)
        newest = await tail.newest(count)
        shown.take(newest)
        if count and not newest:
            tell(f"no change of {table} is in the bucket yet; rows of a snapshot are no changes")
        while is_followed:
            await asyncio.sleep(FOLLOW_SECONDS)
            shown.take(await _more(tail, shown))
        return tail.cursor


async def _more(tail: "Tail", shown: "_Shown") -> "list[Change]":
    """What came since. A bucket that does not answer is waited for."""
    try:
        return await tail.more()
    except DestinationUnavailable as error:
        shown.warn(f"{error}; it is asked again")
        return []


class _Shown:
    """What was written. Each warning is told once."""

    def __init__(self, tail: "Tail", *, is_text: bool) -> None:
        self._tail = tail
        self._is_text = is_text
        self._told: set[str] = set()
        self._target = Target(None)

    def take(self, changes: "list[Change]") -> None:
        """Write them, at once: somebody watches."""
        reading = self._tail.reading
        for doubt in reading.doubts if reading is not None else ():
            self.warn(f"{doubt.code}: {doubt.text}")
        if changes:
            self._target.write(self._texts(changes) if self._is_text else _lines(changes))
            self._target.finish()

    def warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            tell(f"warning: {text}")

    def _texts(self, changes: "list[Change]") -> bytes:
        from engine.reader.formats.taking import Taking  # noqa: PLC0415 - it loads the engine

        assert self._tail.reading is not None
        taking = Taking(self._tail.reading)
        columns = columns_of(sys.stdout)
        texts = [_text(_taken(taking, each), columns) for each in changes]
        return ("\n".join(texts) + "\n").encode(errors="replace")


def _lines(changes: "list[Change]") -> bytes:
    return b"".join(each.line + b"\n" for each in changes)


def _taken(taking: "Taking", change: "Change") -> "Taken":
    [taken] = taking.changes(memoryview(change.line + b"\n"), change.version)
    return taken


def _text(taken: "Taken", columns: int | None) -> str:
    """A change in one line: when it committed (UTC), what it did, and the row."""
    at = datetime.fromtimestamp(taken.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    row = taken.after if taken.after is not None else taken.before or {}
    values = [f"{name}={_value(bytes(raw))}" for name, raw in row.items()]
    values += [f"{name}=(unchanged)" for name in taken.unchanged]
    operation = _OPERATIONS.get(taken.op, taken.op)
    line = printable(f"{at}  {operation:8}  {'  '.join(values)}".rstrip())
    return line if columns is None else cut(line, columns)


def _value(raw: bytes) -> str:
    return raw.decode(errors="replace")
