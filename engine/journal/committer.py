"""The committer: group commit of plans and of what became durable.

Strategy: one append serves all chunks that are due, when the schedule says so. After the append the
planned objects go to the publisher. When they are visible, the next entry states `durable`, and
then E is acknowledged. While there is nothing to say, the committer looks whether somebody has
written the journal's next entry, to learn that another writer took over.

Invariant: plan before publish, durable before acknowledge; both only after the append was answered.
Every entry holds all gaps that were stated before it was made.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import structlog

from engine.flow.chunk import SealedChunk
from engine.flow.ledger import Ledger
from engine.flow.router import Router
from engine.journal.completer import Completer
from engine.journal.entry import Durable, Gap, Snapshot
from engine.journal.gaps import GapRegister
from engine.journal.initial import StreamWait
from engine.journal.journal import Journal
from engine.journal.lanes import Lanes
from engine.journal.pauses import PauseRegister
from engine.journal.planner import EntryPlan, Planner
from engine.journal.publisher import PlannedPut, Publisher
from engine.journal.requests import RequestRegister
from engine.journal.schedule import AppendSchedule
from engine.journal.settings import Settings
from engine.journal.signals import SignalRegister
from engine.journal.snapshots import SnapshotRegister
from engine.journal.watcher import Watcher
from engine.model.errors import Superseded
from engine.model.interfaces import Clock
from engine.model.layout import TableLayout
from engine.model.log_point import LogPoint
from engine.model.schema_document import change_kinds, previous_version
from engine.operate.activity import Activity
from engine.operate.events import Events
from engine.operate.metrics import Metrics

# Chunks that are planned in one turn of the loop. One takes 20 us: with 5,000 tables due at once, a
# turn took 110 ms.
CHUNKS_A_TURN = 250

# Chunks that are cut in one turn. One takes 100 us, because what is left of its lines is compressed
# then: 20 KB of a quiet table. 250 of them took 18 to 25 ms (measured).
CUTS_A_TURN = 32

# Bytes of statements of gaps in one entry, beside its plans: an entry is one request.
GAPS_BYTES_MAX = 1024 * 1024

# Every object that becomes visible wakes the committer, which then looks at all tables that are not
# durable, mostly for nothing. With 5,000 tables that took a sixth of a drain's CPU.
PAUSE_SECONDS = 0.02

# Log lines about gaps of one entry. If 5,000 tables are no longer published, one more line gives
# the rest as a number.
_GAP_HINT = "the table's alarm says what mends it, docs/gaps.md what the reason means"

GAPS_LOGGED_MAX = 20

# Log lines about tables of one entry whose schema changed.
SCHEMA_CHANGES_LOGGED_MAX = 20

# From this size on, joining a body takes longer than handing it to a thread.
THREAD_BYTES = 1024 * 1024

_Item = TypeVar("_Item")

FINISHING_SECONDS = 1.0
"""An idle source's position waits no longer than this while a snapshot waits for it."""

_log = structlog.get_logger(__name__)


class Committer:
    """Appends what is due until it is told to drain and everything is durable.

    `acknowledge` is called with E after each entry that states it.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        ledger: Ledger,
        gaps: GapRegister,
        watcher: Watcher,
        planner: Planner,
        schedule: AppendSchedule,
        router: Router,
        publisher: Publisher,
        lanes: Lanes,
        snapshots: SnapshotRegister,
        completer: Completer,
        requests: RequestRegister,
        signals: SignalRegister,
        pauses: PauseRegister,
        initial: StreamWait,
        layout: TableLayout,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        activity: Activity,
        events: Events,
        acknowledge: Callable[[LogPoint], None],
    ) -> None:
        self.drained = asyncio.Event()
        self._journal = journal
        self._ledger = ledger
        self._gaps = gaps
        self._watcher = watcher
        self._planner = planner
        self._schedule = schedule
        self._router = router
        self._publisher = publisher
        self._lanes = lanes
        self._snapshots = snapshots
        self._completer = completer
        self._requests = requests
        self._signals = signals
        self._pauses = pauses
        self._initial = initial
        self._layout = layout
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._activity = activity
        self._events = events
        self._acknowledge = acknowledge
        self._is_progress = False
        now = asyncio.get_running_loop().time()
        self._last_append = now
        self._last_look = now
        self._last_durable = now

    def drain(self) -> None:
        """Nothing more will be read: publish what is held, then set `drained`. Never waits."""
        self._schedule.drain()

    def _visible(self, put: PlannedPut) -> None:
        planned = put.planned
        self._ledger.visible(planned.table_name, planned.last)
        self._router.published(planned.table_name, len(put.body))
        self._activity.visible(planned.table_name, planned.key, len(put.body), self._clock())
        self._metrics.queue_bytes(self._router.held_bytes)
        self._is_progress = True
        self._schedule.wake()

    async def run(self) -> None:
        """Append what is due until drained. Raises Superseded. Cancellation is like a kill."""
        while not self.drained.is_set():
            await self._schedule.due(self._last_append, self._router.earliest_due)
            if not await self._commit() and not self._is_everything_visible():
                await asyncio.sleep(PAUSE_SECONDS)

    async def _commit(self) -> bool:
        """Append what is due; whether there was anything."""
        now = asyncio.get_running_loop().time()
        await self._cut(now)
        chunks = self._router.take_sealed()
        for chunk in chunks:
            if len(chunk.body) >= THREAD_BYTES:
                await asyncio.to_thread(chunk.body.whole)
        plan = await self._plan(chunks)
        while len(plan.chunks) < len(chunks):
            # This is more than one entry should hold. Each entry is valid on its own, whoever
            # writes the next one.
            await self._append(plan, None, is_last=False)
            chunks = chunks[len(plan.chunks) :]
            plan = await self._plan(chunks)
        is_last = self._schedule.is_draining and not chunks and self._is_everything_visible()
        durable = self._durable_due(now)
        is_start = self._initial.due is not None
        if self._is_said(plan) or durable is not None or is_start or is_last:
            await self._append(plan, durable, is_last=is_last)
            return True
        if now - self._last_look >= self._settings.probe_interval:
            await self._look()
        return False

    async def _cut(self, now: float) -> None:
        if self._router.is_pressed:
            self._router.cut_largest()
        # A chunk is due one interval before its age, so that it is planned in time.
        is_draining = self._schedule.is_draining
        due = self._router.due(None if is_draining else now + self._settings.append_interval)
        for some in _slices(due, CUTS_A_TURN):
            self._router.cut(some, "drain" if is_draining else "age")
            await asyncio.sleep(0)

    async def _plan(self, chunks: list[SealedChunk]) -> EntryPlan:
        """A plan for the first of `chunks`, as many as one entry should hold; mostly all."""
        draft = self._planner.draft()
        for some in _slices(chunks, CHUNKS_A_TURN):
            draft.add(some)
            for chunk in some:
                self._snapshots.capture(chunk.table)
            await asyncio.sleep(0)
            if draft.is_full:
                break
        await self._state_much()
        # An answer stands beside what was asked for, and no E in front of it.
        return draft.plan(self._snapshots.pending, self._requests.pending, self._signals.pending)

    async def _state_much(self) -> None:
        """Append by themselves what is too much to state beside a plan: the rest has place there.

        That is the oldest of very many gaps, and what is agreed of very many tables, behind all
        gaps. Nothing is awaited between this and the next entry: it holds everything that is left.
        """
        while (gaps := self._gaps.too_many(GAPS_BYTES_MAX)) or self._watcher.watch.is_much:
            watch = None if gaps else self._watcher.watch.pending
            gaps = gaps or self._gaps.pending
            new_gaps = self._new_gaps(gaps)
            await self._journal.append(gaps=gaps, watch=watch)
            self._gaps_journalled(gaps, new_gaps)
            self._watcher.watch.journalled(watch)

    def _is_said(self, plan: EntryPlan) -> bool:
        return (
            bool(plan.planned or plan.snapshots or plan.answers or plan.signals) or self._is_stated
        )

    @property
    def _is_stated(self) -> bool:
        """Whether something is known to be missing, or paused, that the journal does not say."""
        is_missing = bool(self._gaps.pending) or self._watcher.watch.is_due
        return is_missing or bool(self._pauses.pending)

    def _is_everything_visible(self) -> bool:
        is_published = self._ledger.is_empty and self._lanes.is_idle
        return is_published and self._completer.is_idle

    def _durable_due(self, now: float) -> Durable | None:
        is_idle_due = now - self._last_durable >= self._idle_seconds
        is_due = self._is_progress or is_idle_due or self._schedule.is_draining
        if not (is_due or self._is_list_changed):
            return None
        durable = self._planner.durable(
            self._oldest_pending_seq,
            unfinished=self._snapshots.unfinished,
            awaits=self._snapshots.awaits,
            looked=self._watcher.looked,
            watched=self._watcher.watch.watched,
        )
        newest = self._ledger.newest_boundary
        if is_idle_due and durable is None and newest is not None and newest.is_keepalive:
            # An idle source's position waits for a look. Rows that are pending may hold it back
            # behind any number of looks.
            self._watcher.want_up_to(newest.position, rest_seconds=self._idle_seconds)
        if is_idle_due and durable is None and self._is_finishing:
            # A look asks the source for its position, which lies behind the snapshot's point.
            self._watcher.want_rested(self._idle_seconds)
        return durable

    @property
    def _is_finishing(self) -> bool:
        """Whether a table's snapshot is visible, and is finished once E has passed its point."""
        # E stays where it is while the stream waits.
        if self._initial.is_waited_for:
            return False
        return self._snapshots.waits_behind(self._journal.state.durable_position)

    @property
    def _idle_seconds(self) -> float:
        """How long an idle source's position may wait before it becomes durable."""
        idle_seconds = self._settings.idle_interval
        return min(idle_seconds, FINISHING_SECONDS) if self._is_finishing else idle_seconds

    @property
    def _is_list_changed(self) -> bool:
        """Whether other tables are unfinished than the journal says, or more is visible of one."""
        durable = self._journal.state.durable
        if durable is None:
            return False
        seq = self._planner.visible_seq(self._oldest_pending_seq)
        unfinished = self._snapshots.unfinished(durable.position, seq)
        return durable.unfinished != unfinished or self._snapshots.awaits(seq)

    @property
    def _oldest_pending_seq(self) -> int | None:
        seqs = (self._lanes.oldest_pending_seq, self._snapshots.oldest_pending_seq)
        return min((seq for seq in seqs if seq is not None), default=None)

    async def _append(self, plan: EntryPlan, durable: Durable | None, *, is_last: bool) -> None:
        if durable is not None:
            self._is_progress = False
        for planned in plan.planned:
            self._gaps.planned(planned.table, planned.first, planned.last)
        # No await since `durable` was computed: what a look says is told together.
        gaps, watch = self._gaps.pending, self._watcher.watch.pending
        new_gaps = self._new_gaps(gaps)
        start, pauses = self._initial.due, self._pauses.pending
        seq = await self._journal.append(
            schemas=plan.schemas,
            planned=plan.planned,
            landmark=self._planner.landmark(plan),
            durable=durable,
            snapshots=plan.snapshots,
            gaps=gaps,
            watch=watch,
            answers=plan.answers,
            signals=plan.signals,
            pauses=pauses,
            stream=start,
            release=is_last,
        )
        self._gaps_journalled(gaps, new_gaps)
        self._watcher.watch.journalled(watch)
        self._last_append = self._last_look = asyncio.get_running_loop().time()
        self._planner.journalled(plan)
        self._initial.journalled(start)
        self._requests.journalled(plan.answers)
        self._signals.journalled(plan.signals)
        self._pauses.journalled(pauses)
        self._tell_schema_changes(plan)
        self._publish(plan, seq)
        self._complete(plan.snapshots, seq)
        if durable is not None:
            self._last_durable = self._last_append
            self._ledger.forget(durable.position)
            self._snapshots.forget(durable.position, durable.seq)
            self._acknowledge(durable.point)
            self._metrics.durable(durable.point.commit_us, self._clock())
        if is_last:
            self.drained.set()

    def _new_gaps(self, gaps: Sequence[Gap]) -> list[Gap]:
        """Those that the journal does not know, or knows as over while more is missing."""
        known = self._journal.state.gaps
        return [gap for gap in gaps if not gap.mended and _is_more(gap, known.get(gap.number))]

    def _gaps_journalled(self, gaps: tuple[Gap, ...], new_gaps: Sequence[Gap]) -> None:
        """The journal holds them: the log has each new one once, beside its table's alarm."""
        self._gaps.journalled(gaps)
        if any(gap.mended for gap in gaps):
            self._watcher.mended()
        self._metrics.gaps(len(new_gaps))
        for gap in new_gaps[:GAPS_LOGGED_MAX]:
            _log.error("gap", table=gap.table, reason=gap.reason, text=gap.text, hint=_GAP_HINT)
            self._events.happened("gap", f"{gap.reason}: {gap.text}", subject=gap.table)
        if len(new_gaps) > GAPS_LOGGED_MAX:
            _log.error("more gaps", count=len(new_gaps) - GAPS_LOGGED_MAX, hint=_GAP_HINT)

    def _publish(self, plan: EntryPlan, seq: int) -> None:
        for planned, chunk in zip(plan.planned, plan.chunks, strict=True):
            self._metrics.chunk(planned.table, chunk.reason, len(chunk.body))
            self._publisher.publish(
                PlannedPut(planned, seq, chunk.body.whole(), chunk.last_commit_us, self._layout),
                self._visible,
            )

    def _complete(self, snapshots: Sequence[Snapshot], seq: int) -> None:
        self._snapshots.journalled(snapshots, seq)
        for snapshot in snapshots:
            if snapshot.state == "whole":
                self._completer.complete(snapshot, seq, self._journal.state.epoch)

    def _tell_schema_changes(self, plan: EntryPlan) -> None:
        told = 0
        for version in plan.schemas:
            table = version.relation.table
            previous = previous_version(self._journal.state.versions_of(table), version)
            kinds = change_kinds(version, previous)
            for kind in kinds:
                self._metrics.schema_change(str(table), kind)
            if kinds and (told := told + 1) <= SCHEMA_CHANGES_LOGGED_MAX:
                self._tell_schema_change(str(table), version.number, kinds)
        if told > SCHEMA_CHANGES_LOGGED_MAX:
            _log.info("more schemas changed", count=told - SCHEMA_CHANGES_LOGGED_MAX)

    def _tell_schema_change(self, table: str, version: int, kinds: Sequence[str]) -> None:
        _log.info("schema changed", table=table, version=version, kinds=kinds)
        text = f"version {version}: {', '.join(dict.fromkeys(kinds))}"
        self._events.happened("schema-change", text, subject=table)

    async def _look(self) -> None:
        self._last_look = asyncio.get_running_loop().time()
        if await self._journal.tail_moved():
            raise Superseded(
                f"another writer appended journal entry {self._journal.state.next_seq}",
            )


def _is_more(gap: Gap, known: Gap | None) -> bool:
    return known is None or (not known.is_open and gap.until != known.until)


def _slices(items: Sequence[_Item], count: int) -> Iterator[Sequence[_Item]]:
    """Pieces of so many, short enough for one turn of the loop."""
    for begin in range(0, len(items), count):
        yield items[begin : begin + count]
