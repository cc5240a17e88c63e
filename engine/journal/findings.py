"""Findings: what stands against a pipeline by its journal and one look, for `check`.

Strategy: the look says what is being lost now, with the statement that ends it. The journal says
what was lost and is not made good. Tables of which the same is to be said share one finding.

Invariant: pure. What was mended is in no finding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from engine.journal.causes import (
    GAP,
    NOT_CAPTURED,
    ROWS_LEFT_OUT,
    STREAM,
    STREAM_PAUSED,
    TABLE_PAUSED,
    WRITES_REFUSED,
    gap_causes,
    left_out_causes,
    pause_causes,
    standing_causes,
)
from engine.journal.entry import Gap, JournalState
from engine.journal.gaps import PAUSE_REASONS
from engine.journal.newcomers import corrected
from engine.journal.watch import standing
from engine.model.interfaces import Look, Reason
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.operate.alarms import Cause


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that stands against some tables; `code` is that of a running engine's alarm."""

    code: str
    tables: tuple[str, ...]
    cause: Cause


def findings(
    state: JournalState,
    configuration: RecordConfiguration,
    look: Look | None,
    refused: Mapping[TableName, Reason] | None,
) -> tuple[Found, ...]:
    """What stands, by the journal's state and a look (None: there is nothing to look at).

    `refused`: why newcomers of the look cannot be let in; None: nobody lets any in.
    """
    gaps = [gap for gap in state.gaps.values() if _is_captured(configuration, gap.table)]
    lost: dict[str, Cause] = {}
    writes: dict[str, Cause] = {}
    if look is not None:
        reasons = standing(state, configuration, look)
        if refused is not None:
            reasons = corrected(look, reasons, refused)
        lost = standing_causes(reasons)
        writes = standing_causes(
            {str(t): now.refused for t, now in look.tables.items() if now.refused}
        )
    open_gaps = {
        gap.table: _open_cause(gap)
        for gap in gaps
        if gap.is_open and gap.table not in lost and gap.reason not in PAUSE_REASONS
    }
    ended = gap_causes(
        gaps,
        is_snapshot_on=configuration.snapshot != "never",
        is_filled=lambda table: _is_filled(state, table),
    )
    paused = pause_causes(state.pauses)
    stream = {"the stream": paused.pop(STREAM)} if STREAM in paused else {}
    return (
        *_grouped(STREAM_PAUSED, stream),
        *_grouped(TABLE_PAUSED, paused),
        *_grouped(NOT_CAPTURED, lost),
        *_grouped(GAP, open_gaps),
        *_grouped(GAP, ended),
        *_grouped(ROWS_LEFT_OUT, left_out_causes(gaps)),
        *_grouped(WRITES_REFUSED, writes),
    )


def _is_captured(configuration: RecordConfiguration, table: str) -> bool:
    return configuration.captures(TableName.parse(table))


def _open_cause(gap: Gap) -> Cause:
    return Cause(
        f"a gap of the table is open ({gap.reason}): {gap.text}",
        "The next look of a running engine ends it, unless it says then what mends it.",
    )


def _is_filled(state: JournalState, table: str) -> bool:
    stated = state.snapshots.get(table)
    if stated is None or stated.snapshot.state in {"cancelled", "gone"}:
        return False
    return not stated.is_complete


def _grouped(code: str, causes: Mapping[str, Cause]) -> Iterable[Found]:
    tables: dict[Cause, list[str]] = {}
    for table, cause in causes.items():
        tables.setdefault(cause, []).append(table)
    return [Found(code, tuple(sorted(those)), cause) for cause, those in tables.items()]
