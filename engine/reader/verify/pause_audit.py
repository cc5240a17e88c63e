"""Pauses: nothing is durable behind a row that is waited at, and no row is dropped unsaid. Pure."""

from collections.abc import Iterator

from engine.journal.causes import STREAM
from engine.journal.entry import JournalState
from engine.journal.gaps import PAUSE_REASONS
from engine.model.position import Position, commit_of


def wrong_pauses(state: JournalState) -> Iterator[str]:
    """What is wrong with the pauses that hold once an entry is folded into `state`."""
    stream = state.pauses.get(STREAM)
    if stream is not None and stream.position:
        place = commit_of(Position(stream.position))
        if state.durable_position > place:
            yield f"the stream is paused at {place}, and durable up to {state.durable_position}"
    covered = {
        gap.table for gap in state.gaps.values() if gap.is_open and gap.reason in PAUSE_REASONS
    }
    for table in state.pauses.keys() - covered - {STREAM}:
        yield f"{table} is passed over, and no open gap says so"
