"""Large tables in segments, end to end: a load and kills beside them, and keys that move past them.

The table that comes out of the bucket has to be the one in the database, exactly.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from databases import Database
from engine.servers.fault_proxy import Request
from engine.servers.servers import EmbeddedS3
from faults.snapshot_rig import Place, SnapshotRig, range_bytes
from faults.snapshots import is_part, table_rows
from load_tests.engine_process import until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

pytestmark = pytest.mark.timeout(600)

TABLE = "a"
ROWS = 40_000
SEGMENTS = 4
LIMIT = {"source__snapshot_segment_bytes": "1MiB"}


@pytest.fixture
def place(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> Place:
    """A table of about four mebibytes; its keys are even numbers."""
    with database.connect() as connection:
        connection.execute(
            "CREATE TABLE a (id bigint PRIMARY KEY, account text, amount numeric(12, 2), note text)"
        )
        # Long notes are stored out of line, so that updates leave them out.
        connection.execute("ALTER TABLE a ALTER note SET STORAGE EXTERNAL")
        connection.execute(
            "INSERT INTO a SELECT 2 * n, 'account ' || n % 997 || repeat('.', 40), n / 8.0,"
            f" CASE WHEN n % 400 = 0 THEN repeat(md5(n::text), 80) END FROM"
            f" generate_series(1, {ROWS}) AS n ORDER BY md5(n::text)"
        )
    return Place(database, s3, bucket, s3_client, tmp_path)


@asynccontextmanager
async def rigged(place: Place) -> AsyncIterator[SnapshotRig]:
    async with place.rigged(preamble=range_bytes(256 * 1024), keys=LIMIT) as rig:
        yield rig


async def history(rig: SnapshotRig) -> list[dict[str, Any]]:
    """All statements about the table's snapshot."""
    look = await rig.image.look()
    return [statement for entry in look.entries for statement in entry.get("snapshots", ())]


def steps(statements: list[dict[str, Any]], state: str) -> list[tuple[int, int]]:
    """Attempt and segment of each statement of that state."""
    return [(s["attempt"], s.get("segment", 0)) for s in statements if s["state"] == state]


async def stands(rig: SnapshotRig, state: str, segment: int) -> None:
    """Wait until the newest statement says so of a segment."""

    async def look() -> bool:
        found = (await history(rig))[-1:]
        return [(s["state"], s.get("segment", 0)) for s in found] == [(state, segment)]

    await until(look, f"segment {segment} is {state}", seconds=120)


def part_of(segment: int) -> Any:
    """Whether a request is a part of the first attempt's segment of that number."""

    def is_one(request: Request) -> bool:
        return is_part(request) and f".{1:06X}{segment:04X}" in request.path

    return is_one


# --- a load, and kills


@dataclass(slots=True)
class Load:
    """Inserts, updates, deletes and changes of keys, all over the table.

    No row moves that has a long note. `horizons` are those that sessions hold which keep a
    snapshot.
    """

    database: Database
    changes: dict[str, int] = field(default_factory=dict)
    horizons: set[int] = field(default_factory=set)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    free: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        keys = [2 * n + 1 for n in range(ROWS)]
        self.chance.shuffle(keys)
        self.free = iter(keys)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Write until the block is left."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write())
            try:
                yield self
            finally:
                self.is_over.set()

    async def _write(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.database.dsn) as connection:
            while not self.is_over.is_set():
                await self._transaction(connection)
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await self.is_over.wait()

    async def _transaction(self, connection: psycopg.AsyncConnection[Any]) -> None:
        some, short = "id = ANY(%s)", "(note IS NULL OR length(note) < 1000)"
        await self._do(connection, f"UPDATE a SET amount = amount + 1 WHERE {some}", self._ids(8))
        await self._do(connection, f"DELETE FROM a WHERE {some}", self._ids(3))
        added = [next(self.free) for _ in range(4)]
        insert = "INSERT INTO a SELECT id, 'new', id, 'added' FROM unnest(%s::bigint[]) AS id"
        await self._do(connection, insert, added)
        for old in self._ids(2):
            move = f"UPDATE a SET id = {next(self.free)} WHERE {some} AND {short}"
            await self._do(connection, move, [old])
        await connection.commit()
        cursor = await connection.execute(
            "SELECT backend_xmin::text::bigint FROM pg_stat_activity"
            " WHERE state = 'idle in transaction' AND backend_xmin IS NOT NULL"
            " AND application_name LIKE 'tailrace (not%%' AND datname = current_database()"
        )
        self.horizons |= {xmin for (xmin,) in await cursor.fetchall()}
        await connection.commit()

    async def _do(
        self, connection: psycopg.AsyncConnection[Any], statement: str, ids: list[int]
    ) -> None:
        done = await connection.execute(statement.encode(), (ids,))
        kind = "move" if "SET id" in statement else statement.partition(" ")[0]
        self.changes[kind] = self.changes.get(kind, 0) + done.rowcount

    def _ids(self, count: int) -> list[int]:
        return [self.chance.randrange(1, 2 * ROWS) for _ in range(count)]


async def test_kills_between_and_in_segments_cost_one_segment_and_the_table_is_exact(
    place: Place,
) -> None:
    load = Load(place.database)
    async with rigged(place) as rig:
        async with load.running():
            # One engine dies in the middle of a segment, the next one between two.
            hold = rig.proxy.hold_next(part_of(1))
            engine = rig.start()
            await hold.wait_reached(120)
            await stands(rig, "started", 1)
            engine.kill()
            hold.release()
            engine = rig.start()
            hold = rig.proxy.hold_next(part_of(2))
            await stands(rig, "whole", 1)
            engine.kill()
            hold.release()
            await rig.caught_up(seconds=240)
        await rig.caught_up()
        statements = await history(rig)
        found = await rig.rebuilt(TABLE)
        verdict = await rig.verdict()

    whole, started = steps(statements, "whole"), steps(statements, "started")
    assert len(whole) >= SEGMENTS
    assert whole == [(1, segment) for segment in range(len(whole))]
    # What a kill costs is the segment that was being read.
    assert set(started) == set(whole)
    assert started.count((1, 0)) == 1
    assert started.count((1, 1)) == 2
    assert all(started.count(step) <= 2 for step in started)
    assert "rest" not in statements[-1]
    assert found.rows == table_rows(place.database, TABLE)
    assert found.ops["t"] == 1
    assert max(found.read_keys.values()) == 1
    assert verdict["ok"], verdict
    assert all(load.changes[kind] > 20 for kind in ("INSERT", "UPDATE", "DELETE", "move"))
    # Each segment has a horizon of its own: none is held for the whole table.
    assert len(load.horizons) >= len(whole)
    print(load.changes, started, len(load.horizons))  # noqa: T201 - recorded


# --- keys that move past segments


@pytest.mark.parametrize("segment", [0, 1])
async def test_a_row_that_moves_past_unread_segments_has_its_large_value(
    place: Place, segment: int
) -> None:
    [[moved]] = place.database.execute("SELECT max(id) FROM a WHERE length(note) > 1000")
    async with rigged(place) as rig:
        hold = rig.proxy.hold_next(part_of(segment))
        engine = rig.start()
        await hold.wait_reached(120)
        await stands(rig, "started", segment)
        # From the end of the table to its beginning, without its note.
        place.database.execute("UPDATE a SET id = -id WHERE id = %s", moved)

        async def is_anew() -> bool:
            return any(s.get("undivided") for s in await history(rig))

        await until(is_anew, "the attempt begins anew", seconds=60)
        hold.release()
        await engine.stop()
        await rig.caught_up(seconds=240)
        statements = await history(rig)
        found = await rig.rebuilt(TABLE)
        verdict = await rig.verdict()

    whole = steps(statements, "whole")
    assert whole == [*((1, number) for number in range(segment)), whole[-1]]
    assert whole[-1][0] > 1
    assert statements[-1]["undivided"]
    assert found.rows[-moved][3]
    assert found.rows == table_rows(place.database, TABLE)
    assert found.ops["u"] == 1
    assert verdict["ok"], verdict
