"""The contracts of frames.pyx: the hot loop of a stream, compiled."""

from collections.abc import Iterable
from typing import Final, Protocol, final

from engine.sources.postgres.tuples import TupleReader

# Why `FrameReader.read` stopped.
EMPTY: Final[int]
"""No whole frame is left."""
END: Final[int]
"""The server ended the stream."""
FAILED: Final[int]
"""libpq failed; the connection has its message."""
BUDGET: Final[int]
"""As many bytes as allowed were handled; there may be more."""
FULL: Final[int]
"""The lines of `relation_id` have passed `size_max`: take them."""
UNBOUND: Final[int]
"""A row of `relation_id`, which is not bound, waits: nothing of it was counted.

The next `read` begins with it, unless `pass_over` was called.
"""
HOUR: Final[int]
"""A transaction of another hour begins: take all lines first, then read on."""
CONTROL: Final[int]
"""`frame` is no row, Begin, Commit or keepalive, or is malformed: decode it."""

class Frames:
    """Where frames come from: CopyData payloads of the streaming replication protocol."""

@final
class LibpqFrames(Frames):
    """What libpq holds of a COPY BOTH.

    The three numbers are addresses: of the PGconn and of `PQgetCopyData` and `PQfreemem` in the
    very libpq that made it. Read only between a successful `consume_input` and the next await: the
    connection must not have been finished.
    """

    def __init__(self, connection: int, get_copy_data: int, free_memory: int) -> None: ...

@final
class ListedFrames(Frames):
    """Frames out of memory, in order; then EMPTY, or END where `is_ended`.

    Where they are `is_consumable`, a copy of each is, as libpq's frames are.
    """

    def __init__(
        self, frames: Iterable[bytes], *, is_ended: bool = False, is_consumable: bool = False
    ) -> None: ...

class LogJudge(Protocol):
    """Who judges the log's history, in LSNs and Unix microseconds: `engine.model.history`."""

    @property
    def is_done(self) -> bool: ...
    def began(self, commit_lsn: int, commit_us: int) -> None: ...
    def reached(self, lsn: int) -> None: ...

@final
class FrameReader:
    """One stream's place in the frames. Not safe for use from two threads at once."""

    def __init__(self, tuples: TupleReader, size_max: int) -> None:
        """Rows go to `tuples`, which must not be given a `begin` by anybody else."""

    are_bare_hidden: bool
    """Whether a transaction that holds nothing but messages is not judged, and no landmark.

    A stream without messages does not show such a transaction.
    """

    @property
    def open_commit(self) -> int:
        """Where the transaction commits that has begun and not ended; 0: there is none."""

    @property
    def boundary(self) -> tuple[int, int, bool] | None:
        """The newest boundary read and not forgotten: (LSN, Unix microseconds, is_keepalive)."""

    @property
    def landmark(self) -> tuple[int, int] | None:
        """The newest transaction whose end was read: (commit LSN, Unix microseconds)."""

    judge: LogJudge | None
    """Told of every transaction and boundary until it is done. What it raises, `read` raises."""

    def forget_boundary(self) -> None:
        """The boundary was handed over."""

    @property
    def received_lsn(self) -> int:
        """The newest commit's end, or keepalive's position, that was read. Only grows."""

    @property
    def drained_bytes(self) -> int:
        """Bytes of the frames that the last `read` handled or handed out."""

    @property
    def relation_id(self) -> int:
        """What FULL and UNBOUND are about."""

    @property
    def change_lsn(self) -> int:
        """Where the row of UNBOUND stands in the log."""

    @property
    def frame(self) -> bytes:
        """What CONTROL hands out: a copy. Of a logical message the first 128 KiB."""

    is_reply_wanted: bool
    """Whether a keepalive asked for a status update; whoever gives one resets it."""

    def take_leaves(self) -> list[tuple[int, int, int]]:
        """Partitions whose rows come under their root, shown since the last call.

        Each with its root, and where the row commits that shows it. A partition is shown again
        whenever the server sends its relation again.
        """

    def pass_over(self) -> None:
        """The row that waits is not wanted: the next `read` begins behind it."""

    def read(self, frames: Frames, budget_bytes: int) -> int:
        """Handle frames until a reason to stop. Raises DecodeError for malformed ones.

        All calls are given the same `frames`.
        """

@final
class FrameCounter:
    """Frames that are counted and thrown away: no row is decoded.

    For the load tests: no reader that comes by its frames in this way can be faster.
    """

    @property
    def received_lsn(self) -> int:
        """The newest commit's end, or keepalive's position, that was read. Only grows."""

    @property
    def drained_bytes(self) -> int:
        """Bytes of the frames that the last `read` took."""

    @property
    def row_count(self) -> int:
        """Rows inserted, updated and deleted in all frames so far."""

    is_reply_wanted: bool
    """Whether a keepalive asked for a status update; whoever gives one resets it."""

    def read(self, frames: Frames, budget_bytes: int) -> int:
        """Take frames until EMPTY, END, FAILED or BUDGET.

        Raises DecodeError for one that is neither a message nor a keepalive.
        """
