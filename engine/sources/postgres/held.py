"""PostgreSQL's snapshots: what the coordinator holds while workers read.

Strategy: `exported` holds the snapshot and the tables, `as_streamed` says what they look like in
the stream, `ranges` cuts them. While it is held, two things are watched: the keepers, which are
asked for something now and then, and whoever waits for a lock behind ours. Every later query of a
table waits behind such a waiter, so after a while the snapshot is let go of.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Never

import structlog

from engine.model.errors import InvariantBroken, SnapshotStale, SourceError
from engine.model.log_point import LogPoint
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.snapshot_source import HeldTable, ReadProgress
from engine.operate.alarms import Alarms
from engine.sources.postgres.as_streamed import AsStreamed, as_streamed
from engine.sources.postgres.dsn import Dsn
from engine.sources.postgres.exported import Exported, export
from engine.sources.postgres.locks import waiters
from engine.sources.postgres.range_reader import application_name, range_name
from engine.sources.postgres.ranges import LeafSize, leaf_sizes, ranges_of

LOCK_YIELD_SECONDS: Final = 2.0
"""How long somebody may wait for a lock behind ours, where nobody says otherwise."""

_LOOK_SECONDS: Final = 1.0
_PING_SECONDS: Final = 10.0

_PROGRESS: Final = """
SELECT a.application_name, p.tuples_processed::pg_catalog.int8, p.bytes_processed::pg_catalog.int8
FROM pg_catalog.pg_stat_progress_copy p
JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) p.pid
WHERE p.command OPERATOR(pg_catalog.=) 'COPY TO'
"""

# Its role is ours: whoever may open such a session may end it.
_STOP: Final = """
SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a
WHERE pg_catalog.starts_with(a.application_name, %s::pg_catalog.text)
  AND a.usename OPERATOR(pg_catalog.=) current_user
"""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class PostgresSnapshots:
    """Implements `engine.model.snapshot_source.SnapshotSource`.

    `configuration` names the publication and says what records hold. `generation` begins the
    positions until `adopt` says another one. A range has `range_pages` pages at most (None: 256 MiB
    of them). A snapshot is let go of once somebody has waited for one of its tables for
    `lock_yield_seconds`. What a snapshot has to wait for itself is an alarm.
    """

    def __init__(
        self,
        *,
        dsn: Dsn,
        configuration: RecordConfiguration,
        alarms: Alarms,
        generation: int = 1,
        range_pages: int | None = None,
        lock_yield_seconds: float = LOCK_YIELD_SECONDS,
    ) -> None:
        self._dsn = dsn
        self._configuration = configuration
        self._alarms = alarms
        self._generation = generation
        self._range_pages = range_pages
        self._lock_yield_seconds = lock_yield_seconds

    def adopt(self, generation: int) -> None:
        """See SnapshotSource."""
        self._generation = generation

    @asynccontextmanager
    async def hold(
        self,
        tables: Sequence[TableName],
        rests: Mapping[TableName, str] | None = None,
        undivided: Collection[TableName] = (),
    ) -> AsyncIterator["PostgresHeldSnapshot"]:
        """See SnapshotSource. Tables are held whole. Cancellation lets everything go."""
        if rests:
            raise InvariantBroken(f"no segment of {', '.join(map(str, rests))} was held before")
        del undivided
        async with export(self._dsn, tables, self._generation, self._alarms) as exported:
            images = exported.images
            oids = [image.oid for image in images.values()]
            streamed = await as_streamed(exported.seen, oids, self._configuration)
            sizes = await leaf_sizes(exported.seen, images.values())
            held = {
                table: self._held_table(exported, table, streamed[table], sizes) for table in images
            }
            name = secrets.token_hex(8)
            try:
                yield PostgresHeldSnapshot(name, exported, held, self._lock_yield_seconds)
            finally:
                await _stop_readers(exported, name)

    def _held_table(
        self,
        exported: Exported,
        table: TableName,
        streamed: AsStreamed,
        sizes: dict[int, LeafSize],
    ) -> HeldTable:
        image = exported.images[table]
        leaves = [sizes[leaf.oid] for leaf in image.leaves]
        return HeldTable(
            relation=streamed.relation,
            ranges=ranges_of(image, sizes, exported.names, streamed.row_filter, self._range_pages),
            rows_estimate=sum(leaf.rows_estimate for leaf in leaves),
            bytes_estimate=sum(
                (leaf.pages + leaf.toast_pages_estimate) * leaf.page_bytes for leaf in leaves
            ),
        )


async def _stop_readers(exported: Exported, name: str) -> None:
    # Where the server is away, so are they.
    with suppress(SourceError):
        beginning = application_name(f"{name}/")
        await exported.fresh.rows(_STOP, beginning, doing="stopping whoever reads a snapshot")


class PostgresHeldSnapshot:
    """Implements `engine.model.snapshot_source.HeldSnapshot`."""

    def __init__(
        self,
        name: str,
        exported: Exported,
        tables: Mapping[TableName, HeldTable],
        lock_yield_seconds: float,
    ) -> None:
        self._name = name
        self._exported = exported
        self._tables = tables
        self._lock_yield_seconds = lock_yield_seconds

    @property
    def name(self) -> str:
        """See HeldSnapshot."""
        return self._name

    @property
    def point(self) -> LogPoint:
        """See HeldSnapshot."""
        return self._exported.point

    @property
    def tables(self) -> Mapping[TableName, HeldTable]:
        """See HeldSnapshot."""
        return self._tables

    @property
    def left_out(self) -> Mapping[TableName, SourceError]:
        """See HeldSnapshot."""
        return self._exported.left_out

    async def watch(self) -> Never:
        """See HeldSnapshot. Cancellation changes nothing."""
        loop = asyncio.get_running_loop()
        pinged_at = loop.time()
        left: float | None = self._lock_yield_seconds
        while True:
            # Where somebody's time is over before the next look, it comes sooner.
            await asyncio.sleep(_LOOK_SECONDS if left is None else min(left, _LOOK_SECONDS))
            left = await self._yield_to_waiters()
            # Where nobody answers a look, the keepers may be gone too.
            if left is None or loop.time() - pinged_at >= _PING_SECONDS:
                await self._exported.ping()
                pinged_at = loop.time()

    async def _yield_to_waiters(self) -> float | None:
        """Raise SnapshotStale where somebody has waited for long.

        The seconds that whoever waits the longest may still wait; None where that is not known.
        """
        try:
            found = await waiters(self._exported.fresh, self._exported.pids)
        except SourceError as error:
            _log.debug("who waits for our locks is not known", error=str(error))
            return None
        waited = found[0].seconds if found else 0.0
        if waited >= self._lock_yield_seconds:
            raise SnapshotStale(f"a snapshot lets go of its tables: {found[0]}")
        return self._lock_yield_seconds - waited

    async def compare(self, table: TableName) -> None:
        """See HeldSnapshot. Cancellation changes nothing."""
        await self._exported.compare([table])

    async def progress(self) -> Mapping[str, ReadProgress]:
        """See HeldSnapshot. Cancellation changes nothing."""
        found = await self._exported.fresh.rows(_PROGRESS, doing="looking how far ranges are read")
        named = [(range_name(application), *counts) for application, *counts in found]
        return {
            name: ReadProgress(rows, size_bytes)
            for name, rows, size_bytes in named
            if name is not None
        }
