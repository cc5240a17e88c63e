"""The situation before a start: server, slot, tables and publication, as they are.

Strategy: everything is read first, and judged in pure functions: see `judges`.

Invariant: no question waits for a table's lock, runs a function of users, or makes anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from engine.model.errors import SourceRefused
from engine.model.record import FLAT_FIELDS, RecordConfiguration, TableRule
from engine.model.schema import TableName
from engine.sources.postgres.identities import ASKED, GENERATED_REFUSED_FROM, HAS_UNSENT
from engine.sources.postgres.images import IMAGE, images_of
from engine.sources.postgres.rights import refusals
from engine.sources.postgres.row_filters import read_filtered
from engine.sources.postgres.session import Questions, Session
from engine.sources.postgres.slot import Slot, read_slot
from engine.sources.postgres.statements import names_text

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
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
       pg_catalog.current_setting('effective_wal_level', true)
"""

# A leaf partition is never listed: changes are published under the root. Whether an UPDATE needs a
# replica identity is decided by the leaf that holds the row. The tree comes from pg_inherits:
# `pg_partition_tree` locks every partition, and waits for whoever has one locked.
_TABLES: Final = f"""
WITH RECURSIVE {ASKED}, tree(root, relid, relkind) AS (
  SELECT c.oid, c.oid, c.relkind FROM pg_catalog.pg_class c
  WHERE c.relkind OPERATOR(pg_catalog.=) 'p' AND NOT c.relispartition
  UNION
  SELECT tree.root, c.oid, c.relkind FROM tree
  JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) tree.relid
  JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.inhrelid
), keyed AS (
  SELECT c.oid, {HAS_UNSENT} AS has_unsent, CASE
    WHEN {HAS_UNSENT} THEN false
    WHEN c.relreplident OPERATOR(pg_catalog.=) 'f' THEN true
    WHEN c.relreplident OPERATOR(pg_catalog.=) 'd' THEN EXISTS (
      SELECT FROM pg_catalog.pg_index
      WHERE indrelid OPERATOR(pg_catalog.=) c.oid AND indisprimary AND indimmediate)
    WHEN c.relreplident OPERATOR(pg_catalog.=) 'i' THEN EXISTS (
      SELECT FROM pg_catalog.pg_index
      WHERE indrelid OPERATOR(pg_catalog.=) c.oid AND indisreplident)
    ELSE false END AS is_keyed
  FROM pg_catalog.pg_class c
  WHERE c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p']::pg_catalog."char"[])
)
SELECT n.nspname, c.relname, c.relkind OPERATOR(pg_catalog.=) 'p',
       CASE WHEN c.relkind OPERATOR(pg_catalog.=) 'p' THEN coalesce(
         (SELECT pg_catalog.bool_and(leaf.is_keyed) FROM tree
          JOIN keyed leaf ON leaf.oid OPERATOR(pg_catalog.=) tree.relid
          WHERE tree.root OPERATOR(pg_catalog.=) c.oid
            AND tree.relkind OPERATOR(pg_catalog.<>) 'p'), keyed.is_keyed)
       ELSE keyed.is_keyed END,
       pg_catalog.pg_has_role(c.relowner, 'USAGE'),
       pg_catalog.current_setting('server_version_num')::pg_catalog.int4
         OPERATOR(pg_catalog.>=) {GENERATED_REFUSED_FROM} AND (keyed.has_unsent OR EXISTS (
           SELECT FROM tree JOIN keyed leaf ON leaf.oid OPERATOR(pg_catalog.=) tree.relid
           WHERE tree.root OPERATOR(pg_catalog.=) c.oid AND leaf.has_unsent))
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
JOIN keyed ON keyed.oid OPERATOR(pg_catalog.=) c.oid
WHERE c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p']::pg_catalog."char"[])
  AND c.relpersistence OPERATOR(pg_catalog.=) 'p' AND NOT c.relispartition
  AND n.nspname OPERATOR(pg_catalog.<>)
      ALL (ARRAY['pg_catalog', 'information_schema', 'pg_toast']::pg_catalog.name[])
ORDER BY 1, 2
"""  # noqa: S608 - of constants.

# Tables and partitions that hold rows which are not in the server's log.
_UNLOGGED: Final = """
WITH RECURSIVE tree(root, parent, relid) AS (
  SELECT c.oid, c.oid, c.oid FROM pg_catalog.pg_class c
  WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog."char"[])
    AND NOT c.relispartition
  UNION
  SELECT tree.root, tree.relid, i.inhrelid FROM tree
  JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) tree.relid
)
SELECT rn.nspname, r.relname, n.nspname, c.relname, pn.nspname, pc.relname,
       c.relkind OPERATOR(pg_catalog.=) 'f'
FROM tree
JOIN pg_catalog.pg_class r ON r.oid OPERATOR(pg_catalog.=) tree.root
JOIN pg_catalog.pg_namespace rn ON rn.oid OPERATOR(pg_catalog.=) r.relnamespace
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) tree.relid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
JOIN pg_catalog.pg_class pc ON pc.oid OPERATOR(pg_catalog.=) tree.parent
JOIN pg_catalog.pg_namespace pn ON pn.oid OPERATOR(pg_catalog.=) pc.relnamespace
WHERE c.relkind OPERATOR(pg_catalog.=) 'r' AND c.relpersistence OPERATOR(pg_catalog.=) 'u'
   OR c.relkind OPERATOR(pg_catalog.=) 'f' AND c.relispartition
ORDER BY 3, 4
"""

# Tables with a column that may be stored out of line and is none of the replica identity, of the
# table or of a partition of it. Under FULL every column is one of it.
_LARGE: Final = """
WITH RECURSIVE tree(root, relid) AS (
  SELECT c.oid, c.oid FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
  JOIN ROWS FROM (
    pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[])
  ) AS wanted(schema, name)
    ON n.nspname OPERATOR(pg_catalog.=) wanted.schema::pg_catalog.name
    AND c.relname OPERATOR(pg_catalog.=) wanted.name::pg_catalog.name
  UNION
  SELECT tree.root, i.inhrelid FROM tree
  JOIN pg_catalog.pg_class p ON p.oid OPERATOR(pg_catalog.=) tree.relid
    AND p.relkind OPERATOR(pg_catalog.=) 'p'::pg_catalog."char"
  JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) tree.relid
)
SELECT DISTINCT n.nspname, r.relname
FROM tree
JOIN pg_catalog.pg_class r ON r.oid OPERATOR(pg_catalog.=) tree.root
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) r.relnamespace
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) tree.relid
JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
WHERE c.relreplident OPERATOR(pg_catalog.<>) 'f'::pg_catalog."char"
  AND c.reltoastrelid OPERATOR(pg_catalog.<>) 0::pg_catalog.oid
  AND a.attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2 AND NOT a.attisdropped
  AND a.attstorage OPERATOR(pg_catalog.=) ANY ('{x,e}'::pg_catalog."char"[])
  AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_index i
    WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid
      AND (CASE WHEN c.relreplident OPERATOR(pg_catalog.=) 'd'::pg_catalog."char"
                THEN i.indisprimary ELSE i.indisreplident END)
      AND a.attnum OPERATOR(pg_catalog.=) ANY (i.indkey::pg_catalog.int2[]))
ORDER BY 1, 2
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
    """What the server allows. `effective_wal_level` is None before PostgreSQL 19."""

    version: int
    wal_level: str
    is_standby: bool
    role: str
    may_replicate: bool
    slot_count_max: int
    slot_count: int
    may_create: bool
    effective_wal_level: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table that could be published.

    `is_keyed`: it has a replica identity that is sent. `is_owned`: the role has its owner's rights.
    `is_fixed`: it has none because of generated columns, and whole rows would not be one either.
    """

    name: TableName
    is_partitioned: bool
    is_keyed: bool
    is_owned: bool
    is_fixed: bool = False


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
class Situation:
    """What a start finds.

    `others` are tables that could be published and are not captured. `unreadable` are tables whose
    rows a snapshot cannot read, and why. `unlogged` are captured tables, and partitions of such;
    `foreign` are partitions that are foreign tables, each with the table that it is a partition of.
    `clashes` are columns that are called as fields of the flat envelope, `unknown_columns` those
    that a rule names and none of its tables has. `partly_sent` are tables with a condition into
    which an UPDATE may bring a row that lacks a large value. `is_first`: no journal is there yet.
    `is_renewed`: the slot will be made anew, so that it counts only whose it is.
    """

    configuration: RecordConfiguration
    server: Server
    slot: Slot
    tables: tuple[Table, ...]
    others: tuple[Table, ...]
    publication: Publication | None
    unreadable: Mapping[TableName, SourceRefused]
    unlogged: tuple[TableName, ...]
    foreign: Mapping[TableName, TableName]
    clashes: str
    unknown_columns: str
    partly_sent: tuple[TableName, ...]
    is_first: bool
    is_renewed: bool = False

    @property
    def keyed(self) -> list[TableName]:
        return [table.name for table in self.tables if table.is_keyed]

    @property
    def keyless(self) -> list[TableName]:
        return [table.name for table in self.tables if not table.is_keyed]

    @property
    def fixed(self) -> frozenset[TableName]:
        """Those that `REPLICA IDENTITY FULL` does not help."""
        return frozenset(table.name for table in self.tables if table.is_fixed)

    @property
    def published(self) -> list[Table]:
        """The captured tables that the publication has now."""
        publication = self.publication
        return [t for t in self.tables if publication is not None and publication.has(t.name)]


async def read_situation(
    session: Session,
    slot_name: str,
    configuration: RecordConfiguration,
    server: Server,
    *,
    is_first: bool,
    is_renewed: bool = False,
) -> Situation:
    """Everything that a start's judges look at. Raises SourceError. Cancellation changes nothing.

    The `server` is one whose version was judged: an older one has not all of the catalog.
    """
    slot = await read_slot(session, slot_name)
    every = await read_tables(session, configuration.through)
    tables, others = parted(every, configuration)
    publication = await read_publication(session, server, configuration.through)
    unlogged, foreign = await _unlogged(session, configuration)
    return Situation(
        configuration,
        server,
        slot,
        tables,
        others,
        publication,
        await _unreadable(session, configuration, publication, tables),
        unlogged,
        foreign,
        await _clashes(session, configuration),
        await _unknown_columns(session, configuration, tables),
        await _partly_sent(session, configuration, tables),
        is_first,
        is_renewed,
    )


def parted(
    every: Sequence[Table], configuration: RecordConfiguration
) -> tuple[tuple[Table, ...], tuple[Table, ...]]:
    """The tables that are captured, and the others. Each is looked at once: there are thousands."""
    captured: list[Table] = []
    others: list[Table] = []
    for table in every:
        (captured if configuration.captures(table.name) else others).append(table)
    return tuple(captured), tuple(others)


async def read_server(session: Questions) -> Server:
    """What the server allows. Raises SourceError. Cancellation changes nothing."""
    [row] = await session.rows(_SERVER, doing="reading the server's settings")
    return Server(*row)


async def read_tables(session: Questions, publication: str = "") -> list[Table]:
    """Every table that could be published there, by name. Raises SourceError.

    Cancellation changes nothing.
    """
    found = await session.rows(_TABLES, publication, doing="listing the tables")
    return [Table(TableName(schema, name), *rest) for schema, name, *rest in found]


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


async def _unlogged(
    session: Session, configuration: RecordConfiguration
) -> tuple[tuple[TableName, ...], dict[TableName, TableName]]:
    """What is unlogged; and what is a foreign table, with the table that it is a partition of."""
    found = await session.rows(_UNLOGGED, doing="looking for unlogged tables")
    wanted = [row[2:] for row in found if configuration.captures(TableName(*row[:2]))]
    return (
        tuple(TableName(*row[:2]) for row in wanted if not row[4]),
        {TableName(*row[:2]): TableName(*row[2:4]) for row in wanted if row[4]},
    )


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


async def _clashes(session: Session, configuration: RecordConfiguration) -> str:
    """Columns that have a name that the flat envelope would use, as text; empty for none."""
    if configuration.envelope != "flat":
        return ""
    names = [configuration.flat_prefix + field for field in FLAT_FIELDS]
    found = await session.rows(_COLUMNS_NAMED, names, doing="looking for columns by name")
    return names_text(
        f"{table}.{column}"
        for schema, name, column in found
        if configuration.captures(table := TableName(schema, name))
        and configuration.is_included(table, column)
    )


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
    return names_text(
        f"{column!r} ({key} of {rule.match})"
        for rule, having in columns.items()
        for key, column in _names_of(rule)
        if column not in having
    )


async def _partly_sent(
    session: Session, configuration: RecordConfiguration, tables: Sequence[Table]
) -> tuple[TableName, ...]:
    """Of the tables with a condition, those of which an UPDATE does not send every large value."""
    names = [table.name for table in tables if configuration.where_of(table.name)]
    if not names:
        return ()
    schemas, bare = [name.schema for name in names], [name.table for name in names]
    found = await session.rows(_LARGE, schemas, bare, doing="looking for large values")
    return tuple(TableName(*row) for row in found)


def _names_of(rule: TableRule) -> list[tuple[str, str]]:
    """The columns that a rule names, each with the key that names it."""
    keys = {"include": rule.include, "exclude": rule.exclude, "hash": rule.hash}
    return [(key, name) for key, names in keys.items() for name in names]
