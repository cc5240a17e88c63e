"""Records as lines: where one is in the order of all, and the lines between two places. Pure.

Strategy: the lines of an object are in order. So what lies between two places is one piece of the
body, and its ends are found by halving. A record's own position is the last thing of that name in
its line: a row's values come before it, and inside a text every quote has a backslash.

Invariant: lines are never copied or changed here.
"""

import re
from typing import Final

from engine.model.errors import DecodeError
from engine.model.position import Position

_NAMED: Final = re.compile(rb'position":"([0-9]{4}(?:\.[0-9A-F]{16}){2}\.[0-9A-F]{6})"')
# A record's own fields take less; a list of columns may follow the position.
_TAIL_BYTES: Final = 1024


def position_of(line: bytes) -> Position:
    """The position of the record in `line`, of any envelope. Raises DecodeError."""
    for text in (line[-_TAIL_BYTES:], line):
        found = _NAMED.findall(text)
        if found:
            return Position(found[-1].decode())
    raise DecodeError("a line is no record: it has no position")


def between(body: memoryview, low: str, high: str) -> memoryview:
    """The lines of `body` whose position is at `low` or behind it, and before `high`.

    Raises DecodeError where a line that is looked at is no record.
    """
    begin = _first_at(body, low) if low else 0
    end = _first_at(body, high) if high != "~" else len(body)
    return body[begin : max(begin, end)]


def _first_at(body: memoryview, place: str) -> int:
    """Where the first line begins whose position is not before `place`."""
    low, high = 0, len(body)
    while low < high:
        begin = _line_begin(body, (low + high) // 2, low)
        end = _line_end(body, begin)
        if position_of(bytes(body[begin:end])) < place:
            low = end
        else:
            high = begin
    return low


_STEP: Final = 4096


def _line_begin(body: memoryview, at: int, low: int) -> int:
    """Where the line begins that holds byte `at`; a line begins at `low`."""
    while at > low:
        start = max(low, at - _STEP)
        newline = bytes(body[start:at]).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        at = start
    return low


def _line_end(body: memoryview, at: int) -> int:
    """Where the line that begins at `at` ends, behind its newline."""
    while at < len(body):
        newline = bytes(body[at : at + _STEP]).find(b"\n")
        if newline >= 0:
            return at + newline + 1
        at += _STEP
    raise DecodeError("a body does not end in a newline")


def last_of(lines: memoryview) -> Position:
    """The position of the last record of some lines, of which there is one at least."""
    return position_of(bytes(lines[_line_begin(lines, len(lines) - 1, 0) :]))


def whole_lines(body: memoryview, size_bytes: int) -> int:
    """How many bytes of `body` are whole lines and about `size_bytes`: one line at least."""
    if len(body) <= size_bytes:
        return len(body)
    begin = _line_begin(body, size_bytes, 0)
    return begin or _line_end(body, 0)
