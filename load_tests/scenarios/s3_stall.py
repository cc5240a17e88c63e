"""Scenario `s3-stall`: the bucket falls silent at full speed, and comes back.

Strategy: a backlog is read, so that the rate is the engine's own. The rate is measured before the
silence and after it, over stretches in which there was backlog left. The rows compress badly.
Otherwise the default memory would hold millions of them, and the engine would never have to stop
reading. A small load goes on throughout. So the source's lag is seen to grow while nothing can be
acknowledged.

Bytes stop in both directions, and connections stay open: that is what a lost route looks like. The
engine's requests time out and are sent again.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from load_tests.engine_process import until
from load_tests.live.findings import stall_figures
from load_tests.live.live import Live, Order
from load_tests.live.sampler import Sample
from load_tests.live.scenario import MEMORY, LiveScenario, Script
from load_tests.live.shape import Shape
from load_tests.live.tables import TableSet
from load_tests.measurement import RunFailed
from load_tests.plan import Plan
from load_tests.result import Target

BACKLOG_ROWS = 2_500_000
STALL_SECONDS = 15.0
_ROWS_PER_SECOND = 1_000
_WARM_SECONDS_MAX = 3.0
_BEFORE_SECONDS = 3.0
_AFTER_SECONDS = 3.5
_STRETCH_SECONDS_MIN = 1.5
_BACKLOG_SHARE = 0.98
"""Of the backlog: what is left then keeps the source busy until a stretch is over."""
_BACK_SECONDS_MAX = 90.0


def order(plan: Plan) -> Order:
    return Order(
        tables=TableSet(count=4, per_transaction=2, digest_count=2),
        # Nothing is to be waited for at the end; at full speed chunks are cut by size all the same.
        keys={"chunk__max_age": "5s"},
        backlog_rows=plan.rows or BACKLOG_ROWS,
        is_proxied=True,
        watch_seconds=0.0,
    )


def script(_plan: Plan) -> Script:
    async def run(live: Live) -> dict[str, float]:
        async with live.loading(
            Shape.steady(_ROWS_PER_SECOND), 600.0, transactions_per_second=20.0
        ):
            return await _stalled(live)

    return run


async def _stalled(live: Live) -> dict[str, float]:
    await live.rows_read(1)
    await _warm(live)
    before = await _stretch(live, _BEFORE_SECONDS)
    assert live.proxy is not None, "ordered"
    with live.proxy.blackout():
        dark_at = time.time()
        await asyncio.sleep(STALL_SECONDS)
        light_at = time.time()
    silent = live.sampler.between(dark_at, light_at)
    # The reader went on until its memory was full: its next row is the first one after the silence.
    back_at = await live.rows_read(silent[-1].row_count + 1, seconds=_BACK_SECONDS_MAX)
    after = await _stretch(live, _AFTER_SECONDS)
    before_rate, after_rate = _rate(before), _rate(after)
    return {
        "before_rows_per_second": before_rate,
        "after_rows_per_second": after_rate,
        "after_to_before_ratio": after_rate / before_rate,
        "stalled_seconds": light_at - dark_at,
        "recovery_seconds": back_at - light_at,
        "lag_growth_bytes": silent[-1].slot_lag_bytes - silent[0].slot_lag_bytes,
        "reading_stopped_ratio": _stopped(silent),
        "silent_rows": float(silent[-1].row_count - silent[0].row_count),
        "stall_before_p99_seconds": _stall(live, before),
        "stall_after_p99_seconds": _stall(live, after),
    }


async def _warm(live: Live) -> None:
    """Let the memory fill where the bucket is slower than the engine.

    What is read into empty memory is no rate that lasts, and after the stall it is full.
    """

    async def waits() -> bool:
        last = live.sampler.last
        return last is not None and last.is_backpressure

    with suppress(TimeoutError):
        await until(waits, "a reader that waits", seconds=_WARM_SECONDS_MAX)


async def _stretch(live: Live, seconds: float) -> tuple[Sample, ...]:
    """The samples of the next seconds, while there is backlog left. Raises RunFailed for none."""
    began = time.time()
    await asyncio.sleep(seconds)
    rows = live.order.backlog_rows * _BACKLOG_SHARE
    samples = [sample for sample in live.sampler.samples if sample.at >= began]
    found = tuple(sample for sample in samples if sample.row_count < rows)
    if len(found) < 2 or found[-1].at - found[0].at < min(seconds, _STRETCH_SECONDS_MIN):
        raise RunFailed(
            f"the backlog of {live.order.backlog_rows:,} rows was read before the rate was known",
            hint="more --rows",
        )
    return found


def _stopped(samples: Sequence[Sample]) -> float:
    """In which share of the time the reader waited for room."""
    return sum(sample.is_backpressure for sample in samples) / len(samples)


def _rate(samples: Sequence[Sample]) -> float:
    first, last = samples[0], samples[-1]
    return (last.row_count - first.row_count) / (last.at - first.at)


def _stall(live: Live, samples: Sequence[Sample]) -> float:
    within = (samples[0].at, samples[-1].at)
    figures = stall_figures(live.latencies, live.order.probe_seconds, within=within)
    return figures.get("stall_p99_seconds", 0.0)


S3_STALL = LiveScenario(
    name="s3-stall",
    title="The bucket is silent for 15 seconds at full speed",
    text="The engine reads a backlog as fast as it can when the bucket stops answering. It has to "
    "stop reading before its memory is full, lose nothing, let the source keep what it cannot "
    "publish, and be as fast afterwards as before.",
    targets=(
        MEMORY,
        Target(
            text="rate after the stall at least 0.95 of the rate before",
            quantity="after_to_before_ratio",
            bound=0.95,
            direction="at least",
        ),
        Target(
            text="event loop's stall at full speed, p99, at most 20 ms",
            quantity="stall_before_p99_seconds",
            bound=0.02,
            direction="at most",
        ),
        Target(
            text="the source keeps what cannot be published: its lag grows by 1 MiB or more",
            quantity="lag_growth_bytes",
            bound=1024 * 1024,
            direction="at least",
        ),
    ),
    seconds=lambda plan: 55.0 + (plan.rows or BACKLOG_ROWS) / 100_000,
    order=order,
    script=script,
)
