"""When the committer appends: a whole pipeline in virtual time, and when its bucket was asked."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from configured import make_settings
from engine.flow.chunk import Body, ChunkLimits
from engine.journal.committer import THREAD_BYTES
from engine.journal.entry import Entry, Writer, decode_entry
from engine.journal.gaps import GapRegister
from engine.journal.schedule import HURRIED_SHARE
from engine.journal.settings import Settings
from engine.model.record import RecordConfiguration
from engine.operate.metrics import Metrics
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from engine.sources.synthetic import SyntheticSource
from memory_store import MemoryStore
from simulation.virtual_loop import VirtualLoop

CONFIGURATION = RecordConfiguration(through="", tables=("*.*",))
SETTINGS = make_settings(
    codec_version=1,
    limits=ChunkLimits(1 << 30, 1 << 30, 30.0),
    queue_bytes_max=1 << 20,
    memory_bytes_max=1 << 30,
    append_interval=1.0,
)
PUT_SECONDS = 0.05


@dataclass
class TimedStore(MemoryStore):
    """A bucket that takes its time, and notes when each key was asked for."""

    times: dict[str, float] = field(default_factory=dict)

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        self.times.setdefault(key, asyncio.get_running_loop().time())
        await asyncio.sleep(PUT_SECONDS)
        return await super().create(key, body, content_type=content_type, metadata=metadata)

    def entries(self) -> list[Entry]:
        """The journal."""
        keys = sorted(key for key in self.objects if "/journal/" in key)
        return [decode_entry(self.objects[key].body, key) for key in keys]

    def plan_times(self) -> list[float]:
        """When each entry was sent that plans objects."""
        entries = {key: found.body for key, found in self.objects.items() if "/journal/" in key}
        return [
            self.times[key]
            for key, body in sorted(entries.items())
            if decode_entry(body, key).planned
        ]


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    virtual = VirtualLoop()
    yield virtual
    virtual.dispose()


def pipeline_of(
    rows: int, store: TimedStore, settings: Settings, *, tables: int = 1
) -> tuple[Pipeline, StopSignal]:
    stop = StopSignal()
    pipeline = Pipeline(
        source=SyntheticSource(row_count=rows, table_count=tables),
        store=store,
        clock=lambda: 1_800_000_000_000_000,
        settings=settings,
        configuration=CONFIGURATION,
        writer=Writer("a", "first", "test"),
        metrics=Metrics(CollectorRegistry()),
        stop=stop,
    )
    return pipeline, stop


async def streamed(rows: int, settings: Settings, *, seconds: float, tables: int = 1) -> TimedStore:
    """What the bucket saw of a pipeline that streams that many rows and then waits so long."""
    store = TimedStore()
    pipeline, stop = pipeline_of(rows, store, settings, tables=tables)
    async with asyncio.TaskGroup() as group:
        group.create_task(pipeline.run())
        await asyncio.sleep(seconds)
        stop.request("test")
    return store


@pytest.mark.parametrize("age", [30.0, 30.25, 30.5, 30.75])
def test_a_chunk_that_grows_old_is_planned_an_interval_before_its_age(
    loop: VirtualLoop, age: float
) -> None:
    limits = replace(SETTINGS.limits, age_seconds_max=age)

    store = loop.run_until_complete(streamed(1_000, replace(SETTINGS, limits=limits), seconds=60.0))

    # The rows came in the first instants. Were the waits an interval long, one of the ages would
    # fall just behind one's end.
    (planned_at,) = store.plan_times()
    assert age - 1.0 <= planned_at <= age - 0.8


@pytest.mark.parametrize("queue_bytes", [1 << 20, 1 << 26], ids=["in the source", "in the queue"])
def test_rows_that_wait_for_a_plan_wait_for_a_part_of_the_interval(
    loop: VirtualLoop, queue_bytes: int
) -> None:
    limits = replace(SETTINGS.limits, rows_max=1_000)
    settings = replace(SETTINGS, limits=limits, queue_bytes_max=queue_bytes)

    store = loop.run_until_complete(streamed(60_000, settings, seconds=10.0))

    # The last chunk is not full: it waits for its age, here until the drain.
    *times, drained_at = store.plan_times()
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(gaps) >= 10
    assert drained_at == 10.0
    assert times[-1] < 9.0, "all the others were planned long before"
    assert min(gaps) >= HURRIED_SHARE * SETTINGS.append_interval
    assert max(gaps) < SETTINGS.append_interval / 2


def test_more_than_an_entry_should_hold_is_split_over_several(
    loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.journal.planner.ENTRY_BYTES_MAX", 1_500)
    monkeypatch.setattr("engine.journal.committer.CHUNKS_A_TURN", 1)

    store = loop.run_until_complete(streamed(1_000, SETTINGS, seconds=60.0, tables=10))

    entries = store.entries()
    plans = [len(entry.planned) for entry in entries if entry.planned]
    assert sum(plans) == 10
    assert max(plans) <= 3
    assert entries[-1].release
    assert len([key for key in store.objects if key.endswith(".ndjson.gz")]) == 10


async def test_a_large_body_is_joined_outside_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a small one within: a thread's turn takes longer."""
    joined: list[tuple[int, bool]] = []
    whole = Body.whole

    def noted(body: Body) -> bytes:
        if len(body._parts) > 1:
            is_in_loop = threading.current_thread() is threading.main_thread()
            joined.append((len(body), is_in_loop))
        return whole(body)

    monkeypatch.setattr(Body, "whole", noted)
    monkeypatch.setattr("engine.flow.chunk.PART_BYTES", 64 * 1024)
    limits = replace(SETTINGS.limits, bytes_max=2 * THREAD_BYTES, age_seconds_max=2.0)
    settings = replace(SETTINGS, limits=limits, append_interval=0.1)

    await streamed(150_000, settings, seconds=3.0)

    large = [is_in_loop for size, is_in_loop in joined if size >= THREAD_BYTES]
    small = [is_in_loop for size, is_in_loop in joined if size < THREAD_BYTES]
    assert large
    assert not any(large)
    assert all(small)


def test_each_gap_is_logged_once_and_very_many_as_a_count(loop: VirtualLoop) -> None:
    """Also a second one of the same table, whose alarm stands already."""

    def state(gaps: GapRegister, number: int) -> None:
        table = "public.a" if number < 2 else f"public.a{number}"
        after, until = f"{2 * number:04d}", f"{2 * number + 1:04d}"
        gaps.state(table, after=after, until=until, reason="operations", text=f"loss {number}")

    async def stated() -> None:
        pipeline, stop = pipeline_of(1_000, TimedStore(), SETTINGS)
        async with asyncio.TaskGroup() as group:
            group.create_task(pipeline.run())
            for numbers in (range(1), range(1, 2), range(2, 102)):
                await asyncio.sleep(10.0)
                assert pipeline._streaming is not None
                for number in numbers:
                    state(pipeline._streaming.gaps, number)
            await asyncio.sleep(10.0)
            stop.request("test")

    with capture_logs() as lines:
        loop.run_until_complete(stated())

    logged = [line for line in lines if line["event"] == "gap"]
    assert [line["text"] for line in logged] == [f"loss {number}" for number in range(22)]
    assert [line["table"] for line in logged[:3]] == ["public.a", "public.a", "public.a2"]
    assert {line["reason"] for line in logged} == {"operations"}
    assert [line["count"] for line in lines if line["event"] == "more gaps"] == [80]


def test_what_was_received_is_forgotten_once_it_is_durable(
    loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.flow.ledger.RECEIVED_MIN", 1)
    settings = replace(SETTINGS, limits=replace(SETTINGS.limits, age_seconds_max=5.0))
    pipeline, stop = pipeline_of(1_000, TimedStore(), settings, tables=3)

    async def main() -> tuple[int, int]:
        async with asyncio.TaskGroup() as group:
            group.create_task(pipeline.run())
            await asyncio.sleep(2.0)
            assert pipeline._streaming is not None
            held_count = len(pipeline._streaming._ledger._received)
            await asyncio.sleep(10.0)
            left_count = len(pipeline._streaming._ledger._received)
            stop.request("test")
        return held_count, left_count

    assert loop.run_until_complete(main()) == (3, 0)
