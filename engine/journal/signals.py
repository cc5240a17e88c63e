"""Signals: what somebody asks of the running engine by way of the source's own log, done once.

Strategy: a signal is a request that comes with the stream, in the order of commits. It is judged
and done when it is read, in one step with the intake that holds it. What it leads to and its answer
are in the journal's next entry, so no E passes a signal that has no answer. A replay gives it again
under the same position; what is at or before the newest answered one is over.

Whoever may write to the source may send signals, so they have a limit: a flood costs one line of
the log in a while, and neither entries of the journal nor snapshots.

Invariant: no signal is done twice, and none that was done is without its answer.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import structlog

from engine.journal.entry import Answer, JournalState
from engine.journal.requests import Deed, answered
from engine.model.batch import Signal
from engine.model.interfaces import Clock
from engine.model.plural import counted
from engine.model.request import REQUEST_BYTES_MAX

SIGNALS_MAX: Final = 20
LIMIT_SECONDS: Final = 60.0
"""So many signals are taken in so many seconds; others are dropped."""

SignalOutcome = Literal["done", "refused", "dropped", "ignored"]

_log = structlog.get_logger(__name__)


class SignalRegister:
    """What this writer knows of signals. `wake` is called when there is an answer to append."""

    def __init__(
        self,
        *,
        state: JournalState,
        deeds: Mapping[str, Deed],
        clock: Clock,
        wake: Callable[[], None],
        count: Callable[[SignalOutcome], None],
    ) -> None:
        """`count` is told what becomes of each signal."""
        self._state = state
        self._deeds = deeds
        self._clock = clock
        self._wake = wake
        self._count = count
        self._pending: dict[str, Answer] = {}
        self._judged_through = state.signals_through
        self._taken_at: deque[float] = deque(maxlen=SIGNALS_MAX)
        self._told_at: dict[SignalOutcome, float] = {}

    def take(self, signals: Sequence[Signal], now: float) -> None:
        """Do what they ask, or refuse it, in the stream's order. Never waits.

        `now` is the loop's time. A signal that was answered, or dropped by this writer, is passed
        over. One that belongs to no transaction has no place in the order of commits, and is
        ignored.
        """
        for signal in signals:
            if not signal.position:
                self._tell("ignored", "a signal outside a transaction is ignored", now)
            elif self._is_new(signal):
                self._take(signal, now)

    def _is_new(self, signal: Signal) -> bool:
        is_behind = signal.position >= self._state.durable_position
        return is_behind and signal.position > self._judged_through

    def _take(self, signal: Signal, now: float) -> None:
        # One that is dropped stays so, also where the source shows it again after a reconnect. An
        # entry that is under way may state an E behind it.
        self._judged_through = signal.position
        is_full = len(self._taken_at) == SIGNALS_MAX
        if is_full and now - self._taken_at[0] < LIMIT_SECONDS:
            self._tell("dropped", "too many signals: some are dropped", now)
            return
        self._taken_at.append(now)
        refusal = ""
        if signal.size_bytes > REQUEST_BYTES_MAX:
            size = counted(signal.size_bytes, "byte")
            most = counted(REQUEST_BYTES_MAX, "byte")
            refusal = f"it has {size}, and a request has {most} at most"
        answer = answered(
            self._deeds, signal.position, signal.content, self._clock(), refusal=refusal
        )
        self._pending[signal.position] = answer
        self._count(answer.outcome)
        self._wake()

    def _tell(self, outcome: SignalOutcome, event: str, now: float) -> None:
        self._count(outcome)
        told_at = self._told_at.get(outcome)
        if told_at is None or now - told_at >= LIMIT_SECONDS:
            self._told_at[outcome] = now
            _log.warning(event)

    # --- for the committer

    @property
    def pending(self) -> tuple[Answer, ...]:
        """What the next entry has to say, beside what the signals led to."""
        return tuple(self._pending.values())

    def journalled(self, answers: Sequence[Answer]) -> None:
        """The journal has these answers."""
        for answer in answers:
            del self._pending[answer.name]
