"""Exported snapshots: the rows of some tables as they were before one place in the log.

Strategy: a temporary slot gives an exported snapshot and its consistent point. Two keepers, which
are sessions of their own, take that snapshot, lock the tables in ACCESS SHARE MODE, and export it
again: either of them may die, and the name that the other one gave still stands. Then the slot
goes: it would keep the log from being removed. Only once the tables are locked they are compared
with what a fresh session sees; nothing but ATTACH and DETACH passes those locks afterwards.

Tables are held one by one: one that cannot be locked, or that somebody changes just now, is left
out, and the others are held. Locks have a table of fixed size, which all sessions of the server
share. So no more relations are held at once than a part of it has place for.

Invariant: no row is read under a snapshot before its tables were locked and compared. No other lock
than ACCESS SHARE is taken.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import psycopg

from engine.model.errors import SnapshotStale, SourceError, SourceRefused, SourceUnavailable
from engine.model.log_point import LogPoint
from engine.model.schema import TableName
from engine.operate.alarms import Alarms
from engine.sources.postgres.dsn import Dsn, place_of
from engine.sources.postgres.held_session import HeldSession
from engine.sources.postgres.images import IMAGE, Image, difference, images_of
from engine.sources.postgres.lock_watch import LOCK_YIELD_SECONDS, LockWatch
from engine.sources.postgres.lsn import log_point, parse_lsn
from engine.sources.postgres.range_reader import application_name
from engine.sources.postgres.rights import refusals
from engine.sources.postgres.session import (
    Connection,
    Questions,
    Session,
    beside,
    connect,
    quoted,
    translated,
)
from engine.sources.postgres.slot_creation import watched

KEEPERS: Final = 2

HELD_SESSIONS: Final = 1 + KEEPERS
"""Plain sessions that one snapshot holds: `fresh` and the keepers. A third one looks only while the
slot is made, before there are keepers."""

# The server's side of a keeper's connection: an answer that nobody takes does not keep the locks.
_KEEPER_SETTINGS: Final = {"tcp_user_timeout": "25000"}

_STOP_SECONDS: Final = 5.0

LOCKS_SHARE: Final = 8
"""One in so many places of the server's lock table may be a relation of one snapshot. Two keepers
hold each, and two snapshots may be held at once."""

# The least size of the lock table: "max_locks_per_transaction" in PostgreSQL's manual.
_LOCKS: Final = """
SELECT pg_catalog.current_setting('max_locks_per_transaction')::pg_catalog.int8
       OPERATOR(pg_catalog.*) (
         pg_catalog.current_setting('max_connections')::pg_catalog.int8 OPERATOR(pg_catalog.+)
         pg_catalog.current_setting('max_prepared_transactions')::pg_catalog.int8)
"""

# Its role is ours: whoever may open such a session may end it.
_STOP: Final = """
SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a
WHERE pg_catalog.starts_with(a.application_name, %s::pg_catalog.text)
  AND a.usename OPERATOR(pg_catalog.=) current_user
"""

# PostgreSQL 17 does not have it any more.
_THRESHOLD: Final = "SELECT pg_catalog.current_setting('old_snapshot_threshold', true)"

_NOW_US: Final = """
SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)
       ::pg_catalog.int8
"""


@dataclass(frozen=True, slots=True)
class Exported:
    """One snapshot of a group of tables, held. Made by `export`.

    Everything that commits before `point` is seen, and nothing else. `names` are what `SET
    TRANSACTION SNAPSHOT` takes, any of them. `images` are the tables that are held, as the snapshot
    sees them. `left_out` are those that are not, and why: SnapshotStale or SourceRefused. One that
    is in neither has no place beside the others. `fresh` sees everything as it is now. `watch`
    watches the locks. Whoever reads under the snapshot bears a name that begins with `name` and a
    slash.
    """

    name: str
    point: LogPoint
    names: tuple[str, ...]
    images: Mapping[TableName, Image]
    left_out: Mapping[TableName, SourceError]
    keepers: Sequence[HeldSession]
    fresh: Session
    watch: LockWatch

    @property
    def seen(self) -> HeldSession:
        """A session that sees everything as the snapshot does."""
        return self.keepers[0]

    async def compare(self, tables: Sequence[TableName]) -> None:
        """Compare once more what passes our locks: partitions that were attached or detached.

        Raises SnapshotStale where something differs. Cancellation changes nothing.
        """
        now = await _images(self.fresh, tables)
        for error in _stale(tables, self.images, now).values():
            raise error


@asynccontextmanager
async def export(
    dsn: Dsn,
    tables: Sequence[TableName],
    generation: int,
    alarms: Alarms,
    *,
    system: str = "",
    timeline: str = "",
    lock_yield_seconds: float = LOCK_YIELD_SECONDS,
) -> AsyncIterator[Exported]:
    """Take a snapshot of `tables` and hold it, locked and compared, until the block ends.

    All sessions are with one server, the one of this system identifier and timeline where they are
    given. Waits until every transaction that is open now has ended; an alarm says for which one.
    Raises SnapshotStale where the whole snapshot was lost, also to somebody who has waited for a
    lock for `lock_yield_seconds`, and SourceError. Cancellation lets everything go. That takes some
    seconds at most, and whoever still reads is stopped after the locks are gone.
    """
    async with AsyncExitStack() as stack:
        exporter = await stack.enter_async_context(AsyncExitStack())
        walsender = await connect(dsn, replication=True)
        exporter.push_async_callback(walsender.close)
        await _refuse_other_server(walsender, place_of(dsn), (system, timeline))
        # A dsn may lead to several servers.
        same = beside(walsender)
        fresh = await stack.enter_async_context(Session(dsn, **same))
        await _refuse_forgetful(fresh)
        lsn, snapshot = await _make_slot(walsender, fresh, alarms)
        own_name = secrets.token_hex(8)
        stack.push_async_callback(_stop_readers, fresh, own_name)
        keepers: list[HeldSession] = []
        stack.push_async_callback(_end_all, keepers)
        for _ in range(KEEPERS):
            keepers.append(await _keeper(dsn, same))
            await keepers[-1].begin([snapshot])
        watch = LockWatch(keepers, lock_yield_seconds)
        await stack.enter_async_context(watch.running())
        async with watch.guarding():
            now = await _images(fresh, tables)
            [[locks]] = await fresh.rows(_LOCKS, doing="reading the size of the lock table")
            tables = _with_place(tables, now, locks // LOCKS_SHARE)
            now = {table: image for table, image in now.items() if table in set(tables)}
            left_out: dict[TableName, SourceError] = dict(await refusals(fresh, now))
            names = tuple([await _keep(keeper, now, left_out) for keeper in keepers])
            # It keeps its snapshot and the log until it is gone; both keepers have exported theirs.
            await exporter.aclose()
            seen = await _images(keepers[0], tables)
            asked = [table for table in tables if table not in left_out]
            left_out |= _stale(asked, seen, await _images(fresh, tables))
            [[now_us]] = await fresh.rows(_NOW_US, doing="reading the server's clock")
        point = log_point(generation, parse_lsn(lsn), now_us)
        held = {table: image for table, image in seen.items() if table not in left_out}
        yield Exported(own_name, point, names, held, left_out, keepers, fresh, watch)


def _with_place(
    tables: Sequence[TableName], images: Mapping[TableName, Image], relations_max: int
) -> list[TableName]:
    """The first of the tables, as many as have so many relations together; one at least."""
    fitting: list[TableName] = []
    count = 0
    for table in tables:
        count += len(images[table].relations) if table in images else 0
        if fitting and count > relations_max:
            break
        fitting.append(table)
    return fitting


async def _refuse_other_server(walsender: Connection, place: str, wanted: tuple[str, str]) -> None:
    """Raise SourceUnavailable where it is not the server whose changes the journal has.

    An old primary that still runs would give rows and a point of a history that is left.
    """
    if not any(wanted):
        return
    try:
        cursor = await walsender.execute("IDENTIFY_SYSTEM")
    except psycopg.Error as error:
        raise translated(error, "identifying the server", place) from error
    result = cursor.pgresult
    assert result is not None
    system, timeline = ((result.get_value(0, column) or b"").decode() for column in range(2))
    if (system, timeline) != wanted:
        raise SourceUnavailable(
            f"PostgreSQL at {place} is system {system}, timeline {timeline}; the stream is that of"
            f" system {wanted[0]}, timeline {wanted[1]}",
            hint="source.dsn has to lead to one server, the primary: see its hosts, or the name's"
            " addresses. After a failover the engine starts over, and the snapshot is tried again.",
        )


async def _refuse_forgetful(fresh: Session) -> None:
    """Raise SourceRefused where the server throws away what an old snapshot still sees.

    It gives an error then to a session whose snapshot is old. A worker takes the snapshot later,
    and its session counts as young: it reads rows of a later time without an error (tried on
    PostgreSQL 15).
    """
    [[threshold]] = await fresh.rows(_THRESHOLD, doing="asking how old a snapshot may become")
    if threshold not in {None, "-1"}:
        raise SourceRefused(
            f"old_snapshot_threshold is {threshold}: the server throws away rows that a snapshot"
            " has yet to read",
            hint="set old_snapshot_threshold = -1 (PostgreSQL's default) and restart the server",
        )


async def _keeper(dsn: Dsn, same: Mapping[str, str]) -> HeldSession:
    connection = await connect(dsn, replication=False, settings=_KEEPER_SETTINGS, overrides=same)
    return HeldSession(connection, place_of(dsn, same))


async def _end_all(keepers: Sequence[HeldSession]) -> None:
    async with asyncio.TaskGroup() as group:
        for keeper in keepers:
            group.create_task(keeper.end())


async def _stop_readers(fresh: Session, name: str) -> None:
    # Where the server is away, so are they.
    timer = asyncio.get_running_loop().call_later(_STOP_SECONDS, fresh.cut_off)
    try:
        with suppress(SourceError, TimeoutError):
            # A connection that is still being made is given up a second later.
            async with asyncio.timeout(_STOP_SECONDS + 1.0):
                beginning = application_name(f"{name}/")
                await fresh.rows(_STOP, beginning, doing="stopping whoever reads a snapshot")
    finally:
        timer.cancel()


async def _make_slot(walsender: Connection, fresh: Session, alarms: Alarms) -> tuple[str, str]:
    """The consistent point and the snapshot's name, of a slot that is gone with its session."""
    name = f"tailrace_snapshot_{secrets.token_hex(8)}"
    is_older = walsender.info.server_version < 150000
    option = "EXPORT_SNAPSHOT" if is_older else "(SNAPSHOT 'export')"
    command = f"CREATE_REPLICATION_SLOT {quoted(name)} TEMPORARY LOGICAL pgoutput {option}"
    doing = "exporting a snapshot by the temporary replication slot"
    try:
        async with watched(fresh, name, alarms, doing):
            cursor = await walsender.execute(command.encode())
    except psycopg.Error as error:
        raise translated(error, "exporting a snapshot", fresh.place) from error
    result = cursor.pgresult
    assert result is not None
    _, lsn, snapshot, _ = ((result.get_value(0, column) or b"").decode() for column in range(4))
    return lsn, snapshot


async def _keep(
    keeper: HeldSession,
    tables: Mapping[TableName, Image],
    left_out: dict[TableName, SourceError],
) -> str:
    """Hold the tables' locks in this session; the name of its own export of the snapshot.

    What cannot be locked comes to `left_out`.
    """
    left_out |= await keeper.lock([i for table, i in tables.items() if table not in left_out])
    return await keeper.export()


async def _images(session: Questions, tables: Sequence[TableName]) -> dict[TableName, Image]:
    schemas, names = [table.schema for table in tables], [table.table for table in tables]
    return images_of(await session.rows(IMAGE, schemas, names, doing="reading tables to compare"))


def _stale(
    tables: Sequence[TableName],
    seen: Mapping[TableName, Image],
    now: Mapping[TableName, Image],
) -> dict[TableName, SourceError]:
    """The tables that are not what the snapshot saw, or are not there."""
    found: dict[TableName, SourceError] = {}
    for table in tables:
        text = difference(seen.get(table), now.get(table))
        if not text and table not in seen:
            text = "there is no such table"
        if text:
            found[table] = SnapshotStale(f"the snapshot of {table} is stale: {text}")
    return found
