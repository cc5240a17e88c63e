"""The snapshot register: every step of a table's snapshot, and what it refuses."""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import pytest

from engine.journal.entry import Snapshot, StreamStart
from engine.journal.initial import stream_start
from engine.model.batch import Moved
from engine.model.errors import InvariantBroken, SnapshotStale, SourceRefused
from engine.model.position import LOG_BEGIN, LogPosition, log_position
from engine.model.record import SnapshotMode
from engine.model.staged_object import StagedObject
from log_points import place, point
from small_bucket import ODD, ORDERS, SmallBucket
from small_snapshot import Snapshots, range_numbers, relation


async def opened(snapshot: SnapshotMode = "initial") -> Snapshots:
    bucket = SmallBucket(snapshot=snapshot)
    await bucket.take_over("writer-1")
    return Snapshots(bucket)


async def finished() -> Snapshots:
    """Orders' first snapshot is visible, and everything before it is durable."""
    snapshots = await opened()
    await snapshots.make_whole(ORDERS)
    whole = journalled(snapshots)
    await snapshots.complete()
    snapshots.bucket.commit += 0x100
    await snapshots.append(snapshots.durable())
    assert snapshots.durable().unfinished == ()
    assert journalled(snapshots) == msgspec.structs.replace(whole, objects=())
    return snapshots


def states(snapshots: Sequence[Snapshot]) -> list[tuple[str, str, int]]:
    return [(stated.table, stated.state, stated.attempt) for stated in snapshots]


def journalled(snapshots: Snapshots) -> Snapshot:
    return snapshots.bucket.journal.state.snapshots[str(ORDERS)].snapshot


async def successor(before: Snapshots, snapshot: SnapshotMode = "initial") -> Snapshots:
    """Another writer of the same bucket, which has nothing but the journal."""
    bucket = SmallBucket(before.bucket.store, snapshot=snapshot)
    bucket.commit = before.bucket.commit
    await bucket.take_over("writer-2")
    return Snapshots(bucket)


# --- from one state to the next


async def test_a_captured_table_is_wanted_and_needed_once() -> None:
    snapshots = await opened()
    register = snapshots.register

    register.capture(ORDERS)
    register.capture(ORDERS)

    assert states(register.pending) == [(str(ORDERS), "wanted", 0)]
    assert register.needed() == (ORDERS,)
    assert snapshots.woken == 1


async def test_where_snapshots_are_off_a_captured_table_wants_nothing() -> None:
    snapshots = await opened("never")

    snapshots.register.capture(ORDERS)

    assert snapshots.register.pending == ()
    assert snapshots.register.needed() == ()


async def test_tables_are_needed_by_name() -> None:
    snapshots = await opened()

    snapshots.register.capture(ORDERS)
    snapshots.register.capture(ODD)

    assert snapshots.register.needed() == tuple(sorted((ODD, ORDERS)))


async def test_a_start_takes_the_next_number_the_point_a_version_and_an_hour() -> None:
    snapshots = await opened()

    attempt = snapshots.start(ORDERS)
    await snapshots.append()

    assert (attempt.number, attempt.version.number, attempt.version.first) == (1, 1, None)
    assert snapshots.register.needed() == ()
    assert journalled(snapshots) == Snapshot(
        str(ORDERS), "started", 1, attempt.point.position, 1, attempt.hour
    )
    assert snapshots.bucket.journal.state.versions_of(ORDERS) == (attempt.version,)


async def test_a_start_waits_for_the_entry_that_says_so() -> None:
    snapshots = await opened()
    attempt = snapshots.start(ORDERS)

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(snapshots.register.started(attempt))
        await asyncio.sleep(0)
        is_early = waiting.done()
        await snapshots.append()

    assert not is_early


async def test_an_attempt_that_is_whole_is_pending_until_it_is_visible() -> None:
    snapshots = await opened()
    register = snapshots.register

    objects = await snapshots.make_whole(ORDERS)
    whole = journalled(snapshots)
    seqs = [register.oldest_pending_seq]
    register.visible(whole)
    seqs.append(register.oldest_pending_seq)

    assert (whole.state, whole.objects) == ("whole", objects)
    assert seqs == [snapshots.bucket.journal.state.seq, None]
    assert register.needed() == ()
    assert register.pending == ()


async def test_a_void_attempt_is_stated_and_then_another_one_is_needed() -> None:
    snapshots = await opened()
    register = snapshots.register
    await snapshots.make_whole(ORDERS)
    whole = journalled(snapshots)

    register.void(whole)
    before = register.needed()
    await snapshots.append()

    assert before == ()
    assert journalled(snapshots) == msgspec.structs.replace(whole, state="void", objects=())
    assert register.needed() == (ORDERS,)
    assert register.oldest_pending_seq is None
    assert snapshots.start(ORDERS).number == 2


async def test_an_attempt_that_is_given_up_is_started_again_under_the_next_number() -> None:
    snapshots = await opened()
    register = snapshots.register
    attempt = snapshots.start(ORDERS)

    register.give_up(attempt)
    before = register.needed()
    await snapshots.append()

    # First the journal says what became of it.
    assert before == ()
    assert register.needed() == (ORDERS,)
    assert snapshots.start(ORDERS).number == 2


# --- asked for again, and cancelled


async def test_a_segment_that_is_read_again_at_the_same_point_shares_its_uploads() -> None:
    snapshots = await opened()
    register = snapshots.register
    await snapshots.make_whole(ORDERS, rest="5")
    await snapshots.complete()
    snapshots.bucket.commit += 0x100
    await snapshots.append(snapshots.durable())
    first = snapshots.start(ORDERS, rest="5")
    await snapshots.append()
    register.give_up(first)
    is_shared_by_nobody = not register.shares_uploads(first)

    again = snapshots.start(ORDERS, rest="5")
    is_shared = register.shares_uploads(first)
    await snapshots.append()
    register.give_up(again)
    snapshots.bucket.commit += 0x100
    later = snapshots.start(ORDERS, rest="5")

    assert (again.number, again.segment, again.point) == (first.number, first.segment, first.point)
    assert (is_shared_by_nobody, is_shared) == (True, True)
    assert later.number == first.number
    assert not register.shares_uploads(first)


async def test_a_finished_snapshot_that_is_asked_for_again_is_wanted_once() -> None:
    snapshots = await finished()
    register = snapshots.register

    register.resync(ORDERS)
    register.resync(ORDERS)
    before = register.needed()
    await snapshots.append()

    assert before == ()
    assert journalled(snapshots) == Snapshot(str(ORDERS), "wanted")
    assert register.needed() == (ORDERS,)
    assert snapshots.durable().unfinished == (str(ORDERS),)
    assert snapshots.start(ORDERS).number == 2


async def test_a_table_that_nobody_has_seen_can_be_asked_for() -> None:
    snapshots = await opened()

    snapshots.register.resync(ORDERS)
    await snapshots.append()

    assert snapshots.register.needed() == (ORDERS,)


async def test_where_snapshots_are_off_none_is_asked_for() -> None:
    snapshots = await opened("never")

    snapshots.register.resync(ORDERS)

    assert snapshots.register.pending == ()


async def test_a_resync_gives_up_the_attempt_under_way_and_the_next_one_begins_later() -> None:
    snapshots = await opened()
    register = snapshots.register
    attempt = snapshots.start(ORDERS)
    await snapshots.append()
    objects = await snapshots.stage(attempt)

    register.resync(ORDERS)
    needed = register.needed()

    assert (register.is_under_way(attempt), needed) == (False, ())
    with pytest.raises(InvariantBroken, match="not under way"):
        await register.whole(attempt, objects)
    await snapshots.append()
    assert journalled(snapshots) == Snapshot(str(ORDERS), "wanted")
    assert snapshots.start(ORDERS).number == 2


async def test_a_resync_before_the_start_is_journalled_takes_its_place() -> None:
    snapshots = await opened()
    attempt = snapshots.start(ORDERS)

    snapshots.register.resync(ORDERS)
    await snapshots.append()
    await snapshots.register.started(attempt)

    assert not snapshots.register.is_under_way(attempt)
    assert journalled(snapshots) == Snapshot(str(ORDERS), "wanted")
    assert snapshots.start(ORDERS).number == 1


async def test_a_resync_while_the_start_is_being_appended_is_in_the_next_entry() -> None:
    snapshots = await opened()
    register = snapshots.register
    attempt = snapshots.start(ORDERS)
    # The committer has made its entry, and the bucket has not answered yet.
    started = register.pending

    register.resync(ORDERS)
    seq = await snapshots.bucket.journal.append(
        schemas=snapshots.reception.provisional(ORDERS), snapshots=started
    )
    register.journalled(started, seq)
    before = register.needed()
    await snapshots.append()

    assert before == ()
    assert not register.is_under_way(attempt)
    assert journalled(snapshots) == Snapshot(str(ORDERS), "wanted")
    assert snapshots.start(ORDERS).number == 2


async def test_objects_that_were_replaced_before_the_journal_names_them_are_unnamed_once() -> None:
    snapshots = await opened()
    register = snapshots.register
    attempt = snapshots.start(ORDERS)
    await snapshots.append()
    await register.whole(attempt, await snapshots.stage(attempt))

    register.resync(ORDERS)
    early = register.take_unnamed()
    await snapshots.append()

    # The entry that is under way may have had the attempt as whole.
    assert early == []
    assert register.take_unnamed() == [attempt]
    assert register.take_unnamed() == []


async def test_objects_that_an_entry_names_are_never_unnamed() -> None:
    snapshots = await opened()
    register = snapshots.register
    attempt = snapshots.start(ORDERS)
    await snapshots.append()
    await register.whole(attempt, await snapshots.stage(attempt))
    under_way = register.pending

    register.resync(ORDERS)
    seq = await snapshots.bucket.journal.append(snapshots=under_way)
    register.journalled(under_way, seq)
    await snapshots.append()

    assert register.take_unnamed() == []


async def test_objects_whose_entry_has_no_room_for_them_yet_are_not_unnamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.journal.snapshots.NAMES_BYTES_MAX", 1)
    snapshots = await opened()
    register = snapshots.register
    attempts = [snapshots.start(table) for table in (ODD, ORDERS)]
    await snapshots.append()
    for attempt in attempts:
        await register.whole(attempt, await snapshots.stage(attempt))

    await snapshots.append()
    one_is_left = len(register.pending)
    await snapshots.append()

    assert one_is_left == 1
    assert register.take_unnamed() == []


async def test_a_resync_of_an_attempt_that_becomes_visible_wants_another_one() -> None:
    snapshots = await opened()
    register = snapshots.register
    await snapshots.make_whole(ORDERS)
    whole = journalled(snapshots)

    register.resync(ORDERS)
    register.visible(whole)
    register.void(whole)
    await snapshots.append()

    assert journalled(snapshots) == Snapshot(str(ORDERS), "wanted")
    assert register.oldest_pending_seq is None
    assert snapshots.bucket.journal.state.visible_snapshot(str(ORDERS)) is None


async def test_a_table_whose_first_snapshot_is_cancelled_stays_unfinished() -> None:
    snapshots = await opened()
    register = snapshots.register
    attempt = snapshots.start(ORDERS)
    await snapshots.append()

    is_cancelled = register.cancel(ORDERS)
    await snapshots.append(snapshots.durable())

    assert is_cancelled
    assert not register.is_under_way(attempt)
    assert journalled(snapshots) == Snapshot(str(ORDERS), "cancelled")
    assert register.needed() == ()
    assert snapshots.durable().unfinished == (str(ORDERS),)


async def test_a_successor_starts_nothing_that_was_cancelled() -> None:
    snapshots = await opened()
    snapshots.register.capture(ORDERS)
    snapshots.register.cancel(ORDERS)
    await snapshots.append()

    later = await successor(snapshots)
    later.register.capture(ORDERS)

    assert later.register.needed() == ()
    assert later.durable().unfinished == (str(ORDERS),)


@pytest.mark.parametrize("is_started", [False, True])
async def test_a_resync_that_is_cancelled_leaves_the_snapshot_before_it(
    *,
    is_started: bool,
) -> None:
    snapshots = await finished()
    register = snapshots.register
    whole = journalled(snapshots)
    register.resync(ORDERS)
    if is_started:
        await snapshots.append()
        snapshots.start(ORDERS)
        await snapshots.append()

    is_cancelled = register.cancel(ORDERS)
    await snapshots.append(snapshots.durable())

    assert is_cancelled
    assert journalled(snapshots) == whole
    assert register.needed() == ()
    assert snapshots.durable().unfinished == ()
    assert snapshots.bucket.journal.state.durable is not None
    assert snapshots.bucket.journal.state.durable.unfinished == ()


async def test_a_resync_is_cancelled_while_an_entry_that_makes_all_durable_is_appended() -> None:
    snapshots = await finished()
    register = snapshots.register
    whole = journalled(snapshots)
    register.resync(ORDERS)
    await snapshots.append()
    # The committer has made its entry, and the bucket has not answered yet.
    durable = snapshots.durable()
    register.cancel(ORDERS)

    await snapshots.bucket.journal.append(durable=durable)
    register.forget(durable.position, durable.seq)
    await snapshots.append(snapshots.durable())

    assert journalled(snapshots) == whole
    assert register.pending == ()
    assert snapshots.durable().unfinished == ()


async def test_a_cancellation_behind_a_void_attempt_leaves_no_earlier_snapshot() -> None:
    snapshots = await finished()
    snapshots.register.resync(ORDERS)
    await snapshots.append()
    await snapshots.make_whole(ORDERS)
    snapshots.register.void(journalled(snapshots))
    await snapshots.append()

    snapshots.register.cancel(ORDERS)
    await snapshots.append(snapshots.durable())

    # Some of the void attempt's objects may be there.
    assert journalled(snapshots).state == "cancelled"
    assert snapshots.durable().unfinished == (str(ORDERS),)


async def test_what_is_cancelled_can_be_asked_for_again() -> None:
    snapshots = await opened()
    snapshots.register.capture(ORDERS)
    snapshots.register.cancel(ORDERS)
    await snapshots.append()

    snapshots.register.resync(ORDERS)
    await snapshots.append()

    assert snapshots.register.needed() == (ORDERS,)


async def test_there_is_nothing_to_cancel_of_a_table_that_is_whole_or_unknown() -> None:
    snapshots = await opened()
    await snapshots.make_whole(ORDERS)

    assert not snapshots.register.cancel(ORDERS)
    assert not snapshots.register.cancel(ODD)
    assert snapshots.register.pending == ()


async def test_an_open_without_snapshots_leaves_the_one_before_a_resync() -> None:
    snapshots = await finished()
    whole = journalled(snapshots)
    snapshots.register.resync(ORDERS)
    await snapshots.append()

    later = await successor(snapshots, "never")

    assert journalled(later) == whole
    assert later.durable().unfinished == ()


async def test_giving_up_what_is_over_changes_nothing() -> None:
    snapshots = await opened()
    register = snapshots.register
    first = snapshots.start(ORDERS)
    register.give_up(first)
    await snapshots.append()
    second = snapshots.start(ORDERS)
    await snapshots.append()

    register.give_up(first)

    assert register.needed() == ()
    register.give_up(second)
    assert register.needed() == (ORDERS,)


# --- what is refused


async def test_a_start_that_nobody_needs_is_refused() -> None:
    snapshots = await opened()
    register = snapshots.register

    with pytest.raises(InvariantBroken, match="has to be started"):
        register.start(ORDERS, point(0x2000), relation(ORDERS))
    snapshots.start(ORDERS)
    with pytest.raises(InvariantBroken, match="has to be started"):
        register.start(ORDERS, point(0x2000), relation(ORDERS))


async def test_a_whole_is_refused_before_its_start_is_journalled_and_once_it_is_over() -> None:
    snapshots = await opened()
    register = snapshots.register
    attempt = snapshots.start(ORDERS)
    objects = await snapshots.stage(attempt)

    with pytest.raises(InvariantBroken, match="not under way"):
        await register.whole(attempt, objects)
    await snapshots.append()
    register.give_up(attempt)
    with pytest.raises(InvariantBroken, match="not under way"):
        await register.whole(attempt, objects)


Objects = list[StagedObject]


def without_range_0(objects: Objects) -> Objects:
    return [staged for staged in objects if staged.range_number != 0]


def with_a_hole(objects: Objects) -> Objects:
    return [staged for staged in objects if staged is not objects[2]]


def with_an_object_twice(objects: Objects) -> Objects:
    return [*objects, objects[-1]]


def out_of_order(objects: Objects) -> Objects:
    return [objects[0], objects[2], objects[1], *objects[3:]]


def of_another_range(objects: Objects) -> Objects:
    return [*objects[:-1], msgspec.structs.replace(objects[-1], range_number=7)]


def that_end_in_another_lane(objects: Objects) -> Objects:
    return [msgspec.structs.replace(objects[0], last=objects[1].last), *objects[1:]]


def that_end_before_they_begin(objects: Objects) -> Objects:
    first, last = objects[1].last, objects[1].first
    wrong = msgspec.structs.replace(objects[2], previous=first, last=last)
    return [*objects[:2], wrong, *objects[3:]]


def of_one_upload(objects: Objects) -> Objects:
    upload_id = objects[0].upload_id
    return [*objects[:-1], msgspec.structs.replace(objects[-1], upload_id=upload_id)]


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (without_range_0, "no range 0"),
        (with_a_hole, "the lane ended at"),
        (with_an_object_twice, "the lane ended at"),
        (out_of_order, "the lane ended at"),
        (of_another_range, "the lane ended at nothing"),
        (that_end_in_another_lane, "the lane ended at nothing"),
        (that_end_before_they_begin, "the lane ended at"),
        (of_one_upload, "names an upload twice"),
    ],
)
async def test_broken_lanes_are_refused_and_the_attempt_goes_on(
    damage: Callable[[Objects], Objects], text: str
) -> None:
    snapshots = await opened()
    attempt = snapshots.start(ORDERS)
    await snapshots.append()
    objects = list(await snapshots.stage(attempt, {0: "t", 1: "RRR", 2: "r"}, bytes_max=1))
    assert len(objects) == 5

    with pytest.raises(InvariantBroken, match=text):
        await snapshots.register.whole(attempt, damage(objects))

    await snapshots.register.whole(attempt, objects)
    assert states(snapshots.register.pending) == [(str(ORDERS), "whole", 1)]


# --- while an entry is under way


async def test_what_is_stated_while_an_entry_is_under_way_is_for_the_next_one() -> None:
    snapshots = await opened()
    register = snapshots.register
    register.capture(ORDERS)
    wanted = register.pending

    attempt = snapshots.start(ORDERS)
    register.journalled(wanted, 1)

    assert states(register.pending) == [(str(ORDERS), "started", 1)]
    assert register.needed() == ()
    register.journalled(register.pending, 2)
    assert register.pending == ()
    register.give_up(attempt)
    assert register.needed() == (ORDERS,)


async def test_a_void_that_comes_while_an_entry_is_under_way_is_not_taken_for_stated() -> None:
    snapshots = await opened()
    register = snapshots.register
    await snapshots.make_whole(ORDERS)
    whole = journalled(snapshots)
    in_flight = register.pending
    assert in_flight == ()

    register.void(whole)
    register.journalled(in_flight, 9)

    assert states(register.pending) == [(str(ORDERS), "void", 1)]
    assert register.needed() == ()


async def test_an_answer_about_an_attempt_that_is_over_changes_nothing() -> None:
    snapshots = await opened()
    register = snapshots.register
    await snapshots.make_whole(ORDERS)
    first = journalled(snapshots)
    register.void(first)
    await snapshots.append()
    attempt = snapshots.start(ORDERS)

    register.visible(first)
    register.void(first)

    assert states(register.pending) == [(str(ORDERS), "started", 2)]
    assert register.unfinished(attempt.point.position, 100) == (str(ORDERS),)


# --- which tables are unfinished


async def test_a_table_is_unfinished_from_its_capture_until_everything_says_it_is_finished() -> (
    None
):
    snapshots = await opened()
    register = snapshots.register
    far = log_position(1, 0x9000)

    register.capture(ORDERS)
    seen = [register.unfinished(far, 100)]
    await snapshots.make_whole(ORDERS)
    whole = journalled(snapshots)
    seq = snapshots.bucket.journal.state.seq
    seen.append(register.unfinished(far, seq))
    register.visible(whole)

    assert seen == [(str(ORDERS),), (str(ORDERS),)]
    # Something older is not visible: nobody but this writer knows that this is.
    assert register.unfinished(far, seq - 1) == (str(ORDERS),)
    # What the snapshot saw is not all durable.
    assert register.unfinished(log_position(1, int(whole.point[5:], 16) - 1), seq) == (str(ORDERS),)
    assert register.unfinished(whole.point, seq) == ()


async def test_a_finished_table_is_forgotten_and_no_sooner() -> None:
    snapshots = await opened()
    register = snapshots.register
    await snapshots.make_whole(ORDERS)
    whole, seq = journalled(snapshots), snapshots.bucket.journal.state.seq
    register.visible(whole)

    register.forget(LOG_BEGIN, seq)
    register.forget(whole.point, seq - 1)
    before = register.unfinished(LOG_BEGIN, seq)
    register.forget(whole.point, seq)

    assert before == (str(ORDERS),)
    assert register.unfinished(LOG_BEGIN, 0) == ()
    register.capture(ORDERS)
    assert register.pending == ()


async def test_the_list_is_what_the_fold_of_its_entry_gives_at_every_step() -> None:
    snapshots = await opened()
    state = snapshots.bucket.journal.state

    async def stated() -> tuple[str, ...]:
        oldest = snapshots.register.oldest_pending_seq
        durable = snapshots.durable(state.seq if oldest is None else oldest - 1)
        await snapshots.append(durable)
        assert durable.unfinished == state.unfinished(durable.position)
        return durable.unfinished

    snapshots.register.capture(ORDERS)
    seen = [await stated()]
    snapshots.start(ODD)
    seen.append(await stated())
    await snapshots.make_whole(ORDERS)
    snapshots.register.give_up(snapshots.register._attempts[ODD])
    await snapshots.make_whole(ODD)
    seen.append(await stated())
    # The younger one is visible first.
    snapshots.register.visible(state.snapshots[str(ODD)].snapshot)
    seen.append(await stated())
    snapshots.register.visible(journalled(snapshots))
    await snapshots.bucket.journal.append()
    seen.append(await stated())

    both = tuple(sorted((str(ODD), str(ORDERS))))
    assert seen == [(str(ORDERS),), both, both, both, ()]


# --- after a takeover


async def test_a_successor_gives_up_what_was_started_and_counts_on() -> None:
    before = await opened()
    before.start(ORDERS)
    await before.append()

    after = await successor(before)

    assert after.register.needed() == (ORDERS,)
    assert after.register.unfinished(log_position(1, 0x9000), 100) == (str(ORDERS),)
    assert after.start(ORDERS).number == 2


async def test_a_successor_waits_for_what_is_whole_and_wants_no_finished_one_again() -> None:
    before = await opened()
    await before.make_whole(ORDERS)

    after = await successor(before)
    seq = after.register.oldest_pending_seq
    needed = after.register.needed()
    await after.complete()
    after.bucket.commit += 0x100
    await after.append(after.durable())
    last = await successor(after)
    last.register.capture(ORDERS)

    assert seq == before.bucket.journal.state.seq
    assert needed == ()
    assert after.bucket.journal.state.snapshots[str(ORDERS)].is_visible
    assert last.register.pending == ()
    assert last.register.unfinished(LOG_BEGIN, 0) == ()


async def test_a_successor_that_takes_no_snapshots_forgets_what_is_not_finished() -> None:
    before = await opened()
    await before.make_whole(ORDERS)

    after = await successor(before, "never")

    assert after.register.needed() == ()
    assert after.register.oldest_pending_seq is None
    assert after.register.unfinished(LOG_BEGIN, 0) == ()
    back = await successor(after)
    assert back.start(ORDERS).number == 2


# --- in segments


SECOND = range_numbers(1, "rr")


async def segmented(rest: str = "7") -> Snapshots:
    """Segment 0 of an attempt is visible, and the journal says so."""
    snapshots = await opened()
    await snapshots.make_whole(ORDERS, rest=rest)
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    return snapshots


async def test_the_next_segment_begins_once_the_journal_says_that_the_one_before_is_there() -> None:
    snapshots = await opened()
    register = snapshots.register
    rests, needed = [], []

    def look() -> None:
        rests.append(register.rest(ORDERS))
        needed.append(register.needed())

    await snapshots.make_whole(ORDERS, rest="7")
    look()
    await snapshots.complete()
    look()
    await snapshots.append(snapshots.durable())
    look()

    assert rests == ["", "", "7"]
    assert needed == [(), (), (ORDERS,)]
    assert snapshots.durable().unfinished == (str(ORDERS),)
    assert not register.is_done(snapshots.durable().position)


async def test_a_segment_has_its_attempts_number_and_a_point_of_its_own() -> None:
    snapshots = await segmented()
    first = journalled(snapshots)
    snapshots.bucket.commit += 0x100

    attempt = snapshots.start(ORDERS, rest="7")
    await snapshots.append()

    assert (attempt.number, attempt.segment, attempt.began) == (1, 1, first.point)
    assert attempt.point.position > first.point
    assert journalled(snapshots) == Snapshot(
        str(ORDERS),
        "started",
        1,
        attempt.point.position,
        1,
        attempt.hour,
        segment=1,
        began=first.point,
    )


async def test_a_table_is_finished_with_its_last_segment() -> None:
    snapshots = await segmented()
    attempt = snapshots.start(ORDERS, rest="7")
    await snapshots.append()

    objects = await snapshots.stage(attempt, SECOND)
    await snapshots.register.whole(attempt, objects)
    await snapshots.append()
    await snapshots.complete()
    last = snapshots.durable()
    await snapshots.append(last)

    assert last.unfinished == ()
    assert snapshots.register.needed() == ()
    assert snapshots.register.rest(ORDERS) == ""
    assert all(staged.key in snapshots.bucket.store.objects for staged in objects)


async def test_a_segment_may_have_no_rows() -> None:
    snapshots = await segmented()
    attempt = snapshots.start(ORDERS, rest="7")
    await snapshots.append()

    await snapshots.register.whole(attempt, [])
    await snapshots.append()
    await snapshots.complete()
    await snapshots.append(snapshots.durable())

    assert snapshots.durable().unfinished == ()


async def test_a_segment_that_is_given_up_is_read_again_and_no_other() -> None:
    snapshots = await segmented()
    attempt = snapshots.start(ORDERS, rest="7")
    await snapshots.append()

    snapshots.register.give_up(attempt)

    assert snapshots.register.rest(ORDERS) == "7"
    again = snapshots.start(ORDERS, rest="7")
    assert (again.number, again.segment) == (1, 1)


@pytest.mark.parametrize("is_started", [False, True])
async def test_a_successor_goes_on_with_the_next_segment(*, is_started: bool) -> None:
    before = await segmented()
    if is_started:
        before.start(ORDERS, rest="7")
        await before.append()

    after = await successor(before)

    assert after.register.needed() == (ORDERS,)
    assert after.register.rest(ORDERS) == "7"
    attempt = after.start(ORDERS, rest="7")
    assert (attempt.number, attempt.segment) == (1, 1)


async def test_a_segment_that_is_void_begins_the_attempt_anew() -> None:
    snapshots = await segmented()
    attempt = snapshots.start(ORDERS, rest="7")
    await snapshots.append()
    await snapshots.register.whole(attempt, await snapshots.stage(attempt, SECOND), rest="9")
    await snapshots.append()

    snapshots.register.void(journalled(snapshots))
    await snapshots.append()

    assert journalled(snapshots).rest == ""
    assert snapshots.register.rest(ORDERS) == ""
    assert snapshots.start(ORDERS).number == 2


async def test_a_resync_between_segments_begins_the_attempt_anew() -> None:
    snapshots = await segmented()

    snapshots.register.resync(ORDERS)
    await snapshots.append()

    assert snapshots.register.rest(ORDERS) == ""
    assert snapshots.start(ORDERS).number == 2


async def test_a_cancel_between_segments_leaves_the_table_unfinished() -> None:
    snapshots = await segmented()

    is_cancelled = snapshots.register.cancel(ORDERS)
    await snapshots.append(snapshots.durable())

    assert is_cancelled
    assert snapshots.register.needed() == ()
    assert snapshots.durable().unfinished == (str(ORDERS),)


@pytest.mark.parametrize(
    "changes", [{"identity": "16999"}, {"key": ("note",)}], ids=["made anew", "another key"]
)
async def test_another_table_under_the_name_begins_the_attempt_anew(
    changes: dict[str, object],
) -> None:
    snapshots = await segmented()
    other = msgspec.structs.replace(relation(ORDERS), **changes)
    at = point(snapshots.bucket.commit + 1, snapshots.bucket.time_us())

    with pytest.raises(SnapshotStale, match="not the one"):
        snapshots.register.start(ORDERS, at, other, rest="7")

    assert states(snapshots.register.pending) == [(str(ORDERS), "wanted", 0)]


async def test_a_segment_whose_point_is_not_later_begins_the_attempt_anew() -> None:
    snapshots = await segmented()

    with pytest.raises(SnapshotStale, match="not the one"):
        snapshots.register.start(ORDERS, point(0x10), relation(ORDERS), rest="7")

    assert states(snapshots.register.pending) == [(str(ORDERS), "wanted", 0)]


async def test_a_rest_that_the_register_does_not_know_is_refused() -> None:
    snapshots = await segmented()

    with pytest.raises(InvariantBroken, match="has to be started"):
        snapshots.start(ORDERS, rest="8")


@pytest.mark.parametrize("ranges", [{0: "t"}, {1: "r"}, range_numbers(2, "r")])
async def test_a_segments_ranges_are_its_own(ranges: dict[int, str]) -> None:
    snapshots = await segmented()
    attempt = snapshots.start(ORDERS, rest="7")
    await snapshots.append()
    objects = await snapshots.stage(attempt, ranges)

    with pytest.raises(InvariantBroken, match="the lane ended at"):
        await snapshots.register.whole(attempt, objects)


# --- rows that move past segments


def commit_lsn_of(position: LogPosition) -> int:
    return int(position.rpartition(".")[2], 16)


def moved(snapshots: Snapshots, commit: int) -> None:
    snapshots.register.moved(Moved(ORDERS, place(commit)))


async def test_a_moved_key_behind_the_first_segment_begins_the_attempt_anew_without_segments() -> (
    None
):
    snapshots = await segmented()
    register = snapshots.register
    before = register.undivided

    moved(snapshots, snapshots.bucket.commit + 0x10)
    stated = register.pending
    await snapshots.append()

    assert not before
    assert register.undivided == {ORDERS}
    assert stated == (Snapshot(str(ORDERS), "wanted", undivided=True),)
    assert register.rest(ORDERS) == ""
    snapshots.bucket.commit += 0x100
    attempt = snapshots.start(ORDERS)
    assert (attempt.number, attempt.segment) == (2, 0)
    assert journalled(await successor_after(snapshots)).undivided


async def successor_after(snapshots: Snapshots) -> Snapshots:
    """The journal's next writer, once everything is stated."""
    await snapshots.append()
    return await successor(snapshots)


async def test_a_successor_reads_a_table_with_a_moved_key_without_segments() -> None:
    snapshots = await segmented()
    moved(snapshots, snapshots.bucket.commit + 0x10)
    later = await successor_after(snapshots)
    snapshots.bucket.commit += 0x100

    at = point(later.bucket.commit + 1, later.bucket.time_us())
    with pytest.raises(SnapshotStale, match="without segments"):
        later.register.start(ORDERS, at, relation(ORDERS), is_divided=True)
    attempt = later.register.start(ORDERS, at, relation(ORDERS))

    assert attempt.undivided
    assert later.register.undivided == {ORDERS}


async def test_a_moved_key_before_the_first_segments_point_changes_nothing() -> None:
    snapshots = await segmented()
    began = commit_lsn_of(journalled(snapshots).point)

    moved(snapshots, began - 1)

    assert snapshots.register.pending == ()
    assert snapshots.register.rest(ORDERS) == "7"


async def test_a_moved_key_at_the_first_segments_point_is_behind_it() -> None:
    snapshots = await segmented()

    moved(snapshots, commit_lsn_of(journalled(snapshots).point))

    assert states(snapshots.register.pending) == [(str(ORDERS), "wanted", 0)]


@pytest.mark.parametrize(("distance", "is_anew"), [(-1, True), (0, False), (1, False)])
async def test_a_moved_key_counts_until_the_last_segments_point(
    distance: int, *, is_anew: bool
) -> None:
    snapshots = await segmented()
    snapshots.bucket.commit += 0x100
    attempt = snapshots.start(ORDERS, rest="7")
    await snapshots.append()
    await snapshots.register.whole(attempt, await snapshots.stage(attempt, SECOND))
    await snapshots.append()

    moved(snapshots, commit_lsn_of(attempt.point.position) + distance)

    assert bool(snapshots.register.pending) == is_anew


async def with_both_segments() -> Snapshots:
    """Both segments are visible, as the journal says, and E is between their points."""
    snapshots = await segmented()
    snapshots.bucket.commit += 0x100
    attempt = snapshots.start(ORDERS, rest="7")
    await snapshots.append()
    await snapshots.register.whole(attempt, await snapshots.stage(attempt, SECOND))
    await snapshots.append()
    await snapshots.complete()
    durable = snapshots.bucket.journal.state.durable
    assert durable is not None
    assert journalled(snapshots).sees < durable.position < journalled(snapshots).point
    await snapshots.append(msgspec.structs.replace(durable, seq=snapshots.bucket.journal.state.seq))
    return snapshots


async def asked_again(snapshots: Snapshots) -> None:
    """Somebody asks for another snapshot, and cancels it."""
    snapshots.register.resync(ORDERS)
    await snapshots.append()
    snapshots.register.cancel(ORDERS)
    await snapshots.append()


async def test_segments_that_no_row_moved_past_are_as_before_after_a_cancellation() -> None:
    snapshots = await with_both_segments()

    await asked_again(snapshots)

    assert journalled(snapshots).state == "whole"


@pytest.mark.parametrize("is_stated", [True, False])
async def test_segments_that_a_row_moved_past_are_no_snapshot_after_a_cancellation(
    *, is_stated: bool
) -> None:
    """Also where one entry has both: what was wanted because of the row is in no entry then."""
    snapshots = await with_both_segments()
    moved(snapshots, commit_lsn_of(snapshots.bucket.journal.state.durable_position))
    if is_stated:
        await snapshots.append()

    snapshots.register.cancel(ORDERS)
    await snapshots.append()

    assert journalled(snapshots).state == "cancelled"
    snapshots.bucket.commit += 0x1000
    assert snapshots.durable().unfinished == (str(ORDERS),)


@pytest.mark.parametrize(("distance", "is_torn"), [(-1, True), (0, False)])
async def test_a_row_that_moves_past_segments_makes_another_snapshot_wanted_whatever_is_asked_since(
    distance: int, *, is_torn: bool
) -> None:
    snapshots = await with_both_segments()
    last = commit_lsn_of(journalled(snapshots).point)
    await asked_again(snapshots)

    moved(snapshots, last + distance)

    wanted = (Snapshot(str(ORDERS), "wanted", undivided=True),)
    assert snapshots.register.pending == (wanted if is_torn else ())


async def test_segments_that_are_past_e_are_whole_whatever_moves_past_a_later_attempt() -> None:
    snapshots = await with_both_segments()
    snapshots.bucket.commit += 0x1000
    await snapshots.append(snapshots.durable())
    snapshots.register.resync(ORDERS)
    await snapshots.append()
    at = point(snapshots.bucket.commit + 1, snapshots.bucket.time_us())
    snapshots.register.start(ORDERS, at, relation(ORDERS), is_divided=True)
    await snapshots.append()
    moved(snapshots, commit_lsn_of(at.position))
    await snapshots.append()

    snapshots.register.cancel(ORDERS)
    await snapshots.append()

    assert journalled(snapshots).state == "whole"


async def test_a_moved_key_while_a_segment_is_read_gives_it_up() -> None:
    snapshots = await segmented()
    snapshots.bucket.commit += 0x100
    attempt = snapshots.start(ORDERS, rest="7")
    await snapshots.append()

    # Where the segment fails, it is read again, at a later point.
    moved(snapshots, commit_lsn_of(attempt.point.position) + 1)

    assert not snapshots.register.is_under_way(attempt)
    assert snapshots.register.undivided == {ORDERS}


@pytest.mark.parametrize("is_divided", [False, True])
async def test_a_moved_key_while_the_first_segment_is_read_gives_it_up_where_others_follow(
    *, is_divided: bool
) -> None:
    snapshots = await opened()
    snapshots.register.capture(ORDERS)
    at = point(snapshots.bucket.commit + 1, snapshots.bucket.time_us())
    attempt = snapshots.register.start(ORDERS, at, relation(ORDERS), is_divided=is_divided)
    await snapshots.append()

    moved(snapshots, commit_lsn_of(at.position))

    assert snapshots.register.is_under_way(attempt) != is_divided


@pytest.mark.parametrize(("distance", "is_refused"), [(-1, False), (0, True), (1, True)])
async def test_no_first_segment_begins_before_a_moved_key_that_was_read_already(
    distance: int, *, is_refused: bool
) -> None:
    snapshots = await opened()
    register = snapshots.register
    register.capture(ORDERS)
    at = point(snapshots.bucket.commit + 0x10, snapshots.bucket.time_us())

    moved(snapshots, snapshots.bucket.commit + 0x10 + distance)
    if is_refused:
        with pytest.raises(SnapshotStale, match="without segments"):
            register.start(ORDERS, at, relation(ORDERS), is_divided=True)
        await snapshots.append()
        attempt = register.start(ORDERS, at, relation(ORDERS))
    else:
        attempt = register.start(ORDERS, at, relation(ORDERS), is_divided=True)

    assert attempt.undivided == is_refused


async def test_a_table_is_read_in_segments_again_once_it_was_read_without() -> None:
    snapshots = await segmented()
    register = snapshots.register
    moved(snapshots, snapshots.bucket.commit + 0x10)
    register.resync(ORDERS)
    await snapshots.append()
    kept = register.undivided

    snapshots.bucket.commit += 0x100
    await snapshots.make_whole(ORDERS)
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    register.resync(ORDERS)

    assert kept == {ORDERS}
    assert not register.undivided


@pytest.mark.parametrize("is_past", [False, True])
async def test_where_snapshots_are_off_segments_count_only_once_e_is_past_them(
    *, is_past: bool
) -> None:
    """Nobody makes good there what moves past them."""
    snapshots = await with_both_segments()
    if is_past:
        snapshots.bucket.commit += 0x1000
        await snapshots.append(snapshots.durable())

    later = await successor(snapshots, "never")

    assert (str(ORDERS) in later.bucket.journal.state.snapshots) == is_past


async def test_where_snapshots_are_off_a_moved_key_asks_for_nothing() -> None:
    snapshots = await successor(await segmented(), "never")

    moved(snapshots, snapshots.bucket.commit + 0x10)

    assert snapshots.register.pending == ()


# --- tables that the source has no more


async def test_a_table_that_is_gone_is_not_unfinished_once_its_end_is_durable() -> None:
    snapshots = await opened()
    register = snapshots.register
    register.capture(ORDERS)
    attempt = snapshots.start(ORDERS)
    await snapshots.append()
    went = place(snapshots.bucket.commit + 0x20)

    register.vanish((ORDERS, ODD), went)
    await snapshots.append(early := snapshots.durable())
    was_done = register.is_done(early.position)
    snapshots.bucket.commit += 0x40
    await snapshots.append(late := snapshots.durable())

    assert (early.unfinished, late.unfinished) == ((str(ORDERS),), ())
    assert (register.is_under_way(attempt), register.needed()) == (False, ())
    assert (was_done, register.is_done(late.position)) == (False, True)
    assert snapshots.bucket.journal.state.unfinished(late.position) == ()


async def test_a_successor_knows_that_a_table_is_gone_and_wants_the_next_of_its_name() -> None:
    snapshots = await opened()
    snapshots.register.capture(ORDERS)
    snapshots.register.vanish((ORDERS,), place(1))
    await snapshots.append(snapshots.durable())

    later = await successor(snapshots)
    later.register.capture(ORDERS)
    before = later.register.pending
    is_gone = later.register.is_gone(ORDERS)
    later.register.arrive((ORDERS,))

    # Rows of it that are planned late are the old table's.
    assert (before, is_gone) == ((), True)
    assert states(later.register.pending) == [(str(ORDERS), "wanted", 0)]
    assert later.register.needed() == (ORDERS,)
    assert not later.register.is_gone(ORDERS)


async def test_a_gone_table_that_had_a_visible_snapshot_is_as_it_was() -> None:
    snapshots = await finished()
    whole = journalled(snapshots)
    snapshots.register.resync(ORDERS)
    await snapshots.append()

    snapshots.register.vanish((ORDERS,), place(snapshots.bucket.commit))
    await snapshots.append(snapshots.durable())

    assert journalled(snapshots) == whole
    assert snapshots.durable().unfinished == ()


async def test_nothing_is_said_of_a_table_that_goes_with_its_snapshot_finished() -> None:
    snapshots = await finished()

    snapshots.register.vanish((ORDERS,), place(snapshots.bucket.commit))

    assert snapshots.register.owed == frozenset()
    assert snapshots.register.pending == ()


async def test_a_snapshot_that_was_refused_is_nothing_to_wait_for_until_it_is_tried_again() -> None:
    snapshots = await opened()
    register, error = snapshots.register, SourceRefused("no right")
    for table in (ORDERS, ODD):
        register.capture(table)
    await snapshots.append()

    register.refuse(ORDERS, error)
    was_done = register.is_done(place(1))
    register.refuse(ODD, error)

    assert (was_done, register.is_done(place(1))) == (False, True)
    assert register.refused == {ODD: error, ORDERS: error}
    assert snapshots.durable().unfinished == tuple(sorted((str(ODD), str(ORDERS))))

    attempt = snapshots.start(ORDERS)
    await snapshots.append()
    while_tried = register.is_done(place(1))
    register.give_up(attempt)

    # What failed may have been something else.
    assert (while_tried, register.is_done(place(1))) == (False, False)
    assert register.refused == {ODD: error}


async def test_a_refusal_is_forgotten_where_the_snapshot_is_asked_for_again_or_cancelled() -> None:
    snapshots = await opened()
    register = snapshots.register
    for table in (ORDERS, ODD):
        register.capture(table)
    await snapshots.append()
    for table in (ORDERS, ODD):
        register.refuse(table, SourceRefused("no right"))

    register.cancel(ORDERS)
    register.cancel(ODD)
    register.resync(ODD)

    assert register.refused == {}
    assert not register.is_done(place(1))


async def test_a_snapshot_that_waits_for_the_end_of_a_gap_is_nothing_to_wait_for() -> None:
    snapshots = await opened()
    register = snapshots.register
    register.capture(ORDERS)
    await snapshots.append()
    before = register.is_done(place(1))

    snapshots.gaps.state(str(ORDERS), after=place(0), until="", reason="not-published", text="")

    assert (before, register.is_done(place(1))) == (False, True)
    assert snapshots.durable().unfinished == (str(ORDERS),)


# --- where the stream waits for the initial snapshot


async def waiting() -> Snapshots:
    """The stream waits. The first look is judged, and orders are captured."""
    snapshots = await opened()
    await snapshots.bucket.journal.append(stream=StreamStart(waits=True))
    snapshots.register.wait_for_look()
    assert snapshots.register.holds_stream_back
    snapshots.register.arrive([ORDERS])
    return snapshots


async def test_a_stream_waits_until_the_journal_vouches_for_the_visible_snapshot() -> None:
    snapshots = await waiting()
    register = snapshots.register

    await snapshots.make_whole(ORDERS)
    before = register.holds_stream_back
    await snapshots.complete()
    visible = register.holds_stream_back
    is_awaited = register.awaits(snapshots.bucket.journal.state.seq)
    durable = snapshots.bucket.journal.state.durable
    assert durable is not None
    # E stays where it is: only the entry up to which all is visible is stated.
    await snapshots.append(msgspec.structs.replace(durable, seq=snapshots.bucket.journal.state.seq))

    assert (before, visible, is_awaited) == (True, True, True)
    assert not register.holds_stream_back
    assert register.unfinished_names == frozenset()
    start = stream_start(snapshots.bucket.journal.state)
    assert start.begins == {str(ORDERS): journalled(snapshots).point}


async def test_a_stream_does_not_wait_for_a_table_that_is_cancelled() -> None:
    snapshots = await waiting()

    snapshots.register.cancel(ORDERS)

    assert not snapshots.register.holds_stream_back
    assert snapshots.register.unfinished_names == {str(ORDERS)}
    assert stream_start(snapshots.bucket.journal.state).begins == {}


async def test_a_stream_does_not_wait_for_a_table_that_is_refused_until_an_attempt_begins() -> None:
    snapshots = await waiting()
    register = snapshots.register

    register.refuse(ORDERS, SourceRefused("no right"), is_of_group=True)
    refused_together = register.holds_stream_back
    register.refuse(ORDERS, SourceRefused("no right"))
    refused = register.holds_stream_back
    snapshots.start(ORDERS)

    assert (refused_together, refused) == (True, False)
    assert register.holds_stream_back


async def test_a_stream_is_stuck_where_all_that_it_waits_for_is_refused() -> None:
    snapshots = await waiting()
    register = snapshots.register
    before = register.is_stream_stuck

    register.refuse(ORDERS, SourceRefused("no slot is free"), is_of_group=True)
    refused = register.is_stream_stuck
    register.capture(ODD)

    assert (before, refused, register.is_stream_stuck) == (False, True, False)
    assert register.holds_stream_back


async def test_a_stream_waits_for_no_table_that_waits_for_the_end_of_a_gap() -> None:
    snapshots = await waiting()

    snapshots.gaps.state(str(ORDERS), after=place(0), until="", reason="not-published", text="")

    assert not snapshots.register.holds_stream_back


async def test_a_table_streams_from_its_snapshots_point_until_that_is_durable() -> None:
    snapshots = await finished()
    journal = snapshots.bucket.journal
    begin = log_position(1, 1 << 40)

    await journal.append(stream=StreamStart(waits=False, begins={str(ORDERS): begin}))
    first = journal.state.stream_begin(str(ORDERS))
    known = journal.state.begins
    assert journal.state.durable is not None
    await journal.append(durable=msgspec.structs.replace(journal.state.durable, position=begin))

    assert str(first) == str(begin)
    assert known == {str(ORDERS): begin}
    assert journal.state.begins == {}
