"""The replication slot: how it stands on the server, and what is wrong with it.

Strategy: servers' messages are translated into the administrator's language, so nothing here reads
them; a refusal is explained from `pg_replication_slots` and the settings.
"""

from dataclasses import dataclass
from typing import Final

import psycopg

from engine.errors import PositionLost, SlotBusy, SourceError, SourceRefused, SourceUnavailable
from engine.sources.postgres.session import Session, primary_message, translated

_SLOT: Final = """
SELECT slot_type, coalesce(plugin, ''), coalesce(database, ''), active_pid,
       coalesce(wal_status, ''), confirmed_flush_lsn::text,
       current_database(), current_setting('wal_level')
FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_replication_slots ON slot_name = %s
"""

GAP_HINT: Final = (
    "changes are lost; drop what is left of the slot and start anew under another prefix"
)

WAL_LEVEL_HINT: Final = (
    "ALTER SYSTEM SET wal_level = logical, then restart the server; on RDS and Aurora set"
    " rds.logical_replication = 1 in the parameter group and reboot"
)


@dataclass(frozen=True, slots=True)
class Slot:
    """A row of pg_replication_slots, with where it was asked."""

    name: str
    type: str
    plugin: str
    database: str
    active_pid: int | None
    wal_status: str
    confirmed: str | None
    current_database: str
    wal_level: str

    @property
    def exists(self) -> bool:
        return bool(self.type)

    def fault(self) -> SourceError | None:
        """Why nothing can be streamed from it; None where nothing is known against it."""
        if self.wal_level != "logical":
            return wal_level_refusal(self.wal_level)
        if not self.exists:
            return PositionLost(f"there is no replication slot {self.name!r}", hint=GAP_HINT)
        if self.wal_status == "lost":
            return PositionLost(
                f"the server invalidated the replication slot {self.name!r} and removed its log",
                hint=f"{GAP_HINT}; raise max_slot_wal_keep_size",
            )
        if foreign := self._foreign():
            return SourceRefused(
                f"the replication slot {self.name!r} {foreign}",
                hint="give source.slot another name, or check dbname in source.dsn",
            )
        return None

    def _foreign(self) -> str:
        if self.type != "logical":
            return "is a physical one"
        if self.plugin != "pgoutput":
            return f"uses the plugin {self.plugin}, not pgoutput"
        if self.database != self.current_database:
            return f"belongs to the database {self.database!r}, not to {self.current_database!r}"
        return ""


def wal_level_refusal(wal_level: str) -> SourceRefused:
    """The server writes too little into its log."""
    return SourceRefused(
        f"wal_level is {wal_level!r}; reading changes needs 'logical'", hint=WAL_LEVEL_HINT
    )


async def read_slot(session: Session, name: str) -> Slot:
    """The slot as it stands, `exists` False where there is none. Raises SourceError."""
    [row] = await session.rows(_SLOT, name, doing="reading the replication slot")
    return Slot(name, row[0] or "", *row[1:])


async def start_failure(session: Session, error: psycopg.Error, name: str) -> SourceError:
    """Why START_REPLICATION was refused."""
    found = translated(error, "starting the stream")
    if isinstance(found, SourceUnavailable):
        return found
    slot = await read_slot(session, name)
    if error.sqlstate == "55006":
        holder = "another process" if slot.active_pid is None else f"process {slot.active_pid}"
        return SlotBusy(
            f"the replication slot {name!r} is held by {holder} on the server",
            holder_pid=slot.active_pid,
            hint="another engine runs this pipeline; this one takes over when that one ends",
        )
    if error.sqlstate == "42501":
        return replication_refusal(primary_message(error))
    if fault := slot.fault():
        return fault
    if error.sqlstate == "42704":
        # It was missing and is there again already: somebody made it anew, behind changes.
        return PositionLost(f"there was no replication slot {name!r}", hint=GAP_HINT)
    return found


def replication_refusal(message: str) -> SourceRefused:
    """The role may not replicate."""
    return SourceRefused(
        f"the role may not stream changes: {message}",
        hint="ALTER ROLE … REPLICATION; on RDS and Aurora GRANT rds_replication TO …",
    )


def publication_lost(message: str) -> PositionLost:
    """The server cannot decode what was written while the publication did not exist."""
    return PositionLost(
        f"changes were written while the publication did not exist: {message}", hint=GAP_HINT
    )
