"""What a worker's memory is bounded by: two parts and a few large rows, whatever a range holds."""

from typing import Final

import pytest

from databases import Database
from engine.model.schema import TableName
from engine.snapshot.staging import PART_BYTES
from range_process import Told, staged_apart
from snapshot_reading import snapshots_of, tasks_of

MIB: Final = 1024 * 1024
_A: Final = TableName("public", "a")

_WORKER_BYTES_MAX: Final = 160 * MIB
"""What a worker may have in all, beside three times its largest row."""

_GROWTH_BYTES_MAX: Final = 24 * MIB
"""What a range may add beside parts and large rows (measured, all in all: 6 MiB with parts of 2
MiB, 35 MiB with parts of 16 MiB, 309 MiB with a row of 100 MiB)."""


async def staged(database: Database, *, part_bytes: int = PART_BYTES) -> Told:
    """The whole table, as its only range."""
    async with snapshots_of(database, range_pages=1 << 20).hold([_A]) as held:
        [task] = tasks_of(held, _A)
        return staged_apart(database.dsn, task, part_bytes=part_bytes)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("row_count", "part_bytes"),
    [(50_000, 2 * MIB), pytest.param(300_000, PART_BYTES, marks=pytest.mark.long)],
)
async def test_a_range_of_any_size_takes_the_memory_of_a_few_parts(
    database: Database, *, row_count: int, part_bytes: int
) -> None:
    # A thousand bytes a row, of which gzip leaves the half.
    database.execute("CREATE TABLE a (id int PRIMARY KEY, t text)")
    database.execute(
        "INSERT INTO a SELECT n, (SELECT string_agg(md5((31 * n + m)::text), '')"
        " FROM generate_series(1, 31) AS m) FROM generate_series(1, %s::int) AS n",
        row_count,
    )

    told = await staged(database, part_bytes=part_bytes)

    [staged_object] = told.result.objects
    assert staged_object.ops["r"] == row_count
    assert staged_object.size_bytes > 8 * part_bytes
    assert told.peak_bytes <= _WORKER_BYTES_MAX
    assert told.peak_bytes - told.before_bytes <= 3 * part_bytes + _GROWTH_BYTES_MAX


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size_mib", [16, pytest.param(100, marks=pytest.mark.long)])
async def test_a_large_row_takes_three_times_its_size(database: Database, *, size_mib: int) -> None:
    database.execute("CREATE TABLE a (id int PRIMARY KEY, t text)")
    database.execute(
        "INSERT INTO a SELECT 1, string_agg(md5(n::text), '')"
        " FROM generate_series(1, %s::int) AS n",
        size_mib * MIB // 32,
    )

    told = await staged(database)

    [staged_object] = told.result.objects
    assert staged_object.raw_bytes > size_mib * MIB
    assert told.peak_bytes <= _WORKER_BYTES_MAX + 3 * size_mib * MIB
    assert told.peak_bytes - told.before_bytes <= 3 * size_mib * MIB + _GROWTH_BYTES_MAX
