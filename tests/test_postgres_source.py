"""The stream on real servers: what arrives, in which order, and what happens when things break."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql
from structlog.testing import capture_logs

from databases import Database
from engine.lines.hashing import hash_of
from engine.lines.holding import HELD_SECONDS
from engine.model.batch import Batch, LeftOut, Operations
from engine.model.errors import (
    ConfigurationError,
    JournalError,
    LeaseHeld,
    PositionLost,
    SourceUnavailable,
)
from engine.model.hash_key import HashKey
from engine.model.interfaces import ChangeStream
from engine.model.log_point import LogPoint
from engine.model.position import LOG_BEGIN, Position, commit_of
from engine.model.record import RecordConfiguration, TableRule
from engine.model.schema import Relation, TableName, TableVersion, decide_version
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres
from engine.sources.postgres.lsn import NO_LSN, lsn_of, parse_lsn
from engine.sources.postgres.pgoutput import encode_status
from engine.sources.postgres.source import PostgresSource
from engine.sources.postgres.stream import SLOT_RETAINED, SLOT_SAFE, PostgresStream
from log_points import point
from snapshot_reading import read_range, snapshots_of, tasks_of
from trials import tried

CAPTURE_ALL = RecordConfiguration(through="tailrace", tables=("*.*",))

Record = dict[str, Any]


@dataclass
class Versions:
    """A `decide` that keeps versions as the engine does, and can leave rows out."""

    skip: Callable[[Position], bool] = lambda _position: False
    known: dict[TableName, tuple[TableVersion, ...]] = field(default_factory=dict)
    asked: list[Position] = field(default_factory=list)

    def decide(self, relation: Relation, position: Position) -> TableVersion | None:
        self.asked.append(position)
        if self.skip(position):
            return None
        known = self.known.get(relation.table, ())
        version = decide_version(known, relation, "", position)
        if version not in known:
            self.known[relation.table] = (*known, version)
        return version


@dataclass
class Reading:
    """What a stream gave."""

    batches: list[Batch] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def lines(self) -> list[bytes]:
        """By table, then in the order of arrival."""
        return [
            line
            for table in sorted({batch.table for batch in self.batches})
            for batch in self.batches
            if batch.table == table
            for line in batch.lines.splitlines()
        ]

    @property
    def records(self) -> list[Record]:
        return [json.loads(line) for line in self.lines]

    def of(self, table: str) -> list[Record]:
        return [record for record in self.records if record["metadata"]["table"] == table]


def source_of(
    database: Database,
    configuration: RecordConfiguration = CAPTURE_ALL,
    *,
    wal_sender_timeout: float = 10.0,
) -> PostgresSource:
    return PostgresSource(
        dsn=database.dsn,
        slot=database.name,
        configuration=configuration,
        wal_sender_timeout=wal_sender_timeout,
    )


async def prepared(
    database: Database,
    configuration: RecordConfiguration = CAPTURE_ALL,
    *,
    wal_sender_timeout: float = 10.0,
) -> PostgresSource:
    source = source_of(database, configuration, wal_sender_timeout=wal_sender_timeout)
    await source.prepare(is_first=True)
    return source


def end_of_log(database: Database) -> LogPoint:
    [(text,)] = database.execute("SELECT pg_current_wal_flush_lsn()::text")
    return point(parse_lsn(text))


async def read_until(stream: ChangeStream, end: LogPoint, reading: Reading) -> None:
    """Read until everything before `end` was read."""
    while True:
        intake = await stream.receive()
        reading.batches.extend(intake.batches)
        reading.left_out.extend(intake.left_out)
        if intake.boundary is not None and intake.boundary.position >= end.position:
            return


async def receive_for_ever(stream: ChangeStream) -> None:
    while True:
        await stream.receive()


async def read_all(
    source: PostgresSource,
    database: Database,
    *,
    configuration: RecordConfiguration = CAPTURE_ALL,
    versions: Versions | None = None,
    single_rows: bool = False,
) -> Reading:
    """Everything from where the slot stands to the end of the log; acknowledges nothing."""
    reading = Reading()
    decide = (versions or Versions()).decide
    async with source.stream(None, configuration, decide, single_rows=single_rows) as stream:
        await read_until(stream, end_of_log(database), reading)
    return reading


def afters(records: list[Record]) -> list[object]:
    return [record["after"] for record in records]


def ops(records: list[Record]) -> str:
    return "".join(record["metadata"]["op"] for record in records)


async def test_each_kind_of_change_of_each_table_arrives_once_in_order(
    any_database: Database,
) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, v text)")
        connection.execute("CREATE TABLE b (id int PRIMARY KEY, at timestamptz)")
        source = await prepared(any_database)
        with connection.transaction():
            connection.execute("INSERT INTO a VALUES (1, 'x'), (2, 'y')")
            connection.execute("INSERT INTO b VALUES (1, '2026-11-22 09:51:54.056779+02')")
            connection.execute("UPDATE a SET v = NULL WHERE id = 1")
        connection.execute("DELETE FROM a WHERE id = 2")
        connection.execute("TRUNCATE a, b")
        connection.execute("INSERT INTO a VALUES (3, 'z')")

    reading = await read_all(source, any_database)

    a, b = reading.of("a"), reading.of("b")
    assert ops(a) == "ccudtc"
    assert ops(b) == "ct"
    assert afters(a) == [
        {"id": 1, "v": "x"},
        {"id": 2, "v": "y"},
        {"id": 1, "v": None},
        None,
        None,
        {"id": 3, "v": "z"},
    ]
    assert b[0]["after"] == {"id": 1, "at": "2026-11-22T07:51:54.056779Z"}
    assert a[3]["before"] == {"id": 2}
    assert a[0]["metadata"]["key"] == ["id"]
    positions = [record["metadata"]["position"] for record in a]
    assert positions == sorted(set(positions))


async def test_a_batch_says_what_its_lines_hold(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(database)
        connection.execute("INSERT INTO a SELECT generate_series(1, 3)")
        connection.execute("DELETE FROM a WHERE id < 3")

    reading = await read_all(source, database)

    records = reading.records
    operations = Operations()
    for batch in reading.batches:
        operations = operations.plus(batch.operations)
        assert batch.row_count == sum(batch.operations) == batch.lines.count(b"\n")
        assert batch.first_commit_us <= batch.last_commit_us
        assert batch.first_commit_us // 1000 == records[0]["metadata"]["source_ts_ms"]
    assert operations == Operations(c=3, d=2)
    assert reading.batches[0].first == records[0]["metadata"]["position"]
    assert reading.batches[-1].last == records[-1]["metadata"]["position"]
    assert reading.batches[-1].last_commit_us // 1000 == records[-1]["metadata"]["source_ts_ms"]


def write_much(connection: "psycopg.Connection[tuple[Any, ...]]") -> None:
    """Transactions of many kinds: COPY, savepoints rolled back, DDL, several tables, large ones."""
    connection.execute("INSERT INTO a SELECT i, 'a' || i FROM generate_series(1, 500) i")
    with connection.cursor() as cursor, cursor.copy("COPY b FROM STDIN") as copy:
        for number in range(700):
            copy.write_row((number, f"copied {number}"))
    with connection.transaction():
        connection.execute("UPDATE a SET v = 'outer' WHERE id <= 20")
        for number in range(10):
            connection.execute("SAVEPOINT one")
            connection.execute("INSERT INTO b VALUES (%s, 'inner')", (1000 + number,))
            connection.execute("UPDATE a SET v = 'inner' WHERE id = %s", (number,))
            if number % 2:
                connection.execute("ROLLBACK TO SAVEPOINT one")
            else:
                connection.execute("RELEASE SAVEPOINT one")
    connection.execute("ALTER TABLE a ADD COLUMN extra int DEFAULT 7")
    connection.execute("INSERT INTO a SELECT i, 'new' FROM generate_series(501, 600) i")
    with connection.transaction():
        connection.execute("ALTER TABLE a DROP COLUMN v")
        connection.execute("UPDATE a SET extra = 8 WHERE id < 5")
        connection.execute("TRUNCATE b")
    connection.execute("DELETE FROM a WHERE id > 550")


async def test_every_reading_gives_the_same_lines_and_positions(any_database: Database) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, v text)")
        connection.execute("CREATE TABLE b (id int PRIMARY KEY, v text)")
        source = await prepared(any_database)
        write_much(connection)

    first = await read_all(source, any_database)
    second = await read_all(source, any_database)
    singly = await read_all(source, any_database, single_rows=True)

    assert first.lines == second.lines
    assert first.lines == singly.lines
    assert all(batch.row_count == 1 for batch in singly.batches)
    assert len(first.batches) < len(singly.batches)
    positions = [record["metadata"]["position"] for record in first.of("a")]
    assert positions == sorted(set(positions))
    assert len(first.of("b")) == 700 + 5 + 1


async def test_rows_of_one_copy_share_an_lsn_and_are_told_apart_by_their_number(
    database: Database,
) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(database)
        with connection.cursor() as cursor, cursor.copy("COPY a FROM STDIN") as copy:
            for number in range(300):
                copy.write_row((number,))

    records = (await read_all(source, database)).records

    shared = Counter(record["metadata"]["lsn"] for record in records)
    assert max(shared.values()) > 1
    positions = [record["metadata"]["position"] for record in records]
    assert positions == sorted(set(positions))
    assert afters(records) == [{"id": number} for number in range(300)]


@pytest.mark.parametrize("single_rows", [False, True])
async def test_rows_that_are_not_wanted_are_skipped_and_still_counted(
    database: Database, *, single_rows: bool
) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(database)
        with connection.cursor() as cursor, cursor.copy("COPY a FROM STDIN") as copy:
            for number in range(300):
                copy.write_row((number,))
        connection.execute("TRUNCATE a")
    whole = await read_all(source, database)
    seen = Position(whole.records[122]["metadata"]["position"])

    versions = Versions(skip=lambda position: position <= seen)
    rest = await read_all(source, database, versions=versions, single_rows=single_rows)

    assert rest.lines == whole.lines[123:]
    assert versions.asked[:123] == [
        record["metadata"]["position"] for record in whole.records[:123]
    ]


async def test_a_skipped_truncate_is_counted_too(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(database)
        connection.execute("TRUNCATE a")
        connection.execute("INSERT INTO a VALUES (1)")
    whole = await read_all(source, database)
    first = Position(whole.records[0]["metadata"]["position"])

    rest = await read_all(
        source, database, versions=Versions(skip=lambda position: position <= first)
    )

    assert ops(whole.records) == "tc"
    assert rest.lines == whole.lines[1:]


async def test_partitions_publish_under_their_root(any_database: Database) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)")
        connection.execute("CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (0) TO (10)")
        connection.execute("CREATE TABLE p_high PARTITION OF p FOR VALUES FROM (10) TO (20)")
        source = await prepared(any_database)
        connection.execute("INSERT INTO p VALUES (1, 'a'), (11, 'b'), (2, 'c')")
        connection.execute("UPDATE p SET id = 12 WHERE id = 2")

    reading = await read_all(source, any_database)

    assert {batch.table for batch in reading.batches} == {TableName("public", "p")}
    records = reading.records
    assert Counter(ops(records)) == {"c": 4, "d": 1}
    positions = [record["metadata"]["position"] for record in records]
    assert positions == sorted(set(positions))


async def test_an_unchanged_toasted_value_is_named_and_absent(any_database: Database) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, big text, v int)")
        connection.execute("ALTER TABLE a ALTER big SET STORAGE EXTERNAL")
        source = await prepared(any_database)
        connection.execute("INSERT INTO a VALUES (1, repeat('x', 10000), 1)")
        connection.execute("UPDATE a SET v = 2")

    created, updated = (await read_all(source, any_database)).records

    assert created["after"]["big"] == "x" * 10000
    assert updated["after"] == {"id": 1, "v": 2}
    assert updated["metadata"]["unchanged"] == ["big"]


async def test_before_holds_what_the_replica_identity_gives(any_database: Database) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE whole (id int, v text)")
        connection.execute("ALTER TABLE whole REPLICA IDENTITY FULL")
        connection.execute("CREATE TABLE indexed (id int PRIMARY KEY, code text NOT NULL UNIQUE)")
        connection.execute("ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_code_key")
        connection.execute("CREATE TABLE bare (id int)")
        connection.execute("ALTER TABLE bare REPLICA IDENTITY NOTHING")
        connection.execute("CREATE PUBLICATION tailrace FOR ALL TABLES WITH (publish = 'insert')")
        connection.execute("INSERT INTO bare VALUES (1)")
        source = await prepared(any_database)
        connection.execute("INSERT INTO bare VALUES (2)")
        connection.execute(
            "ALTER PUBLICATION tailrace SET (publish = 'insert, update, delete, truncate')"
        )
        for table in ("whole", "indexed"):
            name = sql.Identifier(table)
            connection.execute(sql.SQL("INSERT INTO {} VALUES (1, 'a')").format(name))
            connection.execute(sql.SQL("UPDATE {} SET id = 2").format(name))
            connection.execute(sql.SQL("DELETE FROM {}").format(name))

    reading = await read_all(source, any_database)

    whole, indexed, bare = reading.of("whole"), reading.of("indexed"), reading.of("bare")
    assert [record["before"] for record in whole] == [
        None,
        {"id": 1, "v": "a"},
        {"id": 2, "v": "a"},
    ]
    assert [record["before"] for record in indexed] == [None, None, {"code": "a"}]
    assert afters(bare) == [{"id": 2}]
    assert whole[0]["metadata"]["key"] == ["id", "v"]
    assert indexed[0]["metadata"]["key"] == ["code"]
    assert bare[0]["metadata"]["key"] == []


async def test_a_change_of_the_table_begins_a_version_at_its_first_row(
    any_database: Database,
) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, v text, gone int)")
        source = await prepared(any_database)
        connection.execute("INSERT INTO a VALUES (1, 'one', 1)")
        connection.execute("ALTER TABLE a ADD COLUMN extra int DEFAULT 7 NOT NULL")
        connection.execute("INSERT INTO a (id) VALUES (2)")
        connection.execute("ALTER TABLE a DROP COLUMN gone")
        connection.execute("INSERT INTO a (id) VALUES (3)")
        connection.execute("ALTER TABLE a RENAME COLUMN v TO note")
        connection.execute("INSERT INTO a VALUES (4, 'four')")
        connection.execute("ALTER TABLE a ALTER COLUMN extra TYPE numeric(6, 2)")
        connection.execute("INSERT INTO a VALUES (5, 'five', 1.5)")
    versions = Versions()

    reading = await read_all(source, any_database, versions=versions)

    records = reading.records
    assert [record["metadata"]["version"] for record in records] == [1, 2, 3, 4, 5]
    assert afters(records) == [
        {"id": 1, "v": "one", "gone": 1},
        {"id": 2, "v": None, "gone": None, "extra": 7},
        {"id": 3, "v": None, "extra": 7},
        {"id": 4, "note": "four", "extra": 7},
        {"id": 5, "note": "five", "extra": "1.50"},
    ]
    known = versions.known[TableName("public", "a")]
    assert [version.first for version in known] == [r["metadata"]["position"] for r in records]
    # The catalog is at the last version all the while: the older ones keep the types they had.
    types = [[column.type for column in version.relation.columns] for version in known]
    assert types == [
        ["integer", "text", "integer"],
        ["integer", "text", "integer", "integer"],
        ["integer", "text", "integer"],
        ["integer", "text", "integer"],
        ["integer", "text", "numeric(6,2)"],
    ]
    last = known[-1].relation.columns[-1]
    assert (last.nullable, last.type_kind, last.json) == (False, "numeric", "string")
    assert all(version.relation.key == ("id",) for version in known)


async def test_a_type_that_is_gone_from_the_catalog_is_named_by_its_oid(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TYPE mood AS ENUM ('ok')")
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, m mood)")
        source = await prepared(database)
        connection.execute("INSERT INTO a VALUES (1, 'ok')")
        connection.execute("DROP TABLE a")
        connection.execute("DROP TYPE mood")
    versions = Versions()

    [record] = (await read_all(source, database, versions=versions)).records

    assert record["after"] == {"id": 1, "m": "ok"}
    assert record["metadata"]["key"] == ["id"]
    [version] = versions.known[TableName("public", "a")]
    assert version.relation.columns[1].type_kind == "text"
    assert str(version.relation.columns[1].type_id) in version.relation.columns[1].type


async def test_a_table_made_anew_keeps_the_order_of_both(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
        source = await prepared(database)
        connection.execute("INSERT INTO a VALUES (1)")
        connection.execute("ALTER TABLE a RENAME TO old")
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute("INSERT INTO a VALUES (2)")
        connection.execute("DROP TABLE a")
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute("INSERT INTO a VALUES (3)")

    reading = await read_all(source, database)

    assert afters(reading.of("a")) == [{"id": 1}, {"id": 2}, {"id": 3}]
    assert [batch.version for batch in reading.batches] == [1, 2, 3]
    for earlier, later in pairwise(reading.batches):
        assert earlier.last < later.first


async def test_domains_enums_and_arrays_are_written_by_their_base(any_database: Database) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE DOMAIN amount AS numeric(8, 2)")
        connection.execute("CREATE DOMAIN price AS amount")
        connection.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
        connection.execute("CREATE DOMAIN numbers AS int[]")
        connection.execute(
            "CREATE TABLE a (id int PRIMARY KEY, p price, ps price[], m mood, ms mood[], n numbers,"
            " f float8[], b box[], j jsonb, c money)"
        )
        source = await prepared(any_database)
        connection.execute(
            "INSERT INTO a VALUES (1, 2.5, '{1,2.25}', 'ok', '{sad,ok}', '{1,2}', '{1.5,NaN}',"
            " '{(2,2),(1,1)}', '{\"x\": [1]}', 1234.5)"
        )
    versions = Versions()

    [record] = (await read_all(source, any_database, versions=versions)).records

    assert record["after"] == {
        "id": 1,
        "p": "2.50",
        "ps": ["1.00", "2.25"],
        "m": "ok",
        "ms": ["sad", "ok"],
        "n": [1, 2],
        "f": [1.5, "NaN"],
        "b": record["after"]["b"],
        "j": {"x": [1]},
        "c": "$1,234.50",
    }
    [version] = versions.known[TableName("public", "a")]
    kinds = {column.name: column.type_kind for column in version.relation.columns}
    assert kinds["p"] == "numeric"
    assert kinds["ps"] == "numeric[]"
    assert kinds["m"] == "text"
    assert kinds["ms"] == "text[]"
    assert kinds["n"] == "integer[]"
    columns = {column.name: column for column in version.relation.columns}
    assert columns["p"].type == "public.price"
    assert columns["j"].json == "any"
    assert columns["ps"].json == "array"


async def test_names_that_need_quotes_pass_everywhere(any_database: Database) -> None:
    configuration = RecordConfiguration(through="Pub, \"x\" 'y'", tables=("*.*",))
    with any_database.connect() as connection:
        connection.execute('CREATE SCHEMA "Od d"')
        connection.execute('CREATE TABLE "Od d"."t""a.b" ("I d" int PRIMARY KEY, "é" text)')
        source = await prepared(any_database, configuration)
        connection.execute('INSERT INTO "Od d"."t""a.b" VALUES (1, $$"quoted"$$)')

    [record] = (await read_all(source, any_database, configuration=configuration)).records

    assert record["after"] == {"I d": 1, "é": '"quoted"'}
    assert record["metadata"]["schema"] == "Od d"
    assert record["metadata"]["table"] == 't"a.b'


async def test_changes_of_tables_that_are_not_captured_do_not_arrive(database: Database) -> None:
    configuration = RecordConfiguration(
        through="tailrace", tables=("public.*",), exclude=("public.b*",)
    )
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute("CREATE TABLE b (id int PRIMARY KEY)")
        connection.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
        source = await prepared(database, configuration)
        connection.execute("INSERT INTO b VALUES (1)")
        connection.execute("INSERT INTO a VALUES (1)")
        connection.execute("TRUNCATE a, b")
        connection.execute("DELETE FROM b")
    versions = Versions()

    reading = await read_all(source, database, configuration=configuration, versions=versions)

    assert {batch.table for batch in reading.batches} == {TableName("public", "a")}
    assert ops(reading.records) == "ct"
    assert set(versions.known) == {TableName("public", "a")}


async def test_columns_that_are_left_out_are_not_written(database: Database) -> None:
    configuration = RecordConfiguration(
        through="tailrace",
        tables=("public.*",),
        rules=(TableRule("public.a", exclude=("secret",)),),
    )
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, secret text, v int)")
        source = await prepared(database, configuration)
        connection.execute("INSERT INTO a VALUES (1, 'hidden', 2)")

    [line] = (await read_all(source, database, configuration=configuration)).lines

    assert json.loads(line)["after"] == {"id": 1, "v": 2}
    assert b"hidden" not in line


HASH_KEY = HashKey(b"a secret of these tests, long enough")
HASHED = RecordConfiguration(
    through="tailrace",
    tables=("public.*",),
    rules=(TableRule("public.a", hash=("email", "id")),),
    hash_key_id=HASH_KEY.id,
)


async def test_columns_that_are_hashed_are_written_as_hashes_in_before_too(
    any_database: Database,
) -> None:
    with any_database.connect() as connection:
        connection.execute(
            "CREATE TABLE a (id int PRIMARY KEY, email text DEFAULT 'geheim', v int)"
        )
        connection.execute("ALTER TABLE a REPLICA IDENTITY FULL")
        source = PostgresSource(
            dsn=any_database.dsn, slot="tailrace", configuration=HASHED, hash_key=HASH_KEY
        )
        await source.prepare(is_first=True)
        connection.execute("INSERT INTO a VALUES (1, 'geheim', 2), (2, NULL, 3)")
        connection.execute("UPDATE a SET v = 4 WHERE id = 1")
    versions = Versions()

    reading = await read_all(source, any_database, configuration=HASHED, versions=versions)

    one, of_mail = hash_of(HASH_KEY.secret, b"1"), hash_of(HASH_KEY.secret, b"geheim")
    two = hash_of(HASH_KEY.secret, b"2")
    assert afters(reading.records) == [
        {"id": one, "email": of_mail, "v": 2},
        {"id": two, "email": None, "v": 3},
        {"id": one, "email": of_mail, "v": 4},
    ]
    assert reading.records[2]["before"] == {"id": one, "email": of_mail, "v": 2}
    snapshots, table = snapshots_of(any_database, HASHED), TableName("public", "a")
    async with snapshots.hold([table]) as held:
        [task] = tasks_of(held, table, HASHED)
        batches = await read_range(any_database.dsn, task, HASH_KEY)
    rows = [json.loads(line)["after"] for batch in batches for line in batch.lines.splitlines()]
    assert rows == [None, *afters(reading.records)[1:]]
    [[version]] = versions.known.values()
    columns = [(c.name, c.json, c.hashed, c.default) for c in version.relation.columns]
    assert columns == [
        ("id", "string", True, None),
        ("email", "string", True, None),
        ("v", "number", False, None),
    ]


async def test_a_stream_under_another_hash_key_is_refused_by_name(database: Database) -> None:
    database.execute("CREATE TABLE a (id int PRIMARY KEY, email text)")
    source = await prepared(database)

    with pytest.raises(ConfigurationError, match=f"key with the id {HASH_KEY.id}"):
        async with source.stream(None, HASHED, Versions().decide):
            pass


@pytest.mark.parametrize("key", ["hash", "exclude", "include"])
async def test_a_rules_column_that_no_table_has_is_a_warning(database: Database, key: str) -> None:
    names: dict[str, Any] = {key: ("id", "emial")}
    rules = (TableRule("public.a", **names), TableRule("public.later", exclude=("x",)))
    configuration = msgspec.structs.replace(HASHED, rules=rules)
    database.execute("CREATE TABLE a (id int PRIMARY KEY, email text)")
    source = source_of(database, configuration)

    with capture_logs() as logs:
        await source.prepare(is_first=True)
    finding = await tried(source, "rule columns", is_first=False)

    text = f"'emial' ({key} of public.a)"
    assert [entry["columns"] for entry in logs if "columns" in entry] == [text]
    assert finding.hint
    assert finding.text.endswith(f"no table has a column that a [[source.table]] names: {text}")


async def test_a_version_that_does_not_fit_the_stream_is_refused(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, v text)")
        source = await prepared(database)
        connection.execute("INSERT INTO a VALUES (1, 'x')")

    def decide(relation: Relation, position: Position) -> TableVersion:
        narrow = Relation(relation.table, relation.identity, relation.columns[:1], ("id",))
        return TableVersion(1, position, "", narrow)

    with pytest.raises(JournalError, match="columns"):
        async with source.stream(None, CAPTURE_ALL, decide) as stream:
            await read_until(stream, end_of_log(database), Reading())


async def test_a_transaction_larger_than_a_drain_arrives_whole(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, v text)")
        source = await prepared(database)
        connection.execute(
            "INSERT INTO a SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i"
        )

    reading = await read_all(source, database)

    assert [record["after"]["id"] for record in reading.records] == list(range(1, 20001))
    assert max(len(batch.lines) for batch in reading.batches) < 80 * 1024
    for earlier, later in pairwise(reading.batches):
        assert earlier.last < later.first


async def test_a_row_larger_than_a_drain_passes_alone(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, v text)")
        source = await prepared(database)
        connection.execute("INSERT INTO a VALUES (1, repeat('x', 3000000))")
        connection.execute("INSERT INTO a VALUES (2, 'small')")

    reading = await read_all(source, database)

    assert [len(record["after"]["v"]) for record in reading.records] == [3000000, 5]


async def test_a_boundary_waits_for_the_rows_of_many_busy_tables(database: Database) -> None:
    with database.connect() as connection:
        connection.execute(
            "DO $$ BEGIN FOR i IN 1..100 LOOP"
            " EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text)', i);"
            " END LOOP; END $$"
        )
        source = await prepared(database)
        connection.execute(
            "DO $$ BEGIN FOR n IN 1..300 LOOP FOR i IN 1..100 LOOP"
            " EXECUTE format('INSERT INTO t%s VALUES (%s, repeat(''x'', 200))', i, n);"
            " END LOOP; COMMIT; END LOOP; END $$"
        )
        end = end_of_log(database)
    reading, row_counts, reached, held = Reading(), [], LOG_BEGIN, []

    async with source.stream(None, CAPTURE_ALL, Versions().decide) as stream:
        while reached < end.position:
            intake = await stream.receive()
            held.append(intake.held_seconds)
            assert all(commit_of(batch.first) >= reached for batch in intake.batches)
            reading.batches.extend(intake.batches)
            row_counts.append(sum(batch.row_count for batch in intake.batches))
            if intake.boundary is not None:
                reached = intake.boundary.position

    assert sum(row_counts) == 30_000
    # Rows were held, and say so: fewer intakes than drains, and a chunk's age reckons with it.
    assert 0 < max(held) < HELD_SECONDS + 1
    records = reading.records
    assert Counter(record["metadata"]["table"] for record in records) == {
        f"t{number}": 300 for number in range(1, 101)
    }
    for table in ("t1", "t100"):
        assert [record["after"]["id"] for record in reading.of(table)] == list(range(1, 301))


async def test_the_unix_socket_serves_as_well(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        await prepared(database)
        connection.execute("INSERT INTO a SELECT generate_series(1, 1000)")
    source = PostgresSource(
        dsn=database.server.dsn_of(database.name, by_socket=True),
        slot=database.name,
        configuration=CAPTURE_ALL,
    )

    reading = await read_all(source, database)

    assert len(reading.records) == 1000


# ------------------------------------------------------------------------- acknowledging


@asynccontextmanager
async def streaming(
    source: PostgresSource, start: LogPoint | None = None
) -> AsyncIterator[tuple[ChangeStream, Reading]]:
    async with source.stream(start, CAPTURE_ALL, Versions().decide) as stream:
        yield stream, Reading()


def confirmed(database: Database) -> LogPoint:
    [(text,)] = database.execute(
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s",
        database.name,
    )
    return point(parse_lsn(text))


async def eventually(is_so: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while True:
            answer = is_so()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.02)


async def test_nothing_but_acknowledge_moves_the_slot(any_database: Database) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(any_database, wal_sender_timeout=1.0)
        start = confirmed(any_database)
        connection.execute("INSERT INTO a VALUES (1)")
        connection.execute("INSERT INTO a VALUES (2)")
    end = end_of_log(any_database)

    async with streaming(source) as (stream, reading):
        await read_until(stream, end, reading)
        # Long enough for the server to give us up if it heard nothing.
        stream.ask_keepalive()
        async with asyncio.timeout(60):
            for _ in range(3):
                await asyncio.sleep(0.5)
                stream.ask_keepalive()
                await stream.receive()
        before = await stream.standing()
        # No max_slot_wal_keep_size is set: nothing bounds what the slot keeps.
        assert before.gauges[SLOT_SAFE] == inf
        assert before.gauges[SLOT_RETAINED] >= 0
        stream.acknowledge(end)
        await eventually(lambda: confirmed(any_database) == end)
        after = await stream.standing()

    assert before.confirmed == start
    assert after.confirmed == end
    assert after.end.position >= end.position
    assert len(reading.records) == 2


async def test_an_acknowledgement_inside_a_transaction_replays_it_whole(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(database)
        connection.execute("INSERT INTO a SELECT generate_series(1, 10)")
    whole = await read_all(source, database)
    commit = point(parse_lsn(whole.records[0]["metadata"]["commit_lsn"]))

    async with streaming(source) as (stream, _):
        stream.acknowledge(commit)
        await eventually(lambda: confirmed(database) == commit)
    again = await read_all(source, database)

    assert again.lines == whole.lines


async def test_leaving_sends_the_last_acknowledgement(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(database)
        connection.execute("INSERT INTO a SELECT generate_series(1, 10)")
        end = end_of_log(database)
        async with streaming(source) as (stream, reading):
            await read_until(stream, end, reading)
            # Unread bytes make the kernel reset a connection that is closed.
            connection.execute("INSERT INTO a SELECT generate_series(11, 40000)")
            stream.acknowledge(end)

    await eventually(lambda: is_slot_free(database))

    assert confirmed(database) == end


def is_slot_free(database: Database) -> bool:
    [(is_active,)] = database.execute(
        "SELECT active FROM pg_replication_slots WHERE slot_name = %s", database.name
    )
    return not is_active


async def test_reading_starts_behind_what_was_acknowledged(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(database)
        connection.execute("INSERT INTO a VALUES (1)")
        end = end_of_log(database)
        async with streaming(source) as (stream, reading):
            await read_until(stream, end, reading)
            stream.acknowledge(end)
        connection.execute("INSERT INTO a VALUES (2)")

    await eventually(lambda: is_slot_free(database))
    rest = await read_all(source, database)

    assert afters(rest.records) == [{"id": 2}]


async def test_feedback_flows_while_nobody_reads(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, v text)")
        source = await prepared(database, wal_sender_timeout=1.0)
        connection.execute(
            "INSERT INTO a SELECT i, repeat('x', 1000) FROM generate_series(1, 30000) i"
        )
    end = end_of_log(database)

    async with streaming(source) as (stream, reading):
        stream.acknowledge(confirmed(database))
        intake = await stream.receive()
        reading.batches.extend(intake.batches)
        walsender = await stream.standing()
        # 30 MB wait in the server and in the sockets for three times its time-out.
        await asyncio.sleep(3.0)
        assert len(reading.records) < 30000
        await read_until(stream, end, reading)
        assert (await stream.standing()).confirmed == walsender.confirmed

    assert [record["after"]["id"] for record in reading.records] == list(range(1, 30001))


async def test_feedback_that_cannot_be_sent_stops_neither_loop_nor_reader(
    database: Database,
) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(database)
        async with streaming(source) as (stream, reading):
            assert isinstance(stream, PostgresStream)
            status = encode_status(write_lsn=NO_LSN, flush_lsn=NO_LSN, sent_us=0)
            os.kill(stream.backend_pid, signal.SIGSTOP)
            try:
                # 8 MB: more than both sides' sockets hold. libpq keeps the rest.
                for _ in range(200_000):
                    stream._pgconn.put_copy_data(status)
                assert stream._pgconn.flush() == 1
                stream.acknowledge(confirmed(database))
                connection.execute("INSERT INTO a SELECT generate_series(1, 100)")
                began = asyncio.get_running_loop().time()
                await asyncio.sleep(0.3)
                # It would stand still for as long as the walsender does.
                assert asyncio.get_running_loop().time() - began < 20
            finally:
                os.kill(stream.backend_pid, signal.SIGCONT)

            await read_until(stream, end_of_log(database), reading)

    assert [record["after"]["id"] for record in reading.records] == list(range(1, 101))


async def test_a_cancelled_receive_loses_nothing(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, v text)")
        source = await prepared(database)
        async with streaming(source) as (stream, reading):
            for number in range(200):
                connection.execute("INSERT INTO a VALUES (%s, 'x')", (number,))
                if number % 10 == 0:
                    connection.execute("ALTER TABLE a ALTER v SET DEFAULT 'y'")
                try:
                    async with asyncio.timeout(0.0005 * (number % 7)):
                        intake = await stream.receive()
                except TimeoutError:
                    continue
                reading.batches.extend(intake.batches)
            await read_until(stream, end_of_log(database), reading)

    assert [record["after"]["id"] for record in reading.records] == list(range(200))


# ------------------------------------------------------------------------ what goes wrong


async def test_a_terminated_walsender_is_unavailable_and_can_be_had_again(
    any_database: Database,
) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(any_database)
        connection.execute("INSERT INTO a VALUES (1)")

        async with streaming(source) as (stream, reading):
            await read_until(stream, end_of_log(any_database), reading)
            connection.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                " WHERE slot_name = %s",
                (any_database.name,),
            )
            with pytest.raises(SourceUnavailable) as caught:
                await receive_for_ever(stream)

    assert caught.value.retryable
    await eventually(lambda: is_slot_free(any_database))
    assert afters((await read_all(source, any_database)).records) == [{"id": 1}]


async def test_a_slot_that_is_held_names_its_holder(any_database: Database) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(any_database)

    async with streaming(source):
        [(holder,)] = any_database.execute(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", any_database.name
        )
        with pytest.raises(LeaseHeld) as caught:
            async with streaming(source):
                pytest.fail("two held the slot")

    assert f"is held by process {holder}" in str(caught.value)
    assert caught.value.retryable


async def test_a_missing_slot_is_a_lost_position(any_database: Database) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(any_database)
        connection.execute("SELECT pg_drop_replication_slot(%s)", (any_database.name,))

    with pytest.raises(PositionLost, match="no replication slot") as caught:
        async with streaming(source):
            pytest.fail("streamed without a slot")

    assert caught.value.hint


async def test_a_publication_that_is_missing_stops_the_stream_by_name_before_18(
    database15: Database,
) -> None:
    with database15.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(database15)
        connection.execute("DROP PUBLICATION tailrace")
        connection.execute("INSERT INTO a VALUES (1)")

    with pytest.raises(PositionLost, match="publication") as caught:
        await read_all(source, database15)

    assert "tailrace" in str(caught.value)


async def test_a_publication_dropped_and_made_again_ends_the_stream_before_18(
    database15: Database,
) -> None:
    with database15.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(database15)
        connection.execute("DROP PUBLICATION tailrace")
        connection.execute("INSERT INTO a VALUES (1)")
        connection.execute("CREATE PUBLICATION tailrace FOR TABLE a")
        connection.execute("INSERT INTO a VALUES (2)")

    with pytest.raises(PositionLost, match="publication"):
        await read_all(source, database15)


@pytest.mark.since(18)
async def test_a_publication_dropped_and_made_again_has_18_ask_for_a_look(
    database: Database,
) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = await prepared(database)
        connection.execute("DROP PUBLICATION tailrace")
        connection.execute("INSERT INTO a VALUES (1)")
        connection.execute("CREATE PUBLICATION tailrace FOR TABLE a")

    async with (
        asyncio.timeout(60),
        source.stream(None, CAPTURE_ALL, Versions().decide) as stream,
    ):
        intake = await stream.receive()
        while not intake.is_look_wanted:
            intake = await stream.receive()

    assert intake.batches == ()


async def test_a_server_that_is_not_there_is_unavailable(database: Database) -> None:
    source = PostgresSource(
        dsn="host=127.0.0.1 port=1 user=postgres password=hush dbname=postgres",
        slot="tailrace",
        configuration=CAPTURE_ALL,
    )

    with pytest.raises(SourceUnavailable) as caught:
        await source.identify()

    assert "hush" not in str(caught.value)


async def test_identity_names_system_timeline_and_database(any_database: Database) -> None:
    [(system_identifier,)] = any_database.execute(
        "SELECT system_identifier::text FROM pg_control_system()"
    )

    identity = await source_of(any_database).identify()

    assert identity.facts == {"system_identifier": system_identifier}
    assert identity.branch == "1"
    assert identity.database == any_database.name
    assert identity.lease == any_database.name
    assert identity.through == "tailrace"


async def test_a_timeline_that_was_never_left_has_no_fork(database: Database) -> None:
    with pytest.raises(PositionLost, match="timeline"):
        await source_of(database).fork("1")


@pytest.mark.parametrize("is_reading", [True, False])
async def test_a_server_can_stop_while_changes_wait_to_be_acknowledged(*, is_reading: bool) -> None:
    with EmbeddedPostgres(settings=FAST_SETTINGS) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = PostgresSource(
            dsn=server.dsn, slot="tailrace", configuration=CAPTURE_ALL, wal_sender_timeout=2.0
        )
        await source.prepare(is_first=True)
        start = await source.end()
        async with asyncio.TaskGroup() as group:
            async with streaming(source) as (stream, reading):
                stream.acknowledge(start)
                with psycopg.connect(server.dsn, autocommit=True) as connection:
                    connection.execute("INSERT INTO a VALUES (1)")
                await read_until(stream, await source.end(), reading)
                # A limit that the server's stop must not need.
                stop = group.create_task(asyncio.to_thread(server.stop, seconds_max=90.0))
                if not is_reading:
                    # Backpressure: nobody comes to see the server's messages.
                    async with asyncio.timeout(60):
                        await stop
                with pytest.raises(SourceUnavailable, match="shutting down"):
                    await receive_for_ever(stream)
            async with asyncio.timeout(60):
                await stop

        server.start()
        again = Reading()
        async with streaming(source) as (stream, _):
            await read_until(stream, await source.end(), again)

    assert afters(again.records) == afters(reading.records) == [{"id": 1}]


async def test_a_promoted_server_tells_where_it_left_the_timeline() -> None:
    with EmbeddedPostgres(settings=FAST_SETTINGS) as server:
        source = PostgresSource(dsn=server.dsn, slot="tailrace", configuration=CAPTURE_ALL)
        before = await source.end()
        server.stop()
        standby = server.data_directory / "standby.signal"
        standby.touch()
        server._give_to_account(standby)
        server.start()
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")
            connection.execute("CREATE TABLE a (id int)")

        identity = await source.identify()
        fork = await source.fork("1")

        assert identity.branch == "2"
        assert before.position <= fork < (await source.end()).position


async def test_the_end_of_the_log_reaches_what_was_committed(database: Database) -> None:
    source = source_of(database)
    before = await source.end()
    database.execute("CREATE TABLE a (id int)")

    after = await source.end()

    assert after.position > before.position
    assert source.distance(before, after) == lsn_of(after) - lsn_of(before)
    assert source.distance(after, before) == 0


async def test_a_stopped_server_is_unavailable_to_the_stream() -> None:
    with EmbeddedPostgres(settings=FAST_SETTINGS) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        source = PostgresSource(dsn=server.dsn, slot="tailrace", configuration=CAPTURE_ALL)
        await source.prepare(is_first=True)

        async with streaming(source) as (stream, _):
            server.kill()
            with pytest.raises(SourceUnavailable):
                await receive_for_ever(stream)


async def test_a_stream_runs_with_the_settings_of_its_configuration(database: Database) -> None:
    configuration = RecordConfiguration(
        through="tailrace", tables=("*.*",), stream=(("DateStyle", "SQL, DMY"),)
    )
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, r daterange)")
        source = await prepared(database)
        connection.execute("INSERT INTO a VALUES (1, '[2026-11-22,2026-11-23)')")

    [iso] = (await read_all(source, database)).records
    [other] = (await read_all(source, database, configuration=configuration)).records

    assert iso["after"]["r"] == "[2026-11-22,2026-11-23)"
    assert other["after"]["r"] == "[22/11/2026,23/11/2026)"


@pytest.mark.integration
async def test_the_end_is_behind_a_commit_that_is_not_flushed_yet(any_database: Database) -> None:
    any_database.execute("CREATE TABLE t (id int)")
    source = source_of(any_database)

    for _ in range(3):
        with any_database.connect() as connection:
            connection.execute("SET synchronous_commit = off")
            [(before,)] = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchall()
            connection.execute("INSERT INTO t VALUES (1)")

        assert lsn_of(await source.end()) > parse_lsn(before)
