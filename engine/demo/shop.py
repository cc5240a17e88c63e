"""The demonstration's database: a shop with columns of many types, and what happens in it.

Strategy: a transaction changes many rows with few statements. So the server does the work, and not
this process. Each writer has keys of its own, so none waits for another's locks.

Invariant: triggers write into `demo.committed` how many rows each statement changed, and that is
committed with the rows. So what was committed is known for certain, whoever wrote it and whatever
ended the writer.
"""

from dataclasses import dataclass
from random import Random
from typing import Final

import psycopg
from psycopg.rows import TupleRow

from engine.sources.postgres.lsn import Lsn

DATABASE = "shop"
SCHEMA = "public"
CAPTURED = f"{SCHEMA}.*"

Connection = psycopg.AsyncConnection[TupleRow]

Tally = dict[tuple[str, str], int]
"""Rows by table and op: c, u, d; r for rows that are there before an engine is."""


@dataclass(frozen=True, slots=True)
class State:
    """What a table holds: how many rows, and a hash over the values of all of them."""

    rows: int
    digest: str


EXISTING: Final = ("orders", "r")
"""Where a tally counts those."""

_TABLES = """
CREATE TABLE IF NOT EXISTS countries (
    code char(2) PRIMARY KEY, name text NOT NULL, vat numeric(4, 1));
INSERT INTO countries VALUES ('DE', 'Deutschland', 19), ('DK', 'Danmark', 25), ('FR', 'France', 20)
    ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS customers (
    id bigint PRIMARY KEY, name text NOT NULL, tags text[] NOT NULL, address jsonb NOT NULL,
    balance money NOT NULL, joined date NOT NULL DEFAULT current_date, portrait bytea);
-- Outside the row and uncompressed: an UPDATE of other columns does not send it again.
ALTER TABLE customers ALTER portrait SET STORAGE EXTERNAL;
CREATE TABLE IF NOT EXISTS orders (
    id bigint PRIMARY KEY, customer_id bigint NOT NULL, reference uuid NOT NULL,
    status text NOT NULL, total numeric(12, 2) NOT NULL, placed_at timestamptz NOT NULL,
    attributes jsonb NOT NULL, note text);
CREATE TABLE IF NOT EXISTS order_items (
    order_id bigint, line int, sku text NOT NULL, quantity int NOT NULL, price money NOT NULL,
    is_gift boolean NOT NULL, PRIMARY KEY (order_id, line));
CREATE TABLE IF NOT EXISTS events (
    id bigint PRIMARY KEY, kind text NOT NULL, happened_at timestamptz NOT NULL,
    seconds double precision, details jsonb) PARTITION BY HASH (id);
CREATE TABLE IF NOT EXISTS events_0 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE IF NOT EXISTS events_1 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE SCHEMA IF NOT EXISTS demo;
CREATE TABLE IF NOT EXISTS demo.committed (table_name text, op text, rows bigint);
CREATE OR REPLACE FUNCTION demo.count_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO demo.committed
    SELECT TG_TABLE_NAME, TG_ARGV[0], count(*) FROM changed HAVING count(*) > 0;
    RETURN NULL;
END $$;
"""
# Rows that are there before the engine is: nobody counts them but this statement.
_STOCK = """
INSERT INTO orders
SELECT id, 1 + id % 50, gen_random_uuid(), 'shipped', 5 + id % 500, now(),
       '{{"channel": "store", "score": 0.5}}', CASE WHEN id % 10 = 0 THEN 'from the old shop' END
FROM generate_series(1, {count}) AS id;
INSERT INTO demo.committed VALUES ('orders', 'r', {count});
"""
# One trigger for each table and kind of statement. They are made after the first rows, which no
# engine will see.
_COUNTING = """
CREATE OR REPLACE TRIGGER count_{op} AFTER {statement} ON {table}
REFERENCING {side} TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION demo.count_changed('{op}')
"""
_TABLE_NAMES: Final = ("countries", "customers", "orders", "order_items", "events")
TABLE_COUNT: Final = len(_TABLE_NAMES)
"""How many tables the engine captures."""

_STATEMENTS = (("INSERT", "NEW", "c"), ("UPDATE", "NEW", "u"), ("DELETE", "OLD", "d"))

_COMMITTED = """
SELECT table_name, op, sum(rows)::bigint FROM demo.committed GROUP BY 1, 2 HAVING sum(rows) > 0
"""
_NEWEST_KEY = """
SELECT greatest((SELECT max(id) FROM customers), (SELECT max(id) FROM orders),
                (SELECT max(id) FROM events), 0)
"""
_INSERT_LSN = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint"
# The same text runs in PostgreSQL and in DuckDB: whoever has the table has the answer. It sums 60
# bits of each row's hash, which needs no order and no memory. Numbers that are no decimals are
# compared as whole millionths, because the two print them otherwise.
_DIGEST = """
SELECT count(*),
       coalesce(sum(('0x' || substr(md5(concat_ws(' ', {values})), 1, 15))::bigint), 0)::text
FROM {{schema}}.{table}
"""
_COMPARED = {
    "countries": "code, name, vat::text",
    "customers": (
        """id, name, array_to_string(tags, ' '), address ->> 'city', address ->> 'zip',
        address ->> 'moved', balance::text, joined::text, coalesce(md5(portrait), '-')"""
    ),
    "orders": (
        """id, customer_id, reference::text, status, total::text, placed_at::text,
        attributes ->> 'channel', ((attributes ->> 'score')::float8 * 1000000)::bigint,
        coalesce(attributes ->> 'seen', '-'), coalesce(note, '-')"""
    ),
    "order_items": ("order_id, line, sku, quantity, price::text, is_gift::text"),
    "events": ("id, kind, happened_at::text, (seconds * 1000000)::bigint, details ->> 'page'"),
}
DIGESTS: Final = {
    table: _DIGEST.format(table=table, values=values) for table, values in _COMPARED.items()
}
"""By table, the SELECT of its `State`, for PostgreSQL and DuckDB alike; `{schema}` is to be named.

The session has TimeZone UTC, and in PostgreSQL lc_monetary C, as the engine's has.
"""

_REGISTER = """
INSERT INTO customers (id, name, tags, address, balance, portrait)
SELECT id,
       (ARRAY['Åsa', 'O''Neill', 'Ümit "Ü"', 'Back\\slash', '李小龍'])[1 + id %% 5] || ' ' || id,
       ARRAY['new', NULL, 'from "DK"'],
       jsonb_build_object('city', 'Aarhus', 'zip', (8000 + id %% 999)::text, 'floor', NULL),
       (random() * 1000)::numeric::money,
       CASE WHEN id %% 20 = 0 THEN decode(repeat(md5(id::text), 160), 'hex') END
FROM unnest(%s::bigint[]) AS id
"""
_MOVE = """
UPDATE customers SET address = address || jsonb_build_object('moved', now()),
       balance = balance + '1.25'::money WHERE id = ANY(%s::bigint[])
"""
_PLACE = """
INSERT INTO orders
SELECT id, 1 + id %% 50, gen_random_uuid(), 'placed', round((5 + random() * 500)::numeric, 2),
       clock_timestamp(),
       jsonb_build_object('channel', 'web', 'score', round(random()::numeric, 6)),
       CASE WHEN id %% 10 = 0 THEN E'Please ring twice.\\nThank you ✓' END
FROM unnest(%s::bigint[]) AS id
"""
_ADD_ITEMS = """
INSERT INTO order_items
SELECT id, line, 'SKU-' || (id * 7 + line) %% 999, 1 + line, (1 + random() * 99)::numeric::money,
       line = 3
FROM unnest(%s::bigint[]) AS id, generate_series(1, 1 + id %% 3) AS line
"""
_ADVANCE = """
UPDATE orders SET status = CASE status WHEN 'placed' THEN 'paid' WHEN 'paid' THEN 'packed'
       ELSE 'shipped' END, attributes = attributes || '{"seen": true}' WHERE id = ANY(%s::bigint[])
"""
_REPRICE = """
UPDATE order_items SET quantity = quantity + 1, price = price * 0.9
WHERE order_id = ANY(%s::bigint[])
"""
_REMOVE_ITEMS = "DELETE FROM order_items WHERE order_id = ANY(%s::bigint[])"
_REMOVE = "DELETE FROM orders WHERE id = ANY(%s::bigint[])"
_RECORD = """
INSERT INTO events
SELECT id, (ARRAY['view', 'search', 'basket'])[1 + id %% 3], clock_timestamp(), random() * 100,
       jsonb_build_object('page', '/p/' || id %% 100, 'referrer', NULL)
FROM unnest(%s::bigint[]) AS id
"""
_FORGET = "DELETE FROM events WHERE id = ANY(%s::bigint[])"

_ROWS_AN_ORDER = 3
_OLD_ORDERS = 0.3


async def connect(dsn: str) -> Connection:
    """Open a connection for a writer. Cancellation leaves none."""
    return await psycopg.AsyncConnection.connect(dsn, application_name="tailrace demo")


async def create_tables(connection: Connection, *, existing_count: int = 0) -> int:
    """Make the tables where they are missing, and put rows into those that are new.

    The answer is how many orders were there before an engine was. Cancellation leaves all of them
    or none.
    """
    await connection.execute(_TABLES.encode())
    if existing_count and not await newest_key(connection):
        await connection.execute(_STOCK.format(count=existing_count).encode())
    for table in _TABLE_NAMES:
        for statement, side, op in _STATEMENTS:
            trigger = _COUNTING.format(statement=statement, side=side, op=op, table=table)
            await connection.execute(trigger.encode())
    existing = (await committed(connection)).get(EXISTING, 0)
    await connection.commit()
    return existing


async def newest_key(connection: Connection) -> int:
    """The greatest key that is in use. Cancellation leaves the transaction to be rolled back."""
    [(key,)] = await (await connection.execute(_NEWEST_KEY)).fetchall()
    return int(key)


async def committed(connection: Connection) -> Tally:
    """What was ever committed in the shop: by all writers, and by hand.

    Cancellation leaves the transaction to be rolled back.
    """
    rows = await (await connection.execute(_COMMITTED)).fetchall()
    return {(table, op): count for table, op, count in rows}


async def states(connection: Connection) -> dict[str, State]:
    """What each captured table holds. Cancellation leaves the transaction to be rolled back."""
    await connection.execute("SET LOCAL TimeZone = 'UTC'; SET LOCAL lc_monetary = 'C'")
    found = {}
    for table, statement in DIGESTS.items():
        cursor = await connection.execute(statement.format(schema=SCHEMA).encode())
        [(count, digest)] = await cursor.fetchall()
        found[table] = State(count, digest)
    return found


class _Keys:
    """A writer's live rows of one table: every `step`th key from `oldest` up to `next`."""

    def __init__(self, first: int, step: int) -> None:
        self._step = step
        self._oldest = first
        self._next = first

    def new(self, count: int) -> list[int]:
        """Keys for `count` new rows. They stay used when the transaction rolls back."""
        first, self._next = self._next, self._next + count * self._step
        return list(range(first, self._next, self._step))

    def some(self, dice: Random, count: int) -> list[int]:
        """Up to `count` neighbouring live keys."""
        live = (self._next - self._oldest) // self._step
        first = self._oldest + dice.randrange(max(1, live - count)) * self._step
        return list(range(first, min(first + count * self._step, self._next), self._step))

    def drop(self, count: int) -> list[int]:
        """The oldest keys, up to half of the live ones, which are not live from now on."""
        live = (self._next - self._oldest) // self._step
        first = self._oldest
        self._oldest += min(count, live // 2) * self._step
        return list(range(first, self._oldest, self._step))


class Clerk:
    """One writer in the shop, in one transaction at a time.

    Each method that changes rows has the same contract. Cancellation leaves the transaction
    unfinished and of no further use: only `roll_back` may follow, or the connection's end.
    """

    def __init__(
        self,
        connection: Connection,
        dice: Random,
        first: int,
        step: int,
        *,
        existing_count: int = 0,
    ) -> None:
        self._connection = connection
        self._old_orders = range((first - 1) % step + 1, existing_count + 1, step)
        self._dice = dice
        self._customers = _Keys(first, step)
        self._orders = _Keys(first, step)
        self._events = _Keys(first, step)
        self._changed: Tally = {}

    @property
    def row_count(self) -> int:
        """How many rows this transaction has changed."""
        return sum(self._changed.values())

    async def work(self, size: int) -> None:
        """Change about `size` rows in one of the shop's ways. Cancellation leaves it half done."""
        ways = (self.place, self.advance, self.record, self.cancel, self.reprice, self.forget)
        rare_ways = (self.move, self.register)
        [way] = self._dice.choices(ways + rare_ways, (30, 25, 14, 10, 10, 5, 4, 2))
        await way(size)

    async def register(self, count: int) -> None:
        """Add `count` customers. Cancellation leaves the transaction to be rolled back."""
        await self._change("customers", "c", _REGISTER, self._customers.new(count))

    async def move(self, count: int) -> None:
        """Change the addresses of about `count` customers.

        Cancellation leaves the transaction to be rolled back.
        """
        keys = self._customers.some(self._dice, count)
        await self._change("customers", "u", _MOVE, keys)

    async def place(self, count: int) -> None:
        """Place new orders with their items, about `count` rows.

        Cancellation leaves the transaction to be rolled back.
        """
        keys = self._orders.new(max(1, count // _ROWS_AN_ORDER))
        await self._change("orders", "c", _PLACE, keys)
        await self._change("order_items", "c", _ADD_ITEMS, keys)

    async def advance(self, count: int) -> None:
        """Move about `count` orders on their way: new ones, or ones from before the engine.

        Cancellation leaves the transaction to be rolled back.
        """
        keys = self._orders.some(self._dice, count)
        if self._old_orders and self._dice.random() < _OLD_ORDERS:
            begin = self._dice.randrange(len(self._old_orders))
            keys = list(self._old_orders[begin : begin + count])
        await self._change("orders", "u", _ADVANCE, keys)

    async def reprice(self, count: int) -> None:
        """Change the prices of some orders' items, about `count` rows.

        Cancellation leaves the transaction to be rolled back.
        """
        keys = self._orders.some(self._dice, max(1, count // _ROWS_AN_ORDER))
        await self._change("order_items", "u", _REPRICE, keys)

    async def cancel(self, count: int) -> None:
        """Delete old orders and their items, about `count` rows.

        Cancellation leaves the transaction to be rolled back.
        """
        keys = self._orders.drop(max(1, count // _ROWS_AN_ORDER))
        await self._change("order_items", "d", _REMOVE_ITEMS, keys)
        await self._change("orders", "d", _REMOVE, keys)

    async def record(self, count: int) -> None:
        """Add `count` events. Cancellation leaves the transaction to be rolled back."""
        await self._change("events", "c", _RECORD, self._events.new(count))

    async def forget(self, count: int) -> None:
        """Delete about `count` old events.

        Cancellation leaves the transaction to be rolled back.
        """
        await self._change("events", "d", _FORGET, self._events.drop(count))

    async def think_again(self) -> None:
        """Place an order and roll back to the savepoint before it.

        Cancellation leaves the transaction to be rolled back.
        """
        changed = dict(self._changed)
        async with self._connection.transaction(force_rollback=True):
            await self.place(1)
        self._changed = changed

    async def insert_lsn(self) -> Lsn:
        """Where the log ends now: before this transaction's commit, after all that are done.

        Cancellation leaves the transaction to be rolled back.
        """
        [(lsn,)] = await (await self._connection.execute(_INSERT_LSN)).fetchall()
        return Lsn(lsn)

    async def commit(self) -> Tally:
        """Commit; the answer is what was changed. Cancellation leaves the commit in doubt."""
        changed, self._changed = self._changed, {}
        await self._connection.commit()
        return changed

    async def roll_back(self) -> None:
        """Undo the transaction. Cancellation leaves that to the connection's end."""
        self._changed = {}
        await self._connection.rollback()

    async def _change(self, table: str, op: str, statement: str, keys: list[int]) -> None:
        cursor = await self._connection.execute(statement.encode(), [keys])
        key = table, op
        self._changed[key] = self._changed.get(key, 0) + cursor.rowcount
