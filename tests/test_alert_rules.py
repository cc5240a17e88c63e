"""Alert rules: each is tried, explained and linked; the dashboard is what its code gives."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry

from engine.operate.metrics import Metrics
from engine.operate.status import READY_PHASES
from engine.sources.postgres.source import MEASURES
from grafana import dashboard, panels
from prometheus_server import promtool

ROOT = Path(__file__).parent.parent
GRAFANA = ROOT / "grafana"
RULES = GRAFANA / "alerts.yaml"
TRIALS = GRAFANA / "alerts_test.yaml"
RUNBOOK = "docs/operations.md"
SEVERITIES = ("critical", "warning", "info")


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def trials() -> Iterator[dict[str, Any]]:
    for test in yaml.safe_load(TRIALS.read_text())["tests"]:
        yield from test["alert_rule_test"]


def metrics() -> dict[str, str]:
    """Every metric of the engine by its name, as its series have it, with its type."""
    registry = CollectorRegistry()
    Metrics(registry, measures=MEASURES).log_lines_dropped(lambda: 0)
    ends = {"counter": "_total", "info": "_info"}
    return {family.name + ends.get(family.type, ""): family.type for family in registry.collect()}


def series_names() -> set[str]:
    found = set[str]()
    for name, of_type in metrics().items():
        ends = ("_bucket", "_count", "_sum") if of_type == "histogram" else ("",)
        found |= {name + end for end in ends}
    return found


def named(text: str) -> set[str]:
    """The metrics that an expression names."""
    return set(re.findall(r"\b(?:tailrace|process)_\w+", text))


def test_rules_and_configuration_are_what_prometheus_takes() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(RULES))
    promtool("check", "config", str(GRAFANA / "prometheus.yml"))


def test_each_alert_fires_when_it_has_to_and_at_no_other_time() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(TRIALS))


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    fires = {trial["alertname"] for trial in trials() if trial["exp_alerts"]}
    rests = {trial["alertname"] for trial in trials() if not trial["exp_alerts"]}

    names = [rule["alert"] for rule in rules()]
    assert sorted(fires) == sorted(rests) == sorted(names)


def test_each_alert_has_a_severity_a_reason_and_texts() -> None:
    text = RULES.read_text()

    for rule in rules():
        name, annotations = rule["alert"], rule["annotations"]
        assert rule["labels"]["severity"] in SEVERITIES, name
        assert set(annotations) == {"summary", "description", "runbook_url"}, name
        assert "$value" in annotations["description"] or name == "TailraceAbsent"
        # The reason of its limits stands above it.
        assert re.search(rf"#[^\n]+\n      - alert: {name}\n", text), name


def test_each_alert_links_to_its_part_of_the_page_and_each_part_has_an_alert() -> None:
    part = (ROOT / RUNBOOK).read_text().split("\n## Alerts\n")[1].split("\n## ")[0]
    headings = re.findall(r"^### (\w+)$", part, re.MULTILINE)

    assert headings == [rule["alert"] for rule in rules()]
    for rule, text in zip(
        rules(), re.split(r"^### \w+$", part, flags=re.MULTILINE)[1:], strict=True
    ):
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK}#{rule['alert'].lower()}"
        starts = re.findall(r"^\*\*(.+?)\*\*", text, re.MULTILINE)
        assert starts == ["What it means.", "What to look at.", "What to do."], rule["alert"]


def test_severities_are_in_the_pages_table() -> None:
    part = (ROOT / RUNBOOK).read_text().split("\n## Alerts\n")[1]

    assert tuple(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)[:3]) == SEVERITIES


def test_the_phases_that_the_rule_calls_ready_are_ready() -> None:
    [rule] = [rule for rule in rules() if rule["alert"] == "TailraceNotReady"]

    [phases] = re.findall(r'phase=~"([\w|]+)"', rule["expr"])

    assert set(phases.split("|")) == READY_PHASES


def test_rules_and_panels_name_only_metrics_that_there_are() -> None:
    expressions = [rule["expr"] for rule in rules()] + list(panels.expressions())

    used = named("\n".join(expressions))

    assert used - series_names() == set()


def test_every_metric_is_in_a_panel() -> None:
    shown = named("\n".join(panels.expressions()))
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}

    # The process's address space says nothing on Linux.
    assert set(metrics()) - shown == {"process_virtual_memory_bytes"}


def test_the_committed_dashboard_is_what_the_code_gives() -> None:
    assert dashboard.FILE.read_text() == dashboard.text(), "run `make dashboard`"


def test_the_dashboard_reads_as_grafanas_own_types() -> None:
    register_default_plugins()

    read = Dashboard.from_json(yaml.safe_load(dashboard.FILE.read_text()))

    assert JSONEncoder(sort_keys=True, indent=2).encode(read) + "\n" == dashboard.text()


def test_panels_have_numbers_of_their_own_and_lie_beside_each_other() -> None:
    board = yaml.safe_load(dashboard.FILE.read_text())
    numbers = [panel["id"] for panel in board["panels"]]

    assert len(numbers) == len(set(numbers)) == sum(1 + len(row.panels) for row in panels.ROWS)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def test_no_two_panels_of_a_row_have_the_same_title_and_each_is_described() -> None:
    for row in panels.ROWS:
        titles = [panel.title for panel in row.panels]
        assert len(titles) == len(set(titles))
        assert all(panel.description.endswith(".") for panel in row.panels)


@pytest.mark.parametrize(
    "path", ["provisioning/datasources/prometheus.yaml", "provisioning/dashboards/tailrace.yaml"]
)
def test_provisioning_is_yaml_of_version_one(path: str) -> None:
    assert yaml.safe_load((GRAFANA / path).read_text())["apiVersion"] == 1
