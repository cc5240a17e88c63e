"""Snapshots of simulated tables: a coordinator beside each engine's stream, and its workers.

Strategy: the coordinator asks the engine's register what is needed, takes a consistent point of the
server, and sends each range to one or two workers. A worker is a process of its own: it runs the
engine's staging, outlives the engine, freezes and comes back late, or dies. The first result of a
range wins. What no worker answers in time is staged anew.

Invariant: a worker touches the bucket through a store of its own, and tells nobody but its
coordinator. The coordinator lives and dies with its engine.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Protocol

from engine.journal.snapshots import Attempt, SnapshotRegister
from engine.model.batch import Batch, Operations
from engine.model.errors import DestinationUnavailable, SnapshotStale, UploadGone
from engine.model.position import snapshot_position
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.staged_object import StagedObject
from engine.snapshot.staging import StagingTask, stage
from simulation.source import TABLES, Row, Server, SimulatedSource, TableRead, record_writer
from simulation.store import Bucket, SimulatedStore
from simulation.virtual_loop import Process, VirtualLoop

_WORKER_SECONDS_MAX = 20
"""A range that nobody has answered for so long is given to another worker."""

DATABASE = "shop"
Staged = tuple[StagedObject, ...]


class Surroundings(Protocol):
    """What a coordinator and its workers need from their world."""

    loop: VirtualLoop
    bucket: Bucket
    server: Server
    counts: Counter[str]
    is_calm: bool

    def now_us(self) -> int: ...

    def trace(self, text: str) -> None: ...


class Coordinator:
    """Takes the snapshots that one engine needs. `take` is handed to its pipeline."""

    def __init__(
        self,
        world: Surroundings,
        name: str,
        writer: str,
        source: SimulatedSource,
        configuration: RecordConfiguration,
        *,
        codec: int,
        seed: float,
    ) -> None:
        self._world = world
        self._name = name
        self._writer = writer
        self._source = source
        self._configuration = configuration
        self._codec = codec
        self._rnd = random.Random(seed)
        self._asking = random.Random(f"asks {seed}")
        self._worker_count = 0

    async def take(self, register: SnapshotRegister, database: str) -> None:
        """Take what is needed, until cancelled; what is not whole by then is given up."""
        assert database == DATABASE
        rnd = self._rnd
        if not self._world.server.is_confirming:
            # There is nothing to look at: nobody else knows of a table without rows.
            for table in TABLES:
                if self._configuration.captures(table):
                    register.capture(table)
        async with asyncio.TaskGroup() as asking:
            asking.create_task(self._ask(register))
            while True:
                needed = register.needed()
                if rnd.random() < 0.5:
                    needed = needed[:1]
                async with asyncio.TaskGroup() as group:
                    for table in needed:
                        group.create_task(self._attempt(register, table))
                await asyncio.sleep(rnd.uniform(0.2, 2))

    async def _ask(self, register: SnapshotRegister) -> None:
        """Ask for snapshots again, as where a gap was found, for as long as there is trouble."""
        rnd, counts = self._asking, self._world.counts
        while True:
            await asyncio.sleep(rnd.uniform(0.1, 8))
            table = rnd.choice(TABLES)
            if not self._world.is_calm and self._configuration.captures(table):
                register.resync(table)
                counts["snapshots asked for again"] += 1

    async def _attempt(self, register: SnapshotRegister, table: TableName) -> None:
        server, rnd = self._world.server, self._rnd
        await asyncio.sleep(rnd.uniform(0.001, 0.2))
        if server.is_down or self._is_other_branch:
            return
        address = server.consistent_address()
        point = server.point(address, self._world.now_us())
        read = server.read_before(table, address)
        await asyncio.sleep(rnd.uniform(0.001, 0.2))
        if table not in register.needed() or self._is_other_branch:
            return
        attempt = register.start(table, point, read.relation)
        await register.started(attempt)
        self._world.counts["snapshots started"] += 1
        objects = await self._staged(attempt, read)
        is_unlucky = not self._world.is_calm and rnd.random() < 0.1
        if not register.is_under_way(attempt):
            self._world.counts["attempts overtaken"] += 1
        elif is_unlucky or self._is_other_branch:
            self._world.counts["snapshots given up"] += 1
            register.give_up(attempt)
        else:
            try:
                await register.whole(attempt, objects)
            except SnapshotStale:
                self._world.counts["attempts overtaken by a request while they are listed"] += 1

    @property
    def _is_other_branch(self) -> bool:
        """Whether the server failed over, and the engine does not know it yet."""
        return str(self._world.server.timeline) != self._source.branch

    async def _staged(self, attempt: Attempt, read: TableRead) -> list[StagedObject]:
        """All objects of the attempt; the ranges' in any order, as their workers end."""
        found: list[StagedObject] = []

        async def one(number: int, rows: list[Row]) -> None:
            found.extend(await self._range(attempt, read, number, rows))

        async with asyncio.TaskGroup() as group:
            for number, rows in enumerate(self._ranges(read)):
                group.create_task(one(number, rows))
        return found

    def _ranges(self, read: TableRead) -> list[list[Row]]:
        """The rows, spread over ranges; some have none, and mostly range 0 is one of them."""
        rnd = self._rnd
        first = rnd.choice((0, 0, 1))
        ranges: list[list[Row]] = [[] for _ in range(rnd.choice((2, 2, 3)))]
        for row in read.rows:
            ranges[rnd.randint(first, len(ranges) - 1)].append(row)
        return ranges

    async def _range(
        self, attempt: Attempt, read: TableRead, number: int, rows: list[Row]
    ) -> Staged:
        """The objects of one range: the first worker's that has all of them."""
        rnd = self._rnd
        if number and not rows and rnd.random() < 0.8:
            return ()
        while True:
            answer: asyncio.Future[Staged | None] = self._world.loop.create_future()
            task = self._task(attempt, number)
            for _ in range(1 if self._world.is_calm else rnd.choice((1, 1, 1, 2))):
                self._worker_count += 1
                worker = Worker(
                    self._world,
                    f"{self._name}/worker-{self._worker_count}",
                    task,
                    read,
                    rows,
                    configuration=self._configuration,
                    seed=rnd.random(),
                )
                worker.start(answer)
            try:
                async with asyncio.timeout(_WORKER_SECONDS_MAX):
                    staged = await answer
            except TimeoutError:
                self._world.counts["ranges given to another worker"] += 1
                continue
            if staged is not None:
                return staged
            self._world.counts["ranges staged anew"] += 1
            await asyncio.sleep(rnd.uniform(0.1, 1))

    def _task(self, attempt: Attempt, number: int) -> StagingTask:
        return StagingTask(
            table=attempt.table,
            attempt=attempt.number,
            range_number=number,
            point=attempt.point.position,
            version=attempt.version.number,
            hour=attempt.hour,
            codec=self._codec,
            compression=self._configuration.compression,
            layout=self._configuration.layout,
            prefix="lake",
            database=DATABASE,
            writer=self._writer,
            bytes_max=self._rnd.choice((0, 0, 1 << 30)),  # 0: an object for each batch.
        )


class Worker:
    """Stages one range in a process of its own. What it would do after its death is not done."""

    def __init__(
        self,
        world: Surroundings,
        name: str,
        task: StagingTask,
        read: TableRead,
        rows: list[Row],
        *,
        configuration: RecordConfiguration,
        seed: float,
    ) -> None:
        self._world = world
        self._task = task
        self._read = read
        self._rows = rows
        self._records = record_writer(configuration)
        self._rnd = random.Random(seed)
        self._process = Process(name)
        self._main_task: asyncio.Task[None] | None = None

    def start(self, answer: "asyncio.Future[Staged | None]") -> None:
        """Begin. `answer` gets what is staged, or None where the range has to be staged anew."""
        loop, rnd = self._world.loop, self._rnd
        if not self._world.is_calm:
            fate, moment = rnd.random(), rnd.choice((0.01, 0.1, 0.5)) * rnd.random()
            if fate < 0.06:
                loop.later(moment, loop.freeze, self._process)
                loop.later(rnd.choice((5, 15, 40)), loop.resume, self._process)
            elif fate < 0.1:
                loop.later(moment, loop.kill, self._process)
        self._main_task = loop.start(self._process, self._work(answer))

    async def _work(self, answer: "asyncio.Future[Staged | None]") -> None:
        rnd, world = self._rnd, self._world
        store = SimulatedStore(world.bucket, self._process)
        staged: Staged | None = None
        try:
            staged = await stage(
                store,
                self._task,
                self._batches(),
                make_nonce=lambda: f"{rnd.getrandbits(64):x}",
                part_bytes=rnd.choice((1, 1 << 30)),
            )
        except (DestinationUnavailable, UploadGone) as error:
            world.trace(f"{self._process.name} of {self._task.table} fails: {error}")
        world.loop.later(rnd.uniform(0.001, 0.1), self._tell, answer, staged)

    def _tell(self, answer: "asyncio.Future[Staged | None]", staged: Staged | None) -> None:
        if not answer.done():
            answer.set_result(staged)
        elif staged is not None:
            self._world.counts["a duplicate's result thrown away"] += 1

    async def _batches(self) -> AsyncIterator[Batch]:
        rows: list[Row | None] = [*self._rows]
        if self._task.range_number == 0:
            rows.insert(0, None)
        begin = 0
        while begin < len(rows):
            await asyncio.sleep(self._rnd.uniform(0.001, 0.05))
            end = begin + self._rnd.choice((1, 2, 100))
            yield self._batch(begin, rows[begin:end])
            begin = end

    def _batch(self, begin: int, rows: list[Row | None]) -> Batch:
        task = self._task
        positions = [
            snapshot_position(task.point, task.attempt, task.range_number, begin + index)
            for index in range(len(rows))
        ]
        lines = [
            self._records.snapshot_line(self._read, position, row, task.version, task.codec)
            for position, row in zip(positions, rows, strict=True)
        ]
        marker_count = rows.count(None)
        return Batch(
            table=task.table,
            version=task.version,
            lines=b"".join(lines),
            row_count=len(rows),
            operations=Operations(r=len(rows) - marker_count, t=marker_count),
            first=positions[0],
            last=positions[-1],
            first_commit_us=0,
            last_commit_us=0,
        )
