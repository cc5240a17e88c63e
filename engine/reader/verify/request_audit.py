"""Answers to requests: each is given once, beside what the request led to. Pure.

The requests' own objects are not judged: whoever may write to the bucket may create any.
"""

from collections.abc import Iterable, Iterator

from engine.journal.entry import Answer, Entry, JournalState
from engine.model.position import Position


def twice_answered(entry: Entry, state: JournalState) -> Iterator[str]:
    """The answers of `entry` that are not the first; `state` folds the entries before it."""
    here: set[str] = set()
    for answer in entry.answers:
        if answer.name in here or state.is_answered(answer.name):
            yield f"request {answer.name} was answered before"
        here.add(answer.name)
    through = state.signals_through
    for answer in entry.signals:
        if answer.name <= through:
            yield f"the signal at {answer.name} was answered before, or one behind it was"
        through = Position(answer.name)


def undone(entry: Entry, state: JournalState) -> Iterator[str]:
    """The tables of which `entry` says that something asked was done, and which show nothing of it.

    `state` folds `entry` in. Of several requests about a table the last one counts. Where an entry
    answers requests and signals about a table, nobody knows which came last. The engine may want a
    snapshot again by itself, right after it was cancelled. A look may show meanwhile that the table
    is gone. One that had a snapshot has that one then, so the entry's own statement is looked at.
    """
    said = {stated.table: stated.state for stated in entry.snapshots}
    asked, signalled = _last_asked(entry.answers), _last_asked(entry.signals)
    both = {table for table in asked if table in signalled}
    asked = {t: answer for t, answer in (asked | signalled).items() if t not in both}
    for table, answer in asked.items():
        stated = state.snapshots.get(table)
        newest = stated.snapshot.state if stated is not None else "none"
        is_stated_here = stated is not None and stated.seq == entry.seq
        match answer.kind:
            case "resync":
                is_done = newest == "wanted" or said.get(table) in {"wanted", "started", "gone"}
            case "cancel":
                is_again = newest == "wanted" and is_stated_here
                is_done = newest not in {"wanted", "started", "void"} or is_again
            case _:
                is_done = True  # A kind of a later release.
        if not is_done:
            yield f"request {answer.name}, {answer.kind}: the snapshot of {table} is {newest}"


def _last_asked(answers: Iterable[Answer]) -> dict[str, Answer]:
    """By table, the last of `answers` that says that what it asks of the table was done."""
    return {
        table: answer for answer in answers if answer.outcome == "done" for table in answer.tables
    }
