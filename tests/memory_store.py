"""A bucket in memory: an `ObjectStore` whose objects a test may damage, with hooks between."""

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.flow.chunk import crc32_text
from engine.model.errors import DestinationUnavailable, ObjectArchived, UploadGone
from engine.model.interfaces import ListedObject, ListedUpload, ObjectHead, ObjectTail
from engine.model.staging import Completion, StagedPart

Hook = Callable[[str], Awaitable[None]]


async def _nothing(_: str) -> None:
    pass


@dataclass
class StoredObject:
    body: bytes
    metadata: dict[str, str]
    made_us: int = 0


@dataclass
class StagedObject:
    key: str
    metadata: dict[str, str]
    begun_us: int
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class MemoryStore:
    """`before_list` and `before_head` run before such a request is answered.

    Bodies of `archived` keys cannot be read. Objects are made, and uploads begin, at `now_us`.
    """

    objects: dict[str, StoredObject] = field(default_factory=dict)
    uploads: dict[str, StagedObject] = field(default_factory=dict)
    now_us: int = 0
    begun_count: int = 0
    archived: set[str] = field(default_factory=set)
    before_list: Hook = _nothing
    before_head: Hook = _nothing

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        if key in self.objects:
            return False
        self.objects[key] = StoredObject(bytes(body), dict(metadata), self.now_us)
        return True

    async def get(self, key: str) -> bytes | None:
        if key in self.archived:
            raise ObjectArchived(f"get {key}: InvalidObjectState", code="InvalidObjectState")
        found = self.objects.get(key)
        return found.body if found is not None else None

    async def head(self, key: str) -> ObjectHead | None:
        await self.before_head(key)
        found = self.objects.get(key)
        return ObjectHead(len(found.body), dict(found.metadata)) if found is not None else None

    async def whole(self, key: str) -> ObjectTail | None:
        head, body = await self.head(key), await self.get(key)
        return None if head is None or body is None else ObjectTail(head.size, head.metadata, body)

    async def tail(self, key: str, size_bytes: int) -> ObjectTail | None:
        head = await self.head(key)
        if head is None:
            return None
        last = None if key in self.archived else self.objects[key].body[-size_bytes:]
        return ObjectTail(head.size, head.metadata, last)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ListedObject]:
        await self.before_list(prefix)
        for key in sorted(self.objects, key=str.encode):
            if key.startswith(prefix) and key > after:
                found = self.objects[key]
                yield ListedObject(key, len(found.body), found.made_us)

    async def folders(self, prefix: str) -> tuple[str, ...]:
        rests = [key.removeprefix(prefix) for key in self.objects if key.startswith(prefix)]
        return tuple(sorted({f"{prefix}{rest.split('/')[0]}/" for rest in rests if "/" in rest}))

    async def begin_upload(
        self, key: str, *, content_type: str, metadata: Mapping[str, str]
    ) -> str:
        self.begun_count += 1
        upload_id = f"upload-{self.begun_count}"
        self.uploads[upload_id] = StagedObject(key, dict(metadata), self.now_us)
        return upload_id

    async def put_part(
        self, key: str, upload_id: str, number: int, body: bytes | memoryview
    ) -> StagedPart:
        upload = self._upload(key, upload_id)
        if upload is None:
            raise UploadGone(f"put part {number} of {key}: NoSuchUpload")
        content = bytes(body)
        upload.parts[number] = content
        crc32 = crc32_text(zlib.crc32(content))
        return StagedPart(number, f'"{crc32}"', crc32, len(content))

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[StagedPart], *, crc32: str
    ) -> Completion:
        if key in self.objects:
            return Completion.TAKEN
        upload = self._upload(key, upload_id)
        if upload is None:
            return Completion.GONE
        bodies = [upload.parts.get(part.number, b"") for part in sorted_parts(parts)]
        stored = [crc32_text(zlib.crc32(body)) for body in bodies]
        if stored != [part.crc32 for part in sorted_parts(parts)]:
            raise DestinationUnavailable(f"complete {key}: InvalidPart", code="InvalidPart")
        content = b"".join(bodies)
        if crc32_text(zlib.crc32(content)) != crc32:
            raise DestinationUnavailable(f"complete {key}: BadDigest", code="BadDigest")
        self.objects[key] = StoredObject(content, upload.metadata, self.now_us)
        del self.uploads[upload_id]
        return Completion.CREATED

    async def abort_upload(self, key: str, upload_id: str) -> bool:
        if self._upload(key, upload_id) is None:
            return False
        del self.uploads[upload_id]
        return True

    async def list_uploads(self, prefix: str) -> AsyncIterator[ListedUpload]:
        for upload_id, upload in sorted(self.uploads.items(), key=lambda item: item[1].key):
            if upload.key.startswith(prefix):
                yield ListedUpload(upload.key, upload_id, upload.begun_us)

    def _upload(self, key: str, upload_id: str) -> StagedObject | None:
        found = self.uploads.get(upload_id)
        return found if found is not None and found.key == key else None


def sorted_parts(parts: Sequence[StagedPart]) -> list[StagedPart]:
    return sorted(parts, key=lambda part: part.number)
