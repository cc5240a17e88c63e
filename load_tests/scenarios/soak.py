"""Scenario `soak`: hours of a steady load; what grows that should not?

Strategy: a least-squares line is laid over all but the first part of the run. Its slope, times the
time that was measured, is what the figure grew by. Noise moves that little. What the figure would
grow by in a day is not computed, because a short run says nothing about it.
"""

from load_tests.live.live import Live, Order
from load_tests.live.percentiles import slope
from load_tests.live.sampler import Sample
from load_tests.live.scenario import MEMORY, STALL, LiveScenario, Script, visible_target
from load_tests.live.shape import Shape
from load_tests.live.tables import TableSet
from load_tests.plan import Plan
from load_tests.result import Target

CHUNK_SECONDS = 5.0
ROWS_PER_SECOND = 5_000
_MIB = 1024 * 1024
_WARM_SHARE = 0.3
_SAMPLES_KEPT = 4_000


def _seconds(plan: Plan) -> float:
    return plan.hours * 3600


def order(plan: Plan) -> Order:
    return Order(
        tables=TableSet(count=20, per_transaction=4),
        keys={"chunk__max_age": f"{CHUNK_SECONDS:g}s"},
        sample_seconds=max(0.2, _seconds(plan) / _SAMPLES_KEPT),
        probe_seconds=0.05,
        watch_seconds=0.25,
    )


def script(plan: Plan) -> Script:
    async def run(live: Live) -> dict[str, float]:
        rate = float(plan.rate or ROWS_PER_SECOND)
        async with live.loading(
            Shape.steady(rate), _seconds(plan), transactions_per_second=20.0
        ) as load:
            await load.finished()
        samples = live.sampler.samples[int(len(live.sampler.samples) * _WARM_SHARE) :]
        return {
            "asked_rows_per_second": rate,
            "soaked_hours": plan.hours,
            "memory_growth_bytes": _growth(samples, [sample.rss_bytes for sample in samples]),
            "descriptor_growth_count": _growth(
                samples, [sample.descriptor_count for sample in samples]
            ),
        }

    return run


def _growth(samples: list[Sample], values: list[int]) -> float:
    times = [sample.at - samples[0].at for sample in samples]
    return slope(times, values) * times[-1]


SOAK = LiveScenario(
    name="soak",
    title="A steady load for hours",
    text="20 tables, 5,000 rows/s, for --hours. Memory and open descriptors may not grow: the line "
    "through the last 70 % of the run says by how much they did.",
    targets=(
        Target(
            text="memory grows by at most 8 MiB",
            quantity="memory_growth_bytes",
            bound=8 * _MIB,
            direction="at most",
        ),
        Target(
            text="open descriptors grow by less than 2",
            quantity="descriptor_growth_count",
            bound=2.0,
            direction="at most",
        ),
        MEMORY,
        STALL,
        visible_target(CHUNK_SECONDS),
    ),
    seconds=_seconds,
    order=order,
    script=script,
)
