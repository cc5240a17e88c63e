"""One run: what came since the cursor that the table holds, committed piece by piece.

Strategy: rows are handed over as they are read. A commit is made where an object ends, for only
there a cursor is known, and where enough came together. So a run that dies goes on behind its last
commit. Where another job committed first, all that was not committed is forgotten, and the run
begins again from the cursor that is there now.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from engine.materialize.lake_table import LakeTable, Outrun, Settled
from engine.model.plural import counted

COMMIT_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Of Arrow's bytes, as `nbytes` counts them."""

_OUTRUN_MAX: Final = 5
"""So often in a row without a commit of its own, and a run gives up."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a run did. `cursor` is the one that the table holds."""

    rows: int
    commits: int
    outrun: int
    until: str
    cursor: str
    doubts: tuple[str, ...]


Progress = Callable[[int, int], None]
"""Is told how many rows are committed, and how many were read."""


class Changes(Protocol):
    """Changes as they are read: a `TableReading`. Any: pyarrow has no types."""

    @property
    def table(self) -> str: ...
    @property
    def until(self) -> str: ...
    @property
    def doubts(self) -> tuple[str, ...]: ...
    @property
    def schema(self) -> Any: ...
    @property
    def cursor(self) -> str | None:
        """It moves with the last batch of each object, and stands for that batch and all before."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


Open = Callable[[str], AbstractContextManager[Changes]]
"""The changes behind a cursor (empty: all). Raises TailraceError."""


class Job:
    """Brings one table up to date. Every method raises TailraceError."""

    def __init__(
        self, open_changes: Open, lake: LakeTable, *, commit_rows: int, progress: Progress
    ) -> None:
        self._open_changes = open_changes
        self._lake = lake
        self._commit_rows = commit_rows
        self._progress = progress
        self._rows = 0
        self._commits = 0
        self._outrun = 0

    def run(self) -> Done:
        """Commit everything that is there now. Killed anywhere, the next run goes on from there."""
        in_a_row = 0
        while True:
            commits = self._commits
            try:
                return self._once()
            except Outrun as error:
                self._outrun += 1
                in_a_row = 1 if self._commits > commits else in_a_row + 1
                if in_a_row == _OUTRUN_MAX:
                    raise Outrun(
                        f"{error}, {counted(in_a_row, 'time')} in a row",
                        hint="Run one job at a time for each table, or commit less at once with"
                        " --commit-rows.",
                    ) from error

    def _once(self) -> Done:
        cursor = self._lake.load()
        with self._open_changes(cursor) as changes:
            waiting = _Waiting()
            before = changes.cursor
            for batch in changes:
                if not waiting.is_prepared:
                    self._lake.prepare(changes.schema, changes.table)
                    waiting.is_prepared = True
                self._lake.write(batch)
                waiting.rows += batch.num_rows
                waiting.size_bytes += batch.nbytes
                self._progress(self._rows, self._rows + waiting.rows)
                # Only a batch that ends an object moves the cursor: it stands for all before it.
                is_end, before = changes.cursor != before, changes.cursor
                if is_end and self._is_enough(waiting):
                    cursor = self._commit(changes, waiting)
            if waiting.rows:
                cursor = self._commit(changes, waiting)
            return Done(
                rows=self._rows,
                commits=self._commits,
                outrun=self._outrun,
                until=changes.until,
                cursor=cursor,
                doubts=changes.doubts,
            )

    def _is_enough(self, waiting: "_Waiting") -> bool:
        return waiting.rows >= self._commit_rows or waiting.size_bytes >= COMMIT_BYTES_MAX

    def _commit(self, changes: Changes, waiting: "_Waiting") -> str:
        cursor = changes.cursor
        assert cursor, "all that was read has a cursor"
        self._lake.settle(Settled(cursor, changes.until, waiting.rows))
        self._lake.commit()
        self._rows += waiting.rows
        self._commits += 1
        waiting.rows = waiting.size_bytes = 0
        self._progress(self._rows, self._rows)
        return cursor


@dataclass(slots=True)
class _Waiting:
    """What was written and is not committed."""

    rows: int = 0
    size_bytes: int = 0
    is_prepared: bool = False
