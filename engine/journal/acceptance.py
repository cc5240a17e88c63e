"""Accepting a loss: changes that the source does not have any more become a gap, and it goes on.

Strategy: an operator names the loss by E. The `open` says that it is being accepted; so whoever
opens the journal next goes on with it. Then what keeps the log is made anew, if it has to be, the
lease is taken, planned objects that nobody can make any more are made void, and one entry ends it:
the gaps, and the place from which the log is read.

Invariant: nothing in the source is changed before the journal says that a loss is being accepted,
and the journal goes on at a place behind everything that it names of a log that is another one now.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack

import structlog

from engine.journal.entry import Accepting, Durable, Gap, JournalState, time_text
from engine.journal.gaps import LOST, GapRegister
from engine.journal.journal import Journal
from engine.journal.lease import Lease
from engine.journal.recovery import Plan, Recovery
from engine.model.errors import ForeignPrefix, PositionLost, TailraceError
from engine.model.history import Landmark
from engine.model.interfaces import ChangeStream, Clock
from engine.model.log_point import LogPoint
from engine.model.position import LogPosition, behind, commit_of
from engine.model.record import RecordConfiguration
from engine.model.schema import Decide

_log = structlog.get_logger(__name__)


def acceptable(error: TailraceError | BaseException, state: JournalState) -> Accepting | None:
    """What would be accepted of that error; None where it is no loss of what `state` tells of."""
    if state.durable is None:
        return None
    match error:
        case PositionLost():
            return Accepting(state.durable.position, error.loss, str(error))
        case ForeignPrefix(is_elsewhere=True):
            return Accepting(state.durable.position, "history", str(error))
        case _:
            return None


def explain(error: BaseException, state: JournalState) -> None:
    """Have the hint of an error that is a loss say how it is accepted."""
    loss = acceptable(error, state)
    if loss is not None and isinstance(error, TailraceError):
        before = f"{error.hint.rstrip('.')}. " if error.hint else ""
        error.hint = (
            f"{before}Or go on with a gap, which snapshots fill where they are on: `tailrace"
            f" run --accept-gap {loss.lost}` (docs/operations.md says what it costs)."
        )


class Acceptance:
    """Ends a loss that is being accepted; the journal has to be ours."""

    def __init__(
        self,
        *,
        journal: Journal,
        lease: Lease,
        recovery: Recovery,
        configuration: RecordConfiguration,
        clock: Clock,
    ) -> None:
        self._journal = journal
        self._lease = lease
        self._recovery = recovery
        self._configuration = configuration
        self._clock = clock

    async def settle(self, stack: AsyncExitStack, decide: Decide) -> ChangeStream:
        """State the gaps and where it goes on. The stream from there is entered into `stack`.

        Waits for the lease, and for the bucket. Raises PositionLost where a larger loss shows,
        Superseded, SourceChanged. Cancellation is like a kill: whoever opens next goes on.
        """
        stream, start = await self._lease.retake_anew(stack, self._configuration, decide)
        self._refuse_disorder(start)
        missing = await self._recovery.missing()
        void = [plan for plan in missing if _is_void(plan, start.position)]
        await self._recovery.void(void, self._clock())
        rest = [plan for plan in missing if not _is_void(plan, start.position)]
        gaps = self._gaps(start.position)
        await self._journal.append(durable=self._durable(start, rest), gaps=gaps, accepted=True)
        _log.error(
            "a loss was accepted",
            count=len(gaps),
            position=start.position,
            hint="each table has a gap: with snapshots on it is read again, else compare it with"
            " the bucket; take --accept-gap out of the command",
        )
        stream.acknowledge(start)
        return stream

    def _refuse_disorder(self, start: LogPoint) -> None:
        """Raise PositionLost where positions would not grow from what the journal names."""
        state = self._journal.state
        loss = state.accepting
        assert loss is not None, "a loss is being accepted"
        seen: str = state.durable_position
        if loss.is_anew:
            planned = (frontier.last for frontier in state.frontiers.values())
            seen = max((seen, state.snapshot_position, *planned))
        if start.position <= seen:
            raise PositionLost(
                f"the source goes on at {start.resume}, which is not behind what is in the bucket:"
                " its log is another one",
                hint="The server was restored, or is another one.",
            )

    def _durable(self, start: LogPoint, rest: Sequence[Plan]) -> Durable:
        state, configuration = self._journal.state, self._configuration
        assert state.durable is not None, "what is lost comes behind something"
        seq = min((plan[0].seq for plan in rest), default=state.next_seq) - 1
        is_on = configuration.snapshot != "never"
        return Durable(
            position=start.position,
            resume=start.resume,
            commit_time=time_text(self._clock()),
            seq=max(seq, state.durable_seq),
            unfinished=state.known(configuration) if is_on else (),
            watched=state.durable.watched,
            landmark=Landmark(start.position, None, configuration.shown_through, start.resume),
        )

    def _gaps(self, start: LogPosition) -> tuple[Gap, ...]:
        """One of each known table, up to where it goes on: void objects have ends of their own.

        Also those that an engine made which died before it stated the gaps: what is in front of
        their ends is read as planned, whoever made them.
        """
        state, loss = self._journal.state, self._journal.state.accepting
        assert loss is not None, "a loss is being accepted"
        void = (plan for plan in state.plans.values() if any(s.planned.is_void for s in plan))
        ends = {
            plan[0].planned.table: behind(commit_of(plan[0].planned.last))
            for plan in sorted(void, key=lambda plan: plan[0].planned.last)
        }
        register = GapRegister(state, self._clock)
        for table in state.known(self._configuration):
            register.state(
                table,
                after=loss.lost,
                until=max(start, ends.get(table, start)),
                reason=LOST,
                text=loss.text,
            )
        return register.pending


def _is_void(plan: Plan, start: LogPosition) -> bool:
    """Whether nobody can make it any more. What was called void before stays so."""
    return plan[0].planned.first < start or any(s.planned.is_void for s in plan)
