"""What streaming needs on the server, publication and slot: made where missing and permitted.

Strategy: read everything first, judge it in pure functions, act last. What we may not make is
refused, and the error says which statement makes it.

Invariant: nothing here makes the application's statements fail. PostgreSQL refuses UPDATE and
DELETE of a published table without a replica identity. So a publication that we create leaves such
tables out, and names them.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psycopg
import structlog

from engine.model.errors import (
    ConfigurationError,
    SourceError,
    SourceFailed,
    SourceRefused,
    TailraceError,
)
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.trial import Finding
from engine.operate.alarms import Alarms
from engine.sources.postgres.judges import (
    Warned,
    arrival_warnings,
    existing_text,
    publication_refused,
    publication_warnings,
    refuse,
    slot_warning,
    slots_are_used,
    unlogged_warnings,
    version_refusal,
)
from engine.sources.postgres.locks import STOPS_PUBLISHING, holders, listed, locked_names
from engine.sources.postgres.row_filters import (
    add_filtered,
    differing,
    filtered_of,
    judge_identities,
    tried,
)
from engine.sources.postgres.session import Query, Session, quoted
from engine.sources.postgres.situation import Server, Situation, read_server, read_situation
from engine.sources.postgres.slot import Slot, busy, read_slot
from engine.sources.postgres.slot_creation import make_slot
from engine.sources.postgres.statements import (
    LISTED_MAX,
    addition_statement,
    creation_statement,
    identity_statements,
    names_listed,
    names_text,
    replacement_statements,
)
from engine.sources.postgres.transaction import LockTaken, transaction

_LOCK_PAUSE_SECONDS: Final = 1.0

WAITS: Final = "publication-waits"
"""The alarm while the publication cannot be made, because somebody has its tables locked."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Making:
    """How what streaming needs is made, where it is missing.

    `are_added_later`: a table that is not in the publication is added once that is possible, and
    its rows are read then.
    """

    alarms: Alarms
    are_added_later: bool = False


async def prepare(
    session: Session,
    slot_name: str,
    configuration: RecordConfiguration,
    making: Making,
    *,
    is_first: bool,
) -> None:
    """See `Source.prepare`. Cancellation may leave the publication made and the slot not."""
    found = await situation_of(session, slot_name, configuration, is_first=is_first)
    refuse(found)
    _warn_of_tables(found)
    if found.publication is not None:
        _warn_of(publication_warnings(found), subject=found.publication.name)
        await _warn_of_filters(session, found)
    elif is_first:
        await _create_publication(session, found, making)
    if (warning := slot_warning(found)) is not None:
        _log.warning(
            "the slot is there and the prefix has no journal",
            subject=slot_name,
            reason=warning[0],
            hint=warning[1],
        )
    if not found.slot.exists or (is_first and found.slot.is_being_made):
        await _create_slot(session, found.server, found.slot, making.alarms)


async def situation_of(
    session: Session,
    slot_name: str,
    configuration: RecordConfiguration,
    *,
    is_first: bool,
    is_renewed: bool = False,
) -> Situation:
    """What a start finds. Raises SourceRefused for a version whose catalog is another one.

    Raises SourceError. Cancellation changes nothing.
    """
    server = await read_server(session)
    _raise_if(version_refusal(server))
    return await read_situation(
        session, slot_name, configuration, server, is_first=is_first, is_renewed=is_renewed
    )


async def renew(
    session: Session, slot_name: str, configuration: RecordConfiguration, making: Making
) -> None:
    """See `Source.renew`. Cancellation may leave the publication made and no slot.

    Nothing is dropped before all else that a new slot needs was judged.
    """
    found = await situation_of(session, slot_name, configuration, is_first=True, is_renewed=True)
    refuse(found)
    slot = found.slot
    if slot.exists and not slot.is_being_made:
        if slot.active_pid is not None:
            raise busy(slot)
        await drop_slot(session, slot)
        _log.warning("replication slot dropped", subject=slot.name, reason="its loss was accepted")
    if found.publication is None:
        await _create_publication(session, found, making)
    await _create_slot(session, found.server, found.slot, making.alarms)


def _warn_of_tables(found: Situation) -> None:
    if not found.tables:
        # All of them were dropped. The log still has their rows, and tables may come again.
        reason = f"no name matches; there is: {existing_text(found)}"
        _log.warning("no table is captured", reason=reason)
    _warn_of([*unlogged_warnings(found), *arrival_warnings(found)])
    if found.clashes:
        _log.warning("columns are called as the flat envelope's own fields", columns=found.clashes)
    if found.unknown_columns:
        _log.warning(
            "no table has a column that a [[source.table]] names", columns=found.unknown_columns
        )


def _warn_of(warnings: Sequence[Warned], **subject: str) -> None:
    for each in warnings:
        _log.warning(
            each.text, tables=names_listed(each.tables), sql=list(each.statements), **subject
        )


async def try_conditions(session: Session, found: Situation) -> Finding:
    """What the server says of the rules' conditions.

    Raises the first refusal where the first run would make the publication with them: it would end
    by that. Cancellation leaves nothing behind.
    """
    trial = await tried(session, found.configuration, [table.name for table in found.tables])
    if trial.refusals and found.publication is None:
        raise trial.refusals[0]
    texts = [str(refusal) for refusal in trial.refusals[:LISTED_MAX]]
    hints = [refusal.hint for refusal in trial.refusals[:LISTED_MAX]]
    if trial.locked:
        texts.append(
            f"where was not tried, because somebody has a lock on: {names_text(trial.locked)}"
        )
        hints.append("check again when nobody has these tables locked")
    if not texts:
        # Asking for more would make something, or run functions of users.
        late = "; subqueries and functions of your own are refused by the first run alone"
        texts.append(f"the server reads every where{late if found.publication is None else ''}")
    return Finding("; ".join(texts), "; ".join(hints))


async def drop_slot(session: Session, slot: Slot) -> None:
    """Drop it. Raises LeaseHeld where somebody began to read it meanwhile.

    One that is gone already is no error. Cancellation leaves it in doubt.
    """
    try:
        await session.rows(
            "SELECT pg_catalog.pg_drop_replication_slot(%s::pg_catalog.name)",
            slot.name,
            doing="dropping the replication slot",
        )
    except SourceError as error:
        if isinstance(error.__cause__, psycopg.errors.UndefinedObject):
            return
        if isinstance(error.__cause__, psycopg.errors.ObjectInUse):
            raise busy(slot) from error
        raise


async def _create_publication(session: Session, found: Situation, making: Making) -> None:
    configuration, keyed, keyless = found.configuration, found.keyed, found.keyless
    name = configuration.through
    left_out: list[TableName] = []
    try:
        left_out = await _create_without_waiting(session, configuration, keyed, making)
    except SourceRefused as error:
        if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            raise publication_refused(configuration, keyed, str(error)) from error
        # Another engine made it a moment ago.
        made = (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation)
        if not isinstance(error.__cause__, made):
            raise
    _log.info("publication created", subject=name, table_count=len(keyed) - len(left_out))
    if left_out:
        _log.warning(
            "tables that somebody has locked are added to the publication later",
            tables=names_listed(left_out),
        )
    if keyless:
        _log.warning(
            "tables without a replica identity are left out of the publication",
            tables=names_listed(keyless),
            sql=[
                *identity_statements(keyless, found.fixed),
                addition_statement(configuration, keyless),
            ],
        )


async def _create_without_waiting(
    session: Session,
    configuration: RecordConfiguration,
    keyed: Sequence[TableName],
    making: Making,
) -> list[TableName]:
    """Create the publication. Returns the tables that are left out: somebody has them locked.

    A migration may hold a lock for hours. If we waited in the server's queue, everybody who wants
    such a lock after us would wait too. So we ask for a moment. Then we go on without the locked
    tables where they are added later. Else we say who is in the way, and ask again.
    """
    name, left_out = configuration.through, list[TableName]()
    try:
        while True:
            tables = [table for table in keyed if table not in left_out]
            try:
                await _create(session, configuration, tables)
            except LockTaken as error:
                found = await holders(session, keyed, STOPS_PUBLISHING)
                who = listed(found) or error.by or "whoever had it let go meanwhile"
            else:
                return left_out
            making.alarms.set(
                WAITS,
                f"the publication {quoted(name)} waits for a lock: {who}",
                subject=name,
                hint="end that transaction; it is tried again each second, and nobody waits for it",
            )
            if making.are_added_later:
                left_out = list(dict.fromkeys(holder.table for holder in found))
            await asyncio.sleep(_LOCK_PAUSE_SECONDS)
    finally:
        making.alarms.clear(WAITS, name)


async def _create(
    session: Session, configuration: RecordConfiguration, keyed: Sequence[TableName]
) -> None:
    """Create the publication with its tables and their filters, or nothing."""
    doing = "creating the publication"
    filtered = filtered_of(configuration, keyed)
    whole = [table for table in keyed if table not in filtered]
    async with transaction(session, doing=doing) as inside:
        await inside.run(creation_statement(configuration, whole), doing=doing)
        for table in filtered:
            await add_filtered(inside, configuration, table, doing=doing)
        if filtered:
            await judge_identities(inside, configuration, doing=doing)
        await inside.rows("COMMIT", doing=doing)


async def _create_slot(session: Session, server: Server, slot: Slot, alarms: Alarms) -> None:
    name = slot.name
    # A slot that a standby may copy survives a failover. Without such standbys the flag means
    # nothing. A standby itself cannot make such a slot.
    is_failover = server.version >= 170000 and not server.is_standby
    query: Query = "SELECT pg_catalog.pg_create_logical_replication_slot(%s, 'pgoutput')"
    if is_failover:
        query = (
            "SELECT pg_catalog.pg_create_logical_replication_slot"
            "(%s, 'pgoutput', false, false, true)"
        )
    # Said before: until they end there is nothing else to see.
    _log.info("creating the replication slot; this waits for every open transaction", subject=name)
    try:
        await make_slot(session, name, query, alarms)
    except SourceRefused as error:
        if isinstance(error.__cause__, psycopg.errors.ConfigurationLimitExceeded):
            raise slots_are_used(server.slot_count_max) from error
        raise
    _raise_if((await read_slot(session, name)).fault())
    _log.info("replication slot created", subject=name, is_failover=is_failover)


async def _warn_of_filters(session: Session, found: Situation) -> None:
    """Warn of filters that are others than the rules', where the server lets us compare them."""
    configuration, publication = found.configuration, found.publication
    event = "the publication has another row filter than where says"
    if publication is None or found.server.is_standby or not found.server.may_create:
        return
    owned = [table.name for table in found.tables if table.is_owned]
    both = [table for table in filtered_of(configuration, owned) if table in publication.filtered]
    if not both:
        return
    try:
        held = await locked_names(session, STOPS_PUBLISHING)
        if locked := [table for table in both if table in held]:
            reason = f"somebody has locked {names_text(locked)}"
            _log.info("row filters were not compared", subject=publication.name, reason=reason)
        tables = await differing(session, configuration, [t for t in both if t not in held])
    except ConfigurationError as error:
        _log.warning(event, subject=publication.name, reason=str(error), hint=error.hint)
    except (SourceFailed, SourceRefused) as error:
        # A table is locked, or a right is missing: no reason not to start.
        _log.info("row filters were not compared", subject=publication.name, reason=str(error))
    else:
        if tables:
            statements = [
                text for table in tables for text in replacement_statements(configuration, table)
            ]
            _log.warning(
                event, subject=publication.name, tables=names_listed(tables), sql=statements
            )


def _raise_if(fault: TailraceError | None) -> None:
    if fault is not None:
        raise fault
