"""Lanes: the gapless series of positions that one table's objects are made of.

A table has one lane for its stream, and one for each range of each attempt to take a snapshot of
it. Objects of a lane follow each other: each names the position where the one before it ended, and
they become visible in that order. Lanes do not wait for each other.

A lane of the stream can be read again from the source's log. A snapshot's lane cannot: what the
snapshot saw is gone with it. So its objects are staged, see `staged_object`.
"""

from typing import NamedTuple

from engine.model.schema import TableName

STREAM = 0
"""The attempt of a lane that is the table's stream. Attempts of snapshots count from 1."""


class Lane(NamedTuple):
    """One lane of a table. Ranges of an attempt count from 0; range 0 has the truncate record."""

    table: TableName
    attempt: int = STREAM
    range_number: int = 0

    @property
    def is_stream(self) -> bool:
        """Whether the log can be read again for its objects."""
        return self.attempt == STREAM

    def __str__(self) -> str:
        if self.is_stream:
            return str(self.table)
        return f"{self.table} (snapshot attempt {self.attempt}, range {self.range_number})"
