"""Staging: a range becomes objects in parts, bounded in memory, and none of them is visible."""

import asyncio
import itertools
import random
import zlib
from collections.abc import AsyncIterator, Iterable

import msgspec
import pytest

from configured import make_s3_settings
from engine.destinations.s3 import S3ObjectStore
from engine.destinations.s3_settings import MIB
from engine.flow.chunk import PIECE_BYTES_MAX, crc32_text
from engine.journal import retry
from engine.journal.snapshots import Attempt
from engine.model.batch import Batch, Operations
from engine.model.errors import DestinationUnavailable, SnapshotStale, UploadGone
from engine.model.position import NOWHERE, snapshot_position
from engine.model.record import Compression
from engine.model.staged_object import is_staged_as
from engine.model.staging import Completion, StagedPart
from engine.servers.fault_proxy import LOST_ANSWER, SLOW_DOWN, Fault, HttpFaultProxy
from engine.servers.servers import EmbeddedS3
from engine.snapshot.staging import ATTEMPTS_MAX, stage
from faults.snapshots import is_begin, is_part
from memory_store import MemoryStore
from small_bucket import ORDERS, SmallBucket, decompressed
from small_snapshot import Snapshots

PART_BYTES = 100_000


async def an_attempt(compression: Compression = "gzip") -> tuple[Snapshots, Attempt]:
    bucket = SmallBucket(snapshot="initial", compression=compression)
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    return snapshots, snapshots.start(ORDERS)


def noise(row: int, size_bytes: int) -> bytes:
    """A line that hardly compresses; the same for the same row."""
    state, words = row + 1, bytearray()
    while len(words) < size_bytes:
        state = (state * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
        words += b"%016x" % state
    return b'{"row":"' + bytes(words[:size_bytes]) + b'"}\n'


async def large_batches(attempt: Attempt, lines: Iterable[bytes]) -> AsyncIterator[Batch]:
    for row, line in enumerate(lines):
        at = snapshot_position(attempt.point.position, attempt.number, 1, row)
        commit_us = attempt.point.commit_us
        yield Batch(ORDERS, 1, line, 1, Operations(r=1), at, at, commit_us, commit_us)


def staged_bytes(store: MemoryStore, upload_id: str) -> bytes:
    return b"".join(body for _, body in sorted(store.uploads[upload_id].parts.items()))


async def test_a_range_becomes_an_upload_of_which_nothing_is_visible() -> None:
    snapshots, attempt = await an_attempt()
    store = snapshots.bucket.store
    before = set(store.objects)

    (staged,) = await snapshots.stage(attempt, {0: "trr"})

    assert set(store.objects) == before
    assert store.uploads[staged.upload_id].key == staged.key
    assert (staged.range_number, staged.rows, staged.ops) == (0, 3, {"t": 1, "r": 2})
    assert staged.previous == NOWHERE
    begin = attempt.point.position
    assert staged.first == snapshot_position(begin, 1, 0, 0)
    assert staged.last == snapshot_position(begin, 1, 0, 2)
    assert staged.key == snapshots.bucket.layout.object_key(
        ORDERS, attempt.version.number, attempt.hour, staged.first, "gzip"
    )


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_the_parts_are_one_body_of_the_ranges_lines(compression: Compression) -> None:
    snapshots, attempt = await an_attempt(compression)
    store = snapshots.bucket.store
    lines = [noise(row, 20_000) for row in range(80)]

    (staged,) = await stage(
        store,
        snapshots.task(attempt, 1),
        large_batches(attempt, lines),
        make_nonce=snapshots.nonce,
        part_bytes=PART_BYTES,
    )

    body = staged_bytes(store, staged.upload_id)
    assert decompressed(body, staged.key) == b"".join(lines)
    assert (staged.raw_bytes, staged.raw_crc32) == (
        sum(map(len, lines)),
        crc32_text(zlib.crc32(b"".join(lines))),
    )
    assert (staged.size_bytes, staged.crc32) == (len(body), crc32_text(zlib.crc32(body)))
    assert [part.number for part in staged.parts] == list(range(1, len(staged.parts) + 1))
    assert len(staged.parts) > 3
    assert all(part.size_bytes >= PART_BYTES for part in staged.parts[:-1])
    assert sum(part.size_bytes for part in staged.parts) == staged.size_bytes


async def test_what_is_sent_is_let_go_so_a_part_bounds_the_memory() -> None:
    held: list[int] = []

    class WatchedStore(MemoryStore):
        async def put_part(
            self, key: str, upload_id: str, number: int, body: bytes | memoryview
        ) -> StagedPart:
            held.append(len(body))
            return await super().put_part(key, upload_id, number, body)

    snapshots, attempt = await an_attempt()

    (staged,) = await stage(
        WatchedStore(),
        snapshots.task(attempt, 1, bytes_max=1 << 30),
        large_batches(attempt, (noise(row, 20_000) for row in range(120))),
        make_nonce=snapshots.nonce,
        part_bytes=PART_BYTES,
    )

    assert len(held) == len(staged.parts)
    # A part is what came until it was large enough, never what was sent before.
    assert max(held) < PART_BYTES + PIECE_BYTES_MAX < sum(held) / 3


class SlowStore(MemoryStore):
    """A part arrives when `let_go` is set. `under_way` and `ended` count the parts."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()
        self.under_way = self.under_way_max = self.ended = 0
        self.error: Exception | None = None

    async def put_part(
        self, key: str, upload_id: str, number: int, body: bytes | memoryview
    ) -> StagedPart:
        self.under_way += 1
        self.under_way_max = max(self.under_way, self.under_way_max)
        try:
            await self.let_go.wait()
            if self.error is not None:
                raise self.error
            return await super().put_part(key, upload_id, number, body)
        finally:
            self.under_way -= 1
            self.ended += 1


class Reading:
    """Batches of which a test sees how many were asked for; the last one may never come."""

    def __init__(self, attempt: Attempt, row_count: int, *, is_endless: bool = False) -> None:
        self._attempt = attempt
        self._row_count = row_count
        self._is_endless = is_endless
        self.row_count = 0
        self.rests = asyncio.Event()

    async def batches(self) -> AsyncIterator[Batch]:
        lines = (noise(row, 50_000) for row in range(self._row_count))
        async for batch in large_batches(self._attempt, lines):
            self.row_count += 1
            yield batch
        self.rests.set()
        if self._is_endless:
            await asyncio.Event().wait()


async def until_it_rests() -> None:
    """Let every task do what it can do without the test."""
    for _ in range(1_000):
        await asyncio.sleep(0)


async def test_rows_are_read_while_one_part_is_sent_and_no_further_than_the_next_part() -> None:
    snapshots, attempt = await an_attempt()
    store, reading = SlowStore(), Reading(attempt, 60)
    task = snapshots.task(attempt, 1, bytes_max=1 << 30)

    async with asyncio.TaskGroup() as group:
        staging = group.create_task(
            stage(
                store,
                task,
                reading.batches(),
                make_nonce=snapshots.nonce,
                part_bytes=PART_BYTES,
            )
        )
        await until_it_rests()
        first_part = store.under_way, reading.row_count
        store.let_go.set()
    (staged,) = staging.result()

    is_sent, row_count = first_part
    lines_of_parts = [part.size_bytes for part in staged.parts]
    assert is_sent == store.under_way_max == 1
    # Noise of 50 KB compresses to its half: a part has four rows, and two parts have eight.
    assert 6 <= row_count <= 12 < reading.row_count
    assert len(lines_of_parts) > 6
    assert store.ended == len(staged.parts)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is made again at once."""
    monkeypatch.setattr(retry, "WAIT_SECONDS_MAX", 0.0)


@pytest.mark.usefixtures("no_pauses")
async def test_a_part_that_fails_each_time_ends_the_range_while_it_waits_for_rows() -> None:
    snapshots, attempt = await an_attempt()
    store, reading = SlowStore(), Reading(attempt, 6, is_endless=True)
    store.error = DestinationUnavailable("put part: SlowDown", code="SlowDown")

    async with asyncio.TaskGroup() as group:
        staging = group.create_task(
            ends_with(DestinationUnavailable, store, snapshots, attempt, reading)
        )
        await reading.rests.wait()
        store.let_go.set()
    error = staging.result()

    assert error is store.error
    assert (store.under_way, store.ended) == (0, ATTEMPTS_MAX)


@pytest.mark.usefixtures("no_pauses")
async def test_a_beginning_that_fails_each_time_ends_the_range() -> None:
    class BrokenStore(MemoryStore):
        async def begin_upload(self, *_: object, **__: object) -> str:
            self.begun_count += 1
            raise DestinationUnavailable("begin: SlowDown", code="SlowDown")

    snapshots, attempt = await an_attempt()
    store = BrokenStore()

    with pytest.raises(DestinationUnavailable):
        await stage(
            store,
            snapshots.task(attempt, 1),
            Reading(attempt, 6).batches(),
            make_nonce=snapshots.nonce,
        )

    assert store.begun_count == ATTEMPTS_MAX


@pytest.mark.usefixtures("aws_environment")
@pytest.mark.parametrize("fault", [SLOW_DOWN, LOST_ANSWER])
async def test_requests_that_fail_once_cost_no_row_a_second_reading(
    s3: EmbeddedS3, shared_bucket: str, prefix: str, fault: Fault
) -> None:
    snapshots, attempt = await an_attempt()
    lines = [random.Random(row).randbytes(100_000).hex().encode() + b"\n" for row in range(180)]
    read: list[int] = []

    async def batches() -> AsyncIterator[Batch]:
        async for batch in large_batches(attempt, lines):
            read.append(batch.row_count)
            yield batch

    async with HttpFaultProxy(s3.port) as proxy:
        begin, part = proxy.inject(fault, is_begin, nth=1), proxy.inject(fault, is_part, nth=2)
        settings = make_s3_settings(bucket=shared_bucket, endpoint_url=proxy.endpoint_url)
        async with S3ObjectStore(settings) as store:
            task = snapshots.task(attempt, 1, bytes_max=1 << 30)
            (staged,) = await stage(
                store,
                msgspec.structs.replace(task, prefix=prefix),
                batches(),
                make_nonce=snapshots.nonce,
                part_bytes=5 * MIB,
            )
            completion = await store.complete_upload(
                staged.key, staged.upload_id, staged.parts, crc32=staged.crc32
            )
            body = await store.get(staged.key)
        sent = [request.parameters["partNumber"] for request in proxy.requests if is_part(request)]

    assert (begin.hits, part.hits) == (1, 1)
    assert sent == [["1"], ["2"], ["2"], ["3"], ["4"]]
    assert sum(read) == len(lines)
    assert completion is Completion.CREATED
    assert decompressed(body or b"", staged.key) == b"".join(lines)


async def test_rows_that_cannot_be_read_end_the_part_that_is_being_sent() -> None:
    snapshots, attempt = await an_attempt()
    store, reading = SlowStore(), Reading(attempt, 6)

    async def broken() -> AsyncIterator[Batch]:
        async for batch in reading.batches():
            yield batch
        await until_it_rests()
        raise SnapshotStale("gone") from ValueError("why")

    with pytest.raises(SnapshotStale, match="gone") as caught:
        await stage(
            store,
            snapshots.task(attempt, 1),
            broken(),
            make_nonce=snapshots.nonce,
            part_bytes=PART_BYTES,
        )

    assert isinstance(caught.value.__cause__, ValueError)
    assert (store.under_way, store.ended) == (0, 1)


@pytest.mark.parametrize("is_failing", [False, True])
async def test_cancellation_leaves_nothing_that_is_sent(*, is_failing: bool) -> None:
    snapshots, attempt = await an_attempt()
    store, reading = SlowStore(), Reading(attempt, 6, is_endless=True)
    store.error = UploadGone("put part: NoSuchUpload") if is_failing else None

    async with asyncio.TaskGroup() as group:
        staging = group.create_task(
            ends_with(asyncio.CancelledError, store, snapshots, attempt, reading)
        )
        await reading.rests.wait()
        if is_failing:
            # The part fails in the very turn of the loop in which the range is cancelled.
            store.let_go.set()
            await asyncio.sleep(0)
        staging.cancel()

    assert isinstance(staging.result(), asyncio.CancelledError)
    assert (store.under_way, store.ended) == (0, 1)


async def ends_with(
    kind: type[BaseException],
    store: SlowStore,
    snapshots: Snapshots,
    attempt: Attempt,
    reading: Reading,
) -> BaseException:
    """The error that ends the range."""
    with pytest.raises(kind) as caught:
        await stage(
            store,
            snapshots.task(attempt, 1),
            reading.batches(),
            make_nonce=snapshots.nonce,
            part_bytes=PART_BYTES,
        )
    return caught.value


async def test_an_object_is_cut_at_its_size_and_the_next_one_goes_on_behind_it() -> None:
    snapshots, attempt = await an_attempt()
    lines = [noise(row, 50_000) for row in range(9)]

    staged = await stage(
        snapshots.bucket.store,
        snapshots.task(attempt, 1, bytes_max=60_000),
        large_batches(attempt, lines),
        make_nonce=snapshots.nonce,
    )

    assert len(staged) > 1
    assert staged[0].previous == NOWHERE
    for before, after in itertools.pairwise(staged):
        assert after.previous == before.last < after.first
    assert sum(one.rows for one in staged) == 9
    # Of nine rows one object less than one a row: each holds as many as it has room for.
    assert all(one.size_bytes >= 60_000 for one in staged[:-1])
    store = snapshots.bucket.store
    bodies = [decompressed(staged_bytes(store, one.upload_id), one.key) for one in staged]
    assert b"".join(bodies) == b"".join(lines)
    assert len({one.nonce for one in staged}) == len({one.key for one in staged}) == len(staged)


async def test_a_cut_counts_what_was_sent_in_parts_before() -> None:
    snapshots, attempt = await an_attempt()

    staged = await stage(
        snapshots.bucket.store,
        snapshots.task(attempt, 1, bytes_max=200_000),
        large_batches(attempt, (noise(row, 50_000) for row in range(30))),
        make_nonce=snapshots.nonce,
        part_bytes=60_000,
    )

    assert len(staged) > 1
    assert all(len(one.parts) > 1 and one.size_bytes < 300_000 for one in staged[:-1])


async def test_a_range_without_rows_stages_nothing() -> None:
    snapshots, attempt = await an_attempt()

    assert await snapshots.stage(attempt, {1: ""}) == ()
    assert snapshots.bucket.store.uploads == {}


async def test_an_object_says_of_itself_what_its_statement_says() -> None:
    snapshots, attempt = await an_attempt()
    store = snapshots.bucket.store

    one, two = await snapshots.stage(attempt, {0: "t", 1: "r"})
    await store.complete_upload(one.key, one.upload_id, one.parts, crc32=one.crc32)
    metadata = store.objects[one.key].metadata

    assert metadata == {
        "first-position": one.first,
        "version": "1",
        "codec": "1",
        "attempt": "1",
        "nonce": one.nonce,
        "writer": "writer-1",
    }
    assert is_staged_as(metadata, one, version=1, attempt=1)
    assert not is_staged_as(metadata, two, version=1, attempt=1)
    assert not is_staged_as(metadata, one, version=2, attempt=1)
    assert not is_staged_as(metadata, one, version=1, attempt=2)


async def test_two_workers_at_one_range_make_objects_that_can_be_told_apart() -> None:
    snapshots, attempt = await an_attempt()
    store = snapshots.bucket.store

    (first,) = await snapshots.stage(attempt, {1: "rr"})
    (second,) = await snapshots.stage(attempt, {1: "rr"})
    completion = await store.complete_upload(
        second.key, second.upload_id, second.parts, crc32=second.crc32
    )

    assert completion is Completion.CREATED
    assert first.key == second.key
    metadata = store.objects[first.key].metadata
    assert is_staged_as(metadata, second, version=1, attempt=1)
    assert not is_staged_as(metadata, first, version=1, attempt=1)


async def test_an_upload_that_somebody_aborted_ends_the_range() -> None:
    snapshots, attempt = await an_attempt()
    store = snapshots.bucket.store

    async def interrupted() -> AsyncIterator[Batch]:
        async for batch in snapshots.batches(attempt, 1, "rr"):
            yield batch
            store.uploads.clear()

    with pytest.raises(UploadGone):
        await stage(store, snapshots.task(attempt, 1), interrupted(), make_nonce=snapshots.nonce)
