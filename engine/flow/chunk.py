"""Chunks: one table's records, compressed as they come, until they are cut into an object.

Strategy: lines are compressed in pieces, each by a compressor of its own. So an open chunk holds no
compressor. One that is open for 30 s would keep 114 KB (measured, isal at level 1), and there may
be thousands of tables. Each piece begins without the text before it, so a small piece compresses
worse: 16 KiB alone compress to an eighth, 256 KiB to a ninth and more. Therefore pieces grow with
the chunk. Deflate allows pieces: a piece ends at a byte's end (a sync flush), the next one goes on,
and all are one stream of one gzip member.

A chunk has one version and begins in one hour. The length and the CRC32 that the journal names are
those of the uncompressed lines, because compressed bytes depend on how the lines were fed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Literal, Protocol

import zstandard
from isal import isal_zlib
from msgspec.structs import replace

from engine.model.batch import Batch, Operations
from engine.model.layout import next_hour_us
from engine.model.position import Position
from engine.model.record import Compression
from engine.model.schema import TableName

PIECE_BYTES_MIN = 16 * 1024
PIECE_BYTES_MAX = 256 * 1024
# Small pieces live for seconds, and the lines around them only for a moment. Such pieces would
# leave holes in memory.
PART_BYTES = 512 * 1024
# A compressor gets no more than this at once, because the output of one call grows by doubling.
FEED_BYTES = 1024 * 1024
LARGE_BYTES = 2 * 1024 * 1024
"""From this size on, compressing takes 10 ms or more (measured), which is work for a thread."""

# So much memory is kept by a compressor that stays open (measured, zstandard at level 1 after 80
# KB).
ZSTD_STATE_BYTES = 175_000
GZIP_LEVEL = 1
ZSTD_LEVEL = 1
_RAW_DEFLATE_WINDOW_BITS = -15

# RFC 1952: no name, no time, "fastest", an unknown system.
_GZIP_HEADER = bytes((0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 4, 255))
_GZIP_TRAILER = Struct("<II")
# RFC 1951: a last block with nothing in it.
_DEFLATE_END = b"\x03\x00"

CutReason = Literal["size", "rows", "age", "hour", "version", "memory", "drain"]


class _Compressor(Protocol):
    """Makes one object's body of pieces. `state_bytes`: what it keeps between two of them."""

    header: bytes
    state_bytes: int

    def piece(self, raw: list[bytes]) -> list[bytes]: ...
    def end(self, raw_bytes: int, crc: int) -> bytes: ...


class _Gzip:
    header = _GZIP_HEADER
    state_bytes = 0

    def piece(self, raw: list[bytes]) -> list[bytes]:
        stream = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, _RAW_DEFLATE_WINDOW_BITS)
        return [*map(stream.compress, _fed(raw)), stream.flush(isal_zlib.Z_SYNC_FLUSH)]

    def end(self, raw_bytes: int, crc: int) -> bytes:
        # The trailer's CRC32 is the one that the journal names: it need not be computed twice.
        return _DEFLATE_END + _GZIP_TRAILER.pack(crc, raw_bytes & 0xFFFFFFFF)


class _Zstd:
    # zstd is not compressed in pieces, because not every reader goes on behind a frame's end.
    header = b""
    state_bytes = ZSTD_STATE_BYTES

    def __init__(self) -> None:
        self._stream = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()

    def piece(self, raw: list[bytes]) -> list[bytes]:
        return [*map(self._stream.compress, _fed(raw))]

    def end(self, raw_bytes: int, crc: int) -> bytes:
        del raw_bytes, crc
        return self._stream.flush()


def _fed(raw: list[bytes]) -> Iterator[bytes | memoryview]:
    for lines in raw:
        if len(lines) <= FEED_BYTES:
            yield lines
        else:
            whole = memoryview(lines)
            for begin in range(0, len(lines), FEED_BYTES):
                yield whole[begin : begin + FEED_BYTES]


def _new_compressor(compression: Compression) -> _Compressor:
    return _Gzip() if compression == "gzip" else _Zstd()


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """When a chunk is cut: compressed bytes, rows, seconds since its first batch came.

    A batch is never split: a chunk has more than `rows_max` rows only where one batch has.
    """

    bytes_max: int
    rows_max: int
    age_seconds_max: float


class Body:
    """An object's bytes, in the parts in which they came, until somebody asks for the whole.

    `len` is the number of bytes. Joining 16 MiB takes 9 ms (measured), which is enough for a
    thread. From a MiB on, CPython does not hold its lock meanwhile.
    """

    __slots__ = ("_parts", "_size_bytes")

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts
        self._size_bytes = sum(map(len, parts))

    def __len__(self) -> int:
        return self._size_bytes

    def whole(self) -> bytes:
        """All of them; the parts are let go."""
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0]


@dataclass(frozen=True, slots=True)
class SealedChunk:
    """A chunk that takes no more rows: what a plan and an object are made from."""

    table: TableName
    version: int
    body: Body
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
        "_piece_bytes",
        "_pieces",
        "_pieces_bytes",
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
        # The batch itself is not kept, because it would keep its lines.
        self._table = batch.table
        self._version = batch.version
        self._first_position = batch.first
        self._first_commit_us = batch.first_commit_us
        self._next_hour_us = next_hour_us(batch.first_commit_us)
        self._operations = Operations()
        self._raw: list[bytes] = []
        self._raw_held = 0
        self._piece_bytes = PIECE_BYTES_MIN
        self._compressor: _Compressor | None = None
        self._parts: list[bytes] = []
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._compressed_bytes = 0
        self._raw_bytes = 0
        self._crc = 0
        self.add(batch)

    def takes(self, batch: Batch, limits: ChunkLimits) -> CutReason | None:
        """Why `batch` needs a chunk of its own, or None when it belongs into this one."""
        if self.row_count + batch.row_count > limits.rows_max:
            return "rows"
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
        if batch.pieces:
            if self._raw:
                self._compress()
            self._keep_all(batch.pieces, self._opened())
            return
        self._raw.append(lines)
        self._raw_held += len(lines)
        if self._raw_held >= self._piece_bytes:
            self._compress()
        else:
            self.held_bytes += len(lines)

    @property
    def compressed_bytes(self) -> int:
        """How much of the body is there: what was taken counts no more."""
        return self._compressed_bytes

    def take_compressed(self) -> bytes:
        """Hand over what is compressed so far. The body that `seal` gives is the rest."""
        self._join_pieces()
        body, self._parts = b"".join(self._parts), []
        self.held_bytes -= len(body)
        self._compressed_bytes = 0
        return body

    def is_full(self, limits: ChunkLimits) -> CutReason | None:
        """Why the chunk takes no more rows, or None."""
        if self._compressed_bytes >= limits.bytes_max:
            return "size"
        if self.row_count >= limits.rows_max:
            return "rows"
        return None

    def seal(self, reason: CutReason) -> SealedChunk:
        """Close the chunk. The builder must not be used afterwards."""
        if self._raw:
            self._compress()
        assert self._compressor is not None
        self._pieces.append(self._compressor.end(self._raw_bytes, self._crc))
        self._join_pieces()
        return SealedChunk(
            table=self._table,
            version=self._version,
            body=Body(self._parts),
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
        compressor = self._opened()
        self._keep_all(compressor.piece(self._raw), compressor)
        self._raw.clear()
        self._raw_held = 0

    def _opened(self) -> _Compressor:
        if self._compressor is None:
            self._compressor = _new_compressor(self._compression)
            self._keep(self._compressor.header)
        return self._compressor

    def _keep_all(self, parts: Iterable[bytes], compressor: _Compressor) -> None:
        for part in parts:
            self._keep(part)
        self._piece_bytes = min(max(self._raw_bytes // 2, PIECE_BYTES_MIN), PIECE_BYTES_MAX)
        self.held_bytes = self._compressed_bytes + compressor.state_bytes

    def _keep(self, part: bytes) -> None:
        if not part:
            return
        self._pieces.append(part)
        self._pieces_bytes += len(part)
        self._compressed_bytes += len(part)
        if self._pieces_bytes >= PART_BYTES:
            self._join_pieces()

    def _join_pieces(self) -> None:
        self._parts.append(b"".join(self._pieces))
        self._pieces.clear()
        self._pieces_bytes = 0


def empty_body(compression: Compression) -> bytes:
    """A whole compressed stream with no line in it."""
    compressor = _new_compressor(compression)
    return compressor.header + compressor.end(0, 0)


def is_large(batch: Batch, compression: Compression) -> bool:
    """Whether `compressed_apart` is to be called for it. What zstd makes has no pieces."""
    return len(batch.lines) >= LARGE_BYTES and compression == "gzip"


def compressed_apart(batch: Batch) -> Batch:
    """A large batch with its lines compressed to a piece of gzip: work for a thread."""
    return replace(batch, pieces=tuple(_Gzip().piece([batch.lines])))


def crc32_text(value: int) -> str:
    """A CRC32 as the journal and the metadata write it: eight hexadecimal digits."""
    return f"{value & 0xFFFFFFFF:08x}"
