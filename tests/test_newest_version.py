"""Which version a table's rows have: by place, not by number. And which gaps stood then."""

import pytest
from msgspec.structs import replace

from engine.journal.entry import Gap, JournalState, Snapshot, StatedSnapshot
from engine.model.position import NOWHERE, Position, make_position
from engine.model.schema import Relation, TableName, TableVersion
from engine.reader.table.known import Known, Visible, known_of, visible_of
from engine.reader.table.reading import newest_of
from engine.reader.table.steps import Step
from log_points import place

TABLE = TableName("public", "orders")


def at(commit: int) -> Position:
    return make_position(1, commit, commit - 8, 0)


def version(number: int, first: Position | None, identity: str) -> TableVersion:
    return TableVersion(number, first, "", Relation(TABLE, identity, (), ()))


FIRST, SECOND = version(1, at(100), "7"), version(2, at(200), "8")


@pytest.mark.parametrize(
    ("point", "snapshot", "until", "expected"),
    [
        (None, 0, 300, 2),
        (None, 0, 150, 1),
        # The table with the first identity has the name again, and no row came since.
        (250, 1, 300, 1),
        (150, 1, 300, 2),
        (250, 3, 300, 3),
        (150, 3, 300, 2),
        # It is visible, and sees more than is read.
        (350, 1, 300, 2),
    ],
)
def test_rows_have_the_version_that_began_last_or_that_of_a_later_snapshot(
    point: int | None, snapshot: int, until: int, expected: int
) -> None:
    stated = None
    if point is not None:
        whole = Snapshot(str(TABLE), "whole", 1, place(point), snapshot, "")
        stated = StatedSnapshot(whole, 1, 1, is_visible=True)
    known = Known(
        table=TABLE,
        until=place(until),
        end=NOWHERE,
        visible=Visible(stated, is_unfinished=False, mended=frozenset()),
        gaps=(),
        versions=(FIRST, SECOND, replace(version(3, None, "9"), number=3)),
        is_captured=True,
    )

    newest = known.newest

    assert newest is not None
    assert newest.number == expected


def step(number: int, begin: int, attempt: int = 0) -> Step:
    return Step(
        key=f"{begin}",
        size_bytes=1,
        version=number,
        first=at(begin),
        last=at(begin),
        rows=1,
        raw_bytes=1,
        raw_crc32="",
        attempt=attempt,
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((), 3),
        ((step(1, 110), step(3, 250, attempt=1)), 3),
        # A column that the snapshot still had was dropped: the row takes the older version again.
        ((step(3, 250, attempt=1), step(1, 260)), 1),
    ],
)
def test_a_row_behind_a_snapshot_may_take_an_older_version_again(
    found: tuple[Step, ...], expected: int
) -> None:
    whole = Snapshot(str(TABLE), "whole", 1, place(250), 3, "")
    stated = StatedSnapshot(whole, 1, 1, is_visible=True)
    known = Known(
        table=TABLE,
        until=place(300),
        end=NOWHERE,
        visible=Visible(stated, is_unfinished=False, mended=frozenset()),
        gaps=(),
        versions=(FIRST, version(3, None, "7")),
        is_captured=True,
    )

    newest = newest_of(known, found)

    assert newest is not None
    assert newest.number == expected


def test_a_gap_that_stood_then_is_told_also_where_the_newest_state_has_forgotten_it() -> None:
    gap = Gap(1, str(TABLE), place(100), place(150), "operations", "some")
    then = JournalState(gaps={1: gap})

    known = known_of(str(TABLE), JournalState(), then, visible_of(str(TABLE), then), place(300))

    assert known.gaps == (gap,)
    assert known.visible.mended == frozenset()
