"""`kill -9` of the engine at any moment, under load: nothing lost, nothing doubled.

Some of the kills are aimed: the proxy holds one request or its answer, so the engine dies with
certainty inside a window of the protocol. The others come at times of a seeded clock. Each is
judged afterwards from what is left. Every window has to have been hit.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from databases import Database
from engine.servers.fault_proxy import Hold, Request, requests_to
from engine.servers.servers import EmbeddedS3
from faults.load import Load
from faults.rig import Rig, rigged
from faults.windows import Aftermath, Window
from load_tests.engine_process import EngineProcess

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

A_BIG_TRANSACTION = 12_000

Aim = Callable[[Rig, EngineProcess, Load], Awaitable[Hold | None]]

ENTRY = requests_to("PUT", "/_tailrace/journal/")
OBJECT = requests_to("PUT", ".ndjson.")


@pytest.fixture
async def rig(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    async with rigged(
        database, s3, bucket, s3_client, tmp_path, keys={"chunk__max_rows": 2000}
    ) as rig:
        yield rig


# --- where to strike


async def held_entry(rig: Rig, engine: EngineProcess, load: Load) -> Hold:
    """Before a plan: the journal never heard of it."""
    await engine.reaches("streaming")
    return await caught(rig.proxy.hold_next(ENTRY))


async def held_object(rig: Rig, engine: EngineProcess, load: Load) -> Hold:
    """Between plan and publish."""
    await engine.reaches("streaming")
    return await caught(rig.proxy.hold_next(OBJECT))


async def held_answer_of_object(rig: Rig, engine: EngineProcess, load: Load) -> Hold:
    """Between publish and durable: the object is there, its writer does not know."""
    await engine.reaches("streaming")
    return await caught(rig.proxy.hold_next(OBJECT, applied=True))


async def held_answer_of_entry(rig: Rig, engine: EngineProcess, load: Load) -> Hold:
    """Between durable and acknowledge: the entry is there, its writer does not know."""
    await engine.reaches("streaming")
    while True:
        hold = await caught(rig.proxy.hold_next(ENTRY, applied=True))
        entries = (await rig.image.look()).entries
        if "durable" in entries[-1]:
            return hold
        hold.release()


async def held_inside_transaction(rig: Rig, engine: EngineProcess, load: Load) -> Hold:
    """The second object of one big transaction in one table: the last ones are not planned yet."""
    await engine.reaches("streaming")
    commits: Counter[str] = Counter()

    def is_second(request: Request) -> bool:
        if not OBJECT(request) or "table=items" not in request.key:
            return False
        commit = request.key.rsplit("/", 1)[-1].split(".")[1]
        commits[commit] += 1
        return commits[commit] == 2

    hold = rig.proxy.hold_next(is_second)
    await load.one_big(A_BIG_TRANSACTION)
    return await caught(hold)


async def caught(hold: Hold) -> Hold:
    await hold.wait_reached(120)
    return hold


def at_random(chance: random.Random) -> Aim:
    """Some time after the start, or after the stream began."""
    from_start, seconds = chance.random() < 0.5, chance.random()

    async def aim(rig: Rig, engine: EngineProcess, load: Load) -> None:
        if not from_start:
            await engine.reaches("streaming")
        await asyncio.sleep(3 * seconds if from_start else 1.2 * seconds)

    return aim


AIMED: tuple[tuple[Aim, Window], ...] = (
    (held_entry, Window.BEFORE_PLAN),
    (held_object, Window.PLAN_TO_PUBLISH),
    (held_object, Window.PLAN_TO_PUBLISH),
    (held_object, Window.PLAN_TO_PUBLISH),
    (held_answer_of_object, Window.PUBLISH_TO_DURABLE),
    (held_answer_of_object, Window.PUBLISH_TO_DURABLE),
    (held_answer_of_entry, Window.DURABLE_TO_ACKNOWLEDGE),
    (held_answer_of_entry, Window.DURABLE_TO_ACKNOWLEDGE),
    (held_inside_transaction, Window.INSIDE_TRANSACTION),
    (held_inside_transaction, Window.INSIDE_TRANSACTION),
    (held_entry, Window.BEFORE_PLAN),
    (held_answer_of_object, Window.PUBLISH_TO_DURABLE),
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [15, pytest.param(60, marks=pytest.mark.long)])
async def test_kills_lose_and_double_nothing(rig: Rig, seed: int, kills: int) -> None:
    chance = random.Random(seed)
    plan: list[tuple[Aim, Window | None]] = [*AIMED]
    plan += [(at_random(chance), None) for _ in range(kills - len(AIMED))]
    chance.shuffle(plan)
    await (await rig.streaming("first")).stop()
    load = Load(rig.database, seed, rate=15, big_every=100)

    struck: list[tuple[Window | None, Aftermath]] = []
    async with load.running():
        for aim, window in plan:
            struck.append((window, await one_life(rig, load, aim, chance)))

    comparison = await rig.proven()
    stream = await asyncio.to_thread(rig.twin.changes)
    hits = [(window, aftermath.windows(stream)) for window, aftermath in struck]
    for number, (window, windows) in enumerate(hits):
        names = ", ".join(sorted(hit.name for hit in windows))
        print(f"kill {number}: aimed at {window.name if window else 'nothing'}, hit {names}")  # noqa: T201 - what a failure needs to be told
    counts = Counter(hit for _, windows in hits for hit in windows)
    print(f"{comparison.row_count} rows; {dict(counts)}")  # noqa: T201 - what a failure needs to be told
    assert not [after for _, after in struck if after.is_acknowledged_too_far]
    assert [window for window, windows in hits if window and window not in windows] == []
    assert set(counts) == set(Window)


async def one_life(rig: Rig, load: Load, aim: Aim, chance: random.Random) -> Aftermath:
    """Start an engine, kill it where `aim` says, and look at what it left.

    Half of the held requests arrive late: when the next engine has begun.
    """
    engine = rig.start()
    hold = await aim(rig, engine, load)
    assert engine.is_running, engine.complaint
    engine.kill()
    aftermath = await rig.aftermath()
    if hold is not None and chance.random() < 0.5:
        hold.release()
    return aftermath


@pytest.mark.timeout(240)
async def test_kills_at_the_journals_state_files_lose_nothing(rig: Rig) -> None:
    short = "from engine.journal import journal; journal.STATE_INTERVAL = 10\n"
    rig.pipeline = replace(rig.pipeline, preamble=short)
    is_state = requests_to("PUT", "/_tailrace/state/")
    late: list[Hold] = []
    await (await rig.streaming("first")).stop()

    async with Load(rig.database, seed=5, rate=40, is_one_table=True).running():
        for is_applied in (False, True, False):
            hold = rig.proxy.hold_next(is_state, applied=is_applied)
            engine = await rig.streaming()
            await hold.wait_reached(120)
            engine.kill()
            late.append(hold)
    # The last state is not there yet: the next engine reads an older one and the entries behind it.
    await (await rig.streaming()).stop()
    for hold in late:
        hold.release()

    await rig.proven()
    states = [request for request in rig.proxy.requests if "/_tailrace/state/" in request.key]
    assert [request.method for request in states if request.method != "PUT"][-1] == "GET"
