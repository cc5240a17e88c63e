"""The router: fans intakes out to the tables' writers and collects the chunks that are due.

Strategy: an intake is taken whole, without waiting. The reader waits instead: before it reads the
next intake, until there is room in the budget and in every queue. Under memory pressure the largest
open chunks are cut. A writer that holds nothing any more is forgotten, because tables come and go.
"""

import asyncio
from collections.abc import Callable, Iterable

from engine.flow.budget import MemoryBudget
from engine.flow.chunk import ChunkLimits, CutReason, SealedChunk
from engine.flow.writer import TableWriter
from engine.model.batch import Intake
from engine.model.record import Compression
from engine.model.schema import TableName


class Router:
    """The writers of all tables that hold something, made when a batch comes.

    `on_cut` is called whenever a chunk was cut or room is wanted. `on_waiting` is called when rows
    wait for a plan: in a queue behind a chunk that was cut, or still in the source until chunks are
    cut to make room.
    """

    def __init__(
        self,
        *,
        queue_bytes_max: int,
        limits: ChunkLimits,
        compression: Compression,
        budget: MemoryBudget,
        on_cut: Callable[[], None],
        on_waiting: Callable[[], None],
    ) -> None:
        self._on_cut = on_cut
        self._on_waiting = on_waiting
        self.is_pressed = False
        self._budget = budget
        self._queue_bytes_max = queue_bytes_max
        self._limits = limits
        self._compression = compression
        # With thousands of tables most are idle at any moment.
        self._writers: dict[TableName, TableWriter] = {}
        # Hashes of names: to count a table once, however often its writer was forgotten.
        self._seen: set[int] = set()
        self._full: set[TableName] = set()
        self._queues_have_room = asyncio.Event()
        self._queues_have_room.set()

    @property
    def table_count(self) -> int:
        """Tables seen since the start."""
        return len(self._seen)

    def waiting_bytes(self, table: TableName) -> int:
        """What the table's queue and its open chunk hold in memory."""
        writer = self._writers.get(table)
        return writer.open_bytes + writer.queue.size_bytes if writer is not None else 0

    @property
    def held_bytes(self) -> int:
        """Bytes that are charged to the memory budget."""
        return self._budget.used_bytes

    def route(self, intake: Intake, now: float) -> None:
        """Take every batch of `intake`, which came at `now` (seconds of the event loop)."""
        came_at = now - intake.held_seconds
        for batch in intake.batches:
            writer = self._writers.get(batch.table) or self._new_writer(batch.table)
            writer.put(batch, came_at)
            if writer.sealed:
                self._on_cut()
            if writer.queue or self._full:
                self._note_room(writer)
                self._note_hurry(writer)

    def _new_writer(self, table: TableName) -> TableWriter:
        writer = self._writers[table] = TableWriter(
            table,
            queue_bytes_max=self._queue_bytes_max,
            limits=self._limits,
            compression=self._compression,
            budget=self._budget,
        )
        self._seen.add(hash(table))
        return writer

    def _note_room(self, writer: TableWriter) -> None:
        if writer.queue.is_full:
            self._full.add(writer.table)
        else:
            self._full.discard(writer.table)
        if self._full:
            self._queues_have_room.clear()
        else:
            self._queues_have_room.set()

    def _note_hurry(self, writer: TableWriter) -> None:
        if writer.queue and writer.sealed:
            self._on_waiting()

    @property
    def has_room(self) -> bool:
        """Whether the reader may read without waiting."""
        return not self._full and not self._budget.is_full

    async def room(self) -> None:
        """Wait for room in the budget and in every queue. Cancellation changes nothing."""
        while not self.has_room:
            self.is_pressed = True
            if self._budget.is_full:
                self._on_waiting()
            self._on_cut()
            await self._queues_have_room.wait()
            await self._budget.room()
        self.is_pressed = False

    def published(self, table: TableName, size_bytes: int) -> None:
        """An object of `size_bytes` is visible: its bytes are free, its table may go on."""
        self._budget.charge(-size_bytes)
        writer = self._writers[table]
        writer.published()
        self._note_room(writer)
        if writer.sealed:
            self._on_cut()
            self._note_hurry(writer)
        if writer.is_idle:
            del self._writers[table]

    def due(self, until: float | None) -> list[TableWriter]:
        """The writers whose open chunk reaches its age by `until`; None: all that hold anything."""
        writers = self._writers.values()
        if until is None:
            return list(writers)
        return [
            writer
            for writer in writers
            if (due_at := writer.due_at) is not None and due_at <= until
        ]

    @property
    def earliest_due(self) -> float | None:
        """When the first open chunk reaches its age, in the event loop's seconds."""
        times = [writer.due_at for writer in self._writers.values()]
        return min([due_at for due_at in times if due_at is not None], default=None)

    def cut(self, writers: Iterable[TableWriter], reason: CutReason) -> None:
        """Cut the open chunks of `writers`; batches that wait begin the next ones."""
        for writer in writers:
            writer.cut(reason)
            writer.pump()

    def cut_largest(self) -> None:
        """Where the budget is full, cut the largest open chunks, until half of it is on its way.

        If only a queue is full, nothing is cut: that queue waits for its own table's objects.
        """
        if not self._budget.is_full:
            return
        holders = sorted(self._writers.values(), key=lambda writer: writer.open_bytes, reverse=True)
        waiting = sum(writer.open_bytes + writer.queue.size_bytes for writer in holders)
        wanted = self._budget.limit_bytes // 2 - (self._budget.used_bytes - waiting)
        for writer in holders:
            if wanted <= 0 or not writer.open_bytes:
                return
            wanted -= writer.open_bytes
            self.cut((writer,), "memory")

    def take_sealed(self) -> list[SealedChunk]:
        """All chunks cut since the last call; each table's in order."""
        chunks: list[SealedChunk] = []
        for writer in self._writers.values():
            if writer.sealed:
                chunks.extend(writer.take_sealed())
        return chunks
