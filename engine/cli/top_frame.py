"""One look at a running engine, as lines of text. Pure.

Strategy: a frame is made of two answers of `/status` and the time between them. A rate is what was
counted between the two; of a single answer, what the engine itself has noted last. Rows of tables
give way where the terminal is low, and are counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from engine.cli.table import Alignment, table_lines
from engine.cli.terminal import wrapped
from engine.model.amount import size_text, time_text
from engine.model.plural import counted
from engine.model.printable import printable
from engine.operate.status import SnapshotStatus, Status, TableStatus, progress_bar

Look = Literal["plain", "heading", "good", "wait", "bad"]

TABLES_SHOWN_MIN: Final = 3
_ALARMS_SHOWN_MAX: Final = 5
_SNAPSHOTS_SHOWN_MAX: Final = 5
_LABEL_COLUMNS: Final = 13
_SECOND_US: Final = 1_000_000

_HEADING: Final = ("table", "rows/s", "rows", "queue", "version", "last object")
_ALIGNMENTS: Final[tuple[Alignment, ...]] = ("left", "right", "right", "right", "right", "right")


@dataclass(frozen=True, slots=True)
class Line:
    """A line, and how it looks."""

    text: str
    look: Look = "plain"


@dataclass(frozen=True, slots=True)
class Rates:
    """What goes by in a second: rows that are read, and bytes that become visible."""

    rows: float
    bytes: float


def rates_of(before: Status | None, now: Status, seconds: float) -> Rates:
    """The rates between two answers of one engine; of one answer, what it noted last."""
    if before is None or before.writer_id != now.writer_id or seconds <= 0:
        noted = now.history
        rows = noted.rows_per_second[-1] if noted.rows_per_second else 0.0
        size = noted.bytes_per_second[-1] if noted.bytes_per_second else 0.0
        return Rates(rows, size)
    # A life that begins anew counts from 0.
    rows = max(0, now.rows_total - before.rows_total) / seconds
    return Rates(rows, max(0, now.bytes_total - before.bytes_total) / seconds)


def frame(
    status: Status, rates: Rates, now_us: int, columns: int | None, lines_max: int | None
) -> list[Line]:
    """The whole picture, at most `columns` wide and about `lines_max` high (None: no limit)."""
    above = [
        *_head(status, now_us, columns),
        Line(""),
        *_figures(status, rates, now_us, columns),
        *_alarms(status, columns),
        *_snapshots(status, columns),
    ]
    room = None if lines_max is None else max(TABLES_SHOWN_MIN, lines_max - len(above) - 4)
    return [*above, *_tables(status, now_us, columns, room)]


def line(status: Status, rates: Rates) -> str:
    """The same in one line, for a log."""
    facts = [
        f"{rates.rows:,.0f} rows/s",
        f"{size_text(int(rates.bytes))}/s",
        f"unread {_seconds(status.lag_seconds)}",
        f"not durable {_seconds(status.durable_lag_seconds)}",
        f"buffer {size_text(status.memory_used_bytes)}",
    ]
    facts += [counted(status.alarms_total, "alarm")] * bool(status.alarms_total)
    return f"{status.phase}  {', '.join(facts)}"


def _head(status: Status, now_us: int, columns: int | None) -> list[Line]:
    since = time_text(max(0, now_us - status.since_us) / _SECOND_US)
    lines = [Line(f"tailrace {status.release}  {status.phase} for {since}", status.health)]
    if status.health_reason:
        lines += _broken("", status.health_reason, columns, status.health)
    if status.waits_for:
        lines += _broken("waits for", status.waits_for, columns)
    lines += _broken("from", status.source, columns)
    lines += _broken("to", status.destination, columns)
    return lines


def _figures(status: Status, rates: Rates, now_us: int, columns: int | None) -> list[Line]:
    unit = status.lag_unit
    objects = counted(status.objects_total, "object", form=",")
    uploaded = f"{size_text(int(rates.bytes))} a second; {size_text(status.bytes_total)}"
    used, limit = status.memory_used_bytes, status.memory_limit_bytes
    filled = min(1.0, used / limit) if limit else 0.0
    pairs = [
        ("read", f"{rates.rows:,.0f} rows a second; {counted(status.rows_total, 'row', form=',')}"),
        ("uploaded", f"{uploaded} in {objects}"),
        ("unread", _lag(status.lag_seconds, status.lag, unit)),
        ("not durable", _lag(status.durable_lag_seconds, status.durable_lag, unit)),
        ("durable", _durable(status, now_us)),
        ("buffer", f"{progress_bar(filled)}  {size_text(used)} of {size_text(limit)}"),
    ]
    if (kept := status.retention) is not None:
        limited = "" if kept.limit is None else f" of {_amount(kept.limit, unit)}"
        left = "" if kept.seconds_left is None else f", full in {time_text(kept.seconds_left)}"
        pairs.append(("retained", f"{_amount(kept.retained, unit)}{limited}{left}"))
    return [each for label, text in pairs for each in _broken(label, text, columns)]


def _lag(seconds: float | None, amount: int | None, unit: str) -> str:
    if seconds is None and amount is None:
        return "not known yet"
    if not seconds and not amount:
        return "nothing"
    behind = "" if amount is None else f", {_amount(amount, unit)}"
    return f"{_seconds(seconds)}{behind}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:.1f} s" if seconds < 120 else time_text(seconds)


def _amount(amount: int, unit: str) -> str:
    return size_text(amount) if unit == "bytes" else f"{amount:,} {unit}"


def _durable(status: Status, now_us: int) -> str:
    if not status.durable_position:
        return "nothing yet"
    return f"{status.durable_position}, committed {_ago(status.durable_commit_us, now_us)}"


def _ago(time_us: int, now_us: int) -> str:
    return f"{time_text(max(0, now_us - time_us) / _SECOND_US)} ago" if time_us else "-"


def _alarms(status: Status, columns: int | None) -> list[Line]:
    if not status.alarms_total:
        return []
    lines = [Line(""), Line(counted(status.alarms_total, "alarm"), "bad")]
    for alarm in status.alarms[:_ALARMS_SHOWN_MAX]:
        subject = f"{alarm.subject}: " if alarm.subject else ""
        lines += _text(f"{alarm.code}  {subject}{alarm.text}", columns, "bad")
        lines += _text(f"  {alarm.hint}", columns)
    more = status.alarms_total - min(len(status.alarms), _ALARMS_SHOWN_MAX)
    return [*lines, *([Line(f"    and {more} more")] if more else [])]


def _snapshots(status: Status, columns: int | None) -> list[Line]:
    if status.snapshots_in_all is None:
        return []
    shown = status.snapshots[:_SNAPSHOTS_SHOWN_MAX]
    rows = [(printable(each.table), _progress(each)) for each in shown]
    if len(status.snapshots) > 1:
        rows.append(("all of them", _progress(status.snapshots_in_all)))
    lines = table_lines(rows, ("left", "prose"), columns, indent="    ")
    return [Line(""), Line("snapshots", "heading"), *map(Line, lines)]


def _progress(each: SnapshotStatus) -> str:
    facts = [f"{progress_bar(each.share)}  {each.rows:,} rows"]
    if each.rows_per_second is not None:
        facts.append(f"{each.rows_per_second:,.0f} a second")
    if each.seconds_left is not None:
        facts.append(f"about {time_text(each.seconds_left)} left")
    return ", ".join(facts)


def _tables(status: Status, now_us: int, columns: int | None, room: int | None) -> list[Line]:
    shown = status.busiest[:room]
    if not shown:
        return [Line(""), Line("no table has had a row yet")]
    rows = [_HEADING, *(_row(each, now_us) for each in shown)]
    heading, *lines = table_lines(rows, _ALIGNMENTS, columns)
    more = status.tables_total - len(shown)
    told = [Line(""), Line(heading, "heading"), *map(Line, lines)]
    return [*told, Line(f"and {counted(more, 'more table')}")] if more > 0 else told


def _row(each: TableStatus, now_us: int) -> tuple[str, ...]:
    paused = " (paused)" if each.is_paused else ""
    return (
        printable(each.table) + paused,
        f"{each.rows_per_second:,.0f}",
        f"{each.rows_total:,}",
        size_text(each.queue_bytes),
        str(each.version) if each.version else "-",
        _ago(each.last_object_us, now_us),
    )


def _broken(label: str, text: str, columns: int | None, look: Look = "plain") -> list[Line]:
    first = f"{label:{_LABEL_COLUMNS}}"
    return [Line(each, look) for each in wrapped(printable(text), columns, first=first).split("\n")]


def _text(text: str, columns: int | None, look: Look = "plain") -> list[Line]:
    lines = wrapped(printable(text), columns, first="    ", rest="        ").split("\n")
    return [Line(each, look) for each in lines]


def plain(lines: Sequence[Line]) -> str:
    """A frame without its looks."""
    return "\n".join(each.text for each in lines)
