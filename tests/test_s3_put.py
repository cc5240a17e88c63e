"""The short way of a PUT: it is taken, it signs as botocore does, and it reads all answers."""

import asyncio
import string
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from configured import make_s3_settings
from engine.destinations.s3 import S3ObjectStore
from engine.destinations.s3_body import SlicedBody
from engine.destinations.s3_put import PutSender, Request, sign
from engine.destinations.s3_settings import S3Settings
from engine.model.errors import DestinationUnavailable
from engine.servers.fault_proxy import Answer, HttpFaultProxy, requests_to
from engine.servers.servers import EmbeddedS3

pytestmark = pytest.mark.usefixtures("aws_environment")

JSON = "application/json"


@pytest.fixture
def settings(s3: EmbeddedS3, shared_bucket: str) -> S3Settings:
    return make_s3_settings(bucket=shared_bucket, endpoint_url=s3.endpoint_url)


@pytest.fixture
async def store(settings: S3Settings) -> AsyncIterator[S3ObjectStore]:
    async with S3ObjectStore(settings) as store:
        yield store


async def test_a_put_takes_the_short_way_and_other_requests_do_not(
    store: S3ObjectStore, prefix: str
) -> None:
    long_way: list[str] = []
    store._connection.client.meta.events.register(
        "request-created.s3", lambda operation_name, **_: long_way.append(operation_name)
    )

    created = await store.create(f"{prefix}/k", b"body", content_type=JSON, metadata={"a": "b"})
    again = await store.create(f"{prefix}/k", b"body", content_type=JSON, metadata={})
    head = await store.head(f"{prefix}/k")

    assert (created, again) == (True, False)
    assert head is not None
    assert (head.size, head.metadata) == (4, {"a": "b"})
    assert long_way == ["HeadObject"]


@pytest.mark.parametrize(
    "name", ["a b", "a+b", "a%20b", "ä/ö", "a=b&c?d", "~a!*'()", "a//b", '"{}"|^`']
)
async def test_any_key_is_sent_as_it_is_signed(
    store: S3ObjectStore, prefix: str, name: str
) -> None:
    key = f"{prefix}/{name}"

    created = await store.create(key, b"body", content_type=JSON, metadata={"a": " b  c "})

    assert created is True
    assert await store.get(key) == b"body"


async def test_an_error_within_an_answer_of_200_is_one(
    settings: S3Settings, s3: EmbeddedS3, prefix: str
) -> None:
    async with (
        HttpFaultProxy(s3.port) as proxy,
        S3ObjectStore(replace(settings, endpoint_url=proxy.endpoint_url)) as store,
    ):
        proxy.inject(Answer(200, "InternalError"), requests_to("PUT"), times=1)

        with pytest.raises(DestinationUnavailable, match="InternalError"):
            await store.create(f"{prefix}/k", b"body", content_type=JSON, metadata={})


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"auth_type": "v4a", "signing": {"region": "*", "signing_name": "s3"}},
        {"auth_type": "v4", "signing": {"region": "r", "signing_name": "s3", "identity_cache": 1}},
    ],
)
async def test_another_signature_is_left_to_the_library(context: dict[str, Any]) -> None:
    client, credentials = Mock(), Mock()

    answer = await PutSender(client, credentials).answer(model=None, params={}, context=context)

    assert answer is None
    assert credentials.mock_calls == []


TEXT = st.text(string.ascii_letters + string.digits + " ;,=/+-", min_size=1, max_size=12)
NAMES = st.text(string.ascii_letters + "-", min_size=1, max_size=12).map(lambda name: f"x-{name}")


@given(
    headers=st.dictionaries(NAMES, TEXT, max_size=8),
    host=st.sampled_from(["h.example", "H:443", "h:80", "127.0.0.1:8333", "[::1]:9000"]),
    scheme=st.sampled_from(["http", "https"]),
    path=st.text(string.ascii_letters + "/%20~", max_size=12),
    body=st.binary(max_size=20),
    token=st.none() | TEXT,
    is_body_signed=st.booleans(),
)
def test_the_signature_is_botocores(
    *,
    headers: dict[str, str],
    host: str,
    scheme: str,
    path: str,
    body: bytes,
    token: str | None,
    is_body_signed: bool,
) -> None:
    headers = {name.lower(): text for name, text in headers.items()} | {"User-Agent": "tailrace"}
    url = f"{scheme}://{host}/{path}"
    credentials = ReadOnlyCredentials("id", "secret", token, None)
    configuration = Config(s3={"payload_signing_enabled": is_body_signed})
    while True:
        theirs = AWSRequest(method="PUT", url=url, headers=headers, data=body)
        theirs.context["client_config"] = configuration
        ours = Request(
            method="PUT",
            url=url,
            headers=dict(headers),
            body=memoryview(body),
            context={"client_config": configuration},
        )

        S3SigV4Auth(credentials, "s3", "eu-west-1").add_auth(theirs)
        sign(ours, credentials, "s3", "eu-west-1")

        if ours.headers["X-Amz-Date"] == theirs.headers["X-Amz-Date"]:
            break
    assert ours.headers == dict(theirs.headers.items())


async def test_a_large_body_leaves_the_loop_its_turns() -> None:
    """On loopback the kernel takes megabytes at once: nothing else would make the body wait."""
    size, mib = 8 * 1024 * 1024 + 1, 1024 * 1024
    sent, turn_count, most_in_a_turn = 0, 0, 0

    class Writer:
        async def write(self, piece: memoryview) -> None:
            nonlocal sent
            sent += len(piece)

    async def turn() -> None:
        nonlocal turn_count, most_in_a_turn
        before = 0
        while sent < size:
            most_in_a_turn = max(most_in_a_turn, sent - before)
            before = sent
            turn_count += 1
            await asyncio.sleep(0)

    writer: Any = Writer()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(turn())
        await SlicedBody(memoryview(bytes(size))).write(writer)

    assert sent == size
    assert turn_count >= 8
    assert most_in_a_turn <= mib
