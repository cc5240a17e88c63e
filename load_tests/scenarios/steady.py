"""Scenario `steady`: rows at a given rate, and how long each takes to be visible."""

from load_tests.live.live import Live, Order
from load_tests.live.scenario import MEMORY, STALL, LiveScenario, Script, visible_target
from load_tests.live.shape import Shape
from load_tests.live.tables import TableSet
from load_tests.plan import Plan

CHUNK_SECONDS = 5.0
ROWS_PER_SECOND = 20_000
SECONDS = 25.0
TRANSACTIONS_PER_SECOND = 50.0


def order(_plan: Plan) -> Order:
    return Order(
        tables=TableSet(count=4, per_transaction=2),
        keys={"chunk__max_age": f"{CHUNK_SECONDS:g}s"},
    )


def script(plan: Plan) -> Script:
    async def run(live: Live) -> dict[str, float]:
        rate = float(plan.rate or ROWS_PER_SECOND)
        async with live.loading(
            Shape.steady(rate), SECONDS, transactions_per_second=TRANSACTIONS_PER_SECOND
        ) as load:
            await load.finished()
        return {"asked_rows_per_second": rate}

    return run


STEADY = LiveScenario(
    name="steady",
    title="A steady load over four tables",
    text="Rows are committed at a given rate whatever the engine does. For each row: from its "
    "commit to the listing of the bucket that first shows its object. What the engine's loop "
    "takes to answer meanwhile bounds its stalls.",
    targets=(visible_target(CHUNK_SECONDS), STALL, MEMORY),
    seconds=lambda _plan: SECONDS + CHUNK_SECONDS,
    order=order,
    script=script,
)
