"""The schema.json of a table's version: what a loader needs to know before it reads its records.

Strategy: the document follows from the journalled version, the one before it, and the database's
name, and from nothing else. So whoever writes it first (a publisher, a successor, a late packet of
a dead engine) writes the same bytes, and `verify` can make them again.

It describes records. Columns that they do not hold are left out. So are the changes of those
columns, but for the fact that there was one. (The journal has their names and types, because nobody
could make an object again without them. It never has their defaults, which are values.) A key may
name such a column: without it, it would be no key.

The stream carries no numbers of columns. So a rename is told where the catalog proves which column
is which, and otherwise shows as one column dropped and one added.

Invariant: the same arguments give the same bytes.
"""

from collections.abc import Iterator

import msgspec

from engine.model.position import Position
from engine.model.schema import (
    Column,
    ColumnPair,
    Relation,
    TableName,
    TableVersion,
    paired_columns,
)

FORMAT = 1


class ColumnDocument(msgspec.Struct, frozen=True):
    """One column. `key` says that `before` always holds it.

    `nullable` and `default` are advisory: only the catalog knows them. `default` is null where
    there is none, and where it could not be read when the version began. `hash` is there, and true,
    for a column whose values are written as hashes: those are strings.

    `number` stays with the column, also under another name; it is there where it is surely known.
    `fill` is there where the column was added with a constant default: the value, as a record holds
    it, of each row whose newest record was written before the column was there. `labels` are an
    enumeration's in its order, as the catalog had them when the version began: advisory, for a
    label that is added makes no version. They are not there for very long lists.
    """

    name: str
    type: str
    type_kind: str
    key: bool
    json: str
    nullable: bool
    default: str | None
    hash: bool | msgspec.UnsetType = msgspec.UNSET
    number: int | msgspec.UnsetType = msgspec.UNSET
    fill: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    labels: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


class Change(
    msgspec.Struct, frozen=True, omit_defaults=True, rename={"before": "from", "after": "to"}
):
    """One difference to the version before.

    `kind` is one of `table_recreated`, `table_renamed`, `table_moved` (to this schema),
    `column_added`, `column_dropped`, `column_renamed`, `type_changed`, `nullability_changed`,
    `default_changed`, `labels_added` (to an enumeration: all that are new, in its order),
    `labels_changed`, `hash_changed`, `columns_reordered`, `key_changed`,
    `excluded_columns_changed`, `record_configuration_changed`, or the name of one of the source's
    facts with `_changed` behind it. `column` where one column differs, by its present name;
    `before` and `after` (`from` and `to` in JSON) as text where there is something to say.
    `default` and `fill` are those of an added column that has any.
    """

    kind: str
    column: str | None = None
    before: str | None = None
    after: str | None = None
    default: str | None = None
    fill: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class SchemaDocument(msgspec.Struct, frozen=True, rename={"first": "from"}):
    """A whole schema.json, but for the source's facts of the table, which stand beside these.

    `first` (`from` in JSON) is null for a version that no streamed row takes.
    `key` names the columns that `before` always holds; where that is the whole row or nothing, the
    primary key's. `flat_prefix` is there with the flat envelope: what the names of its own fields
    begin with in this version.
    """

    format: int
    database: str
    schema: str
    table: str
    version: int
    first: Position | None
    columns: tuple[ColumnDocument, ...]
    key: tuple[str, ...]
    changes: tuple[Change, ...]
    flat_prefix: str | msgspec.UnsetType = msgspec.UNSET


def schema_document(version: TableVersion, previous: TableVersion | None, database: str) -> bytes:
    """The bytes of the version's schema.json: indented JSON, UTF-8, ending in a newline.

    `previous` is the table's version of the next lower number, None for its first one.
    """
    relation = version.relation
    document = SchemaDocument(
        format=FORMAT,
        database=database,
        schema=relation.table.schema,
        table=relation.table.table,
        version=version.number,
        first=version.first,
        columns=tuple(map(_column_document, _recorded(relation))),
        key=relation.key,
        changes=tuple(_changes(previous, version)),
        flat_prefix=version.flat_prefix or msgspec.UNSET,
    )
    # Values stay as they were written: a number may have more digits than a float.
    written = msgspec.json.encode(document)
    if relation.facts:
        written = written[:-1] + b"," + msgspec.json.encode(relation.facts)[1:]
    return msgspec.json.format(written, indent=2) + b"\n"


def change_kinds(version: TableVersion, previous: TableVersion | None) -> tuple[str, ...]:
    """The kinds of change from `previous` to `version`."""
    return tuple(change.kind for change in _changes(previous, version))


def previous_version(
    versions: tuple[TableVersion, ...], version: TableVersion
) -> TableVersion | None:
    """The version of the next lower number among a table's `versions`, None for the first one."""
    lower = [known for known in versions if known.number < version.number]
    return max(lower, key=lambda known: known.number, default=None)


def _column_document(column: Column) -> ColumnDocument:
    return ColumnDocument(
        name=column.name,
        type=column.type,
        type_kind=column.type_kind,
        key=column.key,
        json=column.json,
        nullable=column.nullable,
        default=column.default,
        hash=column.hashed or msgspec.UNSET,
        number=column.number or msgspec.UNSET,
        fill=_fill(column),
        labels=column.labels or msgspec.UNSET,
    )


def _fill(column: Column) -> msgspec.Raw | msgspec.UnsetType:
    return msgspec.Raw(column.fill.encode()) if column.fill else msgspec.UNSET


def _changes(old: TableVersion | None, new: TableVersion) -> Iterator[Change]:
    """What is different, the table first, then its columns in the new order."""
    if new.former_name:
        yield from _name_changes(TableName.parse(new.former_name), new.relation.table)
    if old is None:
        return
    if old.relation.identity != new.relation.identity:
        yield Change("table_recreated", None, old.relation.identity, new.relation.identity)
    yield from _column_changes(old.relation, new.relation)
    if old.relation.key != new.relation.key:
        yield Change("key_changed", None, ", ".join(old.relation.key), ", ".join(new.relation.key))
    yield from _fact_changes(old.relation, new.relation)
    if old.record != new.record:
        yield Change("record_configuration_changed")


def _name_changes(former: TableName, now: TableName) -> Iterator[Change]:
    if former.schema != now.schema:
        yield Change("table_moved", None, former.schema, now.schema)
    if former.table != now.table:
        yield Change("table_renamed", None, former.table, now.table)


def _column_changes(old: Relation, new: Relation) -> Iterator[Change]:
    pairs = _pairs(old, new)
    for before, after in pairs:
        if before is not None and after is None:
            yield Change("column_dropped", before.name, before.type, None)
    for before, after in pairs:
        if after is not None and before is None:
            yield Change("column_added", after.name, None, after.type, after.default, _fill(after))
        elif after is not None and before is not None:
            yield from _changes_of(before, after)
    kept = [before.name for before, after in pairs if before is not None and after is not None]
    if kept != [column.name for column in _recorded(old) if column.name in kept]:
        yield Change("columns_reordered")
    if _left_out(old) != _left_out(new):
        yield Change("excluded_columns_changed")


def _pairs(old: Relation, new: Relation) -> tuple[ColumnPair, ...]:
    if old.identity == new.identity:
        return paired_columns(_recorded(old), _recorded(new))
    # Numbers are those of one table.
    return paired_columns(_numberless(old), _recorded(new))


def _numberless(relation: Relation) -> tuple[Column, ...]:
    return tuple(msgspec.structs.replace(column, number=0) for column in _recorded(relation))


def _recorded(relation: Relation) -> tuple[Column, ...]:
    return tuple(column for column in relation.columns if column.included)


def _left_out(relation: Relation) -> tuple[tuple[object, ...], ...]:
    return tuple((c.name, *_type(c)) for c in relation.columns if not c.included)


def _changes_of(old: Column, new: Column) -> Iterator[Change]:
    if old.name != new.name:
        yield Change("column_renamed", new.name, old.name, new.name)
    if _type(old) != _type(new):
        yield Change("type_changed", new.name, old.type, new.type)
    if old.nullable != new.nullable:
        yield Change("nullability_changed", new.name, _null_text(old), _null_text(new))
    if old.default != new.default:
        yield Change("default_changed", new.name, old.default, new.default)
    if _type(old) == _type(new) and old.labels and new.labels and old.labels != new.labels:
        yield _label_change(old, new)
    if old.hashed != new.hashed:
        yield Change("hash_changed", new.name, _hash_text(old), _hash_text(new))


def _label_change(old: Column, new: Column) -> Change:
    kept = tuple(label for label in new.labels if label in old.labels)
    if kept == old.labels:
        added = [label for label in new.labels if label not in old.labels]
        return Change("labels_added", new.name, None, ", ".join(added))
    return Change("labels_changed", new.name, ", ".join(old.labels), ", ".join(new.labels))


def _type(column: Column) -> tuple[str, str, int, int]:
    # A type that was dropped and made again has its old name and another number.
    return (column.type, column.type_kind, column.type_id, column.type_modifier)


def _fact_changes(old: Relation, new: Relation) -> Iterator[Change]:
    for name, value in new.facts.items():
        before = old.facts.get(name, "")
        # A fact that is the table's identity itself has changed with it.
        if value != before and str(value) != new.identity:
            yield Change(f"{name}_changed", None, str(before), str(value))


def _hash_text(column: Column) -> str:
    return "hash" if column.hashed else "plain"


def _null_text(column: Column) -> str:
    return "null" if column.nullable else "not null"
