"""Making the slot behind transactions that stay open, and behind somebody else who makes it."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from databases import Database, fresh_database
from engine.model.errors import SourceUnavailable
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableName, TableVersion
from engine.operate.alarms import Alarm, Alarms
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3
from engine.sources.postgres.held import PostgresSnapshots
from engine.sources.postgres.source import PostgresSource
from faults.rig import rigged
from load_tests.engine_process import EngineProcess, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

pytestmark = pytest.mark.timeout(300)

CONFIGURATION = RecordConfiguration(through="tailrace", tables=("*.*",))


@pytest.fixture(params=["wheel", "debian"], scope="module")
def patient_postgres(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """A server of our own: transactions left open here would hold up the slots of other tests."""
    settings = {**FAST_SETTINGS, "max_prepared_transactions": "5"}
    make = EmbeddedPostgres if request.param == "wheel" else EmbeddedPostgres.debian
    with make(settings=settings) as server:
        yield server


@pytest.fixture
def patient(patient_postgres: EmbeddedPostgres) -> Iterator[Database]:
    with fresh_database(patient_postgres) as database:
        database.execute("CREATE TABLE a (id int PRIMARY KEY)")
        yield database


@contextmanager
def open_transaction(database: Database) -> Iterator[int]:
    """A transaction that holds up every slot's making; its process. Its end may be forced."""
    connection = database.connect(autocommit=False)
    connection.execute("INSERT INTO a VALUES (1)")
    try:
        yield connection.info.backend_pid
    finally:
        connection.close()


def source_of(database: Database, alarms: Alarms) -> PostgresSource:
    return PostgresSource(
        dsn=database.dsn, slot=database.name, configuration=CONFIGURATION, alarms=alarms
    )


@asynccontextmanager
async def preparing(source: PostgresSource) -> AsyncIterator["asyncio.Task[None]"]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(source.prepare(is_first=True))
        yield task
        task.cancel()


async def alarmed(alarms: Alarms) -> Alarm:
    async def look() -> Alarm | None:
        return next(iter(alarms.standing()), None)

    return await until(look, "an alarm", seconds=60)


def slot_count(database: Database) -> int:
    [(count,)] = database.execute(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s"
        " AND confirmed_flush_lsn IS NOT NULL",
        database.name,
    )
    return int(count)


async def test_a_forgotten_prepared_transaction_is_named(patient: Database) -> None:
    alarms = Alarms(lambda: 0)
    with patient.connect(autocommit=False) as connection:
        connection.execute("INSERT INTO a VALUES (1)")
        connection.execute("PREPARE TRANSACTION 'forgotten ''one'")

    async with preparing(source_of(patient, alarms)) as task:
        alarm = await alarmed(alarms)
        with patient.connect() as connection:
            connection.execute(statement_of(alarm.hint).encode())
        async with asyncio.timeout(60):
            await task

    assert alarm.code == "slot-creation-waits"
    assert repr("forgotten 'one") in alarm.text
    assert "'postgres'" in alarm.text
    assert patient.name in alarm.text
    assert ", for " in alarm.text
    assert alarms.count == 0
    assert slot_count(patient) == 1


def statement_of(hint: str) -> str:
    """The first statement of "… ROLLBACK PREPARED '…' or COMMIT PREPARED '…'"."""
    return hint[hint.index("ROLLBACK") : hint.index(" or COMMIT")]


async def test_an_old_open_transaction_is_named(patient: Database) -> None:
    alarms = Alarms(lambda: 0)
    with open_transaction(patient) as pid:
        async with preparing(source_of(patient, alarms)) as task:
            alarm = await alarmed(alarms)
            patient.execute("SELECT pg_terminate_backend(%s, 60000)", pid)
            async with asyncio.timeout(60):
                await task

    assert f"process {pid}" in alarm.text
    assert "idle in transaction" in alarm.text
    assert f"pg_terminate_backend({pid})" in alarm.hint
    assert slot_count(patient) == 1


async def test_a_cancelled_creation_is_tried_again(patient: Database) -> None:
    alarms = Alarms(lambda: 0)
    with open_transaction(patient), capture_logs() as logs:
        async with preparing(source_of(patient, alarms)) as task:
            await alarmed(alarms)
            patient.execute(
                "SELECT pg_cancel_backend(active_pid) FROM pg_replication_slots"
                " WHERE slot_name = %s",
                patient.name,
            )
            await until(lambda: told(logs, "slot not made"), "the failure's line", seconds=60)
            await alarmed(alarms)
            patient.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
                " WHERE state = 'idle in transaction' AND datname = %s",
                patient.name,
            )
            async with asyncio.timeout(60):
                await task

    assert slot_count(patient) == 1


async def test_time_limits_of_a_database_do_not_end_the_creation(patient: Database) -> None:
    alarms = Alarms(lambda: 0)
    with patient.connect() as unlimited:
        for name in ("lock_timeout", "statement_timeout"):
            statement = f"ALTER DATABASE {patient.name} SET {name} = '200ms'"
            unlimited.execute(statement.encode())

        with open_transaction(patient) as pid:
            async with preparing(source_of(patient, alarms)) as task:
                # It has waited for longer than that when the alarm comes.
                await alarmed(alarms)
                done, _ = await asyncio.wait([task], timeout=0.3)
                unlimited.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))
                async with asyncio.timeout(60):
                    await task
        unlimited.execute(f"ALTER DATABASE {patient.name} RESET ALL".encode())

    assert not done
    assert slot_count(patient) == 1


async def told(logs: Sequence[Mapping[str, Any]], event: str) -> bool:
    return any(line["event"] == event for line in logs)


async def test_an_engine_killed_in_the_creation_leaves_no_healthy_standby(
    patient_postgres: EmbeddedPostgres,
    s3: EmbeddedS3,
    bucket: str,
    s3_client: "S3Client",
    tmp_path: Path,
) -> None:
    with fresh_database(patient_postgres) as database:
        async with rigged(database, s3, bucket, s3_client, tmp_path) as rig:
            # The twin's slot was made before.
            connection = database.connect(autocommit=False)
            connection.execute("INSERT INTO entries (account) VALUES ('open')")
            pid = connection.info.backend_pid
            first = rig.start("first")
            await waiting_status(first)
            first.kill()

            successor = rig.start("successor")
            status = await waiting_status(successor)
            ready = await successor.readiness()
            connection.rollback()
            connection.close()
            await successor.reaches("streaming")

            await successor.stop()

    [alarm] = status["alarms"]
    assert status["phase"] == "starting"
    assert "another process that makes the replication slot" in alarm["text"]
    assert f"process {pid}" in alarm["text"]
    assert ready is not None
    assert ready[0] == 503
    assert "makes the replication slot" in ready[1]["reason"]


async def waiting_status(engine: EngineProcess) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        assert engine.is_running, engine.complaint
        status = await engine.status()
        return status if status is not None and status["alarms"] else None

    return await until(look, "an alarm", seconds=60)


async def test_a_slot_that_is_being_made_is_not_held_by_a_standby(patient: Database) -> None:
    alarms = Alarms(lambda: 0)
    patient.execute("CREATE PUBLICATION tailrace FOR TABLE a")
    with open_transaction(patient):
        async with preparing(source_of(patient, alarms)):
            await alarmed(alarms)
            with pytest.raises(SourceUnavailable, match="still being made by process"):
                async with source_of(patient, alarms).stream(None, CONFIGURATION, take_all):
                    pytest.fail("streamed from half a slot")


def take_all(relation: Relation, position: object) -> TableVersion:
    return TableVersion(1, None, "", relation)


async def test_a_snapshot_says_for_whom_it_waits_and_lets_go_when_it_is_given_up(
    patient: Database,
) -> None:
    alarms = Alarms(lambda: 0)
    snapshots = PostgresSnapshots(dsn=patient.dsn, configuration=CONFIGURATION, alarms=alarms)

    async def hold() -> None:
        async with snapshots.hold([TableName("public", "a")]):
            pytest.fail("it did not wait")

    async with asyncio.TaskGroup() as group:
        with open_transaction(patient) as pid:
            holding = group.create_task(hold())
            alarm = await alarmed(alarms)
            holding.cancel()
            await asyncio.wait([holding])

    assert f"a transaction of process {pid}" in alarm.text
    assert not list(alarms.standing())
