"""Chunks: what goes in comes out, whatever the pieces; and when they are cut."""

import random
import zlib
from itertools import pairwise

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from engine.flow.chunk import (
    LARGE_BYTES,
    PIECE_BYTES_MAX,
    PIECE_BYTES_MIN,
    ZSTD_STATE_BYTES,
    ChunkBuilder,
    ChunkLimits,
    compressed_apart,
    crc32_text,
    is_large,
)
from engine.model.batch import Batch, Operations
from engine.model.position import Position, make_position
from engine.model.record import Compression
from engine.model.schema import TableName

ORDERS = TableName("public", "orders")
HOUR_US = 3_600_000_000
NOON_US = 1_795_348_800_000_000
LIMITS = ChunkLimits(bytes_max=1000, rows_max=10, age_seconds_max=30.0)


def at(n: int) -> Position:
    return make_position(1, n, n, 0)


def batch(
    lines: bytes = b"{}\n",
    *,
    n: int = 1,
    rows: int = 1,
    version: int = 1,
    first_us: int = NOON_US,
    last_us: int | None = None,
) -> Batch:
    return Batch(
        ORDERS,
        version,
        lines,
        rows,
        Operations(c=rows),
        at(n),
        at(n + rows - 1),
        first_us,
        first_us if last_us is None else last_us,
    )


def decompressed(body: bytes, compression: Compression) -> bytes:
    if compression == "gzip":
        # One member and nothing behind it: not every reader goes on with a second one.
        stream = zlib.decompressobj(31)
        lines = stream.decompress(body)
        assert stream.eof
        assert stream.unused_data == b""
        return lines
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@given(pieces=st.lists(st.binary(max_size=40_000), min_size=1, max_size=12))
def test_the_lines_come_out_whatever_the_pieces(
    compression: Compression, pieces: list[bytes]
) -> None:
    builder = ChunkBuilder(batch(pieces[0]), compression, 0.0)
    for n, piece in enumerate(pieces[1:], start=2):
        builder.add(batch(piece, n=n))

    chunk = builder.seal("size")

    lines = b"".join(pieces)
    assert decompressed(chunk.body.whole(), compression) == lines
    assert chunk.raw_bytes == len(lines)
    assert chunk.raw_crc32 == zlib.crc32(lines)


def test_length_and_crc_do_not_depend_on_how_lines_were_fed() -> None:
    lines = noise(300_000)
    whole = ChunkBuilder(batch(lines), "gzip", 0.0).seal("size")
    builder = ChunkBuilder(batch(lines[:1000]), "gzip", 0.0)
    for begin in range(1000, len(lines), 1000):
        builder.add(batch(lines[begin : begin + 1000], n=begin))

    pieces = builder.seal("size")

    assert (pieces.raw_bytes, pieces.raw_crc32) == (whole.raw_bytes, whole.raw_crc32)


def test_a_sealed_chunk_tells_what_was_put_in() -> None:
    builder = ChunkBuilder(
        batch(n=5, rows=2, first_us=NOON_US + 1, last_us=NOON_US + 2), "gzip", 0.0
    )
    builder.add(batch(n=9, rows=3, version=1, first_us=NOON_US + 3, last_us=NOON_US + 4))

    chunk = builder.seal("age")

    assert (chunk.table, chunk.version, chunk.reason) == (ORDERS, 1, "age")
    assert (chunk.first, chunk.last) == (at(5), at(11))
    assert (chunk.row_count, chunk.operations) == (5, Operations(c=5))
    assert (chunk.first_commit_us, chunk.last_commit_us) == (NOON_US + 1, NOON_US + 4)


@pytest.mark.parametrize(("compression", "state_bytes"), [("gzip", 0), ("zstd", ZSTD_STATE_BYTES)])
def test_a_small_chunk_stays_raw_until_it_is_worth_a_piece(
    compression: Compression, state_bytes: int
) -> None:
    builder = ChunkBuilder(batch(b"x" * (PIECE_BYTES_MIN - 1)), compression, 0.0)
    raw = builder.held_bytes

    builder.add(batch(b"x", n=2))

    assert raw == PIECE_BYTES_MIN - 1
    assert state_bytes <= builder.held_bytes < state_bytes + 100


def test_pieces_grow_with_the_chunk_and_bound_what_is_held_raw() -> None:
    builder = ChunkBuilder(batch(b"x" * 1024), "gzip", 0.0)
    held = [builder.held_bytes]
    for n in range(2, 2_000):
        builder.add(batch(b"x" * 1024, n=n))
        held.append(builder.held_bytes)

    compressed_at = [n for n, (a, b) in enumerate(pairwise(held)) if b < a]
    lengths = [b - a for a, b in pairwise(compressed_at)]
    assert lengths == sorted(lengths)
    assert lengths[0] <= PIECE_BYTES_MIN // 1024
    assert lengths[-1] == PIECE_BYTES_MAX // 1024


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_what_cannot_be_compressed_is_counted_as_it_is(compression: Compression) -> None:
    lines = noise(1_000_000)

    builder = ChunkBuilder(batch(lines), compression, 0.0)

    # The compressor may still hold its window.
    assert 1_000_000 - 200_000 < builder.held_bytes < 1_000_000 + 2 * ZSTD_STATE_BYTES


def test_a_chunk_is_full_by_compressed_bytes_not_by_raw_ones() -> None:
    limits = ChunkLimits(bytes_max=100_000, rows_max=10**9, age_seconds_max=30.0)
    builder = ChunkBuilder(batch(b"x" * 1_000_000), "gzip", 0.0)
    before = builder.is_full(limits)

    builder.add(batch(noise(400_000), n=2))

    assert before is None
    assert builder.is_full(limits) == "size"


def test_a_chunk_is_full_by_rows() -> None:
    builder = ChunkBuilder(batch(rows=9), "gzip", 0.0)
    before = builder.is_full(LIMITS)

    builder.add(batch(n=20))

    assert before is None
    assert builder.is_full(LIMITS) == "rows"


def test_a_batch_that_would_be_too_many_rows_needs_a_chunk_of_its_own() -> None:
    builder = ChunkBuilder(batch(rows=9), "gzip", 0.0)

    assert builder.takes(batch(n=20), LIMITS) is None
    assert builder.takes(batch(n=20, rows=2), LIMITS) == "rows"


def test_another_version_needs_a_chunk_of_its_own() -> None:
    builder = ChunkBuilder(batch(), "gzip", 0.0)

    assert builder.takes(batch(n=2), LIMITS) is None
    assert builder.takes(batch(n=2, version=2), LIMITS) == "version"


def test_a_later_hour_needs_a_chunk_of_its_own_and_an_earlier_one_does_not() -> None:
    builder = ChunkBuilder(batch(first_us=NOON_US + HOUR_US - 1), "gzip", 0.0)

    assert builder.takes(batch(n=2, first_us=NOON_US + HOUR_US), LIMITS) == "hour"
    # Commit times may go back a little: concurrent backends.
    assert builder.takes(batch(n=2, first_us=NOON_US - 1), LIMITS) is None


def test_an_age_is_counted_from_the_first_batch() -> None:
    builder = ChunkBuilder(batch(), "gzip", 12.5)

    builder.add(batch(n=2))

    assert builder.opened_at == 12.5


def test_a_checksum_is_written_with_eight_digits() -> None:
    assert crc32_text(zlib.crc32(b"")) == "00000000"
    assert crc32_text(zlib.crc32(b"123456789")) == "cbf43926"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_what_was_compressed_apart_lies_between_its_neighbours(compression: Compression) -> None:
    """In the middle of a chunk, and as its first batch; zstd has no pieces that stand alone."""
    large = batch(b"x" * LARGE_BYTES + b"\n", n=2)
    first, last = batch(b"first\n"), batch(b"last\n", n=3)

    for batches in ((first, large, last), (large, last), (large,)):
        wanted = b"".join(one.lines for one in batches)
        apart = [compressed_apart(b) if is_large(b, compression) else b for b in batches]
        assert any(one.pieces for one in apart) == (compression == "gzip")
        builder = ChunkBuilder(apart[0], compression, 0.0)
        for following in apart[1:]:
            builder.add(following)
        chunk = builder.seal("age")

        assert decompressed(chunk.body.whole(), compression) == wanted
        assert (chunk.raw_bytes, chunk.raw_crc32) == (len(wanted), zlib.crc32(wanted))
        assert chunk.row_count == len(batches)
