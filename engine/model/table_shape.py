"""How a table stores its rows, as a look saw it: what tells that values changed without a record.

Some changes of a table's shape give the rows that are there other values, and no row is written to
the source's log: a column is added with a default, a column's type is changed and every row written
anew, a column is dropped and another one made under its name. Whoever folds the records would go on
with the old values.

Strategy: a look notes what the source keeps of each table: the file that holds its rows, and its
columns by number, each with a mark of whoever touched it last. Two looks are compared. A shape is
text until it differs: with thousands of tables nearly none does.

Invariant: pure. What may have changed a value without a record has a reason; what cannot has none.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

COLUMN_REMADE: Final = "column-remade"
ROWS_REWRITTEN: Final = "rows-rewritten"
TYPE_CHANGED: Final = "type-changed"
LABEL_RENAMED: Final = "label-renamed"
COMPOSITE_ALTERED: Final = "composite-altered"
COLUMN_FILLED: Final = "column-filled"
COLUMN_SHOWN: Final = "column-shown"
RENAMED: Final = "renamed"
COLUMNS_UNCLEAR: Final = "columns-unclear"

TEXTS: Final = {
    COLUMN_REMADE: "a column was dropped and another one added with its name or its type; the"
    " stream does not show what rows from before have there now",
    ROWS_REWRITTEN: "a column was added or altered, and every row was written anew; the stream does"
    " not show which values rows from before have now",
    TYPE_CHANGED: "a column has another type, under which the stored values read otherwise; the"
    " stream does not show how",
    LABEL_RENAMED: "a label of an enumeration was renamed; rows that have it read otherwise now",
    COMPOSITE_ALTERED: "attributes of a composite type were added or dropped; rows that have values"
    " of it read otherwise now",
    COLUMN_FILLED: "a column was added with a value for the rows that were there, which"
    " schema.json does not tell; the stream does not show it",
    COLUMN_SHOWN: "a column that was there already, and was not sent, is sent now; the stream does"
    " not show which values rows from before have in it",
    RENAMED: "the table had another captured name before; the rows that it had by then are under"
    " that name in the bucket, not under this one",
    COLUMNS_UNCLEAR: "columns went and others came, and nobody can say whether one of them was"
    " renamed: so it is not known which values rows from before have in the columns that came",
}
"""What each reason means, for whoever reads it in the journal."""

NOT_FILLED: Final = 0
FILL_TOLD: Final = 1
FILL_HIDDEN: Final = 2
"""Whether rows that were there when a column was added have a value in it, and whether the column
of a version says which (`Column.fill`)."""


class StoredColumn(msgspec.Struct, frozen=True, array_like=True):
    """One column. `number` is never given twice.

    Values of types with the same `type` read the same where they were not written anew. `written`
    is another one whenever somebody touched the column. `labels` are those of an enumeration, by
    what stays of a label when it is renamed. `attributes` are the types of a composite type's, by
    their numbers, which are never given twice.
    """

    number: int
    name: str
    type: str
    written: str
    fill: int = NOT_FILLED
    labels: dict[str, str] | None = None
    attributes: dict[str, str] | None = None


class TableShape(msgspec.Struct, frozen=True, array_like=True):
    """A whole table. `file` is another one whenever all of its rows were written anew.

    `height` is the highest number that a column of it ever had, and `dropped` are those of columns
    that are gone.
    """

    file: str
    columns: tuple[StoredColumn, ...]
    height: int = 0
    dropped: tuple[int, ...] = ()


def decode_shape(text: str) -> TableShape:
    """The shape that `text` says. Raises msgspec.DecodeError where it says none."""
    return msgspec.json.decode(text, type=TableShape)


def encode_shape(shape: TableShape) -> str:
    """The inverse of `decode_shape`."""
    return msgspec.json.encode(shape).decode()


def hidden_change(before: str, now: str) -> str:
    """Why rows that were there may have other values, with no record of it; empty: they have not.

    `before` and `now` are one table's shapes in two looks. Where one is empty nothing is known.
    """
    if before == now or not before or not now:
        return ""
    return next(_reasons(decode_shape(before), decode_shape(now)), "")


def _reasons(before: TableShape, now: TableShape) -> Iterator[str]:
    old = {column.number: column for column in before.columns}
    kept = {column.number for column in now.columns}
    went = [column for column in before.columns if column.number not in kept]
    came = [column for column in now.columns if column.number not in old]
    stayed = [(old[column.number], column) for column in now.columns if column.number in old]
    altered = [(was, column) for was, column in stayed if was.written != column.written]
    # Of a column that came and went between the looks nobody knows the name.
    passed = any(number > before.height for number in now.dropped)
    if came and (passed or any(a.name == b.name or a.type == b.type for a in went for b in came)):
        # Under the same name and type the stream shows the two as one. Where the new one was
        # renamed since, records between may have taken it for the old one.
        yield COLUMN_REMADE
    if before.file != now.file and (came or altered):
        yield ROWS_REWRITTEN
    if any(was.type != column.type for was, column in altered):
        yield TYPE_CHANGED
    if any(_is_label_renamed(was, column) for was, column in stayed):
        yield LABEL_RENAMED
    if any(_is_composite_altered(was, column) for was, column in stayed):
        yield COMPOSITE_ALTERED
    if any(column.fill == FILL_HIDDEN for column in came):
        yield COLUMN_FILLED
    # It had its number before, and records did not have it: a generated column lost its expression.
    if any(column.number <= before.height for column in came):
        yield COLUMN_SHOWN


def _is_label_renamed(was: StoredColumn, now: StoredColumn) -> bool:
    known, labels = was.labels or {}, now.labels or {}
    return any(labels.get(key, label) != label for key, label in known.items())


def _is_composite_altered(was: StoredColumn, now: StoredColumn) -> bool:
    if was.attributes is None or now.attributes is None or was.type != now.type:
        return False
    return was.attributes != now.attributes
