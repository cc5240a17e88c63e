"""What the dashboard shows: rows of panels with their expressions, as plain values.

Strategy: this module is the only place to change the dashboard. `grafana.dashboard` makes Grafana's
JSON of it. Every expression selects by the two variables `$job` and `$instance`, so one dashboard
serves many pipelines. Where series appear with the first event only, `or on() vector(0)` gives one
0 before that, and nothing afterwards.

The expressions work in Prometheus 2.42 and later, 3.x included.
"""

from dataclasses import dataclass
from typing import Final, Literal

Unit = Literal["short", "s", "bytes", "binBps", "rowsps", "ops", "percentunit", "none"]

_OF: Final = 'job=~"$job",instance=~"$instance"'
_RATE: Final = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and how its series are named: `{{label}}` is replaced."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Step:
    """From this value on, that colour."""

    at: float
    colour: Literal["green", "yellow", "red", "blue"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One large number, of now. `steps` colour it: the first colour holds below all of them."""

    title: str
    description: str
    query: Query
    unit: Unit
    steps: tuple[Step, ...] = ()
    first_colour: Literal["green", "red", "blue"] = "green"
    is_named: bool = False
    """Show the series' name as the text, its value beside it."""
    width: int = 4

    @property
    def queries(self) -> tuple[Query, ...]:
        return (self.query,)


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over time; `is_stacked` fills and adds them up."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: Unit
    is_stacked: bool = False
    width: int = 12


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Figure | Plot, ...]


def _rate(metric: str) -> str:
    return f"rate({metric}{{{_OF}}}[{_RATE}])"


def _gauge(metric: str) -> str:
    return f"{metric}{{{_OF}}}"


def _quantile(quantile: float, metric: str) -> str:
    return f"histogram_quantile({quantile}, sum by (le) ({_rate(f'{metric}_bucket')}))"


def _quantiles(metric: str) -> tuple[Query, ...]:
    return (
        Query(_quantile(0.5, metric), "half of them"),
        Query(_quantile(0.99, metric), "99 of 100"),
    )


_NOW: Final = Row(
    "Now",
    (
        Figure(
            "Phase",
            "What the engines are doing. standby, snapshot and streaming are ready.",
            Query(f"count by (phase) ({_gauge('tailrace_phase')} == 1)", "{{phase}}"),
            "none",
            is_named=True,
            first_colour="blue",
        ),
        Figure(
            "Alarms",
            "Conditions that wait for somebody. /status names them with what mends them.",
            Query(f"sum({_gauge('tailrace_alarms')}) or on() vector(0)", "alarms"),
            "none",
            (Step(1, "red"),),
        ),
        Figure(
            "Unread",
            "Age of the newest commit that was read, where the source has more. 0: all is read.",
            Query(f"max({_gauge('tailrace_lag_seconds')})", "unread"),
            "s",
            (Step(60, "yellow"), Step(300, "red")),
        ),
        Figure(
            "Not durable",
            "Age of what was read and is not durable in the bucket. 0: everything is.",
            Query(f"max({_gauge('tailrace_durable_lag_seconds')})", "not durable"),
            "s",
            (Step(120, "yellow"), Step(600, "red")),
        ),
        Figure(
            "WAL until the slot is lost",
            "What the server may still write before it gives up the slot. Infinite: no limit, so "
            "the server's disk is the limit.",
            Query(f"min({_gauge('tailrace_slot_safe_bytes')})", "left"),
            "bytes",
            (Step(1 << 30, "yellow"), Step(4 << 30, "green")),
            first_colour="red",
        ),
        Figure(
            "Tables not captured",
            "Tables of the configuration of which the source does not publish every change.",
            Query(f"sum({_gauge('tailrace_tables_not_captured')})", "tables"),
            "none",
            (Step(1, "red"),),
        ),
    ),
)

_FLOW: Final = Row(
    "Flow",
    (
        Plot(
            "Rows read",
            "By operation: c insert, u update, d delete, t truncate. Snapshots are not in it.",
            (Query(f"sum by (op) ({_rate('tailrace_rows_total')})", "{{op}}"),),
            "rowsps",
            is_stacked=True,
        ),
        Plot(
            "Rows read, the ten busiest tables",
            "Tables beyond the first 150 are counted together as _other.",
            (Query(f"topk(10, sum by (table) ({_rate('tailrace_rows_total')}))", "{{table}}"),),
            "rowsps",
        ),
        Plot(
            "Published",
            "Compressed bytes that became visible.",
            (Query(f"sum({_rate('tailrace_published_bytes_total')})", "published"),),
            "binBps",
            width=8,
        ),
        Plot(
            "Published, the ten largest tables",
            "Compressed bytes that became visible.",
            (
                Query(
                    f"topk(10, sum by (table) ({_rate('tailrace_published_bytes_total')}))",
                    "{{table}}",
                ),
            ),
            "binBps",
            width=8,
        ),
        Plot(
            "Objects and journal entries",
            "An entry counts once for each of its parts. Mostly these are planned and durable.",
            (
                Query(f"sum({_rate('tailrace_published_objects_total')})", "objects"),
                Query(
                    f"sum by (kind) ({_rate('tailrace_journal_entries_total')})",
                    "entries with {{kind}}",
                ),
            ),
            "ops",
            width=8,
        ),
    ),
)

_LAG: Final = Row(
    "Lag",
    (
        Plot(
            "Lag in time",
            "Unread: written by the source and not read. Not durable: read, and not yet safe in "
            "the bucket. Both are 0 where nothing waits.",
            (
                Query(_gauge("tailrace_lag_seconds"), "unread {{instance}}"),
                Query(_gauge("tailrace_durable_lag_seconds"), "not durable {{instance}}"),
            ),
            "s",
        ),
        Plot(
            "Lag in WAL",
            "The same two, as bytes of the source's log.",
            (
                Query(_gauge("tailrace_lag_bytes"), "unread {{instance}}"),
                Query(_gauge("tailrace_durable_lag_bytes"), "not durable {{instance}}"),
            ),
            "bytes",
        ),
        Plot(
            "From commit to visible",
            "From the newest commit in an object to its visibility. The limit is the age at which "
            "a chunk is cut, and half a second.",
            (
                *_quantiles("tailrace_commit_to_visible_seconds"),
                Query(f"max({_gauge('tailrace_chunk_age_limit_seconds')}) + 0.5", "limit"),
            ),
            "s",
        ),
        Plot(
            "Since the durable position's commit",
            "Time since the newest commit that is durable. An idle database reaches half a minute.",
            (
                Query(
                    f"time() - {_gauge('tailrace_durable_timestamp_seconds')}",
                    "{{instance}}",
                ),
            ),
            "s",
        ),
    ),
)

_SOURCE: Final = Row(
    "Source",
    (
        Plot(
            "WAL that the slot holds",
            "Retained: kept on the server's disk for us. Left: what may still be written before "
            "the server gives up the slot.",
            (
                Query(_gauge("tailrace_slot_retained_bytes"), "retained {{instance}}"),
                Query(_gauge("tailrace_slot_safe_bytes"), "left {{instance}}"),
            ),
            "bytes",
        ),
        Plot(
            "Time until the slot is lost",
            "At the speed of the last half hour. A day stands for a day or more.",
            (
                Query(
                    f"clamp_max({_gauge('tailrace_slot_safe_bytes')}"
                    f" / clamp_min(-deriv({_gauge('tailrace_slot_safe_bytes')}[30m]), 1), 86400)",
                    "{{instance}}",
                ),
            ),
            "s",
        ),
        Plot(
            "Since the last message",
            "Keepalives count, so this stays at some seconds on an idle database too.",
            (
                Query(
                    f"time() - {_gauge('tailrace_last_message_timestamp_seconds')}",
                    "{{instance}}",
                ),
            ),
            "s",
            width=8,
        ),
        Plot(
            "Connected",
            "1 while an engine holds the stream.",
            (Query(_gauge("tailrace_connected"), "{{instance}}"),),
            "none",
            width=8,
        ),
        Plot(
            "Changed shapes, gaps, signals",
            "Counted since each process began.",
            (
                Query(
                    f"sum by (kind) ({_gauge('tailrace_schema_changes_total')}) or on() vector(0)",
                    "changed shape {{kind}}",
                ),
                Query(f"sum({_gauge('tailrace_gaps_total')})", "gaps"),
                Query(
                    f"sum by (outcome) ({_gauge('tailrace_signals_total')}) or on() vector(0)",
                    "signals {{outcome}}",
                ),
            ),
            "none",
            width=8,
        ),
    ),
)

_BUFFERS: Final = Row(
    "Buffers",
    (
        Plot(
            "Memory budget",
            "Rows that were read and are not published, in memory.",
            (
                Query(_gauge("tailrace_queue_bytes"), "used {{instance}}"),
                Query(_gauge("tailrace_queue_capacity_bytes"), "budget {{instance}}"),
            ),
            "bytes",
            width=8,
        ),
        Plot(
            "Backpressure",
            "Share of the time in which reading waited for room.",
            (Query(_rate("tailrace_backpressure_seconds_total"), "{{instance}}"),),
            "percentunit",
            width=8,
        ),
        Plot(
            "Chunks, by why they were cut",
            "Many that are cut by memory say that the budget is small for so many tables.",
            (Query(f"sum by (reason) ({_rate('tailrace_chunks_total')})", "{{reason}}"),),
            "ops",
            is_stacked=True,
            width=8,
        ),
        Plot(
            "Size of chunks",
            "Compressed.",
            _quantiles("tailrace_chunk_bytes"),
            "bytes",
        ),
        Plot(
            "Log lines that nobody read",
            "Lines that were dropped because stderr was not read.",
            (Query(_rate("tailrace_log_lines_dropped_total"), "{{instance}}"),),
            "ops",
        ),
    ),
)

_BUCKET: Final = Row(
    "Bucket",
    (
        Plot(
            "Time to publish an object",
            "From its first put to its visibility, repeats included.",
            _quantiles("tailrace_publish_seconds"),
            "s",
            width=8,
        ),
        Plot(
            "Failed requests",
            "By S3's code. Retryable ones are repeated; others end the engine.",
            (
                Query(
                    "sum by (code, retryable)"
                    f" ({_rate('tailrace_publish_errors_total')}) or on() vector(0)",
                    "{{code}} retryable={{retryable}}",
                ),
            ),
            "ops",
            width=8,
        ),
        Plot(
            "Objects under way",
            "Puts at this moment; destination.concurrency is the limit.",
            (Query(_gauge("tailrace_publishes_in_flight"), "{{instance}}"),),
            "none",
            width=8,
        ),
    ),
)

_SNAPSHOTS: Final = Row(
    "Snapshots",
    (
        Plot(
            "Tables without a finished snapshot",
            "They wait for one, or have one under way.",
            (Query(_gauge("tailrace_snapshots_unfinished"), "{{instance}}"),),
            "none",
            width=8,
        ),
        Plot(
            "Rows staged, the ten busiest tables",
            "A range of a table counts when it is staged as a whole.",
            (
                Query(
                    f"topk(10, sum by (table) ({_rate('tailrace_snapshot_rows_total')}))",
                    "{{table}}",
                ),
            ),
            "rowsps",
            width=8,
        ),
        Plot(
            "Rows",
            "Staged since the process began, and what the tables have that are being read.",
            (
                Query(f"sum({_gauge('tailrace_snapshot_rows_total')}) or on() vector(0)", "staged"),
                Query(f"sum({_gauge('tailrace_snapshot_rows_estimate')})", "of tables being read"),
            ),
            "short",
            width=8,
        ),
    ),
)

_PROCESS: Final = Row(
    "Process",
    (
        Figure(
            "Release",
            "By engine.",
            Query(f"count by (release) ({_gauge('tailrace_build_info')})", "{{release}}"),
            "none",
            is_named=True,
            first_colour="blue",
        ),
        Figure(
            "Up for",
            "The youngest engine.",
            Query(f"time() - max({_gauge('process_start_time_seconds')})", "up"),
            "s",
            first_colour="blue",
        ),
        Figure(
            "Epoch",
            "Grows with every start that takes the journal.",
            Query(f"max({_gauge('tailrace_epoch')})", "epoch"),
            "none",
            first_colour="blue",
        ),
        Figure(
            "Superseded",
            "Times another writer took the journal, as far as a scrape saw it.",
            Query(f"sum({_gauge('tailrace_superseded_total')})", "superseded"),
            "none",
            (Step(1, "red"),),
        ),
        Figure(
            "Starts in the last hour",
            "All engines of the job. A rolling deploy is one.",
            Query(
                "sum(changes(process_start_time_seconds"
                f"{{{_OF}}}[1h]) + 1) - count({_gauge('process_start_time_seconds')})",
                "starts",
            ),
            "none",
            (Step(3, "yellow"), Step(6, "red")),
        ),
        Figure(
            "File descriptors",
            "Used, of those that are allowed.",
            Query(
                f"max({_gauge('process_open_fds')} / {_gauge('process_max_fds')})", "descriptors"
            ),
            "percentunit",
            (Step(0.8, "red"),),
        ),
        Plot(
            "CPU",
            "Processors in use. The workers of a snapshot are processes of their own.",
            (Query(_rate("process_cpu_seconds_total"), "{{instance}}"),),
            "short",
            width=8,
        ),
        Plot(
            "Memory",
            "Resident. The workers of a snapshot are processes of their own.",
            (Query(_gauge("process_resident_memory_bytes"), "{{instance}}"),),
            "bytes",
            width=8,
        ),
        Plot(
            "Lag of the event loop",
            "How late a timer fires. Above 20 ms something holds the loop, or CPU is short.",
            _quantiles("tailrace_loop_lag_seconds"),
            "s",
            width=8,
        ),
    ),
)

ROWS: Final = (_NOW, _FLOW, _LAG, _SOURCE, _BUFFERS, _BUCKET, _SNAPSHOTS, _PROCESS)


def expressions() -> tuple[str, ...]:
    """Every expression of the dashboard."""
    return tuple(
        query.expression for row in ROWS for panel in row.panels for query in panel.queries
    )
