"""A range of a snapshot, read: what a worker does with the task that it was given.

Strategy: a transaction takes the snapshot by one of its names, locks the leaf without waiting, and
compares its file and its name with what the task says. Only then its rows are read, by COPY. They
are bound and handed over as those of a stream are. The transaction ends with the last row, and the
connection may be used for the next range. Whatever ends a reading earlier ends the connection.

Invariant: a connection that is kept holds neither snapshot nor lock, and bears no range's name. A
worker reads no row of a leaf before it has the leaf's lock and knows that the leaf is
still the file that the snapshot saw. Everything that shapes a line is in the task.
"""

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import psycopg
from psycopg import sql

from engine.lines.batcher import Batcher
from engine.lines.writer import LineWriter
from engine.model.batch import Batch, LeftOut
from engine.model.errors import DecodeError, SnapshotStale, SourceError, UnrepresentableRow
from engine.model.hash_key import NO_HASH_KEY, HashKey
from engine.model.position import snapshot_place, snapshot_position, snapshot_range
from engine.model.snapshot_source import LeaveOut, RangeTask
from engine.sources.postgres.assembler import STOPS, Drained
from engine.sources.postgres.copy_out import CopyOut
from engine.sources.postgres.copy_rows import CopyRange, CopyReader
from engine.sources.postgres.dsn import Dsn, place_of
from engine.sources.postgres.frames import FULL, Frames
from engine.sources.postgres.held_session import HeldSession, judged_stale, relation_text
from engine.sources.postgres.kept import KeptConnection
from engine.sources.postgres.ranges import OwnRange, decode_own
from engine.sources.postgres.session import Connection, connect, take_bytes_as_they_are
from engine.sources.postgres.types import column_form

_NUMBER: Final = 1
"""The line writer's number of the one table."""

_APPLICATION: Final = "tailrace range "

_APPLICATION_MAX: Final = 63
"""PostgreSQL keeps so many bytes of an application's name."""

_ROWS_MAX: Final = 2**24
"""A range has fewer rows: their numbers are parts of positions."""

IDLE_SECONDS: Final = 10.0
"""How long a worker keeps a connection that it does not use: longer than the next group takes."""

_ROW_BYTES_KEPT: Final = 4 * 1024 * 1024
"""libpq has a buffer as large as the largest row until the connection ends."""

# It would read the whole table for each range, where old statistics say that this is less.
_BY_KEY: Final = "SET LOCAL enable_seqscan = off"

_ENDS: Final = "COMMIT"

# `pg_relation_filenode` and `to_regclass` see the catalog as it is now, whatever the snapshot.
_STILL: Final = (
    "SELECT pg_catalog.to_regclass({leaf})::pg_catalog.oid::pg_catalog.int8, "
    "pg_catalog.pg_relation_filenode({oid}::pg_catalog.oid::pg_catalog.regclass)::pg_catalog.int8"
)


def application_name(name: str) -> str:
    """What a session is called that reads the range of this name."""
    return f"{_APPLICATION}{name}"[:_APPLICATION_MAX]


def range_name(application: str) -> str | None:
    """The range that a session of this name reads; None: it reads none."""
    return application.removeprefix(_APPLICATION) if application.startswith(_APPLICATION) else None


class PostgresRangeReader:
    """Implements `engine.model.snapshot_source.RangeReader`.

    A task's progress is told by its name where that is plain ASCII of 48 characters at most.
    `hash_key` is this process's own: no task holds it, and a task under another one is refused with
    ConfigurationError. A connection is kept for `idle_seconds` after a range.
    """

    def __init__(
        self, dsn: Dsn, *, hash_key: HashKey = NO_HASH_KEY, idle_seconds: float = 0.0
    ) -> None:
        self._dsn = dsn
        self._hash_key = hash_key
        self._kept = KeptConnection(idle_seconds)

    @asynccontextmanager
    async def read(
        self, task: RangeTask, leave_out: LeaveOut
    ) -> AsyncIterator[AsyncIterator[Batch]]:
        """See RangeReader. Cancellation closes the session, and the server lets go."""
        own, hash_key = decode_own(task.own), self._hash_key.secret_for(task.configuration)
        lines = _Lines(task, hash_key, leave_out)
        connection, session = await self._taken(task, own)
        try:
            yield _batches(connection, session.place, own, lines)
        finally:
            is_kept = session.is_idle and not lines.was_large and self._kept.leave(connection)
            if not is_kept:
                await session.end()

    async def _taken(self, task: RangeTask, own: OwnRange) -> tuple[Connection, HeldSession]:
        """A connection whose transaction has the snapshot and the leaf's lock."""
        kept = self._kept.take()
        if kept is not None:
            # Its server may have ended it, or another one may answer by now: a new one decides.
            with suppress(SourceError):
                return kept, await self._take(kept, task, own)
        connection = await connect(self._dsn, replication=False)
        return connection, await self._take(connection, task, own)

    async def _take(self, connection: Connection, task: RangeTask, own: OwnRange) -> HeldSession:
        """Take the snapshot and the leaf's lock. The connection is closed by whatever is raised.

        Raises SnapshotStale where the leaf is another one now.
        """
        session = HeldSession(connection, place_of(self._dsn))
        leaf = relation_text(own.schema, own.name)
        name = _literal(application_name(task.name), connection)
        # Whoever stops the readers of a snapshot finds them before they have it.
        first = [f"SET LOCAL application_name = {name}"]
        if own.key_condition:
            first.append(_BY_KEY)
        still = _STILL.format(leaf=_literal(leaf, connection), oid=own.oid)
        try:
            [[oid, file]] = await session.begin(
                own.snapshots,
                first="; ".join(first),
                then=f"LOCK TABLE ONLY {leaf} IN ACCESS SHARE MODE NOWAIT; {still}",
                doing=f"reading rows of {own.schema}.{own.name}",
            )
            _refuse_other(own, oid, file)
            await take_bytes_as_they_are(connection, in_transaction=True)
        except BaseException:
            await session.end()
            raise
        return session


def _refuse_other(own: OwnRange, oid: int | None, file: int | None) -> None:
    if (oid, file) != (own.oid, own.file):
        leaf = relation_text(own.schema, own.name)
        raise SnapshotStale(f"{leaf} is not what the snapshot saw: it was renamed or rewritten")


def _literal(text: str, connection: Connection) -> str:
    return sql.Literal(text).as_string(connection)


async def _batches(
    connection: Connection, place: str, own: OwnRange, lines: "_Lines"
) -> AsyncIterator[Batch]:
    try:
        copy = CopyOut(connection.pgconn)
        await copy.begin(f"{own.copy_statement(lines.columns)}; {_ENDS}")
        while await copy.gulp(lines):
            for batch in lines.full():
                yield batch
    except psycopg.Error as error:
        raise judged_stale(error, f"reading rows of {own.schema}.{own.name}", place) from error
    for batch in lines.rest():
        yield batch


class _Lines:
    """The lines of one range, on their way into batches."""

    def __init__(self, task: RangeTask, hash_key: bytes, leave_out: LeaveOut) -> None:
        configuration = task.configuration
        self._task = task
        self._leave_out = leave_out
        generation, order = snapshot_place(task.point)
        writer = LineWriter(
            generation,
            connector="postgresql",
            row_bytes_max=configuration.row_bytes_max,
            hash_key=hash_key,
        )
        self._batcher = Batcher(
            writer,
            database=task.database,
            configuration=configuration,
            decide=lambda _relation, _position: task.version,
            form_of=functools.partial(column_form, configuration=configuration),
        )
        lane = snapshot_range(task.attempt, task.range_number)
        first = snapshot_position(task.point, task.attempt, task.range_number, 0)
        rows = CopyReader(writer)
        rows.begin(order, task.commit_us)
        self._batcher.bind(_NUMBER, task.version.relation, first)
        row_number = 0
        if task.begins_attempt:
            # The record that supersedes everything before the attempt.
            rows.truncate(_NUMBER, lane, row_number)
            row_number = 1
        self._rows = CopyRange(rows, _NUMBER, lane, row_number, self._batcher.size_max)
        self.drained_bytes = 0
        self.was_large = False
        """Whether a row was so large that its connection is not kept."""

    def drain(self, frames: Frames, budget_bytes: int) -> Drained:
        """See `FrameTaker`. What is full becomes a batch."""
        left = budget_bytes
        while True:
            try:
                reason = self._rows.read(frames, left)
            except UnrepresentableRow as error:
                self._pass_over(error)
                reason = None
            except DecodeError as error:
                self._refuse_too_many(error)
                raise
            left -= self._rows.drained_bytes
            self.drained_bytes = budget_bytes - left
            self.was_large |= self._rows.drained_bytes >= _ROW_BYTES_KEPT
            if reason == FULL:
                self._batcher.hand_over(_NUMBER)
            elif reason is not None:
                return STOPS[reason]
            if left <= 0:
                return Drained.BUDGET

    def _refuse_too_many(self, error: DecodeError) -> None:
        """Raise SnapshotStale where the range has too many rows: another one may be cut better."""
        if self._rows.row_number >= _ROWS_MAX:
            table = self._task.version.relation.table
            raise SnapshotStale(
                f"range {self._task.range_number} of {table} has 2**24 rows or more: it was cut by"
                " an estimate, and is cut more finely the next time"
            ) from error

    def _pass_over(self, error: UnrepresentableRow) -> None:
        """Leave the row out, or raise what says whose it is and what can be done."""
        task, table = self._task, self._task.version.relation.table
        if task.configuration.on_unrepresentable == "stop":
            raise UnrepresentableRow(
                f"a row of {table}: {error.reason}",
                reason=error.reason,
                key=error.key,
                hint='Repair it, or have such rows left out: source.on_unrepresentable = "gap".',
            ) from error
        row_number = self._rows.row_number
        position = snapshot_position(task.point, task.attempt, task.range_number, row_number)
        self._rows.pass_over()
        self._leave_out(LeftOut(table, position, error.reason, error.key))

    @property
    def columns(self) -> list[str]:
        """Those that COPY is to send, in the binding's order."""
        relation, configuration = self._task.version.relation, self._task.configuration
        return [
            column.name
            for column in relation.columns
            if configuration.is_included(relation.table, column.name)
        ]

    def full(self) -> tuple[Batch, ...]:
        """The batches that are complete."""
        return self._batcher.taken()

    def rest(self) -> tuple[Batch, ...]:
        """All that is left."""
        self._batcher.hand_over_all()
        return self._batcher.taken()
