"""Snapshots under conditions that an operator can set up: clear messages, and nothing is lost."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest

from databases import Database, dsn_as, fresh_database, reader_role
from engine.servers.fault_proxy import Answer, Hold, Request
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3
from faults.snapshot_rig import Place, SnapshotRig, range_bytes
from faults.snapshots import Rows, is_part
from load_tests.engine_process import EngineProcess, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

pytestmark = pytest.mark.timeout(900)

COLUMNS = ("id", "x")
ROWS = 1500
SMALL_RANGES = range_bytes(16_384)

RELATION_LOCKS: LiteralString = """
    SELECT DISTINCT l.mode FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'relation' AND a.usename = %s
"""


@pytest.fixture
def make_place(s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path) -> Any:
    return lambda database: Place(database, s3, bucket, s3_client, tmp_path)


def make_table(database: Database, table: LiteralString) -> None:
    database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, x text)")
    database.execute(
        f"INSERT INTO {table} SELECT i, 'x' || i FROM generate_series(1, %s) AS i", ROWS
    )


def rows_of(database: Database, table: LiteralString) -> Rows:
    return {row[0]: row for row in database.execute(f"SELECT id, x FROM {table}")}


async def is_exact(rig: SnapshotRig, *tables: LiteralString) -> None:
    """Hold that the bucket has these tables, and that `verify` agrees."""
    for table in tables:
        found = await rig.rebuilt(table, columns=COLUMNS)
        assert found.rows == rows_of(rig.database, table), table
        assert found.ops["t"] >= 1
    verdict = await rig.verdict()
    assert verdict["ok"], verdict


async def is_streamed(rig: SnapshotRig, table: str, key: int) -> None:
    """Wait until the bucket has a row of that key."""

    async def look() -> bool:
        return key in (await rig.rebuilt(table, columns=COLUMNS)).rows

    await until(look, f"row {key} of {table} in the bucket")


async def alarm_of(engine: EngineProcess, table: str) -> dict[str, Any]:
    """The alarm that says why the snapshot of `table` cannot be taken."""

    async def look() -> dict[str, Any] | None:
        status = await engine.status()
        found = [
            alarm
            for alarm in (status["alarms"] if status is not None else ())
            if alarm["code"] == "snapshot-failing" and alarm["subject"] == f"public.{table}"
        ]
        return found[0] if found else None

    return await until(look, f"an alarm about {table}")


async def held_part(rig: SnapshotRig) -> Hold:
    """The snapshot stands still once this is reached: its worker waits for an answer."""
    hold = rig.proxy.hold_next(is_part, applied=True)
    await hold.wait_reached(120)
    return hold


# --- locks and timeouts


@asynccontextmanager
async def lock_modes(database: Database, role: str) -> AsyncIterator[set[str]]:
    """The modes of the relation locks that the role's sessions have or wait for, in the block."""
    modes: set[str] = set()
    is_over = asyncio.Event()

    async def look() -> None:
        while not is_over.is_set():
            found = await asyncio.to_thread(database.execute, RELATION_LOCKS, role)
            modes.update(mode for (mode,) in found)

    async with asyncio.TaskGroup() as group:
        group.create_task(look())
        try:
            yield modes
        finally:
            is_over.set()


async def test_a_snapshot_takes_access_share_locks_alone_and_outlives_the_roles_timeouts(
    any_database: Database, make_place: Any
) -> None:
    database = any_database
    make_table(database, "held")
    database.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
    with reader_role(database) as role, database.connect() as connection:
        timeouts = ["idle_in_transaction_session_timeout", "statement_timeout"]
        if connection.info.server_version >= 170_000:
            timeouts.append("transaction_timeout")
        connection.execute(f"GRANT pg_read_all_data TO {role}".encode())
        for timeout in timeouts:
            connection.execute(f"ALTER ROLE {role} SET {timeout} = '1s'".encode())
        keys = {"source__dsn": dsn_as(database, role)}
        async with make_place(database).rigged(preamble=SMALL_RANGES, keys=keys) as rig:
            async with lock_modes(database, role) as modes:
                engine = rig.start()
                hold = await held_part(rig)
                # Longer than any of the timeouts.
                await asyncio.to_thread(connection.execute, "SELECT pg_sleep(2.5)")
                hold.release()
                statement = await rig.reaches("held", "whole")
            await engine.stop()

            assert statement["attempt"] == 1
            assert modes == {"AccessShareLock"}
            await is_exact(rig, "held")


# --- a standby that is not there


@pytest.fixture
def waiting() -> Iterator[Database]:
    """A database on a server of its own, whose commits may wait."""
    with EmbeddedPostgres(settings=FAST_SETTINGS) as server, fresh_database(server) as database:
        yield database
        synchronous(database, "")


def synchronous(database: Database, names: LiteralString) -> None:
    """Set synchronous_standby_names, and wait until new sessions see it."""
    database.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    database.execute("SELECT pg_reload_conf()")
    while database.execute("SHOW synchronous_standby_names") != [(names,)]:
        pass


async def write(database: Database, key: int) -> None:
    """Delete the row of that key and insert another one, in one transaction."""
    connect = psycopg.AsyncConnection.connect
    async with await connect(database.dsn, autocommit=True) as connection:
        await connection.execute(
            "WITH gone AS (DELETE FROM hanging WHERE id = %s)"
            " INSERT INTO hanging VALUES (%s, 'nobody sees it yet')",
            (key, 8999 + key),
        )


async def are_hanging(database: Database, count: int) -> bool:
    found = database.execute(
        "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        " AND datname = current_database() AND backend_type = 'client backend'"
    )
    return len(found) == count


async def test_commits_that_hang_for_an_absent_standby_are_in_the_bucket(
    waiting: Database, make_place: Any
) -> None:
    make_table(waiting, "hanging")
    async with make_place(waiting).rigged(preamble=SMALL_RANGES) as rig:
        engine = rig.start()
        hold = await held_part(rig)
        synchronous(waiting, "absent")

        async with asyncio.TaskGroup() as group:
            writer = group.create_task(write(waiting, 1))
            await until(lambda: are_hanging(waiting, 1), "a commit that hangs")
            hold.release()
            await rig.reaches("hanging", "whole")
            await is_streamed(rig, "hanging", 9000)
            seen = waiting.execute("SELECT id FROM hanging WHERE id IN (1, 9000)")
            is_done = writer.done()
            synchronous(waiting, "")
        await engine.stop()

        assert not is_done
        assert seen == [(1,)]
        await is_exact(rig, "hanging")


async def waits_for_commits(engine: EngineProcess) -> dict[str, Any]:
    """The alarm that says what the snapshot waits for."""

    async def look() -> dict[str, Any] | None:
        status = await engine.status()
        alarms: list[dict[str, Any]] = status["alarms"] if status is not None else []
        return next((alarm for alarm in alarms if alarm["code"] == "slot-creation-waits"), None)

    return await until(look, "an alarm about an older transaction", seconds=90)


SOON_ASKED = (
    "from dataclasses import replace; from engine import app; made = app.pipeline_settings;"
    " app.pipeline_settings = lambda *a, **k: replace(made(*a, **k), requests_interval=0.5)\n"
)


@pytest.mark.parametrize("is_first", [True, False], ids=["first start", "resync"])
async def test_a_snapshot_that_begins_while_commits_hang_waits_for_them_and_loses_nothing(
    waiting: Database,
    make_place: Any,
    is_first: bool,  # noqa: FBT001 - a parameter
) -> None:
    make_table(waiting, "hanging")
    async with make_place(waiting).rigged(preamble=SMALL_RANGES + SOON_ASKED) as rig:
        engine = None if is_first else rig.start()
        if not is_first:
            await rig.reaches("hanging", "whole")
        synchronous(waiting, "absent")
        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(write(waiting, key)) for key in (1, 2, 3)]
            await until(lambda: are_hanging(waiting, 3), "commits that hang")
            if engine is None:
                engine = rig.start()
            else:
                await is_streamed(rig, "hanging", 9002)
                asked = rig.start("resync", "public.hanging")
                assert await asked.ended() == 0, asked.complaint
            alarm = await waits_for_commits(engine)
            statements = await rig.statements()
            are_done = [writer.done() for writer in writers]
            synchronous(waiting, "")

        async def is_read() -> bool:
            statement = (await rig.statements()).get("public.hanging", {})
            is_whole = statement.get("state") == "whole"
            return is_whole and bool(statement["attempt"] == (1 if is_first else 2))

        await until(is_read, "the table's snapshot")
        await engine.stop()

        assert are_done == [False] * 3
        # No attempt saw the table while they hung: its point would be behind what nobody sees.
        assert statements.get("public.hanging", {}).get("state", "wanted") == "wanted"
        assert alarm["hint"]
        await is_exact(rig, "hanging")


# --- what somebody has to mend


async def test_tables_that_may_not_be_read_are_named_at_the_start_with_what_mends_it(
    database: Database, make_place: Any
) -> None:
    for table in ("readable", "unreadable", "secured"):
        make_table(database, table)
    database.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
    database.execute("ALTER TABLE secured ENABLE ROW LEVEL SECURITY")
    database.execute("CREATE POLICY few ON secured USING (id < 10)")
    with reader_role(database) as role, database.connect() as connection:
        connection.execute(f"GRANT SELECT ON readable, secured TO {role}".encode())
        keys = {"source__dsn": dsn_as(database, role)}
        async with make_place(database).rigged(keys=keys) as rig:
            engine = rig.start()
            code = await engine.ended()
            mending = (
                f'GRANT SELECT ON TABLE "public"."unreadable" TO "{role}"',
                f'ALTER ROLE "{role}" BYPASSRLS',
            )
            for statement in mending:
                connection.execute(statement.encode())
            await rig.caught_up()

            assert code == 78
            assert "public.unreadable may not be read" in engine.complaint
            assert "public.secured is under row-level security" in engine.complaint
            assert all(statement in engine.complaint for statement in mending)
            await is_exact(rig, "readable", "unreadable", "secured")


async def test_a_run_until_caught_up_does_all_but_what_is_refused_and_names_it(
    database: Database, make_place: Any
) -> None:
    make_table(database, "readable")
    database.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
    with reader_role(database) as role, database.connect() as connection:
        connection.execute(f"GRANT SELECT ON readable TO {role}".encode())
        keys = {"source__dsn": dsn_as(database, role)}
        async with make_place(database).rigged(keys=keys) as rig:
            await rig.caught_up()
            for table in ("later", "unreadable"):
                make_table(database, table)
            connection.execute(f"GRANT SELECT ON later TO {role}".encode())
            database.execute("INSERT INTO readable VALUES (9000, 'a change beside it')")

            engine = rig.start("run", "--until-caught-up")
            code = await engine.ended(seconds=120)
            refused = await rig.statements()
            await is_exact(rig, "readable", "later")
            grant = f'GRANT SELECT ON TABLE "public"."unreadable" TO "{role}"'
            connection.execute(grant.encode())
            await rig.caught_up()

            assert code == 78
            assert "the snapshot of 1 table was refused: public.unreadable" in engine.complaint
            assert grant in engine.complaint
            assert refused["public.unreadable"]["state"] == "wanted"
            await is_exact(rig, "readable", "later", "unreadable")


async def test_a_publication_that_may_not_be_made_ends_the_start_with_the_statement(
    database: Database, make_place: Any
) -> None:
    make_table(database, "unpublished")
    with reader_role(database) as role:
        keys = {"source__dsn": dsn_as(database, role)}
        async with make_place(database).rigged(keys=keys) as rig:
            engine = rig.start()
            code = await engine.ended()

            assert code == 78
            assert "CREATE PUBLICATION" in engine.complaint


@pytest.mark.parametrize(
    ("refusal", "hint"),
    [
        (Answer(501, "NotImplemented"), "takes no uploads in parts"),
        (Answer(405, "MethodNotAllowed"), "takes no uploads in parts"),
        (Answer(403, "AccessDenied"), "grant s3:PutObject"),
    ],
)
async def test_a_bucket_that_refuses_uploads_in_parts_is_told_and_the_stream_goes_on(
    database: Database, make_place: Any, refusal: Answer, hint: str
) -> None:
    make_table(database, "unstaged")

    def is_begin(request: Request) -> bool:
        return request.method == "POST" and "uploads" in request.parameters

    async with make_place(database).rigged() as rig:
        rig.proxy.inject(refusal, is_begin)
        engine = rig.start()
        alarm = await alarm_of(engine, "unstaged")
        database.execute("INSERT INTO unstaged VALUES (9000, 'streamed all the same')")
        await is_streamed(rig, "unstaged", 9000)
        rig.proxy.clear()
        await rig.reaches("unstaged", "whole", seconds=90)
        await engine.stop()

        assert refusal.code in alarm["text"]
        assert hint in alarm["hint"]
        await is_exact(rig, "unstaged")
