"""Positions of snapshots' rows: behind all that the snapshot sees, before everything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.position import (
    attempt_of,
    commit_of,
    log_position,
    make_position,
    require_position,
    segment_of,
    segment_range,
    snapshot_attempt,
    snapshot_lane,
    snapshot_position,
    snapshot_range,
    snapshot_segment,
)

orders = st.integers(1, 2**64 - 1)
changes = st.integers(0, 2**64 - 1)
numbers = st.integers(0, 2**24 - 1)
generations = st.integers(0, 9999)
attempts = st.integers(1, 2**24 - 1)
ranges = st.integers(0, 2**40 - 1)
rows = st.tuples(attempts, ranges, numbers)


@given(generations, orders, rows, st.data())
def test_a_row_sorts_behind_every_change_that_the_snapshot_sees(
    generation: int, order: int, row: tuple[int, int, int], data: st.DataObject
) -> None:
    point = log_position(generation, order)
    read = snapshot_position(point, *row)

    require_position(read)
    assert read < point
    # No commit has the order just before the point: that place is the snapshots' own.
    if order > 1:
        seen = data.draw(st.integers(0, order - 2))
        change = make_position(generation, seen, data.draw(changes), data.draw(numbers))
        assert change < read


@given(generations, orders, rows, changes, st.data())
def test_a_row_sorts_before_every_change_that_the_snapshot_does_not_see(
    generation: int, order: int, row: tuple[int, int, int], change: int, data: st.DataObject
) -> None:
    read = snapshot_position(log_position(generation, order), *row)
    unseen = data.draw(st.integers(order, 2**64 - 1))

    assert read < make_position(generation, unseen, change, 0)
    assert read < log_position(generation, unseen)


@given(orders, rows, rows)
def test_at_the_same_point_a_later_attempt_sorts_behind_then_ranges_then_rows(
    order: int, one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    point = log_position(1, order)

    assert (snapshot_position(point, *one) < snapshot_position(point, *other)) == (one < other)


@given(orders, orders, attempts, attempts)
def test_a_later_point_sorts_behind_whatever_the_attempts_numbers(
    one: int, other: int, attempt: int, another: int
) -> None:
    first, second = sorted((one, other))
    if first == second:
        second = first + 1
    before = snapshot_position(log_position(1, first), attempt, 2**40 - 1, 2**24 - 1)

    assert before < snapshot_position(log_position(1, second), another, 0, 0)


@given(generations, orders, rows)
def test_a_lane_is_how_its_rows_begin_and_an_attempt_how_its_lanes_do(
    generation: int, order: int, row: tuple[int, int, int]
) -> None:
    attempt, lane, _ = row
    point = log_position(generation, order)
    read = snapshot_position(point, *row)

    assert read.startswith(snapshot_lane(point, attempt, lane))
    assert read.startswith(snapshot_attempt(point, attempt))
    assert commit_of(read) == log_position(generation, order - 1)
    assert not read.startswith(snapshot_lane(point, attempt, (lane + 1) % 2**40))
    assert not read.startswith(snapshot_attempt(point, attempt % (2**24 - 1) + 1))


def test_a_row_has_this_very_position() -> None:
    point = log_position(1, 0x1D00)

    assert snapshot_position(point, 2, 5, 7) == "0001.0000000000001CFF.0000020000000005.000007"


@pytest.mark.parametrize(("attempt", "lane"), [(0, 0), (2**24, 0), (1, -1), (1, 2**40)])
def test_numbers_beyond_their_digits_are_refused(attempt: int, lane: int) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        snapshot_range(attempt, lane)


@given(generations, orders, rows, st.integers(0, 2**16 - 1), st.integers(0, 2**24 - 1))
def test_a_segment_is_how_its_ranges_begin(
    generation: int, order: int, row: tuple[int, int, int], segment: int, number: int
) -> None:
    attempt, _, n = row
    point = log_position(generation, order)
    lane = segment_range(segment, number)
    read = snapshot_position(point, attempt, lane, n)

    assert segment_of(lane) == segment
    assert read.startswith(snapshot_segment(point, attempt, segment))
    assert not read.startswith(snapshot_segment(point, attempt, (segment + 1) % 2**16))
    assert snapshot_segment(point, attempt, segment).startswith(snapshot_attempt(point, attempt))


@pytest.mark.parametrize(("segment", "number"), [(-1, 0), (2**16, 0), (0, -1), (0, 2**24)])
def test_a_segments_numbers_beyond_their_digits_are_refused(segment: int, number: int) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        segment_range(segment, number)


@given(generations, orders, rows)
def test_a_snapshots_row_says_its_attempt(
    generation: int, order: int, row: tuple[int, int, int]
) -> None:
    position = snapshot_position(log_position(generation, order), *row)

    assert attempt_of(position) == row[0]
