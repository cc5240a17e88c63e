"""Objects that are staged in parts, for tests of stores."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from engine.flow.chunk import crc32_text
from engine.model.interfaces import ObjectStore
from engine.model.staging import Completion, StagedPart

RECORDS = "application/x-ndjson"
LARGE = bytes(range(256)) * (5 * 1024 * 1024 // 256)
"""The smallest part that S3 takes before the last one."""


@dataclass(frozen=True, slots=True)
class Staged:
    """An upload whose parts are all there."""

    key: str
    upload_id: str
    parts: tuple[StagedPart, ...]
    crc32: str


async def staged(
    store: ObjectStore, key: str, *bodies: bytes, metadata: Mapping[str, str] | None = None
) -> Staged:
    """Put the parts, the last one first."""
    upload_id = await store.begin_upload(key, content_type=RECORDS, metadata=metadata or {})
    numbered = list(enumerate(bodies, start=1))
    parts = [
        await store.put_part(key, upload_id, number, body) for number, body in reversed(numbered)
    ]
    return Staged(key, upload_id, tuple(parts), crc32_text(zlib.crc32(b"".join(bodies))))


async def complete(store: ObjectStore, upload: Staged) -> Completion:
    return await store.complete_upload(
        upload.key, upload.upload_id, upload.parts, crc32=upload.crc32
    )


async def staged_whole(store: ObjectStore, key: str) -> Completion:
    return await complete(store, await staged(store, key, b"{}\n"))


async def upload_ids(store: ObjectStore, prefix: str) -> set[str]:
    return {upload.upload_id async for upload in store.list_uploads(prefix)}
