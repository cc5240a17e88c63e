"""How far the snapshots under way have come: what status, metrics and logs show."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from engine.model.schema import TableName
from engine.model.snapshot_source import HeldTable, ReadProgress
from engine.operate.status import SnapshotsStatus, SnapshotStatus, progress_bar

SHOWN_MAX: Final = 100
"""Tables that the status lists."""

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

    @property
    def _rows_thought(self) -> int:
        """What it is thought to have; 0 where the source never counted it, and it is not read."""
        is_unknown = not self.rows_estimate and self.ranges_done < self.ranges
        return 0 if is_unknown else max(self.rows_estimate, self.rows)

    def status(self, table: TableName, now: float) -> SnapshotStatus:
        return _status(
            str(table),
            rows=self.rows,
            rows_estimate=self._rows_thought,
            bytes_=self.bytes,
            bytes_estimate=self.bytes_estimate,
            ranges_done=self.ranges_done,
            ranges=self.ranges,
            seconds=now - self.began,
        )


class Progress:
    """The tables that are being read now. Nothing here waits. Times are the loop's."""

    def __init__(self, observer: RowObserver) -> None:
        self._observer = observer
        self._tables: dict[TableName, _TableProgress] = {}
        self.rows_total = 0
        """Rows of snapshots that were staged since the process began."""

    def begin(self, table: TableName, held: HeldTable, now: float) -> None:
        """The table's ranges are given out from now on."""
        self._tables[table] = _TableProgress(
            max(held.rows_estimate, 0), max(held.bytes_estimate, 0), len(held.ranges), now
        )
        # A rate needs the counter before its first step, which may be all of a table.
        self._observer.snapshot_rows(table, 0)
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
        self.rows_total += row_count
        known.bytes_done += last.size_bytes if last is not None else 0
        self._observer.snapshot_rows(table, row_count)

    def end(self, table: TableName) -> None:
        """Nothing is read of the table any more."""
        self._tables.pop(table, None)
        self._tell()

    def status(self, now: float) -> SnapshotsStatus:
        """Those that are being read, `SHOWN_MAX` of them at most, and the sum of all."""
        found = self._each(now)
        found.sort(key=lambda status: (-status.rows_estimate, status.table))
        return SnapshotsStatus(tables=tuple(found[:SHOWN_MAX]), in_all=_in_all(found))

    def line(self, now: float) -> dict[str, object]:
        """One line for the log about all that are being read; empty while nothing is."""
        tables = self._each(now)
        found = _in_all(tables)
        if found is None or not found.rows:
            return {}
        left = found.seconds_left
        return {
            "progress": progress_bar(found.share),
            "tables": len(tables),
            "rows": found.rows,
            "rows_estimate": found.rows_estimate,
            "seconds_left": None if left is None else round(left),
        }

    def _each(self, now: float) -> list[SnapshotStatus]:
        return [known.status(table, now) for table, known in self._tables.items()]

    def _tell(self) -> None:
        self._observer.snapshot_rows_estimate(
            sum(max(known.rows_estimate, known.rows) for known in self._tables.values())
        )


def _in_all(tables: Sequence[SnapshotStatus]) -> SnapshotStatus | None:
    """The sum of the tables, since the first of them was begun; None of none."""
    if not tables:
        return None
    # A table that was never counted has at least what came of it.
    thought = sum(max(each.rows_estimate, each.rows) for each in tables)
    return _status(
        "",
        rows=sum(each.rows for each in tables),
        rows_estimate=thought if any(each.rows_estimate for each in tables) else 0,
        bytes_=sum(each.bytes for each in tables),
        bytes_estimate=sum(each.bytes_estimate for each in tables),
        ranges_done=sum(each.ranges_done for each in tables),
        ranges=sum(each.ranges for each in tables),
        seconds=max(each.seconds for each in tables),
    )


def _status(
    table: str,
    *,
    rows: int,
    rows_estimate: int,
    bytes_: int,
    bytes_estimate: int,
    ranges_done: int,
    ranges: int,
    seconds: float,
) -> SnapshotStatus:
    rate = rows / seconds if rows > 0 and seconds >= _SURE_SECONDS else None
    # Where more is read than was estimated, nobody knows how much there is.
    is_known = rows < rows_estimate or ranges_done >= ranges
    return SnapshotStatus(
        table=table,
        rows=rows,
        rows_estimate=rows_estimate,
        bytes=bytes_,
        bytes_estimate=bytes_estimate,
        ranges_done=ranges_done,
        ranges=ranges,
        seconds=seconds,
        rows_per_second=rate,
        seconds_left=(rows_estimate - rows) / rate if rate is not None and is_known else None,
    )
