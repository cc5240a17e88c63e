"""Which differences of two shapes may have changed values without a record."""

import pytest
from msgspec.structs import replace

from engine.model.table_shape import (
    COLUMN_FILLED,
    COLUMN_REMADE,
    COLUMN_SHOWN,
    FILL_HIDDEN,
    FILL_TOLD,
    LABEL_RENAMED,
    ROWS_REWRITTEN,
    TEXTS,
    TYPE_CHANGED,
    StoredColumn,
    TableShape,
    decode_shape,
    encode_shape,
    hidden_change,
)

ID = StoredColumn(1, "id", "23", "700")
NOTE = StoredColumn(2, "note", "text", "700")
MOOD = StoredColumn(3, "mood", "16400", "700", labels={"16402": "sad", "16404": "glad"})


def shape(*columns: StoredColumn, file: str = "16401") -> str:
    return encode_shape(TableShape(file, columns))


BEFORE = shape(ID, NOTE, MOOD)
MADE_INT = StoredColumn(4, "made", "23", "800")


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (BEFORE, ""),
        # A table that is written anew as it is: VACUUM FULL, CLUSTER, TRUNCATE.
        (shape(ID, NOTE, MOOD, file="16999"), ""),
        (shape(ID, NOTE), ""),
        (shape(ID, replace(NOTE, name="remark", written="800"), MOOD), ""),
        (shape(ID, replace(NOTE, written="800"), MOOD), ""),
        (shape(ID, NOTE, MOOD, MADE_INT), ""),
        (shape(ID, NOTE, MOOD, replace(MADE_INT, fill=FILL_TOLD)), ""),
        (shape(ID, NOTE, MOOD, replace(MADE_INT, fill=FILL_HIDDEN)), COLUMN_FILLED),
        # A volatile default, or a stored generated column that is published.
        (shape(ID, NOTE, MOOD, MADE_INT, file="16999"), ROWS_REWRITTEN),
        (shape(ID, replace(NOTE, type="23", written="800"), MOOD, file="16999"), ROWS_REWRITTEN),
        # ALTER … TYPE … USING with the type that it has.
        (shape(ID, replace(NOTE, written="800"), MOOD, file="16999"), ROWS_REWRITTEN),
        # timestamp to timestamptz where the time zone is UTC.
        (shape(ID, replace(NOTE, type="1184", written="800"), MOOD), TYPE_CHANGED),
        (shape(ID, MOOD, StoredColumn(4, "note", "23", "800")), COLUMN_REMADE),
        (shape(ID, MOOD, StoredColumn(4, "else", "text", "800")), COLUMN_REMADE),
        (shape(ID, MOOD, StoredColumn(4, "else", "20", "800")), ""),
        (shape(ID, NOTE, replace(MOOD, labels={"16402": "low", "16404": "glad"})), LABEL_RENAMED),
        (
            shape(ID, NOTE, replace(MOOD, labels={**(MOOD.labels or {}), "16406": "calm"})),
            "",
        ),
    ],
)
def test_what_may_have_changed_a_value_without_a_record_has_a_reason(now: str, reason: str) -> None:
    assert hidden_change(BEFORE, now) == reason
    assert not reason or TEXTS[reason]


def test_a_column_that_came_and_went_between_two_looks_may_have_been_taken_for_the_next_one() -> (
    None
):
    before = encode_shape(TableShape("1", (ID,), 2, (2,)))
    passing = encode_shape(TableShape("1", (ID,), 3, (2, 3)))
    remade = encode_shape(TableShape("1", (ID, MADE_INT), 4, (2, 3)))
    added = encode_shape(TableShape("1", (ID, replace(MADE_INT, number=3)), 3, (2,)))

    assert hidden_change(before, passing) == ""
    assert hidden_change(before, remade) == COLUMN_REMADE
    assert hidden_change(before, added) == ""


def test_a_column_that_was_there_and_was_not_sent_has_values_that_no_record_shows() -> None:
    before = encode_shape(TableShape("1", (ID,), 2))
    shown = encode_shape(TableShape("1", (ID, NOTE), 2))
    added = encode_shape(TableShape("1", (ID, replace(NOTE, number=3)), 3))

    assert hidden_change(before, shown) == COLUMN_SHOWN
    assert hidden_change(before, added) == ""
    assert hidden_change(shown, before) == ""


def test_where_a_shape_is_not_known_nothing_is_said() -> None:
    changed = shape(ID, replace(NOTE, type="23", written="800"), MOOD, file="16999")

    assert hidden_change("", changed) == ""
    assert hidden_change(BEFORE, "") == ""


def test_a_shape_that_the_server_wrote_with_spaces_is_the_same() -> None:
    text = '["16401", [[1, "id", "23", "700", 0, null], [2, "note", "text", "700", 0, null]]]'

    assert decode_shape(text) == TableShape("16401", (ID, NOTE))
