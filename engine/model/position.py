"""Positions: one change's place in the total order, as text that sorts.

`{generation:04d}.{order:016X}.{change:016X}.{n:06X}`. `order` grows with commits within a
generation, so positions sort in commit order first. `change` is the change's own place in the
source's log, and `n` counts a table's changes that share it. All parts come from the source's log
alone, so a replay assigns the same ones.

A commit's place is the beginning of its changes' positions, `{generation:04d}.{order:016X}`: a
`LogPosition`. As text it sorts before all of them, and after every change of an earlier commit.

Invariant: comparing two positions as strings compares them as changes. Only this module makes a
position or takes one apart. Everybody else treats positions as opaque. The compiled line writer
gets the start of all positions of a generation from here, and the widths of what follows.
"""

import re
from typing import NewType

Position = NewType("Position", str)
"""One change's place."""

LogPosition = NewType("LogPosition", str)
"""A place between commits. It compares as text with others and with every `Position`."""

NOWHERE = Position("")
"""Sorts before every position."""

LOG_BEGIN = LogPosition("")
"""Sorts before every place in a log."""

PART_DIGITS = (16, 16, 6)
"""Hexadecimal digits of the parts behind the generation, for the compiled writer of lines."""

_GENERATION_MAX = 9999

_RANGE_BITS = 40
_RANGE_DIGITS = _RANGE_BITS // 4
_RANGE_MAX = (1 << _RANGE_BITS) - 1
_SEGMENT_BITS = 24
_SEGMENT_DIGITS = _SEGMENT_BITS // 4
_SEGMENT_MAX = _RANGE_MAX >> _SEGMENT_BITS
_ATTEMPT_MAX = (1 << 24) - 1

_LOG_POSITION_SIZE = len("0001.0123456789ABCDEF")

ATTEMPT_AT = (_LOG_POSITION_SIZE + 2, 16 - _RANGE_DIGITS)
"""Where a position has its snapshot's attempt, for those who compare texts: the first character,
counted from 1 as SQL does, and how many. See `snapshot_range`.
"""

RANGE_AT = (ATTEMPT_AT[0] + ATTEMPT_AT[1], _RANGE_DIGITS)
"""Likewise the range within the attempt."""

_LOG_POSITION = re.compile(r"[0-9]{4}\.[0-9A-F]{16}")
_POSITION = re.compile(_LOG_POSITION.pattern + r"\.[0-9A-F]{16}\.[0-9A-F]{6}")


def generation_prefix(generation: int) -> str:
    """How all positions of a generation begin. Raises ValueError beyond four digits."""
    if not 0 <= generation <= _GENERATION_MAX:
        raise ValueError(f"generation {generation} is not between 0 and {_GENERATION_MAX}")
    return f"{generation:04d}."


def log_position(generation: int, order: int) -> LogPosition:
    """The place before the commit that has this order. Every earlier commit sorts before it."""
    return LogPosition(f"{generation:04d}.{order:016X}")


def make_position(generation: int, order: int, change: int, n: int) -> Position:
    """The position of one change."""
    return Position(f"{generation:04d}.{order:016X}.{change:016X}.{n:06X}")


def snapshot_range(attempt: int, range_number: int) -> int:
    """What stands for the change in the positions of a snapshot's rows.

    Of two attempts that see the same commits the later one's rows sort behind the earlier one's.
    Raises ValueError beyond 2**24 - 1 attempts or 2**40 - 1 ranges.
    """
    if not 0 < attempt <= _ATTEMPT_MAX or not 0 <= range_number <= _RANGE_MAX:
        raise ValueError(f"attempt {attempt}, range {range_number} are out of bounds")
    return attempt << _RANGE_BITS | range_number


def segment_range(segment: int, number: int) -> int:
    """A range's number within its attempt: `number` counts from 0 within its segment.

    Raises ValueError beyond 2**16 - 1 segments or 2**24 - 1 ranges.
    """
    if not 0 <= segment <= _SEGMENT_MAX or not 0 <= number < 1 << _SEGMENT_BITS:
        raise ValueError(f"segment {segment}, range {number} are out of bounds")
    return segment << _SEGMENT_BITS | number


def segment_of(range_number: int) -> int:
    """The segment of a range: see `segment_range`."""
    return range_number >> _SEGMENT_BITS


def snapshot_place(point: LogPosition) -> tuple[int, int]:
    """Generation and order of the rows that are read as of everything before `point`."""
    return int(point[:4]), int(point[5:], 16) - 1


def snapshot_attempt(point: LogPosition, attempt: int) -> str:
    """How the positions of all rows of an attempt begin: see `snapshot_lane`."""
    return snapshot_lane(point, attempt, 0)[: -_RANGE_DIGITS - 1]


def snapshot_segment(point: LogPosition, attempt: int, segment: int) -> str:
    """How the positions of all rows of one segment of an attempt begin: see `snapshot_lane`."""
    return snapshot_lane(point, attempt, segment_range(segment, 0))[: -_SEGMENT_DIGITS - 1]


def snapshot_lane(point: LogPosition, attempt: int, range_number: int) -> str:
    """How the positions of all rows of a range begin, read as of everything before `point`.

    They sort behind every change of the commits that the snapshot sees, and before all others.
    """
    generation, order = snapshot_place(point)
    return f"{generation:04d}.{order:016X}.{snapshot_range(attempt, range_number):016X}."


def snapshot_position(point: LogPosition, attempt: int, range_number: int, row: int) -> Position:
    """The position of one row of a snapshot; `row` counts from 0 within its range."""
    return Position(f"{snapshot_lane(point, attempt, range_number)}{row:06X}")


def attempt_of(position: Position) -> int:
    """The attempt that a row of a snapshot belongs to; of a change in a stream it says nothing."""
    return int(position[_LOG_POSITION_SIZE + 1 :][:16], 16) >> _RANGE_BITS


def attempt_digits(attempt: int) -> str:
    """An attempt as positions have it at `ATTEMPT_AT`.

    No change of a log begins at a place that looks like an attempt's range 0.
    """
    return f"{attempt:0{ATTEMPT_AT[1]}X}"


def commit_of(position: Position) -> LogPosition:
    """The place of the commit that the change belongs to."""
    return LogPosition(position[:_LOG_POSITION_SIZE])


def behind(commit: LogPosition) -> LogPosition:
    """The place behind that commit: everything of it sorts before, everything later does not."""
    return LogPosition(f"{commit[:5]}{int(commit[5:], 16) + 1:016X}")


def require_position(text: str) -> None:
    """Raise ValueError where `text` is no position."""
    if not _POSITION.fullmatch(text):
        raise ValueError(f"not a position: {text!r}")


def require_log_position(text: str) -> None:
    """Raise ValueError where `text` is no place between commits."""
    if not _LOG_POSITION.fullmatch(text):
        raise ValueError(f"not a place in a log: {text!r}")
