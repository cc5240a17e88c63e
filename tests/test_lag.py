"""Lag: 0 where nothing waits, however long the source is idle; never 0 where something does."""

import asyncio
import time
from dataclasses import replace

import pytest

from databases import Database
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from live_engine import LiveEngine, settings_of
from load_tests.engine_process import until

pytestmark = pytest.mark.timeout(300)

IDLE_SECONDS = 2.5
UNITS = ("seconds", "bytes")


def durable_age(pipeline: Pipeline) -> float:
    return time.time() - pipeline.status().durable_commit_us / 1e6


async def test_an_idle_source_has_no_lag(any_database: Database) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    engine = LiveEngine(any_database, replace(settings_of(), idle_interval=30.0))

    async with engine.living() as pipeline:
        any_database.execute("INSERT INTO a VALUES (1)")

        async def idle() -> bool:
            status = pipeline.status()
            is_old = status.objects_total == 1 and durable_age(pipeline) > IDLE_SECONDS
            unread = (status.lag_seconds, status.lag)
            return is_old and (*unread, status.durable_lag_seconds, status.durable_lag) == (0,) * 4

        def gauge(name: str) -> float | None:
            return pipeline._world.metrics.registry.get_sample_value(name)

        async def measured() -> bool:
            names = (f"{kind}lag_{unit}" for kind in ("", "durable_") for unit in UNITS)
            return [gauge(f"tailrace_{name}") for name in names] == [0] * 4

        await until(idle, "no lag")
        await until(measured, "no lag in the metrics", seconds=40)


async def test_a_row_that_is_not_durable_is_a_lag_that_grows(any_database: Database) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    engine = LiveEngine(any_database, settings_of(age_seconds_max=30.0))

    async with engine.living() as pipeline:
        any_database.execute("INSERT INTO a VALUES (1)")

        async def waiting() -> bool:
            status = pipeline.status()
            return status.rows_total == 1 and (status.durable_lag_seconds or 0.0) > IDLE_SECONDS

        await until(waiting, "a lag")
        status = pipeline.status()
        assert status.durable_lag
        assert (status.lag_seconds, status.lag) == (0, 0), "it was read"


async def test_a_start_behind_a_good_end_has_no_lag(any_database: Database) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    engine = LiveEngine(any_database, settings_of())
    async with engine.living() as pipeline:
        any_database.execute("INSERT INTO a VALUES (1)")

        async def idle() -> bool:
            return pipeline.status().objects_total == 1 and pipeline.lag().durable.seconds == 0

        await until(idle, "no lag")

    found: dict[str, set[float | None]] = {}
    stop = StopSignal()
    pipeline = engine._pipeline(stop)
    async with asyncio.TaskGroup() as group:
        group.create_task(pipeline.run())
        while pipeline.status().phase != "streaming":
            found.setdefault(pipeline.status().phase, set()).add(pipeline.lag().durable.seconds)
            await asyncio.sleep(0)
        stop.request("test")

    assert found["opening"] <= {None, 0.0}
