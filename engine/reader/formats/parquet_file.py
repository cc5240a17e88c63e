"""A Parquet file of batches. Import it late: pyarrow is an extra (`tailrace[read]`)."""

import io
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet

GROUP_BYTES: Final = 64 * 1024 * 1024
"""A row group has about so many bytes in memory: readers read one at a time."""


class ParquetFile:
    """Writes one file, in order, to `write`. Any: pyarrow has no types of its own."""

    def __init__(self, write: Callable[[bytes], None], schema: Any) -> None:
        self._sink = pa.PythonFile(_Sink(write), mode="w")
        self._writer = pyarrow.parquet.ParquetWriter(self._sink, schema, compression="zstd")
        self._schema = schema
        self._waiting: list[Any] = []
        self._waiting_bytes = 0

    def add(self, batch: Any) -> None:
        """Write the batch, with its neighbours."""
        self._waiting.append(batch)
        self._waiting_bytes += batch.nbytes
        if self._waiting_bytes >= GROUP_BYTES:
            self._write()

    def finish(self) -> None:
        """Write what is left and the file's end."""
        self._write()
        self._writer.close()
        self._sink.close()

    def _write(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, self._schema)
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
            self._waiting.clear()
            self._waiting_bytes = 0


class _Sink(io.RawIOBase):
    """What pyarrow writes to: a pipe cannot tell where it is."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._size_bytes = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size_bytes

    def write(self, content: Any) -> int:
        piece = bytes(content)
        self._write(piece)
        self._size_bytes += len(piece)
        return len(piece)
