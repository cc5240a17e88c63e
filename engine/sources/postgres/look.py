"""A look at what a publication publishes: everything in the catalog that decides what arrives.

Strategy: queries read the rows of pg_publication and of what hangs on it, with their `xmin`. An
ALTER that was set back leaves the same values under another xmin. Publication and filters are
compared as they are stored. Partitions are read from pg_inherits. Nothing here asks a function that
opens a table, because that would wait for somebody's lock. (New partitions are asked about apart.
One that somebody has locked is left out there.)

A snapshot may lack a transaction whose commit is already in the log, because that COMMIT waits for
a standby. So a look cannot simply claim to show everything up to the end of the log. It shows
everything that committed before the end of the log at an earlier look, if every transaction that
had begun by then is over: `Horizon`.

Invariant: a look waits for nobody's lock, and changes nothing. The only tables that it opens are
partitions that were attached and may be empty: `EmptyPartitions`.
"""

import asyncio
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from engine.model.errors import SourceFailed
from engine.model.interfaces import (
    NOT_PUBLISHED,
    PARTITIONS,
    PUBLISHED_LATE,
    REWRITTEN,
    Look,
    Reason,
    TableLook,
)
from engine.model.plural import counted
from engine.model.position import log_position
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.sources.postgres.empty_partitions import Attachment, EmptyPartitions
from engine.sources.postgres.identities import (
    ASKED,
    GENERATED_REFUSED_FROM,
    HAS_UNSENT,
    KEY_COLUMNS,
    KEY_UNSENT,
)
from engine.sources.postgres.lsn import Lsn, parse_lsn
from engine.sources.postgres.row_filters import AskedFilters, FilterTexts, sql_name, unasked_reason
from engine.sources.postgres.session import Row, Session, quoted
from engine.sources.postgres.statements import (
    addition_statement,
    creation_statement,
    identity_statement,
    replacement_statements,
)
from engine.sources.postgres.stored_shapes import as_told, stored_shapes

LOOK_SECONDS_MAX: Final = 30.0

_HORIZONS_MAX: Final = 256

_TABLES_SHOWN_MAX: Final = 20

_NOT_LOGGED: Final = "not-logged"

_NOTHING_ARRIVES: Final = (NOT_PUBLISHED, _NOT_LOGGED, "via-root")
"""Under the table's own name nothing arrives then."""

_END_OF_LOG: Final = """
SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
             ELSE pg_catalog.pg_current_wal_flush_lsn() END)::pg_catalog.text,
       (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
             ELSE pg_catalog.pg_current_wal_insert_lsn() END)::pg_catalog.text,
       pg_catalog.current_setting('server_version_num')::pg_catalog.int4
"""

_SNAPSHOT: Final = """
SELECT pg_catalog.pg_snapshot_xmin(now.shot)::pg_catalog.text,
       pg_catalog.pg_snapshot_xmax(now.shot)::pg_catalog.text,
       p.oid::pg_catalog.int8, p.xmin::pg_catalog.text, p.puballtables, p.pubviaroot,
       p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate
FROM (SELECT pg_catalog.pg_current_snapshot() AS shot) AS now
LEFT JOIN pg_catalog.pg_publication p ON p.pubname OPERATOR(pg_catalog.=) %s
"""

# Whether a table has a replica identity. A primary key that is checked at a transaction's end is
# none (15 and 18: tried).
_IS_KEYED: Final = """c.relreplident OPERATOR(pg_catalog.=) 'f' OR EXISTS (
         SELECT FROM pg_catalog.pg_index i WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid
         AND (CASE WHEN c.relreplident OPERATOR(pg_catalog.=) 'i' THEN i.indisreplident
                   ELSE c.relreplident OPERATOR(pg_catalog.=) 'd'
                        AND i.indisprimary AND i.indimmediate END))"""

# `to_jsonb` of a whole row: the columns of pg_publication_rel differ between releases.
_TABLES: Final = f"""
WITH {ASKED}
SELECT c.oid::pg_catalog.int8, n.nspname, c.relname, c.relkind OPERATOR(pg_catalog.=) 'p',
       c.relpersistence OPERATOR(pg_catalog.=) 'u',
       {_IS_KEYED},
       m.oid::pg_catalog.int8, m.xmin::pg_catalog.text,
       pg_catalog.jsonb_extract_path_text(pg_catalog.to_jsonb(m), 'prqual'),
       pg_catalog.jsonb_extract_path_text(pg_catalog.to_jsonb(m), 'prattrs'),
       pg_catalog.jsonb_extract_path_text(pg_catalog.to_jsonb(m), 'prexcept'),
       n.oid::pg_catalog.int8, {HAS_UNSENT}, {KEY_COLUMNS}, {KEY_UNSENT}
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
LEFT JOIN pg_catalog.pg_publication p
  ON p.pubname OPERATOR(pg_catalog.=) (SELECT asked.publication FROM asked)
LEFT JOIN pg_catalog.pg_publication_rel m ON m.prpubid OPERATOR(pg_catalog.=) p.oid
  AND m.prrelid OPERATOR(pg_catalog.=) c.oid
WHERE c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p']::pg_catalog."char"[])
  AND c.relpersistence OPERATOR(pg_catalog.<>) 't' AND NOT c.relispartition
  AND n.nspname OPERATOR(pg_catalog.<>) ALL (
    ARRAY['pg_catalog', 'information_schema', 'pg_toast']::pg_catalog.name[])
"""  # noqa: S608 - of constants.

# A table's type has the table's name. The type's row is as old as the table's own, unless somebody
# renamed the table, gave it another schema, or (which looks the same) another owner. The table's
# dependency on its schema is as old as the table, unless somebody gave it another schema (15 and
# 18: tried).
_MADE: Final = """
SELECT c.oid::pg_catalog.int8,
       t.xmin OPERATOR(pg_catalog.=) a.xmin AND t.cmin OPERATOR(pg_catalog.=) a.cmin,
       NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
         WHERE d.classid OPERATOR(pg_catalog.=) c.tableoid
         AND d.objid OPERATOR(pg_catalog.=) c.oid AND d.objsubid OPERATOR(pg_catalog.=) 0
         AND d.refclassid OPERATOR(pg_catalog.=) n.tableoid
         AND NOT (d.xmin OPERATOR(pg_catalog.=) a.xmin AND d.cmin OPERATOR(pg_catalog.=) a.cmin))
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) c.reltype
JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
  AND a.attnum OPERATOR(pg_catalog.=) '-1'::pg_catalog.int2
WHERE c.oid OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.oid[])
"""

# Since PostgreSQL 15.
_SCHEMAS: Final = """
SELECT s.pnnspid::pg_catalog.int8, s.oid::pg_catalog.int8, s.xmin::pg_catalog.text
FROM pg_catalog.pg_publication_namespace s
JOIN pg_catalog.pg_publication p ON p.oid OPERATOR(pg_catalog.=) s.pnpubid
WHERE p.pubname OPERATOR(pg_catalog.=) %s
"""

# CREATE TABLE … PARTITION OF makes the columns in an earlier command of its transaction than the
# row of pg_inherits. ATTACH PARTITION changes all of them in the command that makes that row (15
# and 18: seen). Commands behind either may alter columns again, and say nothing. The last
# columns are the partition's name, whether it holds rows and has no replica identity (the one that
# has the row decides whether an UPDATE needs one), whether it holds rows that are in the log, its
# parent's name, and why it holds rows that are not in the log (null: it does not).
_PARTITIONS: Final = f"""
WITH RECURSIVE tree(root, parent, child, xmin, cmin) AS (
  SELECT i.inhparent, i.inhparent, i.inhrelid, i.xmin, i.cmin
  FROM pg_catalog.pg_inherits i
  JOIN pg_catalog.pg_class r ON r.oid OPERATOR(pg_catalog.=) i.inhparent
  WHERE r.relkind OPERATOR(pg_catalog.=) 'p' AND NOT r.relispartition
  UNION ALL
  SELECT tree.root, i.inhparent, i.inhrelid, i.xmin, i.cmin
  FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) tree.child
)
SELECT tree.root::pg_catalog.int8, tree.child::pg_catalog.int8, tree.parent::pg_catalog.int8,
       tree.xmin::pg_catalog.text, c.relfilenode::pg_catalog.int8,
       EXISTS (SELECT FROM pg_catalog.pg_attribute a
         WHERE a.attrelid OPERATOR(pg_catalog.=) tree.child
         AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
         AND a.xmin OPERATOR(pg_catalog.=) tree.xmin
         AND a.cmin::pg_catalog.text::pg_catalog.int8
             OPERATOR(pg_catalog.<) tree.cmin::pg_catalog.text::pg_catalog.int8),
       n.nspname, c.relname, c.relkind OPERATOR(pg_catalog.=) 'r' AND NOT ({_IS_KEYED}),
       c.relkind OPERATOR(pg_catalog.=) 'r'
         AND c.relpersistence OPERATOR(pg_catalog.<>) 'u',
       pn.nspname, pc.relname,
       CASE WHEN c.relkind OPERATOR(pg_catalog.=) 'f' THEN 'foreign'
            WHEN c.relkind OPERATOR(pg_catalog.=) 'r'
              AND c.relpersistence OPERATOR(pg_catalog.=) 'u' THEN 'unlogged' END
FROM tree JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) tree.child
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
JOIN pg_catalog.pg_class pc ON pc.oid OPERATOR(pg_catalog.=) tree.parent
JOIN pg_catalog.pg_namespace pn ON pn.oid OPERATOR(pg_catalog.=) pc.relnamespace
"""  # noqa: S608 - of constants.

TEXTS: Final[Mapping[str, str]] = {
    "publication-remade": "the publication was dropped and made anew",
    "publication-altered": "the publication was altered; what it left out meanwhile is not known",
    "left-publication": "the table left the publication and came back, or was set anew there",
    PARTITIONS: "a partition was attached or detached, or dropped; the stream does not show"
    " the rows that came or went with it",
    REWRITTEN: "a partition was truncated, which the stream does not show, or rewritten",
    "made-logged": "the table was made logged; the rows that it had are not in the server's log",
    PUBLISHED_LATE: "the table was made before it was added to the publication; rows that it had by"
    " then are missing",
    "table-dropped": "the table was dropped; the stream does not show that its rows went",
    "table-remade": "the table was dropped and made anew; the stream does not show that its"
    " earlier rows went",
}


@dataclass(slots=True)
class Horizon:
    """Which earlier end of the log a snapshot covers.

    A transaction that a snapshot lacks has a number that is not below the snapshot's xmin. If that
    is not below an earlier snapshot's xmax, the transaction had no number then, and commits behind
    the end of the log that was read before that snapshot.
    """

    empty: EmptyPartitions = field(default_factory=EmptyPartitions)
    filters: FilterTexts = field(default_factory=FilterTexts)
    asked: AskedFilters = field(default_factory=AskedFilters)
    _looks: deque[tuple[Lsn, int]] = field(default_factory=lambda: deque(maxlen=_HORIZONS_MAX))

    def covered(self, flushed: Lsn, xmin: int, xmax: int) -> Lsn | None:
        """Note a look; the newest end of the log before which nothing committed that it lacks."""
        self._looks.append((flushed, xmax))
        return next((end for end, bound in reversed(self._looks) if bound <= xmin), None)


@dataclass(frozen=True, slots=True)
class _Publication:
    """The publication's row, and its schemas' by the schema's OID. `oid` is None without one.

    `filters` are the conditions that no rule asks for, by the table's OID. `altered` are the tables
    whose rule asks for another condition. `is_fixing`: the server refuses changes
    where a replica identity has generated columns that are not sent.
    """

    configuration: RecordConfiguration
    oid: int | None
    xmin: str | None
    is_all_tables: bool | None
    is_via_root: bool | None
    operations: tuple[str, ...]
    schemas: Mapping[int, str]
    captured: tuple[TableName, ...]
    filters: Mapping[int, str]
    altered: frozenset[int]
    is_fixing: bool = False

    def marks(self) -> dict[str, str]:
        if self.oid is None:
            return {}
        return {"publication-remade": str(self.oid), "publication-altered": f"{self.xmin}"}


_OPERATIONS: Final = ("insert", "update", "delete", "truncate")


async def look(
    session: Session, horizon: Horizon, configuration: RecordConfiguration, generation: int
) -> Look:
    """What is published now of the captured tables, in a log of that generation.

    Waits `LOOK_SECONDS_MAX` at most. Raises SourceError. Cancellation leaves nothing behind.
    """
    try:
        async with asyncio.timeout(LOOK_SECONDS_MAX):
            return await _look(session, horizon, configuration, generation)
    except TimeoutError as error:
        raise SourceFailed(
            f"PostgreSQL did not say within {LOOK_SECONDS_MAX:.0f} s what is published",
            code="57014",
            hint="somebody may have a table of pg_catalog locked, by VACUUM FULL for example:"
            " pg_locks shows it",
        ) from error


async def _look(
    session: Session, horizon: Horizon, configuration: RecordConfiguration, generation: int
) -> Look:
    doing = "looking at what is published"
    name = configuration.through
    [(flushed, _, version)] = await session.rows(_END_OF_LOG, doing=doing)
    # Each query has a snapshot of its own, and the first one is the oldest. What a later snapshot
    # shows beyond it is looked at again next time. The end of the log is read after the last query.
    [head] = await session.rows(_SNAPSHOT, name, doing=doing)
    found = await session.rows(_TABLES, name, doing=doing)
    schemas = await session.rows(_SCHEMAS, name, doing=doing) if version >= 150000 else []
    partitions = await session.rows(_PARTITIONS, doing=doing)
    empty = await horizon.empty.among(session, _attached(configuration, found, partitions))
    partitions = [(*row[:5], row[5] or row[1] in empty, *row[6:]) for row in partitions]
    # With thousands of tables this is milliseconds of work.
    captured, others = await asyncio.to_thread(_selected, configuration, found)
    oids = [row[0] for _, row in captured]
    made = await session.rows(_MADE, oids, doing=doing)
    shapes = await stored_shapes(session, name, oids)
    asked = {
        row[0]: (table, row[8])
        for table, row in captured
        if row[8] is not None and configuration.where_of(table)
    }
    altered = await horizon.asked.others(session, configuration, asked)
    unasked = {
        row[0]: row[8]
        for _, row in captured
        if row[8] is not None and (row[0] not in asked or row[0] in altered)
    }
    filters = await horizon.filters.read(session, name, unasked)
    [(at, until, _)] = await session.rows(_END_OF_LOG, doing=doing)
    publication = _publication(configuration, head, schemas, captured, filters)
    publication = replace(publication, altered=altered, is_fixing=version >= GENERATED_REFUSED_FROM)
    tables = await asyncio.to_thread(_assembled, publication, captured, made, partitions)
    tables = await asyncio.to_thread(_with_shapes, tables, shapes, configuration)
    since = horizon.covered(parse_lsn(flushed), int(head[0]), int(head[1]))
    return Look(
        since=log_position(generation, since) if since is not None else None,
        at=log_position(generation, parse_lsn(at)),
        until=log_position(generation, parse_lsn(until)),
        marks=publication.marks(),
        tables=tables,
        texts=TEXTS,
        others=others,
        parts=frozenset(str(row[1]) for row in partitions),
        pieces=_pieces(publication, captured, tables, partitions),
    )


def _pieces(
    publication: _Publication,
    captured: list[tuple[TableName, Row]],
    tables: Mapping[TableName, TableLook],
    partitions: list[Row],
) -> dict[TableName, bool]:
    """The partitions, where their rows do not arrive under the name of their root."""
    if publication.is_via_root is not False:
        return {}
    published = {row[0] for table, row in captured if _is_published(tables[table])}
    names = ((TableName(row[6], row[7]), row[0], row[9]) for row in partitions)
    return {
        name: root in published and has_rows and publication.configuration.captures(name)
        for name, root, has_rows in names
    }


def _selected(
    configuration: RecordConfiguration, found: list[Row]
) -> tuple[list[tuple[TableName, Row]], frozenset[str]]:
    """The captured tables, and the identities of the others."""
    captured: list[tuple[TableName, Row]] = []
    others: list[str] = []
    for row in found:
        table = TableName(row[1], row[2])
        if configuration.captures(table):
            captured.append((table, row))
        else:
            others.append(str(row[0]))
    return captured, frozenset(others)


def _assembled(
    publication: _Publication,
    captured: list[tuple[TableName, Row]],
    made: list[Row],
    partitions: list[Row],
) -> dict[TableName, TableLook]:
    pieces = _partition_marks(partitions) if publication.is_via_root else {}
    births = {oid: _Birth(*known) for oid, *known in made}
    bare: dict[int, list[TableName]] = {}
    for row in partitions:
        if row[8]:
            bare.setdefault(row[0], []).append(TableName(row[6], row[7]))
    tables: dict[TableName, TableLook] = {}
    for table, row in captured:
        now = _table_look(publication, table, row, births.get(row[0], _UNKNOWN), pieces)
        # A partitioned table has no rows of its own.
        keyless = bare.get(row[0], []) if row[3] else [] if row[5] else [table]
        refused = _refused(publication, table, keyless) if _is_published(now) else None
        if row[12] and refused is None and _is_published(now):
            refused = _generated(publication, table)
        tables[table] = replace(now, refused=refused) if refused is not None else now
    return tables


def _with_shapes(
    tables: Mapping[TableName, TableLook],
    shapes: Mapping[int, str],
    configuration: RecordConfiguration,
) -> dict[TableName, TableLook]:
    return {
        table: replace(now, shape=as_told(shapes.get(int(now.identity), ""), table, configuration))
        for table, now in tables.items()
    }


def _is_published(now: TableLook) -> bool:
    return now.keeps.keys().isdisjoint((NOT_PUBLISHED, _NOT_LOGGED))


def _refused(
    publication: _Publication, table: TableName, keyless: list[TableName]
) -> Reason | None:
    """Why the server refuses changes of a published table: `keyless` have no replica identity."""
    needing = [word.upper() for word in ("update", "delete") if word in publication.operations]
    if not keyless or not needing:
        return None
    whose = "" if keyless == [table] else f" of {counted(len(keyless), 'partition')}"
    shown = keyless[:_TABLES_SHOWN_MAX]
    statements = " ".join(f"{identity_statement(name)};" for name in shown)
    leave = ""
    if not publication.is_all_tables:
        name = f"{quoted(table.schema)}.{quoted(table.table)}"
        leave = (
            "; or, where it is not to be captured any more:"
            f" ALTER PUBLICATION {quoted(publication.configuration.through)} DROP TABLE {name};"
        )
    return Reason(
        f"the table is published, and has no replica identity{whose}: PostgreSQL refuses the"
        f" application's {' and '.join(needing)}",
        f"{statements} or give it its primary key again (ALTER TABLE … ADD PRIMARY KEY){leave}",
    )


def _generated(publication: _Publication, table: TableName) -> Reason | None:
    """Why rows of a published table cannot be told apart, or the server refuses to change them."""
    if not {"update", "delete"}.intersection(publication.operations):
        return None
    what = "the table's replica identity has generated columns, which are not sent: "
    if not publication.is_fixing:
        text = f"{what}its rows cannot be told apart"
        return Reason(text, f"{identity_statement(table)};")
    return Reason(
        f"{what}PostgreSQL refuses the application's UPDATE and DELETE",
        f"{identity_statement(table, is_fixed=True)}; with an index that has no generated column,"
        f" or ALTER PUBLICATION {quoted(publication.configuration.through)}"
        " SET (publish_generated_columns = stored);",
    )


@dataclass(frozen=True, slots=True)
class _Birth:
    """Whether a table has the name, and the schema, under which it was made."""

    is_as_made: bool
    is_unmoved: bool


# Dropped, or renamed just now: the next look sees it.
_UNKNOWN: Final = _Birth(is_as_made=False, is_unmoved=False)


def _publication(
    configuration: RecordConfiguration,
    head: Row,
    schemas: list[Row],
    captured: list[tuple[TableName, Row]],
    filters: Mapping[int, str],
) -> _Publication:
    operations = zip(_OPERATIONS, head[6:], strict=True)
    oid, xmin, is_all_tables, is_via_root = head[2:6]
    return _Publication(
        configuration=configuration,
        oid=oid,
        xmin=xmin,
        is_all_tables=is_all_tables,
        is_via_root=is_via_root,
        operations=tuple(operation for operation, is_published in operations if is_published),
        schemas={schema: f"{oid}/{xmin}" for schema, oid, xmin in schemas},
        captured=tuple(table for table, _ in captured[:_TABLES_SHOWN_MAX]),
        filters=filters,
        altered=frozenset(),
    )


@dataclass(slots=True)
class _Pieces:
    """The marks of one root's partitions, and which of them may appear without a loss.

    `unlogged` says why changes of some partitions are not in the log, by the aspect that says so.
    """

    marks: dict[str, str] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    unlogged: dict[str, Reason] = field(default_factory=dict)


def _attached(
    configuration: RecordConfiguration, found: list[Row], partitions: list[Row]
) -> Iterator[Attachment]:
    """The partitions of captured tables that were attached, not made as such."""
    roots = {row[0] for row in found if row[3] and configuration.captures(TableName(*row[1:3]))}
    for root, child, _, xmin, _, is_made_as_one, *_ in partitions:
        if root in roots and not is_made_as_one:
            yield child, xmin


def _partition_marks(rows: Iterable[Row]) -> dict[int, _Pieces]:
    roots: dict[int, _Pieces] = {}
    for root, child, parent, xmin, filenode, is_whole, *names, why_unlogged in rows:
        pieces = roots.setdefault(root, _Pieces())
        attached, stored = f"{PARTITIONS}:{child}", f"{REWRITTEN}:{child}"
        pieces.marks |= {attached: f"{parent}/{xmin}", stored: str(filenode)}
        pieces.fresh.add(stored)
        if is_whole:
            pieces.fresh.add(attached)
        if why_unlogged is not None:
            partition, above = TableName(*names[:2]), TableName(*names[-2:])
            reason = _unlogged_reason(partition, above, is_foreign=why_unlogged == "foreign")
            pieces.unlogged[f"{_NOT_LOGGED}:{child}"] = reason
    return roots


def _table_look(
    publication: _Publication,
    table: TableName,
    row: Row,
    birth: _Birth,
    roots: Mapping[int, _Pieces],
) -> TableLook:
    oid, _, _, is_partitioned, is_unlogged, is_keyed = row[:6]
    member, xmin, row_filter, columns, is_except, schema = row[6:12]
    is_member = member is not None and is_except != "true"
    schema_mark = publication.schemas.get(schema)
    is_whole = is_except != "true" and (publication.is_all_tables or schema_mark is not None)
    # Rows that it got while it was in a schema that is not published were not sent.
    is_whole_since_made = is_whole and (publication.is_all_tables or birth.is_unmoved)
    pieces = roots.get(oid, _Pieces())
    marks, fresh = dict(pieces.marks), set(pieces.fresh)
    if is_member:
        marks["left-publication"] = f"{member}/{xmin}"
    if schema_mark is not None:
        marks["left-publication:schema"] = schema_mark
    if is_unlogged:
        marks["made-logged"] = "unlogged"
        fresh.add("made-logged")
    # A table that was added by name may have had rows before, even where one transaction made,
    # filled and added it: nothing in the catalog tells (15 and 18: tried).
    if is_whole_since_made or is_unlogged:
        fresh.add(PUBLISHED_LATE)
    keeps: dict[str, tuple[str, ...]] = {}
    if is_unlogged:
        keeps[_NOT_LOGGED] = ()
    elif not (is_member or is_whole):
        keeps[NOT_PUBLISHED] = ()
    else:
        if publication.configuration.where_of(table) and oid not in publication.altered:
            # This filter was asked for: what it leaves out is not wanted.
            row_filter = None
        keeps = _kept(publication, row_filter, columns, is_partitioned=is_partitioned)
        keeps |= _kept_key(columns, set(row[13]), set(row[14]))
        keeps |= dict.fromkeys(pieces.unlogged, ())
    reasons: dict[str, Reason] = {}
    if keeps:
        reasons = _reasons(
            publication,
            table,
            oid,
            is_keyed=is_keyed and not row[12],
            is_fixed=row[12] and publication.is_fixing,
            is_except=is_except == "true",
        )
        reasons |= pieces.unlogged
    return TableLook(
        str(oid),
        keeps,
        marks,
        frozenset(fresh),
        reasons,
        is_as_made=birth.is_as_made,
        arrives=keeps.keys().isdisjoint(_NOTHING_ARRIVES),
    )


def _unlogged_reason(partition: TableName, parent: TableName, *, is_foreign: bool) -> Reason:
    """Why the log does not have a partition's changes."""
    if is_foreign:
        return Reason(
            f"the partition {partition} is a foreign table: its changes are another server's, and"
            " not in this one's log",
            f"ALTER TABLE {sql_name(parent)} DETACH PARTITION {sql_name(partition)};",
        )
    return Reason(
        f"the partition {partition} is unlogged: the server's log does not have its changes",
        f"ALTER TABLE {sql_name(partition)} SET LOGGED;",
    )


def _kept(
    publication: _Publication, row_filter: str | None, columns: str | None, *, is_partitioned: bool
) -> dict[str, tuple[str, ...]]:
    """What is kept of a published table, where that is not everything."""
    keeps: dict[str, tuple[str, ...]] = {}
    if publication.operations != _OPERATIONS:
        keeps["operations"] = publication.operations
    if columns is not None:
        keeps["column-list"] = tuple(re.findall(r"\d+", columns))
    if row_filter is not None:
        # Where the text of the filter stood in its statement is stored as well.
        keeps["row-filter"] = (re.sub(r":location -?\d+", "", row_filter),)
    if is_partitioned and not publication.is_via_root:
        keeps["via-root"] = ("partitions",)
    return keeps


def _kept_key(columns: str | None, key: set[int], unsent: set[int]) -> dict[str, tuple[str, ...]]:
    """What is sent of the columns that tell rows apart, where that is not all of them."""
    sent = key - unsent
    if columns is not None:
        # A list is all there is.
        sent = key & {int(number) for number in re.findall(r"\d+", columns)}
    return {} if sent == key else {"key": tuple(map(str, sorted(sent)))}


def _reasons(
    publication: _Publication,
    table: TableName,
    oid: int,
    *,
    is_keyed: bool,
    is_fixed: bool,
    is_except: bool,
) -> dict[str, Reason]:
    configuration = publication.configuration
    name = quoted(configuration.through)
    alter = f"ALTER PUBLICATION {name}"
    missing = [operation for operation in _OPERATIONS if operation not in publication.operations]
    again = f"{'; '.join(replacement_statements(configuration, table))};"
    add = f"{addition_statement(configuration, [table])};"
    if not is_keyed:
        add = f"{identity_statement(table, is_fixed=is_fixed)}; {add}"
    not_published = Reason(f"the table is not in the publication {name}", add)
    if publication.oid is None:
        statement = creation_statement(configuration, publication.captured)
        not_published = Reason(f"there is no publication {name}", f"{statement};")
    elif is_except:
        not_published = Reason(
            f"the publication {name} names the table under EXCEPT", "take it out of EXCEPT"
        )
    return {
        NOT_PUBLISHED: not_published,
        _NOT_LOGGED: Reason(
            "the table is unlogged: the server's log does not have its changes",
            f"ALTER TABLE {sql_name(table)} SET LOGGED;",
        ),
        "operations": Reason(
            f"the publication {name} leaves {', '.join(missing)} out",
            f"{alter} SET (publish = 'insert, update, delete, truncate');",
        ),
        "column-list": Reason(f"the publication {name} leaves columns out that it had", again),
        "key": Reason(
            "columns that tell the table's rows apart are not sent: they are generated, or a list"
            " leaves them out",
            f"{identity_statement(table, is_fixed=is_fixed)};",
        ),
        "row-filter": unasked_reason(configuration, table, publication.filters.get(oid), again),
        "via-root": Reason(
            f"the publication {name} publishes partitions under their own names",
            f"{alter} SET (publish_via_partition_root = true);",
        ),
    }
