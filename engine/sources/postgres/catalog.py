"""What PostgreSQL's catalog adds to the stream: names of types, primary keys, defaults.

Strategy: everything is asked of pg_catalog by OID. `Catalog` keeps what it read of a table until
told to read it anew, and all publication's tables are read in pages right after connecting, so that
a stream's first rows wait for no look-up.

The catalog may be ahead of the stream: a column may have been dropped, renamed or retyped since the
rows at hand were written. `describe` therefore takes names, types and order from the stream and
only decorates them.

Invariant: a Relation's shape never depends on the catalog.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from engine.envelope import RecordConfiguration
from engine.schema import Column, Relation, TableName
from engine.sources.postgres.pgoutput import RelationColumn, RelationMessage
from engine.sources.postgres.session import Row, Session
from engine.sources.postgres.slot import publication_lost
from engine.sources.postgres.types import FIRST_USER_OID, UserType, json_type, type_kind

_PAGE_TABLES: Final = 200
"""Tables a query: 5,000 tables of 20 columns in one answer would stop the loop for over 100 ms."""

_PUBLISHED: Final = """
SELECT DISTINCT published.relid::bigint
FROM pg_catalog.pg_publication p
LEFT JOIN LATERAL pg_catalog.pg_get_publication_tables(p.pubname::text) AS published ON true
WHERE p.pubname = %s
"""

_COLUMNS: Final = """
SELECT c.oid::bigint, a.attname, a.atttypid::bigint, a.atttypmod,
       format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
       CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, d.adrelid) END,
       array_position(i.indkey::int2[], a.attnum)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary
WHERE c.oid = ANY(%s::oid[])
ORDER BY c.oid, a.attnum
"""

_USER_TYPES: Final = """
SELECT oid::bigint, typbasetype::bigint,
       CASE WHEN typoutput = 'pg_catalog.array_out'::regproc AND typdelim = ','
            THEN typelem::bigint ELSE 0 END
FROM pg_catalog.pg_type WHERE oid = ANY(%s::oid[])
"""

_TYPE_NAMES: Final = """
SELECT t.oid, t.modifier, format_type(t.oid::oid, t.modifier)
FROM unnest(%s::bigint[], %s::int[]) AS t(oid, modifier)
JOIN pg_catalog.pg_type ON pg_type.oid = t.oid
"""


@dataclass(frozen=True, slots=True)
class CatalogColumn:
    """A column as the catalog has it now."""

    type_oid: int
    type_modifier: int
    type: str
    is_nullable: bool
    default: str | None


# Tables often have columns alike, and thousands of tables thousands of them.
_shared_catalog_column = lru_cache(maxsize=16_384)(CatalogColumn)
_shared_column = lru_cache(maxsize=16_384)(Column)


@dataclass(frozen=True, slots=True)
class CatalogTable:
    """A table as the catalog has it now; `primary_key` in the key's own order."""

    columns: Mapping[str, CatalogColumn]
    primary_key: tuple[str, ...]

    def fits(self, message: RelationMessage) -> bool:
        """Whether all columns that the stream names are there with their types, among others."""
        return all(self._has(column) for column in message.columns)

    def _has(self, column: RelationColumn) -> bool:
        found = self.columns.get(column.name)
        return found is not None and (found.type_oid, found.type_modifier) == (
            column.type_oid,
            column.type_modifier,
        )


@dataclass(slots=True)
class Catalog:
    """What was read of the catalog, by OID. `read` and `read_for` await; the rest never does."""

    _tables: dict[int, CatalogTable] = field(default_factory=dict)
    _user_types: dict[int, UserType] = field(default_factory=dict)
    _type_names: dict[tuple[int, int], str] = field(default_factory=dict)

    @property
    def table_count(self) -> int:
        """How many tables are described."""
        return len(self._tables)

    def knows(self, message: RelationMessage) -> bool:
        """Whether the table's description was read and still fits what the stream shows."""
        table = self._tables.get(message.oid)
        return table is not None and table.fits(message)

    def forget(self, oid: int) -> None:
        """Have the table read anew: the stream showed that it changed."""
        self._tables.pop(oid, None)

    async def read_publication(self, session: Session, publication: str) -> None:
        """Read all tables of the publication. Raises PositionLost where there is none.

        Cancellation leaves what was read so far.
        """
        found = await session.rows(
            _PUBLISHED, publication, doing="reading the publication's tables"
        )
        if not found:
            raise publication_lost(f"{publication!r} is gone")
        oids = [oid for (oid,) in found if oid is not None]
        for start in range(0, len(oids), _PAGE_TABLES):
            await self.read(session, oids[start : start + _PAGE_TABLES])

    async def read(self, session: Session, oids: Iterable[int]) -> None:
        """Read these tables anew; those that are gone are forgotten."""
        wanted = list(oids)
        found = await session.rows(_COLUMNS, wanted, doing="reading the tables' columns")
        grouped: dict[int, list[Row]] = {}
        for oid, *column in found:
            grouped.setdefault(oid, []).append(tuple(column))
        for oid in wanted:
            self._tables.pop(oid, None)
        self._tables.update({oid: _table(columns) for oid, columns in grouped.items()})
        used = {c.type_oid for oid in grouped for c in self._tables[oid].columns.values()}
        await self._read_types(session, used)

    async def read_for(self, session: Session, message: RelationMessage) -> None:
        """Read a streamed table anew, and the names of types that it no longer has."""
        await self.read(session, [message.oid])
        if self.knows(message):
            return
        oids = [column.type_oid for column in message.columns]
        modifiers = [column.type_modifier for column in message.columns]
        found = await session.rows(_TYPE_NAMES, oids, modifiers, doing="reading the types' names")
        for oid, modifier, name in found:
            self._type_names[oid, modifier] = name
        await self._read_types(session, set(oids))

    def describe(self, message: RelationMessage, configuration: RecordConfiguration) -> Relation:
        """The relation as streamed, with what the catalog adds where the two still agree."""
        table = self._tables.get(message.oid) or CatalogTable({}, ())
        columns = tuple(self._column(column, table, configuration) for column in message.columns)
        names = {column.name for column in columns}
        identity = tuple(column.name for column in columns if column.key)
        has_key = table.primary_key and names.issuperset(table.primary_key)
        return Relation(
            table=TableName(message.schema, message.table),
            oid=message.oid,
            replica_identity=message.replica_identity,
            columns=columns,
            key=table.primary_key if has_key else identity,
        )

    def _column(
        self, streamed: RelationColumn, table: CatalogTable, configuration: RecordConfiguration
    ) -> Column:
        kind = type_kind(streamed.type_oid, self._user_types)
        type_at = (streamed.type_oid, streamed.type_modifier)
        known = table.columns.get(streamed.name)
        if known is not None and (known.type_oid, known.type_modifier) != type_at:
            known = None
        fallback = self._type_names.get(type_at, f"oid {streamed.type_oid}")
        return _shared_column(
            streamed.name,
            known.type if known else fallback,
            kind,
            streamed.is_key,
            json_type(kind, configuration.numeric, configuration.json),
            known.is_nullable if known else True,
            known.default if known else None,
            streamed.type_oid,
            streamed.type_modifier,
        )

    async def _read_types(self, session: Session, oids: set[int]) -> None:
        # A domain leads to its base, an array to its element: a few rounds at most.
        wanted = {oid for oid in oids if oid >= FIRST_USER_OID} - self._user_types.keys()
        while wanted:
            found = await session.rows(_USER_TYPES, list(wanted), doing="reading the types")
            types = [UserType(*row) for row in found]
            self._user_types.update({user_type.oid: user_type for user_type in types})
            next_oids = {t.base_oid for t in types} | {t.element_oid for t in types}
            wanted = {oid for oid in next_oids if oid >= FIRST_USER_OID} - self._user_types.keys()


def _table(columns: list[Row]) -> CatalogTable:
    described: dict[str, CatalogColumn] = {}
    key: list[tuple[int, str]] = []
    for name, type_oid, modifier, type_text, is_nullable, default, key_place in columns:
        described[sys.intern(name)] = _shared_catalog_column(
            type_oid,
            modifier,
            type_text,
            bool(is_nullable),
            default,
        )
        if key_place is not None:
            key.append((key_place, name))
    return CatalogTable(described, tuple(name for _, name in sorted(key)))
