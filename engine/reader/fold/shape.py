"""What the fold has to know of a version's lines, and which versions can be folded into one state.

Strategy: a column keeps its *lineage* from version to version, under whatever name
(`paired_columns`). Beside that it has a *form*: two columns with the same form write the same value
as the same text. Where values are compared by their text (keys, whole rows), or carried from an
older record into a newer one, lineage and form have to be the same.

Invariant: nothing is guessed. Versions whose rows cannot be compared are refused by name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import msgspec

from engine.model.errors import StateUnknown
from engine.model.record import Envelope
from engine.model.schema import Column, Relation, TableVersion, paired_columns

JSON_NULL = "null"


class Shape(msgspec.Struct, frozen=True):
    """A version as the fold sees it.

    `identity` is the table's: another one is another table of the same name. `columns` are those
    that records hold, in order; `lineages` and `forms` are theirs. `fills` are the JSON values of
    rows that were there before a column was, None where nobody knows them. `hidden` are lineages of
    columns that records do not hold. `key` names the columns that tell rows apart. With
    `is_whole_row` those are all columns of the table: whether they are a key or there is none, rows
    are then counted by their whole text. A version does not say which of the two it is, so only
    who knows that it is a key may set it to False.
    """

    table: str
    version: int
    identity: str
    envelope: Envelope
    columns: tuple[str, ...]
    lineages: tuple[int, ...]
    forms: tuple[str, ...]
    fills: tuple[str | None, ...]
    hidden: frozenset[int]
    key: tuple[str, ...]
    is_whole_row: bool

    @property
    def places(self) -> dict[int, int]:
        """Where among `columns` each lineage is."""
        return {lineage: place for place, lineage in enumerate(self.lineages)}

    @property
    def key_lineages(self) -> tuple[int, ...]:
        """The lineages of the key's columns that records hold, in the key's order."""
        names = dict(zip(self.columns, self.lineages, strict=True))
        return tuple(names[name] for name in self.key if name in names)

    @property
    def parts(self) -> tuple[int, ...]:
        """The lineages of what tells rows apart."""
        return self.lineages if self.is_whole_row else self.key_lineages


def shapes_of(
    versions: tuple[TableVersion, ...], envelopes: Mapping[int, Envelope]
) -> dict[int, Shape]:
    """The shapes of a table's `versions`, by number; `envelopes` are theirs.

    `versions` are in the order in which they hold, and none between two of them is left out: a
    column that one lacks is another column behind it.
    """
    found: dict[int, Shape] = {}
    numbers = count(1)
    before: Relation | None = None
    known: dict[str, _Column] = {}
    for version in versions:
        relation = version.relation
        is_other = before is None or before.identity != relation.identity
        pairs = paired_columns(
            () if is_other or before is None else before.columns, relation.columns
        )
        known = {
            column.name: known[then.name]
            if then is not None
            else _Column(next(numbers), JSON_NULL if is_other else _fill(column))
            for then, column in pairs
            if column is not None
        }
        found[version.number] = _shape(version, envelopes[version.number], known)
        before = relation
    return found


def require_foldable(shape: Shape) -> None:
    """Raise StateUnknown where lines of this shape do not tell the table's state."""
    where = f"{shape.table}, version {shape.version}"
    if shape.envelope == "flat":
        raise StateUnknown(
            f"{where}: records of the flat envelope do not show the key that a row had before, so "
            "the current state cannot be told from them",
            hint='Publish with envelope = "standard" or "debezium".',
        )
    if not shape.key and not shape.is_whole_row:
        raise StateUnknown(
            f"{where}: the table has no key, and its old rows are not published, so the current "
            "state cannot be told",
            hint="Give it a primary key, or publish its old rows whole.",
        )
    missing = [name for name in shape.key if name not in shape.columns]
    if missing and not shape.is_whole_row:
        raise StateUnknown(f"{where}: records do not hold the column {missing[0]!r} of its key")


def require_alike(newest: Shape, older: Shape) -> None:
    """Raise StateUnknown where rows of `older` cannot be told apart as those of `newest` are.

    Both are foldable, and of the same table.
    """
    differences = _row_differences if newest.is_whole_row else _key_differences
    reason = next(differences(newest, older), "")
    if reason:
        raise StateUnknown(
            f"{newest.table}: rows of version {older.version} cannot be folded with those of "
            f"version {newest.version}: {reason}",
            hint="A resync of the table makes the older rows superfluous.",
        )


@dataclass(frozen=True, slots=True)
class _Column:
    lineage: int
    fill: str | None


def _fill(column: Column) -> str | None:
    # Without a fill, rows got null; with a default all the same, nobody knows what they got.
    return column.fill or (JSON_NULL if column.default is None else None)


def _shape(version: TableVersion, envelope: Envelope, known: Mapping[str, _Column]) -> Shape:
    relation = version.relation
    recorded = [column for column in relation.columns if column.included]
    return Shape(
        table=str(relation.table),
        version=version.number,
        identity=relation.identity,
        envelope=envelope,
        columns=tuple(column.name for column in recorded),
        lineages=tuple(known[column.name].lineage for column in recorded),
        forms=tuple(_form(column, version) for column in recorded),
        fills=tuple(known[column.name].fill for column in recorded),
        hidden=frozenset(
            known[column.name].lineage for column in relation.columns if not column.included
        ),
        key=relation.key,
        is_whole_row={column.name for column in relation.columns} == set(relation.key),
    )


def _form(column: Column, version: TableVersion) -> str:
    # Integers of any width are written alike. A hash depends on a key that the digest stands for.
    type_ = () if column.type_kind == "integer" else (column.type_id, column.type_modifier)
    hashed = version.record if column.hashed else ""
    return repr((column.type_kind, *type_, column.json, hashed))


def _key_differences(newest: Shape, older: Shape) -> Iterator[str]:
    if set(newest.key_lineages) != set(older.key_lineages) or len(newest.key) != len(older.key):
        yield f"its key is ({', '.join(older.key)}), not ({', '.join(newest.key)})"
        return
    now, then = newest.places, older.places
    for lineage in newest.key_lineages:
        if newest.forms[now[lineage]] != older.forms[then[lineage]]:
            name = newest.columns[now[lineage]]
            yield f"the column {name!r} of its key has values of another type"


def _row_differences(newest: Shape, older: Shape) -> Iterator[str]:
    then = older.places
    for place, (name, lineage) in enumerate(zip(newest.columns, newest.lineages, strict=True)):
        if lineage in older.hidden:
            yield f"its records do not hold the column {name!r}"
        elif lineage not in then:
            if newest.fills[place] is None:
                yield f"what its rows have in the column {name!r}, which came later, is not known"
        elif older.forms[then[lineage]] != newest.forms[place]:
            yield f"its column {older.columns[then[lineage]]!r} has values of another type"
        elif lineage not in older.key_lineages:
            yield f"its rows are told apart by ({', '.join(older.key)}) alone, not by {name!r}"
