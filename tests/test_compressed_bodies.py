"""Bodies of objects, decompressed: in bounded pieces, whole, and nothing but one stream."""

import asyncio
import gzip
import mmap
import random
import zlib
from collections.abc import Callable

import pytest
import zstandard

from engine.flow.chunk import crc32_text
from engine.model.errors import DecodeError, ReadRefused
from engine.model.position import Position
from engine.reader.patience import answered
from engine.reader.table import compressed
from engine.reader.table.bodies import Bodies
from engine.reader.table.compressed import PIECE_BYTES, pieces_of
from engine.reader.table.kept import Kept
from engine.reader.table.steps import Step
from memory_store import MemoryStore

NOWHERE = Position("")
LINES = b"".join(b'{"id":%d}\n' % random.Random(3).getrandbits(200) for _ in range(9))


def with_checksum(lines: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(lines)


def of_unknown_size(lines: bytes) -> bytes:
    stream = zstandard.ZstdCompressor().compressobj()
    return (
        stream.compress(lines[:40]) + stream.flush(1) + stream.compress(lines[40:]) + stream.flush()
    )


codecs = pytest.mark.parametrize(
    ("compress", "is_zstd"),
    [
        (gzip.compress, False),
        (zstandard.compress, True),
        (with_checksum, True),
        (of_unknown_size, True),
    ],
)
Compress = Callable[[bytes], bytes]


def decompressed(content: bytes, *, is_zstd: bool) -> bytes | None:
    """The lines; None where this is not one whole stream."""
    pieces: list[bytes] = []
    some = pieces_of(content, is_zstd=is_zstd)
    while True:
        try:
            pieces.append(next(some))
        except StopIteration as end:
            return b"".join(pieces) if end.value else None


@codecs
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 20_000_000])
def test_no_piece_is_larger_however_well_a_body_is_compressed(
    compress: Compress, *, is_zstd: bool, size: int
) -> None:
    content = compress(bytes(size))

    pieces = [*pieces_of(content, is_zstd=is_zstd)]

    assert max(map(len, pieces), default=0) <= PIECE_BYTES
    assert b"".join(pieces) == bytes(size)


@codecs
def test_a_body_that_compresses_badly_comes_whole(compress: Compress, *, is_zstd: bool) -> None:
    lines = random.Random(5).randbytes(2 * PIECE_BYTES + 77)

    assert decompressed(compress(lines), is_zstd=is_zstd) == lines


@codecs
def test_pieces_of_any_size_are_all_of_it(
    compress: Compress, *, is_zstd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = LINES + bytes(2_000)
    content = compress(lines)

    for size in range(1, 300):
        monkeypatch.setattr(compressed, "PIECE_BYTES", size)
        assert decompressed(content, is_zstd=is_zstd) == lines, size


@codecs
def test_every_cut_is_found(compress: Compress, *, is_zstd: bool) -> None:
    content = compress(LINES)
    assert decompressed(content, is_zstd=is_zstd) == LINES

    for size in range(len(content)):
        try:
            found = decompressed(content[:size], is_zstd=is_zstd)
        except DecodeError:
            continue
        assert found is None, size


@codecs
def test_what_follows_the_end_is_found(compress: Compress, *, is_zstd: bool) -> None:
    content = compress(LINES)

    for more in (b"\0", b"more", content, bytes(2 * PIECE_BYTES)):
        assert decompressed(content + more, is_zstd=is_zstd) is None


@codecs
def test_what_follows_the_end_is_found_where_a_piece_ends_there(
    compress: Compress, *, is_zstd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = compress(LINES)
    monkeypatch.setattr(compressed, "PIECE_BYTES", len(content))

    assert decompressed(content, is_zstd=is_zstd) == LINES
    assert decompressed(content + b"more", is_zstd=is_zstd) is None


@codecs
def test_a_changed_byte_raises_nothing_else(compress: Compress, *, is_zstd: bool) -> None:
    content = compress(LINES)
    refused_count = 0

    for place, byte in enumerate(content):
        for other in (byte ^ 1, byte ^ 0x80, 0, 255):
            changed = content[:place] + bytes([other]) + content[place + 1 :]
            try:
                refused_count += decompressed(changed, is_zstd=is_zstd) is None
            except DecodeError:
                refused_count += 1

    assert refused_count


async def test_lines_of_an_unknown_length_are_mapped() -> None:
    lines, [one] = await bodies_of(zstandard.compress(LINES))

    assert lines == LINES
    assert isinstance(one, mmap.mmap)


@pytest.mark.parametrize("content", [zstandard.compress(LINES)[:-1], b"", b"no zstd at all"])
async def test_a_body_that_is_damaged_is_named_without_a_checksum_too(content: bytes) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await bodies_of(content)

    [error] = caught.value.exceptions
    assert isinstance(error, ReadRefused)
    assert error.code == "content-differs"
    assert str(error).startswith(("a.zst is cut off", "a.zst cannot be decompressed"))


async def test_bodies_have_one_memory_after_the_other() -> None:
    store = MemoryStore()
    every = [LINES, LINES[:9], 2 * LINES, LINES]
    steps = []
    for number, lines in enumerate(every):
        content = zstandard.compress(lines)
        await store.create(f"{number}.zst", content, content_type="", metadata={})
        checksum = crc32_text(zlib.crc32(lines))
        size = len(lines)
        steps.append(Step(f"{number}.zst", len(content), 1, NOWHERE, NOWHERE, 0, size, checksum))

    found, held = await read(store, *steps)

    assert found == every
    assert held[0] is held[1]
    assert held[1] is not held[2]
    assert held[2] is held[3]


async def test_more_lines_than_were_planned_are_refused_by_name() -> None:
    store = MemoryStore()
    content = gzip.compress(bytes(3 * PIECE_BYTES))
    await store.create("a.gz", content, content_type="", metadata={})
    step = Step("a.gz", len(content), 1, NOWHERE, NOWHERE, 0, 100, "0123abcd")

    with pytest.raises(ExceptionGroup) as caught:
        await read(store, step)

    [error] = caught.value.exceptions
    # The rest is not even decompressed.
    assert f"has {PIECE_BYTES} bytes of lines" in str(error)
    assert "and 100 with 0123abcd were planned" in str(error)


async def bodies_of(content: bytes) -> tuple[bytes, list[object]]:
    """The lines of an object of which nothing is known, and what holds them."""
    store = MemoryStore()
    await store.create("a.zst", content, content_type="", metadata={})
    step = Step("a.zst", len(content), 1, NOWHERE, NOWHERE, 0, 0, "")
    found, held = await read(store, step)
    return b"".join(found), held


async def read(store: MemoryStore, *steps: Step) -> tuple[list[bytes], list[object]]:
    """The lines of each step, and what held them."""
    found: list[bytes] = []
    held: list[object] = []
    async with asyncio.TaskGroup() as group:
        async for body in Bodies(store, answered, Kept()).of(steps, group):
            found.append(bytes(body.lines))
            held.append(body.lines.obj)
    return found, held
