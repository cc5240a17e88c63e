"""The charts of a scenario: rates, CPU by who used it, targets, and what was seen over time.

Strategy: every chart is drawn from the result's runs and verdicts alone. A chart that would show
nothing is not drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from load_tests.quantities import QUANTITIES, quantity
from load_tests.report.ink import BAD, COLOURS, GOOD, GRID, TEXT, new_figure, settings, svg
from load_tests.result import ENGINE, Group, ScenarioResult, Verdict
from load_tests.run import Run, Series

_MIB = 1024 * 1024
_POINTS_MAX = 600
_ROW_INCHES = 0.3
_HEAD_INCHES = 0.75
# Further on either side of its bound, a target is drawn at the edge.
_FAR = 32.0
# Of whom a row's CPU is, in colours that no reader has.
_CPU = (("own_cpu", "reader"), ("walsender_cpu", "walsender"), ("s3_cpu", "S3 server"))
_CPU_COLOURS = COLOURS[-len(_CPU) :]
_READER_COLOURS = COLOURS[: -len(_CPU)]


@dataclass(frozen=True, slots=True)
class Chart:
    """An SVG element, and what it shows in words."""

    title: str
    svg: str


def charts(scenario: ScenarioResult) -> tuple[Chart, ...]:
    """All charts of a scenario that have something to show."""
    groups = [group for group in scenario.groups if any(run.round for run in group.runs)]
    with mpl.rc_context(settings()):
        return tuple(_all(scenario, groups)) if groups else ()


def _all(scenario: ScenarioResult, groups: Sequence[Group]) -> Iterator[Chart]:
    name = f"chart-{scenario.name}"
    if _has(groups, "rate"):
        yield Chart("Rows a second, whole process", _rates(groups, f"{name}-rate"))
    if _has(groups, "own_cpu"):
        yield Chart("CPU a row, by who used it", _cpu(groups, f"{name}-cpu"))
    verdicts = [(group, each) for group in groups for each in group.verdicts if each.spread]
    if verdicts:
        yield Chart("Measured against targets", _targets(verdicts, f"{name}-targets"))
    for number, group in enumerate(groups):
        for key, runs in _series(group).items():
            first = runs[0].series[key]
            title = f"{first.text[:1].upper()}{first.text[1:]} over time"
            if len(groups) > 1:
                title += f": {group.name}"
            yield Chart(title, _over_time(runs, key, f"{name}-{number}-{key}"))


def _has(groups: Sequence[Group], name: str) -> bool:
    each = QUANTITIES[name]
    return any(each.of(run) is not None for group in groups for run in group.runs if run.round)


def _rates(groups: Sequence[Group], name: str) -> str:
    """A bar a reader, as long as the median; a dot a round, so that the spread is seen."""
    each = QUANTITIES["rate"]
    rows = _rows(groups)
    figure = new_figure(_HEAD_INCHES + _ROW_INCHES * len(rows))
    axes = figure.subplots()
    for place, (group, reader) in enumerate(rows):
        values = group.values(reader, "rate")
        if not values:
            continue
        axes.barh(place, median(values), height=0.62, color=_colour(groups, reader), alpha=0.85)
        axes.plot(values, [place] * len(values), "o", color=TEXT, markersize=2.6, alpha=0.7)
        axes.annotate(
            each.shown(median(values)),
            (max(values), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    _finish_bars(axes, rows, "rows/s; bar: median, dots: rounds")
    return svg(figure, name)


def _cpu(groups: Sequence[Group], name: str) -> str:
    """Stacked: the reader's, the walsender's, the S3 server's."""
    rows = _rows(groups)
    figure = new_figure(_HEAD_INCHES + 0.3 + _ROW_INCHES * len(rows))
    axes = figure.subplots()
    for number, (key, label) in enumerate(_CPU):
        lefts = [_sum_before(group, reader, number) for group, reader in rows]
        widths = [_median(group, reader, key) for group, reader in rows]
        axes.barh(
            range(len(rows)),
            widths,
            left=lefts,
            height=0.62,
            color=_CPU_COLOURS[number],
            label=label,
        )
    for place, (group, reader) in enumerate(rows):
        total = _sum_before(group, reader, len(_CPU))
        axes.annotate(
            f"{total:.1f}",
            (total, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    _finish_bars(axes, rows, "µs CPU a row, medians")
    figure.legend(loc="outside upper left", ncols=len(_CPU))
    return svg(figure, name)


def _targets(verdicts: Sequence[tuple[Group, Verdict]], name: str) -> str:
    """How far on the good side of its bound each target is: 1 is the bound."""
    many = len({group.name for group, _ in verdicts}) > 1
    figure = new_figure(_HEAD_INCHES + 0.4 * len(verdicts))
    axes = figure.subplots()
    for place, (group, verdict) in enumerate(verdicts):
        spread = verdict.spread
        assert spread is not None, "only measured ones are drawn"
        ends = sorted(_goodness(verdict, value) for value in (spread.least, spread.most))
        colour = GOOD if verdict.outcome == "met" else BAD
        axes.plot(ends, [place, place], color=colour, linewidth=3, alpha=0.4)
        axes.plot([_goodness(verdict, spread.median)], [place], "o", color=colour, markersize=6)
        label = _target_label(verdict)
        axes.text(
            0.0,
            place - 0.34,
            f"{group.name}: {label}" if many else label,
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
        )
    axes.axvline(1.0, color=TEXT, linewidth=1)
    axes.set_xscale("log", base=2)
    low, high = axes.get_xlim()
    axes.set_xlim(max(min(low, 1 / 3), 1 / _FAR), min(max(high, 3.0), _FAR))
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(_factor))
    axes.set_ylim(len(verdicts) - 0.6, -0.7)
    axes.set_yticks([])
    axes.set_xlabel("missed by a factor of  |  met by a factor of")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    return svg(figure, name)


def _factor(value: float, _: int) -> str:
    return f"{value:g}" if value >= 1 else f"{1 / value:g}"


def _goodness(verdict: Verdict, value: float) -> float:
    """Above 1 where the target is met, within what the chart shows."""
    target = verdict.target
    ratio = value / target.bound if value else 1 / _FAR
    good = ratio if target.direction == "at least" else 1 / ratio
    return min(max(good, 1 / _FAR), _FAR)


def _target_label(verdict: Verdict) -> str:
    target, spread = verdict.target, verdict.spread
    assert spread is not None, "only measured ones are drawn"
    to = target.peer or target.baseline
    each = quantity(target.quantity)
    divisor = 1.0 if to else each.divisor
    sign = "≥" if target.direction == "at least" else "≤"
    unit = f" × {target.peer}" if target.peer else "" if target.baseline else f" {each.unit}"
    figures = f"{spread.median / divisor:.3g}{unit}, target {sign} {target.bound / divisor:.3g}"
    return f"{target.text} {figures}"


def _over_time(runs: Sequence[Run], key: str, name: str) -> str:
    """One line a reader, of its last round."""
    figure = new_figure(2.4)
    axes = figure.subplots()
    divisor, unit = 1.0, runs[0].series[key].unit
    if unit == "bytes":
        divisor, unit = _MIB, "MiB"
    for run in runs:
        times, values = _thinned(run.series[key])
        axes.plot(
            times,
            [value / divisor for value in values],
            color=_reader_colour([each.reader for each in runs], run.reader),
            label=run.reader,
        )
    axes.set_xlabel("seconds since the start of the run")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=4)
    return svg(figure, name)


def _series(group: Group) -> dict[str, list[Run]]:
    """By the name of the series: the last run of every reader that has it, the engine last."""
    found: dict[str, list[Run]] = {}
    for reader in group.readers:
        runs = group.counted(reader)
        for key, series in runs[-1].series.items() if runs else ():
            if series.times:
                found.setdefault(key, []).append(runs[-1])
    return found


def _thinned(series: Series) -> tuple[Sequence[float], Sequence[float]]:
    """At most so many points as can be seen; the highest of each stretch, for peaks must stay."""
    step = -(-len(series.times) // _POINTS_MAX)
    if step <= 1:
        return series.times, series.values
    starts = range(0, len(series.times), step)
    return (
        [series.times[start] for start in starts],
        [max(series.values[start : start + step]) for start in starts],
    )


def _rows(groups: Sequence[Group]) -> list[tuple[Group, str]]:
    return [
        (group, reader) for group in groups for reader in group.readers if group.counted(reader)
    ]


def _finish_bars(axes: Axes, rows: Sequence[tuple[Group, str]], label: str) -> None:
    """Readers' names at the left, groups apart by a line, room for figures at the right."""
    many = len({group.name for group, _ in rows}) > 1
    labels = []
    for place, (group, reader) in enumerate(rows):
        is_first = place == 0 or rows[place - 1][0] is not group
        labels.append(f"{group.name}  {reader}" if many and is_first else reader)
        if many and is_first and place:
            axes.axhline(place - 0.5, color=GRID, linewidth=0.8)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _thousands(value: float, _: int) -> str:
    return f"{value / 1000:,g} k" if abs(value) >= 10_000 else f"{value:,g}"


def _median(group: Group, reader: str, key: str) -> float:
    values = group.values(reader, key)
    return median(values) if values else 0.0


def _sum_before(group: Group, reader: str, count: int) -> float:
    return sum(_median(group, reader, key) for key, _ in _CPU[:count])


def _colour(groups: Sequence[Group], reader: str) -> str:
    return _reader_colour([name for group in groups for name in group.readers], reader)


def _reader_colour(readers: Sequence[str], reader: str) -> str:
    """The engine has a colour of its own, peers take the others as they come."""
    peers = [name for name in dict.fromkeys(readers) if name != ENGINE]
    if reader == ENGINE:
        return _READER_COLOURS[0]
    return _READER_COLOURS[1 + peers.index(reader) % (len(_READER_COLOURS) - 1)]
