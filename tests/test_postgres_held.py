"""PostgreSQL's snapshots as the coordinator holds them and workers read them."""

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, LiteralString, TypeAlias

import psycopg
import pytest
from msgspec.structs import replace

from databases import Database, dsn_as, reader_role
from engine.model.errors import (
    SnapshotStale,
    SourceRefused,
    SourceUnavailable,
    UnrepresentableRow,
)
from engine.model.position import snapshot_position
from engine.model.schema import TableName
from engine.sources.postgres.range_reader import PostgresRangeReader
from engine.sources.postgres.ranges import decode_own
from load_tests.engine_process import until
from snapshot_reading import (
    CONFIGURATION,
    keep_all,
    read_range,
    read_table,
    read_tasks,
    snapshots_of,
    tasks_of,
    with_names,
)

if TYPE_CHECKING:
    from engine.model.batch import LeftOut

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

A, TREE = TableName("public", "a"), TableName("public", "tree")


@pytest.fixture
def tables(any_database: Database) -> Database:
    """A table with a thousand rows, and one with two partitions and five hundred in each."""
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, note text)")
        connection.execute("INSERT INTO a SELECT n, 'x' FROM generate_series(1, 1000) AS n")
        connection.execute("CREATE TABLE tree (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        connection.execute("CREATE TABLE leaf1 PARTITION OF tree FOR VALUES FROM (0) TO (500)")
        connection.execute("CREATE TABLE leaf2 PARTITION OF tree FOR VALUES FROM (500) TO (1000)")
        connection.execute("INSERT INTO tree SELECT n FROM generate_series(0, 999) AS n")
    return any_database


@pytest.mark.parametrize(("range_pages", "count"), [(None, 1), (1, 5), (2, 3)])
async def test_each_row_is_in_exactly_one_range(
    tables: Database, range_pages: int | None, count: int
) -> None:
    async with snapshots_of(tables, range_pages=range_pages).hold([A, TREE]) as held:
        tables.execute("INSERT INTO a SELECT n FROM generate_series(1001, 5000) AS n")
        tables.execute("DELETE FROM a WHERE id < 10")
        tables.execute("DELETE FROM tree WHERE id < 500")
        tables.execute("UPDATE tree SET id = id - 500 WHERE id > 900")

        reading = await read_tasks(tables.dsn, tasks_of(held, A))
        tree = await read_tasks(tables.dsn, tasks_of(held, TREE))

        assert len(held.tables[A].ranges) == count
    assert sorted(row["id"] for row in reading.rows) == list(range(1, 1001))
    assert sorted(row["id"] for row in tree.rows) == list(range(1000))


async def test_positions_and_operations_are_those_of_the_attempt(tables: Database) -> None:
    async with snapshots_of(tables, range_pages=2).hold([A]) as held:
        tasks = tasks_of(held, A)
        readings = [await read_range(tables.dsn, task) for task in tasks]

        for task, batches in zip(tasks, readings, strict=True):
            lane = [(task.point, task.attempt, task.range_number, n) for n in range(1000)]
            count = sum(batch.row_count for batch in batches)
            assert batches[0].first == snapshot_position(*lane[0])
            assert batches[-1].last == snapshot_position(*lane[count - 1])
    records = (await read_table(tables, A, range_pages=2)).records
    assert [record["metadata"]["op"] for record in records] == ["t"] + ["r"] * 1000
    assert records[0]["after"] is None


async def test_lines_are_handed_over_in_batches(tables: Database) -> None:
    tables.execute("UPDATE a SET note = repeat('y', 1000)")

    batches = (await read_table(tables, A)).batches

    assert sum(batch.row_count for batch in batches) == 1001
    assert all(64 * 1024 < len(batch.lines) < 70 * 1024 for batch in batches[:-1])
    assert len(batches) > 10


async def test_a_table_without_rows_or_without_partitions_has_one_range_and_no_batch(
    any_database: Database,
) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute("CREATE TABLE tree (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    async with snapshots_of(any_database).hold([A, TREE]) as held:
        for table in (A, TREE):
            [task] = tasks_of(held, table)

            assert not await read_range(any_database.dsn, replace(task, begins_attempt=False))
            [batch] = await read_range(any_database.dsn, task)
            assert batch.operations._asdict() == {"c": 0, "u": 0, "d": 0, "r": 0, "t": 1}


async def test_a_held_table_names_the_partitions_that_it_is_read_from(tables: Database) -> None:
    identities = tables.execute(
        "SELECT inhrelid::int8::text FROM pg_inherits WHERE inhparent = 'tree'::regclass"
    )

    async with snapshots_of(tables).hold([A, TREE]) as held:
        assert held.tables[A].partitions == ()
        assert sorted(held.tables[TREE].partitions) == sorted(text for (text,) in identities)


async def test_estimates_follow_the_statistics(tables: Database) -> None:
    tables.execute("ANALYZE")

    async with snapshots_of(tables).hold([A, TREE]) as held:
        assert held.tables[A].rows_estimate == 1000
        assert held.tables[TREE].rows_estimate == 1000
        assert held.tables[A].bytes_estimate == 5 * 8192


@pytest.mark.since(15)
async def test_what_the_publication_filters_is_not_read(tables: Database) -> None:
    with tables.connect() as connection:
        connection.execute(
            "CREATE PUBLICATION tailrace FOR TABLE a WHERE (id > 990 AND note = 'x'),"
            " tree WHERE (id % 100 = 0) WITH (publish = 'insert', publish_via_partition_root)"
        )

    assert len((await read_table(tables, A, range_pages=1)).rows) == 10
    assert len((await read_table(tables, TREE)).rows) == 10


@pytest.mark.since(15)
async def test_a_filter_does_not_count_where_the_schema_is_published(tables: Database) -> None:
    tables.execute(
        "CREATE PUBLICATION tailrace FOR TABLE a WHERE (id > 990), TABLES IN SCHEMA public"
    )

    assert len((await read_table(tables, A)).rows) == 1000


# ------------------------------------------------------------------------------- rights


async def test_tables_that_may_not_be_read_are_left_out_with_the_statement(
    tables: Database,
) -> None:
    with reader_role(tables) as role:
        tables.execute(f"GRANT SELECT ON tree TO {role}".encode())  # type: ignore[arg-type]
        dsn = dsn_as(tables, role)
        async with snapshots_of(tables, dsn=dsn).hold([A, TREE]) as held:
            assert not held.tables
            left_out = held.left_out

        assert all(isinstance(error, SourceRefused) for error in left_out.values())
        assert left_out[A].hint == f'GRANT SELECT ON TABLE "public"."a" TO "{role}"'
        assert '"public"."leaf1", "public"."leaf2"' in left_out[TREE].hint
        for error in left_out.values():
            tables.execute(error.hint.encode())  # type: ignore[arg-type]
        async with snapshots_of(tables, dsn=dsn).hold([A, TREE]) as held:
            assert not held.left_out
            reading = await read_tasks(dsn, tasks_of(held, TREE))
        assert len(reading.rows) == 1000


async def test_a_schema_that_may_not_be_used_is_told_with_the_statement(
    tables: Database,
) -> None:
    other = TableName("other", "b")
    with tables.connect() as connection, reader_role(tables) as role:
        connection.execute("CREATE SCHEMA other")
        connection.execute("CREATE TABLE other.b (id int)")
        async with snapshots_of(tables, dsn=dsn_as(tables, role)).hold([other]) as held:
            assert held.left_out[other].hint == (
                f'GRANT USAGE ON SCHEMA "other" TO "{role}";'
                f' GRANT SELECT ON TABLE "other"."b" TO "{role}"'
            )


@pytest.mark.parametrize("secured", ["a", "leaf1"])
async def test_row_level_security_is_told_before_a_row_is_read(
    tables: Database, secured: LiteralString
) -> None:
    with reader_role(tables) as role, tables.connect() as connection:
        connection.execute(f"GRANT pg_read_all_data TO {role}".encode())
        connection.execute(f"ALTER TABLE {secured} ENABLE ROW LEVEL SECURITY".encode())
        connection.execute(f"CREATE POLICY p ON {secured} USING (id = 1)".encode())
        dsn = dsn_as(tables, role)
        async with snapshots_of(tables, dsn=dsn).hold([A, TREE]) as held:
            [(table, error)] = held.left_out.items()

            assert table == (A if secured == "a" else TREE)
            assert isinstance(error, SourceRefused)
            assert "row-level security" in str(error)
            assert error.hint == f'ALTER ROLE "{role}" BYPASSRLS'


async def test_a_policy_that_comes_later_is_an_error_instead_of_fewer_rows(
    tables: Database,
) -> None:
    with reader_role(tables) as role, tables.connect() as connection:
        connection.execute(f"GRANT pg_read_all_data TO {role}".encode())
        connection.execute("ALTER TABLE a ENABLE ROW LEVEL SECURITY")
        connection.execute(f"ALTER ROLE {role} BYPASSRLS".encode())
        dsn = dsn_as(tables, role)
        async with snapshots_of(tables, dsn=dsn).hold([A]) as held:
            connection.execute(f"ALTER ROLE {role} NOBYPASSRLS".encode())

            with pytest.raises(SourceRefused, match="row-level security"):
                await read_tasks(dsn, tasks_of(held, A))


async def test_what_is_no_table_is_left_out(any_database: Database) -> None:
    view = TableName("public", "v")
    any_database.execute("CREATE VIEW v AS SELECT 1 AS id")

    async with snapshots_of(any_database).hold([view]) as held:
        assert isinstance(held.left_out[view], SourceRefused)


# -------------------------------------------------------------------------------- staleness


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("TRUNCATE a", "rewritten"),
        ("VACUUM FULL a", "rewritten"),
        ("ALTER TABLE a RENAME TO b", "does not exist"),
        ("DROP TABLE a", "does not exist"),
        ("ALTER TABLE a RENAME TO b; CREATE TABLE a (id int, note text)", "renamed"),
    ],
)
async def test_a_worker_reads_nothing_of_a_leaf_that_is_another_one_now(
    tables: Database, statement: LiteralString, text: str
) -> None:
    """As where both keepers' locks went with their sessions, and another keeper's name stands."""
    async with snapshots_of(tables).hold([A]) as held:
        tasks = tasks_of(held, A)
        with tables.connect(autocommit=False) as exporter:
            exporter.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            [[name]] = exporter.execute("SELECT pg_export_snapshot()").fetchall()
            end_keepers(tables)
            for part in statement.split("; "):
                tables.execute(part)

            with pytest.raises(SnapshotStale, match=text):
                await read_tasks(tables.dsn, [with_names(task, name) for task in tasks])


def end_keepers(database: Database) -> None:
    database.execute(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND state = 'idle in transaction'"
        " AND application_name LIKE 'tailrace%%'"
    )


async def test_a_name_that_went_with_its_session_is_passed_over(tables: Database) -> None:
    async with snapshots_of(tables).hold([A]) as held:
        [task] = tasks_of(held, A)
        names = decode_own(task.own).snapshots
        for wrong in ("00000003-00000001-1", "no name at all"):
            batches = await read_range(tables.dsn, with_names(task, wrong, *names))
            assert sum(batch.row_count for batch in batches) == 1001

            with pytest.raises(SnapshotStale):
                await read_range(tables.dsn, with_names(task, wrong))


async def test_a_leaf_that_somebody_waits_for_is_not_read(tables: Database) -> None:
    async with snapshots_of(tables).hold([A]) as held:
        tasks = tasks_of(held, A)
        async with asyncio.TaskGroup() as group:
            with tables.connect() as migration:
                waiting = group.create_task(
                    asyncio.to_thread(ignoring_its_end, migration, "ALTER TABLE a ADD z int")
                )
                await until(lambda: waits_for(tables, "a"), "the migration waits", seconds=60)

                with pytest.raises(SnapshotStale, match="could not obtain lock"):
                    await read_tasks(tables.dsn, tasks)
                migration.cancel()
                await waiting


async def test_a_snapshot_lets_go_of_its_tables_once_somebody_waits_for_one(
    tables: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It does not wait for the next look.
    monkeypatch.setattr("engine.sources.postgres.lock_watch._LOOK_SECONDS", 60.0)
    snapshots = snapshots_of(tables, lock_yield_seconds=1.5)
    async with asyncio.TaskGroup() as group, snapshots.hold([A, TREE]) as held:
        with tables.connect() as migration:
            pid = migration.info.backend_pid
            waiting = group.create_task(
                asyncio.to_thread(ignoring_its_end, migration, "ALTER TABLE a ADD z int")
            )
            async with asyncio.timeout(60):
                with pytest.raises(SnapshotStale) as caught:
                    await held.watch()
            migration.cancel()
            await waiting

    assert f"ALTER of process {pid}" in str(caught.value)
    assert "AccessExclusiveLock on public.a" in str(caught.value)


def ignoring_its_end(connection: Connection, statement: LiteralString) -> None:
    with suppress(psycopg.errors.QueryCanceled):
        connection.execute(statement)


async def waits_for(database: Database, table: str) -> bool | None:
    query = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
    return bool(await asyncio.to_thread(database.execute, query, table)) or None


async def test_a_snapshot_whose_keepers_are_gone_is_stale(tables: Database) -> None:
    async with snapshots_of(tables).hold([A]) as held:
        end_keepers(tables)

        async with asyncio.timeout(60):
            with pytest.raises(SnapshotStale, match="both sessions"):
                await held.watch()


async def test_a_partition_that_is_attached_meanwhile_is_found_by_the_comparison(
    tables: Database,
) -> None:
    async with snapshots_of(tables).hold([A, TREE]) as held:
        with tables.connect() as connection:
            connection.execute("CREATE TABLE late (id int PRIMARY KEY)")
            connection.execute(
                "ALTER TABLE tree ATTACH PARTITION late FOR VALUES FROM (1000) TO (2000)"
            )

        await held.compare(A)
        with pytest.raises(SnapshotStale, match="attached"):
            await held.compare(TREE)


async def test_progress_is_told_by_the_tasks_name(tables: Database) -> None:
    tables.execute("UPDATE a SET note = repeat('y', 20000)")
    async with snapshots_of(tables).hold([A]) as held:
        [task] = tasks_of(held, A)
        async with PostgresRangeReader(tables.dsn).read(task, keep_all) as batches:
            await anext(batches)

            found = await held.progress()

    assert set(found) == {task.name}
    assert found[task.name].rows > 0
    assert found[task.name].size_bytes > 64 * 1024


async def test_a_reader_that_is_left_early_lets_go_of_everything(tables: Database) -> None:
    tables.execute("UPDATE a SET note = repeat('y', 20000)")
    async with snapshots_of(tables).hold([A]) as held:
        [task] = tasks_of(held, A)
        async with PostgresRangeReader(tables.dsn).read(task, keep_all) as batches:
            await anext(batches)
        await until(lambda: nobody_reads(tables), "the session is gone", seconds=60)


async def nobody_reads(database: Database) -> bool | None:
    query = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name LIKE 'tailrace range%%'"
    )
    return not await asyncio.to_thread(database.execute, query) or None


async def test_whoever_still_reads_when_the_snapshot_ends_is_stopped(tables: Database) -> None:
    tables.execute("UPDATE a SET note = repeat('y', 20000)")
    async with snapshots_of(tables).hold([A]) as held:
        [task] = tasks_of(held, A)
        other = replace(task, name="another snapshot's/0")
        reading = PostgresRangeReader(tables.dsn).read(task, keep_all)
        other_reading = PostgresRangeReader(tables.dsn).read(other, keep_all)
        batches, other_batches = await reading.__aenter__(), await other_reading.__aenter__()
        await anext(batches)
        await anext(other_batches)

    with pytest.raises(SourceUnavailable):
        [batch async for batch in batches]
    assert [batch async for batch in other_batches]
    await other_reading.__aexit__(None, None, None)
    await reading.__aexit__(None, None, None)


async def test_a_row_that_no_record_can_hold_ends_the_range_or_is_left_out(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE t (id int PRIMARY KEY, x text)")
    any_database.execute("INSERT INTO t VALUES (1, 'a'), (2, repeat('b', 100000)), (3, 'c')")
    table = TableName("public", "t")
    small = replace(CONFIGURATION, row_bytes_max=50_000)
    tolerant = replace(small, on_unrepresentable="gap")
    left_out: list[LeftOut] = []

    async with snapshots_of(any_database).hold([table]) as held:
        [strict_task] = tasks_of(held, table, small)
        with pytest.raises(UnrepresentableRow, match=r"public\.t"):
            await read_range(any_database.dsn, strict_task)
        [task] = tasks_of(held, table, tolerant)
        batches = await read_range(any_database.dsn, task, leave_out=left_out.append)

    lines = b"".join(batch.lines for batch in batches).splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["after"] and record["after"]["id"] for record in records] == [None, 1, 3]
    [row] = left_out
    assert (row.table, json.loads(row.key)) == (table, {"id": "2"})
    positions = [record["metadata"]["position"] for record in records]
    assert positions[1] < row.position < positions[2]
