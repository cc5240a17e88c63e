"""The log tells what happened, one line for each event, and `/status` shows the same."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from databases import Database
from engine.servers.fault_proxy import TcpFaultProxy
from engine.servers.servers import EmbeddedS3
from faults.load import TABLES
from faults.rig import PREFIX, Rig, rigged
from load_tests.engine_process import EngineProcess, until
from test_live_tables import LOOKS_OFTEN

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

Source = tuple[TcpFaultProxy, Database]

TABLE = "public.orders"
ADD = "INSERT INTO orders (id) SELECT coalesce(max(id), 0) + 1 FROM orders"

STORY = (
    ("schema changed", "info"),
    ("table truncated", "info"),
    ("connection to the source lost", "warning"),
    ("connected to the source again", "info"),
    ("bucket stalled", "warning"),
    ("bucket answers again", "info"),
    ("gap", "error"),
)
KINDS = [
    "takeover",
    "schema-change",
    "truncation",
    "connection-lost",
    "connection-back",
    "bucket-stalled",
    "bucket-back",
    "gap",
]
OTHER_KINDS = {"phase", "alarm", "snapshot-begun", "snapshot-finished"}
STALLED = (True, "wait", "silent")


@pytest.fixture
async def source(database: Database) -> AsyncIterator[Source]:
    async with TcpFaultProxy(database.server.port) as proxy:
        yield proxy, database


@pytest.fixture
async def rig(
    source: Source, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    proxy, database = source
    keys = {
        "source__dsn": psycopg.conninfo.make_conninfo(database.dsn, port=proxy.port),
        "source__snapshot": "initial",
        "source__snapshot_workers": "local:1",
        "source__new_tables": "report",
    }
    async with rigged(database, s3, bucket, s3_client, tmp_path, keys=keys) as rig:
        rig.pipeline = replace(rig.pipeline, preamble=LOOKS_OFTEN)
        yield rig


async def told(engine: EngineProcess, event: str, **fields: object) -> dict[str, Any]:
    """The first line of that event with those fields, once there is one."""

    async def look() -> dict[str, Any] | None:
        lines = engine.events(event)
        return next((line for line in lines if fields.items() <= line.items()), None)

    return await until(look, f"{event} in the log of {engine.name}")


async def status_of(engine: EngineProcess) -> dict[str, Any]:
    status = await engine.status()
    assert status is not None
    return status


async def changes_and_truncates(rig: Rig, engine: EngineProcess) -> None:
    rig.database.execute("ALTER TABLE orders ADD COLUMN extra text")
    rig.database.execute(ADD)
    changed = await told(engine, "schema changed", table=TABLE)
    rig.database.execute("TRUNCATE orders")
    await told(engine, "table truncated", table=TABLE)

    assert (changed["version"], changed["kinds"]) == (2, ["column_added"])


async def stalls(rig: Rig, engine: EngineProcess) -> dict[str, Any]:
    """The status while the bucket does not answer."""
    with rig.proxy.blackout():
        rig.database.execute(ADD)
        await told(engine, "bucket stalled")
        status = await status_of(engine)
    await told(engine, "bucket answers again")
    await rig.catch_up_with(engine)
    return status


@pytest.mark.timeout(300)
async def test_whatever_happens_to_an_engine_has_one_line(rig: Rig, source: Source) -> None:
    engine = await rig.streaming()
    for table in TABLES:
        await told(engine, "snapshot finished", table=f"public.{table}")
    await changes_and_truncates(rig, engine)
    source[0].reset_connections()
    await told(engine, "connected to the source again")
    await rig.catch_up_with(engine)
    stalled = await stalls(rig, engine)
    rig.database.execute("ALTER PUBLICATION tailrace DROP TABLE items")
    await told(engine, "gap", table="public.items")
    status = await status_of(engine)
    engine.kill()
    successor = await rig.streaming("successor")

    assert [(name, engine.events(name)[0]["level"]) for name, _ in STORY] == [*STORY]
    assert {name: len(engine.events(name)) for name, _ in STORY} == dict.fromkeys(dict(STORY), 1)
    [opened] = successor.events("journal opened")
    assert "was killed, or may still run" in opened["text"]
    assert (stalled["ready"], stalled["health"], stalled["bucket"]["state"]) == STALLED
    assert stalled["health_reason"].startswith("the bucket has not answered for ")
    assert stalled["durable_lag_seconds"] > 0
    judge_status(status)


def judge_status(status: dict[str, Any]) -> None:
    kinds = [event["kind"] for event in status["events"]]
    assert kinds.count("snapshot-finished") == len(TABLES)
    assert [kind for kind in kinds if kind not in OTHER_KINDS] == KINDS
    assert status["destination"] == f"s3://{status['bucket']['name']}/{PREFIX}"
    assert [each["table"] for each in status["not_captured"]] == ["public.items"]
    assert status["not_captured_total"] == 1
    [orders] = [each for each in status["busiest"] if each["table"] == TABLE]
    assert (orders["version"], orders["snapshot"]) == (2, "finished")
    assert orders["last_object"].startswith(f"{PREFIX}/")
    assert status["tables_total"] == len(TABLES)
    assert status["retention"]["limit"] is None
    assert status["process_memory_bytes"] > status["memory_used_bytes"]
