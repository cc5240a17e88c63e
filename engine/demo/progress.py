"""What one sees while it runs: a picture that changes in place in a terminal, lines elsewhere.

Strategy: the demonstration shows moments. A moment is drawn when it is shown, and never by a thread
of its own. So nothing flickers, and nothing is torn by what is printed above it.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.demo.workload import Written
from engine.model.amount import size_text
from engine.model.plural import counted, pluralized
from engine.operate.status import Status

LINE_SECONDS: Final = 2.0
_RATE_SECONDS: Final = 2.0
_TABLES_HEIGHT_MIN: Final = 16
_BAR_WIDTH_MAX: Final = 40


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known now. `fraction` of the workload's time, None where it has none to show."""

    doing: str
    seconds: float
    fraction: float | None
    written: Written
    status: Status | None


class Progress(Protocol):
    """Who shows moments, inside `with`. Also whom a verification tells how far it is."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def show(self, moment: Moment) -> None:
        """Show a moment, or leave it out if one was shown just now."""

    def say(self, text: str) -> None:
        """Print a line that stays."""

    def reached(self, phase: str, done: int, total: int | None) -> None:
        """How far the verification is."""


def progress_on(console: Console) -> Progress:
    """The progress that fits the console."""
    # FORCE_COLOR makes a log look like a terminal.
    can_redraw = console.is_interactive and console.file.isatty()
    return TerminalProgress(console) if can_redraw else LineProgress(console)


class _Rate:
    """Rows a second over the last moments."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def per_second(self, seconds: float, rows: int) -> float:
        self._seen.append((seconds, rows))
        while seconds - self._seen[0][0] > _RATE_SECONDS:
            self._seen.popleft()
        began, first = self._seen[0]
        return (rows - first) / (seconds - began) if seconds > began else 0.0


class LineProgress:
    """A line every two seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rate = _Rate()
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def show(self, moment: Moment) -> None:
        """Print the moment, unless one was printed just now."""
        rate = self._rate.per_second(moment.seconds, moment.written.row_count)
        if moment.seconds - self._shown_at < LINE_SECONDS:
            return
        self._shown_at = moment.seconds
        changes = counted(moment.written.row_count, "change", form=",")
        text = f"{moment.seconds:5.0f} s  {changes} ({rate:,.0f}/s)"
        if (status := moment.status) is None:
            text += ", the engine does not answer"
        else:
            text += (
                f", {counted(status.rows_total, 'row', form=',')} read, "
                f"{counted(status.objects_total, 'object', form=',')} visible "
                f"({size_text(status.bytes_total)}), {size_text(status.memory_used_bytes)} queued, "
                f"{_lag_text(status)}, {status.phase}{_snapshot_text(status, ', snapshot at ')}"
            )
        self.say(text)

    def say(self, text: str) -> None:
        """Print the line."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def reached(self, phase: str, done: int, total: int | None) -> None:
        """Nothing: it takes seconds."""


class TerminalProgress:
    """A picture under what was printed; it goes when all is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rate = _Rate()
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, moment: Moment) -> None:
        """Draw the moment."""
        rate = self._rate.per_second(moment.seconds, moment.written.row_count)
        is_tall = self._console.height >= _TABLES_HEIGHT_MIN
        drawn = picture(moment, rate, width=self._console.width, is_tall=is_tall)
        self._live.update(drawn, refresh=True)

    def say(self, text: str) -> None:
        """Print the line above the picture."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def reached(self, phase: str, done: int, total: int | None) -> None:
        """Draw how far the verification is."""
        count = "" if not done else f" {done:,}" if total is None else f" {done:,} of {total:,}"
        self._live.update(Text(f"verifying: {phase}{count}", style="cyan"), refresh=True)


def picture(moment: Moment, rate: float, *, width: int, is_tall: bool) -> RenderableType:
    """A moment as it looks in a terminal of that width."""
    parts: list[RenderableType] = [_heading(moment, width), Text(), _figures(moment, rate)]
    if is_tall and moment.written.rows:
        parts += [Text(), _tables(moment.written)]
    return Padding(Group(*parts), (1, 0, 0, 0))


def _heading(moment: Moment, width: int) -> RenderableType:
    texts = moment.doing, f"{moment.seconds:3.0f} s"
    heading = Table.grid(padding=(0, 2))
    cells: list[RenderableType] = [Text(texts[0], style="bold cyan"), Text(texts[1])]
    room = width - sum(map(len, texts)) - 5
    if moment.fraction is not None and room > 0:
        cells.append(ProgressBar(1.0, moment.fraction, width=min(room, _BAR_WIDTH_MAX)))
    heading.add_row(*cells)
    return heading


def _figures(moment: Moment, rate: float) -> RenderableType:
    figures = Table.grid(padding=(0, 2))
    figures.add_column(style="dim", no_wrap=True)
    # The column is as wide as a number gets, so that nothing moves when one grows.
    figures.add_column(justify="right", style="bold", no_wrap=True, min_width=10)
    figures.add_column(no_wrap=True)
    # Only this column is shortened in a narrow terminal.
    figures.add_column(style="dim")
    for label, number, unit, detail in _figure_rows(moment, rate):
        short = Text(detail, no_wrap=True, overflow="ellipsis")
        figures.add_row(label, number, unit, short)
    return figures


def _figure_rows(moment: Moment, rate: float) -> Iterator[tuple[str, str, str, str]]:
    """Label, number, unit and detail of each line."""
    written, status = moment.written, moment.status
    transactions = counted(written.transaction_count, "transaction", form=",")
    detail = f"{rate:,.0f}/s, {transactions}, {written.roll_back_count:,} rolled back"
    yield (
        "shop",
        f"{written.row_count:,}",
        f"{pluralized(written.row_count, 'change')} committed",
        detail,
    )
    if status is None:
        yield "engine", "-", "does not answer", ""
        return
    behind = max(0, written.row_count - status.rows_total)
    yield (
        "engine",
        f"{status.rows_total:,}",
        f"{pluralized(status.rows_total, 'row')} read",
        f"{status.phase}, epoch {status.epoch}, {behind:,} behind the shop",
    )
    if rows := _snapshot_text(status, ""):
        yield "snapshot", rows, "of the rows", f"{status.snapshots_unfinished} tables to go"
    pressure = ", backpressure" if status.backpressure else ""
    yield (
        "memory",
        size_text(status.memory_used_bytes),
        "queued",
        f"of {size_text(status.memory_limit_bytes)}{pressure}",
    )
    yield (
        "bucket",
        f"{status.objects_total:,}",
        f"{pluralized(status.objects_total, 'object')} visible",
        f"{size_text(status.bytes_total)}, {_lag_text(status)}",
    )


def _tables(written: Written) -> RenderableType:
    tables = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    tables.add_column("table", no_wrap=True, min_width=12)
    for title in ("inserted", "updated", "deleted"):
        tables.add_column(title, justify="right", no_wrap=True, min_width=10)
    for table in sorted({table for table, _ in written.rows}):
        counts = (written.rows.get((table, op), 0) for op in "cud")
        tables.add_row(table, *(f"{count:,}" for count in counts))
    return tables


def _lag_text(status: Status) -> str:
    if status.durable_lag_seconds is None:
        return "nothing durable yet"
    if not status.durable_lag_seconds:
        return "everything read is durable"
    return f"durable up to {status.durable_lag_seconds:.1f} s ago"


def _snapshot_text(status: Status, before: str) -> str:
    """How far the snapshots are that are being read; empty where none is."""
    found = status.snapshots_in_all
    return "" if found is None else f"{before}{found.share:.0%}"
