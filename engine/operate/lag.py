"""Lag: two figures under two names, each 0 where nothing waits.

`unread` is what the source has written and this engine has not read. `durable` is what this engine
has read and the journal does not call durable yet. Each has an age in seconds and an amount of the
source's log, in the source's own unit.

Invariant: pure. What nobody can know is None, never 0: without a connection the age of what was
read last grows, because something may wait.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from engine.model.log_point import LogPoint


class Amount(msgspec.Struct, frozen=True):
    """How old the oldest of what waits is, and how much log it is. None: not known."""

    seconds: float | None = None
    log: int | None = None


NOTHING = Amount(0.0, 0)
UNKNOWN = Amount()


class Lag(msgspec.Struct, frozen=True):
    """Both figures of one moment."""

    unread: Amount = UNKNOWN
    durable: Amount = UNKNOWN


Distance = Callable[[LogPoint, LogPoint], int]
"""How much log lies between two points, in the source's unit; 0 where the second is no later."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How far one engine has read, at `now_us` (Unix microseconds, as all times here).

    `durable` is the place up to which everything is durable. `read` is the newest place up to which
    everything was read (None: nothing was yet), and `end` where the source's log ended at the last
    look (None: nobody has looked). `waiting_since_us` is when the oldest change was committed that
    was read while everything before it was durable (None: nothing of what was read waits).
    `is_connected` is False without a stream. `is_held`: what is read now will be read again,
    because the stream is paused or waits for the initial snapshot.
    """

    now_us: int
    durable: LogPoint
    read: LogPoint | None
    end: LogPoint | None
    waiting_since_us: int | None
    is_connected: bool
    is_held: bool

    def lag(self, distance: Distance) -> Lag:
        """Both figures."""
        return Lag(self._unread(distance), self._not_durable(distance))

    def _unread(self, distance: Distance) -> Amount:
        read = self.durable if self.read is None or self.is_held else self.read
        if self.end is None:
            # Without a look nobody knows; without a connection nobody will look.
            return UNKNOWN if self.is_connected else Amount(self._age(read.commit_us), None)
        if read.position < self.end.position:
            return Amount(self._age(read.commit_us), distance(read, self.end))
        # The look is as old as the connection: meanwhile more may have been written.
        return NOTHING if self.is_connected else Amount(self._age(read.commit_us), None)

    def _not_durable(self, distance: Distance) -> Amount:
        if self.waiting_since_us is None:
            return NOTHING
        # Neither is later than the oldest change that waits, so the later one is nearer to it.
        oldest_us = max(self.waiting_since_us, self.durable.commit_us)
        return Amount(
            self._age(oldest_us), 0 if self.read is None else distance(self.durable, self.read)
        )

    def _age(self, time_us: int) -> float:
        # The source's clock may be ahead of ours.
        return max(0.0, (self.now_us - time_us) / 1e6)
