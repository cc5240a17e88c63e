"""Positions: one change's place in the total order, as text that sorts.

`{generation:04d}.{commit_lsn:016X}.{change_lsn:016X}.{n:06X}`: commit order first, because across
transactions `change_lsn` alone goes backwards. `n` counts a table's changes that share both LSNs
(COPY writes many rows in one WAL record). All parts come from the source's log alone, so a replay
assigns the same ones.

Invariant: comparing two positions as strings compares them as changes. Only this module makes or
reads one; everything else treats a position as opaque. The compiled writer of lines has the start
of all positions of a generation, and the widths of what follows, from here.
"""

from typing import NewType

from engine.errors import DecodeError

Lsn = NewType("Lsn", int)
"""A byte position in the source's log, 64 bits. Say which: commit_lsn, change_lsn, flush_lsn."""

Position = NewType("Position", str)

NO_LSN = Lsn(0)
"""Before everything; as a start: where the slot stands."""

NOWHERE = Position("")
"""Sorts before every position."""

PART_DIGITS = (16, 16, 6)
"""Hexadecimal digits of the parts behind the generation, for the compiled writer of lines."""

_GENERATION_MAX = 9999


def generation_prefix(generation: int) -> str:
    """How all positions of a generation begin. Raises ValueError beyond four digits."""
    if not 0 <= generation <= _GENERATION_MAX:
        raise ValueError(f"generation {generation} is not between 0 and {_GENERATION_MAX}")
    return f"{generation:04d}."


def make_position(generation: int, commit_lsn: Lsn, change_lsn: Lsn, n: int) -> Position:
    """The position of one change."""
    return Position(f"{generation:04d}.{commit_lsn:016X}.{change_lsn:016X}.{n:06X}")


def log_prefix(generation: int, lsn: Lsn) -> str:
    """How the positions of what commits at `lsn` begin: sorts before them, after all before it."""
    return f"{generation:04d}.{lsn:016X}"


def commit_lsn_of(position: Position) -> Lsn:
    """The LSN of the commit record of the change's transaction."""
    return Lsn(int(position[5:21], 16))


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
