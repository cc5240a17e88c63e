"""Commit times: what a source says of when a transaction committed, bounded by what is known.

A commit time is the source's claim. A transaction that was applied by logical replication carries
the time that its origin gives. That may be any time: 2000-01-01 where the origin sets none, a year
before the first, infinity. The record keeps the claim as it is. Where a time names a folder or
measures a lag, it is bounded.

Strategy: two times are known. A commit that was read is not later than the clock of whoever read
it. A commit that is not durable by the journal came after E, whose time the journal has. Clocks are
set, origins are late, and a log may be older than its journal. So a time that lies somewhat before
that of E is still believed.

Invariant: what is returned is not after `now_us`, and `datetime` can hold it where it holds the
other two.
"""

from typing import Final

BEFORE_DURABLE_US_MAX: Final = 30 * 24 * 3_600_000_000
"""30 days. In ordinary operation no log is made so long before its engine starts, and no origin
lags so far. A folder of the year 2000 is farther away."""


def within_reason(time_us: int, *, now_us: int, durable_us: int) -> int:
    """`time_us` where it is within reason, else the nearest time that is known.

    `durable_us` is the time of the last commit that is durable. All in Unix microseconds.
    """
    if time_us < durable_us - BEFORE_DURABLE_US_MAX:
        return min(durable_us, now_us)
    return min(time_us, now_us)
