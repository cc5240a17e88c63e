"""The forms in which `tailrace read` writes: lines as they are, CSV, Parquet.

Each takes lines of one version after the other, on a thread beside the loop, and says how many rows
or changes they were.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, assert_never

from engine.model.errors import ReadRefused

if TYPE_CHECKING:
    from engine.reader.formats.taking import Taking

Format = Literal["ndjson", "csv", "parquet"]
Write = Callable[[bytes], None]


class Ndjson:
    """The lines as they are."""

    def __init__(self, taking: "Taking", write: Write) -> None:
        self._taking = taking
        self._write = write

    def take(self, lines: memoryview, version: int) -> int:
        """Write some lines, and say how many."""
        del version
        count = 0
        # An object's lines may be a mapped file, larger than the memory.
        for piece in self._taking.pieces(lines):
            content = bytes(piece)
            self._write(content)
            count += content.count(b"\n")
        return count

    def finish(self) -> None:
        """Nothing is left."""


class Csv:
    """CSV, its header first."""

    def __init__(self, taking: "Taking", write: Write) -> None:
        from engine.reader.formats import csv_text  # noqa: PLC0415 - it loads the engine

        self._taking = taking
        self._write = write
        self._lines = csv_text
        header = csv_text.header(taking.names, is_changes=taking.is_changes)
        self._write(header.encode())

    def take(self, lines: memoryview, version: int) -> int:
        """Write some lines, and say how many."""
        count = 0
        for piece in self._taking.pieces(lines):
            written = [*self._written(piece, version)]
            self._write("".join(written).encode())
            count += len(written)
        return count

    def _written(self, piece: memoryview, version: int) -> Iterator[str]:
        names = self._taking.names
        if self._taking.is_changes:
            return self._lines.change_lines(self._taking.changes(piece, version), names)
        return self._lines.row_lines(self._taking.rows(piece), names)

    def finish(self) -> None:
        """Nothing is left."""


class Parquet:
    """One Parquet file."""

    def __init__(self, taking: "Taking", write: Write) -> None:
        try:
            from engine.reader.formats.arrow import Batches  # noqa: PLC0415 - an extra
            from engine.reader.formats.parquet_file import ParquetFile  # noqa: PLC0415 - an extra
        except ImportError as error:
            hint = "pip install 'tailrace[read]'"
            raise ReadRefused("extra-missing", "pyarrow is not installed", hint=hint) from error
        self._taking = taking
        self._batches = Batches(taking.columns, is_changes=taking.is_changes)
        self._file = ParquetFile(write, self._batches.schema)

    def take(self, lines: memoryview, version: int) -> int:
        """Write some lines, and say how many."""
        count = 0
        for piece in self._taking.pieces(lines):
            batch = self._batch(piece, version)
            self._file.add(batch)
            count += batch.num_rows
        return count

    def _batch(self, piece: memoryview, version: int) -> Any:
        # Any: pyarrow has no types.
        if self._taking.is_changes:
            return self._batches.of_changes(self._taking.changes(piece, version))
        return self._batches.of_row_lines(bytes(piece))

    def finish(self) -> None:
        """Write the file's end."""
        self._file.finish()


def form_of(format_: Format, taking: "Taking", write: Write) -> Ndjson | Csv | Parquet:
    match format_:
        case "ndjson":
            return Ndjson(taking, write)
        case "csv":
            return Csv(taking, write)
        case "parquet":
            return Parquet(taking, write)
        case _:
            assert_never(format_)
