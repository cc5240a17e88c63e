"""A server that says nothing: while it works we wait, and a peer that is gone is given up."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import LiteralString

import pytest
from psycopg.conninfo import make_conninfo

from databases import Database
from engine.model.errors import SourceUnavailable
from engine.model.interfaces import ChangeStream
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableVersion
from engine.operate.alarms import Alarms
from engine.servers.fault_proxy import TcpFaultProxy
from engine.sources.postgres import silence
from engine.sources.postgres.lsn import lsn_of
from engine.sources.postgres.silence import Doing, judged_wait
from engine.sources.postgres.source import PostgresSource
from log_points import point

pytestmark = pytest.mark.timeout(300)

CONFIGURATION = RecordConfiguration(through="tailrace", tables=("*.*",))
SILENCE_SECONDS = 2.0
# A quiet stream is asked for a word after half of it.
WAL_SENDER_TIMEOUT = 3.0

# The first statement rewrites the table: its rows are in the log, and PostgreSQL 15 skips them
# without a word.
REWRITE: tuple[LiteralString, ...] = (
    "ALTER TABLE a ALTER v TYPE bigint",
    "INSERT INTO b VALUES (1)",
)
REWRITTEN_ROWS = 1_600_000

# The walsender computes for a tenth of a second for each row, and sends none. It gives a sign of
# life of its own every hundred rows.
SLOW_FILTER = "md5(repeat(v, 60000000)) = v"


@pytest.mark.parametrize(
    ("kind", "event", "doing"),
    [
        (None, None, Doing.WORKS),
        ("IO", "ReorderBufferRead", Doing.WORKS),
        ("Lock", "relation", Doing.WORKS),
        ("Activity", "WalSenderMain", Doing.IDLES),
        ("Client", "WalSenderWaitForWAL", Doing.IDLES),
        ("Client", "WalSenderWriteData", Doing.IDLES),
    ],
)
def test_a_wait_event_tells_work_from_waiting(
    kind: str | None, event: str | None, doing: Doing
) -> None:
    assert judged_wait(kind, event).doing is doing


@pytest.mark.since(15)
async def test_a_server_that_works_in_silence_is_waited_for(any_database: Database) -> None:
    alarms = Alarms(lambda: 0)
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, v text)")
        connection.execute("CREATE TABLE b (id int PRIMARY KEY)")
        connection.execute(
            f"CREATE PUBLICATION tailrace FOR TABLE a WHERE ({SLOW_FILTER}), b"
            " WITH (publish = 'insert')".encode()
        )
    async with streaming(any_database, alarms) as stream:
        with any_database.connect(autocommit=False) as connection:
            connection.execute("INSERT INTO a SELECT i, 'x' FROM generate_series(1, 25) i")
            connection.execute("INSERT INTO b VALUES (1)")
        async with asyncio.TaskGroup() as group:
            receiving = group.create_task(first_batch(stream))
            seen = await alarm_seen(alarms, receiving)
            table = await receiving
        state = await stream.standing()

    assert table == "b"
    assert seen == silence.ALARM
    assert lsn_of(state.confirmed), "still held by the same walsender"
    assert alarms.count == 0


async def test_a_large_table_that_15_rewrites_in_silence_is_waited_for(
    database15: Database,
) -> None:
    alarms = Alarms(lambda: 0)
    fill = f"INSERT INTO a SELECT i, i FROM generate_series(1, {REWRITTEN_ROWS}) i"
    # The server has to write the rewritten rows to disk and to read them again: that takes longer.
    spill = f"ALTER DATABASE {database15.name} SET logical_decoding_work_mem = '64kB'"
    with database15.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, v int)")
        connection.execute(fill.encode())
        connection.execute("CREATE TABLE b (id int PRIMARY KEY)")
        connection.execute(spill.encode())
    async with (
        streaming(database15, alarms, wal_sender_timeout=1.0, silence_seconds=0.8) as stream,
        asyncio.TaskGroup() as group,
    ):
        receiving = group.create_task(first_batch(stream))
        seen = group.create_task(alarm_seen(alarms, receiving))
        for statement in REWRITE:
            await asyncio.to_thread(database15.execute, statement)

    assert receiving.result() == "b"
    assert seen.result() == silence.ALARM
    assert alarms.count == 0


async def alarm_seen(alarms: Alarms, receiving: "asyncio.Task[str]") -> str | None:
    """The code of the first alarm that stands before something is received."""
    while not receiving.done():
        if alarms.count:
            return alarms.standing()[0].code
        await asyncio.wait([receiving], timeout=0.02)
    return None


async def first_batch(stream: ChangeStream) -> str:
    while True:
        intake = await stream.receive()
        if intake.batches:
            return intake.batches[0].table.table


async def test_a_walsender_that_has_nothing_to_do_and_says_nothing_is_given_up(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with streaming(any_database, Alarms(lambda: 0)) as stream:
        with stopped(holder(any_database)), pytest.raises(SourceUnavailable) as caught:
            async with asyncio.timeout(60):
                await receive_for_ever(stream)

    assert "waits for us or for more log" in str(caught.value)


async def test_a_peer_that_swallows_everything_is_given_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "ANSWER_SECONDS_MAX", 1.0)
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with TcpFaultProxy(database.server.port) as proxy:
        dsn = make_conninfo(database.dsn, port=proxy.port)
        async with streaming(database, Alarms(lambda: 0), dsn=dsn) as stream:
            with proxy.blackout(), pytest.raises(SourceUnavailable) as caught:
                async with asyncio.timeout(60):
                    await receive_for_ever(stream)

    assert "another session gets no answer either" in str(caught.value)


async def test_an_idle_stream_lives_on(database: Database) -> None:
    alarms = Alarms(lambda: 0)
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with streaming(database, alarms) as stream:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3 * SILENCE_SECONDS):
                await receive_for_ever(stream)

        await stream.standing()

    assert alarms.count == 0


@asynccontextmanager
async def streaming(
    database: Database,
    alarms: Alarms,
    *,
    dsn: str = "",
    silence_seconds: float = SILENCE_SECONDS,
    wal_sender_timeout: float = WAL_SENDER_TIMEOUT,
) -> AsyncIterator[ChangeStream]:
    source = PostgresSource(
        dsn=dsn or database.dsn,
        slot=database.name,
        configuration=CONFIGURATION,
        wal_sender_timeout=wal_sender_timeout,
        silence_seconds=silence_seconds,
        alarms=alarms,
    )
    await source.prepare(is_first=True)
    async with source.stream(None, CONFIGURATION, take_all) as stream:
        stream.acknowledge(point(1))
        yield stream


def take_all(relation: Relation, position: object) -> TableVersion:
    return TableVersion(1, None, "", relation)


async def receive_for_ever(stream: ChangeStream) -> None:
    while True:
        await stream.receive()


def holder(database: Database) -> int:
    [(pid,)] = database.execute(
        "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", database.name
    )
    return int(pid)


@contextmanager
def stopped(process_id: int) -> Iterator[None]:
    """The process frozen where it stands."""
    os.kill(process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process_id, signal.SIGCONT)
