"""Sight of the journal: how long ago an engine last knew for sure where it ends.

Strategy: a rule of the bucket may take old entries away, at the earliest a day after they were
made. Whoever has looked at the key behind the last entry within half of that knows whether somebody
wrote there. Whoever has not (the process was stopped, or its machine slept) cannot tell a key that
was never written from one that was written and has expired. To append there would begin a second
journal. So such an engine ends, and the next one reads the journal anew.

Invariant: the time counts from before a request is sent, by the wall clock: a process that is
stopped, or a machine that sleeps, does not stop it.
"""

from engine.model.interfaces import Clock


class Sight:
    """When the end of the journal was last seen; it is lost after `seconds_max` without a look."""

    def __init__(self, clock: Clock, seconds_max: float) -> None:
        self._clock = clock
        self._us_max = seconds_max * 1e6
        self._seen_us = clock()

    def now_us(self) -> int:
        """The time, to be handed to `seen` once a request that is sent now has its answer."""
        return self._clock()

    def seen(self, sent_us: int) -> None:
        """A request that was sent then told where the journal ends."""
        self._seen_us = max(self._seen_us, sent_us)

    @property
    def hours(self) -> float:
        """How long ago that was."""
        return (self._clock() - self._seen_us) / 3.6e9

    @property
    def is_lost(self) -> bool:
        """Whether entries may have come and gone since."""
        return self._clock() - self._seen_us > self._us_max
