"""Gaps against the journal before them: their numbers, what they may change, and what mends a row.

A gap of one row is mended by something that the journal shows: an object that is planned around a
row of the stream, or a visible snapshot that takes the row's place. Of other gaps only the engine
knows what arrived. Pure.
"""

from collections.abc import Iterator

from engine.journal.entry import Entry, Gap, JournalState
from engine.model.position import Position, attempt_of, require_position


def wrong_gaps(entry: Entry, state: JournalState, *, is_whole: bool) -> Iterator[str]:
    """What is wrong with the gaps of an entry; `state` folds the entries before it.

    Unless the journal `is_whole` up to here, what they follow is not known.
    """
    here: dict[int, Gap] = {}
    # The fold may have forgotten rows that are made good, but never the newest gap.
    highest = max(state.gaps, default=0) if entry.gaps else 0
    for gap in entry.gaps:
        known = here.get(gap.number) or state.gaps.get(gap.number)
        if known is None and gap.number != highest + 1 and is_whole:
            yield f"gap {gap.number} of {gap.table} follows gap {highest}"
        elif known is not None and _beginning(known) != _beginning(gap):
            yield f"gap {gap.number} is stated again with another table, beginning or reason"
        if gap.attempt and is_whole and not _is_of_its_attempt(gap, entry, state):
            yield f"gap {gap.number} is of no row of attempt {gap.attempt} of {gap.table}"
        if gap.is_mended_row and is_whole and not _is_made_good(gap, entry, state):
            yield f"gap {gap.number} is mended, and nothing has the row or takes its place"
        here[gap.number] = gap
        highest = max(highest, gap.number)


def _beginning(gap: Gap) -> tuple[str | int, ...]:
    """What no statement of a gap may change."""
    return (gap.table, gap.after, gap.reason, gap.position, gap.key, gap.attempt)


def _is_of_its_attempt(gap: Gap, entry: Entry, state: JournalState) -> bool:
    """Whether the attempt that it names was started, and its row belongs to that one."""
    try:
        require_position(gap.position)
    except ValueError:
        return False
    here = [stated.attempt for stated in entry.snapshots if stated.table == gap.table]
    is_started = gap.attempt <= max(state.attempts.get(gap.table, 0), *here, 0)
    return is_started and attempt_of(Position(gap.position)) == gap.attempt


def _is_made_good(gap: Gap, entry: Entry, state: JournalState) -> bool:
    """Whether something has the row, or takes its place.

    A row of a snapshot is in no object of the stream, though one may be planned around it.
    """
    stated = state.visible_snapshot(gap.table)
    if stated is not None:
        is_later = 0 < gap.attempt < stated.snapshot.attempt
        if is_later or (not gap.attempt and gap.position < stated.snapshot.sees):
            return True
    return not gap.attempt and any(
        planned.table == gap.table and planned.first <= gap.position <= planned.last
        for planned in entry.planned
    )
