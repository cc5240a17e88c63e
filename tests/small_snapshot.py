"""Snapshots of a small bucket's tables, by the engine's own parts, one entry of the journal a step.

A range is a word with a letter a row: `t` is the truncate record, `r` a row that is read, `R` one
that is large enough to be an object of its own where `bytes_max` is 1.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping

from msgspec.structs import replace

from engine.flow.ledger import Ledger
from engine.flow.reception import Reception
from engine.journal.completer import Completer
from engine.journal.entry import Durable, Planned
from engine.journal.gaps import GapRegister
from engine.journal.journal import random_nonce
from engine.journal.lanes import Lanes
from engine.journal.object_lists import ObjectLists
from engine.journal.retry import Patience
from engine.journal.schema_files import SchemaFiles
from engine.journal.snapshots import Attempt, SnapshotRegister
from engine.model.batch import Batch, LeftOut, Operations
from engine.model.position import Position, segment_range, snapshot_position, snapshot_range
from engine.model.schema import Column, Relation, TableName, TableVersion
from engine.model.staged_object import StagedObject
from engine.operate.events import Events
from engine.snapshot.staging import StagingTask, stage
from log_points import point
from small_bucket import DATABASE, SmallBucket

ROW = b'7\td\xc3\xa9j\xc3\xa0 "vu"\\n\n'
LARGE_ROW = b"8\t" + 1_250 * b"0123456789abcdef" + b"\n"
BYTES_MAX = 1 << 20
RANGES: Mapping[int, str] = {0: "t", 1: "rrr", 2: "rr"}


def range_numbers(segment: int, *ranges: str) -> dict[int, str]:
    """The ranges of a segment behind the first one, by their numbers in the attempt."""
    return {segment_range(segment, number): ops for number, ops in enumerate(ranges)}


def relation(table: TableName) -> Relation:
    """How every table of a small bucket looks at first."""
    columns = (
        Column("id", "integer", "integer", key=True, json="number", type_id=23),
        Column("note", "text", "text", key=False, type_id=25),
    )
    return Relation(table, "16384", columns, ("id",))


class Snapshots:
    """What this writer of `bucket` knows of snapshots. `woken` counts the register's calls."""

    def __init__(self, bucket: SmallBucket) -> None:
        self.bucket = bucket
        self.woken = 0
        state = bucket.journal.state
        self.reception = Reception(
            journalled=state.versions,
            durable=lambda: state.durable_position,
            ledger=Ledger({}),
            configuration=bucket.configuration,
        )
        self.gaps = GapRegister(state, bucket.time_us)
        self.lists = ObjectLists(
            bucket.store, bucket.prefix, Patience(lambda _: None), random_nonce
        )
        self.register = SnapshotRegister(
            state=state,
            gaps=self.gaps,
            reception=self.reception,
            configuration=bucket.configuration,
            clock=bucket.time_us,
            lists=self.lists,
            events=Events(lambda: 0),
            wake=self._wake,
        )
        self._nonces = 0

    def _wake(self) -> None:
        self.woken += 1

    async def append(
        self,
        durable: Durable | None = None,
        planned: tuple[Planned, ...] = (),
        schemas: tuple[TableVersion, ...] = (),
    ) -> int:
        """An entry with everything that is pending. `schemas` are those of `planned`."""
        snapshots = self.register.pending
        tables = {snapshot.table_name for snapshot in snapshots}
        own = tuple(v for table in sorted(tables) for v in self.reception.provisional(table))
        gaps = self.gaps.pending
        seq = await self.bucket.journal.append(
            schemas=(*schemas, *own),
            planned=planned,
            snapshots=snapshots,
            durable=durable,
            gaps=gaps,
        )
        self.gaps.journalled(gaps)
        self.reception.journalled(own)
        self.register.journalled(snapshots, seq)
        if durable is not None:
            self.register.forget(durable.position, durable.seq)
        return seq

    def durable(self, seq: int | None = None) -> Durable:
        """Everything up to the last commit, and to entry `seq` (None: the last one)."""
        stated = self.bucket.durable(seq)
        unfinished = self.register.unfinished(stated.position, stated.seq)
        return replace(stated, unfinished=unfinished)

    def start(self, table: TableName, *, rest: str = "") -> Attempt:
        """Start an attempt behind the bucket's last commit, or go on with it."""
        self.register.capture(table)
        at = point(self.bucket.commit + 1, self.bucket.time_us())
        return self.register.start(table, at, relation(table), rest=rest)

    def task(self, attempt: Attempt, number: int, *, bytes_max: int = BYTES_MAX) -> StagingTask:
        """The range with that number, as a worker is told of it."""
        return StagingTask(
            table=attempt.table,
            attempt=attempt.number,
            range_number=number,
            point=attempt.point.position,
            version=attempt.version.number,
            hour=attempt.hour,
            codec=1,
            compression=self.bucket.configuration.compression,
            layout=self.bucket.configuration.layout,
            prefix=self.bucket.prefix,
            database=DATABASE,
            writer=self.bucket.journal.writer.id,
            bytes_max=bytes_max,
        )

    async def batches(self, attempt: Attempt, number: int, ops: str) -> AsyncIterator[Batch]:
        """The rows of a range, each a batch of its own."""
        codec = self.bucket.codec(attempt.version)
        order = int(attempt.point.position.rpartition(".")[2], 16) - 1
        lane = snapshot_range(attempt.number, number)
        codec.begin(order, attempt.point.commit_us, 0)
        for row, op in enumerate(ops):
            if op == "t":
                codec.truncate(7, lane)
            else:
                codec.encode_copy(7, LARGE_ROW if op == "R" else ROW, lane, row)
            rows = codec.take(7)
            assert rows is not None
            yield Batch(
                attempt.table,
                attempt.version.number,
                rows.lines,
                rows.row_count,
                Operations(*rows.operations),
                Position(rows.first_position),
                Position(rows.last_position),
                attempt.point.commit_us,
                attempt.point.commit_us,
            )

    def nonce(self) -> str:
        """One that no other object of this bucket has."""
        self._nonces += 1
        return f"{self.bucket.journal.writer.id}/{self._nonces}"

    async def stage(
        self,
        attempt: Attempt,
        ranges: Mapping[int, str] = RANGES,
        *,
        bytes_max: int = BYTES_MAX,
    ) -> tuple[StagedObject, ...]:
        """Stage all ranges of an attempt."""
        staged: list[StagedObject] = []
        for number, ops in ranges.items():
            task = self.task(attempt, number, bytes_max=bytes_max)
            batches = self.batches(attempt, number, ops)
            staged += await stage(self.bucket.store, task, batches, make_nonce=self.nonce)
        return tuple(staged)

    async def make_whole(
        self,
        table: TableName,
        ranges: Mapping[int, str] = RANGES,
        *,
        bytes_max: int = BYTES_MAX,
        rest: str = "",
        left_out: Collection[int] = (),
    ) -> tuple[StagedObject, ...]:
        """An attempt from its start until the journal names its objects.

        `left_out` are the numbers of rows, behind all others of range 0, that no record can hold.
        """
        attempt = self.start(table)
        await self.append()
        objects = await self.stage(attempt, ranges, bytes_max=bytes_max)
        rows = [self.left_out(attempt, number) for number in left_out]
        await self.register.whole(attempt, objects, rows, rest=rest)
        await self.append()
        return objects

    @staticmethod
    def left_out(attempt: Attempt, row: int) -> LeftOut:
        """A row of range 0 that no record can hold."""
        position = snapshot_position(attempt.point.position, attempt.number, 0, row)
        return LeftOut(attempt.table, position, "odd", f'{{"id": "{row}"}}')

    async def complete(self, concurrency: int = 4) -> None:
        """Complete all that the journal names and that is not known to be visible."""
        async with asyncio.TaskGroup() as group:
            self.completer(group, concurrency).resume()

    def completer(self, group: asyncio.TaskGroup, concurrency: int = 4) -> Completer:
        store, journal = self.bucket.store, self.bucket.journal
        patience = Patience(lambda _: None)
        return Completer(
            store=store,
            journal=journal,
            register=self.register,
            lanes=Lanes(group, concurrency),
            schema_files=SchemaFiles(store, journal, patience),
            lists=self.lists,
            patience=patience,
            prefix=self.bucket.prefix,
            group=group,
        )
