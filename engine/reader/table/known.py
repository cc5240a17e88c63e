"""What the journal says of one table, as of a place up to which it is read. Pure.

Strategy: a journal's state says how things stand at its end. Who reads a table as it was earlier
needs what was visible then. So this is taken from the states on the way, before the one that is
known to reach far enough.
"""

from dataclasses import dataclass

from engine.journal.entry import Gap, JournalState, StatedSnapshot
from engine.model.position import NOWHERE, LogPosition, Position
from engine.model.schema import TableName, TableVersion, newest_version, version_at


@dataclass(frozen=True, slots=True)
class Visible:
    """What could be seen of the table at some entry: its snapshot, and what was not there."""

    snapshot: StatedSnapshot | None
    is_unfinished: bool
    mended: frozenset[int]


@dataclass(frozen=True, slots=True)
class Known:
    """The table as of `until`, which is durable.

    `end` is where the last object of its stream ends that holds anything before `until`. `gaps` are
    those that the newest entry states; which of them were mended then, `visible` says. `versions`
    are in the order of their numbers.
    """

    table: TableName
    until: LogPosition
    end: Position
    visible: Visible
    gaps: tuple[Gap, ...]
    versions: tuple[TableVersion, ...]
    is_captured: bool
    leaves_out: frozenset[str] = frozenset()

    @property
    def snapshot(self) -> StatedSnapshot | None:
        """The newest complete snapshot, where its rows are as of `until` or earlier."""
        stated = self.visible.snapshot
        return stated if stated is not None and stated.snapshot.point <= self.until else None

    @property
    def newest(self) -> TableVersion | None:
        """The version that the table's rows have at `until`."""
        at = version_at(self.versions, Position(self.until))
        return self.newest_behind(at.first if at is not None and at.first else NOWHERE)

    def newest_behind(self, row: Position) -> TableVersion | None:
        """Likewise, where `row` is the newest one of the stream that is read."""
        if self.snapshot is None:
            return version_at(self.versions, row)
        snapshot = self.snapshot.snapshot
        return newest_version(self.versions, row, snapshot.point, snapshot.version)


def visible_of(table: str, state: JournalState) -> Visible:
    """What can be seen of the table where everything before the state's own place is read."""
    return Visible(
        snapshot=state.visible_snapshot(table),
        is_unfinished=table in state.unfinished(state.durable_position),
        mended=frozenset(
            gap.number for gap in state.gaps.values() if gap.table == table and gap.mended
        ),
    )


def stream_end(table: str, state: JournalState) -> Position:
    """Where the table's last object ends that is known to be in the bucket.

    What is durable says it in two ways, and one may be ahead of the other. Every row that commits
    before the durable position is there, so an object that begins before it is, also where the
    entry that planned it still waits for an object of another table.
    """
    plans = [plan[0].planned for plan in state.plans.values() if plan[0].planned.table == table]
    begun = [planned.last for planned in plans if planned.first < state.durable_position]
    if begun:
        return max(begun)
    if plans:
        return min(plans, key=lambda planned: planned.first).previous
    return state.frontier(TableName.parse(table)).last


def known_of(
    table: str, newest: JournalState, reaching: JournalState, visible: Visible, until: LogPosition
) -> Known:
    """The table as of `until`.

    `reaching` is a state by which everything before `until` is durable, `visible` what could be
    seen at the last one that reached no further than that.
    """
    name = TableName.parse(table)
    configuration = newest.configurations.get(newest.epoch)
    watched = newest.watch.tables.get(table) if newest.watch is not None else None
    return Known(
        table=name,
        until=until,
        end=stream_end(table, reaching),
        visible=visible,
        # The newest state may have forgotten gaps that were mended since.
        gaps=tuple(
            gap for _, gap in sorted((reaching.gaps | newest.gaps).items()) if gap.table == table
        ),
        versions=tuple(sorted(newest.versions_of(name), key=lambda version: version.number)),
        is_captured=configuration is None or configuration.captures(name),
        leaves_out=frozenset(watched.keeps) if watched is not None else frozenset(),
    )
