"""What a pipeline holds on the server, slot and publication, and how it is given back.

Strategy: everything is looked at before anything is dropped. The slot is the pipeline's own: one
slot has one reader. A publication may have several, and the server does not say which. So it is
dropped only where it looks as a start makes it, and where no other slot of the database could be
reading through it. Otherwise it stays, and the operator gets the statement.

Invariant: nothing that the configuration does not name is touched, and no slot that is being read.
"""

from dataclasses import dataclass
from typing import Final

import psycopg

from engine.model.errors import SourceError
from engine.model.record import RecordConfiguration
from engine.sources.postgres.dsn import Dsn
from engine.sources.postgres.preparation import drop_slot
from engine.sources.postgres.session import Session, quoted
from engine.sources.postgres.situation import Publication, read_publication, read_server
from engine.sources.postgres.slot import Slot, read_slot

_RETAINED: Final = """
SELECT pg_catalog.pg_wal_lsn_diff(now.lsn, s.restart_lsn)::bigint,
       pg_catalog.pg_wal_lsn_diff(now.lsn, s.confirmed_flush_lsn)::bigint
FROM pg_catalog.pg_replication_slots s,
     (SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
             ELSE pg_catalog.pg_current_wal_lsn() END) AS now(lsn)
WHERE s.slot_name OPERATOR(pg_catalog.=) %s::pg_catalog.name
"""

_OTHERS: Final = """
SELECT slot_name FROM pg_catalog.pg_replication_slots
WHERE plugin OPERATOR(pg_catalog.=) 'pgoutput'
  AND database OPERATOR(pg_catalog.=) pg_catalog.current_database()
  AND slot_name OPERATOR(pg_catalog.<>) %s::pg_catalog.name
ORDER BY 1
"""

_NAMED_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Held:
    """What is there.

    `retained` and `unread` are bytes of the server's log: what the slot keeps from being removed,
    and what was written behind the place that is durable. None: not known.
    `kept_reason` says why the publication stays; it is empty where it is dropped or is not there.
    """

    place: str
    slot: Slot
    retained: int | None
    unread: int | None
    publication: Publication | None
    kept_reason: str

    @property
    def drops_publication(self) -> bool:
        return self.publication is not None and not self.kept_reason

    @property
    def publication_statement(self) -> str:
        """What drops the publication."""
        return _statement(self.publication) if self.publication is not None else ""


class Holdings:
    """The slot and the publication of one configuration."""

    def __init__(self, dsn: Dsn, slot: str, configuration: RecordConfiguration) -> None:
        self._dsn = dsn
        self._slot = slot
        self._configuration = configuration

    async def look(self) -> Held:
        """What is there now. Raises SourceError; also where the slot is none of ours.

        Cancellation changes nothing.
        """
        async with Session(self._dsn) as session:
            slot = await read_slot(session, self._slot)
            if slot.exists and (fault := slot.foreign_fault()) is not None:
                raise fault
            kept = await session.rows(_RETAINED, self._slot, doing="looking at the slot")
            retained, unread = kept[0] if kept else (None, None)
            server = await read_server(session)
            publication = await read_publication(session, server, self._configuration.through)
            others = await session.rows(_OTHERS, self._slot, doing="looking for other slots")
            reason = ""
            if publication is not None:
                reason = self._reason(publication, [name for (name,) in others])
            return Held(session.place, slot, retained, unread, publication, reason)

    def _reason(self, publication: Publication, others: list[str]) -> str:
        """Why the publication may be somebody else's; empty where it is ours."""
        configuration = self._configuration
        foreign = [name for name in publication.tables if not configuration.captures(name)]
        if not publication.is_owned:
            return "it belongs to another role"
        if publication.is_all_tables or publication.by_schema:
            return "it publishes all tables of the database or of a schema, so no start made it"
        if not (publication.is_via_root and publication.has_all_operations):
            return "its settings are not those that a start gives it"
        if foreign:
            return f"it has tables that source.tables does not name, such as {min(foreign)}"
        if others:
            more = f" and {len(others) - _NAMED_MAX} more" if len(others) > _NAMED_MAX else ""
            named = ", ".join(others[:_NAMED_MAX])
            return f"another slot of this database may be read through it: {named}{more}"
        return ""

    async def drop(self, held: Held) -> None:
        """Drop the slot, and the publication where it is ours. What is gone already is no error.

        Raises SourceError: LeaseHeld where somebody reads the slot. Cancellation may leave one of
        them dropped.
        """
        async with Session(self._dsn) as session:
            if held.slot.exists:
                await drop_slot(session, held.slot)
            if held.publication is not None and held.drops_publication:
                await _drop_publication(session, held.publication)


async def _drop_publication(session: Session, publication: Publication) -> None:
    statement = _statement(publication)
    try:
        await session.rows(statement, doing="dropping the publication")
    except SourceError as error:
        if not isinstance(error.__cause__, psycopg.errors.UndefinedObject):
            raise


def _statement(publication: Publication) -> str:
    return f"DROP PUBLICATION {quoted(publication.name)}"
