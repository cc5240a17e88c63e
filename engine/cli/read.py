"""`tailrace read`: a table's changes since a cursor, or its rows, from the bucket alone."""

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from engine.cli.options import ConfigFile, Json, Table, Usage, same_file
from engine.cli.output import say_json, tell, tell_next
from engine.cli.read_form import Format, Write, form_of
from engine.cli.read_target import Target, keep_cursor, kept_cursor
from engine.cli.startup import lean_imports
from engine.cli.verify_progress import SilentProgress, TerminalProgress
from engine.config import DestinationConfiguration, default_log, load_destination
from engine.model.plural import counted

if TYPE_CHECKING:
    from engine.reader.table import Doubt, Question, Reading

Since = Annotated[
    str | None,
    Parameter(
        name="--since",
        metavar="CURSOR",
        help="A cursor: read what came after it. Without one: all changes.",
    ),
]
Current = Annotated[
    bool,
    Parameter(
        name="--current",
        negative="",
        show_default=False,
        help="The table's rows, not its changes.",
    ),
]
UntilText = Annotated[
    str | None,
    Parameter(
        name="--until",
        metavar="PLACE",
        help="A position, or a time with its zone: read up to there, or the rows as of then.",
    ),
]
FormatOption = Annotated[
    Format, Parameter(name="--format", help="parquet needs pip install 'tailrace[read]'.")
]
CursorFile = Annotated[
    Path | None,
    Parameter(
        name="--cursor-file",
        metavar="FILE",
        help="Begin with the cursor in this file, where there is one, and keep the new one there.",
    ),
]
Output = Annotated[
    Path | None,
    Parameter(
        name="--output",
        metavar="FILE",
        help="Write to this file, which appears when it is whole.",
    ),
]
AllowGaps = Annotated[
    bool,
    Parameter(
        name="--allow-gaps",
        negative="",
        show_default=False,
        help="Where something is missing, warn, and read the rest.",
    ),
]
Text = Annotated[
    tuple[str, ...],
    Parameter(
        name="--text",
        metavar="COLUMN",
        negative="",
        show_default=False,
        help="A column to be read as text, as it was recorded. May be repeated.",
    ),
]


def read(
    table: Table,
    /,
    *,
    config: ConfigFile = None,
    since: Since = None,
    current: Current = False,
    until: UntilText = None,
    format: FormatOption = "ndjson",  # noqa: A002 - the option's name
    cursor_file: CursorFile = None,
    output: Output = None,
    allow_gaps: AllowGaps = False,
    text: Text = (),
    json: Json = False,
) -> int:
    """Read one table from the bucket: its changes since a cursor, or its rows as they are.

    Needs only [destination] of the configuration, and the right to list and read. Everything that
    committed before one position is read, so tables that are read --until the same one fit
    together. Where changes are missing, or with --current a snapshot is not finished, it says so
    and ends with 1. The cursor for the next --since is told on stderr, or kept in --cursor-file
    once all is written. The rows of a snapshot come among the changes when all of them are there.
    """
    _require_together(since, current=current, cursor_file=cursor_file, output=output, json=json)
    if format == "parquet" and output is None and sys.stdout.isatty():
        raise Usage("--format parquet is no text for a terminal: add --output FILE")
    destination = load_destination(config, os.environ)
    asking = _Asking(
        table=table,
        since=since or kept_cursor(cursor_file),
        current=current,
        until=until or "",
        allow_gaps=allow_gaps,
    )
    question = asking.question()
    job = _Job(destination, question, format, text)
    with Target(output) as target:
        done = asyncio.run(job.run(target.write, is_quiet=json))
        target.finish()
    if cursor_file is not None:
        keep_cursor(cursor_file, done.cursor)
    if json:
        say_json(done.as_json())
    else:
        _tell_end(done, table, cursor_file, same_file(config))
    return 0


def _require_together(
    since: str | None,
    *,
    current: bool,
    cursor_file: Path | None,
    output: Path | None,
    json: bool,
) -> None:
    if current and (since is not None or cursor_file is not None):
        raise Usage("--current reads all rows, so it takes no cursor")
    if json and output is None:
        raise Usage("--json puts one object on stdout: add --output FILE for what is read")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """What was asked, as words."""

    table: str
    since: str
    current: bool
    until: str
    allow_gaps: bool

    def question(self) -> "Question":
        from engine.reader.table import Question, Until, parse_until  # noqa: PLC0415 - heavy

        try:
            until = parse_until(self.until) if self.until else Until()
        except ValueError as error:
            raise Usage(f"--until {self.until} is neither a position nor a time") from error
        return Question(
            table=self.table,
            is_current=self.current,
            since=self.since,
            until=until,
            allows_gaps=self.allow_gaps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """What was read. `cursor` is empty for rows."""

    table: str
    is_current: bool
    count: int
    until: str
    cursor: str
    doubts: "tuple[Doubt, ...]"

    def as_json(self) -> dict[str, object]:
        return {
            "table": self.table,
            "kind": "rows" if self.is_current else "changes",
            "count": self.count,
            "until": self.until,
            "cursor": self.cursor or None,
            "warnings": [{"code": one.code, "text": one.text} for one in self.doubts],
        }


@dataclass(frozen=True, slots=True)
class _Job:
    """One reading, from the bucket to what `write` takes."""

    destination: DestinationConfiguration
    question: "Question"
    format: Format
    as_text: tuple[str, ...]

    async def run(self, write: Write, *, is_quiet: bool) -> _Done:
        with lean_imports():
            from engine import app  # noqa: PLC0415 - a wrong configuration is told before
            from engine.operate import logs  # noqa: PLC0415 - likewise
        from engine.reader.formats.taking import Taking  # noqa: PLC0415 - likewise
        from engine.reader.table import open_reading  # noqa: PLC0415 - likewise

        # Without this, whatever is logged would go to stdout.
        logs.configure(default_log())
        async with app.open_bucket(self.destination) as store:
            reading = await open_reading(store, self.destination.prefix, self.question)
            if not is_quiet:
                _tell_doubts(reading.doubts)
            form = form_of(self.format, Taking(reading, self.as_text), write)
            count = 0
            with _progress(is_quiet=is_quiet) as progress:
                async with reading.lines() as answer:
                    async for some in answer:
                        count += await asyncio.to_thread(form.take, some.lines, some.version)
                        progress.reached("rows" if reading.is_current else "changes", count, None)
                await asyncio.to_thread(form.finish)
        return _done(reading, count)


def _done(reading: "Reading", count: int) -> _Done:
    return _Done(
        table=str(reading.known.table),
        is_current=reading.is_current,
        count=count,
        until=reading.known.until,
        cursor=reading.cursor,
        doubts=reading.doubts,
    )


def _progress(*, is_quiet: bool) -> SilentProgress | TerminalProgress:
    is_shown = sys.stderr.isatty() and not sys.stdout.isatty() and not is_quiet
    return TerminalProgress() if is_shown else SilentProgress()


# --- what is told, on stderr


def _tell_doubts(doubts: "tuple[Doubt, ...]") -> None:
    for doubt in doubts:
        tell(f"warning: {doubt.code}: {doubt.text}")


def _tell_end(done: _Done, table: str, cursor_file: Path | None, option: str) -> None:
    what = "row" if done.is_current else "change"
    tell(f"{counted(done.count, what)} of {done.table}, up to {done.until}")
    if done.is_current:
        tell_next(f"tailrace read {quote(table)} --current --until {done.until}{option}", "again")
    elif cursor_file is not None:
        kept = quote(str(cursor_file))
        tell_next(
            f"tailrace read {quote(table)} --cursor-file {kept}{option}", "what comes after it"
        )
    else:
        tell_next(
            f"tailrace read {quote(table)} --since {done.cursor}{option}", "what comes after it"
        )
