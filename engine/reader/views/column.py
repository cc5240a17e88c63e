"""One column as a view shows it, followed back through the versions of its table.

Strategy: going back from the column as it is, each step to an earlier version says what it was
there: under another name, of another type, or not there at all. What holds for all records that
count needs no SQL.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from engine.model.position import NOWHERE, Position
from engine.model.printable import printable
from engine.model.record import JsonMode
from engine.model.schema import Column, Relation, is_rename_unclear, paired_columns
from engine.reader.views.history import History

# Values of these kinds are short: a source never leaves them out of a row.
_SHORT_KINDS: Final = frozenset(
    {
        "boolean",
        "integer",
        "float",
        "timestamp",
        "timestamptz",
        "date",
        "time",
        "timetz",
        "interval",
        "money",
    }
)


@dataclass(frozen=True, slots=True)
class ViewColumn:
    """One column as it is now.

    `former` has its earlier names, the latest first: records before that position have it under
    that name. Records before `born` have no such column; empty: all that count have it. `fill` is
    the text that rows from before have in it, None for null; `is_fill_known` says whether that is
    known. `retyped` is where it got its kind of now, empty where that is all along. Types of a kind
    are written alike; where rows were written anew, the journal has a gap.

    `is_in_before`: `before` always holds it. `is_long`: the source may leave it out of an update
    that did not change it. `is_structured`: records hold an array or any JSON for it, no scalar.
    """

    name: str
    type: str
    kind: str
    is_hashed: bool
    is_in_before: bool
    is_long: bool
    is_structured: bool
    former: tuple[tuple[Position, str], ...] = ()
    born: Position = NOWHERE
    fill: str | None = None
    is_fill_known: bool = True
    retyped: Position = NOWHERE

    @property
    def is_carried(self) -> bool:
        """Whether the newest record of a row may not hold it, so that an earlier one has to."""
        return (self.is_long and not self.is_in_before) or bool(self.born)

    def name_at(self, position: Position) -> str:
        """Its name in a record at `position`, where the record has it."""
        return next((name for at, name in reversed(self.former) if position < at), self.name)


def view_column(
    column: Column, history: History, json: JsonMode, *, is_before_told: bool
) -> ViewColumn:
    """The column of the table as it is, with what records from before have for it.

    `is_before_told`: an update's record has what its row had, as far as it was sent.
    """
    is_embedded = column.type_kind == "json" and json == "embed"
    is_structured = (is_embedded or column.type_kind.endswith("[]")) and not column.hashed
    past = _past(column, history)
    fill = _fill_text(past.first.fill, is_structured=is_structured) if past.born else None
    return ViewColumn(
        name=column.name,
        type=column.type,
        kind=column.type_kind,
        is_hashed=column.hashed,
        is_in_before=past.is_in_before and is_before_told,
        is_long=column.type_kind not in _SHORT_KINDS or column.hashed,
        is_structured=is_structured,
        former=tuple(past.former),
        born=past.born,
        fill=fill if fill is not None and _is_printable(fill) else None,
        is_fill_known=past.is_fill_known and (fill is None or _is_printable(fill)),
        retyped=past.retyped,
    )


@dataclass(slots=True)
class _Past:
    """A column followed back to the floor, or to where it came. `first` is what it was there."""

    first: Column
    is_in_before: bool
    former: list[tuple[Position, str]]
    born: Position = NOWHERE
    is_fill_known: bool = True
    retyped: Position = NOWHERE


def _past(column: Column, history: History) -> _Past:
    past = _Past(column, column.key, [])
    for earlier, era in history.steps_back():
        before, after = earlier.version.relation, era.version.relation
        pairs = paired_columns(before.columns, after.columns)
        known = next(old for old, new in pairs if new is not None and new.name == past.first.name)
        if known is None or not known.included:
            past.born = era.position
            past.is_fill_known = known is None and _is_fill_known(past.first, before, after)
            break
        if known.name != past.first.name:
            past.former.append((era.position, known.name))
        if (known.type_kind, known.hashed) != (past.first.type_kind, past.first.hashed):
            past.retyped = past.retyped or era.position
        past.is_in_before &= known.key
        past.first = known
    return past


def _is_fill_known(column: Column, before: Relation, after: Relation) -> bool:
    """Whether it is known what the rows of before have in a column that was added.

    They have null where nothing says otherwise. A default that is no constant does, and so may a
    column that went in the same step: it may have been renamed.
    """
    if column.fill:
        return True
    is_null = column.default is None and column.nullable
    return is_null and not is_rename_unclear(before, after)


def _fill_text(fill: str, *, is_structured: bool) -> str | None:
    """A value as a record holds it, as the text that a view takes it by."""
    if not fill or fill == "null":
        return None
    if is_structured or not fill.startswith('"'):
        return fill
    return msgspec.json.decode(fill, type=str)


def _is_printable(text: str) -> bool:
    # What a terminal would act on is not printed, and it must not be printed otherwise.
    return printable(text, keep="\n") == text
