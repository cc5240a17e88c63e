"""Keys: golden ones; no name leaves its folder, no two share one, and hours never go back."""

import re
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.layout import (
    KEY_BYTES_MAX,
    PREFIX_BYTES_MAX,
    TableLayout,
    encoded,
    entry_seq,
    hour_of,
    journal_folder,
    journal_key,
    key_hour,
    next_hour_us,
    own_folder,
    prefix_of,
    seq_of,
    state_folder,
    state_key,
    state_seq,
)
from engine.model.position import Position, make_position
from engine.model.record import Layout as LayoutStyle
from engine.model.schema import TableName

FIRST = Position("0001.00000000134EBCB0.00000000134EBC00.000000")
ORDERS = TableName("public", "orders")
HOUR = "2026-11-22T09"
HOUR_US = 3_600_000_000

# What PostgreSQL allows: 63 bytes, anything but NUL. Longer here, for other sources.
names = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300
)
tables = st.builds(TableName, names, names)
times = st.integers(0, 4_000_000_000_000_000)


def test_a_hive_key_is_this_very_text() -> None:
    layout = TableLayout("pipes/shop", "shop", "hive")

    assert layout.object_key(ORDERS, 7, HOUR, FIRST, "gzip") == (
        "pipes/shop/database=shop/schema=public/table=orders/version=0007/"
        "year=2026/month=11/day=22/hour=09/"
        "0001.00000000134EBCB0.00000000134EBC00.000000.ndjson.gz"
    )
    assert layout.schema_key(ORDERS, 7) == (
        "pipes/shop/database=shop/schema=public/table=orders/version=0007/schema.json"
    )


def test_a_plain_key_has_the_same_parts_without_their_names() -> None:
    layout = TableLayout("pipes/shop", "shop", "plain")

    assert layout.object_key(ORDERS, 7, HOUR, FIRST, "zstd") == (
        "pipes/shop/shop/public/orders/0007/2026/11/22/09/"
        "0001.00000000134EBCB0.00000000134EBC00.000000.ndjson.zst"
    )


def test_without_a_prefix_keys_begin_with_the_first_folder() -> None:
    assert TableLayout("", "shop", "hive").schema_key(ORDERS, 1).startswith("database=shop/")
    assert own_folder("") == "_tailrace/"


def test_our_own_keys_are_these_very_texts() -> None:
    assert journal_key("p", 42) == "p/_tailrace/journal/000000000042.json"
    assert state_key("p", 499) == "p/_tailrace/state/000000000499.json.gz"
    assert journal_key("p", 42).startswith(journal_folder("p"))
    assert state_key("p", 42).startswith(state_folder("p"))


@given(st.integers(0, 10**12 - 1))
def test_a_number_can_be_read_from_its_key(seq: int) -> None:
    assert seq_of(journal_key("a/b", seq)) == seq
    assert seq_of(state_key("", seq)) == seq


@pytest.mark.parametrize("key", ["p/_tailrace/journal/", "p/_tailrace/journal/x.json", ""])
def test_another_key_has_no_number(key: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        seq_of(key)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("orders", "orders"),
        ("Orders_2-b", "Orders_2-b"),
        ("..", "%2E%2E"),
        ("a/b", "a%2Fb"),
        ("50%", "50%25"),
        ("a~b", "a%7Eb"),
        ("a=b", "a%3Db"),
        ("täble", "t%C3%A4ble"),
        ("表", "%E8%A1%A8"),
        (" ", "%20"),
        ("%2E", "%252E"),
    ],
)
def test_a_name_is_percent_encoded(name: str, expected: str) -> None:
    assert encoded(name) == expected


@given(names)
def test_an_encoded_name_holds_only_safe_characters(name: str) -> None:
    assert re.fullmatch(r"(?:[A-Za-z0-9_-]|%[0-9A-F]{2})+", encoded(name))


@given(names, names)
def test_two_names_never_share_an_encoding(one: str, two: str) -> None:
    assert (encoded(one) == encoded(two)) == (one == two)


@given(names, tables, st.sampled_from(["hive", "plain"]), st.text("ab/é", max_size=400))
def test_a_key_has_its_folders_and_its_limit(
    database: str, table: TableName, style: str, prefix: str
) -> None:
    prefix = prefix.encode()[:PREFIX_BYTES_MAX].decode(errors="ignore").strip("/")
    layout = TableLayout(prefix, database, "hive" if style == "hive" else "plain")

    key = layout.object_key(table, 9999, HOUR, FIRST, "zstd")

    assert len(key.encode()) <= KEY_BYTES_MAX
    inside = key.removeprefix(f"{prefix}/") if prefix else key
    assert inside.count("/") == 8
    assert key.startswith(layout.schema_key(table, 9999).removesuffix("schema.json"))


@given(tables, tables, st.sampled_from([1, PREFIX_BYTES_MAX]))
def test_two_tables_never_share_a_folder(one: TableName, two: TableName, length: int) -> None:
    layout = TableLayout("p" * length, "shop", "plain")

    shared = layout.schema_key(one, 1) == layout.schema_key(two, 1)

    assert shared == (one == two)


def test_long_names_that_begin_alike_are_told_apart_by_a_hash() -> None:
    layout = TableLayout("p" * PREFIX_BYTES_MAX, "d" * 300, "hive")
    one, two = (TableName("s" * 300, "é" * 100 + end) for end in "ab")

    key = layout.object_key(one, 1, HOUR, FIRST, "gzip")

    assert key != layout.object_key(two, 1, HOUR, FIRST, "gzip")
    assert len(key) <= KEY_BYTES_MAX
    segment = key.split("table=")[1].split("/")[0]
    assert re.fullmatch(r"(?:%[0-9A-F]{2})+~[0-9a-f]{16}", segment)


def test_postgres_names_of_63_bytes_stay_readable_under_a_short_prefix() -> None:
    name = "x" * 63

    key = TableLayout("pipes/shop", name, "hive").schema_key(TableName(name, name), 1)

    assert key.count(name) == 3


def test_no_table_can_reach_our_own_folder() -> None:
    keys = [
        TableLayout("p", database, "plain").schema_key(TableName("journal", "1.json"), 1)
        for database in ("_tailrace/journal", "../p/_tailrace", ".")
    ]

    assert not any(key.startswith(own_folder("p")) for key in keys)


@given(times)
def test_an_hour_is_the_utc_hour_and_the_next_one_begins_when_it_ends(time_us: int) -> None:
    begin_us = time_us - time_us % HOUR_US

    assert hour_of(time_us) == datetime.fromtimestamp(begin_us / 1e6, UTC).strftime("%Y-%m-%dT%H")
    assert hour_of(begin_us) == hour_of(begin_us + HOUR_US - 1)
    assert next_hour_us(begin_us) == next_hour_us(begin_us + HOUR_US - 1) == begin_us + HOUR_US
    assert hour_of(begin_us - 1) < hour_of(begin_us) if begin_us else True


@given(times, times)
def test_a_keys_hour_is_that_of_its_first_commit_and_never_before_the_last(
    chunk_us: int, previous_us: int
) -> None:
    hour = key_hour(chunk_us, hour_of(previous_us))

    assert hour == max(hour_of(chunk_us), hour_of(previous_us))


@given(st.lists(st.tuples(st.integers(0, 2), times), min_size=2, max_size=20))
def test_names_of_a_table_sort_in_commit_order_whatever_the_clocks_say(
    steps: list[tuple[int, int]],
) -> None:
    layout = TableLayout("p", "shop", "hive")
    version, hour, commit = 1, "", 0x1000
    keys = []
    for growth, time_us in steps:
        version += growth
        commit += 0x1000
        hour = key_hour(time_us, hour)
        position = make_position(1, commit, commit - 8, 0)
        keys.append(layout.object_key(ORDERS, version, hour, position, "gzip"))

    assert all(one < two for one, two in pairwise(keys))


# Whose a key is

prefixes = st.one_of(
    st.just(""), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
).map(lambda text: text.strip("/"))


@given(prefixes, names, tables, st.sampled_from(["hive", "plain"]), st.integers(1, 20_000))
def test_a_key_names_its_prefix(
    prefix: str, database: str, table: TableName, style: LayoutStyle, version: int
) -> None:
    layout = TableLayout(prefix, database, style)

    assert prefix_of(layout.schema_key(table, version)) == prefix
    assert prefix_of(layout.object_key(table, version, HOUR, FIRST, "gzip")) == prefix
    assert prefix_of(layout.object_key(table, version, HOUR, FIRST, "zstd")) == prefix
    assert prefix_of(journal_key(prefix, version)) == prefix
    assert prefix_of(state_key(prefix, version)) == prefix


@pytest.mark.parametrize(
    "key",
    [
        "photos-2026/raw/cat.jpg",
        "pipes/shop/database=shop/readme.txt",
        "pipes/shop/database=shop/schema=public/table=orders/version=0007/data.ndjson.gz",
        "pipes/shop/_tailrace/journal/7.json",
        "pipes/shop/_tailrace/notes.txt",
        "2026/11/22/09/0001.ndjson.gz",
    ],
)
def test_other_peoples_keys_have_no_prefix(key: str) -> None:
    assert prefix_of(key) is None


def test_a_neighbours_key_has_another_prefix() -> None:
    assert prefix_of("photos-2026/database=shop/schema=s/table=t/version=0001/schema.json") == (
        "photos-2026"
    )
    assert prefix_of("p/b/shop/public/t/0001/schema.json") == "p/b"


def test_only_whole_keys_have_a_number() -> None:
    assert entry_seq("p", journal_key("p", 7)) == 7
    assert state_seq("p", state_key("p", 7)) == 7
    for key in ("p/_tailrace/journal/7.json", journal_key("p", 7) + ".bak", journal_key("q", 7)):
        assert entry_seq("p", key) is None
    assert state_seq("p", journal_key("p", 7)) is None
