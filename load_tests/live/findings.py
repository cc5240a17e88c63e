"""From what was observed to figures and series: the `Run` of the result. Pure.

Names of figures have their unit last, as the result model has it.
"""

from collections.abc import Sequence
from itertools import pairwise

from load_tests.live import exposition, generator
from load_tests.live.live import Live, Load
from load_tests.live.livez_probe import Latencies
from load_tests.live.percentiles import histogram_percentile, percentiles
from load_tests.live.visibility import Sight
from load_tests.result import ENGINE
from load_tests.run import Run, Series

_FRACTIONS = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
# Of the load that was asked for: with less, the database or the machine was the limit.
_WRITTEN_SHARE_MIN = 0.95
_LATE_SECONDS_MAX = 5.0
_HISTOGRAM = "tailrace_commit_to_visible_seconds"


def run_of(live: Live, *, number: int, extra: dict[str, float]) -> Run:
    """One run of the engine; `extra` are the scenario's own figures."""
    began = live.account.started_at
    assert live.usage is not None, "the engine has ended"
    return Run(
        reader=ENGINE,
        round=number,
        rows=live.row_count,
        command=("tailrace", "run"),
        usage=live.usage,
        is_under_load=True,
        # What was measured under another load than the one asked for is no measurement of that.
        is_apart=bool(missed_loads(live.loads)),
        series={
            **live.sampler.series(began),
            **_load_series(live),
            **_sight_series(live.sights, began),
            **_stall_series(live.latencies, began),
        },
        figures={
            "start_seconds": live.start_seconds,
            "drain_seconds": live.drain_seconds,
            **_load_figures(live),
            **stall_figures(live.latencies, live.order.probe_seconds),
            **visible_figures(live.sights, live.row_count - live.order.backlog_rows),
            **_sample_figures(live),
            **_engines_figures(live.metrics_text),
            **extra,
        },
    )


def missed_loads(loads: Sequence[Load]) -> tuple[str, ...]:
    """Of each load that was not written as it was asked for, in what it was not."""
    texts = (missed_load(load.order, load.newest) for load in loads)
    return tuple(text for text in texts if text)


def missed_load(order: generator.Order, last: generator.Progress) -> str:
    """In what a load is not what was asked for; empty where it is. One that was ended early too."""
    # A load that is late takes longer: what would have been due by then is what counts.
    asked = order.shape.rows_due(min(last.seconds, order.seconds))
    asked_rate = asked / max(1e-9, min(last.seconds, order.seconds))
    rate = last.row_count / max(1e-9, last.seconds)
    if rate < _WRITTEN_SHARE_MIN * asked_rate:
        return f"only {rate:,.0f} of {asked_rate:,.0f} rows/s asked for were written"
    if last.late_max_seconds > _LATE_SECONDS_MAX:
        return f"a transaction began {last.late_max_seconds:.1f} s later than it was due"
    return ""


def visible_figures(sights: Sequence[Sight], row_count: int) -> dict[str, float]:
    """Commit to visible, over rows; and over objects by their newest row, as the engine counts."""
    if not sights:
        return {}
    rows = [pair for sight in sights for pair in sight.latencies]
    newest = [(sight.newest_seconds, 1) for sight in sights]
    return {
        **_named("visible_{}_seconds", rows),
        "visible_max_seconds": max(value for value, _ in rows),
        **_named("visible_newest_{}_seconds", newest),
        "visible_rows_ratio": sum(sight.row_count for sight in sights) / max(1, row_count),
    }


def stall_figures(
    latencies: Sequence[Latencies],
    interval_seconds: float,
    *,
    within: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Upper bounds of the loop's stalls: over all probes, or those due in a stretch of time."""
    found = [
        (seconds, 1)
        for part in latencies
        for number, seconds in enumerate(part.seconds)
        if within is None or within[0] <= part.at + number * interval_seconds <= within[1]
    ]
    if not found:
        return {}
    return {
        **_named("stall_{}_seconds", found),
        "stall_max_seconds": max(seconds for seconds, _ in found),
    }


def _named(name: str, weighted: Sequence[tuple[float, int]]) -> dict[str, float]:
    values = percentiles(weighted, tuple(_FRACTIONS.values()))
    return {name.format(key): value for key, value in zip(_FRACTIONS, values, strict=True)}


def _load_figures(live: Live) -> dict[str, float]:
    last = live.progress[-1] if live.progress else None
    if last is None:
        return {}
    return {
        "written_rows_per_second": last.row_count / last.seconds,
        "late_max_seconds": last.late_max_seconds,
        "transactions_per_second": last.transaction_count / last.seconds,
    }


def _sample_figures(live: Live) -> dict[str, float]:
    samples = live.sampler.samples
    figures = {
        "listing_gap_max_seconds": live.watcher.gap_max_seconds,
        "missed_objects": float(len(live.watcher.missed)),
    }
    if not samples:
        return figures
    return figures | {
        "queue_peak_bytes": float(max(sample.queue_bytes for sample in samples)),
        "queue_limit_bytes": float(samples[-1].queue_limit_bytes),
        "slot_lag_peak_bytes": max(sample.slot_lag_bytes for sample in samples),
        "publishes_peak_count": float(max(sample.publishes_in_flight for sample in samples)),
        "descriptors_peak_count": float(max(sample.descriptor_count for sample in samples)),
    }


def _engines_figures(text: str) -> dict[str, float]:
    """What the engine says by itself."""
    if not text:
        return {}
    buckets = exposition.buckets(text, _HISTOGRAM)
    return {
        **{
            f"engine_said_newest_{name}_seconds": histogram_percentile(buckets, fraction)
            for name, fraction in _FRACTIONS.items()
            if buckets and buckets[-1][1]
        },
        **{
            f"cut_by_{reason}_chunks": count
            for reason, count in exposition.by_label(
                text, "tailrace_chunks_total", "reason"
            ).items()
        },
        "backpressure_seconds": exposition.total(text, "tailrace_backpressure_seconds_total"),
        "publish_errors_count": exposition.total(text, "tailrace_publish_errors_total"),
    }


def _load_series(live: Live) -> dict[str, Series]:
    steps = [
        (before, after)
        for before, after in pairwise(live.progress)
        if after.seconds - before.seconds > 0.1
    ]
    began = live.account.started_at
    return {
        "written_rows_per_second": Series(
            text="rows written",
            unit="rows/s",
            times=tuple(round(after.at - began, 3) for _, after in steps),
            values=tuple(
                (after.row_count - before.row_count) / (after.seconds - before.seconds)
                for before, after in steps
            ),
        )
    }


def _sight_series(sights: Sequence[Sight], began: float) -> dict[str, Series]:
    if not sights:
        return {}
    return {
        "visible_seconds": Series(
            text="commit to visible, oldest row of each object",
            unit="s",
            times=tuple(round(sight.seen_at - began, 3) for sight in sights),
            values=tuple(round(sight.oldest_seconds, 3) for sight in sights),
        )
    }


def _stall_series(latencies: Sequence[Latencies], began: float) -> dict[str, Series]:
    if not latencies:
        return {}
    return {
        "stall_seconds": Series(
            text="longest answer of /livez, each second",
            unit="s",
            times=tuple(round(part.at - began, 3) for part in latencies),
            values=tuple(round(max(part.seconds), 5) for part in latencies),
        )
    }
