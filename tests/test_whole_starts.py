"""Whole starts with real servers: a dsn meant for replication, a bucket that others use as well."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from databases import Database
from engine.demo.servers import EmbeddedS3
from faults.rig import PREFIX, Rig, rigged
from load_tests.engine_process import EngineProcess, Pipeline
from load_tests.fault_proxy import Answer, requests_to

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

pytestmark = pytest.mark.timeout(120)

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
