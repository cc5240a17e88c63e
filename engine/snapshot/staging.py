"""Staging: one range of a snapshot becomes objects that are in the bucket and not yet visible.

Strategy: a worker is told everything that its objects follow from, reads its rows as batches, and
compresses them as they come. Compressed bytes leave in parts of an upload of its own. One part is
sent while the rows of the next one are read. So memory is bounded by two parts and not by the
object, and neither the source nor the bucket waits for the other. A request that got no usable
answer is made again some times, because one part is less than all the rows that were read for the
range. What it returns names the upload. A worker that dies, comes back late, or does what another
one does too costs storage until its upload is aborted, and nothing else.

Invariant: a worker completes no upload and knows no journal. Two uploads never have the same nonce.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
from isal import isal_zlib

from engine.flow.chunk import ChunkBuilder, SealedChunk, crc32_text
from engine.journal.retry import Failure, Patience
from engine.model.batch import Batch, operations_named
from engine.model.errors import first_cause
from engine.model.interfaces import ObjectStore
from engine.model.layout import TableLayout
from engine.model.position import NOWHERE, LogPosition, Position
from engine.model.record import Compression
from engine.model.record import Layout as LayoutStyle
from engine.model.schema import TableName
from engine.model.staged_object import StagedObject, staged_metadata
from engine.model.staging import StagedPart

PART_BYTES = 16 * 1024 * 1024
"""A part is sent when so much is compressed. S3 takes none below 5 MiB but an upload's last one."""

ATTEMPTS_MAX: Final = 8
"""Attempts at one request. The pauses between them are 7 to 8 s together. Nobody reads meanwhile,
and a range that stands still for a minute is given to another worker."""

_RECORDS = "application/x-ndjson"


class StagingTask(msgspec.Struct, frozen=True):
    """One range of one attempt: what its objects follow from beside its rows.

    `point` is the attempt's: the rows are those before it. An object is cut when it has
    `bytes_max` compressed bytes. `prefix`, `database` and `layout` say where objects lie.
    """

    table: TableName
    attempt: int
    range_number: int
    point: LogPosition
    version: int
    hour: str
    codec: int
    compression: Compression
    layout: LayoutStyle
    prefix: str
    database: str
    writer: str
    bytes_max: int


async def stage(
    store: ObjectStore,
    task: StagingTask,
    batches: AsyncIterator[Batch],
    *,
    make_nonce: Callable[[], str],
    part_bytes: int = PART_BYTES,
) -> tuple[StagedObject, ...]:
    """Stage the objects of a range and return them in order; of no rows there is none.

    `batches` are the range's rows in order, under the task's version. The next ones are asked for
    while a part is sent: one at a time. Raises DestinationUnavailable where `ATTEMPTS_MAX` of a
    request had no usable answer, UploadGone where somebody aborted the upload: the range is to be
    staged anew.
    Cancellation, like any error, ends what is being sent. It leaves uploads that no entry will
    name: whoever ends the attempt aborts them.
    """
    patience = Patience(_unsaid, attempts_max=ATTEMPTS_MAX)
    try:
        async with asyncio.TaskGroup() as sending:
            begin = _Beginning(store, patience, task, make_nonce, part_bytes, sending)
            return await _stage_all(begin, batches)
    except BaseExceptionGroup as group:
        own = asyncio.current_task()
        if own is not None and own.cancelling():
            raise asyncio.CancelledError from group
        cause = first_cause(group)
        raise cause from cause.__cause__


def _unsaid(_: Failure) -> None:
    """Nobody is told of a failure that is made good. The last one is raised."""


async def _stage_all(
    begin: "_Beginning", batches: AsyncIterator[Batch]
) -> tuple[StagedObject, ...]:
    staged: list[StagedObject] = []
    writing: _Writing | None = None
    async for batch in batches:
        if writing is None:
            previous = staged[-1].last if staged else NOWHERE
            writing = await begin.object(batch, previous)
        else:
            await writing.add(batch)
        if writing.size_bytes >= begin.task.bytes_max:
            staged.append(await writing.end())
            writing = None
    if writing is not None:
        staged.append(await writing.end())
    return tuple(staged)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What every object of a range begins with. Its parts are sent by tasks of `sending`."""

    store: ObjectStore
    patience: Patience
    task: StagingTask
    make_nonce: Callable[[], str]
    part_bytes: int
    sending: asyncio.TaskGroup

    async def object(self, batch: Batch, previous: Position) -> "_Writing":
        """Begin the object whose first rows are `batch`; `previous` is the last one's end."""
        task, nonce = self.task, self.make_nonce()
        layout = TableLayout(task.prefix, task.database, task.layout)
        key = layout.object_key(task.table, task.version, task.hour, batch.first, task.compression)
        metadata = staged_metadata(
            first=batch.first,
            version=task.version,
            codec=task.codec,
            attempt=task.attempt,
            nonce=nonce,
        )
        # One whose answer was lost has no part. It is aborted at the attempt's end.
        upload_id = await self.patience.answered(
            lambda: self.store.begin_upload(
                key, content_type=_RECORDS, metadata={**metadata, "writer": task.writer}
            )
        )
        builder = ChunkBuilder(batch, task.compression, 0.0)
        return _Writing(self, key, previous, nonce, upload_id, builder)


@dataclass(slots=True)
class _Writing:
    """One object on its way into the bucket. `sent`: the part that leaves now, if any."""

    begun: _Beginning
    key: str
    previous: Position
    nonce: str
    upload_id: str
    builder: ChunkBuilder
    parts: list[StagedPart] = field(default_factory=list)
    sent: asyncio.Task[StagedPart] | None = None
    taken_bytes: int = 0
    crc: int = 0

    @property
    def size_bytes(self) -> int:
        """Compressed bytes so far."""
        return self.taken_bytes + self.builder.compressed_bytes

    async def add(self, batch: Batch) -> None:
        self.builder.add(batch)
        if self.builder.compressed_bytes >= self.begun.part_bytes:
            await self._arrived()
            self._send(self.builder.take_compressed())

    async def end(self) -> StagedObject:
        chunk = self.builder.seal("size")
        await self._arrived()
        self._send(chunk.body.whole())
        await self._arrived()
        return self._staged(chunk)

    async def _arrived(self) -> None:
        """Wait for the part that is being sent. Only then another one's bytes are joined."""
        if self.sent is not None:
            self.parts.append(await self.sent)
            self.sent = None

    def _send(self, body: bytes) -> None:
        assert self.sent is None
        self.crc = isal_zlib.crc32(body, self.crc)
        self.taken_bytes += len(body)
        number = len(self.parts) + 1
        begun = self.begun
        # S3 keeps the last one of a number, and all are the same bytes.
        self.sent = begun.sending.create_task(
            begun.patience.answered(
                lambda: begun.store.put_part(self.key, self.upload_id, number, body)
            )
        )

    def _staged(self, chunk: SealedChunk) -> StagedObject:
        return StagedObject(
            range_number=self.begun.task.range_number,
            key=self.key,
            previous=self.previous,
            first=chunk.first,
            last=chunk.last,
            rows=chunk.row_count,
            ops=operations_named(chunk.operations),
            codec=self.begun.task.codec,
            raw_bytes=chunk.raw_bytes,
            raw_crc32=crc32_text(chunk.raw_crc32),
            size_bytes=self.taken_bytes,
            crc32=crc32_text(self.crc),
            nonce=self.nonce,
            upload_id=self.upload_id,
            parts=tuple(self.parts),
        )
