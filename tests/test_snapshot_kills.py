"""Snapshots beside a load, with engines and workers that are killed: the bucket is the table.

Engines die inside a window of the protocol: the proxy holds a request or its answer until they are
dead. Each kill is judged afterwards from what is left. Every window has to have been hit.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from databases import Database
from engine.servers.fault_proxy import Hold, HttpFaultProxy, Request, When
from engine.servers.servers import EmbeddedS3
from faults.snapshot_rig import Place, SnapshotRig, range_bytes
from faults.snapshots import (
    TABLES,
    RandomLoad,
    SnapshotWindow,
    is_completion,
    is_part,
    make_tables,
    snapshot_windows,
    table_rows,
    worker_processes,
)
from load_tests.engine_process import EngineProcess, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

RANGES_A_TABLE = 8
ROW_BYTES = 100


# --- where to strike


@dataclass(slots=True)
class Trap:
    """Holds requests of one engine. Those of the next one go through."""

    proxy: HttpFaultProxy
    holds: list[Hold] = field(default_factory=list)
    is_set: bool = True

    def hold_next(self, when: When, *, applied: bool = False) -> Hold:
        """Hold the next request, or its answer."""

        def catches(request: Request) -> bool:
            return self.is_set and when(request)

        hold = self.proxy.hold_next(catches, applied=applied)
        self.holds.append(hold)
        return hold

    @property
    def caught_count(self) -> int:
        """How many requests it holds, or held."""
        return sum(hold.is_reached for hold in self.holds)

    async def end_with(self, engine: EngineProcess) -> None:
        """Kill the engine, and let the next one's requests through.

        The proxy still reads what the dead engine sent before: that is held too.
        """
        engine.kill()

        async def is_read() -> bool:
            return not self.proxy.passing_count

        await until(is_read, "the end of what the dead engine sent", seconds=60)
        self.is_set = False

    def release(self) -> None:
        for hold in self.holds:
            hold.release()

    def set_for(self, window: SnapshotWindow) -> Hold:
        """Hold what keeps the engine in this window; the hold that is reached inside it."""
        match window:
            case SnapshotWindow.BEFORE_ENTRY:
                # A part is staged, and its worker does not know.
                return self.hold_next(is_part, applied=True)
            case SnapshotWindow.ENTRY_TO_COMPLETE:
                return self._hold_completions(self.hold_next(is_completion))
            case SnapshotWindow.BETWEEN_COMPLETES:
                # One object is made, and its engine does not know.
                return self._hold_completions(self.hold_next(is_completion, applied=True))

    def _hold_completions(self, first: Hold) -> Hold:
        for _ in range(8 * RANGES_A_TABLE):
            self.hold_next(is_completion)
        return first


# One table after the other is read: an attempt that is whole is not read again.
BEFORE, ENTRY, BETWEEN = SnapshotWindow
FIVE = (BEFORE, ENTRY, BEFORE, BETWEEN, BEFORE)
THREE = (ENTRY, BEFORE, BETWEEN)


async def kill_a_worker(rig: SnapshotRig, engine: EngineProcess) -> bool:
    """Kill a worker while a part is held; whether an attempt was under way then."""
    hold = rig.proxy.hold_next(is_part)
    await hold.wait_reached(180)
    workers = worker_processes(engine)
    assert workers, engine.complaint
    workers[0].kill()

    async def is_gone() -> bool:
        return not workers[0].is_running() or workers[0].status() == psutil.STATUS_ZOMBIE

    await until(is_gone, "the worker's end")
    statements = await rig.statements()
    hold.release()
    return any(statement["state"] == "started" for statement in statements.values())


def small_ranges(rows: int) -> str:
    return range_bytes(max(8192, rows * ROW_BYTES // len(TABLES) // RANGES_A_TABLE))


def share(total: int, parts: int, number: int) -> int:
    """How many of `total` fall to part `number`, counted from 0."""
    return total * (number + 1) // parts - total * number // parts


async def proven(rig: SnapshotRig, rows: int, load: RandomLoad, *, is_undisturbed: bool) -> None:
    """Hold that each table in the bucket is the one in the database, and that `verify` agrees."""
    keys = range(1, rows // len(TABLES) + 1)
    for table in TABLES:
        found = await rig.rebuilt(table, keys)
        assert found.rows == table_rows(rig.database, table), table
        assert found.ops["t"] >= 1
        assert all(found.ops[op] for op in "crud"), found.ops
        if is_undisturbed:
            assert found.ops["t"] == 1
            assert set(found.read_keys.values()) == {1}
            assert found.read_keys.keys() == found.keys_before
        print(f"{table}: {dict(found.ops)}")  # noqa: T201 - recorded
    print(f"{load.change_count} changes in {load.seconds:.0f} s")  # noqa: T201 - recorded
    verdict = await rig.verdict()
    look = await rig.image.look()
    assert verdict["ok"], verdict
    assert (look.missing, look.unnamed) == ([], [])


# --- the tests


@pytest.fixture
def place(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> Place:
    return Place(database, s3, bucket, s3_client, tmp_path)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("rows", "rate"), [(60_000, 300), pytest.param(5_000_000, 2000, marks=pytest.mark.long)]
)
async def test_each_row_under_a_snapshot_is_read_exactly_once(
    place: Place, rows: int, rate: float
) -> None:
    make_tables(place.database, rows)
    async with place.rigged(preamble=small_ranges(rows)) as rig:
        engine = rig.start()
        await engine.reaches("streaming")
        async with RandomLoad(place.database, seed=1, rate=rate, rows=rows).running() as load:
            for table in TABLES:
                await rig.reaches(table, "whole", seconds=600)
        await engine.stop()

        await proven(rig, rows, load, is_undisturbed=True)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("rows", "rate", "kills", "worker_kills"),
    [(60_000, 300, THREE, 3), pytest.param(5_000_000, 2000, FIVE, 10, marks=pytest.mark.long)],
)
async def test_kills_of_engines_and_workers_leave_the_tables_exact(
    place: Place,
    *,
    seed: int,
    rows: int,
    rate: float,
    kills: tuple[SnapshotWindow, ...],
    worker_kills: int,
) -> None:
    chance = random.Random(seed)
    make_tables(place.database, rows)
    keys = {"source__snapshot_tables": 1}
    hits: list[frozenset[SnapshotWindow]] = []
    struck = late_count = 0
    load = RandomLoad(place.database, seed=seed, rate=rate, rows=rows)
    async with place.rigged(preamble=small_ranges(rows), keys=keys) as rig:
        async with load.running():
            for number, window in enumerate(kills):
                engine, trap = rig.start(), Trap(rig.proxy)
                # Parts are what a worker's death needs too.
                hold = None if window is BEFORE else trap.set_for(window)
                for _ in range(share(worker_kills, len(kills), number)):
                    struck += await kill_a_worker(rig, engine)
                await (hold or trap.set_for(window)).wait_reached(300)
                caught = trap.caught_count
                await trap.end_with(engine)
                late_count += trap.caught_count - caught
                hits.append(snapshot_windows(await rig.image.look()))
                if chance.random() < 0.5:
                    # Late packets of a dead engine.
                    trap.release()
            await rig.caught_up(seconds=1200)
        await rig.caught_up(seconds=600)

        struck_at = [
            (window.name, {each.name for each in hit})
            for window, hit in zip(kills, hits, strict=True)
        ]
        print(f"aimed at and hit: {struck_at}; {late_count} held later")  # noqa: T201 - recorded
        assert [aim for aim, hit in struck_at if aim not in hit] == []
        assert {aim for aim, _ in struck_at} == {window.name for window in SnapshotWindow}
        assert struck == worker_kills
        await proven(rig, rows, load, is_undisturbed=False)
