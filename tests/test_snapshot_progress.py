"""How far snapshots are, as the log says it."""

from engine.model.schema import TableName
from engine.model.snapshot_source import HeldTable
from engine.operate.logs import FIELDS
from engine.snapshot.progress import Progress
from small_bucket import ORDERS
from small_snapshot import relation


class Silent:
    """Nobody counts here."""

    def snapshot_rows(self, table: TableName, count: int) -> None:
        pass

    def snapshot_rows_estimate(self, count: int) -> None:
        pass


def test_the_line_of_the_log_has_only_fields_that_may_be_shown() -> None:
    progress = Progress(Silent())
    progress.begin(ORDERS, HeldTable(relation(ORDERS), (b"1", b"2"), 100, 1_000), 0.0)
    before = progress.line(1.0)

    progress.done(ORDERS, 0, 50)
    line = progress.line(10.0)

    assert before == {}
    assert set(line) <= FIELDS
    assert line["progress"] == "█" * 10 + "░" * 10 + " 50%"
    assert (line["rows"], line["rows_estimate"], line["seconds_left"]) == (50, 100, 10)


def test_more_rows_than_were_estimated_are_all_of_them() -> None:
    progress = Progress(Silent())
    progress.begin(ORDERS, HeldTable(relation(ORDERS), (b"1",), -1, -1), 0.0)

    progress.done(ORDERS, 0, 7)

    assert progress.line(10.0)["rows_estimate"] == 7
