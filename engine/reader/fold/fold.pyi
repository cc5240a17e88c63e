"""The fold: a table's records in, newest first; the rows of its current state out.

See `fold.pyx` for the strategy. A row comes out as its `after` in the record that was the last to
change it, with columns that this record left out (`unchanged`) filled in from older ones. A state
that is larger than the memory that it may take is folded in several passes over the same objects.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple, final

from engine.reader.fold.shape import Shape

PART_COUNT: Final[int]
"""Keys are remembered in so many parts, by their hash. A pass is some neighbours of them."""

class Pass(NamedTuple):
    """What one reading of a table's objects gives: rows whose key's hash is in some parts.

    `secret` is the hash's key, the same for all passes of one fold. `above` is the position where
    the pass before this one began to leave these parts out: rows that were complete before are
    not given again. Empty: none was.
    """

    first_part: int
    last_part: int
    secret: bytes
    above: str

@final
class Rows:
    """Some rows of one version, newest first: NDJSON, each line the row's columns as an object.

    A row has the columns of its version. What became of a column since, and what one has that was
    added since, `Shape` tells.
    """

    @property
    def version(self) -> int: ...
    @property
    def lines(self) -> bytes: ...
    @property
    def row_count(self) -> int: ...

@final
class Fold:
    """One pass. Not safe for use from two threads at once; the GIL is released as it works.

    After an error it is of no use.
    """

    def __init__(self, newest: Shape, *, memory_max: int = ..., part: Pass | None = None) -> None:
        """`newest` is the shape of the table's newest version.

        `memory_max` bounds what keys and unfinished rows take, in bytes; bodies, and the rows that
        are handed over, about 2 MiB at a time, are beside it. `part` is one of an earlier pass'
        `finish`; without it, this is the first one, and it tries to hold all.

        Raises StateUnknown where lines of this shape do not tell a state.
        """

    def take(
        self, body: bytes | bytearray | memoryview, shape: Shape, *, low: str = "", high: str = ""
    ) -> Iterator[Rows]:
        """Fold an object's lines: those at `low` or behind it, and before `high` (empty: all).

        Both are positions, of changes or of places in the log, and compare as text. `shape` is the
        version's of the object. Bodies come newest first: every change that is taken lies before
        all that were taken so far. An object whose lines lie on both sides of others is given
        twice, with bounds. Of a body only what is needed is looked at: whoever gives it has
        compared its checksum.

        Nothing happens before the first `next`, and the body may not change before the last one.
        Another body is only taken when all rows of the one before were (else ValueError). A fold
        that `is_over` gives none.

        Raises DecodeError where a line is not of the writer's form or out of order, StateUnknown
        where rows of this version cannot be folded with newer ones, FoldTooLarge where not even
        one part fits into the memory.
        """

    @property
    def is_over(self) -> bool:
        """Whether everything older is without effect: it was truncated, or another table's."""

    @property
    def memory(self) -> int:
        """Bytes that keys and unfinished rows take now."""

    @property
    def key_count(self) -> int:
        """How many keys are remembered, or texts of rows."""

    def finish(self) -> tuple[Pass, ...]:
        """Say that there is nothing older. What is still to be read: further passes, mostly none.

        Their rows and those that were given are the state, each once. Raises StateUnknown where a
        row stayed unfinished, or an old row was never written.
        """

def passes_for(key_count: int, memory_max: int) -> int:
    """About how many passes a state of so many keys takes, none of whose rows is unfinished."""
