"""A database whose log holds a backlog of changes, and slots that all begin before it.

Strategy: the changes are written once; each run reads them through a copy of one base slot, so all
read the same WAL from the same point.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from load_tests.recorder import Recorder
from load_tests.servers import NAME, Database
from load_tests.workload import Connection, Workload, Write

_BASE_SLOT = f"{NAME}_base"
_TABLES_A_STATEMENT = 200
_FRAMES_SAMPLED = 1_000
# By the manual's protocol chapter a frame is CopyData (5 bytes), XLogData (25) and a message, whose
# first byte says Insert, Update or Delete.
_FRAME_BYTES_MEAN = """
SELECT avg(5 + 25 + length(data))::float8
FROM pg_logical_slot_peek_binary_changes(
    %s, NULL, %s, 'proto_version', '1', 'publication_names', %s)
WHERE get_byte(data, 0) IN (ascii('I'), ascii('U'), ascii('D'))
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """A backlog, and the LSN at which it ends."""

    database: Database
    row_count: int
    end_lsn: str

    @contextmanager
    def slot(self, name: str, plugin: str = "pgoutput") -> Iterator[str]:
        """A slot that begins before the backlog, until it was read; its full name."""
        slot = slot_name(name)
        with self.database.connect() as connection:
            connection.execute(
                "SELECT pg_copy_logical_replication_slot(%s, %s, false, %s)",
                [_BASE_SLOT, slot, plugin],
            )
            yield slot
            connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])


def slot_name(name: str) -> str:
    """In PostgreSQL's letters, and recognisable as ours."""
    return f"{NAME}_{name}".replace("-", "_")


@dataclass(slots=True)
class Log:
    """A database's log from the base slot on; what is written is counted."""

    database: Database
    _connection: Connection
    _row_count: int = 0

    def write(self, write: Write, row_count: int, recorder: Recorder) -> Backlog:
        """Write about `row_count` changes more; all that were written so far are the backlog."""
        with recorder.step(f"writing about {row_count:,} changes into {self.database.version}"):
            self._row_count += write(self.database, self._connection, row_count)
            if self.database.is_local:
                self._connection.execute("CHECKPOINT")
        end_lsn = _one(self._connection, "SELECT pg_current_wal_flush_lsn()::text")
        return Backlog(database=self.database, row_count=self._row_count, end_lsn=str(end_lsn))

    def tell(self, recorder: Recorder, *, is_sampled: bool) -> None:
        """Tell the recorder how many changes there are and how large they are."""
        recorder.fact("rows", self._row_count)
        if is_sampled:
            recorder.fact("frame_mean_bytes", _frame_bytes_mean(self._connection))


@contextmanager
def open_log(database: Database, workload: Workload, recorder: Recorder) -> Iterator[Log]:
    """Make the tables, the publication and the base slot."""
    with database.connect() as connection:
        with recorder.step("making the tables"):
            for statement in workload.tables:
                connection.execute(statement.encode())
            if workload.make_tables is not None:
                workload.make_tables(database, connection)
            publish(connection)
        connection.execute(
            "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [_BASE_SLOT]
        )
        yield Log(database, connection)


def publish(connection: Connection) -> int:
    """Publish all tables of our schema; how many there are."""
    connection.execute(
        f"CREATE PUBLICATION {NAME} WITH (publish_via_partition_root = true)".encode()
    )
    rows = connection.execute(
        "SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables WHERE schemaname = %s",
        [NAME],
    ).fetchall()
    tables = [str(name) for (name,) in rows]
    for first in range(0, len(tables), _TABLES_A_STATEMENT):
        some = ", ".join(tables[first : first + _TABLES_A_STATEMENT])
        connection.execute(f"ALTER PUBLICATION {NAME} ADD TABLE {some}".encode())
    return len(tables)


def _frame_bytes_mean(connection: Connection) -> float:
    row = connection.execute(
        _FRAME_BYTES_MEAN.encode(), [_BASE_SLOT, _FRAMES_SAMPLED, NAME]
    ).fetchone()
    assert row is not None, "an aggregate has one row"
    return float(str(row[0]))


def _one(connection: Connection, query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None, "a function has one row"
    return row[0]
