"""The tables of a live scenario, and which of them a transaction writes to. Pure but for `make`.

Strategy: tables take turns, so that each gets its share with certainty and a transaction's cost
does not depend on how many tables there are. The database itself makes the values, from a number:
no row passes through the load's process.
"""

from collections.abc import Iterator

import msgspec
import psycopg

_TABLES_A_STATEMENT = 250
_COLUMNS = """
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int, name text,
    amount numeric(12, 2), is_paid boolean, placed_at timestamptz, status varchar(40), note jsonb,
    filler text
"""
_INSERT = """
INSERT INTO {table} (customer, name, amount, is_paid, placed_at, status, note, filler)
SELECT i % 1000, 'customer name ' || i, (i % 100000) / 100.0, i % 2 = 0, clock_timestamp(),
       'status ' || (i % 10), jsonb_build_object('k', i, 'v', 'a few words that are the same'),
       {filler}
FROM generate_series({first}::bigint, {last}) AS i
"""


class TableSet(msgspec.Struct, frozen=True, kw_only=True):
    """`count` tables, all alike."""

    count: int
    per_transaction: int = 1
    """How many tables a transaction writes to."""
    digest_count: int = 0
    """How many texts of 128 hexadecimal digits a row has, which compress to half and no more."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(_name(number) for number in range(self.count))

    def spread(self, transaction: int, row_count: int) -> Iterator[tuple[str, int]]:
        """Which tables that transaction writes to, and how many rows to each. None gets none."""
        width = min(self.per_transaction, self.count)
        for part in range(width):
            share = row_count * (part + 1) // width - row_count * part // width
            if share:
                yield _name((transaction * width + part) % self.count), share

    def statement(self, transaction: int, first: int, row_count: int) -> str:
        """The transaction as one string of statements, for rows from number `first` on."""
        statements = ["BEGIN"]
        for table, share in self.spread(transaction, row_count):
            last = first + share - 1
            statements.append(
                _INSERT.format(table=table, first=first, last=last, filler=self._filler)
            )
            first += share
        return ";".join([*statements, "COMMIT"])

    @property
    def _filler(self) -> str:
        digests = [
            f"encode(sha512(('{number} ' || i)::bytea), 'hex')"
            for number in range(self.digest_count)
        ]
        return " || ".join(digests) or "NULL"

    def make(self, connection: psycopg.Connection[tuple[object, ...]], name: str) -> None:
        """Make the tables, and a publication of the schema of that name, of which it has the name.

        The connection is in autocommit, and what it makes is in that schema.
        """
        for first in range(0, self.count, _TABLES_A_STATEMENT):
            names = self.names[first : first + _TABLES_A_STATEMENT]
            # Together they are one transaction, whose locks have a limit.
            connection.execute("".join(f"CREATE TABLE {n} ({_COLUMNS});" for n in names).encode())
        connection.execute(
            f"CREATE PUBLICATION {name} FOR TABLES IN SCHEMA {name} "
            "WITH (publish_via_partition_root = true)".encode()
        )


def _name(number: int) -> str:
    return f"live_{number:05d}"
