"""The columns of an answer, whatever its form: which ones, in which order, of which kind. Pure.

Strategy: rows have the newest version's columns. Changes have those of all versions that are read,
the newest one's first, so a column that was dropped is there for the records that hold it. A
`numeric` whose digits differ has room for both. Where two versions disagree about a column's kind,
it is text.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from engine.model.errors import ReadRefused
from engine.model.schema import Column, TableVersion
from engine.reader.table.projection import recorded

TEXT: Final = "text"
DECIMAL_DIGITS_MAX: Final = 38

_DIGITS: Final = re.compile(r"\((\d+),\s*(\d+)\)(?:\[\])*\Z")


@dataclass(frozen=True, slots=True)
class ColumnKind:
    """How a column is read: its type kind, as in schema.json; `text` for one as it was recorded.

    `digits` are precision and scale of a `numeric` where both are known and fit a decimal.
    """

    name: str
    kind: str
    digits: tuple[int, int] | None = None


def columns_of(
    versions: Iterable[TableVersion], newest: TableVersion | None, as_text: Collection[str] = ()
) -> tuple[ColumnKind, ...]:
    """The columns of an answer that has rows of `versions`. Those in `as_text` are text.

    Raises ReadRefused where none of them has such a name.
    """
    others = [known for known in versions if newest is None or known.number != newest.number]
    ordered = [*([newest] if newest is not None else []), *reversed(others)]
    found: dict[str, ColumnKind] = {}
    for column in (column for version in ordered for column in recorded(version)):
        kind = _kind(column)
        is_text = column.name in as_text
        known = found.get(column.name, kind)
        found[column.name] = ColumnKind(column.name, TEXT) if is_text else _joined(known, kind)
    unknown = sorted(set(as_text) - found.keys())
    if unknown:
        raise ReadRefused(
            "column-unknown",
            f"there is no column {unknown[0]!r}; there are {', '.join(found)}",
        )
    return tuple(found.values())


def _joined(one: ColumnKind, other: ColumnKind) -> ColumnKind:
    """A kind that has room for values of both."""
    if one == other:
        return one
    if one.kind == other.kind and one.digits is not None and other.digits is not None:
        scale = max(one.digits[1], other.digits[1])
        precision = scale + max(digits[0] - digits[1] for digits in (one.digits, other.digits))
        if precision <= DECIMAL_DIGITS_MAX:
            return ColumnKind(one.name, one.kind, (precision, scale))
    return ColumnKind(one.name, TEXT)


def _kind(column: Column) -> ColumnKind:
    if column.hashed:
        return ColumnKind(column.name, TEXT)
    digits = None
    if column.type_kind.removesuffix("[]") == "numeric":
        found = _DIGITS.search(column.type)
        if found is not None and 1 <= int(found[1]) <= DECIMAL_DIGITS_MAX >= int(found[2]):
            digits = (max(int(found[1]), int(found[2])), int(found[2]))
    return ColumnKind(column.name, column.type_kind, digits)
