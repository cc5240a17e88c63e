"""Amounts in messages: sizes and times as a human reads them."""

from typing import Final

from engine.model.plural import counted

_KIBI: Final = 1024
_UNIT_MAX: Final = 1000
"""Four digits are harder to read than the next unit."""

_DAY_SECONDS, _HOUR_SECONDS, _MINUTE_SECONDS = 86_400, 3_600, 60


def size_text(size_bytes: int) -> str:
    """A size in binary units, like `12.5 MiB`."""
    if size_bytes < _KIBI:
        return f"{size_bytes} B"
    size = size_bytes / _KIBI
    for unit in ("KiB", "MiB"):
        if size < _UNIT_MAX:
            return f"{size:.1f} {unit}"
        size /= _KIBI
    return f"{size:.1f} GiB"


def time_text(seconds: float) -> str:
    """A time in whole units of one kind, like `90 seconds` or `2 hours`."""
    units = ((_DAY_SECONDS, "day"), (_HOUR_SECONDS, "hour"), (_MINUTE_SECONDS, "minute"))
    for unit_seconds, name in units:
        # One hour is too coarse a word for what may be nearly two.
        if seconds >= 2 * unit_seconds:
            return counted(int(seconds / unit_seconds), name)
    return counted(int(seconds), "second")
