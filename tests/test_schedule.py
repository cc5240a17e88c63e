"""When the committer appends next."""

import asyncio

import pytest

from engine.journal.schedule import HURRIED_SHARE, AppendSchedule

INTERVAL = 0.2
SOON = 0.4 * INTERVAL


async def seconds_until_due(
    schedule: AppendSchedule, *, since_append: float = 0.0, earliest_in: float | None = None
) -> float:
    """How long `due` waits, where the newest append was so long ago."""
    now = asyncio.get_running_loop().time()
    earliest = now + earliest_in if earliest_in is not None else None
    await schedule.due(now - since_append, earliest)
    return asyncio.get_running_loop().time() - now


async def test_one_append_in_an_interval_however_often_it_is_woken() -> None:
    schedule = AppendSchedule(INTERVAL)
    schedule.wake()

    assert await seconds_until_due(schedule) >= INTERVAL * 0.95
    assert not schedule.is_hurried


async def test_rows_that_wait_for_a_plan_shorten_the_wait() -> None:
    schedule = AppendSchedule(INTERVAL)
    schedule.wake()
    schedule.hurry()

    assert HURRIED_SHARE * INTERVAL * 0.9 <= await seconds_until_due(schedule) < SOON
    assert schedule.is_hurried


async def test_a_hurry_counts_once() -> None:
    schedule = AppendSchedule(INTERVAL)
    schedule.wake()
    schedule.hurry()
    await seconds_until_due(schedule)
    schedule.wake()

    assert await seconds_until_due(schedule) >= INTERVAL * 0.95


async def test_an_interval_after_the_last_append_a_wake_is_enough() -> None:
    schedule = AppendSchedule(INTERVAL)
    asyncio.get_running_loop().call_later(0.01, schedule.wake)

    assert await seconds_until_due(schedule, since_append=2 * INTERVAL) < SOON


async def test_the_first_chunk_that_grows_old_ends_the_wait_an_interval_before_its_age() -> None:
    schedule = AppendSchedule(INTERVAL)
    waited = await seconds_until_due(
        schedule, since_append=2 * INTERVAL, earliest_in=INTERVAL + 0.05
    )

    assert 0.04 <= waited < 0.05 + SOON


@pytest.mark.parametrize("is_asked_before", [True, False])
async def test_a_drain_waits_for_nothing(*, is_asked_before: bool) -> None:
    schedule = AppendSchedule(10)
    if is_asked_before:
        schedule.drain()
    else:
        asyncio.get_running_loop().call_later(0.01, schedule.drain)

    async with asyncio.timeout(5):
        await seconds_until_due(schedule, since_append=5)
    assert schedule.is_draining
