"""The result as tables for a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from load_tests.result import Group, ScenarioResult
from load_tests.sheets import (
    Sheet,
    facts_text,
    notes,
    outcome_text,
    phases_text,
    ratios_sheet,
    runs_sheet,
    targets_sheet,
    verification_text,
)

_STYLES = {
    "faint": "dim",
    "strong": "bold",
    "missed": "red",
    "not comparable": "yellow",
    "not measured": "yellow",
}


def print_scenario(output: Console, scenario: ScenarioResult, cpu_count: int) -> None:
    """Everything of one scenario."""
    output.rule(f"{scenario.name}: {scenario.title}", align="left")
    if scenario.outcome != "complete":
        output.print(f"[yellow]{escape(outcome_text(scenario))}[/]", soft_wrap=True)
    if scenario.outcome == "not run":
        output.print(f"to measure it: {scenario.command}", soft_wrap=True)
    for name, why in scenario.absent.items():
        output.print(f"[yellow]without {name}[/]: {escape(why)}", soft_wrap=True)
    for group in scenario.groups:
        _print_group(output, group, cpu_count)


def _print_group(output: Console, group: Group, cpu_count: int) -> None:
    for sheet in (runs_sheet(group), ratios_sheet(group), targets_sheet(group)):
        if sheet.rows:
            output.print(_table(sheet))
    for text in (phases_text(group), facts_text(group)):
        if text:
            output.print(text, soft_wrap=True)
    for text in notes(group, cpu_count):
        output.print(f"[yellow]note[/]: {escape(text)}", soft_wrap=True)
    is_right = group.verification is not None and group.verification.is_right
    style = "green" if is_right else "bold red"
    output.print(f"[{style}]{escape(verification_text(group))}[/]", soft_wrap=True)


def _table(sheet: Sheet) -> Table:
    table = Table(title=sheet.title, title_justify="left")
    for number, heading in enumerate(sheet.columns):
        is_text = number < sheet.text_columns
        # Where a terminal is too narrow, the figures' headings fold, but no name is cut.
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=is_text)
    for row in sheet.rows:
        table.add_row(*row.cells, style=_STYLES.get(row.kind, ""))
    return table
