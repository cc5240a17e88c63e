"""A process that stages one range and tells how much memory that took: `python -m range_process`.

Its input is a `_Work` as msgpack, its output a `Told`. The bucket forgets every part.
"""

import asyncio
import os
import subprocess
import sys
import zlib
from pathlib import Path

import msgspec

from engine import __version__
from engine.flow.chunk import crc32_text
from engine.model.snapshot_source import RangeTask
from engine.model.staging import StagedPart
from engine.snapshot.staging import StagingTask
from engine.snapshot.task import SnapshotResult, SnapshotTask, decode_result, encode
from engine.snapshot.work import stage_range
from engine.sources.postgres.range_reader import PostgresRangeReader
from load_tests.processes import peak_rss_bytes, rss_bytes
from memory_store import MemoryStore

_BUCKET = "bucket"
_ROOT = Path(__file__).parent.parent


class _Work(msgspec.Struct, frozen=True):
    dsn: str
    part_bytes: int
    task: bytes


class Told(msgspec.Struct, frozen=True):
    """The resident memory before the range and its peak, and what came of the range."""

    before_bytes: int
    peak_bytes: int
    result: SnapshotResult


class _ForgetfulStore(MemoryStore):
    async def put_part(
        self, key: str, upload_id: str, number: int, body: bytes | memoryview
    ) -> StagedPart:
        crc32 = crc32_text(zlib.crc32(body))
        return StagedPart(number, f'"{crc32}"', crc32, len(body))


def staged_apart(dsn: str, rows: RangeTask, *, part_bytes: int) -> Told:
    """Stage a range in a process of its own."""
    relation = rows.version.relation
    staging = StagingTask(
        table=relation.table,
        attempt=rows.attempt,
        range_number=rows.range_number,
        point=rows.point,
        version=rows.version.number,
        hour="2026-01-01T00",
        codec=1,
        compression=rows.configuration.compression,
        layout=rows.configuration.layout,
        prefix="lake",
        database=rows.database,
        writer="writer",
        bytes_max=1 << 40,
    )
    task = encode(SnapshotTask(__version__, _BUCKET, rows, staging))
    done = subprocess.run(
        [sys.executable, "-m", "range_process"],
        input=msgspec.msgpack.encode(_Work(dsn, part_bytes, task)),
        env={**os.environ, "PYTHONPATH": f"{_ROOT}:{_ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.msgpack.decode(done.stdout, type=Told)


async def _told(work: _Work) -> Told:
    # What a process has before its first range is not the range's. It includes a connection.
    store, reader = _ForgetfulStore(), PostgresRangeReader(work.dsn)
    before = rss_bytes(os.getpid())
    result = await stage_range(
        work.task, store=store, bucket=_BUCKET, reader=reader, part_bytes=work.part_bytes
    )
    return Told(before, peak_rss_bytes(os.getpid()), decode_result(result))


def main() -> None:
    work = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Work)
    sys.stdout.buffer.write(msgspec.msgpack.encode(asyncio.run(_told(work))))


if __name__ == "__main__":
    main()
