"""Which numbers the columns have that the stream sends, by two looks at the catalog."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sources.postgres.column_numbers import UNBORN, SeenTable, column_numbers


@dataclass(frozen=True)
class Seen:
    number: int
    written: str = "1"
    is_generated: bool = False


def table(names: str, *, written: str = "", is_listed: bool = False) -> SeenTable:
    """A table whose columns have one letter each, `-` for one that is gone.

    `written` has a letter for each: who touched it last.
    """
    revisions = written or "1" * len(names)
    columns = {
        name: Seen(number, revision)
        for number, (name, revision) in enumerate(zip(names, revisions, strict=True), 1)
        if name != "-"
    }
    dropped = frozenset(number for number, name in enumerate(names, 1) if name == "-")
    return SeenTable(columns, len(names), dropped, is_listed)


@pytest.mark.parametrize(
    ("before", "now", "sent", "expected"),
    [
        # Nothing was ever dropped: the third column sent is the third one made.
        (UNBORN, table("abc"), "abc", [1, 2, 3]),
        (UNBORN, table("axc"), "ab", [1, 2]),
        # Something was, nobody knows when.
        (UNBORN, table("-b"), "b", [0]),
        # Nobody touched b.
        (table("ab"), table("-b"), "b", [2]),
        (table("ab"), table("-b"), "ab", [1, 2]),
        # It has another name, and nothing came or went.
        (table("ab"), table("ac", written="12"), "ac", [1, 2]),
        (table("ab"), table("ba", written="22"), "ba", [1, 2]),
        # One went and one came: the row may be from before or behind.
        (table("a"), table("-a"), "a", [0]),
        # One went and one came, with one between them that nobody touched.
        (table("xab"), table("x-ba", written="1112"), "xba", [1, 3, 4]),
        (table("ab"), table("-c", written="12"), "c", [2]),
        # Some that were there all the while are not sent, nobody knows which.
        (table("abc"), table("xyz", written="222"), "xy", [0, 0]),
        # What was gone before counts no more.
        (table("-b"), table("-cd", written="122"), "cd", [2, 3]),
        # Both have the names that they had, and swapped them twice.
        (table("ab"), table("ab", written="22"), "ba", [1, 2]),
        # All of them were there.
        (table("ab"), table("a--d", written="1112"), "abcd", [1, 2, 3, 4]),
    ],
)
def test_numbers_are_told_where_two_looks_prove_them(
    before: SeenTable, now: SeenTable, sent: str, expected: list[int]
) -> None:
    assert column_numbers(sent, before, now) == expected


def test_where_not_all_columns_are_sent_only_those_that_nobody_touched_are_known() -> None:
    before, now = table("abc"), table("axc", written="121")
    generated = SeenTable({"g": Seen(1, is_generated=True), "a": Seen(2)}, 2)

    assert column_numbers("axc", before, now) == [1, 2, 3]
    assert column_numbers("axc", before, table("axc", written="121", is_listed=True)) == [1, 0, 3]
    assert column_numbers("a", UNBORN, generated) == [0]


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "drop", "rename"]), st.integers(0, 9)), max_size=8
)


@given(STEPS, st.integers(0, 8), st.integers(0, 8))
def test_no_number_is_ever_wrong(steps: list[tuple[str, int]], first_look: int, row: int) -> None:
    """A table is altered step by step; the row lies between the looks, somewhere."""
    columns = [("a", 0), ("b", 0)]
    moments = [list(columns)]
    for count, (step, which) in enumerate(steps, 1):
        here = [index for index, (name, _) in enumerate(columns) if name != "-"]
        free = next(name for name in "abcdefghijklm" if all(name != n for n, _ in columns))
        if step == "add":
            columns.append((free, count))
        elif here and step == "drop":
            columns[here[which % len(here)]] = ("-", count)
        elif here:
            columns[here[which % len(here)]] = (free, count)
        moments.append(list(columns))
    places = sorted((min(first_look, len(steps)), min(row, len(steps))))
    before, at_row, now = moments[places[0]], moments[places[1]], moments[-1]
    truth = {name: number for number, (name, _) in enumerate(at_row, 1) if name != "-"}

    found = column_numbers(list(truth), looked(before), looked(now))

    assert all(told in {0, number} for told, number in zip(found, truth.values(), strict=True))
    assert all(a < b for a, b in pairwise(n for n in found if n))


def looked(columns: list[tuple[str, int]]) -> SeenTable:
    names = "".join(name for name, _ in columns)
    seen = {
        name: Seen(number, str(written))
        for number, (name, written) in enumerate(columns, 1)
        if name != "-"
    }
    dropped = frozenset(number for number, name in enumerate(names, 1) if name == "-")
    return SeenTable(seen, len(columns), dropped)
