"""Gaps that a snapshot fills: which one does, when another one is wanted, and how often."""

import asyncio
from collections.abc import Iterator

import pytest

from engine.journal import snapshots as register_module
from engine.journal.entry import Gap
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


async def test_a_row_that_is_left_out_is_not_mended_by_a_snapshot() -> None:
    snapshots = await opened()
    snapshots.register.arrive((ORDERS,))
    commit = snapshots.bucket.commit
    snapshots.gaps.state(
        str(ORDERS),
        after=place(commit),
        until=place(commit),
        reason="unrepresentable",
        text="text that is no UTF-8",
        position=place(commit),
    )

    await visible(snapshots)
    snapshots.register.arrive((ORDERS,))

    assert (mended(snapshots), snapshots.register.pending) == ([""], ())


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
