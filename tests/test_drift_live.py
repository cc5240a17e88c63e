"""Tables that are altered at random, between rows and between engines, read as they are."""

import random

import pytest

from databases import Database
from test_read_live import Lake, lake

__all__ = ["lake"]

pytestmark = pytest.mark.timeout(900)

TABLES = ("a", "b", "c")
ROUNDS = 2
STATEMENTS = 10


class Altering:
    """Statements at random, that fit what the tables are now."""

    def __init__(self, database: Database, seed: int) -> None:
        self.database = database
        self.chance = random.Random(seed)
        self.count = 0
        self.done: list[str] = []

    def columns(self, table: str) -> dict[str, str]:
        """The columns that are not the key, with their types."""
        rows = self.database.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 1 AND NOT attisdropped ORDER BY attnum",
            table,
        )
        return dict(rows)

    def run(self, statement: str) -> None:
        self.done.append(statement)
        with self.database.connect() as connection:
            connection.execute(statement.encode())

    def step(self) -> None:
        """A statement that changes a shape, mostly with rows before and behind."""
        table = self.chance.choice(TABLES)
        self.count += 1
        if self.chance.random() < 0.6:
            self.rows(table)
        self.alter(table)
        if self.chance.random() < 0.6:
            self.rows(table)

    def rows(self, table: str) -> None:
        first = self.count * 10
        some = f"generate_series({first}, {first + 2}) n"
        self.run(f"INSERT INTO {table} (id) SELECT n FROM {some} ON CONFLICT DO NOTHING")
        columns = self.columns(table)
        if columns:
            name = self.chance.choice(sorted(columns))
            value = {"mood": "'glad'", "text": "'t'", "bigint": "9", "integer": "7"}
            given = value.get(columns[name], "NULL")
            self.run(f"UPDATE {table} SET {name} = {given} WHERE id % 3 = {self.count % 3}")
        if self.chance.random() < 0.3:
            self.run(f"DELETE FROM {table} WHERE id % 11 = {self.count % 11}")

    def alter(self, table: str) -> None:
        columns, new = self.columns(table), f"n{self.count}"
        name = self.chance.choice(sorted(columns)) if columns else ""
        integers = [each for each, kind in columns.items() if kind == "integer"]
        choices = [
            f"ALTER TABLE {table} ADD {new} int",
            f"ALTER TABLE {table} ADD {new} text DEFAULT 'd{self.count}'",
            f"ALTER TABLE {table} ADD {new} timestamptz DEFAULT now()",
            f"ALTER TABLE {table} ADD {new} float DEFAULT random()",
            f"ALTER TABLE {table} ADD {new} mood DEFAULT 'sad'",
            f"VACUUM FULL {table}",
            f"TRUNCATE {table}",
            f"ALTER TABLE {table} REPLICA IDENTITY FULL",
            f"ALTER TABLE {table} REPLICA IDENTITY DEFAULT",
            f"DROP TABLE {table}; CREATE TABLE {table} (id int PRIMARY KEY, note text, size int)",
            f"ALTER TABLE {table} RENAME TO passing; ALTER TABLE a RENAME TO {table};"
            " ALTER TABLE passing RENAME TO a"
            if table != "a"
            else "SELECT",
        ]
        if name:
            choices += [
                f"ALTER TABLE {table} RENAME {name} TO {new}",
                f"ALTER TABLE {table} DROP {name}",
                f"ALTER TABLE {table} DROP {name}; ALTER TABLE {table} ADD {name} {columns[name]}",
                f"ALTER TABLE {table} DROP {name}; ALTER TABLE {table} ADD {new} {columns[name]}",
                f"ALTER TABLE {table} ALTER {name} SET STATISTICS 10",
                f"ALTER TABLE {table} ALTER {name} TYPE text",
            ]
        if integers:
            choices += [
                f"ALTER TABLE {table} ALTER {integers[0]} TYPE int USING {integers[0]} * 2",
                f"ALTER TABLE {table} ALTER {integers[0]} TYPE bigint",
            ]
        self.run(self.chance.choice(choices))


async def altered(lake: Lake, seed: int) -> None:
    lake.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'glad')",
        *(f"CREATE TABLE {table} (id int PRIMARY KEY, note text, size int)" for table in TABLES),
        *(f"INSERT INTO {t} SELECT n, 'n' || n, n FROM generate_series(1, 8) n" for t in TABLES),
    )
    await lake.run()
    altering = Altering(lake.database, seed)
    for _ in range(ROUNDS):
        for _ in range(STATEMENTS):
            altering.step()
        # What was added since the last row shows with the next one.
        for table in TABLES:
            altering.run(
                f"INSERT INTO {table} (id) SELECT coalesce(max(id), 0) + 1000 FROM {table}"
            )
        await lake.run()
        for table in TABLES:
            try:
                lake.assert_same(table)
            except Exception as error:
                error.add_note("\n".join(altering.done))
                raise


async def test_tables_that_are_altered_at_random_read_as_they_are(lake: Lake) -> None:
    await altered(lake, seed=2)
