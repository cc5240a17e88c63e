"""The snapshot register: which tables' snapshots are wanted, started, whole, void, and visible.

Strategy: whoever takes snapshots asks what is needed, starts an attempt, stages its objects, and
hands all of them over at once. Each step is a statement; the committer's next entry holds it. So a
reader, a successor and `verify` know from the journal alone where each table is.

A snapshot may be asked for again, or cancelled, at any time. What is asked is stated before
anything else happens to the table: an attempt that is under way is given up at once.

In a table that is read in segments a row may move to another key meanwhile: from a part that is
still to be read into one that was read. The stream shows such a move, and may leave a column out
that nobody else has then. So the attempt begins anew, without segments.

A table that the source has no more has nothing to read: it is *gone*. One that takes its name later
is another table, whose snapshot is wanted.

Invariant: an attempt that this writer did not start itself is given up, unless it is whole: what
its snapshot saw is gone with its writer. A table is unfinished from the entry that captures it
until the objects of an attempt are visible and everything before the attempt's point is durable.
A gap is mended only once an attempt is visible whose point is not before the gap's end.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from engine.flow.reception import Reception
from engine.journal.entry import JournalState, Snapshot, SnapshotState, StatedSnapshot
from engine.journal.gaps import GapRegister
from engine.journal.object_lists import ObjectLists
from engine.model.batch import LeftOut, Moved
from engine.model.errors import InvariantBroken, SnapshotStale, TailraceError
from engine.model.interfaces import Clock, SourceIdentity
from engine.model.lane import Lane
from engine.model.layout import key_hour
from engine.model.log_point import LogPoint
from engine.model.position import LOG_BEGIN, LogPosition, segment_of, snapshot_lane
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableName, TableVersion
from engine.model.staged_object import StagedObject
from engine.operate.events import Events

NAMES_BYTES_MAX = 1024 * 1024
"""Bytes of JSON, estimated, by which one entry names the objects of snapshots."""

_OBJECT_BYTES = 700
_PART_BYTES = 100

_PAUSE_SECONDS = 10.0
_PAUSE_SECONDS_MAX = 600.0
"""The longest pause before a snapshot that is wanted because of yet another gap."""

_GIVEN_UP: frozenset[str] = frozenset(("cancelled", "gone"))
"""The states of a table of which no attempt is made until it is wanted again."""

_CALM_SECONDS = 3600.0
"""After so long without one the pauses begin anew."""


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """One attempt to take the snapshot of one table: what its objects are made with.

    Its rows are those that the table has before `point`. `hour` is the one in its keys. Where it
    reads the table in segments, this is the one numbered `segment`: see `SnapshotRegister.rest`.
    `is_divided`: others follow this one. With `undivided` there may be none.
    """

    table: TableName
    number: int
    point: LogPoint
    version: TableVersion
    hour: str
    segment: int = 0
    began: LogPosition = LOG_BEGIN
    is_divided: bool = False
    undivided: bool = False


@dataclass(slots=True)
class _Open:
    """A table that is unfinished, or was until a moment ago."""

    snapshot: Snapshot
    seq: int | None
    is_visible: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to be read, and all of it is visible."""
        return self.is_visible and not self.snapshot.rest

    def is_finished(self, durable: LogPosition, seq: int) -> bool:
        is_vouched = self.is_complete and self.seq is not None and self.seq <= seq
        return is_vouched and self.snapshot.point <= durable


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a table's attempts are refused. `is_of_group`: all that were to be read together are."""

    error: TailraceError
    is_of_group: bool


@dataclass(slots=True)
class _Pause:
    """How long a table is left alone whose snapshots keep finding gaps. Times are the loop's."""

    count: int = 0
    until: float = 0.0

    def lengthen(self, now: float) -> None:
        """Another snapshot is wanted because of a gap."""
        if now > self.until + _CALM_SECONDS:
            self.count = 0
        seconds = _PAUSE_SECONDS * 2.0 ** min(self.count - 1, 10) if self.count else 0.0
        self.until = now + min(seconds, _PAUSE_SECONDS_MAX)
        self.count += 1


class SnapshotRegister:
    """What this writer knows of snapshots. `wake` is called when there is something to append."""

    def __init__(
        self,
        *,
        state: JournalState,
        gaps: GapRegister,
        reception: Reception,
        configuration: RecordConfiguration,
        clock: Clock,
        lists: ObjectLists,
        events: Events,
        wake: Callable[[], None],
    ) -> None:
        self._state = state
        self._events = events
        self._gaps = gaps
        self._reception = reception
        self._is_on = configuration.snapshot != "never"
        self._messages = configuration.messages
        self._clock = clock
        self._lists = lists
        self._wake = wake
        self._pending: dict[TableName, Snapshot] = {}
        self._attempts: dict[TableName, Attempt] = {}
        # Until another attempt begins.
        self._refused: dict[TableName, _Refusal] = {}
        # The attempts that are whole, with the statements that say so, until an entry has them or
        # something else was asked of the table.
        self._handed_over: dict[Attempt, Snapshot] = {}
        self._unnamed: list[Attempt] = []
        # The tables of which something was asked that no entry says yet.
        self._asked: set[TableName] = set()
        self._changed = asyncio.Event()
        self._on_read: Callable[[Attempt, Sequence[str]], None] = _nobody_asks
        self._open = {
            stated.snapshot.table_name: _Open(stated.snapshot, stated.seq, stated.is_visible)
            for stated in state.snapshots.values()
            if not stated.is_complete or stated.snapshot.point > state.durable_position
        }
        self._known = {stated.snapshot.table_name for stated in state.snapshots.values()}
        self._gone = {
            stated.snapshot.table_name
            for stated in state.snapshots.values()
            if stated.snapshot.state == "gone"
        }
        # The tables that arrive, as the newest look shows it.
        self._arriving: frozenset[TableName] = frozenset()
        self._pauses: dict[TableName, _Pause] = {}
        # By table, the end of the gaps for which a snapshot was wanted. Nobody asks for the same
        # again where somebody cancels it.
        self._filling: dict[TableName, str] = {}
        # By table, where the newest row commits that moved to another key without all its columns.
        self._moved: dict[TableName, LogPosition] = {}
        self._is_waiting = False

    # --- for whoever looks at what the source publishes

    def arrive(self, tables: Iterable[TableName]) -> None:
        """A look shows these tables, and that changes of them arrive. Never waits.

        Each is captured. Where a gap of one has ended that its snapshot does not fill, another
        snapshot is wanted, in the same journal entry that states the gap's end.
        """
        self._is_waiting = False
        if not self._is_on:
            return
        self._arriving = frozenset(tables)
        # By name: the hash of a table's name differs between processes, and so does a set's order.
        for table in sorted(self._arriving):
            self.appear(table)
            self._fill(table)

    def arrive_unseen(self) -> None:
        """The source has nothing to look at: every table that is known arrives. Never waits.

        See `arrive`. Only the stream tells of gaps then, and they have ended.
        """
        self.arrive(self._known - self._gone)

    def came(self, table: TableName) -> None:
        """The stream shows that the table came under its present name. Never waits.

        See `arrive`: changes of it arrive from here on.
        """
        if self._is_on:
            self._arriving |= {table}
            self.appear(table)
            self._fill(table)

    def is_gone(self, table: TableName) -> bool:
        """Whether the source had no table of that name when it was last looked at."""
        return table in self._gone

    def appear(self, table: TableName) -> None:
        """The source has the table: see `capture`. One whose name was gone is wanted too."""
        if self._is_on and table in self._gone:
            self._state_next(table, Snapshot(str(table), "wanted"))
        self.capture(table)

    @property
    def owed(self) -> frozenset[TableName]:
        """The tables of which rows are still to be read, and those of a cancelled snapshot."""
        return frozenset(
            table
            for table, known in self._open.items()
            if known.snapshot.state not in {"whole", *_GIVEN_UP}
            or self._segment_before(table) is not None
            or (known.snapshot.state == "cancelled" and not self._is_visible_before(table))
        )

    def _is_visible_before(self, table: TableName) -> bool:
        return self._state.visible_snapshot(str(table)) is not None

    def vanish(self, tables: Iterable[TableName], point: LogPosition) -> None:
        """The source has no table of these names any more; they went before `point`. Never waits.

        An attempt that is under way is given up. Objects of one that is whole become visible all
        the same. A table that had a visible snapshot before is as it was, another one is not
        unfinished any more.
        """
        for table in sorted(self.owed.intersection(tables)):
            self._ask(table, "gone", point)
            self._gone.add(table)
            self._filling.pop(table, None)
            self._pauses.pop(table, None)

    def wait_for_look(self) -> None:
        """Nothing is known of what arrives: no snapshot is taken before `arrive`. Never waits.

        What a table lacks between its snapshot and the first look would not be seen by anybody.
        """
        self._is_waiting = True

    def is_filling(self, table: TableName) -> bool:
        """Whether the gaps of the table are made good once its snapshot is visible."""
        known = self._open.get(table)
        if known is None or known.snapshot.state in _GIVEN_UP:
            return False
        return not known.is_complete

    def _fill(self, table: TableName) -> None:
        """Mend the gaps that the table's snapshot fills; want another one for the others."""
        self._supersede(table)
        gaps = [gap for gap in self._gaps.unmended(str(table)) if not gap.is_open]
        if not gaps:
            return
        newest, is_visible = self._newest(table)
        for gap in gaps:
            if is_visible and gap.until <= newest.sees:
                self._gaps.mend(gap.number, f"attempt {newest.attempt} of its snapshot")
                self._wake()
        end = max(gap.until for gap in gaps)
        is_asked = end <= self._filling.get(table, "") or newest.sees >= end
        if table not in self._arriving or is_asked:
            return
        self._filling[table] = end
        if is_visible or table in self._attempts:
            self._pauses.setdefault(table, _Pause()).lengthen(_now())
            self.resync(table)

    def _supersede(self, table: TableName) -> None:
        """Mend the gaps of rows whose place the table's snapshot takes, as the journal knows it.

        The stream reads rows behind E again, and would state them once more.
        """
        stated = self._state.visible_snapshot(str(table))
        if stated is None:
            return
        before = min(stated.snapshot.sees, self._state.durable_position)
        if self._gaps.supersede(str(table), stated.snapshot.attempt, before):
            self._wake()

    def _newest(self, table: TableName) -> tuple[Snapshot, bool]:
        """The newest statement about the table's snapshot, and whether its objects are there."""
        known = self._open.get(table)
        if known is not None and known.snapshot.state not in _GIVEN_UP:
            return known.snapshot, known.is_complete
        stated = self._state.visible_snapshot(str(table))
        if stated is None:
            return Snapshot(str(table), "cancelled"), False
        return stated.snapshot, True

    # --- for whoever reads the stream

    def moved(self, moved: Moved) -> None:
        """Rows of a table moved to another key, and not all their columns were shown. Never waits.

        An attempt that reads the table in segments is given up where it may have read the part that
        such a row moved into, and not yet the one that it came from. The next one has no segments.
        So has one that takes the place of visible segments, whatever is asked since: nobody is to
        cancel it, and have these segments for all of the table.
        """
        table, commit = moved.table, moved.commit
        self._moved[table] = max(commit, self._moved.get(table, LOG_BEGIN))
        known = self._open.get(table)
        if not self._is_on or known is None:
            return
        is_torn = known.snapshot.state != "whole" and self._is_torn(table, commit)
        if is_torn or self._is_passed(table, known.snapshot, commit):
            self._ask(table, "wanted", undivided=True)

    def _is_passed(self, table: TableName, snapshot: Snapshot, commit: LogPosition) -> bool:
        """Whether a row that moved there may be past the segments of the newest attempt."""
        if not self._is_divided(table, snapshot):
            return False
        is_read = snapshot.state == "whole" and not snapshot.rest and snapshot.point <= commit
        return snapshot.sees <= commit and not is_read

    def _is_torn(self, table: TableName, commit: LogPosition) -> bool:
        """Whether it is past the segments of the snapshot that a cancellation leaves."""
        stated = self._state.visible_snapshot(str(table))
        if stated is None or not stated.snapshot.segment:
            return False
        return stated.snapshot.sees <= commit < stated.snapshot.point

    def _is_divided(self, table: TableName, snapshot: Snapshot) -> bool:
        """Whether an attempt is started or whole that reads the table in segments."""
        if snapshot.state not in {"started", "whole"}:
            return False
        attempt = self._attempts.get(table)
        is_divided = attempt is not None and attempt.is_divided
        return is_divided or bool(snapshot.segment or snapshot.rest)

    # --- for whoever takes snapshots

    def capture(self, table: TableName) -> None:
        """The table is captured: its snapshot is wanted, unless there was one. Never waits."""
        if self._is_on and table not in self._known and str(table) != self._messages:
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
        if known is None or known.snapshot.state in _GIVEN_UP:
            return False
        if known.snapshot.state == "whole" and self._segment_before(table) is None:
            return False
        self._ask(table, "cancelled")
        return True

    def _ask(
        self,
        table: TableName,
        state: Literal["wanted", "cancelled", "gone"],
        point: LogPosition = LOG_BEGIN,
        *,
        undivided: bool = False,
    ) -> None:
        # What no entry says yet is said with what takes its place: the segments stay torn.
        is_kept = state == "wanted" or table in self._pending
        undivided = undivided or (is_kept and self._is_undivided(table))
        self._attempts.pop(table, None)
        self._refused.pop(table, None)
        self._asked.add(table)
        self._state_next(table, Snapshot(str(table), state, point=point, undivided=undivided))

    @property
    def undivided(self) -> frozenset[TableName]:
        """The tables whose next attempt has to read them without segments."""
        return frozenset(filter(self._is_undivided, self._open))

    def _is_undivided(self, table: TableName) -> bool:
        known = self._open.get(table)
        return known is not None and known.snapshot.undivided and not known.is_complete

    def needed(self) -> tuple[TableName, ...]:
        """The tables of which an attempt has to be started, by name."""
        if self._is_waiting:
            return ()
        return tuple(sorted(filter(self.is_needed, self._open)))

    def is_needed(self, table: TableName) -> bool:
        """Whether an attempt of the table has to be started: whether it is in `needed()`."""
        known = self._open.get(table)
        if self._is_waiting or known is None:
            return False
        return self._is_needed(table, known.snapshot) and not self._is_held_back(table)

    def _is_held_back(self, table: TableName) -> bool:
        """Whether a snapshot that is taken now would not fill the table's gaps, or comes soon."""
        pause = self._pauses.get(table)
        is_paused = pause is not None and _now() < pause.until
        return is_paused or self._gaps.is_open(str(table))

    def _is_needed(self, table: TableName, snapshot: Snapshot) -> bool:
        is_over = snapshot.state in _GIVEN_UP
        if is_over or table in self._attempts or table in self._asked:
            return False
        if snapshot.state == "whole":
            # The journal says so before the next segment begins.
            return self._segment_before(table) is not None
        # What an attempt came to is in the journal before the next one begins.
        return table not in self._pending or snapshot.state == "wanted"

    @property
    def finished_count(self) -> int:
        """How many captured tables have a snapshot that everybody can see."""
        return sum(stated.is_complete for stated in self._state.snapshots.values())

    def waits_behind(self, durable: LogPosition) -> bool:
        """Whether a visible snapshot saw something that commits at `durable` or later."""
        return any(
            known.is_visible and known.snapshot.point > durable for known in self._open.values()
        )

    def is_done(self, durable: LogPosition) -> bool:
        """Whether every snapshot that is wanted is visible, and complete once E is `durable`.

        One that waits for the end of a gap, or that was refused, does not count: that takes
        somebody else.
        """
        refused = self.refused
        return all(
            known.snapshot.state == "cancelled"
            or known.snapshot.table_name in refused
            or (known.snapshot.state == "gone" and known.snapshot.point <= durable)
            or self._gaps.is_open(known.snapshot.table)
            or (known.is_complete and known.snapshot.point <= durable)
            for known in self._open.values()
        )

    # --- where the stream waits for the initial snapshot

    @property
    def is_stream_waiting(self) -> bool:
        """Whether the stream waits for the initial snapshot: see `StreamStart`."""
        return self._state.stream_waits

    @property
    def holds_stream_back(self) -> bool:
        """Whether a stream that waits for the initial snapshot has to wait on.

        It does for every table whose snapshot somebody may still take: until the journal says that
        its objects are visible.
        """
        return self._is_waiting or any(map(self._is_waited_for, self._open.items()))

    def _is_waited_for(self, item: "tuple[TableName, _Open]") -> bool:
        table, known = item
        refusal = self._refused.get(table)
        is_refused = refusal is not None and not refusal.is_of_group
        is_given_up = known.snapshot.state in _GIVEN_UP or is_refused
        if is_given_up or self._gaps.is_open(str(table)):
            return False
        is_vouched = known.seq is not None and known.seq <= self._state.durable_seq
        return not (known.is_complete and is_vouched)

    @property
    def is_stream_stuck(self) -> bool:
        """Whether every table for which the stream waits is refused: somebody has to act."""
        waited_for = [
            table for table, known in self._open.items() if self._is_waited_for((table, known))
        ]
        refused = self.refused
        is_refused = all(table in refused for table in waited_for)
        return bool(waited_for) and is_refused and not self._is_waiting

    @property
    def unfinished_names(self) -> frozenset[str]:
        """The tables of which not all rows are visible, by name."""
        return frozenset(
            known.snapshot.table
            for known in self._open.values()
            if not known.is_complete and known.snapshot.state != "gone"
        )

    # --- what somebody has to change something for

    def refuse(self, table: TableName, error: TailraceError, *, is_of_group: bool = False) -> None:
        """Its attempts are refused until somebody changes something. Never waits.

        It is still wanted, and another attempt may begin at any time. Nobody waits for it to be
        done. Nor does a stream that waits for the initial snapshot wait for this table, unless all
        tables of a group were refused together: that says nothing of one of them.
        """
        self._refused[table] = _Refusal(error, is_of_group=is_of_group)
        self._wake()

    @property
    def refused(self) -> dict[TableName, TailraceError]:
        """The tables that are owed and refused, and why, by name."""
        return {
            table: self._refused[table].error
            for table in sorted(self._refused)
            if self.is_owed(table) and table not in self._attempts
        }

    def is_owed(self, table: TableName) -> bool:
        """Whether an attempt of the table has yet to be whole, and nobody cancelled it."""
        known = self._open.get(table)
        return known is not None and known.snapshot.state not in {"whole", *_GIVEN_UP}

    @property
    def generation(self) -> int:
        """The one that the journal is in."""
        return self.source.generation if self.source is not None else 1

    @property
    def source(self) -> SourceIdentity | None:
        """Whose changes the journal has."""
        return self._state.source

    @property
    def unfinished_count(self) -> int:
        """How many tables are waiting for a snapshot, or have one under way."""
        return sum(
            known.snapshot.state not in _GIVEN_UP and not known.is_complete
            for known in self._open.values()
        )

    def rest(self, table: TableName) -> str:
        """What is still to be read of the attempt that is under way, in the source's own words.

        Empty where an attempt has to begin at the beginning.
        """
        before = self._segment_before(table)
        return before.snapshot.rest if before is not None else ""

    def _segment_before(self, table: TableName) -> StatedSnapshot | None:
        """The visible segment that the table's next one follows."""
        known, stated = self._open.get(table), self._state.snapshots.get(str(table))
        if known is None or stated is None or known.snapshot.state not in {"started", "whole"}:
            return None
        before = stated.segment_before
        if before is None or before.snapshot.attempt != known.snapshot.attempt:
            return None
        is_newest = known.snapshot.state == "whole"
        return None if is_newest and before.snapshot.segment != known.snapshot.segment else before

    def start(
        self,
        table: TableName,
        point: LogPoint,
        relation: Relation,
        *,
        rest: str = "",
        is_divided: bool = False,
    ) -> Attempt:
        """Begin an attempt that reads `table`, which looks like `relation`, as it is at `point`.

        With a `rest`, the attempt under way goes on: what is read now begins there. `is_divided`:
        other segments follow this one. Nothing may be staged before `started`. Raises
        InvariantBroken where none is needed, or where `rest` is not what the register says;
        SnapshotStale where the table is not the one any more that the attempt began with, or may
        not be read in segments: it begins anew then.
        """
        known = self._open.get(table)
        is_needed = known is not None and self._is_needed(table, known.snapshot)
        if not is_needed or rest not in {"", self.rest(table)}:
            raise InvariantBroken(f"no snapshot of {table} has to be started")
        number, segment, began = self._attempt_count(table) + 1, 0, LOG_BEGIN
        if rest:
            stated = self._segment_before(table)
            assert stated is not None
            before = stated.snapshot
            self._refuse_other(table, point, relation, before)
            number, segment, began = before.attempt, before.segment + 1, before.sees
        elif is_divided:
            self._refuse_moved(table, point.position)
        undivided = self._is_undivided(table)
        version = self._reception.snapshot_version(relation)
        commit_us = self._state.within_reason(point.commit_us, self._clock())
        hour = key_hour(commit_us, "")
        attempt = Attempt(
            table, number, point, version, hour, segment, began, is_divided, undivided
        )
        self._attempts[table] = attempt
        self._refused.pop(table, None)
        self._state_next(table, _statement(attempt, "started"))
        if not segment:
            self._events.happened("snapshot-begun", f"attempt {number}", subject=str(table))
        return attempt

    def _refuse_moved(self, table: TableName, point: LogPosition) -> None:
        """Raise SnapshotStale where the table may not be read in segments.

        What the stream has shown already may lie behind the point of a segment that begins only
        now.
        """
        is_moved = self._moved.get(table, LOG_BEGIN) >= point
        if is_moved and not self._is_undivided(table):
            self._ask(table, "wanted", undivided=True)
        if self._is_undivided(table):
            raise SnapshotStale(
                f"a row of {table} moved to another key: it is read without segments"
            )

    def _refuse_other(
        self, table: TableName, point: LogPoint, relation: Relation, before: Snapshot
    ) -> None:
        """Begin anew where rows that were read may be others by now, and raise SnapshotStale."""
        versions = self._state.versions_of(table)
        was = next(known.relation for known in versions if known.number == before.version)
        is_same = (was.identity, was.key) == (relation.identity, relation.key)
        is_later = before.point <= point.position
        if not is_same or not is_later or before.point[:4] != point.position[:4]:
            self.resync(table)
            raise SnapshotStale(f"{table} is not the one that attempt {before.attempt} began with")

    def tell_partitions(self, on_read: Callable[[Attempt, Sequence[str]], None]) -> None:
        """Call `on_read` with the partitions of each attempt that is whole, before it is stated."""
        self._on_read = on_read

    async def started(self, attempt: Attempt) -> None:
        """Wait until the journal says that the attempt is started. Cancellation changes nothing."""
        while self._pending.get(attempt.table) is not None:
            self._changed.clear()
            await self._changed.wait()

    async def stated(self, tables: Sequence[TableName]) -> None:
        """Wait until the journal says what is wanted of `tables`. Cancellation changes nothing."""
        while not self._pending.keys().isdisjoint(tables):
            self._changed.clear()
            await self._changed.wait()

    def is_under_way(self, attempt: Attempt) -> bool:
        """Whether its objects are still wanted."""
        return self._attempts.get(attempt.table) is attempt

    def give_up(self, attempt: Attempt) -> None:
        """Nothing will become of it: another attempt has to be started. Never waits."""
        if self._attempts.get(attempt.table) is attempt:
            del self._attempts[attempt.table]

    async def whole(
        self,
        attempt: Attempt,
        objects: Sequence[StagedObject],
        left_out: Sequence[LeftOut] = (),
        *,
        rest: str = "",
        partitions: Sequence[str] = (),
    ) -> None:
        """All rows of the attempt are staged as `objects`: let them become visible.

        With a `rest`, they are those of its segment, and the next one begins there. `left_out` are
        the rows that no record can hold: gaps of the same entry. `partitions` are those that the
        rows were read from, and none of them has left the table yet. Waits until the objects are
        listed in the bucket, where they are too many for an entry. Raises InvariantBroken where
        they are not the gapless lanes of this attempt, or where it is not under way; SnapshotStale
        where it was given up meanwhile; UnrepresentableRow where too many rows were left out: none
        of them is stated then. Cancellation leaves the attempt under way.
        """
        table = attempt.table
        if not self.is_under_way(attempt) or table in self._pending:
            raise InvariantBroken(f"attempt {attempt.number} of {table} is not under way")
        refuse_broken_lanes(attempt, objects)
        listed = await self._lists.put(table, attempt.number, objects)
        if not self.is_under_way(attempt):
            raise SnapshotStale(f"attempt {attempt.number} of {table} was given up")
        self._gaps.leave_out_all(str(table), attempt.number, left_out)
        self._on_read(attempt, partitions)
        del self._attempts[table]
        named = tuple(objects) if listed is None else ()
        whole = _statement(attempt, "whole")
        whole = replace(whole, objects=named, listed=listed, rest=rest)
        self._handed_over[attempt] = whole
        self._state_next(table, whole)

    def shares_uploads(self, attempt: Attempt) -> bool:
        """Whether another try has the same number, segment and point, and so the same keys.

        A segment that was given up is read again under its number, and the point of an idle source
        stands still. What is left of the first try then goes with the second one.
        """
        own = (attempt.number, attempt.segment, attempt.point.position)
        now = self._attempts.get(attempt.table)
        if now is not None and (now.number, now.segment, now.point.position) == own:
            return True
        stated, known = self._pending.get(attempt.table), self._open.get(attempt.table)
        newest = stated or (known.snapshot if known is not None else None)
        if newest is None or newest.state != "whole":
            return False
        return (newest.attempt, newest.segment, newest.point) == own

    def take_unnamed(self) -> list[Attempt]:
        """Those that were whole and that no entry names or will name: throw away what was staged.

        Something else was asked of their tables before. Each is returned once.
        """
        unnamed, self._unnamed = self._unnamed, []
        return unnamed

    # --- for the committer

    @property
    def pending(self) -> tuple[Snapshot, ...]:
        """What the next entry has to say: all of it, but for names of very many objects.

        The journal has such an attempt as started until a later entry says that it is whole.
        """
        said: list[Snapshot] = []
        size_bytes = 0
        for snapshot in self._pending.values():
            size_bytes += _size_estimate(snapshot)
            if size_bytes <= NAMES_BYTES_MAX or snapshot.state != "whole" or not said:
                said.append(snapshot)
        return tuple(said)

    def journalled(self, snapshots: Sequence[Snapshot], seq: int) -> None:
        """Entry `seq` says these: `pending` as it was when the entry was made."""
        self._look_for_unnamed(snapshots)
        for snapshot in snapshots:
            table = snapshot.table_name
            if self._open[table].snapshot is snapshot:
                self._open[table].seq = seq
            if self._pending.get(table) is snapshot:
                del self._pending[table]
                self._asked.discard(table)
        self._changed.set()
        if self._pending:
            self._wake()

    def _look_for_unnamed(self, snapshots: Sequence[Snapshot]) -> None:
        """See which of the attempts that are whole an entry with these statements names."""
        for attempt, whole in list(self._handed_over.items()):
            is_named = any(stated is whole for stated in snapshots)
            if not is_named and self._pending.get(attempt.table) is whole:
                continue  # A later entry says it.
            del self._handed_over[attempt]
            if not is_named:
                self._unnamed.append(attempt)

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

    def awaits(self, seq: int) -> bool:
        """Whether something follows once the journal says that all up to entry `seq` is visible.

        That is a table's next segment, or the start of a stream that waits.
        """
        vouched_seq = self._state.durable_seq
        return any(
            known.is_visible
            and (known.snapshot.rest or self._state.stream_waits)
            and known.seq is not None
            and vouched_seq < known.seq <= seq
            for known in self._open.values()
        )

    def forget(self, durable: LogPosition, seq: int) -> None:
        """Forget the tables that were finished beside these two, which are journalled."""
        for table in self._open:
            self._supersede(table)
        self._open = {
            table: known
            for table, known in self._open.items()
            if table in self._pending or not self._is_finished(known, durable, seq)
        }

    def _is_finished(self, known: _Open, durable: LogPosition, seq: int) -> bool:
        if known.snapshot.state not in _GIVEN_UP:
            return known.is_finished(durable, seq)
        before = self._state.visible_snapshot(known.snapshot.table)
        if before is None:
            return known.snapshot.state == "gone" and known.snapshot.point <= durable
        return before.snapshot.point <= durable

    # --- for whoever completes uploads

    def visible(self, snapshot: Snapshot) -> None:
        """All objects of `snapshot`, which is whole, are there."""
        known = self._open.get(snapshot.table_name)
        if known is not None and known.snapshot is snapshot:
            known.is_visible = True
            if not snapshot.rest:
                text = f"all rows of attempt {snapshot.attempt} are visible"
                self._events.happened("snapshot-finished", text, subject=snapshot.table)
            self._wake()
            self._filling.pop(snapshot.table_name, None)
            self._fill(snapshot.table_name)

    def void(self, snapshot: Snapshot) -> None:
        """Not all objects of `snapshot` can become visible: another attempt has to be started."""
        known = self._open.get(snapshot.table_name)
        if known is not None and known.snapshot is snapshot:
            voided = replace(snapshot, state="void", objects=(), listed=None, rest="")
            self._state_next(snapshot.table_name, voided)

    def _state_next(self, table: TableName, snapshot: Snapshot) -> None:
        self._pending[table] = snapshot
        self._open[table] = _Open(snapshot, None)
        self._known.add(table)
        self._gone.discard(table)
        self._wake()

    def _attempt_count(self, table: TableName) -> int:
        pending = self._pending.get(table)
        return max(self._state.attempts.get(str(table), 0), pending.attempt if pending else 0)


def _nobody_asks(_attempt: Attempt, _partitions: Sequence[str]) -> None:
    pass


def _statement(attempt: Attempt, state: SnapshotState) -> Snapshot:
    """The statement that the attempt is that far."""
    return Snapshot(
        str(attempt.table),
        state,
        attempt.number,
        attempt.point.position,
        attempt.version.number,
        attempt.hour,
        segment=attempt.segment,
        began=attempt.began,
        undivided=attempt.undivided,
    )


def _size_estimate(snapshot: Snapshot) -> int:
    part_count = sum(len(staged.parts) for staged in snapshot.objects)
    return len(snapshot.objects) * _OBJECT_BYTES + part_count * _PART_BYTES


def refuse_broken_lanes(attempt: Attempt, objects: Sequence[StagedObject]) -> None:
    """Raise InvariantBroken unless `objects` are all lanes of the attempt, each without a gap.

    There is a range 0 in segment 0; ranges without rows have no objects. Within a range each object
    names where the one before it ended, and all positions are the lane's. All ranges are the
    segment's.
    """
    last: dict[int, str] = {}
    for staged in objects:
        lane = Lane(attempt.table, attempt.number, staged.range_number)
        begin = snapshot_lane(attempt.point.position, attempt.number, staged.range_number)
        before = last.get(staged.range_number, "")
        is_in_lane = staged.first.startswith(begin) and staged.last.startswith(begin)
        is_in_lane = is_in_lane and segment_of(staged.range_number) == attempt.segment
        if not is_in_lane or staged.previous != before or not before < staged.first <= staged.last:
            raise InvariantBroken(
                f"{staged.key} of {lane} goes from {staged.first} to {staged.last}, after"
                f" {staged.previous or 'nothing'}; the lane ended at {before or 'nothing'}"
            )
        last[staged.range_number] = staged.last
    if not attempt.segment and 0 not in last:
        raise InvariantBroken(f"attempt {attempt.number} of {attempt.table} has no range 0")
    if _uploads(objects) != len(objects):
        raise InvariantBroken(f"attempt {attempt.number} of {attempt.table} names an upload twice")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _uploads(objects: Sequence[StagedObject]) -> int:
    return len({staged.upload_id for staged in objects})
