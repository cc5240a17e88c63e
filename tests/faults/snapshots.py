"""Snapshots under test: tables that exist, a load on them, and the tables rebuilt from the bucket.

Strategy: whoever reads the bucket sorts the records of a table by position and applies them, key by
key. What comes out has to be the table, exactly. Nothing of the engine's reading code is used.
"""

import asyncio
import gzip
import heapq
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, LiteralString

import orjson
import psutil
import psycopg

from databases import Database
from engine.servers.fault_proxy import Request
from faults.bucket_image import BucketImage, Look
from load_tests.engine_process import EngineProcess

TABLES: tuple[LiteralString, ...] = ("first", "second", "third")
COLUMNS = ("id", "account", "amount", "note")

Row = tuple[object, ...]
Rows = dict[int, Row]
Positioned = tuple[str, dict[str, Any]]

_MAKE_TABLE = """
    CREATE TABLE {table} (
        id bigint PRIMARY KEY, account text NOT NULL, amount numeric(12, 2), note text)
"""
# Long notes are stored out of line, so that updates leave some unchanged.
_STORE_NOTES = "ALTER TABLE {table} ALTER note SET STORAGE EXTERNAL"
_FILL = """
    INSERT INTO {table}
    SELECT id, 'account ' || id %% 997, id / 8.0,
           CASE WHEN id %% 500 = 0 THEN repeat(md5(id::text), 80)
                WHEN id %% 3 = 0 THEN 'note ' || id END
    FROM generate_series(1, %s) AS id
"""
_ADD = """
    INSERT INTO {table} SELECT id, 'new ' || id, id, 'added' FROM unnest(%s::bigint[]) AS id
"""
_CHANGE = "UPDATE {table} SET amount = amount + 1 WHERE id = ANY(%s)"
_REMOVE = "DELETE FROM {table} WHERE id = ANY(%s)"
# The key that a row gets is nobody's, and none that will be added.
_MOVE = "UPDATE {table} SET id = -id WHERE id = ANY(%s) AND id > 0"


def make_tables(database: Database, rows: int) -> None:
    """Tables with so many rows in all."""
    for table in TABLES:
        for statement in (_MAKE_TABLE, _STORE_NOTES):
            database.execute(statement.format(table=table))
        database.execute(_FILL.format(table=table), rows // len(TABLES))


def table_rows(database: Database, table: str) -> Rows:
    """The table of `make_tables` as it is now, by key."""
    rows: Rows = {}
    with psycopg.connect(database.dsn) as connection, connection.cursor("rows") as cursor:
        cursor.itersize = 20_000
        cursor.execute(f"SELECT id, account, amount::text, note FROM {table}".encode())
        for row in cursor:
            rows[row[0]] = row
    return rows


@dataclass(slots=True)
class RandomLoad:
    """Random inserts, updates, deletes and changes of keys, `rate` rows a second at most."""

    database: Database
    seed: int
    rate: float
    rows: int
    change_count: int = 0
    seconds: float = 0.0
    _next_id: int = field(init=False)
    _random: random.Random = field(init=False)
    _is_over: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._next_id = self.rows // len(TABLES) + 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator["RandomLoad"]:
        """Write until the block is left. An error in writing ends the block too."""
        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write())
            try:
                yield self
            finally:
                self._is_over.set()
        self.seconds = asyncio.get_running_loop().time() - began

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        async with await psycopg.AsyncConnection.connect(self.database.dsn) as connection:
            began = loop.time()
            while not self._is_over.is_set():
                await self._transaction(connection)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(began + self.change_count / self.rate):
                        await self._is_over.wait()

    async def _transaction(self, connection: psycopg.AsyncConnection[Any]) -> None:
        table = self._random.choice(TABLES)
        added = list(range(self._next_id, self._next_id + 14))
        self._next_id += len(added)
        changes = ((_ADD, added), (_CHANGE, self._some(20)), (_REMOVE, self._some(8)))
        for statement, ids in (*changes, (_MOVE, self._some(2))):
            done = await connection.execute(statement.format(table=table).encode(), (ids,))
            self.change_count += done.rowcount
        await connection.commit()

    def _some(self, count: int) -> list[int]:
        return [self._random.randrange(1, self._next_id) for _ in range(count)]


# --- the bucket, read back


@dataclass(slots=True)
class Rebuilt:
    """A table as the bucket has it, and how its records came to that.

    `read_keys` are the keys of the rows that snapshots read, `keys_before` those that the stream
    alone gave before the last snapshot's first row, from the keys that were known at the start.
    """

    rows: Rows
    ops: Counter[str]
    read_keys: Counter[int]
    keys_before: frozenset[int]


async def rebuilt(
    image: BucketImage,
    table: str,
    keys: range = range(0),
    columns: tuple[str, ...] = COLUMNS,
) -> Rebuilt:
    """Sort the records of `table` by position and apply them; `columns` is what a row has of them.

    The first one is the key. Of `keys` see Rebuilt.
    """
    look = await image.look()
    # What is planned and not visible yet is missing from the table, if it never comes.
    stream = sorted(
        key for key, plan in look.planned.items() if plan["table"] == table and key in look.keys
    )
    bodies = dict(zip(stream, await image.bodies(stream), strict=True))
    folder = f"/table={table.partition('.')[2]}/"
    staged = sorted(key for key in look.staged & look.keys if folder in key)
    bodies |= dict(zip(staged, await image.bodies(staged), strict=True))
    sides = (_records(bodies, stream), _records(bodies, staged))
    return await asyncio.to_thread(_applied, sides, keys, columns)


def _applied(
    sides: tuple[Iterator[Positioned], ...], keys: range, columns: tuple[str, ...]
) -> Rebuilt:
    key, present = columns[0], set(keys)
    table = Rebuilt({}, Counter(), Counter(), frozenset())
    last = ""
    for position, record in heapq.merge(*sides, key=lambda side: side[0]):
        assert position > last, f"{position} behind {last}"
        last = position
        op = record["metadata"]["op"]
        table.ops[op] += 1
        if op == "t":
            table.rows.clear()
            table.keys_before = frozenset(present)
        elif op == "r":
            table.read_keys[record["after"][key]] += 1
        else:
            _note_key(present, key, record)
        _apply(table.rows, columns, record)
    return table


def _note_key(present: set[int], key: str, record: dict[str, Any]) -> None:
    if record["before"] is not None:
        present.discard(record["before"][key])
    if record["after"] is not None:
        present.add(record["after"][key])


def _apply(rows: Rows, columns: tuple[str, ...], record: dict[str, Any]) -> None:
    key, before, after = columns[0], record["before"], record["after"]
    old = rows.pop(before[key], None) if before is not None else None
    if after is None:
        return
    unchanged = record["metadata"].get("unchanged", ())
    if unchanged:
        # Before its snapshot a row is not known: what it has here is superseded anyway.
        known = old or rows.get(after[key]) or (None,) * len(columns)
        after |= {name: known[columns.index(name)] for name in unchanged}
    # A record of an earlier version may lack a column, or have others.
    rows[after[key]] = tuple(after.get(name) for name in columns)


def _records(bodies: dict[str, bytes], keys: list[str]) -> Iterator[Positioned]:
    for key in keys:
        for line in gzip.decompress(bodies[key]).splitlines():
            record = orjson.loads(line)
            yield record["metadata"]["position"], record


# --- where a kill struck


class SnapshotWindow(Enum):
    BEFORE_ENTRY = "an attempt is started and not whole"
    ENTRY_TO_COMPLETE = "an attempt is whole, and none of its objects is visible"
    BETWEEN_COMPLETES = "some objects of a whole attempt are visible"


def newest_statements(look: Look) -> dict[str, dict[str, Any]]:
    """The journal's newest statement about each table's snapshot."""
    return {
        statement["table"]: statement
        for entry in look.entries
        for statement in entry.get("snapshots", ())
    }


def snapshot_windows(look: Look) -> frozenset[SnapshotWindow]:
    """Where the snapshots of a dead engine stood."""
    hit = set()
    for statement in newest_statements(look).values():
        if statement["state"] == "started":
            hit.add(SnapshotWindow.BEFORE_ENTRY)
        elif statement["state"] == "whole":
            there = [staged["key"] in look.keys for staged in statement["objects"]]
            if not any(there):
                hit.add(SnapshotWindow.ENTRY_TO_COMPLETE)
            elif not all(there):
                hit.add(SnapshotWindow.BETWEEN_COMPLETES)
    return frozenset(hit)


def is_begin(request: Request) -> bool:
    return request.method == "POST" and "uploads" in request.parameters


def is_part(request: Request) -> bool:
    """A part of an upload: of a snapshot's object, where the stream's objects are small."""
    return request.method == "PUT" and "partNumber" in request.parameters


def is_completion(request: Request) -> bool:
    return request.method == "POST" and "uploadId" in request.parameters


def worker_processes(engine: EngineProcess) -> list[psutil.Process]:
    """The engine's workers, in the order of their ids."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(engine.process_id).children()
        return sorted(
            (child for child in children if "spawn_main" in " ".join(child.cmdline())),
            key=lambda child: child.pid,
        )
    return []
