"""Grafana's JSON of the dashboard: `python -m grafana.dashboard` writes it.

Strategy: `grafana.panels` says what is shown. This module turns it into Grafana's own types, which
the foundation SDK generates from Grafana's schema, for release 11.6. So mypy refuses a field that
Grafana does not know. The result is committed, because whoever imports it needs no Python.

Invariant: the same panels give the same bytes.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Final, assert_never

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from grafana.panels import ROWS, Figure, Plot, Query, Step

FILE: Final = Path(__file__).parent / "dashboards" / "tailrace.json"

_SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_FIGURE_HEIGHT: Final = 4
_PLOT_HEIGHT: Final = 8


def make_dashboard() -> models.Dashboard:
    """The dashboard as Grafana's types."""
    builder = (
        dashboard.Dashboard("Tailrace")
        .uid("tailrace")
        .description("A database's changes on their way into S3: lag, slot, bucket, snapshots.")
        .tags(["tailrace"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
        .with_variable(_of_label("job", "tailrace_build_info"))
        .with_variable(_of_label("instance", 'tailrace_build_info{job=~"$job"}'))
    )
    numbers = itertools.count(1)
    for row in ROWS:
        builder = builder.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            builder = builder.with_panel(_built(panel).id(next(numbers)))
    return builder.build()


def text() -> str:
    """The dashboard's JSON, as it is committed."""
    return JSONEncoder(sort_keys=True, indent=2).encode(make_dashboard()) + "\n"


def _of_label(label: str, series: str) -> dashboard.QueryVariable:
    """A choice among the values that `label` has in `series`; at first all of them."""
    return (
        dashboard.QueryVariable(label)
        .query(f"label_values({series}, {label})")
        .datasource(_SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _built(panel: Figure | Plot) -> stat.Panel | timeseries.Panel:
    match panel:
        case Figure():
            return _figure(panel)
        case Plot():
            return _plot(panel)
        case _:
            assert_never(panel)


def _figure(figure: Figure) -> stat.Panel:
    mode = common_models.BigValueTextMode
    return (
        stat.Panel()
        .title(figure.title)
        .description(figure.description)
        .datasource(_SOURCE)
        .height(_FIGURE_HEIGHT)
        .span(figure.width)
        .with_target(_target("A", figure.query).instant())
        .unit(figure.unit)
        .no_value("not known yet")
        .thresholds(_thresholds(figure.first_colour, figure.steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .color_mode(common_models.BigValueColorMode.BACKGROUND)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .text_mode(mode.VALUE_AND_NAME if figure.is_named else mode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _plot(plot: Plot) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(plot.title)
        .description(plot.description)
        .datasource(_SOURCE)
        .height(_PLOT_HEIGHT)
        .span(plot.width)
        .unit(plot.unit)
        .min(0)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
        .line_width(1)
        .fill_opacity(30 if plot.is_stacked else 5)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
    )
    if plot.is_stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    for letter, query in zip(ascii_uppercase, plot.queries, strict=False):
        panel = panel.with_target(_target(letter, query).range())
    return panel


def _target(letter: str, query: Query) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .ref_id(letter)
        .expr(query.expression)
        .legend_format(query.legend)
        .datasource(_SOURCE)
    )


def _thresholds(first_colour: str, steps: Sequence[Step]) -> dashboard.ThresholdsConfig:
    first = models.Threshold(value=None, color=first_colour)
    later = [models.Threshold(value=step.at, color=step.colour) for step in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps([first, *later])


if __name__ == "__main__":
    FILE.write_text(text())
