"""Tables, their columns, and the versions of a table's shape.

Strategy: a `Relation` is what the source says about a table now; a `TableVersion` is a relation
that the journal (or this engine, provisionally) has given a number. A row belongs to the version
of the highest number whose first position is at or before the row, if that version still has the
row's relation, key and record configuration; otherwise the highest number + 1 begins at this row.
So a replay decides the same. Where the source can only guess a row's key, the version in force
keeps its own: another key begins with the first row that is known to come after it was seen.

Invariant: nothing here reads a clock or a catalog; the same arguments give the same answer.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from engine.model.position import LogPosition, Position

MESSAGES_IDENTITY: Final = "messages"
"""The identity of the table of messages (`RecordConfiguration.messages`). No source has it as a
table, so no look shows it, and it never goes."""

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*\Z")
_PARTS = re.compile(r'("(?:[^"]|"")*"|[^".]+)\.("(?:[^"]|"")*"|[^".]+)\Z')


class TableName(msgspec.Struct, frozen=True, order=True, cache_hash=True, gc=False):
    """A table's raw names, unquoted. Every batch is looked up by it a few times."""

    schema: str
    table: str

    def __str__(self) -> str:
        """`schema.table`, parts quoted as SQL would: distinct tables have distinct texts."""
        return f"{_quoted(self.schema)}.{_quoted(self.table)}"

    @classmethod
    def parse(cls, text: str) -> "TableName":
        """The inverse of `str`. Raises ValueError when `text` is not of that form."""
        match = _PARTS.match(text)
        if match is None:
            raise ValueError(f"not schema.table: {text!r}")
        return cls(_unquoted(match[1]), _unquoted(match[2]))


def _quoted(name: str) -> str:
    if _PLAIN.match(name):
        return name
    return '"' + name.replace('"', '""') + '"'


def _unquoted(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


class Column(msgspec.Struct, frozen=True, omit_defaults=True):
    """One column, in the relation's order.

    `type` is the source's own text (`character varying(20)`), `type_kind` how its reader takes
    it (`integer`, `timestamptz`, `integer[]`, `text`: see the source's type table), `json` the
    JSON type of its values (`number`, `string`, `boolean`, `array`, `any`). `key` says that
    `before` always holds it. `type_id` and `type_modifier` tell types apart as the stream does.
    `nullable` and `default` are advisory: only the catalog knows them, and `default` is None too
    where it could not be read. `included` says that records hold it, `hashed` that they hold its
    values as hashes.

    `number` stays with the column as long as its table has it, also under another name; it is 0
    where it is not surely known. `fill` is the JSON value, as a record would hold it, of the rows
    that were there when the column was added: nobody wrote it into them, so the stream never shows
    it. It is empty where they got none (they have null), or where it is not known. `labels` are an
    enumeration's, in its order, as the catalog had them; empty for other types, where they could
    not be read, and of very long lists. They are advisory, too.
    """

    name: str
    type: str
    type_kind: str
    key: bool
    json: str = "string"
    nullable: bool = True
    default: str | None = None
    type_id: int = 0
    type_modifier: int = -1
    included: bool = True
    hashed: bool = False
    number: int = 0
    fill: str = ""
    labels: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[str, int, int, bool]:
        """What the stream itself shows of the column: a difference here makes a new version."""
        return (self.name, self.type_id, self.type_modifier, self.key)


class Relation(msgspec.Struct, frozen=True, omit_defaults=True):
    """A table as the stream showed it, described by the catalog.

    `identity` stays while it is the same table, also under another name. `key` names the columns
    that `before` always holds. Where that is the whole row or nothing, `key` names those of the
    primary key, which only the catalog knows. `facts` are whatever else the source says of the
    table, each under its own name for it. schema.json shows them, and another value is another
    version.

    `is_key_guessed`: the catalog was looked at after the row was written, or knows the table no
    more. So what it says of the key may have come later. A version's relation is never guessed.
    """

    table: TableName
    identity: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    facts: dict[str, str | int] = {}
    is_key_guessed: bool = False

    @property
    def shape(self) -> tuple[object, ...]:
        """What the stream itself shows: whose it is, its facts and columns. The key is apart."""
        columns = tuple(column.shape for column in self.columns)
        return (self.identity, tuple(sorted(self.facts.items())), columns)


class TableVersion(msgspec.Struct, frozen=True):
    """A relation under a number. `first` is None for a version that no streamed row takes.

    `record` is the digest of the record configuration that shapes this table's lines.
    `flat_prefix` is what the flat envelope's own names begin with, empty with another envelope.
    `former_name` is the one under which rows of the same table came before, where that was another.
    """

    number: int
    first: Position | None
    record: str
    relation: Relation
    flat_prefix: str = ""
    former_name: str = ""


def shape_digest(relation: Relation) -> str:
    """Names a shape and its key: the same digest, nothing that begins a version differs."""
    shaped = (*relation.shape, relation.key)
    return hashlib.sha256(msgspec.json.encode(shaped)).hexdigest()[:16]


ColumnPair = tuple[Column | None, Column | None]
"""A column before and after; None where it was not there, or is not there any more."""


def paired_columns(before: tuple[Column, ...], after: tuple[Column, ...]) -> tuple[ColumnPair, ...]:
    """Which column of one shape of a table is which one of a later shape; those that went first.

    Columns with the same number are the same. Where the number of one of two is not known, they are
    the same if they have the same name.
    """
    by_number = {column.number: column for column in before if column.number}
    by_name = {column.name: column for column in before}
    pairs: list[ColumnPair] = []
    taken: set[str] = set()
    for column in after:
        known = by_number.get(column.number)
        if known is None:
            known = by_name.get(column.name)
            if known is not None and known.number and column.number:
                known = None
        if known is not None and known.name in taken:
            known = None
        if known is not None:
            taken.add(known.name)
        pairs.append((known, column))
    went: list[ColumnPair] = [(column, None) for column in before if column.name not in taken]
    return (*went, *pairs)


def is_rename_unclear(before: Relation, after: Relation) -> bool:
    """Whether a column may have been renamed between two shapes of a table, and may not have been.

    Then nobody can say which values rows from before have in the columns that are new.
    """
    if before.identity != after.identity:
        return False
    pairs = paired_columns(before.columns, after.columns)
    went = [column for column, now in pairs if column is not None and now is None]
    came = [now for column, now in pairs if column is None and now is not None]
    return any(not (a.number and b.number) for a in went for b in came)


Decide = Callable[[Relation, Position], TableVersion | None]
"""Which version a row takes; None: it is not wanted (received already, or durable)."""


def version_at(versions: Iterable[TableVersion], position: Position) -> TableVersion | None:
    """The version of a streamed row: the highest number whose first position is at or before it."""
    known = [v for v in versions if v.first is not None and v.first <= position]
    return max(known, key=_number, default=None)


def newest_version(
    versions: Iterable[TableVersion], row: Position, point: LogPosition, number: int
) -> TableVersion | None:
    """The version of the newest row of a table that has a snapshot as of `point`.

    `row` is the newest one of its stream, or nowhere; `number` is the version of the snapshot's.
    By place, not by number: a snapshot may take an older version again, and so may a row behind it,
    where a column was added, a snapshot was taken, and the column was dropped.
    """
    known = tuple(versions)
    if row < point:
        return next(version for version in known if version.number == number)
    return version_at(known, row)


def decide_version(
    versions: tuple[TableVersion, ...],
    relation: Relation,
    record: str,
    position: Position,
    flat_prefix: str = "",
) -> TableVersion:
    """The version of the row at `position`; one that is not in `versions` begins at this row."""
    found = version_at(versions, position)
    if relation.is_key_guessed:
        relation = _settled(relation, found)
    if found is not None and _is_alike(found, relation) and found.record == record:
        return found
    number = 1 + max(map(_number, versions), default=0)
    return TableVersion(number, position, record, relation, flat_prefix)


def snapshot_version(
    versions: tuple[TableVersion, ...], relation: Relation, record: str, flat_prefix: str = ""
) -> TableVersion:
    """The version of a snapshot's rows: the newest one that is alike, else a new one.

    A new one has no first position: a replay of the stream decides as if it were not there.
    """
    alike = [v for v in versions if _is_alike(v, relation) and v.record == record]
    if alike:
        return max(alike, key=_number)
    number = 1 + max(map(_number, versions), default=0)
    return TableVersion(number, None, record, relation, flat_prefix)


def _is_alike(version: TableVersion, relation: Relation) -> bool:
    known = version.relation
    return known.shape == relation.shape and known.key == relation.key


def _settled(relation: Relation, found: TableVersion | None) -> Relation:
    """The relation with a key for good: a guess never takes the place of the key in force.

    That is the key of the version before, as long as it is the same table, still has the columns,
    and did not merely name all of them.
    """
    key = relation.key
    if found is not None and found.relation.identity == relation.identity:
        before = found.relation
        names = {column.name for column in relation.columns}
        is_whole = len(before.key) == len(before.columns)
        if before.shape == relation.shape or (not is_whole and names.issuperset(before.key)):
            key = before.key
    return msgspec.structs.replace(relation, key=key, is_key_guessed=False)


def _number(version: TableVersion) -> int:
    return version.number
