"""Snapshots of PostgreSQL as a coordinator and its workers take them, for the tests."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from databases import Database
from engine.model.batch import Batch, LeftOut
from engine.model.hash_key import NO_HASH_KEY, HashKey
from engine.model.position import LogPosition
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName, snapshot_version
from engine.model.snapshot_source import HeldSnapshot, RangeTask
from engine.operate.alarms import Alarms
from engine.sources.postgres.held import PostgresSnapshots
from engine.sources.postgres.range_reader import PostgresRangeReader
from engine.sources.postgres.ranges import decode_own
from engine.sources.postgres.segments import SEGMENT_BYTES
from engine.sources.postgres.settings import SHAPING_SETTINGS

CONFIGURATION = RecordConfiguration(through="tailrace", tables=("*.*",), stream=SHAPING_SETTINGS)
COMMIT_US = 1_700_000_000_000_000
ALARMS = Alarms(lambda: 0)


def snapshots_of(
    database: Database,
    configuration: RecordConfiguration = CONFIGURATION,
    *,
    dsn: str = "",
    range_pages: int | None = None,
    segment_bytes: int = SEGMENT_BYTES,
    lock_yield_seconds: float = 2.0,
) -> PostgresSnapshots:
    return PostgresSnapshots(
        dsn=dsn or database.dsn,
        configuration=configuration,
        alarms=ALARMS,
        range_pages=range_pages,
        segment_bytes=segment_bytes,
        lock_yield_seconds=lock_yield_seconds,
    )


def tasks_of(
    held: HeldSnapshot,
    table: TableName,
    configuration: RecordConfiguration = CONFIGURATION,
) -> list[RangeTask]:
    """One attempt's tasks, under the first version of the table."""
    relation = held.tables[table].relation
    prefix = configuration.flat_prefix_of(table, relation.columns)
    version = snapshot_version((), relation, configuration.record_digest(table), prefix)
    return [
        RangeTask(
            name=f"{held.name}/{number}",
            database="d",
            version=version,
            configuration=configuration,
            point=LogPosition(held.point.position),
            commit_us=COMMIT_US,
            attempt=1,
            range_number=number,
            begins_attempt=number == 0,
            own=own,
        )
        for number, own in enumerate(held.tables[table].ranges)
    ]


@dataclass
class RangeReading:
    """What the readers gave."""

    batches: list[Batch] = field(default_factory=list)

    @property
    def lines(self) -> list[bytes]:
        return [line for batch in self.batches for line in batch.lines.splitlines()]

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def rows(self) -> list[Any]:
        """The rows, without the record that begins the attempt."""
        return [r["after"] for r in self.records if r["metadata"]["op"] == "r"]


def keep_all(row: LeftOut) -> None:
    """Who is told of rows left out, where there must be none."""
    raise AssertionError(row)


async def read_range(
    dsn: str,
    task: RangeTask,
    hash_key: HashKey = NO_HASH_KEY,
    leave_out: Callable[[LeftOut], None] = keep_all,
) -> list[Batch]:
    async with PostgresRangeReader(dsn, hash_key=hash_key).read(task, leave_out) as batches:
        return [batch async for batch in batches]


async def read_tasks(dsn: str, tasks: Sequence[RangeTask]) -> RangeReading:
    reading = RangeReading()
    for task in tasks:
        reading.batches += await read_range(dsn, task)
    return reading


async def read_table(
    database: Database,
    table: TableName,
    configuration: RecordConfiguration = CONFIGURATION,
    *,
    range_pages: int | None = None,
) -> RangeReading:
    """One snapshot of one table, read wholly."""
    snapshots = snapshots_of(database, configuration, range_pages=range_pages)
    async with snapshots.hold([table]) as held:
        assert not held.left_out
        return await read_tasks(database.dsn, tasks_of(held, table, configuration))


def with_names(task: RangeTask, *names: str) -> RangeTask:
    """The task, with other names of a snapshot."""
    own = msgspec.structs.replace(decode_own(task.own), snapshots=names)
    return msgspec.structs.replace(task, own=msgspec.msgpack.encode(own))
