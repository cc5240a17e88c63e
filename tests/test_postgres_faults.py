"""PostgreSQL on its bad days: terminated, crashed, restarted, restored, and its slot tampered with.

What the engine can survive loses nothing; what it cannot survive ends it by name, with exit code
70, before anything else is written.
"""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from databases import Database, fresh_database
from engine.servers.fault_proxy import TcpFaultProxy
from engine.servers.postgres_server import StopMode
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3
from faults.load import Load, make_tables
from faults.rig import Rig, rigged
from load_tests.engine_process import EngineProcess, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

TERMINATIONS = 4
ADD = "INSERT INTO entries (account) SELECT 'a' FROM generate_series(1, 500)"


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server that may be stopped and killed."""
    with EmbeddedPostgres(settings=FAST_SETTINGS) as server:
        yield server


@pytest.fixture
def own_database(own_postgres: EmbeddedPostgres) -> Iterator[Database]:
    if not own_postgres.is_running:
        own_postgres.start()
    with fresh_database(own_postgres) as database:
        yield database


@pytest.fixture
async def rig(
    own_database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    async with rigged(own_database, s3, bucket, s3_client, tmp_path) as rig:
        yield rig


async def progress(rig: Rig) -> None:
    """Wait until something is durable that was not when this began."""
    before = await rig.image.durable_lsn()

    async def look() -> bool:
        return await rig.image.durable_lsn() > before

    await until(look, "progress")


async def another_holder(rig: Rig, than: int) -> int:
    """Wait until another walsender than `than` holds the slot; its process."""

    async def look() -> int | None:
        holder = await rig.holder()
        return None if holder == than else holder

    return await until(look, "another walsender")


async def more_connections(proxy: TcpFaultProxy, than: int) -> None:
    async def look() -> bool:
        return proxy.statistics().connection_count > than

    await until(look, "a new connection")


async def refused(rig: Rig, engine: EngineProcess, *words: str) -> None:
    """Exit code 70, said with all `words`."""
    assert await engine.ended() == 70, engine.complaint
    complaint = engine.log.lower()
    assert [word for word in words if word not in complaint] == [], engine.complaint


async def settled(rig: Rig) -> frozenset[str]:
    """Write, publish, end: a bucket and a slot that agree. The keys that are there then."""
    rig.database.execute(ADD)
    await rig.catch_up()
    return (await rig.image.look()).keys


# --- what is survived


@pytest.mark.timeout(300)
async def test_a_terminated_walsender_is_connected_again(rig: Rig) -> None:
    engine = await rig.streaming()
    holder = await until(rig.holder, "a walsender")

    async with Load(rig.database, seed=1, rate=30).running():
        for _ in range(TERMINATIONS):
            rig.database.execute("SELECT pg_terminate_backend(%s)", holder)
            holder = await another_holder(rig, than=holder)
            await progress(rig)

    assert engine.events("connection to the source lost")
    await engine.stop()
    await rig.proven()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["immediate", "fast", "kill"])
async def test_a_server_that_comes_back_is_connected_again(rig: Rig, way: str) -> None:
    server, engine = rig.database.server, await rig.streaming()
    ways = {
        "immediate": lambda: server.stop(StopMode.IMMEDIATE),
        "fast": lambda: server.stop(StopMode.FAST),
        "kill": server.kill,
    }

    async with Load(rig.database, seed=2, rate=30).running():
        await progress(rig)
        await asyncio.to_thread(ways[way])
        await engine.reaches("reconnecting")
        await asyncio.to_thread(server.start)
        await engine.reaches("streaming")
        await progress(rig)

    await engine.stop()
    await rig.proven()


@pytest.mark.timeout(300)
async def test_connections_that_break_in_the_middle_of_a_message_are_made_again(rig: Rig) -> None:
    async with TcpFaultProxy(rig.database.server.port) as proxy:
        dsn = psycopg.conninfo.make_conninfo(rig.database.dsn, port=proxy.port)
        engine = await rig.streaming(pipeline=rig.pipeline.changed(source__dsn=dsn))

        async with Load(rig.database, seed=3, rate=30).running():
            for size in (1, 30_000, 77_777, 200_000):
                before = proxy.statistics().connection_count
                proxy.reset_after(size)
                await more_connections(proxy, before)
                await progress(rig)

        await rig.catch_up_with(engine)
        await engine.stop()
    assert engine.events("connection to the source lost")
    await rig.proven()


@pytest.mark.timeout(300)
async def test_a_stop_while_the_server_is_away_ends_well_and_loses_nothing(rig: Rig) -> None:
    server, engine = rig.database.server, await rig.streaming()
    rig.database.execute(ADD)
    await progress(rig)
    rig.database.execute(ADD)
    await asyncio.to_thread(server.stop, StopMode.IMMEDIATE)
    await engine.reaches("reconnecting")

    engine.send(signal.SIGTERM)
    code = await engine.ended(seconds=60)

    await asyncio.to_thread(server.start)
    assert code == 0, engine.complaint
    await rig.proven()


# --- what is refused


@pytest.mark.timeout(240)
async def test_a_slot_dropped_while_no_engine_ran_is_refused(rig: Rig) -> None:
    keys = await settled(rig)
    rig.database.execute("SELECT pg_drop_replication_slot(%s)", rig.slot)
    rig.database.execute(ADD)

    await refused(rig, rig.start(), "slot", rig.slot)

    assert (await rig.image.look()).keys == keys


@pytest.mark.timeout(240)
async def test_a_slot_made_anew_is_refused(rig: Rig) -> None:
    await settled(rig)
    before = await rig.image.look()
    rig.database.execute("SELECT pg_drop_replication_slot(%s)", rig.slot)
    rig.database.execute(ADD)
    rig.database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", rig.slot)

    await refused(rig, rig.start(), "slot", "lost")

    assert (await rig.image.look()).planned == before.planned


@pytest.mark.timeout(240)
async def test_a_slot_advanced_by_hand_is_refused(rig: Rig) -> None:
    await settled(rig)
    before = await rig.image.look()
    rig.database.execute(ADD)
    rig.database.execute(
        "SELECT pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", rig.slot
    )

    await refused(rig, rig.start(), "slot", "lost")

    after = await rig.image.look()
    assert (after.planned, after.durable_lsn) == (before.planned, before.durable_lsn)


@pytest.mark.timeout(240)
async def test_a_slot_dropped_and_made_anew_under_a_running_engine_is_refused(rig: Rig) -> None:
    engine = await rig.streaming()
    rig.database.execute(ADD)
    await rig.catch_up_with(engine)
    before = await rig.image.look()
    with rig.proxy.blackout():
        # Out of the engine's hands, then advanced before it is back.
        rig.database.execute("SELECT pg_terminate_backend(%s, 60000)", await rig.holder())
        remade = await asyncio.to_thread(remake_slot, rig)
        rig.database.execute(ADD)
    assert remade

    await refused(rig, engine, "slot")

    assert (await rig.image.look()).planned == before.planned


def remake_slot(rig: Rig) -> bool:
    """Drop the slot in the moment in which nobody holds it, and make it anew behind new changes."""
    with rig.database.connect() as connection:
        for _ in range(2000):
            try:
                connection.execute("SELECT pg_drop_replication_slot(%s)", (rig.slot,))
            except psycopg.errors.ObjectInUse as error:
                del error
                connection.execute(
                    "SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots"
                    " WHERE slot_name = %s",
                    (rig.slot,),
                )
                continue
            connection.execute(ADD)
            connection.execute(
                "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (rig.slot,)
            )
            return True
    return False


@pytest.mark.timeout(300)
async def test_a_server_restored_to_an_earlier_time_is_refused(rig: Rig) -> None:
    server = rig.database.server
    await settled(rig)
    earlier = server.data_directory.with_name("earlier")
    await asyncio.to_thread(server.stop)
    # Permissions and owner come along: the server runs as another account than root.
    await asyncio.to_thread(copied, server.data_directory, earlier)
    await asyncio.to_thread(server.start)
    for _ in range(20):
        rig.database.execute(ADD)
    await settled(rig)
    before = await rig.image.look()

    await asyncio.to_thread(server.stop)
    shutil.rmtree(server.data_directory)
    earlier.rename(server.data_directory)
    await asyncio.to_thread(server.start)

    await refused(rig, rig.start(), "restored to an earlier time")
    assert (await rig.image.look()).planned == before.planned


def copied(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True)
    for path in (source, *source.rglob("*")):
        status = path.lstat()
        shutil.chown(target / path.relative_to(source), status.st_uid, status.st_gid)


@pytest.mark.timeout(240)
async def test_another_server_under_the_same_prefix_is_refused(
    rig: Rig, postgres: EmbeddedPostgres
) -> None:
    keys = await settled(rig)
    with fresh_database(postgres) as database:
        make_tables(database)
        stranger = rig.pipeline.changed(source__dsn=database.dsn)

        await refused(rig, rig.start(pipeline=stranger), "prefix", "belongs to")

        slots = database.execute(
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", rig.slot
        )
    assert slots == [], "a stranger leaves no slot behind"
    assert (await rig.image.look()).keys == keys
