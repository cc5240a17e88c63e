"""Exported snapshots: the rows of some tables as they were before one place in the log.

Strategy: a temporary slot gives an exported snapshot and its consistent point. Two keepers, which
are sessions of their own, take that snapshot, lock the tables in ACCESS SHARE MODE, and export it
again: either of them may die, and the name that the other one gave still stands. Then the slot
goes: it would keep the log from being removed. Only once the tables are locked they are compared
with what a fresh session sees; nothing but ATTACH and DETACH passes those locks afterwards.

Locks are taken without waiting: whoever waits for one makes every later query of that table wait.

Invariant: no row is read under a snapshot before its tables were locked and compared. No other lock
than ACCESS SHARE is taken.
"""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import psycopg

from engine.model.errors import SnapshotStale, SourceError
from engine.model.log_point import LogPoint
from engine.model.schema import TableName
from engine.sources.postgres.dsn import Dsn, place_of
from engine.sources.postgres.images import IMAGE, Image, difference, images_of
from engine.sources.postgres.lsn import log_point, parse_lsn
from engine.sources.postgres.session import Connection, Session, connect, quoted, translated

KEEPERS: Final = 2

_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_EXPORT: Final = "SELECT pg_catalog.pg_export_snapshot()"
_NOW_US: Final = """
SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)
       ::pg_catalog.int8
"""

# Somebody has the table: lock_not_available, object_in_use, undefined_table. Or the snapshot is
# gone: undefined_object, invalid_parameter_value, object_not_in_prerequisite_state.
_STALE_STATES: Final = frozenset({"55P03", "55006", "42P01", "42704", "22023", "55000"})


class Exported:
    """One snapshot of a group of tables, held. Made by `export`."""

    def __init__(
        self,
        point: LogPoint,
        names: tuple[str, ...],
        images: dict[TableName, Image],
        keepers: Sequence[Connection],
        fresh: Session,
    ) -> None:
        self.point = point
        """Everything that commits before it is seen, and nothing else."""
        self.names = names
        """What `SET TRANSACTION SNAPSHOT` takes, any of them."""
        self.images = images
        """The tables that are there, as the snapshot sees them."""
        self._keepers = keepers
        self._fresh = fresh

    async def ping(self) -> int:
        """Ask each keeper for something, and say how many of them live.

        A session that is silent for long may be taken for a dead one, by a firewall in between.
        Raises SnapshotStale where none is left. Cancellation changes nothing.
        """
        count = 0
        for keeper in self._keepers:
            try:
                await keeper.execute("SELECT 1")
            except psycopg.Error:
                continue
            count += 1
        if not count:
            raise SnapshotStale("both sessions that keep the snapshot were lost")
        return count

    async def compare(self) -> None:
        """Compare once more what passes our locks: partitions that were attached or detached.

        Raises SnapshotStale where something differs. Cancellation changes nothing.
        """
        _refuse_differences(self.images, await _fresh_images(self._fresh, tuple(self.images)))


@asynccontextmanager
async def export(dsn: Dsn, tables: Sequence[TableName], generation: int) -> AsyncIterator[Exported]:
    """Take a snapshot of `tables` and hold it, locked and compared, until the block ends.

    Waits until every transaction that is open now has ended. Raises SnapshotStale where somebody
    changes one of the tables just now, and SourceError. Cancellation lets everything go.
    """
    async with AsyncExitStack() as stack:
        exporter = await stack.enter_async_context(AsyncExitStack())
        walsender = await exporter.enter_async_context(await connect(dsn, replication=True))
        lsn, name = await _make_slot(walsender, place_of(dsn))
        keepers = [
            await stack.enter_async_context(await connect(dsn, replication=False))
            for _ in range(KEEPERS)
        ]
        fresh = await stack.enter_async_context(Session(dsn))
        now = await _fresh_images(fresh, tables)
        names = tuple([await _keep(keeper, name, now, place_of(dsn)) for keeper in keepers])
        # It keeps its snapshot and the log until it is gone; both keepers have exported theirs.
        await exporter.aclose()
        seen = await _images(keepers[0], tables, place_of(dsn))
        _refuse_differences(seen, await _fresh_images(fresh, tables))
        [[now_us]] = await fresh.rows(_NOW_US, doing="reading the server's clock")
        point = log_point(generation, parse_lsn(lsn), now_us)
        yield Exported(point, names, seen, keepers, fresh)


async def _make_slot(walsender: Connection, place: str) -> tuple[str, str]:
    """The consistent point and the snapshot's name, of a slot that is gone with its session."""
    name = quoted(f"tailrace_snapshot_{secrets.token_hex(8)}")
    is_older = walsender.info.server_version < 150000
    option = "EXPORT_SNAPSHOT" if is_older else "(SNAPSHOT 'export')"
    command = f"CREATE_REPLICATION_SLOT {name} TEMPORARY LOGICAL pgoutput {option}"
    doing = "exporting a snapshot"
    try:
        cursor = await walsender.execute(command.encode())
    except psycopg.Error as error:
        raise translated(error, doing, place) from error
    result = cursor.pgresult
    assert result is not None
    _, lsn, snapshot, _ = ((result.get_value(0, column) or b"").decode() for column in range(4))
    return lsn, snapshot


async def _keep(
    keeper: Connection, snapshot: str, tables: dict[TableName, Image], place: str
) -> str:
    """Hold the snapshot and the tables' locks in this session; the name of its own export."""
    names = ", ".join(f"{quoted(table.schema)}.{quoted(table.table)}" for table in tables)
    try:
        await keeper.execute(_BEGIN)
        await keeper.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'".encode())
        if names:
            await keeper.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE NOWAIT".encode())
        cursor = await keeper.execute(_EXPORT)
        [[exported]] = await cursor.fetchall()
    except psycopg.Error as error:
        raise judged_stale(error, "holding a snapshot", place) from error
    return str(exported)


def judged_stale(error: psycopg.Error, doing: str, place: str) -> SourceError:
    """SnapshotStale where somebody has a table or the snapshot is gone, else what it means."""
    found = translated(error, doing, place)
    return SnapshotStale(str(found)) if error.sqlstate in _STALE_STATES else found


async def _images(
    keeper: Connection, tables: Sequence[TableName], place: str
) -> dict[TableName, Image]:
    try:
        cursor = await keeper.execute(IMAGE, _arguments(tables))
        return images_of(await cursor.fetchall())
    except psycopg.Error as error:
        raise translated(error, "reading the tables under a snapshot", place) from error


async def _fresh_images(session: Session, tables: Sequence[TableName]) -> dict[TableName, Image]:
    rows = await session.rows(IMAGE, *_arguments(tables), doing="reading the tables to compare")
    return images_of(rows)


def _arguments(tables: Sequence[TableName]) -> tuple[list[str], list[str]]:
    return [table.schema for table in tables], [table.table for table in tables]


def _refuse_differences(seen: dict[TableName, Image], now: dict[TableName, Image]) -> None:
    """Raise SnapshotStale where a table is not what the snapshot saw."""
    for table in sorted(seen.keys() | now.keys()):
        if text := difference(seen.get(table), now.get(table)):
            raise SnapshotStale(f"the snapshot of {table} is stale: {text}")
