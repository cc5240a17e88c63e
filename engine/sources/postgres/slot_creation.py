"""Making the replication slot, and saying what that waits for.

Strategy: PostgreSQL makes a slot when every transaction that was open before has ended. A prepared
transaction that somebody forgot, or a session left open overnight, holds it up for as long. So a
second session looks while the first one waits, and an alarm names the transaction, its age and its
owner. The same is said where another process makes the slot: an engine that was killed meanwhile
leaves its backend behind, which goes on waiting and holds the slot's name.

Invariant: a slot that is still being made belongs to nobody: no engine stands by behind it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import psycopg
import structlog

from engine.model.errors import SourceError, SourceFailed, SourceRefused
from engine.operate.alarms import Alarms
from engine.sources.postgres.session import Query, Session
from engine.sources.postgres.slot import Slot, read_slot

WAITS: Final = "slot-creation-waits"
"""The alarm while the slot is being made and has to wait."""

LOOK_SECONDS: Final = 1.0
"""Between two looks at what is waited for."""

_AGAIN_SECONDS_MAX: Final = 30.0

# Our role sees pid, user and database of every session; age and state where pg_read_all_stats lets
# it.
_WAITED_FOR: Final = """
SELECT s.active_pid, w.transactionid::pg_catalog.text, x.gid, x.owner, x.database,
       extract(epoch FROM pg_catalog.now() OPERATOR(pg_catalog.-) x.prepared)::pg_catalog.int8,
       a.pid, a.usename, a.datname, a.state,
       extract(epoch FROM pg_catalog.now() OPERATOR(pg_catalog.-) a.xact_start)::pg_catalog.int8,
       pg_catalog.pg_is_in_recovery()
FROM pg_catalog.pg_replication_slots AS s
LEFT JOIN pg_catalog.pg_locks AS w
  ON w.pid OPERATOR(pg_catalog.=) s.active_pid AND NOT w.granted
 AND w.locktype OPERATOR(pg_catalog.=) 'transactionid'
LEFT JOIN pg_catalog.pg_locks AS h
  ON h.transactionid OPERATOR(pg_catalog.=) w.transactionid AND h.granted
 AND h.locktype OPERATOR(pg_catalog.=) 'transactionid'
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid OPERATOR(pg_catalog.=) h.pid
LEFT JOIN pg_catalog.pg_prepared_xacts AS x
  ON x.transaction OPERATOR(pg_catalog.=) w.transactionid
WHERE s.slot_name OPERATOR(pg_catalog.=) %s::pg_catalog.name
LIMIT 1
"""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a slot that is being made waits for. Ages are seconds; None where nobody tells."""

    maker_pid: int
    transaction: str | None
    prepared_name: str | None
    prepared_by: str | None
    prepared_in: str | None
    prepared_seconds: int | None
    open_pid: int | None
    open_by: str | None
    open_in: str | None
    open_state: str | None
    open_seconds: int | None
    is_standby: bool

    @property
    def text(self) -> str:
        """For whom or what it waits, in one clause."""
        if self.prepared_name is not None:
            return (
                f"it waits for the prepared transaction {self.prepared_name!r} of"
                f" {self.prepared_by!r} in database {self.prepared_in!r}"
                f"{_age(self.prepared_seconds)}"
            )
        if self.open_pid is not None:
            state = f", {self.open_state}" if self.open_state else ""
            return (
                f"it waits for a transaction of process {self.open_pid}, {self.open_by!r} in"
                f" database {self.open_in!r}{state}{_age(self.open_seconds)}"
            )
        if self.is_standby:
            return "it waits until the primary writes which transactions run there"
        return "it waits until transactions that were open before have ended"

    @property
    def hint(self) -> str:
        """What lets it go on."""
        if self.prepared_name is not None:
            name = self.prepared_name.replace("'", "''")
            return f"end it in its database: ROLLBACK PREPARED '{name}' or COMMIT PREPARED '{name}'"
        if self.open_pid is not None:
            return f"end that transaction, or SELECT pg_terminate_backend({self.open_pid})"
        if self.is_standby:
            return "on the primary, PostgreSQL 16 or newer: SELECT pg_log_standby_snapshot()"
        return "pg_stat_activity and pg_prepared_xacts show them"


def _age(seconds: int | None) -> str:
    return "" if seconds is None else f", for {seconds} s"


async def make_slot(session: Session, name: str, query: Query, alarms: Alarms) -> None:
    """Make the slot by `query`, or have it made by who is at it already; waits for both.

    Raises SourceError. Cancellation may leave the server making it.
    """
    failure_count = 0
    while not (await _settled(session, name, alarms)).exists:
        try:
            async with watched(session, name, alarms, "creating the replication slot"):
                await session.rows(query, name, doing="creating the replication slot")
        except SourceFailed as error:
            # A cancelled query, a lock not had in time: these pass.
            failure_count += 1
            _log.warning("slot not made", error=str(error), failures=failure_count)
            await asyncio.sleep(min(2.0 ** min(failure_count - 1, 6), _AGAIN_SECONDS_MAX))
        except SourceRefused as error:
            # Another engine began it a moment ago.
            if not isinstance(error.__cause__, psycopg.errors.DuplicateObject):
                raise


async def _settled(session: Session, name: str, alarms: Alarms) -> Slot:
    """The slot when nobody is making it: there, or not."""
    slot = await read_slot(session, name)
    if not slot.is_being_made:
        return slot
    _log.info("another process makes the replication slot", subject=name, pid=slot.active_pid)
    doing = "waiting for another process that makes the replication slot"
    async with watched(session, name, alarms, doing):
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            slot = await read_slot(session, name)
            if not slot.is_being_made:
                return slot


@asynccontextmanager
async def watched(session: Session, name: str, alarms: Alarms, doing: str) -> AsyncIterator[None]:
    """Alarm, beside the body, what the slot's making waits for.

    Cancellation ends the body and clears the alarm.
    """
    failure: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group, session.another() as looking:
            watching = group.create_task(_watch(looking, name, alarms, doing))
            try:
                yield
            except Exception as error:  # noqa: BLE001 - raised below, bare: it is not the group's
                failure = error
            finally:
                watching.cancel()
    finally:
        alarms.clear(WAITS, name)
    if failure is not None:
        raise failure


async def _watch(session: Session, name: str, alarms: Alarms, doing: str) -> None:
    told = None
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            waiting = await waited_for(session, name)
        except SourceError as error:
            _log.debug("what the slot waits for is not known", error=str(error))
            continue
        if waiting is None:
            continue
        text = f"{doing} {name!r} (process {waiting.maker_pid}): {waiting.text}"
        alarms.set(WAITS, text, subject=name, hint=waiting.hint)
        blocker = (waiting.transaction, waiting.prepared_name, waiting.open_pid)
        if told is not None and told != blocker:
            _log.warning("the replication slot waits for another one", subject=name, reason=text)
        told = blocker


async def waited_for(session: Session, name: str) -> Waiting | None:
    """What the slot's making waits for now; None where nobody makes it. Raises SourceError.

    Cancellation changes nothing.
    """
    found = await session.rows(_WAITED_FOR, name, doing="looking at what the slot waits for")
    return Waiting(*found[0]) if found and found[0][0] is not None else None
