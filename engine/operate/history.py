"""The last hour in samples: what the page plots.

Strategy: a sample each `INTERVAL_SECONDS`, in a ring. Whoever samples gives totals, and the rates
between two samples are computed here. Columns, not rows, because 360 objects would be most of what
`/status` answers.

Invariant: pure. The memory is that of `SAMPLES_MAX` samples, whatever happens.
"""

from collections import deque
from typing import Final

import msgspec

from engine.operate.lag import Lag

INTERVAL_SECONDS: Final = 10.0

SAMPLES_MAX: Final = 360


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Samples by columns, the oldest first; all columns have the same length.

    `times_us` are Unix microseconds. A rate is that of the time since the sample before. A lag is
    None where it was not known. `rows_per_second` counts the stream, `snapshot_rows_per_second`
    the snapshots, `bytes_per_second` the compressed bytes of the stream that became visible.
    """

    interval_seconds: float = INTERVAL_SECONDS
    times_us: tuple[int, ...] = ()
    rows_per_second: tuple[float, ...] = ()
    snapshot_rows_per_second: tuple[float, ...] = ()
    bytes_per_second: tuple[float, ...] = ()
    lag_seconds: tuple[float | None, ...] = ()
    durable_lag_seconds: tuple[float | None, ...] = ()


class Totals(msgspec.Struct, frozen=True):
    """What has been counted since the process began. A life that begins anew may count from 0."""

    rows: int = 0
    snapshot_rows: int = 0
    bytes: int = 0


class _Sample(msgspec.Struct, frozen=True, gc=False):
    time_us: int
    rows: float
    snapshot_rows: float
    bytes: float
    unread: float | None
    durable: float | None


class Recorder:
    """Takes samples, and gives the hour."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES_MAX)
        self._totals = Totals()
        self._time_us = 0

    def sample(self, now_us: int, totals: Totals, lag: Lag) -> None:
        """Add a sample. The first one has no rates, and only begins the time."""
        before, seconds = self._totals, (now_us - self._time_us) / 1e6
        is_first = not self._time_us
        self._totals, self._time_us = totals, now_us
        if is_first or seconds <= 0:
            return
        self._samples.append(
            _Sample(
                now_us,
                _rate(before.rows, totals.rows, seconds),
                _rate(before.snapshot_rows, totals.snapshot_rows, seconds),
                _rate(before.bytes, totals.bytes, seconds),
                _rounded(lag.unread.seconds),
                _rounded(lag.durable.seconds),
            )
        )

    def history(self) -> History:
        """The samples that are kept."""
        samples = self._samples
        return History(
            times_us=tuple(each.time_us for each in samples),
            rows_per_second=tuple(each.rows for each in samples),
            snapshot_rows_per_second=tuple(each.snapshot_rows for each in samples),
            bytes_per_second=tuple(each.bytes for each in samples),
            lag_seconds=tuple(each.unread for each in samples),
            durable_lag_seconds=tuple(each.durable for each in samples),
        )


def _rate(before: int, now: int, seconds: float) -> float:
    count = now - before if now >= before else now
    return round(count / seconds, 1)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
