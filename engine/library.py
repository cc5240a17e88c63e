"""What a Python program calls: `tailrace.read`. The package `tailrace` is its face.

Strategy: a program that calls this has no event loop, or one of its own. So a reading has a thread
with a loop, which gets objects ahead and makes batches. What it made waits in a short queue, and
where nobody takes it, the thread waits too.

Invariant: closing a reading, or leaving its block, ends the thread and closes all connections.
"""

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import structlog

from engine import app
from engine.config import DestinationConfiguration, load_destination
from engine.model.errors import ConfigurationError, ReadRefused, TailraceError
from engine.reader.formats.taking import Taking
from engine.reader.table import Question, Reading, Until, open_reading, parse_until

_WAITING_MAX: Final = 2
_SCHEME: Final = "s3"


def read(
    pipeline: str | os.PathLike[str] | None,
    table: str,
    *,
    since: str | None = None,
    current: bool = False,
    until: str | datetime | None = None,
    allow_gaps: bool = False,
    text: Sequence[str] = (),
) -> "TableReading":
    """Read one table from its pipeline's bucket.

    `pipeline` is a configuration file, or a URL: `s3://bucket/prefix?region=eu-central-1`, whose
    parameters are keys of `[destination]`. None: as `tailrace` finds its configuration.

    Without `current` these are the table's changes, from the cursor `since` on; without that one,
    all that are there. With `current` these are its rows. `until` is a position, or a time with its
    zone: the table as it was then. `allow_gaps`: what is missing is in `doubts`, and no error.
    Columns in `text` are read as text, as they were recorded.

    Raises TailraceError: ReadRefused where the answer would be wrong or incomplete.
    """
    if current and since:
        raise ValueError("current rows have no cursor: give either since or current")
    question = Question(
        table=table,
        is_current=current,
        since=since or "",
        until=_until(until),
        allows_gaps=allow_gaps,
    )
    return TableReading(destination_of(pipeline), question, tuple(text))


def _until(until: str | datetime | None) -> Until:
    if until is None:
        return Until()
    return parse_until(until.isoformat() if isinstance(until, datetime) else until)


def destination_of(pipeline: str | os.PathLike[str] | None) -> DestinationConfiguration:
    """The bucket and prefix that a file or a URL names. Raises ConfigurationError."""
    text = os.fspath(pipeline) if pipeline is not None else ""
    parts = urlsplit(text)
    if parts.scheme != _SCHEME:
        return load_destination(Path(text) if text else None, os.environ)
    if not parts.netloc:
        raise ConfigurationError(f"{text} names no bucket", hint="Write s3://bucket/prefix")
    given = {
        "bucket": parts.netloc,
        "prefix": unquote(parts.path.strip("/")),
        **dict(parse_qsl(parts.query, strict_parsing=bool(parts.query))),
    }
    named = {f"TAILRACE_DESTINATION__{name.upper()}": value for name, value in given.items()}
    return load_destination(Path(os.devnull), named)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What is known before the first line. `schema` is None where pyarrow is not needed."""

    reading: Reading
    taking: Taking


@dataclass(frozen=True, slots=True)
class _Made:
    """Something that was made of some lines, and the cursor behind them (empty: in between)."""

    value: Any
    cursor: str


@dataclass(frozen=True, slots=True)
class _Failed:
    error: BaseException


_END: Final = object()
_Make = Callable[[memoryview, int], Iterator[Any]]
"""Lines of one version into what is handed over. Any: batches, or bytes."""


class TableReading:
    """One answer, read once: iterate it for pyarrow's record batches, or call one of its methods.

    A context manager. Reading to the end closes it too; one that is not read to its end has to be
    closed, or its thread and its connections stay. Not for several threads at once.
    """

    def __init__(
        self, destination: DestinationConfiguration, question: Question, as_text: tuple[str, ...]
    ) -> None:
        """Find what there is to read. Raises TailraceError."""
        self._destination = destination
        self._question = question
        self._as_text = as_text
        self._opened: queue.SimpleQueue[_Opened | _Failed] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[_Made | _Failed | object] = queue.SimpleQueue()
        self._make: _Make | None = None
        _log_as_python_does()
        # Each is counted by one thread alone.
        self._handed_count = 0
        self._taken_count = 0
        self._is_closed = False
        self._is_begun = False
        self._cursor: str | None = question.since or None
        self._loop: asyncio.AbstractEventLoop
        self._changed: asyncio.Event
        self._task: asyncio.Task[Any]
        self._thread = threading.Thread(target=self._work, name="tailrace-read", daemon=True)
        self._thread.start()
        found = self._opened.get()
        if isinstance(found, _Failed):
            self._thread.join()
            raise found.error
        self._reading, self._taking = found.reading, found.taking

    # --- what is known before

    @property
    def table(self) -> str:
        """The table's whole name."""
        return str(self._reading.known.table)

    @property
    def until(self) -> str:
        """Up to where the answer goes: what commits before this position is in it."""
        return self._reading.known.until

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is missing, in words; only with `allow_gaps` there is any."""
        return tuple(doubt.text for doubt in self._reading.doubts)

    @property
    def cursor(self) -> str | None:
        """Where to go on: behind all that was handed over, to the end of an object.

        Before the first such end it is the one that was given. Rows have none.
        """
        return self._cursor

    @property
    def schema(self) -> Any:
        """The schema of all batches: pyarrow's, which has no types."""
        return self._batches().schema

    # --- reading

    def __iter__(self) -> Iterator[Any]:
        """Record batches of pyarrow."""
        batches = self._batches()

        def make(lines: memoryview, version: int) -> Iterator[Any]:
            for piece in self._taking.pieces(lines):
                if self._taking.is_changes:
                    yield batches.of_changes(self._taking.changes(piece, version))
                else:
                    yield batches.of_row_lines(bytes(piece))

        return self._each(make)

    def ndjson(self) -> Iterator[bytes]:
        """The lines as they are: records, or rows. Each piece has whole lines."""
        return self._each(lambda lines, _: map(bytes, self._taking.pieces(lines)))

    def arrow(self) -> Any:
        """All of it as one table of pyarrow, in memory."""
        schema = self.schema
        import pyarrow as pa  # noqa: PLC0415 - an extra

        return pa.Table.from_batches(self, schema)

    def duckdb(self, connection: Any = None, name: str = "tailrace_read") -> Any:
        """All of it as a relation of DuckDB, over a temporary table of that name.

        Without a `connection` it is DuckDB's default one. DuckDB keeps the table on disk where it
        is larger than its memory.
        """
        schema = self.schema
        import duckdb  # noqa: PLC0415 - an extra
        import pyarrow as pa  # noqa: PLC0415 - an extra

        connection = connection if connection is not None else duckdb.default_connection()
        rows = pa.RecordBatchReader.from_batches(schema, self)
        quoted = '"' + name.replace('"', '""') + '"'
        connection.register("tailrace_batches", rows)
        try:
            connection.execute(f"CREATE OR REPLACE TEMP TABLE {quoted} AS FROM tailrace_batches")
        finally:
            connection.unregister("tailrace_batches")
        return connection.table(name)

    def _batches(self) -> Any:
        try:
            from engine.reader.formats.arrow import Batches  # noqa: PLC0415 - an extra
        except ImportError as error:
            self.close()
            raise extra_missing() from error
        return Batches(self._taking.columns, is_changes=self._taking.is_changes)

    def _each(self, make: _Make) -> Iterator[Any]:
        if self._is_begun or self._is_closed:
            raise ValueError("an answer is read once: ask again")
        self._is_begun = True
        self._make = make
        self._wake()
        return self._taken()

    def _taken(self) -> Iterator[Any]:
        try:
            while (made := self._made.get()) is not _END:
                if isinstance(made, _Failed):
                    raise made.error
                assert isinstance(made, _Made)
                self._taken_count += 1
                self._wake()
                self._cursor = made.cursor or self._cursor
                yield made.value
            # The thread ends by itself now, and closes its connections.
            self._is_closed = True
            if not self._reading.is_current:
                self._cursor = self._reading.cursor
        finally:
            self.close()

    # --- the end

    def close(self) -> None:
        """Read no further. What was handed over stays."""
        if not self._is_closed:
            self._is_closed = True
            # A request may be under way, or be repeated.
            self._tell(self._task.cancel)
        self._thread.join()

    def _wake(self) -> None:
        """Have the thread look again at what this one has changed."""
        self._tell(self._changed.set)

    def _tell(self, what: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):
            # The loop may be closed: the thread has ended.
            self._loop.call_soon_threadsafe(what)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- the thread

    def _work(self) -> None:
        try:
            asyncio.run(self._answer())
        except BaseException as error:  # noqa: BLE001 - whoever waits is told
            self._opened.put(_Failed(error))
            self._made.put(_Failed(error))

    async def _answer(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._loop, self._task, self._changed = asyncio.get_running_loop(), task, asyncio.Event()
        async with app.open_bucket(self._destination) as store:
            reading = await open_reading(store, self._destination.prefix, self._question)
            self._opened.put(_Opened(reading, Taking(reading, self._as_text)))
            await self._until(lambda: self._make is not None)
            assert self._make is not None
            async with reading.lines() as answer:
                async for some in answer:
                    await self._hand_over(self._make(some.lines, some.version), some.cursor)
        self._made.put(_END)

    async def _hand_over(self, values: Iterator[Any], cursor: str) -> None:
        """Make all of some lines, and hand it over when there is room."""
        value = await asyncio.to_thread(next, values, None)
        while value is not None:
            following = await asyncio.to_thread(next, values, None)
            await self._until(lambda: self._handed_count - self._taken_count < _WAITING_MAX)
            self._handed_count += 1
            self._made.put(_Made(value, cursor if following is None else ""))
            value = following

    async def _until(self, is_so: Callable[[], bool]) -> None:
        """Wait until it is so.

        No worker of a pool waits for the reader: the interpreter would wait for it at its end.
        """
        while not is_so():
            self._changed.clear()
            if not is_so():
                await self._changed.wait()


def _log_as_python_does() -> None:
    """Hand what is logged to `logging`, unless this program has told structlog what to do.

    By itself structlog prints to stdout, which belongs to the program.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[structlog.processors.KeyValueRenderer(key_order=["event"])],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
        )


def extra_missing() -> ReadRefused:
    """That pyarrow is not installed."""
    return ReadRefused(
        "extra-missing",
        "pyarrow is not installed",
        hint="pip install 'tailrace[read]'",
    )


__all__ = ["ReadRefused", "TableReading", "TailraceError", "destination_of", "read"]
