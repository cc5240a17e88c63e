"""What a running pipeline tells of itself while the source or the bucket does not answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from configured import make_settings
from engine.flow.chunk import ChunkLimits
from engine.journal.entry import Writer
from engine.journal.journal import Journal
from engine.model.batch import Intake
from engine.model.errors import SourceUnavailable
from engine.model.interfaces import ChangeStream
from engine.model.record import RecordConfiguration
from engine.operate.metrics import Metrics
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from log_points import durable, identity
from memory_store import MemoryStore
from still_source import StillSource, StillStream

IDENTITY = identity()
CONFIGURATION = RecordConfiguration(through="tailrace", tables=("public.*",))
SETTINGS = make_settings(
    codec_version=1,
    limits=ChunkLimits(1 << 20, 1_000, 30.0),
    queue_bytes_max=1 << 20,
    memory_bytes_max=1 << 20,
)


class QuietStream(StillStream):
    """Says nothing until it breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = asyncio.Event()
        self.is_read = asyncio.Event()

    async def receive(self) -> Intake:
        self.is_read.set()
        await self.broken.wait()
        raise SourceUnavailable("the server closed the connection", hint="see its log")


class QuietSource(StillSource):
    """Gives `first`, and whoever connects again waits for `second`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = QuietStream()
        self.second = QuietStream()
        self.is_asked_again = asyncio.Event()
        self.may_connect_again = asyncio.Event()

    @property
    def connection_count(self) -> int:
        return len(self.starts)

    @asynccontextmanager
    async def _entered(self) -> AsyncIterator[ChangeStream]:
        if not self.first.is_read.is_set():
            yield self.first
            return
        self.is_asked_again.set()
        await self.may_connect_again.wait()
        yield self.second


class Rig:
    """A pipeline whose predecessor left a journal that is durable up to 0/64 at 1970-01-02."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.store = MemoryStore()
        self.source = QuietSource()
        self.stop = StopSignal()
        self.pipeline = Pipeline(
            source=self.source,
            store=self.store,
            clock=lambda: 2 * 86_400_000_000,
            settings=SETTINGS,
            configuration=CONFIGURATION,
            writer=Writer("b", "second", "test"),
            metrics=self.metrics,
            stop=self.stop,
        )

    async def leave_journal(self) -> None:
        journal = Journal(self.store, "lake", Writer("a", "first", "test"), self.metrics)
        first = durable(0x64, seq=-1)
        await journal.open(IDENTITY, CONFIGURATION, first)


@pytest.mark.asyncio
async def test_the_durable_time_is_known_from_the_start_so_that_its_alarm_can_fire() -> None:
    rig = Rig()
    await rig.leave_journal()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(rig.pipeline.run())
        await rig.source.first.is_read.wait()
        told = rig.registry.get_sample_value("tailrace_durable_timestamp_seconds")
        rig.stop.request("test")

    assert told == 86_400.0


@pytest.mark.asyncio
async def test_a_lost_connection_is_told_until_the_next_one_holds() -> None:
    rig = Rig()
    await rig.leave_journal()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(rig.pipeline.run())
        await rig.source.first.is_read.wait()
        rig.source.first.broken.set()
        await rig.source.is_asked_again.wait()
        lost = rig.pipeline.status()
        rig.source.may_connect_again.set()
        await rig.source.second.is_read.wait()
        again = rig.pipeline.status()
        rig.stop.request("test")

    assert (lost.phase, lost.last_error) == ("reconnecting", "the server closed the connection")
    assert lost.last_error_hint == "see its log"
    assert (again.phase, again.last_error) == ("streaming", "")


@pytest.mark.asyncio
async def test_connections_that_break_at_once_are_not_made_anew_without_a_pause() -> None:
    # A proxy without a server behind it accepts every connection and closes it.
    rig = Rig()
    await rig.leave_journal()
    rig.source.may_connect_again.set()
    rig.source.first.broken.set()
    rig.source.second.broken.set()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(rig.pipeline.run())
        await rig.source.is_asked_again.wait()
        connected_before = rig.source.connection_count
        for _ in range(1_000):
            await asyncio.sleep(0)
        connected = rig.source.connection_count - connected_before
        rig.stop.request("test")

    assert connected <= 1
