"""How far the snapshots under way have come: what status, metrics and logs show."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from engine.model.schema import TableName
from engine.model.snapshot_source import HeldTable, ReadProgress


class RowObserver(Protocol):
    """Who is told of rows (the metrics)."""

    def snapshot_rows(self, table: TableName, count: int) -> None:
        """So many more rows were staged."""
        ...

    def snapshot_rows_estimate(self, count: int) -> None:
        """The tables that are being read have about so many rows."""
        ...


@dataclass(slots=True)
class TableProgress:
    """One table whose rows are being read. Rows and bytes are the source's, estimates guesses."""

    rows_estimate: int
    bytes_estimate: int
    ranges: int
    began: float
    ranges_done: int = 0
    rows_done: int = 0
    running: dict[int, ReadProgress] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows read so far, those of unfinished ranges too."""
        return self.rows_done + sum(progress.rows for progress in self.running.values())


class Progress:
    """The tables that are being read now. Nothing here waits."""

    def __init__(self, observer: RowObserver) -> None:
        self._observer = observer
        self._tables: dict[TableName, TableProgress] = {}

    @property
    def tables(self) -> Mapping[TableName, TableProgress]:
        """Those that are being read, by name."""
        return self._tables

    def begin(self, table: TableName, held: HeldTable, now: float) -> None:
        """The table's ranges are given out from now on."""
        self._tables[table] = TableProgress(
            max(held.rows_estimate, 0), held.bytes_estimate, len(held.ranges), now
        )
        self._tell()

    def running(self, table: TableName, range_number: int, progress: ReadProgress) -> None:
        """A range has come so far."""
        known = self._tables.get(table)
        if known is not None:
            known.running[range_number] = progress

    def done(self, table: TableName, range_number: int, row_count: int) -> None:
        """A range is staged."""
        known = self._tables[table]
        known.running.pop(range_number, None)
        known.ranges_done += 1
        known.rows_done += row_count
        self._observer.snapshot_rows(table, row_count)

    def end(self, table: TableName) -> None:
        """Nothing is read of the table any more."""
        self._tables.pop(table, None)
        self._tell()

    def _tell(self) -> None:
        self._observer.snapshot_rows_estimate(
            sum(max(known.rows_estimate, known.rows) for known in self._tables.values())
        )
