"""A log whose history went back is refused by name; one that only crashed is not.

The disk of a server is restored to an earlier state, slot included, and the server writes on until
its log ends past E: positions agree, the changes do not.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from databases import Database, fresh_database
from engine.model.errors import PositionLost
from engine.model.history import Judge, Landmark, newest
from engine.servers.fault_proxy import Request, requests_to
from engine.servers.postgres_server import StopMode
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3
from engine.sources.postgres.lsn import lsn_of
from faults.rig import Rig, rigged
from load_tests.engine_process import EngineProcess, until
from log_points import place, point

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

TIME_US = 1_795_341_114_056_779
ADD = "INSERT INTO entries (account) VALUES ('a')"
ADD_AS_LONG = "INSERT INTO entries (account) VALUES ('b')"


# --- the judge


def landmark(lsn: int, time_us: int | None = TIME_US) -> Landmark:
    return Landmark(place(lsn), time_us, "tailrace", point(lsn).resume)


def judge(*, durable: int, confirmed: int, known: Landmark | None) -> Judge:
    return Judge(durable=point(durable), confirmed=point(confirmed), landmark=known)


def test_a_slot_that_stands_at_what_is_durable_leaves_nothing_to_judge() -> None:
    judged = judge(durable=200, confirmed=200, known=landmark(150))

    assert judged.is_done
    assert judged.start == point(200)


def test_a_slot_that_stands_before_is_read_from_the_landmark_on() -> None:
    judged = judge(durable=200, confirmed=100, known=landmark(150))

    assert lsn_of(judged.start) == 150
    judged.reached(place(100))
    judged.began(place(150), TIME_US)
    judged.began(place(150), TIME_US)
    judged.reached(place(160))
    is_done_between = judged.is_done
    judged.reached(place(200))
    judged.began(place(210), 0)

    assert (is_done_between, judged.is_done) == (False, True)


def test_the_first_commit_after_what_is_durable_ends_the_judging_too() -> None:
    judged = judge(durable=200, confirmed=100, known=landmark(150))

    judged.began(place(150), TIME_US)
    judged.began(place(200), 1)

    assert judged.is_done


@pytest.mark.parametrize(
    ("commit_lsn", "time_us", "found"),
    [
        (150, TIME_US + 1, "a commit at 0/96 (position 0001.0000000000000096) of 2026"),
        (151, TIME_US, "a commit at position 0001.0000000000000097 of 2026"),
        (150, 2**63 - 1, "(position 0001.0000000000000096) of 9223372036854775807 us"),
    ],
)
def test_another_commit_in_the_landmarks_place_is_refused(
    commit_lsn: int, time_us: int, found: str
) -> None:
    judged = judge(durable=200, confirmed=100, known=landmark(150))

    with pytest.raises(PositionLost, match="history went back") as caught:
        judged.began(place(commit_lsn), time_us)

    assert found in str(caught.value)
    assert caught.value.hint


def test_no_commit_in_the_landmarks_place_is_refused() -> None:
    judged = judge(durable=200, confirmed=100, known=landmark(150))

    with pytest.raises(PositionLost, match="has none there") as caught:
        judged.reached(place(151))

    assert f"{point(150).resume} (position {place(150)})" in str(caught.value)


@pytest.mark.parametrize("known", [landmark(150), landmark(90), landmark(90, None)])
def test_a_commit_that_the_journal_does_not_know_is_refused(known: Landmark) -> None:
    judged = judge(durable=200, confirmed=100, known=known)
    assert judged.start is not None
    if known.position >= judged.start.position:
        judged.began(known.position, TIME_US)

    with pytest.raises(PositionLost, match="knows nothing") as caught:
        judged.began(place(170), TIME_US)

    assert f"durable up to {point(200).resume} (position {place(200)})" in str(caught.value)


def test_what_is_planned_past_what_is_durable_has_to_be_there_again() -> None:
    judged = judge(durable=200, confirmed=200, known=landmark(300))

    assert (judged.start, judged.is_done) == (point(200), False)
    judged.began(place(250), 1)
    with pytest.raises(PositionLost, match="history went back"):
        judged.began(place(300), 1)


def test_without_a_landmark_nothing_is_judged() -> None:
    judged = judge(durable=200, confirmed=100, known=None)

    assert judged.is_done
    judged.began(place(150), 1)
    judged.reached(place(160))
    assert Judge(durable=None, confirmed=point(100), landmark=None).start is None


def test_the_newest_landmark_is_the_last_in_the_log() -> None:
    place, commit, later = landmark(150, None), landmark(150), landmark(2**40)

    assert newest(None, None) is None
    assert newest(commit, place) is commit
    assert newest(place, None, commit) is commit
    assert newest(later, commit) is later


# --- with servers that are restored


@dataclass(frozen=True, slots=True)
class Restorable:
    """A server, and a copy of its disk."""

    server: EmbeddedPostgres

    @property
    def _copy(self) -> Path:
        return self.server.data_directory.with_name("earlier")

    def save(self, *, is_crashed: bool = False) -> None:
        """Copy the disk as a clean stop leaves it, or as a crash does."""
        if is_crashed:
            self.server.kill()
        else:
            self.server.stop()
        # Permissions and owner come along: the server runs as another account than root.
        shutil.copytree(self.server.data_directory, self._copy, symlinks=True)
        for path in (self.server.data_directory, *self.server.data_directory.rglob("*")):
            status = path.lstat()
            target = self._copy / path.relative_to(self.server.data_directory)
            shutil.chown(target, status.st_uid, status.st_gid)
        self.server.start()

    def restore(self) -> None:
        """The disk as it was saved."""
        self.server.stop()
        shutil.rmtree(self.server.data_directory)
        self._copy.rename(self.server.data_directory)
        self.server.start()

    def forget(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)


@pytest.fixture(scope="module", params=["18", "15"])
def restorable(request: pytest.FixtureRequest) -> Iterator[Restorable]:
    """A server that may be stopped, killed and restored."""
    # Nothing but the tests writes: positions are the same when the same is written again.
    settings = {**FAST_SETTINGS, "autovacuum": "off"}
    server = (
        EmbeddedPostgres(settings=settings)
        if request.param == "18"
        else EmbeddedPostgres.debian(15, settings=settings)
    )
    with server:
        yield Restorable(server)


@pytest.fixture
def own_database(restorable: Restorable) -> Iterator[Database]:
    with fresh_database(restorable.server) as database:
        yield database
    restorable.forget()


@pytest.fixture
async def rig(
    own_database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    async with rigged(own_database, s3, bucket, s3_client, tmp_path) as rig:
        yield rig


def add(rig: Rig, count: int, statement: str = ADD) -> None:
    with rig.database.connect() as connection:
        for _ in range(count):
            connection.execute(statement)


async def begun(rig: Rig) -> None:
    """A slot, and rows that are durable and acknowledged."""
    await rig.catch_up()
    add(rig, 3)
    await rig.catch_up()


def written(rig: Rig) -> int:
    [(size,)] = rig.database.execute("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn")
    return int(size)


async def refused(rig: Rig, engine: EngineProcess, *words: str) -> None:
    """Exit code 70, said with all `words`."""
    assert await engine.ended() == 70, engine.complaint
    assert [word for word in words if word not in engine.log] == [], engine.complaint


async def refused_for_good(rig: Rig, *words: str) -> None:
    """Every start is refused, nothing is planned or durable, and the slot stays where it is."""
    before, confirmed = await rig.image.look(), await rig.confirmed_lsn()

    await refused(rig, rig.start(), "history went back", *words)
    await refused(rig, rig.start(), "history went back", *words)

    after = await rig.image.look()
    assert (after.planned, after.durable_lsn) == (before.planned, before.durable_lsn)
    assert await rig.confirmed_lsn() == confirmed


@pytest.mark.timeout(300)
@pytest.mark.parametrize("is_crashed", [False, True])
async def test_a_restored_server_that_wrote_other_rows_is_refused(
    rig: Rig,
    restorable: Restorable,
    is_crashed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    await begun(rig)
    await asyncio.to_thread(restorable.save, is_crashed=is_crashed)
    add(rig, 10)
    await rig.catch_up()
    durable = await rig.image.durable_lsn()

    await asyncio.to_thread(restorable.restore)
    add(rig, 40)

    assert written(rig) > durable
    await refused_for_good(rig, "the journal knows a commit at")


@pytest.mark.timeout(300)
async def test_a_restored_server_that_wrote_as_much_again_is_refused(
    rig: Rig, restorable: Restorable
) -> None:
    await begun(rig)
    await asyncio.to_thread(restorable.save)
    add(rig, 10)
    ends = written(rig)
    await rig.catch_up()

    await asyncio.to_thread(restorable.restore)
    # The same positions, the same transaction ids: only their times differ.
    add(rig, 10, ADD_AS_LONG)

    assert written(rig) == ends
    await refused_for_good(rig, "the journal knows a commit at")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("restorable", ["18"], indirect=True)
async def test_a_restored_server_that_lost_nothing_but_wrote_where_nothing_was_is_refused(
    rig: Rig, restorable: Restorable
) -> None:
    await begun(rig)
    await asyncio.to_thread(restorable.save)
    # What is durable grows by log that holds nothing of ours.
    rig.database.execute("CREATE TABLE others (note text)")
    rig.database.execute("INSERT INTO others SELECT 'x' FROM generate_series(1, 500)")
    await rig.catch_up()
    durable = await rig.image.durable_lsn()

    await asyncio.to_thread(restorable.restore)
    add(rig, 1)
    rig.database.execute("CREATE TABLE others (note text)")
    rig.database.execute("INSERT INTO others SELECT 'x' FROM generate_series(1, 1000)")

    assert written(rig) > durable
    await refused_for_good(rig, "knows nothing")


@pytest.mark.timeout(300)
async def test_a_server_that_lost_what_was_visible_and_not_yet_durable_is_refused(
    rig: Rig, restorable: Restorable
) -> None:
    await begun(rig)
    await asyncio.to_thread(restorable.save)
    engine = await rig.streaming()
    is_object, is_entry = requests_to("PUT", ".ndjson."), requests_to("PUT", "/journal/")
    seen = []

    def is_durable(request: Request) -> bool:
        seen.extend([request] if is_object(request) else [])
        return bool(seen) and is_entry(request)

    hold = rig.proxy.hold_next(is_durable)
    add(rig, 10)

    async def is_held() -> bool:
        return hold.is_reached

    await until(is_held, "an object without its durable")
    engine.kill()
    assert (await rig.image.look()).missing == []

    await asyncio.to_thread(restorable.restore)
    add(rig, 40)

    await refused(rig, rig.start(), "history went back")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("restorable", ["18"], indirect=True)
async def test_a_restored_server_is_refused_under_a_running_engine(
    rig: Rig, restorable: Restorable
) -> None:
    await begun(rig)
    await asyncio.to_thread(restorable.save)
    engine = await rig.streaming()
    add(rig, 10)
    await rig.catch_up_with(engine)

    with rig.proxy.blackout():
        await asyncio.to_thread(restorable.restore)
        add(rig, 40)

    await refused(rig, engine, "history went back")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["kill", "immediate"])
async def test_a_crash_that_moves_the_slot_back_loses_nothing_and_alarms_nobody(
    rig: Rig, restorable: Restorable, way: str
) -> None:
    server = restorable.server
    await begun(rig)
    moved_back = []
    for _ in range(3):
        # A server writes a slot to disk when what it must keep grows, not at each acknowledgement.
        for _ in range(2):
            add(rig, 5)
            await rig.catch_up()
        acknowledged = await rig.confirmed_lsn()
        if way == "kill":
            await asyncio.to_thread(server.kill)
        else:
            await asyncio.to_thread(server.stop, StopMode.IMMEDIATE)
        await asyncio.to_thread(server.start)
        moved_back.append(await rig.confirmed_lsn() < acknowledged)

    assert any(moved_back)
    await rig.proven()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("restorable", ["18"], indirect=True)
async def test_a_clean_restart_and_other_log_alarm_nobody(rig: Rig, restorable: Restorable) -> None:
    await begun(rig)
    await asyncio.to_thread(restorable.server.stop)
    await asyncio.to_thread(restorable.server.start)
    rig.database.execute("CREATE TABLE others (note text)")

    await rig.proven()
