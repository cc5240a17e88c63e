"""Snapshots of simulated tables: the engine's own coordinator and crew beside each engine's stream.

Strategy: a held snapshot is a place of the server's log and the rows before it. It may be lost with
the sessions that hold it, and somebody may rewrite a table behind it: then rows are missing, which
only the comparison tells. A worker is a process of its own: it runs the engine's `stage_range`,
outlives the engine, freezes and comes back late, or dies. Workers are a pool, which breaks as a
whole, or a cluster, whose workers nobody can end.

Invariant: a worker touches the bucket through a store of its own, and tells nobody but its
executor. The coordinator lives and dies with its engine, and its crew hears of nothing while the
engine is frozen or dead.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from engine.journal.bucket_rules import BucketRules
from engine.journal.snapshots import Attempt, SnapshotRegister
from engine.model.batch import Batch, Operations
from engine.model.bucket_rule import BucketRule
from engine.model.errors import (
    SnapshotStale,
    SourceError,
    SourceRefused,
    SourceUnavailable,
    TailraceError,
)
from engine.model.log_point import LogPoint
from engine.model.position import snapshot_position
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.snapshot_source import HeldTable, LeaveOut, RangeTask, ReadProgress
from engine.operate.alarms import Alarms
from engine.snapshot.coordinator import Coordinator
from engine.snapshot.crew import Crew, WorkerLost
from engine.snapshot.progress import Progress, RowObserver
from engine.snapshot.settings import SnapshotSettings
from engine.snapshot.task import SnapshotTask, decode_result, decode_task
from engine.snapshot.work import stage_range
from simulation.source import TABLES, Row, Server, SimulatedSource, TableRead, record_writer
from simulation.store import Bucket, SimulatedStore
from simulation.virtual_loop import Process, VirtualLoop

DATABASE = "shop"
_BUCKET = "lake"

LOCKS_WAITED_FOR = 0.03
"""How often somebody waits for the lock of a table when a worker begins a range of it."""


class Surroundings(Protocol):
    """What a coordinator and its workers need from their world."""

    loop: VirtualLoop
    bucket: Bucket
    server: Server
    counts: Counter[str]
    is_calm: bool

    def now_us(self) -> int: ...

    def trace(self, text: str) -> None: ...

    def refused(self, engine: str, table: TableName) -> None: ...


# --- what is held


@dataclass(eq=False, slots=True)
class HeldRange:
    """The rows of one range, and whether they can still be read."""

    held: "Held"
    read: TableRead
    rows: list[Row]


class Held:
    """A snapshot of some tables: a `HeldSnapshot`."""

    def __init__(
        self, world: Surroundings, name: str, point: LogPoint, source: SimulatedSource, seed: float
    ) -> None:
        self.name = name
        self.point = point
        self.tables: dict[TableName, HeldTable] = {}
        self.left_out: dict[TableName, SourceError] = {}
        # Tables that somebody rewrote: what is read of them from then on is nothing.
        self.rewritten: set[TableName] = set()
        self.reading: dict[str, int] = {}
        self.is_over = False
        self._world = world
        self._source = source
        self._timeline = world.server.timeline
        self._rnd = random.Random(seed)
        self._cutting = random.Random(f"segments {seed}")
        self._moving = random.Random(f"moved keys {seed}")
        self._lost = asyncio.Event()

    def add(self, table: TableName, read: TableRead, begin: str, *, is_divided: bool) -> None:
        """Hold a table too, from a key on, its rows spread over ranges: mostly range 0 has none."""
        rnd = self._rnd
        rest = ""
        if is_divided:
            read, rest = self._segment(read, begin)
        if (begin or rest) and self._moving.random() < 0.3:
            moment = self._moving.choice((0.0, 0.1, 0.5, 2.0)) * self._moving.random()
            self._world.loop.later(moment, self._world.server.move, table)
        first = rnd.choice((0, 0, 1))
        ranges: list[list[Row]] = [[] for _ in range(rnd.choice((2, 2, 3)))]
        for row in read.rows:
            ranges[rnd.randint(first, len(ranges) - 1)].append(row)
        words: list[bytes] = []
        for number, rows in enumerate(ranges):
            if not number or rows or rnd.random() < 0.2:
                words.append(f"{self.name}/{table.table}/{number}".encode())
                self._world.server.ranges[words[-1]] = HeldRange(self, read, rows)
        self.tables[table] = HeldTable(
            read.relation, tuple(words), len(read.rows), -1, begin=begin, rest=rest
        )

    def _segment(self, read: TableRead, begin: str) -> tuple[TableRead, str]:
        """The rows of a segment that begins there, and where the next one does."""
        rows = [row for row in read.rows if not begin or row[0] >= int(begin)]
        end = ""
        if len(rows) > 1 and self._cutting.random() < 0.4:
            key, _ = self._cutting.choice(rows[1:])
            rows, end = [row for row in rows if row[0] < key], str(key)
        return replace(read, rows=tuple(rows)), end

    def is_of(self, source: SimulatedSource) -> bool:
        """Whether the engine of this source holds it."""
        return self._source is source

    def draw_fate(self) -> None:
        """What happens to it, where there is trouble."""
        rnd, loop = self._rnd, self._world.loop
        fate, moment = rnd.random(), rnd.choice((0.05, 0.5, 2)) * rnd.random()
        if self._world.is_calm or not self.tables:
            return
        if fate < 0.05:
            loop.later(moment, self.lose)
        elif fate < 0.12:
            loop.later(moment, self.rewrite, rnd.choice(list(self.tables)))

    def lose(self) -> None:
        """The sessions that hold it are gone."""
        if not self.is_over and not self._lost.is_set():
            self._world.counts["held snapshots lost"] += 1
            self._lost.set()

    def rewrite(self, table: TableName) -> None:
        """Somebody rewrites the table, or drops it: nothing is found in it from now on."""
        self.rewritten.add(table)

    def refuse_lost(self) -> None:
        """Raise SnapshotStale where nothing can be read under it."""
        if self._lost.is_set() or self.is_over or self._world.server.timeline != self._timeline:
            raise SnapshotStale("the snapshot is gone")

    async def watch(self) -> None:
        await self._lost.wait()
        raise SnapshotStale("the snapshot was lost")

    async def compare(self, table: TableName) -> None:
        await asyncio.sleep(self._rnd.uniform(0.001, 0.3))
        if not self._world.is_calm and self._rnd.random() < 0.1:
            self._world.counts["comparisons without an answer"] += 1
            raise SourceUnavailable("no answer")
        self.refuse_lost()
        if table in self.rewritten:
            self._world.counts["tables rewritten behind a snapshot"] += 1
            raise SnapshotStale("somebody rewrote the table")

    async def progress(self) -> Mapping[str, ReadProgress]:
        if not self._world.is_calm and self._rnd.random() < 0.1:
            raise SourceUnavailable("no answer")
        return {name: ReadProgress(rows, 0) for name, rows in self.reading.items()}


class SimulatedSnapshots:
    """One engine's view of the server's snapshots: a `SnapshotSource`."""

    def __init__(
        self, world: Surroundings, name: str, source: SimulatedSource, seed: float
    ) -> None:
        self._world = world
        self._name = name
        self._source = source
        self._rnd = random.Random(seed)
        self._count = 0
        self._branch = ""

    def adopt(self, generation: int, facts: Mapping[str, str], branch: str) -> None:
        """See SnapshotSource. The generation and the server are what they are."""
        self._branch = branch

    @asynccontextmanager
    async def hold(
        self,
        tables: Sequence[TableName],
        rests: Mapping[TableName, str] | None = None,
        undivided: Collection[TableName] = (),
    ) -> AsyncIterator[Held]:
        server, rnd = self._world.server, self._rnd
        await asyncio.sleep(rnd.uniform(0.001, 0.2))
        self._refuse()
        address = server.consistent_address()
        self._count += 1
        name = f"{self._name}/held-{self._count}"
        point = server.point(address, self._world.now_us())
        held = Held(self._world, name, point, self._source, rnd.random())
        for table in tables:
            error = self._left_out(table, address)
            if error is None:
                begin = (rests or {}).get(table, "")
                read = server.read_before(table, address)
                held.add(table, read, begin, is_divided=table not in undivided)
            else:
                held.left_out[table] = error
        await asyncio.sleep(rnd.uniform(0.001, 0.2))
        self._refuse()
        self._world.counts["snapshots held"] += 1
        beside = sum(isinstance(other, Held) and other.is_of(self._source) for other in server.held)
        assert beside < 2
        self._world.counts["snapshots held side by side"] += beside
        held.draw_fate()
        server.held.append(held)
        try:
            yield held
        finally:
            held.is_over = True
            server.held.remove(held)

    def _refuse(self) -> None:
        if self._world.server.is_down or str(self._world.server.timeline) != self._branch:
            raise SourceUnavailable("no answer")

    def _left_out(self, table: TableName, address: int) -> SourceError | None:
        if not self._world.server.is_there(table, address):
            self._world.counts["held without a table that was dropped"] += 1
            return SnapshotStale("there is no such table")
        chance = self._rnd.random()
        if self._world.is_calm or chance >= 0.08:
            return None
        self._world.counts["tables left out"] += 1
        if chance < 0.02:
            self._world.refused(self._name, table)
            return SourceRefused("no right")
        return SnapshotStale("somebody changes the table")


# --- workers


class SimulatedReader:
    """One worker's view of what is held: a `RangeReader`.

    Now and then somebody waits for the table's lock: then the range is stale, and nothing else is.
    """

    def __init__(
        self, world: Surroundings, rnd: random.Random, locks: random.Random, codec: int
    ) -> None:
        self._world = world
        self._server = world.server
        self._rnd = rnd
        self._locks = locks
        self._codec = codec

    @asynccontextmanager
    async def read(
        self, task: RangeTask, leave_out: LeaveOut
    ) -> AsyncIterator[AsyncIterator[Batch]]:
        found = self._server.ranges[task.own]
        assert isinstance(found, HeldRange)
        found.held.refuse_lost()
        if self._locks.random() < LOCKS_WAITED_FOR and not self._world.is_calm:
            self._world.counts["ranges stale"] += 1
            raise SnapshotStale("somebody waits for the table's lock")
        try:
            yield self._batches(task, found)
        finally:
            found.held.reading.pop(task.name, None)

    async def _batches(self, task: RangeTask, found: HeldRange) -> AsyncIterator[Batch]:
        rows: list[Row | None] = [*found.rows]
        if found.read.relation.table in found.held.rewritten:
            rows = []
        if task.begins_attempt:
            rows.insert(0, None)
        begin = 0
        while begin < len(rows):
            await asyncio.sleep(self._rnd.uniform(0.001, 0.05))
            found.held.refuse_lost()
            end = begin + self._rnd.choice((1, 2, 100))
            yield self._batch(task, found.read, begin, rows[begin:end])
            begin = end
            found.held.reading[task.name] = begin

    def _batch(self, task: RangeTask, read: TableRead, begin: int, rows: list[Row | None]) -> Batch:
        records, version = record_writer(task.configuration), task.version.number
        positions = [
            snapshot_position(task.point, task.attempt, task.range_number, begin + index)
            for index in range(len(rows))
        ]
        lines = [
            records.snapshot_line(read, position, row, version, self._codec)
            for position, row in zip(positions, rows, strict=True)
        ]
        marker_count = rows.count(None)
        return Batch(
            table=read.relation.table,
            version=version,
            lines=b"".join(lines),
            row_count=len(rows),
            operations=Operations(r=len(rows) - marker_count, t=marker_count),
            first=positions[0],
            last=positions[-1],
            first_commit_us=0,
            last_commit_us=0,
        )


class Worker:
    """Does one task in a process of its own. What it would do after its death is not done."""

    def __init__(
        self, world: Surroundings, name: str, content: bytes, task: SnapshotTask, seed: float
    ) -> None:
        self.task = task
        self.process = Process(name)
        self._world = world
        self._content = content
        self._rnd = random.Random(seed)
        # Apart from the worker's other chances.
        self._locks = random.Random(f"locks {seed}")
        self._main_task: asyncio.Task[None] | None = None

    def start(self, executor: "SimulatedExecutor") -> None:
        """Begin. `executor` is told of the result, or of the worker's death."""
        loop, rnd = self._world.loop, self._rnd
        if not self._world.is_calm:
            fate, moment = rnd.random(), rnd.choice((0.01, 0.1, 0.5)) * rnd.random()
            if fate < 0.06:
                loop.later(moment, loop.freeze, self.process)
                loop.later(rnd.choice((5, 15, 40)), loop.resume, self.process)
            elif fate < 0.09:
                loop.later(moment, self._die, executor)
        self._main_task = loop.start(self.process, self._work(executor))

    def _die(self, executor: "SimulatedExecutor") -> None:
        self._world.loop.kill(self.process)
        executor.died(self)

    async def _work(self, executor: "SimulatedExecutor") -> None:
        rnd, world = self._rnd, self._world
        result = await stage_range(
            self._content,
            store=SimulatedStore(world.bucket, self.process),
            bucket=_BUCKET,
            reader=SimulatedReader(world, rnd, self._locks, self.task.staging.codec),
            make_nonce=lambda: f"{rnd.getrandbits(64):x}",
            part_bytes=rnd.choice((1, 1 << 30)),
        )
        world.loop.later(rnd.uniform(0.001, 0.1), executor.answer, self, result)


class SimulatedExecutor(Executor):
    """A pool or a cluster of workers. It tells its engine by callbacks of the engine's process."""

    def __init__(self, workers: "SimulatedWorkers") -> None:
        self._workers = workers
        self._futures: dict[Worker, Future[bytes]] = {}

    def submit(self, work: Any, /, content: bytes, **_: Any) -> Future[Any]:  # type: ignore[override]
        assert work is None
        worker, future = self._workers.worker(content), Future[bytes]()
        self._workers.given(worker.task, [other.task for other in self._futures])
        future.set_running_or_notify_cancel()
        self._futures[worker] = future
        worker.start(self)
        return future

    def answer(self, worker: Worker, result: bytes) -> None:
        """A worker has done its task."""
        self._workers.answered(worker.task, result)
        future = self._futures.pop(worker, None)
        if future is not None:
            self._workers.tell(future.set_result, result)

    def died(self, worker: Worker) -> None:
        """A worker is dead: a pool is of no use then, a cluster has others."""
        if worker not in self._futures:
            return
        self._workers.count_lost()
        if self._workers.is_pool:
            self._workers.tell(self.end)
        else:
            self._workers.tell(self._futures.pop(worker).set_exception, RuntimeError("it died"))

    def end(self) -> None:
        """Nobody hears of these workers any more. Those of a pool die."""
        futures, self._futures = self._futures, {}
        for worker, future in futures.items():
            if self._workers.is_pool:
                self._workers.loop.kill(worker.process)
            future.set_exception(BrokenProcessPool("a worker died"))


class SimulatedWorkers:
    """Where one engine's workers come from: see `engine.snapshot.crew.Workers`."""

    def __init__(self, world: Surroundings, engine: Process, seed: float) -> None:
        self._world = world
        self._engine = engine
        self._rnd = rnd = random.Random(seed)
        self.loop = world.loop
        self.count = rnd.choice((1, 2, 3))
        self.is_pool = rnd.random() < 0.5
        self._worker_count = 0
        self._given: set[tuple[TableName, int, int]] = set()
        self._won: set[tuple[TableName, int, int]] = set()

    def start(self) -> tuple[Executor, int]:
        if not self._world.is_calm and self._rnd.random() < 0.08:
            self._world.counts["no workers to be had"] += 1
            raise WorkerLost("nobody answers")
        return SimulatedExecutor(self), self.count

    def end(self, executor: Executor) -> None:
        assert isinstance(executor, SimulatedExecutor)
        self._world.counts["workers let go"] += 1
        executor.end()

    def worker(self, content: bytes) -> Worker:
        """Another worker's process."""
        self._worker_count += 1
        name = f"{self._engine.name}/worker-{self._worker_count}"
        return Worker(self._world, name, content, decode_task(content), self._rnd.random())

    def tell(self, call: Any, *arguments: Any) -> None:
        """Call something in the engine's process, when it can hear."""
        self.loop.signal(self._engine, call, *arguments)

    # --- what is counted

    def given(self, task: SnapshotTask, under_way: Sequence[SnapshotTask]) -> None:
        """A worker gets a range."""
        one = _range_of(task)
        if one in map(_range_of, under_way):
            self._world.counts["ranges given to another worker"] += 1
        elif one in self._given:
            self._world.counts["ranges staged anew"] += 1
        self._given.add(one)

    def answered(self, task: SnapshotTask, result: bytes) -> None:
        """A worker has done a range."""
        if decode_result(result).failure is not None:
            return
        if _range_of(task) in self._won:
            self._world.counts["a duplicate's result thrown away"] += 1
        self._won.add(_range_of(task))

    def count_lost(self) -> None:
        """A worker died that had a task."""
        self._world.counts["workers lost"] += 1


def _range_of(task: SnapshotTask) -> tuple[TableName, int, int]:
    return task.staging.table, task.staging.attempt, task.staging.range_number


# --- the coordinator


@dataclass(frozen=True, slots=True)
class Taker:
    """What one engine needs to take snapshots. `take` is handed to its pipeline."""

    world: Surroundings
    process: Process
    writer: str
    source: SimulatedSource
    configuration: RecordConfiguration
    codec: int
    observer: RowObserver
    seed: float
    rnd: random.Random = field(init=False)
    asking: random.Random = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rnd", random.Random(self.seed))
        object.__setattr__(self, "asking", random.Random(f"asks {self.seed}"))

    async def take(self, register: SnapshotRegister, database: str) -> None:
        """Take what is needed, until cancelled; what is not whole by then is given up."""
        assert database == DATABASE
        if not self.world.server.is_confirming:
            # There is nothing to look at: nobody else knows of a table without rows.
            for table in TABLES:
                if self.configuration.captures(table):
                    register.capture(table)
        async with asyncio.TaskGroup() as asking:
            asking.create_task(self._ask(register))
            await self._coordinator().run(register, database)

    async def _ask(self, register: SnapshotRegister) -> None:
        """Ask for snapshots again, as where a gap was found, for as long as there is trouble."""
        rnd, counts = self.asking, self.world.counts
        while True:
            await asyncio.sleep(rnd.uniform(0.1, 8))
            table = rnd.choice(TABLES)
            if not self.world.is_calm and self.configuration.captures(table):
                register.resync(table)
                counts["snapshots asked for again"] += 1

    def _coordinator(self) -> Coordinator:
        rnd, world = self.rnd, self.world
        return _Counted(
            world.counts,
            source=SimulatedSnapshots(world, self.process.name, self.source, rnd.random()),
            store=SimulatedStore(world.bucket, self.process),
            # What a worker runs is the simulation's to say.
            crew=Crew(SimulatedWorkers(world, self.process, rnd.random()), None),  # type: ignore[arg-type]
            settings=SnapshotSettings(
                bucket=_BUCKET,
                prefix="lake",
                codec_version=self.codec,
                bytes_max=rnd.choice((0, 0, 1 << 30)),  # 0: an object for each batch.
                tables_max=rnd.choice((1, 2, 8)),
                stall_seconds=rnd.choice((2.0, 8.0)),
                progress_seconds=1.0,
            ),
            configuration=self.configuration,
            writer_id=self.writer,
            alarms=Alarms(world.now_us),
            progress=Progress(self.observer),
            rules=BucketRules(_no_rules, "lake"),
        )


async def _no_rules() -> tuple[BucketRule, ...]:
    """The bucket leaves uploads for as long as anybody likes."""
    return ()


class _Counted(Coordinator):
    """The coordinator, and what becomes of attempts is counted."""

    def __init__(self, counts: Counter[str], **parts: Any) -> None:
        super().__init__(**parts)
        self._counts = counts

    def given_up(self, attempt: Attempt) -> None:
        self._counts["snapshots given up"] += 1
        super().given_up(attempt)

    def failed(self, table: TableName, error: TailraceError) -> None:
        if "is not wanted now" in str(error):
            self._counts["attempts overtaken"] += 1
        if "was given up" in str(error):
            self._counts["attempts overtaken by a request while they are listed"] += 1
        super().failed(table, error)
