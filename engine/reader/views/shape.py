"""What a view of a table has to know: its columns now, its key, and which records count.

Strategy: the journal says which version holds from which position on, and which attempt to take a
snapshot is visible. Both together, in the order of positions, are the table's history. The last of
it is the table as it is. Going back from there, everything that holds for the whole history needs
no SQL. What changed on the way does: a column that came later, a table that was made anew.

A folder of objects does not say which of them count. An attempt that was given up may have left
objects behind, and so does every earlier snapshot. So a view counts the stream's records and those
of one attempt, the newest one that is whole.

Invariant: what a view cannot give is in `doubts` or `limits`, in words.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import msgspec

from engine.journal.entry import Gap, JournalState, Snapshot
from engine.model.plural import counted
from engine.model.position import NOWHERE, Position, snapshot_position
from engine.model.printable import printable
from engine.model.record import Envelope, JsonMode, NumericMode, RecordConfiguration
from engine.model.schema import (
    Column,
    Relation,
    TableName,
    TableVersion,
    is_rename_unclear,
    paired_columns,
)

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

GAPS_NAMED_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class ViewColumn:
    """One column as it is now.

    `former` has its earlier names, the latest first: records before that position have it under
    that name. Records before `born` have no such column; empty: all that count have it. `fill` is
    the text that rows from before have in it, None for null; `is_fill_known` says whether that is
    known. `retyped` is where it got its type of now, empty where that is all along.

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


@dataclass(frozen=True, slots=True)
class TableShape:
    """One table. `key` names columns that tell rows apart; empty: whole rows are counted.

    `attempt` (0: none) is the one whose rows count, and `hour` the one in its keys. `floor` is
    where the first record that counts may be, and `versions` are those that such records may have.
    `doubts` say why the view may not be the table now, and what would mend it; `limits` what it
    cannot give by its nature.
    """

    table: TableName
    version: int
    columns: tuple[ViewColumn, ...]
    key: tuple[str, ...]
    attempt: int
    hour: str
    floor: Position
    versions: tuple[int, ...]
    envelope: Envelope
    numeric: NumericMode
    json: JsonMode
    flat_prefix: str
    doubts: tuple[str, ...]
    limits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoShape:
    """A table of which no view can be made, and why."""

    table: TableName
    reason: str


def shape_of(state: JournalState, table: TableName) -> TableShape | NoShape:
    """What a view of `table` has to know, by the journal folded up to now."""
    configuration = state.configurations[state.epoch]
    history = _history(state, table)
    if not history:
        return NoShape(table, "it has no record yet")
    if not _may_be_printed(table, history[-1].version):
        return NoShape(table, "a name holds characters that would act on a terminal")
    return _shape(state, table, history, configuration)


@dataclass(frozen=True, slots=True)
class _Era:
    """From `position` on the table is as `version` says."""

    position: Position
    version: TableVersion


def _history(state: JournalState, table: TableName) -> tuple[_Era, ...]:
    """The versions in the order in which they hold; the counted snapshot's among them."""
    versions = state.versions_of(table)
    eras = [_Era(v.first, v) for v in versions if v.first is not None]
    snapshot = _snapshot(state, table)
    if snapshot is not None:
        [version] = [v for v in versions if v.number == snapshot.version]
        eras.append(_Era(_begin(snapshot), version))
    return tuple(sorted(eras, key=lambda era: (era.position, era.version.number)))


def _snapshot(state: JournalState, table: TableName) -> Snapshot | None:
    """The snapshot whose rows count: one that is becoming visible, or the newest visible one."""
    stated = state.snapshots.get(str(table))
    if stated is not None and stated.snapshot.state == "whole" and not stated.snapshot.rest:
        return stated.snapshot
    visible = state.visible_snapshot(str(table))
    return visible.snapshot if visible is not None else None


def _begin(snapshot: Snapshot) -> Position:
    """Where its truncate record is: everything before it is superseded."""
    return snapshot_position(snapshot.sees, snapshot.attempt, 0, 0)


def _shape(
    state: JournalState,
    table: TableName,
    history: tuple[_Era, ...],
    configuration: RecordConfiguration,
) -> TableShape | NoShape:
    now = history[-1].version
    relation = now.relation
    snapshot = _snapshot(state, table)
    floor = _since(history, lambda version: version.relation.identity == relation.identity)
    if snapshot is not None:
        floor = max(floor, _begin(snapshot))
    columns = tuple(
        _column(column, history, floor, configuration)
        for column in relation.columns
        if column.included
    )
    # The flat envelope does not say which row an update replaced, so rows cannot be counted.
    can_count = configuration.envelope != "flat" or not relation.key
    key = _key(relation.key, relation.columns, snapshot) if can_count else relation.key
    missing = [name for name in key if name not in {column.name for column in columns}]
    if missing:
        return NoShape(table, f"its records leave out a column of its key: {printable(missing[0])}")
    return TableShape(
        table=table,
        version=now.number,
        columns=columns,
        key=key,
        attempt=snapshot.attempt if snapshot is not None else 0,
        hour=snapshot.hour if snapshot is not None else "",
        floor=floor,
        versions=tuple(sorted({era.version.number for era in _counted_eras(history, floor)})),
        envelope=configuration.envelope,
        numeric=configuration.numeric,
        json=configuration.json,
        flat_prefix=now.flat_prefix,
        doubts=(
            *_standing_doubts(state, table, snapshot),
            *_history_doubts(history, floor, columns, key, configuration),
        ),
        limits=tuple(_limits(columns, configuration, is_keyed=bool(key))),
    )


def _since(history: tuple[_Era, ...], holds: Callable[[TableVersion], bool]) -> Position:
    """Since which position it holds, as it does now, without a break; nowhere: all along."""
    broken = [at for at, era in enumerate(history) if not holds(era.version)]
    return history[broken[-1] + 1].position if broken else NOWHERE


def _column(
    column: Column,
    history: tuple[_Era, ...],
    floor: Position,
    configuration: RecordConfiguration,
) -> ViewColumn:
    is_embedded = column.type_kind == "json" and configuration.json == "embed"
    is_structured = (is_embedded or column.type_kind.endswith("[]")) and not column.hashed
    past = _past(column, history, floor)
    return ViewColumn(
        name=column.name,
        type=column.type,
        kind=column.type_kind,
        is_hashed=column.hashed,
        is_in_before=past.is_in_before,
        is_long=column.type_kind not in _SHORT_KINDS or column.hashed,
        is_structured=is_structured,
        former=tuple(past.former),
        born=past.born,
        fill=_fill_text(past.first.fill, is_structured=is_structured) if past.born else None,
        is_fill_known=past.is_fill_known,
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


def _past(column: Column, history: tuple[_Era, ...], floor: Position) -> _Past:
    past = _Past(column, column.key, [])
    for earlier, era in _steps_back(history, floor):
        before, after = earlier.version.relation, era.version.relation
        pairs = paired_columns(before.columns, after.columns)
        known = next(old for old, new in pairs if new is not None and new.name == past.first.name)
        if known is None or not known.included:
            past.born = era.position
            past.is_fill_known = known is None and _is_fill_known(past.first, before, after)
            break
        if known.name != past.first.name:
            past.former.append((era.position, known.name))
        if (known.type, known.hashed) != (past.first.type, past.first.hashed):
            past.retyped = past.retyped or era.position
        past.is_in_before &= known.key
        past.first = known
    return past


def _steps_back(history: tuple[_Era, ...], floor: Position) -> Iterable[tuple[_Era, _Era]]:
    """Each era that begins behind the floor, with the one before it, the latest first."""
    for earlier, era in reversed(tuple(pairwise(history))):
        if era.position <= floor:
            return
        yield earlier, era


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


def _key(
    key: tuple[str, ...], columns: tuple[Column, ...], snapshot: Snapshot | None
) -> tuple[str, ...]:
    """What tells rows apart; empty where only the whole row does.

    A table whose every column is of the key may have no key at all. Counting whole rows is right
    for both, but for a snapshot in segments. Only a table with a true key is read so.
    """
    is_segmented = snapshot is not None and snapshot.segment > 0
    return () if _is_whole(key, columns) and not is_segmented else key


def _is_whole(key: tuple[str, ...], columns: tuple[Column, ...]) -> bool:
    return set(key) >= {column.name for column in columns}


def _may_be_printed(table: TableName, version: TableVersion) -> bool:
    names = (table.schema, table.table, *(c.name for c in version.relation.columns))
    return all(printable(name, keep="\n") == name for name in names)


# ----------------------------------------------------------------------------- in words


def _standing_doubts(
    state: JournalState, table: TableName, snapshot: Snapshot | None
) -> Iterable[str]:
    """What the journal knows to be missing."""
    if str(table) in state.unfinished(state.durable_position):
        earlier = (
            f"rows are those of attempt {snapshot.attempt} and the changes since"
            if snapshot is not None
            else "rows that were there before its first change are missing"
        )
        yield f"its newest snapshot is not finished: {earlier}. Print this again when it is"
    gaps = [
        gap for _, gap in sorted(state.gaps.items()) if gap.table == str(table) and not gap.mended
    ]
    for gap in gaps[:GAPS_NAMED_MAX]:
        yield _gap_text(gap)
    if len(gaps) > GAPS_NAMED_MAX:
        yield f"and {counted(len(gaps) - GAPS_NAMED_MAX, 'gap')} more: tailrace status"


def _gap_text(gap: Gap) -> str:
    until = f" to {gap.until}" if gap.until else " on"
    since = gap.after or "the first"
    return f"gap {gap.number}, {gap.reason}: changes may be missing from {since}{until}"


def _history_doubts(
    history: tuple[_Era, ...],
    floor: Position,
    columns: tuple[ViewColumn, ...],
    key: tuple[str, ...],
    configuration: RecordConfiguration,
) -> Iterable[str]:
    """What changed among the records that count, so that they cannot be folded alike."""
    mend = "`tailrace resync` of the table mends that; then print this again"
    key_since = _key_since(history, floor, columns, key)
    if key_since:
        yield (
            f"its key changed at {key_since}: rows that were deleted, or got another key, before "
            f"that may be here still. {mend}"
        )
    for column in columns:
        name = printable(column.name)
        if column.born and not column.is_fill_known:
            yield (
                f"column {name} came at {column.born}: rows that were not written since have null, "
                f"though the table may not. {mend}"
            )
        if column.retyped:
            yield (
                f"column {name} changed its type at {column.retyped}: rows that were not written "
                f"since have their earlier values. {mend}"
            )
    eras = _counted_eras(history, floor)
    others = {e.version.number for e in eras if not _is_read_alike(e.version, configuration)}
    if others:
        yield (
            f"versions {', '.join(map(str, sorted(others)))} were written under another record "
            f"configuration: where envelope or JSON mode were others, they are misread. {mend}"
        )
    for era in eras:
        if era.version.former_name and era.position > floor:
            yield (
                f"it was called {era.version.former_name} before {era.position}: its records from "
                f"before are that table's. {mend}"
            )


def _key_since(
    history: tuple[_Era, ...],
    floor: Position,
    columns: tuple[ViewColumn, ...],
    key: tuple[str, ...],
) -> Position:
    """Since when rows are told apart as they are now; nowhere: in all records that count."""
    of_key = [column for column in columns if column.name in key]
    for earlier, era in _steps_back(history, floor):
        relation = earlier.version.relation
        now = {column.name_at(earlier.position) for column in of_key}
        if set(relation.key) != now and (key or not _is_whole(relation.key, relation.columns)):
            return era.position
    return NOWHERE


def _counted_eras(history: tuple[_Era, ...], floor: Position) -> tuple[_Era, ...]:
    """Those that records may have which count: the one at the floor, and all later ones."""
    begun = [at for at, era in enumerate(history) if era.position <= floor]
    return history[begun[-1] :] if begun else history


def _is_read_alike(version: TableVersion, configuration: RecordConfiguration) -> bool:
    """Whether its records surely are read as those of now: they differ in numbers' mode at most."""
    table = version.relation.table
    modes: tuple[NumericMode, ...] = ("string", "number")
    return any(
        msgspec.structs.replace(configuration, numeric=numeric).record_digest(table)
        == version.record
        for numeric in modes
    )


def _limits(
    columns: tuple[ViewColumn, ...], configuration: RecordConfiguration, *, is_keyed: bool
) -> Iterable[str]:
    """What no view can give, whatever the table's history is."""
    if configuration.envelope == "flat":
        yield (
            "the flat envelope does not say the old key: after an update that changes a row's key, "
            "the row is here under the old one too. Without a key, equal rows are here once"
        )
    if is_keyed and any(column.is_long and not column.is_in_before for column in columns):
        yield (
            "an update that changes a row's key may leave columns out that it did not change. The "
            "view does not know them until they are written again: it has null, and names them"
        )
    if any(column.is_hashed for column in columns):
        yield "hashed columns hold the hashes"
