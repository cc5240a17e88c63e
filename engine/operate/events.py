"""Recent events: what happened to this engine, newest last, for whoever looks at it now.

Strategy: a ring of limited size. Whoever writes a line of the story into the log notes the event
here as well. Nothing is kept over a restart: the log and the journal have the rest.

Invariant: neither row values nor secrets are in a text, so whoever can reach the port may read it.
"""

from collections import deque
from typing import Final, Literal

import msgspec

from engine.model.interfaces import Clock

EVENTS_MAX: Final = 100

TEXT_CHARACTERS_MAX: Final = 500

EventKind = Literal[
    "phase",
    "takeover",
    "connection-lost",
    "connection-back",
    "failover",
    "bucket-stalled",
    "bucket-back",
    "schema-change",
    "truncation",
    "gap",
    "snapshot-begun",
    "snapshot-finished",
    "paused",
    "resumed",
    "alarm",
    "alarm-over",
]
"""What an event may be. docs/operations.md has a table of them."""


class Event(msgspec.Struct, frozen=True):
    """Something that happened at `time_us` (Unix microseconds).

    `subject` is a table, or whatever else it happened to, empty where that is the engine.
    """

    time_us: int
    kind: EventKind
    subject: str
    text: str


class Events:
    """The newest events of one engine. Nothing here waits."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._newest: deque[Event] = deque(maxlen=EVENTS_MAX)

    def happened(self, kind: EventKind, text: str, *, subject: str = "") -> None:
        """Remember it. A long text is cut."""
        self._newest.append(Event(self._clock(), kind, subject, text[:TEXT_CHARACTERS_MAX]))

    def newest(self) -> tuple[Event, ...]:
        """The events that are remembered, the oldest first."""
        return tuple(self._newest)
