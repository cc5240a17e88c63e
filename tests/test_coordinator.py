"""The coordinator: whole attempts, lost and standing workers, stale snapshots, and cancellation."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from engine.journal.entry import StreamStart
from engine.model.batch import LeftOut, Moved
from engine.model.errors import (
    DestinationUnavailable,
    SnapshotStale,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from engine.model.position import snapshot_position
from engine.model.schema import TableName
from engine.model.staging import StagedPart
from engine.snapshot.task import Failure, FailureKind, SnapshotResult, SnapshotTask, encode
from small_bucket import DATABASE, ODD, ORDERS
from snapshot_rig import Rig, cancelled, die, for_ever, rig, virtually, well


def failing(kind: FailureKind, hint: str = "") -> Callable[[SnapshotTask], Awaitable[bytes]]:
    async def fail(_: SnapshotTask) -> bytes:
        return encode(SnapshotResult(failure=Failure(kind, "it did not work", hint)))

    return fail


def raising(*errors: SourceError) -> Callable[[TableName], Awaitable[None]]:
    """Comparisons that fail so, one after the other, and then find no difference."""
    left = list(errors)

    async def compare(_: TableName) -> None:
        if left:
            raise left.pop(0)

    return compare


def waits_for(gate: asyncio.Event) -> Callable[[SnapshotTask], Awaitable[None]]:
    """A worker that stages its range once the gate is open."""

    async def wait(_: SnapshotTask) -> None:
        await gate.wait()

    return wait


# --- a whole attempt


@virtually
async def test_a_snapshot_is_started_read_compared_and_whole_in_this_order() -> None:
    one = await rig()

    async with one.taking(ORDERS):
        await one.done()

    assert one.events == [
        "started orders",
        "task orders 0",
        "task orders 1",
        "task orders 2",
        "compare orders",
        "whole orders",
    ]
    assert one.visible_rows() == 3
    assert one.rows == {ORDERS: 6}
    assert not one.bucket.store.uploads
    assert one.progress.status(0).in_all is None


@virtually
async def test_no_task_goes_out_before_the_start_is_journalled() -> None:
    one = await rig()
    one.is_appending = False

    async with one.taking(ORDERS):
        await one.until(lambda: bool(one.helds))
        await asyncio.sleep(100)
        given = list(one.tasks)
        one.is_appending = True
        await one.done()

    assert given == []


@virtually
async def test_objects_are_not_handed_over_before_the_comparison_is_done() -> None:
    one = await rig()
    gate = asyncio.Event()

    async def compare(_: TableName) -> None:
        await gate.wait()

    one.comparing = compare

    async with one.taking(ORDERS):
        await one.until(lambda: "compare orders" in one.events)
        await asyncio.sleep(100)
        before = one.stated().state
        gate.set()
        await one.done()

    assert before == "started"


@virtually
async def test_the_snapshot_is_held_until_the_journal_names_the_objects() -> None:
    one = await rig()

    async with one.taking(ORDERS):
        await one.until(lambda: "compare orders" in one.events)
        one.is_appending = False
        await asyncio.sleep(100)
        is_held = one.helds[0].is_open
        one.is_appending = True
        await one.done()
        await one.until(lambda: not one.helds[0].is_open)

    assert is_held


@virtually
async def test_tables_share_a_held_snapshot_as_far_as_the_limit_allows() -> None:
    both, single = await rig(), await rig(tables_max=1)

    async with both.taking(ORDERS, ODD):
        await both.done()
    async with single.taking(ORDERS, ODD):
        await single.done()

    assert [len(held.tables) for held in both.helds] == [2]
    assert [len(held.tables) for held in single.helds] == [1, 1]
    assert both.visible_rows() == single.visible_rows() == 4


@virtually
async def test_tables_without_a_place_under_a_snapshot_come_next_and_nothing_has_failed() -> None:
    one = await rig(place=1)

    async with one.taking(ORDERS, ODD):
        await one.done()

    assert [list(held.tables) for held in one.helds] == [[ODD], [ORDERS]]
    assert one.stated(ODD).attempt == one.stated(ORDERS).attempt == 1
    assert not any(one.progress.status(0).tables)
    assert not one.alarms.count


@virtually
async def test_workers_are_kept_for_the_next_group_and_let_go_after_a_while_without_one() -> None:
    one = await rig()

    async with one.taking(ORDERS):
        await one.done()
        for seconds in (30, 120):
            await asyncio.sleep(seconds)
            one.snapshots.register.resync(ORDERS)
            await one.done()

    assert len(one.executors) == 2


# --- groups side by side

THIRD = TableName("public", "third")


async def three_groups(worker_count: int) -> tuple[Rig, asyncio.Event]:
    """A table a group, by name: the only range of `ODD` waits for the gate."""
    one, gate = await rig(tables_max=1, worker_count=worker_count), asyncio.Event()
    one.ranges[THIRD] = ("tr",)
    one.deeds = [waits_for(gate)]
    return one, gate


@virtually
async def test_the_next_group_begins_where_the_last_ranges_of_one_leave_a_worker_free() -> None:
    one, gate = await three_groups(2)

    async with one.taking(ODD, ORDERS, THIRD):
        await one.until(lambda: one.is_whole(ORDERS) and one.is_whole(THIRD), 30)
        states = [one.stated(table).state for table in (ODD, ORDERS, THIRD)]
        gate.set()
        await one.done()

    assert states == ["started", "whole", "whole"]
    assert one.given(ODD) == [0]
    assert len(one.executors) == 1


@virtually
async def test_the_next_group_waits_while_every_worker_has_a_range() -> None:
    one, gate = await three_groups(1)

    async with one.taking(ODD, ORDERS):
        await one.until(lambda: bool(one.tasks))
        await asyncio.sleep(30)
        count = len(one.helds)
        gate.set()
        await one.done()

    assert count == 1


@virtually
async def test_the_next_group_waits_while_ranges_of_the_first_wait_for_their_start() -> None:
    one, gate = await three_groups(2)
    gate.set()

    async with one.taking(ODD):
        # There are workers from now on, and they are free.
        await one.done()
        for table in (ORDERS, THIRD):
            one.snapshots.register.capture(table)
        await one.until(lambda: not one.snapshots.register.pending)
        one.is_appending = False
        await asyncio.sleep(30)
        count = len(one.helds)
        one.is_appending = True
        await one.done()

    assert count == 2
    assert len(one.helds) == 3


@virtually
async def test_a_table_that_is_asked_for_again_waits_for_the_end_of_its_group() -> None:
    one, gate = await rig(tables_max=2, worker_count=8), asyncio.Event()
    one.ranges[ORDERS] = ("t",)
    one.deeds = [waits_for(gate), waits_for(gate)]

    async with one.taking(ODD, ORDERS):
        await one.until(lambda: len(one.tasks) == 2)
        one.snapshots.register.resync(ORDERS)
        await asyncio.sleep(30)
        count = len(one.helds)
        gate.set()
        await one.done()

    assert count == 1
    assert [one.stated(table).attempt for table in (ODD, ORDERS)] == [1, 2]


@virtually
async def test_two_snapshots_are_held_at_most() -> None:
    one, gate = await three_groups(8)
    one.ranges[ORDERS] = ("t",)
    one.deeds *= 2

    async with one.taking(ODD, ORDERS, THIRD):
        await one.until(lambda: len(one.tasks) == 2)
        await asyncio.sleep(30)
        count, given = len(one.helds), one.given(THIRD)
        gate.set()
        await one.done()

    assert (count, given) == (2, [])
    assert [len(held.tables) for held in one.helds] == [1, 1, 1]


@virtually
@pytest.mark.parametrize("lost", [0, 1])
async def test_a_group_that_is_lost_ends_no_other(lost: int) -> None:
    one, gate = await three_groups(8)
    one.ranges[ORDERS] = ("t",)
    one.deeds *= 2
    tables = (ODD, ORDERS)

    async with one.taking(*tables):
        await one.until(lambda: len(one.tasks) == 2)
        one.helds[lost].lost.set()
        await one.until(lambda: not one.helds[lost].is_open)
        await asyncio.sleep(0.1)
        gate.set()
        await one.done()

    attempts = [one.stated(table).attempt for table in tables]
    assert attempts[lost] == 2
    assert attempts[1 - lost] == 1
    assert one.given(tables[1 - lost]) == [0]
    assert not one.bucket.store.uploads


@virtually
async def test_workers_are_not_made_anew_while_those_of_another_group_come_further() -> None:
    one, gate = await three_groups(2)
    one.ranges[ORDERS] = ("t",)
    one.deeds *= 2

    async with one.taking(ODD, ORDERS):
        await one.until(lambda: len(one.tasks) == 2)
        for _ in range(300):
            await asyncio.sleep(1)
            one.seen[one.tasks[1].rows.name] += 1
        executor_count = len(one.executors)
        gate.set()
        await one.done()

    assert executor_count == 1


# --- what a group waits for


@virtually
async def test_it_is_done_once_everything_is_visible_and_durable() -> None:
    one = await rig()

    async with one.taking(ORDERS):
        await one.done()

    # Journalled as whole; visible; durable.
    assert one.was_done == [False, False, True]


@virtually
async def test_a_worker_reads_no_faster_than_its_limit() -> None:
    one = await rig(rows_per_second=0.5)
    loop = asyncio.get_running_loop()

    async with one.taking(ORDERS):
        await one.until(lambda: "task orders 0" in one.events)
        began = loop.time()
        await one.until(lambda: "compare orders" in one.events)
        ended = loop.time()

    # Three rows at half a row a second.
    assert 6 <= ended - began < 7


# --- segments


SEGMENTS: dict[str, tuple[Sequence[str], str]] = {
    "": (("t", "rr"), "3"),
    "3": (("rrr", "r"), "7"),
    "7": (("r",), ""),
}


@virtually
async def test_segments_are_read_one_after_the_other_under_snapshots_of_their_own() -> None:
    one = await rig()
    one.segments[ORDERS] = SEGMENTS

    async with one.taking(ORDERS):
        await one.done()

    points = [held.point.position for held in one.helds]
    assert [held.tables[ORDERS].begin for held in one.helds] == ["", "3", "7"]
    assert points == sorted(set(points))
    assert [(task.rows.point, task.rows.range_number) for task in one.tasks] == [
        (points[0], 0),
        (points[0], 1),
        (points[1], 1 << 24),
        (points[1], (1 << 24) + 1),
        (points[2], 2 << 24),
    ]
    assert {task.rows.attempt for task in one.tasks} == {1}
    assert [task.rows.begins_attempt for task in one.tasks] == [True, *[False] * 4]
    assert one.rows == {ORDERS: 1 + 7}
    assert one.stated().rest == ""


@virtually
async def test_a_segment_that_fails_costs_no_other() -> None:
    one = await rig()
    one.segments[ORDERS] = SEGMENTS
    one.deeds = [well, well, failing("stale")]

    async with one.taking(ORDERS):
        await one.done()

    assert [held.tables[ORDERS].begin for held in one.helds] == ["", "3", "3", "7"]
    assert one.stated().attempt == 1


@virtually
async def test_a_table_whose_key_moves_between_segments_is_read_without_them() -> None:
    one = await rig()
    one.segments[ORDERS] = SEGMENTS

    async def move(_: SnapshotTask) -> None:
        one.snapshots.register.moved(Moved(ORDERS, one.helds[-1].point.position))

    one.deeds = [well, well, move]

    async with one.taking(ORDERS):
        await one.done()

    rests = [held.tables[ORDERS].rest for held in one.helds]
    assert rests == ["3", "7", ""]
    assert (one.stated().attempt, one.stated().undivided) == (2, True)


@virtually
async def test_a_source_that_cannot_go_on_from_a_segment_begins_the_attempt_anew() -> None:
    one = await rig()
    one.segments[ORDERS] = SEGMENTS
    one.lost_rests = {"3"}

    async def found_again() -> None:
        if len(one.helds) == 2:
            one.lost_rests = set()

    one.holding = found_again

    async with one.taking(ORDERS):
        await one.done()

    assert [held.tables[ORDERS].begin for held in one.helds] == ["", "", "3", "7"]
    assert (one.stated().attempt, one.stated().segment) == (2, 2)


# --- workers that are lost or stand still


@virtually
async def test_what_a_lost_worker_had_is_given_again() -> None:
    one = await rig()
    one.deeds = [well, die]

    async with one.taking(ORDERS):
        await one.done()

    assert sorted(one.given()) == [0, 1, 1, 2]
    assert len(one.executors) == 2
    assert one.visible_rows() == 3


@virtually
async def test_a_range_whose_worker_stands_still_is_given_to_another_one() -> None:
    one = await rig()
    one.deeds = [for_ever]

    async with one.taking(ORDERS):
        await one.done()

    assert one.given().count(0) == 2
    # Whoever stands still is ended when nobody waits for it any more, and not before.
    assert len(one.executors) == 1
    assert not one.executors[0].futures
    assert one.visible_rows() == 3


@virtually
async def test_who_takes_its_time_because_of_its_limit_does_not_stand_still() -> None:
    one = await rig(rows_per_second=100)

    async def read_what_was_sent(_: SnapshotTask) -> None:
        # The source has sent all of it, and shows no progress any more.
        await asyncio.sleep(600)

    one.deeds = [read_what_was_sent]

    async with one.taking(ORDERS):
        await one.done()

    assert sorted(one.given()) == [0, 1, 2]


@virtually
async def test_who_stands_still_is_found_beside_a_limit_too() -> None:
    one = await rig(rows_per_second=100)
    one.deeds = [for_ever]

    async with one.taking(ORDERS):
        await one.done()

    assert one.given().count(0) == 2


@virtually
async def test_a_range_that_fails_for_long_costs_its_attempt_and_no_other_table() -> None:
    one = await rig(tables_max=2)
    loop = asyncio.get_running_loop()
    is_broken = True

    async def fail(task: SnapshotTask) -> bytes | None:
        one.deeds.append(fail)
        if task.staging.table != ORDERS or task.staging.range_number != 1 or not is_broken:
            return None
        return await failing("again")(task)

    one.deeds = [fail]
    began = loop.time()

    async with one.taking(ORDERS, ODD):
        await one.until(lambda: one.is_whole(ODD))
        await one.until(one.is_alarmed)
        told = loop.time() - began
        await one.until(lambda: not one.helds[0].is_open)
        ended = loop.time() - began
        is_broken = False
        await one.done()

    assert told < 60
    # Nobody is kept from cleaning up for longer by a snapshot that comes to nothing.
    assert 900 <= ended < 1000
    assert one.stated(ODD).attempt == 1
    assert one.stated(ORDERS).attempt == 2


@virtually
async def test_who_comes_further_is_left_alone_however_long_it_takes() -> None:
    one = await rig()

    async def read_slowly(task: SnapshotTask) -> None:
        for _ in range(100):
            await asyncio.sleep(10)
            one.seen[task.rows.name] += 1

    one.deeds = [read_slowly]

    async with one.taking(ORDERS):
        await one.done()

    assert sorted(one.given()) == [0, 1, 2]


@virtually
async def test_nobody_counts_as_standing_still_while_progress_is_not_known() -> None:
    one = await rig()
    one.is_blind = True

    async def read(_: SnapshotTask) -> None:
        await asyncio.sleep(600)

    one.deeds = [read]

    async with one.taking(ORDERS):
        await one.done()

    assert sorted(one.given()) == [0, 1, 2]


@virtually
async def test_the_first_result_wins_and_what_others_staged_is_thrown_away() -> None:
    one = await rig(worker_count=3)
    late = asyncio.Event()

    async def come_late(_: SnapshotTask) -> None:
        await late.wait()

    async def compare(_: TableName) -> None:
        late.set()
        await asyncio.sleep(5)

    one.deeds, one.comparing = [come_late], compare

    async with one.taking(ORDERS):
        await one.until(late.is_set)
        await asyncio.sleep(1)
        staged_count = len(one.bucket.store.uploads)
        await one.done()

    assert one.given().count(0) == 2
    assert staged_count == 4
    assert one.visible_rows() == 3
    assert not one.bucket.store.uploads


@virtually
async def test_workers_that_all_stand_still_are_made_anew() -> None:
    one = await rig()
    one.deeds = [for_ever, for_ever]

    async with one.taking(ORDERS):
        await one.done(120)

    assert len(one.executors) == 2
    assert one.visible_rows() == 3


@virtually
async def test_workers_are_made_anew_where_the_second_one_of_a_range_stands_still_too() -> None:
    two, three = await rig(worker_count=2), await rig(worker_count=3)
    two.ranges[ORDERS] = three.ranges[ORDERS] = ("t",)
    two.deeds, three.deeds = [for_ever, for_ever], [for_ever, for_ever]

    async with two.taking(ORDERS):
        await two.done(240)
    async with three.taking(ORDERS):
        await three.done(240)

    assert two.given() == three.given() == [0, 0, 0]


@virtually
async def test_ranges_that_wait_get_workers_where_nobody_wants_what_the_others_do() -> None:
    one = await rig()
    one.deeds = [for_ever, failing("stale"), for_ever]
    one.ranges[ODD], one.ranges[ORDERS] = ("t", "r", "r"), ("t",)

    async with one.taking(ORDERS, ODD):
        await one.until(lambda: one.is_whole(ORDERS), 240)

    assert len(one.executors) > 1


@virtually
async def test_a_future_that_its_executor_cancels_leaves_out_no_range() -> None:
    one = await rig()

    async def lose(task: SnapshotTask) -> None:
        executor = one.executors[-1]
        future, worker = list(executor.futures.items())[task.staging.range_number]
        del executor.futures[future]
        future._state = "PENDING"
        future.cancel()
        worker.cancel()
        await asyncio.sleep(0)

    one.deeds = [well, lose]

    async with one.taking(ORDERS):
        await one.done()

    assert sorted(one.given()) == [0, 1, 1, 2]
    assert one.visible_rows() == 3


@virtually
async def test_an_error_that_a_worker_cannot_turn_into_a_result_costs_another_try() -> None:
    one = await rig()

    async def be_broken(_: SnapshotTask) -> bytes:
        executor = one.executors[-1]
        future, worker = executor.futures.popitem()
        future.set_exception(MemoryError())
        worker.cancel()
        await asyncio.sleep(0)
        raise AssertionError

    one.deeds, one.ranges[ORDERS] = [be_broken], ("tr",)

    async with one.taking(ORDERS):
        await one.done()

    assert one.given() == [0, 0]


# --- snapshots that are lost


@virtually
async def test_a_stale_range_gives_up_its_table_and_no_other() -> None:
    one = await rig()
    one.deeds = [failing("stale")]

    async with one.taking(ORDERS, ODD):
        await one.done()

    assert [len(held.tables) for held in one.helds] == [2, 1]
    [again] = one.helds[1].tables
    assert one.stated(again).attempt == 2
    assert one.stated(again).point == one.helds[1].point.position
    assert not one.bucket.store.uploads
    assert not one.is_alarmed(again)


@virtually
async def test_what_was_staged_of_an_attempt_that_is_given_up_is_aborted() -> None:
    one = await rig(worker_count=3)

    async def be_late(_: SnapshotTask) -> bytes:
        await asyncio.sleep(5)
        return await failing("stale")(_)

    one.deeds = [well, well, be_late]

    async with one.taking(ORDERS):
        await one.until(lambda: len(one.bucket.store.uploads) == 2)
        await one.until(lambda: not one.bucket.store.uploads)
        attempts = one.stated().attempt
        await one.done()

    assert attempts == 1
    assert one.visible_rows() == 3


@virtually
async def test_a_difference_that_is_found_after_the_last_row_gives_the_attempt_up() -> None:
    one = await rig()
    one.comparing = raising(SnapshotStale("a partition was attached"))

    async with one.taking(ORDERS):
        await one.done()

    assert "whole orders" not in one.events[: one.events.index("compare orders") + 2]
    assert one.stated().attempt == 2


@virtually
async def test_a_comparison_without_an_answer_is_made_again() -> None:
    one = await rig()
    one.comparing = raising(*[SourceUnavailable("no answer")] * 9)

    async with one.taking(ORDERS):
        await one.until(one.is_alarmed)
        await one.done()
        await one.until(lambda: not one.alarms.count)

    assert one.stated().attempt == 1


@virtually
async def test_a_snapshot_that_is_lost_gives_up_every_table_of_it() -> None:
    one = await rig()
    one.deeds = [for_ever, for_ever]

    async with one.taking(ORDERS, ODD):
        await one.until(lambda: not one.deeds)
        one.helds[0].lost.set()
        await one.done()

    assert [len(held.tables) for held in one.helds] == [2, 2]
    assert one.stated(ORDERS).attempt == one.stated(ODD).attempt == 2
    # Nobody does anything for the first one any more.
    assert len(one.executors) == 2
    assert not one.bucket.store.uploads


@virtually
async def test_a_snapshot_that_is_lost_is_one_failure_of_a_table() -> None:
    one = await rig()
    one.left_out = {ODD: SnapshotStale("somebody changes it")}
    one.deeds = [for_ever] * 8

    async with one.taking(ORDERS, ODD):
        for failures in (1, 2):
            await one.until(lambda count=failures: len(one.helds) == count)  # type: ignore[misc]
            one.helds[-1].lost.set()
        await one.until(lambda: not one.helds[-1].is_open)
        is_alarmed_early = one.is_alarmed(ODD)
        one.deeds = []
        one.left_out = {}
        await one.done()

    assert not is_alarmed_early


@virtually
async def test_failures_count_on_where_the_start_was_not_journalled_yet() -> None:
    one = await rig()

    async with one.taking(ORDERS):
        for count in (1, 2, 3):
            await one.until(lambda: bool(one.snapshots.register.needed()))
            one.is_appending = False
            await one.until(lambda wanted=count: len(one.helds) == wanted)  # type: ignore[misc]
            await asyncio.sleep(0.1)
            one.helds[-1].lost.set()
            await asyncio.sleep(0.1)
            one.is_appending = True
        is_alarmed = one.is_alarmed()
        await one.done()

    assert is_alarmed


# --- where the stream waits for the initial snapshot


@virtually
async def test_tables_are_held_whole_only_while_the_stream_waits() -> None:
    one = await rig()
    async with one.taking(ORDERS):
        await one.done()
    two = await rig()
    await two.bucket.journal.append(stream=StreamStart(waits=True))
    async with two.taking(ORDERS):
        await two.until(lambda: two.is_whole(ORDERS))

    assert (one.held_whole, two.held_whole) == ([False], [True])


@virtually
async def test_a_table_that_is_refused_again_and_again_holds_no_stream_back() -> None:
    one = await rig()
    await one.bucket.journal.append(stream=StreamStart(waits=True))
    one.left_out = {ORDERS: SourceRefused("no right")}

    async with one.taking(ORDERS):
        register = one.snapshots.register
        await one.until(lambda: one.alarms.count == 1)
        at_once = register.holds_stream_back
        await one.until(lambda: not register.holds_stream_back)
        attempts = len(one.helds)

    assert at_once
    assert attempts == 3


@virtually
async def test_what_a_whole_group_is_refused_holds_the_stream_back() -> None:
    one = await rig()
    await one.bucket.journal.append(stream=StreamStart(waits=True))
    one.refusals = [SourceRefused("no slot is free") for _ in range(5)]

    async with one.taking(ORDERS):
        await one.until(lambda: one.alarms.count == 1)
        await one.until(lambda: len(one.refusals) == 0)
        holds_back = one.snapshots.register.holds_stream_back

    assert holds_back


# --- what somebody has to see


@virtually
async def test_a_refused_table_is_an_alarm_with_its_hint_and_the_others_go_on() -> None:
    one = await rig()
    one.left_out = {ORDERS: SourceRefused("no right", hint="GRANT SELECT")}

    async with one.taking(ORDERS, ODD):
        await one.until(lambda: one.is_whole(ODD))
        alarms = one.alarms.standing()
        one.left_out = {}
        await one.done()
        await one.until(lambda: not one.alarms.count)

    assert [(alarm.subject, alarm.hint) for alarm in alarms] == [(str(ORDERS), "GRANT SELECT")]


@pytest.mark.parametrize("kind", ["refused", "unrepresentable"])
@virtually
async def test_a_range_that_is_refused_is_an_alarm_until_it_works(kind: FailureKind) -> None:
    one = await rig()
    one.deeds = [failing(kind, "change something")]

    async with one.taking(ORDERS, ODD):
        await one.until(lambda: one.alarms.count == 1)
        [alarm] = one.alarms.standing()
        await one.done()
        await one.until(lambda: not one.alarms.count)

    assert alarm.hint == "change something"
    assert "it did not work" in alarm.text


@virtually
async def test_a_table_with_too_many_odd_rows_is_an_alarm_before_all_of_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.journal.gaps.LEFT_OUT_ROWS_MAX", 3)
    one = await rig(worker_count=3)

    async def leave_out(task: SnapshotTask) -> bytes:
        table, number = task.staging.table, task.staging.range_number
        positions = [
            snapshot_position(task.rows.point, task.rows.attempt, number, row) for row in (1, 2)
        ]
        rows = tuple(LeftOut(table, position, "odd", "") for position in positions)
        return encode(SnapshotResult(left_out=rows))

    one.deeds = [for_ever, leave_out, leave_out]

    async with one.taking(ORDERS):
        await one.until(lambda: one.alarms.count == 1, seconds=30)
        [alarm] = one.alarms.standing()
        stated = one.snapshots.gaps.standing
        await one.done()
        await one.until(lambda: not one.alarms.count)

    assert "3 rows of public.orders were left out already" in alarm.text
    assert "exclude the column" in alarm.hint
    assert stated == ()
    assert one.stated().attempt == 2


@virtually
async def test_a_source_that_does_not_answer_is_asked_at_growing_distances() -> None:
    one = await rig()
    one.refusals = [SourceUnavailable("no answer")] * 9
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def note() -> None:
        times.append(loop.time())

    one.holding = note

    async with one.taking(ORDERS):
        await one.until(one.is_alarmed)
        failures = len(times)
        await one.done()

    distances = [after - before for before, after in pairwise(times)]
    assert failures == 3
    assert distances == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60], abs=0.3)


@virtually
async def test_a_bucket_that_does_not_answer_for_a_while_costs_no_attempt() -> None:
    one = await rig()
    until = asyncio.get_running_loop().time() + 500
    put_part = one.bucket.store.put_part

    async def put(key: str, upload_id: str, number: int, body: bytes) -> StagedPart:
        if asyncio.get_running_loop().time() < until:
            raise DestinationUnavailable("no answer")
        return await put_part(key, upload_id, number, body)

    one.bucket.store.put_part = put  # type: ignore[method-assign, assignment]

    async with one.taking(ORDERS):
        await one.until(one.is_alarmed)
        await one.done()
        await one.until(lambda: not one.alarms.count)

    assert one.stated().attempt == 1
    assert one.visible_rows() == 3
    assert not one.bucket.store.uploads


@virtually
async def test_a_result_that_nobody_understands_is_asked_for_again() -> None:
    one = await rig()

    async def say_something(_: SnapshotTask) -> bytes:
        return b"\xc1"

    one.deeds = [say_something]

    async with one.taking(ORDERS):
        await one.done()

    assert one.given().count(0) == 2


# --- what is asked for meanwhile


@virtually
async def test_a_resync_gives_up_what_is_being_read_and_takes_it_anew() -> None:
    one = await rig()
    one.deeds = [for_ever, for_ever]

    async with one.taking(ORDERS):
        await one.until(lambda: not one.deeds)
        one.snapshots.register.resync(ORDERS)
        await one.until(lambda: len(one.helds) == 2, 20)
        await one.done()

    assert one.stated().attempt == 2
    assert one.visible_rows() == 3


@virtually
async def test_a_resync_before_the_journal_names_the_objects_throws_them_away() -> None:
    one = await rig()
    register = one.snapshots.register

    async def stop_appending(_: TableName) -> None:
        one.is_appending = False

    one.comparing = stop_appending
    async with one.taking(ORDERS):
        await one.until(lambda: any(stated.state == "whole" for stated in register.pending))
        staged = set(one.bucket.store.uploads)
        register.resync(ORDERS)
        one.comparing = raising()
        one.is_appending = True
        await one.done()
        await one.until(lambda: not staged & one.bucket.store.uploads.keys(), seconds=30)

    assert len(staged) == 3
    assert one.stated().attempt == 2
    assert one.visible_rows() == 3


@virtually
async def test_a_resync_during_the_comparison_is_seen() -> None:
    one = await rig()

    async def resync(_: TableName) -> None:
        if len(one.helds) == 1:
            one.snapshots.register.resync(ORDERS)

    one.comparing = resync

    async with one.taking(ORDERS):
        await one.done()

    assert one.stated().attempt == 2


@virtually
async def test_a_table_that_is_cancelled_while_the_source_waits_is_not_started() -> None:
    one = await rig()

    async def cancel() -> None:
        one.snapshots.register.cancel(ORDERS)

    one.holding = cancel

    async with one.taking(ORDERS, ODD):
        await one.until(lambda: one.is_whole(ODD))

    assert one.stated().state == "cancelled"
    assert one.given(ORDERS) == []


# --- cancellation


async def cancelled_after(seconds: float) -> Rig:
    """One whose coordinator ran for so long, with a range that is stale and one that is late."""
    one = await rig()
    one.deeds = [well, failing("stale")]
    one.snapshots.register.capture(ORDERS)
    loop = asyncio.get_running_loop()
    committing = loop.create_task(one.commit())
    running = loop.create_task(one.coordinator.run(one.snapshots.register, DATABASE))
    await asyncio.sleep(seconds)
    await cancelled(running)
    await cancelled(committing)
    assert running.cancelled()
    return one


@virtually
async def test_cancellation_at_any_moment_leaves_nothing_that_another_life_trips_over() -> None:
    for step in range(80):
        one = await cancelled_after(step * 0.025)

        assert not any(executor.futures for executor in one.executors)
        assert all(not held.is_open for held in one.helds)
        assert one.progress.status(0).in_all is None
        is_over = one.is_whole(ORDERS)

        async with one.taking(ORDERS):
            await one.done()

        assert one.visible_rows() == 3
        assert is_over or not one.bucket.store.uploads


@virtually
async def test_what_is_not_whole_when_the_engine_stops_is_said_to_be_given_up() -> None:
    one = await rig()
    one.deeds = [for_ever, for_ever]
    one.snapshots.register.capture(ORDERS)
    loop = asyncio.get_running_loop()
    committing = loop.create_task(one.commit())
    running = loop.create_task(one.coordinator.run(one.snapshots.register, DATABASE))
    await one.until(lambda: not one.deeds)

    with capture_logs() as lines:
        await cancelled(running)
    await cancelled(committing)

    told = [(line["event"], line["table"]) for line in lines if "given up" in line["event"]]
    assert told == [("snapshot given up", str(ORDERS))]


@virtually
async def test_a_cancellation_beside_the_loss_of_the_snapshot_ends_the_coordinator() -> None:
    one = await rig()
    one.deeds = [for_ever, for_ever]
    one.snapshots.register.capture(ORDERS)
    loop = asyncio.get_running_loop()
    committing = loop.create_task(one.commit())
    running = loop.create_task(one.coordinator.run(one.snapshots.register, DATABASE))
    await one.until(lambda: not one.deeds)

    one.helds[0].lost.set()
    for _ in range(2):
        await asyncio.sleep(0)
    await cancelled(running)
    await cancelled(committing)

    assert running.cancelled()
