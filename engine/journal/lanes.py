"""Lanes at work: objects of one lane become visible one after the other, lanes side by side.

Strategy: a lane has a task for as long as it has something to do. At most `concurrency` lanes work
at the same moment, and whoever came first goes first.

Invariant: nothing of a lane begins before what was submitted before it is done.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from engine.model.lane import Lane

Work = Callable[[], Awaitable[None]]
"""Makes an object visible, however long it takes."""

Done = Callable[[], None]
"""Is called when the work is done and counts as pending no more."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class _Item:
    seq: int
    work: Work
    done: Done


class Lanes:
    """All lanes that have something to do. Their tasks live in `group`."""

    def __init__(self, group: asyncio.TaskGroup, concurrency: int) -> None:
        self._group = group
        self._places = asyncio.Semaphore(concurrency)
        self._queues: dict[Lane, deque[_Item]] = {}
        self._progress = asyncio.Event()

    def submit(self, lane: Lane, seq: int, work: Work, done: Done = _nothing) -> None:
        """Do `work`, which journal entry `seq` asked for first, after the lane's others.

        Never waits. An error of the work ends the task group.
        """
        queue, item = self._queues.get(lane), _Item(seq, work, done)
        if queue is None:
            self._queues[lane] = deque([item])
            self._group.create_task(self._run(lane))
        else:
            queue.append(item)

    async def _run(self, lane: Lane) -> None:
        queue = self._queues[lane]
        while queue:
            async with self._places:
                await queue[0].work()
            item = queue.popleft()
            if not queue:
                del self._queues[lane]
            item.done()
            self._progress.set()

    @property
    def oldest_pending_seq(self) -> int | None:
        """The oldest entry that asked for something which is not done."""
        return min((queue[0].seq for queue in self._queues.values()), default=None)

    @property
    def pending_count(self) -> int:
        """Objects that are not known to be visible."""
        return sum(map(len, self._queues.values()))

    @property
    def is_idle(self) -> bool:
        """Whether everything that was submitted is done."""
        return not self._queues

    async def idle(self) -> None:
        """Wait until everything that was submitted is done. Cancellation changes nothing."""
        while not self.is_idle:
            self._progress.clear()
            await self._progress.wait()
