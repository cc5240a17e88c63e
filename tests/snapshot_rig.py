"""The real coordinator, crew and register of a small bucket, with a source of the test's own.

A range is a word, as in `small_snapshot`. Time is virtual: a test of it takes no minutes.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from engine.journal.bucket_rules import BucketRules
from engine.journal.entry import Snapshot
from engine.journal.snapshots import Attempt
from engine.model.batch import Batch
from engine.model.bucket_rule import BucketRule
from engine.model.errors import SnapshotStale, SourceError, SourceUnavailable, TailraceError
from engine.model.log_point import LogPoint
from engine.model.schema import TableName
from engine.model.snapshot_source import HeldTable, LeaveOut, RangeTask, ReadProgress
from engine.operate.alarms import Alarms
from engine.snapshot.coordinator import SNAPSHOT_FAILING, Coordinator
from engine.snapshot.crew import Crew
from engine.snapshot.progress import Progress
from engine.snapshot.settings import SnapshotSettings
from engine.snapshot.task import SnapshotTask, decode_task
from engine.snapshot.work import stage_range
from log_points import point
from simulation.virtual_loop import VirtualLoop
from small_bucket import DATABASE, ODD, ORDERS, PREFIX, SmallBucket
from small_snapshot import BYTES_MAX, Snapshots, relation

BUCKET = "lake"
_POLL_SECONDS = 0.05
Deed = Callable[[SnapshotTask], Awaitable[bytes | None]]
"""What a worker does before it stages its range; bytes are its result instead."""


def virtually(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on a loop of virtual time."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        loop = VirtualLoop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(test(**fixtures))
        finally:
            asyncio.set_event_loop(None)
            loop.dispose()

    return run


@dataclass
class Held:
    """A `HeldSnapshot`."""

    name: str
    point: LogPoint
    tables: Mapping[TableName, HeldTable]
    left_out: Mapping[TableName, SourceError]
    rig: "Rig"
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    is_open: bool = True

    async def watch(self) -> None:
        await self.lost.wait()
        raise SnapshotStale("both keepers were lost")

    async def compare(self, table: TableName) -> None:
        self.rig.events.append(f"compare {table.table}")
        await self.rig.comparing(table)

    async def progress(self) -> Mapping[str, ReadProgress]:
        if self.rig.is_blind:
            raise SourceUnavailable("no answer")
        return {
            task.rows.name: ReadProgress(self.rig.seen[task.rows.name], 0)
            for task in self.rig.running
        }


class LoopExecutor(Executor):
    """Workers that are tasks of the loop. Like a process pool it breaks as a whole."""

    def __init__(self, rig: "Rig") -> None:
        self._rig = rig
        self.futures: dict[Future[bytes], asyncio.Task[None]] = {}

    def submit(self, work: Any, /, content: bytes, **_: Any) -> Future[Any]:  # type: ignore[override]
        assert work is _not_called
        future: Future[bytes] = Future()
        future.set_running_or_notify_cancel()
        task = asyncio.get_running_loop().create_task(self._rig.work(self, future, content))
        self.futures[future] = task
        return future

    def break_down(self) -> None:
        """A process died: all of them are gone."""
        futures, self.futures = self.futures, {}
        for future, task in futures.items():
            task.cancel()
            if not future.done():
                future.set_exception(BrokenProcessPool("a process died"))


def _not_called(_: bytes) -> bytes:
    raise AssertionError


@dataclass
class Rig:
    """Everything of one engine that takes snapshots; `deeds` are what workers do at first."""

    bucket: SmallBucket
    snapshots: Snapshots
    worker_count: int = 2
    rows_per_second: float = 0.0
    tables_max: int = 8
    ranges: dict[TableName, Sequence[str]] = field(default_factory=dict)
    # By where it begins: a segment's ranges, and where the next one does.
    segments: dict[TableName, dict[str, tuple[Sequence[str], str]]] = field(default_factory=dict)
    # Where the source cannot go on from.
    lost_rests: set[str] = field(default_factory=set)
    left_out: dict[TableName, SourceError] = field(default_factory=dict)
    # So many tables have place under one snapshot.
    place: int = 100
    refusals: list[SourceError] = field(default_factory=list)
    deeds: list[Deed] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    helds: list[Held] = field(default_factory=list)
    held_whole: list[bool] = field(default_factory=list)
    tasks: list[SnapshotTask] = field(default_factory=list)
    running: list[SnapshotTask] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    executors: list[LoopExecutor] = field(default_factory=list)
    comparing: Callable[[TableName], Awaitable[None]] = field(default=lambda _: asyncio.sleep(0))
    holding: Callable[[], Awaitable[None]] = field(default=lambda: asyncio.sleep(0))
    was_done: list[bool] = field(default_factory=list)
    rules: tuple[BucketRule, ...] = ()
    rules_error: TailraceError | None = None
    rules_read: int = 0
    is_blind: bool = False
    is_appending: bool = True
    rows: Counter[TableName] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.alarms = Alarms(lambda: 0)
        self.progress = Progress(self)
        self.crew = Crew(self, _not_called)
        self.bucket_rules = BucketRules(self.read_rules, PREFIX)
        settings = SnapshotSettings(
            bucket=BUCKET,
            prefix=PREFIX,
            codec_version=1,
            bytes_max=BYTES_MAX,
            tables_max=self.tables_max,
            rows_per_second=self.rows_per_second,
        )
        self.coordinator = Coordinator(
            source=self,
            store=self.bucket.store,
            crew=self.crew,
            settings=settings,
            configuration=self.bucket.configuration,
            writer_id=self.bucket.journal.writer.id,
            alarms=self.alarms,
            progress=self.progress,
            rules=self.bucket_rules,
        )

    # --- the metrics

    def snapshot_rows(self, table: TableName, count: int) -> None:
        self.rows[table] += count

    def snapshot_rows_estimate(self, count: int) -> None:
        pass

    # --- the bucket's own rules

    async def read_rules(self) -> tuple[BucketRule, ...]:
        self.rules_read += 1
        if self.rules_error is not None:
            raise self.rules_error
        return self.rules

    # --- the source

    def adopt(self, generation: int, facts: Mapping[str, str], branch: str) -> None:
        """It has one generation."""
        assert generation == 1

    @asynccontextmanager
    async def hold(
        self,
        tables: Sequence[TableName],
        rests: Mapping[TableName, str] | None = None,
        undivided: Collection[TableName] = (),
    ) -> AsyncIterator[Held]:
        await self.holding()
        self.held_whole.append(set(tables) <= set(undivided))
        tables = tables[: self.place]
        if self.refusals:
            raise self.refusals.pop(0)
        self.bucket.commit += 0x100
        held = Held(
            f"held-{len(self.helds)}",
            point(self.bucket.commit + 1, self.bucket.time_us()),
            {
                table: self._held_table(
                    table, (rests or {}).get(table, ""), is_divided=table not in undivided
                )
                for table in tables
                if table not in self.left_out
            },
            {table: error for table, error in self.left_out.items() if table in tables},
            self,
        )
        self.helds.append(held)
        try:
            yield held
        finally:
            held.is_open = False
            await asyncio.sleep(0.01)

    def _held_table(self, table: TableName, begin: str, *, is_divided: bool) -> HeldTable:
        ranges, rest = self.ranges[table], ""
        begin = "" if begin in self.lost_rests else begin
        if table in self.segments and is_divided:
            ranges, rest = self.segments[table][begin]
        words = tuple(map(str.encode, ranges))
        return HeldTable(relation(table), words, 100, 1_000, begin=begin, rest=rest)

    @asynccontextmanager
    async def read(
        self, task: RangeTask, leave_out: LeaveOut
    ) -> AsyncIterator[AsyncIterator[Batch]]:
        table = task.version.relation.table
        at = LogPoint(task.point, "", task.commit_us)
        attempt = Attempt(table, task.attempt, at, task.version, "")
        yield self.snapshots.batches(attempt, task.range_number, task.own.decode())

    # --- the workers

    def start(self) -> tuple[Executor, int]:
        self.executors.append(LoopExecutor(self))
        return self.executors[-1], self.worker_count

    def end(self, executor: Executor) -> None:
        assert isinstance(executor, LoopExecutor)
        executor.break_down()

    async def work(self, executor: LoopExecutor, future: Future[bytes], content: bytes) -> None:
        """One worker's task."""
        task = decode_task(content)
        self.tasks.append(task)
        self.running.append(task)
        self.events.append(f"task {task.staging.table.table} {task.staging.range_number}")
        result: bytes | None = None
        try:
            await asyncio.sleep(0.1)
            if self.deeds:
                result = await self.deeds.pop(0)(task)
            if result is None:
                store = self.bucket.store
                result = await stage_range(content, store=store, bucket=BUCKET, reader=self)
        except BrokenProcessPool:
            executor.break_down()
            return
        finally:
            self.running.remove(task)
        del executor.futures[future]
        future.set_result(result)

    # --- the engine

    async def commit(self) -> None:
        """What the committer and the completer do, until cancelled."""
        while True:
            await asyncio.sleep(0.05)
            if not self.is_appending or not self.snapshots.register.pending:
                continue
            stated = self.snapshots.register.pending
            await self.snapshots.append()
            self.events += [f"{one.state} {one.table_name.table}" for one in stated]
            if any(one.state == "whole" for one in stated):
                self.was_done.append(self.is_done)
                await self.snapshots.complete()
                self.was_done.append(self.is_done)
                self.bucket.commit += 0x100
                await self.snapshots.append(self.snapshots.durable())
                self.was_done.append(self.is_done)

    @asynccontextmanager
    async def taking(self, *tables: TableName) -> AsyncIterator[None]:
        """Take snapshots of `tables`, and of whatever is asked for, while the block runs."""
        for table in tables:
            self.snapshots.register.capture(table)
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(self.coordinator.run(self.snapshots.register, DATABASE)),
                group.create_task(self.commit()),
            ]
            yield
            for task in beside:
                task.cancel()

    async def until(self, is_so: Callable[[], bool], seconds: float = 3_600) -> None:
        """Wait until it is so. Raises TimeoutError."""
        for _ in range(int(seconds / _POLL_SECONDS)):
            if is_so():
                return
            await asyncio.sleep(_POLL_SECONDS)
        raise TimeoutError

    async def done(self, seconds: float = 3_600) -> None:
        """Wait until everything that was asked for is visible and durable."""
        await self.until(lambda: self.is_done, seconds)

    @property
    def is_done(self) -> bool:
        register = self.snapshots.register
        durable = self.bucket.journal.state.durable_position
        return not register.pending and register.is_done(durable)

    # --- what came of it

    def stated(self, table: TableName = ORDERS) -> Snapshot:
        """The journal's newest statement about the table's snapshot."""
        return self.bucket.journal.state.snapshots[str(table)].snapshot

    def is_whole(self, table: TableName) -> bool:
        """Whether the journal names the table's objects."""
        known = self.bucket.journal.state.snapshots.get(str(table))
        return known is not None and known.snapshot.state == "whole"

    def given(self, table: TableName = ORDERS) -> list[int]:
        """The ranges of the table that were given to workers, in order."""
        return [t.staging.range_number for t in self.tasks if t.staging.table == table]

    def visible_rows(self) -> int:
        """Objects of snapshots in the bucket, one a range here."""
        return sum(1 for stored in self.bucket.store.objects.values() if "nonce" in stored.metadata)

    def is_alarmed(self, table: TableName = ORDERS) -> bool:
        return self.alarms.is_set(SNAPSHOT_FAILING, str(table))


async def rig(**options: Any) -> Rig:
    """A writer of an empty bucket, and nothing that is wanted yet."""
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    ranges: dict[TableName, Sequence[str]] = {ORDERS: ("t", "rrr", "rr"), ODD: ("tr",)}
    return Rig(bucket, Snapshots(bucket), ranges=ranges, **options)


async def for_ever(_: SnapshotTask) -> bytes | None:
    """Stand still."""
    await asyncio.Event().wait()
    return None


async def die(_: SnapshotTask) -> bytes | None:
    """Be killed, a while after others that began at the same time have ended."""
    await asyncio.sleep(0.5)
    raise BrokenProcessPool


async def well(_: SnapshotTask) -> bytes | None:
    """Nothing special."""
    return None


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
