"""Scenario `idle`: what an engine costs that has nothing to do but knows 5,000 tables.

Strategy: every table gets one row, so that each is known, published and in the journal. Then
nothing is written, and nobody asks the engine anything. Only the kernel's account of its CPU is
read. After that `/metrics` is asked for several times. Then the engine is started again, and so is
`--help`, each as a whole process.
"""

import asyncio
import os
import sys
import time
from statistics import median

from load_tests.engine_process import EngineProcess
from load_tests.live.live import Live, Order
from load_tests.live.scenario import MEMORY, LiveScenario, Script
from load_tests.live.shape import Shape
from load_tests.live.tables import TableSet
from load_tests.measurement import RunFailed
from load_tests.plan import Plan
from load_tests.result import Target

TABLE_COUNT = 5_000
IDLE_SECONDS = 20.0
"""The kernel's clock ticks every 10 ms: 0.05 % of a core is what can be told."""
_TABLES_A_TRANSACTION = 100
_CALM_SECONDS = 3.0
_SCRAPES = 10
_HELP_RUNS = 5


def order(_plan: Plan) -> Order:
    # No observer: to be asked is not to be idle.
    return Order(
        tables=TableSet(count=TABLE_COUNT, per_transaction=_TABLES_A_TRANSACTION),
        keys={"chunk__max_age": "2s"},
        sample_seconds=0.0,
        probe_seconds=0.0,
        watch_seconds=0.0,
    )


def script(_plan: Plan) -> Script:
    async def run(live: Live) -> dict[str, float]:
        tables = live.order.tables
        async with live.loading(
            Shape.steady(tables.count / 5),
            5.0,
            transactions_per_second=tables.count / 500,
            is_filling=True,
        ) as load:
            await load.finished()
        await live.settled()
        return {
            "table_count": float(tables.count),
            **await _idle_figures(live.engine),
            **await _scrape_figures(live.engine),
            **await _start_figures(live),
            **await asyncio.to_thread(_help_figures),
        }

    return run


async def _idle_figures(engine: EngineProcess) -> dict[str, float]:
    await asyncio.sleep(_CALM_SECONDS)
    cpu_before, began = engine.cpu_seconds, time.monotonic()
    await asyncio.sleep(IDLE_SECONDS)
    seconds = time.monotonic() - began
    return {
        "idle_cpu_ratio": (engine.cpu_seconds - cpu_before) / seconds,
        "idle_rss_bytes": float(engine.memory_bytes()),
    }


async def _scrape_figures(engine: EngineProcess) -> dict[str, float]:
    """The first is apart: it finds nothing cached."""
    seconds: list[float] = []
    size_bytes = 0
    cpu_before = engine.cpu_seconds
    for _ in range(_SCRAPES):
        began = time.perf_counter()
        answer = await engine.get("/metrics")
        if answer is None:
            raise RunFailed("/metrics did not answer")
        seconds.append(time.perf_counter() - began)
        size_bytes = len(answer[1])
    return {
        "scrape_seconds": median(seconds),
        "scrape_cpu_seconds": (engine.cpu_seconds - cpu_before) / _SCRAPES,
        "scrape_size_bytes": float(size_bytes),
    }


async def _start_figures(live: Live) -> dict[str, float]:
    """A second engine starts where the first one stopped, and knows what that knew."""
    seconds = await live.restarted()
    return {
        "restart_seconds": seconds,
        "restart_cpu_seconds": live.engine.cpu_seconds,
    }


def _help_figures() -> dict[str, float]:
    """`--help` as a whole process, the interpreter's own start included."""
    walls: list[float] = []
    cpus: list[float] = []
    command = [sys.executable, "-m", "engine", "--help"]
    for _ in range(_HELP_RUNS):
        began = time.perf_counter()
        process_id = os.posix_spawn(
            sys.executable,
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
        )
        _, status, usage = os.wait4(process_id, 0)
        walls.append(time.perf_counter() - began)
        cpus.append(usage.ru_utime + usage.ru_stime)
        if status:
            raise RunFailed(f"--help ended with status {status}")
    return {"help_seconds": median(walls), "help_cpu_seconds": median(cpus)}


IDLE = LiveScenario(
    name="idle",
    title="Nothing to do, 5,000 tables known",
    text="CPU of an idle engine as a share of a core; what a scrape of /metrics costs; how long "
    "the engine takes from its start until it streams, without and with 5,000 known tables, and "
    "`--help` as a whole process.",
    targets=(
        Target(
            text="idle CPU under 1 % of a core",
            quantity="idle_cpu_ratio",
            bound=0.01,
            direction="at most",
        ),
        MEMORY,
    ),
    seconds=lambda _plan: IDLE_SECONDS + 40.0,
    order=order,
    script=script,
)
