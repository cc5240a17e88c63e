"""Sessions that read under an exported snapshot: keepers, and whoever reads a range.

Strategy: a transaction takes the snapshot by its name, and locks tables without waiting: whoever
waits for a lock makes every later query of that table wait. A table that cannot be locked spoils
nothing, because each attempt is a savepoint. Questions are asked inside a savepoint too.

Invariant: no other lock than ACCESS SHARE is taken, and none is waited for.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import psycopg
from psycopg.pq import TransactionStatus

from engine.model.errors import SnapshotStale, SourceError
from engine.model.schema import TableName
from engine.sources.postgres.images import ROOT_KIND, Image
from engine.sources.postgres.session import (
    Connection,
    Query,
    Row,
    cut_off,
    quoted,
    translated,
)

_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_EXPORT: Final = "SELECT pg_catalog.pg_export_snapshot()"
_SAVEPOINT: Final = "SAVEPOINT tailrace"
_BACK: Final = "ROLLBACK TO SAVEPOINT tailrace"
_RELEASE: Final = "RELEASE SAVEPOINT tailrace"

_END_SECONDS: Final = 2.0

_GONE_STATES: Final = frozenset({"42704", "22023", "55000", "72000"})
"""The snapshot is gone: undefined_object, invalid_parameter_value,
object_not_in_prerequisite_state,
snapshot_too_old (old_snapshot_threshold, PostgreSQL 14 to 16)."""

_CHANGED_STATES: Final = frozenset({"55P03", "55006", "42P01", "3F000"})
"""Somebody has the table, or it is gone: lock_not_available, object_in_use, undefined_table,
invalid_schema_name."""

_OF_A_TABLE: Final = _CHANGED_STATES | {"42501", "42809"}
"""What may be wrong with one table of many: also insufficient_privilege, wrong_object_type."""

_ENDED_BY_ROLLBACK: Final = (TransactionStatus.INTRANS, TransactionStatus.INERROR)


def judged_stale(error: psycopg.Error, doing: str, place: str) -> SourceError:
    """SnapshotStale where somebody has a table or the snapshot is gone, else what it means."""
    found = translated(error, doing, place)
    if error.sqlstate in _GONE_STATES | _CHANGED_STATES:
        return SnapshotStale(str(found))
    return found


def relation_text(schema: str, name: str) -> str:
    """A relation's name as SQL takes it."""
    return f"{quoted(schema)}.{quoted(name)}"


class HeldSession:
    """A connection whose transaction sees an exported snapshot, from `begin` on."""

    def __init__(self, connection: Connection, place: str) -> None:
        self._connection = connection
        # A question is several messages, and everybody's savepoint has the same name.
        self._asking = asyncio.Lock()
        self._is_over = False
        self.place = place

    @property
    def is_idle(self) -> bool:
        """Whether its transaction has ended well, and nothing is under way."""
        return self._connection.info.transaction_status is TransactionStatus.IDLE

    @property
    def is_busy(self) -> bool:
        """Whether something is asked at this moment."""
        return self._asking.locked()

    @property
    def is_lost(self) -> bool:
        """Whether its connection ended."""
        return self._connection.closed

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._connection.info.backend_pid

    @property
    def server_version(self) -> int:
        """As `180001`."""
        return self._connection.info.server_version

    async def begin(
        self,
        names: Sequence[str],
        *,
        first: str = "",
        then: str = "",
        doing: str = "taking an exported snapshot",
    ) -> list[Row]:
        """Take the snapshot by the first of these names that still stands.

        All of it is one message. `first` is SQL of the transaction that reads nothing, `then` is
        SQL that sees the snapshot: the rows of its last statement are returned. `doing` is what an
        error says. Raises SnapshotStale where no name stands or somebody has a table, SourceError.
        Cancellation leaves a transaction that may not have the snapshot: the connection is to be
        closed.
        """
        connection = self._connection
        for left, name in enumerate(names, 1 - len(names)):
            statements = (_BEGIN, first, f"SET TRANSACTION SNAPSHOT '{name}'", then)
            query = "; ".join(filter(None, statements))
            try:
                cursor = await connection.execute(query.encode(), prepare=False)
                while cursor.nextset():
                    pass
                return await cursor.fetchall() if cursor.description else []
            except psycopg.Error as error:
                if left == 0 or error.sqlstate not in _GONE_STATES:
                    raise judged_stale(error, doing, self.place) from error
                await connection.rollback()
        raise SnapshotStale("a snapshot without a name")

    async def export(self) -> str:
        """Export the snapshot again, under a name that stands as long as this session.

        Cancellation may leave it exported.
        """
        try:
            async with self._question():
                cursor = await self._connection.execute(_EXPORT)
                [[name]] = await cursor.fetchall()
        except psycopg.Error as error:
            raise judged_stale(error, "exporting a snapshot again", self.place) from error
        return str(name)

    async def lock(self, images: Sequence[Image]) -> dict[TableName, SourceError]:
        """Lock these tables, with their partitions; those that cannot be locked, and why.

        Raises SourceError where the whole session is in trouble. Cancellation leaves some locked.
        """
        if not images:
            return {}
        error = await self._try_lock(images)
        if error is None:
            return {}
        found = judged_stale(error, "locking a table for reading", self.place)
        if error.sqlstate not in _OF_A_TABLE:
            raise found from error
        if len(images) == 1:
            return {images[0].table: found}
        # Most of the time all of them can be locked by one statement.
        middle = len(images) // 2
        return await self.lock(images[:middle]) | await self.lock(images[middle:])

    async def _try_lock(self, images: Sequence[Image]) -> psycopg.Error | None:
        targets = ", ".join(_target(image) for image in images)
        statement = f"LOCK TABLE {targets} IN ACCESS SHARE MODE NOWAIT"
        failure = None
        try:
            async with self._question():
                await self._connection.execute(_SAVEPOINT)
                try:
                    await self._connection.execute(statement.encode())
                except psycopg.Error as error:
                    failure = error
                    await self._connection.execute(_BACK)
                await self._connection.execute(_RELEASE)
        except psycopg.Error as error:
            raise translated(error, "locking a table for reading", self.place) from error
        return failure

    async def rows(self, query: Query, *arguments: object, doing: str) -> list[Row]:
        """The rows of one query, as the snapshot has them. What it sets or locks is undone.

        Raises SourceError; the snapshot is kept all the same, as long as the session lives.
        Cancellation may end the transaction: the connection is to be closed.
        """
        try:
            async with self._question():
                await self._connection.execute(_SAVEPOINT)
                try:
                    cursor = await self._connection.execute(query, arguments or None)
                    return await cursor.fetchall()
                finally:
                    await self._back()
        except psycopg.Error as error:
            raise translated(error, doing, self.place) from error

    async def glance(self, query: str, *, doing: str) -> list[Row]:
        """The rows of a text's last statement, asked for in one message. What it locks is undone.

        Raises SourceError; the snapshot is kept all the same, as long as the session lives.
        Cancellation may end the transaction: the connection is to be closed.
        """
        text = f"{_SAVEPOINT}; {query}; {_BACK}; {_RELEASE}"
        rows: list[Row] = []
        try:
            async with self._question():
                try:
                    cursor = await self._connection.execute(text.encode(), prepare=False)
                except psycopg.Error:
                    await self._back()
                    raise
                while cursor.nextset():
                    if cursor.description:
                        rows = await cursor.fetchall()
                return rows
        except psycopg.Error as error:
            raise translated(error, doing, self.place) from error

    async def _back(self) -> None:
        await self._connection.execute(_BACK)
        await self._connection.execute(_RELEASE)

    def cut_off(self) -> None:
        """End the connection, whether or not the server answers. Never waits."""
        if not self._connection.closed:
            cut_off(self._connection.pgconn.socket)

    async def end(self) -> None:
        """Let go of everything, and close. It raises nothing, whatever became of the connection.

        A server that does not answer is waited for two seconds. Cancellation closes it all the
        same: where a question is still being asked, whoever asks it closes it.
        """
        self._is_over = True
        connection = self._connection
        timer = asyncio.get_running_loop().call_later(_END_SECONDS, self.cut_off)
        try:
            if self._asking.locked():
                self.cut_off()
            async with self._question():
                # A connection in the middle of a COPY has nothing to say. It is closed as it is.
                if connection.info.transaction_status in _ENDED_BY_ROLLBACK:
                    await connection.rollback()
        except psycopg.Error:
            pass
        finally:
            timer.cancel()
            if not self._asking.locked():
                await connection.close()

    @asynccontextmanager
    async def _question(self) -> AsyncIterator[None]:
        """Be the only one who asks. Once the session is over, the last who asks closes it.

        libpq's connection would be freed under who still reads from it, were it closed by another.
        """
        async with self._asking:
            try:
                yield
            finally:
                if self._is_over:
                    # It does not wait, so nothing cancels it.
                    await self._connection.close()


def _target(image: Image) -> str:
    # A table's heirs that are no partitions are tables of their own.
    own = image.relations[0]
    only = "" if own.kind == ROOT_KIND else "ONLY "
    return only + relation_text(own.schema, own.name)
