"""The native reader of pgoutput's rows: see `tuples.pyx` for the strategy.

A line is a pure function of the frame and of what the line writer says of its own.
"""

from typing import final

from engine.lines.writer import LineWriter

@final
class TupleReader:
    """Reads the rows of one stream into `lines`, whose columns have forms of values.pxd."""

    def __init__(self, lines: LineWriter) -> None: ...
    @property
    def moved(self) -> dict[int, int]:
        """The relations of which a row moved to another key and a column was left out.

        By relation, the commit LSN of the newest such update. The owner empties it.
        """

    def begin(self, commit_lsn: int, commit_time_us: int, xid: int) -> None:
        """Start a transaction, in the line writer too.

        `xid` 0 is PostgreSQL's invalid transaction. Then the lines say `xid` null, their `lsn` is
        `commit_lsn`, and they are of a snapshot.
        """

    def encode(self, frame: bytes | bytearray | memoryview) -> int:
        """Add the line of an Insert, Update or Delete.

        `frame` is the whole payload of one XLogData CopyData message: `w`, data start, WAL end,
        send time, then the pgoutput message (PostgreSQL manual, "Logical Replication Message
        Formats", proto_version 1, text). Returns and raises as `LineWriter.write` does.
        """

    def truncate(self, relation_id: int, change_lsn: int) -> int:
        """Add a line with op `t`. Returns and raises as `encode` does."""
