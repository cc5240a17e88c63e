"""One line for whoever sits in front of a running engine: what it did lately, and how it stands.

Invariant: pure.
"""

from engine.model.amount import size_text, time_text
from engine.model.plural import counted
from engine.operate.status import Status


def summary(before: Status, now: Status, seconds: float) -> str:
    """What happened in the `seconds` from `before` to `now`, and how the engine stands."""
    rows = max(0, now.rows_total - before.rows_total)
    objects = max(0, now.objects_total - before.objects_total)
    size = max(0, now.bytes_total - before.bytes_total)
    parts = [
        f"{counted(rows, 'row', form=',')} in {time_text(seconds)}",
        f"{counted(objects, 'object', form=',')} of {size_text(size)} published",
        _lag_text(now),
    ]
    if (reading := now.snapshots_in_all) is not None:
        parts.append(f"snapshots: {reading.rows:,} of about {reading.rows_estimate:,} rows")
    if now.health != "good":
        parts.append(now.health_reason)
    return "; ".join(parts)


def _lag_text(status: Status) -> str:
    unread, waiting = status.lag_seconds, status.durable_lag_seconds
    if waiting is None:
        return "nothing durable yet"
    durable = "everything read is durable"
    if waiting >= 1:
        durable = f"durable up to {time_text(waiting)} ago"
    if unread is not None and unread >= 1:
        return f"{durable}, reading is {time_text(unread)} behind"
    return durable
