"""A twin of the engine's slot: the same changes, read by SQL and decoded beside the engine.

Strategy: `pg_logical_slot_peek_binary_changes` gives pgoutput's messages in order, from a slot that
was made at the same point, with the same publication. Positions, keys and values are worked out
here anew, from the manual's message formats and the design's rule of positions. So whatever the
engine lost, doubled, moved or altered differs from the twin.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from databases import Database
from engine.sources.postgres.lsn import parse_lsn
from engine.sources.postgres.pgoutput import (
    Begin,
    Delete,
    Insert,
    OldTuple,
    RelationMessage,
    TupleData,
    TupleValue,
    Unchanged,
    Update,
    decode_message,
)

ABSENT = "\0absent"
"""Stands for a value that the source did not send."""

Columns = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class SeenChange:
    """One change as either side has it; `digest` stands for op and all values."""

    position: str
    op: str
    digest: int


Changes = dict[str, list[SeenChange]]
"""By table (`schema.table`), in order."""


def seen_change(
    position: str, op: str, before: Columns | None, after: Columns | None
) -> SeenChange:
    return SeenChange(position, op, hash((op, before, after)))


class Twin:
    """The slot. Made with nothing written between it and the engine's own slot."""

    def __init__(self, database: Database, publication: str) -> None:
        self.name = f"{database.name}_twin"
        self._database = database
        self._publication = publication
        database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", self.name)

    def drop(self) -> None:
        self._database.execute("SELECT pg_drop_replication_slot(%s)", self.name)

    def changes(self) -> Changes:
        """Everything committed since, a table's changes in commit order. Takes a while."""
        reading = _Reading()
        for lsn, message in self._messages():
            reading.take(parse_lsn(lsn), message)
        return dict(reading.changes)

    def _messages(self) -> Iterator[tuple[str, bytes]]:
        with (
            psycopg.connect(self._database.dsn) as connection,
            connection.cursor("twin", binary=True) as cursor,
        ):
            cursor.itersize = 5000
            cursor.execute(_PEEK, (self.name, self._publication))
            yield from cursor


_PEEK: LiteralString = """
SELECT lsn::text, data FROM pg_logical_slot_peek_binary_changes(
    %s, NULL, NULL, 'proto_version', '1', 'publication_names', %s)
"""


class _Reading:
    """From messages to changes."""

    def __init__(self) -> None:
        self.changes: defaultdict[str, list[SeenChange]] = defaultdict(list)
        self._relations: dict[int, RelationMessage] = {}
        self._commit_lsn = 0
        self._counts: dict[tuple[int, int], int] = {}

    def take(self, change_lsn: int, content: bytes) -> None:
        match decode_message(content):
            case Begin() as begin:
                self._commit_lsn = begin.commit_lsn
                self._counts.clear()
            case RelationMessage() as relation:
                self._relations[relation.oid] = relation
            case Insert(oid, new):
                self._add(oid, change_lsn, "c", None, self._values(oid, new))
            case Update(oid, old_kind, old, new):
                self._add(
                    oid, change_lsn, "u", self._old(oid, old_kind, old), self._values(oid, new)
                )
            case Delete(oid, old_kind, old):
                self._add(oid, change_lsn, "d", self._old(oid, old_kind, old), None)
            case _:
                pass

    def _add(
        self, oid: int, change_lsn: int, op: str, before: Columns | None, after: Columns | None
    ) -> None:
        relation = self._relations[oid]
        n = self._counts.get((oid, change_lsn), 0)
        self._counts[oid, change_lsn] = n + 1
        position = f"0001.{self._commit_lsn:016X}.{change_lsn:016X}.{n:06X}"
        self.changes[f"{relation.schema}.{relation.table}"].append(
            seen_change(position, op, before, after)
        )

    def _values(self, oid: int, values: TupleData) -> Columns:
        names = (column.name for column in self._relations[oid].columns)
        return tuple(
            sorted((name, _text(value)) for name, value in zip(names, values, strict=True))
        )

    def _old(self, oid: int, kind: OldTuple, values: TupleData) -> Columns | None:
        if kind is OldTuple.ABSENT:
            return None
        columns = self._relations[oid].columns
        return tuple(
            sorted(
                (column.name, _text(value))
                for column, value in zip(columns, values, strict=True)
                if kind is OldTuple.WHOLE or column.is_key
            )
        )


def _text(value: TupleValue) -> str | None:
    if value is Unchanged.TOKEN:
        return ABSENT
    return None if value is None else value.decode()


def recorded_change(record: dict[str, Any]) -> SeenChange:
    """A record of the standard envelope in the twin's terms."""
    metadata = record["metadata"]
    unchanged = metadata.get("unchanged", ())
    return seen_change(
        metadata["position"],
        metadata["op"],
        _columns(record["before"], ()),
        _columns(record["after"], unchanged),
    )


def _columns(row: dict[str, Any] | None, unchanged: tuple[str, ...]) -> Columns | None:
    if row is None:
        return None
    present = [(name, _literal(value)) for name, value in row.items()]
    return tuple(sorted([*present, *((name, ABSENT) for name in unchanged)]))


def _literal(value: object) -> str | None:
    """A JSON value as PostgreSQL prints it; for numbers, booleans and texts alone."""
    if isinstance(value, bool):
        return "t" if value else "f"
    return None if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one side has and the other has not, a few examples each; and rows that are alike."""

    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    unknown: tuple[str, ...]
    misplaced: tuple[str, ...]
    altered: tuple[str, ...]
    row_count: int

    @property
    def is_equal(self) -> bool:
        return not (self.lost or self.doubled or self.unknown or self.misplaced or self.altered)


def compare(twin: Changes, published: Changes) -> Comparison:
    """Both sides, table by table: `published` is in the order in which loaders see it."""
    lost: list[str] = []
    doubled: list[str] = []
    unknown: list[str] = []
    misplaced: list[str] = []
    altered: list[str] = []
    for table in sorted({*twin, *published}):
        wanted = {change.position: change for change in twin.get(table, [])}
        found: dict[str, SeenChange] = {}
        last = ""
        for change in published.get(table, []):
            name = f"{table} {change.position}"
            if change.position in found:
                doubled.append(name)
            elif change.position not in wanted:
                unknown.append(name)
            elif change != wanted[change.position]:
                altered.append(name)
            if change.position < last:
                misplaced.append(name)
            last = max(last, change.position)
            found[change.position] = change
        lost += [f"{table} {position}" for position in wanted if position not in found]
    few = slice(0, 5)
    return Comparison(
        _counted(lost, few),
        _counted(doubled, few),
        _counted(unknown, few),
        _counted(misplaced, few),
        _counted(altered, few),
        sum(map(len, twin.values())),
    )


def _counted(names: list[str], few: slice) -> tuple[str, ...]:
    return (f"{len(names)} in all", *names[few]) if names else ()
