"""A table's queue: batches that were read and are not yet in a chunk, bounded in bytes.

The bound is soft by one intake. The router takes whole what the socket gave, and the reader reads
no more while any queue is over its bound.
"""

from collections import deque

from engine.model.batch import Batch


class TableQueue:
    """Batches of one table in commit order, each with the time it came.

    Invariant: `size_bytes` is the sum of its batches' lines.
    """

    __slots__ = ("_batches", "_bytes_max", "size_bytes")

    def __init__(self, bytes_max: int) -> None:
        self.size_bytes = 0
        self._bytes_max = bytes_max
        # Made when it is first needed: an empty one takes 760 bytes, and most queues stay empty.
        self._batches: deque[tuple[Batch, float]] | None = None

    def __bool__(self) -> bool:
        return bool(self._batches)

    @property
    def is_full(self) -> bool:
        """Whether the queue is at its bound."""
        return self.size_bytes >= self._bytes_max

    def put(self, batch: Batch, now: float) -> None:
        """Append a batch that came at `now` (seconds of the event loop)."""
        if self._batches is None:
            self._batches = deque()
        self._batches.append((batch, now))
        self.size_bytes += len(batch.lines)

    def peek(self) -> tuple[Batch, float]:
        """The oldest batch and when it came; there has to be one."""
        assert self._batches is not None
        return self._batches[0]

    def take(self) -> Batch:
        """Remove and return the oldest batch; there has to be one."""
        assert self._batches is not None
        batch, _ = self._batches.popleft()
        self.size_bytes -= len(batch.lines)
        return batch
