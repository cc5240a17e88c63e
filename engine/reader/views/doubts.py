"""In words: why a view may not be the table now, and what it cannot give by its nature.

Invariant: one line each, without its full stop, and no row's value in it.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from engine.journal.entry import Gap, JournalState
from engine.model.plural import counted
from engine.model.position import NOWHERE, Position
from engine.model.printable import printable
from engine.model.record import NumericMode, RecordConfiguration
from engine.model.schema import Relation, TableName, TableVersion
from engine.reader.views.column import ViewColumn
from engine.reader.views.history import History

GAPS_NAMED_MAX: Final = 10

_MEND: Final = "`tailrace resync` of the table mends that; then print this again"


def standing_doubts(state: JournalState, table: TableName, history: History) -> Iterator[str]:
    """What the journal knows to be missing."""
    snapshot = history.snapshot
    if not state.configurations[state.epoch].captures(table):
        yield "the engine that wrote last does not capture it: changes may be missing"
    stated = state.snapshots.get(str(table))
    if stated is not None and stated.snapshot.state == "gone":
        yield "the source has no table of this name any more: these are the rows that it had"
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


def folder_doubts(history: History, elsewhere: Position) -> Iterator[str]:
    """What lies in another folder, though it counts."""
    if elsewhere and elsewhere >= history.floor:
        yield (
            "objects from before destination.layout was changed lie in another folder, and are not "
            f"read. {_MEND}"
        )


def history_doubts(
    history: History,
    columns: tuple[ViewColumn, ...],
    key: tuple[str, ...],
    configuration: RecordConfiguration,
) -> Iterator[str]:
    """What changed among the records that count, so that they cannot be folded alike."""
    key_since = _key_since(history, columns, key)
    if key_since:
        yield (
            f"its key changed at {key_since}: rows that were deleted, or got another key, before "
            f"that may be here still. {_MEND}"
        )
    for column in columns:
        yield from _column_doubts(column)
    eras = history.counted
    others = {e.version.number for e in eras if not _is_read_alike(e.version, configuration)}
    if others:
        yield (
            f"versions {', '.join(map(str, sorted(others)))} were written under another record "
            f"configuration: where envelope or JSON mode were others, they are misread. {_MEND}"
        )
    prefixes = {era.version.flat_prefix for era in eras}
    if configuration.envelope == "flat" and len(prefixes) > 1:
        yield (
            "the flat envelope's own names began otherwise before a column came or went "
            f"({printable(' and '.join(sorted(prefixes)))}): those records are not read. {_MEND}"
        )
    for _, era in history.steps_back():
        if era.version.former_name:
            yield (
                f"it was called {era.version.former_name} before {era.position}: its records from "
                f"before are that table's. {_MEND}"
            )


def _column_doubts(column: ViewColumn) -> Iterator[str]:
    name = printable(column.name)
    if column.born and not column.is_fill_known:
        yield (
            f"column {name} came at {column.born}: rows that were not written since have null, "
            f"though the table may not. {_MEND}"
        )
    if column.retyped:
        yield (
            f"column {name} changed its type at {column.retyped}: rows that were not written "
            f"since have their earlier values. {_MEND}"
        )


def _key_since(history: History, columns: tuple[ViewColumn, ...], key: tuple[str, ...]) -> Position:
    """Since when rows are told apart as they are now; nowhere: in all records that count."""
    of_key = [column for column in columns if column.name in key]
    for earlier, era in history.steps_back():
        relation = earlier.version.relation
        now = {column.name_at(earlier.position) for column in of_key}
        if set(relation.key) != now and (key or not relation_is_whole(relation)):
            return era.position
    return NOWHERE


def relation_is_whole(relation: Relation) -> bool:
    """Whether the key has every column: then nothing but the whole row tells rows apart."""
    return set(relation.key) >= {column.name for column in relation.columns}


def _is_read_alike(version: TableVersion, configuration: RecordConfiguration) -> bool:
    """Whether its records surely are read as those of now: they differ in numbers' mode at most."""
    table = version.relation.table
    modes: tuple[NumericMode, ...] = ("string", "number")
    return any(
        msgspec.structs.replace(configuration, numeric=numeric).record_digest(table)
        == version.record
        for numeric in modes
    )


def limits_of(
    history: History,
    columns: tuple[ViewColumn, ...],
    key: tuple[str, ...],
    configuration: RecordConfiguration,
) -> Iterator[str]:
    """What no view can give, whatever the table's history is. Without a `key`, rows are counted."""
    if history.snapshot is None and configuration.snapshot == "never":
        yield (
            "no snapshots are taken: a row is here from its first change on, with what that said"
        )
    if configuration.envelope == "flat":
        yield (
            "the flat envelope does not say the old key: after an update that changes a row's key, "
            "the row is here under the old one too. Without a key, equal rows are here once"
        )
    if key and any(column.is_long and not column.is_in_before for column in columns):
        yield (
            "an update that changes a row's key may leave columns out that it did not change. The "
            "view does not know them until they are written again: it has null, and names them"
        )
    if any(
        column.kind == "json" and column.is_structured and (not key or column.name in key)
        for column in columns
    ):
        yield (
            "JSON's null is null here where its column tells rows apart: the old side of a record "
            "does not tell it from SQL's"
        )
    if any(column.is_hashed for column in columns):
        yield "hashed columns hold the hashes"
