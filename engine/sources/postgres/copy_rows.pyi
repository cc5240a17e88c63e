"""The native reader of COPY's rows: see `copy_rows.pyx` for the strategy."""

from typing import final

from engine.lines.writer import LineWriter
from engine.sources.postgres.frames import Frames

@final
class CopyReader:
    """Reads the rows of snapshots into `lines`, whose columns have forms of values.pxd."""

    def __init__(self, lines: LineWriter) -> None: ...
    def begin(self, lsn: int, time_us: int) -> None:
        """Start the rows of a snapshot, in the line writer too.

        `lsn` orders them: it is the `commit_lsn` and the `lsn` of every row.
        """

    def encode(
        self,
        relation_id: int,
        row: bytes | bytearray | memoryview,
        range_number: int,
        row_number: int,
    ) -> int:
        """Add the line (op `r`) of one row of `COPY ... TO STDOUT`: text format, with newline.

        The row holds the binding's included columns in their order. The position is made of
        `begin`'s `lsn`, `range_number` and `row_number` (below 2**24). Returns and raises as
        `LineWriter.write` does; no count of changes is kept.
        """

    def truncate(self, relation_id: int, range_number: int, row_number: int) -> int:
        """Add a line with op `t`. Returns and raises as `encode` does."""

@final
class CopyRange:
    """The rows of one COPY as they come in frames. Not safe for use from two threads at once."""

    def __init__(
        self,
        rows: CopyReader,
        relation_id: int,
        range_number: int,
        row_number: int,
        size_max: int,
    ) -> None:
        """The next row is `row_number`; a table with more bytes than `size_max` is full."""

    @property
    def row_number(self) -> int:
        """That of the next row."""

    @property
    def drained_bytes(self) -> int:
        """Bytes of the frames that the last `read` took."""

    def pass_over(self) -> None:
        """Leave out the row at which `read` raised UnrepresentableRow; its number stays used."""

    def read(self, frames: Frames, budget_bytes: int) -> int:
        """Add the lines of rows until a reason to stop, each frame being one row.

        The reasons are those of `frames`: EMPTY, END, FAILED, BUDGET, and FULL: take the lines.
        Raises as `CopyReader.encode`, and ValueError where the relation is not bound.
        """
