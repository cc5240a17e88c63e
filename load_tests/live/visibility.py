"""From a row's commit to its visibility: every record of every object that was seen is read.

Strategy: a record carries the time of its commit, by the database's clock, in milliseconds. The
watcher knows when the record's object was first seen, by our clock. Both clocks are the same
machine's.
"""

import asyncio
import gzip
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_READS_AT_ONCE = 8


class _Metadata(msgspec.Struct, frozen=True):
    source_ts_ms: int


class _Record(msgspec.Struct, frozen=True):
    metadata: _Metadata


_DECODER = msgspec.json.Decoder(_Record)


@dataclass(frozen=True, slots=True)
class Sight:
    """One object: when it was first seen (Unix time), and how many rows committed when (ms)."""

    seen_at: float
    commits: Mapping[int, int]

    @property
    def latencies(self) -> tuple[tuple[float, int], ...]:
        """Seconds from commit to sight, with how many rows took so long."""
        return tuple(
            (self.seen_at - commit / 1000, row_count) for commit, row_count in self.commits.items()
        )

    @property
    def oldest_seconds(self) -> float:
        """What the row that waited longest took."""
        return self.seen_at - min(self.commits) / 1000

    @property
    def newest_seconds(self) -> float:
        """What the newest row took: what the engine's own histogram counts."""
        return self.seen_at - max(self.commits) / 1000

    @property
    def row_count(self) -> int:
        return sum(self.commits.values())


def commits_of(content: bytes) -> Counter[int]:
    """How many records of an object's compressed content committed at which millisecond."""
    lines = gzip.decompress(content).splitlines()
    return Counter(_DECODER.decode(line).metadata.source_ts_ms for line in lines)


async def read_sights(
    client: "S3Client", bucket: str, first_seen: Mapping[str, float]
) -> tuple[Sight, ...]:
    """Read every object, in the order in which they were seen. Cancellation leaves nothing."""
    room = asyncio.Semaphore(_READS_AT_ONCE)

    async def read(key: str, seen_at: float) -> Sight:
        async with room:
            answer = await client.get_object(Bucket=bucket, Key=key)
            content = await answer["Body"].read()
            return Sight(seen_at, await asyncio.to_thread(commits_of, content))

    ordered = sorted(first_seen.items(), key=lambda pair: pair[1])
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read(key, seen_at)) for key, seen_at in ordered]
    return tuple(task.result() for task in tasks)
