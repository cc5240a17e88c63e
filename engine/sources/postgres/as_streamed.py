"""Tables as the stream would show them at a snapshot's point, and the rows that it would show.

Strategy: a Relation message is made of the catalog's rows, read under the snapshot. Which columns
pgoutput sends, and which of them it flags as the key, is said here once more
(`logicalrep_write_attrs` and `RelationGetIdentityKeyBitmap` in PostgreSQL's source). From there on
the relation is described as that of a stream.

The tables' locks are held already, so `pg_get_expr`, which opens a table, waits for nobody.

Invariant: the same table gives the same shape and key here as in the stream. A snapshot then finds
the version that the stream has begun.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableName
from engine.sources.postgres.catalog import Catalog, with_numbers
from engine.sources.postgres.held_session import HeldSession
from engine.sources.postgres.pgoutput import RelationColumn, RelationMessage
from engine.sources.postgres.session import Row

_LISTS_VERSION: Final = 150000
"""Since then a publication can have lists of columns and filters of rows."""

_INVALID_ROOT_KEYS_VERSION: Final = 180000
"""Since then a root's primary key counts also where it is missing on a partition."""

# An index on a partial set of rows, or one that is checked late, is no identity.
_COLUMNS: Final = """
SELECT c.oid::pg_catalog.int8, n.nspname, c.relname, c.relreplident::pg_catalog.text,
       a.attname, a.atttypid::pg_catalog.int8, a.atttypmod, a.attnum::pg_catalog.int4,
       a.attgenerated::pg_catalog.text,
       c.relreplident OPERATOR(pg_catalog.=) 'f'::pg_catalog."char" OR EXISTS (
         SELECT FROM pg_catalog.pg_index i
         WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid
           AND i.indislive AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
           AND (i.indisvalid OR (%s::pg_catalog.bool AND i.indisprimary
             AND c.relkind OPERATOR(pg_catalog.=) 'p'::pg_catalog."char"))
           AND (CASE WHEN c.relreplident OPERATOR(pg_catalog.=) 'd'::pg_catalog."char"
                     THEN i.indisprimary
                     ELSE c.relreplident OPERATOR(pg_catalog.=) 'i'::pg_catalog."char"
                      AND i.indisreplident END)
           AND pg_catalog.array_position(i.indkey::pg_catalog.int2[], a.attnum)
               OPERATOR(pg_catalog.<) i.indnkeyatts)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
  AND a.attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2 AND NOT a.attisdropped
WHERE c.oid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
ORDER BY c.oid, a.attnum
"""

# `to_jsonb` of a whole row: generated columns can be published since PostgreSQL 18.
_GENERATED: Final = """
SELECT pg_catalog.jsonb_extract_path_text(pg_catalog.to_jsonb(p), 'pubgencols')
FROM pg_catalog.pg_publication p WHERE p.pubname OPERATOR(pg_catalog.=) %s::pg_catalog.name
"""

# A table whose schema is published is published without its filter.
_PUBLISHED: Final = """
SELECT m.prrelid::pg_catalog.int8, m.prattrs::pg_catalog.int2[],
       CASE WHEN NOT EXISTS (
         SELECT FROM pg_catalog.pg_publication_namespace s
         WHERE s.pnpubid OPERATOR(pg_catalog.=) m.prpubid
           AND s.pnnspid OPERATOR(pg_catalog.=) c.relnamespace)
       THEN pg_catalog.pg_get_expr(m.prqual, m.prrelid) END
FROM pg_catalog.pg_publication_rel m
JOIN pg_catalog.pg_publication p ON p.oid OPERATOR(pg_catalog.=) m.prpubid
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) m.prrelid
WHERE p.pubname OPERATOR(pg_catalog.=) %s::pg_catalog.name
  AND m.prrelid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
"""


@dataclass(frozen=True, slots=True)
class _Published:
    """What a publication shows of one table: columns by number (None: all), rows by a filter."""

    columns: frozenset[int] | None = None
    row_filter: str | None = None


@dataclass(frozen=True, slots=True)
class AsStreamed:
    """A table as the stream would show it. `row_filter` is an SQL condition; None: all rows."""

    relation: Relation
    row_filter: str | None


async def as_streamed(
    session: HeldSession, oids: Iterable[int], configuration: RecordConfiguration
) -> dict[TableName, AsStreamed]:
    """These tables, whose locks `session` holds, as the stream would show them under its snapshot.

    Raises SourceError. Cancellation leaves the session to be closed.
    """
    wanted = list(oids)
    version, publication = session.server_version, configuration.through
    doing = "reading the tables as they are streamed"
    counts_invalid = version >= _INVALID_ROOT_KEYS_VERSION
    rows = await session.rows(_COLUMNS, counts_invalid, wanted, doing=doing)
    generated = await session.rows(_GENERATED, publication, doing=doing)
    published: dict[int, _Published] = {}
    if version >= _LISTS_VERSION:
        for oid, columns, row_filter in await session.rows(
            _PUBLISHED, publication, wanted, doing=doing
        ):
            listed = frozenset(columns) if columns is not None else None
            published[oid] = _Published(listed, row_filter)
    catalog = Catalog()
    await catalog.read(session, wanted)
    numbers: dict[int, dict[str, int]] = {}
    for oid, _, _, _, column, _, _, number, _, _ in rows:
        numbers.setdefault(oid, {})[column] = number
    found: dict[TableName, AsStreamed] = {}
    for message in messages_of(rows, published, shows_stored=generated == [("s",)]):
        relation = catalog.describe(message, configuration)
        # The key was read under the snapshot: it is the one at its point.
        relation = msgspec.structs.replace(relation, is_key_guessed=False)
        own = numbers[message.oid]
        relation = with_numbers(relation, [own[column.name] for column in relation.columns])
        row_filter = published.get(message.oid, _Published()).row_filter
        found[relation.table] = AsStreamed(relation, row_filter)
    return found


def messages_of(
    rows: Iterable[Row], published: Mapping[int, _Published], *, shows_stored: bool
) -> list[RelationMessage]:
    """The Relation message of each table. `shows_stored`: stored generated columns are sent."""
    tables: dict[tuple[int, str, str, str], list[RelationColumn]] = {}
    for oid, schema, name, identity, column, type_oid, modifier, number, generated, is_key in rows:
        columns = tables.setdefault((oid, schema, name, identity), [])
        listed = published.get(oid, _Published()).columns
        if column is None:
            # It has none.
            continue
        if listed is not None:
            is_sent = number in listed
        else:
            is_sent = not generated or (generated == "s" and shows_stored)
        if is_sent:
            columns.append(RelationColumn(column, type_oid, modifier, is_key))
    return [RelationMessage(*table, tuple(columns)) for table, columns in tables.items()]
