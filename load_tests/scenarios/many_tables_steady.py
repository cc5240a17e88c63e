"""Scenario `many-tables-steady`: 5,000 tables share a steady load, in the default memory."""

from load_tests.live.live import Live, Order
from load_tests.live.scenario import MEMORY, STALL, LiveScenario, Script
from load_tests.live.shape import Shape
from load_tests.live.tables import TableSet
from load_tests.plan import Plan

TABLE_COUNT = 5_000
ROWS_PER_SECOND = 20_000
SECONDS = 45.0
"""This is longer than the default chunk age, 30 s. The memory's peak is where chunks are as old as
they get, and all tables have one."""
TRANSACTIONS_PER_SECOND = 50.0
TABLES_A_TRANSACTION = 20


def order(_plan: Plan) -> Order:
    # Nothing but the defaults. A listing of thousands of keys would be a load of its own.
    return Order(
        tables=TableSet(count=TABLE_COUNT, per_transaction=TABLES_A_TRANSACTION),
        watch_seconds=0.0,
    )


def script(plan: Plan) -> Script:
    async def run(live: Live) -> dict[str, float]:
        rate = float(plan.rate or ROWS_PER_SECOND)
        async with live.loading(
            Shape.steady(rate), SECONDS, transactions_per_second=TRANSACTIONS_PER_SECOND
        ) as load:
            await load.finished()
        return {"asked_rows_per_second": rate, "table_count": float(TABLE_COUNT)}

    return run


MANY_TABLES_STEADY = LiveScenario(
    name="many-tables-steady",
    title="5,000 tables share 20,000 rows/s",
    text="Every table has an open chunk at any time, and 170 objects a second grow old enough to "
    "be published. Each transaction writes 400 rows into 20 tables; tables take turns.",
    targets=(MEMORY, STALL),
    seconds=lambda _plan: SECONDS + 60.0,
    order=order,
    script=script,
)
