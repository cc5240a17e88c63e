"""How a pipeline stands, by its journal alone: what `tailrace status` shows. Pure."""

from dataclasses import dataclass
from typing import Literal

from engine.journal.entry import Answer, Gap, JournalState, Pause, time_us_of
from engine.journal.requests import known_tables
from engine.journal.snapshot_standing import SnapshotStanding, how_far


@dataclass(frozen=True, slots=True)
class TableStanding:
    """One table. `attempt` (0: none) and `point` are those of its newest snapshot."""

    table: str
    snapshot: SnapshotStanding | Literal["none"]
    attempt: int
    point: str
    is_unfinished: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """The whole. `is_stream_waiting`: the stream waits for the initial snapshot.

    `waiting` are the names of requests without an answer, `answers` the others, `signals` the
    answers to what came in the source's log, `pauses` what is paused, the stream first.
    """

    seq: int
    epoch: int
    writer: str
    task: str
    release: str
    is_released: bool
    durable_position: str
    durable_time: str
    durable_age_seconds: float
    is_stream_waiting: bool
    tables: tuple[TableStanding, ...]
    gaps: tuple[Gap, ...]
    waiting: tuple[str, ...]
    answers: tuple[Answer, ...]
    signals: tuple[Answer, ...]
    pauses: tuple[Pause, ...] = ()

    @property
    def unfinished(self) -> tuple[TableStanding, ...]:
        """The tables whose earlier rows are not all there."""
        return tuple(table for table in self.tables if table.is_unfinished)


def standing(state: JournalState, waiting: tuple[str, ...], now_us: int) -> Standing:
    """How the pipeline stands whose journal is `state`, at `now_us` (Unix microseconds)."""
    writer, durable = state.writer, state.durable
    age_us = now_us - time_us_of(durable.commit_time) if durable is not None else 0
    unfinished = frozenset(state.unfinished(state.durable_position))
    return Standing(
        seq=state.seq,
        epoch=state.epoch,
        writer=writer.id if writer is not None else "",
        task=writer.task if writer is not None else "",
        release=writer.release if writer is not None else "",
        is_released=state.released,
        durable_position=state.durable_position,
        durable_time=durable.commit_time if durable is not None else "",
        durable_age_seconds=max(0, age_us) / 1e6,
        is_stream_waiting=state.stream_waits,
        tables=tuple(_table(name, state, unfinished) for name in sorted(known_tables(state))),
        gaps=tuple(gap for _, gap in sorted(state.gaps.items()) if not gap.mended),
        waiting=waiting,
        answers=tuple(answer for _, answer in sorted(state.answers.items())),
        signals=tuple(answer for _, answer in sorted(state.signals.items())),
        pauses=tuple(pause for _, pause in sorted(state.pauses.items())),
    )


def _table(name: str, state: JournalState, unfinished: frozenset[str]) -> TableStanding:
    stated = state.snapshots.get(name)
    if stated is None:
        return TableStanding(name, "none", 0, "", is_unfinished=False)
    snapshot = stated.snapshot
    return TableStanding(
        name, how_far(stated, state), snapshot.attempt, snapshot.point, name in unfinished
    )
