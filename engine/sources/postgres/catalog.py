"""What PostgreSQL's catalog adds to the stream: names of types, primary keys, defaults.

Strategy: everything is asked of pg_catalog by OID. `Catalog` keeps what it read of a table until it
is told to read it anew. Right after connecting, all tables of the publication are read in pages, so
that a stream's first rows wait for no look-up.

Nothing here waits for a lock that somebody holds on a table. Tables, columns and keys are read from
the catalog's own rows. Some functions open the table: `pg_get_expr` in every release,
`pg_get_publication_tables` from 16 on, `pg_partition_tree`. They would wait for the end of a
migration, and the stream of all other tables with them. Only a default needs such a function. So
defaults are read apart: at once for tables that nobody has locked, and later for the others.

The catalog may be ahead of the stream: a column may have been dropped, renamed or retyped since the
rows at hand were written. So `describe` takes names, types and order from the stream, and only adds
to them.

Where the stream does not show a key (under REPLICA IDENTITY FULL a Relation flags every column,
under NOTHING none), the key is the primary key. It may change without any word in the stream, so
keys are looked at again. Each look has the position at which it was taken. What it saw holds for
rows that commit from there on. For rows before it, the key is a guess.

The stream does not show columns' numbers either. Two looks may prove them: see `column_numbers`.

Invariant: a Relation's shape never depends on the catalog, nor its key where the stream shows one.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

import msgspec

from engine.model.errors import SourceFailed
from engine.model.record import RecordConfiguration
from engine.model.schema import Column, Relation, TableName
from engine.sources.postgres.column_numbers import UNBORN, SeenTable, column_numbers
from engine.sources.postgres.fills import FILL_LENGTH_MAX, fill_of
from engine.sources.postgres.locks import STOPS_READING, locked_oids
from engine.sources.postgres.lsn import NO_LSN, Lsn, parse_lsn
from engine.sources.postgres.pgoutput import RelationColumn, RelationMessage
from engine.sources.postgres.session import Questions, Row, Session
from engine.sources.postgres.types import FIRST_USER_OID, UserType, json_type, type_kind

_PAGE_TABLES: Final = 200
"""Tables a query: 5,000 tables of 20 columns in one answer would stop the loop for over 100 ms."""

LABELS_LENGTH_MAX: Final = 4_000
"""Characters of an enumeration's labels, together; a longer list is not told."""

_LOCK_TIMEOUT: Final = "20ms"

_FULL: Final = "f"

_PUBLICATION: Final = """
SELECT p.oid::pg_catalog.int8, p.puballtables, p.pubviaroot,
       pg_catalog.to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL
FROM pg_catalog.pg_publication p WHERE p.pubname OPERATOR(pg_catalog.=) %s
"""

# Too many tables do no harm: those that are never streamed are described for nothing.
_EVERY_TABLE: Final = """
SELECT c.oid::pg_catalog.int8 FROM pg_catalog.pg_class c
WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog."char"[])
  AND c.relpersistence OPERATOR(pg_catalog.=) 'p'::pg_catalog."char"
  AND c.oid OPERATOR(pg_catalog.>=) %s::pg_catalog.oid
"""

_LISTED_TABLES: Final = """
SELECT r.prrelid::pg_catalog.int8 FROM pg_catalog.pg_publication_rel r
WHERE r.prpubid OPERATOR(pg_catalog.=) %s::pg_catalog.oid
"""

# Since PostgreSQL 15.
_SCHEMA_TABLES: Final = """
SELECT c.oid::pg_catalog.int8 FROM pg_catalog.pg_publication_namespace s
JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) s.pnnspid
WHERE s.pnpubid OPERATOR(pg_catalog.=) %s::pg_catalog.oid
  AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog."char"[])
"""

# Partitions that are published under their own names.
_DESCENDANTS: Final = """
WITH RECURSIVE tree(oid) AS (
  SELECT pg_catalog.unnest(%s::pg_catalog.oid[])
  UNION
  SELECT i.inhrelid FROM tree
  JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) tree.oid
)
SELECT tree.oid::pg_catalog.int8 FROM tree
"""

# A primary key's index may hold columns (INCLUDE) behind those of the key. One that is checked late
# (DEFERRABLE) tells no rows apart where the stream shows whole ones: within a transaction two rows
# may have it.
_COLUMNS: Final = f"""
SELECT c.oid::pg_catalog.int8, a.attname, a.atttypid::pg_catalog.int8, a.atttypmod,
       pg_catalog.format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
       CASE WHEN pg_catalog.array_position(i.indkey::pg_catalog.int2[], a.attnum)
                 OPERATOR(pg_catalog.<) i.indnkeyatts
            THEN pg_catalog.array_position(i.indkey::pg_catalog.int2[], a.attnum) END,
       a.attnum::pg_catalog.int4,
       CASE WHEN a.atthasmissing AND pg_catalog.length(a.attmissingval::pg_catalog.text)
                 OPERATOR(pg_catalog.<=) {FILL_LENGTH_MAX}
            THEN a.attmissingval::pg_catalog.text END,
       a.attgenerated::pg_catalog.text, a.xmin::pg_catalog.text
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
  AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_index i ON i.indrelid OPERATOR(pg_catalog.=) c.oid AND i.indisprimary
  AND (i.indimmediate OR c.relreplident OPERATOR(pg_catalog.<>) 'f'::pg_catalog."char")
WHERE c.oid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
ORDER BY c.oid, a.attnum
"""  # noqa: S608 - of constants.

# `to_jsonb` of a whole row: publications have lists of columns since PostgreSQL 15.
_DROPPED: Final = """
SELECT c.oid::pg_catalog.int8, c.relnatts::pg_catalog.int4,
       ARRAY(SELECT a.attnum::pg_catalog.int4 FROM pg_catalog.pg_attribute a
         WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attisdropped),
       EXISTS (SELECT FROM pg_catalog.pg_publication_rel m
         WHERE m.prrelid OPERATOR(pg_catalog.=) c.oid
         AND pg_catalog.jsonb_extract_path_text(pg_catalog.to_jsonb(m), 'prattrs') IS NOT NULL)
FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
"""

# `pg_get_expr` opens the table. The limit is set by the statement itself, before the first call: it
# is there for a lock that somebody takes in between.
_DEFAULTS_OF: Final = """
WITH pinned AS MATERIALIZED (
  SELECT pg_catalog.set_config('lock_timeout', %s, true) AS lock_timeout
), found AS MATERIALIZED (
  SELECT d.adrelid, a.attname, d.adbin FROM pg_catalog.pg_attrdef d
  JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) d.adrelid
    AND a.attnum OPERATOR(pg_catalog.=) d.adnum
  WHERE d.adrelid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
    AND a.attgenerated OPERATOR(pg_catalog.=) ''::pg_catalog."char" AND NOT a.attisdropped
)
SELECT found.adrelid::pg_catalog.int8, found.attname,
       pg_catalog.pg_get_expr(found.adbin, found.adrelid)
FROM pinned CROSS JOIN found WHERE pinned.lock_timeout IS NOT NULL
"""

_KEYS: Final = """
SELECT i.indrelid::pg_catalog.int8, a.attname,
       pg_catalog.array_position(i.indkey::pg_catalog.int2[], a.attnum)
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.indrelid
  AND (i.indimmediate OR c.relreplident OPERATOR(pg_catalog.<>) 'f'::pg_catalog."char")
JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid
WHERE i.indisprimary AND i.indrelid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
  AND pg_catalog.array_position(i.indkey::pg_catalog.int2[], a.attnum)
      OPERATOR(pg_catalog.<) i.indnkeyatts
"""

_THERE: Final = """
SELECT c.oid::pg_catalog.int8 FROM pg_catalog.pg_class c
WHERE c.oid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
"""

_NAMES: Final = """
SELECT n.nspname, c.relname FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.oid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
"""

# The flushed end would be too early: with synchronous_commit off, a commit is seen before it is
# flushed.
_NOW: Final = """
SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
             ELSE pg_catalog.pg_current_wal_insert_lsn() END)::pg_catalog.text
"""

_USER_TYPES: Final = """
SELECT t.oid::pg_catalog.int8, t.typbasetype::pg_catalog.int8,
       CASE WHEN t.typoutput OPERATOR(pg_catalog.=) 'pg_catalog.array_out'::pg_catalog.regproc
             AND t.typdelim OPERATOR(pg_catalog.=) ','::pg_catalog."char"
            THEN t.typelem::pg_catalog.int8 ELSE 0 END
FROM pg_catalog.pg_type t WHERE t.oid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
"""

# An enumeration's, in its order.
_LABELS: Final = """
SELECT e.enumtypid::pg_catalog.int8, e.enumlabel FROM pg_catalog.pg_enum e
WHERE e.enumtypid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
ORDER BY e.enumtypid, e.enumsortorder
"""

# `unnest` of several arrays is the grammar's own, and has no schema: ROWS FROM is the same.
_TYPE_NAMES: Final = """
SELECT t.oid, t.modifier, pg_catalog.format_type(t.oid::pg_catalog.oid, t.modifier)
FROM ROWS FROM (
  pg_catalog.unnest(%s::pg_catalog.int8[]), pg_catalog.unnest(%s::pg_catalog.int4[])
) AS t(oid, modifier)
JOIN pg_catalog.pg_type known ON known.oid OPERATOR(pg_catalog.=) t.oid::pg_catalog.oid
"""


@dataclass(frozen=True, slots=True)
class CatalogColumn:
    """A column as the catalog has it now.

    `missing` is the value of rows that were there before the column: see `fills`.
    """

    type_oid: int
    type_modifier: int
    type: str
    is_nullable: bool
    number: int = 0
    missing: str | None = None
    is_generated: bool = False
    written: str = ""


# Tables often have columns alike, and thousands of tables thousands of them.
_shared_catalog_column = lru_cache(maxsize=16_384)(CatalogColumn)
_shared_column = lru_cache(maxsize=16_384)(Column)


@dataclass(frozen=True, slots=True)
class CatalogTable:
    """A table as the catalog has it now; `primary_key` in the key's own order.

    `seen_lsn` is an end of the log when this was seen: it holds for what commits from there on.
    `height` is the highest number that a column ever had, `dropped` are those of columns that are
    gone. `is_listed`: a publication names columns of the table.
    """

    columns: Mapping[str, CatalogColumn]
    primary_key: tuple[str, ...]
    seen_lsn: Lsn = NO_LSN
    height: int = 0
    dropped: frozenset[int] = frozenset()
    is_listed: bool = True

    @property
    def seen(self) -> SeenTable:
        """What tells its columns' numbers."""
        return SeenTable(self.columns, self.height, self.dropped, self.is_listed)

    def fits(self, message: RelationMessage) -> bool:
        """Whether all columns that the stream names are there, with their types.

        There may be others.
        """
        return all(self._has(column) for column in message.columns)

    def _has(self, column: RelationColumn) -> bool:
        found = self.columns.get(column.name)
        return found is not None and (found.type_oid, found.type_modifier) == (
            column.type_oid,
            column.type_modifier,
        )


@dataclass(slots=True)
class Catalog:
    """What was read of the catalog, by OID. `read…` awaits; the rest never does.

    `unread_defaults` are the tables whose defaults could not be read, because somebody has them
    locked.
    """

    unread_defaults: set[int] = field(default_factory=set)
    _tables: dict[int, CatalogTable] = field(default_factory=dict)
    # The look at each table before the newest one.
    _earlier: dict[int, CatalogTable] = field(default_factory=dict)
    _defaults: dict[int, dict[str, str]] = field(default_factory=dict)
    _user_types: dict[int, UserType] = field(default_factory=dict)
    _labels: dict[int, tuple[str, ...]] = field(default_factory=dict)
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
        table = self._tables.pop(oid, None)
        if table is not None:
            self._earlier[oid] = table
        self._defaults.pop(oid, None)
        self.unread_defaults.discard(oid)

    async def read_publication(self, session: Session, publication: str) -> None:
        """Read all tables of the publication, where there is one.

        Cancellation leaves what was read so far.
        """
        oids = await _published(session, publication)
        for start in range(0, len(oids), _PAGE_TABLES):
            await self.read(session, oids[start : start + _PAGE_TABLES])

    async def read(self, session: Questions, oids: Iterable[int]) -> None:
        """Read these tables anew; those that are gone are forgotten.

        Cancellation leaves the tables' columns as they were, or read while their types or defaults
        are not: then they have to be read again.
        """
        wanted = list(oids)
        found = await session.rows(_COLUMNS, wanted, doing="reading the tables' columns")
        dropped = await session.rows(_DROPPED, wanted, doing="reading the tables' columns")
        seen_lsn = await _now(session)
        shapes = {oid: tuple(shape) for oid, *shape in dropped}
        grouped: dict[int, list[Row]] = {}
        for oid, *column in found:
            grouped.setdefault(oid, []).append(tuple(column))
        for oid in wanted:
            table = self._tables.pop(oid, None)
            if table is not None:
                self._earlier[oid] = table
        self._tables.update(
            {
                oid: _table(columns, seen_lsn, shapes.get(oid, ()))
                for oid, columns in grouped.items()
            }
        )
        used = {c.type_oid for oid in grouped for c in self._tables[oid].columns.values()}
        await self._read_types(session, used)
        await self._read_labels(session, used)
        await self.read_defaults(session, grouped)

    async def read_defaults(self, session: Questions, oids: Iterable[int]) -> None:
        """Read these tables' defaults, of those that nobody has locked; never waits for a lock.

        The others are `unread_defaults` from now on, and have none. Cancellation leaves what was
        known.
        """
        wanted = set(oids)
        free = wanted - await locked_oids(session, wanted, STOPS_READING)
        try:
            found = await session.rows(
                _DEFAULTS_OF, _LOCK_TIMEOUT, list(free), doing="reading the tables' defaults"
            )
        except SourceFailed:
            # A table was locked or dropped since. All of them are read later.
            found, free = [], set()
        for oid in wanted:
            self._defaults.pop(oid, None)
        for oid, name, default in found:
            self._defaults.setdefault(oid, {})[name] = default
        self.unread_defaults = (self.unread_defaults - wanted) | (wanted - free)

    async def read_for(self, session: Session, message: RelationMessage) -> None:
        """Read a streamed table anew, and the names of types that it no longer has.

        Cancellation leaves a part of it read: it has to be asked for again.
        """
        await self.read(session, [message.oid])
        if self.knows(message):
            return
        oids = [column.type_oid for column in message.columns]
        modifiers = [column.type_modifier for column in message.columns]
        found = await session.rows(_TYPE_NAMES, oids, modifiers, doing="reading the types' names")
        for oid, modifier, name in found:
            self._type_names[oid, modifier] = name
        await self._read_types(session, set(oids))
        await self._read_labels(session, set(oids))

    async def names(self, session: Session, oids: Iterable[int]) -> list[TableName]:
        """The names of the tables that are there now. Cancellation changes nothing."""
        found = await session.rows(_NAMES, list(oids), doing="reading the tables' names")
        return [TableName(*row) for row in found]

    async def gone(self, session: Session, oids: Iterable[int]) -> tuple[set[int], Lsn]:
        """Which of these tables are there no more, and a position that the last row is before.

        Cancellation changes nothing.
        """
        wanted = list(oids)
        found = await session.rows(_THERE, wanted, doing="looking for tables that are gone")
        return set(wanted) - {oid for (oid,) in found}, await _now(session)

    def describe(self, message: RelationMessage, configuration: RecordConfiguration) -> Relation:
        """The relation as streamed, with what the catalog adds where the two still agree."""
        columns = tuple(self._column(message, column, configuration) for column in message.columns)
        key, is_key_guessed = _key(message, columns, self._tables.get(message.oid))
        return Relation(
            table=_name(message),
            identity=str(message.oid),
            facts={"oid": message.oid, "replica_identity": message.replica_identity},
            columns=columns,
            key=key,
            is_key_guessed=is_key_guessed,
        )

    def numbered(self, oid: int, relation: Relation, commit_lsn: int) -> Relation:
        """The relation with its columns' numbers, as it was at a row of that commit."""
        table, before = self._tables.get(oid), self._earlier.get(oid)
        if table is None:
            return relation
        is_before = before is not None and before.seen_lsn <= commit_lsn
        names = [column.name for column in relation.columns]
        earlier = before.seen if before is not None and is_before else UNBORN
        return with_numbers(relation, column_numbers(names, earlier, table.seen))

    def key_known_from(self, oid: int) -> Lsn | None:
        """From which commit on the key that `describe` gives is no guess; None: never."""
        table = self._tables.get(oid)
        return table.seen_lsn if table is not None else None

    async def look_at_keys(self, session: Session, oids: Iterable[int]) -> set[int]:
        """Look at these tables' primary keys again; those that have another one now.

        Cancellation leaves what was known.
        """
        wanted = [oid for oid in oids if oid in self._tables]
        found = await session.rows(_KEYS, wanted, doing="reading the primary keys")
        seen_lsn = await _now(session)
        keys: dict[int, list[tuple[int, str]]] = {}
        for oid, name, place in found:
            keys.setdefault(oid, []).append((place, name))
        changed: set[int] = set()
        for oid in wanted:
            # The reader may have read it anew meanwhile.
            table = self._tables.get(oid)
            if table is None or table.seen_lsn > seen_lsn:
                continue
            key = _in_order(keys.get(oid, []))
            if key != table.primary_key:
                changed.add(oid)
                self._tables[oid] = replace(table, primary_key=key, seen_lsn=seen_lsn)
        return changed

    def _column(
        self, message: RelationMessage, streamed: RelationColumn, configuration: RecordConfiguration
    ) -> Column:
        kind = type_kind(streamed.type_oid, self._user_types)
        type_at = (streamed.type_oid, streamed.type_modifier)
        table = self._tables.get(message.oid)
        known = table.columns.get(streamed.name) if table is not None else None
        if known is not None and (known.type_oid, known.type_modifier) != type_at:
            known = None
        is_included = configuration.is_included(_name(message), streamed.name)
        is_hashed = configuration.is_hashed(_name(message), streamed.name)
        # A default is a value. A column that is excluded or hashed does not show it either.
        is_shown = is_included and not is_hashed
        defaults = self._defaults.get(message.oid, {}) if known and is_shown else {}
        missing = known.missing if known and is_shown else None
        return _shared_column(
            streamed.name,
            known.type if known else self._type_names.get(type_at, f"oid {streamed.type_oid}"),
            kind,
            streamed.is_key,
            "string" if is_hashed else json_type(kind, configuration.numeric, configuration.json),
            known.is_nullable if known else True,
            defaults.get(streamed.name),
            streamed.type_oid,
            streamed.type_modifier,
            is_included,
            is_hashed,
            0,
            fill_of(missing, kind, configuration) if missing is not None else "",
            self._labels.get(self._plain_type(streamed.type_oid), ()) if is_shown else (),
        )

    def _plain_type(self, oid: int) -> int:
        """What a domain's base is, or an array's element, at last."""
        known = self._user_types.get(oid)
        while known is not None and (inner := known.base_oid or known.element_oid):
            oid, known = inner, self._user_types.get(inner)
        return oid

    async def _read_labels(self, session: Questions, oids: set[int]) -> None:
        # A type stays as it is, but for these.
        types = {self._plain_type(oid) for oid in oids if oid >= FIRST_USER_OID}
        if not types:
            return
        found = await session.rows(_LABELS, list(types), doing="reading the types' labels")
        labels: dict[int, list[str]] = {}
        for oid, label in found:
            labels.setdefault(oid, []).append(label)
        for oid in types:
            some = tuple(labels.get(oid, ()))
            is_told = sum(map(len, some)) <= LABELS_LENGTH_MAX
            self._labels[oid] = some if is_told else ()

    async def _read_types(self, session: Questions, oids: set[int]) -> None:
        # A domain leads to its base type, and an array to the type of its elements. That takes a
        # few rounds at most.
        wanted = {oid for oid in oids if oid >= FIRST_USER_OID} - self._user_types.keys()
        while wanted:
            found = await session.rows(_USER_TYPES, list(wanted), doing="reading the types")
            types = [UserType(*row) for row in found]
            self._user_types.update({user_type.oid: user_type for user_type in types})
            next_oids = {t.base_oid for t in types} | {t.element_oid for t in types}
            wanted = {oid for oid in next_oids if oid >= FIRST_USER_OID} - self._user_types.keys()


def _table(columns: list[Row], seen_lsn: Lsn, shape: Row) -> CatalogTable:
    described: dict[str, CatalogColumn] = {}
    key: list[tuple[int, str]] = []
    for name, type_oid, modifier, type_text, is_nullable, key_place, *stored in columns:
        number, missing, generated, written = stored
        described[sys.intern(name)] = _shared_catalog_column(
            type_oid,
            modifier,
            type_text,
            bool(is_nullable),
            number,
            missing,
            bool(generated),
            written,
        )
        if key_place is not None:
            key.append((key_place, name))
    if not shape:
        # It was dropped since.
        return CatalogTable(described, _in_order(key), seen_lsn)
    height, dropped, is_listed = shape
    return CatalogTable(
        described, _in_order(key), seen_lsn, height, frozenset(dropped), bool(is_listed)
    )


def with_numbers(relation: Relation, numbers: Sequence[int]) -> Relation:
    """The relation with its columns' numbers."""
    pairs = zip(relation.columns, numbers, strict=True)
    columns = tuple(msgspec.structs.replace(column, number=number) for column, number in pairs)
    return msgspec.structs.replace(relation, columns=columns)


def _name(message: RelationMessage) -> TableName:
    return TableName(message.schema, message.table)


def _in_order(key: list[tuple[int, str]]) -> tuple[str, ...]:
    return tuple(name for _, name in sorted(key))


async def _now(session: Questions) -> Lsn:
    """The end of the log, asked after a look. Whatever the look saw commits before it."""
    [(text,)] = await session.rows(_NOW, doing="reading the end of the log")
    return parse_lsn(text)


def _key(
    message: RelationMessage, columns: tuple[Column, ...], table: CatalogTable | None
) -> tuple[tuple[str, ...], bool]:
    """The relation's key, and whether it is a guess."""
    names = tuple(column.name for column in columns)
    if shows_key(message):
        return tuple(column.name for column in columns if column.key), False
    is_whole = message.replica_identity == _FULL
    if table is None or not set(names).issuperset(table.primary_key):
        return names if is_whole else (), True
    return table.primary_key or (names if is_whole else ()), True


def shows_key(message: RelationMessage) -> bool:
    """Whether the stream itself says which columns are the table's key."""
    return message.replica_identity != _FULL and any(column.is_key for column in message.columns)


async def _published(session: Session, publication: str) -> list[int]:
    """The publication's tables by OID, partitions too where they are published as themselves."""
    doing = "reading the publication's tables"
    found = await session.rows(_PUBLICATION, publication, doing=doing)
    if not found:
        # What the server makes of that is for the stream to tell, and for the catalog watch.
        return []
    publication_oid, is_all_tables, is_via_root, has_schemas = found[0]
    if is_all_tables:
        rows = await session.rows(_EVERY_TABLE, FIRST_USER_OID, doing=doing)
    else:
        rows = await session.rows(_LISTED_TABLES, publication_oid, doing=doing)
        if has_schemas:
            rows += await session.rows(_SCHEMA_TABLES, publication_oid, doing=doing)
        if not is_via_root:
            rows = await session.rows(_DESCENDANTS, [oid for (oid,) in rows], doing=doing)
    return sorted({oid for (oid,) in rows})
