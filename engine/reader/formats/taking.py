"""The lines of an answer as records or rows, version by version. Pure."""

from collections.abc import Iterator

from engine.reader.formats.columns import ColumnKind, columns_of
from engine.reader.formats.records import Taken, Values, change, row
from engine.reader.table.folding import envelope_of
from engine.reader.table.lines import whole_lines
from engine.reader.table.reading import Reading

PIECE_BYTES = 8 * 1024 * 1024
"""So many bytes of lines become one batch: some ten thousand rows."""


class Taking:
    """How one reading's lines are taken apart. Columns in `as_text` are text."""

    def __init__(self, reading: Reading, as_text: tuple[str, ...] = ()) -> None:
        self.is_changes = not reading.is_current
        # Of changes, all versions: so a loop's later answers have the same columns.
        newest = reading.known.newest if self.is_changes else reading.newest
        versions = reading.known.versions if self.is_changes else ()
        self.columns: tuple[ColumnKind, ...] = columns_of(versions, newest, as_text)
        self._prefixes = {version.number: version.flat_prefix for version in reading.known.versions}

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    @staticmethod
    def pieces(lines: memoryview) -> Iterator[memoryview]:
        """The same lines in pieces of `PIECE_BYTES`, or one line."""
        while lines:
            size = whole_lines(lines, PIECE_BYTES)
            yield lines[:size]
            lines = lines[size:]

    @staticmethod
    def rows(lines: memoryview) -> Iterator[Values]:
        """Rows of the current state."""
        return map(row, bytes(lines).splitlines())

    def changes(self, lines: memoryview, version: int) -> Iterator[Taken]:
        """Changes of that version."""
        prefix = self._prefixes[version]
        envelope = envelope_of(lines, "flat" if prefix else "standard")
        return (change(line, envelope, version, prefix) for line in bytes(lines).splitlines())
