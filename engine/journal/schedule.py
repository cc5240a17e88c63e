"""When the committer appends next: it waits here, and whoever has something for it says so.

Strategy: one append in an interval, which bounds what the journal's requests cost. Where rows wait
because a chunk before them is not planned yet, the interval would also bound the rate of one table,
to two chunks a second. Then the wait is only a tenth of it. A drain waits for nothing.

Invariant: what was said while the committer was at work is not forgotten: it waits less the next
time.
"""

import asyncio
from typing import Final

HURRIED_SHARE: Final = 0.1


class AppendSchedule:
    """The committer's waiting. Everything but `due` may be called by anybody, and never waits."""

    def __init__(self, interval: float) -> None:
        """At most one append in `interval` seconds. Needs a running loop."""
        self.is_hurried = False
        """Whether the newest wait ended before its interval, because rows waited."""
        self._interval = interval
        self._woken = asyncio.Event()
        self._hurried = asyncio.Event()
        self._draining = asyncio.Event()

    @property
    def is_draining(self) -> bool:
        """Whether everything is due now."""
        return self._draining.is_set()

    def wake(self) -> None:
        """There may be something to append."""
        self._woken.set()

    def hurry(self) -> None:
        """Rows wait for a plan: in a queue, or in the source until there is room."""
        self._hurried.set()

    def drain(self) -> None:
        """Nothing more will come: append whatever there is."""
        self._draining.set()
        self._hurried.set()
        self._woken.set()

    async def due(self, last_append: float, earliest_chunk: float | None) -> None:
        """Wait until something may be due.

        The newest append was at `last_append`, and the first open chunk reaches its age at
        `earliest_chunk`; both in the event loop's seconds. Cancellation changes nothing.
        """
        await _wait_for(self._draining, until=last_append + HURRIED_SHARE * self._interval)
        if not self._draining.is_set():
            self.is_hurried = await _wait_for(self._hurried, until=last_append + self._interval)
            self._hurried.clear()
        # A chunk that grows old wakes nobody, so the wait ends when the first chunk has to be
        # planned. If every wait were an interval long, a chunk could be planned an interval after
        # its time.
        until = asyncio.get_running_loop().time() + self._interval
        if earliest_chunk is not None:
            until = min(until, earliest_chunk - self._interval)
        await _wait_for(self._woken, until=until)
        self._woken.clear()


async def _wait_for(event: asyncio.Event, *, until: float) -> bool:
    """Whether `event` was set by then."""
    try:
        async with asyncio.timeout_at(until):
            await event.wait()
    except TimeoutError:
        return False
    return True
