"""How a pipeline stands, by its journal alone: what `tailrace status` shows. Pure."""

from dataclasses import dataclass
from typing import Literal

from engine.journal.entry import Answer, Gap, JournalState, StatedSnapshot, time_us_of
from engine.journal.requests import known_tables

SnapshotStanding = Literal[
    "none", "wanted", "started", "whole", "void", "cancelled", "visible", "finished"
]
"""*visible*: all objects are there, and E has not reached the point that the snapshot saw."""


@dataclass(frozen=True, slots=True)
class TableStanding:
    """One table. `attempt` (0: none) and `point` are those of its newest snapshot."""

    table: str
    snapshot: SnapshotStanding
    attempt: int
    point: str
    is_unfinished: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """The whole. `waiting` are the names of requests without an answer, `answers` the others."""

    seq: int
    epoch: int
    writer: str
    task: str
    release: str
    is_released: bool
    durable_position: str
    durable_time: str
    durable_age_seconds: float
    tables: tuple[TableStanding, ...]
    gaps: tuple[Gap, ...]
    waiting: tuple[str, ...]
    answers: tuple[Answer, ...]

    @property
    def unfinished(self) -> tuple[TableStanding, ...]:
        """The tables that are unfinished."""
        return tuple(table for table in self.tables if table.is_unfinished)


def standing(state: JournalState, waiting: tuple[str, ...], now_us: int) -> Standing:
    """How the pipeline stands whose journal is `state`, at `now_us` (Unix microseconds)."""
    writer, durable = state.writer, state.durable
    age_us = now_us - time_us_of(durable.commit_time) if durable is not None else 0
    return Standing(
        seq=state.seq,
        epoch=state.epoch,
        writer=writer.id if writer is not None else "",
        task=writer.task if writer is not None else "",
        release=writer.release if writer is not None else "",
        is_released=state.released,
        durable_position=durable.position if durable is not None else "",
        durable_time=durable.commit_time if durable is not None else "",
        durable_age_seconds=max(0, age_us) / 1e6,
        tables=tuple(_table(name, state) for name in sorted(known_tables(state))),
        gaps=tuple(gap for _, gap in sorted(state.gaps.items()) if not gap.mended),
        waiting=waiting,
        answers=tuple(answer for _, answer in sorted(state.answers.items())),
    )


def _table(name: str, state: JournalState) -> TableStanding:
    stated = state.snapshots.get(name)
    if stated is None:
        return TableStanding(name, "none", 0, "", is_unfinished=False)
    how = how_far(stated, state)
    snapshot = stated.snapshot
    is_unfinished = name in state.unfinished(state.durable_position)
    return TableStanding(name, how, snapshot.attempt, snapshot.point, is_unfinished)


def how_far(stated: StatedSnapshot, state: JournalState) -> SnapshotStanding:
    """How far a table's newest snapshot is."""
    if not stated.is_visible:
        return stated.snapshot.state
    return "finished" if stated.snapshot.point <= state.durable_position else "visible"
