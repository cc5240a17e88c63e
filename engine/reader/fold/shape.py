"""What the fold has to know of a version's lines, and which versions can be folded into one state.

Strategy: a version's columns are told apart by name and by a *form*. Two columns of one name with
the same form write the same value as the same text, and they are the same column: none was dropped
in between. Where rows are compared by their text (keys, tables without a key, columns that a later
line left out), only columns of one form are compared.

Invariant: nothing is guessed. Versions whose rows cannot be compared are refused by name.
"""

from collections.abc import Iterator, Mapping

import msgspec

from engine.model.errors import StateUnknown
from engine.model.record import Envelope
from engine.model.schema import Column, TableVersion


class Shape(msgspec.Struct, frozen=True):
    """A version as the fold sees it.

    `identity` is the table's: another one is another table of the same name. `columns` are those
    that records hold, in order, and `forms` and `defaults` theirs. `key` names the columns that
    tell rows apart. With `is_whole_row` those are all columns of the table: whether they are a key
    or there is none, rows are then counted by their whole text.
    """

    table: str
    version: int
    identity: str
    envelope: Envelope
    columns: tuple[str, ...]
    forms: tuple[str, ...]
    defaults: tuple[str | None, ...]
    key: tuple[str, ...]
    is_whole_row: bool


def shapes_of(
    versions: tuple[TableVersion, ...], envelopes: Mapping[int, Envelope]
) -> dict[int, Shape]:
    """The shapes of a table's `versions`, by number; `envelopes` are theirs.

    `versions` are all of them: a column that one lacks is another column behind it.
    """
    ordered = sorted(versions, key=lambda version: version.number)
    incarnations: dict[str, int] = {}
    shown: frozenset[str] = frozenset()
    found: dict[int, Shape] = {}
    for version in ordered:
        names = frozenset(column.name for column in version.relation.columns)
        for name in names - shown:
            incarnations[name] = incarnations.get(name, 0) + 1
        shown = names
        found[version.number] = _shape(version, envelopes[version.number], incarnations)
    return found


def require_foldable(shape: Shape) -> None:
    """Raise StateUnknown where lines of this shape do not tell the table's state."""
    if shape.envelope == "flat":
        raise StateUnknown(
            f"{shape.table}, version {shape.version}: records of the flat envelope do not show the "
            "key that a row had before, so the current state cannot be told from them",
            hint='Publish with envelope = "standard" or "debezium".',
        )
    if not shape.key:
        raise StateUnknown(
            f"{shape.table}, version {shape.version}: the table has no key, and its replica "
            "identity is not the whole row"
        )
    missing = [name for name in shape.key if name not in shape.columns]
    if missing and not shape.is_whole_row:
        raise StateUnknown(
            f"{shape.table}, version {shape.version}: its key has the column {missing[0]!r}, which "
            "records do not hold"
        )


def require_alike(newest: Shape, older: Shape) -> None:
    """Raise StateUnknown where rows of `older` cannot be told apart as those of `newest` are.

    Both are foldable, and of the same table.
    """
    reason = _unlike_rows(newest, older) if newest.is_whole_row else _unlike_keys(newest, older)
    if reason:
        raise StateUnknown(
            f"{newest.table}: rows of version {older.version} cannot be folded with those of "
            f"version {newest.version}: {reason}",
            hint="A resync of the table makes the older rows superfluous.",
        )


def _shape(version: TableVersion, envelope: Envelope, incarnations: Mapping[str, int]) -> Shape:
    relation = version.relation
    included = [column for column in relation.columns if column.included]
    return Shape(
        table=str(relation.table),
        version=version.number,
        identity=relation.identity,
        envelope=envelope,
        columns=tuple(column.name for column in included),
        forms=tuple(_form(column, version, incarnations[column.name]) for column in included),
        defaults=tuple(column.default for column in included),
        key=relation.key,
        is_whole_row={column.name for column in relation.columns} == set(relation.key),
    )


def _form(column: Column, version: TableVersion, incarnation: int) -> str:
    # Integers of any width are written alike. A hash depends on a key that the digest stands for.
    type_ = () if column.type_kind == "integer" else (column.type_id, column.type_modifier)
    hashed = version.record if column.hashed else ""
    return repr((column.type_kind, *type_, column.json, hashed, incarnation))


def _forms(shape: Shape) -> dict[str, str]:
    return dict(zip(shape.columns, shape.forms, strict=True))


def _unlike_keys(newest: Shape, older: Shape) -> str:
    if set(newest.key) != set(older.key):
        return f"its key is ({', '.join(older.key)}), not ({', '.join(newest.key)})"
    now, then = _forms(newest), _forms(older)
    for name in newest.key:
        if now[name] != then[name]:
            return f"the column {name!r} of its key has other values"
    return ""


def _unlike_rows(newest: Shape, older: Shape) -> str:
    return next(_row_differences(newest, older), "")


def _row_differences(newest: Shape, older: Shape) -> Iterator[str]:
    then = _forms(older)
    for name, form, default in zip(newest.columns, newest.forms, newest.defaults, strict=True):
        if name not in then:
            if default is not None:
                yield f"it has no column {name!r}, whose default its rows have now"
        elif then[name] != form:
            yield f"its column {name!r} has other values"
        elif name not in older.key:
            yield f"its key is ({', '.join(older.key)}), and rows are told apart by {name!r} now"
