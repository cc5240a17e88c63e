"""Pauses: the stream, or one table of it, waits until somebody resumes it.

Strategy: what is acknowledged to the source is so for all tables, and none of them can wait alone.
So a *paused stream* is read no further: nothing behind the place becomes durable, and the source
keeps its log. A *paused table* is passed over: its rows are dropped, under a gap that stays open
until the table is resumed. Then it is read again.

A pause is asked for by a request, or follows from a table's changed shape, where the configuration
says so (`on_schema_change`). It begins at the first row of the new shape. To resume accepts that
shape. Whoever reads that row again decides the same: it is paused there, or the shape is accepted.

Invariant: pure but for the event that a reader waits for. A pause, its gap, and the answer to who
asked for it are stated in one entry of the journal. While the stream is paused at a row, nothing
that commits at its commit or later is durable, and no later row of its table is received. No row is
dropped that no gap covers.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog
from msgspec.structs import replace

from engine.flow.ledger import Ledger
from engine.journal.causes import STREAM, STREAM_PAUSED, TABLE_PAUSED, pause_causes
from engine.journal.entry import JournalState, Pause, time_text
from engine.journal.gaps import PAUSE_REASONS, PAUSED, SCHEMA_CHANGED, GapRegister
from engine.journal.requests import Deed, tables_named
from engine.journal.snapshots import SnapshotRegister
from engine.model.interfaces import Clock
from engine.model.position import LOG_BEGIN, LogPosition, Position, behind, commit_of
from engine.model.record import RecordConfiguration
from engine.model.request import Request, RequestRefused
from engine.model.schema import Relation, TableName, TableVersion, shape_digest
from engine.model.schema_document import change_kinds
from engine.operate.alarms import Alarms

GAP_TEXT: Final = "the table is paused: its changes are dropped until it is resumed"

_log = structlog.get_logger(__name__)


class PauseRegister:
    """What this writer knows of pauses. `wake` is called when there is something to append."""

    def __init__(
        self,
        *,
        state: JournalState,
        gaps: GapRegister,
        snapshots: SnapshotRegister,
        ledger: Ledger,
        configuration: RecordConfiguration,
        clock: Clock,
        alarms: Alarms,
        wake: Callable[[], None],
    ) -> None:
        """Begin as the journal is now."""
        self._state = state
        self._gaps = gaps
        self._snapshots = snapshots
        self._ledger = ledger
        self._configuration = configuration
        self._clock = clock
        self._alarms = alarms
        self._wake = wake
        self._paused = dict(state.pauses)
        self._accepted = dict(state.accepted_shapes)
        self._pending: dict[str, Pause] = {}
        # By table that is passed over: where its newest dropped row commits, and the row's shape.
        self._dropped: dict[str, tuple[LogPosition, str]] = {}
        self._digested: tuple[Relation, str] | None = None
        # Tables at whose rows the stream stopped. Until that row is read again nothing of them is
        # taken: what is received of a table is known by its last position alone.
        self._waiting: set[str] = set()
        # By table that was resumed: what commits before this is still dropped.
        self._kept_from: dict[str, LogPosition] = {}
        self._changed = asyncio.Event()
        self.is_reread_wanted = False
        """Whether the log is to be read again from E: rows that are under way need another look."""
        self.interrupt: Callable[[], None] = _nobody_reads
        """Called where a reader is to look at `is_paused` and `is_reread_wanted` at once."""
        self._end_abandoned()
        self._reopen_ended()
        self._tell()

    # --- for whoever reads the stream

    @property
    def is_paused(self) -> bool:
        """Whether the stream is to be read no further."""
        return STREAM in self._paused

    @property
    def reason(self) -> str:
        """Why the stream is paused; empty where it is not."""
        paused = self._paused.get(STREAM)
        return paused.text if paused is not None else ""

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that are passed over."""
        return tuple(sorted(table for table in self._paused if table != STREAM))

    async def resumed(self) -> None:
        """Wait until the stream is not paused. Cancellation changes nothing."""
        while self.is_paused:
            self._changed.clear()
            await self._changed.wait()

    def reread(self) -> None:
        """The log is read again from E. Whoever reads says so before it does."""
        self.is_reread_wanted = False
        self._waiting.clear()
        self._ledger.read_again()

    def wants(self, relation: Relation, position: Position) -> bool:
        """Whether the row is to be taken. One that is not is in a gap, or is read again."""
        table = str(relation.table)
        if table in self._paused:
            commit, _ = self._dropped.get(table, (LOG_BEGIN, ""))
            commit = max(commit, commit_of(position))
            self._dropped[table] = (commit, self._digest(relation))
            return False
        if table in self._waiting:
            return False
        return position >= self._kept_from.get(table, LOG_BEGIN)

    def _digest(self, relation: Relation) -> str:
        """The shape's digest. Very many rows may be dropped, of one relation after the other."""
        if self._digested is None or self._digested[0] is not relation:
            self._digested = relation, shape_digest(relation)
        return self._digested[1]

    def admits(self, before: TableVersion | None, version: TableVersion) -> bool:
        """Whether a version may begin. Where it may not, its first row is dropped, or waits."""
        relation, first = version.relation, version.first
        if before is None or first is None:
            return True
        digest = shape_digest(relation)
        if shape_digest(before.relation) == digest:
            # Only the configuration is another one.
            return True
        table = relation.table
        mode = self._configuration.on_schema_change_of(table)
        if mode == "continue":
            return True
        if self._accepted.get(str(table)) == digest:
            del self._accepted[str(table)]
            return True
        kinds = ", ".join(change_kinds(version, before))
        text = f"{table} changed its shape at position {first}: {kinds}"
        if mode == "gap":
            self._pause_table(str(table), text, commit_of(first), first, digest)
            self.wants(relation, first)
            return False
        self._waiting.add(str(table))
        self._ledger.hold(first)
        if not self.is_paused:
            self._state_next(self._pause(STREAM, text, first, digest, str(table)))
        return False

    # --- for whoever asks

    @property
    def by_kind(self) -> Mapping[str, Deed]:
        """The requests, each with its kind."""
        return {"pause": self.pause, "resume": self.resume}

    def pause(self, request: Request) -> str:
        """Pause the tables, or where none is named, the stream. Raises RequestRefused."""
        if not request.tables:
            if self.is_paused:
                raise RequestRefused(f"the stream is paused already: {self.reason}")
            self._state_next(self._pause(STREAM, "somebody asked for it"))
            self.interrupt()
            return ""
        tables = tables_named(request, self._state, self._configuration)
        new = [str(table) for table in tables if str(table) not in self._paused]
        if not new:
            raise RequestRefused("they are paused already")
        for table in new:
            self._pause_table(table, "somebody asked for it", self._state.durable_position)
        # Rows of theirs are taken without a question.
        self.is_reread_wanted = True
        self.interrupt()
        return ""

    def resume(self, request: Request) -> str:
        """Resume the tables, or where none is named, everything. Raises RequestRefused."""
        if not self._paused:
            raise RequestRefused("nothing is paused")
        if not request.tables:
            names = list(self._paused)
        else:
            tables = tables_named(request, self._state, self._configuration)
            names = [str(table) for table in tables if str(table) in self._paused]
            paused = self._paused.get(STREAM)
            if paused is not None and paused.changed in request.tables:
                names.append(STREAM)
        if not names:
            raise RequestRefused("they are not paused")
        for name in names:
            self._resume(name)
        return ""

    # --- for the committer

    @property
    def pending(self) -> tuple[Pause, ...]:
        """What the next entry has to say."""
        return tuple(self._pending.values())

    def journalled(self, statements: Sequence[Pause]) -> None:
        """The journal has these."""
        for statement in statements:
            if self._pending.get(statement.table) == statement:
                del self._pending[statement.table]

    # ---

    def _pause(
        self,
        table: str,
        text: str,
        position: Position | None = None,
        shape: str = "",
        changed: str = "",
    ) -> Pause:
        return Pause(
            table=table,
            state="paused",
            at=time_text(self._clock()),
            text=text,
            position=position or "",
            shape=shape,
            changed=changed,
        )

    def _pause_table(
        self,
        table: str,
        text: str,
        after: LogPosition,
        position: Position | None = None,
        shape: str = "",
    ) -> None:
        reason = _gap_reason(shape)
        is_stated = any(gap.is_open and gap.reason == reason for gap in self._gaps.unmended(table))
        if not is_stated:
            self._gaps.state(table, after=after, until="", reason=reason, text=GAP_TEXT)
        self._state_next(self._pause(table, text, position, shape))

    def _resume(self, table: str) -> None:
        paused = self._paused[table]
        accepts = paused.changed
        shape = paused.shape
        if table == STREAM:
            # The row at which it stopped was dropped, and is read again.
            self.is_reread_wanted = True
        else:
            commit, dropped_shape = self._dropped.pop(table, (LOG_BEGIN, ""))
            self._end(table, commit)
            shape = shape and (dropped_shape or shape)
            accepts = table
        self._state_next(
            replace(
                paused, state="resumed", at=time_text(self._clock()), shape=shape, changed=accepts
            )
        )

    def _end(self, table: str, dropped: LogPosition) -> None:
        """End the table's gaps behind everything that was dropped, and have the table read."""
        newest = self._ledger.newest_boundary
        read = newest.position if newest is not None else LOG_BEGIN
        until = behind(max(dropped, read, self._state.durable_position))
        self._kept_from[table] = until
        for gap in self._gaps.unmended(table):
            if gap.is_open and gap.reason in PAUSE_REASONS:
                self._gaps.end(gap.number, until)
        self._snapshots.came(TableName.parse(table))

    def _end_abandoned(self) -> None:
        """End the open gaps of tables that are captured and not paused: nobody else would.

        Such a table was left out for a while, or a former engine stated the gap and not the pause.
        Everything that commits at E or later is read in this life. A look then fills the gap.
        """
        for gap in self._gaps.standing:
            if not gap.is_open or gap.reason not in PAUSE_REASONS or gap.table in self._paused:
                continue
            if self._configuration.captures(TableName.parse(gap.table)):
                after = LogPosition(gap.after)
                self._gaps.end(gap.number, behind(max(after, self._state.durable_position)))
                self._wake()

    def _reopen_ended(self) -> None:
        """Let the gaps of paused tables go on that have ended.

        A former engine stated that the gap ended, and not yet that the table was resumed. Its rows
        go on to be dropped until whoever asked for that is heard again.
        """
        for table, paused in self._paused.items():
            gaps = self._gaps.unmended(table)
            if table == STREAM or any(gap.is_open and gap.reason in PAUSE_REASONS for gap in gaps):
                continue
            after, reason = self._state.durable_position, _gap_reason(paused.shape)
            self._gaps.state(table, after=after, until="", reason=reason, text=GAP_TEXT)
            self._wake()

    def _state_next(self, pause: Pause) -> None:
        self._pending[pause.table] = pause
        if pause.state == "paused":
            self._paused[pause.table] = pause
        else:
            self._paused.pop(pause.table, None)
            if pause.changed and pause.shape:
                self._accepted[pause.changed] = pause.shape
        _log.warning(pause.state, subject=pause.table or "the stream", text=pause.text)
        self._alarms.events.happened(pause.state, pause.text, subject=pause.table)
        self._tell()
        self._changed.set()
        self._wake()

    def _tell(self) -> None:
        causes = pause_causes(self._paused)
        stream = {STREAM: causes.pop(STREAM)} if STREAM in causes else {}
        self._alarms.replace(STREAM_PAUSED, stream)
        self._alarms.replace(TABLE_PAUSED, causes)


def _nobody_reads() -> None:
    pass


def _gap_reason(shape: str) -> str:
    return SCHEMA_CHANGED if shape else PAUSED
