"""What stands against a table, in words: for the alarms of a running engine, and for `check`.

Strategy: a loss that goes on is told as the look shows it, with the statement that ends it. A loss
that is over is told from the journal: what happened, and how the table becomes whole again.

Invariant: pure. A gap that was mended is told by nobody.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from engine.journal.entry import Gap, Pause, time_shown
from engine.journal.gaps import LEFT_OUT
from engine.journal.watch import RENAMED_AWAY, TABLE_DROPPED
from engine.model.interfaces import Reason
from engine.model.plural import counted
from engine.operate.alarms import Cause

NOT_CAPTURED: Final = "not-captured"
WRITES_REFUSED: Final = "writes-refused"
GAP: Final = "gap"
ROWS_LEFT_OUT: Final = "rows-left-out"
TABLE_PAUSED: Final = "table-paused"
STREAM_PAUSED: Final = "stream-paused"

STREAM: Final = ""
"""Stands in the place of a table's name where the whole stream is paused."""

_WHERE: Final = "`tailrace verify --json` says where each gap begins and ends."

_LET_GO: Final = (
    "Where nothing is to come under this name any more, name it in source.exclude and start again:"
    " the alarm ends, and the journal keeps the gap."
)

_OF_TABLES_THAT_WENT: Final[Mapping[str, str]] = {
    TABLE_DROPPED: "There is nothing to read any more. A table that is made again under this name"
    f" has a snapshot of its own, which ends the alarm. {_LET_GO}",
    RENAMED_AWAY: "ALTER TABLE … RENAME TO, or SET SCHEMA, gives it its name back: then a snapshot"
    f" is taken, which ends the alarm. Its new name can be captured by source.tables. {_LET_GO}",
}
"""Where snapshots are taken."""

_NOTHING_TO_READ: Final = f"There is nothing to read any more. {_LET_GO}"

_FILLED: Final = "nothing: a snapshot reads the table anew, and the alarm ends when that is visible"

_LOSING: Final = (
    f"Mend first what the alarm {NOT_CAPTURED} of the table says. Then a snapshot is taken, which"
    " ends this one."
)

_LOST: Final = "The source does not have these changes any more."

_NEVER: Final = (
    f"{_LOST} Compare the table's rows with the bucket. Or"
    ' set source.snapshot = "initial" and start again: each captured table is read once, and the'
    f" alarm ends. {_WHERE}"
)


def standing_causes(reasons: Mapping[str, Reason]) -> dict[str, Cause]:
    """What a look shows, by table, as alarms say it."""
    return {table: Cause(reason.text, reason.hint) for table, reason in reasons.items()}


def pause_causes(pauses: Mapping[str, Pause]) -> dict[str, Cause]:
    """What is paused, by table, and `STREAM`."""
    return {
        table: _stream_paused(pause) if table == STREAM else _table_paused(pause)
        for table, pause in pauses.items()
    }


def _stream_paused(pause: Pause) -> Cause:
    return Cause(
        f"the stream is paused: {pause.text}. Nothing is read, and the source keeps all of its log"
        " for us, which grows until its disk is full",
        "`tailrace resume` goes on. Metrics and `/status` say how much waits in the log.",
    )


def _table_paused(pause: Pause) -> Cause:
    return Cause(
        f"the table is paused, and its changes are dropped: {pause.text}",
        f"`tailrace resume {pause.table}` goes on: with snapshots on, its rows are read anew then.",
    )


def gap_causes(
    gaps: Iterable[Gap], *, is_snapshot_on: bool, is_filled: Callable[[str], bool]
) -> dict[str, Cause]:
    """What the gaps say that ended and that nothing has mended, by table.

    `is_filled`: whether a snapshot of the table is wanted or being taken.
    """
    every = [gap for gap in gaps if gap.reason != LEFT_OUT]
    losing = {gap.table for gap in every if gap.is_open}
    causes: dict[str, Cause] = {}
    for table, those in _by_table(every).items():
        text = _text_of(those)
        if is_snapshot_on and table in losing:
            causes[table] = Cause(text, _LOSING)
        elif is_snapshot_on and is_filled(table):
            causes[table] = Cause(f"{text}; a snapshot of the table is being taken", _FILLED)
        else:
            causes[table] = Cause(text, _hint_of(those[-1].reason, is_snapshot_on=is_snapshot_on))
    return causes


def left_out_causes(gaps: Iterable[Gap]) -> dict[str, Cause]:
    """What the gaps say that are rows which were left out, by table."""
    rows = _by_table(gap for gap in gaps if gap.reason == LEFT_OUT)
    return {
        table: left_out_cause(len(those), those[-1].position, those[-1].text)
        for table, those in rows.items()
    }


def left_out_cause(row_count: int, position: str, reason: str) -> Cause:
    """What stands against a table of which rows were left out, the newest at `position`."""
    return Cause(
        f"{counted(row_count, 'row')} could not be represented and were left out; the newest at"
        f" position {position}: {reason}",
        "`tailrace verify --json` lists them with their keys. Repair a row at the source: its"
        " update is captured. The alarm ends with the table's next snapshot (`tailrace resync`),"
        " unless that has to leave a row out too.",
    )


def _by_table(gaps: Iterable[Gap]) -> dict[str, list[Gap]]:
    """Those that ended and that nothing has mended."""
    found: dict[str, list[Gap]] = {}
    for gap in gaps:
        if not gap.is_open and not gap.mended:
            found.setdefault(gap.table, []).append(gap)
    return found


def _text_of(gaps: list[Gap]) -> str:
    newest = gaps[-1]
    noticed = f"; noticed at {time_shown(newest.noticed)}" if newest.noticed else ""
    earlier = f"; the table has {counted(len(gaps), 'gap')}" if len(gaps) > 1 else ""
    return (
        f"changes of this table may be missing from the bucket ({newest.reason}): {newest.text}"
        f"{noticed}{earlier}"
    )


def _hint_of(reason: str, *, is_snapshot_on: bool) -> str:
    if not is_snapshot_on:
        return _NOTHING_TO_READ if reason == TABLE_DROPPED else _NEVER
    if (hint := _OF_TABLES_THAT_WENT.get(reason)) is not None:
        return hint
    return f"{_LOST} `tailrace resync` of the table reads its rows, and the alarm ends. {_WHERE}"
