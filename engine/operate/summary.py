"""One line for whoever sits in front of a running engine: what it did lately, and how it stands.

Invariant: pure.
"""

from typing import Final

from engine.model.amount import size_text, time_text
from engine.model.plural import counted
from engine.operate.status import Status

_SHORT_SECONDS: Final = 1.0
"""What is younger is on its way."""


def summary(before: Status, now: Status, seconds: float) -> str:
    """What happened in the `seconds` from `before` to `now`, and how the engine stands."""
    rows = max(0, now.rows_total - before.rows_total)
    objects = max(0, now.objects_total - before.objects_total)
    size = max(0, now.bytes_total - before.bytes_total)
    parts = [
        f"{counted(rows, 'row', form=',')} in {time_text(seconds)}",
        f"{counted(objects, 'object', form=',')} of {size_text(size)} published",
        lag_text(now),
    ]
    if (reading := now.snapshots_in_all) is not None:
        estimate = f" of about {reading.rows_estimate:,}" if reading.rows_estimate else ""
        parts.append(f"snapshots: {reading.rows:,}{estimate} rows")
    if now.health != "good":
        parts.append(now.health_reason)
    return "; ".join(parts)


def lag_text(status: Status) -> str:
    """Both lags: what waits in this engine, and what it has not read."""
    return f"{_durable_text(status)}; {_unread_text(status)}"


def _durable_text(status: Status) -> str:
    seconds = status.durable_lag_seconds
    if seconds is None:
        return "nothing is durable yet"
    if seconds < _SHORT_SECONDS:
        return "everything read is durable"
    return f"the oldest change that is not durable is {time_text(seconds)} old"


def _unread_text(status: Status) -> str:
    seconds = status.lag_seconds
    if seconds is None:
        return "how far reading is behind is not known"
    if seconds < _SHORT_SECONDS:
        return "everything written is read"
    return f"reading is {time_text(seconds)} behind"
