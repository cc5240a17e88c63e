"""A table's versions in the order in which they hold, and where the records begin that count.

Strategy: the journal says which version holds from which position on, and which attempt to take a
snapshot is visible. Both together, in the order of positions, are the table's history. Its last era
is the table as it is.

A folder of objects does not say which of them count. An attempt that was given up may have left
objects behind, and so does every earlier snapshot. So the stream's records count, and those of one
attempt, the newest one that is whole. Of both, only what follows the floor counts: where that
attempt begins, or where the table was made anew.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from engine.journal.entry import JournalState, Snapshot
from engine.model.position import NOWHERE, Position, snapshot_position
from engine.model.schema import TableName, TableVersion, newest_version


@dataclass(frozen=True, slots=True)
class Era:
    """From `position` on the table is as `version` says."""

    position: Position
    version: TableVersion


@dataclass(frozen=True, slots=True)
class History:
    """All eras, the oldest first; at least one. `snapshot` is the attempt whose rows count."""

    eras: tuple[Era, ...]
    snapshot: Snapshot | None

    @property
    def now(self) -> TableVersion:
        """The version that holds now."""
        return self.eras[-1].version

    @property
    def floor(self) -> Position:
        """Where the first record that counts may be."""
        identity = self.now.relation.identity
        made = self._since(lambda version: version.relation.identity == identity)
        return max(made, _begin(self.snapshot)) if self.snapshot is not None else made

    @property
    def counted(self) -> tuple[Era, ...]:
        """The eras that a record may be of which counts: the one at the floor, and all later."""
        floor = self.floor
        begun = [at for at, era in enumerate(self.eras) if era.position <= floor]
        return self.eras[begun[-1] :] if begun else self.eras

    def steps_back(self) -> Iterator[tuple[Era, Era]]:
        """Each era that begins behind the floor, with the one before it, the latest first."""
        yield from reversed(tuple(pairwise(self.counted)))

    def _since(self, holds: Callable[[TableVersion], bool]) -> Position:
        """Since which position it holds, as it does now, without a break; nowhere: all along."""
        broken = [at for at, era in enumerate(self.eras) if not holds(era.version)]
        return self.eras[broken[-1] + 1].position if broken else NOWHERE


def history_of(state: JournalState, table: TableName) -> History | None:
    """The table's history by the journal; None where it has no record yet."""
    versions = state.versions_of(table)
    eras = [Era(v.first, v) for v in versions if v.first is not None]
    snapshot = _snapshot(state, table)
    if snapshot is not None:
        [version] = [v for v in versions if v.number == snapshot.version]
        eras.append(Era(_begin(snapshot), version))
        row = state.frontier(table).last
        now = newest_version(versions, row, snapshot.point, snapshot.version)
        if now is not None and now.number != snapshot.version and _is_before(now, snapshot):
            # The snapshot's version is over, and no version begins where this one holds again.
            eras.append(Era(Position(snapshot.point), now))
    ordered = sorted(eras, key=lambda era: (era.position, era.version.number))
    return History(tuple(ordered), snapshot) if ordered else None


def _snapshot(state: JournalState, table: TableName) -> Snapshot | None:
    """The snapshot whose rows count: one that is becoming visible, or the newest visible one."""
    stated = state.snapshots.get(str(table))
    if stated is not None and stated.snapshot.state == "whole" and not stated.snapshot.rest:
        return stated.snapshot
    visible = state.visible_snapshot(str(table))
    return visible.snapshot if visible is not None else None


def _is_before(version: TableVersion, snapshot: Snapshot) -> bool:
    return version.first is not None and version.first < _begin(snapshot)


def _begin(snapshot: Snapshot) -> Position:
    """Where its truncate record is: everything before it is superseded."""
    return snapshot_position(snapshot.sees, snapshot.attempt, 0, 0)
