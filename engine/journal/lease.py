"""Holding the lease: every connection to the source, compared with the journal before it counts.

A source gives its lease to one reader at a time.

Strategy: a start takes the lease first and opens the journal after that; a reconnect and a redo
pass come back with the journal theirs already. Both then compare what the source says with E,
before any message counts and before the source is told anything.

A source that fails with the same error at the same position is given pauses that grow, in the phase
`failing`, with an alarm: see `recurrence`.

Invariant: a stream that leaves this module is compared and acknowledges E, never more.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from engine.journal.entry import Accepting
from engine.journal.journal import Journal
from engine.journal.recurrence import Recurrence
from engine.model.errors import (
    LeaseHeld,
    PositionLost,
    SourceChanged,
    SourceError,
    SourceFailed,
    SourceUnavailable,
    Superseded,
)
from engine.model.history import Landmark, newest
from engine.model.interfaces import ChangeStream, Source, SourceIdentity, Standing
from engine.model.log_point import LogPoint, place_text
from engine.model.position import LOG_BEGIN, NOWHERE, LogPosition
from engine.model.record import RecordConfiguration
from engine.model.schema import Decide
from engine.operate.alarms import Alarms
from engine.operate.status import Phase

_RETRY_SECONDS_FIRST = 0.2
_RETRY_SECONDS_MAX = 5.0
# One line a minute or so through a long outage.
_LOGGED_EVERY = 24

FAILING: Final = "source-failing"
"""The alarm while the source fails with the same error at the same position."""

_Connected = TypeVar("_Connected")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """The lease, held for the first time: the stream, how the source stands, and whose it is.

    `fork` is where the source left the journal's branch of history; None where it did not. `seq` is
    the last entry that was known when the stream began. There is no stream, and nobody stands
    anywhere, where a loss is being accepted and the source has nothing to read from.
    """

    stream: ChangeStream | None
    standing: Standing | None
    identity: SourceIdentity
    fork: LogPosition | None
    seq: int


class Lease:
    """The source's lease, as this process gets and keeps it."""

    def __init__(
        self,
        source: Source,
        journal: Journal,
        *,
        standby_interval: float,
        on_phase: Callable[[Phase], None],
        alarms: Alarms,
    ) -> None:
        self._source = source
        self._journal = journal
        self._standby_interval = standby_interval
        self._on_phase = on_phase
        self._alarms = alarms
        # After a failover another server is asked: the last one's failure says nothing of it.
        alarms.clear(FAILING)
        self._recurrence = Recurrence()
        self._failure_count = 0
        self._is_standing_by = False
        self.failure: SourceError | None = None
        # What an operator accepts at this start, until the journal says so.
        self.accepting: Accepting | None = None

    @property
    def _loss(self) -> Accepting | None:
        """The loss that is being accepted, by this start or by an earlier one."""
        return self.accepting or self._journal.state.accepting

    @property
    def is_failing(self) -> bool:
        """Whether the source fails with the same error at the same position."""
        return self._recurrence.is_standing

    def failed(self, error: SourceUnavailable, read: LogPoint | None = None) -> None:
        """The source gave up on us when everything durable, or before `read`, was read."""
        self.failure = error
        point = self._furthest(read)
        self._recurrence.failed(error, point.position if point is not None else LOG_BEGIN)
        if not self.is_failing:
            return
        self._on_phase("failing")
        if isinstance(error, SourceFailed):
            at = f" at {place_text(point.position, point.resume)}" if point is not None else ""
            text = f"the source fails{at} again and again: {error}"
            self._alarms.set(FAILING, text, hint=error.hint)

    def reached(self, read: LogPoint | None) -> None:
        """Everything before `read`, and what is durable, was read: a failure there is over."""
        if (point := self._furthest(read)) is not None:
            self._recurrence.reached(point.position)
        self._end_alarm()

    def _furthest(self, read: LogPoint | None) -> LogPoint | None:
        durable = self._journal.state.durable_point
        if read is None or (durable is not None and durable.position > read.position):
            return durable
        return read

    def caught_up(self) -> None:
        """Everything that the source has was read: no failure waits."""
        self._recurrence.forget()
        self._end_alarm()

    def _end_alarm(self) -> None:
        if not self.is_failing:
            self._alarms.clear(FAILING)

    def _held(self) -> None:
        self._failure_count = 0
        self._is_standing_by = False
        self.failure = None

    async def take(
        self, stack: AsyncExitStack, configuration: RecordConfiguration, decide: Decide
    ) -> "Taken":
        """Hold the lease for the first time, standing by while another engine holds it.

        The stream is entered into `stack` and not compared yet: the journal has to be opened first.
        Raises ForeignPrefix, PositionLost. Cancellation leaves no stream open, and `stack` as
        it was.
        """
        wait = _RETRY_SECONDS_FIRST
        while True:
            attempt = AsyncExitStack()
            try:
                identity = await self.identify()
                seq = self._journal.state.seq
                stream, standing = await self._first(attempt, configuration, decide)
                fork = await self._fork_of_same(identity)
            except LeaseHeld as held:
                # Whoever reads has lost nothing, or accepts it himself.
                self.accepting = None
                await self._stand_by(held)
            except SourceUnavailable as error:
                await attempt.aclose()
                self._not_taken(error)
                # However long the source is away, the journal's end stays in sight.
                if await self._journal.follow():
                    # Somebody read meanwhile: what this start accepts was judged by less.
                    self.accepting = None
                await asyncio.sleep(max(wait, self._recurrence.pause_seconds))
                wait = min(2 * wait, _RETRY_SECONDS_MAX)
            except BaseException:
                await attempt.aclose()
                raise
            else:
                self._held()
                stack.push_async_exit(attempt)
                return Taken(stream, standing, identity, fork, seq)

    async def _first(
        self, attempt: AsyncExitStack, configuration: RecordConfiguration, decide: Decide
    ) -> tuple[ChangeStream | None, Standing | None]:
        loss = self._loss
        # Where a loss is being accepted, the source alone knows where it can be read from.
        start = self._journal.state.durable_point if loss is None else None
        landmark = self._landmark(configuration, None) if loss is None else None
        try:
            stream = await attempt.enter_async_context(
                self._source.stream(start, configuration, decide, landmark=landmark)
            )
            return stream, await stream.standing()
        except PositionLost:
            if loss is None or not loss.is_anew:
                raise
            return None, None

    def _not_taken(self, error: SourceUnavailable) -> None:
        # A standby that does not reach the source could not take over: it is not a healthy one.
        if self._is_standing_by:
            self._on_phase("reconnecting")
        self._log_failure(error)
        self.failed(error)

    async def _stand_by(self, held: LeaseHeld) -> None:
        _log.debug("standing by", reason=str(held))
        self._is_standing_by = True
        self.failure = None
        # Who holds the lease knows better than we whether the source fails.
        self.caught_up()
        self._on_phase("standby")
        await self._journal.follow()
        await asyncio.sleep(self._standby_interval)

    async def retake(
        self,
        stack: AsyncExitStack,
        configuration: RecordConfiguration,
        decide: Decide,
        *,
        received: Landmark | None = None,
        single_rows: bool = False,
    ) -> ChangeStream:
        """Hold the lease again while the journal is ours; waits for it.

        `received` is the newest commit of which this process has read anything. The stream,
        compared, is entered into `stack`. Raises Superseded, PositionLost, SourceChanged.
        Cancellation leaves no stream open, and `stack` as it was.
        """

        async def connect(attempt: AsyncExitStack) -> ChangeStream:
            began = self._journal.state.durable_point
            stream = await attempt.enter_async_context(
                self._source.stream(
                    began,
                    configuration,
                    decide,
                    landmark=self._landmark(configuration, received),
                    single_rows=single_rows,
                )
            )
            await self._refuse_other_branch()
            await self.compare(stream, began)
            return stream

        return await self._again(stack, connect)

    async def retake_anew(
        self, stack: AsyncExitStack, configuration: RecordConfiguration, decide: Decide
    ) -> tuple[ChangeStream, LogPoint]:
        """Hold the lease where a loss is being accepted: the stream, and where the log begins anew.

        The journal has to be ours: what keeps the log is made anew first, if it has to be. Nothing
        is acknowledged. Raises Superseded, PositionLost, SourceChanged. Cancellation leaves no
        stream open and `stack` as it was; what keeps the log may be new, or missing.
        """
        loss = self._journal.state.accepting
        assert loss is not None, "a loss is being accepted"
        is_kept = not loss.is_anew

        async def connect(attempt: AsyncExitStack) -> tuple[ChangeStream, LogPoint]:
            nonlocal is_kept
            await self._refuse_other_branch()
            if not is_kept:
                await self._source.renew()
                is_kept = True
            stream = await attempt.enter_async_context(
                self._source.stream(None, configuration, decide)
            )
            return stream, (await stream.standing()).confirmed

        return await self._again(stack, connect)

    async def _again(
        self, stack: AsyncExitStack, connect: Callable[[AsyncExitStack], Awaitable[_Connected]]
    ) -> _Connected:
        wait = _RETRY_SECONDS_FIRST
        await asyncio.sleep(self._recurrence.pause_seconds)
        while True:
            # The answer of an append in flight may move E, or tell that we are superseded.
            await self._journal.quiet()
            attempt = AsyncExitStack()
            try:
                connected = await connect(attempt)
            except (LeaseHeld, SourceUnavailable) as error:
                await attempt.aclose()
                await self._refuse_superseded()
                self._not_retaken(error)
                wait_now = min(wait, self._standby_interval)
                await asyncio.sleep(max(wait_now, self._recurrence.pause_seconds))
                wait = min(2 * wait, _RETRY_SECONDS_MAX)
            except BaseException:
                await attempt.aclose()
                raise
            else:
                self._held()
                stack.push_async_exit(attempt)
                return connected

    def _not_retaken(self, error: LeaseHeld | SourceUnavailable) -> None:
        self.failure = error
        self._log_failure(error)
        if isinstance(error, SourceUnavailable):
            self.failed(error)

    def _log_failure(self, error: SourceError) -> None:
        # A failure that stands has its alarm.
        if self._failure_count % _LOGGED_EVERY == 0 and not self.is_failing:
            _log.warning("source unavailable", error=str(error), failures=self._failure_count + 1)
        self._failure_count += 1

    def _landmark(
        self, configuration: RecordConfiguration, received: Landmark | None
    ) -> Landmark | None:
        """By which commit the source's log has to be known again, read under `configuration`."""
        known = newest(self._journal.state.landmark, received)
        # Through something else, other commits may show.
        return known if known is None or known.through == configuration.shown_through else None

    def is_outdated(self, taken: Taken) -> bool:
        """Whether a predecessor wrote on after the stream began: it is judged by too little."""
        return self._journal.state.seq > taken.seq + 1

    async def compare(self, stream: ChangeStream, began: LogPoint | None = None) -> None:
        """Raise PositionLost when the source contradicts the journal; else acknowledge E.

        Past E while the journal's tail is still ours means that changes are lost; if it is not
        ours, a successor took them and we are superseded. Where the stream `began` at an earlier E,
        a log that ends before the present one may belong to a server that lags behind:
        SourceUnavailable, and the source judges a start at the present E. Cancellation comes before
        anything is acknowledged.
        """
        standing = await stream.standing()
        durable = self._journal.state.durable_point
        assert durable is not None, "a journal is opened with what is durable"
        if durable.position < standing.confirmed.position:
            await self._refuse_superseded()
            raise self._moved(standing, durable)
        if durable.position > standing.end.position:
            if began is not None and began.position < durable.position:
                raise SourceUnavailable(
                    f"the server's log ends at {standing.end.resume}, and the journal became"
                    f" durable up to {durable.resume} while the stream began"
                )
            raise _restored(standing, durable)
        stream.acknowledge(durable)

    def contradiction(self, standing: Standing) -> PositionLost | None:
        """What `compare` would raise where the source stands so; None where it would not.

        For whoever looks without the lease: it says nothing of whose the journal's tail is.
        """
        durable = self._journal.state.durable_point
        if durable is None:
            return None
        if standing.confirmed.position > durable.position:
            return self._moved(standing, durable)
        return _restored(standing, durable) if durable.position > standing.end.position else None

    def _moved(self, standing: Standing, durable: LogPoint) -> PositionLost:
        return PositionLost(
            f"the source was confirmed up to {standing.confirmed.resume}, the journal "
            f"is durable only up to {durable.resume}: what lies between is lost",
            hint=f"Somebody moved or re-made {self._source.keeper}. Start a new prefix.",
            loss="moved",
        )

    async def identify(self) -> SourceIdentity:
        """Who answers now. Raises ForeignPrefix; PositionLost where its history lost changes.

        Where an operator accepts that the log is another one, neither history nor server is
        compared. A smaller loss says nothing of them: a failover since then loses more.
        Cancellation changes nothing.
        """
        self._adopt_generation()
        identity = await self._source.identify()
        self._journal.refuse_foreign(
            identity, self._source.keeper, may_be_elsewhere=self._is_another_log
        )
        if self._is_another_log:
            return identity
        self.refuse_fork(await self._fork(identity))
        return identity

    def _adopt_generation(self) -> None:
        """The source's positions belong to the journal's generation, or begin a new one."""
        known = self._journal.state.source
        if known is not None:
            self._source.adopt(known.generation + self._is_another_log)

    @property
    def _is_another_log(self) -> bool:
        """Whether this start accepts that the source's log is another one."""
        return self.accepting is not None and self.accepting.is_another_log

    async def _fork_of_same(self, identity: SourceIdentity) -> LogPosition | None:
        # A failover since then: the stream may still hold what the new server lacks.
        if await self.identify() != identity:
            raise SourceUnavailable("the source failed over while it was connected to")
        if self.accepting is not None and self.accepting.is_anew:
            # What keeps the log is made anew, and what was read behind that place is forgotten.
            return None
        return await self._fork(identity)

    async def _fork(self, identity: SourceIdentity) -> LogPosition | None:
        known = self._journal.state.source
        if known is None or known.branch == identity.branch:
            return None
        return await self._source.fork(known.branch)

    def refuse_fork(self, fork: LogPosition | None) -> None:
        """Raise PositionLost when the journal, as it is known now, goes past `fork`."""
        if fork is None:
            return
        state = self._journal.state
        frontiers = state.frontiers.values()
        planned = max((frontier.last for frontier in frontiers), default=NOWHERE)
        seen = max(state.durable_position, state.snapshot_position)
        if planned >= fork or seen > fork:
            raise PositionLost(
                f"the server left the journal's branch of its history at {fork}, "
                f"changes up to {max(planned, seen)} are in the bucket",
                hint="The failover lost changes that were streamed. Start a new prefix.",
            )

    async def _refuse_other_branch(self) -> None:
        known, identity = self._journal.state.source, await self.identify()
        if known is not None and known.branch != identity.branch:
            raise SourceChanged(
                f"the source went from branch {known.branch} of its history to {identity.branch}",
                hint="A failover: the engine starts over from the journal.",
            )

    async def _refuse_superseded(self) -> None:
        if await self._journal.tail_moved():
            raise Superseded(
                "another writer opened the journal",
            )


def _restored(standing: Standing, durable: LogPoint) -> PositionLost:
    return PositionLost(
        f"the journal is durable up to {durable.resume}, the server's log ends at "
        f"{standing.end.resume}: it was restored to an earlier time",
        hint="Start a new prefix: this one holds changes that the server has forgotten.",
    )
