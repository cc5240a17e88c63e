"""The watcher in virtual time: alone, and beside a whole pipeline with a busy neighbour."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from configured import make_settings
from engine.flow.chunk import ChunkLimits
from engine.flow.ledger import RECEIVED_MIN, Ledger
from engine.journal.causes import GAP
from engine.journal.entry import (
    Frontier,
    Gap,
    JournalState,
    Snapshot,
    StatedSnapshot,
    Writer,
    decode_entry,
)
from engine.journal.gaps import GapRegister
from engine.journal.object_lists import ObjectLists
from engine.journal.retry import Patience
from engine.journal.settings import Settings
from engine.journal.snapshots import SnapshotRegister
from engine.journal.watcher import Watcher
from engine.model.batch import Boundary, Intake
from engine.model.errors import SourceError, SourceUnavailable
from engine.model.history import Landmark
from engine.model.interfaces import REWRITTEN, ChangeStream, Look, TableLook
from engine.model.log_point import LogPoint
from engine.model.position import NOWHERE, make_position
from engine.model.record import RecordConfiguration
from engine.model.schema import Decide, TableName
from engine.operate.alarms import Alarms
from engine.operate.metrics import Metrics
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from engine.sources.synthetic import SyntheticSource, SyntheticStream, end_of, transactions_before
from log_points import boundary, durable, identity, place
from memory_store import MemoryStore
from simulation.virtual_loop import VirtualLoop

if TYPE_CHECKING:
    from engine.flow.reception import Reception

CONFIGURATION = RecordConfiguration(through="", tables=("*.*",))
SETTINGS = make_settings(
    codec_version=1,
    limits=ChunkLimits(1 << 30, 1 << 30, 30.0),
    queue_bytes_max=1 << 20,
    memory_bytes_max=1 << 30,
    append_interval=1.0,
    idle_interval=10.0,
    watch_interval=10_000.0,
)
LOOK_SECONDS = 5.0
FLOOD_SECONDS = 0.05
ORDERS = TableName("public", "orders")


@dataclass
class Neighbour:
    """What the source does behind its few rows: keepalives without end, and slow looks."""

    look_times: list[float] = field(default_factory=list)

    def here(self) -> LogPoint:
        """Where the server's log is now."""
        return end_of(1_000 + int(asyncio.get_running_loop().time() * 1_000))

    async def receive(self) -> Intake:
        await asyncio.sleep(FLOOD_SECONDS)
        return Intake((), Boundary(self.here(), is_keepalive=True))

    async def look(self) -> Look:
        self.look_times.append(asyncio.get_running_loop().time())
        since = self.here().position
        await asyncio.sleep(LOOK_SECONDS)
        here = self.here()
        behind = end_of(transactions_before(here) + 1)
        return Look(since, here.position, behind.position, {}, {}, {})


class NeighbouredSource(SyntheticSource):
    """A few rows, then a neighbour's keepalives."""

    def __init__(self, neighbour: Neighbour) -> None:
        super().__init__(row_count=1_000)
        self._neighbour = neighbour

    async def end(self) -> LogPoint:
        return self._neighbour.here()

    def stream(
        self,
        start: LogPoint | None,
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
    return [e.durable.position for e in entries if e.durable is not None and not e.release]


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


def test_until_caught_up_ends_after_a_look_or_two(loop: VirtualLoop) -> None:
    """Whatever the neighbour writes meanwhile."""
    neighbour = Neighbour()
    settings = replace(SETTINGS, is_until_caught_up=True)
    pipeline = pipeline_of(neighbour, MemoryStore(), StopSignal(), settings)

    async def seconds() -> float:
        async with asyncio.timeout(600.0):
            await pipeline.run()
        return asyncio.get_running_loop().time()

    assert loop.run_until_complete(seconds()) < 4 * LOOK_SECONDS
    assert len(neighbour.look_times) <= 3


@dataclass
class Answers:
    """A stream of which only the looks matter: what they answer in turn, then none."""

    looks: list[Look | SourceError | None]
    asked: list[float] = field(default_factory=list)

    async def look(self) -> Look | None:
        self.asked.append(asyncio.get_running_loop().time())
        if not self.looks:
            await asyncio.sleep(inf)
        answer = self.looks.pop(0)
        if isinstance(answer, SourceError):
            raise answer
        return answer

    def ask_keepalive(self) -> None:
        pass


class Rig:
    """A watcher alone, which looks every ten seconds."""

    def __init__(
        self,
        looks: Sequence[Look | SourceError | None],
        frontiers: dict[str, Frontier] | None = None,
        attempts: dict[str, int] | None = None,
        snapshots: Sequence[StatedSnapshot] = (),
        gaps: Sequence[Gap] = (),
        *,
        exclude: tuple[str, ...] = (),
    ) -> None:
        """Snapshots are taken where `snapshots` says that there are some."""
        state = JournalState(
            seq=0,
            frontiers=frontiers or {},
            attempts=attempts or {},
            snapshots={stated.snapshot.table: stated for stated in snapshots},
            gaps={gap.number: gap for gap in gaps},
            source=identity(),
            durable=durable(0x10, seq=0),
        )
        self.answers = Answers(list(looks))
        self.ledger = Ledger(
            {TableName.parse(table): known.last for table, known in state.frontiers.items()}
        )
        self.gaps = GapRegister(state, lambda: 7)
        self.alarms = Alarms(lambda: 7)
        reception = cast("Reception", SimpleNamespace(has_identity=lambda *_: True))
        configuration = msgspec.structs.replace(
            CONFIGURATION, snapshot="initial" if snapshots else "never", exclude=exclude
        )
        self.snapshots = SnapshotRegister(
            state=state,
            gaps=self.gaps,
            reception=reception,
            configuration=configuration,
            clock=lambda: 7,
            lists=ObjectLists(MemoryStore(), "", Patience(lambda _: None), lambda: "0a"),
            events=self.alarms.events,
            wake=lambda: None,
        )
        self.watcher = Watcher(
            state=state,
            gaps=self.gaps,
            snapshots=self.snapshots,
            ledger=self.ledger,
            reception=reception,
            configuration=configuration,
            alarms=self.alarms,
            metrics=Metrics(CollectorRegistry()),
            interval=10.0,
            wake=lambda: None,
        )

    async def run(self, seconds: float) -> None:
        self.watcher.connected(cast("ChangeStream", self.answers))
        try:
            async with asyncio.timeout(seconds):
                await self.watcher.run()
        except TimeoutError:
            return

    def read(self, lsn: int) -> None:
        self.ledger.read(Intake((), boundary(lsn, is_keepalive=True)))
        self.watcher.moved()


def test_a_table_that_goes_is_a_gap_though_the_ledger_has_forgotten_its_rows(
    loop: VirtualLoop,
) -> None:
    async def gaps() -> None:
        last = make_position(1, 5, 4, 0)
        tables = [f"public.t{number}" for number in range(RECEIVED_MIN)]
        frontiers = {table: Frontier(last, "") for table in [*tables, str(ORDERS)]}
        there = Look(
            place(20),
            place(20),
            place(21),
            {},
            {ORDERS: TableLook("7", {}, {}, frozenset(), {})},
            {},
        )
        gone = Look(place(30), place(30), place(31), {}, {}, {"table-dropped": "it went"})
        rig = Rig([there, gone], frontiers)
        rig.read(30)
        rig.ledger.forget(place(10))
        assert rig.ledger.received(ORDERS) == NOWHERE

        await rig.run(15.0)

        assert [(gap.table, gap.reason) for gap in rig.gaps.standing] == [
            (str(ORDERS), "table-dropped")
        ]

    loop.run_until_complete(gaps())


@pytest.mark.parametrize(("attempts", "reasons"), [(1, ["table-dropped"]), (0, [])])
def test_a_table_whose_rows_are_all_of_a_snapshot_is_a_gap_when_it_goes(
    loop: VirtualLoop, attempts: int, reasons: list[str]
) -> None:
    async def gaps() -> None:
        tables = {ORDERS: TableLook("7", {}, {}, frozenset(), {})}
        there = Look(place(20), place(20), place(21), {}, tables, {})
        gone = Look(place(30), place(30), place(31), {}, {}, {"table-dropped": "it went"})
        rig = Rig([there, gone], attempts={str(ORDERS): attempts})
        rig.read(30)

        await rig.run(15.0)

        assert [gap.reason for gap in rig.gaps.standing] == reasons

    loop.run_until_complete(gaps())


def test_where_there_is_nothing_to_look_at_a_gap_of_before_is_filled(loop: VirtualLoop) -> None:
    """The stream showed it to an engine that is gone, and shows it to nobody any more."""

    async def wanted() -> None:
        whole = Snapshot(str(ORDERS), "whole", 1, place(8), 1)
        gap = Gap(1, str(ORDERS), place(8), place(9), "renamed-in", "it came")
        rig = Rig([None], snapshots=[StatedSnapshot(whole, 1, 0, is_visible=True)], gaps=[gap])

        await rig.run(1.0)

        assert rig.snapshots.pending == (Snapshot(str(ORDERS), "wanted"),)

    loop.run_until_complete(wanted())


def test_where_there_is_nothing_to_look_at_a_gap_waits_for_the_snapshot_under_way(
    loop: VirtualLoop,
) -> None:
    async def wanted() -> None:
        whole = Snapshot(str(ORDERS), "whole", 1, place(8), 1)
        gap = Gap(1, str(ORDERS), place(8), place(9), "renamed-in", "it came")
        rig = Rig([None], snapshots=[StatedSnapshot(whole, 1, 0)], gaps=[gap])

        await rig.run(1.0)
        before = rig.snapshots.pending
        rig.snapshots.visible(whole)

        assert (before, rig.snapshots.pending) == ((), (Snapshot(str(ORDERS), "wanted"),))

    loop.run_until_complete(wanted())


def rooted(at: int, file: str) -> Look:
    """A look at a table with one partition, which is stored in that file."""
    marks = {f"{REWRITTEN}:1": file}
    tables = {ORDERS: TableLook("7", {}, marks, frozenset(), {})}
    return Look(place(at), place(at), place(at + 1), {}, tables, {REWRITTEN: "rewritten"})


def test_a_gap_is_told_in_plain_words(loop: VirtualLoop) -> None:
    """Its reason, when it was noticed, and what to do; its positions are for machines."""

    async def gaps() -> None:
        rig = Rig([])
        for digits in ("AB", "CD"):
            rig.gaps.state(
                str(ORDERS),
                after=f"0001.000000000000000{digits[0]}",
                until=f"0001.000000000000000{digits[1]}",
                reason="publication-altered",
                text="the publication was altered",
            )

        await rig.run(1.0)

        (alarm,) = rig.alarms.standing()
        assert (alarm.code, alarm.subject) == (GAP, str(ORDERS))
        assert alarm.text == (
            "changes of this table may be missing from the bucket (publication-altered): the"
            " publication was altered; noticed at 1970-01-01 00:00:00 UTC; the table has 2 gaps"
        )
        assert "0001." not in alarm.text + alarm.hint
        assert "Compare" in alarm.hint

    loop.run_until_complete(gaps())


def test_no_alarm_stands_for_a_table_that_is_not_captured_any_more(loop: VirtualLoop) -> None:
    """The journal keeps its gap, and `verify` lists it."""
    gap = Gap(1, str(ORDERS), "0001.A", "0001.B", "table-dropped", "the table was dropped")

    async def gaps() -> None:
        rig = Rig([], gaps=[gap], exclude=(str(ORDERS),))
        await rig.run(1.0)

        assert (rig.gaps.standing, rig.alarms.standing()) == ((gap,), ())

    loop.run_until_complete(gaps())


def test_a_truncation_that_is_read_before_a_look_is_judged_explains_the_next_look(
    loop: VirtualLoop,
) -> None:
    rig = Rig([rooted(0x100, "a"), rooted(0x200, "a"), rooted(0x400, "b"), rooted(0x500, "c")])
    rig.read(0x100)

    async def truncate() -> None:
        await asyncio.sleep(15.0)
        # The second look waits for the stream. What it reads first committed after that look.
        rig.watcher.truncated(ORDERS, place(0x300))
        rig.read(0x450)
        await asyncio.sleep(15.0)
        assert (rig.watcher.judged_count, rig.gaps.standing) == (3, ())
        rig.read(0x500)

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(rig.run(60.0))
            group.create_task(truncate())

    loop.run_until_complete(both())

    # The truncation explains nothing that happened after a look which shows it.
    assert [(gap.table, gap.reason) for gap in rig.gaps.standing] == [(str(ORDERS), REWRITTEN)]


def test_looks_that_fail_again_and_again_are_an_alarm_until_one_is_answered(
    loop: VirtualLoop,
) -> None:
    error = SourceUnavailable("no session is left", hint="END A SESSION")
    rig = Rig([error] * 9 + [rooted(0x100, "a")])
    rig.read(0x100)

    loop.run_until_complete(rig.run(6.0))
    (alarm,) = rig.alarms.standing()
    assert (alarm.code, alarm.hint) == ("catalog-not-looked-at", "END A SESSION")
    assert "no session is left" in alarm.text

    loop.run_until_complete(rig.run(3600.0))
    assert (rig.watcher.judged_count, rig.alarms.count) == (1, 0)
    waits = [later - earlier for earlier, later in pairwise(rig.answers.asked[3:9])]
    assert waits == sorted(waits)
    assert waits[-1] > 20.0


def test_one_look_that_fails_is_no_alarm(loop: VirtualLoop) -> None:
    rig = Rig([SourceUnavailable("once"), rooted(0x100, "a")])
    rig.read(0x100)

    loop.run_until_complete(rig.run(5.0))

    assert (rig.watcher.judged_count, rig.alarms.count) == (1, 0)
    assert len(rig.answers.asked) == 2


def test_truncations_are_looked_at_soon_and_many_of_them_together(loop: VirtualLoop) -> None:
    rig = Rig([rooted(0x100, "a")] * 100)
    rig.read(0x100)

    async def truncate() -> None:
        await asyncio.sleep(2.0)
        for _ in range(50):
            rig.watcher.truncated(ORDERS, place(0x80))
            await asyncio.sleep(0.1)

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(rig.run(9.0))
            group.create_task(truncate())

    loop.run_until_complete(both())

    first, second, *more = rig.answers.asked
    assert first == 0.0
    assert 3.0 <= second <= 3.1
    assert 3 <= len(more) <= 4
