"""The observer: looks at the engine once a second, for those who look at it less often.

Strategy: timers of the loop, no task: nothing that fails here may end the pipeline. Each tick asks
whether the bucket answers, and tells of it in the log when that changes. Each tenth one takes a
sample for the plots and computes the tables' rates. Each sixtieth one sums up for a terminal.

Invariant: it only reads. An engine without an observer does the same to source and bucket.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from engine.model.interfaces import Clock
from engine.operate.activity import Activity
from engine.operate.bucket_watch import BucketWatch
from engine.operate.events import Events
from engine.operate.history import INTERVAL_SECONDS, History, Recorder, Totals
from engine.operate.lag import Lag
from engine.operate.status import Status, StatusProvider
from engine.operate.summary import summary

TICK_SECONDS: Final = 1.0
_TICKS_A_SAMPLE: Final = round(INTERVAL_SECONDS / TICK_SECONDS)
_TICKS_A_SUMMARY: Final = 60

_log = structlog.get_logger(__name__)


class Observer:
    """Watches one pipeline while `observing`, over all of its lives."""

    def __init__(
        self,
        *,
        clock: Clock,
        bucket: BucketWatch,
        activity: Activity,
        events: Events,
        lag: Callable[[], Lag],
        snapshot_rows: Callable[[], int],
    ) -> None:
        self.bucket = bucket
        self._clock = clock
        self._activity = activity
        self._events = events
        self._lag = lag
        self._snapshot_rows = snapshot_rows
        self._recorder = Recorder()
        self._tick_count = 0
        self._stalled_us = 0
        # Who is asked for a summary, and what was told last; None where nobody reads it.
        self._status: StatusProvider | None = None
        self._told: Status | None = None

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Tick while the block runs. Enter and leave it in the loop's thread."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def again() -> None:
            nonlocal timer
            timer = loop.call_later(TICK_SECONDS, again)
            self.tick()

        timer = loop.call_later(TICK_SECONDS, again)
        try:
            yield
        finally:
            timer.cancel()

    def summarize(self, status: StatusProvider) -> None:
        """From now on, have the log say each minute what happened."""
        self._status, self._told = status, status()

    def history(self) -> History:
        """The samples of the last hour."""
        return self._recorder.history()

    def tick(self) -> None:
        """Look once."""
        self._look_at_bucket()
        if self._tick_count % _TICKS_A_SAMPLE == 0:
            now_us, activity = self._clock(), self._activity
            activity.tick(now_us)
            totals = Totals(activity.rows_total, self._snapshot_rows(), activity.bytes_total)
            self._recorder.sample(now_us, totals, self._lag())
        self._tick_count += 1
        if self._tick_count % _TICKS_A_SUMMARY == 0:
            self._summarize()

    def _summarize(self) -> None:
        if self._status is None or self._told is None:
            return
        before, now = self._told, self._status()
        self._told = now
        text = summary(before, now, _TICKS_A_SUMMARY * TICK_SECONDS)
        _log.info("summary", phase=now.phase, text=text)

    def _look_at_bucket(self) -> None:
        status = self.bucket.status()
        if status.is_stalled and not self._stalled_us:
            self._stalled_us = self._clock() - round(status.waiting_seconds * 1e6)
            _log.warning("bucket stalled", text=status.text, hint=status.hint)
            self._events.happened("bucket-stalled", status.text)
        elif self._stalled_us and not status.is_stalled and status.state != "slow":
            seconds = round((self._clock() - self._stalled_us) / 1e6, 1)
            self._stalled_us = 0
            _log.info("bucket answers again", seconds=seconds)
            self._events.happened("bucket-back", f"the bucket answers again after {seconds:g} s")
