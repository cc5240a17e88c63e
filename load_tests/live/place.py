"""The servers of a live scenario, and for each run a database, a slot and a prefix of its own."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from engine.demo.s3_server import REGION
from engine.demo.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3
from load_tests.engine_process import Pipeline, Section
from load_tests.live.tables import PUBLICATION, TableSet

BUCKET = "load-tests"
_ROWS_A_TRANSACTION = 10_000
_END_WALSENDER = """
SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots
WHERE slot_name = %s AND active_pid IS NOT NULL
"""
_SETTINGS = {
    **FAST_SETTINGS,
    # Neither a checkpoint nor autovacuum may fall into one run and not into the other.
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "8GB",
    "shared_buffers": "512MB",
}


@dataclass(frozen=True, slots=True)
class Ground:
    """What one run has to itself."""

    name: str
    """Of the database, the slot and the prefix."""
    dsn: str
    tables: TableSet

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the tables' objects lie, one folder a table."""
        root = f"{self.root}schema=public/"
        return tuple(f"{root}table={name}/" for name in self.tables.names)

    @property
    def root(self) -> str:
        """Where all objects lie."""
        return f"{self.name}/database={self.name}/"


@dataclass(frozen=True, slots=True)
class Place:
    """The servers, on this machine."""

    postgres: EmbeddedPostgres
    postgres_version: str
    s3: EmbeddedS3
    folder: Path

    def ground(self, name: str, tables: TableSet, *, backlog_rows: int) -> Ground:
        """A database with the tables, a slot that begins there, and that many rows behind it."""
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        ground = Ground(name, self.postgres.dsn_of(name), tables)
        with psycopg.connect(ground.dsn, autocommit=True) as connection:
            tables.make(connection)
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
            for number, first in enumerate(range(1, backlog_rows + 1, _ROWS_A_TRANSACTION)):
                count = min(_ROWS_A_TRANSACTION, backlog_rows - first + 1)
                connection.execute(tables.statement(number, first, count).encode())
            connection.execute("CHECKPOINT")
        return ground

    def forget(self, ground: Ground) -> None:
        """Give back the slot's log and the database. The bucket keeps what was published."""
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            # Its walsender may outlive the engine by a moment, and would hold it.
            connection.execute(_END_WALSENDER, [ground.name])
            connection.execute("SELECT pg_drop_replication_slot(%s)", [ground.name])
            connection.execute(f"DROP DATABASE {ground.name} WITH (FORCE)".encode())

    def pipeline(self, ground: Ground, endpoint_url: str, keys: Mapping[str, object]) -> Pipeline:
        """The engine's configuration: defaults, but for `keys` (`section__key`)."""
        sections: dict[str, Section] = {
            "source": {
                "dsn": ground.dsn,
                "slot": ground.name,
                "publication": PUBLICATION,
                "tables": ["public.*"],
                "snapshot": "never",
            },
            "destination": {
                "bucket": BUCKET,
                "prefix": ground.name,
                "region": REGION,
                "endpoint_url": endpoint_url,
            },
            "log": {"level": "info", "format": "json"},
        }
        return Pipeline(sections, self.s3.environment).changed(**keys)


@contextmanager
def open_place(major: int) -> Iterator[Place]:
    """PostgreSQL (18 from the wheel, others Debian's) and SeaweedFS. Raises ServerError."""
    with (
        tempfile.TemporaryDirectory(prefix="tailrace-load-") as folder,
        _server(major) as postgres,
        EmbeddedS3() as s3,
    ):
        s3.create_bucket(BUCKET)
        with psycopg.connect(postgres.dsn) as connection:
            version = connection.info.parameter_status("server_version") or str(major)
        yield Place(postgres, f"PostgreSQL {version}", s3, Path(folder))


def _server(major: int) -> EmbeddedPostgres:
    if major == 18:
        return EmbeddedPostgres(settings=_SETTINGS)
    return EmbeddedPostgres.debian(major, settings=_SETTINGS)
