"""A compressed body as pieces of bounded size, however well it is compressed. Pure.

Strategy: deflate expands a thousand times, zstd thirty thousand times. So it is the output that is
bounded, never the input alone. zstd's reader ends at the end of its input without a word, so where
its frame ends is read from the blocks' heads (RFC 8878, 3.1.1) before anything is decompressed.

Invariant: memory is `PIECE_BYTES` twice, and the window of the format: 128 MiB at most for zstd.
"""

from collections.abc import Generator
from typing import Any, Final, cast

import zstandard
from isal import isal_zlib

from engine.model.errors import DecodeError

PIECE_BYTES: Final = 1024 * 1024

_GZIP_WINDOW_BITS: Final = 31
_GzipError = cast("type[Exception]", isal_zlib.IsalError)
_BLOCK_HEAD_BYTES: Final = 3
_REPEATED: Final = 1
_CHECKSUM_BYTES: Final = 4


def pieces_of(content: bytes, *, is_zstd: bool) -> Generator[bytes, None, bool]:
    """What `content` decompresses to; then whether it was one whole stream and nothing else.

    Where it was not, the pieces may be fewer. Raises DecodeError.
    """
    try:
        return (yield from _of_zstd(content) if is_zstd else _of_gzip(content))
    except (_GzipError, zstandard.ZstdError, EOFError) as error:
        raise DecodeError(f"it cannot be decompressed: {error}") from error


def _of_gzip(content: bytes) -> Generator[bytes, None, bool]:
    # Any: mypy does not see that `decompress` changes `eof`.
    stream: Any = isal_zlib.decompressobj(_GZIP_WINDOW_BITS)
    begin = 0
    while begin < len(content) and not stream.eof:
        given = content[begin : begin + PIECE_BYTES]
        begin += len(given)
        # The trailer of 8 bytes stays until all before it came out. So no output waits unseen.
        while given and not stream.eof:
            yield stream.decompress(given, PIECE_BYTES)
            given = stream.unconsumed_tail
    return begin == len(content) and stream.eof and not stream.unused_data


def _of_zstd(content: bytes) -> Generator[bytes, None, bool]:
    if not _is_one_frame(content):
        return False
    stream = zstandard.ZstdDecompressor().stream_reader(content)
    while piece := stream.read(PIECE_BYTES):
        yield piece
    return True


def _is_one_frame(content: bytes) -> bool:
    """Whether a frame begins with `content` and ends with it. Raises ZstdError."""
    has_checksum = zstandard.get_frame_parameters(content).has_checksum
    at, is_last = zstandard.frame_header_size(content), False
    while not is_last and at < len(content):
        head = int.from_bytes(content[at : at + _BLOCK_HEAD_BYTES], "little")
        is_last, kind, size = bool(head & 1), head >> 1 & 3, head >> 3
        at += _BLOCK_HEAD_BYTES + (1 if kind == _REPEATED else size)
    return is_last and at + _CHECKSUM_BYTES * has_checksum == len(content)
