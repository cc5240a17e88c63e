"""Tables that change names, leave and come back, on real servers: versions never fall."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from databases import Database
from faults.twin import Twin
from live_engine import LiveEngine, settings_of

Connection = psycopg.Connection[tuple[Any, ...]]


def orders_come_back(database: Database) -> None:
    """`orders` is renamed away, another has its name for a while, the first gets it back."""
    with database.connect() as connection:
        connection.execute("INSERT INTO orders VALUES (1), (2)")
        connection.execute("ALTER TABLE orders RENAME TO orders_old")
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY)")
        connection.execute("ALTER PUBLICATION tailrace ADD TABLE ONLY orders")
        connection.execute("INSERT INTO orders VALUES (3), (4)")
        connection.execute("DROP TABLE orders")
        connection.execute("ALTER TABLE orders_old RENAME TO orders")
        connection.execute("INSERT INTO orders VALUES (5), (6)")


@pytest.mark.parametrize("rows_max", [1 << 30, 1])
async def test_a_name_that_comes_back_is_a_new_version(
    any_database: Database, rows_max: int
) -> None:
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    engine = LiveEngine(any_database, settings_of(rows_max))

    async with engine.living() as pipeline:
        orders_come_back(any_database)
        await engine.durable(pipeline)
    async with engine.living() as pipeline:
        any_database.execute("INSERT INTO orders VALUES (7)")
        await engine.durable(pipeline)

    await engine.proven()
    records = engine.records("public.orders")
    assert [record["after"]["id"] for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert [record["metadata"]["version"] for record in records] == [1, 1, 2, 2, 3, 3, 3]
    assert engine.schema("orders", 3)["changes"][0]["kind"] == "table_recreated"


# --- at random


NAMES = ("a", "b", "c")


@dataclass
class Shuffle:
    """Tables that change names at random; `tables` has the names that are taken, and columns."""

    database: Database
    chance: random.Random
    tables: dict[str, int] = field(default_factory=dict)
    next_id: int = 1

    def step(self) -> None:
        """One transaction: rows, a change of names or shapes, and rows again, half of the time."""
        chance = self.chance
        acts = (self._create, self._rename, self._swap, self._drop, self._remake, self._alter)
        with self.database.connect() as connection, connection.transaction():
            self._write(connection)
            if chance.random() < 0.6:
                chance.choice(acts)(connection)
                self._write(connection)

    def _write(self, connection: Connection) -> None:
        for name in self.chance.sample(NAMES, 2):
            if name not in self.tables:
                continue
            for _ in range(self.chance.randint(0, 2)):
                self._do(connection, "INSERT INTO {} (id) VALUES (%s)", name, values=[self.next_id])
                self.next_id += 1
            statement = self.chance.choice(("UPDATE {} SET note = %s", "DELETE FROM {} WHERE %s"))
            if self.chance.random() < 0.3:
                value = "n" if "UPDATE" in statement else self.chance.random() < 0.5
                self._do(connection, statement, name, values=[value])

    def _create(self, connection: Connection) -> None:
        free = [name for name in NAMES if name not in self.tables]
        if free:
            self._make(connection, self.chance.choice(free))

    def _make(self, connection: Connection, name: str) -> None:
        self._do(connection, "CREATE TABLE {} (id int PRIMARY KEY, note text)", name)
        if self.chance.random() < 0.5:
            self._do(connection, "ALTER TABLE {} REPLICA IDENTITY FULL", name)
        self.tables[name] = 2

    def _rename(self, connection: Connection) -> None:
        free = [name for name in NAMES if name not in self.tables]
        if free and self.tables:
            old, new = self.chance.choice(list(self.tables)), self.chance.choice(free)
            self._do(connection, "ALTER TABLE {} RENAME TO {}", old, new)
            self.tables[new] = self.tables.pop(old)

    def _swap(self, connection: Connection) -> None:
        if len(self.tables) < 2:
            return
        one, other = self.chance.sample(list(self.tables), 2)
        for old, new in ((one, "between"), (other, one), ("between", other)):
            self._do(connection, "ALTER TABLE {} RENAME TO {}", old, new)
        self.tables[one], self.tables[other] = self.tables[other], self.tables[one]

    def _drop(self, connection: Connection) -> None:
        if self.tables:
            name = self.chance.choice(list(self.tables))
            self._do(connection, "DROP TABLE {}", name)
            del self.tables[name]

    def _remake(self, connection: Connection) -> None:
        if self.tables:
            name = self.chance.choice(list(self.tables))
            self._do(connection, "DROP TABLE {}", name)
            self._make(connection, name)

    def _alter(self, connection: Connection) -> None:
        if self.tables:
            name = self.chance.choice(list(self.tables))
            column = f"c{self.tables[name]}"
            self._do(connection, "ALTER TABLE {} ADD COLUMN {} int DEFAULT 7", name, column)
            self.tables[name] += 1

    def _do(
        self, connection: Connection, statement: LiteralString, *names: str, values: Any = None
    ) -> None:
        composed = sql.SQL(statement).format(*map(sql.Identifier, names))
        connection.execute(composed, values)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [0, 1])
async def test_tables_that_change_names_at_random_lose_and_double_nothing(
    any_database: Database, seed: int, number: int
) -> None:
    chance = random.Random(seed + number)
    any_database.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY, note text)")
    engine = LiveEngine(any_database, settings_of(chance.choice((1, 3, 1000)), 0.1))
    async with engine.living():
        twin = Twin(any_database, "tailrace")
    shuffle = Shuffle(any_database, chance, {"a": 2})

    for _ in range(4):
        # Half of it waits in the log when the engine comes.
        for _ in range(chance.randint(0, 6)):
            shuffle.step()
        async with engine.living(is_killed=chance.random() < 0.7) as pipeline:
            for _ in range(chance.randint(1, 6)):
                shuffle.step()
                await asyncio.sleep(chance.choice((0.0, 0.02, 0.1)))
            if chance.random() < 0.3:
                await engine.durable(pipeline)
    async with engine.living() as pipeline:
        await engine.durable(pipeline)

    await engine.proven()
    comparison = engine.compared(twin)
    twin.drop()
    assert comparison.is_equal, comparison
    assert comparison.row_count
