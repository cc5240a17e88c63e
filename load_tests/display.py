"""What the operator sees: a line a run while it measures, tables at the end."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from load_tests.result import Group, Result, Run, Spread, counted

_MIB = 1024 * 1024

# Of the machine's CPU: room for the kernel's own work and the sampler's. With two thirds taken by
# others, the ratio of one pair was 0.8, of the next 1.0.
_FOREIGN_SHARE_MAX = 0.1

# Figures of one run: heading, value, how it is written.
_COLUMNS: tuple[tuple[str, Callable[[Run], float], str], ...] = (
    ("wall s", lambda run: run.usage.wall_seconds, ".2f"),
    ("rows/s", lambda run: run.rows_per_second, ",.0f"),
    ("own CPU s", lambda run: run.usage.own_cpu_seconds, ".2f"),
    ("walsender CPU s", lambda run: run.usage.walsender_cpu_seconds, ".2f"),
    ("S3 server CPU s", lambda run: run.usage.s3_cpu_seconds, ".2f"),
    ("other CPU s", lambda run: run.usage.other_cpu_seconds, ".2f"),
    ("peak RSS MiB", lambda run: run.usage.peak_rss_bytes / _MIB, ",.0f"),
)

# What the design promises: the ratio's name, its text, the bound, and whether more is better.
_TARGETS: tuple[tuple[str, str, float | None, bool], ...] = (
    ("rate", "rows/s, whole process", None, True),
    ("started_rate", "rows/s, without start-up", 1.5, True),
    ("streaming_rate", "rows/s, streaming alone", None, True),
    ("own_cpu", "own CPU", 0.6, False),
    ("walsender_cpu", "walsender's CPU", None, False),
    ("peak_rss", "peak RSS", None, False),
)


class Display:
    """A terminal, or a log: progress goes to stderr, results to stdout."""

    def __init__(self) -> None:
        self._progress = Console(stderr=True, highlight=False)
        # A file has no width of its own: 80 columns would break every line of the tables.
        self._output = Console(width=None if sys.stdout.isatty() else 132, highlight=False)

    def begin(self, result: Result) -> None:
        machine, plan = result.machine, result.plan
        self._progress.print(
            f"{plan.scenario}: {plan.rows:,} rows, {plan.rounds} rounds, on {machine.cpu_count} "
            f"CPUs ({machine.processor}), {machine.memory_bytes / _MIB / 1024:.0f} GiB"
        )

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        if self._progress.is_terminal:
            with self._progress.status(text):
                yield
        else:
            self._progress.print(f"… {text}")
            yield

    def group(self, group: Group) -> None:
        self._progress.print(f"{group.server}: {group.frame_bytes_mean:.0f} bytes a change")

    def run(self, run: Run) -> None:
        usage = run.usage
        self._progress.print(
            f"{_round(run):>8}  {run.reader:<14} {usage.wall_seconds:6.2f} s "
            f"{run.rows_per_second:>9,.0f} rows/s  {usage.own_cpu_seconds:5.2f} CPU-s"
        )

    def end(self, result: Result, path: Path, hint: str) -> None:
        for group in result.groups:
            self._output.print(_runs_table(group))
            if group.ratios:
                self._output.print(_ratios_table(group))
            self._say_phases(group)
            self._say_noise(group, result.machine.cpu_count)
            self._say_verification(group)
        if result.outcome != "complete":
            self._progress.print(f"{result.outcome}: {result.error or 'the result is partial'}")
        if hint:
            self._progress.print(f"hint: {hint}")
        self._output.print(f"result: {path}", soft_wrap=True)

    def _say_phases(self, group: Group) -> None:
        phases = [run.phases for run in counted(group.runs, "tailrace") if run.phases is not None]
        if phases:
            parts = (
                ("start-up", [found.start_seconds for found in phases]),
                ("opening", [found.opening_seconds for found in phases]),
                ("streaming", [found.streaming_seconds for found in phases]),
                ("drain", [found.drain_seconds for found in phases]),
            )
            texts = [f"{name} {Spread.of(seconds).median:.2f} s" for name, seconds in parts]
            self._output.print(f"tailrace's wall time: {', '.join(texts)} (medians)")

    def _say_noise(self, group: Group, cpu_count: int) -> None:
        usages = [run.usage for run in group.runs if run.round > 0]
        if usages:
            seconds = sum(usage.wall_seconds for usage in usages) * cpu_count
            share = sum(usage.other_cpu_seconds for usage in usages) / seconds
            if share > _FOREIGN_SHARE_MAX:
                self._output.print(
                    f"[yellow]noisy[/]: others used {share:.0%} of the machine's CPU meanwhile; "
                    "these rates are not to be trusted"
                )

    def _say_verification(self, group: Group) -> None:
        if group.verification is None:
            self._output.print("[yellow]not verified[/]")
        elif group.verification.is_right:
            self._output.print(f"verified: {group.verification.rows:,} rows, each once, in order")
        else:
            self._output.print(f"[red]WRONG[/]: {group.verification.text}", soft_wrap=True)


def _round(run: Run) -> str:
    return f"round {run.round}" if run.round else "warm-up"


def _runs_table(group: Group) -> Table:
    table = Table(title=group.server, title_justify="left")
    table.add_column("round")
    table.add_column("reader")
    for heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="right")
    for run in group.runs:
        cells = [format(value(run), form) for _, value, form in _COLUMNS]
        table.add_row(_round(run), run.reader, *cells, style="" if run.round else "dim")
    for reader in ("pg_recvlogical", "tailrace"):
        runs = counted(group.runs, reader)
        if runs:
            table.add_section()
            table.add_row("median", reader, *_medians(runs), style="bold")
    return table


def _medians(runs: Sequence[Run]) -> list[str]:
    return [
        format(Spread.of([value(run) for run in runs]).median, form) for _, value, form in _COLUMNS
    ]


def _ratios_table(group: Group) -> Table:
    table = Table(title="tailrace / pg_recvlogical, by pairs", title_justify="left")
    table.add_column("ratio")
    for heading in ("median", "least", "most", "target", ""):
        table.add_column(heading, justify="right")
    for name, text, bound, is_more_better in _TARGETS:
        spread = group.summary[name]
        figures = [f"{figure:.2f}" for figure in (spread.median, spread.least, spread.most)]
        target, verdict = "", ""
        if bound is not None:
            is_met = spread.median >= bound if is_more_better else spread.median <= bound
            target = f"{'≥' if is_more_better else '≤'} {bound:.2f}"
            verdict = "[green]met[/]" if is_met else "[red]missed[/]"
        table.add_row(text, *figures, target, verdict)
    return table
