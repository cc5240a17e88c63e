"""The watcher: looks at what the source publishes, and has each look judged when its time comes.

Strategy: a task beside the reader. It looks at each connect, at an interval, when the stream says
that something was changed or truncated, and when an idle source's position waits to become durable.
A look may be ahead of a stream that lags, so it is judged only when the stream has passed it. A
loss that stands is alarmed at once.

Invariant: a keepalive's position counts as durable only up to `looked`: what committed before it
was in a look that was judged.
"""

import asyncio
from collections.abc import Callable, Sequence
from math import inf

import structlog

from engine.flow.ledger import Ledger
from engine.flow.reception import Reception
from engine.journal.causes import (
    GAP,
    NOT_CAPTURED,
    ROWS_LEFT_OUT,
    WRITES_REFUSED,
    gap_causes,
    left_out_causes,
    standing_causes,
)
from engine.journal.entry import JournalState
from engine.journal.gaps import GapRegister
from engine.journal.newcomers import Newcomers
from engine.journal.snapshots import Attempt, SnapshotRegister
from engine.journal.watch import CatalogWatch, Shown
from engine.model.batch import Intake, Named
from engine.model.errors import SourceError
from engine.model.interfaces import ChangeStream, Look, Publishing
from engine.model.position import LOG_BEGIN, NOWHERE, LogPosition
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.operate.alarms import Alarms
from engine.operate.metrics import Metrics

CATALOG_NOT_LOOKED_AT = "catalog-not-looked-at"

_RETRY_SECONDS = 1.0
_RETRY_SECONDS_MAX = 30.0
_FAILURES_TOLD = 3
"""Looks that fail one after the other before it is an alarm."""

_KEEPALIVE_SECONDS = 1.0

TRUNCATED_SECONDS = 1.0
"""Seconds from a truncation until a look. One look serves all truncations that come meanwhile."""

_log = structlog.get_logger(__name__)


class Watcher:
    """Looks, and judges what was seen. `run` is its whole life."""

    def __init__(
        self,
        *,
        state: JournalState,
        gaps: GapRegister,
        snapshots: SnapshotRegister,
        ledger: Ledger,
        reception: Reception,
        configuration: RecordConfiguration,
        alarms: Alarms,
        metrics: Metrics,
        interval: float,
        wake: Callable[[], None],
        publishing: Publishing | None = None,
    ) -> None:
        """`wake` is called when there is something for the journal's next entry.

        `publishing` lets tables arrive that appear later; None: nobody does.
        """
        shown = Shown(
            # The ledger forgets tables that are durable; their frontiers stay. Of a snapshot it is
            # not kept how many rows it had.
            has_rows=lambda table: (
                str(table) in state.frontiers
                or state.attempts.get(str(table), 0) > 0
                or ledger.received(table) != NOWHERE
            ),
            has_identity=reception.has_identity,
            was_truncated=self.was_truncated,
        )
        self.judged_count = 0
        """How many looks were judged."""
        self.watch = CatalogWatch(state, gaps, configuration, shown)
        self._gaps = gaps
        self._snapshots = snapshots
        snapshots.tell_partitions(self._was_read)
        self._newcomers = Newcomers(publishing, snapshots)
        self._captures = configuration.captures
        self._is_snapshot_on = configuration.snapshot != "never"
        if not self.watch.is_known:
            snapshots.wait_for_look()
        self._ledger = ledger
        self._alarms = alarms
        self._metrics = metrics
        self._interval = interval
        self._wake = wake
        self._failures = 0
        self._looked: LogPosition | None = LOG_BEGIN
        self._stream: ChangeStream | None = None
        # Whether a look has tables that are about to arrive because of us.
        self._is_admitting = False
        # The captured names of which rows came since the newest look began.
        self._came: set[TableName] = set()
        # When the newest look ended, in the loop's time; infinite during a look.
        self._rests_from = -inf
        self._wanted = asyncio.Event()
        self._moved = asyncio.Event()
        # By table, where the newest truncation that the stream showed commits.
        self._is_look_planned = False
        self._truncated: dict[TableName, LogPosition] = {}

    @property
    def looked(self) -> LogPosition | None:
        """Up to where looks were judged; None where the source has nothing to look at."""
        return self._looked

    @property
    def is_admitting(self) -> bool:
        """Whether a table is being let in, or was and no look has shown it since."""
        return self._is_admitting

    def connected(self, stream: ChangeStream | None) -> None:
        """The stream to look through from now on; None while there is none. Never waits."""
        self._stream = stream
        if stream is not None:
            self.want()

    def want(self) -> None:
        """Look soon. Never waits."""
        self._wanted.set()

    def want_up_to(self, position: LogPosition, *, rest_seconds: float = 0.0) -> None:
        """Look soon, where `position` was read and no look was judged up to there. Never waits.

        Not within `rest_seconds` of the newest look's end, nor, unless they are 0, during a look.
        """
        newest = self._ledger.newest_boundary
        is_looked = self._looked is None or self._looked >= position
        if newest is None or newest.position < position or is_looked:
            return
        if not rest_seconds or asyncio.get_running_loop().time() >= self._rests_from + rest_seconds:
            self.want()

    def want_rested(self, rest_seconds: float) -> None:
        """Look soon, but not within `rest_seconds` of the newest look's end, nor during a look.

        Never waits.
        """
        if asyncio.get_running_loop().time() >= self._rests_from + rest_seconds:
            self.want()

    def moved(self) -> None:
        """The ledger has read another boundary. Never waits."""
        self._moved.set()

    def was_truncated(self, table: TableName) -> bool:
        """Whether the stream showed a truncation behind the look that was judged last."""
        return table in self._truncated

    def truncated(self, table: TableName, commit: LogPosition) -> None:
        """The stream shows a truncation that commits there. Never waits.

        The next engine does not know of it once it is durable: a look is to agree on it soon.
        """
        self._truncated[table] = commit
        if not self._is_look_planned:
            self._is_look_planned = True
            asyncio.get_running_loop().call_later(TRUNCATED_SECONDS, self._look_planned)

    def _look_planned(self) -> None:
        self._is_look_planned = False
        self.want()

    def named(self, named: Named) -> None:
        """The stream shows under which name rows of a table come. Never waits."""
        if named.is_captured:
            self._came.add(named.table)
            if self._snapshots.is_gone(named.table):
                # Another table has the name, or the log is read again: the next look tells.
                self._snapshots.appear(named.table)
                self.want()
        if self.watch.named(named):
            if named.is_captured:
                self._snapshots.came(named.table)
            self._tell_gaps()
            self._wake()

    def shown(self, intake: Intake) -> None:
        """The stream shows whose rows come, and under which names. Never waits."""
        for named in intake.named:
            self.named(named)
        for leaf in intake.leaves:
            self.watch.came_under(leaf)

    def _was_read(self, attempt: Attempt, partitions: Sequence[str]) -> None:
        root = attempt.version.relation.identity
        self.watch.was_read(root, partitions, attempt.point.position)

    async def run(self) -> None:
        """Look and judge until cancelled, which leaves what is not judged to the next look."""
        self._tell_gaps()
        while True:
            await _set_within(self._wanted, self._interval)
            self._wanted.clear()
            stream = self._stream
            if stream is None:
                continue
            self._rests_from = inf
            is_answered = await self._look(stream)
            self._rests_from = asyncio.get_running_loop().time()
            if not is_answered:
                wait = _RETRY_SECONDS * 2 ** min(self._failures - 1, 10)
                await asyncio.sleep(min(wait, _RETRY_SECONDS_MAX))
                self._wanted.set()

    async def _look(self, stream: ChangeStream) -> bool:
        """Whether the source answered."""
        newest, owed = self._ledger.newest_boundary, self._snapshots.owed
        self._came.clear()
        try:
            look = await stream.look()
        except SourceError as error:
            self._failed(error)
            return False
        self._failures = 0
        self._alarms.clear(CATALOG_NOT_LOOKED_AT)
        if look is None:
            self._looked = None
            self._snapshots.arrive_unseen()
            return True
        self._tell_standing(look)
        arriving = [table for table, now in look.tables.items() if now.arrives]
        arriving += [table for table, arrives in look.pieces.items() if arrives]
        for table in arriving:
            # A stream that lags is no reason to wait: the snapshot's point is behind the look.
            self._snapshots.appear(table)
        self._is_admitting = self._newcomers.is_due(look)
        await self._passed(look)
        self.watch.judge(look)
        self._snapshots.vanish(owed - look.tables.keys() - look.pieces.keys() - self._came, look.at)
        self._snapshots.arrive(arriving)
        self._forget_truncated(look)
        self.judged_count += 1
        seen = max(newest.position if newest is not None else LOG_BEGIN, look.since or LOG_BEGIN)
        self._looked = max(self._looked or LOG_BEGIN, seen)
        if newest is not None:
            self._ledger.looked(newest)
        self._tell_gaps()
        self._wake()
        self._is_admitting = await self._newcomers.take(look)
        if self._is_admitting:
            self.want()
        self._tell_standing(look)
        return True

    def _forget_truncated(self, look: Look) -> None:
        """Keep the truncations that came after the look: they explain what the next one shows."""
        self._truncated = {table: at for table, at in self._truncated.items() if at >= look.at}

    def _failed(self, error: SourceError) -> None:
        self._failures += 1
        _log.debug("what is published was not looked at", error=str(error), attempt=self._failures)
        if self._failures >= _FAILURES_TOLD:
            self._alarms.set(
                CATALOG_NOT_LOOKED_AT,
                "what the source publishes cannot be looked at, so a loss would not be seen, and an"
                f" idle source's position does not advance: {error}",
                hint=error.hint or "Looks are tried again. See the source's log for the cause.",
            )

    async def _passed(self, look: Look) -> None:
        """Wait until everything that the look shows has left the socket."""
        while (newest := self._ledger.newest_boundary) is None or newest.position < look.at:
            if self._stream is not None:
                self._stream.ask_keepalive()
            self._moved.clear()
            await _set_within(self._moved, _KEEPALIVE_SECONDS)

    # --- what is told

    def _tell_standing(self, look: Look) -> None:
        causes = standing_causes(self._newcomers.corrected(look, self.watch.standing(look)))
        self._alarms.replace(NOT_CAPTURED, causes)
        self._metrics.tables_not_captured(len(causes))
        refused = {str(table): now.refused for table, now in look.tables.items() if now.refused}
        self._alarms.replace(WRITES_REFUSED, standing_causes(refused))

    def mended(self) -> None:
        """The journal says that gaps were made good: their alarms end. Never waits."""
        self._tell_gaps()

    def _tell_gaps(self) -> None:
        standing = [gap for gap in self._gaps.standing if self._is_captured(gap.table)]
        self._alarms.replace(
            GAP,
            gap_causes(standing, is_snapshot_on=self._is_snapshot_on, is_filled=self._is_filled),
        )
        self._alarms.replace(ROWS_LEFT_OUT, left_out_causes(standing))

    def _is_captured(self, table: str) -> bool:
        return self._captures(TableName.parse(table))

    def _is_filled(self, table: str) -> bool:
        return self._snapshots.is_filling(TableName.parse(table))


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
