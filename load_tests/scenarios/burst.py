"""Scenario `burst`: most rows come in short bursts, and still each is visible in time."""

from load_tests.live.live import Live, Order
from load_tests.live.scenario import MEMORY, STALL, LiveScenario, Script, visible_target
from load_tests.live.shape import Shape, Step
from load_tests.live.tables import TableSet
from load_tests.plan import Plan

CHUNK_SECONDS = 5.0
QUIET_ROWS_PER_SECOND = 2_000
BURST_TIMES = 30
SECONDS = 24.0
TRANSACTIONS_PER_SECOND = 50.0


def order(_plan: Plan) -> Order:
    return Order(
        tables=TableSet(count=4, per_transaction=2),
        keys={"chunk__max_age": f"{CHUNK_SECONDS:g}s"},
    )


def script(plan: Plan) -> Script:
    async def run(live: Live) -> dict[str, float]:
        quiet = plan.rate or QUIET_ROWS_PER_SECOND
        shape = Shape((Step(6.0, quiet), Step(2.0, quiet * BURST_TIMES)))
        async with live.loading(
            shape, SECONDS, transactions_per_second=TRANSACTIONS_PER_SECOND
        ) as load:
            await load.finished()
        return {"asked_rows_per_second": shape.rows_per_second_mean}

    return run


BURST = LiveScenario(
    name="burst",
    title="Two seconds of thirty times the load, again and again",
    text="As `steady`, but the rate is 2,000 rows/s for six seconds and 60,000 for two. What comes "
    "in a burst has to be visible as soon as everything else, in the same memory.",
    targets=(visible_target(CHUNK_SECONDS), STALL, MEMORY),
    seconds=lambda _plan: SECONDS + CHUNK_SECONDS,
    order=order,
    script=script,
)
