"""The coordinator: takes the snapshots that the journal's register needs, beside the stream.

Strategy: the tables that are due share one held snapshot, a group at a time: see `group`. Where the
last ranges of a group leave workers without a task, the next group begins beside it. A table that
fails is put off, at growing pauses, and the others go on. What fails again and again, or needs
somebody to change something, is an alarm.

Invariant: two snapshots are held at most, and no table is in two groups. The coordinator makes
nothing visible. It tells the register what was staged, or gives the attempt up.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Never

import structlog

from engine.journal.bucket_rules import BucketRules
from engine.journal.snapshots import Attempt, SnapshotRegister
from engine.journal.uploads import abort_attempt
from engine.model.errors import (
    DestinationError,
    SourceRefused,
    SourceUnavailable,
    TailraceError,
    UploadsOutlived,
    first_of_ours,
)
from engine.model.interfaces import ObjectStore
from engine.model.layout import TableLayout
from engine.model.position import snapshot_segment
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.snapshot_source import SnapshotSource
from engine.operate.alarms import Alarms
from engine.operate.status import SnapshotsStatus
from engine.snapshot.group import Group, TaskRunner, UnderWay
from engine.snapshot.progress import Progress
from engine.snapshot.settings import SnapshotSettings

SNAPSHOT_FAILING: Final = "snapshot-failing"

HELD_MAX: Final = 2
"""Snapshots that are held at once."""

_DUE_SECONDS: Final = 0.2
_IDLE_SECONDS: Final = 60.0
"""After so long without a group the workers are let go: each has some 75 MiB."""
_RETRY_SECONDS: Final = 1.0
_RETRY_SECONDS_MAX: Final = 60.0
_RULES_SECONDS: Final = 60.0
"""The bucket's rules that a snapshot begins with are no older: groups may follow fast."""
_FAILURES_TOLD: Final = 3
"""Failures of one table, one after the other, before they are an alarm."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _PutOff:
    """A table that failed, so many times one after the other, and is due again at that time.

    The times are the loop's. `outlived` is the time to stage in that was not enough, where a rule
    of the bucket leaves no more.
    """

    failures: int = 0
    until: float = 0.0
    outlived: float = 0.0


@dataclass(slots=True, eq=False)
class _Taken:
    """Tables that are being taken, and their group once a snapshot is held."""

    tables: list[TableName]
    group: Group | None = None

    @property
    def is_at_tail(self) -> bool:
        """Whether it has no more for a worker that is free."""
        return self.group is not None and self.group.is_at_tail


class Coordinator:
    """Takes snapshots. `run` is its whole life, and may be called again for another life."""

    def __init__(
        self,
        *,
        source: SnapshotSource,
        store: ObjectStore,
        crew: TaskRunner,
        settings: SnapshotSettings,
        configuration: RecordConfiguration,
        writer_id: str,
        alarms: Alarms,
        progress: Progress,
        rules: BucketRules,
    ) -> None:
        self._source = source
        self._store = store
        self._crew = crew
        self._settings = settings
        self._configuration = configuration
        self._writer_id = writer_id
        self._alarms = alarms
        self._progress = progress
        self._rules = rules
        self._register: SnapshotRegister | None = None
        self._put_off: dict[TableName, _PutOff] = {}
        self._leftover: list[Attempt] = []
        # A worker may still be at these: they are aborted again once no group is under way.
        self._again: list[Attempt] = []
        self._taken: list[_Taken] = []
        self._under_way = UnderWay()
        self._ended = asyncio.Event()

    async def run(self, register: SnapshotRegister, database: str) -> Never:
        """Take what `register` needs of `database`, until cancelled.

        Cancellation gives up what is under way: the journal's next writer starts other attempts.
        """
        identity = register.source
        facts, branch = (identity.facts, identity.branch) if identity is not None else ({}, "")
        self._source.adopt(register.generation, facts, branch)
        self._register = register
        try:
            with first_of_ours():
                async with asyncio.TaskGroup() as groups:
                    await self._take(groups, register, database)
        except TailraceError:
            self._refuse_cancelled()
            raise
        finally:
            self._crew.let_go()
        raise AssertionError("nobody ends it")

    async def _take(
        self, groups: asyncio.TaskGroup, register: SnapshotRegister, database: str
    ) -> Never:
        """Begin one group after the other."""
        loop = asyncio.get_running_loop()
        busy_at = loop.time()
        while True:
            self._ended.clear()
            if self._taken:
                busy_at = loop.time()
            elif loop.time() - busy_at >= _IDLE_SECONDS:
                self._crew.let_go()
            self._leftover += register.take_unnamed()
            await self._abort_leftover(database)
            if self._has_room and (tables := self._due(register, database)):
                taken = _Taken(tables)
                self._taken.append(taken)
                groups.create_task(self._group(register, database, taken))
            with suppress(TimeoutError):
                async with asyncio.timeout(_DUE_SECONDS):
                    await self._ended.wait()

    @property
    def _has_room(self) -> bool:
        """Whether another group may begin: nothing is read, or the last of one group's ranges."""
        if not self._taken:
            return True
        if len(self._taken) >= HELD_MAX:
            return False
        return self._crew.has_free and all(taken.is_at_tail for taken in self._taken)

    def progress(self, now: float) -> SnapshotsStatus:
        """How far the snapshots that are being taken have come, at that time of the loop."""
        return self._progress.status(now)

    def rows_total(self) -> int:
        """Rows of snapshots that were staged since the process began."""
        return self._progress.rows_total

    def _due(self, register: SnapshotRegister, database: str) -> list[TableName]:
        now = asyncio.get_running_loop().time()
        layout = self._layout(database)
        needed = register.needed()
        for table in [table for table in self._put_off if not register.is_owed(table)]:
            self.done(table)
        taken = {table for each in self._taken for table in each.tables}
        due = [
            table
            for table in needed
            if table not in taken
            and not self._is_put_off(table, now)
            and self._has_time(table, layout)
        ]
        return due[: self._settings.tables_max]

    def _is_put_off(self, table: TableName, now: float) -> bool:
        state = self._put_off.get(table)
        return state is not None and state.until > now

    def _has_time(self, table: TableName, layout: TableLayout) -> bool:
        """Whether the bucket's rules leave an attempt more time than was not enough before."""
        state = self._put_off.get(table)
        if state is None or not state.outlived:
            return True
        seconds = self._rules.seconds(layout.table_folder(table))
        return seconds is None or seconds > state.outlived

    def _layout(self, database: str) -> TableLayout:
        return TableLayout(self._settings.prefix, database, self._configuration.layout)

    async def _group(self, register: SnapshotRegister, database: str, taken: _Taken) -> None:
        """Take the snapshots of these tables under one held snapshot, as far as that goes."""
        try:
            await self._read(register, database, taken)
        finally:
            self._taken.remove(taken)
            self._ended.set()
        if not self._taken:
            if self._crew.is_busy:
                # Nobody wants what is still being read, or who reads it stands still.
                self._crew.let_go()
            self._leftover += [one for one in self._again if not register.shares_uploads(one)]
            self._again.clear()

    async def _read(self, register: SnapshotRegister, database: str, taken: _Taken) -> None:
        tables = taken.tables
        await self._rules.look(age_seconds_max=_RULES_SECONDS)
        try:
            rests = {table: rest for table in tables if (rest := register.rest(table))}
            # Names order everything only where one point holds for all rows of a table.
            undivided = tables if register.is_stream_waiting else register.undivided
            async with self._source.hold(tables, rests, undivided) as held:
                for table, error in held.left_out.items():
                    self.failed(table, error)
                # The others had no place under this snapshot.
                taken.tables = [*held.tables, *held.left_out]
                taken.group = Group(
                    held=held,
                    register=register,
                    crew=self._crew,
                    settings=self._settings,
                    configuration=self._configuration,
                    database=database,
                    writer_id=self._writer_id,
                    progress=self._progress,
                    under_way=self._under_way,
                    rules=self._rules,
                    ends=self,
                )
                await taken.group.run()
        except (SourceUnavailable, SourceRefused) as error:
            self._refuse_cancelled()
            self._all_failed(register, taken.tables, error)

    @staticmethod
    def _refuse_cancelled() -> None:
        """Raise CancelledError where a group of tasks raised its own error in place of it."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError

    def _all_failed(
        self, register: SnapshotRegister, tables: list[TableName], error: TailraceError
    ) -> None:
        """The whole snapshot came to nothing: put off whatever was not done before."""
        now = asyncio.get_running_loop().time()
        for table in tables:
            if register.is_owed(table) and not self._is_put_off(table, now):
                self._failed(table, error, is_of_group=True)

    # --- what a group tells

    def failed(self, table: TableName, error: TailraceError) -> None:
        """Put the table off, and tell somebody where that has to be done about."""
        self._failed(table, error, is_of_group=False)

    def _failed(self, table: TableName, error: TailraceError, *, is_of_group: bool) -> None:
        state = self._put_off.setdefault(table, _PutOff())
        state.failures += 1
        if isinstance(error, UploadsOutlived):
            state.outlived = error.seconds
        wait = min(_RETRY_SECONDS * 2.0 ** min(state.failures - 1, 10), _RETRY_SECONDS_MAX)
        state.until = asyncio.get_running_loop().time() + wait
        _log.warning("snapshot put off", table=str(table), error=str(error), seconds=wait)
        if self._register is not None and state.failures >= _FAILURES_TOLD and not error.retryable:
            self._register.refuse(table, error, is_of_group=is_of_group)
        if state.failures >= _FAILURES_TOLD or not error.retryable:
            self._alarm(table, error)

    def failing(self, table: TableName, error: TailraceError) -> None:
        """Tell somebody. The attempt goes on."""
        self._put_off.setdefault(table, _PutOff())
        self._alarm(table, error)

    def _alarm(self, table: TableName, error: TailraceError) -> None:
        self._alarms.set(
            SNAPSHOT_FAILING,
            f"the rows that the table has already are not in the bucket: {error}",
            subject=str(table),
            hint=error.hint or "It is tried again. See the log for the cause.",
        )

    def given_up(self, attempt: Attempt) -> None:
        """Throw away what was staged for it, before the next group begins."""
        self._leftover.append(attempt)

    def done(self, table: TableName) -> None:
        """Nothing is wrong with the table any more."""
        self._put_off.pop(table, None)
        self._alarms.clear(SNAPSHOT_FAILING, str(table))

    async def _abort_leftover(self, database: str) -> None:
        layout = self._layout(database)
        while self._leftover:
            attempt = self._leftover.pop()
            if self._taken:
                self._again.append(attempt)
            begin = snapshot_segment(attempt.point.position, attempt.number, attempt.segment)
            try:
                await abort_attempt(self._store, layout.table_folder(attempt.table), begin)
            except DestinationError as error:
                # They cost storage until the next start aborts them.
                _log.warning("uploads not aborted", table=str(attempt.table), error=str(error))
