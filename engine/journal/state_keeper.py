"""Who keeps the newest state file young, so that a rule of the bucket may take old entries.

Strategy: a rule that expires objects counts whole days, at least one. So a state file is written
when the newest one is a quarter of a day old (`Settings.state_seconds`), however little happens.
Where nothing was journalled since the newest one, an entry comes first that says nothing, because a
state file is never written again. The listing tells how old the newest one is at a start. So an
engine that is started again and again writes one in time, too.

Invariant: while an engine owns the journal, the newest state file is at most half as old as the
shortest rule lets objects become.
"""

import asyncio

from engine.journal.journal import Journal
from engine.model.interfaces import Clock


class StateKeeper:
    """Keeps the newest state file of `journal` at most `seconds` old; `clock` tells the time."""

    def __init__(self, journal: Journal, clock: Clock, seconds: float) -> None:
        self._journal = journal
        self._clock = clock
        self._seconds = seconds

    async def run(self) -> None:
        """Write state files until the journal is released; it has to be ours. Raises Superseded.

        Cancellation leaves an append in doubt, as any append.
        """
        journal, now = self._journal, asyncio.get_running_loop().time
        begun_us = journal.begun_us
        age_seconds = 0.0 if begun_us is None else max(0.0, (self._clock() - begun_us) / 1e6)
        found_at = now() - age_seconds
        while not journal.state.released:
            written_at = journal.state_at
            newest_at = found_at if written_at is None else written_at
            wait_seconds = newest_at + self._seconds - now()
            if wait_seconds > 0:
                await asyncio.sleep(wait_seconds)
            else:
                await journal.renew_state()
