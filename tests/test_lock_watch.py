"""The watch of a snapshot's locks where sessions are lost or silent, and how it is let go of."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import LiteralString

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from databases import Database, dsn_as, reader_role
from engine.model.errors import SnapshotStale
from engine.model.schema import TableName
from engine.servers.fault_proxy import TcpFaultProxy
from engine.sources.postgres import exported, held_session, lock_watch
from load_tests.engine_process import until
from snapshot_reading import snapshots_of

A = TableName("public", "a")

OURS: LiteralString = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND state = %s AND pid <> pg_backend_pid()
      AND backend_type = 'client backend' ORDER BY backend_start
"""
LOCKED: LiteralString = """
    SELECT 1 FROM pg_locks WHERE granted AND relation = 'a'::regclass
"""


@pytest.fixture
def table(database15: Database) -> Database:
    database15.execute("CREATE TABLE a (id int PRIMARY KEY)")
    return database15


async def test_a_waiter_is_seen_though_the_server_lets_no_further_session_in(
    table: Database,
) -> None:
    with reader_role(table) as role:
        table.execute(f"GRANT SELECT ON a TO {role}".encode())  # type: ignore[arg-type]
        async with snapshots_of(table, dsn=dsn_as(table, role)).hold([A]) as held:
            table.execute(f"ALTER ROLE {role} CONNECTION LIMIT 0".encode())  # type: ignore[arg-type]
            [(fresh,)] = table.execute(OURS, "idle")
            table.execute("SELECT pg_terminate_backend(%s, 60000)", fresh)
            async with migrating(table):
                async with asyncio.timeout(60):
                    with pytest.raises(SnapshotStale, match=r"AccessExclusiveLock on public\.a"):
                        await held.watch()


async def test_a_keeper_that_does_not_answer_is_not_waited_for(
    table: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for the other keeper to answer on a busy machine.
    monkeypatch.setattr(lock_watch, "_ANSWER_SECONDS", 3.0)
    async with snapshots_of(table).hold([A]) as held:
        keepers = [pid for (pid,) in table.execute(OURS, "idle in transaction")]
        with stopped(keepers[0]):
            async with migrating(table):
                async with asyncio.timeout(60):
                    with pytest.raises(SnapshotStale, match="ALTER of process"):
                        await held.watch()


async def test_locks_that_nobody_can_watch_are_let_go_of(
    table: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, limit in (
        (lock_watch, "_ANSWER_SECONDS", 0.5),
        (lock_watch, "_LEAVE_SECONDS", 0.1),
        (held_session, "_END_SECONDS", 0.1),
        (exported, "_STOP_SECONDS", 0.1),
    ):
        monkeypatch.setattr(module, name, limit)
    loop = asyncio.get_running_loop()
    async with TcpFaultProxy(table.server.port) as proxy:
        dsn = make_conninfo(table.dsn, port=proxy.port)
        async with snapshots_of(table, dsn=dsn).hold([A]) as held:
            proxy.go_dark()
            async with asyncio.timeout(60):
                with pytest.raises(SnapshotStale, match="nobody says who waits"):
                    await held.watch()
            left_at = loop.time()
        seconds = loop.time() - left_at
        proxy.go_light()

    # Less than psycopg takes to cancel one question.
    assert seconds < 4.5


async def test_the_locks_are_gone_before_readers_are_stopped(
    table: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported, "_STOP_SECONDS", 600.0)
    async with asyncio.TaskGroup() as group:
        leaving, holding = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with snapshots_of(table).hold([A]):
                holding.set()
                await leaving.wait()

        task = group.create_task(hold())
        await holding.wait()
        [(fresh,)] = table.execute(OURS, "idle")
        with stopped(fresh):
            leaving.set()
            await until(lambda: nobody_holds(table), "the locks are gone", seconds=60)
            assert not task.done()


async def nobody_holds(database: Database) -> bool | None:
    return not await asyncio.to_thread(database.execute, LOCKED) or None


@asynccontextmanager
async def migrating(database: Database) -> AsyncIterator[None]:
    """An ALTER TABLE that waits, until the block ends."""
    async with asyncio.TaskGroup() as group:
        with database.connect() as connection:

            def migrate() -> None:
                with suppress(psycopg.errors.QueryCanceled):
                    connection.execute("ALTER TABLE a ADD z int")

            task = group.create_task(asyncio.to_thread(migrate))
            try:
                yield
            finally:
                connection.cancel()
                await task


@contextmanager
def stopped(process_id: int) -> Iterator[None]:
    """The process frozen where it stands."""
    os.kill(process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process_id, signal.SIGCONT)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE INDEX CONCURRENTLY ON b (id)",
        "REINDEX TABLE CONCURRENTLY b",
        "ALTER TABLE tree DETACH PARTITION leaf CONCURRENTLY",
    ],
)
async def test_what_is_done_concurrently_waits_for_the_snapshot_and_blocks_nobody(
    table: Database, statement: LiteralString
) -> None:
    with table.connect() as connection:
        connection.execute("CREATE TABLE b (id int PRIMARY KEY)")
        connection.execute("CREATE TABLE tree (id int) PARTITION BY RANGE (id)")
        connection.execute("CREATE TABLE leaf PARTITION OF tree FOR VALUES FROM (0) TO (9)")
    snapshots = snapshots_of(table, lock_yield_seconds=0.5)
    with table.connect() as migration:
        async with asyncio.TaskGroup() as group:
            async with snapshots.hold([A, TableName("public", "tree")]) as held:
                task = group.create_task(asyncio.to_thread(migration.execute, statement))
                await until(lambda: waits_for_a_snapshot(table), "it waits", seconds=60)
                table.execute("INSERT INTO b VALUES (1)")
                table.execute("SELECT count(*) FROM tree")

                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(3):
                        await held.watch()
                assert not task.done()
            async with asyncio.timeout(60):
                await task


async def waits_for_a_snapshot(database: Database) -> bool | None:
    query: LiteralString = (
        "SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND locktype = 'virtualxid' AND datname = current_database()"
    )
    return bool(await asyncio.to_thread(database.execute, query)) or None
