"""How many plain sessions a run holds, and whether the server's limits give as many."""

import asyncio
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from databases import Database, drop_role, dsn_as, reader_role
from engine import app
from engine.config import load
from engine.model.errors import SourceError
from engine.model.trial import CheckStep, Finding
from engine.pipeline.stop import StopSignal
from engine.servers.servers import EmbeddedS3
from engine.sources.postgres import check_codes as codes
from engine.sources.postgres.connections import (
    NO_SNAPSHOTS,
    Demand,
    Limit,
    connections_finding,
    read_limits,
)
from engine.sources.postgres.session import Session, connect
from load_tests.engine_process import until
from test_check_and_run import NO_FILE, keys_of

DEMAND = Demand(held_max=2, worker_count=2, is_adding=True)
SERVER = Limit("max_connections", 100, 10, "ALTER SYSTEM SET max_connections = {}, and restart")
ROLE = Limit("CONNECTION LIMIT of role 'reader'", 12, 2, 'ALTER ROLE "reader" CONNECTION LIMIT {}')

_SESSIONS = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'
"""


def said(*limits: Limit, demand: Demand = DEMAND, is_running: bool = False) -> Finding:
    return connections_finding(limits, demand, is_running=is_running)


def test_a_run_takes_a_session_beside_its_stream_and_the_snapshots_the_most() -> None:
    assert NO_SNAPSHOTS.session_count == 1
    assert DEMAND.session_count == 1 + 3 + 2 * 3 + 2
    assert Demand(held_max=2, worker_count=None).session_count == 1 + 2 * 3
    assert "one for each thread of the cluster's workers" in Demand(2, None).text


def test_room_for_everything_is_well() -> None:
    found = said(SERVER)

    assert (found.hint, "up to 12 at once" in found.text) == ("", True)


def test_each_limit_that_is_too_tight_has_its_statement() -> None:
    found = said(ROLE, Limit("max_connections without the 3 reserved", 97, 90, SERVER.sql, 3))

    assert "There are 10: snapshots and new tables wait" in found.text
    assert 'ALTER ROLE "reader" CONNECTION LIMIT 14' in found.hint
    assert "ALTER SYSTEM SET max_connections = 105, and restart" in found.hint
    assert 'source.snapshot_workers = "local:1"' in found.hint


def test_as_many_as_are_needed_are_enough() -> None:
    assert not said(Limit("x", 22, 10, "")).hint
    assert said(Limit("x", 21, 10, "")).hint


def test_without_snapshots_one_session_is_enough() -> None:
    assert not said(Limit("x", 11, 10, ""), demand=NO_SNAPSHOTS).hint


def test_an_engine_that_runs_has_its_sessions_already() -> None:
    assert not said(Limit("x", 10, 10, ""), is_running=True).hint


async def test_the_limits_of_server_role_and_database_are_counted(any_database: Database) -> None:
    with reader_role(any_database) as role, any_database.connect() as other:
        other.execute(f"ALTER ROLE {role} CONNECTION LIMIT 3".encode())
        other.execute(f'ALTER DATABASE "{any_database.name}" CONNECTION LIMIT 7'.encode())
        with psycopg.connect(dsn_as(any_database, role)):
            async with Session(dsn_as(any_database, role)) as session:

                async def settled() -> dict[str, Limit] | None:
                    # A session that was closed a moment ago may still count.
                    found = {limit.name: limit for limit in await read_limits(session)}
                    used = {limit.used for limit in found.values() if "database" in limit.name}
                    return found if used == {2} else None

                limits = await until(settled, "the two sessions of the database")

    [server] = [limit for name, limit in limits.items() if "max_connections" in name]
    assert server.name == "max_connections without the 3 reserved"
    # This database's two, and maybe what another test's servers have left on theirs.
    assert server.used >= 2
    assert server.reserved == 3
    of_role = limits[f"CONNECTION LIMIT of role '{role}'"]
    assert (of_role.count_max, of_role.used) == (3, 1)
    of_database = limits[f"CONNECTION LIMIT of database '{any_database.name}'"]
    assert (of_database.count_max, of_database.used, of_database.left) == (7, 2, 5)


async def test_walsenders_have_places_of_their_own(any_database: Database) -> None:
    with reader_role(any_database) as role, any_database.connect() as other:
        other.execute(f"ALTER ROLE {role} CONNECTION LIMIT 1".encode())
        dsn = dsn_as(any_database, role)
        with psycopg.connect(f"{dsn} replication=database", autocommit=True):
            async with Session(dsn) as session:
                limits = {limit.name: limit for limit in await read_limits(session)}

    assert limits[f"CONNECTION LIMIT of role '{role}'"].used == 0


async def checked(database: Database, keys: dict[str, str]) -> CheckStep:
    given = {f"TAILRACE_{key}": value for key, value in keys.items()}
    steps = [step async for step in app.check(load(NO_FILE, given).configuration)]
    [found] = [step for step in steps if step.code == codes.CONNECTIONS]
    return found


async def test_check_warns_where_the_snapshots_would_wait(
    database: Database, aws_environment: EmbeddedS3, shared_bucket: str, prefix: str
) -> None:
    database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION tailrace FOR TABLE orders")
    keys = keys_of(database, aws_environment, shared_bucket, prefix)
    with reader_role(database) as role, database.connect() as other:
        other.execute(f"GRANT SELECT ON orders TO {role}".encode())
        other.execute(f"ALTER ROLE {role} CONNECTION LIMIT 4".encode())
        keys["SOURCE__DSN"] = dsn_as(database, role)

        streamed = await checked(database, keys)
        read = await checked(
            database, keys | {"SOURCE__SNAPSHOT": "initial", "SOURCE__SNAPSHOT_WORKERS": "local:2"}
        )

    assert streamed.state == "ok"
    assert read.state == "warning"
    assert re.search(rf'ALTER ROLE "{role}" CONNECTION LIMIT 1[2-9]', read.hint)


async def test_a_run_with_snapshots_holds_no_more_sessions_than_is_said(
    database: Database, aws_environment: EmbeddedS3, shared_bucket: str, prefix: str
) -> None:
    with database.connect() as connection:
        for name in ("a", "b", "c"):
            connection.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, note text)".encode())
            connection.execute(
                f"INSERT INTO {name} SELECT n, repeat('x', 500) FROM generate_series(1, 20000) n"
                .encode()
            )  # fmt: skip
    keys = keys_of(database, aws_environment, shared_bucket, prefix) | {
        "SOURCE__SNAPSHOT": "initial",
        "SOURCE__SNAPSHOT_WORKERS": "local:2",
        "SOURCE__SNAPSHOT_TABLES": "2",
    }
    given = {f"TAILRACE_{key}": value for key, value in keys.items()}
    most = 0

    async def count() -> None:
        nonlocal most
        async with await psycopg.AsyncConnection.connect(
            database.server.dsn, autocommit=True
        ) as connection:
            while True:
                cursor = await connection.execute(_SESSIONS, (database.name,))
                for (found,) in await cursor.fetchall():
                    most = max(most, found)
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        counting = group.create_task(count())
        configuration = load(NO_FILE, given).configuration
        await app.run(configuration, stop=StopSignal(), until_caught_up=True)
        counting.cancel()

    # The stream's, those that hold a snapshot, and a worker's at least.
    assert 1 + 3 + 1 <= most <= DEMAND.session_count


@contextmanager
def own_role(database: Database, attributes: str) -> Iterator[str]:
    """A role of these attributes, whose name has to be quoted."""
    role = f"r-{secrets.token_hex(4)}"
    database.execute(f'CREATE ROLE "{role}" {attributes}')
    try:
        yield role
    finally:
        drop_role(database, role)


@pytest.mark.parametrize(
    ("attributes", "hint"),
    [
        ("NOLOGIN", 'ALTER ROLE "{}" LOGIN'),
        ("LOGIN CONNECTION LIMIT 0", 'ALTER ROLE "{}" CONNECTION LIMIT …, or -1 for none'),
    ],
)
async def test_a_refused_role_is_named_with_the_sql_that_mends_it(
    any_database: Database, attributes: str, hint: str
) -> None:
    with own_role(any_database, attributes) as role, pytest.raises(SourceError) as caught:
        await connect(dsn_as(any_database, role), replication=False)

    assert caught.value.hint == hint.format(role)


async def test_a_refused_database_is_named_with_the_sql_that_mends_it(
    any_database: Database,
) -> None:
    name = any_database.name
    any_database.execute(f'REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC')
    with own_role(any_database, "LOGIN") as role, pytest.raises(SourceError) as caught:
        await connect(dsn_as(any_database, role), replication=False)

    assert caught.value.hint == f'GRANT CONNECT ON DATABASE "{name}" TO "{role}"'


async def test_a_role_that_may_not_replicate_is_named(any_database: Database) -> None:
    with own_role(any_database, "LOGIN") as role, pytest.raises(SourceError) as caught:
        await connect(dsn_as(any_database, role), replication=True)

    assert f'ALTER ROLE "{role}" REPLICATION;' in caught.value.hint
    assert caught.value.hint.endswith(f'GRANT rds_replication TO "{role}"')
