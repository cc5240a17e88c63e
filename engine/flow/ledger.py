"""The ledger: what has left the socket and is not yet durable.

Strategy: for each table the ledger keeps the spans (first and last position) of its batches, in the
order in which they were read. A span leaves when an object that covers it is visible. The ledger
also keeps the boundaries that were read. The newest boundary at or below the oldest span's commit
may become durable.

Memory is bounded. While S3 stalls, a compressed row can be smaller than its span. So beyond a few
spans, a table's newest span grows instead. Of too many boundaries every other one is forgotten.
Both only make `durable` come in larger steps, never too early.

Invariant: a change counts from the moment it leaves the socket, not from when a chunk closes. When
`durable` was computed from closed chunks, it was wrong in three of four simulated runs.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from heapq import merge

import msgspec

from engine.model.batch import Batch, Boundary, Intake
from engine.model.errors import InvariantBroken
from engine.model.history import Landmark, newest
from engine.model.position import NOWHERE, LogPosition, Position, commit_of
from engine.model.schema import TableName

_SPANS_MAX = 8
"""Spans of one table. The rows of a quiet table keep spans of their own. Those of 5,000 tables take
10 MB."""

_BOUNDARIES_MAX = 4096

RECEIVED_MIN = 1024
"""So many tables keep their received position in any case."""


class Ledger:
    """What this process has read: pending spans, received positions, boundaries."""

    def __init__(self, frontier: Mapping[TableName, Position]) -> None:
        """Begin where the journal ends: nothing pending, everything up to `frontier` received."""
        self._spans: dict[TableName, list[tuple[Position, Position]]] = {}
        self._received = dict(frontier)
        self._forget_at = RECEIVED_MIN
        self._boundaries: deque[Boundary] = deque()
        self._newest: Boundary | None = None
        # It is kept beside the others, because a newer keepalive takes the place of an older one
        # while a look is under way.
        self._looked: Boundary | None = None
        self._last = NOWHERE
        self._last_commit_us = 0
        self._landmark: Landmark | None = None
        self._is_row_since_boundary = False
        self._held: Position | None = None

    def hold(self, position: Position) -> None:
        """A row there is not taken: nothing behind it becomes durable until it is read again.

        Of several the first one counts.
        """
        self._held = position if self._held is None else min(position, self._held)

    def read_again(self) -> None:
        """From now on everything behind E is read again, and a row that was held is taken."""
        self._held = None

    def received(self, table: TableName) -> Position:
        """The last position of `table` that was read."""
        return self._received.get(table, NOWHERE)

    @property
    def newest_boundary(self) -> Boundary | None:
        """The newest boundary that was read, durable or not."""
        return self._newest

    def landmark(self, through: str) -> Landmark | None:
        """The newest commit of which this process has read anything, `through` what it reads."""
        read = None
        if self._last != NOWHERE:
            read = Landmark(commit_of(self._last), self._last_commit_us, through)
        return newest(read, self._landmark)

    @property
    def is_empty(self) -> bool:
        """Whether everything that was read is visible."""
        return not self._spans

    def is_durable(self, durable: LogPosition) -> bool:
        """Whether every change that was read commits before `durable`, the journal's E."""
        return not self._spans and (self._last == NOWHERE or commit_of(self._last) < durable)

    def read(self, intake: Intake) -> None:
        """Count an intake, whole, before anything is done with it."""
        for batch in intake.batches:
            self._read_batch(batch)
        if intake.boundary is not None:
            self._read_boundary(intake.boundary)

    def _read_batch(self, batch: Batch) -> None:
        table, first, last = batch.table, batch.first, batch.last
        received = self._received.get(table, NOWHERE)
        if first <= received:
            raise InvariantBroken(
                f"rows of {table} from {first} on were read twice or out of order, after {received}"
            )
        self._received[table] = last
        if last > self._last:
            self._last, self._last_commit_us = last, batch.last_commit_us
        spans = self._spans.get(table)
        if spans is None:
            spans = self._spans[table] = []
        elif len(spans) == _SPANS_MAX:
            first = spans.pop()[0]
        spans.append((first, last))
        self._is_row_since_boundary = True

    def _read_boundary(self, boundary: Boundary) -> None:
        # After a reconnect the source shows boundaries again that were read before.
        if self._newest is not None and boundary.position <= self._newest.position:
            return
        # It comes again, behind the row that is held.
        if self._held is not None and boundary.position > self._held:
            return
        # A stream knows only the commits that it showed itself.
        self._landmark = newest(self._landmark, boundary.landmark)
        boundary = msgspec.structs.replace(boundary, landmark=self._landmark)
        # An idle source sends a keepalive every few seconds for days. So a keepalive takes the
        # place of the one before it, if no row came between them. A commit's end stays until the
        # next one, because a keepalive's position may have to wait for a look.
        last = self._boundaries[-1] if self._boundaries else boundary
        is_replaced = last.is_keepalive or not boundary.is_keepalive
        if self._boundaries and is_replaced and not self._is_row_since_boundary:
            self._boundaries.pop()
        self._boundaries.append(boundary)
        if len(self._boundaries) > _BOUNDARIES_MAX:
            # The newest stays: their number is odd.
            self._boundaries = deque(list(self._boundaries)[::2])
        self._newest = boundary
        self._is_row_since_boundary = False

    def looked(self, boundary: Boundary) -> None:
        """Keep this boundary: it was read before a look was taken, and that look is judged now."""
        self._looked = boundary

    def visible(self, table: TableName, last: Position) -> None:
        """Everything of `table` up to `last` is in S3."""
        spans = self._spans.get(table)
        while spans and spans[0][1] <= last:
            del spans[0]
        if spans and spans[0][0] <= last:
            # What is still pending of the table comes after `last`, at that commit at the earliest.
            spans[0] = (last, spans[0][1])
        if spans is not None and not spans:
            del self._spans[table]

    def forget(self, durable: LogPosition) -> None:
        """Forget what was received of tables of which nothing is pending and all is durable.

        Tables come and go. When changes that commit before `durable` are read again, they are
        dropped by their position alone. Such tables are looked for when there are twice as many
        tables as were left the last time.
        """
        if len(self._received) <= self._forget_at:
            return
        self._received = {
            table: last
            for table, last in self._received.items()
            if table in self._spans or last >= durable
        }
        self._forget_at = max(RECEIVED_MIN, 2 * len(self._received))

    def durable_boundary(self, looked: LogPosition | None = None) -> Boundary | None:
        """The newest known boundary such that everything which commits before it is in S3.

        A keepalive's position counts only up to `looked` (None: all count): up to there a look at
        what the source publishes was judged. Boundaries older than the answer are forgotten.
        """
        oldest = self._oldest_pending()
        found = None
        for boundary in self._known():
            if not _is_reached(boundary, oldest):
                break
            if _counts(boundary, looked):
                found = boundary
        while (
            found is not None and self._boundaries and self._boundaries[0].position < found.position
        ):
            self._boundaries.popleft()
        return found

    def counting_boundary(self, looked: LogPosition | None) -> Boundary | None:
        """The newest known boundary that may become durable once everything before it is in S3.

        `looked` as for `durable_boundary`.
        """
        found = None
        for boundary in self._known():
            if _counts(boundary, looked):
                found = boundary
        return found

    def _known(self) -> Iterable[Boundary]:
        """The boundaries by their positions, the one that was looked at last among them."""
        if self._looked is None:
            return self._boundaries
        return merge(self._boundaries, (self._looked,), key=_position_of)

    def _oldest_pending(self) -> Position | None:
        return min((spans[0][0] for spans in self._spans.values()), default=None)


def _counts(boundary: Boundary, looked: LogPosition | None) -> bool:
    return looked is None or not boundary.is_keepalive or boundary.position <= looked


def _position_of(boundary: Boundary) -> LogPosition:
    return boundary.position


def _is_reached(boundary: Boundary, oldest: Position | None) -> bool:
    return oldest is None or boundary.position <= oldest
