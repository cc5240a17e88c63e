"""How long lines are held after a drain, so that a table's rows move together.

A batch costs as much as ten rows, however few it has. So where a hand-over had many batches, what
comes next stays in the line writer for a while. Full tables leave meanwhile; a boundary waits for
everything that is held.
"""

from typing import Final

HELD_SECONDS: Final = 1.0
"""How long rows are held where many tables are busy at once. With 5,000 tables, of which 1 % have
nine tenths of 200,000 rows a second, a quiet table gets four rows in that time. Chunks reckon their
age from when the first row was read, so nothing becomes visible later than otherwise."""

HELD_BATCHES_MIN: Final = 64
"""Fewer batches than this are handed over at once, after every drain."""

HELD_BYTES_MAX: Final = 16 * 1024 * 1024
"""No more lines than this are held: they are outside of the memory budget."""


class Holding:
    """What one stream holds, and until when. Times are the loop's."""

    def __init__(self) -> None:
        self.until = 0.0
        """When everything has to be handed over."""
        # When the oldest row that is held was read; None while none is.
        self._since: float | None = None
        self._batch_count = 0

    def seconds(self, now: float) -> float:
        """How long the oldest row has been held."""
        return now - self._since if self._since is not None else 0.0

    def is_on(self, now: float, buffered_bytes: int) -> bool:
        """Whether so many bytes of lines, if there are any, stay for now."""
        if now >= self.until or not 0 < buffered_bytes < HELD_BYTES_MAX:
            return False
        if self._since is None:
            self._since = now
        return True

    def handed_over(self, now: float, batch_count: int, *, is_all: bool) -> None:
        """So many batches were handed over; with `is_all`, nothing is left.

        If they were many, all together, what comes next is held.
        """
        self._batch_count += batch_count
        if is_all:
            self._since = None
            self.until = now + HELD_SECONDS if self._batch_count > HELD_BATCHES_MIN else 0.0
            self._batch_count = 0
