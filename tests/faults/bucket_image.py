"""What lies under a prefix: the journal and the objects, read by an S3 client of the test's own.

Strategy: JSON and gzip as anybody would read them; nothing of the engine's reading code. Entries
are read once, since they never change; listings are made anew.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zstandard

from engine.sources.postgres.lsn import NO_LSN, Lsn, parse_lsn
from faults.twin import Changes, SeenChange, recorded_change

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_READS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Look:
    """The journal and the visible objects at one moment, the journal read first."""

    entries: tuple[Mapping[str, Any], ...]
    keys: frozenset[str]

    @property
    def planned(self) -> dict[str, Mapping[str, Any]]:
        """The first statement of every plan, by key, with `seq`."""
        plans: dict[str, Mapping[str, Any]] = {}
        for entry in self.entries:
            for plan in entry.get("planned", ()):
                plans.setdefault(plan["key"], {**plan, "seq": entry["seq"]})
        return plans

    @property
    def durable_lsn(self) -> Lsn:
        durable = self._durable
        return NO_LSN if durable is None else parse_lsn(durable["resume"])

    @property
    def durable_seq(self) -> int:
        durable = self._durable
        return -1 if durable is None else int(durable["seq"])

    @property
    def _durable(self) -> Mapping[str, Any] | None:
        return next((entry["durable"] for entry in self.entries[::-1] if "durable" in entry), None)

    @property
    def missing(self) -> list[str]:
        """Planned keys that are not there."""
        return [key for key in self.planned if key not in self.keys]

    @property
    def unnamed(self) -> list[str]:
        """Keys outside `_tailrace` that no plan and no snapshot names, schema.json apart."""
        planned = self.planned.keys() | self.staged
        return [
            key
            for key in sorted(self.keys)
            if "/_tailrace/" not in key and not key.endswith("/schema.json") and key not in planned
        ]

    @property
    def staged(self) -> frozenset[str]:
        """The keys of all attempts at snapshots that the journal names as whole."""
        return frozenset(
            staged["key"]
            for entry in self.entries
            for statement in entry.get("snapshots", ())
            for staged in statement.get("objects", ())
        )

    @property
    def frontiers(self) -> dict[str, str]:
        """The last planned position of each table."""
        frontiers: dict[str, str] = {}
        for plan in self.planned.values():
            frontiers[plan["table"]] = max(plan["last"], frontiers.get(plan["table"], ""))
        return frontiers

    @property
    def epochs(self) -> list[str]:
        """The ids of the writers that opened, in order."""
        return [entry["writer"]["id"] for entry in self.entries if "open" in entry]


class BucketImage:
    """One prefix of a bucket."""

    def __init__(self, client: "S3Client", bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._entries: list[Mapping[str, Any]] = []

    async def look(self) -> Look:
        journal = f"{self._prefix}/_tailrace/journal/"
        keys = sorted([key async for key in self._listed(journal)])
        for content in await self._contents(keys[len(self._entries) :]):
            self._entries.append(json.loads(content))
        assert [entry["seq"] for entry in self._entries] == list(range(len(keys)))
        everything = [key async for key in self._listed(f"{self._prefix}/")]
        return Look(tuple(self._entries), frozenset(everything))

    async def durable_lsn(self) -> Lsn:
        """The journal's newest E, and nothing else read."""
        journal = f"{self._prefix}/_tailrace/journal/"
        keys = sorted([key async for key in self._listed(journal)])
        for content in await self._contents(keys[len(self._entries) :]):
            self._entries.append(json.loads(content))
        return Look(tuple(self._entries), frozenset()).durable_lsn

    async def _listed(self, prefix: str) -> AsyncIterator[str]:
        pages = self._client.get_paginator("list_objects_v2")
        async for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
            for listed in page.get("Contents", ()):
                yield listed["Key"]

    async def _contents(self, keys: Iterable[str]) -> list[bytes]:
        places = asyncio.Semaphore(_READS_AT_ONCE)

        async def read(key: str) -> bytes:
            async with places:
                answer = await self._client.get_object(Bucket=self._bucket, Key=key)
                return await answer["Body"].read()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read(key)) for key in keys]
        return [task.result() for task in tasks]

    async def uploads(self) -> list[str]:
        """The keys of the uploads that are neither completed nor aborted, of a page at most."""
        page = await self._client.list_multipart_uploads(
            Bucket=self._bucket, Prefix=f"{self._prefix}/"
        )
        return [upload["Key"] for upload in page.get("Uploads", ())]

    async def metadata(self, key: str) -> dict[str, str]:
        """An object's `x-amz-meta-` headers."""
        return (await self._client.head_object(Bucket=self._bucket, Key=key))["Metadata"]

    async def bodies(self, keys: Iterable[str]) -> list[bytes]:
        """Each of `keys`, compressed as it lies there."""
        return await self._contents(keys)

    async def lines(self, keys: Iterable[str]) -> list[bytes]:
        """The uncompressed lines of each of `keys`."""
        wanted = list(keys)
        contents = await self.bodies(wanted)
        return [_opened(key, content) for key, content in zip(wanted, contents, strict=True)]

    async def changes(self) -> Changes:
        """Every record, each table's in the order of its keys: what a loader sees."""
        look = await self.look()
        by_table: Changes = {}
        planned = look.planned
        keys = sorted(key for key in look.keys if "/_tailrace/" not in key)
        data_keys = [key for key in keys if not key.endswith("/schema.json")]
        for key, lines in zip(data_keys, await self.lines(data_keys), strict=True):
            table = planned[key]["table"] if key in planned else "?"
            by_table.setdefault(table, []).extend(_changes(lines))
        return by_table


def _changes(lines: bytes) -> list[SeenChange]:
    return [recorded_change(json.loads(line)) for line in lines.splitlines()]


def _opened(key: str, content: bytes) -> bytes:
    if key.endswith(".zst"):
        with zstandard.ZstdDecompressor().stream_reader(content) as reader:
            return reader.read()
    return gzip.decompress(content)
