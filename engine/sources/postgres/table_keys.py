"""Keys by which large tables are read in parts: their columns, and places among them.

Strategy: a table's key is the index by which the stream knows its rows: the one of its replica
identity, or the primary key where that is FULL. So a row whose place changes while the table is
read in parts is a row whose key changes in the stream. A place is a key's value as text, and only
the database compares two of them: by its own operators, in the order of the index.

Only types of PostgreSQL's own are taken, with its own operators and collations whose order is the
one that the index was built with. Nothing of anybody else runs in our sessions that way, the text
of a value means the same later, and the index finds every row. A table with another key is read
whole.

Invariant: what is before a place and what is not are all rows, none of them twice. No column of a
key is null.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from engine.sources.postgres.session import Questions, quoted

Values = tuple[str, ...]
"""A place among keys: the text of each column's value, as PostgreSQL writes it."""

_TYPES: Final = (
    "bit",
    "bool",
    "bpchar",
    "bytea",
    "cidr",
    "date",
    "float4",
    "float8",
    "inet",
    "int2",
    "int4",
    "int8",
    "interval",
    "macaddr",
    "macaddr8",
    "name",
    "numeric",
    "oid",
    "pg_lsn",
    "text",
    "time",
    "timestamp",
    "timestamptz",
    "timetz",
    "uuid",
    "varbit",
    "varchar",
)
"""Types of PostgreSQL's own that it compares by itself, and whose text is the value."""

_DATABASE_COLLATIONS_VERSION: Final = 150000
"""Since then a database knows by which version of its collation its indexes were built."""

# An index whose order is not the plain one is passed over. `pg_collation_actual_version` asks the
# collation's library.
_COLUMNS: Final = """
SELECT i.indrelid::pg_catalog.int8, a.attname, t.typname, cn.nspname, co.collname,
       t.typname OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.name[])
         AND tn.nspname OPERATOR(pg_catalog.=) 'pg_catalog'
         AND ocn.nspname OPERATOR(pg_catalog.=) 'pg_catalog' AND oc.opcdefault
         AND k.flags OPERATOR(pg_catalog.=) 0::pg_catalog.int2
         AND k.sorting OPERATOR(pg_catalog.=) a.attcollation,
       coalesce(co.collprovider OPERATOR(pg_catalog.=) 'd'::pg_catalog."char", false),
       coalesce(co.collversion, '') OPERATOR(pg_catalog.=)
         coalesce(pg_catalog.pg_collation_actual_version(co.oid), '')
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.indrelid
CROSS JOIN LATERAL ROWS FROM (
  pg_catalog.unnest(i.indkey::pg_catalog.int2[]), pg_catalog.unnest(i.indclass::pg_catalog.oid[]),
  pg_catalog.unnest(i.indcollation::pg_catalog.oid[]),
  pg_catalog.unnest(i.indoption::pg_catalog.int2[])
) WITH ORDINALITY AS k(number, operators, sorting, flags, place)
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid
  AND a.attnum OPERATOR(pg_catalog.=) k.number
LEFT JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) a.atttypid
LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid OPERATOR(pg_catalog.=) t.typnamespace
LEFT JOIN pg_catalog.pg_opclass oc ON oc.oid OPERATOR(pg_catalog.=) k.operators
LEFT JOIN pg_catalog.pg_namespace ocn ON ocn.oid OPERATOR(pg_catalog.=) oc.opcnamespace
LEFT JOIN pg_catalog.pg_collation co ON co.oid OPERATOR(pg_catalog.=) a.attcollation
LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid OPERATOR(pg_catalog.=) co.collnamespace
WHERE i.indrelid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
  AND c.relkind OPERATOR(pg_catalog.=) 'r'::pg_catalog."char"
  AND i.indislive AND i.indisvalid AND i.indisready
  AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
  AND k.place OPERATOR(pg_catalog.<=) i.indnkeyatts
  AND (CASE WHEN c.relreplident OPERATOR(pg_catalog.=) 'i'::pg_catalog."char"
            THEN i.indisreplident ELSE i.indisprimary END)
ORDER BY i.indrelid, k.place
"""

_DATABASE_COLLATION: Final = """
SELECT coalesce(d.datcollversion, '') OPERATOR(pg_catalog.=)
       coalesce(pg_catalog.pg_database_collation_actual_version(d.oid), '')
FROM pg_catalog.pg_database d
WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
"""

_ENCODING: Final = "SELECT pg_catalog.current_setting('server_encoding')"


class KeyColumn(msgspec.Struct, frozen=True, array_like=True):
    """One column of a key, its type and its collation (empty: it has none), as SQL takes both."""

    name: str
    type: str
    collation: str = ""

    def constant(self, value: str) -> str:
        """SQL for the value that has this text."""
        # Our sessions read a backslash in a constant as it is: `standard_conforming_strings`.
        text = value.replace("'", "''")
        collate = f" COLLATE {self.collation}" if self.collation else ""
        return f"'{text}'::{self.type}{collate}"


class TableKey(msgspec.Struct, frozen=True, array_like=True):
    """The key of a table."""

    columns: tuple[KeyColumn, ...]

    @property
    def order(self) -> str:
        """SQL for the columns to sort by."""
        return ", ".join(quoted(column.name) for column in self.columns)

    def condition(self, begin: Values | None, end: Values | None) -> str:
        """SQL for the rows from `begin` on and before `end`; None: from the first, to the last.

        Empty where both are None. An index scan begins and ends at these places, also where the key
        has several columns.
        """
        parts = [(">=", begin), ("<", end)]
        return " AND ".join(self._compared(sign, place) for sign, place in parts if place)

    def _compared(self, sign: str, place: Values) -> str:
        names = [quoted(column.name) for column in self.columns]
        values = [c.constant(value) for c, value in zip(self.columns, place, strict=True)]
        operator = f"OPERATOR(pg_catalog.{sign})"
        if len(names) == 1:
            return f"{names[0]} {operator} {values[0]}"
        return f"ROW({', '.join(names)}) {operator} ROW({', '.join(values)})"


@dataclass(frozen=True, slots=True)
class _Found:
    """A key as the catalog has it, and whether all of it may be used."""

    columns: list[KeyColumn]
    fits: list[bool]


async def table_keys(
    session: Questions, oids: Sequence[int], server_version: int
) -> dict[int, TableKey]:
    """The keys by which these tables can be read in parts, by OID; none of the others.

    Raises SourceError. Cancellation as `Questions.rows` says.
    """
    doing = "reading the keys of large tables"
    if not oids or await session.rows(_ENCODING, doing=doing) == [("SQL_ASCII",)]:
        # Bytes of no encoding are no text that a place could be noted as.
        return {}
    rows = await session.rows(_COLUMNS, list(_TYPES), list(oids), doing=doing)
    is_database_sorted = False
    if server_version >= _DATABASE_COLLATIONS_VERSION:
        is_database_sorted = await session.rows(_DATABASE_COLLATION, doing=doing) == [(True,)]
    found: dict[int, _Found] = {}
    for oid, name, type_name, schema, collation, is_plain, is_database, is_sorted in rows:
        key = found.setdefault(oid, _Found([], []))
        collate = f"{quoted(schema)}.{quoted(collation)}" if collation else ""
        key.columns.append(KeyColumn(name or "", f"pg_catalog.{quoted(type_name or '')}", collate))
        key.fits.append(bool(is_plain and (is_database_sorted if is_database else is_sorted)))
    return {oid: TableKey(tuple(key.columns)) for oid, key in found.items() if all(key.fits)}
