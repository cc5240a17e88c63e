"""The result as plain tables of text, for the terminal and for the report alike.

Invariant: nothing is judged or measured here; what has no value shows a dash, or is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from load_tests.quantities import QUANTITIES, Quantity, quantity
from load_tests.result import ENGINE, Depth, Group, ScenarioResult, Spread, Verdict
from load_tests.run import Phases, Run

# The share of the machine's CPU that others may use: room for the kernel's own work and the
# sampler's. When others took two thirds, the ratio of one pair was 0.8, and of the next 1.0.
_FOREIGN_SHARE_MAX = 0.1
# With fewer, what the drain does once is most of it.
_OBJECTS_LEAST = 50
_DASH = "–"
# Of a terminal's line: with more, no heading can be read.
_COLUMNS_MAX = 14
_PROVEN: dict[Depth, str] = {
    "full": "each once, in order",
    "light": "by journal, names, sizes and metadata; no record was read",
}
_RUN_QUANTITIES = (
    "wall",
    "rate",
    "own_cpu",
    "streaming_cpu",
    "walsender_cpu",
    "s3_cpu",
    "other_cpu",
    "peak_rss",
)


@dataclass(frozen=True, slots=True)
class Row:
    """Cells, and how they are shown: `faint` for what does not count, `strong` for what sums up."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table; its first `text_columns` are text, the rest are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    text_columns: int


def runs_sheet(group: Group) -> Sheet:
    """Every run, then the medians of each reader."""
    quantities = _present(group)
    if len(quantities) > _COLUMNS_MAX:
        return _turned_runs_sheet(group, quantities)
    rows = [
        Row(
            (_round_text(run), run.reader, *(each.shown(each.of(run)) for each in quantities)),
            "" if run.is_counted else "faint",
        )
        for run in group.runs
    ]
    rows += [
        Row(("median", reader, *_medians(group, reader, quantities)), "strong")
        for reader in group.readers
        if group.counted(reader)
    ]
    columns = tuple(_heading(each) for each in quantities)
    return Sheet(group.name, ("round", "reader", *columns), tuple(rows), 2)


def _turned_runs_sheet(group: Group, quantities: Sequence[Quantity]) -> Sheet:
    """A row a figure, a column a run: where there are too many figures for a line."""
    readers = [reader for reader in group.readers if len(group.counted(reader)) > 1]
    columns = (
        *(f"{run.reader}, {_round_text(run)}" for run in group.runs),
        *(f"{reader}, median" for reader in readers),
    )
    medians = [_medians(group, reader, quantities) for reader in readers]
    rows = [
        Row(
            (
                each.text,
                each.unit,
                *(each.shown(each.of(run)) for run in group.runs),
                *(found[number] for found in medians),
            )
        )
        for number, each in enumerate(quantities)
    ]
    return Sheet(group.name, ("figure", "unit", *columns), tuple(rows), 2)


def ratios_sheet(group: Group) -> Sheet:
    """The engine divided by each peer: a row a quantity, a column a peer."""
    peers = tuple(group.summary)
    names = dict.fromkeys(name for named in group.summary.values() for name in named)
    rows = tuple(
        Row((quantity(name).text, *(_ratio_text(group.summary[peer].get(name)) for peer in peers)))
        for name in names
    )
    return Sheet("Ratios within rounds", (f"{ENGINE} divided by", *peers), rows, 1)


def targets_sheet(group: Group) -> Sheet:
    """What was promised, and what was measured. The first cell is the outcome."""
    rows = tuple(
        Row((verdict.outcome, *_verdict_cells(verdict)), verdict.outcome)
        for verdict in group.verdicts
    )
    columns = ("", "target", "to", "bound", "measured")
    return Sheet("Targets", columns, rows, 3)


def overview_sheet(scenarios: Sequence[ScenarioResult]) -> Sheet:
    """All targets of all scenarios."""
    rows = tuple(
        Row((verdict.outcome, scenario.name, group.name, *_verdict_cells(verdict)), verdict.outcome)
        for scenario in scenarios
        for group in scenario.groups
        for verdict in group.verdicts
    )
    columns = ("", "scenario", "on", "target", "to", "bound", "measured")
    return Sheet("Targets", columns, rows, 5)


def facts_text(group: Group) -> str:
    """What the group's runs have in common."""
    return "; ".join(
        f"{name.replace('_', ' ')} {value:,.0f}" for name, value in group.facts.items()
    )


def phases_text(group: Group) -> str:
    """The engine's wall time and CPU by phase, medians; empty where its log was not read."""
    phases = [run.phases for run in group.counted(ENGINE) if run.phases is not None]
    if not phases:
        return ""
    parts = []
    for name in ("start", "opening", "streaming", "drain"):
        text = f"{name} {median(getattr(found, f'{name}_seconds') for found in phases):.2f} s"
        cpu = [getattr(found, f"{name}_cpu_seconds") for found in phases]
        if None not in cpu:
            text += f" ({median(cpu):.2f} CPU-s)"
        parts.append(text)
    return f"{ENGINE}'s wall time: {', '.join(parts)}{_an_object(group, phases)} (medians)"


def _an_object(group: Group, phases: Sequence[Phases]) -> str:
    """The drain, as a cost of each object, where it published many."""
    objects = group.verification.objects if group.verification is not None else 0
    if objects < _OBJECTS_LEAST:
        return ""
    text = f": {median(found.drain_seconds for found in phases) * 1e3 / objects:.2f} ms"
    cpu = [found.drain_cpu_seconds for found in phases if found.drain_cpu_seconds is not None]
    if cpu:
        text += f" ({median(cpu) * 1e3 / objects:.2f} CPU-ms)"
    return f"{text} an object"


def notes(group: Group, cpu_count: int) -> tuple[str, ...]:
    """What to know before the figures are believed."""
    # Under a load, the load itself and its backends are most of what others used.
    usages = [run.usage for run in group.runs if run.round > 0 and not run.is_under_load]
    seconds = sum(usage.wall_seconds for usage in usages) * cpu_count
    share = sum(usage.other_cpu_seconds for usage in usages) / seconds if seconds else 0.0
    if share <= _FOREIGN_SHARE_MAX:
        return tuple(group.notes)
    noisy = (
        f"noisy: others used {share:.0%} of the machine's CPU meanwhile; "
        "these rates are not to be trusted"
    )
    return (*group.notes, noisy)


def verification_text(group: Group) -> str:
    found = group.verification
    if found is None:
        return "not verified"
    if found.is_right:
        counted = f"verified: {found.rows:,} rows in {found.objects:,} objects"
        return f"{counted}, {_PROVEN[found.depth]}"
    return f"WRONG: {found.rows:,} rows of {found.rows_due:,}; {found.text.strip()}"


def outcome_text(scenario: ScenarioResult) -> str:
    return f"{scenario.outcome}: {scenario.why}" if scenario.why else scenario.outcome


def _present(group: Group) -> tuple[Quantity, ...]:
    """What at least one run has."""
    figures = dict.fromkeys(name for run in group.runs for name in run.figures)
    found = (QUANTITIES[name] for name in _RUN_QUANTITIES)
    every = (*found, *(quantity(name) for name in figures))
    return tuple(each for each in every if any(each.of(run) is not None for run in group.runs))


def _heading(each: Quantity) -> str:
    return each.text if each.text.startswith(each.unit) else f"{each.text}, {each.unit}"


def _medians(group: Group, reader: str, quantities: Sequence[Quantity]) -> tuple[str, ...]:
    return tuple(each.shown(_median(group.counted(reader), each)) for each in quantities)


def _median(runs: Sequence[Run], each: Quantity) -> float | None:
    values = [value for run in runs if (value := each.of(run)) is not None]
    return median(values) if values else None


def _verdict_cells(verdict: Verdict) -> tuple[str, ...]:
    target = verdict.target
    to = target.peer or target.baseline
    text = target.text if target.reader == ENGINE else f"{target.reader}: {target.text}"
    each = quantity(target.quantity)
    unit = "" if to else f" {each.unit}"

    def shown(value: float) -> str:
        return f"{value:.2f}" if to else each.shown(value)

    sign = "≥" if target.direction == "at least" else "≤"
    measured = _DASH
    if verdict.spread is not None:
        spread = verdict.spread
        measured = f"{shown(spread.median)} ({shown(spread.least)}–{shown(spread.most)}){unit}"
    if verdict.why:
        measured = f"{measured}; {verdict.why}"
    return (text, to, f"{sign} {shown(target.bound)}{unit}", measured)


def _ratio_text(spread: Spread | None) -> str:
    if spread is None:
        return _DASH
    return f"{spread.median:.2f} ({spread.least:.2f}–{spread.most:.2f})"


def _round_text(run: Run) -> str:
    if not run.round:
        return "warm-up"
    return str(run.round) if run.is_counted else f"{run.round}, apart"
