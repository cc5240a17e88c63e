"""A snapshot shows tables and rows as the stream does: shapes, keys, and every byte of a value."""

from dataclasses import dataclass, field
from typing import Final

import msgspec
import psycopg
import pytest
from psycopg import sql

from databases import Database
from engine.model.position import Position
from engine.model.schema import (
    Column,
    Relation,
    TableName,
    TableVersion,
    decide_version,
    snapshot_version,
)
from engine.sources.postgres.source import PostgresSource
from rowcodec_capture import SESSION, statements
from snapshot_reading import CONFIGURATION, read_tasks, snapshots_of, tasks_of
from test_postgres_source import Reading, end_of_log, read_until

TABLES: Final = """
CREATE TYPE feeling AS ENUM ('sad', 'ok');
CREATE DOMAIN a_price AS numeric(10,2) CHECK (VALUE > 0);
CREATE DOMAIN feelings AS feeling[];
CREATE TABLE key_default (b text, id int, a int, PRIMARY KEY (id, a) INCLUDE (b));
CREATE TABLE key_index (id int PRIMARY KEY, u uuid NOT NULL UNIQUE, "Odd ""name" text);
ALTER TABLE key_index REPLICA IDENTITY USING INDEX key_index_u_key;
CREATE TABLE key_full (a int, b text);
ALTER TABLE key_full REPLICA IDENTITY FULL;
CREATE TABLE key_full_primary (a int, b varchar(20) PRIMARY KEY, p a_price DEFAULT 1);
ALTER TABLE key_full_primary REPLICA IDENTITY FULL;
CREATE TABLE key_nothing (a int PRIMARY KEY, b feeling);
ALTER TABLE key_nothing REPLICA IDENTITY NOTHING;
CREATE TABLE key_late (a int PRIMARY KEY DEFERRABLE, m feelings);
CREATE TABLE key_none (a int, x numeric(6,1)[]);
CREATE TABLE dropped (a int, gone text, id int PRIMARY KEY, also timestamptz(3));
ALTER TABLE dropped DROP gone;
ALTER TABLE dropped ADD later char(3) DEFAULT 'abc';
CREATE TABLE generated (a int, twice int GENERATED ALWAYS AS (a * 2) STORED, id int PRIMARY KEY);
CREATE TABLE columnless ();
CREATE TABLE root (id int, a text, gone int, at date, PRIMARY KEY (id, at))
  PARTITION BY RANGE (at);
CREATE TABLE root_1 PARTITION OF root FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE root_2 (junk text, at date NOT NULL, gone int, a text, id int NOT NULL);
ALTER TABLE root_2 DROP junk;
ALTER TABLE root ATTACH PARTITION root_2 FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
ALTER TABLE root DROP gone;
CREATE TABLE full_root (id int, a text) PARTITION BY LIST (id);
ALTER TABLE full_root REPLICA IDENTITY FULL;
CREATE TABLE full_root_1 PARTITION OF full_root FOR VALUES IN (1);
CREATE SCHEMA "Odd.schema";
CREATE TABLE "Odd.schema"."select ""x"" y" ("from" int PRIMARY KEY, "A.b" text);
"""

ROWS: Final = """
INSERT INTO key_default VALUES ('x', 1, 2);
INSERT INTO key_index VALUES (1, '00000000-0000-0000-0000-000000000001', 'o');
INSERT INTO key_full VALUES (1, E'a\\tb\\n\\\\N\\x01');
INSERT INTO key_full_primary VALUES (1, 'b', 2.50);
INSERT INTO key_nothing VALUES (1, 'ok');
INSERT INTO key_late VALUES (1, '{ok,NULL}');
INSERT INTO key_none VALUES (1, '{1.5,NaN}');
INSERT INTO dropped VALUES (1, 2, '2026-01-02 03:04:05.678+01');
INSERT INTO generated VALUES (21, DEFAULT, 1);
INSERT INTO columnless DEFAULT VALUES;
INSERT INTO root VALUES (1, 'a', '2020-02-03'), (2, NULL, '2021-02-03');
INSERT INTO full_root VALUES (1, 'x');
INSERT INTO "Odd.schema"."select ""x"" y" VALUES (1, 'y');
"""


@dataclass
class Shown:
    """What the stream showed: relations, and the versions that its rows began."""

    relations: dict[TableName, Relation] = field(default_factory=dict)
    versions: dict[TableName, tuple[TableVersion, ...]] = field(default_factory=dict)

    def decide(self, relation: Relation, position: Position) -> TableVersion:
        table = relation.table
        self.relations[table] = relation
        known = self.versions.get(table, ())
        digest = CONFIGURATION.record_digest(table)
        version = decide_version(known, relation, digest, position)
        if version not in known:
            self.versions[table] = (*known, version)
        return version


async def streamed(database: Database) -> tuple[Shown, Reading]:
    """Everything from where the slot stands."""
    shown, reading = Shown(), Reading()
    source = PostgresSource(dsn=database.dsn, slot=database.name, configuration=CONFIGURATION)
    async with source.stream(None, CONFIGURATION, shown.decide) as stream:
        await read_until(stream, end_of_log(database), reading)
    return shown, reading


def publish(database: Database, publication: str) -> None:
    with database.connect() as connection:
        connection.execute(
            f"CREATE PUBLICATION tailrace {publication}".encode(),
        )
        connection.execute(
            "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (database.name,)
        )


async def compare_relations(database: Database, shown: Shown) -> None:
    async with snapshots_of(database).hold(list(shown.relations)) as held:
        assert not held.left_out
        for table, relation in shown.relations.items():
            found = held.tables[table].relation
            versions = shown.versions[table]
            digest = CONFIGURATION.record_digest(table)

            assert found.shape == relation.shape
            assert found.key == relation.key
            # The stream does not always say which column is which.
            pairs = zip(found.columns, relation.columns, strict=True)
            assert all(a.number == b.number for a, b in pairs if b.number)
            assert numberless(found) == numberless(relation)
            assert snapshot_version(versions, found, digest) == versions[-1]


def numberless(relation: Relation) -> list[Column]:
    return [msgspec.structs.replace(column, number=0) for column in relation.columns]


ROOTED: Final = "WITH (publish = 'insert', publish_via_partition_root)"


async def test_relations_are_those_that_the_stream_shows(any_database: Database) -> None:
    any_database.execute(TABLES)
    publish(any_database, f"FOR ALL TABLES {ROOTED}")
    any_database.execute(ROWS)

    shown, _ = await streamed(any_database)

    assert len(shown.relations) == 13
    await compare_relations(any_database, shown)


@pytest.mark.since(15)
async def test_relations_follow_the_publications_lists_of_columns(any_database: Database) -> None:
    any_database.execute(TABLES)
    publish(
        any_database,
        "FOR TABLE key_default (a, id), key_full, dropped (id, later), root (id, at),"
        f' generated, "Odd.schema"."select ""x"" y" ("A.b") {ROOTED}',
    )
    any_database.execute(ROWS)

    shown, _ = await streamed(any_database)

    assert len(shown.relations) == 6
    await compare_relations(any_database, shown)
    root = shown.relations[TableName("public", "root")]
    assert [column.name for column in root.columns] == ["id", "at"]


@pytest.mark.parametrize("published", ["stored", "none"])
@pytest.mark.since(18)
async def test_generated_columns_are_there_where_they_are_published(
    database: Database, published: str
) -> None:
    database.execute(TABLES)
    database.execute("ALTER TABLE generated ADD v int GENERATED ALWAYS AS (a * 3) VIRTUAL")
    publish(
        database, f"FOR ALL TABLES WITH (publish = 'insert', publish_generated_columns={published})"
    )
    database.execute(ROWS)
    table = TableName("public", "generated")

    shown, reading = await streamed(database)

    names = [column.name for column in shown.relations[table].columns]
    assert names == (["a", "twice", "id"] if published == "stored" else ["a", "id"])
    await compare_relations(database, Shown({table: shown.relations[table]}, shown.versions))
    await compare_rows(database, reading, [table])


@pytest.mark.since(18)
async def test_a_generated_column_is_there_where_the_list_names_it(database: Database) -> None:
    database.execute(TABLES)
    publish(database, "FOR TABLE generated (id, twice)")
    database.execute("INSERT INTO generated VALUES (21, DEFAULT, 1)")

    shown, reading = await streamed(database)

    await compare_relations(database, shown)
    await compare_rows(database, reading, list(shown.relations))


async def test_a_roots_key_counts_before_every_partition_has_it(any_database: Database) -> None:
    """Which of it counts differs between releases of PostgreSQL."""
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE r (id int NOT NULL, a int) PARTITION BY LIST (id)")
        connection.execute("CREATE TABLE r1 PARTITION OF r FOR VALUES IN (1)")
        connection.execute("ALTER TABLE ONLY r ADD PRIMARY KEY (id)")
    publish(any_database, f"FOR ALL TABLES {ROOTED}")
    any_database.execute("INSERT INTO r VALUES (1, 2)")

    shown, _ = await streamed(any_database)

    await compare_relations(any_database, shown)


# ----------------------------------------------------------------------------------- values

ALL_TABLES: Final = """
SELECT n.nspname, c.relname, array(SELECT a.attname::text FROM pg_attribute a
  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT attisdropped AND attgenerated = ''
  ORDER BY a.attnum)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
AND n.nspname NOT IN ('pg_catalog', 'information_schema')
"""


def make_again(database: Database) -> list[TableName]:
    """Each table's rows once more, in a table of the schema `again`, and those tables."""
    made = []
    with psycopg.connect(database.dsn, autocommit=True, options=SESSION) as connection:
        found = connection.execute(ALL_TABLES).fetchall()
        connection.execute("CREATE SCHEMA again")
        for schema, table, columns in found:
            again = sql.Identifier("again", f"{schema}_{table}")
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            known = sql.Identifier(schema, table)
            connection.execute(
                sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING GENERATED)").format(again, known)
            )
            connection.execute(
                sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(again, names, names, known)
                if columns
                else sql.SQL("INSERT INTO {} DEFAULT VALUES").format(again)
            )
            made.append(TableName("again", f"{schema}_{table}"))
    return made


def after(line: bytes) -> bytes:
    """The row as it stands in a line."""
    beginning, _, _ = line.rpartition(b',"metadata":{"op":')
    _, _, row = beginning.partition(b',"after":')
    assert row
    return row


async def compare_rows(database: Database, reading: Reading, tables: list[TableName]) -> None:
    expected: dict[TableName, list[bytes]] = {table: [] for table in tables}
    for batch in reading.batches:
        if batch.table in expected:
            expected[batch.table] += map(after, batch.lines.splitlines())
    async with snapshots_of(database, range_pages=1).hold(tables) as held:
        assert not held.left_out
        for table in tables:
            tasks = tasks_of(held, table)
            lines = (await read_tasks(database.dsn, tasks)).lines[1:]

            assert sorted(map(after, lines)) == sorted(expected[table])


async def test_every_value_is_byte_for_byte_the_streams(any_database: Database) -> None:
    """Rows of every type, inserted through the stream and read by a snapshot."""
    with psycopg.connect(any_database.dsn, autocommit=True, options=SESSION) as connection:
        for statement in statements():
            connection.execute(statement.encode())
    any_database.execute(TABLES)
    any_database.execute(ROWS)
    publish(any_database, "FOR ALL TABLES WITH (publish = 'insert')")
    tables = make_again(any_database)

    shown, reading = await streamed(any_database)

    rows = sum(batch.row_count for batch in reading.batches)
    assert rows > 30
    tables = [table for table in tables if table in shown.relations]
    shown.relations = {table: shown.relations[table] for table in tables}
    await compare_relations(any_database, shown)
    await compare_rows(any_database, reading, tables)
