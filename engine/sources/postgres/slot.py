"""The replication slot: how it stands on the server, and what is wrong with it.

Strategy: servers' messages are translated into the administrator's language, so nothing here reads
them; a refusal is explained from `pg_replication_slots` and the settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import psycopg

from engine.model.errors import (
    LeaseHeld,
    PositionLost,
    SourceError,
    SourceFailed,
    SourceRefused,
    SourceUnavailable,
)
from engine.sources.postgres.session import Session, primary_message, quoted, translated
from engine.sources.postgres.sqlstates import ends_connection, judged

# A row as jsonb: what an older server does not have is null. Since 14: two_phase; 16: conflicting;
# 17: failover, synced, invalidation_reason.
_SLOT: Final = """
SELECT s.slot_type, coalesce(s.plugin, ''), coalesce(s.database, ''), s.active_pid,
       coalesce(s.wal_status, ''), s.confirmed_flush_lsn::pg_catalog.text,
       s.temporary IS TRUE, s.two_phase IS TRUE,
       coalesce(pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.->>) 'synced'
           OPERATOR(pg_catalog.=) 'true', false),
       coalesce(pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.->>) 'invalidation_reason', ''),
       coalesce(pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.->>) 'conflicting'
           OPERATOR(pg_catalog.=) 'true', false),
       pg_catalog.current_database(), pg_catalog.current_setting('wal_level'),
       pg_catalog.current_setting('effective_wal_level', true)
FROM (SELECT) AS one
LEFT JOIN pg_catalog.pg_replication_slots AS s
  ON s.slot_name OPERATOR(pg_catalog.=) %s::pg_catalog.name
"""

PASSES_OVER_VERSION: Final = 180000
"""From this version on, the server passes over changes that were written while the publication did
not exist."""

GAP_HINT: Final = (
    "changes are lost; drop what is left of the slot and start anew under another prefix"
)

MADE_ANEW: Final = "at an empty prefix, `tailrace run` makes the slot itself"

_INVALIDATED: Final[Mapping[str, tuple[str, str]]] = {
    "wal_removed": (
        "removed its log, which had grown over max_slot_wal_keep_size",
        "raise max_slot_wal_keep_size",
    ),
    "rows_removed": (
        "removed rows of the catalog that it needs",
        "set hot_standby_feedback = on, or stream from the primary",
    ),
    "wal_level_insufficient": (
        "found that the log no longer holds what logical decoding needs",
        "keep wal_level = logical on the primary",
    ),
    "idle_timeout": (
        "found that nobody had used it for longer than idle_replication_slot_timeout",
        "raise idle_replication_slot_timeout, or set it to 0",
    ),
}
"""`invalidation_reason`, since PostgreSQL 17: what the server did, and what keeps it from that."""

_CANCELLED: Final = "57014"

WAL_LEVEL_HINT: Final = (
    "ALTER SYSTEM SET wal_level = logical, then restart the server; on RDS and Aurora set"
    " rds.logical_replication = 1 in the parameter group and reboot"
)


@dataclass(frozen=True, slots=True)
class Slot:
    """A row of pg_replication_slots, with where it was asked.

    `confirmed` is None while the slot is still being made. `effective_wal_level` is None before
    PostgreSQL 19.
    """

    name: str
    type: str
    plugin: str
    database: str
    active_pid: int | None
    wal_status: str
    confirmed: str | None
    is_temporary: bool
    is_two_phase: bool
    is_synced: bool
    invalidation_reason: str
    is_conflicting: bool
    current_database: str
    wal_level: str
    effective_wal_level: str | None = None

    @property
    def exists(self) -> bool:
        return bool(self.type)

    @property
    def is_being_made(self) -> bool:
        """Whether somebody makes it at this moment. It vanishes where that does not succeed."""
        return self.type == "logical" and self.confirmed is None and self.active_pid is not None

    def fault(self) -> SourceError | None:
        """Why nothing can be streamed from it; None where nothing is known against it."""
        level = wal_level_fault(self.wal_level, self.effective_wal_level, is_standby=False)
        return level or self.own_fault()

    def own_fault(self) -> SourceError | None:
        """Why nothing can be streamed from it, whatever the server writes into its log."""
        if not self.exists:
            return PositionLost(
                f"there is no replication slot {self.name!r}", hint=GAP_HINT, loss="keeper"
            )
        return self.foreign_fault() or self._invalidated() or self._unusable()

    def foreign_fault(self) -> SourceRefused | None:
        """Why it is not ours; None where it is."""
        foreign = self._foreign()
        if not foreign:
            return None
        return SourceRefused(
            f"the replication slot {self.name!r} {foreign}",
            hint="give source.slot another name, or check dbname in source.dsn",
        )

    def _foreign(self) -> str:
        if self.type != "logical":
            return "is a physical one"
        if self.plugin != "pgoutput":
            return f"uses the plugin {self.plugin}, not pgoutput"
        if self.database != self.current_database:
            return f"belongs to the database {self.database!r}, not to {self.current_database!r}"
        return ""

    def _invalidated(self) -> PositionLost | None:
        """Lost, in the server's own words; None where the slot still has what it needs."""
        if not (self.invalidation_reason or self.is_conflicting or self.wal_status == "lost"):
            return None
        # Before 17 the reason is not named: on a primary only the log's size can be it.
        reason = self.invalidation_reason or (
            "rows_removed" if self.is_conflicting else "wal_removed"
        )
        done, remedy = _INVALIDATED.get(reason, (f"gives the reason {reason!r}", ""))
        return PositionLost(
            f"the server invalidated the replication slot {self.name!r}: it {done}",
            hint="; ".join(filter(None, (GAP_HINT, remedy))),
            loss="keeper",
        )

    def _unusable(self) -> SourceRefused | None:
        """Why what arrives from it could not be used, or would not arrive."""
        anew = f"drop it (pg_drop_replication_slot) or give source.slot another name: {MADE_ANEW}"
        if self.is_two_phase:
            return SourceRefused(
                f"the replication slot {self.name!r} was made with two_phase: prepared transactions"
                " would arrive before anybody knows whether they commit",
                hint=f"on PostgreSQL 18, in a replication connection: ALTER_REPLICATION_SLOT"
                f" {quoted(self.name)} (TWO_PHASE false); on older ones {anew}",
            )
        if self.is_temporary:
            return SourceRefused(
                f"the replication slot {self.name!r} is a temporary one of process"
                f" {self.active_pid}: it ends with that session",
                hint=anew,
            )
        if self.is_synced:
            return SourceRefused(
                f"the replication slot {self.name!r} is a copy that this standby keeps of the"
                " primary's: it can be read after a promotion",
                hint="connect to the primary (with several hosts in source.dsn:"
                " target_session_attrs=primary)",
            )
        return None


def wal_level_fault(
    wal_level: str, effective: str | None, *, is_standby: bool
) -> SourceRefused | None:
    """Why the server writes too little into its log; None where it writes enough, or will.

    PostgreSQL 19 has an `effective` level: under wal_level = replica, a primary goes up to logical
    by itself when the first logical slot is made.
    """
    if "logical" in {wal_level, effective}:
        return None
    if effective is not None and wal_level == "replica" and not is_standby:
        return None
    level = wal_level if effective is None else f"{wal_level}' and effective_wal_level '{effective}"
    return SourceRefused(
        f"wal_level is '{level}'; reading changes needs 'logical'", hint=WAL_LEVEL_HINT
    )


async def read_slot(session: Session, name: str) -> Slot:
    """The slot as it stands, `exists` False where there is none. Raises SourceError.

    Cancellation changes nothing.
    """
    [row] = await session.rows(_SLOT, name, doing="reading the replication slot")
    return Slot(name, row[0] or "", *row[1:])


async def start_failure(session: Session, error: psycopg.Error, name: str) -> SourceError:
    """Why START_REPLICATION was refused: what the slot says, else what the SQLSTATE means.

    Cancellation changes nothing.
    """
    state = error.sqlstate or ""
    found = translated(error, "starting the stream", session.place)
    if ends_connection(state):
        return found
    slot = await read_slot(session, name)
    if state == "42501":
        return replication_refusal(primary_message(error))
    if fault := slot.fault():
        return fault
    if state == "55006":
        return busy(slot)
    if state == "42704":
        # It was missing and is there again already: somebody made it anew, behind changes.
        return PositionLost(f"there was no replication slot {name!r}", hint=GAP_HINT, loss="keeper")
    return found


async def ready_slot(session: Session, name: str) -> Slot:
    """Look at the slot before it is asked for. Raises SourceError where it cannot be had.

    A START_REPLICATION that fails writes a line into the server's log, and an engine that stands by
    tries every two seconds. Cancellation changes nothing.
    """
    slot = await read_slot(session, name)
    if fault := slot.fault():
        raise fault
    if slot.active_pid is not None:
        raise busy(slot)
    return slot


def busy(slot: Slot) -> SourceError:
    """Somebody else holds the slot."""
    holder = "another process" if slot.active_pid is None else f"process {slot.active_pid}"
    if slot.is_being_made:
        return SourceUnavailable(
            f"the replication slot {slot.name!r} is still being made by {holder} on the server",
            hint="it waits for transactions that were open before; pg_stat_activity shows them",
        )
    return LeaseHeld(
        f"the replication slot {slot.name!r} is held by {holder} on the server",
        hint="another engine runs this pipeline; this one takes over when that one ends",
    )


def stream_failure(error: psycopg.Error, place: str, last_described: str) -> SourceError:
    """Why the stream ended. Its text is ours: the server's may quote a row's value.

    `last_described` is the table that the server described last: the row that it failed at is often
    that table's. Whatever it was, the slot is looked at before the next start, and the same failure
    twice is alarmed: so it is tried again.
    """
    state = error.sqlstate or ""
    if ends_connection(state):
        return translated(error, "streaming changes", place)
    judgement = judged(state)
    table = f"; the table that it described last is {last_described}" if last_described else ""
    text = f"PostgreSQL at {place} ended the stream: {judgement.text} (SQLSTATE {state}){table}"
    if state == _CANCELLED:
        # Somebody did it, so it says nothing of the position, however often it comes there. Our
        # sessions have no timeout that could.
        return SourceUnavailable(text, hint=judgement.hint)
    return SourceFailed(text, code=state, hint=judgement.hint)


def replication_refusal(message: str) -> SourceRefused:
    """The role may not replicate."""
    return SourceRefused(
        f"the role may not stream changes: {message}",
        hint="ALTER ROLE … REPLICATION; on RDS and Aurora GRANT rds_replication TO …",
    )


def publication_lost(message: str) -> PositionLost:
    """The server cannot decode what was written while the publication did not exist."""
    return PositionLost(
        f"changes were written while the publication did not exist: {message}",
        hint=GAP_HINT,
        loss="keeper",
    )
