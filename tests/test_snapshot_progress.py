"""How far snapshots are, as the log says it."""

import pytest

from engine.model.schema import TableName
from engine.model.snapshot_source import HeldTable, ReadProgress
from engine.operate.logs import FIELDS
from engine.operate.status import SnapshotsStatus
from engine.snapshot.progress import Progress
from small_bucket import ODD, ORDERS
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


def test_status_has_each_table_and_their_sum() -> None:
    progress = Progress(Silent())
    progress.begin(ORDERS, HeldTable(relation(ORDERS), (b"1", b"2"), 100, 1_000), 0.0)
    progress.begin(ODD, HeldTable(relation(ODD), (b"1",), 300, 5_000), 5.0)
    progress.done(ORDERS, 0, 60)
    progress.running(ODD, 0, ReadProgress(20, 400))

    found = progress.status(10.0)

    assert [each.table for each in found.tables] == [str(ODD), str(ORDERS)]
    assert [each.rows_per_second for each in found.tables] == [4.0, 6.0]
    assert [each.seconds_left for each in found.tables] == [70.0, pytest.approx(40 / 6)]
    assert found.in_all is not None
    assert (found.in_all.rows, found.in_all.rows_estimate) == (80, 400)
    assert (found.in_all.ranges_done, found.in_all.ranges) == (1, 3)
    assert (found.in_all.rows_per_second, found.in_all.seconds_left) == (8.0, 40.0)


def test_nothing_that_is_read_has_no_sum() -> None:
    progress = Progress(Silent())
    progress.begin(ORDERS, HeldTable(relation(ORDERS), (b"1",), 100, 1_000), 0.0)
    before = progress.status(0.5)

    progress.end(ORDERS)

    assert before.in_all is not None
    assert before.in_all.seconds_left is None
    assert progress.status(1.0) == SnapshotsStatus()


def test_more_rows_than_were_estimated_are_all_of_them() -> None:
    progress = Progress(Silent())
    progress.begin(ORDERS, HeldTable(relation(ORDERS), (b"1",), -1, -1), 0.0)

    progress.done(ORDERS, 0, 7)

    assert progress.line(10.0)["rows_estimate"] == 7


def test_of_a_table_that_was_never_counted_the_ranges_tell_how_far_it_is() -> None:
    progress = Progress(Silent())
    progress.begin(ODD, HeldTable(relation(ODD), (b"1", b"2"), -1, 1_000), 0.0)
    progress.begin(ORDERS, HeldTable(relation(ORDERS), (b"1",), 100, 1_000), 0.0)
    progress.done(ODD, 0, 60)
    progress.running(ODD, 1, ReadProgress(30, 400))

    found = progress.status(10.0)

    [orders, odd] = found.tables
    assert (orders.rows_estimate, odd.rows, odd.rows_estimate, odd.seconds_left) == (
        100,
        90,
        0,
        None,
    )
    assert odd.share == 0.5
    assert found.in_all is not None
    assert (found.in_all.rows, found.in_all.rows_estimate) == (90, 190)


def test_a_snapshot_is_whole_when_its_last_range_is_whatever_was_estimated() -> None:
    progress = Progress(Silent())
    progress.begin(ORDERS, HeldTable(relation(ORDERS), (b"1", b"2"), 100, 1_000), 0.0)
    progress.done(ORDERS, 0, 60)

    progress.running(ORDERS, 1, ReadProgress(300, 400))
    [ahead] = progress.status(10.0).tables
    progress.done(ORDERS, 1, 300)
    [whole] = progress.status(20.0).tables

    # More was sent than there was thought to be: nobody knows what is left.
    assert (ahead.share, ahead.seconds_left) == (0.99, None)
    assert (whole.share, whole.seconds_left) == (1.0, 0.0)
