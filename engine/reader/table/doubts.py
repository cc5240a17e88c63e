"""What keeps an answer from being right: gaps, unfinished tables, what records lack. Pure.

A doubt has a stable word. A reader is refused because of one, or is warned if it allows gaps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.journal.entry import Gap
from engine.model.printable import printable
from engine.reader.table.known import Known

_RESYNC = "tailrace resync has the table read again."


@dataclass(frozen=True, slots=True)
class Doubt:
    """One thing that is not known, in plain words; `hint` says what mends it."""

    code: str
    text: str
    hint: str = ""


def doubts_of_changes(known: Known, begin: str, attempt: int) -> Iterator[Doubt]:
    """What is missing among the changes from `begin` on, and the rows of a snapshot (0: none)."""
    yield from _uncaptured(known)
    yield from _gaps(known, begin, attempt)


def doubts_of_rows(known: Known, begin: str, attempt: int, *, is_whole: bool) -> Iterator[Doubt]:
    """What may be wrong with rows that follow from what is read from `begin` on.

    The rows of a snapshot are among it (`attempt`; 0: there is none). `is_whole`: nothing that the
    table had before can be in it any more.
    """
    yield from _uncaptured(known)
    if known.visible.is_unfinished:
        yield Doubt(
            "unfinished",
            f"the snapshot of {known.table} is not finished as of {known.until}: rows that it had"
            " may be missing",
            "`tailrace status` says how far the snapshot is.",
        )
    elif not is_whole:
        yield Doubt(
            "no-snapshot",
            f"{known.table} has no snapshot: rows that it had before its first change are missing",
            'source.snapshot = "initial" has every table read once.',
        )
    if "operations" in known.leaves_out:
        yield Doubt(
            "operations",
            f"the source does not send all operations on {known.table}, as its owner wants it",
        )
    if "key" in known.leaves_out:
        yield Doubt(
            "key",
            f"the source does not send all columns that tell rows of {known.table} apart",
            "`tailrace check` says what mends it.",
        )
    yield from _gaps(known, begin, attempt)


def _uncaptured(known: Known) -> Iterator[Doubt]:
    if not known.is_captured:
        yield Doubt(
            "not-captured",
            f"{known.table} is not captured any more: the configuration leaves it out",
        )


def _gaps(known: Known, begin: str, attempt: int) -> Iterator[Doubt]:
    for gap in known.gaps:
        is_behind = bool(gap.until) and gap.until <= begin
        # A row of a snapshot is missing in that attempt alone.
        is_passed = gap.attempt != attempt if gap.attempt else is_behind
        if gap.number in known.visible.mended or is_passed or gap.after >= known.until:
            continue
        yield Doubt("gap", _gap_text(gap), _RESYNC)


def _gap_text(gap: Gap) -> str:
    until = f"up to {gap.until}" if gap.until else "and it goes on"
    return (
        f"gap {gap.number} of {gap.table}, {gap.reason}, after {gap.after or 'nothing'}, {until}:"
        f" {printable(gap.text)}"
    )
