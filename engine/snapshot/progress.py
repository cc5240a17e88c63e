"""How far the snapshots under way have come: what status, metrics and logs show."""

from dataclasses import dataclass, field
from typing import Final, Protocol

from engine.model.schema import TableName
from engine.model.snapshot_source import HeldTable, ReadProgress
from engine.operate.status import SnapshotStatus

SHOWN_MAX: Final = 100
"""Tables that the status lists."""

_BAR_CHARACTERS: Final = 20

_SURE_SECONDS: Final = 1.0
"""A rate that is younger says nothing yet."""


class RowObserver(Protocol):
    """Who is told of rows (the metrics)."""

    def snapshot_rows(self, table: TableName, count: int) -> None:
        """So many more rows were staged."""
        ...

    def snapshot_rows_estimate(self, count: int) -> None:
        """The tables that are being read have about so many rows."""
        ...


@dataclass(slots=True)
class _TableProgress:
    """One table whose rows are being read. Rows and bytes are the source's, estimates guesses."""

    rows_estimate: int
    bytes_estimate: int
    ranges: int
    began: float
    ranges_done: int = 0
    rows_done: int = 0
    bytes_done: int = 0
    running: dict[int, ReadProgress] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows read so far, those of unfinished ranges too."""
        return self.rows_done + sum(progress.rows for progress in self.running.values())

    @property
    def bytes(self) -> int:
        """Bytes that the source sent so far."""
        return self.bytes_done + sum(progress.size_bytes for progress in self.running.values())

    def status(self, table: TableName, now: float) -> SnapshotStatus:
        seconds, rows = now - self.began, self.rows
        rows_estimate = max(self.rows_estimate, rows)
        is_sure = rows > 0 and seconds >= _SURE_SECONDS
        return SnapshotStatus(
            table=str(table),
            rows=rows,
            rows_estimate=rows_estimate,
            bytes=self.bytes,
            bytes_estimate=self.bytes_estimate,
            ranges_done=self.ranges_done,
            ranges=self.ranges,
            seconds=seconds,
            seconds_left=(rows_estimate - rows) * seconds / rows if is_sure else None,
        )


class Progress:
    """The tables that are being read now. Nothing here waits. Times are the loop's."""

    def __init__(self, observer: RowObserver) -> None:
        self._observer = observer
        self._tables: dict[TableName, _TableProgress] = {}

    def begin(self, table: TableName, held: HeldTable, now: float) -> None:
        """The table's ranges are given out from now on."""
        self._tables[table] = _TableProgress(
            max(held.rows_estimate, 0), max(held.bytes_estimate, 0), len(held.ranges), now
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
        last = known.running.pop(range_number, None)
        known.ranges_done += 1
        known.rows_done += row_count
        known.bytes_done += last.size_bytes if last is not None else 0
        self._observer.snapshot_rows(table, row_count)

    def end(self, table: TableName) -> None:
        """Nothing is read of the table any more."""
        self._tables.pop(table, None)
        self._tell()

    def status(self, now: float) -> tuple[SnapshotStatus, ...]:
        """Those that are being read, the largest first, `SHOWN_MAX` at most."""
        found = [known.status(table, now) for table, known in self._tables.items()]
        found.sort(key=lambda status: (-status.rows_estimate, status.table))
        return tuple(found[:SHOWN_MAX])

    def line(self, now: float) -> dict[str, object]:
        """One line for the log about all that are being read; empty while nothing is."""
        tables = [known.status(table, now) for table, known in self._tables.items()]
        rows = sum(status.rows for status in tables)
        estimate = sum(status.rows_estimate for status in tables)
        if not rows:
            return {}
        share = rows / estimate
        full = round(_BAR_CHARACTERS * share)
        left = max((s.seconds_left for s in tables if s.seconds_left is not None), default=None)
        return {
            "progress": "█" * full + "░" * (_BAR_CHARACTERS - full) + f" {share:.0%}",
            "tables": len(tables),
            "rows": rows,
            "rows_estimate": estimate,
            "seconds_left": None if left is None else round(left),
        }

    def _tell(self) -> None:
        self._observer.snapshot_rows_estimate(
            sum(max(known.rows_estimate, known.rows) for known in self._tables.values())
        )
