"""One transaction in a session of its own, which waits for locks only a moment.

Strategy: afterwards nothing tells who was in the way. So a second session looks while the first one
waits.

Invariant: nothing is asked twice. A session asks again where its connection was lost. Inside of a
transaction that would be outside of it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import psycopg
import structlog
from psycopg import sql

from engine.model.errors import SourceError, SourceFailed
from engine.sources.postgres.session import Connection, Query, Row, Session, translated

TRANSACTION_SESSIONS: Final = 2
"""Plain sessions of one transaction: its own, and, where it waits, the one that looks."""

LOCK_TIMEOUT: Final = "2s"
"""It is longer than the default of deadlock_timeout: by then the server has cancelled an autovacuum
that is in the way."""

LOCK_NOT_AVAILABLE: Final = "55P03"

_LOOK_SECONDS: Final = 1.0
"""After so long, and again and again, it is asked who is in the way."""

_BLOCKING: Final = """
SELECT b.pid, coalesce(a.usename, ''), coalesce(a.state, ''),
       coalesce(pg_catalog.date_part('epoch',
         pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) a.xact_start), 0)::pg_catalog.int8
FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(%s)) AS b(pid)
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) b.pid
LIMIT 3
"""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class LockTaken(SourceFailed):
    """A lock was not to be had in time; `by` says who had it, empty where nobody was seen."""

    def __init__(self, message: str, *, by: str, hint: str = "") -> None:
        super().__init__(message, code=LOCK_NOT_AVAILABLE, hint=hint)
        self.by = by


class Transaction:
    """Questions and statements inside of one transaction."""

    def __init__(self, connection: Connection, place: str) -> None:
        self._connection = connection
        self._place = place

    async def rows(self, query: Query, *arguments: object, doing: str) -> list[Row]:
        """See `Questions`."""
        try:
            cursor = await self._connection.execute(query, arguments or None)
            return await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise translated(error, doing, self._place) from error

    async def run(self, statement: str, *, doing: str) -> None:
        """Run a text that the server takes as one statement or refuses.

        Raises SourceError, with what the server said as its cause. Cancellation cancels the
        statement.
        """
        # Asked for binary results, psycopg uses the extended protocol. There the server refuses a
        # text of several statements.
        try:
            await self._connection.execute(sql.SQL(statement), binary=True)
        except psycopg.Error as error:
            raise translated(error, doing, self._place) from error


@asynccontextmanager
async def transaction(
    session: Session, *, doing: str, lock_timeout: str = ""
) -> AsyncIterator[Transaction]:
    """A transaction where `session` leads to, in a session of its own.

    It waits for a lock for `lock_timeout`, `LOCK_TIMEOUT` where that is empty. Who wants it to last
    says COMMIT at its end. Raises SourceError, and LockTaken among these. Cancellation rolls it
    back.
    """
    async with await session.connected() as connection:
        inside = Transaction(connection, session.place)
        await inside.rows("BEGIN", doing=doing)
        await inside.rows(
            "SELECT pg_catalog.set_config('lock_timeout', %s, true)",
            lock_timeout or LOCK_TIMEOUT,
            doing=doing,
        )
        async with _blaming(session, connection.info.backend_pid):
            yield inside
        # Nothing happens here where it was committed.
        await connection.rollback()


@asynccontextmanager
async def _blaming(session: Session, pid: int) -> AsyncIterator[None]:
    """Have an error of the body that is a lock's say who had it. `pid` is the body's process."""
    failure: Exception | None = None
    seen = [""]
    async with asyncio.TaskGroup() as group, session.another() as looking:
        task = group.create_task(_look(looking, pid, seen))
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised below, bare: it is not the group's
            failure = error
        finally:
            task.cancel()
    if isinstance(failure, SourceFailed) and failure.code == LOCK_NOT_AVAILABLE:
        raise LockTaken(str(failure), by=seen[0], hint=failure.hint) from failure
    if failure is not None:
        raise failure


async def _look(session: Session, pid: int, seen: list[str]) -> None:
    """Keep in `seen` who was in the way of `pid` last, until cancelled."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            found = await session.rows(_BLOCKING, pid, doing="looking who is in the way")
        except SourceError as error:
            _log.debug("who is in the way is not known", error=str(error))
            continue
        if found:
            seen[0] = "; ".join(_text_of(*row) for row in found)


def _text_of(pid: int, role: str, state: str, seconds: int) -> str:
    if not pid:
        return "a prepared transaction (pg_prepared_xacts names it)"
    return f"process {pid} (role {role or '?'}, {state or '?'}, its transaction {seconds} s old)"
