"""A stream that fails of itself: what a real server says is what the engine says."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from databases import fresh_database
from engine.servers.servers import EmbeddedPostgres, EmbeddedS3
from faults.rig import Rig, rigged
from load_tests.engine_process import EngineProcess

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

ADD = "INSERT INTO entries (account) SELECT 'a' FROM generate_series(1, 50)"
SECRET = "s3kr1t"


@pytest.fixture
async def western(
    any_postgres: EmbeddedPostgres,
    s3: EmbeddedS3,
    bucket: str,
    s3_client: "S3Client",
    tmp_path: Path,
) -> AsyncIterator[Rig]:
    """A pipeline from a database in an encoding that has bytes without a character."""
    with fresh_database(any_postgres, encoding="WIN1252") as database:
        async with rigged(database, s3, bucket, s3_client, tmp_path) as rig:
            yield rig


async def failing(engine: EngineProcess) -> dict[str, Any]:
    """`/status` when the engine says that its source fails."""
    return await engine.reaches("failing", seconds=60)


@pytest.mark.timeout(300)
async def test_a_value_without_a_form_in_utf8_is_named_alarmed_and_not_hidden(
    western: Rig,
) -> None:
    western.database.execute(ADD)
    engine = await western.streaming()
    await western.catch_up_with(engine)

    western.database.execute("INSERT INTO entries (account) VALUES (%s || chr(129))", SECRET)
    status = await failing(engine)

    ready = await engine.readiness()
    assert ready is not None
    assert ready[0] == 503
    assert "22P05" in ready[1]["reason"]
    [alarm] = status["alarms"]
    assert alarm["code"] == "source-failing"
    assert "22P05" in alarm["text"]
    assert "public.entries" in alarm["text"]
    assert "CHECK" in alarm["hint"]
    assert "held by process" not in engine.log
    assert SECRET not in engine.log
    assert SECRET not in str(status)


@pytest.mark.timeout(300)
async def test_a_start_that_meets_the_value_first_says_the_same(western: Rig) -> None:
    engine = await western.streaming()
    western.database.execute(ADD)
    await western.catch_up_with(engine)
    await engine.stop()
    western.database.execute("INSERT INTO entries (account) VALUES (%s || chr(129))", SECRET)

    successor = western.start("successor")
    status = await failing(successor)

    assert "22P05" in str(status["last_error"])
    assert "public.entries" in str(status["alarms"])
    assert "held by process None" not in successor.log
    assert len(successor.events("alarm")) == 1
