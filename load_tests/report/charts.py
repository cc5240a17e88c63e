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
from load_tests.report.ink import BAD, CARD, COLOURS, FAINT, GOOD, TEXT, new_figure, settings, svg
from load_tests.result import ENGINE, Group, ScenarioResult, Verdict
from load_tests.run import Series

_MIB = 1024 * 1024
_POINTS_MAX = 600
_ROW_INCHES = 0.3
_HEAD_INCHES = 0.75
_HEADING_ROWS = 0.9
# Further on either side of its bound, a target is drawn at the edge.
_FAR = 32.0
# Of whom a row's CPU is, in colours that no reader has.
_CPU = (("own_cpu", "reader"), ("walsender_cpu", "walsender"), ("s3_cpu", "S3 server"))
_CPU_COLOURS = COLOURS[-len(_CPU) :]
_READER_COLOURS = COLOURS[: -len(_CPU)]
_VERDICT_COLOURS = {"met": GOOD, "missed": BAD}


@dataclass(frozen=True, slots=True)
class _Bar:
    """One reader's place in a chart of bars."""

    place: float
    group: Group
    reader: str


@dataclass(frozen=True, slots=True)
class _Line:
    """One run's series."""

    label: str
    colour: str
    series: Series


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
        yield Chart("Rows a second, whole process", _medians(groups, "rate", f"{name}-rate"))
    if _has(groups, "own_cpu"):
        yield Chart("CPU a row, by who used it", _cpu(groups, f"{name}-cpu"))
    if len(groups) > 1 and _has(groups, "streaming_cpu"):
        chart = _medians(groups, "streaming_cpu", f"{name}-streaming-cpu")
        yield Chart(f"{ENGINE}'s CPU a row while streaming", chart)
    verdicts = [(group, each) for group in groups for each in group.verdicts if each.spread]
    if verdicts:
        yield Chart("Measured against targets", _targets(verdicts, f"{name}-targets"))
    for key, lines in _lines(groups).items():
        first = lines[0].series
        title = f"{first.text[:1].upper()}{first.text[1:]} over time"
        yield Chart(title, _over_time(lines, f"{name}-{key}"))


def _has(groups: Sequence[Group], name: str) -> bool:
    each = QUANTITIES[name]
    return any(each.of(run) is not None for group in groups for run in group.runs if run.round)


def _medians(groups: Sequence[Group], key: str, name: str) -> str:
    """A bar a reader, as long as the median; a dot a round, so that the spread is seen."""
    each = QUANTITIES[key]
    bars = _bars(groups, key)
    figure = new_figure(_HEAD_INCHES + _ROW_INCHES * (bars[-1].place + 1))
    axes = figure.subplots()
    for bar in bars:
        values = bar.group.values(bar.reader, key)
        axes.barh(bar.place, median(values), height=0.62, color=_colour(groups, bar.reader))
        axes.plot(values, [bar.place] * len(values), "o", color=TEXT, markersize=2.6, alpha=0.7)
        _annotate(axes, each.shown(median(values)), max(values), bar.place)
    _finish_bars(axes, bars, f"{each.unit}; bar: median, dots: rounds")
    return svg(figure, name)


def _cpu(groups: Sequence[Group], name: str) -> str:
    """Stacked: the reader's, the walsender's, the S3 server's."""
    bars = _bars(groups, "own_cpu")
    figure = new_figure(_HEAD_INCHES + 0.3 + _ROW_INCHES * (bars[-1].place + 1))
    axes = figure.subplots()
    for number, (key, label) in enumerate(_CPU):
        axes.barh(
            [bar.place for bar in bars],
            [_median(bar, key) for bar in bars],
            left=[_sum_before(bar, number) for bar in bars],
            height=0.62,
            color=_CPU_COLOURS[number],
            label=label,
        )
    for bar in bars:
        total = _sum_before(bar, len(_CPU))
        _annotate(axes, f"{total:,.1f}", total, bar.place)
    _finish_bars(axes, bars, "µs CPU a row, medians")
    figure.legend(loc="outside upper left", ncols=len(_CPU))
    return svg(figure, name)


def _annotate(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)


def _targets(verdicts: Sequence[tuple[Group, Verdict]], name: str) -> str:
    """How far on the good side of its bound each target is: 1 is the bound."""
    groups = list({group.name: group for group, _ in verdicts}.values())
    figure = new_figure(_HEAD_INCHES + 0.4 * len(verdicts))
    axes = figure.subplots()
    for place, (group, verdict) in enumerate(verdicts):
        spread = verdict.spread
        assert spread is not None, "only measured ones are drawn"
        ends = sorted(_goodness(verdict, value) for value in (spread.least, spread.most))
        colour = _VERDICT_COLOURS.get(verdict.outcome, FAINT)
        axes.plot(ends, [place, place], color=colour, linewidth=3, alpha=0.4)
        axes.plot([_goodness(verdict, spread.median)], [place], "o", color=colour, markersize=6)
        label = _target_label(verdict)
        axes.text(
            0.0,
            place - 0.34,
            f"{_label(groups, group)}: {label}" if len(groups) > 1 else label,
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            bbox={"facecolor": CARD, "edgecolor": "none", "pad": 1.0},
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
    of = "" if target.reader == ENGINE else f"{target.reader}: "
    return f"{of}{target.text} {figures}"


def _over_time(lines: Sequence[_Line], name: str) -> str:
    """One figure of several runs."""
    figure = new_figure(2.4)
    axes = figure.subplots()
    divisor, unit = 1.0, lines[0].series.unit
    if unit == "bytes":
        divisor, unit = _MIB, "MiB"
    for line in lines:
        times, values = _thinned(line.series)
        scaled = [value / divisor for value in values]
        axes.plot(times, scaled, color=line.colour, label=line.label)
    axes.set_xlabel("seconds since the start of the run")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.grid(axis="y")
    if len(lines) > 1:
        figure.legend(loc="outside upper left", ncols=min(len(lines), 4))
    return svg(figure, name)


def _lines(groups: Sequence[Group]) -> dict[str, list[_Line]]:
    """By the series' names: each reader's last run, or, of several groups, the engine's alone."""
    found: dict[str, list[_Line]] = {}
    for number, group in enumerate(groups):
        for reader in group.readers if len(groups) == 1 else (ENGINE,):
            runs = group.counted(reader)
            for key, series in runs[-1].series.items() if runs else ():
                if series.times:
                    label = reader if len(groups) == 1 else _label(groups, group)
                    colour = (
                        _colour(groups, reader)
                        if len(groups) == 1
                        else COLOURS[number % len(COLOURS)]
                    )
                    found.setdefault(key, []).append(_Line(label, colour, series))
    return found


def _label(groups: Sequence[Group], group: Group) -> str:
    """As short as tells it from the others."""
    is_one_server = len({each.server for each in groups}) == 1
    return group.variant if group.variant and is_one_server else group.name


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


def _bars(groups: Sequence[Group], key: str) -> list[_Bar]:
    """Of those that have a quantity, one below the other; of several groups, below their names."""
    bars: list[_Bar] = []
    place = 0.0
    for group in groups:
        place += _HEADING_ROWS if len(groups) > 1 else 0.0
        for reader in group.readers:
            if group.values(reader, key):
                bars.append(_Bar(place, group, reader))
                place += 1.0
    return bars


def _finish_bars(axes: Axes, bars: Sequence[_Bar], label: str) -> None:
    """Readers' names at the left, groups' names above, room for figures at the right."""
    groups = list({id(bar.group): bar.group for bar in bars}.values())
    for group in groups if len(groups) > 1 else ():
        first = next(bar for bar in bars if bar.group is group)
        axes.text(
            0.0,
            first.place - 0.75,
            _label(groups, group),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            fontweight="bold",
        )
    axes.set_yticks([bar.place for bar in bars], [bar.reader for bar in bars])
    axes.set_ylim(bars[-1].place + 0.6, -0.6)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _thousands(value: float, _: int) -> str:
    return f"{value / 1000:,g} k" if abs(value) >= 10_000 else f"{value:,g}"


def _median(bar: _Bar, key: str) -> float:
    values = bar.group.values(bar.reader, key)
    return median(values) if values else 0.0


def _sum_before(bar: _Bar, count: int) -> float:
    return sum(_median(bar, key) for key, _ in _CPU[:count])


def _colour(groups: Sequence[Group], reader: str) -> str:
    """The engine has a colour of its own, peers take the others as they come."""
    names = dict.fromkeys(name for group in groups for name in group.readers)
    peers = [name for name in names if name != ENGINE]
    if reader == ENGINE:
        return _READER_COLOURS[0]
    return _READER_COLOURS[1 + peers.index(reader) % (len(_READER_COLOURS) - 1)]
