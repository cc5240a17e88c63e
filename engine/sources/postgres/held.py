"""PostgreSQL's snapshots: what the coordinator holds while workers read.

Strategy: `exported` holds the snapshot and the tables, `as_streamed` says what they look like in
the stream, `ranges` cuts them, and `segments` what is too large to be read at once. `lock_watch`
watches, from before the first lock on, who waits for a lock behind ours.
"""

import functools
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Never

from engine.model.errors import SourceError
from engine.model.log_point import LogPoint
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.snapshot_source import HeldTable, ReadProgress
from engine.operate.alarms import Alarms
from engine.sources.postgres import ranges
from engine.sources.postgres.as_streamed import AsStreamed, as_streamed
from engine.sources.postgres.dsn import Dsn
from engine.sources.postgres.exported import Exported, export
from engine.sources.postgres.held_session import HeldSession
from engine.sources.postgres.images import Image
from engine.sources.postgres.lock_watch import LOCK_YIELD_SECONDS
from engine.sources.postgres.range_reader import range_name
from engine.sources.postgres.ranges import LeafSize, leaf_sizes
from engine.sources.postgres.segments import (
    SEGMENT_BYTES,
    Finer,
    Rest,
    Segment,
    Wanted,
    rest_of,
    segment_of,
)
from engine.sources.postgres.table_keys import TableKey, table_keys

_PROGRESS: Final = """
SELECT a.application_name, p.tuples_processed::pg_catalog.int8, p.bytes_processed::pg_catalog.int8
FROM pg_catalog.pg_stat_progress_copy p
JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) p.pid
WHERE p.command OPERATOR(pg_catalog.=) 'COPY TO'
"""


class PostgresSnapshots:
    """Implements `engine.model.snapshot_source.SnapshotSource`.

    `configuration` names the publication and says what records hold. `generation` begins the
    positions until `adopt` says another one. A range has `range_pages` pages at most (None: 256 MiB
    of them). A table of more than `segment_bytes`, with its large values, is held in segments where
    it has a key by which it can be read. A snapshot is let go of once somebody has waited for one
    of its tables for `lock_yield_seconds`. What a snapshot has to wait for itself is an alarm.
    """

    def __init__(
        self,
        *,
        dsn: Dsn,
        configuration: RecordConfiguration,
        alarms: Alarms,
        generation: int = 1,
        range_pages: int | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        lock_yield_seconds: float = LOCK_YIELD_SECONDS,
    ) -> None:
        self._dsn = dsn
        self._configuration = configuration
        self._alarms = alarms
        self._generation = generation
        self._system = self._timeline = ""
        self._range_pages = range_pages
        self._segment_bytes = segment_bytes
        self._finer = Finer()
        self._lock_yield_seconds = lock_yield_seconds

    def adopt(self, generation: int, facts: Mapping[str, str], branch: str) -> None:
        """See SnapshotSource."""
        self._generation = generation
        self._system, self._timeline = facts.get("system_identifier", ""), branch

    @asynccontextmanager
    async def hold(
        self,
        tables: Sequence[TableName],
        rests: Mapping[TableName, str] | None = None,
        undivided: Collection[TableName] = (),
    ) -> AsyncIterator["PostgresHeldSnapshot"]:
        """See SnapshotSource. Cancellation lets everything go."""
        async with export(
            self._dsn,
            tables,
            self._generation,
            self._alarms,
            system=self._system,
            timeline=self._timeline,
            lock_yield_seconds=self._lock_yield_seconds,
        ) as exported:
            # Sampling a table takes a while. Nobody waits longer for our locks because of it.
            async with exported.watch.guarding():
                held = await self._held_tables(exported, rests or {}, undivided)
            yield PostgresHeldSnapshot(exported, held)

    async def _held_tables(
        self,
        exported: Exported,
        rests: Mapping[TableName, str],
        undivided: Collection[TableName],
    ) -> dict[TableName, HeldTable]:
        images = exported.images
        oids = [image.oid for image in images.values()]
        streamed = await as_streamed(exported.seen, oids, self._configuration)
        sizes = await leaf_sizes(exported.seen, images.values())
        begun = {table: rest for table, rest in rests.items() if table in images}
        is_large = functools.partial(self._is_large, sizes)
        large = [image for table, image in images.items() if table in begun or is_large(image)]
        segments = await self._segments(exported, large, sizes, begun, undivided)
        return {
            table: self._held_table(exported, table, streamed[table], sizes, segments.get(table))
            for table in images
        }

    def _is_large(self, sizes: dict[int, LeafSize], image: Image) -> bool:
        return sum(sizes[leaf.oid].size_bytes for leaf in image.leaves) > self._segment_bytes

    async def _segments(
        self,
        exported: Exported,
        large: Sequence[Image],
        sizes: dict[int, LeafSize],
        rests: Mapping[TableName, str],
        undivided: Collection[TableName],
    ) -> dict[TableName, "_Begun"]:
        """The segments of those of these tables that are held in segments."""
        seen = exported.seen
        wanted = [image for image in large if image.table not in undivided]
        if not wanted:
            return {}
        keys = await table_keys(seen, [image.oid for image in wanted], seen.server_version)
        found: dict[TableName, _Begun] = {}
        for image in wanted:
            key, table = keys.get(image.oid), image.table
            rest = rest_of(rests.get(table, ""), key)
            if key is not None:
                begun = await self._segment(seen, table, key, rest, sizes[image.oid])
                if begun is not None:
                    found[table] = begun
        return found

    async def _segment(
        self,
        seen: HeldSession,
        table: TableName,
        key: TableKey,
        rest: Rest | None,
        size: LeafSize,
    ) -> "_Begun | None":
        begin = rest.text if rest is not None else ""
        range_pages = self._range_pages or ranges.RANGE_BYTES // size.page_bytes
        wanted = Wanted(
            segment_bytes=self._segment_bytes,
            range_bytes=range_pages * size.page_bytes,
            finer=self._finer.held(table, begin),
        )
        segment = await segment_of(
            seen,
            table,
            key,
            rest.begin if rest is not None else None,
            pages=size.pages,
            table_bytes=size.size_bytes,
            wanted=wanted,
        )
        # What is not divided after all is read in the order of its pages.
        return _Begun(begin, segment) if begin or segment.rest is not None else None

    def _held_table(
        self,
        exported: Exported,
        table: TableName,
        streamed: AsStreamed,
        sizes: dict[int, LeafSize],
        begun: "_Begun | None",
    ) -> HeldTable:
        image = exported.images[table]
        partitions = tuple(str(piece.oid) for piece in image.relations[1:])
        if begun is not None:
            [leaf], segment = image.leaves, begun.segment
            names, row_filter = exported.names, streamed.row_filter
            return HeldTable(
                relation=streamed.relation,
                ranges=ranges.key_ranges(leaf, names, row_filter, segment.conditions),
                rows_estimate=segment.rows_estimate,
                bytes_estimate=segment.bytes_estimate,
                begin=begun.begin,
                rest=segment.rest.text if segment.rest is not None else "",
                partitions=partitions,
            )
        leaves = [sizes[leaf.oid] for leaf in image.leaves]
        return HeldTable(
            relation=streamed.relation,
            ranges=ranges.ranges_of(
                image, sizes, exported.names, streamed.row_filter, self._range_pages
            ),
            rows_estimate=sum(leaf.rows_estimate for leaf in leaves),
            bytes_estimate=sum(leaf.size_bytes for leaf in leaves),
            partitions=partitions,
        )


@dataclass(frozen=True, slots=True)
class _Begun:
    """A segment, and the text of where it begins."""

    begin: str
    segment: Segment


class PostgresHeldSnapshot:
    """Implements `engine.model.snapshot_source.HeldSnapshot`."""

    def __init__(self, exported: Exported, tables: Mapping[TableName, HeldTable]) -> None:
        self._exported = exported
        self._tables = tables

    @property
    def name(self) -> str:
        """See HeldSnapshot."""
        return self._exported.name

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
        await self._exported.watch.over()

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
