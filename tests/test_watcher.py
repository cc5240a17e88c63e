"""The watcher beside a whole pipeline, in virtual time: an idle source with a busy neighbour."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from prometheus_client import CollectorRegistry

from engine.alarms import Alarms
from engine.batch import Boundary, Intake
from engine.chunk import ChunkLimits
from engine.envelope import RecordConfiguration
from engine.history import Landmark
from engine.interfaces import ChangeStream, Look
from engine.journal_entry import Writer, decode_entry
from engine.metrics import Metrics
from engine.pipeline import Pipeline
from engine.position import Lsn
from engine.schema import Decide
from engine.settings import Settings
from engine.sources.synthetic import SyntheticSource, SyntheticStream
from engine.stop import StopSignal
from memory_store import MemoryStore
from simulation.virtual_loop import VirtualLoop

CONFIGURATION = RecordConfiguration(publication="", tables=("*.*",))
SETTINGS = Settings(
    "lake",
    1,
    ChunkLimits(1 << 30, 1 << 30, 30.0),
    1 << 20,
    1 << 30,
    append_interval=1.0,
    idle_interval=10.0,
    watch_interval=10_000.0,
)
LOOK_SECONDS = 5.0
FLOOD_SECONDS = 0.05


@dataclass
class Neighbour:
    """What the source does behind its few rows: keepalives without end, and slow looks."""

    look_times: list[float] = field(default_factory=list)

    def position(self) -> Lsn:
        """Where the server's log is now."""
        return Lsn(1_000_000_000 + int(asyncio.get_running_loop().time() * 1_000_000))

    async def receive(self) -> Intake:
        await asyncio.sleep(FLOOD_SECONDS)
        return Intake((), Boundary(self.position(), 0, is_keepalive=True))

    async def look(self) -> Look:
        self.look_times.append(asyncio.get_running_loop().time())
        since = self.position()
        await asyncio.sleep(LOOK_SECONDS)
        here = self.position()
        return Look(since, here, Lsn(here + 1), {}, {}, {})


class NeighbouredSource(SyntheticSource):
    """A few rows, then a neighbour's keepalives."""

    def __init__(self, neighbour: Neighbour) -> None:
        super().__init__(row_count=1_000)
        self._neighbour = neighbour

    async def flush_lsn(self) -> Lsn:
        return self._neighbour.position()

    def stream(
        self,
        start: Lsn,
        configuration: RecordConfiguration,
        decide: Decide,
        *,
        landmark: Landmark | None = None,
        single_rows: bool = False,
    ) -> AbstractAsyncContextManager[ChangeStream]:
        rows = super().stream(
            start, configuration, decide, landmark=landmark, single_rows=single_rows
        )

        @asynccontextmanager
        async def entered() -> AsyncIterator[ChangeStream]:
            async with rows as stream:
                assert isinstance(stream, SyntheticStream)
                stream.look = self._neighbour.look  # type: ignore[method-assign, assignment]
                own, is_first = stream.receive, [True]

                async def receive() -> Intake:
                    if is_first:
                        is_first.pop()
                        return await own()
                    return await self._neighbour.receive()

                stream.receive = receive  # type: ignore[method-assign]
                yield stream

        return entered()


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    virtual = VirtualLoop()
    yield virtual
    virtual.dispose()


def pipeline_of(
    neighbour: Neighbour, store: MemoryStore, stop: StopSignal, settings: Settings
) -> Pipeline:
    metrics, clock = Metrics(CollectorRegistry()), lambda: 1_800_000_000_000_000
    return Pipeline(
        source=NeighbouredSource(neighbour),
        store=store,
        clock=clock,
        settings=settings,
        configuration=CONFIGURATION,
        writer=Writer("a", "first", "test"),
        metrics=metrics,
        stop=stop,
        alarms=Alarms(clock, metrics),
    )


async def streamed(neighbour: Neighbour, settings: Settings, *, seconds: float) -> list[str]:
    """Every `durable` that the journal stated before the drain."""
    store, stop = MemoryStore(), StopSignal()
    pipeline = pipeline_of(neighbour, store, stop, settings)
    async with asyncio.TaskGroup() as group:
        group.create_task(pipeline.run())
        await asyncio.sleep(seconds)
        stop.request("test")
    keys = sorted(key for key in store.objects if "/journal/" in key)
    entries = [decode_entry(store.objects[key].body, key) for key in keys]
    return [e.durable.lsn for e in entries if e.durable is not None and not e.release]


def test_an_idle_source_with_a_busy_neighbour_advances_with_few_looks(loop: VirtualLoop) -> None:
    neighbour = Neighbour()

    durable = loop.run_until_complete(streamed(neighbour, SETTINGS, seconds=600.0))

    # One in an idle interval and a look's time, about.
    assert len(set(durable)) >= 25
    assert durable == sorted(durable)
    assert 25 <= len(neighbour.look_times) <= 62


def test_rows_that_wait_for_s3_make_no_looks_back_to_back(loop: VirtualLoop) -> None:
    neighbour = Neighbour()
    limits = replace(SETTINGS.limits, age_seconds_max=100_000.0)

    durable = loop.run_until_complete(
        streamed(neighbour, replace(SETTINGS, limits=limits), seconds=600.0)
    )

    assert len(set(durable)) <= 2
    assert 10 <= len(neighbour.look_times) <= 62
