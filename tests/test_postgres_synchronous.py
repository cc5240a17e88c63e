"""Commits that wait for us, and lines in the server's log that an idle engine leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from databases import Database, fresh_database
from engine.model.errors import LeaseHeld
from engine.model.interfaces import ChangeStream
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableVersion
from engine.operate.alarms import Alarms
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3
from engine.sources.postgres.source import PostgresSource
from engine.sources.postgres.synchronous import is_listed, listed_names
from faults.rig import Rig, rigged
from load_tests.engine_process import until
from trials import tried

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

CONFIGURATION = RecordConfiguration(through="tailrace", tables=("*.*",))


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("", ()),
        ("*", ("*",)),
        ("s1, s2", ("s1", "s2")),
        ("FIRST 2 (s1, s2)", ("s1", "s2")),
        ("any 1 (s1,\n s2, s3)", ("s1", "s2", "s3")),
        ("2(s1,s2)", ("s1", "s2")),
        ('"a, b", "say ""so""", *', ("a, b", 'say "so"', "*")),
        ("FIRST 1 (*)", ("*",)),
    ],
)
def test_the_setting_is_read_as_the_server_reads_it(setting: str, names: tuple[str, ...]) -> None:
    assert listed_names(setting) == names


def test_names_match_whatever_their_case() -> None:
    assert is_listed("FIRST 1 (s1, TailRace)", "tailrace")
    assert is_listed('"*"', "tailrace")
    assert not is_listed("tailrace2", "tailrace")
    assert not is_listed("", "tailrace")


@pytest.fixture(params=["wheel", "debian"], scope="module")
def own_postgres(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """A server whose commits may wait."""
    make = EmbeddedPostgres if request.param == "wheel" else EmbeddedPostgres.debian
    with make(settings=FAST_SETTINGS) as server:
        yield server


@pytest.fixture
def waiting(own_postgres: EmbeddedPostgres) -> Iterator[Database]:
    with fresh_database(own_postgres) as database:
        yield database
        synchronous(database, "")


def synchronous(database: Database, names: str) -> None:
    """Set synchronous_standby_names, and wait until new sessions see it."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        literal = psycopg.sql.Literal(names)
        statement = psycopg.sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}")
        connection.execute(statement.format(literal))
        connection.execute("SELECT pg_reload_conf()")
    while database.execute("SHOW synchronous_standby_names") != [(names,)]:
        pass


@pytest.mark.timeout(300)
async def test_commits_that_wait_for_us_are_alarmed_with_what_to_set(waiting: Database) -> None:
    waiting.execute("CREATE TABLE a (id int PRIMARY KEY)")
    alarms = Alarms(lambda: 0)
    source = PostgresSource(
        dsn=waiting.dsn, slot=waiting.name, configuration=CONFIGURATION, alarms=alarms
    )
    await source.prepare(is_first=True)
    before = await tried(source, "commits", is_first=False)
    synchronous(waiting, "*")

    async with source.stream(None, CONFIGURATION, take_all) as stream:
        await looked(stream, alarms, count=1)
        [alarm] = alarms.standing()
        warning = await tried(source, "commits", is_first=False)
        synchronous(waiting, "")
        await looked(stream, alarms, count=0)

    assert alarm.code == "commits-wait"
    assert "synchronous" in alarm.text
    assert "ALTER SYSTEM SET synchronous_standby_names" in alarm.hint
    assert not before.hint
    assert "'*'" in warning.text


@pytest.mark.timeout(300)
async def test_a_commit_waits_for_us_under_a_star_and_no_longer_after_the_remedy(
    waiting: Database,
) -> None:
    """Nothing is acknowledged here, as with a bucket that takes its time."""
    waiting.execute("CREATE TABLE a (id int PRIMARY KEY)")
    source = PostgresSource(dsn=waiting.dsn, slot=waiting.name, configuration=CONFIGURATION)
    await source.prepare(is_first=True)
    synchronous(waiting, "*")

    async with (
        source.stream(None, CONFIGURATION, take_all) as stream,
        asyncio.TaskGroup() as all_,
    ):
        reading = all_.create_task(read_on(stream))
        commit = all_.create_task(asyncio.to_thread(waiting.execute, "INSERT INTO a VALUES (1)"))
        await until(lambda: commit_waits(waiting), "a commit that waits")
        is_done_under_star = commit.done()
        synchronous(waiting, "")
        await commit
        await asyncio.to_thread(waiting.execute, "INSERT INTO a VALUES (2)")
        reading.cancel()

    assert not is_done_under_star
    assert waiting.execute("SELECT count(*) FROM a") == [(2,)]


async def commit_waits(database: Database) -> bool:
    [(count,)] = database.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = %s",
        database.name,
    )
    return bool(count)


async def read_on(stream: ChangeStream) -> None:
    while True:
        await stream.receive()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("names", ["replica1, Tail_One", "ANY 1 (tail_one, replica1)"])
async def test_a_name_of_the_dsn_that_is_listed_is_kept_and_alarmed(
    waiting: Database, names: str
) -> None:
    waiting.execute("CREATE TABLE a (id int PRIMARY KEY)")
    alarms = Alarms(lambda: 0)
    source = PostgresSource(
        dsn=make_conninfo(waiting.dsn, application_name="tail_one"),
        slot=waiting.name,
        configuration=CONFIGURATION,
        alarms=alarms,
    )
    await source.prepare(is_first=True)
    synchronous(waiting, names)
    warning = await tried(source, "commits", is_first=False)

    async with source.stream(None, CONFIGURATION, take_all) as stream:
        await looked(stream, alarms, count=1)
        [alarm] = alarms.standing()
        [(name,)] = waiting.execute(
            "SELECT application_name FROM pg_replication_slots JOIN pg_stat_replication"
            " ON pid = active_pid WHERE slot_name = %s",
            waiting.name,
        )
        synchronous(waiting, "")
        await looked(stream, alarms, count=0)

    assert name == "tail_one"
    assert alarm.code == "commits-wait"
    assert "'tail_one'" in alarm.text
    assert "application_name in source.dsn" in alarm.hint
    assert warning.hint
    assert names in warning.text


async def test_our_own_name_is_in_nobodys_list(waiting: Database) -> None:
    waiting.execute("CREATE TABLE a (id int PRIMARY KEY)")
    alarms = Alarms(lambda: 0)
    source = PostgresSource(
        dsn=waiting.dsn, slot=waiting.name, configuration=CONFIGURATION, alarms=alarms
    )
    await source.prepare(is_first=True)
    # A real standby of theirs may be called like the program that reads beside it.
    synchronous(waiting, "tailrace, tailrace_1, replica1")

    warning = await tried(source, "commits", is_first=False)
    async with source.stream(None, CONFIGURATION, take_all) as stream:
        await stream.standing()
        [(state,)] = waiting.execute(
            "SELECT sync_state FROM pg_replication_slots JOIN pg_stat_replication"
            " ON pid = active_pid WHERE slot_name = %s",
            waiting.name,
        )

    assert state == "async"
    assert not warning.hint
    assert alarms.count == 0


async def looked(stream: ChangeStream, alarms: Alarms, *, count: int) -> None:
    """Look at the slot until so many alarms stand."""

    async def look() -> bool:
        state = await stream.standing()
        stream.acknowledge(state.end)
        return alarms.count == count and "would" not in str(alarms.standing())

    await until(look, f"{count} alarms", seconds=60)


def take_all(relation: Relation, position: object) -> TableVersion:
    return TableVersion(1, None, "", relation)


@pytest.fixture
async def rig(
    waiting: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    async with rigged(waiting, s3, bucket, s3_client, tmp_path) as rig:
        yield rig


@pytest.mark.timeout(300)
async def test_check_and_status_say_it(rig: Rig) -> None:
    synchronous(rig.database, "*")
    engine = await rig.streaming()

    async def alarmed() -> bool:
        status = await engine.status()
        return status is not None and "commits-wait" in str(status["alarms"])

    check = rig._start(rig.pipeline, "check", "check", "--json")
    code = await check.ended()
    said = json.loads(check.output.read_text())
    await until(alarmed, "the alarm", seconds=40)
    synchronous(rig.database, "")

    assert code == 0
    [step] = [step for step in said["steps"] if step["name"] == "commits"]
    assert step["state"] == "warning"
    assert "will wait for this engine" in step["detail"]
    assert "synchronous_standby_names" in step["hint"]


async def test_a_standby_leaves_no_errors_in_the_server_s_log(any_database: Database) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    source = PostgresSource(
        dsn=any_database.dsn, slot=any_database.name, configuration=CONFIGURATION
    )
    await source.prepare(is_first=True)
    log = any_database.server.log

    async with source.stream(None, CONFIGURATION, take_all):
        before = await asyncio.to_thread(log.stat)
        for _ in range(3):
            with pytest.raises(LeaseHeld, match="is held by process"):
                async with source.stream(None, CONFIGURATION, take_all):
                    pytest.fail("held twice")

    written = (await asyncio.to_thread(log.read_bytes))[before.st_size :].decode()
    lines = [line for line in written.splitlines() if any_database.name in line]
    assert [line for line in lines if "ERROR" in line or "is active for" in line] == []
