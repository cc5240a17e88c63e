"""Somebody holds ACCESS EXCLUSIVE on a table for long: nothing else waits for that."""

import asyncio
import gzip
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, LiteralString

import psycopg
import pytest

from databases import Database, members, waiting_for_locks
from engine.model.errors import SourceFailed, TailraceError
from engine.model.record import RecordConfiguration, TableRule
from engine.model.schema import TableName
from engine.operate.alarms import Alarm, Alarms
from engine.pipeline.pipeline import Pipeline
from engine.sources.postgres.preparation import WAITS
from engine.sources.postgres.publishing import PostgresPublishing
from engine.sources.postgres.settings import SHAPING_SETTINGS
from engine.sources.postgres.situation import Publication, Table
from engine.sources.postgres.source import PostgresSource
from live_engine import LiveEngine
from load_tests.engine_process import until
from trials import trials_of, tried

PUBLIC = RecordConfiguration(through="tailrace", tables=("public.*",))
START_SECONDS_MAX = 25.0


@contextmanager
def migration(
    database: Database, statement: LiteralString
) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A transaction that runs `statement` and stays open; rolled back where nobody commits it."""
    with database.connect(autocommit=False) as connection:
        connection.execute(statement)
        yield connection
        connection.rollback()


@asynccontextmanager
async def started(engine: LiveEngine) -> AsyncIterator[Any]:
    """A life whose start does not take long."""
    async with asyncio.timeout(START_SECONDS_MAX) as limit, engine.living() as pipeline:
        limit.reschedule(None)
        yield pipeline


@pytest.fixture
def prepared(any_database: Database) -> Database:
    """Two published tables with rows to come, and the slot."""
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, note text DEFAULT 'none')")
        connection.execute("CREATE TABLE b (id int PRIMARY KEY, note text DEFAULT 'none')")
    source = PostgresSource(dsn=any_database.dsn, slot=any_database.name, configuration=PUBLIC)
    asyncio.run(source.prepare(is_first=True))
    return any_database


@pytest.mark.parametrize(
    "statement", ["LOCK TABLE a IN ACCESS EXCLUSIVE MODE", "ALTER TABLE a ADD COLUMN more int"]
)
async def test_a_start_waits_for_nobodys_lock(prepared: Database, statement: LiteralString) -> None:
    prepared.execute("INSERT INTO a VALUES (1), (2)")
    engine = LiveEngine(prepared)

    with migration(prepared, statement):
        async with started(engine) as pipeline:
            prepared.execute("INSERT INTO b VALUES (3)")
            await engine.durable(pipeline)

    await engine.proven()
    assert [record["after"]["id"] for record in engine.records("public.a")] == [1, 2]
    assert [record["after"]["id"] for record in engine.records("public.b")] == [3]


async def test_a_running_stream_goes_on_with_the_other_tables(prepared: Database) -> None:
    engine = LiveEngine(prepared)

    async with started(engine) as pipeline:
        prepared.execute("INSERT INTO a VALUES (1)")
        await engine.durable(pipeline)
        with migration(prepared, "LOCK TABLE a IN ACCESS EXCLUSIVE MODE"):
            # Both are unknown to the stream: a look-up each.
            prepared.execute("ALTER TABLE b ADD COLUMN more int")
            prepared.execute("INSERT INTO b VALUES (2)")
            prepared.execute("CREATE TABLE c (id int PRIMARY KEY)")
            prepared.execute("ALTER PUBLICATION tailrace ADD TABLE ONLY c")
            prepared.execute("INSERT INTO c VALUES (3)")
            await engine.durable(pipeline)
            assert len(engine.records("public.b")) == len(engine.records("public.c")) == 1

    await engine.proven()


async def test_a_running_stream_describes_a_table_that_is_locked(prepared: Database) -> None:
    engine = LiveEngine(prepared)

    async with started(engine) as pipeline:
        prepared.execute("INSERT INTO a VALUES (1)")
        await engine.durable(pipeline)
        walsender = holder_of(prepared)
        # The server is to send the new description of the table when somebody has it locked.
        os.kill(walsender, signal.SIGSTOP)
        try:
            prepared.execute("ALTER TABLE a ADD COLUMN more int DEFAULT 7")
            prepared.execute("INSERT INTO a VALUES (2)")
            with migration(prepared, "ALTER TABLE a DROP COLUMN more"):
                os.kill(walsender, signal.SIGCONT)
                prepared.execute("INSERT INTO b VALUES (3)")
                await engine.durable(pipeline)
                assert [r["after"].get("more") for r in engine.records("public.a")] == [None, 7]
                assert len(engine.records("public.b")) == 1
        finally:
            os.kill(walsender, signal.SIGCONT)
        assert holder_of(prepared) == walsender

    await engine.proven()


def holder_of(database: Database) -> int:
    [(pid,)] = database.execute(
        "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", database.name
    )
    return int(pid)


async def test_a_table_that_is_locked_when_its_relation_comes_is_streamed(
    prepared: Database,
) -> None:
    engine = LiveEngine(prepared)

    async with started(engine) as pipeline:
        prepared.execute("INSERT INTO a VALUES (1)")
        await engine.durable(pipeline)
    prepared.execute("ALTER TABLE a ADD COLUMN more int DEFAULT 7")
    prepared.execute("INSERT INTO a VALUES (2)")
    with migration(prepared, "ALTER TABLE a DROP COLUMN more"):
        async with started(engine) as pipeline:
            await engine.durable(pipeline)
            assert [r["after"].get("more") for r in engine.records("public.a")] == [None, 7]

    await engine.proven()
    assert [column["type"] for column in engine.schema("a", 2)["columns"]] == [
        "integer",
        "text",
        "integer",
    ]


async def test_defaults_are_in_the_schema_where_nobody_had_the_table_locked(
    prepared: Database,
) -> None:
    engine = LiveEngine(prepared)

    with migration(prepared, "LOCK TABLE a IN ACCESS EXCLUSIVE MODE"):
        async with started(engine) as pipeline:
            prepared.execute("INSERT INTO b VALUES (1)")
            await engine.durable(pipeline)
    async with started(engine) as pipeline:
        prepared.execute("INSERT INTO a VALUES (1)")
        await engine.durable(pipeline)

    for table in ("a", "b"):
        columns = engine.schema(table, 1)["columns"]
        assert [column["default"] for column in columns] == [None, "'none'::text"]


async def test_a_start_lists_partitions_while_one_is_locked(any_database: Database) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        connection.execute("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)")
    source = PostgresSource(dsn=any_database.dsn, slot=any_database.name, configuration=PUBLIC)
    await source.prepare(is_first=True)

    with migration(any_database, "LOCK TABLE ONLY p1 IN ACCESS EXCLUSIVE MODE"):
        async with asyncio.timeout(START_SECONDS_MAX):
            await source.prepare(is_first=False)


@pytest.mark.parametrize("statement", ["LOCK TABLE a IN SHARE MODE", "CREATE PUBLICATION tailrace"])
async def test_a_publication_that_waits_for_a_lock_says_for_whose(
    any_database: Database, statement: LiteralString
) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    alarms = Alarms(lambda: 7)
    source = PostgresSource(
        dsn=any_database.dsn, slot=any_database.name, configuration=PUBLIC, alarms=alarms
    )

    with migration(any_database, statement) as connection:
        holder = connection.info.backend_pid
        async with asyncio.TaskGroup() as group:
            group.create_task(source.prepare(is_first=True))

            async def is_named() -> bool:
                return any(f"process {holder}" in alarm.text for alarm in alarms.standing())

            await until(is_named, "an alarm that names the holder")
            [alarm] = alarms.standing()
            connection.rollback()

    assert (alarm.code, alarm.subject) == (WAITS, "tailrace")
    assert alarms.standing() == ()
    assert any_database.execute("SELECT pubname FROM pg_publication") == [("tailrace",)]


async def test_a_first_start_goes_on_without_a_locked_table_that_is_added_later(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    any_database.execute("CREATE TABLE b (id int PRIMARY KEY)")
    source = PostgresSource(
        dsn=any_database.dsn, slot=any_database.name, configuration=PUBLIC, are_added_later=True
    )

    # So does VACUUM, for hours.
    with migration(any_database, "LOCK TABLE a IN SHARE UPDATE EXCLUSIVE MODE"):
        async with asyncio.timeout(START_SECONDS_MAX):
            await source.prepare(is_first=True)

    assert members(any_database) == {"b"}


# --- everything that we ask, while somebody has everything locked


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a lock that somebody holds is not answered in time."""
    monkeypatch.setattr("engine.sources.postgres.transaction.LOCK_TIMEOUT", "60s")
    monkeypatch.setattr("engine.sources.postgres.row_filters._TEXT_TIMEOUT", "60s")


FILTERED = RecordConfiguration(
    through="tailrace",
    tables=("public.*",),
    rules=(TableRule(match="public.w*", where="id > 0"),),
    stream=SHAPING_SETTINGS,
)
ITEMS, NOTES = TableName("public", "items"), TableName("public", "notes")


@pytest.fixture
def shop(any_database: Database) -> Database:
    """Tables of each kind that is asked about, published; two with a filter, one unasked for."""
    for statement in (
        "CREATE TABLE a (id int PRIMARY KEY, note text DEFAULT 'none')",
        "CREATE TABLE b (id int PRIMARY KEY)",
        "CREATE TABLE c (id int PRIMARY KEY)",
        "CREATE TABLE w (id int PRIMARY KEY)",
        "CREATE TABLE w2 (id int PRIMARY KEY)",
        "CREATE TABLE f (id int PRIMARY KEY)",
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
    ):
        any_database.execute(statement)
    source = PostgresSource(dsn=any_database.dsn, slot=any_database.name, configuration=FILTERED)
    asyncio.run(source.prepare(is_first=True))
    for statement in (
        "ALTER PUBLICATION tailrace DROP TABLE ONLY f",
        "ALTER PUBLICATION tailrace ADD TABLE ONLY f WHERE (id > 7)",
        "CREATE TABLE items (id int PRIMARY KEY)",
        "CREATE TABLE notes (id int PRIMARY KEY)",
    ):
        any_database.execute(statement)
    return any_database


@pytest.fixture
def held(shop: Database) -> Iterator[list[int]]:
    """Open transactions: on tables, on a partition, on the publication. Their processes."""
    with (
        migration(shop, "LOCK TABLE a, w, f IN ACCESS EXCLUSIVE MODE") as tables,
        migration(shop, "LOCK TABLE ONLY p1 IN ACCESS EXCLUSIVE MODE") as partition,
        migration(shop, "ALTER PUBLICATION tailrace DROP TABLE ONLY b") as publication,
    ):
        yield [each.info.backend_pid for each in (tables, partition, publication)]


@pytest.mark.usefixtures("impatient", "held")
@pytest.mark.since(15)
async def test_nothing_that_a_start_asks_waits_for_a_lock(shop: Database) -> None:
    source = PostgresSource(dsn=shop.dsn, slot=shop.name, configuration=FILTERED)

    async with asyncio.timeout(START_SECONDS_MAX):
        await source.prepare(is_first=False)
        async with source.stream(None, FILTERED, lambda *_: None) as stream:
            found = await stream.look()

    assert found is not None
    assert len(found.tables) == 9


@pytest.mark.usefixtures("impatient", "held")
@pytest.mark.since(15)
async def test_nothing_that_a_look_asks_waits_for_a_lock(shop: Database) -> None:
    source = PostgresSource(dsn=shop.dsn, slot=shop.name, configuration=FILTERED)

    async with asyncio.timeout(START_SECONDS_MAX):
        found = await source.look()

    reason = found.tables[TableName("public", "f")].reasons["row-filter"]
    assert "a condition that cannot be read now" in reason.text


@pytest.mark.usefixtures("impatient", "held")
@pytest.mark.since(15)
async def test_nothing_that_a_check_asks_waits_for_a_lock(shop: Database) -> None:
    source = PostgresSource(dsn=shop.dsn, slot=shop.name, configuration=FILTERED)

    async with asyncio.timeout(START_SECONDS_MAX):
        found = await trials_of(source, is_first=False)
        tables = await tried(source, "conditions", is_first=False)

    assert "where was not tried, because somebody has a lock on: public.w" in tables.text
    assert not [each for each in found.values() if isinstance(each, TailraceError)]


@pytest.mark.since(15)
async def test_new_tables_that_wait_for_a_lock_say_for_whose(
    shop: Database, held: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = PostgresPublishing(dsn=shop.dsn, configuration=FILTERED)
    attempts: list[list[TableName]] = []
    added = PostgresPublishing._alter

    async def counted(
        self: PostgresPublishing, publication: Publication, tables: Sequence[Table]
    ) -> list[TableName]:
        attempts.append([table.name for table in tables])
        return await added(self, publication, tables)

    monkeypatch.setattr(PostgresPublishing, "_alter", counted)

    async with asyncio.timeout(START_SECONDS_MAX):
        asked = await publishing.refused((ITEMS, NOTES))
        refused = await publishing.publish((ITEMS, NOTES))
    is_waiting = waiting_for_locks(shop)

    # What somebody does to the publication, and has not committed, is in nobody's way but ours.
    assert asked == {}
    for table in (ITEMS, NOTES):
        assert f"waits for a lock: process {held[2]}" in refused[table].text
    # It is asked for once, not for each table.
    assert [sorted(tables) for tables in attempts] == [sorted((ITEMS, NOTES))]
    assert is_waiting == []


@pytest.mark.usefixtures("held")
@pytest.mark.since(15)
async def test_an_engine_starts_and_streams_while_everything_else_is_locked(shop: Database) -> None:
    engine = LiveEngine(shop, configuration=FILTERED)

    async def are_stated() -> bool:
        return {gap.table for gap in engine.journal().gaps.values()} == {str(ITEMS), str(NOTES)}

    async with started(engine) as pipeline:
        shop.execute("INSERT INTO c VALUES (1)")
        await engine.durable(pipeline)
        await until(are_stated, "the gaps of tables that are not published")
        shop.execute("INSERT INTO c VALUES (2)")
        await engine.durable(pipeline)

    await engine.proven()
    assert [record["after"]["id"] for record in engine.records("public.c")] == [1, 2]


async def test_a_look_that_waits_for_a_table_of_the_catalog_ends_by_name(
    prepared: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.sources.postgres.look.LOOK_SECONDS_MAX", 0.5)
    source = PostgresSource(dsn=prepared.dsn, slot=prepared.name, configuration=PUBLIC)

    with migration(prepared, "LOCK TABLE pg_publication_rel IN ACCESS EXCLUSIVE MODE"):
        async with asyncio.timeout(START_SECONDS_MAX):
            with pytest.raises(SourceFailed, match="did not say within") as failed:
                await source.look()
        is_waiting = waiting_for_locks(prepared)

    assert "pg_locks" in failed.value.hint
    assert is_waiting == []


async def test_a_table_that_stays_locked_is_named_until_it_is_not(prepared: Database) -> None:
    engine = LiveEngine(prepared, look_seconds=0.1)

    def locked(pipeline: Pipeline) -> list[Alarm]:
        return [alarm for alarm in pipeline.status().alarms if alarm.code == "table-locked"]

    with migration(prepared, "LOCK TABLE a IN ACCESS EXCLUSIVE MODE") as connection:
        holder = connection.info.backend_pid
        async with started(engine) as pipeline:

            async def is_named() -> bool:
                return bool(locked(pipeline))

            async def is_over() -> bool:
                return not locked(pipeline)

            await until(is_named, "the alarm")
            [alarm] = locked(pipeline)
            connection.rollback()
            await until(is_over, "the alarm's end")
            prepared.execute("INSERT INTO a VALUES (1)")
            await engine.durable(pipeline)

    assert alarm.subject == "public.a"
    assert f"process {holder}" in alarm.text
    assert engine.schema("a", 1)["columns"][1]["default"] == "'none'::text"


async def test_a_default_of_a_column_that_is_left_out_is_nowhere(any_database: Database) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY, pin text DEFAULT 'canary-7f3a')")
    rule = TableRule(match="public.a", exclude=("pin",))
    engine = LiveEngine(
        any_database,
        configuration=RecordConfiguration("tailrace", tables=("public.*",), rules=(rule,)),
    )

    async with started(engine) as pipeline:
        any_database.execute("INSERT INTO a VALUES (1)")
        await engine.durable(pipeline)

    await engine.proven()
    assert [column["name"] for column in engine.schema("a", 1)["columns"]] == ["id"]
    bodies = [stored.body for stored in engine.store.objects.values()]
    plain = [gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body for body in bodies]
    assert not any(b"canary-7f3a" in body for body in plain)
    assert [record["after"] for record in engine.records("public.a")] == [{"id": 1}]
