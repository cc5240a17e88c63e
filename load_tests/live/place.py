"""The servers of a live scenario, and for each run a slot, tables and a prefix of its own."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict

from engine.servers.server_process import LOOPBACK
from load_tests.engine_process import Pipeline, Section
from load_tests.live.tables import TableSet
from load_tests.plan import Plan
from load_tests.servers import (
    NAME,
    Bucket,
    Database,
    ServerUnusable,
    open_bucket,
    open_database,
)
from load_tests.workload import MIXED_COLUMNS, MIXED_VALUES, Connection

EXISTING = "existing"
"""The table whose rows are there before the engine is."""

_ROWS_A_TRANSACTION = 10_000
_END_WALSENDER = """
SELECT pg_terminate_backend(active_pid, 60000) FROM pg_replication_slots
WHERE slot_name = %s AND active_pid IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Ground:
    """What one run has to itself."""

    slot: str
    prefix: str
    dsn: str
    """Finds the run's tables where no schema is named."""
    database_name: str
    tables: TableSet

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the tables' objects lie, one folder a table."""
        return tuple(f"{self.root}schema={NAME}/table={name}/" for name in self.tables.names)

    @property
    def root(self) -> str:
        """Where all objects lie."""
        return f"{self.prefix}/database={self.database_name}/"


@dataclass(frozen=True, slots=True)
class Place:
    """A database and a bucket, and a folder for logs and configuration files."""

    database: Database
    bucket: Bucket
    folder: Path

    def make_ground(
        self, name: str, tables: TableSet, *, backlog_rows: int, existing_rows: int = 0
    ) -> Ground:
        """Tables, a slot that begins there, and that many rows behind it.

        `existing_rows` are those of a table that is full before the slot begins.
        """
        slot = f"{NAME}_{name}"
        ground = Ground(
            slot=slot,
            prefix=f"{self.bucket.prefix}{slot}",
            dsn=self.database.schema_dsn,
            database_name=str(conninfo_to_dict(self.database.dsn).get("dbname", "")),
            tables=tables,
        )
        with self.database.connect() as connection:
            tables.make(connection, NAME)
            if existing_rows:
                _fill_existing(connection, existing_rows)
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
            for number, first in enumerate(range(1, backlog_rows + 1, _ROWS_A_TRANSACTION)):
                count = min(_ROWS_A_TRANSACTION, backlog_rows - first + 1)
                connection.execute(tables.statement(number, first, count).encode())
            if self.database.is_local:
                connection.execute("CHECKPOINT")
        return ground

    def clear(self, ground: Ground) -> None:
        """Drop the slot and the tables. The bucket keeps what was published."""
        with self.database.connect() as connection:
            # Its walsender may outlive the engine by a moment, and would hold it.
            connection.execute(_END_WALSENDER, [ground.slot])
        self.database.drop_everything()
        self.database.make_schema()

    @property
    def s3_port(self) -> int:
        """Of an S3 server on this machine, for a proxy. Raises ServerUnusable for another."""
        parts = urlsplit(self.bucket.endpoint_url)
        if parts.hostname != LOOPBACK or parts.scheme != "http" or parts.port is None:
            raise ServerUnusable(
                "a fault proxy can only stand before an S3 server on this machine",
                hint="measure this scenario without --bucket",
            )
        return parts.port

    def pipeline(self, ground: Ground, endpoint_url: str, keys: Mapping[str, object]) -> Pipeline:
        """The engine's configuration: defaults, but for `keys` (`section__key`)."""
        endpoint = {"endpoint_url": endpoint_url} if endpoint_url else {}
        sections: dict[str, Section] = {
            "source": {
                "dsn": self.database.dsn,
                "slot": ground.slot,
                "publication": NAME,
                "tables": [f"{NAME}.*"],
                "snapshot": "never",
            },
            "destination": {
                "bucket": self.bucket.name,
                "prefix": ground.prefix,
                "region": self.bucket.region,
                **endpoint,
            },
            "log": {"level": "info", "format": "json"},
        }
        environment = {**self.database.environment, **self.bucket.environment}
        return Pipeline(sections, environment).changed(**keys)


def _fill_existing(connection: Connection, row_count: int) -> None:
    connection.execute(f"CREATE TABLE {EXISTING} ({MIXED_COLUMNS})".encode())
    for first in range(1, row_count + 1, _ROWS_A_TRANSACTION):
        last = min(first + _ROWS_A_TRANSACTION - 1, row_count)
        connection.execute(
            f"INSERT INTO {EXISTING} SELECT {MIXED_VALUES} "
            f"FROM generate_series({first}, {last}) AS i".encode()
        )
    # Whoever reads a row first would otherwise write its hint bits.
    connection.execute(f"VACUUM (ANALYZE) {EXISTING}".encode())


@contextmanager
def open_place(plan: Plan, major: int) -> Iterator[Place]:
    """The plan's external servers, else our own. Raises ServerError and ServerUnusable."""
    with (
        tempfile.TemporaryDirectory(prefix="tailrace-load-") as folder,
        open_database(plan, major) as database,
        open_bucket(plan) as bucket,
    ):
        yield Place(database, bucket, Path(folder))
