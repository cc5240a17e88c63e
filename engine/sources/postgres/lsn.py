"""LSNs: byte positions in PostgreSQL's log, and the log points that they are for the core."""

from typing import NewType

from engine.model.errors import DecodeError
from engine.model.log_point import LogPoint
from engine.model.position import log_position

Lsn = NewType("Lsn", int)
"""A byte position in the server's log, 64 bits. Say which: commit_lsn, change_lsn, flush_lsn."""

NO_LSN = Lsn(0)
"""Before everything; as a start: where the slot stands."""


def format_lsn(lsn: Lsn) -> str:
    """An LSN as PostgreSQL prints it: `16/B374D848`."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> Lsn:
    """The LSN that PostgreSQL printed as `text`. Raises DecodeError when it is none."""
    high, _, low = text.partition("/")
    try:
        return Lsn((int(high, 16) << 32) | int(low, 16))
    except ValueError:
        raise DecodeError(f"not an LSN: {text!r}") from None


def log_point(generation: int, lsn: Lsn, commit_us: int = 0) -> LogPoint:
    """The log point at `lsn`: its order is the LSN, its resume text what PostgreSQL prints."""
    return LogPoint(log_position(generation, lsn), format_lsn(lsn), commit_us)


def lsn_of(point: LogPoint | None) -> Lsn:
    """Where a log point of ours is; where there is none, the slot says where to begin."""
    return parse_lsn(point.resume) if point is not None else NO_LSN
