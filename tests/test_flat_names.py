"""Columns that are called as the flat envelope's own fields; and what `max_rows` promises."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from databases import Database
from engine.servers.fault_proxy import Hold, requests_to
from engine.servers.servers import EmbeddedS3
from faults.rig import Rig, rigged
from load_tests.engine_process import EngineProcess, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client


# Each runs several engines, one after the other.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def rig(
    any_database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    keys = {"destination__envelope": "flat"}
    async with rigged(any_database, s3, bucket, s3_client, tmp_path, keys=keys) as rig:
        yield rig


async def records(rig: Rig) -> list[dict[str, Any]]:
    keys = sorted((await rig.image.look()).planned)
    return [
        json.loads(line) for lines in await rig.image.lines(keys) for line in lines.splitlines()
    ]


async def checked(rig: Rig) -> tuple[int, dict[str, Any]]:
    with EngineProcess(rig.pipeline, rig.folder, "check", "check", "--json") as process:
        code = await process.ended()
        return code, json.loads(process.output.read_text())


async def test_a_first_start_refuses_a_column_with_one_of_its_names_and_a_prefix_mends_it(
    rig: Rig,
) -> None:
    rig.database.execute("ALTER TABLE entries ADD COLUMN _op text")
    renamed = rig.pipeline.changed(destination__flat_prefix="tr_")

    engine = rig.start()
    code = await engine.ended()
    check_code, check = await checked(rig)
    rig.pipeline = renamed
    await rig.catch_up()
    rig.database.execute("INSERT INTO entries (account, _op) VALUES ('a', 'mine')")
    await rig.catch_up()

    assert (code, check_code) == (78, 78)
    assert "public.entries._op" in engine.complaint
    assert "flat_prefix" in engine.complaint
    assert any("public.entries._op" in step["detail"] for step in check["steps"])
    [record] = await records(rig)
    assert (record["_op"], record["tr_op"], record["tr_version"]) == ("mine", "c", 1)
    assert (await rig.verdict())["ok"]


async def test_a_column_that_comes_later_has_its_name_and_ours_give_way(
    rig: Rig, bucket: str, s3_client: "S3Client"
) -> None:
    engine = await rig.streaming()
    rig.database.execute("INSERT INTO entries (account) VALUES ('first')")
    await rig.catch_up_with(engine)
    hold = rig.proxy.hold_next(requests_to("PUT", ".ndjson."))

    rig.database.execute("ALTER TABLE entries ADD COLUMN _op text, ADD COLUMN __version text")
    rig.database.execute("INSERT INTO entries (account, _op) VALUES ('second', 'mine')")
    await until(reached(hold), "a planned object under way")
    engine.kill()
    await rig.catch_up()
    check_code, check = await checked(rig)
    verdict = await rig.verdict()
    prefixes = []
    for key in sorted((await rig.image.look()).planned):
        schema_key = key.partition("/year=")[0] + "/schema.json"
        answer = await s3_client.get_object(Bucket=bucket, Key=schema_key)
        prefixes.append(json.loads(await answer["Body"].read())["flat_prefix"])

    first, second = await records(rig)
    assert (first["_op"], first["_version"]) == ("c", 1)
    assert (second["_op"], second["___op"], second["___version"]) == ("mine", "c", 2)
    assert verdict["ok"], verdict
    assert check_code == 0
    assert any("public.entries._op" in step["detail"] for step in check["steps"])
    assert prefixes == ["_", "___"]


async def test_no_object_has_more_rows_than_may_be(rig: Rig) -> None:
    rig.pipeline = rig.pipeline.changed(chunk__max_rows=100)
    engine = await rig.streaming()

    rig.database.execute(
        "INSERT INTO entries (account) SELECT md5(i::text) FROM generate_series(1, 1000) i"
    )
    for _ in range(20):
        rig.database.execute(
            "INSERT INTO entries (account) SELECT md5(i::text) FROM generate_series(1, 33) i"
        )
    await rig.catch_up_with(engine)
    await engine.stop()
    keys = sorted((await rig.image.look()).planned)

    counts = [lines.count(b"\n") for lines in await rig.image.lines(keys)]
    assert sum(counts) == 1660
    assert max(counts) == 100
    assert (await rig.verdict())["ok"]


def reached(hold: Hold) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return bool(hold.is_reached)

    return look
