"""Positions: one change's place in the total order, as text that sorts.

`{generation:04d}.{order:016X}.{change:016X}.{n:06X}`. `order` grows with commits within a
generation, so positions sort in commit order first. `change` is the change's own place in the
source's log, and `n` counts a table's changes that share it. All parts come from the source's log
alone, so a replay assigns the same ones.

A commit's place is the beginning of its changes' positions, `{generation:04d}.{order:016X}`: a
`LogPosition`. As text it sorts before all of them, and after every change of an earlier commit.

Invariant: comparing two positions as strings compares them as changes. Only this module makes or
splits one; everybody else treats them as opaque. The compiled writer of lines has the start of all
positions of a generation, and the widths of what follows, from here.
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

_LOG_POSITION_SIZE = len("0001.0123456789ABCDEF")
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
