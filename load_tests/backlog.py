"""A PostgreSQL server whose log holds a backlog of changes, and slots that all begin before it.

Strategy: the changes are written once; each run reads them through a copy of one base slot, so all
read the same WAL from the same point.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from engine.demo.servers import FAST_SETTINGS, EmbeddedPostgres
from load_tests.recorder import Recorder

PUBLICATION = "tailrace"
_BASE_SLOT = "base"
_ROWS_A_TRANSACTION = 10_000
_FRAMES_SAMPLED = 1_000
_SETTINGS = {
    # Neither a checkpoint nor autovacuum may fall into one reader's run and not into the other's.
    # Reading needs no fsync: only writing the backlog is quicker for it.
    **FAST_SETTINGS,
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "512MB",
    "autovacuum": "off",
}
_TABLE = """
CREATE TABLE changes (
    id bigint PRIMARY KEY, quantity int, name text, amount numeric(12, 2), changed_at timestamptz,
    is_paid boolean, ratio double precision, reference uuid, attributes jsonb, due date,
    status varchar(40), grade smallint)
"""
_INSERT = """
INSERT INTO changes
SELECT i, i % 1000, 'customer name ' || i, (i % 100000) / 100.0, clock_timestamp(), i % 2 = 0,
       i * 1.5, gen_random_uuid(), jsonb_build_object('k', i, 'v', 'a few words that are the same'),
       current_date, 'status ' || (i % 10), (i % 100)::smallint
FROM generate_series({first}, {last}) AS i
"""
# By the manual's protocol chapter: CopyData 5 bytes, XLogData 25, Insert 8 with its column count,
# and 5 a column before its text.
_FRAME_BYTES_MEAN = """
SELECT avg(5 + 25 + 8 + 12 * 5 + length(id::text) + length(quantity::text) + length(name)
       + length(amount::text) + length(changed_at::text) + 1 + length(ratio::text) + 36
       + length(attributes::text) + length(due::text) + length(status)
       + length(grade::text))::float8
FROM (SELECT * FROM changes ORDER BY id DESC LIMIT {limit}) AS last
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """A server with a backlog, and the LSN at which the backlog ends."""

    server: EmbeddedPostgres
    server_version: str
    row_count: int
    end_lsn: str
    frame_bytes_mean: float

    @property
    def dsn(self) -> str:
        """Over TCP, as all readers connect."""
        return self.server.dsn

    @contextmanager
    def slot(self, name: str, plugin: str = "pgoutput") -> Iterator[str]:
        """A slot that begins before the backlog, until it was read."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_copy_logical_replication_slot(%s, %s, false, %s)",
                [_BASE_SLOT, name, plugin],
            )
            yield name
            connection.execute("SELECT pg_drop_replication_slot(%s)", [name])


@contextmanager
def open_backlog(major: int, row_count: int, recorder: Recorder) -> Iterator[Backlog]:
    """A server with `row_count` changes of one table of 12 columns, most of the built-in types.

    Raises ServerError if the server cannot be had.
    """
    with _server(major) as server, psycopg.connect(server.dsn, autocommit=True) as connection:
        version = connection.info.parameter_status("server_version") or str(major)
        connection.execute(_TABLE)
        connection.execute(
            f"CREATE PUBLICATION {PUBLICATION} FOR TABLE changes "
            "WITH (publish_via_partition_root = true)"
        )
        connection.execute(
            "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [_BASE_SLOT]
        )
        with recorder.step(f"writing {row_count:,} rows into PostgreSQL {version}"):
            for first in range(1, row_count + 1, _ROWS_A_TRANSACTION):
                last = min(first + _ROWS_A_TRANSACTION - 1, row_count)
                connection.execute(_INSERT.format(first=first, last=last).encode())
            connection.execute("CHECKPOINT")
        yield Backlog(
            server=server,
            server_version=f"PostgreSQL {version}",
            row_count=row_count,
            end_lsn=_one(connection, "SELECT pg_current_wal_flush_lsn()::text"),
            frame_bytes_mean=float(
                _one(connection, _FRAME_BYTES_MEAN.format(limit=_FRAMES_SAMPLED))
            ),
        )


def _server(major: int) -> EmbeddedPostgres:
    """18 from the wheel, others from Debian."""
    if major == 18:
        return EmbeddedPostgres(settings=_SETTINGS)
    return EmbeddedPostgres.debian(major, settings=_SETTINGS)


def _one(connection: psycopg.Connection[tuple[object, ...]], query: str) -> str:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None, "an aggregate and a function have one row"
    return str(row[0])
