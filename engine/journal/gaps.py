"""Gaps: what is known to be missing, from the moment it is seen until the journal says so.

Strategy: whoever learns of a loss states a gap here, in the same step in which it learns of it. The
committer puts everything that was stated and is not journalled into its next entry, whichever that
is. A gap may be stated again: it ends, it goes on, or it is mended. How many
stand is bounded by the tables and the reasons, how many mended ones are remembered by a number.

Invariant: an entry holds every gap that was stated before the entry was made. So `durable` never
passes a loss whose gap is not in the same entry or in an earlier one, and no object is planned
around a row that was left out unless the journal says that it was.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from engine.journal.entry import Gap, JournalState, time_text
from engine.model.batch import LeftOut
from engine.model.errors import UnrepresentableRow
from engine.model.interfaces import Clock
from engine.model.plural import counted
from engine.model.position import LogPosition, Position

LEFT_OUT: Final = "unrepresentable"
"""The reason of a gap that is one row."""

LEFT_OUT_ROWS_MAX: Final = 10_000
"""Rows that the stream of one table may leave out, and that one attempt to take its snapshot may.
More would be no exceptions any more, and the journal's state has to hold each of them."""

PAUSED: Final = "paused"
SCHEMA_CHANGED: Final = "schema-changed"

PAUSE_REASONS: Final = frozenset((PAUSED, SCHEMA_CHANGED))
"""The reasons of gaps of a table that is passed over. They end when somebody resumes it, and no
look ends them."""

LOST: Final = "position-lost"
"""The reason of the gaps of an accepted loss."""

PUBLISHED_AFTER_ALL: Final = "the row was read again under other limits and is published"

GAPS_APART_MAX: Final = 16
"""Gaps of one table and reason. Beyond these the newest one goes on, and covers what lies between.
"""

_STREAM = 0
"""Stands in the place of an attempt's number."""

# Bytes of a statement beside its texts.
_STATEMENT_BYTES = 150


class GapRegister:
    """The gaps of one journal: those that it holds, and those that wait for its next entry."""

    def __init__(self, state: JournalState, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._pending: dict[int, Gap] = {}
        self._next_number = max(state.gaps, default=0) + 1
        # By table and attempt, the positions of rows that were left out and that nothing has made
        # good, with their gaps' numbers.
        self._left_out: dict[str, dict[int, dict[str, int]]] = {}
        # By table, rows of its stream that an earlier engine left out and that lie behind the
        # frontier, with their gaps' numbers. Such a row is read again, and may fit under another
        # limit. No replay reads a snapshot's row, though objects are planned around its position.
        self._read_again: dict[str, dict[str, int]] = {}
        # By table and reason: how many of the others there are, and the newest one's number.
        self._apart: dict[tuple[str, str], tuple[int, int]] = {}
        # By table, the numbers of those that nothing has made good; of rows left out, none.
        self._unmended: dict[str, set[int]] = {}
        for _, gap in sorted(state.gaps.items()):
            self._count(gap)
            if gap.reason == LEFT_OUT and not gap.mended:
                self._rows(gap.table, gap.attempt)[gap.position] = gap.number
                frontier = state.frontiers.get(gap.table)
                is_ahead = frontier is None or gap.position > frontier.last
                if is_ahead and not gap.attempt:
                    self._read_again.setdefault(gap.table, {})[gap.position] = gap.number

    @property
    def pending(self) -> tuple[Gap, ...]:
        """The statements that the journal does not hold yet, in the order of their numbers."""
        return tuple(gap for _, gap in sorted(self._pending.items()))

    def too_many(self, bytes_max: int) -> tuple[Gap, ...]:
        """The oldest pending statements of `bytes_max`; none where all pending ones take less."""
        size_bytes, oldest = 0, []
        # New gaps were put in here by their numbers.
        for gap in self._pending.values():
            oldest.append(gap)
            size_bytes += _size_bytes(gap)
            if size_bytes >= bytes_max:
                return tuple(oldest)
        return ()

    @property
    def standing(self) -> tuple[Gap, ...]:
        """Every gap as it was stated last, journalled or not, in the order of their numbers."""
        return tuple(gap for _, gap in sorted((self._state.gaps | self._pending).items()))

    def unmended(self, table: str) -> tuple[Gap, ...]:
        """The table's gaps that nothing has made good, by number; without rows left out."""
        return tuple(self._known(number) for number in sorted(self._unmended.get(table, ())))

    def is_open(self, table: str) -> bool:
        """Whether changes of the table go on being lost."""
        return any(gap.is_open for gap in self.unmended(table))

    def state(
        self,
        table: str,
        *,
        after: str,
        until: str,
        reason: str,
        text: str,
        key: str = "",
        position: str = "",
        attempt: int = 0,
    ) -> Gap:
        """State a gap that nobody has stated before. It waits for the journal's next entry.

        Where the table's newest gap of that reason ended no earlier than `after`, that one goes on
        instead. Where there are `GAPS_APART_MAX` of them already, so it does too: it says then that
        what lies between may be missing as well. A row that is left out is always one of its own.
        """
        earlier = self._earlier(table, reason, after)
        if earlier is not None:
            return self._go_on(earlier, until, text)
        number = self._next_number
        self._next_number += 1
        gap = Gap(
            number,
            table,
            after,
            until,
            reason,
            text,
            key=key,
            position=position,
            noticed=time_text(self._clock()),
            attempt=attempt,
        )
        self._pending[number] = gap
        self._count(gap)
        return gap

    def _earlier(self, table: str, reason: str, after: str) -> Gap | None:
        """The gap that goes on where one is to begin at `after`."""
        count, number = self._apart.get((table, reason), (0, 0))
        if not count:
            return None
        gap = self._pending.get(number) or self._state.gaps.get(number)
        if gap is None:
            # Made good, and forgotten by the folded journal.
            return None
        is_near = after <= gap.until or count >= GAPS_APART_MAX
        is_over = not gap.is_open and not gap.mended
        return gap if is_over and is_near and gap.after <= after else None

    def _go_on(self, gap: Gap, until: str, text: str) -> Gap:
        further = msgspec.structs.replace(gap, until=until and max(until, gap.until), text=text)
        self._restate(further)
        return further

    def _count(self, gap: Gap) -> None:
        if gap.reason != LEFT_OUT:
            count, _ = self._apart.get((gap.table, gap.reason), (0, 0))
            self._apart[gap.table, gap.reason] = (count + 1, gap.number)
            self._index(gap)

    def _index(self, gap: Gap) -> None:
        numbers = self._unmended.setdefault(gap.table, set())
        if gap.mended:
            numbers.discard(gap.number)
        else:
            numbers.add(gap.number)

    def state_up_to(self, table: str, *, after: str, until: str, reason: str, text: str) -> None:
        """State a gap that ended, unless one of that reason covers `after`: then it goes on.

        An end never moves back: what is read again states the same.
        """
        for gap in self.standing:
            is_same = (gap.table, gap.reason) == (table, reason)
            if is_same and gap.mended and gap.after <= after and until <= gap.until:
                return
            if is_same and not gap.mended and gap.after <= after <= gap.until:
                if gap.until < until:
                    self._go_on(gap, until, text)
                return
        self.state(table, after=after, until=until, reason=reason, text=text)

    def leave_out(self, row: LeftOut) -> int:
        """State that the stream left a row out. Returns how many rows of its table are left out.

        A replay reads the row again, so it may have been stated before: then nothing is added.
        Raises UnrepresentableRow when there would be too many.
        """
        table = str(row.table)
        rows = self._rows(table, _STREAM)
        self._read_again.get(table, {}).pop(row.position, None)
        if row.position not in rows:
            refuse_too_many(len(rows), (row,))
            self._state_row(row, _STREAM)
        return sum(map(len, self._left_out[table].values()))

    def leave_out_all(self, table: str, attempt: int, rows: Sequence[LeftOut]) -> None:
        """State that an attempt to take the snapshot of `table` left these rows out.

        They count by themselves, with those of the attempt's segments before: rows of the stream
        and of other attempts have room of their own. Raises UnrepresentableRow when there would be
        too many, and states none then.
        """
        known = self._rows(table, attempt)
        added = [row for row in rows if row.position not in known]
        refuse_too_many(len(known), added)
        for row in added:
            self._state_row(row, attempt)

    def _rows(self, table: str, attempt: int) -> dict[str, int]:
        return self._left_out.setdefault(table, {}).setdefault(attempt, {})

    def _state_row(self, row: LeftOut, attempt: int) -> None:
        table = str(row.table)
        gap = self.state(
            table,
            after=row.position,
            until=row.position,
            reason=LEFT_OUT,
            text=row.reason,
            key=row.key,
            position=row.position,
            attempt=attempt,
        )
        self._rows(table, attempt)[row.position] = gap.number

    def supersede(self, table: str, attempt: int, before: LogPosition) -> bool:
        """Attempt `attempt` of the table's snapshot is visible: mend the gaps whose place it takes.

        Those are of rows that earlier attempts left out, and of rows that the stream left out
        `before` a place that the attempt sees, and that nobody reads again. It has each of these
        rows, or states itself that it left it out, or the row is gone. Returns whether there were
        any.
        """
        mended = False
        for own, rows in self._left_out.get(table, {}).items():
            is_earlier = _STREAM < own < attempt
            for position in [p for p in rows if is_earlier or (own == _STREAM and p < before)]:
                self.mend(rows.pop(position), f"attempt {attempt} of its snapshot")
                self._read_again.get(table, {}).pop(position, None)
                mended = True
        return mended

    def planned(self, table: str, first: Position, last: Position) -> None:
        """An object is planned in the journal's next entry: mend the gaps of rows that it has.

        Such a row lies between `first` and `last`; an earlier engine left it out, and this one did
        not. This is called before the entry is made, so the journal never says one without the
        other.
        """
        again = self._read_again.get(table)
        for position in [p for p in again or () if first <= p <= last]:
            self.mend(self._read_again[table].pop(position), PUBLISHED_AFTER_ALL)
            del self._rows(table, _STREAM)[position]

    def end(self, number: int, until: str) -> None:
        """Say where a gap ends that is known already."""
        self._restate(msgspec.structs.replace(self._known(number), until=until))

    def mend(self, number: int, mended: str) -> None:
        """Say by what the lost changes of a gap were made good."""
        self._restate(msgspec.structs.replace(self._known(number), mended=mended))

    def journalled(self, gaps: tuple[Gap, ...]) -> None:
        """These statements are in the journal; one that was changed meanwhile still waits."""
        for gap in gaps:
            if self._pending.get(gap.number) == gap:
                del self._pending[gap.number]

    def _known(self, number: int) -> Gap:
        return self._pending.get(number) or self._state.gaps[number]

    def _restate(self, gap: Gap) -> None:
        self._pending[gap.number] = gap
        if gap.reason != LEFT_OUT:
            self._index(gap)


def refuse_too_many(count: int, rows: Sequence[LeftOut]) -> None:
    """Raise UnrepresentableRow where `rows` may not be left out beside `count` others."""
    if count + len(rows) > LEFT_OUT_ROWS_MAX:
        row = rows[LEFT_OUT_ROWS_MAX - count]
        raise UnrepresentableRow(
            f"{counted(LEFT_OUT_ROWS_MAX, 'row')} of {row.table} were left out already, and the one"
            f" at position {row.position} would have to be: {row.reason}",
            reason=row.reason,
            hint="So many are no exceptions: exclude the column by a [[source.table]], or repair"
            " the rows.",
        )


def _size_bytes(gap: Gap) -> int:
    texts = (gap.table, gap.after, gap.until, gap.text, gap.key, gap.position, gap.mended)
    return _STATEMENT_BYTES + sum(map(len, texts))
