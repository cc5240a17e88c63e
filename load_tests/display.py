"""What the operator sees while it measures: a line a run, what goes on, and how long still."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.markup import escape

from load_tests.quantities import QUANTITIES, quantity
from load_tests.result import Group, Result, ScenarioResult
from load_tests.run import Run
from load_tests.tables import print_scenario

_GIB = 1024**3
# What a line of progress says of a run, where it has it.
_SHOWN = ("wall", "rate", "own_cpu", "peak_rss")


class Display:
    """A terminal, or a log: progress goes to stderr, results to stdout."""

    def __init__(self) -> None:
        self._progress = Console(stderr=True, highlight=False, soft_wrap=True)
        # A file has no width of its own: 80 columns would break every line of the tables.
        self._output = Console(width=None if sys.stdout.isatty() else 168, highlight=False)
        self._scenario_ends = self._all_ends = monotonic()

    def begin(self, result: Result) -> None:
        machine = result.machine
        self._progress.print(
            f"{machine.cpu_count} CPUs ({machine.processor}), "
            f"{machine.memory_bytes / _GIB:.0f} GiB, Linux {machine.kernel}; "
            f"{result.plan.rounds} rounds after a warm-up"
        )

    def scenario(self, scenario: ScenarioResult, *, seconds: float, seconds_after: float) -> None:
        """A scenario begins that takes about `seconds`, and others `seconds_after` it."""
        self._scenario_ends = monotonic() + seconds
        self._all_ends = self._scenario_ends + seconds_after
        self._progress.rule(f"{scenario.name}: {scenario.title}", align="left")
        self._progress.print(
            f"about {_duration(seconds)}, {_duration(seconds + seconds_after)} in all"
        )

    def skipped(self, scenario: ScenarioResult) -> None:
        self._progress.print(f"[yellow]{scenario.name}: {scenario.outcome}[/]: {scenario.why}")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        text = f"{text} [dim]({self._left()})[/]"
        if self._progress.is_terminal:
            with self._progress.status(text):
                yield
        else:
            self._progress.print(f"… {text}")
            yield

    def group(self, group: Group) -> None:
        self._progress.print(f"[bold]{group.name}[/]")

    def note(self, text: str) -> None:
        self._progress.print(f"[yellow]note[/]: {escape(text)}")

    def absent(self, name: str, why: str) -> None:
        self._progress.print(f"[yellow]without {name}[/]: {escape(why)}")

    def run(self, run: Run) -> None:
        found = ((QUANTITIES[name], QUANTITIES[name].of(run)) for name in _SHOWN)
        cells = [f"{each.shown(value)} {each.unit}" for each, value in found if value is not None]
        for name, value in list(run.figures.items())[:3]:
            each = quantity(name)
            cells.append(f"{each.text} {each.shown(value)} {each.unit}")
        number = f"round {run.round}" if run.round else "warm-up"
        self._progress.print(f"{number:>8}  {run.reader:<16} {'  '.join(cells)}")

    def end(self, result: Result, path: Path, report: Path, hint: str) -> None:
        for scenario in result.scenarios:
            print_scenario(self._output, scenario, result.machine.cpu_count)
        if result.outcome != "complete":
            why = result.error or "the result is partial"
            self._progress.print(f"{result.outcome}: {escape(why)}")
        if hint:
            self._progress.print(f"hint: {escape(hint)}")
        self._output.print(f"result: {path}", soft_wrap=True)
        self._output.print(f"report: {report}", soft_wrap=True)

    def _left(self) -> str:
        now = monotonic()
        here, all_ = self._scenario_ends - now, self._all_ends - now
        if all_ <= 0:
            return "should be done by now"
        if all_ - max(here, 0) < 1:
            return f"about {_duration(all_)} left"
        return f"about {_duration(max(here, 0))} left here, {_duration(all_)} in all"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
