"""The computed log: the same for whoever reads it, from wherever."""

from itertools import pairwise

from engine.model.batch import Batch, Intake
from engine.model.log_point import LogPoint
from engine.model.position import Position
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableVersion
from engine.sources.synthetic import (
    ROWS_A_TRANSACTION,
    SyntheticSource,
    end_of,
    transactions_before,
)

CONFIGURATION = RecordConfiguration("tailrace", tables=("public.*",))


def always_first(relation: Relation, position: Position) -> TableVersion:
    return TableVersion(1, position, "", relation)


async def read(
    source: SyntheticSource, start: LogPoint | None = None, *, single_rows: bool = False
) -> list[Batch]:
    batches: list[Batch] = []
    end = await source.end()
    async with source.stream(start, CONFIGURATION, always_first, single_rows=single_rows) as stream:
        while True:
            intake = await stream.receive()
            batches.extend(intake.batches)
            assert intake.boundary is not None
            if intake.boundary.position >= end.position:
                return batches


def lines(batches: list[Batch]) -> dict[str, bytes]:
    joined: dict[str, bytes] = {}
    for batch in batches:
        joined[str(batch.table)] = joined.get(str(batch.table), b"") + batch.lines
    return joined


async def test_every_row_is_there_once_in_order() -> None:
    batches = await read(SyntheticSource(row_count=4_321, table_count=3))

    assert sum(batch.row_count for batch in batches) == 4_321
    assert len({batch.table for batch in batches}) == 3
    for table in {batch.table for batch in batches}:
        of_table = [batch for batch in batches if batch.table == table]
        assert all(a.last < b.first for a, b in pairwise(of_table))


async def test_a_successor_reads_the_same_rows_from_the_middle() -> None:
    source = SyntheticSource(row_count=5_000)

    [whole] = lines(await read(source)).values()
    [rest] = lines(await read(source, end_of(2))).values()

    assert whole.endswith(rest)
    assert rest.count(b"\n") == 5_000 - 2 * ROWS_A_TRANSACTION


async def test_rows_of_many_tables_are_held_and_nothing_before_a_boundary_is() -> None:
    source = SyntheticSource(row_count=30_000, table_count=500)
    end, seen = await source.end(), 0
    intakes: list[Intake] = []

    async with source.stream(None, CONFIGURATION, always_first) as stream:
        while not intakes or (last := intakes[-1].boundary) is None or last.point != end:
            intakes.append(await stream.receive())
            seen += sum(batch.row_count for batch in intakes[-1].batches)
            boundary = intakes[-1].boundary
            before = transactions_before(boundary.point) if boundary is not None else 0
            assert boundary is None or seen == before * ROWS_A_TRANSACTION

    # Else each of 15 drains would give a batch of every table.
    assert sum(len(intake.batches) for intake in intakes) < 15 * 500 // 2
    assert max(intake.held_seconds for intake in intakes) > 0


async def test_row_by_row_gives_the_same_lines() -> None:
    source = SyntheticSource(row_count=1_500, table_count=2)

    single = await read(source, single_rows=True)

    assert all(batch.row_count == 1 for batch in single)
    assert lines(single) == lines(await read(source))
