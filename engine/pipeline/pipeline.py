"""The pipeline: one engine's life, from standing by to the drain.

    standby → opening → (redo) → streaming ⇄ reconnecting → draining → stopped

Strategy: one TaskGroup. The reader is its body: it reads an intake, counts it in the ledger,
routes it, and waits for room before it reads on. The committer appends one journal entry for all
that is due, one in an append interval unless rows wait for it, and hands planned objects to the
publisher. When objects are visible, `durable` is appended, then acknowledged.

Invariant: nothing but the journal acknowledges: the source is told E only after the entry that
states it is in the bucket.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from engine.journal.acceptance import acceptable, explain
from engine.journal.causes import NOT_CAPTURED
from engine.journal.entry import Accepting, Durable, Writer, time_text, time_us_of
from engine.journal.initial import stream_start
from engine.journal.prefix import NEIGHBOUR_HINT
from engine.journal.settings import Settings
from engine.journal.uploads import abort_uploads, uploads_of
from engine.model.errors import (
    DestinationUnavailable,
    SourceChanged,
    SourceUnavailable,
    StreamStarts,
    Superseded,
    first_cause,
)
from engine.model.history import Landmark
from engine.model.interfaces import (
    ChangeStream,
    Clock,
    ListedUpload,
    ObjectStore,
    Publishing,
    Source,
    SourceIdentity,
)
from engine.model.position import LogPosition, Position
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableVersion
from engine.operate.alarms import Alarms
from engine.operate.bucket_watch import BucketWatch, WatchedStore
from engine.operate.lag import NOTHING, Amount, Lag
from engine.operate.metrics import Metrics
from engine.operate.process_memory import resident_bytes
from engine.operate.rights_watch import RightsWatch
from engine.operate.status import FoundTables, NotCaptured, Phase, Status
from engine.pipeline.needs import Needs
from engine.pipeline.observer import Observer
from engine.pipeline.stop import StopSignal
from engine.pipeline.streaming import Streaming
from engine.pipeline.wiring import (
    Life,
    SnapshotProgress,
    TakeSnapshots,
    World,
    acceptance,
    begin,
    lists,
    recovery,
    state_keeper,
    streaming_parts,
)

if TYPE_CHECKING:
    from engine.journal.bucket_rules import BucketRules
    from engine.journal.journal import Journal
    from engine.journal.lease import Lease, Taken

_RESTART_SECONDS = 1.0

_CONNECTED: frozenset[Phase] = frozenset(
    {"opening", "redo", "snapshot", "streaming", "paused", "draining"}
)

_TAKING_OVER: frozenset[Phase] = frozenset({"opening", "redo"})

NOT_CAPTURED_SHOWN_MAX = 100

_log = structlog.get_logger(__name__)


class Pipeline:
    """One engine. `run` is its whole life; `status` tells about it at any time."""

    def __init__(
        self,
        *,
        source: Source,
        store: ObjectStore,
        clock: Clock,
        settings: Settings,
        configuration: RecordConfiguration,
        writer: Writer,
        metrics: Metrics,
        stop: StopSignal,
        make_nonce: Callable[[], str] | None = None,
        alarms: Alarms | None = None,
        take_snapshots: TakeSnapshots | None = None,
        snapshot_progress: SnapshotProgress | None = None,
        snapshot_rows: Callable[[], int] | None = None,
        publishing: Publishing | None = None,
        bucket_rules: "BucketRules | None" = None,
    ) -> None:
        alarms = alarms or Alarms(clock, metrics)
        bucket = BucketWatch(clock, name=settings.bucket, prefix=settings.prefix)
        self._rights = RightsWatch(clock, alarms, seconds=settings.right_seconds)
        self._world = World(
            source=source,
            store=WatchedStore(store, bucket, self._rights),
            clock=clock,
            settings=settings,
            configuration=configuration,
            writer=writer,
            metrics=metrics,
            alarms=alarms,
            make_nonce=make_nonce,
            take_snapshots=take_snapshots,
            snapshot_progress=snapshot_progress,
            publishing=publishing,
            bucket_rules=bucket_rules,
        )
        self.observer = Observer(
            clock=clock,
            bucket=bucket,
            activity=self._world.activity,
            events=self._world.events,
            lag=self.lag,
            snapshot_rows=snapshot_rows or _no_rows,
        )
        metrics.lag_of(self.lag)
        metrics.phase("starting")
        self._settings = settings
        self._stop = stop
        self._phase: Phase = "starting"
        self._phase_since_us = clock()
        self._is_first_life = True
        # The loss that the next life accepts, and what told of it.
        self._lost: tuple[Accepting, BaseException] | None = None
        self._life: Life
        self._journal: Journal
        self._lease: Lease
        self._identity: SourceIdentity | None = None
        self._caught_up: LogPosition | None = None
        self._streaming: Streaming | None = None
        self._interrupt: asyncio.Timeout | None = None
        self._begin()

    async def run(self) -> None:
        """Stream until asked to stop, or until caught up; then drain and return.

        Raises the TailraceError that ended it. Cancellation is like a kill: a successor redoes
        the rest.
        """
        try:
            while not await self._live_until_changed():
                self._begin()
                self._is_first_life = False
        except Superseded:
            self._world.metrics.superseded()
            raise
        finally:
            self._enter("stopped")

    async def _live_until_changed(self) -> bool:
        """True at a good end; False where a new life begins.

        That is after a failover, an accepted loss, or the initial snapshot that the stream waited
        for.
        """
        try:
            await self._live()
        except BaseExceptionGroup as group:
            cause = first_cause(group)
            if isinstance(cause, StreamStarts):
                self._lost = None
                return False
            if isinstance(cause, SourceChanged):
                _log.warning("source failed over", error=str(cause))
                self._world.events.happened("failover", str(cause))
                self._lost = None
                return False
            if not self._is_accepted(cause):
                raise cause from group
            await asyncio.sleep(_RESTART_SECONDS)
            return False
        return True

    def _is_accepted(self, error: BaseException) -> bool:
        """Whether the operator accepts that loss: it was named by what is durable now."""
        self._lost = None
        loss = acceptable(error, self._journal.state)
        if loss is None:
            return False
        if loss.lost != self._settings.accept_gap:
            explain(error, self._journal.state)
            return False
        _log.warning("this loss is accepted", error=str(error), position=loss.lost)
        self._lost = loss, error
        return True

    def _begin(self) -> None:
        """Know nothing but the configuration."""
        self._life = begin(self._world, self._enter)
        self._journal, self._lease = self._life.journal, self._life.lease
        self._identity = None
        self._streaming = None
        if self._lost is not None:
            self._lease.accepting = self._lost[0]

    def status(self) -> Status:
        """The engine as it is now."""
        state, identity = self._journal.state, self._identity
        failure = self._journal.failure or self._lease.failure
        not_captured = self._world.alarms.of(NOT_CAPTURED)
        lag = self.lag()
        base = Status(
            phase=self._phase,
            since_us=self._phase_since_us,
            release=self._journal.writer.release,
            writer_id=self._journal.writer.id,
            epoch=state.epoch,
            seq=max(state.seq, 0),
            source=identity.database if identity is not None else "",
            lease=identity.lease if identity is not None else "",
            destination=self._settings.destination,
            bucket=self.observer.bucket.status(),
            durable_position=state.durable_position,
            durable_resume=state.durable.resume if state.durable is not None else "",
            durable_commit_us=(
                time_us_of(state.durable.commit_time) if state.durable is not None else 0
            ),
            lag_unit=self._world.source.measures.lag_unit,
            retention=self._world.retention.newest,
            durable_lag_seconds=lag.durable.seconds,
            memory_limit_bytes=self._settings.memory_bytes_max,
            process_memory_bytes=resident_bytes(),
            last_error=str(failure) if failure is not None else "",
            last_error_hint=failure.hint if failure is not None else "",
            alarms=self._world.alarms.standing(),
            alarms_total=self._world.alarms.count,
            not_captured=tuple(
                NotCaptured(alarm.subject, alarm.text, alarm.hint)
                for alarm in not_captured[:NOT_CAPTURED_SHOWN_MAX]
            ),
            not_captured_total=len(not_captured),
            events=self._world.events.newest(),
            history=self.observer.history(),
        )
        return self._streaming.status(base) if self._streaming is not None else base

    def found_tables(self, text: str) -> FoundTables:
        """The captured tables whose name contains `text`; none before this engine streams."""
        if self._streaming is None:
            return FoundTables(total=0, tables=())
        return self._streaming.found_tables(text)

    def lag(self) -> Lag:
        """Both lags now; for any thread."""
        if self._streaming is not None:
            return self._streaming.lag()
        durable = self._journal.state.durable_point
        if durable is None or self._phase not in _TAKING_OVER:
            return Lag()
        # Nothing is read by this process yet. What a predecessor planned and left waits here.
        if not self._journal.state.plans:
            return Lag(durable=NOTHING)
        age = (self._world.clock() - durable.commit_us) / 1e6
        return Lag(durable=Amount(seconds=max(0.0, age)))

    async def _live(self) -> None:
        async with asyncio.TaskGroup() as group, AsyncExitStack() as connection:
            interrupting = group.create_task(self._interrupt_when_asked())
            start = _Connection(connection)
            is_prepared = await self._interruptible(self._prepare_again())
            if is_prepared and await self._interruptible(self._take_over(start, group)):
                assert self._identity is not None
                parts = streaming_parts(self._life, self._identity.database, group)
                self._streaming = Streaming(self._life, parts, group, caught_up=self._caught_up)
                await self._streaming.run(connection, start.stream, self._interruptible)
            interrupting.cancel()
            if start.keeping is not None:
                start.keeping.cancel()

    # --- start

    async def _prepare_again(self) -> None:
        """Prepare; after a failover for as long as it takes: this engine was at work before."""
        while True:
            try:
                return await self._prepare()
            except (SourceUnavailable, DestinationUnavailable) as error:
                if self._is_first_life:
                    raise
                _log.warning("nobody answers after the failover", error=str(error))
                await asyncio.sleep(_RESTART_SECONDS)

    async def _prepare(self) -> None:
        await self._reach()
        # This has no time limit: a source may have to wait for every transaction that is open on
        # the server.
        if self._loss is None or not self._loss.is_anew:
            await self._world.source.prepare(is_first=self._journal.state.seq < 0)
        if self._settings.is_until_caught_up:
            self._caught_up = (await self._world.source.end()).position

    @property
    def _loss(self) -> Accepting | None:
        """The loss that is being accepted, by this start or by an earlier one."""
        return self._lease.accepting or self._journal.state.accepting

    async def _reach(self) -> None:
        """Refuse what cannot work, while the source retains no log for us."""
        needs = Needs(self._life)
        self._identity = await needs.source()
        await needs.journal()
        self._say_unused()
        self._identity = await needs.own_source()
        if self._is_first_life or self._journal.state.seq < 0:
            for neighbour in await needs.prefix(self._identity.database):
                _log.warning("prefixes nested", error=neighbour, hint=NEIGHBOUR_HINT)
        await needs.writes()
        await needs.reads()

    def _say_unused(self) -> None:
        named, state = self._settings.accept_gap, self._journal.state
        if named and self._is_first_life and named != state.durable_position:
            _log.warning(
                "the loss that is to be accepted is none: the journal is durable elsewhere",
                position=state.durable_position,
            )

    async def _take_over(self, start: "_Connection", life: asyncio.TaskGroup) -> None:
        """First the lease, then the journal, then what a predecessor planned and left missing."""
        taken = await self._lease.take(start.connection, self._world.configuration, self._decide)
        self._identity = taken.identity
        self._enter("opening")
        left = await self._uploads_left()
        after = ""

        def check() -> None:
            nonlocal after
            self._refuse_opening(taken)
            # Asked again behind each entry that is absorbed, such as the predecessor's last.
            state = self._journal.state
            after = _after(state.writer, is_released=state.released)

        await self._journal.open(
            self._identity,
            self._world.configuration,
            self._first_durable(taken),
            check=check,
            accepting=self._lease.accepting,
            fork=taken.fork,
            stream_waits=self._settings.stream_waits,
        )
        self._lease.accepting = None
        self._rights.is_at_work = True
        start.keeping = life.create_task(state_keeper(self._life).run())
        state = self._journal.state
        _log.info(
            "journal opened",
            epoch=state.epoch,
            seq=state.seq,
            position=state.durable_position,
            text=after,
        )
        self._world.events.happened("takeover", f"epoch {state.epoch}: {after}")
        self._world.metrics.epoch(state.epoch)
        if state.durable is not None:
            # From now on this engine reports the lag, also where the bucket stalls before the first
            # append.
            self._world.metrics.durable(time_us_of(state.durable.commit_time), self._world.clock())
        if self._lease.is_outdated(taken) or state.accepting is not None or taken.stream is None:
            # A predecessor wrote on while we took the lease: the stream knows too little of it.
            await start.connection.aclose()
        else:
            await self._compare(start, taken.stream)
        await self._abort_uploads(left)
        await self._wait_no_more()
        async with asyncio.TaskGroup() as group:
            await self._recover(start, group)

    def _first_durable(self, taken: "Taken") -> Durable | None:
        """What is durable where no journal is there yet. Nothing is known of what lies before."""
        if taken.standing is None:
            return None
        confirmed = taken.standing.confirmed
        through = self._world.configuration.shown_through
        place = Landmark(confirmed.position, None, through, confirmed.resume)
        now = time_text(self._world.clock())
        return Durable(confirmed.position, confirmed.resume, now, seq=-1, landmark=place)

    def _refuse_opening(self, taken: "Taken") -> None:
        """Raise what forbids to open the journal as it is known now."""
        loss = self._lease.accepting
        if loss is None:
            self._lease.refuse_fork(taken.fork)
        if loss is not None and loss.lost != self._journal.state.durable_position:
            # A predecessor wrote on: that is another loss.
            assert self._lost is not None, "what is accepted was told by an error"
            raise self._lost[1]

    async def _compare(self, start: "_Connection", stream: ChangeStream) -> None:
        try:
            await self._lease.compare(stream)
            start.stream = stream
        except SourceUnavailable as error:
            # The journal is ours: whoever reads next takes the lease again, and compares.
            _log.warning("connection to the source lost", error=str(error))
            self._lease.failed(error)
            await start.connection.aclose()

    async def _wait_no_more(self) -> None:
        """Where an earlier start had the stream wait, and this one is not to: let it start."""
        if self._journal.state.stream_waits and not self._settings.stream_waits:
            await self._journal.append(stream=stream_start(self._journal.state))
            _log.warning("stream does not wait for the initial snapshot any more")

    async def _uploads_left(self) -> tuple[ListedUpload, ...]:
        """What was begun in parts before our `open`: what a successor will begin is not there."""
        try:
            return await uploads_of(self._world.store, self._settings.prefix)
        except DestinationUnavailable as error:
            _log.warning("old uploads not listed", error=str(error))
            return ()

    async def _abort_uploads(self, left: tuple[ListedUpload, ...]) -> None:
        """What a dead writer began in parts. Its objects are planned: they will be looked up."""
        if not left:
            return
        named = await lists(self._life).uploads_of(self._journal.state.named_attempts)
        try:
            aborted = await abort_uploads(self._world.store, left, spared=named)
        except DestinationUnavailable as error:
            # Leftover parts cost storage, nothing else; the next start tries again.
            _log.warning("old uploads not aborted", error=str(error))
            return
        if aborted:
            _log.info("old uploads aborted", uploads=aborted)

    async def _recover(self, start: "_Connection", group: asyncio.TaskGroup) -> None:
        redoing = recovery(self._life, group, on_pass=lambda: self._enter("redo"))
        if self._journal.state.accepting is not None:
            settling = acceptance(self._life, redoing)
            start.stream = await settling.settle(start.connection, self._decide)
        missing = await redoing.missing()
        if missing:
            self._enter("redo")
            start.stream = None
            await start.connection.aclose()
            await redoing.redo(missing)

    def _decide(self, relation: Relation, position: Position) -> TableVersion | None:
        assert self._streaming is not None, "nothing is read before the journal is open"
        return self._streaming.reception.decide(relation, position)

    # --- asked to stop

    async def _interrupt_when_asked(self) -> None:
        await self._stop.requested.wait()
        if self._interrupt is not None:
            self._interrupt.reschedule(asyncio.get_running_loop().time())

    async def _interruptible(self, work: Coroutine[None, None, None]) -> bool:
        """Run `work` until it is done or a stop is requested. True when it was done."""
        if self._stop.requested.is_set():
            work.close()
            return False
        interrupt = self._interrupt = asyncio.timeout(None)
        try:
            async with interrupt:
                await work
        except TimeoutError:
            if not interrupt.expired():
                raise
            return False
        finally:
            self._interrupt = None
        return True

    def _enter(self, phase: Phase) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        self._phase_since_us = self._world.clock()
        # A standby has proved what a start needs, and waits as one that is at work does.
        self._rights.is_at_work |= phase == "standby"
        self._world.metrics.source_connected(phase in _CONNECTED)
        self._world.metrics.phase(phase)
        self._world.events.happened("phase", phase)
        _log.info("phase", phase=phase, cpu_seconds=round(time.process_time(), 3))


def _after(before: Writer | None, *, is_released: bool) -> str:
    """Whose journal it was."""
    if before is None:
        return "the journal is new"
    ended = "ended well" if is_released else "was killed, or may still run"
    return f"taken over from {before.task} (writer {before.id}), which {ended}"


def _no_rows() -> int:
    return 0


@dataclass(slots=True)
class _Connection:
    """The connection that a start holds: its stack, and the stream while it may be read.

    `keeping` is who keeps the newest state file young, once the journal is ours.
    """

    connection: AsyncExitStack
    stream: ChangeStream | None = None
    keeping: asyncio.Task[None] | None = None
