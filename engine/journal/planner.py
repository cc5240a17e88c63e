"""The planner: what the next journal entry says about streamed rows.

Strategy: cut chunks become plans that follow their table's frontier, together with the versions
that they need and the journal does not have. The ledger's newest reached boundary becomes
`durable`. All of it is synchronous: nothing else runs between looking at the state and building the
entry.

Invariant: a version is journalled with the first plan that needs it, so it begins at or before its
table's frontier.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from msgspec.structs import replace

from engine.flow.chunk import SealedChunk, crc32_text
from engine.flow.ledger import Ledger
from engine.flow.reception import Reception
from engine.journal.entry import (
    Answer,
    Durable,
    Frontier,
    JournalState,
    Planned,
    Snapshot,
    time_text,
)
from engine.model.batch import operations_named
from engine.model.errors import InvariantBroken
from engine.model.history import Landmark
from engine.model.interfaces import Clock
from engine.model.layout import TableLayout, key_hour
from engine.model.position import LOG_BEGIN, LogPosition, commit_of
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName, TableVersion, version_at

# An entry is one request, never parts, so that it can be sent, and sent again, in seconds. The
# length of a plan is estimated by its names and the rest of its JSON, that of a version by its
# columns.
ENTRY_BYTES_MAX = 4 * 1024 * 1024
_PLAN_BYTES = 500
_COLUMN_BYTES = 250


@dataclass(frozen=True, slots=True)
class EntryPlan:
    """What an entry will say: chunks in the order of their plans, snapshots, answers.

    `schemas` are the versions that both need.
    """

    chunks: tuple[SealedChunk, ...]
    planned: tuple[Planned, ...]
    schemas: tuple[TableVersion, ...]
    snapshots: tuple[Snapshot, ...] = ()
    answers: tuple[Answer, ...] = ()
    signals: tuple[Answer, ...] = ()


def _none_unfinished(_position: LogPosition, _seq: int) -> tuple[str, ...]:
    return ()


def _nobody_awaits(_seq: int) -> bool:
    return False


class Planner:
    """Plans, from the journal's state and what this process has read."""

    def __init__(
        self,
        *,
        state: JournalState,
        ledger: Ledger,
        reception: Reception,
        configuration: RecordConfiguration,
        layout: TableLayout,
        codec_version: int,
        clock: Clock,
        is_stream_waiting: bool = False,
    ) -> None:
        """With `is_stream_waiting` what is read counts as nothing: E stays where it is."""
        self._state = state
        self._is_stream_waiting = is_stream_waiting
        self._ledger = ledger
        self._reception = reception
        self._configuration = configuration
        self._layout = layout
        self._codec_version = codec_version
        self._clock = clock

    def draft(self) -> "Draft":
        """An entry's plans, to be made piece by piece. Changes nothing until `journalled`."""
        return Draft(self._state, self._reception, self._planned)

    def _planned(self, chunk: SealedChunk, frontier: Frontier) -> Planned:
        self._refuse_disorder(chunk, frontier)
        first_us = self._state.within_reason(chunk.first_commit_us, self._clock())
        hour = key_hour(first_us, frontier.hour)
        return Planned(
            table=str(chunk.table),
            key=self._layout.object_key(
                chunk.table, chunk.version, hour, chunk.first, self._configuration.compression
            ),
            previous=frontier.last,
            first=chunk.first,
            last=chunk.last,
            rows=chunk.row_count,
            ops=operations_named(chunk.operations),
            version=chunk.version,
            codec=self._codec_version,
            raw_bytes=chunk.raw_bytes,
            raw_crc32=crc32_text(chunk.raw_crc32),
            hour=hour,
        )

    def _refuse_disorder(self, chunk: SealedChunk, frontier: Frontier) -> None:
        """Raise InvariantBroken for a chunk that a successor would not decide the same.

        Asked before the append: what is in the journal stays there. Rows behind the frontier were
        planned already, and a version that falls would sort its objects before earlier ones.
        """
        table = chunk.table
        if chunk.first <= frontier.last:
            raise InvariantBroken(
                f"a plan of {table} from {chunk.first} on does not follow the table's last one, up"
                f" to {frontier.last}"
            )
        wanted = version_at(self._reception.versions_of(table), chunk.first)
        if wanted is None or wanted.number != chunk.version:
            known = "none" if wanted is None else str(wanted.number)
            raise InvariantBroken(
                f"rows of {table} from {chunk.first} on came under version {chunk.version}, their"
                f" position has version {known}"
            )

    def journalled(self, plan: EntryPlan) -> None:
        """The entry with `plan` is in the journal: its versions are provisional no more."""
        self._reception.journalled(plan.schemas)

    def durable(
        self,
        oldest_pending_seq: int | None,
        *,
        looked: LogPosition | None = None,
        watched: LogPosition = LOG_BEGIN,
        unfinished: Callable[[LogPosition, int], tuple[str, ...]] = _none_unfinished,
        awaits: Callable[[int], bool] = _nobody_awaits,
    ) -> Durable | None:
        """What became durable since the journal last said so, or None.

        `oldest_pending_seq` is as in `visible_seq`. `looked` and `watched` are those of the catalog
        watch. `unfinished` says which tables' snapshots are not finished beside a position and the
        entry up to which every object is visible: where the list is another one, it is stated
        although the position is not. So is the entry where somebody `awaits` that it is stated.
        """
        boundary = None if self._is_stream_waiting else self._ledger.durable_boundary(looked)
        seq = self.visible_seq(oldest_pending_seq)
        before = self._state.durable
        if boundary is None or boundary.position <= self._state.durable_position:
            tables = unfinished(before.position, seq) if before is not None else ()
            if before is None or (before.unfinished == tables and not awaits(seq)):
                return None
            return replace(before, seq=seq, unfinished=tables)
        commit_us = self._state.within_reason(boundary.point.commit_us, self._clock())
        return Durable(
            position=boundary.position,
            resume=boundary.point.resume,
            commit_time=time_text(commit_us),
            seq=seq,
            unfinished=unfinished(boundary.position, seq),
            watched=min(watched, boundary.position),
            landmark=boundary.landmark,
        )

    def visible_seq(self, oldest_pending_seq: int | None) -> int:
        """The entry up to which every object that is named is visible.

        `oldest_pending_seq` is the oldest entry of which an object that it names is not known to be
        visible.
        """
        last_seq = self._state.seq if oldest_pending_seq is None else oldest_pending_seq - 1
        return max(last_seq, self._state.durable_seq)

    def landmark(self, plan: EntryPlan) -> Landmark | None:
        """The newest commit of which `plan` has rows."""
        chunk = max(plan.chunks, key=lambda chunk: chunk.last, default=None)
        if chunk is None:
            return None
        through = self._configuration.shown_through
        return Landmark(commit_of(chunk.last), chunk.last_commit_us, through)


class Draft:
    """Plans of one entry: chunks are added in each table's order, then `plan` is the whole.

    Between two additions other tasks may run: only the committer moves frontiers.
    """

    def __init__(
        self,
        state: JournalState,
        reception: Reception,
        make: Callable[[SealedChunk, Frontier], Planned],
    ) -> None:
        self._state = state
        self._reception = reception
        self._make = make
        self._frontiers: dict[TableName, Frontier] = {}
        self._versions: dict[TableName, int] = {}
        self._chunks: list[SealedChunk] = []
        self._planned: list[Planned] = []
        self._size_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether the entry is as long as one should be: the rest is for the next."""
        return self._size_bytes >= ENTRY_BYTES_MAX

    def add(self, chunks: Iterable[SealedChunk]) -> None:
        """Plan `chunks` behind what was added before."""
        for chunk in chunks:
            frontier = self._frontiers.get(chunk.table) or self._state.frontier(chunk.table)
            planned = self._make(chunk, frontier)
            self._frontiers[chunk.table] = Frontier(planned.last, planned.hour)
            if chunk.version != self._versions.get(chunk.table):
                self._size_bytes += self._version_bytes(chunk)
            self._versions[chunk.table] = chunk.version
            self._chunks.append(chunk)
            self._planned.append(planned)
            self._size_bytes += len(planned.key) + len(planned.table) + _PLAN_BYTES

    def _version_bytes(self, chunk: SealedChunk) -> int:
        versions = self._reception.provisional(chunk.table)
        return sum(
            _COLUMN_BYTES * len(version.relation.columns)
            for version in versions
            if version.number <= chunk.version
        )

    def plan(
        self,
        snapshots: tuple[Snapshot, ...] = (),
        answers: tuple[Answer, ...] = (),
        signals: tuple[Answer, ...] = (),
    ) -> EntryPlan:
        """Everything that was added, with the versions that it needs, and the rest as given."""
        for snapshot in snapshots:
            if snapshot.state == "started":
                table = snapshot.table_name
                self._versions[table] = max(snapshot.version, self._versions.get(table, 0))
        schemas = tuple(
            version
            for table, newest in self._versions.items()
            for version in self._reception.provisional(table)
            if version.number <= newest
        )
        return EntryPlan(
            tuple(self._chunks), tuple(self._planned), schemas, snapshots, answers, signals
        )
