"""The journal against itself: entries that follow each other, plans that leave nothing out.

Strategy: entries are fed in order and folded by `JournalState`, as every engine folds them. Beside
the fold this module keeps what only a proof needs: each table's end as planned, the plans that are
not durable yet, and the set of all keys that were named. Snapshots are judged by `snapshot_audit`.
After a broken entry it goes on from the next one, so that one damage does not hide another.

Invariant: memory is bounded by the plans not yet durable, the tables, and one number a named
object. Pure: bytes in, problems and finished plans out.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

import msgspec
from msgspec.structs import replace as replace_struct

from engine.journal.entry import (
    FORMAT,
    Entry,
    Gap,
    JournalState,
    Planned,
    StatedSnapshot,
    decode_entry,
    decode_state,
)
from engine.journal.publisher import stated_metadata
from engine.model.batch import Operations
from engine.model.errors import DecodeError, JournalError
from engine.model.layout import TableLayout, journal_key
from engine.model.plural import counted
from engine.model.position import (
    LOG_BEGIN,
    NOWHERE,
    Position,
    require_log_position,
    require_position,
)
from engine.model.record import Compression
from engine.model.record import Layout as LayoutStyle
from engine.model.schema import TableName, TableVersion, version_at
from engine.model.schema_document import previous_version, schema_document
from engine.reader.verify.gap_audit import wrong_gaps
from engine.reader.verify.key_set import KeySet
from engine.reader.verify.naming import Naming
from engine.reader.verify.object_audit import NamedObject
from engine.reader.verify.pause_audit import wrong_pauses
from engine.reader.verify.problem import Code, Problem
from engine.reader.verify.request_audit import twice_answered, undone
from engine.reader.verify.snapshot_audit import (
    Lists,
    SnapshotAudit,
    SnapshotCount,
    expired_end,
    progress_of,
    require_snapshot,
)
from engine.reader.verify.stream_audit import early_stream
from engine.reader.verify.verdict import TableVerdict

# Version, year, month, day, hour and the object's own name.
_SEGMENTS_BEHIND_TABLE = 6
_STYLES: tuple[LayoutStyle, ...] = ("hive", "plain")


class _Format(msgspec.Struct):
    format: int


@dataclass(slots=True)
class _Tail:
    """Where a table ends as planned so far, and what its durable objects add up to."""

    first: Position = NOWHERE
    last: Position = NOWHERE
    hour: str = ""
    version: int = 0
    objects: int = 0
    rows: int = 0
    durable_last: Position = NOWHERE
    versions: set[int] = field(default_factory=set)


class JournalAudit:
    """The journal as read so far. `problems` grows; `state` is the fold."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.state = JournalState()
        self._is_whole = True
        self.problems: list[Problem] = []
        self.entries = 0
        self.is_readable = True
        self.writers: set[str] = set()
        self._nonce = ""
        self._durable = LOG_BEGIN
        self._schemas: dict[str, tuple[TableVersion, TableVersion | None, str]] = {}
        self._tails: dict[str, _Tail] = {}
        self._open: dict[str, NamedObject] = {}
        self._names = KeySet()
        self._begun_at: JournalState | None = None
        self._expired: dict[str, str] = {}
        self._snapshots = SnapshotAudit(prefix, self._names, self._note)

    # --- reading

    def begin(self, state: JournalState, lists: Lists) -> None:
        """Begin behind a state file: the entries that it folds are gone.

        What they planned is taken from it as far as it is there: each table's end, and the objects
        that were not durable yet. `lists` are those that it names.
        """
        self.state = state
        self._begun_at = state
        self._durable = state.durable_position
        for name, frontier in state.frontiers.items():
            version = version_at(state.versions_of(TableName.parse(name)), frontier.last)
            self._tails[name] = _Tail(
                last=frontier.last,
                hour=frontier.hour,
                version=version.number if version is not None else 0,
            )
        for name in state.frontiers.keys() | state.attempts.keys():
            table = TableName.parse(name)
            for style in _STYLES:
                layout = TableLayout(self.prefix, self._database, style)
                end = max(state.frontier(table).last, expired_end(name, state))
                self._expired[layout.table_folder(table)] = end
        for name, versions in state.versions.items():
            for known in versions:
                for style in _STYLES:
                    layout = TableLayout(self.prefix, self._database, style)
                    self._name_schema(TableName.parse(name), known.number, layout)
        for key, plan in state.plans.items():
            self._names.add(key)
            naming = Naming(self.prefix, state, plan[0].epoch)
            statements = tuple(statement.planned for statement in plan)
            self._open[key] = naming.planned(statements, plan[0].seq)
        self._snapshots.begin(state, lists)

    def skip(self, key: str, seq: int, text: str) -> None:
        """Leave out the entry numbered `seq`, which is there and cannot be read."""
        if seq > self.state.next_seq:
            self._note_missing(seq)
        self._note(Code.ENTRY_UNREADABLE, key, text)
        self.state.seq = seq
        self.state.sha256 = ""

    def read(self, key: str, seq: int, content: bytes, lists: Lists) -> tuple[NamedObject, ...]:
        """Take in the entry numbered `seq` by its key; the objects that became durable.

        `lists` are those that the entry names.
        Among them are those of snapshots that were given up: they may be absent. After an entry of
        a newer format `is_readable` is False and nothing more may be fed.
        """
        if seq > self.state.next_seq:
            self._note_missing(seq)
        entry = self._decoded(key, content)
        if entry is None:
            # What this entry said is lost. The next one still names its hash.
            self.state.seq = seq
            self.state.sha256 = ""
            return ()
        self.entries += 1
        # Unknown after a missing or unreadable entry, which is a problem of its own.
        is_known = bool(self.state.sha256) or seq == 0
        self._judge_header(key, seq, entry)
        if is_known:
            self._judge_link(key, entry)
        else:
            self._adopt(entry)
        self._judge_source(key, entry)
        self._judge_versions(key, entry)
        for text in wrong_gaps(entry, self.state, is_whole=self._is_whole):
            self._note(Code.GAP_WRONG, key, text)
        if self._is_whole:
            for text in twice_answered(entry, self.state):
                self._note(Code.REQUEST_WRONG, key, text)
            self._judge_acceptance(key, entry)
            for text in early_stream(entry, self.state):
                self._note(Code.STREAM_EARLY, key, text)
        self._snapshots.judge(key, entry, self.state, is_whole=self._is_whole)
        self._absorb(seq, entry, content)
        for text in undone(entry, self.state):
            self._note(Code.REQUEST_WRONG, key, text)
        for text in wrong_pauses(self.state) if entry.pauses or entry.durable else ():
            self._note(Code.PAUSE_WRONG, key, text)
        self._judge_durable(key, seq, entry)
        self._take_names(seq, entry)
        snapshots = self._snapshots.absorbed(key, entry, self.state, lists)
        return (*(self._finished() if entry.durable is not None else ()), *snapshots)

    def _take_names(self, seq: int, entry: Entry) -> None:
        naming = Naming(self.prefix, self.state, self.state.epoch)
        for version in entry.schemas:
            self._name_schema(version.relation.table, version.number, naming.layout)
        for snapshot in entry.snapshots:
            self._name_schema(snapshot.table_name, snapshot.version, naming.layout)
        for planned in entry.planned:
            self._judge_planned(seq, planned, naming)

    def _decoded(self, key: str, content: bytes) -> Entry | None:
        try:
            if msgspec.json.decode(content, type=_Format).format > FORMAT:
                self.is_readable = False
                text = "this entry and those after it cannot be judged by this release"
                self._note(Code.NEWER_FORMAT, key, text)
                return None
            entry = decode_entry(content, key)
            _require_values(entry)
        except (JournalError, DecodeError, msgspec.DecodeError, ValueError) as error:
            self._note(Code.ENTRY_UNREADABLE, key, f"not an entry: {error}")
            return None
        return entry

    def _note_missing(self, seq: int) -> None:
        first, last = self.state.next_seq, seq - 1
        if first == last:
            text = "this entry is missing; what it planned cannot be judged"
        else:
            text = (
                f"this entry and all up to {last} are missing; what they planned cannot be judged"
            )
        self._note(Code.ENTRY_MISSING, journal_key(self.prefix, first), text)
        self.state.seq = last
        self.state.sha256 = ""

    def _judge_header(self, key: str, seq: int, entry: Entry) -> None:
        if entry.seq != seq:
            self._note(Code.ENTRY_MISPLACED, key, f"it says that it is entry {entry.seq}")
        if not entry.nonce or entry.nonce == self._nonce:
            self._note(Code.NONCE_REPEATED, key, "its nonce is empty or that of the entry before")
        self._nonce = entry.nonce

    def _judge_link(self, key: str, entry: Entry) -> None:
        before = self.state.sha256
        if entry.previous_sha256 != before:
            text = (
                f"it follows {_brief(entry.previous_sha256)}, the entry before is {_brief(before)}"
            )
            self._note(Code.HASH_MISMATCH, key, text)
        self._judge_epoch(key, entry)

    def _adopt(self, entry: Entry) -> None:
        """Go on from an entry whose predecessor is lost."""
        self._is_whole = False
        self.state.epoch = entry.epoch
        self.state.writer = entry.writer
        self.writers.add(entry.writer.id)

    def _judge_epoch(self, key: str, entry: Entry) -> None:
        state = self.state
        expected = state.epoch + 1 if entry.open is not None else state.epoch
        if entry.epoch != expected or entry.epoch == 0:
            self._note(Code.EPOCH_WRONG, key, f"epoch {entry.epoch} follows epoch {state.epoch}")
        elif entry.open is None and state.writer is not None and entry.writer.id != state.writer.id:
            text = f"written by {entry.writer.id}, but epoch {entry.epoch} is {state.writer.id}'s"
            self._note(Code.EPOCH_WRONG, key, text)

    def _judge_source(self, key: str, entry: Entry) -> None:
        if entry.open is None:
            return
        self.writers.add(entry.writer.id)
        known, source = self.state.source, entry.open.source
        if known is None:
            return
        is_same_log = source.generation == known.generation
        for name, value in source.whose.items():
            before = known.whose.get(name, "")
            # Where the log stops being continuous, its server may be another one.
            if value != before and (is_same_log or name not in source.facts):
                text = f"{name.replace('_', ' ')} {value!r} follows {before!r}"
                self._note(Code.SOURCE_CHANGED, key, text)
        if source.generation < known.generation:
            text = f"generation {source.generation} follows {known.generation}"
            self._note(Code.SOURCE_CHANGED, key, text)

    def _judge_versions(self, key: str, entry: Entry) -> None:
        highest: dict[TableName, int] = {}
        for version in entry.schemas:
            table = version.relation.table
            numbers = [known.number for known in self.state.versions_of(table)]
            before = highest.get(table, max(numbers, default=0))
            if version.number != before + 1:
                text = f"version {version.number} of {table} follows version {before}"
                self._note(Code.VERSION_NUMBER, key, text)
            highest[table] = version.number

    def _judge_acceptance(self, key: str, entry: Entry) -> None:
        """A loss is accepted by its name, and every known table has a gap of it."""
        state, accepting = self.state, entry.accepting
        if accepting is not None and (
            entry.open is None or accepting.lost != state.durable_position
        ):
            text = (
                f"a loss behind {accepting.lost} is accepted, durable is {state.durable_position}"
            )
            self._note(Code.ACCEPTED_WRONG, key, text)
        if state.accepting is None and any(planned.is_void for planned in entry.planned):
            text = "an object is called void, and no loss is being accepted"
            self._note(Code.ACCEPTED_WRONG, key, text)
        if not entry.accepted:
            return
        configuration = state.configurations.get(state.epoch)
        if state.accepting is None or entry.durable is None:
            text = "a loss is accepted that was not being accepted, or nothing is durable with it"
            self._note(Code.ACCEPTED_WRONG, key, text)
        elif configuration is not None:
            begin, end = state.accepting.lost, entry.durable.position
            covered = {g.table for g in entry.gaps if g.after <= begin and end <= g.until}
            without = [name for name in state.known(configuration) if name not in covered]
            if without:
                text = f"a loss is accepted without a gap of {', '.join(without)}"
                self._note(Code.ACCEPTED_WRONG, key, text)

    def _absorb(self, seq: int, entry: Entry, content: bytes) -> None:
        # Said already where they differ; the fold goes on from what is there.
        self.state.seq = entry.seq - 1
        self.state.sha256 = entry.previous_sha256
        self.state.absorb(entry, content)
        self.state.seq = seq

    # --- durable

    def _judge_durable(self, key: str, seq: int, entry: Entry) -> None:
        if entry.durable is None:
            return
        position = entry.durable.position
        if position < self._durable:
            text = f"durable goes back from {self._durable} to {position}"
            self._note(Code.DURABLE_BACK, key, text)
        if entry.durable.seq > seq:
            text = f"durable up to entry {entry.durable.seq}, which is still to come"
            self._note(Code.DURABLE_AHEAD, key, text)
        self._durable = max(self._durable, position)
        if self._is_whole:
            self._snapshots.judge_unfinished(key, entry.durable, self.state)

    def _finished(self) -> tuple[NamedObject, ...]:
        durable_seq = self.state.durable_seq
        finished = tuple(named for named in self._open.values() if named.seq <= durable_seq)
        for named in finished:
            del self._open[named.key]
            plan = named.plan
            tail = self._tails[str(named.table)]
            tail.first = tail.first or plan.first
            tail.objects += 1
            # A void one may be there with its rows all the same: only the object tells.
            tail.rows += 0 if named.is_void else plan.rows
            tail.durable_last = plan.last
            tail.versions.add(named.version)
        return finished

    # --- plans

    def _judge_planned(self, seq: int, planned: Planned, naming: Naming) -> None:
        known = self._open.get(planned.key)
        if known is not None:
            self._open[planned.key] = self._restated(known, planned)
            return
        if planned.key in self._names:
            text = f"entry {seq} states it again though it was durable"
            self._note(Code.RESTATED_LATE, planned.key, text)
            return
        self._names.add(planned.key)
        tail = self._tails.setdefault(planned.table, _Tail())
        self._judge_counts(planned)
        self._judge_position(planned, tail)
        self._judge_version(planned, tail)
        self._judge_hour(planned, tail)
        if naming.configuration is not None and naming.layout is not None:
            self._judge_key(planned, naming.layout, naming.configuration.compression)
        if self._is_whole:
            self._snapshots.judge_asked(planned.key, planned.table, self.state)
        tail.last = max(tail.last, planned.last)
        tail.version = planned.version
        tail.hour = max(tail.hour, planned.hour)
        self._open[planned.key] = naming.planned((planned,), seq)
        self._name_schema(planned.table_name, planned.version, naming.layout)

    def _restated(self, known: NamedObject, planned: Planned) -> NamedObject:
        assert isinstance(known.plan, Planned)
        if planned.is_void:
            # It keeps its place and loses its rows: what counts them is the first statement.
            planned_as = replace_struct(planned, rows=known.plan.rows, ops=known.plan.ops)
        else:
            planned_as = planned
        if _lasting(known.plan) != _lasting(planned_as):
            text = "stated again with another table, position, row count, version or hour"
            self._note(Code.RESTATEMENT_DIFFERS, planned.key, text)
        return replace(
            known,
            statements=(*known.statements, planned),
            metadata=(*known.metadata, stated_metadata(planned)),
        )

    def _judge_counts(self, planned: Planned) -> None:
        counts = planned.ops.values()
        if planned.rows < 1 or sum(counts) != planned.rows or min(counts, default=0) < 1:
            text = f"{counted(planned.rows, 'row')}, by op {planned.ops}"
            self._note(Code.PLAN_COUNTS, planned.key, text)
        elif not planned.ops.keys() <= set(Operations._fields):
            self._note(Code.PLAN_COUNTS, planned.key, f"unknown ops in {planned.ops}")

    def _judge_position(self, planned: Planned, tail: _Tail) -> None:
        key = planned.key
        is_one_row = planned.first == planned.last
        if not planned.previous < planned.first <= planned.last or is_one_row != (
            planned.rows == 1
        ):
            text = (
                f"{counted(planned.rows, 'row')} from {planned.first} to {planned.last}, after "
                f"{planned.previous or 'nothing'}"
            )
            self._note(Code.PLAN_ORDER, key, text)
        if planned.previous != tail.last:
            what = (
                "rows are missing after" if planned.previous > tail.last else "rows overlap after"
            )
            text = (
                f"{what} the table's last plan, up to {tail.last or 'nothing'}; this one says that "
                f"it follows {planned.previous or 'nothing'}"
            )
            self._note(Code.CHAIN_BROKEN, key, text)
        if planned.first < self._durable:
            text = (
                f"planned from {planned.first} on after everything before "
                f"{self._durable} was durable"
            )
            self._note(Code.PLAN_BEFORE_DURABLE, key, text)

    def _judge_version(self, planned: Planned, tail: _Tail) -> None:
        versions = self.state.versions.get(planned.table, ())
        if planned.version < tail.version:
            text = f"version {planned.version} follows version {tail.version}"
            self._note(Code.VERSION_BACK, planned.key, text)
        if planned.version not in {version.number for version in versions}:
            text = f"version {planned.version} is not in the journal"
            self._note(Code.VERSION_UNKNOWN, planned.key, text)
            return
        for position in (planned.first, planned.last):
            right = version_at(versions, position)
            if right is None or right.number != planned.version:
                number = right.number if right is not None else "no version"
                text = (
                    f"planned under version {planned.version}, but {position} belongs to {number}"
                )
                self._note(Code.VERSION_WRONG, planned.key, text)
                return

    def _judge_hour(self, planned: Planned, tail: _Tail) -> None:
        if planned.hour < tail.hour:
            text = f"filed under hour {planned.hour}, the object before under {tail.hour}"
            self._note(Code.HOUR_BACK, planned.key, text)

    def _judge_key(self, planned: Planned, layout: TableLayout, compression: Compression) -> None:
        expected = layout.object_key(
            planned.table_name, planned.version, planned.hour, planned.first, compression
        )
        if planned.key != expected:
            self._note(Code.KEY_WRONG, planned.key, f"by its plan its key is {expected}")

    def _name_schema(self, table: TableName, number: int, layout: TableLayout | None) -> None:
        versions = self.state.versions_of(table)
        version = next((known for known in versions if known.number == number), None)
        if layout is None or version is None:
            return
        key = layout.schema_key(table, number)
        if key not in self._schemas:
            previous = previous_version(versions, version)
            self._schemas[key] = (version, previous, layout.database)

    # --- what was read

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Every gap as it was stated last, in the order of their numbers."""
        return tuple(gap for _, gap in sorted(self.state.gaps.items()))

    @property
    def pending(self) -> tuple[NamedObject, ...]:
        """The objects that are named and not durable, the oldest first; snapshots' come last."""
        return (*self._open.values(), *self._snapshots.pending)

    def pending_at(self, key: str) -> NamedObject | None:
        """The pending object `key` with all statements read so far."""
        if key in self._open:
            return self._open[key]
        return next((named for named in self._snapshots.pending if named.key == key), None)

    def is_named(self, key: str) -> bool:
        """Whether an entry plans `key`, or names it for a snapshot."""
        return key in self._names

    def may_be_expired(self, key: str) -> bool:
        """Whether an entry that is gone may have planned `key`: it is where its table was then."""
        folder, *rest = key.rsplit("/", _SEGMENTS_BEHIND_TABLE)
        last = self._expired.get(f"{folder}/")
        return last is not None and rest[-1] <= f"{last}.~"

    @property
    def known_writers(self) -> set[str] | None:
        """The ids of all writers that opened the journal; None where not all are known."""
        return self.writers if self._begun_at is None else None

    def schema(self, key: str) -> bytes | None:
        """What the schema.json `key` must hold; None where no journalled version has that key."""
        found = self._schemas.get(key)
        if found is None:
            return None
        version, previous, database = found
        return schema_document(version, previous, database)

    def judge_state(self, key: str, content: bytes) -> Problem | None:
        """A state file against the fold of the entries up to its number, which have been read."""
        try:
            state = decode_state(content, key)
        except JournalError as error:
            return Problem(Code.STATE_DIFFERS, key, str(error))
        # After a lost entry nobody can say what the fold would have been.
        if state != self.state and self._is_whole:
            ours = _counted_as(self.state, state)
            names = [
                name
                for name in JournalState.__struct_fields__
                if getattr(state, name) != getattr(ours, name)
            ]
            if not names:
                return None
            text = f"it is not the journal folded up to here: {', '.join(names)}"
            return Problem(Code.STATE_DIFFERS, key, text)
        return None

    def tables(self) -> tuple[TableVerdict, ...]:
        """Each table with its durable objects, by name. Rows of void ones are not counted."""
        pending = Counter(str(named.table) for named in self._open.values())
        names = self._tails.keys() | self._snapshots.counts.keys() | self.state.snapshots.keys()
        return tuple(self._table(name, pending[name]) for name in sorted(names))

    def _table(self, name: str, pending_of_stream: int) -> TableVerdict:
        tail = self._tails.get(name, _Tail())
        count = self._snapshots.counts.get(name, SnapshotCount())
        return TableVerdict(
            table=name,
            objects=tail.objects,
            rows=tail.rows,
            pending=pending_of_stream + self._snapshots.pending_of(name),
            first=tail.first if tail.objects else NOWHERE,
            last=tail.durable_last,
            versions=tuple(sorted(tail.versions)),
            snapshot=progress_of(name, self.state),
            snapshot_objects=count.objects,
            snapshot_rows=count.rows,
        )

    @property
    def _database(self) -> str:
        return self.state.source.database if self.state.source is not None else ""

    def _note(self, code: Code, key: str, text: str) -> None:
        self.problems.append(Problem(code, key, text))


def _require_values(entry: Entry) -> None:
    """Raise ValueError or DecodeError where a text is not what it stands for."""
    if entry.durable is not None:
        require_log_position(entry.durable.position)
    for planned in entry.planned:
        _ = planned.table_name
        require_position(planned.first)
        TableLayout("", "", "hive").object_key(
            planned.table_name, planned.version, planned.hour, planned.first, "gzip"
        )
    for snapshot in entry.snapshots:
        require_snapshot(snapshot)


def _lasting(planned: Planned) -> tuple[object, ...]:
    """What no statement of a plan may change."""
    return (
        planned.table,
        planned.previous,
        planned.first,
        planned.last,
        planned.rows,
        planned.ops,
        planned.version,
        planned.hour,
    )


def _brief(digest: str) -> str:
    return digest[:12] or "nothing"


def _counted_as(ours: JournalState, theirs: JournalState) -> JournalState:
    """Our fold, where theirs has snapshots whose objects an older release did not count."""
    known = theirs.snapshots
    snapshots = {
        table: _with_count_of(stated, known[table]) if table in known else stated
        for table, stated in ours.snapshots.items()
    }
    return replace_struct(ours, snapshots=snapshots)


def _with_count_of(ours: StatedSnapshot, theirs: StatedSnapshot) -> StatedSnapshot:
    before = ours.before
    if before is not None and theirs.before is not None:
        before = _with_count_of(before, theirs.before)
    count = min(ours.object_count, theirs.object_count)
    return replace_struct(ours, before=before, object_count=count)
