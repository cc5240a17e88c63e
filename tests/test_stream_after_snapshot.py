"""A stream that waits for the initial snapshot: names alone order everything.

The loader of these tests is as simple as one can be. It remembers the last name that it loaded of a
table, lists what sorts behind it, and applies each object's records in the order of their lines. It
reads no journal and no positions.
"""

import asyncio
import gzip
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from databases import Database
from engine.servers.fault_proxy import Request
from engine.servers.servers import EmbeddedS3
from faults.snapshot_rig import PREFIX, Place, SnapshotRig, range_bytes
from faults.snapshots import COLUMNS, TABLES, RandomLoad, make_tables, table_rows
from load_tests.engine_process import EngineProcess, Pipeline, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

pytestmark = pytest.mark.timeout(900)

ROWS = 15_000
BEFORE = {
    "source__snapshot_order": "before",
    "source__snapshot_tables": 1,
    # A group begins once no worker is needed for the one before.
    "source__snapshot_workers": "local:1",
}
SMALL_RANGES = range_bytes(8192 * 40)
SOON = """
from dataclasses import replace
from engine import app
made = app.pipeline_settings
app.pipeline_settings = lambda *a, **k: replace(
    made(*a, **k), requests_interval=0.2, watch_interval=1.0)
"""


@dataclass
class NameLoader:
    """Loads the tables of `make_tables` by names, as they come."""

    client: "S3Client"
    bucket: str
    rows: dict[str, dict[int, tuple[object, ...]]] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    """Every key in the order in which it was loaded."""
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @asynccontextmanager
    async def loading(self) -> AsyncIterator[None]:
        """Load beside the block; a load by hand at its end finds the rest."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._go_on())
            yield
            task.cancel()

    async def _go_on(self) -> None:
        while True:
            await self.load()
            await asyncio.sleep(0.1)

    async def load(self) -> None:
        """Load what is there now."""
        async with self._loading:
            for table in TABLES:
                await self._load(table)

    async def _load(self, table: str) -> None:
        (folder,) = {f"{PREFIX}/database={name}/" for name in await self._databases()} or {""}
        if not folder:
            return
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket,
            Prefix=f"{folder}schema=public/table={table}/",
            StartAfter=self.last.get(table, ""),
        )
        keys = [each["Key"] async for page in pages for each in page.get("Contents", ())]
        for key in keys:
            if not key.endswith(".ndjson.gz"):
                continue
            answer = await self.client.get_object(Bucket=self.bucket, Key=key)
            for line in gzip.decompress(await answer["Body"].read()).splitlines():
                self._apply(self.rows.setdefault(table, {}), orjson.loads(line))
            self.last[table] = key
            self.loaded.append(key)

    async def _databases(self) -> list[str]:
        answer = await self.client.list_objects_v2(
            Bucket=self.bucket, Prefix=f"{PREFIX}/database=", Delimiter="/"
        )
        found = [each["Prefix"] for each in answer.get("CommonPrefixes", ())]
        return [prefix.rstrip("/").partition("database=")[2] for prefix in found]

    @staticmethod
    def _apply(rows: dict[int, tuple[object, ...]], record: dict[str, Any]) -> None:
        before, after, metadata = record["before"], record["after"], record["metadata"]
        if metadata["op"] == "t":
            rows.clear()
            return
        if metadata["op"] in "rc":
            # No row is there twice: nothing is inserted that is there already.
            assert after["id"] not in rows, after["id"]
        old = rows.pop(before["id"], None) if before is not None else None
        if after is None:
            assert old is not None, before
            return
        for name in metadata.get("unchanged", ()):
            known = old or rows[after["id"]]
            after[name] = known[COLUMNS.index(name)]
        rows[after["id"]] = tuple(after[name] for name in COLUMNS)


def is_part_of(table: str) -> Any:
    """A part of an upload of the table's snapshot."""

    def catches(request: Request) -> bool:
        return (
            request.method == "PUT"
            and f"/table%3D{table}/" in request.path.replace("=", "%3D")
            and "partNumber" in request.parameters
        )

    return catches


@pytest.fixture
def place(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> Place:
    return Place(database, s3, bucket, s3_client, tmp_path)


def stream_start(entries: tuple[Any, ...]) -> Any:
    """The entry by which the stream starts; every plan has to come behind it."""
    waits, starts = [entry for entry in entries if "stream" in entry]
    assert waits["seq"] == 0
    assert waits["stream"] == {"waits": True}
    planned = [entry["seq"] for entry in entries if entry.get("planned")]
    assert all(seq > starts["seq"] for seq in planned)
    return starts


async def proven(rig: SnapshotRig, loader: NameLoader) -> None:
    """Hold that a loader by names has the tables, and that nothing streamed came early."""
    look = await rig.image.look()
    starts = stream_start(look.entries)
    assert starts["stream"]["begins"].keys() == {f"public.{table}" for table in TABLES}
    streamed = look.planned.keys()
    for table in TABLES:
        assert loader.rows[table] == table_rows(rig.database, table), table
        loaded = [key for key in loader.loaded if f"/table={table}/" in key]
        assert loaded == sorted(key for key in look.keys if key in loaded)
        assert set(loaded) == {
            key for key in look.keys if f"/table={table}/" in key and key.endswith(".gz")
        }
        kinds = [key in streamed for key in loaded]
        assert kinds == sorted(kinds), "an object of the stream came before one of the snapshot"
        assert any(kinds), "nothing was streamed"
    verdict = await rig.verdict()
    assert verdict["ok"], verdict


async def test_a_loader_by_names_alone_has_the_tables_under_a_load(place: Place) -> None:
    make_tables(place.database, ROWS)
    loader = NameLoader(place.client, place.bucket)
    load = RandomLoad(place.database, seed=1, rate=300, rows=ROWS)
    async with place.rigged(preamble=SMALL_RANGES, keys=BEFORE) as rig, loader.loading():
        async with load.running():
            hold = rig.proxy.hold_next(is_part_of(TABLES[-1]))
            engine = rig.start()
            await hold.wait_reached(120)
            waiting = await engine.reaches("snapshot")
            seen = await rig.image.look()
            await _more(load)
            hold.release()
            streaming = await engine.reaches("streaming", seconds=120)
            await _more(load)
        await engine.stop()
        await rig.caught_up()
        await loader.load()
        await proven(rig, loader)

    assert waiting["waits_for"] == "the stream waits for the initial snapshot"
    assert streaming["waits_for"] == ""
    assert seen.planned == {}


async def _more(load: RandomLoad) -> None:
    """Wait for 300 more changes."""
    wanted = load.change_count + 300

    async def are_there() -> bool:
        return load.change_count >= wanted

    await until(are_there, "more changes", seconds=60)


async def _lag(engine: EngineProcess) -> int | None:
    status = await engine.status()
    return status["lag"] if status is not None else None


async def test_kills_and_a_takeover_in_the_wait_leave_names_in_order(place: Place) -> None:
    make_tables(place.database, ROWS)
    loader = NameLoader(place.client, place.bucket)
    load = RandomLoad(place.database, seed=2, rate=300, rows=ROWS)
    async with place.rigged(preamble=SMALL_RANGES, keys=BEFORE) as rig, loader.loading():
        async with load.running():
            for table in TABLES[1:]:
                hold = rig.proxy.hold_next(is_part_of(table))
                engine = rig.start()
                standby = rig.start()
                await hold.wait_reached(120)
                held = await rig.statements()
                engine.kill()
                standby.kill()
                hold.release()
                # The first table is visible, this one is not: the stream waits in the next life.
                assert held[f"public.{TABLES[0]}"]["state"] == "whole"
                assert held[f"public.{table}"]["state"] == "started"
            hold = rig.proxy.hold_next(is_part_of(TABLES[-1]))
            first = rig.start()
            await hold.wait_reached(120)
            second = rig.start()
            await second.reaches("standby")
            first.kill()
            await second.reaches("snapshot", seconds=60)
            hold.release()
            await second.reaches("streaming", seconds=120)
            await _more(load)
            await second.stop()
        await rig.caught_up()
        await loader.load()
        await proven(rig, loader)


async def test_until_caught_up_waits_for_the_snapshot_and_then_streams(place: Place) -> None:
    make_tables(place.database, 300)
    async with place.rigged(keys=BEFORE) as rig:
        await rig.caught_up()
        place.database.execute("INSERT INTO first VALUES (-1, 'later', 1, NULL)")
        await rig.caught_up()
        found = await rig.rebuilt("first")
        verdict = await rig.verdict()
        entries = (await rig.image.look()).entries

    assert found.rows == table_rows(place.database, "first")
    assert found.ops == Counter(t=1, r=100, c=1)
    assert verdict["ok"]
    assert stream_start(entries)["stream"]["begins"].keys() == {f"public.{t}" for t in TABLES}
    assert entries[-1]["durable"]["unfinished"] == []


async def test_changes_before_a_tables_point_are_in_its_snapshot_and_nowhere_else(
    place: Place,
) -> None:
    place.database.execute("CREATE TABLE first (id bigint PRIMARY KEY, note text)")
    place.database.execute("CREATE TABLE second (a int, note text)")
    place.database.execute("ALTER TABLE second REPLICA IDENTITY FULL")
    async with place.rigged(keys=BEFORE) as rig:
        hold = rig.proxy.hold_next(is_part_of("first"))
        engine = rig.start()
        await hold.wait_reached(60)
        # Behind the point of `first`, and before that of `second`, which has no key.
        place.database.execute("INSERT INTO first VALUES (1, 'streamed')")
        place.database.execute("INSERT INTO second VALUES (1, 'read'), (1, 'read')")
        lag = await until(lambda: _lag(engine), "a lag", seconds=60)
        hold.release()
        await engine.reaches("streaming", seconds=60)
        place.database.execute("INSERT INTO second VALUES (2, 'streamed')")
        await engine.stop()
        await rig.caught_up()
        first = await _ops(rig, "first")
        second = await _ops(rig, "second")

    assert first == ["t", "c"]
    assert second == ["t", "r", "r", "c"]
    assert lag


async def _ops(rig: SnapshotRig, table: str) -> list[str]:
    """The ops of the table's records in the order of names."""
    look = await rig.image.look()
    keys = sorted(key for key in look.keys if f"/table={table}/" in key and key.endswith(".gz"))
    lines = [
        orjson.loads(line)
        for body in await rig.image.bodies(keys)
        for line in gzip.decompress(body).splitlines()
    ]
    return [line["metadata"]["op"] for line in lines]


async def test_the_stream_goes_on_without_a_table_that_is_refused_and_says_so(
    place: Place,
) -> None:
    make_tables(place.database, 300)
    place.database.execute("UPDATE third SET note = repeat('x', 1500000) WHERE id = 7")
    keys = BEFORE | {"source__max_row_bytes": "1MiB"}
    async with place.rigged(keys=keys) as rig:
        engine = rig.start()
        status = await engine.reaches("streaming", seconds=120)
        place.database.execute("INSERT INTO third VALUES (-1, 'streamed', 1, NULL)")
        await until(lambda: _planned(rig, "public.third"), "the stream of the table", seconds=60)
        told = engine.events("the stream starts without the snapshot of some tables")
        after = await engine.status()
        await engine.stop()
        starts = stream_start((await rig.image.look()).entries)
        verdict = await rig.verdict()

    assert status["snapshots_unfinished"] == 1
    assert starts["stream"]["begins"].keys() == {"public.first", "public.second"}
    assert [event["tables"] for event in told] == [["public.third"]]
    assert after is not None
    assert "public.third" in {alarm["subject"] for alarm in after["alarms"]}
    assert verdict["ok"], verdict


async def _planned(rig: SnapshotRig, table: str) -> bool:
    look = await rig.image.look()
    return any(plan["table"] == table for plan in look.planned.values())


async def test_a_cancelled_table_is_not_waited_for_and_a_resync_is(place: Place) -> None:
    make_tables(place.database, 300)
    async with place.rigged(preamble=SOON, keys=BEFORE) as rig:
        hold = rig.proxy.hold_next(is_part_of("third"))
        engine = rig.start()
        await hold.wait_reached(60)
        first = (await rig.statements())["public.first"]["attempt"]
        await _asked(rig, "resync", "public.first")
        await _asked(rig, "resync", "public.third", "--cancel")
        hold.release()
        await engine.reaches("streaming", seconds=60)
        entries = (await rig.image.look()).entries
        await engine.stop()
        verdict = await rig.verdict()

    begins = stream_start(entries)["stream"]["begins"]
    attempts = [
        statement["attempt"]
        for entry in entries
        for statement in entry.get("snapshots", ())
        if statement["table"] == "public.first" and statement["state"] == "whole"
    ]
    assert begins.keys() == {"public.first", "public.second"}
    assert attempts == [first, first + 1]
    assert verdict["ok"], verdict


async def _asked(rig: SnapshotRig, *arguments: str) -> None:
    """Ask, and wait until the journal has the answer."""
    before = len(await _answers(rig))
    process = rig.start(*arguments)
    assert await process.ended(seconds=60) == 0, process.complaint

    async def is_answered() -> bool:
        return len(await _answers(rig)) > before

    await until(is_answered, "an answer", seconds=60)


async def _answers(rig: SnapshotRig) -> list[Any]:
    look = await rig.image.look()
    return [answer for entry in look.entries for answer in entry.get("answers", ())]


async def test_sigterm_in_the_wait_ends_well_and_the_next_start_waits_on(place: Place) -> None:
    make_tables(place.database, 300)
    async with place.rigged(keys=BEFORE) as rig:
        hold = rig.proxy.hold_next(is_part_of("third"))
        engine = rig.start()
        await hold.wait_reached(60)
        await engine.stop()
        stopped = (await rig.image.look()).entries
        status = rig.start("status")
        await status.ended()
        hold.release()
        await rig.caught_up()
        entries = (await rig.image.look()).entries

    assert stopped[-1]["release"]
    assert "waits for the initial snapshot" in status.output.read_text()
    durable = [entry["durable"]["position"] for entry in stopped if "durable" in entry]
    assert len(set(durable)) == 1
    assert stream_start(entries)["seq"] > stopped[-1]["seq"]


async def test_a_start_that_is_not_to_wait_any_more_streams_beside(place: Place) -> None:
    make_tables(place.database, 300)
    async with place.rigged(keys=BEFORE) as rig:
        hold = rig.proxy.hold_next(is_part_of("third"))
        engine = rig.start()
        await hold.wait_reached(60)
        engine.kill()
        hold.release()
        pipeline: Pipeline = rig.pipeline.changed(source__snapshot_order="beside")
        beside = rig.start(pipeline=pipeline)
        await beside.reaches("streaming")
        await rig.reaches("third", "whole")
        await beside.stop()
        entries = (await rig.image.look()).entries
        verdict = await rig.verdict()

    assert stream_start(entries)["stream"]["begins"].keys() <= {"public.first", "public.second"}
    assert verdict["ok"], verdict


NO_SLOT = """
from contextlib import asynccontextmanager
from engine.model.errors import SourceRefused
from engine.sources.postgres.held import PostgresSnapshots

@asynccontextmanager
async def hold(*args, **kwargs):
    raise SourceRefused("no slot is free", hint="raise max_replication_slots")
    yield

PostgresSnapshots.hold = hold
"""


async def test_until_caught_up_ends_where_no_snapshot_at_all_can_be_taken(place: Place) -> None:
    make_tables(place.database, 300)
    async with place.rigged(keys=BEFORE) as rig:
        refused = rig.start(
            "run", "--until-caught-up", pipeline=replace(rig.pipeline, preamble=NO_SLOT)
        )
        code = await refused.ended(seconds=120)
        stopped = (await rig.image.look()).entries
        await rig.caught_up()
        entries = (await rig.image.look()).entries

    assert code == 78
    assert "no slot is free" in refused.complaint
    assert stream_start(entries)["seq"] > stopped[-1]["seq"]
