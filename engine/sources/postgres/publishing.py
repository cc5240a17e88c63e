"""Publishing: tables that appeared later are added to the publication.

Strategy: what is against it is read first, without a lock. Then one transaction adds the tables. It
waits for locks only a moment: if a migration holds one, whoever wants such a lock after us would
wait behind us. Where that fails for several tables, each is tried by itself.

Invariant: the application's own statements never fail because of us. PostgreSQL refuses UPDATE and
DELETE of a published table without a replica identity. So the transaction that adds tables looks at
their replica identities again under the locks that it holds then, and is rolled back where one is
missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psycopg
import structlog
from psycopg import sql

from engine.model.errors import ConfigurationError, SourceFailed, SourceRefused
from engine.model.interfaces import Reason
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.sources.postgres.dsn import Dsn
from engine.sources.postgres.locks import STOPS_PUBLISHING, holders, listed
from engine.sources.postgres.row_filters import add_filtered, filtered_of, judge_identities
from engine.sources.postgres.session import Query, Session, quoted
from engine.sources.postgres.situation import (
    Publication,
    Server,
    Table,
    read_publication,
    read_server,
    read_tables,
)
from engine.sources.postgres.statements import (
    LISTED_MAX,
    addition_statement,
    creation_statement,
    identity_statement,
)
from engine.sources.postgres.transaction import TRANSACTION_SESSIONS, LockTaken, transaction

SESSIONS: Final = 1 + TRANSACTION_SESSIONS
"""Plain sessions while tables are added: one that reads, and those of the transaction."""

_SINGLE_MAX: Final = 10
"""So many tables are tried one by one in one go; each may wait for its locks."""

_KNOWN_STATE: Final = "42710"  # duplicate_object: somebody else has added it.

_DOING: Final = "adding tables to the publication"

_FRESH_SINCE: Final[Mapping[int, int]] = {14: 18, 15: 13, 16: 9, 17: 5}
"""By major version, the first minor one whose transactions in progress see a changed publication.
"""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def update_needed(version: int) -> str:
    """The release that a server of `version` has to become before tables may be added, or empty.

    Before it, a transaction that was in progress while the publication was altered keeps what it
    knew of the publication, and later ones of the same session of the log do too. So changes of an
    added table may be missing, and nobody would know.
    """
    major, minor = version // 10000, version % 10000
    since = _FRESH_SINCE.get(major, 0)
    return f"{major}.{since}" if minor < since else ""


class PostgresPublishing:
    """Implements `engine.model.interfaces.Publishing`.

    Tables are added to the publication that `configuration` names.
    """

    def __init__(self, *, dsn: Dsn, configuration: RecordConfiguration) -> None:
        self._dsn = dsn
        self._configuration = configuration
        self._name = configuration.through

    async def refused(self, tables: Sequence[TableName]) -> Mapping[TableName, Reason]:
        """See Publishing. Cancellation changes nothing."""
        async with Session(self._dsn) as session:
            return (await self._read(session, tables)).refused

    async def publish(self, tables: Sequence[TableName]) -> Mapping[TableName, Reason]:
        """See Publishing. After a cancellation some may be added and others not."""
        async with Session(self._dsn) as session:
            found = await self._read(session, tables)
            if found.publication is None or not found.addable:
                return found.refused
            return found.refused | await self._add_all(session, found.publication, found.addable)

    async def _read(self, session: Session, names: Sequence[TableName]) -> "_Found":
        server = await read_server(session)
        publication = await read_publication(session, server, self._name)
        known = {table.name: table for table in await read_tables(session, self._name)}
        tables = [known[name] for name in names if name in known]
        if publication is None:
            return _Found(None, absence(self._configuration, tables), [])
        refused: dict[TableName, Reason] = {}
        addable = []
        for table in tables:
            if table.name in publication.tables:
                continue
            reason = refusal(server, self._configuration, publication, table)
            if reason is not None:
                refused[table.name] = reason
            else:
                addable.append(table)
        return _Found(publication, refused, addable)

    async def _add_all(
        self, session: Session, publication: Publication, tables: Sequence[Table]
    ) -> dict[TableName, Reason]:
        if not tables:
            return {}
        if len(tables) > 1 and (told := await self._added_together(session, publication, tables)):
            return told.refused
        refused: dict[TableName, Reason] = {}
        for table in tables[:_SINGLE_MAX]:
            reason = await self._added(session, publication, table)
            if reason is not None:
                refused[table.name] = reason
        later = Reason("the table waits until others were added", "nothing: it is tried again")
        return refused | {table.name: later for table in tables[_SINGLE_MAX:]}

    async def _added_together(
        self, session: Session, publication: Publication, tables: Sequence[Table]
    ) -> "_Together | None":
        """What came of adding them all at once; None where each has to be tried by itself."""
        names = [table.name for table in tables]
        try:
            return None if await self._alter(publication, tables) else _Together({})
        except LockTaken as error:
            # Who alters the publication itself, and has not committed, is in the way of each.
            if error.by and not await holders(session, names, STOPS_PUBLISHING):
                return _Together(dict.fromkeys(names, _waiting(error.by)))
        except (SourceFailed, SourceRefused, ConfigurationError) as error:
            _log.debug("tables are added one by one", subject=self._name, error=str(error))
        return None

    async def _added(
        self, session: Session, publication: Publication, table: Table
    ) -> Reason | None:
        """Why the table is not in the publication; None where it is."""
        statement = f"{addition_statement(self._configuration, [table.name])};"
        try:
            keyless = await self._alter(publication, [table])
        except LockTaken as error:
            found = await holders(session, [table.name], STOPS_PUBLISHING)
            return _waiting(listed(found) or error.by or "whoever had it let go meanwhile")
        except SourceFailed as error:
            if error.code == _KNOWN_STATE:
                return None
            return Reason(str(error), error.hint or statement)
        except (SourceRefused, ConfigurationError) as error:
            if isinstance(error.__cause__, psycopg.errors.DuplicateObject):
                return None
            is_refused = isinstance(error, SourceRefused)
            return Reason(str(error), statement if is_refused else error.hint)
        return _keyless_reason(self._configuration, table) if keyless else None

    async def _alter(self, publication: Publication, tables: Sequence[Table]) -> list[TableName]:
        """Add the tables, unless some have no replica identity under the locks: these are returned.

        Raises SourceError, and ConfigurationError for a rule's `where`; then none is added.
        """
        names = [table.name for table in tables]
        filtered = filtered_of(self._configuration, names)
        whole = [name for name in names if name not in filtered]
        async with transaction(Session(self._dsn), doing=_DOING) as inside:
            # A publication's table is locked by the server. Its partitions, which decide about the
            # replica identity, are not.
            for table in tables:
                if table.is_partitioned:
                    await inside.rows(_lock_statement(table.name), doing=_DOING)
            if whole:
                await inside.run(addition_statement(self._configuration, whole), doing=_DOING)
            for name in filtered:
                await add_filtered(inside, self._configuration, name, doing=_DOING)
            if filtered and publication.has_updates:
                await judge_identities(inside, self._configuration, doing=_DOING)
            now = {table.name: table for table in await read_tables(inside, self._name)}
            keyless = [
                name
                for name in names
                if publication.has_updates and not (name in now and now[name].is_keyed)
            ]
            await inside.rows("ROLLBACK" if keyless else "COMMIT", doing=_DOING)
        if not keyless:
            _log.info(
                "tables added to the publication",
                subject=self._name,
                tables=[str(name) for name in names],
            )
        return keyless


@dataclass(frozen=True, slots=True)
class _Together:
    """That tables were tried together, and which of them were refused."""

    refused: dict[TableName, Reason]


@dataclass(frozen=True, slots=True)
class _Found:
    """The publication, which tables may not be added to it, and which may."""

    publication: Publication | None
    refused: dict[TableName, Reason]
    addable: list[Table]


def absence(configuration: RecordConfiguration, tables: Sequence[Table]) -> dict[TableName, Reason]:
    """Why no table is added where there is no publication. Pure.

    One statement makes it for all of them: whoever runs it for the first need not go on to the
    others.
    """
    keyed = [table.name for table in tables if table.is_keyed]
    statement = f"{creation_statement(configuration, keyed)};"
    if len(keyed) > LISTED_MAX:
        # Each table's alarm has it.
        statement = f"`tailrace check` prints the SQL that makes it with all {len(keyed)} tables"
    reason = Reason(f"there is no publication {quoted(configuration.through)}", statement)
    return {
        table.name: reason if table.is_keyed else _keyless_reason(configuration, table)
        for table in tables
    }


def refusal(
    server: Server,
    configuration: RecordConfiguration,
    publication: Publication,
    table: Table,
) -> Reason | None:
    """Why the engine does not add the table; None where nothing is against it."""
    name = configuration.through
    if publication.has_updates and not table.is_keyed:
        return _keyless_reason(configuration, table)
    if publication.is_all_tables:
        return Reason(f"the publication {quoted(name)} of all tables leaves the table out", "")
    if table.is_partitioned and not publication.is_via_root:
        return Reason(
            f"the publication {quoted(name)} publishes partitions under their own names",
            f"ALTER PUBLICATION {quoted(name)} SET (publish_via_partition_root = true);",
        )
    return _refusal_of_role(server, configuration, publication, table)


def _refusal_of_role(
    server: Server, configuration: RecordConfiguration, publication: Publication, table: Table
) -> Reason | None:
    """Why it has to be somebody else who adds it, or later."""
    name = quoted(publication.name)
    text = f"the table is not in the publication {name}"
    statement = f"{addition_statement(configuration, [table.name])};"
    if server.is_standby:
        return Reason(f"{text}, and the server is a hot standby", f"on the primary: {statement}")
    if update := update_needed(server.version):
        return Reason(
            f"{text}; PostgreSQL before {update} may lose changes of a table that is added beside"
            " open transactions, so the engine does not add it",
            f"update PostgreSQL, or run where nobody writes: {statement}",
        )
    if not publication.is_owned:
        return Reason(f"{text}, which the role does not own", f"as its owner: {statement}")
    if not table.is_owned:
        return Reason(f"{text}, and the role does not own it", f"as its owner: {statement}")
    return None


def _waiting(who: str) -> Reason:
    return Reason(
        f"adding it to the publication waits for a lock: {who}",
        "nothing: it is tried again, and nobody waits for it",
    )


def _keyless_reason(configuration: RecordConfiguration, table: Table) -> Reason:
    return Reason(
        "the table has no replica identity: once it is published, PostgreSQL refuses its UPDATE"
        " and DELETE",
        f"{identity_statement(table.name, is_fixed=table.is_fixed)};"
        f" {addition_statement(configuration, [table.name])};",
    )


def _lock_statement(table: TableName) -> Query:
    name = sql.Identifier(table.schema, table.table)
    return sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(name)
