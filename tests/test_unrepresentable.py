"""Rows that no record can hold: the engine ends and names them, or leaves them out and says so."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from databases import Database, fresh_database
from engine.journal.gaps import PUBLISHED_AFTER_ALL
from engine.servers.fault_proxy import Hold, requests_to
from engine.servers.servers import EmbeddedPostgres, EmbeddedS3
from faults.rig import Rig, rigged
from load_tests.engine_process import EngineProcess, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

# Each runs several engines, one after the other.
pytestmark = pytest.mark.timeout(300)

SECRET = "confidential"
"""Is in each row that cannot be represented, beside what makes it so."""

# In a database whose encoding is SQL_ASCII, text is whatever bytes came.
BAD_TEXT = f"INSERT INTO entries (id, account) VALUES (%s, E'{SECRET} \\xff')"
GOOD_TEXT = "INSERT INTO entries (id, account) VALUES (%s, 'good')"
LARGE_TEXT = f"INSERT INTO entries (id, account) VALUES (%s, repeat('{SECRET} ', 100000))"


@pytest.fixture
def plain_bytes(any_postgres: EmbeddedPostgres) -> Iterator[Database]:
    with fresh_database(any_postgres, encoding="SQL_ASCII") as database:
        # For the tests' own sessions: theirs would give bytes.
        database.execute(f"ALTER DATABASE {database.name} SET client_encoding = 'UTF8'")
        yield database


@pytest.fixture
async def rig(
    plain_bytes: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    keys = {"source__max_row_bytes": "1MiB"}
    async with rigged(plain_bytes, s3, bucket, s3_client, tmp_path, keys=keys) as rig:
        yield rig


def write(rig: Rig, *statements: tuple[str, int]) -> None:
    """One transaction."""
    with rig.database.connect(autocommit=False) as connection:
        for statement, number in statements:
            connection.execute((statement % number).encode())


async def ids(rig: Rig) -> list[int]:
    keys = sorted((await rig.image.look()).planned)
    return [
        json.loads(line)["after"]["id"]
        for lines in await rig.image.lines(keys)
        for line in lines.splitlines()
    ]


async def gaps(rig: Rig) -> list[dict[str, Any]]:
    verdict = await rig.verdict()
    assert verdict["ok"], verdict
    return list(verdict["gaps"])


def shown(rig: Rig, status: object = None) -> str:
    """Everything that the engines have said."""
    logs = [file.read_text(errors="replace") for file in rig.folder.glob("engine-*.log")]
    return "".join(logs) + json.dumps(status)


async def test_a_row_that_no_record_can_hold_ends_the_engine_by_name(rig: Rig) -> None:
    engine = await rig.streaming()

    write(rig, (GOOD_TEXT, 1))
    write(rig, (GOOD_TEXT, 2), (BAD_TEXT, 3), (GOOD_TEXT, 4))
    code = await engine.ended()
    again = rig.start()
    code_again = await again.ended()

    assert (code, code_again) == (70, 70)
    for run in (engine, again):
        assert "public.entries, the row at position 0001." in run.complaint
        assert "column 'account': not valid UTF-8" in run.complaint
        assert 'on_unrepresentable = "gap"' in run.complaint
    assert SECRET not in shown(rig)
    assert await ids(rig) == [1, 2]


async def test_a_row_that_is_left_out_is_a_gap_in_the_journal(rig: Rig) -> None:
    engine = await rig.streaming(pipeline=rig.pipeline.changed(source__on_unrepresentable="gap"))

    write(rig, (GOOD_TEXT, 1), (BAD_TEXT, 2), (GOOD_TEXT, 3), (LARGE_TEXT, 4), (GOOD_TEXT, 5))
    await rig.catch_up_with(engine)
    status = await engine.status()
    await engine.stop()
    found = await gaps(rig)

    assert status is not None
    [alarm] = status["alarms"]
    assert (alarm["code"], alarm["subject"]) == ("rows-left-out", "public.entries")
    assert await ids(rig) == [1, 3, 5]
    assert [(gap["reason"], gap["key"], gap["table"]) for gap in found] == [
        ("unrepresentable", '{"id": "2"}', "public.entries"),
        ("unrepresentable", '{"id": "4"}', "public.entries"),
    ]
    assert "UTF-8" in found[0]["text"]
    assert "max_row_bytes" in found[1]["text"]
    assert found[0]["position"] < found[1]["position"]
    assert SECRET not in shown(rig, status)
    assert SECRET not in json.dumps(found)


async def test_a_gap_is_stated_once_however_often_its_row_is_read(rig: Rig) -> None:
    rig.pipeline = rig.pipeline.changed(source__on_unrepresentable="gap")
    engine = await rig.streaming()
    hold = rig.proxy.hold_next(requests_to("PUT", ".ndjson."))
    write(rig, (GOOD_TEXT, 1), (BAD_TEXT, 2), (GOOD_TEXT, 3))
    await until(reached(hold), "a planned object under way")
    engine.kill()
    missing = (await rig.image.look()).missing

    await rig.catch_up()
    write(rig, (GOOD_TEXT, 4))
    await rig.catch_up()

    assert missing
    assert [gap["key"] for gap in await gaps(rig)] == ['{"id": "2"}']
    assert await ids(rig) == [1, 3, 4]


async def test_a_connection_that_is_lost_states_no_gap_twice(rig: Rig) -> None:
    rig.pipeline = rig.pipeline.changed(source__on_unrepresentable="gap", chunk__max_age="3s")
    engine = await rig.streaming()

    write(rig, (GOOD_TEXT, 1), (BAD_TEXT, 2))
    await alarmed(engine)
    for _ in range(2):
        await asyncio.to_thread(
            rig.database.execute,
            "SELECT pg_terminate_backend(active_pid) FROM"
            " pg_replication_slots WHERE database = current_database()",
        )
        await engine.reaches("reconnecting", "streaming")
    write(rig, (BAD_TEXT, 3), (GOOD_TEXT, 4))
    await rig.catch_up_with(engine)
    await engine.stop()

    assert [gap["key"] for gap in await gaps(rig)] == ['{"id": "2"}', '{"id": "3"}']
    assert await ids(rig) == [1, 4]


@pytest.mark.parametrize("is_planned", [False, True])
async def test_a_row_that_fits_under_a_raised_limit_is_published_or_its_gap_stays(
    rig: Rig,
    is_planned: bool,  # noqa: FBT001
) -> None:
    # Under the old limit its gap is journalled, and E is not past it.
    old = rig.pipeline.changed(
        source__on_unrepresentable="gap", chunk__max_age="400ms" if is_planned else "60s"
    )
    engine = await rig.streaming(pipeline=old)
    hold = rig.proxy.hold_next(requests_to("PUT", ".ndjson."))
    write(rig, (GOOD_TEXT, 1), (LARGE_TEXT, 2), (GOOD_TEXT, 3), (BAD_TEXT, 4), (GOOD_TEXT, 5))
    if is_planned:
        await until(reached(hold), "a planned object under way")
    else:
        await until(partial(stated_gaps, rig, 2), "both gaps in the journal")
    engine.kill()

    raised = rig.pipeline.changed(
        source__on_unrepresentable="gap", source__max_row_bytes="8MiB", chunk__max_age="400ms"
    )
    await rig.catch_up(pipeline=raised)

    found = await gaps(rig)
    assert [gap["key"] for gap in found] == ['{"id": "2"}', '{"id": "4"}']
    if is_planned:
        # Its neighbours were planned without it, and are made again as they were planned.
        assert await ids(rig) == [1, 3, 5]
        assert [gap["mended"] for gap in found] == [None, None]
    else:
        assert await ids(rig) == [1, 2, 3, 5]
        assert [gap["mended"] for gap in found] == [PUBLISHED_AFTER_ALL, None]


async def stated_gaps(rig: Rig, count: int) -> bool:
    entries = (await rig.image.look()).entries
    return len([gap for entry in entries for gap in entry.get("gaps", ())]) == count


def reached(hold: Hold) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return bool(hold.is_reached)

    return look


async def alarmed(engine: EngineProcess) -> None:
    async def look() -> bool:
        status = await engine.status()
        return status is not None and bool(status["alarms"])

    await until(look, "an alarm")


async def test_a_snapshot_of_repaired_rows_mends_their_gaps_and_ends_the_alarm(rig: Rig) -> None:
    write(rig, (GOOD_TEXT, 1), (BAD_TEXT, 2))
    rig.pipeline = rig.pipeline.changed(
        source__on_unrepresentable="gap", source__snapshot="initial"
    )
    engine = await rig.streaming()
    await until(partial(stated_gaps, rig, 1), "the snapshot's gap in the journal")
    write(rig, (BAD_TEXT, 3))
    await alarmed(engine)
    rig.database.execute("UPDATE entries SET account = 'repaired' WHERE id IN (2, 3)")

    resync = ("resync", "entries", "--wait")
    with EngineProcess(rig.pipeline, rig.folder, "resync", *resync) as asked:
        code = await asked.ended()
    await until(partial(calm, engine), "an end of the alarm")
    await engine.stop()

    assert code == 0
    assert [(gap["key"], gap["attempt"], gap["mended"]) for gap in await gaps(rig)] == [
        ('{"id": "2"}', 1, "attempt 2 of its snapshot"),
        ('{"id": "3"}', None, "attempt 2 of its snapshot"),
    ]


async def calm(engine: EngineProcess) -> bool:
    status = await engine.status()
    return status is not None and not status["alarms"]
