"""One transaction in a session of its own, which waits for locks only a moment.

Invariant: nothing is asked twice. A session asks again where its connection was lost. Inside of a
transaction that would be outside of it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import psycopg
from psycopg import sql

from engine.sources.postgres.session import Connection, Query, Row, Session, translated

LOCK_TIMEOUT: Final = "2s"
"""It is longer than the default of deadlock_timeout: by then the server has cancelled an autovacuum
that is in the way."""

LOCK_NOT_AVAILABLE: Final = "55P03"


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
async def transaction(session: Session, *, doing: str) -> AsyncIterator[Transaction]:
    """A transaction where `session` leads to, in a session of its own.

    Who wants it to last says COMMIT at its end. Raises SourceError. Cancellation rolls it back.
    """
    async with await session.connected() as connection:
        inside = Transaction(connection, session.place)
        await inside.rows("BEGIN", doing=doing)
        await inside.rows(
            "SELECT pg_catalog.set_config('lock_timeout', %s, true)", LOCK_TIMEOUT, doing=doing
        )
        yield inside
        # Nothing happens here where it was committed.
        await connection.rollback()
