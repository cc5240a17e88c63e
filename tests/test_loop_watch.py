"""The loop's lateness: nothing of a loop that turns, all of a stall, and an end."""

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from engine.operate.loop_watch import INTERVAL, LoopWatch
from engine.operate.metrics import Metrics
from simulation.virtual_loop import Process, VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    virtual = VirtualLoop()
    yield virtual
    virtual.dispose()


def test_a_loop_that_turns_is_not_late(loop: VirtualLoop) -> None:
    told: list[float] = []

    async def live() -> None:
        with LoopWatch(told.append):
            await asyncio.sleep(10 * INTERVAL + INTERVAL / 2)
        await asyncio.sleep(10 * INTERVAL)

    loop.run_until_complete(live())

    assert told == [0.0] * 10, "and nothing is watched after the block"


def test_a_stall_is_told_with_its_length(loop: VirtualLoop) -> None:
    told: list[float] = []
    process = Process("engine")

    async def live() -> None:
        with LoopWatch(told.append):
            await asyncio.sleep(4 * INTERVAL)

    async def stall() -> None:
        await asyncio.sleep(1.5 * INTERVAL)
        loop.freeze(process)
        await asyncio.sleep(20 * INTERVAL)
        loop.resume(process)

    async def both() -> None:
        life = loop.start(process, live())
        await stall()
        await life

    loop.run_until_complete(both())

    # The second timer was due half an interval after the stall began.
    assert max(told) == pytest.approx(19.5 * INTERVAL)


def test_lateness_is_a_histogram_with_a_bucket_at_what_a_turn_may_take() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    metrics.loop_lag(0.015)
    metrics.loop_lag(0.3)

    def within(seconds: str) -> float | None:
        return registry.get_sample_value("tailrace_loop_lag_seconds_bucket", {"le": seconds})

    assert (within("0.01"), within("0.02"), within("0.5")) == (0, 1, 2)
