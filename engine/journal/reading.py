"""Reading the journal's objects: listed page by page, read ahead, handed over in order.

Strategy: as many reads as allowed are under way all the time. The next one begins when the oldest
was handed over. A listing that fails half-way goes on from the last key seen.

Invariant: memory is bounded by one page of keys and the reads under way, however long the journal
is. Other people's keys between ours are left out.
"""

import asyncio
from array import array
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from engine.model.interfaces import ListedObject, ObjectStore
from engine.model.layout import entry_seq, journal_folder, journal_key, state_folder, state_seq

READS_AT_ONCE = 32
# S3 lists up to 1,000 keys in an answer.
PAGE_KEYS = 1000

_Answer = TypeVar("_Answer")
_Key = TypeVar("_Key")


class Answered(Protocol):
    """How a request is repeated until there is an answer."""

    def __call__(self, attempt: Callable[[], Awaitable[_Answer]], /) -> Awaitable[_Answer]:
        """The answer of `attempt`."""
        ...


def _numbers() -> "array[int]":
    return array("Q")


@dataclass(frozen=True, slots=True)
class StateFiles:
    """The numbers of state files, ascending, and when each was made (Unix microseconds)."""

    seqs: "array[int]" = field(default_factory=_numbers)
    made_us: "array[int]" = field(default_factory=_numbers)


class JournalReader:
    """What lies under one prefix's journal and state folders."""

    def __init__(self, store: ObjectStore, prefix: str, answered: Answered) -> None:
        self._store = store
        self._prefix = prefix
        self._answered = answered

    async def keys(self, folder: str, after: str = "") -> AsyncIterator[str]:
        """The keys that begin with `folder` and sort after `after`, in order.

        Cancellation changes nothing.
        """
        async for listed in self.listed(folder, after):
            yield listed.key

    async def listed(self, folder: str, after: str = "") -> AsyncIterator[ListedObject]:
        """The objects whose keys begin with `folder` and sort after `after`, in their order.

        Cancellation changes nothing.
        """
        while page := await self._answered(partial(self._page, folder, after)):
            for listed in page:
                yield listed
            after = page[-1].key

    async def _page(self, folder: str, after: str) -> list[ListedObject]:
        page: list[ListedObject] = []
        async for listed in self._store.list(folder, after=after):
            page.append(listed)
            if len(page) == PAGE_KEYS:
                break
        return page

    async def states(self) -> "StateFiles":
        """All state files. Cancellation changes nothing."""
        found = StateFiles()
        async for listed in self.listed(state_folder(self._prefix)):
            seq = state_seq(self._prefix, listed.key)
            if seq is not None:
                found.seqs.append(seq)
                found.made_us.append(listed.made_us)
        return found

    async def state_seqs(self) -> "array[int]":
        """The numbers of all state files, ascending. Cancellation changes nothing."""
        return (await self.states()).seqs

    async def entry_seqs(self, after: int) -> AsyncIterator[int]:
        """The numbers of the listed entries behind entry `after`, ascending.

        Cancellation changes nothing.
        """
        async for seq, _ in self.entries(after):
            yield seq

    async def entries(self, after: int) -> AsyncIterator[tuple[int, int]]:
        """The same, each with the time at which it was made: Unix microseconds.

        Cancellation changes nothing.
        """
        after_key = journal_key(self._prefix, after) if after >= 0 else ""
        async for listed in self.listed(journal_folder(self._prefix), after_key):
            seq = entry_seq(self._prefix, listed.key)
            if seq is not None:
                yield seq, listed.made_us

    async def get(self, key: str) -> bytes | None:
        """The object's bytes, or None where it is not there. Cancellation changes nothing."""
        return await self._answered(lambda: self._store.get(key))


async def read_in_order(
    keys: AsyncIterator[_Key],
    read: Callable[[_Key], Awaitable[_Answer]],
    take: Callable[[_Key, _Answer], Awaitable[bool]],
    at_once: int = READS_AT_ONCE,
) -> None:
    """Hand each key with what `read` gave for it to `take`, in order, until `take` says False.

    At most `at_once` reads are under way. The first error of a read or of `take` ends it.
    Cancellation leaves nothing behind.
    """
    try:
        async with asyncio.TaskGroup() as group:
            under_way: deque[tuple[_Key, asyncio.Task[_Answer]]] = deque()
            async for key in keys:
                under_way.append((key, group.create_task(_called(read, key))))
                if len(under_way) == at_once and not await _take_first(under_way, take):
                    break
            else:
                while under_way and await _take_first(under_way, take):
                    pass
            for _, task in under_way:
                task.cancel()
    except BaseExceptionGroup as errors:
        # All errors are about the same walk. The first is as good as any.
        raise errors.exceptions[0] from errors.exceptions[0].__cause__


async def _called(read: Callable[[_Key], Awaitable[_Answer]], key: _Key) -> _Answer:
    return await read(key)


async def _take_first(
    under_way: "deque[tuple[_Key, asyncio.Task[_Answer]]]",
    take: Callable[[_Key, _Answer], Awaitable[bool]],
) -> bool:
    key, task = under_way.popleft()
    return await take(key, await task)
