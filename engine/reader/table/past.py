"""The journal up to an earlier place: what was visible of a table when that much was durable.

Strategy: state files are the folded journal every so many entries. The newest one that reaches no
further than the place is found by halving; the entries behind it are read one by one. A time is
judged by the durable entries: the place is the last one whose commits are not later.

Invariant: nothing is guessed. Where a lifecycle rule took the entries of that time away, the
reader is told so by name.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from engine.journal.entry import Durable, JournalState, decode_entry, decode_state, time_us_of
from engine.journal.reading import JournalReader
from engine.model.errors import JournalError, ObjectArchived, ReadRefused
from engine.model.layout import journal_key, state_key
from engine.model.position import LogPosition, require_log_position
from engine.reader.table.known import Known, Visible, known_of, visible_of

_HINT = "docs/consumers.md says how long a table can be read as it was."


@dataclass(frozen=True, slots=True)
class Until:
    """Up to where somebody reads: a place, or a time in Unix microseconds; neither: all."""

    position: LogPosition | None = None
    time_us: int | None = None

    @property
    def is_end(self) -> bool:
        """Whether everything that is durable is meant."""
        return self.position is None and self.time_us is None

    def is_at(self, durable: Durable) -> bool:
        """Whether exactly what is durable by then is meant."""
        if self.time_us is not None:
            return time_us_of(durable.commit_time) == self.time_us
        return durable.position == self.position

    def allows(self, durable: Durable) -> bool:
        """Whether what is durable by then is not too much."""
        if self.time_us is not None:
            return time_us_of(durable.commit_time) <= self.time_us
        return self.position is None or durable.position <= self.position


async def known_until(
    table: str, newest: JournalState, until: Until, prefix: str, reader: JournalReader
) -> Known:
    """The table as of `until`; `newest` is the whole journal.

    Raises ReadRefused where that much is not durable yet, or the journal of that time is gone.
    Cancellation changes nothing.
    """
    durable = newest.durable
    assert durable is not None
    if until.is_end or until.is_at(durable):
        return known_of(table, newest, newest, visible_of(table, newest), durable.position)
    if until.allows(durable):
        raise ReadRefused(
            "not-durable",
            f"{_told(until)} is not reached: everything is there up to {durable.position}"
            f" ({durable.commit_time})",
            hint="Read again later, or up to an earlier place.",
        )
    walk = _Walk(table, until, prefix, reader)
    return await walk.known(newest)


def _told(until: Until) -> str:
    return f"position {until.position}" if until.position is not None else "that time"


class _Walk:
    """From the newest state file that does not reach too far to the first entry that does."""

    def __init__(self, table: str, until: Until, prefix: str, reader: JournalReader) -> None:
        self._table = table
        self._until = until
        self._prefix = prefix
        self._reader = reader

    async def known(self, newest: JournalState) -> Known:
        state = await self._begin()
        visible: Visible | None = None
        position = LogPosition("")
        while True:
            if state.durable is not None:
                if not self._until.allows(state.durable):
                    break
                seen = visible_of(self._table, state)
                # The same place may be stated again, with the table finished meanwhile, or wanted
                # anew: the last statement counts by which its rows are whole.
                is_worse = seen.is_unfinished and visible is not None and not visible.is_unfinished
                if state.durable.position != position or not is_worse:
                    visible, position = seen, state.durable.position
            content = await self._entry(state.next_seq)
            if content is None:
                raise self._gone(state.next_seq)
            key = journal_key(self._prefix, state.next_seq)
            state.absorb(decode_entry(content, key), content)
        if visible is None:
            raise ReadRefused(
                "before-the-journal", f"{_told(self._until)} is before the pipeline began"
            )
        until = self._until.position or position
        return known_of(self._table, newest, state, visible, until)

    async def _entry(self, seq: int) -> bytes | None:
        try:
            return await self._reader.get(journal_key(self._prefix, seq))
        except ObjectArchived:
            return None

    def _gone(self, seq: int) -> ReadRefused:
        return ReadRefused(
            "journal-expired",
            f"journal entry {seq} is gone or archived, and {_told(self._until)} is behind it",
            hint=_HINT,
        )

    async def _begin(self) -> JournalState:
        """The newest state file that does not reach too far; else the empty journal."""
        seqs = await self._reader.state_seqs()
        low, high = 0, len(seqs)
        found = JournalState()
        while low < high:
            middle = (low + high) // 2
            state = await self._state(seqs[middle])
            if state is None or state.durable is None or self._until.allows(state.durable):
                found = state or found
                low = middle + 1
            else:
                high = middle
        return found

    async def _state(self, seq: int) -> JournalState | None:
        key = state_key(self._prefix, seq)
        try:
            content = await self._reader.get(key)
            state = decode_state(content or b"", key)
        except (JournalError, ObjectArchived):
            # An older one and more entries say the same.
            return None
        return state if state.seq == seq else None


def parse_until(text: str) -> Until:
    """A place (`0001.00000000134EBCB0`) or a time (ISO 8601, with its zone).

    Raises ValueError where it is neither. A date alone means its beginning, in UTC.
    """
    try:
        require_log_position(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            if len(text) > len("2026-11-28"):
                raise ValueError("a time needs its zone: 2026-11-28T12:00:00Z") from None
            moment = moment.replace(tzinfo=UTC)
        return Until(time_us=round(moment.timestamp() * 1_000_000))
    return Until(position=LogPosition(text))
