"""Faults of a Dask cluster whose workers are in network namespaces of their own: always exact.

Each test records that it struck where it aimed: a part that was held, a journal entry that was or
was not there. Where namespaces cannot be made, the same faults strike plain processes.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any, LiteralString

import pytest

from databases import Database
from engine import __version__
from engine.servers.fault_proxy import Hold, Request, requests_to
from engine.servers.servers import EmbeddedS3
from faults.cluster import Cluster, FirstHold, Machine, Worker, cluster, loopback, namespaces
from faults.snapshot_rig import Place, SnapshotRig, range_bytes
from faults.snapshots import SnapshotWindow, is_part, snapshot_windows
from load_tests.engine_process import EngineProcess, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

pytestmark = pytest.mark.timeout(900)

COLUMNS = ("id", "x")
ROWS = 6000
SMALL_RANGES = range_bytes(600_000)
HURRIED = (
    "from functools import partial; from engine import app; app.SnapshotSettings ="
    " partial(app.SnapshotSettings, stall_seconds=3.0, progress_seconds=0.2)\n"
)
"""A worker that stands still is noticed soon."""

IN_TURN = (
    "from engine.snapshot.coordinator import Coordinator\n"
    "Coordinator._has_room = property(lambda self: not self._taken)\n"
)
"""No table is read beside the last ranges of another one: each fault strikes one table."""

IMPATIENT = "from engine import worker; worker._REACH_SECONDS = 3.0\n"
"""A scheduler that does not answer is given up soon."""

PARTS = (
    "from engine.snapshot import work;"
    " work.stage_range.__kwdefaults__['part_bytes'] = 5 * 1024 * 1024\n"
)
"""The smallest parts that a store takes."""
TOLD_TASKS = """
from engine import worker
its_work = worker.work
def work(task):
    print("task begins", flush=True)
    try:
        return its_work(task)
    finally:
        print("task ends", flush=True)
worker.work = work
"""
OTHER_RELEASE = "from engine.snapshot import work; work.__version__ = '0.0.9'\n"

KEEPERS: LiteralString = """
    SELECT pg_terminate_backend(pid, 60000) FROM (
        SELECT pid FROM pg_stat_activity WHERE datname = current_database()
        AND state = 'idle in transaction' ORDER BY backend_start LIMIT %s) AS oldest
"""


Clustered = Callable[[], AbstractAsyncContextManager[Cluster]]


@pytest.fixture(scope="module")
def are_namespaces() -> bool:
    try:
        with namespaces(1):
            return True
    except (CalledProcessError, FileNotFoundError):
        return False


@pytest.fixture
def place(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> Place:
    return Place(database, s3, bucket, s3_client, tmp_path)


@pytest.fixture(params=["namespaces", "processes"])
def clustered(
    request: pytest.FixtureRequest,
    are_namespaces: bool,  # noqa: FBT001 - a fixture
    place: Place,
    s3: EmbeddedS3,
) -> Clustered:
    """A cluster in two namespaces, or, where they cannot be had, of two processes."""
    if (request.param == "namespaces") is not are_namespaces:
        pytest.skip("namespaces need root" if not are_namespaces else "namespaces can be had")

    @asynccontextmanager
    async def made(machines: tuple[Machine, ...]) -> AsyncIterator[Cluster]:
        async with (
            place.rigged(preamble=SMALL_RANGES) as rig,
            cluster(rig, machines, s3.port) as found,
        ):
            yield found

    @asynccontextmanager
    async def opened() -> AsyncIterator[Cluster]:
        if not are_namespaces:
            async with made(loopback(2)) as found:
                yield found
            return
        with namespaces(2) as machines:
            async with made(machines) as found:
                yield found

    return opened


def make_table(database: Database, table: LiteralString, rows: int = ROWS) -> None:
    database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, x text)")
    database.execute(
        f"INSERT INTO {table} SELECT i, (SELECT string_agg(md5(i::text || j), '')"
        " FROM generate_series(1, 12) AS j) FROM generate_series(1, %s) AS i",
        rows,
    )


def make_large_rows(database: Database, table: LiteralString) -> None:
    """Four rows of 6 MiB in one range: more than one part of an upload, compressed too."""
    database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, x text)")
    database.execute(
        f"INSERT INTO {table} SELECT i, repeat((SELECT string_agg(md5(i::text || j), '')"
        " FROM generate_series(1, 2048) AS j), 96) FROM generate_series(1, 4) AS i"
    )


def disturb(database: Database, table: LiteralString) -> None:
    """What the application does meanwhile."""
    database.execute(f"INSERT INTO {table} VALUES (100000, 'later')")
    database.execute(f"UPDATE {table} SET x = 'other' WHERE id = 1")
    database.execute(f"DELETE FROM {table} WHERE id = 2")


async def begun(one: Cluster, preamble: str = PARTS + TOLD_TASKS) -> None:
    """Start the scheduler and a worker on each machine."""
    one.start_scheduler()
    for machine in one.machines:
        await one.add_worker(machine, preamble)


def part_of(table: str, number: int = 1) -> Callable[[Request], bool]:
    """Part `number` of an upload of this table's snapshot."""

    def is_it(request: Request) -> bool:
        is_number = is_part(request) and request.parameters["partNumber"] == [str(number)]
        return is_number and f"/table={table}/" in request.key

    return is_it


async def is_exact(one: Cluster, *tables: LiteralString) -> None:
    """Hold that the bucket has these tables, that nothing is left over, and that all verifies."""
    rig = one.rig
    for table in tables:
        found = await rig.rebuilt(table, columns=COLUMNS)
        rows = rig.database.execute(f"SELECT id, x FROM {table}")
        assert found.rows == {row[0]: row for row in rows}, table
    verdict = await rig.verdict()
    assert verdict["ok"], verdict
    await until(lambda: are_none_left(rig), "the end of every upload")


async def are_none_left(rig: SnapshotRig) -> bool:
    return not await rig.image.uploads()


async def says(engine: EngineProcess, text: str) -> None:
    async def is_said() -> bool:
        return text in engine.log

    await until(is_said, text)


def has_task(worker: Worker) -> bool:
    """Whether the worker does a task, as it says itself: see `TOLD_TASKS`."""
    log = worker.log.read_text()
    return log.count("task begins") > log.count("task ends")


async def is_idle(worker: Worker) -> None:
    """Wait until the worker has no task."""

    async def look() -> bool:
        return not has_task(worker)

    await until(look, "the end of a worker's task")


# --- workers and exporters: a table and a fault, one after the other


@dataclass(frozen=True, slots=True)
class Struck:
    """Where a fault strikes: this worker's part of this table is held.

    `others` may hold a part of each worker besides.
    """

    one: Cluster
    engine: EngineProcess
    table: LiteralString
    worker: Worker
    hold: FirstHold
    others: Mapping[Worker, Hold]

    @property
    def upload(self) -> str:
        assert self.hold.request is not None
        return self.hold.request.parameters["uploadId"][0]

    async def whole(self) -> dict[str, Any]:
        """What the journal says of the table once it is whole, after other changes of it."""
        disturb(self.one.rig.database, self.table)
        return await self.one.rig.reaches(self.table, "whole")


def uploads_of(statement: dict[str, Any]) -> set[str]:
    return {staged["upload_id"] for staged in statement["objects"]}


async def be_revived(at: Struck) -> None:
    """The worker stands still until another one won, and goes on then."""
    at.worker.stop()
    statement = await at.whole()
    is_late = has_task(at.worker)
    at.worker.revive()
    at.hold.release()
    await is_idle(at.worker)

    assert is_late
    assert statement["attempt"] == 1
    assert at.upload not in uploads_of(statement)
    assert at.worker.process.poll() is None


async def be_cut_off(at: Struck) -> None:
    """The worker's cable is out while its part is stored, until another one has read the rest."""
    with at.worker.cut_off():
        at.hold.release()
        statement = await at.whole()
        is_late = has_task(at.worker)

    assert is_late
    assert statement["attempt"] == 1
    assert at.upload not in uploads_of(statement)


async def lose_keepers(at: Struck, count: int) -> None:
    """So many sessions that keep the snapshot, the oldest first, are ended."""
    database = at.one.rig.database
    # Nobody begins another range: some of them are still to be read under the snapshot.
    for worker, hold in at.others.items():
        if worker is not at.worker:
            await hold.wait_reached(60)
    before = (await at.one.rig.statements())[f"public.{at.table}"]
    killed = await asyncio.to_thread(database.execute, KEEPERS, count)
    at.hold.release()
    for hold in at.others.values():
        hold.release()
    statement = await at.whole()

    assert killed == [(True,)] * count
    assert (before["state"], before["attempt"]) == ("started", 1)
    assert statement["attempt"] == count
    assert (statement["point"] > before["point"]) is (count == 2)


async def lose_the_exporter(at: Struck) -> None:
    """The other keeper's name serves the ranges that are still to be read."""
    await lose_keepers(at, 1)


async def lose_both_keepers(at: Struck) -> None:
    """Only another point helps."""
    await lose_keepers(at, 2)


async def be_killed(at: Struck) -> None:
    """The worker dies when one part is stored and the next one is not."""
    asked = [r for r in at.worker.bucket.requests if r.parameters.get("uploadId") == [at.upload]]
    at.worker.kill()
    statement = await at.whole()
    at.hold.release()

    # A part that took long is sent again, and held like the first.
    assert sorted({part.parameters["partNumber"][0] for part in asked}) == ["1", "2"]
    assert statement["attempt"] == 1
    assert at.upload not in uploads_of(statement)


FAULTS: tuple[tuple[LiteralString, int, Callable[[Struck], Awaitable[None]]], ...] = (
    ("a_revived", 1, be_revived),
    ("b_cut_off", 1, be_cut_off),
    ("c_exporter", 1, lose_the_exporter),
    ("d_keepers", 1, lose_both_keepers),
    ("e_killed", 2, be_killed),
)


async def test_workers_and_exporters_that_fail_leave_every_table_exact(
    clustered: Clustered,
) -> None:
    async with clustered() as one:
        for table, part, _ in FAULTS:
            make = make_large_rows if part > 1 else make_table
            make(one.rig.database, table)
        hurried = replace(one.rig.pipeline, preamble=SMALL_RANGES + HURRIED + IN_TURN)
        one.rig.pipeline = hurried.changed(source__snapshot_tables=1)
        await begun(one)
        # A table's turn comes as soon as the one before it is whole.
        holds = [one.hold_first(part_of(table, part)) for table, part, _ in FAULTS]
        others = {
            table: {worker: worker.bucket.hold_next(part_of(table)) for worker in one.workers}
            for table in ("c_exporter", "d_keepers")
        }
        engine = one.rig.start()
        for (table, _, fault), first in zip(FAULTS, holds, strict=True):
            worker, hold = await first.reached()
            await fault(Struck(one, engine, table, worker, hold, others.get(table, {})))
        await engine.stop()

        await is_exact(one, *(table for table, _, _ in FAULTS))


# --- the coordinator

BEFORE, ENTRY, _ = SnapshotWindow


@pytest.mark.parametrize(
    ("applied", "late", "windows"),
    [
        pytest.param(False, False, {BEFORE}, id="before", marks=pytest.mark.long),
        # The dead engine's entry comes late, and counts.
        pytest.param(False, True, {BEFORE, ENTRY}, id="late"),
        pytest.param(True, False, {BEFORE, ENTRY}, id="after", marks=pytest.mark.long),
    ],
)
async def test_an_engine_killed_beside_the_entry_is_followed_by_one_that_ends_exact(
    clustered: Clustered,
    applied: bool,  # noqa: FBT001 - a parameter
    late: bool,  # noqa: FBT001 - a parameter
    windows: set[SnapshotWindow],
) -> None:
    async with clustered() as one:
        rig = one.rig
        make_table(rig.database, "wide")
        make_table(rig.database, "small", rows=100)
        await begun(one)
        # Both tables are of one group. A task of `wide` is going to be the dead engine's.
        wide, small = one.hold_first(part_of("wide")), one.hold_first(part_of("small"))
        engine = rig.start()
        zombie, part = await wide.reached()
        _, last = await small.reached()
        entry = rig.proxy.hold_next(requests_to("PUT", "_tailrace/journal/"), applied=applied)
        last.release()
        await entry.wait_reached()
        engine.send(signal.SIGKILL)
        await engine.ended()
        if late:
            entry.release()
            await rig.reaches("small", "whole")
        hit = snapshot_windows(await rig.image.look())
        disturb(rig.database, "wide")
        disturb(rig.database, "small")
        successor = rig.start()
        await successor.reaches("streaming")
        is_zombie = has_task(zombie)
        part.release()
        await rig.reaches("wide", "whole")
        await is_idle(zombie)
        await successor.stop()
        await rig.caught_up()

        # `wide` was being read, and `small` is before its entry or behind it.
        assert hit == windows
        assert is_zombie
        statements = await rig.statements()
        assert statements["public.wide"]["attempt"] == 2
        assert statements["public.small"]["attempt"] == (1 if ENTRY in windows else 2)
        await is_exact(one, "wide", "small")


# --- the scheduler, and workers of another release


async def test_a_scheduler_may_be_missing_or_go_and_workers_of_another_release_are_told(
    clustered: Clustered,
) -> None:
    async with clustered() as one:
        make_table(one.rig.database, "wide")
        one.rig.pipeline = replace(one.rig.pipeline, preamble=SMALL_RANGES + IMPATIENT)
        engine = one.rig.start()
        await says(engine, "no workers at the Dask scheduler")
        await begun(one, OTHER_RELEASE)
        told = await until(lambda: release_alarm(engine), "an alarm about the release")
        for worker in one.workers:
            worker.kill()
        one.workers.clear()
        for machine in one.machines:
            await one.add_worker(machine)
        _, hold = await one.first_held(is_part)
        attempt = (await one.rig.statements())["public.wide"]["attempt"]
        one.kill_scheduler()
        disturb(one.rig.database, "wide")
        await says(engine, "snapshot workers lost")
        hold.release()
        for worker in one.workers:
            worker.kill()
        one.workers.clear()
        await begun(one)
        statement = await one.rig.reaches("wide", "whole", seconds=90)
        await engine.stop()

        assert f"the worker is of release 0.0.9, the engine of {__version__}" in told["text"]
        assert "same release" in told["hint"]
        # The snapshot is kept while the scheduler is away.
        assert statement["attempt"] == attempt
        await is_exact(one, "wide")


async def release_alarm(engine: EngineProcess) -> dict[str, Any] | None:
    status = await engine.status()
    alarms: list[dict[str, Any]] = status["alarms"] if status is not None else []
    return next((alarm for alarm in alarms if "release" in alarm["text"]), None)
