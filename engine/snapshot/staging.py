"""Staging: one range of a snapshot becomes objects that are in the bucket and not yet visible.

Strategy: a worker is told everything that its objects follow from, reads its rows as batches, and
compresses them as they come. Compressed bytes leave in parts of an upload of its own, so that
memory is bounded by a part and not by the object. What it returns names the upload. A worker that
dies, comes back late, or does what another one does too costs storage until its upload is aborted,
and nothing else.

Invariant: a worker completes no upload and knows no journal. Two uploads never have the same nonce.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import msgspec
from isal import isal_zlib

from engine.flow.chunk import ChunkBuilder, SealedChunk, crc32_text
from engine.model.batch import Batch, operations_named
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

    `batches` are the range's rows in order, under the task's version. Raises
    DestinationUnavailable where a request had no usable answer, UploadGone where somebody aborted
    the upload: the range is to be staged anew. Cancellation, like any error, leaves uploads that no
    entry will name: whoever ends the attempt aborts them.
    """
    staged: list[StagedObject] = []
    writing: _Writing | None = None
    async for batch in batches:
        if writing is None:
            previous = staged[-1].last if staged else NOWHERE
            writing = await _Writing.begin(
                store, task, batch, previous=previous, nonce=make_nonce(), part_bytes=part_bytes
            )
        else:
            await writing.add(batch)
        if writing.size_bytes >= task.bytes_max:
            staged.append(await writing.end())
            writing = None
    if writing is not None:
        staged.append(await writing.end())
    return tuple(staged)


@dataclass(slots=True)
class _Writing:
    """One object on its way into the bucket."""

    store: ObjectStore
    task: StagingTask
    key: str
    previous: Position
    nonce: str
    upload_id: str
    builder: ChunkBuilder
    part_bytes: int
    parts: list[StagedPart]
    taken_bytes: int = 0
    crc: int = 0

    @classmethod
    async def begin(
        cls,
        store: ObjectStore,
        task: StagingTask,
        batch: Batch,
        *,
        previous: Position,
        nonce: str,
        part_bytes: int,
    ) -> "_Writing":
        layout = TableLayout(task.prefix, task.database, task.layout)
        key = layout.object_key(task.table, task.version, task.hour, batch.first, task.compression)
        metadata = staged_metadata(
            first=batch.first,
            version=task.version,
            codec=task.codec,
            attempt=task.attempt,
            nonce=nonce,
        )
        upload_id = await store.begin_upload(
            key, content_type=_RECORDS, metadata={**metadata, "writer": task.writer}
        )
        builder = ChunkBuilder(batch, task.compression, 0.0)
        return cls(store, task, key, previous, nonce, upload_id, builder, part_bytes, [])

    @property
    def size_bytes(self) -> int:
        """Compressed bytes so far."""
        return self.taken_bytes + self.builder.compressed_bytes

    async def add(self, batch: Batch) -> None:
        self.builder.add(batch)
        if self.builder.compressed_bytes >= self.part_bytes:
            await self._put(self.builder.take_compressed())

    async def _put(self, body: bytes) -> None:
        self.crc = isal_zlib.crc32(body, self.crc)
        self.taken_bytes += len(body)
        number = len(self.parts) + 1
        self.parts.append(await self.store.put_part(self.key, self.upload_id, number, body))

    async def end(self) -> StagedObject:
        chunk = self.builder.seal("size")
        await self._put(chunk.body.whole())
        return self._staged(chunk)

    def _staged(self, chunk: SealedChunk) -> StagedObject:
        return StagedObject(
            range_number=self.task.range_number,
            key=self.key,
            previous=self.previous,
            first=chunk.first,
            last=chunk.last,
            rows=chunk.row_count,
            ops=operations_named(chunk.operations),
            codec=self.task.codec,
            raw_bytes=chunk.raw_bytes,
            raw_crc32=crc32_text(chunk.raw_crc32),
            size_bytes=self.taken_bytes,
            crc32=crc32_text(self.crc),
            nonce=self.nonce,
            upload_id=self.upload_id,
            parts=tuple(self.parts),
        )
