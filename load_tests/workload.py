"""What a backlog is made of: tables, and the statements that write the changes.

Strategy: data where SQL is enough (`Statement`); a scenario whose changes something else writes
brings a function of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from load_tests.servers import Database

Connection = psycopg.Connection[tuple[object, ...]]
Write = Callable[[Database, Connection, int], int]
"""Writes about so many changes, and tells how many it wrote: as many as the bucket must hold."""

# Most of the built-in types.
MIXED_COLUMNS = (
    "id bigint PRIMARY KEY, quantity int, name text, amount numeric(12, 2), "
    "changed_at timestamptz, is_paid boolean, ratio double precision, reference uuid, "
    "attributes jsonb, due date, status varchar(40), grade smallint"
)
MIXED_VALUES = (
    "i, i % 1000, 'customer name ' || i, (i % 100000) / 100.0, clock_timestamp(), i % 2 = 0, "
    "i * 1.5, gen_random_uuid(), jsonb_build_object('k', i, 'v', 'a few words that are the same'), "
    "current_date, 'status ' || (i % 10), (i % 100)::smallint"
)


@dataclass(frozen=True, slots=True)
class Statement:
    """Writes `{first}` to `{last}` in each transaction; with no size, everything in one."""

    sql: str
    rows_a_transaction: int | None = 10_000

    def __call__(self, _: Database, connection: Connection, row_count: int) -> int:
        size = self.rows_a_transaction or row_count
        for first in range(1, row_count + 1, size):
            last = min(first + size - 1, row_count)
            connection.execute(self.sql.format(first=first, last=last).encode())
        return row_count


@dataclass(frozen=True, slots=True)
class Workload:
    """One variant of a scenario's backlog."""

    write: Write
    tables: tuple[str, ...] = ()
    """Statements that make and fill the tables, before any slot begins: each its own transaction.
    """
    make_tables: Callable[[Database, Connection], None] | None = None
    """In place of statements."""
    meet: Write | None = None
    """Writes the first rows of the tables. The engine reads these alone, before the others are
    written. So what it costs to meet so many tables can be told from what a row costs."""
    variant: str = ""
    is_sampled: bool = True
    """Whether the changes' size may be sampled: that decodes the first transaction whole."""
