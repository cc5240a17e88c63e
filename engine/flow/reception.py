"""Reception: what becomes of each row as it is read, decided beside the reader.

Strategy: a row that was received already, or is durable, is not wanted. While the stream waits for
the initial snapshot none is. Any other one gets the version of its table: the journal's, or one
that begins at this row and stays provisional until the entry that plans its first chunk.

Invariant: the journal's versions begin at or before their tables' frontiers, so a successor that
starts behind them decides the same versions from the stream alone.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Protocol

from msgspec.structs import replace

from engine.flow.ledger import Ledger
from engine.model.position import NOWHERE, LogPosition, Position
from engine.model.record import RecordConfiguration
from engine.model.schema import (
    Relation,
    TableName,
    TableVersion,
    decide_version,
    is_rename_unclear,
    snapshot_version,
    version_at,
)
from engine.model.table_shape import COLUMNS_UNCLEAR, RENAMED

DIGESTS_MAX = 16_384
"""So many are kept, of the tables that were used last. One that was forgotten is computed anew."""


Doubt = Callable[[TableName, Position, str], None]
"""Is told of a table, the first row of a version, and a reason of `table_shape`. Never waits."""


class Gate(Protocol):
    """Who decides which rows are taken at all. Never waits."""

    def wants(self, relation: Relation, position: Position) -> bool:
        """Whether that row is to be taken."""
        ...

    def admits(self, before: TableVersion | None, version: TableVersion) -> bool:
        """Whether `version` may begin behind `before` (None: it is the table's first one)."""
        ...


class Reception:
    """Decides versions, from the journal's versions and what this process has read."""

    def __init__(
        self,
        *,
        journalled: Mapping[str, tuple[TableVersion, ...]],
        durable: Callable[[], LogPosition],
        ledger: Ledger,
        configuration: RecordConfiguration,
        is_stream_waiting: bool = False,
        on_doubt: Doubt | None = None,
    ) -> None:
        """`journalled` are the journal's versions, now and later; `durable` says where E is.

        `is_stream_waiting`: no row is wanted in this life, and the next one reads them again.
        `on_doubt` is told of a version under which rows from before may read otherwise.
        """
        self._on_doubt = on_doubt
        self.gate: Gate | None = None
        """Who may pass a row over, or keep a version from beginning; None: nobody does."""
        # By identity, the name under which a version of the table began last.
        known = [version for versions in journalled.values() for version in versions]
        known.sort(key=_first_of)
        self._names = {version.relation.identity: version.relation.table for version in known}
        self._is_stream_waiting = is_stream_waiting
        self._journalled = journalled
        self._durable = durable
        self._ledger = ledger
        self._configuration = configuration
        self._provisional: dict[TableName, tuple[TableVersion, ...]] = {}
        self._record_digest = lru_cache(DIGESTS_MAX)(configuration.record_digest)

    def decide(self, relation: Relation, position: Position) -> TableVersion | None:
        """The version of the row at `position`; None when it was received or is durable already.

        None too where the gate does not let it pass.
        """
        table = relation.table
        if not self._is_wanted(relation, position):
            return None
        versions = self.versions_of(table)
        version = decide_version(
            versions,
            relation,
            self._record_digest(table),
            position,
            self._configuration.flat_prefix_of(table, relation.columns),
        )
        if version.first != position or version in versions:
            return version
        before = version_at(versions, position)
        if self.gate is not None and not self.gate.admits(before, version):
            return None
        return self._begun(version, before)

    def _is_wanted(self, relation: Relation, position: Position) -> bool:
        # A transaction that commits at E itself is not durable, and sorts behind E.
        is_over = self._is_stream_waiting or position < self._durable()
        if is_over or position <= self._ledger.received(relation.table):
            return False
        return self.gate is None or self.gate.wants(relation, position)

    def _former_name(self, relation: Relation) -> str:
        former = self._names.get(relation.identity, relation.table)
        return str(former) if former != relation.table else ""

    def _begun(self, version: TableVersion, before: TableVersion | None) -> TableVersion:
        """A version that begins at a row of the stream, behind `before`."""
        relation, position = version.relation, version.first
        table = relation.table
        assert position is not None, "it begins at a row"
        version = replace(version, former_name=self._former_name(relation))
        self._provisional[table] = (*self.provisional(table), version)
        self._names[relation.identity] = table
        if self._on_doubt is not None and (reason := _doubt(before, version)):
            self._on_doubt(table, position, reason)
        return version

    def snapshot_version(self, relation: Relation) -> TableVersion:
        """The version of a snapshot's rows: the newest one of their shape, or one of their own.

        One of its own has no first position, so no streamed row takes it. It is provisional, and
        its number is above all others: they are to be journalled before it, or with it.
        """
        table = relation.table
        versions = self.versions_of(table)
        version = snapshot_version(
            versions,
            relation,
            self._record_digest(table),
            self._configuration.flat_prefix_of(table, relation.columns),
        )
        if version not in versions:
            self._provisional[table] = (*self.provisional(table), version)
        return version

    def versions_of(self, table: TableName) -> tuple[TableVersion, ...]:
        """All versions of `table`: the journal's, then the provisional ones."""
        return (*self._journalled.get(str(table), ()), *self.provisional(table))

    def provisional(self, table: TableName) -> tuple[TableVersion, ...]:
        """The versions of `table` that the journal does not hold yet."""
        return self._provisional.get(table, ())

    def has_identity(self, table: TableName, identity: str) -> bool:
        """Whether a version of `table` was made for the table with that identity."""
        return any(version.relation.identity == identity for version in self.versions_of(table))

    def journalled(self, versions: Iterable[TableVersion]) -> None:
        """These are in the journal: they are provisional no more."""
        for version in versions:
            table = version.relation.table
            rest = tuple(v for v in self._provisional[table] if v.number != version.number)
            if rest:
                self._provisional[table] = rest
            else:
                del self._provisional[table]


def _doubt(before: TableVersion | None, version: TableVersion) -> str:
    """Why rows that the table had before `version` may read otherwise than their records say."""
    if version.former_name:
        return RENAMED
    if before is not None and is_rename_unclear(before.relation, version.relation):
        return COLUMNS_UNCLEAR
    return ""


def _first_of(version: TableVersion) -> Position:
    return version.first or NOWHERE
