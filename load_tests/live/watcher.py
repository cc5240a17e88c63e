"""When each object of the bucket was first seen, by listing it: what any consumer could know.

Strategy: every folder that is watched is listed a few times a second. A listing begins behind the
newest key that was seen a good while ago. Keys of a table's folder sort as its objects follow each
other, and none comes so late that it would be missed. If one did, a last listing of everything
finds it.

Invariant: a key counts as seen when the answer that named it was read. So a latency that follows
from it is too long by up to one listing interval, and never too short.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

# This is longer than any outage of a scenario. An object that S3 did not take for so long is found
# only by the last listing.
_SETTLED_SECONDS = 120.0
_SUFFIX = ".ndjson.gz"


@dataclass(slots=True)
class Watcher:
    """First sights of objects, by key, in Unix time."""

    client: "S3Client"
    bucket: str
    folders: Sequence[str]
    interval_seconds: float
    first_seen: dict[str, float] = field(default_factory=dict)
    missed: set[str] = field(default_factory=set)
    """Keys that only the last listing found."""
    gap_max_seconds: float = 0.0
    """The longest time between the starts of two listings of all folders."""
    _settled: dict[str, str] = field(default_factory=dict)

    async def run(self) -> None:
        """List until cancelled, which leaves what was seen."""
        began = time.monotonic()
        while True:
            async with asyncio.TaskGroup() as tasks:
                for folder in self.folders:
                    tasks.create_task(self._look(folder, self._settled.get(folder, "")))
            await asyncio.sleep(max(0.0, began + self.interval_seconds - time.monotonic()))
            now = time.monotonic()
            self.gap_max_seconds = max(self.gap_max_seconds, now - began)
            began = now

    async def look_once_more(self) -> None:
        """List everything. Cancellation leaves what was seen."""
        known = set(self.first_seen)
        for folder in self.folders:
            await self._look(folder, "")
        self.missed = set(self.first_seen) - known

    async def _look(self, folder: str, start_after: str) -> None:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=folder, StartAfter=start_after
        )
        settled = start_after
        async for page in pages:
            now = time.time()
            for entry in page.get("Contents", ()):
                key = entry["Key"]
                if key.endswith(_SUFFIX):
                    seen = self.first_seen.setdefault(key, now)
                    if now - seen > _SETTLED_SECONDS:
                        settled = max(settled, key)
        # A folder that holds several tables has no such key: their objects come in any order.
        if "/table=" in folder:
            self._settled[folder] = settled
