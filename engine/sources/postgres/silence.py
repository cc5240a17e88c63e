"""A walsender that says nothing: it works, or it is gone.

Strategy: silence alone is no evidence. PostgreSQL 15 says nothing for minutes while it skips a
table that was rewritten. Every release says nothing while it decodes one expensive change. If such
a stream is cut, it begins again and never arrives. So after a while another session is asked.

- A walsender that still holds our slot and is busy is at work: we wait, and say so.
- A walsender that waits for us, or for more log, would have answered us. Its words do not arrive.
- Where the other session gets no answer either, the server or the way to it is gone.

Invariant: no stream is given up while the server says that it works for it.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from engine.sources.postgres.session import Session

ALARM: Final = "source-silent"
"""The alarm while the server works and says nothing."""

SILENCE_SECONDS: Final = 30.0
"""Seconds without a word, although the server is asked for one every second. After that another
session is asked."""

ANSWER_SECONDS_MAX: Final = 10.0
"""Seconds for the other session's answer. A busy server may be slow to answer it."""

IDLE_LOOKS: Final = 2
"""Looks in a row that find it idle: at the first one its answer may be on its way."""

# Waiting for us or for more log; everything else, a lock too, is work that may take its time.
_IDLE: Final = frozenset({"Activity", "Client"})

_WALSENDER: Final = """
SELECT s.active_pid, a.wait_event_type, a.wait_event
FROM pg_catalog.pg_replication_slots AS s
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid OPERATOR(pg_catalog.=) s.active_pid
WHERE s.slot_name OPERATOR(pg_catalog.=) %s::pg_catalog.name
"""


class Doing(Enum):
    """What a silent walsender does."""

    WORKS = "works"
    IDLES = "waits for us or for more log"
    GONE = "no longer holds the slot"


@dataclass(frozen=True, slots=True)
class Look:
    """What another session saw of the walsender; `waits_for` as pg_stat_activity names it."""

    doing: Doing
    waits_for: str


async def look_at_walsender(session: Session, slot: str, pid: int) -> Look:
    """What the walsender of that process does for the slot. Raises SourceError.

    Cancellation changes nothing.
    """
    found = await session.rows(_WALSENDER, slot, doing="looking at the silent walsender")
    if not found or found[0][0] != pid:
        return Look(Doing.GONE, "")
    return judged_wait(*found[0][1:])


def judged_wait(kind: str | None, event: str | None) -> Look:
    """What a walsender's wait event says; None and None: it computes."""
    return Look(Doing.IDLES if kind in _IDLE else Doing.WORKS, event or "")
