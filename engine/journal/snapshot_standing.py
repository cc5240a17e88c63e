"""How far a table's newest snapshot is, in one word, by the journal alone. Pure."""

from typing import Literal

from engine.journal.entry import JournalState, StatedSnapshot

SnapshotStanding = Literal[
    "wanted", "started", "whole", "void", "cancelled", "gone", "visible", "finished"
]
"""How far a table's newest snapshot is.

*visible*: all of its objects are there, and the stream is not durable up to its point. *started* is
said of the newest writer's attempt: one of an earlier writer is given up, so it is *wanted*. It is
also said where segments of an attempt are there, and more of the table is to be read.
"""


def how_far(stated: StatedSnapshot, state: JournalState) -> SnapshotStanding:
    """How far a table's newest snapshot is."""
    snapshot = stated.snapshot
    if snapshot.rest:
        return "started"
    if stated.is_visible:
        return "finished" if snapshot.point <= state.durable_position else "visible"
    if snapshot.state == "started" and stated.epoch != state.epoch and not snapshot.segment:
        return "wanted"
    return snapshot.state
