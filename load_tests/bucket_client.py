"""The harness's own look into the bucket: a client, and how much lies below a prefix."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aioboto3

from load_tests.servers import Bucket

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client


@asynccontextmanager
async def open_client(bucket: Bucket) -> AsyncIterator["S3Client"]:
    """As the engine's own: an external bucket's credentials are in our environment too.

    Leaving, also by cancellation, closes its connections.
    """
    async with aioboto3.Session().client(
        "s3",
        endpoint_url=bucket.endpoint_url or None,
        region_name=bucket.region,
        aws_access_key_id=bucket.environment.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=bucket.environment.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=bucket.environment.get("AWS_SESSION_TOKEN"),
    ) as client:
        yield client


def bytes_below(bucket: Bucket, prefix: str) -> int:
    """The size of all objects whose keys begin so."""
    return asyncio.run(_bytes_below(bucket, prefix))


async def _bytes_below(bucket: Bucket, prefix: str) -> int:
    total = 0
    async with open_client(bucket) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=prefix)
        async for page in pages:
            total += sum(entry["Size"] for entry in page.get("Contents", ()))
    return total
