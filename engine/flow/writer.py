"""A table's writer: from its queue into chunks, cut where a limit, an hour or a version says so.

Strategy: everything is synchronous. A batch goes from the queue into the open chunk at once, as
long as few cut chunks wait to become visible. Otherwise it stays in the queue, whose bound then
holds the table back. The writer does the memory budget's accounts for its table: raw bytes are
charged when they come, and after that they only shrink.

Invariant: queue, open chunk and cut chunks hold the table's rows without gap, in order.
"""

from engine.flow.budget import MemoryBudget
from engine.flow.chunk import ChunkBuilder, ChunkLimits, CutReason, SealedChunk
from engine.flow.queue import TableQueue
from engine.model.batch import Batch
from engine.model.record import Compression
from engine.model.schema import TableName

# One is being published, and one waits for its plan, while the next one grows.
UNPUBLISHED_CHUNKS_MAX = 2

# What a batch keeps beside its lines: positions and tuples, 400 bytes (measured). Without this,
# queues of small batches would hold three times what their lines say.
BATCH_BYTES = 400


class TableWriter:
    """One table's way from batches to cut chunks."""

    __slots__ = (
        "_budget",
        "_compression",
        "_limits",
        "_open",
        "_unpublished",
        "due_at",
        "queue",
        "sealed",
        "table",
    )

    def __init__(
        self,
        table: TableName,
        *,
        queue_bytes_max: int,
        limits: ChunkLimits,
        compression: Compression,
        budget: MemoryBudget,
    ) -> None:
        self.table = table
        self.queue = TableQueue(queue_bytes_max)
        self.sealed: list[SealedChunk] = []
        self.due_at: float | None = None
        """When the open chunk reaches its age, in the event loop's seconds; None without one.

        A plain attribute: the committer looks at those of all tables every 20 ms, and with 5,000 of
        them a property took 2 ms.
        """
        self._limits = limits
        self._compression = compression
        self._budget = budget
        self._open: ChunkBuilder | None = None
        self._unpublished = 0

    @property
    def open_bytes(self) -> int:
        """What the open chunk holds in memory."""
        return self._open.held_bytes if self._open is not None else 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held and nothing waits to become visible."""
        return not self.queue and self._open is None and not self._unpublished

    def put(self, batch: Batch, now: float) -> None:
        """Take a batch that came at `now` (seconds of the event loop)."""
        if not self.queue and self._unpublished < UNPUBLISHED_CHUNKS_MAX and self._takes(batch):
            # Nearly every batch goes this way.
            self._add(batch, now, charged_bytes=0)
            return
        self._budget.charge(len(batch.lines) + BATCH_BYTES)
        self.queue.put(batch, now)
        self.pump()

    def published(self) -> None:
        """One of the cut chunks is visible: there is room for another."""
        self._unpublished -= 1
        self.pump()

    def pump(self) -> None:
        """Move batches from the queue into chunks, as far as the table may go."""
        while self.queue and self._unpublished < UNPUBLISHED_CHUNKS_MAX:
            batch, came_at = self.queue.peek()
            if self._takes(batch):
                self.queue.take()
                self._add(batch, came_at, charged_bytes=len(batch.lines) + BATCH_BYTES)

    def _takes(self, batch: Batch) -> bool:
        """Whether the open chunk takes `batch`; one that does not is cut."""
        reason = self._open.takes(batch, self._limits) if self._open is not None else None
        if reason is not None:
            self.cut(reason)
        return reason is None

    def _add(self, batch: Batch, came_at: float, *, charged_bytes: int) -> None:
        if self._open is None:
            self._open = ChunkBuilder(batch, self._compression, came_at)
            self.due_at = came_at + self._limits.age_seconds_max
        else:
            charged_bytes += self._open.held_bytes
            self._open.add(batch)
        self._budget.charge(self._open.held_bytes - charged_bytes)
        full = self._open.is_full(self._limits)
        if full is not None:
            self.cut(full)

    def cut(self, reason: CutReason) -> None:
        """Close the open chunk, if there is one."""
        if self._open is None:
            return
        held = self._open.held_bytes
        chunk = self._open.seal(reason)
        self._open = self.due_at = None
        self._budget.charge(len(chunk.body) - held)
        self._unpublished += 1
        self.sealed.append(chunk)

    def take_sealed(self) -> list[SealedChunk]:
        """The chunks that were cut since the last call, oldest first."""
        taken, self.sealed = self.sealed, []
        return taken
