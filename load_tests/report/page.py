"""The report's page: the result as tables and charts, from a template."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from load_tests.report.charts import Chart, charts
from load_tests.result import ENGINE, Group, Result, ScenarioResult, VerdictOutcome
from load_tests.sheets import (
    Sheet,
    facts_text,
    notes,
    outcome_text,
    overview_sheet,
    phases_text,
    ratios_sheet,
    runs_sheet,
    verification_text,
)

_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class _GroupView:
    name: str
    sheets: tuple[Sheet, ...]
    runs: Sheet
    texts: tuple[str, ...]
    notes: tuple[str, ...]
    verification: str
    is_right: bool
    commands: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _ScenarioView:
    result: ScenarioResult
    outcome: str
    charts: tuple[Chart, ...]
    groups: tuple[_GroupView, ...]


def report_path(result_path: Path) -> Path:
    """Beside the result."""
    return result_path.with_suffix(".html")


def write_report(result: Result, result_path: Path) -> Path:
    """Write the report of what is measured so far, in one step; its path."""
    path = report_path(result_path)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(page(result, result_path.name))
    os.replace(partial, path)  # noqa: PTH105 - the pair reads as one step
    return path


def page(result: Result, result_name: str) -> str:
    """The report as one HTML document."""
    environment = Environment(
        loader=PackageLoader("load_tests.report", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    views = tuple(_view(scenario, result) for scenario in result.scenarios)
    return environment.get_template("report.html.j2").render(
        result=result,
        result_name=result_name,
        memory_gib=f"{result.machine.memory_bytes / _GIB:.0f}",
        began=result.began[:16].replace("T", " "),
        command=" ".join(("python -m load_tests", *result.arguments)),
        scenarios=[view for view in views if view.groups],
        others=[view for view in views if not view.groups],
        counts=_counts(result),
        overview=overview_sheet(result.scenarios),
        engine=ENGINE,
    )


def _counts(result: Result) -> dict[str, int]:
    verdicts = [
        verdict.outcome
        for scenario in result.scenarios
        for group in scenario.groups
        for verdict in group.verdicts
    ]
    return {name: verdicts.count(name) for name in get_args(VerdictOutcome)}


def _view(scenario: ScenarioResult, result: Result) -> _ScenarioView:
    return _ScenarioView(
        result=scenario,
        outcome=outcome_text(scenario),
        charts=charts(scenario),
        groups=tuple(_group_view(group, result.machine.cpu_count) for group in scenario.groups),
    )


def _group_view(group: Group, cpu_count: int) -> _GroupView:
    commands = {run.reader: " ".join(run.command) for run in group.runs}
    if group.verification is not None:
        commands["verification"] = " ".join(group.verification.command)
    sheets = (ratios_sheet(group),)
    return _GroupView(
        name=group.name,
        sheets=tuple(sheet for sheet in sheets if sheet.rows),
        runs=runs_sheet(group),
        texts=tuple(text for text in (phases_text(group), facts_text(group)) if text),
        notes=notes(group, cpu_count),
        verification=verification_text(group),
        is_right=group.verification is not None and group.verification.is_right,
        commands=tuple(commands.items()),
    )
