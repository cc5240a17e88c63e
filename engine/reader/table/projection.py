"""Rows of older versions in the columns of the newest one. Pure.

Strategy: a row of the current state may have been written when the table had other columns. What
was dropped since is left out, what was added is null, and the order is the newest version's. Values
stay the very text that was recorded.

Invariant: nothing is guessed. Where a row has a value now that no record holds, because a column
was added with a default or its type was changed, that is said before a row is given (`unrecorded`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from engine.model.schema import Column, TableVersion
from engine.reader.table.doubts import Doubt

_RESYNC = "tailrace resync has the table read again, with the values that rows have now."
_NULL = msgspec.Raw(b"null")
_ROW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_WRITER = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Projection:
    """What becomes of one version's rows."""

    columns: tuple[str, ...]
    carried: frozenset[str]
    is_same: bool

    def rows(self, lines: bytes) -> bytes:
        """The rows, each with the newest version's columns."""
        if self.is_same:
            return lines
        return b"".join(self._row(line) for line in lines.splitlines(keepends=True))

    def _row(self, line: bytes) -> bytes:
        known = _ROW.decode(line)
        kept = {
            name: known.get(name, _NULL) if name in self.carried else _NULL for name in self.columns
        }
        return _WRITER.encode(kept) + b"\n"


def projection(
    older: TableVersion, newest: TableVersion, versions: Sequence[TableVersion]
) -> Projection:
    """What becomes of rows of `older`, one of the table's `versions`, in `newest`."""
    columns = tuple(column.name for column in recorded(newest))
    is_same = columns == tuple(column.name for column in recorded(older))
    carried = _carried(older, newest, versions)
    return Projection(columns, carried, is_same and carried.issuperset(columns))


def recorded(version: TableVersion) -> tuple[Column, ...]:
    """The columns that a version's records hold."""
    return tuple(column for column in version.relation.columns if column.included)


def _carried(
    older: TableVersion, newest: TableVersion, versions: Sequence[TableVersion]
) -> frozenset[str]:
    """The columns that are the same ones in both: none was dropped in between."""
    low, high = sorted((older.number, newest.number))
    between = [version for version in versions if low <= version.number <= high]
    names = [frozenset(column.name for column in version.relation.columns) for version in between]
    held = frozenset(column.name for column in recorded(older))
    return held.intersection(*names)


def unrecorded(
    numbers: Sequence[int], newest: TableVersion, versions: Sequence[TableVersion]
) -> Iterator[Doubt]:
    """The values that rows of the versions with these `numbers` have now and no record holds."""
    for older in versions:
        same_table = older.relation.identity == newest.relation.identity
        if older.number == newest.number or older.number not in numbers or not same_table:
            continue
        carried = _carried(older, newest, versions)
        kinds = {column.name: column.type_kind for column in recorded(older)}
        for column in recorded(newest):
            where = f"column {column.name!r} of {newest.relation.table}"
            if column.name not in carried and column.default is not None:
                text = f"{where} has a default, and rows of version {older.number} lack it"
                yield Doubt("default-unrecorded", text, _RESYNC)
            elif column.name in carried and kinds[column.name] != column.type_kind:
                text = f"{where} had another type in version {older.number}, which rows are of"
                yield Doubt("type-changed", text, _RESYNC)
