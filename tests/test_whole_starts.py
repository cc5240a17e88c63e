"""Whole starts with real servers: a dsn meant for replication, a bucket that others use as well."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from configured import make_s3_settings
from databases import Database
from engine.destinations.s3 import S3ObjectStore
from engine.journal import journal
from engine.reader.verify.problem import Code
from engine.servers.fault_proxy import Answer, requests_to
from engine.servers.servers import EmbeddedS3
from faults.rig import PREFIX, Rig, rigged
from live_engine import PREFIX as LAKE
from live_engine import LiveEngine
from load_tests.engine_process import EngineProcess, Pipeline

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

pytestmark = pytest.mark.timeout(300)

STATES = f"{LAKE}/_tailrace/state/"
ENTRIES = f"{LAKE}/_tailrace/journal/"
TABLES_KEY = "database=shop/schema=public/table=orders/version=0001/schema.json"
ROW = "INSERT INTO entries (account) VALUES ('a')"


@pytest.fixture
async def rig(
    any_database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    async with rigged(any_database, s3, bucket, s3_client, tmp_path) as rig:
        yield rig


async def checked(rig: Rig, pipeline: Pipeline) -> tuple[int, list[dict[str, object]]]:
    with EngineProcess(pipeline, rig.folder, "check", "check", "--json") as process:
        code = await process.ended()
        return code, json.loads(process.output.read_text())["steps"]


def slots_of_ours(rig: Rig) -> int:
    """The twin's slot is another one."""
    [(count,)] = rig.database.execute(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", rig.slot
    )
    return int(count)


async def test_a_dsn_for_replication_is_as_good_to_run_as_it_is_to_check(rig: Rig) -> None:
    pipeline = rig.pipeline.changed(source__dsn=f"{rig.database.dsn} replication=database")

    code, _ = await checked(rig, pipeline)
    await rig.catch_up(pipeline=pipeline)
    rig.database.execute(ROW)
    await rig.catch_up(pipeline=pipeline)

    assert code == 0
    await rig.proven()


async def test_a_start_aborts_no_uploads_of_others(
    rig: Rig, bucket: str, s3_client: "S3Client"
) -> None:
    ours = [f"{PREFIX}/{TABLES_KEY}", f"{PREFIX}/_tailrace/journal/{7:012d}.json"]
    theirs = [
        f"{PREFIX}-photos/cat.jpg",
        f"{PREFIX}-photos/{TABLES_KEY}",
        f"{PREFIX}/holiday/film.mov",
        f"{PREFIX}/inner/{TABLES_KEY}",
        "photos-2026/cat.jpg",
        "cat.jpg",
    ]
    for key in ours + theirs:
        await s3_client.create_multipart_upload(Bucket=bucket, Key=key)

    await rig.catch_up()

    answer = await s3_client.list_multipart_uploads(Bucket=bucket)
    assert sorted(upload["Key"] for upload in answer.get("Uploads", [])) == sorted(theirs)


async def test_a_bucket_that_may_only_be_read_leaves_no_slot(rig: Rig) -> None:
    denied = rig.proxy.inject(Answer(403, "AccessDenied"), requests_to("PUT"))

    engine = rig.start()
    code = await engine.ended()

    assert denied.hits > 0
    assert code == 78
    assert "s3:PutObject" in engine.complaint
    assert slots_of_ours(rig) == 0


async def test_check_says_how_large_a_row_may_be(rig: Rig) -> None:
    code, steps = await checked(
        rig,
        rig.pipeline.changed(source__max_row_bytes="3MiB", source__on_unrepresentable="gap"),
    )

    assert code == 0
    [detail] = [str(step["detail"]) for step in steps if step["name"] == "rows"]
    assert "up to 3 MiB each (source.max_row_bytes)" in detail
    assert "left out, as gaps" in detail


# --- a bucket whose rules take entries away


@pytest.fixture
async def live(
    any_database: Database,
    aws_environment: EmbeddedS3,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[LiveEngine]:
    """An engine in this process that writes to the bucket, and a state file every few entries."""
    monkeypatch.setattr(journal, "STATE_INTERVAL", 5)
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    settings = make_s3_settings(bucket=bucket, endpoint_url=aws_environment.endpoint_url)
    async with S3ObjectStore(settings) as store:
        yield LiveEngine(any_database, bucket=store)


async def a_life(engine: LiveEngine, *, first_id: int, rows: int) -> int | None:
    """Its epoch."""
    async with engine.living() as pipeline:
        for number in range(first_id, first_id + rows):
            engine.database.execute("INSERT INTO orders VALUES (%s)", number)
            await engine.durable(pipeline)
        return pipeline.status().epoch


async def test_entries_that_a_state_file_covers_may_be_gone(
    live: LiveEngine, bucket: str, s3_client: "S3Client"
) -> None:
    await a_life(live, first_id=1, rows=12)
    state = (await keys_of(s3_client, bucket, STATES))[-1]
    covered = int(state.rpartition("/")[2].partition(".")[0])
    for key in (await keys_of(s3_client, bucket, ENTRIES))[:covered]:
        await s3_client.delete_object(Bucket=bucket, Key=key)

    epoch = await a_life(live, first_id=100, rows=1)

    assert covered > 5
    assert epoch == 2
    await live.proven()


async def test_a_damaged_newest_state_file_stops_nothing(
    live: LiveEngine, bucket: str, s3_client: "S3Client"
) -> None:
    await a_life(live, first_id=1, rows=12)
    state = (await keys_of(s3_client, bucket, STATES))[-1]
    await s3_client.put_object(Bucket=bucket, Key=state, Body=b"damaged")

    epoch = await a_life(live, first_id=100, rows=1)

    assert epoch == 2
    problems = (await live.verdict()).problems
    assert [(problem.code, problem.key) for problem in problems] == [(Code.STATE_DIFFERS, state)]


async def keys_of(client: "S3Client", bucket: str, prefix: str) -> list[str]:
    answer = await client.list_objects_v2(Bucket=bucket, Prefix=prefix)
    return sorted(found["Key"] for found in answer.get("Contents", []))
