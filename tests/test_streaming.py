"""Streaming by itself, in virtual time: reading, waiting for room, reconnecting, the drain."""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from prometheus_client import CollectorRegistry

from configured import make_settings
from engine.flow.chunk import ChunkLimits
from engine.journal.entry import Planned, Writer, decode_entry
from engine.journal.settings import Settings
from engine.model.batch import Batch, Intake, Operations
from engine.model.errors import (
    DestinationUnavailable,
    SourceUnavailable,
    StopLimit,
    UnrepresentableRow,
    first_cause,
)
from engine.model.history import Landmark
from engine.model.interfaces import ChangeStream
from engine.model.log_point import LogPoint
from engine.model.position import LogPosition, Position, make_position
from engine.model.record import RecordConfiguration
from engine.model.schema import Column, Decide, Relation, TableName
from engine.operate.alarms import Alarms
from engine.operate.metrics import Metrics
from engine.operate.status import Phase, Status
from engine.pipeline.streaming import Streaming
from engine.pipeline.wiring import World, begin, streaming_parts
from engine.sources.postgres.lsn import lsn_of
from log_points import boundary, durable, identity, place, point
from memory_store import MemoryStore
from simulation.virtual_loop import VirtualLoop
from small_bucket import decompressed
from still_source import StillSource, StillStream

E = 100
LOG_END = 200
ORDERS, LINES = TableName("public", "orders"), TableName("public", "lines")
CONFIGURATION = RecordConfiguration(through="tailrace", tables=("public.*",))
SETTINGS = make_settings(
    codec_version=1,
    limits=ChunkLimits(1 << 30, 1 << 30, 10.0),
    queue_bytes_max=1 << 20,
    memory_bytes_max=1 << 20,
    append_interval=1.0,
    drain_seconds=25.0,
)
BEGIN_US = 86_400_000_000
"""When what the journal begins with was committed."""

LOST = SourceUnavailable("the server closed the connection", hint="see its log")


@dataclass(frozen=True)
class Rows:
    """Rows of one transaction; `ends`: its end is among what the socket gives."""

    commit: int
    count: int = 1
    table: TableName = ORDERS
    ends: bool = True

    def intake(self, decide: Decide) -> Intake:
        """As a source makes it: a row that nobody wants is skipped."""
        batches = [batch for n in range(self.count) for batch in self._row(n, decide)]
        return Intake(tuple(batches), boundary(self.commit + 1, BEGIN_US) if self.ends else None)

    def position(self, n: int) -> Position:
        return make_position(1, self.commit, self.commit - 8, n)

    def _row(self, n: int, decide: Decide) -> Iterator[Batch]:
        at = self.position(n)
        version = decide(relation(self.table), at)
        if version is not None:
            # Compressed it takes half of its size: the budget counts what is held.
            noise = hashlib.sha256(at.encode()).hexdigest()
            line = json.dumps({"at": at, "noise": noise}).encode() + b"\n"
            yield Batch(
                self.table, version.number, line, 1, Operations(c=1), at, at, BEGIN_US, BEGIN_US
            )


IDLE = Intake((), boundary(LOG_END, BEGIN_US, is_keepalive=True))
"""A keepalive: the server's log ends there, and all of it was sent."""

Step = Rows | Intake | Exception


def relation(table: TableName) -> Relation:
    return Relation(table, str(table), (Column("id", "integer", "integer", key=True),), ("id",))


class ScriptedStream(StillStream):
    """Gives one step after the other, then nothing more."""

    def __init__(self, *steps: Step) -> None:
        super().__init__(confirmed=E, end=LOG_END)
        self.steps = deque(steps)
        self.decide: Decide

    async def receive(self) -> Intake:
        if not self.steps:
            await asyncio.Event().wait()
        match self.steps.popleft():
            case Rows() as rows:
                return rows.intake(self.decide)
            case Intake() as intake:
                return intake
            case error:
                raise error


class ScriptedSource(StillSource):
    """Gives one stream after the other."""

    def __init__(self, *streams: ScriptedStream) -> None:
        super().__init__()
        self._streams = deque(streams)

    def distance(self, begin: LogPoint, end: LogPoint) -> int:
        return max(0, lsn_of(end) - lsn_of(begin))

    def stream(
        self,
        start: LogPoint | None,
        configuration: RecordConfiguration,
        decide: Decide,
        *,
        landmark: Landmark | None = None,
        single_rows: bool = False,
    ) -> AbstractAsyncContextManager[ChangeStream]:
        self.starts.append(start)
        stream = self._streams.popleft()
        stream.decide = decide
        return self._given(stream)

    @asynccontextmanager
    async def _given(self, stream: ScriptedStream) -> AsyncIterator[ChangeStream]:
        yield stream
        self.left_count += 1


@dataclass
class SlowStore(MemoryStore):
    """A bucket that takes no table's object before `open_at`; `error`: with that instead."""

    open_at: float = 0.0
    error: DestinationUnavailable | None = None

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        wait = self.open_at - asyncio.get_running_loop().time()
        if ".ndjson" in key and wait > 0:
            if self.error is not None:
                raise self.error
            await asyncio.sleep(wait)
        return await super().create(key, body, content_type=content_type, metadata=metadata)


@dataclass
class Rig:
    """Streaming over a journal that is durable up to E."""

    loop: VirtualLoop
    store: SlowStore = field(default_factory=SlowStore)
    settings: Settings = SETTINGS
    caught_up: LogPosition | None = None
    source: ScriptedSource = field(init=False)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    phases: list[Phase] = field(default_factory=list)
    looks: list[tuple[float, Callable[[Status], None]]] = field(default_factory=list)

    def run(self, *streams: ScriptedStream, stop_at: float | None = None) -> None:
        """Stream until the drain is done; the stop is asked for at `stop_at`."""
        self.source = ScriptedSource(*streams)
        self.loop.run_until_complete(self._run(stop_at))

    def seen_at(self, seconds: float) -> list[Status]:
        """Will hold the status of that moment."""
        seen: list[Status] = []
        self.looks.append((seconds, seen.append))
        return seen

    async def _run(self, stop_at: float | None) -> None:
        metrics = Metrics(self.registry)
        world = World(
            source=self.source,
            store=self.store,
            clock=lambda: BEGIN_US + int(self.loop.time() * 1e6),
            settings=self.settings,
            configuration=CONFIGURATION,
            writer=Writer("a", "a", "test"),
            metrics=metrics,
            alarms=Alarms(lambda: BEGIN_US, metrics),
        )
        life = begin(world, self.phases.append)
        await life.journal.load()
        await life.journal.open(identity(), CONFIGURATION, durable(E, seq=-1))

        async def interruptible(work: Coroutine[None, None, None]) -> bool:
            try:
                async with asyncio.timeout(stop_at):
                    await work
            except TimeoutError:
                return False
            return True

        try:
            async with asyncio.TaskGroup() as group, AsyncExitStack() as connection:
                parts = streaming_parts(life, "shop", group)
                streaming = Streaming(life, parts, group, caught_up=self.caught_up)
                base = Status(phase="streaming", since_us=0)

                def tell(look: Callable[[Status], None]) -> None:
                    look(streaming.status(base))

                for seconds, look in self.looks:
                    self.loop.call_later(seconds, tell, look)
                await streaming.run(connection, None, interruptible)
        except BaseExceptionGroup as error:
            raise first_cause(error) from error

    # --- what is in the bucket

    def planned(self) -> list[Planned]:
        keys = sorted(key for key in self.store.objects if "/journal/" in key)
        entries = [decode_entry(self.store.objects[key].body, key) for key in keys]
        return [planned for entry in entries for planned in entry.planned]

    def published(self) -> list[str]:
        """The rows' positions, in the order of the plans."""
        objects = self.store.objects
        return [
            json.loads(line)["at"]
            for planned in self.planned()
            if planned.key in objects
            for line in decompressed(objects[planned.key].body, planned.key).splitlines()
        ]

    def durable_up_to(self) -> LogPosition:
        keys = sorted(key for key in self.store.objects if "/journal/" in key)
        entries = [decode_entry(self.store.objects[key].body, key) for key in keys]
        return max(entry.durable.position for entry in entries if entry.durable is not None)


@pytest.fixture
def rig() -> Iterator[Rig]:
    loop = VirtualLoop()
    yield Rig(loop)
    loop.dispose()


def positions(*transactions: Rows) -> list[str]:
    return [rows.position(n) for rows in transactions for n in range(rows.count)]


# --- room


def test_a_stop_while_reading_waits_for_room_publishes_what_was_read(rig: Rig) -> None:
    """The budget is full until the bucket takes the first object, after the stop."""
    read, unread = Rows(110, count=20), Rows(120)
    stream = ScriptedStream(read, unread)
    rig.settings = replace(SETTINGS, memory_bytes_max=200)
    rig.store.open_at = 8.0
    pressed = rig.seen_at(4.0)

    rig.run(stream, stop_at=5.0)

    assert [status.backpressure for status in pressed] == [True]
    assert list(stream.steps) == [unread], "nothing is read while there is no room"
    assert rig.published() == positions(read)
    assert rig.durable_up_to() == place(111)
    waited = rig.registry.get_sample_value("tailrace_backpressure_seconds_total")
    assert waited == pytest.approx(5.0, abs=0.1), "the wait that was cut short counts"
    assert rig.loop.time() < 10.0


def test_reading_goes_on_where_there_is_room_again(rig: Rig) -> None:
    first, second = Rows(110, count=20), Rows(120)
    rig.settings = replace(SETTINGS, memory_bytes_max=200)
    rig.store.open_at = 3.0

    rig.run(ScriptedStream(first, second), stop_at=5.0)

    assert rig.published() == positions(first, second)


# --- a lost connection


def test_a_lost_connection_forgets_nothing_and_reads_nothing_twice(rig: Rig) -> None:
    """It breaks inside the second transaction, of which one row of three was received."""
    first, second = Rows(110, count=2), Rows(120, count=3)
    broken = ScriptedStream(first, replace(second, count=1, ends=False), LOST)
    again = ScriptedStream(first, second)
    lost = rig.seen_at(0.2)
    streaming = rig.seen_at(2.0)

    rig.run(broken, again, stop_at=5.0)

    assert rig.source.starts == 2 * [point(E, BEGIN_US)], "nothing was durable yet"
    assert rig.published() == positions(first, second)
    assert rig.phases == ["streaming", "reconnecting", "streaming", "draining"]
    assert [(status.rows_total, status.last_error) for status in lost] == [(3, str(LOST))]
    assert [(status.rows_total, status.last_error) for status in streaming] == [(5, "")]


def test_rows_whose_transaction_never_ended_are_published_and_not_durable(rig: Rig) -> None:
    first, second = Rows(110), Rows(120, ends=False)

    rig.run(ScriptedStream(first, second), stop_at=5.0)

    assert rig.published() == positions(first, second)
    assert rig.durable_up_to() == place(111)


def test_connections_are_made_at_least_half_a_second_apart(rig: Rig) -> None:
    streams = [ScriptedStream(LOST) for _ in range(3)]

    rig.run(*streams, ScriptedStream(Rows(110)), stop_at=1.4)

    assert len(rig.source.starts) == 3
    assert rig.published() == []


# --- a row that no record can hold


def test_what_was_read_before_an_unrepresentable_row_is_published_before_it_ends(
    rig: Rig,
) -> None:
    refused = UnrepresentableRow("no record can hold it", reason="text that is no UTF-8")
    before, behind = Rows(110, count=2), Rows(130)
    stream = ScriptedStream(before, refused, behind)

    with pytest.raises(UnrepresentableRow) as caught:
        rig.run(stream)

    assert caught.value is refused
    assert rig.published() == positions(before)
    assert rig.durable_up_to() == place(111)
    assert rig.phases == ["streaming", "draining"]
    assert list(stream.steps) == [behind]


# --- the drain


@pytest.mark.parametrize("error", [None, DestinationUnavailable("put: 503 SlowDown")])
def test_a_drain_past_its_limit_says_how_much_is_missing_and_why(
    rig: Rig, error: DestinationUnavailable | None
) -> None:
    rig.settings = replace(SETTINGS, drain_seconds=4.0)
    rig.store.open_at, rig.store.error = 1_000.0, error
    stream = ScriptedStream(Rows(110), Rows(120, table=LINES))

    with pytest.raises(StopLimit, match=r"drain_seconds = 4\.0") as caught:
        rig.run(stream, stop_at=1.0)

    assert "planned objects not known to be visible: 2" in str(caught.value)
    assert ("503 SlowDown" in str(caught.value)) == (error is not None)
    assert "the next engine publishes the rest" in caught.value.hint
    assert rig.loop.time() == pytest.approx(5.0, abs=0.1)
    assert len(rig.planned()) == 2
    assert rig.durable_up_to() == place(E)


def test_it_ends_by_itself_when_it_has_caught_up_and_then_its_drain_has_no_limit(
    rig: Rig,
) -> None:
    rig.settings = replace(SETTINGS, drain_seconds=1.0)
    rig.store.open_at = 20.0
    rig.caught_up = place(121)
    first, second, behind = Rows(110), Rows(120), Rows(130)
    stream = ScriptedStream(first, second, behind)

    rig.run(stream)

    assert rig.published() == positions(first, second)
    assert rig.durable_up_to() == place(121)
    assert list(stream.steps) == [behind]
    assert rig.phases == ["streaming", "draining"]


def test_a_keepalive_is_enough_to_have_caught_up(rig: Rig) -> None:
    rig.caught_up = place(LOG_END)

    rig.run(ScriptedStream(Rows(110), IDLE))

    assert rig.published() == positions(Rows(110))
    assert rig.durable_up_to() == place(LOG_END)


# --- lag


def lags(status: Status) -> tuple[tuple[float | None, int | None], ...]:
    return (status.lag_seconds, status.lag), (status.durable_lag_seconds, status.durable_lag)


def test_what_is_read_and_not_durable_is_a_lag_of_its_own_until_it_is_durable(rig: Rig) -> None:
    waiting = rig.seen_at(5.0)
    idle = rig.seen_at(15.0)

    rig.run(ScriptedStream(Rows(110), IDLE), stop_at=16.0)

    [(unread, durable)] = map(lags, waiting)
    assert unread == (0.0, 0), "the keepalive says that nothing is left to read"
    assert durable[0] == pytest.approx(5.0)
    assert durable[1] == LOG_END - E, "one row waits for its chunk's age, and all behind it"
    assert [lags(status) for status in idle] == [((0.0, 0), (0.0, 0))]
    assert [status.read_resume for status in idle] == [point(LOG_END).resume]


def test_a_log_that_is_not_read_yet_is_a_lag(rig: Rig) -> None:
    """The first look at how the source stands comes after a second."""
    behind = rig.seen_at(15.0)

    rig.run(ScriptedStream(Rows(110)), stop_at=16.0)

    [(unread, durable)] = map(lags, behind)
    assert rig.durable_up_to() == place(111)
    assert unread[1] == LOG_END - 111
    assert unread[0] is not None
    assert unread[0] > 0
    assert durable == (0.0, 0)


def test_a_commit_time_that_an_origin_made_up_is_no_lag_of_years(rig: Rig) -> None:
    behind = rig.seen_at(15.0)

    rig.run(ScriptedStream(Intake((), boundary(111, -1000 * BEGIN_US))), stop_at=16.0)

    [status] = behind
    assert status.lag == LOG_END - 111
    assert status.lag_seconds is not None
    assert status.lag_seconds < 3600


def test_without_a_connection_nothing_says_that_nothing_waits(rig: Rig) -> None:
    broken = ScriptedStream(IDLE, LOST)
    lost = rig.seen_at(0.2)

    rig.run(broken, ScriptedStream(), stop_at=2.0)

    [(unread, durable)] = map(lags, lost)
    assert unread[0] == pytest.approx(0.2)
    assert unread[1] is None
    assert durable == (0.0, 0)
