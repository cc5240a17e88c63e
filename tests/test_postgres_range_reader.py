"""Ranges that are hard to read: many columns, large rows, hostile roles."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from databases import Database, dsn_as, fresh_database
from engine.model.errors import SnapshotStale, SourceRefused
from engine.model.schema import TableName
from engine.model.snapshot_source import RangeTask
from engine.servers.servers import EmbeddedPostgres
from engine.sources.postgres.range_reader import PostgresRangeReader
from engine.sources.postgres.ranges import decode_own
from load_tests.engine_process import until
from snapshot_reading import (
    CONFIGURATION,
    keep_all,
    read_table,
    read_tasks,
    snapshots_of,
    tasks_of,
    with_names,
)
from test_hostile_sessions import make_shadows, role_on, shadows_ran

A: Final = TableName("public", "a")

TIMEOUTS: Final = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
)


async def test_a_row_of_1600_columns_is_read(any_database: Database) -> None:
    names = [f"c{number}" for number in range(1600)]
    columns = ", ".join(f"{name} int" for name in names)
    with any_database.connect() as connection:
        connection.execute(f"CREATE TABLE a ({columns})".encode())
        connection.execute(f"INSERT INTO a VALUES ({', '.join(['7'] * 1600)})".encode())

    [row] = (await read_table(any_database, A)).rows

    assert row == dict.fromkeys(names, 7)


async def test_a_large_row_is_read_whole(database: Database) -> None:
    database.execute("CREATE TABLE a (id int, t text)")
    database.execute(
        "INSERT INTO a SELECT 1, repeat(E'a\\tb\\\\\"\\x01', 2000000) UNION ALL SELECT 2, 'x'"
    )

    rows = (await read_table(database, A)).rows

    assert rows == [{"id": 1, "t": 'a\tb\\"\x01' * 2_000_000}, {"id": 2, "t": "x"}]


@pytest.mark.since(15)
async def test_no_timeout_or_search_path_of_a_role_ends_or_changes_a_reading(
    any_database: Database,
) -> None:
    with role_on(any_database) as role, any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, n numeric)")
        connection.execute("INSERT INTO a SELECT n, n FROM generate_series(1, 2000) AS n")
        connection.execute(
            "CREATE PUBLICATION tailrace FOR TABLE a WHERE (id + 1 > 1001)"
            " WITH (publish = 'insert')"
        )
        connection.execute(f"GRANT SELECT ON a TO {role}".encode())
        make_shadows(connection)
        settings = {"search_path": "shadow, public, pg_catalog", "enable_tidscan": "off"}
        known = connection.execute("SELECT name FROM pg_settings").fetchall()
        settings |= dict.fromkeys({name for (name,) in known}.intersection(TIMEOUTS), "'1s'")
        for name, value in settings.items():
            connection.execute(f"ALTER ROLE {role} SET {name} = {value}".encode())
        dsn = dsn_as(any_database, role)
        async with snapshots_of(any_database, dsn=dsn, range_pages=2).hold([A]) as held:
            connection.execute("SELECT pg_catalog.pg_sleep(2.5)")

            reading = await read_tasks(dsn, tasks_of(held, A))

    assert sorted(row["id"] for row in reading.rows) == list(range(1001, 2001))
    assert not shadows_ran(any_database)


async def test_a_worker_does_not_wake_up_for_each_piece_that_the_server_sends(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("CREATE TABLE a (id int PRIMARY KEY, t text)")
    database.execute("INSERT INTO a SELECT n, repeat('x', 9000) FROM generate_series(1, 600) n")
    loop = asyncio.get_running_loop()
    add_reader, waits = loop.add_reader, []

    def counted(*arguments: Any) -> None:
        waits.append(arguments)
        add_reader(*arguments)

    async with snapshots_of(database).hold([A]) as held:
        [task] = tasks_of(held, A)
        # Each row fills the server's buffer, and comes a millisecond after the last one.
        slow = msgspec.structs.replace(
            decode_own(task.own), row_filter="pg_catalog.pg_sleep(0.001) IS NOT NULL"
        )
        task = replace(task, own=msgspec.msgpack.encode(slow))
        async with PostgresRangeReader(database.dsn).read(task, keep_all) as batches:
            monkeypatch.setattr(loop, "add_reader", counted)
            row_count = sum([batch.row_count async for batch in batches])

    assert row_count == 601
    # Two pieces at a time at least, but for the first ones.
    assert len(waits) < 370


@pytest.mark.parametrize("envelope", ["debezium", "flat"])
async def test_every_envelope_has_the_record_that_begins_the_attempt(
    database: Database, envelope: str
) -> None:
    configuration = replace(CONFIGURATION, envelope=envelope)
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    database.execute("INSERT INTO a VALUES (1)")

    lines = (await read_table(database, A, configuration)).lines

    operations = [json.loads(line)["_op" if envelope == "flat" else "op"] for line in lines]
    assert operations == ["t", "r"]


# ------------------------------------------------------------- a connection that is kept

_SESSIONS = """
    SELECT pid, application_name, state, backend_xmin IS NULL AND backend_xid IS NULL,
           (SELECT count(*) FROM pg_locks l WHERE l.pid = a.pid)
    FROM pg_stat_activity a
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%COPY%'
"""
"""Those whose last message was a range's."""


def two_tables(database: Database) -> None:
    with database.connect() as connection:
        for table in ("a", "é"):
            connection.execute(f'CREATE TABLE "{table}" (id int PRIMARY KEY, t text)'.encode())
            connection.execute(
                f"INSERT INTO \"{table}\" SELECT n, 'x' FROM generate_series(1, 1000) n".encode()
            )


async def rows_of(reader: PostgresRangeReader, task: RangeTask) -> list[Any]:
    async with reader.read(task, keep_all) as batches:
        lines = [line async for batch in batches for line in batch.lines.splitlines()]
    records = [json.loads(line) for line in lines]
    return [record["after"]["id"] for record in records if record["metadata"]["op"] == "r"]


@asynccontextmanager
async def keeping(database: Database, seconds: float) -> AsyncIterator[PostgresRangeReader]:
    """A reader that keeps its connection for so long, and then has none."""
    yield PostgresRangeReader(database.dsn, idle_seconds=seconds)

    async def is_gone() -> bool:
        return not database.execute(_SESSIONS)

    await until(is_gone, "the end of the kept connection")


async def test_a_connection_is_kept_for_the_next_range_and_holds_nothing_meanwhile(
    any_database: Database,
) -> None:
    two_tables(any_database)
    async with keeping(any_database, 2.0) as reader:
        seen = []
        for table in (A, TableName("public", "é")):
            async with snapshots_of(any_database, range_pages=2).hold([table]) as held:
                rows: list[int] = []
                for task in tasks_of(held, table):
                    rows += await rows_of(reader, task)
                    seen += any_database.execute(_SESSIONS)
            # Whoever still read a range of the snapshot was stopped.
            seen += any_database.execute(_SESSIONS)
            assert sorted(rows) == list(range(1, 1001))

    pids, names, states, sees_nothing, locks = (set(each) for each in zip(*seen, strict=True))
    assert len(seen) >= 6
    assert len(pids) == 1
    assert not any(name.startswith("tailrace range") for name in names)
    assert (states, sees_nothing, locks) == ({"idle"}, {True}, {0})


async def test_a_reading_that_is_given_up_ends_its_connection(database: Database) -> None:
    database.execute("CREATE TABLE a (id int PRIMARY KEY, t text)")
    # More than the sockets hold, so the server is still sending.
    database.execute("INSERT INTO a SELECT n, repeat('x', 1000) FROM generate_series(1, 50000) n")
    async with snapshots_of(database).hold([A]) as held, keeping(database, 3600.0) as reader:
        [task] = tasks_of(held, A)
        async with reader.read(task, keep_all) as batches:
            first = await anext(batches)
            [(_, name, *_)] = database.execute(_SESSIONS)

    assert first.row_count
    assert name == f"tailrace range {task.name}"


@pytest.mark.since(15)
async def test_a_range_that_fails_ends_its_connection(database: Database) -> None:
    two_tables(database)
    database.execute(
        "CREATE PUBLICATION tailrace FOR TABLE a WHERE (1000 / (id - 500) < 2000)"
        " WITH (publish = 'insert')"
    )
    async with snapshots_of(database).hold([A]) as held, keeping(database, 3600.0) as reader:
        [task] = tasks_of(held, A)
        with pytest.raises(SourceRefused):
            await rows_of(reader, task)


async def test_a_snapshot_that_is_gone_is_told_also_by_a_connection_that_was_kept(
    database: Database,
) -> None:
    two_tables(database)
    async with snapshots_of(database).hold([A]) as held, keeping(database, 3600.0) as reader:
        [task] = tasks_of(held, A)
        await rows_of(reader, task)
        with pytest.raises(SnapshotStale):
            await rows_of(reader, with_names(task, "00000001-00000001-1"))


async def test_a_kept_connection_takes_the_next_name_where_the_first_is_gone(
    database: Database,
) -> None:
    two_tables(database)
    async with snapshots_of(database).hold([A]) as held, keeping(database, 1.0) as reader:
        [task] = tasks_of(held, A)
        both = [await rows_of(reader, task)]
        pids = database.execute(_SESSIONS)
        names = decode_own(task.own).snapshots
        both.append(await rows_of(reader, with_names(task, "00000001-00000001-1", *names)))
        pids += database.execute(_SESSIONS)

    assert [len(rows) for rows in both] == [1000, 1000]
    assert len({pid for pid, *_ in pids}) == 1


async def test_a_kept_connection_that_the_server_ended_is_made_anew(database: Database) -> None:
    two_tables(database)
    async with snapshots_of(database).hold([A]) as held, keeping(database, 1.0) as reader:
        [task] = tasks_of(held, A)
        await rows_of(reader, task)
        ended = database.execute(
            f"SELECT pid, pg_terminate_backend(pid, 60000) FROM ({_SESSIONS}) AS s"
        )

        rows = await rows_of(reader, task)
        [(pid, *_)] = database.execute(_SESSIONS)

    assert [was_ended for _, was_ended in ended] == [True]
    assert pid not in {pid for pid, _ in ended}
    assert len(rows) == 1000


async def test_a_connection_that_had_a_large_row_is_not_kept(database: Database) -> None:
    two_tables(database)
    database.execute("UPDATE a SET t = repeat('x', 5000000) WHERE id = 500")
    async with snapshots_of(database).hold([A]) as held, keeping(database, 3600.0) as reader:
        [task] = tasks_of(held, A)

        assert len(await rows_of(reader, task)) == 1000


async def test_a_kept_connection_to_a_server_without_an_encoding_reads_any_name(
    postgres: EmbeddedPostgres,
) -> None:
    table = TableName("public", "é")
    with fresh_database(postgres, encoding="SQL_ASCII") as database:
        two_tables(database)
        holding = snapshots_of(database, range_pages=2).hold([table])
        async with holding as held, keeping(database, 1.0) as reader:
            rows = [row for task in tasks_of(held, table) for row in await rows_of(reader, task)]

    assert sorted(rows) == list(range(1, 1001))
