"""The batcher alone: who is bound, and when lines leave as batches."""

import json

import pytest

from engine.lines.batcher import BATCH_SIZE_MAX, BATCHES_A_TURN, Batcher
from engine.lines.holding import HELD_BATCHES_MIN, HELD_BYTES_MAX, HELD_SECONDS, Holding
from engine.lines.writer import OP_CREATE, VALUE_NUMBER, VALUE_TEXT, LineWriter
from engine.model.batch import Batch
from engine.model.position import Position
from engine.model.record import RecordConfiguration, TableRule
from engine.model.schema import Column, Relation, TableName, TableVersion

HOUR_US = 3_600_000_000
TIME_US = 497_500 * HOUR_US
FORMS = {"id": VALUE_NUMBER, "note": VALUE_TEXT}
ORDERS = TableName("public", "orders")
ITEMS = TableName("public", "items")


def relation(table: TableName, number: int) -> Relation:
    columns = (
        Column("id", "bigint", "integer", key=True),
        Column("note", "text", "text", key=False),
    )
    return Relation(table, str(number), columns, ("id",))


class Source:
    """A source of one row a transaction, on which only the batcher is real."""

    def __init__(
        self, configuration: RecordConfiguration | None = None, *, is_single_rows: bool = False
    ) -> None:
        self.lines = LineWriter(1, connector="test")
        self.asked: list[tuple[int, Position]] = []
        self.versions: dict[int, int | None] = {}
        self.batcher = Batcher(
            self.lines,
            database="shop",
            configuration=configuration or RecordConfiguration("", ("*.*",)),
            decide=self._decide,
            form_of=lambda column: FORMS[column.name],
            is_single_rows=is_single_rows,
        )
        self.order = 0

    def _decide(self, asked: Relation, position: Position) -> TableVersion | None:
        self.asked.append((int(asked.identity), position))
        number = self.versions.get(int(asked.identity), 1)
        return None if number is None else TableVersion(number, position, "", asked)

    def row(
        self, number: int, table: TableName, *, time_us: int = TIME_US, note: bytes = b""
    ) -> None:
        self.order += 1
        self.batcher.make_way(time_us)
        self.lines.begin(self.order, time_us)
        while (size := self.lines.write(number, 1, OP_CREATE, None, (b"1", note))) < 0:
            position = Position(self.lines.next_position(number, 1))
            if self.batcher.bind(number, relation(table, number), position) is None:
                self.lines.skip(number, 1)
                return
        if size > self.batcher.size_max:
            self.batcher.hand_over(number)

    def rest(self) -> tuple[Batch, ...]:
        self.batcher.hand_over_all()
        return self.batcher.taken()


def shown(batches: tuple[Batch, ...]) -> list[tuple[str, int, int]]:
    return [(batch.table.table, batch.version, batch.row_count) for batch in batches]


def test_a_table_is_asked_about_once_and_its_rows_leave_together() -> None:
    source = Source()

    for _ in range(3):
        source.row(7, ORDERS)
        source.row(8, ITEMS)

    assert [number for number, _ in source.asked] == [7, 8]
    assert not source.batcher.has_batches
    assert shown(source.rest()) == [("orders", 1, 3), ("items", 1, 3)]
    assert source.rest() == ()


def test_a_batch_says_what_its_rows_are() -> None:
    source = Source()
    source.row(7, ORDERS)
    source.row(7, ORDERS, time_us=TIME_US + 5)

    [batch] = source.rest()

    positions = [json.loads(line)["metadata"]["position"] for line in batch.lines.splitlines()]
    assert [batch.first, batch.last] == positions
    assert (batch.first_commit_us, batch.last_commit_us) == (TIME_US, TIME_US + 5)
    assert tuple(batch.operations) == (2, 0, 0, 0, 0)
    assert source.asked == [(7, positions[0])]


@pytest.mark.parametrize("time_us", [TIME_US - 1, TIME_US + HOUR_US])
def test_all_lines_leave_before_a_transaction_of_another_hour(time_us: int) -> None:
    source = Source()
    source.row(7, ORDERS)
    source.row(8, ITEMS)

    source.row(7, ORDERS, time_us=time_us)

    assert shown(source.batcher.taken()) == [("orders", 1, 1), ("items", 1, 1)]
    [batch] = source.rest()
    assert (batch.first_commit_us, batch.last_commit_us) == (time_us, time_us)


def test_a_full_table_leaves_alone_and_stays_bound() -> None:
    source = Source()
    source.row(8, ITEMS)

    source.row(7, ORDERS, note=b"x" * BATCH_SIZE_MAX)

    assert shown(source.batcher.taken()) == [("orders", 1, 1)]
    assert source.batcher.is_bound(7)
    assert shown(source.rest()) == [("items", 1, 1)]


def test_a_name_that_passes_to_another_table_and_back_is_asked_about_each_time() -> None:
    source = Source()
    source.versions = {7: 1, 9: 2}
    source.row(7, ORDERS)

    source.row(9, ORDERS)
    was_bound = source.batcher.is_bound(7)
    source.versions[7] = 3
    source.row(7, ORDERS)

    assert not was_bound
    assert [number for number, _ in source.asked] == [7, 9, 7]
    # In commit order, although what the first one has left is not all full.
    assert shown(source.rest()) == [("orders", 1, 1), ("orders", 2, 1), ("orders", 3, 1)]


def test_a_row_that_is_not_wanted_takes_its_name_all_the_same() -> None:
    source = Source()
    source.row(7, ORDERS)
    source.versions = {9: None}

    source.row(9, ORDERS)
    source.row(7, ORDERS)

    assert [number for number, _ in source.asked] == [7, 9, 7]


def test_a_table_that_was_let_go_of_leaves_its_lines_under_the_earlier_version() -> None:
    source = Source()
    source.row(7, ORDERS)
    source.versions = {7: 2}

    source.batcher.let_go(7)
    source.row(7, ORDERS)

    assert shown(source.rest()) == [("orders", 1, 1), ("orders", 2, 1)]


def test_a_table_that_is_forgotten_has_no_name() -> None:
    source = Source()
    source.row(7, ORDERS)

    source.batcher.forget(7, ORDERS)
    # Nothing is kept in memory of a table that is gone.
    assert not source.batcher._owners
    source.row(9, ORDERS)
    source.batcher.forget(7, ORDERS)
    source.row(9, ORDERS)

    assert [number for number, _ in source.asked] == [7, 9]
    assert shown(source.rest()) == [("orders", 1, 1), ("orders", 1, 2)]


def test_row_by_row_each_is_a_batch_and_asked_about() -> None:
    source = Source(is_single_rows=True)

    for _ in range(3):
        source.row(7, ORDERS)

    assert len(source.asked) == 3
    assert shown(source.batcher.taken()) == [("orders", 1, 1)] * 3


def test_lines_are_as_the_configuration_says() -> None:
    rules = (TableRule(match="public.orders", exclude=("note",)),)
    source = Source(RecordConfiguration("", ("*.*",), rules=rules, envelope="flat"))

    source.row(7, ORDERS)

    [batch] = source.rest()
    line = json.loads(batch.lines)
    assert (line["id"], line["_op"], "note" in line) == (1, "c", False)


def test_lines_of_many_tables_leave_in_several_turns_each_table_once() -> None:
    source = Source()
    tables = [TableName("public", f"table_{number}") for number in range(2 * BATCHES_A_TURN + 1)]
    for number, table in enumerate(tables):
        source.row(number, table)

    turns = []
    source.batcher.hand_over_some()
    while source.batcher.is_handing_over:
        turns.append(source.batcher.taken())
        source.batcher.hand_over_some()
    turns.append(source.batcher.taken())

    assert [len(batches) for batches in turns] == [BATCHES_A_TURN, BATCHES_A_TURN, 1]
    assert [batch.table for batches in turns for batch in batches] == tables
    assert source.lines.buffered == 0


def test_a_table_that_is_let_go_of_between_two_turns_leaves_once() -> None:
    source = Source()
    for number in range(BATCHES_A_TURN + 2):
        source.row(number, TableName("public", f"table_{number}"))
    source.batcher.hand_over_some()
    source.batcher.taken()

    source.batcher.let_go(BATCHES_A_TURN)
    source.batcher.hand_over_some()

    left = [batch.table.table for batch in source.batcher.taken()]
    assert left == [f"table_{BATCHES_A_TURN}", f"table_{BATCHES_A_TURN + 1}"]
    assert not source.batcher.is_handing_over


def test_nothing_is_left_to_hand_over_once_the_last_tables_are_let_go_of() -> None:
    source = Source()
    for number in range(BATCHES_A_TURN + 1):
        source.row(number, TableName("public", f"table_{number}"))
    source.batcher.hand_over_some()
    was_handing_over = source.batcher.is_handing_over

    source.batcher.let_go(BATCHES_A_TURN)

    assert was_handing_over
    assert not source.batcher.is_handing_over
    assert len(source.batcher.taken()) == BATCHES_A_TURN + 1


# ------------------------------------------------------------------------------------ holding


def test_lines_are_held_after_many_batches_and_no_longer_than_a_second() -> None:
    holding = Holding()
    before = holding.is_on(100.0, 1)

    holding.handed_over(100.0, HELD_BATCHES_MIN + 1, is_all=True)

    assert not before
    assert holding.is_on(100.25, 1)
    assert holding.is_on(100.5, 1)
    assert holding.seconds(100.75) == 0.5
    assert not holding.is_on(100.0 + HELD_SECONDS, 1)
    assert not holding.is_on(100.5, HELD_BYTES_MAX)
    assert not holding.is_on(100.5, 0)


def test_batches_of_several_turns_count_together() -> None:
    holding = Holding()

    holding.handed_over(100.0, HELD_BATCHES_MIN, is_all=False)
    before = holding.is_on(100.0, 1)
    holding.handed_over(100.0, 1, is_all=True)

    assert not before
    assert holding.is_on(100.25, 1)


def test_lines_are_not_held_after_few_batches() -> None:
    holding = Holding()
    holding.handed_over(100.0, HELD_BATCHES_MIN + 1, is_all=True)

    holding.handed_over(100.5, HELD_BATCHES_MIN, is_all=True)

    assert not holding.is_on(100.5, 1)
    assert holding.seconds(100.5) == 0.0
