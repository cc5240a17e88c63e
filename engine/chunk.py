"""Chunks: one table's records, compressed as they come, until they are cut into an object.

Strategy: a small chunk stays raw, since an idle compressor costs 35 KB and there may be thousands
of tables; from `RAW_BYTES_MAX` on it is fed to a compressor as batches come. A chunk has one
version and begins in one hour. The length and the CRC32 that the journal names are those of the
uncompressed lines: compressed bytes depend on how they were fed.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Literal, Protocol

import zstandard
from isal import isal_zlib

from engine.batch import Batch, Operations
from engine.envelope import Compression
from engine.layout import next_hour_us
from engine.position import Position
from engine.schema import TableName

RAW_BYTES_MAX = 64 * 1024
# An open compressor's own memory, counted with the chunk: measured 35 KB for isal at level 1.
COMPRESSOR_BYTES = 35_000
GZIP_LEVEL = 1
ZSTD_LEVEL = 1
_RAW_DEFLATE_WINDOW_BITS = -15

# RFC 1952: no name, no time, "fastest", an unknown system. Whoever wrote it, a member begins alike.
_GZIP_HEADER = bytes((0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 4, 255))
_GZIP_TRAILER = Struct("<II")

CutReason = Literal["size", "rows", "age", "hour", "version", "memory", "drain"]


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _new_compressor(compression: Compression) -> _Compressor:
    if compression == "gzip":
        # Without gzip's own frame: the CRC32 in its trailer is the one that the journal names, and
        # need not be computed twice.
        return isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, _RAW_DEFLATE_WINDOW_BITS)
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """When a chunk is cut: compressed bytes, rows, seconds since its first batch came."""

    bytes_max: int
    rows_max: int
    age_seconds_max: float


@dataclass(frozen=True, slots=True)
class SealedChunk:
    """A chunk that takes no more rows: what a plan and an object are made from."""

    table: TableName
    version: int
    body: bytes
    row_count: int
    operations: Operations
    first: Position
    last: Position
    first_commit_us: int
    last_commit_us: int
    raw_bytes: int
    raw_crc32: int
    reason: CutReason


class ChunkBuilder:
    """An open chunk: at least one batch, all of one table and version.

    `held_bytes` is what it keeps in memory now.
    """

    __slots__ = (
        "_compressed_bytes",
        "_compression",
        "_compressor",
        "_crc",
        "_first_commit_us",
        "_first_position",
        "_last_commit_us",
        "_last_position",
        "_next_hour_us",
        "_operations",
        "_parts",
        "_raw",
        "_raw_bytes",
        "_raw_held",
        "_table",
        "_version",
        "held_bytes",
        "opened_at",
        "row_count",
    )

    def __init__(self, batch: Batch, compression: Compression, now: float) -> None:
        """Open a chunk with its first batch, which came at `now` (seconds, any monotonic clock)."""
        self.opened_at = now
        self.row_count = 0
        self.held_bytes = 0
        self._compression = compression
        # Not the batch: it would keep its lines.
        self._table = batch.table
        self._version = batch.version
        self._first_position = batch.first
        self._first_commit_us = batch.first_commit_us
        self._next_hour_us = next_hour_us(batch.first_commit_us)
        self._operations = Operations()
        self._raw: list[bytes] = []
        self._raw_held = 0
        self._compressor: _Compressor | None = None
        self._parts: list[bytes] = []
        self._compressed_bytes = 0
        self._raw_bytes = 0
        self._crc = 0
        self.add(batch)

    def takes(self, batch: Batch) -> CutReason | None:
        """Why `batch` needs a chunk of its own, or None when it belongs into this one."""
        if batch.version != self._version:
            return "version"
        if batch.first_commit_us >= self._next_hour_us:
            return "hour"
        return None

    def add(self, batch: Batch) -> None:
        """Append a batch that follows the last one."""
        lines = batch.lines
        self._last_position = batch.last
        self._last_commit_us = batch.last_commit_us
        self.row_count += batch.row_count
        self._operations = self._operations.plus(batch.operations)
        self._raw_bytes += len(lines)
        self._crc = isal_zlib.crc32(lines, self._crc)
        self._raw.append(lines)
        self._raw_held += len(lines)
        if self._compressor is not None or self._raw_held > RAW_BYTES_MAX:
            self._compress()
        else:
            self.held_bytes = self._raw_held

    def is_full(self, limits: ChunkLimits) -> CutReason | None:
        """Why the chunk takes no more rows, or None."""
        if self._compressed_bytes >= limits.bytes_max:
            return "size"
        if self.row_count >= limits.rows_max:
            return "rows"
        return None

    def seal(self, reason: CutReason) -> SealedChunk:
        """Close the chunk. The builder must not be used afterwards."""
        self._compress()
        assert self._compressor is not None
        self._parts.append(self._compressor.flush())
        if self._compression == "gzip":
            self._parts.append(_GZIP_TRAILER.pack(self._crc, self._raw_bytes & 0xFFFFFFFF))
        return SealedChunk(
            table=self._table,
            version=self._version,
            body=b"".join(self._parts),
            row_count=self.row_count,
            operations=self._operations,
            first=self._first_position,
            last=self._last_position,
            first_commit_us=self._first_commit_us,
            last_commit_us=self._last_commit_us,
            raw_bytes=self._raw_bytes,
            raw_crc32=self._crc,
            reason=reason,
        )

    def _compress(self) -> None:
        if self._compressor is None:
            self._compressor = _new_compressor(self._compression)
            if self._compression == "gzip":
                self._parts.append(_GZIP_HEADER)
                self._compressed_bytes += len(_GZIP_HEADER)
        for lines in self._raw:
            part = self._compressor.compress(lines)
            if part:
                self._parts.append(part)
                self._compressed_bytes += len(part)
        self._raw.clear()
        self._raw_held = 0
        self.held_bytes = self._compressed_bytes + COMPRESSOR_BYTES


def crc32_text(value: int) -> str:
    """A CRC32 as the journal and the metadata write it: eight hexadecimal digits."""
    return f"{value & 0xFFFFFFFF:08x}"
