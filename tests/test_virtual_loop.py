"""The loop's promises: time, order, freezing, killing, deadlock."""

import asyncio
from collections.abc import Iterator

import pytest

from simulation.virtual_loop import DeadlockError, Process, VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    virtual = VirtualLoop()
    yield virtual
    virtual.dispose()


def test_hours_of_sleep_take_no_real_time(loop: VirtualLoop) -> None:
    async def sleep() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert loop.run_until_complete(sleep()) == 3600


def test_timers_run_in_the_order_of_their_times(loop: VirtualLoop) -> None:
    seen: list[int] = []

    async def at(seconds: int) -> None:
        await asyncio.sleep(seconds)
        seen.append(seconds)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for seconds in (3, 1, 2):
                group.create_task(at(seconds))

    loop.run_until_complete(main())

    assert seen == [1, 2, 3]


def test_a_timeout_passes_in_virtual_time(loop: VirtualLoop) -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        return loop.time()

    assert loop.run_until_complete(main()) == 10


def test_waiting_for_what_never_comes_is_a_deadlock(loop: VirtualLoop) -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError):
        loop.run_until_complete(main())


def ticking(loop: VirtualLoop, ticks: list[float]) -> Process:
    async def tick() -> None:
        try:
            while True:
                await asyncio.sleep(1)
                ticks.append(loop.time())
        finally:
            ticks.append(-1)

    process = Process("ticking")
    task = loop.start(process, tick())
    assert not task.done()
    return process


def test_a_frozen_process_goes_on_late_and_misses_nothing(loop: VirtualLoop) -> None:
    ticks: list[float] = []
    process = ticking(loop, ticks)
    loop.later(1.5, loop.freeze, process)
    loop.later(9.5, loop.resume, process)

    loop.run_until_complete(asyncio.sleep(11))

    assert ticks == [1, 9.5, 10.5]


def test_a_killed_process_does_nothing_more_not_even_its_cleanup(loop: VirtualLoop) -> None:
    ticks: list[float] = []
    process = ticking(loop, ticks)
    loop.later(2.5, loop.kill, process)

    loop.run_until_complete(asyncio.sleep(11))

    assert ticks == [1, 2]


def test_children_of_a_process_die_with_it(loop: VirtualLoop) -> None:
    seen: list[str] = []

    async def child() -> None:
        await asyncio.sleep(2)
        seen.append("child")

    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())

    process = Process("parent")
    task = loop.start(process, parent())
    loop.later(1, loop.kill, process)

    loop.run_until_complete(asyncio.sleep(5))

    assert not task.done()
    assert seen == []


def test_work_that_leaves_the_loop_takes_no_time(loop: VirtualLoop) -> None:
    async def main() -> tuple[int, float]:
        return await asyncio.to_thread(sum, (1, 2, 3)), loop.time()

    assert loop.run_until_complete(main()) == (6, 0)


def test_what_work_outside_the_loop_raises_reaches_its_caller(loop: VirtualLoop) -> None:
    async def main() -> None:
        await asyncio.to_thread(int, "x")

    with pytest.raises(ValueError, match="invalid literal"):
        loop.run_until_complete(main())
