"""Which unfinished uploads a start throws away."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from engine.flow.chunk import ChunkLimits
from engine.journal.entry import Writer
from engine.journal.settings import Settings
from engine.journal.uploads import abort_uploads, uploads_of
from engine.model.errors import DestinationUnavailable
from engine.model.interfaces import ListedUpload
from engine.model.record import RecordConfiguration
from engine.operate.metrics import Metrics
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from engine.sources.synthetic import SyntheticSource
from memory_store import MemoryStore
from simulation.virtual_loop import VirtualLoop
from staged_objects import RECORDS, complete, staged

TABLE = "database=shop/schema=public/table=orders/version=0001"
KEY = (
    f"lake/{TABLE}/year=2026/month=11/day=28/hour=21/0001.0000000000000001.0000000000000001.000000"
)
NOW_US = 1_795_000_000_000_000
SETTINGS = Settings(
    bucket="lake",
    prefix="lake",
    codec_version=1,
    limits=ChunkLimits(1 << 20, 1_000, 1.0),
    queue_bytes_max=1 << 20,
    memory_bytes_max=1 << 24,
    concurrency=4,
    append_interval=0.5,
    drain_seconds=5.0,
    stream_waits=False,
)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(now_us=NOW_US)


async def begin(store: MemoryStore, key: str) -> str:
    return await store.begin_upload(key, content_type=RECORDS, metadata={})


async def abort_all(store: MemoryStore, prefix: str) -> int:
    return await abort_uploads(store, await uploads_of(store, prefix), spared=())


async def test_older_uploads_of_the_prefix_are_aborted_and_counted(store: MemoryStore) -> None:
    for key in (f"{KEY}.ndjson.gz", f"{KEY}.ndjson.gz", f"lake/{TABLE}/schema.json"):
        await begin(store, key)

    assert await abort_all(store, "lake") == 3
    assert store.uploads == {}


async def test_what_begins_after_the_listing_stays_whenever_it_is_aborted(
    store: MemoryStore,
) -> None:
    await begin(store, f"{KEY}.ndjson.gz")
    left = await uploads_of(store, "lake")
    successors = await begin(store, f"{KEY}.ndjson.gz")

    assert await abort_uploads(store, left, spared=()) == 1
    assert set(store.uploads) == {successors}


async def test_what_the_journal_names_is_spared(store: MemoryStore) -> None:
    named, _, also_named = [await begin(store, f"{KEY}.ndjson.gz") for _ in range(3)]

    left = await uploads_of(store, "lake")
    count = await abort_uploads(store, left, spared=frozenset({named, also_named, "elsewhere"}))

    assert count == 1
    assert set(store.uploads) == {named, also_named}


@pytest.mark.parametrize(
    "key",
    [
        f"lake-photos/{TABLE}/schema.json",
        f"lake/inner/{TABLE}/schema.json",
        "lake/scratch/cat.jpg",
        f"{TABLE}/schema.json",
    ],
)
async def test_what_is_somebody_elses_stays(store: MemoryStore, key: str) -> None:
    theirs = await begin(store, key)

    assert await abort_all(store, "lake") == 0
    assert set(store.uploads) == {theirs}


async def test_without_a_prefix_the_shape_of_a_key_says_whose_it_is(store: MemoryStore) -> None:
    await begin(store, f"{TABLE}/schema.json")
    theirs = await begin(store, f"lake/{TABLE}/schema.json")

    assert await abort_all(store, "") == 1
    assert set(store.uploads) == {theirs}


async def test_an_upload_that_is_completed_meanwhile_is_not_counted() -> None:
    class RacingStore(MemoryStore):
        async def list_uploads(self, prefix: str) -> AsyncIterator[ListedUpload]:
            listed = [upload async for upload in super().list_uploads(prefix)]
            await complete(self, first)
            for upload in listed:
                yield upload

    store = RacingStore(now_us=NOW_US)
    first = await staged(store, f"{KEY}.ndjson.gz", b"{}\n")
    await staged(store, f"{KEY}.ndjson.gz", b"{}\n")

    assert await abort_all(store, "lake") == 1
    assert store.objects[first.key].body == b"{}\n"


async def test_an_abort_without_an_answer_ends_it_and_leaves_the_rest() -> None:
    class SlowStore(MemoryStore):
        async def abort_upload(self, key: str, upload_id: str) -> bool:
            if upload_id == "upload-2":
                raise DestinationUnavailable("abort: SlowDown", code="SlowDown")
            return await super().abort_upload(key, upload_id)

    store = SlowStore(now_us=NOW_US)
    for _ in range(3):
        await begin(store, f"{KEY}.ndjson.gz")

    with pytest.raises(DestinationUnavailable, match="SlowDown"):
        await abort_all(store, "lake")
    assert set(store.uploads) == {"upload-2", "upload-3"}


class WatchedStore(MemoryStore):
    """Notes how many journal entries were there whenever uploads were listed."""

    def __init__(self) -> None:
        super().__init__(now_us=NOW_US)
        self.entry_counts: list[int] = []

    async def list_uploads(self, prefix: str) -> AsyncIterator[ListedUpload]:
        self.entry_counts.append(sum("/journal/" in key for key in self.objects))
        async for upload in super().list_uploads(prefix):
            yield upload


def test_a_start_lists_uploads_before_its_open_and_aborts_them_behind_it() -> None:
    loop, store = VirtualLoop(), WatchedStore()
    left = f"{KEY}.ndjson.gz"

    async def live() -> None:
        await begin(store, left)
        stop = StopSignal()
        pipeline = Pipeline(
            source=SyntheticSource(row_count=10),
            store=store,
            clock=lambda: NOW_US,
            settings=SETTINGS,
            configuration=RecordConfiguration(through="", tables=("*.*",)),
            writer=Writer("a", "first", "test"),
            metrics=Metrics(CollectorRegistry()),
            stop=stop,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(pipeline.run())
            await asyncio.sleep(5.0)
            stop.request("test")

    try:
        loop.run_until_complete(live())
    finally:
        loop.dispose()

    # An engine that is frozen behind its `open` knows no upload that a successor begins.
    assert store.entry_counts == [0]
    assert store.uploads == {}
