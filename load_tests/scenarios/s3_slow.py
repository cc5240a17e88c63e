"""Scenario `s3-slow`: a far bucket on a thin line, and the same steady load."""

from engine.servers.fault_proxy import Line
from load_tests.live.live import Live, Order
from load_tests.live.scenario import MEMORY, STALL, LiveScenario, Script, visible_target
from load_tests.live.shape import Shape
from load_tests.live.tables import TableSet
from load_tests.plan import Plan

CHUNK_SECONDS = 5.0
ROWS_PER_SECOND = 20_000
SECONDS = 20.0
TRANSACTIONS_PER_SECOND = 50.0
LINE = Line(latency_seconds=0.2, bytes_per_second=5_000_000)
MORE_SECONDS = 0.5 + 3 * LINE.latency_seconds
"""The plan's entry, the object, and what is in the way of the entry: the one before it."""


def order(_plan: Plan) -> Order:
    return Order(
        tables=TableSet(count=4, per_transaction=2),
        keys={"chunk__max_age": f"{CHUNK_SECONDS:g}s"},
        is_proxied=True,
    )


def script(plan: Plan) -> Script:
    async def run(live: Live) -> dict[str, float]:
        assert live.proxy is not None, "ordered"
        live.proxy.line = LINE
        rate = float(plan.rate or ROWS_PER_SECOND)
        async with live.loading(
            Shape.steady(rate), SECONDS, transactions_per_second=TRANSACTIONS_PER_SECOND
        ) as load:
            await load.finished()
        return {"asked_rows_per_second": rate}

    return run


S3_SLOW = LiveScenario(
    name="s3-slow",
    title="A bucket 200 ms away, 5 MB/s a connection",
    text="As `steady`, but between engine and bucket is a proxy: every request waits 200 ms, and a "
    "connection carries 5 MB/s. The engine has to keep up, and nothing may pile up.",
    targets=(visible_target(CHUNK_SECONDS, MORE_SECONDS), STALL, MEMORY),
    seconds=lambda _plan: SECONDS + CHUNK_SECONDS,
    order=order,
    script=script,
)
