"""The S3 destination against a real S3 server, and against faults and answers it cannot be made to
give: those come from the proxy. Policies, roles, tags and KMS headers are moto's.
"""

import asyncio
import base64
import ipaddress
import json
import ssl
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.server import ThreadedMotoServer

from configured import make_s3_settings
from engine.destinations.s3 import DATA_CONTENT_TYPE, S3ObjectStore
from engine.destinations.s3_errors import Circumstances, Failure, destination_error
from engine.destinations.s3_rights import Place
from engine.destinations.s3_settings import MIB, S3Settings
from engine.model.errors import (
    ConfigurationError,
    DestinationError,
    DestinationRefused,
    DestinationUnavailable,
    ObjectArchived,
)
from engine.model.interfaces import ObjectTail
from engine.servers.fault_proxy import (
    CONFLICT,
    LOST_ANSWER,
    SLOW_DOWN,
    Answer,
    CutAnswer,
    Fault,
    HttpFaultProxy,
    Request,
    Reset,
    Stall,
    requests_to,
)
from engine.servers.servers import EmbeddedS3
from staged_objects import staged_whole

if TYPE_CHECKING:
    import aioboto3
    from types_aiobotocore_s3 import S3Client

pytestmark = pytest.mark.usefixtures("aws_environment")

JSON = "application/json"


async def create(
    store: S3ObjectStore,
    key: str,
    body: bytes = b"{}",
    *,
    content_type: str = JSON,
    **metadata: str,
) -> bool:
    return await store.create(key, body, content_type=content_type, metadata=metadata)


@pytest.fixture
def settings(s3: EmbeddedS3, shared_bucket: str) -> S3Settings:
    return make_s3_settings(bucket=shared_bucket, endpoint_url=s3.endpoint_url, part_bytes=5 * MIB)


@pytest.fixture
async def store(settings: S3Settings) -> AsyncIterator[S3ObjectStore]:
    async with S3ObjectStore(settings) as store:
        yield store


@pytest.fixture
async def proxy(s3: EmbeddedS3) -> AsyncIterator[HttpFaultProxy]:
    async with HttpFaultProxy(s3.port) as proxy:
        yield proxy


@pytest.fixture
async def proxied(settings: S3Settings, proxy: HttpFaultProxy) -> AsyncIterator[S3ObjectStore]:
    async with S3ObjectStore(replace(settings, endpoint_url=proxy.endpoint_url)) as store:
        yield store


# What a store promises


async def test_the_first_create_wins_and_the_object_stays(
    store: S3ObjectStore, prefix: str
) -> None:
    first = await create(store, f"{prefix}/k", b"one", writer="a")
    second = await create(store, f"{prefix}/k", b"two", writer="b")
    body, head = await store.get(f"{prefix}/k"), await store.head(f"{prefix}/k")

    assert (first, second) == (True, False)
    assert body == b"one"
    assert head is not None
    assert head.size == 3
    assert head.metadata == {"writer": "a"}


async def test_an_object_that_is_not_there_is_none(store: S3ObjectStore, prefix: str) -> None:
    body, head = await store.get(f"{prefix}/none"), await store.head(f"{prefix}/none")

    assert body is None
    assert head is None


async def test_an_empty_object_is_an_object(store: S3ObjectStore, prefix: str) -> None:
    created = await create(store, f"{prefix}/void", b"")
    again = await create(store, f"{prefix}/void", b"")
    body = await store.get(f"{prefix}/void")

    assert (created, again) == (True, False)
    assert body == b""


async def test_one_of_sixteen_concurrent_creates_wins(store: S3ObjectStore, prefix: str) -> None:
    async with asyncio.TaskGroup() as tasks:
        attempts = [
            tasks.create_task(create(store, f"{prefix}/race", f"{number}".encode()))
            for number in range(16)
        ]
    winners = [number for number, attempt in enumerate(attempts) if attempt.result()]
    body = await store.get(f"{prefix}/race")

    assert len(winners) == 1
    assert body == f"{winners[0]}".encode()


async def test_a_large_body_travels_in_parts_and_arrives_whole(
    settings: S3Settings, prefix: str
) -> None:
    body = bytes(range(256)) * (40_000_000 // 256)

    async with S3ObjectStore(replace(settings, part_bytes=8 * MIB)) as store:
        created = await create(store, f"{prefix}/big", body, rows="7")
        again = await create(store, f"{prefix}/big", body)
        head, content = await store.head(f"{prefix}/big"), await store.get(f"{prefix}/big")

    assert (created, again) == (True, False)
    assert head is not None
    assert (head.size, head.metadata) == (len(body), {"rows": "7"})
    assert content == body


async def test_a_multipart_upload_that_is_completed_second_says_taken_and_is_aborted(
    proxied: S3ObjectStore,
    proxy: HttpFaultProxy,
    s3_client: "S3Client",
    shared_bucket: str,
    prefix: str,
) -> None:
    # One after the other: SeaweedFS 4.48 lets both win when two completions meet.
    hold = proxy.hold_next(is_completion)
    first, second = (bytes([number]) * (5 * MIB + 1) for number in (1, 2))

    async with asyncio.TaskGroup() as tasks:
        late = tasks.create_task(create(proxied, f"{prefix}/race", second))
        await hold.wait_reached()
        early = await create(proxied, f"{prefix}/race", first)
        hold.release()

    assert (early, late.result()) == (True, False)
    assert await proxied.get(f"{prefix}/race") == first
    assert await uploads(s3_client, shared_bucket, prefix) == []


async def uploads(client: "S3Client", bucket: str, prefix: str) -> list[str]:
    answer = await client.list_multipart_uploads(Bucket=bucket, Prefix=prefix)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


async def test_a_listing_is_complete_and_in_order_over_pages(
    settings: S3Settings, proxy: HttpFaultProxy, prefix: str
) -> None:
    strange = ["a b", "a+b", "a%20b", "a&b=c", "ä/ö", "日本", "database=shop/x", "a'b\"", "~(!)*"]
    keys = [f"{prefix}/{name}" for name in strange]
    keys += [f"{prefix}/journal/{number:012d}.json" for number in range(95, 106)]

    async with S3ObjectStore(
        replace(settings, endpoint_url=proxy.endpoint_url, listing_key_count_max=4)
    ) as store:
        async with asyncio.TaskGroup() as tasks:
            for key in keys:
                tasks.create_task(create(store, key))
        found = [item.key async for item in store.list(f"{prefix}/")]
        page_count = len([request for request in proxy.requests if request.method == "GET"])
        journal = [item.key async for item in store.list(f"{prefix}/journal/")]
        after = f"{prefix}/journal/{103:012d}"
        tail = [item async for item in store.list(f"{prefix}/journal/", after=after)]

    assert sorted(found) == sorted(keys)
    assert page_count >= 5
    assert journal == keys[len(strange) :]
    assert [(item.key[-8:], item.size) for item in tail] == [
        ("103.json", 2),
        ("104.json", 2),
        ("105.json", 2),
    ]


async def test_a_listing_of_nothing_is_empty(store: S3ObjectStore, prefix: str) -> None:
    assert [item async for item in store.list(f"{prefix}/nothing/")] == []


async def test_the_end_of_an_object_comes_with_its_head_in_one_request(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    await create(proxied, f"{prefix}/long", b"0123456789", rows="7")
    await create(proxied, f"{prefix}/short", b"012")
    await create(proxied, f"{prefix}/empty", b"")
    before = len(proxy.requests)

    long = await proxied.tail(f"{prefix}/long", 4)
    asked = len(proxy.requests) - before
    short, empty = (
        await proxied.tail(f"{prefix}/short", 4),
        await proxied.tail(f"{prefix}/empty", 4),
    )

    assert long == ObjectTail(10, {"rows": "7"}, b"6789")
    assert asked == 1
    assert short == ObjectTail(3, {}, b"012")
    assert empty == ObjectTail(0, {}, b"")
    assert await proxied.tail(f"{prefix}/none", 4) is None


async def test_a_whole_object_is_told_by_one_request_that_compares_its_checksum(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    await create(proxied, f"{prefix}/k", b"0123456789", rows="7")
    before = len(proxy.requests)

    found = await proxied.whole(f"{prefix}/k")
    [request] = proxy.requests[before:]

    assert found == ObjectTail(10, {"rows": "7"}, b"0123456789")
    assert dict(request.headers)["x-amz-checksum-mode"] == "ENABLED"
    assert await proxied.whole(f"{prefix}/none") is None


async def test_of_an_archived_object_the_head_is_told(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    await create(proxied, f"{prefix}/k", b"0123456789", rows="7")
    proxy.inject(Answer(403, "InvalidObjectState"), requests_to("GET"))

    assert await proxied.tail(f"{prefix}/k", 4) == ObjectTail(10, {"rows": "7"}, None)


async def test_folders_are_what_keys_have_up_to_the_next_slash(
    store: S3ObjectStore, prefix: str
) -> None:
    for name in ("a/1", "a/2", "b c%2F+/x/y", "file"):
        await create(store, f"{prefix}/{name}")

    assert await store.folders(f"{prefix}/") == (f"{prefix}/a/", f"{prefix}/b c%2F+/")
    assert await store.folders(f"{prefix}/none/") == ()


async def test_a_large_body_in_one_request_is_one_put(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    key, body = f"{prefix}/big", bytes(range(256)) * (24 * MIB // 256)

    created = await proxied.create(key, body, content_type=JSON, metadata={}, in_one_request=True)
    again = await proxied.create(key, body, content_type=JSON, metadata={}, in_one_request=True)

    assert (created, again) == (True, False)
    assert [request.method for request in proxy.requests] == ["PUT", "PUT"]
    assert await proxied.get(key) == body


async def test_of_racing_creates_in_one_request_one_wins_whatever_their_size(
    settings: S3Settings, prefix: str
) -> None:
    bodies = [bytes([number]) * (6 * MIB) for number in range(4)]

    async with S3ObjectStore(settings) as store:
        for race in range(4):
            key = f"{prefix}/{race}"
            async with asyncio.TaskGroup() as group:
                puts = [
                    group.create_task(
                        store.create(key, body, content_type=JSON, metadata={}, in_one_request=True)
                    )
                    for body in bodies
                ]
            won = [put.result() for put in puts]

            assert sum(won) == 1
            assert await store.get(key) == bodies[won.index(True)]


async def test_the_server_rejects_a_body_that_does_not_match_its_checksum(
    s3_client: "S3Client", shared_bucket: str, prefix: str
) -> None:
    with pytest.raises(s3_client.exceptions.ClientError, match="BadDigest"):
        await s3_client.put_object(
            Bucket=shared_bucket, Key=f"{prefix}/crc", Body=b"x", ChecksumCRC32="AAAAAA=="
        )


async def test_every_body_carries_its_checksum_and_nothing_asks_to_continue(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    body = bytes(range(256)) * (6 * MIB // 256)

    await create(proxied, f"{prefix}/small", b"small")
    await create(proxied, f"{prefix}/large", body)

    puts = [request for request in proxy.requests if request.method == "PUT"]
    checksums = [request.header("x-amz-checksum-crc32") for request in puts]
    expected = [b"small", body[: 5 * MIB], body[5 * MIB :]]
    completion = next(request for request in proxy.requests if is_completion(request))
    assert sorted(checksums) == sorted(crc32_text(piece) for piece in expected)
    assert completion.header("x-amz-checksum-crc32") == crc32_text(body)
    assert completion.header("x-amz-checksum-type") == "FULL_OBJECT"
    assert not any(request.header("expect") for request in proxy.requests)


def crc32_text(body: bytes) -> str:
    return base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()


def is_completion(request: Request) -> bool:
    return request.method == "POST" and "uploadId" in request.parameters


def is_part(request: Request) -> bool:
    return request.method == "PUT" and "partNumber" in request.parameters


def is_abort(request: Request) -> bool:
    return request.method == "DELETE" and "uploadId" in request.parameters


# One attempt


FAULTS = [SLOW_DOWN, Answer(500, "InternalError"), Reset(), LOST_ANSWER]


@pytest.mark.parametrize("body", [b"{}", b""], ids=["full", "empty"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: repr(fault)[:40])
async def test_a_put_is_sent_once_whatever_happens_to_it(
    proxied: S3ObjectStore,
    proxy: HttpFaultProxy,
    prefix: str,
    *,
    fault: Answer | Reset,
    body: bytes,
) -> None:
    # The connection that this leaves behind is where a client may repeat a request by itself.
    await create(proxied, f"{prefix}/before")
    proxy.inject(fault, requests_to("PUT", "struck"), times=1)

    with pytest.raises(DestinationUnavailable):
        await create(proxied, f"{prefix}/struck", body)

    assert len([request for request in proxy.requests if "struck" in request.key]) == 1


async def test_a_lost_answer_is_told_by_the_second_attempt(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(LOST_ANSWER, requests_to("PUT"), times=1)

    with pytest.raises(DestinationUnavailable):
        await create(proxied, f"{prefix}/k", b"one")
    again = await create(proxied, f"{prefix}/k", b"one")

    assert again is False
    assert await proxied.get(f"{prefix}/k") == b"one"


async def test_a_request_that_never_arrived_is_made_by_the_second_attempt(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(CONFLICT, requests_to("PUT"), times=1)

    with pytest.raises(DestinationUnavailable, match="ConditionalRequestConflict"):
        await create(proxied, f"{prefix}/k")
    again = await create(proxied, f"{prefix}/k")

    assert again is True


async def test_a_bucket_elsewhere_is_named_and_not_followed(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(Answer(301, "PermanentRedirect", headers=(("x-amz-bucket-region", "eu-west-1"),)))

    with pytest.raises(DestinationRefused) as caught:
        await create(proxied, f"{prefix}/k")

    assert 'destination.region = "eu-west-1"' in caught.value.hint
    assert len(proxy.requests) == 1


async def test_a_redirect_is_an_answer_and_not_followed(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    headers = (("Location", f"{proxy.endpoint_url}/elsewhere/k"),)
    proxy.inject(Answer(307, "TemporaryRedirect", headers=headers))

    for call in (create(proxied, f"{prefix}/k"), proxied.get(f"{prefix}/k")):
        with pytest.raises(DestinationUnavailable, match="TemporaryRedirect"):
            await call

    assert [request.bucket for request in proxy.requests] == ["tests", "tests"]


# Silence


@pytest.fixture
async def hasty(settings: S3Settings, proxy: HttpFaultProxy) -> AsyncIterator[S3ObjectStore]:
    """A store that gives up early, once it is connected."""
    async with S3ObjectStore(
        replace(
            settings,
            endpoint_url=proxy.endpoint_url,
            connect_seconds=3.0,
            answer_seconds=0.2,
            silence_seconds=0.2,
            body_bytes_per_second_min=1 << 30,
            part_bytes=20 * MIB,
        )
    ) as store:
        yield store


async def test_an_answer_that_takes_too_long_is_no_answer(
    hasty: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    hold = proxy.hold_next(requests_to("PUT"), applied=True)

    with pytest.raises(DestinationUnavailable) as caught:
        await create(hasty, f"{prefix}/k")
    hold.release()

    assert caught.value.code == "ReadTimeoutError"


async def test_a_body_that_nobody_reads_is_given_up(
    hasty: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    # More than socket buffers hold, in one request.
    with proxy.blackout(), pytest.raises(DestinationUnavailable) as caught:
        await create(hasty, f"{prefix}/k", b"x" * (20 * MIB))

    assert caught.value.code == "TimeoutError"


async def test_reads_that_get_no_answer_are_unavailable(
    hasty: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(Stall(seconds=0.6))

    with pytest.raises(DestinationUnavailable):
        await hasty.get(f"{prefix}/k")
    with pytest.raises(DestinationUnavailable):
        await hasty.head(f"{prefix}/k")
    with pytest.raises(DestinationUnavailable):
        await anext(hasty.list(prefix))


async def test_a_body_that_ends_early_is_no_body(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    await create(proxied, f"{prefix}/k", b"x" * 100_000)
    proxy.inject(CutAnswer(body_bytes=1_000), requests_to("GET"))

    with pytest.raises(DestinationUnavailable):
        await proxied.get(f"{prefix}/k")


async def test_a_body_that_does_not_match_its_checksum_is_no_body(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    headers = (("x-amz-checksum-crc32", crc32_text(b"right")),)
    proxy.inject(Answer(200, body=b"wrong", headers=headers), requests_to("GET"), times=1)

    with pytest.raises(DestinationUnavailable) as caught:
        await proxied.get(f"{prefix}/k")

    assert caught.value.code == "FlexibleChecksumError"


@pytest.mark.parametrize(
    "endpoint_url", ["http://127.0.0.1:9", "http://nowhere.invalid:80", "https://127.0.0.1:{port}"]
)
async def test_a_store_that_cannot_be_reached_is_unavailable(
    settings: S3Settings, s3: EmbeddedS3, endpoint_url: str
) -> None:
    url = endpoint_url.format(port=s3.port)  # TLS to a server that speaks none, last.

    async with S3ObjectStore(replace(settings, endpoint_url=url)) as store:
        with pytest.raises(DestinationUnavailable):
            await create(store, "k")


async def test_an_answer_that_is_not_s3s_is_unavailable(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(Answer(502, body=b"<html>Bad gateway<br></html>"))

    with pytest.raises(DestinationUnavailable):
        await create(proxied, f"{prefix}/k")
    with pytest.raises(DestinationUnavailable):
        await anext(proxied.list(prefix))


# Multipart uploads that fail


async def test_a_failed_part_ends_the_upload_and_leaves_nothing(
    proxied: S3ObjectStore,
    proxy: HttpFaultProxy,
    s3_client: "S3Client",
    shared_bucket: str,
    prefix: str,
) -> None:
    proxy.inject(SLOW_DOWN, is_part, nth=2)

    with pytest.raises(DestinationUnavailable, match="SlowDown"):
        await create(proxied, f"{prefix}/k", b"x" * (16 * MIB))

    assert await proxied.head(f"{prefix}/k") is None
    assert await uploads(s3_client, shared_bucket, prefix) == []


async def test_cancellation_while_parts_travel_leaves_neither_object_nor_upload(
    proxied: S3ObjectStore,
    proxy: HttpFaultProxy,
    s3_client: "S3Client",
    shared_bucket: str,
    prefix: str,
) -> None:
    hold = proxy.hold_next(is_part)

    async with asyncio.TaskGroup() as tasks:
        attempt = tasks.create_task(create(proxied, f"{prefix}/k", b"x" * (16 * MIB)))
        await hold.wait_reached()
        attempt.cancel()

    assert attempt.cancelled()
    assert await proxied.head(f"{prefix}/k") is None
    assert await uploads(s3_client, shared_bucket, prefix) == []


@pytest.mark.parametrize("fault", [LOST_ANSWER, Answer(500, "InternalError", applied=True)])
async def test_an_unclear_completion_is_left_alone_and_told_by_the_second_attempt(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str, fault: Answer | Reset
) -> None:
    body = b"x" * (6 * MIB)
    proxy.inject(fault, is_completion, times=1)

    with pytest.raises(DestinationUnavailable):
        await create(proxied, f"{prefix}/k", body)
    was_aborted = any(is_abort(request) for request in proxy.requests)
    again = await create(proxied, f"{prefix}/k", body)

    assert not was_aborted
    assert again is False
    assert await proxied.get(f"{prefix}/k") == body


async def test_a_completion_that_failed_within_an_answer_of_200_is_unavailable(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(Answer(200, "InternalError"), is_completion, times=1)

    with pytest.raises(DestinationUnavailable, match="InternalError"):
        await create(proxied, f"{prefix}/k", b"x" * (6 * MIB))

    assert await proxied.head(f"{prefix}/k") is None


async def test_a_completion_refused_within_an_answer_of_200_says_taken(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(Answer(200, "PreconditionFailed"), is_completion, times=1)

    created = await create(proxied, f"{prefix}/k", b"x" * (6 * MIB))

    assert created is False
    assert any(is_abort(request) for request in proxy.requests)


async def test_an_upload_that_is_gone_is_begun_anew(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(Answer(404, "NoSuchUpload"), is_completion, times=1)
    body = b"x" * (6 * MIB)

    with pytest.raises(DestinationUnavailable, match="NoSuchUpload"):
        await create(proxied, f"{prefix}/k", body)
    was_aborted = any(is_abort(request) for request in proxy.requests)
    again = await create(proxied, f"{prefix}/k", body)

    assert not was_aborted
    assert again is True


async def test_a_completion_in_conflict_is_aborted_and_made_anew(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(CONFLICT, is_completion, times=1)
    body = b"x" * (6 * MIB)

    with pytest.raises(DestinationUnavailable, match="ConditionalRequestConflict"):
        await create(proxied, f"{prefix}/k", body)
    was_aborted = any(is_abort(request) for request in proxy.requests)
    again = await create(proxied, f"{prefix}/k", body)

    assert was_aborted
    assert again is True


# What each answer means


PASSING = [
    (500, "InternalError"),
    (502, ""),
    (503, "SlowDown"),
    (503, "ServiceUnavailable"),
    (504, ""),
    (429, "TooManyRequestsException"),
    (400, "RequestTimeout"),
    (400, "ThrottlingException"),
    (409, "ConditionalRequestConflict"),
    (409, "OperationAborted"),
    (400, "ExpiredToken"),
    (400, "TokenRefreshRequired"),
    (403, "RequestTimeTooSkewed"),
    (400, "BadDigest"),
    (400, "XAmzContentSHA256Mismatch"),
    (400, "XAmzContentChecksumMismatch"),
    (400, "IncompleteBody"),
    (404, "NoSuchUpload"),
    (400, "InvalidPart"),
    (400, "KMS.ThrottlingException"),
    (500, "KMS.KMSInternalException"),
]
REFUSED = [
    (403, "AccessDenied", "s3:PutObject"),
    (403, "", "s3:PutObject"),
    (403, "InvalidAccessKeyId", "credentials"),
    (403, "SignatureDoesNotMatch", "credentials"),
    (404, "NoSuchBucket", "destination.bucket"),
    (301, "PermanentRedirect", "destination.region"),
    (400, "AuthorizationHeaderMalformed", "destination.region"),
    (400, "IllegalLocationConstraintException", "destination.region"),
    (400, "KMS.DisabledException", "KMS key"),
    (400, "KMS.NotFoundException", "KMS key"),
    (400, "AccessControlListNotSupported", "destination.acl"),
    (400, "InvalidStorageClass", "destination.storage_class"),
    (400, "InvalidTag", "destination.tags"),
    (501, "NotImplemented", "conditional writes"),
    (501, "", "conditional writes"),
    (400, "KeyTooLongError", "destination.prefix"),
    (400, "InvalidBucketName", "destination.bucket"),
    (400, "InvalidArgument", "[destination]"),
]


async def outcome(store: S3ObjectStore, key: str) -> DestinationError | bool:
    try:
        return await create(store, key)
    except DestinationError as error:
        return error


async def test_what_passes_is_unavailable_and_carries_its_code(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    seen = []
    for status, code in PASSING:
        proxy.clear()
        proxy.inject(Answer(status, code))
        error = await outcome(proxied, f"{prefix}/k")
        assert isinstance(error, DestinationError)
        seen.append((error.retryable, getattr(error, "code", None)))

    assert seen == [(True, code or str(status)) for status, code in PASSING]


async def test_what_stays_is_refused_with_what_to_change(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    wrong = []
    for status, code, hint in REFUSED:
        proxy.clear()
        proxy.inject(Answer(status, code))
        error = await outcome(proxied, f"{prefix}/k")
        if not isinstance(error, DestinationRefused) or hint not in error.hint:
            wrong.append((status, code, error, getattr(error, "hint", "")))

    assert wrong == []


async def test_412_says_taken(proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str) -> None:
    proxy.inject(Answer(412, "PreconditionFailed"))

    assert await create(proxied, f"{prefix}/k") is False


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "ExpiredToken", DestinationUnavailable),
        (403, "AccessDenied", DestinationRefused),
        (404, "NoSuchBucket", DestinationRefused),
        (503, "SlowDown", DestinationUnavailable),
    ],
)
async def test_a_bare_answer_to_head_is_explained_by_a_listing(
    proxied: S3ObjectStore,
    proxy: HttpFaultProxy,
    prefix: str,
    *,
    status: int,
    code: str,
    expected: type[DestinationError],
) -> None:
    proxy.inject(Answer(status, code))

    with pytest.raises(expected, match=code):
        await proxied.head(f"{prefix}/k")


async def test_an_archived_object_is_refused_by_a_name_of_its_own(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(Answer(403, "InvalidObjectState"))

    with pytest.raises(ObjectArchived) as caught:
        await proxied.get(f"{prefix}/k")

    assert "archived" in caught.value.hint


async def test_a_forbidden_head_in_a_bucket_that_answers_names_the_right(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    await create(proxied, f"{prefix}/k")
    proxy.inject(Answer(403), requests_to("HEAD"), times=2)

    with pytest.raises(DestinationRefused) as caught:
        await proxied.head(f"{prefix}/k")

    assert "grant s3:GetObject on arn:aws:s3:::" in caught.value.hint


@pytest.mark.parametrize("way", ["get", "head", "tail"])
async def test_a_store_that_hides_missing_keys_is_asked_by_a_listing(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str, way: str
) -> None:
    await create(proxied, f"{prefix}/k")
    rules = [
        proxy.inject(Answer(403, "AccessDenied"), requests_to(key_contains=key), times=1)
        for key in ("/k", "/j")
    ]

    async def is_there(key: str) -> bool:
        asked: dict[str, Callable[[], Awaitable[object]]] = {
            "get": lambda: proxied.get(key),
            "head": lambda: proxied.head(key),
            "tail": lambda: proxied.tail(key, 1),
        }
        return await asked[way]() is not None

    assert await is_there(f"{prefix}/k"), "the second answer is the store's"
    assert not await is_there(f"{prefix}/j")
    assert [rule.hits for rule in rules] == [1, 1]


async def test_where_neither_the_key_nor_a_listing_can_be_had_the_listing_is_named(
    proxied: S3ObjectStore, proxy: HttpFaultProxy, prefix: str
) -> None:
    proxy.inject(Answer(403, "AccessDenied"), times=2)

    with pytest.raises(DestinationRefused) as caught:
        await proxied.get(f"{prefix}/k")

    assert "grant s3:ListBucket on arn:aws:s3:::" in caught.value.hint
    assert "GetObject" not in caught.value.hint


def test_hints_name_the_key_the_acl_and_the_owner() -> None:
    circumstances = Circumstances(
        place=Place("b", "lake"),
        role_arn="arn:aws:iam::1:role/r",
        expected_bucket_owner="123",
        kms_key_id="key-1",
        has_acl=True,
        has_tags=True,
    )

    def hint(operation: str, code: str, text: str = "") -> str:
        failure = Failure(operation, code, 403, text, ValueError())
        return destination_error(failure, "put k", circumstances).hint

    denied = hint("PutObject", "AccessDenied")
    for word in ("s3:PutObjectAcl", "s3:PutObjectTagging", "kms:GenerateDataKey", "123"):
        assert word in denied
    assert "key-1" in hint("PutObject", "AccessDenied", "not authorized: kms:GenerateDataKey")
    assert "trust policy" in hint("AssumeRole", "AccessDenied")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:992)]", "http://"),
        ("[[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed]", "AWS_CA_BUNDLE"),
    ],
)
def test_a_store_without_tls_is_told_apart_from_one_whose_certificate_is_not_known(
    text: str, hint: str
) -> None:
    failure = Failure("ListObjectsV2", "SSLError", 0, text, ValueError())

    error = destination_error(failure, "list k/", Circumstances(place=Place("b", "lake")))

    assert hint in error.hint


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (Answer(501, "NotImplemented"), "uploads in parts"),
        (Answer(405, "MethodNotAllowed"), "uploads in parts"),
        (Answer(405), "uploads in parts"),
        (Answer(403, "AccessDenied"), "s3:PutObject"),
    ],
)
async def test_a_store_that_refuses_uploads_in_parts_is_named_as_such(
    settings: S3Settings, proxy: HttpFaultProxy, answer: Answer, hint: str
) -> None:
    def begins(request: Request) -> bool:
        return request.method == "POST" and "uploads" in request.parameters

    rule = proxy.inject(answer, begins)
    async with S3ObjectStore(replace(settings, endpoint_url=proxy.endpoint_url)) as store:
        with pytest.raises(DestinationRefused) as caught:
            await create(store, "large", b"x" * (settings.part_bytes + 1))

    assert rule.hits == 1
    assert hint in caught.value.hint
    assert caught.value.exit_code == 78


# Credentials and buckets that are wrong


async def test_a_missing_bucket_is_refused_by_every_method(settings: S3Settings) -> None:
    async with S3ObjectStore(replace(settings, bucket="missing-bucket")) as store:
        calls = [
            create(store, "k"),
            create(store, "k", b"x" * (6 * MIB)),
            store.get("k"),
            store.head("k"),
            anext(store.list("")),
            store.check_bucket(),
        ]
        for call in calls:
            with pytest.raises(DestinationRefused) as caught:
                await call
            assert caught.value.code == "NoSuchBucket"
            assert "destination.bucket" in caught.value.hint


async def test_a_bucket_that_answers_passes_the_check(store: S3ObjectStore, prefix: str) -> None:
    await store.check_bucket(prefix)


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong-secret-key", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId"),
    ],
)
async def test_wrong_credentials_are_refused_and_never_shown(
    settings: S3Settings, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, code: str
) -> None:
    monkeypatch.setenv(variable, value)

    async with S3ObjectStore(settings) as store:
        with pytest.raises(DestinationRefused) as caught:
            await create(store, "k")

    assert caught.value.code == code
    assert value not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"


async def test_no_credentials_at_all_are_refused_with_where_to_put_them(
    settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    async with S3ObjectStore(settings) as store:
        with pytest.raises(DestinationRefused) as caught:
            await create(store, "k")

    assert "default chain" in caught.value.hint


async def test_a_bucket_with_a_folder_in_its_name_is_refused(settings: S3Settings) -> None:
    async with S3ObjectStore(replace(settings, bucket="bucket/folder")) as store:
        with pytest.raises(DestinationRefused) as caught:
            await store.check_bucket()

    assert "destination.prefix" in caught.value.hint


async def test_the_expected_owner_goes_with_every_request(
    settings: S3Settings, proxy: HttpFaultProxy, prefix: str
) -> None:
    owned = replace(settings, endpoint_url=proxy.endpoint_url, expected_bucket_owner="111122223333")
    async with S3ObjectStore(owned) as store:
        await create(store, f"{prefix}/k")
        await create(store, f"{prefix}/large", b"x" * (6 * MIB))
        await create(store, f"{prefix}/large", b"x" * (6 * MIB))
        await store.get(f"{prefix}/k")
        await store.head(f"{prefix}/k")
        _ = [item async for item in store.list(prefix)]
        await staged_whole(store, f"{prefix}/staged")
        _ = [upload async for upload in store.list_uploads(prefix)]
        await store.abort_upload(f"{prefix}/staged", "none")
        proxy.inject(Answer(403, "AccessDenied"))
        with pytest.raises(DestinationRefused, match="AccessDenied") as caught:
            await store.check_bucket()

    owners = {request.header("x-amz-expected-bucket-owner") for request in proxy.requests}
    assert owners == {"111122223333"}
    assert "not owned by 111122223333" in caught.value.hint


# TLS, as in production


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    key_text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + key_text)
    return file


@pytest.fixture
async def tls_proxy(s3: EmbeddedS3, certificate: Path) -> AsyncIterator[HttpFaultProxy]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    async with HttpFaultProxy(s3.port, tls=tls) as proxy:
        yield proxy


async def test_over_tls_bodies_are_checksummed_and_not_hashed(
    settings: S3Settings,
    tls_proxy: HttpFaultProxy,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefix: str,
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    body = bytes(range(256)) * (6 * MIB // 256)

    async with S3ObjectStore(replace(settings, endpoint_url=tls_proxy.endpoint_url)) as store:
        small = await create(store, f"{prefix}/small", b"small")
        large = await create(store, f"{prefix}/large", body)
        again = await create(store, f"{prefix}/large", body)
        content = await store.get(f"{prefix}/large")

    puts = [request for request in tls_proxy.requests if request.method == "PUT"]
    assert (small, large, again) == (True, True, False)
    assert content == body
    assert {put.header("x-amz-content-sha256") for put in puts} == {"UNSIGNED-PAYLOAD"}
    assert all(put.header("x-amz-checksum-crc32") for put in puts)


async def test_a_certificate_that_nobody_vouches_for_is_unavailable(
    settings: S3Settings, tls_proxy: HttpFaultProxy, prefix: str
) -> None:
    async with S3ObjectStore(replace(settings, endpoint_url=tls_proxy.endpoint_url)) as store:
        with pytest.raises(DestinationUnavailable, match="certificate") as caught:
            await create(store, f"{prefix}/k")

    assert "AWS_CA_BUNDLE" in caught.value.hint


# How credentials are found and kept fresh


def access_keys(proxy: HttpFaultProxy) -> list[str]:
    """The access keys that signed the requests so far, in order."""
    return [
        request.header("authorization").partition("Credential=")[2].partition("/")[0]
        for request in proxy.requests
    ]


async def test_credentials_that_ran_out_are_looked_for_anew(
    settings: S3Settings,
    proxy: HttpFaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = tmp_path / "credentials"
    text = "[default]\naws_access_key_id={}\naws_secret_access_key=s\naws_session_token=t\n"
    file.write_text(text.format("old"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    proxy.inject(Answer(400, "ExpiredToken"))

    async with S3ObjectStore(replace(settings, endpoint_url=proxy.endpoint_url)) as store:
        with pytest.raises(DestinationUnavailable, match="ExpiredToken"):
            await create(store, "k")
        file.write_text(text.format("new"))
        with pytest.raises(DestinationUnavailable, match="ExpiredToken"):
            await create(store, "k")

    assert access_keys(proxy) == ["old", "new"]


@dataclass
class ContainerAgent:
    """What a container's agent serves: credentials that end soon, others at each request."""

    served: int = 0
    is_broken: bool = False
    is_short_lived: bool = field(default=True)

    async def answer(self, _request: web.Request) -> web.Response:
        if self.is_broken:
            return web.Response(status=500)
        self.served += 1
        end = datetime.now(UTC) + timedelta(minutes=5 if self.is_short_lived else 60)
        return web.json_response(
            {
                "AccessKeyId": f"agent{self.served}",
                "SecretAccessKey": "s",
                "Token": "t",
                "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )


@asynccontextmanager
async def running_agent(
    agent: ContainerAgent, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    application = web.Application()
    application.router.add_get("/credentials", agent.answer)
    async with TestServer(application) as server:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI", str(server.make_url("/credentials"))
        )
        yield


async def test_a_containers_credentials_are_renewed_before_they_end(
    settings: S3Settings, proxy: HttpFaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = ContainerAgent()
    proxy.inject(Answer(412, "PreconditionFailed"))

    async with (
        running_agent(agent, monkeypatch),
        S3ObjectStore(replace(settings, endpoint_url=proxy.endpoint_url)) as store,
    ):
        await create(store, "k")
        agent.is_short_lived = False
        await create(store, "k")
        await create(store, "k")

    first, second, third = access_keys(proxy)
    assert first != second
    assert second == third


async def test_an_agent_that_does_not_answer_is_unavailable(
    settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = ContainerAgent(is_broken=True)
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")

    async with running_agent(agent, monkeypatch), S3ObjectStore(settings) as store:
        with pytest.raises(DestinationUnavailable):
            await create(store, "k")


# What moto answers


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
async def moto_client(moto: str, s3_session: "aioboto3.Session") -> AsyncIterator["S3Client"]:
    async with s3_session.client("s3", endpoint_url=moto, region_name="us-east-1") as client:
        await client.create_bucket(Bucket="bucket")
        yield client
        await client.delete_bucket_policy(Bucket="bucket")


async def test_encryption_acl_and_tags_go_to_all_objects_and_the_class_to_chunks(
    moto: str, moto_client: "S3Client", prefix: str
) -> None:
    key_arn = "arn:aws:kms:us-east-1:123456789012:key/abc"
    settings = make_s3_settings(
        bucket="bucket",
        endpoint_url=moto,
        sse="kms",
        kms_key_id=key_arn,
        acl="bucket-owner-full-control",
        storage_class="STANDARD_IA",
        tags=(("team", "a b/c"), ("cost", "1+1")),
        part_bytes=5 * MIB,
    )
    async with S3ObjectStore(settings) as store:
        await create(store, f"{prefix}/chunk", content_type=DATA_CONTENT_TYPE, rows="1")
        await create(store, f"{prefix}/large", b"x" * (6 * MIB), content_type=DATA_CONTENT_TYPE)
        await create(store, f"{prefix}/entry")

    classes = {}
    for name in ("chunk", "large", "entry"):
        head = await moto_client.head_object(Bucket="bucket", Key=f"{prefix}/{name}")
        tags = await moto_client.get_object_tagging(Bucket="bucket", Key=f"{prefix}/{name}")
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key_arn)
        assert {tag["Key"]: tag["Value"] for tag in tags["TagSet"]} == dict(settings.tags)
        classes[name] = head.get("StorageClass")
    assert classes == {"chunk": "STANDARD_IA", "large": "STANDARD_IA", "entry": None}


async def test_a_bucket_policy_that_denies_is_refused(
    moto: str, moto_client: "S3Client", prefix: str
) -> None:
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": "arn:aws:s3:::bucket/*",
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    await moto_client.put_bucket_policy(Bucket="bucket", Policy=json.dumps(policy))

    async with S3ObjectStore(make_s3_settings(bucket="bucket", endpoint_url=moto)) as store:
        with pytest.raises(DestinationRefused) as caught:
            await create(store, f"{prefix}/k")

    assert "s3:PutObject" in caught.value.hint
    assert "bucket's" in caught.value.hint


ROLE = "arn:aws:iam::123456789012:role/destination"


async def test_a_role_is_assumed_with_its_external_id_and_again_before_it_ends(
    moto: str,
    moto_client: "S3Client",
    monkeypatch: pytest.MonkeyPatch,
    prefix: str,
) -> None:
    port = int(moto.rpartition(":")[2])
    async with HttpFaultProxy(port) as sts, HttpFaultProxy(port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.endpoint_url)
        lasting = make_s3_settings(
            bucket="bucket", endpoint_url=proxy.endpoint_url, role_arn=ROLE, external_id="secret-7"
        )
        # A role that ends within the quarter of an hour in which it is to be renewed.
        ending = replace(lasting, role_seconds=900)

        async with S3ObjectStore(lasting) as store:
            await create(store, f"{prefix}/1")
            await create(store, f"{prefix}/2")
            lasting_count = len(sts.requests)
        async with S3ObjectStore(ending) as store:
            await create(store, f"{prefix}/3")
            await create(store, f"{prefix}/4")
            ending_count = len(sts.requests) - lasting_count

    one, two, three, four = access_keys(proxy)
    assert (lasting_count, ending_count) == (1, 2)
    assert one == two
    assert len({one, three, four}) == 3
    assert all(request.header("x-amz-security-token") for request in proxy.requests)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            Answer(
                403, body=b"<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"
            ),
            DestinationRefused,
        ),
        (Reset(), DestinationUnavailable),
    ],
    ids=["denied", "reset"],
)
async def test_a_role_that_cannot_be_assumed(
    moto: str,
    moto_client: "S3Client",
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer | Reset,
    expected: type[DestinationError],
) -> None:
    async with HttpFaultProxy(int(moto.rpartition(":")[2])) as sts:
        sts.inject(answer)
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.endpoint_url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        settings = make_s3_settings(
            bucket="bucket", endpoint_url=moto, role_arn=ROLE, external_id="secret-7"
        )
        async with S3ObjectStore(settings) as store:
            with pytest.raises(expected) as caught:
                await create(store, "k")

    assert "secret-7" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
    if expected is DestinationRefused:
        assert ROLE in caught.value.hint


def sts_error(code: str, message: str = "") -> Answer:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    status = 400 if code in {"ExpiredTokenException", "ValidationError"} else 403
    return Answer(status, body=f"<ErrorResponse>{text}</ErrorResponse>".encode())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Reset(), "AWS's STS"),
        (Stall(seconds=30.0), "AWS's STS"),
        (sts_error("ExpiredTokenException"), "credentials ran out"),
        (sts_error("InvalidClientTokenId"), "does not know this access key"),
        (
            sts_error(
                "AccessDenied",
                "User: arn:aws:iam::1:user/me is not authorized to perform: sts:AssumeRole",
            ),
            "arn:aws:iam::1:user/me needs sts:AssumeRole on",
        ),
        (sts_error("AccessDenied"), "trust policy must name"),
        (sts_error("AccessDenied"), "destination.external_id"),
    ],
    ids=["reset", "silent", "expired", "unknown-key", "who", "trust", "external-id"],
)
async def test_what_is_wrong_with_the_role_is_told_of_it_and_not_of_the_bucket(
    moto: str, monkeypatch: pytest.MonkeyPatch, fault: Fault, words: str
) -> None:
    async with HttpFaultProxy(int(moto.rpartition(":")[2])) as sts:
        rule = sts.inject(fault)
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.endpoint_url)
        settings = make_s3_settings(
            bucket="bucket",
            endpoint_url=moto,
            role_arn=ROLE,
            connect_seconds=20.0,
            # A busy machine takes its time to answer. Only who is silent is to be given up.
            answer_seconds=0.5 if isinstance(fault, Stall) else 20.0,
        )
        async with S3ObjectStore(settings) as store:
            with pytest.raises(DestinationError) as caught:
                await store.check_bucket()

    assert rule.hits >= 1
    assert str(caught.value).startswith(f"assume {ROLE} to list bucket bucket")
    assert words in caught.value.hint


async def test_an_sts_that_cannot_be_connected_to_says_so(
    moto: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    settings = make_s3_settings(bucket="bucket", endpoint_url=moto, role_arn=ROLE)

    async with S3ObjectStore(settings) as store:
        with pytest.raises(DestinationUnavailable) as caught:
            await store.check_bucket()

    assert "http://127.0.0.1:1" in str(caught.value)
    assert "AWS_ENDPOINT_URL_STS" in caught.value.hint
    assert "destination.endpoint_url" not in caught.value.hint
    assert [each.name for each in caplog.records if "credentials" in each.name] == []


# Settings


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"part_bytes": MIB}, "5 MiB"),
        ({"concurrency": 0}, "concurrency"),
        ({"kms_key_id": "k"}, "kms_key_id"),
        ({"external_id": "x"}, "role_arn"),
        ({"tags": tuple((f"t{number}", "") for number in range(11))}, "at most 10"),
        ({"tags": (("a", "1"), ("a", "2"))}, "twice"),
        ({"tags": (("", "1"),)}, "1 to 128"),
        ({"tags": (("a", "x" * 257),)}, "256"),
        ({"tags": (("aws:x", "1"),)}, "reserved"),
        ({"tags": (("a", "50%"),)}, "allowed"),
    ],
)
def test_settings_that_cannot_work_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        make_s3_settings(bucket="b", **changes)


def test_importing_the_destination_does_not_import_the_client() -> None:
    code = (
        "import sys, engine.destinations.s3, engine.destinations.s3_settings\n"
        "print([name for name in ('botocore', 'aiobotocore', 'aiohttp') if name in sys.modules])"
    )

    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "[]"
