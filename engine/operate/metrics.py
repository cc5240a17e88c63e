"""Every metric of the engine, declared once.

Strategy: the pipeline calls typed methods, per batch, chunk, object or entry, never per row.
Children of labelled metrics are looked up once and kept, because `labels()` takes a lock and
builds a key at every call.

Invariant: the number of series is bounded. The first `TABLE_LABELS_MAX` tables keep their names, of
the stream and of snapshots each, and all later ones share the label `OTHER`. So do S3's error codes
after the first `ERROR_CODES_MAX`. Every other label takes one of a few fixed values.

Names follow the OpenMetrics rules: base units as suffix, `_total` on counters only. What is not
known yet is NaN, never 0, so that an alert on a time stamp or a lag does not fire before there is
one.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from engine.model.batch import Operations
from engine.model.errors import InvariantBroken
from engine.model.interfaces import NO_MEASURES, SourceMeasures
from engine.model.printable import printable
from engine.model.schema import TableName
from engine.operate.lag import Lag
from engine.operate.status import Phase

TABLE_LABELS_MAX: Final = 150
"""Tables with a label of their own; all others are counted together as `OTHER`.

With 5,000 tables an exposition took 1.5 times the CPU of one with 100. With 200 labels it took 2.0
times, with 1,000 labels 9 to 10 times.
"""

ERROR_CODES_MAX: Final = 50

OTHER: Final = "_other"

_MICROSECONDS = 1_000_000
_PUBLISH_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_VISIBLE_SECONDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 20, 25, 30, 45, 60, 120, 300, 600, 3600)
_VISIBLE_SECONDS_PAST_AGE = (0, 0.5, 1, 2, 5, 15)
"""The promise is the chunk's age + 0.5 s, so the buckets are dense there. The alert asks for the
bucket at 5 s."""
# A turn of the loop is meant to be under 20 ms.
_LOOP_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
_CHUNK_BYTES = tuple(float(1 << exponent) for exponent in range(10, 30, 2))


class Metrics:
    """The engine's metrics in one registry.

    Everything a table names is given as text, as in the journal; times are Unix microseconds. All
    methods are for the event loop's thread and never wait. `measures` is how the source measures
    its log. `chunk_age_seconds` is when a chunk is cut.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        release: str = "",
        measures: SourceMeasures = NO_MEASURES,
        chunk_age_seconds: float = 30.0,
    ) -> None:
        # A `_created` beside every counter doubles the exposition and nothing reads it.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        ProcessCollector(registry=registry)
        Info("tailrace_build", "The running release", registry=registry).info({"release": release})
        self.registry = registry
        self.measures = measures
        self._table_labels = _BoundedLabels(TABLE_LABELS_MAX)
        # Snapshots come first, in an order of their own: they must not take the names away from the
        # tables that get rows.
        self._snapshot_labels = _BoundedLabels(TABLE_LABELS_MAX)
        self._code_labels = _BoundedLabels(ERROR_CODES_MAX)
        self._alarms = Gauge(
            "tailrace_alarms",
            "Conditions that wait for an operator; /status names them",
            ("code",),
            registry=registry,
        )
        self._source = _SourceMetrics(registry, measures)
        self._snapshots = _SnapshotMetrics(registry)
        self._buffers = _BufferMetrics(registry)
        self._buffers.chunk_age_limit.set(chunk_age_seconds)
        self._destination = _DestinationMetrics(registry, chunk_age_seconds)
        self._durability = _DurabilityMetrics(registry)
        self._lag = _LagMetrics(measures.lag_unit)
        registry.register(self._lag)
        phases = Gauge("tailrace_phase", "1 for the present phase", ("phase",), registry=registry)
        self._phases = {name: phases.labels(name) for name in get_args(Phase)}
        self._loop = Histogram(
            "tailrace_loop_lag_seconds",
            "How late a timer of the event loop fires, tried four times a second",
            buckets=_LOOP_SECONDS,
            registry=registry,
        )
        # Only tables with a label of their own are kept here. The others share one label.
        self._row_counters: dict[TableName, list[Counter | None]] = {}
        self._other_row_counters: list[Counter | None] = [None] * len(Operations._fields)

    def log_lines_dropped(self, total: Callable[[], int]) -> None:
        """Where the number of log lines that nobody took is to be asked."""
        self.registry.register(_LogMetrics(total))

    def loop_lag(self, seconds: float) -> None:
        """A timer of the event loop fired so late."""
        self._loop.observe(seconds)

    def source_connected(self, connected: bool) -> None:  # noqa: FBT001 - a gauge of one bit
        """Whether a stream is held now."""
        self._source.connected.set(1 if connected else 0)

    def alarms(self, code: str, count: int) -> None:
        """So many conditions of that code wait for an operator."""
        self._alarms.labels(code).set(count)

    def tables_not_captured(self, count: int) -> None:
        """So many tables are captured by the configuration, and not all of it arrives."""
        self._source.tables_not_captured.set(count)

    def source_message(self, now_us: int) -> None:
        """Something arrived from the source, keepalives included; called once a drain."""
        self._source.last_message.set(now_us / _MICROSECONDS)

    def lag_of(self, lag: Callable[[], Lag]) -> None:
        """Where both lags are to be asked, by a thread and at any time."""
        # They are asked when they are read. Otherwise a stalled engine would show lags that no
        # longer grow.
        self._lag.ask = lag

    def phase(self, phase: Phase) -> None:
        """The engine enters that phase."""
        for name, child in self._phases.items():
            child.set(1 if name == phase else 0)

    def source_gauges(self, values: Mapping[str, float]) -> None:
        """Measures of the source's own. Raises InvariantBroken for one that it did not declare."""
        for name, value in values.items():
            gauge = self._source.own.get(name)
            if gauge is None:
                raise InvariantBroken(f"the source measures {name}, which it does not declare")
            gauge.set(value)

    def rows(self, table: TableName, operations: Operations) -> None:
        """Rows read from the source, once a batch."""
        counters = self._row_counters.get(table)
        if counters is None:
            counters = self._new_row_counters(table)
        for place, row_count in enumerate(operations):
            if row_count:
                counter = counters[place]
                if counter is None:
                    label = self._table_labels.bounded(str(table))
                    counter = self._source.rows.child(label, Operations._fields[place])
                    counters[place] = counter
                counter.inc(row_count)

    def _new_row_counters(self, table: TableName) -> list[Counter | None]:
        if self._table_labels.bounded(str(table)) == OTHER:
            return self._other_row_counters
        counters = self._row_counters[table] = [None] * len(Operations._fields)
        return counters

    def queue_bytes(self, n: int) -> None:
        """Bytes charged to the memory budget now."""
        self._buffers.queue.set(n)

    def queue_capacity(self, n: int) -> None:
        """The memory budget."""
        self._buffers.capacity.set(n)

    def snapshot_rows(self, table: TableName, count: int) -> None:
        """So many more rows of the table's snapshot are staged."""
        label = self._snapshot_labels.bounded(str(table))
        self._snapshots.rows.child(label).inc(count)

    def snapshot_rows_estimate(self, count: int) -> None:
        """The tables whose snapshots are being taken have about so many rows."""
        self._snapshots.estimate.set(count)

    def snapshots_unfinished(self, count: int) -> None:
        """So many tables wait for a snapshot, or have one under way."""
        self._snapshots.unfinished.set(count)

    def backpressure(self, seconds: float) -> None:
        """Reading waited this long for room."""
        self._buffers.backpressure.inc(seconds)

    def chunk(self, table: str, reason: str, size_bytes: int) -> None:
        """A chunk's plan is in the journal: why it was cut, and its compressed size."""
        self._buffers.chunks.child(self._table_labels.bounded(table), reason).inc()
        self._buffers.chunk_bytes.observe(size_bytes)

    def publishes_in_flight(self, n: int) -> None:
        """Objects being put now."""
        self._destination.in_flight.set(n)

    def published(
        self, table: str, seconds: float, size_bytes: int, newest_commit_us: int, now_us: int
    ) -> None:
        """An object became visible: how long its puts took, its size, and its newest commit."""
        label = self._table_labels.bounded(table)
        self._destination.objects.child(label).inc()
        self._destination.bytes.child(label).inc(size_bytes)
        self._destination.seconds.observe(seconds)
        # The source's clock may be ahead of ours.
        visible_us = max(0, now_us - newest_commit_us)
        self._destination.commit_to_visible.observe(visible_us / _MICROSECONDS)

    def publish_error(self, code: str, retryable: bool) -> None:  # noqa: FBT001 - a label
        """A request of the destination failed; `code` is S3's or the transport's name for it."""
        bounded = self._code_labels.bounded(code or "unknown")
        self._destination.errors.child(bounded, "true" if retryable else "false").inc()

    def durable(self, commit_us: int, now_us: int) -> None:
        """The journal says durable up to a commit of that time."""
        del now_us
        self._durability.timestamp.set(commit_us / _MICROSECONDS)

    def journal_entry(self, kind: str) -> None:
        """An entry was appended; `kind` names a part of it (open, schemas, planned, durable, …)."""
        self._durability.entries.child(kind).inc()

    def epoch(self, number: int) -> None:
        """The journal is ours, for the term of that number."""
        self._durability.epoch.set(number)

    def superseded(self) -> None:
        """Another writer owns the journal now."""
        self._durability.superseded.inc()

    def signal(self, outcome: str) -> None:
        """That became of one signal."""
        self._durability.signals.child(outcome).inc()

    def gaps(self, count: int) -> None:
        """So many new gaps were recorded in the journal."""
        self._durability.gaps.inc(count)

    def schema_change(self, table: str, kind: str) -> None:
        """A table's new version differs from the one before by this kind of change."""
        self._durability.schema_changes.child(self._table_labels.bounded(table), kind).inc()


class _LagMetrics:
    """Both lags, asked at each scrape."""

    def __init__(self, unit: str) -> None:
        self.ask: Callable[[], Lag] = Lag
        self._unit = unit

    def collect(self) -> Iterable[Metric]:
        lag = self.ask()
        for prefix, amount, what in (
            ("", lag.unread, "written and not yet read"),
            ("durable_", lag.durable, "read and not yet durable"),
        ):
            yield GaugeMetricFamily(
                f"tailrace_{prefix}lag_seconds",
                f"Age of the oldest change {what}; 0 where nothing waits",
                value=_known(amount.seconds),
            )
            yield GaugeMetricFamily(
                f"tailrace_{prefix}lag_{self._unit}",
                f"Source log {what}; 0 where nothing waits",
                value=_known(amount.log),
            )


def _known(value: float | None) -> float:
    return math.nan if value is None else value


class _LogMetrics:
    """Counted elsewhere, asked at each scrape."""

    def __init__(self, total: Callable[[], int]) -> None:
        self._total = total

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "tailrace_log_lines_dropped",
            "Log lines that were not written because nobody read",
            value=self._total(),
        )


class _BoundedLabels:
    """The first `limit` values keep their names, as they may be printed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, str] = {}

    def bounded(self, value: str) -> str:
        found = self._known.get(value)
        if found is not None:
            return found
        if len(self._known) >= self._limit:
            return OTHER
        # The library escapes quotes and line ends, no other character.
        return self._known.setdefault(value, printable(value))


class _CounterFamily:
    """A labelled counter with its children kept."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, labels: tuple[str, ...]
    ) -> None:
        self._counter = Counter(name, text, labels, registry=registry)
        self._children: dict[tuple[str, ...], Counter] = {}

    def child(self, *labels: str) -> Counter:
        found = self._children.get(labels)
        if found is None:
            found = self._children[labels] = self._counter.labels(*labels)
        return found


def _gauge(registry: CollectorRegistry, name: str, text: str, *, first: float = 0) -> Gauge:
    gauge = Gauge(name, text, registry=registry)
    gauge.set(first)
    return gauge


class _SourceMetrics:
    def __init__(self, registry: CollectorRegistry, measures: SourceMeasures) -> None:
        self.connected = _gauge(registry, "tailrace_connected", "1 while a stream is held")
        self.tables_not_captured = _gauge(
            registry,
            "tailrace_tables_not_captured",
            "Tables of the configuration of which the source does not publish every change",
        )
        self.rows = _CounterFamily(
            registry, "tailrace_rows_total", "Rows read from the source", ("table", "op")
        )
        self.last_message = _gauge(
            registry,
            "tailrace_last_message_timestamp_seconds",
            "When the source last sent anything",
            first=math.nan,
        )
        self.own = {
            name: _gauge(registry, f"tailrace_{name}", text, first=math.nan)
            for name, text in measures.gauges.items()
        }


class _SnapshotMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.rows = _CounterFamily(
            registry,
            "tailrace_snapshot_rows_total",
            "Rows of snapshots that were staged",
            ("table",),
        )
        self.estimate = _gauge(
            registry,
            "tailrace_snapshot_rows_estimate",
            "Rows that the tables have whose snapshots are being taken, as the source estimates",
        )
        self.unfinished = _gauge(
            registry,
            "tailrace_snapshots_unfinished",
            "Tables that wait for a snapshot, or have one under way",
        )


class _BufferMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.queue = _gauge(registry, "tailrace_queue_bytes", "Bytes charged to the memory budget")
        self.capacity = _gauge(registry, "tailrace_queue_capacity_bytes", "The memory budget")
        self.backpressure = Counter(
            "tailrace_backpressure_seconds_total",
            "Time for which reading waited for room",
            registry=registry,
        )
        self.chunk_age_limit = _gauge(
            registry, "tailrace_chunk_age_limit_seconds", "The age at which a chunk is cut"
        )
        self.chunks = _CounterFamily(
            registry, "tailrace_chunks_total", "Chunks cut, by reason", ("table", "reason")
        )
        self.chunk_bytes = Histogram(
            "tailrace_chunk_bytes",
            "Compressed size of a chunk",
            buckets=_CHUNK_BYTES,
            registry=registry,
        )


class _DestinationMetrics:
    def __init__(self, registry: CollectorRegistry, chunk_age_seconds: float) -> None:
        visible = {chunk_age_seconds + past for past in _VISIBLE_SECONDS_PAST_AGE}
        self.in_flight = _gauge(
            registry, "tailrace_publishes_in_flight", "Objects being put at this moment"
        )
        self.objects = _CounterFamily(
            registry, "tailrace_published_objects_total", "Objects made visible", ("table",)
        )
        self.bytes = _CounterFamily(
            registry, "tailrace_published_bytes_total", "Compressed bytes made visible", ("table",)
        )
        self.seconds = Histogram(
            "tailrace_publish_seconds",
            "From the first put of an object to its visibility",
            buckets=_PUBLISH_SECONDS,
            registry=registry,
        )
        self.errors = _CounterFamily(
            registry,
            "tailrace_publish_errors_total",
            "Failed requests of the destination",
            ("code", "retryable"),
        )
        self.commit_to_visible = Histogram(
            "tailrace_commit_to_visible_seconds",
            "From the newest commit in an object to its visibility",
            buckets=sorted(visible.union(_VISIBLE_SECONDS)),
            registry=registry,
        )


class _DurabilityMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.timestamp = _gauge(
            registry,
            "tailrace_durable_timestamp_seconds",
            "Commit time up to which the journal says durable",
            first=math.nan,
        )
        self.epoch = _gauge(
            registry,
            "tailrace_epoch",
            "Number of the term for which this engine writes the journal",
            first=math.nan,
        )
        self.entries = _CounterFamily(
            registry, "tailrace_journal_entries_total", "Entries appended, by part", ("kind",)
        )
        self.superseded = Counter(
            "tailrace_superseded_total", "Times another writer took the journal", registry=registry
        )
        self.signals = _CounterFamily(
            registry,
            "tailrace_signals_total",
            "Signals in the source's log, by what became of them",
            ("outcome",),
        )
        self.gaps = Counter(
            "tailrace_gaps_total", "Gaps recorded in the journal", registry=registry
        )
        self.schema_changes = _CounterFamily(
            registry,
            "tailrace_schema_changes_total",
            "Changes between two versions of a table",
            ("table", "kind"),
        )
