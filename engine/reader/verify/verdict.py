"""What a verification found, as values: a command prints them, a test compares them."""

from dataclasses import dataclass

from engine.journal.entry import Gap
from engine.model.position import Position
from engine.reader.verify.problem import Problem


@dataclass(frozen=True, slots=True)
class TableVerdict:
    """One table's durable objects by their plans; `pending` counts the ones planned later."""

    table: str
    objects: int
    rows: int
    pending: int
    first: Position
    last: Position
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The whole bucket, judged up to the last durable entry.

    `objects` and `rows` are those that the journal says are durable, `pending` the objects planned
    after that. `entries` is how many entries were read, `durable_position` where E
    is. `gaps` are those that the journal states: they are no contradiction, so they are no
    problems. `warnings` name what could not be proved though nothing contradicts it.
    """

    tables: tuple[TableVerdict, ...]
    entries: int
    durable_position: str
    durable_time: str
    problems: tuple[Problem, ...]
    gaps: tuple[Gap, ...] = ()
    warnings: tuple[Problem, ...] = ()

    @property
    def is_ok(self) -> bool:
        return not self.problems

    @property
    def unmended_gaps(self) -> tuple[Gap, ...]:
        return tuple(gap for gap in self.gaps if not gap.mended)

    @property
    def objects(self) -> int:
        return sum(table.objects for table in self.tables)

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    @property
    def pending(self) -> int:
        return sum(table.pending for table in self.tables)
