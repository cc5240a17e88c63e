"""Objects' lines, in the order in which they are wanted: got ahead, decompressed, compared.

Strategy: some bodies are on their way while one is read, bounded in number and in bytes. They stay
compressed until it is their turn. Decompressing is a thread's work. A body whose lines are more
than `RAW_BYTES_MAX`, or nobody knows how many, goes into a file that has no name, and is mapped:
the system keeps as much of it in memory as it likes. All others go into the same memory, one after
the other: fresh memory costs more than the decompressing, because the kernel gives it a page at a
time.

Invariant: lines are handed over only after their length and CRC32 were compared with what the
journal or the object's metadata say. At most one body is decompressed beside the one that is read.
"""

import asyncio
import mmap
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final

from isal import isal_zlib

from engine.flow.chunk import crc32_text
from engine.journal.reading import Answered
from engine.model.errors import DecodeError, ReadRefused, TailraceError
from engine.model.interfaces import ObjectStore
from engine.reader.table.compressed import pieces_of
from engine.reader.table.kept import Kept
from engine.reader.table.steps import Step

READS_AT_ONCE: Final = 8
AHEAD_BYTES_MAX: Final = 64 * 1024 * 1024
RAW_BYTES_MAX: Final = 64 * 1024 * 1024

_DAMAGED: Final = (
    "Objects are written once: restore this one from the bucket's versions. tailrace verify "
    "--depth full looks at all of them."
)


@dataclass(frozen=True, slots=True)
class Body:
    """An object's lines, as the step wants them whole or in part: `step` has the bounds."""

    step: Step
    lines: memoryview


class Bodies:
    """Gets objects of one bucket, but for those whose bodies are `kept` already."""

    def __init__(self, store: ObjectStore, answered: Answered, kept: Kept) -> None:
        self._store = store
        self._answered = answered
        self._kept = kept

    async def of(
        self, steps: Iterable[Step], group: asyncio.TaskGroup
    ) -> AsyncGenerator[Body, None]:
        """The bodies of `steps`, in that order; `group` has the requests.

        A body may not be used once the next one was asked for. Raises ReadRefused where an object
        is gone or is not what it should be, DestinationUnavailable. Closing the iterator, and
        cancellation, leave nothing behind.
        """
        memory = bytearray()
        async with aclosing(self._compressed(steps, group)) as compressed:
            async for step, content in compressed:
                if _is_held(step) and len(memory) < step.raw_bytes:
                    memory = bytearray(step.raw_bytes)
                lines = await asyncio.to_thread(_decompressed, step, content, memory)
                del content
                yield Body(step, lines)

    async def _compressed(
        self, steps: Iterable[Step], group: asyncio.TaskGroup
    ) -> AsyncGenerator[tuple[Step, bytes], None]:
        coming = iter(steps)
        ahead: deque[tuple[Step, asyncio.Task[bytes | TailraceError]]] = deque()
        ahead_bytes = 0
        try:
            while True:
                while len(ahead) < READS_AT_ONCE and ahead_bytes < AHEAD_BYTES_MAX:
                    step = next(coming, None)
                    if step is None:
                        break
                    ahead.append((step, group.create_task(self._get(step))))
                    ahead_bytes += step.size_bytes
                if not ahead:
                    return
                step, task = ahead.popleft()
                content = await task
                if isinstance(content, TailraceError):
                    raise content
                ahead_bytes -= step.size_bytes
                yield step, content
                del content
        finally:
            for _, task in ahead:
                task.cancel()

    async def _get(self, step: Step) -> bytes | TailraceError:
        kept = self._kept.taken(step.key)
        if kept is not None:
            return kept
        # An error is answered, not raised: it would cancel whoever works on the body before.
        try:
            content = await self._answered(partial(self._store.get, step.key))
        except TailraceError as error:
            return error
        if content is None:
            return ReadRefused(
                "object-missing",
                f"{step.key} was there a moment ago, or the journal names it, and it is gone",
                hint="It may have expired: docs/retention.md says what may.",
            )
        return content


def _is_held(step: Step) -> bool:
    """Whether the object's lines go into memory.

    Where nobody knows their length, the smallest body may have very many.
    """
    return step.raw_bytes <= RAW_BYTES_MAX and bool(step.raw_crc32)


def _decompressed(step: Step, content: bytes, memory: bytearray) -> memoryview:
    """The object's lines, compared with what is known of them; `memory` has room for them."""
    if not _is_held(step):
        return _mapped(step, content)
    check = _Check(step)
    lines, size = memoryview(memory), 0
    for piece in check.of(_pieces(step, content)):
        lines[size : size + len(piece)] = piece
        size += len(piece)
    check.finish()
    return lines[:size]


def _mapped(step: Step, content: bytes) -> memoryview:
    check = _Check(step)
    with tempfile.TemporaryFile() as file:
        for piece in check.of(_pieces(step, content)):
            file.write(piece)
        check.finish()
        file.flush()
        if not file.tell():
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def _pieces(step: Step, content: bytes) -> Iterator[bytes]:
    try:
        is_whole = yield from pieces_of(content, is_zstd=step.key.endswith(".zst"))
    except DecodeError as error:
        raise _differs(step, "cannot be decompressed") from error
    if not is_whole:
        raise _differs(step, "is cut off, or something follows its end")


class _Check:
    """Length and CRC32 of lines as they come."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._size_bytes = 0
        self._crc = 0

    def of(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._size_bytes += len(piece)
            self._crc = isal_zlib.crc32(piece, self._crc)
            if self._step.raw_crc32 and self._size_bytes > self._step.raw_bytes:
                # Whatever follows, it is not what was planned, and it may be without end.
                self.finish()
            yield piece

    def finish(self) -> None:
        step = self._step
        if not step.raw_crc32:
            return
        found = (self._size_bytes, crc32_text(self._crc))
        if found != (step.raw_bytes, step.raw_crc32):
            raise _differs(
                step,
                f"has {found[0]} bytes of lines with CRC32 {found[1]}, and {step.raw_bytes} with"
                f" {step.raw_crc32} were planned",
            )


def _differs(step: Step, text: str) -> ReadRefused:
    return ReadRefused("content-differs", f"{step.key} {text}", hint=_DAMAGED)
