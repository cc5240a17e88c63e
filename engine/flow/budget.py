"""The memory budget: how many buffered bytes the whole pipeline holds.

Bytes are charged once, when they leave the socket, and then only shrink (raw, compressed,
published). Nobody waits for the budget while holding some of it: only the reader waits, before it
reads. So an empty budget admits one intake of any size, and a row larger than the budget passes
alone.
"""

import asyncio

from engine.model.errors import InvariantBroken


class MemoryBudget:
    """Bytes in use against a limit.

    Invariant: `used_bytes` exceeds `limit_bytes` by at most one intake.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._was_full = False
        self._has_room = asyncio.Event()
        self._has_room.set()

    @property
    def is_full(self) -> bool:
        """Whether the reader has to wait."""
        return self.used_bytes >= self.limit_bytes

    def charge(self, size_bytes: int) -> None:
        """Count bytes that are there now; a negative number gives back."""
        self.used_bytes += size_bytes
        if self.used_bytes < 0:
            # Unnoticed, the limit would rise with every such mistake.
            raise InvariantBroken("more memory was given back than charged")
        # Comparisons instead of calls: every batch comes here twice.
        if (self.used_bytes >= self.limit_bytes) is not self._was_full:
            self._was_full = not self._was_full
            if self._was_full:
                self._has_room.clear()
            else:
                self._has_room.set()

    async def room(self) -> None:
        """Wait until something may be read. Cancellation leaves nothing behind."""
        await self._has_room.wait()
