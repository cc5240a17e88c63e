"""`tailrace read`: a table's changes since a cursor, or its rows, from the bucket alone."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, assert_never

from cyclopts import CycloptsError, Parameter

from engine.cli.options import ConfigFile, Json, same_file
from engine.cli.output import ResultUnwritten, say_json
from engine.cli.startup import lean_imports
from engine.cli.verify_progress import SilentProgress, TerminalProgress
from engine.config import DestinationConfiguration, default_log, load_destination
from engine.model.errors import ReadRefused
from engine.model.plural import counted
from engine.model.printable import printable

if TYPE_CHECKING:
    from engine.reader.formats.taking import Taking
    from engine.reader.table import Doubt, Question, Reading

Format = Literal["ndjson", "csv", "parquet"]

Since = Annotated[
    str | None,
    Parameter(name="--since", help="A cursor: read what came after it. Without one: all changes."),
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
        help="Begin with the cursor in this file, where there is one, and keep the new one there.",
    ),
]
Output = Annotated[
    Path | None,
    Parameter(name="--output", help="Write to this file, which appears when it is whole."),
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
        negative="",
        show_default=False,
        help="A column to be read as text, as it was recorded. May be repeated.",
    ),
]


class _Usage(CycloptsError):
    """Options that do not go together."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def __str__(self) -> str:
        return self._text


def read(
    table: str,
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
    together. Where a snapshot is not finished, or changes are missing, it says so and ends with 1.
    The cursor for the next --since is told on stderr, or kept in --cursor-file once all is written.
    """
    _require_together(since, current=current, cursor_file=cursor_file, output=output, json=json)
    if format == "parquet" and output is None and sys.stdout.isatty():
        raise _Usage("--format parquet is no text for a terminal: add --output FILE")
    destination = load_destination(config, os.environ)
    asking = _Asking(
        table=table,
        since=since or _kept(cursor_file),
        current=current,
        until=until or "",
        allow_gaps=allow_gaps,
    )
    question = asking.question()
    job = _Job(destination, question, format, text)
    with _Target(output) as target:
        done = asyncio.run(job.run(target.write, is_quiet=json))
        target.finish()
    if cursor_file is not None:
        _keep(cursor_file, done.cursor)
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
        raise _Usage("--current reads all rows, so it takes no cursor")
    if json and output is None:
        raise _Usage("--json puts one object on stdout: add --output FILE for what is read")


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
            raise _Usage(f"--until {self.until} is neither a position nor a time") from error
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


_Write = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class _Job:
    """One reading, from the bucket to what `write` takes."""

    destination: DestinationConfiguration
    question: "Question"
    format: Format
    as_text: tuple[str, ...]

    async def run(self, write: _Write, *, is_quiet: bool) -> _Done:
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
            form = _form(self.format, Taking(reading, self.as_text), write)
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


# --- forms


class _Ndjson:
    """The lines as they are."""

    def __init__(self, write: _Write) -> None:
        self._write = write

    def take(self, lines: memoryview, version: int) -> int:
        """Write some lines, and say how many."""
        del version
        content = bytes(lines)
        self._write(content)
        return content.count(b"\n")

    def finish(self) -> None:
        """Nothing is left."""


class _Csv:
    """CSV, its header first."""

    def __init__(self, taking: "Taking", write: _Write) -> None:
        from engine.reader.formats import csv_text  # noqa: PLC0415 - it loads the engine

        self._taking = taking
        self._write = write
        self._lines = csv_text
        header = csv_text.header(taking.names, is_changes=taking.is_changes)
        self._write(header.encode())

    def take(self, lines: memoryview, version: int) -> int:
        """Write some lines, and say how many."""
        count = 0
        for piece in self._taking.pieces(lines):
            written = [*self._written(piece, version)]
            self._write("".join(written).encode())
            count += len(written)
        return count

    def _written(self, piece: memoryview, version: int) -> Iterator[str]:
        names = self._taking.names
        if self._taking.is_changes:
            return self._lines.change_lines(self._taking.changes(piece, version), names)
        return self._lines.row_lines(self._taking.rows(piece), names)

    def finish(self) -> None:
        """Nothing is left."""


class _Parquet:
    """One Parquet file."""

    def __init__(self, taking: "Taking", write: _Write) -> None:
        try:
            from engine.reader.formats.arrow import Batches  # noqa: PLC0415 - an extra
            from engine.reader.formats.parquet_file import ParquetFile  # noqa: PLC0415 - an extra
        except ImportError as error:
            hint = "pip install 'tailrace[read]'"
            raise ReadRefused("extra-missing", "pyarrow is not installed", hint=hint) from error
        self._taking = taking
        self._batches = Batches(taking.columns, is_changes=taking.is_changes)
        self._file = ParquetFile(write, self._batches.schema)

    def take(self, lines: memoryview, version: int) -> int:
        """Write some lines, and say how many."""
        count = 0
        for piece in self._taking.pieces(lines):
            batch = self._batch(piece, version)
            self._file.add(batch)
            count += batch.num_rows
        return count

    def _batch(self, piece: memoryview, version: int) -> Any:
        # Any: pyarrow has no types.
        if self._taking.is_changes:
            return self._batches.of_changes(self._taking.changes(piece, version))
        return self._batches.of_rows(self._taking.rows(piece))

    def finish(self) -> None:
        """Write the file's end."""
        self._file.finish()


def _form(format_: Format, taking: "Taking", write: _Write) -> _Ndjson | _Csv | _Parquet:
    match format_:
        case "ndjson":
            return _Ndjson(write)
        case "csv":
            return _Csv(taking, write)
        case "parquet":
            return _Parquet(taking, write)
        case _:
            assert_never(format_)


# --- where it goes


class _Target:
    """Stdout, or a file that appears under its name when it is whole."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.{os.getpid()}.part") if path else None
        self._file = sys.stdout.buffer

    def __enter__(self) -> Self:
        if self._part is not None:
            with _told(self._part):
                self._file = self._part.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        if self._part is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def write(self, content: bytes) -> None:
        """Hand it over, or most of it."""
        with _told(self._part):
            self._file.write(content)

    def finish(self) -> None:
        """All is written: with this, the system has it, and a file has its name."""
        with _told(self._part):
            self._file.flush()
            if self._part is not None and self._path is not None:
                os.fsync(self._file.fileno())
                self._part.replace(self._path)
                _sync_folder(self._path)


@contextmanager
def _told(path: Path | None) -> Iterator[None]:
    """Say what the system said. A pipe that nobody reads is no error of ours."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        where = str(path) if path is not None else "stdout"
        raise ResultUnwritten(
            f"{where} could not be written: {reason}",
            hint="Make room, or send it elsewhere, and run the same command again.",
        ) from error


def _kept(path: Path | None) -> str:
    """The cursor in the file; empty where there is no file yet."""
    if path is None:
        return ""
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ResultUnwritten(f"{path} cannot be read: {error.strerror}") from error
    if not text:
        raise ReadRefused(
            "cursor-malformed",
            f"{path} is empty",
            hint="Remove it to begin with what is there, or put the last cursor into it.",
        )
    return text


def _keep(path: Path, cursor: str) -> None:
    """Put the cursor in the place of the one before, all at once."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with _told(path):
        try:
            with part.open("w", encoding="ascii") as file:
                file.write(cursor + "\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path)
        finally:
            part.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --- what is told, on stderr


def _tell(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(printable(text, keep="\n") + "\n")
        sys.stderr.flush()


def _tell_doubts(doubts: "tuple[Doubt, ...]") -> None:
    for doubt in doubts:
        _tell(f"warning: {doubt.code}: {doubt.text}")


def _tell_end(done: _Done, table: str, cursor_file: Path | None, option: str) -> None:
    what = "row" if done.is_current else "change"
    _tell(f"{counted(done.count, what)} of {done.table}, up to {done.until}")
    if done.is_current:
        _tell(f"next: tailrace read {quote(table)} --current --until {done.until}{option}  (again)")
    elif cursor_file is not None:
        _tell(f"next: tailrace read {quote(table)} --cursor-file {quote(str(cursor_file))}{option}")
    else:
        _tell(f"next: tailrace read {quote(table)} --since {done.cursor}{option}")
