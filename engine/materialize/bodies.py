"""Batches into bodies of Parquet files, none of them large."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow.compute as pc

from engine.reader.formats.parquet_file import ParquetFile

BODY_BYTES: Final = 64 * 1024 * 1024
"""A file is full when it has so many bytes: what is held in memory stays within some such sizes."""


@dataclass(frozen=True, slots=True)
class Body:
    """One whole Parquet file. `first` and `last` are the least and the greatest position in it."""

    content: bytes
    row_count: int
    first: str
    last: str


class Bodies:
    """Takes batches of one schema, and hands each body to `put` when it is full."""

    def __init__(self, schema: Any, put: Callable[[Body], None]) -> None:
        # Any: pyarrow has no types.
        self._schema = schema
        self._put = put
        self._buffer = io.BytesIO()
        self._file: ParquetFile | None = None
        self._row_count = 0
        self._first = self._last = ""

    def add(self, table: Any) -> None:
        """Write the rows of a table of pyarrow into the file that is open."""
        if not table.num_rows:
            return
        if self._file is None:
            self._file = ParquetFile(self._write, self._schema)
        for batch in table.to_batches():
            self._file.add(batch)
        ends = pc.min_max(table.column("position")).as_py()
        self._first = min(self._first or ends["min"], ends["min"])
        self._last = max(self._last, ends["max"])
        self._row_count += table.num_rows
        if self._buffer.tell() >= BODY_BYTES:
            self.finish()

    def finish(self) -> None:
        """Hand over what is left."""
        if self._file is None:
            return
        self._file.finish()
        body = Body(self._buffer.getvalue(), self._row_count, self._first, self._last)
        self._file, self._buffer, self._row_count = None, io.BytesIO(), 0
        self._first = self._last = ""
        self._put(body)

    def _write(self, content: bytes) -> None:
        self._buffer.write(content)
