"""From lines to batches: what every source does around the rows that it reads.

Strategy: a source numbers its tables. It gives rows to the line writer, itself or through a
compiled reader. A table is bound when its first wanted row comes, to the version that `decide`
names. It stays bound until the source lets go of it, or until another number takes its name. (A
name may pass from one table to another and back, and nothing in the source's log need say so about
either.) Lines leave as batches: those of one table when it is full or let go of, and those of all
tables before a transaction of another hour and at the end of a drain.

Invariants: a name has one bound table at most; the batches of a table leave in commit order; a
batch lies within one hour of commit time and under one version.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from engine.lines.writer import VALUE_HASH
from engine.model.batch import Batch, Operations
from engine.model.position import Position
from engine.model.record import Envelope, RecordConfiguration
from engine.model.schema import Column, Decide, Relation, TableName, TableVersion

BATCH_SIZE_MAX: Final = 64 * 1024
"""Bytes of lines that are handed over at once; less waits for the end of the drain."""

BATCHES_A_TURN: Final = 100
"""Of those that wait for the end of the drain, so many are handed over in one turn of the loop. One
takes 25 to 40 us from the line writer into its chunk (measured, 5,000 tables): all of them together
stopped the loop for 150 ms.
"""

FormOf = Callable[[Column], int]


class TakenLines(Protocol):
    """See `engine.lines.writer.Lines`."""

    @property
    def lines(self) -> bytes: ...
    @property
    def row_count(self) -> int: ...
    @property
    def first_position(self) -> str: ...
    @property
    def last_position(self) -> str: ...
    @property
    def first_commit_us(self) -> int: ...
    @property
    def last_commit_us(self) -> int: ...
    @property
    def operations(self) -> tuple[int, int, int, int, int]: ...


class LineStore(Protocol):
    """What the batcher needs of `engine.lines.writer.LineWriter`; see there."""

    def bind(
        self,
        number: int,
        *,
        database: str,
        schema: str,
        table: str,
        version: int,
        columns: Sequence[tuple[str, int, bool, bool]],
        key: Sequence[str],
        envelope: Envelope,
        flat_prefix: str = ...,
    ) -> None: ...
    def unbind(self, number: int) -> None: ...
    def holds_another_hour(self, commit_time_us: int) -> bool: ...
    @property
    def buffered(self) -> int: ...
    def take(self, number: int) -> TakenLines | None: ...
    def take_some(self, table_count: int) -> Sequence[tuple[int, TakenLines]]: ...


class Batcher:
    """The tables and batches of one stream."""

    def __init__(
        self,
        lines: LineStore,
        *,
        database: str,
        configuration: RecordConfiguration,
        decide: Decide,
        form_of: FormOf,
        is_single_rows: bool = False,
    ) -> None:
        """`form_of` says how the source's reader takes a column's values (`LineWriter.bind`).

        With `is_single_rows`, every row is a batch, and `decide` is asked about each.
        """
        self._lines = lines
        self._database = database
        self._configuration = configuration
        self._decide = decide
        self._form_of = form_of
        self._is_single_rows = is_single_rows
        self.size_max = 0 if is_single_rows else BATCH_SIZE_MAX
        """A table with more bytes of lines than this is full: see `hand_over`."""
        self._bound: dict[int, tuple[TableName, int]] = {}
        # Which table has a name now: the one whose row came last under it.
        self._owners: dict[TableName, int] = {}
        self._batches: list[Batch] = []
        self._is_handing_over = False

    def bind(self, number: int, relation: Relation, position: Position) -> TableVersion | None:
        """Bind the table for its next row, at `position`; None where that row is not wanted.

        Whatever table had its name before is let go of. This holds for every row that is asked
        about, because a source that repeats what it said before may have lost the name meanwhile.
        """
        table = relation.table
        owner = self._owners.get(table, number)
        if owner != number:
            self.let_go(owner)
        self._owners[table] = number
        version = self._decide(relation, position)
        if version is None:
            return None
        configuration, columns = self._configuration, version.relation.columns
        self._lines.bind(
            number,
            database=self._database,
            schema=table.schema,
            table=table.table,
            version=version.number,
            columns=[
                (
                    column.name,
                    VALUE_HASH
                    if configuration.is_hashed(table, column.name)
                    else self._form_of(column),
                    column.key,
                    configuration.is_included(table, column.name),
                )
                for column in columns
            ],
            key=version.relation.key,
            envelope=configuration.envelope,
            flat_prefix=version.flat_prefix or configuration.flat_prefix_of(table, columns),
        )
        self._bound[number] = (table, version.number)
        return version

    def is_bound(self, number: int) -> bool:
        """Whether rows of the table can be written."""
        return number in self._bound

    def let_go(self, number: int) -> None:
        """Hand over the table's lines; its next row has to be bound anew."""
        self._take(number)
        self._lines.unbind(number)
        self._bound.pop(number, None)

    def forget(self, number: int, table: TableName) -> None:
        """Let go of a table that is gone, and of its name."""
        self.let_go(number)
        if self._owners.get(table) == number:
            del self._owners[table]

    def hand_over(self, number: int) -> None:
        """The table is full: make a batch of its lines."""
        self._take(number)
        if self._is_single_rows:
            self.let_go(number)

    def hand_over_all(self) -> None:
        """Make batches of all lines."""
        self._is_handing_over = False
        for number, lines in self._lines.take_some(sys.maxsize):
            self._add(number, lines)

    def hand_over_some(self) -> None:
        """Make batches of all lines, in as many calls as it takes: see `is_handing_over`."""
        for number, lines in self._lines.take_some(BATCHES_A_TURN):
            self._add(number, lines)
        self._is_handing_over = self._lines.buffered > 0

    @property
    def is_handing_over(self) -> bool:
        """Whether `hand_over_some` is to be called again before anything else is read."""
        # Nobody may wait for a next part that has nothing. The last lines may have gone another
        # way, because their tables were let go of.
        return self._is_handing_over and self._lines.buffered > 0

    def make_way(self, commit_us: int) -> None:
        """A transaction of this time comes: lines of another hour leave before."""
        if self._lines.holds_another_hour(commit_us):
            self.hand_over_all()

    @property
    def has_batches(self) -> bool:
        """Whether `taken` would give any."""
        return bool(self._batches)

    def taken(self) -> tuple[Batch, ...]:
        """The batches made since the last call."""
        batches, self._batches = tuple(self._batches), []
        return batches

    def _take(self, number: int) -> None:
        lines = self._lines.take(number)
        if lines is not None:
            self._add(number, lines)

    def _add(self, number: int, lines: TakenLines) -> None:
        table, version = self._bound[number]
        self._batches.append(
            Batch(
                table=table,
                version=version,
                lines=lines.lines,
                row_count=lines.row_count,
                operations=Operations(*lines.operations),
                first=Position(lines.first_position),
                last=Position(lines.last_position),
                first_commit_us=lines.first_commit_us,
                last_commit_us=lines.last_commit_us,
            )
        )
