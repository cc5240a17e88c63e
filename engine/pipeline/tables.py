"""The captured tables, as `/status` lists them.

Strategy: the busiest come first, out of those that did anything; idle ones fill what is left, by
name. Which tables are captured is asked of the configuration's patterns for each name that the
journal knows, so the answer is kept until the journal knows other names.

Invariant: nothing is awaited. With thousands of tables an answer costs a few milliseconds at most.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

from engine.journal.entry import JournalState, Watch
from engine.journal.snapshot_standing import how_far
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.operate.activity import Activity, TableActivity
from engine.operate.status import TABLES_SHOWN_MAX, FoundTables, SnapshotStatus, TableStatus


@dataclass(frozen=True, slots=True)
class Live:
    """What only a streaming engine knows of tables: bytes held, who is paused, snapshots."""

    waiting_bytes: Callable[[TableName], int]
    paused: tuple[str, ...]
    snapshots: tuple[SnapshotStatus, ...]


class CapturedTables:
    """The tables of one life's journal."""

    def __init__(
        self, state: JournalState, configuration: RecordConfiguration, activity: Activity
    ) -> None:
        self._state = state
        self._configuration = configuration
        self._activity = activity
        self._names: tuple[str, ...] = ()
        self._known = (-1, -1, -1)
        # As many tables may be gone as came: each statement of the watch is an object of its own.
        self._watch: Watch | None = None
        # Whether the configuration captures that name.
        self._judged: dict[str, bool] = {}

    def names(self) -> tuple[str, ...]:
        """All that the journal knows and the configuration captures, by name."""
        state = self._state
        known = (len(state.frontiers), len(state.versions), len(state.attempts))
        if known != self._known or state.watch is not self._watch:
            self._names = self._captured()
            self._known, self._watch = known, state.watch
        return self._names

    def _captured(self) -> tuple[str, ...]:
        """See `JournalState.known`. Patterns are asked once for each name: 5,000 take 35 ms."""
        state, judged = self._state, self._judged
        looked = state.watch.tables if state.watch is not None else {}
        names = (
            state.frontiers.keys() | state.attempts.keys() | state.versions.keys() | looked.keys()
        )
        for name in names:
            if name not in judged:
                judged[name] = self._configuration.captures(TableName.parse(name))
        return tuple(sorted(name for name in names if judged[name]))

    def shown(self, live: Live, limit: int = TABLES_SHOWN_MAX) -> tuple[TableStatus, ...]:
        """The tables to list: paused, busiest, then the others."""
        # A dictionary, because each is listed once, and where it comes first.
        chosen: dict[str, None] = dict.fromkeys(islice(live.paused, limit))
        chosen |= dict.fromkeys(str(each.table) for each in self._activity.busiest(limit))
        chosen |= dict.fromkeys(each.table for each in live.snapshots)
        if len(chosen) < limit:
            chosen |= dict.fromkeys(islice(self.names(), limit))
        reading = {each.table: each for each in live.snapshots}
        return tuple(self._status(name, live, reading) for name in islice(chosen, limit))

    def found(self, text: str, live: Live, limit: int = TABLES_SHOWN_MAX) -> FoundTables:
        """The tables whose name contains `text` in any case, by name."""
        wanted = text.casefold()
        names = [name for name in self.names() if wanted in name.casefold()]
        reading = {each.table: each for each in live.snapshots}
        tables = tuple(self._status(name, live, reading) for name in names[:limit])
        return FoundTables(total=len(names), tables=tables)

    def _status(self, name: str, live: Live, reading: Mapping[str, SnapshotStatus]) -> TableStatus:
        table, state = TableName.parse(name), self._state
        activity, stated = self._activity.get(table), state.snapshots.get(name)
        versions = state.versions.get(name)
        did = activity or TableActivity(table)
        return TableStatus(
            table=name,
            version=versions[-1].number if versions else 0,
            rows_total=did.rows_total,
            rows_per_second=did.rows_per_second,
            objects_total=did.objects_total,
            last_object=did.last_object,
            last_object_us=did.last_object_us,
            queue_bytes=live.waiting_bytes(table),
            is_paused=name in live.paused,
            snapshot=how_far(stated, state) if stated is not None else "none",
            snapshot_progress=reading.get(name),
        )
