"""Batches: what moves from a source to the tables' queues.

A batch is one table's contiguous records as NDJSON bytes, under one version and within one hour
of commit time. It is handed over at about 64 KiB or at the end of a drain of the socket, never
row by row: moving an item between tasks costs more than a row may cost in total.
"""

from typing import NamedTuple

import msgspec

from engine.model.history import Landmark
from engine.model.log_point import LogPoint
from engine.model.position import LogPosition, Position
from engine.model.schema import TableName


class Operations(NamedTuple):
    """Rows per op: created, updated, deleted, read by a snapshot, truncated."""

    c: int = 0
    u: int = 0
    d: int = 0
    r: int = 0
    t: int = 0

    def plus(self, other: "Operations") -> "Operations":
        """The sum, op by op."""
        c, u, d, r, t = other
        return Operations(self.c + c, self.u + u, self.d + d, self.r + r, self.t + t)


def operations_named(operations: Operations) -> dict[str, int]:
    """Rows per op, those that occur."""
    return {op: count for op, count in operations._asdict().items() if count}


# Batches refer to nothing that refers back to them, so the garbage collector need not look at them.
# With 5,000 tables it spent a sixth of the time on that.
class Batch(msgspec.Struct, frozen=True, gc=False):
    """One table's contiguous records.

    `lines` are whole NDJSON lines; `first` and `last` the positions of the first and last of
    `row_count` records; commit times are Unix microseconds (UTC) of their transactions, both
    within one hour. `pieces` are `lines` compressed beforehand, empty where nobody did: see
    `chunk.compressed_apart`.
    """

    table: TableName
    version: int
    lines: bytes
    row_count: int
    operations: Operations
    first: Position
    last: Position
    first_commit_us: int
    last_commit_us: int
    pieces: tuple[bytes, ...] = ()


class LeftOut(msgspec.Struct, frozen=True, gc=False):
    """A row that no record can hold, where such rows may be left out.

    `reason` says why in plain words; `key` is the row's key as a JSON object of texts, empty where
    it has none: it goes into the journal and nowhere else.
    """

    table: TableName
    position: Position
    reason: str
    key: str


class Named(msgspec.Struct, frozen=True, gc=False):
    """From the transaction that commits at `commit` on, rows of a table come under this name.

    `identity` stays while the table is the same one. Rows under a name that is not captured are
    passed over: then `is_captured` is False.
    """

    identity: str
    table: TableName
    is_captured: bool
    commit: LogPosition


class Leaf(msgspec.Struct, frozen=True, gc=False):
    """Rows of a partition came as those of its root, in the transaction that commits at `commit`.

    `identity` and `root` are what tells the two tables apart from others.
    """

    identity: str
    root: str
    commit: LogPosition


class Moved(msgspec.Struct, frozen=True, gc=False):
    """Rows of a table moved to another key, and a column that did not change was left out of one.

    The newest such row commits at `commit`. Only whoever has the row as it was knows all of it.
    """

    table: TableName
    commit: LogPosition


class Signal(msgspec.Struct, frozen=True, gc=False):
    """Something that somebody asks of the engine by way of the source's own log.

    `position` is where it stands among the changes, empty where it belongs to no transaction.
    `content` is a request's text, empty where it is too long: it has `size_bytes`.
    """

    position: Position
    content: bytes
    size_bytes: int


class Boundary(msgspec.Struct, frozen=True, gc=False):
    """Everything that commits before `point` has left the socket, with this intake at the latest.

    A boundary is a commit's end or a keepalive's position. `landmark` is the newest commit before
    `point` that this stream showed.
    """

    point: LogPoint
    is_keepalive: bool = False
    landmark: Landmark | None = None

    @property
    def position(self) -> LogPosition:
        """Where it is."""
        return self.point.position


class Intake(msgspec.Struct, frozen=True, gc=False):
    """What the socket gave, with the newest boundary that it passed, if any.

    Batches of the same table are in commit order. Rows after the boundary's commit may be among
    them: they belong to a transaction whose end is still to come. The oldest row left the socket
    `held_seconds` ago. `is_look_wanted`: the source said that what it publishes was changed. A row
    in `left_out` is told before any later row of its table. `named` says, in the stream's order,
    under which names rows came. It is handed over no later than the next boundary behind those
    rows. `moved` is told no later than the rows that it speaks of. `signals` are told in the
    stream's order, and `leaves` once for each connection at least, both no later than the next
    boundary behind them.
    """

    batches: tuple[Batch, ...]
    boundary: Boundary | None
    held_seconds: float = 0.0
    is_look_wanted: bool = False
    left_out: tuple[LeftOut, ...] = ()
    named: tuple[Named, ...] = ()
    moved: tuple[Moved, ...] = ()
    signals: tuple[Signal, ...] = ()
    leaves: tuple[Leaf, ...] = ()
