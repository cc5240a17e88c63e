"""A group: the tables that share one held snapshot, read range by range.

Strategy: each range of each table is a task for the crew. The first result of a range wins: a task
whose worker died is given again, and one that stands still is given to another worker too. Where
nobody comes further with anything, all workers are made anew. When a table's ranges are staged,
what may have changed in spite of holding it is compared once more. Then its objects are handed to
the register, and the snapshot is held until the journal names them.

Invariant: nothing is staged before the journal says that the attempt is started. The register gets
an attempt's objects only after the comparison, or the attempt is given up.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Never, Protocol, assert_never

import msgspec
import structlog

from engine import __version__
from engine.journal.bucket_rules import BucketRules
from engine.journal.gaps import refuse_too_many
from engine.journal.snapshots import Attempt, SnapshotRegister
from engine.model.errors import (
    SnapshotStale,
    SourceRefused,
    SourceUnavailable,
    TailraceError,
    UnrepresentableRow,
    UploadsOutlived,
    first_of_ours,
)
from engine.model.layout import TableLayout
from engine.model.position import segment_range
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.snapshot_source import HeldSnapshot, HeldTable, RangeTask, ReadProgress
from engine.snapshot.crew import WorkerLost
from engine.snapshot.progress import Progress
from engine.snapshot.settings import SnapshotSettings
from engine.snapshot.staging import StagingTask
from engine.snapshot.task import Failure, SnapshotResult, SnapshotTask, decode_result, encode

_LOGGED_SECONDS: Final = 10.0

_AGAIN_SECONDS: Final = 0.5
_AGAIN_SECONDS_MAX: Final = 30.0
_BUFFERED_ROWS: Final = 100_000
"""Small rows that lie between source and worker when the source has sent its last."""

_FAILURES_TOLD: Final = 5
"""Failures of one range, each on another worker perhaps, before somebody is told."""

_log = structlog.get_logger(__name__)


class TaskRunner(Protocol):
    """Who does tasks: see `engine.snapshot.crew.Crew`."""

    @property
    def is_full(self) -> bool:
        """Whether every worker has a task."""
        ...

    @property
    def has_free(self) -> bool:
        """See `Crew.has_free`."""
        ...

    @property
    def is_busy(self) -> bool:
        """See `Crew.is_busy`."""
        ...

    async def run(self, task: bytes, on_start: Callable[[], None]) -> bytes:
        """See `Crew.run`. Cancellation as there."""
        ...

    def let_go(self) -> None:
        """See `Crew.let_go`."""
        ...


class Ends(Protocol):
    """Who is told what became of a table."""

    def failed(self, table: TableName, error: TailraceError) -> None:
        """The attempt came to nothing."""
        ...

    def failing(self, table: TableName, error: TailraceError) -> None:
        """The attempt goes on, and something in it has failed many times."""
        ...

    def done(self, table: TableName) -> None:
        """All of the table is staged."""
        ...

    def given_up(self, attempt: Attempt) -> None:
        """What was staged for the attempt is to be thrown away."""
        ...


class UnderWay:
    """What the workers of one crew have, whichever group gave it."""

    def __init__(self) -> None:
        self.given: dict[str, _Given] = {}
        self._log_at = 0.0

    def is_time_to_log(self, now: float) -> bool:
        """Whether the log's next line about all of it is due. It counts as written then."""
        is_due = 0.0 < self._log_at <= now
        if is_due or not self._log_at:
            self._log_at = now + _LOGGED_SECONDS
        return is_due


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
        under_way: UnderWay,
        rules: BucketRules,
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
        self._rules = rules
        self._layout = TableLayout(settings.prefix, database, configuration.layout)
        self._ends = ends
        # The loop's time when a worker first had a range of the attempt: its oldest upload's.
        self._begun_at: dict[Attempt, float] = {}
        self._left_out_counts = Counter[Attempt]()
        self._under_way = under_way
        # By table, the ranges that no worker has had yet.
        self._waiting = {table: set(each.ranges) for table, each in held.tables.items()}
        self._given_count = 0

    @property
    def is_at_tail(self) -> bool:
        """Whether every range that is left was given to a worker at least once."""
        return not any(self._waiting.values())

    async def run(self) -> None:
        """Read all tables of the snapshot.

        Raises SnapshotStale where the whole snapshot is lost. Cancellation, like that, gives up
        every table that is not done.
        """
        with first_of_ours():
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
        try:
            await self._read_table(table)
        finally:
            self._waiting[table].clear()

    async def _read_table(self, table: TableName) -> None:
        held = self._held.tables[table]
        attempt = self._begun(table, held)
        if attempt is None:
            return
        is_whole = False
        try:
            await self._register.started(attempt)
            self._refuse_stale(attempt)
            self._progress.begin(table, held, _now())
            _log.info("snapshot started", table=str(table), attempt=attempt.number)
            results = await self._staged(attempt, held.ranges)
            objects = [staged for result in results for staged in result.objects]
            left_out = [row for result in results for row in result.left_out]
            await self._compare(table)
            self._refuse_stale(attempt)
            await self._register.whole(
                attempt, objects, left_out, rest=held.rest, partitions=held.partitions
            )
            is_whole = True
            self._ends.done(table)
            _log.info(
                "snapshot read",
                table=str(table),
                attempt=attempt.number,
                rows=sum(staged.ops.get("r", 0) for staged in objects),
                objects=len(objects),
            )
            await self._register.started(attempt)
        except (SourceUnavailable, SourceRefused, UnrepresentableRow, UploadsOutlived) as error:
            self._ends.failed(table, error)
        finally:
            self._progress.end(table)
            if not is_whole:
                self._register.give_up(attempt)
                self._ends.given_up(attempt)
                _log.info("snapshot given up", table=str(table), attempt=attempt.number)

    def _begun(self, table: TableName, held: HeldTable) -> Attempt | None:
        """The table's attempt, or the next segment of one; None where there is none to begin."""
        is_other = held.begin not in {"", self._register.rest(table)}
        if is_other or not self._register.is_needed(table):
            # Somebody asked for something else while the source took the snapshot.
            return None
        try:
            return self._register.start(
                table,
                self._held.point,
                held.relation,
                rest=held.begin,
                is_divided=bool(held.rest),
            )
        except SnapshotStale as error:
            self._ends.failed(table, error)
            return None

    def _refuse_stale(self, attempt: Attempt) -> None:
        if not self._register.is_under_way(attempt):
            raise SnapshotStale(f"attempt {attempt.number} of {attempt.table} is not wanted now")

    async def _refuse_outlived(self, attempt: Attempt) -> None:
        """Give the attempt up where the bucket may throw its uploads away before it is whole."""
        began = self._begun_at.get(attempt)
        if began is not None:
            folder = self._layout.table_folder(attempt.table)
            subject = f"attempt {attempt.number} of {attempt.table}"
            await self._rules.refuse_outlived(folder, began, subject)

    async def _compare(self, table: TableName) -> None:
        """Compare, as often as it takes to get an answer: the rows that were read are worth it."""
        failures = 0
        while True:
            try:
                return await self._held.compare(table)
            except SnapshotStale:
                raise
            except SourceUnavailable as error:
                failures += 1
                await self._pause(table, error, failures)

    async def _staged(self, attempt: Attempt, ranges: tuple[bytes, ...]) -> list[SnapshotResult]:
        """The results of all ranges."""
        with first_of_ours():
            async with asyncio.TaskGroup() as staging:
                tasks = [
                    staging.create_task(self._range(_Range(attempt, lane, own)))
                    for number, own in enumerate(ranges)
                    for lane in [segment_range(attempt.segment, number)]
                ]
        # A task that was cancelled has no result: no range is left out without a word.
        return [task.result() for task in tasks]

    async def _range(self, wanted: "_Range") -> SnapshotResult:
        result = await self._first_result(wanted)
        # What all ranges of a table leave out is kept until the last of them is read.
        refuse_too_many(self._left_out_counts[wanted.attempt], result.left_out)
        self._left_out_counts[wanted.attempt] += len(result.left_out)
        row_count = sum(each.rows for each in result.objects)
        self._progress.done(wanted.attempt.table, wanted.number, row_count)
        return result

    async def _first_result(self, wanted: "_Range") -> SnapshotResult:
        """What the first worker staged that did all of it; the others' results are thrown away."""
        copies: dict[asyncio.Task[SnapshotResult], _Given] = {}
        failures, failing_since = 0, 0.0
        async with asyncio.TaskGroup() as group:
            while True:
                if not copies:
                    self._give(group, wanted, copies)
                done, _ = await asyncio.wait(
                    copies,
                    timeout=self._settings.progress_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                self._refuse_stale(wanted.attempt)
                await self._refuse_outlived(wanted.attempt)
                for task in done:
                    del copies[task]
                results = [task.result() for task in done]
                for result in results:
                    if result.failure is None:
                        for other in copies:
                            other.cancel()
                        return result
                for failure in (result.failure for result in results if result.failure):
                    failures += 1
                    failing_since = failing_since or _now()
                    error = _error_of(wanted, failure)
                    if _now() - failing_since >= self._settings.patience_seconds:
                        raise error
                    if not copies:
                        await self._pause(wanted.attempt.table, error, failures)
                self._help(group, wanted, copies)

    def _give(self, group: asyncio.TaskGroup, wanted: "_Range", copies: "_Copies") -> None:
        """Give the range to a worker."""
        self._given_count += 1
        known = _Given(f"{self._held.name}/{self._given_count}", wanted, _now())
        self._under_way.given[known.name] = known
        copies[group.create_task(self._done(known))] = known

    def _help(self, group: asyncio.TaskGroup, wanted: "_Range", copies: "_Copies") -> None:
        """Where nobody comes further with the range: another worker, or other workers."""
        if not copies or not all(map(self._is_stuck, copies.values())):
            return
        is_crew_stuck = all(map(self._is_stuck, self._under_way.given.values()))
        is_twice = len(copies) > 1
        if is_crew_stuck and (is_twice or self._crew.is_full):
            self._tell_stuck(wanted, "snapshot workers stand still")
            for known in self._under_way.given.values():
                known.moved = _now()
            self._crew.let_go()
        elif not is_twice and all(known.is_started for known in copies.values()):
            self._tell_stuck(wanted, "snapshot worker stands still")
            self._give(group, wanted, copies)

    def _tell_stuck(self, wanted: "_Range", event: str) -> None:
        _log.warning(
            event,
            table=str(wanted.attempt.table),
            range=wanted.number,
            seconds=self._settings.stall_seconds,
        )

    def _is_stuck(self, known: "_Given") -> bool:
        return _now() - max(known.moved, self._busy_until(known)) > self._settings.stall_seconds

    def _busy_until(self, known: "_Given") -> float:
        """Until when a worker with a limit takes its time for what the source has sent it."""
        rate = self._settings.rows_per_second
        seen = known.progress.rows if known.progress is not None else 0
        return known.started + (seen + _BUFFERED_ROWS) / rate if rate else 0.0

    async def _done(self, known: "_Given") -> SnapshotResult:
        task = encode(self._task(known))
        try:
            return decode_result(await self._crew.run(task, lambda: self._start(known)))
        except (WorkerLost, msgspec.DecodeError) as error:
            hint = error.hint if isinstance(error, WorkerLost) else ""
            return SnapshotResult(failure=Failure("again", str(error), hint))
        finally:
            del self._under_way.given[known.name]

    def _start(self, known: "_Given") -> None:
        """A worker has it."""
        known.is_started = True
        known.started = known.moved = _now()
        self._waiting[known.wanted.attempt.table].discard(known.wanted.own)
        self._begun_at.setdefault(known.wanted.attempt, known.moved)

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

    async def _pause(self, table: TableName, error: TailraceError, failures: int) -> None:
        """Wait before it is tried again, which has failed so often."""
        seconds = min(_AGAIN_SECONDS * 2.0 ** min(failures - 1, 10), _AGAIN_SECONDS_MAX)
        _log.warning("snapshot tried again", table=str(table), error=str(error), seconds=seconds)
        if failures >= _FAILURES_TOLD:
            self._ends.failing(table, error)
        await asyncio.sleep(seconds)

    async def _watch_progress(self) -> Never:
        while True:
            await asyncio.sleep(self._settings.progress_seconds)
            line = self._progress.line(_now())
            if line and self._under_way.is_time_to_log(_now()):
                _log.info("snapshots", **line)
            try:
                found = await self._held.progress()
            except SourceUnavailable as error:
                _log.debug("progress of the snapshot is not known", error=str(error))
                for known in self._under_way.given.values():
                    known.moved = _now()  # Who is not seen may well come further.
                continue
            for name, known in self._under_way.given.items():
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
    """A range as it was given to one worker.

    Times are the loop's: `started` is when the worker had it, `moved` when it came further.
    """

    name: str
    wanted: _Range
    moved: float
    is_started: bool = False
    started: float = 0.0
    progress: ReadProgress | None = None

    def seen(self, progress: ReadProgress | None) -> None:
        """The source says how far it has come."""
        if progress is not None and progress != self.progress:
            self.progress, self.moved = progress, _now()


_Copies = dict[asyncio.Task[SnapshotResult], _Given]
"""A range as it is given to several workers."""


def _now() -> float:
    return asyncio.get_running_loop().time()


def _error_of(wanted: _Range, failure: Failure) -> TailraceError:
    """What the range is given again for. Raises what ends the attempt."""
    text = f"range {wanted.number} of the snapshot of {wanted.attempt.table}: {failure.text}"
    match failure.kind:
        case "again":
            return SourceUnavailable(text, hint=failure.hint)
        case "stale":
            raise SnapshotStale(text, hint=failure.hint)
        case "refused":
            raise SourceRefused(text, hint=failure.hint)
        case "unrepresentable":
            raise UnrepresentableRow(text, reason=failure.text, hint=failure.hint)
        case _:
            assert_never(failure.kind)
