"""Rows of older versions in the columns of the newest one. Pure.

Strategy: a row of the current state may have been written when the table had other columns. Version
by version it is known which column is which. What was dropped since is left out, what was renamed
has its new name, and what was added has the value that rows got that were there (`Column.fill`), or
null. Values stay the very text that was recorded.

Invariant: nothing is guessed. Where a row has a value now that no record holds and that nobody
knows, that is said before a row is given (`unrecorded`).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from engine.model.schema import Column, TableVersion, is_rename_unclear, paired_columns
from engine.reader.table.doubts import Doubt

_RESYNC = "tailrace resync has the table read again, with the values that rows have now."
_NULL = msgspec.Raw(b"null")
_ROW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_WRITER = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an older row's value of a column comes from: its column then, else what it got.

    `then` is None where the table did not have the column. `added` is the column as it was added.
    """

    now: Column
    then: Column | None
    added: Column | None

    @property
    def otherwise(self) -> msgspec.Raw:
        """The value of a row whose record does not have it."""
        return msgspec.Raw(self.added.fill.encode()) if self.added and self.added.fill else _NULL


@dataclass(frozen=True, slots=True)
class Projection:
    """What becomes of one version's rows."""

    origins: tuple[Origin, ...]
    is_same: bool

    def rows(self, lines: bytes) -> bytes:
        """The rows, each with the newest version's columns."""
        if self.is_same:
            return lines
        return b"".join(self._row(line) for line in lines.splitlines(keepends=True))

    def _row(self, line: bytes) -> bytes:
        known = _ROW.decode(line)
        kept = {
            origin.now.name: known.get(origin.then.name, _NULL)
            if origin.then is not None
            else origin.otherwise
            for origin in self.origins
        }
        return _WRITER.encode(kept) + b"\n"


def recorded(version: TableVersion) -> tuple[Column, ...]:
    """The columns that a version's records hold."""
    return tuple(column for column in version.relation.columns if column.included)


def projection(
    older: TableVersion, newest: TableVersion, versions: Sequence[TableVersion]
) -> Projection:
    """What becomes of rows of `older` in `newest`.

    Both are among `versions`, which are in the order in which they hold: a snapshot's version may
    have a lower number than those that begin before its point.
    """
    found = origins(older, newest, versions)
    then = [origin.then.name if origin.then is not None else None for origin in found]
    names = [column.name for column in recorded(older)]
    return Projection(found, then == names == [origin.now.name for origin in found])


def origins(
    older: TableVersion, newest: TableVersion, versions: Sequence[TableVersion]
) -> tuple[Origin, ...]:
    """Where rows of `older` have the values of `newest`'s columns."""
    found = [Origin(column, column, None) for column in recorded(newest)]
    for before, after in reversed([*pairwise(_between(older, newest, versions))]):
        pairs = {
            now.name: then
            for then, now in paired_columns(before.relation.columns, after.relation.columns)
            if now is not None
        }
        found = [_further(origin, pairs) for origin in found]
    return tuple(found)


def _further(origin: Origin, pairs: dict[str, Column | None]) -> Origin:
    """The same, one version further back."""
    if origin.then is None:
        return origin
    then = pairs[origin.then.name]
    if then is None:
        return Origin(origin.now, None, origin.then)
    # A column that records left out then has values that nobody recorded.
    return Origin(origin.now, then, None) if then.included else Origin(origin.now, None, then)


def _between(
    older: TableVersion, newest: TableVersion, versions: Sequence[TableVersion]
) -> list[TableVersion]:
    places = [version.number for version in versions]
    return [*versions[places.index(older.number) : places.index(newest.number) + 1]]


def unrecorded(
    numbers: Collection[int], newest: TableVersion, versions: Sequence[TableVersion]
) -> Iterator[Doubt]:
    """The values that rows of the versions with these `numbers` have now and no record holds.

    `versions` are in the order in which they hold.
    """
    for older in versions:
        if older.number == newest.number:
            break
        is_same_table = older.relation.identity == newest.relation.identity
        if older.number not in numbers or not is_same_table:
            continue
        for before, after in pairwise(_between(older, newest, versions)):
            if is_rename_unclear(before.relation, after.relation):
                text = f"a column of {newest.relation.table} may have been renamed in version"
                yield Doubt("rename-unclear", f"{text} {after.number}, and may not", _RESYNC)
        for origin in origins(older, newest, versions):
            yield from _doubts(origin, older)


def _doubts(origin: Origin, older: TableVersion) -> Iterator[Doubt]:
    where = f"column {origin.now.name!r} of {older.relation.table}"
    added, then = origin.added, origin.then
    if added is not None and not added.included:
        text = f"{where} was left out of the records of version {older.number}"
        yield Doubt("column-unrecorded", text, _RESYNC)
    elif added is not None and added.default is not None and not added.fill:
        text = f"{where} has a default, and rows of version {older.number} lack it"
        yield Doubt("default-unrecorded", text, _RESYNC)
    elif then is not None and (then.type_kind, then.hashed) != (
        origin.now.type_kind,
        origin.now.hashed,
    ):
        text = f"{where} had another type in version {older.number}, which rows are of"
        yield Doubt("type-changed", text, _RESYNC)
