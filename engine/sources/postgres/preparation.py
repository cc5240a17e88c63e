"""What streaming needs on the server, publication and slot: made where missing and permitted.

Strategy: read everything first, judge it in pure functions, act last. What we may not make is
refused, and the error says which statement makes it.

Invariant: nothing here makes the application's statements fail. PostgreSQL refuses UPDATE and
DELETE of a published table without a replica identity. So a publication that we create leaves such
tables out, and names them.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import psycopg
import structlog

from engine.model.errors import (
    ConfigurationError,
    SourceError,
    SourceFailed,
    SourceRefused,
    TailraceError,
)
from engine.model.plural import counted
from engine.model.record import FLAT_FIELDS, RecordConfiguration, TableRule
from engine.model.schema import TableName
from engine.operate.alarms import Alarms
from engine.sources.postgres.images import IMAGE, images_of
from engine.sources.postgres.locks import STOPS_PUBLISHING, holders, listed, locked_names
from engine.sources.postgres.rights import refusals
from engine.sources.postgres.row_filters import (
    add_filtered,
    clause_of,
    differing,
    filtered_of,
    judge_identities,
    read_filtered,
    sql_name,
    tried,
    version_fault,
)
from engine.sources.postgres.session import Query, Questions, Session, quoted
from engine.sources.postgres.slot import (
    PASSES_OVER_VERSION,
    Slot,
    busy,
    publication_lost,
    read_slot,
    replication_refusal,
    wal_level_refusal,
)
from engine.sources.postgres.slot_creation import make_slot
from engine.sources.postgres.transaction import LockTaken, transaction

PRIMARY_HINT: Final = "(with several hosts in source.dsn: target_session_attrs=primary)"

_LISTED_MAX: Final = 20

_LOCK_PAUSE_SECONDS: Final = 1.0

WAITS: Final = "publication-waits"
"""The alarm while the publication cannot be made, because somebody has its tables locked."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_SERVER: Final = """
SELECT pg_catalog.current_setting('server_version_num')::int,
       pg_catalog.current_setting('wal_level'), pg_catalog.pg_is_in_recovery(), current_user,
       EXISTS (SELECT FROM pg_catalog.pg_roles
               WHERE rolname OPERATOR(pg_catalog.=) current_user AND (rolsuper OR rolreplication))
       OR EXISTS (SELECT FROM pg_catalog.pg_roles
                  WHERE rolname OPERATOR(pg_catalog.=) 'rds_replication'
                    AND pg_catalog.pg_has_role(oid, 'MEMBER')),
       pg_catalog.current_setting('max_replication_slots')::int,
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots),
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
"""

# A leaf partition is never listed: changes are published under the root. Whether an UPDATE needs a
# replica identity is decided by the leaf that holds the row. The tree comes from pg_inherits:
# `pg_partition_tree` locks every partition, and waits for whoever has one locked.
_TABLES: Final = """
WITH RECURSIVE tree(root, relid, relkind) AS (
  SELECT c.oid, c.oid, c.relkind FROM pg_catalog.pg_class c
  WHERE c.relkind OPERATOR(pg_catalog.=) 'p' AND NOT c.relispartition
  UNION
  SELECT tree.root, c.oid, c.relkind FROM tree
  JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) tree.relid
  JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.inhrelid
), keyed AS (
  SELECT c.oid, CASE
    WHEN c.relreplident OPERATOR(pg_catalog.=) 'f' THEN true
    WHEN c.relreplident OPERATOR(pg_catalog.=) 'd' THEN EXISTS (
      SELECT FROM pg_catalog.pg_index
      WHERE indrelid OPERATOR(pg_catalog.=) c.oid AND indisprimary AND indimmediate)
    WHEN c.relreplident OPERATOR(pg_catalog.=) 'i' THEN EXISTS (
      SELECT FROM pg_catalog.pg_index
      WHERE indrelid OPERATOR(pg_catalog.=) c.oid AND indisreplident)
    ELSE false END AS is_keyed
  FROM pg_catalog.pg_class c
  WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog."char"[])
)
SELECT n.nspname, c.relname, c.relkind OPERATOR(pg_catalog.=) 'p',
       CASE WHEN c.relkind OPERATOR(pg_catalog.=) 'p' THEN coalesce(
         (SELECT pg_catalog.bool_and(leaf.is_keyed) FROM tree
          JOIN keyed leaf ON leaf.oid OPERATOR(pg_catalog.=) tree.relid
          WHERE tree.root OPERATOR(pg_catalog.=) c.oid
            AND tree.relkind OPERATOR(pg_catalog.<>) 'p'), keyed.is_keyed)
       ELSE keyed.is_keyed END,
       pg_catalog.pg_has_role(c.relowner, 'USAGE')
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
JOIN keyed ON keyed.oid OPERATOR(pg_catalog.=) c.oid
WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog."char"[])
  AND c.relpersistence OPERATOR(pg_catalog.=) 'p' AND NOT c.relispartition
  AND n.nspname OPERATOR(pg_catalog.<>)
      ALL ('{pg_catalog,information_schema,pg_toast}'::pg_catalog.name[])
ORDER BY 1, 2
"""

# Tables and partitions that hold rows which are not in the server's log.
_UNLOGGED: Final = """
WITH RECURSIVE tree(root, relid) AS (
  SELECT c.oid, c.oid FROM pg_catalog.pg_class c
  WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog."char"[])
    AND NOT c.relispartition
  UNION
  SELECT tree.root, i.inhrelid FROM tree
  JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) tree.relid
)
SELECT rn.nspname, r.relname, n.nspname, c.relname FROM tree
JOIN pg_catalog.pg_class r ON r.oid OPERATOR(pg_catalog.=) tree.root
JOIN pg_catalog.pg_namespace rn ON rn.oid OPERATOR(pg_catalog.=) r.relnamespace
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) tree.relid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.relkind OPERATOR(pg_catalog.=) 'r' AND c.relpersistence OPERATOR(pg_catalog.=) 'u'
ORDER BY 3, 4
"""

_COLUMNS_NAMED: Final = """
SELECT n.nspname, c.relname, a.attname
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
  AND a.attname::pg_catalog.text OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.text[])
  AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog."char"[]) AND NOT c.relispartition
ORDER BY n.nspname, c.relname, a.attname
"""

_PUBLICATION: Final = """
SELECT puballtables, pubviaroot, pg_catalog.pg_has_role(pubowner, 'USAGE'),
       pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubupdate OR pubdelete
FROM pg_catalog.pg_publication WHERE pubname OPERATOR(pg_catalog.=) %s::pg_catalog.name
"""

# Not pg_publication_tables: it shows the partitions where a root is published without its name.
_PUBLISHED: Final = """
SELECT n.nspname, c.relname
FROM pg_catalog.pg_publication p
JOIN pg_catalog.pg_publication_rel r ON r.prpubid OPERATOR(pg_catalog.=) p.oid
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) r.prrelid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE p.pubname OPERATOR(pg_catalog.=) %s::pg_catalog.name
"""

# Since PostgreSQL 15.
_PUBLISHED_SCHEMAS: Final = """
SELECT n.nspname, c.relname
FROM pg_catalog.pg_publication p
JOIN pg_catalog.pg_publication_namespace s ON s.pnpubid OPERATOR(pg_catalog.=) p.oid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) s.pnnspid
JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid
  AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog."char"[])
WHERE p.pubname OPERATOR(pg_catalog.=) %s::pg_catalog.name
"""


@dataclass(frozen=True, slots=True)
class Server:
    """What the server allows."""

    version: int
    wal_level: str
    is_standby: bool
    role: str
    may_replicate: bool
    slot_count_max: int
    slot_count: int
    may_create: bool

    def fault(self) -> SourceError | None:
        """Why it cannot be streamed from; None where nothing is against it."""
        if self.version < 140000:
            return SourceRefused(
                f"PostgreSQL {self.version // 10000} is too old",
                hint="PostgreSQL 14 to 18 is supported",
            )
        if self.is_standby and self.version < 160000:
            return SourceRefused(
                f"the server is a hot standby, and PostgreSQL {self.version // 10000} decodes"
                " changes on a primary alone",
                hint=f"connect to the primary {PRIMARY_HINT}, or stream from a standby of"
                " PostgreSQL 16 or newer",
            )
        if self.wal_level != "logical":
            return wal_level_refusal(self.wal_level)
        if not self.may_replicate:
            return replication_refusal(f"{self.role!r} lacks REPLICATION")
        return None


@dataclass(frozen=True, slots=True)
class Table:
    """A table that could be published.

    `is_keyed`: it has a replica identity. `is_owned`: the role has its owner's rights.
    """

    name: TableName
    is_partitioned: bool
    is_keyed: bool
    is_owned: bool


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication as it is. `is_owned`: the role has its owner's rights.

    It has only some rows of the tables in `filtered`, and those in `by_schema` with their schema.
    """

    name: str
    is_all_tables: bool
    is_via_root: bool
    has_all_operations: bool
    has_updates: bool
    tables: frozenset[TableName]
    is_owned: bool
    filtered: frozenset[TableName] = frozenset()
    named: frozenset[TableName] = frozenset()
    by_schema: frozenset[TableName] = frozenset()

    def has(self, table: TableName) -> bool:
        return self.is_all_tables or table in self.tables


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
    found = await _read(session, slot_name, configuration, is_first=is_first)
    if found.unlogged:
        text, names, statements = found.unlogged_warning
        _log.warning(text, tables=_first(names), sql=statements)
    await judge_names(session, configuration, is_first=is_first)
    if unknown := await _unknown_columns(session, configuration, found.tables):
        _log.warning("no table has a column that a [[source.table]] names", columns=unknown)
    if found.publication is not None:
        _warn_of(found.publication, configuration, found.tables)
        await _warn_of_filters(session, found, configuration)
    elif is_first:
        await _create_publication(session, configuration, found.tables, making)
    if (warning := found.slot_warning(is_first=is_first)) is not None:
        _log.warning(
            "the slot is there and the prefix has no journal",
            subject=slot_name,
            reason=warning[0],
            hint=warning[1],
        )
    if not found.slot.exists or (is_first and found.slot.is_being_made):
        await _create_slot(session, found.server, found.slot, making.alarms)


async def renew(
    session: Session, slot_name: str, configuration: RecordConfiguration, making: Making
) -> None:
    """See `Source.renew`. Cancellation may leave the publication made and no slot.

    Nothing is dropped before all else that a new slot needs was judged.
    """
    found = await _read(session, slot_name, configuration, is_first=True, is_renewed=True)
    slot = found.slot
    if slot.exists and not slot.is_being_made:
        if slot.active_pid is not None:
            raise busy(slot)
        await _drop_slot(session, slot)
    if found.publication is None:
        await _create_publication(session, configuration, found.tables, making)
    await _create_slot(session, found.server, found.slot, making.alarms)


async def _drop_slot(session: Session, slot: Slot) -> None:
    """Drop it. Raises LeaseHeld where somebody began to read it meanwhile."""
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
    _log.warning("replication slot dropped", subject=slot.name, reason="its loss was accepted")


async def judge(
    session: Session, slot_name: str, configuration: RecordConfiguration, *, is_first: bool
) -> tuple[str, str]:
    """What `prepare` would do, in words, and what an operator should know; makes nothing.

    Raises what `prepare` would raise. Cancellation changes nothing.
    """
    found = await _read(session, slot_name, configuration, is_first=is_first)
    slot = found.slot
    place = f"slot {slot.name} stands at {slot.confirmed}" if slot.confirmed else ""
    text = (
        f"{counted(len(found.tables), 'table')} captured; publication {configuration.through}"
        f" {'is there' if found.publication is not None else 'is made by the first run'};"
        f" {place or f'slot {slot.name} is made by the first run'}"
    )
    warnings = []
    if (warning := found.slot_warning(is_first=is_first)) is not None:
        warnings.append(f"{warning[0]}: {warning[1]}")
    if found.unreadable:
        refusal = _snapshot_refused(found.unreadable)
        warnings.append(f"{refusal}: {refusal.hint}")
    if (publication := found.publication) is not None:
        # Once there is a journal, a look says which tables are missing, and who adds them.
        missing = _missing_from(publication, configuration, found.tables) if is_first else []
        wrong = _warnings_of(publication, configuration, found.tables)
        unlogged = [found.unlogged_warning] if found.unlogged else []
        for what, names, statements in missing + wrong + unlogged:
            tables = f": {_listed(names)}" if names else ""
            warnings.append(f"{what}{tables}: {'; '.join(statements)}")
    if unknown := await _unknown_columns(session, configuration, found.tables):
        warnings.append(f"no table has a column that a [[source.table]] names: {unknown}")
    warnings += await _tried_warnings(session, found, configuration)
    return text, ". ".join(warnings)


async def _tried_warnings(
    session: Session, found: "_Found", configuration: RecordConfiguration
) -> list[str]:
    """What the server says of the rules' conditions.

    Raises the first refusal where the first run would make the publication with them: it would end
    by that.
    """
    names = [table.name for table in found.tables]
    trial = await tried(session, configuration, names)
    if trial.refusals and found.publication is None:
        raise trial.refusals[0]
    warnings = [f"{refusal}: {refusal.hint}" for refusal in trial.refusals[:_LISTED_MAX]]
    if trial.locked:
        listed_tables = _listed(trial.locked)
        warnings.append(f"where was not tried, because somebody has a lock on: {listed_tables}")
    return warnings


@dataclass(frozen=True, slots=True)
class _Found:
    """What is there: the server, the slot, the captured tables and the publication.

    `unreadable` are tables whose rows a snapshot cannot read, and why. `unlogged` are captured
    tables, and partitions of such.
    """

    server: Server
    slot: Slot
    tables: list[Table]
    publication: Publication | None
    unreadable: Mapping[TableName, SourceRefused]
    unlogged: list[TableName]

    @property
    def unlogged_warning(self) -> "_Warning":
        """Of tables whose changes are not in the log. What is so from the start is agreed."""
        shown = self.unlogged[:_LISTED_MAX]
        statements = [f"ALTER TABLE {sql_name(name)} SET LOGGED" for name in shown]
        text = "captured tables, or partitions of them, are unlogged: the log lacks their changes"
        return text, self.unlogged, statements

    def slot_warning(self, *, is_first: bool) -> tuple[str, str] | None:
        """A used slot may be the wrong one for a prefix without a journal: text and hint."""
        if not is_first or self.slot.confirmed is None:
            return None
        text = (
            "the slot was there before, and this prefix has no journal: a new one begins at"
            f" {self.slot.confirmed}, where the slot stands, and rows from before will not be in"
            " this prefix"
        )
        return text, "if the slot was used with another prefix, name that one in destination.prefix"


async def _read(
    session: Session,
    slot_name: str,
    configuration: RecordConfiguration,
    *,
    is_first: bool,
    is_renewed: bool = False,
) -> _Found:
    """Read everything, and refuse what cannot be streamed from.

    Of a slot that is to be renewed it counts only whose it is.
    """
    server = await read_server(session)
    _raise_if(server.fault() or version_fault(server.version, configuration))
    slot = await read_slot(session, slot_name)
    if slot.exists and is_renewed:
        _raise_if(slot.foreign_fault())
    elif slot.exists or not is_first:
        _raise_if(slot.fault())
    elif server.slot_count >= server.slot_count_max:
        raise _slots_are_used(server.slot_count_max)
    tables = await _read_captured(session, configuration, is_first=is_first)
    name = configuration.through
    publication = await read_publication(session, server, name)
    if publication is None and is_first:
        _raise_if(_creation_fault(server, configuration, tables))
    elif publication is None and server.version < PASSES_OVER_VERSION:
        # PostgreSQL 18 streams on without the publication; what it does not send is a gap that the
        # catalog watch records and alarms. Earlier ones end the stream at the next change.
        raise publication_lost(f"{name!r} is gone")
    unreadable = await _unreadable(session, configuration, publication, tables)
    if unreadable and is_first:
        raise _snapshot_refused(unreadable)
    unlogged = await _unlogged(session, configuration)
    return _Found(server, slot, tables, publication, unreadable, unlogged)


async def _unlogged(session: Session, configuration: RecordConfiguration) -> list[TableName]:
    found = await session.rows(_UNLOGGED, doing="looking for unlogged tables")
    return [TableName(*row[2:]) for row in found if configuration.captures(TableName(*row[:2]))]


async def _unreadable(
    session: Session,
    configuration: RecordConfiguration,
    publication: Publication | None,
    tables: Sequence[Table],
) -> dict[TableName, SourceRefused]:
    """The tables whose rows a snapshot would have to read, and cannot."""
    if configuration.snapshot == "never":
        return {}
    names = [
        table.name
        for table in tables
        if (table.is_keyed if publication is None else publication.has(table.name))
    ]
    schemas, bare = [name.schema for name in names], [name.table for name in names]
    images = images_of(await session.rows(IMAGE, schemas, bare, doing="reading the tables"))
    return await refusals(session, images)


def _snapshot_refused(unreadable: Mapping[TableName, SourceRefused]) -> SourceRefused:
    texts = _listed(f"{refusal}" for refusal in unreadable.values())
    statements = dict.fromkeys(refusal.hint for refusal in unreadable.values() if refusal.hint)
    return SourceRefused(
        f"a snapshot cannot read {counted(len(unreadable), 'table')}: {texts}",
        hint=f'{"; ".join(list(statements)[:_LISTED_MAX])}; or set source.snapshot = "never"',
    )


def _creation_fault(
    server: Server, configuration: RecordConfiguration, tables: Sequence[Table]
) -> SourceError | None:
    """Why the publication cannot be made; None where nothing is known against it."""
    name = configuration.through
    keyed = [table.name for table in tables if table.is_keyed]
    if not keyed:
        keyless = [table.name for table in tables]
        return SourceRefused(
            f"no captured table has a replica identity: {_listed(keyless)}; once published,"
            " PostgreSQL would refuse their UPDATE and DELETE",
            hint=" ".join(_identity_statements(keyless)),
        )
    if server.is_standby:
        return SourceRefused(
            f"there is no publication {name!r}, and the server is a hot standby: it takes its"
            " primary's",
            hint=f"run on the primary: {creation_statement(configuration, keyed)}",
        )
    foreign = [table.name for table in tables if table.is_keyed and not table.is_owned]
    if not server.may_create:
        return _publication_refused(configuration, keyed, "it lacks CREATE on the database")
    if foreign:
        return _publication_refused(configuration, keyed, f"it does not own {_listed(foreign)}")
    return None


async def judge_names(
    session: Session, configuration: RecordConfiguration, *, is_first: bool
) -> str:
    """Which columns have a name that the flat envelope would use, as text; empty for none.

    Raises ConfigurationError for them where nothing was written yet. Later ones must not end a
    pipeline that works: its own names give way then. Cancellation changes nothing.
    """
    if configuration.envelope != "flat":
        return ""
    names = [configuration.flat_prefix + field for field in FLAT_FIELDS]
    found = await session.rows(_COLUMNS_NAMED, names, doing="looking for columns by name")
    clashes = [
        f"{table}.{column}"
        for schema, name, column in found
        if configuration.captures(table := TableName(schema, name))
        and configuration.is_included(table, column)
    ]
    text = _listed(clashes)
    if clashes and is_first:
        raise ConfigurationError(
            f'columns are called as fields of destination.envelope = "flat" itself: {text}',
            hint="choose another destination.flat_prefix, or exclude the columns by a"
            " [[source.table]]",
        )
    if clashes:
        _log.warning("columns are called as the flat envelope's own fields", columns=text)
    return text


async def _unknown_columns(
    session: Session, configuration: RecordConfiguration, tables: Sequence[Table]
) -> str:
    """Columns that a rule names and none of its tables has, as text; empty for none.

    A name that is misspelt leaves a column readable that was to be left out or hashed. A rule
    without tables is for tables to come.
    """
    names = {name for rule in configuration.rules for _, name in _names_of(rule)}
    if not names:
        return ""
    found = await session.rows(_COLUMNS_NAMED, list(names), doing="looking for columns by name")
    columns: dict[TableRule, set[str]] = {}
    for table in tables:
        if (rule := configuration.rule_of(table.name)) is not None:
            columns.setdefault(rule, set())
    for schema, name, column in found:
        rule = configuration.rule_of(TableName(schema, name))
        if rule in columns:
            columns[rule].add(column)
    return _listed(
        f"{column!r} ({key} of {rule.match})"
        for rule, having in columns.items()
        for key, column in _names_of(rule)
        if column not in having
    )


def _names_of(rule: TableRule) -> list[tuple[str, str]]:
    """The columns that a rule names, each with the key that names it."""
    keys = {"include": rule.include, "exclude": rule.exclude, "hash": rule.hash}
    return [(key, name) for key, names in keys.items() for name in names]


async def read_server(session: Questions) -> Server:
    """What the server allows. Raises SourceError. Cancellation changes nothing."""
    [row] = await session.rows(_SERVER, doing="reading the server's settings")
    return Server(*row)


async def read_tables(session: Questions) -> list[Table]:
    """Every table that could be published, by name. Raises SourceError.

    Cancellation changes nothing.
    """
    found = await session.rows(_TABLES, doing="listing the tables")
    return [Table(TableName(schema, name), *rest) for schema, name, *rest in found]


async def _read_captured(
    session: Session, configuration: RecordConfiguration, *, is_first: bool
) -> list[Table]:
    tables = await read_tables(session)
    captured = [table for table in tables if configuration.captures(table.name)]
    if not captured:
        existing = _listed(table.name for table in tables) or "no tables at all"
        if not is_first:
            # All of them were dropped. The log still has their rows, and tables may come again.
            _log.warning("no table is captured", reason=f"no name matches; there is: {existing}")
            return []
        raise SourceRefused(
            f"no table matches source.tables = {list(configuration.tables)}; there is: {existing}",
            hint="name tables as schema.table, with * and ? as wildcards; unlogged, temporary and"
            " foreign tables have no changes to read",
        )
    return captured


async def read_publication(session: Questions, server: Server, name: str) -> Publication | None:
    """The publication; None where there is none. Raises SourceError.

    Cancellation changes nothing.
    """
    found = await session.rows(_PUBLICATION, name, doing="reading the publication")
    if not found:
        return None
    rows = await session.rows(_PUBLISHED, name, doing="reading the publication's tables")
    named = frozenset(TableName(*row) for row in rows)
    by_schema: frozenset[TableName] = frozenset()
    if server.version >= 150000:
        rows = await session.rows(
            _PUBLISHED_SCHEMAS, name, doing="reading the publication's schemas"
        )
        by_schema = frozenset(TableName(*row) for row in rows)
    filtered = await read_filtered(session, server.version, name)
    [[is_all_tables, is_via_root, is_owned, has_all_operations, has_updates]] = found
    return Publication(
        name,
        is_all_tables,
        is_via_root,
        has_all_operations,
        has_updates,
        named | by_schema,
        is_owned,
        filtered,
        named,
        by_schema,
    )


async def _create_publication(
    session: Session, configuration: RecordConfiguration, tables: Sequence[Table], making: Making
) -> None:
    name = configuration.through
    keyed = [table.name for table in tables if table.is_keyed]
    keyless = [table.name for table in tables if not table.is_keyed]
    left_out: list[TableName] = []
    try:
        left_out = await _create_without_waiting(session, configuration, keyed, making)
    except SourceRefused as error:
        if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            raise _publication_refused(configuration, keyed, str(error)) from error
        # Another engine made it a moment ago.
        made = (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation)
        if not isinstance(error.__cause__, made):
            raise
    _log.info("publication created", subject=name, table_count=len(keyed) - len(left_out))
    if left_out:
        _log.warning(
            "tables that somebody has locked are added to the publication later",
            tables=_first(left_out),
        )
    if keyless:
        _log.warning(
            "tables without a replica identity are left out of the publication",
            tables=_first(keyless),
            sql=[*_identity_statements(keyless), addition_statement(configuration, keyless)],
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
            raise _slots_are_used(server.slot_count_max) from error
        raise
    _raise_if((await read_slot(session, name)).fault())
    _log.info("replication slot created", subject=name, is_failover=is_failover)


def creation_statement(configuration: RecordConfiguration, tables: Iterable[TableName]) -> str:
    """The SQL that makes the publication with these tables, each with its rule's condition."""
    listed = _sql_list(configuration, tables)
    return (
        f"CREATE PUBLICATION {quoted(configuration.through)}{' FOR TABLE ' if listed else ''}"
        f"{listed} WITH (publish_via_partition_root = true)"
    )


def addition_statement(configuration: RecordConfiguration, tables: Iterable[TableName]) -> str:
    """The SQL that adds tables to the publication, each with its rule's condition."""
    return (
        f"ALTER PUBLICATION {quoted(configuration.through)}"
        f" ADD TABLE {_sql_list(configuration, tables)}"
    )


def replacement_statements(configuration: RecordConfiguration, table: TableName) -> list[str]:
    """The SQL that publishes a table anew: with its rule's condition, or whole without one."""
    drop = f"ALTER PUBLICATION {quoted(configuration.through)} DROP TABLE ONLY {sql_name(table)}"
    return ["BEGIN", drop, addition_statement(configuration, [table]), "COMMIT"]


_Warning: TypeAlias = tuple[str, list[TableName], list[str]]
"""What is wrong with a publication: the text, the tables, the SQL that mends it."""


def _missing_from(
    publication: Publication, configuration: RecordConfiguration, tables: Sequence[Table]
) -> list[_Warning]:
    """What the catalog watch alarms from its first look on. `run` leaves it to the watch."""
    missing = [table for table in tables if not publication.has(table.name)]
    if not missing:
        return []
    keyless = [table.name for table in missing if not table.is_keyed]
    names = [table.name for table in missing]
    statements = [*_identity_statements(keyless), addition_statement(configuration, names)]
    return [("captured tables are not in the publication", names, statements)]


def _warnings_of(
    publication: Publication, configuration: RecordConfiguration, tables: Sequence[Table]
) -> list[_Warning]:
    """What nobody alarms, because the publication's owner may want it so."""
    found: list[_Warning] = []
    name = quoted(publication.name)
    published = [table for table in tables if publication.has(table.name)]
    if not publication.is_via_root and (roots := [t.name for t in tables if t.is_partitioned]):
        statement = f"ALTER PUBLICATION {name} SET (publish_via_partition_root = true)"
        found.append(("partitioned tables are published by partition", roots, [statement]))
    if publication.has_updates and (keyless := [t.name for t in published if not t.is_keyed]):
        found.append(
            (
                "published tables without a replica identity refuse UPDATE and DELETE",
                keyless,
                _identity_statements(keyless),
            )
        )
    if not publication.has_all_operations:
        statement = f"ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"
        found.append(("the publication leaves operations out", [], [statement]))
    return found + _filter_warnings(publication, configuration, [table.name for table in published])


def _filter_warnings(
    publication: Publication, configuration: RecordConfiguration, published: Sequence[TableName]
) -> list[_Warning]:
    """Where there is a filter and none was asked for, or the other way round."""
    found: list[_Warning] = []
    filtered = [table for table in published if table in publication.filtered]
    unasked = [table for table in filtered if not configuration.where_of(table)]
    if unasked:
        found.append(
            (
                "the publication has some rows only, and no [[source.table]] says which (where)",
                unasked,
                [
                    text
                    for table in unasked
                    for text in replacement_statements(configuration, table)
                ],
            )
        )
    missing = [
        table
        for table in published
        if configuration.where_of(table) and table not in publication.filtered
    ]
    if missing:
        found.append(
            (
                "the publication has all rows, and where of a [[source.table]] asks for some",
                missing,
                _filtering_statements(publication, configuration, published, missing),
            )
        )
    return found


def _filtering_statements(
    publication: Publication,
    configuration: RecordConfiguration,
    published: Sequence[TableName],
    tables: Sequence[TableName],
) -> list[str]:
    """The SQL after which the publication has those rows of the tables that `where` asks for."""
    if publication.is_all_tables:
        return [
            f"DROP PUBLICATION {quoted(publication.name)}",
            creation_statement(configuration, published),
        ]
    schemas = sorted({table.schema for table in tables if table in publication.by_schema})
    statements: list[str] = []
    if schemas:
        # Where the schema is published, no filter of its tables counts.
        listed = ", ".join(map(quoted, schemas))
        statements.append(
            f"ALTER PUBLICATION {quoted(publication.name)} DROP TABLES IN SCHEMA {listed}"
        )
        others = publication.by_schema - publication.named - set(tables)
        lost = sorted(table for table in others if table.schema in schemas)
        if lost:
            statements.append(addition_statement(configuration, lost))
    for table in tables:
        if table in publication.named:
            statements += replacement_statements(configuration, table)
        else:
            statements.append(addition_statement(configuration, [table]))
    return statements


def _warn_of(
    publication: Publication, configuration: RecordConfiguration, tables: Sequence[Table]
) -> None:
    for text, names, statements in _warnings_of(publication, configuration, tables):
        _log.warning(text, subject=publication.name, tables=_first(names), sql=statements)


async def _warn_of_filters(
    session: Session, found: "_Found", configuration: RecordConfiguration
) -> None:
    """Warn of filters that are others than the rules', where the server lets us compare them."""
    publication, event = found.publication, "the publication has another row filter than where says"
    if publication is None or found.server.is_standby or not found.server.may_create:
        return
    owned = [table.name for table in found.tables if table.is_owned]
    both = [table for table in filtered_of(configuration, owned) if table in publication.filtered]
    if not both:
        return
    try:
        held = await locked_names(session, STOPS_PUBLISHING)
        if locked := [table for table in both if table in held]:
            reason = f"somebody has locked {_listed(locked)}"
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
            _log.warning(event, subject=publication.name, tables=_first(tables), sql=statements)


def _publication_refused(
    configuration: RecordConfiguration, keyed: Sequence[TableName], reason: str
) -> SourceError:
    return SourceRefused(
        f"there is no publication {configuration.through!r} and the role may not make it: {reason}",
        hint=f"run as the tables' owner: {creation_statement(configuration, keyed)};",
    )


def _slots_are_used(count: int) -> SourceRefused:
    return SourceRefused(
        f"all {count} replication slots of the server are in use",
        hint="drop one that nobody needs (pg_drop_replication_slot), or raise max_replication_slots"
        " and restart the server",
    )


def _identity_statements(tables: Iterable[TableName]) -> list[str]:
    return [identity_statement(table) for table in tables]


def identity_statement(table: TableName) -> str:
    """The SQL that gives a table a replica identity, whatever its columns are."""
    return f"ALTER TABLE {sql_name(table)} REPLICA IDENTITY FULL"


def _listed(names: Iterable[object]) -> str:
    every = [*names]
    more = f" and {len(every) - _LISTED_MAX} more" if len(every) > _LISTED_MAX else ""
    return ", ".join(map(str, every[:_LISTED_MAX])) + more


def _first(names: Iterable[object]) -> list[str]:
    """The same for the log, whose lists are lists."""
    every = [str(name) for name in names]
    more = [f"and {len(every) - _LISTED_MAX} more"] if len(every) > _LISTED_MAX else []
    return every[:_LISTED_MAX] + more


def _sql_list(configuration: RecordConfiguration, tables: Iterable[TableName]) -> str:
    # Without ONLY, tables that inherit come along, whether they were asked for or not, and whether
    # they have a replica identity or not. Partitions come along in any case.
    return ", ".join(
        f"ONLY {sql_name(table)}{clause_of(configuration.where_of(table))}" for table in tables
    )


def _raise_if(fault: TailraceError | None) -> None:
    if fault is not None:
        raise fault
