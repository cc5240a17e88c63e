"""The fold of what PostgreSQL streamed is the table as it can be read."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, LiteralString

import pytest

from databases import Database
from engine.model.batch import Batch
from engine.model.interfaces import ChangeStream
from engine.model.position import Position
from engine.model.schema import Relation, TableName, TableVersion, decide_version
from engine.reader.fold.shape import shapes_of
from engine.sources.postgres.lsn import parse_lsn
from engine.sources.postgres.source import PostgresSource
from fold_rig import Body, folded, newest_first
from log_points import point
from snapshot_reading import CONFIGURATION, read_tasks, snapshots_of, tasks_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

# Each table's statements. Large columns are stored out of line, so updates leave them out.
TABLES: dict[str, LiteralString] = {
    "moved": """
        CREATE TABLE moved (id int PRIMARY KEY, note text, big text);
        ALTER TABLE moved ALTER big SET STORAGE EXTERNAL;
        INSERT INTO moved
            SELECT id, 'n', repeat(md5(id::text), 100) FROM generate_series(1, 200) AS id;
        -- A chain of keys in one transaction, and over transactions.
        BEGIN;
        UPDATE moved SET id = id + 1000 WHERE id % 3 = 0;
        UPDATE moved SET id = id + 1000 WHERE id % 2 = 0 AND id > 1000;
        UPDATE moved SET note = 'later' WHERE id > 2000;
        COMMIT;
        UPDATE moved SET id = id - 1000 WHERE id > 1000;
        -- A swap, by way of a third key.
        BEGIN;
        UPDATE moved SET id = 0 WHERE id = 1;
        UPDATE moved SET id = 1 WHERE id = 2;
        UPDATE moved SET id = 2 WHERE id = 0;
        COMMIT;
        INSERT INTO moved
            SELECT id, 'again', repeat(md5(id::text), 100) FROM generate_series(3, 9, 3) AS id
            ON CONFLICT DO NOTHING;
        DELETE FROM moved WHERE id % 7 = 0;
        INSERT INTO moved
            SELECT id, 'back', repeat(md5(id::text), 100) FROM generate_series(7, 70, 7) AS id;
        UPDATE moved SET note = note || '!' WHERE id % 5 = 0;
    """,
    "whole_rows": """
        CREATE TABLE whole_rows (id int PRIMARY KEY, note text, big text);
        ALTER TABLE whole_rows REPLICA IDENTITY FULL, ALTER big SET STORAGE EXTERNAL;
        INSERT INTO whole_rows
            SELECT id, 'n', repeat(md5(id::text), 100) FROM generate_series(1, 50) AS id;
        BEGIN;
        UPDATE whole_rows SET id = id + 100;
        UPDATE whole_rows SET id = id - 99;
        COMMIT;
        UPDATE whole_rows SET note = NULL WHERE id % 2 = 0;
        DELETE FROM whole_rows WHERE id % 3 = 0;
    """,
    "counted": """
        CREATE TABLE counted (a int, b text, doc jsonb, big text);
        ALTER TABLE counted REPLICA IDENTITY FULL, ALTER big SET STORAGE EXTERNAL;
        INSERT INTO counted
            SELECT id % 4, NULL, 'null', repeat('x', 3000) FROM generate_series(1, 40) AS id;
        UPDATE counted SET a = 5
            WHERE ctid IN (SELECT ctid FROM counted WHERE a = 1 LIMIT 3);
        DELETE FROM counted WHERE ctid IN (SELECT ctid FROM counted WHERE a = 2 LIMIT 5);
        ALTER TABLE counted ADD COLUMN added text DEFAULT 'filled', DROP COLUMN b;
        INSERT INTO counted SELECT 3, '{}', repeat('x', 3000), 'own';
        UPDATE counted SET a = 9 WHERE ctid IN (SELECT ctid FROM counted WHERE a = 3 LIMIT 2);
        DELETE FROM counted WHERE ctid IN (SELECT ctid FROM counted WHERE a = 0 LIMIT 2);
    """,
    "deferred": """
        CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE, v text);
        ALTER TABLE deferred REPLICA IDENTITY FULL;
        INSERT INTO deferred SELECT id, 'v' || id FROM generate_series(1, 6) AS id;
        -- Within the statement two rows have one key.
        UPDATE deferred SET id = 3 - id WHERE id < 3;
        BEGIN;
        SET CONSTRAINTS ALL DEFERRED;
        INSERT INTO deferred VALUES (4, 'in place of v4');
        DELETE FROM deferred WHERE v = 'v4';
        COMMIT;
    """,
    "child": """
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
        INSERT INTO parent SELECT generate_series(1, 5);
        INSERT INTO child SELECT id, id FROM parent;
        TRUNCATE parent CASCADE;
        INSERT INTO parent VALUES (2);
        INSERT INTO child VALUES (1, 2);
    """,
    "remade": """
        CREATE TABLE remade (id int PRIMARY KEY, v text);
        INSERT INTO remade VALUES (1, 'of the first'), (2, 'of the first');
        DROP TABLE remade;
        CREATE TABLE remade (id int PRIMARY KEY, v text);
        INSERT INTO remade VALUES (2, 'of the second');
    """,
    "twins": """
        CREATE TABLE twins ("Id" int, id text, "ID" int, v int, PRIMARY KEY (id, "Id"));
        INSERT INTO twins VALUES (1, 'a', 1, 1), (2, 'a', 1, 1), (1, 'A', 1, 1);
        UPDATE twins SET "ID" = 5 WHERE id = 'a' AND "Id" = 2;
        UPDATE twins SET "Id" = 3 WHERE id = 'A';
        DELETE FROM twins WHERE id = 'a' AND "Id" = 1;
    """,
    "generated": """
        CREATE TABLE generated (
            id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
        INSERT INTO generated SELECT generate_series(1, 5);
        UPDATE generated SET id = id + 10 WHERE id > 3;
    """,
    "indexed": """
        CREATE TABLE indexed (v int, code text NOT NULL UNIQUE, other int NOT NULL);
        ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_code_key,
            ALTER code SET STORAGE EXTERNAL;
        INSERT INTO indexed
            SELECT id, repeat('k', 2100) || id, 1 FROM generate_series(1, 9) AS id;
        UPDATE indexed SET v = v + 1 WHERE v > 3;
        UPDATE indexed SET code = code || 'x' WHERE v % 2 = 0;
        DELETE FROM indexed WHERE v = 5;
    """,
    "partitioned": """
        CREATE TABLE partitioned (id int, day int, v text, PRIMARY KEY (id, day))
            PARTITION BY RANGE (day);
        CREATE TABLE partitioned_1 PARTITION OF partitioned FOR VALUES FROM (0) TO (10);
        CREATE TABLE partitioned_2 PARTITION OF partitioned FOR VALUES FROM (10) TO (20);
        INSERT INTO partitioned SELECT id, id % 20, 'v' FROM generate_series(1, 60) AS id;
        UPDATE partitioned SET day = 19 - day WHERE id % 4 = 0;
        DELETE FROM partitioned WHERE id % 7 = 0;
    """,
}

# A type of each kind that a key may be of, and values of it.
KEYS: tuple[tuple[str, str], ...] = (
    ("smallint", "id"),
    ("bigint", "id * 3000000000"),
    ("numeric", "id / 8.0"),
    ("double precision", "id / 3.0"),
    ("text", "'größe \"' || id || '\\ ' || chr(10)"),
    ("varchar(20)", "'v' || id"),
    ("char(5)", "id::text"),
    ("bytea", "decode(md5(id::text), 'hex')"),
    ("date", "date '2026-01-01' + id"),
    ("timestamp", "timestamp '2026-01-01 00:00' + id * interval '1 s'"),
    ("timestamptz", "timestamptz '2026-01-01 00:00+02' + id * interval '1 us'"),
    ("time", "time '00:00' + id * interval '1 min'"),
    ("timetz", "timetz '00:00+05:30' + id * interval '1 min'"),
    ("interval", "id * interval '1 day 1 s'"),
    ("uuid", "md5(id::text)::uuid"),
    ("inet", "inet '10.0.0.0/8' + id"),
    ("macaddr", "('08:00:2b:01:02:' || lpad(id::text, 2, '0'))::macaddr"),
    ("bit varying(20)", "id::bit(20)"),
    ("money", "id::money"),
    ("jsonb", "jsonb_build_object('a', jsonb_build_object('after', id), 'id', 1)"),
    ("int4range", "int4range(id, id + 1)"),
    ("text[]", "ARRAY['a,\"b' || id, NULL, '']"),
    ("int[]", "ARRAY[[id, 1], [2, NULL]]"),
    ("pg_lsn", "'0/0'::pg_lsn + id"),
    ("oid", "id::oid"),
    ("boolean", "id % 2 = 0"),
    ("mood", "(ARRAY['a', 'b \"quoted\"', 'c'])[1 + id % 3]::mood"),
    ("pair", "ROW(id, 'x,' || id)::pair"),
    ("positive", "id"),
)


_TYPES: LiteralString = """
    CREATE TYPE mood AS ENUM ('a', 'b "quoted"', 'c');
    CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
"""
_FEW: Final = ("boolean", "mood")
"""Types with few values: no row of theirs moves to another key."""


def _statements() -> Iterator[str]:
    for text in (*TABLES.values(), _TYPES):
        yield from text.split(";\n")
    for number, (type_, value) in enumerate(KEYS):
        table = f"key_{number}"
        insert = f"INSERT INTO {table} SELECT {value}, id FROM generate_series"
        yield f"CREATE TABLE {table} (k {type_} PRIMARY KEY, v int)"
        yield f"{insert}(1, 9) AS id ON CONFLICT DO NOTHING"
        yield f"UPDATE {table} SET v = v + 100 WHERE v % 2 = 0"
        yield f"DELETE FROM {table} WHERE v % 3 = 0"
        yield f"{insert}(3, 3) AS id ON CONFLICT DO NOTHING"
        if type_ not in _FEW:
            moved = f"SELECT {value} FROM (SELECT v % 100 + 40 AS id) AS other"
            yield f"UPDATE {table} SET k = ({moved}) WHERE v % 4 = 0"


@dataclass
class _Stream:
    batches: list[Batch] = field(default_factory=list)
    versions: dict[TableName, tuple[TableVersion, ...]] = field(default_factory=dict)

    def decide(self, relation: Relation, position: Position) -> TableVersion:
        known = self.versions.get(relation.table, ())
        version = decide_version(known, relation, "", position)
        if version not in known:
            self.versions[relation.table] = (*known, version)
        return version

    async def read(self, stream: ChangeStream, until: int) -> None:
        end = point(until).position
        while True:
            intake = await stream.receive()
            self.batches.extend(intake.batches)
            if intake.boundary is not None and intake.boundary.position >= end:
                return

    def rows(self, table: TableName) -> Counter[str]:
        """The table's rows, folded, as its newest version has them."""
        versions = self.versions[table]
        shapes = shapes_of(versions, {version.number: "standard" for version in versions})
        bodies = [
            Body(batch.lines, batch.version, batch.first, batch.last)
            for batch in self.batches
            if batch.table == table
        ]
        newest = shapes[max(shapes)]
        fills = dict(zip(newest.columns, newest.fills, strict=True))
        found: list[dict[str, object]] = []
        for _, line in folded(newest_first(bodies), list(shapes.values())):
            row = json.loads(line, parse_float=str)
            # Of a column that came later.
            found.append({name: row.get(name, json.loads(fills[name] or "null")) for name in fills})
        return _counted(found)


def _counted(rows: Sequence[object]) -> Counter[str]:
    return Counter(json.dumps(row, sort_keys=True) for row in rows)


async def _tables(database: Database, names: Sequence[str]) -> dict[str, list[object]]:
    """The tables' rows, as the engine reads them for a snapshot."""
    tables = [TableName("public", name) for name in names]
    found: dict[str, list[object]] = {}
    async with snapshots_of(database).hold(tables) as held:
        assert not held.left_out
        for table in tables:
            reading = await read_tasks(database.dsn, tasks_of(held, table))
            records = [json.loads(line, parse_float=str) for line in reading.lines]
            found[table.table] = [
                record["after"] for record in records if record["metadata"]["op"] == "r"
            ]
    return found


async def test_the_fold_of_a_tables_changes_is_the_table(any_database: Database) -> None:
    # What is made later is published too.
    any_database.execute("CREATE TABLE first (id int PRIMARY KEY)")
    any_database.execute(
        "CREATE PUBLICATION tailrace FOR ALL TABLES WITH (publish_via_partition_root = true)"
    )
    source = PostgresSource(
        dsn=any_database.dsn, slot=any_database.name, configuration=CONFIGURATION
    )
    await source.prepare(is_first=True)
    with any_database.connect() as connection:
        for statement in filter(str.strip, _statements()):
            connection.execute(statement.encode())
    [(end,)] = any_database.execute("SELECT pg_current_wal_flush_lsn()::text")

    found = _Stream()
    async with source.stream(None, CONFIGURATION, found.decide) as stream:
        await found.read(stream, parse_lsn(end))

    names = [*TABLES, *(f"key_{number}" for number in range(len(KEYS)))]
    for name, rows in (await _tables(any_database, names)).items():
        assert rows, name
        assert found.rows(TableName("public", name)) == _counted(rows), name
    # Rows moved to other keys, and left a column out.
    moved = b"".join(batch.lines for batch in found.batches if batch.table.table == "moved")
    assert any(b'"before":{' in line and b'"unchanged"' in line for line in moved.splitlines())
