"""The rules of the fold, one by one. Random histories: test_fold_histories.py."""

import threading
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from engine.model.errors import DecodeError, FoldTooLarge, StateUnknown
from engine.reader.fold.fold import PART_COUNT, Fold, Pass, passes_for
from engine.reader.fold.shape import Shape
from fold_rig import Body, Row, Table, as_read, as_values, folded, newest_first, shape

NAMES = ("id", "text", "doc")
SHAPE = shape(*NAMES, key=("id",))
ROWS = shape(*NAMES, key=NAMES, is_whole_row=True)


def _row(number: int, text: str = "x", doc: str | None = None) -> Row:
    return {"id": str(number), "text": text, "doc": doc}


def _table(of: Shape = SHAPE) -> Table:
    table = Table(of, is_full=of.is_whole_row)
    table.begin()
    return table


def _lines(bodies: Sequence[Body], *shapes: Shape) -> list[str]:
    return sorted(line.decode() for _, line in folded(newest_first(bodies), shapes))


def _cut(table: Table) -> list[Body]:
    """An object a transaction from here on."""
    table.cut()
    table.begin()
    return table.bodies


# --- keys


def test_the_newest_record_of_a_key_is_its_row() -> None:
    table = _table()
    table.insert(_row(1, "old"))
    _cut(table)
    table.update(0, {"text": "newer"})
    table.update(0, {"text": "newest"})

    assert _lines(_cut(table), SHAPE) == ['{"id":1,"text":"newest","doc":null}']


def test_a_deleted_row_is_gone_and_one_that_is_inserted_again_is_there() -> None:
    table = _table()
    table.insert(_row(1))
    table.insert(_row(2))
    _cut(table)
    table.delete(0)
    table.delete(0)
    table.insert(_row(2, "again"))

    assert _lines(_cut(table), SHAPE) == ['{"id":2,"text":"again","doc":null}']


def test_a_changed_key_takes_the_old_one_away() -> None:
    table = _table()
    table.insert(_row(1))
    _cut(table)
    table.update(0, {"id": "2"})

    assert _lines(_cut(table), SHAPE) == ['{"id":2,"text":"x","doc":null}']


def test_a_row_may_come_to_a_key_that_another_one_left() -> None:
    table = _table()
    table.insert(_row(1, "first"))
    table.insert(_row(2, "second"))
    _cut(table)
    table.update(0, {"id": "9"})
    table.update(1, {"id": "1"})
    table.update(0, {"id": "2"})

    assert _lines(_cut(table), SHAPE) == [
        '{"id":1,"text":"second","doc":null}',
        '{"id":2,"text":"first","doc":null}',
    ]


def test_a_truncate_record_ends_everything_older() -> None:
    table = _table()
    table.insert(_row(1))
    _cut(table)
    table.truncate()
    table.insert(_row(2))
    bodies = _cut(table)
    fold = Fold(SHAPE)

    assert [rows.lines for rows in fold.take(bodies[1].lines, SHAPE)] == [
        b'{"id":2,"text":"x","doc":null}\n'
    ]
    assert fold.is_over
    assert list(fold.take(bodies[0].lines, SHAPE)) == []
    assert fold.finish() == ()


def test_records_of_another_table_of_the_name_end_the_fold() -> None:
    table = _table(replace(SHAPE, identity="old"))
    table.insert(_row(1))
    table.become(replace(SHAPE, version=2))
    table.rows.clear()
    table.begin()
    table.insert(_row(2))
    bodies = _cut(table)

    lines = _lines(bodies, replace(SHAPE, identity="old"), table.shape)

    assert lines == ['{"id":2,"text":"x","doc":null}']


def test_keys_of_several_columns_are_whole_values() -> None:
    of = shape("text", "id", "texts", key=("text", "texts"))
    table = _table(of)
    table.insert({"text": "a,b", "id": "1", "texts": "c"})
    table.insert({"text": "a", "id": "2", "texts": "b,c"})
    table.insert({"text": 'a"', "id": "3", "texts": ""})
    numbers = shape("id", "id_line", key=("id", "id_line"))
    pairs = _table(numbers)
    pairs.insert({"id": "1", "id_line": "23"})
    pairs.insert({"id": "12", "id_line": "3"})

    assert len(_lines(_cut(table), of)) == 3
    assert len(_lines(_cut(pairs), numbers)) == 2


def test_a_keys_column_that_is_left_out_is_in_the_old_key() -> None:
    of = shape("text", "id", key=("text",))
    table = _table(of)
    table.insert({"text": "a" * 40, "id": "1"})
    table.insert({"text": "b" * 40, "id": "1"})
    _cut(table)
    table.update(0, {"id": "2"}, unchanged=("text",))

    assert as_read((line.encode() for line in _lines(_cut(table), of)), of.columns) == as_values(
        table.rows, of.columns
    )


def test_a_key_that_no_record_shows_is_refused() -> None:
    of = shape("text", "id", key=("text",))
    table = _table(of)
    table.insert({"text": "a" * 40, "id": "1"})
    table.update(0, {"id": "2"}, unchanged=("text",))
    [body] = _cut(table)
    lines = body.lines.replace(b'"before":{"text":"%b"}' % (b"a" * 40), b'"before":null')
    assert lines != body.lines

    with pytest.raises(DecodeError, match="it does not show the row's key"):
        list(Fold(of).take(lines, of))


# --- columns that are left out


def test_a_column_that_is_left_out_has_the_value_that_it_had() -> None:
    table = _table()
    table.insert(_row(1, "kept", "[1]"))
    _cut(table)
    table.update(0, {"doc": "[2]"}, unchanged=("text",))
    _cut(table)
    table.update(0, {}, unchanged=("text", "doc"))

    assert _lines(_cut(table), SHAPE) == ['{"id":1,"text":"kept","doc":[2]}']


def test_a_row_that_lacks_a_column_is_followed_over_a_chain_of_keys() -> None:
    table = _table()
    table.insert(_row(1, "kept"))
    table.insert(_row(5, "another"))
    for key in ("2", "3", "4"):
        _cut(table)
        table.update(0, {"id": key}, unchanged=("text",))
    table.insert(_row(1, "new at its first key"))
    table.insert(_row(3, "new at its third key"))

    assert _lines(_cut(table), SHAPE) == [
        '{"id":1,"text":"new at its first key","doc":null}',
        '{"id":3,"text":"new at its third key","doc":null}',
        '{"id":4,"text":"kept","doc":null}',
        '{"id":5,"text":"another","doc":null}',
    ]


def test_two_rows_that_lack_a_column_may_swap_their_keys() -> None:
    table = _table()
    table.insert(_row(1, "first"))
    table.insert(_row(2, "second"))
    _cut(table)
    for place, key in ((0, "9"), (1, "1"), (0, "2")):
        table.update(place, {"id": key}, unchanged=("text",))

    assert _lines(_cut(table), SHAPE) == [
        '{"id":1,"text":"second","doc":null}',
        '{"id":2,"text":"first","doc":null}',
    ]


def test_a_snapshots_row_has_what_a_later_record_left_out() -> None:
    table = _table()
    table.insert(_row(1, "kept"))
    snapshot = table.snapshot()
    table.begin()
    table.update(0, {"id": "2"}, unchanged=("text",))
    table.cut()

    found = folded(newest_first(table.bodies[-1:], [snapshot]), [SHAPE])

    assert [line for _, line in found] == [b'{"id":2,"text":"kept","doc":null}']


def test_old_rows_that_are_shown_whole_have_what_was_left_out() -> None:
    table = Table(SHAPE, is_full=True)
    table.begin()
    table.insert(_row(1, "kept"))
    _cut(table)
    table.update(0, {"id": "2"}, unchanged=("text",))
    newest = _cut(table)[-1:]

    # Nothing older is needed.
    assert _lines(newest, SHAPE) == ['{"id":2,"text":"kept","doc":null}']


def test_a_row_has_the_columns_of_its_version_in_their_order() -> None:
    older = shape("text", "id", "doc", key=("id",))
    newer = shape("doc", "id", "other", "text", key=("id",), version=2)
    table = _table(older)
    table.insert({"id": "1", "text": "kept", "doc": "[]"})
    table.insert({"id": "2", "text": "old", "doc": "[]"})
    table.become(newer)
    table.begin()
    table.update(0, {"other": "o"}, unchanged=("text", "doc"))
    table.cut()

    found = folded(newest_first(table.bodies), [older, newer])

    assert sorted(found) == [
        (1, b'{"text":"old","id":2,"doc":[]}'),
        (2, b'{"doc":[],"id":1,"other":"o","text":"kept"}'),
    ]


def _lacking() -> list[Body]:
    """A row that lacks a column, without the record that has it; then others of its key."""
    table = _table()
    table.insert(_row(1, "kept"))
    _cut(table)
    table.update(0, {"id": "2"}, unchanged=("text",))
    return _cut(table)[1:]


def test_a_column_that_no_record_has_is_an_error_by_name_at_the_end() -> None:
    [body] = _lacking()
    fold = Fold(SHAPE)

    assert list(fold.take(body.lines, SHAPE)) == []
    with pytest.raises(
        StateUnknown,
        match=rf"orders: no record has the value of the column 'text' that the one at {body.last}",
    ):
        fold.finish()


def test_a_truncate_record_does_not_complete_a_row() -> None:
    table = _table()
    table.truncate()
    [older] = _cut(table)
    table.insert(_row(1))
    table.update(0, {}, unchanged=("text",))
    newer = _cut(table)[1]
    alone = Body(newer.lines[newer.lines.index(b"\n") + 1 :], 1, newer.last, newer.last)

    with pytest.raises(StateUnknown, match="no record has the value of the column 'text'"):
        _lines([older, alone], SHAPE)


@pytest.mark.parametrize("ending", ["delete", "move", "insert"])
def test_a_record_that_has_no_row_for_the_key_does_not_complete_another(ending: str) -> None:
    # What follows is of a row that was there before, under the same key.
    table = _table()
    table.insert(_row(1, "of another row"))
    table.insert(_row(3, "other"))
    _cut(table)
    table.update(0, {"doc": "[1]"})
    if ending == "delete":
        table.delete(0)
    elif ending == "move":
        table.update(0, {"id": "4"})
    older = _cut(table)
    missing = _table()
    missing.order = table.order
    missing.begin()
    missing.rows.append(_row(1, "x"))
    missing.update(0, {"id": "2"}, unchanged=("text",))
    missing.cut()
    bodies = [*older, *missing.bodies]

    if ending == "insert":
        assert '{"id":2,"text":"of another row","doc":null}' in _lines(bodies, SHAPE)
        return
    with pytest.raises(StateUnknown, match="of 1 rows in all"):
        _lines(bodies, SHAPE)


def test_a_column_that_an_older_version_lacks_completes_nothing() -> None:
    older = shape("id", "doc", key=("id",))
    table = _table(older)
    table.insert({"id": "1", "doc": "[]"})
    table.become(replace(SHAPE, version=2))
    table.begin()
    table.rows[0]["text"] = "x"
    table.update(0, {}, unchanged=("text",))
    table.cut()

    with pytest.raises(StateUnknown, match="no record has the value of the column 'text'"):
        _lines(table.bodies, older, table.shape)


def test_a_column_that_was_not_recorded_for_a_while_completes_nothing() -> None:
    hidden = shape("id", "doc", key=("id",), version=2)
    table = _table()
    table.insert(_row(1, "before"))
    table.become(hidden)
    table.begin()
    # Its text changed too, and no record says so.
    table.update(0, {"doc": "[]"})
    table.become(replace(SHAPE, version=3))
    table.begin()
    table.rows[0]["text"] = "meanwhile"
    table.update(0, {}, unchanged=("text",))
    table.cut()

    with pytest.raises(StateUnknown, match="no record has the value of the column 'text'"):
        _lines(table.bodies, SHAPE, hidden, table.shape)


def test_a_column_that_had_values_of_another_type_is_refused_by_name() -> None:
    older = replace(SHAPE, forms=("i", "other", "d"))
    newer = replace(SHAPE, forms=("i", "t", "d"), version=2)
    table = _table(older)
    table.insert(_row(1))
    table.become(newer)
    table.begin()
    table.update(0, {}, unchanged=("text",))
    table.cut()

    with pytest.raises(
        StateUnknown,
        match="a row of version 2 left out the column 'text', which has other values in version 1",
    ):
        _lines(table.bodies, older, newer)


# --- tables without a key


def test_rows_without_a_key_are_counted() -> None:
    table = _table(ROWS)
    for number in (1, 1, 1, 2, 2):
        table.insert(_row(number))
    _cut(table)
    table.delete(0)
    table.update(3, {"text": "y"}, unchanged=("doc",))
    table.update(0, {})
    table.insert(_row(1))

    assert _lines(_cut(table), ROWS) == [
        '{"id":1,"text":"x","doc":null}',
        '{"id":1,"text":"x","doc":null}',
        '{"id":1,"text":"x","doc":null}',
        '{"id":2,"text":"x","doc":null}',
        '{"id":2,"text":"y","doc":null}',
    ]


def test_a_row_that_was_deleted_and_that_no_record_has_is_an_error_by_name() -> None:
    table = _table(ROWS)
    table.insert(_row(1))
    _cut(table)
    table.delete(0)
    newest = _cut(table)[-1:]

    with pytest.raises(StateUnknown, match="rows were changed or deleted that no record has: 1"):
        _lines(newest, ROWS)


def test_columns_of_older_rows_without_a_key_count_as_the_newest_version_has_them() -> None:
    older = shape("id", "text", "gone", key=("id", "text", "gone"), is_whole_row=True)
    names = ("added", "id", "text", "filled")
    newer = shape(*names, key=names, version=2, is_whole_row=True, fills={"filled": '"with this"'})
    table = _table(older)
    table.insert({"id": "1", "text": "a", "gone": "x"})
    table.insert({"id": "1", "text": "a", "gone": "y"})
    table.insert({"id": "2", "text": "a", "gone": "y"})
    table.become(newer)
    for row in table.rows:
        row["filled"] = "with this"
    table.begin()
    table.delete(0)
    table.update(1, {"added": "z"})
    table.cut()

    found = folded(newest_first(table.bodies), [older, newer])

    assert sorted(found) == [
        (1, b'{"id":1,"text":"a","gone":"x"}'),
        (2, b'{"added":"z","id":2,"text":"a","filled":"with this"}'),
    ]


def test_an_update_that_shows_no_old_row_changed_none_where_all_columns_are_the_key() -> None:
    table = Table(ROWS)
    table.begin()
    table.insert(_row(1))
    table.update(0, {})
    table.update(0, {}, unchanged=())

    assert _lines(_cut(table), ROWS) == ['{"id":1,"text":"x","doc":null}']


def test_an_old_row_that_is_not_whole_is_refused_where_rows_are_counted() -> None:
    table = _table(ROWS)
    table.insert(_row(1))
    table.delete(0)
    [body] = _cut(table)
    lines = body.lines.replace(b'"before":{"id":1,"text":"x","doc":null}', b'"before":{"id":1}')
    assert lines != body.lines

    with pytest.raises(DecodeError, match="it does not show the row's key"):
        list(Fold(ROWS).take(lines, ROWS))


# --- versions


@pytest.mark.parametrize(
    ("older", "reason"),
    [
        (shape(*NAMES, key=("text",)), r"its key is \(text\), not \(id\)"),
        (shape("id", "text", key=("id",), envelope="flat"), "the flat envelope"),
        (shape("text", "doc", key=("id",)), "do not hold the column 'id' of its key"),
    ],
)
def test_records_of_a_version_that_cannot_be_folded_are_refused(older: Shape, reason: str) -> None:
    fold = Fold(replace(SHAPE, version=2))

    with pytest.raises(StateUnknown, match=reason):
        list(fold.take(b"", older))


def test_a_version_has_one_shape() -> None:
    fold = Fold(SHAPE)
    list(fold.take(b"", SHAPE))

    with pytest.raises(ValueError, match="another shape of version 1"):
        list(fold.take(b"", replace(SHAPE, envelope="debezium")))


# --- objects and bounds


def test_positions_at_the_lower_bound_are_taken_and_at_the_higher_one_are_not() -> None:
    table = _table()
    for number in range(5):
        table.insert(_row(number))
    [body] = _cut(table)
    positions = [line.split(b'"position":"')[1][:45].decode() for line in body.lines.splitlines()]

    fold = Fold(SHAPE)
    taken = list(fold.take(body.lines, SHAPE, low=positions[1], high=positions[3]))

    assert [rows.lines for rows in taken] == [
        b'{"id":2,"text":"x","doc":null}\n{"id":1,"text":"x","doc":null}\n'
    ]


def test_places_between_commits_are_bounds_too() -> None:
    table = _table()
    table.insert(_row(1))
    table.begin()
    place = f"0001.{table.order:016X}"
    table.insert(_row(2))
    [body] = _cut(table)

    newer = list(Fold(SHAPE).take(body.lines, SHAPE, low=place))
    older = list(Fold(SHAPE).take(body.lines, SHAPE, high=place))

    assert [rows.lines[:7] for rows in newer] == [b'{"id":2']
    assert [rows.lines[:7] for rows in older] == [b'{"id":1']


def test_an_older_object_comes_after_a_newer_one() -> None:
    table = _table()
    table.insert(_row(1))
    _cut(table)
    table.insert(_row(2))
    older, newer = _cut(table)
    fold = Fold(SHAPE)
    list(fold.take(older.lines, SHAPE))

    with pytest.raises(DecodeError, match="it is not before the records that came later"):
        list(fold.take(newer.lines, SHAPE))


def test_a_body_is_taken_to_its_end_before_the_next_one() -> None:
    table = _table()
    for number in range(30_000):
        table.insert(_row(number))
    _cut(table)
    table.insert(_row(99_999))
    older, newer = _cut(table)
    fold = Fold(SHAPE)
    list(fold.take(newer.lines, SHAPE))
    begun = fold.take(older.lines, SHAPE)
    next(begun)

    with pytest.raises(ValueError, match="another body was not taken to its end"):
        next(fold.take(older.lines, SHAPE))
    with pytest.raises(ValueError, match="a body was not taken to its end"):
        fold.finish()

    assert sum(rows.row_count for rows in begun) > 1_000
    assert fold.finish() == ()


def test_rows_are_handed_over_in_pieces() -> None:
    table = _table()
    for number in range(30_000):
        table.insert(_row(number))
    [body] = _cut(table)

    pieces = list(Fold(SHAPE).take(memoryview(body.lines), SHAPE))

    assert len(pieces) > 2
    assert all(len(rows.lines) < 2 * 1024 * 1024 for rows in pieces)
    assert sum(rows.row_count for rows in pieces) == 30_000


def test_a_body_with_no_lines_gives_none() -> None:
    assert list(Fold(SHAPE).take(b"", SHAPE)) == []


def test_other_threads_run_while_lines_are_walked() -> None:
    table = _table()
    for number in range(30_000):
        table.insert(_row(number))
        table.delete(0)
    for number in range(30_000, 40_000):
        table.insert(_row(number))
    [body] = _cut(table)

    def counts_between() -> bool:
        """Whether this thread sees keys counted while another one is within one call."""
        fold = Fold(SHAPE)
        taken = fold.take(body.lines, SHAPE)
        next(taken)
        before, seen = fold.key_count, set[int]()
        # What is left gives less than a piece, so it is one call.
        thread = threading.Thread(target=next, args=(taken,))
        thread.start()
        while thread.is_alive():
            seen.add(fold.key_count)
        assert before < fold.key_count == 40_000
        return bool(seen - {before, fold.key_count})

    assert any(counts_between() for _ in range(100))


# --- memory and passes


def _many(count: int = 20_000, *, is_updated: bool = True) -> Table:
    table = _table()
    for number in range(count):
        table.insert(_row(number, f"text {number}"))
        if number % 1000 == 0:
            _cut(table)
    for place in range(0, count if is_updated else 0, 3):
        table.update(place, {"id": str(place + count)}, unchanged=("text",))
        if place % 999 == 0:
            _cut(table)
    _cut(table)
    return table


@pytest.mark.parametrize("is_updated", [True, False])
@pytest.mark.parametrize(
    ("memory_max", "memory_max_later"),
    # With less memory, a later pass is divided before it gives its first row.
    [(600_000, 600_000), (600_000, 150_000)],
)
def test_a_state_that_is_larger_than_its_memory_comes_in_passes_each_row_once(
    memory_max: int, memory_max_later: int, *, is_updated: bool
) -> None:
    table = _many(is_updated=is_updated)
    order = newest_first(table.bodies)
    passes: list[Pass | None] = [None]
    found: list[bytes] = []
    read = 0

    while passes:
        fold = Fold(SHAPE, memory_max=memory_max, part=passes.pop())
        read += 1
        for body, low, high in order:
            for rows in fold.take(body.lines, SHAPE, low=low, high=high):
                assert fold.memory <= memory_max
                found += rows.lines.splitlines()
        passes += fold.finish()
        memory_max = memory_max_later

    assert read > 1
    assert as_read(found, NAMES) == as_values(table.rows, NAMES)


def test_a_state_that_fits_takes_one_pass() -> None:
    table = _many()
    fold = Fold(SHAPE, memory_max=20_000_000)

    for body, low, high in newest_first(table.bodies):
        list(fold.take(body.lines, SHAPE, low=low, high=high))

    assert fold.finish() == ()
    assert fold.key_count == 20_000 + 20_000 // 3 + 1
    assert fold.memory < 27 * fold.key_count + PART_COUNT * 2_000


def test_a_part_that_does_not_fit_is_an_error_by_name() -> None:
    table = _many()

    with pytest.raises(FoldTooLarge, match="a 256th of its current state is larger than 1000"):
        folded(newest_first(table.bodies), [SHAPE], memory_max=1_000)


def test_passes_are_estimated_from_the_count_of_keys() -> None:
    assert passes_for(0, 1) == 1
    assert passes_for(10_000_000, 256 << 20) == 1
    assert passes_for(100_000_000, 256 << 20) == 16


@pytest.mark.parametrize(
    "part",
    [
        Pass(1, 1, b"s" * 16, ""),
        Pass(0, PART_COUNT + 1, b"s" * 16, ""),
        Pass(-1, 1, b"s" * 16, ""),
        Pass(0, 1, b"short", ""),
        Pass(0, 1, b"s" * 16, "0001"),
    ],
)
def test_what_is_no_pass_is_refused(part: Pass) -> None:
    with pytest.raises(ValueError, match=r"pass|position"):
        Fold(SHAPE, part=part)
