"""The snapshot register: which tables' snapshots are wanted, started, whole, void, and visible.

Strategy: whoever takes snapshots asks what is needed, starts an attempt, stages its objects, and
hands all of them over at once. Each step is a statement; the committer's next entry holds it. So a
reader, a successor and `verify` know from the journal alone where each table is.

A snapshot may be asked for again, or cancelled, at any time. What is asked is stated before
anything else happens to the table: an attempt that is under way is given up at once.

Invariant: an attempt that this writer did not start itself is given up, unless it is whole: what
its snapshot saw is gone with its writer. A table is unfinished from the entry that captures it
until the objects of an attempt are visible and everything before the attempt's point is durable.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.flow.reception import Reception
from engine.journal.entry import JournalState, Snapshot
from engine.model.errors import InvariantBroken
from engine.model.interfaces import Clock
from engine.model.lane import Lane
from engine.model.layout import key_hour
from engine.model.log_point import LogPoint
from engine.model.position import LogPosition, snapshot_lane
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableName, TableVersion
from engine.model.staged_object import StagedObject


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """One attempt to take the snapshot of one table: what its objects are made with.

    Its rows are those that the table has before `point`. `hour` is the one in its keys.
    """

    table: TableName
    number: int
    point: LogPoint
    version: TableVersion
    hour: str


@dataclass(slots=True)
class _Open:
    """A table that is unfinished, or was until a moment ago."""

    snapshot: Snapshot
    seq: int | None
    is_visible: bool = False

    def is_finished(self, durable: LogPosition, seq: int) -> bool:
        is_vouched = self.is_visible and self.seq is not None and self.seq <= seq
        return is_vouched and self.snapshot.point <= durable


class SnapshotRegister:
    """What this writer knows of snapshots. `wake` is called when there is something to append."""

    def __init__(
        self,
        *,
        state: JournalState,
        reception: Reception,
        configuration: RecordConfiguration,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self._state = state
        self._reception = reception
        self._is_on = configuration.snapshot != "never"
        self._clock = clock
        self._wake = wake
        self._pending: dict[TableName, Snapshot] = {}
        self._attempts: dict[TableName, Attempt] = {}
        # The tables of which something was asked that no entry says yet.
        self._asked: set[TableName] = set()
        self._changed = asyncio.Event()
        self._open = {
            stated.snapshot.table_name: _Open(stated.snapshot, stated.seq, stated.is_visible)
            for stated in state.snapshots.values()
            if not stated.is_visible or stated.snapshot.point > state.durable_position
        }
        self._known = {stated.snapshot.table_name for stated in state.snapshots.values()}

    # --- for whoever takes snapshots

    def capture(self, table: TableName) -> None:
        """The table is captured: its snapshot is wanted, unless there was one. Never waits."""
        if self._is_on and table not in self._known:
            self._state_next(table, Snapshot(str(table), "wanted"))

    def resync(self, table: TableName) -> None:
        """A snapshot that begins later than this call is wanted, whatever there was. Never waits.

        An attempt that is under way is given up; objects of one that is whole may still become
        visible, which changes nothing. Nothing is done where no snapshots are taken, or where one
        is wanted already that nobody has begun. The table must be one that is captured.
        """
        known = self._open.get(table)
        is_wanted = known is not None and known.snapshot.state == "wanted"
        if self._is_on and not is_wanted:
            self._ask(table, "wanted")

    def cancel(self, table: TableName) -> bool:
        """No attempt is to be made until somebody asks again. Never waits.

        Returns whether there was anything to cancel: not where nothing is wanted, nor where an
        attempt is whole already. A table that had a visible snapshot before is as it was. Another
        one stays unfinished: its earlier rows are missing.
        """
        known = self._open.get(table)
        if known is None or known.snapshot.state in {"whole", "cancelled"}:
            return False
        self._ask(table, "cancelled")
        return True

    def _ask(self, table: TableName, state: Literal["wanted", "cancelled"]) -> None:
        self._attempts.pop(table, None)
        self._asked.add(table)
        self._state_next(table, Snapshot(str(table), state))

    def needed(self) -> tuple[TableName, ...]:
        """The tables of which an attempt has to be started, by name."""
        return tuple(
            sorted(
                table
                for table, known in self._open.items()
                if self._is_needed(table, known.snapshot)
            )
        )

    def _is_needed(self, table: TableName, snapshot: Snapshot) -> bool:
        is_over = snapshot.state in {"whole", "cancelled"}
        if is_over or table in self._attempts or table in self._asked:
            return False
        # What an attempt came to is in the journal before the next one begins.
        return table not in self._pending or snapshot.state == "wanted"

    def is_done(self, durable: LogPosition) -> bool:
        """Whether every snapshot that is wanted is visible, and complete once E is `durable`."""
        return all(
            known.is_visible and known.snapshot.point <= durable for known in self._open.values()
        )

    def start(self, table: TableName, point: LogPoint, relation: Relation) -> Attempt:
        """Begin an attempt that reads `table`, which looks like `relation`, as it is at `point`.

        Nothing may be staged before `started`. Raises InvariantBroken where none is needed.
        """
        if table not in self.needed():
            raise InvariantBroken(f"no snapshot of {table} has to be started")
        version = self._reception.snapshot_version(relation)
        commit_us = self._state.within_reason(point.commit_us, self._clock())
        number = self._attempt_count(table) + 1
        attempt = Attempt(table, number, point, version, key_hour(commit_us, ""))
        self._attempts[table] = attempt
        self._state_next(
            table,
            Snapshot(str(table), "started", number, point.position, version.number, attempt.hour),
        )
        return attempt

    async def started(self, attempt: Attempt) -> None:
        """Wait until the journal says that the attempt is started. Cancellation changes nothing."""
        while self._pending.get(attempt.table) is not None:
            self._changed.clear()
            await self._changed.wait()

    def is_under_way(self, attempt: Attempt) -> bool:
        """Whether its objects are still wanted."""
        return self._attempts.get(attempt.table) is attempt

    def give_up(self, attempt: Attempt) -> None:
        """Nothing will become of it: another attempt has to be started. Never waits."""
        if self._attempts.get(attempt.table) is attempt:
            del self._attempts[attempt.table]

    def whole(self, attempt: Attempt, objects: Sequence[StagedObject]) -> None:
        """All rows of the attempt are staged as `objects`: let them become visible. Never waits.

        Raises InvariantBroken where they are not the gapless lanes of this attempt, or where the
        attempt is not under way any more.
        """
        table = attempt.table
        if self._attempts.get(table) is not attempt or table in self._pending:
            raise InvariantBroken(f"attempt {attempt.number} of {table} is not under way")
        refuse_broken_lanes(attempt, objects)
        del self._attempts[table]
        self._state_next(
            table,
            Snapshot(
                str(table),
                "whole",
                attempt.number,
                attempt.point.position,
                attempt.version.number,
                attempt.hour,
                tuple(objects),
            ),
        )

    # --- for the committer

    @property
    def pending(self) -> tuple[Snapshot, ...]:
        """What the next entry has to say."""
        return tuple(self._pending.values())

    def journalled(self, snapshots: Sequence[Snapshot], seq: int) -> None:
        """Entry `seq` says these: `pending` as it was when the entry was made."""
        for snapshot in snapshots:
            table = snapshot.table_name
            if self._open[table].snapshot is snapshot:
                self._open[table].seq = seq
            if self._pending.get(table) is snapshot:
                del self._pending[table]
                self._asked.discard(table)
        self._changed.set()

    @property
    def oldest_pending_seq(self) -> int | None:
        """The oldest entry that names objects of a snapshot which are not all visible."""
        seqs = (
            known.seq
            for known in self._open.values()
            if known.snapshot.state == "whole" and not known.is_visible and known.seq is not None
        )
        return min(seqs, default=None)

    def unfinished(self, durable: LogPosition, seq: int) -> tuple[str, ...]:
        """What `Durable.unfinished` says beside that position and `seq`, in the entry made now.

        It is what the fold of that entry gives: an attempt counts as visible once `seq` says so to
        everybody, although this writer may know it before.
        """
        return tuple(
            sorted(
                known.snapshot.table
                for known in self._open.values()
                if not self._is_finished(known, durable, seq)
            )
        )

    def forget(self, durable: LogPosition, seq: int) -> None:
        """Forget the tables that were finished beside these two, which are journalled."""
        self._open = {
            table: known
            for table, known in self._open.items()
            if not self._is_finished(known, durable, seq)
        }

    def _is_finished(self, known: _Open, durable: LogPosition, seq: int) -> bool:
        if known.snapshot.state != "cancelled":
            return known.is_finished(durable, seq)
        before = self._state.visible_snapshot(known.snapshot.table)
        return before is not None and before.snapshot.point <= durable

    # --- for whoever completes uploads

    def visible(self, snapshot: Snapshot) -> None:
        """All objects of `snapshot`, which is whole, are there."""
        known = self._open.get(snapshot.table_name)
        if known is not None and known.snapshot is snapshot:
            known.is_visible = True
            self._wake()

    def void(self, snapshot: Snapshot) -> None:
        """Not all objects of `snapshot` can become visible: another attempt has to be started."""
        known = self._open.get(snapshot.table_name)
        if known is not None and known.snapshot is snapshot:
            voided = Snapshot(
                snapshot.table,
                "void",
                snapshot.attempt,
                snapshot.point,
                snapshot.version,
                snapshot.hour,
            )
            self._state_next(snapshot.table_name, voided)

    def _state_next(self, table: TableName, snapshot: Snapshot) -> None:
        self._pending[table] = snapshot
        self._open[table] = _Open(snapshot, None)
        self._known.add(table)
        self._wake()

    def _attempt_count(self, table: TableName) -> int:
        pending = self._pending.get(table)
        return max(self._state.attempts.get(str(table), 0), pending.attempt if pending else 0)


def refuse_broken_lanes(attempt: Attempt, objects: Sequence[StagedObject]) -> None:
    """Raise InvariantBroken unless `objects` are all lanes of the attempt, each without a gap.

    There is a range 0; ranges without rows have no objects. Within a range each object names where
    the one before it ended, and all positions are the lane's.
    """
    last: dict[int, str] = {}
    for staged in objects:
        lane = Lane(attempt.table, attempt.number, staged.range_number)
        begin = snapshot_lane(attempt.point.position, attempt.number, staged.range_number)
        before = last.get(staged.range_number, "")
        is_in_lane = staged.first.startswith(begin) and staged.last.startswith(begin)
        if not is_in_lane or staged.previous != before or not before < staged.first <= staged.last:
            raise InvariantBroken(
                f"{staged.key} of {lane} goes from {staged.first} to {staged.last}, after"
                f" {staged.previous or 'nothing'}; the lane ended at {before or 'nothing'}"
            )
        last[staged.range_number] = staged.last
    if 0 not in last:
        raise InvariantBroken(f"attempt {attempt.number} of {attempt.table} has no range 0")
    if _uploads(objects) != len(objects):
        raise InvariantBroken(f"attempt {attempt.number} of {attempt.table} names an upload twice")


def _uploads(objects: Sequence[StagedObject]) -> int:
    return len({staged.upload_id for staged in objects})
