"""What a snapshot asks of a source: the rows of some tables as they were before one log point.

Strategy: the coordinator asks the source to hold a snapshot of some tables. Whoever reads a range
of it may be another process on another machine. So a range is told in bytes that only the source
understands, and everything else that a line follows from is in the task beside them.

Invariant: what the source holds ends with the block that asked for it.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from engine.model.batch import Batch, LeftOut
from engine.model.errors import SourceError
from engine.model.log_point import LogPoint
from engine.model.position import LogPosition
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableName, TableVersion


@dataclass(frozen=True, slots=True)
class HeldTable:
    """One table under a held snapshot.

    `relation` is what the stream would show of it at the snapshot's point. `ranges` are its rows,
    each row in exactly one of them, in the source's own words for `RangeTask.own`: at least one,
    each of fewer than 2**24 rows. The estimates are for people.

    A large table may be held in segments: then these are the rows from `begin` on, and `rest` says
    in the source's own words where the others begin. Both are empty where there are no others.

    `partitions` are the identities of those that its rows are read from. None of them leaves the
    table while it is held.
    """

    relation: Relation
    ranges: tuple[bytes, ...]
    rows_estimate: int
    bytes_estimate: int
    begin: str = ""
    rest: str = ""
    partitions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadProgress:
    """What the source knows of one range that is being read: rows and bytes sent so far."""

    rows: int
    size_bytes: int


class HeldSnapshot(Protocol):
    """A snapshot that is held: nobody changes what its tables' ranges show meanwhile."""

    @property
    def name(self) -> str:
        """Its own name: the names of all ranges that are read under it begin with it and a slash.

        When the block ends, whoever still reads one of them is stopped.
        """
        ...

    @property
    def point(self) -> LogPoint:
        """Everything that commits before it is seen, and nothing else."""
        ...

    @property
    def tables(self) -> Mapping[TableName, HeldTable]:
        """The tables that are held."""
        ...

    @property
    def left_out(self) -> Mapping[TableName, SourceError]:
        """Tables that were asked for and are not held, and why.

        One that is neither held nor here has no place beside the others: ask for it again.
        SnapshotStale: somebody changes the table just now, try again later. SourceRefused: a right
        has to be given first.
        """
        ...

    async def watch(self) -> None:
        """Keep the snapshot alive; return never.

        Raises SnapshotStale once it is lost, or has to be let go of because somebody waits for one
        of its tables. Cancellation changes nothing.
        """
        ...

    async def compare(self, table: TableName) -> None:
        """Compare what may have changed in spite of holding it, after its last row was read.

        Raises SnapshotStale where something has, SourceUnavailable. Cancellation changes nothing.
        """
        ...

    async def progress(self) -> Mapping[str, ReadProgress]:
        """How far each range that is being read has come, by `RangeTask.name`.

        Raises SourceUnavailable. Cancellation changes nothing.
        """
        ...


class SnapshotSource(Protocol):
    """What a source does for snapshots, in the process of the engine."""

    def adopt(self, generation: int, facts: Mapping[str, str], branch: str) -> None:
        """Positions that are made from now on belong to this generation. See `Source.adopt`.

        `facts` and `branch` are the journal's `SourceIdentity`'s, empty where it has none yet. A
        snapshot of another server, or of another branch of its history, is refused.
        """
        ...

    def hold(
        self,
        tables: Sequence[TableName],
        rests: Mapping[TableName, str] | None = None,
        undivided: Collection[TableName] = (),
    ) -> AbstractAsyncContextManager[HeldSnapshot]:
        """Hold a snapshot of `tables`, as far as they can be held, until the block ends.

        Of a table in `rests`, a segment was read before: its rows from that `HeldTable.rest` on.
        Where a source cannot go on from there, it holds the table from the beginning, and the
        attempt begins anew. A table in `undivided` is not held in segments.
        May wait until transactions that are open now have ended, and says of whom it waits. Raises
        SourceUnavailable, also where another server answers, and SourceRefused. Cancellation lets
        everything go.
        """
        ...


class RangeTask(msgspec.Struct, frozen=True):
    """One range of one attempt: what its lines follow from beside its rows.

    `name` is the task's own: no other range that is read at the same time has it. Rows are those
    before `point`. With `begins_attempt` the first
    line is the attempt's truncate record, and the rows follow it. `commit_us` is the time in the
    lines. `own` is the source's word for the range.
    """

    name: str
    database: str
    version: TableVersion
    configuration: RecordConfiguration
    point: LogPosition
    commit_us: int
    attempt: int
    range_number: int
    begins_attempt: bool
    own: bytes


LeaveOut = Callable[[LeftOut], None]
"""Who is told of a row that is left out."""


class RangeReader(Protocol):
    """What a source does for snapshots in a worker. It may be used for one range after another."""

    def read(
        self, task: RangeTask, leave_out: LeaveOut
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """The range's rows as batches, in any order of the rows, none for an empty range.

        `leave_out` is told of every row that no record can hold, where such rows may be left out.

        Positions follow from the task and from the order in which rows are read; batches hold
        about `BATCH_SIZE_MAX`. Raises SnapshotStale where the range cannot be read any more as the
        snapshot saw it, SourceUnavailable, SourceRefused, UnrepresentableRow. Leaving the block,
        also by cancellation, ends the reading and frees what the worker holds of the snapshot.
        """
        ...
