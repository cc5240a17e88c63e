"""Which versions of a table can be folded into one state, and which are refused by name."""

import pytest
from msgspec.structs import replace

from engine.model.errors import StateUnknown
from engine.model.record import Envelope
from engine.model.schema import Column, Relation, TableName, TableVersion
from engine.reader.fold.fold import Fold
from engine.reader.fold.shape import Shape, require_alike, require_foldable, shapes_of

ID = Column("id", "bigint", "integer", key=True, type_id=20, number=1)
NOTE = Column("note", "text", "text", key=False, type_id=25, number=2)
WHOLE = replace(ID, key=False)


def _version(
    number: int, *columns: Column, key: tuple[str, ...] = ("id",), identity: str = "1"
) -> TableVersion:
    relation = Relation(TableName("public", "orders"), identity, columns, key)
    return TableVersion(number, None, "digest", relation)


def _shapes(*versions: TableVersion, envelope: Envelope = "standard") -> list[Shape]:
    found = shapes_of(versions, {version.number: envelope for version in versions})
    return [found[version.number] for version in versions]


def _reason(*versions: TableVersion) -> str:
    *_, older, newest = _shapes(*versions)
    require_foldable(older)
    require_foldable(newest)
    with pytest.raises(StateUnknown, match="version") as caught:
        require_alike(newest, older)
    assert caught.value.hint
    return str(caught.value)


def _require_alike(*versions: TableVersion) -> None:
    *_, older, newest = _shapes(*versions)
    require_alike(newest, older)


def test_the_flat_envelope_is_refused() -> None:
    [shape] = _shapes(_version(1, ID, NOTE), envelope="flat")

    with pytest.raises(StateUnknown, match="flat envelope do not show the key that a row had"):
        Fold(shape)


def test_a_table_that_shows_no_old_rows_is_refused() -> None:
    [shape] = _shapes(_version(1, WHOLE, NOTE, key=()))

    with pytest.raises(StateUnknown, match="the table has no key, and its old rows"):
        Fold(shape)


def test_a_key_that_records_do_not_hold_is_refused() -> None:
    [shape] = _shapes(_version(1, replace(ID, included=False), NOTE))

    with pytest.raises(StateUnknown, match="do not hold the column 'id' of its key"):
        Fold(shape)


def test_rows_that_are_told_apart_by_all_columns_may_lack_one() -> None:
    [shape] = _shapes(_version(1, ID, replace(NOTE, included=False), key=("id", "note")))

    require_foldable(shape)

    assert shape.is_whole_row
    assert shape.columns == ("id",)


def test_another_key_is_refused() -> None:
    reason = _reason(_version(1, ID, NOTE), _version(2, ID, NOTE, key=("note",)))

    assert "its key is (id), not (note)" in reason


def test_a_key_with_a_column_more_is_refused() -> None:
    third = Column("line", "integer", "integer", key=False)

    reason = _reason(_version(1, ID, NOTE, third), _version(2, ID, NOTE, third, key=("id", "note")))

    assert "its key is (id), not (id, note)" in reason


def test_a_key_in_another_order_is_the_same() -> None:
    third = Column("line", "integer", "integer", key=False)

    _require_alike(
        _version(1, ID, NOTE, third, key=("note", "id")),
        _version(2, ID, NOTE, third, key=("id", "note")),
    )


def test_a_key_whose_column_has_another_name_is_the_same() -> None:
    _require_alike(
        _version(1, ID, NOTE), _version(2, replace(ID, name="number"), NOTE, key=("number",))
    )


def test_a_key_whose_column_was_dropped_and_added_again_is_refused() -> None:
    reason = _reason(_version(1, ID, NOTE), _version(2, replace(ID, number=7), NOTE))

    assert "its key is (id), not (id)" in reason


def test_a_key_of_wider_integers_is_the_same() -> None:
    _require_alike(_version(1, replace(ID, type_id=23), NOTE), _version(2, ID, NOTE))


@pytest.mark.parametrize(
    "other",
    [
        replace(ID, type_kind="text", json="string", type_id=25),
        replace(ID, type_kind="numeric", type_modifier=655_366),
        replace(ID, hashed=True, json="string"),
    ],
)
def test_a_key_with_values_of_another_type_is_refused(other: Column) -> None:
    assert "the column 'id' of its key has values" in _reason(
        _version(1, other, NOTE), _version(2, ID, NOTE)
    )


def test_a_hashed_key_is_the_same_under_one_secret_alone() -> None:
    hashed = replace(ID, hashed=True)
    one, other = _version(1, hashed, NOTE), _version(2, hashed, NOTE)

    _require_alike(one, other)

    assert "the column 'id' of its key" in _reason(one, replace(other, record="another"))


def test_columns_beside_the_key_may_come_go_and_change() -> None:
    _require_alike(
        _version(1, ID, NOTE),
        _version(2, Column("new", "text", "text", key=False, default="'x'"), ID),
    )


# ------------------------------------------------------------------------------ whole rows


def _rows(number: int, *columns: Column) -> TableVersion:
    return _version(number, *columns, key=tuple(column.name for column in columns))


def test_an_old_row_that_shows_its_key_alone_is_refused_where_rows_are_counted() -> None:
    reason = _reason(_version(1, ID, NOTE), _rows(2, ID, NOTE))

    assert "its rows are told apart by (id) alone, not by 'note'" in reason


def test_counted_rows_are_refused_where_a_key_tells_rows_apart() -> None:
    reason = _reason(_rows(1, ID, NOTE), _version(2, ID, NOTE))

    assert "its key is (id, note), not (id)" in reason


def test_a_column_that_came_later_has_what_rows_got() -> None:
    new = Column("new", "text", "text", key=False, default="'x'", fill='"x"', number=3)

    _, newest = _shapes(_rows(1, ID, NOTE), _rows(2, ID, NOTE, new))

    _require_alike(_rows(1, ID, NOTE), _rows(2, ID, NOTE, new))
    assert newest.fills == ("null", "null", '"x"')


def test_a_column_whose_value_in_older_rows_nobody_knows_is_refused() -> None:
    new = Column("new", "uuid", "text", key=False, default="gen_random_uuid()", number=3)

    reason = _reason(_rows(1, ID, NOTE), _rows(2, ID, NOTE, new))

    assert "the column 'new', which came later, is not known" in reason


def test_a_column_that_was_left_out_of_older_records_is_refused() -> None:
    reason = _reason(_rows(1, ID, replace(NOTE, included=False)), _rows(2, ID, NOTE))

    assert "its records do not hold the column 'note'" in reason


def test_a_counted_column_with_values_of_another_type_is_refused() -> None:
    other = replace(NOTE, type_kind="integer", json="number")

    assert "its column 'note' has values" in _reason(_rows(1, ID, other), _rows(2, ID, NOTE))


def test_what_rows_got_is_that_of_the_version_in_which_the_column_came() -> None:
    new = Column("new", "text", "text", key=False, fill='"x"', default="'x'", number=3)
    later = replace(new, fill="", default="'y'")

    *_, newest = _shapes(_rows(1, ID), _rows(2, ID, new), _rows(3, ID, later))

    assert newest.fills[1] == '"x"'


def test_columns_of_another_table_of_the_name_are_others() -> None:
    one, other = _shapes(_version(1, ID, NOTE), _version(2, ID, NOTE, identity="2"))

    assert not set(one.lineages) & set(other.lineages)
    assert other.fills == ("null", "null")


def test_versions_are_compared_in_the_order_in_which_they_hold() -> None:
    # A snapshot of the newest table was whole before rows of its predecessor were streamed again.
    snapshot = _version(1, ID, NOTE, identity="2")
    newest = _version(3, ID, NOTE, replace(NOTE, name="more", number=3), identity="2")

    shapes = shapes_of((_version(2, ID), snapshot, newest), dict.fromkeys((1, 2, 3), "standard"))

    assert shapes[1].key_lineages == shapes[3].key_lineages
    assert set(shapes[1].lineages).isdisjoint(shapes[2].lineages)
    require_alike(shapes[3], shapes[1])
