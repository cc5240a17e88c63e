"""Gaps that a snapshot fills: which one does, when another one is wanted, and how often."""

import asyncio
from collections.abc import Iterator

import msgspec
import pytest

from engine.journal import snapshots as register_module
from engine.journal.entry import Gap
from engine.model.batch import LeftOut
from engine.model.errors import UnrepresentableRow
from engine.model.position import make_position
from engine.model.record import SnapshotMode
from log_points import place
from simulation.virtual_loop import VirtualLoop
from small_bucket import ODD, ORDERS, SmallBucket
from small_snapshot import Snapshots

REASON = "left-publication"


async def opened(snapshot: SnapshotMode = "initial") -> Snapshots:
    bucket = SmallBucket(snapshot=snapshot)
    await bucket.take_over("writer-1")
    return Snapshots(bucket)


async def successor(before: Snapshots) -> Snapshots:
    """Another writer of the same bucket, which has nothing but the journal."""
    bucket = SmallBucket(before.bucket.store, snapshot="initial")
    bucket.commit = before.bucket.commit
    await bucket.take_over("writer-2")
    return Snapshots(bucket)


async def visible(snapshots: Snapshots) -> None:
    """A snapshot of the table from its start until all of its objects are visible."""
    await snapshots.make_whole(ORDERS)
    await snapshots.complete()


def lose(snapshots: Snapshots, after: int, until: int | None) -> Gap:
    """A gap of the table between two places that are counted from the bucket's last commit."""
    commit = snapshots.bucket.commit
    end = place(commit + until) if until is not None else ""
    return snapshots.gaps.state(
        str(ORDERS), after=place(commit + after), until=end, reason=REASON, text="it was away"
    )


def mended(snapshots: Snapshots) -> list[str]:
    return [gap.mended for gap in snapshots.gaps.standing]


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    virtual = VirtualLoop()
    yield virtual
    virtual.dispose()


async def test_every_table_that_arrives_is_wanted_in_one_entry() -> None:
    snapshots = await opened()

    snapshots.register.arrive((ORDERS, ODD))

    assert {stated.table: stated.state for stated in snapshots.register.pending} == {
        str(ORDERS): "wanted",
        str(ODD): "wanted",
    }


async def test_where_no_snapshots_are_taken_nothing_is_wanted_and_no_gap_is_filled() -> None:
    snapshots = await opened("never")
    lose(snapshots, 0, 1)

    snapshots.register.arrive((ORDERS,))

    assert (snapshots.register.pending, mended(snapshots)) == ((), [""])


async def test_before_the_first_look_nothing_is_needed() -> None:
    snapshots = await opened()
    register = snapshots.register
    register.capture(ORDERS)

    register.wait_for_look()
    before = register.needed()
    register.arrive((ORDERS,))

    assert (before, register.needed()) == ((), (ORDERS,))


async def test_a_gap_is_mended_once_the_snapshot_behind_its_end_is_visible() -> None:
    snapshots = await opened()
    snapshots.register.arrive((ORDERS,))
    lose(snapshots, 0, 1)
    snapshots.register.arrive((ORDERS,))

    await snapshots.make_whole(ORDERS)
    before = mended(snapshots)
    await snapshots.complete()

    assert (before, mended(snapshots)) == ([""], ["attempt 1 of its snapshot"])
    assert snapshots.gaps.pending[0].mended


async def test_a_gap_from_before_any_snapshots_were_taken_is_mended_by_the_first_one() -> None:
    before = await opened("never")
    lose(before, 0, 1)
    await before.append()
    snapshots = await successor(before)
    snapshots.bucket.commit += 2

    snapshots.register.arrive((ORDERS,))
    await visible(snapshots)

    assert mended(snapshots) == ["attempt 1 of its snapshot"]


async def test_a_gap_that_is_noticed_behind_its_snapshot_is_mended_at_once() -> None:
    snapshots = await opened()
    snapshots.register.arrive((ORDERS,))
    await visible(snapshots)

    lose(snapshots, -1, 1)
    snapshots.register.arrive((ORDERS,))

    assert mended(snapshots) == ["attempt 1 of its snapshot"]
    assert snapshots.register.pending == ()


async def test_a_gap_that_ends_behind_the_snapshot_makes_the_table_unfinished_at_once() -> None:
    snapshots = await opened()
    register = snapshots.register
    register.arrive((ORDERS,))
    await visible(snapshots)
    await snapshots.append(snapshots.durable())

    lose(snapshots, 0, 2)
    register.arrive((ORDERS,))

    [wanted] = register.pending
    assert (wanted.table, wanted.state, mended(snapshots)) == (str(ORDERS), "wanted", [""])
    # The entry that states the gap's end says it too: both are pending.
    assert snapshots.durable().unfinished == (str(ORDERS),)
    assert register.is_filling(ORDERS)


async def test_an_attempt_that_began_before_the_gaps_end_is_given_up() -> None:
    snapshots = await opened()
    register = snapshots.register
    register.arrive((ORDERS,))
    attempt = snapshots.start(ORDERS)
    await snapshots.append()

    lose(snapshots, 0, 2)
    register.arrive((ORDERS,))
    is_under_way = register.is_under_way(attempt)
    await snapshots.append()
    snapshots.bucket.commit += 4
    again = snapshots.start(ORDERS)

    assert (is_under_way, again.number) == (False, 2)


async def test_an_attempt_that_began_behind_the_gaps_end_goes_on() -> None:
    snapshots = await opened()
    snapshots.register.arrive((ORDERS,))
    attempt = snapshots.start(ORDERS)

    lose(snapshots, 0, 1)
    snapshots.register.arrive((ORDERS,))

    assert snapshots.register.is_under_way(attempt)


async def test_a_whole_attempt_that_fills_too_little_is_followed_by_another_one() -> None:
    snapshots = await opened()
    register = snapshots.register
    register.arrive((ORDERS,))
    await snapshots.make_whole(ORDERS)

    lose(snapshots, 0, 2)
    register.arrive((ORDERS,))
    before = register.pending
    await snapshots.complete()

    # First its objects become visible: the journal names them.
    assert before == ()
    assert [stated.state for stated in register.pending] == ["wanted"]
    assert mended(snapshots) == [""]


async def test_while_a_gap_is_open_no_snapshot_is_taken() -> None:
    snapshots = await opened()
    register = snapshots.register
    register.arrive((ORDERS,))
    gap = lose(snapshots, 0, None)

    held_back = register.needed()
    snapshots.gaps.end(gap.number, place(snapshots.bucket.commit + 2))
    register.arrive((ORDERS,))

    assert (held_back, register.needed()) == ((), (ORDERS,))


async def test_a_table_that_is_gone_is_not_asked_for_again() -> None:
    snapshots = await opened()
    snapshots.register.arrive((ORDERS,))
    await visible(snapshots)

    lose(snapshots, 0, 2)
    snapshots.register.arrive(())

    assert (snapshots.register.pending, mended(snapshots)) == ((), [""])


def test_a_table_with_gap_after_gap_is_left_alone_for_longer_and_longer(loop: VirtualLoop) -> None:
    async def pauses() -> list[int]:
        snapshots = await opened()
        register = snapshots.register
        register.arrive((ORDERS,))
        found: list[int] = []
        for _ in range(12):
            await visible(snapshots)
            await snapshots.append(snapshots.durable())
            lose(snapshots, 0, 2)
            register.arrive((ORDERS,))
            await snapshots.append(snapshots.durable())
            snapshots.bucket.commit += 4
            found.append(0)
            while not register.needed():
                found[-1] += 1
                await asyncio.sleep(1)
        return found

    found = loop.run_until_complete(pauses())

    assert found[0] == 0
    assert found[1:4] == [10, 20, 40]
    assert found == sorted(found)
    assert found[-1] == register_module._PAUSE_SECONDS_MAX


def row(snapshots: Snapshots, commit: int) -> LeftOut:
    """A row of the table's stream, in a commit counted from the bucket's last one."""
    order = snapshots.bucket.commit + commit
    return LeftOut(ORDERS, make_position(1, order, order - 0x80, 0), "odd", "")


def rows_left_out(snapshots: Snapshots) -> list[tuple[int, str]]:
    """The attempt of each row that was left out, 0: the stream, and what mended its gap."""
    return [(gap.attempt, gap.mended) for gap in snapshots.gaps.standing]


async def test_a_later_attempt_takes_the_place_of_rows_that_earlier_ones_left_out() -> None:
    snapshots = await opened()
    register = snapshots.register
    await snapshots.make_whole(ORDERS, left_out=(7, 8))
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    alone = rows_left_out(snapshots)
    register.resync(ORDERS)
    await snapshots.append()
    await snapshots.make_whole(ORDERS, left_out=(7,))
    await snapshots.complete()
    early = rows_left_out(snapshots)

    await snapshots.append(snapshots.durable())

    assert alone == [(1, ""), (1, "")]
    # Only once the journal says that the later one is visible.
    assert early == [*alone, (2, "")]
    mended = "attempt 2 of its snapshot"
    assert rows_left_out(snapshots) == [(1, mended), (1, mended), (2, "")]
    assert [gap.number for gap in snapshots.gaps.pending] == [1, 2]


async def test_a_successor_mends_what_a_visible_attempt_took_the_place_of() -> None:
    before = await opened()
    await before.make_whole(ORDERS, left_out=(7,))
    before.register.resync(ORDERS)
    await before.append()
    await before.make_whole(ORDERS, left_out=(7,))
    await before.complete()
    await before.append(before.durable())
    after = await successor(before)

    after.register.arrive((ORDERS,))

    assert rows_left_out(after) == [(1, "attempt 2 of its snapshot"), (2, "")]


async def test_a_void_attempt_takes_no_rows_place() -> None:
    snapshots = await opened()
    await snapshots.make_whole(ORDERS, left_out=(7,))
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    snapshots.register.resync(ORDERS)
    await snapshots.append()
    objects = await snapshots.make_whole(ORDERS)
    await snapshots.bucket.store.abort_upload(objects[2].key, objects[2].upload_id)
    await snapshots.complete()
    await snapshots.append(snapshots.durable())

    snapshots.register.arrive((ORDERS,))

    assert rows_left_out(snapshots) == [(1, "")]


async def test_a_row_that_the_stream_left_out_is_mended_by_a_snapshot_that_saw_its_commit() -> None:
    snapshots = await opened()
    # The snapshot's point is just behind the bucket's last commit.
    for commit in (-0x100, 0, 1, 0x100):
        snapshots.gaps.leave_out(row(snapshots, commit))
    await snapshots.make_whole(ORDERS)
    await snapshots.complete()

    await snapshots.append(snapshots.durable())

    mended = "attempt 1 of its snapshot"
    assert rows_left_out(snapshots) == [(0, mended), (0, mended), (0, ""), (0, "")]


async def test_a_row_that_is_read_again_is_not_mended_before_it_is_durable() -> None:
    snapshots = await opened()
    before = snapshots.bucket.durable()
    snapshots.bucket.commit += 0x200
    snapshots.gaps.leave_out(row(snapshots, -0x100))
    await snapshots.make_whole(ORDERS)
    await snapshots.complete()
    seq = snapshots.bucket.journal.state.seq
    unfinished = snapshots.register.unfinished(before.position, seq)
    await snapshots.append(msgspec.structs.replace(before, seq=seq, unfinished=unfinished))
    is_visible = snapshots.bucket.journal.state.visible_snapshot(str(ORDERS)) is not None
    early = rows_left_out(snapshots)

    # A stream that breaks is read again from there: it comes across the row once more.
    snapshots.gaps.leave_out(row(snapshots, -0x100))
    await snapshots.append(snapshots.durable())

    assert is_visible
    assert early == [(0, "")]
    assert rows_left_out(snapshots) == [(0, "attempt 1 of its snapshot")]


async def test_rows_that_snapshots_left_out_do_not_count_for_the_stream_or_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.journal.gaps.LEFT_OUT_ROWS_MAX", 3)
    snapshots = await opened()
    await snapshots.make_whole(ORDERS, left_out=(1, 2, 3))

    counts = [snapshots.gaps.leave_out(row(snapshots, commit)) for commit in (1, 2, 3)]
    snapshots.register.resync(ORDERS)
    await snapshots.append()
    await snapshots.make_whole(ORDERS, left_out=(1, 2, 3))

    assert counts == [4, 5, 6]
    assert len(rows_left_out(snapshots)) == 9


async def test_too_many_rows_of_an_attempt_are_refused_before_any_is_stated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.journal.gaps.LEFT_OUT_ROWS_MAX", 3)
    snapshots = await opened()
    await snapshots.make_whole(ORDERS, {0: "t"}, rest="more", left_out=(1, 2))
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    attempt = snapshots.start(ORDERS, rest="more")
    await snapshots.append()
    rows = [snapshots.left_out(attempt, number) for number in (3, 4)]

    with pytest.raises(
        UnrepresentableRow, match=r"3 rows of public\.orders were left out"
    ) as found:
        await snapshots.register.whole(attempt, (), rows)

    assert rows[1].position in str(found.value)
    assert found.value.hint
    assert rows_left_out(snapshots) == [(1, ""), (1, "")]
    assert snapshots.gaps.pending == ()
    assert snapshots.register.is_under_way(attempt)


async def test_a_row_that_a_snapshot_left_out_is_in_no_object_of_the_stream() -> None:
    before = await opened()
    await before.make_whole(ORDERS, left_out=(7,))
    # A successor's replay may cut one object around the place of the snapshot.
    after = await successor(before)
    position = before.gaps.standing[0].position
    first, last = (make_position(1, before.bucket.commit + n, 0, 0) for n in (-0x80, 0x80))
    assert first < position < last

    after.gaps.planned(str(ORDERS), first, last)

    assert [(gap.attempt, gap.position, gap.mended) for gap in after.gaps.standing] == [
        (1, position, "")
    ]
