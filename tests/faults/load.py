"""A steady load: transactions over several tables, now and then one that spans many chunks.

The same seed gives the same statements; when they fall is the machine's. Values are numbers and
texts alone, which both sides print alike.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

from databases import Database

TABLES = ("orders", "items", "entries")

_MAKE_TABLES = (
    """
    CREATE TABLE orders (
        id bigint PRIMARY KEY, customer text, total numeric(12, 2), is_paid boolean, note text)
    """,
    """
    CREATE TABLE items (
        order_id bigint, line integer, sku text NOT NULL, quantity integer,
        PRIMARY KEY (order_id, line))
    """,
    "ALTER TABLE items REPLICA IDENTITY FULL",
    "CREATE TABLE entries (id bigserial PRIMARY KEY, account text, amount numeric)",
    # Long notes are stored out of line, so that updates leave some unchanged.
    "ALTER TABLE orders ALTER note SET STORAGE EXTERNAL",
)

_ADD_ORDERS = """
    INSERT INTO orders
    SELECT id, 'customer ' || id %% 97, id * 1.25, id %% 3 = 0,
           CASE WHEN id %% 7 = 0 THEN repeat(md5(id::text), 80)
                WHEN id %% 5 > 0 THEN 'ü"' || chr(10) || id END
    FROM generate_series(%(first)s::bigint, %(last)s) AS id
"""
_ADD_ITEMS = """
    INSERT INTO items
    SELECT id, line, md5((id * 31 + line)::text), CASE WHEN line %% 4 > 0 THEN line END
    FROM generate_series(%(first)s::bigint, %(last)s) AS id, generate_series(1, %(lines)s) AS line
"""
_ADD_ENTRIES = """
    INSERT INTO entries (account, amount)
    SELECT 'account ' || id %% 11, id / 8.0 FROM generate_series(%(first)s::bigint, %(last)s) AS id
"""
_CHANGE_ORDERS = """
    UPDATE orders SET total = total + 1, is_paid = NOT is_paid
    WHERE id BETWEEN %(first)s AND %(last)s
"""
_CHANGE_ITEMS = """
    UPDATE items SET quantity = coalesce(quantity, 0) + 1
    WHERE order_id BETWEEN %(first)s AND %(last)s
"""
_REMOVE_ITEMS = "DELETE FROM items WHERE order_id BETWEEN %(first)s AND %(last)s AND line > 1"
_REMOVE_ORDERS = "DELETE FROM orders WHERE id BETWEEN %(first)s AND %(last)s AND id %% 5 = 0"

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


def make_tables(database: Database) -> None:
    for statement in _MAKE_TABLES:
        database.execute(statement)


@dataclass(slots=True)
class Load:
    """What is written. `rate` is transactions a second at most."""

    database: Database
    seed: int
    rate: float = 40.0
    big_rows: int = 4000
    big_every: int = 60
    is_one_table: bool = False
    transaction_count: int = 0
    _next_id: int = 1
    _random: random.Random = field(init=False)
    _is_over: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Write until the block is left. An error in writing ends the block too."""
        self._is_over.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write())
            try:
                yield self
            finally:
                self._is_over.set()

    async def _write(self) -> None:
        while not self._is_over.is_set():
            # A server that goes away takes a transaction with it or not: the twin knows.
            with suppress(psycopg.OperationalError):
                await self._write_connected()
            await self._pause()

    async def _write_connected(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.database.dsn) as connection:
            while not self._is_over.is_set():
                await self.transaction(connection)
                await self._pause()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(1 / self.rate):
                await self._is_over.wait()

    async def transaction(self, connection: Connection) -> None:
        """One transaction, committed."""
        self.transaction_count += 1
        if self.is_one_table:
            await connection.execute(_ADD_ENTRIES, self._new_ids(3))
            await connection.commit()
            return
        if self.transaction_count % self.big_every == 0:
            await self.big_transaction(connection, self.big_rows)
            return
        span = self._new_ids(self._random.randint(1, 12))
        lines = self._random.randint(1, 4)
        await connection.execute(_ADD_ORDERS, span)
        await connection.execute(_ADD_ITEMS, {**span, "lines": lines})
        old = self._old_ids(6)
        for statement in (_CHANGE_ORDERS, _CHANGE_ITEMS, _REMOVE_ITEMS, _REMOVE_ORDERS):
            if self._random.random() < 0.4:
                await connection.execute(statement, old)
        if self._random.random() < 0.5:
            await connection.execute(_ADD_ENTRIES, span)
        await connection.commit()

    async def one_big(self, rows: int) -> None:
        """One big transaction beside the others, of about so many rows."""
        async with await psycopg.AsyncConnection.connect(self.database.dsn) as connection:
            await self.big_transaction(connection, rows)

    async def big_transaction(self, connection: Connection, rows: int) -> None:
        """One transaction over all tables, with a savepoint rolled back in its middle."""
        span = self._new_ids(rows // 4)
        await connection.execute(_ADD_ORDERS, span)
        await connection.execute("SAVEPOINT before")
        await connection.execute(_ADD_ENTRIES, span)
        await connection.execute("ROLLBACK TO SAVEPOINT before")
        await connection.execute(_ADD_ITEMS, {**span, "lines": 3})
        await connection.execute(_CHANGE_ITEMS, {**span, "last": span["first"] + 200})
        await connection.execute(_ADD_ENTRIES, {**span, "last": span["first"] + 500})
        await connection.commit()

    def _new_ids(self, count: int) -> dict[str, int]:
        first, self._next_id = self._next_id, self._next_id + count
        return {"first": first, "last": self._next_id - 1}

    def _old_ids(self, count: int) -> dict[str, int]:
        first = self._random.randint(1, max(1, self._next_id - count))
        return {"first": first, "last": first + count - 1}
