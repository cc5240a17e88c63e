"""What is larger than any buffer: a transaction of very many rows, a row beyond the budget."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from databases import Database
from engine.config import Address
from engine.flow import chunk
from engine.operate.http_server import HttpServer
from engine.servers.servers import EmbeddedS3
from faults.rig import Rig, rigged
from live_engine import LiveEngine
from load_tests.engine_process import EngineProcess, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

MIB = 1024 * 1024
MEMORY_LIMIT = 16 * MIB
VALUE_BYTES = 40_000_000
VALUE_COPIES_MAX = 3
"""libpq's buffer; the frame, which becomes the line; the line's compressed form."""

# The row's text has VALUE_BYTES. Nothing in it compresses to less than half.
LARGE_ROWS = {
    "text": ("a text", "md5s"),
    "bytea": ("a bytea", "decode(md5s, 'hex')"),
    "json": ("a json", "to_json(md5s)"),
    "several": (
        "a text, b bytea, c jsonb, d text",
        (
            "left(md5s, {quarter}), decode(left(md5s, {quarter}), 'hex'),"
            " to_jsonb(left(md5s, {quarter})), left(md5s, {quarter})"
        ),
    ),
}


@pytest.fixture
async def rig(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    keys = {
        "engine__memory_limit": "16MiB",
        "chunk__max_rows": 50_000,
        "chunk__max_age": "1s",
    }
    async with rigged(database, s3, bucket, s3_client, tmp_path, keys=keys) as rig:
        yield rig


def grown(engine: EngineProcess, base: int) -> int:
    """Resident memory beyond `base` at its peak."""
    size = engine.memory_bytes_max() - base
    print(f"base {base / MIB:.0f} MiB, grown by {size / MIB:.0f} MiB")  # noqa: T201 - measured
    return size


# Every row takes some 270 bytes of lines, so that 300,000 of them are five times the limit.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rows", [300_000, pytest.param(4_000_000, marks=pytest.mark.long)])
async def test_one_transaction_of_many_rows_passes_in_bounded_memory(rig: Rig, rows: int) -> None:
    engine = await rig.streaming()
    base = engine.memory_bytes()

    await asyncio.to_thread(
        rig.database.execute,
        "INSERT INTO entries (account, amount) SELECT md5(i::text), i FROM"
        " generate_series(1, %s) AS i",
        rows,
    )
    await rig.catch_up_with(engine, seconds=300)

    size = grown(engine, base)
    await engine.stop()
    verdict = await rig.verdict()
    planned = list((await rig.image.look()).planned)
    ids = [
        json.loads(line)["after"]["id"]
        for key in planned
        for lines in await rig.image.lines([key])
        for line in lines.splitlines()
    ]
    assert verdict["ok"], verdict
    assert ids == list(range(1, rows + 1))
    assert len(planned) > 5
    assert size <= 4 * MEMORY_LIMIT


def md5s(size: int) -> str:
    """What LARGE_ROWS's values are made of."""
    digests = (hashlib.md5(str(i).encode()).hexdigest() for i in range(1, size // 32 + 1))
    return "".join(digests)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", LARGE_ROWS)
async def test_a_row_larger_than_the_budget_passes_alone_in_three_times_its_size(
    rig: Rig, kind: str
) -> None:
    columns, values = LARGE_ROWS[kind]
    rig.database.execute(f"CREATE TABLE large (id integer PRIMARY KEY, {columns})")
    rig.database.execute("ALTER TABLE large ALTER a SET STORAGE EXTERNAL")
    rig.database.execute("ALTER PUBLICATION tailrace ADD TABLE large")
    engine = await rig.streaming()
    base = engine.memory_bytes()
    insert = "INSERT INTO entries (account) "

    rig.database.execute(insert + "SELECT 'before ' || i FROM generate_series(1, 100) i")
    await asyncio.to_thread(
        rig.database.execute,
        f"INSERT INTO large SELECT 1, {values.format(quarter=VALUE_BYTES // 4)} FROM"
        " (SELECT string_agg(md5(i::text), '') AS md5s"
        f" FROM generate_series(1, {VALUE_BYTES // 32}) i) AS made",
    )
    rig.database.execute(insert + "SELECT 'after ' || i FROM generate_series(1, 100) i")
    await rig.catch_up_with(engine)

    size = grown(engine, base)
    await engine.stop()
    verdict = await rig.verdict()
    keys = [key for key in (await rig.image.look()).planned if "/table=large/" in key]
    [lines] = await rig.image.lines(keys)
    written = json.loads(lines)["after"]
    assert verdict["ok"], verdict
    assert written.pop("id") == 1
    for name, value in written.items():
        is_bytea = f"{name} bytea" in columns
        text = base64.b64decode(value).hex() if is_bytea else value
        assert text == md5s(len(text))
    assert sum(map(len, written.values())) >= VALUE_BYTES // 2
    assert size <= VALUE_COPIES_MAX * VALUE_BYTES


@pytest.mark.timeout(300)
async def test_livez_answers_while_a_large_row_is_compressed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least once a row, whatever its size and however busy the machine is."""
    database.execute("CREATE TABLE large (id integer PRIMARY KEY, a text)")
    database.execute("ALTER TABLE large ALTER a SET STORAGE EXTERNAL")
    live = LiveEngine(database)
    answers = 0
    answered_meanwhile: list[int] = []
    compress = chunk._Gzip.piece

    def noted(gzip: chunk._Gzip, raw: list[bytes]) -> list[bytes]:
        before = answers
        parts = compress(gzip, raw)
        if sum(map(len, raw)) >= VALUE_BYTES:
            answered_meanwhile.append(answers - before)
        return parts

    async def ask(client: aiohttp.ClientSession) -> None:
        nonlocal answers
        while True:
            async with client.get("/livez") as answer:
                answers += answer.status == 200
            await asyncio.sleep(0.001)

    monkeypatch.setattr(chunk._Gzip, "piece", noted)
    async with live.living() as pipeline:
        port = HttpServer(Address("127.0.0.1", 0), pipeline.status, CollectorRegistry())
        async with (
            port as server,
            aiohttp.ClientSession(f"http://{server.address}") as client,
            asyncio.TaskGroup() as group,
        ):
            asking = group.create_task(ask(client))
            await asyncio.to_thread(
                database.execute,
                f"INSERT INTO large SELECT 1, string_agg(md5(i::text), '')"
                f" FROM generate_series(1, {VALUE_BYTES // 32}) i",
            )

            async def visible() -> bool:
                return pipeline.status().objects_total == 1

            await until(visible, "the row", seconds=60)
            asking.cancel()

    [count] = answered_meanwhile
    assert count >= 1
    [record] = live.records("public.large")
    assert record["after"]["a"] == md5s(VALUE_BYTES)
    await live.proven()
