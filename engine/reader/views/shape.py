"""What a view of a table has to know: its columns now, its key, and which records count.

Invariant: what a view cannot give is in `doubts` or `limits`, in words.
"""

from dataclasses import dataclass

from engine.journal.entry import JournalState, Snapshot
from engine.model.position import NOWHERE, Position
from engine.model.printable import printable
from engine.model.record import Envelope, JsonMode, NumericMode
from engine.model.schema import Relation, TableName, TableVersion, version_at
from engine.reader.views.column import ViewColumn, view_column
from engine.reader.views.doubts import (
    folder_doubts,
    history_doubts,
    limits_of,
    relation_is_whole,
    standing_doubts,
)
from engine.reader.views.history import History, history_of


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


def shape_of(
    state: JournalState, table: TableName, elsewhere: Position = NOWHERE
) -> TableShape | NoShape:
    """What a view of `table` has to know, by the journal folded up to now.

    `elsewhere` is where the newest of its objects begins that another layout has put elsewhere.
    """
    history = history_of(state, table)
    if history is None:
        return NoShape(table, "it has no record yet")
    if not _may_be_printed(table, history):
        return NoShape(table, "a name holds characters that would act on a terminal")
    configuration = state.configurations[state.epoch]
    relation = history.now.relation
    columns = tuple(
        view_column(
            column, history, configuration.json, is_before_told=configuration.envelope != "flat"
        )
        for column in relation.columns
        if column.included
    )
    key = _key(relation, history.snapshot, configuration.envelope)
    missing = [name for name in key if name not in {column.name for column in columns}]
    if missing:
        return NoShape(table, f"its records leave out a column of its key: {printable(missing[0])}")
    return TableShape(
        table=table,
        version=history.now.number,
        columns=columns,
        key=key,
        attempt=history.snapshot.attempt if history.snapshot is not None else 0,
        hour=history.snapshot.hour if history.snapshot is not None else "",
        floor=history.floor,
        versions=_numbers(history, version_at(state.versions_of(table), history.floor)),
        envelope=configuration.envelope,
        numeric=configuration.numeric,
        json=configuration.json,
        flat_prefix=history.now.flat_prefix,
        doubts=(
            *standing_doubts(state, table, history),
            *folder_doubts(history, elsewhere),
            *history_doubts(history, columns, key, configuration),
        ),
        limits=tuple(limits_of(history, columns, key, configuration)),
    )


def _numbers(history: History, standing: TableVersion | None) -> tuple[int, ...]:
    """The versions of records that count. `standing`: rows behind a snapshot may go on with it."""
    found = {era.version.number for era in history.counted}
    return tuple(sorted(found | {standing.number} if standing is not None else found))


def _key(relation: Relation, snapshot: Snapshot | None, envelope: Envelope) -> tuple[str, ...]:
    """What tells rows apart; empty where only the whole row does.

    A table whose every column is of the key may have no key at all. Counting whole rows is right
    for both, but for a snapshot in segments: only a table with a true key is read so. And the flat
    envelope does not say which row an update replaced.
    """
    is_segmented = snapshot is not None and snapshot.segment > 0
    can_count = envelope != "flat" and not is_segmented
    return () if can_count and relation_is_whole(relation) else relation.key


def _may_be_printed(table: TableName, history: History) -> bool:
    columns = {c.name for era in history.counted for c in era.version.relation.columns}
    names = (table.schema, table.table, *columns)
    return all(printable(name, keep="\n") == name for name in names)
