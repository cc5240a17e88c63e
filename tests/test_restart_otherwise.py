"""An engine restarted with another configuration, while objects that the last one planned are
missing: what was planned comes out as planned, what follows as it is configured now.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from databases import Database
from engine.servers.fault_proxy import Hold, requests_to
from engine.servers.servers import EmbeddedS3
from faults.rig import Rig, rigged
from load_tests.engine_process import EngineProcess, Pipeline, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

MIB = 1024 * 1024
TABLES = ("orders", "items", "entries")
HELD_MAX = 12

Change = dict[str, object]


@pytest.fixture
async def rig(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    async with rigged(database, s3, bucket, s3_client, tmp_path) as rig:
        yield rig


@contextmanager
def objects_held(rig: Rig) -> Iterator[list[Hold]]:
    """Hold every object that is put inside the block: as many as an engine has under way."""
    is_on = asyncio.Event()
    is_on.set()
    is_object = requests_to("PUT", ".ndjson.")
    yield [
        rig.proxy.hold_next(lambda request: is_on.is_set() and is_object(request))
        for _ in range(HELD_MAX)
    ]
    is_on.clear()


async def killed_before_publishing(rig: Rig, engine: EngineProcess) -> list[str]:
    """Write, and kill `engine` when objects of all tables are planned and none of them is there."""
    with objects_held(rig) as holds:
        write(rig.database, 1, 200)

        # All are in the proxy's hands: what is still on its way would pass when the block ends.
        async def look() -> bool:
            return sum(hold.is_reached for hold in holds) == len(TABLES)

        await until(look, "an object of each table")
        engine.kill()
    return (await rig.image.look()).missing


_WRITTEN = (
    "INSERT INTO orders SELECT id, 'c', 1.5, true, 'n'",
    "INSERT INTO items SELECT id, 1, 's', 2",
    "INSERT INTO entries (account, amount) SELECT 'a', id",
)


def write(database: Database, first: int, last: int) -> None:
    """A row for each number in each table, in one transaction."""
    with database.connect(autocommit=False) as connection:
        for statement in _WRITTEN:
            series = " FROM generate_series(%s::bigint, %s) AS id"
            connection.execute(statement + series, (first, last))


def position_of(record: Mapping[str, Any]) -> str:
    """A record's position, in whichever envelope."""
    if "_position" in record:
        return str(record["_position"])
    holder = record["metadata"] if "metadata" in record else record["source"]
    return str(holder["position"])


def records(lines: bytes) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in lines.splitlines())


async def records_of(rig: Rig, keys: list[str]) -> list[dict[str, Any]]:
    return [record for lines in await rig.image.lines(keys) for record in records(lines)]


async def published_positions(rig: Rig) -> dict[str, list[str]]:
    """Every record's position by table, objects in the order of their plans."""
    look = await rig.image.look()
    assert (look.missing, look.unnamed) == ([], [])
    positions: dict[str, list[str]] = {}
    keys = list(look.planned)
    for key, lines in zip(keys, await rig.image.lines(keys), strict=True):
        found = positions.setdefault(look.planned[key]["table"], [])
        found += [position_of(record) for record in records(lines)]
    return positions


async def twin_positions(rig: Rig) -> dict[str, list[str]]:
    changes = await asyncio.to_thread(rig.twin.changes)
    return {table: [change.position for change in rows] for table, rows in changes.items()}


async def restarted(rig: Rig, successor: Pipeline) -> tuple[list[str], list[str]]:
    """Kill an engine with objects missing, catch up with `successor`, write, catch up again.

    The keys that the first planned and the second had to make, and those of what was written last.
    """
    engine = await rig.streaming("first")
    redone = await killed_before_publishing(rig, engine)
    caught_up = await rig.catch_up(pipeline=successor)
    planned = set((await rig.image.look()).planned)
    write(rig.database, 201, 300)
    await rig.catch_up(pipeline=successor)

    verdict = await rig.verdict()
    look = await rig.image.look()
    assert verdict["ok"], verdict
    assert caught_up.events("redo pass")
    assert await published_positions(rig) == await twin_positions(rig)
    for key in redone:
        assert (await rig.image.metadata(key))["raw-crc32"] == look.planned[key]["raw_crc32"]
    return redone, [key for key in look.planned if key not in planned]


@pytest.mark.timeout(240)
async def test_fewer_columns_apply_to_what_follows(rig: Rig) -> None:
    successor = rig.pipeline.ruled({"match": "public.orders", "exclude": ["note"]})

    redone, later = await restarted(rig, successor)

    old = await records_of(rig, [key for key in redone if "table=orders" in key])
    new = await records_of(rig, [key for key in later if "table=orders" in key])
    assert {tuple(record["after"]) for record in old} == {
        ("id", "customer", "total", "is_paid", "note")
    }
    assert {tuple(record["after"]) for record in new} == {("id", "customer", "total", "is_paid")}
    assert {record["metadata"]["version"] for record in old} == {1}
    assert {record["metadata"]["version"] for record in new} == {2}
    assert all("version=0001" in key for key in later if "table=orders" not in key)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("envelope", ["flat", "debezium"])
async def test_another_envelope_layout_and_compression_apply_to_what_follows(
    rig: Rig, envelope: str
) -> None:
    successor = rig.pipeline.changed(
        chunk__compression="zstd", destination__layout="plain", destination__envelope=envelope
    )

    redone, later = await restarted(rig, successor)

    sign = {"flat": "_position", "debezium": "ts_ms"}[envelope]
    assert len(later) == len(TABLES)
    assert all(key.endswith(".ndjson.gz") and "table=" in key for key in redone)
    assert all(key.endswith(".ndjson.zst") and "table=" not in key for key in later)
    assert all("metadata" in record for record in await records_of(rig, redone))
    assert all(sign in record for record in await records_of(rig, later))


@pytest.mark.timeout(240)
async def test_another_compression_alone_begins_no_version(rig: Rig) -> None:
    successor = rig.pipeline.changed(chunk__compression="zstd")

    redone, later = await restarted(rig, successor)

    assert all(key.endswith(".ndjson.gz") for key in redone)
    assert all(key.endswith(".ndjson.zst") and "version=0001" in key for key in later)


@pytest.mark.timeout(240)
async def test_another_publication_does_not_hide_what_was_planned(rig: Rig) -> None:
    rig.database.execute("CREATE PUBLICATION narrow FOR TABLE orders, items")
    rig.database.execute("SELECT pg_logical_emit_message(true, 'test', '')")
    successor = rig.pipeline.changed(source__publication="narrow")
    engine = await rig.streaming("first")
    redone = await killed_before_publishing(rig, engine)

    await rig.catch_up(pipeline=successor)
    write(rig.database, 201, 300)
    await rig.catch_up(pipeline=successor)

    verdict = await rig.verdict()
    positions, twin = await published_positions(rig), await twin_positions(rig)
    assert verdict["ok"], verdict
    assert any("table=entries" in key for key in redone)
    assert [len(positions[f"public.{table}"]) for table in TABLES] == [300, 300, 200]
    assert positions["public.entries"] == twin["public.entries"][:200]


@pytest.mark.timeout(300)
async def test_a_successor_with_less_memory_redoes_in_several_passes(rig: Rig) -> None:
    roomy = rig.pipeline.changed(
        engine__memory_limit="256MiB", chunk__max_rows=40_000, queue__max_bytes="64MiB"
    )
    engine = await rig.streaming("roomy", pipeline=roomy)
    with objects_held(rig) as [hold, *_]:
        rig.database.execute(
            "INSERT INTO orders SELECT id, repeat(md5(id::text), 10), 1, true, NULL"
            " FROM generate_series(1, 80000) id"
        )

        async def look() -> bool:
            return hold.is_reached and len((await rig.image.look()).missing) >= 2

        await until(look, "two large plans")
        engine.kill()
    missing = (await rig.image.look()).missing

    tight = rig.pipeline.changed(engine__memory_limit="16MiB", chunk__max_rows=40_000)
    successor = await rig.catch_up(pipeline=tight)

    plans = (await rig.image.look()).planned
    raw_bytes = [plans[key]["raw_bytes"] for key in missing]
    print(f"redone: {raw_bytes}")  # noqa: T201 - measured
    assert len(successor.events("redo pass")) >= 2
    await rig.proven()
