"""Where a large table is cut, and how places of its key are noted, without a server."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.schema import TableName
from engine.sources.postgres.segments import (
    SEGMENTS_MAX,
    Finer,
    Rest,
    Sampled,
    Wanted,
    cut,
    rest_of,
)
from engine.sources.postgres.table_keys import KeyColumn, TableKey

GIB = 1 << 30
WANTED = Wanted(segment_bytes=64 * GIB, range_bytes=GIB // 4)
SMALL_ROWS = 2**22

ID = KeyColumn("id", 'pg_catalog."int8"')
NAME = KeyColumn('odd "name"', 'pg_catalog."text"', '"pg_catalog"."C"')
KEY = TableKey((NAME, ID))

samples = st.builds(
    Sampled,
    share=st.floats(0.0001, 1.0),
    row_count=st.integers(0, 10**7),
    rest_count=st.integers(0, 10**7),
    table_bytes=st.integers(0, 1 << 50),
).filter(lambda sampled: sampled.rest_count <= sampled.row_count)
sizes = st.builds(
    Wanted,
    segment_bytes=st.integers(1 << 20, 1 << 50),
    range_bytes=st.integers(8192, 1 << 40),
    finer=st.sampled_from((1, 2, 64)),
)


@given(sampled=samples, wanted=sizes)
def test_ranges_begin_one_behind_the_other_within_the_segment(
    sampled: Sampled, wanted: Wanted
) -> None:
    found = cut(sampled, wanted)

    end = sampled.rest_count if found.end is None else found.end
    assert list(found.begins) == sorted(set(found.begins))
    assert all(0 < begin < end for begin in found.begins)
    assert found.end is None or 0 < found.end < sampled.rest_count
    assert len(found.begins) < 1 << 24


@settings(max_examples=30)
@given(sampled=samples, wanted=sizes)
def test_what_is_left_grows_smaller_until_nothing_is(sampled: Sampled, wanted: Wanted) -> None:
    found, left, count = cut(sampled, wanted), sampled.rest_count, 1
    while found.end is not None:
        left -= found.end
        count += 1
        rest = Sampled(sampled.share, sampled.row_count, left, sampled.table_bytes)
        found = cut(rest, wanted)

    assert count <= SEGMENTS_MAX + 1


def test_a_table_of_a_tebibyte_is_cut_into_segments_and_ranges_of_the_wanted_size() -> None:
    sampled = Sampled(0.001, 1_000_000, 1_000_000, 1024 * GIB)

    found = cut(sampled, WANTED)

    assert found.end == 1_000_000 // 16
    assert found.bytes_estimate == 64 * GIB
    assert len(found.begins) == 256 - 1
    assert found.rows_estimate == 62_500_000


def test_the_last_segments_are_about_as_large_as_the_others() -> None:
    sampled = Sampled(1.0, 130, 130, 130 * GIB)

    found = cut(sampled, WANTED)

    assert (found.end, found.bytes_estimate) == (44, 44 * GIB)


def test_ranges_of_small_rows_are_cut_by_their_rows() -> None:
    sampled = Sampled(1.0, 100 * SMALL_ROWS, 100 * SMALL_ROWS, GIB)

    found = cut(sampled, WANTED)

    assert len(found.begins) == 100 - 1
    assert {b - a for a, b in zip(found.begins, found.begins[1:], strict=False)} == {SMALL_ROWS}


def test_a_sample_without_rows_gives_one_range_of_all() -> None:
    found = cut(Sampled(0.001, 1000, 0, 100 * GIB), WANTED)

    assert (found.begins, found.end) == ((), None)


def test_a_table_that_is_held_again_from_the_same_place_is_cut_more_finely() -> None:
    table, other, finer = TableName("public", "a"), TableName("public", "b"), Finer()

    found = [finer.held(table, begin) for begin in ("", "", "", "x", "x", "")]

    assert found == [1, 2, 4, 1, 2, 1]
    assert finer.held(other, "") == 1
    assert max(finer.held(other, "") for _ in range(20)) == 64


# --- places


def test_a_place_of_one_column_is_compared_with_a_constant_of_its_type() -> None:
    key = TableKey((ID,))

    assert key.condition(("7",), None) == """"id" OPERATOR(pg_catalog.>=) '7'::pg_catalog."int8\""""
    assert key.condition(None, ("9",)) == """"id" OPERATOR(pg_catalog.<) '9'::pg_catalog."int8\""""
    assert key.condition(None, None) == ""


def test_a_place_of_several_columns_is_compared_as_a_row_and_everything_is_quoted() -> None:
    condition = KEY.condition(('it\'s \\ "so" %s', "7"), ("z", "9"))

    assert condition == (
        'ROW("odd ""name""", "id") OPERATOR(pg_catalog.>=) ROW('
        '\'it\'\'s \\ "so" %s\'::pg_catalog."text" COLLATE "pg_catalog"."C", '
        "'7'::pg_catalog.\"int8\")"
        ' AND ROW("odd ""name""", "id") OPERATOR(pg_catalog.<) ROW('
        '\'z\'::pg_catalog."text" COLLATE "pg_catalog"."C", \'9\'::pg_catalog."int8")'
    )


@given(st.tuples(st.text(), st.text()))
def test_a_rest_is_known_again_by_its_text(begin: tuple[str, str]) -> None:
    rest = Rest(KEY, begin)

    assert rest_of(rest.text, KEY) == rest


@pytest.mark.parametrize(
    "key",
    [
        None,
        TableKey((ID, NAME)),
        TableKey((NAME,)),
        TableKey((KeyColumn(NAME.name, NAME.type), ID)),
        TableKey((NAME, KeyColumn("id", 'pg_catalog."int4"'))),
        TableKey((NAME, KeyColumn("ID", ID.type))),
    ],
)
def test_a_rest_of_another_key_is_none(key: TableKey | None) -> None:
    assert rest_of(Rest(KEY, ("a", "1")).text, key) is None


@pytest.mark.parametrize("text", ["", "7", "{}", '{"key":[[["id","x",""]]],"begin":[]}'])
def test_a_text_that_is_no_rest_is_none(text: str) -> None:
    assert rest_of(text, TableKey((KeyColumn("id", "x"),))) is None
