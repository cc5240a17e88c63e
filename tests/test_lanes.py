"""Lanes at work: one lane's objects one after the other, lanes side by side, within a bound."""

import asyncio

import pytest

from engine.journal.lanes import Lanes
from engine.model.lane import Lane
from engine.model.schema import TableName

ORDERS = TableName("public", "orders")
STREAM = Lane(ORDERS)
ONE, TWO, THREE = (Lane(ORDERS, 1, number) for number in range(3))


class Gates:
    """Works that begin when they may and end when they are told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.done: list[str] = []
        self._gates: dict[str, asyncio.Event] = {}

    def submit(self, lanes: Lanes, lane: Lane, seq: int, name: str) -> None:
        gate = self._gates[name] = asyncio.Event()

        async def work() -> None:
            self.begun.append(name)
            await gate.wait()

        lanes.submit(lane, seq, work, lambda: self.done.append(name))

    async def open(self, *names: str) -> None:
        """Let these end, and everything go on as far as it can."""
        for name in names:
            self._gates[name].set()
        await settled()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_belongs_to_one_lane_is_done_in_order() -> None:
    gates = Gates()
    async with asyncio.TaskGroup() as group:
        lanes = Lanes(group, 4)
        for name in ("a", "b", "c"):
            gates.submit(lanes, STREAM, 1, name)
        await settled()
        alone = list(gates.begun)
        await gates.open("b", "c")
        still = list(gates.begun)
        await gates.open("a")

    assert alone == still == ["a"]
    assert gates.done == ["a", "b", "c"]


async def test_lanes_do_not_wait_for_each_other() -> None:
    gates = Gates()
    async with asyncio.TaskGroup() as group:
        lanes = Lanes(group, 4)
        gates.submit(lanes, STREAM, 1, "stream")
        gates.submit(lanes, ONE, 1, "one")
        gates.submit(lanes, Lane(ORDERS, 2, 0), 1, "later attempt")
        await settled()
        begun = list(gates.begun)
        await gates.open("one", "later attempt")
        done = list(gates.done)
        await gates.open("stream")

    assert begun == ["stream", "one", "later attempt"]
    assert done == ["one", "later attempt"]


async def test_no_more_lanes_than_allowed_work_at_once_and_the_first_come_goes_first() -> None:
    gates = Gates()
    async with asyncio.TaskGroup() as group:
        lanes = Lanes(group, 2)
        for lane, name in ((ONE, "one"), (TWO, "two"), (THREE, "three")):
            gates.submit(lanes, lane, 1, name)
        gates.submit(lanes, ONE, 1, "one more")
        await settled()
        first = list(gates.begun)
        await gates.open("one")
        second = list(gates.begun)
        await gates.open("two", "three", "one more")

    assert first == ["one", "two"]
    assert second == ["one", "two", "three"]
    assert set(gates.done) == {"one", "two", "three", "one more"}


async def test_what_is_pending_is_counted_with_its_oldest_entry() -> None:
    gates = Gates()
    async with asyncio.TaskGroup() as group:
        lanes = Lanes(group, 4)
        before = (lanes.oldest_pending_seq, lanes.pending_count, lanes.is_idle)
        gates.submit(lanes, ONE, 7, "seventh")
        gates.submit(lanes, ONE, 9, "ninth")
        gates.submit(lanes, TWO, 8, "eighth")
        seen = [(lanes.oldest_pending_seq, lanes.pending_count)]
        for name in ("seventh", "eighth", "ninth"):
            await gates.open(name)
            seen.append((lanes.oldest_pending_seq, lanes.pending_count))

    assert before == (None, 0, True)
    assert seen == [(7, 3), (8, 2), (9, 1), (None, 0)]
    assert lanes.is_idle


async def test_done_is_told_when_the_work_counts_as_pending_no_more() -> None:
    seen: list[bool] = []

    async def work() -> None:
        pass

    async with asyncio.TaskGroup() as group:
        lanes = Lanes(group, 1)
        lanes.submit(ONE, 3, work, lambda: seen.append(lanes.is_idle))

    assert seen == [True]


async def test_idle_waits_for_everything_also_for_what_comes_meanwhile() -> None:
    gates = Gates()
    async with asyncio.TaskGroup() as group:
        lanes = Lanes(group, 1)
        gates.submit(lanes, ONE, 1, "a")
        waiting = group.create_task(lanes.idle())
        await settled()
        gates.submit(lanes, TWO, 1, "b")
        await gates.open("a")
        is_early = waiting.done()
        await gates.open("b")
        is_done = waiting.done()

    assert (is_early, is_done) == (False, True)


async def test_an_error_of_the_work_ends_the_group_and_nothing_behind_it_begins() -> None:
    gates = Gates()

    async def fail() -> None:
        raise LookupError("the bucket is another one")

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            lanes = Lanes(group, 4)
            lanes.submit(ONE, 1, fail)
            gates.submit(lanes, ONE, 1, "behind")
            gates.submit(lanes, TWO, 1, "beside")

    with pytest.raises(ExceptionGroup) as caught:
        await run()

    assert caught.group_contains(LookupError)
    assert "behind" not in gates.begun
    assert gates.done == []


def test_a_lane_says_whose_it_is() -> None:
    assert STREAM.is_stream
    assert not ONE.is_stream
    assert str(STREAM) == "public.orders"
    assert str(TWO) == "public.orders (snapshot attempt 1, range 1)"
