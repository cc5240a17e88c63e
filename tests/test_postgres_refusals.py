"""Servers that will not do it, or not now: each is told from the others, with what helps."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from databases import Database, fresh_database
from engine.model.errors import (
    PositionLost,
    SourceError,
    SourceFailed,
    SourceRefused,
    SourceUnavailable,
)
from engine.model.interfaces import ChangeStream
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableVersion
from engine.operate.alarms import Alarms
from engine.servers.postgres_binaries import server_account
from engine.servers.server_process import free_ports
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres
from engine.sources.postgres.session import Session
from engine.sources.postgres.source import PostgresSource
from live_engine import LiveEngine, settings_of
from load_tests.engine_process import until

pytestmark = pytest.mark.timeout(300)

CONFIGURATION = RecordConfiguration(through="tailrace", tables=("public.*",))
SLOT = "SELECT pg_create_logical_replication_slot(%s, 'pgoutput', %s, %s)"


def take_all(relation: Relation, position: object) -> TableVersion:
    return TableVersion(1, None, "", relation)


def source_of(dsn: str, slot: str = "tailrace", alarms: Alarms | None = None) -> PostgresSource:
    return PostgresSource(dsn=dsn, slot=slot, configuration=CONFIGURATION, alarms=alarms)


async def refusal(source: PostgresSource, *, is_first: bool = True) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await source.prepare(is_first=is_first)
    return caught.value


async def start_refusal(source: PostgresSource) -> SourceError:
    with pytest.raises(SourceError) as caught:
        async with source.stream(None, CONFIGURATION, take_all):
            pytest.fail("streamed")
    return caught.value


# --------------------------------------------------------------------------- the slot's fields


async def test_a_slot_made_with_two_phase_is_refused_before_its_messages_come(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    any_database.execute(SLOT, any_database.name, False, True)
    source = source_of(any_database.dsn, any_database.name)

    errors = [await refusal(source), await start_refusal(source)]

    for error in errors:
        assert isinstance(error, SourceRefused)
        assert "two_phase" in str(error)
        assert "TWO_PHASE false" in error.hint


async def test_a_temporary_slot_is_refused_by_name(any_database: Database) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    source = source_of(any_database.dsn, any_database.name)
    with any_database.connect() as connection:
        connection.execute(SLOT, (any_database.name, True, False))

        error = await refusal(source)
        maker = f"process {connection.info.backend_pid}"

    assert isinstance(error, SourceRefused)
    assert maker in str(error)


# -------------------------------------------------------------------------- what passes again


async def test_a_cancelled_walsender_may_be_asked_again(any_database: Database) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    source = source_of(any_database.dsn, any_database.name)
    await source.prepare(is_first=True)

    async def read_cancelled() -> None:
        async with source.stream(None, CONFIGURATION, take_all) as stream:
            any_database.execute(
                "SELECT pg_cancel_backend(active_pid) FROM pg_replication_slots"
                " WHERE slot_name = %s",
                any_database.name,
            )
            await read_rows(stream, 1)

    with pytest.raises(SourceUnavailable, match="57014") as caught:
        await read_cancelled()

    assert caught.value.retryable


async def test_a_session_that_is_over_is_not_opened_again_by_who_still_asks(
    any_database: Database,
) -> None:
    """As a look does that is under way when the stream is lost."""
    session = Session(any_database.dsn)
    query = "SELECT pg_catalog.pg_sleep(60)"

    async def is_asked() -> bool:
        [(count,)] = any_database.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query = %s AND state = 'active'", query
        )
        return bool(count)

    async with asyncio.TaskGroup() as group:

        async def ask() -> None:
            with pytest.raises(SourceUnavailable):
                await session.rows(query, doing="sleeping")

        async with session:
            # Only a session that was open before is taken for a lost one.
            await session.rows("SELECT 1", doing="beginning")
            asking = group.create_task(ask())
            await until(is_asked, "the question")
        async with asyncio.timeout(60):
            await asking

    assert not session.is_open


async def test_a_walsender_that_is_cancelled_again_and_again_does_not_fail_of_itself(
    any_database: Database,
) -> None:
    """An idle source's position stays the same, and who cancels may do so for long."""
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    engine = LiveEngine(any_database, replace(settings_of(), watch_interval=60.0))

    def walsender() -> int | None:
        [(pid,)] = any_database.execute(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", any_database.name
        )
        return pid  # type: ignore[no-any-return]

    with capture_logs() as logged:
        async with engine.living() as pipeline:
            streaming = pipeline._streaming
            assert streaming is not None
            for round_ in range(4):

                async def is_looked(count: int = round_ + 1) -> bool:
                    return streaming._watcher.judged_count >= count

                # Otherwise a look is broken off.
                await until(is_looked, "a look")
                before = walsender()
                any_database.execute("SELECT pg_cancel_backend(%s)", before)

                async def is_back(before: int | None = before) -> bool:
                    return (
                        walsender() not in {None, before} and pipeline.status().phase == "streaming"
                    )

                await until(is_back, "another walsender")

    assert [line for line in logged if line["event"] == "alarm"] == []
    phases = {line["phase"] for line in logged if line["event"] == "phase"}
    assert "reconnecting" in phases
    assert "failing" not in phases


@contextmanager
def server_of_our_own(**settings: str) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(settings={**FAST_SETTINGS, **settings}) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        yield server


async def test_a_piece_of_the_log_that_cannot_be_read_is_not_a_lost_position() -> None:
    with server_of_our_own() as server:
        source = source_of(server.dsn)
        await source.prepare(is_first=True)
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            row = connection.execute(
                "SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots"
            ).fetchone()
            connection.execute("INSERT INTO a VALUES (1)")
            connection.execute("SELECT pg_switch_wal()")
            connection.execute("INSERT INTO a VALUES (2)")
        assert row is not None
        piece = server.data_directory / "pg_wal" / row[0]
        aside = piece.with_name("aside")
        piece.rename(aside)

        with pytest.raises(SourceFailed) as caught:
            await read_two(source)
        aside.rename(piece)
        await read_two(source)

    assert caught.value.code.startswith("58")
    assert "start anew" not in caught.value.hint


async def read_two(source: PostgresSource) -> None:
    async with source.stream(None, CONFIGURATION, take_all) as stream:
        await read_rows(stream, 2)


async def read_rows(stream: ChangeStream, row_count: int) -> None:
    while row_count > 0:
        intake = await stream.receive()
        row_count -= sum(batch.row_count for batch in intake.batches)


async def test_a_slot_that_idled_too_long_is_lost_for_that_reason() -> None:
    with server_of_our_own(idle_replication_slot_timeout="1s") as server:
        source = source_of(server.dsn)
        await source.prepare(is_first=True)
        with psycopg.connect(server.dsn, autocommit=True) as connection:

            async def is_invalid() -> bool:
                connection.execute("CHECKPOINT")
                cursor = connection.execute(
                    "SELECT invalidation_reason IS NOT NULL FROM pg_replication_slots"
                )
                return cursor.fetchone() == (True,)

            await until(is_invalid, "the invalidation", seconds=60)

        errors = [await refusal(source, is_first=False), await start_refusal(source)]

    for error in errors:
        assert isinstance(error, PositionLost)
        assert "idle_replication_slot_timeout" in error.hint
        assert "max_slot_wal_keep_size" not in error.hint


async def test_walsenders_that_are_all_taken_are_told_from_a_server_that_is_away() -> None:
    with server_of_our_own(max_wal_senders="1") as server:
        taken = psycopg.connect(make_conninfo(server.dsn, replication="true"), autocommit=True)
        with taken, pytest.raises(SourceFailed) as caught:
            await source_of(server.dsn).identify()

    assert "max_wal_senders" in caught.value.hint
    assert f"127.0.0.1:{server.port}/postgres" in str(caught.value)


async def test_connections_that_are_all_taken_are_told_from_a_server_that_is_away() -> None:
    settings = {"max_connections": "4", "superuser_reserved_connections": "1"}
    with server_of_our_own(**settings, max_wal_senders="2") as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE ROLE plain LOGIN")
        dsn = server.dsn_of("postgres", user="plain")

        async def another() -> "psycopg.Connection[Any] | None":
            # A session that was closed may still be at its end.
            with suppress(psycopg.OperationalError):
                return psycopg.connect(server.dsn)
            return None

        taken = [await until(another, "a connection that is free") for _ in range(4)]
        try:
            with pytest.raises(SourceFailed) as caught:
                await source_of(dsn).end()
        finally:
            for connection in taken:
                connection.close()

    assert "max_connections" in caught.value.hint


# -------------------------------------------------------------------------------- a pooler


@contextmanager
def pgbouncer(server: EmbeddedPostgres, folder: Path) -> Iterator[int]:
    """A pooler before the server; its port. Debian's package: one that is missing is a failure."""
    (port,) = free_ports(1)
    account = server_account()
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={server.port} user=postgres\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\nunix_socket_dir =\n"
        "pool_mode = transaction\n"
    )
    with settings.open() as opened:
        process = subprocess.Popen(
            ["/usr/sbin/pgbouncer", "-q", "/dev/stdin"],
            stdin=opened,
            stderr=subprocess.DEVNULL,
            user=None if account is None else account.user,
            group=None if account is None else account.group,
            extra_groups=None if account is None else (),
        )
    try:
        _wait_for(make_conninfo(server.dsn, port=port))
        yield port
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(dsn: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "pgbouncer does not answer"
            time.sleep(0.05)
        else:
            return


async def test_through_a_pooler_the_hint_is_to_go_around_it(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    with fresh_database(postgres) as database, pgbouncer(postgres, tmp_path) as port:
        source = source_of(make_conninfo(database.dsn, port=port))

        with pytest.raises(SourceRefused) as caught:
            await source.identify()
        error = await refusal(source)

    for found in (caught.value, error):
        assert isinstance(found, SourceRefused)
        assert "pgbouncer" in found.hint
        assert f":{port}/" in str(found)


# ------------------------------------------------------------------------------- a standby


@contextmanager
def standby_of(primary: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """A hot standby of a server, which is stopped for a moment."""
    folder = primary.data_directory.with_name("standby")
    primary.stop()
    shutil.copytree(primary.data_directory, folder, symlinks=True)
    (folder / "standby.signal").touch()
    for path in (folder, *folder.rglob("*")):
        primary._give_to_account(path)
    primary.start()
    standby = EmbeddedPostgres(
        bin_directory=primary.bin_directory,
        data_directory=folder,
        settings={
            **FAST_SETTINGS,
            "primary_conninfo": f"host=127.0.0.1 port={primary.port} user=postgres",
        },
    )
    with standby:
        yield standby


async def test_a_hot_standby_that_cannot_decode_is_refused_as_one() -> None:
    with EmbeddedPostgres.debian(15, settings=FAST_SETTINGS) as primary:
        with psycopg.connect(primary.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        with standby_of(primary) as standby:
            error = await refusal(source_of(standby.dsn))

    assert isinstance(error, SourceRefused)
    assert "hot standby" in str(error)
    assert "primary" in error.hint


async def test_a_hot_standby_that_can_says_what_it_needs_from_its_primary() -> None:
    alarms = Alarms(lambda: 0)
    with server_of_our_own() as primary, standby_of(primary) as standby:
        source = source_of(standby.dsn, alarms=alarms)
        error = await refusal(source)
        assert isinstance(error, SourceRefused)
        statement = error.hint[error.hint.index("CREATE") :]
        with psycopg.connect(primary.dsn, autocommit=True) as connection:
            connection.execute(statement.encode())

            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                await until(lambda: replayed(primary, standby), "the publication there")
                preparing = group.create_task(source.prepare(is_first=True))

                async def is_alarmed_or_done() -> bool:
                    return alarms.count > 0 or preparing.done()

                await until(is_alarmed_or_done, "the alarm")
                told = alarms.standing()
                connection.execute("SELECT pg_log_standby_snapshot()")
                await preparing

    assert "on the primary" in error.hint
    assert [alarm.code for alarm in told] == ["slot-creation-waits"]
    assert "pg_log_standby_snapshot" in told[0].hint


async def replayed(primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> bool:
    with psycopg.connect(primary.dsn) as connection:
        written = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    assert written is not None
    with psycopg.connect(standby.dsn) as connection:
        found = connection.execute(
            "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written
        ).fetchone()
    return found == (True,)
