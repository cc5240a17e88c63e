"""What a start costs after a long life: requests, counted in memory."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from configured import make_settings
from engine.flow.chunk import ChunkLimits
from engine.journal.bucket_rules import BucketRules
from engine.journal.entry import Durable, Writer
from engine.journal.journal import STATE_INTERVAL, Journal
from engine.journal.reading import PAGE_KEYS
from engine.model.bucket_rule import BucketRule
from engine.model.interfaces import ListedObject, ListedUpload, ObjectHead, SourceIdentity
from engine.model.layout import journal_key, state_key
from engine.model.record import RecordConfiguration
from engine.operate.metrics import Metrics
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from engine.sources.synthetic import ROWS_A_TRANSACTION, SyntheticSource, end_of
from log_points import BEGIN_TIME
from memory_store import MemoryStore, StoredObject
from simulation.virtual_loop import VirtualLoop

PREFIX = "team/lake"
ENTRIES = 100_000
BEHIND = 499
NOW_US = 1_800_000_000_000_000
CONFIGURATION = RecordConfiguration(through="tailrace", tables=("public.*",))


@dataclass
class CountedStore(MemoryStore):
    """Counts requests by what they ask."""

    counts: Counter[str] = field(default_factory=Counter)

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        self.counts["create"] += 1
        return await super().create(key, body, content_type=content_type, metadata=metadata)

    async def get(self, key: str) -> bytes | None:
        self.counts["get"] += 1
        return await super().get(key)

    async def head(self, key: str) -> ObjectHead | None:
        self.counts["head"] += 1
        return await super().head(key)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ListedObject]:
        number = 0
        self.counts["list"] += 1
        async for listed in super().list(prefix, after=after):
            if number and number % PAGE_KEYS == 0:
                self.counts["list"] += 1
            number += 1
            yield listed

    async def folders(self, prefix: str) -> tuple[str, ...]:
        self.counts["folders"] += 1
        return await super().folders(prefix)

    async def list_uploads(self, prefix: str) -> AsyncIterator[ListedUpload]:
        self.counts["list uploads"] += 1
        async for listed in super().list_uploads(prefix):
            yield listed

    async def rules(self) -> tuple[BucketRule, ...]:
        """The bucket has none."""
        self.counts["rules"] += 1
        return ()


def durable(transactions: int, *, seq: int) -> Durable:
    point = end_of(transactions)
    return Durable(point.position, point.resume, BEGIN_TIME, seq)


async def long_journal(source: SourceIdentity) -> CountedStore:
    """A journal of `ENTRIES`, of which `BEHIND` are behind the newest state file.

    Nobody has to read those before it: they hold nothing.
    """
    store = CountedStore(now_us=NOW_US)
    writer = Journal(store, PREFIX, Writer("a", "a", "test"), Metrics(CollectorRegistry()))
    await writer.load()
    await writer.open(source, CONFIGURATION, durable(100, seq=-1))
    writer.state.seq = covered = ENTRIES - BEHIND - 2
    for number in range(1, BEHIND + 2):
        await writer.append(durable=durable(100 + number, seq=covered))
    for seq in range(1, covered + 1):
        store.objects[journal_key(PREFIX, seq)] = StoredObject(b"", {}, NOW_US)
        if seq % STATE_INTERVAL == 0:
            store.objects[state_key(PREFIX, seq)] = StoredObject(b"", {}, NOW_US)
    assert writer.state.seq == ENTRIES - 1
    store.counts.clear()
    return store


@pytest.mark.timeout(240)
def test_a_start_after_100_000_entries_takes_few_requests_beyond_those_it_has_to_read() -> None:
    loop = VirtualLoop()

    async def work() -> Counter[str]:
        source, stop = SyntheticSource(row_count=1_000 * ROWS_A_TRANSACTION), StopSignal()
        store = await long_journal(await source.identify())
        pipeline = Pipeline(
            source=source,
            store=store,
            clock=lambda: NOW_US,
            settings=make_settings(
                prefix=PREFIX,
                codec_version=1,
                limits=ChunkLimits(1 << 20, 1_000_000, 60.0),
                queue_bytes_max=1 << 20,
                memory_bytes_max=1 << 24,
            ),
            configuration=CONFIGURATION,
            writer=Writer("b", "b", "test"),
            metrics=Metrics(CollectorRegistry()),
            stop=stop,
            bucket_rules=BucketRules(store.rules, PREFIX),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(pipeline.run())
            while pipeline.status().phase != "streaming":  # noqa: ASYNC110 - its phase has no event
                await asyncio.sleep(0)
            counts = Counter(store.counts)
            stop.request("test")
        assert pipeline.status().epoch == 2
        return counts

    counts = loop.run_until_complete(work())
    loop.dispose()

    assert counts["get"] >= BEHIND, "every entry behind the state file was read"
    assert counts.total() - BEHIND <= 20, counts
