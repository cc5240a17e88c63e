"""Two engines and three on one configuration: one works, the others wait, and nobody doubles."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from databases import Database
from engine.servers.fault_proxy import requests_to
from engine.servers.servers import EmbeddedS3
from faults.load import Load
from faults.rig import PUBLICATION, Rig, rigged
from load_tests.engine_process import EngineProcess, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

HAND_OVERS = 3
HAND_OVER_SECONDS_MAX = 45.0
"""A standby tries every 2 s; the rest is for a machine that does other things too. It is less than
any time limit of the server's or of ours, which nobody is to wait for."""

OBJECT = requests_to("PUT", ".ndjson.")


@pytest.fixture
async def rig(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    async with rigged(database, s3, bucket, s3_client, tmp_path) as rig:
        yield rig


async def standing_by(rig: Rig, name: str) -> EngineProcess:
    engine = rig.start(name)
    await engine.reaches("standby")
    return engine


async def writers_of_objects(rig: Rig) -> set[str]:
    """The ids that objects carry as their writer."""
    keys = [key for key in (await rig.image.look()).keys if ".ndjson." in key]
    return {(await rig.image.metadata(key))["writer"] for key in keys}


async def writer_of(engine: EngineProcess) -> str:
    status = await engine.status()
    assert status is not None
    writer: str = status["writer_id"]
    return writer


async def some_objects(rig: Rig, more_than: int = 0) -> int:
    """How many objects there are, once there are more than so many."""

    async def look() -> int | None:
        count = len((await rig.image.look()).planned)
        return count if count > more_than else None

    return await until(look, f"more than {more_than} objects")


@pytest.mark.timeout(300)
async def test_a_standby_is_ready_writes_nothing_and_ends_well(rig: Rig) -> None:
    active = await rig.streaming("active")
    standby = await standing_by(rig, "standby")

    async with Load(rig.database, seed=1).running():
        await some_objects(rig, 5)
        readiness = await standby.readiness()
        await standby.stop()

    assert readiness == (200, {"ready": True, "phase": "standby"})
    assert (await rig.image.look()).epochs == [await writer_of(active)]
    assert await writers_of_objects(rig) == {await writer_of(active)}
    await active.stop()
    await rig.proven()


@pytest.mark.timeout(300)
async def test_a_standby_that_waits_writes_nothing_to_the_servers_log(
    any_database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> None:
    log = any_database.server.log
    async with rigged(any_database, s3, bucket, s3_client, tmp_path) as rig:
        await rig.streaming("active")
        standby = await standing_by(rig, "standby")
        size_before = log.stat().st_size
        # It tries every 2 s.
        await asyncio.sleep(5)

        assert standby.is_running
        lines = log.read_bytes()[size_before:].decode().splitlines()
        assert [line for line in lines if any_database.name in line and "ERROR" in line] == []


@pytest.mark.timeout(300)
async def test_a_frozen_engine_that_wakes_up_is_superseded(rig: Rig) -> None:
    active = await rig.streaming("active")
    standby = await standing_by(rig, "standby")
    frozen_writer, next_writer = await writer_of(active), await writer_of(standby)

    async with Load(rig.database, seed=2, rate=20).running():
        await some_objects(rig)
        hold = rig.proxy.hold_next(OBJECT)
        held = await hold.wait_reached()
        active.send(signal.SIGSTOP)
        await standby.reaches("streaming", seconds=40)
        await some_objects(rig, len((await rig.image.look()).planned) + 2)
        hold.release()
        active.send(signal.SIGCONT)
        code = await active.ended(seconds=40)

    assert code == 75, active.complaint
    assert "another writer" in active.log
    assert (await rig.image.look()).epochs == [frozen_writer, next_writer]
    assert (await rig.image.metadata(held.key))["writer"] == next_writer
    await standby.stop()
    await rig.proven()


@pytest.mark.timeout(300)
async def test_a_rolling_deploy_hands_over_again_and_again(rig: Rig) -> None:
    loop = asyncio.get_running_loop()
    active = await rig.streaming("engine")
    writers = [await writer_of(active)]
    seconds: list[float] = []

    async with Load(rig.database, seed=3, rate=20).running():
        for _ in range(HAND_OVERS):
            standby = await standing_by(rig, "engine")
            began = loop.time()
            active.send(signal.SIGTERM)
            await standby.reaches("streaming", seconds=HAND_OVER_SECONDS_MAX)
            seconds.append(loop.time() - began)
            assert await active.ended() == 0, active.complaint
            active = standby
            # Its predecessor's last entry may be one that it absorbed while it opened.
            (opened,) = active.events("journal opened")
            assert opened["text"].endswith("which ended well")
            writers.append(await writer_of(active))
            await some_objects(rig, len((await rig.image.look()).planned))

    print(f"handed over in {[f'{second:.1f}' for second in seconds]} s")  # noqa: T201 - measured
    assert (await rig.image.look()).epochs == writers
    await active.stop()
    await rig.proven()


@pytest.mark.timeout(300)
async def test_a_standby_takes_over_from_a_killed_engine(rig: Rig) -> None:
    active = await rig.streaming("active")
    standby = await standing_by(rig, "standby")

    async with Load(rig.database, seed=4).running():
        await some_objects(rig, 3)
        active.kill()
        await standby.reaches("streaming", seconds=HAND_OVER_SECONDS_MAX)

    await standby.stop()
    await rig.proven()


@pytest.mark.timeout(300)
async def test_three_engines_begin_an_empty_prefix_at_the_same_instant(rig: Rig) -> None:
    # Nothing is there: publication and slot are made by whoever comes first.
    rig.twin.drop()
    rig.database.execute("DROP PUBLICATION tailrace")
    assert PUBLICATION == "tailrace"
    engines = [rig.start(f"engine-{letter}") for letter in "abc"]
    phases = [(await engine.reaches("streaming", "standby"))["phase"] for engine in engines]
    [active] = [
        engine for engine, phase in zip(engines, phases, strict=True) if phase == "streaming"
    ]

    rig.database.execute("INSERT INTO entries (account) SELECT 'a' FROM generate_series(1, 5000)")
    await some_objects(rig)
    await rig.catch_up_with(active)

    verdict = await rig.verdict()
    assert sorted(phases) == ["standby", "standby", "streaming"]
    assert (verdict["ok"], verdict["rows"]) == (True, 5000), verdict
    assert (await rig.image.look()).epochs == [await writer_of(active)]
    assert await writers_of_objects(rig) == {await writer_of(active)}
    for engine in engines:
        await engine.stop()


@pytest.mark.timeout(300)
async def test_a_takeover_says_once_that_a_table_is_not_published(rig: Rig) -> None:
    """`check` says it before; a start leaves it to the alarm."""
    rig.database.execute("CREATE TABLE unpublished (id int PRIMARY KEY)")
    active = await rig.streaming("active")
    standby = await standing_by(rig, "standby")

    async def alarmed() -> bool:
        return bool(standby.events("alarm"))

    await active.stop()
    await until(alarmed, "the alarm")
    check = rig._start(rig.pipeline, "check", "check", "--json")
    code = await check.ended()
    await standby.stop()

    for engine in (active, standby):
        lines = [line for line in engine.log.splitlines() if "public.unpublished" in line]
        assert len([line for line in lines if '"event":"gap"' not in line]) == 1, lines
    steps = json.loads(check.output.read_text())["steps"]
    found = [step for step in steps if "ADD TABLE ONLY" in step["hint"]]
    assert code == 0
    assert len(found) == 1, steps
