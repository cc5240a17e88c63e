"""Chunks: one table's records, compressed as they come, until they are cut into an object.

Strategy: a small chunk stays raw, since an idle compressor costs 35 KB and there may be thousands
of tables; from `RAW_BYTES_MAX` on it is fed to a compressor as batches come. A chunk has one
version and begins in one hour. The length and the CRC32 that the journal names are those of the
uncompressed lines: compressed bytes depend on how they were fed.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import zstandard
from isal import isal_zlib

from engine.batch import Batch, Operations
from engine.envelope import Compression
from engine.layout import hour_number
from engine.position import Position
from engine.schema import TableName

RAW_BYTES_MAX = 64 * 1024
# An open compressor's own memory, counted with the chunk: measured 35 KB for isal at level 1.
COMPRESSOR_BYTES = 35_000
GZIP_LEVEL = 1
ZSTD_LEVEL = 1
_GZIP_WINDOW_BITS = 31

CutReason = Literal["size", "rows", "age", "hour", "version", "memory", "drain"]


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _new_compressor(compression: Compression) -> _Compressor:
    if compression == "gzip":
        return isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_WINDOW_BITS)
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

    def __init__(self, batch: Batch, compression: Compression, now: float) -> None:
        """Open a chunk with its first batch, which came at `now` (seconds, any monotonic clock)."""
        self.opened_at = now
        self.row_count = 0
        self._compression = compression
        self._first = batch
        self._last = batch
        self._operations = Operations()
        self._raw: list[bytes] = []
        self._raw_held = 0
        self._compressor: _Compressor | None = None
        self._parts: list[bytes] = []
        self._compressed_bytes = 0
        self._raw_bytes = 0
        self._crc = 0
        self.add(batch)

    @property
    def held_bytes(self) -> int:
        compressor_bytes = COMPRESSOR_BYTES if self._compressor is not None else 0
        return self._raw_held + self._compressed_bytes + compressor_bytes

    def takes(self, batch: Batch) -> CutReason | None:
        """Why `batch` needs a chunk of its own, or None when it belongs into this one."""
        if batch.version != self._first.version:
            return "version"
        if hour_number(batch.first_commit_us) > hour_number(self._first.first_commit_us):
            return "hour"
        return None

    def add(self, batch: Batch) -> None:
        """Append a batch that follows the last one."""
        self._last = batch
        self.row_count += batch.row_count
        self._operations = self._operations.plus(batch.operations)
        self._raw_bytes += len(batch.lines)
        self._crc = isal_zlib.crc32(batch.lines, self._crc)
        self._raw.append(batch.lines)
        self._raw_held += len(batch.lines)
        if self._compressor is not None or self._raw_held > RAW_BYTES_MAX:
            self._compress()

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
        first, last = self._first, self._last
        return SealedChunk(
            table=first.table,
            version=first.version,
            body=b"".join(self._parts),
            row_count=self.row_count,
            operations=self._operations,
            first=first.first,
            last=last.last,
            first_commit_us=first.first_commit_us,
            last_commit_us=last.last_commit_us,
            raw_bytes=self._raw_bytes,
            raw_crc32=self._crc,
            reason=reason,
        )

    def _compress(self) -> None:
        if self._compressor is None:
            self._compressor = _new_compressor(self._compression)
        for lines in self._raw:
            part = self._compressor.compress(lines)
            if part:
                self._parts.append(part)
                self._compressed_bytes += len(part)
        self._raw.clear()
        self._raw_held = 0


def crc32_text(value: int) -> str:
    """A CRC32 as the journal and the metadata write it: eight hexadecimal digits."""
    return f"{value & 0xFFFFFFFF:08x}"
