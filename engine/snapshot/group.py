"""A group: the tables that share one held snapshot, read range by range.

Strategy: each range of each table is a task for the crew. The first result of a range wins: a task
whose worker died is given again, and one that stands still is given to another worker too. When a
table's ranges are staged, what may have changed in spite of holding it is compared once more. Then
its objects are handed to the register, and the snapshot is held until the journal names them.

Invariant: nothing is staged before the journal says that the attempt is started. The register gets
an attempt's objects only after the comparison, or the attempt is given up.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Never, Protocol

import msgspec
import structlog

from engine import __version__
from engine.journal.snapshots import Attempt, SnapshotRegister
from engine.model.errors import (
    SnapshotStale,
    SourceRefused,
    SourceUnavailable,
    TailraceError,
    UnrepresentableRow,
    first_cause,
)
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.snapshot_source import HeldSnapshot, RangeTask, ReadProgress
from engine.model.staged_object import StagedObject
from engine.snapshot.crew import WorkerLost
from engine.snapshot.progress import Progress
from engine.snapshot.settings import SnapshotSettings
from engine.snapshot.staging import StagingTask
from engine.snapshot.task import Failure, SnapshotResult, SnapshotTask, decode_result, encode

_LOGGED_SECONDS: Final = 10.0

_AGAIN_SECONDS: Final = 0.5
_AGAIN_SECONDS_MAX: Final = 30.0

_log = structlog.get_logger(__name__)

Staged = tuple[StagedObject, ...]


class TaskRunner(Protocol):
    """Who does tasks: see `engine.snapshot.crew.Crew`."""

    @property
    def is_full(self) -> bool:
        """Whether every worker has a task."""
        ...

    @property
    def is_busy(self) -> bool:
        """See `Crew.is_busy`."""
        ...

    async def run(self, task: bytes, on_start: Callable[[], None]) -> bytes:
        """See `Crew.run`. Cancellation as there."""
        ...

    def renew(self) -> None:
        """See `Crew.renew`."""
        ...

    def close(self) -> None:
        """See `Crew.close`."""
        ...


class Ends(Protocol):
    """Who is told what became of a table."""

    def failed(self, table: TableName, error: TailraceError) -> None:
        """The attempt came to nothing."""
        ...

    def given_up(self, attempt: Attempt) -> None:
        """What was staged for the attempt is to be thrown away."""
        ...


class Group:
    """The tables of one held snapshot."""

    def __init__(
        self,
        *,
        held: HeldSnapshot,
        register: SnapshotRegister,
        crew: TaskRunner,
        settings: SnapshotSettings,
        configuration: RecordConfiguration,
        database: str,
        writer_id: str,
        progress: Progress,
        ends: Ends,
    ) -> None:
        self._held = held
        self._register = register
        self._crew = crew
        self._settings = settings
        self._configuration = configuration
        self._database = database
        self._writer_id = writer_id
        self._progress = progress
        self._ends = ends
        self._running: dict[str, _Given] = {}
        self._given_count = 0

    async def run(self) -> None:
        """Read all tables of the snapshot.

        Raises SnapshotStale where the whole snapshot is lost. Cancellation, like that, gives up
        every table that is not done.
        """
        with _first_of_ours():
            async with asyncio.TaskGroup() as beside:
                watching = [
                    beside.create_task(self._held.watch()),
                    beside.create_task(self._watch_progress()),
                ]
                async with asyncio.TaskGroup() as reading:
                    for table in self._held.tables:
                        reading.create_task(self._take(table))
                for task in watching:
                    task.cancel()

    async def _take(self, table: TableName) -> None:
        held = self._held.tables[table]
        attempt = self._register.start(table, self._held.point, held.relation)
        is_whole = False
        self._progress.begin(table, held, asyncio.get_running_loop().time())
        try:
            await self._register.started(attempt)
            self._refuse_stale(attempt)
            _log.info("snapshot started", table=str(table), attempt=attempt.number)
            objects = await self._staged(attempt, held.ranges)
            await self._held.compare(table)
            self._refuse_stale(attempt)
            self._register.whole(attempt, objects)
            is_whole = True
            _log.info(
                "snapshot read",
                table=str(table),
                attempt=attempt.number,
                rows=sum(staged.ops.get("r", 0) for staged in objects),
                objects=len(objects),
            )
            await self._register.started(attempt)
        except (SourceUnavailable, SourceRefused) as error:
            self._ends.failed(table, error)
        finally:
            self._progress.end(table)
            if not is_whole:
                self._register.give_up(attempt)
                self._ends.given_up(attempt)

    def _refuse_stale(self, attempt: Attempt) -> None:
        if not self._register.is_under_way(attempt):
            raise SnapshotStale(f"attempt {attempt.number} of {attempt.table} is not wanted now")

    async def _staged(self, attempt: Attempt, ranges: tuple[bytes, ...]) -> list[StagedObject]:
        """The objects of all ranges, the ranges' in the order in which their workers end."""
        objects: list[StagedObject] = []
        with _first_of_ours():
            async with asyncio.TaskGroup() as staging:
                for number, own in enumerate(ranges):
                    staging.create_task(self._range(_Range(attempt, number, own), objects))
        return objects

    async def _range(self, wanted: "_Range", objects: list[StagedObject]) -> None:
        staged = await self._first_result(wanted)
        objects.extend(staged)
        row_count = sum(each.rows for each in staged)
        self._progress.done(wanted.attempt.table, wanted.number, row_count)

    async def _first_result(self, wanted: "_Range") -> Staged:
        """What the first worker staged that did all of it; the others' results are thrown away."""
        copies: dict[asyncio.Task[SnapshotResult], _Given] = {}
        failures = 0
        async with asyncio.TaskGroup() as group:

            def give() -> None:
                known = self._next(wanted)
                copies[group.create_task(self._done(known))] = known

            while True:
                if not copies:
                    give()
                done, _ = await asyncio.wait(
                    copies,
                    timeout=self._settings.progress_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    del copies[task]
                    failure = task.result().failure
                    if failure is None:
                        for other in copies:
                            other.cancel()
                        return task.result().objects
                    failures += 1
                    await self._pause(wanted, failure, failures)
                if len(copies) == 1 and all(map(self._is_stuck, copies.values())):
                    self._tell_stuck(wanted)
                    if self._is_crew_stuck:
                        # Another worker has to be made first.
                        self._crew.renew()
                    else:
                        give()

    def _next(self, wanted: "_Range") -> "_Given":
        self._given_count += 1
        known = _Given(f"{self._held.name}/{self._given_count}", wanted)
        self._running[known.name] = known
        return known

    def _tell_stuck(self, wanted: "_Range") -> None:
        _log.warning(
            "snapshot worker stands still",
            table=str(wanted.attempt.table),
            range=wanted.number,
            seconds=self._settings.stall_seconds,
        )

    @property
    def _is_crew_stuck(self) -> bool:
        started = (known for known in self._running.values() if known.started is not None)
        return self._crew.is_full and all(map(self._is_stuck, started))

    def _is_stuck(self, known: "_Given") -> bool:
        return known.is_stuck(self._settings.stall_seconds)

    async def _done(self, known: "_Given") -> SnapshotResult:
        task = encode(self._task(known))
        try:
            return decode_result(await self._crew.run(task, known.start))
        except (WorkerLost, msgspec.DecodeError) as error:
            return SnapshotResult(failure=Failure("again", str(error)))
        finally:
            del self._running[known.name]

    def _task(self, known: "_Given") -> SnapshotTask:
        attempt, settings = known.wanted.attempt, self._settings
        configuration = self._configuration
        return SnapshotTask(
            release=__version__,
            bucket=settings.bucket,
            rows=RangeTask(
                name=known.name,
                database=self._database,
                version=attempt.version,
                configuration=configuration,
                point=attempt.point.position,
                commit_us=attempt.point.commit_us,
                attempt=attempt.number,
                range_number=known.wanted.number,
                begins_attempt=known.wanted.number == 0,
                own=known.wanted.own,
            ),
            staging=StagingTask(
                table=attempt.table,
                attempt=attempt.number,
                range_number=known.wanted.number,
                point=attempt.point.position,
                version=attempt.version.number,
                hour=attempt.hour,
                codec=settings.codec_version,
                compression=configuration.compression,
                layout=configuration.layout,
                prefix=settings.prefix,
                database=self._database,
                writer=self._writer_id,
                bytes_max=settings.bytes_max,
            ),
            rows_per_second=settings.rows_per_second,
        )

    async def _pause(self, wanted: "_Range", failure: Failure, failures: int) -> None:
        """Raise what ends the attempt, or wait before the range is given again."""
        table = wanted.attempt.table
        text = f"range {wanted.number} of the snapshot of {table}: {failure.text}"
        if failure.kind == "stale":
            raise SnapshotStale(text, hint=failure.hint)
        if failure.kind == "refused":
            raise SourceRefused(text, hint=failure.hint)
        if failure.kind == "unrepresentable":
            raise UnrepresentableRow(text, reason=failure.text, hint=failure.hint)
        seconds = min(_AGAIN_SECONDS * 2.0 ** min(failures - 1, 10), _AGAIN_SECONDS_MAX)
        _log.warning("snapshot range given again", table=str(table), error=text, seconds=seconds)
        await asyncio.sleep(seconds)

    async def _watch_progress(self) -> Never:
        loop = asyncio.get_running_loop()
        logged = loop.time()
        while True:
            await asyncio.sleep(self._settings.progress_seconds)
            if loop.time() - logged >= _LOGGED_SECONDS and (
                line := self._progress.line(loop.time())
            ):
                logged = loop.time()
                _log.info("snapshots", **line)
            try:
                found = await self._held.progress()
            except SourceUnavailable as error:
                _log.debug("progress of the snapshot is not known", error=str(error))
                continue
            for name, known in self._running.items():
                known.seen(found.get(name))
                if known.progress is not None:
                    table = known.wanted.attempt.table
                    self._progress.running(table, known.wanted.number, known.progress)


@dataclass(frozen=True, slots=True, eq=False)
class _Range:
    """One range of an attempt."""

    attempt: Attempt
    number: int
    own: bytes


@dataclass(slots=True, eq=False)
class _Given:
    """A range as it was given to one worker. Times are the loop's."""

    name: str
    wanted: _Range
    started: float | None = None
    progress: ReadProgress | None = None
    moved: float = 0.0

    def start(self) -> None:
        """A worker has it."""
        self.started = self.moved = asyncio.get_running_loop().time()

    def seen(self, progress: ReadProgress | None) -> None:
        """The source says how far it has come."""
        if progress is not None and progress != self.progress:
            self.progress, self.moved = progress, asyncio.get_running_loop().time()

    def is_stuck(self, stall_seconds: float) -> bool:
        """Whether a worker has it and has not come further for so long."""
        now = asyncio.get_running_loop().time()
        return self.started is not None and now - self.moved > stall_seconds


@contextmanager
def _first_of_ours() -> Iterator[None]:
    """Raise the first error of ours in place of the group that holds it."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise first_cause(group) from group
