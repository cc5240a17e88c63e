"""Staged objects: what every store promises of them, then what only S3 can show."""

import asyncio
import random
import time
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from configured import make_s3_settings
from engine.destinations.s3 import S3ObjectStore
from engine.destinations.s3_settings import MIB, S3Settings
from engine.flow.chunk import crc32_text
from engine.model.errors import DestinationRefused, DestinationUnavailable, UploadGone
from engine.model.interfaces import ObjectHead, ObjectStore
from engine.model.staging import Completion
from engine.servers.fault_proxy import (
    CONFLICT,
    LOST_ANSWER,
    SLOW_DOWN,
    Answer,
    HttpFaultProxy,
    Request,
    requests_to,
)
from engine.servers.servers import EmbeddedS3
from memory_store import MemoryStore
from simulation.store import Bucket, SimulatedStore
from simulation.virtual_loop import Process
from staged_objects import LARGE, RECORDS, Staged, complete, staged, upload_ids

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

    from simulation.virtual_loop import VirtualLoop

pytestmark = pytest.mark.usefixtures("aws_environment")


@pytest.fixture
def settings(s3: EmbeddedS3, shared_bucket: str) -> S3Settings:
    return make_s3_settings(bucket=shared_bucket, endpoint_url=s3.endpoint_url, part_bytes=5 * MIB)


@pytest.fixture
async def proxy(s3: EmbeddedS3) -> AsyncIterator[HttpFaultProxy]:
    async with HttpFaultProxy(s3.port) as proxy:
        yield proxy


@pytest.fixture
async def proxied(settings: S3Settings, proxy: HttpFaultProxy) -> AsyncIterator[S3ObjectStore]:
    async with S3ObjectStore(replace(settings, endpoint_url=proxy.endpoint_url)) as store:
        yield store


class _RealLoop:
    """As much of the simulation's loop as its bucket asks for; nothing takes time."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    def later(self, _delay: float, callback: Callable[..., object], *arguments: Any) -> None:
        asyncio.get_running_loop().call_soon(callback, *arguments)


class _Nobody:
    """Watches a simulated bucket and says nothing."""

    def __getattr__(self, _name: str) -> Callable[..., bool]:
        return lambda *_: False


def simulated_store() -> SimulatedStore:
    bucket = Bucket(
        loop=cast("VirtualLoop", _RealLoop()),
        rnd=random.Random(1),
        now_us=lambda: time.time_ns() // 1000,
        watcher=cast("Any", _Nobody()),
        part_bytes=5 * MIB,
    )
    return SimulatedStore(bucket, Process("engine"))


@pytest.fixture(params=["seaweedfs", "memory", "simulated"])
async def store(request: pytest.FixtureRequest, settings: S3Settings) -> AsyncIterator[ObjectStore]:
    if request.param == "memory":
        yield MemoryStore(now_us=time.time_ns() // 1000)
    elif request.param == "simulated":
        yield simulated_store()
    else:
        async with S3ObjectStore(settings) as store:
            yield store


# What every store promises


async def test_parts_in_any_order_become_one_object_with_the_metadata_of_the_beginning(
    store: ObjectStore, prefix: str
) -> None:
    key = f"{prefix}/k"

    upload = await staged(store, key, LARGE, b"end\n", metadata={"rows": "7", "nonce": "a"})
    before = await store.head(key)
    listed = [item.key async for item in store.list(f"{prefix}/")]
    completion = await complete(store, upload)

    assert [part.number for part in upload.parts] == [2, 1]
    assert [part.size_bytes for part in upload.parts] == [4, len(LARGE)]
    assert upload.parts[0].crc32 == crc32_text(zlib.crc32(b"end\n"))
    assert (before, listed) == (None, [])
    assert completion is Completion.CREATED
    assert await store.get(key) == LARGE + b"end\n"
    assert await store.head(key) == ObjectHead(len(LARGE) + 4, {"rows": "7", "nonce": "a"})
    assert await upload_ids(store, prefix) == set()


async def test_a_part_that_is_put_again_is_replaced(store: ObjectStore, prefix: str) -> None:
    key = f"{prefix}/k"

    upload = await staged(store, key, b"first")
    again = await store.put_part(key, upload.upload_id, 1, memoryview(b"second"))
    crc32 = crc32_text(zlib.crc32(b"second"))
    completion = await store.complete_upload(key, upload.upload_id, [again], crc32=crc32)

    assert completion is Completion.CREATED
    assert await store.get(key) == b"second"


async def test_the_first_completion_of_a_key_wins_and_the_second_upload_stays(
    store: ObjectStore, prefix: str
) -> None:
    key = f"{prefix}/k"
    first, second = await staged(store, key, b"first"), await staged(store, key, b"second")

    began = await upload_ids(store, prefix)
    answers = [await complete(store, second), await complete(store, first)]
    left = await upload_ids(store, prefix)
    was_aborted = await store.abort_upload(key, first.upload_id)

    assert began == {first.upload_id, second.upload_id}
    assert answers == [Completion.CREATED, Completion.TAKEN]
    assert await store.get(key) == b"second"
    assert left == {first.upload_id}
    assert was_aborted
    assert await upload_ids(store, prefix) == set()


async def test_a_key_that_was_created_in_one_request_is_taken(
    store: ObjectStore, prefix: str
) -> None:
    upload = await staged(store, f"{prefix}/k", b"staged")
    await store.create(f"{prefix}/k", b"put", content_type=RECORDS, metadata={})

    assert await complete(store, upload) is Completion.TAKEN
    assert await store.get(f"{prefix}/k") == b"put"


async def test_a_completion_that_is_sent_twice_changes_nothing(
    store: ObjectStore, prefix: str
) -> None:
    upload = await staged(store, f"{prefix}/k", LARGE, b"end", metadata={"nonce": "a"})

    first = await complete(store, upload)
    again = await complete(store, upload)

    assert first is Completion.CREATED
    # S3 may say any of the three; SeaweedFS 4.48 says TAKEN.
    assert isinstance(again, Completion)
    assert await store.get(f"{prefix}/k") == LARGE + b"end"
    assert await store.head(f"{prefix}/k") == ObjectHead(len(LARGE) + 3, {"nonce": "a"})


async def test_after_an_abort_a_part_and_the_completion_find_no_upload(
    store: ObjectStore, prefix: str
) -> None:
    key = f"{prefix}/k"
    upload = await staged(store, key, b"body")

    was_aborted = await store.abort_upload(key, upload.upload_id)
    with pytest.raises(UploadGone):
        await store.put_part(key, upload.upload_id, 2, b"more")
    completion = await complete(store, upload)

    assert was_aborted
    assert completion is Completion.GONE
    assert await store.head(key) is None


async def test_after_the_completion_a_part_finds_no_upload_and_an_abort_leaves_the_object(
    store: ObjectStore, prefix: str
) -> None:
    key = f"{prefix}/k"
    upload = await staged(store, key, b"body")
    await complete(store, upload)

    with pytest.raises(UploadGone):
        await store.put_part(key, upload.upload_id, 2, b"more")
    await store.abort_upload(key, upload.upload_id)

    assert await store.get(key) == b"body"


async def test_an_upload_that_never_was_is_gone(store: ObjectStore, prefix: str) -> None:
    key = f"{prefix}/k"
    real = await staged(store, key, b"body")
    never = replace(real, upload_id="0" * 32)

    with pytest.raises(UploadGone):
        await store.put_part(key, never.upload_id, 1, b"body")

    assert await complete(store, never) is Completion.GONE
    assert not await store.abort_upload(key, never.upload_id)


@pytest.mark.parametrize("is_whole", [True, False])
async def test_a_checksum_of_other_bytes_is_refused_and_the_right_one_is_not(
    store: ObjectStore, prefix: str, *, is_whole: bool
) -> None:
    key = f"{prefix}/k"
    upload = await staged(store, key, LARGE, b"end")
    wrong = crc32_text(zlib.crc32(b"other"))
    last, *others = upload.parts
    other_part = replace(upload, parts=(msgspec.structs.replace(last, crc32=wrong), *others))
    other_body = replace(upload, crc32=wrong)

    with pytest.raises(DestinationUnavailable) as caught:
        await complete(store, other_body if is_whole else other_part)
    head = await store.head(key)
    right = await complete(store, upload)

    # SeaweedFS 4.48 compares both checksums, and says BadDigest of both.
    assert caught.value.code in {"BadDigest", "InvalidPart"}
    assert head is None
    assert right is Completion.CREATED


async def test_a_listing_tells_whose_uploads_they_are_and_when_they_began(
    store: ObjectStore, prefix: str
) -> None:
    before_us = time.time_ns() // 1000
    ids = {
        await store.begin_upload(f"{prefix}/{name}", content_type=RECORDS, metadata={})
        for name in ("a", "b", "b")
    }
    await store.begin_upload(f"{prefix}-other/a", content_type=RECORDS, metadata={})

    listed = [upload async for upload in store.list_uploads(f"{prefix}/")]

    assert sorted(upload.key for upload in listed) == [
        f"{prefix}/a",
        f"{prefix}/b",
        f"{prefix}/b",
    ]
    assert {upload.upload_id for upload in listed} == ids
    # SeaweedFS gives the second.
    assert all(
        before_us - 1_000_000 <= upload.begun_us <= time.time_ns() // 1000 for upload in listed
    )


# What S3 says, and what is made of it


def is_begin(request: Request) -> bool:
    return request.method == "POST" and "uploads" in request.parameters


def is_part(request: Request) -> bool:
    return request.method == "PUT" and "partNumber" in request.parameters


def is_completion(request: Request) -> bool:
    return request.method == "POST" and "uploadId" in request.parameters


def is_abort(request: Request) -> bool:
    return request.method == "DELETE" and "uploadId" in request.parameters


async def test_a_lost_answer_of_a_completion_is_in_doubt_and_the_object_is_there(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    upload = await staged(proxied, f"{prefix}/k", b"body", metadata={"nonce": "a"})
    lost = proxy.inject(LOST_ANSWER, is_completion, times=1)

    with pytest.raises(DestinationUnavailable):
        await complete(proxied, upload)
    head = await proxied.head(f"{prefix}/k")
    again = await complete(proxied, upload)

    assert lost.hits == 1
    assert head == ObjectHead(4, {"nonce": "a"})
    # The upload's own object takes the key: SeaweedFS 4.48 looks at the precondition first.
    assert again is Completion.TAKEN
    assert not any(is_abort(request) for request in proxy.requests)


async def test_a_lost_answer_of_a_beginning_leaves_an_upload_that_a_listing_finds(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(LOST_ANSWER, is_begin, times=1)

    with pytest.raises(DestinationUnavailable):
        await proxied.begin_upload(f"{prefix}/k", content_type=RECORDS, metadata={})

    assert len(await upload_ids(proxied, prefix)) == 1


async def test_a_part_whose_answer_was_lost_is_put_again(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    key = f"{prefix}/k"
    upload_id = await proxied.begin_upload(key, content_type=RECORDS, metadata={})
    proxy.inject(LOST_ANSWER, is_part, times=1)

    with pytest.raises(DestinationUnavailable):
        await proxied.put_part(key, upload_id, 1, b"body")
    part = await proxied.put_part(key, upload_id, 1, b"body")
    completion = await complete(proxied, Staged(key, upload_id, (part,), part.crc32))

    assert completion is Completion.CREATED
    assert await proxied.get(key) == b"body"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (CONFLICT, "ConditionalRequestConflict"),
        (SLOW_DOWN, "SlowDown"),
        (Answer(200, "InternalError"), "InternalError"),
        (Answer(400, "InvalidPart"), "InvalidPart"),
    ],
)
async def test_a_completion_without_a_clear_answer_is_unavailable_and_aborts_nothing(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str, *, answer: Answer, code: str
) -> None:
    upload = await staged(proxied, f"{prefix}/k", b"body")
    proxy.inject(answer, is_completion, times=1)

    with pytest.raises(DestinationUnavailable) as caught:
        await complete(proxied, upload)
    again = await complete(proxied, upload)

    assert caught.value.code == code
    assert again is Completion.CREATED


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(412, "PreconditionFailed"), Completion.TAKEN),
        (Answer(200, "PreconditionFailed"), Completion.TAKEN),
        (Answer(404, "NoSuchUpload"), Completion.GONE),
    ],
)
async def test_taken_and_gone_are_answers_and_abort_nothing(
    proxied: S3ObjectStore,
    proxy: HttpFaultProxy,
    prefix: str,
    *,
    answer: Answer,
    expected: Completion,
) -> None:
    upload = await staged(proxied, f"{prefix}/k", b"body")
    proxy.inject(answer, is_completion, times=1)

    assert await complete(proxied, upload) is expected
    assert await upload_ids(proxied, prefix) == {upload.upload_id}


async def test_a_completion_that_is_not_allowed_is_refused_with_the_right(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    upload = await staged(proxied, f"{prefix}/k", b"body")
    proxy.inject(Answer(403, "AccessDenied"), is_completion, times=1)

    with pytest.raises(DestinationRefused) as caught:
        await complete(proxied, upload)

    assert "s3:PutObject" in caught.value.hint


async def test_every_request_of_a_staged_object_carries_what_it_has_to(
    settings: S3Settings, proxy: HttpFaultProxy, prefix: str
) -> None:
    settings = replace(settings, endpoint_url=proxy.endpoint_url, storage_class="STANDARD_IA")
    async with S3ObjectStore(settings) as store:
        await complete(store, await staged(store, f"{prefix}/k", b"body", metadata={"rows": "7"}))

    begin, part, completion = proxy.requests
    assert begin.header("x-amz-checksum-type") == "FULL_OBJECT"
    assert begin.header("x-amz-storage-class") == "STANDARD_IA"
    assert begin.header("x-amz-meta-rows") == "7"
    assert begin.header("content-type") == RECORDS
    assert part.header("x-amz-checksum-crc32") == completion.header("x-amz-checksum-crc32") != ""
    assert completion.header("x-amz-checksum-type") == "FULL_OBJECT"
    assert completion.header("x-amz-mp-object-size") == "4"
    assert completion.header("if-none-match") == "*"


async def test_the_checksum_of_the_whole_body_is_stored_as_one_put_would_have_stored_it(
    settings: S3Settings, s3_client: "S3Client", shared_bucket: str, prefix: str
) -> None:
    body = LARGE + b"end"
    async with S3ObjectStore(settings) as store:
        await complete(store, await staged(store, f"{prefix}/staged", LARGE, b"end"))
        await store.create(
            f"{prefix}/put", body, content_type=RECORDS, metadata={}, in_one_request=True
        )

    staged_head, put_head = [
        await s3_client.head_object(
            Bucket=shared_bucket, Key=f"{prefix}/{name}", ChecksumMode="ENABLED"
        )
        for name in ("staged", "put")
    ]
    assert staged_head["ChecksumCRC32"] == put_head["ChecksumCRC32"]
    assert staged_head["ChecksumType"] == "FULL_OBJECT"


async def test_of_two_completions_of_one_upload_that_meet_one_object_comes(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    upload = await staged(proxied, f"{prefix}/k", LARGE, b"end")
    hold = proxy.hold_next(is_completion)

    async with asyncio.TaskGroup() as tasks:
        late = tasks.create_task(complete(proxied, upload))
        await hold.wait_reached()
        early = await complete(proxied, upload)
        hold.release()

    assert early is Completion.CREATED
    assert isinstance(late.result(), Completion)
    assert await proxied.get(f"{prefix}/k") == LARGE + b"end"


async def test_an_upload_that_goes_while_a_large_body_goes_up_is_begun_anew(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(Answer(404, "NoSuchUpload"), is_part, nth=2)

    with pytest.raises(DestinationUnavailable) as caught:
        await proxied.create(f"{prefix}/k", b"x" * (6 * MIB), content_type=RECORDS, metadata={})
    again = await proxied.create(f"{prefix}/k", b"x" * (6 * MIB), content_type=RECORDS, metadata={})

    assert caught.value.code == "NoSuchUpload"
    assert again is True


# Aborting and listing


@pytest.mark.parametrize("answer", [Answer(403, "AccessDenied"), Answer(405, "MethodNotAllowed")])
async def test_where_the_store_does_not_let_us_nothing_is_aborted(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str, *, answer: Answer
) -> None:
    upload = await staged(proxied, f"{prefix}/k", b"body")
    proxy.inject(answer, is_abort)

    assert not await proxied.abort_upload(f"{prefix}/k", upload.upload_id)


async def test_an_abort_without_a_usable_answer_is_unavailable(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    upload = await staged(proxied, f"{prefix}/k", b"body")
    proxy.inject(SLOW_DOWN, is_abort, times=1)

    with pytest.raises(DestinationUnavailable, match="SlowDown"):
        await proxied.abort_upload(f"{prefix}/k", upload.upload_id)


@pytest.mark.parametrize("answer", [Answer(403, "AccessDenied"), Answer(501, "NotImplemented")])
async def test_where_uploads_cannot_be_listed_none_are(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str, *, answer: Answer
) -> None:
    await staged(proxied, f"{prefix}/k", b"body")
    refusal = proxy.inject(answer, requests_to("GET"))

    assert await upload_ids(proxied, prefix) == set()
    assert refusal.hits == 1


async def test_a_listing_without_a_usable_answer_is_unavailable(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(SLOW_DOWN, requests_to("GET"))

    with pytest.raises(DestinationUnavailable, match="SlowDown"):
        await upload_ids(proxied, prefix)


MORE = "<IsTruncated>true</IsTruncated>"
MARKERS = "<NextKeyMarker>key</NextKeyMarker><NextUploadIdMarker>id</NextUploadIdMarker>"


def inject_pages(proxy: HttpFaultProxy, *pages: str) -> None:
    """Answer with these: each is a page's head, followed by one upload named by its number."""
    for number, head in enumerate(pages, start=1):
        document = (
            f"<ListMultipartUploadsResult>{head}<Upload><Key>k{number}</Key>"
            f"<UploadId>u{number}</UploadId><Initiated>2020-01-01T00:00:00.500Z</Initiated>"
            "</Upload></ListMultipartUploadsResult>"
        )
        proxy.inject(Answer(200, body=document.encode()), requests_to("GET"), nth=number)


async def test_uploads_are_listed_over_pages(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    # SeaweedFS 4.48 does not say where the next page begins: the pages are ours.
    inject_pages(proxy, MORE + MARKERS, MORE + MARKERS, "")

    listed = [upload async for upload in proxied.list_uploads(prefix)]

    parameters = [request.parameters for request in proxy.requests]
    assert [(upload.key, upload.upload_id) for upload in listed] == [
        ("k1", "u1"),
        ("k2", "u2"),
        ("k3", "u3"),
    ]
    assert listed[0].begun_us == 1_577_836_800_500_000
    assert "key-marker" not in parameters[0]
    assert [page["key-marker"] for page in parameters[1:]] == [["key"], ["key"]]
    assert [page["upload-id-marker"] for page in parameters[1:]] == [["id"], ["id"]]


async def test_a_store_that_does_not_say_where_the_next_page_begins_is_asked_once(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    inject_pages(proxy, MORE + "<NextUploadIdMarker>id</NextUploadIdMarker>")

    assert await upload_ids(proxied, prefix) == {"u1"}
    assert len(proxy.requests) == 1
