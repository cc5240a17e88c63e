"""Metrics: the contract's names, bounded labels, and honest values before there are any."""

import math
import re
import sys
from collections.abc import Iterator
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from engine.model.batch import Operations
from engine.model.errors import InvariantBroken
from engine.model.schema import TableName
from engine.model.snapshot_source import HeldTable
from engine.operate.lag import Amount, Lag
from engine.operate.metrics import ERROR_CODES_MAX, OTHER, TABLE_LABELS_MAX, Metrics
from engine.operate.status import Phase
from engine.snapshot.progress import Progress
from engine.sources.postgres.source import MEASURES
from small_bucket import ORDERS
from small_snapshot import relation

SECOND = 1_000_000

CONTRACT = {
    "tailrace_connected",
    "tailrace_rows_total",
    "tailrace_lag_seconds",
    "tailrace_lag_bytes",
    "tailrace_last_message_timestamp_seconds",
    "tailrace_slot_retained_bytes",
    "tailrace_slot_safe_bytes",
    "tailrace_queue_bytes",
    "tailrace_queue_capacity_bytes",
    "tailrace_snapshot_rows_total",
    "tailrace_snapshot_rows_estimate",
    "tailrace_backpressure_seconds_total",
    "tailrace_chunks_total",
    "tailrace_chunk_bytes",
    "tailrace_commit_to_visible_seconds",
    "tailrace_publish_seconds",
    "tailrace_publish_errors_total",
    "tailrace_publishes_in_flight",
    "tailrace_tables_not_captured",
    "tailrace_durable_timestamp_seconds",
    "tailrace_durable_lag_seconds",
    "tailrace_durable_lag_bytes",
    "tailrace_phase",
    "tailrace_journal_entries_total",
    "tailrace_gaps_total",
    "tailrace_superseded_total",
    "tailrace_schema_changes_total",
}
"""What dashboards, alerts and the load tests ask for."""


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry, release="0.1.0", measures=MEASURES)


def families(registry: CollectorRegistry) -> Iterator[Metric]:
    text = exposition(registry)
    yield from text_string_to_metric_families(text)  # type: ignore[no-untyped-call]


def exposition(registry: CollectorRegistry) -> str:
    return bytes(generate_latest(registry)).decode()  # type: ignore[no-untyped-call]


def full_name(family: Metric) -> str:
    return family.name + ("_total" if family.type == "counter" else "")


def test_every_metric_of_the_contract_is_declared(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    declared = {full_name(family) for family in families(registry)}

    assert declared >= CONTRACT


def test_names_follow_the_openmetrics_rules(metrics: Metrics, registry: CollectorRegistry) -> None:
    for family in families(registry):
        if family.name.startswith("process_"):
            continue
        assert re.fullmatch(r"tailrace_[a-z_]+", family.name)
        assert re.fullmatch(r"(?:[A-Z1][^\s.]*)(?: \S+)*(?<!\.)", family.documentation)
        assert not re.search(r"(milli|micro|_ms|_us|_kb|_mb|_minutes|_count)(_|$)", family.name)
        assert not family.name.endswith("_total"), "only the counter's sample says _total"


def test_rows_are_counted_by_table_and_operation(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.rows(TableName("public", "orders"), Operations(c=3, u=2))
    metrics.rows(TableName("public", "orders"), Operations(c=4, d=1))

    def rows(op: str) -> float | None:
        return registry.get_sample_value(
            "tailrace_rows_total", {"table": "public.orders", "op": op}
        )

    assert (rows("c"), rows("u"), rows("d"), rows("t")) == (7, 2, 1, None)


def test_tables_beyond_the_cap_share_one_label(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    for index in range(TABLE_LABELS_MAX + 5):
        metrics.rows(TableName("public", f"t{index}"), Operations(c=1))
        metrics.chunk(f"public.t{index}", "age", 100)
        metrics.published(f"public.t{index}", 0.1, 100, 0, 0)
        metrics.schema_change(f"public.t{index}", "column added")
    metrics.rows(TableName("public", "t0"), Operations(c=1))

    tables = {
        sample.labels["table"]
        for family in families(registry)
        for sample in family.samples
        if "table" in sample.labels
    }
    assert len(tables) == TABLE_LABELS_MAX + 1
    value = registry.get_sample_value
    assert value("tailrace_rows_total", {"table": OTHER, "op": "c"}) == 5
    assert value("tailrace_rows_total", {"table": "public.t0", "op": "c"}) == 2


def test_snapshots_leave_the_names_to_tables_that_get_rows(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    for index in range(TABLE_LABELS_MAX + 5):
        metrics.snapshot_rows(TableName("public", f"idle{index}"), 7)

    metrics.rows(TableName("public", "orders"), Operations(c=1))

    value = registry.get_sample_value
    assert value("tailrace_rows_total", {"table": "public.orders", "op": "c"}) == 1
    assert value("tailrace_snapshot_rows_total", {"table": OTHER}) == 5 * 7


def test_error_codes_are_capped_too(metrics: Metrics, registry: CollectorRegistry) -> None:
    for index in range(ERROR_CODES_MAX + 3):
        metrics.publish_error(f"Code{index}", retryable=True)
    metrics.publish_error("", retryable=False)

    labels = {"code": OTHER, "retryable": "true"}
    assert registry.get_sample_value("tailrace_publish_errors_total", labels) == 3


def test_the_time_to_visibility_is_from_the_newest_commit(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.published("public.orders", 0.25, 4096, 100 * SECOND, 130 * SECOND)

    value = registry.get_sample_value
    assert value("tailrace_commit_to_visible_seconds_sum") == 30
    assert value("tailrace_commit_to_visible_seconds_bucket", {"le": "25.0"}) == 0
    assert value("tailrace_commit_to_visible_seconds_bucket", {"le": "30.0"}) == 1
    assert value("tailrace_publish_seconds_sum") == 0.25
    assert value("tailrace_published_bytes_total", {"table": "public.orders"}) == 4096
    assert value("tailrace_published_objects_total", {"table": "public.orders"}) == 1


@pytest.mark.parametrize("age", [5.0, 30.0, 90.0])
def test_buckets_stand_at_the_chunks_age_and_just_above(age: float) -> None:
    registry = CollectorRegistry()
    Metrics(registry, chunk_age_seconds=age)

    def has(seconds: float) -> bool:
        labels = {"le": str(seconds)}
        name = "tailrace_commit_to_visible_seconds_bucket"
        return registry.get_sample_value(name, labels) is not None

    assert all(has(age + past) for past in (0, 0.5, 1, 2, 5))
    assert registry.get_sample_value("tailrace_chunk_age_limit_seconds") == age


def test_a_source_whose_clock_is_ahead_gives_no_negative_times(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.published("public.orders", 0.1, 1, 200 * SECOND, 100 * SECOND)

    assert registry.get_sample_value("tailrace_commit_to_visible_seconds_sum") == 0


def test_what_is_not_known_yet_is_not_zero(metrics: Metrics, registry: CollectorRegistry) -> None:
    for name in (
        "lag_seconds",
        "lag_bytes",
        "last_message_timestamp_seconds",
        "slot_retained_bytes",
        "slot_safe_bytes",
        "durable_timestamp_seconds",
        "durable_lag_seconds",
        "epoch",
        "durable_lag_bytes",
    ):
        value = registry.get_sample_value(f"tailrace_{name}")
        assert value is not None
        assert math.isnan(value), name


def test_the_durable_lag_grows_while_the_engine_is_stuck() -> None:
    now = 1000.0
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.lag_of(lambda: Lag(durable=Amount(now - 990)))
    first = registry.get_sample_value("tailrace_durable_lag_seconds")

    now = 1300.0

    assert first == 10
    assert registry.get_sample_value("tailrace_durable_lag_seconds") == 310
    assert math.isnan(registry.get_sample_value("tailrace_durable_lag_bytes") or 0)


def test_exactly_the_present_phase_is_one(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.phase("streaming")
    metrics.phase("reconnecting")

    values = {
        sample.labels["phase"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "tailrace_phase"
    }
    assert values.keys() == set(get_args(Phase))
    assert [phase for phase, value in values.items() if value] == ["reconnecting"]


def test_a_source_measures_itself_under_its_own_names(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.source_gauges({"slot_retained_bytes": 4096, "slot_safe_bytes": math.inf})
    without = registry.get_sample_value("tailrace_slot_safe_bytes")
    metrics.source_gauges({"slot_safe_bytes": 100})

    assert without == math.inf
    assert registry.get_sample_value("tailrace_slot_safe_bytes") == 100
    assert registry.get_sample_value("tailrace_slot_retained_bytes") == 4096


def test_a_measure_that_the_source_did_not_declare_is_named(metrics: Metrics) -> None:
    with pytest.raises(InvariantBroken, match="backlog_bytes, which it does not declare"):
        metrics.source_gauges({"backlog_bytes": 1})


def test_gauges_and_counters_take_what_they_are_given(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.source_connected(True)
    metrics.source_message(5 * SECOND)
    metrics.lag_of(lambda: Lag(Amount(1.5, 300), Amount(2.5, 400)))
    metrics.queue_bytes(10)
    metrics.queue_capacity(20)
    metrics.backpressure(0.5)
    metrics.backpressure(0.25)
    metrics.publishes_in_flight(3)
    metrics.journal_entry("planned")
    metrics.superseded()
    metrics.gaps(1)
    metrics.epoch(4)
    metrics.snapshots_unfinished(2)

    value = registry.get_sample_value
    assert value("tailrace_connected") == 1
    assert value("tailrace_last_message_timestamp_seconds") == 5
    assert value("tailrace_lag_seconds") == 1.5
    assert value("tailrace_lag_bytes") == 300
    assert value("tailrace_durable_lag_seconds") == 2.5
    assert value("tailrace_durable_lag_bytes") == 400
    assert value("tailrace_queue_bytes") == 10
    assert value("tailrace_queue_capacity_bytes") == 20
    assert value("tailrace_backpressure_seconds_total") == 0.75
    assert value("tailrace_publishes_in_flight") == 3
    assert value("tailrace_journal_entries_total", {"kind": "planned"}) == 1
    assert value("tailrace_superseded_total") == 1
    assert value("tailrace_gaps_total") == 1
    assert value("tailrace_epoch") == 4
    assert value("tailrace_snapshots_unfinished") == 2
    assert value("tailrace_build_info", {"release": "0.1.0"}) == 1


def test_no_created_series_double_the_exposition(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.rows(TableName("public", "orders"), Operations(c=1))

    assert "_created" not in exposition(registry)


def test_a_table_whose_snapshot_begins_is_counted_from_0(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    labels = {"table": "public.orders"}
    Progress(metrics).begin(ORDERS, HeldTable(relation(ORDERS), (b"1",), 10, 100), 0.0)

    assert registry.get_sample_value("tailrace_snapshot_rows_total", labels) == 0
    assert registry.get_sample_value("tailrace_snapshot_rows_estimate") == 10


def test_a_table_without_a_label_of_its_own_is_not_kept() -> None:
    metrics = Metrics(CollectorRegistry())
    for number in range(TABLE_LABELS_MAX):
        metrics.rows(TableName("public", f"t{number}"), Operations(c=1))
    late = TableName("public", "late")
    before = sys.getrefcount(late)

    metrics.rows(late, Operations(c=1))

    assert sys.getrefcount(late) == before
