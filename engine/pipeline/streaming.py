"""Streaming: the reader, once the journal is ours, and the drain at its end.

Strategy: read an intake, count it in the ledger, route it, wait for room, read on. A lost
connection forgets nothing: the next one starts at E, and what was received is dropped by
position. The committer and the publisher work beside it.

Invariant: an intake is counted whole, in one step with no await, before anything is done with it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack

import msgspec
import structlog

from engine.flow.chunk import compressed_apart, is_large
from engine.journal.causes import ROWS_LEFT_OUT, left_out_cause
from engine.journal.retry import Failure
from engine.model.batch import Batch, Intake, LeftOut
from engine.model.errors import (
    SnapshotsRefused,
    SourceError,
    SourceUnavailable,
    StopLimit,
    StreamPaused,
    StreamStarts,
    TailraceError,
    UnrepresentableRow,
)
from engine.model.interfaces import ChangeStream
from engine.model.log_point import LogPoint
from engine.model.plural import counted
from engine.model.position import LogPosition, commit_of
from engine.model.schema import TableName
from engine.operate.lag import UNKNOWN, Lag, Reading
from engine.operate.status import FoundTables, SnapshotsStatus, Status
from engine.pipeline.tables import CapturedTables, Live
from engine.pipeline.wiring import Life, StreamingParts

_KEEPALIVE_INTERVAL = 0.1
_STANDING_INTERVAL = 15.0
_STANDING_FIRST_SECONDS = 1.0
_CONNECTION_SECONDS_MIN = 0.5
"""Connections are made at least so far apart: a proxy without a server breaks each one at once."""
_REFUSED_TOLD = 5
"""So many tables, whose snapshots were refused, the end of a run tells with their reasons."""
_TRUNCATED_TOLD = 20
"""So many tables of one intake that were truncated have a line each in the log."""

_log = structlog.get_logger(__name__)

WAITS_FOR_SNAPSHOT = "the stream waits for the initial snapshot"

Interruptible = Callable[[Coroutine[None, None, None]], Awaitable[bool]]
"""Runs a coroutine until it is done (True) or the engine is asked to stop (False)."""


class Streaming:
    """Reads, commits and publishes until asked to stop or caught up, then drains."""

    def __init__(
        self,
        life: Life,
        parts: StreamingParts,
        group: asyncio.TaskGroup,
        *,
        caught_up: LogPosition | None,
    ) -> None:
        """Tasks run in `group`. `caught_up` ends it when all before it is read."""
        self.gaps = parts.flow.gaps
        self.reception = parts.flow.reception
        self._world = life.world
        self._journal = life.journal
        self._lease = life.lease
        self._enter = life.enter
        self._database = parts.database
        self._reader = parts.reader
        self._ledger = parts.flow.ledger
        self._budget = parts.flow.budget
        self._schedule = parts.flow.schedule
        self._router = parts.flow.router
        self._watcher = parts.flow.watcher
        self._initial = parts.flow.initial
        self._pauses = parts.flow.pauses
        self._publisher = parts.publisher
        self._lanes = parts.visibility.lanes
        self._patience = parts.visibility.patience
        self._snapshots = parts.snapshots
        self._completer = parts.completer
        self._requests = parts.requests
        self._signals = parts.signals
        self._committer = parts.committer
        self._group = group
        self._caught_up = caught_up
        # When the oldest change was committed that was read while everything before was durable.
        self._waiting_since_us = 0
        self._captured = CapturedTables(
            life.journal.state, life.world.configuration, life.world.activity
        )
        # The end of the source's log when it was last looked at.
        self._end: LogPoint | None = None
        self._connection_error: SourceUnavailable | None = None
        self._lost_us = 0

    async def run(
        self, connection: AsyncExitStack, stream: ChangeStream | None, interruptible: Interruptible
    ) -> None:
        """Stream until asked to stop or caught up, then drain.

        `stream`, if there is one, lives in `connection` and is compared. Raises SnapshotsRefused
        where it has caught up but for tables whose snapshot takes somebody else; StreamPaused where
        it is to catch up and somebody has to resume it; Superseded,
        PositionLost, StopLimit and whatever else ends an engine; StreamStarts where the stream
        waited and another life goes on. Cancellation is like a kill.
        """
        self._reader.stream = stream
        committing = self._group.create_task(self._committer.run())
        beside = [
            self._group.create_task(self._watch_standing()),
            self._group.create_task(self._watcher.run()),
            self._group.create_task(self._requests.run(is_at_once=self._caught_up is not None)),
        ]
        if self._world.bucket_rules is not None:
            beside.append(self._group.create_task(self._world.bucket_rules.run()))
        if self._caught_up is not None:
            beside.append(self._group.create_task(self._ask_keepalives()))
        if self._initial.is_waited_for:
            _log.info("stream waits for the initial snapshot")
            beside.append(self._group.create_task(self._start()))
        taking = self._take_snapshots()
        failure: UnrepresentableRow | StreamPaused | SnapshotsRefused | None = None
        try:
            is_caught_up = await interruptible(self._read(connection))
            if is_caught_up and (refused := self._snapshots.refused):
                failure = _refusal(refused)
        except (UnrepresentableRow, StreamPaused) as error:
            # What was read before it is published, as at any other stop.
            is_caught_up, failure = False, error
        self._enter("draining")
        if taking is not None:
            # What no entry names is given up: the next engine starts other attempts.
            taking.cancel()
        limit = None if is_caught_up else self._world.settings.drain_seconds
        try:
            async with asyncio.timeout(limit):
                self._committer.drain()
                await self._committer.drained.wait()
        except TimeoutError as error:
            raise self._stop_limit() from error
        for task in (*beside, committing):
            task.cancel()
        if failure is not None:
            raise failure

    def _take_snapshots(self) -> asyncio.Task[None] | None:
        """Complete what a predecessor left whole, and take the snapshots that are needed."""
        self._completer.resume()
        take = self._world.take_snapshots
        if take is None:
            return None
        return self._group.create_task(take(self._snapshots, self._database))

    async def _start(self) -> None:
        await self._initial.started.wait()
        raise StreamStarts("the initial snapshot is complete")

    def _stop_limit(self) -> StopLimit:
        count, failure = self._lanes.pending_count, self._destination_failure
        waiting = f"; planned objects not known to be visible: {count}" if count else ""
        because = f"; what fails: {failure}" if failure is not None else ""
        return StopLimit(
            "not everything could be published within drain_seconds ="
            f" {self._world.settings.drain_seconds}{waiting}{because}",
            hint="Nothing is lost: the next engine publishes the rest.",
        )

    @property
    def _destination_failure(self) -> Failure | None:
        return self._patience.failure or self._journal.failure

    def status(self, base: Status) -> Status:
        """`base` with what streaming knows."""
        activity, lag = self._world.activity, self.lag()
        newest = self._ledger.newest_boundary
        error = self._connection_error or self._destination_failure
        snapshots = self._snapshots_status()
        live = self._live_tables(snapshots)
        return msgspec.structs.replace(
            base,
            lag_seconds=lag.unread.seconds,
            lag=lag.unread.log,
            durable_lag_seconds=lag.durable.seconds,
            durable_lag=lag.durable.log,
            read_resume=newest.point.resume if newest is not None else "",
            memory_used_bytes=self._budget.used_bytes,
            tables=self._router.table_count,
            rows_total=activity.rows_total,
            objects_total=activity.objects_total,
            bytes_total=activity.bytes_total,
            publishes_in_flight=self._publisher.in_flight,
            backpressure=self._router.is_pressed,
            waits_for=WAITS_FOR_SNAPSHOT if self._initial.is_waited_for else self._pauses.reason,
            tables_paused=self._pauses.tables,
            busiest=self._captured.shown(live),
            tables_total=len(self._captured.names()),
            snapshots=snapshots.tables,
            snapshots_in_all=snapshots.in_all,
            snapshots_unfinished=self._snapshots.unfinished_count,
            snapshots_finished=self._snapshots.finished_count,
            last_error=str(error) if error is not None else "",
            last_error_hint=error.hint if error is not None else "",
        )

    def found_tables(self, text: str) -> FoundTables:
        """The captured tables whose name contains `text`."""
        return self._captured.found(text, self._live_tables(self._snapshots_status()))

    def _live_tables(self, snapshots: SnapshotsStatus) -> Live:
        return Live(self._router.waiting_bytes, self._pauses.tables, snapshots.tables)

    def _snapshots_status(self) -> SnapshotsStatus:
        progress = self._world.snapshot_progress
        if progress is None:
            return SnapshotsStatus()
        return progress(asyncio.get_running_loop().time())

    def lag(self) -> Lag:
        """What is written and not read, and what is read and not durable; for any thread."""
        state, newest, now_us = self._journal.state, self._read_point, self._world.clock()
        durable = state.durable_point
        if durable is None:
            return Lag(UNKNOWN, UNKNOWN)
        if newest is not None:
            # An origin may claim any time for a commit.
            commit_us = state.within_reason(newest.commit_us, now_us)
            newest = msgspec.structs.replace(newest, commit_us=commit_us)
        is_waiting = not self._ledger.is_durable(durable.position)
        reading = Reading(
            now_us=now_us,
            durable=durable,
            read=newest,
            end=self._end,
            waiting_since_us=self._waiting_since_us if is_waiting else None,
            is_connected=self._reader.stream is not None,
            # What is read now will be read again.
            is_held=self._initial.is_waited_for or self._pauses.is_paused,
        )
        return reading.lag(self._world.source.distance)

    def _oldest_us(self, intake: Intake) -> int:
        """When the first change of an intake was committed, within reason."""
        first_us = min(batch.first_commit_us for batch in intake.batches)
        return self._journal.state.within_reason(first_us, self._world.clock())

    # --- reading

    async def _read(self, connection: AsyncExitStack) -> None:
        if self._caught_up is not None:
            # What was asked for before this run is a part of what it has to do.
            await self._requests.looked.wait()
        while not self._is_caught_up:
            if self._reader.stream is None:
                self._reader.stream = await self._lease.retake(
                    connection,
                    self._world.configuration,
                    self.reception.decide,
                    received=self._ledger.landmark(self._world.configuration.shown_through),
                )
            self._watcher.connected(self._reader.stream)
            if self._lease.is_failing:
                self._enter("failing")
            else:
                self._enter_streaming()
            began = asyncio.get_running_loop().time()
            try:
                await self._read_stream(self._reader.stream)
            except SourceUnavailable as error:
                await self._leave(connection)
                self._lost(error)
                now = asyncio.get_running_loop().time()
                await asyncio.sleep(max(0.0, began + _CONNECTION_SECONDS_MIN - now))
            else:
                if self._pauses.is_reread_wanted:
                    await self._leave(connection)
                    self._pauses.reread()

    async def _leave(self, connection: AsyncExitStack) -> None:
        self._reader.stream = None
        self._watcher.connected(None)
        await connection.aclose()

    async def _stay_paused(self) -> None:
        """Read no further until somebody resumes the stream. Its connection is held meanwhile.

        Raises StreamPaused where nobody waits for that. Cancellation changes nothing.
        """
        self._enter("paused")
        if self._caught_up is not None:
            raise StreamPaused(
                f"the stream is paused: {self._pauses.reason}",
                hint="`tailrace resume` lets a running engine, or the next one, go on.",
            )
        await self._pauses.resumed()

    def _enter_streaming(self) -> None:
        if self._connection_error is not None:
            self._connection_error = None
            seconds = round((self._world.clock() - self._lost_us) / 1e6, 1)
            _log.info("connected to the source again", seconds=seconds)
            text = f"connected again after {seconds:g} s"
            self._world.events.happened("connection-back", text)
        if self._pauses.is_paused:
            self._enter("paused")
        else:
            self._enter("snapshot" if self._initial.is_waited_for else "streaming")

    def _lost(self, error: SourceUnavailable) -> None:
        if self._connection_error is None:
            self._lost_us = self._world.clock()
            self._world.events.happened("connection-lost", str(error))
        self._connection_error = error
        self._lease.failed(error, self._read_point)
        # One that stands has its alarm.
        if not self._lease.is_failing:
            self._enter("reconnecting")
            _log.warning("connection to the source lost", error=str(error))

    @property
    def _read_point(self) -> LogPoint | None:
        """Everything that commits before it was read."""
        newest = self._ledger.newest_boundary
        return newest.point if newest is not None else None

    def _reached(self) -> None:
        """What a source that fails gives all the same may be what lies behind the failure."""
        lease = self._lease
        lease.reached(self._read_point)
        if not lease.is_failing:
            self._enter_streaming()

    async def _read_stream(self, stream: ChangeStream) -> None:
        while not self._is_caught_up and not self._pauses.is_reread_wanted:
            if self._pauses.is_paused:
                await self._stay_paused()
                continue
            if not self._router.has_room:
                await self._room()
            if not await self._take_next(stream):
                continue
            if self._lease.is_failing:
                self._reached()
            # A socket that always has more would starve the committer and the publisher.
            await asyncio.sleep(0)

    async def _receive(self, stream: ChangeStream) -> Intake | None:
        """The next intake; None where something was paused before it came."""
        loop, waiting = asyncio.get_running_loop(), asyncio.timeout(None)
        self._pauses.interrupt = lambda: waiting.reschedule(loop.time())
        try:
            async with waiting:
                return await stream.receive()
        except TimeoutError:
            if not waiting.expired():
                raise
            return None
        finally:
            self._pauses.interrupt = _nobody_waits

    async def _take_next(self, stream: ChangeStream) -> bool:
        """Take the next intake, and keep nothing of it: it may hold hundreds of megabytes.

        Returns whether there was one: not where something was paused meanwhile. A large row is
        compressed in a thread, before the intake is counted. Cancellation drops an intake that is
        not counted: whoever reads next reads it again.
        """
        intake = await self._receive(stream)
        if intake is None:
            return False
        compression = self._world.configuration.compression
        if any(is_large(batch, compression) for batch in intake.batches):
            batches = [
                await asyncio.to_thread(compressed_apart, batch)
                if is_large(batch, compression)
                else batch
                for batch in intake.batches
            ]
            intake = msgspec.structs.replace(intake, batches=tuple(batches))
        self._take(intake)
        return True

    @property
    def _is_caught_up(self) -> bool:
        if self._caught_up is None or self._pauses.is_paused:
            return False
        if self._initial.is_waited_for:
            # The next life catches up. Where none can begin, whoever waits for this one is told.
            return self._snapshots.is_stream_stuck
        # A keepalive's position that no look was taken behind would not become durable.
        counting = self._ledger.counting_boundary(self._watcher.looked)
        if counting is None or counting.position < self._caught_up:
            return False
        if self._world.take_snapshots is None:
            return True
        # Before the first look a table may be there of which nobody knows.
        if self._watcher.looked is not None and not self._watcher.judged_count:
            return False
        is_done = self._snapshots.is_done(counting.position)
        return is_done and not self._watcher.is_admitting

    def _take(self, intake: Intake) -> None:
        for row in intake.left_out:
            self._leave_out(row)
        self._watcher.shown(intake)
        # Before its rows count: what follows from it is in the entry that plans them, or earlier.
        for moved in intake.moved:
            self._snapshots.moved(moved)
        if intake.signals:
            self._signals.take(intake.signals, asyncio.get_running_loop().time())
        if intake.batches and self._ledger.is_durable(self._journal.state.durable_position):
            self._waiting_since_us = self._oldest_us(intake)
        self._ledger.read(intake)
        self._router.route(intake, asyncio.get_running_loop().time())
        if intake.boundary is not None:
            self._watcher.moved()
        if intake.is_look_wanted:
            self._watcher.want()
        metrics, now_us = self._world.metrics, self._world.clock()
        for batch in intake.batches:
            self._world.activity.rows(batch.table, batch.row_count)
            metrics.rows(batch.table, batch.operations)
        truncated = [batch for batch in intake.batches if batch.operations.t]
        if truncated:
            self._note_truncated(truncated)
        metrics.source_message(now_us)
        metrics.queue_bytes(self._budget.used_bytes)

    def _note_truncated(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self._watcher.truncated(batch.table, commit_of(batch.last))
        for batch in batches[:_TRUNCATED_TOLD]:
            _log.info("table truncated", table=str(batch.table))
            self._world.events.happened("truncation", "truncated", subject=str(batch.table))
        if len(batches) > _TRUNCATED_TOLD:
            _log.info("more tables truncated", count=len(batches) - _TRUNCATED_TOLD)

    def _leave_out(self, row: LeftOut) -> None:
        row_count = self.gaps.leave_out(row)
        cause = left_out_cause(row_count, row.position, row.reason)
        self._world.alarms.set(ROWS_LEFT_OUT, cause.text, subject=str(row.table), hint=cause.hint)

    async def _room(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._router.room()
        finally:
            self._world.metrics.backpressure(loop.time() - began)

    # --- beside the reader

    async def _ask_keepalives(self) -> None:
        while True:
            if self._reader.stream is not None:
                self._reader.stream.ask_keepalive()
                newest, wanted = self._ledger.newest_boundary, self._caught_up
                if wanted is not None and newest is not None and newest.position >= wanted:
                    self._watcher.want()
            await asyncio.sleep(_KEEPALIVE_INTERVAL)

    async def _watch_standing(self) -> None:
        wait = _STANDING_FIRST_SECONDS
        while True:
            await asyncio.sleep(wait)
            wait = _STANDING_INTERVAL
            self._world.metrics.snapshots_unfinished(self._snapshots.unfinished_count)
            stream, newest = self._reader.stream, self._ledger.newest_boundary
            if stream is None:
                continue
            try:
                standing = await stream.standing()
            except SourceError as error:
                _log.debug("how the source stands is not known", error=str(error))
                continue
            self._end = standing.end
            self._world.metrics.source_gauges(standing.gauges)
            self._note_retention(standing.gauges)
            is_read = newest is not None and newest.position >= standing.end.position
            if self._lease.is_failing and is_read:
                self._lease.caught_up()
                self._enter_streaming()

    def _note_retention(self, gauges: Mapping[str, float]) -> None:
        measures = self._world.source.measures
        if measures.retained in gauges and measures.left in gauges:
            self._world.retention.looked(
                self._world.clock(), gauges[measures.retained], gauges[measures.left]
            )


def _nobody_waits() -> None:
    pass


def _refusal(refused: Mapping[TableName, TailraceError]) -> SnapshotsRefused:
    """What ends a run that has done everything else."""
    told = [f"{table} ({error})" for table, error in refused.items()][:_REFUSED_TOLD]
    more = len(refused) - len(told)
    text = "; ".join([*told, f"and {more} more"] if more else told)
    hints = dict.fromkeys(error.hint for error in refused.values() if error.hint)
    return SnapshotsRefused(
        "what was committed before the start is published; the snapshot of"
        f" {counted(len(refused), 'table')} was refused: {text}",
        hint="; ".join([*hints][:_REFUSED_TOLD])
        or "Mend what the message says, and give the same command again.",
    )
