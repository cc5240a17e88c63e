"""Statements about snapshots, against the fold before them, and what of them became durable.

Strategy: each statement is judged before it is folded in: by the table's last one, by the epoch's
configuration and by itself. What an attempt names is held until the fold says what became of it: it
is visible, as `durable.seq` says, or it was given up. Objects of one that was given up may be there
or not: some of them may have become visible before.

Invariant: memory is bounded by the tables, and the objects that are named and not durable yet.
Pure.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from msgspec.structs import replace as with_changes

from engine.journal.entry import Durable, Entry, JournalState, Snapshot, StatedSnapshot
from engine.journal.object_lists import listed_objects
from engine.model.errors import DecodeError, JournalError
from engine.model.layout import TableLayout
from engine.model.plural import counted
from engine.model.position import (
    require_log_position,
    require_position,
    segment_of,
    segment_range,
    snapshot_attempt,
    snapshot_lane,
)
from engine.model.record import RecordConfiguration
from engine.model.staged_object import StagedObject
from engine.reader.verify.key_set import KeySet
from engine.reader.verify.naming import Naming
from engine.reader.verify.object_audit import NamedObject
from engine.reader.verify.problem import Code
from engine.reader.verify.verdict import SnapshotProgress

_TRUNCATE = "t"
_OPS = frozenset("rt")

Note = Callable[[Code, str, str], None]
"""Told of a problem: its code, the key, a sentence."""

Lists = Mapping[str, bytes | None]
"""The bytes of lists of objects, by key; None: cannot be read."""


@dataclass(frozen=True, slots=True)
class _Whole:
    """An attempt that the journal names and whose objects are not durable yet."""

    seq: int
    objects: tuple[NamedObject, ...]


@dataclass(slots=True)
class SnapshotCount:
    """What the durable objects of a table's snapshots add up to."""

    objects: int = 0
    rows: int = 0


class SnapshotAudit:
    """The journal's statements about snapshots as read so far. `names` are all keys it named."""

    def __init__(self, prefix: str, names: KeySet, note: Note) -> None:
        self.counts: dict[str, SnapshotCount] = {}
        self._prefix = prefix
        self._names = names
        self._note = note
        self._open: dict[str, _Whole] = {}

    def begin(self, state: JournalState, lists: Lists) -> None:
        """Begin behind a state file: the objects that were not durable yet are taken from it."""
        for stated in state.snapshots.values():
            if stated.snapshot.state == "whole" and not stated.is_visible:
                snapshot = self._with_objects(stated.snapshot, lists)
                self._name(snapshot, stated.seq, Naming(self._prefix, state, stated.epoch))

    # --- a statement by itself and by the one before

    def judge(self, key: str, entry: Entry, state: JournalState, *, is_whole: bool) -> None:
        """Judge what `entry` says of snapshots; `state` is the fold of all entries before it.

        Unless the journal `is_whole` up to here, what an entry follows is not known.
        """
        configuration = state.configurations.get(entry.epoch)
        if entry.open is not None:
            configuration = entry.open.configuration
        here: dict[str, StatedSnapshot] = {}
        for snapshot in entry.snapshots:
            known = here.get(snapshot.table) or state.snapshots.get(snapshot.table)
            if is_whole:
                count = state.attempts.get(snapshot.table, 0)
                if known is not None:
                    count = max(count, known.snapshot.attempt)
                self._judge_step(key, StatedSnapshot(snapshot, entry.epoch, entry.seq), known)
                self._judge_number(key, snapshot, count)
            self._judge_captured(key, snapshot, configuration)
            self._judge_version(key, snapshot, entry, state)
            here[snapshot.table] = StatedSnapshot(snapshot, entry.epoch, entry.seq)

    def _judge_step(self, key: str, stated: StatedSnapshot, known: StatedSnapshot | None) -> None:
        snapshot = stated.snapshot
        before = known.snapshot.state if known is not None else None
        is_pending = before == "whole" and known is not None and not known.is_visible
        match snapshot.state:
            case "wanted" | "cancelled" | "gone":
                is_next = True  # What was whole is given up then.
            case "started":
                is_next = not is_pending and _is_next_segment(snapshot, known)
            case "whole":
                is_next = before == "started" and known is not None and known.epoch == stated.epoch
            case "void":
                is_next = is_pending
            case _:
                assert_never(snapshot.state)
        if not is_next:
            text = f"{snapshot.table}: {snapshot.state} follows {_told(known)}"
            self._note(Code.SNAPSHOT_ORDER, key, text)
        elif snapshot.state in {"whole", "void"} and known is not None:
            same, other = _lasting(known.snapshot), _lasting(snapshot)
            if same != other:
                text = f"{snapshot.table}: {snapshot.state} says {other}, before it was {same}"
                self._note(Code.SNAPSHOT_DIFFERS, key, text)

    def _judge_number(self, key: str, snapshot: Snapshot, count: int) -> None:
        next_number = count if snapshot.segment else count + 1
        of_none = dict.fromkeys(("wanted", "cancelled", "gone"), 0)
        expected = (of_none | {"started": next_number}).get(snapshot.state)
        if expected is not None and snapshot.attempt != expected:
            text = (
                f"{snapshot.table}: attempt {snapshot.attempt} is {snapshot.state} after"
                f" {counted(count, 'attempt')}"
            )
            self._note(Code.SNAPSHOT_ATTEMPT, key, text)

    def _judge_captured(
        self, key: str, snapshot: Snapshot, configuration: RecordConfiguration | None
    ) -> None:
        if configuration is None:
            return
        if configuration.snapshot == "never" or not configuration.captures(snapshot.table_name):
            text = f"{snapshot.table} is {snapshot.state}, and this epoch takes no snapshot of it"
            self._note(Code.SNAPSHOT_UNCAPTURED, key, text)

    def _judge_version(
        self, key: str, snapshot: Snapshot, entry: Entry, state: JournalState
    ) -> None:
        versions = (*state.versions_of(snapshot.table_name), *entry.schemas)
        numbers = {
            version.number for version in versions if version.relation.table == snapshot.table_name
        }
        is_of_none = snapshot.state in {"wanted", "cancelled", "gone"}
        if not is_of_none and snapshot.version not in numbers:
            text = f"{snapshot.table}: version {snapshot.version} is not in the journal"
            self._note(Code.VERSION_UNKNOWN, key, text)

    # --- the list beside durable, and rows of tables that nobody asked a snapshot of

    def judge_unfinished(self, key: str, durable: Durable, state: JournalState) -> None:
        """Judge the list of unfinished tables by `state`, the fold with the entry that has it."""
        expected = state.unfinished(durable.position)
        if durable.unfinished != expected:
            text = f"unfinished are {list(durable.unfinished)}, by the journal {list(expected)}"
            self._note(Code.UNFINISHED_WRONG, key, text)

    def judge_asked(self, key: str, table: str, state: JournalState) -> None:
        """Judge a plan of `table`: from its first row on, its snapshot has been asked for."""
        configuration = state.configurations.get(state.epoch)
        is_on = configuration is not None and configuration.snapshot != "never"
        if is_on and table not in state.snapshots:
            text = f"rows of {table} are planned, and no snapshot of it was ever asked for"
            self._note(Code.SNAPSHOT_UNASKED, key, text)

    # --- its objects

    def absorbed(
        self, key: str, entry: Entry, state: JournalState, lists: Lists
    ) -> tuple[NamedObject, ...]:
        """Take in `entry`, which `state` folds in. Returns the objects of which all is decided.

        They became durable, or the attempt that names them was given up. `lists` are those that the
        entry names.
        """
        settled = [*self._settled(state)]
        naming = Naming(self._prefix, state, state.epoch)
        for stated in entry.snapshots:
            if stated.state == "whole":
                snapshot = self._with_objects(stated, lists)
                if snapshot.objects or stated.listed is None:
                    self._judge_objects(key, snapshot, naming)
                self._name(snapshot, entry.seq, naming)
        return (*settled, *self._settled(state))

    def _with_objects(self, snapshot: Snapshot, lists: Lists) -> Snapshot:
        """The statement with the objects that it names; with none where their list is not right."""
        listed = snapshot.listed
        if listed is None:
            return snapshot
        content = lists.get(listed.key)
        if content is None:
            text = (
                f"it lists {counted(listed.count, 'object')} of {snapshot.table}; it cannot be read"
            )
            self._note(Code.LIST_MISSING, listed.key, text)
            return snapshot
        try:
            whole = with_changes(snapshot, objects=listed_objects(snapshot, content))
            require_snapshot(whole)
        except (JournalError, DecodeError, ValueError) as error:
            self._note(Code.LIST_DIFFERS, listed.key, str(error))
            return snapshot
        return whole

    def _settled(self, state: JournalState) -> Iterator[NamedObject]:
        for table, whole in list(self._open.items()):
            stated = state.snapshots.get(table)
            is_newest = stated is not None and stated.seq == whole.seq
            if is_newest and stated is not None and not stated.is_visible:
                continue
            del self._open[table]
            if is_newest:
                self._count(table, whole)
                yield from whole.objects
            else:
                yield from (replace(named, may_be_absent=True) for named in whole.objects)

    def _count(self, table: str, whole: _Whole) -> None:
        count = self.counts.setdefault(table, SnapshotCount())
        count.objects += len(whole.objects)
        count.rows += sum(named.plan.rows for named in whole.objects)

    def _name(self, snapshot: Snapshot, seq: int, naming: Naming) -> None:
        objects = []
        for staged in snapshot.objects:
            self._names.add(staged.key)
            objects.append(
                naming.staged(staged, snapshot.table_name, snapshot.version, snapshot.attempt, seq)
            )
        self._open[snapshot.table] = _Whole(seq, tuple(objects))

    def _judge_objects(self, key: str, snapshot: Snapshot, naming: Naming) -> None:
        self._judge_lanes(key, snapshot)
        self._judge_truncates(snapshot)
        self._judge_names(snapshot)
        for staged in snapshot.objects:
            self._judge_counts(staged)
            if naming.layout is not None and naming.configuration is not None:
                self._judge_key(snapshot, staged, naming.layout, naming.configuration)

    def _judge_lanes(self, key: str, snapshot: Snapshot) -> None:
        last: dict[int, str] = {}
        for staged in snapshot.objects:
            begin = snapshot_lane(snapshot.point, snapshot.attempt, staged.range_number)
            before = last.get(staged.range_number, "")
            is_in_lane = staged.first.startswith(begin) and staged.last.startswith(begin)
            is_in_order = before < staged.first <= staged.last
            is_one_row = staged.first == staged.last
            is_counted = is_one_row == (staged.rows == 1)
            is_in_lane = is_in_lane and segment_of(staged.range_number) == snapshot.segment
            if staged.previous != before or not (is_in_lane and is_in_order and is_counted):
                text = (
                    f"{counted(staged.rows, 'row')} of range {staged.range_number} from"
                    f" {staged.first} to {staged.last}, after {staged.previous or 'nothing'}; the"
                    f" range's positions begin with {begin}, and it ended at {before or 'nothing'}"
                )
                self._note(Code.LANE_BROKEN, staged.key, text)
            last[staged.range_number] = staged.last
        if not snapshot.segment and 0 not in last:
            text = f"attempt {snapshot.attempt} of {snapshot.table} is whole without a range 0"
            self._note(Code.LANE_BROKEN, key, text)

    def _judge_truncates(self, snapshot: Snapshot) -> None:
        is_begun = False
        for staged in snapshot.objects:
            is_first = staged.range_number == 0 and not is_begun
            is_begun = is_begun or is_first
            count = staged.ops.get(_TRUNCATE, 0)
            if count != int(is_first):
                text = (
                    f"it has {counted(count, 'truncate record')}, and an attempt has one, at the"
                    " beginning of range 0"
                )
                self._note(Code.TRUNCATE_WRONG, staged.key, text)

    def _judge_counts(self, staged: StagedObject) -> None:
        counts = staged.ops.values()
        if staged.rows < 1 or sum(counts) != staged.rows or min(counts, default=0) < 1:
            text = f"{counted(staged.rows, 'row')}, by op {staged.ops}"
            self._note(Code.PLAN_COUNTS, staged.key, text)
        elif not staged.ops.keys() <= _OPS:
            self._note(Code.PLAN_COUNTS, staged.key, f"no ops of a snapshot in {staged.ops}")
        numbers = [part.number for part in staged.parts]
        size_bytes = sum(part.size_bytes for part in staged.parts)
        if numbers != list(range(1, len(numbers) + 1)) or size_bytes != staged.size_bytes:
            text = (
                f"parts {numbers} of {counted(size_bytes, 'byte')} are to give"
                f" {counted(staged.size_bytes, 'byte')}"
            )
            self._note(Code.PLAN_COUNTS, staged.key, text)

    def _judge_names(self, snapshot: Snapshot) -> None:
        seen: set[str] = set()
        for staged in snapshot.objects:
            names = {f"upload {staged.upload_id}", f"nonce {staged.nonce}", staged.key}
            if staged.key in self._names:
                text = "an entry before names this key as well"
                self._note(Code.NAMED_TWICE, staged.key, text)
            elif repeated := names & seen:
                text = f"another object of the attempt has {', '.join(sorted(repeated))} too"
                self._note(Code.NAMED_TWICE, staged.key, text)
            seen |= names

    def _judge_key(
        self,
        snapshot: Snapshot,
        staged: StagedObject,
        layout: TableLayout,
        configuration: RecordConfiguration,
    ) -> None:
        expected = layout.object_key(
            snapshot.table_name,
            snapshot.version,
            snapshot.hour,
            staged.first,
            configuration.compression,
        )
        if staged.key != expected:
            text = f"by its statement its key is {expected}"
            self._note(Code.KEY_WRONG, staged.key, text)

    # --- what was read

    @property
    def pending(self) -> Iterator[NamedObject]:
        """The objects that are named and not durable, the oldest attempt first."""
        for whole in self._open.values():
            yield from whole.objects

    def pending_of(self, table: str) -> int:
        """How many of them are the table's."""
        return len(self._open[table].objects) if table in self._open else 0


def progress_of(table: str, state: JournalState) -> SnapshotProgress:
    """How far the newest snapshot of a table is."""
    stated = state.snapshots.get(table)
    if stated is None:
        return "none"
    if stated.is_visible and stated.snapshot.rest:
        return "started"
    is_finished = stated.is_visible and stated.snapshot.point <= state.durable_position
    return "finished" if is_finished else stated.snapshot.state


def expired_end(table: str, state: JournalState) -> str:
    """Where the names of objects end that entries before a state file can name for snapshots.

    As text that compares with positions; empty where there was no attempt.
    """
    if not state.attempts.get(table, 0):
        return ""
    stated = state.snapshots.get(table)
    if stated is None or not stated.snapshot.attempt:
        # An attempt that was given up: nothing in the state says how far it was.
        return "~"
    return snapshot_attempt(stated.snapshot.point, stated.snapshot.attempt) + "~"


def require_snapshot(snapshot: Snapshot) -> None:
    """Raise ValueError or DecodeError where a text is not what it stands for."""
    table = snapshot.table_name
    if snapshot.state in {"wanted", "cancelled"}:
        return
    require_log_position(snapshot.point)
    if snapshot.state == "gone":
        return
    begin = snapshot_lane(snapshot.point, snapshot.attempt, segment_range(snapshot.segment, 0))
    require_position(f"{begin}000000")
    for staged in snapshot.objects:
        require_position(staged.first)
        require_position(staged.last)
        snapshot_lane(snapshot.point, snapshot.attempt, staged.range_number)
        TableLayout("", "", "hive").object_key(
            table, snapshot.version, snapshot.hour, staged.first, "gzip"
        )


def _lasting(snapshot: Snapshot) -> tuple[object, ...]:
    """What all statements about one attempt say."""
    return (
        snapshot.attempt,
        snapshot.point,
        snapshot.version,
        snapshot.hour,
        snapshot.segment,
        snapshot.began,
    )


def _is_next_segment(started: Snapshot, known: StatedSnapshot | None) -> bool:
    """Whether a segment follows the one before it; the first one of an attempt always does."""
    if not started.segment:
        return not started.began
    before = known.segment_before if known is not None else None
    if before is None:
        return False
    expected = (before.snapshot.attempt, before.snapshot.segment + 1)
    is_later = before.snapshot.point <= started.point
    is_later = is_later and before.snapshot.sees == started.began
    return is_later and (started.attempt, started.segment) == expected


def _told(known: StatedSnapshot | None) -> str:
    if known is None:
        return "nothing"
    return f"{known.snapshot.state} of epoch {known.epoch}" + ", visible" * known.is_visible
