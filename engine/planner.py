"""The planner: what the next journal entry says about streamed rows.

Strategy: versions are decided as rows are read and stay provisional until the chunk that needs
them is planned; cut chunks become plans that follow their table's frontier; the ledger's newest
reached boundary becomes `durable`. All of it is synchronous: between looking at the state and
building the entry nothing else runs.

Invariant: a journalled version begins at or before its table's frontier, so a successor that
starts behind it decides the same versions from the stream alone.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from engine.chunk import SealedChunk, crc32_text
from engine.envelope import RecordConfiguration
from engine.errors import InvariantBroken
from engine.history import Landmark
from engine.interfaces import Clock
from engine.journal_entry import (
    Durable,
    Frontier,
    JournalState,
    Planned,
    operations_named,
    time_text,
)
from engine.layout import TableLayout, key_hour
from engine.ledger import Ledger
from engine.position import Lsn, Position, commit_lsn_of, format_lsn, log_prefix
from engine.schema import Relation, TableName, TableVersion, decide_version, version_at

# An entry is one request, never parts: it is to be sent, and sent again, in seconds. A plan is
# estimated at its names and the rest of its JSON, a version at its columns.
ENTRY_BYTES_MAX = 4 * 1024 * 1024
_PLAN_BYTES = 500
_COLUMN_BYTES = 250

# Of the tables used last: one that was forgotten is computed anew.
_DIGESTS_MAX = 16_384


@dataclass(frozen=True, slots=True)
class EntryPlan:
    """What an entry will say: chunks in the order of their plans, and the versions they need."""

    chunks: tuple[SealedChunk, ...]
    planned: tuple[Planned, ...]
    schemas: tuple[TableVersion, ...]


class Planner:
    """Decides versions and plans, from the journal's state and what this process has read."""

    def __init__(
        self,
        *,
        state: JournalState,
        ledger: Ledger,
        configuration: RecordConfiguration,
        layout: TableLayout,
        codec_version: int,
        clock: Clock,
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._configuration = configuration
        self._layout = layout
        self._codec_version = codec_version
        self._clock = clock
        self._provisional: dict[TableName, tuple[TableVersion, ...]] = {}
        self._record_digest = lru_cache(_DIGESTS_MAX)(configuration.record_digest)

    def decide(self, relation: Relation, position: Position) -> TableVersion | None:
        """The version of the row at `position`; None when it was received or is durable already."""
        table = relation.table
        # Exclusive: a transaction that commits at E itself is not durable.
        if commit_lsn_of(position) < self._state.durable_lsn:
            return None
        if position <= self._ledger.received(table):
            return None
        known = self._state.versions_of(table)
        provisional = self._provisional.get(table, ())
        version = decide_version(
            (*known, *provisional),
            relation,
            self._record_digest(table),
            position,
            self._configuration.flat_prefix_of(table, relation.columns),
        )
        if version.first == position and version not in provisional:
            self._provisional[table] = (*provisional, version)
        return version

    def has_identity(self, table: TableName, identity: str) -> bool:
        """Whether a version of `table` was made for the table with that identity."""
        versions = (*self._state.versions_of(table), *self._provisional.get(table, ()))
        return any(str(version.relation.oid) == identity for version in versions)

    def draft(self) -> "Draft":
        """An entry's plans, to be made piece by piece. Changes nothing until `journalled`."""
        return Draft(self._state, self._provisional, self._planned)

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
        versions = (*self._state.versions_of(table), *self._provisional.get(table, ()))
        wanted = version_at(versions, chunk.first)
        if wanted is None or wanted.number != chunk.version:
            known = "none" if wanted is None else str(wanted.number)
            raise InvariantBroken(
                f"rows of {table} from {chunk.first} on came under version {chunk.version}, their"
                f" position has version {known}"
            )

    def journalled(self, plan: EntryPlan) -> None:
        """The entry with `plan` is in the journal: its versions are provisional no more."""
        for version in plan.schemas:
            table = version.relation.table
            rest = tuple(v for v in self._provisional[table] if v.number != version.number)
            if rest:
                self._provisional[table] = rest
            else:
                del self._provisional[table]

    def durable(
        self,
        oldest_pending_seq: int | None,
        *,
        looked_lsn: Lsn | None = None,
        watched: str = "",
    ) -> Durable | None:
        """What became durable since the journal last said so, or None.

        `oldest_pending_seq` is the oldest entry of which a planned object is not known to be
        visible. `looked_lsn` and `watched` are those of the catalog watch.
        """
        boundary = self._ledger.durable_boundary(looked_lsn)
        if boundary is None or boundary.lsn <= self._state.durable_lsn:
            return None
        last_seq = self._state.seq if oldest_pending_seq is None else oldest_pending_seq - 1
        commit_us = self._state.within_reason(boundary.commit_us, self._clock())
        return Durable(
            lsn=format_lsn(boundary.lsn),
            commit_time=time_text(commit_us),
            seq=last_seq,
            watched=min(watched, self._prefix(boundary.lsn)),
            landmark=boundary.landmark,
        )

    def _prefix(self, lsn: Lsn) -> str:
        source = self._state.source
        return log_prefix(source.generation if source is not None else 1, lsn)

    def landmark(self, plan: EntryPlan) -> Landmark | None:
        """The newest commit of which `plan` has rows."""
        chunk = max(plan.chunks, key=lambda chunk: chunk.last, default=None)
        if chunk is None:
            return None
        lsn = format_lsn(commit_lsn_of(chunk.last))
        return Landmark(lsn, chunk.last_commit_us, self._configuration.publication)


class Draft:
    """Plans of one entry: chunks are added in each table's order, then `plan` is the whole.

    Between two additions other tasks may run: only the committer moves frontiers.
    """

    def __init__(
        self,
        state: JournalState,
        provisional: Mapping[TableName, tuple[TableVersion, ...]],
        make: Callable[[SealedChunk, Frontier], Planned],
    ) -> None:
        self._state = state
        self._provisional = provisional
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
        versions = self._provisional.get(chunk.table, ())
        return sum(
            _COLUMN_BYTES * len(version.relation.columns)
            for version in versions
            if version.number <= chunk.version
        )

    def plan(self) -> EntryPlan:
        """Everything that was added, with the versions that it needs."""
        schemas = tuple(
            version
            for table, newest in self._versions.items()
            for version in self._provisional.get(table, ())
            if version.number <= newest
        )
        return EntryPlan(tuple(self._chunks), tuple(self._planned), schemas)
