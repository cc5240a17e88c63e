"""Alarms: conditions that stand until somebody mends them.

Strategy: whoever sees a condition sets its alarm, once or again at each look. Whoever sees that it
is over clears the alarm. Alarms are told apart by code and subject (a table; empty where there is
only one). An alarm is logged once when it begins and once when it ends. In between `/status`, the
page and a gauge show it. So the log of a condition that lasts for days has two lines.

Invariant: neither text nor hint carries row values or secrets, so whoever can reach the port may
read them.
"""

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec
import structlog

from engine.model.interfaces import Clock
from engine.operate.events import Events

SHOWN_MAX: Final = 100
"""Alarms that `/status` lists; `alarms_total` counts all of them."""

_LOGGED_AT_ONCE_MAX: Final = 20
"""Lines that one call of `replace` logs. If 5,000 tables are not published, one more line gives the
rest as a number."""

_log = structlog.get_logger(__name__)


class Alarm(msgspec.Struct, frozen=True):
    """One condition: what stands since when, and what mends it.

    `code` is a stable word in kebab case, `since_us` Unix microseconds.
    """

    code: str
    subject: str
    text: str
    hint: str
    since_us: int


class Cause(msgspec.Struct, frozen=True):
    """What an alarm says: `text` what is wrong, `hint` the command or the SQL that mends it."""

    text: str
    hint: str = ""


class AlarmObserver(Protocol):
    """Who is told how many alarms stand (the metrics)."""

    def alarms(self, code: str, count: int) -> None:
        """So many alarms of that code stand now."""
        ...


class Alarms:
    """The alarms of one engine. Nothing here waits."""

    def __init__(self, clock: Clock, observer: AlarmObserver | None = None) -> None:
        self.events = Events(clock)
        """What happened to this engine; alarms that begin and end are among it."""
        self._clock = clock
        self._observer = observer
        self._standing: dict[str, dict[str, Alarm]] = {}

    @property
    def count(self) -> int:
        """How many stand."""
        return sum(map(len, self._standing.values()))

    def standing(self, limit: int = SHOWN_MAX) -> tuple[Alarm, ...]:
        """The alarms that stand, the oldest first, `limit` at most."""
        every = [alarm for alarms in self._standing.values() for alarm in alarms.values()]
        return tuple(sorted(every, key=_age)[:limit])

    def of(self, code: str) -> tuple[Alarm, ...]:
        """The alarms of that code that stand, by subject."""
        return tuple(sorted(self._standing.get(code, {}).values(), key=_subject))

    def is_set(self, code: str, subject: str = "") -> bool:
        """Whether that alarm stands."""
        return subject in self._standing.get(code, {})

    def set(self, code: str, text: str, *, subject: str = "", hint: str = "") -> None:
        """Let the alarm stand. One that stands already keeps its time and takes the new text."""
        alarms = self._standing.setdefault(code, {})
        if self._put(code, subject, Cause(text, hint)):
            self._tell_begun(alarms[subject])
            self._count(code)

    def clear(self, code: str, subject: str = "") -> None:
        """End the alarm, where it stands."""
        alarm = self._standing.get(code, {}).pop(subject, None)
        if alarm is not None:
            self._tell_over(alarm)
            self._count(code)

    def replace(self, code: str, causes: Mapping[str, Cause]) -> None:
        """Let exactly these subjects' alarms of `code` stand: the result of a whole look."""
        alarms = self._standing.setdefault(code, {})
        over = [alarms.pop(subject) for subject in [*alarms] if subject not in causes]
        begun = [subject for subject, cause in causes.items() if self._put(code, subject, cause)]
        for subject in begun[:_LOGGED_AT_ONCE_MAX]:
            self._tell_begun(alarms[subject])
        if len(begun) > _LOGGED_AT_ONCE_MAX:
            _log.error(
                "more alarms",
                code=code,
                count=len(begun) - _LOGGED_AT_ONCE_MAX,
                hint="what mends one of this code mends the others; /status lists the oldest 100",
            )
        for alarm in over[:_LOGGED_AT_ONCE_MAX]:
            self._tell_over(alarm)
        if len(over) > _LOGGED_AT_ONCE_MAX:
            _log.info("more alarms over", code=code, count=len(over) - _LOGGED_AT_ONCE_MAX)
        if begun or over:
            self._count(code)

    def _tell_begun(self, alarm: Alarm) -> None:
        code, subject, text, hint = alarm.code, alarm.subject, alarm.text, alarm.hint
        _log.error("alarm", code=code, subject=subject, text=text, hint=hint)
        self.events.happened("alarm", f"{code}: {text}", subject=subject)

    def _tell_over(self, alarm: Alarm) -> None:
        _log.info("alarm over", code=alarm.code, subject=alarm.subject)
        self.events.happened("alarm-over", f"{alarm.code} is over", subject=alarm.subject)

    def _put(self, code: str, subject: str, cause: Cause) -> bool:
        """Whether the alarm is a new one."""
        alarms = self._standing[code]
        known = alarms.get(subject)
        since_us = known.since_us if known is not None else self._clock()
        alarms[subject] = Alarm(code, subject, cause.text, cause.hint, since_us)
        return known is None

    def _count(self, code: str) -> None:
        if self._observer is not None:
            self._observer.alarms(code, len(self._standing[code]))


def _age(alarm: Alarm) -> tuple[int, str, str]:
    return (alarm.since_us, alarm.code, alarm.subject)


def _subject(alarm: Alarm) -> str:
    return alarm.subject
