"""What is larger than any buffer: a transaction of a million rows, a row beyond the budget."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from databases import Database
from engine.demo.servers import EmbeddedS3
from faults.rig import Rig, rigged
from load_tests.engine_process import EngineProcess

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

MIB = 1024 * 1024
MEMORY_LIMIT = 16 * MIB
ROWS = 1_000_000
VALUE_BYTES = 40_000_000
VALUE_COPIES_MAX = 5
"""libpq's buffer, doubled as it grows, the frame, the line, its compressed form, the request."""


@pytest.fixture
async def rig(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    keys = {
        "engine__memory_limit": "16MiB",
        "chunk__max_rows": 100_000,
        "chunk__max_age": "1s",
    }
    async with rigged(database, s3, bucket, s3_client, tmp_path, keys=keys) as rig:
        yield rig


def grown(engine: EngineProcess, base: int) -> int:
    """Resident memory beyond `base` at its peak."""
    size = engine.memory_bytes_max() - base
    print(f"base {base / MIB:.0f} MiB, grown by {size / MIB:.0f} MiB")  # noqa: T201 - measured
    return size


@pytest.mark.timeout(150)
async def test_a_million_rows_in_one_transaction_pass_in_bounded_memory(rig: Rig) -> None:
    engine = await rig.streaming()
    base = engine.memory_bytes()

    await asyncio.to_thread(
        rig.database.execute,
        "INSERT INTO entries (account, amount) SELECT md5(i::text), i FROM"
        " generate_series(1, 1000000) AS i",
    )
    await rig.catch_up_with(engine)

    size = grown(engine, base)
    await engine.stop()
    verdict = await rig.verdict()
    planned = list((await rig.image.look()).planned)
    ids = [
        json.loads(line)["after"]["id"]
        for lines in await rig.image.lines(planned)
        for line in lines.splitlines()
    ]
    assert verdict["ok"], verdict
    assert ids == list(range(1, ROWS + 1))
    assert len(planned) > 5
    assert size <= 4 * MEMORY_LIMIT


@pytest.mark.timeout(90)
async def test_a_row_larger_than_the_budget_passes_alone(rig: Rig) -> None:
    rig.database.execute("ALTER TABLE entries ALTER account SET STORAGE EXTERNAL")
    engine = await rig.streaming()
    base = engine.memory_bytes()
    insert = "INSERT INTO entries (account) "

    rig.database.execute(insert + "SELECT 'before ' || i FROM generate_series(1, 100) i")
    await asyncio.to_thread(
        rig.database.execute,
        insert + "SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1250000) AS i",
    )
    rig.database.execute(insert + "SELECT 'after ' || i FROM generate_series(1, 100) i")
    await rig.catch_up_with(engine)

    size = grown(engine, base)
    await engine.stop()
    [(longest,)] = rig.database.execute("SELECT max(length(account)) FROM entries")
    assert longest == VALUE_BYTES
    assert size <= MEMORY_LIMIT + VALUE_COPIES_MAX * VALUE_BYTES
    await rig.proven()
