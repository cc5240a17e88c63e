"""When the committer appends next, in virtual time."""

import asyncio
from collections.abc import Iterator

import pytest

from engine.journal.schedule import HURRIED_SHARE, AppendSchedule
from simulation.virtual_loop import VirtualLoop

INTERVAL = 0.2


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    virtual = VirtualLoop()
    yield virtual
    virtual.dispose()


def seconds_until_due(
    loop: VirtualLoop,
    schedule: AppendSchedule,
    *,
    since_append: float = 0.0,
    earliest_in: float | None = None,
) -> float:
    """How long `due` waits, where the newest append was so long ago."""

    async def waited() -> float:
        now = asyncio.get_running_loop().time()
        earliest = now + earliest_in if earliest_in is not None else None
        await schedule.due(now - since_append, earliest)
        return asyncio.get_running_loop().time() - now

    return loop.run_until_complete(waited())


def test_one_append_in_an_interval_however_often_it_is_woken(loop: VirtualLoop) -> None:
    schedule = AppendSchedule(INTERVAL)
    schedule.wake()

    assert seconds_until_due(loop, schedule) == pytest.approx(INTERVAL)
    assert not schedule.is_hurried


def test_rows_that_wait_for_a_plan_shorten_the_wait(loop: VirtualLoop) -> None:
    schedule = AppendSchedule(INTERVAL)
    schedule.wake()
    schedule.hurry()

    assert seconds_until_due(loop, schedule) == pytest.approx(HURRIED_SHARE * INTERVAL)
    assert schedule.is_hurried


def test_a_hurry_counts_once(loop: VirtualLoop) -> None:
    schedule = AppendSchedule(INTERVAL)
    schedule.wake()
    schedule.hurry()
    seconds_until_due(loop, schedule)
    schedule.wake()

    assert seconds_until_due(loop, schedule) == pytest.approx(INTERVAL)


def test_an_interval_after_the_last_append_a_wake_is_enough(loop: VirtualLoop) -> None:
    schedule = AppendSchedule(INTERVAL)
    loop.call_later(0.01, schedule.wake)

    waited = seconds_until_due(loop, schedule, since_append=2 * INTERVAL)

    assert waited == pytest.approx(0.01)


def test_the_first_chunk_that_grows_old_ends_the_wait_an_interval_before_its_age(
    loop: VirtualLoop,
) -> None:
    schedule = AppendSchedule(INTERVAL)

    waited = seconds_until_due(
        loop, schedule, since_append=2 * INTERVAL, earliest_in=INTERVAL + 0.05
    )

    assert waited == pytest.approx(0.05)


@pytest.mark.parametrize(("is_asked_before", "seconds"), [(True, 0.0), (False, 0.01)])
def test_a_drain_waits_for_nothing(
    loop: VirtualLoop, *, is_asked_before: bool, seconds: float
) -> None:
    schedule = AppendSchedule(10)
    if is_asked_before:
        schedule.drain()
    else:
        loop.call_later(0.01, schedule.drain)

    assert seconds_until_due(loop, schedule, since_append=5) == pytest.approx(seconds)
    assert schedule.is_draining
