"""`python -m load_tests.fold_reader FOLDER`: fold the objects of a folder, and say what came out.

Strategy: an object is decompressed a quarter of a MiB at a time into memory that is used again for
the next one. Fresh memory costs more than the decompressing: the kernel gives it a page at a time.
"""

import sys
from pathlib import Path
from typing import Final

import msgspec
from isal import igzip_lib

from engine.reader.fold.fold import Fold, Pass
from load_tests.fold_objects import object_files, shape

MEMORY_MAX: Final = 288 * 1024 * 1024
"""Of keys: 10,000,000 fit. Beside them are the interpreter, and one object's lines."""

_PIECE_BYTES: Final = 256 * 1024


class Found(msgspec.Struct, frozen=True):
    """What came out."""

    rows: int
    row_bytes: int
    passes: int
    key_bytes: float = 0.0


class _Lines:
    """One object's lines at a time."""

    def __init__(self) -> None:
        self._memory = bytearray()

    def of(self, body: bytes) -> memoryview:
        """The lines, until the next ones are asked for."""
        stream = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
        memory, size = self._memory, 0
        piece = stream.decompress(body, _PIECE_BYTES)
        while piece:
            memory[size : size + len(piece)] = piece
            size += len(piece)
            piece = b"" if stream.eof else stream.decompress(b"", _PIECE_BYTES)
        return memoryview(memory)[:size]


def fold(folder: Path, memory_max: int = MEMORY_MAX) -> Found:
    """Fold all objects, in as many passes as it takes."""
    files = object_files(folder)[::-1]
    lines, of = _Lines(), shape()
    rows = row_bytes = pass_count = 0
    key_bytes = 0.0
    passes: list[Pass | None] = [None]
    while passes:
        one = Fold(of, memory_max=memory_max, part=passes.pop())
        pass_count += 1
        for file in files:
            with lines.of(file.read_bytes()) as body:
                for given in one.take(body, of):
                    rows += given.row_count
                    row_bytes += len(given.lines)
        passes += one.finish()
        key_bytes = max(key_bytes, one.memory / max(one.key_count, 1))
    return Found(rows, row_bytes, pass_count, key_bytes)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(fold(Path(sys.argv[1]))) + b"\n")
