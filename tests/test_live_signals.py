"""Signals in the source's log, end to end: done once, in order, and only where committed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from databases import Database
from engine.servers.fault_proxy import Request
from engine.servers.servers import EmbeddedS3
from faults.snapshot_rig import Place, SnapshotRig
from faults.snapshots import is_part
from load_tests.engine_process import EngineProcess, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

pytestmark = pytest.mark.timeout(900)

ON = {"source__signals": True}
EMIT = "SELECT pg_logical_emit_message(true, 'tailrace', %s)"


def asking(kind: str = "resync", *tables: str) -> str:
    return json.dumps({"format": 1, "kind": kind, "tables": tables or ("public.first",)})


@pytest.fixture
def place(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> Place:
    return Place(prepared(database), s3, bucket, s3_client, tmp_path)


@pytest.fixture
def any_place(
    any_database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> Place:
    return Place(prepared(any_database), s3, bucket, s3_client, tmp_path)


def prepared(database: Database) -> Database:
    database.execute("CREATE TABLE first (id bigint PRIMARY KEY, note text)")
    database.execute("INSERT INTO first VALUES (1, 'there')")
    return database


async def entries(rig: SnapshotRig) -> tuple[Any, ...]:
    return (await rig.image.look()).entries


async def signals(rig: SnapshotRig) -> list[Any]:
    return [answer for entry in await entries(rig) for answer in entry.get("signals", ())]


async def answered(rig: SnapshotRig, count: int = 1) -> list[Any]:
    """The journal's answers to signals, once there are so many."""

    async def look() -> list[Any] | None:
        found = await signals(rig)
        return found if len(found) >= count else None

    return await until(look, "the answers", seconds=60)


async def attempts(rig: SnapshotRig) -> list[int]:
    return [
        statement["attempt"]
        for entry in await entries(rig)
        for statement in entry.get("snapshots", ())
        if statement["state"] == "whole"
    ]


async def proven(rig: SnapshotRig, *, snapshots: int) -> None:
    """Hold that so many snapshots were taken, and that `verify` agrees."""
    assert len(await attempts(rig)) == snapshots
    verdict = await rig.verdict()
    assert verdict["ok"], verdict


async def streaming(rig: SnapshotRig) -> EngineProcess:
    """An engine that streams, once the first snapshot is whole."""
    engine = rig.start()
    await engine.reaches("streaming")
    await rig.reaches("first", "whole")
    return engine


async def test_a_signal_is_done_once_in_the_order_of_commits(any_place: Place) -> None:
    database = any_place.database
    async with any_place.rigged(keys=ON) as rig:
        engine = await streaming(rig)
        with psycopg.connect(database.dsn) as connection:
            connection.execute("INSERT INTO first VALUES (2, 'beside the signal')")
            connection.execute(EMIT, (asking(),))
            connection.execute("INSERT INTO first VALUES (3, 'behind it')")
        [answer] = await answered(rig)
        await engine.stop()
        status = rig.start("status")
        await status.ended()
        # It is read again, and not done again.
        await rig.caught_up()
        await rig.caught_up()
        found = await rig.rebuilt("first", columns=("id", "note"))
        await proven(rig, snapshots=2)

    assert (answer["outcome"], answer["kind"], answer["tables"]) == (
        "done",
        "resync",
        ["public.first"],
    )
    assert f"signal {answer['name']}" in status.output.read_text()
    assert found.rows.keys() == {1, 2, 3}
    assert found.ops["t"] == 2


async def test_what_is_rolled_back_or_not_transactional_or_not_for_us_does_nothing(
    place: Place,
) -> None:
    async with place.rigged(keys=ON) as rig:
        engine = await streaming(rig)
        with psycopg.connect(place.database.dsn) as connection:
            connection.execute(EMIT, (asking(),))
            connection.rollback()
            connection.execute("SELECT pg_logical_emit_message(false, 'tailrace', %s)", (asking(),))
            connection.execute("SELECT pg_logical_emit_message(true, 'other', %s)", (asking(),))
            connection.execute(
                "SELECT pg_logical_emit_message(true, 'other', repeat('x', 9999999))"
            )
            connection.commit()
            connection.execute(EMIT, (asking("cancel"),))
        answers = await answered(rig)
        told = engine.events("a signal outside a transaction is ignored")
        page = await engine.get("/metrics")
        await engine.stop()
        await rig.caught_up()
        await proven(rig, snapshots=1)

    assert [(each["kind"], each["outcome"]) for each in answers] == [("cancel", "refused")]
    assert len(told) == 1
    assert page is not None
    assert b'tailrace_signals_total{outcome="ignored"} 1.0' in page[1]
    assert b'tailrace_signals_total{outcome="refused"} 1.0' in page[1]


async def test_garbage_is_refused_by_name_and_loses_nothing(place: Place) -> None:
    garbage = ["", "no JSON", "{}", "[" * 10_000, '{"format": 9, "kind": "resync"}']
    garbage += [asking("explode"), asking("resync", "public.nobody"), "x" * 300_000]
    async with place.rigged(keys=ON) as rig:
        engine = await streaming(rig)
        for number, content in enumerate(garbage):
            with psycopg.connect(place.database.dsn) as connection:
                connection.execute(EMIT, (content,))
                connection.execute("INSERT INTO first VALUES (%s, 'beside')", (10 + number,))
        answers = await answered(rig, len(garbage))
        await engine.stop()
        await rig.caught_up()
        found = await rig.rebuilt("first", columns=("id", "note"))
        await proven(rig, snapshots=1)

    assert {each["outcome"] for each in answers} == {"refused"}
    assert all(each["text"] for each in answers)
    assert len(found.rows) == 1 + len(garbage)


async def test_a_flood_is_limited(place: Place) -> None:
    async with place.rigged(keys=ON) as rig:
        engine = await streaming(rig)
        with psycopg.connect(place.database.dsn) as connection:
            for number in range(500):
                connection.execute(EMIT, (asking(),))
                connection.execute("INSERT INTO first VALUES (%s, 'beside')", (10 + number,))
                connection.commit()
        await rig.reaches("first", "whole")
        await engine.stop()
        told = engine.events("too many signals: some are dropped")
        answers = await signals(rig)
        place.database.execute("INSERT INTO first VALUES (0, 'later')")
        await rig.caught_up()
        found = await rig.rebuilt("first", columns=("id", "note"))
        verdict = await rig.verdict()

    assert 1 <= len(answers) <= 20
    assert len(told) == 1
    assert len(found.rows) == 502
    assert verdict["ok"], verdict


async def test_an_engine_that_is_not_to_obey_sees_no_signal(place: Place) -> None:
    async with place.rigged() as rig:
        engine = await streaming(rig)
        with psycopg.connect(place.database.dsn) as connection:
            connection.execute(EMIT, (asking(),))
        await engine.stop()
        await rig.caught_up()
        found = await signals(rig)
        await proven(rig, snapshots=1)

    assert found == []


def is_entry(request: Request) -> bool:
    return request.method == "PUT" and "/_tailrace/journal/" in request.path


@pytest.mark.parametrize("is_journalled", [False, True])
async def test_a_kill_on_either_side_of_the_entry_does_a_signal_once(
    place: Place, *, is_journalled: bool
) -> None:
    async with place.rigged(keys=ON) as rig:
        engine = await streaming(rig)
        await until(lambda: _is_finished(rig), "the end of the first snapshot", seconds=60)
        # The next entry holds the answer: its request, or the answer to it, is held.
        hold = rig.proxy.hold_next(is_entry, applied=is_journalled)
        place.database.execute(EMIT.replace("%s", f"'{asking()}'"))
        await hold.wait_reached(60)
        successor = rig.start()
        await successor.reaches("standby")
        engine.kill()
        before = await signals(rig)
        hold.release()
        await successor.reaches("streaming", seconds=60)
        [answer] = await answered(rig)
        await successor.stop()
        await rig.caught_up()
        again = await signals(rig)
        await proven(rig, snapshots=2)

    assert bool(before) == is_journalled
    assert again == [answer]


async def test_a_signal_while_the_stream_waits_is_done_once_although_it_is_read_again(
    place: Place,
) -> None:
    async with place.rigged(keys=ON | {"source__snapshot_order": "before"}) as rig:
        hold = rig.proxy.hold_next(is_part)
        engine = rig.start()
        await hold.wait_reached(60)
        place.database.execute(EMIT.replace("%s", f"'{asking()}'"))
        await answered(rig)
        hold.release()
        await engine.reaches("streaming", seconds=60)
        await engine.stop()
        await rig.caught_up()
        found = await signals(rig)
        # The attempt that was under way was given up.
        await proven(rig, snapshots=1)
        [start] = [entry for entry in await entries(rig) if entry.get("stream") == {"waits": True}]

    assert [each["outcome"] for each in found] == ["done"]
    assert start["seq"] == 0


async def _is_finished(rig: SnapshotRig) -> bool:
    durable = [entry["durable"] for entry in await entries(rig) if "durable" in entry]
    return bool(durable) and not durable[-1]["unfinished"]
