"""A bucket in memory: an `ObjectStore` whose objects a test may damage, with hooks between."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from engine.model.errors import ObjectArchived
from engine.model.interfaces import ListedObject, ObjectHead, ObjectTail

Hook = Callable[[str], Awaitable[None]]


async def _nothing(_: str) -> None:
    pass


@dataclass
class StoredObject:
    body: bytes
    metadata: dict[str, str]


@dataclass
class MemoryStore:
    """`before_list` and `before_head` run before such a request is answered.

    Bodies of `archived` keys cannot be read.
    """

    objects: dict[str, StoredObject] = field(default_factory=dict)
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
        self.objects[key] = StoredObject(bytes(body), dict(metadata))
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
                yield ListedObject(key, len(self.objects[key].body))

    async def folders(self, prefix: str) -> tuple[str, ...]:
        rests = [key.removeprefix(prefix) for key in self.objects if key.startswith(prefix)]
        return tuple(sorted({f"{prefix}{rest.split('/')[0]}/" for rest in rests if "/" in rest}))

    async def abort_uploads(
        self, prefix: str, *, is_ours: Callable[[str], bool], before_us: int
    ) -> int:
        return 0
