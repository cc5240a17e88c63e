"""What each table does: rows, rate, and its last object.

Strategy: the reader counts batches and the committer objects, each with one look-up. At each tick
the tables that were active since the tick before get their rate. So a tick costs by active tables,
not by known ones. Beyond `TABLES_MAX` the table that was touched least recently is forgotten:
tables come and go.

Invariant: pure, and never per row.
"""

from collections.abc import Iterable
from heapq import nlargest
from operator import attrgetter
from typing import Final

from engine.model.schema import TableName

TABLES_MAX: Final = 20_000


class TableActivity:
    """One table since the process began. Times are Unix microseconds, 0 where there is none."""

    __slots__ = (
        "last_object",
        "last_object_us",
        "objects_total",
        "rows_per_second",
        "rows_total",
        "table",
        "ticked_rows",
    )

    def __init__(self, table: TableName) -> None:
        self.table = table
        self.rows_total = 0
        self.rows_per_second = 0.0
        self.ticked_rows = 0
        self.objects_total = 0
        self.last_object = ""
        self.last_object_us = 0

    @property
    def rank(self) -> tuple[float, int, int, TableName]:
        """Sorts the busiest first."""
        return (-self.rows_per_second, -self.rows_total, -self.last_object_us, self.table)


class Activity:
    """The tables of one engine. Nothing here waits."""

    def __init__(self) -> None:
        self.rows_total = 0
        self.objects_total = 0
        self.bytes_total = 0
        # The table that was touched last is last.
        self._tables: dict[TableName, TableActivity] = {}
        self._active: set[TableName] = set()
        self._ticked_us = 0

    def __contains__(self, table: TableName) -> bool:
        return table in self._tables

    def get(self, table: TableName) -> TableActivity | None:
        """What is known of the table."""
        return self._tables.get(table)

    def rows(self, table: TableName, count: int) -> None:
        """So many rows of the table were read."""
        self.rows_total += count
        self._touched(table).rows_total += count
        self._active.add(table)

    def visible(self, table: TableName, key: str, size_bytes: int, now_us: int) -> None:
        """An object of the table became visible."""
        self.objects_total += 1
        self.bytes_total += size_bytes
        found = self._touched(table)
        found.objects_total += 1
        found.last_object, found.last_object_us = key, now_us

    def tick(self, now_us: int) -> None:
        """Compute rates over the time since the tick before."""
        seconds, self._ticked_us = (now_us - self._ticked_us) / 1e6, now_us
        still_active: set[TableName] = set()
        for table in self._active:
            found = self._tables.get(table)
            if found is None:
                continue
            count, found.ticked_rows = found.rows_total - found.ticked_rows, found.rows_total
            found.rows_per_second = round(count / seconds, 1) if seconds > 0 else 0.0
            if count:
                # The next tick looks at it again, and finds it at rest or not.
                still_active.add(table)
        self._active = still_active

    def busiest(self, count: int) -> Iterable[TableActivity]:
        """So many tables, the busiest first. Of 5,000 tables it takes a millisecond."""
        # Of tables at rest, those that were touched last are chosen: the others wait longest.
        chosen = nlargest(count, reversed(self._tables.values()), key=_rows_per_second)
        return sorted(chosen, key=_rank_of)

    def _touched(self, table: TableName) -> TableActivity:
        found = self._tables.pop(table, None)
        if found is None:
            found = TableActivity(table)
            if len(self._tables) >= TABLES_MAX:
                del self._tables[next(iter(self._tables))]
        self._tables[table] = found
        return found


_rows_per_second = attrgetter("rows_per_second")


def _rank_of(activity: TableActivity) -> tuple[float, int, int, TableName]:
    return activity.rank
