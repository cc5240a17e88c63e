"""What a verification found, as values: a command prints them, a test compares them."""

from dataclasses import dataclass
from typing import Literal

from engine.journal.entry import Gap
from engine.model.position import Position
from engine.reader.verify.problem import Problem

SnapshotProgress = Literal[
    "none", "wanted", "started", "whole", "void", "cancelled", "gone", "finished"
]
"""*none*: the journal speaks of none. *finished*: its objects are there, and everything before the
point that it was taken at is durable. The rest are the journal's own words."""


@dataclass(frozen=True, slots=True)
class TableVerdict:
    """One table's durable objects as the journal names them.

    `objects` and `rows` are its stream's, like `first`, `last` and `versions`. `snapshot_objects`
    and `snapshot_rows` are those of its snapshots. `expired` counts the objects of both that are
    not there any more, because they have reached the end of their life. `pending` counts objects of
    both that are named and not durable. `snapshot` says how far its newest snapshot is: see
    `SnapshotProgress`.
    """

    table: str
    objects: int
    rows: int
    pending: int
    first: Position
    last: Position
    versions: tuple[int, ...]
    snapshot: SnapshotProgress = "none"
    snapshot_objects: int = 0
    snapshot_rows: int = 0
    expired: int = 0

    @property
    def is_unfinished(self) -> bool:
        """Whether rows that the table had before its changes may be missing."""
        return self.snapshot not in {"none", "gone", "finished"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The whole bucket, judged up to the last durable entry.

    `objects` and `rows` are those that the journal says are durable, `expired` the objects among
    them that are not there any more, `pending` the objects named after that. `entries` is how many
    entries were read, `durable_position` where E is. `gaps` are those that the journal states: they
    are no contradiction, so they are no problems. `warnings` name what could not be proved though
    nothing contradicts it.
    """

    tables: tuple[TableVerdict, ...]
    entries: int
    durable_position: str
    durable_time: str
    problems: tuple[Problem, ...]
    gaps: tuple[Gap, ...] = ()
    warnings: tuple[Problem, ...] = ()

    @property
    def is_ok(self) -> bool:
        return not self.problems

    @property
    def unmended_gaps(self) -> tuple[Gap, ...]:
        return tuple(gap for gap in self.gaps if not gap.mended)

    @property
    def unfinished(self) -> tuple[TableVerdict, ...]:
        return tuple(table for table in self.tables if table.is_unfinished)

    @property
    def objects(self) -> int:
        return sum(table.objects + table.snapshot_objects for table in self.tables)

    @property
    def rows(self) -> int:
        return sum(table.rows + table.snapshot_rows for table in self.tables)

    @property
    def expired(self) -> int:
        return sum(table.expired for table in self.tables)

    @property
    def pending(self) -> int:
        return sum(table.pending for table in self.tables)
